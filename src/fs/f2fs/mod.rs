//! f2fs: which blocks are used.
//!
//! The newest valid checkpoint pack says which copy of each SIT block counts and carries the SIT entries that were not yet written
//! back (the journal). An entry has a bit for each block of its segment and their number; both must agree, the sums must agree
//! with the checkpoint, and a segment that contradicts itself is used. Everything before the main area is used, and so are the
//! segments that the logs are writing to: recovery looks for its traces there. A filesystem that was not unmounted may hold
//! fsynced blocks that no checkpoint knows of; so without an unmount mark in the checkpoint the map is believed only when we
//! froze it (the freeze writes a checkpoint and leaves nothing behind it). Nothing here recovers or writes.
//!
//! [`witness`] reads both superblocks and the first and last blocks of both checkpoint packs: each checkpoint, and the second
//! freeze of somebody who thawed is one as soon as anything changed, gives one of them a new version.
//!
//! Structures: include/linux/f2fs_fs.h and fs/f2fs/{checkpoint,segment}.c of the kernel.

#[cfg(test)]
mod tests;

use crate::crc::crc32;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::features;
use crate::fs::{Identity, Kind, Reader, Still, Verdict, Walk, uuid_text};
use crate::layout::le;
use crate::map::UsedMap;
use crate::units::{BlockSize, Extent, to_u64, to_usize};

/// The reader's row in the table.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::F2fs],
    probe,
    walk: if features::F2FS { Some(walk) } else { None },
    witness,
};

crate::layout! {
    /// `struct f2fs_super_block`.
    le struct DiskSuperblock: 3072 {
        0x000 magic: u32,
        0x008 log_sectorsize: u32,
        0x00c log_sectors_per_block: u32,
        0x010 log_blocksize: u32,
        0x014 log_blocks_per_seg: u32,
        0x020 checksum_offset: u32,
        0x024 block_count: u64,
        0x034 segment_count_ckpt: u32,
        0x038 segment_count_sit: u32,
        0x03c segment_count_nat: u32,
        0x040 segment_count_ssa: u32,
        0x044 segment_count_main: u32,
        0x048 segment0_blkaddr: u32,
        0x04c cp_blkaddr: u32,
        0x050 sit_blkaddr: u32,
        0x054 nat_blkaddr: u32,
        0x058 ssa_blkaddr: u32,
        0x05c main_blkaddr: u32,
        0x06c uuid: [u8; 16],
        0x07c volume_name: [u8; 1024],
        0x680 cp_payload: u32,
        0x884 feature: u32,
        0x899 devs: [u8; 544],
    }
}

crate::layout! {
    /// `struct f2fs_checkpoint`, without its version bitmap.
    le struct Checkpoint: 192 {
        0x00 checkpoint_ver: u64,
        0x10 valid_block_count: u64,
        0x24 cur_node_segno: [u8; 32],
        0x54 cur_data_segno: [u8; 32],
        0x84 ckpt_flags: u32,
        0x88 cp_pack_total_block_count: u32,
        0x8c cp_pack_start_sum: u32,
        0x90 valid_node_count: u32,
        0x9c sit_ver_bitmap_bytesize: u32,
        0xa0 nat_ver_bitmap_bytesize: u32,
        0xa4 checksum_offset: u32,
    }
}

const MAGIC: u32 = 0xf2f5_2010;
/// A superblock lies here in each of the first two blocks.
const SUPERBLOCK_OFFSET: u64 = 1024;
/// A segment is always this many blocks: its map in a SIT entry has 512 bits.
const SEGMENT_LOG2: u32 = 9;
const SEGMENT_BLOCKS: u32 = 1 << SEGMENT_LOG2;

/// ENCRYPT to COMPRESSION, without BLKZONED and ATOMIC_WRITE; RO. Others are read whole.
const FEATURES_KNOWN: u32 = 0x0001 | 0x3ff8 | 0x4000;
const FEATURE_SB_CHECKSUM: u32 = 0x0800;
const FEATURE_READ_ONLY: u32 = 0x4000;

const CP_UNMOUNT: u32 = 0x0001;
const CP_COMPACT_SUMMARIES: u32 = 0x0004;
const CP_ERROR: u32 = 0x0008;
const CP_NEEDS_FSCK: u32 = 0x0010;
const CP_FASTBOOT: u32 = 0x0020;
const CP_LARGE_NAT_BITMAP: u32 = 0x0400;
const CP_DISABLED: u32 = 0x1000;
const CP_DISABLED_QUICK: u32 = 0x2000;
const CP_RESIZING: u32 = 0x4000;

