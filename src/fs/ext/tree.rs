//! Which blocks a file has: extent trees and indirect blocks, visited as runs in logical order.
//!
//! Bounded: depth at most five and strictly falling, logical order strictly rising, and never more tree blocks than the inode
//! says it owns. Any breach is [`Fault`] of kind corrupt, and what was visited before it is not to be believed.
//! Source: the kernel's Documentation/filesystems/ext4 (dynamic.rst: block map, extent tree).

use super::groups::Blocks;
use super::inode::Inode;
use super::superblock::Geometry;
use super::window::MAX_DEPTH;
use crate::crc::crc32c_raw;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout::le;
use crate::units::to_u64;

crate::layout! {
    /// `struct ext4_extent_header`.
    le struct Header: 12 {
        0x0 eh_magic: u16,
        0x2 eh_entries: u16,
        0x4 eh_max: u16,
        0x6 eh_depth: u16,
    }
}

crate::layout! {
    /// `struct ext4_extent`.
    le struct Leaf: 12 {
        0x0 ee_block: u32,
        0x4 ee_len: u16,
        0x6 ee_start_hi: u16,
        0x8 ee_start_lo: u32,
    }
}

crate::layout! {
    /// `struct ext4_extent_idx`.
    le struct Index: 12 {
        0x0 ei_block: u32,
        0x4 ei_leaf_lo: u32,
        0x8 ei_leaf_hi: u16,
    }
}

/// `eh_magic`.
pub(super) const HEADER_MAGIC: u16 = 0xf30a;
/// Entries and header have the same size.
const ENTRY_BYTES: usize = 12;
/// Longest extent; a longer one is unwritten.
const MAX_EXTENT: u16 = 0x8000;
/// One past the last logical block of an extent-mapped file.
const LOGICAL_END: u64 = 1 << 32;
/// Direct pointers of an inode without extents; three indirect ones follow.
const DIRECT: u64 = 12;

/// What a file uses a run of blocks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// A block of the tree itself.
    Tree,
    /// Content.
    Data,
    /// Allocated and never written: reads as zeros.
    Unwritten,
}

/// Blocks that a file owns.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnedBlocks {
    /// What for.
    pub usage: Usage,
    /// Logical block of the first one (0 for tree blocks).
    pub logical: u64,
    /// Where.
    pub blocks: Blocks,
}

/// What a visit works with.
pub(super) struct Visit<'v> {
    /// The filesystem.
    pub geometry: &'v Geometry,
    /// Where tree blocks are read.
    pub device: &'v dyn ReadAt,
    /// How many tree blocks may still be read, all inodes together.
    pub budget: &'v mut u64,
    /// Called for every run; all of them lie inside the filesystem.
    pub each: &'v mut dyn FnMut(OwnedBlocks),
}

/// Visits every run of `inode`, with `memory` for one block per level. A corrupt tree is an error of that kind.
pub(super) fn visit<'v>(
    inode: &'v Inode,
    visit: Visit<'v>,
    memory: &mut [u8],
) -> Result<(), Fault> {
    let mut walker = Walker {
        inode,
        visit,
        tree_blocks: 0,
        logical: 0,
    };
    if inode.has_extents() {
        let header = Header::parse(&inode.map).filter(|h| h.eh_depth <= MAX_DEPTH);
        let depth = header.ok_or_else(|| walker.bad("extent tree"))?.eh_depth;
        walker.extents(&inode.map, depth, LOGICAL_END, memory)
    } else {
        walker.pointers(memory)
    }
}

struct Walker<'v> {
    inode: &'v Inode,
    visit: Visit<'v>,
    tree_blocks: u64,
    /// Next logical block that may be mapped.
    logical: u64,
}

