//! Promises 1 and 2 on a whole `floe dump`: whatever ends it early, the filesystem is thawed, the exit code is not 0, and what
//! was written is no valid gzip file.
//!
//! The source holds more random bytes than a pipe takes, so that a reader that stops stops the dump in the frozen window.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, Limit, LoopFs, Random, Spec};

/// An ext4 with 24 MiB that do not compress.
fn source() -> Option<LoopFs> {
    let fs = LoopFs::make(Spec {
        mib: 48,
        ..Spec::default()
    })
    .ok()?;
    let bytes = Random(0xf10e).bytes(24 << 20);
    fs::write(fs.dir().join("random"), bytes).expect("write");
    common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
    Some(fs)
}

macro_rules! require_source {
    () => {
        require_some!(source(), "root and mkfs.ext4")
    };
}

/// A dump whose reader has taken the first bytes of data, which come after the freeze, and then takes no more.
struct Stalled {
    child: Child,
    stdout: Option<ChildStdout>,
    taken: Vec<u8>,
}

impl Stalled {
    #[track_caller]
    fn start(mut floe: Command, dir: &Path, options: &[&str]) -> Stalled {
        floe.args(["dump", "--spool", "off"]).args(options).arg(dir);
        let mut child = floe
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("floe");
        let mut stdout = child.stdout.take().expect("piped");
        let mut taken = vec![0; 4096];
        if let Err(error) = stdout.read_exact(&mut taken) {
            let mut text = String::new();
            let _ = child
                .stderr
                .take()
                .expect("piped")
                .read_to_string(&mut text);
            panic!("{error}; {:?}; {text}", child.wait());
        }
        Stalled {
            child,
            stdout: Some(stdout),
            taken,
        }
    }

    /// Waits for its end; exit code or signal, and stderr.
    #[track_caller]
    fn end(&mut self, limit: Duration) -> (std::process::ExitStatus, String) {
        let status = common::wait_for(&mut self.child, limit).expect("floe does not end");
        let mut text = String::new();
        let _ = self
            .child
            .stderr
            .take()
            .expect("once")
            .read_to_string(&mut text);
        (status, text)
    }

    /// Everything that came out, once it has ended, must not pass as a gzip file.
    #[track_caller]
    fn assert_no_trailer(&mut self) {
        let mut rest = Vec::new();
        let _ = self.stdout.take().expect("once").read_to_end(&mut rest);
        self.taken.append(&mut rest);
        let scratch = common::Scratch::new();
        let file = scratch.join("image.gz");
        fs::write(&file, &self.taken).expect("write");
        let run = common::run(Command::new("gzip").arg("-t").arg(&file), Limit::secs(60));
        assert_ne!(run.code, Some(0), "an aborted dump passes gzip -t");
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = common::wait_for(&mut self.child, Duration::from_secs(10));
    }
}

#[test]
fn a_fatal_signal_ends_a_dump_at_once_although_its_reader_is_stalled() {
    let _ = require_floe!();
    let fs = require_source!();
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1), ("KILL", 9)] {
        let mut dump = Stalled::start(require_floe!(), fs.dir(), &[]);
        common::signal(dump.child.id(), name);
        let (status, text) = dump.end(Duration::from_secs(2));
        assert_eq!(status.signal(), Some(number), "{status:?} {text}");
        common::assert_not_frozen(fs.dir(), name);
        dump.assert_no_trailer();
    }
}

#[test]
fn as_the_first_process_of_a_container_it_obeys_a_signal_as_anywhere() {
    // Whoever stops a container sends one. The kernel keeps those from a first process whose action is the default.
    let inner = require_floe!();
    require!(common::have("unshare"), "unshare");
    let fs = require_source!();
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let mut container = Command::new("unshare");
        container.args(["-p", "--fork", "--mount-proc"]);
        container.arg(inner.get_program()).args(inner.get_args());
        let mut dump = Stalled::start(container, fs.dir(), &[]);
        let outside = dump.child.id();
        let children = format!("/proc/{outside}/task/{outside}/children");
        let floe = fs::read_to_string(children).expect("children");
        common::signal(floe.trim().parse().expect("one child"), name);
        let (status, text) = dump.end(Duration::from_secs(2));
        assert_eq!(status.code(), Some(128 + number), "{status:?} {text}");
        assert!(text.contains("interrupted"), "{text}");
        common::assert_not_frozen(fs.dir(), name);
        dump.assert_no_trailer();
    }
}

