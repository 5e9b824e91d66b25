//! `floe show`: identity of devices, mounts and images against what blkid and mkfs say, and stable JSON.

use crate::common::{self, Limit, LoopFs, Mounted, Run, Scratch, Spec};
use crate::disk::Disk;
use std::fs;
use std::path::Path;
use std::process::Command;

use floe::json::Value;

const UUID: &str = "6a1b9e0c-7a55-4d5c-9a4e-1c0b6e5f0a11";

/// The JSON object, read by a real parser: the value of each key as Python prints it. What is shown may be damaged, and that the code.
fn json(path: &Path, key: &str) -> String {
    let mut floe = common::floe().expect("checked by the caller");
    let run = common::run(floe.args(["show", "--json"]).arg(path), Limit::secs(30));
    let script = "import json, sys; print(json.load(sys.stdin)[sys.argv[1]])";
    let mut python = Command::new("python3");
    common::run_with_input(
        python.args(["-c", script, key]),
        &run.stdout,
        Limit::secs(30),
    )
    .expect_code(0)
    .stdout_text()
    .trim()
    .to_owned()
}

fn run_show(path: &Path) -> String {
    let mut floe = common::floe().expect("checked by the caller");
    let run = common::run(floe.arg("show").arg(path), Limit::secs(30));
    run.expect_code(0).stdout_text()
}

/// What a report says.
fn report_of(path: &Path) -> Value {
    let text = fs::read(path).expect("report");
    floe::json::parse(&text).unwrap_or_else(|_| panic!("the report"))
}

/// The report of a dump of it, to `out`.
fn dumped(source: &Path, scratch: &Scratch) -> (Value, Run) {
    let (out, report) = (scratch.join("out"), scratch.join("report"));
    let mut dump = common::floe().expect("checked by the caller");
    dump.arg("dump").arg(source).arg("-o").arg(out);
    let run = common::run(dump.arg("--report").arg(&report), Limit::secs(60)).expect_code(0);
    (report_of(&report), run)
}

fn number(report: &Value, key: &str) -> Option<u64> {
    report.get(key).and_then(|value| value.number())
}

#[test]
fn an_image_raw_or_packed_shows_what_its_superblock_says() {
    require!(
        common::have("mkfs.ext4") && common::have("python3"),
        "mkfs.ext4 and python3"
    );
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = scratch.join("image");
    common::sparse(&image, 64 << 20);
    let name = image.to_string_lossy().into_owned();
    common::output(
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-b",
            "4096",
            "-U",
            UUID,
            "-L",
            "a \"label\"",
            &name,
        ],
    );
    let packed = scratch.join("image.gz");
    let run = common::run(Command::new("gzip").args(["-c", &name]), Limit::secs(60)).expect_code(0);
    // Only the head is unpacked: a stream cut in the middle is shown all the same.
    fs::write(&packed, &run.stdout[..run.stdout.len() * 9 / 10]).expect("write");
    for path in [&image, &packed] {
        for (key, wanted) in [
            ("kind", "image"),
            ("filesystem", "ext4"),
            ("size_bytes", "67108864"),
            ("uuid", UUID),
            ("label", "a \"label\""),
            ("mounted_at", "[]"),
            ("can_freeze", "True"),
            ("block_bytes", "4096"),
        ] {
            assert_eq!(json(path, key), wanted, "{key} of {}", path.display());
        }
    }
    assert_eq!(json(&image, "map"), "used");
    assert_eq!(json(&packed, "map"), "None");
    // What a dump would read is not known of it: another number has another name.
    assert_eq!(json(&packed, "used_bytes"), "None");
    let stated: u64 = json(&packed, "stated_bytes").parse().expect("a number");
    assert_eq!(json(&image, "stated_bytes"), "None");
    let used: u64 = json(&image, "used_bytes").parse().expect("a number");
    let dump: u64 = json(&image, "dump_bytes").parse().expect("a number");
    assert!(dump <= used && dump > 0, "a dump reads {dump} of {used}");
    assert!(used <= stated, "{used} of {stated}");
}

