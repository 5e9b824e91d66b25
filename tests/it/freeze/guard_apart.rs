//! The guardian is a process apart: from another executable, in a cgroup of its own, woken when it was stopped, not held up by
//! who traces it; it freezes more than once, and removes what a dead floe leaves.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::{Driver, HeldWrite, NEVER, assert_unlocked, command};
use crate::common::{self, Scratch};

/// A command of the driver behind another program with its arguments.
fn behind(words: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn proc(guard: u32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{guard}/{file}")).expect("the guardian is there");
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// The parent of a process.
fn parent(pid: u32) -> u32 {
    let stat = proc(pid, "stat");
    let after = stat.rsplit(") ").next().expect("a state");
    let number = after.split(' ').nth(1).expect("a parent");
    number.parse().expect("a number")
}

#[test]
fn nothing_that_names_the_guardian_names_floe() {
    let path = require_driver!();
    require!(common::runner().is_none(), "no runner: a fork has its name");
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
    let guard = driver.guard();
    let exe = fs::read_link(format!("/proc/{guard}/exe")).expect("exe");
    let all = format!(
        "{} {} {}",
        proc(guard, "comm"),
        proc(guard, "cmdline"),
        exe.display()
    );
    assert!(all.starts_with("thaw-guard"), "{all}");
    assert!(!all.contains("floe") && !all.contains("driver"), "{all}");
    assert!(!all.contains(&*fs.dir().to_string_lossy()), "{all}");
    let inode = |pid: u32| {
        use std::os::unix::fs::MetadataExt;
        let stat = fs::metadata(format!("/proc/{pid}/exe")).expect("stat");
        (stat.dev(), stat.ino())
    };
    assert_ne!(inode(guard), inode(driver.pid()));
    // Of its session and its group it is the first.
    let stat = proc(guard, "stat");
    let ids: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!(ids[2..4], [guard.to_string(), guard.to_string()], "{stat}");
    // No descriptor by which `fuser` would find it.
    for fd in fs::read_dir(format!("/proc/{guard}/fd")).expect("fd") {
        let target = fs::read_link(fd.expect("fd").path()).unwrap_or_default();
        assert!(!target.starts_with(fs.dir()), "{}", target.display());
    }
    driver.signal("TERM");
    driver.end(5);
}

#[test]
fn where_no_memory_can_be_executed_the_guardian_runs_from_a_tmpfs_or_is_a_fork() {
    let path = require_driver!();
    require!(
        common::have("strace") && common::runner().is_none(),
        "strace, no runner"
    );
    let fs = require_ext4!();
    let hold = || command(&path, "hold", NEVER, NEVER, &[fs.dir()]);
    let memfd = "inject=memfd_create:error=ENOSYS";
    let fsopen = "inject=fsopen:error=ENOSYS";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e"];
    let with = |more: &[&'static str]| [&strace[..], more].concat();
    let ways: [(Vec<&str>, &str); 3] = [
        (with(&[memfd]), "tmpfs"),
        (with(&[memfd, "-e", fsopen]), "tmpfs"),
        (
            with(&[memfd, "-e", fsopen, "-e", "inject=mount:error=EPERM"]),
            "fork",
        ),
    ];
    for (words, form) in ways {
        let mut driver = Driver::frozen(&mut behind(&words, &hold()));
        let guard = driver.guard();
        let exe = fs::read_link(format!("/proc/{guard}/exe")).expect("exe");
        let shown = exe.to_string_lossy();
        match form {
            "fork" => assert_eq!(exe, path.canonicalize().expect("path")),
            _ => assert!(
                shown.contains("thaw-guard (deleted)") || shown == "/thaw-guard",
                "{shown}"
            ),
        }
        assert!(!shown.contains("memfd"), "{shown}");
        assert_eq!(proc(guard, "comm"), "thaw-guard\n");
        // strace's child is floe, and the guardian is floe's.
        common::signal(parent(guard), "KILL");
        driver.end(5);
        common::assert_not_frozen(fs.dir(), form);
        assert_unlocked(fs.dir(), Duration::from_secs(1));
    }
    // The kernel's own word against memory that is executed (Linux 6.3; for this process namespace only). Its first process
    // must not be floe, nor end with it: that would be everybody's end.
    let script = "echo 2 > /proc/sys/vm/memfd_noexec; \"$0\" \"$@\"; sleep 20";
    let words = [
        "unshare",
        "-p",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        script,
    ];
    let mut driver = Driver::frozen(&mut behind(&words, &hold()));
    let guard = common::guardians_of(fs.dir())[0];
    if Path::new("/proc/sys/vm/memfd_noexec").exists() {
        let exe = fs::read_link(format!("/proc/{guard}/exe")).expect("exe");
        assert!(!exe.to_string_lossy().contains("memfd"), "{exe:?}");
    }
    common::signal(parent(guard), "KILL");
    common::assert_not_frozen(fs.dir(), "with vm.memfd_noexec=2");
    driver.signal("KILL");
    driver.end(5);
}

#[test]
fn a_guardian_is_started_beside_other_threads() {
    let path = require_driver!();
    require!(
        common::runner().is_none(),
        "no runner: a fork wants one thread"
    );
    let fs = require_ext4!();
    let mut driver = Driver::frozen(&mut command(&path, "threads", NEVER, NEVER, &[fs.dir()]));
    driver.signal("KILL");
    driver.end(5);
    common::assert_not_frozen(fs.dir(), "after a kill");
}

#[test]
fn one_guardian_freezes_again_and_again_and_no_limit_counts_in_between() {
    let path = require_driver!();
    let fs = require_ext4!();
    let mut driver = Driver::start(&mut command(&path, "again", "1000", "1600", &[fs.dir()]));
    for round in 0..3 {
        let line = driver.line(10).expect("a line");
        let ms: u64 = line
            .strip_prefix("released ")
            .expect(&line)
            .parse()
            .expect("a number");
        assert!(ms < 1000, "{ms}");
        common::assert_not_frozen(fs.dir(), &format!("after release {round}"));
    }
    assert_eq!(driver.line(10).as_deref(), Some("frozen"));
    let (status, text) = driver.end(5);
    assert!(text.contains("--max-freeze"), "{status:?} {text}");
    common::assert_not_frozen(fs.dir(), "in the end");
    for what in ["KILL", "TERM"] {
        let mut driver = Driver::start(&mut command(&path, "again", "200", NEVER, &[fs.dir()]));
        while driver.line(10).expect("a line") != "frozen" {}
        driver.signal(what);
        driver.end(5);
        common::assert_not_frozen(fs.dir(), what);
        assert_unlocked(fs.dir(), Duration::from_secs(1));
    }
}

#[test]
fn what_a_killed_floe_leaves_is_removed_also_when_it_is_busy_for_a_while() {
    let path = require_driver!();
    let fs = require_ext4!();
    let scratch = Scratch::new();
    let left = scratch.join("instance");
    let hold = || {
        let mut hold = command(&path, "hold", NEVER, NEVER, &[fs.dir()]);
        hold.env("FLOE_LEFTOVER", &left);
        hold
    };
    let gone_within = |limit: Duration| {
        let began = Instant::now();
        while left.exists() {
            assert!(began.elapsed() < limit, "it is still there");
            thread::sleep(Duration::from_millis(10));
        }
    };
    fs::create_dir(&left).expect("mkdir");
    let mut driver = Driver::frozen(&mut hold());
    driver.signal("KILL");
    driver.end(5);
    gone_within(Duration::from_secs(1));
    // Busy: something is mounted on it (rmdir(2): EBUSY), as an instance is that somebody reads.
    fs::create_dir(&left).expect("mkdir");
    let shown = left.to_string_lossy().into_owned();
    common::output("mount", &["-t", "tmpfs", "none", &shown]);
    let mut driver = Driver::frozen(&mut hold());
    driver.signal("KILL");
    driver.end(5);
    common::assert_not_frozen(fs.dir(), "thawed before anything is removed");
    thread::sleep(Duration::from_millis(300));
    assert!(left.exists());
    common::output("umount", &[&shown]);
    gone_within(Duration::from_secs(1));
    // A floe that ends by itself removes its things itself.
    fs::create_dir(&left).expect("mkdir");
    let mut driver = Driver::frozen(&mut hold());
    driver.signal("TERM");
    driver.end(5);
    assert!(left.exists());
}

#[test]
fn floe_killed_while_its_guardian_is_stopped_is_thawed_within_a_second() {
    let path = require_driver!();
    let fs = require_ext4!();
    for pause in [0, 50, 300, 1200, 2200] {
        let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
        common::signal(driver.guard(), "STOP");
        thread::sleep(Duration::from_millis(pause));
        driver.signal("KILL");
        driver.end(5);
        common::assert_not_frozen(fs.dir(), &format!("{pause} ms after the stop"));
        assert_unlocked(fs.dir(), Duration::from_secs(1));
    }
    // Both stopped.
    let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
    common::signal(driver.guard(), "STOP");
    driver.signal("STOP");
    driver.signal("KILL");
    driver.end(5);
    common::assert_not_frozen(fs.dir(), "both stopped, floe killed");
}

/// Somebody who traces a process and never waits for it.
struct Tracer(Child);

impl Tracer {
    /// `request` is a number of ptrace(2): PTRACE_ATTACH (16) stops it, PTRACE_SEIZE (0x4206) does not.
    fn start(pid: u32, request: u32) -> Tracer {
        let script = "import ctypes,sys,time\n\
            c=ctypes.CDLL(None); c.ptrace.argtypes=[ctypes.c_long]*4; c.ptrace.restype=ctypes.c_long\n\
            print(c.ptrace(int(sys.argv[1]),int(sys.argv[2]),0,0),flush=True)\n\
            time.sleep(60)";
        let mut child = Command::new("python3")
            .args(["-c", script, &request.to_string(), &pid.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("read");
        assert_eq!(line.trim(), "0", "ptrace");
        Tracer(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_traces_the_guardian_and_never_waits_keeps_nothing_frozen() {
    let path = require_driver!();
    require!(common::have("python3"), "python3");
    let fs = require_ext4!();
    // Stopped by it: floe's signal thaws all the same.
    let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
    let tracer = Tracer::start(driver.guard(), 16);
    driver.signal("TERM");
    common::assert_not_frozen(fs.dir(), "guardian stopped by a tracer");
    driver.end(6);
    drop(tracer);
    // Held or only followed, when floe is killed: its workers see to it.
    for request in [16, 0x4206] {
        let driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
        let tracer = Tracer::start(driver.guard(), request);
        thread::sleep(Duration::from_millis(100));
        driver.signal("KILL");
        common::assert_not_frozen(fs.dir(), "floe killed, its guardian traced");
        drop(tracer);
        assert_unlocked(fs.dir(), Duration::from_secs(1));
    }
    // Killed while frozen, and while a freeze is in progress: nobody can collect it.
    let mut driver = Driver::frozen(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
    let tracer = Tracer::start(driver.guard(), 0x4206);
    common::signal(driver.guard(), "KILL");
    driver.expect(1, "guardian");
    common::assert_not_frozen(fs.dir(), "a traced guardian killed");
    drop(tracer);
    let held = HeldWrite::start(fs.dir());
    let mut driver = Driver::start(&mut command(&path, "hold", NEVER, NEVER, &[fs.dir()]));
    thread::sleep(Duration::from_millis(300));
    let tracer = Tracer::start(driver.guard(), 0x4206);
    common::signal(driver.guard(), "KILL");
    thread::sleep(Duration::from_millis(300));
    drop(held);
    driver.expect(1, "guardian");
    common::assert_not_frozen(fs.dir(), "a traced guardian killed inside the freeze");
    drop(tracer);
}

#[test]
fn a_lock_that_anybody_can_hold_stops_nobody() {
    let path = require_driver!();
    let fs = require_ext4!();
    let file = fs::File::open(fs.dir()).expect("open");
    file.lock().expect("flock of the root directory");
    let mut driver = Driver::frozen(&mut command(&path, "second", NEVER, NEVER, &[fs.dir()]));
    driver.expect(0, "");
}

/// Mount point of cgroup v2, if groups can be made in it.
fn unified() -> Option<PathBuf> {
    let table = common::mount_table();
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    let root = PathBuf::from(line.split(' ').nth(4)?);
    let probe = root.join(format!("probe.{}", std::process::id()));
    let can = fs::create_dir(&probe).is_ok();
    let _ = fs::remove_dir(&probe);
    can.then_some(root)
}

#[test]
fn a_cgroup_whose_name_is_taken_is_passed_over_and_empty_ones_are_removed() {
    let path = require_driver!();
    let fs = require_ext4!();
    let root = require_some!(unified(), "a writable cgroup v2");
    let stale = root.join("floe-guard.4000000");
    let _ = fs::create_dir(&stale);
    // Numbers are small in a process namespace: the name that the guardian takes is there, with a group below it.
    let taken: Vec<PathBuf> = (2..40)
        .map(|number| root.join(format!("floe-guard.{number}")))
        .collect();
    for group in &taken {
        fs::create_dir_all(group.join("below")).expect("mkdir");
    }
    let mut driver = Driver::frozen(&mut behind(
        &["unshare", "-p", "--fork", "--kill-child", "--mount-proc"],
        &command(&path, "hold", NEVER, NEVER, &[fs.dir()]),
    ));
    let guards = common::guardians_of(fs.dir());
    let groups: Vec<String> = guards.iter().map(|pid| proc(*pid, "cgroup")).collect();
    for group in &taken {
        let _ = fs::remove_dir(group.join("below"));
        let _ = fs::remove_dir(group);
    }
    assert!(!stale.exists(), "an empty one is left");
    let own = groups
        .iter()
        .flat_map(|text| text.lines())
        .find_map(|line| line.strip_prefix("0::/floe-guard."))
        .unwrap_or_else(|| panic!("{groups:?}"));
    assert!(own.ends_with(".1"), "{own}");
    // The end of the namespace takes both, and the group is left for the next one to remove.
    driver.signal("KILL");
    driver.end(5);
    let left = root.join(format!("floe-guard.{own}"));
    if !left.exists() {
        eprintln!("the floe of a neighbour was first to remove it");
    }
    common::thaw(fs.dir());
    let mut next = Driver::frozen(&mut command(&path, "second", NEVER, NEVER, &[fs.dir()]));
    next.expect(0, "");
    assert!(!left.exists(), "{}", left.display());
    assert!(!group_of(&root, next.guard()), "its own is left");
}

fn group_of(root: &Path, guard: u32) -> bool {
    root.join(format!("floe-guard.{guard}")).exists()
}

#[test]
fn a_guardian_that_cannot_leave_floes_cgroup_says_so() {
    let _ = require_floe!();
    let fs = require_ext4!();
    let root = require_some!(unified(), "a writable cgroup v2");
    let group = root.join(format!("floe-it-shared.{}", std::process::id()));
    fs::create_dir(&group).expect("mkdir");
    // The hierarchies are read-only in a mount namespace of floe's own, once it is in its group.
    let script = "echo $$ > \"$GROUP/cgroup.procs\"; for m in $(cut -d ' ' -f 5 /proc/self/mountinfo | grep cgroup); do mount -o remount,bind,ro $m; done; exec \"$@\"";
    let mut shell = behind(
        &["unshare", "-m", "sh", "-c", script, "sh"],
        &require_floe!(),
    );
    shell
        .args(["dump", "--report", "-"])
        .arg(fs.dir())
        .env("GROUP", &group)
        .stdout(Stdio::null());
    let child = shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = common::run(child, common::Limit::secs(30)).expect_code(0);
    let text = run.stderr_text();
    assert!(text.contains("no control group of its own"), "{text}");
    assert!(text.contains("\"guardian_group\":\"shared\""), "{text}");
    fs::remove_dir(&group).expect("nothing is left in the group");
    let mut floe = require_floe!();
    floe.args(["dump", "--report", "-"]).arg(fs.dir());
    let run = common::run(&mut floe, common::Limit::secs(30)).expect_code(0);
    let text = run.stderr_text();
    assert!(text.contains("\"guardian_group\":\"own\""), "{text}");
    if common::runner().is_none() {
        assert!(text.contains("\"guardian\":\"memfd\""), "{text}");
    }
}
