//! One capture: sources held still, surveyed, read, thawed, and the stream ended. Shared by `dump` and whatever else streams
//! frozen filesystems.
//!
//! Three parties: the *supervisor* (the main thread) waits for signals, the guardian, the pipeline and the surveyor, and is the
//! only one that decides; the *surveyor* walks the filesystems in the frozen window and looks again before the thaw, so that a
//! signal is answered at once even while a large map is read; the *pipeline* reads, encodes and emits. Everything is
//! allocated before the freeze. The stream gets its end only after a thaw that proves nobody else thawed in between.

mod long;
mod outcome;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;

pub(crate) use self::outcome::CaptureFigures;
use crate::error::{Error, Exit, Result};
use crate::freeze::{Frozen, Guardian};
use crate::fs::files::Emptying;
use crate::overlay::Overlay;
use crate::report::{self, Progress};
use crate::signals::Signals;
use crate::stream::pipeline::{Encoding, Outlet, Pipeline, Placing, Problem, Settings};
use crate::stream::plan::Plan;
use crate::take::counters::Counters;
use crate::take::draft::{Draft, pieces};
use crate::take::precopy::{TestHold, TraceWatch};
use crate::take::ready::Ready;
use crate::take::source::{Prepared, Wishes};
use crate::take::survey::{Looks, Plans, Stage, Surveyor};
use crate::take::walks::Trouble;
use crate::take::watched::WatchedFile;

/// How long the supervisor sleeps at most: progress and the guardian's heartbeat want a look now and then.
const LOOK: Duration = Duration::from_millis(200);

/// A reader that is gone for so long has not taken all.
const ALONE: Duration = Duration::from_millis(500);

/// How long the trace may take to show everything, before the freeze and under it.
const EARLY_DRAIN: Duration = Duration::from_secs(5);
pub(super) const FROZEN_DRAIN: Duration = Duration::from_millis(300);

/// Everything ready to freeze: threads exist and wait, memory is allocated.
pub(crate) struct Capture {
    /// What messages call the devices.
    shown: Vec<String>,
    /// For each image the parts of the plan that make it up.
    images: Vec<std::ops::Range<usize>>,
    unknown: Vec<usize>,
    pipeline: &'static Pipeline,
    surveyor: &'static Surveyor,
    counters: &'static Counters,
    /// Goes before the guardian, which would take it away.
    watch: Option<TraceWatch>,
    guardian: Option<Guardian>,
    /// Whether anything is read before the freeze.
    precopy: bool,
    /// How long a trial froze.
    trial_ms: u64,
    signals: Signals,
    progress: Progress,
    /// The targets of a copy, whose state its verb tells.
    places: Option<&'static dyn Placing>,
    /// What is read goes where it belongs, into a file or onto targets.
    copies: bool,
    /// Whether the sink is a pipe or a socket.
    is_pipe: bool,
    /// To see that its reader is gone.
    sink: Option<OwnedFd>,
    /// Bytes in use that nothing can hold before the freeze.
    unheld_bytes: u64,
    /// Whether what is read is packed.
    packs: bool,
    watched: Vec<WatchedFile>,
    held_by_test: TestHold,
    /// Bytes to be read, once they are known.
    used_bytes: u64,
    /// Bytes read before the freeze.
    read_before: u64,
    /// Of the rounds before the freeze: how many are over, what they took, and what the next one is to take.
    round: (u32, u64, u64),
    all_read: bool,
    onto_itself: bool,
    /// Whether what is only known under a freeze is asked before anything is written.
    rehearses: bool,
    quiet: bool,
    /// Whether anything was frozen by now.
    froze: bool,
    output: Option<String>,
}

/// What [`Capture::new`] puts together, besides the images.
pub(crate) struct Engine {
    /// What holds the sources still.
    pub ready: Ready,
    /// Takes what is read.
    pub sink: Outlet,
    /// Sizes of the pipeline.
    pub settings: Settings,
    /// Progress on stderr.
    pub progress: Progress,
    /// Files that are to come out empty.
    pub emptying: Emptying,
    /// Whether what is read before the freeze can be taken back where it goes.
    pub precopy: bool,
    /// Whether what is written lies on a filesystem that is frozen meanwhile: then all of it has to be held.
    pub onto_itself: bool,
    /// No lines for people.
    pub quiet: bool,
    /// What messages call the file that is written; `None`: it is stdout, or targets.
    pub output: Option<String>,
}