#[test]
fn what_show_says_of_an_images_end_is_only_what_it_looked_at() {
    require!(
        common::have("mkfs.ext4") && common::have("python3"),
        "mkfs.ext4 and python3"
    );
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = scratch.join("image");
    let file = fs::File::create(&image).expect("image");
    file.set_len(16 << 20).expect("image");
    common::mkfs_ext4(&image);
    let packed = scratch.join("image.gz");
    let mut gzip = Command::new("gzip");
    let run = common::run(gzip.arg("-c").arg(&image), Limit::secs(60)).expect_code(0);
    for length in [run.stdout.len(), run.stdout.len() - 9] {
        fs::write(&packed, &run.stdout[..length]).expect("write");
        assert!(
            run_show(&packed).contains("its end was not looked at (floe verify"),
            "{length}"
        );
        assert_eq!(json(&packed, "end_checked"), "False");
    }
    let text = run_show(&image);
    assert!(text.contains("its end was not looked at"), "{text}");
    assert!(!text.contains("can freeze"), "{text}");
    file.set_len(12 << 20).expect("cut");
    let cut = common::run(require_floe!().arg("show").arg(&image), Limit::secs(30)).expect_code(3);
    let text = cut.stdout_text();
    assert!(
        text.contains("damaged: ends at 12582912 bytes") && text.contains("16777216"),
        "{text}"
    );
    assert_eq!(json(&image, "end_checked"), "True");
    assert!(json(&image, "error").contains("it was cut off"));
}

#[test]
fn a_disk_without_any_filesystem_is_whole_in_show_as_in_a_dump() {
    require!(
        common::have("sfdisk") && common::have("python3"),
        "sfdisk and python3"
    );
    drop(require_floe!());
    let scratch = Scratch::new();
    let disk = scratch.join("disk");
    let file = fs::File::create(&disk).expect("disk");
    file.set_len(8 << 20).expect("disk");
    let mut sfdisk = Command::new("sfdisk");
    let table = b"label: gpt\nsize=2M\nsize=2M\n";
    common::run_with_input(sfdisk.arg("-q").arg(&disk), table, Limit::secs(20)).expect_code(0);
    let (object, _) = dumped(&disk, &scratch);
    let map = object.get("map").and_then(|map| map.text());
    assert_eq!(map, Some("whole"));
    assert_eq!(json(&disk, "map"), "whole");
}

#[test]
fn a_mounted_filesystem_shows_where_and_an_estimate() {
    let mounted = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    require!(common::have("python3"), "python3");
    drop(require_floe!());
    mounted.fill(40);
    let place = mounted.dir().to_string_lossy().into_owned();
    for (path, kind) in [(mounted.dir(), "mount"), (mounted.device(), "device")] {
        assert_eq!(json(path, "kind"), kind);
        assert_eq!(json(path, "filesystem"), "ext4");
        assert_eq!(json(path, "mounted_at"), format!("['{place}']"));
        assert_eq!(json(path, "map"), "estimate");
        assert_eq!(json(path, "size_bytes"), "67108864");
    }
    let text = run_show(mounted.dir());
    assert!(text.contains("an estimate, while it is mounted"), "{text}");
    common::assert_not_frozen(mounted.dir(), "after show");
}

/// Processes of that name that wait in the kernel.
fn waiting_named(name: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let begins = format!("({name}) D ");
    stats.filter(|stat| stat.contains(&begins)).count()
}

#[test]
fn what_somebody_has_frozen_is_shown_as_frozen_and_nothing_else_is() {
    drop(require_floe!());
    for kind in ["ext4", "xfs", "btrfs"] {
        let mib = if kind == "xfs" { 300 } else { 128 };
        let Ok(made) = LoopFs::make(Spec {
            kind,
            mib,
            ..Spec::default()
        }) else {
            return common::skip(&format!("root and mkfs.{kind}"));
        };
        let folder = fs::File::open(made.dir()).expect("its root");
        let python = |value: bool| if value { "True" } else { "False" };
        for frozen in [false, true, false] {
            if frozen {
                floe::sys::ioctl::fifreeze(&folder).expect("to freeze it");
            }
            let found = std::panic::catch_unwind(|| {
                let word = json(made.dir(), "frozen");
                assert_eq!(word, python(frozen), "{kind}");
                let line = "frozen, and no floe at work: writers wait";
                assert_eq!(run_show(made.device()).contains(line), frozen, "{kind}");
            });
            if frozen {
                floe::sys::ioctl::fithaw(&folder).expect("to thaw it");
            }
            if let Err(panic) = found {
                std::panic::resume_unwind(panic);
            }
        }
        // Their end is the thaw.
        let quiet = common::wait_until(std::time::Duration::from_secs(5), || {
            waiting_named("floe") == 0
        });
        assert!(quiet, "{kind}: a child is left");
    }
}

