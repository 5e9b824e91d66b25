//! Pre-copy under torture: what is read while a filesystem is written to, and what the freeze leaves of it, must be the image that a
//! full copy under the same freeze gives.
//!
//! A debug build of floe keeps the filesystem frozen when it has read all (FLOE_TEST_HOLD), and meanwhile the test copies the
//! file behind the loop device. Every block of the image that is not zeros must be that copy's; both are checked and mounted, and
//! every file must be the same, so that a block that came out as zeros was free. The writers do all that a filesystem knows.
//!
//! `FLOE_TORTURE` says how often each is tried (once where it is not set).

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use floe::mounts::mount_kernel;
use floe::sys::memory::Pages;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::common::{self, Limit, LoopDevice, LoopFs, Mounted, Random, Scratch, Spec};
use crate::disk::Disk;

/// Files of one writer.
const FILES: u64 = 10;
/// What they may grow to.
const FILE_BYTES: u64 = 1 << 20;
/// What lies there beside them and is written in place.
const BALLAST_BYTES: usize = 24 << 20;

/// The floe that cargo built with these tests; only a debug build can be held.
fn floe() -> Option<Command> {
    let usable = cfg!(debug_assertions) && common::runner().is_none() && common::is_root();
    usable.then(|| Command::new(env!("CARGO_BIN_EXE_floe")))
}

macro_rules! require_torture {
    () => {
        require!(floe().is_some(), "root, a debug build, no runner");
        if let Err(why) = floe::trace::available() {
            common::skip(&format!("tracefs with block events ({why})"));
            return;
        }
    };
}

fn rounds() -> u64 {
    let told = std::env::var("FLOE_TORTURE").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = clock.map_or(7, |since| since.as_nanos() as u64) ^ number << 48;
    eprintln!("seed {seed:#x}");
    seed | 1
}

// ---- the writers ----------------------------------------------------------------------------------------------------

/// Threads that write to a folder until this is dropped.
struct Torture {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// In the campaign: writes that are only queued, many at once.
    queued: Option<Ended>,
    dir: PathBuf,
}

impl Torture {
    fn prepare(dir: &Path) {
        let ballast = dir.join("ballast");
        if !ballast.exists() {
            fs::write(&ballast, Random(0xba11).bytes(BALLAST_BYTES)).expect("ballast");
            common::fill(dir, 60);
        }
    }

    fn start(dir: &Path, seed: u64, pause: Duration) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let threads = (0..3u64).map(|number| {
            let ended = Arc::clone(&ended);
            let dir = dir.to_owned();
            thread::spawn(move || {
                let own = dir.join(format!("writer{number}"));
                let _ = fs::create_dir(&own);
                let mut random = Random(seed.wrapping_add(number * 7919) | 1);
                while !ended.load(Ordering::Relaxed) {
                    // What does not fit, or is not there now, is none of our business.
                    let _ = write_once(&dir, &own, &mut random);
                    thread::sleep(pause);
                }
            })
        });
        let queued = (rounds() > 1 && common::have("fio")).then(|| {
            let mut fio = Command::new("fio");
            fio.args("--name=queued --filename=queued --size=6M --ioengine=libaio".split(' '));
            fio.args("--direct=1 --iodepth=16 --rw=randwrite --bs=4k-32k".split(' '));
            fio.args("--time_based --runtime=300 --fallocate=none".split(' '));
            if !pause.is_zero() {
                fio.arg(format!("--thinktime={}", pause.as_micros()));
            }
            fio.arg(format!("--randseed={seed}")).current_dir(dir);
            fio.stdin(Stdio::null()).stdout(Stdio::null());
            Ended(fio.spawn().expect("fio"))
        });
        Self {
            threads: threads.collect(),
            queued,
            ended,
            dir: dir.to_owned(),
        }
    }
}

impl Drop for Torture {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if !common::wait_until(Duration::from_secs(20), || {
            self.threads.iter().all(JoinHandle::is_finished)
        }) {
            common::thaw(&self.dir);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(mut fio) = self.queued.take() {
            // Asked, it ends its children too, which would keep the filesystem busy.
            common::signal(fio.0.id(), "TERM");
            common::wait_for(&mut fio.0, Duration::from_secs(20));
        }
    }
}

fn open(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options.custom_flags(flags.bits().cast_signed()).open(path)
}

