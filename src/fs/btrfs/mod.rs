//! btrfs on one device: which of its blocks an extent item owns.
//!
//! Superblock → system chunks → chunk tree (logical addresses to places) → root tree → extent tree and, where it has one, block group
//! tree. Used are: all copies of every extent, the superblocks, and the first MiB, which the allocator leaves to boot loaders.
//! Free is everything else, including what belongs to no chunk. All four checksums are verified. Believed when frozen (a freeze
//! commits the transaction, so the superblock is current), read-only, or unmounted: the trees on disk are always those of the last
//! commit. Read whole: a log that was not replayed, zoned, extent tree v2, raid stripe tree, unknown features. Refused: several devices.
//!
//! Format: kernel `include/uapi/linux/btrfs_tree.h`. Never here: data checksums, or any block of which only an older tree knows (the
//! roots that `usebackuproot` would try are free space and come out as zeros).

mod checksum;
mod chunks;
mod extents;
pub(in crate::fs) mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod unwritten;

use super::earlier::EarlierFindings;
use super::{Identity, Kind, Reader, Still, UsedMap, Verdict, Walk, WalkTask};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::features;
use crate::layout::le;
use crate::units::{Extent, to_u64};
use chunks::{Chunk, ChunkMap, IN_TREE};
use extents::Marking;
use superblock::{COPIES, Geometry, RESERVED_BYTES, SUPER_BYTES, Superblock};
use tree::{Key, MAX_LEVELS, Root, TreeBlocks, TreeCursor};
use unwritten::Unwritten;

/// Object ids and item kinds (`btrfs_tree.h`).
const EXTENT_TREE: u64 = 2;
const DEVICE_TREE: u64 = 4;
const CHECKSUM_TREE: u64 = 7;
const BLOCK_GROUP_TREE: u64 = 11;
const DEV_ITEMS: u64 = 1;
const FIRST_CHUNK_TREE: u64 = 256;
const ROOT_ITEM: u8 = 132;
const DEV_ITEM: u8 = 216;
const CHUNK_ITEM: u8 = 228;
const DEV_REPLACE: Key = Key::new(0, 250, 0);

/// Scratch memory for the blocks of the tree that is walked, in bytes; fewer levels fit where blocks are large, but those trees are low.
const MAIN_BYTES: usize = 256 * 1024;
/// The same for the checksum tree, and for looking things up in file trees. The rest of the scratch memory holds the chunks.
const SIDE_BYTES: usize = 192 * 1024;

/// The row of the table of readers.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Btrfs],
    probe,
    walk: if features::BTRFS { Some(walk) } else { None },
    witness,
};

/// Recognises btrfs by its first superblock.
fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some(found) = Superblock::read(device)? else {
        return Ok(None);
    };
    let raw = &found.raw;
    // With a wrong checksum the size cannot be held against the device: 0 is "does not say".
    let sound = found.checksum().is_some();
    let sector = raw.sectorsize;
    let plausible = sector.is_power_of_two() && (512..=65_536).contains(&sector);
    Ok(Some(Identity {
        size_bytes: if sound { raw.dev_total_bytes } else { 0 },
        block_bytes: if plausible { sector } else { 4096 },
        used_bytes: Some(raw.bytes_used),
        uuid: super::uuid_text(&raw.fsid),
        label: super::text(&raw.label),
        devices: u32::try_from(raw.num_devices).unwrap_or(u32::MAX),
        ..Identity::new(Kind::Btrfs, COPIES[0], to_u64(SUPER_BYTES))
    }))
}

/// Reads every copy of the superblock: each commit changes generation and root address in all of them.
fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    let size_bytes = identity.size_bytes.min(walk.device().size_bytes());
    walk.witness_extent(identity.superblock)?;
    for copy in superblock::copies(size_bytes).skip(1) {
        walk.witness_extent(copy)?;
    }
    Ok(())
}

/// Marks what extents own, with what an earlier walk found, and where that leaves a doubt, without.
fn walk(task: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let known = walk.known();
    let outcome = mark(task.identity, task.still, walk, map, known);
    let is_clean = matches!(&outcome, Ok(verdict) if verdict.doubt.is_none());
    match known {
        EarlierFindings::Knows(..) if !is_clean => mark(
            task.identity,
            task.still,
            walk,
            map,
            EarlierFindings::Nothing,
        ),
        _ => outcome,
    }
}

