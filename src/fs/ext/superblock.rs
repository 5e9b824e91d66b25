//! The superblock: what is on disk ([`Raw`]), and the [`Geometry`] that is left after every bound was checked.
//!
//! Source of the format: the kernel's Documentation/filesystems/ext4 and e2fsprogs' ext2_fs.h (names kept while reading).
//! Recognising is lenient (a damaged filesystem is still one, and is read whole); a [`Geometry`] is strict.

use super::checksum::ChecksumScheme;
use crate::error::Fault;
use crate::fs::Kind;
use crate::units::{BlockSize, Extent, to_usize};

/// Where the primary superblock lies, and its length, in bytes.
pub(in crate::fs) const OFFSET_BYTES: u64 = 1024;
/// `s_magic`.
const MAGIC: u16 = 0xef53;

crate::layout! {
    /// `struct ext4_super_block`.
    le pub(in crate::fs) struct Raw: 1024 {
        0x000 s_inodes_count: u32,
        0x004 s_blocks_count_lo: u32,
        0x00c s_free_blocks_count_lo: u32,
        0x014 s_first_data_block: u32,
        0x018 s_log_block_size: u32,
        0x01c s_log_cluster_size: u32,
        0x020 s_blocks_per_group: u32,
        0x024 s_clusters_per_group: u32,
        0x028 s_inodes_per_group: u32,
        0x030 s_wtime: u32,
        0x038 s_magic: u16,
        0x03a s_state: u16,
        0x04c s_rev_level: u32,
        0x058 s_inode_size: u16,
        0x05a s_block_group_nr: u16,
        0x05c s_feature_compat: u32,
        0x060 s_feature_incompat: u32,
        0x064 s_feature_ro_compat: u32,
        0x068 s_uuid: [u8; 16],
        0x078 s_volume_name: [u8; 16],
        0x088 s_last_mounted: [u8; 64],
        0x0ce s_reserved_gdt_blocks: u16,
        0x0e0 s_journal_inum: u32,
        0x0fe s_desc_size: u16,
        0x104 s_first_meta_bg: u32,
        0x150 s_blocks_count_hi: u32,
        0x158 s_free_blocks_count_hi: u32,
        0x175 s_checksum_type: u8,
        0x240 s_usr_quota_inum: u32,
        0x244 s_grp_quota_inum: u32,
        0x24c s_backup_bgs_0: u32,
        0x250 s_backup_bgs_1: u32,
        0x26c s_prj_quota_inum: u32,
        0x270 s_checksum_seed: u32,
        0x274 s_wtime_hi: u8,
        0x3fc s_checksum: u32,
    }
}

/// Feature bits, by the field they stand in.
#[allow(missing_docs)]
pub(super) mod feature {
    pub(crate) const COMPAT_HAS_JOURNAL: u32 = 0x4;
    pub(crate) const COMPAT_SPARSE_SUPER2: u32 = 0x200;

    pub(crate) const INCOMPAT_FILETYPE: u32 = 0x2;
    pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
    pub(crate) const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
    pub(crate) const INCOMPAT_META_BG: u32 = 0x10;
    pub(crate) const INCOMPAT_EXTENTS: u32 = 0x40;
    pub(crate) const INCOMPAT_64BIT: u32 = 0x80;
    pub(crate) const INCOMPAT_MMP: u32 = 0x100;
    pub(crate) const INCOMPAT_FLEX_BG: u32 = 0x200;
    pub(crate) const INCOMPAT_EA_INODE: u32 = 0x400;
    pub(crate) const INCOMPAT_CSUM_SEED: u32 = 0x2000;
    pub(crate) const INCOMPAT_LARGEDIR: u32 = 0x4000;
    pub(crate) const INCOMPAT_INLINE_DATA: u32 = 0x8000;
    pub(crate) const INCOMPAT_ENCRYPT: u32 = 0x1_0000;
    pub(crate) const INCOMPAT_CASEFOLD: u32 = 0x2_0000;
    /// Everything whose effect on the used map is known (compression and dirdata are not).
    pub(crate) const INCOMPAT_KNOWN: u32 = INCOMPAT_FILETYPE
        | INCOMPAT_RECOVER
        | INCOMPAT_META_BG
        | INCOMPAT_EXTENTS
        | INCOMPAT_64BIT
        | INCOMPAT_MMP
        | INCOMPAT_FLEX_BG
        | INCOMPAT_EA_INODE
        | INCOMPAT_CSUM_SEED
        | INCOMPAT_LARGEDIR
        | INCOMPAT_INLINE_DATA
        | INCOMPAT_ENCRYPT
        | INCOMPAT_CASEFOLD;
    /// What ext2 and ext3 may have.
    pub(crate) const INCOMPAT_EXT3: u32 = INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG;

