//! Telling the kernel about partitions one by one, where it cannot read the table itself. Source: include/uapi/linux/blkpg.h.

use core::ffi::{c_int, c_void};
use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use crate::units::Extent;

/// `BLKPG`, `_IO(0x12, 105)`.
const BLKPG: Opcode = opcode::none(0x12, 105);
/// `BLKPG_ADD_PARTITION`.
const ADD: c_int = 1;
/// `BLKPG_DEL_PARTITION`.
const DELETE: c_int = 2;

/// `struct blkpg_partition`; the kernel ignores the two names. Behind them four bytes that every 64-bit kernel reads, also of a 32-bit
/// x86 program, where the structure ends in front of them.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: c_int,
    names: [u8; 132],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgRequest {
    operation: c_int,
    flags: c_int,
    length: c_int,
    data: *mut c_void,
}

fn blkpg(fd: impl AsFd, operation: c_int, number: u32, extent: Extent) -> Result<()> {
    let wide = |bytes: u64| i64::try_from(bytes).map_err(|_| Errno::RANGE);
    let mut partition = BlkpgPartition {
        start: wide(extent.offset)?,
        length: wide(extent.length_bytes)?,
        number: c_int::try_from(number).map_err(|_| Errno::RANGE)?,
        names: [0; 132],
    };
    let request = BlkpgRequest {
        operation,
        flags: 0,
        length: 152,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: this opcode reads one struct blkpg_ioctl_arg (block/ioctl.c).
    let setter = unsafe { Setter::<BLKPG, BlkpgRequest>::new(request) };
    // SAFETY: the request points to one struct blkpg_partition, which lives until the call has returned.
    unsafe { ioctl(fd, setter) }
}

/// Makes partition `number` of the disk `fd` appear at `extent` (bytes; whole sectors). `EBUSY` when something is there.
pub(crate) fn add(fd: impl AsFd, number: u32, extent: Extent) -> Result<()> {
    blkpg(fd, ADD, number, extent)
}

/// Makes partition `number` disappear; `EBUSY` when it is in use, `ENXIO` when it is not there.
pub(crate) fn delete(fd: impl AsFd, number: u32) -> Result<()> {
    let nowhere = Extent::at(0, 0);
    blkpg(fd, DELETE, number, nowhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcode_and_sizes_are_those_of_the_kernel_headers_on_this_architecture() {
        assert_eq!(BLKPG, 0x1269);
        assert_eq!(std::mem::size_of::<BlkpgPartition>(), 152);
        #[cfg(target_pointer_width = "64")]
        assert_eq!(std::mem::size_of::<BlkpgRequest>(), 24);
        #[cfg(target_pointer_width = "32")]
        assert_eq!(std::mem::size_of::<BlkpgRequest>(), 16);
    }
}
