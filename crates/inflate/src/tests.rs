//! The decoder gives what miniz_oxide's gives, which shares no code with it, and refuses what that refuses.

extern crate std;

use super::*;
use deflate1::{Encoder, bound};
use miniz_oxide::deflate::core::{
    CompressionStrategy, CompressorOxide, TDEFLFlush, compress, create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use std::boxed::Box;
use std::vec;
use std::vec::Vec;

/// Numbers as if by chance (xorshift64*), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|_| (self.next() >> 56) as u8).collect()
    }
}

/// Lines that repeat in part.
fn text(bytes: usize) -> Vec<u8> {
    let lines = (0u32..).flat_map(|n| {
        let line = std::format!("{}: line {} of a text, {}\n", n, n * 7919 % 1000, n % 13);
        line.into_bytes()
    });
    lines.take(bytes).collect()
}

fn window(byte: u8) -> Box<Window> {
    vec![byte; WINDOW_BYTES].try_into().unwrap()
}

/// What comes out when the input is given in pieces, and how many bytes were taken; `None` where it is corrupt or ends early.
fn inflated(stream: &[u8], mut piece: impl FnMut() -> usize) -> Option<(Vec<u8>, usize)> {
    let mut decoder: Box<Decoder> = Box::default();
    let mut window = window(0x5a);
    let (mut at, mut out) = (0, Vec::new());
    loop {
        let end = stream.len().min(at + piece());
        let ran = decoder.run(&stream[at..end], &mut window);
        out.extend_from_slice(ran.output);
        at += ran.taken;
        match ran.stop {
            Stop::Input => {
                assert_eq!(at, end);
                if at == stream.len() {
                    return None;
                }
            }
            Stop::Window | Stop::Block { .. } => {}
            Stop::End => return Some((out, at)),
            Stop::Corrupt => return None,
        }
    }
}

/// The same by miniz_oxide, with room for `room` bytes.
fn others(stream: &[u8], room: usize) -> Option<(Vec<u8>, usize)> {
    let mut out = vec![0; room];
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut core: Box<DecompressorOxide> = Box::default();
    let (status, taken, given) = decompress(&mut core, stream, &mut out, 0, flags);
    out.truncate(given);
    (status == miniz_oxide::inflate::TINFLStatus::Done).then_some((out, taken))
}

fn packed(data: &[u8], level: i32, strategy: CompressionStrategy) -> Vec<u8> {
    let flags = create_comp_flags_from_zip_params(level, -15, strategy as i32);
    let mut out = vec![0; data.len() * 2 + 1000];
    let mut state = CompressorOxide::new(flags);
    let (_, taken, given) = compress(&mut state, data, &mut out, TDEFLFlush::Finish);
    assert_eq!(taken, data.len());
    out.truncate(given);
    out
}

fn samples(random: &mut Random) -> Vec<Vec<u8>> {
    let noise = random.noise(40_000);
    let mut mixed = Vec::new();
    // Matches of every kind of distance and length, the farthest among them.
    while mixed.len() < 300_000 {
        match (random.below(4), mixed.len()) {
            (0, _) => {
                let count = random.below(300);
                mixed.extend(random.noise(count));
            }
            (1, length) => mixed.resize(length + random.below(2000), random.next() as u8),
            (_, 0) => mixed.push(1),
            (_, length) => {
                let reach = 1 << random.below(16);
                let back = 1 + random.below(length.min(reach));
                for _ in 0..random.below(600) {
                    mixed.push(mixed[mixed.len() - back]);
                }
            }
        }
    }
    // Few symbols often and many seldom: codes longer than the tables.
    let steep = (0..200_000).map(|_| {
        (random.next().trailing_zeros() * 7) as u8
            ^ (random.below(200) / 199 * random.below(256)) as u8
    });
    vec![
        Vec::new(),
        vec![7],
        noise,
        text(150_000),
        vec![0; 200_000],
        steep.collect(),
        mixed,
    ]
}

#[test]
fn every_stream_comes_back_whatever_wrote_it_and_however_it_is_cut() {
    let mut random = Random(5);
    let mut encoder = Encoder::new();
    for data in samples(&mut random) {
        let mut streams = Vec::new();
        for level in [0, 1, 2, 6, 9] {
            streams.push(packed(&data, level, CompressionStrategy::Default));
        }
        streams.push(packed(&data, 6, CompressionStrategy::Fixed));
        streams.push(packed(&data, 6, CompressionStrategy::HuffmanOnly));
        streams.push(packed(&data, 6, CompressionStrategy::RLE));
        let mut ours = Vec::new();
        for chunk in data.chunks(131_072) {
            let mut out = vec![0; bound(chunk.len())];
            let count = encoder.encode(chunk, &mut out).unwrap();
            ours.extend_from_slice(&out[..count]);
        }
        ours.extend([3, 0]);
        streams.push(ours);
        for stream in &mut streams {
            let length = stream.len();
            // What follows is not taken.
            stream.extend([0xff; 70]);
            for cut in [1, 7, 64, 4096, usize::MAX / 2] {
                let (out, taken) = inflated(stream, || cut).unwrap();
                assert!(out == data && taken == length, "{cut} of {length}");
            }
            let (out, taken) = inflated(stream, || 1 + random.below(300)).unwrap();
            assert!(out == data && taken == length);
            assert!(inflated(&stream[..length - 1], || 1 << 20).is_none());
        }
    }
}

