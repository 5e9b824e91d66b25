//! One floe a filesystem: two would each see the other's freeze as a stranger's.
//!
//! The lock is a byte of a file that only root can open for writing, at the place that the filesystem's number gives: whoever
//! could hold it could end floe as well. A lock on the filesystem's own root directory would be anybody's who can open that. It
//! belongs to the open file, which the guardian inherits, and so lasts as long as either of them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::freeze::guard::FreezeTarget;
use crate::signals;
use crate::sys::{identity, lock};
use crate::threads::patiently;

/// Files that are there wherever /proc is, mode 0200; opening them does nothing, and nothing is ever written to them. The first
/// one that can be opened is used: it is the same one for all who share this /proc.
const PLACES: [&str; 2] = ["/proc/sysrq-trigger", "/proc/1/clear_refs"];

/// The guardian of a floe that was just killed holds its lock until it has thawed: a moment, which whoever starts a floe anew need
/// not see.
const PATIENCE: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The lock on all of these; `None` where there is nothing to hold one by: the freeze itself still refuses a second one.
pub(super) fn take(targets: &[FreezeTarget]) -> Result<Option<OwnedFd>> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |place: &&str| rustix::fs::open(*place, flags, Mode::empty()).ok();
    let Some(file) = PLACES.iter().find_map(open) else {
        return Ok(None);
    };
    for target in targets {
        match byte(&file, number(target)) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                return Err(Error::refused(format_args!(
                    "{}: another floe is at work on it",
                    target.name
                ))
                .leaving("nothing was frozen"));
            }
            // An emulator or a filter without these locks.
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(file))
}

/// The lock on one byte, once nobody else has it, or what the last try gave.
fn byte(file: &OwnedFd, number: i64) -> std::result::Result<(), Errno> {
    let is_held =
        |tried: &_| matches!(tried, Err(Errno::AGAIN | Errno::ACCESS)) && !signals::are_waiting();
    patiently(PATIENCE, PAUSE, is_held, || lock::byte(file, number))
}

/// A number of the filesystem: that of its device; of a btrfs, whose subvolumes each have one, the beginning of its fsid.
fn number(target: &FreezeTarget) -> i64 {
    let bytes = match identity::btrfs_info(&target.fd) {
        Ok(info) => info.fsid.first_chunk().copied().unwrap_or_default(),
        Err(_) => rustix::fs::fstat(&target.fd)
            .map_or(0, |stat| stat.st_dev)
            .to_ne_bytes(),
    };
    // The last place of a file is not lockable, and none is negative.
    i64::from_ne_bytes(bytes) & (i64::MAX >> 1)
}
