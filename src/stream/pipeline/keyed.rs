//! A keyed hash of a chunk's content, cheap beside everything else that is done to a chunk.
//!
//! Each block of 1 KiB goes through NH, the first layer of UMAC (RFC 4418, section 5.2), here with words of 64 bits: whatever two
//! blocks that differ hold, their sums are the same for one key in 2^64. The sums go through SipHash. The keys are random and of
//! one run, so no content can be made to collide. Never for anything that leaves this process.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Words of a block, and of the key of NH.
const WORDS: usize = 128;

/// The keys.
#[derive(Debug)]
pub(super) struct HashKey {
    nh: [u64; WORDS],
    sip: RandomState,
}

impl HashKey {
    /// Keys of the system's randomness.
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self {
            nh: std::array::from_fn(|word| random.hash_one(word)),
            sip: RandomState::new(),
        }
    }

    /// Its hash. Only hashes of chunks of one length are ever compared.
    pub(super) fn hash(&self, chunk: &[u8]) -> u64 {
        let mut hasher = self.sip.build_hasher();
        let (blocks, rest) = chunk.as_chunks::<{ WORDS * 8 }>();
        for block in blocks {
            hasher.write_u128(self.sum(block));
        }
        hasher.write(rest);
        hasher.finish()
    }

    /// NH: the sum of the products of pairs of words, each word under its key.
    fn sum(&self, block: &[u8; WORDS * 8]) -> u128 {
        let (words, _) = block.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        let (keys, _) = self.nh.as_chunks::<2>();
        let under = |word: &[u8; 8], key: &u64| u64::from_le_bytes(*word).wrapping_add(*key);
        let products = pairs.iter().zip(keys).map(|([one, other], [key, next])| {
            u128::from(under(one, key)).wrapping_mul(u128::from(under(other, next)))
        });
        products.fold(0, u128::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::to_u64;

    #[test]
    fn what_differs_in_any_bit_or_place_has_another_hash() {
        let key = HashKey::new();
        let chunk: Vec<u8> = (0..5000)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let hash = key.hash(&chunk);
        assert_eq!(hash, key.hash(&chunk.clone()));
        assert_ne!(hash, HashKey::new().hash(&chunk), "the key is random");
        for bit in (0..chunk.len() * 8).step_by(7) {
            let mut other = chunk.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash, key.hash(&other), "bit {bit}");
        }
        // Words, pairs and blocks that change places.
        for (one, other) in [(0, 8), (0, 16), (0, 1024), (8, 1024 + 16), (1016, 4096)] {
            let mut swapped = chunk.clone();
            (0..8).for_each(|at| swapped.swap(one + at, other + at));
            assert_ne!(hash, key.hash(&swapped), "{one} and {other}");
        }
        // A word that is minus its key makes a product zero: the other words still count.
        let zeros = vec![0; 4096];
        let mut one = zeros.clone();
        one[4095] = 1;
        assert_ne!(key.hash(&zeros), key.hash(&one));
    }

    #[test]
    fn nh_is_the_sum_of_products_that_its_paper_says() {
        let mut key = HashKey::new();
        key.nh = std::array::from_fn(|word| to_u64(word) + 1);
        let mut block = [0; WORDS * 8];
        block[0] = 2; // 2 + 1
        block[8] = 3; // 3 + 2
        let rest: u128 = (3..128).step_by(2).map(|key| key * (key + 1)).sum();
        assert_eq!(key.sum(&block), 3 * 5 + rest);
    }
}
