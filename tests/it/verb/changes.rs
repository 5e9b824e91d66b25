//! `--only-changes`: what the target holds already stays unwritten, and what comes out is byte for byte what comes out without it.
//! What was written is taken from the kernel's own counters.

use crate::common::{self, LoopDevice, LoopFs, Mounted, Random, Scratch, Spec, Writer, run_floe};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// All of it has its place from the start: nothing is initialised later.
const EAGER: &[&str] = &["-E", "lazy_itable_init=0,lazy_journal_init=0"];

fn source(mib: u64, noise: usize) -> Option<LoopFs> {
    let made = LoopFs::make(Spec {
        mib,
        mkfs: EAGER,
        ..Spec::default()
    });
    let made = made.ok()?;
    made.fill(40);
    let bytes = Random(0xde17a).bytes(noise << 20);
    fs::write(made.dir().join("noise"), bytes).expect("write");
    common::output("sync", &["-f", &made.dir().to_string_lossy()]);
    Some(made)
}

fn pair(source: &Path, target: &LoopDevice) -> String {
    format!("{}={}", source.display(), target.path().display())
}

/// Bytes the kernel has written to a device or discarded on it so far.
fn written(target: &LoopDevice) -> u64 {
    let name = target.path().file_name().expect("name");
    let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat"));
    let stat = stat.expect("stat");
    let number = |at| -> u64 {
        let word = stat.split_whitespace().nth(at).unwrap_or("0");
        word.parse().expect("number")
    };
    (number(6) + number(13)) * 512
}

/// Makes a source read-only, so that two copies of it are the same to the byte.
fn settle(made: &LoopFs) {
    let dir = made.dir().to_string_lossy();
    common::output("mount", &["-o", "remount,ro", &dir]);
}

#[track_caller]
fn assert_same(found: &Path, wanted: &Path) {
    let (found, wanted) = (
        fs::read(found).expect("found"),
        fs::read(wanted).expect("wanted"),
    );
    assert_eq!(found.len(), wanted.len());
    let place = found.iter().zip(&wanted).position(|(a, b)| a != b);
    assert_eq!(place, None, "first difference");
}

#[test]
fn a_second_clone_writes_the_head_and_what_changed_and_nothing_else() {
    drop(require_floe!());
    let made = require_some!(source(128, 40), "root and mkfs.ext4");
    let scratch = Scratch::new();
    let plain = LoopDevice::filled(&scratch, "plain", 130, 0x5a);
    let target = LoopDevice::filled(&scratch, "target", 130, 0xa5);
    settle(&made);
    run_floe(&["clone", &pair(made.dir(), &plain)]).expect_code(0);
    // Noise becomes what it becomes without the option, free space and the end of the larger target included.
    let words = pair(made.dir(), &target);
    let words = ["clone", &words, "--overwrite", "--only-changes", "--report"];
    let run = run_floe(&[&words[..], &["-"]].concat()).expect_code(0);
    assert_same(&scratch.join("target"), &scratch.join("plain"));
    for more in [&["-"][..], &["-", "--verify"], &["-", "--precopy", "off"]] {
        let before = written(&target);
        let run = run_floe(&[&words[..], more].concat()).expect_code(0);
        let wrote = written(&target) - before;
        assert!(wrote > 0 && wrote <= MIB, "{wrote} bytes: {run}");
        let text = run.stderr_text();
        assert!(text.contains("there already and left alone"), "{run}");
        assert!(text.contains("\"unchanged_bytes\":13"), "{run}");
        assert_same(&scratch.join("target"), &scratch.join("plain"));
    }
    assert!(run.stderr_text().contains("\"unchanged_bytes\":"), "{run}");
    // Files come, change and go: about those are written, and what was theirs is zeros.
    let dir = made.dir().to_string_lossy();
    common::output("mount", &["-o", "remount,rw", &dir]);
    fs::write(made.dir().join("new"), Random(7).bytes(3 << 20)).expect("write");
    let noise = fs::File::options()
        .write(true)
        .open(made.dir().join("noise"));
    let noise = noise.expect("noise");
    noise.set_len(30 << 20).expect("shorter");
    noise.write_all_at(b"changed", 5 << 20).expect("write");
    drop(noise);
    settle(&made);
    let before = written(&target);
    let run = run_floe(&[&words[..], &["-"]].concat()).expect_code(0);
    let wrote = written(&target) - before;
    assert!((13 * MIB..20 * MIB).contains(&wrote), "{wrote}: {run}");
    run_floe(&["clone", &pair(made.dir(), &plain), "--overwrite"]).expect_code(0);
    assert_same(&scratch.join("target"), &scratch.join("plain"));
    let run = run_floe(&[&words[..], &["-", "--skip-free"]].concat()).expect_code(0);
    assert!(
        run.stderr_text().contains("free and left as it was"),
        "{run}"
    );
    assert_same(&scratch.join("target"), &scratch.join("plain"));
}

