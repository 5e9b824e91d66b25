//! The ext reader against real filesystems: made by mke2fs in many ways, filled, aged, frozen; its map compared with what
//! dumpe2fs says of a full copy taken under the same freeze, and the image built from it with e2fsck and file by file.

use crate::common::{self, LoopFs, Mounted, Random, Scratch, Spec, Writer};
use crate::maps::{self, Walked};
use floe::device::{Access, Device, ReadAt};
use floe::error::Fault;
use floe::fs::{self as readers, Coverage, Still, UsedMap};
use floe::units::BlockSize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

// ---- the reader, called as the verbs call it ------------------------------------------------------------------------

/// Probes, walks and witnesses twice; the two must be equal.
fn read(device: &dyn ReadAt, still: Still) -> Result<Walked, Fault> {
    let seen = maps::walk_on(device, still)?;
    maps::assert_witness_holds(device, &seen.identity);
    Ok(seen)
}

fn open(path: &Path) -> Device {
    Device::open(path, Access::Read).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

// ---- what the reference tools say -----------------------------------------------------------------------------------

/// Blocks by number, true where they are used.
struct Reference {
    used: Vec<bool>,
    /// Blocks that may come out as zeros although they are used: the journal, inode tables, unwritten extents, and what was set aside
    /// and never written.
    may_be_zero: Vec<bool>,
}

fn ranges(text: &str) -> impl Iterator<Item = (usize, usize)> + '_ {
    text.split([',', ' ']).filter_map(|part| {
        let (first, last) = part
            .trim()
            .split_once('-')
            .unwrap_or((part.trim(), part.trim()));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

/// From dumpe2fs and debugfs, on a full copy.
fn reference(image: &Path, blocks: usize) -> Reference {
    let path = image.to_string_lossy();
    let mut used = vec![true; blocks];
    let mut may_be_zero = vec![false; blocks];
    let text = common::output("dumpe2fs", &[&path]);
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse::<usize>().ok())
    };
    let block_bytes = number("Block size:").expect("block size");
    // Ranges of free clusters end with the first block of the last one.
    let ratio = number("Cluster size:").map_or(1, |bytes| bytes / block_bytes);
    let mut group = "";
    for line in text.lines() {
        if line.starts_with("Group ") && line.contains(": (Blocks") {
            group = line;
        }
        if group.is_empty() {
            continue;
        }
        // Bitmaps that were never written, and room beside the copies of the descriptors.
        let unwritten = [
            ("Block bitmap at ", group.contains("BLOCK_UNINIT")),
            ("Inode bitmap at ", group.contains("INODE_UNINIT")),
            ("Reserved GDT blocks at ", !group.starts_with("Group 0:")),
        ];
        for (name, is_unwritten) in unwritten {
            let rest = line.split(name).nth(1).filter(|_| is_unwritten);
            let place = rest.and_then(|rest| ranges(rest.split(' ').next()?).next());
            if let Some((first, last)) = place {
                may_be_zero[first..=last].fill(true);
            }
        }
        if let Some(list) = line.trim().strip_prefix("Free blocks: ") {
            for (first, last) in ranges(list) {
                used[first..(last + ratio).min(blocks)].fill(false);
            }
        }
        if let Some(rest) = line.trim().strip_prefix("Inode table at ") {
            let (first, last) = ranges(rest.split(' ').next().unwrap()).next().unwrap();
            may_be_zero[first..=last].fill(true);
        }
    }
    let debugfs = |request: &str| common::output("debugfs", &["-R", request, &path]);
    if text.contains("has_journal") {
        for (index, (block, _)) in ranges(&debugfs("blocks <8>").replace('\n', " ")).enumerate() {
            may_be_zero[block] = index > 0;
        }
    }
    if text.contains("extent") {
        for name in ["/fallocated", "/over-the-secret", "/folder4/file4"] {
            let list = debugfs(&format!("dump_extents -l {name}"));
            for line in list.lines().filter(|line| line.contains("Uninit")) {
                // Level Entries Logical Physical Length Flags: `0/ 0   1/  3     0 -  4095 34816 - 38911   4096 Uninit`
                let words: Vec<&str> = line.split_whitespace().collect();
                let dash = words
                    .iter()
                    .rposition(|word| *word == "-")
                    .expect("a range");
                let (first, last): (usize, usize) = (
                    words[dash - 1].parse().unwrap(),
                    words[dash + 1].parse().unwrap(),
                );
                may_be_zero[first..=last].fill(true);
            }
        }
    }
    Reference { used, may_be_zero }
}

/// The map is a superset of what is used, less what may be zero, and has nothing that is free.
fn compare(seen: &Walked, reference: &Reference) {
    let unit = u64::from(seen.identity.block_bytes);
    let (mut used, mut reference_used, mut zeroed) = (0u64, 0u64, 0u64);
    for (block, wanted) in reference.used.iter().enumerate() {
        let is_used = seen.map.is_used(u64::try_from(block).unwrap() * unit);
        used += u64::from(is_used);
        reference_used += u64::from(*wanted);
        if *wanted && !is_used {
            assert!(reference.may_be_zero[block], "block {block} is used");
            zeroed += 1;
        }
    }
    println!("{used} blocks read, {reference_used} in use, {zeroed} of them zeros");
    assert!(
        used <= reference_used + reference_used / 50,
        "{used} of {reference_used}"
    );
}

/// e2fsck's exit code.
fn e2fsck(options: &str, image: &Path) -> (i32, String) {
    let run = common::run(
        Command::new("e2fsck").args([options, &image.to_string_lossy()]),
        common::Limit::secs(120),
    );
    (run.code.expect("ended"), run.to_string())
}

// ---- a filesystem with a past ---------------------------------------------------------------------------------------

const SECRET: &[u8] = b"the quick secret that was deleted long ago";

/// Fills and ages; gives the files that are open and deleted.
fn age(dir: &Path, has_fallocate: bool) -> Vec<File> {
    common::fill(dir, 300);
    let secret = dir.join("secret");
    fs::write(&secret, SECRET.repeat(100_000)).expect("secret");
    common::output("sync", &["-f", &dir.to_string_lossy()]);
    fs::remove_file(&secret).expect("remove");
    if has_fallocate {
        let allocate = |name: &str, length: &str| {
            common::output(
                "fallocate",
                &["-l", length, &dir.join(name).to_string_lossy()],
            );
        };
        allocate("over-the-secret", "6M");
        allocate("fallocated", "2M");
        // Written in the middle: three extents.
        let file = fs::OpenOptions::new()
            .write(true)
            .open(dir.join("fallocated"))
            .unwrap();
        file.write_all_at(&[0x55; 40_000], 500_000).expect("write");
    }
    // Fragments: every second block of a file, in two files at once.
    let fragments: Vec<File> = (0..2)
        .map(|n| File::create(dir.join(format!("fragments{n}"))).expect("create"))
        .collect();
    for block in 0..300u64 {
        for file in &fragments {
            file.write_all_at(&[7; 1024], block * 8192).expect("write");
            if block % 32 == 0 {
                file.sync_all().expect("sync");
            }
        }
    }
    let _ = Command::new("setfattr")
        .args(["-n", "user.long", "-v", &"x".repeat(800)])
        .arg(dir.join("fragments0"))
        .status();
    (0..5)
        .map(|n| {
            let path = dir.join(format!("open{n}"));
            fs::write(&path, vec![b'o'; 100_000]).expect("write");
            let file = File::open(&path).expect("open");
            fs::remove_file(&path).expect("remove");
            file
        })
        .collect()
}

/// Removes the multiple mount protection's "in use", which e2fsck would wait for.
fn clear_mmp(image: &Path) {
    common::output(
        "tune2fs",
        &["-f", "-E", "clear_mmp", &image.to_string_lossy()],
    );
}

/// A variant of mkfs and what to do to it.
#[derive(Clone, Copy, Default)]
struct Variant<'a> {
    kind: &'a str,
    mib: u64,
    mkfs: &'a [&'a str],
    options: &'a str,
    /// Grown to this size after use.
    grown_mib: Option<u64>,
}