/// One operation of those that filesystems know.
fn write_once(dir: &Path, own: &Path, random: &mut Random) -> std::io::Result<()> {
    let path = own.join(format!("file{}", random.below(FILES)));
    let at = random.below(FILE_BYTES);
    let length = random.below(60_000) + 1;
    let bytes = random.bytes(length as usize);
    let none = OFlags::empty();
    match random.below(14) {
        0 | 1 => open(&path, none)?.write_all_at(&bytes, at)?,
        2 => {
            let file = open(&path, none)?;
            let end = file.metadata()?.len() % FILE_BYTES;
            file.write_all_at(&bytes, end)?;
        }
        3 => open(&path, none)?.set_len(at)?,
        4 => fs::rename(&path, own.join(format!("file{}", random.below(FILES))))?,
        5 => fallocate(open(&path, none)?, FallocateFlags::empty(), at, length)?,
        6 => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(open(&path, none)?, punch, at, length)?;
        }
        7 => map_and_store(&open(&path, none)?, at, random)?,
        8 => {
            let mut pages = Pages::new(8192)?;
            pages.copy_from_slice(&random.bytes(8192));
            open(&path, OFlags::DIRECT)?.write_all_at(&pages, at & !4095)?;
        }
        9 => {
            let file = open(&path, none)?;
            file.write_all_at(&bytes, at)?;
            file.sync_data()?;
        }
        // In place, in what was read early: through the cache, and past it.
        10 | 11 => {
            let file = open(&dir.join("ballast"), none)?;
            let at = random.below((BALLAST_BYTES - 60_000) as u64);
            file.write_all_at(&bytes, at)?;
            if at.is_multiple_of(3) {
                file.sync_data()?;
            }
        }
        12 => {
            let mut pages = Pages::new(4096)?;
            pages.copy_from_slice(&random.bytes(4096));
            let at = random.below(BALLAST_BYTES as u64) & !4095;
            open(&dir.join("ballast"), OFlags::DIRECT)?.write_all_at(&pages, at)?;
        }
        _ => {
            fs::remove_file(&path)?;
            let folder = own.join(format!("folder{}", random.below(40)));
            let _ = fs::create_dir(&folder).or_else(|_| fs::remove_dir(&folder));
        }
    }
    Ok(())
}

fn map_and_store(file: &File, at: u64, random: &mut Random) -> std::io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let at = at & !4095;
    if file.metadata()?.len() < at + 4096 {
        file.set_len(at + 4096)?;
        // A store into a hole that finds no room is a signal: its block is made first.
        file.write_all_at(&random.bytes(4096), at)?;
    }
    // Another of these threads never shortens this file: each has its own.
    // SAFETY: a new mapping of a page that the file has, gone before this returns.
    unsafe {
        let start = mmap(
            std::ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file.as_fd(),
            at,
        )?;
        for _ in 0..4 {
            let place = start.cast::<u8>().add(random.below(4096) as usize);
            place.write(random.next() as u8);
        }
        munmap(start, 4096)?;
    }
    Ok(())
}

// ---- one run, held, with the copies taken meanwhile --------------------------------------------------------------------

/// A run of floe that is held frozen at its end.
struct Held<'a> {
    /// What is written to.
    dirs: &'a [&'a Path],
    /// Copied while it is frozen: from, to.
    copies: &'a [(&'a Path, &'a Path)],
    /// Between two writes of a thread.
    pause: Duration,
    lies: &'a str,
    /// Where frames become an image.
    frames_to: Option<&'a Path>,
}

/// What its report says.
#[derive(Clone, Debug)]
struct Told {
    precopy: String,
    early: u64,
    again: u64,
}

fn field(report: &str, key: &str) -> String {
    let rest = report.split(&format!("\"{key}\":")).nth(1).unwrap_or("");
    let end = rest.find([',', '}', '\n']).unwrap_or(rest.len());
    rest[..end].trim().trim_matches('"').to_owned()
}

fn told(report: &str) -> Told {
    let number = |key| field(report, key).parse().unwrap_or(0);
    Told {
        precopy: field(report, "precopy"),
        early: number("early_bytes"),
        again: number("again_bytes"),
    }
}

