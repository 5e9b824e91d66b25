//! At the edges of a machine: loop devices that show less or more than their file, rights and folders that are missing, slips of the
//! hand. What is refused leaves everything as it was, with the same exit code in every verb.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::common::{self, Limit, LoopDevice, LoopFs, Mounted, Run, Scratch, Spec, Writer, text};

/// Runs floe with these words.
fn floe(words: &[&str]) -> Run {
    within(&[], words)
}

/// The same below another command.
fn within(before: &[&str], words: &[&str]) -> Run {
    let path = common::floe_path().expect("FLOE_BIN");
    let path = path.to_string_lossy().into_owned();
    let line = [before, &[path.as_str()], words].concat();
    common::run(Command::new(line[0]).args(&line[1..]), Limit::secs(60))
}

macro_rules! ready {
    () => {
        require!(common::is_root(), "root");
        require!(common::floe_path().is_some(), "FLOE_BIN");
        require!(
            common::runner().is_none(),
            "no runner: floe is started by others"
        );
        require!(
            common::have("mke2fs") && common::have("losetup"),
            "e2fsprogs"
        );
    };
}

/// An ext4 of 8 MiB in a file.
fn image(scratch: &Scratch, name: &str) -> String {
    let path = text(&scratch.join(name));
    common::output("truncate", &["-s", "8M", &path]);
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &path]);
    path
}

#[test]
fn the_end_of_a_file_that_its_loop_device_does_not_show_is_not_forgotten() {
    ready!();
    let scratch = Scratch::new();
    let path = image(&scratch, "image");
    let file = File::options().read(true).write(true).open(&path);
    let file = file.expect("image");
    file.write_all_at(b"verity\0\0 and more", 8 << 20)
        .expect("tail");
    let device = LoopDevice::attach(path.as_ref(), 512);
    let (out, back) = (text(&scratch.join("out")), text(&scratch.join("back")));
    let run = floe(&["dump", &text(device.path()), "-o", &out]).expect_code(4);
    assert!(
        run.stderr_text().contains("all but the last 17 bytes"),
        "{run}"
    );
    // As it is, and the file itself: every byte.
    floe(&["dump", "--whole", &text(device.path()), "-o", &out]).expect_code(0);
    floe(&["verify", &out]).expect_code(0);
    drop(device);
    floe(&["dump", &path, "-o", &out]).expect_code(0);
    floe(&["restore", &out, &back]).expect_code(0);
    assert_eq!(
        fs::read(&path).expect("file"),
        fs::read(&back).expect("back")
    );
    // Mounted, zeros behind it are no reason to refuse.
    file.write_all_at(&[0; 17], 8 << 20).expect("tail");
    let device = LoopDevice::attach(path.as_ref(), 512);
    let mounted = Mounted::new("ext4", device.path(), "rw");
    floe(&["dump", &text(mounted.dir()), "-o", &out]).expect_code(0);
    drop(mounted);
    floe(&["dump", &text(device.path()), "-o", &out]).expect_code(4);
}

#[test]
fn two_loop_devices_over_one_file_are_one_place_and_a_file_out_of_sight_is_no_other() {
    ready!();
    let scratch = Scratch::new();
    let path = image(&scratch, "image");
    let [one, two] = [0, 1].map(|_| LoopDevice::attach(path.as_ref(), 512));
    let pair = format!("{}={}", text(one.path()), text(two.path()));
    let run = floe(&["clone", "--overwrite", &pair]).expect_code(4);
    assert!(run.stderr_text().contains("shares blocks"), "{run}");
    common::output("e2fsck", &["-fn", &path]);
    drop((one, two));
    // Two halves of a file, too: that nobody writes to it meanwhile could not be told.
    common::output("truncate", &["-s", "16M", &path]);
    let one = LoopDevice::attach_with(path.as_ref(), &["--sizelimit", "8388608"]);
    let two = LoopDevice::attach_with(path.as_ref(), &["-o", "8388608"]);
    let pair = format!("{}={}", text(one.path()), text(two.path()));
    floe(&["clone", &pair]).expect_code(4);
    drop((one, two));
    // A file on a mount that only its maker saw: where it is cannot be known, but not on an unused device.
    let target = LoopDevice::filled(&scratch, "target", 8, 0);
    let script = format!(
        "d='{0}/hidden'; mkdir $d && mount -t tmpfs none $d && truncate -s 8M $d/i && mke2fs -q -F -t ext4 $d/i && losetup -f --show $d/i",
        scratch.path().display()
    );
    let mut apart = Command::new("unshare");
    let run = common::run(apart.args(["-m", "sh", "-c", &script]), Limit::secs(20));
    let run = run.expect_code(0);
    let device = run.stdout_text().trim().to_owned();
    let pair = format!("{device}={}", text(target.path()));
    let run = floe(&["clone", &pair]);
    common::output("losetup", &["-d", &device]);
    run.expect_code(0);
    common::output("e2fsck", &["-fn", &text(target.path())]);
}