    pub(crate) const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
    pub(crate) const RO_COMPAT_HUGE_FILE: u32 = 0x8;
    pub(crate) const RO_COMPAT_GDT_CSUM: u32 = 0x10;
    pub(crate) const RO_COMPAT_QUOTA: u32 = 0x100;
    pub(crate) const RO_COMPAT_BIGALLOC: u32 = 0x200;
    pub(crate) const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
    pub(crate) const RO_COMPAT_PROJECT: u32 = 0x2000;
    pub(crate) const RO_COMPAT_SHARED_BLOCKS: u32 = 0x4000;
    /// sparse_super large_file btree_dir huge_file gdt_csum dir_nlink extra_isize quota bigalloc metadata_csum readonly project
    /// shared_blocks verity orphan_present. Others (snapshots, replica) may change what a bitmap means, as bigalloc did.
    pub(crate) const RO_COMPAT_KNOWN: u32 = 0x1_f77f;
    /// What ext2 and ext3 may have: sparse_super large_file btree_dir.
    pub(crate) const RO_COMPAT_EXT3: u32 = 0x7;
}
use feature as f;

/// `s_state`: cleanly unmounted (or mounted with a journal).
pub(super) const STATE_VALID: u16 = 0x1;
/// `s_state`: the kernel saw an error.
pub(super) const STATE_ERROR: u16 = 0x2;

impl Raw {
    /// Loose bounds that random bytes with the right magic do not meet; `None` for "not ext".
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        let raw = Self::parse(bytes)?;
        let sane = raw.s_magic == MAGIC
            && raw.s_log_block_size <= 6
            && raw.s_first_data_block <= 1
            && raw.blocks() > 0
            && raw.s_rev_level <= 1
            && raw.size_bytes().is_some();
        let groups = raw.s_blocks_per_group > 0 && raw.s_inodes_per_group > 0;
        (sane && (groups || raw.has_incompat(f::INCOMPAT_JOURNAL_DEV))).then_some(raw)
    }

    /// Any of these bits in `s_feature_incompat` (revision 0 has no features).
    pub(super) fn has_incompat(&self, bits: u32) -> bool {
        self.s_rev_level > 0 && self.s_feature_incompat & bits != 0
    }

    /// Any of these bits in `s_feature_ro_compat`.
    pub(super) fn has_ro_compat(&self, bits: u32) -> bool {
        self.s_rev_level > 0 && self.s_feature_ro_compat & bits != 0
    }

    /// Any of these bits in `s_feature_compat`.
    pub(super) fn has_compat(&self, bits: u32) -> bool {
        self.s_rev_level > 0 && self.s_feature_compat & bits != 0
    }

    /// Block size; `None` out of bounds.
    pub(super) fn block(&self) -> Option<BlockSize> {
        BlockSize::from_log2(self.s_log_block_size.checked_add(10)?)
    }

    fn wide(&self, low: u32, high: u32) -> u64 {
        if self.has_incompat(f::INCOMPAT_64BIT) {
            u64::from(low) | u64::from(high) << 32
        } else {
            u64::from(low)
        }
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.wide(self.s_blocks_count_lo, self.s_blocks_count_hi)
    }

    /// Free blocks (blocks, not clusters).
    pub(super) fn free_blocks(&self) -> u64 {
        self.wide(self.s_free_blocks_count_lo, self.s_free_blocks_count_hi)
    }

    /// Size of the filesystem in bytes; `None` when it cannot be.
    pub(super) fn size_bytes(&self) -> Option<u64> {
        self.block()?.bytes_of(self.blocks())
    }

    /// The name of what this is: as libblkid decides it, by the features that ext3 does not have.
    pub(super) fn kind(&self) -> Kind {
        if self.has_incompat(f::INCOMPAT_JOURNAL_DEV) {
            Kind::ExtJournal
        } else if self.has_incompat(!f::INCOMPAT_EXT3) || self.has_ro_compat(!f::RO_COMPAT_EXT3) {
            Kind::Ext4
        } else if self.has_compat(f::COMPAT_HAS_JOURNAL) {
            Kind::Ext3
        } else {
            Kind::Ext2
        }
    }

    /// The block (or the kilobyte) that holds the primary superblock.
    pub(super) fn extent(&self) -> Extent {
        let length_bytes = self.block().map_or(1024, BlockSize::bytes64);
        let offset = if length_bytes == 1024 { 1024 } else { 0 };
        Extent::at(offset, length_bytes)
    }
}

