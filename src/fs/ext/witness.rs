//! What any change of the filesystem changes besides its superblock: journal superblock, descriptors, bitmaps.
//!
//! Neighbouring blocks are read together; bitmaps that were never written are left out.

use super::journal;
use super::superblock::Geometry;
use super::window::{BUFFERS_BYTES, Buffers};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::{Walk, Witness};
use crate::units::{Extent, to_u64, to_usize};

/// Adds everything to the witness of `walk`.
pub(super) fn add(geometry: &Geometry, walk: &mut Walk<'_>) -> Result<(), Fault> {
    let device = walk.device;
    let split = walk.scratch.split_at_mut_checked(BUFFERS_BYTES);
    let (buffers, rest) = split.ok_or_else(|| Fault::refused("scratch memory"))?;
    let mut buffers =
        Buffers::split(device, buffers).ok_or_else(|| Fault::refused("scratch memory"))?;
    let mut sum = WitnessSum {
        device,
        memory: rest,
        witness: &mut walk.witness,
    };
    if let Some(journal) = Fault::believed(journal::find(geometry, &mut buffers))?.flatten() {
        sum.add(geometry.extent(journal.superblock, 1))?;
    }
    let mut descriptors = JoinedExtent::default();
    for index in 0..geometry.descriptor_blocks() {
        descriptors.push(
            geometry.extent(geometry.descriptor_block(index), 1),
            &mut sum,
        )?;
    }
    sum.add(descriptors.0)?;
    let (mut block_bitmaps, mut inode_bitmaps) = (JoinedExtent::default(), JoinedExtent::default());
    for group in 0..geometry.groups {
        let descriptor = geometry.descriptor(&mut buffers.descriptors, group);
        let Some(descriptor) = Fault::believed(descriptor)? else {
            continue;
        };
        if !descriptor.block_uninit {
            block_bitmaps.push(geometry.extent(descriptor.block_bitmap, 1), &mut sum)?;
        }
        if !descriptor.inode_uninit {
            inode_bitmaps.push(geometry.extent(descriptor.inode_bitmap, 1), &mut sum)?;
        }
    }
    sum.add(block_bitmaps.0)?;
    sum.add(inode_bitmaps.0)
}

struct WitnessSum<'s> {
    device: &'s dyn ReadAt,
    memory: &'s mut [u8],
    witness: &'s mut Witness,
}

impl WitnessSum<'_> {
    fn add(&mut self, extent: Option<Extent>) -> Result<(), Fault> {
        let Some(extent) = extent else {
            return Ok(());
        };
        let mut offset = extent.offset;
        while offset < extent.end() {
            let length = (extent.end() - offset).min(to_u64(self.memory.len()));
            let piece = self.memory.get_mut(..to_usize(length));
            let piece = piece.filter(|piece| !piece.is_empty());
            let piece = piece.ok_or_else(|| Fault::refused("scratch memory"))?;
            self.device.read_at(offset, piece)?;
            self.witness.add(offset, piece);
            offset += length;
        }
        Ok(())
    }
}

/// Extents that follow each other, joined.
#[derive(Default)]
struct JoinedExtent(Option<Extent>);

impl JoinedExtent {
    fn push(&mut self, next: Option<Extent>, sum: &mut WitnessSum<'_>) -> Result<(), Fault> {
        match (&mut self.0, next) {
            (Some(run), Some(next)) if run.end() == next.offset => {
                run.length_bytes += next.length_bytes;
                Ok(())
            }
            (run, next) => {
                let done = core::mem::replace(run, next);
                sum.add(done)
            }
        }
    }
}
