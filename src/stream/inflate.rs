//! Inflate (RFC 1951) in fixed memory: miniz_oxide's core over one 64 KiB window, allocated once.
//!
//! The window is the output: each step gives the bytes that were just written there, and they stay valid until the next step.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use crate::error::Fault;
use crate::sys::memory::Pages;

/// Window in bytes: a power of two, twice the 32 KiB that matches may reach back, so that steps are not too small.
const WINDOW_BYTES: usize = 64 * 1024;

/// What one step did.
#[derive(Debug)]
pub struct Step<'a> {
    /// Input bytes taken.
    pub consumed: usize,
    /// Bytes that came out.
    pub output: &'a [u8],
    /// The last block ended: what follows in the input is not deflate any more.
    pub ended: bool,
}

/// One deflate stream being undone.
pub struct Inflate {
    core: Box<DecompressorOxide>,
    window: Pages,
    position: usize,
}

impl Inflate {
    /// Ready for a stream. All memory is allocated here.
    pub fn new() -> Result<Self, Fault> {
        Ok(Self {
            core: Box::default(),
            window: Pages::new(WINDOW_BYTES).map_err(|e| Fault::io("mmap", e))?,
            position: 0,
        })
    }

    /// Forgets the stream, ready for another.
    pub fn reset(&mut self) {
        self.core.init();
        self.window.fill(0);
        self.position = 0;
    }

    /// Takes what it can from `input` (not empty) and gives what came out; a step that neither takes nor gives nor ends does not
    /// happen.
    pub fn step(&mut self, input: &[u8]) -> Result<Step<'_>, Fault> {
        let start = self.position;
        let (status, consumed, produced) = decompress(
            &mut self.core,
            input,
            &mut self.window,
            start,
            inflate_flags::TINFL_FLAG_HAS_MORE_INPUT,
        );
        let ended = match status {
            TINFLStatus::Done => true,
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => false,
            _ => return Err(Fault::corrupt("deflate data")),
        };
        if consumed == 0 && produced == 0 && !ended {
            return Err(Fault::corrupt("deflate data"));
        }
        let end = start.saturating_add(produced);
        self.position = end % WINDOW_BYTES;
        Ok(Step {
            consumed,
            output: self.window.get(start..end).unwrap_or_default(),
            ended,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_back_whatever_the_cuts_of_its_input() {
        let data: Vec<u8> = (0..300_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let packed = miniz_oxide::deflate::compress_to_vec(&data, 3);
        for cut in [1usize, 13, 4096, packed.len()] {
            let mut inflate = Inflate::new().unwrap();
            let mut out = Vec::new();
            let mut rest = packed.as_slice();
            loop {
                let step = inflate.step(&rest[..rest.len().min(cut)]).unwrap();
                out.extend_from_slice(step.output);
                rest = &rest[step.consumed..];
                if step.ended {
                    break;
                }
            }
            assert!(rest.is_empty());
            assert!(out == data);
        }
    }

    #[test]
    fn broken_data_is_corrupt_and_never_loops() {
        let data = vec![5u8; 100_000];
        let packed = miniz_oxide::deflate::compress_to_vec(&data, 6);
        for place in 0..packed.len() {
            let mut broken = packed.clone();
            broken[place] ^= 0x55;
            let mut inflate = Inflate::new().unwrap();
            let mut rest = broken.as_slice();
            while !rest.is_empty() {
                match inflate.step(rest) {
                    Ok(step) if !step.ended => rest = &rest[step.consumed..],
                    _ => break,
                }
            }
        }
    }
}