/// Unmounted: growing a mounted one takes a capability that containers lack.
fn grow(made: &mut LoopFs, mib: u64) {
    made.unmount();
    File::options()
        .write(true)
        .open(made.image())
        .and_then(|file| file.set_len(mib << 20))
        .expect("grow");
    let device = made.device().to_string_lossy().into_owned();
    common::output("losetup", &["-c", &device]);
    let (code, text) = e2fsck("-fp", made.device());
    assert!(code <= 1, "{text}");
    common::output("resize2fs", &[&device]);
    made.mount();
}

/// Frozen under use: map, image, checker, files.
fn check(variant: Variant<'_>) {
    let spec = Spec {
        kind: variant.kind,
        mib: variant.mib,
        mkfs: variant.mkfs,
        options: variant.options,
        ..Spec::default()
    };
    let mut made = require_ok!(LoopFs::make(spec));
    let has_extents =
        common::output("dumpe2fs", &["-h", &made.device().to_string_lossy()]).contains("extent");
    let mut open_files = age(made.dir(), has_extents);
    if let Some(mib) = variant.grown_mib {
        open_files.clear();
        grow(&mut made, mib);
        fs::write(made.dir().join("after-growth"), vec![3; 3_000_000]).expect("write");
    }
    // Dirty pages and delayed allocation are the freeze's to settle.
    let writer = Writer::start(made.dir());
    std::thread::sleep(std::time::Duration::from_millis(300));
    common::freeze(made.dir());
    let device = open(made.device());
    let seen = read(&device, Still::Frozen).expect("walk");
    let (image, whole) = (made.scratch().join("built"), made.scratch().join("whole"));
    maps::rebuild_from(&device, &seen.map, &image);
    let all = UsedMap::new(seen.map.size_bytes(), BlockSize::from_bytes(1024).unwrap()).unwrap();
    maps::rebuild_from(&device, &all, &whole);
    let files = common::tree(made.dir());
    common::thaw(made.dir());
    drop(writer);
    drop(open_files);
    assert_eq!(seen.verdict.doubt, None);
    maps::assert_used(seen.verdict, "map");
    let blocks = seen.identity.size_bytes / u64::from(seen.identity.block_bytes);
    compare(&seen, &reference(&whole, usize::try_from(blocks).unwrap()));
    check_image(&image, &files, variant.kind);
    if variant
        .mkfs
        .iter()
        .any(|option| option.contains("bigalloc"))
    {
        // The rest of a cluster of which a file uses a block is nobody's, but not free: it is read.
        return;
    }
    let found = Command::new("grep")
        .args(["-qaF", std::str::from_utf8(SECRET).unwrap()])
        .arg(&image)
        .status()
        .expect("grep")
        .success();
    assert!(!found, "a deleted secret is in the image");
}

