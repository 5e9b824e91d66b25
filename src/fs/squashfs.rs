//! squashfs: the superblock states how many bytes the filesystem has; what lies behind them is not its own.
//!
//! Source: the format's structure in fs/squashfs/squashfs_fs.h. Behind a squashfs there may live something else in the same
//! partition (a dm-verity tree, an OpenWrt overlay): where that is recognised, everything is read.

use heapless::String;

use super::{Identity, Kind, Reader, Still, UsedMap, Verdict, Walk, read_array};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::{Extent, round_up};

/// This reader's row.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Squashfs],
    probe,
    walk: Some(walk),
    witness,
};

layout! {
    le struct Superblock: 96 {
        0x00 s_magic: [u8; 4],
        0x08 mkfs_time: u32,
        0x0c block_size: u32,
        0x16 block_log: u16,
        0x1c s_major: u16,
        0x1e s_minor: u16,
        0x28 bytes_used: u64,
    }
}

/// Length and time of a version 4.0 filesystem.
fn parse(bytes: &[u8]) -> Option<Superblock> {
    Superblock::parse(bytes)
        .filter(|sb| sb.s_magic == *b"hsqs" && (sb.s_major, sb.s_minor) == (4, 0))
        .filter(|sb| (12..=20).contains(&sb.block_log) && sb.block_size == 1 << sb.block_log)
        .filter(|sb| (96..=1 << 62).contains(&sb.bytes_used))
}

/// Older versions and the big-endian ones: recognised, not mapped.
fn is_old(bytes: &[u8]) -> bool {
    Superblock::parse(bytes).is_some_and(|sb| {
        let little = sb.s_magic == *b"hsqs" && (1..=3).contains(&sb.s_major);
        let big = sb.s_magic == *b"sqsh" && (1..=4).contains(&sb.s_major.swap_bytes());
        little || big
    })
}

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some(bytes) = read_array::<96>(device, 0)? else {
        return Ok(None);
    };
    let sb = parse(&bytes);
    if sb.is_none() && !is_old(&bytes) {
        return Ok(None);
    }
    Ok(Some(Identity {
        kind: Kind::Squashfs,
        size_bytes: sb.map_or(0, |sb| sb.bytes_used),
        block_bytes: 1024,
        used_bytes: sb.map(|sb| sb.bytes_used),
        uuid: String::new(),
        label: String::new(),
        last_mounted: String::new(),
        last_written_s: sb.map(|sb| u64::from(sb.mkfs_time)),
        superblock: Extent {
            offset: 0,
            length_bytes: 512,
        },
        devices: 1,
    }))
}

fn walk(
    _identity: &Identity,
    _still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    let mut bytes = [0u8; 96];
    walk.read(0, &mut bytes)?;
    match parse(&bytes) {
        Some(sb) => free_behind(walk.device(), sb.bytes_used, map),
        None => Ok(Verdict::whole(Fault::unsupported(
            "squashfs older than 4.0 or big-endian",
        ))),
    }
}

fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    walk.witness_extent(identity.superblock)
}

/// Marks free what lies behind a read-only filesystem of `end` bytes, unless something known lives there.
pub(super) fn free_behind(
    device: &dyn ReadAt,
    end: u64,
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    if let Some(what) = tail(device, end)? {
        return Ok(Verdict::whole(Fault::unsupported(what)));
    }
    let length_bytes = map.size_bytes().saturating_sub(end);
    map.set_free(Extent {
        offset: end.min(map.size_bytes()),
        length_bytes,
    });
    Ok(Verdict::USED)
}

