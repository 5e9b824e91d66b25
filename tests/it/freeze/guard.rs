//! Promise 1 by the guardian's own driver (`tests/helpers/guard_driver.rs`): whoever dies, stops or hangs, whenever, nothing
//! stays frozen; and what somebody else froze stays as it is.
//!
//! Each test freezes loop filesystems of its own. `LoopFs` thaws what a failing test leaves.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, LoopFs, Mounted, Random, Spec, Writer};

/// No watchdog in this test.
pub(super) const NEVER: &str = "600000";

/// The driver: `FLOE_DRIVER`, or cargo's own build of the example beside this test.
pub(super) fn driver_path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FLOE_DRIVER").filter(|value| !value.is_empty()) {
        return Some(path.into());
    }
    if common::runner().is_some() {
        return None;
    }
    let own = std::env::current_exe().ok()?;
    let path = own.parent()?.parent()?.join("examples/guard_driver");
    path.is_file().then_some(path)
}

macro_rules! require_driver {
    () => {{
        require!($crate::common::is_root(), "root");
        require_some!(
            $crate::freeze::guard::driver_path(),
            "guard_driver (cargo build --example guard_driver)"
        )
    }};
}

pub(super) fn command(
    driver: &Path,
    what: &str,
    stall_ms: &str,
    max_ms: &str,
    dirs: &[&Path],
) -> Command {
    let mut command = match common::runner() {
        None => Command::new(driver),
        Some(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("a runner has a word"));
            command.args(words).arg(driver);
            command
        }
    };
    command.args([what, stall_ms, max_ms]).args(dirs);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A running driver, killed on drop.
pub(super) struct Driver {
    pub(super) child: Child,
    lines: Receiver<String>,
    guard: Option<u32>,
}

impl Driver {
    #[track_caller]
    pub(super) fn start(command: &mut Command) -> Driver {
        let mut child = command.spawn().expect("the driver starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut driver = Driver {
            child,
            lines,
            guard: None,
        };
        if let Some(line) = driver.line(10) {
            let number = line.strip_prefix("ready ").expect("ready first");
            driver.guard = Some(number.parse().expect("a process number"));
        }
        driver
    }

    /// Starts it and waits until everything is frozen.
    #[track_caller]
    pub(super) fn frozen(command: &mut Command) -> Driver {
        let mut driver = Driver::start(command);
        let line = driver.line(10);
        if line.as_deref() != Some("frozen") {
            panic!("{line:?}, {:?}", driver.end(10));
        }
        driver
    }

    /// The guardian's process number.
    #[track_caller]
    pub(super) fn guard(&self) -> u32 {
        self.guard.expect("the driver did not start a guardian")
    }

    /// The next line of its stdout; `None` at its end or after so many seconds.
    pub(super) fn line(&mut self, secs: u64) -> Option<String> {
        self.lines.recv_timeout(Duration::from_secs(secs)).ok()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, name: &str) {
        common::signal(self.pid(), name);
    }

    /// How it ended and what it said on stderr.
    #[track_caller]
    pub(super) fn end(&mut self, secs: u64) -> (ExitStatus, String) {
        let status = common::wait_for(&mut self.child, Duration::from_secs(secs));
        let status = status.unwrap_or_else(|| panic!("the driver is still there after {secs} s"));
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            // The guardian may hold it open for as long as a freeze is in progress: only what is there by then.
            let (sender, receiver) = channel();
            thread::spawn(move || {
                let mut bytes = vec![0; 4096];
                let count = stderr.read(&mut bytes).unwrap_or(0);
                let _ = sender.send(String::from_utf8_lossy(&bytes[..count]).into_owned());
            });
            text = receiver
                .recv_timeout(Duration::from_millis(500))
                .unwrap_or_default();
        }
        (status, text)
    }

    #[track_caller]
    pub(super) fn expect(&mut self, code: i32, words: &str) {
        let (status, text) = self.end(15);
        assert_eq!(status.code(), Some(code), "{status:?} {text}");
        assert!(text.contains(words), "{words:?} is not in {text:?}");
        assert!(words.is_empty() || text.lines().count() == 1, "{text:?}");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.signal("CONT");
        let _ = self.child.kill();
        let _ = common::wait_for(&mut self.child, Duration::from_secs(10));
    }
}

pub(super) fn ext4() -> Option<LoopFs> {
    LoopFs::make(Spec {
        mib: 32,
        ..Spec::default()
    })
    .ok()
}

macro_rules! require_ext4 {
    () => {
        require_some!($crate::freeze::guard::ext4(), "mkfs.ext4")
    };
}

/// Waits until no guardian of the filesystem is there any more.
#[track_caller]
pub(super) fn assert_unlocked(dir: &Path, within: Duration) {
    let began = Instant::now();
    loop {
        let left = common::guardians_of(dir);
        if left.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < within,
            "guardians are still there: {left:?}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Holds a write to the filesystem in progress (a splice from an empty pipe holds the write side of the freeze lock
/// while it waits for data), so that FIFREEZE waits, until it is dropped.
pub(super) struct HeldWrite {
    pipe: Option<OwnedFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl HeldWrite {
    pub(super) fn start(dir: &Path) -> HeldWrite {
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let file = fs::File::create(dir.join("held")).expect("create");
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            tell.send(rustix::thread::gettid()).expect("heard");
            let _ = rustix::pipe::splice(
                &reader,
                None,
                &file,
                None,
                4096,
                rustix::pipe::SpliceFlags::empty(),
            );
        });
        // Its number there: it sleeps in that system call (proc_pid_syscall(5)).
        let id = told.recv().expect("told").as_raw_nonzero();
        let call = format!("/proc/self/task/{id}/syscall");
        let splice = match std::env::consts::ARCH {
            "x86_64" => "275 ",
            _ => "76 ",
        };
        let is_held = || fs::read_to_string(&call).is_ok_and(|text| text.starts_with(splice));
        assert!(
            common::wait_until(Duration::from_secs(20), is_held),
            "the write is not held"
        );
        HeldWrite {
            pipe: Some(writer),
            thread: Some(thread),
        }
    }
}

impl HeldWrite {
    fn is_held(&self) -> bool {
        let thread = self.thread.as_ref();
        thread.is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for HeldWrite {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the held write ends");
        }
    }
}

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
