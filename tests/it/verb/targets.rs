//! What becomes of a target beyond the image: longer files, old superblocks at the end of a device, sectors of another size; and
//! a standard output that is not there.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Limit, LoopDevice, Scratch, sparse};

const MIB: u64 = 1 << 20;

/// A file full of ones, and a little more.
fn longer(scratch: &Scratch, mib: u64) -> PathBuf {
    let path = scratch.join("longer");
    let mut file = fs::File::create(&path).expect("file");
    for _ in 0..mib {
        file.write_all(&vec![1; 1 << 20]).expect("fill");
    }
    file.write_all(&[1; 777]).expect("fill");
    path
}

fn mkfs(words: &[&str], path: &Path) {
    let mut words = words.to_vec();
    let path = path.to_string_lossy();
    words.push(&path);
    common::output(words[0], &words[1..]);
}

fn restore(image: &Path, target: &Path) -> common::Run {
    let mut floe = common::floe().expect("required before");
    floe.args(["restore", "--overwrite"]).arg(image).arg(target);
    common::run(&mut floe, Limit::secs(120))
}

fn sfdisk(path: &Path, script: &str) {
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.arg("-q").arg(path);
    common::run_with_input(&mut sfdisk, script.as_bytes(), Limit::secs(30)).expect_code(0);
}

#[test]
fn a_longer_file_becomes_exactly_the_image() {
    require_mkfs!();
    let scratch = Scratch::new();
    let (small, large) = (scratch.join("small"), scratch.join("large"));
    sparse(&small, MIB);
    mkfs(&["mkfs.ext2", "-q", "-F"], &small);
    sparse(&large, 24 * MIB);
    mkfs(&["mkfs.ext4", "-q", "-F"], &large);
    for image in [&small, &large] {
        let target = longer(&scratch, 40);
        restore(image, &target).expect_code(0);
        let (wanted, found) = (fs::read(image).unwrap(), fs::read(&target).unwrap());
        assert_eq!(found.len(), wanted.len());
        assert!(found == wanted);
    }
}

#[test]
fn a_longer_file_that_gets_a_disk_keeps_no_table_at_its_old_end() {
    drop(require_floe!());
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let (image, target) = (scratch.join("image"), scratch.join("target"));
    sparse(&image, 24 * MIB);
    sfdisk(&image, "label: gpt\nsize=8MiB, name=one\n");
    sparse(&target, 40 * MIB);
    sfdisk(&target, "label: gpt\nsize=30MiB, name=old\n");
    restore(&image, &target).expect_code(0);
    assert!(fs::read(&target).unwrap() == fs::read(&image).unwrap());
    let said = common::run(
        Command::new("sfdisk").args(["--verify"]).arg(&target),
        Limit::secs(20),
    )
    .expect_code(0);
    assert!(!said.stderr_text().contains("backup"), "{said}");
}

#[test]
fn a_table_for_sectors_of_another_size_is_refused() {
    drop(require_floe!());
    require!(
        common::is_root() && common::have("sfdisk"),
        "root and sfdisk"
    );
    let scratch = Scratch::new();
    let (image, file) = (scratch.join("image"), scratch.join("file"));
    sparse(&image, 24 * MIB);
    sfdisk(&image, "label: gpt\nsize=8MiB, name=one\n");
    sparse(&file, 32 * MIB);
    let target = LoopDevice::attach(&file, 4096);
    let run = restore(&image, target.path()).expect_code(4);
    assert!(
        run.stderr_text().contains(
            "has sectors of 4096 bytes, and the partition table of the image counts in 512"
        ),
        "{run}"
    );
    assert!(fs::read(&file).unwrap().iter().all(|byte| *byte == 0));
}

