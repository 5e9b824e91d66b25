//! Growing a mounted filesystem: the three filesystems' own ioctls. Each takes a descriptor on anything in the mount, needs root
//! and a writable mount, and returns when the new size is committed.

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, __u64)` (fs/ext4/ext4.h).
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);
/// `XFS_IOC_FSGROWFSDATA`, `_IOW('X', 110, struct xfs_growfs_data)` (fs/xfs/libxfs/xfs_fs.h).
const XFS_IOC_FSGROWFSDATA: Opcode = opcode::write::<XfsGrow>(b'X', 110);
/// `BTRFS_IOC_RESIZE`, `_IOW(0x94, 3, struct btrfs_ioctl_vol_args)` (include/uapi/linux/btrfs.h).
const BTRFS_IOC_RESIZE: Opcode = opcode::write::<BtrfsArgs>(0x94, 3);

/// `struct xfs_growfs_data`.
#[repr(C, align(8))]
struct XfsGrow {
    blocks: u64,
    inode_percent: u32,
    padding: u32,
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct BtrfsArgs {
    fd: i64,
    name: [u8; 4088],
}

/// Grows an ext4 to this many blocks.
pub(crate) fn ext4(fd: impl AsFd, blocks: u64) -> Result<()> {
    // SAFETY: this opcode reads one u64 (fs/ext4/ioctl.c).
    let request = unsafe { Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks) };
    // SAFETY: the setter owns the memory that is read.
    unsafe { ioctl(fd, request) }
}

/// Grows the data section of an XFS to this many blocks; `inode_percent` must be what its superblock says, or it is changed.
pub(crate) fn xfs(fd: impl AsFd, blocks: u64, inode_percent: u32) -> Result<()> {
    let grow = XfsGrow {
        blocks,
        inode_percent,
        padding: 0,
    };
    // SAFETY: this opcode reads one struct xfs_growfs_data (fs/xfs/xfs_ioctl.c).
    let request = unsafe { Setter::<XFS_IOC_FSGROWFSDATA, XfsGrow>::new(grow) };
    // SAFETY: the setter owns the memory that is read.
    unsafe { ioctl(fd, request) }
}

/// Grows a btrfs on its device `device_id` to the end of that device.
pub(crate) fn btrfs(fd: impl AsFd, device_id: u64) -> Result<()> {
    let mut args = BtrfsArgs {
        fd: 0,
        name: [0; 4088],
    };
    let text = format!("{device_id}:max");
    for (place, byte) in args.name.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    // SAFETY: this opcode reads one struct btrfs_ioctl_vol_args, whose name ends with a NUL (fs/btrfs/ioctl.c).
    let request = unsafe { Setter::<BTRFS_IOC_RESIZE, BtrfsArgs>::new(args) };
    // SAFETY: the setter owns the memory that is read.
    unsafe { ioctl(fd, request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_kernel_headers_on_this_architecture() {
        assert_eq!(EXT4_IOC_RESIZE_FS, 0x4008_6610);
        assert_eq!(XFS_IOC_FSGROWFSDATA, 0x4010_586e);
        assert_eq!(BTRFS_IOC_RESIZE, 0x5000_9403);
    }
}
