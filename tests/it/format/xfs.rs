//! The XFS reader against xfsprogs and the kernel: the map compared with `xfs_db`'s free space, images rebuilt from used
//! blocks only and then mounted, checked and compared file by file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use floe::fs::{Coverage, Still, UsedMap};

use crate::common::{self, Limit, LoopFs, Mounted, Random, Scratch, Spec, Writer};
use crate::maps::{self, Walked};

/// 512 bytes that no file of ours keeps: found in a rebuilt image, they came out of space that nothing owns.
const SECRET: &[u8; 512] = &[0xd1; 512];

/// Sizes, options of mkfs.xfs and sector sizes that between them cover what the format varies.
const VARIANTS: &[Spec<'static>] = &[
    variant(320, &[], 512),
    variant(320, &["-b", "size=1024", "-m", "rmapbt=1"], 512),
    variant(
        320,
        &[
            "-m",
            "finobt=0,reflink=0,bigtime=0,inobtcount=0",
            "-i",
            "sparse=0",
        ],
        512,
    ),
    variant(320, &["-s", "size=4096", "-m", "rmapbt=1"], 4096),
    variant(
        640,
        &[
            "--unsupported",
            "-d",
            "agcount=37",
            "-i",
            "size=1024,nrext64=1",
        ],
        512,
    ),
    variant(
        320,
        &["-b", "size=2048", "-i", "size=1024", "-m", "reflink=0"],
        512,
    ),
    variant(
        6000,
        &["-m", "rmapbt=1,reflink=1", "-d", "agsize=999m"],
        512,
    ),
    variant(700, &["-b", "size=65536"], 512),
];

const fn variant(mib: u64, mkfs: &'static [&'static str], sector_size: u32) -> Spec<'static> {
    Spec {
        kind: "xfs",
        mib,
        mkfs,
        options: "nouuid",
        sector_size,
    }
}

/// What a test needs that was skipped.
const MISSING: &str =
    "root, mkfs.xfs, XFS in this kernel, and to run natively (the library linked in here walks)";

fn make(spec: Spec<'static>) -> Option<LoopFs> {
    maps::native_with("mkfs.xfs").then(|| LoopFs::make(spec).ok())?
}

/// Free extents in bytes as `xfs_db` counts them, free lists included.
fn reference_free(image: &Path) -> Vec<(u64, u64)> {
    let image = image.to_string_lossy();
    let number = |name: &str| -> u64 {
        let text = common::output(
            "xfs_db",
            &["-r", "-c", "sb 0", "-c", &format!("p {name}"), &image],
        );
        let value = text.rsplit('=').next().unwrap_or_default().trim();
        value.parse().unwrap_or_else(|_| panic!("{text}"))
    };
    let (block, group) = (number("blocksize"), number("agblocks"));
    common::output("xfs_db", &["-r", "-c", "freesp -d", &image])
        .lines()
        .map(|line| line.split_whitespace().map(str::parse::<u64>).collect())
        .filter_map(|words: Vec<_>| match words.as_slice() {
            [Ok(ag), Ok(start), Ok(count)] => Some(((ag * group + start) * block, count * block)),
            _ => None,
        })
        .collect()
}

/// Unwritten extents in bytes, from the kernel's FIEMAP of every file.
fn reference_unwritten(dir: &Path) -> Vec<(u64, u64)> {
    let script = format!(
        "find '{}' -type f -size +0 -print0 | xargs -0 -r -n 200 filefrag -v -b512 2>/dev/null || true",
        dir.display()
    );
    common::shell(&script, Limit::secs(120))
        .stdout_text()
        .lines()
        .filter(|line| line.contains("unwritten"))
        .filter_map(|line| {
            // `   0:        0..    2047:      11216..     13263:   2048:             unwritten,eof`
            let mut parts = line.split(':').skip(2);
            let start = parts
                .next()?
                .split("..")
                .next()?
                .trim()
                .parse::<u64>()
                .ok()?;
            let count = parts.next()?.trim().parse::<u64>().ok()?;
            Some((start * 512, count * 512))
        })
        .collect()
}

