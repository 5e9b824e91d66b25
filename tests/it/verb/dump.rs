//! `floe dump` as a whole: what it promises while nothing goes wrong, and the defects that were measured in other tools.
//!
//! What kills and stalls floe in the frozen window is in `dump_window`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{
    self, Limit, LoopDevice, LoopFs, Mounted, Random, Run, Scratch, Spec, Writer, text,
};

/// A small filesystem of the test's own with files in it, or a skip.
macro_rules! filled {
    ($spec:expr) => {{
        let made = require_ok!(LoopFs::make($spec));
        made.fill(120);
        made
    }};
}

/// Runs `floe dump ARGS`, stdout into `to`.
fn dump_to(floe: &mut Command, args: &[&str], to: &Path) -> Run {
    let script = format!("exec \"$@\" > {}", to.display());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script, "sh"])
        .arg(floe.get_program())
        .args(floe.get_args())
        .arg("dump")
        .args(args);
    for (key, value) in floe.get_envs() {
        if let Some(value) = value {
            shell.env(key, value);
        }
    }
    common::run(shell.stdin(Stdio::null()), Limit::secs(120))
}

/// Unpacks an image and checks it: e2fsck clean, or clean after one `-p` where files were open and deleted.
fn unpack_and_check(gz: &Path, image: &Path) {
    common::output(
        "sh",
        &[
            "-c",
            &format!(
                "gzip -dc '{}' | cp --sparse=always /dev/stdin '{}'",
                gz.display(),
                image.display()
            ),
        ],
    );
    let check = |mode: &str| {
        common::run(
            Command::new("e2fsck").args(["-f", mode]).arg(image),
            Limit::secs(120),
        )
    };
    if check("-n").code != Some(0) {
        let repair = check("-p");
        assert!(matches!(repair.code, Some(0 | 1)), "{repair}");
        check("-n").expect_code(0);
    }
}

/// Whether a file holds this text (`grep` is faster than a test binary without optimisation).
fn contains(path: &Path, needle: &str) -> bool {
    let run = common::run(
        Command::new("grep").args(["-aqF", needle]).arg(path),
        Limit::secs(60),
    );
    assert!(matches!(run.code, Some(0 | 1)), "{run}");
    run.code == Some(0)
}

#[test]
fn an_image_under_a_writer_passes_fsck_and_holds_every_quiet_file() {
    for kind in ["ext2", "ext3", "ext4"] {
        let fs = filled!(Spec {
            kind,
            mib: 96,
            ..Spec::default()
        });
        let before = common::tree(fs.dir());
        let writer = Writer::start(fs.dir());
        std::thread::sleep(Duration::from_millis(300));
        let gz = fs.scratch().join("image.gz");
        dump_to(&mut require_floe!(), &[&text(fs.dir())], &gz).expect_code(0);
        drop(writer);
        common::assert_not_frozen(fs.dir(), "after a dump");
        let image = fs.scratch().join("restored");
        unpack_and_check(&gz, &image);
        let copy = Mounted::new(kind, &image, "ro");
        let mut found = common::tree(copy.dir());
        found.retain(|path, _| before.contains_key(path));
        common::assert_same_tree(&before, &found);
    }
}

#[test]
fn a_second_dump_after_a_thousand_new_files_has_no_stale_byte() {
    let fs = filled!(Spec::default());
    let gz = fs.scratch().join("image.gz");
    // Reads through the page cache would give the second dump what the first one saw.
    dump_to(&mut require_floe!(), &[&text(fs.dir())], &gz).expect_code(0);
    for number in 0..1000 {
        fs::write(
            fs.dir().join(format!("new-{number}")),
            format!("content {number}\n").repeat(40),
        )
        .expect("new file");
    }
    dump_to(&mut require_floe!(), &[&text(fs.dir())], &gz).expect_code(0);
    let image = fs.scratch().join("restored");
    unpack_and_check(&gz, &image);
    let copy = Mounted::new("ext4", &image, "ro");
    common::assert_same_tree(&common::tree(fs.dir()), &common::tree(copy.dir()));
}

