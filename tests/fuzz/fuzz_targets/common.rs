//! What the targets share: a disk that is mostly zeros, and one way to run a filesystem reader over it.

#![allow(dead_code)] // not every target uses both

use floe::device::ReadAt;
use floe::error::Fault;
use floe::fs::{self, Kind, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::units::BlockSize;

/// Largest image in bytes that a map is made for.
const MAX_MAP: u64 = 1 << 33;

/// The fuzzer's bytes, scattered: each record is a place (in units of 512 bytes), a length and that many bytes; what no record
/// says is zero. So a small input reaches structures that lie far apart.
pub struct Disk {
    pieces: Vec<(u64, Vec<u8>)>,
    size_bytes: u64,
}

impl Disk {
    /// The first four bytes are the size in units of 4 KiB.
    pub fn new(data: &[u8]) -> Option<Self> {
        let (size, mut rest) = data.split_first_chunk::<4>()?;
        let mut pieces = Vec::new();
        while let Some((head, tail)) = rest.split_first_chunk::<6>() {
            let place = u64::from(u32::from_le_bytes([head[0], head[1], head[2], head[3]])) * 512;
            let length = usize::from(u16::from_le_bytes([head[4], head[5]])).min(tail.len());
            pieces.push((place, tail[..length].to_vec()));
            rest = &tail[length..];
        }
        let size_bytes = u64::from(u32::from_le_bytes(*size)) * 4096;
        Some(Self { pieces, size_bytes })
    }
}

impl ReadAt for Disk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = buffer.len() as u64;
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.size_bytes)
        {
            return Err(Fault::short("read past the end").at(offset, length));
        }
        buffer.fill(0);
        for (place, bytes) in &self.pieces {
            let from = offset.max(*place);
            let to = (offset + length).min(place + bytes.len() as u64);
            if from < to {
                let count = (to - from) as usize;
                let at = (from - offset) as usize;
                let source = (from - place) as usize;
                buffer[at..at + count].copy_from_slice(&bytes[source..source + count]);
            }
        }
        Ok(())
    }
}

/// Probes the disk and, when it is one of `kinds`, walks it in every state; the witness must not change by reading.
pub fn filesystem(data: &[u8], kinds: &[Kind]) {
    let Some(disk) = Disk::new(data) else {
        return;
    };
    let Ok(Some(identity)) = fs::probe(&disk) else {
        return;
    };
    if !kinds.contains(&identity.kind) {
        return;
    }
    let Some(block) = BlockSize::from_bytes(u64::from(identity.block_bytes)) else {
        panic!("{:?} has no block size", identity.kind);
    };
    let size = disk.size_bytes().min(MAX_MAP);
    let mut scratch = vec![0; SCRATCH_BYTES];
    for still in [Still::Unmounted, Still::Frozen, Still::ReadOnly] {
        let Some(mut map) = UsedMap::new(size, block) else {
            return;
        };
        let mut walk = Walk::new(&disk, &mut scratch);
        let verdict = fs::walk(&identity, still, &mut walk, &mut map);
        if let Ok(verdict) = verdict
            && verdict.coverage == fs::Coverage::Whole
        {
            assert!(verdict.doubt.is_some());
        }
        let first = fs::witness(&identity, &mut Walk::new(&disk, &mut scratch)).ok();
        let second = fs::witness(&identity, &mut Walk::new(&disk, &mut scratch)).ok();
        assert_eq!(first, second);
    }
}
