//! `floe clone` on real loop devices: what arrives is compared file by file and checked by the filesystem's own checker; refusals
//! touch nothing; interrupted targets look empty and a second clone repairs them.

use crate::common::{
    self, Limit, LoopDevice, LoopFs, Mounted, Random, Scratch, Spec, Writer, is_recognised,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A mounted ext4 with so many MiB of noise in one file, and others.
fn source(mib: u64, noise: usize) -> Option<LoopFs> {
    let made = LoopFs::make(Spec {
        mib,
        ..Spec::default()
    });
    let made = made.ok()?;
    made.fill(60);
    let bytes = Random(0xc10e).bytes(noise << 20);
    fs::write(made.dir().join("noise"), bytes).expect("write");
    common::output("sync", &["-f", &made.dir().to_string_lossy()]);
    Some(made)
}

macro_rules! require_source {
    ($mib:expr, $noise:expr) => {
        require_some!(source($mib, $noise), "root and mkfs.ext4")
    };
}

fn pair(source: &Path, target: &Path) -> String {
    format!("{}={}", source.display(), target.display())
}

/// `floe clone` with these words.
fn clone(words: &[&str]) -> common::Run {
    let mut floe = common::floe().expect("required before");
    common::run(floe.arg("clone").args(words), Limit::secs(120))
}

/// All but what a writer changes.
fn quiet_tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = common::tree(dir);
    found.retain(|path, _| !path.starts_with("busy"));
    found
}

fn starts_with_zeros(file: &Path) -> bool {
    let mut head = vec![1; 65_536];
    let file = fs::File::open(file).expect("target");
    file.read_exact_at(&mut head, 0).expect("target");
    head.iter().all(|byte| *byte == 0)
}

/// Starts a clone and waits until the target's beginning has been zeroed: it is in the middle.
fn start_until_wiped(pair: &str, file: &Path, more: &[&str]) -> Child {
    let mut floe = common::floe().expect("required before");
    floe.args(["clone", "--overwrite", pair]).args(more);
    let mut child = floe
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("floe");
    let end = Instant::now() + Duration::from_secs(30);
    while !starts_with_zeros(file) {
        let over = child.try_wait().expect("wait");
        assert!(over.is_none() && Instant::now() < end, "{over:?}");
    }
    child
}

fn stderr_of(mut child: Child) -> (std::process::ExitStatus, String) {
    let status = common::wait_for(&mut child, Duration::from_secs(60)).expect("floe does not end");
    let mut text = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    std::io::Read::read_to_string(&mut stderr, &mut text).expect("text");
    (status, text)
}

#[test]
fn filesystems_under_write_load_arrive_whole_and_checked() {
    drop(require_floe!());
    let kinds: [(&str, u64, &[&str]); 3] = [
        ("ext4", 96, &["e2fsck", "-f", "-p"]),
        ("xfs", 320, &["xfs_repair", "-n"]),
        ("btrfs", 160, &["btrfs", "check"]),
    ];
    for (kind, mib, check) in kinds {
        let made = LoopFs::make(Spec {
            kind,
            mib,
            ..Spec::default()
        });
        let made = match made {
            Ok(made) => made,
            Err(missing) => {
                common::skip(&missing);
                continue;
            }
        };
        made.fill(120);
        let scratch = Scratch::new();
        let target = LoopDevice::filled(&scratch, "target", mib + 3, 0xa5);
        let writer = Writer::start(made.dir());
        std::thread::sleep(Duration::from_millis(300));
        let run = clone(&[&pair(made.dir(), target.path()), "--verify"]).expect_code(0);
        drop(writer);
        // What the writer had started may still be writing.
        std::thread::sleep(Duration::from_millis(500));
        let text = run.stderr_text();
        assert!(
            text.contains(&format!(
                "Copying {} to {} …",
                made.dir().display(),
                target.path().display()
            )),
            "{run}"
        );
        let last = text.lines().last().unwrap_or_default();
        let wanted = format!(
            "The following filesystems were archived: {}",
            made.dir().display()
        );
        assert!(last.ends_with(&wanted), "{run}");
        assert!(text.contains("LABEL= or UUID="), "{run}");
        assert!(text.contains("bootloader"), "{run}");
        let files = quiet_tree(made.dir());
        // The kernel takes two btrfs of one uuid for one: the original goes first.
        drop(made);
        if kind == "btrfs" {
            let _ = Command::new("btrfs")
                .args(["device", "scan", "--forget"])
                .output();
        }
        let mounted = Mounted::new(kind, target.path(), "");
        common::assert_same_tree(&files, &quiet_tree(mounted.dir()));
        drop(mounted);
        target.wait_until_free();
        let node = target.path().to_string_lossy();
        let checked = common::run(
            Command::new(check[0]).args(&check[1..]).arg(&*node),
            Limit::secs(60),
        );
        assert!(matches!(checked.code, Some(0 | 1)), "{checked}");
        // Nothing of what was there before is left, and the end of the larger target is zeros.
        let mut stale = 0;
        let bytes = fs::read(scratch.join("target")).expect("target");
        for block in bytes.chunks(4096) {
            stale += usize::from(block.iter().all(|byte| *byte == 0xa5));
        }
        assert_eq!(stale, 0, "{kind}");
        let end = usize::try_from(mib * MIB).expect("small");
        assert!(bytes[end..].iter().all(|byte| *byte == 0), "{kind}");
    }
}