/// Logs that outlive a mount: three for data, three for nodes.
const LOGS_OF_A_KIND: u32 = 3;
/// The log whose summary carries the SIT journal (`CURSEG_COLD_DATA`).
const COLD_DATA_LOG: u32 = 2;
/// Segment types that hold nodes (`CURSEG_HOT_NODE` to `CURSEG_COLD_NODE`).
const NODE_TYPES: core::ops::RangeInclusive<u16> = 3..=5;

const SIT_ENTRY_BYTES: usize = 74;
const SIT_MAP_BYTES: usize = 64;
/// vblocks: 10 bits count, 6 bits type.
const VALID_BITS: u32 = 10;
const SUMMARY_BYTES: usize = 7;
const SUMMARY_FOOTER_BYTES: usize = 5;

/// Largest block, and what the scratch memory is cut into: a SIT block, a summary block, the version bitmap.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
const BITMAP_BYTES_MAX: usize = 256 * 1024;
const _: () = assert!(2 * BLOCK_BYTES_MAX + BITMAP_BYTES_MAX <= crate::fs::SCRATCH_BYTES);

/// The areas, checked: each follows the one before it, and all lie within the filesystem.
#[derive(Clone, Copy)]
struct Layout {
    block: BlockSize,
    blocks: u64,
    checkpoint: u32,
    sit: u32,
    /// SIT blocks of one copy; the other copy follows.
    sit_blocks: u32,
    main: u32,
    main_segments: u32,
    payload: u32,
    feature: u32,
}

/// The bytes of a checkpoint that counts, and where its pack begins.
#[derive(Clone, Copy)]
struct Pack {
    start: u64,
    checkpoint: Checkpoint,
}

/// `f2fs_crc32`: CRC-32 that starts from `seed` and is not inverted at the end.
fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32(!seed, bytes)
}

fn superblock(device: &dyn ReadAt) -> Result<Option<(DiskSuperblock, Layout)>, Fault> {
    let mut bytes = [0; DiskSuperblock::SIZE];
    // The second copy lies in the second block, whose size only a superblock tells.
    let copies = core::iter::once(0).chain((12..=16).map(|log2| 1 << log2));
    for copy in copies.map(|base: u64| base + SUPERBLOCK_OFFSET) {
        if device.size_bytes() < copy + to_u64(bytes.len()) {
            break;
        }
        device.read_at(copy, &mut bytes)?;
        let Some(disk) = DiskSuperblock::parse(&bytes).filter(|disk| disk.magic == MAGIC) else {
            continue;
        };
        let second = copy != SUPERBLOCK_OFFSET;
        if let Some(layout) = layout(&disk, &bytes)
            && (!second || copy == layout.block.bytes64() + SUPERBLOCK_OFFSET)
        {
            return Ok(Some((disk, layout)));
        }
    }
    Ok(None)
}

/// The areas; `None` when they are impossible, or the checksum is there and wrong.
fn layout(disk: &DiskSuperblock, bytes: &[u8]) -> Option<Layout> {
    if disk.feature & FEATURE_SB_CHECKSUM != 0 {
        let at = usize::try_from(disk.checksum_offset).ok()?;
        let stored: u32 = le(bytes, at)?;
        if at != DiskSuperblock::SIZE - 4 || checksum(MAGIC, bytes.get(..at)?) != stored {
            return None;
        }
    }
    let block =
        BlockSize::from_log2(disk.log_blocksize).filter(|b| (12..=16).contains(&b.log2()))?;
    let after = |start: u32, segments: u32| {
        segments
            .checked_mul(SEGMENT_BLOCKS)
            .and_then(|blocks| start.checked_add(blocks))
    };
    let end = after(disk.main_blkaddr, disk.segment_count_main)?;
    let holds = disk.log_blocks_per_seg == SEGMENT_LOG2
        && disk
            .log_sectorsize
            .checked_add(disk.log_sectors_per_block)?
            == disk.log_blocksize
        && disk.segment0_blkaddr >= 2
        && disk.cp_blkaddr == disk.segment0_blkaddr
        && disk.segment_count_ckpt >= 2
        && disk.segment_count_sit >= 2
        && disk.segment_count_sit.is_multiple_of(2)
        && Some(disk.sit_blkaddr) == after(disk.cp_blkaddr, disk.segment_count_ckpt)
        && Some(disk.nat_blkaddr) == after(disk.sit_blkaddr, disk.segment_count_sit)
        && Some(disk.ssa_blkaddr) == after(disk.nat_blkaddr, disk.segment_count_nat)
        && Some(disk.main_blkaddr) == after(disk.ssa_blkaddr, disk.segment_count_ssa)
        && u64::from(end) <= disk.block_count
        && disk.cp_payload < SEGMENT_BLOCKS
        && block.bytes_of(disk.block_count)? < 1 << 62;
    if !holds {
        return None;
    }
    Some(Layout {
        block,
        blocks: disk.block_count,
        checkpoint: disk.cp_blkaddr,
        sit: disk.sit_blkaddr,
        sit_blocks: disk.segment_count_sit / 2 * SEGMENT_BLOCKS,
        main: disk.main_blkaddr,
        main_segments: disk.segment_count_main,
        payload: disk.cp_payload,
        feature: disk.feature,
    })
}

