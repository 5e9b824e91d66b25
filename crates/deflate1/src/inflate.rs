//! Deflate undone, in fixed memory, whatever the cuts of its input.
//!
//! Two ways through a block, one decoder. Where at least two words of input and room for a match are left, [`fast`](Decoder::fast)
//! looks symbols up in two tables, 11 and 9 bits at a time, and never asks whether there is enough. Everything else (heads of blocks,
//! codes longer than the tables, both ends of input and window, whatever is wrong) goes through [`steps`](Decoder::steps): a unit of
//! at most 48 bits is decoded bit by bit from a buffer that survives the call, and taken only when all of it is there.
//! Between two calls fewer bytes are never held than a unit needs, and never a whole byte more: so the caller knows where a block ends.
//!
//! The window is the output, a ring of [`WINDOW_BYTES`]. A match never reaches behind the stream's beginning: what stood in the window
//! before is not given out. Codes are taken as zlib takes them: complete, or one code of one bit, or no distances at all.

use crate::code::{DISTANCES, END, LITERALS, WIDTHS};

/// Size of the window: twice what a match may reach back, so that what a copy in steps of 16 bytes writes too much is never needed.
pub const WINDOW_BYTES: usize = 1 << 16;

/// The window.
pub type Window = [u8; WINDOW_BYTES];

/// Why [`Decoder::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All of the input was taken.
    Input,
    /// The window's end was reached.
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
pub struct Ran {
    /// Input bytes taken.
    pub taken: usize,
    /// Bytes written to the window.
    pub given: usize,
    /// What comes next.
    pub stop: Stop,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Three bits of a block.
    Block,
    /// The length of a stored block.
    StoredHead,
    Stored(usize),
    /// How many codes of each kind.
    Head,
    /// Widths of the code of code lengths, from this one on.
    Widths(usize),
    /// Code lengths, from this one on.
    Lengths(usize),
    Symbols,
    Ended,
}

/// Longest code (RFC 1951, 3.2.7).
const MAX_WIDTH: usize = 15;

const LITERAL_BITS: u32 = 11;
const DISTANCE_BITS: u32 = 9;

// An entry of a table: the code's width (0: not for the table), a flag, the number of extra bits, and a byte, length or distance.
const WIDTH: u32 = 15;
const IS_LITERAL: u32 = 1 << 7;
const EXTRA_SHIFT: u32 = 8;
const VALUE_SHIFT: u32 = 16;

/// Bytes of a word: on 64 bits a match with all its extra bits comes from one.
const WORD: usize = size_of::<usize>();
const IS_NARROW: bool = WORD < 8;

/// Bits of a symbol of the table with its extra bits, and where there is room for both of a match.
const ENOUGH: u32 = LITERAL_BITS + 5 + if IS_NARROW { 0 } else { DISTANCE_BITS + 13 };

/// What a match may write, in steps of 16 bytes.
const ROOM: usize = 258 + 16;

/// Where the widths of the code of code lengths stand (RFC 1951, 3.2.7).
const ORDER: [u8; WIDTHS] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// A code in canonical order: how many symbols have each width, and the symbols by width.
#[derive(Debug)]
struct Code {
    counts: [u16; MAX_WIDTH + 1],
    symbols: [u16; LITERALS],
}

impl Code {
    const EMPTY: Self = Self {
        counts: [0; MAX_WIDTH + 1],
        symbols: [0; LITERALS],
    };

