//! What comes out is what went in, whatever it is, and never longer than [`bound`]; the decoder is miniz_oxide's, which shares no code
//! with this crate.

use super::code::{DISTANCES, LITERALS, codes, distance_symbol, length_symbol, widths};
use super::*;
use alloc::vec;
use alloc::vec::Vec;

/// The empty final block that ends a stream (fixed codes).
const FINAL_BLOCK: [u8; 2] = [3, 0];
/// What every chunk ends with.
const MARKER: [u8; 4] = [0, 0, 0xff, 0xff];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        // In 64 bits: the numbers are the same on every machine.
        (self.next() % limit.max(1) as u64) as usize
    }

    fn below_one_of(&mut self, limits: &[usize]) -> usize {
        let limit = limits[self.below(limits.len())];
        self.below(limit)
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Encodes, inflates, compares; gives what it was encoded to.
fn round_trip(encoder: &mut Encoder, chunk: &[u8]) -> Vec<u8> {
    let mut output = vec![0xa5; bound(chunk.len())];
    let count = encoder.encode(chunk, &mut output).unwrap();
    output.truncate(count);
    assert_eq!(output[count - 4..], MARKER, "{} bytes", chunk.len());
    let mut stream = output.clone();
    stream.extend(FINAL_BLOCK);
    let back = miniz_oxide::inflate::decompress_to_vec(&stream);
    assert!(
        back.is_ok_and(|back| back == chunk),
        "{} bytes are not what they were",
        chunk.len()
    );
    output
}

fn text(length: usize) -> Vec<u8> {
    let words = [
        "freeze", "and", "let", "it", "flow", "the", "river", "under", "ice", "thaws",
    ];
    let mut random = Random(5);
    let mut out = Vec::new();
    while out.len() < length {
        out.extend(words[random.below(words.len())].as_bytes());
        out.push(b' ');
    }
    out.truncate(length);
    out
}

/// Pieces of noise, runs, earlier parts again, small alphabets and counters, as a filesystem has them.
fn patchwork(random: &mut Random, length: usize) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    while out.len() < length {
        let piece = 1 + random.below_one_of(&[3, 40, 300, 5000, 40_000]);
        match random.below(6) {
            0 => out.extend(random.noise(piece)),
            1 => out.resize(out.len() + piece, random.next() as u8),
            2 | 3 if !out.is_empty() => {
                let distance = 1 + random.below_one_of(&[4, 300, 33_000, 90_000]) % out.len();
                for _ in 0..piece {
                    out.push(out[out.len() - distance]);
                }
            }
            4 => {
                let symbols = 1 + random.below(90);
                out.extend((0..piece).map(|_| random.below(symbols) as u8));
            }
            _ => out.extend((0..piece as u32 / 4).flat_map(|n| (n * 4096).to_le_bytes())),
        }
    }
    out.truncate(length);
    out
}

/// Lengths at which something begins or ends: a word, a match, a block, what two stored blocks hold.
fn lengths() -> impl Iterator<Item = usize> {
    let near = |middle: usize| middle - 30..middle + 30;
    (0..600)
        .chain(near(STORED_BYTES))
        .chain(near(2 * BLOCK_BYTES))
        .chain([3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 1, 1_000_003])
}

#[test]
fn every_length_around_a_border_comes_back() {
    let mut encoder = Encoder::new();
    let (noise, text) = (Random(1).noise(1_000_003), text(1_000_003));
    let zeros = vec![0; 1_000_003];
    for length in lengths() {
        for content in [&noise, &text, &zeros] {
            round_trip(&mut encoder, &content[..length]);
        }
    }
}

#[test]
fn an_empty_chunk_is_the_marker_alone() {
    assert_eq!(round_trip(&mut Encoder::new(), &[]), [0, 0, 0, 0xff, 0xff]);
    assert_eq!(bound(0), 5);
}

#[test]
fn noise_takes_exactly_the_bound_and_nothing_takes_more() {
    let mut encoder = Encoder::new();
    let noise = Random(2).noise(1_000_003);
    for length in lengths() {
        let count = round_trip(&mut encoder, &noise[..length]).len();
        // Five bytes are the least that may repeat; what is shorter than that is literals in any case.
        assert_eq!(count, bound(length), "{length} bytes of noise");
    }
    assert_eq!(bound(65_535), 65_535 + 10);
    assert_eq!(bound(65_536), 65_536 + 15);
    assert_eq!(bound(131_072), 131_072 + 25);
}