#[test]
fn nothing_that_was_on_the_disk_before_its_filesystem_is_in_the_image() {
    require!(
        common::is_root() && common::have("mke2fs"),
        "root and mke2fs"
    );
    drop(require_floe!());
    const GROWS: &str = "nodiscard,resize=4000000";
    let kinds: [&[&str]; 5] = [
        &["-b", "1024", "-E", GROWS],
        &["-b", "4096", "-E", GROWS],
        &["-b", "4096", "-E", GROWS, "-O", "^metadata_csum,uninit_bg"],
        &["-b", "2048", "-E", GROWS, "-O", "^flex_bg,^64bit"],
        &[
            "-b",
            "1024",
            "-E",
            "nodiscard",
            "-O",
            "meta_bg,^resize_inode",
        ],
    ];
    let scratch = Scratch::new();
    let (disk, raw) = (scratch.join("disk"), scratch.join("raw"));
    let old = b"WHAT-WAS-HERE-BEFORE-mkfs-came-\n";
    for mkfs in kinds {
        let block: usize = mkfs[1].parse().expect("block size");
        // Several groups.
        let size = if block == 4096 { 300 << 20 } else { 90 << 20 };
        fs::write(&disk, old.repeat(size / old.len())).expect("disk");
        let options: &[&str] = &["-q", "-F", "-t", "ext4"];
        common::output("mke2fs", &[options, mkfs, &[&text(&disk)]].concat());
        let mounted = Mounted::new("ext4", &disk, "rw");
        common::fill(mounted.dir(), 20);
        common::output("sync", &["-f", &text(mounted.dir())]);
        dump_to(
            &mut require_floe!(),
            &["-z", "none", &text(mounted.dir())],
            &raw,
        )
        .expect_code(0);
        let bytes = fs::read(&raw).expect("image");
        let places = bytes.windows(old.len()).enumerate();
        let places: Vec<usize> = places
            .filter(|(_, seen)| seen == old)
            .map(|(at, _)| at)
            .collect();
        // A copy of the superblock has a block, of which it takes 1 KiB.
        let copies = places.iter().map(|at| at / block);
        let copies: std::collections::BTreeSet<usize> = copies.collect();
        let most = if block == 1024 { 0 } else { 5 };
        assert!(copies.len() <= most, "{mkfs:?}: {copies:?}");
        assert!(
            places.iter().all(|at| at % block >= 1024),
            "{mkfs:?}: {places:?}"
        );
        common::output("e2fsck", &["-fn", &text(&raw)]);
        let copy = Mounted::new("ext4", &raw, "ro");
        common::assert_same_tree(&common::tree(mounted.dir()), &common::tree(copy.dir()));
        drop(copy);
        // The room for descriptors is there to be taken.
        let file = fs::OpenOptions::new().write(true).open(&raw);
        file.and_then(|file| file.set_len(900 << 20)).expect("room");
        common::output("resize2fs", &[&text(&raw)]);
        common::output("e2fsck", &["-fn", &text(&raw)]);
    }
}

#[test]
fn deleted_and_fallocated_secrets_are_not_in_the_image() {
    let fs = filled!(Spec {
        mib: 96,
        ..Spec::default()
    });
    let secret = "SECRET-7f3a91c2-";
    let file = fs.dir().join("secret");
    fs::write(&file, secret.repeat(1 << 17)).expect("secret");
    common::output("sync", &["-f", &text(fs.dir())]);
    fs::remove_file(&file).expect("delete");
    common::output("sync", &["-f", &text(fs.dir())]);
    // Most of what was freed is taken up again, unwritten.
    common::output(
        "fallocate",
        &["-l", "30M", &text(&fs.dir().join("unwritten"))],
    );
    common::output("sync", &["-f", &text(fs.dir())]);
    let raw = fs.scratch().join("raw");
    dump_to(&mut require_floe!(), &["-z", "none", &text(fs.dir())], &raw).expect_code(0);
    assert!(
        contains(fs.image(), secret),
        "the secret should still stand on the device"
    );
    assert!(
        !contains(&raw, secret),
        "the image holds the deleted secret"
    );
    common::output("e2fsck", &["-fn", &text(&raw)]);
}

