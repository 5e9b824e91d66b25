//! CRC-32 (gzip, zip) with combination, and CRC-32C (ext4, XFS, btrfs metadata).
//!
//! Chunks are checksummed apart and in any order; [`combine`] joins the results by polynomial arithmetic, and [`zeros`] gives
//! the CRC of a run of zero bytes without touching one. Source of the arithmetic: a CRC is the remainder of the message
//! polynomial modulo P, so appending n bytes multiplies by x^(8n) mod P.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// CRC-32 polynomial (RFC 1952), bit-reflected.
const POLY_CRC32: u32 = 0xedb8_8320;
/// CRC-32C polynomial (RFC 3720), bit-reflected.
const POLY_CRC32C: u32 = 0x82f6_3b78;

/// The CRC-32 of `bytes`, continuing from `crc` (0 to start).
pub fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

/// Product of two bit-reflected polynomials modulo the CRC-32 polynomial.
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for bit in (0..32).rev() {
        if a & (1 << bit) != 0 {
            product ^= b;
        }
        b = if b & 1 != 0 {
            (b >> 1) ^ POLY_CRC32
        } else {
            b >> 1
        };
    }
    product
}

/// x^(8 * `length_bytes`) modulo the CRC-32 polynomial.
fn power(length_bytes: u64) -> u32 {
    // In the reflected form the highest bit is x^0; x^8 is then bit 31 - 8.
    let mut result = 1u32 << 31;
    let mut base = 1u32 << 23;
    let mut exponent = length_bytes;
    while exponent != 0 {
        if exponent & 1 != 0 {
            result = multiply(result, base);
        }
        base = multiply(base, base);
        exponent >>= 1;
    }
    result
}

/// Multiplies CRCs by the power of x of one fixed length: [`combine`] for equal chunks at a fraction of its cost.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    length_bytes: u64,
    power: u32,
}

impl Shift {
    /// For chunks of `length_bytes`.
    pub fn new(length_bytes: u64) -> Self {
        Self {
            length_bytes,
            power: power(length_bytes),
        }
    }

    /// The CRC of A followed by B, where B is `length_bytes` long.
    pub fn combine(&mut self, crc_a: u32, crc_b: u32, length_bytes: u64) -> u32 {
        if self.length_bytes != length_bytes {
            *self = Self::new(length_bytes);
        }
        multiply(self.power, crc_a) ^ crc_b
    }
}

/// The CRC-32 of A followed by B, from the two CRCs and the length of B in bytes.
pub fn combine(crc_a: u32, crc_b: u32, length_b_bytes: u64) -> u32 {
    multiply(power(length_b_bytes), crc_a) ^ crc_b
}

/// The CRC-32 of `length_bytes` zero bytes.
pub fn zeros(length_bytes: u64) -> u32 {
    // The register starts as all ones and is inverted at the end; zero bytes only multiply it.
    !multiply(power(length_bytes), u32::MAX)
}

/// Table `n` has the register after a byte and `n` zero bytes.
fn fill(tables: &Tables, poly: u32) {
    for byte in 0..=u8::MAX {
        let mut value = u32::from(byte);
        for table in tables {
            for _ in 0..8 {
                let carry = if value & 1 != 0 { poly } else { 0 };
                value = (value >> 1) ^ carry;
            }
            table[usize::from(byte)].store(value, Ordering::Relaxed);
        }
    }
}

type Tables = [[AtomicU32; 256]; 8];

/// Made at its first use: 8 KB of zeros until then, which need not lie on a flash. (A `LazyLock` or `OnceLock` would lie there: its
/// state begins as something else than zero, and so all of it is data.)
static TABLE_CRC32C: Tables = [const { [const { AtomicU32::new(0) }; 256] }; 8];
static TABLE_MADE: Once = Once::new();

/// Updates a raw CRC-32C register: no inversion before or after, as ext4 and btrfs chain it (`crc32c_le` of the kernel).
pub fn crc32c_raw(mut crc: u32, bytes: &[u8]) -> u32 {
    TABLE_MADE.call_once(|| fill(&TABLE_CRC32C, POLY_CRC32C));
    let at =
        |table: usize, byte: u8| TABLE_CRC32C[table][usize::from(byte)].load(Ordering::Relaxed);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let [a, b, c, d, e, f, g, h] = *word else {
            continue;
        };
        let [ca, cb, cc, cd] = crc.to_le_bytes();
        crc = at(7, a ^ ca)
            ^ at(6, b ^ cb)
            ^ at(5, c ^ cc)
            ^ at(4, d ^ cd)
            ^ at(3, e)
            ^ at(2, f)
            ^ at(1, g)
            ^ at(0, h);
    }
    for byte in words.remainder() {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ at(0, low ^ byte);
    }
    crc
}

/// The CRC-32C of `bytes` in the usual form (inverted before and after), as XFS stores it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !crc32c_raw(u32::MAX, bytes)
}

/// Updates a raw CRC-16 register (polynomial 0x8005 reflected, no inversion): ext4's group descriptors under `uninit_bg`.
pub fn crc16_raw(mut crc: u16, bytes: &[u8]) -> u16 {
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 {
                (crc >> 1) ^ 0xa001
            } else {
                crc >> 1
            };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_standards_hold() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc16_raw(0, b"123456789"), 0xbb3d);
        assert_eq!(crc16_raw(u16::MAX, b"123456789"), 0x4b37);
    }

    #[test]
    fn combining_and_zero_runs_equal_the_crc_over_the_bytes() {
        let data: Vec<u8> = (0..100_000u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
        for cut in [0usize, 1, 7, 4096, 65_537, 100_000] {
            let (a, b) = data.split_at(cut);
            let length = u64::try_from(b.len()).unwrap();
            let whole = crc32(0, &data);
            assert_eq!(combine(crc32(0, a), crc32(0, b), length), whole);
            assert_eq!(
                Shift::new(length).combine(crc32(0, a), crc32(0, b), length),
                whole
            );
        }
        for length in [0usize, 1, 9, 70_000] {
            let zero = vec![0u8; length];
            assert_eq!(zeros(u64::try_from(length).unwrap()), crc32(0, &zero));
        }
        assert_eq!(
            zeros(1 << 40),
            combine(zeros(1 << 39), zeros(1 << 39), 1 << 39)
        );
    }

    #[test]
    fn crc32c_can_be_chained_at_any_cut() {
        let data: Vec<u8> = (0..1000u32).map(|i| i.to_le_bytes()[0]).collect();
        for cut in 0..20 {
            let (a, b) = data.split_at(cut);
            assert_eq!(!crc32c_raw(crc32c_raw(u32::MAX, a), b), crc32c(&data));
        }
    }
}
