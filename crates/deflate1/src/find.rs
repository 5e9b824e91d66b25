//! Matches: what stood there before, by one look into a table of the last place where a hash was seen.
//!
//! Five bytes are hashed and four compared: most of what is found is worth its distance. Without a match for long, fewer and fewer
//! places are looked at, so noise costs next to nothing ([`Finder::is_poor`] then spares it the rest).

use alloc::vec;
use alloc::vec::Vec;

use crate::BLOCK_BYTES;
use crate::bits::WIDE;
use crate::code::MAX_MATCH;

/// Entries of the table: 16 KiB of places, half of a small first cache.
const TABLE: usize = 1 << TABLE_BITS;
const TABLE_BITS: u32 = 13;
/// Shortest match that is taken.
const MIN_MATCH: usize = 4;
/// Farthest match (RFC 1951, 3.2.5).
const WINDOW: usize = 32 * 1024;
/// Matches a block can have.
const MATCHES: usize = BLOCK_BYTES / MIN_MATCH;
/// Bytes that may be read behind the place that is looked at.
const REACH: usize = MIN_MATCH + 16;
/// After this many places without a match, every second is looked at, then every third, and so on.
const PATIENCE_BITS: u32 = 4;
/// Literals are copied in pieces of this length; so the room for them is that much longer than a block.
const COPY: usize = 16;
/// At most so many of them.
const STEPS: usize = 4;

/// Memory of a [`Finder`].
pub(crate) const MEMORY_BYTES: usize =
    TABLE * size_of::<u16>() + MATCHES * size_of::<Match>() + BLOCK_BYTES + (STEPS + 1) * COPY;

/// A run of literals and the match after it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Match {
    pub(crate) literals: u32,
    pub(crate) length: u16,
    pub(crate) distance: u16,
}

/// Finds the matches of a block at a time.
#[derive(Debug)]
pub(crate) struct Finder {
    /// The last place (modulo 65536) of each hash.
    table: Vec<u16>,
    matches: Vec<Match>,
    found: usize,
    /// The literals of the block, one after the other.
    literals: Vec<u8>,
    collected: usize,
}

#[inline(always)]
fn load64(bytes: &[u8], at: usize) -> u64 {
    // One comparison where the caller's bound is not seen.
    match bytes
        .get(at..at.wrapping_add(8))
        .and_then(|eight| eight.first_chunk())
    {
        Some(eight) => u64::from_le_bytes(*eight),
        None => 0,
    }
}

#[inline(always)]
fn load32(bytes: &[u8], at: usize) -> u32 {
    match bytes
        .get(at..at.wrapping_add(4))
        .and_then(|four| four.first_chunk())
    {
        Some(four) => u32::from_le_bytes(*four),
        None => 0,
    }
}

/// Hash of the first five bytes of `word`. Multiplied in halves: two instructions on a 32-bit ARM, where 64 bits would take five.
#[inline(always)]
fn hash(word: u64) -> usize {
    let (low, high) = (word as u32, (word >> 32) as u8);
    let mixed = low
        .wrapping_mul(0x9e37_79b1)
        .wrapping_add(u32::from(high).wrapping_mul(0x85eb_ca77));
    (mixed >> (32 - TABLE_BITS)) as usize
}

/// How many of the sixteen bytes at the two places are equal. Where a word is wide, without a branch until all of them are: three
/// matches of four end here, each after another length, which no processor foresees.
#[inline(always)]
fn equal_16(bytes: &[u8], at: usize, before: usize) -> usize {
    let differ = |from: usize| load64(bytes, at + from) ^ load64(bytes, before + from);
    let first = differ(0);
    if !WIDE && first != 0 {
        return (first.trailing_zeros() / 8) as usize;
    }
    let second = differ(8);
    let bits = if first != 0 {
        first.trailing_zeros()
    } else {
        64 + second.trailing_zeros()
    };
    (bits / 8) as usize
}

/// How many bytes at the two places are equal, looking at no more than `most`; both have as many.
#[inline(always)]
fn equal(bytes: &[u8], at: usize, before: usize, most: usize) -> usize {
    let (Some(a), Some(b)) = (bytes.get(at..at + most), bytes.get(before..before + most)) else {
        return 0;
    };
    let (words_a, rest_a) = a.as_chunks::<8>();
    let (words_b, rest_b) = b.as_chunks::<8>();
    let mut count = 0;
    for (x, y) in words_a.iter().zip(words_b) {
        let differ = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differ != 0 {
            return count + (differ.trailing_zeros() / 8) as usize;
        }
        count += 8;
    }
    for (x, y) in rest_a.iter().zip(rest_b) {
        if x != y {
            break;
        }
        count += 1;
    }
    count
}

/// Appends `chunk[from..to]` to `literals`. Most runs are short: those are copied in steps of fixed length, a little too much, because
/// for so few bytes a copy of any length takes several times as long.
#[inline(always)]
fn collect(literals: &mut [u8], collected: &mut usize, chunk: &[u8], from: usize, to: usize) {
    let length = to - from;
    if length <= STEPS * COPY
        && let Some(source) = chunk.get(from..from + STEPS * COPY)
        && let Some(place) = literals.get_mut(*collected..*collected + STEPS * COPY)
    {
        let (source, place) = (
            source.as_chunks::<COPY>().0,
            place.as_chunks_mut::<COPY>().0,
        );
        place[0] = source[0];
        for step in 1..STEPS {
            if length <= step * COPY {
                break;
            }
            place[step] = source[step];
        }
    } else if let Some(source) = chunk.get(from..to)
        && let Some(place) = literals.get_mut(*collected..*collected + length)
    {
        place.copy_from_slice(source);
    }
    *collected += length;
}