/// A superblock whose numbers fit each other: block, group and inode arithmetic on them cannot go wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Block size.
    pub block: BlockSize,
    /// Binary logarithm of blocks per cluster (0 without bigalloc).
    pub cluster_log2: u32,
    /// Number of blocks; `blocks * block` fits 64 bits.
    pub blocks: u64,
    /// 1 for 1 KiB blocks without bigalloc, else 0.
    pub first_data_block: u64,
    /// Blocks in a whole group: `clusters_per_group << cluster_log2`.
    pub blocks_per_group: u64,
    /// Bits of a block bitmap; a multiple of 8, at most 8 per byte of a block.
    pub clusters_per_group: u64,
    /// Bits of an inode bitmap; a multiple of 8, at most 8 per byte of a block.
    pub inodes_per_group: u32,
    /// Bytes of an inode: a power of two, 128 up to the block size.
    pub inode_bytes: u32,
    /// Bytes of a group descriptor: a power of two, 32 to 1024.
    pub descriptor_bytes: u32,
    /// Number of groups; at least 1.
    pub groups: u32,
    /// Free blocks as the superblock counts them.
    pub free_blocks: Option<u64>,
    /// First metagroup whose descriptors lie inside itself (equal to the number of metagroups without meta_bg).
    pub first_meta_bg: u32,
    /// Blocks kept free after the descriptors for growth.
    pub reserved_gdt_blocks: u64,
    /// Which groups have backups.
    pub backups: Backups,
    /// Bitmaps and tables may lie in other groups.
    pub is_flex: bool,
    /// Inode sizes may be counted in blocks.
    pub has_huge_file: bool,
    /// Checksums in use.
    pub checksums: ChecksumScheme,
    /// Inode number of the journal; 0 without one.
    pub journal_inode: u32,
    /// `s_state`.
    pub state: u16,
}

/// Which groups hold copies of superblock and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backups {
    /// Every group.
    All,
    /// 0, 1 and the powers of 3, 5 and 7 (sparse_super).
    Sparse,
    /// 0 and these two (sparse_super2).
    Two([u32; 2]),
}

impl Geometry {
    /// Checks everything; the fault says what is out of bounds or not known.
    pub(super) fn new(raw: &Raw, bytes: &[u8]) -> Result<Self, Fault> {
        if raw.has_incompat(!f::INCOMPAT_KNOWN) {
            return Err(Fault::unsupported("unknown incompatible feature"));
        }
        if raw.has_ro_compat(!f::RO_COMPAT_KNOWN) {
            return Err(Fault::unsupported("unknown read-only feature"));
        }
        let checksums = ChecksumScheme::new(raw, bytes)?;
        let block = raw.block().ok_or_else(|| Fault::corrupt("block size"))?;
        let cluster_log2 = Self::cluster_log2(raw)?;
        let clusters_per_group = Self::clusters_per_group(raw, block, cluster_log2)?;
        let groups = Self::groups(raw, block, cluster_log2)?;
        let mut geometry = Self {
            block,
            cluster_log2,
            blocks: raw.blocks(),
            first_data_block: u64::from(raw.s_first_data_block),
            blocks_per_group: u64::from(raw.s_blocks_per_group),
            clusters_per_group,
            inodes_per_group: Self::inodes_per_group(raw, block, groups)?,
            inode_bytes: Self::inode_bytes(raw, block)?,
            descriptor_bytes: Self::descriptor_bytes(raw)?,
            groups,
            free_blocks: Some(raw.free_blocks()),
            first_meta_bg: 0,
            reserved_gdt_blocks: u64::from(raw.s_reserved_gdt_blocks),
            backups: Self::backups(raw),
            is_flex: raw.has_incompat(f::INCOMPAT_FLEX_BG),
            has_huge_file: raw.has_ro_compat(f::RO_COMPAT_HUGE_FILE),
            checksums,
            journal_inode: 0,
            state: raw.s_state,
        };
        let metagroups = groups.div_ceil(geometry.descriptors_per_block());
        geometry.first_meta_bg = if raw.has_incompat(f::INCOMPAT_META_BG) {
            raw.s_first_meta_bg.min(metagroups)
        } else {
            metagroups
        };
        if raw.has_compat(f::COMPAT_HAS_JOURNAL) {
            geometry.journal_inode = raw.s_journal_inum;
        }
        Ok(geometry)
    }

