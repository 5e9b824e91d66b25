//! Which parts of a disk were written: the kernel's own trace of block writes, read by one thread and turned into marks.
//!
//! What pre-copy needs: for every chunk, whether anything may have written it since it was read. [`Reserved`] is the name that the
//! guardian takes away should floe die, [`Tracer::start`] makes a private instance of tracefs of that name, [`Tracer::follow`] starts
//! the thread, [`Tracer::drain`] brings the [`Marks`] up to now and says whether nothing was lost. Where it cannot be had
//! ([`Untraced`]) or something was lost ([`Lost`]), the caller compares contents.
//!
//! # What is believed, and why
//! - *That the device is traced*: a read of our own is sent to it at the start and must be seen queued and completed, at a
//!   sector that we know. That also tells how this kernel names the device (all from 4.4 to 6.18 name the disk, and sectors of
//!   the disk, for a partition). Devices that hide one of the two are not traced: native NVMe multipath, some md levels of
//!   old kernels. Disks, partitions, loop, dm, md, nbd, virtio, MMC, NVMe show both. Writes that never become a bio cannot be
//!   seen: devices with DAX, and memory disks (ram, zram, pmem), are not traced; nor zoned ones.
//! - *That the trace still works*: each drain sends the same read and must see it; the kernel's counters must say that what
//!   it recorded is what we took, and that nothing was dropped; the settings must be what they were, and nobody may have
//!   written to them in between.
//! - *What a write is*: everything that is not a plain read and has sectors. Commands that bypass the block layer (SG_IO, MMC
//!   and NVMe ioctls) have none; a program that overwrites a mounted disk by those is not found.
//! - Writes that were queued before the start and are not completed when a chunk is read are found by their completion,
//!   except where device mapper split them; a `syncfs` between the start and the first read leaves none.
//!
//! # Threads
//! The reader thread and whoever drains share [`Watching`] under one lock; the marks are atomic and need none. The thread sleeps
//! 10 to 40 ms between looks; who drains reads for itself and waits for no thread. If the thread dies or starves, the ring
//! overflows and the next drain says so. While anything is frozen: no heap, no open; page, devices, files are there before.

mod instance;
mod marks;
pub mod page;
mod places;

use std::ffi::CString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::device::{Access, Device};
use crate::mounts::{DevId, Roots};
use crate::sys::memory::Pages;
use crate::threads::{self, Lock, Started};
use crate::units::{BlockSize, round_down};
pub use instance::Reserved;
use instance::{EVENTS, Instance, OpenInstance};
pub use marks::Marks;
use page::{Action, Bad, Event};
use places::{End, NamedRange, Places};

/// Ring buffer of a CPU: 4,000 events of some 60 bytes, which at ten milliseconds a look is 400,000 a second.
const RING_KIB: u32 = 256;
/// Between two looks while there is something to see.
const PAUSE_BUSY: Duration = Duration::from_millis(10);
/// The same while there is not.
const PAUSE_IDLE: Duration = Duration::from_millis(40);
/// Between two looks of a drain.
const PAUSE_DRAIN: Duration = Duration::from_micros(200);
/// How long the kernel may take to show us a read of our own, and how often it is sent.
const PROBE_WAIT: Duration = Duration::from_millis(250);
const PROBE_ATTEMPTS: u32 = 8;
/// The length of that read.
const PROBE_BYTES: u64 = 4096;
/// The reader makes system calls only.
const STACK_BYTES: usize = 128 << 10;
/// Most pages that one look takes from one ring: more than it has, so that a flood does not keep it from the others.
const PAGES_MAX: u32 = 1024;

/// A range of a block device (a disk, a partition, dm, md, loop) whose writes are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedRange {
    /// The device.
    pub dev: DevId,
    /// Where the range begins on that device.
    pub offset_bytes: u64,
    /// Its length.
    pub length_bytes: u64,
}

/// Why there is no trace, in words that follow "writes cannot be traced: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untraced(pub String);

impl Untraced {
    fn because(why: &str) -> Self {
        Self(why.to_owned())
    }

