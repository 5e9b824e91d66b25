//! Inflate (RFC 1951) in fixed memory, whatever the cuts of its input.
//!
//! **What it is for.** Images come from files and pipes in pieces of any length, two or three gigabytes of them, and inflating bounds how
//! fast they are verified and restored. This decoder is twice as fast as one that treats its output as a ring, and the caller always
//! knows where a block ends: what it has of the input and did not use is less than a byte.
//!
//! ```text
//!  input ─► fast: while a word of input and room for a match are left ─┐
//!        └► step: heads of blocks, both ends, whatever is wrong       ─┴► window, whose new part is the output
//! ```
//!
//! Both ways look symbols up in the same two tables ([`table`]). The window is the caller's, [`WINDOW_BYTES`] long, and is not a ring: when
//! it is full, the [`HISTORY_BYTES`] that a match may reach back go to its beginning. So a match is one copy that meets no border.
//!
//! # What it takes
//! What zlib takes. Codes are complete, or one code of one bit, or there is no distance code at all; a match reaches back to the
//! stream's beginning at most, and what stood in the window before is never given out. Everything else is [`Stop::Corrupt`].
//!
//! # What bounds it
//! A unit (a literal, or a match with both its extra bits) takes 48 bits at most, which a word of 64 holds; it is taken when all of it is
//! there. Every call ends, because each turn of [`Decoder::run`] takes bits, or fills the window, or stops. There is no input that panics.
//!
//! # What it does not do
//! No checksum, no container, no output behind the window.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod fast;
mod table;

use self::table::{
    DISTANCE_BITS, DISTANCE_ENTRIES, Entry, LITERAL_BITS, LITERAL_ENTRIES, WIDTH_BITS,
};

/// Size of the window.
pub const WINDOW_BYTES: usize = 1 << 17;

/// How far a match may reach back (RFC 1951, 2).
pub const HISTORY_BYTES: usize = 1 << 15;

/// The window.
pub type Window = [u8; WINDOW_BYTES];

/// Two literals, the longest match behind them (RFC 1951, 3.2.5), and what its copy may write behind that.
const ROOM: usize = 2 + 258 + fast::STEP;

/// Symbols of literals and lengths, of distances, of code lengths (RFC 1951, 3.2.5 to 3.2.7); the first two rounded up.
const LITERALS: usize = 288;
const DISTANCES: usize = 32;
const WIDTHS: usize = 19;

/// Where the widths of the code of code lengths stand (RFC 1951, 3.2.7).
const ORDER: [u8; WIDTHS] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// Why [`Decoder::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All of the input was taken.
    Input,
    /// The window is full.
    Window,
    /// A block ended, and another one follows: on the next byte, or within the last one that was taken.
    Block {
        /// Whether it begins with a byte.
        on_a_byte: bool,
    },
    /// The last block ended.
    End,
    /// It is not deflate.
    Corrupt,
}

/// What one call did.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// Input bytes taken.
    pub taken: usize,
    /// What came out.
    pub output: &'a [u8],
    /// What comes next.
    pub stop: Stop,
}

/// Where in the stream a decoder is.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the three bits of a block.
    Block,
    /// Before the length of a stored block.
    StoredLength,
    /// So many bytes of a stored block are left.
    Stored(usize),
    /// Before the numbers of codes.
    Counts,
    /// Before the width of this code of code lengths.
    Widths(usize),
    /// Before the length of this code.
    Lengths(usize),
    /// Before a literal, a match or the end of the block.
    Symbols,
    /// Behind the last block.
    Ended,
}

/// A decoder and its memory (24 KiB); see the crate's page.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    is_last: bool,
    /// Bits that were taken and not used, the next one lowest, zeros above them.
    bits: u64,
    count: u32,
    /// Where in the window the next byte goes; all bytes before it are of this stream.
    place: usize,
    literal_count: usize,
    distance_count: usize,
    width_count: usize,
    /// Lengths of the codes of literals, then of distances.
    lengths: [u8; LITERALS + DISTANCES],
    literals: [Entry; LITERAL_ENTRIES],
    /// Of distances, and before of code lengths.
    distances: [Entry; DISTANCE_ENTRIES],
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            state: State::Block,
            is_last: false,
            bits: 0,
            count: 0,
            place: 0,
            literal_count: 0,
            distance_count: 0,
            width_count: 0,
            lengths: [0; LITERALS + DISTANCES],
            literals: [Entry::NONE; LITERAL_ENTRIES],
            distances: [Entry::NONE; DISTANCE_ENTRIES],
        }
    }
}

/// Input, and how much of it was taken.
struct Input<'a> {
    bytes: &'a [u8],
    taken: usize,
}