#[test]
fn two_filesystems_are_frozen_together_so_that_they_agree_on_what_came_first() {
    drop(require_floe!());
    let (one, two) = (require_source!(48, 4), require_source!(48, 4));
    let scratch = Scratch::new();
    let targets = [
        LoopDevice::filled(&scratch, "a", 48, 0),
        LoopDevice::filled(&scratch, "b", 48, 0),
    ];
    let script =
        "i=0; while :; do i=$((i + 1)); echo $i >> \"$1/log\"; echo $i >> \"$2/log\"; done";
    let mut writer = Command::new("sh")
        .args(["-c", script, "writer"])
        .args([one.dir(), two.dir()])
        .stdin(Stdio::null())
        .spawn()
        .expect("writer");
    std::thread::sleep(Duration::from_millis(200));
    let words = [
        pair(one.dir(), targets[0].path()),
        pair(two.dir(), targets[1].path()),
    ];
    let run = clone(&[&words[0], &words[1], "--report", "-"]);
    let _ = writer.kill();
    let _ = common::wait_for(&mut writer, Duration::from_secs(5));
    let run = run.expect_code(0);
    let text = run.stderr_text();
    let archived = format!("archived: {} {}", one.dir().display(), two.dir().display());
    assert!(text.contains(&archived), "{run}");
    for key in [
        "\"pairs\":[{",
        "\"frozen_ms\":",
        "\"running_root\":",
        "\"consistent\":\"frozen\"",
    ] {
        assert!(text.contains(key), "{key}: {run}");
    }
    let lines = |target: &LoopDevice| {
        let mounted = Mounted::new("ext4", target.path(), "");
        fs::read_to_string(mounted.dir().join("log"))
            .expect("log")
            .lines()
            .count()
    };
    let (a, b) = (lines(&targets[0]), lines(&targets[1]));
    assert!(a > 0 && (a == b || a == b + 1), "{a} lines here, {b} there");
}

#[test]
fn after_kill_9_the_source_is_thawed_the_target_looks_empty_and_a_second_clone_repairs_it() {
    drop(require_floe!());
    let _serial = common::serial();
    let made = require_source!(256, 160);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 256, 0);
    common::mkfs_ext4(target.path());
    let pair = pair(made.dir(), target.path());
    let mut child = start_until_wiped(&pair, &scratch.join("target"), &["--verify"]);
    child.kill().expect("kill");
    let _ = child.wait();
    common::assert_not_frozen(made.dir(), "after kill -9");
    target.wait_until_free();
    assert!(!is_recognised(target.path()), "the target looks valid");
    // It holds nothing that is known: no --overwrite is needed.
    clone(&[&pair]).expect_code(0);
    let mounted = Mounted::new("ext4", target.path(), "");
    common::assert_same_tree(&common::tree(made.dir()), &common::tree(mounted.dir()));
}

