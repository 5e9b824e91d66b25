//! Which disk `--media` means: the one of its kind that this system does not run from, or the one that is named.

use std::path::PathBuf;

use crate::config::pairs::Pair;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::medium::roles::{Role, Wanted};
use crate::mounts::{DevId, Media, System};
use crate::report::Bytes;

const WORDS: [(&str, Media); 5] = [
    ("usb", Media::Usb),
    ("sd", Media::Sd),
    ("mmc", Media::Mmc),
    ("nvme", Media::Nvme),
    ("disk", Media::Disk),
];

/// The disk, which nothing on it is in use for.
pub fn disk(system: &System, wanted: &Wanted, sources: &[DevId]) -> Result<(PathBuf, DevId)> {
    let (path, dev) = find(system, wanted, sources)?;
    let shown = path.display();
    if let Some(own) = system.roots().disk_of(dev) {
        return Err(Error::refused(format_args!(
            "{shown}: is a partition of {}; --media wants the disk",
            system.roots().shown(own).display()
        )));
    }
    if sources.iter().any(|source| system.overlaps(dev, *source)) {
        return Err(Error::refused(format_args!(
            "refused: {shown} holds what is to be copied"
        )));
    }
    match system.uses(dev).first() {
        Some(found) => Err(Error::refused(format_args!("refused: {found}"))),
        None => Ok((path, dev)),
    }
}

fn find(system: &System, wanted: &Wanted, sources: &[DevId]) -> Result<(PathBuf, DevId)> {
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
        running.contains(&disk) || sources.iter().any(|source| system.overlaps(disk, *source))
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
            "{} ({}, {}{})",
            roots.shown(*dev).display(),
            word.map_or("other", |(word, _)| word),
            Bytes(roots.size_bytes(*dev).unwrap_or(0)),
            if runs(*dev) {
                ", this system runs from it"
            } else {
                ""
            }
        )
    };
    let (what, list) = match fitting.is_empty() {
        true => ("there is none besides what this system runs from", &disks),
        false => ("there are several", &fitting),
    };
    let list: Vec<String> = list.iter().map(words).collect();
    Err(Error::refused(format_args!(
        "--media {word}: {what}; name one: {}",
        if list.is_empty() {
            "no disk is here".into()
        } else {
            list.join(", ")
        }
    )))
}

/// `--media` without `--partition`: the partitions that bear the names of the roles.
pub fn partitions_named(system: &System, wanted: &Wanted, pairs: &[Pair]) -> Result<Vec<Pair>> {
    let (path, dev) = find(system, wanted, &[])?;
    let shown = path.display();
    let table = system.read_table(dev);
    let known = system.roots().partitions_of(dev);
    let mut found = Vec::new();
    for pair in pairs {
        let role = Role::parse(&pair.target)?;
        let all = table.iter().flat_map(|table| &table.partitions);
        let mut named = all.filter(|part| part.name == role.name());
        let entry = named.next();
        if named.next().is_some() {
            return Err(Error::refused(format_args!(
                "{shown}: has several partitions named {}; name the device itself as the TARGET",
                role.name()
            )));
        }
        let part = entry.and_then(|entry| {
            known
                .iter()
                .find(|part| part.start_bytes == entry.extent.offset)
        });
        let part = part.ok_or_else(|| {
            Error::refused(format_args!(
                "{shown}: has no partition named {}; --partition lays the disk out anew",
                role.name()
            ))
        })?;
        found.push(Pair {
            target: system.roots().shown(part.dev).into_os_string(),
            ..pair.clone()
        });
    }
    Ok(found)
}
