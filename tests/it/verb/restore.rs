//! `floe restore` on real loop devices and files: bytes compared with the image, refusals, interruptions, stale data.

use crate::common::{self, Limit, LoopDevice, LoopFs, Scratch, Spec, is_recognised};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A filled, unmounted ext4 in a sparse file.
fn ext4_image(scratch: &Scratch, mib: u64) -> PathBuf {
    let image = scratch.join("image");
    let folder = scratch.join("files");
    fs::create_dir(&folder).expect("folder");
    common::fill(&folder, 60);
    common::sparse(&image, mib * MIB);
    let (image_text, folder) = (image.to_string_lossy(), folder.to_string_lossy());
    // No lazy tables: every block of the image is what it is meant to be.
    let options = "lazy_itable_init=0,lazy_journal_init=0";
    common::output(
        "mkfs.ext4",
        &["-q", "-F", "-E", options, "-d", &folder, &image_text],
    );
    image
}

/// The same image packed by a tool with these arguments.
fn pack(image: &Path, tool: &str, arguments: &[&str]) -> PathBuf {
    let packed = image.with_extension(format!("{tool}.gz"));
    let run = common::run(
        Command::new(tool)
            .args(arguments)
            .arg("-c")
            .arg(image)
            .stdin(Stdio::null()),
        Limit::secs(120),
    )
    .expect_code(0);
    fs::write(&packed, run.stdout).expect("packed image");
    packed
}

/// Asserts that the first bytes of a device are those of a file.
#[track_caller]
fn assert_holds(device: &Path, image: &Path) {
    let length = fs::metadata(image).expect("image").len();
    let mut wanted = fs::File::open(image).expect("image");
    let mut found = fs::File::open(device).expect("device");
    let mut offset = 0;
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while offset < length {
        let count = usize::try_from((length - offset).min(MIB)).expect("small");
        wanted.read_exact(&mut a[..count]).expect("image");
        found.read_exact(&mut b[..count]).expect("device");
        assert!(
            a[..count] == b[..count],
            "differs within the MiB at {offset}"
        );
        offset += MIB;
    }
}

macro_rules! require_root {
    () => {
        require!(
            common::is_root() && common::have("mkfs.ext4"),
            "root and mkfs.ext4"
        )
    };
}

#[test]
fn raw_and_gzip_images_of_every_packer_come_back_on_a_device() {
    require_root!();
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 48);
    let mut images = vec![image.clone(), pack(&image, "gzip", &["-1"])];
    if common::have("pigz") {
        images.push(pack(&image, "pigz", &["-9"]));
    }
    let target = LoopDevice::filled(&scratch, "target", 50, 0xa5);
    for packed in &images {
        for verify in [false, true] {
            let mut floe = require_floe!();
            floe.arg("restore").arg(packed).arg(target.path());
            floe.arg("--overwrite").args(verify.then_some("--verify"));
            let run = common::run(&mut floe, Limit::secs(120)).expect_code(0);
            let last = run.stderr_text();
            assert!(last.contains("restored 50331648 bytes (ext4)"), "{run}");
            assert_holds(target.path(), &image);
        }
    }
    // What lies beyond the image's end is left alone.
    let mut tail = vec![0; 4096];
    let file = fs::File::open(target.path()).expect("device");
    file.read_exact_at(&mut tail, 49 * MIB).expect("device");
    assert!(tail.iter().all(|byte| *byte == 0xa5));
}

#[test]
fn several_gzip_members_and_zero_padding_are_one_image() {
    require_root!();
    let mut floe = require_floe!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 16);
    let whole = fs::read(&image).expect("image");
    let (first, second) = whole.split_at(5_000_001);
    let mut stream = Vec::new();
    for part in [first, second] {
        let mut gzip = Command::new("gzip");
        let run = common::run_with_input(gzip.arg("-c"), part, Limit::secs(60));
        stream.extend(run.expect_code(0).stdout);
    }
    stream.extend([0; 3000]);
    let target = scratch.join("new");
    floe.args(["restore", "-"]).arg(&target);
    common::run_with_input(&mut floe, &stream, Limit::secs(60)).expect_code(0);
    assert!(fs::read(&target).expect("target") == whole);
    let mut floe = require_floe!();
    stream.push(7);
    floe.args(["restore", "--overwrite", "-"]).arg(&target);
    let run = common::run_with_input(&mut floe, &stream, Limit::secs(60)).expect_code(3);
    assert!(
        run.stderr_text()
            .contains("after the end of the gzip stream"),
        "{run}"
    );
}

