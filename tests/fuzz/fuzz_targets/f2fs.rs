//! Fuzzes the f2fs reader: the input damages superblock, checkpoints and SIT of a kept image, whose checksums are then made
//! right again, so that the damage reaches what lies behind them. Nothing may panic or run for long; the superblock stays used.
//!
//! Input: records of five bytes: place among the metadata (24 bits; the highest bit leaves the checksum wrong), how, value.
#![no_main]

use std::cell::RefCell;

use floe::crc::crc32;
use floe::fs::{self, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::units::BlockSize;

const FIXTURE: &[u8] = include_bytes!("../../data/f2fs/small.deflate");
const SIZE_BYTES: usize = 64 << 20;
const PIECE: usize = 4096;
const KEEP_SUM: usize = 1 << 23;
/// Superblocks, checkpoint packs and both copies of the SIT lie before this (`dump.f2fs`: nat_blkaddr 2560).
const METADATA_END: usize = 2560 * PIECE;

struct State {
    bytes: Vec<u8>,
    places: Vec<usize>,
    scratch: Vec<u8>,
}

fn load() -> State {
    let records = miniz_oxide::inflate::decompress_to_vec(FIXTURE).expect("fixture");
    let mut state = State {
        bytes: vec![0; SIZE_BYTES],
        places: Vec::new(),
        scratch: vec![0; SCRATCH_BYTES],
    };
    for record in records.chunks_exact(8 + PIECE) {
        let (offset, bytes) = record.split_first_chunk::<8>().expect("long enough");
        let place = u64::from_le_bytes(*offset) as usize;
        state.bytes[place..place + PIECE].copy_from_slice(bytes);
        if place < METADATA_END {
            state.places.push(place);
        }
    }
    state
}

/// Makes the checksum of a superblock (its last four bytes of 3072 from 1024 on) or a checkpoint (where it says) right.
fn reseal(piece: &mut [u8], place: usize) {
    let checksum = |bytes: &[u8]| (!crc32(!0xf2f5_2010, bytes)).to_le_bytes();
    if place < 2 * PIECE {
        let sum = checksum(&piece[1024..4092]);
        piece[4092..].copy_from_slice(&sum);
    } else if piece[0xa4..0xa8] == 4092u32.to_le_bytes() {
        let sum = checksum(&piece[..4092]);
        piece[4092..].copy_from_slice(&sum);
    }
}

fn walk(bytes: &Vec<u8>, scratch: &mut [u8]) {
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
    for still in [Still::Frozen, Still::Unmounted] {
        map.set_all_used();
        if fs::walk(&identity, still, &mut Walk::new(bytes, scratch), &mut map).is_ok() {
            assert!(map.is_used(identity.superblock.offset), "superblock lost");
        }
    }
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(load());
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    STATE.with_borrow_mut(|state| {
        let mut undo = Vec::new();
        for record in data.chunks_exact(5).take(64) {
            let number =
                usize::from(record[0]) | usize::from(record[1]) << 8 | usize::from(record[2]) << 16;
            let at = (number & !KEEP_SUM) % (state.places.len() * PIECE);
            let place = state.places[at / PIECE];
            let piece = place..place + PIECE;
            undo.push((place, state.bytes[piece.clone()].to_vec()));
            let byte = &mut state.bytes[place + at % PIECE];
            *byte = match record[3] % 3 {
                0 => record[4],
                1 => *byte ^ record[4],
                _ => byte.wrapping_add(record[4]),
            };
            if number & KEEP_SUM == 0 {
                reseal(&mut state.bytes[piece], place);
            }
        }
        walk(&state.bytes, &mut state.scratch);
        for (place, old) in undo.into_iter().rev() {
            state.bytes[place..place + PIECE].copy_from_slice(&old);
        }
    });
});