#[test]
fn used_is_one_number_in_show_dump_create_and_clone() {
    let mounted = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    require!(common::have("python3"), "python3");
    drop(require_floe!());
    mounted.fill(60);
    common::output("sync", &["-f", &mounted.dir().to_string_lossy()]);
    let shown = json(mounted.dir(), "used_bytes");
    assert_eq!(json(mounted.dir(), "dump_bytes"), shown);
    assert_eq!(json(mounted.device(), "used_bytes"), shown);
    let scratch = Scratch::new();
    let report = scratch.join("report");
    let number = |key: &str| number(&report_of(&report), key);
    let place = mounted.dir().to_string_lossy().into_owned();
    let image = scratch.join("image.gz");
    let mut dump = require_floe!();
    dump.args(["dump", &place, "--report"]).arg(&report);
    common::run(dump.arg("-o").arg(&image), Limit::secs(60)).expect_code(0);
    let dumped = number("used_bytes");
    assert_eq!(dumped.map(|n| n.to_string()), Some(shown));
    let target = common::LoopDevice::filled(&scratch, "target", 64, 0);
    let mut clone = require_floe!();
    clone
        .arg("clone")
        .arg(format!("{place}={}", target.path().display()));
    common::run(clone.arg("--report").arg(&report), Limit::secs(60)).expect_code(0);
    assert_eq!(number("used_bytes"), dumped);
    let mut create = require_floe!();
    create.args(["create", &format!("a={place}"), "--dry-run", "-o"]);
    let run = common::run(create.arg(scratch.join("x.zip")), Limit::secs(60)).expect_code(0);
    let about = floe::report::Bytes(dumped.unwrap_or_default());
    let about = format!("about {about} used");
    assert!(run.stderr_text().contains(&about), "{about}: {run}");
    // Of a packed image: how long the file is, too.
    let packed = fs::metadata(&image).expect("image").len();
    assert_eq!(json(&image, "packed_bytes"), packed.to_string());
}

#[test]
fn the_overview_shows_the_other_partitions_of_a_disk_of_which_one_is_in_use() {
    drop(require_floe!());
    let script = "label: gpt\nsize=16M\nsize=16M\n";
    let disk = require_some!(Disk::make(48, script, 512).ok(), "a disk with partitions");
    for number in [1, 2] {
        common::output("mke2fs", &["-q", &disk.part_text(number)]);
    }
    let mounted = Mounted::new("ext4", &disk.part(1), "");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
    let held = rustix::fs::open(disk.part(2), flags, rustix::fs::Mode::empty()).expect("free");
    let run = common::run(require_floe!().arg("show"), Limit::secs(60)).expect_code(0);
    let text = run.stdout_text();
    let row = |name: &str| {
        let is_row = |line: &&str| line.split(' ').next() == Some(name);
        text.lines()
            .find(is_row)
            .unwrap_or_else(|| panic!("{name}: {text}"))
    };
    let why = format!("{} is in use by another program", disk.part_text(2));
    let whole = disk.device.path().to_string_lossy();
    assert!(row(&whole).contains(&why), "{text}");
    for number in [1, 2] {
        assert!(row(&disk.part_text(number)).contains("ext"), "{text}");
    }
    drop((held, mounted));
}