impl Layout {
    fn size_bytes(&self) -> u64 {
        self.blocks << self.block.log2()
    }

    fn offset(&self, block: u64) -> u64 {
        block << self.block.log2()
    }

    fn block_length(&self) -> usize {
        to_usize(self.block.bytes64())
    }

    /// A segment of the main area.
    fn segment(&self, number: u32) -> Extent {
        let first = u64::from(self.main) + (u64::from(number) << SEGMENT_LOG2);
        Extent {
            offset: self.offset(first),
            length_bytes: u64::from(SEGMENT_BLOCKS) << self.block.log2(),
        }
    }

    /// Where the two packs begin.
    fn packs(&self) -> [u64; 2] {
        [0, SEGMENT_BLOCKS].map(|blocks| u64::from(self.checkpoint) + u64::from(blocks))
    }

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

/// One of the two blocks that a pack's checkpoint stands in, if its checksum holds.
fn checkpoint_block(
    device: &dyn ReadAt,
    layout: &Layout,
    block: u64,
    buffer: &mut [u8],
) -> Result<Option<Checkpoint>, Fault> {
    let bytes = buffer
        .get_mut(..layout.block_length())
        .ok_or_else(|| Fault::refused("scratch memory"))?;
    device.read_at(layout.offset(block), bytes)?;
    Ok(parse_checkpoint(bytes))
}

fn parse_checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    let checkpoint = Checkpoint::parse(bytes)?;
    let at = usize::try_from(checkpoint.checksum_offset).ok()?;
    let last = bytes.len() - 4;
    if !(Checkpoint::SIZE..=last).contains(&at) {
        return None;
    }
    let mut crc = checksum(MAGIC, bytes.get(..at)?);
    if at < last {
        crc = checksum(crc, bytes.get(at + 4..)?);
    }
    (le::<u32>(bytes, at)? == crc).then_some(checkpoint)
}

/// The newest pack whose first and last block agree.
fn newest_pack(
    device: &dyn ReadAt,
    layout: &Layout,
    buffer: &mut [u8],
) -> Result<Option<Pack>, Fault> {
    let mut newest: Option<Pack> = None;
    for start in layout.packs() {
        let Some(first) = checkpoint_block(device, layout, start, buffer)? else {
            continue;
        };
        let total = first.cp_pack_total_block_count;
        if !(2..=SEGMENT_BLOCKS).contains(&total) {
            continue;
        }
        let end = start + u64::from(total) - 1;
        let last = checkpoint_block(device, layout, end, buffer)?;
        if last.is_none_or(|last| last.checkpoint_ver != first.checkpoint_ver) {
            continue;
        }
        // Versions may wrap: the difference counts; of equals the first pack (`ver_after`).
        let newer = newest.is_none_or(|newest| {
            let version = newest.checkpoint.checkpoint_ver;
            (1..1 << 63).contains(&first.checkpoint_ver.wrapping_sub(version))
        });
        if newer {
            newest = Some(Pack {
                start,
                checkpoint: first,
            });
        }
    }
    Ok(newest)
}

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some((disk, layout)) = superblock(device)? else {
        return Ok(None);
    };
    let mut block = [0; 4096];
    let pack = if layout.block_length() <= block.len() && device.size_bytes() >= layout.size_bytes()
    {
        newest_pack(device, &layout, &mut block)?
    } else {
        None
    };
    let used = pack.and_then(|pack| {
        pack.checkpoint
            .valid_block_count
            .checked_add(u64::from(layout.main))
            .filter(|blocks| *blocks <= layout.blocks)
    });
    let named = disk
        .devs
        .chunks_exact(68)
        .filter(|device| device.first() != Some(&0));
    Ok(Some(Identity {
        kind: Kind::F2fs,
        size_bytes: layout.size_bytes(),
        block_bytes: layout.block.bytes(),
        max_sector_bytes: layout.block.bytes(),
        used_bytes: used.map(|blocks| layout.offset(blocks)),
        uuid: uuid_text(&disk.uuid),
        label: label(&disk.volume_name),
        last_mounted: heapless::String::new(),
        last_written_s: None,
        // Both copies: either makes it look valid.
        superblock: Extent {
            offset: 0,
            length_bytes: 2 * layout.block.bytes64(),
        },
        devices: u32::try_from(named.count()).unwrap_or(0).max(1),
    }))
}

