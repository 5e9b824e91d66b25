//! Files that come out empty: how an image has to differ so that the named files have length 0, nothing of what they held is in it,
//! and the filesystem is as sound as before.
//!
//! As the kernel's truncate does it, in memory: the inode keeps name, owner, mode, times and attributes and loses size, blocks, block
//! map and inline data; its blocks (those of its tree too) are cleared in the bitmaps, counted in descriptors, superblock and quota, and
//! free in the map, so that they come out as zeros. Every checksum on the way is checked before and made anew. All of it happens in a
//! [`OverlaidPart`] over the source, in the frozen window and without the heap; hard links are the same inode, so the second name finds the
//! work done. Refused by name: encrypted files and files under fs-verity; blocks that files share (shared_blocks).
//!
//! | file | concept |
//! | --- | --- |
//! | `names` | from a pattern to files |
//! | `attributes` | inline data |
//! | `deleted` | what deleted files left in their inodes |
//! | `quota` | what an owner uses |

mod attributes;
mod deleted;
mod names;
mod quota;

use super::checksum::of_inode;
use super::groups::{Blocks, Descriptor};
use super::inode::{FLAG_EXTENTS, FLAG_INLINE_DATA, Inode};
use super::superblock::{Geometry, OFFSET_BYTES, Raw, feature};
use super::tree::{HEADER_MAGIC, OwnedBlocks, Visit, visit};
use super::window::{BUFFERS_BYTES, Buffers, MAX_BLOCK_BYTES};
use super::{doubt_all, journal, read_superblock};
use crate::crc::crc32c_raw;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::files::{Emptying, FoundFile};
use crate::fs::{Still, UsedMap, Walk};
use crate::layout::le;
use crate::overlay::OverlaidPart;
use crate::units::{Extent, to_u64, to_usize};
use names::Finder;

/// How much of a bitmap is in memory at a time.
const PIECE: usize = 1024;
/// Largest group descriptor.
const MAX_DESCRIPTOR: usize = 1024;

/// Scratch memory for what is read, for one block and for links.
fn memory<'a>(
    device: &'a dyn ReadAt,
    scratch: &'a mut [u8],
) -> Result<(Buffers<'a>, &'a mut [u8], &'a mut [u8]), Fault> {
    let parts = scratch.split_at_mut_checked(BUFFERS_BYTES);
    let parts = parts.and_then(|(scratch, rest)| {
        let (block, links) = rest.split_at_mut_checked(MAX_BLOCK_BYTES)?;
        Some((Buffers::split(device, scratch)?, block, links))
    });
    parts.ok_or_else(|| Fault::refused("scratch memory"))
}

/// Empties the files that `emptying` names. `map` is what the walk made of the filesystem.
pub(crate) fn empty(
    still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
    layer: &mut OverlaidPart<'_>,
    emptying: &mut Emptying,
) -> Result<(), Fault> {
    let device = walk.device();
    let (raw, geometry) = read_superblock(device)?;
    if raw.has_ro_compat(feature::RO_COMPAT_SHARED_BLOCKS) {
        return Err(Fault::unsupported("files that share their blocks"));
    }
    let (mut buffers, block, links) = memory(device, walk.scratch)?;
    let journal = journal::find(&geometry, &mut buffers)?;
    if let Some(doubt) = doubt_all(&raw, &geometry, still, &buffers, journal.as_ref())? {
        return Err(doubt);
    }
    let mut editor = Editor {
        geometry: &geometry,
        raw: &raw,
        map,
        layer,
        open: None,
        freed: 0,
    };
    let mounted = raw.s_last_mounted;
    let end = mounted.iter().position(|byte| *byte == 0);
    let mounted = mounted
        .get(..end.unwrap_or(mounted.len()))
        .unwrap_or_default();
    let (patterns, log) = (&emptying.patterns, &mut emptying.log);
    let part = editor.layer.part();
    for (index, (pattern, only)) in patterns.iter().enumerate() {
        if only.is_some_and(|only| only != part) {
            continue;
        }
        let ways = [Some(pattern.bytes()), pattern.below(mounted)];
        for path in ways.into_iter().flatten() {
            let mut each =
                |buffers: &mut Buffers<'_>, block: &mut [u8], path: &[u8], file: &Inode| {
                    if editor.file(buffers, block, file)? {
                        log.note(path);
                    }
                    Ok(())
                };
            let mut finder = Finder::new(&geometry, &mut buffers, block, &mut each);
            let found = finder.run(path, links);
            let at = finder.path;
            if found.is_err() {
                log.at = at;
            }
            log.count(index, found?);
        }
    }
    log.freed_bytes = log.freed_bytes.saturating_add(editor.seal()?);
    match emptying.clears_deleted {
        true => deleted::blank(&geometry, &mut buffers, layer),
        false => Ok(()),
    }
}

