//! Fuzzes the btrfs reader: the input patches the tree blocks of a kept image, whose checksums are then made right again, so that
//! the damage reaches what lies behind them. Nothing may panic or run for long, and the superblock must come out used.
//!
//! Input: records of six bytes: block (16 bits; the highest leaves the checksum wrong), place in it (16 bits), value (16 bits).
#![no_main]

use std::sync::LazyLock;

use floe::device::ReadAt;
use floe::error::Fault;
use floe::fs::{self, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::units::BlockSize;

const FIXTURE: &[u8] = include_bytes!("../../data/btrfs/mixed-dup.deflate");
const SIZE_BYTES: u64 = 209_715_200;
const BLOCK: usize = 4096;
const KEEP_SUM: usize = 0x8000;

static BASE: LazyLock<Vec<(u64, Vec<u8>)>> = LazyLock::new(|| {
    let bytes = miniz_oxide::inflate::decompress_to_vec(FIXTURE).expect("fixture");
    bytes
        .chunks_exact(8 + BLOCK)
        .map(|record| {
            let (offset, block) = record.split_first_chunk::<8>().expect("long enough");
            (u64::from_le_bytes(*offset), block.to_vec())
        })
        .collect()
});

struct Sparse(Vec<(u64, Vec<u8>)>);

impl ReadAt for Sparse {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let end = offset + buffer.len() as u64;
        if end > SIZE_BYTES {
            return Err(Fault::short("read past the end"));
        }
        buffer.fill(0);
        let first = self
            .0
            .partition_point(|(at, _)| at + BLOCK as u64 <= offset);
        for (at, block) in self.0[first..].iter().take_while(|(at, _)| *at < end) {
            let from = offset.max(*at);
            let count = (end.min(at + BLOCK as u64) - from) as usize;
            let (to, skip) = ((from - offset) as usize, (from - at) as usize);
            buffer[to..to + count].copy_from_slice(&block[skip..skip + count]);
        }
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut image = BASE.clone();
    for record in data.chunks_exact(6) {
        let number = |at: usize| usize::from(u16::from_le_bytes([record[at], record[at + 1]]));
        let original = &BASE[(number(0) & !KEEP_SUM) % BASE.len()].1;
        let at = number(2) % (BLOCK - 1);
        // All copies alike, so that the second does not make up for the first.
        let copies = image.iter_mut().zip(BASE.iter());
        for ((_, block), _) in copies.filter(|(_, (_, base))| base == original) {
            block[at..at + 2].copy_from_slice(&record[4..]);
            if number(0) & KEEP_SUM == 0 {
                let sum = floe::crc::crc32c(&block[32..]).to_le_bytes();
                block[..4].copy_from_slice(&sum);
            }
        }
    }
    let image = Sparse(image);
    let Ok(Some(identity)) = fs::probe(&image) else {
        return;
    };
    let block = BlockSize::from_bytes(4096).expect("a power of two");
    let mut map = UsedMap::new(SIZE_BYTES, block).expect("small");
    let mut scratch = vec![0xa5; SCRATCH_BYTES];
    for still in [Still::Frozen, Still::Unmounted] {
        let mut walk = Walk::new(&image, &mut scratch);
        if fs::walk(&identity, still, &mut walk, &mut map).is_ok() {
            assert!(map.is_used(0x10000) && map.is_used(0));
        }
        let _ = fs::witness(&identity, &mut Walk::new(&image, &mut scratch));
    }
});
