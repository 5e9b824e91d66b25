//! The targets while they are written: what was read goes straight from its buffer to where it belongs, by several threads at once.
//!
//! The first chunk of every target, with its superblock, is held back in memory; `finish` writes it when everything else has
//! proven good. Until then the target's beginning is zeros. Allocates before the freeze only.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::command::clone::standby::Standby;
use crate::crc;
use crate::error::{Error, Fault, Result};
use crate::medium::Medium;
use crate::put::free::LeftAlone;
use crate::put::head;
use crate::put::phase::{Phase, again};
use crate::put::target::Overwrite;
use crate::stream::pipeline::Placing;
use crate::stream::plan::{CHUNK_BYTES, Cursor, Plan, Span};
use crate::stream::target::Target;
use crate::sys::memory::Pages;
use crate::take::source::Prepared;
use crate::threads::{Lock, forgive};
use crate::units::{Extent, to_u64, to_usize};

/// Most checksums that are kept: 4 MiB of memory, a chunk each up to 128 GiB.
const MAX_SUMS: u64 = 1 << 20;

/// One target.
pub(super) struct Onto {
    /// Its node.
    pub name: String,
    /// Written to by the placers through a shared lock, by one thread otherwise.
    pub target: RwLock<Target>,
    /// The first chunk, once it was read.
    pub head: Lock<Pages>,
    /// How much of it is the image's.
    pub head_bytes: usize,
    /// Length of the image.
    pub size_bytes: u64,
    /// How far it is.
    pub phase: Phase,
    /// Bytes written.
    pub written: AtomicU64,
    wiped: [Option<Extent>; 2],
    /// The memory of `--skip-free`.
    pub left: Lock<Option<LeftAlone>>,
}

/// Where a part of the plan belongs.
struct PartOnTarget {
    target: usize,
    offset: u64,
    /// Number of its first chunk among those of all parts.
    chunk: u64,
}

/// All targets of a run; leaked, because threads that may never return use it.
pub(super) struct Targets {
    /// One for each image, in order.
    pub onto: Vec<Onto>,
    homes: Vec<PartOnTarget>,
    /// The disk that is laid out anew, if any.
    pub medium: Lock<Option<Medium>>,
    /// What was read, for `--verify`.
    pub sums: Option<ChunkSums>,
    failed: AtomicUsize,
    shares_medium: bool,
}

/// Whether what is written is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// `--verify`.
    pub verify: bool,
    /// `--skip-free`.
    pub skip_free: bool,
    /// `--only-changes`.
    pub only_changes: bool,
}

