//! `clone --media --partition`: the table is what was asked for, the kernel shows it, every role holds what it should; what a boot
//! loader needs comes along; and everything that is wrong is refused in one line with the medium untouched.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Limit, LoopDevice, LoopFs, Mounted, Random, Run, Scratch, Spec};
use crate::disk::Disk;

/// A blank loop disk, whose partition nodes go away with it.
struct Medium {
    device: LoopDevice,
    image: PathBuf,
    scratch: Scratch,
}

impl Medium {
    fn blank(mib: u64) -> Medium {
        let scratch = Scratch::new();
        let image = scratch.join("medium");
        common::sparse(&image, mib << 20);
        Medium {
            device: LoopDevice::attach_with(&image, &["-P"]),
            image,
            scratch,
        }
    }

    fn path(&self) -> &Path {
        self.device.path()
    }

    fn part(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.path().display()))
    }

    fn is_blank(&self) -> bool {
        let bytes = fs::read(&self.image).expect("image");
        bytes.iter().all(|byte| *byte == 0)
    }

    fn table(&self) -> String {
        common::output("sfdisk", &["-d", &self.path().to_string_lossy()])
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let _ = Command::new("partx")
            .arg("-d")
            .arg(self.path())
            .stderr(std::process::Stdio::null())
            .status();
    }
}

/// One line on stderr, this exit code, and the medium as it was.
#[track_caller]
fn refused(run: Run, code: i32, words: &str, medium: &Medium) {
    let run = run.expect_code(code);
    let text = run.stderr_text();
    assert_eq!(text.lines().count(), 1, "{run}");
    assert!(text.contains(words), "{run}");
    assert!(medium.is_blank(), "{run}");
}

fn source(kind: &str, mib: u64) -> Result<LoopFs, String> {
    LoopFs::make(Spec {
        kind,
        mib,
        ..Spec::default()
    })
}

macro_rules! source {
    ($kind:expr, $mib:expr) => {
        match source($kind, $mib) {
            Ok(source) => source,
            Err(missing) => return common::skip(&missing),
        }
    };
}

/// `SOURCE=ROLE`.
fn pair(dir: &Path, role: &str) -> String {
    format!("{}={role}", dir.display())
}

const GPT: &str = "label: gpt\nlabel-id: 01234567-89AB-4CDE-8F01-23456789ABCD\nstart=1MiB, size=1MiB, \
    type=21686148-6449-6E6F-744E-656564454649, name=grub\nsize=16MiB, type=uefi, name=BOOT\n\
    size=64MiB, name=rootfs\nsize=16MiB, name=cfg\n";

