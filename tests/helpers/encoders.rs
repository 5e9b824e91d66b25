//! Measures the encoder of level 1 beside miniz_oxide's: `encoders FILE…`. For `tests/bench/run`.
//!
//! Each file is cut into chunks as floe cuts a source, chunks of zeros left out, which floe does not encode. Three rounds each, in turn; a line
//! on stdout for each file: `raw_bytes our_seconds our_bytes their_seconds their_bytes`, seconds of CPU time, the best of the rounds.

use std::hint::black_box;

use deflate1::{Encoder, bound};
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, compress, create_comp_flags_from_zip_params,
};
use rustix::time::{ClockId, clock_gettime};

const CHUNK_BYTES: usize = 128 * 1024;
const ROUNDS: usize = 3;

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Seconds and bytes of one round.
fn round(chunks: &[&[u8]], encode: &mut dyn FnMut(&[u8]) -> usize) -> (f64, usize) {
    let start = cpu_seconds();
    let bytes = chunks.iter().map(|chunk| encode(chunk)).sum();
    (cpu_seconds() - start, bytes)
}

fn main() {
    let mut ours = Encoder::new();
    let flags = create_comp_flags_from_zip_params(1, -15, 0);
    let mut theirs = Box::new(CompressorOxide::new(flags));
    let compress = black_box(
        compress as fn(&mut CompressorOxide, &[u8], &mut [u8], TDEFLFlush) -> (_, usize, usize),
    );
    let mut out = vec![0; bound(CHUNK_BYTES) + 1024];
    for path in std::env::args_os().skip(1) {
        let data = std::fs::read(&path).expect("a file that can be read");
        let chunks: Vec<&[u8]> = data
            .chunks(CHUNK_BYTES)
            .filter(|chunk| chunk.iter().any(|byte| *byte != 0))
            .collect();
        let raw_bytes: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        let mut best = [(f64::MAX, 0); 2];
        for _ in 0..ROUNDS {
            let found = [
                round(&chunks, &mut |chunk| {
                    ours.encode(chunk, &mut out).expect("room")
                }),
                round(&chunks, &mut |chunk| {
                    theirs.reset();
                    compress(&mut theirs, chunk, &mut out, TDEFLFlush::Sync).2
                }),
            ];
            for (best, found) in best.iter_mut().zip(found) {
                *best = (best.0.min(found.0), found.1);
            }
        }
        let [ours, theirs] = best;
        println!(
            "{raw_bytes} {:.4} {} {:.4} {}",
            ours.0, ours.1, theirs.0, theirs.1
        );
    }
}