/// UTF-16 up to the first NUL, control characters as `?`.
fn label(name: &[u8; 1024]) -> heapless::String<256> {
    let mut out = heapless::String::new();
    let units = name
        .chunks_exact(2)
        .map_while(|pair| le::<u16>(pair, 0))
        .take_while(|unit| *unit != 0);
    for letter in char::decode_utf16(units) {
        let letter = letter.ok().filter(|letter| !letter.is_control());
        if out.push(letter.unwrap_or('?')).is_err() {
            break;
        }
    }
    out
}

fn walk(
    identity: &Identity,
    still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    let device = walk.device();
    if identity.devices > 1 {
        return Err(Fault::refused("an f2fs that spans several devices"));
    }
    let Some((_, layout)) = superblock(device)? else {
        return Ok(Verdict::whole(Fault::corrupt("superblock")));
    };
    let unknown = layout.feature & !FEATURES_KNOWN;
    if unknown != 0 {
        let fault = Fault::unsupported("unknown f2fs feature").in_unit("bits", unknown.into());
        return Ok(Verdict::whole(fault));
    }
    let size = layout.size_bytes();
    if size > device.size_bytes() || size > map.size_bytes() {
        return Ok(Verdict::whole(Fault::corrupt("filesystem size")));
    }
    let Some(pack) = newest_pack(device, &layout, walk.scratch)? else {
        return Ok(Verdict::whole(Fault::corrupt("both checkpoints")));
    };
    if let Some(doubt) = doubt(&pack.checkpoint, still)? {
        return Ok(Verdict::whole(doubt));
    }
    match mark(device, &layout, &pack, (&mut *walk.scratch, &mut *map)) {
        Ok(verdict) => Ok(verdict),
        Err(fault) => {
            let doubt = fault.doubted()?;
            map.set_all_used();
            Ok(Verdict::whole(doubt))
        }
    }
}

