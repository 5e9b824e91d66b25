//! Deflate (RFC 1951) at the speed of level 1, for chunks that stand alone.
//!
//! **What it is for.** An image is cut into chunks, and each is encoded on whichever core is free. So a chunk uses no history
//! from the one before, ends on a byte border and is never final: encoded chunks follow one another as they are, and whoever
//! ends the stream writes one empty final block. What comes out depends on the chunk alone: not on what was encoded before,
//! nor on the machine, its word size or the number of cores.
//!
//! ```text
//!  chunk ─► blocks of 64 KiB ─► find: literals and matches ─► codes from the block's own counts ─► bits
//!                               one look into a table of       dynamic Huffman block, or stored     machine words
//!                               the last place of a hash       where that is not longer
//! ```
//!
//! # What is written
//! | bits | what | RFC 1951 |
//! | --- | --- | --- |
//! | 1, 2 | BFINAL = 0, BTYPE = 2 (dynamic) or 0 (stored); never fixed codes | 3.2.3 |
//! | *stored:* to the next byte; 16, 16 | LEN and its complement, LEN bytes; 64 KiB are two of them | 3.2.4 |
//! | *dynamic:* 5, 5, 4 | HLIT, HDIST, HCLEN | 3.2.7 |
//! | 3 each | widths of the code of code lengths | 3.2.7 |
//! | up to 7 + 7 each | lengths of both codes as one list with runs (16, 17, 18) | 3.2.7 |
//! | up to 12 | a literal, or the end of the block | 3.2.5 |
//! | up to 12 + 5, then 11 + 13 | a match of 4 to 258 bytes, 1 to 32768 bytes back: length with extra bits, distance with extra bits | 3.2.5 |
//! | 3, to the next byte, 32 | at the end of every chunk an empty stored block: `00 00 ff ff` | 3.2.4 |
//!
//! Codes are canonical (3.2.2), shorter than the format allows, so that four literals, or a length and a distance, go into a
//! 64-bit word at once, and two literals, a length, or a distance into one of 32.
//!
//! # Who owns what, and how much
//! [`Encoder`] owns all memory, about [`STATE_BYTES`], allocated by [`Encoder::new`] and never again: the table of places
//! (16 KiB, it stays in the first cache), the matches of a block, and its literals, collected so that counting and writing run over
//! them without a branch between. Nothing outlives [`Encoder::encode`] but the memory. Chunk and output are the caller's; output has
//! [`bound`] bytes, which is exactly what incompressible chunks take.
//!
//! # What bounds it
//! Every loop goes over the chunk, over the matches of a block (at most a quarter of its bytes) or over an alphabet. An index is masked,
//! comes from an array's own bound, or is looked up with `get`; there is no input that panics. Positions are kept modulo 65536: an
//! old place is at worst a wrong guess, and a guess counts only after its bytes were compared.
//!
//! # What it does not do
//! No history between chunks, no levels, no checksum, no container, no inflating.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

mod bits;
mod block;
mod code;
mod find;

use self::bits::Bits;
use self::block::Counts;
use self::find::Finder;

/// Input bytes of one block at most.
const BLOCK_BYTES: usize = 64 * 1024;

/// Most bytes of one stored block (LEN has 16 bits).
const STORED_BYTES: usize = 65_535;

/// What a stored block costs beyond its bytes: its three bits, filled up to a byte, and four bytes of length.
const STORED_HEAD_BYTES: usize = 5;

/// Memory of an [`Encoder`], in bytes, near enough for sums.
pub const STATE_BYTES: usize = size_of::<Counts>() + find::MEMORY_BYTES;

/// The most bytes that a chunk of `raw_bytes` can become, and what it does become when nothing in it repeats: every block stored,
/// then the empty block at the end.
pub const fn bound(raw_bytes: usize) -> usize {
    let rest = raw_bytes % BLOCK_BYTES;
    let stored =
        raw_bytes / BLOCK_BYTES * BLOCK_BYTES.div_ceil(STORED_BYTES) + rest.div_ceil(STORED_BYTES);
    raw_bytes + STORED_HEAD_BYTES * (stored + 1)
}

/// An encoder and its memory; see the crate's page.
#[derive(Debug)]
pub struct Encoder {
    finder: Finder,
    counts: Counts,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Allocates everything.
    pub fn new() -> Self {
        Self {
            finder: Finder::new(),
            counts: Counts::new(),
        }
    }

    /// Encodes `chunk` into the beginning of `output` and gives the number of bytes; `None` when `output` has less than
    /// [`bound`] bytes.
    #[inline(never)]
    pub fn encode(&mut self, chunk: &[u8], output: &mut [u8]) -> Option<usize> {
        let output = output.get_mut(..bound(chunk.len()))?;
        let mut bits = Bits::new(output);
        self.finder.forget();
        let mut start = 0;
        while start < chunk.len() {
            let end = chunk.len().min(start + BLOCK_BYTES);
            self.finder.find(chunk, start, end);
            let raw = chunk.get(start..end)?;
            let poor = self.finder.is_poor(raw);
            if poor || !block::write(&self.finder, &mut self.counts, raw.len(), &mut bits) {
                bits.stored(raw);
            }
            start = end;
        }
        bits.stored(&[]);
        Some(bits.bytes())
    }
}

#[cfg(test)]
mod tests;
