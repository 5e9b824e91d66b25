//! squashfs: the superblock states how many bytes the filesystem has; what lies behind them is not its own.
//!
//! Source: the format's structure in fs/squashfs/squashfs_fs.h. Behind a squashfs there may live something else in the same
//! partition (a dm-verity tree, an OpenWrt overlay): where that is recognised, everything is read.

use super::{
    Identity, Kind, Reader, UsedMap, Verdict, Walk, WalkTask, read_array, witness_superblock,
};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::{Extent, round_up};

/// This reader's row.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Squashfs],
    probe,
    walk: Some(walk),
    witness: witness_superblock,
};

layout! {
    le struct Superblock: 96 {
        0x00 s_magic: [u8; 4],
        0x04 inodes: u32,
        0x08 mkfs_time: u32,
        0x0c block_size: u32,
        0x10 fragments: u32,
        0x16 block_log: u16,
        0x1a no_ids: u16,
        0x1c s_major: u16,
        0x1e s_minor: u16,
        0x28 bytes_used: u64,
        0x30 id_table_start: u64,
        0x38 xattr_id_table_start: u64,
        0x40 inode_table_start: u64,
        0x48 directory_table_start: u64,
        0x50 fragment_table_start: u64,
        0x58 lookup_table_start: u64,
    }
}

/// A table that is not there (SQUASHFS_INVALID_BLK).
const NO_TABLE: u64 = u64::MAX;
/// Bytes of metadata that one block of a table unpacks to (SQUASHFS_METADATA_SIZE).
const METADATA_BYTES: u64 = 8192;

/// Where the last of the tables ends. Its own end is the filesystem's (fs/squashfs/id.c and xattr_id.c insist on that), so that
/// a `bytes_used` that was damaged shows.
fn tables_end(device: &dyn ReadAt, sb: &Superblock) -> Result<u64, Fault> {
    // An index of one pointer of 8 bytes for each metadata block of `count` records.
    let index = |count: u64, record: u64| count.saturating_mul(record).div_ceil(METADATA_BYTES) * 8;
    let xattrs = match sb.xattr_id_table_start {
        NO_TABLE => 0,
        // struct squashfs_xattr_id_table: where the names are, how many, and 4 bytes unused.
        start => match read_array::<16>(device, start)? {
            Some([_, _, _, _, _, _, _, _, a, b, c, d, ..]) => {
                16 + index(u32::from_le_bytes([a, b, c, d]).into(), 16)
            }
            None => 16,
        },
    };
    let tables = [
        (sb.inode_table_start, 0),
        (sb.directory_table_start, 0),
        (sb.fragment_table_start, index(sb.fragments.into(), 16)),
        (sb.lookup_table_start, index(sb.inodes.into(), 8)),
        (sb.id_table_start, index(sb.no_ids.into(), 4)),
        (sb.xattr_id_table_start, xattrs),
    ];
    let ends = tables.iter().filter(|(start, _)| *start != NO_TABLE);
    let ends = ends.map(|(start, length)| start.saturating_add(*length));
    Ok(ends.max().unwrap_or(0))
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
    if let Some(sb) = &sb
        && tables_end(device, sb)? > sb.bytes_used
    {
        return Err(Fault::corrupt("squashfs that ends before its own tables").at(0x28, 8));
    }
    Ok(Some(Identity {
        size_bytes: sb.map_or(0, |sb| sb.bytes_used),
        block_bytes: 1024,
        used_bytes: sb.map(|sb| sb.bytes_used),
        last_written_s: sb.map(|sb| u64::from(sb.mkfs_time)),
        // Read in whatever blocks the device has (sb_min_blocksize in fs/squashfs/super.c).
        ..Identity::new(Kind::Squashfs, 0, 512)
    }))
}

fn walk(_: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let mut bytes = [0u8; 96];
    walk.read(0, &mut bytes)?;
    let old = || Fault::unsupported("squashfs older than 4.0 or big-endian");
    let sb = parse(&bytes).ok_or_else(old)?;
    free_behind(walk.device(), sb.bytes_used, map)
}