#[test]
fn a_new_file_is_sparse_and_an_existing_one_needs_overwrite() {
    require_root!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 64);
    let target = scratch.join("new");
    let mut floe = require_floe!();
    floe.arg("restore").arg(&image).arg(&target);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert_holds(&target, &image);
    let blocks = fs::metadata(&target).expect("target").blocks();
    assert!(blocks * 512 < 32 * MIB, "{blocks} sectors are allocated");
    let mut floe = require_floe!();
    floe.arg("restore").arg(&image).arg(&target);
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(4);
    assert!(run.stderr_text().contains("--overwrite"), "{run}");
    fs::write(&target, b"my notes").expect("write");
    let mut floe = require_floe!();
    floe.arg("restore").arg(&image).arg(&target);
    common::run(&mut floe, Limit::secs(60)).expect_code(4);
    assert_eq!(fs::read(&target).expect("target"), b"my notes");
    fs::write(&target, vec![9; 80 << 20]).expect("write");
    let mut floe = require_floe!();
    floe.args(["restore", "--overwrite", "--verify"]);
    common::run(floe.arg(&image).arg(&target), Limit::secs(60)).expect_code(0);
    assert_holds(&target, &image);
}

#[test]
fn stale_data_under_free_space_is_gone_unless_skip_free_keeps_it() {
    require_root!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 64);
    let target = LoopDevice::filled(&scratch, "target", 64, 0x5a);
    let count_stale = || {
        let bytes = fs::read(target.path()).expect("device");
        bytes
            .chunks(4096)
            .filter(|block| block.iter().all(|byte| *byte == 0x5a))
            .count()
    };
    let mut floe = require_floe!();
    floe.args(["restore", "--skip-free", "--verify", "--report", "-"]);
    let run = common::run(floe.arg(&image).arg(target.path()), Limit::secs(60)).expect_code(0);
    let text = run.stderr_text();
    assert!(text.contains("\"skipped_free\":true"), "{run}");
    assert!(text.contains("free and left as it was"), "{run}");
    assert!(count_stale() > 2000, "{} stale blocks", count_stale());
    // Nothing stale is owned: neither by a file, nor as journal, nor as inode table.
    let device_text = target.path().to_string_lossy().into_owned();
    common::output("e2fsck", &["-fn", &device_text]);
    let journal = common::output("debugfs", &["-R", "cat <8>", &image.to_string_lossy()]);
    let kept = common::output("debugfs", &["-R", "cat <8>", &device_text]);
    assert!(journal == kept, "the journal holds stale blocks");
    let folder = common::tree(&scratch.join("files"));
    {
        let mounted = common::Mounted::new("ext4", target.path(), "ro");
        common::assert_same_tree(&folder, &common::tree(mounted.dir()));
    }
    let mut floe = require_floe!();
    floe.args(["restore", "--overwrite"]);
    common::run(floe.arg(&image).arg(target.path()), Limit::secs(60)).expect_code(0);
    assert_eq!(count_stale(), 0);
    assert_holds(target.path(), &image);
}

#[test]
fn a_used_target_is_refused_by_name_and_nothing_is_written() {
    require_root!();
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 16);
    let fs_on_target = require_some!(LoopFs::make(Spec::default()).ok(), "ext4 in this kernel");
    fs_on_target.fill(10);
    let before = common::tree(fs_on_target.dir());
    let refused = |target: &Path, word: &str| {
        let mut floe = common::floe().expect("checked above");
        floe.args(["restore", "--overwrite"])
            .arg(&image)
            .arg(target);
        let run = common::run(&mut floe, Limit::secs(30)).expect_code(4);
        let text = run.stderr_text();
        assert!(
            text.contains(word) && text.contains("nothing was written"),
            "{run}"
        );
        assert_eq!(text.lines().count(), 1, "{run}");
    };
    refused(fs_on_target.device(), "mounted");
    refused(fs_on_target.image(), "attached to");
    refused(
        Path::new("/dev/null"),
        "neither a block device nor a regular file",
    );
    refused(Path::new("/dev/no-such-device"), "does not exist");
    refused(&scratch.join("no/such/folder"), "No such file");
    refused(&image, "the image itself");
    common::assert_same_tree(&before, &common::tree(fs_on_target.dir()));

    let small = LoopDevice::filled(&scratch, "small", 8, 0x11);
    refused(small.path(), "too small");
    let read_only = LoopDevice::filled(&scratch, "read-only", 20, 0x11);
    let name = read_only.path().to_string_lossy().into_owned();
    common::output("blockdev", &["--setro", &name]);
    refused(read_only.path(), "read-only");
    common::output("blockdev", &["--setrw", &name]);
    let over_image = LoopDevice::attach(&image, 512);
    refused(over_image.path(), "the image itself");
    let bytes = fs::read(small.path()).expect("device");
    assert!(bytes.iter().all(|byte| *byte == 0x11));
}

