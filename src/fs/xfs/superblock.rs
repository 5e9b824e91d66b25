//! The XFS superblock: parsed once, checked, and turned into the geometry that the rest of the reader believes.
//!
//! Field names are the kernel's (fs/xfs/libxfs/xfs_format.h) in the on-disk structure and ours in [`Geometry`]. Free counts are
//! never compared: with lazy counters the superblock on disk is stale by design.

use crate::crc::crc32c_raw;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs;
use crate::units::{BlockSize, Extent, to_usize};

crate::layout! {
    /// `struct xfs_dsb`.
    be pub(crate) struct DiskSuperblock: 264 {
        0x000 sb_magicnum: u32,
        0x004 sb_blocksize: u32,
        0x008 sb_dblocks: u64,
        0x010 sb_rblocks: u64,
        0x018 sb_rextents: u64,
        0x020 sb_uuid: [u8; 16],
        0x030 sb_logstart: u64,
        0x054 sb_agblocks: u32,
        0x058 sb_agcount: u32,
        0x060 sb_logblocks: u32,
        0x064 sb_versionnum: u16,
        0x066 sb_sectsize: u16,
        0x068 sb_inodesize: u16,
        0x06a sb_inopblock: u16,
        0x06c sb_fname: [u8; 12],
        0x078 sb_blocklog: u8,
        0x079 sb_sectlog: u8,
        0x07a sb_inodelog: u8,
        0x07b sb_inopblog: u8,
        0x07c sb_agblklog: u8,
        0x07e sb_inprogress: u8,
        0x07f sb_imax_pct: u8,
        0x090 sb_fdblocks: u64,
        0x0c8 sb_features2: u32,
        0x0d4 sb_features_ro_compat: u32,
        0x0d8 sb_features_incompat: u32,
        0x0dc sb_features_log_incompat: u32,
        0x0e0 sb_crc: u32,
        0x0f8 sb_meta_uuid: [u8; 16],
    }
}

/// "XFSB".
pub(super) const MAGIC: u32 = 0x5846_5342;

const VERSION_MASK: u16 = 0x000f;
const VERSION_SHARED: u16 = 0x0200;
const VERSION_EXTFLG: u16 = 0x1000;
const VERSION_MOREBITS: u16 = 0x8000;
/// LAZYSBCOUNT, ATTR2, PARENT, PROJID32, CRC, FTYPE: none changes what a block is used for.
const FEATURES2_KNOWN: u32 = 0x0002 | 0x0008 | 0x0010 | 0x0080 | 0x0100 | 0x0200;
const FEATURE2_CRC: u32 = 0x0100;
/// FINOBT, RMAPBT, REFLINK, INOBTCNT.
const RO_COMPAT_KNOWN: u32 = 0xf;
/// FTYPE, SPINODES, META_UUID, BIGTIME, NREXT64, EXCHRANGE, PARENT. NEEDSREPAIR is known and not trusted.
const INCOMPAT_KNOWN: u32 = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80;
const INCOMPAT_SPINODES: u32 = 0x02;
pub(super) const INCOMPAT_META_UUID: u32 = 0x04;
const INCOMPAT_NEEDSREPAIR: u32 = 0x10;
/// Logged extended attributes and mapping exchanges: the log goes out as it is.
const LOG_INCOMPAT_KNOWN: u32 = 0x3;

/// Bytes of the largest sector the format allows.
pub(super) const SECTOR_BYTES_MAX: usize = 32 * 1024;
/// Fewest blocks of an allocation group (`XFS_MIN_AG_BLOCKS`).
const AG_BLOCKS_MIN: u32 = 64;

/// The filesystem's shape, checked: every field is within what the format allows, and no product of them overflows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Block size.
    pub block: BlockSize,
    /// Sector size in bytes: the unit of the AG headers.
    pub sector_bytes: u32,
    /// Blocks of the data section.
    pub blocks: u64,
    /// Blocks of every allocation group but the last.
    pub ag_blocks: u32,
    /// Number of allocation groups.
    pub ag_count: u32,
    /// Bits of a block number that count within its group.
    pub ag_block_log2: u32,
    /// Inode size in bytes.
    pub inode_bytes: u32,
    /// Bits of an inode number that count within its block.
    pub inodes_log2: u32,
    /// Version 5: metadata carries checksum, owner and UUID.
    pub checksums: bool,
    /// UUID in the metadata blocks.
    pub uuid: [u8; 16],
    /// UUID in the log's records.
    pub log_uuid: [u8; 16],
    /// The internal log in bytes; empty where the log lies on another device.
    pub log: Extent,
    /// Inode chunks may have holes.
    pub sparse_inodes: bool,
    /// Extents may be unwritten.
    pub unwritten: bool,
}

