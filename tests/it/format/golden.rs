//! Files that come out empty: on every kind of ext filesystem the named files have length 0, nothing of what they held is in the
//! image, everything else is bit for bit what it was, and e2fsck finds nothing.

use crate::common::{self, LoopFs, Mounted, Scratch, Spec};
use floe::device::{Access, Device, ReadAt};
use floe::error::Fault;
use floe::fs::files::{self as named, Emptying, Pattern};
use floe::fs::{self as readers, Coverage, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::overlay::{OverlaidPart, Overlay};
use floe::units::BlockSize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

// ---- the engine, called as the verbs call it ------------------------------------------------------------------------

/// An image of `device`, and what was emptied in it.
fn image(device: &dyn ReadAt, patterns: &[&str], path: &Path) -> Result<Emptying, (Fault, String)> {
    let plain = |fault| (fault, String::new());
    let identity = readers::probe(device).map_err(plain)?.expect("recognised");
    let block = BlockSize::from_bytes(identity.block_bytes.into()).expect("block size");
    let mut map = UsedMap::new(identity.size_bytes, block).expect("map");
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut walk = Walk::new(device, &mut scratch);
    let verdict = readers::walk(&identity, Still::Unmounted, &mut walk, &mut map).map_err(plain)?;
    assert_eq!(verdict.coverage, Coverage::Used, "{:?}", verdict.doubt);
    let patterns = patterns
        .iter()
        .map(|text| Pattern::parse(text.as_bytes()).expect(text));
    let patterns: Vec<Pattern> = patterns.collect();
    let count = patterns.len();
    let mut emptying = Emptying::new(patterns, count);
    let mut overlay = Overlay::new(4096);
    if !emptying.is_empty() {
        let mut layer = OverlaidPart::new(device, &mut overlay, 0);
        let still = Still::Unmounted;
        named::empty(
            &identity,
            still,
            &mut walk,
            &mut map,
            &mut layer,
            &mut emptying,
        )
        .map_err(|fault| {
            let at = String::from_utf8_lossy(&emptying.log.at).into_owned();
            (fault, at)
        })?;
    }
    let file = File::create(path).expect("image");
    file.set_len(map.size_bytes()).expect("image");
    let mut from = 0;
    while let Some(extent) = map.next_used(from, u64::MAX) {
        let length = extent.length_bytes.min(1 << 20);
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        device.read_at(extent.offset, &mut bytes).expect("read");
        overlay.apply(0, extent.offset, &mut bytes);
        file.write_all_at(&bytes, extent.offset).expect("write");
        from = extent.offset + length;
    }
    Ok(emptying)
}

fn open(path: &Path) -> Device {
    Device::open(path, Access::Read).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

fn debugfs(image: &Path, request: &str) -> String {
    common::output("debugfs", &["-R", request, &image.to_string_lossy()])
}

fn e2fsck(image: &Path) {
    let path = image.to_string_lossy();
    let run = common::run(
        Command::new("e2fsck").args(["-fn", &path]),
        common::Limit::secs(120),
    );
    assert_eq!(run.code, Some(0), "{run}");
}

// ---- a device with secrets ------------------------------------------------------------------------------------------

/// Each secret holds this and nothing else does.
const MARK: &str = "SECRET-OF-THIS-ONE-DEVICE";

/// The files that hold secrets.
const SECRETS: &[&str] = &[
    "etc/machine-id",
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_ed25519_key",
    "root/.bash_history",
    "home/a/.bash_history",
    "home/b/.ash_history",
    "var/lib/big",
    "var/lib/fragments",
    "var/lib/holes",
    "var/lib/middling",
    "var/lib/seeds/one",
    "var/lib/seeds/below/two",
    "var/lib/seeds/below/deeper/three",
];

/// Names that lead to them.
const PATTERNS: &[&str] = &[
    "/var/lib/dbus/machine-id",
    "/alias/ssh/ssh_host_*",
    "/root/.*_history",
    "/home/*/.*_history",
    "/var/lib/big",
    "/var/../var/./lib/fragments",
    "/up/lib/holes",
    "/var/lib/second-name-of-middling",
    "/var/lib/seeds/",
    "/var/lib/seeds/one",
    "/no/such/file",
    "/loop/x",
    "/dangling",
    "/etc",
];
const WITHOUT_MATCH: &[&str] = &["/no/such/file", "/loop/x", "/dangling", "/etc"];

fn populate(dir: &Path) {
    let secret = |name: &str, size: usize| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).expect("folder");
        let mut text = format!("{MARK} {name}\n").repeat(size / 40 + 1);
        text.truncate(size.max(MARK.len()));
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    };
    secret("etc/machine-id", 33);
    secret("etc/ssh/ssh_host_rsa_key", 2590);
    secret("etc/ssh/ssh_host_ed25519_key", 110);
    secret("root/.bash_history", 7000);
    secret("home/a/.bash_history", 60);
    secret("home/b/.ash_history", 61);
    secret("var/lib/big", 9 << 20);
    secret("var/lib/middling", 70_000);
    secret("var/lib/seeds/one", 512);
    secret("var/lib/seeds/below/two", 512);
    secret("var/lib/seeds/below/deeper/three", 512);
    fs::hard_link(
        dir.join("var/lib/middling"),
        dir.join("var/lib/second-name-of-middling"),
    )
    .expect("hard link");
    // Many extents: a tree with depth, or indirect blocks.
    let fragments = File::create(dir.join("var/lib/fragments")).expect("create");
    let other = File::create(dir.join("var/lib/other")).expect("create");
    for block in 0..400u64 {
        fragments
            .write_all_at(MARK.as_bytes(), block * 16_384)
            .expect("write");
        other.write_all_at(b"kept", block * 16_384).expect("write");
        if block % 32 == 0 {
            fragments.sync_all().expect("sync");
            other.sync_all().expect("sync");
        }
    }
    let holes = File::create(dir.join("var/lib/holes")).expect("create");
    // The last one needs all three levels of pointers where blocks have 1 KiB.
    for place in [0, 5 << 20, 70 << 20] {
        holes.write_all_at(MARK.as_bytes(), place).expect("write");
    }
    fs::create_dir_all(dir.join("var/lib/dbus")).expect("folder");
    symlink("/etc/machine-id", dir.join("var/lib/dbus/machine-id")).expect("link");
    // A link through a folder, a long one (in a block of its own), one with dots, one in circles, one to nothing.
    let long = format!("var/..{}/etc", "/./".repeat(60));
    symlink(long, dir.join("alias")).expect("link");
    symlink("home/../../../var", dir.join("up")).expect("link");
    symlink("loop", dir.join("loop")).expect("link");
    symlink("/run/nothing", dir.join("dangling")).expect("link");
    // What looks similar and stays.
    fs::write(dir.join("etc/ssh/sshd_config"), "Port 22\n").expect("write");
    fs::write(dir.join("home/a/kept"), vec![7; 30_000]).expect("write");
    fs::write(dir.join("root/.profile"), "umask 022\n").expect("write");
    fs::write(dir.join("etc/empty"), "").expect("write");
    for n in 0..1200 {
        // A folder with an index.
        fs::create_dir_all(dir.join("var/lib/many")).expect("folder");
        fs::write(
            dir.join(format!("var/lib/many/a-rather-long-name-{n}")),
            "x",
        )
        .expect("write");
    }
    fs::write(dir.join("var/lib/many/secret"), format!("{MARK} many")).expect("write");
    let attributes = [
        ("etc/machine-id", 20),
        ("var/lib/big", 900),
        ("etc/ssh/ssh_host_ed25519_key", 30),
    ];
    for (name, length) in attributes {
        let value = "v".repeat(length);
        let _ = Command::new("setfattr")
            .args(["-n", "user.kept", "-v", &value])
            .arg(dir.join(name))
            .status();
    }
    common::fill(&dir.join("var"), 200);
}