#[test]
fn every_decoder_accepts_the_stream() {
    let fs = filled!(Spec::default());
    let (gz, raw) = (fs.scratch().join("image.gz"), fs.scratch().join("raw"));
    let device = fs.device().to_owned();
    let mut fs = fs;
    fs.unmount();
    dump_to(&mut require_floe!(), &[&text(&device)], &gz).expect_code(0);
    dump_to(
        &mut require_floe!(),
        &["--compress", "none", &text(&device)],
        &raw,
    )
    .expect_code(0);
    let wanted = common::hash_file(&raw);
    let out = fs.scratch().join("out");
    let python =
        "import gzip,shutil,sys; shutil.copyfileobj(gzip.open(sys.argv[1]),open(sys.argv[2],'wb'))";
    for (tool, script) in [
        ("gzip", "gzip -dc \"$1\" > \"$2\""),
        ("busybox", "busybox gunzip -c \"$1\" > \"$2\""),
        ("pigz", "pigz -dc \"$1\" > \"$2\""),
        ("python3", "python3 -c \"$3\" \"$1\" \"$2\""),
    ] {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        common::output("sh", &["-c", script, "sh", &text(&gz), &text(&out), python]);
        assert_eq!(common::hash_file(&out), wanted, "{tool}");
    }
}

#[test]
fn the_report_has_every_key_and_true_figures() {
    let fs = filled!(Spec::default());
    let (gz, report) = (fs.scratch().join("image.gz"), fs.scratch().join("report"));
    let run = dump_to(
        &mut require_floe!(),
        &["--report", &text(&report), &text(fs.dir())],
        &gz,
    )
    .expect_code(0);
    assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
    let report = fs::read_to_string(&report).expect("report");
    let value = |key: &str| {
        let start = report
            .find(&format!("\"{key}\":"))
            .unwrap_or_else(|| panic!("no {key} in {report}"));
        let rest = &report[start + key.len() + 3..];
        rest[..rest.find([',', '}']).expect("end")]
            .trim_matches('"')
            .to_owned()
    };
    assert_eq!(value("filesystem"), "ext4");
    assert_eq!(value("map"), "used");
    assert_eq!(value("consistent"), "frozen");
    assert_eq!(value("size_bytes"), (64u64 << 20).to_string());
    // Pre-copy reads again what was written meanwhile.
    let number = |key| value(key).parse::<u64>().expect("a number");
    assert!(number("read_bytes") >= number("used_bytes"));
    assert_eq!(
        value("written_bytes"),
        fs::metadata(&gz).expect("gz").len().to_string()
    );
    let sum = common::output("sha256sum", &[&text(&gz)]);
    assert!(sum.starts_with(&value("sha256")), "{sum} {report}");
    let crc = common::output(
        "sh",
        &[
            "-c",
            &format!(
                "gzip -dc '{}' | gzip -1c | tail -c8 | head -c4 | od -An -tx4",
                gz.display()
            ),
        ],
    );
    assert_eq!(value("crc32"), crc.trim());
    for key in ["source", "device", "frozen_ms", "total_ms"] {
        value(key);
    }
}

