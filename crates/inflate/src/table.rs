//! Tables that a symbol is looked up in: by as many bits as the code mostly has, and where it is longer, in a second part.
//!
//! An [`Entry`] says everything of a symbol that a decoder needs, so that the stream's bits are shifted once for each:
//!
//! | bits | what |
//! | --- | --- |
//! | 0 to 4 | width of the code and number of its extra bits, together; 0 where there is no code |
//! | 8 to 11 | width of the code |
//! | 12, 13, 14 | it is a literal; it leads to a second part; it ends the block |
//! | 16 to 31 | byte, least length or distance; where the second part begins |

use super::{DISTANCES, LITERALS};

/// Symbol that ends a block (RFC 1951, 3.2.5).
pub(crate) const END: usize = 256;

/// Longest code (RFC 1951, 3.2.7), and with it the most extra bits (3.2.5).
const MAX_WIDTH: u32 = 15;
pub(crate) const MAX_BITS: u32 = MAX_WIDTH + 13;

/// Bits that the first part of a table is looked up by.
pub(crate) const LITERAL_BITS: u32 = 11;
pub(crate) const DISTANCE_BITS: u32 = 9;
/// Longest code of a code length (RFC 1951, 3.2.7).
pub(crate) const WIDTH_BITS: u32 = 7;

/// The first part, and as many second ones as there can be: two codes each at least, because a code that needs one is complete.
const fn entries(bits: u32, symbols: usize) -> usize {
    (1 << bits) + ((symbols / 2) << (MAX_WIDTH - bits))
}
pub(crate) const LITERAL_ENTRIES: usize = entries(LITERAL_BITS, LITERALS);
pub(crate) const DISTANCE_ENTRIES: usize = entries(DISTANCE_BITS, DISTANCES);

const TOTAL: u32 = 31;
const WIDTH_SHIFT: u32 = 8;
const IS_LITERAL: u32 = 1 << 12;
const IS_LINK: u32 = 1 << 13;
const IS_END: u32 = 1 << 14;
const VALUE_SHIFT: u32 = 16;

/// What a table knows of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u32);

impl Entry {
    pub(crate) const NONE: Self = Self(0);

    const fn new(value: u32, extra: u32) -> Self {
        Self(value << VALUE_SHIFT | extra)
    }

    /// Of a literal, a length or the end of a block (RFC 1951, 3.2.5); lengths come in groups of four with the same extra bits.
    pub(crate) fn literal(symbol: usize) -> Self {
        let symbol = symbol as u32;
        match symbol {
            0..=255 => Self(symbol << VALUE_SHIFT | IS_LITERAL),
            256 => Self(IS_END),
            257..=264 => Self::new(symbol - 254, 0),
            265..=284 => {
                let extra = ((symbol - 257) >> 2) - 1;
                Self::new(3 + ((4 + ((symbol - 257) & 3)) << extra), extra)
            }
            285 => Self::new(258, 0),
            _ => Self::NONE,
        }
    }

    /// Of a distance (RFC 1951, 3.2.5); they come in groups of two.
    pub(crate) fn distance(symbol: usize) -> Self {
        let symbol = symbol as u32;
        match symbol {
            0..=3 => Self::new(symbol + 1, 0),
            4..=29 => {
                let extra = (symbol >> 1) - 1;
                Self::new(1 + ((2 + (symbol & 1)) << extra), extra)
            }
            _ => Self::NONE,
        }
    }

    /// With a code of this width.
    fn with_width(self, width: u32) -> Self {
        match self {
            Self::NONE => self,
            Self(bits) => Self((bits + width) | (width << WIDTH_SHIFT)),
        }
    }

    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(crate) fn is_literal(self) -> bool {
        self.0 & IS_LITERAL != 0
    }

    #[inline(always)]
    pub(crate) fn is_link(self) -> bool {
        self.0 & IS_LINK != 0
    }

