//! Writers that do all that a filesystem knows, in several threads at once, until they are dropped.
//!
//! `FLOE_TORTURE` says how often a test is tried; more than once, and writes are queued beside them by the many.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use floe::sys::memory::Pages;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::common::{self, Random};

/// Files of one writer.
const FILES: u64 = 10;
/// What they may grow to.
const FILE_BYTES: u64 = 1 << 20;
/// What lies there beside them and is written in place.
const BALLAST_BYTES: usize = 24 << 20;

pub fn rounds() -> u64 {
    let told = std::env::var("FLOE_TORTURE").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(1)
}

pub fn seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = clock.map_or(7, |since| since.as_nanos() as u64) ^ number << 48;
    eprintln!("seed {seed:#x}");
    seed | 1
}

/// Threads that write to a folder until this is dropped.
pub struct Torture {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// In the campaign: writes that are only queued, many at once.
    queued: Option<Ended>,
    dir: PathBuf,
}

impl Torture {
    pub fn prepare(dir: &Path) {
        let ballast = dir.join("ballast");
        if !ballast.exists() {
            fs::write(&ballast, Random(0xba11).bytes(BALLAST_BYTES)).expect("ballast");
            common::fill(dir, 60);
        }
    }

    pub fn start(dir: &Path, seed: u64, pause: Duration) -> Self {
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

/// A child that does not outlive its test.
pub struct Ended(pub std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
