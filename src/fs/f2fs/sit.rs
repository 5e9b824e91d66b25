//! The segment information table: which blocks of each segment are valid, from the copy of a block that counts or from the
//! journal.

use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::Verdict;
use crate::fs::f2fs::checkpoint::{
    CP_COMPACT_SUMMARIES, CP_FASTBOOT, CP_LARGE_NAT_BITMAP, CP_UNMOUNT, Checkpoint, Pack,
};
use crate::fs::f2fs::superblock::{FEATURE_READ_ONLY, Layout, SEGMENT_BLOCKS};
use crate::layout::le;
use crate::map::UsedMap;
use crate::units::{Extent, to_u64, to_usize};

/// Logs that outlive a mount: three for data, three for nodes.
const LOGS_OF_A_KIND: u32 = 3;
/// The log whose summary carries the SIT journal (`CURSEG_COLD_DATA`).
const COLD_DATA_LOG: u32 = 2;
/// Segment types that hold nodes (`CURSEG_HOT_NODE` to `CURSEG_COLD_NODE`).
const NODE_TYPES: core::ops::RangeInclusive<u16> = 3..=5;

pub(super) const SIT_ENTRY_BYTES: usize = 74;
const SIT_MAP_BYTES: usize = 64;
/// vblocks: 10 bits count, 6 bits type.
const VALID_BITS: u32 = 10;
const SUMMARY_BYTES: usize = 7;
const SUMMARY_FOOTER_BYTES: usize = 5;

/// Largest block, and what the scratch memory is cut into: a SIT block, a summary block, the version bitmap.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
const BITMAP_BYTES_MAX: usize = 256 * 1024;
const _: () = assert!(2 * BLOCK_BYTES_MAX + BITMAP_BYTES_MAX <= crate::fs::SCRATCH_BYTES);

/// Where things stand in a SIT block and in a summary block.
impl Layout {
    /// Bytes of a journal in a summary block: what the summaries and the footer leave.
    fn journal_bytes(&self) -> usize {
        self.block_length() - self.summaries_bytes() - SUMMARY_FOOTER_BYTES
    }

    fn summaries_bytes(&self) -> usize {
        self.block_length() / 8 * SUMMARY_BYTES
    }

    fn sit_entries_a_block(&self) -> usize {
        self.block_length() / SIT_ENTRY_BYTES
    }
}

/// What a walk through the SIT works with.
struct Sit<'a> {
    device: &'a dyn ReadAt,
    layout: &'a Layout,
    block: &'a mut [u8],
    journal: &'a [u8],
    bitmap: &'a [u8],
}

/// Marks what the SIT calls free. A fault leaves the map to the caller, who sets everything used.
pub(super) fn mark(
    device: &dyn ReadAt,
    layout: &Layout,
    pack: &Pack,
    scratch: &mut [u8],
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    let memory = || Fault::refused("scratch memory");
    let (block, rest) = scratch
        .split_at_mut_checked(BLOCK_BYTES_MAX)
        .ok_or_else(memory)?;
    let (summary, bitmap) = rest
        .split_at_mut_checked(BLOCK_BYTES_MAX)
        .ok_or_else(memory)?;
    let journal = read_journal(device, layout, pack, summary)?;
    let bitmap = read_bitmap(device, layout, pack, bitmap)?;
    let mut sit = Sit {
        device,
        layout,
        block: block.get_mut(..layout.block_length()).ok_or_else(memory)?,
        journal,
        bitmap,
    };
    let mut verdict = Verdict::USED;
    let (mut valid, mut nodes) = (0u64, 0u64);
    for number in 0..layout.main_segments {
        let entry = sit.entry(number)?;
        match mark_segment(layout, number, &entry, map) {
            Ok((count, is_node)) => {
                valid += u64::from(count);
                nodes += if is_node { u64::from(count) } else { 0 };
            }
            Err(fault) => {
                map.set_used(layout.segment(number));
                verdict.doubt(fault.in_unit("segment", number.into()));
            }
        }
    }
    // Preallocated blocks have no place yet: counted by the checkpoint, in no segment (build_sit_entries).
    let counts_hold = valid <= pack.checkpoint.valid_block_count
        && nodes == u64::from(pack.checkpoint.valid_node_count);
    if verdict.doubt.is_none() && !counts_hold {
        return Err(Fault::corrupt("SIT and checkpoint disagree in counts"));
    }
    use_current_segments(layout, &pack.checkpoint, map)?;
    Ok(verdict)
}

/// Marks the free blocks of one segment; gives the number of valid ones and whether they hold nodes.
pub(super) fn mark_segment(
    layout: &Layout,
    number: u32,
    entry: &[u8; SIT_ENTRY_BYTES],
    map: &mut UsedMap,
) -> Result<(u32, bool), Fault> {
    let fault = || Fault::corrupt("SIT entry");
    let vblocks: u16 = le(entry, 0).ok_or_else(fault)?;
    let bits = entry.get(2..2 + SIT_MAP_BYTES).ok_or_else(fault)?;
    let count = u32::from(vblocks & ((1 << VALID_BITS) - 1));
    if count != bits.iter().map(|byte| byte.count_ones()).sum::<u32>() {
        return Err(fault());
    }
    let segment = layout.segment(number);
    let length = layout.block.bytes64();
    let mut run = segment.offset;
    // Block 0 is the highest bit of byte 0; one valid block more than there are ends the last run.
    for index in 0..=SEGMENT_BLOCKS {
        let byte = bits.get(to_usize(u64::from(index / 8)));
        if byte.is_none_or(|byte| byte << (index % 8) & 0x80 != 0) {
            let end = segment.offset + u64::from(index) * length;
            map.set_free(Extent::between(run, end));
            run = end + length;
        }
    }
    Ok((count, NODE_TYPES.contains(&(vblocks >> VALID_BITS))))
}

