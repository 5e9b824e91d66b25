//! Symbols of a block while there is plenty of input and room: nothing is asked that need not be.

use super::table::{DISTANCE_BITS, Entry, LITERAL_BITS, look_up};
use super::{Decoder, Input, ROOM, WINDOW_BYTES, Window};

/// Bytes of one step of a copy.
pub(crate) const STEP: usize = 16;

/// Bytes of a word. One of 64 bits holds a match with all its extra bits, or three literals; one of 32 a length or a distance.
const WORD: usize = size_of::<usize>();
const IS_NARROW: bool = WORD < 8;

/// Bytes of input that there are at the beginning of a turn: it fills the word twice.
const LOOK: usize = 2 * WORD;

/// Input by the word.
#[derive(Clone, Copy)]
struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
    /// The next bit lowest. What is above `count` are bits of the next byte.
    word: usize,
    count: u32,
}

impl Bits<'_> {
    /// Whether a turn may begin.
    #[inline(always)]
    fn is_plenty(&self) -> bool {
        let rest = self.bytes.get(self.next..).unwrap_or_default();
        rest.len() >= LOOK
    }

    /// Fills the word up to its last byte. The bits that were above `count` are set once more.
    #[inline(always)]
    fn fill(&mut self) {
        let rest = self.bytes.get(self.next..).unwrap_or_default();
        let next = rest.first_chunk().unwrap_or(&[0; WORD]);
        self.word |= usize::from_le_bytes(*next) << self.count;
        self.next += ((usize::BITS - 1 - self.count) >> 3) as usize;
        self.count |= usize::BITS - 8;
    }

    #[inline(always)]
    fn consume(&mut self, entry: Entry) {
        self.word >>= entry.total_bits();
        self.count -= entry.total_bits();
    }

    /// Gives whole bytes back.
    #[inline(always)]
    fn give_back(&mut self) {
        self.next -= (self.count >> 3) as usize;
        self.count &= 7;
        self.word &= (1 << self.count) - 1;
    }
}

impl Decoder {
    /// Takes literals and matches up to the first thing that it leaves to [`step`](Decoder::step). Begins with less than a byte held, or
    /// does nothing; ends so. It calls nothing, and keeps what it has no register for below the stack's end: from such a function
    /// the outliner of equal sequences takes none.
    #[inline(never)]
    pub(crate) fn fast(&mut self, input: &mut Input<'_>, window: &mut Window) {
        if self.count >= 8 {
            return;
        }
        let mut to = self.place;
        let mut bits = Bits {
            bytes: input.bytes,
            next: input.taken,
            word: self.bits as usize,
            count: self.count,
        };
        while bits.is_plenty() && to <= WINDOW_BYTES - ROOM {
            bits.fill();
            let mut entry = look_up(&self.literals, LITERAL_BITS, bits.word as u64);
            if entry.is_literal() {
                bits.consume(entry);
                window[to % WINDOW_BYTES] = entry.byte();
                to += 1;
                if IS_NARROW {
                    continue;
                }
                entry = look_up(&self.literals, LITERAL_BITS, bits.word as u64);
                if entry.is_literal() {
                    bits.consume(entry);
                    window[to % WINDOW_BYTES] = entry.byte();
                    to += 1;
                    entry = look_up(&self.literals, LITERAL_BITS, bits.word as u64);
                    if entry.is_literal() {
                        bits.consume(entry);
                        window[to % WINDOW_BYTES] = entry.byte();
                        to += 1;
                        continue;
                    }
                }
                bits.fill();
            }
            if entry.is_none() || entry.is_end() {
                break;
            }
            let before = bits;
            let length = entry.value(bits.word as u64);
            bits.consume(entry);
            if IS_NARROW {
                bits.fill();
            }
            let entry = look_up(&self.distances, DISTANCE_BITS, bits.word as u64);
            let distance = entry.value(bits.word as u64);
            if entry.is_none() || distance > to || IS_NARROW && entry.total_bits() > bits.count {
                bits = before;
                break;
            }
            bits.consume(entry);
            copy(window, to, distance, length);
            to += length;
        }
        bits.give_back();
        (self.bits, self.count) = (bits.word as u64, bits.count);
        (input.taken, self.place) = (bits.next, to);
    }
}

/// A match, in steps that may write up to 15 bytes more. Of a distance below 16 only so many bytes of a step are right as are behind
/// `to`; so the next step begins there, with twice as many.
#[inline(always)]
pub(crate) fn copy(window: &mut Window, to: usize, distance: usize, length: usize) {
    let (mut at, end, mut reach) = (to, to + length, distance);
    while at < end {
        let from = at.wrapping_sub(reach);
        let bytes: [u8; STEP] = match window.get(from..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => *bytes,
            None => return,
        };
        match window.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            Some(place) => *place = bytes,
            None => return,
        }
        at += reach.min(STEP);
        if reach < STEP {
            reach *= 2;
        }
    }
}
