//! What is frozen: held by somebody else, on top of each other, remounted in place of a freeze; and what floe calls meanwhile.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::{Driver, NEVER, assert_unlocked, command};
use crate::common::{self, LoopFs, Mounted, Spec, Writer};

#[test]
fn a_freeze_that_somebody_else_holds_is_refused_and_left_alone() {
    let driver = require_driver!();
    let fs = require_ext4!();
    common::freeze(fs.dir());
    let mut driver = Driver::start(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    driver.expect(4, "somebody else");
    assert!(
        !common::write_ends_within(fs.dir(), Duration::from_millis(300)),
        "it was thawed"
    );
}

#[test]
fn a_second_floe_on_the_same_filesystem_is_refused_and_the_first_undisturbed() {
    let path = require_driver!();
    let fs = require_ext4!();
    let begun = &mut command(&path, "long", NEVER, NEVER, &[fs.dir()]);
    let mut first = Driver::frozen(begun);
    let mut second = Driver::start(&mut command(&path, "second", NEVER, NEVER, &[fs.dir()]));
    second.expect(4, "another floe");
    first.expect(0, "");
}

#[test]
fn a_thaw_by_somebody_else_makes_floe_fail() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "second", NEVER, NEVER, &[fs.dir()]));
    common::thaw(fs.dir());
    driver.expect(1, "not frozen any more");
}

#[test]
fn a_filesystem_that_cannot_be_frozen_is_refused_and_those_before_it_are_thawed() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let proc = Path::new("/proc");
    let mut driver = Driver::start(&mut command(
        &driver,
        "hold",
        NEVER,
        NEVER,
        &[fs.dir(), proc],
    ));
    driver.expect(4, "/proc: cannot freeze");
    common::assert_not_frozen(fs.dir(), "after a later one was refused");
}

/// An ext4 whose image lies on another one.
fn stack() -> Option<(Mounted, LoopFs)> {
    let outer = LoopFs::make(Spec {
        mib: 96,
        ..Spec::default()
    })
    .ok()?;
    let image = outer.dir().join("inner.img");
    common::sparse(&image, 24 << 20);
    common::mkfs_ext4(&image);
    Some((Mounted::new("ext4", &image, ""), outer))
}

#[test]
fn a_stack_of_filesystems_freezes_and_thaws_in_order_and_survives_a_kill() {
    let path = require_driver!();
    let (inner, outer) = require_some!(stack(), "mkfs.ext4");
    let dirs = [inner.dir(), outer.dir()];
    let mut driver = Driver::frozen(&mut command(&path, "second", NEVER, NEVER, &dirs));
    driver.expect(0, "");
    let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &dirs));
    driver.signal("KILL");
    driver.end(5);
    common::assert_not_frozen(inner.dir(), "after a kill (inner)");
    common::assert_not_frozen(outer.dir(), "after a kill (outer)");
    assert_unlocked(outer.dir(), Duration::from_secs(1));
    let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &dirs));
    common::signal(driver.guard(), "KILL");
    driver.expect(1, "guardian");
    common::assert_not_frozen(inner.dir(), "after the guardian was killed (inner)");
    common::assert_not_frozen(outer.dir(), "after the guardian was killed (outer)");
}

#[test]
fn a_stack_in_the_wrong_order_does_not_end_frozen() {
    let path = require_driver!();
    let (inner, outer) = require_some!(stack(), "mkfs.ext4");
    // Something for the inner freeze to write, which the frozen outer one holds up.
    let _writer = Writer::start(inner.dir());
    thread::sleep(Duration::from_millis(200));
    let dirs = [outer.dir(), inner.dir()];
    let mut driver = Driver::start(&mut command(&path, "idle", "1000", NEVER, &dirs));
    let (status, text) = driver.end(10);
    assert_eq!(status.code(), Some(1), "{text}");
    common::assert_not_frozen(outer.dir(), "after the wrong order (outer)");
    common::assert_not_frozen(inner.dir(), "after the wrong order (inner)");
    assert_unlocked(outer.dir(), Duration::from_secs(1));
}

#[test]
fn a_read_only_remount_is_undone_exactly_whoever_dies() {
    let path = require_driver!();
    let spec = Spec {
        mib: 32,
        options: "nosuid,nodev,noexec,noatime,nodiratime,errors=continue,commit=7",
        ..Spec::default()
    };
    let fs = require_some!(LoopFs::make(spec).ok(), "mkfs.ext4");
    let lines = || {
        let dir = fs.dir().to_string_lossy().into_owned();
        let table = common::mount_table();
        table
            .lines()
            .filter(|line| line.contains(&dir))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = lines();
    assert_eq!(before.len(), 1);
    for killed in ["floe", "guardian", "nobody"] {
        let mut driver = Driver::frozen(&mut command(&path, "readonly", NEVER, NEVER, &[fs.dir()]));
        let error = fs::write(fs.dir().join("file"), b"x").expect_err("it is writable");
        assert_eq!(error.raw_os_error(), Some(30), "{error}");
        let during = lines();
        assert!(during[0].contains("nosuid,nodev,noexec"), "{during:?}");
        match killed {
            "floe" => driver.signal("KILL"),
            "guardian" => common::signal(driver.guard(), "KILL"),
            _ => driver.signal("TERM"),
        }
        driver.end(5);
        assert_unlocked(fs.dir(), Duration::from_secs(1));
        assert_eq!(lines(), before, "after the end of {killed}");
        common::assert_not_frozen(fs.dir(), "after the remount");
    }
}

#[test]
fn a_filesystem_with_files_open_for_writing_is_not_remounted() {
    let path = require_driver!();
    let fs = require_ext4!();
    let _file = fs::File::create(fs.dir().join("open")).expect("create");
    let mut driver = Driver::start(&mut command(&path, "readonly", NEVER, NEVER, &[fs.dir()]));
    driver.expect(4, "open for writing");
}

#[test]
fn between_the_first_freeze_and_the_last_thaw_nothing_is_opened_mapped_or_started() {
    let path = require_driver!();
    require!(
        common::have("strace") && common::runner().is_none(),
        "strace, no runner"
    );
    let (inner, outer) = require_some!(stack(), "mkfs.ext4");
    let scratch = common::Scratch::new();
    let trace = scratch.join("trace");
    let inner_command = command(&path, "second", NEVER, NEVER, &[inner.dir(), outer.dir()]);
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .arg(inner_command.get_program())
        .args(inner_command.get_args());
    common::run(&mut strace, common::Limit::secs(60)).expect_code(0);
    let window = common::frozen_calls(&trace);
    let allowed = [
        "ioctl",
        "ppoll",
        "poll",
        "read",
        "write",
        "futex",
        "getppid",
        "clock_nanosleep",
        "nanosleep",
        "clock_gettime",
        "wait4",
        "sched_yield",
        "restart_syscall",
        "pread64",
    ];
    let mut freezes = 0;
    for line in &window {
        let call = line.split_whitespace().nth(1).unwrap_or_default();
        let call = if call == "<..." {
            line.split_whitespace().nth(2).unwrap_or_default()
        } else {
            call
        };
        let name = call.split('(').next().unwrap_or_default();
        assert!(allowed.contains(&name), "{line}");
        freezes += u32::from(line.contains("FIFREEZE"));
        assert!(!line.contains("write(2,"), "{line}");
    }
    assert_eq!(freezes, 2);
}
