//! Which chunks of the watched ranges were written: one bit for each, set by who reads the trace, cleared by who reads the disk.
//!
//! All memory is there from the start. The order that makes it sound: a bit is cleared *before* its chunk is read, and set
//! *after* a write to it has ended; so a write that the read may have missed leaves the bit set, and a mark too many costs a
//! read, never an image.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::units::{BlockSize, Extent, to_usize};

const WORD_BITS: u64 = 32;

/// The marks of all watched ranges, in the order in which they were given.
#[derive(Debug)]
pub struct Marks {
    ranges: Vec<MarkedRange>,
    chunk: BlockSize,
}

#[derive(Debug)]
struct MarkedRange {
    words: Vec<AtomicU32>,
    /// Set with those, and not cleared by who reads.
    ever: Vec<AtomicU32>,
    length_bytes: u64,
    chunks: u64,
}

impl Marks {
    /// Nothing marked, for ranges of these lengths; `None` when they do not fit memory.
    pub fn new(lengths_bytes: impl Iterator<Item = u64>, chunk: BlockSize) -> Option<Self> {
        let range = |length_bytes: u64| {
            let chunks = length_bytes.div_ceil(chunk.bytes64());
            let words = usize::try_from(chunks.div_ceil(WORD_BITS)).ok()?;
            let clear = || (0..words).map(|_| AtomicU32::new(0)).collect();
            Some(MarkedRange {
                words: clear(),
                ever: clear(),
                length_bytes,
                chunks,
            })
        };
        Some(Self {
            ranges: lengths_bytes.map(range).collect::<Option<_>>()?,
            chunk,
        })
    }

    /// How many chunks a range has.
    pub fn chunks(&self, range: usize) -> u64 {
        self.ranges.get(range).map_or(0, |range| range.chunks)
    }

    /// Whether a chunk is marked. What is not there counts as marked.
    pub fn is_set(&self, range: usize, chunk: u64) -> bool {
        self.word(range, chunk)
            .is_none_or(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// Clears a mark, and says whether it was set. To be called before the chunk is read.
    pub fn take(&self, range: usize, chunk: u64) -> bool {
        self.word(range, chunk)
            .is_none_or(|(word, bit)| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// Marks a chunk (who took a mark and could not read the chunk gives it back).
    pub fn set(&self, range: usize, chunk: u64) {
        if let Some((word, bit)) = self.word(range, chunk) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
        let ever = self.ranges.get(range).map(|range| &range.ever);
        if let Some(word) = ever.and_then(|ever| ever.get(to_usize(chunk / WORD_BITS))) {
            word.fetch_or(1 << (chunk % WORD_BITS), Ordering::SeqCst);
        }
    }

    /// The first marked chunk of a range from `from` on.
    pub fn next_set(&self, range: usize, from: u64) -> Option<u64> {
        let range = self.ranges.get(range)?;
        range.next(&range.words, from)
    }

    /// The first chunk of a range, from `from` on, that was ever marked since [`Self::begin_anew`].
    pub fn next_ever(&self, range: usize, from: u64) -> Option<u64> {
        let range = self.ranges.get(range)?;
        range.next(&range.ever, from)
    }

    /// Forgets which were ever marked. To be called while nothing can be written.
    pub(super) fn begin_anew(&self) {
        for word in self.ranges.iter().flat_map(|range| &range.ever) {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// How many chunks of a range are marked.
    #[cfg(test)]
    pub(crate) fn count(&self, range: usize) -> u64 {
        let words = self.ranges.get(range).map(|range| &range.words);
        let ones = |word: &AtomicU32| u64::from(word.load(Ordering::SeqCst).count_ones());
        words.into_iter().flatten().map(ones).sum()
    }

    /// Marks every chunk that `extent`, in bytes of the range, touches.
    pub(super) fn set_extent(&self, range: usize, extent: Extent) {
        let Some((first, end)) = self.touched(range, extent) else {
            return;
        };
        for chunk in first..end {
            self.set(range, chunk);
        }
    }

    /// The chunks that an extent touches: first, and one past the last. `None` when it lies outside or is empty.
    pub(super) fn touched(&self, range: usize, extent: Extent) -> Option<(u64, u64)> {
        let extent = extent.clipped(self.ranges.get(range)?.length_bytes);
        (!extent.is_empty()).then(|| {
            let end = extent.end().div_ceil(self.chunk.bytes64());
            (self.chunk.blocks_in(extent.offset), end)
        })
    }

    /// How many bytes of a chunk lie in `extent`.
    pub(super) fn share(&self, chunk: u64, extent: Extent) -> u64 {
        let begin = chunk.saturating_mul(self.chunk.bytes64());
        let end = begin.saturating_add(self.chunk.bytes64()).min(extent.end());
        end.saturating_sub(begin.max(extent.offset))
    }

    fn word(&self, range: usize, chunk: u64) -> Option<(&AtomicU32, u32)> {
        let range = self.ranges.get(range)?;
        let word = range.words.get(to_usize(chunk / WORD_BITS))?;
        (chunk < range.chunks).then_some((word, 1 << (chunk % WORD_BITS)))
    }
}

impl MarkedRange {
    fn next(&self, words: &[AtomicU32], from: u64) -> Option<u64> {
        let mut at = from;
        while at < self.chunks {
            let word = words.get(to_usize(at / WORD_BITS))?;
            let left = word.load(Ordering::SeqCst) >> (at % WORD_BITS);
            if left != 0 {
                return Some(at + u64::from(left.trailing_zeros()));
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        let chunk = BlockSize::from_bytes(128 << 10).unwrap();
        Marks::new([(100 << 17) + 1, 5].into_iter(), chunk).unwrap()
    }

    #[test]
    fn a_taken_mark_is_gone_until_it_is_set_again() {
        let marks = marks();
        assert_eq!((marks.chunks(0), marks.chunks(1)), (101, 1));
        marks.set(0, 64);
        assert!(marks.is_set(0, 64) && !marks.is_set(0, 63));
        assert!(marks.take(0, 64) && !marks.take(0, 64));
        assert_eq!(marks.count(0), 0);
        assert_eq!(
            (marks.next_ever(0, 0), marks.next_ever(0, 65)),
            (Some(64), None)
        );
        marks.begin_anew();
        assert_eq!(marks.next_ever(0, 0), None);
    }

    #[test]
    fn what_is_not_there_counts_as_written() {
        let marks = marks();
        assert!(marks.is_set(0, 101) && marks.take(2, 0));
        marks.set(0, 101); // within the last word, past the last chunk
        assert_eq!(marks.next_set(0, 0), None);
    }

    #[test]
    fn extents_are_rounded_outwards_and_clipped() {
        let marks = marks();
        let extent = |offset, length| Extent::new(offset, length).unwrap();
        marks.set_extent(0, extent((31 << 17) + 131_071, 2));
        marks.set_extent(0, extent(100 << 17, 1 << 40));
        marks.set_extent(0, extent(5 << 17, 0));
        marks.set_extent(1, extent(5, 1));
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(chunk) = marks.next_set(0, at) {
            found.push(chunk);
            at = chunk + 1;
        }
        assert_eq!(found, [31, 32, 100]);
        assert_eq!((marks.count(0), marks.count(1)), (3, 0));
    }
}
