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
//! what was taken, and the shelf only notes it.
//!
//! **Frames.** What is taken goes out at once, by number, and the shelf notes its checksum. A round before the freeze is over when
//! the sink has taken all of it, so that the spool is empty when the freeze begins, and holds what the last round takes. The stream
//! then says of each chunk in order that it is what was sent, or zeros.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::make::slots_for;
use super::read::Taken;
use super::{CHUNK_LENGTH, CHUNKS_PER_SLOT, Core, Goes, Job, Pipeline, Problem, Record, Shared};
use crate::crc;
use crate::error::Fault;
use crate::stream::plan::{CHUNK_BYTES, Cursor, Plan, Span};
use crate::sys::spool::{Chain, Kept, Shelf, cells_for};
use crate::threads::forgive;
use crate::trace::Marks;
use crate::units::{Extent, to_u64, to_usize};

/// Times the slots that keep every worker busy: what rounds before the freeze use of them.
const EARLY_SLOTS: usize = 2;

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
pub(super) enum Pass {
    /// Nothing yet.
    Wait,
    /// Keeping.
    Hold(Hold),
    /// Everything in order, to the emitter.
    Stream,
}

pub(super) struct Hold {
    round: Round,
    cursor: Cursor,
    rest: Option<Span>,
    over: bool,
}

/// What pre-copy keeps.
pub(super) struct Early {
    shelf: Shelf,
    /// Of each chunk on the shelf.
    hashes: Vec<u64>,
    marks: Option<Arc<Marks>>,
    is_used: bool,
    /// There was no room for all of it.
    is_full: bool,
    /// Chunks that must still be read from the source by the stream.
    missing: u64,
    /// Bytes that were read before the freeze, and in it because of what was written meanwhile.
    early_bytes: u64,
    again_bytes: u64,
}

impl Early {
    /// For that many chunks; memory is touched as it is needed.
    pub(super) fn new(precopy: Option<&Precopy>) -> Self {
        let chunks = precopy.map_or(0, |precopy| to_usize(precopy.chunks));
        Self {
            shelf: Shelf::new(chunks),
            hashes: vec![0; chunks],
            marks: precopy.and_then(|precopy| precopy.marks.clone()),
            is_used: precopy.is_some(),
            is_full: false,
            missing: 0,
            early_bytes: 0,
            again_bytes: 0,
        }
    }

    fn is_marked(&self, part: usize, offset: u64) -> bool {
        let marks = self.marks.as_ref();
        marks.is_none_or(|marks| marks.is_set(part, offset / CHUNK_BYTES))
    }
}

/// What is to become of a span that was read for the shelf.
#[derive(Clone, Copy)]
pub(super) struct ForShelf {
    /// Number of its first chunk.
    pub(super) first: u64,
    pub(super) round: Round,
    /// Whether it is only read to be compared.
    pub(super) compared: bool,
}

impl ForShelf {
    /// Whether the early plan says what of it is used.
    pub(super) fn is_early(&self) -> bool {
        !matches!(self.round, Round::Last { .. })
    }
}

/// What a look for work found.
pub(super) enum Turn {
    Take(Taken),
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
        self.shared.lock().pass = Pass::Hold(Hold {
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
            Pass::Stream if self.early.is_used => self.early.missing == 0 && self.readers_busy == 0,
            _ => self.all_read(),
        }
    }

    /// Whether something has to be read that nothing holds, or would have to be.
    pub(super) fn is_short(&self) -> bool {
        match self.pass {
            Pass::Hold(_) => self.early.is_full,
            _ => self.early.missing > 0,
        }
    }

    /// Whether a round has nothing in flight any more.
    pub(super) fn round_is_over(&self) -> bool {
        matches!(&self.pass, Pass::Hold(hold) if hold.over)
            && self.is_quiet(0)
            && self.head == self.tail
    }

    /// Whether this is a round before the freeze.
    pub(super) fn is_early(&self) -> bool {
        matches!(&self.pass, Pass::Hold(hold) if !matches!(hold.round, Round::Last { .. }))
    }

    /// Whether all that was read has arrived, but for so many readers.
    fn is_quiet(&self, readers: usize) -> bool {
        self.readers_busy == readers
            && self.jobs.is_empty()
            && self.workers_busy == 0
            && self.spans.is_empty()
            && self.placers_busy == 0
    }

    /// Whether a round has handed out all it will, so that what was read must not wait for more.
    pub(super) fn round_is_handed_out(&self) -> bool {
        matches!(&self.pass, Pass::Hold(hold) if hold.over) && self.readers_busy == 0
    }
}

