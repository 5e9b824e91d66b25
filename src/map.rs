//! The used map: one bit for each granule of a filesystem, all used to begin with.
//!
//! A granule is one block, or a power of two of blocks where one bit a block would take more than [`LIMIT_BYTES`]; marking free
//! rounds inwards and marking used rounds outwards, so that a coarse map errs on the side of reading more. All memory is
//! allocated by [`UsedMap::new`]; nothing here allocates afterwards.

use crate::units::{BlockSize, Extent, round_down, round_up, to_usize};

/// Largest map in bytes before granules grow (contract, promise 8).
pub(crate) const LIMIT_BYTES: u64 = 4 << 20;

/// Which granules of a filesystem are used.
#[derive(Debug)]
pub struct UsedMap {
    /// Bit set = free: fresh zeroed memory then means "all used" and stays untouched by the allocator.
    free: Vec<u64>,
    granule: BlockSize,
    block: BlockSize,
    size_bytes: u64,
}

impl UsedMap {
    /// A map for `size_bytes` in blocks of `block`, everything used. `None` when it cannot be represented.
    pub fn new(size_bytes: u64, block: BlockSize) -> Option<Self> {
        let mut granule = block;
        while size_bytes.div_ceil(granule.bytes64()) > LIMIT_BYTES * 8 {
            granule = BlockSize::from_log2(granule.log2() + 1)?;
        }
        let words = size_bytes.div_ceil(granule.bytes64()).div_ceil(64);
        Some(Self {
            free: vec![0; usize::try_from(words).ok()?],
            granule,
            block,
            size_bytes,
        })
    }

    /// Size covered, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The granule of the map.
    pub fn granule(&self) -> BlockSize {
        self.granule
    }

    /// True when a granule is larger than a block, so that free blocks beside used ones are read.
    pub fn is_coarse(&self) -> bool {
        self.granule != self.block
    }

    /// Everything used.
    pub fn set_all_used(&mut self) {
        self.free.fill(0);
    }

    /// Everything free (readers that enumerate what is used start here).
    pub fn set_all_free(&mut self) {
        self.free.fill(u64::MAX);
    }

    /// Marks free what lies wholly inside `extent`; the part past the end of the filesystem is ignored.
    pub fn set_free(&mut self, extent: Extent) {
        let extent = extent.clipped(self.size_bytes);
        let unit = self.granule.bytes64();
        let Some(start) = round_up(extent.offset, unit) else {
            return;
        };
        // The last granule may be cut by the end of the filesystem: it is whole all the same.
        let end = if extent.end() == self.size_bytes {
            round_up(extent.end(), unit).unwrap_or(extent.end())
        } else {
            round_down(extent.end(), unit)
        };
        if start < end {
            self.fill(
                start >> self.granule.log2(),
                end >> self.granule.log2(),
                true,
            );
        }
    }

    /// Marks used everything that `extent` touches.
    pub fn set_used(&mut self, extent: Extent) {
        let extent = extent.clipped(self.size_bytes);
        if extent.is_empty() {
            return;
        }
        let first = extent.offset >> self.granule.log2();
        let last = extent.end().div_ceil(self.granule.bytes64());
        self.fill(first, last, false);
    }

    /// Marks used what is used of `extent` in `other`; the bytes that it is there.
    pub fn use_as(&mut self, other: &Self, extent: Extent) -> u64 {
        let (mut from, mut bytes) = (extent.offset, 0u64);
        while let Some(used) = other.next_used(from, extent.end()) {
            self.set_used(used);
            bytes = bytes.saturating_add(used.length_bytes);
            from = used.end();
        }
        bytes
    }

    fn fill(&mut self, first: u64, end: u64, free: bool) {
        let mut bit = first;
        while bit < end {
            let low = bit % 64;
            let count = (64 - low).min(end - bit);
            let mask = (u64::MAX >> (64 - count)) << low;
            if let Some(word) = self.free.get_mut(to_usize(bit / 64)) {
                *word = if free { *word | mask } else { *word & !mask };
            }
            bit += count;
        }
    }

    /// True when the byte at `offset` must be read; false past the end.
    pub fn is_used(&self, offset: u64) -> bool {
        offset < self.size_bytes && !self.bit_is_free(offset >> self.granule.log2())
    }