fn holds_mark(image: &Path) -> bool {
    let grep = Command::new("grep")
        .args(["-qaF", MARK])
        .arg(image)
        .status();
    grep.expect("grep").success()
}

/// The numbers of inodes and where they lie: `(offset, number)`.
fn inode_place(image: &Path, name: &str, block_bytes: u64) -> u64 {
    let text = debugfs(image, &format!("imap /{name}"));
    let number = |key: &str| {
        let rest = text.split(key).nth(1).expect("imap").trim_start();
        let word = rest.split([',', ' ', '\n']).next().unwrap();
        match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
            None => word.parse().unwrap(),
        }
    };
    number("located at block") * block_bytes + number("offset")
}

/// Blocks by number in which the two images may differ: what was freed, and the filesystem's own records of it.
struct Allowed {
    blocks: Vec<bool>,
    /// Inodes: offset and length.
    inodes: Vec<(u64, u64)>,
}

fn allowed(whole: &Path, files: &[&str], block_bytes: u64, size: u64) -> Allowed {
    let text = common::output("dumpe2fs", &[&whole.to_string_lossy()]);
    let mut blocks = vec![false; usize::try_from(size / block_bytes).unwrap()];
    let ratio = text
        .lines()
        .find_map(|line| line.strip_prefix("Cluster size:"))
        .map_or(1, |rest| rest.trim().parse::<u64>().unwrap() / block_bytes);
    let inode_bytes = text
        .lines()
        .find_map(|line| line.strip_prefix("Inode size:"))
        .expect("inode size");
    let inode_bytes: u64 = inode_bytes.trim().parse().unwrap();
    // Superblock; descriptors of the first copy and of meta block groups; block bitmaps; quota files.
    blocks[usize::try_from(1024 / block_bytes).unwrap()] = true;
    for line in text.lines() {
        for key in [
            "Group descriptors at ",
            "Group descriptor at ",
            "Block bitmap at ",
        ] {
            if let Some(rest) = line.split(key).nth(1) {
                let word = rest.split([' ', ',']).next().unwrap();
                let (first, last) = word.split_once('-').unwrap_or((word, word));
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                blocks[first..=last].fill(true);
            }
        }
    }
    for request in files
        .iter()
        .map(|name| format!("blocks /{name}"))
        .chain(["blocks <3>".into(), "blocks <4>".into()])
    {
        for word in debugfs(whole, &request).split_whitespace() {
            let block: u64 = word.parse().unwrap_or(0);
            let first = block / ratio * ratio;
            for block in first..first + ratio {
                blocks[usize::try_from(block).unwrap()] |= block != 0;
            }
        }
    }
    let inodes = files
        .iter()
        .map(|name| (inode_place(whole, name, block_bytes), inode_bytes))
        .collect();
    Allowed { blocks, inodes }
}