/// What the map calls free is free or unwritten, every byte; and it misses at most 5 % of that.
#[track_caller]
fn assert_map_is_right(map: &UsedMap, free: &[(u64, u64)], unwritten: &[(u64, u64)], what: &str) {
    let mut truth: BTreeMap<u64, u64> = BTreeMap::new();
    for (start, length) in free.iter().chain(unwritten) {
        truth.insert(*start, *length);
    }
    let mut from = 0;
    let mut gaps = Vec::new();
    for extent in maps::used_extents(map) {
        gaps.push((from, extent.offset));
        from = extent.end();
    }
    gaps.push((from, map.size_bytes()));
    let mut marked = 0;
    for (start, end) in gaps {
        marked += end - start;
        let mut at = start;
        while at < end {
            let known = truth.range(..=at).next_back();
            let (offset, length) = known.unwrap_or_else(|| panic!("{what}: {at:#x} is not free"));
            assert!(offset + length > at, "{what}: {at:#x} is not free");
            at = offset + length;
        }
    }
    let free: u64 = truth.values().sum();
    assert!(
        marked <= free && marked * 100 >= free * 95,
        "{what}: {marked} of {free}"
    );
}

/// Files that split the free space of every group into more pieces than a leaf of its trees holds, a file whose extents
/// need a tree, deleted secrets, and unwritten extents over them.
fn age(dir: &Path, pieces: u32) {
    common::fill(dir, 150);
    let small = dir.join("pieces");
    fs::create_dir(&small).expect("folder");
    let mut random = Random(7);
    for number in 0..pieces {
        let folder = small.join(format!("{}", number % 8));
        fs::create_dir_all(&folder).expect("folder");
        let size = usize::try_from(random.below(9000)).expect("small") + 1;
        fs::write(folder.join(number.to_string()), random.bytes(size)).expect("file");
    }
    sync(dir);
    for number in (0..pieces).step_by(2) {
        fs::remove_file(small.join(format!("{}/{number}", number % 8))).expect("delete");
    }
    let secret = dir.join("secret");
    fs::write(&secret, SECRET.repeat(24 << 11)).expect("secret");
    sync(dir);
    fs::remove_file(&secret).expect("delete");
    sync(dir);
    common::output(
        "fallocate",
        &["-l", "20M", &dir.join("unwritten").to_string_lossy()],
    );
    // Every other 64 KiB written: as many extents as pieces, half of them unwritten.
    let path = dir.join("striped");
    common::output("fallocate", &["-l", "40M", &path.to_string_lossy()]);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("open");
    for stripe in 0..300 {
        file.write_all_at(&random.bytes(65_536), stripe * 131_072)
            .expect("stripe");
    }
    drop(file);
    sync(dir);
}

/// Holes stay holes.
fn copy(from: &Path, to: &Path) {
    common::output("cp", &[&from.to_string_lossy(), &to.to_string_lossy()]);
}

fn sync(dir: &Path) {
    common::output("sync", &["-f", &dir.to_string_lossy()]);
}

/// A rebuilt image: mounted once, every file compared, and then without a complaint from `xfs_repair -n`.
#[track_caller]
fn assert_image_is_good(image: &Path, tree: &BTreeMap<PathBuf, String>, sector_size: u32) {
    let device = common::LoopDevice::attach(image, sector_size);
    {
        let mounted = Mounted::new("xfs", device.path(), "nouuid");
        common::assert_same_tree(tree, &common::tree(mounted.dir()));
    }
    common::fsck("xfs", device.path());
}

