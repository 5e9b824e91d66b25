//! The trace of block writes against loop devices: what changed is marked, what is lost is said, nothing is left behind.
//!
//! These call the library, not the executable. One tracer at a time in a process, so each test takes the lock; those that need
//! a process of their own (to be killed, to be lied to) run one of the ignored tests below in a child.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use floe::device::{Access, Device};
use floe::mounts::{DevId, Roots, mount_kernel};
use floe::sys::memory::Pages;
use floe::trace::{Reserved, Tracer, WatchedRange, available};
use floe::units::BlockSize;
use rustix::fs::{Mode, OFlags};

use crate::common::{
    self, Limit, LoopDevice, LoopFs, Mounted, Random, Scratch, Spec, have, is_root, output, serial,
    shell, thaw,
};
use crate::tracefs::instances_of;

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 128 << 10;
const SOON: Duration = Duration::from_secs(10);

macro_rules! require_trace {
    () => {
        require!(is_root(), "root");
        if let Err(why) = available() {
            common::skip(&format!("tracefs with block events ({why})"));
            return;
        }
    };
}

fn chunk() -> BlockSize {
    BlockSize::from_bytes(CHUNK).unwrap()
}

fn dev_of(path: &Path) -> DevId {
    DevId::from_raw(rustix::fs::stat(path).unwrap().st_rdev)
}

fn whole(path: &Path, length_bytes: u64) -> WatchedRange {
    WatchedRange {
        dev: dev_of(path),
        offset_bytes: 0,
        length_bytes,
    }
}

#[track_caller]
fn start(watched: &[WatchedRange]) -> Tracer {
    let mut tracer = Tracer::start(
        Reserved::new().unwrap(),
        &Roots::default(),
        watched,
        chunk(),
    )
    .unwrap();
    tracer.follow().unwrap();
    tracer
}

fn marked(tracer: &Tracer, range: usize) -> BTreeSet<u64> {
    let marks = tracer.marks();
    let mut found = BTreeSet::new();
    let mut at = 0;
    while let Some(chunk) = marks.next_set(range, at) {
        found.insert(chunk);
        at = chunk + 1;
    }
    found
}

fn clear(tracer: &Tracer, range: usize) {
    for chunk in 0..tracer.marks().chunks(range) {
        tracer.marks().take(range, chunk);
    }
}

/// A disk of 64 MiB on a loop device.
struct Disk {
    device: LoopDevice,
    image: PathBuf,
    _scratch: Scratch,
}

impl Disk {
    fn new() -> Self {
        let scratch = Scratch::new();
        let image = scratch.join("disk");
        let file = File::create(&image).unwrap();
        file.set_len(64 * MIB).unwrap();
        let device = LoopDevice::attach(&image, 512);
        Self {
            device,
            image,
            _scratch: scratch,
        }
    }

    fn path(&self) -> &Path {
        self.device.path()
    }

    /// One partition of 32 MiB at 8 MiB, and one after it.
    fn part(&self) -> [PathBuf; 2] {
        let disk = self.path().display();
        let script = format!(
            "printf 'label: dos\\nstart=16384,size=65536\\nstart=81920,size=32768\\n' | sfdisk -q --no-reread --no-tell-kernel {disk} && partx -a {disk}"
        );
        shell(&script, Limit::secs(20)).expect_code(0);
        let name = |number: u32| {
            let path = PathBuf::from(format!("{disk}p{number}"));
            if !path.exists() {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let number = fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap();
                let (major, minor) = number.trim().split_once(':').unwrap();
                output("mknod", &[path.to_str().unwrap(), "b", major, minor]);
            }
            path
        };
        [name(1), name(2)]
    }
}

/// The content of a device, past its page cache.
fn content(path: &Path) -> Vec<u8> {
    let device = Device::open(path, Access::Read).unwrap();
    let size = floe::device::ReadAt::size_bytes(&device);
    let mut pages = Pages::new(usize::try_from(size).unwrap()).unwrap();
    for piece in 0..size.div_ceil(MIB) {
        let start = usize::try_from(piece * MIB).unwrap();
        let end = pages.len().min(start + (1 << 20));
        device
            .read_aligned(piece * MIB, &mut pages[start..end])
            .unwrap();
    }
    pages.to_vec()
}

fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    assert_eq!(before.len(), after.len());
    let pairs = before
        .chunks(CHUNK as usize)
        .zip(after.chunks(CHUNK as usize));
    let differ = (0..).zip(pairs).filter(|(_, (a, b))| a != b);
    differ.map(|(chunk, _)| chunk).collect()
}

