//! A uuid of its own for a copy: what is written leaves every checker content and every copy of the superblock in agreement; what
//! cannot be changed there is refused with the reason and not touched.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use floe::device::{Access, Device};
use floe::error::Fault;
use floe::fs::{Kind, identity, probe};

use crate::common::{self, Limit, LoopFs, Mounted, Scratch, Spec};

const UUID: [u8; 16] = *b"\x6a\x51\x0c\x1d\x92\x3e\x4f\x00\x8b\x77\x01\x02\x03\x04\x05\x06";
const TEXT: &str = "6a510c1d-923e-4f00-8b77-010203040506";

/// Changes the uuid in an image file.
fn change(image: &Path) -> Result<Kind, Fault> {
    let device = Device::open(image, Access::Read)?;
    let kind = probe(&device)?.expect("a filesystem").kind;
    identity::can_change(&device, kind)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(image)
        .expect("open");
    identity::change(&device, kind, &UUID, &mut |offset, bytes| {
        file.write_all_at(bytes, offset).expect("write");
        Ok(())
    })?;
    Ok(kind)
}

fn made(scratch: &Scratch, mib: u64, words: &[&str]) -> PathBuf {
    let image = scratch.join("image");
    let _ = fs::remove_file(&image);
    common::sparse(&image, mib << 20);
    let mut mkfs = Command::new(words[0]);
    mkfs.args(&words[1..]).arg(&image);
    common::run(&mut mkfs, Limit::secs(60)).expect_code(0);
    image
}

fn uuid_of(image: &Path) -> String {
    let device = Device::open(image, Access::Read).expect("open");
    let found = probe(&device).expect("probe").expect("a filesystem");
    found.uuid.as_str().to_owned()
}

#[test]
fn ext_gets_another_uuid_in_every_copy_of_its_superblock() {
    require!(
        common::have("mke2fs") && common::have("e2fsck"),
        "e2fsprogs"
    );
    let scratch = Scratch::new();
    for features in [
        &["-t", "ext4", "-O", "metadata_csum,metadata_csum_seed"][..],
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg",
        ],
        &[
            "-t",
            "ext4",
            "-O",
            "metadata_csum,metadata_csum_seed,sparse_super2",
        ],
        &["-t", "ext3"],
        &[
            "-t",
            "ext2",
            "-b",
            "1024",
            "-O",
            "^sparse_super,^resize_inode",
        ],
    ] {
        let mut words = vec!["mke2fs", "-q", "-F"];
        words.extend(features);
        let image = made(&scratch, 200, &words);
        change(&image).unwrap_or_else(|fault| panic!("{features:?}: {fault}"));
        assert_eq!(uuid_of(&image), TEXT);
        let path = image.to_string_lossy();
        common::output("e2fsck", &["-fn", &path]);
        // Every backup, by itself.
        let text = common::output("dumpe2fs", &["-h", &path]);
        let block: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("Block size:"))
            .and_then(|rest| rest.trim().parse().ok())
            .expect("block size");
        let all = common::output("dumpe2fs", &[&path]);
        let mut backups = 0;
        for line in all
            .lines()
            .filter(|line| line.contains("Backup superblock at"))
        {
            let (_, rest) = line.split_once("Backup superblock at ").expect("place");
            let place = rest.split([',', ' ']).next().expect("number");
            let shown = common::output(
                "dumpe2fs",
                &[
                    "-h",
                    "-o",
                    &format!("superblock={place}"),
                    "-o",
                    &format!("blocksize={block}"),
                    &path,
                ],
            );
            assert!(shown.contains(TEXT), "{features:?}: backup at {place}");
            backups += 1;
        }
        assert!(backups >= 1, "{features:?}: {all}");
    }
}