#[test]
fn active_swap_is_refused() {
    require_root!();
    let mut floe = require_floe!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 8);
    let swap = LoopDevice::filled(&scratch, "swap", 16, 0);
    let name = swap.path().to_string_lossy().into_owned();
    common::output("mkswap", &[&name]);
    let on = Command::new("swapon")
        .arg(&name)
        .stderr(Stdio::null())
        .status();
    require!(
        on.is_ok_and(|status| status.success()),
        "a kernel with swap"
    );
    floe.args(["restore", "--overwrite"])
        .arg(&image)
        .arg(swap.path());
    let run = common::run(&mut floe, Limit::secs(30));
    common::output("swapoff", &[&name]);
    let run = run.expect_code(4);
    assert!(run.stderr_text().contains("swap"), "{run}");
}

#[test]
fn a_filesystem_or_partition_table_on_the_target_needs_overwrite() {
    require_root!();
    drop(require_floe!());
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 8);
    let target = LoopDevice::filled(&scratch, "target", 16, 0);
    let name = target.path().to_string_lossy().into_owned();
    let refused = |word: &str| {
        let mut floe = common::floe().expect("checked above");
        let run = common::run(
            floe.arg("restore").arg(&image).arg(target.path()),
            Limit::secs(30),
        );
        let run = run.expect_code(4);
        let text = run.stderr_text();
        assert!(text.contains(word) && text.contains("--overwrite"), "{run}");
    };
    common::output("mkfs.ext4", &["-q", "-F", "-L", "mine", &name]);
    refused("ext4, label mine");
    if common::have("sfdisk") {
        let script = format!("wipefs -aq {name}; echo 'label: gpt' | sfdisk -q --no-reread {name}");
        common::shell(&script, Limit::secs(30)).expect_code(0);
        refused("partition table (gpt)");
    }
}

#[test]
fn a_truncated_or_broken_image_is_exit_3_and_leaves_nothing_recognisable() {
    require_root!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 32);
    let raw = fs::read(&image).expect("image");
    let packed = fs::read(pack(&image, "gzip", &["-1"])).expect("packed");
    let mut wrong = packed.clone();
    let place = wrong.len() - 6;
    wrong[place] ^= 1;
    let cases: [(&str, &[u8]); 4] = [
        ("raw", &raw[..20 << 20]),
        ("half", &packed[..packed.len() / 2]),
        ("trailer", &packed[..packed.len() - 3]),
        ("checksum", &wrong),
    ];
    let target = LoopDevice::filled(&scratch, "target", 32, 0);
    let name = target.path().to_string_lossy().into_owned();
    for (case, bytes) in cases {
        common::mkfs_ext4(&name);
        let mut floe = require_floe!();
        floe.args(["restore", "--overwrite", "-"])
            .arg(target.path());
        let run = common::run_with_input(&mut floe, bytes, Limit::secs(60)).expect_code(3);
        assert!(run.stderr_text().contains("not usable"), "{case}: {run}");
        assert!(!is_recognised(target.path()), "{case}");
        let shown = common::run(require_floe!().args(["show", &name]), Limit::secs(20));
        assert!(
            shown.stdout_text().contains("none that is known"),
            "{case}: {shown}"
        );
    }
    // From a file the length is known at once: nothing is written at all.
    common::mkfs_ext4(&name);
    let short = scratch.join("short");
    fs::write(&short, &raw[..20 << 20]).expect("write");
    let mut floe = require_floe!();
    floe.args(["restore", "--overwrite"])
        .arg(&short)
        .arg(target.path());
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(3);
    assert!(run.stderr_text().contains("nothing was written"), "{run}");
    assert!(is_recognised(target.path()));
}

