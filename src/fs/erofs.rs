//! EROFS: the superblock states how many blocks the filesystem has; it is written once and never changes.
//!
//! Source: fs/erofs/erofs_fs.h. Doubt (a feature bit that is not known, a wrong checksum) reads everything; data on further
//! devices is refused, because this device alone is no filesystem.

use super::squashfs::free_behind;
use super::{
    Identity, Kind, Reader, UsedMap, Verdict, Walk, WalkTask, read_array, text, uuid_text,
    witness_superblock,
};
use crate::crc::crc32c_raw;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::{BlockSize, to_u64};

/// This reader's row.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Erofs],
    probe,
    walk: Some(walk),
    witness: witness_superblock,
};

/// Where the superblock stands, in bytes.
const SUPER_OFFSET: u64 = 1024;
/// feature_compat: the superblock's block has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// feature_incompat: zero padding, big clusters, chunked files, device table or second algorithm, tail packing, fragments,
/// attribute prefixes. All others (48-bit block counts among them) are unknown here.
const INCOMPAT_KNOWN: u32 = 0x7f;

layout! {
    le struct Superblock: 128 {
        0x00 magic: u32,
        0x04 checksum: u32,
        0x08 feature_compat: u32,
        0x0c blkszbits: u8,
        0x0e root_nid: u16,
        0x18 build_time: u64,
        0x24 blocks: u32,
        0x28 meta_blkaddr: u32,
        0x30 uuid: [u8; 16],
        0x40 volume_name: [u8; 16],
        0x50 feature_incompat: u32,
        0x56 extra_devices: u16,
    }
}

impl Superblock {
    fn read(bytes: &[u8]) -> Option<(Self, BlockSize)> {
        let sb = Self::parse(bytes).filter(|sb| sb.magic == 0xe0f5_e1e2)?;
        let block = BlockSize::from_log2(u32::from(sb.blkszbits)).filter(|b| b.log2() <= 16)?;
        Some((sb, block))
    }

    fn size_bytes(&self, block: BlockSize) -> u64 {
        u64::from(self.blocks) << block.log2()
    }

    /// Where the root directory's inode ends (fs/erofs/internal.h, erofs_iloc: slots of 32 bytes from `meta_blkaddr` on), the
    /// shortest that a filesystem with this superblock can be.
    fn root_end(&self, block: BlockSize) -> u64 {
        let slots = (u64::from(self.root_nid) + 1) * 32;
        (u64::from(self.meta_blkaddr) << block.log2()).saturating_add(slots)
    }

    fn is_known(&self) -> bool {
        self.feature_incompat & !INCOMPAT_KNOWN == 0
    }
}

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some(bytes) = read_array::<128>(device, SUPER_OFFSET)? else {
        return Ok(None);
    };
    let Some((sb, block)) = Superblock::read(&bytes) else {
        return Ok(None);
    };
    let size_bytes = if sb.is_known() {
        sb.size_bytes(block)
    } else {
        0
    };
    // Images of the first tools count no blocks.
    if size_bytes != 0 && size_bytes < sb.root_end(block) {
        return Err(Fault::corrupt("EROFS that ends before its root directory").at(0x424, 4));
    }
    Ok(Some(Identity {
        size_bytes,
        block_bytes: block.bytes(),
        max_sector_bytes: block.bytes(),
        used_bytes: Some(size_bytes).filter(|size| *size != 0),
        uuid: uuid_text(&sb.uuid),
        label: text(&sb.volume_name),
        last_written_s: Some(sb.build_time),
        devices: u32::from(sb.extra_devices) + 1,
        ..Identity::new(Kind::Erofs, SUPER_OFFSET, 512)
    }))
}

fn walk(_: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let mut bytes = [0u8; 128];
    walk.read(SUPER_OFFSET, &mut bytes)?;
    let changed = || Fault::corrupt("superblock changed");
    let (sb, block) = Superblock::read(&bytes).ok_or_else(changed)?;
    if !sb.is_known() {
        return Err(Fault::unsupported("unknown EROFS feature bits"));
    }
    if sb.extra_devices != 0 {
        return Err(Fault::refused("EROFS with data on further devices"));
    }
    if sb.feature_compat & COMPAT_CHECKSUM != 0 && !checksum_holds(walk, &sb, block)? {
        return Err(Fault::corrupt("superblock checksum"));
    }
    // Images of the first tools count no blocks; a filesystem ends behind its superblock at the least.
    let end = sb.size_bytes(block);
    if end < SUPER_OFFSET + to_u64(Superblock::SIZE) {
        return Err(Fault::corrupt("block count"));
    }
    free_behind(walk.device(), end, map)
}

/// The checksum covers the rest of the superblock's block with its own field as zeros (fs/erofs/super.c,
/// erofs_superblock_csum_verify).
fn checksum_holds(walk: &mut Walk<'_>, sb: &Superblock, block: BlockSize) -> Result<bool, Fault> {
    let device = walk.device();
    let length = match usize::try_from(block.bytes()).unwrap_or(usize::MAX) {
        bytes if bytes > 1024 => bytes - 1024,
        bytes => bytes,
    };
    let Some(buffer) = walk.scratch.get_mut(..length) else {
        return Err(Fault::refused("scratch memory"));
    };
    device.read_at(SUPER_OFFSET, buffer)?;
    if let Some(field) = buffer.get_mut(4..8) {
        field.fill(0);
    }
    Ok(crc32c_raw(u32::MAX, buffer) == sb.checksum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::walked;
    use crate::fs::{Coverage, Still};

    fn image(size: usize) -> Vec<u8> {
        let mut disk = vec![0u8; size];
        disk[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
        disk[1024 + 0x08] = 1;
        disk[1024 + 0x0c] = 12;
        disk[1024 + 0x24] = 5;
        let crc = crc32c_raw(u32::MAX, &disk[1024..4096]);
        disk[1028..1032].copy_from_slice(&crc.to_le_bytes());
        disk
    }

    #[allow(clippy::ptr_arg)] // a slice is no `dyn ReadAt`
    fn coverage(disk: &Vec<u8>) -> (Coverage, u64) {
        let (verdict, map) = walked(disk, Still::ReadOnly).unwrap();
        (verdict.coverage, map.used_bytes())
    }

    #[test]
    fn the_block_count_bounds_what_is_used() {
        assert_eq!(coverage(&image(1 << 20)), (Coverage::Used, 5 * 4096));
    }

    #[test]
    fn a_wrong_checksum_or_an_unknown_feature_reads_everything() {
        for at in [1024 + 0x24, 1024 + 0x51, 1024 + 2000] {
            let mut disk = image(1 << 20);
            disk[at] ^= 1;
            assert_eq!(coverage(&disk), (Coverage::Whole, 1 << 20), "{at:#x}");
        }
    }

    #[test]
    fn a_block_count_in_which_the_root_has_no_room_is_corrupt() {
        for (block, good) in [(4u8, true), (5, false), (200, false)] {
            let mut disk = image(1 << 20);
            disk[1024 + 0x28] = block;
            assert_eq!(crate::fs::probe(&disk).is_ok(), good, "{block}");
        }
    }

    #[test]
    fn data_on_further_devices_is_refused() {
        let mut disk = image(1 << 20);
        disk[1024 + 0x56] = 1;
        let fault = walked(&disk, Still::ReadOnly).unwrap_err();
        assert_eq!(fault.kind(), crate::error::FaultKind::Refused);
    }
}