impl Capture {
    /// Allocates everything and starts the threads. One image for each of `sources`, in order.
    pub(crate) fn new(sources: Vec<Prepared>, engine: Engine, wishes: Wishes) -> Result<Self> {
        let Ready {
            signals,
            counters,
            guardian,
            watch,
            ..
        } = engine.ready;
        let mut settings = engine.settings;
        let copies = matches!(engine.sink, Outlet::Places(_));
        let holds = engine.precopy && holds_early(&engine.sink, &settings);
        let used = sources.iter().map(Prepared::used_bytes);
        let used = used.fold(0, u64::saturating_add);
        let unheld_bytes = if watch.is_some() && !holds { used } else { 0 };
        let watch = watch.filter(|watch| holds && (watch.tries() || !copies));
        let places = targets_of(&engine.sink);
        // A copy writes early: what is only known under a freeze, and may be a refusal, is asked before that.
        let rehearses = places.is_some() && (!engine.emptying.is_empty() || wishes.require_map);
        // A quarter of the spool is for what waits to be packed.
        if engine.onto_itself && watch.is_none() && used > settings.spool_bytes / 4 * 3 {
            return Err(no_room(engine.output.as_deref()).leaving("nothing was frozen"));
        }
        let packs = settings.encoding != Encoding::Raw;
        settings.precopy = watch.as_ref().map(TraceWatch::precopy);
        if let Some(hashes) = &mut settings.hashes {
            hashes.waits = guardian.is_none();
        }
        let mut draft = Draft::of(sources, wishes, watch.is_some())?;
        let devices = std::mem::take(&mut draft.devices);
        let pipeline = Pipeline::new(settings, devices, engine.sink, counters)
            .map_err(|fault| Error::fault("floe", fault))?;
        let pipeline: &'static Pipeline = Box::leak(Box::new(pipeline));
        let looks = looks(counters, wishes, watch.as_ref());
        let surveyor = start_surveyor(&mut draft, engine.emptying, pipeline, looks)?;
        Ok(Self {
            shown: draft.shown,
            images: draft.ranges,
            unknown: draft.unknown,
            pipeline,
            surveyor,
            counters,
            guardian,
            precopy: watch.is_some(),
            watch,
            trial_ms: 0,
            signals,
            progress: engine.progress,
            places,
            copies,
            is_pipe: false,
            sink: None,
            unheld_bytes,
            packs,
            watched: draft.watched,
            held_by_test: TestHold::told(),
            used_bytes: 0,
            read_before: 0,
            round: (0, 0, 0),
            all_read: false,
            onto_itself: engine.onto_itself,
            rehearses,
            quiet: engine.quiet,
            froze: false,
            output: engine.output,
        })
    }