#[test]
fn a_signal_thaws_and_says_in_which_state_the_target_is() {
    drop(require_floe!());
    let _serial = common::serial();
    let made = require_source!(256, 160);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 256, 0xa5);
    let pair = pair(made.dir(), target.path());
    let child = start_until_wiped(&pair, &scratch.join("target"), &["--verify"]);
    common::signal(child.id(), "TERM");
    let (status, text) = stderr_of(child);
    assert_eq!(status.signal(), Some(15), "{text}");
    assert!(
        text.contains("interrupted; the target is not usable")
            && text.contains("the same command again repairs it")
            && text.contains(&*target.path().to_string_lossy()),
        "{text}"
    );
    common::assert_not_frozen(made.dir(), "after SIGTERM");
    assert!(!is_recognised(target.path()), "the target looks valid");
}

#[test]
fn a_freeze_that_takes_too_long_or_is_undone_by_others_leaves_no_valid_target() {
    drop(require_floe!());
    let _serial = common::serial();
    let made = require_source!(256, 160);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 256, 0);
    let pair = pair(made.dir(), target.path());
    let run = clone(&[&pair, "--max-freeze", "20ms", "--spool", "off"]).expect_code(1);
    assert!(run.stderr_text().contains("--max-freeze"), "{run}");
    assert!(!is_recognised(target.path()), "{run}");
    common::assert_not_frozen(made.dir(), "after the watchdog fired");
    let over = AtomicBool::new(false);
    let dir = fs::File::open(made.dir()).expect("the mount");
    std::thread::scope(|scope| {
        // Not by a program: on a busy machine a short freeze is over before one is started.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = floe::sys::ioctl::fithaw(&dir);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let run = clone(&[&pair, "--spool", "off"]);
        over.store(true, Ordering::Relaxed);
        let run = run.expect_code(1);
        // Whichever is seen first: that it was thawed, or what was written to its file then.
        let text = run.stderr_text();
        assert!(
            text.contains("thawed") || text.contains("wrote to this file"),
            "{run}"
        );
        assert!(
            run.stderr_text().contains("not usable") || run.stderr_text().contains("nothing was"),
            "{run}"
        );
    });
    assert!(!is_recognised(target.path()), "the target looks valid");
}

#[test]
fn verify_finds_a_target_that_does_not_keep_what_is_written() {
    drop(require_floe!());
    let made = require_source!(96, 40);
    let scratch = Scratch::new();
    // Among the data, and in what is free at the end: somebody else's bytes, again and again.
    for place in [20 * MIB, 95 * MIB + 4096] {
        let target = LoopDevice::filled(&scratch, "target", 96, 0);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(scratch.join("target"))
            .expect("target");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    file.write_all_at(b"not what was written", place)
                        .expect("write");
                }
            });
            let run = clone(&[&pair(made.dir(), target.path()), "--verify", "--overwrite"]);
            over.store(true, Ordering::Relaxed);
            let run = run.expect_code(1);
            let text = run.stderr_text();
            assert!(text.contains("does not keep what is written"), "{run}");
            assert!(text.contains("not usable"), "{run}");
        });
        assert!(!is_recognised(target.path()), "the target looks valid");
    }
}

#[test]
fn skip_free_leaves_free_ranges_and_nothing_that_is_owned() {
    drop(require_floe!());
    let made = require_source!(96, 20);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 96, 0xa5);
    let run = clone(&[&pair(made.dir(), target.path()), "--skip-free", "--verify"]).expect_code(0);
    assert!(
        run.stderr_text().contains("free and left as it was"),
        "{run}"
    );
    let bytes = fs::read(scratch.join("target")).expect("target");
    let stale = |block: &&[u8]| block.iter().all(|byte| *byte == 0xa5);
    assert!(bytes.chunks(4096).filter(stale).count() > 1000);
    common::output("e2fsck", &["-f", "-n", &target.path().to_string_lossy()]);
    let mounted = Mounted::new("ext4", target.path(), "");
    common::assert_same_tree(&common::tree(made.dir()), &common::tree(mounted.dir()));
}

/// Everything in the target file, to see whether anything was touched.
fn assert_refused(words: &[&str], code: i32, why: &str, untouched: &Path) {
    let before = common::hash_file(untouched);
    let run = clone(words).expect_code(code);
    let text = run.stderr_text();
    assert_eq!(text.lines().count(), 1, "{run}");
    assert!(
        text.starts_with("floe: ") && text.contains(why),
        "no '{why}': {run}"
    );
    assert_eq!(common::hash_file(untouched), before, "{run}");
}