impl Walker<'_> {
    fn bad(&self, what: &'static str) -> Fault {
        Fault::corrupt(what).in_unit("inode", u64::from(self.inode.number))
    }

    fn emit(&mut self, usage: Usage, logical: u64, blocks: Blocks) -> Result<(), Fault> {
        let geometry = self.visit.geometry;
        if blocks.start <= geometry.first_data_block
            || geometry.extent(blocks.start, blocks.count).is_none()
        {
            return Err(self.bad("block number"));
        }
        (self.visit.each)(OwnedBlocks {
            usage,
            logical,
            blocks,
        });
        Ok(())
    }

    /// Reads the tree block `start` into `memory` and counts it.
    fn load(&mut self, start: u64, memory: &mut [u8]) -> Result<(), Fault> {
        self.emit(Usage::Tree, 0, Blocks { start, count: 1 })?;
        self.tree_blocks += 1;
        let left = self.visit.budget.checked_sub(1);
        match left {
            Some(left) if self.tree_blocks <= self.inode.blocks => *self.visit.budget = left,
            _ => return Err(self.bad("more tree blocks than blocks")),
        }
        let place = self.visit.geometry.extent(start, 1);
        let place = place.ok_or_else(|| self.bad("block number"))?;
        self.visit.device.read_at(place.offset, memory)
    }

    /// One node of an extent tree; its logical blocks end at `end`.
    fn extents(
        &mut self,
        node: &[u8],
        depth: u16,
        end: u64,
        memory: &mut [u8],
    ) -> Result<(), Fault> {
        let header = Header::parse(node).ok_or_else(|| self.bad("extent node"))?;
        let room = node.len() / ENTRY_BYTES - 1;
        if header.eh_magic != HEADER_MAGIC
            || header.eh_depth != depth
            || header.eh_entries > header.eh_max
            || usize::from(header.eh_max) > room
            || (depth > 0 && header.eh_entries == 0)
        {
            return Err(self.bad("extent node"));
        }
        let count = usize::from(header.eh_entries);
        let entry = |index: usize| node.get((index + 1) * ENTRY_BYTES..).unwrap_or_default();
        for index in 0..count {
            if depth == 0 {
                let leaf = Leaf::parse(entry(index)).ok_or_else(|| self.bad("extent"))?;
                self.leaf(leaf, end)?;
                continue;
            }
            let this = Index::parse(entry(index)).ok_or_else(|| self.bad("extent index"))?;
            let first = u64::from(this.ei_block);
            let next = match Index::parse(entry(index + 1)).filter(|_| index + 1 < count) {
                Some(next) => u64::from(next.ei_block),
                None => end,
            };
            if first < self.logical || first >= next || next > end {
                return Err(self.bad("order of extents"));
            }
            self.logical = first;
            let start = u64::from(this.ei_leaf_lo) | u64::from(this.ei_leaf_hi) << 32;
            let split = memory.split_at_mut_checked(self.visit.geometry.block_len());
            let (block, rest) = split.ok_or_else(|| self.bad("extent depth"))?;
            self.load(start, block)?;
            self.check_node(block)?;
            self.extents(block, depth - 1, next, rest)?;
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: Leaf, end: u64) -> Result<(), Fault> {
        let (usage, length) = match leaf.ee_len.checked_sub(MAX_EXTENT) {
            Some(length) if length > 0 => (Usage::Unwritten, length),
            _ => (Usage::Data, leaf.ee_len),
        };
        let first = u64::from(leaf.ee_block);
        let last = first + u64::from(length);
        if length == 0 || first < self.logical || last > end {
            return Err(self.bad("order of extents"));
        }
        self.logical = last;
        let blocks = Blocks {
            start: u64::from(leaf.ee_start_lo) | u64::from(leaf.ee_start_hi) << 32,
            count: u64::from(length),
        };
        self.emit(usage, first, blocks)
    }

    /// Verifies the checksum behind the last possible entry of an extent block.
    fn check_node(&self, node: &[u8]) -> Result<(), Fault> {
        let Some(seed) = self.inode.seed else {
            return Ok(());
        };
        let header = Header::parse(node).ok_or_else(|| self.bad("extent node"))?;
        let tail = (usize::from(header.eh_max) + 1) * ENTRY_BYTES;
        match (node.get(..tail), le::<u32>(node, tail)) {
            (Some(covered), Some(stored)) if crc32c_raw(seed, covered) == stored => Ok(()),
            _ => Err(self.bad("extent node checksum")),
        }
    }

    /// The fifteen pointers of an inode without extents.
    fn pointers(&mut self, memory: &mut [u8]) -> Result<(), Fault> {
        let map = self.inode.map;
        for (index, pointer) in (0u64..).zip(map.chunks_exact(4)) {
            let pointer = le::<u32>(pointer, 0).unwrap_or(0);
            let level = u32::try_from(index.saturating_sub(DIRECT - 1)).unwrap_or(0);
            self.indirect(pointer, level, memory)?;
        }
        Ok(())
    }

    /// What one pointer leads to: data at level 0, else a block of pointers of the level below.
    fn indirect(&mut self, pointer: u32, level: u32, memory: &mut [u8]) -> Result<(), Fault> {
        let geometry = self.visit.geometry;
        let pointers = geometry.block.bytes64() / 4;
        let spans = pointers
            .checked_pow(level)
            .ok_or_else(|| self.bad("indirect level"))?;
        if pointer == 0 {
            self.logical += spans;
            return Ok(());
        }
        let start = u64::from(pointer);
        if level == 0 {
            let logical = self.logical;
            self.logical += 1;
            return self.emit(Usage::Data, logical, Blocks { start, count: 1 });
        }
        let split = memory.split_at_mut_checked(geometry.block_len());
        let (block, rest) = split.ok_or_else(|| self.bad("indirect level"))?;
        self.load(start, block)?;
        for child in block.chunks_exact(4) {
            let child = le::<u32>(child, 0).unwrap_or(0);
            self.indirect(child, level - 1, rest)?;
        }
        debug_assert_eq!(to_u64(block.len()) / 4, pointers);
        Ok(())
    }
}
