//! Tree blocks and a cursor over the items of a tree, in key order.
//!
//! Every block is checked before one of its numbers is used: checksum, own address, uuid, level, generation, count, and keys that
//! ascend inside the range its parent gave it. Since the first key of a block must be the key its parent names it by and all keys
//! ascend, no block can be entered twice: that bounds a walk and makes cycles impossible. All copies of a block are tried.

use crate::device::ReadAt;
use crate::error::{Fault, FaultKind};
use crate::layout;
use crate::layout::le;
use crate::units::{Extent, to_u64, to_usize};

use super::chunks::ChunkMap;
use super::superblock::Geometry;

/// `BTRFS_MAX_LEVEL`: levels a tree can have.
pub(super) const MAX_LEVELS: usize = 8;

layout! {
    /// `struct btrfs_header`, at the start of every tree block.
    le pub(super) struct Header: 101 {
        0x20 fsid: [u8; 16],
        0x30 bytenr: u64,
        0x50 generation: u64,
        0x60 nritems: u32,
        0x64 level: u8,
    }
}

layout! {
    /// The parts of `struct btrfs_root_item` that say where a tree is.
    le pub(super) struct RawRoot: 239 { 0xa0 generation: u64, 0xb0 bytenr: u64, 0xd8 refs: u32, 0xee level: u8 }
}

const LEAF_ENTRY_BYTES: usize = 25;
const NODE_ENTRY_BYTES: usize = 33;

/// The key of an item; keys are ordered by object, kind, offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub(super) struct Key {
    pub objectid: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    /// Size on disk in bytes.
    pub(super) const SIZE: usize = 17;
    /// No item has it.
    pub(super) const LAST: Self = Self::new(u64::MAX, u8::MAX, u64::MAX);

    /// From its parts.
    pub(super) const fn new(objectid: u64, kind: u8, offset: u64) -> Self {
        Self {
            objectid,
            kind,
            offset,
        }
    }

    /// From bytes; `None` when they are too few.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self::new(le(bytes, 0)?, le(bytes, 8)?, le(bytes, 9)?))
    }
}

/// Where a tree starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    /// Logical address of its top block.
    pub logical: u64,
    /// Level of that block.
    pub level: u8,
    /// Generation of that block, where what points at it says so.
    pub generation: Option<u64>,
}

impl Root {
    /// From a root item; `None` for a tree that is being deleted, whose blocks may be gone already.
    pub(super) fn parse(item: &[u8]) -> Option<Self> {
        let raw = RawRoot::parse(item).filter(|raw| raw.refs != 0)?;
        Some(Self {
            logical: raw.bytenr,
            level: raw.level,
            generation: Some(raw.generation),
        })
    }
}

/// Where tree blocks are read from.
#[derive(Clone, Copy)]
pub(super) struct TreeBlocks<'a> {
    /// The device.
    pub device: &'a dyn ReadAt,
    /// What the superblock says.
    pub geometry: Geometry,
}

/// What the parent says about a block.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    /// Where it lies, as the top of what is below it.
    pub root: Root,
    /// Its first key; `None` for the top of a tree.
    pub first: Option<Key>,
    /// Its keys are below this one.
    pub limit: Key,
    /// Generation of the next block of its parent; `None` where it is the last.
    pub next_generation: Option<u64>,
}

/// Where the next step of a cursor leads.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    /// Out of the tree.
    End,
    /// To the next item of the leaf that is loaded.
    Item,
    /// Into this leaf.
    Leaf(Expected),
}

impl TreeBlocks<'_> {
    /// Reads the block into `block` from the first copy that passes every check.
    fn read(
        &self,
        chunks: &ChunkMap,
        expected: &Expected,
        block: &mut [u8],
    ) -> Result<usize, Fault> {
        let logical = expected.root.logical;
        let name = |fault: Fault| fault.in_unit("tree block", logical);
        let (_, chunk) = chunks
            .find(logical)
            .ok_or_else(|| name(Fault::corrupt("address in no chunk")))?;
        let extent = Extent::new(logical, to_u64(block.len()))
            .ok_or_else(|| name(Fault::corrupt("address")))?;
        let mut first_fault = None;
        for place in chunk.on_device(extent) {
            let outcome = self.device.read_at(place.offset, block).and_then(|()| {
                self.check(expected, block)
                    .map_err(|fault| name(fault).at(place.offset, place.length_bytes))
            });
            match outcome {
                Ok(count) => return Ok(count),
                // A failed read weighs more than a bad copy: the caller stops at it.
                Err(fault) if fault.kind() == FaultKind::Io => first_fault = Some(fault),
                Err(fault) => first_fault = first_fault.or(Some(fault)),
            }
        }
        Err(first_fault.unwrap_or_else(|| name(Fault::corrupt("address past its chunk"))))
    }

    /// The number of entries of a block that is what its parent says.
    fn check(&self, expected: &Expected, block: &[u8]) -> Result<usize, Fault> {
        let bad = Fault::corrupt;
        let header = Header::parse(block).ok_or_else(|| bad("short"))?;
        if !self.geometry.checksum.holds(block) {
            return Err(bad("checksum"));
        }
        let root = expected.root;
        if header.bytenr != root.logical || header.fsid != self.geometry.node_uuid {
            return Err(bad("own address or uuid"));
        }
        if header.level != root.level {
            return Err(bad("level"));
        }
        let named = root
            .generation
            .is_none_or(|named| named == header.generation);
        if !named || header.generation > self.geometry.generation {
            return Err(bad("generation"));
        }
        let entry_bytes = entry_bytes(header.level);
        let count = to_usize(u64::from(header.nritems));
        if count > block.len().saturating_sub(Header::SIZE) / entry_bytes {
            return Err(bad("number of items"));
        }
        // Only the top block may be empty, and only when it is a leaf.
        if count == 0 && (expected.first.is_some() || header.level > 0) {
            return Err(bad("empty"));
        }
        let mut before = None;
        for index in 0..count {
            let key = entry_key(block, header.level, index).ok_or_else(|| bad("short"))?;
            let starts_right = before.is_some() || expected.first.is_none_or(|first| first == key);
            if !starts_right || before.is_some_and(|before| before >= key) {
                return Err(bad("order of keys"));
            }
            before = Some(key);
        }
        if before.is_some_and(|last| last >= expected.limit) {
            return Err(bad("order of keys"));
        }
        Ok(count)
    }
}