/// Reads the files that `pattern` names.
pub(crate) fn look(
    walk: &mut Walk<'_>,
    pattern: &[u8],
    give: &mut dyn FnMut(FoundFile<'_>),
) -> Result<(), Fault> {
    let device = walk.device();
    let (raw, geometry) = read_superblock(device)?;
    if raw.has_incompat(feature::INCOMPAT_RECOVER) {
        return Err(Fault::refused("the journal needs recovery"));
    }
    let (mut buffers, block, links) = memory(device, walk.scratch)?;
    let mut each = |buffers: &mut Buffers<'_>, block: &mut [u8], path: &[u8], file: &Inode| {
        let content = match file.is_encrypted() {
            true => None,
            false => {
                let length = names::read(&geometry, buffers, file, block)?;
                Some(block.get(..length).unwrap_or_default())
            }
        };
        give(FoundFile {
            path,
            size_bytes: file.size_bytes,
            content,
        });
        Ok(())
    };
    Finder::new(&geometry, &mut buffers, block, &mut each)
        .run(pattern, links)
        .map(drop)
}

/// A group whose bitmap is being edited.
struct OpenGroup {
    group: u32,
    descriptor: u64,
    bitmap: Extent,
    /// Clusters that were freed since it was opened.
    cleared: u64,
}

struct Editor<'e, 'l> {
    geometry: &'e Geometry,
    raw: &'e Raw,
    map: &'e mut UsedMap,
    layer: &'e mut OverlaidPart<'l>,
    open: Option<OpenGroup>,
    /// Clusters, in all groups.
    freed: u64,
}

impl Editor<'_, '_> {
    /// Empties one file; false when it was empty.
    fn file(
        &mut self,
        buffers: &mut Buffers<'_>,
        block: &mut [u8],
        file: &Inode,
    ) -> Result<bool, Fault> {
        let geometry = self.geometry;
        let unit = |fault: Fault| fault.in_unit("inode", u64::from(file.number));
        let bad = || unit(Fault::corrupt("inode"));
        if file.is_encrypted() {
            return Err(Fault::refused("an encrypted file cannot be emptied"));
        }
        if file.has_verity() {
            return Err(Fault::refused("a file under fs-verity cannot be emptied"));
        }
        let place = Inode::place(geometry, buffers, file.number)?;
        let bytes = block
            .get_mut(..to_usize(geometry.inode_bytes.into()))
            .ok_or_else(bad)?;
        self.layer.read(place, bytes)?;
        let inode = Inode::parse(geometry, file.number, bytes);
        let inode = inode.filter(|inode| inode.is_right).ok_or_else(bad)?;
        let before = self.total();
        if inode.has_map() {
            self.free_blocks(buffers, &inode)?;
        }
        let freed = self.total() - before;
        if inode.size_bytes == 0 && freed == 0 && !inode.is_inline() {
            return Ok(false);
        }
        clear(geometry, self.raw, &inode, bytes, freed).ok_or_else(bad)?;
        self.layer.write(place, bytes)?;
        if freed > 0 {
            let bytes = geometry.block.bytes64() * (freed << geometry.cluster_log2);
            let owners = owners(self.raw, block);
            for (quota, id) in owners.into_iter().filter(|(quota, _)| *quota != 0) {
                quota::release(geometry, buffers, self.layer, quota, id, bytes)?;
            }
        }
        Ok(inode.size_bytes != 0)
    }