    fn io(what: &str, errno: Errno) -> Self {
        Self(format!(
            "{what}: {}",
            crate::error::ErrnoText(errno.raw_os_error())
        ))
    }
}

impl fmt::Display for Untraced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the trace is not to be believed any more, in words that follow "the trace of writes is of no use: "; made without the
/// heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost(pub &'static str);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A directory that must not outlive floe, as an instance: the guardian removes it (`unlinkat`) when floe is gone, after the last
/// thaw. It must be empty by then but for what the kernel removes along, as in tracefs.
#[derive(Debug)]
pub struct Leftover {
    /// The directory it lies in: the folder `instances` of tracefs.
    pub directory: OwnedFd,
    /// Its name there.
    pub name: CString,
}

/// A running trace. Dropping it ends the thread and removes the instance.
#[derive(Debug)]
pub struct Tracer {
    shared: Arc<SharedTrace>,
    thread: Option<Started>,
}

#[derive(Debug)]
struct SharedTrace {
    marks: Arc<Marks>,
    state: Lock<Watching>,
    ended: AtomicBool,
}

impl SharedTrace {
    fn lock(&self) -> MutexGuard<'_, Watching> {
        self.state.lock()
    }
}

impl Tracer {
    /// Begins to record the writes to these ranges, in an instance of that name; `chunk` is what one mark stands for.
    pub fn start(
        reserved: Reserved,
        roots: &Roots,
        watched: &[WatchedRange],
        chunk: BlockSize,
    ) -> Result<Self, Untraced> {
        let memory = || Untraced::because("not enough memory");
        let lengths = watched.iter().map(|range| range.length_bytes);
        let marks = Marks::new(lengths, chunk).ok_or_else(memory)?;
        let mut probes: Vec<Probe> = Vec::new();
        for range in watched {
            if !probes.iter().any(|probe| probe.dev == range.dev) {
                probes.push(Probe::new(roots, range.dev)?);
            }
        }
        let lies = Lies::told();
        let mut instance = Instance::new(reserved, lies.ring_kib)?;
        let open = instance.open().ok_or_else(memory)?;
        let mut page = vec![0; open.header.page_bytes()];
        for probe in &mut probes {
            probe.learn(open, &mut page)?;
        }
        open.filter(&filter(&probes));
        open.hold()?;
        let mut places = Vec::new();
        for (range, watch) in watched.iter().enumerate() {
            let names = probes
                .iter()
                .filter(|probe| probe.dev == watch.dev)
                .flat_map(|probe| &probe.names);
            places.extend(names.map(|name| NamedRange {
                dev: name.dev,
                begin_bytes: name.begin_bytes.saturating_add(watch.offset_bytes),
                length_bytes: watch.length_bytes,
                range,
            }));
        }
        let places = Places::new(places, &marks, watched.len()).ok_or_else(memory)?;
        let state = Watching {
            instance,
            places,
            probes,
            page,
            lies,
            lost: None,
            frozen: false,
        };
        Ok(Self {
            shared: Arc::new(SharedTrace {
                marks: Arc::new(marks),
                state: Lock::new(state),
                ended: AtomicBool::new(false),
            }),
            thread: None,
        })
    }

    /// Starts the thread that reads along. Soon: the rings are small.
    pub fn follow(&mut self) -> Result<(), Untraced> {
        let shared = Arc::clone(&self.shared);
        let reader = move || {
            // Where it is late, marks are lost, and with them the short freeze.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -10);
            while !shared.ended.load(Ordering::SeqCst) {
                let seen = shared.lock().look(&shared.marks);
                std::thread::park_timeout(if seen { PAUSE_BUSY } else { PAUSE_IDLE });
            }
        };
        let thread = threads::start(c"floe-trace", STACK_BYTES, Box::new(reader))
            .map_err(|errno| Untraced::io("no thread can be started", errno))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// The marks, which may outlive the trace; range `n` is the `n`th of what is watched.
    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.shared.marks)
    }

    /// Returns when everything that was written before the call is in the marks, and nothing was lost since the start. A write
    /// that was queued and has not ended marks its chunks each time this is called. Opens nothing and takes no heap.
    pub fn drain(&self, limit: Duration) -> Result<(), Lost> {
        self.shared.lock().drain(&self.shared.marks, limit)
    }

    /// What was frozen is about to be thawed, and will be frozen again: what was ever marked counts from here. Where the drain under
    /// the freeze failed, nothing is believed anyway.
    pub fn thawed(&self) {
        self.shared.marks.begin_anew();
        self.shared.lock().frozen = false;
    }

    /// The same while everything watched is frozen, so that no write is under way: the next drain marks only what is written from
    /// then on.
    pub fn drain_frozen(&self, limit: Duration) -> Result<(), Lost> {
        let mut state = self.shared.lock();
        state.drain(&self.shared.marks, limit)?;
        state.places.all_ended();
        state.frozen = true;
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.unpark();
            thread.join();
        }
        // The instance goes with the last owner of `shared`: us.
    }
}

