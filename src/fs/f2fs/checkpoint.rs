//! The two checkpoint packs: which one counts, and whether its state allows a map.

use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::Still;
use crate::fs::f2fs::superblock::{Layout, MAGIC, SEGMENT_BLOCKS, checksum};
use crate::layout::le;

crate::layout! {
    /// `struct f2fs_checkpoint`, without its version bitmap.
    le pub(crate) struct Checkpoint: 192 {
        0x00 checkpoint_ver: u64,
        0x10 valid_block_count: u64,
        0x24 cur_node_segno: [u8; 32],
        0x54 cur_data_segno: [u8; 32],
        0x84 ckpt_flags: u32,
        0x88 cp_pack_total_block_count: u32,
        0x8c cp_pack_start_sum: u32,
        0x90 valid_node_count: u32,
        0x9c sit_ver_bitmap_bytesize: u32,
        0xa0 nat_ver_bitmap_bytesize: u32,
        0xa4 checksum_offset: u32,
    }
}

pub(super) const CP_UNMOUNT: u32 = 0x0001;
pub(super) const CP_COMPACT_SUMMARIES: u32 = 0x0004;
const CP_ERROR: u32 = 0x0008;
const CP_NEEDS_FSCK: u32 = 0x0010;
pub(super) const CP_FASTBOOT: u32 = 0x0020;
pub(super) const CP_LARGE_NAT_BITMAP: u32 = 0x0400;
const CP_DISABLED: u32 = 0x1000;
const CP_DISABLED_QUICK: u32 = 0x2000;
const CP_RESIZING: u32 = 0x4000;

/// The bytes of a checkpoint that counts, and where its pack begins.
#[derive(Clone, Copy)]
pub(super) struct Pack {
    pub start: u64,
    pub checkpoint: Checkpoint,
}

/// One of the two blocks that a pack's checkpoint stands in, if its checksum holds.
fn checkpoint_block(
    device: &dyn ReadAt,
    layout: &Layout,
    block: u64,
    buffer: &mut [u8],
) -> Result<Option<Checkpoint>, Fault> {
    let bytes = buffer
        .get_mut(..layout.block_length())
        .ok_or_else(|| Fault::refused("scratch memory"))?;
    device.read_at(layout.offset(block), bytes)?;
    Ok(parse_checkpoint(bytes))
}

pub(super) fn parse_checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    let checkpoint = Checkpoint::parse(bytes)?;
    let at = usize::try_from(checkpoint.checksum_offset).ok()?;
    let last = bytes.len() - 4;
    if !(Checkpoint::SIZE..=last).contains(&at) {
        return None;
    }
    let mut crc = checksum(MAGIC, bytes.get(..at)?);
    if at < last {
        crc = checksum(crc, bytes.get(at + 4..)?);
    }
    (le::<u32>(bytes, at)? == crc).then_some(checkpoint)
}

/// The newest pack whose first and last block agree.
pub(super) fn newest_pack(
    device: &dyn ReadAt,
    layout: &Layout,
    buffer: &mut [u8],
) -> Result<Option<Pack>, Fault> {
    let mut newest: Option<Pack> = None;
    for start in layout.packs() {
        let Some(first) = checkpoint_block(device, layout, start, buffer)? else {
            continue;
        };
        let total = first.cp_pack_total_block_count;
        if !(2..=SEGMENT_BLOCKS).contains(&total) {
            continue;
        }
        let end = start + u64::from(total) - 1;
        let last = checkpoint_block(device, layout, end, buffer)?;
        if last.is_none_or(|last| last.checkpoint_ver != first.checkpoint_ver) {
            continue;
        }
        // Versions may wrap: the difference counts; of equals the first pack (`ver_after`).
        let newer = newest.is_none_or(|newest| {
            let version = newest.checkpoint.checkpoint_ver;
            (1..1 << 63).contains(&first.checkpoint_ver.wrapping_sub(version))
        });
        if newer {
            newest = Some(Pack {
                start,
                checkpoint: first,
            });
        }
    }
    Ok(newest)
}

/// Whether the checkpoint's state allows a map.
pub(super) fn check_state(checkpoint: &Checkpoint, still: Still) -> Result<(), Fault> {
    let flags = checkpoint.ckpt_flags;
    if flags & (CP_DISABLED | CP_DISABLED_QUICK) != 0 {
        return Err(Fault::refused(
            "an f2fs mounted with checkpoint=disable: nothing written since is safe",
        ));
    }
    if flags & (CP_ERROR | CP_NEEDS_FSCK) != 0 {
        return Err(Fault::corrupt("the filesystem says it needs fsck.f2fs"));
    }
    if flags & CP_RESIZING != 0 {
        return Err(Fault::unsupported("a resize was interrupted"));
    }
    if !matches!(still, Still::Frozen | Still::Glimpse) && flags & CP_UNMOUNT == 0 {
        return Err(Fault::corrupt(
            "not cleanly unmounted: mount the filesystem once to recover it",
        ));
    }
    Ok(())
}
