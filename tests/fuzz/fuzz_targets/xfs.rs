//! Fuzzes the XFS reader: the input damages the metadata of kept images, whose checksums are then made right again where there
//! are any, so that the damage reaches what lies behind them. Nothing may panic or run for long; the superblock stays used.
//!
//! Input: one byte (bit 0: version 4 or 5, bit 1: unmounted or frozen); then records of five bytes: place among the metadata
//! (24 bits; the highest bit leaves the checksum wrong), how, value.
#![no_main]

use std::cell::RefCell;

use floe::crc::crc32c;
use floe::fs::{self, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::units::BlockSize;

const FIXTURES: [(&[u8], usize); 2] = [
    (include_bytes!("../../data/xfs/v4.deflate"), 16 << 20),
    (include_bytes!("../../data/xfs/v5.deflate"), 48 << 20),
];
const PIECE: usize = 4096;
const KEEP_SUM: usize = 1 << 23;

struct Image {
    bytes: Vec<u8>,
    /// Where the kept pieces lie.
    places: Vec<usize>,
}

fn load((fixture, size): &(&[u8], usize)) -> Image {
    let records = miniz_oxide::inflate::decompress_to_vec(fixture).expect("fixture");
    let mut image = Image {
        bytes: vec![0; *size],
        places: Vec::new(),
    };
    for record in records.chunks_exact(8 + PIECE) {
        let (offset, bytes) = record.split_first_chunk::<8>().expect("long enough");
        let place = u64::from_le_bytes(*offset) as usize;
        image.bytes[place..place + PIECE].copy_from_slice(bytes);
        image.places.push(place);
    }
    image
}

/// Makes the checksums of what version 5 structures stand in a piece right: sectors, blocks of 1 KiB, inodes of 512 bytes.
fn reseal(piece: &mut [u8]) {
    for start in (0..PIECE).step_by(512) {
        let rest = &piece[start..];
        let (length, crc) = match &rest[..4] {
            b"XFSB" => (512, 0xe0),
            b"XAGF" => (512, 0xd8),
            b"XAGI" => (512, 0x138),
            b"XAFL" => (512, 0x20),
            b"AB3B" | b"AB3C" | b"IAB3" => (1024, 52),
            b"BMA3" => (1024, 64),
            [b'I', b'N', ..] => (512, 100),
            _ => continue,
        };
        if rest.len() < length {
            continue;
        }
        let bytes = &mut piece[start..start + length];
        bytes[crc..crc + 4].fill(0);
        let sum = crc32c(bytes).to_le_bytes();
        bytes[crc..crc + 4].copy_from_slice(&sum);
    }
}

fn walk(bytes: &Vec<u8>, still: Still, scratch: &mut [u8]) {
    let Ok(Some(identity)) = fs::probe(bytes) else {
        return;
    };
    let Some(block) = BlockSize::from_bytes(identity.block_bytes.into()) else {
        return;
    };
    if identity.size_bytes > 1 << 40 {
        return;
    }
    let mut map = UsedMap::new(identity.size_bytes, block).expect("a map");
    let _ = fs::witness(&identity, &mut Walk::new(bytes, scratch));
    if fs::walk(&identity, still, &mut Walk::new(bytes, scratch), &mut map).is_ok() {
        assert!(map.is_used(identity.superblock.offset), "superblock lost");
    }
}

thread_local! {
    static STATE: RefCell<(Vec<Image>, Vec<u8>)> =
        RefCell::new((FIXTURES.iter().map(load).collect(), vec![0; SCRATCH_BYTES]));
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, records)) = data.split_first() else {
        return;
    };
    STATE.with_borrow_mut(|(images, scratch)| {
        let v5 = choice & 1 != 0;
        let image = &mut images[usize::from(v5)];
        let mut undo = Vec::new();
        for record in records.chunks_exact(5).take(64) {
            let number =
                usize::from(record[0]) | usize::from(record[1]) << 8 | usize::from(record[2]) << 16;
            let at = (number & !KEEP_SUM) % (image.places.len() * PIECE);
            let piece = image.places[at / PIECE];
            let piece = piece..piece + PIECE;
            undo.push((piece.start, image.bytes[piece.clone()].to_vec()));
            let byte = &mut image.bytes[piece.start + at % PIECE];
            *byte = match record[3] % 3 {
                0 => record[4],
                1 => *byte ^ record[4],
                _ => byte.wrapping_add(record[4]),
            };
            if v5 && number & KEEP_SUM == 0 {
                reseal(&mut image.bytes[piece]);
            }
        }
        let still = if choice & 2 != 0 {
            Still::Unmounted
        } else {
            Still::Frozen
        };
        walk(&image.bytes, still, scratch);
        for (place, old) in undo.into_iter().rev() {
            image.bytes[place..place + PIECE].copy_from_slice(&old);
        }
    });
});
