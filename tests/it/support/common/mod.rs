//! What the integration tests share: the executable under test, time limits, scratch folders, loop filesystems that
//! always thaw, unmount and detach, background writers, and folder comparison.
//!
//! Never here: anything that could touch a filesystem the test did not make. Everything lies under `$FLOE_SCRATCH`
//! (or the system's temporary folder), so that `tests/run` can clean up after a test that was killed.

#![allow(dead_code)] // a toolbox: not every file uses every tool

mod agree;
mod files;
mod filesystems;
mod reports;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use floe::device::Device;
use floe::error::Fault;

pub use self::files::*;
pub use self::filesystems::*;
pub use self::reports::*;

// ---- skipping, visibly ----------------------------------------------------------------------------------------------

/// Says that the calling test is skipped and which requirement is missing; `tests/run` counts these.
#[track_caller]
pub fn skip(missing: &str) {
    let place = std::panic::Location::caller();
    let current = thread::current();
    let name = current.name().unwrap_or("main");
    let line = format!(
        "SKIPPED {name} ({}:{}): needs {missing}\n",
        place.file(),
        place.line()
    );
    eprint!("{line}");
    if let Some(log) = std::env::var_os("FLOE_SKIP_LOG")
        && let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(log)
    {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The value, or the test is skipped for want of `what`.
macro_rules! require_some {
    ($value:expr, $what:expr) => {
        match $value {
            Some(value) => value,
            None => {
                $crate::support::common::skip($what);
                return;
            }
        }
    };
}

/// What was made, or the test is skipped for want of what the error says.
macro_rules! require_ok {
    ($made:expr) => {
        match $made {
            Ok(made) => made,
            Err(missing) => {
                $crate::support::common::skip(&missing);
                return;
            }
        }
    };
}

/// Skips the test unless the condition holds.
#[allow(unused_macros)]
macro_rules! require {
    ($condition:expr, $what:expr) => {
        if !$condition {
            $crate::support::common::skip($what);
            return;
        }
    };
}

/// A `Command` for the executable under test, or the test is skipped.
macro_rules! require_floe {
    () => {
        require_some!(
            $crate::support::common::floe(),
            "FLOE_BIN, the executable under test (tests/run sets it)"
        )
    };
}

/// The executable under test and the maker of ext4, or the test is skipped.
macro_rules! require_mkfs {
    () => {
        drop(require_floe!());
        require!($crate::support::common::have("mkfs.ext4"), "mkfs.ext4");
    };
}

// ---- the executable under test --------------------------------------------------------------------------------------

/// Path of the executable under test.
pub fn floe_path() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("FLOE_BIN").filter(|value| !value.is_empty())?);
    assert!(path.is_file(), "FLOE_BIN={} is not there", path.display());
    Some(path.canonicalize().expect("FLOE_BIN"))
}

/// The runner (a QEMU user mode) in front of it, if any.
pub fn runner() -> Option<String> {
    std::env::var("FLOE_RUNNER")
        .ok()
        .filter(|value| !value.trim().is_empty())
}

/// A command that starts the executable under test, stdin closed off; add arguments and run it.
pub fn floe() -> Option<Command> {
    let path = floe_path()?;
    let mut command = match runner() {
        None => Command::new(path),
        Some(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("a runner has a word"));
            command.args(words).arg(path);
            command
        }
    };
    command.stdin(Stdio::null());
    Some(command)
}

/// The same as words for a shell pipeline, quoted.
pub fn floe_shell_words() -> Option<String> {
    let path = format!("'{}'", floe_path()?.display());
    Some(match runner() {
        None => path,
        Some(runner) => format!("{runner} {path}"),
    })
}

/// The architecture as a target triple begins with it, from the executable's ELF header.
pub fn floe_arch() -> Option<&'static str> {
    let mut header = [0_u8; 20];
    fs::File::open(floe_path()?)
        .and_then(|mut file| file.read_exact(&mut header))
        .expect("FLOE_BIN is readable");
    match u16::from_le_bytes([header[18], header[19]]) {
        40 => Some("armv7"),
        62 => Some("x86_64"),
        183 => Some("aarch64"),
        _ => None,
    }
}

// ---- the guardian -----------------------------------------------------------------------------------------------------

