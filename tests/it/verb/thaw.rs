//! `floe thaw`: the way out. `--all` is tried in namespaces of its own, so that it does not thaw what other tests froze.

use std::fs;
use std::path::Path;
use std::process::Command;

use floe::device::{Access, Device};

use crate::common::{self, Limit, LoopDevice, LoopFs, Scratch, Spec, text};

fn ext4() -> Option<LoopFs> {
    LoopFs::make(Spec {
        mib: 32,
        ..Spec::default()
    })
    .ok()
}

#[test]
fn a_frozen_filesystem_is_thawed_by_mount_point_file_and_device() {
    let _ = require_floe!();
    let fs = require_some!(ext4(), "root and mkfs.ext4");
    let file = fs.dir().join("file");
    fs::write(&file, b"x").expect("write");
    for path in [fs.dir(), &file, fs.device()] {
        common::freeze(fs.dir());
        let run =
            common::run(require_floe!().arg("thaw").arg(path), Limit::secs(20)).expect_code(0);
        let text = run.stdout_text();
        assert!(
            text.starts_with("thawed ") && text.lines().count() == 1,
            "{text}"
        );
        common::assert_not_frozen(fs.dir(), "after floe thaw");
    }
}

#[test]
fn what_was_not_frozen_is_no_failure() {
    let _ = require_floe!();
    let fs = require_some!(ext4(), "root and mkfs.ext4");
    for path in [fs.dir(), fs.device()] {
        let run =
            common::run(require_floe!().arg("thaw").arg(path), Limit::secs(20)).expect_code(0);
        assert!(run.stdout.is_empty(), "{run}");
    }
}

#[test]
fn a_filesystem_unmounted_while_frozen_is_thawed_by_its_device_and_let_go() {
    let _ = require_floe!();
    let mut fs = require_some!(ext4(), "root and mkfs.ext4");
    common::freeze(fs.dir());
    common::output("umount", &[&fs.dir().to_string_lossy()]);
    let run = common::run(
        require_floe!().arg("thaw").arg(fs.device()),
        Limit::secs(20),
    )
    .expect_code(0);
    assert!(run.stdout_text().contains("thawed"), "{run}");
    // Nobody holds the device any more: fsck opens it exclusively.
    common::output("e2fsck", &["-fn", &fs.device().to_string_lossy()]);
    let run = common::run(
        require_floe!().arg("thaw").arg(fs.device()),
        Limit::secs(20),
    )
    .expect_code(0);
    assert!(run.stdout.is_empty(), "{run}");
    fs.mount();
    common::assert_not_frozen(fs.dir(), "after floe thaw and a mount");
}

#[test]
fn what_was_unmounted_while_frozen_is_refused_with_the_way_out() {
    let _ = require_floe!();
    require!(
        common::is_root() && common::have("fsfreeze"),
        "root and fsfreeze"
    );
    let scratch = Scratch::new();
    let device = LoopDevice::filled(&scratch, "image", 16, 0);
    common::mkfs_ext4(device.path());
    // In a namespace of its own, so that no neighbour's has a copy of the mount.
    let script = "mount \"$0\" \"$1\" && fsfreeze -f \"$1\" && umount \"$1\"";
    let folder = scratch.join("mnt");
    std::fs::create_dir(&folder).expect("folder");
    let (device, folder) = (text(device.path()), text(&folder));
    common::output("unshare", &["-m", "sh", "-c", script, &device, &folder]);
    let mut runs = Vec::new();
    for words in [&["show"][..], &["dump", "-o", "/dev/shm/no.img.gz"]] {
        let mut floe = require_floe!();
        runs.push(common::run(floe.args(words).arg(&device), Limit::secs(20)));
    }
    common::run(require_floe!().arg("thaw").arg(&device), Limit::secs(20)).expect_code(0);
    for run in runs {
        let run = run.expect_code(4);
        let way = "is in use by another program; close that first (if it was unmounted while frozen: floe thaw --all)";
        assert!(run.stderr_text().contains(way), "{run}");
    }
}

#[test]
fn what_is_no_filesystem_is_refused_or_not_found() {
    let _ = require_floe!();
    let run = common::run(require_floe!().args(["thaw", "/dev/null"]), Limit::secs(20));
    let run = run.expect_code(4);
    assert!(run.stderr_text().contains("nothing was thawed"), "{run}");
    common::run(
        require_floe!().args(["thaw", "/no/such/place"]),
        Limit::secs(20),
    )
    .expect_code(4);
    common::run(require_floe!().arg("thaw"), Limit::secs(20)).expect_code(2);
    common::run(
        require_floe!().args(["thaw", "--all", "/"]),
        Limit::secs(20),
    )
    .expect_code(2);
}