fn mark(
    identity: &Identity,
    still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
    known: EarlierFindings<'_>,
) -> Result<Verdict, Fault> {
    let device = walk.device();
    let superblock = Superblock::read(device)?.ok_or_else(|| Fault::corrupt("superblock"))?;
    let geometry = superblock.geometry()?;
    // Blocks of a log tree are in no extent item (kernel tree-log.c: they are only pinned at mount). Of something mounted a freeze
    // commits them: an fsync has them there, which is no reason to look at nothing before it.
    if superblock.raw.log_root != 0 && still != Still::Glimpse {
        return Err(Fault::unsupported("a log that was not replayed"));
    }
    let size_bytes = geometry.device_bytes;
    if size_bytes != identity.size_bytes {
        // The image would end where it does no more.
        return Err(Fault::refused(
            "the filesystem was resized since it was looked at",
        ));
    }
    if size_bytes > device.size_bytes() {
        return Err(Fault::corrupt("a filesystem larger than its device"));
    }
    let source = TreeBlocks { device, geometry };
    let (mut cursor, rest) = new_cursor(walk.scratch, MAIN_BYTES, &geometry)?;
    let (checksums, rest) = new_cursor(rest, SIDE_BYTES, &geometry)?;
    let (files, rest) = new_cursor(rest, SIDE_BYTES, &geometry)?;
    let chunks = map_chunks(&superblock, &source, &mut cursor, ChunkMap::new(rest))?;

    let root_tree = root_tree(&superblock);
    let device_root = find_root(&source, &chunks, &mut cursor, root_tree, DEVICE_TREE)?;
    check_replace(&source, &chunks, &mut cursor, device_root)?;
    let mut find = |id| find_root(&source, &chunks, &mut cursor, root_tree, id);
    let extent_root = find(EXTENT_TREE)?;
    let group_root = match geometry.has_group_tree {
        true => find(BLOCK_GROUP_TREE)?,
        false => extent_root,
    };
    let mut unwritten = find(CHECKSUM_TREE)
        .and_then(|root| Unwritten::new(&source, &chunks, root_tree, root, checksums, files));
    let mut marking = Marking::new(source, chunks, map, known);
    if geometry.has_group_tree {
        marking.walk(&mut cursor, group_root, |_, _, _| Ok(()))?;
    }
    marking.walk(&mut cursor, extent_root, |marking, found, item| {
        if let Ok(finder) = &mut unwritten
            && let Err(fault) = finder.release(marking, found, item)
        {
            unwritten = Err(fault);
        }
        Ok(())
    })?;
    marking.settle()?;
    for top in [root_tree, chunk_tree(&superblock), extent_root, group_root] {
        marking.expect_used(top)?;
    }
    let mut verdict = marking.verdict;
    if let Err(fault) = unwritten {
        verdict.doubt(fault.doubted()?);
    }
    keep_reserved(&geometry, map);
    if verdict.doubt.is_none() {
        known.believe_generation(geometry.generation);
    }
    Ok(verdict)
}

/// A cursor in the first `bytes` of the scratch memory (less where trees cannot be that tall), and the rest of the memory.
fn new_cursor<'s>(
    scratch: &'s mut [u8],
    bytes: usize,
    geometry: &Geometry,
) -> Result<(TreeCursor<'s>, &'s mut [u8]), Fault> {
    let bytes = bytes.min(MAX_LEVELS * geometry.node_bytes);
    let (memory, rest) = scratch
        .split_at_mut_checked(bytes)
        .ok_or_else(|| Fault::unsupported("scratch memory"))?;
    Ok((TreeCursor::new(memory, geometry), rest))
}

/// What is used without an extent: the start and the superblocks.
fn reserved(geometry: &Geometry) -> impl Iterator<Item = Extent> {
    let start = Extent::at(0, RESERVED_BYTES);
    core::iter::once(start).chain(superblock::copies(geometry.device_bytes))
}

/// Marks that, and what a map larger than the filesystem covers.
fn keep_reserved(geometry: &Geometry, map: &mut UsedMap) {
    let rest = Extent::between(geometry.device_bytes, map.size_bytes());
    map.set_used(rest);
    for extent in reserved(geometry) {
        map.set_used(extent);
    }
}

