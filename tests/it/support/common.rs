//! What the integration tests share: the executable under test, time limits, scratch folders, loop filesystems that
//! always thaw, unmount and detach, background writers, and folder comparison.
//!
//! Never here: anything that could touch a filesystem the test did not make. Everything lies under `$FLOE_SCRATCH`
//! (or the system's temporary folder), so that `tests/run` can clean up after a test that was killed.

#![allow(dead_code)] // a toolbox: not every file uses every tool

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

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
        // A neighbour may be looking at it: whoever asks a mount how full it is has it open.
        let text = run.stderr_text();
        if run.code == Some(0) || tries == 20 || !text.contains("busy") {
            return run.expect_code(0).stdout_text();
        }
        tries += 1;
        thread::sleep(Duration::from_millis(100));
    }
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
        // --one-file-system: should an unmount have failed, what is mounted there is left alone.
        let _ = Command::new("rm")
            .args(["-rf", "--one-file-system", "--"])
            .arg(&self.path)
            .stderr(Stdio::null())
            .status();
    }
}

// ---- loop devices and filesystems -----------------------------------------------------------------------------------

/// A loop device of the test's own over a file; detached on drop.
pub struct LoopDevice {
    device: PathBuf,
    /// What the kernel says lies behind it: by this it is known to be still ours.
    behind: String,
}

impl LoopDevice {
    /// Attaches a file. `sector_size` is 512 or 4096.
    #[track_caller]
    pub fn attach(file: &Path, sector_size: u32) -> LoopDevice {
        let sector = sector_size.to_string();
        Self::attach_with(file, &["--sector-size", &sector])
    }

    /// Over a new file `name` of `mib` MiB, all of this byte; zeros are a hole.
    #[track_caller]
    pub fn filled(scratch: &Scratch, name: &str, mib: u64, byte: u8) -> LoopDevice {
        let path = scratch.join(name);
        let mut file = fs::File::create(&path).expect("file");
        if byte == 0 {
            file.set_len(mib << 20).expect("file");
        } else {
            let piece = vec![byte; 1 << 20];
            (0..mib).for_each(|_| file.write_all(&piece).expect("fill"));
        }
        Self::attach(&path, 512)
    }

    /// With these options of `losetup`; `-P`: it may have partitions, which go away with it.
    #[track_caller]
    pub fn attach_with(file: &Path, options: &[&str]) -> LoopDevice {
        let shown = file.to_string_lossy();
        let mut unfit = Vec::new(); // held until one fits, so that the next one is another
        for attempt in 0..40 {
            let mut losetup = Command::new("losetup");
            losetup.args(["-f", "--show"]).args(options).arg(&*shown);
            let made = run(losetup.stdin(Stdio::null()), Limit::secs(60));
            // Between finding a free one and taking it somebody else may be quicker.
            if made.code != Some(0) {
                let text = made.stderr_text();
                let raced = text.contains("busy") || text.contains("No such");
                assert!(raced && attempt < 39, "{made}");
                thread::sleep(Duration::from_millis(10 + 5 * attempt));
                continue;
            }
            let device = PathBuf::from(made.stdout_text().trim());
            let behind = behind(&device);
            let made = LoopDevice { device, behind };
            made.forget_partitions();
            // A partition that is still in use somewhere stays, and would be in this test's way.
            if made.is_whole(file) && !made.has_partitions(options) {
                return made;
            }
            unfit.push(made);
        }
        panic!("{shown}: no loop device fits: all have partitions of others");
    }

    /// As long as its file: nobody detached it in the same instant.
    fn is_whole(&self, file: &Path) -> bool {
        let name = self.device.file_name().unwrap();
        let sectors = fs::read_to_string(Path::new("/sys/block").join(name).join("size"));
        let sectors = sectors
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let length = fs::metadata(file).map_or(0, |meta| meta.len());
        length < 4096 || sectors.is_some_and(|sectors| sectors != 0)
    }

    fn has_partitions(&self, options: &[&str]) -> bool {
        !options.contains(&"-P") && self.partitions() > 0
    }

    /// Partitions that the kernel knows of.
    fn partitions(&self) -> usize {
        let name = self.device.file_name().unwrap().to_string_lossy();
        let inside = fs::read_dir(format!("/sys/block/{name}")).into_iter();
        let names = inside.flatten().flatten().map(|entry| entry.file_name());
        names
            .filter(|entry| entry.to_string_lossy().starts_with(&*name))
            .count()
    }

