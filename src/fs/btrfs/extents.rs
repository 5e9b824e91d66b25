//! From extent items to used blocks, one block group at a time, with the counts that must agree.
//!
//! Everything starts free; each extent item marks all copies of its blocks. A block group whose extents do not add up to what its
//! item says, or about which anything was odd, is used whole. Only unwritten parts of an extent become free again ([`super::unwritten`]).
//! A leaf for which an earlier walk answers ([`crate::fs::earlier`]) is not read: what its extents own is what that walk's map has used.

use crate::error::{Fault, FaultKind};
use crate::fs::earlier::EarlierFindings;
use crate::fs::{UsedMap, Verdict};
use crate::layout;
use crate::units::{Extent, to_u64};

use super::chunks::{Chunk, ChunkMap, DOUBTFUL, HAS_GROUP, IN_TREE};
use super::reserved;
use super::tree::{Ahead, Expected, Key, MAX_LEVELS, Root, TreeBlocks, TreeCursor};

layout! {
    /// `struct btrfs_extent_item`.
    le pub(super) struct RawExtent: 24 { 0x00 refs: u64, 0x08 generation: u64, 0x10 flags: u64 }
}

layout! {
    /// `struct btrfs_block_group_item`.
    le pub(super) struct RawGroup: 24 { 0x00 used: u64, 0x10 flags: u64 }
}

/// Item kinds of the extent tree (`btrfs_tree.h`).
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;
/// Back references that did not fit into their extent item; they own nothing.
const REFERENCES: [u8; 6] = [172, 176, 178, 180, 182, 184];

/// `BTRFS_EXTENT_FLAG_DATA`.
const EXTENT_DATA_FLAG: u64 = 1;
const EXTENT_TREE_BLOCK_FLAG: u64 = 2;
const GROUP_DATA: u64 = 1;
const GROUP_METADATA_OR_SYSTEM: u64 = 4 | 2;

/// Unreadable tree blocks after which the rest of the tree is not looked at.
const BAD_BLOCKS: u32 = 64;

/// What the marking works on.
pub(super) struct Marking<'a, 's> {
    /// The device and its geometry.
    pub source: TreeBlocks<'a>,
    /// The chunk map, which also keeps the counts.
    pub chunks: ChunkMap<'s>,
    /// Everything free to begin with.
    pub map: &'a mut UsedMap,
    /// Collects the doubts.
    pub verdict: Verdict,
    /// What an earlier walk found.
    known: EarlierFindings<'a>,
    /// Where the leaf that is read lies on the device.
    leaf_place: Option<u64>,
    /// End of the extent before, to see overlaps.
    last_end: u64,
}

/// An extent as its item describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtentItem {
    /// Logical addresses.
    pub extent: Extent,
    /// References in all.
    pub refs: u64,
    /// File data, not a tree block.
    pub is_data: bool,
}

impl<'a, 's> Marking<'a, 's> {
    /// Starts with everything free.
    pub(super) fn new(
        source: TreeBlocks<'a>,
        chunks: ChunkMap<'s>,
        map: &'a mut UsedMap,
        known: EarlierFindings<'a>,
    ) -> Self {
        map.set_all_free();
        Self {
            source,
            chunks,
            map,
            verdict: Verdict::USED,
            known,
            leaf_place: None,
            last_end: 0,
        }
    }

