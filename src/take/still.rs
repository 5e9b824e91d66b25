//! How each source is held still: frozen, remounted read-only, or as it is; and the targets that the guardian gets.

use crate::error::{Error, Result};
use crate::freeze::{FreezeTarget, Method, Remount};
use crate::fs::Still;
use crate::mounts::{Mounted, Stacked, System};
use crate::take::source::{Prepared, Wishes};

/// Filesystems whose FIFREEZE is known to hold (`freeze_fs` and `freeze_super` in Linux 4.4 to 6.18; ReiserFS has one that
/// deadlocks). Any other is remounted read-only. What a program serves (FUSE) would go on writing to its device even then: its
/// FIFREEZE is refused by the kernel, and so is the dump.
const FREEZES: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "gfs2", "bcachefs", "fuseblk",
];

/// Whether a filesystem is frozen where it is mounted; otherwise it is remounted read-only.
pub(crate) fn can_freeze(filesystem: &str) -> bool {
    FREEZES.contains(&filesystem)
}

/// What the filesystem's kind and the superblock's state allow.
pub(super) fn still_of(mounted: &Mounted, wishes: Wishes) -> Still {
    let filesystem = mounted.mount.filesystem.as_str();
    // After errors=remount-ro the kernel writes no more, and FIFREEZE answers EROFS.
    if mounted.mount.is_never_written() || mounted.emergency_read_only() {
        Still::ReadOnly
    } else if wishes.live {
        Still::Moving
    } else if !can_freeze(filesystem) || mounted.super_read_only() {
        // Frozen too, so that it stays read-only; but a mount without recovery (norecovery, noload) may show maps that lie, so
        // the readers ask the disk as they do for one that is not mounted.
        Still::ReadOnly
    } else {
        Still::Frozen
    }
}

/// The targets for a guardian, top of the stack first, for all that `mounted` lists.
pub(crate) fn targets(
    system: &System,
    mounted: Vec<Mounted>,
    wishes: Wishes,
) -> Result<Vec<FreezeTarget>> {
    let order = system.freeze_order(&mounted.iter().collect::<Vec<_>>())?;
    let mut mounted: Vec<Option<Mounted>> = mounted.into_iter().map(Some).collect();
    let mut targets = Vec::new();
    for index in order {
        if let Some(mounted) = mounted.get_mut(index).and_then(Option::take)
            && let Some(target) = target(mounted, wishes)
        {
            targets.push(target);
        }
    }
    Ok(targets)
}

fn target(mounted: Mounted, wishes: Wishes) -> Option<FreezeTarget> {
    let name = mounted.point().display().to_string();
    let filesystem = mounted.mount.filesystem.as_str();
    let remounted = !can_freeze(filesystem);
    let never_written = mounted.mount.is_never_written() || mounted.emergency_read_only();
    if never_written || wishes.live || remounted && mounted.super_read_only() {
        return None;
    }
    let fd = mount_root(&mounted).unwrap_or(mounted.fd);
    let method = if remounted {
        Method::ReadOnly(Remount::new(
            &fd,
            &mounted.mount.options.to_string_lossy(),
            &mounted.mount.super_options.to_string_lossy(),
        ))
    } else {
        Method::Freeze
    };
    Some(FreezeTarget { fd, name, method })
}

/// The root directory of the mount, where the path still leads there: a remount and the lock against a second floe want it. A
/// descriptor on any file of the filesystem is enough for the freeze.
fn mount_root(mounted: &Mounted) -> Option<std::os::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags, fstat, open};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(mounted.point(), flags, Mode::empty()).ok()?;
    let same = fstat(&root).ok()?.st_dev == fstat(&mounted.fd).ok()?.st_dev;
    same.then_some(root)
}

pub(super) fn refuse_swap(stacked: &Stacked, wishes: Wishes, prepared: &Prepared) -> Result<()> {
    if stacked.swaps.is_empty() || wishes.live {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{}: holds swap that is in use and cannot be held still; swapoff it first, or --live",
        prepared.name
    )))
}

pub(super) fn hold_stacked(stacked: Stacked, wishes: Wishes, prepared: &mut Prepared) -> Still {
    // With nothing mounted above nothing is frozen: holders that are idle (multipath, dm-linear) leave a dirty log dirty.
    let mut still = match (stacked.swaps.is_empty(), stacked.mounted.is_empty()) {
        (false, _) => Still::Moving,
        (true, true) => Still::Unmounted,
        (true, false) => Still::Frozen,
    };
    for mounted in stacked.mounted {
        if still_of(&mounted, wishes) == Still::Moving {
            still = Still::Moving;
        }
        prepared.mounted.push(mounted);
    }
    prepared.held.extend(stacked.held);
    still
}
