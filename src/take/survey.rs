//! The surveyor: a thread that walks the filesystems in the frozen window, starts the pipeline with the filled maps, and looks again
//! before the thaw. A thread of its own, so that the supervisor answers a signal at once even while a large map is read.
//!
//! Allocates everything before the freeze; the walk, the start and the second look use no heap.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, MutexGuard};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Fault, Result};
use crate::fs::earlier::PIECE_BYTES;
use crate::fs::files::Emptying;
use crate::fs::{Kind, Still, UsedMap, Verdict};
use crate::stream::pipeline::{BegunThreads, Pipeline};
use crate::stream::plan::{CHUNK_BYTES, Plan};
use crate::take::capture::FROZEN_DRAIN;
use crate::take::counters::Counters;
use crate::take::emptied::Emptied;
use crate::take::precopy::Trace;
use crate::take::walks::{self, Eyes, Trouble, WalkErrand};
use crate::threads::{Lock, forgive};
use crate::trace::Marks;

/// Marks and what a walk remembers are of the same pieces.
const _: () = assert!(PIECE_BYTES == CHUNK_BYTES);

/// Stack of the thread in bytes; touched as needed.
const STACK_BYTES: usize = 512 * 1024;

/// What the surveyor is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing.
    Wait,
    /// Walk what moves, for a hint to the rehearsal.
    Preview,
    /// It has been walked.
    Previewed,
    /// Walk as in a survey, and forget what was found: does anything speak against it?
    Rehearse,
    /// Nothing does.
    Rehearsed,
    /// Walk what moves, for a hint, and begin pre-copy.
    Glimpse,
    /// It has begun.
    Glimpsed,
    /// Walk, then start the pipeline.
    Survey,
    /// Walked.
    Surveyed,
    /// Look again at what a write would have changed.
    Check,
    /// Nothing has changed.
    Checked,
}

impl Stage {
    /// What an order becomes when it has been carried out.
    const fn done(self) -> Self {
        match self {
            Self::Preview => Self::Previewed,
            Self::Rehearse => Self::Rehearsed,
            Self::Glimpse => Self::Glimpsed,
            Self::Survey => Self::Surveyed,
            Self::Check => Self::Checked,
            other => other,
        }
    }
}

/// The plans, before their maps are filled.
pub(crate) struct Plans {
    /// The one that counts.
    pub last: Option<Plan>,
    /// The hint of a glimpse; without it there is no pre-copy.
    pub early: Option<Plan>,
}

/// How a surveyor looks.
pub(crate) struct Looks {
    /// Signs of life.
    pub counters: &'static Counters,
    /// `--require-map`.
    pub require_map: bool,
    /// Where writes are noted.
    pub marks: Option<Arc<Marks>>,
    /// What notes them.
    pub trace: Option<Trace>,
}

struct Desk {
    stage: Stage,
    plans: Plans,
    errands: Vec<WalkErrand>,
    emptying: Emptying,
    trouble: Option<Trouble>,
    /// Whether every write up to the survey was marked.
    traced: bool,
}

/// The surveyor's side of the run; leaked, because its thread may never return.
pub(crate) struct Surveyor {
    desk: Lock<Desk>,
    go: Condvar,
    event: OwnedFd,
    looks: Looks,
    started: BegunThreads,
}