/// Writes a control of our own process's instance, as another tool would.
fn meddle(control: &str, text: &str) {
    let root = mount_kernel("tracefs").unwrap();
    let name = instances_of(std::process::id()).pop().unwrap();
    let path = format!(
        "/proc/self/fd/{}/instances/{name}/{control}",
        root.as_raw_fd()
    );
    fs::write(&path, text).unwrap_or_else(|error| panic!("{control}: {error}"));
}

// ---- what is marked -------------------------------------------------------------------------------------------------

/// Each kind of write, as a command on the device `$1`, and the chunks it must mark, exactly.
const KINDS: &[(&str, &str, &[u64])] = &[
    (
        "direct",
        "dd if=/dev/urandom of=$1 bs=4096 count=1 seek=33 oflag=direct conv=notrunc status=none",
        &[1],
    ),
    (
        "across two chunks",
        "dd if=/dev/urandom of=$1 bs=1024 count=2 seek=255 oflag=direct conv=notrunc status=none",
        &[1, 2],
    ),
    (
        "large",
        "dd if=/dev/urandom of=$1 bs=4M count=1 seek=1 oflag=direct conv=notrunc status=none",
        &[
            32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53,
            54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
        ],
    ),
    (
        "buffered",
        "dd if=/dev/urandom of=$1 bs=4096 count=3 seek=640 conv=notrunc,fsync status=none",
        &[20],
    ),
    (
        "discard",
        "blkdiscard -o $((5 * 131072)) -l 262144 $1",
        &[5, 6],
    ),
    (
        "write zeroes",
        "blkdiscard -z -o $((9 * 131072 + 4096)) -l 4096 $1",
        &[9],
    ),
    (
        "the last sector",
        "dd if=/dev/urandom of=$1 bs=512 count=1 seek=$(($(blockdev --getsz $1) - 1)) oflag=direct conv=notrunc status=none",
        &[u64::MAX],
    ),
    (
        "nothing but a read",
        "dd if=$1 of=/dev/null bs=1M iflag=direct status=none",
        &[],
    ),
    ("nothing but a flush", "sync $1", &[]),
];

fn every_kind_is_marked(path: &Path, length_bytes: u64) {
    let tracer = start(&[whole(path, length_bytes)]);
    let _ = content(path);
    tracer.drain(SOON).unwrap();
    assert_eq!(marked(&tracer, 0), BTreeSet::new(), "after reads");
    for (kind, script, expected) in KINDS {
        let last = length_bytes / CHUNK - 1;
        let expected: BTreeSet<u64> = expected.iter().map(|chunk| *chunk.min(&last)).collect();
        let script = script.replace("$1", &path.to_string_lossy());
        shell(&script, Limit::secs(30)).expect_code(0);
        tracer.drain(SOON).unwrap();
        assert_eq!(marked(&tracer, 0), expected, "{kind}");
        clear(&tracer, 0);
        // Nothing is under way any more: what was taken stays taken.
        tracer.drain(SOON).unwrap();
        assert_eq!(marked(&tracer, 0), BTreeSet::new(), "{kind}, taken");
    }
}

#[test]
fn every_kind_of_write_to_a_disk_marks_its_chunks_and_no_others() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    every_kind_is_marked(disk.path(), 64 * MIB);
    drop(disk);
    assert_eq!(instances_of(std::process::id()), Vec::<String>::new());
}

#[test]
fn every_kind_of_write_to_a_partition_marks_its_chunks_and_no_others() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    let [first, _] = disk.part();
    every_kind_is_marked(&first, 32 * MIB);
}

#[test]
fn a_disk_and_its_partitions_are_told_apart_and_seen_through_each_other() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    let [first, second] = disk.part();
    // Ranges of all three, one of them not from the beginning.
    let inside = WatchedRange {
        offset_bytes: MIB,
        ..whole(&second, 4 * MIB)
    };
    let tracer = start(&[
        whole(&first, 32 * MIB),
        inside,
        whole(disk.path(), 64 * MIB),
    ]);
    let write = |path: &Path, chunk: u64| {
        let script = format!(
            "dd if=/dev/urandom of={} bs=128k count=1 seek={chunk} oflag=direct conv=notrunc status=none",
            path.display()
        );
        shell(&script, Limit::secs(30)).expect_code(0);
        tracer.drain(SOON).unwrap();
        let found = [0, 1, 2].map(|range| marked(&tracer, range).into_iter().collect::<Vec<_>>());
        (0..3).for_each(|range| clear(&tracer, range));
        found
    };
    assert_eq!(write(&first, 3), [vec![3], vec![], vec![64 + 3]]);
    assert_eq!(write(&second, 8 + 5), [vec![], vec![5], vec![320 + 8 + 5]]);
    assert_eq!(write(&second, 0), [vec![], vec![], vec![320]]);
    assert_eq!(
        write(disk.path(), 64 + 255),
        [vec![255], vec![], vec![64 + 255]]
    );
    assert_eq!(write(disk.path(), 0), [vec![], vec![], vec![0]]);
}