    /// Blocks of a cluster, as a power of two: more than one with bigalloc only.
    fn cluster_log2(raw: &Raw) -> Result<u32, Fault> {
        if !raw.has_ro_compat(f::RO_COMPAT_BIGALLOC) {
            return Ok(0);
        }
        raw.s_log_cluster_size
            .checked_sub(raw.s_log_block_size)
            .filter(|_| raw.s_log_cluster_size <= 20)
            .ok_or_else(|| Fault::corrupt("cluster size"))
    }

    /// A group has as many clusters as one block of bits can tell of.
    fn clusters_per_group(raw: &Raw, block: BlockSize, cluster_log2: u32) -> Result<u64, Fault> {
        let blocks = u64::from(raw.s_blocks_per_group);
        let clusters = blocks >> cluster_log2;
        let fits = clusters << cluster_log2 == blocks
            && (8..=block.bytes64() * 8).contains(&clusters)
            && clusters.is_multiple_of(8)
            && (cluster_log2 == 0 || u64::from(raw.s_clusters_per_group) == clusters);
        fits.then_some(clusters)
            .ok_or_else(|| Fault::corrupt("blocks per group"))
    }

    /// Groups there are, the last one shorter perhaps. Blocks per group are known to be some.
    fn groups(raw: &Raw, block: BlockSize, cluster_log2: u32) -> Result<u32, Fault> {
        let first = u64::from(raw.s_first_data_block);
        // Only blocks of 1024 bytes leave one before the superblock.
        let wants_first = block.bytes() == 1024 && cluster_log2 == 0;
        if (first == 1) != wants_first || raw.blocks() <= first {
            return Err(Fault::corrupt("first data block"));
        }
        let groups = (raw.blocks() - first).div_ceil(u64::from(raw.s_blocks_per_group));
        u32::try_from(groups).map_err(|_| Fault::corrupt("number of groups"))
    }

    fn descriptor_bytes(raw: &Raw) -> Result<u32, Fault> {
        match raw.s_desc_size {
            _ if !raw.has_incompat(f::INCOMPAT_64BIT) => Ok(32),
            size @ (64 | 128 | 256 | 512 | 1024) => Ok(u32::from(size)),
            _ => Err(Fault::unsupported("group descriptor size")),
        }
    }

    fn inodes_per_group(raw: &Raw, block: BlockSize, groups: u32) -> Result<u32, Fault> {
        let inodes = raw.s_inodes_per_group;
        let fits = inodes != 0
            && u64::from(inodes) <= block.bytes64() * 8
            && inodes.is_multiple_of(8)
            && inodes.checked_mul(groups) == Some(raw.s_inodes_count);
        fits.then_some(inodes)
            .ok_or_else(|| Fault::corrupt("inodes per group"))
    }

    fn inode_bytes(raw: &Raw, block: BlockSize) -> Result<u32, Fault> {
        let size = if raw.s_rev_level == 0 {
            128
        } else {
            u32::from(raw.s_inode_size)
        };
        (size.is_power_of_two() && (128..=block.bytes()).contains(&size))
            .then_some(size)
            .ok_or_else(|| Fault::corrupt("inode size"))
    }

    fn backups(raw: &Raw) -> Backups {
        if raw.has_compat(f::COMPAT_SPARSE_SUPER2) {
            Backups::Two([raw.s_backup_bgs_0, raw.s_backup_bgs_1])
        } else if raw.has_ro_compat(f::RO_COMPAT_SPARSE_SUPER) {
            Backups::Sparse
        } else {
            Backups::All
        }
    }

    /// Group descriptors in one block.
    pub(super) fn descriptors_per_block(&self) -> u32 {
        (self.block.bytes() / self.descriptor_bytes).max(1)
    }

    /// Size in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.block.bytes_of(self.blocks).unwrap_or(u64::MAX)
    }

    /// Length of a block in memory.
    pub(super) fn block_len(&self) -> usize {
        to_usize(self.block.bytes64())
    }

    /// Blocks of one group's inode table.
    pub(super) fn table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_bytes);
        bytes.div_ceil(self.block.bytes64())
    }

    /// Inodes in a block of their table.
    pub(super) fn inodes_per_block(&self) -> u64 {
        (self.block.bytes64() / u64::from(self.inode_bytes)).max(1)
    }

    /// `count` blocks from `start` as bytes; `None` unless all of them exist.
    pub(super) fn extent(&self, start: u64, count: u64) -> Option<Extent> {
        let end = start.checked_add(count)?;
        if end > self.blocks {
            return None;
        }
        Extent::of_blocks(start, count, self.block)
    }
}