fn root_tree(superblock: &Superblock) -> Root {
    Root {
        logical: superblock.raw.root,
        level: superblock.raw.root_level,
        generation: Some(superblock.raw.generation),
    }
}

fn chunk_tree(superblock: &Superblock) -> Root {
    Root {
        logical: superblock.raw.chunk_root,
        level: superblock.raw.chunk_root_level,
        generation: Some(superblock.raw.chunk_root_generation),
    }
}

/// The system chunks from the superblock's array, then all of them from the chunk tree.
fn map_chunks<'s>(
    superblock: &Superblock,
    source: &TreeBlocks,
    cursor: &mut TreeCursor,
    mut chunks: ChunkMap<'s>,
) -> Result<ChunkMap<'s>, Fault> {
    let geometry = &source.geometry;
    let short = || Fault::corrupt("system chunk array");
    let mut array = superblock.chunk_array()?;
    while !array.is_empty() {
        let key = Key::parse(array).ok_or_else(short)?;
        let item = array.get(Key::SIZE..).ok_or_else(short)?;
        if (key.objectid, key.kind) != (FIRST_CHUNK_TREE, CHUNK_ITEM) {
            return Err(short());
        }
        chunks.insert(&Chunk::parse(key.offset, item, geometry)?)?;
        array = Chunk::item_bytes(item)
            .and_then(|bytes| item.get(bytes..))
            .ok_or_else(short)?;
    }
    let mut devices = 0;
    cursor.start(source, &chunks, chunk_tree(superblock))?;
    while let Some(key) = cursor.next(source, &chunks)? {
        match (key.objectid, key.kind) {
            (DEV_ITEMS, DEV_ITEM) => devices += 1,
            (FIRST_CHUNK_TREE, CHUNK_ITEM) => {
                let mut chunk = Chunk::parse(key.offset, cursor.item()?, geometry)?;
                chunk.state = IN_TREE;
                chunks.insert(&chunk)?;
            }
            _ => return Err(Fault::unsupported("kind of item in the chunk tree")),
        }
    }
    if devices != 1 {
        return Err(superblock::SEVERAL_DEVICES().in_unit("a chunk tree with devices:", devices));
    }
    let mapped: u64 = (0..chunks.len())
        .filter_map(|index| chunks.get(index))
        .fold(0, |sum, chunk| {
            sum.saturating_add(chunk.length_bytes.saturating_mul(chunk.copies()))
        });
    if mapped != geometry.device_used_bytes {
        return Err(Fault::corrupt("chunks and device item disagree").in_unit("bytes", mapped));
    }
    Ok(chunks)
}

/// Refuses a filesystem of which a device is being replaced, now or when it is mounted next (`struct btrfs_dev_replace_item`):
/// what is written goes to the other device as well, and this one alone mounts only as degraded. The start, the end and the
/// suspension of a replacement are commits, so that the item on the disk is right while the filesystem is held.
fn check_replace(
    source: &TreeBlocks,
    chunks: &ChunkMap,
    cursor: &mut TreeCursor,
    device_root: Root,
) -> Result<(), Fault> {
    cursor.seek(source, chunks, device_root, DEV_REPLACE)?;
    if cursor.next(source, chunks)? != Some(DEV_REPLACE) {
        return Ok(());
    }
    // Never started 0, started 1, finished 2, cancelled 3, suspended 4.
    match le::<u64>(cursor.item()?, 32) {
        Some(0 | 2 | 3) => Ok(()),
        Some(_) => Err(Fault::refused(
            "a device of this btrfs is being replaced: wait for the end of it, or cancel it (btrfs replace status|cancel)",
        )),
        None => Err(Fault::corrupt("short item of a replacement")),
    }
}

/// Where the tree with this id starts.
fn find_root(
    source: &TreeBlocks,
    chunks: &ChunkMap,
    cursor: &mut TreeCursor,
    root_tree: Root,
    id: u64,
) -> Result<Root, Fault> {
    let missing = || Fault::corrupt("root item").in_unit("tree", id);
    cursor.seek(source, chunks, root_tree, Key::new(id, ROOT_ITEM, 0))?;
    match cursor.next(source, chunks)? {
        Some(key) if (key.objectid, key.kind) == (id, ROOT_ITEM) => {
            Root::parse(cursor.item()?).ok_or_else(missing)
        }
        _ => Err(missing()),
    }
}
