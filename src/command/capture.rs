//! One capture: sources held still, surveyed, read, thawed, and the stream ended. Shared by `dump` and whatever else streams
//! frozen filesystems.
//!
//! Three parties: the *supervisor* (the main thread) waits for signals, the guardian, the pipeline and the surveyor, and is the
//! only one that decides; the *surveyor* walks the filesystems in the frozen window and looks again before the thaw, so that a
//! signal is answered at once even while a large map is read; the *pipeline* reads, encodes and emits. Everything is
//! allocated before the freeze. The stream gets its end only after a thaw that proves nobody else thawed in between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::device::{Device, ReadAt};
use crate::error::{Error, Exit, Fault, Result};
use crate::freeze::{Frozen, Guardian, Limits, Method, Progress as Beat, Remount, Signals, Target};
use crate::fs::{self, Coverage, Identity, SCRATCH_BYTES, Still, UsedMap, Verdict, Walk, Witness};
use crate::mounts::{Holding, Mounted, Source};
use crate::report::{self, Bytes, Progress, Span};
use crate::stream::pipeline::{Emit, Meter, Pipeline, Problem, Settings};
use crate::stream::plan::{Content, Part, Plan};
use crate::sys::ioctl::blkflsbuf;
use crate::units::{BlockSize, Extent};

/// How long the supervisor sleeps at most: progress and the guardian's heartbeat want a look now and then.
const LOOK: Duration = Duration::from_millis(200);

/// Filesystems that are read-only by nature: nothing to freeze.
const NEVER_WRITTEN: &[&str] = &["squashfs", "erofs", "cramfs", "romfs", "iso9660"];

/// Filesystems without FIFREEZE, or (ReiserFS) with one that deadlocks: remounted read-only for the read.
const REMOUNTED: &[&str] = &[
    "vfat", "msdos", "exfat", "reiserfs", "ntfs3", "udf", "hfs", "hfsplus", "minix",
];

/// What the user asked for, as far as the capture is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Read a source that cannot be held still.
    pub live: bool,
    /// Read every block.
    pub whole: bool,
    /// Refuse rather than read everything.
    pub require_map: bool,
    /// Say what happens.
    pub quiet: bool,
}

/// One source, ready to be held still and read.
#[derive(Debug)]
pub struct Subject {
    /// What the user called it.
    pub name: String,
    /// The device, for messages.
    pub shown: String,
    /// What is on it, as it was before the freeze.
    pub identity: Option<Identity>,
    /// What will hold it still.
    pub still: Still,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Subject {
    /// The filesystem's name for reports.
    pub fn filesystem(&self) -> &'static str {
        self.identity
            .as_ref()
            .map_or("unknown", |identity| identity.kind.name())
    }

    /// The report's word for how it was held still.
    pub fn consistent(&self) -> &'static str {
        match self.still {
            Still::Frozen => "frozen",
            Still::ReadOnly => "readonly",
            Still::Unmounted => "unmounted",
            Still::Moving => "live",
        }
    }
}

/// A subject, its open device, and what has to be frozen for it (top of the stack first).
pub struct Prepared {
    /// The subject.
    pub subject: Subject,
    /// Its device.
    pub device: Device,
    /// What to freeze.
    pub targets: Vec<Target>,
}

/// Decides how `source` is held still, and recognises what is on it.
pub fn prepare(source: Source, wishes: Wishes) -> Result<Prepared> {
    let name = source.name.to_string_lossy().into_owned();
    let shown = source.shown.display().to_string();
    let (still, targets) = match (&source.moving, wishes.live) {
        (Some(why), false) => {
            return Err(Error::refused(format_args!(
                "{name}: {shown} changes even below a frozen filesystem: {why}; nothing was written; wait until that is over, or --live for an image that may not be consistent"
            )));
        }
        (Some(_), true) => (Still::Moving, Vec::new()),
        (None, _) => hold(source.holding, &name, wishes)?,
    };
    let identity = fs::probe(&source.device).map_err(|fault| Error::fault(&shown, fault))?;
    Ok(Prepared {
        subject: Subject {
            name,
            shown,
            size_bytes: source.device.size_bytes(),
            identity,
            still,
        },
        device: source.device,
        targets,
    })
}