/// The processes that keep a descriptor on the filesystem of this directory and call themselves guardian.
pub fn guardians_of(dir: &Path) -> Vec<u32> {
    let dev = fs::metadata(dir).expect("stat").dev();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = process.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if comm != "thaw-guard\n" {
            continue;
        }
        // Its threads have descriptors of their own.
        let threads = fs::read_dir(process.path().join("task"));
        let threads = threads.into_iter().flatten().flatten();
        let mut open = threads
            .flat_map(|thread| fs::read_dir(thread.path().join("fd")))
            .flatten()
            .flatten();
        if open.any(|fd| fs::metadata(fd.path()).is_ok_and(|known| known.dev() == dev)) {
            found.push(number);
        }
    }
    found
}

// ---- running with a time limit --------------------------------------------------------------------------------------

/// How long a command may take. Under a runner it is four times that: emulation is slow, the promise is not about it.
#[derive(Clone, Copy, Debug)]
pub struct Limit(pub Duration);

impl Limit {
    pub fn secs(secs: u64) -> Limit {
        let factor = if runner().is_some() { 4 } else { 1 };
        Limit(Duration::from_secs(secs * factor))
    }
}

/// What a finished command left behind.
#[derive(Debug)]
pub struct Run {
    pub command: String,
    /// Exit code, `None` when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub elapsed: Duration,
}

impl Run {
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Panics with everything known unless the exit code is this one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = &self.stdout[..self.stdout.len().min(400)];
        write!(
            f,
            "{}\n  exit code {:?}, signal {:?}, after {:?}\n  stdout ({} bytes): {:?}\n  stderr: {}",
            self.command,
            self.code,
            self.signal,
            self.elapsed,
            self.stdout.len(),
            String::from_utf8_lossy(head),
            self.stderr_text()
        )
    }
}

/// Runs to the end and collects the output; after the limit the child and whoever holds its pipes are killed and the test fails.
#[track_caller]
pub fn run(command: &mut Command, limit: Limit) -> Run {
    run_with_input(command, &[], limit)
}

/// The same, with bytes on stdin (none: whatever stdin the command was given).
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Limit) -> Run {
    let shown = format!("{command:?}");
    let start = Instant::now();
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let out = collect(child.stdout.take().expect("piped"));
    let err = collect(child.stderr.take().expect("piped"));
    let held = [&out.1, &err.1].map(String::clone);
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // The child may stop reading early; that is its business.
        thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let status = wait_for(&mut child, limit.0);
    // What was started beside it and stays may hold the pipes; that ends with the limit too.
    let end = start + limit.0 + Duration::from_secs(2);
    let mut late = String::new();
    let mut text = |from: &mpsc::Receiver<Vec<u8>>| {
        let left = if status.is_some() {
            end.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        from.recv_timeout(left).unwrap_or_else(|_| {
            late += &end_holders(&held);
            from.recv_timeout(Duration::from_secs(10))
                .unwrap_or_default()
        })
    };
    let (stdout, stderr) = (text(&out.0), text(&err.0));
    if status.is_none() {
        late += &format!("\n  {} is ended", process(child.id()));
        let _ = child.kill();
        // Whoever waits on a frozen filesystem cannot be killed: this test has failed all the same.
        wait_for(&mut child, Duration::from_secs(10));
    }
    let run = Run {
        command: shown,
        code: status.and_then(|s| s.code()),
        signal: status.and_then(|s| s.signal()),
        stdout,
        stderr,
        elapsed: start.elapsed(),
    };
    assert!(
        late.is_empty(),
        "still running after {limit:?}: {run}{late}"
    );
    run
}

/// Runs the executable under test, at most two minutes; whoever calls has required it before.
#[track_caller]
pub fn run_floe(words: &[&str]) -> Run {
    let mut floe = floe().expect("required before");
    run(floe.args(words), Limit::secs(120))
}

/// The same, which must end with this code.
#[track_caller]
pub fn expect_floe(words: &[&str], code: i32) -> Run {
    run_floe(words).expect_code(code)
}

/// Reads a pipe to its end beside the test; what it read, and the name by which processes hold that pipe.
fn collect(mut pipe: impl Read + AsRawFd + Send + 'static) -> (mpsc::Receiver<Vec<u8>>, String) {
    let name = fs::read_link(format!("/proc/self/fd/{}", pipe.as_raw_fd()));
    let (to, from) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = to.send(bytes);
    });
    let name = name.expect("a pipe").display().to_string();
    (from, name)
}