    /// Walks a tree of extents or block groups (or of both). `each` sees every sound extent after it was marked.
    pub(super) fn walk(
        &mut self,
        cursor: &mut TreeCursor,
        root: Root,
        mut each: impl FnMut(&mut Self, ExtentItem, &[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let source = self.source;
        cursor.start(&source, &self.chunks, root)?;
        let mut bad_blocks = 0;
        loop {
            match self.next_item(cursor) {
                Ok(None) => return Ok(()),
                Ok(Some(key)) => {
                    if let Some(found) = self.item(key, cursor.item()?)? {
                        each(self, found, cursor.item()?)?;
                    }
                }
                Err(fault) if fault.kind() == FaultKind::Corrupt && bad_blocks < BAD_BLOCKS => {
                    // The groups whose items were there will not add up, or will lack their own item.
                    bad_blocks += 1;
                    self.verdict.doubt(fault);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The key of the next item that is not in a leaf for which the earlier walk answers.
    fn next_item(&mut self, cursor: &mut TreeCursor) -> Result<Option<Key>, Fault> {
        let source = self.source;
        while let Ahead::Leaf(leaf) = cursor.ahead(&source, &self.chunks)? {
            self.leaf_place = self.place_of(leaf.root.logical);
            if !self.mark_as_before(&leaf) {
                break;
            }
            cursor.pass();
        }
        cursor.next(&source, &self.chunks)
    }

    /// No later walk is to leave out the leaf at hand: what it holds is more than extents, or not all there is to know of them.
    pub(super) fn read_again(&self) {
        if let Some(place) = self.leaf_place {
            self.known.gave(place);
        }
    }

    /// Where the first copy of the tree block at that address lies on the device.
    fn place_of(&self, logical: u64) -> Option<u64> {
        let block = Extent::new(logical, to_u64(self.source.geometry.node_bytes))?;
        let (_, chunk) = self.chunks.find(logical)?;
        chunk.on_device(block).next().map(|place| place.offset)
    }

    /// The map of the earlier walk, where it answers for all that this leaf's extents own. That map must have used whatever extents that
    /// were not looked up own: nothing but [`Self::free_again`] may free blocks of a btrfs.
    fn answer_for(&self, leaf: &Expected) -> Option<&'a UsedMap> {
        // Where the next leaf lost its first extents, the keys of this one seem to go on over them, though it was not touched.
        let newest = leaf.root.generation?.max(leaf.next_generation?);
        let before = self.known.answers_for(self.leaf_place?, newest)?;
        // The references of an extent may go on in the next leaf; whose its blocks are is clear only where it begins.
        let begins_extent = |key: Key| matches!(key.kind, EXTENT_ITEM | METADATA_ITEM);
        let first = leaf.first.filter(|first| begins_extent(*first))?;
        let geometry = &self.source.geometry;
        let is_plain = (begins_extent(leaf.limit) || leaf.limit == Key::LAST)
            && first.objectid >= self.last_end
            && before.granule() == geometry.sector;
        // There the map has more than the extents.
        let has_reserved = self.parts_of(leaf).any(|(_, chunk, part)| {
            let is_reserved = |place: Extent| reserved(geometry).any(|one| one.overlaps(place));
            chunk.on_device(part).any(is_reserved)
        });
        (is_plain && !has_reserved).then_some(before)
    }

    /// The chunks, and what of each, in which the extents of a leaf lie.
    fn parts_of(&self, leaf: &Expected) -> impl Iterator<Item = (usize, Chunk, Extent)> {
        let first = leaf.first.map_or(0, |first| first.objectid);
        self.chunks.parts(first, leaf.limit.objectid)
    }

    /// Marks and counts what the extents of a leaf own as the earlier walk did, where it answers for that.
    fn mark_as_before(&mut self, leaf: &Expected) -> bool {
        let Some(before) = self.answer_for(leaf) else {
            return false;
        };
        let mut from = leaf.first.map_or(0, |first| first.objectid);
        let limit = leaf.limit.objectid;
        loop {
            let part = self.chunks.parts(from, limit).next();
            let Some((index, mut chunk, part)) = part else {
                break;
            };
            let mut seen_bytes = 0;
            for place in chunk.on_device(part) {
                seen_bytes = self.map.use_as(before, place);
            }
            chunk.seen_bytes = chunk.seen_bytes.saturating_add(seen_bytes);
            self.chunks.set(index, &chunk);
            from = part.end();
        }
        self.last_end = limit;
        true
    }

    fn item(&mut self, key: Key, item: &[u8]) -> Result<Option<ExtentItem>, Fault> {
        match key.kind {
            EXTENT_ITEM => self.extent(key.objectid, key.offset, item),
            METADATA_ITEM if key.offset < to_u64(MAX_LEVELS) => {
                self.extent(key.objectid, to_u64(self.source.geometry.node_bytes), item)
            }
            BLOCK_GROUP_ITEM => {
                self.read_again();
                self.group(key, item).map(|()| None)
            }
            kind if REFERENCES.contains(&kind) => Ok(None),
            kind => Err(Fault::unsupported("kind of item in the extent tree")
                .in_unit("item kind", u64::from(kind))),
        }
    }

    /// Marks an extent and counts it for its block group.
    fn extent(
        &mut self,
        logical: u64,
        length: u64,
        item: &[u8],
    ) -> Result<Option<ExtentItem>, Fault> {
        let bad = |what| Fault::corrupt(what).in_unit("extent", logical);
        let extent = Extent::new(logical, length).ok_or_else(|| bad("length"))?;
        let (index, mut chunk) = self
            .chunks
            .find(logical)
            .ok_or_else(|| bad("address in no chunk"))?;
        let raw = RawExtent::parse(item);
        let unit = self.source.geometry.sector.bytes64();
        let sound = raw.filter(|raw| {
            extent.end() <= chunk.end()
                && logical >= self.last_end
                && length != 0
                && (logical | length).is_multiple_of(unit)
                && raw.generation <= self.source.geometry.generation
                && kind_fits(raw.flags, chunk.flags)
        });
        self.last_end = self.last_end.max(extent.end());
        let Some(raw) = sound else {
            self.verdict.doubt(bad("fields of the item"));
            self.chunks.doubt(extent.offset, extent.end());
            return Ok(None);
        };
        for place in chunk.on_device(extent) {
            self.map.set_used(place);
        }
        chunk.seen_bytes = chunk.seen_bytes.saturating_add(length);
        self.chunks.set(index, &chunk);
        Ok(Some(ExtentItem {
            extent,
            refs: raw.refs,
            is_data: raw.flags & EXTENT_DATA_FLAG != 0,
        }))
    }

    fn group(&mut self, key: Key, item: &[u8]) -> Result<(), Fault> {
        let bad =
            || Fault::corrupt("block group without its chunk").in_unit("block group", key.objectid);
        let (index, mut chunk) = self.chunks.find(key.objectid).ok_or_else(bad)?;
        let raw = RawGroup::parse(item).filter(|raw| {
            (key.objectid, key.offset) == (chunk.logical, chunk.length_bytes)
                && raw.flags == chunk.flags
                && raw.used <= chunk.length_bytes
                && chunk.state & HAS_GROUP == 0
        });
        match raw {
            Some(raw) => {
                chunk.group_bytes = raw.used;
                chunk.state |= HAS_GROUP;
            }
            None => {
                self.verdict.doubt(bad());
                chunk.state |= DOUBTFUL;
            }
        }
        self.chunks.set(index, &chunk);
        Ok(())
    }

    /// Compares what was seen with what each block group, and then the superblock, counts.
    pub(super) fn settle(&mut self) -> Result<(), Fault> {
        let mut total = 0u64;
        for index in 0..self.chunks.len() {
            let Some(chunk) = self.chunks.get(index) else {
                return Err(Fault::corrupt("chunk table"));
            };
            total = total.saturating_add(chunk.group_bytes);
            if chunk.state != IN_TREE | HAS_GROUP || chunk.seen_bytes != chunk.group_bytes {
                self.use_whole(&chunk);
                let fault = Fault::corrupt("extents and count disagree");
                self.verdict
                    .doubt(fault.in_unit("block group", chunk.logical));
            }
        }
        if self.verdict.doubt.is_none() && total != self.source.geometry.used_bytes {
            return Err(
                Fault::corrupt("block groups and superblock disagree").in_unit("bytes used", total)
            );
        }
        Ok(())
    }

    fn use_whole(&mut self, chunk: &Chunk) {
        for place in chunk.on_device(chunk.extent()) {
            self.map.set_used(place);
        }
    }

    /// Marks all copies of a part of an extent free: it was never written.
    pub(super) fn free_again(&mut self, part: Extent) {
        if let Some((_, chunk)) = self.chunks.find(part.offset) {
            for place in chunk.on_device(part) {
                self.map.set_free(place);
            }
        }
    }

    /// Takes [`Self::free_again`] back.
    pub(super) fn use_again(&mut self, extent: Extent) {
        if let Some((_, chunk)) = self.chunks.find(extent.offset) {
            for place in chunk.on_device(extent) {
                self.map.set_used(place);
            }
        }
    }

    /// The top block of a tree that is in use must have come out used, in every copy.
    pub(super) fn expect_used(&self, root: Root) -> Result<(), Fault> {
        let fault =
            || Fault::corrupt("tree block in no extent").in_unit("tree block", root.logical);
        let bytes = to_u64(self.source.geometry.node_bytes);
        let extent = Extent::new(root.logical, bytes).ok_or_else(fault)?;
        let (_, chunk) = self.chunks.find(root.logical).ok_or_else(fault)?;
        let used = |place: Extent| {
            self.map.is_used(place.offset) && self.map.is_used(place.end().saturating_sub(1))
        };
        let every = chunk.on_device(extent).all(used);
        if every { Ok(()) } else { Err(fault()) }
    }
}

fn kind_fits(extent_flags: u64, group_flags: u64) -> bool {
    if extent_flags & EXTENT_DATA_FLAG != 0 {
        group_flags & GROUP_DATA != 0 && extent_flags & EXTENT_TREE_BLOCK_FLAG == 0
    } else {
        extent_flags & EXTENT_TREE_BLOCK_FLAG != 0 && group_flags & GROUP_METADATA_OR_SYSTEM != 0
    }
}