fn compare(plain: &Path, emptied: &Path, allowed: &Allowed, block_bytes: u64) {
    let (a, b) = (
        fs::read(plain).expect("image"),
        fs::read(emptied).expect("image"),
    );
    assert_eq!(a.len(), b.len());
    for (block, may_differ) in allowed.blocks.iter().enumerate() {
        let start = block * usize::try_from(block_bytes).unwrap();
        let end = (start + usize::try_from(block_bytes).unwrap()).min(a.len());
        if *may_differ || a[start..end] == b[start..end] {
            continue;
        }
        for at in (start..end).filter(|at| a[*at] != b[*at]) {
            let at = u64::try_from(at).unwrap();
            let inside = allowed
                .inodes
                .iter()
                .any(|(offset, length)| (*offset..offset + length).contains(&at));
            assert!(inside, "byte {at:#x} in block {block} differs");
        }
    }
}

/// The tree without what was emptied, and a check that these are empty and otherwise as before.
fn emptied_tree(before: &BTreeMap<PathBuf, String>, files: &[&str]) -> BTreeMap<PathBuf, String> {
    let nothing = common::hash(b"");
    let mut after = before.clone();
    for name in files {
        let line = after.get_mut(Path::new(name)).expect(name);
        let words: Vec<&str> = line.split(' ').collect();
        *line = format!("{} {} 0 {nothing:016x}", words[0], words[1]);
    }
    after
}

