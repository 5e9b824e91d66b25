//! Other verbs, other holders, and where nothing can be traced or kept.

use std::fs::{self};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{self, Limit, LoopDevice, Mounted, Scratch, field};
use crate::disk::Disk;
use crate::torture::{Torture, rounds};

use super::held::Held;
use super::rack::{Rack, same_blocks};
use super::{floe, require_torture};

#[test]
fn two_filesystems_in_a_snapshot_a_clone_and_a_spool_file_under_torture() {
    require_torture!();
    let _serial = common::serial();
    let mut one = require_some!(Rack::new("ext4"), "ext4");
    let mut two = require_some!(Rack::new("btrfs"), "btrfs");
    let (scratch, on_disk) = (Scratch::new(), Scratch::on_disk());
    for round in 0..rounds() {
        let copies = [scratch.join("copy1"), scratch.join("copy2")];
        let (first, second) = (one.fs.dir().to_owned(), two.fs.dir().to_owned());
        let behind = [one.fs.image().to_owned(), two.fs.image().to_owned()];
        let held = Held {
            dirs: &[&first, &second],
            copies: &[(&behind[0], &copies[0]), (&behind[1], &copies[1])],
            pause: Duration::from_millis(2),
            lies: "",
            meanwhile: "",
            group: None,
            frames_to: None,
        };
        let zip = scratch.join("x.zip");
        let words = [
            format!("one={}", first.display()),
            format!("two={}", second.display()),
        ];
        let told = held.run(&["create", &words[0], &words[1], "-o", &zip.to_string_lossy()]);
        eprintln!("create {round}: {told:?}");
        told.expect("create");
        for (rack, name, copy) in [(&mut one, "one", &copies[0]), (&mut two, "two", &copies[1])] {
            let image = scratch.join("image");
            let script = format!(
                "unzip -p '{}' images/{name}.img > '{}'",
                zip.display(),
                image.display()
            );
            common::shell(&script, Limit::secs(100)).expect_code(0);
            rack.prove(&image, copy).expect(name);
        }
        fs::remove_file(&zip).expect("zip");

        let file = scratch.join("target");
        let length = fs::metadata(one.fs.image()).expect("image").len();
        common::sparse(&file, length);
        let target = LoopDevice::attach(&file, 512);
        let held = Held {
            dirs: &[&first],
            copies: &[(&behind[0], &copies[0])],
            ..held
        };
        for more in [&["--verify"][..], &["--verify", "--precopy", "compare"]] {
            let pair = format!("{}={}", first.display(), target.path().display());
            let mut words = vec!["clone", &pair, "--overwrite"];
            words.extend(more);
            let told = held.run(&words);
            eprintln!("clone {round} {more:?}: {told:?}");
            told.expect("clone");
            one.prove(target.path(), &copies[0]).expect("clone");
        }
        drop(target);

        let spool = on_disk.join("spool");
        let words = ["--spool", "4M", "--spool-file", &*spool.to_string_lossy()];
        let told = one.dump(&words, 2, "").expect("--spool-file");
        eprintln!("spool file {round}: {told:?}");
        assert_ne!(told.precopy, "off");
        let told = one.dump(&["--spool", "off"], 2, "").expect("--spool off");
        assert_eq!(told.precopy, "off");
    }
}

#[test]
fn a_whole_disk_under_torture_is_what_a_copy_under_the_freeze_is() {
    require_torture!();
    let _serial = common::serial();
    let table = "label: gpt\nsize=80M\nsize=8M\n";
    let disk = require_ok!(Disk::make(100, table, 512));
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &disk.part_text(1)]);
    let mounted = Mounted::new("ext4", &disk.part(1), "");
    Torture::prepare(mounted.dir());
    let (image, copy) = (disk.scratch.join("image"), disk.scratch.join("copy"));
    for _ in 0..rounds() {
        let held = Held {
            dirs: &[mounted.dir()],
            copies: &[(&disk.image, &copy)],
            pause: Duration::ZERO,
            lies: "",
            meanwhile: "",
            group: None,
            frames_to: None,
        };
        let device = disk.device.path().to_string_lossy();
        let told = held
            .run(&[
                "dump",
                &device,
                "-z",
                "none",
                "-o",
                &image.to_string_lossy(),
            ])
            .expect("dump");
        eprintln!("disk: {told:?}");
        assert_ne!(told.precopy, "off");
        same_blocks(&image, &copy).expect("disk");
        fs::remove_file(&image).expect("image");
    }
}

/// Where a file begins on its device, in bytes.
fn place(file: &Path) -> u64 {
    let text = common::output("filefrag", &["-v", "-b512", &file.to_string_lossy()]);
    let line = text.lines().find(|line| line.trim().starts_with("0:"));
    let mut parts = line.expect("an extent").split([':', '.']);
    let sector = parts.nth(4).expect("physical").trim();
    sector.parse::<u64>().expect("a number") * 512
}

