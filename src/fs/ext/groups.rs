//! Block groups: where their descriptors and their own metadata lie, and what a descriptor says.
//!
//! Only layout and parsing; what is believed of it is decided in `blocks` and `inodes`. Source: the kernel's
//! Documentation/filesystems/ext4 (group descriptors, meta block groups), fs/ext4/super.c and balloc.c for the placement rules.

use super::checksum::BitmapChecksum;
use super::superblock::{Backups, Geometry};
use super::window::{ReadWindow, Request};
use crate::error::Fault;
use crate::units::to_usize;

crate::layout! {
    /// The first half of `struct ext4_group_desc`, which is all of it without 64bit.
    le struct RawLow: 32 {
        0x00 bg_block_bitmap_lo: u32,
        0x04 bg_inode_bitmap_lo: u32,
        0x08 bg_inode_table_lo: u32,
        0x0c bg_free_blocks_count_lo: u16,
        0x0e bg_free_inodes_count_lo: u16,
        0x12 bg_flags: u16,
        0x18 bg_block_bitmap_csum_lo: u16,
        0x1a bg_inode_bitmap_csum_lo: u16,
        0x1c bg_itable_unused_lo: u16,
    }
}

crate::layout! {
    /// The second half, from byte 32.
    le struct RawHigh: 32 {
        0x00 bg_block_bitmap_hi: u32,
        0x04 bg_inode_bitmap_hi: u32,
        0x08 bg_inode_table_hi: u32,
        0x0c bg_free_blocks_count_hi: u16,
        0x0e bg_free_inodes_count_hi: u16,
        0x12 bg_itable_unused_hi: u16,
        0x18 bg_block_bitmap_csum_hi: u16,
        0x1a bg_inode_bitmap_csum_hi: u16,
    }
}

const FLAG_INODE_UNINIT: u16 = 1;
const FLAG_BLOCK_UNINIT: u16 = 2;

/// A run of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub count: u64,
}

/// A group descriptor whose checksum held and whose places lie inside the filesystem.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Block of the block bitmap.
    pub block_bitmap: u64,
    /// Block of the inode bitmap.
    pub inode_bitmap: u64,
    /// First block of the inode table.
    pub inode_table: u64,
    /// Free clusters.
    pub free_clusters: u64,
    /// Free inodes.
    pub free_inodes: u32,
    /// Inodes in use or used before: later ones of the table were never written.
    pub inodes_touched: u32,
    /// The block bitmap was never written; its bytes mean nothing.
    pub block_uninit: bool,
    /// The inode bitmap was never written, and no inode of the group is in use.
    pub inode_uninit: bool,
    /// Checksum of the block bitmap.
    pub block_bitmap_checksum: BitmapChecksum,
    /// Checksum of the inode bitmap.
    pub inode_bitmap_checksum: BitmapChecksum,
}

impl Geometry {
    /// First block of a group.
    pub(super) fn group_first(&self, group: u32) -> u64 {
        // groups * blocks_per_group < blocks + blocks_per_group: no overflow.
        self.first_data_block + u64::from(group) * self.blocks_per_group
    }

    /// The blocks of a group; the last one may be short.
    pub(super) fn group_blocks(&self, group: u32) -> Blocks {
        let start = self.group_first(group);
        Blocks {
            start,
            count: self.blocks.saturating_sub(start).min(self.blocks_per_group),
        }
    }

    /// The group a block lies in; `None` for the boot block of a 1 KiB filesystem and for blocks past the end.
    pub(super) fn group_of(&self, block: u64) -> Option<u32> {
        let inside = block.checked_sub(self.first_data_block)?;
        u32::try_from(inside / self.blocks_per_group)
            .ok()
            .filter(|group| *group < self.groups)
    }

    /// Number of clusters of a group that exist.
    pub(super) fn group_clusters(&self, group: u32) -> u64 {
        self.group_blocks(group)
            .count
            .div_ceil(1 << self.cluster_log2)
    }

    /// Whether a copy of the superblock stands at the group's start.
    pub(super) fn has_super(&self, group: u32) -> bool {
        match self.backups {
            Backups::All => true,
            Backups::Two(groups) => group == 0 || groups.contains(&group),
            Backups::Sparse => group <= 1 || [3, 5, 7].iter().any(|base| is_power_of(group, *base)),
        }
    }