#[test]
fn raw_to_a_file_is_sparse_and_free_blocks_are_zero() {
    let fs = filled!(Spec {
        mib: 256,
        ..Spec::default()
    });
    let raw = fs.scratch().join("raw");
    dump_to(&mut require_floe!(), &["-z", "none", &text(fs.dir())], &raw).expect_code(0);
    let meta = fs::metadata(&raw).expect("image");
    assert_eq!(meta.len(), 256 << 20);
    let held = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
    assert!(
        held < 160 << 20,
        "{held} bytes of a mostly empty image are allocated"
    );
    common::output("e2fsck", &["-fn", &text(&raw)]);
}

#[test]
fn output_to_a_file_appears_complete_or_not_at_all() {
    let fs = filled!(Spec::default());
    let target = fs.scratch().join("x.img.gz");
    fs::write(&target, b"old").expect("something else");
    let dump = |more: &[&str]| {
        let mut floe = common::floe().expect("FLOE_BIN");
        let floe = floe.args(["dump", &text(fs.dir()), "-o", &text(&target)]);
        common::run(floe.args(more), Limit::secs(60))
    };
    require!(common::floe().is_some(), "FLOE_BIN");
    // What is no image is not replaced unasked; an image is.
    let run = dump(&[]).expect_code(4);
    assert!(run.stderr_text().contains("--overwrite"), "{run}");
    assert_eq!(fs::read(&target).expect("still there"), b"old");
    dump(&["--overwrite"]).expect_code(0);
    dump(&[]).expect_code(0);
    common::output("gzip", &["-t", &text(&target)]);
    assert!(!fs.scratch().join("x.img.gz.part").exists());
    let device = text(fs.device());
    let run = common::run(
        require_floe!().args(["dump", &text(fs.dir()), "-o", &device]),
        Limit::secs(60),
    )
    .expect_code(4);
    assert!(run.stderr_text().contains("restore"), "{run}");
    assert!(
        fs::metadata(&device)
            .expect("device")
            .file_type()
            .is_block_device()
    );
}

#[test]
fn a_full_disk_fails_thaws_and_leaves_no_file() {
    let fs = filled!(Spec::default());
    let small = Scratch::new();
    common::output(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "size=300k",
            "tmpfs",
            &text(small.path()),
        ],
    );
    let target = small.join("x.gz");
    let run = common::run(
        require_floe!().args(["dump", &text(fs.dir()), "-o", &text(&target)]),
        Limit::secs(60),
    );
    let left = fs::read_dir(small.path()).expect("tmpfs").count();
    common::output("umount", &[&text(small.path())]);
    let run = run.expect_code(1);
    assert!(run.stderr_text().contains("No space left"), "{run}");
    assert_eq!(left, 0, "{run}");
    common::assert_not_frozen(fs.dir(), "after ENOSPC");
}

#[test]
fn an_error_in_the_middle_of_the_source_is_exit_1_with_the_offset_and_no_trailer() {
    let fs = filled!(Spec {
        mib: 64,
        ..Spec::default()
    });
    let mut fs = fs;
    fs.unmount();
    // Behind the end of its file a loop device answers with EIO. The journal stands before it, data behind.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(fs.image())
        .expect("image");
    file.set_len(20 << 20).expect("cut");
    let gz = fs.scratch().join("image.gz");
    let run = dump_to(&mut require_floe!(), &["--whole", &text(fs.device())], &gz).expect_code(1);
    assert!(
        run.stderr_text().contains("/O error") || run.stderr_text().contains("output error"),
        "{run}"
    );
    assert!(run.stderr_text().contains(" at 0x"), "{run}");
    let test = common::run(Command::new("gzip").arg("-t").arg(&gz), Limit::secs(60));
    assert_ne!(test.code, Some(0), "an aborted dump has a valid trailer");
}

