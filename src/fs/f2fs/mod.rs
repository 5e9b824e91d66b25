//! f2fs: which blocks are used.
//!
//! The newest valid checkpoint pack says which copy of each SIT block counts and carries the SIT entries that were not yet written
//! back (the journal). An entry has a bit for each block of its segment and their number; both must agree, the sums must agree
//! with the checkpoint, and a segment that contradicts itself is used. Everything before the main area is used, and so are the
//! segments that the logs are writing to: recovery looks for its traces there. A filesystem that was not unmounted may hold
//! fsynced blocks that no checkpoint knows of; so without an unmount mark in the checkpoint the map is believed only when we
//! froze it (the freeze writes a checkpoint and leaves nothing behind it). Nothing here recovers or writes.
//!
//! [`witness`] reads both superblocks and the first and last blocks of both checkpoint packs: each checkpoint, and the second
//! freeze of somebody who thawed is one as soon as anything changed, gives one of them a new version.
//!
//! Structures: include/linux/f2fs_fs.h and fs/f2fs/{checkpoint,segment}.c of the kernel.

mod checkpoint;
mod sit;
mod superblock;
#[cfg(test)]
mod tests;

use self::checkpoint::{check_state, newest_pack};
use self::sit::mark;
use self::superblock::FEATURES_KNOWN;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::features;
use crate::fs::{Identity, Kind, Reader, Verdict, Walk, WalkTask, uuid_text};
use crate::layout::le;
use crate::map::UsedMap;
use crate::units::Extent;

/// The reader's row in the table.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::F2fs],
    probe,
    walk: if features::F2FS { Some(walk) } else { None },
    witness,
};

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some((disk, layout)) = superblock::read(device)? else {
        return Ok(None);
    };
    let mut block = [0; 4096];
    let pack = if layout.block_length() <= block.len() && device.size_bytes() >= layout.size_bytes()
    {
        newest_pack(device, &layout, &mut block)?
    } else {
        None
    };
    let used = pack.and_then(|pack| {
        pack.checkpoint
            .valid_block_count
            .checked_add(u64::from(layout.main))
            .filter(|blocks| *blocks <= layout.blocks)
    });
    let named = disk
        .devs
        .chunks_exact(68)
        .filter(|device| device.first() != Some(&0));
    Ok(Some(Identity {
        size_bytes: layout.size_bytes(),
        block_bytes: layout.block.bytes(),
        max_sector_bytes: layout.block.bytes(),
        used_bytes: used.map(|blocks| layout.offset(blocks)),
        uuid: uuid_text(&disk.uuid),
        label: label(&disk.volume_name),
        devices: u32::try_from(named.count()).unwrap_or(0).max(1),
        // Both copies: either makes it look valid.
        ..Identity::new(Kind::F2fs, 0, 2 * layout.block.bytes64())
    }))
}

/// UTF-16 up to the first NUL, control characters as `?`.
fn label(name: &[u8; 1024]) -> heapless::String<256> {
    let mut out = heapless::String::new();
    let units = name
        .chunks_exact(2)
        .map_while(|pair| le::<u16>(pair, 0))
        .take_while(|unit| *unit != 0);
    for letter in char::decode_utf16(units) {
        let letter = letter.ok().filter(|letter| !letter.is_control());
        if out.push(letter.unwrap_or('?')).is_err() {
            break;
        }
    }
    out
}

fn walk(task: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let device = walk.device();
    if task.identity.devices > 1 {
        return Err(Fault::refused("an f2fs that spans several devices"));
    }
    let (_, layout) = superblock::read(device)?.ok_or_else(|| Fault::corrupt("superblock"))?;
    let unknown = layout.feature & !FEATURES_KNOWN;
    if unknown != 0 {
        return Err(Fault::unsupported("unknown f2fs feature").in_unit("bits", unknown.into()));
    }
    let size = layout.size_bytes();
    if size > device.size_bytes() || size > map.size_bytes() {
        return Err(Fault::corrupt("filesystem size"));
    }
    let pack = newest_pack(device, &layout, walk.scratch)?;
    let pack = pack.ok_or_else(|| Fault::corrupt("both checkpoints"))?;
    check_state(&pack.checkpoint, task.still)?;
    mark(device, &layout, &pack, walk.scratch, map)
}

fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    let device = walk.device();
    walk.witness_extent(identity.superblock)?;
    let Some((_, layout)) = superblock::read(device)? else {
        return Ok(());
    };
    for start in layout.packs() {
        // The whole pack's head: checkpoint block, and the blocks its version bitmaps may continue in.
        let head = u64::from(layout.payload) + 1;
        walk.witness_extent(Extent::at(layout.offset(start), layout.offset(head)))?;
    }
    Ok(())
}
