//! Readers: spans of the plan, in order, from the devices into slots; what was read goes to the workers, or to the placers of a copy.
//!
//! No heap, and nothing here waits for a lock while it reads.

use super::precopy::NextSpan;
use super::shelf::{ForShelf, FromShelf};
use super::{
    CHUNK_LENGTH, CHUNKS_PER_SLOT, Core, EncodeJob, Goes, Problem, ReadPass, Shared, StreamRecord,
};
use crate::error::Fault;
use crate::stream::plan::{Part, Plan, Span};
use crate::sys::spool::Chain;
use crate::threads::forgive;
use crate::units::{round_down, round_up, to_u64, to_usize};

/// A span that a reader has taken, with everything it needs.
pub(super) struct TakenSpan {
    pub(super) slot: usize,
    pub(super) part: usize,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) first: u64,
    pub(super) chains: [Option<Chain>; CHUNKS_PER_SLOT],
    /// Of a round of pre-copy.
    pub(super) held: Option<ForShelf>,
}

impl Shared {
    pub(super) fn reader(&self) {
        while let Some(taken) = self.take_span() {
            let result = self.read_span(&taken);
            let compared = taken.held.filter(|held| held.compared);
            let hashes = match (&result, compared) {
                (Ok(()), Some(_)) => self.hashes_of(&taken),
                _ => [0; CHUNKS_PER_SLOT],
            };
            let mut core = self.lock();
            core.readers_busy -= 1;
            match result {
                Ok(()) if compared.is_some() => {
                    if let Some(held) = compared {
                        self.settle(&mut core, taken, held, hashes);
                    }
                }
                Ok(()) if self.places.is_some() => core.spans.push_back(taken),
                Ok(()) => queue_jobs(&mut core, taken, self.frames),
                Err(problem) => {
                    core.problem.get_or_insert(problem);
                }
            }
            drop(core);
            self.wake_all();
        }
    }

    /// Takes the next span that holds data; hands zeros and ends straight to the emitter. `None` at the end or on a problem.
    fn take_span(&self) -> Option<TakenSpan> {
        let mut core = self.lock();
        loop {
            if core.problem.is_some() || core.plan_done {
                return None;
            }
            if let ReadPass::Hold(_) = core.pass {
                match self.take_round(&mut core) {
                    NextSpan::Take(taken) => return Some(taken),
                    NextSpan::Again => {}
                    NextSpan::Wait => core = self.wait(&self.can_read, core),
                }
                continue;
            }
            let (ReadPass::Stream, Some(plan)) = (&core.pass, self.plan.get()) else {
                core = self.wait(&self.can_read, core);
                continue;
            };
            let Some(span) = core.held.take().or_else(|| core.cursor.next_span(plan)) else {
                core.plan_done = true;
                drop(core);
                self.wake_all();
                return None;
            };
            let served = match span {
                // Nobody reads them, and a copy makes them later.
                Span::Zeros { .. } | Span::End(_) if self.places.is_some() => true,
                Span::Zeros { length_bytes } => {
                    core.merge_zeros(length_bytes) || core.offer(StreamRecord::Zeros(length_bytes))
                }
                Span::End(image) => core.offer(StreamRecord::End(image)),
                Span::Data {
                    part,
                    offset,
                    length_bytes,
                } => match self.take_data(&mut core, plan, part, offset, length_bytes) {
                    NextSpan::Take(taken) => return Some(taken),
                    NextSpan::Again => {
                        self.can_emit.notify_all();
                        continue;
                    }
                    NextSpan::Wait => false,
                },
            };
            if served {
                self.can_emit.notify_all();
            } else {
                core.held = Some(span);
                core = self.wait(&self.can_read, core);
            }
        }
    }

    /// Of a span of data: what the shelf has becomes a record, what it has not is to be read; the rest is held.
    fn take_data(
        &self,
        core: &mut Core,
        plan: &Plan,
        part: usize,
        offset: u64,
        length_bytes: u64,
    ) -> NextSpan {
        let rest = |done: u64| {
            (done < length_bytes).then(|| Span::Data {
                part,
                offset: offset + done,
                length_bytes: length_bytes - done,
            })
        };
        match self.look_on_shelf(core, plan, part, offset, length_bytes) {
            None => NextSpan::Wait,
            Some(FromShelf::Served(done)) => {
                core.held = rest(done);
                NextSpan::Again
            }
            Some(FromShelf::Read(length)) => {
                let Some(taken) = self.reserve(core, part, offset, to_usize(length)) else {
                    return NextSpan::Wait;
                };
                core.held = rest(length);
                self.no_longer_missing(core, taken.length);
                NextSpan::Take(taken)
            }
        }
    }