#[test]
fn a_closed_pipe_is_exit_1_and_one_line_after_the_thaw() {
    let fs = filled!(Spec::default());
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let script = format!(
        "{words} dump -z none {} | head -c 1000 > /dev/null; echo ${{PIPESTATUS[0]}}",
        fs.dir().display()
    );
    let run = common::run(Command::new("bash").args(["-c", &script]), Limit::secs(60));
    assert_eq!(run.stdout_text().trim(), "1", "{run}");
    assert_eq!(
        run.stderr_text(),
        "floe: stdout: the reader closed the pipe; the image is incomplete; thawed\n",
        "{run}"
    );
    common::assert_not_frozen(fs.dir(), "after a closed pipe");
}

#[test]
fn a_terminal_on_stdout_is_refused() {
    require!(common::have("script"), "script (bsdutils)");
    let fs = filled!(Spec::default());
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let log = fs.scratch().join("typescript");
    let run = common::run(
        Command::new("script")
            .args(["-qec", &format!("{words} dump {}", fs.dir().display())])
            .arg(&log)
            .stdin(Stdio::null()),
        Limit::secs(30),
    );
    assert_eq!(run.code, Some(4), "{run}");
    assert!(run.stdout_text().contains("terminal"), "{run}");
}

#[test]
fn the_freeze_waits_until_the_reader_has_taken_the_first_bytes() {
    let fs = filled!(Spec::default());
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let report = fs.scratch().join("report");
    // A reader that asks for a password first: floe waits, and the filesystem is not frozen meanwhile.
    let script = format!(
        "{words} dump --report {} {} | (sleep 2; cat > /dev/null)",
        report.display(),
        fs.dir().display()
    );
    let start = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    std::thread::sleep(Duration::from_millis(900));
    common::assert_not_frozen(fs.dir(), "while the reader has not begun");
    let status = common::wait_for(&mut child, Duration::from_secs(60));
    assert!(status.is_some_and(|status| status.success()));
    assert!(start.elapsed() >= Duration::from_secs(2));
    // One that never begins is refused.
    let script = format!(
        "{words} dump --wait-sink 500ms {} | (sleep 3); exit ${{PIPESTATUS[0]}}",
        fs.dir().display()
    );
    let run =
        common::run(Command::new("bash").args(["-c", &script]), Limit::secs(30)).expect_code(4);
    assert!(run.stderr_text().contains("--wait-sink"), "{run}");
}

#[test]
fn a_folder_that_is_no_mount_point_is_told_with_what_it_lies_on() {
    let fs = filled!(Spec {
        mib: 16,
        ..Spec::default()
    });
    let mut floe = require_some!(common::floe(), "FLOE_BIN");
    let folder = fs.dir().join("of it");
    fs::create_dir(&folder).expect("folder");
    let run = dump_to(&mut floe, &[&text(&folder)], Path::new("/dev/null")).expect_code(0);
    let told = format!("it lies on {} ({})", text(fs.dir()), text(fs.device()));
    assert!(run.stderr_text().contains(&told), "{run}");
    let mut floe = require_some!(common::floe(), "FLOE_BIN");
    let run = dump_to(&mut floe, &[&text(fs.dir())], Path::new("/dev/null")).expect_code(0);
    assert!(!run.stderr_text().contains("no mount point"), "{run}");
}

