//! The small readers against the real tools: FAT12/16/32, squashfs, EROFS and swap are made by their own mkfs, rebuilt from
//! the used map alone, and must satisfy their own checker and give every file back. The rest is compared with blkid.

use crate::common::{self, Limit, Scratch, blkid};
use crate::maps::{self, Walked};
use floe::device::{Access, Device, ReadAt};
use floe::fs::{self, Coverage, Identity, Still};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Probes and walks an image of an unmounted filesystem, and what lies behind it.
fn map(image: &Path) -> (Walked, Device) {
    let device = Device::open(image, Access::Read).expect("image");
    let identity = fs::probe(&device).expect("read").expect("recognised");
    let mapped = maps::walk_over(&device, identity, device.size_bytes(), Still::Unmounted);
    let mapped = mapped.expect("walk");
    maps::assert_witness_holds(&device, &mapped.identity);
    (mapped, device)
}

/// Maps `image` and writes what is used, and nothing else, to `copy`.
fn rebuild(image: &Path, copy: &Path) -> Walked {
    let (mapped, device) = map(image);
    maps::rebuild_from(&device, &mapped.map, copy);
    mapped
}

fn assert_same_as_blkid(image: &Path, identity: &Identity) {
    assert_eq!(identity.kind.name(), blkid(image, "TYPE"));
    assert_eq!(identity.uuid.as_str(), blkid(image, "UUID"));
    // blkid escapes spaces in this format.
    let label = blkid(image, "LABEL").replace("\\ ", " ");
    assert_eq!(identity.label.as_str(), label);
}

fn shell(script: &str) -> String {
    common::shell(script, Limit::secs(120))
        .expect_code(0)
        .stdout_text()
}

/// A folder with files that compress and files that do not; no links or long paths, which FAT lacks.
fn plain_files(dir: &Path, count: u64) {
    let mut random = common::Random(0xfa7);
    for number in 0..count {
        let folder = dir.join(format!("d{}", number % 5));
        std::fs::create_dir_all(&folder).expect("folder");
        let length = usize::try_from(random.below(9000)).unwrap();
        let bytes = random.bytes(length);
        std::fs::write(folder.join(format!("a long name {number}.bin")), bytes).expect("file");
    }
}

/// `a` rebuilt as `b` from its used blocks, each of which was proven; it is what blkid says it is.
fn rebuilt_whole(scratch: &Scratch) -> Walked {
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    let mapped = rebuild(&a, &b);
    let verdict = &mapped.verdict;
    assert_eq!(verdict.coverage, Coverage::Used, "{verdict:?}");
    assert_same_as_blkid(&a, &mapped.identity);
    mapped
}

/// Makes a FAT, fills it, deletes files with a known secret, rebuilds it, and lets fsck.fat and mtools judge.
fn fat_round_trip(kind: &str, size_kib: u64, mkfs: &str, files: u64) {
    let scratch = Scratch::new();
    let dir = scratch.path().display();
    plain_files(&scratch.join("in"), files);
    shell(&format!(
        "cd {dir}; export MTOOLS_SKIP_CHECK=1; truncate -s {size_kib}K a; mkfs.fat -n 'MY VOL' {mkfs} a >/dev/null; \
         head -c 60000 < <(yes 'a secret that was deleted') > secret; mcopy -i a secret ::/secret.1; \
         mcopy -s -i a in ::/; mcopy -i a secret ::/secret.2; mdel -i a ::/secret.1; mdel -i a ::/secret.2; \
         grep -q 'secret that was' a"
    ));
    let mapped = rebuilt_whole(&scratch);
    assert_eq!(format!("{:?}", mapped.identity.kind), kind);
    assert!(mapped.identity.size_bytes <= size_kib * 1024);

    let report = shell(&format!("fsck.fat -nv {dir}/b"));
    shell(&format!(
        "cd {dir}; export MTOOLS_SKIP_CHECK=1; mkdir out; mcopy -s -n -i b ::/in out/; diff -r in out/in; ! grep -q 'secret that was' b"
    ));
    // Its last line is "FILE: N files, USED/ALL clusters".
    let counts = report.lines().last().expect("summary");
    let counts = counts
        .split_whitespace()
        .rev()
        .nth(1)
        .expect("USED/ALL")
        .split_once('/')
        .expect("USED/ALL");
    let used: u64 = counts.0.parse().expect("a count");
    let number = |needle: &str| -> u64 {
        let line = report
            .lines()
            .find(|line| line.contains(needle))
            .unwrap_or_else(|| panic!("no {needle:?} in {report}"));
        let word = line
            .split_whitespace()
            .find(|word| word.parse::<u64>().is_ok());
        word.expect("a number").parse().expect("a number")
    };
    let (cluster, data) = (
        number("bytes per cluster"),
        number("Data area starts at byte"),
    );
    assert_eq!(mapped.map.used_bytes(), data + used * cluster, "{report}");
}

