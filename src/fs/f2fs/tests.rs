//! The reader's parts alone, and the reader against a kept image whose checksums are made right again after each damage.
//!
//! `tests/data/f2fs/small.deflate`: 64 MiB, 40 small files, from mkfs.f2fs (extra_attr, sb_checksum) and sload.f2fs; deflated
//! records of an offset (8 bytes, little endian) and 4096 bytes, for every block that is not zeros.

use super::*;
use crate::fs::f2fs::checkpoint::parse_checkpoint;
use crate::fs::f2fs::sit::{SIT_ENTRY_BYTES, mark_segment};
use crate::fs::f2fs::superblock::{Layout, MAGIC, checksum};
use crate::fs::testing::{self, walked};
use crate::fs::{Coverage, Still};
use crate::units::BlockSize;

const FIXTURE: &[u8] = include_bytes!("../../../tests/data/f2fs/small.deflate");
const BLOCK: usize = 4096;
/// Where the first checkpoint pack begins.
const PACK: usize = 512 * BLOCK;
/// Before the main area; six current segments; one valid block in each of two others (`dump.f2fs -s`).
const USED: u64 = (4096 + 6 * 512 + 2) * 4096;

fn image() -> Vec<u8> {
    testing::image(FIXTURE, 64 << 20)
}

/// Writes a number into both superblocks, and their checksums.
fn patch_superblocks(image: &mut [u8], at: usize, value: u32) {
    for start in [1024, BLOCK + 1024] {
        let bytes = &mut image[start..start + 3072];
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let sum = checksum(MAGIC, &bytes[..3068]);
        bytes[3068..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Writes a number into every checkpoint block of both packs, and their checksums.
fn patch_checkpoints(image: &mut [u8], at: usize, value: u32) {
    let mut patched = 0;
    for start in (PACK..PACK + 1024 * BLOCK).step_by(BLOCK) {
        let bytes = &mut image[start..start + BLOCK];
        if parse_checkpoint(bytes).is_some_and(|checkpoint| checkpoint.checkpoint_ver != 0) {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let sum = checksum(MAGIC, &bytes[..4092]);
            bytes[4092..].copy_from_slice(&sum.to_le_bytes());
            patched += 1;
        }
    }
    assert!(patched >= 2);
}

#[test]
fn the_kept_image_gives_what_dump_f2fs_says() {
    let bytes = image();
    for still in [Still::Frozen, Still::Unmounted, Still::ReadOnly] {
        let (verdict, map) = walked(&bytes, still).unwrap();
        assert_eq!(verdict.doubt, None);
        assert_eq!(map.used_bytes(), USED);
    }
    let identity = probe(&bytes).unwrap().unwrap();
    assert_eq!(
        (identity.size_bytes, identity.block_bytes),
        (64 << 20, 4096)
    );
    assert_eq!(identity.devices, 1);
}

#[test]
fn checkpoints_that_do_not_fit_the_sit_are_read_whole() {
    // valid_block_count, valid_node_count, sit_ver_bitmap_bytesize, cp_pack_total_block_count, a current segment, and flags:
    // error, needs fsck, resizing.
    let damages = [
        (0x10, 1),
        (0x90, 7),
        (0x9c, 8),
        (0x88, 2),
        (0x54, 9999),
        (0x84, 0x09),
        (0x84, 0x11),
        (0x84, 0x4001),
    ];
    for (at, value) in damages {
        let mut bytes = image();
        patch_checkpoints(&mut bytes, at, value);
        let (verdict, map) = walked(&bytes, Still::Frozen).unwrap();
        assert_eq!(verdict.coverage, Coverage::Whole, "{at:#x}");
        assert_eq!(map.used_bytes(), 64 << 20, "{at:#x}");
    }
}

#[test]
fn impossible_superblocks_are_not_f2fs_and_unknown_features_are_read_whole() {
    // Areas that do not follow each other, among them one whose product overflows (found by fuzzing).
    for (at, value) in [
        (0x38, u32::MAX),
        (0x38, 3),
        (0x44, u32::MAX),
        (0x10, 40),
        (0x14, 8),
    ] {
        let mut bytes = image();
        patch_superblocks(&mut bytes, at, value);
        assert!(probe(&bytes).unwrap().is_none(), "{at:#x} {value:#x}");
    }
    for unknown in [0x2, 0x4, 0x1_0000, 0x8000_0000] {
        let mut bytes = image();
        patch_superblocks(&mut bytes, 0x884, 0x808 | unknown);
        let (verdict, _) = walked(&bytes, Still::Frozen).unwrap();
        assert_eq!(verdict.coverage, Coverage::Whole, "{unknown:#x}");
    }
}

#[test]
fn free_blocks_of_a_segment_are_the_clear_bits_from_the_highest_on() {
    let layout = Layout {
        block: BlockSize::from_bytes(4096).unwrap(),
        blocks: 2048,
        checkpoint: 0,
        sit: 0,
        sit_blocks: 0,
        main: 512,
        main_segments: 3,
        payload: 0,
        feature: 0,
    };
    let mut map = UsedMap::new(2048 * 4096, layout.block).unwrap();
    let mut entry = [0; SIT_ENTRY_BYTES];
    entry[0] = 3;
    (entry[2], entry[65]) = (0b1010_0000, 1);
    assert_eq!(mark_segment(&layout, 1, &entry, &mut map), Ok((3, false)));
    let free = |block: u64| !map.is_used((1024 + block) * 4096);
    assert!(!free(0) && free(1) && !free(2) && free(3) && free(510) && !free(511));
    assert_eq!(map.used_bytes(), (2048 - 512 + 3) * 4096);
    entry[0] = 4;
    assert!(mark_segment(&layout, 1, &entry, &mut map).is_err());
}

#[test]
fn a_checkpoint_is_believed_only_with_its_checksum() {
    let mut block = [0u8; 4096];
    block[0] = 7;
    block[0xa4..0xa8].copy_from_slice(&4092u32.to_le_bytes());
    let crc = checksum(MAGIC, &block[..4092]);
    block[4092..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(parse_checkpoint(&block).unwrap().checkpoint_ver, 7);
    block[1] = 1;
    assert!(parse_checkpoint(&block).is_none());
    // With a large NAT bitmap the checksum stands in front of the bitmaps and covers what follows, too.
    block[0xa4..0xa8].copy_from_slice(&192u32.to_le_bytes());
    let crc = checksum(checksum(MAGIC, &block[..192]), &block[196..]);
    block[192..196].copy_from_slice(&crc.to_le_bytes());
    assert!(parse_checkpoint(&block).is_some());
    block[4000] = 1;
    assert!(parse_checkpoint(&block).is_none());
}

#[test]
fn a_sound_image_makes_no_fault() {
    let image = image();
    let before = crate::error::MADE.get();
    walked(&image, Still::Unmounted).unwrap();
    assert_eq!(crate::error::MADE.get(), before);
}