fn check(kind: &str, mib: u64, mkfs: &[&str], options: &str) {
    let spec = Spec {
        kind,
        mib,
        mkfs,
        options,
        ..Spec::default()
    };
    let mut made = require_ok!(LoopFs::make(spec));
    populate(made.dir());
    let mut secrets = SECRETS.to_vec();
    secrets.extend(["var/lib/many/secret", "var/lib/second-name-of-middling"]);
    let mut patterns = PATTERNS.to_vec();
    patterns.push("/var/lib/many/secret");
    let files = common::tree(made.dir());
    made.unmount();
    e2fsck(made.device());
    let device = open(made.device());
    let (plain, out) = (made.scratch().join("plain"), made.scratch().join("out"));
    image(&device, &[], &plain).expect("plain");
    let emptying = image(&device, &patterns, &out).expect("emptied");
    let missing: Vec<_> = emptying.without_match().map(Pattern::bytes).collect();
    let wanted: Vec<_> = WITHOUT_MATCH.iter().map(|text| text.as_bytes()).collect();
    assert_eq!(missing, wanted);
    assert_eq!(emptying.log.files, 14);
    assert_eq!(emptying.log.names().count(), 14);
    assert!(holds_mark(&plain) && !holds_mark(&out));
    e2fsck(&out);
    let identity = readers::probe(&open(&out)).unwrap().unwrap();
    let unit = u64::from(identity.block_bytes);
    compare(
        &plain,
        &out,
        &allowed(made.image(), &secrets, unit, identity.size_bytes),
        unit,
    );
    // A second time there is nothing to do.
    let again = made.scratch().join("again");
    let nothing = image(&open(&out), &patterns, &again).expect("again");
    assert_eq!((nothing.log.files, nothing.log.freed_bytes), (0, 0));
    assert!(fs::read(&again).unwrap() == fs::read(&out).unwrap());
    {
        let mounted = Mounted::new(kind, &out, "");
        let wanted = emptied_tree(&files, &secrets);
        common::assert_same_tree(&wanted, &common::tree(mounted.dir()));
        // It is a filesystem like any other: what was freed can be used.
        for name in &secrets {
            fs::write(mounted.dir().join(name), vec![3; 200_000]).expect(name);
        }
    }
    e2fsck(&out);
}

macro_rules! variants {
    ($($name:ident: $kind:literal $mib:literal [$($mkfs:literal),*] $($options:literal)?;)*) => {$(
        #[test]
        fn $name() {
            check($kind, $mib, &[$($mkfs),*], concat!($($options)?));
        }
    )*};
}