fn have_fat() -> bool {
    ["mkfs.fat", "fsck.fat", "mcopy", "mdel"]
        .iter()
        .all(|tool| common::have(tool))
}

#[test]
fn fat12_rebuilt_from_its_map_is_clean_and_complete() {
    require!(have_fat(), "mkfs.fat, fsck.fat and mtools");
    fat_round_trip("Fat12", 1440, "-F 12", 60);
    fat_round_trip("Fat12", 8000, "-F 12 -s 8", 60);
    fat_round_trip("Fat12", 2001, "-F 12 -s 1 -f 1 -R 3", 60);
}

#[test]
fn fat16_rebuilt_from_its_map_is_clean_and_complete() {
    require!(have_fat(), "mkfs.fat, fsck.fat and mtools");
    fat_round_trip("Fat16", 32 * 1024, "-F 16", 300);
    fat_round_trip("Fat16", 100 * 1024 + 3, "-F 16 -s 4 -r 1024", 300);
    fat_round_trip("Fat16", 60 * 1024, "-F 16 -S 4096 -s 1 -f 1", 300);
}

#[test]
fn fat32_rebuilt_from_its_map_is_clean_and_complete() {
    require!(have_fat(), "mkfs.fat, fsck.fat and mtools");
    fat_round_trip("Fat32", 64 * 1024, "-F 32", 300);
    fat_round_trip("Fat32", 80 * 1024, "-F 32 -s 1 -f 1", 300);
    fat_round_trip("Fat32", 600 * 1024, "-F 32 -S 4096 -s 2", 300);
    fat_round_trip("Fat32", 6 * 1024 * 1024, "-F 32 -a", 300);
}

#[test]
fn a_squashfs_or_erofs_that_ends_before_its_own_tables_is_taken_by_nothing() {
    drop(require_floe!());
    require!(
        common::have("mksquashfs") && common::have("mkfs.erofs"),
        "squashfs-tools and erofs-utils"
    );
    let scratch = Scratch::new();
    let dir = scratch.path().display();
    let script = format!(
        "cd {dir}; mkdir in; for i in 1 2 3 4 5; do head -c 30000 /dev/urandom > in/$i; done; \
         setfattr -n user.a -v b in/1 2>/dev/null || true; \
         mksquashfs in xattrs -quiet -no-progress >/dev/null; \
         mksquashfs in plain -quiet -no-progress -no-xattrs -no-exports >/dev/null; mkfs.erofs -Enosbcrc e in >/dev/null 2>&1"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
    let long = |file: &File| -> u64 {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0x28).expect("read");
        u64::from_le_bytes(bytes)
    };
    for name in ["xattrs", "plain", "e"] {
        let path = scratch.join(name);
        let shown = path.to_string_lossy().into_owned();
        let pair = format!("a={shown}");
        let floe = |words: &[&str]| {
            let mut floe = common::floe().expect("required before");
            common::run(floe.args(words), Limit::secs(60))
        };
        let [out, zip, target] =
            ["out", "zip", "target"].map(|name| scratch.join(name).to_string_lossy().into_owned());
        floe(&["dump", &shown, "-o", &out]).expect_code(0);
        floe(&["verify", &out]).expect_code(0);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("image");
        let wrong: Vec<(u64, Vec<u8>)> = match name {
            // The block count, and where metadata begins.
            "e" => vec![(0x424, 1u32.to_le_bytes().into()), (0x428, [255; 4].into())],
            _ => [1, 8, 1000, long(&file) - 96]
                .map(|less| (0x28, (long(&file) - less).to_le_bytes().into()))
                .into(),
        };
        for (at, bytes) in wrong {
            let mut old = vec![0; bytes.len()];
            file.read_exact_at(&mut old, at).expect("read");
            file.write_all_at(&bytes, at).expect("write");
            std::fs::write(&target, b"").expect("target");
            for words in [
                vec!["dump", &shown, "-o", &out],
                vec!["create", &pair, "-o", &zip],
                vec!["verify", &shown],
                vec!["restore", &shown, &target],
            ] {
                let run = floe(&words);
                let refused = matches!(run.code, Some(3 | 4));
                // The first blocks of an EROFS may hold its root: then a count of 1 is no contradiction of the superblock.
                assert!(refused || (name == "e" && at == 0x424), "{at:#x}: {run}");
                assert!(!std::path::Path::new(&zip).exists() || !refused);
            }
            file.write_all_at(&old, at).expect("write");
            let _ = std::fs::remove_file(&zip);
        }
    }
}

