//! One chunk to deflate blocks that stand alone: no history from the chunk before, byte-aligned at the end, never final.
//!
//! So chunks are encoded on any core in any order and concatenated; the stream is ended once by [`FINAL_BLOCK`].

use std::hint::black_box;

use deflate1::Encoder;
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
};

use crate::error::Fault;

/// The empty final block that ends a deflate stream (fixed codes, end of block).
pub const FINAL_BLOCK: [u8; 2] = [0x03, 0x00];

/// Every chunk ends with this: LEN and its complement of an empty stored block (RFC 1951, 3.2.4). It may stand inside one as well.
pub(crate) const MARKER: [u8; 4] = [0, 0, 0xff, 0xff];

/// Where the first marker ends.
pub(crate) fn behind_marker(bytes: &[u8]) -> Option<usize> {
    // Of four bytes in turn one is of the marker, where there is one.
    let mut at = 3;
    while let Some(byte) = bytes.get(at) {
        if matches!(byte, 0 | 0xff) {
            let around = bytes.get(at - 3..bytes.len().min(at + 4));
            let mut windows = around.unwrap_or_default().windows(MARKER.len());
            if let Some(place) = windows.position(|window| window == MARKER) {
                return Some(at - 3 + place + MARKER.len());
            }
        }
        at += 4;
    }
    None
}

/// Raw deflate: a window of 15 bits, the minus sign means no zlib header.
const WINDOW_BITS: i32 = -15;

/// Room an encoded chunk may need: beyond its raw length, stored blocks cost 5 bytes for every 31 KiB, plus the flush.
pub const fn bound(raw_bytes: usize) -> usize {
    raw_bytes + raw_bytes / 1024 + 64
}
const _: () = assert!(deflate1::bound(1 << 17) <= bound(1 << 17) && deflate1::bound(0) <= bound(0));

type Encode = fn(&mut Encoder, &[u8], &mut [u8]) -> Option<usize>;
type Compress =
    fn(&mut CompressorOxide, &[u8], &mut [u8], TDEFLFlush) -> (TDEFLStatus, usize, usize);

/// An encoder with its state (200 to 320 KB), made once for each worker. It is called through a pointer that the optimiser cannot see through:
/// inlined here, its inner loops would be compiled for size, as this crate is, and not for speed, as theirs are.
pub enum Deflater {
    /// Level 1: our own.
    Fast(Box<Encoder>, Encode),
    /// Levels 2 to 9.
    Dense(Box<CompressorOxide>, Compress),
}

impl Deflater {
    /// For `level` 1 to 9. Allocates; [`Self::encode`] does not.
    pub fn new(level: u8) -> Self {
        if level <= 1 {
            return Self::Fast(Box::default(), black_box(Encoder::encode as Encode));
        }
        let flags = create_comp_flags_from_zip_params(i32::from(level), WINDOW_BITS, 0);
        Self::Dense(
            Box::new(CompressorOxide::new(flags)),
            black_box(compress as Compress),
        )
    }

    /// Encodes `input` into `output`, which must have [`bound`] bytes of room; gives the number of bytes written.
    pub fn encode(&mut self, input: &[u8], output: &mut [u8]) -> Result<usize, Fault> {
        // Made only when it is needed: the details of a fault take a place in a table, and there is one call a chunk.
        let too_small = || Fault::refused("deflate output larger than its bound");
        let (state, compress) = match self {
            Self::Fast(encoder, encode) => {
                return encode(encoder, input, output).ok_or_else(too_small);
            }
            Self::Dense(state, compress) => (state, compress),
        };
        state.reset();
        let (mut read, mut written) = (0usize, 0usize);
        loop {
            let rest = input.get(read..).unwrap_or_default();
            let room = output.get_mut(written..).unwrap_or_default();
            if room.is_empty() {
                return Err(too_small());
            }
            let room_bytes = room.len();
            let (status, taken, given) = compress(state, rest, room, TDEFLFlush::Sync);
            read = read.saturating_add(taken);
            written = written.saturating_add(given);
            match status {
                TDEFLStatus::Okay if read >= input.len() && given < room_bytes => {
                    return Ok(written);
                }
                TDEFLStatus::Okay if taken > 0 || given > 0 => {}
                _ => return Err(Fault::refused("deflate made no progress")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_concatenate_to_one_stream_and_stay_within_the_bound() {
        let mut seed = 7u64;
        let noise: Vec<u8> = (0..131_072)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed.to_le_bytes()[6]
            })
            .collect();
        let text: Vec<u8> = b"freeze, and let it flow. "
            .iter()
            .cycle()
            .take(131_072)
            .copied()
            .collect();
        for level in [1, 2, 6, 9] {
            let mut deflater = Deflater::new(level);
            let mut stream = Vec::new();
            let mut raw = Vec::new();
            for chunk in [
                &noise[..],
                &text[..],
                &noise[..1],
                &text[..70_000],
                &[0; 512],
            ] {
                let mut out = vec![0; bound(chunk.len())];
                let count = deflater.encode(chunk, &mut out).unwrap();
                stream.extend_from_slice(&out[..count]);
                raw.extend_from_slice(chunk);
            }
            stream.extend(FINAL_BLOCK);
            assert_eq!(
                miniz_oxide::inflate::decompress_to_vec(&stream).unwrap(),
                raw
            );
        }
    }

    #[test]
    fn a_marker_is_found_wherever_it_stands() {
        for before in 0..20 {
            for behind in 0..6 {
                let mut bytes = vec![0xff; before];
                bytes.extend(MARKER);
                bytes.extend(vec![0; behind]);
                assert_eq!(behind_marker(&bytes), Some(before + 4));
                assert_eq!(behind_marker(&bytes[..before + 3]), None);
            }
        }
    }

    #[test]
    fn level_1_gives_the_same_bytes_on_every_architecture() {
        let mut deflater = Deflater::new(1);
        let chunk: Vec<u8> = (0..131_072u32)
            .map(|n| match n / 5000 % 3 {
                0 => n.wrapping_mul(0x9e37_79b1).to_be_bytes()[n as usize % 2],
                1 => b"freeze, and let it flow. "[(n.wrapping_mul(n) >> 7) as usize % 25],
                _ => (n % 700 / 3).to_le_bytes()[0],
            })
            .collect();
        let mut out = vec![0; bound(chunk.len())];
        let count = deflater.encode(&chunk, &mut out).unwrap();
        assert_eq!(
            (count, crate::crc::crc32(0, &out[..count])),
            (54_179, 2_586_445_245)
        );
    }
}
