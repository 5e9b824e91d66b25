//! Whoever is killed or stopped, floe or its guardian, whenever: what was frozen is thawed.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Driver, NEVER, assert_unlocked, command};
use crate::common::{self, LoopFs, Random, Spec, Writer};

#[test]
fn a_freeze_and_a_thaw_end_well_and_say_how_long() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "second", NEVER, NEVER, &[fs.dir()]));
    let line = driver.line(10).expect("a line");
    driver.expect(0, "");
    let ms: u64 = line
        .strip_prefix("thawed ")
        .expect(&line)
        .parse()
        .expect("a number");
    assert!((900..5000).contains(&ms), "{ms}");
    common::assert_not_frozen(fs.dir(), "after the end");
    assert_unlocked(fs.dir(), Duration::ZERO);
}

#[test]
fn while_frozen_a_write_waits() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "second", NEVER, NEVER, &[fs.dir()]));
    let began = Instant::now();
    fs::write(fs.dir().join("file"), b"x").expect("write");
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    driver.expect(0, "");
}

#[test]
fn sigkill_while_frozen_thaws_within_a_second() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    driver.signal("KILL");
    let (_, text) = driver.end(5);
    common::assert_not_frozen(fs.dir(), "after SIGKILL");
    assert_unlocked(fs.dir(), Duration::from_secs(1));
    assert!(text.contains("thawed"), "{text}");
}

macro_rules! kill_on {
    ($name:ident, $kind:literal, $mib:literal) => {
        #[test]
        fn $name() {
            let driver = require_driver!();
            let spec = Spec {
                kind: $kind,
                mib: $mib,
                ..Spec::default()
            };
            let missing = concat!("mkfs.", $kind, " and ", $kind, " in this kernel");
            let fs = require_some!(LoopFs::make(spec).ok(), missing);
            fs::write(fs.dir().join("dirty"), vec![7; 1 << 20]).expect("write");
            let mut driver =
                Driver::frozen(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
            driver.signal("KILL");
            driver.end(5);
            common::assert_not_frozen(fs.dir(), $kind);
            assert_unlocked(fs.dir(), Duration::from_secs(1));
        }
    };
}
kill_on!(ext2_is_thawed_after_a_kill, "ext2", 32);
kill_on!(ext3_is_thawed_after_a_kill, "ext3", 32);
kill_on!(xfs_is_thawed_after_a_kill, "xfs", 320);
kill_on!(btrfs_is_thawed_after_a_kill, "btrfs", 128);
kill_on!(f2fs_is_thawed_after_a_kill, "f2fs", 64);
kill_on!(jfs_is_thawed_after_a_kill, "jfs", 32);

#[test]
fn sigkill_thaws_also_when_a_thread_of_floe_hangs_in_a_write_to_the_frozen_filesystem() {
    let driver = require_driver!();
    let fs = require_ext4!();
    for name in ["KILL", "TERM"] {
        let mut driver = Driver::frozen(&mut command(&driver, "stuck", NEVER, NEVER, &[fs.dir()]));
        thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        driver.signal(name);
        // It cannot end before the thaw: its thread is in state D until then.
        driver.end(1);
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        common::assert_not_frozen(fs.dir(), "after a kill with a hanging writer");
        assert_unlocked(fs.dir(), Duration::from_secs(1));
    }
}

#[test]
fn sigkill_at_random_moments_never_leaves_it_frozen() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let _serial = common::serial();
    let _writer = Writer::start(fs.dir());
    let rounds: u32 = std::env::var("FLOE_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100);
    let mut random = Random(0x5eed_0f10);
    for round in 0..rounds {
        let mut command = command(&driver, "loop", NEVER, NEVER, &[fs.dir()]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("driver");
        thread::sleep(Duration::from_micros(random.below(60_000)));
        child.kill().expect("kill");
        child.wait().expect("wait");
        common::assert_not_frozen(fs.dir(), &format!("after kill {round}"));
        assert_unlocked(fs.dir(), Duration::from_secs(1));
    }
}

#[test]
fn sigkill_of_the_whole_process_group_is_survived_by_the_guardian() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut command = command(&driver, "hold", NEVER, NEVER, &[fs.dir()]);
    let mut driver = Driver::frozen(command.process_group(0));
    common::output("kill", &["-KILL", "--", &format!("-{}", driver.pid())]);
    let (status, _) = driver.end(5);
    assert_eq!(status.signal(), Some(9));
    common::assert_not_frozen(fs.dir(), "after a group kill");
}

#[test]
fn each_fatal_signal_thaws_and_is_what_floe_dies_by() {
    let driver = require_driver!();
    let fs = require_ext4!();
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let mut driver = Driver::frozen(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
        driver.signal(name);
        let (status, _) = driver.end(2);
        assert_eq!(status.signal(), Some(number), "{status:?}");
        common::assert_not_frozen(fs.dir(), name);
    }
}

#[test]
fn under_nohup_a_hangup_changes_nothing() {
    let path = require_driver!();
    let fs = require_ext4!();
    let inner = command(&path, "second", NEVER, NEVER, &[fs.dir()]);
    let mut nohup = Command::new("nohup");
    nohup.arg(inner.get_program()).args(inner.get_args());
    nohup
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut driver = Driver::frozen(&mut nohup);
    driver.signal("HUP");
    driver.expect(0, "");
}

#[test]
fn a_killed_guardian_makes_floe_thaw_and_fail() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    common::signal(driver.guard(), "KILL");
    driver.expect(1, "guardian");
    common::assert_not_frozen(fs.dir(), "after the guardian was killed");
}

