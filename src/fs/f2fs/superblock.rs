//! The f2fs superblock: parsed once, checked, and turned into the areas that the rest of the reader believes.

use crate::crc::crc32;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout::le;
use crate::units::{BlockSize, Extent, to_u64, to_usize};

crate::layout! {
    /// `struct f2fs_super_block`.
    le pub(crate) struct DiskSuperblock: 3072 {
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

pub(super) const MAGIC: u32 = 0xf2f5_2010;
/// A superblock lies here in each of the first two blocks.
const SUPERBLOCK_OFFSET: u64 = 1024;
/// A segment is always this many blocks: its map in a SIT entry has 512 bits.
const SEGMENT_LOG2: u32 = 9;
pub(super) const SEGMENT_BLOCKS: u32 = 1 << SEGMENT_LOG2;

/// ENCRYPT to COMPRESSION, without BLKZONED and ATOMIC_WRITE; RO. Others are read whole.
pub(super) const FEATURES_KNOWN: u32 = 0x0001 | 0x3ff8 | 0x4000;
const FEATURE_SB_CHECKSUM: u32 = 0x0800;
pub(super) const FEATURE_READ_ONLY: u32 = 0x4000;

/// The areas, checked: each follows the one before it, and all lie within the filesystem.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub block: BlockSize,
    pub blocks: u64,
    pub checkpoint: u32,
    pub sit: u32,
    /// SIT blocks of one copy; the other copy follows.
    pub sit_blocks: u32,
    pub main: u32,
    pub main_segments: u32,
    pub payload: u32,
    pub feature: u32,
}

/// `f2fs_crc32`: CRC-32 that starts from `seed` and is not inverted at the end.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32(!seed, bytes)
}

pub(super) fn read(device: &dyn ReadAt) -> Result<Option<(DiskSuperblock, Layout)>, Fault> {
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
    pub(super) fn size_bytes(&self) -> u64 {
        self.blocks << self.block.log2()
    }

    pub(super) fn offset(&self, block: u64) -> u64 {
        block << self.block.log2()
    }

    pub(super) fn block_length(&self) -> usize {
        to_usize(self.block.bytes64())
    }

    /// A segment of the main area.
    pub(super) fn segment(&self, number: u32) -> Extent {
        let first = u64::from(self.main) + (u64::from(number) << SEGMENT_LOG2);
        Extent::at(
            self.offset(first),
            u64::from(SEGMENT_BLOCKS) << self.block.log2(),
        )
    }

    /// Where the two packs begin.
    pub(super) fn packs(&self) -> [u64; 2] {
        [0, SEGMENT_BLOCKS].map(|blocks| u64::from(self.checkpoint) + u64::from(blocks))
    }
}
