//! The quota files: what an owner uses becomes less by what was freed.
//!
//! A quota file is a tree of blocks of 1 KiB: four levels of 256 pointers, one for each byte of the id, then blocks with entries. Only
//! the space of an entry that is there is changed, so the tree stays as it is (the file still exists, so its owner still has an
//! entry). Source: the kernel's fs/quota/quotaio_v2.h and quota_tree.h, which describe format "vfsv1".

use super::names::places;
use crate::error::Fault;
use crate::fs::ext::inode::Inode;
use crate::fs::ext::superblock::Geometry;
use crate::fs::ext::window::Buffers;
use crate::layout::le;
use crate::overlay::OverlaidPart;
use crate::units::to_u64;

const BLOCK_BYTES: u64 = 1024;
const LEVELS: u32 = 4;
/// Block of the tree's root.
const ROOT: u32 = 1;
/// `struct qt_disk_dqdbheader`, before the entries of a block.
const HEADER_BYTES: usize = 16;
const ENTRIES: usize = 14;

crate::layout! {
    /// `struct v2_disk_dqheader`.
    le struct Header: 8 {
        0x4 dqh_version: u32,
    }
}

crate::layout! {
    /// `struct v2r1_disk_dqblk`.
    le struct Entry: 72 {
        0x00 dqb_id: u32,
        0x08 dqb_ihardlimit: u64,
        0x30 dqb_curspace: u64,
    }
}
const CURSPACE: u64 = 0x30;

/// Takes `bytes` from what `id` uses according to the quota file `number`.
pub(super) fn release(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    layer: &mut OverlaidPart<'_>,
    number: u32,
    id: u32,
    bytes: u64,
) -> Result<(), Fault> {
    let bad = || Fault::corrupt("quota file").in_unit("inode", number.into());
    let file = Inode::read(geometry, buffers, number)?;
    let mut block = [0; 1024];
    let mut load = |layer: &OverlaidPart<'_>, index: u32, block: &mut [u8; 1024]| {
        let place = place(geometry, buffers, &file, index)?.ok_or_else(bad)?;
        layer.read(place, block)?;
        Ok::<u64, Fault>(place)
    };
    load(layer, 0, &mut block)?;
    let header = Header::parse(&block).ok_or_else(bad)?;
    if header.dqh_version != 1 {
        return Err(Fault::unsupported("version of the quota file").in_unit("inode", number.into()));
    }
    let mut index = ROOT;
    for level in 0..LEVELS {
        load(layer, index, &mut block)?;
        let byte = usize::from(
            id.to_be_bytes()
                .get(usize::try_from(level).unwrap_or(0))
                .copied()
                .ok_or_else(bad)?,
        );
        index = le::<u32>(&block, byte * 4)
            .filter(|next| *next > ROOT)
            .ok_or_else(bad)?;
    }
    let place = load(layer, index, &mut block)?;
    for slot in 0..ENTRIES {
        let at = HEADER_BYTES + slot * Entry::SIZE;
        let entry = block.get(at..).and_then(Entry::parse).ok_or_else(bad)?;
        // An unused entry is all zeros, and so would be root's without the file that we are about.
        if entry.dqb_id == id && (id != 0 || entry.dqb_curspace != 0 || entry.dqb_ihardlimit != 0) {
            let left = entry.dqb_curspace.checked_sub(bytes).ok_or_else(bad)?;
            let offset = place.saturating_add(to_u64(at)).saturating_add(CURSPACE);
            return layer.write(offset, &left.to_le_bytes());
        }
    }
    Err(bad())
}

/// Where a block of the quota file lies, in bytes.
fn place(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    file: &Inode,
    index: u32,
) -> Result<Option<u64>, Fault> {
    let offset = u64::from(index) * BLOCK_BYTES;
    let block = geometry.block.bytes64();
    let mut found = [0];
    places(geometry, buffers, file, offset / block, &mut found)?;
    let [start] = found;
    Ok((start != 0).then(|| start * block + offset % block))
}