#[test]
fn under_write_load_the_copy_is_whole_each_time() {
    drop(require_floe!());
    let made = require_some!(source(96, 20), "root and mkfs.ext4");
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 96, 0xa5);
    let words = pair(made.dir(), &target);
    for _ in 0..2 {
        let writer = Writer::start(made.dir());
        std::thread::sleep(Duration::from_millis(300));
        let more = ["--only-changes", "--overwrite", "--verify"];
        run_floe(&[&["clone", &words][..], &more].concat()).expect_code(0);
        drop(writer);
        let mounted = Mounted::new("ext4", target.path(), "");
        let quiet = |dir: &Path| {
            let mut found = common::tree(dir);
            found.retain(|path, _| !path.starts_with("busy"));
            found
        };
        common::assert_same_tree(&quiet(made.dir()), &quiet(mounted.dir()));
        drop(mounted);
        target.wait_until_free();
        common::output("e2fsck", &["-f", "-n", &target.path().to_string_lossy()]);
    }
}

#[test]
fn a_restore_leaves_alone_what_is_there_on_a_device_and_in_a_file() {
    drop(require_floe!());
    let made = require_some!(source(64, 16), "root and mkfs.ext4");
    let scratch = Scratch::new();
    settle(&made);
    let (raw, packed) = (scratch.join("image"), scratch.join("image.gz"));
    let (raw_text, packed_text) = (raw.to_string_lossy(), packed.to_string_lossy());
    let dir = made.dir().to_string_lossy();
    run_floe(&["dump", &dir, "-z", "none", "-o", &raw_text]).expect_code(0);
    run_floe(&["dump", &dir, "-o", &packed_text]).expect_code(0);
    let target = LoopDevice::filled(&scratch, "target", 64, 0xa5);
    let node = target.path().to_string_lossy().into_owned();
    let more = ["--overwrite", "--only-changes", "--verify"];
    for (image, most) in [(&raw_text, u64::MAX), (&packed_text, MIB), (&raw_text, MIB)] {
        let before = written(&target);
        let run = run_floe(&[&["restore", image, &node][..], &more].concat()).expect_code(0);
        let wrote = written(&target) - before;
        assert!(wrote > 0 && wrote <= most, "{wrote} bytes: {run}");
        assert!(run.stderr_text().contains("left alone"), "{run}");
        assert_same(&scratch.join("target"), &raw);
    }
    // A file that is longer, shorter, or as it should be.
    let file = scratch.join("file");
    let file_text = file.to_string_lossy();
    for (length, byte) in [(70 << 20, 9), (0, 0), (1000, 7), (64 << 20, 0)] {
        fs::write(&file, vec![byte; length]).expect("write");
        for image in [&packed_text, &raw_text] {
            run_floe(&[&["restore", image, &file_text][..], &more].concat()).expect_code(0);
            assert_same(&file, &raw);
        }
    }
}

#[test]
fn killed_in_the_middle_the_target_is_visibly_empty() {
    drop(require_floe!());
    let made = require_some!(source(128, 60), "root and mkfs.ext4");
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 128, 0);
    let words = pair(made.dir(), &target);
    run_floe(&["clone", &words]).expect_code(0);
    let mut command = common::floe().expect("required before");
    command.args(["clone", &words, "--overwrite", "--only-changes", "--verify"]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("floe");
    let file = fs::File::open(scratch.join("target")).expect("target");
    let end = Instant::now() + Duration::from_secs(30);
    let mut head = vec![1; 65_536];
    while head.iter().any(|byte| *byte != 0) {
        file.read_exact_at(&mut head, 0).expect("target");
        assert!(Instant::now() < end, "never wiped");
    }
    child.kill().expect("kill");
    let _ = child.wait();
    common::assert_not_frozen(made.dir(), "after kill -9");
    target.wait_until_free();
    assert!(
        !common::is_recognised(target.path()),
        "the target looks valid"
    );
    run_floe(&["clone", &words, "--only-changes"]).expect_code(0);
    let mounted = Mounted::new("ext4", target.path(), "");
    common::assert_same_tree(&common::tree(made.dir()), &common::tree(mounted.dir()));
}

#[test]
fn a_clone_within_one_disk_does_not_wait_for_itself() {
    drop(require_floe!());
    let below = LoopFs::make(Spec {
        mib: 400,
        ..Spec::default()
    });
    let below = require_some!(below.ok(), "root and mkfs.ext4");
    let device = |name: &str| {
        let path = below.dir().join(name);
        let file = fs::File::create(&path).expect("file");
        file.set_len(140 * MIB).expect("file");
        LoopDevice::attach(&path, 512)
    };
    let (from, to) = (device("from"), device("to"));
    common::mkfs_ext4(from.path());
    let mounted = Mounted::new("ext4", from.path(), "");
    // More than is read ahead before the freeze, and a spool that has room for all of it.
    let noise = Random(3).bytes(80 << 20);
    fs::write(mounted.dir().join("noise"), noise).expect("write");
    run_floe(&["clone", &pair(mounted.dir(), &to), "--spool", "400M"]).expect_code(0);
    let copy = Mounted::new("ext4", to.path(), "");
    common::assert_same_tree(&common::tree(mounted.dir()), &common::tree(copy.dir()));
}