fn check_image(image: &Path, files: &BTreeMap<PathBuf, String>, kind: &str) {
    let features = common::output("dumpe2fs", &["-h", &image.to_string_lossy()]);
    if features.contains("mmp") {
        clear_mmp(image);
    }
    // Open and deleted files, and a missing journal, are e2fsck -p's to settle (promise 4).
    let (code, text) = e2fsck("-p", image);
    assert!(code <= 1, "{text}");
    let (code, text) = e2fsck("-fn", image);
    assert_eq!(code, 0, "{text}");
    let mounted = Mounted::new(kind, image, "ro");
    common::assert_same_tree(files, &common::tree(mounted.dir()));
}

macro_rules! variants {
    ($($name:ident: $kind:literal $mib:literal [$($mkfs:literal),*] $($field:ident = $value:expr)?;)*) => {$(
        #[test]
        fn $name() {
            check(Variant { kind: $kind, mib: $mib, mkfs: &[$($mkfs),*], $($field: $value,)? ..Variant::default() });
        }
    )*};
}

variants! {
    ext2_with_1k_blocks_and_a_copy_of_the_superblock_in_every_group: "ext2" 64 ["-b", "1024", "-O", "none,filetype"];
    ext2_as_made_by_default: "ext2" 64 ["-b", "4096"];
    ext3_with_1k_blocks: "ext3" 64 ["-b", "1024"];
    ext3_with_4k_blocks: "ext3" 64 ["-b", "4096"];
    ext4_as_made_by_default: "ext4" 96 [];
    ext4_with_1k_blocks: "ext4" 64 ["-b", "1024"];
    ext4_with_2k_blocks_in_small_groups: "ext4" 64 ["-b", "2048", "-g", "2048"];
    ext4_with_inline_data_mmp_and_clusters_of_16k: "ext4" 96 ["-O", "bigalloc,inline_data,mmp", "-C", "16384", "-I", "256"];
    ext4_with_1k_blocks_in_clusters: "ext4" 64 ["-b", "1024", "-O", "bigalloc", "-C", "8192"];
    ext4_with_meta_block_groups: "ext4" 160 ["-b", "1024", "-O", "meta_bg,^resize_inode"];
    ext4_with_two_backups_of_the_superblock: "ext4" 96 ["-b", "1024", "-O", "sparse_super2,^resize_inode"];
    ext4_without_flexible_groups: "ext4" 64 ["-b", "1024", "-O", "^flex_bg"];
    ext4_without_64bit: "ext4" 64 ["-O", "^64bit"];
    ext4_with_uninit_bg_and_without_metadata_csum: "ext4" 64 ["-b", "1024", "-O", "^metadata_csum,uninit_bg"];
    ext4_with_uninit_bg_and_64bit: "ext4" 64 ["-b", "1024", "-O", "^metadata_csum,uninit_bg,64bit"];
    ext4_without_any_checksum: "ext4" 64 ["-O", "^metadata_csum,^uninit_bg"];
    ext4_with_fast_commits_and_an_orphan_file: "ext4" 64 ["-O", "fast_commit,orphan_file"];
    ext4_with_attributes_in_inodes: "ext4" 64 ["-O", "ea_inode"];
    ext4_whose_tables_were_all_written: "ext4" 64 ["-E", "lazy_itable_init=0,lazy_journal_init=0"];
    ext4_whose_tables_wait_to_be_written: "ext4" 64 ["-b", "1024", "-E", "lazy_itable_init=1"] options = "noinit_itable";
    ext4_without_reserve_and_with_many_inodes: "ext4" 64 ["-m", "0", "-i", "2048"];
    ext4_with_small_inodes: "ext4" 64 ["-I", "128"];
    ext4_without_a_journal: "ext4" 64 ["-O", "^has_journal"];
    ext4_with_data_in_the_journal: "ext4" 64 [] options = "data=journal";
    ext4_with_a_checksum_seed_casefold_and_large_folders: "ext4" 64 ["-O", "metadata_csum_seed,large_dir"];
    ext4_grown_within_its_reserve: "ext4" 64 ["-b", "1024"] grown_mib = Some(200);
    ext4_grown_without_a_reserve: "ext4" 64 ["-b", "1024", "-O", "^resize_inode"] grown_mib = Some(420);
    ext4_whose_last_group_is_short: "ext4" 67 ["-b", "1024"];
}