    /// Slot, records and cells for a span, all or nothing.
    fn reserve(
        &self,
        core: &mut Core,
        part: usize,
        offset: u64,
        length: usize,
    ) -> Option<TakenSpan> {
        let chunks = match self.places {
            None => length.div_ceil(CHUNK_LENGTH),
            Some(_) => 0,
        };
        let hashes = self.settings.hashes.as_ref().zip(self.plan.get());
        let known = match hashes {
            Some((hashes, plan)) => {
                let first = plan.chunk_at(part, offset);
                self.known_of(core, first, chunks, hashes.waits)?
            }
            None => [None; CHUNKS_PER_SLOT],
        };
        let mut chains = [const { None }; CHUNKS_PER_SLOT];
        if core.slots_free.is_empty() || !self.reserve_chains(core, &mut chains, chunks) {
            return None;
        }
        let slot = core.slots_free.pop()?;
        core.known.put(slot, known);
        let first = core.tail;
        for _ in 0..chunks {
            core.push(StreamRecord::Pending);
        }
        core.readers_busy += 1;
        Some(TakenSpan {
            slot,
            part,
            offset,
            length,
            first,
            chains,
            held: None,
        })
    }

    /// Reads the used extents of a span into its slot and zeroes what lies between them.
    fn read_span(&self, taken: &TakenSpan) -> Result<(), Problem> {
        let internal = || Problem::Internal(Fault::refused("span outside its plan"));
        let plan = match taken.held {
            Some(held) if held.is_early() => &self.early_plan,
            _ => &self.plan,
        };
        let plan = plan.get().ok_or_else(internal)?;
        let part = plan.parts().get(taken.part).ok_or_else(internal)?;
        let device = self.devices.get(part.device).ok_or_else(internal)?;
        let mut slot = forgive(self.slots.get(taken.slot).ok_or_else(internal)?.write());
        let buffer = slot.get_mut(..taken.length).ok_or_else(internal)?;
        let align = u64::from(device.sector_bytes());
        read_used(part, taken.offset, buffer, align, |offset, piece| {
            let place = part.device_offset.saturating_add(offset);
            device
                .read_aligned(place, piece)
                .map_err(|fault| Problem::Read(part.device, fault))?;
            self.meter.read(to_u64(piece.len()));
            Ok(())
        })?;
        plan.overlay().apply(taken.part, taken.offset, buffer);
        Ok(())
    }
}

/// Queues the chunks of a span that was read.
fn queue_jobs(core: &mut Core, taken: TakenSpan, frames: bool) {
    let chunks = taken.length.div_ceil(CHUNK_LENGTH);
    if let Some(left) = core.chunks_left.get_mut(taken.slot) {
        *left = chunks;
    }
    let known = core.known.of(taken.slot);
    let chains = taken.chains.into_iter().zip(known).enumerate();
    for (index, (chain, known)) in chains {
        let Some(chain) = chain else { continue };
        let start = index * CHUNK_LENGTH;
        let hashed = taken.held.is_some_and(|held| held.is_early());
        let goes = match taken.held {
            None => Goes::Out,
            Some(_) if frames => Goes::Early { hashed },
            Some(_) => Goes::OnShelf { hashed },
        };
        core.jobs.push_back(EncodeJob {
            number: taken.first + to_u64(index),
            chunk: taken.held.map_or(0, |held| held.first) + to_u64(index),
            goes,
            slot: taken.slot,
            start,
            length: (taken.length - start).min(CHUNK_LENGTH),
            chain,
            known,
        });
    }
}

/// Reads the used extents of `part` in the window at `offset` into `buffer` with `read(offset, piece)`, rounded to `align`, and
/// zeroes everything else in it: what was read only because of the rounding too.
fn read_used(
    part: &Part,
    offset: u64,
    buffer: &mut [u8],
    align: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let internal = || Problem::Internal(Fault::refused("extent outside its span"));
    let limit = offset.saturating_add(to_u64(buffer.len()));
    let mut from = offset;
    let mut done = offset;
    while let Some(used) = part.next_used(from, limit) {
        let start = round_down(used.offset, align).max(done);
        let end = round_up(used.end(), align).unwrap_or(limit).min(limit);
        if start < end {
            let piece = buffer
                .get_mut(to_usize(start - offset)..to_usize(end - offset))
                .ok_or_else(internal)?;
            read(start, piece)?;
            done = end;
        }
        from = used.end();
    }
    let mut zero_from = offset;
    while zero_from < limit {
        let used = part.next_used(zero_from, limit);
        let zero_end = used.map_or(limit, |used| used.offset);
        buffer
            .get_mut(to_usize(zero_from - offset)..to_usize(zero_end - offset))
            .ok_or_else(internal)?
            .fill(0);
        zero_from = used.map_or(limit, |used| used.end());
    }
    Ok(())
}