#[test]
fn what_is_written_past_a_frozen_filesystem_is_seen_whatever_it_is_and_however_it_is_read() {
    require_torture!();
    for tool in ["filefrag", "blkdiscard", "fallocate"] {
        require!(common::have(tool), tool);
    }
    let _serial = common::serial();
    // A partition: of all of a loop device the times of its file would tell.
    // On a disk: what lies in memory knows no zeroing that is no write.
    let table = |_: &Scratch| "label: gpt\nsize=80M\nsize=8M\n".to_owned();
    let disk = require_ok!(Disk::within(Scratch::on_disk(), 100, table, 512));
    let part = disk.part_text(1);
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &part]);
    let mounted = Mounted::new("ext4", &disk.part(1), "");
    let (file, out) = (mounted.dir().join("file"), disk.scratch.join("out"));
    fs::write(&file, common::Random(7).bytes(8 << 20)).expect("file");
    common::output("sync", &["-f", &mounted.dir().to_string_lossy()]);
    // In the middle of a file: nothing that the second look looks at.
    let at = place(&file) + (1 << 20);
    let zeroes = format!("blkdiscard -f -z -o {at} -l 4096 {part}");
    // The same as no plain write, where the device can: no letter of the trace stands for that.
    let punch = format!("fallocate -p -o {at} -l 4096 {part} || {zeroes}");
    let write = format!(
        "dd if=/dev/urandom of={part} bs=4096 count=1 seek={} oflag=direct conv=notrunc status=none",
        at / 4096
    );
    let discard = format!("blkdiscard -f -o {} -l 4096 {part}", 68 << 20);
    let run = |words: &[&str], meanwhile: &str| {
        let held = Held {
            dirs: &[],
            copies: &[],
            pause: Duration::ZERO,
            lies: "",
            meanwhile,
            group: None,
            frames_to: None,
        };
        let out = out.to_string_lossy();
        let mut all = vec!["dump", &part, "--overwrite", "-o", &out];
        all.extend(words);
        // On a machine that is busy the trace may lose something, and says so.
        let mut tries = (0..4).map(|_| held.run(&all));
        tries
            .find(|told| !matches!(told, Ok(told) if told.precopy == "compared"))
            .expect("a trace that loses nothing")
    };
    for words in [&[][..], &["--whole"]] {
        for meanwhile in [&punch, &zeroes, &write] {
            let why = run(words, meanwhile).expect_err(meanwhile);
            assert!(why.starts_with("exit status: 1: "), "{words:?}: {why}");
            assert!(why.contains("was written to while"), "{words:?}: {why}");
        }
        // This a filesystem may still send.
        let told = run(words, &discard).expect("a discard of what is free");
        assert_eq!(told.precopy, "traced");
    }
}

#[test]
fn where_nothing_can_be_traced_contents_are_compared() {
    require_torture!();
    require!(common::have("strace"), "strace");
    let _serial = common::serial();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let report = rack.fs.scratch().join("report");
    // As a kernel without tracefs answers, one under lockdown, and one whose tracefs is read-only.
    for inject in [
        "inject=fsopen,mount:error=ENODEV",
        "inject=mkdirat,mkdir:error=EROFS",
        "inject=mkdirat,mkdir:error=EPERM",
    ] {
        let calls = inject.trim_start_matches("inject=");
        let calls = calls.split(':').next().expect("calls");
        let mut strace = Command::new("strace");
        strace
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={calls}"),
                "-e",
                inject,
            ])
            .arg(env!("CARGO_BIN_EXE_floe"))
            .args(["dump", "--report"])
            .arg(&report)
            .arg(rack.fs.dir())
            .stdin(Stdio::null());
        let run = common::run(&mut strace, Limit::secs(60));
        let text = fs::read_to_string(&report).unwrap_or_default();
        assert_eq!(run.code, Some(0), "{run}");
        let precopy = field(&text, "precopy");
        assert_eq!(precopy.as_deref(), Some("compared"), "{inject}: {text}");
    }
}

#[test]
fn an_output_on_the_frozen_filesystem_that_the_spool_cannot_hold_is_refused_before_the_freeze() {
    require_torture!();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let out = rack.fs.dir().join("onto-itself");
    let mut command = floe().expect("looked for before");
    command
        .args(["dump", "--spool", "4M", "-o"])
        .arg(&out)
        .arg(rack.fs.dir())
        .stdin(Stdio::null());
    let run = common::run(&mut command, Limit::secs(60)).expect_code(4);
    assert!(run.stderr_text().contains("nothing was frozen"), "{run}");
    assert!(!out.exists());
    common::assert_not_frozen(rack.fs.dir(), "after a refusal");
}
