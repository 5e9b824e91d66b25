//! What the guardian is executed from: a copy of our own executable that shares neither its name nor its inode.
//!
//! Who ends floe by name ends whatever has its command line, its comm, the name behind /proc/PID/exe or that file's inode:
//! busybox's `killall` and `pidof` look at the first three, sysvinit's `pidof` and `start-stop-daemon -x` at the last. A copy
//! in memory (memfd_create(2), Linux 3.17) has none of them. Where that is missing or must not be executed (`vm.memfd_noexec`), the
//! copy lies on a tmpfs that is mounted nowhere; and where neither can be, the guardian is forked, with floe's own name.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{Errno, Result};

/// The guardian's name, wherever a process has one.
/// What the guardian calls itself.
pub const NAME: &str = "thaw-guard";

/// What the guardian runs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A sealed copy in memory.
    Memory,
    /// A copy on a private tmpfs.
    Tmpfs,
    /// floe's own executable: a fork, which some commands that kill by name find together with floe.
    Fork,
}

impl Form {
    /// The report's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Memory => "memfd",
            Self::Tmpfs => "tmpfs",
            Self::Fork => "fork",
        }
    }

    /// A new file in memory, empty, readable and writable, that no path leads to.
    pub(crate) fn file(self) -> Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        match self {
            // MFD_EXEC is of Linux 6.3; without it a newer kernel may forbid what an older one does not know.
            Self::Memory => match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
                Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
                made => made,
            },
            Self::Tmpfs => crate::mounts::private_file(NAME)
                .map_err(|fault| fault.errno().map_or(Errno::IO, Errno::from_raw_os_error)),
            Self::Fork => Err(Errno::NOSYS),
        }
    }

    /// A copy of our executable, ready to be executed.
    pub(crate) fn copy(self) -> Result<OwnedFd> {
        let copy = self.file()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let ours = rustix::fs::open("/proc/self/exe", flags, Mode::empty())?;
        while rustix::fs::sendfile(&copy, &ours, None, 1 << 30)? > 0 {}
        if self == Self::Memory {
            let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&copy, seals)?;
            return Ok(copy);
        }
        // A file that somebody has open for writing is not executed (ETXTBSY).
        rustix::fs::open(path_of(&copy), flags, Mode::empty())
    }
}

/// A path to an open file, for this process and for a child before its exec.
pub(crate) fn path_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