    /// From the widths of all symbols, also into a table of `1 << bits` entries; false where they are no code.
    fn build(
        &mut self,
        widths: &[u8],
        table: &mut [u32],
        bits: u32,
        entry: fn(usize) -> u32,
    ) -> bool {
        *self = Self::EMPTY;
        for width in widths {
            if let Some(count) = self.counts.get_mut(usize::from(*width)) {
                *count += 1;
            }
        }
        self.counts[0] = 0;
        // What is left of the space of codes; the place of the first symbol and the first code of each width.
        let (mut left, mut place, mut code) = (1i32, 0u16, 0u32);
        let (mut places, mut codes) = ([0u16; MAX_WIDTH + 1], [0u32; MAX_WIDTH + 1]);
        for (width, count) in self.counts.iter().enumerate().skip(1) {
            left = left * 2 - i32::from(*count);
            if left < 0 {
                return false;
            }
            if let (Some(to), Some(first)) = (places.get_mut(width), codes.get_mut(width)) {
                (*to, *first) = (place, code);
            }
            place += *count;
            code = (code + u32::from(*count)) << 1;
        }
        if left > 0 && place > self.counts[1] {
            return false;
        }
        table.fill(0);
        for (symbol, width) in widths.iter().enumerate().filter(|(_, width)| **width > 0) {
            let at = usize::from(*width);
            let (Some(place), Some(code)) = (places.get_mut(at), codes.get_mut(at)) else {
                return false;
            };
            if let Some(to) = self.symbols.get_mut(usize::from(*place)) {
                *to = symbol as u16;
            }
            let width = u32::from(*width);
            if width <= bits {
                let first = (code.reverse_bits() >> (32 - width)) as usize;
                let entry = entry(symbol);
                let entry = if entry == 0 { 0 } else { entry | width };
                let places = table.iter_mut().skip(first).step_by(1 << width);
                places.for_each(|place| *place = entry);
            }
            *place += 1;
            *code += 1;
        }
        true
    }
}

/// The entry of a literal or length without its width; 0 for what ends a block or means nothing.
fn literal_entry(symbol: usize) -> u32 {
    let symbol = symbol as u32;
    match symbol {
        0..=255 => symbol << VALUE_SHIFT | IS_LITERAL,
        257..=264 => (symbol - 254) << VALUE_SHIFT,
        265..=284 => {
            let extra = ((symbol - 257) >> 2) - 1;
            let value = 3 + ((4 + ((symbol - 257) & 3)) << extra);
            value << VALUE_SHIFT | extra << EXTRA_SHIFT
        }
        285 => 258 << VALUE_SHIFT,
        _ => 0,
    }
}

/// The same for a distance.
fn distance_entry(symbol: usize) -> u32 {
    let symbol = symbol as u32;
    match symbol {
        0..=3 => (symbol + 1) << VALUE_SHIFT,
        4..=29 => {
            let extra = (symbol >> 1) - 1;
            (1 + ((2 + (symbol & 1)) << extra)) << VALUE_SHIFT | extra << EXTRA_SHIFT
        }
        _ => 0,
    }
}

/// No table.
fn no_entry(_: usize) -> u32 {
    0
}

fn extra_bits(entry: u32) -> u32 {
    entry >> EXTRA_SHIFT & 15
}

fn value(entry: u32) -> usize {
    (entry >> VALUE_SHIFT) as usize
}

/// A decoder and its memory (12 KiB); see the module's page.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    is_last: bool,
    /// Bits that were taken and not used, the next one lowest.
    bits: u64,
    count: u32,
    /// What is left of a match that met the window's end.
    copy_bytes: usize,
    copy_distance: usize,
    /// How far a match may reach back.
    history: usize,
    literal_count: usize,
    distance_count: usize,
    width_count: usize,
    /// Lengths of the codes of literals, then of distances.
    lengths: [u8; LITERALS + DISTANCES],
    literal: Code,
    /// Of distances, and before of code lengths.
    distance: Code,
    literals: [u32; 1 << LITERAL_BITS],
    distances: [u32; 1 << DISTANCE_BITS],
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            state: State::Block,
            is_last: false,
            bits: 0,
            count: 0,
            copy_bytes: 0,
            copy_distance: 0,
            history: 0,
            literal_count: 0,
            distance_count: 0,
            width_count: 0,
            lengths: [0; LITERALS + DISTANCES],
            literal: Code::EMPTY,
            distance: Code::EMPTY,
            literals: [0; 1 << LITERAL_BITS],
            distances: [0; 1 << DISTANCE_BITS],
        }
    }
}

impl Decoder {
    /// Forgets the stream, ready for another.
    pub fn reset(&mut self) {
        self.state = State::Block;
        self.is_last = false;
        (self.bits, self.count) = (0, 0);
        self.copy_bytes = 0;
        self.history = 0;
    }

    /// The caller wrote so many bytes to the window itself.
    pub fn skipped(&mut self, bytes: usize) {
        self.history = self.history.saturating_add(bytes).min(WINDOW_BYTES);
    }