/// Restores a small image over what is on a device of 32 MiB; gives the device's file afterwards.
fn restored_over(prepare: impl Fn(&Path)) -> Vec<u8> {
    let scratch = Scratch::new();
    let (image, file) = (scratch.join("image"), scratch.join("file"));
    sparse(&image, 4 * MIB);
    mkfs(&["mkfs.ext2", "-q", "-F"], &image);
    // Not sparse, so that a zero has been written and was not there anyway.
    fs::write(&file, vec![0xa5; 32 << 20]).expect("file");
    prepare(&file);
    let target = LoopDevice::attach(&file, 512);
    restore(&image, target.path()).expect_code(0);
    let bytes = fs::read(&file).unwrap();
    let wanted = fs::read(&image).unwrap();
    assert!(bytes[..wanted.len()] == wanted[..]);
    assert_eq!(bytes[wanted.len() + 100], 0xa5, "the middle is left alone");
    bytes
}

macro_rules! require_loop {
    () => {
        drop(require_floe!());
        require!(
            common::is_root() && common::have("mkfs.ext2"),
            "root and mkfs.ext2"
        );
    };
}

#[test]
fn the_superblock_of_an_old_array_at_the_end_is_wiped() {
    require_loop!();
    let place = (32u64 << 20) - 8192;
    // Metadata 1.0: magic and version, and where it lies in sectors (drivers/md/md.c, struct mdp_superblock_1).
    let bytes = restored_over(|file| {
        let mut superblock = [0u8; 256];
        superblock[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
        superblock[4] = 1;
        superblock[0x90..0x98].copy_from_slice(&(place / 512).to_le_bytes());
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.write_all_at(&superblock, place).unwrap();
    });
    let start = bytes.len() - 128 * 1024;
    assert!(bytes[start..].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[start - 1], 0xa5);
}

#[test]
fn the_second_superblock_of_an_old_nilfs2_is_wiped() {
    require_loop!();
    require!(common::have("mkfs.nilfs2"), "mkfs.nilfs2");
    let bytes = restored_over(|file| {
        let large = fs::OpenOptions::new().write(true).open(file).unwrap();
        large.set_len(128 << 20).unwrap();
        mkfs(&["mkfs.nilfs2", "-q", "-f", "-B", "16"], file);
    });
    assert_eq!(bytes.len(), 128 << 20);
    assert!(bytes[bytes.len() - 4096..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_closed_stdout_is_an_error_and_not_a_stream_into_nothing() {
    let floe = require_some!(common::floe_shell_words(), "FLOE_BIN");
    require!(
        common::runner().is_none(),
        "a program of the machine's own (an emulator fills the gap)"
    );
    let scratch = Scratch::new();
    require!(common::have("mkfs.ext2"), "mkfs.ext2");
    // With a filesystem in it: any other file would mean the filesystem that it lies on.
    let image = scratch.join("image");
    sparse(&image, MIB);
    mkfs(&["mkfs.ext2", "-q", "-F"], &image);
    let image = image.display();
    for words in [
        format!("dump '{image}'"),
        format!("dump --compress none '{image}'"),
        format!("create a='{image}' -o -"),
        format!("show '{image}'"),
        format!("artifact '{image}' -n a -t b"),
        "--help".into(),
    ] {
        for closed in [">&-", ">&- 2>&1 <&-", "2>&1 >&- <&-"] {
            let run = common::shell(&format!("{floe} {words} {closed}"), Limit::secs(30));
            assert_eq!(run.code, Some(1), "{words} {closed}: {run}");
        }
        let run = common::shell(&format!("{floe} {words} >&-"), Limit::secs(30));
        assert!(run.stderr_text().contains("stdout: is closed"), "{run}");
        // A file in which nothing is kept is what the user asked for.
        let open = format!("{floe} {words} > /dev/null");
        common::shell(&open, Limit::secs(30)).expect_code(0);
    }
    let run = common::shell(
        &format!("{floe} pull 127.0.0.1:1 -o - >&-"),
        Limit::secs(30),
    );
    assert!(run.stderr_text().contains("stdout: is closed"), "{run}");
    let file = scratch.join("out.gz");
    let words = format!("{floe} dump -q '{image}' -o '{}' >&-", file.display());
    common::shell(&words, Limit::secs(30)).expect_code(0);
}
