//! Pre-copy: chunks are taken while their filesystem is still in use, and kept until they can be believed.
//!
//! ```text
//!  Round::First   every used chunk of an early look, in order, until the spool is full
//!  Round::Again   those that were written since                        (while each round leaves less)
//!                 -- freeze --
//!  Round::Last    those that were written since their last read, or have other blocks in use, or are not held
//!                 -- thaw --
//!  Pass::Stream   the plan in order: what is held comes from the shelf, what is not from the source
//! ```
//!
//! **What is believed** is decided under the freeze: a chunk on the shelf is good when no write touched it from before its read
//! until now, and the same blocks of it are used. A mark is cleared before the chunk is read, and a write marks when it is queued
//! and when it has ended: so whatever may have met the read marks the chunk afterwards. Where the trace is not complete (or there
//! is none) all used chunks are read again under the freeze, and their keyed hashes compared: no encoding, no waiting for the sink.
//!
//! **What bounds it.** The shelf has 16 bytes for each chunk, and its chains are cells of the spool; the cells that the stream needs
//! to move (`minimum_cells`) are never held. So whatever was held, the stream goes on as without pre-copy. In a copy the targets hold
//! what was taken, and the shelf (`shelf`) only notes it.
//!
//! **Frames.** What is taken goes out at once, by number, and the shelf notes its checksum. A round before the freeze is over when
//! the sink has taken all of it, so that the spool is empty when the freeze begins, and holds what the last round takes. The stream
//! then says of each chunk in order that it is what was sent, or zeros.

use std::sync::Arc;

use super::read::TakenSpan;
use super::shelf::ForShelf;
use super::{Core, Pipeline, Shared};
use crate::stream::plan::{CHUNK_BYTES, Cursor, Plan, Span};
use crate::trace::Marks;
use crate::units::{Extent, to_usize};

/// What pre-copy needs to know when memory is allocated.
#[derive(Clone, Debug)]
pub struct Precopy {
    /// Chunks of the whole plan.
    pub chunks: u64,
    /// Where writes are noted; range `n` is part `n` of the plan. `None`: contents are compared.
    pub marks: Option<Arc<Marks>>,
}

/// One pass over the plan that keeps what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Everything that is used.
    First,
    /// What was written since.
    Again,
    /// Under the freeze.
    Last {
        /// Whether every write is marked.
        traced: bool,
    },
}

/// What the readers are at.
pub(super) enum ReadPass {
    /// Nothing yet.
    Wait,
    /// Keeping.
    Hold(RoundCursor),
    /// Everything in order, to the emitter.
    Stream,
}

pub(super) struct RoundCursor {
    round: Round,
    cursor: Cursor,
    rest: Option<Span>,
    over: bool,
}

/// What a look for work found.
pub(super) enum NextSpan {
    Take(TakenSpan),
    /// Something moved: look again.
    Again,
    /// Nothing to do before something changes.
    Wait,
}

/// Bytes taken by rounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounds {
    /// Before the freeze.
    pub early_bytes: u64,
    /// Under it.
    pub again_bytes: u64,
}

impl Pipeline {
    /// Begins the first round, by what an early look takes for the plan.
    pub fn begin_early(&self, plan: Plan) {
        let _ = self.shared.early_plan.set(plan);
        self.hold(Round::First);
    }

    /// Whether a first round has begun.
    pub fn has_early(&self) -> bool {
        self.shared.early_plan.get().is_some()
    }

    /// What an early look took for the plan.
    pub fn early_plan(&self) -> Option<&Plan> {
        self.shared.early_plan.get()
    }

    /// Bytes that an early look took for used; 0 before it.
    pub fn early_used_bytes(&self) -> u64 {
        self.shared.early_plan.get().map_or(0, Plan::used_bytes)
    }

    /// Begins another round before the freeze.
    pub fn again(&self) {
        self.hold(Round::Again);
    }

    /// Hands over the plan, under the freeze. Allocates nothing.
    pub fn start_last(&self, plan: Plan, traced: bool) {
        let _ = self.shared.plan.set(plan);
        self.hold(Round::Last { traced });
    }

    fn hold(&self, round: Round) {
        self.shared.lock().pass = ReadPass::Hold(RoundCursor {
            round,
            cursor: Cursor::default(),
            rest: None,
            over: false,
        });
        self.shared.wake_all();
    }

    /// Bytes of chunks that are held and were written since they were read.
    pub fn stale_bytes(&self) -> u64 {
        let core = self.shared.lock();
        let (Some(plan), Some(marks)) = (self.shared.early_plan.get(), &core.early.marks) else {
            return 0;
        };
        let mut chunks = 0u64;
        for part in 0..plan.parts().len() {
            let mut from = 0;
            while let Some(chunk) = marks.next_set(part, from) {
                let number = plan.chunk_at(part, chunk.saturating_mul(CHUNK_BYTES));
                chunks += u64::from(core.early.shelf.has(to_usize(number)));
                from = chunk + 1;
            }
        }
        chunks.saturating_mul(CHUNK_BYTES)
    }