    /// Takes input and writes to the window from `start` on, up to its end at most.
    #[inline(never)]
    pub fn run(&mut self, input: &[u8], window: &mut Window, start: usize) -> Ran {
        let (mut at, mut place) = (0, start.min(WINDOW_BYTES));
        let (Ok(stop) | Err(stop)) = self.steps(input, &mut at, window, &mut place);
        Ran {
            taken: at,
            given: place - start.min(WINDOW_BYTES),
            stop,
        }
    }

    /// Has at least `count` bits (at most 56) held.
    fn need(&mut self, count: u32, input: &[u8], at: &mut usize) -> Result<(), Stop> {
        while self.count < count {
            let byte = input.get(*at).ok_or(Stop::Input)?;
            self.bits |= u64::from(*byte) << self.count;
            self.count += 8;
            *at += 1;
        }
        Ok(())
    }

    /// So many bits (at most 32), of which [`need`](Self::need) knows.
    fn take(&mut self, count: u32) -> u32 {
        let low = self.bits & ((1 << count) - 1);
        self.bits >>= count;
        self.count -= count.min(self.count);
        low as u32
    }

    /// The symbol behind the first `used` bits, bit by bit; adds its width to them.
    fn symbol(
        &mut self,
        is_literal: bool,
        used: &mut u32,
        input: &[u8],
        at: &mut usize,
    ) -> Result<usize, Stop> {
        // First code and place of its width, as they were made.
        let (mut code, mut first, mut place) = (0usize, 0usize, 0usize);
        for width in 1..=MAX_WIDTH {
            self.need(*used + 1, input, at)?;
            code |= (self.bits >> *used & 1) as usize;
            *used += 1;
            let table = match is_literal {
                true => &self.literal,
                false => &self.distance,
            };
            let count = usize::from(table.counts.get(width).copied().unwrap_or(0));
            if let Some(inside) = code.checked_sub(first).filter(|inside| *inside < count) {
                let symbol = table.symbols.get(place + inside);
                return symbol.map(|symbol| (*symbol).into()).ok_or(Stop::Corrupt);
            }
            place += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(Stop::Corrupt)
    }

    /// The extra bits of `entry` behind the first `used` bits, added to its value.
    fn extra(
        &mut self,
        entry: u32,
        used: &mut u32,
        input: &[u8],
        at: &mut usize,
    ) -> Result<usize, Stop> {
        if entry == 0 {
            return Err(Stop::Corrupt);
        }
        let extra = extra_bits(entry);
        self.need(*used + extra, input, at)?;
        let bits = self.bits >> *used & ((1 << extra) - 1);
        *used += extra;
        Ok(value(entry) + bits as usize)
    }

    fn steps(
        &mut self,
        input: &[u8],
        at: &mut usize,
        window: &mut Window,
        place: &mut usize,
    ) -> Result<Stop, Stop> {
        // Each turn takes bits, fills the window or ends.
        loop {
            while self.copy_bytes > 0 && *place < WINDOW_BYTES {
                let byte = window[place.wrapping_sub(self.copy_distance) % WINDOW_BYTES];
                window[*place % WINDOW_BYTES] = byte;
                *place += 1;
                self.copy_bytes -= 1;
                self.skipped(1);
            }
            if *place >= WINDOW_BYTES {
                return Ok(Stop::Window);
            }
            match self.state {
                State::Block => {
                    self.need(3, input, at)?;
                    self.is_last = self.take(1) == 1;
                    self.state = match self.take(2) {
                        0 => {
                            // The rest of the byte means nothing.
                            (self.bits, self.count) = (0, 0);
                            State::StoredHead
                        }
                        1 => {
                            self.fixed();
                            State::Symbols
                        }
                        2 => State::Head,
                        _ => return Ok(Stop::Corrupt),
                    };
                }
                State::StoredHead => {
                    self.need(32, input, at)?;
                    let (length, complement) = (self.take(16), self.take(16));
                    if length != complement ^ 0xffff {
                        return Ok(Stop::Corrupt);
                    }
                    self.state = State::Stored(length as usize);
                }
                State::Stored(0) => return Ok(self.block_end()),
                State::Stored(left) => {
                    let from = input.get(*at..).unwrap_or_default();
                    let to = window.get_mut(*place..).unwrap_or_default();
                    let count = left.min(from.len()).min(to.len());
                    if count == 0 {
                        return Ok(Stop::Input);
                    }
                    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
                        to.copy_from_slice(from);
                    }
                    *at += count;
                    *place += count;
                    self.skipped(count);
                    self.state = State::Stored(left - count);
                }
                State::Head => {
                    self.need(14, input, at)?;
                    self.literal_count = self.take(5) as usize + 257;
                    self.distance_count = self.take(5) as usize + 1;
                    self.width_count = self.take(4) as usize + 4;
                    if self.literal_count > 286 || self.distance_count > 30 {
                        return Ok(Stop::Corrupt);
                    }
                    self.lengths = [0; LITERALS + DISTANCES];
                    self.state = State::Widths(0);
                }
                State::Widths(number) if number < self.width_count => {
                    self.need(3, input, at)?;
                    let width = self.take(3) as u8;
                    let to = ORDER.get(number).map_or(0, |to| usize::from(*to));
                    self.lengths[to % WIDTHS] = width;
                    self.state = State::Widths(number + 1);
                }
                State::Widths(_) => {
                    let (widths, _) = self.lengths.split_at(WIDTHS);
                    let is_code = self.distance.build(widths, &mut [], 0, no_entry);
                    // This one has to be complete.
                    let space: u32 = widths.iter().map(|width| (1 << 7 >> width) & 127).sum();
                    if !is_code || space != 128 {
                        return Ok(Stop::Corrupt);
                    }
                    self.state = State::Lengths(0);
                }
                State::Lengths(number) => {
                    if number == self.literal_count + self.distance_count {
                        if !self.dynamic() {
                            return Ok(Stop::Corrupt);
                        }
                        self.state = State::Symbols;
                        continue;
                    }
                    self.state = State::Lengths(self.lengths(number, input, at)?);
                }
                State::Symbols => {
                    self.fast(input, at, window, place);
                    if *place >= WINDOW_BYTES {
                        return Ok(Stop::Window);
                    }
                    let mut used = 0;
                    let symbol = self.symbol(true, &mut used, input, at)?;
                    if symbol == END {
                        self.take(used);
                        return Ok(self.block_end());
                    }
                    if let Ok(byte) = u8::try_from(symbol) {
                        self.take(used);
                        window[*place % WINDOW_BYTES] = byte;
                        *place += 1;
                        self.skipped(1);
                        continue;
                    }
                    let length = self.extra(literal_entry(symbol), &mut used, input, at)?;
                    let symbol = self.symbol(false, &mut used, input, at)?;
                    let distance = self.extra(distance_entry(symbol), &mut used, input, at)?;
                    if distance > self.history {
                        return Ok(Stop::Corrupt);
                    }
                    // In two, because it may be more than 32.
                    self.take(used / 2);
                    self.take(used - used / 2);
                    (self.copy_bytes, self.copy_distance) = (length, distance);
                }
                State::Ended => return Ok(Stop::End),
            }
        }
    }

