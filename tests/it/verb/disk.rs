//! Whole disks: the table and the gaps verbatim, each partition by its own map, every mounted filesystem frozen together, and the
//! image flashable. Partition nodes are made with `partx` where the kernel parses no tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Limit, LoopDevice, Mounted, Random};
use crate::disk::Disk;

macro_rules! disk {
    ($mib:expr, $script:expr, $sector:expr) => {
        require_ok!(Disk::make($mib, $script, $sector))
    };
}

const GPT: &str = "label: gpt\nstart=1MiB, size=16MiB, type=uefi, name=boot\nsize=64MiB, name=root\n\
    size=16MiB, type=swap\nsize=32MiB, name=data\n";

fn check_image(image: &Path, start_mib: u64, size_mib: u64, scratch: &Path) -> PathBuf {
    let part = scratch.join(format!("part-{start_mib}"));
    common::output(
        "dd",
        &[
            &format!("if={}", image.display()),
            &format!("of={}", part.display()),
            "bs=1M",
            &format!("skip={start_mib}"),
            &format!("count={size_mib}"),
            "conv=sparse",
            "status=none",
        ],
    );
    part
}

#[test]
fn a_gpt_disk_in_use_becomes_a_flashable_image() {
    for sector in [512, 4096] {
        let disk = disk!(160, GPT, sector);
        common::output(
            "mkfs.vfat",
            &["-F", "12", "-S", &sector.to_string(), &disk.part_text(1)],
        );
        for number in [2, 4] {
            common::output(
                "mke2fs",
                &["-q", "-F", "-t", "ext4", &disk.part_text(number)],
            );
        }
        common::output("mkswap", &["-q", &disk.part_text(3)]);
        let secret = b"SECRET-in-free-space-91c2".repeat(1 << 14);
        let gap = Random(5).bytes(300 << 10);
        // A boot loader in the gap behind the table, and something behind the last partition.
        {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new()
                .write(true)
                .open(disk.device.path())
                .expect("disk");
            file.write_all_at(&gap, 512 << 10).expect("gap");
            file.write_all_at(&gap, 140 << 20).expect("tail");
            file.write_all_at(&gap, 85 << 20).expect("swapped out");
            file.sync_all().expect("sync");
        }
        let (root, data) = (
            Mounted::new("ext4", &disk.part(2), "rw"),
            Mounted::new("ext4", &disk.part(4), "rw"),
        );
        common::fill(root.dir(), 60);
        common::fill(data.dir(), 30);
        fs::write(root.dir().join("secret"), &secret).expect("secret");
        common::output("sync", &["-f", &root.dir().to_string_lossy()]);
        fs::remove_file(root.dir().join("secret")).expect("delete");
        common::output("sync", &["-f", &root.dir().to_string_lossy()]);
        let image = disk.scratch.join("card.img");
        let report = disk.scratch.join("report");
        common::run(
            require_floe!()
                .args(["dump", "-z", "none", "-o"])
                .arg(&image)
                .arg("--report")
                .arg(&report)
                .arg(disk.device.path()),
            Limit::secs(120),
        )
        .expect_code(0);
        let report = fs::read_to_string(&report).expect("report");
        assert!(report.contains("\"filesystem\":\"gpt\""), "{report}");
        assert!(report.contains("\"consistent\":\"frozen\""), "{report}");
        assert!(report.contains("\"map\":\"used\""), "{report}");
        common::assert_not_frozen(root.dir(), "after the dump of its disk");
        let bytes = fs::read(&image).expect("image");
        assert_eq!(
            bytes[512 << 10..][..gap.len()],
            gap,
            "the gap before the first partition"
        );
        assert_eq!(
            bytes[140 << 20..][..gap.len()],
            gap,
            "the gap behind the last partition"
        );
        let found = common::run(
            Command::new("grep")
                .args(["-aqF", "SECRET-in-free-space"])
                .arg(&image),
            Limit::secs(60),
        );
        assert_eq!(
            found.code,
            Some(1),
            "a deleted secret is in the image: {found}"
        );
        let swap = &bytes[81 << 20..97 << 20];
        assert_eq!(&swap[4086..4096], b"SWAPSPACE2");
        assert!(
            swap[4096..].iter().all(|byte| *byte == 0),
            "what was swapped out"
        );
        for (start, size, mounted) in [(17, 64, &root), (97, 32, &data)] {
            let part = check_image(&image, start, size, disk.scratch.path());
            common::fsck("ext4", &part);
            let copy = Mounted::new("ext4", &part, "ro");
            common::assert_same_tree(&common::tree(mounted.dir()), &common::tree(copy.dir()));
        }
        // Restored onto a larger disk, its backup table moves to the end; onto a smaller one it is refused.
        let restored = |name: &str, bytes: u64, code: i32| {
            let file = disk.scratch.join(name);
            common::sparse(&file, bytes);
            let target = LoopDevice::attach(&file, sector);
            let (image, to) = (common::text(&image), common::text(target.path()));
            common::expect_floe(&["restore", &image, &to], code);
            target
        };
        let target = restored("larger", 200 << 20, 0);
        let verify = common::output("sfdisk", &["--verify", &target.path().to_string_lossy()]);
        assert!(verify.contains("No errors"), "{verify}");
        restored("smaller", 100 << 20, 4);
    }
}

