//! How large a filesystem would be that fills its device: what its own ioctl to grow it is asked for.

use super::btrfs::superblock::{COPIES, RawSuper};
use super::ext::superblock::{OFFSET_BYTES, Raw};
use super::xfs::superblock::DiskSuperblock;
use super::{Identity, Kind, read};
use crate::device::ReadAt;
use crate::error::Fault;

/// Fewest blocks of an XFS allocation group (`XFS_MIN_AG_BLOCKS`, fs/xfs/libxfs/xfs_fs.h).
const XFS_GROUP_MIN: u64 = 64;
/// Fewer bytes more are none to a btrfs.
const BTRFS_LEAST: u64 = 4096;

/// The size to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// In blocks.
    Ext(u64),
    /// In blocks, and how many percent of them may hold inodes.
    Xfs { blocks: u64, inode_percent: u32 },
    /// To the end of the device that has this number in it.
    Btrfs(u64),
}

/// `None` when the filesystem fills its device.
pub(crate) fn of(device: &dyn ReadAt, identity: &Identity) -> Result<Option<Growth>, Fault> {
    let bad = || Fault::corrupt("superblock");
    let size = device.size_bytes();
    match identity.kind {
        Kind::Btrfs => {
            let [first, ..] = COPIES;
            let found = read::<RawSuper>(device, first)?.ok_or_else(bad)?;
            let room = size.saturating_sub(identity.size_bytes);
            Ok((room >= BTRFS_LEAST).then_some(Growth::Btrfs(found.dev_devid)))
        }
        Kind::Xfs => {
            let found = read::<DiskSuperblock>(device, 0)?.ok_or_else(bad)?;
            let blocks = size
                .checked_div(u64::from(found.sb_blocksize))
                .ok_or_else(bad)?;
            // A last group that is too small is left out, as the kernel would refuse it.
            let rest = blocks
                .checked_rem(u64::from(found.sb_agblocks))
                .ok_or_else(bad)?;
            let short = if rest < XFS_GROUP_MIN { rest } else { 0 };
            let blocks = blocks - short;
            Ok((blocks > found.sb_dblocks).then_some(Growth::Xfs {
                blocks,
                inode_percent: u32::from(found.sb_imax_pct),
            }))
        }
        _ => {
            let found = read::<Raw>(device, OFFSET_BYTES)?.ok_or_else(bad)?;
            let log = Some(found.s_log_block_size)
                .filter(|log| *log <= 6)
                .ok_or_else(bad)?;
            let blocks = size >> (10 + log);
            let have = identity.size_bytes >> (10 + log);
            Ok((blocks > have).then_some(Growth::Ext(blocks)))
        }
    }
}