#[test]
fn bad_input_is_one_line_each_and_touches_nothing() {
    drop(require_floe!());
    let made = require_source!(48, 2);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 48, 0xa5);
    let (small, full) = (
        LoopDevice::filled(&scratch, "small", 32, 0),
        LoopDevice::filled(&scratch, "full", 64, 0),
    );
    common::mkfs_ext4(full.path());
    let file = scratch.join("target");
    let dir = made.dir().to_string_lossy().into_owned();
    let to = |target: &Path| pair(made.dir(), target);
    let link = scratch.join("link");
    std::os::unix::fs::symlink(made.device(), &link).expect("link");
    let node = target.path().to_string_lossy().into_owned();
    for (words, code, why) in [
        (vec![dir.clone()], 2, "is not SOURCE=TARGET"),
        (vec![format!("{dir}=")], 2, "is not SOURCE=TARGET"),
        (
            vec![to(target.path()), to(small.path())],
            2,
            "is named twice",
        ),
        (
            vec![to(target.path()), "--spool".into(), "5X".into()],
            2,
            "is not a size",
        ),
        (
            vec![to(target.path()), "--pairs".into(), "x".into()],
            2,
            "exclude each other",
        ),
        (
            vec![to(target.path()), "--no-such".into()],
            2,
            "unknown option",
        ),
        (vec![to(made.device())], 4, "is the source"),
        (vec![to(&link)], 4, "is the source"),
        (vec![to(small.path())], 4, "is too small"),
        (vec![to(full.path())], 4, "--overwrite"),
        (
            vec![to(Path::new("/dev/no-such"))],
            4,
            "nothing was written",
        ),
        (vec![to(&file)], 4, "regular file"),
        (
            vec![format!("{dir}=LABEL=nobody-bears-this")],
            4,
            "no block device here bears it",
        ),
        (vec!["/no/such=/dev/null".into()], 4, "No such file"),
        (
            vec![
                to(target.path()),
                format!("{}={}", full.path().display(), made.device().display()),
            ],
            4,
            "is the source",
        ),
        (
            vec![
                to(target.path()),
                format!("{}={node}", full.path().display()),
            ],
            2,
            "is named twice",
        ),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_refused(&words, code, why, &file);
    }
    // The running root, whatever it is called.
    let root = common::output("findmnt", &["-n", "-o", "SOURCE", "/"]);
    if root.trim().starts_with("/dev/") && Path::new(root.trim()).exists() {
        assert_refused(&[&to(Path::new(root.trim()))], 4, "running root", &file);
    }
    // Mounted: it says what to umount. Another loop device below or above counts as the same blocks.
    let mounted = Mounted::new("ext4", full.path(), "");
    let umount = format!("umount {} first", mounted.dir().display());
    assert_refused(&[&to(full.path()), "--overwrite"], 4, &umount, &file);
    drop(mounted);
    let above = LoopDevice::attach(target.path(), 512);
    assert_refused(&[&to(target.path())], 4, "is attached to", &file);
    let second = format!("{}={}", full.path().display(), above.path().display());
    assert_refused(&[&to(target.path()), &second], 4, "is attached to", &file);
    drop(above);
    common::output("blockdev", &["--setro", &node]);
    assert_refused(&[&to(target.path())], 4, "is read-only", &file);
    common::output("blockdev", &["--setrw", &node]);
}

#[test]
fn a_pairs_file_declares_its_targets_standby_and_its_errors_name_the_line() {
    drop(require_floe!());
    let made = require_source!(48, 2);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 48, 0);
    common::mkfs_ext4(target.path());
    let pairs = scratch.join("floe.conf");
    let name = pairs.to_string_lossy().into_owned();
    for (text, code, why) in [
        ("# nothing\nstore = /data\n", 2, "names no pair"),
        (
            "store = /data\n\n/config\n",
            2,
            "line 3: '/config' is not SOURCE=TARGET",
        ),
        ("stroe = /data\n", 2, "line 1: 'stroe'"),
    ] {
        fs::write(&pairs, text).expect("pairs");
        assert_refused(&["--pairs", &name], code, why, &scratch.join("target"));
    }
    let missing = scratch.join("missing").to_string_lossy().into_owned();
    assert_refused(
        &["--pairs", &missing],
        4,
        "No such file",
        &scratch.join("target"),
    );
    let line = pair(made.dir(), target.path());
    fs::write(&pairs, format!("store = /data\n{line}\n")).expect("pairs");
    clone(&["--pairs", &name]).expect_code(0);
    let mounted = Mounted::new("ext4", target.path(), "");
    common::assert_same_tree(&common::tree(made.dir()), &common::tree(mounted.dir()));
}