/// The segments that the logs are in: recovery reads what stands behind their ends.
fn use_current_segments(
    layout: &Layout,
    checkpoint: &Checkpoint,
    map: &mut UsedMap,
) -> Result<(), Fault> {
    let tables = [&checkpoint.cur_data_segno, &checkpoint.cur_node_segno];
    for (table, log) in tables
        .into_iter()
        .flat_map(|table| (0..LOGS_OF_A_KIND).map(move |log| (table, log)))
    {
        let number = le::<u32>(table, to_usize(u64::from(log * 4)));
        let number = number.filter(|number| *number < layout.main_segments);
        match number {
            Some(number) => map.set_used(layout.segment(number)),
            // A read-only filesystem has the first log of each kind only.
            None if log > 0 && layout.feature & FEATURE_READ_ONLY != 0 => (),
            None => return Err(Fault::corrupt("current segment")),
        }
    }
    Ok(())
}

/// The SIT journal: in a compact summary behind the NAT journal, otherwise in the summary of the log of cold data.
fn read_journal<'b>(
    device: &dyn ReadAt,
    layout: &Layout,
    pack: &Pack,
    buffer: &'b mut [u8],
) -> Result<&'b [u8], Fault> {
    let fault = || Fault::corrupt("SIT journal");
    let checkpoint = &pack.checkpoint;
    let (total, flags) = (checkpoint.cp_pack_total_block_count, checkpoint.ckpt_flags);
    let (index, start) = if flags & CP_COMPACT_SUMMARIES != 0 {
        (Some(checkpoint.cp_pack_start_sum), layout.journal_bytes())
    } else {
        // Summaries of nodes follow those of data only at an unmount or a fast boot's checkpoint.
        let logs = if flags & (CP_UNMOUNT | CP_FASTBOOT) != 0 {
            2 * LOGS_OF_A_KIND
        } else {
            LOGS_OF_A_KIND
        };
        let first = total.checked_sub(logs + 1);
        (
            first.map(|first| first + COLD_DATA_LOG),
            layout.summaries_bytes(),
        )
    };
    let index = index
        .filter(|index| *index > layout.payload && *index < total)
        .ok_or_else(fault)?;
    let bytes = buffer.get_mut(..layout.block_length()).ok_or_else(fault)?;
    device.read_at(layout.offset(pack.start + u64::from(index)), bytes)?;
    let journal = bytes
        .get(start..start + layout.journal_bytes())
        .ok_or_else(fault)?;
    let count = usize::from(le::<u16>(journal, 0).ok_or_else(fault)?);
    let entries = journal.get(2..).ok_or_else(fault)?;
    entries
        .get(..count * (4 + SIT_ENTRY_BYTES))
        .ok_or_else(fault)
}

/// The bitmap that tells which copy of each SIT block counts.
fn read_bitmap<'b>(
    device: &dyn ReadAt,
    layout: &Layout,
    pack: &Pack,
    buffer: &'b mut [u8],
) -> Result<&'b [u8], Fault> {
    let fault = || Fault::corrupt("SIT version bitmap");
    let checkpoint = &pack.checkpoint;
    let length = checkpoint.sit_ver_bitmap_bytesize;
    if length != layout.sit_blocks / 8 {
        return Err(fault());
    }
    let behind = to_u64(Checkpoint::SIZE);
    // __bitmap_ptr: with a large NAT bitmap both lie behind a checksum, NAT first; with a payload SIT has blocks of its own.
    let start = if checkpoint.ckpt_flags & CP_LARGE_NAT_BITMAP != 0 {
        behind + 4 + u64::from(checkpoint.nat_ver_bitmap_bytesize)
    } else if layout.payload > 0 {
        layout.block.bytes64()
    } else {
        behind
    };
    let end = start.checked_add(u64::from(length)).ok_or_else(fault)?;
    if end > layout.offset(u64::from(layout.payload) + 1) {
        return Err(fault());
    }
    let bytes = buffer
        .get_mut(..to_usize(length.into()))
        .ok_or_else(fault)?;
    device.read_at(layout.offset(pack.start) + start, bytes)?;
    Ok(bytes)
}

impl Sit<'_> {
    /// The entry of a segment: from the journal if it is there, otherwise from the copy of its block that counts. Segments are
    /// asked for in order, and a block is read with its first.
    fn entry(&mut self, segment: u32) -> Result<[u8; SIT_ENTRY_BYTES], Fault> {
        let fault = || Fault::corrupt("SIT").in_unit("segment", segment.into());
        let each = self.layout.sit_entries_a_block();
        let number = to_usize(segment.into());
        if number.is_multiple_of(each) {
            self.load(number / each).transpose().ok_or_else(fault)??;
        }
        let stored = self.block.get(number % each * SIT_ENTRY_BYTES..);
        let journalled = self
            .journal
            .chunks_exact(4 + SIT_ENTRY_BYTES)
            .find(|entry| le::<u32>(entry, 0) == Some(segment))
            .and_then(|entry| entry.get(4..));
        let entry = journalled.or(stored).ok_or_else(fault)?;
        entry.first_chunk().copied().ok_or_else(fault)
    }

    /// `None` when there is no such block.
    fn load(&mut self, index: usize) -> Result<Option<()>, Fault> {
        let Some(byte) = self.bitmap.get(index / 8) else {
            return Ok(None);
        };
        let second = byte << (index % 8) & 0x80 != 0;
        let copy = if second { self.layout.sit_blocks } else { 0 };
        let block = u64::from(self.layout.sit) + u64::from(copy) + to_u64(index);
        self.device.read_at(self.layout.offset(block), self.block)?;
        Ok(Some(()))
    }
}
