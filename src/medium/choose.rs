//! Which disk `--media` means: the one of its kind that this system does not run from, or the one that is named.

use std::path::{Path, PathBuf};

use crate::config::pairs::Pair;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::medium::roles::{MediumOptions, Role};
use crate::mounts::{DevId, KernelPartition, Media, System};
use crate::ptable::{Partition, role_of};
use crate::report::Bytes;

const WORDS: [(&str, Media); 5] = [
    ("usb", Media::Usb),
    ("sd", Media::Sd),
    ("mmc", Media::Mmc),
    ("nvme", Media::Nvme),
    ("disk", Media::Disk),
];

/// The disk, which nothing on it is in use for.
pub(super) fn disk(
    system: &System,
    wanted: &MediumOptions,
    sources: &[DevId],
) -> Result<(PathBuf, DevId)> {
    let (path, dev) = find(system, wanted, sources)?;
    let shown = path.display();
    if let Some(own) = system.roots().disk_of(dev) {
        return Err(Error::refused(format_args!(
            "{shown}: is a partition of {}; --media wants the disk",
            system.roots().shown(own).display()
        )));
    }
    if sources
        .iter()
        .any(|source| system.is_written_with(*source, dev))
    {
        return Err(Error::refused(format_args!(
            "refused: {shown} holds what is to be copied"
        )));
    }
    match system.uses(dev).first() {
        Some(found) => Err(Error::refused(format_args!("refused: {found}"))),
        None => Ok((path, dev)),
    }
}

fn find(system: &System, wanted: &MediumOptions, sources: &[DevId]) -> Result<(PathBuf, DevId)> {
    let name = wanted.media.as_deref().unwrap_or_default();
    let Some((word, media)) = WORDS.iter().find(|(word, _)| name == *word) else {
        if !name.as_encoded_bytes().contains(&b'/') && !name.as_encoded_bytes().contains(&b'=') {
            return Err(Error::usage(format_args!(
                "clone: --media: '{}' is neither usb, sd, mmc, nvme, disk nor a device",
                name.display()
            )));
        }
        let named = system
            .target(name)
            .map_err(|e| e.leaving(NOTHING_WRITTEN))?;
        return match named.dev {
            Some(dev) => Ok((named.shown, dev)),
            None => Err(Error::refused(format_args!(
                "{}: is a file; --media wants a disk",
                named.shown.display()
            ))),
        };
    };
    let running = system.root_devices();
    let runs = |disk: DevId| {
        running.contains(&disk)
            || sources
                .iter()
                .any(|source| system.is_written_with(*source, disk))
    };
    let roots = system.roots();
    let mut disks = roots.devices();
    disks.retain(|dev| {
        roots.disk_of(*dev).is_none()
            && roots.media(*dev) != Media::Other
            && roots.size_bytes(*dev).unwrap_or(0) > 0
    });
    let fitting: Vec<DevId> = disks
        .iter()
        .copied()
        .filter(|dev| roots.media(*dev) == *media && !runs(*dev))
        .collect();
    if let [dev] = fitting.as_slice() {
        return Ok((roots.shown(*dev), *dev));
    }
    let words = |dev: &DevId| {
        let word = WORDS.iter().find(|(_, kind)| roots.media(*dev) == *kind);
        format!(
            "{} ({}, {})",
            roots.shown(*dev).display(),
            word.map_or("other", |(word, _)| word),
            Bytes(roots.size_bytes(*dev).unwrap_or(0)),
        )
    };
    let (what, list) = match fitting.is_empty() {
        true => {
            disks.retain(|dev| !runs(*dev));
            ("there is none besides what this system runs from", &disks)
        }
        false => ("there are several", &fitting),
    };
    let list: Vec<String> = list.iter().map(words).collect();
    Err(Error::refused(match list.is_empty() {
        true => format!("--media {word}: {what}, nor another disk; connect one"),
        false => format!("--media {word}: {what}; name one: {}", list.join(", ")),
    }))
}

/// `--media` without `--partition`: the partitions that bear the names of the roles.
pub(crate) fn partitions_named(
    system: &System,
    wanted: &MediumOptions,
    pairs: &[Pair],
) -> Result<Vec<Pair>> {
    let (path, dev) = find(system, wanted, &[])?;
    let shown = path.display();
    let table = system.read_table(dev);
    let known = system.roots().partitions_of(dev);
    let refused =
        |what: std::fmt::Arguments<'_>| Err(Error::refused(format_args!("{shown}: {what}")));
    let damaged = |fault| {
        refused(format_args!(
            "its partition table is damaged: {fault}; repair it, or --partition lays the disk out anew"
        ))
    };
    let table = match table {
        Err(fault) => return damaged(fault),
        Ok(table) => table,
    };
    let mut found = Vec::new();
    for pair in pairs {
        let role = Role::parse(&pair.target)?;
        let parts = table.as_ref().map_or(&[][..], |table| &table.partitions);
        let part = partition_of(&path, role, parts, &known)?;
        let doubt = table.as_ref().and_then(|table| table.doubt);
        let part = match (part, doubt) {
            (Some(part), _) => part,
            (None, Some(fault)) => return damaged(fault),
            (None, None) => {
                return refused(format_args!(
                    "has no partition named {}; --partition lays the disk out anew",
                    role.name()
                ));
            }
        };
        found.push(Pair {
            target: system.roots().shown(part.dev).into_os_string(),
            ..pair.clone()
        });
    }
    Ok(found)
}

/// The partition of a role, as the kernel shows it; `None` where the table has none.
fn partition_of<'k>(
    path: &Path,
    role: Role,
    parts: &[Partition],
    known: &'k [KernelPartition],
) -> Result<Option<&'k KernelPartition>> {
    let shown = path.display();
    // What floe recorded, whatever they are called; otherwise the name.
    let recorded = |part: &&Partition| role_of(part.attributes) == role.number();
    let named = |part: &&Partition| part.name == role.name();
    let mut fitting: Vec<&Partition> = parts.iter().filter(recorded).collect();
    if fitting.is_empty() {
        fitting.extend(parts.iter().filter(named));
    }
    let entry = match fitting.as_slice() {
        [] => return Ok(None),
        [entry] => entry,
        _ => {
            return Err(Error::refused(format_args!(
                "{shown}: has several partitions that are {}; name the device itself as the TARGET",
                role.name()
            )));
        }
    };
    let mut known = known.iter();
    let there = known.find(|part| part.start_bytes == entry.extent.offset);
    // To lay it out anew would erase what is there.
    match there {
        Some(there) => Ok(Some(there)),
        None => Err(Error::refused(format_args!(
            "{shown}: its table has {} as partition {}, but the kernel does not show it: 'partx -a {shown}' or partprobe makes it appear (a loop device: losetup -P)",
            role.name(),
            entry.number
        ))),
    }
}
