//! Unwritten (preallocated) parts of file extents: owned, but read as zeros by every file, so that their old bytes must not go out.
//!
//! A data extent that checksums cover whole was written. For any other, every file item that refers to it is looked up through the
//! extent's reference entries, in its file or in its shared leaf: what an unwritten item names becomes free, then what a written one
//! names becomes used again. Only when fewer items than references are found (a snapshot in the middle of its deletion, more
//! references than fit into the extent's item) does the extent stay used: the one exception to the promise of zeros.

use crate::error::Fault;
use crate::layout;
use crate::units::{Extent, to_u64};

use super::chunks::ChunkMap;
use super::extents::{ExtentItem, Marking, RawExtent};
use super::find_root;
use super::tree::{Key, Root, TreeBlocks, TreeCursor};

layout! {
    /// An inline `struct btrfs_extent_data_ref` behind the byte of its kind: items of one file in one tree.
    le pub(super) struct RawDataRef: 29 {
        0x01 root: u64,
        0x09 objectid: u64,
        0x11 offset: u64,
        0x19 count: u32,
    }
}

layout! {
    /// An inline `struct btrfs_shared_data_ref`, the same: items in one leaf, whatever trees share it.
    le pub(super) struct RawSharedRef: 13 { 0x01 parent: u64, 0x09 count: u32 }
}

layout! {
    /// `struct btrfs_file_extent_item` of an extent that is not inline.
    le pub(super) struct RawFileExtent: 53 {
        0x10 compression: u8,
        0x14 kind: u8,
        0x15 disk_bytenr: u64,
        0x1d disk_num_bytes: u64,
        0x25 offset: u64,
        0x2d num_bytes: u64,
    }
}

/// `BTRFS_EXTENT_CSUM_OBJECTID`.
const CHECKSUMS: u64 = u64::MAX - 9;
const EXTENT_CSUM: u8 = 128;
const EXTENT_DATA: u8 = 108;
const EXTENT_DATA_REF: u8 = 178;
const SHARED_DATA_REF: u8 = 184;
const EXTENT_OWNER_REF: u8 = 172;
/// Kind and root of an inline owner reference (simple quotas), which stands before the others.
const OWNER_REF_BYTES: usize = 9;
const FS_TREE: u64 = 5;
const FIRST_SUBVOLUME: u64 = 256;
const LAST_SUBVOLUME: u64 = u64::MAX - 255;
const WRITTEN: u8 = 1;
const PREALLOCATED: u8 = 2;

/// Tree blocks read to look files up, at most: each is a random read while everything stands still.
const LOOKUP_BLOCKS: u32 = 8192;

/// Finds them while the extents pass by in order.
pub(super) struct Unwritten<'s> {
    checksums: TreeCursor<'s>,
    checksum_root: Root,
    /// The run of checksummed data at or after the last extent.
    run: Option<Extent>,
    files: TreeCursor<'s>,
    root_tree: Root,
    /// The tree that was looked up last.
    file_root: Option<(u64, Root)>,
}

impl<'s> Unwritten<'s> {
    /// Stands before the first checksum of the tree at `checksum_root`.
    pub(super) fn new(
        source: &TreeBlocks,
        chunks: &ChunkMap,
        root_tree: Root,
        checksum_root: Root,
        mut checksums: TreeCursor<'s>,
        files: TreeCursor<'s>,
    ) -> Result<Self, Fault> {
        checksums.start(source, chunks, checksum_root)?;
        let mut new = Self {
            checksums,
            checksum_root,
            run: None,
            files,
            root_tree,
            file_root: None,
        };
        new.next_run(source, chunks)?;
        Ok(new)
    }

    /// Passes over the checksums that cannot reach `extent`, where there is more than a leaf of them.
    fn seek_run(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
        extent: Extent,
    ) -> Result<(), Fault> {
        let geometry = &source.geometry;
        let sums = to_u64(geometry.node_bytes) / geometry.checksum.bytes();
        // Nothing that begins before this address reaches the extent: its sums would not fit into a leaf.
        let first = extent
            .offset
            .saturating_sub(sums.saturating_mul(geometry.sector.bytes64()));
        if self.run.is_none_or(|run| run.end() >= first) {
            return Ok(());
        }
        let key = Key::new(CHECKSUMS, EXTENT_CSUM, first);
        self.checksums
            .seek(source, chunks, self.checksum_root, key)?;
        self.next_run(source, chunks)
    }

