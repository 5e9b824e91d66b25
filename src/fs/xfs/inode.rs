//! Inodes: where the unwritten extents are, and whether any file claims what the free-space trees call free.
//!
//! An unwritten extent reads as zeros whatever its blocks hold, and they may hold what somebody deleted; so its blocks are free
//! in the map. No other file can share them: reflink remaps written extents only (fs/xfs/xfs_reflink.c leaves a hole for the
//! others). A written extent found in free space contradicts the trees: its blocks are used, and the group is in doubt.
//! Never reads file contents, directories or attributes.

use super::btree::{EXTENTS, INODES, LEVELS_MAX, Space, Walker};
use super::group::Group;
use super::superblock::{Geometry, checksum_holds};
use super::{Findings, STACK_BYTES};
use crate::error::Fault;
use crate::layout::be;
use crate::units::{Extent, to_usize};

crate::layout! {
    /// `struct xfs_dinode`, the part that every version has.
    be struct Dinode: 100 {
        0x00 di_magic: u16,
        0x02 di_mode: u16,
        0x04 di_version: u8,
        0x05 di_format: u8,
        0x18 di_big_nextents: u64,
        0x4c di_nextents: u32,
        0x52 di_forkoff: u8,
        0x5a di_flags: u16,
    }
}

crate::layout! {
    /// What version 3 inodes add.
    be struct Dinode3: 176 {
        0x64 di_crc: u32,
        0x78 di_flags2: u64,
        0x98 di_ino: u64,
        0xa0 di_uuid: [u8; 16],
    }
}

const INODE_MAGIC: u16 = 0x494e;
const MODE_TYPE: u16 = 0xf000;
const MODE_REGULAR: u16 = 0x8000;
const FLAG_REALTIME: u16 = 1;
const FLAG2_NREXT64: u64 = 1 << 4;
const FORMAT_EXTENTS: u8 = 2;
const FORMAT_BTREE: u8 = 3;

const INODES_A_CHUNK: u32 = 64;
const RECORD_BYTES: usize = 16;
/// One chunk of the largest inodes.
pub(super) const CHUNK_BYTES: usize = 64 * 2048;

/// Memory of the pass, cut from the walk's scratch memory.
pub(super) struct Scratch<'a> {
    /// A path through an inode tree.
    pub inodes: &'a mut [u8],
    /// A path through an extent tree.
    pub extents: &'a mut [u8],
    /// A chunk of inodes.
    pub chunk: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    /// Cuts `memory` into the three; `None` when it is too small.
    pub(super) fn cut(memory: &'a mut [u8]) -> Option<Self> {
        let (inodes, rest) = memory.split_at_mut_checked(STACK_BYTES)?;
        let (extents, rest) = rest.split_at_mut_checked(STACK_BYTES)?;
        let chunk = rest.get_mut(..CHUNK_BYTES)?;
        Some(Self {
            inodes,
            extents,
            chunk,
        })
    }
}

/// A chunk of 64 inodes as its record describes it.
#[derive(Clone, Copy)]
struct InodeChunk {
    first: u32,
    /// Bit set: four inodes that do not exist.
    holes: u16,
    /// Bit set: the inode is free.
    free: u64,
}

impl InodeChunk {
    fn parse(record: &[u8], sparse: bool) -> Option<Self> {
        Some(Self {
            first: be(record, 0)?,
            holes: if sparse { be(record, 4)? } else { 0 },
            free: be(record, 8)?,
        })
    }

    fn is_allocated(&self, index: u32) -> bool {
        self.free >> index & 1 == 0 && self.holes >> (index / 4) & 1 == 0
    }
}

/// An extent as a record of a fork describes it.
#[derive(Clone, Copy)]
struct Mapping {
    file_block: u64,
    start: u64,
    count: u64,
    unwritten: bool,
}

impl Mapping {
    /// `struct xfs_bmbt_rec`: 1 bit unwritten, 54 file block, 52 start, 21 count.
    fn parse(record: &[u8]) -> Option<Self> {
        let (high, low): (u64, u64) = (be(record, 0)?, be(record, 8)?);
        Some(Self {
            file_block: high << 1 >> 10,
            start: (high & 0x1ff) << 43 | low >> 21,
            count: low & 0x1f_ffff,
            unwritten: high >> 63 != 0,
        })
    }
}

/// Visits every allocated inode of the group.
pub(super) fn walk_group(
    group: &Group<'_>,
    scratch: &mut Scratch<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), Fault> {
    let agi = group.agi(scratch.chunk)?;
    let geometry = group.geometry;
    let mut budget = u64::from(geometry.ag_length(group.ag));
    let place = (INODES, Space::Group(group.ag));
    let mut walker = Walker::new(geometry, group.device, place, scratch.inodes, &mut budget);
    let (chunk_bytes, stack) = (&mut *scratch.chunk, &mut *scratch.extents);
    let mut end = 0u32;
    walker.subtree(
        agi.agi_root.into(),
        to_usize(agi.agi_level.into()),
        &mut |block| {
            group.expect_used(block.offset, findings.map)?;
            for record in block.records.chunks_exact(RECORD_BYTES) {
                let fault = || Fault::corrupt("inode chunk");
                let chunk = InodeChunk::parse(record, geometry.sparse_inodes).ok_or_else(fault)?;
                if chunk.first < end {
                    return Err(fault());
                }
                end = chunk.first.checked_add(INODES_A_CHUNK).ok_or_else(fault)?;
                let fork = ForkWalk {
                    group,
                    stack: &mut *stack,
                    findings: &mut *findings,
                };
                walk_chunk(chunk, &mut *chunk_bytes, fork)?;
            }
            Ok(())
        },
    )?;
    walker.finish()
}