#[test]
fn a_restore_that_is_killed_midway_leaves_nothing_recognisable() {
    require_root!();
    drop(require_floe!());
    let scratch = Scratch::new();
    let kinds = [
        ("ext4", &["-q", "-F"][..]),
        ("xfs", &["-q", "-f"]),
        ("btrfs", &["-q", "-f"]),
    ];
    for (kind, options) in kinds {
        let mkfs = format!("mkfs.{kind}");
        if !common::have(&mkfs) {
            common::skip(&mkfs);
            continue;
        }
        let image = scratch.join(format!("{kind}.img"));
        common::sparse(&image, 320 * MIB);
        let image_text = image.to_string_lossy().into_owned();
        common::run(
            Command::new(&mkfs).args(options).arg(&image_text),
            Limit::secs(60),
        )
        .expect_code(0);
        let target = LoopDevice::filled(&scratch, kind, 320, 0);
        for signal in ["TERM", "INT", "HUP", "KILL"] {
            common::run(
                Command::new(&mkfs).args(options).arg(target.path()),
                Limit::secs(60),
            )
            .expect_code(0);
            let mut floe = common::floe().expect("checked above");
            let mut child = floe
                .args(["restore", "--overwrite", "-"])
                .arg(target.path())
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("floe");
            // 100 MiB, so that the copies of superblocks in the middle are written, then the reader stalls.
            let mut stdin = child.stdin.take().expect("piped");
            let mut source = fs::File::open(&image).expect("image").take(100 * MIB);
            std::io::copy(&mut source, &mut stdin).expect("floe reads");
            std::thread::sleep(Duration::from_millis(300));
            common::signal(child.id(), signal);
            let status =
                common::wait_for(&mut child, Duration::from_secs(5)).expect("dies at once");
            let number = std::os::unix::process::ExitStatusExt::signal(&status);
            assert!(number.is_some(), "{kind} {signal}: {status}");
            let mut text = String::new();
            let mut stderr = child.stderr.take().expect("piped");
            stderr.read_to_string(&mut text).expect("stderr");
            assert!(
                signal == "KILL" || text.contains("not usable"),
                "{kind} {signal}: {text}"
            );
            assert!(!is_recognised(target.path()), "{kind} {signal}");
            drop(stdin);
        }
    }
}

#[test]
fn an_image_beyond_four_gib_with_data_at_both_ends_comes_back() {
    require_root!();
    let scratch = Scratch::new();
    let image = scratch.join("large");
    let file = fs::File::create(&image).expect("image");
    file.set_len((5 << 30) + 12_288).expect("sparse");
    common::output(
        "mkfs.ext4",
        &["-q", "-F", "-m", "0", &image.to_string_lossy(), "8M"],
    );
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .expect("image");
    file.set_len((5 << 30) + 12_288).expect("sparse");
    file.write_all_at(b"near the end", (5 << 30) + 4096)
        .expect("write");
    file.write_all_at(b"over four GiB", (4 << 30) + 77)
        .expect("write");
    let target = scratch.join("target");
    let mut floe = require_floe!();
    let run = common::run(
        floe.arg("restore").arg(&image).arg(&target),
        Limit::secs(120),
    )
    .expect_code(0);
    assert!(
        run.stderr_text().contains("restored 5368721408 bytes"),
        "{run}"
    );
    let mut found = fs::File::open(&target).expect("target");
    assert_eq!(
        found.seek(SeekFrom::End(0)).expect("seek"),
        (5 << 30) + 12_288
    );
    for (place, wanted) in [
        ((5 << 30) + 4096, &b"near the end"[..]),
        ((4 << 30) + 77, b"over four GiB"),
    ] {
        let mut bytes = vec![0; wanted.len()];
        found.read_exact_at(&mut bytes, place).expect("target");
        assert_eq!(bytes, wanted);
    }
}