/// Ends whoever holds one of these pipes, and says who it was.
fn end_holders(pipes: &[String]) -> String {
    let mut said = String::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let mut open = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let holds = open.any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| pipes.iter().any(|pipe| to == Path::new(pipe)))
        });
        if pid != std::process::id() && holds {
            said += &format!("\n  {} held its output and is ended", process(pid));
            signal(pid, "KILL");
        }
    }
    said
}

/// A process in words: number, command line, and where in the kernel it waits.
fn process(pid: u32) -> String {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
    let line: String = line.trim_end().chars().take(120).collect();
    format!(
        "process {pid} ({line}, waiting in {})",
        String::from_utf8_lossy(&read("wchan"))
    )
}

/// Waits for a child's end, at most this long.
pub fn wait_for(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::process::{Pid, PidfdFlags};
    let end = Instant::now() + limit;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // Not yet waited for, so the number is still the child's.
    let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        match &pidfd {
            Some(pidfd) => {
                let left = Timespec::try_from(left).expect("a limit in days");
                let _ = rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left));
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Waits until this holds, looking every few milliseconds; whether it did within the limit.
pub fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// What `open` gives, asked again while the device is busy: a floe of a neighbouring test that searches devices holds each for
/// a moment.
pub fn patiently(open: impl Fn() -> Result<Device, Fault>) -> Result<Device, Fault> {
    let mut opened = open();
    wait_until(Duration::from_secs(30), || {
        let busy = matches!(&opened, Err(fault) if fault.is_errno(rustix::io::Errno::BUSY));
        if busy {
            opened = open();
        }
        !busy
    });
    opened
}

/// Sends a signal by name (`TERM`, `KILL`, `STOP` …) to a process.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// An example executable that cargo built beside these tests.
pub fn example(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let path = own.parent()?.parent()?.join("examples").join(name);
    path.exists().then_some(path)
}

/// Runs a system tool that must succeed, at most 5 minutes, and gives its stdout.
#[track_caller]
pub fn output(program: &str, args: &[&str]) -> String {
    let mut tries = 0;
    loop {
        let run = run(
            Command::new(program).args(args).stdin(Stdio::null()),
            Limit(Duration::from_secs(300)),
        );
        if run.code == Some(0) || tries == 100 || !is_busy(&run.stderr_text()) {
            return run.expect_code(0).stdout_text();
        }
        tries += 1;
        thread::sleep(Duration::from_millis(100));
    }
}

/// Whether a tool gave up because somebody else had its device: a neighbour that asks a mount how full it is, or a disk what
/// it holds, has it open for a moment. Every tool has its own words for that.
fn is_busy(stderr: &str) -> bool {
    ["busy", "in use", "error deleting partition"]
        .iter()
        .any(|words| stderr.contains(words))
}

/// Copies a program that is to be run. Another process does it: a file that this one has open for writing is open in whatever
/// another thread forks just then, and to run it is ETXTBSY.
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    output("cp", &[&from.to_string_lossy(), &to.to_string_lossy()]);
}

/// Runs a shell script with `set -e` and `pipefail`, at most `limit`.
#[track_caller]
pub fn shell(script: &str, limit: Limit) -> Run {
    let mut command = Command::new("bash");
    command
        .args(["-e", "-o", "pipefail", "-c", script])
        .stdin(Stdio::null());
    run(&mut command, limit)
}

/// Whether a program is installed (also in the administrator's folders).
pub fn have(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .any(|folder| Path::new(folder).join(program).is_file())
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Tests that measure time or count system-wide things take this lock and run one at a time.
pub fn serial() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- scratch folders ------------------------------------------------------------------------------------------------

/// A folder of the test's own, removed with everything in it.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new() -> Scratch {
        let base = std::env::var_os("FLOE_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::below(&base)
    }

    /// On a disk: for what a filesystem in memory lacks.
    pub fn on_disk() -> Scratch {
        Self::below(&std::env::temp_dir())
    }

    fn below(base: &Path) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("floe-it.{}.{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Scratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let disagreements = match thread::panicking() {
            true => Vec::new(),
            false => agree::disagreements(&self.path),
        };
        // --one-file-system: should an unmount have failed, what is mounted there is left alone.
        let _ = Command::new("rm")
            .args(["-rf", "--one-file-system", "--"])
            .arg(&self.path)
            .stderr(Stdio::null())
            .status();
        assert!(disagreements.is_empty(), "{disagreements:#?}");
    }
}