#[test]
fn as_primary_takes_boot_code_gap_raw_partitions_and_identifiers_along() {
    let disk = require_ok!(Disk::make(160, GPT, 512));
    let mut floe = require_floe!();
    let code = Random(3).bytes(440);
    let gap = Random(4).bytes(900 << 10);
    let core = Random(5).bytes(1 << 20);
    {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(disk.device.path())
            .expect("disk");
        file.write_all_at(&code, 0).expect("code");
        file.write_all_at(&gap, 64 << 10).expect("gap");
        file.write_all_at(&core, 1 << 20).expect("core");
        file.sync_all().expect("sync");
    }
    for number in [2, 3, 4] {
        common::output(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", &disk.part_text(number)],
        );
    }
    let mounts: Vec<Mounted> = [2, 3, 4]
        .iter()
        .map(|number| Mounted::new("ext4", &disk.part(*number), "rw"))
        .collect();
    for mount in &mounts {
        common::fill(mount.dir(), 30);
    }
    let medium = Medium::blank(240);
    let run = common::run(
        floe.arg("clone")
            .args([
                pair(mounts[1].dir(), "root"),
                pair(mounts[2].dir(), "config"),
                pair(mounts[0].dir(), "boot"),
            ])
            .arg("--media")
            .arg(medium.path())
            .args([
                "--swap-size",
                "8",
                "--data-size",
                "20M",
                "--as-primary",
                "--verify",
            ]),
        Limit::secs(120),
    )
    .expect_code(0);
    let text = run.stderr_text();
    let printed = text.find("new partition table").expect(&text);
    assert!(printed < text.find("Copying").expect(&text), "{text}");
    let table = medium.table();
    assert!(
        table.contains("01234567-89AB-4CDE-8F01-23456789ABCD"),
        "{table}"
    );
    // Types, names and identifiers of the first four partitions are those of the original.
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| Some(line.split_once("type=")?.1))
            // Where the roles are recorded.
            .map(|line| line.split(", attrs=").next().unwrap_or(line).to_owned())
            .collect()
    };
    let original = common::output("sfdisk", &["-d", &disk.device.path().to_string_lossy()]);
    assert_eq!(lines(&original)[..], lines(&table)[..4], "{table}");
    let bytes = fs::read(&medium.image).expect("medium");
    assert_eq!(&bytes[..440], &code[..]);
    assert_eq!(&bytes[64 << 10..][..gap.len()], &gap[..]);
    assert_eq!(&bytes[1 << 20..][..core.len()], &core[..]);
    let verify = common::output("sfdisk", &["--verify", &medium.path().to_string_lossy()]);
    assert!(verify.contains("No errors"), "{verify}");
    for (number, mount) in (2..).zip(&mounts) {
        common::fsck("ext4", &medium.part(number));
        let copy = Mounted::new("ext4", &medium.part(number), "ro");
        common::assert_same_tree(&common::tree(mount.dir()), &common::tree(copy.dir()));
    }
    let data = Mounted::new("ext4", &medium.part(5), "rw");
    fs::write(data.dir().join("x"), b"x").expect("the data filesystem is one");
    drop(data);
    let swap = &bytes[..];
    let at = table
        .lines()
        .find(|line| line.contains("0657FD6D"))
        .and_then(|line| {
            line.split("start=")
                .nth(1)?
                .split(',')
                .next()?
                .trim()
                .parse::<usize>()
                .ok()
        })
        .expect("swap");
    assert_eq!(&swap[at * 512 + 4086..at * 512 + 4096], b"SWAPSPACE2");
    let swapped = common::run(Command::new("swapon").arg(medium.part(6)), Limit::secs(20));
    if swapped.code == Some(0) {
        common::output("swapoff", &[&medium.part(6).to_string_lossy()]);
    }
    // Found again by role, whatever the partitions are called.
    fs::write(mounts[2].dir().join("newer"), b"newer").expect("newer");
    common::run(
        require_floe!()
            .arg("clone")
            .arg(pair(mounts[2].dir(), "config"))
            .arg("--media")
            .arg(medium.path())
            .arg("--overwrite"),
        Limit::secs(60),
    )
    .expect_code(0);
    let copy = Mounted::new("ext4", &medium.part(4), "ro");
    assert_eq!(fs::read(copy.dir().join("newer")).expect("newer"), b"newer");
    drop(copy);
    // Once more: it holds something now.
    let run = common::run(
        require_floe!()
            .arg("clone")
            .arg(pair(mounts[1].dir(), "root"))
            .arg("--media")
            .arg(medium.path())
            .args(["--partition", "--swap-size", "0"]),
        Limit::secs(60),
    )
    .expect_code(4);
    assert!(run.stderr_text().contains("--overwrite"), "{run}");
    // The disk that holds what is to be copied is no medium for it.
    let run = common::run(
        require_floe!()
            .arg("clone")
            .arg(pair(mounts[1].dir(), "root"))
            .arg("--media")
            .arg(disk.device.path())
            .args(["--partition", "--overwrite", "--swap-size", "0"]),
        Limit::secs(60),
    )
    .expect_code(4);
    assert!(
        run.stderr_text().contains("holds what is to be copied"),
        "{run}"
    );
}

