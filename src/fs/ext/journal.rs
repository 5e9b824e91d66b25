//! The internal journal: where it lies, and whether its superblock says that it is empty.
//!
//! An empty journal holds nothing that recovery would read; its blocks (not its superblock) may come out as zeros.
//! Source: the kernel's Documentation/filesystems/ext4 (journal.rst); all its fields are big-endian.

use super::groups::Blocks;
use super::inode::Inode;
use super::superblock::Geometry;
use super::tree::{OwnedBlocks, Usage, Visit, visit};
use super::window::Buffers;
use crate::crc::crc32c_raw;
use crate::error::Fault;
use crate::fs::UsedMap;

crate::layout! {
    /// `struct journal_superblock_s`.
    be struct Raw: 1024 {
        0x00 h_magic: u32,
        0x04 h_blocktype: u32,
        0x0c s_blocksize: u32,
        0x10 s_maxlen: u32,
        0x1c s_start: u32,
        0x20 s_errno: u32,
        0x28 s_feature_incompat: u32,
        0x50 s_checksum_type: u8,
        0xfc s_checksum: u32,
    }
}

/// `h_magic`.
const MAGIC: u32 = 0xc03b_3998;
/// Revoke records, 64 bit, asynchronous commit, checksums 2 and 3, fast commit.
const INCOMPAT_KNOWN: u32 = 0x3f;
const INCOMPAT_CHECKSUMS: u32 = 0x18;

/// A journal inside the filesystem.
#[derive(Clone, Copy, Debug)]
pub(super) struct Journal {
    /// Its inode.
    pub inode: Inode,
    /// Block of its superblock.
    pub superblock: u64,
}

/// Finds the journal, if there is one.
pub(super) fn find(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
) -> Result<Option<Journal>, Fault> {
    if geometry.journal_inode == 0 {
        return Ok(None);
    }
    let inode = Inode::read(geometry, buffers, geometry.journal_inode)?;
    let bad = || Fault::corrupt("journal inode");
    if !inode.is_regular() || !inode.has_map() {
        return Err(bad());
    }
    let mut first = None;
    for_each_run(geometry, buffers, &inode, &mut |run| {
        if run.usage == Usage::Data && run.logical == 0 {
            first = Some(run.blocks.start);
        }
    })?;
    let superblock = first.ok_or_else(bad)?;
    Ok(Some(Journal { inode, superblock }))
}

fn for_each_run(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    inode: &Inode,
    each: &mut dyn FnMut(OwnedBlocks),
) -> Result<(), Fault> {
    let mut budget = geometry.blocks;
    let context = Visit {
        geometry,
        device: buffers.device,
        budget: &mut budget,
        each,
    };
    visit(inode, context, buffers.tree)
}

/// `Ok(None)` when the journal's superblock says that it is empty and without error; `Ok(Some)` says why not.
pub(super) fn doubt(
    geometry: &Geometry,
    buffers: &Buffers<'_>,
    journal: &Journal,
) -> Result<Option<Fault>, Fault> {
    let Some(place) = geometry.extent(journal.superblock, 1) else {
        return Ok(Some(Fault::corrupt("journal superblock")));
    };
    let mut bytes = [0; Raw::SIZE];
    buffers.device.read_at(place.offset, &mut bytes)?;
    Ok(judge(geometry, &bytes).err())
}

fn judge(geometry: &Geometry, bytes: &[u8; Raw::SIZE]) -> Result<(), Fault> {
    let bad = || Fault::corrupt("journal superblock");
    let raw = Raw::parse(bytes).ok_or_else(bad)?;
    if raw.h_magic != MAGIC
        || !matches!(raw.h_blocktype, 3 | 4)
        || raw.s_blocksize != geometry.block.bytes()
        || raw.s_maxlen == 0
    {
        return Err(bad());
    }
    if raw.h_blocktype == 4 {
        if raw.s_feature_incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Fault::unsupported("unknown journal feature"));
        }
        if raw.s_feature_incompat & INCOMPAT_CHECKSUMS != 0 && !checksum_is_right(&raw, bytes) {
            return Err(Fault::corrupt("journal superblock checksum"));
        }
    }
    if raw.s_start != 0 {
        return Err(Fault::refused("the journal is not empty"));
    }
    if raw.s_errno != 0 {
        return Err(Fault::refused("the journal records an error"));
    }
    Ok(())
}

fn checksum_is_right(raw: &Raw, bytes: &[u8; Raw::SIZE]) -> bool {
    let (Some(before), Some(after)) = (bytes.get(..0xfc), bytes.get(0x100..)) else {
        return false;
    };
    let crc = crc32c_raw(crc32c_raw(u32::MAX, before), &[0; 4]);
    raw.s_checksum_type == 4 && crc32c_raw(crc, after) == raw.s_checksum
}

/// Marks the journal's blocks free, except its superblock and the blocks of its tree.
pub(super) fn free(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    journal: &Journal,
    map: &mut UsedMap,
) -> Result<(), Fault> {
    for_each_run(geometry, buffers, &journal.inode, &mut |run| {
        let OwnedBlocks {
            usage,
            logical,
            mut blocks,
        } = run;
        if usage == Usage::Tree {
            return;
        }
        if logical == 0 {
            blocks = Blocks {
                start: blocks.start + 1,
                count: blocks.count - 1,
            };
        }
        if let Some(extent) = geometry.extent(blocks.start, blocks.count) {
            map.set_free(extent);
        }
    })
}
