//! The four checksums of btrfs: CRC-32C, xxHash64, SHA-256, BLAKE2b-256, over everything after the 32 bytes that hold them.
//!
//! Sources: RFC 7693 (BLAKE2b), the xxHash specification (XXH64, seed 0). No table is built and nothing is allocated.

use sha2::{Digest, Sha256};

use crate::crc::crc32c;
use crate::layout::le;

/// Room for a checksum at the start of every superblock and tree block, in bytes.
const FIELD_BYTES: usize = 32;

/// A kind of checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum ChecksumType {
    Crc32c,
    Xxhash64,
    Sha256,
    Blake2b,
}

impl ChecksumType {
    /// From `csum_type` of the superblock; `None` for one this reader does not know.
    pub(super) fn from_type(csum_type: u16) -> Option<Self> {
        [Self::Crc32c, Self::Xxhash64, Self::Sha256, Self::Blake2b]
            .get(usize::from(csum_type))
            .copied()
    }

    /// Bytes one takes in the checksum tree.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Crc32c => 4,
            Self::Xxhash64 => 8,
            Self::Sha256 | Self::Blake2b => 32,
        }
    }

    /// Whether `block` (a superblock or tree block) carries its own checksum.
    pub(super) fn holds(self, block: &[u8]) -> bool {
        let Some((field, rest)) = block.split_at_checked(FIELD_BYTES) else {
            return false;
        };
        match self {
            Self::Crc32c => field.starts_with(&crc32c(rest).to_le_bytes()),
            Self::Xxhash64 => field.starts_with(&xxh64(rest).to_le_bytes()),
            Self::Sha256 => field == Sha256::digest(rest).as_slice(),
            Self::Blake2b => field == blake2b_256(rest),
        }
    }
}

const PRIME: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];

fn xx_round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIME[1]))
        .rotate_left(31)
        .wrapping_mul(PRIME[0])
}

/// XXH64 with seed 0.
fn xxh64(bytes: &[u8]) -> u64 {
    let word = |part: &[u8], at| le::<u64>(part, at).unwrap_or(0);
    let mut stripes = bytes.chunks_exact(32);
    let mut hash = if bytes.len() < 32 {
        PRIME[4]
    } else {
        let mut lanes = [
            PRIME[0].wrapping_add(PRIME[1]),
            PRIME[1],
            0,
            0u64.wrapping_sub(PRIME[0]),
        ];
        for stripe in &mut stripes {
            for (lane, part) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = xx_round(*lane, word(part, 0));
            }
        }
        let [a, b, c, d] = lanes;
        let sum = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes.iter().fold(sum, |hash, lane| {
            (hash ^ xx_round(0, *lane))
                .wrapping_mul(PRIME[0])
                .wrapping_add(PRIME[3])
        })
    };
    hash = hash.wrapping_add(crate::units::to_u64(bytes.len()));
    let mut words = stripes.remainder().chunks_exact(8);
    for part in &mut words {
        hash = (hash ^ xx_round(0, word(part, 0)))
            .rotate_left(27)
            .wrapping_mul(PRIME[0])
            .wrapping_add(PRIME[3]);
    }
    let mut rest = words.remainder();
    if let Some((half, tail)) = rest.split_first_chunk::<4>() {
        hash = (hash ^ u64::from(u32::from_le_bytes(*half)).wrapping_mul(PRIME[0]))
            .rotate_left(23)
            .wrapping_mul(PRIME[1])
            .wrapping_add(PRIME[2]);
        rest = tail;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(PRIME[4]))
            .rotate_left(11)
            .wrapping_mul(PRIME[0]);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME[1]);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME[2]);
    hash ^ (hash >> 32)
}

/// The initial vector of BLAKE2b (RFC 7693, 2.6), which is that of SHA-512.
const IV: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

/// Message order of the ten rounds (RFC 7693, 2.7); rounds 10 and 11 repeat the first two.
const SIGMA: [[usize; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// Columns, then diagonals.
const MIX: [[usize; 4]; 8] = [
    [0, 4, 8, 12],
    [1, 5, 9, 13],
    [2, 6, 10, 14],
    [3, 7, 11, 15],
    [0, 5, 10, 15],
    [1, 6, 11, 12],
    [2, 7, 8, 13],
    [3, 4, 9, 14],
];

fn blake2b_compress(state: &mut [u64; 8], block: &[u8], counter: u64, last: bool) {
    let mut message = [0u64; 16];
    for (word, part) in message.iter_mut().zip(block.chunks_exact(8)) {
        *word = le(part, 0).unwrap_or(0);
    }
    let mut v = [0u64; 16];
    let (low, high) = v.split_at_mut(8);
    low.copy_from_slice(state);
    high.copy_from_slice(&IV);
    v[12] ^= counter;
    if last {
        v[14] = !v[14];
    }
    for sigma in SIGMA.iter().chain(SIGMA.iter().take(2)) {
        for ([a, b, c, d], pair) in MIX.into_iter().zip(sigma.chunks_exact(2)) {
            let [x, y] = [message[pair[0]], message[pair[1]]];
            v[a] = v[a].wrapping_add(v[b]).wrapping_add(x);
            v[d] = (v[d] ^ v[a]).rotate_right(32);
            v[c] = v[c].wrapping_add(v[d]);
            v[b] = (v[b] ^ v[c]).rotate_right(24);
            v[a] = v[a].wrapping_add(v[b]).wrapping_add(y);
            v[d] = (v[d] ^ v[a]).rotate_right(16);
            v[c] = v[c].wrapping_add(v[d]);
            v[b] = (v[b] ^ v[c]).rotate_right(63);
        }
    }
    for (index, word) in state.iter_mut().enumerate() {
        *word ^= v[index] ^ v[index + 8];
    }
}

/// BLAKE2b without key, 32 bytes out.
fn blake2b_256(bytes: &[u8]) -> [u8; 32] {
    let mut state = IV;
    state[0] ^= 0x0101_0000 ^ 32;
    // The last block, full or not, is compressed apart with the final flag; empty input is one block of zeros.
    let last_start = bytes.len().saturating_sub(1) / 128 * 128;
    let (head, tail) = bytes.split_at(last_start);
    let mut counter = 0u64;
    for block in head.chunks_exact(128) {
        counter += 128;
        blake2b_compress(&mut state, block, counter, false);
    }
    let mut block = [0u8; 128];
    for (to, from) in block.iter_mut().zip(tail) {
        *to = *from;
    }
    blake2b_compress(&mut state, &block, crate::units::to_u64(bytes.len()), true);
    let mut out = [0u8; 32];
    for (part, word) in out.chunks_exact_mut(8).zip(state) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn published_check_values_hold() {
        assert_eq!(xxh64(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(
            hex(&blake2b_256(b"abc")),
            "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"
        );
        assert_eq!(
            hex(&blake2b_256(b"")),
            "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"
        );
    }
}
