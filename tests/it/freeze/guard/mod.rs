//! Promise 1 by the guardian's own driver (`tests/helpers/guard_driver.rs`): whoever dies, stops or hangs, whenever, nothing
//! stays frozen; and what somebody else froze stays as it is.
//!
//! Each test freezes loop filesystems of its own. `LoopFs` thaws what a failing test leaves.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, LoopFs, Spec};

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

mod killed;
mod targets;
mod watchdog;
