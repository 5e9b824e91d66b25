//! Block devices as sysfs shows them: names, disks and partitions, what lies above (holders) and below (slaves, loop files).
//!
//! Devices are their numbers here; names are for messages only. Nothing is written, no udev database is read.

use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::device::limited;
use crate::mounts::table::decimal;
use crate::mounts::{DevId, Roots};
use crate::sys::dm::{DmTarget, dm_targets};
use crate::units;

/// Longest attribute that is read, in bytes: sysfs gives at most one page, of 64 KiB at most.
const ATTRIBUTE_BYTES_MAX: u64 = 64 << 10;

/// Most devices that one question follows: no real stack comes near.
pub(super) const DEVICES_MAX: usize = 4096;

/// A partition, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPartition {
    /// Its number on the disk, from 1.
    pub number: u32,
    /// Its device number.
    pub dev: DevId,
    /// Start on the disk in bytes.
    pub start_bytes: u64,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// What kind of device holds others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceLayer {
    /// An md array, with its level (`raid1`).
    Md(String),
    /// A device-mapper device: its name and uuid (`LVM-…`, `CRYPT-…`; may be empty).
    Dm {
        /// The name under /dev/mapper.
        name: String,
        /// The uuid, whose prefix says who made it.
        uuid: String,
    },
    /// A bcache device.
    Bcache,
    /// A loop device.
    Loop,
    /// Anything else: a disk, a partition.
    Plain,
}

/// What a disk is plugged in as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// On a USB bus, card readers included.
    Usb,
    /// An SD card in an MMC host.
    Sd,
    /// A soldered eMMC.
    Mmc,
    /// NVMe.
    Nvme,
    /// Any other disk.
    Disk,
    /// Not a disk: loop, md, dm, ram, zram, eMMC boot partition, read-only ROM.
    Other,
}

impl Roots {
    /// The directory of a block device, without symbolic links in it, so that a partition's parent is its disk.
    fn block_dir(&self, dev: DevId) -> Option<PathBuf> {
        let link = self.sys.join("dev/block").join(dev.to_string());
        std::fs::canonicalize(link).ok()
    }

    /// Whether the kernel has a block device of this number.
    pub fn is_block(&self, dev: DevId) -> bool {
        self.block_dir(dev).is_some()
    }

    /// An attribute as text without the newline; `None` when it is not there.
    pub fn attribute(&self, dev: DevId, name: &str) -> Option<String> {
        attribute_at(&self.block_dir(dev)?, name)
    }

    fn number(&self, dev: DevId, name: &str) -> Option<u64> {
        decimal(self.attribute(dev, name)?.as_bytes())
    }

