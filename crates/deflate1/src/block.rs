//! One dynamic block (RFC 1951, 3.2.7): counts, codes, header, body.

use crate::bits::{Bits, WIDE, Word};
use crate::code::{
    DISTANCES, END, LENGTH_SYMBOLS, LITERALS, MAX_MATCH, WIDTHS, codes, distance_symbol,
    length_symbol, widths,
};
use crate::find::{Finder, Match};

/// Longest code of a literal or length: four literals and a rest of seven bits fit 64 bits, two of them 32.
const LITERAL_LIMIT: usize = 12;
/// Longest code of a distance: with 13 extra bits and a rest of seven it fits 32 bits, and shifts by less.
const DISTANCE_LIMIT: usize = 11;
/// Longest code of a code length (its width has three bits).
const WIDTH_LIMIT: usize = 7;

/// The order in which widths of the code of code lengths are written (RFC 1951, 3.2.7).
const ORDER: [u8; WIDTHS] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// How often each symbol occurs. Literals are counted in four tables, so that equal neighbours do not wait for each other.
#[derive(Debug)]
pub(crate) struct Counts {
    literals: [[u32; 256]; 4],
    symbols: [u32; LITERALS],
    distances: [u32; DISTANCES],
}

impl Counts {
    pub(crate) const fn new() -> Self {
        Self {
            literals: [[0; 256]; 4],
            symbols: [0; LITERALS],
            distances: [0; DISTANCES],
        }
    }

    #[inline(never)]
    fn count(&mut self, literals: &[u8], matches: &[Match]) {
        *self = Self::new();
        let [p, q, r, s] = &mut self.literals;
        let (fours, rest) = literals.as_chunks::<4>();
        for four in fours {
            let [a, b, c, d] = four.map(usize::from);
            p[a] += 1;
            q[b] += 1;
            r[c] += 1;
            s[d] += 1;
        }
        for byte in rest {
            p[usize::from(*byte)] += 1;
        }
        for found in matches {
            let symbol = LENGTH_SYMBOLS[usize::from(found.length) % 512];
            self.symbols[END + usize::from(symbol) % 32] += 1;
            self.distances[distance_symbol(u32::from(found.distance)).symbol] += 1;
        }
        for (symbol, sum) in self.symbols.iter_mut().take(256).enumerate() {
            *sum = p[symbol] + q[symbol] + r[symbol] + s[symbol];
        }
        self.symbols[END] = 1;
    }
}

/// The codes of a block, and how many bits it will take.
struct Codes {
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
    /// For each length of a match: code and extra bits as one, `bits | width << 24`.
    lengths: [u32; MAX_MATCH + 1],
}

/// The header of a block: the lists of widths, run-length coded, and what they take.
struct Header {
    /// `symbol | extra << 8`, in order.
    runs: [u16; LITERALS + DISTANCES],
    used: usize,
    /// The code of the symbols.
    codes: [u32; WIDTHS],
    /// How many widths of that code are written.
    shown: usize,
    literals: usize,
    distances: usize,
    bits: usize,
}

/// Extra bits of the symbols 16, 17 and 18 of the code of code lengths.
const fn run_bits(symbol: usize) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

impl Header {
    #[inline(never)]
    fn new(literals: &[u8; LITERALS], distances: &[u8; DISTANCES]) -> Self {
        let used = |widths: &[u8], least: usize| {
            let last = widths.iter().rposition(|width| *width != 0);
            last.map_or(least, |last| least.max(last + 1))
        };
        let (literal_count, distance_count) = (used(literals, END + 1), used(distances, 1));
        // Both lists are one: a run may go over the border.
        let mut list = [0u8; LITERALS + DISTANCES];
        let both = literals.iter().take(literal_count).chain(distances);
        for (place, width) in list.iter_mut().zip(both) {
            *place = *width;
        }
        let mut rest = list
            .get(..literal_count + distance_count)
            .unwrap_or_default();
        let mut header = Self {
            runs: [0; LITERALS + DISTANCES],
            used: 0,
            codes: [0; WIDTHS],
            shown: 0,
            literals: literal_count,
            distances: distance_count,
            bits: 0,
        };
        let mut counts = [0u32; WIDTHS];
        let mut before = None;
        while let [width, ..] = rest {
            let same = rest.iter().take_while(|other| *other == width).count();
            let (symbol, extra, taken) = match (width, same) {
                (0, 11..) => (18, same.min(138) - 11, same.min(138)),
                (0, 3..) => (17, same - 3, same),
                (_, 3..) if before == Some(width) => (16, same.min(6) - 3, same.min(6)),
                _ => (usize::from(*width) % WIDTHS, 0, 1),
            };
            if let Some(place) = header.runs.get_mut(header.used) {
                *place = (symbol | extra << 8) as u16;
                header.used += 1;
            }
            counts[symbol] += 1;
            header.bits += run_bits(symbol) as usize;
            before = Some(width);
            rest = rest.get(taken..).unwrap_or_default();
        }
        let mut small = [0u8; WIDTHS];
        widths(&counts, WIDTH_LIMIT, &mut small);
        codes(&small, &mut header.codes);
        let last = ORDER
            .iter()
            .rposition(|symbol| small[usize::from(*symbol)] != 0);
        header.shown = last.map_or(4, |last| (last + 1).max(4));
        header.bits += 3 + 5 + 5 + 4 + 3 * header.shown;
        for (count, width) in counts.iter().zip(small) {
            header.bits += *count as usize * usize::from(width);
        }
        header
    }

