//! What the other end has already: it says so by hashes of chunks, in order, while it gets frames.
//!
//! ```text
//!  each   u32 chunk (more than the one before)   16 bytes: the first half of the SHA-256 of its raw bytes
//! ```
//!
//! A thread reads them into a short queue: however many there are, a few are held. Readers take those of the chunks that they take,
//! in order, in the first round before the freeze, and wait for them only while nothing is frozen. Later rounds send what they take:
//! no freeze is longer because of what comes from elsewhere. A chunk whose hash is the other end's is not packed and not sent.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{CHUNKS_PER_SLOT, Core, Shared};
use crate::units::to_u64;

/// Bytes of a hash: half of a SHA-256.
pub const HASH_BYTES: usize = 16;
/// Bytes of a number and its hash.
pub const RECORD_BYTES: usize = 4 + HASH_BYTES;
/// Most that are held: 128 MiB of chunks ahead, which a round trip over a slow line is worth.
const MOST: usize = 1024;
/// How long the other end may be silent before nothing more is expected of it.
const PATIENCE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// The first half of a SHA-256.
pub type Hash = [u8; HASH_BYTES];

/// The hash of a chunk.
pub fn hash(chunk: &[u8]) -> Hash {
    let whole: [u8; 32] = Sha256::digest(chunk).into();
    let mut half = Hash::default();
    half.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    half
}

/// Where hashes come from.
#[derive(Clone, Debug)]
pub struct Hashes {
    /// A pipe.
    pub from: Arc<OwnedFd>,
    /// Nothing will be frozen: the stream itself may wait for them.
    pub waits: bool,
}

/// Those that came and were not needed yet.
pub(super) struct Ahead {
    queue: VecDeque<(u64, Hash)>,
    /// Of what each slot holds.
    slots: Vec<OfSlot>,
    ended: bool,
}

/// Those of the chunks of a slot.
pub(super) type OfSlot = [Option<Hash>; CHUNKS_PER_SLOT];

impl Ahead {
    /// For so many slots; none: nothing is known.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            queue: VecDeque::with_capacity(if slots > 0 { MOST } else { 0 }),
            slots: vec![[None; CHUNKS_PER_SLOT]; slots],
            ended: slots == 0,
        }
    }

    /// Notes what is known of the chunks that come into a slot.
    pub(super) fn put(&mut self, slot: usize, known: OfSlot) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = known;
        }
    }

    /// What was noted of them.
    pub(super) fn of(&self, slot: usize) -> OfSlot {
        let known = self.slots.get(slot).copied();
        known.unwrap_or([None; CHUNKS_PER_SLOT])
    }

    /// From now on none is needed.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.queue.clear();
    }

    /// Those of `count` chunks from `first` on, which is more than before; `None`: they may still come.
    fn take(&mut self, first: u64, count: usize, waits: bool) -> Option<OfSlot> {
        let mut found = [None; CHUNKS_PER_SLOT];
        while self
            .queue
            .front()
            .is_some_and(|(number, _)| *number < first)
        {
            self.queue.pop_front();
        }
        let end = first.saturating_add(to_u64(count));
        let is_there = self
            .queue
            .back()
            .is_some_and(|(number, _)| *number + 1 >= end);
        if waits && !self.ended && !is_there {
            return None;
        }
        for (number, hash) in &self.queue {
            let place = usize::try_from(*number - first).ok();
            match place.and_then(|place| found.get_mut(place)) {
                Some(place) => *place = Some(*hash),
                None => break,
            }
        }
        Some(found)
    }
}

impl Shared {
    /// What the other end has of the chunks that are taken now; `None`: that may still come.
    pub(super) fn known_of(
        &self,
        core: &mut Core,
        first: u64,
        count: usize,
        waits: bool,
    ) -> Option<OfSlot> {
        let found = core.known.take(first, count, waits);
        if self.settings.hashes.is_some() {
            self.can_know.notify_all();
        }
        found
    }

    /// Reads hashes until none is needed any more. No heap.
    pub(super) fn listen(&self, hashes: &Hashes) {
        self.listen_to(&hashes.from);
        let mut core = self.lock();
        core.known.ended = true;
        drop(core);
        self.can_read.notify_all();
    }

    fn listen_to(&self, from: &OwnedFd) -> Option<()> {
        let mut bytes = [0; 64 * RECORD_BYTES];
        let (mut filled, mut least) = (0, 0);
        loop {
            let count = read(from, bytes.get_mut(filled..)?)?;
            filled += count;
            let records = filled / RECORD_BYTES;
            for record in bytes.chunks_exact(RECORD_BYTES).take(records) {
                let (number, hash) = record.split_first_chunk::<4>()?;
                let number = u64::from(u32::from_le_bytes(*number));
                if number < least {
                    return None;
                }
                least = number + 1;
                let mut core = self.lock();
                while core.known.queue.len() >= MOST {
                    if core.problem.is_some() || core.known.ended {
                        return None;
                    }
                    core = self.wait(&self.can_know, core);
                }
                if core.known.ended {
                    return None;
                }
                core.known.queue.push_back((number, hash.try_into().ok()?));
            }
            self.can_read.notify_all();
            let taken = records * RECORD_BYTES;
            bytes.copy_within(taken..filled, 0);
            filled -= taken;
        }
    }
}

/// At least a byte; `None` at the end, or when nothing comes for long.
fn read(from: &OwnedFd, bytes: &mut [u8]) -> Option<usize> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(0) => return None,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        match rustix::io::read(from, &mut *bytes) {
            Ok(count) => return (count > 0).then_some(count),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_used_in_order_and_waited_for_only_where_that_is_allowed() {
        let mut known = Ahead::new(1);
        assert_eq!(known.take(0, 4, true), None);
        assert_eq!(known.take(0, 4, false), Some([None; 4]));
        for number in [1, 3, 9] {
            known
                .queue
                .push_back((number, [number.to_le_bytes()[0]; 16]));
        }
        let hash = |number| Some([number; 16]);
        assert_eq!(known.take(0, 4, true), Some([None, hash(1), None, hash(3)]));
        // Asked again, and from the middle of it.
        assert_eq!(known.take(3, 2, true), Some([hash(3), None, None, None]));
        assert_eq!(known.take(8, 2, true), Some([None, hash(9), None, None]));
        assert_eq!(known.take(8, 3, true), None);
        known.ended = true;
        assert_eq!(known.take(9, 4, true), Some([hash(9), None, None, None]));
        assert_eq!(Ahead::new(0).take(0, 4, true), Some([None; 4]));
    }
}