/// A checked superblock: the shape, and what stands in the way of trusting the rest.
pub(crate) struct Superblock {
    /// The structure as it was on disk.
    pub disk: DiskSuperblock,
    /// The checked shape.
    pub geometry: Geometry,
    /// Why nothing beyond the shape can be believed, if so.
    pub doubt: Option<Fault>,
}

/// CRC-32C of `bytes` with the four bytes at `crc_offset` taken as zero, compared with the little-endian value there.
pub(super) fn checksum_holds(bytes: &[u8], crc_offset: usize) -> bool {
    let Some((before, rest)) = bytes.split_at_checked(crc_offset) else {
        return false;
    };
    let Some((stored, after)) = rest.split_first_chunk::<4>() else {
        return false;
    };
    let crc = crc32c_raw(crc32c_raw(crc32c_raw(u32::MAX, before), &[0; 4]), after);
    !crc == u32::from_le_bytes(*stored)
}

/// Reads the superblock; `None` when there is none, or its shape is impossible.
pub(super) fn read(device: &dyn ReadAt) -> Result<Option<Superblock>, Fault> {
    let disk = fs::read::<DiskSuperblock>(device, 0)?.filter(|disk| disk.sb_magicnum == MAGIC);
    let Some((disk, geometry)) = disk.and_then(|disk| Some((disk, geometry(&disk)?))) else {
        return Ok(None);
    };
    let mut doubt = doubt(&disk, &geometry);
    if geometry.checksums && doubt.is_none() {
        let length = u64::from(geometry.sector_bytes);
        let mut sector = [0; SECTOR_BYTES_MAX];
        let intact = match sector.get_mut(..to_usize(length)) {
            Some(sector) if device.size_bytes() >= length => {
                device.read_at(0, sector)?;
                checksum_holds(sector, DiskSuperblock::sb_crc)
            }
            _ => false,
        };
        if !intact {
            doubt = Some(Fault::corrupt("superblock checksum").at(0, length));
        }
    }
    Ok(Some(Superblock {
        disk,
        geometry,
        doubt,
    }))
}

/// The shape, when it is one that XFS can have.
fn geometry(disk: &DiskSuperblock) -> Option<Geometry> {
    let block = BlockSize::from_bytes(disk.sb_blocksize.into()).filter(|b| b.log2() <= 16)?;
    let sector = BlockSize::from_bytes(disk.sb_sectsize.into()).filter(|s| s.log2() <= 15)?;
    let version = disk.sb_versionnum & VERSION_MASK;
    let inodes = u32::from(disk.sb_inopblock);
    let ag_block_log2 = u32::from(disk.sb_agblklog);
    let whole_groups = u64::from(disk.sb_agblocks) * u64::from(disk.sb_agcount.checked_sub(1)?);
    let holds = matches!(version, 4 | 5)
        && u32::from(disk.sb_blocklog) == block.log2()
        && u32::from(disk.sb_sectlog) == sector.log2()
        && sector.bytes() <= block.bytes()
        && disk.sb_inodesize.is_power_of_two()
        && (256..=2048).contains(&disk.sb_inodesize)
        && u32::from(disk.sb_inodelog) == disk.sb_inodesize.trailing_zeros()
        && u32::from(disk.sb_inodesize).checked_mul(inodes)? == block.bytes()
        && inodes.is_power_of_two()
        && u32::from(disk.sb_inopblog) == inodes.trailing_zeros()
        && disk.sb_agblocks >= AG_BLOCKS_MIN
        && ag_block_log2 <= 31
        && disk.sb_agblocks <= 1 << ag_block_log2
        && disk.sb_dblocks > whole_groups
        && disk.sb_dblocks - whole_groups <= u64::from(disk.sb_agblocks)
        && block.bytes_of(disk.sb_dblocks)? < 1 << 62;
    if !holds {
        return None;
    }
    let v5 = version == 5;
    let meta_uuid = v5 && disk.sb_features_incompat & INCOMPAT_META_UUID != 0;
    let mut geometry = Geometry {
        block,
        sector_bytes: sector.bytes(),
        blocks: disk.sb_dblocks,
        ag_blocks: disk.sb_agblocks,
        ag_count: disk.sb_agcount,
        ag_block_log2,
        inode_bytes: u32::from(disk.sb_inodesize),
        inodes_log2: u32::from(disk.sb_inopblog),
        checksums: v5,
        uuid: if meta_uuid {
            disk.sb_meta_uuid
        } else {
            disk.sb_uuid
        },
        log_uuid: disk.sb_uuid,
        log: Extent::new(0, 0)?,
        sparse_inodes: v5 && disk.sb_features_incompat & INCOMPAT_SPINODES != 0,
        unwritten: v5 || disk.sb_versionnum & VERSION_EXTFLG != 0,
    };
    if disk.sb_logstart != 0 {
        geometry.log = geometry.extent(disk.sb_logstart, u64::from(disk.sb_logblocks))?;
    }
    Some(geometry)
}

