//! What deleted files left in their inodes: attributes, and with inline_data what was in them.
//!
//! The kernel clears no more of an inode than its block map when it deletes a file. Blocks of the table without any inode in use are
//! free in the map ([`free_tables`](super::super::inodes::free_tables)); here are the inodes between others that are in use.

use super::super::inode::Inode;
use super::super::inodes::{inode_bits, is_block_used, is_set};
use super::super::superblock::Geometry;
use super::super::window::{Buffers, Request};
use crate::error::Fault;
use crate::overlay::OverlaidPart;
use crate::units::{Extent, to_usize};

/// Has every inode that is not in use be zeros. A group that cannot be believed stays as it is, and so does what names lead to.
pub(super) fn blank(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    layer: &mut OverlaidPart<'_>,
) -> Result<(), Fault> {
    for group in 0..geometry.groups {
        let descriptor = geometry.descriptor(&mut buffers.descriptors, group);
        let Some(descriptor) = Fault::believed(descriptor)?.filter(|group| !group.inode_uninit)
        else {
            continue;
        };
        let bits = inode_bits(geometry, &mut buffers.inode_bitmaps, &descriptor);
        let Some(bits) = Fault::believed(bits)? else {
            continue;
        };
        let Some(table) = geometry.extent(descriptor.inode_table, geometry.table_blocks()) else {
            continue;
        };
        for block in
            (0..geometry.table_blocks()).filter(|block| is_block_used(geometry, bits, *block))
        {
            let first = block * geometry.inodes_per_block();
            let inodes = first..first + geometry.inodes_per_block();
            for index in inodes.filter(|index| !is_set(bits, *index)) {
                let length = u64::from(geometry.inode_bytes);
                let place = Extent::at(table.offset + index * length, length);
                let bytes = buffers.inodes.get(Request {
                    offset: place.offset,
                    length_bytes: to_usize(length),
                    ahead_end: table.end(),
                })?;
                if bytes.iter().any(|byte| *byte != 0) && !Inode::has_names(bytes) {
                    layer.blank(place)?;
                }
            }
        }
    }
    layer.settle();
    Ok(())
}
