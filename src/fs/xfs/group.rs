//! One allocation group: its headers, its two free-space trees, and the free list of the allocator.
//!
//! What both trees say is free, is free, provided that they agree with each other and with the AGF in count, extents and longest
//! extent, and that nothing which the group needs lies in it. Blocks of the AGFL belong to the allocator, hold nothing, and are
//! written before they are first used: they are free too (a mount and `xfs_repair -n` are content with zeros there).

use super::btree::{Block, FREE_BY_BLOCK, FREE_BY_SIZE, Shape, Space, Walker};
use super::superblock::{Geometry, SECTOR_BYTES_MAX, checksum_holds};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout::be;
use crate::map::UsedMap;
use crate::units::{Extent, to_usize};

crate::layout! {
    /// `struct xfs_agf`.
    be struct Agf: 224 {
        0x00 agf_magicnum: u32,
        0x04 agf_versionnum: u32,
        0x08 agf_seqno: u32,
        0x0c agf_length: u32,
        0x10 agf_bno_root: u32,
        0x14 agf_cnt_root: u32,
        0x1c agf_bno_level: u32,
        0x20 agf_cnt_level: u32,
        0x28 agf_flfirst: u32,
        0x2c agf_fllast: u32,
        0x30 agf_flcount: u32,
        0x34 agf_freeblks: u32,
        0x38 agf_longest: u32,
        0x40 agf_uuid: [u8; 16],
        0xd8 agf_crc: u32,
    }
}

crate::layout! {
    /// `struct xfs_agi`, without its last version 5 fields.
    be pub(super) struct Agi: 320 {
        0x00 agi_magicnum: u32,
        0x04 agi_versionnum: u32,
        0x08 agi_seqno: u32,
        0x0c agi_length: u32,
        0x14 agi_root: u32,
        0x18 agi_level: u32,
        0x128 agi_uuid: [u8; 16],
        0x138 agi_crc: u32,
    }
}

crate::layout! {
    /// `struct xfs_agfl`, version 5 only; version 4 has no header.
    be struct Agfl: 36 {
        0x00 agfl_magicnum: u32,
        0x04 agfl_seqno: u32,
        0x08 agfl_uuid: [u8; 16],
        0x20 agfl_crc: u32,
    }
}

const AGF_MAGIC: u32 = 0x5841_4746;
const AGI_MAGIC: u32 = 0x5841_4749;
const AGFL_MAGIC: u32 = 0x5841_464c;

/// Sectors of the headers, counted from the start of the group.
const AGF_SECTOR: u32 = 1;
const AGI_SECTOR: u32 = 2;
const AGFL_SECTOR: u32 = 3;

/// What the functions here work on.
pub(super) struct Group<'a> {
    /// The filesystem's shape.
    pub geometry: &'a Geometry,
    /// Where it is read from.
    pub device: &'a dyn ReadAt,
    /// The group's number.
    pub ag: u32,
}

/// Totals of a free-space tree. The digest does not depend on the order of the extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TreeTotals {
    extents: u64,
    blocks: u64,
    longest: u32,
    digest: u64,
}

impl TreeTotals {
    fn add(&mut self, start: u32, count: u32) {
        let mixed = (u64::from(start) << 32 | u64::from(count)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.extents += 1;
        self.blocks += u64::from(count);
        self.longest = self.longest.max(count);
        self.digest = self
            .digest
            .wrapping_add((mixed ^ (mixed >> 29)).wrapping_mul(0xff51_afd7_ed55_8ccd));
    }
}

/// The records of a free-space leaf: start and count.
fn free_records(block: &Block<'_>) -> impl Iterator<Item = (u32, u32)> {
    block
        .records
        .chunks_exact(8)
        .map_while(|record| Some((be::<u32>(record, 0)?, be::<u32>(record, 4)?)))
}

impl Group<'_> {
    /// The whole group in bytes.
    pub(super) fn extent(&self) -> Extent {
        let length = u64::from(self.geometry.ag_length(self.ag)) << self.geometry.block.log2();
        Extent::at(self.geometry.offset(self.ag, 0), length)
    }