impl Finder {
    pub(crate) fn new() -> Self {
        Self {
            table: vec![0; TABLE],
            matches: vec![Match::default(); MATCHES],
            found: 0,
            literals: vec![0; BLOCK_BYTES + (STEPS + 1) * COPY],
            collected: 0,
        }
    }

    /// Forgets all places: a new chunk begins.
    pub(crate) fn forget(&mut self) {
        self.table.fill(0);
    }

    /// The matches of the block; what follows the last of them is literals.
    #[inline(always)]
    pub(crate) fn matches(&self) -> &[Match] {
        self.matches.get(..self.found).unwrap_or_default()
    }

    /// The literals of the block, and [`STEPS`] times [`COPY`] bytes of no meaning after them at least.
    #[inline(always)]
    pub(crate) fn literals(&self) -> (&[u8], usize) {
        (&self.literals, self.collected)
    }

    /// Finds the matches of `chunk[start..end]`, a block.
    #[inline(never)]
    pub(crate) fn find(&mut self, chunk: &[u8], start: usize, end: usize) {
        self.found = 0;
        self.collected = 0;
        let Some(bytes) = chunk.get(..end) else {
            return;
        };
        let Some(table) = self.table.first_chunk_mut::<TABLE>() else {
            return;
        };
        let (literals, matches) = (&mut self.literals[..], &mut self.matches[..]);
        let stop = bytes.len().saturating_sub(REACH);
        let (mut anchor, mut at) = (start, start);
        let (mut found, mut collected) = (0, 0);
        'block: while at < stop {
            let mut patience = 1u32 << PATIENCE_BITS;
            let distance = loop {
                let word = load64(bytes, at);
                let place = &mut table[hash(word) % TABLE];
                let distance = usize::from((at as u16).wrapping_sub(*place));
                *place = at as u16;
                // One branch for all of: not too far, not before the chunk, not itself, and equal.
                let before = at.saturating_sub(distance);
                let far = u32::from(distance.wrapping_sub(1) >= WINDOW.min(at));
                if load32(bytes, before) ^ word as u32 | far == 0 {
                    break distance;
                }
                at += (patience >> PATIENCE_BITS) as usize;
                patience += 1;
                if at >= stop {
                    break 'block;
                }
            };
            let before = at - distance;
            let most = (end - at).min(MAX_MATCH);
            let (ours, theirs) = (at + MIN_MATCH, before + MIN_MATCH);
            let mut length = MIN_MATCH
                + match equal_16(bytes, ours, theirs) {
                    16 => 16 + equal(bytes, ours + 16, theirs + 16, most - REACH),
                    less => less,
                };
            // Back over literals that are equal, too: up to eight, without a loop.
            if before >= 8 {
                let differ = load64(bytes, at - 8) ^ load64(bytes, before - 8);
                let back = (differ.leading_zeros() as usize / 8)
                    .min(at - anchor)
                    .min(MAX_MATCH - length);
                at -= back;
                length += back;
            }
            collect(literals, &mut collected, bytes, anchor, at);
            if let Some(place) = matches.get_mut(found) {
                *place = Match {
                    literals: (at - anchor) as u32,
                    length: length as u16,
                    distance: distance as u16,
                };
                found += 1;
            }
            let (first, next) = (at + 1, at + length);
            if next < stop {
                // Both hashes first: two independent chains of instructions.
                let hashes = [hash(load64(bytes, first)), hash(load64(bytes, next - 2))];
                table[hashes[0] % TABLE] = first as u16;
                table[hashes[1] % TABLE] = (next - 2) as u16;
            }
            at = next;
            anchor = at;
        }
        collect(literals, &mut collected, bytes, anchor, end);
        self.found = found;
        self.collected = collected;
    }

    /// Whether `raw`, the block, has hardly a match, and looks as if no code would make its bytes shorter either: a sample in which equal
    /// bytes are as rare as in noise. What has passed this could be made 0.7 % shorter at most.
    pub(crate) fn is_poor(&self, raw: &[u8]) -> bool {
        let matched = raw.len() - self.collected;
        if raw.len() < SAMPLE * 8 || matched > raw.len() / 64 {
            return false;
        }
        let mut counts = [0u32; 256];
        // Pieces, not every sixteenth byte: of samples of sound or pixels that would be the same part each time.
        for piece in raw.chunks(raw.len() / PIECES).take(PIECES) {
            for byte in piece.iter().take(SAMPLE / PIECES) {
                counts[usize::from(*byte)] += 1;
            }
        }
        let pairs: u32 = counts.iter().map(|count| count * count).sum();
        pairs < POOR
    }
}

/// Bytes of a sample, and how many pieces they are taken from.
const SAMPLE: usize = 4096;
const PIECES: usize = 16;
/// The sum of the squared counts of 256 symbols in a sample of noise is 69,600 with a deviation of 360; in one of 7.95 bits a symbol (of
/// collision entropy, which is the smallest there is) 72,000.
const POOR: u32 = 72_000;