/// One variant: aged; frozen, walked, rebuilt; unmounted, walked, rebuilt.
#[track_caller]
fn prove(spec: Spec<'static>, pieces: u32) {
    let what = format!("{:?}", spec.mkfs);
    let mut made = require_some!(make(spec), MISSING);
    age(made.dir(), pieces);
    let unwritten = reference_unwritten(made.dir());
    assert!(
        unwritten.iter().map(|(_, length)| length).sum::<u64>() > 30 << 20,
        "{what}"
    );
    let before = common::tree(made.dir());
    let rebuilt = made.scratch().join("rebuilt");
    let full = made.scratch().join("full");

    common::freeze(made.dir());
    let Walked { verdict, map, .. } = maps::walk(made.device(), Still::Frozen);
    maps::rebuild(made.image(), &map, &rebuilt);
    copy(made.image(), &full);
    common::thaw(made.dir());
    maps::assert_used(verdict, &what);
    assert_map_is_right(&map, &reference_free(&full), &unwritten, &what);
    assert!(
        maps::count_marks(&full, SECRET) > 0,
        "{what}: the image proves nothing"
    );
    assert_eq!(
        maps::count_marks(&rebuilt, SECRET),
        0,
        "{what}: secrets came out"
    );
    assert_image_is_good(&rebuilt, &before, spec.sector_size);

    made.unmount();
    let Walked { verdict, map, .. } = maps::walk(made.device(), Still::Unmounted);
    maps::assert_used(verdict, &what);
    assert_map_is_right(&map, &reference_free(made.image()), &unwritten, &what);
    maps::rebuild(made.image(), &map, &rebuilt);
    common::fsck("xfs", &rebuilt);
    assert_image_is_good(&rebuilt, &before, spec.sector_size);
}

#[test]
fn frozen_and_unmounted_xfs_come_out_whole_with_default_options() {
    prove(VARIANTS[0], 6000);
}

#[test]
fn xfs_with_1k_blocks_and_reverse_maps_comes_out_whole() {
    prove(VARIANTS[1], 3000);
}

#[test]
fn xfs_without_the_newer_features_comes_out_whole() {
    prove(VARIANTS[2], 3000);
}

#[test]
fn xfs_on_4096_byte_sectors_comes_out_whole() {
    prove(VARIANTS[3], 3000);
}

#[test]
fn xfs_with_many_groups_and_large_extent_counts_comes_out_whole() {
    prove(VARIANTS[4], 3000);
}

#[test]
fn xfs_with_2k_blocks_and_1k_inodes_comes_out_whole() {
    prove(VARIANTS[5], 3000);
}

#[test]
fn xfs_larger_than_4_gib_with_a_short_last_group_comes_out_whole() {
    prove(VARIANTS[6], 1000);
}

#[test]
fn xfs_with_64k_blocks_comes_out_whole() {
    prove(VARIANTS[7], 1000);
}

#[test]
fn a_nearly_full_xfs_comes_out_whole() {
    let made = require_some!(make(VARIANTS[1]), MISSING);
    age(made.dir(), 500);
    let mut file = fs::File::create(made.dir().join("filler")).expect("file");
    let piece = Random(3).bytes(1 << 16);
    while file.write_all(&piece).is_ok() {}
    drop(file);
    sync(made.dir());
    let before = common::tree(made.dir());
    let rebuilt = made.scratch().join("rebuilt");
    maps::assert_used(maps::frozen(&made, &rebuilt).verdict, "frozen");
    assert_image_is_good(&rebuilt, &before, 512);
}

#[test]
fn an_xfs_of_200_gib_with_a_coarse_map_comes_out_whole() {
    let spec = variant(200 * 1024, &["-m", "rmapbt=1"], 512);
    let made = require_some!(make(spec), MISSING);
    age(made.dir(), 1000);
    let before = common::tree(made.dir());
    let (rebuilt, full) = (made.scratch().join("rebuilt"), made.scratch().join("full"));
    common::freeze(made.dir());
    let Walked { verdict, map, .. } = maps::walk(made.device(), Still::Frozen);
    maps::rebuild(made.image(), &map, &rebuilt);
    copy(made.image(), &full);
    common::thaw(made.dir());
    assert!(map.is_coarse());
    maps::assert_used(verdict, "map");
    assert_map_is_right(
        &map,
        &reference_free(&full),
        &reference_unwritten(made.dir()),
        "coarse",
    );
    assert_image_is_good(&rebuilt, &before, 512);
}

