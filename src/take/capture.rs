//! One capture: sources held still, surveyed, read, thawed, and the stream ended. Shared by `dump` and whatever else streams
//! frozen filesystems.
//!
//! Three parties: the *supervisor* (the main thread) waits for signals, the guardian, the pipeline and the surveyor, and is the
//! only one that decides; the *surveyor* walks the filesystems in the frozen window and looks again before the thaw, so that a
//! signal is answered at once even while a large map is read; the *pipeline* reads, encodes and emits. Everything is
//! allocated before the freeze. The stream gets its end only after a thaw that proves nobody else thawed in between.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, Exit, Fault, NOTHING_WRITTEN, Result};
use crate::freeze::{Frozen, Guardian, Limits, Method, Progress as Beat, Target};
use crate::fs::files::Emptying;
use crate::fs::{Coverage, UsedMap};
use crate::overlay::{Overlay, PIECE_BYTES};
use crate::report::{self, Bytes, Progress};
use crate::signals::Signals;
use crate::stream::pipeline::{Meter, Outlet, Pipeline, Place, Problem, Settings};
use crate::stream::plan::{Content, Part, Plan};
use crate::take::emptied::Emptied;
use crate::take::source::{Prepared, Reading, Wishes};
use crate::take::survey::{Errand, Step, Surveyor, Trouble};
use crate::units::{BlockSize, to_u64, to_usize};

