//! `--grow`: the filesystem ends where its device ends, its checker finds nothing, its files are as they were; and what cannot be
//! grown is refused before the first write. The kernel shows the partitions of a disk that was restored.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    self, Limit, LoopDevice, LoopFs, Mounted, Scratch, Spec, expect_floe, run_floe, text,
};

fn blocks_are_zero(file: &Path) -> bool {
    let bytes = fs::read(file).expect("target");
    bytes.iter().all(|byte| *byte == 0)
}

/// What stood on the target before, and must be nowhere in it afterwards.
const OLD: u8 = 0xa7;

/// Blocks of a target that hold nothing but what was there before.
fn old_blocks(file: &Path) -> usize {
    let bytes = fs::read(file).expect("target");
    let old = |block: &&[u8]| block.iter().all(|byte| *byte == OLD);
    bytes.chunks(4096).filter(old).count()
}

/// An image of it, beside it.
fn dumped(source: &LoopFs) -> PathBuf {
    let image = source.scratch().join("image.gz");
    expect_floe(&["dump", "-o", &text(&image), &text(source.dir())], 0);
    image
}

fn size_shown(device: &Path) -> u64 {
    let run = common::run(
        common::floe()
            .expect("floe")
            .args(["show", "--json"])
            .arg(device),
        Limit::secs(30),
    )
    .expect_code(0);
    let text = run.stdout_text();
    let (_, rest) = text.split_once("\"size_bytes\":").expect(&text);
    let end = rest.find(|c: char| !c.is_ascii_digit()).expect("digits");
    rest[..end].parse().expect("number")
}

fn grows(spec: Spec<'_>) {
    let mut source = require_ok!(LoopFs::make(spec));
    drop(require_floe!());
    source.fill(60);
    let files = common::tree(source.dir());
    let image = dumped(&source);
    source.unmount();
    let scratch = Scratch::new();
    let target_file = scratch.join("target");
    let target = LoopDevice::filled(&scratch, "target", spec.mib + 200, 0);
    let file = fs::File::options().write(true).open(&target_file);
    let (file, old) = (file.expect("target"), vec![OLD; 1 << 20]);
    for mib in spec.mib..spec.mib + 200 {
        file.write_all_at(&old, mib << 20).expect("old");
    }
    let before = old_blocks(&target_file);
    assert_eq!(before, 200 * 256);
    let run = run_floe(&["restore", "--grow", &text(&image), &text(target.path())]);
    if run.code == Some(4) && run.stderr_text().contains("CAP_SYS_RESOURCE") {
        // The virtual machines grow it (tests/vm, scenario grow).
        assert_eq!(old_blocks(&target_file), before, "{run}");
        return common::skip("CAP_SYS_RESOURCE, to grow ext4");
    }
    let run = run.expect_code(0);
    assert!(run.stderr_text().contains("was grown from"), "{run}");
    assert_eq!(old_blocks(&target_file), 0, "old data is free space now");
    common::fsck(spec.kind, target.path());
    let size = size_shown(target.path());
    assert!(
        size > (spec.mib + 190) << 20 && size <= (spec.mib + 200) << 20,
        "{}: {size}",
        spec.kind
    );
    let copy = Mounted::new(spec.kind, target.path(), "");
    common::assert_same_tree(&files, &common::tree(copy.dir()));
    // The new space is there to be used.
    let file = fs::File::create(copy.dir().join("large")).expect("large");
    let megabyte = vec![0x5a; 1 << 20];
    for number in 0..(spec.mib + 40) {
        file.write_all_at(&megabyte, number << 20)
            .expect("room for more than the source had");
    }
    file.sync_all().expect("sync");
    drop(file);
    drop(copy);
    target.wait_until_free();
    common::fsck(spec.kind, target.path());
    // Once more: there is nothing left to grow.
    let again = expect_floe(
        &[
            "restore",
            "--overwrite",
            "--grow",
            &text(&image),
            &text(source.device()),
        ],
        0,
    );
    assert!(again.stderr_text().contains("fills its device"), "{again}");
}

#[test]
fn ext4_grows_to_the_end_of_its_device() {
    grows(Spec::default());
}

#[test]
fn ext4_of_an_old_kind_grows() {
    for (kind, mkfs) in [
        ("ext4", &["-b", "1024", "-O", "^metadata_csum,^64bit"][..]),
        ("ext3", &[][..]),
    ] {
        grows(Spec {
            kind,
            mkfs,
            ..Spec::default()
        });
    }
}

#[test]
fn xfs_grows_to_the_end_of_its_device() {
    // An emulator answers ENOTTY for the ioctls that grow them; scenario grow runs them on a real kernel.
    require!(common::runner().is_none(), "no runner");
    grows(Spec {
        kind: "xfs",
        mib: 320,
        ..Spec::default()
    });
}

#[test]
fn btrfs_grows_to_the_end_of_its_device() {
    // An emulator answers ENOTTY for the ioctls that grow them; scenario grow runs them on a real kernel.
    require!(common::runner().is_none(), "no runner");
    grows(Spec {
        kind: "btrfs",
        mib: 160,
        ..Spec::default()
    });
}