    fn length(&self) -> u32 {
        self.geometry.ag_length(self.ag)
    }

    /// The four sectors of the headers, superblock copy included.
    pub(super) fn header_extent(&self) -> Extent {
        Extent::at(
            self.geometry.offset(self.ag, 0),
            4 * u64::from(self.geometry.sector_bytes),
        )
    }

    /// Reads header sector `number` into `buffer`.
    fn sector<'b>(&self, number: u32, buffer: &'b mut [u8]) -> Result<&'b [u8], Fault> {
        let length = self.geometry.sector_bytes;
        let sector = buffer
            .get_mut(..to_usize(length.into()))
            .ok_or_else(|| Fault::refused("scratch memory"))?;
        let offset = self.geometry.offset(self.ag, 0) + u64::from(number * length);
        self.device.read_at(offset, sector)?;
        Ok(sector)
    }

    fn intact(&self, sector: &[u8], uuid: &[u8; 16], crc_offset: usize) -> bool {
        !self.geometry.checksums
            || (*uuid == self.geometry.uuid && checksum_holds(sector, crc_offset))
    }

    fn agf(&self, buffer: &mut [u8]) -> Result<Agf, Fault> {
        let sector = self.sector(AGF_SECTOR, buffer)?;
        Agf::parse(sector)
            .filter(|agf| {
                agf.agf_magicnum == AGF_MAGIC
                    && agf.agf_versionnum == 1
                    && agf.agf_seqno == self.ag
                    && agf.agf_length == self.length()
                    && self.intact(sector, &agf.agf_uuid, Agf::agf_crc)
            })
            .ok_or_else(|| Fault::corrupt("AGF"))
    }

    /// The header of the inode trees, checked.
    pub(super) fn agi(&self, buffer: &mut [u8]) -> Result<Agi, Fault> {
        let sector = self.sector(AGI_SECTOR, buffer)?;
        Agi::parse(sector)
            .filter(|agi| {
                agi.agi_magicnum == AGI_MAGIC
                    && agi.agi_versionnum == 1
                    && agi.agi_seqno == self.ag
                    && agi.agi_length == self.length()
                    && self.intact(sector, &agi.agi_uuid, Agi::agi_crc)
            })
            .ok_or_else(|| Fault::corrupt("AGI"))
    }

    /// Marks free what is free in this group. After a fault the map says nothing about the group: the caller sets it used.
    pub(super) fn mark_free(&self, stack: &mut [u8], map: &mut UsedMap) -> Result<(), Fault> {
        let agf = self.agf(stack)?;
        let by_block = self.mark_by_block(&agf, stack, map)?;
        let by_size = self.check_by_size(&agf, stack, map)?;
        let agrees = by_block == by_size
            && by_block.blocks == u64::from(agf.agf_freeblks)
            && by_block.longest == agf.agf_longest;
        if !agrees {
            return Err(Fault::corrupt("free-space trees and AGF disagree"));
        }
        // A second look at the first tree, now that the map is complete: its blocks must not be in it.
        self.tree(FREE_BY_BLOCK, &agf, stack, &mut |block| {
            self.expect_used(block.offset, map)
        })
    }

    fn tree(
        &self,
        shape: Shape,
        agf: &Agf,
        stack: &mut [u8],
        visit: &mut super::btree::Visit<'_>,
    ) -> Result<(), Fault> {
        let (root, levels) = if shape.what == FREE_BY_BLOCK.what {
            (agf.agf_bno_root, agf.agf_bno_level)
        } else {
            (agf.agf_cnt_root, agf.agf_cnt_level)
        };
        let mut budget = u64::from(self.length());
        let place = (shape, Space::Group(self.ag));
        let mut walker = Walker::new(self.geometry, self.device, place, stack, &mut budget);
        walker.subtree(root.into(), to_usize(levels.into()), visit)?;
        walker.finish()
    }

    /// Fails when the block at `offset`, which the group needs, is marked free.
    pub(super) fn expect_used(&self, offset: u64, map: &UsedMap) -> Result<(), Fault> {
        if map.is_used(offset) {
            return Ok(());
        }
        let length = self.geometry.block.bytes64();
        Err(Fault::corrupt("metadata in free space").at(offset, length))
    }

    fn mark_by_block(
        &self,
        agf: &Agf,
        stack: &mut [u8],
        map: &mut UsedMap,
    ) -> Result<TreeTotals, Fault> {
        let fault = || Fault::corrupt("free extent");
        let mut totals = TreeTotals::default();
        let mut end = self.geometry.header_blocks();
        self.tree(FREE_BY_BLOCK, agf, stack, &mut |block| {
            for (start, count) in free_records(block) {
                let extent = self
                    .geometry
                    .ag_extent(self.ag, start, count)
                    .ok_or_else(fault)?;
                if count == 0 || start < end {
                    return Err(fault().at(extent.offset, extent.length_bytes));
                }
                end = start + count;
                totals.add(start, count);
                map.set_free(extent);
            }
            Ok(())
        })?;
        Ok(totals)
    }

    fn check_by_size(
        &self,
        agf: &Agf,
        stack: &mut [u8],
        map: &UsedMap,
    ) -> Result<TreeTotals, Fault> {
        let mut totals = TreeTotals::default();
        let mut previous = (0, 0);
        self.tree(FREE_BY_SIZE, agf, stack, &mut |block| {
            self.expect_used(block.offset, map)?;
            for (start, count) in free_records(block) {
                if (count, start) <= previous {
                    return Err(Fault::corrupt("order of free space by size"));
                }
                previous = (count, start);
                totals.add(start, count);
            }
            Ok(())
        })?;
        Ok(totals)
    }

    /// Marks the blocks of the free list. A fault leaves those that remain used, and nothing else in doubt.
    pub(super) fn mark_free_list(&self, buffer: &mut [u8], map: &mut UsedMap) -> Result<(), Fault> {
        let fault = || Fault::corrupt("AGFL");
        let agf = self.agf(buffer)?;
        let sector = self.sector(AGFL_SECTOR, buffer)?;
        let header = if self.geometry.checksums {
            Agfl::parse(sector)
                .filter(|agfl| {
                    agfl.agfl_magicnum == AGFL_MAGIC
                        && agfl.agfl_seqno == self.ag
                        && self.intact(sector, &agfl.agfl_uuid, Agfl::agfl_crc)
                })
                .ok_or_else(fault)?;
            Agfl::SIZE
        } else {
            0
        };
        let slots = u32::try_from((sector.len() - header) / 4).map_err(|_| fault())?;
        let (first, last, count) = (agf.agf_flfirst, agf.agf_fllast, agf.agf_flcount);
        if first >= slots || last >= slots || count > slots {
            return Err(fault());
        }
        // Old kernels on 64 bit had one slot less (`xfs_agfl_needs_reset`); the count then fits only without a wrap.
        let active = if last >= first {
            last - first + 1
        } else {
            slots - first + last + 1
        };
        if count != 0 && active != count {
            return Err(fault());
        }
        for index in 0..count {
            let slot = (first + index) % slots;
            let block = be::<u32>(sector, header + 4 * to_usize(slot.into())).ok_or_else(fault)?;
            let extent = self
                .geometry
                .ag_extent(self.ag, block, 1)
                .filter(|extent| {
                    block >= self.geometry.header_blocks() && map.is_used(extent.offset)
                })
                .ok_or_else(fault)?;
            map.set_free(extent);
        }
        Ok(())
    }
}

const _: () = assert!(SECTOR_BYTES_MAX <= super::STACK_BYTES);