#[test]
fn frozen_under_writers_with_open_deleted_files_it_comes_out_as_it_was() {
    let made = require_some!(make(VARIANTS[1]), MISSING);
    age(made.dir(), 500);
    let doomed = made.dir().join("doomed");
    let open = fs::File::create(&doomed).expect("file");
    open.write_all_at(&Random(9).bytes(1 << 20), 0)
        .expect("write");
    fs::remove_file(&doomed).expect("delete");
    let rebuilt = made.scratch().join("rebuilt");
    for _ in 0..3 {
        let writers = [
            Writer::start(made.dir()),
            Writer::start(&made.dir().join("pieces")),
        ];
        std::thread::sleep(Duration::from_millis(700));
        common::freeze(made.dir());
        let Walked { verdict, map, .. } = maps::walk(made.device(), Still::Frozen);
        let first = maps::witness(made.device());
        maps::rebuild(made.image(), &map, &rebuilt);
        let frozen = common::tree(made.dir());
        let second = maps::witness(made.device());
        drop(writers);
        common::thaw(made.dir());
        assert_eq!(first, second);
        maps::assert_used(verdict, "map");
        assert_image_is_good(&rebuilt, &frozen, 512);
    }
    drop(open);
}

#[test]
fn reflinked_files_keep_their_shared_blocks() {
    let made = require_some!(make(VARIANTS[0]), MISSING);
    age(made.dir(), 100);
    let (from, to) = (made.dir().join("striped"), made.dir().join("shared"));
    common::output(
        "cp",
        &[
            "--reflink=always",
            &from.to_string_lossy(),
            &to.to_string_lossy(),
        ],
    );
    let file = fs::OpenOptions::new().write(true).open(&to).expect("open");
    for stripe in (0..300).step_by(3) {
        file.write_all_at(b"changed after sharing", stripe * 131_072)
            .expect("write");
        file.write_all_at(b"into a hole", stripe * 131_072 + 70_000)
            .expect("write");
    }
    sync(made.dir());
    let before = common::tree(made.dir());
    let rebuilt = made.scratch().join("rebuilt");
    maps::assert_used(maps::frozen(&made, &rebuilt).verdict, "frozen");
    assert_image_is_good(&rebuilt, &before, 512);
}

#[test]
fn a_copy_of_a_moving_xfs_with_its_dirty_log_is_read_whole() {
    let mut made = require_some!(make(VARIANTS[0]), MISSING);
    common::fill(made.dir(), 60);
    let image = made.scratch().join("copy");
    copy(made.image(), &image);
    let dirty = maps::walk(&image, Still::Unmounted);
    assert_eq!(dirty.verdict.coverage, Coverage::Whole);
    assert!(
        dirty
            .verdict
            .doubt
            .is_some_and(|fault| fault.what().contains("log"))
    );
    assert_eq!(dirty.map.used_bytes(), dirty.map.size_bytes());
    // Also right behind an unmount record: the first write of a new mount makes it dirty.
    made.unmount();
    assert_eq!(
        maps::walk(made.image(), Still::Unmounted).verdict.coverage,
        Coverage::Used
    );
    made.mount();
    fs::write(made.dir().join("one"), b"more").expect("write");
    sync(made.dir());
    copy(made.image(), &image);
    assert_eq!(
        maps::walk(&image, Still::Unmounted).verdict.coverage,
        Coverage::Whole
    );
}