#[test]
fn all_thaws_each_mounted_filesystem_and_names_only_the_frozen_ones() {
    let floe = require_floe!();
    let (one, two) = require_some!(ext4().zip(ext4()), "root and mkfs.ext4");
    let third = require_some!(ext4(), "root and mkfs.ext4");
    require!(Path::new("/proc/self/ns/pid").exists(), "pid namespaces");
    common::freeze(one.dir());
    common::freeze(two.dir());
    // Only these three are to be seen: other tests' mounts are taken out of this namespace, and sysfs shows no devices.
    let script = "mount --make-rprivate /; keep=\"$1 $2 $3\"; shift 3; \
        awk '$3 !~ /^0:/ && $5 != \"/\" { print $5 }' /proc/self/mountinfo | while read -r dir; do \
          case \" $keep \" in *\" $dir \"*) ;; *) umount -l \"$dir\" ;; esac; done; \
        for dir in /sys/class/block /sys/dev/block; do mount -t tmpfs none $dir; done; exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["-m", "-p", "-f", "--mount-proc", "sh", "-c", script, "sh"]);
    shell.args([one.dir(), two.dir(), third.dir()]);
    shell
        .arg(floe.get_program())
        .args(floe.get_args())
        .args(["thaw", "--all"]);
    let run = common::run(&mut shell, Limit::secs(40)).expect_code(0);
    let mut lines: Vec<String> = run.stdout_text().lines().map(str::to_owned).collect();
    let mut expected = [one.dir(), two.dir()].map(|dir| format!("thawed {}", dir.display()));
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected, "{run}");
    common::assert_not_frozen(one.dir(), "after floe thaw --all");
    common::assert_not_frozen(two.dir(), "after floe thaw --all");
}

#[test]
fn a_device_is_thawed_without_proc_and_sys_and_only_what_is_known_is_said_of_it() {
    let floe = require_floe!();
    let fs = require_some!(ext4(), "root and mkfs.ext4");
    let device = fs.device().to_string_lossy().into_owned();
    let within = |hidden: &[&str], path: &Path| {
        let covers = hidden
            .iter()
            .map(|dir| format!("mount -t tmpfs none {dir} && "));
        let script = format!("{}exec \"$@\"", covers.collect::<String>());
        let mut shell = Command::new("unshare");
        shell.args(["-m", "sh", "-c", &script, "sh"]);
        shell.arg(floe.get_program()).args(floe.get_args());
        common::run(shell.arg("thaw").arg(path), Limit::secs(40))
    };
    for hidden in [&["/proc", "/sys"][..], &["/proc"], &["/sys"]] {
        common::freeze(fs.dir());
        let run = within(hidden, fs.device()).expect_code(0);
        assert_eq!(
            run.stdout_text(),
            format!("thawed {device}\n"),
            "{hidden:?}"
        );
        common::assert_not_frozen(fs.dir(), "after floe thaw");
        within(hidden, fs.device()).expect_code(0);
    }
    common::freeze(fs.dir());
    within(&["/proc", "/sys"], fs.dir()).expect_code(0);
    common::assert_not_frozen(fs.dir(), "after floe thaw");
    // What cannot be reached so: the way out is named, and what it is left as.
    let scratch = Scratch::new();
    let other = LoopDevice::filled(&scratch, "other", 8, 0);
    let held = common::patiently(|| Device::open(other.path(), Access::ReadHeld)).expect("held");
    for (hidden, missing) in [
        (&["/proc", "/sys"][..], "without /proc and /sys, which"),
        (&["/proc"], "without /proc, which"),
        (&["/sys"], "without /sys, which"),
    ] {
        let run = within(hidden, other.path()).expect_code(1);
        let line = run.stderr_text();
        for word in [missing, "it still is", "floe thaw /MOUNT/POINT"] {
            assert!(line.contains(word), "{run}");
        }
        assert!(line.lines().count() == 1, "{run}");
    }
    drop(held);
    assert!(
        within(&["/proc", "/sys"], other.path())
            .expect_code(0)
            .stdout
            .is_empty()
    );
}

#[test]
fn a_device_is_thawed_where_few_files_may_be_open_and_it_is_said_where_that_is_not_enough() {
    let floe = require_floe!();
    let fs = require_some!(ext4(), "root and mkfs.ext4");
    let within = |path: &Path| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 20; exec \"$@\"", "sh"]);
        shell.arg(floe.get_program()).args(floe.get_args());
        common::run(shell.arg("thaw").arg(path), Limit::secs(40))
    };
    common::freeze(fs.dir());
    within(fs.device()).expect_code(0);
    common::assert_not_frozen(fs.dir(), "after floe thaw");
    let scratch = Scratch::new();
    let other = LoopDevice::filled(&scratch, "other", 8, 0);
    let held = common::patiently(|| Device::open(other.path(), Access::ReadHeld)).expect("held");
    let run = within(other.path()).expect_code(1);
    assert!(run.stderr_text().contains("ulimit -n"), "{run}");
    drop(held);
}
