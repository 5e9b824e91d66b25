//! The ext reader against real filesystems: made by mke2fs in many ways, filled, aged, frozen; its map compared with what
//! dumpe2fs says of a full copy taken under the same freeze, and the image built from it with e2fsck and file by file.

use crate::common::{self, LoopFs, Mounted, Spec};
use floe::device::{Access, Device, ReadAt};
use floe::error::Fault;
use floe::fs::{self as readers, Coverage, Identity, SCRATCH_BYTES, Still, UsedMap, Verdict, Walk};
use floe::units::BlockSize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

// ---- the reader, called as the verbs call it ------------------------------------------------------------------------

struct Seen {
    identity: Identity,
    verdict: Verdict,
    map: UsedMap,
}

/// Probes, walks and witnesses twice; the two must be equal.
fn read(device: &dyn ReadAt, still: Still) -> Result<Seen, Fault> {
    let identity = readers::probe(device)?.expect("recognised");
    let block = BlockSize::from_bytes(identity.block_bytes.into()).expect("block size");
    let mut map = UsedMap::new(identity.size_bytes, block).expect("map");
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut walk = Walk::new(device, &mut scratch);
    let verdict = readers::walk(&identity, still, &mut walk, &mut map)?;
    let mut witness = || readers::witness(&identity, &mut Walk::new(device, &mut scratch));
    assert_eq!(witness()?, witness()?);
    Ok(Seen {
        identity,
        verdict,
        map,
    })
}

fn open(path: &Path) -> Device {
    Device::open(path, Access::Read).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

/// What `dump` would write: used blocks, zeros elsewhere.
fn build(device: &dyn ReadAt, map: &UsedMap, path: &Path) {
    let mut file = File::create(path).expect("image");
    file.set_len(map.size_bytes()).expect("image");
    let mut from = 0;
    while let Some(extent) = map
        .next_used(from, from + (1 << 20))
        .or_else(|| map.next_used(from, u64::MAX))
    {
        let length = extent.length_bytes.min(1 << 20);
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        device.read_at(extent.offset, &mut bytes).expect("read");
        file.seek(SeekFrom::Start(extent.offset)).expect("seek");
        file.write_all(&bytes).expect("write");
        from = extent.offset + length;
    }
}

// ---- what the reference tools say -----------------------------------------------------------------------------------

/// Blocks by number, true where they are used.
struct Reference {
    used: Vec<bool>,
    /// Blocks that may come out as zeros although they are used: the journal, inode tables, unwritten extents.
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
    let mut in_groups = false;
    for line in text.lines() {
        in_groups |= line.starts_with("Group 0:");
        if !in_groups {
            continue;
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
        for name in ["/fallocated", "/over-the-secret"] {
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
fn compare(seen: &Seen, reference: &Reference) {
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
    let mut made = match LoopFs::make(spec) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let has_extents =
        common::output("dumpe2fs", &["-h", &made.device().to_string_lossy()]).contains("extent");
    let mut open_files = age(made.dir(), has_extents);
    if let Some(mib) = variant.grown_mib {
        open_files.clear();
        grow(&mut made, mib);
        fs::write(made.dir().join("after-growth"), vec![3; 3_000_000]).expect("write");
    }
    common::output("sync", &["-f", &made.dir().to_string_lossy()]);
    common::freeze(made.dir());
    let device = open(made.device());
    let seen = read(&device, Still::Frozen).expect("walk");
    let (image, whole) = (made.scratch().join("built"), made.scratch().join("whole"));
    build(&device, &seen.map, &image);
    let all = UsedMap::new(seen.map.size_bytes(), BlockSize::from_bytes(1024).unwrap()).unwrap();
    build(&device, &all, &whole);
    let files = common::tree(made.dir());
    common::thaw(made.dir());
    drop(open_files);
    assert_eq!(seen.verdict.doubt, None);
    assert_eq!(seen.verdict.coverage, Coverage::Used);
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