#[test]
fn a_log_that_wrapped_is_found_clean_after_unmount_and_dirty_before() {
    let spec = variant(320, &["--unsupported", "-l", "size=10m"], 512);
    let mut made = require_some!(make(spec), MISSING);
    let image = made.scratch().join("copy");
    for round in 0..4 {
        for number in 0..2500 {
            let path = made.dir().join(format!("{round}-{number}"));
            fs::write(&path, b"x").expect("write");
            if number % 50 == 0 {
                sync(made.dir());
            }
        }
        sync(made.dir());
        copy(made.image(), &image);
        assert_eq!(
            maps::walk(&image, Still::Unmounted).verdict.coverage,
            Coverage::Whole
        );
        made.unmount();
        let clean = maps::walk(made.image(), Still::Unmounted).verdict;
        maps::assert_used(clean, format_args!("round {round}"));
        made.mount();
    }
    let log = common::shell(
        &format!(
            "xfs_logprint -t '{}' 2>/dev/null | head -20",
            image.display()
        ),
        Limit::secs(60),
    );
    assert!(
        !log.stdout_text().contains("cycle: 1 "),
        "the log never wrapped: {log}"
    );
}

#[test]
fn the_witness_sees_a_thaw_with_any_change_and_a_second_freeze() {
    let made = require_some!(make(VARIANTS[0]), MISSING);
    common::fill(made.dir(), 30);
    common::freeze(made.dir());
    let first = maps::witness(made.device());
    assert_eq!(first, maps::witness(made.device()));
    common::thaw(made.dir());
    // An overwrite in place: no block is allocated or freed.
    let name = common::tree(made.dir())
        .into_keys()
        .find(|name| made.dir().join(name).is_file());
    let path = made.dir().join(name.expect("a file"));
    let file = fs::OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(b"Y", 0).expect("write");
    drop(file);
    common::freeze(made.dir());
    let second = maps::witness(made.device());
    common::thaw(made.dir());
    assert_ne!(first, second);
}

#[test]
fn external_logs_and_realtime_sections_are_refused_by_name() {
    require!(
        maps::native_with("mkfs.xfs"),
        "mkfs.xfs, and to run natively"
    );
    let scratch = Scratch::new();
    let other = scratch.join("other");
    common::sparse(&other, 100 << 20);
    for (option, word) in [("-l", "log"), ("-r", "realtime")] {
        let image = scratch.join(word);
        common::sparse(&image, 320 << 20);
        let device = if option == "-l" { "logdev" } else { "rtdev" };
        let value = format!("{device}={},size=64m", other.display());
        common::output(
            "mkfs.xfs",
            &["-q", "-f", option, &value, &image.to_string_lossy()],
        );
        let fault = maps::try_walk(&image, Still::Unmounted)
            .err()
            .expect("refused");
        assert!(fault.what().contains(word), "{fault}");
        assert_eq!(fault.kind(), floe::error::FaultKind::Refused);
    }
}

#[test]
fn version_4_images_with_512_byte_blocks_give_the_right_map() {
    require!(
        maps::native_with("mkfs.xfs"),
        "mkfs.xfs, and to run natively"
    );
    let scratch = Scratch::new();
    // mkfs.xfs populates from a prototype: no kernel here mounts version 4.
    let content = scratch.join("content");
    fs::write(&content, Random(11).bytes(30_000)).expect("content");
    let mut prototype = String::from("/dev/null\n0 0\nd--755 0 0\n");
    for number in 0..1200 {
        prototype += &format!("file{number} ---644 0 0 {}\n", content.display());
    }
    prototype += "$\n";
    let list = scratch.join("prototype");
    fs::write(&list, prototype).expect("prototype");
    for block in ["size=512", "size=4096", "size=1024"] {
        let image = scratch.join(block);
        common::sparse(&image, 330 << 20);
        let list = list.to_string_lossy();
        let path = image.to_string_lossy();
        let args = [
            "-q", "-f", "-m", "crc=0", "-n", "ftype=1", "-b", block, "-p", &list, &path,
        ];
        common::output("mkfs.xfs", &args);
        let Walked { verdict, map, .. } = maps::walk(&image, Still::Unmounted);
        maps::assert_used(verdict, block);
        assert_map_is_right(&map, &reference_free(&image), &[], block);
        let rebuilt = scratch.join("rebuilt");
        maps::rebuild(&image, &map, &rebuilt);
        common::fsck("xfs", &rebuilt);
    }
}

