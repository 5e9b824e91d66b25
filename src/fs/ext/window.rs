//! Fixed read-ahead over the device: small structures that lie side by side (descriptors, bitmaps, inodes) cost one read.
//!
//! All memory is the walk's scratch memory, split once by [`Buffers::split`]; nothing here allocates. Read-ahead never turns
//! into a failure: when the long read fails, exactly what was asked for is read alone.

use crate::device::ReadAt;
use crate::error::Fault;
use crate::units::{to_u64, to_usize};

/// Largest block of the format in bytes.
pub(super) const MAX_BLOCK_BYTES: usize = 64 * 1024;
/// Window over the inode tables, in bytes.
const INODES_BYTES: usize = 128 * 1024;
/// Blocks of one block-mapping tree held at a time: its greatest depth.
pub(super) const MAX_DEPTH: u16 = 5;
/// What [`Buffers::split`] needs, in bytes.
pub(super) const BUFFERS_BYTES: usize = 3 * MAX_BLOCK_BYTES + INODES_BYTES + 5 * MAX_BLOCK_BYTES;

/// What is read and how far it is worth reading ahead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// First byte.
    pub offset: u64,
    /// Bytes that must be there.
    pub length_bytes: usize,
    /// End (exclusive) of what will be asked for next.
    pub ahead_end: u64,
}

/// A piece of the device in memory.
pub(super) struct ReadWindow<'w> {
    device: &'w dyn ReadAt,
    buffer: &'w mut [u8],
    offset: u64,
    filled: usize,
}

impl<'w> ReadWindow<'w> {
    fn new(device: &'w dyn ReadAt, buffer: &'w mut [u8]) -> Self {
        Self {
            device,
            buffer,
            offset: 0,
            filled: 0,
        }
    }

    /// The bytes wanted, read now unless they are here. More than the window's size is a corrupt input.
    pub(super) fn get(&mut self, wanted: Request) -> Result<&[u8], Fault> {
        let length = wanted.length_bytes;
        let too_long =
            || Fault::corrupt("structure too long").at(wanted.offset, to_u64(wanted.length_bytes));
        let here = wanted
            .offset
            .checked_sub(self.offset)
            .map(to_usize)
            .filter(|skip| {
                skip.checked_add(length)
                    .is_some_and(|end| end <= self.filled)
            });
        let skip = match here {
            Some(skip) => skip,
            None => {
                self.load(wanted).ok_or_else(too_long)??;
                0
            }
        };
        self.buffer
            .get(skip..)
            .and_then(|bytes| bytes.get(..length))
            .ok_or_else(too_long)
    }

    /// `None` when the window is too small.
    fn load(&mut self, wanted: Request) -> Option<Result<(), Fault>> {
        let end = wanted.ahead_end.min(self.device.size_bytes());
        let ahead = to_usize(end.saturating_sub(wanted.offset))
            .clamp(0, self.buffer.len())
            .max(wanted.length_bytes);
        self.filled = 0;
        self.offset = wanted.offset;
        let long = self.buffer.get_mut(..ahead)?;
        if self.device.read_at(wanted.offset, long).is_ok() {
            self.filled = ahead;
            return Some(Ok(()));
        }
        let exact = self.buffer.get_mut(..wanted.length_bytes)?;
        Some(
            self.device
                .read_at(wanted.offset, exact)
                .map(|()| self.filled = wanted.length_bytes),
        )
    }
}

/// The walk's scratch memory, one part for each kind of structure.
pub(super) struct Buffers<'w> {
    /// The device.
    pub device: &'w dyn ReadAt,
    /// Group descriptors.
    pub descriptors: ReadWindow<'w>,
    /// Block bitmaps.
    pub block_bitmaps: ReadWindow<'w>,
    /// Inode bitmaps.
    pub inode_bitmaps: ReadWindow<'w>,
    /// Inode tables.
    pub inodes: ReadWindow<'w>,
    /// One block for each level of a mapping tree.
    pub tree: &'w mut [u8],
}

impl<'w> Buffers<'w> {
    /// Splits `scratch`; `None` when it is too short.
    pub(super) fn split(device: &'w dyn ReadAt, scratch: &'w mut [u8]) -> Option<Self> {
        let (descriptors, rest) = scratch.split_at_mut_checked(MAX_BLOCK_BYTES)?;
        let (block_bitmaps, rest) = rest.split_at_mut_checked(MAX_BLOCK_BYTES)?;
        let (inode_bitmaps, rest) = rest.split_at_mut_checked(MAX_BLOCK_BYTES)?;
        let (inodes, rest) = rest.split_at_mut_checked(INODES_BYTES)?;
        let tree = rest.get_mut(..usize::from(MAX_DEPTH) * MAX_BLOCK_BYTES)?;
        Some(Self {
            device,
            descriptors: ReadWindow::new(device, descriptors),
            block_bitmaps: ReadWindow::new(device, block_bitmaps),
            inode_bitmaps: ReadWindow::new(device, inode_bitmaps),
            inodes: ReadWindow::new(device, inodes),
            tree,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::SCRATCH_BYTES;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Flaky {
        reads: AtomicUsize,
    }

    impl ReadAt for Flaky {
        fn size_bytes(&self) -> u64 {
            1 << 20
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if offset + to_u64(buffer.len()) > 8192 {
                return Err(Fault::short("bad sector"));
            }
            buffer.fill(7);
            Ok(())
        }
    }

    #[test]
    fn reading_ahead_saves_reads_and_never_fails_for_bytes_nobody_wanted() {
        let device = Flaky {
            reads: AtomicUsize::new(0),
        };
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut buffers = Buffers::split(&device, &mut scratch).unwrap();
        let wanted = |offset, ahead_end| Request {
            offset,
            length_bytes: 4096,
            ahead_end,
        };
        let window = &mut buffers.inodes;
        assert_eq!(window.get(wanted(0, 8192)).unwrap(), [7; 4096]);
        assert_eq!(window.get(wanted(4096, 8192)).unwrap(), [7; 4096]);
        assert_eq!(device.reads.load(Ordering::Relaxed), 1);
        // The window is elsewhere now, and reading ahead hits the bad part.
        assert!(window.get(wanted(8192, 0)).is_err());
        assert_eq!(window.get(wanted(4096, 1 << 20)).unwrap(), [7; 4096]);
        let long = Request {
            offset: 0,
            length_bytes: 1 << 20,
            ahead_end: 0,
        };
        assert!(window.get(long).is_err());
    }
}