// ---- not mounted: what this kernel may not mount --------------------------------------------------------------------

/// An image filled by mke2fs itself; `None` when it is not installed or cannot make this.
fn made_full(scratch: &Scratch, mib: u64, mkfs: &[&str]) -> Option<PathBuf> {
    let (folder, image) = (scratch.join("content"), scratch.join("image"));
    if !common::have("mke2fs") || !common::have("debugfs") {
        return None;
    }
    if !folder.exists() {
        fs::create_dir(&folder).expect("folder");
        common::fill(&folder, 200);
        // Many extents, so that a tree has depth.
        let holes = File::create(folder.join("holes")).expect("create");
        for piece in 0..90 {
            holes
                .write_all_at(&[9; 5000], piece * 131_072)
                .expect("write");
        }
    }
    common::sparse(&image, mib << 20);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&folder);
    mke2fs.args(mkfs).arg(&image);
    common::run(&mut mke2fs, common::Limit::secs(60)).expect_code(0);
    // mke2fs leaves quota files behind that do not count what it copied.
    let (code, text) = e2fsck("-fy", &image);
    assert!(code <= 1, "{text}");
    Some(image)
}

fn check_unmounted(mib: u64, mkfs: &[&str]) {
    let scratch = Scratch::new();
    let image = require_some!(made_full(&scratch, mib, mkfs), "e2fsprogs");
    let device = open(&image);
    let seen = read(&device, Still::Unmounted).expect("walk");
    assert_eq!(seen.verdict.doubt, None);
    let blocks = seen.identity.size_bytes / u64::from(seen.identity.block_bytes);
    compare(&seen, &reference(&image, usize::try_from(blocks).unwrap()));
    let built = scratch.join("built");
    maps::rebuild_from(&device, &seen.map, &built);
    let (code, text) = e2fsck("-fn", &built);
    assert_eq!(code, 0, "{text}");
    let out = scratch.join("out");
    fs::create_dir(&out).expect("folder");
    let request = format!("rdump / {}", out.display());
    common::output("debugfs", &["-R", &request, &built.to_string_lossy()]);
    common::assert_same_tree(&common::tree(&scratch.join("content")), &common::tree(&out));
}