#[test]
fn an_output_smaller_than_the_bound_is_refused_untouched() {
    let chunk = text(1000);
    let mut output = vec![7; bound(1000) - 1];
    assert_eq!(Encoder::new().encode(&chunk, &mut output), None);
    assert!(output.iter().all(|byte| *byte == 7));
    // What lies behind the bound is not ours.
    let mut output = vec![7; bound(1000) + 64];
    Encoder::new().encode(&chunk, &mut output).unwrap();
    assert!(output[bound(1000)..].iter().all(|byte| *byte == 7));
}

#[test]
fn every_distance_is_found_up_to_the_window_and_none_beyond() {
    let mut encoder = Encoder::new();
    let noise = Random(3).noise(33_000);
    for period in (1..300).chain(32_700..32_830) {
        let chunk: Vec<u8> = noise[..period]
            .iter()
            .copied()
            .cycle()
            .take(120_000)
            .collect();
        let count = round_trip(&mut encoder, &chunk).len();
        // In noise not every place is remembered.
        if period <= 32_768 {
            assert!(count < chunk.len() * 3 / 4, "period {period}: {count}");
        } else {
            assert_eq!(count, bound(chunk.len()), "period {period}");
        }
    }
}

#[test]
fn matches_of_every_length_come_back() {
    let mut encoder = Encoder::new();
    let mut random = Random(4);
    let first = random.noise(700);
    for length in 0..600 {
        for after in [0, 1, 30] {
            let mut chunk = first.clone();
            chunk.extend(random.noise(after));
            chunk.extend_from_slice(&first[50..50 + length]);
            chunk.extend(random.noise(after));
            round_trip(&mut encoder, &chunk);
        }
        // And runs, in which a match overlaps itself.
        let mut run = vec![9; length];
        run.extend_from_slice(&first);
        round_trip(&mut encoder, &run);
    }
}

#[test]
fn counts_that_want_longer_codes_than_there_are_come_back() {
    let mut encoder = Encoder::new();
    // Symbol n occurs as often as the nth number of Fibonacci: the deepest tree there is for that many bytes.
    for backwards in [false, true] {
        let mut chunk = Vec::new();
        let (mut a, mut b) = (1usize, 1usize);
        for symbol in 0..23u8 {
            // Spread, so that the bytes are literals and not runs.
            chunk.extend(core::iter::repeat_n(symbol, a));
            (a, b) = (b, a + b);
        }
        let mut random = Random(6);
        for place in (1..chunk.len()).rev() {
            chunk.swap(place, random.below(place + 1));
        }
        if backwards {
            chunk.iter_mut().for_each(|byte| *byte = 255 - *byte);
        }
        round_trip(&mut encoder, &chunk);
    }
}

#[test]
fn patchwork_comes_back() {
    let mut encoder = Encoder::new();
    let mut random = Random(7);
    for _ in 0..150 {
        let length = random.below_one_of(&[300, 70_000, 140_000]);
        let chunk = patchwork(&mut random, length);
        round_trip(&mut encoder, &chunk);
    }
}

#[test]
fn what_comes_out_depends_on_the_chunk_alone() {
    let mut random = Random(8);
    let mut used = Encoder::new();
    for _ in 0..20 {
        let chunk = patchwork(&mut random, 131_072);
        let again = round_trip(&mut used, &chunk);
        assert!(again == round_trip(&mut Encoder::new(), &chunk));
    }
}

#[test]
fn chunks_follow_one_another_as_they_are() {
    let mut encoder = Encoder::new();
    let mut random = Random(9);
    let (mut stream, mut raw) = (Vec::new(), Vec::new());
    for length in [131_072, 0, 1, 70_000, 131_072, 5, 65_536] {
        let chunk = patchwork(&mut random, length);
        stream.extend(round_trip(&mut encoder, &chunk));
        raw.extend(chunk);
    }
    stream.extend(FINAL_BLOCK);
    assert!(miniz_oxide::inflate::decompress_to_vec(&stream).unwrap() == raw);
}

#[test]
fn samples_of_sound_are_not_taken_for_noise() {
    // 16 bits each, the low byte noise, the high byte nearly always the same.
    let mut random = Random(10);
    let chunk: Vec<u8> = (0..65_536)
        .flat_map(|_| [random.next() as u8, 40 + random.below(3) as u8])
        .collect();
    let count = round_trip(&mut Encoder::new(), &chunk).len();
    assert!(count < chunk.len() * 3 / 4, "{count}");
}

