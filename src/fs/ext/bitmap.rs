//! Runs of zeros in a bitmap (bit 0 is the lowest of byte 0), word by word.

use crate::units::{to_u64, to_usize};

/// The zero bits of `[0, end)` as runs `(first, end)`, in order. Bits that the bytes do not reach count as ones.
pub(super) struct ZeroRuns<'b> {
    bits: &'b [u8],
    next: u64,
    end: u64,
}

impl<'b> ZeroRuns<'b> {
    /// Over the first `end` bits.
    pub(super) fn new(bits: &'b [u8], end: u64) -> Self {
        Self {
            bits,
            next: 0,
            end: end.min(to_u64(bits.len()).saturating_mul(8)),
        }
    }

    fn word(&self, index: u64) -> u64 {
        let start = to_usize(index.saturating_mul(8));
        let mut word = [0xff; 8];
        if let Some(bytes) = self.bits.get(start..) {
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
        u64::from_le_bytes(word)
    }

    /// First bit at or after `from` that is set (`ones`) or clear, or `end`.
    fn seek(&self, from: u64, ones: bool) -> u64 {
        let mut bit = from;
        while bit < self.end {
            let word = self.word(bit / 64);
            let word = if ones { word } else { !word } >> (bit % 64);
            if word != 0 {
                return bit
                    .saturating_add(u64::from(word.trailing_zeros()))
                    .min(self.end);
            }
            bit = (bit / 64 + 1) * 64;
        }
        self.end
    }
}

impl Iterator for ZeroRuns<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let first = self.seek(self.next, false);
        if first >= self.end {
            return None;
        }
        let end = self.seek(first, true);
        self.next = end;
        Some((first, end))
    }
}

/// Number of zero bits in `[0, end)`.
pub(super) fn zeros(bits: &[u8], end: u64) -> u64 {
    ZeroRuns::new(bits, end)
        .map(|(first, end)| end - first)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_counts_agree_with_single_bits_at_any_end() {
        let mut seed = 9u64;
        let bits: Vec<u8> = (0..100u32)
            .map(|index| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match index % 4 {
                    0 => 0,
                    1 => 0xff,
                    _ => seed.to_le_bytes()[7],
                }
            })
            .collect();
        let is_set = |bit: u64| bits[to_usize(bit / 8)] >> (bit % 8) & 1 != 0;
        for end in [0, 1, 7, 8, 63, 64, 65, 500, 799, 800] {
            let mut model = vec![true; to_usize(end)];
            for (first, last) in ZeroRuns::new(&bits, end) {
                model[to_usize(first)..to_usize(last)].fill(false);
            }
            let wanted: Vec<bool> = (0..end).map(is_set).collect();
            assert_eq!(model, wanted, "end {end}");
            let set = (0..end).filter(|bit| is_set(*bit)).count();
            assert_eq!(zeros(&bits, end), end - to_u64(set));
        }
        assert_eq!(zeros(&bits, 10_000), zeros(&bits, 800));
    }
}
