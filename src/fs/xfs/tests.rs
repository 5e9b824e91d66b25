//! The reader against kept images, damaged with their checksums made right again.
//!
//! `tests/data/xfs/v5.deflate`: 48 MiB, blocks of 1 KiB, three groups, two-level free-space trees, a file of 512 extents, 3.5 MiB
//! unwritten, mounted and unmounted by a kernel; `v4.deflate`: 16 MiB, blocks of 512 bytes, one group, from mkfs.xfs and a
//! prototype. Both hold, deflated, records of an offset (8 bytes, little endian) and 4096 bytes; metadata only, and of the log its start.
//! What the tests expect was read from the whole images with `xfs_db` (sb, agf, freesp).

use super::*;
use crate::crc::crc32c;
use crate::fs::Coverage;
use crate::fs::testing::{image, walked};
use crate::units::{to_u64, to_usize};

const V5: &[u8] = include_bytes!("../../../tests/data/xfs/v5.deflate");
const V4: &[u8] = include_bytes!("../../../tests/data/xfs/v4.deflate");
const GROUP: usize = 16_384 * 1024;

fn v5() -> Vec<u8> {
    image(V5, 48 << 20)
}

/// Writes a big-endian number at `at` in the structure at `start`, and its checksum, which lies at `crc`.
fn patch(image: &mut [u8], (start, length, crc): (usize, usize, usize), at: usize, value: u32) {
    let bytes = &mut image[start..start + length];
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    bytes[crc..crc + 4].fill(0);
    let sum = crc32c(bytes);
    bytes[crc..crc + 4].copy_from_slice(&sum.to_le_bytes());
}

/// The first block of a tree, by its magic, from `from` on: place, length and where its checksum is.
fn block(image: &[u8], magic: &[u8; 4], level: u8, from: usize) -> (usize, usize, usize) {
    let found = (from..image.len())
        .step_by(1024)
        .find(|at| image[*at..].starts_with(magic) && image[at + 5] == level);
    (found.unwrap(), 1024, if magic == b"BMA3" { 64 } else { 52 })
}

const AGF0: (usize, usize, usize) = (512, 512, 0xd8);
const AGI0: (usize, usize, usize) = (1024, 512, 0x138);

/// Used bytes of the sound version 5 image: all but what xfs_db calls free and what is unwritten.
const USED: u64 = (48 << 20) - 39_688 * 1024 - (3 << 20) - (512 << 10);

#[test]
fn the_kept_images_give_what_xfs_db_says() {
    let bytes = v5();
    let identity = probe(&bytes).unwrap().unwrap();
    assert_eq!(identity.label.as_str(), "fixture");
    assert_eq!(
        identity.uuid.as_str(),
        "11111111-2222-3333-4444-555555555555"
    );
    assert_eq!(
        (identity.size_bytes, identity.block_bytes),
        (48 << 20, 1024)
    );
    let (verdict, map) = walked(&bytes, Still::Frozen).unwrap();
    assert_eq!(verdict.doubt, None);
    assert_eq!(map.used_bytes(), USED);
    let (verdict, map) = walked(&bytes, Still::Unmounted).unwrap();
    assert_eq!((verdict.coverage, map.used_bytes()), (Coverage::Used, USED));
    // The unmount record stands at the log's start (group 1, block 7), its flags behind the header.
    let mut dirty = bytes;
    dirty[GROUP + 7 * 1024 + 512 + 9] = 0;
    let (verdict, map) = walked(&dirty, Still::Unmounted).unwrap();
    assert_eq!(
        (verdict.coverage, map.used_bytes()),
        (Coverage::Whole, 48 << 20)
    );

    let (verdict, map) = walked(&image(V4, 16 << 20), Still::Frozen).unwrap();
    assert_eq!(verdict.doubt, None);
    assert_eq!(map.used_bytes(), 3_354_112);
}

#[test]
fn a_group_that_contradicts_itself_is_used_and_the_others_are_not() {
    let bytes = v5();
    let by_block = block(&bytes, b"AB3B", 0, 0);
    let by_size = block(&bytes, b"AB3C", 0, 0);
    let root = block(&bytes, b"AB3B", 1, 0);
    let right_sibling = 12;
    let damages = [
        ("free blocks", AGF0, 0x34, 11_857),
        ("longest", AGF0, 0x38, 11_608),
        ("length", AGF0, 0x0c, 16_383),
        ("levels", AGF0, 0x1c, 1),
        ("root", AGF0, 0x10, 16_384),
        ("a free extent's length", by_block, 56 + 4, 3),
        ("a free extent's start", by_block, 56, 1),
        ("a free extent in the other tree", by_size, 56, 9000),
        ("a leaf's right sibling", by_block, right_sibling, u32::MAX),
        ("a leaf's owner", by_block, 48, 1),
        ("a leaf's own address", by_block, 20, 77),
        (
            "a child twice",
            root,
            56 + 80 * 8 + 4,
            root_child(&bytes, root.0),
        ),
        ("inode tree's root", AGI0, 0x14, 5),
        ("inode tree's levels", AGI0, 0x18, 9),
    ];
    for (what, place, at, value) in damages {
        let mut bytes = bytes.clone();
        patch(&mut bytes, place, at, value);
        let (verdict, map) = walked(&bytes, Still::Frozen).unwrap();
        assert_eq!(verdict.coverage, Coverage::Partial, "{what}");
        assert_eq!(verdict.doubt.unwrap().unit(), Some(("AG", 0)), "{what}");
        let next = map.next_used(0, u64::MAX).unwrap();
        assert!(next.length_bytes >= GROUP as u64, "{what}");
        assert!(map.used_bytes() < 24 << 20, "{what}");
    }
    // Without its checksum the same byte is as good as noise.
    let mut bytes = bytes;
    bytes[by_block.0 + 60] ^= 1;
    assert_eq!(
        walked(&bytes, Still::Frozen).unwrap().0.coverage,
        Coverage::Partial
    );
}

