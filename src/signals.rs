//! The signals that end a run, as something to wait for instead of something that happens.
//!
//! Blocked from before the guardian exists until nothing is frozen any more; never handled in a handler.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{ErrnoText, Error, Result};
use crate::sys::process;

/// The fatal signals, blocked and readable: SIGINT, SIGTERM, SIGHUP, except those that were ignored when floe started.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks them in this thread and in those it starts later; call it before any other thread exists.
    pub fn block() -> Result<Self> {
        process::remember_threads();
        let fatal = [process::SIGINT, process::SIGTERM, process::SIGHUP];
        process::block(&fatal);
        // Under nohup SIGHUP is ignored; but a signal that is blocked would reach the descriptor nevertheless.
        let wanted: Vec<i32> = fatal
            .into_iter()
            .filter(|number| !process::is_ignored(*number))
            .collect();
        let fd = process::signal_fd(&wanted).map_err(|errno| {
            Error::failed(format_args!(
                "signals: signalfd: {}",
                ErrnoText(errno.raw_os_error())
            ))
        })?;
        Ok(Self { fd })
    }

    /// Readable when [`Self::take`] has something to give.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A fatal signal that has arrived. Thaw, then return [`Error::Signal`].
    pub fn take(&self) -> Option<i32> {
        process::take_signal(&self.fd)
    }
}

/// Nothing is frozen any more: a process that waits in a write to stderr can be interrupted again.
impl Drop for Signals {
    fn drop(&mut self) {
        process::unblock(&[process::SIGINT, process::SIGTERM, process::SIGHUP]);
    }
}