#[test]
fn bytes_of_few_symbols_become_as_short_as_their_code() {
    let mut random = Random(11);
    for (symbols, percent) in [(2, 22), (16, 55), (64, 78), (128, 90)] {
        let chunk: Vec<u8> = (0..131_072).map(|_| random.below(symbols) as u8).collect();
        let count = round_trip(&mut Encoder::new(), &chunk).len();
        assert!(count * 100 < chunk.len() * percent, "{symbols}: {count}");
    }
}

#[test]
fn symbols_are_those_of_the_tables_in_the_rfc() {
    // RFC 1951, 3.2.5: first length of each symbol from 257 on, first distance of each symbol from 0 on.
    let lengths = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115,
        131, 163, 195, 227, 258,
    ];
    for length in 3..=258 {
        let last = lengths.iter().rposition(|first| *first <= length).unwrap();
        let symbol = length_symbol(length);
        assert_eq!(symbol.symbol, 257 + last, "length {length}");
        assert_eq!(symbol.extra as usize, length - lengths[last]);
        let bits = match last {
            8..28 => (last - 4) / 4,
            _ => 0,
        };
        assert_eq!(symbol.extra_bits as usize, bits, "length {length}");
    }
    let distances = [
        1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
        2049, 3073, 4097, 6145, 8193, 12_289, 16_385, 24_577,
    ];
    for distance in 1..=32_768 {
        let last = distances
            .iter()
            .rposition(|first| *first <= distance)
            .unwrap();
        let symbol = distance_symbol(distance);
        assert_eq!(symbol.symbol, last, "distance {distance}");
        assert_eq!(symbol.extra, distance - distances[last]);
        assert_eq!(symbol.extra_bits as usize, (last / 2).saturating_sub(1));
    }
}

#[test]
fn codes_are_complete_within_their_limit_and_shorter_for_what_is_more_frequent() {
    let mut random = Random(12);
    for round in 0..2000 {
        let mut counts = [0u32; LITERALS];
        let used = 1 + random.below(286);
        for _ in 0..used {
            let most = 1 << random.below(17);
            counts[random.below(286)] = random.below(most) as u32;
        }
        let limit = [12, 11, 10, 9][round % 4];
        let mut found = [0u8; LITERALS];
        widths(&counts, limit, &mut found);
        let occurring = counts.iter().filter(|count| **count > 0).count();
        assert_eq!(occurring, found.iter().filter(|width| **width > 0).count());
        assert!(found.iter().all(|width| usize::from(*width) <= limit));
        let sum: usize = found
            .iter()
            .filter(|width| **width > 0)
            .map(|width| 1 << (limit - usize::from(*width)))
            .sum();
        match occurring {
            0 => assert_eq!(sum, 0),
            1 => assert_eq!(sum, 1 << (limit - 1)),
            _ => assert_eq!(sum, 1 << limit, "a code that is not complete"),
        }
        for (a, b) in (0..286).zip(1..) {
            if counts[a] > counts[b] && counts[b] > 0 {
                assert!(found[a] <= found[b]);
            }
        }
        // No code begins another.
        let mut made = [0u32; LITERALS];
        codes(&found, &mut made);
        let all: Vec<(u32, u32)> = made
            .iter()
            .filter(|code| **code != 0)
            .map(|code| (code & 0xffff, code >> 16))
            .collect();
        if round % 50 == 0 {
            for (index, (code, width)) in all.iter().enumerate() {
                for (other, longer) in all.iter().skip(index + 1) {
                    let shared = (1 << width.min(longer)) - 1;
                    assert_ne!(code & shared, other & shared);
                }
            }
        }
    }
    let mut single = [0u8; DISTANCES];
    widths(&[0, 0, 7], 11, &mut single);
    assert_eq!(single[..4], [0, 0, 1, 0]);
}

#[test]
fn the_bytes_are_the_same_on_every_machine() {
    let chunk = patchwork(&mut Random(13), 200_000);
    let output = round_trip(&mut Encoder::new(), &chunk);
    // FNV-1a, 64 bits.
    let hash = output.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!((output.len(), hash), (80_625, 12_993_621_750_032_122_303));
}