/// Marks free what lies behind a read-only filesystem of `end` bytes, unless something known lives there.
pub(super) fn free_behind(
    device: &dyn ReadAt,
    end: u64,
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    if let Some(what) = tail(device, end)? {
        return Err(Fault::unsupported(what));
    }
    map.set_free(Extent::between(end, map.size_bytes()));
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
    use crate::fs::testing::walked;
    use crate::fs::{Coverage, Still};
    use crate::units::to_usize;

    fn image(bytes_used: u64, size: usize) -> Vec<u8> {
        let mut disk = vec![0x11u8; size];
        disk[..96].fill(0);
        disk[..4].copy_from_slice(b"hsqs");
        disk[0x0c..0x10].copy_from_slice(&(1u32 << 17).to_le_bytes());
        disk[0x16] = 17;
        disk[0x1a] = 1;
        disk[0x1c] = 4;
        disk[0x28..0x30].copy_from_slice(&bytes_used.to_le_bytes());
        // The index of ids stands last, and there is nothing else.
        disk[0x30..0x38].copy_from_slice(&(bytes_used - 8).to_le_bytes());
        disk[0x38..0x60].fill(0xff);
        disk
    }

    #[test]
    fn a_length_in_which_the_tables_have_no_room_is_corrupt() {
        let whole = image(100_001, 1 << 20);
        let put = |at: usize, number: u64| {
            let mut disk = whole.clone();
            disk[at..at + 8].copy_from_slice(&number.to_le_bytes());
            crate::fs::probe(&disk)
        };
        for short in [100_000, 96, 100_001 / 2] {
            let fault = put(0x28, short).unwrap_err();
            assert_eq!(fault.kind(), crate::error::FaultKind::Corrupt, "{short}");
        }
        assert!(put(0x28, 100_009).is_ok());
        for table in [0x30, 0x38, 0x40, 0x48, 0x50, 0x58] {
            assert!(put(table, 100_002).is_err(), "{table:#x}");
        }
        // Xattrs: 16 bytes of head, and a pointer for each 512 of them.
        let mut disk = whole.clone();
        disk[0x30..0x38].copy_from_slice(&90_000u64.to_le_bytes());
        let start = 100_001 - 16 - 16u64;
        disk[0x38..0x40].copy_from_slice(&start.to_le_bytes());
        for (count, good) in [(513u32, true), (1024, true), (1025, false)] {
            let at = to_usize(start) + 8;
            disk[at..at + 4].copy_from_slice(&count.to_le_bytes());
            assert_eq!(crate::fs::probe(&disk).is_ok(), good, "{count}");
        }
        // As many fragments and exported inodes as fit, and one more.
        for (count_at, table_at, record) in [(0x10, 0x50, 16), (0x04, 0x58, 8)] {
            let mut disk = whole.clone();
            disk[table_at..table_at + 8].copy_from_slice(&(100_001 - 16u64).to_le_bytes());
            for (count, good) in [(16_384 / record, true), (16_384 / record + 1, false)] {
                disk[count_at..count_at + 4].copy_from_slice(&u32::to_le_bytes(count));
                assert_eq!(crate::fs::probe(&disk).is_ok(), good, "{count}");
            }
        }
    }

    #[test]
    fn only_the_stated_length_is_used() {
        let (verdict, map) = walked(&image(100_001, 1 << 20), Still::ReadOnly).unwrap();
        assert_eq!(verdict.coverage, Coverage::Used);
        assert_eq!(map.used_bytes(), 98 * 1024);
        let (_, map) = walked(&image(1 << 40, 1 << 20), Still::ReadOnly).unwrap();
        assert_eq!(map.used_bytes(), 1 << 20);
    }

    #[test]
    fn what_is_appended_to_the_filesystem_is_read_too() {
        let append = |at: usize, magic: &[u8]| {
            let mut disk = image(100_001, 1 << 20);
            disk[at..at + magic.len()].copy_from_slice(magic);
            let (verdict, map) = walked(&disk, Still::ReadOnly).unwrap();
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
        let (verdict, map) = walked(&disk, Still::ReadOnly).unwrap();
        assert_eq!(verdict.coverage, Coverage::Whole);
        assert_eq!(to_usize(map.used_bytes()), disk.len());
        disk[0x1c] = 9;
        assert!(probe(&disk).unwrap().is_none());
    }
}