#[test]
fn writes_of_device_mapper_that_it_splits_are_marked_until_they_are_known_to_have_ended() {
    require_trace!();
    require!(have("dmsetup"), "dmsetup");
    let _serial = serial();
    let disk = Disk::new();
    let name = format!("floe-trace-{}", std::process::id());
    let dev = disk.path().display();
    // Two pieces in the wrong order: a write across their border is split.
    let table = format!("0 65536 linear {dev} 65536\n65536 65536 linear {dev} 0");
    let made = shell(
        &format!("printf '{table}\\n' | dmsetup create {name}"),
        Limit::secs(20),
    );
    require!(made.code == Some(0), "device mapper in the kernel");
    let path = PathBuf::from(format!("/dev/mapper/{name}"));
    let result = std::panic::catch_unwind(|| {
        let tracer = start(&[whole(&path, 64 * MIB)]);
        let before = content(&path);
        let script = format!(
            "dd if=/dev/urandom of={} bs=1M count=3 seek=63 oflag=direct oflag=seek_bytes seek=$((31 * 1048576)) conv=notrunc status=none",
            path.display()
        );
        shell(
            &script.replace(
                " seek=63 oflag=direct oflag=seek_bytes",
                " oflag=direct,seek_bytes",
            ),
            Limit::secs(30),
        )
        .expect_code(0);
        tracer.drain(SOON).unwrap();
        let expected = changed(&before, &content(&path));
        assert_eq!(expected.len(), 24);
        assert_eq!(marked(&tracer, 0), expected);
    });
    shell(&format!("dmsetup remove --retry {name}"), Limit::secs(20)).expect_code(0);
    assert!(result.is_ok());
}

#[test]
fn what_a_filesystem_does_to_its_device_is_marked() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    let [part, _] = disk.part();
    output("mkfs.ext4", &["-q", part.to_str().unwrap()]);
    let mounted = Mounted::new("ext4", &part, "discard");
    let tracer = start(&[whole(&part, 32 * MIB)]);
    let dir = mounted.dir().to_owned();
    let mut random = Random(11);
    let mut seen = 0;
    for round in 0..40 {
        output("sync", &["-f", dir.to_str().unwrap()]);
        clear(&tracer, 0);
        let before = content(&part);
        let file = dir.join(format!("file{}", random.below(6)));
        let size = random.below(600_000) + 1;
        match round % 8 {
            0 | 1 => fs::write(&file, random.bytes(usize::try_from(size).unwrap())).unwrap(),
            2 => drop(fs::remove_file(&file)),
            3 => {
                let file = File::options()
                    .create(true)
                    .append(true)
                    .open(&file)
                    .unwrap();
                file.write_all_at(&random.bytes(5000), 0).ok();
                file.sync_all().unwrap();
            }
            4 => {
                let script = format!(
                    "fallocate -l 300K '{0}'; fallocate -p -o 8192 -l 65536 '{0}'",
                    file.display()
                );
                shell(&script, Limit::secs(20)).expect_code(0);
            }
            5 => map_and_change(&file),
            6 => drop(shell(&format!("fstrim {}", dir.display()), Limit::secs(20))),
            _ => fs::rename(&file, dir.join("other")).unwrap_or(()),
        }
        output("sync", &["-f", dir.to_str().unwrap()]);
        tracer.drain(SOON).unwrap();
        let changed = changed(&before, &content(&part));
        let missed: Vec<_> = changed.difference(&marked(&tracer, 0)).copied().collect();
        assert!(missed.is_empty(), "round {round}: {missed:?}");
        seen += changed.len();
    }
    assert!(seen > 40, "{seen} chunks changed");
    drop(tracer);
}