#[test]
fn squashfs_is_used_up_to_its_stated_length() {
    require!(
        common::have("mksquashfs") && common::have("unsquashfs"),
        "squashfs-tools"
    );
    let scratch = Scratch::new();
    let dir = scratch.path().display();
    plain_files(&scratch.join("in"), 100);
    for options in ["", "-comp xz -b 1M", "-nopad", "-noI -noD -noF"] {
        // In a partition that held something larger before.
        shell(&format!(
            "cd {dir}; rm -rf a b out; mksquashfs in a -quiet -no-progress {options} >/dev/null; \
             head -c 3000000 /dev/zero | tr '\\0' x >> a"
        ));
        let (a, b) = (scratch.join("a"), scratch.join("b"));
        let mapped = rebuild(&a, &b);
        maps::assert_used(mapped.verdict, "map");
        assert_eq!(mapped.identity.kind.name(), blkid(&a, "TYPE"));
        let used = mapped.map.used_bytes();
        let stated = mapped.identity.size_bytes;
        assert!(stated <= used && used < stated + 1024, "{used} {stated}");
        assert!(used < mapped.map.size_bytes() - 2_900_000);
        shell(&format!(
            "cd {dir}; unsquashfs -quiet -no-progress -d out b >/dev/null; diff -r in out"
        ));
    }
}

#[test]
fn erofs_is_used_up_to_its_block_count() {
    require!(
        common::have("mkfs.erofs") && common::have("fsck.erofs"),
        "erofs-utils"
    );
    let scratch = Scratch::on_disk(); // mkfs.erofs 1.5 makes no chunks in memory (EIO)
    let dir = scratch.path().display();
    plain_files(&scratch.join("in"), 100);
    for options in [
        "",
        "-zlz4hc -C65536",
        "-zlz4hc -Eztailpacking,fragments",
        "--chunksize=4096",
    ] {
        shell(&format!(
            "cd {dir}; rm -rf a b out; mkfs.erofs {options} a in >/dev/null 2>&1; \
             head -c 3000000 /dev/zero | tr '\\0' x >> a"
        ));
        let mapped = rebuilt_whole(&scratch);
        assert!(mapped.map.used_bytes() < mapped.map.size_bytes() - 2_900_000);
        shell(&format!(
            "cd {dir}; fsck.erofs --extract=out b >/dev/null; diff -r in out"
        ));
    }
}

#[test]
fn swap_areas_of_every_page_size_keep_their_header_page_only() {
    require!(common::have("mkswap"), "mkswap");
    let scratch = Scratch::new();
    let dir = scratch.path().display();
    for page in [4096u64, 16_384, 65_536] {
        shell(&format!(
            "cd {dir}; rm -f a; head -c 16M /dev/zero | tr '\\0' x > a; chmod 600 a; mkswap -q -p {page} -L 'swap {page}' a 2>/dev/null"
        ));
        let (a, b) = (scratch.join("a"), scratch.join("b"));
        let mapped = rebuild(&a, &b);
        maps::assert_used(mapped.verdict, "map");
        assert_eq!(mapped.map.used_bytes(), page);
        assert_eq!(mapped.identity.size_bytes, 16 << 20);
        assert_same_as_blkid(&a, &mapped.identity);
        assert_same_as_blkid(&b, &mapped.identity);
    }
}

#[test]
fn what_has_no_map_is_recognised_as_blkid_does_and_read_whole() {
    let makers = [
        ("mkfs.jfs", "mkfs.jfs -q -L 'A JFS' a >/dev/null 2>&1", true),
        (
            "mkfs.reiserfs",
            "mkfs.reiserfs -q -ff -l reiser a >/dev/null 2>&1",
            true,
        ),
        (
            "mkfs.nilfs2",
            "mkfs.nilfs2 -q -L 'a nilfs' a >/dev/null",
            true,
        ),
        ("mkfs.exfat", "mkfs.exfat a >/dev/null", true),
    ];
    for (tool, script, size_is_stated) in makers {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let scratch = Scratch::new();
        shell(&format!(
            "cd {}; truncate -s 160M a; {script}",
            scratch.path().display()
        ));
        let a = scratch.join("a");
        let (mapped, _) = map(&a);
        assert_same_as_blkid(&a, &mapped.identity);
        assert_eq!(mapped.verdict.coverage, Coverage::Whole);
        assert_eq!(mapped.map.used_bytes(), 160 << 20);
        assert!(!size_is_stated || mapped.identity.size_bytes > 100 << 20);
        assert!(mapped.identity.size_bytes <= 160 << 20, "{tool}");
    }
}

#[test]
fn partition_tables_and_ntfs_boot_sectors_are_not_taken_for_fat() {
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let dir = scratch.path().display();
    let a = scratch.join("a");
    for label in ["dos", "gpt"] {
        shell(&format!(
            "cd {dir}; rm -f a; truncate -s 64M a; printf 'label: {label}\\n,20M\\n,\\n' | sfdisk -q a"
        ));
        let device = Device::open(&a, Access::Read).expect("image");
        assert!(fs::probe(&device).expect("read").is_none(), "{label}");
    }
    // The fields that NTFS has in common with FAT, as mkntfs writes them.
    let mut boot = vec![0u8; 8192];
    boot[..11].copy_from_slice(b"\xebR\x90NTFS    ");
    boot[0x0b..0x0e].copy_from_slice(&[0, 2, 8]);
    boot[0x15] = 0xf8;
    boot[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(fs::probe(&boot).expect("read").is_none());
}