    #[inline(always)]
    pub(crate) fn is_end(self) -> bool {
        self.0 & IS_END != 0
    }

    /// Bits of the code and its extra bits.
    #[inline(always)]
    pub(crate) fn total_bits(self) -> u32 {
        self.0 & TOTAL
    }

    #[inline(always)]
    pub(crate) fn byte(self) -> u8 {
        (self.0 >> VALUE_SHIFT) as u8
    }

    /// Length or distance, its extra bits added, from bits that begin with its code.
    #[inline(always)]
    pub(crate) fn value(self, bits: u64) -> usize {
        let low = bits & ((1 << self.total_bits()) - 1);
        (self.0 >> VALUE_SHIFT) as usize + (low >> (self.0 >> WIDTH_SHIFT & 15)) as usize
    }
}

/// The entry of the code that `bits` begin with, in a table whose first part is looked up by `first` of them.
#[inline(always)]
pub(crate) fn look_up(table: &[Entry], first: u32, bits: u64) -> Entry {
    let at = bits as usize & ((1 << first) - 1);
    match table.get(at) {
        Some(link) if link.is_link() => link.follow(table, first, bits),
        Some(entry) => *entry,
        None => Entry::NONE,
    }
}

impl Entry {
    /// The entry in the second part.
    #[inline(always)]
    pub(crate) fn follow(self, table: &[Entry], first: u32, bits: u64) -> Entry {
        let at = (bits >> first) as usize & ((1 << (MAX_WIDTH - first)) - 1);
        let at = (self.0 >> VALUE_SHIFT) as usize + at;
        table.get(at).copied().unwrap_or(Self::NONE)
    }
}

/// Fills a table for codes of these widths (RFC 1951, 3.2.2); false where they are no code. The first part is looked up by `first` bits,
/// a second one by all that a code can have beyond them.
pub(crate) fn build(
    table: &mut [Entry],
    first: u32,
    widths: &[u8],
    entry: fn(usize) -> Entry,
) -> bool {
    const KINDS: usize = MAX_WIDTH as usize + 1;
    let mut counts = [0u32; KINDS];
    for width in widths {
        counts[usize::from(*width) % KINDS] += 1;
    }
    counts[0] = 0;
    // What is left of the space of codes, and the first code of each width.
    let (mut left, mut code, mut codes) = (1i32, 0, [0u32; KINDS]);
    for (count, first_code) in counts.iter().zip(&mut codes).skip(1) {
        left = left * 2 - count.cast_signed();
        if left < 0 {
            return false;
        }
        *first_code = code;
        code = (code + count) << 1;
    }
    if left > 0 && counts.iter().sum::<u32>() > counts[1] {
        return false;
    }
    let (head, _) = table.split_at_mut((1 << first).min(table.len()));
    head.fill(Entry::NONE);
    let (size, mut free) = (1 << (MAX_WIDTH - first), 1 << first);
    for (symbol, width) in widths.iter().enumerate().filter(|(_, width)| **width > 0) {
        let code = &mut codes[usize::from(*width) % KINDS];
        let width = u32::from(*width);
        let bits = (code.reverse_bits() >> (32 - width)) as usize;
        *code += 1;
        let entry = entry(symbol).with_width(width);
        let places = if width <= first {
            table.get_mut(bits..1 << first).unwrap_or_default()
        } else {
            let Some(link) = table.get_mut(bits & ((1 << first) - 1)) else {
                return false;
            };
            if !link.is_link() {
                *link = Entry((free as u32) << VALUE_SHIFT | IS_LINK);
                free += size;
            }
            let part = (link.0 >> VALUE_SHIFT) as usize;
            let places = table.get_mut(part + (bits >> first)..part + size);
            places.unwrap_or_default()
        };
        let step = 1 << if width <= first { width } else { width - first };
        places
            .iter_mut()
            .step_by(step)
            .for_each(|place| *place = entry);
    }
    true
}
