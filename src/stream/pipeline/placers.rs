//! Placers, for copies: spans go from the slot they were read into straight to where they belong, several at once, in no order.
//!
//! Nothing is encoded, copied or kept. Reading begins while [`Placing::begin`] still prepares the target, and placing after it. The
//! end of a copy is its target's business: it is told that all is placed, and permitted.

use super::read::TakenSpan;
use super::{CHUNK_LENGTH, Core, Problem, ReadPass, Shared};
use crate::error::Fault;
use crate::stream::plan::Plan;
use crate::threads::forgive;
use crate::units::to_u64;

/// Takes what was read straight from its buffer, from several threads at once. No heap while frozen.
pub trait Placing: Sync {
    /// Called once, after the sources are held still and before anything is placed: the first write.
    fn begin(&self) -> Result<(), Fault>;
    /// Bytes of a part of the plan, from `offset` in it on: a multiple of a chunk. The memory begins at a page.
    fn place(&self, part: usize, offset: u64, bytes: &[u8]) -> Result<(), Fault>;
    /// Whether writing and reading are on one medium, so that each slows the other down.
    fn shares_medium(&self) -> bool;
    /// What messages call the target that failed.
    fn failed(&self) -> &str;
    /// Whether it is a file that is gone when the run fails.
    fn is_file(&self) -> bool {
        false
    }
    /// Called once, when all is placed, thawed and proven.
    fn finish(&self, _plan: &Plan) -> Result<(), Fault> {
        Ok(())
    }
}

impl Core {
    fn all_placed(&self) -> bool {
        self.all_read() && self.spans.is_empty() && self.placers_busy == 0
    }

    /// On one medium reading goes first, because the freeze lasts as long: writes wait until all is read or the slots run out. Before
    /// the freeze nobody waits for reads, and they stop long before the slots do: a write that waited for that would wait for ever.
    fn is_crowded(&self, jobs: usize) -> bool {
        self.is_early()
            || self.all_read()
            || self.round_is_handed_out()
            || self.slots_free.len() <= jobs
    }
}

impl Shared {
    pub(super) fn placer(&self, places: &dyn Placing) {
        let waits = places.shares_medium();
        let mut core = self.lock();
        loop {
            if core.problem.is_some() || (core.all_read() && core.spans.is_empty()) {
                return;
            }
            let next = match core.begun && (core.is_crowded(self.settings.jobs) || !waits) {
                true => core.spans.pop_front(),
                false => None,
            };
            let Some(taken) = next else {
                core = self.wait(&self.can_work, core);
                continue;
            };
            core.placers_busy += 1;
            drop(core);
            let result = self.place_span(places, &taken);
            let hashes = match taken.held {
                Some(held) if held.is_early() => Some((held, self.hashes_of(&taken))),
                _ => None,
            };
            core = self.lock();
            core.placers_busy -= 1;
            if let Some((held, hashes)) = hashes {
                let chunks = taken.length.div_ceil(CHUNK_LENGTH);
                self.note(&mut core, held, hashes.get(..chunks).unwrap_or_default());
            }
            core.slots_free.push(taken.slot);
            if let Err(problem) = result {
                core.problem.get_or_insert(problem);
            }
            if core.problem.is_some() || core.all_placed() || core.round_is_over() {
                self.wake_all();
            }
            self.can_read.notify_one();
        }
    }

    fn place_span(&self, places: &dyn Placing, taken: &TakenSpan) -> Result<(), Problem> {
        let internal = || Problem::Internal(Fault::refused("span outside its slot"));
        let slot = forgive(self.slots.get(taken.slot).ok_or_else(internal)?.read());
        let bytes = slot.get(..taken.length).ok_or_else(internal)?;
        places
            .place(taken.part, taken.offset, bytes)
            .map_err(Problem::Write)?;
        self.meter.taken(to_u64(bytes.len()));
        Ok(())
    }

    /// The thread that is the emitter of a stream: here it begins the copy, and says when all is placed.
    pub(super) fn conduct(&self, places: &dyn Placing) {
        let mut core = self.lock();
        while matches!(core.pass, ReadPass::Wait) {
            if core.problem.is_some() {
                return;
            }
            core = self.wait(&self.can_emit, core);
        }
        drop(core);
        if let Err(fault) = places.begin() {
            return self.fail(Problem::Write(fault));
        }
        let mut core = self.lock();
        core.begun = true;
        self.can_work.notify_all();
        while !core.all_placed() {
            if core.problem.is_some() {
                return;
            }
            core = self.wait(&self.can_emit, core);
        }
        core.drained = true;
        while !core.permit {
            if core.problem.is_some() {
                return;
            }
            core = self.wait(&self.can_emit, core);
        }
        drop(core);
        if let Some(Err(fault)) = self.plan.get().map(|plan| places.finish(plan)) {
            return self.fail(Problem::Write(fault));
        }
        self.lock().finished = true;
        self.announce();
    }
}
