//! An earlier file of floe's own, a chunk at a time as it is packed: inflated on every CPU once, and remembered.
//!
//! Our encoder ends every chunk with an empty stored block, on a byte, and no chunk reaches back into the one before. So the file is
//! cut behind every such block, and what lies between two cuts is inflated by itself. A cut inside a chunk, where the same four bytes
//! happen to stand, is seen by this: inflating does not end between two blocks. Then it is tried once more with what follows. Of each chunk stay where it
//! lies, the hash of what it is, and the hash of its packed bytes. **Packed bytes that have this hash still are what was inflated**:
//! they go into the new file as they are, and are neither inflated nor packed again.
//!
//! They may, where they are what the encoder of today gives at the level that is asked for: otherwise the new file would not be the one that a fresh pull
//! gives. That is tried with the first chunk and every [`SAMPLE`]th, by packing it once more; where one differs (another level, or
//! another version of the encoder), nothing is taken as it is. What is not cut like that (other programs' files, and a stored chunk that
//! ends with these four bytes) is [`Foreign`], and read the ordinary way from there on.
//!
//! **Who owns what.** As in [`crate::stream::pack`]: a [`PackedChunk`] is filled by whoever reads, moves to a hand, comes back, and is used again;
//! hand *i* gets every n-th through its own channel, so results are in order. A hand ends when its channel closes.

mod cut;
mod examine;

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use self::cut::{Cut, Cutter};
use self::examine::{Examiner, PackedChunk};
use super::known::Index;
use super::{ChunkLayout, MAX_PACKED, number};
use crate::error::Fault;
use crate::stream::deflate::{MARKER, behind_marker};
use crate::stream::pipeline::known::{Hash, hash};
use crate::threads::Hand;
use crate::units::{to_u64, to_usize};

pub(super) use self::examine::unpack;

/// One chunk of so many is packed once more.
pub(super) const SAMPLE: u64 = 32;
/// Pieces under way for each hand.
const AHEAD: usize = 3;
/// Most hands. Each has 1 MB of buffers.
const HANDS: usize = 4;
/// So often a piece that does not stand alone is tried with what follows. By chance four bytes are a marker once in 4 GiB.
const MOST_TRIES: usize = 4;
/// Stack of one, in bytes, as in [`crate::stream::pack`].
const STACK_BYTES: usize = 768 * 1024;

/// It is not a file that can be cut.
#[derive(Debug)]
pub(super) struct Foreign;

/// A chunk as it was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FoundChunk {
    pub(super) chunk: u64,
    offset: u64,
    length: u32,
    crc32: u32,
    /// Of the raw bytes.
    pub(super) hash: Hash,
    /// Of the packed ones.
    proof: Hash,
}

/// What was found, in a file: whatever is read, it costs no memory.
pub(super) struct Packed {
    file: File,
    places: Index,
    hashes: Index,
    proofs: Index,
    /// No sample was packed otherwise.
    is_ours: bool,
}

impl Packed {
    pub(super) fn new(file: File, list: &File, chunks: u64) -> Result<Self, Fault> {
        Ok(Self {
            file,
            places: Index::new(list, 3, chunks)?,
            hashes: Index::new(list, 4, chunks)?,
            proofs: Index::new(list, 5, chunks)?,
            is_ours: true,
        })
    }

    fn note(&mut self, found: &FoundChunk) -> Result<(), Fault> {
        let mut place = Hash::default();
        let words = found.offset.to_le_bytes().into_iter();
        let words = words.chain(found.length.to_le_bytes());
        let words = words.chain(found.crc32.to_le_bytes());
        place
            .iter_mut()
            .zip(words)
            .for_each(|(to, from)| *to = from);
        self.hashes.set_bytes(found.chunk, &found.hash)?;
        self.proofs.set_bytes(found.chunk, &found.proof)?;
        self.places.set_bytes(found.chunk, &place)
    }

    /// The packed bytes of a chunk with this hash into `out`, and the checksum of the raw ones; `None`: they are not there any more, or
    /// are not to be taken as they are.
    pub(super) fn take(
        &mut self,
        chunk: u64,
        wanted: &Hash,
        out: &mut [u8],
    ) -> Option<(usize, u32)> {
        let place = self.places.bytes(chunk).ok()?;
        let (offset, rest) = place.split_at(8);
        let (length, crc32) = rest.split_at(4);
        let (length, crc32) = (to_usize(number(length)), number(crc32));
        let packed = out.get_mut(..length).filter(|_| self.is_ours)?;
        if length == 0 || self.hashes.bytes(chunk).ok()? != *wanted {
            return None;
        }
        self.file.read_exact_at(packed, number(offset)).ok()?;
        let is_it = hash(packed) == self.proofs.bytes(chunk).ok()?;
        is_it.then_some((length, u32::try_from(crc32).ok()?))
    }
}

/// A thread that works on pieces.
fn start(level: u8) -> Result<Hand<PackedChunk>, Fault> {
    let mut worker = Examiner::new(level)?;
    Hand::start(
        c"known-unpack",
        STACK_BYTES,
        move |piece: &mut PackedChunk| {
            worker.work(piece);
        },
    )
}

/// What comes next in order.
enum NextPacked {
    Hand(usize),
    /// From where in the file, up to where, and how many.
    Zeros(u64, u64, u64),
}