#[test]
fn blocks_of_64_kib_which_few_kernels_mount() {
    check_unmounted(256, &["-b", "65536"]);
}

#[test]
fn blocks_of_16_kib_and_inodes_of_1_kib() {
    check_unmounted(128, &["-b", "16384", "-I", "1024"]);
}

#[test]
fn quota_files_and_projects() {
    check_unmounted(64, &["-O", "quota,project"]);
}

#[test]
fn encryption_verity_and_casefold_do_not_change_what_is_used() {
    check_unmounted(
        64,
        &["-O", "encrypt,verity,casefold,stable_inodes,large_dir"],
    );
}

#[test]
fn flexible_groups_of_one_and_of_many() {
    check_unmounted(64, &["-b", "1024", "-G", "1"]);
    check_unmounted(64, &["-b", "1024", "-G", "64"]);
}

#[test]
fn a_map_coarser_than_a_block_frees_most_and_says_so() {
    let scratch = Scratch::new();
    let mkfs = [
        "-J",
        "size=16",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1",
    ];
    let image = require_some!(made_full(&scratch, 200 << 10, &mkfs), "e2fsprogs");
    let seen = read(&open(&image), Still::Unmounted).expect("walk");
    assert!(seen.map.is_coarse());
    assert_eq!(seen.verdict.coverage, Coverage::Partial);
    assert!(seen.map.used_bytes() < 1 << 30, "{}", seen.map.used_bytes());
    let built = scratch.join("built");
    maps::rebuild_from(&open(&image), &seen.map, &built);
    let (code, text) = e2fsck("-fn", &built);
    assert_eq!(code, 0, "{text}");
}

// ---- when the disk says that bitmaps are not to be believed ---------------------------------------------------------

/// Coverage and doubt after `requests` to debugfs on a sound image.
fn after(requests: &[&str], still: Still) -> Option<(Coverage, String)> {
    let scratch = Scratch::new();
    let image = made_full(&scratch, 32, &[])?;
    for request in requests {
        common::output("debugfs", &["-w", "-R", request, &image.to_string_lossy()]);
    }
    let verdict = read(&open(&image), still).expect("walk").verdict;
    let doubt = verdict.doubt.map(|fault| fault.to_string());
    Some((verdict.coverage, doubt.unwrap_or_default()))
}