    /// Partitions that somebody told the kernel of outlive `losetup -d`, and would be the next file's. So may nodes that no
    /// partition has any more: the kernel makes none of its own where one of that name stands.
    fn forget_partitions(&self) {
        let name = self.device.file_name().unwrap().to_string_lossy();
        if self.partitions() > 0 {
            let _ = Command::new("partx")
                .arg("-d")
                .arg(&self.device)
                .stderr(Stdio::null())
                .status();
        }
        for number in 1..10 {
            let part = format!("{name}p{number}");
            if !Path::new(&format!("/sys/block/{name}/{part}")).exists() {
                let _ = fs::remove_file(format!("/dev/{part}"));
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Waits until nothing holds it: a mount namespace that somebody made meanwhile began with a copy of our mount, and
    /// whoever lists devices (`losetup`, `blkid`, a floe that searches) has each open for a moment.
    pub fn wait_until_free(&self) {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
        wait_until(Duration::from_secs(30), || {
            rustix::fs::open(&self.device, flags, rustix::fs::Mode::empty()).is_ok()
        });
    }
}

/// The file behind a loop device, in the kernel's words; a file that was deleted since is the same file.
fn behind(device: &Path) -> String {
    let name = device.file_name().unwrap_or_default();
    let path = Path::new("/sys/block").join(name).join("loop/backing_file");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().trim_end_matches(" (deleted)").to_owned()
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Detached by the test itself, it may be somebody else's by now.
        if behind(&self.device) != self.behind {
            return;
        }
        self.forget_partitions();
        let _ = Command::new("losetup")
            .arg("-d")
            .arg(&self.device)
            .stderr(Stdio::null())
            .status();
    }
}

/// What filesystem to make. `..Spec::default()` fills in ext4, 64 MiB, 512 byte sectors.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// As `mkfs.KIND` and `mount -t KIND` name it.
    pub kind: &'a str,
    pub mib: u64,
    /// Further options of mkfs.
    pub mkfs: &'a [&'a str],
    /// Mount options, comma separated.
    pub options: &'a str,
    pub sector_size: u32,
}

impl Default for Spec<'_> {
    fn default() -> Self {
        Spec {
            kind: "ext4",
            mib: 64,
            mkfs: &[],
            options: "",
            sector_size: 512,
        }
    }
}

/// A filesystem of the test's own: image file, loop device, mounted. On drop it is thawed, unmounted and detached,
/// whatever the test left it in.
pub struct LoopFs {
    kind: String,
    options: String,
    mount_point: PathBuf,
    image: PathBuf,
    // Fields drop in this order: the device before the folder that holds its file.
    device: LoopDevice,
    scratch: Scratch,
}

impl LoopFs {
    /// Makes and mounts it, or says what is missing (to be given to `skip`).
    #[track_caller]
    pub fn make(spec: Spec<'_>) -> Result<LoopFs, String> {
        if !is_root() {
            return Err("root".to_owned());
        }
        if !have(&format!("mkfs.{}", spec.kind)) {
            return Err(format!("mkfs.{}", spec.kind));
        }
        if !kernel_has(spec.kind) {
            return Err(format!("{} in this kernel", spec.kind));
        }
        let scratch = Scratch::new();
        let image = scratch.join("image");
        let mount_point = scratch.join("mnt");
        fs::create_dir(&mount_point).expect("mount point");
        fs::File::create(&image)
            .and_then(|file| file.set_len(spec.mib * 1024 * 1024))
            .expect("image file");
        let device = LoopDevice::attach(&image, spec.sector_size);
        let force: &[&str] = match spec.kind {
            "ext2" | "ext3" | "ext4" => &["-q", "-F"],
            "xfs" | "btrfs" => &["-q", "-f"],
            "f2fs" => &["-f"],
            _ => &[],
        };
        let mut mkfs = Command::new(format!("mkfs.{}", spec.kind));
        mkfs.args(force)
            .args(spec.mkfs)
            .arg(device.path())
            .stdin(Stdio::null());
        run(&mut mkfs, Limit::secs(120)).expect_code(0);
        let mut made = LoopFs {
            kind: spec.kind.to_owned(),
            options: spec.options.to_owned(),
            mount_point,
            image,
            device,
            scratch,
        };
        made.mount();
        Ok(made)
    }

    pub fn dir(&self) -> &Path {
        &self.mount_point
    }