#[test]
fn an_xfs_grows_beside_its_mounted_original_and_the_original_stays() {
    // An emulator answers ENOTTY for the ioctls that grow them; scenario grow runs them on a real kernel.
    require!(common::runner().is_none(), "no runner");
    let source = require_ok!(LoopFs::make(Spec {
        kind: "xfs",
        mib: 320,
        ..Spec::default()
    }));
    drop(require_floe!());
    source.fill(20);
    let image = dumped(&source);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 400, 0);
    expect_floe(
        &["restore", "--grow", &text(&image), &text(target.path())],
        0,
    );
    assert_eq!(size_shown(source.device()), 320 << 20);
    assert_eq!(size_shown(target.path()), 400 << 20);
    common::fsck("xfs", target.path());
}

#[test]
fn a_btrfs_beside_its_mounted_original_is_refused_before_the_first_write() {
    let source = require_ok!(LoopFs::make(Spec {
        kind: "btrfs",
        mib: 160,
        ..Spec::default()
    }));
    drop(require_floe!());
    let image = dumped(&source);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 200, 0);
    let run = expect_floe(
        &["restore", "--grow", &text(&image), &text(target.path())],
        4,
    );
    let text = run.stderr_text();
    assert!(text.contains("is mounted from"), "{text}");
    assert!(text.contains("nothing was written"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(blocks_are_zero(&scratch.join("target")));
}

#[test]
fn what_cannot_be_grown_is_refused_before_the_first_write() {
    require!(common::is_root(), "root");
    require!(common::have("mkswap"), "mkswap");
    let mut floe = require_floe!();
    let scratch = Scratch::new();
    let image = scratch.join("swap.img");
    common::sparse(&image, 8 << 20);
    common::output("mkswap", &["-q", &image.to_string_lossy()]);
    let target = LoopDevice::filled(&scratch, "target", 16, 0);
    let run = common::run(
        floe.args(["restore", "--grow"])
            .arg(&image)
            .arg(target.path()),
        Limit::secs(30),
    )
    .expect_code(4);
    assert!(run.stderr_text().contains("--grow grows ext2"), "{run}");
    let new = scratch.join("new");
    let run = expect_floe(&["restore", "--grow", &text(&image), &text(&new)], 4);
    assert!(run.stderr_text().contains("block device"), "{run}");
    assert!(!new.exists());
    let run = run_floe(&[
        "restore",
        "--grow",
        "--disk",
        &text(target.path()),
        &text(&image),
    ]);
    run.expect_code(2);
    assert!(blocks_are_zero(&scratch.join("target")));
}

/// The kernel's partitions of a disk: number, start and size in sectors of 512 bytes.
fn partitions(disk: &Path) -> Vec<(u32, u64, u64)> {
    let name = disk.file_name().expect("name").to_string_lossy();
    let folder = Path::new("/sys/block").join(&*name);
    let number = |path: &Path, name: &str| {
        fs::read_to_string(path.join(name))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let mut found: Vec<(u32, u64, u64)> = fs::read_dir(folder)
        .expect("sysfs")
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            Some((
                u32::try_from(number(&path, "partition")?).expect("small"),
                number(&path, "start")?,
                number(&path, "size")?,
            ))
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn the_kernel_shows_the_partitions_of_a_restored_disk_and_forgets_the_old_ones() {
    require!(common::is_root(), "root");
    require!(common::have("sfdisk"), "sfdisk");
    let mut floe = require_floe!();
    let scratch = Scratch::new();
    drop(LoopDevice::filled(&scratch, "target", 64, 0));
    // With partitions; without them nothing is added that would outlive the loop device.
    let target = LoopDevice::attach_with(&scratch.join("target"), &["-P"]);
    let plain = LoopDevice::filled(&scratch, "plain", 64, 0);
    let image = |name: &str, script: &str| {
        let file = scratch.join(name);
        common::sparse(&file, 64 << 20);
        common::run_with_input(
            Command::new("sfdisk").arg("-q").arg(&file),
            script.as_bytes(),
            Limit::secs(30),
        )
        .expect_code(0);
        file
    };
    let gpt = image(
        "gpt",
        "label: gpt\nstart=1MiB, size=8MiB\nsize=16MiB\nsize=4MiB\n",
    );
    let mbr = image(
        "mbr",
        "label: dos\nstart=2MiB, size=20MiB, type=83\nstart=30MiB, size=30MiB, type=5\nstart=31MiB, size=9MiB, type=83\n",
    );
    let mib = 2048;
    common::run(
        floe.arg("restore").arg(&gpt).arg(target.path()),
        Limit::secs(60),
    )
    .expect_code(0);
    let expected = [
        (1, mib, 8 * mib),
        (2, 9 * mib, 16 * mib),
        (3, 25 * mib, 4 * mib),
    ];
    assert_eq!(partitions(target.path()), expected);
    expect_floe(
        &["restore", "--overwrite", &text(&mbr), &text(target.path())],
        0,
    );
    let found = partitions(target.path());
    assert!(found.contains(&(1, 2 * mib, 20 * mib)), "{found:?}");
    assert!(found.contains(&(5, 31 * mib, 9 * mib)), "{found:?}");
    assert!(!found.iter().any(|part| part.0 == 3), "{found:?}");
    let run = common::run(
        require_floe!().arg("restore").arg(&gpt).arg(plain.path()),
        Limit::secs(60),
    );
    run.expect_code(0);
    assert_eq!(partitions(plain.path()), []);
}
