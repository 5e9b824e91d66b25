//! The watchdog: a floe that hangs, a freeze that lasts too long, and one that is still in progress when something dies.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use super::{Driver, HeldWrite, NEVER, assert_unlocked, command};
use crate::common;

#[test]
fn a_stopped_floe_is_thawed_by_the_watchdog_and_fails_when_continued() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&driver, "hold", "1000", NEVER, &[fs.dir()]));
    driver.signal("STOP");
    thread::sleep(Duration::from_millis(1100));
    common::assert_not_frozen(fs.dir(), "after floe was stopped for the stall time");
    driver.signal("CONT");
    driver.expect(1, "watchdog");
}

#[test]
fn without_progress_the_watchdog_fires_after_the_stall_time() {
    let driver = require_driver!();
    let fs = require_ext4!();
    for what in ["idle", "deaf"] {
        let began = Instant::now();
        let mut driver = Driver::frozen(&mut command(&driver, what, "1000", NEVER, &[fs.dir()]));
        let is_frozen = common::is_frozen(fs.dir());
        assert!(is_frozen || began.elapsed() > Duration::from_secs(1));
        thread::sleep(Duration::from_millis(1100));
        common::assert_not_frozen(fs.dir(), "after the stall time");
        if what == "idle" {
            driver.expect(1, "--stall");
        }
    }
}

#[test]
fn a_trickle_of_progress_does_not_put_off_the_end_of_max_freeze() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let began = Instant::now();
    let mut driver = Driver::frozen(&mut command(
        &driver,
        "trickle",
        "1500",
        "3000",
        &[fs.dir()],
    ));
    driver.expect(1, "--max-freeze");
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    common::assert_not_frozen(fs.dir(), "after --max-freeze");
}

#[test]
fn a_freeze_in_progress_when_floe_is_killed_does_not_end_frozen() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let held = HeldWrite::start(fs.dir());
    let mut driver = Driver::start(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    thread::sleep(Duration::from_millis(300));
    driver.signal("KILL");
    let began = Instant::now();
    assert_eq!(driver.line(5), None, "it froze although a write was held");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "the reader did not see floe's end"
    );
    driver.end(1);
    drop(held);
    common::assert_not_frozen(fs.dir(), "after floe was killed inside the freeze");
    assert_unlocked(fs.dir(), Duration::from_secs(1));
}

#[test]
fn a_fatal_signal_ends_floe_at_once_although_the_freeze_is_in_progress() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let held = HeldWrite::start(fs.dir());
    let mut driver = Driver::start(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    thread::sleep(Duration::from_millis(300));
    driver.signal("TERM");
    let (status, _) = driver.end(1);
    assert_eq!(status.signal(), Some(15), "{status:?}");
    drop(held);
    common::assert_not_frozen(fs.dir(), "after SIGTERM inside the freeze");
    assert_unlocked(fs.dir(), Duration::from_secs(1));
}

#[test]
fn a_freeze_that_never_completes_is_given_up_by_the_watchdog() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let held = HeldWrite::start(fs.dir());
    let mut driver = Driver::start(&mut command(&driver, "hold", "1000", NEVER, &[fs.dir()]));
    driver.expect(1, "something holds a write");
    drop(held);
    common::assert_not_frozen(fs.dir(), "after the watchdog inside the freeze");
}

#[test]
fn a_guardian_killed_inside_the_freeze_leaves_the_thaw_to_floe() {
    let driver = require_driver!();
    let fs = require_ext4!();
    let held = HeldWrite::start(fs.dir());
    let mut driver = Driver::start(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
    thread::sleep(Duration::from_millis(300));
    common::signal(driver.guard(), "KILL");
    thread::sleep(Duration::from_millis(300));
    drop(held);
    driver.expect(1, "guardian");
    common::assert_not_frozen(fs.dir(), "after the guardian was killed inside the freeze");
}

#[test]
fn a_signal_and_a_killed_guardian_inside_the_freeze_leave_the_thaw_to_floe() {
    let driver = require_driver!();
    let fs = require_ext4!();
    // What is sent to whom, and after how many milliseconds.
    let kill = |driver: &Driver| common::signal(driver.guard(), "KILL");
    let term = |driver: &Driver| driver.signal("TERM");
    let mut by_signal = 0;
    for (first, pause_ms, second) in [
        (&kill as &dyn Fn(&Driver), 20, &term as &dyn Fn(&Driver)),
        (&kill, 300, &term),
        (&kill, 1500, &term),
        (&kill, 3000, &term),
        (&term, 20, &kill),
        (&term, 100, &kill),
    ] {
        let held = HeldWrite::start(fs.dir());
        let mut driver = Driver::start(&mut command(&driver, "hold", NEVER, NEVER, &[fs.dir()]));
        thread::sleep(Duration::from_millis(300));
        first(&driver);
        thread::sleep(Duration::from_millis(pause_ms));
        second(&driver);
        // Longer than floe waits for a guardian that lives.
        thread::sleep(Duration::from_millis(800));
        assert!(held.is_held(), "{pause_ms}: the write ended by itself");
        drop(held);
        let (status, text) = driver.end(15);
        common::assert_not_frozen(fs.dir(), "after a signal and a killed guardian");
        assert_unlocked(fs.dir(), Duration::from_secs(2));
        // A neighbour's signal lets the write begin anew, and the freeze in between: then there is no call to wait for.
        let was_frozen = status.code() == Some(1) && text.contains("guardian: it died");
        match status.signal() == Some(15) {
            true => by_signal += 1,
            false => assert!(was_frozen, "{pause_ms}: {status:?} {text}"),
        }
    }
    assert!(by_signal >= 4, "{by_signal}");
}
