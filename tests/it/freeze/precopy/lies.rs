//! A mutation test of the idea: with a trace that lies the image must come out wrong, and these tests must find it. A run that floe
//! itself refuses proves nothing of what is looked for here.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use floe::sys::memory::Pages;
use rustix::fs::OFlags;

use crate::common::{self, LoopDevice, LoopFs, Mounted, Random, Scratch, Spec};
use crate::torture::seed;

use super::held::{Held, Told};
use super::rack::{Rack, same_blocks};
use super::{floe, require_torture};

/// Runs until the image was wrong; what was found.
fn found(lies: &str, tries: u32, mut run: impl FnMut() -> Result<Told, String>) -> String {
    for _ in 0..tries {
        match run() {
            Err(why) if why.contains("differ") || why.contains("the image is no whole") => {
                return why;
            }
            Err(why) if why.contains("was written to while") => eprintln!("{lies}: {why}"),
            Err(why) => panic!("{lies}: {why}"),
            Ok(told) => eprintln!("{lies}: {told:?}"),
        }
    }
    panic!("{lies}: no image was wrong");
}

#[test]
fn with_a_trace_that_lies_the_image_is_wrong_and_these_tests_see_it() {
    require_torture!();
    let _serial = common::serial();
    let mut rack = require_some!(Rack::new("ext4"), "ext4");
    for lies in ["drop=2", "shift=1024"] {
        let why = found(lies, 8, || rack.dump(&["-z", "none"], 0, lies));
        eprintln!("{lies}: {why}");
    }
    // How much is written in a moment differs; whatever is lost must be noticed.
    let lost = (0..6).any(|_| {
        let told = rack.dump(&["-z", "none"], 0, "ring=4").expect("ring=4");
        told.precopy == "compared"
    });
    assert!(lost, "the smallest ring held everything six times");
}

/// A filesystem whose device takes long to write now and then: the file behind it lies on another one, which is frozen for a moment.
struct Slow {
    mounted: Mounted,
    device: LoopDevice,
    below: LoopFs,
    file: PathBuf,
}

/// Bytes of the file that is written to, each chunk once at most.
const FILE_BYTES: u64 = 96 << 20;
const CHUNK: u64 = 128 << 10;
/// So many bytes are read in a second.
const READ_BYTES: u64 = 30 << 20;
/// Writes that are under way at once.
const AT_ONCE: usize = 12;

impl Slow {
    fn new() -> Result<Self, String> {
        let below = LoopFs::make(Spec {
            mib: 320,
            ..Spec::default()
        })?;
        let file = below.dir().join("disk");
        // Without holes: a write to it waits for nothing else.
        fs::write(&file, vec![0; 144 << 20]).expect("disk");
        let device = LoopDevice::attach(&file, 512);
        common::output(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", &device.path().to_string_lossy()],
        );
        let mounted = Mounted::new("ext4", device.path(), "noatime");
        let bytes = Random(0x510).bytes(FILE_BYTES as usize);
        fs::write(mounted.dir().join("file"), bytes).expect("file");
        common::output("sync", &["-f", &mounted.dir().to_string_lossy()]);
        Ok(Self {
            mounted,
            device,
            below,
            file,
        })
    }

    /// Once: begins writes, which end a moment later.
    fn pulse(&self, salt: u64, next: &AtomicU64) {
        let write = || {
            let chunk = next.fetch_add(1, Ordering::Relaxed) * 37 % (FILE_BYTES / CHUNK);
            let mut pages = Pages::new(4096).expect("pages");
            pages.copy_from_slice(&Random(salt ^ chunk << 8).bytes(4096));
            let mut options = File::options();
            options
                .write(true)
                .custom_flags(OFlags::DIRECT.bits().cast_signed());
            let file = options.open(self.mounted.dir().join("file")).expect("file");
            file.write_all_at(&pages, chunk * CHUNK + 4096)
                .expect("write");
        };
        common::freeze(self.below.dir());
        thread::scope(|scope| {
            let writers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(write)).collect();
            thread::sleep(Duration::from_millis(150));
            common::thaw(self.below.dir());
            drop(writers);
        });
    }

    /// Dumps it while writes take long, and compares the image with a copy under the freeze.
    fn dump(&self, lies: &str) -> Result<Told, String> {
        let scratch = Scratch::new();
        let (image, copy) = (scratch.join("image"), scratch.join("copy"));
        let (group, salt) = (Group::new(&self.device), seed());
        let held = Held {
            dirs: &[],
            copies: &[(&self.file, &copy)],
            pause: Duration::ZERO,
            lies,
            meanwhile: "",
            group: Some(&group.0),
            frames_to: None,
        };
        let (ended, next) = (AtomicBool::new(false), AtomicU64::new(0));
        let told = thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    self.pulse(salt, &next);
                    thread::sleep(Duration::from_millis(30));
                }
            });
            let (dir, to) = (
                self.mounted.dir().to_string_lossy(),
                image.to_string_lossy(),
            );
            let told = held.run(&["dump", &dir, "-z", "none", "--jobs", "1", "-o", &to]);
            ended.store(true, Ordering::Relaxed);
            told
        })?;
        same_blocks(&image, &copy).map(|_| told)
    }
}

/// A control group of the first kind, gone with this: the loop driver has another worker for who is in it than for who writes, and
/// it reads so slowly that many writes begin and end meanwhile.
struct Group(PathBuf);

impl Group {
    fn new(device: &LoopDevice) -> Self {
        let path = format!("/sys/fs/cgroup/blkio/floe-lies-{}", std::process::id());
        let _ = fs::remove_dir(&path);
        fs::create_dir(&path).expect("group");
        let group = Self(PathBuf::from(path));
        let name = device.path().file_name().expect("name");
        let number = Path::new("/sys/class/block").join(name).join("dev");
        let number = fs::read_to_string(number).expect("dev");
        let limit = format!("{} {READ_BYTES}", number.trim());
        fs::write(group.0.join("blkio.throttle.read_bps_device"), limit).expect("throttle");
        group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_write_that_ends_after_its_chunk_was_read_is_in_the_image_unless_its_end_is_ignored() {
    require_torture!();
    let groups = Path::new("/sys/fs/cgroup/blkio");
    require!(groups.is_dir(), "the blkio cgroup of version 1");
    let _serial = common::serial();
    let slow = require_ok!(Slow::new());
    let told = slow.dump("").expect("with a trace that tells the truth");
    // Before Linux 6.16 what a loop device writes to its file is taken for somebody's.
    require!(told.precopy == "traced", "a trace that loses nothing");
    let why = found("deaf=1", 8, || slow.dump("deaf=1"));
    eprintln!("deaf=1: {why}");
}