#[test]
fn odd_mount_points_lead_to_the_right_filesystem() {
    let mut outer = filled!(Spec {
        mib: 16,
        ..Spec::default()
    });
    let inner = filled!(Spec {
        mib: 32,
        ..Spec::default()
    });
    let size = |source: &str| {
        let gz = Scratch::new();
        let report = gz.join("report");
        dump_to(
            &mut common::floe()?,
            &["--report", &text(&report), source],
            Path::new("/dev/null"),
        )
        .expect_code(0);
        let report = fs::read_to_string(&report).expect("report");
        let start = report.find("\"size_bytes\":").expect("size") + 13;
        Some(
            report[start..]
                .split(',')
                .next()
                .expect("number")
                .parse::<u64>()
                .expect("number")
                >> 20,
        )
    };
    require!(common::floe_path().is_some(), "FLOE_BIN");
    let spaced = outer.dir().join("a b\\c");
    fs::create_dir_all(&spaced).expect("folder");
    common::output("mount", &["--bind", &text(inner.dir()), &text(&spaced)]);
    assert_eq!(size(&text(&spaced)), Some(32));
    common::output("mount", &["-o", "remount,bind,ro", &text(&spaced)]);
    assert_eq!(
        size(&text(&spaced)),
        Some(32),
        "a read-only bind of a writable filesystem"
    );
    assert_eq!(size(&text(outer.dir())), Some(16));
    common::output("umount", &[&text(&spaced)]);
    // A covered mount point: the path means what is on top.
    common::output("mount", &["--bind", &text(inner.dir()), &text(outer.dir())]);
    assert_eq!(size(&text(outer.dir())), Some(32));
    assert_eq!(
        size(&text(outer.device())),
        Some(16),
        "the covered filesystem, by its device"
    );
    common::output("umount", &[&text(outer.dir())]);
    common::assert_not_frozen(outer.dir(), "after all that");
    outer.unmount();
}

#[test]
fn a_filesystem_after_errors_remount_ro_is_read_whole_and_called_readonly() {
    let fs = filled!(Spec {
        options: "errors=remount-ro",
        ..Spec::default()
    });
    let name = fs
        .device()
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
    require!(
        fs::write(&trigger, "floe").is_ok(),
        "/sys/fs/ext4/DEV/trigger_fs_error"
    );
    let report = fs.scratch().join("report");
    let gz = fs.scratch().join("image.gz");
    let run = dump_to(
        &mut require_floe!(),
        &["--report", &text(&report), &text(fs.dir())],
        &gz,
    )
    .expect_code(0);
    let report = fs::read_to_string(&report).expect("report");
    assert!(
        report.contains("\"consistent\":\"readonly\""),
        "{run} {report}"
    );
    assert!(report.contains("\"map\":\"whole\""), "{run} {report}");
    let run = dump_to(
        &mut require_floe!(),
        &["--require-map", &text(fs.dir())],
        &gz,
    )
    .expect_code(4);
    assert!(run.stderr_text().contains("nothing was written"), "{run}");
}

#[test]
fn a_freeze_held_by_somebody_else_is_refused_and_stays() {
    let fs = filled!(Spec::default());
    common::freeze(fs.dir());
    let run = common::run(
        require_floe!().args(["dump", "-z", "none", &text(fs.dir())]),
        Limit::secs(60),
    );
    let thawed = common::run(
        Command::new("fsfreeze").arg("-u").arg(fs.dir()),
        Limit::secs(20),
    );
    let run = run.expect_code(4);
    assert!(run.stderr_text().contains("already frozen"), "{run}");
    assert_eq!(
        thawed.code,
        Some(0),
        "floe thawed what somebody else froze: {thawed}"
    );
}

