//! What the unit tests of the readers share: kept images, and a walk from a device to its map.

use super::{Still, UsedMap, Verdict, Walk, probe, walk};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::units::{BlockSize, to_usize};

/// The blocks of a kept image: deflated records of an offset (8 bytes, little endian) and 4096 bytes.
pub(super) fn blocks_of(fixture: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let records = miniz_oxide::inflate::decompress_to_vec(fixture).unwrap();
    let block = |record: &[u8]| {
        let (offset, bytes) = record.split_first_chunk::<8>().unwrap();
        (u64::from_le_bytes(*offset), bytes.to_vec())
    };
    records.chunks_exact(8 + 4096).map(block).collect()
}

/// The kept image itself; zeros where it holds nothing.
pub(super) fn image(fixture: &[u8], size: usize) -> Vec<u8> {
    let mut image = vec![0; size];
    for (offset, bytes) in blocks_of(fixture) {
        let offset = to_usize(offset);
        image[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    image
}

/// What a walk says of a filesystem that is there, with a map of all of the device.
pub(super) fn walked(device: &dyn ReadAt, still: Still) -> Result<(Verdict, UsedMap), Fault> {
    let identity = probe(device)?.unwrap();
    let block = BlockSize::from_bytes(identity.block_bytes.into()).unwrap();
    let mut map = UsedMap::new(device.size_bytes(), block).unwrap();
    let mut scratch = vec![0xee; super::SCRATCH_BYTES];
    let mut memory = Walk::new(device, &mut scratch);
    let verdict = walk(&identity, still, &mut memory, &mut map)?;
    Ok((verdict, map))
}