fn entry_bytes(level: u8) -> usize {
    if level == 0 {
        LEAF_ENTRY_BYTES
    } else {
        NODE_ENTRY_BYTES
    }
}

fn entry(block: &[u8], level: u8, index: usize) -> Option<&[u8]> {
    let size = entry_bytes(level);
    let start = index.checked_mul(size)?.checked_add(Header::SIZE)?;
    block.get(start..)?.get(..size)
}

fn entry_key(block: &[u8], level: u8, index: usize) -> Option<Key> {
    entry(block, level, index).and_then(Key::parse)
}

/// One level of the path from the top of a tree to the current leaf.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// The entry to visit next.
    next: usize,
    count: usize,
    limit: Key,
}

const UNREAD: Level = Level {
    next: 0,
    count: 0,
    limit: Key::LAST,
};

/// A position in a tree: the path of blocks lies in scratch memory.
pub(super) struct TreeCursor<'s> {
    memory: &'s mut [u8],
    node_bytes: usize,
    steps: [Level; MAX_LEVELS],
    /// The tree it stands in.
    root: Option<Root>,
    /// The lowest level that is loaded.
    level: u8,
    current: usize,
    /// Tree blocks read so far.
    blocks_read: u32,
}

impl<'s> TreeCursor<'s> {
    /// A cursor that stands nowhere yet; `memory` must hold a block for each level of the trees it will walk.
    pub(super) fn new(memory: &'s mut [u8], geometry: &Geometry) -> Self {
        Self {
            memory,
            node_bytes: geometry.node_bytes,
            steps: [UNREAD; MAX_LEVELS],
            root: None,
            level: 0,
            current: 0,
            blocks_read: 0,
        }
    }

    /// Tree blocks read so far: what the walk has cost.
    pub(super) fn blocks_read(&self) -> u32 {
        self.blocks_read
    }

    fn block(&self, level: u8) -> Option<&[u8]> {
        let start = usize::from(level).checked_mul(self.node_bytes)?;
        self.memory.get(start..)?.get(..self.node_bytes)
    }

    fn step(&mut self, level: u8) -> &mut Level {
        let index = usize::from(level).min(MAX_LEVELS - 1);
        &mut self.steps[index]
    }