/// Reads a chunk and visits its allocated inodes.
fn walk_chunk(
    chunk: InodeChunk,
    buffer: &mut [u8],
    mut fork: ForkWalk<'_, '_>,
) -> Result<(), Fault> {
    if (0..INODES_A_CHUNK).all(|index| !chunk.is_allocated(index)) {
        return Ok(());
    }
    let (group, geometry) = (fork.group, fork.group.geometry);
    let fault = || Fault::corrupt("inode chunk").in_unit("AG", group.ag.into());
    // Inodes fill their blocks, so an inode's number times its size is its offset in the group.
    let size = u64::from(geometry.inode_bytes);
    let extent = group.extent();
    let offset = extent.offset + u64::from(chunk.first) * size;
    // A sparse chunk may reach past the end of the group with inodes that do not exist.
    let length = (u64::from(INODES_A_CHUNK) * size).min(extent.end().saturating_sub(offset));
    let last = offset + length.saturating_sub(1);
    let known = fork.findings.known;
    if !known.must_read(offset) && !known.must_read(last) {
        return Ok(());
    }
    fork.findings.freed = false;
    let bytes = buffer.get_mut(..to_usize(length)).ok_or_else(fault)?;
    group.device.read_at(offset, bytes)?;
    for (index, inode) in (0u32..).zip(bytes.chunks_exact(to_usize(size))) {
        if !chunk.is_allocated(index) {
            continue;
        }
        let place = offset + u64::from(index) * size;
        if !fork.findings.map.is_used(place) {
            return Err(Fault::corrupt("inode in free space").at(place, size));
        }
        let number = u64::from(group.ag) << (geometry.ag_block_log2 + geometry.inodes_log2)
            | u64::from(chunk.first + index);
        if let Err(fault) = fork.walk_inode(number, inode) {
            let doubt = fault.doubted()?.in_unit("inode", number);
            fork.findings.verdict.doubt(doubt);
        }
    }
    if fork.findings.freed {
        known.gave(offset);
        known.gave(last);
    }
    let present = (0..INODES_A_CHUNK).filter(|index| chunk.is_allocated(*index));
    if present
        .max()
        .is_some_and(|last| u64::from(last) >= length / size)
    {
        return Err(fault());
    }
    Ok(())
}

struct ForkWalk<'a, 'f> {
    group: &'a Group<'a>,
    stack: &'a mut [u8],
    findings: &'a mut Findings<'f>,
}

/// What of an inode concerns its data fork.
struct Fork<'i> {
    format: u8,
    regular: bool,
    extents: u64,
    bytes: &'i [u8],
}

/// The data fork of an inode; `None` when the inode's bytes are not what they must be.
fn parse_fork<'i>(geometry: &Geometry, number: u64, inode: &'i [u8]) -> Option<Fork<'i>> {
    let core = Dinode::parse(inode)?;
    if core.di_magic != INODE_MAGIC {
        return None;
    }
    let mut core_bytes = Dinode::SIZE;
    let mut extents = u64::from(core.di_nextents);
    if geometry.checksums {
        let more = Dinode3::parse(inode)?;
        let intact = core.di_version == 3
            && more.di_ino == number
            && more.di_uuid == geometry.uuid
            && checksum_holds(inode, Dinode3::di_crc);
        if !intact {
            return None;
        }
        core_bytes = Dinode3::SIZE;
        if more.di_flags2 & FLAG2_NREXT64 != 0 {
            extents = core.di_big_nextents;
        }
    }
    let rest = inode.get(core_bytes..)?;
    let bytes = match core.di_forkoff {
        0 => rest,
        eighths => rest.get(..usize::from(eighths) * 8)?,
    };
    let ours = core.di_flags & FLAG_REALTIME == 0;
    Some(Fork {
        format: if ours { core.di_format } else { 0 },
        regular: core.di_mode & MODE_TYPE == MODE_REGULAR,
        extents,
        bytes,
    })
}

impl ForkWalk<'_, '_> {
    fn walk_inode(&mut self, number: u64, inode: &[u8]) -> Result<(), Fault> {
        let fault = || Fault::corrupt("inode");
        let fork = parse_fork(self.group.geometry, number, inode).ok_or_else(fault)?;
        match fork.format {
            FORMAT_EXTENTS => {
                let length = usize::try_from(fork.extents)
                    .ok()
                    .and_then(|n| n.checked_mul(16));
                let records = length.and_then(|n| fork.bytes.get(..n)).ok_or_else(fault)?;
                self.mappings(records, fork.regular, &mut 0).map(|_| ())
            }
            FORMAT_BTREE => self.walk_tree(number, &fork),
            _ => Ok(()),
        }
    }