#[test]
fn a_stopped_guardian_is_woken_and_the_freeze_goes_on() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    common::signal(driver.guard(), "STOP");
    thread::sleep(Duration::from_millis(1500));
    let stat = fs::read_to_string(format!("/proc/{}/stat", driver.guard()))
        .expect("the guardian is there");
    assert!(!stat.contains(") T "), "still stopped: {stat}");
    driver.signal("TERM");
    assert_eq!(driver.end(2).0.signal(), Some(15));
    common::assert_not_frozen(fs.dir(), "afterwards");
}

/// The guardian's cgroup, where cgroup v2 lets it have one.
fn cgroup_of_guardian(guard: u32) -> Option<PathBuf> {
    let table = common::mount_table();
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    let group = Path::new(line.split(' ').nth(4)?).join(format!("floe-guard.{guard}"));
    group.is_dir().then_some(group)
}

#[test]
fn a_guardian_that_cannot_be_woken_is_replaced() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    let group = require_some!(cgroup_of_guardian(driver.guard()), "a writable cgroup v2");
    fs::write(group.join("cgroup.freeze"), "1").expect("freeze the guardian's cgroup");
    driver.expect(1, "guardian");
    common::assert_not_frozen(fs.dir(), "after the guardian hung");
    assert!(!group.exists(), "the guardian's cgroup is left");
}

#[test]
fn a_kill_of_floes_cgroup_is_survived_by_the_guardian() {
    let path = require_driver!();
    let fs = require_ext4!();
    let table = common::mount_table();
    let line = require_some!(
        table.lines().find(|line| line.contains(" - cgroup2 ")),
        "cgroup v2"
    );
    let group = Path::new(line.split(' ').nth(4).expect("a mount point"))
        .join(format!("floe-it.{}", std::process::id()));
    require!(fs::create_dir(&group).is_ok(), "a writable cgroup v2");
    let inner = command(&path, "hold", NEVER, NEVER, &[fs.dir()]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "echo $$ > \"$0/cgroup.procs\"; exec \"$@\""])
        .arg(&group);
    shell.arg(inner.get_program()).args(inner.get_args());
    shell
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut driver = Driver::frozen(&mut shell);
    let killed = fs::write(group.join("cgroup.kill"), "1").is_ok(); // Linux 5.14
    if !killed {
        driver.signal("KILL");
    }
    let (status, _) = driver.end(5);
    assert_eq!(status.signal(), Some(9));
    common::assert_not_frozen(fs.dir(), "after cgroup.kill");
    fs::remove_dir(&group).expect("nothing is left in floe's cgroup");
    require!(killed, "cgroup.kill (Linux 5.14)");
}