    fn load(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
        expected: &Expected,
    ) -> Result<(), Fault> {
        let level = expected.root.level;
        // What lies below belongs to another path from here on, also when this read fails.
        for step in self.steps.iter_mut().take(usize::from(level) + 1) {
            *step = UNREAD;
        }
        self.blocks_read = self.blocks_read.saturating_add(1);
        let start = usize::from(level).saturating_mul(self.node_bytes);
        let block = self
            .memory
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..self.node_bytes))
            .filter(|_| usize::from(level) < MAX_LEVELS)
            .ok_or_else(|| Fault::unsupported("a tree too tall for the memory of a walk"))?;
        let count = source.read(chunks, expected, block)?;
        *self.step(level) = Level {
            next: 0,
            count,
            limit: expected.limit,
        };
        self.level = level;
        Ok(())
    }

    /// Loads the top block: the next item is the first of the tree. After an error the cursor stands at an end.
    pub(super) fn start(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
        root: Root,
    ) -> Result<(), Fault> {
        self.steps = [UNREAD; MAX_LEVELS];
        self.root = Some(root);
        self.level = root.level;
        let expected = Expected {
            root,
            first: None,
            limit: Key::LAST,
            next_generation: None,
        };
        self.load(source, chunks, &expected)
    }

    /// Makes the first item at or after `key` the next one; blocks of the path that hold it already are not read again.
    pub(super) fn seek(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
        root: Root,
        key: Key,
    ) -> Result<(), Fault> {
        match self.loaded_level(root, key) {
            Some(level) => self.level = level,
            None => self.start(source, chunks, root)?,
        }
        loop {
            let level = self.level;
            let after = self.entries_below(level, key);
            if level == 0 {
                self.step(0).next = after;
                return Ok(());
            }
            // The child to enter is the last one whose first key is not above the wanted one.
            self.step(level).next = after.saturating_sub(1);
            self.descend(source, chunks)?;
        }
    }

    /// The lowest loaded block of this tree whose range of keys holds `key`.
    fn loaded_level(&self, root: Root, key: Key) -> Option<u8> {
        self.root.filter(|known| *known == root)?;
        (0..=root.level).find(|level| {
            let step = self.steps.get(usize::from(*level)).copied();
            let first = self
                .block(*level)
                .and_then(|block| entry_key(block, *level, 0));
            step.is_some_and(|step| step.count > 0 && key < step.limit)
                && first.is_some_and(|first| first <= key)
        })
    }

    /// How many entries of the loaded block lie below `key` (in an internal block: at or below).
    fn entries_below(&self, level: u8, key: Key) -> usize {
        let count = self
            .steps
            .get(usize::from(level))
            .map_or(0, |step| step.count);
        let Some(block) = self.block(level) else {
            return 0;
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let below = entry_key(block, level, middle).is_some_and(|found| {
                if level == 0 {
                    found < key
                } else {
                    found <= key
                }
            });
            if below {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// What the lowest loaded block says about its next child.
    fn next_child(&self) -> Option<Expected> {
        let level = self.level;
        let step = self.steps.get(usize::from(level))?;
        let block = self.block(level)?;
        let pointer = entry(block, level, step.next)?;
        let next = entry(block, level, step.next + 1).filter(|_| step.next + 1 < step.count);
        let limit = match next {
            Some(next) => Key::parse(next)?,
            None => step.limit,
        };
        Some(Expected {
            root: Root {
                logical: le(pointer, 17)?,
                level: level.saturating_sub(1),
                generation: Some(le(pointer, 25)?),
            },
            first: Key::parse(pointer),
            limit,
            next_generation: next.and_then(|next| le(next, 25)),
        })
    }

    /// Enters the next child of the lowest loaded block; whatever comes of it, that child is done with.
    fn descend(&mut self, source: &TreeBlocks, chunks: &ChunkMap) -> Result<(), Fault> {
        let child = self.next_child();
        self.pass();
        self.load(
            source,
            chunks,
            &child.ok_or_else(|| Fault::corrupt("short tree block"))?,
        )
    }

    /// Leaves out what [`Self::ahead`] named.
    pub(super) fn pass(&mut self) {
        if let Some(below) = self.level.checked_sub(1) {
            // What is loaded there belongs to another path.
            *self.step(below) = UNREAD;
        }
        let step = self.step(self.level);
        step.next = step.next.saturating_add(1);
    }

    /// Goes as far as to the next leaf or item, without entering it. After an error the next call goes on behind the block that was bad.
    pub(super) fn ahead(&mut self, source: &TreeBlocks, chunks: &ChunkMap) -> Result<Ahead, Fault> {
        loop {
            let level = self.level;
            let step = *self.step(level);
            if step.next >= step.count {
                if self.root.is_none_or(|root| level >= root.level) {
                    return Ok(Ahead::End);
                }
                self.level = level + 1;
                continue;
            }
            match level {
                0 => return Ok(Ahead::Item),
                1 => {
                    let leaf = self.next_child().map(Ahead::Leaf);
                    if leaf.is_none() {
                        self.pass();
                    }
                    return leaf.ok_or_else(|| Fault::corrupt("short tree block"));
                }
                _ => self.descend(source, chunks)?,
            }
        }
    }

    /// The key of the next item, `None` at the end. After an error the next call goes on behind the block that was bad.
    pub(super) fn next(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
    ) -> Result<Option<Key>, Fault> {
        loop {
            match self.ahead(source, chunks)? {
                Ahead::End => return Ok(None),
                Ahead::Leaf(_) => self.descend(source, chunks)?,
                Ahead::Item => {
                    self.current = self.step(0).next;
                    self.pass();
                    let block = self.block(0).unwrap_or_default();
                    return Ok(entry_key(block, 0, self.current));
                }
            }
        }
    }

    /// The bytes of the item whose key was returned last.
    pub(super) fn item(&self) -> Result<&[u8], Fault> {
        let bad = || Fault::corrupt("place of an item in its tree block");
        let block = self.block(0).ok_or_else(bad)?;
        let entry = entry(block, 0, self.current).ok_or_else(bad)?;
        let number = |at| le::<u32>(entry, at).and_then(|value| usize::try_from(value).ok());
        let (offset, size) = (number(17).ok_or_else(bad)?, number(21).ok_or_else(bad)?);
        block
            .get(Header::SIZE..)
            .and_then(|data| data.get(offset..)?.get(..size))
            .ok_or_else(bad)
    }
}