#[test]
fn what_is_missing_is_4_and_what_may_not_be_done_is_1_in_every_verb() {
    ready!();
    let made = require_ok!(LoopFs::make(Spec {
        mib: 8,
        ..Spec::default()
    }));
    let scratch = Scratch::on_disk();
    let source = image(&scratch, "image");
    let (out, none) = (text(&scratch.join("out")), text(&scratch.join("none")));
    let deep = format!("{none}/x");
    let target = LoopDevice::filled(&scratch, "target", 8, 0);
    let (target, dir) = (text(target.path()), text(made.dir()));
    let (device, pair) = (text(made.device()), format!("d={none}"));
    let (full, from, onto) = (
        format!("d={source}"),
        format!("{none}=/dev/none"),
        format!("{dir}={target}"),
    );
    let (hosts, to) = (format!("@{none}"), format!("{target}=/dev/none"));
    let missing: &[&[&str]] = &[
        &["dump", &none],
        &["dump", "--fs-path", &none],
        &["dump", &source, "-o", &deep],
        &["dump", &source, "-o", &out, "--report", &deep],
        &["dump", &source, "-o", &out, "--spool-file", &deep],
        &["restore", &none, &out],
        &["restore", &source, &deep],
        &["restore", &source, "/dev/none"],
        &["clone", &from],
        &["clone", &to],
        &["clone", "--pairs", &none],
        &["create", &pair, "-o", &out],
        &["create", &full, "-o", &deep],
        &["create", "--disk", &none, &full, "-o", &out],
        &["show", &none],
        &["show", "--identity", &none],
        &["verify", &none],
        &["list", &deep],
        &["thaw", &none],
        &["artifact", &none, "-n", "a", "-t", "b", "-o", &out],
        &["artifact", &source, "-n", "a", "-t", "b", "-o", &deep],
        &["push", &none, "host", &target],
        &["push", &source, &hosts, "--", &target],
        &["pull", &hosts],
        &["pull", "host", "-o", &deep],
        &["pull", "host", "-o", &(deep.clone() + "/")],
    ];
    for words in missing {
        let run = floe(words).expect_code(4);
        let said = run.stderr_text();
        assert_eq!(said.lines().count(), 1, "{run}");
        assert!(!said.contains("os error"), "{run}");
    }
    assert!(!scratch.join("out").exists());
    let on_all: &[&[&str]] = &[
        &["dump", &dir, "-o", &out],
        &["dump", &device, "-o", &out],
        &["restore", &source, &target],
        &["clone", &onto],
        &["thaw", &dir],
        &["thaw", &device],
        &["thaw", "--all"],
    ];
    let may_look: &[&[&str]] = &[&["verify", &source], &["list", &text(scratch.path())]];
    let nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let bound = [
        "setpriv",
        "--bounding-set",
        "-sys_admin",
        "--inh-caps",
        "-sys_admin",
    ];
    let proc = [
        "unshare",
        "-m",
        "sh",
        "-c",
        "umount -R -l /proc; exec \"$@\"",
        "sh",
    ];
    let sys = [
        "unshare",
        "-m",
        "sh",
        "-c",
        "umount -R -l /sys; exec \"$@\"",
        "sh",
    ];
    fs::set_permissions(
        scratch.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("mode");
    for (before, help) in [
        (&nobody[..], "run it as root"),
        (&bound, "CAP_SYS_ADMIN"),
        (&proc, "mount -t proc"),
        (&sys, "mount -t sysfs"),
    ] {
        for words in on_all {
            // The way out needs neither.
            let blind = before == proc || before == sys;
            if blind && words[0] == "thaw" && words[1] != "--all" {
                within(before, words).expect_code(0);
                continue;
            }
            let run = within(before, words).expect_code(1);
            let said = run.stderr_text();
            assert!(said.lines().count() == 1 && said.contains(help), "{run}");
        }
        for words in may_look {
            within(before, words).expect_code(0);
        }
    }
    // Where sysfs shows no device, nobody can tell which of two filesystems lies on the other.
    let other = require_ok!(LoopFs::make(Spec {
        mib: 8,
        ..Spec::default()
    }));
    let (one, two) = (format!("a={dir}"), format!("b={}", text(other.dir())));
    let script = "mount -t tmpfs none /sys/devices; exec \"$@\"";
    let masked = ["unshare", "-m", "sh", "-c", script, "sh"];
    let run = within(&masked, &["create", &one, &two, "-o", &out]).expect_code(1);
    assert!(run.stderr_text().contains("mount -t sysfs"), "{run}");
    let left = fs::read(scratch.join("target")).expect("target");
    assert!(
        left.iter().all(|byte| *byte == 0),
        "a target was written to"
    );
    common::assert_not_frozen(made.dir(), "after all of it");
}

#[test]
fn what_stands_in_the_place_of_a_report_or_an_archive_is_not_lost_by_a_slip() {
    ready!();
    let scratch = Scratch::new();
    let source = image(&scratch, "image");
    let device = LoopDevice::filled(&scratch, "device", 8, 7);
    let out = text(&scratch.join("out"));
    for victim in [source.as_str(), &text(device.path())] {
        let before = fs::read(victim).expect("before");
        let run = floe(&["verify", &source, "--report", victim]).expect_code(4);
        assert!(run.stderr_text().contains("is no report"), "{run}");
        assert!(fs::read(victim).expect("after") == before, "{victim}");
    }
    // An earlier report is replaced.
    for _ in 0..2 {
        floe(&["verify", &source, "--report", &out]).expect_code(0);
    }
    fs::remove_file(&out).expect("remove");
    // A zip archive of others.
    let file = [
        b"PK\x03\x04",
        &[0; 22][..],
        b"\x09\0\0\0document.xml and more",
        &[0; 99],
    ]
    .concat();
    fs::write(&out, &file).expect("write");
    let pair = format!("d={source}");
    // It is called that by every verb.
    for words in [
        &["verify", &out][..],
        &["show", &out],
        &["restore", &out, &pair],
    ] {
        let run = floe(words).expect_code(3);
        let wanted = format!("{out}: a zip archive, but not a snapshot of floe");
        assert!(run.stderr_text().contains(&wanted), "{run}");
    }
    for words in [
        &["create", &pair, "-o", &out][..],
        &["dump", &source, "-o", &out],
    ] {
        let run = floe(words).expect_code(4);
        assert!(
            run.stderr_text().contains("--overwrite replaces it"),
            "{run}"
        );
        assert_eq!(fs::read(&out).expect("read"), file);
    }
    fs::remove_file(&out).expect("remove");
    for words in [
        &["create", &pair, "-o", &out][..],
        &["dump", &source, "-o", &out],
    ] {
        floe(words).expect_code(0);
        floe(words).expect_code(0);
        fs::remove_file(&out).expect("remove");
    }
}

#[test]
fn an_overlay_behind_a_mounted_squashfs_is_frozen_with_it() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mksquashfs"), "mksquashfs");
    let scratch = Scratch::new();
    let (tree, image) = (scratch.join("tree"), scratch.join("firmware"));
    fs::create_dir(&tree).expect("tree");
    common::fill(&tree, 10);
    let (from, to) = (tree.to_string_lossy(), image.to_string_lossy());
    common::output("mksquashfs", &[&from, &to, "-quiet", "-no-progress"]);
    // As OpenWrt lays it out: behind the squashfs, on the next 64 KiB.
    let offset = fs::metadata(&image).expect("image").len().div_ceil(65536) * 65536;
    let file = fs::File::options().write(true).open(&image).expect("image");
    file.set_len(offset + (16 << 20)).expect("room");
    drop(file);
    let partition = LoopDevice::attach(&image, 512);
    let overlay = LoopDevice::attach_with(partition.path(), &["-o", &offset.to_string()]);
    common::output(
        "mkfs.ext4",
        &["-q", "-F", &overlay.path().to_string_lossy()],
    );
    let rom = Mounted::new("squashfs", partition.path(), "ro");
    let data = Mounted::new("ext4", overlay.path(), "rw");
    fs::write(data.dir().join("first"), "before").expect("write");
    let writer = Writer::start(data.dir());
    let (shown, rom_dir) = (
        partition.path().to_string_lossy(),
        rom.dir().to_string_lossy(),
    );
    for (source, precopy) in [(&shown, "auto"), (&rom_dir, "auto"), (&shown, "off")] {
        let (out, part) = (scratch.join("out"), scratch.join("part"));
        let mut dump = common::floe().expect("floe");
        dump.args([
            "dump",
            source,
            "--precopy",
            precopy,
            "-z",
            "none",
            "--overwrite",
        ]);
        dump.args(["--report", "-", "-q", "-o"]).arg(&out);
        let run = common::run(&mut dump, Limit::secs(60)).expect_code(0);
        assert!(
            run.stderr_text().contains("\"consistent\":\"frozen\""),
            "{run}"
        );
        let bytes = fs::read(&out).expect("image");
        fs::write(&part, &bytes[usize::try_from(offset).unwrap()..]).expect("part");
        // Frozen: the journal is empty, and nothing is to be mended.
        let part = part.to_string_lossy();
        let run = common::run(Command::new("e2fsck").args(["-fn", &part]), Limit::secs(60));
        assert_eq!(run.code, Some(0), "{source} {precopy}: {run}");
        let features = common::output("dumpe2fs", &["-h", &part]);
        assert!(
            !features.contains("needs_recovery"),
            "{source} {precopy}: {features}"
        );
        let first = common::output("debugfs", &["-R", "cat /first", &part]);
        assert_eq!(first, "before");
        common::assert_not_frozen(data.dir(), "after the dump");
    }
    drop(writer);
}

