//! Fuzzes the encoder of level 1: whatever comes, miniz_oxide and floe's own reader give it back, and it is never longer than its bound.
//!
//! Input: one byte that says how the rest becomes a chunk (as it stands, repeated up to a length, or as a program of literals and
//! copies, which reaches far and long matches with few bytes), two bytes for that.
#![no_main]

use deflate1::{Encoder, bound};
use floe::crc::crc32;
use floe::stream::gunzip::Gunzip;
use floe::stream::input::Input;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

/// Two chunks' worth and a bit: four blocks and more.
const LIMIT: usize = 270_000;

thread_local! {
    /// Kept from input to input, so that what one leaves behind meets the next.
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
}

/// Records of three bytes: a distance and a length, or with a distance of zero a length of noise.
fn program(rest: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut noise = 1u32;
    for record in rest.chunks_exact(3) {
        let distance = usize::from(u16::from_le_bytes([record[0], record[1]]));
        for _ in 0..=usize::from(record[2]) * 2 {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let copied = out
                .len()
                .checked_sub(distance.max(1))
                .map(|place| out[place]);
            out.push(match copied {
                Some(byte) if distance > 0 => byte,
                _ => noise.to_be_bytes()[0],
            });
        }
        if out.len() > LIMIT {
            break;
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    let [mode, a, b, rest @ ..] = data else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([*a, *b])) * 4;
    let mut chunk = match mode % 3 {
        0 => rest.to_vec(),
        1 => rest.iter().copied().cycle().take(length).collect(),
        _ => program(rest),
    };
    chunk.truncate(LIMIT);
    let room = bound(chunk.len());
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let mut out = vec![0; room];
    let count = ENCODER
        .with_borrow_mut(|encoder| encoder.encode(&chunk, &mut out))
        .unwrap();
    assert!(count <= room && out[..count].ends_with(&[0, 0, 0xff, 0xff]));
    assert_eq!(
        Encoder::new().encode(&chunk, &mut vec![0; room]),
        Some(count)
    );
    stream.extend_from_slice(&out[..count]);
    stream.extend([3, 0]);
    assert!(miniz_oxide::inflate::decompress_to_vec(&stream[10..]).unwrap() == chunk);
    stream.extend(crc32(0, &chunk).to_le_bytes());
    stream.extend((chunk.len() as u32).to_le_bytes());
    let mut input = Input::reader(&stream[..]).unwrap();
    let mut gunzip = Gunzip::new().unwrap();
    let mut back = vec![0; chunk.len() + 1];
    let given = gunzip.read(&mut input, &mut back).unwrap();
    assert!(back[..given] == chunk[..]);
});