fn hold(holding: Holding, name: &str, wishes: Wishes) -> Result<(Still, Vec<Target>)> {
    match holding {
        Holding::Unmounted | Holding::ImageFile => Ok((Still::Unmounted, Vec::new())),
        Holding::Mounted(mounted) => {
            let (still, target) = hold_mounted(mounted, name, wishes);
            Ok((still, target.into_iter().collect()))
        }
        Holding::Stacked(stacked) => {
            if !stacked.swaps.is_empty() && !wishes.live {
                return Err(Error::refused(format_args!(
                    "{name}: holds swap that is in use; nothing was written; swapoff first, or --live"
                )));
            }
            let mut targets = Vec::new();
            let mut still = if stacked.swaps.is_empty() {
                Still::Frozen
            } else {
                Still::Moving
            };
            for mounted in stacked.mounted {
                let point = mounted.point().display().to_string();
                let (one, target) = hold_mounted(mounted, &point, wishes);
                targets.extend(target);
                if one == Still::Moving {
                    still = Still::Moving;
                }
            }
            Ok((still, targets))
        }
    }
}

fn hold_mounted(mounted: Mounted, name: &str, wishes: Wishes) -> (Still, Option<Target>) {
    let mount = &mounted.mount;
    let filesystem = mount.filesystem.as_str();
    if NEVER_WRITTEN.contains(&filesystem) || mounted.emergency_read_only() {
        return (Still::ReadOnly, None);
    }
    if wishes.live {
        return (Still::Moving, None);
    }
    let method = if REMOUNTED.contains(&filesystem) {
        if mounted.super_read_only() {
            return (Still::ReadOnly, None);
        }
        Method::ReadOnly(Remount::new(
            &mounted.fd,
            &mount.options.to_string_lossy(),
            &mount.super_options.to_string_lossy(),
        ))
    } else {
        Method::Freeze
    };
    let still = if matches!(method, Method::Freeze) {
        Still::Frozen
    } else {
        Still::ReadOnly
    };
    let target = Target {
        fd: mounted.fd,
        name: name.to_owned(),
        method,
    };
    (still, Some(target))
}

/// The counters of a run; forwarded to the guardian when there is one.
pub struct Counters {
    read: AtomicU64,
    taken: AtomicU64,
    beat: Option<Beat>,
}

impl Counters {
    /// Leaked, because threads that may never return use it.
    pub fn leak(beat: Option<Beat>) -> &'static Self {
        Box::leak(Box::new(Self {
            read: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            beat,
        }))
    }

    /// Bytes read from the sources.
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes taken by the sink.
    pub fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Meter for Counters {
    fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        if let Some(beat) = self.beat {
            beat.add_read(bytes);
        }
    }

    fn taken(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        if let Some(beat) = self.beat {
            beat.add_taken(bytes);
        }
    }
}

/// A guardian for `targets`, where there is anything to freeze. Call it while the process has one thread.
pub fn guard(targets: Vec<Target>, limits: Limits, quiet: bool) -> Result<Option<Guardian>> {
    if targets.is_empty() {
        return Ok(None);
    }
    if !quiet {
        if let Some((name, seconds)) = crate::freeze::shorter_hardware_watchdog(limits.max_freeze) {
            report::line(format_args!(
                "note: the hardware watchdog {name} resets the board after {seconds} s, which is shorter than --max-freeze {} s; whatever feeds it must not write to a frozen filesystem",
                limits.max_freeze.as_secs()
            ));
        }
        for target in &targets {
            if matches!(target.method, Method::ReadOnly(_)) {
                report::line(format_args!(
                    "{}: cannot be frozen; it is remounted read-only while it is read, and writers get EROFS meanwhile",
                    target.name
                ));
            }
        }
    }
    Guardian::start(targets, limits).map(Some)
}