fn map_and_change(path: &Path) {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    fs::write(path, vec![1; 200_000]).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.sync_all().unwrap();
    let length = 200_000;
    // SAFETY: a new mapping of a file that nobody else changes, gone before this returns.
    unsafe {
        let start = mmap(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file.as_fd(),
            0,
        )
        .unwrap();
        start.cast::<u8>().add(100_000).write(77);
        msync(start, length, MsyncFlags::SYNC).unwrap();
        munmap(start, length).unwrap();
    }
}

// ---- the protocol, under load, and with a trace that lies -----------------------------------------------------------------

/// What pre-copy does, in small: copies a disk under four writers, chunk by chunk as long as there are marks, then stops
/// them, drains, and reads what is marked once more. The copy must be the disk.
fn copy_under_writers(seconds: u64) -> Result<(), String> {
    let disk = Disk::new();
    let mut tracer = Tracer::start(
        Reserved::new().unwrap(),
        &Roots::default(),
        &[whole(disk.path(), 64 * MIB)],
        chunk(),
    )
    .map_err(|why| why.to_string())?;
    tracer.follow().unwrap();
    let stop = AtomicBool::new(false);
    let mut copy = vec![0; 64 << 20];
    let device = Device::open(disk.path(), Access::Read).unwrap();
    let mut buffer = Pages::new(CHUNK as usize).unwrap();
    let mut read = |chunk: u64, copy: &mut [u8]| {
        device.read_aligned(chunk * CHUNK, &mut buffer).unwrap();
        let start = usize::try_from(chunk * CHUNK).unwrap();
        copy[start..start + CHUNK as usize].copy_from_slice(&buffer);
    };
    let lost = thread::scope(|scope| {
        for seed in 1..=4 {
            let (stop, path) = (&stop, disk.path());
            scope.spawn(move || {
                let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path, flags, Mode::empty()).unwrap();
                let mut random = Random(seed * 7919);
                let mut pages = Pages::new(64 << 10).unwrap();
                while !stop.load(Ordering::SeqCst) {
                    pages[..8].copy_from_slice(&random.next().to_ne_bytes());
                    let length = usize::try_from((1 + random.below(16)) * 4096).unwrap();
                    let offset = random.below(64 * MIB / 4096 - 16) * 4096;
                    rustix::io::pwrite(&fd, &pages[..length], offset).unwrap();
                    // Bursts, so that chunks are found clean too.
                    if random.below(40) == 0 {
                        thread::sleep(Duration::from_millis(random.below(60)));
                    }
                }
            });
        }
        let marks = tracer.marks();
        for chunk in 0..512 {
            marks.take(0, chunk);
            read(chunk, &mut copy);
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut lost = None;
        while Instant::now() < end && lost.is_none() {
            let mut at = 0;
            while let Some(chunk) = marks.next_set(0, at) {
                if marks.take(0, chunk) {
                    read(chunk, &mut copy);
                }
                at = chunk + 1;
            }
            lost = tracer.drain(SOON).err();
        }
        stop.store(true, Ordering::SeqCst);
        lost
    });
    let lost = lost.map_or_else(|| tracer.drain(SOON), Err);
    lost.map_err(|lost| lost.to_string())?;
    for chunk in 0..512 {
        if tracer.marks().is_set(0, chunk) {
            read(chunk, &mut copy);
        }
    }
    let wrong = changed(&copy, &content(disk.path()));
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{} chunks differ", wrong.len()))
}

#[test]
#[ignore = "run in a child by the tests below"]
fn child_copies_under_writers() {
    copy_under_writers(2).unwrap();
}