    pub fn device(&self) -> &Path {
        self.device.path()
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    /// A folder beside the image (on the machine's own filesystem), for outputs.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    #[track_caller]
    pub fn mount(&mut self) {
        let device = self.device.path().to_string_lossy().into_owned();
        let dir = self.mount_point.to_string_lossy().into_owned();
        let mut args = vec!["-t", self.kind.as_str()];
        if !self.options.is_empty() {
            args.extend(["-o", self.options.as_str()]);
        }
        args.extend([device.as_str(), dir.as_str()]);
        output("mount", &args);
    }

    #[track_caller]
    pub fn unmount(&mut self) {
        thaw(&self.mount_point);
        output("umount", &[&self.mount_point.to_string_lossy()]);
        self.device.wait_until_free();
    }

    /// Writes a mixture of files (small, large, sparse, in folders, linked, some deleted again), and syncs.
    pub fn fill(&self, files: u32) {
        fill(&self.mount_point, files);
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if is_mounted(&self.mount_point) {
            release(&self.mount_point);
        }
    }
}

/// Mounts a device or image somewhere of its own, read-write unless the options say otherwise; unmounted on drop.
pub struct Mounted {
    dir: PathBuf,
    _scratch: Scratch,
}

impl Mounted {
    /// A file is mounted through a loop device that goes away with the mount.
    #[track_caller]
    pub fn new(kind: &str, source: &Path, options: &str) -> Mounted {
        let scratch = Scratch::new();
        let dir = scratch.join("mnt");
        fs::create_dir(&dir).expect("mount point");
        let is_block = fs::metadata(source).is_ok_and(|meta| meta.file_type().is_block_device());
        let mut all = options.to_owned();
        if !is_block {
            all = format!("loop,{all}").trim_end_matches(',').to_owned();
        }
        let source = source.to_string_lossy();
        let place = dir.to_string_lossy();
        if all.is_empty() {
            output("mount", &["-t", kind, &source, &place]);
        } else {
            output("mount", &["-t", kind, "-o", &all, &source, &place]);
        }
        Mounted {
            dir,
            _scratch: scratch,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            release(&self.dir);
        }
    }
}

/// The filesystem's own checker finds nothing; it changes nothing either.
#[track_caller]
pub fn fsck(kind: &str, image: &Path) {
    let (tool, words): (&str, &[&str]) = match kind {
        // -f: the image is a file.
        "xfs" if image.is_file() => ("xfs_repair", &["-f", "-n"]),
        "xfs" => ("xfs_repair", &["-n"]),
        "btrfs" => ("btrfs", &["check", "--readonly"]),
        "vfat" => ("fsck.vfat", &["-n"]),
        _ => ("e2fsck", &["-fn"]),
    };
    run(
        Command::new(tool)
            .args(words)
            .arg(image)
            .stdin(Stdio::null()),
        Limit::secs(120),
    )
    .expect_code(0);
}

/// Thaws what may be frozen; says nothing when it was not.
pub fn thaw(dir: &Path) {
    let _ = Command::new("timeout")
        .args(["20", "fsfreeze", "-u"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Freezes a filesystem of the test's own, as somebody else would.
#[track_caller]
pub fn freeze(dir: &Path) {
    assert!(is_mounted(dir), "{} is not mounted", dir.display());
    output("timeout", &["30", "fsfreeze", "-f", &dir.to_string_lossy()]);
}

fn release(dir: &Path) {
    for attempt in 0..40 {
        thaw(dir);
        let done = Command::new("umount")
            .arg(dir)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if done && !is_mounted(dir) {
            return;
        }
        thread::sleep(Duration::from_millis(20 * (1 + attempt % 10)));
    }
    eprintln!("could not unmount {}; detaching it", dir.display());
    let _ = Command::new("umount").arg("-l").arg(dir).status();
}

/// Our mount table. A neighbour may have mounted something under a name that is no text.
pub fn mount_table() -> String {
    let table = fs::read("/proc/self/mountinfo").expect("mountinfo");
    String::from_utf8_lossy(&table).into_owned()
}

/// Whether something is mounted exactly here.
pub fn is_mounted(dir: &Path) -> bool {
    let wanted = dir.to_string_lossy().replace(' ', "\\040");
    mount_table()
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
}

/// Whether the kernel mounts this kind of filesystem (loading its module where there is one).
pub fn kernel_has(kind: &str) -> bool {
    let known = || {
        fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .lines()
            .any(|line| line.split_whitespace().last() == Some(kind))
    };
    known() || {
        let _ = Command::new("modprobe")
            .args(["-q", kind])
            .stderr(Stdio::null())
            .status();
        known()
    }
}

/// Whether a write to this folder ends within the limit. When it does not, the filesystem is thawed, so that the
/// writer (in state D, no signal reaches it) can end.
pub fn write_ends_within(dir: &Path, limit: Duration) -> bool {
    let file = dir.join(".write-probe");
    let mut child = Command::new("dd")
        .args([
            "if=/dev/zero",
            "bs=4096",
            "count=1",
            "conv=fsync",
            "status=none",
        ])
        .arg(format!("of={}", file.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dd");
    let ended = wait_for(&mut child, limit).is_some_and(|status| status.success());
    if !ended {
        thaw(dir);
        let _ = wait_for(&mut child, Duration::from_secs(20));
    }
    let _ = fs::remove_file(file);
    ended
}

/// Asserts promise 1: a write ends within a second.
#[track_caller]
pub fn assert_not_frozen(dir: &Path, when: &str) {
    assert!(
        write_ends_within(dir, Duration::from_secs(1)),
        "{} is still frozen {when}",
        dir.display()
    );
}

/// A process that creates, appends, renames and deletes files until it is dropped.
pub struct Writer {
    child: Child,
    dir: PathBuf,
}

impl Writer {
    pub fn start(dir: &Path) -> Writer {
        let busy = dir.join("busy");
        fs::create_dir_all(&busy).expect("folder for the writer");
        let script = "i=0; while :; do i=$((i + 1)); n=$((i % 50)); \
            head -c $((n * 997 + 1)) /dev/urandom > \"$1/new.$n\" && mv \"$1/new.$n\" \"$1/file.$n\"; \
            echo $i >> \"$1/log\"; [ $((i % 7)) = 0 ] && rm -f \"$1/file.$(((n + 25) % 50))\"; \
            [ $((i % 1000)) = 0 ] && : > \"$1/log\"; sleep 0.002; done";
        let child = Command::new("sh")
            .args(["-c", script, "writer"])
            .arg(&busy)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("writer");
        Writer {
            child,
            dir: dir.to_owned(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        if wait_for(&mut self.child, Duration::from_millis(500)).is_none() {
            thaw(&self.dir); // held inside a frozen write
            let _ = wait_for(&mut self.child, Duration::from_secs(20));
        }
    }
}

// ---- files ----------------------------------------------------------------------------------------------------------

/// A small generator with a seed, so that every run writes the same bytes (xorshift64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count + 8);
        while out.len() < count {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(count);
        out
    }
}

/// A mixture of real-looking files; every third is deleted again, so that free space holds old bytes.
pub fn fill(dir: &Path, files: u32) {
    let mut random = Random(0x5eed_f10e);
    for number in 0..files {
        let folder = dir.join(format!("folder{}", number % 13));
        fs::create_dir_all(&folder).expect("folder");
        let path = folder.join(format!("file{number}"));
        let size = match number % 5 {
            0 => random.below(60),
            1..=3 => random.below(20_000),
            _ => random.below(200_000),
        };
        let size = usize::try_from(size).expect("small");
        let bytes = if number % 2 == 0 {
            random.bytes(size)
        } else {
            format!("line of text number {number}\n")
                .repeat(size / 24 + 1)
                .into_bytes()
        };
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if number % 11 == 0 {
            let _ = std::os::unix::fs::symlink(&path, folder.join(format!("link{number}")));
        }
        if number % 17 == 0 {
            fs::File::create(folder.join(format!("sparse{number}")))
                .and_then(|file| file.set_len(1 << 20))
                .expect("sparse file");
        }
    }
    for number in (0..files).step_by(3) {
        let _ = fs::remove_file(dir.join(format!("folder{}/file{number}", number % 13)));
    }
    output("sync", &["-f", &dir.to_string_lossy()]);
}

/// Everything below a folder: path → kind, mode, owner, size and a hash of the content. Two trees are equal exactly
/// when these maps are. `lost+found` and the folder's own times are left out.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(folder) = waiting.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("entry").path();
            let name = path.strip_prefix(dir).expect("below").to_owned();
            if name == Path::new("lost+found") {
                continue;
            }
            let meta =
                fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let content = if meta.is_dir() {
                waiting.push(path);
                0
            } else if meta.is_symlink() {
                hash(
                    fs::read_link(&path)
                        .expect("link")
                        .to_string_lossy()
                        .as_bytes(),
                )
            } else if meta.is_file() {
                hash_file(&path)
            } else {
                meta.rdev()
            };
            let size = if meta.is_dir() { 0 } else { meta.len() };
            let line = format!(
                "{:o} {}:{} {size} {content:016x}",
                meta.mode(),
                meta.uid(),
                meta.gid()
            );
            found.insert(name, line);
        }
    }
    found
}

/// Panics with the first differences unless two trees are equal.
#[track_caller]
pub fn assert_same_tree(expected: &BTreeMap<PathBuf, String>, found: &BTreeMap<PathBuf, String>) {
    let mut wrong = Vec::new();
    for (path, line) in expected {
        match found.get(path) {
            None => wrong.push(format!("{} is missing", path.display())),
            Some(other) if other != line => {
                wrong.push(format!("{}: {line} became {other}", path.display()));
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        wrong.push(format!("{} is new", path.display()));
    }
    assert!(
        wrong.is_empty(),
        "{} of {} entries differ: {:#?}",
        wrong.len(),
        expected.len(),
        &wrong[..wrong.len().min(10)]
    );
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A hash of a file's or device's content, read in pieces.
pub fn hash_file(path: &Path) -> u64 {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let count = file
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if count == 0 {
            return hasher.finish();
        }
        hasher.write(&buffer[..count]);
    }
}