    #[inline(never)]
    fn write(&self, bits: &mut Bits<'_>) {
        bits.push(0b100, 3); // BFINAL 0, BTYPE 2
        bits.push(self.literals - 257, 5);
        bits.push(self.distances - 1, 5);
        bits.push(self.shown - 4, 4);
        for symbol in ORDER.iter().take(self.shown) {
            bits.push((self.codes[usize::from(*symbol)] >> 16) as Word, 3);
        }
        for run in self.runs.iter().take(self.used) {
            let symbol = usize::from(*run & 255);
            let code = self.codes[symbol % WIDTHS];
            bits.push((code & 0xffff) as Word, code >> 16);
            bits.push(usize::from(*run >> 8), run_bits(symbol));
        }
    }
}

/// Writes the block that `finder` holds, of `raw_bytes`; does nothing and gives `false` when it would be longer than those.
#[inline(never)]
pub(crate) fn write(
    finder: &Finder,
    counts: &mut Counts,
    raw_bytes: usize,
    bits: &mut Bits<'_>,
) -> bool {
    let (literals, length) = finder.literals();
    let matches = finder.matches();
    counts.count(literals.get(..length).unwrap_or_default(), matches);
    let (mut literal_widths, mut distance_widths) = ([0; LITERALS], [0; DISTANCES]);
    widths(&counts.symbols, LITERAL_LIMIT, &mut literal_widths);
    widths(&counts.distances, DISTANCE_LIMIT, &mut distance_widths);
    let header = Header::new(&literal_widths, &distance_widths);
    // Exactly what it will take. Extra bits by symbol: none up to 264 and for 285, one more every four; distances every two.
    let mut size = header.bits;
    for (symbol, (count, width)) in counts.symbols.iter().zip(literal_widths).enumerate() {
        let extra = match symbol {
            265..285 => (symbol - 261) / 4,
            _ => 0,
        };
        size += *count as usize * (usize::from(width) + extra);
    }
    for (symbol, (count, width)) in counts.distances.iter().zip(distance_widths).enumerate() {
        size += *count as usize * (usize::from(width) + (symbol / 2).saturating_sub(1));
    }
    if size > raw_bytes * 8 {
        return false;
    }
    header.write(bits);
    let mut made = Codes {
        literals: [0; LITERALS],
        distances: [0; DISTANCES],
        lengths: [0; MAX_MATCH + 1],
    };
    codes(&literal_widths, &mut made.literals);
    codes(&distance_widths, &mut made.distances);
    for (length, place) in made.lengths.iter_mut().enumerate().skip(3) {
        let symbol = length_symbol(length);
        let code = made.literals[symbol.symbol % LITERALS];
        let width = code >> 16;
        *place = (code & 0xffff) | symbol.extra << width | (width + symbol.extra_bits) << 24;
    }
    body(bits, &made, literals, length, matches);
    true
}

/// Literals, matches and the end of the block.
#[inline(never)]
fn body(to: &mut Bits<'_>, codes: &Codes, literals: &[u8], length: usize, matches: &[Match]) {
    // In registers while it runs.
    let mut bits = to.lend();
    let mut at = 0;
    for found in matches {
        let end = at + found.literals as usize;
        put_literals(&mut bits, codes, literals, at, end);
        at = end;
        let code = codes.lengths[usize::from(found.length).min(MAX_MATCH)];
        bits.put((code & 0xff_ffff) as Word, code >> 24);
        bits.settle_narrow();
        let symbol = distance_symbol(u32::from(found.distance));
        let code = codes.distances[symbol.symbol];
        let width = code >> 16;
        bits.put(
            ((code & 0xffff) | symbol.extra << width) as Word,
            width + symbol.extra_bits,
        );
        bits.settle();
    }
    put_literals(&mut bits, codes, literals, at, length);
    bits.put_code(codes.literals[END]);
    bits.settle();
    let state = bits.state();
    to.resume(state);
}

/// The literals from `from` to `to`.
#[inline(always)]
fn put_literals(bits: &mut Bits<'_>, codes: &Codes, literals: &[u8], from: usize, to: usize) {
    let code = |byte: u8| codes.literals[usize::from(byte)];
    let (fours, rest) = literals.get(from..to).unwrap_or_default().as_chunks::<4>();
    for four in fours {
        let [a, b, c, d] = four.map(code);
        put_two(bits, a, b);
        bits.settle_narrow();
        put_two(bits, c, d);
        bits.settle();
    }
    // Up to three more, without a branch on how many: codes of no bits for those that are not there.
    let place = to - rest.len();
    let Some([a, b, c, _]) = literals
        .get(place..)
        .and_then(|rest| rest.first_chunk::<4>())
    else {
        return;
    };
    let keep = KEEP[rest.len() & 3];
    put_two(bits, code(*a) & keep[0], code(*b) & keep[1]);
    bits.settle_narrow();
    bits.put_code(code(*c) & keep[2]);
    bits.settle();
}

const KEEP: [[u32; 3]; 4] = [[0, 0, 0], [!0, 0, 0], [!0, !0, 0], [!0, !0, !0]];

/// Two codes as one, which is one shift less that waits for the one before.
#[inline(always)]
fn put_two(bits: &mut Bits<'_>, a: u32, b: u32) {
    if WIDE {
        let both = (a & 0xffff) as Word | ((b & 0xffff) as Word) << (a >> 16);
        bits.put(both, (a >> 16) + (b >> 16));
    } else {
        bits.put_code(a);
        bits.put_code(b);
    }
}