    /// Clusters freed so far.
    fn total(&self) -> u64 {
        self.freed + self.open.as_ref().map_or(0, |open| open.cleared)
    }

    fn free_blocks(&mut self, buffers: &mut Buffers<'_>, inode: &Inode) -> Result<(), Fault> {
        let geometry = self.geometry;
        let mut budget = geometry.blocks;
        let mut result = Ok(());
        // The tree itself is not edited, so the source has it.
        let mut each = |run: OwnedBlocks| {
            if result.is_ok() {
                result = self.free(run.blocks);
            }
        };
        let context = Visit {
            geometry,
            device: buffers.device,
            budget: &mut budget,
            each: &mut each,
        };
        visit(inode, context, buffers.tree)?;
        result
    }

    /// Frees blocks of a file, a group at a time.
    fn free(&mut self, run: Blocks) -> Result<(), Fault> {
        let geometry = self.geometry;
        let mut start = run.start;
        let end = run.start.saturating_add(run.count);
        while start < end {
            let group = geometry.group_of(start);
            let group = group.ok_or_else(|| Fault::corrupt("block outside of all groups"))?;
            let here = geometry.group_blocks(group);
            let until = end.min(here.start + here.count);
            if until <= start {
                return Err(Fault::corrupt("block outside of its group"));
            }
            self.free_in_group(group, start - here.start, until - here.start)?;
            start = until;
        }
        Ok(())
    }

