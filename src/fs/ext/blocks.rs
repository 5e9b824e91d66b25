//! The block bitmaps: free clusters become free in the map, one group at a time, each only after its cross-checks.
//!
//! A group is believed when its descriptor and bitmap pass their checksums and the zero bits are exactly the free count.
//! A bitmap that was never written is not read: it is derived from the layout. Afterwards everybody's metadata must be marked.

use super::bitmap::{ZeroRuns, zeros};
use super::groups::{Blocks, Descriptor};
use super::superblock::Geometry;
use super::window::{Buffers, Request};
use crate::error::Fault;
use crate::fs::{UsedMap, Verdict};
use crate::units::{self, to_usize};

/// Which part of the groups' metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metadata {
    /// All that is set aside.
    All,
    /// What was written at some time; not the inode tables, which the pass over all inodes asks for.
    Written,
}

/// Marks free what the bitmaps prove free. The map comes in with everything used.
pub(super) fn apply_bitmaps(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
    verdict: &mut Verdict,
) -> Result<(), Fault> {
    let mut free_clusters = 0u64;
    for group in 0..geometry.groups {
        match apply_group(geometry, buffers, map, group) {
            Ok(free) => free_clusters = free_clusters.saturating_add(free),
            Err(fault) => verdict.doubt(fault.doubted()?.in_unit("group", u64::from(group))),
        }
    }
    let free_blocks = free_clusters << geometry.cluster_log2;
    let stated = geometry.free_blocks.unwrap_or(free_blocks);
    if verdict.doubt.is_none() && free_blocks != stated {
        // The kernel sums the groups into the superblock when it freezes and when it unmounts; so does e2fsck.
        map.set_all_used();
        *verdict = Verdict::whole(Fault::corrupt("sum of free blocks"));
    }
    Ok(())
}

/// The free clusters of a group that passed.
fn apply_group(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
    group: u32,
) -> Result<u64, Fault> {
    let descriptor = geometry.descriptor(&mut buffers.descriptors, group)?;
    let clusters = geometry.group_clusters(group);
    if descriptor.block_uninit {
        let used = derived_used_clusters(geometry, &descriptor, group);
        if clusters.checked_sub(used) != Some(descriptor.free_clusters) {
            return Err(Fault::corrupt("free count of an unwritten bitmap"));
        }
        apply_unwritten(geometry, &descriptor, map, group);
        return Ok(descriptor.free_clusters);
    }
    let Some(place) = geometry.extent(descriptor.block_bitmap, 1) else {
        return Err(Fault::corrupt("place of the block bitmap"));
    };
    let bytes = buffers.block_bitmaps.get(Request {
        offset: place.offset,
        length_bytes: to_usize(geometry.clusters_per_group / 8),
        ahead_end: ahead_end(geometry, place.offset),
    })?;
    let checksum = descriptor.block_bitmap_checksum;
    if !geometry.checksums.bitmap_is_right(bytes, checksum) {
        return Err(Fault::corrupt("block bitmap checksum"));
    }
    if zeros(bytes, clusters) != descriptor.free_clusters {
        return Err(Fault::corrupt("free count of the block bitmap"));
    }
    let group_blocks = geometry.group_blocks(group);
    for (first, end) in ZeroRuns::new(bytes, clusters) {
        let start = first << geometry.cluster_log2;
        let end = (end << geometry.cluster_log2).min(group_blocks.count);
        if let Some(extent) = geometry.extent(group_blocks.start + start, end - start) {
            map.set_free(extent);
        }
    }
    Ok(descriptor.free_clusters)
}

/// Bitmaps of neighbouring groups lie side by side under flex_bg.
pub(super) fn ahead_end(geometry: &Geometry, offset: u64) -> u64 {
    if geometry.is_flex {
        offset.saturating_add(64 * 1024).min(geometry.size_bytes())
    } else {
        offset
    }
}

/// BLOCK_UNINIT: the clusters `[start, end)` of superblock and descriptor copies, and of the group's own bitmaps and table as
/// far as they lie in it (fs/ext4/balloc.c, where the kernel makes such a bitmap on first use).
fn unwritten_runs(geometry: &Geometry, descriptor: &Descriptor, group: u32) -> [(u64, u64); 4] {
    let own = geometry.group_blocks(group);
    let [a, b, c] = descriptor.own_metadata(geometry);
    [geometry.base_metadata(group), a, b, c].map(|run| {
        let start = run.start.clamp(own.start, own.start + own.count) - own.start;
        let end = (run.start + run.count).clamp(own.start, own.start + own.count) - own.start;
        if start == end {
            return (0, 0);
        }
        (
            start >> geometry.cluster_log2,
            end.div_ceil(1 << geometry.cluster_log2),
        )
    })
}