impl Targets {
    /// For sources that are ready, and a target for each. Allocates everything; writes nothing.
    pub(super) fn new(
        sources: &[Prepared],
        targets: Vec<Standby>,
        medium: Option<Medium>,
        wants: Wants,
    ) -> Result<&'static Self> {
        let mut homes = Vec::new();
        let mut onto = Vec::new();
        let mut chunk = 0u64;
        let shares_medium = targets.iter().any(|standby| standby.shares_medium);
        for (index, (source, standby)) in sources.iter().zip(targets).enumerate() {
            let mut offset = 0u64;
            for segment in &source.segments {
                homes.push(PartOnTarget {
                    target: index,
                    offset,
                    chunk,
                });
                offset = offset.saturating_add(segment.length_bytes);
                chunk = chunk.saturating_add(segment.length_bytes.div_ceil(CHUNK_BYTES));
            }
            let name = standby.name.clone();
            let made = Onto::new(standby, offset, wants);
            onto.push(made.map_err(|fault| Error::fault(name, fault))?);
        }
        Ok(Box::leak(Box::new(Self {
            onto,
            homes,
            medium: Lock::new(medium),
            sums: wants.verify.then(|| ChunkSums::new(chunk)),
            failed: AtomicUsize::new(0),
            shares_medium,
        })))
    }

    /// Goes through the plan in order: what is data (with its part), and what is zeros.
    pub(super) fn walk<E>(
        &self,
        plan: &Plan,
        mut visit: impl FnMut(usize, Extent, Option<usize>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut cursor = Cursor::default();
        let mut offset = 0u64;
        while let Some(span) = cursor.next_span(plan) {
            let (length_bytes, part) = match span {
                Span::End(_) => {
                    offset = 0;
                    continue;
                }
                Span::Zeros { length_bytes } => (length_bytes, None),
                Span::Data {
                    part, length_bytes, ..
                } => (length_bytes, Some(part)),
            };
            visit(cursor.image(), Extent::at(offset, length_bytes), part)?;
            offset = offset.saturating_add(length_bytes);
        }
        Ok(())
    }

    /// Number of the chunk at `offset` of a target, which lies in `part`.
    pub(super) fn chunk_at(&self, part: usize, offset: u64) -> Option<u64> {
        let home = self.homes.get(part)?;
        let inside = offset.checked_sub(home.offset)?;
        Some(home.chunk.saturating_add(inside / CHUNK_BYTES))
    }

    /// A run of a target that became zeros: what was placed there before the freeze does not count.
    pub(super) fn forget(&self, target: usize, run: Extent) {
        let Some(sums) = &self.sums else {
            return;
        };
        let mut homes = self.homes.iter().peekable();
        while let Some(home) = homes.next() {
            let next = homes.peek().filter(|next| next.target == target);
            let end = next.map_or(u64::MAX, |next| next.offset).min(run.end());
            let start = run.offset.max(home.offset);
            if home.target == target && start < end {
                let first = home.chunk + (start - home.offset) / CHUNK_BYTES;
                sums.forget(first, (end - start).div_ceil(CHUNK_BYTES));
            }
        }
    }

    /// The target and place of a chunk.
    pub(super) fn place_of(&self, chunk: u64) -> Option<(&Onto, u64)> {
        let home = self.homes.iter().rev().find(|home| home.chunk <= chunk)?;
        let inside = (chunk - home.chunk).saturating_mul(CHUNK_BYTES);
        Some((
            self.onto.get(home.target)?,
            home.offset.saturating_add(inside),
        ))
    }

    /// What a message of an interruption begins with: the only target, or nothing, where [`Self::state`] names them.
    pub(super) fn subject(&self) -> &str {
        match self.onto.as_slice() {
            [only] => &only.name,
            _ => "",
        }
    }

    /// The state the targets would be left in now, for a message.
    pub(super) fn state(&self) -> String {
        let state = |onto: &Onto| onto.phase.state();
        match self.onto.as_slice() {
            [only] => state(only).to_owned(),
            all if all.iter().all(|onto| onto.phase.get() == Phase::UNTOUCHED) => {
                "nothing was written".to_owned()
            }
            all => {
                let each = all
                    .iter()
                    .map(|onto| format!("{}: {}", onto.name, state(onto)));
                each.collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// The state an interruption leaves them in, and what helps.
    pub(super) fn interrupted(&self, overwrite: Overwrite) -> String {
        let shows = |onto: &Onto| Phase::shows(onto.phase.get());
        let again = again(overwrite, || self.onto.iter().any(shows));
        match self.onto.as_slice() {
            [only] => only.phase.interrupted(again),
            _ if self.is_touched() => format!("{}; {again}", self.state()),
            _ => self.state(),
        }
    }

    /// Whether anything has been written to any target.
    pub(super) fn is_touched(&self) -> bool {
        let mut all = self.onto.iter();
        all.any(|onto| onto.phase.get() != Phase::UNTOUCHED)
    }

    /// Whether a chunk may be placed more than once, the last time counting: then it is copied before the freeze, too. What
    /// `--skip-free` leaves alone must not have been written before; and sums that several chunks share cannot be taken back.
    pub(super) fn takes_back(&self) -> bool {
        let skips = |onto: &Onto| onto.left.lock().is_some();
        let shared = self.sums.as_ref().is_some_and(|sums| sums.shift > 0);
        !shared && !self.onto.iter().any(skips)
    }

    /// Lets go of every target: what follows opens them anew.
    pub(super) fn release(&self) -> Result<()> {
        for onto in &self.onto {
            let mut target = forgive(onto.target.write());
            target
                .release()
                .map_err(|fault| Error::fault(&onto.name, fault))?;
        }
        Ok(())
    }

    fn on<T>(
        &self,
        index: usize,
        work: impl FnOnce(&Onto) -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        let onto = self.onto.get(index);
        let onto = onto.ok_or_else(|| Fault::refused("part without a target"))?;
        work(onto).inspect_err(|_| self.failed.store(index, Ordering::Relaxed))
    }
}

impl Onto {
    fn new(standby: Standby, size_bytes: u64, wants: Wants) -> std::result::Result<Self, Fault> {
        let mut target = match standby.range {
            Some(range) => Target::within(standby.device, range)?,
            None => Target::new(standby.device)?,
        };
        if wants.only_changes {
            target.only_changes()?;
        }
        let left = match wants.skip_free {
            true => Some(LeftAlone::new(target.size_bytes())?),
            false => None,
        };
        Ok(Self {
            name: standby.name,
            head: Lock::new(Pages::new(to_usize(CHUNK_BYTES)).map_err(|e| Fault::io("mmap", e))?),
            head_bytes: to_usize(size_bytes.min(CHUNK_BYTES)),
            size_bytes,
            phase: Phase::default(),
            written: AtomicU64::new(0),
            wiped: [
                Some(head::wiped(target.size_bytes(), wants.only_changes)),
                standby.old_tail,
            ],
            left: Lock::new(left),
            target: RwLock::new(target),
        })
    }

    /// Zeroes what would be recognised.
    fn wipe(&self) -> std::result::Result<(), Fault> {
        let mut target = forgive(self.target.write());
        self.phase.set(Phase::WRITING);
        for extent in self.wiped.into_iter().flatten() {
            let mut rest = extent;
            while !rest.is_empty() {
                rest = target.zero_step(rest)?;
            }
        }
        target.begin_figures();
        target.sync()
    }

    /// Keeps what belongs to the head, writes the rest.
    fn put(&self, offset: u64, bytes: &[u8]) -> std::result::Result<(), Fault> {
        let (mut offset, mut rest) = (offset, bytes);
        let mut written = 0u64;
        if let Some(start) = usize::try_from(offset)
            .ok()
            .filter(|at| *at < self.head_bytes)
        {
            let mut head = self.head.lock();
            let held = head.get_mut(start..self.head_bytes).unwrap_or_default();
            let (kept, after) = rest.split_at(held.len().min(rest.len()));
            held.get_mut(..kept.len())
                .unwrap_or_default()
                .copy_from_slice(kept);
            written = to_u64(kept.len());
            offset = offset.saturating_add(written);
            rest = after;
        }
        if !rest.is_empty() {
            let target = forgive(self.target.read());
            written = written.saturating_add(target.put(offset, rest)?);
        }
        self.written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }
}

impl Placing for Targets {
    fn begin(&self) -> std::result::Result<(), Fault> {
        let mut medium = self.medium.lock();
        if let Some(medium) = medium.as_mut() {
            // From here on a refusal is a failure.
            if let Some(first) = self.onto.first() {
                first.phase.set(Phase::WRITING);
            }
            medium.wipe()?;
        }
        for index in 0..self.onto.len() {
            self.on(index, Onto::wipe)?;
        }
        Ok(())
    }

    fn place(&self, part: usize, offset: u64, bytes: &[u8]) -> std::result::Result<(), Fault> {
        let home = self.homes.get(part);
        let home = home.ok_or_else(|| Fault::refused("part without a target"))?;
        if let Some(sums) = &self.sums {
            sums.add_all(home.chunk.saturating_add(offset / CHUNK_BYTES), bytes);
        }
        let offset = home.offset.saturating_add(offset);
        self.on(home.target, |onto| onto.put(offset, bytes))
    }

    fn shares_medium(&self) -> bool {
        self.shares_medium
    }

    fn failed(&self) -> &str {
        let index = self.failed.load(Ordering::Relaxed);
        self.onto.get(index).map_or("target", |onto| &onto.name)
    }
}

/// Checksums of chunks that come in any order, in bounded memory: one for each chunk, or for a power of two of them. CRC-32s are
/// summed with a factor for their place, so that neither another content nor another order passes for the same.
#[derive(Debug)]
pub(super) struct ChunkSums {
    shift: u32,
    sums: Vec<AtomicU32>,
}

impl ChunkSums {
    /// For so many chunks. All memory is allocated here.
    pub(super) fn new(chunks: u64) -> Self {
        let mut shift = 0;
        while chunks >> shift > MAX_SUMS {
            shift += 1;
        }
        let count = to_usize((chunks >> shift).saturating_add(1));
        Self {
            shift,
            sums: (0..count).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Of nothing, for as many chunks.
    pub(super) fn empty(&self) -> Self {
        Self {
            shift: self.shift,
            sums: self.sums.iter().map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Adds chunks, the first of which has this number.
    pub(super) fn add_all(&self, first: u64, bytes: &[u8]) {
        for (number, chunk) in (first..).zip(bytes.chunks(to_usize(CHUNK_BYTES))) {
            let place = u32::try_from(number & 0x7fff_ffff).unwrap_or(0);
            let factor = place.wrapping_mul(2).wrapping_add(1);
            if let Some(sum) = self.sums.get(to_usize(number >> self.shift)) {
                let value = crc::crc32(0, chunk).wrapping_mul(factor);
                match self.shift {
                    // A chunk that is placed again counts as it was the last time.
                    0 => sum.store(value, Ordering::Relaxed),
                    _ => drop(sum.fetch_add(value, Ordering::Relaxed)),
                }
            }
        }
    }

    /// Chunks that are not placed after all; where several share a sum, none is ever placed twice.
    fn forget(&self, first: u64, count: u64) {
        let sums = self.sums.get(to_usize(first)..).unwrap_or_default();
        for sum in sums.iter().take(to_usize(count)) {
            if self.shift == 0 {
                sum.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The first chunk of the first difference, and how many chunks it may lie in.
    pub(super) fn difference(&self, other: &Self) -> Option<(u64, u64)> {
        let value = |sum: &AtomicU32| sum.load(Ordering::Relaxed);
        let mut pairs = self.sums.iter().zip(&other.sums);
        let index = pairs.position(|(a, b)| value(a) != value(b))?;
        Some((to_u64(index) << self.shift, 1 << self.shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_the_order_and_see_bytes_and_places_change() {
        let chunk = to_usize(CHUNK_BYTES);
        let data: Vec<u8> = (0..3 * chunk + 77)
            .map(|at| (at / 97).to_le_bytes()[0])
            .collect();
        let summed = |order: &[usize], data: &[u8]| {
            let sums = ChunkSums::new(4);
            for at in order {
                let end = data.len().min((at + 1) * chunk);
                sums.add_all(to_u64(*at), &data[at * chunk..end]);
            }
            sums
        };
        let sums = summed(&[0, 1, 2, 3], &data);
        assert_eq!(sums.difference(&summed(&[3, 1, 0, 2], &data)), None);
        let mut other = data.clone();
        other[2 * chunk + 5] ^= 1;
        assert_eq!(
            sums.difference(&summed(&[0, 1, 2, 3], &other)),
            Some((2, 1))
        );
        // In a table that has no room for each: swapped chunks are told apart, too.
        let coarse = |first: u64, second: u64| {
            let mut sums = ChunkSums::new(4);
            sums.shift = 1;
            sums.add_all(first, &data[..chunk]);
            sums.add_all(second, &data[chunk..2 * chunk]);
            sums
        };
        assert_eq!(coarse(2, 3).difference(&coarse(3, 2)), Some((2, 2)));
        assert_eq!(coarse(2, 3).difference(&coarse(2, 3)), None);
        assert!(to_u64(ChunkSums::new(1 << 40).sums.len()) <= MAX_SUMS + 1);
    }
}