    /// The pipeline, which outlives the run.
    pub(crate) fn pipeline(&self) -> &'static Pipeline {
        self.pipeline
    }

    /// The one who walks, who outlives the run too.
    pub(crate) fn surveyor(&self) -> &'static Surveyor {
        self.surveyor
    }

    /// Waits until the reader of `sink` has taken what was written to it (the first bytes of the stream), so that an ssh on the
    /// other side has logged in before anything freezes.
    pub(crate) fn wait_sink(&mut self, sink: BorrowedFd<'_>, limit: Duration) -> Result<()> {
        let start = Instant::now();
        self.sink = rustix::io::fcntl_dupfd_cloexec(sink, 3).ok();
        self.is_pipe = rustix::fs::fstat(sink).is_ok_and(|stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            matches!(kind, FileType::Fifo | FileType::Socket)
        });
        // An ssh that reads it may ask for a password first.
        self.progress.hold(self.is_pipe);
        loop {
            self.signals.check()?;
            if let Some(problem) = self.pipeline.state().problem {
                return Err(self.problem(problem));
            }
            if crate::stream::output::reader_is_gone(sink) {
                return Err(self.problem(Problem::ClosedPipe));
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
            let step = report::Step::new("waiting for the reader", 0, 0);
            self.progress.show(false, step);
            let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&timespec(Duration::from_millis(20))));
        }
    }

    /// Freezes, surveys, reads, thaws, ends the stream.
    pub(crate) fn run(self) -> Result<CaptureFigures> {
        self.run_telling(|_| ())
    }

    /// The same; `thawed` gets the figures after the thaw and before the end of the stream, which may carry them.
    pub(crate) fn run_telling(
        mut self,
        mut thawed: impl FnMut(CaptureFigures),
    ) -> Result<CaptureFigures> {
        self.take_early()?;
        self.read_before = self.counters.read_bytes();
        if self.guardian.is_some() {
            // For scripts, which see nothing while it lasts.
            self.progress.turn();
            let step = report::Step::new("frozen", 0, 0);
            self.progress.show(false, step);
            self.progress.turn();
        }
        let mut frozen = match self.guardian.take() {
            None => None,
            Some(guardian) => Some(guardian.freeze(&self.signals)?),
        };
        self.watched.iter_mut().for_each(WatchedFile::begin);
        self.froze = frozen.is_some();
        let result = self.supervise(&mut frozen, &mut thawed);
        // Whatever went wrong: thaw first, speak afterwards.
        drop(frozen);
        self.progress.clear();
        if let (Err(error), None) = (&result, self.places)
            && error.is_signal()
        {
            report::interrupted("", self.left());
        }
        result
    }

    /// The rounds before the freeze.
    fn take_early(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            if self.unheld_bytes > 0 && !self.quiet {
                let (took, read) = self.sample();
                self.warn_of_a_long_freeze(took, read, 0, self.unheld_bytes);
            }
            return Ok(());
        };
        if watch.tries()
            && let Some(guardian) = self.guardian.take()
        {
            // Walked before, the rehearsal reads only what was written since, and the trial stays short.
            if self.rehearses && watch.marks().is_some() {
                walk(self.surveyor, &self.signals, None, Stage::Preview)?;
            }
            // It proves that everything can be frozen before anything is read or written, and leaves metadata on the disk that
            // was only in memory: so the early look sees what the freeze will find.
            let mut frozen = guardian.freeze(&self.signals)?;
            if self.rehearses
                && let Some(trouble) = walk(
                    self.surveyor,
                    &self.signals,
                    Some(&mut frozen),
                    Stage::Rehearse,
                )?
            {
                drop(frozen);
                return Err(self.trouble(trouble, Stage::Rehearse));
            }
            // What it says is asked again under the freeze that counts.
            let _ = watch.trace().is_complete_frozen(FROZEN_DRAIN);
            // Before the thaw: whatever is written from then on counts again.
            watch.thawed();
            let (window, guardian) = frozen.release()?;
            self.trial_ms = window.frozen_ms;
            self.guardian = Some(guardian);
        }
        self.surveyor.order(Stage::Glimpse);
        self.show(false);
        let (mut round, mut took) = (0u32, 0);
        let began = Instant::now();
        loop {
            let is_short = self.await_round()?;
            round += 1;
            if is_short && round == 1 {
                let held = self.pipeline.rounds().early_bytes;
                let rest = self.pipeline.early_used_bytes().saturating_sub(held);
                self.warn_of_a_long_freeze(began.elapsed(), held, held, rest);
            }
            let all = self.pipeline.rounds().early_bytes;
            let Some(watch) = &self.watch else {
                return Ok(());
            };
            let stale = self.pipeline.stale_bytes();
            if !watch.trace().is_complete(EARLY_DRAIN)
                || !watch.is_worth_it(round, all - took, stale)
            {
                return Ok(());
            }
            took = all;
            self.round = (round, took, stale);
            self.pipeline.again();
        }
    }

    /// Whether nobody will ever read what is sent: found out also while nothing is, so that a line that broke does not leave us at
    /// work, and in the way of the next try.
    fn is_alone(&self) -> bool {
        self.is_pipe
            && self
                .sink
                .as_ref()
                .is_some_and(crate::stream::output::reader_is_gone)
    }

    /// Until a round is over; signals and problems end the wait. Whether there was no room for all of it.
    fn await_round(&mut self) -> Result<bool> {
        loop {
            self.signals.check()?;
            let state = self.pipeline.state();
            if let Some(problem) = state.problem {
                return Err(self.problem(problem));
            }
            if self.is_alone() {
                return Err(self.problem(Problem::ClosedPipe));
            }
            if state.round_over {
                return match state.is_short && self.onto_itself {
                    true => Err(no_room(self.output.as_deref()).leaving("nothing was frozen")),
                    false => Ok(state.is_short),
                };
            }
            // Its event, once told, would end every wait at once.
            let _ = self.surveyor.state();
            self.show(false);
            self.rest(None);
        }
    }

    fn supervise(
        &mut self,
        frozen: &mut Option<Frozen>,
        thawed: &mut dyn FnMut(CaptureFigures),
    ) -> Result<CaptureFigures> {
        let mut frozen_ms = 0;
        let (mut checking, mut permitted) = (false, false);
        let mut alone: Option<Instant> = None;
        self.surveyor.order(Stage::Survey);
        loop {
            self.signals.check()?;
            if let Some(frozen) = frozen.as_mut() {
                frozen.check()?;
            }
            let state = self.pipeline.state();
            if let Some(problem) = state.problem {
                drop(frozen.take());
                return Err(self.problem(problem));
            }
            // Who knows how long a raw image is has all of it before the thaw, and may go then; what is packed has an end to come.
            let may_go = permitted || state.drained && !self.packs;
            match !may_go && self.is_alone() {
                false => alone = None,
                true if alone.is_some_and(|since| since.elapsed() > ALONE) => {
                    drop(frozen.take());
                    return Err(self.problem(Problem::ClosedPipe));
                }
                true => alone = alone.or_else(|| Some(Instant::now())),
            }
            let (stage, trouble) = self.surveyor.state();
            if let Some(trouble) = trouble {
                drop(frozen.take());
                return Err(self.trouble(trouble, stage));
            }
            if state.is_short && self.onto_itself {
                drop(frozen.take());
                return Err(no_room(self.output.as_deref())
                    .with_exit(Exit::Failed)
                    .leaving(self.written()));
            }
            self.all_read = state.all_read;
            if state.all_read && !checking && !self.held_by_test.is_held() {
                checking = true;
                self.surveyor.order(Stage::Check);
            }
            if stage == Stage::Checked && !permitted {
                frozen_ms = self.thaw(frozen)?;
                permitted = true;
                self.progress.turn();
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

    /// All was looked at and is good: lets go of what is frozen, and gives how long it was.
    fn thaw(&mut self, frozen: &mut Option<Frozen>) -> Result<u64> {
        // A thaw may write to it.
        if let Some(changed) = self.watched.iter().find(|file| file.has_changed()) {
            drop(frozen.take());
            return Err(changed.error());
        }
        let Some(frozen) = frozen.take() else {
            return Ok(0);
        };
        let (window, guardian) = frozen.release()?;
        // The trace goes while there still is a guardian that would take it away.
        self.watch = None;
        drop(guardian);
        Ok(window.frozen_ms)
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
        if self.progress.is_held() {
            let unread = self
                .sink
                .as_ref()
                .and_then(crate::stream::output::unread_bytes);
            self.progress
                .hold(self.counters.taken_bytes() <= unread.unwrap_or(0));
        }
        if !self.progress.is_due(is_frozen) {
            return;
        }
        // Counting the map's bits once is enough.
        if self.used_bytes == 0 {
            self.used_bytes = self.pipeline.plan().map_or(0, Plan::used_bytes);
        }
        let used = self.used_bytes;
        let read = self.counters.read_bytes().saturating_sub(self.read_before);
        let (phase, done_bytes, total_bytes) = match self.watch.is_some() {
            // What was written since is not known beforehand.
            true if is_frozen && self.surveyor.is_traced() => ("frozen", read, 0),
            _ if is_frozen => ("frozen", read, used),
            true if self.pipeline.plan().is_none() => match self.round {
                (0, _, _) => {
                    let early = self.pipeline.rounds().early_bytes;
                    ("copying", early, self.pipeline.early_used_bytes())
                }
                (_, took, stale) => {
                    let early = self.pipeline.rounds().early_bytes;
                    ("catching up", early.saturating_sub(took), stale)
                }
            },
            _ if used == 0 => ("reading the map", 0, 0),
            _ if !self.all_read => ("reading", read, used),
            _ if self.copies => ("writing", self.counters.taken_bytes(), used),
            _ => ("sending", self.pipeline.emitted_bytes(), used),
        };
        let step = report::Step::new(phase, done_bytes, total_bytes);
        self.progress.show(is_frozen, step);
    }
}

/// The targets of a copy, where they are no file that is gone when the run fails.
fn targets_of(sink: &Outlet) -> Option<&'static dyn Placing> {
    match sink {
        Outlet::Places(places) if !places.is_file() => Some(*places),
        _ => None,
    }
}

/// Whether something can hold what is read early: the targets of a copy, a spool, or who reads frames.
fn holds_early(sink: &Outlet, settings: &Settings) -> bool {
    let is_spooled = settings.spool_bytes > 0 || settings.spool_file.is_some();
    is_spooled || matches!(sink, Outlet::Places(_) | Outlet::Frames(_))
}

/// What the surveyor looks by.
fn looks(counters: &'static Counters, wishes: Wishes, watch: Option<&TraceWatch>) -> Looks {
    Looks {
        counters,
        require_map: wishes.require_map,
        marks: watch.and_then(TraceWatch::marks),
        trace: watch.map(|watch| watch.trace().clone()),
    }
}

/// Who walks what the draft says; a plan for a look before the freeze is there where something watches meanwhile.
fn start_surveyor(
    draft: &mut Draft,
    emptying: Emptying,
    pipeline: &'static Pipeline,
    looks: Looks,
) -> Result<&'static Surveyor> {
    let images = std::mem::take(&mut draft.images);
    let overlay = match emptying.is_empty() {
        true => Overlay::default(),
        false => Overlay::new(pieces(&images)),
    };
    let early = std::mem::take(&mut draft.early);
    let plans = Plans {
        last: Some(Plan::new(images).with_overlay(overlay)),
        early: looks.trace.is_some().then(|| Plan::new(early)),
    };
    let errands = std::mem::take(&mut draft.errands);
    Surveyor::start(plans, errands, emptying, pipeline, looks)
}

/// Walks everything once, for a hint or to see what speaks against the run.
fn walk(
    surveyor: &Surveyor,
    signals: &Signals,
    mut frozen: Option<&mut Frozen>,
    stage: Stage,
) -> Result<Option<Trouble>> {
    surveyor.order(stage);
    loop {
        signals.check()?;
        if let Some(frozen) = frozen.as_mut() {
            frozen.check()?;
        }
        match surveyor.state() {
            (_, Some(trouble)) => return Ok(Some(trouble)),
            (at, None) if at != stage => return Ok(None),
            _ => {}
        }
        let frozen_fd = frozen.as_ref().map(|frozen| frozen.event_fd());
        let ends = [
            signals.fd(),
            surveyor.event(),
            frozen_fd.unwrap_or(signals.fd()),
        ];
        let mut fds = ends.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let _ = poll(&mut fds, Some(&timespec(LOOK)));
    }
}

fn no_room(output: Option<&str>) -> Error {
    let output = output.unwrap_or("stdout");
    Error::refused(format_args!(
        "{output}: lies on the filesystem that is frozen, where nothing can be written meanwhile, and is larger than the spool that would hold it; write it elsewhere, or give a larger --spool, or a --spool-file on another filesystem",
    ))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
