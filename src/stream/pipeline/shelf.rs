//! The shelf: what rounds of pre-copy took, encoded or only noted, until it is believed or taken anew.
//!
//! Which chunks a round takes is `precopy`'s. Here: room for them, what becomes of them when they were read, and what the stream finds.

use std::sync::Arc;

use rustix::io::Errno;

use super::make::slots_for;
use super::precopy::{NextSpan, Precopy, Round};
use super::read::TakenSpan;
use super::{CHUNK_LENGTH, CHUNKS_PER_SLOT, Core, EncodeJob, Goes, Problem, Shared, StreamRecord};
use crate::crc;
use crate::error::Fault;
use crate::stream::plan::{CHUNK_BYTES, Plan};
use crate::sys::memory::zeroed;
use crate::sys::spool::{Chain, Shelf, Shelved, cells_for};
use crate::threads::forgive;
use crate::trace::Marks;
use crate::units::{to_u64, to_usize};

/// Times the slots that keep every worker busy: what rounds before the freeze use of them.
const EARLY_SLOTS: usize = 2;

/// What pre-copy keeps.
pub(super) struct Early {
    pub(super) shelf: Shelf,
    /// Of each chunk on the shelf.
    hashes: Vec<u64>,
    pub(super) marks: Option<Arc<Marks>>,
    pub(super) is_used: bool,
    /// There was no room for all of it.
    pub(super) is_full: bool,
    /// Chunks that must still be read from the source by the stream.
    pub(super) missing: u64,
    /// Bytes that were read before the freeze, and in it because of what was written meanwhile.
    pub(super) early_bytes: u64,
    pub(super) again_bytes: u64,
}

impl Early {
    /// For that many chunks; memory is touched as it is needed.
    pub(super) fn new(precopy: Option<&Precopy>) -> Result<Self, Fault> {
        let chunks = precopy.map_or(0, |precopy| to_usize(precopy.chunks));
        let none = || Fault::io("make room to note what is read early", Errno::NOMEM);
        Ok(Self {
            shelf: Shelf::new(chunks).ok_or_else(none)?,
            hashes: zeroed(chunks).ok_or_else(none)?,
            marks: precopy.and_then(|precopy| precopy.marks.clone()),
            is_used: precopy.is_some(),
            is_full: false,
            missing: 0,
            early_bytes: 0,
            again_bytes: 0,
        })
    }

    pub(super) fn is_marked(&self, part: usize, offset: u64) -> bool {
        let marks = self.marks.as_ref();
        marks.is_none_or(|marks| marks.is_set(part, offset / CHUNK_BYTES))
    }