impl Held<'_> {
    /// Runs floe with these words; an error is what floe said.
    fn run(&self, words: &[&str]) -> Result<Told, String> {
        let scratch = Scratch::new();
        let hold = scratch.join("hold");
        let report = scratch.join("report");
        File::create(&hold).expect("hold");
        let seed = seed();
        let writers: Vec<Torture> = (0..)
            .zip(self.dirs)
            .map(|(number, dir)| Torture::start(dir, seed ^ number << 8, self.pause))
            .collect();
        thread::sleep(Duration::from_millis(Random(seed).below(200)));
        let mut command = floe().expect("looked for before");
        let mut copier = Command::new("bash");
        copier.args(["-c", COPY]).arg(&hold).stdin(Stdio::null());
        for (from, to) in self.copies {
            let _ = fs::remove_file(to);
            copier.arg(from).arg(to);
        }
        let mut copier = Ended(copier.spawn().expect("bash"));
        let mut receiver = self.frames_to.map(|image| {
            // It takes nothing for a while: what is written meanwhile comes again.
            let script = "(sleep 0.7; exec cat) | exec \"$0\" restore - \"$1\" -q";
            let mut receiver = Command::new("bash");
            let receiver = receiver.args(["-o", "pipefail", "-c", script]);
            let receiver = receiver.arg(env!("CARGO_BIN_EXE_floe")).arg(image);
            Ended(receiver.stdin(Stdio::piped()).spawn().expect("bash"))
        });
        let stdout = match receiver.as_mut().and_then(|one| one.0.stdin.take()) {
            Some(pipe) => Stdio::from(pipe),
            None => Stdio::null(),
        };
        let child = command
            .args(words)
            .args(["--stall", "100s", "--report"])
            .arg(&report)
            .env("FLOE_TEST_HOLD", &hold)
            .env("FLOE_TRACE_LIES", self.lies)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(File::create(scratch.join("stderr")).expect("stderr"))
            .spawn()
            .expect("floe");
        let mut child = Ended(child);
        let status = common::wait_for(&mut child.0, Duration::from_secs(200)).expect("it ends");
        File::create(scratch.join("hold.over")).expect("hold");
        let said = || fs::read_to_string(scratch.join("stderr")).unwrap_or_default();
        common::wait_for(&mut copier.0, Duration::from_secs(100)).expect("the copier ends");
        drop(writers);
        // The command holds the other end of its pipe.
        drop(command);
        if let Some(receiver) = &mut receiver {
            let taken = common::wait_for(&mut receiver.0, Duration::from_secs(60));
            if status.success() && !taken.expect("the receiver ends").success() {
                return Err("the frames were not taken".to_owned());
            }
        }
        match status.success() {
            true => Ok(told(&fs::read_to_string(&report).unwrap_or_default())),
            false => Err(format!("{status:?}: {}", said())),
        }
    }
}

/// Copies while it is held, and lets go. A process that is there before: ours can make none, nor a mapping, while one of its threads
/// stores to what is frozen.
const COPY: &str = r#"
until [ -e "$0.frozen" ]; do [ ! -e "$0.over" ] || exit 0; sleep 0.02; done
while [ $# -gt 1 ]; do cp --sparse=always "$1" "$2" || break; shift 2; done
rm "$0.frozen"
"#;

/// A child that does not outlive its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether every block of an image that is not zeros is the copy's. How many are zeros and not so in the copy.
fn same_blocks(image: &Path, copy: &Path) -> Result<u64, String> {
    let (mut image, mut copy) = (
        File::open(image).expect("image"),
        File::open(copy).expect("copy"),
    );
    let mut pieces = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    let (mut at, mut zeros, mut wrong) = (0u64, 0, Vec::new());
    loop {
        let length = fill(&mut image, &mut pieces.0);
        if length != fill(&mut copy, &mut pieces.1) {
            return Err("lengths differ".to_owned());
        }
        if length == 0 {
            break;
        }
        let pairs = pieces.0[..length].chunks(512).zip(pieces.1.chunks(512));
        for (number, (ours, theirs)) in (at / 512..).zip(pairs) {
            if ours == theirs {
            } else if ours.iter().all(|byte| *byte == 0) {
                zeros += 1;
            } else {
                wrong.push(number);
            }
        }
        at += length as u64;
    }
    match wrong.is_empty() {
        true => Ok(zeros),
        false => Err(format!(
            "{} sectors differ from the copy under the freeze: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(12)]
        )),
    }
}

fn fill(from: &mut File, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer[done..]) {
        done += count;
    }
    done
}

