//! The f2fs reader against f2fs-tools: the map compared bit by bit with `dump.f2fs`, images rebuilt from used blocks only and
//! then checked by `fsck.f2fs` and compared file by file. Mounts of f2fs are for the virtual machines.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use floe::crc::crc32;
use floe::error::FaultKind;
use floe::fs::{Coverage, Still, UsedMap};

use crate::common::{self, Limit, Random, Scratch};
use crate::maps::{self, Walked};

const BLOCK: u64 = 4096;
/// What free blocks held before mkfs.
const STALE: &[u8; 512] = &[0xd1; 512];

/// What a test needs that was skipped.
const MISSING: &str = "f2fs-tools, and to run natively (the library linked in here walks)";

fn usable() -> bool {
    maps::native_with("mkfs.f2fs") && common::have("sload.f2fs")
}

/// An image of `mib`, full of old bytes, with a filesystem on it and `files` files in that.
fn make(scratch: &Scratch, mib: usize, mkfs: &[&str], files: u32) -> PathBuf {
    let image = scratch.join("image");
    fs::write(&image, STALE.repeat(mib << 11)).expect("image");
    let path = image.to_string_lossy();
    // -t 0: no discard, so that the old bytes stay.
    let args: Vec<&str> = ["-q", "-f", "-t", "0"]
        .iter()
        .chain(mkfs)
        .copied()
        .chain([path.as_ref()])
        .collect();
    common::output("mkfs.f2fs", &args);
    if files > 0 {
        let folder = scratch.join("files");
        fs::create_dir_all(&folder).expect("folder");
        common::fill(&folder, files);
        fs::write(folder.join("large"), Random(5).bytes(20 << 20)).expect("large");
        common::output("sload.f2fs", &["-f", &folder.to_string_lossy(), &path]);
    }
    image
}

/// Segments and their maps as `dump.f2fs -s` gives them, and the first block of the main area.
fn reference(scratch: &Scratch, image: &Path) -> (u64, Vec<[u8; 64]>) {
    let script = format!(
        "cd '{}' && rm -f dump_sit && dump.f2fs -s 0~-1 '{}' >/dev/null && cat dump_sit",
        scratch.path().display(),
        image.display()
    );
    let text = common::shell(&script, Limit::secs(60))
        .expect_code(0)
        .stdout_text();
    let mut segments = Vec::new();
    let mut bytes = 0;
    for line in text.lines() {
        if line.starts_with("valid_blocks:") {
            break;
        } else if line.starts_with("segno:") {
            segments.push([0; 64]);
            bytes = 0;
        } else if let Some(map) = segments.last_mut() {
            for word in line.split_whitespace() {
                map[bytes] = u8::from_str_radix(word, 16).expect("hexadecimal");
                bytes += 1;
            }
        }
    }
    let disk = fs::File::open(image).expect("image");
    let mut word = [0; 4];
    disk.read_exact_at(&mut word, 1024 + 0x5c)
        .expect("superblock");
    (u32::from_le_bytes(word).into(), segments)
}

/// Every valid block is used; no other block of the main area is, except in the six segments being written to.
#[track_caller]
fn assert_map_is_right(map: &UsedMap, (main, segments): &(u64, Vec<[u8; 64]>), what: &str) {
    assert!(segments.len() > 20, "{what}");
    let mut whole = 0;
    for (number, bits) in (0..).zip(segments) {
        let mut extra = 0;
        for index in 0..512u64 {
            let valid = bits[usize::try_from(index / 8).expect("small")] << (index % 8) & 0x80 != 0;
            let used = map.is_used((main + number * 512 + index) * BLOCK);
            assert!(
                used || !valid,
                "{what}: block {index} of segment {number} is lost"
            );
            extra += u32::from(used && !valid);
        }
        whole += u32::from(extra > 0);
    }
    assert!(
        whole <= 6,
        "{what}: {whole} segments have used blocks that are not valid"
    );
    for block in 0..*main {
        assert!(
            map.is_used(block * BLOCK),
            "{what}: metadata block {block} is lost"
        );
    }
}

/// Every inode's file as `dump.f2fs` extracts it: the names and contents of a `lost_found` folder.
fn contents(scratch: &Scratch, image: &Path, inodes: u32) -> String {
    let script = format!(
        "cd '{}' && rm -rf out && mkdir out && cd out && for i in $(seq 3 {}); do \
         yes y 2>/dev/null | dump.f2fs -i $i '{}' >/dev/null 2>&1 || true; done; \
         cd lost_found && find . -type f -print0 | sort -z | xargs -0 sha256sum",
        scratch.path().display(),
        inodes + 3,
        image.display()
    );
    common::shell(&script, Limit::secs(180))
        .expect_code(0)
        .stdout_text()
}

