//! FIEMAP: where a file's bytes lie on its device. Source: include/uapi/linux/fiemap.h, Documentation/filesystems/fiemap.rst.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Extents asked for at a time.
const BATCH: usize = 64;
/// More batches than any real file needs.
const BATCHES: usize = 100_000;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;
/// `FIEMAP_EXTENT_UNKNOWN`, `_DELALLOC`, `_ENCODED`, `_NOT_ALIGNED`, `_DATA_INLINE`, `_DATA_TAIL`: no plain place on the device.
const NO_PLACE: u32 = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x400;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for [`BATCH`] extents.
#[repr(C)]
struct FiemapRequest {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// `struct fiemap` without its extents, whose size is part of the opcode.
#[repr(C)]
struct FiemapHeader([u64; 4]);

/// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<FiemapHeader>(b'f', 11);

/// One extent of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MappedExtent {
    /// Offset in the file in bytes.
    pub logical: u64,
    /// Offset on the device in bytes.
    pub physical: u64,
    /// Length in bytes.
    pub length_bytes: u64,
}

/// The extents of a file that have a plain place on its device.
pub(crate) fn extents(file: impl AsFd) -> Result<Vec<MappedExtent>> {
    let mut found = Vec::new();
    let mut start = 0;
    for _ in 0..BATCHES {
        let mut request = FiemapRequest {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: u32::try_from(BATCH).unwrap_or(0),
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        };
        // SAFETY: the opcode takes a struct fiemap followed by `extent_count` extents, which `FiemapRequest` is, and writes no more.
        let update = unsafe { Updater::<FS_IOC_FIEMAP, FiemapRequest>::new(&mut request) };
        // SAFETY: as above; the request outlives the call.
        unsafe { ioctl(&file, update) }?;
        let count = usize::try_from(request.mapped_extents).unwrap_or(0);
        let batch = request.extents.get(..count).unwrap_or_default();
        let Some(last) = batch.last() else {
            return Ok(found);
        };
        let plain = batch.iter().filter(|extent| extent.flags & NO_PLACE == 0);
        found.extend(plain.map(|extent| MappedExtent {
            logical: extent.logical,
            physical: extent.physical,
            length_bytes: extent.length,
        }));
        if last.flags & LAST != 0 {
            return Ok(found);
        }
        start = last.logical.saturating_add(last.length);
    }
    Err(Errno::OVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opcode_and_layout_are_those_of_the_kernel_headers() {
        assert_eq!(FS_IOC_FIEMAP, 0xc020_660b);
        assert_eq!(size_of::<RawExtent>(), 56);
        assert_eq!(std::mem::offset_of!(FiemapRequest, extents), 32);
    }
}