/// Clusters in use in a group whose bitmap was never written.
fn derived_used_clusters(geometry: &Geometry, descriptor: &Descriptor, group: u32) -> u64 {
    let mut runs = unwritten_runs(geometry, descriptor, group);
    units::sort(&mut runs, |a, b| a < b);
    let (mut used, mut counted) = (0, 0);
    for (start, end) in runs {
        let start = start.max(counted);
        if end > start {
            used += end - start;
            counted = end;
        }
    }
    used
}

fn apply_unwritten(geometry: &Geometry, descriptor: &Descriptor, map: &mut UsedMap, group: u32) {
    let own = geometry.group_blocks(group);
    if let Some(extent) = geometry.extent(own.start, own.count) {
        map.set_free(extent);
    }
    for (start, end) in unwritten_runs(geometry, descriptor, group) {
        let start = start << geometry.cluster_log2;
        let end = (end << geometry.cluster_log2).min(own.count);
        if let Some(extent) = geometry.extent(own.start + start, end.saturating_sub(start)) {
            map.set_used(extent);
        }
    }
}

/// Checks that the metadata of every group is used in the map, wherever it lies, and marks it so. A group whose bitmap gave
/// metadata away counts as used wholly.
pub(super) fn mark_metadata(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
    metadata: Metadata,
    verdict: &mut Verdict,
) -> Result<(), Fault> {
    for group in 0..geometry.groups {
        let unit = u64::from(group);
        let mut base = geometry.base_metadata(group);
        if metadata == Metadata::Written {
            base.count -= geometry.spare_descriptors(group).count;
        }
        if !claim(geometry, map, base) {
            let fault = Fault::corrupt("superblock copy marked free");
            verdict.doubt(fault.in_unit("group", unit));
        }
        // One that cannot be believed has been doubted by apply_bitmaps already.
        let descriptor = geometry.descriptor(&mut buffers.descriptors, group);
        let Some(descriptor) = Fault::believed(descriptor)? else {
            continue;
        };
        let own = match metadata {
            Metadata::All => descriptor.own_metadata(geometry),
            Metadata::Written => descriptor.written_metadata(geometry),
        };
        for run in own {
            if !claim(geometry, map, run) {
                let fault = Fault::corrupt("group metadata marked free");
                verdict.doubt(fault.in_unit("group", unit));
            }
        }
    }
    Ok(())
}

/// Frees what was set aside for metadata and never written: bitmaps that a descriptor calls uninitialised, and the room for more
/// descriptors beside their copies. There is in it what was on the disk before the filesystem was made.
pub(super) fn free_unwritten(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
) -> Result<(), Fault> {
    for group in 0..geometry.groups {
        let descriptor = geometry.descriptor(&mut buffers.descriptors, group)?;
        let own = descriptor.own_metadata(geometry);
        let written = descriptor.written_metadata(geometry);
        let bitmaps = own.into_iter().zip(written).take(2);
        let unwritten = bitmaps.filter(|(_, written)| written.count == 0);
        let spare = geometry.spare_descriptors(group);
        for run in unwritten.map(|(run, _)| run).chain([spare]) {
            if let Some(extent) = geometry.extent(run.start, run.count) {
                map.set_free(extent);
            }
        }
    }
    Ok(())
}

/// Marks `run` used; false when part of it was free: then the groups that it touches become used wholly.
fn claim(geometry: &Geometry, map: &mut UsedMap, run: Blocks) -> bool {
    if is_used(geometry, map, run) {
        return true;
    }
    let last = run.start.saturating_add(run.count.saturating_sub(1));
    if let (Some(from), Some(to)) = (geometry.group_of(run.start), geometry.group_of(last)) {
        for group in from..=to {
            let blocks = geometry.group_blocks(group);
            if let Some(extent) = geometry.extent(blocks.start, blocks.count) {
                map.set_used(extent);
            }
        }
    }
    false
}

/// Whether all of `run` is used in the map (an empty run is).
pub(super) fn is_used(geometry: &Geometry, map: &UsedMap, run: Blocks) -> bool {
    if run.count == 0 {
        return true;
    }
    geometry
        .extent(run.start, run.count)
        .is_some_and(|extent| map.next_used(extent.offset, extent.end()) == Some(extent))
}