/// Whether an image and the copy hold the same files, and whether its checker finds nothing. The original is not mounted meanwhile.
fn same_files(kind: &str, image: &Path, copy: &Path) -> Result<(), String> {
    let tree = |path: &Path| common::tree(Mounted::new(kind, path, "").dir());
    // An image that lies may be as wrong as that.
    let found = std::panic::catch_unwind(|| {
        let found = tree(image);
        common::fsck(kind, image);
        found
    });
    let found = found.map_err(|_| format!("the image is no whole {kind}"))?;
    // As far as the device goes: a copy may be longer than its filesystem.
    let expected = tree(copy);
    let mut wrong = expected
        .iter()
        .filter(|(path, line)| found.get(*path) != Some(line));
    match (wrong.next(), found.len() == expected.len()) {
        (None, true) => Ok(()),
        (first, _) => Err(format!("files differ: {first:?}")),
    }
}

/// A filesystem to torture.
struct Rack {
    kind: &'static str,
    fs: LoopFs,
}

impl Rack {
    fn new(kind: &'static str) -> Option<Self> {
        let mib = if kind == "xfs" { 320 } else { 160 };
        let spec = Spec {
            kind,
            mib,
            ..Spec::default()
        };
        match LoopFs::make(spec) {
            Ok(fs) => {
                Torture::prepare(fs.dir());
                Some(Self { kind, fs })
            }
            Err(missing) => {
                common::skip(&missing);
                None
            }
        }
    }

    /// Dumps it under torture and proves the image.
    fn dump(&mut self, words: &[&str], pause: u64, lies: &str) -> Result<Told, String> {
        let scratch = Scratch::new();
        let (out, image, copy) = (
            scratch.join("out"),
            scratch.join("image"),
            scratch.join("copy"),
        );
        let dir = self.fs.dir().to_owned();
        let frames = words.contains(&"--frames");
        let held = Held {
            dirs: &[&dir],
            copies: &[(self.fs.image(), &copy)],
            pause: Duration::from_millis(pause),
            lies,
            frames_to: frames.then_some(&image),
        };
        let (dir, to) = (dir.to_string_lossy(), out.to_string_lossy());
        let mut all = vec!["dump", &dir];
        if !frames {
            all.extend(["-o", &to]);
        }
        all.extend(words);
        let told = held.run(&all)?;
        if frames {
            // It was made where the frames went.
        } else if words.windows(2).any(|pair| pair == ["-z", "none"]) {
            fs::rename(&out, &image).expect("image");
        } else {
            let script = format!("zcat < '{to}' > '{}'", image.display());
            common::shell(&script, Limit::secs(100)).expect_code(0);
        }
        self.prove(&image, &copy)?;
        Ok(told)
    }

    fn prove(&mut self, image: &Path, copy: &Path) -> Result<(), String> {
        let zeros = same_blocks(image, copy)?;
        eprintln!("{}: {zeros} sectors of what is free are zeros", self.kind);
        self.fs.unmount();
        let same = same_files(self.kind, image, copy);
        self.fs.mount();
        same
    }
}

const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

fn torture(kind: &'static str) {
    require_torture!();
    let _serial = common::serial();
    let mut rack = require_some!(Rack::new(kind), "a filesystem");
    let ways: &[(&[&str], &str)] = &[
        (&[], "traced"),
        (&["--precopy", "compare"], "compared"),
        (&["-z", "none"], "traced"),
        (&["--spool", "8M"], "traced"),
        (&["--precopy", "compare", "--spool", "8M"], "compared"),
        (&["--precopy", "off"], "off"),
        (&["--frames"], "traced"),
        (
            &["--frames", "--precopy", "compare", "--spool", "8M"],
            "compared",
        ),
    ];
    // Without the campaign: two ways of each filesystem (of ext4 those of frames, too), so that all ways are tried with one of them.
    let rounds = rounds();
    let first = match kind {
        _ if rounds > 1 => 0,
        "ext4" => 0,
        "xfs" => 2,
        _ => 4,
    };
    let mut tried: Vec<usize> = (first..ways.len()).take(2).collect();
    match kind {
        _ if rounds > 1 => tried = (0..ways.len()).collect(),
        "ext4" => tried.extend([6, 7]),
        _ => {}
    }
    let (mut early, mut again) = (0, 0);
    for round in 0..rounds {
        for (number, (words, expected)) in tried.iter().map(|number| (*number, &ways[*number])) {
            let pause = [0, 2, 20][(round as usize + number) % 3];
            let began = Instant::now();
            let told = rack.dump(words, pause, "");
            eprintln!(
                "{kind} {round} {words:?} every {pause} ms: {told:?} in {:?}",
                began.elapsed()
            );
            let told = told.unwrap_or_else(|why| panic!("{kind}, {words:?}: {why}"));
            // On a machine that is busy the trace may lose something: it must say so, never the image.
            let fits = told.precopy == *expected || told.precopy == "compared";
            assert!(fits, "{words:?}: {told:?}");
            early += told.early;
            again += told.again;
        }
    }
    assert!(early > 0, "nothing was read early");
    eprintln!("{kind}: {early} bytes early, {again} again");
}