/// What else uses the rest of the partition, by the places such things are put at.
pub(super) fn tail(device: &dyn ReadAt, end: u64) -> Result<Option<&'static str>, Fault> {
    // veritysetup's superblock, appended at a multiple of its hash block.
    for unit in [512, 1024, 4096] {
        let place = round_up(end, unit).unwrap_or(u64::MAX);
        if read_array::<8>(device, place)?.is_some_and(|magic| magic == *b"verity\0\0") {
            return Ok(Some("a dm-verity tree follows the filesystem"));
        }
    }
    // Android Verified Boot: a footer in the last 64 bytes points to hash tree and signature.
    if let Some(place) = device.size_bytes().checked_sub(64)
        && read_array::<4>(device, place)?.is_some_and(|magic| magic == *b"AVBf")
    {
        return Ok(Some("an AVB footer follows the filesystem"));
    }
    // OpenWrt keeps its overlay behind the root, at the next 64 KiB (package/libs/libfstools, rootdisk.c).
    let place = round_up(end, 64 * 1024).unwrap_or(u64::MAX);
    if let Some(bytes) = read_array::<2048>(device, place)? {
        let at = |offset: usize, magic: &[u8]| {
            bytes
                .get(offset..)
                .is_some_and(|rest| rest.starts_with(magic))
        };
        let overlay = at(0x400, &[0x10, 0x20, 0xf5, 0xf2]) // f2fs
            || at(0x438, &[0x53, 0xef]) // ext
            || at(0, &[0x85, 0x19]) // JFFS2, either order
            || at(0, &[0x19, 0x85])
            || at(0, &[0xde, 0xad, 0xc0, 0xde]); // not formatted yet
        if overlay {
            return Ok(Some("an overlay follows the filesystem"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Coverage, SCRATCH_BYTES};
    use crate::units::{BlockSize, to_u64, to_usize};

    fn image(bytes_used: u64, size: usize) -> Vec<u8> {
        let mut disk = vec![0x11u8; size];
        disk[..96].fill(0);
        disk[..4].copy_from_slice(b"hsqs");
        disk[0x0c..0x10].copy_from_slice(&(1u32 << 17).to_le_bytes());
        disk[0x16] = 17;
        disk[0x1c] = 4;
        disk[0x28..0x30].copy_from_slice(&bytes_used.to_le_bytes());
        disk
    }

    #[allow(clippy::ptr_arg)] // a slice is no `dyn ReadAt`
    fn walked(disk: &Vec<u8>) -> (Verdict, UsedMap) {
        let identity = crate::fs::probe(disk).unwrap().unwrap();
        assert_eq!(identity.kind, Kind::Squashfs);
        let block = BlockSize::from_bytes(u64::from(identity.block_bytes)).unwrap();
        let mut map = UsedMap::new(to_u64(disk.len()), block).unwrap();
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut work = Walk::new(disk, &mut scratch);
        let verdict = walk(&identity, Still::ReadOnly, &mut work, &mut map).unwrap();
        (verdict, map)
    }

    #[test]
    fn only_the_stated_length_is_used() {
        let (verdict, map) = walked(&image(100_001, 1 << 20));
        assert_eq!(verdict.coverage, Coverage::Used);
        assert_eq!(map.used_bytes(), 98 * 1024);
        let (_, map) = walked(&image(1 << 40, 1 << 20));
        assert_eq!(map.used_bytes(), 1 << 20);
    }

    #[test]
    fn what_is_appended_to_the_filesystem_is_read_too() {
        let append = |at: usize, magic: &[u8]| {
            let mut disk = image(100_001, 1 << 20);
            disk[at..at + magic.len()].copy_from_slice(magic);
            let (verdict, map) = walked(&disk);
            assert_eq!(verdict.coverage, Coverage::Whole, "{at}");
            assert_eq!(map.used_bytes(), 1 << 20);
        };
        append(102_400, b"verity\0\0");
        append((1 << 20) - 64, b"AVBf");
        append(131_072 + 0x438, &[0x53, 0xef]);
        append(131_072, &[0xde, 0xad, 0xc0, 0xde]);
    }

    #[test]
    fn older_versions_are_recognised_and_read_whole() {
        let mut disk = image(100_001, 1 << 18);
        disk[0x1c] = 3;
        let (verdict, map) = walked(&disk);
        assert_eq!(verdict.coverage, Coverage::Whole);
        assert_eq!(to_usize(map.used_bytes()), disk.len());
        disk[0x1c] = 9;
        assert!(probe(&disk).unwrap().is_none());
    }
}