    /// What the rounds took.
    pub fn rounds(&self) -> Rounds {
        let core = self.shared.lock();
        Rounds {
            early_bytes: core.early.early_bytes,
            again_bytes: core.early.again_bytes,
        }
    }
}

impl Core {
    /// Whether nothing has to be read from the source any more.
    pub(super) fn needs_no_source(&self) -> bool {
        match self.pass {
            ReadPass::Stream if self.early.is_used => {
                self.early.missing == 0 && self.readers_busy == 0
            }
            _ => self.all_read(),
        }
    }

    /// Whether something has to be read that nothing holds, or would have to be.
    pub(super) fn is_short(&self) -> bool {
        match self.pass {
            ReadPass::Hold(_) => self.early.is_full,
            _ => self.early.missing > 0,
        }
    }

    /// Whether a round has nothing in flight any more.
    pub(super) fn round_is_over(&self) -> bool {
        matches!(&self.pass, ReadPass::Hold(hold) if hold.over)
            && self.is_quiet(0)
            && self.head == self.tail
    }

    /// Whether this is a round before the freeze.
    pub(super) fn is_early(&self) -> bool {
        matches!(&self.pass, ReadPass::Hold(hold) if !matches!(hold.round, Round::Last { .. }))
    }

    /// Whether all that was read has arrived, but for so many readers.
    pub(super) fn is_quiet(&self, readers: usize) -> bool {
        self.readers_busy == readers
            && self.jobs.is_empty()
            && self.workers_busy == 0
            && self.spans.is_empty()
            && self.placers_busy == 0
    }

    /// Whether a round has handed out all it will, so that what was read must not wait for more.
    pub(super) fn round_is_handed_out(&self) -> bool {
        matches!(&self.pass, ReadPass::Hold(hold) if hold.over) && self.readers_busy == 0
    }
}

impl Shared {
    pub(super) fn take_round(&self, core: &mut Core) -> NextSpan {
        let ReadPass::Hold(hold) = &mut core.pass else {
            return NextSpan::Again;
        };
        let round = hold.round;
        let plan = match round {
            Round::Last { .. } => self.plan.get(),
            Round::First | Round::Again => self.early_plan.get(),
        };
        let (false, Some(plan)) = (hold.over, plan) else {
            return NextSpan::Wait;
        };
        let Some(span) = hold.rest.take().or_else(|| hold.cursor.next_span(plan)) else {
            // What is being compared may have to be taken anew: the stream must not pass it before that is known.
            if round == (Round::Last { traced: false }) && core.readers_busy > 0 {
                return NextSpan::Wait;
            }
            self.end_round(core, round);
            return NextSpan::Again;
        };
        let Span::Data {
            part,
            offset,
            length_bytes,
        } = span
        else {
            return NextSpan::Again;
        };
        // The first run of chunks in it that are wanted.
        let end = offset + length_bytes;
        let next = |at: u64| at.saturating_add(CHUNK_BYTES).min(end);
        let mut start = offset;
        while start < end && !self.wants(core, plan, round, part, start) {
            start = next(start);
        }
        if start == end {
            return NextSpan::Again;
        }
        // Untraced, what is held is compared, and what is not is taken: one run is of one kind.
        let has = |core: &Core, at| {
            let number = to_usize(plan.chunk_at(part, at));
            core.early.shelf.has(number)
        };
        let compared = round == (Round::Last { traced: false }) && has(core, start);
        let mut stop = next(start);
        while stop < end
            && self.wants(core, plan, round, part, stop)
            && (round != Round::Last { traced: false } || has(core, stop) == compared)
        {
            stop = next(stop);
        }
        let length = to_usize(stop - start);
        let held = ForShelf {
            first: plan.chunk_at(part, start),
            round,
            compared,
        };
        let (turn, from) = self.take_for_shelf(core, held, part, start, length);
        let from = from.max(start);
        if let ReadPass::Hold(hold) = &mut core.pass
            && from < end
        {
            hold.rest = Some(Span::Data {
                part,
                offset: from,
                length_bytes: end - from,
            });
        }
        turn
    }

    pub(super) fn end_round(&self, core: &mut Core, round: Round) {
        let is_last = matches!(round, Round::Last { .. });
        if let ReadPass::Hold(hold) = &mut core.pass {
            hold.over = true;
        }
        core.known.end();
        match (is_last, self.places) {
            (true, None) => core.pass = ReadPass::Stream,
            (true, Some(_)) => core.plan_done = true,
            (false, _) => {}
        }
        self.wake_all();
    }

    /// Whether a round takes this chunk.
    fn wants(&self, core: &Core, plan: &Plan, round: Round, part: usize, offset: u64) -> bool {
        let early = &core.early;
        let has = early.shelf.has(to_usize(plan.chunk_at(part, offset)));
        match round {
            Round::First => !has,
            Round::Again => has && early.is_marked(part, offset),
            Round::Last { traced: false } => true,
            Round::Last { traced: true } => {
                let chunk = Extent::at(offset, CHUNK_BYTES);
                let same = |before: &Plan| {
                    plan.uses_as(before, part, offset) && !plan.overlay().touches(part, chunk)
                };
                !(has && !early.is_marked(part, offset) && self.early_plan.get().is_some_and(same))
            }
        }
    }
}
