//! What was written, as checksums in fixed memory, so that it can be read back and compared without the stream.
//!
//! One CRC-32 for each unit of the image (1 MiB to begin with). When the table is full, neighbours are combined and the unit
//! doubles, so that 32 KiB of memory do for any size, and a difference is still named by its place. A CRC of its own for each
//! unit finds what a failing card or cable does; it is no defence against somebody who wants to deceive. Zero runs cost nothing.

use crate::crc;
use crate::units::{Extent, to_u64, to_usize};

/// Entries of the table.
const ENTRIES: usize = 8192;

/// Unit at the beginning, in bytes.
const FIRST_UNIT_BYTES: u64 = 1 << 20;

/// Checksums of a stream of bytes.
pub(crate) struct Digest {
    unit_bytes: u64,
    sums: Vec<u32>,
    /// The unit that is not full yet.
    crc: u32,
    length_bytes: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl Digest {
    /// Of nothing yet. All memory is allocated here.
    pub(crate) fn new() -> Self {
        Self {
            unit_bytes: FIRST_UNIT_BYTES,
            sums: Vec::with_capacity(ENTRIES),
            crc: 0,
            length_bytes: 0,
        }
    }

    /// Adds bytes.
    pub(crate) fn data(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = to_usize(self.unit_bytes - self.length_bytes);
            let (part, after) = rest.split_at(space.min(rest.len()));
            self.crc = crc::crc32(self.crc, part);
            self.grow(to_u64(part.len()));
            rest = after;
        }
    }

    /// Adds zero bytes.
    pub(crate) fn zeros(&mut self, count: u64) {
        let mut rest = count;
        while rest > 0 {
            let part = rest.min(self.unit_bytes - self.length_bytes);
            self.crc = crc::combine(self.crc, crc::zeros(part), part);
            self.grow(part);
            rest -= part;
        }
    }

    fn grow(&mut self, count: u64) {
        self.length_bytes = self.length_bytes.saturating_add(count);
        if self.length_bytes < self.unit_bytes {
            return;
        }
        self.sums.push(self.crc);
        self.crc = 0;
        self.length_bytes = 0;
        if self.sums.len() < ENTRIES {
            return;
        }
        let unit = self.unit_bytes;
        for index in 0..ENTRIES / 2 {
            let at = |place: usize| self.sums.get(place).copied().unwrap_or(0);
            let both = crc::combine(at(2 * index), at(2 * index + 1), unit);
            if let Some(entry) = self.sums.get_mut(index) {
                *entry = both;
            }
        }
        self.sums.truncate(ENTRIES / 2);
        self.unit_bytes = unit.saturating_mul(2);
    }

    /// The first place where two streams of the same length differ; both must have got the same bytes to be equal.
    pub(crate) fn difference(&self, other: &Self) -> Option<Extent> {
        let unit = |index: usize, length| {
            Extent::at(to_u64(index).saturating_mul(self.unit_bytes), length)
        };
        let mut pairs = self.sums.iter().zip(&other.sums);
        if let Some(index) = pairs.position(|(a, b)| a != b) {
            return Some(unit(index, self.unit_bytes));
        }
        let same = self.sums.len() == other.sums.len()
            && self.crc == other.crc
            && self.length_bytes == other.length_bytes;
        (!same).then(|| unit(self.sums.len().min(other.sums.len()), self.unit_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_is_found_in_its_unit_and_zeros_count_as_bytes() {
        let mut data = vec![0u8; 5_000_000];
        data[1_000_000] = 3;
        data[4_000_000] = 4;
        let digest = |data: &[u8], cut: usize| {
            let mut digest = Digest::new();
            for part in data.chunks(cut) {
                if part.iter().all(|byte| *byte == 0) {
                    digest.zeros(to_u64(part.len()));
                } else {
                    digest.data(part);
                }
            }
            digest
        };
        let whole = digest(&data, data.len());
        assert_eq!(whole.difference(&digest(&data, 65_536)), None);
        let mut other = data.clone();
        other[2_500_000] = 1;
        let place = whole.difference(&digest(&other, 4096)).unwrap();
        assert_eq!((place.offset, place.length_bytes), (2 << 20, 1 << 20));
        assert!(whole.difference(&digest(&data[..4_999_999], 100)).is_some());
    }

    #[test]
    fn the_table_stays_small_for_any_length() {
        let run = |mark: u8| {
            let mut digest = Digest::new();
            digest.zeros(20 << 30);
            digest.data(&[mark; 100]);
            digest.zeros((100 << 30) + 5);
            digest
        };
        assert!(run(1).sums.len() < ENTRIES);
        assert_eq!(run(1).difference(&run(1)), None);
        let place = run(1).difference(&run(2)).unwrap();
        assert_eq!(place.offset, 20 << 30);
    }
}
