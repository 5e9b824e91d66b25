//! `LABEL= UUID= PARTLABEL= PARTUUID=` without udev or blkid: every block device is asked, by sysfs and by its own bytes.
//!
//! A name that two devices bear is refused, not resolved by chance: after a clone, active and standby bear the same ones.

use std::ffi::OsStr;

use crate::device::{Access, Device, ReadAt};
use crate::error::{Error, Fault, Result};
use crate::fs;
use crate::mounts::{DevId, System};

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

impl System {
    /// The one block device that a tag means.
    pub(super) fn find_tag(&self, tag: &Tag) -> Result<DevId> {
        let mut all = self.roots.devices();
        all.retain(|dev| self.roots.size_bytes(*dev).unwrap_or(0) > 0);
        all.retain(|dev| match tag.kind {
            TagKind::PartLabel | TagKind::PartUuid => self.partition_matches(*dev, tag),
            TagKind::Label | TagKind::Uuid => self.content_matches(*dev, tag),
        });
        match all.as_slice() {
            [dev] => Ok(*dev),
            [] => Err(Error::refused(format_args!(
                "{}: no block device here bears it",
                tag.text
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

    /// What the kernel read from the partition table, where it says so (PARTUUID since Linux 6.9).
    fn partition_matches(&self, dev: DevId, tag: &Tag) -> bool {
        let key = match tag.kind {
            TagKind::PartLabel => "PARTNAME",
            _ => "PARTUUID",
        };
        self.roots
            .uevent(dev, key)
            .is_some_and(|found| tag.matches(&found))
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

/// Whether a regular file's content is an image: a known filesystem or container.
pub(super) fn is_image(device: &Device) -> std::result::Result<bool, Fault> {
    if device.size_bytes() == 0 {
        return Ok(false);
    }
    Ok(fs::probe(device)?.is_some())
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
