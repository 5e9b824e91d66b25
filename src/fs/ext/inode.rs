//! One inode: what of it decides which blocks it owns.
//!
//! Never judges the file: an inode whose checksum is wrong is reported as such, and its blocks stay as the bitmap says.

use super::checksum::inode_is_right;
use super::superblock::Geometry;
use super::tree::HEADER_MAGIC;
use super::window::{Buffers, Request};
use crate::error::Fault;
use crate::layout::le;
use crate::units::to_usize;

crate::layout! {
    /// `struct ext4_inode`, its first 128 bytes.
    le struct Raw: 128 {
        0x00 i_mode: u16,
        0x04 i_size_lo: u32,
        0x1c i_blocks_lo: u32,
        0x20 i_flags: u32,
        0x28 i_block: [u8; 60],
        0x64 i_generation: u32,
        0x68 i_file_acl_lo: u32,
        0x6c i_size_high: u32,
        0x74 i_blocks_high: u16,
        0x76 i_file_acl_high: u16,
    }
}

const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_HUGE_FILE: u32 = 0x4_0000;
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
pub(super) const FLAG_INLINE_DATA: u32 = 0x1000_0000;
const FLAG_CASEFOLD: u32 = 0x4000_0000;

const MODE_TYPE: u16 = 0xf000;
const MODE_DIRECTORY: u16 = 0x4000;
const MODE_REGULAR: u16 = 0x8000;
const MODE_SYMLINK: u16 = 0xa000;

/// A symbolic link shorter than this lies in the inode.
const FAST_LINK_BYTES: u64 = 60;

/// The parts of an inode that matter for the map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    /// Its number, from 1.
    pub number: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Blocks it owns, tree and attributes included.
    pub blocks: u64,
    /// Block of its extended attributes; 0 without one.
    pub attributes: u64,
    /// `i_block`: pointers or the root of the extent tree.
    pub map: [u8; 60],
    /// Seed of the checksums of its tree blocks, where those are used.
    pub seed: Option<u32>,
    /// False when its own checksum is wrong.
    pub is_right: bool,
    mode: u16,
    flags: u32,
}

impl Inode {
    /// Where inode `number` lies, in bytes; an error when there is none.
    pub(super) fn place(
        geometry: &Geometry,
        buffers: &mut Buffers<'_>,
        number: u32,
    ) -> Result<u64, Fault> {
        let bad = || Fault::corrupt("inode").in_unit("inode", u64::from(number));
        let Some(index) = number.checked_sub(1) else {
            return Err(bad());
        };
        let group = index / geometry.inodes_per_group;
        if group >= geometry.groups {
            return Err(bad());
        }
        let descriptor = geometry.descriptor(&mut buffers.descriptors, group)?;
        let table = geometry.extent(descriptor.inode_table, geometry.table_blocks());
        let inside = u64::from(index % geometry.inodes_per_group) * u64::from(geometry.inode_bytes);
        table.map(|table| table.offset + inside).ok_or_else(bad)
    }