    /// Copies of superblock and descriptors (with the blocks reserved for their growth) at the start of a group.
    pub(super) fn base_metadata(&self, group: u32) -> Blocks {
        let start = self.group_first(group);
        let per_block = self.descriptors_per_block();
        let metagroup = group / per_block;
        let has_super = self.has_super(group);
        let mut count = u64::from(has_super);
        if metagroup < self.first_meta_bg {
            if has_super {
                count += u64::from(self.first_meta_bg) + self.reserved_gdt_blocks;
            }
        } else {
            let first = metagroup * per_block;
            let last = first.saturating_add(per_block - 1);
            if group == first || group == last || group.checked_sub(1) == Some(first) {
                count += 1;
            }
        }
        // 1 KiB blocks with bigalloc: group 0 begins with the boot block.
        if group == 0 && self.block.bytes() == 1024 && self.first_data_block == 0 {
            count += 1;
        }
        let here = self.group_blocks(group).count;
        Blocks {
            start,
            count: count.min(here),
        }
    }

    /// What of these is room for the descriptors to grow. Not that of the first group, which holds the pointers of the resize inode: the
    /// kernel writes the other groups' whole when it takes it, and reads none (fs/ext4/resize.c, update_backups).
    pub(super) fn spare_descriptors(&self, group: u32) -> Blocks {
        let has_room = group / self.descriptors_per_block() < self.first_meta_bg;
        let (start, count) = match group != 0 && self.has_super(group) && has_room {
            true => (1 + u64::from(self.first_meta_bg), self.reserved_gdt_blocks),
            false => (0, 0),
        };
        let base = self.base_metadata(group);
        Blocks {
            start: base.start.saturating_add(start),
            count: count.min(base.count.saturating_sub(start)),
        }
    }

    pub(super) fn descriptor_block(&self, index: u32) -> u64 {
        let super_block = u64::from(self.block.bytes() == 1024);
        if index < self.first_meta_bg {
            return super_block + 1 + u64::from(index);
        }
        let group = index.saturating_mul(self.descriptors_per_block());
        let mut skip = u64::from(self.has_super(group));
        if group == 0 && self.block.bytes() == 1024 && self.first_data_block == 0 {
            skip += 1;
        }
        self.group_first(group).saturating_add(skip)
    }

    /// Number of blocks of descriptors.
    pub(super) fn descriptor_blocks(&self) -> u32 {
        self.groups.div_ceil(self.descriptors_per_block())
    }

    /// Where the descriptor of `group` lies, in bytes; `None` outside the filesystem.
    pub(super) fn descriptor_place(&self, group: u32) -> Option<u64> {
        let per_block = self.descriptors_per_block();
        let block = self.extent(self.descriptor_block(group / per_block), 1)?;
        Some(block.offset + u64::from(group % per_block) * u64::from(self.descriptor_bytes))
    }

    /// Reads and checks the descriptor of `group`.
    pub(super) fn descriptor(
        &self,
        window: &mut ReadWindow<'_>,
        group: u32,
    ) -> Result<Descriptor, Fault> {
        let per_block = self.descriptors_per_block();
        let index = group / per_block;
        let bad = || Fault::corrupt("group descriptor").in_unit("group", u64::from(group));
        let (Some(block), Some(offset)) = (
            self.extent(self.descriptor_block(index), 1),
            self.descriptor_place(group),
        ) else {
            return Err(bad());
        };
        let run_end = if index < self.first_meta_bg {
            let rest = u64::from(self.first_meta_bg - index);
            block.offset + rest * self.block.bytes64()
        } else {
            block.end()
        };
        let bytes = window.get(Request {
            offset,
            length_bytes: to_usize(u64::from(self.descriptor_bytes)),
            ahead_end: run_end,
        })?;
        self.parse_descriptor(group, bytes)
    }

    /// Checks the descriptor of `group`; the fault says why it cannot be believed.
    pub(super) fn parse_descriptor(&self, group: u32, bytes: &[u8]) -> Result<Descriptor, Fault> {
        let bad = |what| Fault::corrupt(what).in_unit("group", u64::from(group));
        if !self.checksums.descriptor_is_right(group, bytes) {
            return Err(bad("group descriptor checksum"));
        }
        Descriptor::parse(self, bytes)
            .filter(|descriptor| descriptor.is_placed_well(self, group))
            .ok_or_else(|| bad("group descriptor"))
    }
}

