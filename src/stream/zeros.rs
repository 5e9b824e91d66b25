//! Zero runs as deflate, written by hand: a run of any length costs a few instructions and a memset.
//!
//! One dynamic block (RFC 1951, 3.2.7) in which "length 258, distance 1" is two zero bits; a run is then a fixed head, zero
//! bytes, and a short tail that ends on a byte boundary. 1 MiB becomes about 1035 bytes.

/// Bits of a deflate stream, least significant first.
#[derive(Clone, Copy, Debug)]
struct Bits {
    bytes: [u8; BITS_BYTES],
    count: usize,
}

const BITS_BYTES: usize = 96;

impl Bits {
    const fn new() -> Self {
        Self {
            bytes: [0; BITS_BYTES],
            count: 0,
        }
    }

    /// Appends the low `width` bits of `value`, lowest first.
    fn push(&mut self, value: u32, width: u32) {
        for bit in 0..width {
            if let Some(byte) = self.bytes.get_mut(self.count / 8)
                && value >> bit & 1 != 0
            {
                *byte |= 1 << (self.count % 8);
            }
            self.count += 1;
        }
    }

    fn is_aligned(&self) -> bool {
        self.count.is_multiple_of(8)
    }

    fn whole_bytes(&self) -> &[u8] {
        self.bytes.get(..self.count / 8).unwrap_or(&[])
    }
}

/// A deflate block sequence (not final, byte-aligned at both ends) that inflates to a run of zero bytes:
/// [`head`](Self::head), then [`zero_bytes`](Self::zero_bytes) bytes of 0x00, then [`tail`](Self::tail).
#[derive(Clone, Copy, Debug)]
pub struct ZeroRun {
    head: Bits,
    zero_bytes: u64,
    tail: Bits,
}

/// Runs shorter than this go through the ordinary encoder (three matches are needed to complete the head's last byte).
pub const MIN_RUN_BYTES: u64 = 1024;

// Canonical codes of the block below: length 258 is `0`, literal 0 is `10`, end of block is `11`; distance 1 is `0`.
// Huffman codes stand with their first bit lowest, so `10` is the number 1.
const LITERAL: (u32, u32) = (0b01, 2);
const END: (u32, u32) = (0b11, 2);
const MATCH_BYTES: u64 = 258;

/// What one zero byte behind the [`head`](ZeroRun::head) inflates to: four matches.
pub const BYTES_A_ZERO: u64 = 4 * MATCH_BYTES;

impl ZeroRun {
    /// Encodes `length_bytes` zeros; `None` below [`MIN_RUN_BYTES`].
    pub fn new(length_bytes: u64) -> Option<Self> {
        if length_bytes < MIN_RUN_BYTES {
            return None;
        }
        let mut head = common_head();
        let matches = (length_bytes - 1) / MATCH_BYTES;
        let rest = u32::try_from((length_bytes - 1) % MATCH_BYTES).unwrap_or(0);
        // A match is two zero bits: first what completes the head's last byte, then whole bytes, then the rest in the tail.
        let mut bits = matches * 2;
        while !head.is_aligned() && bits > 0 {
            head.push(0, 1);
            bits -= 1;
        }
        let mut tail = Bits::new();
        tail.push(0, u32::try_from(bits % 8).unwrap_or(0));
        if rest < 3 {
            for _ in 0..rest {
                tail.push(LITERAL.0, LITERAL.1);
            }
            tail.push(END.0, END.1);
        } else {
            tail.push(END.0, END.1);
            push_fixed_match(&mut tail, rest);
        }
        tail.push(0, 3); // an empty stored block aligns the stream
        tail.count = tail.count.next_multiple_of(8);
        tail.push(0xffff_0000, 32);
        Some(Self {
            head,
            zero_bytes: bits / 8,
            tail,
        })
    }

    /// The bytes before the zero bytes.
    pub fn head(&self) -> &[u8] {
        self.head.whole_bytes()
    }

    /// How many bytes of 0x00 stand between head and tail.
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes
    }

    /// The bytes after the zero bytes.
    pub fn tail(&self) -> &[u8] {
        self.tail.whole_bytes()
    }
}