#[test]
fn an_mbr_disk_with_logical_partitions_and_swap_in_use_is_dumped() {
    let disk = disk!(
        128,
        "label: dos\nstart=1MiB, size=32MiB, type=83\nstart=40MiB, size=80MiB, type=5\n\
         start=41MiB, size=20MiB, type=83\nstart=65MiB, size=20MiB, type=82\n",
        512
    );
    for number in [1, 5] {
        common::output(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", &disk.part_text(number)],
        );
    }
    common::output("mkswap", &["-q", &disk.part_text(6)]);
    let mounted = Mounted::new("ext4", &disk.part(5), "rw");
    common::fill(mounted.dir(), 20);
    let swap =
        common::run(Command::new("swapon").arg(disk.part(6)), Limit::secs(20)).code == Some(0);
    let image = disk.scratch.join("card.img");
    let run = common::run(
        require_floe!()
            .args(["dump", "-z", "none", "-o"])
            .arg(&image)
            .arg(disk.device.path()),
        Limit::secs(120),
    );
    if swap {
        common::output("swapoff", &[&disk.part_text(6)]);
    }
    run.expect_code(0);
    let part = check_image(&image, 41, 20, disk.scratch.path());
    common::fsck("ext4", &part);
    let copy = Mounted::new("ext4", &part, "ro");
    common::assert_same_tree(&common::tree(mounted.dir()), &common::tree(copy.dir()));
    let table = |path: &Path| {
        common::output("sfdisk", &["-d", &path.to_string_lossy()])
            .lines()
            .filter_map(|line| line.split_once(" : ").map(|(_, rest)| rest.to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(table(&image), table(&disk.image));
    let swap = check_image(&image, 65, 20, disk.scratch.path());
    let swap = fs::read(&swap).expect("swap");
    assert_eq!(&swap[4086..4096], b"SWAPSPACE2");
    assert!(
        swap[4096..].iter().all(|byte| *byte == 0),
        "more than the header of a swap partition"
    );
}

#[test]
fn an_unused_disk_and_a_disk_image_need_no_freeze() {
    let disk = disk!(160, GPT, 512);
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &disk.part_text(2)]);
    let report = disk.scratch.join("report");
    let mut dumps = Vec::new();
    for source in [disk.device.path(), disk.image.as_path()] {
        let image = disk.scratch.join("card.img");
        let run = common::run(
            require_floe!()
                .args(["dump", "-z", "none", "-o"])
                .arg(&image)
                .arg("--report")
                .arg(&report)
                .arg(source),
            Limit::secs(120),
        );
        // The image file of a disk that is attached changes below us: refused, or the same bytes.
        if run.code == Some(4) {
            continue;
        }
        run.expect_code(0);
        let text = fs::read_to_string(&report).expect("report");
        assert!(text.contains("\"consistent\":\"unmounted\""), "{text}");
        dumps.push(common::hash_file(&image));
    }
    assert!(!dumps.is_empty() && dumps.iter().all(|dump| *dump == dumps[0]));
}

#[test]
fn a_snapshot_says_which_partitions_it_lacks_and_takes_no_damaged_table() {
    drop(require_floe!());
    require!(
        common::have("sfdisk") && common::have("mkfs.ext4"),
        "sfdisk and mkfs.ext4"
    );
    let scratch = common::Scratch::new();
    let (disk, root) = (scratch.join("disk"), scratch.join("root"));
    for path in [&disk, &root] {
        let file = fs::File::create(path).expect("file");
        file.set_len(8 << 20).expect("file");
    }
    common::mkfs_ext4(&root);
    let table = b"label: gpt\nstart=1MiB, size=4MiB\n";
    let mut sfdisk = Command::new("sfdisk");
    common::run_with_input(sfdisk.arg("-q").arg(&disk), table, Limit::secs(20)).expect_code(0);
    let zip = scratch.join("s.zip");
    let pair = format!("root={}", root.display());
    let create = || {
        let mut floe = common::floe().expect("checked above");
        floe.args(["create", &pair, "-o"])
            .arg(&zip)
            .arg("--disk")
            .arg(&disk);
        common::run(&mut floe, Limit::secs(60))
    };
    let made = create().expect_code(0).stderr_text();
    // What is nowhere in the snapshot is said, at both ends.
    let note = "partition 1 is not part of this snapshot, and restore --disk leaves it empty";
    assert!(made.contains(note), "{made}");
    // A dry run says what would become of the table and of each partition, and makes nothing.
    let new = scratch.join("new");
    let mut floe = common::floe().expect("checked above");
    floe.arg("restore").arg(&zip).arg("--disk").arg(&new);
    floe.arg(format!("root={}", scratch.join("root.new").display()));
    let dry = common::run(floe.arg("--dry-run"), Limit::secs(60)).expect_code(0);
    for part in ["(gpt, 1 partition)", "partition 1: would be left empty"] {
        assert!(dry.stderr_text().contains(part), "{dry}");
    }
    assert!(!new.exists() && !scratch.join("root.new").exists(), "{dry}");
    let mut floe = common::floe().expect("checked above");
    floe.arg("restore").arg(&zip).arg("--disk");
    floe.arg(scratch.join("new"));
    floe.arg(format!("root={}", scratch.join("root.new").display()));
    let restored = common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let note = "partition 1 of the recorded table had no entry in the snapshot, and is empty";
    // It is the disk's, not the entry's.
    let note = format!("floe: {}: note: {note}", new.display());
    assert!(restored.stderr_text().contains(&note), "{restored}");
    // Who gives no NAME hears which there are.
    let mut floe = common::floe().expect("checked above");
    let run = common::run(floe.arg("restore").arg(&zip).arg(&new), Limit::secs(20));
    let said = run.expect_code(2).stderr_text();
    assert!(said.contains("is a snapshot of root: '"), "{said}");
    fs::remove_file(&zip).expect("made");
    // A byte in the first header, then in the last one, too.
    for (at, what) in [
        (512 + 60, "partition table: "),
        ((8 << 20) - 512 + 60, "its partition table is damaged: "),
    ] {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(&disk).expect("disk");
        file.write_all_at(b"X", at).expect("damage");
        let told = create().expect_code(4).stderr_text();
        let shown = disk.display();
        for part in [
            format!("floe: {shown}: {what}"),
            "floe dump --whole".into(),
            "nothing was written".into(),
        ] {
            assert!(told.contains(&part), "{part}: {told}");
        }
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(!zip.exists());
    }
}

/// A disk whose first table is damaged is known by the copy at its end. On a larger disk that copy would stand in the middle, where
/// nobody looks for it.
#[test]
fn a_disk_whose_first_table_is_damaged_has_both_on_a_larger_one() {
    drop(require_floe!());
    require!(
        common::runner().is_none(),
        "no runner: floe is started by others"
    );
    require!(
        common::have("sgdisk") && common::have("sfdisk"),
        "sgdisk and sfdisk"
    );
    let scratch = common::Scratch::new();
    let floe = common::floe_shell_words().expect("floe");
    let sh = |script: &str| {
        let script = format!("cd {} && {script}", scratch.path().display());
        common::shell(&script, Limit::secs(120))
    };
    // The header, or the entries; with all else of the disk as it was.
    for place in ["seek=1 count=1", "seek=2 count=1"] {
        let make = format!(
            "truncate -s 32M disk && printf 'label: gpt\nstart=2048,size=16384,name=boot\n' | sfdisk -q disk && mkfs.ext4 -q -F -E offset=1048576 disk 8M
            dd if=/dev/zero of=disk bs=512 {place} conv=notrunc status=none; {floe} dump -q disk -o disk.gz"
        );
        sh(&make).expect_code(0);
        let source = LoopDevice::attach(&scratch.join("disk"), 512);
        for way in [
            "FLOE restore disk.gz TARGET --verify",
            "FLOE restore disk TARGET",
            "cat disk.gz | FLOE restore - TARGET",
            "FLOE dump -q --frames disk | FLOE restore - TARGET",
            "FLOE clone SOURCE=TARGET --verify",
        ] {
            let target = LoopDevice::filled(&scratch, "target", 48, 0);
            let way = way.replace("TARGET", &common::text(target.path()));
            let way = way.replace("SOURCE", &common::text(source.path()));
            let run = sh(&way.replace("FLOE", &floe)).expect_code(0);
            let said = "both copies were written anew from the one at its end";
            assert!(run.stderr_text().contains(said), "{way}: {run}");
            let check = "sgdisk -v target && sfdisk -d target && dd if=target of=part bs=1M skip=1 count=8 status=none && e2fsck -fn part";
            let found = sh(check).expect_code(0).stdout_text();
            assert!(found.contains("No problems found"), "{way}: {found}");
            assert!(found.contains("name=\"boot\""), "{way}: {found}");
            let show = sh(&format!("{floe} show {}", target.path().display()));
            assert!(!show.stdout_text().contains("damaged"), "{way}: {show}");
        }
        // As it is onto a disk of its size, and without a good copy.
        let target = LoopDevice::filled(&scratch, "target", 32, 0);
        let onto = format!("{floe} restore -q disk.gz {}", target.path().display());
        sh(&format!("{onto} && cmp disk target")).expect_code(0);
        let larger = LoopDevice::filled(&scratch, "larger", 48, 0);
        let onto = format!(
            "dd if=/dev/zero of=disk bs=1M seek=31 count=1 conv=notrunc status=none; {floe} restore disk {} --any-content",
            larger.path().display()
        );
        let run = sh(&onto);
        assert!(!run.stderr_text().contains("written anew"), "{run}");
    }
}

/// A partition of a disk that is laid anew has no name that a command could take.
#[test]
fn a_cut_snapshot_for_a_new_disk_says_what_repairs_the_disk() {
    drop(require_floe!());
    require!(
        common::runner().is_none(),
        "no runner: floe is started by others"
    );
    let disk = disk!(64, "label: gpt\nstart=1MiB, size=16MiB\nsize=16MiB\n", 512);
    let scratch = common::Scratch::new();
    let floe = common::floe_shell_words().expect("floe");
    let target = LoopDevice::filled(&scratch, "target", 64, 0);
    let (one, two, onto) = (
        disk.part_text(1),
        disk.part_text(2),
        common::text(target.path()),
    );
    let script = format!(
        "cd {} && mkdir d && head -c 6M /dev/urandom > d/noise && mkfs.ext4 -q -F {one} && mkfs.ext4 -q -F -d d {two} &&
        {floe} create -q --disk {} a={one} b={two} -o s.zip && head -c 3000000 s.zip > cut.zip",
        scratch.path().display(),
        disk.device.path().display()
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
    let script = format!(
        "cat {} | {floe} restore - --disk {onto} --overwrite",
        scratch.join("cut.zip").display()
    );
    let said = common::shell(&script, Limit::secs(60))
        .expect_code(3)
        .stderr_text();
    assert!(
        said.contains("the same command with a whole snapshot repairs it"),
        "{said}"
    );
    assert!(!said.contains("partition 2 again"), "{said}");
}

#[test]
fn an_mbr_that_counts_in_sectors_of_4096_bytes_comes_back_there_and_nowhere_else() {
    let script = "label: dos\nstart=1MiB, size=16MiB\nsize=40MiB\n";
    let disk = disk!(64, script, 4096);
    for number in [1, 2] {
        common::output(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", &disk.part_text(number)],
        );
    }
    let files = Mounted::new("ext4", &disk.part(2), "rw");
    common::fill(files.dir(), 40);
    common::output("sync", &["-f", &common::text(files.dir())]);
    let packed = disk.scratch.join("card.img.gz");
    let raw = disk.scratch.join("card.img");
    for (image, format) in [(&packed, "gzip"), (&raw, "none")] {
        let device = common::text(disk.device.path());
        let image = common::text(image);
        common::expect_floe(&["dump", &device, "-z", format, "-o", &image], 0);
        common::expect_floe(&["verify", &image], 0);
        for (sector, code) in [(4096, 0), (512, 4)] {
            let file = disk.scratch.join("target");
            common::sparse(&file, 64 << 20);
            let target = LoopDevice::attach(&file, sector);
            let run = common::expect_floe(&["restore", &image, &common::text(target.path())], code);
            drop(target);
            if code == 0 {
                let part = check_image(&file, 17, 40, disk.scratch.path());
                let copy = Mounted::new("ext4", &part, "ro");
                common::assert_same_tree(&common::tree(files.dir()), &common::tree(copy.dir()));
            } else {
                assert!(run.stderr_text().contains("counts in 4096"), "{run}");
            }
        }
    }
    // Long enough for sectors of 512 bytes.
    fs::OpenOptions::new()
        .write(true)
        .open(&raw)
        .and_then(|file| file.set_len(40 << 20))
        .expect("cut");
    let cut = common::expect_floe(&["verify", &common::text(&raw)], 3);
    assert!(cut.stderr_text().contains("it was cut off"), "{cut}");
}