/// A part that the surveyor walks in the frozen window.
struct Errand {
    /// Index in the plan's parts.
    part: usize,
    /// Index of the subject.
    subject: usize,
    identity: Identity,
    still: Still,
    verdict: Verdict,
    witness: Witness,
}

/// What the surveyor is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Survey,
    Surveyed,
    Check,
    Checked,
}

/// Why a survey stopped the run; made without the heap.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    subject: usize,
    fault: Fault,
}

struct Desk {
    step: Step,
    plan: Option<Plan>,
    errands: Vec<Errand>,
    trouble: Option<Trouble>,
}

struct Surveyor {
    desk: Mutex<Desk>,
    go: Condvar,
    event: OwnedFd,
    require_map: bool,
    counters: &'static Counters,
}

impl Surveyor {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, step: Step) {
        self.lock().step = step;
        self.go.notify_all();
    }

    fn run(&self, pipeline: &Pipeline, scratch: &mut [u8]) {
        loop {
            let mut desk = self.lock();
            while !matches!(desk.step, Step::Survey | Step::Check) {
                desk = self.go.wait(desk).unwrap_or_else(PoisonError::into_inner);
            }
            let step = desk.step;
            let mut errands = std::mem::take(&mut desk.errands);
            let mut plan = desk.plan.take();
            drop(desk);
            let metered = Metered {
                devices: pipeline.devices(),
                counters: self.counters,
            };
            let trouble = match (&mut plan, step) {
                (Some(plan), Step::Survey) => {
                    survey(plan, &mut errands, &metered, scratch, self.require_map)
                }
                _ => check(&errands, &metered, scratch),
            };
            if let (Some(plan), None) = (plan, trouble) {
                pipeline.start(plan);
            }
            let mut desk = self.lock();
            desk.errands = errands;
            desk.trouble = trouble;
            desk.step = if step == Step::Survey {
                Step::Surveyed
            } else {
                Step::Checked
            };
            drop(desk);
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

/// The devices, with every read counted as a sign of life: a large map on a slow card is no stall.
struct Metered {
    devices: &'static [Device],
    counters: &'static Counters,
}

struct MeteredDevice {
    device: &'static Device,
    counters: &'static Counters,
}

impl Metered {
    fn get(&self, index: usize) -> Option<MeteredDevice> {
        Some(MeteredDevice {
            device: self.devices.get(index)?,
            counters: self.counters,
        })
    }
}

impl ReadAt for MeteredDevice {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), Fault> {
        self.device.read_at(offset, buffer)?;
        if let Some(beat) = self.counters.beat {
            beat.add_read(crate::units::to_u64(buffer.len()));
        }
        Ok(())
    }
}

/// Walks every errand's filesystem and fills its map. In the frozen window: no heap.
fn survey(
    plan: &mut Plan,
    errands: &mut [Errand],
    devices: &Metered,
    scratch: &mut [u8],
    require_map: bool,
) -> Option<Trouble> {
    for errand in errands {
        let subject = errand.subject;
        let part = plan.parts_mut().get_mut(errand.part)?;
        let device = devices.get(part.device)?;
        let result = survey_one(errand, part, &device, scratch);
        if let Err(fault) = result {
            return Some(Trouble { subject, fault });
        }
        if require_map && errand.verdict.coverage == Coverage::Whole {
            let fault = errand
                .verdict
                .doubt
                .unwrap_or(Fault::refused("no used-block map"));
            let fault = Fault {
                kind: crate::error::FaultKind::Refused,
                ..fault
            };
            return Some(Trouble { subject, fault });
        }
    }
    None
}

fn survey_one(
    errand: &mut Errand,
    part: &mut Part,
    device: &MeteredDevice,
    scratch: &mut [u8],
) -> std::result::Result<(), Fault> {
    let Content::Used(map) = &mut part.content else {
        return Ok(());
    };
    if !device.device.is_direct() && device.device.kind() == crate::device::DeviceKind::Block {
        blkflsbuf(device.device.as_fd()).map_err(|errno| Fault::io("BLKFLSBUF", errno))?;
    }
    // The superblock was read before the freeze to size the map: it must still be the same filesystem, of the same size.
    let now = fs::probe(device)?;
    let same = now.as_ref().is_some_and(|now| {
        now.kind == errand.identity.kind
            && now.size_bytes == errand.identity.size_bytes
            && now.block_bytes == errand.identity.block_bytes
            && now.uuid == errand.identity.uuid
    });
    let Some(now) = now.filter(|_| same) else {
        return Err(Fault::short(
            "the filesystem changed its kind, size or uuid while the dump began; run it again",
        ));
    };
    errand.identity = now;
    let mut walk = Walk::new(device, scratch);
    errand.verdict = fs::walk(&errand.identity, errand.still, &mut walk, map)?;
    if errand.verdict.coverage == Coverage::Whole {
        map.set_all_used();
    } else if errand.identity.size_bytes > 0 {
        // The filesystem may be smaller than its partition: nothing owns what lies behind it.
        let end = errand.identity.size_bytes;
        map.set_free(Extent {
            offset: end,
            length_bytes: map.size_bytes().saturating_sub(end),
        });
    }
    let mut walk = Walk::new(device, scratch);
    errand.witness = fs::witness(&errand.identity, &mut walk)?;
    Ok(())
}

/// Looks again at what a write would have changed.
fn check(errands: &[Errand], devices: &Metered, scratch: &mut [u8]) -> Option<Trouble> {
    for errand in errands {
        if errand.still == Still::Moving {
            continue;
        }
        let device = devices.get(errand.subject)?;
        let mut walk = Walk::new(&device, scratch);
        let fault = match fs::witness(&errand.identity, &mut walk) {
            Ok(witness) if witness == errand.witness => continue,
            Ok(_) => Fault::short("changed while it was read: somebody thawed or wrote to it"),
            Err(fault) => fault,
        };
        return Some(Trouble {
            subject: errand.subject,
            fault,
        });
    }
    None
}

/// What came of one subject.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How far its map was proven.
    pub coverage: Coverage,
    /// Why not wholly.
    pub doubt: Option<Fault>,
    /// Bytes that were to be read.
    pub used_bytes: u64,
}

