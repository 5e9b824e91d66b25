//! Partition tables: read with either sector size, gaps, and the move to a larger disk.
#![no_main]

mod common;

use floe::device::ReadAt;
use floe::ptable;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(disk) = common::Disk::new(data) else {
        return;
    };
    let size = disk.size_bytes();
    for sector in [512, 4096] {
        if let Ok(Some(table)) = ptable::read(&disk, sector) {
            let covered: u64 = table.gaps(size).iter().map(|gap| gap.length_bytes).sum();
            assert!(covered <= size);
        }
        if let Ok(pieces) = ptable::gpt::relocate(&disk, sector, size.saturating_mul(2)) {
            for piece in pieces {
                assert!(piece.offset + piece.bytes.len() as u64 <= size * 2);
            }
        }
    }
    let _ = ptable::read_image(&disk);
});