impl Shared {
    /// The next span of a round.
    pub(super) fn take_round(&self, core: &mut Core) -> Turn {
        let Pass::Hold(hold) = &mut core.pass else {
            return Turn::Again;
        };
        let round = hold.round;
        let plan = match round {
            Round::Last { .. } => self.plan.get(),
            Round::First | Round::Again => self.early_plan.get(),
        };
        let (false, Some(plan)) = (hold.over, plan) else {
            return Turn::Wait;
        };
        let Some(span) = hold.rest.take().or_else(|| hold.cursor.next_span(plan)) else {
            // What is being compared may have to be taken anew: the stream must not pass it before that is known.
            if round == (Round::Last { traced: false }) && core.readers_busy > 0 {
                return Turn::Wait;
            }
            self.end_round(core, round);
            return Turn::Again;
        };
        let Span::Data {
            part,
            offset,
            length_bytes,
        } = span
        else {
            return Turn::Again;
        };
        // The first run of chunks in it that are wanted.
        let end = offset + length_bytes;
        let next = |at: u64| at.saturating_add(CHUNK_BYTES).min(end);
        let mut start = offset;
        while start < end && !self.wants(core, plan, round, (part, start)) {
            start = next(start);
        }
        if start == end {
            return Turn::Again;
        }
        // Untraced, what is held is compared, and what is not is taken: one run is of one kind.
        let has = |core: &Core, at| {
            let number = to_usize(plan.chunk_at(part, at));
            core.early.shelf.has(number)
        };
        let compared = round == (Round::Last { traced: false }) && has(core, start);
        let mut stop = next(start);
        while stop < end
            && self.wants(core, plan, round, (part, stop))
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
        let (turn, from) = self.take_for_shelf(core, held, (part, start), length);
        let from = from.max(start);
        if let Pass::Hold(hold) = &mut core.pass
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

    fn end_round(&self, core: &mut Core, round: Round) {
        let is_last = matches!(round, Round::Last { .. });
        if let Pass::Hold(hold) = &mut core.pass {
            hold.over = true;
        }
        core.known.end();
        match (is_last, self.places) {
            (true, None) => core.pass = Pass::Stream,
            (true, Some(_)) => core.plan_done = true,
            (false, _) => {}
        }
        self.wake_all();
    }

    /// Whether a round takes this chunk.
    fn wants(&self, core: &Core, plan: &Plan, round: Round, (part, offset): (usize, u64)) -> bool {
        let early = &core.early;
        let has = early.shelf.has(to_usize(plan.chunk_at(part, offset)));
        match round {
            Round::First => !has,
            Round::Again => has && early.is_marked(part, offset),
            Round::Last { traced: false } => true,
            Round::Last { traced: true } => {
                let chunk = Extent {
                    offset,
                    length_bytes: CHUNK_BYTES,
                };
                let same = |before: &Plan| {
                    plan.uses_as(before, part, offset) && !plan.overlay().touches(part, chunk)
                };
                !(has && !early.is_marked(part, offset) && self.early_plan.get().is_some_and(same))
            }
        }
    }

    /// Slot and cells for a run of chunks, and from where in the part to go on.
    fn take_for_shelf(
        &self,
        core: &mut Core,
        held: ForShelf,
        (part, offset): (usize, u64),
        length: usize,
    ) -> (Turn, u64) {
        let stop = offset + to_u64(length);
        let taken = self.slots.len() - core.slots_free.len();
        // Nobody waits for an early read: it need not run far ahead of the workers, into memory that was never used.
        let is_ahead = held.is_early() && taken >= EARLY_SLOTS * slots_for(self.settings.jobs);
        if core.slots_free.is_empty() || is_ahead {
            return (Turn::Wait, offset);
        }
        let chunks = length.div_ceil(CHUNK_LENGTH);
        let mut chains = [const { None }; CHUNKS_PER_SLOT];
        let goes_out = self.frames && !held.compared;
        let mut known = [None; CHUNKS_PER_SLOT];
        if goes_out && held.round == Round::First {
            // Nothing is frozen yet.
            match self.known_of(core, held.first, chunks, true) {
                Some(found) => known = found,
                None => return (Turn::Wait, offset),
            }
        }
        if goes_out && !self.reserve_chains(core, &mut chains, chunks) {
            // The sink gives cells back.
            return (Turn::Wait, offset);
        }
        if self.places.is_none() && !self.frames && !held.compared {
            // What is there is out of date.
            for number in (held.first..).take(chunks) {
                self.drop_kept(core.early.shelf.take(to_usize(number)));
            }
            for place in chains.iter_mut().take(chunks) {
                *place = self.reserve_beyond_minimum();
            }
            if chains.iter().flatten().count() < chunks {
                for chain in chains.into_iter().flatten() {
                    self.cells.release(chain);
                }
                // What is in flight may give cells back.
                if !core.is_quiet(0) {
                    return (Turn::Wait, offset);
                }
                return match held.round {
                    // Full: what is held stays held.
                    Round::First => {
                        core.early.is_full = true;
                        self.end_round(core, Round::First);
                        (Turn::Again, stop)
                    }
                    Round::Again => (Turn::Again, stop),
                    Round::Last { .. } => {
                        core.early.missing += to_u64(chunks);
                        // The stream reads them, still under the freeze.
                        if let Some(marks) = &core.early.marks {
                            for index in 0..to_u64(chunks) {
                                marks.take(part, offset / CHUNK_BYTES + index);
                            }
                        }
                        (Turn::Again, stop)
                    }
                };
            }
        }
        let Some(slot) = core.slots_free.pop() else {
            return (Turn::Wait, offset);
        };
        core.known.put(slot, known);
        for index in 0..to_u64(chunks) {
            let number = to_usize(held.first + index);
            // Cleared before it is read: whatever is written from now on marks it again.
            if let Some(marks) = &core.early.marks {
                marks.take(part, offset / CHUNK_BYTES + index);
            }
            match (self.places, held.compared) {
                (Some(_), false) => self.drop_kept(core.early.shelf.mark(number)),
                (None, false) => self.drop_kept(core.early.shelf.announce(number)),
                (_, true) => {}
            }
        }
        match held.is_early() {
            true => core.early.early_bytes += to_u64(length),
            false => core.early.again_bytes += to_u64(length),
        }
        core.readers_busy += 1;
        let first = core.tail;
        if goes_out {
            for _ in 0..chunks {
                core.push(Record::Pending);
            }
        }
        let taken = Taken {
            slot,
            part,
            offset,
            length,
            first,
            chains,
            held: Some(held),
        };
        (Turn::Take(taken), stop)
    }

    /// Records and cells for so many chunks, or nothing.
    pub(super) fn reserve_chains(
        &self,
        core: &Core,
        chains: &mut [Option<Chain>],
        chunks: usize,
    ) -> bool {
        if core.room() < to_u64(chunks) {
            return false;
        }
        let cells = cells_for(self.settings.encoding.bound());
        for place in chains.iter_mut().take(chunks) {
            *place = self.cells.reserve(cells);
        }
        if chains.iter().flatten().count() >= chunks {
            return true;
        }
        for chain in chains.iter_mut().filter_map(Option::take) {
            self.cells.release(chain);
        }
        false
    }

    fn reserve_beyond_minimum(&self) -> Option<Chain> {
        let cells = cells_for(self.settings.encoding.bound());
        match self.cells.free() >= self.minimum_cells.saturating_add(cells) {
            true => self.cells.reserve(cells),
            false => None,
        }
    }

    fn drop_kept(&self, kept: Kept) {
        if let Kept::Chain(chain, _) = kept {
            self.cells.release(chain);
        }
    }

    /// The hash of a chunk's content.
    pub(super) fn hash(&self, chunk: &[u8]) -> u64 {
        let mut hasher = self.key.build_hasher();
        hasher.write(chunk);
        hasher.finish()
    }

    /// The hashes of the chunks in a span's slot, where they are compared now.
    pub(super) fn hashes_of(&self, taken: &Taken) -> [u64; CHUNKS_PER_SLOT] {
        let mut hashes = [0; CHUNKS_PER_SLOT];
        let slot = self.slots.get(taken.slot);
        if let Some(slot) = slot {
            let slot = forgive(slot.read());
            let bytes = slot.get(..taken.length).unwrap_or_default();
            for (hash, chunk) in hashes.iter_mut().zip(bytes.chunks(CHUNK_LENGTH)) {
                *hash = self.hash(chunk);
            }
        }
        hashes
    }

    /// Of a span that was read to be compared: what is as it was stays, the rest is encoded. Where nothing is left, the slot is free.
    pub(super) fn settle(
        &self,
        core: &mut Core,
        taken: Taken,
        held: ForShelf,
        hashes: [u64; CHUNKS_PER_SLOT],
    ) {
        let chunks = taken.length.div_ceil(CHUNK_LENGTH);
        let mut differ = 0;
        for (index, hash) in hashes.into_iter().take(chunks).enumerate() {
            let number = to_usize(held.first) + index;
            let early = &mut core.early;
            if early.shelf.has(number) && early.hashes.get(number) == Some(&hash) {
                continue;
            }
            if self.places.is_some() {
                differ += 1;
                continue;
            }
            self.drop_kept(early.shelf.take(number));
            let mut chains = [None];
            match self.frames {
                true => drop(self.reserve_chains(core, &mut chains, 1)),
                false => chains = [self.reserve_beyond_minimum()],
            }
            let [Some(chain)] = chains else {
                // The stream reads it.
                core.early.missing += 1;
                continue;
            };
            self.drop_kept(core.early.shelf.announce(number));
            differ += 1;
            let hashed = false;
            let (record, goes) = match self.frames {
                true => (core.push(Record::Pending), Goes::Early { hashed }),
                false => (0, Goes::OnShelf { hashed }),
            };
            let start = index * CHUNK_LENGTH;
            core.jobs.push_back(Job {
                number: record,
                chunk: to_u64(number),
                goes,
                slot: taken.slot,
                start,
                length: (taken.length - start).min(CHUNK_LENGTH),
                chain,
                known: None,
            });
        }
        if differ == 0 {
            core.slots_free.push(taken.slot);
        } else if self.places.is_some() {
            core.spans.push_back(taken);
        } else if let Some(left) = core.chunks_left.get_mut(taken.slot) {
            *left = differ;
        }
    }

    /// Puts an encoded chunk onto the shelf; where it has a record of its own, there, and a note onto the shelf.
    pub(super) fn keep(
        &self,
        core: &mut Core,
        (number, out): (u64, Option<u64>),
        record: Record,
        hash: Option<u64>,
    ) -> Result<(), Problem> {
        let internal = || Problem::Internal(Fault::refused("chunk without a place"));
        let place = to_usize(number);
        if let Some(hash) = hash {
            *core.early.hashes.get_mut(place).ok_or_else(internal)? = hash;
        }
        if let Some(out) = out {
            let (chain, raw_bytes, crc32, is_known) = match record {
                Record::Data {
                    chain,
                    raw_bytes,
                    crc32,
                    is_known,
                } => (Some(chain), raw_bytes, crc32, is_known),
                Record::Zeros(length) => {
                    let raw_bytes = u32::try_from(length).unwrap_or(0);
                    (None, raw_bytes, crc::zeros(length), false)
                }
                _ => return Err(internal()),
            };
            self.drop_kept(core.early.shelf.note(place, crc32));
            *core.slot_of(out).ok_or_else(internal)? = Record::Early {
                chunk: number,
                chain,
                raw_bytes,
                crc32,
                is_known,
            };
            return Ok(());
        }
        match record {
            Record::Data { chain, crc32, .. } => {
                core.early.shelf.put(place, chain, crc32).map_err(|chain| {
                    self.cells.release(chain);
                    internal()
                })
            }
            _ => {
                self.drop_kept(core.early.shelf.mark(place));
                Ok(())
            }
        }
    }

    /// Notes the hashes of a span that a copy has placed.
    pub(super) fn note(&self, core: &mut Core, held: ForShelf, hashes: &[u64]) {
        let places = core.early.hashes.iter_mut().skip(to_usize(held.first));
        for (place, hash) in places.zip(hashes) {
            *place = *hash;
        }
    }

    /// In the stream: the next chunk of a span of data that is held becomes a record; of what is not, `length` bytes can be read at
    /// once. `None`: it waits.
    pub(super) fn look_on_shelf(
        &self,
        core: &mut Core,
        plan: &Plan,
        (part, offset): (usize, u64),
        length: u64,
    ) -> Option<FromShelf> {
        let number = to_usize(plan.chunk_at(part, offset));
        let shelf = &core.early.shelf;
        if !shelf.has(number) {
            let chunks = length.div_ceil(CHUNK_BYTES);
            let free = (0..to_usize(chunks)).take_while(|index| !shelf.has(number + index));
            let bytes = to_u64(free.count()).saturating_mul(CHUNK_BYTES);
            return Some(FromShelf::Read(bytes.min(length)));
        }
        if shelf.is_coming(number) || core.room() == 0 {
            return None;
        }
        let raw_bytes = length.min(CHUNK_BYTES);
        match core.early.shelf.take(number) {
            Kept::Chain(chain, crc32) => {
                core.push(Record::Data {
                    chain,
                    raw_bytes: u32::try_from(raw_bytes).unwrap_or(0),
                    crc32,
                    is_known: false,
                });
            }
            Kept::Mark(crc32) if self.frames => {
                core.push(Record::Held { raw_bytes, crc32 });
            }
            _ => {
                if !core.merge_zeros(raw_bytes) {
                    core.push(Record::Zeros(raw_bytes));
                }
            }
        }
        Some(FromShelf::Served(raw_bytes))
    }

    /// The stream reads so many bytes of what was missing.
    pub(super) fn no_longer_missing(&self, core: &mut Core, length: usize) {
        let chunks = to_u64(length.div_ceil(CHUNK_LENGTH));
        core.early.missing = core.early.missing.saturating_sub(chunks);
    }
}

/// What the shelf has of a span.
pub(super) enum FromShelf {
    /// So many bytes became a record.
    Served(u64),
    /// So many bytes have to be read.
    Read(u64),
}