#[test]
fn an_mbr_gets_logical_partitions_where_four_are_not_enough() {
    let (root, config, boot) = (source!("ext4", 48), source!("ext4", 16), source!("ext4", 8));
    let mut floe = require_floe!();
    require!(
        common::have("sfdisk") && common::have("partx"),
        "sfdisk, partx"
    );
    root.fill(30);
    let medium = Medium::blank(200);
    common::run(
        floe.arg("clone")
            .args([
                pair(boot.dir(), "boot"),
                pair(root.dir(), "root"),
                pair(config.dir(), "config"),
            ])
            .arg("--media")
            .arg(medium.path())
            .args(["--table", "mbr", "--swap-size=8", "--data-size=16"]),
        Limit::secs(120),
    )
    .expect_code(0);
    let table = medium.table();
    let mib = |line: &str| -> Option<(u64, String)> {
        let size = line.split("size=").nth(1)?.split(',').next()?.trim();
        let kind = line.split("type=").nth(1)?.split(',').next()?;
        Some((size.parse::<u64>().ok()? / 2048, kind.trim().to_owned()))
    };
    let found: Vec<(u64, String)> = table.lines().filter_map(mib).collect();
    let sizes: Vec<u64> = found.iter().map(|(size, _)| *size).collect();
    // boot as its source, root the rest, config a tenth (and as its source at least), the extended one, data, swap.
    assert_eq!(sizes.len(), 6, "{table}");
    assert_eq!(
        (sizes[0], sizes[2], sizes[4], sizes[5]),
        (8, 20, 16, 8),
        "{table}"
    );
    assert!(sizes[1] > 140, "{table}");
    assert_eq!(found[3].1, "f", "{table}");
    let copy = Mounted::new("ext4", &medium.part(2), "ro");
    common::assert_same_tree(&common::tree(root.dir()), &common::tree(copy.dir()));
    let data = Mounted::new("ext4", &medium.part(5), "ro");
    drop((copy, data));
    // An MBR has no names; the roles are found again all the same, the logical ones too.
    fs::write(config.dir().join("newer"), b"newer").expect("newer");
    let again = require_floe!()
        .arg("clone")
        .args([pair(config.dir(), "data"), pair(root.dir(), "root")])
        .args(["--overwrite", "--media"])
        .arg(medium.path())
        .output()
        .expect("floe");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(0), "{said}");
    let data = Mounted::new("ext4", &medium.part(5), "ro");
    assert_eq!(fs::read(data.dir().join("newer")).expect("newer"), b"newer");
    drop(data);
    let verify = common::output("sfdisk", &["--verify", &medium.path().to_string_lossy()]);
    assert!(verify.contains("No errors"), "{verify}");
    assert!(medium.scratch.path().exists());
}

#[test]
fn copies_get_a_uuid_of_their_own_and_grow() {
    // An emulator answers ENOTTY for the ioctl that grows an XFS.
    require!(common::runner().is_none(), "no runner");
    let root = require_ok!(LoopFs::make(Spec {
        kind: "xfs",
        mib: 320,
        ..Spec::default()
    }));
    let mut floe = require_floe!();
    root.fill(60);
    let medium = Medium::blank(600);
    let run = common::run(
        floe.arg("clone")
            .arg(pair(root.dir(), "root"))
            .arg("--media")
            .arg(medium.path())
            .args(["--partition", "--swap-size", "0", "--new-uuid", "--grow"]),
        Limit::secs(120),
    )
    .expect_code(0);
    let text = run.stderr_text();
    assert!(
        text.contains("its uuid is") && text.contains("was grown from"),
        "{text}"
    );
    common::fsck("xfs", &medium.part(1));
    // Without nouuid: the original is mounted.
    let copy = Mounted::new("xfs", &medium.part(1), "");
    common::assert_same_tree(&common::tree(root.dir()), &common::tree(copy.dir()));
    let out = common::output(
        "df",
        &["-k", "--output=size", &copy.dir().to_string_lossy()],
    );
    let kib: u64 = out
        .lines()
        .last()
        .and_then(|line| line.trim().parse().ok())
        .expect("size");
    assert!(kib > 500 << 10, "{out}");
}

