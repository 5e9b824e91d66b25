//! All inodes in use: unwritten extents become free, and everything else that a file owns is checked to be used.
//!
//! A file's block that the map calls free is a doubt and becomes used: a bitmap that lies about files is caught here also on
//! filesystems without checksums. Files that are open without a name are like any other.
//!
//! A block of the table in which no inode is in use holds nothing but what deleted files left: their attributes, and with inline_data
//! what was in them. It is free, and an inode in it to which names still lead is a doubt.

use super::bitmap::zeros;
use super::blocks::{ahead_end, is_used};
use super::groups::{Blocks, Descriptor};
use super::inode::Inode;
use super::superblock::Geometry;
use super::tree::{OwnedBlocks, Usage, Visit, visit};
use super::window::{Buffers, ReadWindow, Request};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::UsedMap;
use crate::fs::earlier::EarlierFindings;
use crate::units::to_usize;

/// Inode of the list of bad blocks: nothing in them can be read.
const BAD_BLOCKS: u32 = 1;
/// Inode that maps the blocks reserved for more descriptors: metadata by layout.
const RESIZE: u32 = 7;

/// What a pass does besides checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Frees unwritten extents.
    Free,
    /// Only checks, and marks used what belongs to a file.
    Claim,
}

/// What a pass found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Findings {
    /// Blocks of unwritten extents that were freed.
    pub unwritten_blocks: u64,
    /// Among them some that were used when an earlier walk met all files; or there was none.
    pub is_new: bool,
    /// The first thing that was not as it should be.
    pub doubt: Option<Fault>,
}

impl Findings {
    fn doubt(&mut self, fault: Fault) {
        self.doubt.get_or_insert(fault);
    }
}

/// Goes through all inodes once, but for those of which an earlier walk knows enough.
pub(super) fn pass(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
    pass: Pass,
    known: EarlierFindings<'_>,
) -> Result<Findings, Fault> {
    let mut found = Findings::default();
    // Each tree block is a block of its own: one pass over a sound filesystem cannot meet more of them than blocks.
    let mut budget = geometry.blocks;
    for group in 0..geometry.groups {
        let descriptor = match geometry.descriptor(&mut buffers.descriptors, group) {
            Ok(descriptor) => descriptor,
            Err(fault) => {
                found.doubt(fault.doubted()?);
                continue;
            }
        };
        let unit = |fault: Fault| fault.in_unit("group", u64::from(group));
        if descriptor.inode_uninit {
            if descriptor.free_inodes != geometry.inodes_per_group {
                found.doubt(unit(Fault::corrupt("free count of an unwritten table")));
            }
            continue;
        }
        let bits = match inode_bits(geometry, &mut buffers.inode_bitmaps, &descriptor) {
            Ok(bits) => bits,
            Err(fault) => {
                found.doubt(unit(fault.doubted()?));
                continue;
            }
        };
        let mut scan = Scan {
            geometry,
            device: buffers.device,
            tree: buffers.tree,
            map,
            pass,
            known,
            found: &mut found,
            budget: &mut budget,
        };
        scan.group(group, &descriptor, bits, &mut buffers.inodes)?;
    }
    Ok(found)
}

/// The inode bitmap, after its checks.
pub(super) fn inode_bits<'b>(
    geometry: &Geometry,
    window: &'b mut ReadWindow<'_>,
    descriptor: &Descriptor,
) -> Result<&'b [u8], Fault> {
    let Some(place) = geometry.extent(descriptor.inode_bitmap, 1) else {
        return Err(Fault::corrupt("place of the inode bitmap"));
    };
    let bits = window.get(Request {
        offset: place.offset,
        length_bytes: to_usize(u64::from(geometry.inodes_per_group / 8)),
        ahead_end: ahead_end(geometry, place.offset),
    })?;
    let checksum = descriptor.inode_bitmap_checksum;
    if !geometry.checksums.bitmap_is_right(bits, checksum) {
        return Err(Fault::corrupt("inode bitmap checksum"));
    }
    let all = u64::from(geometry.inodes_per_group);
    if zeros(bits, all) != u64::from(descriptor.free_inodes) {
        return Err(Fault::corrupt("free count of the inode bitmap"));
    }
    let touched = u64::from(descriptor.inodes_touched);
    if zeros(bits, all) - zeros(bits, touched) != all - touched {
        return Err(Fault::corrupt("used inode in the unused table"));
    }
    Ok(bits)
}

/// Frees the blocks of the inode tables in which no inode is in use.
pub(super) fn free_tables(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
) -> Result<(), Fault> {
    for group in 0..geometry.groups {
        let descriptor = geometry.descriptor(&mut buffers.descriptors, group)?;
        let mut free = |first: u64, count: u64| {
            let run = geometry.extent(descriptor.inode_table.saturating_add(first), count);
            run.into_iter().for_each(|extent| map.set_free(extent));
        };
        if descriptor.inode_uninit {
            free(0, geometry.table_blocks());
            continue;
        }
        let bits = inode_bits(geometry, &mut buffers.inode_bitmaps, &descriptor)?;
        for block in 0..geometry.table_blocks() {
            if !is_block_used(geometry, bits, block) {
                free(block, 1);
            }
        }
    }
    Ok(())
}