/// The figures of a capture.
#[derive(Debug)]
pub struct Figures {
    /// One for each subject.
    pub outcomes: Vec<Outcome>,
    /// Bytes read.
    pub read_bytes: u64,
    /// Length of the frozen window; 0 where nothing was frozen.
    pub frozen_ms: u64,
}

/// Everything ready to freeze: threads exist and wait, memory is allocated.
pub struct Capture {
    subjects: Vec<Subject>,
    pipeline: &'static Pipeline,
    surveyor: &'static Surveyor,
    counters: &'static Counters,
    guardian: Option<Guardian>,
    signals: Signals,
    progress: Progress,
}

/// What [`Capture::new`] puts together.
pub struct Parts {
    /// The subjects, whose numbers are those of the devices.
    pub subjects: Vec<Subject>,
    /// Their devices.
    pub devices: Vec<Device>,
    /// The guardian, where something is to be frozen.
    pub guardian: Option<Guardian>,
    /// The signals, blocked.
    pub signals: Signals,
    /// The counters that the emitter uses too.
    pub counters: &'static Counters,
    /// Forms the output.
    pub emit: Box<dyn Emit>,
    /// Sizes of the pipeline.
    pub settings: Settings,
    /// Progress on stderr.
    pub progress: Progress,
}

impl Capture {
    /// Allocates everything and starts the threads.
    pub fn new(parts: Parts, wishes: Wishes) -> Result<Self> {
        let mut errands = Vec::new();
        let mut images = Vec::new();
        for (index, subject) in parts.subjects.iter().enumerate() {
            let map = match &subject.identity {
                Some(identity) if !wishes.whole => {
                    BlockSize::from_bytes(u64::from(identity.block_bytes))
                        .and_then(|block| UsedMap::new(subject.size_bytes, block))
                }
                _ => None,
            };
            if let (Some(_), Some(identity)) = (&map, &subject.identity) {
                errands.push(Errand {
                    part: index,
                    subject: index,
                    identity: identity.clone(),
                    still: subject.still,
                    verdict: Verdict::USED,
                    witness: Witness::default(),
                });
            } else if wishes.require_map {
                return Err(Error::refused(format_args!(
                    "{}: {}: no used-block map for this content; nothing was written",
                    subject.name, subject.shown
                )));
            }
            images.push(vec![Part {
                device: index,
                device_offset: 0,
                length_bytes: subject.size_bytes,
                content: map.map_or(Content::Whole, Content::Used),
            }]);
        }
        let internal = |fault| Error::fault("floe", fault);
        let pipeline = Pipeline::new(parts.settings, parts.devices, parts.emit, parts.counters)
            .map_err(internal)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| internal(Fault::io("eventfd", errno)))?;
        let surveyor: &'static Surveyor = Box::leak(Box::new(Surveyor {
            desk: Mutex::new(Desk {
                step: Step::Wait,
                plan: Some(Plan::new(images)),
                errands,
                trouble: None,
            }),
            go: Condvar::new(),
            event,
            require_map: wishes.require_map,
            counters: parts.counters,
        }));
        let pipeline: &'static Pipeline = Box::leak(Box::new(pipeline));
        let mut scratch = vec![0u8; SCRATCH_BYTES];
        std::thread::Builder::new()
            .name("floe-survey".into())
            .stack_size(512 * 1024)
            .spawn(move || surveyor.run(pipeline, &mut scratch))
            .map_err(|e| Error::failed(format_args!("floe: start a thread: {e}")))?;
        Ok(Self {
            subjects: parts.subjects,
            pipeline,
            surveyor,
            counters: parts.counters,
            guardian: parts.guardian,
            signals: parts.signals,
            progress: parts.progress,
        })
    }

    /// Waits until the reader of `sink` has taken what was written to it (the first bytes of the stream), so that an ssh on the
    /// other side has logged in before anything freezes.
    pub fn wait_sink(&mut self, sink: BorrowedFd<'_>, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(number) = self.signals.take() {
                return Err(Error::Signal(number));
            }
            if let Some(problem) = self.pipeline.state().problem {
                return Err(self.problem(problem));
            }
            match crate::stream::output::unread_bytes(sink) {
                Some(0) | None => return Ok(()),
                Some(_) if start.elapsed() > limit => {
                    return Err(Error::refused(format_args!(
                        "stdout: the reader has not taken the first bytes within {} s; nothing was frozen; give it longer with --wait-sink, or look whether it waits for a password",
                        limit.as_secs()
                    )));
                }
                Some(_) => {}
            }
            self.progress
                .show(false, format_args!("waiting for the reader of stdout …"));
            let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&timespec(Duration::from_millis(20))));
        }
    }

    /// Freezes, surveys, reads, thaws, ends the stream.
    pub fn run(mut self) -> Result<Figures> {
        let mut frozen = match self.guardian.take() {
            None => None,
            Some(guardian) => Some(guardian.freeze(&self.signals)?),
        };
        let result = self.supervise(&mut frozen);
        // Whatever went wrong: thaw first, speak afterwards.
        drop(frozen);
        self.progress.clear();
        result
    }

    fn supervise(&mut self, frozen: &mut Option<Frozen>) -> Result<Figures> {
        let mut frozen_ms = 0;
        let (mut checking, mut permitted) = (false, false);
        self.surveyor.order(Step::Survey);
        loop {
            if let Some(number) = self.signals.take() {
                return Err(Error::Signal(number));
            }
            if let Some(frozen) = frozen.as_mut() {
                frozen.check()?;
            }
            let state = self.pipeline.state();
            if let Some(problem) = state.problem {
                drop(frozen.take());
                return Err(self.problem(problem));
            }
            let (step, trouble) = self.survey_state();
            if let Some(trouble) = trouble {
                drop(frozen.take());
                return Err(self.trouble(trouble, step));
            }
            if state.all_read && !checking {
                checking = true;
                self.surveyor.order(Step::Check);
            }
            if step == Step::Checked && !permitted {
                if let Some(frozen) = frozen.take() {
                    frozen_ms = frozen.thaw()?.frozen_ms;
                }
                permitted = true;
                self.pipeline.permit();
            }
            if state.finished {
                return Ok(self.figures(frozen_ms));
            }
            self.show(frozen.is_some());
            self.rest(frozen.as_ref());
        }
    }

    fn survey_state(&self) -> (Step, Option<Trouble>) {
        let _ = rustix::io::read(&self.surveyor.event, &mut [0; 8]);
        let desk = self.surveyor.lock();
        (desk.step, desk.trouble)
    }

    fn rest(&self, frozen: Option<&Frozen>) {
        let mut fds = [
            PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.pipeline.event(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.surveyor.event.as_fd(), PollFlags::IN),
            // Twice the same where nothing is frozen.
            PollFd::from_borrowed_fd(
                frozen.map_or(self.signals.fd(), Frozen::event_fd),
                PollFlags::IN,
            ),
        ];
        let _ = poll(&mut fds, Some(&timespec(LOOK)));
    }

    fn show(&mut self, is_frozen: bool) {
        let used = self.pipeline.plan().map_or(0, Plan::used_bytes);
        let read = Bytes(self.counters.read_bytes());
        let taken = Bytes(self.counters.taken_bytes());
        let state = if is_frozen { ", frozen" } else { "" };
        if used == 0 {
            self.progress
                .show(is_frozen, format_args!("reading the map{state}"));
        } else {
            self.progress.show(
                is_frozen,
                format_args!("{read} of {} read, {taken} written{state}", Bytes(used)),
            );
        }
    }

    fn subject_name(&self, index: usize) -> &str {
        self.subjects
            .get(index)
            .map_or("source", |subject| subject.shown.as_str())
    }

    fn problem(&self, problem: Problem) -> Error {
        const LEFT: &str = "what was written is not complete";
        match problem {
            Problem::ClosedPipe => Error::Silent(Exit::Failed),
            Problem::Read(device, fault) => Error::fault(self.subject_name(device), fault)
                .with_exit(Exit::Failed)
                .leaving(LEFT),
            Problem::Write(fault) => Error::fault("output", fault)
                .with_exit(Exit::Failed)
                .leaving(LEFT),
            Problem::Internal(fault) => Error::fault("floe: internal", fault)
                .with_exit(Exit::Failed)
                .leaving(LEFT),
        }
    }

    fn trouble(&self, trouble: Trouble, step: Step) -> Error {
        let error = Error::fault(self.subject_name(trouble.subject), trouble.fault);
        if step == Step::Surveyed && trouble.fault.exit() == Exit::Refused {
            return error.leaving("nothing was written");
        }
        error
            .with_exit(Exit::Failed)
            .leaving("what was written is not complete")
    }

    fn figures(&self, frozen_ms: u64) -> Figures {
        let desk = self.surveyor.lock();
        let parts = self.pipeline.plan().map_or(&[][..], Plan::parts);
        let outcomes = (0..self.subjects.len())
            .zip(parts)
            .map(|(index, part)| {
                let errand = desk.errands.iter().find(|errand| errand.subject == index);
                Outcome {
                    coverage: errand.map_or(Coverage::Whole, |errand| errand.verdict.coverage),
                    doubt: errand.and_then(|errand| errand.verdict.doubt),
                    used_bytes: part.used_bytes(),
                }
            })
            .collect();
        Figures {
            outcomes,
            read_bytes: self.counters.read_bytes(),
            frozen_ms,
        }
    }

    /// The subjects, for the report.
    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A span for the last line, e.g. `frozen 812 ms`.
pub fn frozen_words(frozen_ms: u64) -> String {
    format!("frozen {}", Span(Duration::from_millis(frozen_ms)))
}
