//! Whether a mounted filesystem is frozen just now, by whomever. The kernel tells nobody, but who wants to write waits.
//!
//! A child asks to remove an extended attribute of a kind that there is not (`fremovexattr(2)`). The kernel waits until the mount may be
//! written (`mnt_want_write_file`, fs/xattr.c), and only then says that it knows no such kind (`xattr_resolve_name`): no filesystem
//! hears of it, and nothing is written. The child of something frozen ends after the thaw, and nothing can end it before; so it
//! has closed all it inherited, and belongs to no terminal.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys::process::{ForkSide, close_others, exit_now, fork_single_threaded};

/// No filesystem has attributes of this kind.
const NO_ATTRIBUTE: &str = "floe.is-it-frozen";

/// How long a write that nothing holds up may take on a busy machine.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether what `fd` was opened on is frozen; `None` where that cannot be told.
pub(crate) fn is_frozen(fd: BorrowedFd<'_>) -> Option<bool> {
    let child = match fork_single_threaded().ok()? {
        ForkSide::Child => {
            close_others(&[fd.as_raw_fd()]);
            let _ = rustix::process::setsid();
            let _ = rustix::fs::fremovexattr(fd.as_fd(), NO_ATTRIBUTE);
            exit_now(0)
        }
        ForkSide::Parent(child) => child,
    };
    let end = Instant::now() + PATIENCE;
    loop {
        match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(Some(_)) => return Some(false),
            Ok(None) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        if Instant::now() > end {
            return waits_for_thaw(child).then_some(true);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process that was asked to write sleeps, and not for the lock of a folder that is busy.
fn waits_for_thaw(child: Pid) -> bool {
    let read = |name| {
        let path = format!("/proc/{}/{name}", child.as_raw_pid());
        std::fs::read_to_string(path).unwrap_or_default()
    };
    // proc(5): the state follows the name, which is in brackets.
    let stat = read("stat");
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with('D')) && !read("wchan").contains("down_write")
}