impl Decoder {
    /// Forgets the stream, ready for another.
    pub fn reset(&mut self) {
        self.state = State::Block;
        (self.bits, self.count, self.place) = (0, 0, 0);
    }

    /// Goes on as if so many zeros had come out, without giving them.
    pub fn pass_zeros(&mut self, zeros: usize, window: &mut Window) {
        let count = zeros.min(HISTORY_BYTES);
        self.make_room(count, window);
        let places = window.iter_mut().skip(self.place).take(count);
        places.for_each(|place| *place = 0);
        self.place += count;
    }

    /// Goes on with `input`, up to the first thing that a [`Stop`] names. The window has to be that of the calls before.
    #[inline(never)]
    pub fn run<'a>(&mut self, input: &[u8], window: &'a mut Window) -> Ran<'a> {
        self.make_room(ROOM, window);
        let start = self.place;
        let mut input = Input {
            bytes: input,
            taken: 0,
        };
        let stop = loop {
            if let State::Symbols = self.state {
                self.fast(&mut input, window);
            }
            if self.place > WINDOW_BYTES - ROOM {
                break Stop::Window;
            }
            match self.step(&mut input, window) {
                Ok(()) => {}
                Err(stop) => break stop,
            }
        };
        Ran {
            taken: input.taken,
            output: window.get(start..self.place).unwrap_or_default(),
            stop,
        }
    }

    /// Has room for so many bytes at least (at most a fourth of the window).
    fn make_room(&mut self, bytes: usize, window: &mut Window) {
        if self.place + bytes > WINDOW_BYTES {
            window.copy_within(self.place - HISTORY_BYTES..self.place, 0);
            self.place = HISTORY_BYTES;
        }
    }

    /// Has at least `count` bits (at most 56) held.
    fn need(&mut self, count: u32, input: &mut Input<'_>) -> Result<(), Stop> {
        while self.count < count {
            let byte = input.bytes.get(input.taken).ok_or(Stop::Input)?;
            self.bits |= u64::from(*byte) << self.count;
            self.count += 8;
            input.taken += 1;
        }
        Ok(())
    }

    /// So many bits (at most 63), of which [`need`](Self::need) knows.
    fn take(&mut self, count: u32) -> usize {
        let low = self.bits & ((1 << count) - 1);
        self.bits >>= count;
        self.count -= count;
        low as usize
    }

    /// The entry of the code behind the first `used` bits, when it and its extra bits are held.
    fn look_up(
        &mut self,
        is_literal: bool,
        used: u32,
        input: &mut Input<'_>,
    ) -> Result<Entry, Stop> {
        loop {
            let bits = self.bits >> used;
            let entry = match is_literal {
                true => table::look_up(&self.literals, LITERAL_BITS, bits),
                false => table::look_up(&self.distances, DISTANCE_BITS, bits),
            };
            if self.count >= used + entry.total_bits() && !entry.is_none() {
                return Ok(entry);
            }
            if self.count >= used + table::MAX_BITS {
                return Err(Stop::Corrupt);
            }
            self.need(self.count + 1, input)?;
        }
    }

    /// One thing of the stream, whatever it is.
    fn step(&mut self, input: &mut Input<'_>, window: &mut Window) -> Result<(), Stop> {
        self.state = match self.state {
            State::Block => {
                self.need(3, input)?;
                self.is_last = self.take(1) == 1;
                match self.take(2) {
                    0 => {
                        // The rest of the byte means nothing.
                        (self.bits, self.count) = (0, 0);
                        State::StoredLength
                    }
                    1 => {
                        self.build_fixed();
                        State::Symbols
                    }
                    2 => State::Counts,
                    _ => return Err(Stop::Corrupt),
                }
            }
            State::StoredLength => {
                self.need(32, input)?;
                let (length, complement) = (self.take(16), self.take(16));
                if length != complement ^ 0xffff {
                    return Err(Stop::Corrupt);
                }
                State::Stored(length)
            }
            State::Stored(0) => return Err(self.end_block()),
            State::Stored(left) => State::Stored(left - self.copy_stored(left, input, window)?),
            State::Counts => {
                self.need(14, input)?;
                self.literal_count = self.take(5) + 257;
                self.distance_count = self.take(5) + 1;
                self.width_count = self.take(4) + 4;
                if self.literal_count > 286 || self.distance_count > 30 {
                    return Err(Stop::Corrupt);
                }
                self.lengths = [0; LITERALS + DISTANCES];
                State::Widths(0)
            }
            State::Widths(number) if number < self.width_count => {
                self.need(3, input)?;
                let width = self.take(3) as u8;
                let to = ORDER.get(number).map_or(0, |to| usize::from(*to));
                self.lengths[to % WIDTHS] = width;
                State::Widths(number + 1)
            }
            State::Widths(_) => {
                let (widths, _) = self.lengths.split_at(WIDTHS);
                // This one has to be complete.
                let space: u32 = widths.iter().map(|width| (1 << 7 >> width) & 127).sum();
                let is_code =
                    table::build(&mut self.distances, DISTANCE_BITS, widths, Entry::literal);
                if !is_code || space != 1 << WIDTH_BITS {
                    return Err(Stop::Corrupt);
                }
                State::Lengths(0)
            }
            State::Lengths(number) if number < self.literal_count + self.distance_count => {
                State::Lengths(self.read_lengths(number, input)?)
            }
            State::Lengths(_) => {
                self.build_dynamic()?;
                State::Symbols
            }
            State::Symbols => return self.step_symbol(input, window),
            State::Ended => return Err(Stop::End),
        };
        Ok(())
    }

    /// As much of a stored block as there is input and room for.
    fn copy_stored(
        &mut self,
        left: usize,
        input: &mut Input<'_>,
        window: &mut Window,
    ) -> Result<usize, Stop> {
        let from = input.bytes.get(input.taken..).unwrap_or_default();
        let to = window.get_mut(self.place..).unwrap_or_default();
        let count = left.min(from.len()).min(to.len());
        if count == 0 {
            return Err(Stop::Input);
        }
        to[..count].copy_from_slice(&from[..count]);
        input.taken += count;
        self.place += count;
        Ok(count)
    }

    /// A literal, a match, or the end of the block.
    fn step_symbol(&mut self, input: &mut Input<'_>, window: &mut Window) -> Result<(), Stop> {
        let entry = self.look_up(true, 0, input)?;
        if entry.is_end() {
            self.take(entry.total_bits());
            return Err(self.end_block());
        }
        if entry.is_literal() {
            self.take(entry.total_bits());
            window[self.place % WINDOW_BYTES] = entry.byte();
            self.place += 1;
            return Ok(());
        }
        let length = entry.value(self.bits);
        let used = entry.total_bits();
        let entry = self.look_up(false, used, input)?;
        let distance = entry.value(self.bits >> used);
        if distance > self.place {
            return Err(Stop::Corrupt);
        }
        self.take(used + entry.total_bits());
        fast::copy(window, self.place, distance, length);
        self.place += length;
        Ok(())
    }

    fn end_block(&mut self) -> Stop {
        if self.is_last {
            self.state = State::Ended;
            return Stop::End;
        }
        self.state = State::Block;
        Stop::Block {
            on_a_byte: self.count == 0,
        }
    }

    /// One or more code lengths (RFC 1951, 3.2.7), from `number` on; gives the next number.
    fn read_lengths(&mut self, number: usize, input: &mut Input<'_>) -> Result<usize, Stop> {
        let entry = self.look_up(false, 0, input)?;
        let previous = number.checked_sub(1).and_then(|at| self.lengths.get(at));
        let (least, extra, length) = match entry.byte() {
            16 => (3, 2, *previous.ok_or(Stop::Corrupt)?),
            17 => (3, 3, 0),
            18 => (11, 7, 0),
            length => (1, 0, length),
        };
        self.need(entry.total_bits() + extra, input)?;
        self.take(entry.total_bits());
        let end = number + least + self.take(extra);
        if end > self.literal_count + self.distance_count {
            return Err(Stop::Corrupt);
        }
        let places = self.lengths.get_mut(number..end);
        places.ok_or(Stop::Corrupt)?.fill(length);
        Ok(end)
    }

    /// The codes of a dynamic block.
    fn build_dynamic(&mut self) -> Result<(), Stop> {
        let (literals, rest) = self.lengths.split_at(self.literal_count);
        let distances = rest.get(..self.distance_count).unwrap_or_default();
        let has_end = literals.get(table::END).is_some_and(|width| *width > 0);
        let is_code = has_end
            && table::build(&mut self.literals, LITERAL_BITS, literals, Entry::literal)
            && table::build(
                &mut self.distances,
                DISTANCE_BITS,
                distances,
                Entry::distance,
            );
        is_code.then_some(()).ok_or(Stop::Corrupt)
    }

    /// The codes of a fixed one (RFC 1951, 3.2.6).
    fn build_fixed(&mut self) {
        let mut widths = [8u8; LITERALS];
        widths[144..256].fill(9);
        widths[256..280].fill(7);
        table::build(&mut self.literals, LITERAL_BITS, &widths, Entry::literal);
        let widths = [5; DISTANCES];
        table::build(&mut self.distances, DISTANCE_BITS, &widths, Entry::distance);
    }
}

#[cfg(test)]
mod tests;