    /// Reads one inode by its number, with its bytes.
    pub(super) fn read_whole<'b>(
        geometry: &Geometry,
        buffers: &'b mut Buffers<'_>,
        number: u32,
    ) -> Result<(Self, &'b [u8]), Fault> {
        let offset = Self::place(geometry, buffers, number)?;
        let bytes = buffers.inodes.get(Request {
            offset,
            length_bytes: to_usize(u64::from(geometry.inode_bytes)),
            ahead_end: 0,
        })?;
        Self::parse(geometry, number, bytes)
            .filter(|inode| inode.is_right)
            .map(|inode| (inode, bytes))
            .ok_or_else(|| Fault::corrupt("inode").in_unit("inode", u64::from(number)))
    }

    /// The same without the bytes.
    pub(super) fn read(
        geometry: &Geometry,
        buffers: &mut Buffers<'_>,
        number: u32,
    ) -> Result<Self, Fault> {
        Self::read_whole(geometry, buffers, number).map(|(inode, _)| inode)
    }

    /// Parses the bytes of inode `number`; `None` when they are too few.
    pub(super) fn parse(geometry: &Geometry, number: u32, bytes: &[u8]) -> Option<Self> {
        let raw = Raw::parse(bytes)?;
        let seed = geometry.checksums.inode_seed(number, raw.i_generation);
        // The number enters the checksum as le32; a wrong one of a never written inode does not matter (mode 0 owns nothing).
        let is_right = match seed {
            Some(seed) => inode_is_right(seed, bytes)?,
            None => true,
        };
        let (mut high, mut units_per_block) = (0, geometry.block.bytes64() / 512);
        if geometry.has_huge_file {
            high = u64::from(raw.i_blocks_high);
            if raw.i_flags & FLAG_HUGE_FILE != 0 {
                units_per_block = 1;
            }
        }
        let units = u64::from(raw.i_blocks_lo) | high << 32;
        Some(Self {
            number,
            size_bytes: u64::from(raw.i_size_lo) | u64::from(raw.i_size_high) << 32,
            blocks: units / units_per_block,
            attributes: u64::from(raw.i_file_acl_lo) | u64::from(raw.i_file_acl_high) << 32,
            map: raw.i_block,
            seed,
            is_right,
            mode: raw.i_mode,
            flags: raw.i_flags,
        })
    }

    /// Whether names lead to what these bytes are the inode of: `i_links_count`, which a deleted file has lost.
    pub(super) fn has_names(bytes: &[u8]) -> bool {
        le::<u16>(bytes, 0x1a).is_some_and(|links| links != 0)
    }

    /// Whether it can own blocks at all: a file, folder or link.
    pub(super) fn owns_blocks(&self) -> bool {
        matches!(
            self.mode & MODE_TYPE,
            MODE_REGULAR | MODE_DIRECTORY | MODE_SYMLINK
        )
    }

    /// Whether `map` maps blocks (and does not hold the content itself).
    pub(super) fn has_map(&self) -> bool {
        let fast_link = self.mode & MODE_TYPE == MODE_SYMLINK
            && self.size_bytes < FAST_LINK_BYTES
            && !(self.has_extents() && le::<u16>(&self.map, 0) == Some(HEADER_MAGIC));
        self.owns_blocks() && self.flags & FLAG_INLINE_DATA == 0 && !fast_link
    }

    /// Regular file.
    pub(super) fn is_regular(&self) -> bool {
        self.mode & MODE_TYPE == MODE_REGULAR
    }

    /// Whether `map` is the root of an extent tree.
    pub(super) fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }
    /// Folder.
    pub(super) fn is_directory(&self) -> bool {
        self.mode & MODE_TYPE == MODE_DIRECTORY
    }

    /// Symbolic link.
    pub(super) fn is_symlink(&self) -> bool {
        self.mode & MODE_TYPE == MODE_SYMLINK
    }

    /// Content, names or link are encrypted (fscrypt).
    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & FLAG_ENCRYPT != 0
    }

    /// Content is fixed by a hash tree (fs-verity).
    pub(super) fn has_verity(&self) -> bool {
        self.flags & FLAG_VERITY != 0
    }

    /// A folder whose names are looked up without regard to case.
    pub(super) fn folds_case(&self) -> bool {
        self.flags & FLAG_CASEFOLD != 0
    }

    /// The content lies in `map` and in an attribute inside the inode.
    pub(super) fn is_inline(&self) -> bool {
        self.flags & FLAG_INLINE_DATA != 0
    }

    /// `i_blocks` counts blocks, and not 512 bytes each.
    pub(super) fn counts_blocks(&self, geometry: &Geometry) -> bool {
        geometry.has_huge_file && self.flags & FLAG_HUGE_FILE != 0
    }
}