/// Flips bytes all over the metadata. Never a panic, and never a map that frees what the intact image's files need, unless
/// the flip is where only a checksum (which version 4 lacks) would tell.
#[test]
fn flipped_bytes_end_in_more_used_blocks_and_never_in_a_panic() {
    require!(
        maps::native_with("mkfs.xfs"),
        "mkfs.xfs, and to run natively"
    );
    let mut made = require_some!(make(VARIANTS[1]), MISSING);
    age(made.dir(), 1500);
    made.unmount();
    let image = made.image().to_owned();
    let good = maps::walk(&image, Still::Unmounted);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&image)
        .expect("image");
    let used = maps::used_extents(&good.map);
    let mut random = Random(99);
    let mut worse = 0;
    for round in 0..400 {
        // Half of the flips go to the group headers, where everything begins.
        let place = if round % 2 == 0 {
            random.below(4) * (good.map.size_bytes() / 4) + random.below(4096)
        } else {
            let index = usize::try_from(random.below(used.len() as u64)).expect("small");
            used[index].offset + random.below(used[index].length_bytes.min(65_536))
        };
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).expect("read");
        let flipped = [byte[0] ^ 1 << random.below(8)];
        file.write_all_at(&flipped, place).expect("write");
        if let Some(still) = [Still::Frozen, Still::Unmounted].get(round % 3 / 2)
            && let Ok(walked) =
                std::panic::catch_unwind(|| probe_and_walk(&image, *still)).expect("no panic")
        {
            for extent in &used {
                let now = walked.map.next_used(extent.offset, extent.end());
                assert_eq!(
                    now,
                    Some(*extent),
                    "round {round}: flip at {place:#x} lost used blocks"
                );
            }
            worse += usize::from(walked.verdict.coverage != Coverage::Used);
        }
        file.write_all_at(&byte, place).expect("write");
    }
    assert!(worse > 20, "only {worse} flips were noticed");
}

/// `Err` when the flip made it no XFS at all.
fn probe_and_walk(image: &Path, still: Still) -> Result<Walked, ()> {
    let device = floe::device::Device::open(image, floe::device::Access::Read).map_err(|_| ())?;
    if floe::fs::probe(&device).map_err(|_| ())?.is_none() {
        return Err(());
    }
    maps::try_walk(image, still).map_err(|_| ())
}

#[test]
fn floe_dumps_a_mounted_xfs_and_says_that_only_used_blocks_were_read() {
    let mut floe = require_floe!();
    let made = require_some!(LoopFs::make(VARIANTS[0]).ok(), "root, mkfs.xfs and XFS");
    age(made.dir(), 300);
    let before = common::tree(made.dir());
    let (image, report) = (made.scratch().join("dumped"), made.scratch().join("report"));
    floe.args(["dump", "-z", "none", "-o"]).arg(&image);
    floe.arg("--report").arg(&report).arg(made.dir());
    common::run(&mut floe, Limit::secs(120)).expect_code(0);
    common::assert_not_frozen(made.dir(), "after the dump");
    let report = fs::read_to_string(&report).expect("report");
    let words: String = report.split_whitespace().collect();
    assert!(words.contains(r#""map":"used""#), "{report}");
    assert!(words.contains(r#""consistent":"frozen""#), "{report}");
    assert_eq!(maps::count_marks(&image, SECRET), 0, "secrets came out");
    assert_image_is_good(&image, &before, 512);
}