#[test]
fn a_dump_whose_reader_stalls_is_thawed_after_the_stall_time_and_fails() {
    let _ = require_floe!();
    let fs = require_source!();
    let mut dump = Stalled::start(require_floe!(), fs.dir(), &["--stall", "1s"]);
    let began = Instant::now();
    let file = fs.dir().join("waits");
    let writer = thread::spawn(move || {
        let _ = fs::write(file, b"x");
        began.elapsed()
    });
    let (status, text) = dump.end(Duration::from_secs(5));
    let waited = writer.join().expect("the writer ends");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(
        text.contains("--stall") && text.lines().count() == 1,
        "{text}"
    );
    assert!(
        (600..2500).contains(&waited.as_millis()),
        "the writer waited {waited:?}"
    );
    dump.assert_no_trailer();
}

#[test]
fn a_dump_whose_reader_trickles_is_thawed_after_max_freeze_and_fails() {
    let _ = require_floe!();
    let fs = require_source!();
    let mut dump = Stalled::start(
        require_floe!(),
        fs.dir(),
        &["--stall", "1s", "--max-freeze", "2500ms"],
    );
    let began = Instant::now();
    let mut stdout = dump.stdout.take().expect("once");
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 8192];
        while stdout.read(&mut buffer).is_ok_and(|count| count > 0) {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let (status, text) = dump.end(Duration::from_secs(8));
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("--max-freeze"), "{text}");
    assert!(
        began.elapsed() > Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    common::assert_not_frozen(fs.dir(), "after --max-freeze");
    reader.join().expect("the reader ends");
}

#[test]
fn a_stopped_dump_is_thawed_by_the_guardian_and_fails_when_continued() {
    let _ = require_floe!();
    let fs = require_source!();
    let mut dump = Stalled::start(require_floe!(), fs.dir(), &["--stall", "1s"]);
    common::signal(dump.child.id(), "STOP");
    thread::sleep(Duration::from_millis(1200));
    common::assert_not_frozen(fs.dir(), "after floe was stopped");
    common::signal(dump.child.id(), "CONT");
    let (status, text) = dump.end(Duration::from_secs(3));
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("watchdog"), "{text}");
    dump.assert_no_trailer();
}

#[test]
fn a_closed_pipe_thaws_and_ends_a_dump_with_one_line() {
    let _ = require_floe!();
    let fs = require_source!();
    let mut dump = Stalled::start(require_floe!(), fs.dir(), &["--quiet"]);
    drop(dump.stdout.take());
    let (status, text) = dump.end(Duration::from_secs(3));
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("the reader closed the pipe"), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    common::assert_not_frozen(fs.dir(), "after the reader closed the pipe");
}

#[test]
fn a_dump_that_somebody_else_thaws_fails_even_if_every_byte_is_read() {
    let _ = require_floe!();
    let fs = require_source!();
    let mut dump = Stalled::start(require_floe!(), fs.dir(), &[]);
    common::thaw(fs.dir());
    let mut stdout = dump.stdout.take().expect("once");
    let reader = thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = stdout.read_to_end(&mut rest);
        rest
    });
    let (status, text) = dump.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("somebody"), "{text}");
    let rest = reader.join().expect("the reader ends");
    dump.taken.extend(rest);
    let scratch = common::Scratch::new();
    fs::write(scratch.join("image.gz"), &dump.taken).expect("write");
    let run = common::run(
        Command::new("gzip").arg("-t").arg(scratch.join("image.gz")),
        Limit::secs(60),
    );
    assert_ne!(run.code, Some(0), "it passes gzip -t");
}