/// A write that is held up below the device, by a frozen filesystem under a loop device, while its chunk is read.
fn read_during_a_write() -> Result<(), &'static str> {
    let below = LoopFs::make(Spec {
        mib: 96,
        ..Spec::default()
    })
    .unwrap();
    let image = below.dir().join("disk");
    fs::write(&image, vec![0; 32 << 20]).unwrap();
    output("sync", &["-f", below.dir().to_str().unwrap()]);
    let device = LoopDevice::attach(&image, 512);
    let tracer = start(&[whole(device.path(), 32 * MIB)]);
    let marks = tracer.marks();
    // In a cgroup of its own, so that the loop driver has another worker for it than for our reads.
    let group = Cgroup::new("blkio");
    common::freeze(below.dir());
    let script = format!(
        "echo $$ > {}/tasks; exec dd if=/dev/urandom of={} bs=4096 count=1 seek=100 oflag=direct conv=notrunc status=none",
        group.path().display(),
        device.path().display()
    );
    let mut writer = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let end = Instant::now() + SOON;
    let drained = || tracer.drain(SOON).unwrap();
    while !marks.is_set(0, 3) && Instant::now() < end {
        drained();
        thread::sleep(Duration::from_millis(10));
    }
    // Under way: marked as often as one asks.
    let mut under_way = 0;
    for _ in 0..3 {
        under_way += u32::from(marks.take(0, 3));
        drained();
    }
    marks.take(0, 3);
    let before = content(device.path());
    thaw(below.dir());
    assert!(writer.wait().unwrap().success());
    drained();
    assert!(before != content(device.path()));
    match (under_way, marks.is_set(0, 3)) {
        (3, true) => Ok(()),
        (3, false) => Err("a write that ended after the read is not marked"),
        _ => Err("a write that is under way is not marked"),
    }
}

/// A control group of the first kind, gone with this.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(kind: &str) -> Self {
        let path = format!("/sys/fs/cgroup/{kind}/floe-trace-{}", std::process::id());
        fs::create_dir(&path).unwrap();
        Self(PathBuf::from(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "run in a child by the tests below"]
fn child_reads_during_a_write() {
    read_during_a_write().unwrap();
}

#[test]
fn a_write_that_is_under_way_stays_marked_and_its_end_marks_again() {
    require_trace!();
    require!(
        Path::new("/sys/fs/cgroup/blkio").is_dir(),
        "the blkio cgroup of version 1"
    );
    let _serial = serial();
    assert_eq!(read_during_a_write(), Ok(()));
    let mut deaf = child("child_reads_during_a_write", "deaf=1");
    let run = common::run(&mut deaf, Limit::secs(60));
    assert!(
        run.stderr_text()
            .contains("ended after the read is not marked"),
        "{run}"
    );
}

#[test]
#[ignore = "run in a child by the tests below"]
fn child_traces_until_it_is_killed() {
    let disk = Disk::new();
    let _tracer = start(&[whole(disk.path(), 64 * MIB)]);
    println!("tracing");
    thread::sleep(Duration::from_secs(60));
}

fn child(test: &str, lies: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("freeze::trace::{test}"))
        .env("FLOE_TRACE_LIES", lies)
        .stdin(Stdio::null());
    command
}

#[test]
fn a_copy_made_under_writers_with_the_marks_is_the_disk() {
    require_trace!();
    let _serial = serial();
    for _ in 0..3 {
        copy_under_writers(2).unwrap();
    }
}

#[test]
fn with_a_trace_that_lies_the_copy_is_not_the_disk() {
    require_trace!();
    let _serial = serial();
    let honest = common::run(
        &mut child("child_copies_under_writers", ""),
        Limit::secs(60),
    );
    honest.expect_code(0);
    for lies in ["drop=50", "shift=256"] {
        let found = (0..3).any(|_| {
            let run = common::run(
                &mut child("child_copies_under_writers", lies),
                Limit::secs(60),
            );
            run.code != Some(0) && run.stderr_text().contains("chunks differ")
        });
        assert!(found, "{lies}: the copy was right every time");
    }
}

#[test]
fn a_ring_that_is_too_small_is_said_to_have_lost_writes() {
    require_trace!();
    let _serial = serial();
    let run = common::run(
        &mut child("child_copies_under_writers", "ring=4"),
        Limit::secs(60),
    );
    assert_ne!(run.code, Some(0), "{run}");
    assert!(
        run.stderr_text().contains("faster than its buffer"),
        "{run}"
    );
}

// ---- others, and what is left ------------------------------------------------------------------------------------------