fn is_power_of(value: u32, base: u32) -> bool {
    let mut power = base;
    while power < value {
        let Some(next) = power.checked_mul(base) else {
            return false;
        };
        power = next;
    }
    power == value
}

impl Descriptor {
    fn parse(geometry: &Geometry, bytes: &[u8]) -> Option<Self> {
        let low = RawLow::parse(bytes)?;
        let high = bytes.get(32..).and_then(RawHigh::parse);
        let wide =
            |low: u32, high: Option<u32>| u64::from(low) | u64::from(high.unwrap_or(0)) << 32;
        let count =
            |low: u16, high: Option<u16>| u32::from(low) | u32::from(high.unwrap_or(0)) << 16;
        let checksum = |low: u16, high: Option<u16>| match high {
            Some(_) => BitmapChecksum::Whole(count(low, high)),
            None => BitmapChecksum::Half(low),
        };
        let flags = if geometry.checksums.cover_descriptors() {
            low.bg_flags
        } else {
            0
        };
        let unused = if geometry.checksums.cover_descriptors() {
            count(low.bg_itable_unused_lo, high.map(|h| h.bg_itable_unused_hi))
        } else {
            0
        };
        Some(Self {
            block_bitmap: wide(low.bg_block_bitmap_lo, high.map(|h| h.bg_block_bitmap_hi)),
            inode_bitmap: wide(low.bg_inode_bitmap_lo, high.map(|h| h.bg_inode_bitmap_hi)),
            inode_table: wide(low.bg_inode_table_lo, high.map(|h| h.bg_inode_table_hi)),
            free_clusters: u64::from(count(
                low.bg_free_blocks_count_lo,
                high.map(|h| h.bg_free_blocks_count_hi),
            )),
            free_inodes: count(
                low.bg_free_inodes_count_lo,
                high.map(|h| h.bg_free_inodes_count_hi),
            ),
            inodes_touched: geometry.inodes_per_group.checked_sub(unused)?,
            block_uninit: flags & FLAG_BLOCK_UNINIT != 0,
            inode_uninit: flags & FLAG_INODE_UNINIT != 0,
            block_bitmap_checksum: checksum(
                low.bg_block_bitmap_csum_lo,
                high.map(|h| h.bg_block_bitmap_csum_hi),
            ),
            inode_bitmap_checksum: checksum(
                low.bg_inode_bitmap_csum_lo,
                high.map(|h| h.bg_inode_bitmap_csum_hi),
            ),
        })
    }

    /// Bitmaps and table lie inside the filesystem, behind the superblock; without flex_bg inside their own group.
    fn is_placed_well(&self, geometry: &Geometry, group: u32) -> bool {
        let own = geometry.group_blocks(group);
        let (first, end) = if geometry.is_flex {
            (geometry.first_data_block, geometry.blocks)
        } else {
            (own.start, own.start + own.count)
        };
        self.own_metadata(geometry).iter().all(|run| {
            run.start >= first
                && run.start > geometry.first_data_block
                && run
                    .start
                    .checked_add(run.count)
                    .is_some_and(|run_end| run_end <= end)
        })
    }

    /// Both bitmaps and the inode table.
    pub(super) fn own_metadata(&self, geometry: &Geometry) -> [Blocks; 3] {
        [
            Blocks {
                start: self.block_bitmap,
                count: 1,
            },
            Blocks {
                start: self.inode_bitmap,
                count: 1,
            },
            Blocks {
                start: self.inode_table,
                count: geometry.table_blocks(),
            },
        ]
    }
    /// What of it was written, without the table: a bitmap never was where the descriptor says so.
    pub(super) fn written_metadata(&self, geometry: &Geometry) -> [Blocks; 3] {
        let [mut blocks, mut inodes, mut table] = self.own_metadata(geometry);
        blocks.count *= u64::from(!self.block_uninit);
        inodes.count *= u64::from(!self.inode_uninit);
        table.count = 0;
        [blocks, inodes, table]
    }
}