    /// Frees the blocks `[start, end)` of a group, counted from its first, with the clusters that they lie in.
    fn free_in_group(&mut self, group: u32, start: u64, end: u64) -> Result<(), Fault> {
        let geometry = self.geometry;
        let unit = |fault: Fault| fault.in_unit("group", u64::from(group));
        if self.open.as_ref().is_none_or(|open| open.group != group) {
            self.close()?;
            self.open = Some(self.open_group(group)?);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let log2 = geometry.cluster_log2;
        let (first, last) = (start >> log2, end.div_ceil(1 << log2));
        let bits = Extent::at(open.bitmap.offset + first / 8, last.div_ceil(8) - first / 8);
        let mut cleared = 0;
        self.layer.edit(bits, &mut |at, piece| {
            for (index, byte) in (at + first / 8..).zip(piece) {
                let from = first.saturating_sub(index * 8).min(8);
                let to = last.saturating_sub(index * 8).min(8);
                let mask = (0..8u64).filter(|bit| (from..to).contains(bit));
                let mask = mask.fold(0u8, |mask, bit| mask | 1 << bit);
                cleared += u64::from((*byte & mask).count_ones());
                *byte &= !mask;
            }
        })?;
        open.cleared += cleared;
        // Two extents may share a cluster; a block alone is never freed twice.
        if log2 == 0 && cleared != last - first {
            return Err(unit(Fault::corrupt("block of a file is marked free")));
        }
        let blocks = geometry.group_blocks(group);
        let (first, last) = (first << log2, (last << log2).min(blocks.count));
        let extent = geometry.extent(blocks.start + first, last - first);
        let extent = extent.ok_or_else(|| unit(Fault::corrupt("blocks of a group")))?;
        self.map.set_free(extent);
        self.clear_edges(extent)
    }

    /// A map coarser than a block may keep the ends of `extent`: they are read, and must be zeros.
    fn clear_edges(&mut self, extent: Extent) -> Result<(), Fault> {
        let mut from = extent.offset;
        while let Some(kept) = self.map.next_used(from, extent.end()) {
            self.layer.edit(kept, &mut |_, piece| piece.fill(0))?;
            from = kept.end();
        }
        Ok(())
    }

    /// Reads descriptor and bitmap of a group and checks that they can be believed.
    fn open_group(&self, group: u32) -> Result<OpenGroup, Fault> {
        let geometry = self.geometry;
        let unit = |what| Fault::corrupt(what).in_unit("group", u64::from(group));
        let place = geometry.descriptor_place(group);
        let place = place.ok_or_else(|| unit("group descriptor"))?;
        let mut bytes = [0; MAX_DESCRIPTOR];
        let bytes = bytes.get_mut(..to_usize(geometry.descriptor_bytes.into()));
        let bytes = bytes.ok_or_else(|| unit("group descriptor"))?;
        self.layer.read(place, bytes)?;
        let descriptor: Descriptor = geometry.parse_descriptor(group, bytes)?;
        let bitmap = geometry.extent(descriptor.block_bitmap, 1);
        let bitmap = bitmap.filter(|_| !descriptor.block_uninit);
        let open = OpenGroup {
            group,
            descriptor: place,
            bitmap: bitmap
                .ok_or_else(|| unit("files in a group whose bitmap was never written"))?,
            cleared: 0,
        };
        let (free, crc) = self.sum(&open)?;
        if crc.is_some_and(|crc| !descriptor.block_bitmap_checksum.fits(crc)) {
            return Err(unit("block bitmap checksum"));
        }
        if free != descriptor.free_clusters {
            return Err(unit("free count of the block bitmap"));
        }
        Ok(open)
    }

    /// The zero bits of a bitmap, and its checksum where those are used.
    fn sum(&self, open: &OpenGroup) -> Result<(u64, Option<u32>), Fault> {
        let geometry = self.geometry;
        let clusters = geometry.group_clusters(open.group);
        let length = geometry.clusters_per_group / 8;
        let mut crc = geometry.checksums.seed();
        let (mut free, mut done) = (0, 0);
        let mut piece = [0; PIECE];
        while done < length {
            let count = to_usize(length - done).min(PIECE);
            let bits = piece.get_mut(..count).unwrap_or_default();
            self.layer.read(open.bitmap.offset + done, bits)?;
            crc = crc.map(|crc| crc32c_raw(crc, bits));
            free += super::bitmap::zeros(bits, clusters.saturating_sub(done * 8));
            done += to_u64(count);
        }
        Ok((free, crc))
    }

    /// Writes count and checksums of the group that is open.
    fn close(&mut self) -> Result<(), Fault> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let geometry = self.geometry;
        let bad = || Fault::corrupt("group descriptor").in_unit("group", u64::from(open.group));
        let (free, crc) = self.sum(&open)?;
        let mut bytes = [0; MAX_DESCRIPTOR];
        let bytes = bytes.get_mut(..to_usize(geometry.descriptor_bytes.into()));
        let bytes = bytes.ok_or_else(bad)?;
        self.layer.read(open.descriptor, bytes)?;
        let free = u32::try_from(free).map_err(|_| bad())?;
        // bg_free_blocks_count, bg_block_bitmap_csum: low halves, and high ones in longer descriptors.
        for (value, low, high) in [(Some(free), 0x0c, 0x2c), (crc, 0x18, 0x38)] {
            let Some(value) = value else {
                continue;
            };
            let [a, b, c, d] = value.to_le_bytes();
            put(bytes, low, &[a, b]).ok_or_else(bad)?;
            if bytes.len() > 32 {
                put(bytes, high, &[c, d]).ok_or_else(bad)?;
            }
        }
        if let Some(sum) = geometry.checksums.of_descriptor(open.group, bytes) {
            put(bytes, 0x1e, &sum.to_le_bytes()).ok_or_else(bad)?;
        }
        self.layer.write(open.descriptor, bytes)?;
        self.freed += open.cleared;
        Ok(())
    }

    /// Writes what is left to write: the last group, the superblock. Gives the bytes that were freed.
    fn seal(mut self) -> Result<u64, Fault> {
        self.close()?;
        if self.freed > 0 {
            self.superblock()?;
        }
        // What differs has to be read, or it would not be laid over anything.
        for extent in self.layer.extents() {
            self.map.set_used(extent);
        }
        Ok((self.freed << self.geometry.cluster_log2) * self.geometry.block.bytes64())
    }