    /// A fork whose root node lies in the inode (`struct xfs_bmdr_block`).
    fn walk_tree(&mut self, number: u64, fork: &Fork<'_>) -> Result<(), Fault> {
        let fault = || Fault::corrupt("extent btree root");
        let levels = usize::from(be::<u16>(fork.bytes, 0).ok_or_else(fault)?);
        let count = usize::from(be::<u16>(fork.bytes, 2).ok_or_else(fault)?);
        let capacity = fork.bytes.len().saturating_sub(4) / 16;
        if levels == 0 || levels >= LEVELS_MAX || count == 0 || count > capacity {
            return Err(fault());
        }
        let group = self.group;
        let mut budget = self.findings.budget;
        let stack = core::mem::take(&mut self.stack);
        let place = (EXTENTS, Space::Inode(number));
        let mut walker = Walker::new(group.geometry, group.device, place, stack, &mut budget);
        let (mut end, mut seen) = (0, 0);
        let mut result = Ok(());
        for index in 0..count {
            let pointer = be::<u64>(fork.bytes, 4 + capacity * 8 + index * 8);
            result = match pointer {
                None => Err(fault()),
                Some(root) => walker.subtree(root, levels, &mut |block| {
                    group.expect_used(block.offset, self.findings.map)?;
                    seen += self.mappings(block.records, fork.regular, &mut end)?;
                    Ok(())
                }),
            };
            if result.is_err() {
                break;
            }
        }
        let finished = walker.finish();
        self.stack = stack;
        self.findings.budget = budget;
        result.and(finished)?;
        if seen == fork.extents {
            Ok(())
        } else {
            Err(fault())
        }
    }

    /// Takes the records of a fork, in file order from file block `end`; gives their number.
    fn mappings(&mut self, records: &[u8], regular: bool, end: &mut u64) -> Result<u64, Fault> {
        let fault = || Fault::corrupt("file extent");
        let geometry = self.group.geometry;
        let mut seen = 0;
        for record in records.chunks_exact(16) {
            let mapping = Mapping::parse(record).ok_or_else(fault)?;
            // No file has a group's headers, the first of which is the superblock.
            let is_behind = |(_, block)| block >= geometry.header_blocks();
            let is_possible = geometry.split(mapping.start).is_some_and(is_behind);
            let extent = geometry
                .extent(mapping.start, mapping.count)
                .filter(|_| is_possible && mapping.count != 0 && mapping.file_block >= *end)
                .ok_or_else(fault)?;
            *end = mapping.file_block.saturating_add(mapping.count);
            seen += 1;
            self.mapping(extent, mapping.unwritten, regular)?;
        }
        Ok(seen)
    }

    fn mapping(&mut self, extent: Extent, unwritten: bool, regular: bool) -> Result<(), Fault> {
        let map = &mut *self.findings.map;
        if map.next_used(extent.offset, extent.end()) != Some(extent) {
            map.set_used(extent);
            return Err(
                Fault::corrupt("file extent in free space").at(extent.offset, extent.length_bytes)
            );
        }
        let geometry = self.group.geometry;
        // What stands in a group that is in doubt is used, whoever says otherwise.
        let believed = geometry
            .group_of(extent.offset)
            .is_some_and(|ag| !self.findings.doubted.contains(ag));
        if unwritten && regular && geometry.unwritten && believed {
            map.set_free(extent);
            self.findings.freed = true;
            self.findings.is_new |= !self.findings.known.was_free(extent);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_record_is_unpacked_bit_by_bit() {
        let high: u64 = 1 << 63 | 0x1234_5678_9abc << 9 | 0x155;
        let low: u64 = 0x2_aaaa_aaaa << 21 | 0x1f_fff0;
        let mut record = [0; 16];
        record[..8].copy_from_slice(&high.to_be_bytes());
        record[8..].copy_from_slice(&low.to_be_bytes());
        let mapping = Mapping::parse(&record).unwrap();
        assert!(mapping.unwritten);
        assert_eq!(mapping.file_block, 0x1234_5678_9abc);
        assert_eq!(mapping.start, 0x155 << 43 | 0x2_aaaa_aaaa);
        assert_eq!(mapping.count, 0x1f_fff0);
    }

    #[test]
    fn a_chunk_has_only_inodes_that_are_neither_free_nor_in_a_hole() {
        let mut record = [0; 16];
        record[..4].copy_from_slice(&64u32.to_be_bytes());
        record[4..6].copy_from_slice(&0x8000u16.to_be_bytes());
        record[8..].copy_from_slice(&0b101u64.to_be_bytes());
        let chunk = InodeChunk::parse(&record, true).unwrap();
        let present: Vec<u32> = (0..64).filter(|index| chunk.is_allocated(*index)).collect();
        assert_eq!(present.first(), Some(&1));
        assert_eq!((present.len(), present.last()), (58, Some(&59)));
        // Without sparse chunks these bytes are part of a counter.
        assert!(InodeChunk::parse(&record, false).unwrap().is_allocated(63));
    }
}
