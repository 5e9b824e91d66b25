//! `LABEL= UUID= PARTLABEL= PARTUUID=` without udev or blkid: every block device is asked, by sysfs and by its own bytes.
//!
//! A name that two devices bear is refused, not resolved by chance: after a clone, active and standby bear the same ones.

use std::ffi::OsStr;

use crate::device::{Access, Device, ReadAt};
use crate::error::{Error, Fault, FaultKind, Result};
use crate::fs;
use crate::mounts::{DevId, System};
use crate::ptable;

/// Which name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TagKind {
    Label,
    Uuid,
    PartLabel,
    PartUuid,
}

/// A device named by what it holds rather than by its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    kind: TagKind,
    text: String,
    value: String,
}

impl Tag {
    /// `None` for anything that is a path (one that begins like a tag can be written `./LABEL=x`).
    pub(super) fn parse(name: &OsStr) -> Option<Self> {
        let text = name.to_str()?;
        let (key, value) = text.split_once('=')?;
        let kind = match key {
            "LABEL" => TagKind::Label,
            "UUID" => TagKind::Uuid,
            "PARTLABEL" => TagKind::PartLabel,
            "PARTUUID" => TagKind::PartUuid,
            _ => return None,
        };
        Some(Self {
            kind,
            text: text.to_owned(),
            value: value.to_owned(),
        })
    }

    fn matches(&self, found: &str) -> bool {
        match self.kind {
            _ if found.is_empty() => false,
            TagKind::Label | TagKind::PartLabel => found == self.value,
            TagKind::Uuid | TagKind::PartUuid => found.eq_ignore_ascii_case(&self.value),
        }
    }
}

/// Whether a device is named by `LABEL=` and its like.
pub(crate) fn is_tag(name: &OsStr) -> bool {
    Tag::parse(name).is_some()
}

impl System {
    /// The one block device that a tag means.
    pub(super) fn find_tag(&self, tag: &Tag) -> Result<DevId> {
        let found = match tag.kind {
            TagKind::PartLabel | TagKind::PartUuid => self.find_partition(tag)?,
            TagKind::Label | TagKind::Uuid => {
                let mut all = self.sized_devices();
                all.retain(|dev| self.content_matches(*dev, tag));
                all
            }
        };
        match found.as_slice() {
            [dev] => Ok(*dev),
            [] => Err(Error::refused(format_args!(
                "{}: no block device here bears it{}",
                tag.text,
                self.unreadable()
            ))),
            many => {
                let names: Vec<String> = many
                    .iter()
                    .map(|dev| self.roots.shown(*dev).display().to_string())
                    .collect();
                Err(Error::refused(format_args!(
                    "{}: several devices bear it ({}); name the device itself",
                    tag.text,
                    names.join(", ")
                )))
            }
        }
    }

    /// What to add where nothing was found: devices that could not be asked, or have a table that is damaged.
    fn unreadable(&self) -> String {
        let wrong = |dev: DevId| match self.read_table(dev) {
            // A partition that looks like a disk is none.
            Err(fault) if fault.kind() == FaultKind::Io || self.roots.disk_of(dev).is_none() => {
                Some(format!("{}: {fault}", self.roots.shown(dev).display()))
            }
            _ => None,
        };
        let names: Vec<String> = self.sized_devices().into_iter().filter_map(wrong).collect();
        match names.len() {
            0 => String::new(),
            _ => format!(" (could not be read: {})", names.join(", ")),
        }
    }

    fn sized_devices(&self) -> Vec<DevId> {
        let mut all = self.roots.devices();
        all.retain(|dev| self.roots.size_bytes(*dev).unwrap_or(0) > 0);
        all
    }

    /// By what the kernel says of its partitions, and by the tables themselves: a kernel may say less (PARTUUID only since
    /// Linux 6.9) or not have read the table at all.
    fn find_partition(&self, tag: &Tag) -> Result<Vec<DevId>> {
        let mut found = Vec::new();
        let mut unknown = None;
        for disk in self.sized_devices() {
            // A disk that is a path or half of something else shows the same table as that.
            if self.roots.disk_of(disk).is_some() || !self.roots.holders(disk).is_empty() {
                continue;
            }
            let known = self.roots.partitions_of(disk);
            found.extend(
                known
                    .iter()
                    .filter(|part| self.uevent_matches(part.dev, tag))
                    .map(|part| part.dev),
            );
            let table = self.read_table(disk).ok().flatten();
            for entry in table.iter().flat_map(|table| &table.partitions) {
                if !tag.matches(entry_text(entry, tag.kind)) {
                    continue;
                }
                match known
                    .iter()
                    .find(|part| part.start_bytes == entry.extent.offset)
                {
                    Some(part) if !found.contains(&part.dev) => found.push(part.dev),
                    Some(_) => {}
                    None => unknown = Some((disk, entry.number)),
                }
            }
        }
        match unknown {
            Some((disk, number)) if found.is_empty() => {
                let disk = self.roots.shown(disk);
                Err(Error::refused(format_args!(
                    "{}: is partition {number} of {disk}, which the kernel has not read; partx -a {disk} first",
                    tag.text,
                    disk = disk.display()
                )))
            }
            _ => Ok(found),
        }
    }