    fn bit_is_free(&self, bit: u64) -> bool {
        self.free
            .get(to_usize(bit / 64))
            .is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    /// First granule at or after `bit` whose state is `free`, or `end`.
    fn find(&self, bit: u64, end: u64, free: bool) -> u64 {
        let mut bit = bit;
        while bit < end {
            let word = self.free.get(to_usize(bit / 64)).copied().unwrap_or(0);
            let word = if free { word } else { !word } >> (bit % 64);
            if word != 0 {
                return (bit + u64::from(word.trailing_zeros())).min(end);
            }
            bit = (bit / 64 + 1) * 64;
        }
        end
    }

    /// The next used extent in `[from, limit)`, clipped to it; `None` when all of it is free.
    pub fn next_used(&self, from: u64, limit: u64) -> Option<Extent> {
        let limit = limit.min(self.size_bytes);
        if from >= limit {
            return None;
        }
        let log2 = self.granule.log2();
        let end_bit = limit.div_ceil(self.granule.bytes64());
        let first = self.find(from >> log2, end_bit, false);
        if first >= end_bit {
            return None;
        }
        let last = self.find(first, end_bit, true);
        let offset = (first << log2).max(from);
        let end = (last << log2).min(limit);
        Some(Extent::between(offset, end))
    }

    /// Used bytes in all.
    pub fn used_bytes(&self) -> u64 {
        let granules = self.size_bytes.div_ceil(self.granule.bytes64());
        let free: u64 = (0u64..)
            .zip(&self.free)
            .map(|(index, word)| {
                let valid = granules.saturating_sub(index * 64).min(64);
                let mask = if valid == 0 {
                    0
                } else {
                    u64::MAX >> (64 - valid)
                };
                u64::from((word & mask).count_ones())
            })
            .sum();
        let bytes = (granules - free) << self.granule.log2();
        // A used last granule may reach past the end.
        let tail = granules
            .checked_sub(1)
            .filter(|bit| !self.bit_is_free(*bit))
            .map_or(0, |_| (granules << self.granule.log2()) - self.size_bytes);
        bytes - tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::to_u64;

    fn extent(offset: u64, length_bytes: u64) -> Extent {
        Extent::at(offset, length_bytes)
    }

    #[test]
    fn marking_free_rounds_inwards_and_used_outwards() {
        let mut map = UsedMap::new(100 * 1024, BlockSize::from_bytes(1024).unwrap()).unwrap();
        assert_eq!(map.used_bytes(), 100 * 1024);
        map.set_free(extent(500, 10 * 1024));
        assert!(map.is_used(0) && !map.is_used(1024) && map.is_used(10 * 1024));
        assert_eq!(map.used_bytes(), 91 * 1024);
        map.set_used(extent(2047, 2));
        assert!(map.is_used(1024) && map.is_used(2048));
        assert_eq!(map.next_used(0, 99_999), Some(extent(0, 3072)));
        assert_eq!(map.next_used(3072, u64::MAX), Some(extent(10_240, 92_160)));
    }

    #[test]
    fn the_last_cut_block_counts_only_what_exists() {
        let mut map = UsedMap::new(10_000, BlockSize::from_bytes(4096).unwrap()).unwrap();
        assert_eq!(map.used_bytes(), 10_000);
        map.set_free(extent(8192, 1808));
        assert_eq!(map.used_bytes(), 8192);
        assert_eq!(map.next_used(8192, u64::MAX), None);
        map.set_all_free();
        assert_eq!(map.used_bytes(), 0);
        map.set_used(extent(9_999, 1));
        assert_eq!(map.used_bytes(), 1808);
        assert_eq!(map.next_used(0, u64::MAX), Some(extent(8192, 1808)));
    }

    #[test]
    fn random_marks_agree_with_a_plain_model() {
        let block = 512u64;
        let blocks = 777u64;
        let mut map = UsedMap::new(blocks * block, BlockSize::from_bytes(block).unwrap()).unwrap();
        let mut model = vec![true; to_usize(blocks)];
        let mut seed = 1u64;
        let mut random = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        for _ in 0..500 {
            let (start, used) = (random(blocks), random(2) == 0);
            let count = random(blocks - start) + 1;
            let run = extent(start * block, count * block);
            if used {
                map.set_used(run);
            } else {
                map.set_free(run);
            }
            model[to_usize(start)..to_usize(start + count)].fill(used);
        }
        let mut seen = vec![false; model.len()];
        let mut from = 0;
        while let Some(run) = map.next_used(from, u64::MAX) {
            seen[to_usize(run.offset / block)..to_usize(run.end() / block)].fill(true);
            from = run.end();
        }
        assert_eq!(seen, model);
        let used = model.iter().filter(|used| **used).count();
        assert_eq!(map.used_bytes(), to_u64(used) * block);
    }

    #[test]
    fn a_huge_filesystem_gets_a_coarse_map_within_the_limit() {
        let map = UsedMap::new(3 << 40, BlockSize::from_bytes(4096).unwrap()).unwrap();
        assert!(map.is_coarse() && to_u64(map.free.len()) * 8 <= LIMIT_BYTES);
    }
}