/// What forbids believing anything but the shape.
fn doubt(disk: &DiskSuperblock, geometry: &Geometry) -> Option<Fault> {
    if disk.sb_inprogress != 0 {
        return Some(Fault::corrupt("mkfs.xfs was not finished"));
    }
    if geometry.checksums {
        if disk.sb_features_incompat & INCOMPAT_NEEDSREPAIR != 0 {
            return Some(Fault::corrupt("the filesystem says it needs repair"));
        }
        let unknown = [
            disk.sb_features_incompat & !INCOMPAT_KNOWN,
            disk.sb_features_ro_compat & !RO_COMPAT_KNOWN,
            disk.sb_features_log_incompat & !LOG_INCOMPAT_KNOWN,
        ]
        .into_iter()
        .find(|bits| *bits != 0);
        return unknown
            .map(|bits| Fault::unsupported("unknown XFS feature").in_unit("bits", bits.into()));
    }
    let features2 = if disk.sb_versionnum & VERSION_MOREBITS != 0 {
        disk.sb_features2
    } else {
        0
    };
    let strange = features2 & !FEATURES2_KNOWN | features2 & FEATURE2_CRC;
    if strange != 0 || disk.sb_versionnum & VERSION_SHARED != 0 {
        return Some(Fault::unsupported("unknown XFS v4 feature").in_unit("bits", strange.into()));
    }
    None
}

impl Geometry {
    /// Bytes of the data section.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.blocks << self.block.log2()
    }

    /// Blocks of allocation group `ag`; 0 past the last.
    pub(crate) fn ag_length(&self, ag: u32) -> u32 {
        let start = u64::from(ag) * u64::from(self.ag_blocks);
        let left = self.blocks.saturating_sub(start);
        u32::try_from(left).map_or(self.ag_blocks, |left| left.min(self.ag_blocks))
    }

    /// Byte offset of block `block` of allocation group `ag`; both were checked.
    pub(crate) fn offset(&self, ag: u32, block: u32) -> u64 {
        (u64::from(ag) * u64::from(self.ag_blocks) + u64::from(block)) << self.block.log2()
    }

    /// `count` blocks of group `ag` from `block`; `None` when they leave it.
    pub(crate) fn ag_extent(&self, ag: u32, block: u32, count: u32) -> Option<Extent> {
        if block.checked_add(count)? > self.ag_length(ag) {
            return None;
        }
        Extent::new(
            self.offset(ag, block),
            u64::from(count) << self.block.log2(),
        )
    }

    /// The group that the byte at `offset` lies in.
    pub(crate) fn group_of(&self, offset: u64) -> Option<u32> {
        u32::try_from(self.block.blocks_in(offset) / u64::from(self.ag_blocks)).ok()
    }

    /// A filesystem block number as group and block within it; `None` when there is no such block.
    pub(crate) fn split(&self, number: u64) -> Option<(u32, u32)> {
        let ag = u32::try_from(number >> self.ag_block_log2).ok()?;
        let block = u32::try_from(number & ((1 << self.ag_block_log2) - 1)).ok()?;
        (ag < self.ag_count && block < self.ag_length(ag)).then_some((ag, block))
    }

    /// `count` blocks from filesystem block `number`; `None` when they leave its group.
    pub(crate) fn extent(&self, number: u64, count: u64) -> Option<Extent> {
        let (ag, block) = self.split(number)?;
        self.ag_extent(ag, block, u32::try_from(count).ok()?)
    }

    /// The blocks at the start of each group that hold superblock, AGF, AGI and AGFL.
    pub(crate) fn header_blocks(&self) -> u32 {
        (4 * self.sector_bytes).div_ceil(self.block.bytes())
    }
}