#[test]
fn labels_name_sources_and_targets_and_a_filesystem_may_be_smaller_than_its_device() {
    drop(require_floe!());
    let label = format!("clone{}", std::process::id() % 100_000);
    let made = LoopFs::make(Spec {
        mib: 64,
        mkfs: &["-b", "1024"],
        ..Spec::default()
    });
    let mut made = match made {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    made.unmount();
    let node = made.device().to_string_lossy().into_owned();
    // What lies behind the filesystem counts as used unless it is zeros.
    let of = format!("of={node}");
    common::output(
        "dd",
        &[
            "if=/dev/zero",
            &of,
            "bs=1M",
            "count=64",
            "conv=fsync",
            "status=none",
        ],
    );
    common::output("mkfs.ext4", &["-q", "-F", "-L", &label, &node, "32M"]);
    made.mount();
    made.fill(30);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 40, 0xa5);
    let standby = format!("{label}b");
    let target_node = target.path().to_string_lossy().into_owned();
    common::output("mkfs.ext4", &["-q", "-F", "-L", &standby, &target_node]);
    let word = format!("LABEL={label}=LABEL={standby}");
    clone(&[&word, "--overwrite"]).expect_code(0);
    common::output("e2fsck", &["-f", "-n", &target_node]);
    let mounted = Mounted::new("ext4", target.path(), "");
    common::assert_same_tree(&common::tree(made.dir()), &common::tree(mounted.dir()));
    drop(mounted);
    let bytes = fs::read(scratch.join("target")).expect("target");
    assert!(bytes[32 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn show_says_of_a_standby_what_it_is_and_when_it_was_written() {
    let mut floe = require_floe!();
    let made = require_source!(48, 2);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 48, 0);
    clone(&[&pair(made.dir(), target.path())]).expect_code(0);
    let run = common::run(floe.arg("show").arg(target.path()), Limit::secs(20)).expect_code(0);
    let text = run.stdout_text();
    let row = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    assert_eq!(
        row("last mounted").map(str::trim),
        made.dir().to_str(),
        "{text}"
    );
    let year = row("last written").unwrap_or_default().trim();
    assert!(year.starts_with("20") && year.ends_with('Z'), "{text}");
    assert!(
        row("uuid").is_some() && row("filesystem").is_some(),
        "{text}"
    );
    let mut floe = require_floe!();
    let run = common::run(
        floe.args(["show", "--json"]).arg(target.path()),
        Limit::secs(20),
    );
    let json = run.expect_code(0).stdout_text();
    assert!(
        json.contains("\"last_written_s\":1") || json.contains("\"last_written_s\":2"),
        "{json}"
    );
    assert!(json.contains("\"last_mounted\":\""), "{json}");
}

#[test]
fn a_whole_disk_goes_onto_a_larger_one_with_its_backup_table_at_the_end() {
    drop(require_floe!());
    require!(
        common::is_root() && common::have("sfdisk") && common::have("partx"),
        "root, sfdisk and partx"
    );
    let scratch = Scratch::new();
    let source = LoopDevice::filled(&scratch, "disk", 80, 0);
    let node = source.path().to_string_lossy().into_owned();
    let part = PathBuf::from(format!("{node}p1"));
    let table = b"label: gpt\nstart=1MiB, size=64MiB, name=root\n";
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["-q", "--no-reread", "--no-tell-kernel", &node]);
    common::run_with_input(&mut sfdisk, table, Limit::secs(30)).expect_code(0);
    if !part.exists() {
        let _ = Command::new("partx").args(["-a", &node]).output();
    }
    require!(part.exists(), "partition nodes");
    common::mkfs_ext4(&part);
    let mounted = Mounted::new("ext4", &part, "");
    common::fill(mounted.dir(), 40);
    let target = LoopDevice::filled(&scratch, "target", 96, 0xa5);
    let files = common::tree(mounted.dir());
    clone(&[&pair(source.path(), target.path()), "--verify"]).expect_code(0);
    drop(mounted);
    let copy = scratch.join("target");
    let checked = common::output("sfdisk", &["--verify", &copy.to_string_lossy()]);
    assert!(checked.contains("No errors detected"), "{checked}");
    drop(target);
    let inside = format!("offset={MIB},sizelimit={}", 64 * MIB);
    let mounted = Mounted::new("ext4", &copy, &inside);
    common::assert_same_tree(&files, &common::tree(mounted.dir()));
}

/// floe, with an /etc of its own, and the store in it.
fn with_store(floe: &Command, store: &Path) -> Command {
    let words = "mount -t tmpfs tmpfs /etc && echo \"store = $0\" > /etc/floe.conf && exec \"$@\"";
    let mut run = Command::new("unshare");
    run.args(["-m", "--propagation", "slave", "sh", "-c", words])
        .arg(store);
    run.arg(floe.get_program()).args(floe.get_args()); // the runner, where there is one, comes first
    run
}

#[test]
fn a_medium_for_which_the_factory_snapshot_was_not_made_is_left_as_it_is() {
    drop(require_floe!());
    let spec = || Spec {
        mkfs: &["-b", "1024"],
        ..Spec::default()
    };
    let [Ok(one), Ok(two)] = [LoopFs::make(spec()), LoopFs::make(spec())] else {
        return common::skip("a loop device");
    };
    let scratch = Scratch::new();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("store");
    for (source, class) in [(&one, "--factory"), (&two, "--rescue")] {
        let mut floe = require_floe!();
        floe.arg("create")
            .arg(format!("fs={}", source.dir().display()))
            .args([class, "-o"])
            .arg(&store);
        common::run(&mut floe, Limit::secs(60)).expect_code(0);
    }
    let [whole, small, large] = ["whole", "small", "large"].map(|name| scratch.join(name));
    for file in [&whole, &small, &large] {
        fs::write(file, vec![0xa5; 200 << 20]).expect("medium");
    }
    let whole = (LoopDevice::attach(&whole, 4096), whole);
    let small = (LoopDevice::attach(&small, 512), small);
    let large = (LoopDevice::attach(&large, 4096), large);
    let medium = whole.0.path().to_string_lossy();
    let pairs = |first: &Path, second: &Path| [pair(one.dir(), first), pair(two.dir(), second)];
    let lay = &["--partition", "--swap-size", "0", "--media", &*medium][..];
    for (more, pairs) in [
        (lay, pairs("root".as_ref(), "config".as_ref())),
        // The second one only: the first must not have been written by then.
        (&[], pairs(small.0.path(), large.0.path())),
    ] {
        let mut run = with_store(&require_floe!(), &store);
        run.args(["clone", "--factory"]).args(more).args(pairs);
        let run = common::run(&mut run, Limit::secs(60)).expect_code(4);
        let said = run.stderr_text();
        assert!(
            said.contains("no kernel would mount it there; make")
                && said.contains("; nothing was written"),
            "{run}"
        );
    }
    for (_, file) in [whole, small, large] {
        let bytes = fs::read(&file).expect("medium");
        let old = bytes.iter().all(|byte| *byte == 0xa5);
        assert!(old, "{} was written", file.display());
    }
}

#[test]
fn a_medium_that_gets_the_factory_snapshot_keeps_nothing_of_what_it_held() {
    drop(require_floe!());
    let made = require_source!(16, 5);
    let scratch = Scratch::new();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("store");
    let mut floe = require_floe!();
    floe.arg("create")
        .arg(format!("fs={}", made.dir().display()))
        .args(["--factory", "-o"])
        .arg(&store);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let file = scratch.join("medium");
    fs::write(&file, vec![0xa5; 64 << 20]).expect("medium");
    let medium = LoopDevice::attach_with(&file, &["-P"]);
    let floe = require_floe!();
    let mut run = with_store(&floe, &store);
    run.args(["clone", "--factory", "--partition", "--overwrite"])
        .args(["--swap-size", "0", "--media"])
        .arg(medium.path())
        .arg(format!("{}=root", made.dir().display()));
    let run = common::run(&mut run, Limit::secs(60)).expect_code(0);
    let bytes = fs::read(&file).expect("medium");
    let old = |block: &&[u8]| block.iter().all(|byte| *byte == 0xa5);
    assert_eq!(bytes.chunks(512).filter(old).count(), 0, "{run}");
    common::output("partx", &["-d", &medium.path().to_string_lossy()]);
}

#[test]
fn the_factory_and_the_rescue_snapshot_never_go_to_the_same_target() {
    drop(require_floe!());
    let one = require_source!(16, 1);
    let two = require_source!(16, 1);
    let scratch = Scratch::new();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("store");
    for (source, class) in [(&one, "--factory"), (&two, "--rescue")] {
        let mut floe = require_floe!();
        floe.arg("create")
            .arg(format!("fs={}", source.dir().display()))
            .args([class, "-o"])
            .arg(&store);
        common::run(&mut floe, Limit::secs(60)).expect_code(0);
    }
    let target = LoopDevice::filled(&scratch, "target", 24, 0xa5);
    let file = scratch.join("target");
    let before = common::hash_file(&file);
    let name = target.path().file_name().expect("name").to_string_lossy();
    let other = PathBuf::from(format!("/dev/./{name}"));
    let floe = require_floe!();
    let clone = |more: &[&str], code: i32| {
        let mut run = with_store(&floe, &store);
        run.args(["clone", "--factory"])
            .arg(pair(one.dir(), target.path()))
            .args(more);
        common::run(&mut run, Limit::secs(60)).expect_code(code)
    };
    let second = pair(two.dir(), &other);
    let run = clone(&[&second], 4);
    let text = run.stderr_text();
    assert!(text.contains("nothing was written"), "{run}");
    assert_eq!(text.lines().count(), 1, "{run}");
    assert_eq!(common::hash_file(&file), before);
    // One alone: the report has the figures that other clones have.
    let report = scratch.join("report");
    clone(&["--report", &report.to_string_lossy()], 0);
    let report = fs::read(&report).expect("report");
    let report = floe::json::parse(&report).unwrap_or_else(|_| panic!("the report"));
    let number = |key: &str| report.get(key).and_then(|value| value.number());
    assert_eq!(number("size_bytes"), Some(16 << 20));
    assert!(number("written_bytes").is_some_and(|bytes| bytes > 0));
    assert!(number("total_ms").is_some() && number("zeroed_bytes").is_some());
    let said = String::from_utf8_lossy(&clone(&["--report", "-"], 4).stderr).into_owned();
    let source = one.dir().to_string_lossy().into_owned();
    assert!(
        said.contains(&format!("\"source\":\"{source}\",\"error\":")),
        "{said}"
    );
}

#[test]
fn a_new_uuid_is_not_undone_by_the_journal_of_a_source_that_lost_power() {
    let made = LoopFs::make(Spec {
        mkfs: &["-O", "metadata_csum_seed"],
        mib: 48,
        ..Spec::default()
    });
    let made = match made {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let scratch = Scratch::new();
    // As after a power cut: what is on the disk while it is mounted, the journal not replayed.
    made.fill(4);
    let file = made.dir().join("last");
    fs::write(&file, "words").unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    let cut = scratch.join("cut");
    fs::copy(made.image(), &cut).unwrap();
    let source = LoopDevice::attach(&cut, 512);
    let target = LoopDevice::filled(&scratch, "target", 48, 0);
    let words = pair(source.path(), target.path());
    let run = clone(&[&words, "--new-uuid"]).expect_code(0);
    let text = run.stderr_text();
    let found = text.split("its uuid is ").nth(1).expect("a new uuid");
    let uuid = found.split(' ').next().unwrap().to_owned();
    let point = scratch.join("mnt");
    fs::create_dir(&point).unwrap();
    let shown = target.path().to_string_lossy().into_owned();
    common::output("mount", &[&shown, &point.to_string_lossy()]);
    let words = fs::read_to_string(point.join("last"));
    common::output("umount", &[&point.to_string_lossy()]);
    assert_eq!(words.unwrap(), "words");
    let out = common::output("dumpe2fs", &["-h", &shown]);
    assert!(out.contains(&uuid), "{uuid} in {out}");
}

#[test]
fn that_both_are_identical_is_said_where_it_is_true() {
    drop(require_floe!());
    let made = require_source!(64, 20);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 64, 0);
    for (more, says) in [("--verify", true), ("--golden", false)] {
        let run = clone(&[&pair(made.dir(), target.path()), "--overwrite", more]).expect_code(0);
        let said = run.stderr_text();
        assert_eq!(said.contains("are identical now"), says, "{run}");
    }
}