/// How long the supervisor sleeps at most: progress and the guardian's heartbeat want a look now and then.
const LOOK: Duration = Duration::from_millis(200);

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

    /// A sign of life for the guardian that is not counted as read: the survey's own reads.
    pub fn alive(&self, bytes: u64) {
        if let Some(beat) = self.beat {
            beat.add_read(bytes);
        }
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

/// Says what is to be said beforehand, blocks the signals, and starts a guardian for `targets`, where there is anything to
/// freeze. Call it while the process has one thread.
pub fn guard(
    targets: Vec<Target>,
    limits: Limits,
    quiet: bool,
) -> Result<(Signals, Option<Guardian>)> {
    if !quiet && !targets.is_empty() {
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
    let signals = Signals::block()?;
    let guardian = match targets.is_empty() {
        true => None,
        false => Some(Guardian::start(targets, limits)?),
    };
    if !quiet
        && guardian
            .as_ref()
            .is_some_and(|guardian| !guardian.is_apart())
    {
        report::line(
            "note: the guardian has no control group of its own here: a kill of the whole group takes it along, and what is frozen then stays so (floe thaw ends that)",
        );
    }
    Ok((signals, guardian))
}

/// What came of one image.
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
    /// One for each image.
    pub outcomes: Vec<Outcome>,
    /// Bytes read.
    pub read_bytes: u64,
    /// Length of the frozen window; 0 where nothing was frozen.
    pub frozen_ms: u64,
    /// Files that came out empty.
    pub emptied: Emptied,
}

/// Everything ready to freeze: threads exist and wait, memory is allocated.
pub struct Capture {
    /// What messages call the devices.
    shown: Vec<String>,
    /// For each image the parts of the plan that make it up.
    images: Vec<std::ops::Range<usize>>,
    pipeline: &'static Pipeline,
    surveyor: &'static Surveyor,
    counters: &'static Counters,
    guardian: Option<Guardian>,
    signals: Signals,
    progress: Progress,
    /// The targets of a copy, whose state its verb tells.
    places: Option<&'static dyn Place>,
    /// Bytes to be read, once they are known.
    used_bytes: u64,
}

/// What [`Capture::new`] puts together, besides the images.
pub struct Engine {
    /// The guardian, where something is to be frozen.
    pub guardian: Option<Guardian>,
    /// The signals, blocked.
    pub signals: Signals,
    /// The counters that the emitter uses too.
    pub counters: &'static Counters,
    /// Takes what is read.
    pub sink: Outlet,
    /// Sizes of the pipeline.
    pub settings: Settings,
    /// Progress on stderr.
    pub progress: Progress,
    /// Files that are to come out empty.
    pub emptying: Emptying,
}

/// The images' parts and what is to be walked, before the pipeline takes the devices.
#[derive(Default)]
struct Draft {
    images: Vec<Vec<Part>>,
    ranges: Vec<std::ops::Range<usize>>,
    errands: Vec<Errand>,
    devices: Vec<crate::device::Device>,
    shown: Vec<String>,
    parts: usize,
}

impl Draft {
    fn add(&mut self, prepared: Prepared, wishes: Wishes) -> Result<()> {
        let first_device = self.devices.len();
        let first_part = self.parts;
        let image = self.images.len();
        let mut parts = Vec::new();
        for piece in prepared.pieces {
            let map = match &piece.reading {
                Reading::Map(identity) => BlockSize::from_bytes(u64::from(identity.block_bytes))
                    .and_then(|block| UsedMap::new(piece.length_bytes, block)),
                Reading::Whole(_) | Reading::Gap => None,
            };
            let is_gap = matches!(piece.reading, Reading::Gap);
            if wishes.require_map && map.is_none() && !is_gap {
                return Err(Error::refused(format_args!(
                    "{}: {}: no used-block map for what is on it",
                    prepared.name, prepared.shown
                )));
            }
            if let Reading::Map(identity) | Reading::Whole(Some(identity)) = piece.reading {
                let errand = Errand::new(self.parts, image, *identity, piece.still, piece.swap);
                self.errands.push(errand);
            }
            parts.push(Part {
                device: first_device + piece.device,
                device_offset: piece.offset,
                length_bytes: piece.length_bytes,
                content: map.map_or(Content::Whole, Content::Used),
            });
            self.parts += 1;
        }
        self.images.push(parts);
        self.ranges.push(first_part..self.parts);
        for opened in prepared.devices {
            self.devices.push(opened.device);
            self.shown.push(opened.shown);
        }
        // Held until the process ends.
        std::mem::forget(prepared.held);
        Ok(())
    }
}

/// Pieces of an overlay in which files are emptied: some thousand inodes, and bitmaps up to a bit for each block, within bounds.
fn pieces(images: &[Vec<Part>]) -> usize {
    const LEAST: u64 = 2048;
    const MOST: u64 = 16 * 1024;
    let maps = images.iter().flatten().map(|part| match &part.content {
        Content::Used(map) => map.size_bytes() / u64::from(map.granule().bytes()) / 8,
        Content::Whole | Content::Zeros => 0,
    });
    let bytes = maps.fold(0, u64::saturating_add);
    to_usize((LEAST + bytes / to_u64(PIECE_BYTES)).min(MOST))
}

impl Capture {
    /// Allocates everything and starts the threads. One image for each of `sources`, in order.
    pub fn new(sources: Vec<Prepared>, engine: Engine, wishes: Wishes) -> Result<Self> {
        let mut draft = Draft::default();
        for prepared in sources {
            draft.add(prepared, wishes)?;
        }
        let overlay = match engine.emptying.is_empty() {
            true => Overlay::default(),
            false => Overlay::new(pieces(&draft.images)),
        };
        let places = match &engine.sink {
            Outlet::Stream(_) => None,
            Outlet::Places(places) => Some(*places),
        };
        let pipeline = Pipeline::new(engine.settings, draft.devices, engine.sink, engine.counters)
            .map_err(|fault| Error::fault("floe", fault))?;
        let pipeline: &'static Pipeline = Box::leak(Box::new(pipeline));
        let surveyor = Surveyor::start(
            Plan::new(draft.images).with_overlay(overlay),
            draft.errands,
            engine.emptying,
            pipeline,
            engine.counters,
            wishes.require_map,
        )?;
        Ok(Self {
            shown: draft.shown,
            images: draft.ranges,
            pipeline,
            surveyor,
            counters: engine.counters,
            guardian: engine.guardian,
            signals: engine.signals,
            progress: engine.progress,
            places,
            used_bytes: 0,
        })
    }

    /// The pipeline, which outlives the run.
    pub fn pipeline(&self) -> &'static Pipeline {
        self.pipeline
    }

    /// Waits until the reader of `sink` has taken what was written to it (the first bytes of the stream), so that an ssh on the
    /// other side has logged in before anything freezes.
    pub fn wait_sink(&mut self, sink: BorrowedFd<'_>, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(number) = self.signals.take() {
                return Err(Error::signal(number));
            }
            if let Some(problem) = self.pipeline.state().problem {
                return Err(self.problem(problem));
            }
            if crate::stream::output::reader_is_gone(sink) {
                return Err(Error::silent(Exit::Failed));
            }
            match crate::stream::output::unread_bytes(sink) {
                Some(0) | None => return Ok(()),
                Some(_) if start.elapsed() > limit => {
                    return Err(Error::refused(format_args!(
                        "stdout: the reader has not taken the first bytes within {} s; give it longer with --wait-sink, or look whether it waits for a password",
                        limit.as_secs()
                    )).leaving("nothing was frozen"));
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
    pub fn run(self) -> Result<Figures> {
        self.run_telling(|_| ())
    }

    /// The same; `thawed` gets the figures after the thaw and before the end of the stream, which may carry them.
    pub fn run_telling(mut self, mut thawed: impl FnMut(Figures)) -> Result<Figures> {
        let mut frozen = match self.guardian.take() {
            None => None,
            Some(guardian) => Some(guardian.freeze(&self.signals)?),
        };
        let result = self.supervise(&mut frozen, &mut thawed);
        // Whatever went wrong: thaw first, speak afterwards.
        drop(frozen);
        self.progress.clear();
        result
    }

    fn supervise(
        &mut self,
        frozen: &mut Option<Frozen>,
        thawed: &mut dyn FnMut(Figures),
    ) -> Result<Figures> {
        let mut frozen_ms = 0;
        let (mut checking, mut permitted) = (false, false);
        self.surveyor.order(Step::Survey);
        loop {
            if let Some(number) = self.signals.take() {
                return Err(Error::signal(number));
            }
            if let Some(frozen) = frozen.as_mut() {
                frozen.check()?;
            }
            let state = self.pipeline.state();
            if let Some(problem) = state.problem {
                drop(frozen.take());
                return Err(self.problem(problem));
            }
            let (step, trouble) = self.surveyor.state();
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
                thawed(self.figures(frozen_ms));
                self.pipeline.permit();
            }
            if state.finished {
                return Ok(self.figures(frozen_ms));
            }
            self.show(frozen.is_some());
            self.rest(frozen.as_ref());
        }
    }

    fn rest(&self, frozen: Option<&Frozen>) {
        let mut fds = [
            PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.pipeline.event(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.surveyor.event(), PollFlags::IN),
            // Twice the same where nothing is frozen.
            PollFd::from_borrowed_fd(
                frozen.map_or(self.signals.fd(), Frozen::event_fd),
                PollFlags::IN,
            ),
        ];
        let _ = poll(&mut fds, Some(&timespec(LOOK)));
    }

    fn show(&mut self, is_frozen: bool) {
        if !self.progress.is_due(is_frozen) {
            return;
        }
        // Counting the map's bits once is enough.
        if self.used_bytes == 0 {
            self.used_bytes = self.pipeline.plan().map_or(0, Plan::used_bytes);
        }
        let used = self.used_bytes;
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

    fn device_name(&self, index: usize) -> &str {
        self.shown.get(index).map_or("source", String::as_str)
    }

    fn problem(&self, problem: Problem) -> Error {
        let left = |error: Error| match self.places {
            None => error.leaving("what was written is not complete"),
            Some(_) => error,
        };
        let output = self.places.map_or("output", Place::failed);
        match problem {
            Problem::ClosedPipe => Error::silent(Exit::Failed),
            Problem::Read(device, fault) => {
                left(Error::fault(self.device_name(device), fault).with_exit(Exit::Failed))
            }
            Problem::Write(fault) => left(Error::fault(output, fault).with_exit(Exit::Failed)),
            Problem::Internal(fault) => {
                left(Error::fault("floe: internal", fault).with_exit(Exit::Failed))
            }
        }
    }

    fn trouble(&self, trouble: Trouble, step: Step) -> Error {
        let device = self.device_name(trouble.device);
        let error = match self.surveyor.path_of_trouble() {
            path if path.is_empty() => Error::fault(device, trouble.fault),
            path => Error::fault(format_args!("{device}: {path}"), trouble.fault),
        };
        if step == Step::Surveyed && trouble.fault.exit() == Exit::Refused {
            return error.leaving(NOTHING_WRITTEN);
        }
        let error = error.with_exit(Exit::Failed);
        match self.places {
            None => error.leaving("what was written is not complete"),
            Some(_) => error,
        }
    }

    fn figures(&self, frozen_ms: u64) -> Figures {
        let verdicts = self.surveyor.verdicts();
        let parts = self.pipeline.plan().map_or(&[][..], Plan::parts);
        let outcome = |(image, range): (usize, &std::ops::Range<usize>)| {
            let parts = parts.get(range.clone()).unwrap_or_default();
            let mut of_image = verdicts.iter().filter(|(at, _)| *at == image);
            let mut mapped = of_image.clone().map(|(_, verdict)| verdict.coverage);
            let coverage = match (mapped.next(), mapped.clone().next()) {
                (None, _) => Coverage::Whole,
                // One filesystem: what its walk said.
                (Some(only), None) if parts.len() == 1 => only,
                (Some(first), _) => {
                    let all_used = mapped.chain([first]).all(|one| one == Coverage::Used);
                    if all_used {
                        Coverage::Used
                    } else {
                        Coverage::Partial
                    }
                }
            };
            Outcome {
                coverage,
                doubt: of_image.find_map(|(_, verdict)| verdict.doubt),
                used_bytes: parts.iter().map(Part::used_bytes).sum(),
            }
        };
        Figures {
            outcomes: self.images.iter().enumerate().map(outcome).collect(),
            read_bytes: self.counters.read_bytes(),
            frozen_ms,
            emptied: self.surveyor.emptied(),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
