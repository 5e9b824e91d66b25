//! Unwritten (preallocated) parts of file extents: owned, but read as zeros by every file, so that their old bytes must not go out.
//!
//! A data extent that checksums cover whole was written. For any other with a single reference entry (one file in one tree; a
//! snapshot or reflink adds an entry) the file's own items say which parts are unwritten: items of one file never overlap, so what an
//! unwritten item names, no written one does. Those parts become free; if the items do not add up to the reference's count, the
//! extent stays used. Unwritten extents that several trees or files share stay used: that is the one exception to the promise of zeros.

use crate::error::{Fault, FaultKind};
use crate::layout;
use crate::units::{Extent, to_u64};

use super::chunks::Chunks;
use super::extents::{Found, Marking, RawExtent};
use super::find_root;
use super::tree::{Cursor, Key, Root, Source};

layout! {
    /// An inline `struct btrfs_extent_data_ref` with the kind in front of it.
    le pub struct RawDataRef: 29 {
        0x00 kind: u8,
        0x01 root: u64,
        0x09 objectid: u64,
        0x11 offset: u64,
        0x19 count: u32,
    }
}

layout! {
    /// `struct btrfs_file_extent_item` of an extent that is not inline.
    le pub struct RawFileExtent: 53 {
        0x14 kind: u8,
        0x15 disk_bytenr: u64,
        0x1d disk_num_bytes: u64,
        0x25 offset: u64,
        0x2d num_bytes: u64,
    }
}

const EXTENT_CSUM: u8 = 128;
const EXTENT_DATA: u8 = 108;
const EXTENT_DATA_REF: u8 = 178;
const EXTENT_OWNER_REF: u8 = 172;
/// Kind and root of an inline owner reference (simple quotas), which stands before the others.
const OWNER_REF_BYTES: usize = 9;
const FS_TREE: u64 = 5;
const FIRST_SUBVOLUME: u64 = 256;
const LAST_SUBVOLUME: u64 = u64::MAX - 255;
const PREALLOCATED: u8 = 2;

/// Extents without checksums that are looked up in their file, at most: each costs a few random reads while everything stands still.
const LOOKUPS: u32 = 16_384;

/// Finds them while the extents pass by in order.
pub struct Unwritten<'s> {
    checksums: Cursor<'s>,
    /// The run of checksummed data at or after the last extent.
    run: Option<Extent>,
    files: Cursor<'s>,
    root_tree: Root,
    /// The tree that was looked up last.
    file_root: Option<(u64, Root)>,
    lookups: u32,
}

impl<'s> Unwritten<'s> {
    /// Stands before the first checksum of the tree at `checksum_root`.
    pub fn new(
        source: &Source,
        chunks: &Chunks,
        (root_tree, checksum_root): (Root, Root),
        (mut checksums, files): (Cursor<'s>, Cursor<'s>),
    ) -> Result<Self, Fault> {
        checksums.start(source, chunks, checksum_root)?;
        let mut new = Self {
            checksums,
            run: None,
            files,
            root_tree,
            file_root: None,
            lookups: 0,
        };
        new.next_run(source, chunks)?;
        Ok(new)
    }

    fn next_run(&mut self, source: &Source, chunks: &Chunks) -> Result<(), Fault> {
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
        source: &Source,
        chunks: &Chunks,
        extent: Extent,
    ) -> Result<bool, Fault> {
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
    pub fn release(
        &mut self,
        marking: &mut Marking,
        found: Found,
        item: &[u8],
    ) -> Result<(), Fault> {
        let Some(data_ref) = single_ref(found, item) else {
            return Ok(());
        };
        let (source, chunks) = (marking.source, &marking.chunks);
        if self.is_covered(&source, chunks, found.extent)? {
            return Ok(());
        }
        if self.lookups >= LOOKUPS {
            return Err(Fault::corrupt(
                "more extents without checksums than are looked up",
            ));
        }
        self.lookups += 1;
        match self.free_parts(marking, found.extent, data_ref) {
            Ok(true) => Ok(()),
            Ok(false) => {
                marking.use_again(found.extent);
                Ok(())
            }
            Err(fault) => {
                marking.use_again(found.extent);
                Err(fault)
            }
        }
    }

    /// Frees what unwritten items name; false when the file's items are not what the reference counts.
    fn free_parts(
        &mut self,
        marking: &mut Marking,
        extent: Extent,
        data_ref: RawDataRef,
    ) -> Result<bool, Fault> {
        let source = marking.source;
        let Some(root) = self.file_root(&source, &marking.chunks, data_ref.root)? else {
            return Ok(false);
        };
        // The reference names the file offset at which the extent would start: before the file after a clone of its middle.
        let before_file = data_ref.offset > u64::MAX / 2;
        let first = if before_file { 0 } else { data_ref.offset };
        let end = data_ref.offset.wrapping_add(extent.length_bytes);
        let key = Key::new(data_ref.objectid, EXTENT_DATA, first);
        self.files.seek(&source, &marking.chunks, root, key)?;
        let (mut items, mut last_end) = (0, first);
        while let Some(key) = self.files.next(&source, &marking.chunks)? {
            let here = (data_ref.objectid, EXTENT_DATA) == (key.objectid, key.kind);
            if !here || key.offset >= end {
                break;
            }
            let file_extent = RawFileExtent::parse(self.files.item()?).filter(|item| {
                (item.disk_bytenr, item.disk_num_bytes) == (extent.offset, extent.length_bytes)
                    && key.offset.wrapping_sub(item.offset) == data_ref.offset
            });
            let Some(file_extent) = file_extent else {
                continue;
            };
            items += 1;
            let file_end = key.offset.saturating_add(file_extent.num_bytes);
            let inside =
                file_extent.offset.saturating_add(file_extent.num_bytes) <= extent.length_bytes;
            if key.offset < last_end || !inside {
                return Ok(false);
            }
            last_end = file_end;
            if file_extent.kind == PREALLOCATED {
                let part = Extent {
                    offset: extent.offset.saturating_add(file_extent.offset),
                    length_bytes: file_extent.num_bytes,
                };
                marking.free_again(part);
            }
        }
        Ok(items == data_ref.count)
    }

    fn file_root(
        &mut self,
        source: &Source,
        chunks: &Chunks,
        id: u64,
    ) -> Result<Option<Root>, Fault> {
        if id != FS_TREE && !(FIRST_SUBVOLUME..=LAST_SUBVOLUME).contains(&id) {
            return Ok(None);
        }
        if let Some((_, root)) = self.file_root.filter(|(known, _)| *known == id) {
            return Ok(Some(root));
        }
        let found = find_root(source, chunks, &mut self.files, self.root_tree, id);
        match found {
            Ok(root) => {
                self.file_root = Some((id, root));
                Ok(Some(root))
            }
            Err(fault) if fault.kind == FaultKind::Io => Err(fault),
            Err(_) => Ok(None),
        }
    }
}

/// The only reference entry of a data extent, when it has but one and that one counts all references.
fn single_ref(found: Found, item: &[u8]) -> Option<RawDataRef> {
    let inline = item.get(RawExtent::SIZE..).filter(|_| found.is_data)?;
    let inline = match inline.first()? {
        &EXTENT_OWNER_REF => inline.get(OWNER_REF_BYTES..)?,
        _ => inline,
    };
    RawDataRef::parse(inline).filter(|data_ref| {
        data_ref.kind == EXTENT_DATA_REF
            && inline.len() == RawDataRef::SIZE
            && u64::from(data_ref.count) == found.refs
    })
}