    /// The value of a line `KEY=value` in the device's uevent file (`DEVNAME`, `PARTNAME`, `PARTUUID`).
    pub fn uevent(&self, dev: DevId, key: &str) -> Option<String> {
        let text = self.attribute(dev, "uevent")?;
        let value = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned());
        text.lines().find_map(value)
    }

    /// The kernel's name: `sda1`, `dm-0`; the number where sysfs does not know it.
    pub fn kernel_name(&self, dev: DevId) -> String {
        let dir = self.block_dir(dev);
        let name = dir.as_deref().and_then(Path::file_name);
        name.map_or_else(
            || dev.to_string(),
            |name| name.to_string_lossy().replace('!', "/"),
        )
    }

    /// The device as a person knows it: `/dev/sda1`, `/dev/mapper/vg-root`; whether that node exists is not asked.
    pub fn shown(&self, dev: DevId) -> PathBuf {
        match self.layer(dev) {
            DeviceLayer::Dm { name, .. } if !name.is_empty() => Path::new("/dev/mapper").join(name),
            _ if self.is_block(dev) => {
                let name = self.uevent(dev, "DEVNAME");
                Path::new("/dev").join(name.unwrap_or_else(|| self.kernel_name(dev)))
            }
            _ => PathBuf::from(format!("block device {dev}")),
        }
    }

    /// Size in bytes (sysfs counts 512-byte sectors whatever the device's own are).
    pub fn size_bytes(&self, dev: DevId) -> Option<u64> {
        self.number(dev, "size")?.checked_mul(512)
    }

    /// Whether the device (not a filesystem on it) is read-only.
    pub fn device_read_only(&self, dev: DevId) -> bool {
        self.number(dev, "ro").is_some_and(|value| value != 0)
    }

    /// Every block device, disks and partitions, by number.
    pub fn devices(&self) -> Vec<DevId> {
        let names = entries(&self.sys.join("dev/block"));
        let mut devices: Vec<DevId> = names
            .iter()
            .filter_map(|path| DevId::parse(path.file_name()?.as_encoded_bytes()))
            .collect();
        units::sort(&mut devices, |a, b| a < b);
        devices
    }

    /// The disk that a partition is part of; `None` for what is no partition.
    pub fn disk_of(&self, dev: DevId) -> Option<DevId> {
        let dir = self.block_dir(dev)?;
        dir.join("partition").exists().then_some(())?;
        dev_at(dir.parent()?)
    }

    /// The partitions of a disk that the kernel knows, by start.
    pub fn partitions_of(&self, disk: DevId) -> Vec<KernelPartition> {
        let Some(dir) = self.block_dir(disk) else {
            return Vec::new();
        };
        let partition = |path: &PathBuf| {
            let number = decimal(attribute_at(path, "partition")?.as_bytes())?;
            let bytes = |name| decimal(attribute_at(path, name)?.as_bytes())?.checked_mul(512);
            Some(KernelPartition {
                number: u32::try_from(number).ok()?,
                dev: dev_at(path)?,
                start_bytes: bytes("start")?,
                size_bytes: bytes("size")?,
            })
        };
        let mut found: Vec<KernelPartition> = entries(&dir).iter().filter_map(partition).collect();
        let key = |partition: &KernelPartition| (partition.start_bytes, partition.number);
        units::sort(&mut found, |a, b| key(a) < key(b));
        found
    }

    /// The devices that hold this one (md, dm, bcache).
    pub fn holders(&self, dev: DevId) -> Vec<DevId> {
        self.linked(dev, "holders")
    }

    /// The devices that this one holds.
    pub fn slaves(&self, dev: DevId) -> Vec<DevId> {
        self.linked(dev, "slaves")
    }

    fn linked(&self, dev: DevId, folder: &str) -> Vec<DevId> {
        let Some(dir) = self.block_dir(dev) else {
            return Vec::new();
        };
        let links = entries(&dir.join(folder));
        links.iter().filter_map(|path| dev_at(path)).collect()
    }

    /// What kind of device this is.
    pub fn layer(&self, dev: DevId) -> DeviceLayer {
        let Some(dir) = self.block_dir(dev) else {
            return DeviceLayer::Plain;
        };
        let text = |name| attribute_at(&dir, name).unwrap_or_default();
        if dir.join("md").is_dir() {
            DeviceLayer::Md(text("md/level"))
        } else if dir.join("dm").is_dir() {
            DeviceLayer::Dm {
                name: text("dm/name"),
                uuid: text("dm/uuid"),
            }
        } else if dir.join("bcache").exists() && self.kernel_name(dev).starts_with("bcache") {
            DeviceLayer::Bcache
        } else if dir.join("loop").is_dir() {
            DeviceLayer::Loop
        } else {
            DeviceLayer::Plain
        }
    }

    /// The path that sysfs gives for the file below a loop device, as the process that set it up named it.
    pub fn loop_file(&self, dev: DevId) -> Option<PathBuf> {
        let path = self.attribute(dev, "loop/backing_file")?;
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    /// Everything that lies above: partitions, holders, holders of those. Not the device itself. Loop devices over files on it
    /// are not here: see [`crate::mounts::System::above`].
    pub fn up(&self, dev: DevId) -> Vec<DevId> {
        let next = |at: DevId| {
            let partitions = self.partitions_of(at).into_iter().map(|part| part.dev);
            partitions.chain(self.holders(at)).collect()
        };
        closure(dev, next)
    }

    /// What makes this device, or one above or below it, change although the filesystem on it is frozen; `None` when nothing does.
    pub fn moving(&self, dev: DevId) -> Option<String> {
        let down = |at: DevId| {
            let mut below = self.slaves(at);
            below.extend(self.disk_of(at));
            below
        };
        let mut stack = vec![dev];
        stack.extend(closure(dev, down));
        stack.extend(self.up(dev));
        stack.into_iter().find_map(|at| self.moves(at))
    }

    fn moves(&self, dev: DevId) -> Option<String> {
        let name = self.kernel_name(dev);
        match self.layer(dev) {
            DeviceLayer::Md(_) => {
                let action = self.attribute(dev, "md/sync_action")?;
                let writes = is_rebuilding(&action);
                let word = if action == "recover" {
                    "recovery"
                } else {
                    &action
                };
                writes.then(|| format!("{name} is in {word}"))
            }
            DeviceLayer::Dm { name: dm, .. } => match self.dm_targets(dev) {
                Some(targets) => {
                    let why = targets.iter().find_map(target_moves)?;
                    Some(format!("{dm} {why}"))
                }
                None => self
                    .looks_cached(dev)
                    .then(|| format!("{dm} is part of a cache that may write back at any time")),
            },
            _ => {
                let mode = self.attribute(dev, "bcache/cache_mode")?;
                mode.contains("[writeback]")
                    .then(|| format!("{name} is cached by bcache in writeback mode"))
            }
        }
    }

    /// What device mapper says; `None` where it cannot be asked (no control node, a test's sysfs).
    fn dm_targets(&self, dev: DevId) -> Option<Vec<DmTarget>> {
        if self.sys != Path::new("/sys") {
            return None;
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::open("/dev/mapper/control", flags, Mode::empty()).ok()?;
        dm_targets(control, dev.raw()).ok()
    }

    /// A cached LVM volume is built of sub-volumes with these reserved names (lvmcache(7)); whether its mode is writeback is
    /// not in sysfs, so it counts as such.
    fn looks_cached(&self, dev: DevId) -> bool {
        const ENDS: [&str; 6] = [
            "_corig",
            "_cdata",
            "_cmeta",
            "_wcorig",
            "_cvol",
            "_cvol-cdata",
        ];
        let slaves = self.slaves(dev).into_iter();
        slaves.chain([dev]).any(|at| match self.layer(at) {
            DeviceLayer::Dm { name, .. } => ENDS.iter().any(|end| name.ends_with(end)),
            _ => false,
        })
    }

    /// What a disk is plugged in as.
    pub fn media(&self, disk: DevId) -> Media {
        let Some(dir) = self.block_dir(disk) else {
            return Media::Other;
        };
        let name = self.kernel_name(disk);
        let path = dir.to_string_lossy().into_owned();
        let other = [
            "loop", "ram", "zram", "md", "dm-", "sr", "fd", "nbd", "mtdblock", "ubiblock",
        ];
        let boot_area =
            name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb"));
        if boot_area || other.iter().any(|start| name.starts_with(start)) {
            Media::Other
        } else if path.contains("/usb") {
            Media::Usb
        } else if name.starts_with("nvme") {
            Media::Nvme
        } else if name.starts_with("mmcblk") {
            match attribute_at(&dir, "device/type").as_deref() {
                Some("SD") => Media::Sd,
                _ => Media::Mmc,
            }
        } else {
            Media::Disk
        }
    }

    /// The devices of the mounted btrfs with this fsid, in its usual notation.
    pub fn btrfs_devices(&self, fsid: &str) -> Vec<DevId> {
        let folder = self.sys.join("fs/btrfs").join(fsid).join("devices");
        entries(&folder)
            .iter()
            .filter_map(|path| dev_at(path))
            .collect()
    }

    /// The fsid of the mounted btrfs that uses this device.
    pub fn btrfs_of(&self, dev: DevId) -> Option<String> {
        let folders = entries(&self.sys.join("fs/btrfs"));
        folders.iter().find_map(|path| {
            let fsid = path.file_name()?.to_str()?;
            let devices = self.btrfs_devices(fsid);
            devices.contains(&dev).then(|| fsid.to_owned())
        })
    }
}

/// Why a device-mapper target changes what lies below it on its own (Documentation/admin-guide/device-mapper: cache, writecache,
/// dm-raid, snapshot; the status of `mirror` has its ratio of synced regions as `N/M`).
fn target_moves(target: &DmTarget) -> Option<&'static str> {
    let mut words = target.status.split(' ');
    let moves = match target.kind.as_str() {
        "cache" => words.any(|word| word == "writeback"),
        "writecache" | "snapshot-merge" => true,
        "raid" => words.nth(4).is_none_or(is_rebuilding),
        "mirror" => words
            .filter_map(|word| word.split_once('/'))
            .any(|(synced, all)| synced != all),
        _ => false,
    };
    moves.then_some(match target.kind.as_str() {
        "raid" | "mirror" => "is being rebuilt",
        "snapshot-merge" => "is being merged",
        _ => "is a cache that may write back at any time",
    })
}