/// The first child of a short-form node with blocks of 1 KiB: behind the header and room for 80 keys.
fn root_child(bytes: &[u8], root: usize) -> u32 {
    crate::layout::be(bytes, root + 56 + 80 * 8).unwrap()
}

#[test]
fn a_file_in_free_space_takes_it_back() {
    let mut bytes = v5();
    let leaf = block(&bytes, b"BMA3", 0, 0);
    // The second half of a record: start's low 43 bits and the count of 21. Point it at the large free extent of group 2.
    let start: u64 = 2 << 14 | 8000;
    let low = start << 21 | 4;
    patch(&mut bytes, leaf, 72, 0);
    patch(&mut bytes, leaf, 72 + 4, 0);
    patch(&mut bytes, leaf, 72 + 8, u32::try_from(low >> 32).unwrap());
    patch(
        &mut bytes,
        leaf,
        72 + 12,
        u32::try_from(low & 0xffff_ffff).unwrap(),
    );
    let (verdict, map) = walked(&bytes, Still::Frozen).unwrap();
    assert_eq!(verdict.coverage, Coverage::Partial);
    assert_eq!(verdict.doubt.unwrap().unit().unwrap().0, "inode");
    let place = to_usize(8000 * 1024) + 2 * GROUP;
    assert!(map.is_used(place as u64) && map.is_used(place as u64 + 3 * 1024));
    assert!(!map.is_used(place as u64 + 5 * 1024));
}

#[test]
fn no_unwritten_extent_makes_the_headers_of_a_group_free() {
    for (start, count) in [(0u64, 4), (1, 1), (1 << 14, 2)] {
        let mut bytes = v5();
        let leaf = block(&bytes, b"BMA3", 0, 0);
        let low = start << 21 | count;
        // The first bit of a record: unwritten.
        patch(&mut bytes, leaf, 72, 0x8000_0000);
        patch(&mut bytes, leaf, 72 + 4, 0);
        let (high, low) = (low >> 32, low & 0xffff_ffff);
        patch(&mut bytes, leaf, 72 + 8, u32::try_from(high).unwrap());
        patch(&mut bytes, leaf, 72 + 12, u32::try_from(low).unwrap());
        let (verdict, map) = walked(&bytes, Still::Frozen).unwrap();
        assert_eq!(verdict.doubt.unwrap().unit().unwrap().0, "inode");
        let place = (start >> 14) * to_u64(GROUP) + (start & 0x3fff) * 1024;
        assert!((0..count).all(|n| map.is_used(place + n * 1024)), "{start}");
    }
}

#[test]
fn unknown_features_and_a_filesystem_that_needs_repair_are_read_whole() {
    const SUPERBLOCK: (usize, usize, usize) = (0, 512, 0xe0);
    for (at, bits) in [
        (0xd4, 0x10),
        (0xd8, 0x100),
        (0xd8, 0x10),
        (0xdc, 0x80),
        (0x7c, 0),
    ] {
        let mut bytes = v5();
        let old: u32 = crate::layout::be(&bytes, at).unwrap();
        let value = if bits == 0 { old | 1 << 8 } else { old | bits };
        patch(&mut bytes, SUPERBLOCK, at, value);
        let (verdict, map) = walked(&bytes, Still::Frozen).unwrap();
        assert_eq!(verdict.coverage, Coverage::Whole, "{at:#x} {bits:#x}");
        assert_eq!(map.used_bytes(), map.size_bytes());
    }
    let mut bytes = v5();
    bytes[0x91] ^= 1;
    let (verdict, _) = walked(&bytes, Still::Frozen).unwrap();
    assert_eq!(verdict.doubt.unwrap().what(), "superblock checksum");
}

#[test]
fn a_sound_image_makes_no_fault() {
    let image = v5();
    let before = crate::error::MADE.get();
    walked(&image, Still::Unmounted).unwrap();
    assert_eq!(crate::error::MADE.get(), before);
}
