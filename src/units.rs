//! Offsets, lengths and block sizes with checked arithmetic only: numbers from a disk become these types or an error.

/// A run of bytes on a device or in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length_bytes: u64,
}

impl Extent {
    /// For who knows that its end does not overflow.
    pub const fn at(offset: u64, length_bytes: u64) -> Self {
        Self {
            offset,
            length_bytes,
        }
    }

    /// From one offset up to another one; empty where that does not lie behind it.
    pub const fn between(from: u64, to: u64) -> Self {
        Self::at(from, to.saturating_sub(from))
    }

    /// An extent whose end does not overflow.
    pub fn new(offset: u64, length_bytes: u64) -> Option<Self> {
        offset.checked_add(length_bytes)?;
        Some(Self::at(offset, length_bytes))
    }

    /// `count` blocks from block `start`.
    pub fn of_blocks(start: u64, count: u64, block: BlockSize) -> Option<Self> {
        Self::new(block.bytes_of(start)?, block.bytes_of(count)?)
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length_bytes)
    }

    /// True when it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.length_bytes == 0
    }

    /// True when a byte is in both.
    pub fn overlaps(&self, other: Self) -> bool {
        self.offset < other.end()
            && other.offset < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    /// The part inside `[0, limit)`.
    #[must_use]
    pub fn clipped(&self, limit: u64) -> Self {
        let offset = self.offset.min(limit);
        Self {
            offset,
            length_bytes: self.end().min(limit) - offset,
        }
    }
}

/// A block size: a power of two from 512 bytes to 1 GiB (bigalloc clusters included).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// From a size in bytes.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        (bytes.is_power_of_two() && (512..=1 << 30).contains(&bytes)).then_some(Self(bytes))
    }

    /// From the binary logarithm, e.g. 12 for 4096 bytes.
    pub fn from_log2(log2: u32) -> Option<Self> {
        (9..=30).contains(&log2).then(|| Self(1 << log2))
    }

    /// Size in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// Size in bytes as `u64`.
    pub fn bytes64(self) -> u64 {
        u64::from(self.0)
    }

    /// Binary logarithm.
    pub fn log2(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// Bytes of `count` blocks.
    pub fn bytes_of(self, count: u64) -> Option<u64> {
        count.checked_mul(self.bytes64())
    }

    /// Whole blocks in `bytes`.
    pub fn blocks_in(self, bytes: u64) -> u64 {
        bytes >> self.log2()
    }
}

/// `value` rounded down to a multiple of the power of two `unit`.
pub fn round_down(value: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two());
    value & !(unit - 1)
}

/// `value` rounded up to a multiple of the power of two `unit`; `None` on overflow.
pub fn round_up(value: u64, unit: u64) -> Option<u64> {
    Some(round_down(value.checked_add(unit - 1)?, unit))
}

/// A `u64` as a `usize` for indexing memory that is known to be there; saturates, so that a bounds check fails rather than wraps.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A `usize` as `u64`; never loses anything on the targets of floe.
pub fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Sorts in place, equal items in any order: a heap sort, a twentieth of the size of the standard library's sorts, each of which
/// comes anew for every type. The lists here are short, and none is sorted where time counts.
pub fn sort<T>(items: &mut [T], before: impl Fn(&T, &T) -> bool) {
    let mut end = items.len();
    let mut root = end / 2;
    while end > 1 {
        if root > 0 {
            root -= 1; // still building the heap, the last item on top
        } else {
            end -= 1;
            items.swap(0, end);
        }
        let mut at = root;
        loop {
            let mut child = 2 * at + 1;
            if child >= end {
                break;
            }
            if child + 1 < end && before(&items[child], &items[child + 1]) {
                child += 1;
            }
            if !before(&items[at], &items[child]) {
                break;
            }
            items.swap(at, child);
            at = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorting_gives_what_the_standard_library_gives() {
        let mut state = 1u32;
        for length in 0..200u32 {
            let mut items: Vec<u32> = Vec::new();
            for _ in 0..length {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                items.push(state >> 16 & 63);
            }
            let mut expected = items.clone();
            expected.sort();
            sort(&mut items, |a, b| a < b);
            assert_eq!(items, expected);
        }
    }

    #[test]
    fn extents_and_blocks_refuse_overflow() {
        assert!(Extent::new(u64::MAX, 1).is_none());
        let block = BlockSize::from_bytes(4096).unwrap();
        assert_eq!(block.log2(), 12);
        assert!(Extent::of_blocks(u64::MAX / 4096 + 1, 1, block).is_none());
        assert_eq!(Extent::of_blocks(2, 3, block).unwrap().end(), 5 * 4096);
        assert!(BlockSize::from_bytes(3000).is_none());
        assert_eq!(round_up(u64::MAX, 8), None);
    }
}