#[test]
fn what_is_wrong_is_one_line_and_the_medium_stays_as_it_was() {
    let root = source!("ext4", 48);
    let medium = Medium::blank(120);
    let plain = fs::File::create(medium.scratch.join("plain"));
    plain
        .and_then(|file| file.set_len(120 << 20))
        .expect("file");
    let clone = |words: &[&str]| {
        let mut floe = common::floe().expect("floe");
        floe.arg("clone").args(words);
        common::run(&mut floe, Limit::secs(60))
    };
    require!(common::floe().is_some(), "FLOE_BIN");
    let onto = medium.path().to_string_lossy().into_owned();
    let as_root = pair(root.dir(), "root");
    let wrong = |words: &[&str], code, why| {
        let mut all = vec![as_root.as_str()];
        all.extend(words);
        refused(clone(&all), code, why, &medium);
    };
    let media = ["--media", onto.as_str()];
    let with = |more: &[&'static str]| -> Vec<String> {
        media
            .iter()
            .chain(more)
            .map(|word| (*word).to_owned())
            .collect()
    };
    for (more, code, why) in [
        (&["--root-size", "64X"][..], 2, "is not a size"),
        (&["--root-size", "-1"], 2, "root-size"),
        (&["--table", "bsd"], 2, "gpt or mbr"),
        (&["--config-size", "10"], 2, "no pair has the role config"),
        (
            &["--partition", "--as-primary", "--new-uuid"],
            2,
            "--as-primary keeps",
        ),
        (&["--as-primary"], 2, "--as-primary needs --partition"),
        (&["--root-size", "10"], 4, "too small"),
        (&["--root-size", "60", "--swap-size", "90"], 4, "do not fit"),
        (&["--partition", "--swap-size", "80"], 4, "would have"),
        (
            &["--partition", "--as-primary", "--swap-size", "0"],
            4,
            "is on no partition",
        ),
    ] {
        let words = with(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        wrong(&words, code, why);
    }
    wrong(&["--partition"], 2, "--partition needs --media");
    wrong(&["--media", "tape", "--partition"], 2, "'tape' is neither");
    wrong(&["--media", "usb", "--partition"], 4, "--media usb");
    wrong(&media, 4, "has no partition named root");
    refused(
        clone(&[&pair(root.dir(), "rot"), media[0], media[1], "--partition"]),
        2,
        "is a role",
        &medium,
    );
    // What happens to partitions afterwards needs them, and a loop device without -P has none.
    let plain = LoopDevice::attach(&medium.scratch.join("plain"), 512);
    for more in [&["--data-size", "20"][..], &["--new-uuid"], &["--grow"]] {
        let mut words = vec![as_root.as_str(), "--media"];
        let onto = plain.path().to_string_lossy();
        words.extend([&*onto, "--partition", "--swap-size", "0"]);
        words.extend(more);
        refused(clone(&words), 4, "losetup -P", &medium);
    }
    drop(plain);
    // No mkfs, and a data partition wanted.
    let mut floe = common::floe().expect("floe");
    floe.env("PATH", "/nowhere")
        .args(["clone", &as_root, media[0], media[1]])
        .args(["--data-size", "20", "--swap-size", "0"]);
    refused(
        common::run(&mut floe, Limit::secs(60)),
        4,
        "mkfs.ext4: is not in PATH",
        &medium,
    );
}

#[test]
fn a_medium_in_use_is_refused() {
    let disk = require_ok!(Disk::make(96, "label: gpt\nsize=32MiB\nsize=32MiB\n", 512));
    let root = source!("ext4", 48);
    let mut floe = require_floe!();
    common::output("mke2fs", &["-q", "-F", &disk.part_text(2)]);
    let mounted = Mounted::new("ext4", &disk.part(2), "rw");
    let before = common::hash_file(&disk.image);
    let run = common::run(
        floe.arg("clone")
            .arg(pair(root.dir(), "root"))
            .arg("--media")
            .arg(disk.device.path())
            .args(["--partition", "--overwrite", "--swap-size", "0"]),
        Limit::secs(60),
    )
    .expect_code(4);
    let text = run.stderr_text();
    assert!(
        text.contains("is mounted on") && text.contains("umount"),
        "{text}"
    );
    assert_eq!(common::hash_file(&disk.image), before);
    let run = common::run(
        require_floe!()
            .arg("clone")
            .arg(pair(root.dir(), "root"))
            .arg("--media")
            .arg(disk.part(1))
            .args(["--partition", "--overwrite", "--swap-size", "0"]),
        Limit::secs(60),
    )
    .expect_code(4);
    assert!(run.stderr_text().contains("is a partition of"), "{run}");
    drop(mounted);
}

#[test]
fn media_without_partition_finds_the_partitions_by_their_names() {
    let disk = require_ok!(Disk::make(
        160,
        "label: gpt\nsize=32MiB, name=config\nsize=64MiB, name=root\n",
        512,
    ));
    let (root, config) = (source!("ext4", 48), source!("ext4", 16));
    let mut floe = require_floe!();
    root.fill(20);
    let clone = floe
        .arg("clone")
        .args([pair(root.dir(), "root"), pair(config.dir(), "config")])
        .arg("--media")
        .arg(disk.device.path());
    common::run(clone, Limit::secs(60)).expect_code(0);
    let copy = Mounted::new("ext4", &disk.part(2), "ro");
    common::assert_same_tree(&common::tree(root.dir()), &common::tree(copy.dir()));
    drop(copy);
    // A table that is damaged is called that, not one without such a partition.
    let file = fs::File::options().write(true).open(disk.device.path());
    let file = file.expect("disk");
    let table = [512, 160 * (1 << 20) - 512];
    for at in table {
        file.write_all_at(&[0x55; 512], at).expect("damage");
    }
    file.sync_all().expect("sync");
    let run = common::run(clone, Limit::secs(60)).expect_code(4);
    assert!(
        run.stderr_text().contains("partition table is damaged"),
        "{run}"
    );
}

#[test]
fn a_table_whose_partitions_the_kernel_does_not_show_is_not_to_be_laid_anew() {
    let mut floe = require_floe!();
    let source = source!("ext4", 16);
    let scratch = Scratch::new();
    // Attached without -P, so that nobody adds the partitions.
    let medium = LoopDevice::filled(&scratch, "medium", 40, 0);
    let path = medium.path().to_string_lossy().into_owned();
    let words = ["-q", "--no-reread", "--no-tell-kernel", &path];
    common::run_with_input(
        Command::new("sfdisk").args(words),
        b"label: gpt\nsize=24M, name=root\n",
        common::Limit::secs(30),
    )
    .expect_code(0);
    if Path::new(&format!("{path}p1")).exists() {
        return common::skip("a kernel that shows no partitions by itself");
    }
    floe.args(["clone", &pair(source.dir(), "root"), "--media", &path]);
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(4);
    let text = run.stderr_text();
    assert!(text.contains(&format!("partx -a {path}")), "{text}");
    assert!(!text.contains("--partition"), "{text}");
}

#[test]
fn a_data_partition_that_its_mkfs_finds_too_small_is_refused_with_the_smallest_that_works() {
    let mut floe = require_floe!();
    let root = source!("btrfs", 120);
    let medium = Medium::blank(420);
    let as_root = pair(root.dir(), "root");
    let words = ["--partition", "--swap-size", "0", "--config-size", "0"];
    floe.args(["clone", &as_root, "--media"]).arg(medium.path());
    let said = common::run(
        floe.args(words).args(["--data-size", "20"]),
        Limit::secs(60),
    );
    let least = said.stderr_text();
    let least = least.split("--data-size ").nth(1).expect("the least");
    let least: u64 = least.split(' ').next().expect("MiB").parse().expect("MiB");
    refused(said, 4, "mkfs.btrfs needs ", &medium);
    let clone = |size: u64, more: &[&str]| {
        let mut floe = common::floe().expect("floe");
        floe.args(["clone", "-q", &as_root, "--media"])
            .arg(medium.path());
        floe.args(words).args(more);
        let size = size.to_string();
        common::run(floe.args(["--data-size", &size]), Limit::secs(120))
    };
    for more in [&[][..], &["--dry-run"]] {
        refused(clone(least - 1, more), 4, "is the least", &medium);
    }
    clone(least, &[]).expect_code(0);
    let blkid = common::output(
        "blkid",
        &["-p", "-o", "export", &medium.part(2).to_string_lossy()],
    );
    assert!(blkid.contains("TYPE=btrfs"), "{blkid}");
}

#[test]
fn a_damaged_table_is_called_damaged_where_a_medium_is_looked_at() {
    let mut floe = require_floe!();
    require!(common::have("sfdisk"), "sfdisk");
    let root = source!("ext4", 16);
    let medium = Medium::blank(64);
    let mut sfdisk = Command::new("sfdisk");
    sfdisk
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(&medium.image);
    let script = b"label: gpt\nstart=2048, size=32768\n";
    common::run_with_input(&mut sfdisk, script, Limit::secs(30)).expect_code(0);
    // The first header, which the last one of the disk stands for.
    let image = fs::File::options()
        .write(true)
        .open(&medium.image)
        .expect("medium");
    image.write_all_at(&[0xff; 64], 512 + 24).expect("damage");
    floe.args([
        "clone",
        &pair(root.dir(), "root"),
        "--partition",
        "--dry-run",
        "--media",
    ]);
    let run = common::run(floe.arg(medium.path()), Limit::secs(60)).expect_code(4);
    let said = run.stderr_text();
    assert!(said.contains("holds a damaged partition table ("), "{said}");
    let shown = common::run(require_floe!().arg("show"), Limit::secs(60)).expect_code(0);
    let name = format!("{} ", medium.path().display());
    let shown = shown.stdout_text();
    let line = shown.lines().find(|line| line.starts_with(&name));
    let line = line.expect("its line");
    assert!(line.contains("its table is damaged: "), "{line}");
    // The MBR in front of it, without which no kernel looks for it.
    image.write_all_at(&[0], 510).expect("damage");
    let mut floe = require_floe!();
    floe.args(["clone", &pair(root.dir(), "root"), "--media"]);
    let run = common::run(floe.arg(medium.path()), Limit::secs(60)).expect_code(4);
    let said = run.stderr_text();
    assert!(
        said.contains("its partition table is damaged: protective MBR"),
        "{said}"
    );
}