/// Whether an array in this state writes to its members; "check" only reads.
fn is_rebuilding(action: &str) -> bool {
    matches!(action, "resync" | "recover" | "reshape" | "repair")
}

/// Everything reachable from `start` by `next`, without `start`, nearest first; at most [`DEVICES_MAX`].
pub(super) fn closure(start: DevId, next: impl Fn(DevId) -> Vec<DevId>) -> Vec<DevId> {
    let mut order = vec![start];
    let mut at = 0;
    while let Some(dev) = order.get(at).copied() {
        at += 1;
        for found in next(dev) {
            if order.len() < DEVICES_MAX && !order.contains(&found) {
                order.push(found);
            }
        }
    }
    order.remove(0);
    order
}

/// The `dev` attribute of a device's directory.
fn dev_at(dir: &Path) -> Option<DevId> {
    DevId::parse(attribute_at(dir, "dev")?.as_bytes())
}

fn attribute_at(dir: &Path, name: &str) -> Option<String> {
    let mut file = std::fs::File::open(dir.join(name)).ok()?;
    let mut bytes = Vec::new();
    limited(&mut file, ATTRIBUTE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// The entries of a directory in the order of their names; none when it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
    units::sort(&mut paths, |a, b| a.as_os_str() < b.as_os_str());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(kind: &str, status: &str) -> Option<&'static str> {
        target_moves(&DmTarget {
            kind: kind.to_owned(),
            status: status.to_owned(),
        })
    }

    #[test]
    fn targets_that_write_by_themselves_are_told_from_those_that_do_not() {
        let cache = |mode: &str| {
            format!(
                "8 27/1024 128 8/80 0 0 0 0 0 8 0 1 {mode} 2 migration_threshold 2048 smq 0 rw -"
            )
        };
        assert!(why("cache", &cache("writeback")).is_some());
        assert!(why("cache", &cache("writethrough")).is_none());
        assert!(why("writecache", "0 100 10 0").is_some());
        assert!(why("raid", "raid1 2 aa 1024/2048 resync 0 0 -").is_some());
        assert!(why("raid", "raid1 2 AA 2048/2048 idle 0 0 -").is_none());
        assert!(why("raid", "raid1 2 AA 2048/2048 check 0 0 -").is_none());
        assert!(why("raid", "odd").is_some());
        assert!(why("mirror", "2 253:1 253:2 3/4 1 AA 1 core").is_some());
        assert!(why("mirror", "2 253:1 253:2 4/4 1 AA 1 core").is_none());
        assert!(why("linear", "").is_none() && why("crypt", "").is_none());
    }
}