#[track_caller]
fn fsck_finds_nothing(image: &Path, what: &str) {
    let text = common::output("fsck.f2fs", &["--dry-run", &image.to_string_lossy()]);
    assert!(
        text.contains("[Ok..]") && !text.contains("[Fail]"),
        "{what}: {text}"
    );
}

fn prove(mib: usize, mkfs: &[&str], files: u32) {
    require!(usable(), MISSING);
    let scratch = Scratch::new();
    let what = format!("{mkfs:?}");
    let image = make(&scratch, mib, mkfs, files);
    for still in [Still::Unmounted, Still::ReadOnly, Still::Frozen] {
        let Walked { verdict, map, .. } = maps::walk(&image, still);
        maps::assert_used(verdict, &what);
        assert_map_is_right(&map, &reference(&scratch, &image), &what);
    }
    let Walked { map, .. } = maps::walk(&image, Still::Unmounted);
    let rebuilt = scratch.join("rebuilt");
    maps::rebuild(&image, &map, &rebuilt);
    fsck_finds_nothing(&rebuilt, &what);
    let (before, after) = (
        maps::count_marks(&image, STALE),
        maps::count_marks(&rebuilt, STALE),
    );
    // What is left stands in the six current segments, the unused metadata and the tail of the device.
    assert!(
        after * 4 < before,
        "{what}: {after} of {before} old sectors came out"
    );
    if files > 0 {
        let expected = contents(&scratch, &image, files);
        assert!(
            expected.lines().count() > usize::try_from(files / 2).expect("small"),
            "{expected}"
        );
        assert_eq!(expected, contents(&scratch, &rebuilt, files), "{what}");
    }
}

#[test]
fn an_empty_f2fs_with_its_sit_journal_and_compact_summaries_comes_out_whole() {
    prove(200, &[], 0);
}

#[test]
fn an_f2fs_with_files_comes_out_whole() {
    prove(300, &[], 150);
}

#[test]
fn an_f2fs_with_many_features_comes_out_whole() {
    // Not flexible_inline_xattr: the checker of f2fs-tools 1.15 rejects what its own sload.f2fs writes with it.
    let features = "encrypt,extra_attr,project_quota,inode_checksum,inode_crtime,lost_found,verity,\
                    sb_checksum,casefold,compression";
    prove(300, &["-O", features, "-C", "utf8", "-l", "label"], 40);
}

#[test]
fn an_f2fs_with_a_large_nat_bitmap_comes_out_whole() {
    prove(300, &["-i"], 40);
}

#[test]
#[ignore = "costly: one layout more (tests/run --full)"]
fn an_f2fs_with_large_sections_comes_out_whole() {
    prove(600, &["-s", "4", "-z", "2"], 60);
}

#[test]
#[ignore = "costly: one layout more (tests/run --full)"]
fn an_f2fs_without_overprovisioning_choices_and_heap_allocation_comes_out_whole() {
    prove(400, &["-a", "1", "-o", "5"], 60);
}

#[test]
fn a_nearly_full_f2fs_comes_out_whole() {
    prove(128, &["-o", "20"], 100);
}

#[test]
fn several_devices_are_refused_by_name() {
    require!(usable(), MISSING);
    let scratch = Scratch::new();
    let other = scratch.join("other");
    common::sparse(&other, 200 << 20);
    let image = make(&scratch, 200, &["-c", &other.to_string_lossy()], 0);
    // The filesystem claims the sum of both, so the first alone is too short as well: the refusal comes first.
    let fault = maps::try_walk(&image, Still::Unmounted)
        .err()
        .expect("refused");
    assert_eq!(fault.kind(), FaultKind::Refused);
    assert!(fault.what().contains("several devices"), "{fault}");
}

/// Changes the flags in every block that holds a checkpoint, and its checksum with them.
fn change_flags(image: &Path, change: impl Fn(u32) -> u32) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .expect("image");
    let mut word = [0; 4];
    file.read_exact_at(&mut word, 1024 + 0x4c)
        .expect("superblock");
    let first = u64::from(u32::from_le_bytes(word));
    let mut changed = 0;
    for block in first..first + 1024 {
        let mut bytes = [0u8; 4096];
        file.read_exact_at(&mut bytes, block * BLOCK)
            .expect("block");
        let checksum = |bytes: &[u8]| !crc32(!0xf2f5_2010, &bytes[..4092]);
        if bytes[..8] == [0; 8] || bytes[4092..] != checksum(&bytes).to_le_bytes() {
            continue;
        }
        let flags = u32::from_le_bytes(bytes[132..136].try_into().expect("4"));
        bytes[132..136].copy_from_slice(&change(flags).to_le_bytes());
        let crc = checksum(&bytes).to_le_bytes();
        bytes[4092..].copy_from_slice(&crc);
        file.write_all_at(&bytes, block * BLOCK).expect("block");
        changed += 1;
    }
    assert!(changed >= 2, "{changed}");
}