#[test]
fn a_mount_in_another_namespace_is_found_and_frozen() {
    require!(common::have("unshare"), "unshare");
    let fs = filled!(Spec::default());
    let mut fs = fs;
    let device = text(fs.device());
    let point = text(fs.dir());
    fs.unmount();
    #[allow(clippy::zombie_processes)] // waited for below, whatever the dump does
    let mut holder = Command::new("unshare")
        .args([
            "-m",
            "--propagation",
            "slave",
            "sh",
            "-c",
            "mount \"$1\" \"$2\" && echo mounted && exec sleep 60",
            "sh",
            &device,
            &point,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut line = String::new();
    let mut out = std::io::BufReader::new(holder.stdout.take().expect("piped"));
    std::io::BufRead::read_line(&mut out, &mut line).expect("line");
    let report = fs.scratch().join("report");
    let mut floe = require_some!(common::floe(), "FLOE_BIN");
    let result = dump_to(
        &mut floe,
        &["--report", &text(&report), &device],
        &fs.scratch().join("image.gz"),
    );
    let _ = holder.kill();
    let _ = holder.wait();
    result.expect_code(0);
    let report = fs::read_to_string(&report).expect("report");
    assert!(report.contains("\"consistent\":\"frozen\""), "{report}");
}

#[test]
fn a_dump_may_be_written_onto_the_dumped_filesystem_if_it_fits_the_spool() {
    let fs = filled!(Spec {
        mib: 128,
        ..Spec::default()
    });
    let target = fs.dir().join("self.img.gz");
    let stderr = fs.dir().join("messages");
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let script = format!(
        "exec {words} dump {} > {} 2> {}",
        fs.dir().display(),
        target.display(),
        stderr.display()
    );
    common::run(Command::new("sh").args(["-c", &script]), Limit::secs(60)).expect_code(0);
    common::output("gzip", &["-t", &text(&target)]);
    assert!(
        fs::read_to_string(&stderr)
            .expect("stderr")
            .contains("used")
    );
    // Without a spool the writer would wait for the thaw and the thaw for the writer: that is seen before the freeze.
    common::fill(&fs.dir().join("more"), 60);
    let script = format!(
        "exec {words} dump --spool off --stall 1s -z none {} > {}",
        fs.dir().display(),
        target.display()
    );
    let run = common::run(Command::new("sh").args(["-c", &script]), Limit::secs(60)).expect_code(4);
    assert!(run.stderr_text().contains("nothing was frozen"), "{run}");
    common::assert_not_frozen(fs.dir(), "after the refusal");
}

#[test]
fn an_image_that_is_no_stream_may_lie_on_an_overlay_of_the_dumped_filesystem() {
    require!(common::kernel_has("overlay"), "overlay in this kernel");
    let fs = filled!(Spec {
        mib: 128,
        ..Spec::default()
    });
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    // It is put together in its file; under the freeze, writes to that wait for the thaw, and what was read waits in the spool.
    let script = format!(
        "cd {} && mkdir low up work over && mount -t overlay -o lowerdir=low,upperdir=up,workdir=work overlay over &&
         exec {words} dump --stall 5s -z none . -o over/self.img",
        fs.dir().display()
    );
    let script = ["-m", "sh", "-c", &script];
    common::run(Command::new("unshare").args(script), Limit::secs(60)).expect_code(0);
    let image = text(&fs.dir().join("up/self.img"));
    common::output("e2fsck", &["-fn", &image]);
}

#[test]
fn an_image_that_would_wait_for_the_thaw_is_refused_before_the_freeze_where_nothing_holds_it() {
    let fs = filled!(Spec {
        mib: 160,
        ..Spec::default()
    });
    fs::write(fs.dir().join("noise"), Random(8).bytes(24 << 20)).expect("noise");
    let inner = fs.dir().join("inner");
    common::output("truncate", &["-s", "80M", &text(&inner)]);
    common::mkfs_ext4(&inner);
    common::output("fallocate", &["-l", "80M", &text(&inner)]);
    let device = LoopDevice::attach(&inner, 512);
    let above = Mounted::new("ext4", device.path(), "rw");
    let out = text(&above.dir().join("image.gz"));
    for more in [
        &["-z", "none"][..],
        &[],
        &["-z", "none", "--precopy", "off"],
    ] {
        let mut floe = require_floe!();
        floe.args(["dump", "-q", "--spool", "off", "--stall", "5s", "-o", &out]);
        floe.args(more).arg(fs.dir());
        let run = common::run(&mut floe, Limit::secs(60)).expect_code(4);
        assert!(run.stderr_text().contains("nothing was frozen"), "{run}");
    }
    // Where there is room it waits there.
    let mut floe = require_floe!();
    floe.args(["dump", "-q", "-o", &out]).arg(fs.dir());
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    common::output("gzip", &["-t", &out]);
}

#[test]
fn offsets_beyond_four_gib_and_two_tib_are_right() {
    require!(common::have("mke2fs"), "mke2fs");
    let scratch = Scratch::new();
    for (size, name) in [("5G", "five"), ("2200G", "large")] {
        let image = scratch.join(name);
        let file = fs::File::create(&image).expect("image");
        drop(file);
        common::output("truncate", &["-s", size, &text(&image)]);
        common::output(
            "mke2fs",
            &[
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                "lazy_itable_init=1,nodiscard",
                "-i",
                "4194304",
                "-J",
                "size=4",
                &text(&image),
            ],
        );
        // A file whose blocks lie in the last group.
        let content = scratch.join("content");
        fs::write(&content, b"far away ".repeat(20_000)).expect("content");
        common::output(
            "debugfs",
            &[
                "-w",
                "-R",
                &format!("write {} far", content.display()),
                &text(&image),
            ],
        );
        let raw = scratch.join("raw");
        dump_to(&mut require_floe!(), &["-z", "none", &text(&image)], &raw).expect_code(0);
        assert_eq!(
            fs::metadata(&raw).expect("raw").len(),
            fs::metadata(&image).expect("image").len()
        );
        let out = scratch.join("out");
        common::output(
            "debugfs",
            &["-R", &format!("dump far {}", out.display()), &text(&raw)],
        );
        assert_eq!(
            fs::read(&out).expect("out"),
            fs::read(&content).expect("content"),
            "{size}"
        );
        fs::remove_file(&raw).expect("raw");
    }
}

#[test]
fn free_space_is_a_thousandth_of_its_size_in_the_stream() {
    require!(common::have("mke2fs"), "mke2fs");
    let scratch = Scratch::new();
    let image = scratch.join("image");
    drop(fs::File::create(&image).expect("image"));
    common::output("truncate", &["-s", "2G", &text(&image)]);
    common::output(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-E", "nodiscard", &text(&image)],
    );
    let gz = scratch.join("gz");
    dump_to(&mut require_floe!(), &[&text(&image)], &gz).expect_code(0);
    let length = fs::metadata(&gz).expect("gz").len();
    assert!(
        length < (2 << 30) / 950,
        "{length} bytes for 2 GiB of nothing"
    );
    common::output("gzip", &["-t", &text(&gz)]);
}

#[test]
fn bad_command_lines_are_exit_2_and_touch_nothing() {
    for args in [
        &["dump", "--level", "0"][..],
        &["dump", "--level", "x"],
        &["dump", "-z", "lzma"],
        &["dump", "--spool", "lots"],
        &["dump", "--stall", "0"],
        &["dump", "--nonsense"],
        &["dump", "/", "/"],
        &["dump", "--whole", "--require-map"],
        &["dump", "-j", "0"],
        &["dump", "-o"],
        &["nonsense"],
    ] {
        let run = common::run(require_floe!().args(args), Limit::secs(20)).expect_code(2);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
        assert!(run.stdout.is_empty(), "{run}");
    }
    let run = common::run(
        require_floe!().args(["dump", "/nowhere/at/all"]),
        Limit::secs(20),
    );
    assert!(matches!(run.code, Some(1 | 4)), "{run}");
    assert!(
        run.stderr_text().starts_with("floe: /nowhere/at/all: "),
        "{run}"
    );
    for special in ["/dev/null", "/dev/zero"] {
        let run =
            common::run(require_floe!().args(["dump", special]), Limit::secs(20)).expect_code(4);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
    }
}

#[test]
fn a_dash_as_output_is_stdout_and_no_file() {
    let fs = filled!(Spec {
        mib: 16,
        ..Spec::default()
    });
    let scratch = Scratch::new();
    let mut floe = require_floe!();
    floe.args(["dump", "-q", &text(fs.dir()), "-o", "-"])
        .current_dir(scratch.path());
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert!(run.stdout.starts_with(&[0x1f, 0x8b]), "{run}");
    assert!(!scratch.join("-").exists());
}
