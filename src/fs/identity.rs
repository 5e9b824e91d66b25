//! Another uuid for a copy, where that is a matter of the superblock: ext2/3/4 without checksums that depend on it, FAT, swap, and XFS
//! through its meta_uuid feature. Everything else is refused with the reason.
//!
//! Bytes in, bytes out: [`change`] reads and hands out what to write, the copies first and the superblock that makes the filesystem
//! valid last. With a writer that does nothing it says whether the change can be made.

use super::{Kind, ext, fat, swap, xfs};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::features;

/// Takes bytes for an offset.
pub type Write<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Fault> + 'a;

/// Gives the filesystem the (random) uuid, or serial number made of it.
pub fn change(
    device: &dyn ReadAt,
    kind: Kind,
    uuid: &[u8; 16],
    write: &mut Write<'_>,
) -> Result<(), Fault> {
    if let Some(why) = features::without(kind.name()) {
        return Err(Fault::refused(why));
    }
    match kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => ext::change_uuid(device, uuid, write),
        Kind::Fat12 | Kind::Fat16 | Kind::Fat32 if features::FAT => {
            fat::change_serial(device, uuid, write)
        }
        Kind::Swap => swap::change_uuid(device, uuid, write),
        Kind::Xfs if features::XFS => xfs::change_uuid(device, uuid, write),
        Kind::Btrfs => Err(Fault::refused(
            "its metadata is known by the uuid; btrfstune -m on the unmounted copy changes it",
        )),
        _ => Err(Fault::refused("its uuid is not a matter of the superblock")),
    }
}

/// Whether [`change`] would work on a copy of this.
pub fn can_change(device: &dyn ReadAt, kind: Kind) -> Result<(), Fault> {
    match kind {
        // The log of what is in use is dirty; that of the copy will not be.
        Kind::Xfs if features::XFS => xfs::can_change_uuid(device).map(|_| ()),
        _ => change(device, kind, &[0x5a; 16], &mut |_, _| Ok(())),
    }
}

/// Whether a journal or log has to be replayed first, by mounting it: it holds the old uuid, and would bring it back.
pub fn needs_replay(device: &dyn ReadAt, kind: Kind) -> Result<bool, Fault> {
    match kind {
        Kind::Xfs => Ok(true),
        Kind::Ext3 | Kind::Ext4 => ext::needs_recovery(device),
        _ => Ok(false),
    }
}