#[test]
fn whoever_reaches_into_the_trace_makes_it_lost_even_if_all_is_put_back() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    let cases: &[(&str, &[&str])] = &[
        ("tracing_on", &["0", "1"]),
        ("events/block/block_bio_queue/enable", &["0", "1"]),
        ("events/block/enable", &["0"]),
        ("events/enable", &["0"]),
        ("set_event", &["!block:*"]),
        ("events/block/block_rq_complete/filter", &["0"]),
        ("trace", &["\n"]),
        ("buffer_size_kb", &["512"]),
        ("tracing_cpumask", &["1"]),
    ];
    for (control, texts) in cases {
        let tracer = start(&[whole(disk.path(), 64 * MIB)]);
        tracer.drain(SOON).unwrap();
        texts.iter().for_each(|text| meddle(control, text));
        let lost = tracer.drain(SOON);
        assert!(lost.is_err(), "{control}");
        assert_eq!(tracer.drain(SOON), lost, "{control}: lost is lost");
    }
    // A reader beside us takes what is ours.
    let tracer = start(&[whole(disk.path(), 64 * MIB)]);
    tracer.drain(SOON).unwrap();
    let root = mount_kernel("tracefs").unwrap();
    let name = instances_of(std::process::id()).pop().unwrap();
    let path = format!(
        "/proc/{}/fd/{}/instances/{name}/trace_pipe",
        std::process::id(),
        root.as_raw_fd()
    );
    let script = format!(
        "(timeout 3 cat {path} > /dev/null || true) & sleep 0.5; dd if=/dev/zero of={} bs=4096 count=2000 oflag=direct conv=notrunc status=none; wait",
        disk.path().display()
    );
    shell(&script, Limit::secs(30)).expect_code(0);
    assert!(tracer.drain(SOON).is_err());
}

#[test]
fn an_instance_goes_with_its_tracer_and_a_killed_one_with_the_next_start() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    // Where tracefs is mounted; the mounts of neighbours come and go.
    let places = || -> Vec<String> {
        let table = common::mount_table();
        let traced = table.lines().filter(|line| line.contains(" - tracefs "));
        traced.map(str::to_owned).collect()
    };
    let before = places();
    let reserved = Reserved::new().unwrap();
    let left = reserved.leftover().unwrap();
    // The guardian knows the name before there is anything to take away.
    assert_eq!(instances_of(std::process::id()), Vec::<String>::new());
    let tracer = start(&[whole(disk.path(), 64 * MIB)]);
    assert_eq!(instances_of(std::process::id()).len(), 1);
    assert_eq!(places(), before);
    // While it lives it cannot be taken away, by whomever.
    let remove =
        || rustix::fs::unlinkat(&left.directory, &left.name, rustix::fs::AtFlags::REMOVEDIR);
    assert_eq!(remove(), Err(rustix::io::Errno::BUSY));
    drop(tracer);
    assert_eq!(remove(), Err(rustix::io::Errno::NOENT));
    assert_eq!(instances_of(std::process::id()), Vec::<String>::new());

    let mut killed = child("child_traces_until_it_is_killed", "")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(killed.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("tracing") {
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut said, &mut line).unwrap(),
            0
        );
    }
    assert_eq!(instances_of(killed.id()).len(), 1);
    // One that lives is left alone by others that start.
    drop(start(&[whole(disk.path(), 64 * MIB)]));
    assert_eq!(instances_of(killed.id()).len(), 1);
    common::signal(killed.id(), "KILL");
    killed.wait().unwrap();
    // Its loop device is left to be detached: its test could not.
    detach_deleted(killed.id());
    drop(start(&[whole(disk.path(), 64 * MIB)]));
    assert_eq!(instances_of(killed.id()), Vec::<String>::new());
}

fn detach_deleted(pid: u32) {
    let script = format!(
        "for l in $(losetup -n -O NAME,BACK-FILE | awk '/floe-it.{pid}\\./ {{ print $1 }}'); do losetup -d $l; done; rm -rf ${{FLOE_SCRATCH:-${{TMPDIR:-/tmp}}}}/floe-it.{pid}.*"
    );
    shell(&script, Limit::secs(20)).expect_code(0);
}

#[test]
fn what_cannot_be_traced_is_said_before() {
    require_trace!();
    let _serial = serial();
    let none = WatchedRange {
        dev: DevId::new(4095, 1),
        offset_bytes: 0,
        length_bytes: MIB,
    };
    let why = Tracer::start(
        Reserved::new().unwrap(),
        &Roots::default(),
        &[none],
        chunk(),
    )
    .unwrap_err();
    assert!(why.to_string().contains("4095:1"), "{why}");
    assert_eq!(instances_of(std::process::id()), Vec::<String>::new());
}

#[test]
fn an_idle_trace_costs_next_to_nothing_and_a_drain_is_quick() {
    require_trace!();
    let _serial = serial();
    let disk = Disk::new();
    let tracer = start(&[whole(disk.path(), 64 * MIB)]);
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let began = Instant::now();
            tracer.drain(SOON).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("drain: median {:?}, slowest {:?}", times[25], times[49]);
    assert!(times[25] < Duration::from_millis(20), "{times:?}");
    let _ = &disk.image;
}