#[test]
fn a_disk_shows_its_partitions_and_the_overview_every_filesystem() {
    let mounted = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    require!(
        common::have("python3") && common::have("sfdisk"),
        "python3 and sfdisk"
    );
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = scratch.join("disk");
    let file = fs::File::create(&image).expect("disk");
    file.set_len(48 << 20).expect("disk");
    let name = image.to_string_lossy().into_owned();
    let script = format!(
        "printf 'label: gpt\nsize=16M\nsize=16M\n' | sfdisk -q {name} && mkfs.ext4 -q -F -L inside {name}.fs 16M && \
         dd if={name}.fs of={name} bs=1M seek=1 conv=notrunc status=none"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
    let text = run_show(&image);
    let line = |text: &str, word: &str| {
        text.lines()
            .find(|line| line.contains(word))
            .map(str::to_owned)
    };
    let head = line(&text, "DEVICE").unwrap_or_else(|| panic!("{text}"));
    for word in ["WHAT", "SIZE", "USED", "LABEL", "FREEZE", "MOUNTED AT"] {
        assert!(head.contains(word), "{text}");
    }
    let first = line(&text, "partition 1").unwrap_or_else(|| panic!("{text}"));
    assert!(
        first.contains("ext4") && first.contains("16.0 MiB") && first.contains("inside"),
        "{text}"
    );
    assert!(
        line(&text, "partition 2").is_some_and(|line| line.contains(" - ")),
        "{text}"
    );
    // What a dump of it says: the unknown partition and the gaps whole, of the filesystem what is used.
    let (object, run) = dumped(&image, &scratch);
    assert!(run.stderr_text().contains(" used or unclear, "), "{run}");
    assert_eq!(
        object.get("map").and_then(|map| map.text()),
        Some("partial")
    );
    let used = number(&object, "used_bytes").expect("used");
    assert_eq!(json(&image, "used_bytes"), used.to_string());
    assert_eq!(json(&image, "map"), "partial");
    // Packed: of the table the beginning is enough, and its backup behind that is not missed.
    let words = run_show(&scratch.join("out"));
    assert!(
        words.contains("\npartition 1  -     16.0 MiB") && !words.contains("damaged"),
        "{words}"
    );
    assert_eq!(json(&scratch.join("out"), "partition_table_doubt"), "None");
    // The overview: our mount is there, with the same words as when it is named.
    let run = common::run(require_floe!().arg("show"), Limit::secs(60)).expect_code(0);
    let text = run.stdout_text();
    let place = mounted.dir().to_string_lossy().into_owned();
    let ours = line(&text, &place).unwrap_or_else(|| panic!("{text}"));
    assert!(ours.contains("ext4") && ours.contains(" yes "), "{text}");
    assert!(
        text.lines()
            .last()
            .is_some_and(|line| line.starts_with("pre-copy: writes can")),
        "{text}"
    );
    let run = common::run(require_floe!().args(["show", "--json"]), Limit::secs(60)).expect_code(0);
    let object = floe::json::parse(&run.stdout).unwrap_or_else(|_| panic!("{run}"));
    assert!(
        object.get("filesystems").is_some() && object.get("can_trace").is_some(),
        "{run}"
    );
    common::assert_not_frozen(mounted.dir(), "after show");
}

#[test]
fn partitions_that_nothing_uses_are_shown_and_counted_as_a_dump_of_their_disk_reads_them() {
    let table = "label: gpt\nsize=16M\nsize=16M\n";
    let disk = match crate::disk::Disk::make(40, table, 512) {
        Ok(disk) => disk,
        Err(missing) => return common::skip(&missing),
    };
    drop(require_floe!());
    for number in [1, 2] {
        common::output(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", &disk.part_text(number)],
        );
    }
    let text = run_show(disk.device.path());
    assert!(!text.contains("in use"), "{text}");
    assert_eq!(text.matches(" ext4 ").count(), 2, "{text}");
    let (object, _) = dumped(disk.device.path(), &disk.scratch);
    let used = number(&object, "used_bytes");
    assert!(
        text.contains(&format!("({} bytes); map: used", used.expect("used"))),
        "{text}"
    );
}

#[test]
fn the_command_line_is_as_on_every_verb() {
    let cases: [&[&str]; 3] = [
        &["show", "--identity"],
        &["show", "a", "b"],
        &["show", "--no-such", "a"],
    ];
    for case in cases {
        let run = common::run(require_floe!().args(case), Limit::secs(20)).expect_code(2);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
    }
    let run = common::run(require_floe!().args(["show", "--help"]), Limit::secs(20));
    assert!(run.expect_code(0).stdout_text().contains("--json"));
    let run = common::run(require_floe!().args(["show", "/no/such"]), Limit::secs(20));
    assert!(run.expect_code(4).stderr_text().contains("/no/such: open"));
    let run = common::run(require_floe!().args(["show", "/proc"]), Limit::secs(20));
    assert!(run.expect_code(4).stderr_text().contains("proc"));
}

#[test]
fn what_follows_a_filesystem_counts_in_show_as_in_a_dump_and_a_cut_one_is_said_to_be_refused() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    let scratch = Scratch::new();
    let image = scratch.join("image");
    let path = image.to_string_lossy().into_owned();
    for mkfs in [
        "mkfs.ext4 -q -F",
        "mkfs.xfs -q",
        "mkfs.f2fs -q",
        "mkfs.btrfs -q",
        "mkfs.exfat",
        "mkfs.nilfs2 -q",
    ] {
        let _ = fs::remove_file(&image);
        let script = format!("truncate -s 300M {path}; {mkfs} {path} > /dev/null 2>&1");
        if common::shell(&script, Limit::secs(60)).code != Some(0) {
            continue;
        }
        // Further behind than the overview looks.
        let script = format!(
            "truncate -s 330M {path}; printf x | dd of={path} bs=1 seek=325M conv=notrunc status=none"
        );
        common::shell(&script, Limit::secs(60)).expect_code(0);
        let device = common::LoopDevice::attach(&image, 512);
        for source in [&image, device.path()] {
            let (report, _) = dumped(source, &scratch);
            let used = number(&report, "used_bytes").expect("used").to_string();
            assert_eq!(json(source, "used_bytes"), used, "{mkfs}");
            assert_eq!(json(source, "dump_bytes"), used, "{mkfs}");
            assert_eq!(json(source, "refused"), "None", "{mkfs}");
            let map = report
                .get("map")
                .and_then(|map| map.text().map(str::to_owned));
            assert_eq!(Some(json(source, "map")), map, "{mkfs}");
            fs::remove_file(scratch.join("out")).expect("out");
        }
        let shown = common::run(require_floe!().args(["show", "--json"]), Limit::secs(60));
        let shown = shown.expect_code(0).stdout_text();
        let name = device.path().display().to_string();
        let known = "\"map\":\"whole\"";
        let at = shown
            .find(&format!("\"path\":\"{name}\""))
            .expect("its line");
        let its = &shown[at..];
        let its = &its[..its.find('}').expect("its end")];
        assert!(
            its.contains(known) || its.contains("\"at_least\":true"),
            "{mkfs}: {its}"
        );
        drop(device);
        let script = format!("truncate -s 150M {path}");
        common::shell(&script, Limit::secs(60)).expect_code(0);
        let device = common::LoopDevice::attach(&image, 512);
        let text = run_show(device.path());
        assert!(
            text.contains("would be refused: it ends at "),
            "{mkfs}: {text}"
        );
        assert!(!text.contains("a dump reads"), "{mkfs}: {text}");
    }
}

