//! A whole disk, segment by segment: its table and gaps verbatim, each partition through its own node and by its own map.

use crate::content::too_large;
use crate::device::{Access, Range};
use crate::error::{Error, Result};
use crate::fs::{Kind, Still};
use crate::mounts::{DevId, KernelPartition, Stacked, System};
use crate::ptable;
use crate::take::source::{
    OpenedDevice, Prepared, Reading, Segment, SwapContent, Wishes, is_looped, not_taken_back,
    probe, reading, swap_files_on, used_behind,
};
use crate::take::still::{hold_stacked, refuse_swap, still_of};
use crate::units::{self, Extent};

/// A disk with a partition table: gaps verbatim, each partition through its own node and by its own map.
pub(super) fn disk(
    system: &System,
    table: &ptable::PartitionTable,
    dev: Option<DevId>,
    stacked: Option<Stacked>,
    wishes: Wishes,
    prepared: &mut Prepared,
) -> Result<()> {
    prepared.filesystem = table.scheme.name();
    note_boot_areas(system, dev, prepared);
    let in_use = stacked.is_some();
    let whole_still = match stacked {
        None => Still::Unmounted,
        Some(mut stacked) => {
            // Of swap partitions only the header is read: they may be in use. Swap on something built on a partition may not.
            let partitions = dev.map_or_else(Vec::new, |dev| system.roots().partitions_of(dev));
            stacked
                .swaps
                .retain(|swap| !partitions.iter().any(|p| p.dev == *swap));
            refuse_swap(&stacked, wishes, prepared)?;
            hold_stacked(stacked, wishes, prepared)
        }
    };
    prepared.still = whole_still;
    if let Some(doubt) = table.doubt {
        prepared.notes.push(format!(
            "{}: partition table: {doubt}; the disk is read whole",
            prepared.shown
        ));
    }
    if table.doubt.is_some() || wishes.whole {
        prepared
            .segments
            .push(gap(0, prepared.size_bytes, whole_still));
        return Ok(());
    }
    let mut segments: Vec<(u64, Segment)> = table
        .gaps(prepared.size_bytes)
        .into_iter()
        .map(|extent| {
            (
                extent.offset,
                gap(extent.offset, extent.length_bytes, whole_still),
            )
        })
        .collect();
    for partition in &table.partitions {
        let extent = partition.extent.clipped(prepared.size_bytes);
        if !extent.is_empty() {
            segments.push((
                extent.offset,
                partition_piece(system, extent, dev, in_use, wishes, prepared)?,
            ));
        }
    }
    units::sort(&mut segments, |(a, _), (b, _)| a < b);
    prepared.segments = segments.into_iter().map(|(_, segment)| segment).collect();
    Ok(())
}

/// A range of the disk itself, read verbatim.
fn gap(offset: u64, length_bytes: u64, still: Still) -> Segment {
    Segment {
        device: 0,
        offset,
        length_bytes,
        still,
        reading: Reading::Gap,
        swap: SwapContent::default(),
        behind: Vec::new(),
        below_md: false,
    }
}

fn partition_piece(
    system: &System,
    extent: Extent,
    dev: Option<DevId>,
    in_use: bool,
    wishes: Wishes,
    prepared: &mut Prepared,
) -> Result<Segment> {
    let node = node_at(system, extent, dev);
    let (device, offset) = match &node {
        None => (0, extent.offset),
        Some(node) => (open_node(system, node.dev, prepared)?, 0),
    };
    let opened = prepared.devices.get(device).or(prepared.devices.first());
    let Some(opened) = opened else {
        return Err(Error::failed("floe: internal: no device"));
    };
    let view = Range {
        device: &opened.device,
        extent: Extent { offset, ..extent },
    };
    let identity = probe(&view).map_err(|fault| Error::fault(&opened.shown, fault))?;
    let wrong = identity.as_ref().filter(|_| !wishes.whole);
    if let Some(what) = wrong.and_then(|found| too_large(found, extent)) {
        return Err(not_taken_back(&prepared.name, &what));
    }
    let mounted = node.as_ref().and_then(|node| {
        prepared
            .mounted
            .iter()
            .find(|m| m.devices.contains(&node.dev))
    });
    let idle = match &node {
        Some(node) => system.roots().holders(node.dev).is_empty(),
        None => !in_use,
    };
    let is_swap = identity.as_ref().is_some_and(|i| i.kind == Kind::Swap);
    let numbers = dev.iter().chain(node.as_ref().map(|node| &node.dev));
    let is_written = is_looped(system, numbers);
    // A map is believed of what we freeze ourselves, and of what nobody uses (our exclusive hold keeps it so). What is used in
    // another way, or has no node that could tell, is read whole. Of swap only the header is read, which no swapping changes.
    let (still, believed) = match mounted {
        _ if is_swap => (Still::Unmounted, true),
        // Of what is never written, what lies behind it may be, and is frozen with the rest.
        Some(_) if is_written && prepared.still == Still::Frozen => (Still::Frozen, true),
        Some(mounted) => (still_of(mounted, wishes), true),
        None if idle => (Still::Unmounted, true),
        None => (prepared.still, false),
    };
    let mut swap = SwapContent::default();
    if let (Some(node), Some(identity)) = (&node, &identity) {
        swap = swap_files_on(system, node.dev, identity)?;
    }
    let reading = reading(identity, wishes.whole || !believed);
    let behind = used_behind(&view, &reading, is_written)
        .map_err(|fault| Error::fault(&opened.shown, fault))?;
    Ok(Segment {
        device,
        offset,
        length_bytes: extent.length_bytes,
        still,
        reading,
        swap,
        behind,
        below_md: node.is_some_and(|node| system.is_below_md(node.dev)),
    })
}

/// The kernel's node for a partition, if it has one at exactly this place; the disk's own node stands for it otherwise.
fn node_at(system: &System, extent: Extent, disk: Option<DevId>) -> Option<KernelPartition> {
    let partitions = system.roots().partitions_of(disk?);
    partitions
        .into_iter()
        .find(|p| p.start_bytes == extent.offset && p.size_bytes == extent.length_bytes)
}

/// The number that the node's device has among the prepared ones.
fn open_node(system: &System, node: DevId, prepared: &mut Prepared) -> Result<usize> {
    let shown = system.roots().shown(node).display().to_string();
    let device = system.roots().open_device(node, Access::Read);
    let device = device.map_err(|fault| Error::fault(&shown, fault))?;
    prepared.devices.push(OpenedDevice { device, shown });
    Ok(prepared.devices.len() - 1)
}

/// eMMC chips have boot partitions beside the disk: not part of its image, and floe says so.
fn note_boot_areas(system: &System, dev: Option<DevId>, prepared: &mut Prepared) {
    let Some(dev) = dev else {
        return;
    };
    let name = system.roots().kernel_name(dev);
    let boot = system
        .roots()
        .sys
        .join("class/block")
        .join(format!("{name}boot0"));
    if boot.exists() {
        prepared.notes.push(format!(
            "{}: its boot partitions {name}boot0 and {name}boot1 are not part of the image; dump them on their own if the board boots from them",
            prepared.shown
        ));
    }
}