#[test]
fn an_image_of_an_ext4_under_torture_is_what_a_copy_under_the_freeze_is() {
    torture(KINDS[0]);
}

#[test]
fn an_image_of_an_xfs_under_torture_is_what_a_copy_under_the_freeze_is() {
    torture(KINDS[1]);
}

#[test]
fn an_image_of_a_btrfs_under_torture_is_what_a_copy_under_the_freeze_is() {
    torture(KINDS[2]);
}

#[test]
fn with_a_trace_that_lies_the_image_is_wrong_and_these_tests_see_it() {
    require_torture!();
    let _serial = common::serial();
    let mut rack = require_some!(Rack::new("ext4"), "ext4");
    for lies in ["drop=2", "shift=1024"] {
        let mut found = None;
        for _ in 0..4 {
            if let Err(why) = rack.dump(&["-z", "none"], 0, lies) {
                found = Some(why);
                break;
            }
        }
        let why = found.unwrap_or_else(|| panic!("{lies}: the image was right every time"));
        eprintln!("{lies}: {why}");
        assert!(
            why.contains("differ") || why.contains("was written to"),
            "{lies}: {why}"
        );
    }
    // How much is written in a moment differs; whatever is lost must be noticed.
    let lost = (0..6).any(|_| {
        let told = rack.dump(&["-z", "none"], 0, "ring=4").expect("ring=4");
        told.precopy == "compared"
    });
    assert!(lost, "the smallest ring held everything six times");
}

// ---- other verbs, other holders ------------------------------------------------------------------------------------------

#[test]
fn two_filesystems_in_a_snapshot_a_clone_and_a_spool_file_under_torture() {
    require_torture!();
    let _serial = common::serial();
    let mut one = require_some!(Rack::new("ext4"), "ext4");
    let mut two = require_some!(Rack::new("btrfs"), "btrfs");
    let (scratch, on_disk) = (Scratch::new(), Scratch::on_disk());
    for round in 0..rounds() {
        let copies = [scratch.join("copy1"), scratch.join("copy2")];
        let (first, second) = (one.fs.dir().to_owned(), two.fs.dir().to_owned());
        let behind = [one.fs.image().to_owned(), two.fs.image().to_owned()];
        let held = Held {
            dirs: &[&first, &second],
            copies: &[(&behind[0], &copies[0]), (&behind[1], &copies[1])],
            pause: Duration::from_millis(2),
            lies: "",
            frames_to: None,
        };
        let zip = scratch.join("x.zip");
        let words = [
            format!("one={}", first.display()),
            format!("two={}", second.display()),
        ];
        let told = held.run(&["create", &words[0], &words[1], "-o", &zip.to_string_lossy()]);
        eprintln!("create {round}: {told:?}");
        told.expect("create");
        for (rack, name, copy) in [(&mut one, "one", &copies[0]), (&mut two, "two", &copies[1])] {
            let image = scratch.join("image");
            let script = format!(
                "unzip -p '{}' images/{name}.img > '{}'",
                zip.display(),
                image.display()
            );
            common::shell(&script, Limit::secs(100)).expect_code(0);
            rack.prove(&image, copy).expect(name);
        }
        fs::remove_file(&zip).expect("zip");

        let file = scratch.join("target");
        let length = fs::metadata(one.fs.image()).expect("image").len();
        File::create(&file)
            .and_then(|file| file.set_len(length))
            .expect("target");
        let target = LoopDevice::attach(&file, 512);
        let held = Held {
            dirs: &[&first],
            copies: &[(&behind[0], &copies[0])],
            ..held
        };
        for more in [&["--verify"][..], &["--verify", "--precopy", "compare"]] {
            let pair = format!("{}={}", first.display(), target.path().display());
            let mut words = vec!["clone", &pair, "--overwrite"];
            words.extend(more);
            let told = held.run(&words);
            eprintln!("clone {round} {more:?}: {told:?}");
            told.expect("clone");
            one.prove(target.path(), &copies[0]).expect("clone");
        }
        drop(target);

        let spool = on_disk.join("spool");
        let words = ["--spool", "4M", "--spool-file", &*spool.to_string_lossy()];
        let told = one.dump(&words, 2, "").expect("--spool-file");
        eprintln!("spool file {round}: {told:?}");
        assert_ne!(told.precopy, "off");
        let told = one.dump(&["--spool", "off"], 2, "").expect("--spool off");
        assert_eq!(told.precopy, "off");
    }
}