#[test]
fn state_and_features_decide_whether_anything_is_believed() {
    let cases: [(&str, Coverage, &str); 7] = [
        ("stats", Coverage::Used, ""),
        (
            "ssv state 3",
            Coverage::Whole,
            "the superblock records errors: run e2fsck",
        ),
        (
            "ssv state 0",
            Coverage::Whole,
            "not cleanly unmounted: run e2fsck",
        ),
        (
            "feature +needs_recovery",
            Coverage::Whole,
            "the journal needs recovery",
        ),
        (
            "feature +FEATURE_I30",
            Coverage::Whole,
            "unknown incompatible feature",
        ),
        (
            "feature +FEATURE_R30",
            Coverage::Whole,
            "unknown read-only feature",
        ),
        (
            "ssv free_blocks_count 77",
            Coverage::Whole,
            "sum of free blocks",
        ),
    ];
    for (request, coverage, doubt) in cases {
        let found = require_some!(after(&[request], Still::Unmounted), "e2fsprogs");
        assert_eq!(found, (coverage, doubt.to_owned()), "{request}");
    }
    let found = require_some!(after(&["stats"], Still::Moving), "e2fsprogs");
    assert_eq!(found.0, Coverage::Whole);
}

#[test]
fn a_group_that_does_not_add_up_is_read_whole_and_the_others_are_not() {
    let scratch = Scratch::new();
    let mkfs = ["-b", "1024", "-O", "^metadata_csum,^uninit_bg,^flex_bg"];
    let image = require_some!(made_full(&scratch, 64, &mkfs), "e2fsprogs");
    let sound = read(&open(&image), Still::Unmounted).expect("walk");
    let path = image.to_string_lossy();
    common::output(
        "debugfs",
        &["-w", "-R", "set_bg 5 free_blocks_count 17", &path],
    );
    let seen = read(&open(&image), Still::Unmounted).expect("walk");
    assert_eq!(seen.verdict.coverage, Coverage::Partial);
    let doubt = seen.verdict.doubt.expect("a doubt").to_string();
    assert_eq!(doubt, "free count of the block bitmap in group 5");
    let group = 8192 * 1024;
    for number in 0..8u64 {
        let range = (1 + number * 8192) * 1024;
        let mut used = 0;
        let mut from = range;
        while let Some(run) = seen.map.next_used(from, range + group) {
            used += run.length_bytes;
            from = run.end();
        }
        let all = (sound.map.size_bytes() - range).min(group);
        assert_eq!(used == all, number == 5, "group {number}");
    }
}

#[test]
fn a_journal_on_another_device_is_refused_and_so_is_the_device() {
    let scratch = Scratch::new();
    let image = require_some!(
        made_full(&scratch, 32, &["-O", "^has_journal"]),
        "e2fsprogs"
    );
    // Refused by mke2fs on plain files, so the superblock is told.
    let path = image.to_string_lossy();
    common::output("debugfs", &["-w", "-R", "feature +has_journal", &path]);
    let fault = read(&open(&image), Still::Unmounted)
        .err()
        .expect("refused");
    assert_eq!(fault.exit().code(), 4, "{fault}");
    let journal = scratch.join("journal");
    common::sparse(&journal, 16 << 20);
    let place = journal.to_string_lossy();
    common::output(
        "mke2fs",
        &["-q", "-F", "-O", "journal_dev", "-b", "4096", &place],
    );
    let identity = readers::probe(&open(&journal))
        .expect("probe")
        .expect("recognised");
    assert_eq!(identity.kind, readers::Kind::ExtJournal);
    let fault = read(&open(&journal), Still::Unmounted)
        .err()
        .expect("refused");
    assert_eq!(fault.exit().code(), 4, "{fault}");
}

