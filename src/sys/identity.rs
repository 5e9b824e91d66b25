//! Two ioctls that answer "what lies under this descriptor" where a device number alone does not: which btrfs, which loop file.

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

/// `BTRFS_IOC_FS_INFO`, `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`, 1024 bytes (include/uapi/linux/btrfs.h).
pub(crate) const BTRFS_IOC_FS_INFO: Opcode = opcode::read::<[u64; 128]>(0x94, 31);
/// `LOOP_GET_STATUS64`, a plain number from before the `_IOR` macros (include/uapi/linux/loop.h).
pub(crate) const LOOP_GET_STATUS64: Opcode = 0x4c05;

/// What a mounted btrfs says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BtrfsInfo {
    /// Number of devices it spans.
    pub devices: u64,
    /// Its fsid, as the directory under `/sys/fs/btrfs` is named (a temporary one where the kernel gave a clone its own).
    pub fsid: [u8; 16],
}

/// What a loop device says about the file below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoopInfo {
    /// `st_dev` of the backing file.
    pub file_dev: u64,
    /// `st_ino` of the backing file.
    pub file_inode: u64,
    /// `st_rdev` of the backing file: not 0 where a loop device lies on a block device.
    pub file_rdev: u64,
    /// Offset into the file in bytes.
    pub offset: u64,
}

/// Asks the btrfs that holds `fd`; `ENOTTY` on any other filesystem.
pub(crate) fn btrfs_info(fd: impl AsFd) -> Result<BtrfsInfo> {
    // SAFETY: the kernel writes one struct btrfs_ioctl_fs_info_args of 1024 bytes (fs/btrfs/ioctl.c).
    let request = unsafe { Getter::<BTRFS_IOC_FS_INFO, [u64; 128]>::new() };
    // SAFETY: the getter owns the memory that is written.
    let words = unsafe { ioctl(fd, request) }?;
    // u64 max_id, u64 num_devices, u8 fsid[16].
    let [_, devices, first, second, ..] = words;
    let mut fsid = [0; 16];
    let (low, high) = fsid.split_at_mut(8);
    low.copy_from_slice(&first.to_ne_bytes());
    high.copy_from_slice(&second.to_ne_bytes());
    Ok(BtrfsInfo { devices, fsid })
}

/// Asks a loop device for its backing file; `ENXIO` when it has none.
pub(crate) fn loop_info(fd: impl AsFd) -> Result<LoopInfo> {
    // SAFETY: the kernel writes one struct loop_info64 of 232 bytes (drivers/block/loop.c).
    let request = unsafe { Getter::<LOOP_GET_STATUS64, [u64; 29]>::new() };
    // SAFETY: the getter owns the memory that is written.
    let words = unsafe { ioctl(fd, request) }?;
    // u64 lo_device, lo_inode, lo_rdevice, lo_offset.
    let [file_dev, file_inode, file_rdev, offset, ..] = words;
    Ok(LoopInfo {
        file_dev,
        file_inode,
        file_rdev,
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_and_sizes_are_those_of_the_kernel_headers() {
        assert_eq!(BTRFS_IOC_FS_INFO, 0x8400_941f);
        assert_eq!(LOOP_GET_STATUS64, 0x4c05);
        assert_eq!(std::mem::size_of::<[u64; 29]>(), 232);
    }
}
