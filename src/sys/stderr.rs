//! Standard error, written to without ever waiting in a write.
//!
//! poll(2) says of a pipe that it takes PIPE_BUF bytes (pipe(7)), but of a terminal only that it takes something: a longer write
//! waits for its reader, with our signals blocked (drivers/tty/n_tty.c, `n_tty_write`). So a terminal is opened once more, without
//! waiting; the description behind standard error itself is shared with others, and stays as it is.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

/// What is written at once: as much as a pipe takes without waiting when it takes anything.
const PIECE_BYTES: usize = 4096;

/// What standard error is.
enum StderrKind {
    /// A pipe, a file, a socket.
    Plain,
    /// A terminal, opened by ourselves.
    Terminal(OwnedFd),
    /// A terminal that we may not open.
    Foreign,
}

static KIND: OnceLock<StderrKind> = OnceLock::new();

/// Looks what it is. At the start: while something is frozen nothing is opened.
pub(crate) fn prepare() {
    KIND.get_or_init(|| {
        let stderr = rustix::stdio::stderr();
        if !rustix::termios::isatty(stderr) {
            return StderrKind::Plain;
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |path| rustix::fs::open(path, flags, Mode::empty());
        // Behind su it belongs to somebody else; but then it mostly is our controlling terminal.
        let is_controlling = || rustix::termios::tcgetsid(stderr).is_ok();
        match open("/proc/self/fd/2") {
            Ok(own) => StderrKind::Terminal(own),
            Err(_) if is_controlling() => {
                open("/dev/tty").map_or(StderrKind::Foreign, StderrKind::Terminal)
            }
            Err(_) => StderrKind::Foreign,
        }
    });
}

/// The descriptor that [`prepare`] opened.
pub(crate) fn own() -> Option<RawFd> {
    match KIND.get() {
        Some(StderrKind::Terminal(own)) => Some(own.as_raw_fd()),
        _ => None,
    }
}

/// One write of a first part, for who was told by poll(2) that something is taken. A terminal may take nothing all the same
/// (`AGAIN`). No heap.
pub(crate) fn write(bytes: &[u8]) -> Result<usize> {
    let (to, most): (BorrowedFd<'_>, _) = match KIND.get() {
        Some(StderrKind::Terminal(own)) => (own.as_fd(), PIECE_BYTES),
        Some(StderrKind::Foreign) => (rustix::stdio::stderr(), 1),
        Some(StderrKind::Plain) | None => (rustix::stdio::stderr(), PIECE_BYTES),
    };
    rustix::io::write(to, bytes.get(..most).unwrap_or(bytes))
}

/// Writes as much as is taken at once. No heap, and nothing that a handler of signals may not do.
pub(crate) fn write_if_ready(bytes: &[u8]) {
    let stderr = rustix::stdio::stderr();
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut fds = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        let [ready_for] = fds.map(|fd| fd.revents());
        if !matches!(ready, Ok(1)) || !ready_for.contains(PollFlags::OUT) {
            return;
        }
        match write(rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
