//! Fuzzes the gzip reader: whatever comes, it ends, in an error or with what another inflater gives, at any size of the pieces.
//!
//! Input: one byte for the piece's size, one that says whether the rest is a stream as it stands or the deflate data of a member
//! whose header and trailer are made right (so that damage behind the checks is reached, too).
#![no_main]

use floe::crc::crc32;
use floe::stream::gunzip::Gunzip;
use floe::stream::input::Input;
use libfuzzer_sys::fuzz_target;

/// Output is cut here: 1032:1 makes much of little.
const LIMIT: usize = 4 << 20;

fn gunzip(bytes: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut input = Input::reader(bytes).ok()?;
    let mut gunzip = Gunzip::new().ok()?;
    let mut buffer = vec![0; piece];
    let mut out = Vec::new();
    while out.len() < LIMIT {
        let count = gunzip.read(&mut input, &mut buffer).ok()?;
        out.extend_from_slice(&buffer[..count]);
        if count < piece {
            return Some(out);
        }
    }
    None
}

fuzz_target!(|data: &[u8]| {
    let [size, mode, rest @ ..] = data else {
        return;
    };
    let piece = 1 + usize::from(*size) * 257;
    if mode % 2 == 0 {
        let one = gunzip(rest, piece);
        assert!(one == gunzip(rest, 65_536) || one.is_none());
        return;
    }
    let Ok(plain) = miniz_oxide::inflate::decompress_to_vec_with_limit(rest, LIMIT / 2) else {
        return;
    };
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    stream.extend_from_slice(rest);
    stream.extend(crc32(0, &plain).to_le_bytes());
    stream.extend((plain.len() as u32).to_le_bytes());
    // Bytes that the other inflater left over stand where the trailer should, unless there are none.
    if let Some(out) = gunzip(&stream, piece) {
        assert!(out == plain);
    }
});