    fn next_run(&mut self, source: &TreeBlocks, chunks: &ChunkMap) -> Result<(), Fault> {
        self.run = None;
        while let Some(key) = self.checksums.next(source, chunks)? {
            if key.kind == EXTENT_CSUM {
                let sums = to_u64(self.checksums.item()?.len()) / source.geometry.checksum.bytes();
                self.run = Extent::of_blocks(0, sums, source.geometry.sector)
                    .and_then(|run| Extent::new(key.offset, run.length_bytes));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether checksums cover all of `extent`; extents must come in ascending order.
    fn is_covered(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
        extent: Extent,
    ) -> Result<bool, Fault> {
        self.seek_run(source, chunks, extent)?;
        let mut reached = extent.offset;
        while let Some(run) = self.run {
            if run.end() > reached {
                if run.offset > reached {
                    return Ok(false);
                }
                reached = run.end();
            }
            if reached >= extent.end() {
                return Ok(true);
            }
            self.next_run(source, chunks)?;
        }
        Ok(false)
    }

    /// Frees the unwritten parts of an extent that was just marked.
    pub(super) fn release(
        &mut self,
        marking: &mut Marking,
        found: ExtentItem,
        item: &[u8],
    ) -> Result<(), Fault> {
        let Some(inline) = item.get(RawExtent::SIZE..).filter(|_| found.is_data) else {
            return Ok(());
        };
        let (source, extent) = (marking.source, found.extent);
        let references: u64 = references(inline).map(|one| u64::from(one.count())).sum();
        if references != found.refs || self.is_covered(&source, &marking.chunks, extent)? {
            return Ok(());
        }
        // What its files say of it may change without it.
        marking.read_again();
        if self.files.blocks_read() >= LOOKUP_BLOCKS {
            return Err(Fault::unsupported(
                "more data without checksums than is looked up",
            ));
        }
        let outcome = self.free_unwritten(marking, extent, inline);
        if !matches!(outcome, Ok(true)) {
            marking.use_again(extent);
        }
        outcome.map(|_| ())
    }

    /// Frees what unwritten items name and no written one does; false when items are missing.
    fn free_unwritten(
        &mut self,
        marking: &mut Marking,
        extent: Extent,
        inline: &[u8],
    ) -> Result<bool, Fault> {
        for freeing in [true, false] {
            for reference in references(inline) {
                let items = self.visit(marking, extent, reference, |marking, item| {
                    let part = Extent::new(item.offset, item.num_bytes)
                        .filter(|part| part.end() <= extent.length_bytes && item.compression == 0)
                        .and_then(|part| {
                            Extent::new(extent.offset.checked_add(part.offset)?, part.length_bytes)
                        });
                    match (item.kind, part) {
                        (PREALLOCATED, Some(part)) if freeing => marking.free_again(part),
                        (PREALLOCATED, Some(_)) => {}
                        (WRITTEN, Some(part)) => marking.use_again(part),
                        _ => return false,
                    }
                    true
                })?;
                if items.is_none_or(|items| items < reference.count()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Shows every file item behind a reference to `each`; their number, or `None` when they cannot be found or `each` says no.
    fn visit(
        &mut self,
        marking: &mut Marking,
        extent: Extent,
        reference: Reference,
        mut each: impl FnMut(&mut Marking, RawFileExtent) -> bool,
    ) -> Result<Option<u32>, Fault> {
        let source = marking.source;
        let range = match reference {
            Reference::File(file) => {
                let Some(root) = self.file_root(&source, &marking.chunks, file.root)? else {
                    return Ok(None);
                };
                // The file offset at which the extent would start: before the file after a clone of its middle.
                let before_file = file.offset > u64::MAX / 2;
                let first = if before_file { 0 } else { file.offset };
                let key = Key::new(file.objectid, EXTENT_DATA, first);
                self.files.seek(&source, &marking.chunks, root, key)?;
                let end = file.offset.wrapping_add(extent.length_bytes);
                key..Key::new(file.objectid, EXTENT_DATA, end)
            }
            Reference::Leaf(leaf) => {
                let root = Root {
                    logical: leaf.parent,
                    level: 0,
                    generation: None,
                };
                self.files.start(&source, &marking.chunks, root)?;
                Key::new(0, 0, 0)..Key::LAST
            }
        };
        let mut items = 0u32;
        while let Some(key) = self.files.next(&source, &marking.chunks)? {
            if !range.contains(&key) {
                break;
            }
            if key.kind != EXTENT_DATA {
                continue;
            }
            // Inline items are shorter than the others, or name no extent.
            let item = RawFileExtent::parse(self.files.item()?).filter(|item| {
                (item.disk_bytenr, item.disk_num_bytes) == (extent.offset, extent.length_bytes)
                    && reference.names(key, item)
            });
            if let Some(item) = item {
                items = items.saturating_add(1);
                if !each(marking, item) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(items))
    }

    fn file_root(
        &mut self,
        source: &TreeBlocks,
        chunks: &ChunkMap,
        id: u64,
    ) -> Result<Option<Root>, Fault> {
        if id != FS_TREE && !(FIRST_SUBVOLUME..=LAST_SUBVOLUME).contains(&id) {
            return Ok(None);
        }
        if let Some((_, root)) = self.file_root.filter(|(known, _)| *known == id) {
            return Ok(Some(root));
        }
        let found = find_root(source, chunks, &mut self.files, self.root_tree, id);
        let found = Fault::believed(found)?;
        self.file_root = found.map(|root| (id, root)).or(self.file_root);
        Ok(found)
    }
}

/// One reference entry of a data extent.
#[derive(Clone, Copy)]
enum Reference {
    File(RawDataRef),
    Leaf(RawSharedRef),
}

impl Reference {
    /// How many file items it stands for.
    fn count(self) -> u32 {
        match self {
            Self::File(file) => file.count,
            Self::Leaf(leaf) => leaf.count,
        }
    }

    /// Whether a file item that names the extent does so by this entry.
    fn names(self, key: Key, item: &RawFileExtent) -> bool {
        match self {
            Self::File(file) => key.offset.wrapping_sub(item.offset) == file.offset,
            Self::Leaf(_) => true,
        }
    }
}

/// The references inside a data extent's item, up to the first that is none of these.
fn references(inline: &[u8]) -> impl Iterator<Item = Reference> {
    let mut rest = match inline.first() {
        Some(&EXTENT_OWNER_REF) => inline.get(OWNER_REF_BYTES..).unwrap_or_default(),
        _ => inline,
    };
    core::iter::from_fn(move || match *rest.first()? {
        EXTENT_DATA_REF => {
            let file = RawDataRef::parse(rest)?;
            rest = rest.get(RawDataRef::SIZE..)?;
            Some(Reference::File(file))
        }
        SHARED_DATA_REF => {
            let leaf = RawSharedRef::parse(rest)?;
            rest = rest.get(RawSharedRef::SIZE..)?;
            Some(Reference::Leaf(leaf))
        }
        _ => None,
    })
}