/// Whether writes can be traced on this machine at all (`show` says so). Makes nothing.
pub fn available() -> Result<(), Untraced> {
    let instances = instance::instances()?;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let root = rustix::fs::openat(&instances, "..", flags, rustix::fs::Mode::empty())
        .map_err(|errno| Untraced::io("tracefs", errno))?;
    instance::formats(std::os::fd::AsFd::as_fd(&root)).map(|_| ())
}

/// What is read and written under the lock.
#[derive(Debug)]
struct Watching {
    instance: Instance,
    places: Places,
    probes: Vec<Probe>,
    page: Vec<u8>,
    lies: Lies,
    /// Once lost, always lost.
    lost: Option<Lost>,
    /// Everything is frozen: a discard, which a filesystem may still send for what it freed before, changes nothing that is used.
    /// Nothing else is a filesystem's that is frozen.
    frozen: bool,
}

impl Watching {
    /// Takes what there is; whether there was anything.
    fn look(&mut self, marks: &Marks) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let Self {
            instance,
            places,
            probes,
            page,
            lies,
            lost,
            frozen,
        } = self;
        let Some(open) = instance.open() else {
            return false;
        };
        let found = each_event(open, page, |event, end| {
            if event.action == Action::Read {
                for probe in probes.iter_mut() {
                    probe.hear(event, end);
                }
            } else if (!*frozen || event.action != Action::Discard)
                && let Some((event, mark)) = lies.bend(event, end)
            {
                places.take(&event, end, marks, mark);
            }
        });
        match found {
            Ok(seen) => seen > 0,
            Err(why) => {
                *lost = Some(why);
                false
            }
        }
    }

    fn drain(&mut self, marks: &Marks, limit: Duration) -> Result<(), Lost> {
        let end = Instant::now().checked_add(limit);
        self.check()?;
        // What the kernel has recorded up to now is to be taken, and so is a read that is sent now.
        for ring in &mut self.instance.opened()?.rings {
            ring.wanted = ring.taken.saturating_add(ring.stats()?.entries);
        }
        for probe in &mut self.probes {
            probe
                .send()
                .map_err(|_| Lost("a read of the disk failed"))?;
        }
        loop {
            self.look(marks);
            self.check()?;
            let mut behind = !self.probes.iter().all(|probe| probe.heard == [true; 2]);
            for ring in &self.instance.opened()?.rings {
                behind |= ring.taken < ring.wanted && ring.stats()?.entries > 0;
            }
            if !behind {
                break;
            }
            if end.is_none_or(|end| Instant::now() >= end) {
                return Err(Lost("it does not keep up"));
            }
            std::thread::sleep(PAUSE_DRAIN);
        }
        self.places.settle(marks);
        Ok(())
    }

    fn check(&mut self) -> Result<(), Lost> {
        if let Some(lost) = self.lost {
            return Err(lost);
        }
        let found = self.instance.opened().and_then(|open| open.check());
        self.lost = found.err();
        found
    }
}