// ---- damage ---------------------------------------------------------------------------------------------------------

/// Flips bytes where metadata lies, many times: nothing panics, and with checksums no block in use gets lost.
fn damage(mkfs: &[&str], has_checksums: bool, seed: u64) {
    let scratch = Scratch::new();
    let image = require_some!(made_full(&scratch, 24, mkfs), "e2fsprogs");
    let path = image.to_string_lossy();
    // Unwritten extents, so that there is something to free wrongly.
    common::output(
        "debugfs",
        &["-w", "-R", "fallocate /folder4/file4 100 700", &path],
    );
    let mut bytes = fs::read(&image).expect("image");
    let sound = read(&bytes, Still::Unmounted).expect("walk");
    assert_eq!(sound.verdict.doubt, None);
    let unit = sound.identity.block_bytes;
    let blocks = sound.identity.size_bytes / u64::from(unit);
    let reference = reference(&image, usize::try_from(blocks).unwrap());
    let metadata: Vec<u64> = (0..blocks)
        .filter(|block| {
            let start = usize::try_from(block * u64::from(unit)).unwrap();
            let used = sound.map.is_used(block * u64::from(unit));
            // Tables, bitmaps, descriptors, tree nodes and folders, not the text of files.
            used && bytes[start..][..64]
                .iter()
                .filter(|byte| **byte == 0)
                .count()
                > 8
        })
        .collect();
    assert!(metadata.len() > 20);
    let mut random = Random(seed);
    for round in 0..400 {
        let mut undo = Vec::new();
        for _ in 0..=random.below(3) {
            let pick = usize::try_from(random.below(metadata.len().try_into().unwrap())).unwrap();
            // Half of the damage goes to the first blocks: superblock and descriptors.
            let block = metadata[if random.below(2) == 0 { pick % 4 } else { pick }];
            let place = block * u64::from(unit) + random.below(unit.into());
            let place = usize::try_from(place).unwrap();
            undo.push((place, bytes[place]));
            bytes[place] ^= 1 << random.below(8);
        }
        if let Ok(Some(identity)) = readers::probe(&bytes)
            && let Some(block) = BlockSize::from_bytes(identity.block_bytes.into())
            && identity.size_bytes < 1 << 40
            && let Ok(seen) = read(&bytes, Still::Unmounted)
            && has_checksums
            && seen.identity.size_bytes == sound.identity.size_bytes
        {
            assert!(block.bytes() > 0);
            for (index, used) in reference.used.iter().enumerate() {
                let is_used = seen
                    .map
                    .is_used(u64::try_from(index).unwrap() * u64::from(unit));
                assert!(
                    is_used || !used || reference.may_be_zero[index],
                    "round {round}: block {index} lost after {undo:?}"
                );
            }
        }
        for (place, byte) in undo.into_iter().rev() {
            bytes[place] = byte;
        }
    }
}

#[test]
fn damage_to_metadata_with_checksums_never_loses_a_block_in_use() {
    damage(&["-b", "1024", "-N", "512"], true, 0x0dd_ba11);
    damage(
        &["-b", "4096", "-N", "512", "-O", "bigalloc"],
        true,
        0x5ca1e,
    );
}

#[test]
fn damage_to_metadata_without_checksums_ends_without_a_panic() {
    damage(
        &["-b", "1024", "-N", "512", "-O", "^metadata_csum,^uninit_bg"],
        false,
        77,
    );
    damage(
        &[
            "-b",
            "1024",
            "-N",
            "512",
            "-O",
            "^metadata_csum,uninit_bg,^extent,^64bit",
        ],
        false,
        78,
    );
    damage(
        &[
            "-b",
            "1024",
            "-N",
            "512",
            "-O",
            "meta_bg,^resize_inode,^metadata_csum",
        ],
        false,
        79,
    );
}