/// The chunks of one image that lie packed in a file, in order.
pub(super) struct Pieces {
    cutter: Cutter,
    hands: Vec<Hand<PackedChunk>>,
    next_hand: usize,
    turns: VecDeque<NextPacked>,
    spare: Vec<PackedChunk>,
    worker: Examiner,
    count: u64,
    /// Nothing more is cut.
    at_end: bool,
    /// Where the next piece begins.
    expected: u64,
    /// Its chunk, and how many zeros of that were there.
    next: u64,
    into: u64,
}

impl Pieces {
    /// What lies in `range` of the file; `first` is the number of the image's first chunk.
    pub(super) fn start(
        file: File,
        range: Range<u64>,
        first: u64,
        level: u8,
        jobs: usize,
    ) -> Result<Self, Fault> {
        let hands = (0..jobs.clamp(1, HANDS)).map(|_| start(level));
        Ok(Self {
            expected: range.start,
            cutter: Cutter::new(file, range)?,
            hands: hands.collect::<Result<_, _>>()?,
            next_hand: 0,
            turns: VecDeque::new(),
            spare: Vec::new(),
            worker: Examiner::new(level)?,
            count: 0,
            at_end: false,
            next: first,
            into: 0,
        })
    }

    fn cut_ahead(&mut self) -> Result<(), Foreign> {
        while !self.at_end && self.turns.len() < self.hands.len() * AHEAD {
            let from = self.cutter.offset;
            match self.cutter.next()? {
                Cut::End => self.at_end = true,
                Cut::Zeros(zeros) => {
                    let turn = NextPacked::Zeros(from, self.cutter.offset, zeros);
                    self.turns.push_back(turn);
                }
                Cut::Data(length) => {
                    let mut work = self.spare.pop().unwrap_or_else(PackedChunk::new);
                    let bytes = self.cutter.rest().get(..length).unwrap_or_default();
                    work.packed.clear();
                    work.packed.extend_from_slice(bytes);
                    work.offset = from;
                    work.is_sample = self.count.is_multiple_of(SAMPLE);
                    self.count += 1;
                    self.cutter.consume(length);
                    let hand = self.hands.get(self.next_hand).ok_or(Foreign)?;
                    hand.hand(work).map_err(|_| Foreign)?;
                    self.turns.push_back(NextPacked::Hand(self.next_hand));
                    self.next_hand = (self.next_hand + 1) % self.hands.len();
                }
            }
        }
        Ok(())
    }

    /// The next chunk that has data; `None` at the end. What was found is noted.
    pub(super) fn next(
        &mut self,
        layout: &ChunkLayout,
        places: &mut Packed,
    ) -> Result<Option<FoundChunk>, Foreign> {
        loop {
            self.cut_ahead()?;
            let hand = match self.turns.pop_front() {
                None => return Ok(None),
                Some(NextPacked::Zeros(from, to, zeros)) => {
                    // What begins inside a chunk is none.
                    if from == self.expected {
                        self.expected = to;
                        self.skip(layout, zeros)?;
                    }
                    continue;
                }
                Some(NextPacked::Hand(hand)) => self.hands.get(hand).ok_or(Foreign)?,
            };
            let mut work = hand.done().map_err(|_| Foreign)?;
            if work.offset != self.expected {
                self.spare.push(work);
                continue;
            }
            if work.found.is_none() {
                self.longer(&mut work)?;
            }
            let raw_bytes = layout.raw_bytes(self.next);
            if self.into != 0 || work.found.map(to_u64) != raw_bytes {
                return Err(Foreign);
            }
            let found = FoundChunk {
                chunk: self.next,
                offset: work.offset,
                length: u32::try_from(work.packed.len()).map_err(|_| Foreign)?,
                crc32: work.crc32,
                hash: work.hash,
                proof: work.proof,
            };
            self.expected = work.offset.saturating_add(u64::from(found.length));
            self.next += 1;
            places.is_ours &= work.is_ours;
            places.note(&found).map_err(|_| Foreign)?;
            self.spare.push(work);
            return Ok(Some(found));
        }
    }

    /// So many zeros come next.
    fn skip(&mut self, layout: &ChunkLayout, zeros: u64) -> Result<(), Foreign> {
        let mut zeros = zeros.checked_add(self.into).ok_or(Foreign)?;
        while zeros > 0 {
            let raw_bytes = layout.raw_bytes(self.next).ok_or(Foreign)?;
            let Some(rest) = zeros.checked_sub(raw_bytes) else {
                break;
            };
            (zeros, self.next) = (rest, self.next + 1);
        }
        self.into = zeros;
        Ok(())
    }

    /// It was cut inside a chunk: up to the next marker, or one behind that, it is one.
    fn longer(&mut self, work: &mut PackedChunk) -> Result<(), Foreign> {
        let mut bytes = vec![0; MAX_PACKED];
        let mut filled = 0;
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            let place = work.offset.saturating_add(to_u64(filled));
            match self.cutter.file.read_at(room, place) {
                Ok(0) | Err(_) => break,
                Ok(count) => filled += count,
            }
        }
        let bytes = bytes.get(..filled).unwrap_or_default();
        let mut end = work.packed.len();
        // A file that was made for it has a marker every few bytes.
        for _ in 0..MOST_TRIES {
            let from = end.checked_sub(MARKER.len() - 1).ok_or(Foreign)?;
            let next = bytes.get(from..).and_then(behind_marker);
            end = from + next.ok_or(Foreign)?;
            work.packed.clear();
            work.packed
                .extend_from_slice(bytes.get(..end).unwrap_or_default());
            self.worker.work(work);
            if work.found.is_some() {
                return Ok(());
            }
        }
        Err(Foreign)
    }
}

#[cfg(test)]
mod tests;
