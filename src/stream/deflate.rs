//! One chunk to deflate blocks that stand alone: no history from the chunk before, byte-aligned at the end, never final.
//!
//! So chunks are encoded on any core in any order and concatenated; the stream is ended once by [`FINAL_BLOCK`].

use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
};

use crate::error::Fault;

/// The empty final block that ends a deflate stream (fixed codes, end of block).
pub const FINAL_BLOCK: [u8; 2] = [0x03, 0x00];

/// Raw deflate: a window of 15 bits, the minus sign means no zlib header.
const WINDOW_BITS: i32 = -15;

/// Room an encoded chunk may need: beyond its raw length, stored blocks cost 5 bytes for every 31 KiB, plus the flush.
pub const fn bound(raw_bytes: usize) -> usize {
    raw_bytes + raw_bytes / 1024 + 64
}

type Compress =
    fn(&mut CompressorOxide, &[u8], &mut [u8], TDEFLFlush) -> (TDEFLStatus, usize, usize);

/// An encoder with its state (about 320 KB), made once for each worker.
pub struct Deflater {
    state: Box<CompressorOxide>,
    /// Called through a pointer that the optimiser cannot see through: inlined here, the inner loops of the encoder would be
    /// compiled for size, as this crate is, and not for speed, as theirs is.
    compress: Compress,
}

impl Deflater {
    /// For `level` 1 to 9. Allocates; [`Self::encode`] does not.
    pub fn new(level: u8) -> Self {
        let flags = create_comp_flags_from_zip_params(i32::from(level), WINDOW_BITS, 0);
        Self {
            state: Box::new(CompressorOxide::new(flags)),
            compress: std::hint::black_box(compress as Compress),
        }
    }

    /// Encodes `input` into `output`, which must have [`bound`] bytes of room; gives the number of bytes written.
    pub fn encode(&mut self, input: &[u8], output: &mut [u8]) -> Result<usize, Fault> {
        self.state.reset();
        let (mut read, mut written) = (0usize, 0usize);
        loop {
            let rest = input.get(read..).unwrap_or_default();
            let room = output.get_mut(written..).unwrap_or_default();
            if room.is_empty() {
                return Err(Fault::refused("deflate output larger than its bound"));
            }
            let room_bytes = room.len();
            let (status, taken, given) =
                (self.compress)(&mut self.state, rest, room, TDEFLFlush::Sync);
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
}