    fn block_end(&mut self) -> Stop {
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
    fn lengths(&mut self, number: usize, input: &[u8], at: &mut usize) -> Result<usize, Stop> {
        let mut used = 0;
        let symbol = self.symbol(false, &mut used, input, at)?;
        let previous = number.checked_sub(1).and_then(|at| self.lengths.get(at));
        let (least, extra, length) = match symbol {
            16 => (3, 2, *previous.ok_or(Stop::Corrupt)?),
            17 => (3, 3, 0),
            18 => (11, 7, 0),
            length => (1, 0, length as u8),
        };
        self.need(used + extra, input, at)?;
        self.take(used);
        let end = number + least + self.take(extra) as usize;
        if end > self.literal_count + self.distance_count {
            return Err(Stop::Corrupt);
        }
        let places = self.lengths.get_mut(number..end);
        places.ok_or(Stop::Corrupt)?.fill(length);
        Ok(end)
    }

    /// The codes of a dynamic block.
    fn dynamic(&mut self) -> bool {
        let (literals, distances) = self.lengths.split_at(self.literal_count);
        let distances = distances.get(..self.distance_count).unwrap_or_default();
        let has_end = literals.get(END).is_some_and(|width| *width > 0);
        has_end
            && self
                .literal
                .build(literals, &mut self.literals, LITERAL_BITS, literal_entry)
            && self.distance.build(
                distances,
                &mut self.distances,
                DISTANCE_BITS,
                distance_entry,
            )
    }

    /// The codes of a fixed one (RFC 1951, 3.2.6).
    fn fixed(&mut self) {
        let mut widths = [8u8; LITERALS];
        widths[144..256].fill(9);
        widths[256..280].fill(7);
        let (all, table) = (&mut self.literal, &mut self.literals);
        all.build(&widths, table, LITERAL_BITS, literal_entry);
        let (all, table) = (&mut self.distance, &mut self.distances);
        all.build(&[5; DISTANCES], table, DISTANCE_BITS, distance_entry);
    }

    /// Symbols of a block while there is plenty of input and room. Begins with less than a byte held, or does nothing; ends so.
    fn fast(&mut self, input: &[u8], at: &mut usize, window: &mut Window, place: &mut usize) {
        if self.count >= 8 {
            return;
        }
        let (start, mut history) = (*place, self.history);
        let (mut bits, mut count, mut next, mut to) = (self.bits as usize, self.count, *at, *place);
        // Fills the word: bits above `count` are the right ones already, and are set once more.
        macro_rules! refill {
            () => {
                let word = input.get(next..).and_then(|rest| rest.first_chunk());
                bits |= usize::from_le_bytes(*word.unwrap_or(&[0; WORD])) << count;
                next += ((usize::BITS - 1 - count) >> 3) as usize;
                count |= usize::BITS - 8;
            };
        }
        while to + ROOM <= WINDOW_BYTES {
            if count < ENOUGH {
                if next + 2 * WORD > input.len() {
                    break;
                }
                refill!();
            }
            // One look for all: of two, the outliner of equal sequences makes a function, and this loop a third slower.
            let entry = self.literals[bits & ((1 << LITERAL_BITS) - 1)];
            if entry & IS_LITERAL != 0 {
                bits >>= entry & WIDTH;
                count -= entry & WIDTH;
                window[to % WINDOW_BYTES] = value(entry) as u8;
                to += 1;
                continue;
            }
            if entry & WIDTH == 0 {
                break;
            }
            let before = (bits, count, next);
            let extra = extra_bits(entry);
            bits >>= entry & WIDTH;
            let length = value(entry) + (bits & ((1 << extra) - 1));
            bits >>= extra;
            count -= (entry & WIDTH) + extra;
            if IS_NARROW {
                refill!();
            }
            let entry = self.distances[bits & ((1 << DISTANCE_BITS) - 1)];
            let extra = extra_bits(entry);
            bits >>= entry & WIDTH;
            let distance = value(entry) + (bits & ((1 << extra) - 1));
            if entry == 0 || distance > history + (to - start) {
                (bits, count, next) = before;
                break;
            }
            bits >>= extra;
            count -= (entry & WIDTH) + extra;
            copy(window, to, distance, length);
            to += length;
        }
        // Whole bytes go back, all of them of this input.
        next -= (count >> 3) as usize;
        count &= 7;
        (self.bits, self.count) = ((bits & ((1 << count) - 1)) as u64, count);
        history += to - start;
        self.history = history.min(WINDOW_BYTES);
        (*at, *place) = (next, to);
    }
}

/// A match; writes up to 15 bytes more, for which there is room.
#[inline(always)]
fn copy(window: &mut Window, to: usize, distance: usize, length: usize) {
    match to.checked_sub(distance) {
        Some(from) if distance >= 16 => {
            for step in (0..length).step_by(16) {
                let source = window
                    .get(from + step..)
                    .and_then(|rest| rest.first_chunk());
                let bytes: [u8; 16] = *source.unwrap_or(&[0; 16]);
                if let Some(place) = window.get_mut(to + step..to + step + 16) {
                    place.copy_from_slice(&bytes);
                }
            }
        }
        Some(from) if distance == 1 => {
            let byte = window[from % WINDOW_BYTES];
            if let Some(places) = window.get_mut(to..to + length) {
                places.fill(byte);
            }
        }
        _ => {
            for place in to..to + length {
                let byte = window[place.wrapping_sub(distance) % WINDOW_BYTES];
                window[place % WINDOW_BYTES] = byte;
            }
        }
    }
}
