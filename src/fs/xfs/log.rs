//! The internal log: where its head is, and whether the last thing in it is an unmount record.
//!
//! XFS writes to its log before it writes anything in place, always at the head: so an unmount record right before the head says
//! that everything in place is current, and the blocks around the head tell whether anything was written since. Never replays.

use super::superblock::Geometry;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout::be;
use crate::units::{Extent, to_u64, to_usize};

crate::layout! {
    /// `struct xlog_rec_header`, without its magic and the table of cycle words.
    be pub(super) struct RecordHeader: 324 {
        0x004 h_cycle: u32,
        0x008 h_version: u32,
        0x00c h_len: u32,
        0x020 h_crc: u32,
        0x028 h_num_logops: u32,
        0x130 h_fs_uuid: [u8; 16],
        0x140 h_size: u32,
    }
}

pub(super) const RECORD_MAGIC: u32 = 0xfeed_babe;
pub(super) const VERSION_2: u32 = 2;
/// Bytes of a record that one header block covers (`XLOG_HEADER_CYCLE_SIZE`).
pub(super) const HEADER_COVERS_BYTES: u32 = 32 * 1024;
/// Largest record (`XLOG_MAX_RECORD_BSIZE`).
pub(super) const RECORD_BYTES_MAX: u32 = 256 * 1024;
/// `XLOG_UNMOUNT_TRANS`, a flag of an operation header (struct xlog_op_header, byte 9).
const UNMOUNT_FLAG: u8 = 0x20;
/// `XLOG_UNMOUNT_TYPE`, the payload of an unmount record.
const UNMOUNT_MAGIC: u16 = 0x556e;

/// The log counts in these ("basic blocks"), whatever the sector size.
pub(super) const BASIC_BYTES: u64 = 512;
/// Records that may be in flight at once cover no more than this (`XLOG_TOTAL_REC_SHIFT`: 8 of 256 KiB).
const IN_FLIGHT_BLOCKS: u64 = 8 * 256 * 1024 / BASIC_BYTES;
/// The last record with its headers begins at most this many basic blocks before the head.
const LAST_RECORD_BLOCKS: u64 = 256 * 1024 / BASIC_BYTES + 16;
/// Half of the witnessed window around the head.
const WINDOW_BLOCKS: u64 = 16;

/// The log of a filesystem.
pub(super) struct Log<'a> {
    device: &'a dyn ReadAt,
    place: Extent,
    uuid: [u8; 16],
}

/// Where the next record goes, and the cycle of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LogHead {
    block: u64,
    cycle: u32,
}

/// The cycle number of a basic block: its first word, or the second where the first is a record's magic.
fn cycle_of(block: &[u8]) -> Option<u32> {
    match be::<u32>(block, 0)? {
        RECORD_MAGIC => be(block, 4),
        cycle => Some(cycle),
    }
}

impl<'a> Log<'a> {
    /// The log of a filesystem of this shape.
    pub(super) fn new(device: &'a dyn ReadAt, geometry: &Geometry) -> Self {
        Self {
            device,
            place: geometry.log,
            uuid: geometry.log_uuid,
        }
    }

    fn blocks(&self) -> u64 {
        self.place.length_bytes / BASIC_BYTES
    }

    fn extent(&self, block: u64, count: u64) -> Extent {
        Extent::at(self.place.offset + block * BASIC_BYTES, count * BASIC_BYTES)
    }

    fn cycle(&self, block: u64) -> Result<u32, Fault> {
        let mut start = [0; 8];
        self.device
            .read_at(self.extent(block, 1).offset, &mut start)?;
        cycle_of(&start).ok_or_else(|| Fault::corrupt("log"))
    }