#[test]
fn a_second_dump_of_the_same_filesystem_is_refused_and_the_first_ends_well() {
    let _ = require_floe!();
    let fs = require_source!();
    let mut first = Stalled::start(require_floe!(), fs.dir(), &[]);
    let mut second = require_floe!();
    second
        .args(["dump", "--quiet"])
        .arg(fs.dir())
        .stdout(Stdio::piped());
    let run = common::run(&mut second, Limit::secs(20)).expect_code(4);
    assert!(run.stderr_text().contains("another floe"), "{run}");
    // While it waits for the other one to go, a signal ends it at once. (A busy machine may take long by itself, but not each time.)
    let scratch = common::Scratch::new();
    let mut third = require_floe!();
    third.args(["dump", "--quiet"]).arg(fs.dir());
    third.arg("-o").arg(scratch.join("third.gz"));
    third.stderr(Stdio::piped());
    let ended_at_once = (0..5).any(|_| {
        let mut child = third.spawn().expect("floe");
        thread::sleep(Duration::from_millis(400));
        let began = Instant::now();
        common::signal(child.id(), "TERM");
        let status = common::wait_for(&mut child, Duration::from_secs(20));
        let status = status.expect("it ends");
        let mut said = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("stderr");
        let words = match status.code() {
            Some(4) => "another floe",
            // On a slow machine before the first look at who else is there.
            _ => "interrupted",
        };
        assert!(said.contains(words), "{status}: {said}");
        assert!(status.code() == Some(4) || status.signal() == Some(15));
        let left: Vec<_> = fs::read_dir(scratch.path()).expect("scratch").collect();
        assert!(left.is_empty(), "{left:?}");
        status.signal() == Some(15) && began.elapsed() < Duration::from_millis(800)
    });
    assert!(ended_at_once, "it is patient to its end");
    let mut stdout = first.stdout.take().expect("once");
    let reader = thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let (status, text) = first.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{text}");
    reader.join().expect("the reader ends").expect("read");
}

#[test]
fn sigkill_of_a_dump_at_random_moments_never_leaves_it_frozen() {
    let _ = require_floe!();
    let fs = require_source!();
    let _serial = common::serial();
    let rounds: u32 = std::env::var("FLOE_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60);
    let mut random = Random(0x5eed_d0e5);
    for round in 0..rounds {
        let mut floe = require_floe!();
        floe.args(["dump", "--spool", "off"])
            .arg(fs.dir())
            .stderr(Stdio::null());
        // Half of them with a reader that takes everything, half with one that stops somewhere.
        let mut child = floe.stdout(Stdio::piped()).spawn().expect("floe");
        let mut stdout = child.stdout.take().expect("piped");
        let limit = if round % 2 == 0 {
            u64::MAX
        } else {
            random.below(1 << 20)
        };
        let reader = thread::spawn(move || {
            let mut part = (&mut stdout).take(limit);
            let _ = std::io::copy(&mut part, &mut std::io::sink());
            stdout // stays open: stalled, not closed
        });
        thread::sleep(Duration::from_micros(random.below(400_000)));
        child.kill().expect("kill");
        child.wait().expect("wait");
        common::assert_not_frozen(fs.dir(), &format!("after kill {round}"));
        let began = Instant::now();
        while !common::guardians_of(fs.dir()).is_empty() {
            assert!(
                began.elapsed() < Duration::from_secs(1),
                "a guardian is still there"
            );
            thread::sleep(Duration::from_millis(5));
        }
        drop(reader.join().expect("the reader ends"));
    }
}

#[test]
fn in_the_frozen_window_of_a_dump_nothing_is_opened_mapped_or_started_and_stderr_is_silent() {
    let floe = require_floe!();
    require!(
        common::have("strace") && common::runner().is_none(),
        "strace, no runner"
    );
    let fs = require_source!();
    let scratch = common::Scratch::new();
    let trace = scratch.join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&trace);
    strace
        .arg(floe.get_program())
        .args(floe.get_args())
        .arg("dump")
        .arg(fs.dir());
    strace.stdin(Stdio::null());
    common::run(&mut strace, Limit::secs(120)).expect_code(0);
    let window = common::frozen_calls(&trace);
    let forbidden = [
        "open(", "openat(", "openat2(", "creat(", "execve(", "clone(", "clone3(", "fork(",
        "vfork(", "mmap(", "mremap(", "write(2,", "unlink(", "rename(",
    ];
    for line in &window {
        let call = line.split_whitespace().nth(1).unwrap_or_default();
        assert!(
            !forbidden.iter().any(|word| call.starts_with(word)),
            "{line}"
        );
    }
    assert!(
        window.iter().any(|line| line.contains("pread")),
        "nothing was read in the window"
    );
}
