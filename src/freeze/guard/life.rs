//! Whether another process lives. Its descriptors do not tell: they are closed when its last thread ends, and one that hangs in a
//! freeze outlives a SIGKILL of the process for as long as that takes.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// A process, by its /proc/PID/stat; `None` without a /proc that shows our own process namespace.
#[derive(Debug)]
pub(crate) struct Life(Option<OwnedFd>);

impl Life {
    /// Of a process that is there.
    pub(crate) fn of(pid: Pid) -> Self {
        if !is_own_proc() {
            return Self(None);
        }
        let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
        Self(rustix::fs::open(stat, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    /// Whether it is over; false where nothing tells.
    pub(crate) fn is_over(&self) -> bool {
        let mut text = [0; 64];
        let Some(stat) = &self.0 else {
            return false;
        };
        match rustix::io::pread(stat, &mut text, 0) {
            Ok(count) => is_dead(text.get(..count).unwrap_or_default()),
            Err(errno) => errno == Errno::SRCH,
        }
    }

    /// What must stay open for that.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// Whether the numbers in /proc are those that we see (pid_namespaces(7)): in a container it may be the host's.
fn is_own_proc() -> bool {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    std::fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == own.as_str())
}

/// Whether /proc/PID/stat, as it begins, is that of a process whose main thread has died: the letter after the name in
/// parentheses (proc_pid_stat(5)), which may hold parentheses itself.
fn is_dead(stat: &[u8]) -> bool {
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    let state = name_end.and_then(|end| stat.get(end + 2));
    matches!(state, Some(b'Z' | b'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dead_when_its_state_says_so_whatever_its_name() {
        assert!(is_dead(b"4194304 (floe) Z 1 4194304"));
        assert!(is_dead(b"7 (a) Z 1) X 1 7"));
        assert!(!is_dead(b"7 (a) Z 1) D 1 7"));
        assert!(!is_dead(b"7 (floe) S 1 7 7"));
        assert!(!is_dead(b""));
    }
}