    /// Nothing was written to so many chunks from an offset on, as far as anybody cares any more.
    fn clear_marks(&self, part: usize, offset: u64, chunks: usize) {
        for index in 0..to_u64(chunks) {
            if let Some(marks) = &self.marks {
                marks.take(part, offset / CHUNK_BYTES + index);
            }
        }
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

impl Shared {
    /// Slot and cells for a run of chunks, and from where in the part to go on.
    pub(super) fn take_for_shelf(
        &self,
        core: &mut Core,
        held: ForShelf,
        part: usize,
        offset: u64,
        length: usize,
    ) -> (NextSpan, u64) {
        let stop = offset + to_u64(length);
        let taken = self.slots.len() - core.slots_free.len();
        // Nobody waits for an early read: it need not run far ahead of the workers, into memory that was never used.
        let is_ahead = held.is_early() && taken >= EARLY_SLOTS * slots_for(self.settings.jobs);
        if core.slots_free.is_empty() || is_ahead {
            return (NextSpan::Wait, offset);
        }
        let chunks = length.div_ceil(CHUNK_LENGTH);
        let mut chains = [const { None }; CHUNKS_PER_SLOT];
        let goes_out = self.frames && !held.compared;
        let mut known = [None; CHUNKS_PER_SLOT];
        if goes_out && held.round == Round::First {
            // Nothing is frozen yet.
            match self.known_of(core, held.first, chunks, true) {
                Some(found) => known = found,
                None => return (NextSpan::Wait, offset),
            }
        }
        if goes_out && !self.reserve_chains(core, &mut chains, chunks) {
            // The sink gives cells back.
            return (NextSpan::Wait, offset);
        }
        let is_kept_here = self.places.is_none() && !self.frames && !held.compared;
        if is_kept_here && !self.make_room(core, held.first, &mut chains, chunks) {
            // What is in flight may give cells back.
            if !core.is_quiet(0) {
                return (NextSpan::Wait, offset);
            }
            self.do_without_room(core, held.round, part, offset, chunks);
            return (NextSpan::Again, stop);
        }
        let Some(slot) = core.slots_free.pop() else {
            return (NextSpan::Wait, offset);
        };
        core.known.put(slot, known);
        self.begin_read(core, held, part, offset, length);
        let first = core.tail;
        if goes_out {
            for _ in 0..chunks {
                core.push(StreamRecord::Pending);
            }
        }
        let taken = TakenSpan {
            slot,
            part,
            offset,
            length,
            first,
            chains,
            held: Some(held),
        };
        (NextSpan::Take(taken), stop)
    }

    /// Notes that a run of chunks is read from now on: what the shelf has of them is on its way, and their marks are cleared.
    fn begin_read(&self, core: &mut Core, held: ForShelf, part: usize, offset: u64, length: usize) {
        let chunks = length.div_ceil(CHUNK_LENGTH);
        // Cleared before they are read: whatever is written from now on marks them again.
        core.early.clear_marks(part, offset, chunks);
        for number in (to_usize(held.first)..).take(chunks) {
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
    }

    /// Cells for so many chunks that are kept here, or nothing. What the shelf has of them is out of date, and goes.
    fn make_room(
        &self,
        core: &mut Core,
        first: u64,
        chains: &mut [Option<Chain>],
        chunks: usize,
    ) -> bool {
        for number in (to_usize(first)..).take(chunks) {
            self.drop_kept(core.early.shelf.take(number));
        }
        for place in chains.iter_mut().take(chunks) {
            *place = self.reserve_beyond_minimum();
        }
        self.all_or_nothing(chains, chunks)
    }

    /// What becomes of a run of chunks for which there is no room.
    fn do_without_room(
        &self,
        core: &mut Core,
        round: Round,
        part: usize,
        offset: u64,
        chunks: usize,
    ) {
        match round {
            // Full: what is held stays held.
            Round::First => {
                core.early.is_full = true;
                self.end_round(core, Round::First);
            }
            Round::Again => {}
            // The stream reads them, still under the freeze.
            Round::Last { .. } => {
                core.early.missing += to_u64(chunks);
                core.early.clear_marks(part, offset, chunks);
            }
        }
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
        self.all_or_nothing(chains, chunks)
    }

    /// Whether there is a chain for each of so many chunks; otherwise those that there are go back.
    fn all_or_nothing(&self, chains: &mut [Option<Chain>], chunks: usize) -> bool {
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

    fn drop_kept(&self, kept: Shelved) {
        if let Shelved::Chain(chain, _) = kept {
            self.cells.release(chain);
        }
    }

    /// The hash of a chunk's content.
    pub(super) fn hash(&self, chunk: &[u8]) -> u64 {
        self.key.hash(chunk)
    }

    /// The hashes of the chunks in a span's slot, where they are compared now.
    pub(super) fn hashes_of(&self, taken: &TakenSpan) -> [u64; CHUNKS_PER_SLOT] {
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
        taken: TakenSpan,
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
                true => (core.push(StreamRecord::Pending), Goes::Early { hashed }),
                false => (0, Goes::OnShelf { hashed }),
            };
            let start = index * CHUNK_LENGTH;
            core.jobs.push_back(EncodeJob {
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
        number: u64,
        out: Option<u64>,
        record: StreamRecord,
        hash: Option<u64>,
    ) -> Result<(), Problem> {
        let internal = || Problem::Internal(Fault::refused("chunk without a place"));
        let place = to_usize(number);
        if let Some(hash) = hash {
            *core.early.hashes.get_mut(place).ok_or_else(internal)? = hash;
        }
        if let Some(out) = out {
            let mut record = match record {
                StreamRecord::Zeros(length) => StreamRecord::Data {
                    chain: None,
                    raw_bytes: u32::try_from(length).unwrap_or(0),
                    crc32: crc::zeros(length),
                    is_known: false,
                    early: None,
                },
                other => other,
            };
            let StreamRecord::Data { crc32, early, .. } = &mut record else {
                return Err(internal());
            };
            *early = Some(number);
            self.drop_kept(core.early.shelf.note(place, *crc32));
            *core.slot_of(out).ok_or_else(internal)? = record;
            return Ok(());
        }
        match record {
            StreamRecord::Data {
                chain: Some(chain),
                crc32,
                ..
            } => core.early.shelf.put(place, chain, crc32).map_err(|chain| {
                self.cells.release(chain);
                internal()
            }),
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
        part: usize,
        offset: u64,
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
            Shelved::Chain(chain, crc32) => {
                core.push(StreamRecord::Data {
                    chain: Some(chain),
                    raw_bytes: u32::try_from(raw_bytes).unwrap_or(0),
                    crc32,
                    is_known: false,
                    early: None,
                });
            }
            Shelved::Mark(crc32) if self.frames => {
                core.push(StreamRecord::Held { raw_bytes, crc32 });
            }
            _ => {
                if !core.merge_zeros(raw_bytes) {
                    core.push(StreamRecord::Zeros(raw_bytes));
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