    fn uevent_matches(&self, dev: DevId, tag: &Tag) -> bool {
        let key = match tag.kind {
            TagKind::PartLabel => "PARTNAME",
            _ => "PARTUUID",
        };
        self.roots
            .uevent(dev, key)
            .is_some_and(|found| tag.matches(&found))
    }

    /// The partition table of a disk, if it has one; a GPT without the MBR in front of it is a damaged one.
    pub fn read_table(
        &self,
        disk: DevId,
    ) -> std::result::Result<Option<ptable::PartitionTable>, Fault> {
        let device = self.roots.open_device(disk, Access::Read)?;
        let sector_bytes = device.sector_bytes();
        match ptable::read(&device, sector_bytes)? {
            None if ptable::gpt::has_header(&device, sector_bytes)? => {
                Err(Fault::corrupt("protective MBR of the GPT").at(0, 512))
            }
            table => Ok(table),
        }
    }

    /// What the table of its disk says about a partition: type, PARTUUID, PARTLABEL. `None` for what is no partition, or one that
    /// the table does not have at this place.
    pub fn partition_entry(&self, dev: DevId) -> Option<ptable::Partition> {
        let disk = self.roots.disk_of(dev)?;
        let known = self.roots.partitions_of(disk);
        let start = known.iter().find(|part| part.dev == dev)?.start_bytes;
        let entries = self.read_table(disk).ok()??.partitions.into_iter();
        entries
            .into_iter()
            .find(|entry| entry.extent.offset == start)
    }

    /// What the filesystem's superblock says. Array members and LUKS containers below an open volume are passed over: a mirror's
    /// halves look like the mirror.
    fn content_matches(&self, dev: DevId, tag: &Tag) -> bool {
        if !self.roots.holders(dev).is_empty() {
            return false;
        }
        let Ok(device) = self.roots.open_device(dev, Access::Read) else {
            return false;
        };
        match fs::probe(&device) {
            Ok(Some(identity)) => match tag.kind {
                TagKind::Label => tag.matches(&identity.label),
                _ => tag.matches(&identity.uuid),
            },
            _ => false,
        }
    }
}

fn entry_text(entry: &ptable::Partition, kind: TagKind) -> &str {
    match kind {
        TagKind::PartLabel => &entry.name,
        _ => &entry.uuid,
    }
}

/// Whether a regular file's content is an image: a known filesystem or container, or a partition table.
pub(super) fn is_image(device: &Device) -> std::result::Result<bool, Fault> {
    if device.size_bytes() == 0 {
        return Ok(false);
    }
    match fs::probe(device) {
        Ok(None) => {}
        Err(fault) if fault.kind() == FaultKind::Io => return Err(fault),
        // A damaged one is an image, too.
        _ => return Ok(true),
    }
    match ptable::read_image(device) {
        // A damaged table is a disk's, too: to be read whole.
        Ok(found) => Ok(found.is_some()),
        Err(fault) if fault.kind() == FaultKind::Io => Err(fault),
        Err(_) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_tags_are_tags() {
        let tag = |text: &str| Tag::parse(OsStr::new(text));
        assert_eq!(tag("PARTLABEL=config_b").unwrap().value, "config_b");
        assert_eq!(tag("LABEL=a=b").unwrap().value, "a=b");
        assert!(tag("./LABEL=x").is_none());
        assert!(tag("/dev/sda1").is_none());
        assert!(tag("label=x").is_none());
    }

    #[test]
    fn uuids_match_in_any_case_and_labels_do_not() {
        let tag = |text: &str| Tag::parse(OsStr::new(text)).unwrap();
        assert!(tag("UUID=ABCD-12ef").matches("abcd-12EF"));
        assert!(!tag("LABEL=Root").matches("root"));
        assert!(!tag("LABEL=").matches(""));
    }
}