#[test]
fn a_file_that_is_no_image_is_not_called_one() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let file = scratch.join("file");
    for bytes in [&b"some text\n"[..], b"\x7fELF and more", &[0; 5000]] {
        fs::write(&file, bytes).expect("file");
        let run = common::run(require_floe!().arg("show").arg(&file), Limit::secs(30));
        let text = run.expect_code(3).stdout_text();
        assert!(text.contains("file, not an image"), "{text}");
    }
}

#[test]
fn an_extended_partition_is_none_of_a_disk_on_a_device_either() {
    require!(
        common::is_root() && common::have("sfdisk") && common::have("partx"),
        "root, sfdisk and partx"
    );
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = scratch.join("image");
    let script = format!(
        "truncate -s 60M {path}; printf 'label: dos\\nsize=20M,type=83\\ntype=5\\nsize=10M,type=83\\n' | sfdisk -q {path}",
        path = image.display()
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
    let device = common::LoopDevice::attach(&image, 512);
    let name = device.path().display().to_string();
    common::output("partx", &["-a", &name]);
    let shown = [run_show(&image), run_show(device.path())];
    common::output("partx", &["-d", &name]);
    let [of_file, of_device] = shown;
    assert!(of_file.contains("partition 5"), "{of_file}");
    assert!(of_device.contains(&format!("{name}p5")), "{of_device}");
    for text in [of_file, of_device] {
        assert!(text.contains("a dump reads"), "{text}");
        assert!(!text.contains("refused"), "{text}");
    }
}