    /// The head by halving: cycle numbers go down by one there (or to zero, in a log that never wrapped).
    fn head(&self) -> Result<LogHead, Fault> {
        let blocks = self.blocks();
        let fault = || Fault::corrupt("log").at(self.place.offset, self.place.length_bytes);
        let last = blocks.checked_sub(1).ok_or_else(fault)?;
        let (first_cycle, last_cycle) = (self.cycle(0)?, self.cycle(last)?);
        if first_cycle == 0 {
            return Err(fault());
        }
        if first_cycle == last_cycle {
            return Ok(LogHead {
                block: 0,
                cycle: first_cycle,
            });
        }
        if last_cycle != 0 && last_cycle.checked_add(1) != Some(first_cycle) {
            return Err(fault());
        }
        let (mut low, mut high) = (0, last);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.cycle(middle)? == first_cycle {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(LogHead {
            block: high,
            cycle: first_cycle,
        })
    }

    /// Proves that the log ends in an unmount record and nothing was written behind it.
    pub(super) fn prove_clean(&self, buffer: &mut [u8]) -> Result<(), Fault> {
        let head = self.head()?;
        let dirty = || {
            Fault::corrupt(
                "the log is dirty, as in every image of a mounted XFS: mount it once, and unmount it",
            )
        };
        let (start, header) = self.last_record(head, buffer)?.ok_or_else(dirty)?;
        let blocks = self.blocks();
        let mut header_blocks = 1;
        if header.h_version & VERSION_2 != 0 && header.h_size > HEADER_COVERS_BYTES {
            header_blocks = u64::from(header.h_size.div_ceil(HEADER_COVERS_BYTES));
        }
        let data_blocks = u64::from(header.h_len).div_ceil(BASIC_BYTES);
        let plausible = header.h_cycle == head.cycle
            && header.h_num_logops == 1
            && header.h_len <= RECORD_BYTES_MAX
            && header.h_size <= RECORD_BYTES_MAX
            && header.h_fs_uuid == self.uuid
            && (start + header_blocks + data_blocks) % blocks == head.block;
        if !plausible {
            return Err(dirty());
        }
        let mut data = [0; 16];
        let place = self.extent((start + header_blocks) % blocks, 1);
        self.device.read_at(place.offset, &mut data)?;
        let [_, _, _, _, _, _, _, _, _, flags, _, _, magic @ ..] = data;
        // The payload is in the byte order of the machine that wrote it.
        let magic = magic.first_chunk().copied().unwrap_or_default();
        let unmounts = [u16::from_le_bytes(magic), u16::from_be_bytes(magic)];
        if flags & UNMOUNT_FLAG == 0 || !unmounts.contains(&UNMOUNT_MAGIC) {
            return Err(dirty());
        }
        self.nothing_behind(head, buffer)
    }

    /// The header of the record that ends at the head, and its block.
    fn last_record(
        &self,
        head: LogHead,
        buffer: &mut [u8],
    ) -> Result<Option<(u64, RecordHeader)>, Fault> {
        let end = if head.block == 0 {
            self.blocks()
        } else {
            head.block
        };
        let count = LAST_RECORD_BLOCKS.min(end);
        let place = self.extent(end - count, count);
        let Some(bytes) = buffer.get_mut(..to_usize(place.length_bytes)) else {
            return Err(Fault::refused("scratch memory"));
        };
        self.device.read_at(place.offset, bytes)?;
        let mut blocks = bytes.chunks_exact(to_usize(BASIC_BYTES));
        let found = blocks.rposition(|block| be::<u32>(block, 0) == Some(RECORD_MAGIC));
        Ok(found.and_then(|index| {
            let header = bytes.get(index * to_usize(BASIC_BYTES)..)?;
            Some((end - count + to_u64(index), RecordHeader::parse(header)?))
        }))
    }

    /// No block that could have been in flight behind the head carries the cycle that a later write would have.
    fn nothing_behind(&self, head: LogHead, buffer: &mut [u8]) -> Result<(), Fault> {
        let blocks = self.blocks();
        let limit = IN_FLIGHT_BLOCKS.min(blocks);
        let room = to_u64(buffer.len()) / BASIC_BYTES;
        let mut step = 0;
        while step < limit {
            let block = (head.block + step) % blocks;
            let count = (blocks - block).min(limit - step).min(room).max(1);
            let place = self.extent(block, count);
            let bytes = buffer
                .get_mut(..to_usize(place.length_bytes))
                .ok_or_else(|| Fault::refused("scratch memory"))?;
            self.device.read_at(place.offset, bytes)?;
            // From the wrap on, a write would carry the next cycle; at block 0 the wrap is right here.
            let newer = if head.block == 0 || block < head.block {
                head.cycle.wrapping_add(1)
            } else {
                head.cycle
            };
            let mut cycles = bytes.chunks_exact(to_usize(BASIC_BYTES)).map(cycle_of);
            if cycles.any(|cycle| cycle == Some(newer)) {
                return Err(Fault::corrupt("log records behind the head")
                    .at(place.offset, place.length_bytes));
            }
            step += count;
        }
        Ok(())
    }

    /// The blocks before and at the head: any record written from now on changes the latter. `None` when there is no head.
    pub(super) fn window(&self) -> Result<Option<[Extent; 2]>, Fault> {
        let head = match self.head() {
            Ok(head) => head.block,
            Err(fault) => return fault.doubted().map(|_| None),
        };
        let blocks = self.blocks();
        let before = if head == 0 { blocks } else { head };
        let count = WINDOW_BLOCKS.min(before);
        Ok(Some([
            self.extent(before - count, count),
            self.extent(head, WINDOW_BLOCKS.min(blocks - head)),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: usize = 8192;
    const UUID: [u8; 16] = [7; 16];

    /// A log of 4 MiB: cycle 5 up to an unmount record of two blocks that ends at `head`, cycle 4 behind it.
    fn log(head: usize) -> Vec<u8> {
        let mut bytes = vec![0; BLOCKS * 512];
        for (number, block) in bytes.chunks_exact_mut(512).enumerate() {
            let cycle: u32 = if head == 0 || number < head { 5 } else { 4 };
            block[..4].copy_from_slice(&cycle.to_be_bytes());
        }
        let start = (head + BLOCKS - 2) % BLOCKS;
        let header = &mut bytes[start * 512..][..512];
        let fields: [(usize, u32); 6] = [
            (0, RECORD_MAGIC),
            (4, 5),
            (8, VERSION_2),
            (12, 512),
            (0x28, 1),
            (0x140, 32_768),
        ];
        for (at, value) in fields {
            header[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        header[0x130..0x140].copy_from_slice(&UUID);
        let data = &mut bytes[(start + 1) % BLOCKS * 512..][..512];
        data[8..14].copy_from_slice(&[0xaa, UNMOUNT_FLAG, 0, 0, 0x6e, 0x55]);
        bytes
    }

    fn prove(bytes: &Vec<u8>) -> Result<(), Fault> {
        let log = Log {
            device: bytes,
            place: Extent::at(0, to_u64(bytes.len())),
            uuid: UUID,
        };
        log.prove_clean(&mut vec![0; super::super::STACK_BYTES * 2])
    }

    #[test]
    fn an_unmount_record_at_the_head_is_clean_wherever_the_head_is() {
        for head in [2, 3, 700, BLOCKS - 1, 0] {
            assert_eq!(prove(&log(head)), Ok(()), "head {head}");
        }
    }

    #[test]
    fn anything_newer_than_the_unmount_record_is_dirty() {
        let mut bytes = log(700);
        // A record that was in flight behind a hole.
        bytes[900 * 512..][..4].copy_from_slice(&5u32.to_be_bytes());
        assert!(prove(&bytes).is_err());
        // Wrapped: behind the head at block 0 the next cycle.
        let mut bytes = log(0);
        bytes[9 * 512..][..4].copy_from_slice(&6u32.to_be_bytes());
        assert!(prove(&bytes).is_err());
        let mut bytes = log(8000);
        bytes[100 * 512..][..4].copy_from_slice(&6u32.to_be_bytes());
        assert!(prove(&bytes).is_err());
    }

    #[test]
    fn a_last_record_that_is_not_an_unmount_record_is_dirty() {
        let start = 698 * 512;
        for (at, value) in [
            (0x28 + 3, 2),
            (512 + 9, 0),
            (512 + 12, 0),
            (0x131, 0),
            (15, 9),
        ] {
            let mut bytes = log(700);
            bytes[start + at] = value;
            assert!(prove(&bytes).is_err(), "byte {at}");
        }
        assert!(prove(&vec![0; BLOCKS * 512]).is_err());
    }
}
