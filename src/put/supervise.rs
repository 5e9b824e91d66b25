//! Long work in a thread of its own, while the main thread shows how far it is and takes signals.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use crate::cli::Common;
use crate::error::{Error, Fault, Result};
use crate::report::{self, Step};
use crate::signals::Signals;
use crate::stream::copy::{self, CopyProgress};
use crate::sys::process;
use crate::threads::{Lock, RecvTimeoutError, channel};

/// How long the waiting thread sleeps at most, for the progress line.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// The state of a run that only looks so far.
pub(crate) const CHECKING: &str =
    "it was being checked; nothing was written, and the target is as it was";

/// While it lives a signal ends the run at once, with one line, whatever the main thread waits for: for what is done before the
/// first write. Dropped before anything else takes signals.
pub(crate) struct SignalWatch {
    subject: String,
    state: &'static str,
    signals: Arc<Lock<Option<Signals>>>,
    /// Its other end tells the thread that it is over.
    over: Option<OwnedFd>,
}

impl SignalWatch {
    /// From now on: `subject` is what is being done something with, `state` what is left.
    pub(crate) fn start(subject: impl std::fmt::Display, state: &'static str) -> Result<Self> {
        let subject = match subject.to_string() {
            stdin if stdin == "-" => "stdin".into(),
            other => other,
        };
        let fail = |what, errno| Error::fault("floe", Fault::io(what, errno)).leaving(state);
        let blocked = Signals::block()?;
        let fatal = blocked.fd();
        let signals = Arc::new(Lock::new(Some(blocked)));
        let (ended, over) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| fail("pipe", errno))?;
        let (shared, shown) = (Arc::clone(&signals), subject.clone());
        let watch = move || {
            loop {
                let mut ready = [
                    PollFd::new(&ended, PollFlags::IN),
                    PollFd::from_borrowed_fd(fatal, PollFlags::IN),
                ];
                let _ = rustix::event::poll(&mut ready, None);
                // Held until the end of the process: who drops the watch goes on only where no signal was taken.
                let signals = shared.lock();
                let Some(blocked) = signals.as_ref() else {
                    return;
                };
                end(blocked, &shown, state);
            }
        };
        crate::threads::start(c"signals", 64 * 1024, Box::new(watch))
            .map_err(|errno| fail("start a thread", errno))?;
        Ok(Self {
            subject,
            state,
            signals,
            over: Some(over),
        })
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        let mut signals = self.signals.lock();
        if let Some(blocked) = signals.as_ref() {
            end(blocked, &self.subject, self.state);
        }
        *signals = None;
        self.over = None;
    }
}

/// Dies by a signal that has come, if any.
fn end(signals: &Signals, subject: &str, state: &str) {
    if let Some(number) = signals.take() {
        report::interrupted(subject, state);
        std::process::exit(process::die_by(number).into());
    }
}

/// Runs `work` in a thread of its own and waits for it, with progress and signals meanwhile. A signal ends the process at
/// once, whatever the input or the target is stuck in.
pub(crate) fn supervise<T: Send + 'static>(
    common: &Common,
    progress: &CopyProgress,
    state: &dyn Fn() -> String,
    name: &str,
    input_length: Option<u64>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = Arc::new(Lock::new(None));
    let place = Arc::clone(&done);
    let work = Box::new(move || work().map(|value| *place.lock() = Some(value)));
    wait(common, progress, state, name, input_length, work)?;
    let value = done.lock().take();
    value.ok_or_else(|| died(name, state))
}

#[cold]
fn died(name: &str, state: &dyn Fn() -> String) -> Error {
    Error::failed(format_args!("{name}: the writing thread died")).leaving(&state())
}

/// The same for work that puts its result away: what needs to be in the executable only once.
fn wait(
    common: &Common,
    progress: &CopyProgress,
    state: &dyn Fn() -> String,
    name: &str,
    input_length: Option<u64>,
    work: Box<dyn FnOnce() -> Result<()> + Send>,
) -> Result<()> {
    let fail = |what, errno| Error::fault("floe", Fault::io(what, errno)).leaving(&state());
    let signals = Signals::block()?;
    let (over, running) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| fail("pipe", errno))?;
    let (send, receive) = channel();
    crate::threads::start(
        c"write",
        256 * 1024,
        Box::new(move || {
            let _ = send.send(work());
            drop(running); // the waiting thread sees the end of the pipe
        }),
    )
    .map_err(|errno| fail("start a thread", errno))?;
    let mut line = report::Progress::new(common);
    loop {
        let mut ready = [
            PollFd::new(&over, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut ready, Some(&PAUSE));
        if let Some(number) = signals.take() {
            progress.stop.store(true, Ordering::Relaxed);
            line.clear();
            report::interrupted(name, &state());
            return Err(Error::signal(number));
        }
        match receive.try_recv() {
            Ok(result) => {
                line.clear();
                return result;
            }
            Err(RecvTimeoutError::Timeout) => {
                let phase = progress.phase.load(Ordering::Relaxed);
                let (done, total) = match input_length.filter(|_| phase <= copy::MEASURING) {
                    Some(length) => (&progress.input_bytes, length),
                    None => {
                        let total = progress.total_bytes.load(Ordering::Relaxed);
                        (&progress.done_bytes, total)
                    }
                };
                let step = Step::new(
                    report::PHASES.get(phase).unwrap_or(&""),
                    done.load(Ordering::Relaxed),
                    total,
                );
                line.show(false, step);
            }
            Err(RecvTimeoutError::Disconnected) => return Err(died(name, state)),
        }
    }
}