#[test]
fn a_flashable_disk_image_moves_its_backup_table_to_the_end_of_a_larger_disk() {
    require_root!();
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let image = scratch.join("disk");
    common::sparse(&image, 40 * MIB);
    let image_text = image.to_string_lossy();
    let script = format!("printf 'label: gpt\\n,16M,L\\n,,L\\n' | sfdisk -q {image_text}");
    common::shell(&script, Limit::secs(30)).expect_code(0);
    let target = LoopDevice::filled(&scratch, "target", 64, 0);
    let mut floe = require_floe!();
    floe.args(["restore", "--verify"])
        .arg(&image)
        .arg(target.path());
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert!(run.stderr_text().contains("(gpt)"), "{run}");
    let table = common::shell(
        &format!(
            "sfdisk --verify {0} 2>&1; sfdisk -d {0}",
            target.path().display()
        ),
        Limit::secs(30),
    )
    .expect_code(0)
    .stdout_text();
    assert!(
        !table.contains("corrupt") && table.contains("No errors detected"),
        "{table}"
    );
    // Smaller than the table states: refused before anything is written.
    let small = LoopDevice::filled(&scratch, "small", 39, 0);
    let mut floe = require_floe!();
    let run = common::run(
        floe.arg("restore").arg(&image).arg(small.path()),
        Limit::secs(60),
    );
    assert!(run.expect_code(4).stderr_text().contains("too small"));
}

#[test]
fn the_report_has_the_figures_and_quiet_is_silent() {
    require_root!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 16);
    let (target, report) = (scratch.join("new"), scratch.join("report"));
    let mut floe = require_floe!();
    floe.args(["restore", "-q", "--report"])
        .arg(&report)
        .arg(&image)
        .arg(&target);
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert!(run.stderr.is_empty() && run.stdout.is_empty(), "{run}");
    let text = fs::read_to_string(&report).expect("report");
    for key in [
        "target",
        "device",
        "filesystem",
        "size_bytes",
        "written_bytes",
        "zeroed_bytes",
        "total_ms",
        "crc32",
        "verified",
        "skipped_free",
    ] {
        assert!(text.contains(&format!("\"{key}\":")), "{key}: {text}");
    }
    require!(common::have("python3"), "python3");
    let script = "import json, sys, zlib; r = json.load(open(sys.argv[1])); \
        data = open(sys.argv[2], 'rb').read(); \
        assert r['size_bytes'] == len(data) and r['crc32'] == '%08x' % zlib.crc32(data); \
        assert r['written_bytes'] + r['zeroed_bytes'] == len(data), r";
    common::output(
        "python3",
        &[
            "-c",
            script,
            &report.to_string_lossy(),
            &image.to_string_lossy(),
        ],
    );
}

#[test]
fn the_command_line_is_checked_before_anything_is_touched() {
    let scratch = Scratch::new();
    let target = scratch.join("target");
    fs::write(&target, b"kept").expect("write");
    let target = target.to_string_lossy().into_owned();
    let cases: [&[&str]; 5] = [
        &["restore"],
        &["restore", "/dev/null"],
        &["restore", "a", "b", "c"],
        &["restore", "--no-such-option", "a", "b"],
        &["restore", "a", "b", "--report"],
    ];
    for case in cases {
        let run = common::run(require_floe!().args(case), Limit::secs(20)).expect_code(2);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
    }
    let run =
        common::run(require_floe!().args(["restore", "--help"]), Limit::secs(20)).expect_code(0);
    assert!(run.stdout_text().contains("--overwrite"), "{run}");
    let run = common::run(
        require_floe!().args(["restore", "/no/such/image", &target]),
        Limit::secs(20),
    );
    assert!(
        run.expect_code(4)
            .stderr_text()
            .contains("/no/such/image: open: No such file")
    );
    for (bytes, word) in [
        (&b"\xfd7zXZ\0\0\0"[..], "xz -dc"),
        (b"PK\x03\x04aaaa", "zip"),
        (b"", "empty"),
    ] {
        let image = scratch.join("image");
        fs::write(&image, bytes).expect("write");
        let mut floe = require_floe!();
        let run = common::run(
            floe.arg("restore").arg(&image).arg(&target),
            Limit::secs(20),
        );
        assert!(
            matches!(run.code, Some(3 | 4)) && run.stderr_text().contains(word),
            "{run}"
        );
    }
    assert_eq!(fs::read(&target).expect("target"), b"kept");
}