#[test]
fn what_is_broken_is_refused_or_gives_what_another_decoder_gives() {
    let mut random = Random(6);
    let mut refused = 0;
    for data in [&text(3000)[..], &samples(&mut random)[6][..6000]] {
        for strategy in [CompressionStrategy::Default, CompressionStrategy::Fixed] {
            let stream = packed(data, 6, strategy);
            for _ in 0..1500 {
                let mut broken = stream.clone();
                for _ in 0..1 + random.below(3) {
                    let place = random.below(broken.len()).min(random.below(broken.len()));
                    broken[place] ^= 1 << random.below(8);
                }
                let theirs = others(&broken, 1 << 20);
                let ours = inflated(&broken, || 1 << 20);
                refused += usize::from(ours.is_none());
                // Incomplete codes are refused, as zlib does; there is one who takes some.
                assert!(ours.is_none() || ours == theirs, "{broken:?}");
                assert_eq!(ours, inflated(&broken, || 1));
            }
            for place in 0..60 {
                let noise: Vec<u8> = (0..4000)
                    .map(|at| {
                        if at == 0 {
                            place * 4
                        } else {
                            random.next() as u8
                        }
                    })
                    .collect();
                let ours = inflated(&noise, || 1 << 20);
                assert!(ours.is_none() || ours == others(&noise, 1 << 20));
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn nothing_is_reached_that_stood_before_the_stream() {
    // A fixed block: a literal, then three bytes from two back.
    let mut bits = 0u64;
    let mut count = 0;
    let codes = [
        (1u64, 1),
        (1, 2),
        (0b1000_1100, 8),
        (0b100_0000, 7),
        (0b1_0000, 5),
        (0, 7),
    ];
    for (value, width) in codes {
        bits |= value << count;
        count += width;
    }
    let stream = bits.to_le_bytes();
    assert!(inflated(&stream, || 8).is_none());
    assert!(others(&stream, 100).is_none());
    // From one back it is right.
    let stream = (bits & !(0b1_0000 << 18)).to_le_bytes();
    assert!(inflated(&stream, || 8).is_some_and(|(out, _)| out.len() == 4));
}

/// Bits, the first one lowest.
#[derive(Default)]
struct Writer(Vec<u8>, u32);

impl Writer {
    fn put(&mut self, value: usize, width: u32) {
        for bit in 0..width {
            if self.1 == 0 {
                self.0.push(0);
            }
            *self.0.last_mut().unwrap() |= (value >> bit & 1) as u8 * (1 << self.1);
            self.1 = (self.1 + 1) % 8;
        }
    }

    /// A code, which goes the other way round (RFC 1951, 3.1.1).
    fn put_code(&mut self, code: u32, width: u32) {
        self.put((code.reverse_bits() >> (32 - width)) as usize, width);
    }
}

/// A last block with fixed codes: 258 bytes from so far back (RFC 1951, 3.2.5 and 3.2.6).
fn match_of(distance: usize) -> Vec<u8> {
    let least = |symbol: u32| Entry::distance(symbol as usize).value(0);
    let symbol = (0..30).rev().find(|symbol| least(*symbol) <= distance);
    let symbol = symbol.unwrap();
    let mut block = Writer::default();
    block.put(0b011, 3);
    block.put_code(0b1100_0101, 8);
    block.put_code(symbol, 5);
    block.put(distance - least(symbol), (symbol / 2).saturating_sub(1));
    block.put_code(0, 7);
    block.0
}

#[test]
fn a_match_reaches_over_zeros_that_were_passed_and_no_farther_than_the_stream() {
    let noise = Random(7).noise(1000);
    let mut stored = vec![0, 0xe8, 3, 0x17, 0xfc];
    stored.extend(&noise);
    for (zeros, distance, expected) in [
        (0, 1000, Some(&noise[..258])),
        (0, 1001, None),
        (20_000, 21_000, Some(&noise[..258])),
        (20_000, 21_001, None),
        (20_000, 20_258, Some(&noise[742..])),
        (20_000, 300, Some(&[0; 258][..])),
        (31_768, 32_768, Some(&noise[..258])),
        (200_000, 32_768, Some(&[0; 258])),
        (usize::MAX, 1, Some(&[0; 258])),
    ] {
        let mut decoder: Box<Decoder> = Box::default();
        let mut window = window(0x5a);
        let ran = decoder.run(&stored, &mut window);
        assert!(ran.output == noise);
        assert_eq!(ran.stop, Stop::Block { on_a_byte: true });
        decoder.pass_zeros(zeros, &mut window);
        let stream = match_of(distance);
        let ran = decoder.run(&stream, &mut window);
        match expected {
            Some(bytes) => assert!(ran.output == bytes && ran.stop == Stop::End, "{zeros}"),
            None => assert_eq!(ran.stop, Stop::Corrupt, "{distance}"),
        }
    }
}

/// An incomplete code is taken only where zlib takes it: one code of one bit.
#[test]
fn a_code_is_complete_or_a_single_bit() {
    let mut table = [Entry::NONE; DISTANCE_ENTRIES];
    let mut builds =
        |widths: &[u8]| table::build(&mut table, DISTANCE_BITS, widths, Entry::distance);
    assert!(builds(&[]) && builds(&[0, 0]) && builds(&[0, 1]) && builds(&[1, 1]));
    assert!(builds(&[1, 2, 2]) && builds(&[5; 32]));
    assert!(!builds(&[2]) && !builds(&[1, 2]) && !builds(&[1, 1, 1]) && !builds(&[0, 15, 15]));
    // The most second parts that there can be: 15 bits for all but the shortest codes.
    let mut deep: Vec<u8> = (1..15).collect();
    deep.extend([15, 15]);
    assert!(builds(&deep));
}