/// Reads every ring until it is empty and gives each event to `each`; how many records there were.
fn each_event(
    open: &mut OpenInstance,
    page: &mut [u8],
    mut each: impl FnMut(&Event, End),
) -> Result<u64, Lost> {
    let garbled = Lost("it cannot be understood");
    let OpenInstance {
        header,
        formats,
        rings,
        ..
    } = open;
    let mut seen = 0;
    for ring in rings {
        for _ in 0..PAGES_MAX {
            let length = match rustix::io::read(&ring.pages, &mut *page) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Ok(length) => length,
                Err(_) => return Err(Lost("it cannot be read")),
            };
            let mut bad = false;
            let records = header.records(page.get(..length).unwrap_or_default(), |record| {
                let ends = [End::Queued, End::Completed, End::Completed];
                for (format, end) in formats.iter().zip(ends) {
                    if format.is_of(record) {
                        match format.event(record) {
                            Some(event) => each(&event, end),
                            None => bad = true,
                        }
                    }
                }
            });
            let records = records.map_err(|why| match why {
                Bad::Missed => Lost("writes came faster than its buffer could be read"),
                Bad::Garbled => garbled,
            })?;
            if bad {
                return Err(garbled);
            }
            ring.taken = ring.taken.saturating_add(records);
            seen += records;
        }
    }
    Ok(seen)
}

/// How the kernel may name a device in an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EventName {
    dev: u32,
    /// Where the device begins in the sectors of its events, in bytes.
    begin_bytes: u64,
}

/// A read of our own, by which we learn how a device is named and that it is traced.
#[derive(Debug)]
struct Probe {
    dev: DevId,
    device: Device,
    buffer: Pages,
    position: u64,
    /// How it may be named; those that were seen, after [`Self::learn`].
    names: Vec<EventName>,
    /// Which end of the last read was seen.
    heard: [bool; 2],
}

