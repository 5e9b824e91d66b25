//! Standard error, written to without ever waiting in a write.
//!
//! poll(2) says of a pipe that it takes PIPE_BUF bytes (pipe(7)), but of a terminal only that it takes something: a longer write
//! waits for its reader, with our signals blocked (drivers/tty/n_tty.c, `n_tty_write`). And somebody else who has it, too, may be
//! faster. So a terminal or a pipe is opened once more, without waiting; the description behind standard error itself is shared with
//! others, and stays as it is. Where it cannot be opened, an alarm ends a write that waits.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

/// What is written at once: as much as a pipe takes without waiting when it takes anything.
const PIECE_BYTES: usize = 4096;

/// What standard error is.
enum StderrKind {
    /// Nothing that has a reader.
    File,
    /// A terminal or a pipe, opened by ourselves.
    Own(OwnedFd),
    /// One that we may not open, or a socket.
    Foreign,
}

static KIND: OnceLock<StderrKind> = OnceLock::new();

/// Looks what it is. At the start: while something is frozen nothing is opened.
pub(crate) fn prepare() {
    KIND.get_or_init(|| {
        let stderr = rustix::stdio::stderr();
        let is_terminal = rustix::termios::isatty(stderr);
        let stat = rustix::fs::fstat(stderr);
        let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if !is_terminal && !matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
            return StderrKind::File;
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |path| rustix::fs::open(path, flags, Mode::empty());
        // Behind su it belongs to somebody else; but then it mostly is our controlling terminal.
        let is_controlling = || is_terminal && rustix::termios::tcgetsid(stderr).is_ok();
        let own = open("/proc/self/fd/2").or_else(|errno| match is_controlling() {
            true => open("/dev/tty"),
            false => Err(errno),
        });
        own.map_or_else(
            |_| {
                super::process::expect_alarm();
                StderrKind::Foreign
            },
            StderrKind::Own,
        )
    });
}

/// The descriptor that [`prepare`] opened.
pub(crate) fn own() -> Option<RawFd> {
    match KIND.get() {
        Some(StderrKind::Own(own)) => Some(own.as_raw_fd()),
        _ => None,
    }
}

/// One write of a first part, for who was told by poll(2) that something is taken. Nothing may be taken all the same (`AGAIN`). No
/// heap.
pub(crate) fn write(bytes: &[u8]) -> Result<usize> {
    let piece = bytes.get(..PIECE_BYTES).unwrap_or(bytes);
    let stderr = rustix::stdio::stderr();
    match KIND.get() {
        Some(StderrKind::Own(own)) => rustix::io::write(own, piece),
        Some(StderrKind::Foreign) => {
            match super::process::before_alarm(|| rustix::io::write(stderr, piece)) {
                Err(Errno::INTR) => Err(Errno::AGAIN),
                done => done,
            }
        }
        Some(StderrKind::File) | None => rustix::io::write(stderr, piece),
    }
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