/// Why the checkpoint's state forbids a map.
fn doubt(checkpoint: &Checkpoint, still: Still) -> Result<Option<Fault>, Fault> {
    let flags = checkpoint.ckpt_flags;
    if flags & (CP_DISABLED | CP_DISABLED_QUICK) != 0 {
        return Err(Fault::refused(
            "an f2fs mounted with checkpoint=disable: nothing written since is safe",
        ));
    }
    if flags & (CP_ERROR | CP_NEEDS_FSCK) != 0 {
        return Ok(Some(Fault::corrupt(
            "the filesystem says it needs fsck.f2fs",
        )));
    }
    if flags & CP_RESIZING != 0 {
        return Ok(Some(Fault::unsupported("a resize was interrupted")));
    }
    if !matches!(still, Still::Frozen | Still::Glimpse) && flags & CP_UNMOUNT == 0 {
        return Ok(Some(Fault::corrupt(
            "not cleanly unmounted: mount the filesystem once to recover it",
        )));
    }
    Ok(None)
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
fn mark(
    device: &dyn ReadAt,
    layout: &Layout,
    pack: &Pack,
    (scratch, map): (&mut [u8], &mut UsedMap),
) -> Result<Verdict, Fault> {
    let memory = Fault::refused("scratch memory");
    let (block, rest) = scratch
        .split_at_mut_checked(BLOCK_BYTES_MAX)
        .ok_or(memory)?;
    let (summary, bitmap) = rest.split_at_mut_checked(BLOCK_BYTES_MAX).ok_or(memory)?;
    let journal = read_journal(device, layout, pack, summary)?;
    let bitmap = read_bitmap(device, layout, pack, bitmap)?;
    let mut sit = Sit {
        device,
        layout,
        block: block.get_mut(..layout.block_length()).ok_or(memory)?,
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
fn mark_segment(
    layout: &Layout,
    number: u32,
    entry: &[u8; SIT_ENTRY_BYTES],
    map: &mut UsedMap,
) -> Result<(u32, bool), Fault> {
    let fault = Fault::corrupt("SIT entry");
    let vblocks: u16 = le(entry, 0).ok_or(fault)?;
    let bits = entry.get(2..2 + SIT_MAP_BYTES).ok_or(fault)?;
    let count = u32::from(vblocks & ((1 << VALID_BITS) - 1));
    if count != bits.iter().map(|byte| byte.count_ones()).sum::<u32>() {
        return Err(fault);
    }
    let segment = layout.segment(number);
    let length = layout.block.bytes64();
    let mut run = segment.offset;
    // Block 0 is the highest bit of byte 0; one valid block more than there are ends the last run.
    for index in 0..=SEGMENT_BLOCKS {
        let byte = bits.get(to_usize(u64::from(index / 8)));
        if byte.is_none_or(|byte| byte << (index % 8) & 0x80 != 0) {
            let end = segment.offset + u64::from(index) * length;
            map.set_free(Extent {
                offset: run,
                length_bytes: end - run,
            });
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
    let fault = Fault::corrupt("SIT journal");
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
        .ok_or(fault)?;
    let bytes = buffer.get_mut(..layout.block_length()).ok_or(fault)?;
    device.read_at(layout.offset(pack.start + u64::from(index)), bytes)?;
    let journal = bytes
        .get(start..start + layout.journal_bytes())
        .ok_or(fault)?;
    let count = usize::from(le::<u16>(journal, 0).ok_or(fault)?);
    let entries = journal.get(2..).ok_or(fault)?;
    entries.get(..count * (4 + SIT_ENTRY_BYTES)).ok_or(fault)
}

/// The bitmap that tells which copy of each SIT block counts.
fn read_bitmap<'b>(
    device: &dyn ReadAt,
    layout: &Layout,
    pack: &Pack,
    buffer: &'b mut [u8],
) -> Result<&'b [u8], Fault> {
    let fault = Fault::corrupt("SIT version bitmap");
    let checkpoint = &pack.checkpoint;
    let length = checkpoint.sit_ver_bitmap_bytesize;
    if length != layout.sit_blocks / 8 {
        return Err(fault);
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
    let end = start.checked_add(u64::from(length)).ok_or(fault)?;
    if end > layout.offset(u64::from(layout.payload) + 1) {
        return Err(fault);
    }
    let bytes = buffer.get_mut(..to_usize(length.into())).ok_or(fault)?;
    device.read_at(layout.offset(pack.start) + start, bytes)?;
    Ok(bytes)
}

impl Sit<'_> {
    /// The entry of a segment: from the journal if it is there, otherwise from the copy of its block that counts. Segments are
    /// asked for in order, and a block is read with its first.
    fn entry(&mut self, segment: u32) -> Result<[u8; SIT_ENTRY_BYTES], Fault> {
        let fault = Fault::corrupt("SIT").in_unit("segment", segment.into());
        let each = self.layout.sit_entries_a_block();
        let number = to_usize(segment.into());
        if number.is_multiple_of(each) {
            self.load(number / each).transpose().ok_or(fault)??;
        }
        let stored = self.block.get(number % each * SIT_ENTRY_BYTES..);
        let journalled = self
            .journal
            .chunks_exact(4 + SIT_ENTRY_BYTES)
            .find(|entry| le::<u32>(entry, 0) == Some(segment))
            .and_then(|entry| entry.get(4..));
        let entry = journalled.or(stored).ok_or(fault)?;
        entry.first_chunk().copied().ok_or(fault)
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

fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    let device = walk.device();
    walk.witness_extent(identity.superblock)?;
    let Some((_, layout)) = superblock(device)? else {
        return Ok(());
    };
    for start in layout.packs() {
        // The whole pack's head: checkpoint block, and the blocks its version bitmaps may continue in.
        let head = u64::from(layout.payload) + 1;
        walk.witness_extent(Extent {
            offset: layout.offset(start),
            length_bytes: layout.offset(head),
        })?;
    }
    Ok(())
}