impl Probe {
    fn new(roots: &Roots, dev: DevId) -> Result<Self, Untraced> {
        let shown = |why: &str| Untraced(format!("{}: {why}", roots.shown(dev).display()));
        let partition_of = roots.disk_of(dev);
        let disk = partition_of.unwrap_or(dev);
        let attribute = |name| roots.attribute(disk, name).unwrap_or_default();
        if attribute("queue/dax") == "1" {
            return Err(shown("DAX writes without the block layer"));
        }
        if !matches!(attribute("queue/zoned").as_str(), "" | "none") {
            return Err(shown("zoned devices are not traced"));
        }
        let name = roots.kernel_name(disk);
        if ["ram", "zram", "pmem"]
            .iter()
            .any(|start| name.starts_with(start))
        {
            return Err(shown("disks in memory are not traced"));
        }
        let begin_bytes = match partition_of {
            None => 0,
            Some(disk) => {
                let found = roots
                    .partitions_of(disk)
                    .into_iter()
                    .find(|part| part.dev == dev);
                found
                    .ok_or_else(|| shown("where it begins is unknown"))?
                    .start_bytes
            }
        };
        let mut names = Vec::new();
        for dev in [disk, dev] {
            for begin_bytes in [begin_bytes, 0] {
                let name = EventName {
                    dev: dev.major << 20 | dev.minor,
                    begin_bytes,
                };
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let device = roots
            .open_device(dev, Access::Read)
            .map_err(|fault| shown(&fault.to_string()))?;
        let size = crate::device::ReadAt::size_bytes(&device);
        if !device.is_direct() || size < 2 * PROBE_BYTES {
            return Err(shown("it cannot be read without the page cache"));
        }
        let length = usize::try_from(PROBE_BYTES).unwrap_or(4096);
        // In the middle, and not where a chunk begins: other reads of ours begin there.
        let middle = round_down(size / 2, 64 << 10) + 3 * PROBE_BYTES;
        Ok(Self {
            dev,
            device,
            buffer: Pages::new(length).map_err(|errno| Untraced::io("memory", errno))?,
            position: if middle + PROBE_BYTES <= size {
                middle
            } else {
                0
            },
            names,
            heard: [false; 2],
        })
    }

    fn send(&mut self) -> Result<(), crate::error::Fault> {
        self.heard = [false; 2];
        self.device.read_aligned(self.position, &mut self.buffer)
    }

    /// Whether an event is of the read that was sent, in one of the ways to name it.
    fn is_it(&self, name: EventName, event: &Event) -> bool {
        let sector = name.begin_bytes.saturating_add(self.position) / 512;
        (event.dev, event.sector, event.sectors) == (name.dev, sector, PROBE_BYTES / 512)
    }

    fn hear(&mut self, event: &Event, end: End) {
        if self.names.iter().any(|name| self.is_it(*name, event)) {
            match end {
                End::Queued => self.heard[0] = true,
                End::Completed => self.heard[1] = true,
            }
        }
    }

    /// Finds out how the device is named. A read of somebody else's at the same place can add a name too many, which costs
    /// marks too many.
    fn learn(&mut self, open: &mut OpenInstance, page: &mut [u8]) -> Result<(), Untraced> {
        let mut seen = vec![false; self.names.len()];
        for _ in 0..PROBE_ATTEMPTS {
            self.send().map_err(|fault| Untraced(fault.to_string()))?;
            let end = Instant::now() + PROBE_WAIT;
            while self.heard != [true; 2] && Instant::now() < end {
                let look = each_event(open, page, |event, end| {
                    if event.action == Action::Read {
                        self.hear(event, end);
                        for (name, seen) in self.names.iter().zip(&mut seen) {
                            *seen |= self.is_it(*name, event);
                        }
                    }
                });
                look.map_err(|lost| Untraced(lost.to_string()))?;
                std::thread::sleep(PAUSE_DRAIN);
            }
            if self.heard == [true; 2] {
                let mut seen = seen.iter();
                self.names.retain(|_| seen.next() == Some(&true));
                return Ok(());
            }
        }
        let what = if self.heard[0] {
            "the end of a read"
        } else {
            "a read"
        };
        let dev = self.dev;
        Err(Untraced(format!(
            "block device {dev}: {what} was not in the trace ({})",
            EVENTS.join(", ")
        )))
    }
}

/// What is recorded: everything on our devices that is no read, and our own reads.
fn filter(probes: &[Probe]) -> String {
    let mut devices = Vec::new();
    let mut wanted = vec!["!(rwbs ~ \"R*\")".to_owned()];
    for probe in probes {
        for name in &probe.names {
            devices.push(format!("dev == {}", name.dev));
            let sector = name.begin_bytes.saturating_add(probe.position) / 512;
            wanted.push(format!("sector == {sector}"));
        }
    }
    format!("({}) && ({})", devices.join(" || "), wanted.join(" || "))
}

/// For tests of those who rely on the trace: a debug build lies about it where FLOE_TRACE_LIES says so, a list of `drop=N`
/// (one write in N, both its ends: of one end alone the sums of what is under way would tell), `shift=SECTORS`, `deaf=1` (completions mark nothing), `ring=KIB`. A release build cannot.
#[derive(Debug)]
struct Lies {
    ring_kib: u32,
    #[cfg(debug_assertions)]
    drop: u64,
    #[cfg(debug_assertions)]
    shift: u64,
    #[cfg(debug_assertions)]
    deaf: bool,
}

#[cfg(not(debug_assertions))]
impl Lies {
    fn told() -> Self {
        Self { ring_kib: RING_KIB }
    }

    fn bend(&mut self, event: &Event, _: End) -> Option<(Event, bool)> {
        Some((*event, true))
    }
}

#[cfg(debug_assertions)]
impl Lies {
    fn told() -> Self {
        let text = std::env::var("FLOE_TRACE_LIES").unwrap_or_default();
        let number = |key: &str| {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(name, _)| *name == key);
            found
                .next()
                .and_then(|(_, value)| value.parse::<u64>().ok())
        };
        let ring_kib = number("ring").and_then(|kib| u32::try_from(kib).ok());
        Self {
            ring_kib: ring_kib.unwrap_or(RING_KIB),
            drop: number("drop").unwrap_or(0),
            shift: number("shift").unwrap_or(0),
            deaf: number("deaf").is_some(),
        }
    }

    fn bend(&mut self, event: &Event, end: End) -> Option<(Event, bool)> {
        if self.drop > 0 && (event.sector / 8).is_multiple_of(self.drop) {
            return None;
        }
        let event = Event {
            sector: event.sector.saturating_add(self.shift),
            ..*event
        };
        Some((event, !(self.deaf && end == End::Completed)))
    }
}