/// Whether an inode of that block of a group's table is in use.
pub(super) fn is_block_used(geometry: &Geometry, bits: &[u8], block: u64) -> bool {
    let first = block * geometry.inodes_per_block();
    let mut inodes = first..first + geometry.inodes_per_block();
    inodes.any(|index| is_set(bits, index))
}

/// Whether the inode with that index in its group is in use.
pub(super) fn is_set(bits: &[u8], index: u64) -> bool {
    let byte = bits.get(to_usize(index / 8));
    byte.is_some_and(|byte| byte >> (index % 8) & 1 != 0)
}

struct Scan<'s> {
    geometry: &'s Geometry,
    device: &'s dyn ReadAt,
    tree: &'s mut [u8],
    map: &'s mut UsedMap,
    pass: Pass,
    known: EarlierFindings<'s>,
    found: &'s mut Findings,
    budget: &'s mut u64,
}

impl Scan<'_> {
    fn group(
        &mut self,
        group: u32,
        descriptor: &Descriptor,
        bits: &[u8],
        window: &mut ReadWindow<'_>,
    ) -> Result<(), Fault> {
        let geometry = self.geometry;
        let Some(table) = geometry.extent(descriptor.inode_table, geometry.table_blocks()) else {
            return Ok(());
        };
        let inode_bytes = u64::from(geometry.inode_bytes);
        let touched = u64::from(descriptor.inodes_touched);
        let first = u64::from(group) * u64::from(geometry.inodes_per_group) + 1;
        let mut has_used = true;
        for index in 0..touched {
            if index % geometry.inodes_per_block() == 0 {
                let block = index / geometry.inodes_per_block();
                has_used = is_block_used(geometry, bits, block);
                let run = Blocks {
                    start: descriptor.inode_table.saturating_add(block),
                    count: u64::from(has_used),
                };
                if !is_used(geometry, self.map, run) {
                    let fault = Fault::corrupt("inodes in use are marked free");
                    self.found.doubt(fault.in_unit("group", group.into()));
                }
            }
            let offset = table.offset + index * inode_bytes;
            let in_use = is_set(bits, index);
            let is_asked = in_use || !has_used && self.pass == Pass::Free;
            if !is_asked || !self.known.must_read(offset) {
                continue;
            }
            let bytes = window.get(Request {
                offset,
                length_bytes: to_usize(inode_bytes),
                ahead_end: table.offset + touched * inode_bytes,
            })?;
            let number = u32::try_from(first + index).unwrap_or(u32::MAX);
            if !in_use {
                if Inode::has_names(bytes) {
                    let fault = Fault::corrupt("a file is marked free");
                    self.found.doubt(fault.in_unit("inode", number.into()));
                }
                continue;
            }
            let Some(inode) = Inode::parse(geometry, number, bytes) else {
                continue;
            };
            if !matches!(number, BAD_BLOCKS | RESIZE) && inode.owns_blocks() {
                let before = self.found.unwritten_blocks;
                self.inode(&inode)?;
                if self.found.unwritten_blocks > before {
                    self.known.gave(offset);
                }
            }
        }
        Ok(())
    }

    fn inode(&mut self, inode: &Inode) -> Result<(), Fault> {
        let unit = u64::from(inode.number);
        if !inode.is_right {
            let fault = Fault::corrupt("inode checksum");
            self.found.doubt(fault.in_unit("inode", unit));
        }
        if inode.attributes != 0 {
            let run = Blocks {
                start: inode.attributes,
                count: 1,
            };
            claim(self.geometry, self.map, self.found, run, unit);
        }
        if !inode.has_map() {
            return Ok(());
        }
        let may_free = self.pass == Pass::Free && inode.is_right && inode.is_regular();
        let is_journal = inode.number == self.geometry.journal_inode;
        let (geometry, map, found) = (self.geometry, &mut *self.map, &mut *self.found);
        let known = self.known;
        let mut each = |run: OwnedBlocks| match run.usage {
            // Freed by the journal's own rules, except its superblock.
            Usage::Data | Usage::Unwritten if is_journal => {
                if run.logical == 0 {
                    let first = Blocks {
                        start: run.blocks.start,
                        count: 1,
                    };
                    claim(geometry, map, found, first, unit);
                }
            }
            Usage::Unwritten if may_free => {
                if let Some(extent) = geometry.extent(run.blocks.start, run.blocks.count) {
                    map.set_free(extent);
                    found.is_new |= !known.was_free(extent);
                    found.unwritten_blocks += run.blocks.count;
                }
            }
            Usage::Unwritten => {}
            Usage::Data | Usage::Tree => claim(geometry, map, found, run.blocks, unit),
        };
        let context = Visit {
            geometry,
            device: self.device,
            budget: self.budget,
            each: &mut each,
        };
        if let Err(fault) = visit(inode, context, self.tree) {
            self.found.doubt(fault.doubted()?);
        }
        Ok(())
    }
}

/// What a file owns must be used: where it is not, that is a doubt, and it becomes used.
fn claim(geometry: &Geometry, map: &mut UsedMap, found: &mut Findings, run: Blocks, inode: u64) {
    if is_used(geometry, map, run) {
        return;
    }
    let fault = Fault::corrupt("blocks of a file are marked free");
    found.doubt(fault.in_unit("inode", inode));
    if let Some(extent) = geometry.extent(run.start, run.count) {
        map.set_used(extent);
    }
}