#[test]
fn without_an_unmount_mark_only_our_own_freeze_is_believed() {
    require!(usable(), MISSING);
    let scratch = Scratch::new();
    let image = make(&scratch, 200, &[], 30);
    // A fast boot's checkpoint: summaries as at an unmount, but without its mark.
    change_flags(&image, |flags| flags & !0x01 | 0x20);
    let walked = maps::walk(&image, Still::Unmounted);
    assert_eq!(walked.verdict.coverage, Coverage::Whole);
    assert_eq!(walked.map.used_bytes(), walked.map.size_bytes());
    assert_eq!(
        maps::walk(&image, Still::ReadOnly).verdict.coverage,
        Coverage::Whole
    );
    let frozen = maps::walk(&image, Still::Frozen);
    maps::assert_used(frozen.verdict, "map");
    assert_map_is_right(&frozen.map, &reference(&scratch, &image), "fast boot");

    change_flags(&image, |flags| flags | 0x10);
    assert_eq!(
        maps::walk(&image, Still::Frozen).verdict.coverage,
        Coverage::Whole
    );
    change_flags(&image, |flags| flags & !0x10 | 0x1000);
    let fault = maps::try_walk(&image, Still::Frozen)
        .err()
        .expect("refused");
    assert!(fault.what().contains("checkpoint=disable"), "{fault}");
}

#[test]
fn a_broken_newest_checkpoint_or_first_superblock_falls_back_to_the_other() {
    require!(usable(), MISSING);
    let scratch = Scratch::new();
    let image = make(&scratch, 200, &[], 30);
    let expected = reference(&scratch, &image);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .expect("image");
    file.write_all_at(&[0; 64], 1024).expect("write");
    let walked = maps::walk(&image, Still::Unmounted);
    maps::assert_used(walked.verdict, "map");
    assert_map_is_right(&walked.map, &expected, "second superblock");
    let before = maps::witness(&image);
    for pack in 0..2 {
        file.write_all_at(&[0xff; 64], (512 + pack * 512) * BLOCK)
            .expect("write");
        assert_ne!(before, maps::witness(&image));
    }
    assert_eq!(
        maps::walk(&image, Still::Unmounted).verdict.coverage,
        Coverage::Whole
    );
}

#[test]
fn flipped_bits_of_superblock_checkpoint_and_sit_lose_no_used_block() {
    require!(usable(), MISSING);
    let scratch = Scratch::new();
    let image = make(&scratch, 200, &["-O", "extra_attr,sb_checksum"], 60);
    let good = maps::walk(&image, Still::Unmounted);
    let used = maps::used_extents(&good.map);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&image)
        .expect("image");
    let mut word = [0; 4];
    file.read_exact_at(&mut word, 1024 + 0x50)
        .expect("superblock");
    let sit = u64::from(u32::from_le_bytes(word)) * BLOCK;
    let mut random = Random(4);
    let mut noticed = 0;
    for round in 0..600 {
        let place = match round % 4 {
            0 => 1024 + random.below(3072),
            1 => (512 + 512 * random.below(2)) * BLOCK + random.below(BLOCK),
            2 => sit + random.below(2 * BLOCK),
            _ => sit + 512 * BLOCK + random.below(2 * BLOCK),
        };
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).expect("read");
        file.write_all_at(&[byte[0] ^ 1 << random.below(8)], place)
            .expect("write");
        let walked = std::panic::catch_unwind(|| maps::try_walk(&image, Still::Unmounted));
        if let Ok(walked) = walked.expect("no panic") {
            for extent in &used {
                let now = walked.map.next_used(extent.offset, extent.end());
                assert_eq!(
                    now,
                    Some(*extent),
                    "round {round}: flip at {place:#x}, {:?}",
                    walked.verdict
                );
            }
            noticed += u32::from(walked.verdict.coverage != Coverage::Used);
        }
        file.write_all_at(&byte, place).expect("write");
    }
    assert!(noticed > 20, "{noticed}");
}