variants! {
    empties_on_ext2_with_1k_blocks: "ext2" 64 ["-b", "1024", "-O", "none,filetype"];
    empties_on_ext2: "ext2" 64 ["-b", "4096"];
    empties_on_ext3: "ext3" 64 ["-b", "1024"];
    empties_on_ext4: "ext4" 96 [];
    empties_on_ext4_with_1k_blocks: "ext4" 64 ["-b", "1024"];
    empties_on_ext4_with_2k_blocks_in_small_groups: "ext4" 64 ["-b", "2048", "-g", "2048"];
    empties_on_ext4_with_inline_data: "ext4" 64 ["-O", "inline_data", "-I", "256"];
    empties_on_ext4_with_inline_data_in_large_inodes: "ext4" 64 ["-b", "1024", "-O", "inline_data", "-I", "512"];
    empties_on_ext4_with_clusters_and_inline_data: "ext4" 128 ["-O", "bigalloc,inline_data", "-C", "16384"];
    empties_on_ext4_with_1k_blocks_in_clusters: "ext4" 64 ["-b", "1024", "-O", "bigalloc", "-C", "8192"];
    empties_on_ext4_with_meta_block_groups: "ext4" 160 ["-b", "1024", "-O", "meta_bg,^resize_inode"];
    empties_on_ext4_without_flexible_groups: "ext4" 64 ["-b", "1024", "-O", "^flex_bg"];
    empties_on_ext4_without_64bit: "ext4" 64 ["-O", "^64bit"];
    empties_on_ext4_with_uninit_bg: "ext4" 64 ["-b", "1024", "-O", "^metadata_csum,uninit_bg"];
    empties_on_ext4_with_uninit_bg_and_64bit: "ext4" 64 ["-b", "1024", "-O", "^metadata_csum,uninit_bg,64bit"];
    empties_on_ext4_without_any_checksum: "ext4" 64 ["-O", "^metadata_csum,^uninit_bg"];
    empties_on_ext4_with_fast_commits_and_an_orphan_file: "ext4" 64 ["-O", "fast_commit,orphan_file"];
    empties_on_ext4_with_attributes_in_inodes: "ext4" 64 ["-O", "ea_inode"];
    empties_on_ext4_with_small_inodes: "ext4" 64 ["-I", "128"];
    empties_on_ext4_without_a_journal: "ext4" 64 ["-O", "^has_journal"];
    empties_on_ext4_with_a_checksum_seed_and_large_folders: "ext4" 64 ["-O", "metadata_csum_seed,large_dir"];
    empties_on_ext4_without_extents: "ext4" 64 ["-O", "^extent,^64bit"];
}

// ---- refused by name, and other places ------------------------------------------------------------------------------

/// An image filled by mke2fs with the same secrets; quota is made right by e2fsck.
fn unmounted(scratch: &Scratch, mkfs: &[&str]) -> Option<PathBuf> {
    let (folder, image) = (scratch.join("content"), scratch.join("image"));
    if !common::have("mke2fs") || !common::have("debugfs") {
        return None;
    }
    if !folder.exists() {
        fs::create_dir(&folder).expect("folder");
        populate(&folder);
    }
    common::sparse(&image, 256 << 20);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&folder);
    mke2fs.args(mkfs).arg(&image);
    common::run(&mut mke2fs, common::Limit::secs(60)).expect_code(0);
    let path = image.to_string_lossy();
    let run = common::run(
        Command::new("e2fsck").args(["-fy", &path]),
        common::Limit::secs(60),
    );
    assert!(run.code.is_some_and(|code| code <= 1), "{run}");
    Some(image)
}

#[test]
fn what_this_kernel_may_not_mount_is_emptied_too() {
    for mkfs in [
        &["-b", "65536"][..],
        &["-b", "16384", "-I", "1024"],
        &[
            "-O",
            "quota,project",
            "-E",
            "quotatype=usrquota:grpquota:prjquota",
        ],
        &["-O", "encrypt,verity,casefold,stable_inodes,large_dir"],
        &["-b", "1024", "-G", "64"],
        &["-O", "bigalloc,quota", "-C", "65536"],
        &["-b", "1024", "-O", "sparse_super2,^resize_inode"],
    ] {
        let scratch = Scratch::new();
        let made = require_some!(unmounted(&scratch, mkfs), "e2fsprogs");
        let mut patterns = PATTERNS.to_vec();
        patterns.push("/var/lib/many/secret");
        let out = scratch.join("out");
        let emptying = image(&open(&made), &patterns, &out).expect("emptied");
        assert_eq!(emptying.log.files, 14, "{mkfs:?}");
        assert!(!holds_mark(&out), "{mkfs:?}");
        e2fsck(&out);
    }
}

