//! Why a source is refused, in a line for a person: what it is, why that cannot be imaged, and what to name instead.

use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::error::{Error, Fault};
use crate::mounts::{DevId, Mount, System, Use, Why};

impl System {
    pub(super) fn refuse_busy(&self, dev: DevId, top: DevId, fault: Fault) -> Error {
        if !fault.is_errno(Errno::BUSY) {
            return Error::fault(self.roots.shown(top).display(), fault);
        }
        let uses = self.uses(dev);
        // What is mounted beside it would be frozen, and is in nobody's way.
        let in_the_way = |found: &&Use| !matches!(found.why, Why::Mounted { .. });
        let own = self.uses(top);
        let found = uses.iter().find(in_the_way).or(own.first());
        match found.or(uses.first()) {
            Some(found) => Error::refused(found),
            None => Error::refused(format_args!(
                "{}: is held by another program or by a mount that no mount table shows; close it first",
                self.roots.shown(top).display()
            )),
        }
    }

    pub(super) fn refuse_several(
        &self,
        subject: &dyn Display,
        mount: &Mount,
        all: &[DevId],
    ) -> Error {
        let names: Vec<String> = all
            .iter()
            .map(|dev| self.roots.shown(*dev).display().to_string())
            .collect();
        Error::refused(format_args!(
            "{subject}: {} spans {} devices ({}); floe images filesystems of one device",
            mount.filesystem,
            all.len(),
            names.join(", ")
        ))
    }

    /// The refusal for a filesystem that no block device holds, with what to dump instead.
    pub(super) fn refuse_deviceless(&self, subject: &dyn Display, mount: &Mount) -> Error {
        let source = mount.source.display();
        let name = mount.filesystem.as_str();
        let why = match name {
            "overlay" | "aufs" => return self.refuse_overlay(subject, mount),
            "ubifs" => format!(
                "ubifs lies on raw flash ({source}), which is no block device; save its files with tar, or the UBI volume with mtd-utils"
            ),
            "jffs2" => format!(
                "jffs2 lies on raw flash ({source}), which must not be copied while mounted; save its files with tar, or read it unmounted with nanddump of mtd-utils"
            ),
            "tmpfs" | "ramfs" | "rootfs" | "devtmpfs" => {
                format!("{name} lives in memory; {}", self.candidates())
            }
            "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph" | "virtiofs" | "afs" => format!(
                "{name} belongs to another machine ({source}); {}",
                self.candidates()
            ),
            "btrfs" => format!(
                "the devices of this btrfs ({source}) were not found in sysfs; when one has just been replaced, run it again"
            ),
            _ => format!(
                "{name} has no block device of its own; {}",
                self.candidates()
            ),
        };
        Error::refused(format_args!("{subject}: {why}"))
    }

    /// Names the filesystems that the layers of an overlay lie on.
    fn refuse_overlay(&self, subject: &dyn Display, mount: &Mount) -> Error {
        let mut layers = Vec::new();
        for (what, path) in overlay_layers(mount) {
            let place = self.open_path(&path).ok();
            let found = place.as_ref().and_then(|(fd, _)| self.mount_of(fd));
            let Some((lower, None)) = found else { continue };
            // A layer on another overlay or in memory is no answer.
            if lower.dev.is_anonymous() && lower.filesystem != "btrfs" {
                continue;
            }
            let text = format!(
                "{} (its {what} layer, {})",
                lower.point.display(),
                lower.filesystem
            );
            if !layers
                .iter()
                .any(|known: &String| known.starts_with(&format!("{} (", lower.point.display())))
            {
                layers.push(text);
            }
        }
        let instead = match layers.len() {
            0 => self.candidates(),
            _ => format!("dump {} instead", layers.join(" or ")),
        };
        Error::refused(format_args!(
            "{subject}: {} has no device of its own; {instead}",
            mount.filesystem
        ))
    }

    /// The filesystems that could be dumped, for a refusal.
    fn candidates(&self) -> String {
        let mut seen: Vec<DevId> = Vec::new();
        let mut names = Vec::new();
        for mount in &self.table.mounts {
            let known = seen.contains(&mount.dev) || is_flash(&mount.filesystem);
            let real = !mount.dev.is_anonymous() || mount.filesystem == "btrfs";
            if real && !known && names.len() < 4 {
                seen.push(mount.dev);
                names.push(format!("{} ({})", mount.point.display(), mount.filesystem));
            }
        }
        match names.len() {
            0 => "name a block device".to_owned(),
            _ => format!("what can be dumped here: {}", names.join(", ")),
        }
    }
}

/// Flash filesystems: jffs2 has a device number (of its mtdblock), but no copy of that is good while it is mounted.
pub(super) fn is_flash(filesystem: &str) -> bool {
    matches!(filesystem, "jffs2" | "ubifs")
}

/// The layers of an overlay, upper first.
pub(super) fn overlay_layers(mount: &Mount) -> Vec<(&'static str, PathBuf)> {
    let mut layers: Vec<(&'static str, PathBuf)> = Vec::new();
    layers.extend(
        mount
            .super_value("upperdir")
            .map(|path| ("upper", PathBuf::from(path))),
    );
    for option in ["lowerdir", "lowerdir+", "datadir+"] {
        for value in mount.super_values(option) {
            let parts = split_layers(value.as_bytes());
            layers.extend(parts.into_iter().map(|path| ("lower", path)));
        }
    }
    layers
}

/// `a:b\:c` as `a`, `b:c`; empty parts (`::` before data-only layers) are left out.
fn split_layers(value: &[u8]) -> Vec<PathBuf> {
    let mut parts = vec![Vec::new()];
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => parts.push(Vec::new()),
            b'\\' => parts
                .last_mut()
                .into_iter()
                .for_each(|part| part.extend(bytes.next())),
            _ => parts
                .last_mut()
                .into_iter()
                .for_each(|part| part.push(*byte)),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
        .iter()
        .map(|part| PathBuf::from(OsStr::from_bytes(part)))
        .collect()
}

pub(super) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        _ => "special file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_layers_are_split_at_colons_that_are_not_escaped() {
        let parts = split_layers(b"/a:/b\\:c::/d");
        assert_eq!(parts, ["/a", "/b:c", "/d"].map(PathBuf::from));
    }
}