    fn superblock(&mut self) -> Result<(), Fault> {
        let bad = || Fault::corrupt("superblock");
        let mut bytes = [0; Raw::SIZE];
        self.layer.read(OFFSET_BYTES, &mut bytes)?;
        let free = self.raw.free_blocks() + (self.freed << self.geometry.cluster_log2);
        let [a, b, c, d, e, f, g, h] = free.to_le_bytes();
        put(&mut bytes, 0x0c, &[a, b, c, d]).ok_or_else(bad)?;
        if self.raw.has_incompat(feature::INCOMPAT_64BIT) {
            put(&mut bytes, 0x158, &[e, f, g, h]).ok_or_else(bad)?;
        }
        if self.geometry.checksums.seed().is_some() {
            let sum = crc32c_raw(u32::MAX, bytes.get(..0x3fc).ok_or_else(bad)?);
            put(&mut bytes, 0x3fc, &sum.to_le_bytes()).ok_or_else(bad)?;
        }
        self.layer.write(OFFSET_BYTES, &bytes)
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) -> Option<()> {
    let place = bytes.get_mut(offset..)?.get_mut(..value.len())?;
    place.copy_from_slice(value);
    Some(())
}

/// Makes the bytes of an inode those of an empty file that lost `freed` clusters.
fn clear(
    geometry: &Geometry,
    raw: &Raw,
    inode: &Inode,
    bytes: &mut [u8],
    freed: u64,
) -> Option<()> {
    let mut flags = le::<u32>(bytes, 0x20)?;
    if inode.is_inline() {
        let data = attributes::find(bytes)?;
        attributes::remove(bytes, &data)?;
        flags &= !FLAG_INLINE_DATA;
        if raw.has_incompat(feature::INCOMPAT_EXTENTS) {
            flags |= FLAG_EXTENTS;
        }
        put(bytes, 0x20, &flags.to_le_bytes())?;
    }
    // i_size_lo, i_size_high.
    put(bytes, 0x04, &[0; 4])?;
    put(bytes, 0x6c, &[0; 4])?;
    // i_blocks keeps what attributes take.
    let high = geometry.has_huge_file.then(|| le::<u16>(bytes, 0x74));
    let high = u64::from(high.flatten().unwrap_or(0));
    let old = u64::from(le::<u32>(bytes, 0x1c)?) | high << 32;
    let units = match inode.counts_blocks(geometry) {
        true => 1,
        false => geometry.block.bytes64() / 512,
    };
    let left = old.checked_sub((freed << geometry.cluster_log2) * units)?;
    let [a, b, c, d, e, f, ..] = left.to_le_bytes();
    put(bytes, 0x1c, &[a, b, c, d])?;
    if geometry.has_huge_file {
        put(bytes, 0x74, &[e, f])?;
    }
    // i_block: a root without entries, or no pointers.
    put(bytes, 0x28, &[0; 60])?;
    if flags & FLAG_EXTENTS != 0 {
        put(bytes, 0x28, &HEADER_MAGIC.to_le_bytes())?;
        put(bytes, 0x2c, &4u16.to_le_bytes())?;
    }
    if let Some(seed) = inode.seed {
        let (sum, has_high) = of_inode(seed, bytes)?;
        let [a, b, c, d] = sum.to_le_bytes();
        put(bytes, 0x7c, &[a, b])?;
        if has_high {
            put(bytes, 0x82, &[c, d])?;
        }
    }
    Some(())
}

/// The quota files that count a file's blocks, each with the id it counts for; 0 for none.
fn owners(raw: &Raw, inode: &[u8]) -> [(u32, u32); 3] {
    let wide = |low: usize, high: usize| {
        let half = |at| u32::from(le::<u16>(inode, at).unwrap_or(0));
        half(low) | half(high) << 16
    };
    let extra = usize::from(le::<u16>(inode, 0x80).unwrap_or(0));
    let project = match raw.has_ro_compat(feature::RO_COMPAT_PROJECT) && extra >= 32 {
        true => le::<u32>(inode, 0x9c).unwrap_or(0),
        false => 0,
    };
    if !raw.has_ro_compat(feature::RO_COMPAT_QUOTA) {
        return [(0, 0); 3];
    }
    [
        (raw.s_usr_quota_inum, wide(0x02, 0x78)),
        (raw.s_grp_quota_inum, wide(0x18, 0x7a)),
        (raw.s_prj_quota_inum, project),
    ]
}