#[test]
fn a_whole_disk_under_torture_is_what_a_copy_under_the_freeze_is() {
    require_torture!();
    let _serial = common::serial();
    let table = "label: gpt\nsize=80M\nsize=8M\n";
    let disk = match Disk::make(100, table, 512) {
        Ok(disk) => disk,
        Err(missing) => return common::skip(&missing),
    };
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &disk.part_text(1)]);
    let mounted = Mounted::new("ext4", &disk.part(1), "");
    Torture::prepare(mounted.dir());
    let (image, copy) = (disk.scratch.join("image"), disk.scratch.join("copy"));
    for _ in 0..rounds() {
        let held = Held {
            dirs: &[mounted.dir()],
            copies: &[(&disk.image, &copy)],
            pause: Duration::ZERO,
            lies: "",
            frames_to: None,
        };
        let device = disk.device.path().to_string_lossy();
        let told = held
            .run(&[
                "dump",
                &device,
                "-z",
                "none",
                "-o",
                &image.to_string_lossy(),
            ])
            .expect("dump");
        eprintln!("disk: {told:?}");
        assert_ne!(told.precopy, "off");
        same_blocks(&image, &copy).expect("disk");
        fs::remove_file(&image).expect("image");
    }
}

#[test]
fn where_nothing_can_be_traced_contents_are_compared() {
    require_torture!();
    require!(common::have("strace"), "strace");
    let _serial = common::serial();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let report = rack.fs.scratch().join("report");
    // As a kernel without tracefs answers, one under lockdown, and one whose tracefs is read-only.
    for inject in [
        "inject=fsopen,mount:error=ENODEV",
        "inject=mkdirat,mkdir:error=EROFS",
        "inject=mkdirat,mkdir:error=EPERM",
    ] {
        let calls = inject.trim_start_matches("inject=");
        let calls = calls.split(':').next().expect("calls");
        let mut strace = Command::new("strace");
        strace
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={calls}"),
                "-e",
                inject,
            ])
            .arg(env!("CARGO_BIN_EXE_floe"))
            .args(["dump", "--report"])
            .arg(&report)
            .arg(rack.fs.dir())
            .stdin(Stdio::null());
        let run = common::run(&mut strace, Limit::secs(60));
        let text = fs::read_to_string(&report).unwrap_or_default();
        assert_eq!(run.code, Some(0), "{run}");
        let is_mounted = Path::new("/sys/kernel/tracing/instances").is_dir();
        if !(is_mounted && calls.contains("fsopen")) {
            assert_eq!(field(&text, "precopy"), "compared", "{inject}: {text}");
        }
    }
}

#[test]
fn an_output_on_the_frozen_filesystem_that_the_spool_cannot_hold_is_refused_before_the_freeze() {
    require_torture!();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let out = rack.fs.dir().join("onto-itself");
    let mut command = floe().expect("looked for before");
    command
        .args(["dump", "--spool", "4M", "-o"])
        .arg(&out)
        .arg(rack.fs.dir())
        .stdin(Stdio::null());
    let run = common::run(&mut command, Limit::secs(60)).expect_code(4);
    assert!(run.stderr_text().contains("nothing was frozen"), "{run}");
    assert!(!out.exists());
    common::assert_not_frozen(rack.fs.dir(), "after a refusal");
}

// ---- killed -------------------------------------------------------------------------------------------------------------