impl Surveyor {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock()
    }

    /// Allocates everything and starts the thread, which waits for [`Self::order`].
    pub(crate) fn start(
        plans: Plans,
        errands: Vec<WalkErrand>,
        emptying: Emptying,
        pipeline: &'static Pipeline,
        looks: Looks,
    ) -> Result<&'static Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::fault("floe", Fault::io("eventfd", errno)))?;
        let surveyor: &'static Self = Box::leak(Box::new(Self {
            desk: Lock::new(Desk {
                stage: Stage::Wait,
                plans,
                errands,
                emptying,
                trouble: None,
                traced: false,
            }),
            go: Condvar::new(),
            event,
            looks,
            started: BegunThreads::default(),
        }));
        let (counters, require_map) = (surveyor.looks.counters, surveyor.looks.require_map);
        let mut eyes = Eyes::new(pipeline.devices(), counters, require_map);
        crate::threads::start(
            c"floe-survey",
            STACK_BYTES,
            Box::new(move || {
                surveyor.started.one();
                surveyor.run(pipeline, &mut eyes);
            }),
        )
        .map_err(|e| Error::fault("floe", Fault::io("start a thread", e)))?;
        surveyor.started.wait_for(1);
        Ok(surveyor)
    }

    /// Readable when [`Self::state`] may have changed.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Clears the event and says how far it is.
    pub(crate) fn state(&self) -> (Stage, Option<Trouble>) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let desk = self.lock();
        (desk.stage, desk.trouble)
    }

    /// Whether every write up to the survey was marked.
    pub(crate) fn is_traced(&self) -> bool {
        self.lock().traced
    }

    /// The verdicts, by image.
    pub(crate) fn verdicts(&self) -> Vec<(usize, Verdict)> {
        self.lock()
            .errands
            .iter()
            .map(|errand| (errand.image, errand.verdict))
            .collect()
    }

    /// Blocks with an owner, by part, where they were asked for; once.
    pub(crate) fn owned(&self) -> Vec<(usize, UsedMap)> {
        let mut desk = self.lock();
        let errands = desk.errands.iter_mut();
        errands
            .filter_map(|errand| Some((errand.part, errand.owned.take()?)))
            .collect()
    }

    /// What was emptied in the images.
    pub(crate) fn emptied(&self) -> Emptied {
        Emptied::new(&self.lock().emptying)
    }

    /// The path in a filesystem at which [`Trouble`] arose, where it did so at one.
    pub(crate) fn path_of_trouble(&self) -> String {
        String::from_utf8_lossy(&self.lock().emptying.log.at).into_owned()
    }

    /// Sets it to work.
    pub(crate) fn order(&self, stage: Stage) {
        self.lock().stage = stage;
        self.go.notify_all();
    }

    /// The device of something frozen, where the trace saw a write to what was read of it. Swap files are written all the time: what has one is left
    /// to the second look alone.
    fn was_written(&self, pipeline: &Pipeline, errands: &[WalkErrand]) -> Option<usize> {
        let (plan, marks) = (pipeline.plan()?, self.looks.marks.as_ref()?);
        let frozen = errands
            .iter()
            .filter(|errand| errand.still == Still::Frozen && errand.swap.extents.is_empty())
            // md writes its superblocks below a filesystem that is frozen, in members of its own, in those of LVM, and in whatever lies
            // below it.
            .filter(|errand| !matches!(errand.identity.kind, Kind::MdMember | Kind::Lvm))
            .filter(|errand| !errand.below_md);
        for errand in frozen {
            let Some(part) = plan.parts().get(errand.part) else {
                continue;
            };
            let mut from = 0;
            while let Some(chunk) = marks.next_set(errand.part, from) {
                let offset = chunk.saturating_mul(CHUNK_BYTES);
                let end = offset.saturating_add(CHUNK_BYTES);
                if part.next_used(offset, end).is_some() {
                    return Some(part.device);
                }
                from = chunk + 1;
            }
        }
        None
    }

    /// What was written since the glimpse has to be read again; all of it, where not every write is marked.
    fn tell_of_writes(&self, errands: &[WalkErrand], traced: bool) {
        for errand in errands {
            let Some(marks) = self.looks.marks.as_ref().filter(|_| traced) else {
                errand.earlier.forget();
                continue;
            };
            let mut from = 0;
            while let Some(piece) = marks.next_ever(errand.part, from) {
                errand.earlier.read_again(piece.saturating_mul(PIECE_BYTES));
                from = piece + 1;
            }
        }
    }

    fn run(&self, pipeline: &Pipeline, eyes: &mut Eyes) {
        loop {
            let mut work = self.take_order();
            let stage = work.stage;
            let trouble = match stage {
                Stage::Preview => glimpse(&mut work, None, eyes),
                Stage::Rehearse => self.rehearse(&mut work, eyes),
                Stage::Glimpse => glimpse(&mut work, Some(pipeline), eyes),
                Stage::Survey => self.survey(&mut work, pipeline, eyes),
                Stage::Check => self.check(&work, pipeline, eyes),
                _ => Some(walks::ASTRAY()),
            };
            self.give_back(work, trouble);
        }
    }

    /// Waits for an order, and takes what is on the desk.
    fn take_order(&self) -> WalkOrder {
        let mut desk = self.lock();
        while desk.stage == desk.stage.done() {
            desk = forgive(self.go.wait(desk));
        }
        WalkOrder {
            stage: desk.stage,
            early: match desk.stage {
                Stage::Preview | Stage::Rehearse | Stage::Glimpse => desk.plans.early.take(),
                _ => None,
            },
            last: match desk.stage {
                Stage::Rehearse | Stage::Survey => desk.plans.last.take(),
                _ => None,
            },
            errands: std::mem::take(&mut desk.errands),
            emptying: std::mem::take(&mut desk.emptying),
            traced: desk.traced,
        }
    }

    /// Puts everything back, and says that it is done.
    fn give_back(&self, work: WalkOrder, trouble: Option<Trouble>) {
        let mut desk = self.lock();
        desk.errands = work.errands;
        desk.emptying = work.emptying;
        desk.trouble = trouble;
        desk.traced = work.traced;
        if work.early.is_some() {
            desk.plans.early = work.early;
        }
        if work.last.is_some() {
            desk.plans.last = work.last;
        }
        // A small source may be read, and the check ordered, before we are here: that order must not be lost.
        if desk.stage == work.stage {
            desk.stage = work.stage.done();
        }
        drop(desk);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Walks as the survey will, and forgets it. Of what no write touched since the preview, that does.
    fn rehearse(&self, work: &mut WalkOrder, eyes: &mut Eyes) -> Option<Trouble> {
        let Some(plan) = &mut work.last else {
            return Some(walks::ASTRAY());
        };
        self.tell_of_writes(&work.errands, self.is_complete_frozen());
        let (errands, emptying) = (&mut work.errands, &mut work.emptying);
        let trouble = walks::survey(plan, work.early.as_ref(), errands, emptying, eyes);
        if trouble.is_none() {
            walks::forget(plan, errands, emptying);
        }
        trouble
    }

    fn is_complete_frozen(&self) -> bool {
        let complete = |trace: &Trace| trace.is_complete_frozen(FROZEN_DRAIN);
        self.looks.trace.as_ref().is_some_and(complete)
    }

    /// Walks under the freeze, and starts the pipeline with what is used.
    fn survey(
        &self,
        work: &mut WalkOrder,
        pipeline: &Pipeline,
        eyes: &mut Eyes,
    ) -> Option<Trouble> {
        let Some(mut plan) = work.last.take() else {
            return Some(walks::ASTRAY());
        };
        work.traced = self.is_complete_frozen();
        self.tell_of_writes(&work.errands, work.traced);
        let early = pipeline.early_plan();
        let (errands, emptying) = (&mut work.errands, &mut work.emptying);
        let trouble = walks::survey(&mut plan, early, errands, emptying, eyes);
        match (trouble, pipeline.has_early()) {
            (None, true) => pipeline.start_last(plan, work.traced),
            (None, false) => pipeline.start(plan),
            (Some(_), _) => {}
        }
        trouble
    }

    /// Whether anything was written since the survey.
    fn check(&self, work: &WalkOrder, pipeline: &Pipeline, eyes: &mut Eyes) -> Option<Trouble> {
        let complete = |trace: &Trace| trace.is_complete(FROZEN_DRAIN);
        if work.traced
            && self.looks.trace.as_ref().is_some_and(complete)
            && let Some(device) = self.was_written(pipeline, &work.errands)
        {
            let fault = walks::WRITTEN();
            return Some(Trouble { device, fault });
        }
        walks::check(pipeline.plan(), &work.errands, eyes)
    }
}