#[test]
fn what_is_said_to_help_after_an_interruption_helps_where_the_target_is_a_file() {
    require_mkfs!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 32);
    drop(require_floe!());
    let target = scratch.join("new");
    let interrupted = || {
        let mut floe = common::floe().expect("floe");
        let mut child = floe
            .args(["restore", "-"])
            .arg(&target)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("floe");
        let mut stdin = child.stdin.take().expect("piped");
        let mut source = fs::File::open(&image).expect("image").take(20 * MIB);
        std::io::copy(&mut source, &mut stdin).expect("floe reads");
        std::thread::sleep(Duration::from_millis(500));
        common::signal(child.id(), "INT");
        common::wait_for(&mut child, Duration::from_secs(5)).expect("dies at once");
        let mut text = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut text).expect("stderr");
        text
    };
    let restored = |more: Option<&str>, code: i32| {
        let mut floe = common::floe().expect("floe");
        floe.arg("restore").arg(&image).arg(&target).args(more);
        common::run(&mut floe, Limit::secs(60)).expect_code(code);
    };
    // What was made goes again.
    let text = interrupted();
    assert!(text.contains("made for it is gone again"), "{text}");
    assert!(!target.exists(), "{text}");
    restored(None, 0);
    // What was there stays.
    fs::write(&target, b"").expect("target");
    let text = interrupted();
    let helps = "not usable: its beginning is zeroed; the same command with --overwrite repairs it";
    assert!(text.contains(helps), "{text}");
    restored(None, 4);
    restored(Some("--overwrite"), 0);
    assert_holds(&target, &image);
}

#[test]
fn an_image_that_is_mounted_where_nobody_writes_lies_still() {
    require!(
        common::is_root() && common::have("mksquashfs"),
        "root, mksquashfs"
    );
    let _ = require_floe!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 4);
    let root = scratch.join("root.squashfs");
    let words = [&image, &root].map(|path| path.to_string_lossy().into_owned());
    common::output("mksquashfs", &[&words[0], &words[1], "-quiet"]);
    // A loop device that could be written to.
    let mounted = common::Mounted::new("squashfs", &root, "");
    let target = scratch.join("target").to_string_lossy().into_owned();
    common::expect_floe(&["restore", &words[1], &target], 0);
    common::expect_floe(&["verify", &words[1]], 0);
    drop(mounted);
    let mounted = common::Mounted::new("ext4", &image, "");
    common::expect_floe(&["verify", &words[0]], 4);
    drop(mounted);
}

#[test]
fn what_a_raw_image_that_was_cut_in_a_pipe_leaves_is_said_with_what_repairs_it() {
    require_mkfs!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 8);
    let target = scratch.join("target");
    fs::write(&target, "").expect("target");
    let script = format!(
        "head -c 5M {} | {} restore - {}",
        image.display(),
        require_some!(common::floe_shell_words(), "FLOE_BIN"),
        target.display()
    );
    let run = common::shell(&script, Limit::secs(60)).expect_code(3);
    assert!(run.stderr_text().contains("repairs it"), "{run}");
}

#[test]
fn what_boards_start_from_and_others_keep_is_not_written_over_without_a_word() {
    require_mkfs!();
    require!(common::is_root(), "root");
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 8);
    let image = image.to_string_lossy().into_owned();
    let device = common::LoopDevice::filled(&scratch, "target", 16, 7);
    let target = device.path().to_string_lossy().into_owned();
    for (at, magic, what) in [
        (0, b"ANDROID!".as_slice(), "an Android boot image"),
        (0, b"\x27\x05\x19\x56", "a U-Boot image"),
        (0x38, b"ARM\x64", "an arm64 kernel (Image)"),
        (0x8001, b"CD001", "an ISO 9660 filesystem"),
        (3, b"NTFS    ", "an NTFS filesystem"),
        (0x4014, b"\0\0\0\x07version\0", "a member of a ZFS pool"),
        (0x10000, b"\x01\x16\x19\x70\0\0\0\x01", "a GFS2 filesystem"),
    ] {
        let noise = common::Random(9).bytes(1 << 20);
        let file = fs::File::options()
            .write(true)
            .open(&target)
            .expect("device");
        file.write_all_at(&noise, 0).expect("noise");
        file.write_all_at(magic, at).expect("magic");
        drop(file);
        for line in [
            &["restore", &image, &target][..],
            &["restore", &image, &target, "--dry-run"],
        ] {
            let text = common::expect_floe(line, 4).stderr_text();
            let wanted = format!("holds {what}; --overwrite writes over it");
            assert!(text.contains(&wanted), "{text}");
        }
    }
    common::expect_floe(&["restore", &image, &target, "--overwrite"], 0);
    assert_holds(device.path(), image.as_ref());
}