#[test]
fn an_ext_whose_checksums_depend_on_the_uuid_is_refused_and_not_touched() {
    require!(common::have("mke2fs"), "mke2fs");
    let scratch = Scratch::new();
    for features in [
        "metadata_csum,^metadata_csum_seed",
        "^metadata_csum,uninit_bg",
    ] {
        let image = made(
            &scratch,
            64,
            &["mke2fs", "-q", "-F", "-t", "ext4", "-O", features],
        );
        let before = common::hash_file(&image);
        let fault = change(&image).expect_err("refused");
        assert!(fault.to_string().contains(" on the uuid"), "{fault}");
        assert_eq!(common::hash_file(&image), before);
    }
}

#[test]
fn fat_and_swap_get_another_number() {
    require!(
        common::have("mkfs.vfat") && common::have("fsck.vfat"),
        "dosfstools"
    );
    require!(common::have("mkswap"), "mkswap");
    let scratch = Scratch::new();
    for (mib, width) in [(4, "12"), (32, "16"), (80, "32")] {
        let image = made(&scratch, mib, &["mkfs.vfat", "-F", width]);
        change(&image).expect("changed");
        assert_eq!(uuid_of(&image), "1D0C-516A", "FAT{width}");
        common::output("fsck.vfat", &["-n", &image.to_string_lossy()]);
    }
    let image = made(&scratch, 8, &["mkswap", "-q"]);
    assert_eq!(change(&image), Ok(Kind::Swap));
    assert_eq!(uuid_of(&image), TEXT);
}

#[test]
fn xfs_keeps_its_metadata_and_its_log_under_a_new_uuid() {
    let mut source = require_ok!(LoopFs::make(Spec {
        kind: "xfs",
        mib: 320,
        ..Spec::default()
    }));
    source.fill(200);
    let files = common::tree(source.dir());
    // In use its log is dirty: refused. After the unmount it is not.
    let copy = source.scratch().join("copy");
    common::output("sync", &["-f", &source.dir().to_string_lossy()]);
    fs::copy(source.image(), &copy).expect("copy");
    let fault = change(&copy).expect_err("dirty");
    assert!(fault.to_string().contains("log is dirty"), "{fault}");
    source.unmount();
    // Nothing is changed where not everything can be: a damaged superblock of another group.
    fs::copy(source.image(), &copy).expect("copy");
    let file = fs::File::options().read(true).write(true).open(&copy);
    let file = file.expect("open");
    let number = |offset| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, offset).expect("read");
        u64::from(u32::from_be_bytes(bytes))
    };
    let group_bytes = number(0x54) * number(4);
    file.write_all_at(b"!", group_bytes + 0x70).expect("write");
    let before = common::hash_file(&copy);
    let fault = change(&copy).expect_err("damaged");
    assert!(fault.to_string().contains("allocation group"), "{fault}");
    assert_eq!(common::hash_file(&copy), before);
    fs::copy(source.image(), &copy).expect("copy");
    let old = uuid_of(&copy);
    for _ in 0..2 {
        // Twice: the second time the feature is there already.
        assert_eq!(change(&copy), Ok(Kind::Xfs));
        assert_eq!(uuid_of(&copy), TEXT);
        common::fsck("xfs", &copy);
        // Beside its original, without nouuid.
        source.mount();
        let mounted = Mounted::new("xfs", &copy, "");
        common::assert_same_tree(&files, &common::tree(mounted.dir()));
        fs::write(mounted.dir().join("new"), b"written").expect("write");
        fs::remove_file(mounted.dir().join("new")).expect("remove");
        drop(mounted);
        source.unmount();
    }
    assert_ne!(old, TEXT);
}

#[test]
fn what_is_known_by_its_uuid_is_refused() {
    require!(common::have("mkfs.btrfs"), "mkfs.btrfs");
    let scratch = Scratch::new();
    let image = made(&scratch, 160, &["mkfs.btrfs", "-q"]);
    let fault = change(&image).expect_err("refused");
    assert!(fault.to_string().contains("btrfstune"), "{fault}");
}