#[test]
fn encrypted_files_and_files_under_verity_are_refused_by_name() {
    for (flag, request, patterns) in [
        (
            "encrypted",
            "sif /etc/machine-id flags 0x80800",
            "/var/lib/dbus/machine-id",
        ),
        ("verity", "sif /etc/machine-id flags 0x180000", "/etc/*-id"),
        (
            "encrypted folder",
            "sif /home/a flags 0x80800",
            "/home/*/.*_history",
        ),
    ] {
        let scratch = Scratch::new();
        let made = require_some!(unmounted(&scratch, &["-O", "encrypt,verity"]), "e2fsprogs");
        common::output("debugfs", &["-w", "-R", request, &made.to_string_lossy()]);
        let (fault, at) = image(&open(&made), &[patterns], &scratch.join("out")).unwrap_err();
        assert_eq!(fault.exit().code(), 4, "{fault}");
        assert!(fault.to_string().contains(flag), "{fault}");
        let wanted = match flag {
            "encrypted folder" => "/home/a",
            _ => patterns.trim_end_matches("*-id"),
        };
        assert!(at.starts_with(wanted) && at.len() > 6, "{at}");
    }
}

#[test]
fn a_name_is_found_where_the_filesystem_was_mounted_last() {
    let scratch = Scratch::new();
    let made = require_some!(unmounted(&scratch, &["-M", "/data"]), "e2fsprogs");
    let out = scratch.join("out");
    let patterns = ["/data/etc/machine-id", "/data/etc/", "/dat/etc/machine-id"];
    let emptying = image(&open(&made), &patterns, &out).expect("emptied");
    let missing: Vec<_> = emptying.without_match().map(Pattern::bytes).collect();
    assert_eq!(missing, [b"/dat/etc/machine-id"]);
    e2fsck(&out);
}

#[test]
fn a_folder_without_regard_to_case_is_looked_up_that_way() {
    let scratch = Scratch::new();
    let made = require_some!(unmounted(&scratch, &["-O", "casefold"]), "e2fsprogs");
    let path = made.to_string_lossy();
    // A casefolded folder with extents: few kernels mount one.
    let request = "sif /etc/ssh flags 0x40080000";
    common::output("debugfs", &["-w", "-R", request, &path]);
    let out = scratch.join("out");
    let patterns = [
        "/etc/SSH/ssh_host_RSA_key",
        "/etc/ssh/SSH_HOST_ED25519_KEY",
        "/etc/ssh/Ssh_*",
    ];
    let emptying = image(&open(&made), &patterns, &out).expect("emptied");
    let missing: Vec<_> = emptying.without_match().map(Pattern::bytes).collect();
    assert_eq!(missing, [b"/etc/SSH/ssh_host_RSA_key"]);
    assert_eq!(emptying.log.files, 2);
    e2fsck(&out);
    let (fault, _) = image(&open(&made), &["/etc/ssh/\u{c4}\u{d6}"], &out).unwrap_err();
    assert_eq!(fault.exit().code(), 4);
}

#[test]
fn too_much_to_change_is_refused_and_so_is_a_moving_source() {
    let scratch = Scratch::new();
    let made = require_some!(unmounted(&scratch, &[]), "e2fsprogs");
    let device = open(&made);
    let identity = readers::probe(&device).unwrap().unwrap();
    let block = BlockSize::from_bytes(4096).unwrap();
    let mut map = UsedMap::new(identity.size_bytes, block).unwrap();
    let mut memory = vec![0; SCRATCH_BYTES];
    let mut walk = Walk::new(&device, &mut memory);
    let pattern = || vec![Pattern::parse(b"/var/").unwrap()];
    let mut overlay = Overlay::new(2);
    for still in [Still::Unmounted, Still::Moving] {
        let mut layer = OverlaidPart::new(&device, &mut overlay, 0);
        let mut emptying = Emptying::new(pattern(), 1);
        let fault = named::empty(
            &identity,
            still,
            &mut walk,
            &mut map,
            &mut layer,
            &mut emptying,
        );
        assert_eq!(fault.unwrap_err().exit().code(), 4);
    }
}