/// What every run begins with, before the bits of its matches. The last byte is filled with zero bits: matches, too.
fn common_head() -> Bits {
    let mut head = block_header();
    head.push(LITERAL.0, LITERAL.1);
    head
}

/// The whole bytes every run begins with ([`MIN_RUN_BYTES`] is enough to fill the last one).
pub fn head() -> ([u8; BITS_BYTES], usize) {
    let head = common_head();
    (head.bytes, head.count.div_ceil(8))
}

/// The header of the dynamic block, code lengths included.
fn block_header() -> Bits {
    let mut head = Bits::new();
    head.push(0, 1); // BFINAL
    head.push(2, 2); // BTYPE: dynamic
    head.push(286 - 257, 5); // HLIT: symbols up to 285
    head.push(2 - 1, 5); // HDIST: two codes of one bit, so that the code is complete for every decoder
    head.push(18 - 4, 4); // HCLEN: up to the entry for length 1
    // Widths of the code length codes in the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1: one bit for 18, two for 1 and 2.
    for width in [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2] {
        head.push(width, 3);
    }
    // Their codes: 18 is `0`, 1 is `10`, 2 is `11`, first bit lowest.
    let (one, two) = (0b01, 0b11);
    let unused = |bits: &mut Bits, symbols: u32| {
        bits.push(0, 1);
        bits.push(symbols - 11, 7);
    };
    head.push(two, 2); // literal 0
    unused(&mut head, 138);
    unused(&mut head, 117);
    head.push(two, 2); // 256, end of block
    unused(&mut head, 28);
    head.push(one, 2); // 285, length 258
    head.push(one, 2); // distance codes 0 and 1
    head.push(one, 2);
    head
}

/// A block with fixed codes (RFC 1951, 3.2.6) that holds one match of `length` (3 to 257) at distance 1.
fn push_fixed_match(bits: &mut Bits, length: u32) {
    bits.push(0, 1); // BFINAL
    bits.push(1, 2); // BTYPE: fixed
    // Lengths in groups of four symbols; each group has one extra bit more than the one before (table in 3.2.5).
    let value = length - 3;
    let (symbol, extra) = if value < 8 {
        (257 + value, 0)
    } else {
        let extra = 29 - value.leading_zeros();
        (257 + 4 * extra + (value >> extra), extra)
    };
    let (code, width) = if symbol < 280 {
        (symbol - 256, 7)
    } else {
        (symbol - 280 + 0b1100_0000, 8)
    };
    bits.push(code.reverse_bits() >> (32 - width), width);
    bits.push(value & ((1 << extra) - 1), extra);
    bits.push(0, 5); // distance code 0
    bits.push(0, 7); // end of block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::to_usize;

    fn deflated(run: &ZeroRun) -> Vec<u8> {
        let mut out = run.head().to_vec();
        out.resize(out.len() + to_usize(run.zero_bytes()), 0);
        out.extend_from_slice(run.tail());
        out
    }

    #[test]
    fn every_length_inflates_to_exactly_that_many_zeros() {
        let mut lengths: Vec<u64> = (MIN_RUN_BYTES..MIN_RUN_BYTES + 2100).collect();
        lengths.extend([65_536, 131_072, 1 << 20, (1 << 24) + 12_345]);
        for length in lengths {
            let mut stream = deflated(&ZeroRun::new(length).unwrap());
            stream.extend([3, 0]); // final empty block
            let out = miniz_oxide::inflate::decompress_to_vec(&stream).unwrap();
            assert_eq!(out.len(), to_usize(length), "length {length}");
            assert!(out.iter().all(|byte| *byte == 0));
        }
        assert!(ZeroRun::new(MIN_RUN_BYTES - 1).is_none());
        let (bytes, count) = head();
        for length in [MIN_RUN_BYTES, 65_536] {
            assert_eq!(&bytes[..count], ZeroRun::new(length).unwrap().head());
        }
    }

    #[test]
    fn long_runs_reach_a_thousand_to_one() {
        for length in [1u64 << 20, 1 << 24, 1 << 30] {
            let run = ZeroRun::new(length).unwrap();
            let size = run.head().len() + run.tail().len() + to_usize(run.zero_bytes());
            assert!(
                length / u64::try_from(size).unwrap() >= 1000,
                "{length}: {size}"
            );
        }
    }
}