/// An order, and what it is carried out with.
struct WalkOrder {
    stage: Stage,
    early: Option<Plan>,
    last: Option<Plan>,
    errands: Vec<WalkErrand>,
    emptying: Emptying,
    traced: bool,
}

/// Walks what moves, for a hint: to the rehearsal, or to the pipeline, which begins to read by it.
fn glimpse(work: &mut WalkOrder, pipeline: Option<&Pipeline>, eyes: &mut Eyes) -> Option<Trouble> {
    let Some(plan) = &mut work.early else {
        return Some(walks::ASTRAY());
    };
    walks::glimpse(plan, &mut work.errands, eyes);
    if let Some(pipeline) = pipeline
        && let Some(plan) = work.early.take()
    {
        pipeline.begin_early(plan);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A surveyor without errands over a pipeline without devices.
    fn surveyor() -> &'static Surveyor {
        use crate::stream::pipeline::{Emit, Encoded, Encoding, Outlet, Problem, Settings};
        struct Nothing;
        impl Emit for Nothing {
            fn data(&mut self, _: &Encoded<'_>) -> std::result::Result<(), Problem> {
                Ok(())
            }
            fn zeros(&mut self, _: u64) -> std::result::Result<(), Problem> {
                Ok(())
            }
            fn finish(&mut self) -> std::result::Result<(), Problem> {
                Ok(())
            }
        }
        let settings = Settings {
            jobs: 1,
            encoding: Encoding::Raw,
            spool_bytes: 0,
            precopy: None,
            spool_file: None,
            hashes: None,
        };
        let counters = Counters::leak(None);
        let pipeline = Pipeline::new(
            settings,
            Vec::new(),
            Outlet::Stream(Box::new(Nothing)),
            counters,
        )
        .unwrap();
        let plans = Plans {
            last: Some(Plan::new(vec![Vec::new()])),
            early: None,
        };
        let looks = Looks {
            counters,
            require_map: false,
            marks: None,
            trace: None,
        };
        let pipeline = Box::leak(Box::new(pipeline));
        Surveyor::start(plans, Vec::new(), Emptying::default(), pipeline, looks).unwrap()
    }

    #[test]
    fn a_check_ordered_before_the_survey_has_answered_is_not_lost() {
        for _ in 0..20 {
            let surveyor = surveyor();
            surveyor.order(Stage::Survey);
            // As early as the supervisor could: the plan has been taken, the answer may not have been given yet.
            while surveyor.lock().plans.last.is_some() {
                std::thread::yield_now();
            }
            surveyor.order(Stage::Check);
            let began = std::time::Instant::now();
            while surveyor.state().0 != Stage::Checked {
                assert!(began.elapsed().as_secs() < 20, "{:?}", surveyor.state());
                std::thread::yield_now();
            }
        }
    }
}