/// Trace instances of floes that were started by us.
pub(super) fn instances(pid: u32) -> Vec<String> {
    let root = mount_kernel("tracefs").expect("tracefs");
    let folder = format!(
        "/proc/self/fd/{}/instances",
        std::os::fd::AsRawFd::as_raw_fd(&root)
    );
    let names = fs::read_dir(folder).expect("instances").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with(&format!("floe-{pid}-")))
        .collect()
}

#[test]
fn killed_at_any_moment_of_pre_copy_it_leaves_nothing() {
    require_torture!();
    let _serial = common::serial();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let file = rack.fs.scratch().join("target");
    let length = fs::metadata(rack.fs.image()).expect("image").len();
    File::create(&file)
        .and_then(|file| file.set_len(length))
        .expect("target");
    let target = LoopDevice::attach(&file, 512);
    let out = rack.fs.scratch().join("out");
    let dir = rack.fs.dir().to_owned();
    let pair = format!("{}={}", dir.display(), target.path().display());
    let out_text = out.to_string_lossy().into_owned();
    let source = dir.to_string_lossy().into_owned();
    let ways: [&[&str]; 3] = [
        &["dump", &source, "-o", &out_text, "--overwrite"],
        &["clone", &pair, "--overwrite", "--verify"],
        &[
            "dump",
            &source,
            "-o",
            &out_text,
            "--overwrite",
            "--spool",
            "8M",
            "-z",
            "none",
        ],
    ];
    let start = |words: &[&str]| {
        let mut command = floe().expect("looked for before");
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        command.spawn().expect("floe")
    };
    let writer = Torture::start(&dir, seed(), Duration::from_millis(5));
    let mut random = Random(seed());
    let mut lasts = [Duration::ZERO; 3];
    for (words, last) in ways.iter().zip(&mut lasts) {
        let began = Instant::now();
        let status = common::wait_for(&mut start(words), Duration::from_secs(60)).expect("it ends");
        assert!(status.success(), "{words:?}");
        *last = began.elapsed();
    }
    let rounds = if rounds() > 1 { rounds() * 10 } else { 8 };
    let mut killed = 0;
    for round in 0..rounds {
        let number = (round % 3) as usize;
        let _ = fs::remove_file(&out);
        // What a clone has not finished must not look like anything.
        let beginning = File::options().write(true).open(target.path());
        beginning
            .and_then(|file| file.write_all_at(&[0; 1 << 20], 0))
            .expect("target");
        let mut child = start(ways[number]);
        let pid = child.id();
        let most = lasts[number].as_micros() as u64;
        thread::sleep(Duration::from_micros(random.below(most)));
        let over = child.try_wait().expect("wait").is_some();
        common::signal(pid, "KILL");
        let _ = common::wait_for(&mut child, Duration::from_secs(10)).expect("dead");
        let what = format!("round {round}, {:?}", ways[number]);
        let frozen = common::frozen_for(&dir);
        assert!(frozen < Duration::from_secs(1), "{what}: {frozen:?}");
        let gone = common::wait_until(Duration::from_secs(3), || instances(pid).is_empty());
        assert!(gone, "{what}: {:?}", instances(pid));
        if over {
            continue;
        }
        killed += 1;
        match number {
            1 => {
                let blkid = Command::new("blkid")
                    .args(["-p", "-s", "TYPE", "-o", "value"])
                    .arg(target.path())
                    .output();
                let found = String::from_utf8_lossy(&blkid.expect("blkid").stdout)
                    .trim()
                    .to_owned();
                // In its last instant it is whole.
                if found == "ext4" {
                    common::output("e2fsck", &["-fn", &target.path().to_string_lossy()]);
                } else {
                    assert_eq!(found, "", "{what}");
                }
            }
            // In its last instant it is whole.
            _ if out.exists() => {
                let verify = floe()
                    .expect("looked for before")
                    .arg("verify")
                    .arg(&out)
                    .status();
                assert!(
                    verify.is_ok_and(|status| status.success()),
                    "{what}: half an image"
                );
            }
            _ => {}
        }
    }
    drop(writer);
    eprintln!("{killed} of {rounds} were killed while they ran");
    assert!(killed > 0);
    // What they left is in nobody's way.
    for words in ways {
        let _ = fs::remove_file(&out);
        let status = common::wait_for(&mut start(words), Duration::from_secs(60)).expect("it ends");
        assert!(status.success(), "{words:?}");
    }
}