#[test]
fn an_output_never_takes_the_name_of_a_file_that_is_attached_nor_of_a_device() {
    ready!();
    let made = require_ok!(LoopFs::make(Spec::default()));
    let scratch = Scratch::new();
    let image = image(&scratch, "image");
    let (mount, behind) = (text(made.dir()), text(made.image()));
    let pair = format!("data={mount}");
    let mut lines: Vec<Vec<&str>> = Vec::new();
    for out in [
        behind.as_str(),
        "/dev/loop99x",
        "/dev/disk-that-is-not-there",
    ] {
        lines.push(vec!["dump", &mount, "-o", out]);
        lines.push(vec!["dump", &mount, "--overwrite", "-o", out]);
        lines.push(vec!["create", &pair, "--overwrite", "-o", out]);
        lines.push(vec![
            "artifact",
            &image,
            "-n",
            "a",
            "-t",
            "b",
            "--overwrite",
            "-o",
            out,
        ]);
    }
    for line in lines {
        let run = floe(&line).expect_code(4);
        let words = run.stderr_text();
        let fits = words.contains("is attached to /dev/loop") || words.contains("no such device");
        assert!(fits && words.contains("nothing was written"), "{run}");
        let out = Path::new(line[line.len() - 1]);
        assert!(out == made.image() || !out.exists(), "{run}");
    }
    // A piece of an older set would go, whatever its number is.
    let set = scratch.join("set");
    fs::create_dir(&set).expect("folder");
    let pieces = text(&set.join("a.gz"));
    for number in ["001", "050"] {
        fs::write(format!("{pieces}.{number}"), b"").expect("piece");
    }
    let attached = format!("{pieces}.050");
    fs::copy(made.image(), &attached).expect("copy");
    let device = common::LoopDevice::attach(Path::new(&attached), 512);
    let run = floe(&[
        "dump",
        &mount,
        "--split",
        "1M",
        "--overwrite",
        "-o",
        &pieces,
    ]);
    let words = run.expect_code(4).stderr_text();
    assert!(words.contains("is attached to /dev/loop"), "{words}");
    assert!(Path::new(&attached).exists());
    drop(device);
    let run = common::shell(
        &format!(
            "{} dump {mount} -q -o /dev/stdout | cat",
            text(&common::floe_path().expect("FLOE_BIN"))
        ),
        Limit::secs(20),
    );
    let words = run.expect_code(4).stderr_text();
    assert!(words.contains("-o - writes to standard output"), "{words}");
}
