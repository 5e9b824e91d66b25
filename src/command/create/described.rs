//! What a snapshot says of itself before anything is read: the machine, and each image.

use crate::command::create::Options;
use crate::mounts::System;
use crate::snapshot::machine::{self, Machine};
use crate::snapshot::{ImageEntry, Snapshot, recorded};
use crate::take::source::Prepared;

pub(super) fn describe(
    system: &System,
    options: &Options,
    sources: &[Prepared],
    disk: Option<&recorded::RecordedDisk>,
) -> Snapshot {
    let host = Machine::look();
    let (golden, empty) = options.taking.wanted.metadata();
    Snapshot {
        golden,
        empty,
        floe: env!("CARGO_PKG_VERSION").into(),
        time_s: machine::now_s(),
        host: host.name,
        architecture: host.architecture,
        board: host.board,
        kernel: host.kernel,
        os: host.os,
        comment: options.comment.clone(),
        factory: options.factory,
        rescue: options.rescue,
        disk: disk.map(|disk| disk.facts.clone()),
        images: options
            .pairs
            .iter()
            .zip(sources)
            .map(|((name, _), prepared)| image(system, name, prepared, disk))
            .collect(),
    }
}

fn image(
    system: &System,
    name: &str,
    prepared: &Prepared,
    disk: Option<&recorded::RecordedDisk>,
) -> ImageEntry {
    let identity = prepared.identity.as_ref();
    let partition = prepared.dev.and_then(|dev| system.partition_entry(dev));
    ImageEntry {
        name: name.into(),
        source: prepared.name.clone(),
        device: prepared.shown.clone(),
        filesystem: prepared.filesystem.into(),
        uuid: identity.map_or_else(String::new, |found| found.uuid.as_str().into()),
        label: identity.map_or_else(String::new, |found| found.label.as_str().into()),
        partition_type: partition
            .as_ref()
            .map_or_else(String::new, |p| p.kind.to_string()),
        partition_label: partition
            .as_ref()
            .map_or_else(String::new, |p| p.name.as_str().into()),
        partition_uuid: partition
            .as_ref()
            .map_or_else(String::new, |p| p.uuid.as_str().into()),
        // Only a partition of the disk that is taken along can be found again by its number.
        partition_number: match (&partition, disk) {
            (Some(found), Some(disk)) if disk.holds(system, prepared.dev) => found.number.into(),
            (Some(found), None) => found.number.into(),
            _ => 0,
        },
        size_bytes: prepared.size_bytes,
        used_bytes: prepared.used_bytes(),
    }
}
