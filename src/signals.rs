//! The signals that end a run, as something to wait for instead of something that happens.
//!
//! Blocked from before the guardian exists until nothing is frozen any more. Before that a handler says one line, and they kill.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{ErrnoText, Error, Result};
use crate::sys::process;

/// The descriptor that gives them: made once, and never closed, so that every thread may look at it.
static FATAL: OnceLock<OwnedFd> = OnceLock::new();
/// Whether they are blocked now.
static BLOCKED: AtomicBool = AtomicBool::new(false);
/// Whether one has been taken: the run is ending.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Whether one has been taken by who ends the run for it, and waits no more.
static OBEYED: AtomicBool = AtomicBool::new(false);

/// How often a writer looks whether another thread has taken a signal.
const LOOK: Duration = Duration::from_millis(100);
/// How long the last words of a run that a signal ends may take, each.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The fatal signals, blocked and readable: SIGINT, SIGTERM, SIGHUP, except those that were ignored when floe started.
#[derive(Debug)]
pub struct Signals {
    fd: &'static OwnedFd,
}

impl Signals {
    /// Blocks them in this thread and in those it starts later; call it before any other thread exists.
    pub fn block() -> Result<Self> {
        process::remember_threads();
        let fatal = [process::SIGINT, process::SIGTERM, process::SIGHUP];
        process::block(&fatal);
        BLOCKED.store(true, Ordering::SeqCst);
        if let Some(fd) = FATAL.get() {
            return Ok(Self { fd });
        }
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
        Ok(Self {
            fd: FATAL.get_or_init(|| fd),
        })
    }

    /// Until they are blocked they say `line` before they kill.
    pub fn say(line: String) {
        let fatal = [process::SIGINT, process::SIGTERM, process::SIGHUP];
        process::say_before_death(&fatal, line.into_bytes());
    }

    /// Readable when [`Self::take`] has something to give.
    pub fn fd(&self) -> BorrowedFd<'static> {
        self.fd.as_fd()
    }

    /// A fatal signal that has arrived. Thaw, then return [`Error::Signal`].
    pub fn take(&self) -> Option<i32> {
        let number = process::take_signal(self.fd);
        if number.is_some() {
            TAKEN.store(true, Ordering::SeqCst);
            OBEYED.store(true, Ordering::SeqCst);
        }
        number
    }

    /// An error where one has arrived: thaw, then return it.
    pub(crate) fn check(&self) -> Result<()> {
        self.take()
            .map_or(Ok(()), |number| Err(Error::signal(number)))
    }
}

/// Whether a fatal signal waits to be taken: who is patient is so no longer.
pub(crate) fn are_waiting() -> bool {
    let Some(fd) = FATAL.get().filter(|_| BLOCKED.load(Ordering::SeqCst)) else {
        return false;
    };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Whether one has come, taken or not.
pub(crate) fn are_ending() -> bool {
    TAKEN.load(Ordering::SeqCst) || are_waiting()
}

/// Nothing is frozen any more: a process that waits can be interrupted again. But a second signal (timeout(1) sends two) cuts off neither
/// the last words of a run that ends by the first, nor the removal of its part file. One that nobody has taken kills now.
impl Drop for Signals {
    fn drop(&mut self) {
        BLOCKED.store(false, Ordering::SeqCst);
        if !OBEYED.load(Ordering::SeqCst) {
            process::unblock(&[process::SIGINT, process::SIGTERM, process::SIGHUP]);
        }
    }
}

/// Waits until something can be written to `to` without waiting, but no longer than until a fatal signal comes: then whether it
/// can be written within a moment. Whoever writes for people asks this first, so that nobody's stderr holds up a signal.
pub fn can_write(to: BorrowedFd<'_>) -> bool {
    loop {
        let ending = TAKEN.load(Ordering::SeqCst);
        let fatal = match (ending, FATAL.get()) {
            (false, Some(fd)) if BLOCKED.load(Ordering::SeqCst) => fd.as_fd(),
            _ => to,
        };
        let mut fds = [
            PollFd::from_borrowed_fd(to, PollFlags::OUT),
            PollFd::from_borrowed_fd(fatal, PollFlags::IN),
        ];
        let limit = if ending { LAST_WORDS } else { LOOK };
        let answer = poll(
            &mut fds,
            Some(&Timespec::try_from(limit).unwrap_or_default()),
        );
        let [to_ready, signal] = fds.map(|fd| fd.revents());
        // A broken pipe or a closed descriptor is told by the write.
        if to_ready.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::NVAL) {
            return true;
        }
        if ending {
            return false;
        }
        if answer.is_ok() && signal.contains(PollFlags::IN) {
            // It stays where it is: who supervises the run takes it.
            TAKEN.store(true, Ordering::SeqCst);
        }
    }
}
