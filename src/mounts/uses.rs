//! What a target is in use for: mounts in every namespace, holders, swap, loop devices, the running root.
//!
//! Everything is compared by number. An answer of "nothing" is checked against the kernel (O_EXCL), so that what no table
//! shows still counts as in use.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::device::Access;
use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};
use crate::mounts::resolve::open_mount;
use crate::mounts::table::unescape;
use crate::mounts::{DevId, DeviceLayer, Mount, MountTable, Namespace, Roots, System, tags};
use crate::units;

/// One reason why a target must not be written. Its text is a whole sentence for a person, with what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The device (or file) that is in use: the target, a partition of it, or the disk it is on.
    pub device: PathBuf,
    /// What for.
    pub why: Why,
}

/// What a device is in use for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is below `/` of this system.
    RunningRoot,
    /// Another device is built on it.
    Member {
        /// That device's kernel name (`md0`, `dm-3`).
        holder: String,
        /// What it is.
        layer: DeviceLayer,
    },
    /// A filesystem on it is mounted.
    Mounted {
        /// Where, seen from the root of that process.
        point: PathBuf,
        /// The process whose namespace it is; `None` for our own.
        pid: Option<u32>,
    },
    /// Active swap.
    Swap,
    /// A loop device lies on it.
    Loop {
        /// The loop device.
        by: PathBuf,
    },
    /// The device refuses writes.
    ReadOnly,
    /// Somebody holds it exclusively, and no table says who.
    Busy,
    /// Another device that shows the same bytes is in use.
    Beside(Box<Use>),
}

impl Use {
    /// Whether it is a member of a mirror: then the contract has its own words for the refusal.
    pub fn is_mirror(&self) -> bool {
        matches!(&self.why, Why::Member { layer: DeviceLayer::Md(level), .. } if is_mirror(level))
    }
}

/// What nothing says who holds. A filesystem that was unmounted while frozen is held by nobody, and looks the same.
pub(crate) const BUSY: &str = "is in use by another program; close that first (if it was unmounted while frozen: floe thaw --all)";

/// The levels of md whose members hold the same.
pub fn is_mirror(level: &str) -> bool {
    level == "raid1" || level == "raid10"
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.device.display(), self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::RunningRoot => f.write_str("holds the running root; choose another target"),
            Why::Member { holder, layer } => write_member(f, holder, layer),
            Why::Mounted { point, pid: None } => {
                let point = point.display();
                write!(f, "is mounted on {point}; umount {point} first")
            }
            Why::Mounted {
                point,
                pid: Some(pid),
            } => write!(
                f,
                "is mounted on {} in the mount namespace of process {pid}; umount it there first",
                point.display()
            ),
            Why::Swap => f.write_str("is active swap; swapoff it first"),
            Why::Loop { by } => {
                let by = by.display();
                write!(f, "is attached to {by}; losetup -d {by} first")
            }
            Why::ReadOnly => f.write_str("is read-only; blockdev --setrw it, or unlock the card"),
            Why::Busy => f.write_str(BUSY),
            Why::Beside(other) => {
                let device = other.device.display();
                write!(f, "shows the same bytes as {device}, which ")?;
                other.why.fmt(f)
            }
        }
    }
}

fn write_member(f: &mut fmt::Formatter<'_>, holder: &str, layer: &DeviceLayer) -> fmt::Result {
    match layer {
        DeviceLayer::Md(level) if is_mirror(level) => write!(
            f,
            "is a member of {holder} ({level}); a snapshot onto a mirror is not possible"
        ),
        DeviceLayer::Md(level) => {
            let level = if level.is_empty() { "md" } else { level };
            write!(
                f,
                "is a member of {holder} ({level}); mdadm --stop it first"
            )
        }
        DeviceLayer::Dm { name, uuid } if uuid.starts_with("LVM-") => {
            write!(f, "is below the LVM volume {name}; lvchange -an it first")
        }
        DeviceLayer::Dm { name, uuid } if uuid.starts_with("CRYPT-") => {
            write!(
                f,
                "is open as the encrypted volume {name}; cryptsetup close it first"
            )
        }
        DeviceLayer::Dm { name, uuid } if uuid.starts_with("mpath-") => {
            write!(
                f,
                "is a path of the multipath device {name}; name that instead"
            )
        }
        DeviceLayer::Dm { name, .. } => {
            write!(
                f,
                "is held by the device-mapper device {name}; dmsetup remove it first"
            )
        }
        DeviceLayer::Bcache => write!(f, "is part of {holder}; stop that first"),
        DeviceLayer::Loop | DeviceLayer::Plain => write!(f, "is held by {holder}; stop that first"),
    }
}

/// A block device or file named as a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its node or path, for messages.
    pub shown: PathBuf,
    /// Its number, for a block device.
    pub dev: Option<DevId>,
}

/// An active swap file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapFile {
    /// Its path.
    pub path: PathBuf,
    /// `st_dev` of the filesystem it lies on.
    pub dev: DevId,
    /// Its inode number there.
    pub inode: u64,
}

impl System {
    /// The device or regular file that a TARGET names (`LABEL=` and its like included). Missing and special files are refused.
    pub fn target(&self, name: &std::ffi::OsStr) -> Result<Named> {
        if let Some(tag) = tags::Tag::parse(name) {
            let dev = self.find_tag(&tag)?;
            let shown = self.roots.shown(dev);
            return Ok(Named {
                shown,
                dev: Some(dev),
            });
        }
        let shown = PathBuf::from(name);
        if shown == Path::new("/dev/root") && !shown.exists() {
            let roots = self.root_mounts().into_iter();
            let below = roots.filter_map(|(mount, pid)| self.devices_below_mount(&mount, pid));
            if let [dev] = below.flatten().collect::<Vec<_>>().as_slice() {
                let shown = self.roots.shown(*dev);
                return Ok(Named {
                    shown,
                    dev: Some(*dev),
                });
            }
        }
        let stat = stat_target(&shown)?;
        let dev = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Some(DevId::from_raw(stat.st_rdev)),
            FileType::RegularFile => None,
            FileType::Directory => {
                return Err(Error::refused(format_args!(
                    "{}: is a folder, neither a block device nor a regular file; name a device, or a file in it",
                    shown.display()
                )));
            }
            _ => {
                return Err(Error::refused(format_args!(
                    "{}: is neither a block device nor a regular file",
                    shown.display()
                )));
            }
        };
        Ok(Named { shown, dev })
    }

    /// What a target is in use for; empty when it may be written.
    pub fn uses_of(&self, target: &Named) -> Result<Vec<Use>> {
        match target.dev {
            Some(dev) => Ok(self.uses(dev)),
            None => Ok(self.uses_of_file(&target.shown, &stat_target(&target.shown)?)),
        }
    }

    /// What a block device is in use for, its partitions and its disk included; the most telling reason first.
    pub fn uses(&self, dev: DevId) -> Vec<Use> {
        self.uses_by(dev, false)
    }

    /// The same without mounts of filesystems that nobody writes to.
    pub(crate) fn writers(&self, dev: DevId) -> Vec<Use> {
        self.uses_by(dev, true)
    }

    fn uses_by(&self, dev: DevId, writers_only: bool) -> Vec<Use> {
        let is_left_out = |mount: &Mount| writers_only && mount.is_never_written();
        let mut idle_devices = Vec::new();
        let roots = &self.roots;
        let mut parts = vec![dev];
        parts.extend(roots.partitions_of(dev).into_iter().map(|part| part.dev));
        parts.extend(roots.disk_of(dev));
        let swaps = self.swap_devices();
        let mut uses = Vec::new();
        for at in &parts {
            let mounts = self.mounts_on(*at).into_iter();
            let (idle, mounts): (Vec<_>, _) = mounts.partition(|(mount, _)| is_left_out(mount));
            if !idle.is_empty() {
                idle_devices.push(*at);
            }
            let device = roots.shown(*at);
            let reasons = self.reasons(*at, mounts, swaps.contains(at)).into_iter();
            uses.extend(reasons.map(|why| Use {
                device: device.clone(),
                why,
            }));
        }
        let device = roots.shown(dev);
        if self.root_devices().contains(&dev) {
            // Before "is mounted on /": unmounting it is no way out.
            uses.insert(
                0,
                Use {
                    device: device.clone(),
                    why: Why::RunningRoot,
                },
            );
        }
        // A mirror is the reason that no umount helps against.
        let mirror = |found: &Use| match &found.why {
            Why::Member { layer, .. } => matches!(layer, DeviceLayer::Md(_)),
            _ => false,
        };
        let (mut uses, others): (Vec<Use>, Vec<Use>) = uses.into_iter().partition(mirror);
        uses.extend(others);
        uses.extend(self.uses_beside(dev, writers_only));
        if uses.is_empty() {
            // What is left out holds its own device, and its disk.
            let asked = |at: &DevId| match idle_devices.is_empty() {
                true => *at == dev,
                false => {
                    let is_of_idle = |disk: DevId| idle_devices.contains(&disk);
                    !is_of_idle(*at)
                        && !roots.disk_of(*at).is_some_and(is_of_idle)
                        && roots.partitions_of(*at).is_empty()
                }
            };
            let held = parts.iter().filter(|at| asked(at) && self.is_held(**at));
            uses.extend(held.map(|at| Use {
                device: roots.shown(*at),
                why: Why::Busy,
            }));
        }
        if roots.device_read_only(dev) {
            uses.push(Use {
                device,
                why: Why::ReadOnly,
            });
        }
        uses
    }

    /// What one device is in use for.
    pub(super) fn reasons(
        &self,
        at: DevId,
        mounts: Vec<(Mount, Option<u32>)>,
        is_swap: bool,
    ) -> Vec<Why> {
        let roots = &self.roots;
        let members = roots.holders(at).into_iter().map(|holder| Why::Member {
            holder: roots.kernel_name(holder),
            layer: roots.layer(holder),
        });
        let mounted = mounts.into_iter().map(|(mount, pid)| Why::Mounted {
            point: mount.point,
            pid,
        });
        let loops = self.loops_over_device(at).into_iter();
        let loops = loops.map(|by| Why::Loop {
            by: roots.shown(by),
        });
        let swap = is_swap.then_some(Why::Swap);
        members.chain(mounted).chain(swap).chain(loops).collect()
    }

    /// What a regular file is in use for: a loop device over it, active swap.
    pub fn uses_of_file(&self, path: &Path, stat: &Stat) -> Vec<Use> {
        let device = path.to_owned();
        let loops = self.loops_over(stat).into_iter().map(|dev| Use {
            device: device.clone(),
            why: Why::Loop {
                by: self.roots.shown(dev),
            },
        });
        let same =
            |file: &SwapFile| file.dev == DevId::from_raw(stat.st_dev) && file.inode == stat.st_ino;
        let swaps = self.swap_files().into_iter().filter(same).map(|_| Use {
            device: device.clone(),
            why: Why::Swap,
        });
        loops.chain(swaps).collect()
    }

    /// Every mount of a filesystem on this device, in every namespace: first our own, then one of each other.
    pub fn mounts_on(&self, dev: DevId) -> Vec<(Mount, Option<u32>)> {
        let mut found = Vec::new();
        let btrfs = self.roots.btrfs_of(dev).is_some();
        let mut collect = |table: &MountTable, pid: Option<u32>| {
            for mount in &table.mounts {
                let here = mount.dev == dev || (btrfs && self.btrfs_lies_on(mount, pid, dev));
                let new = |(known, by): &(Mount, Option<u32>)| known.id != mount.id || *by != pid;
                if here && found.iter().all(new) {
                    found.push((mount.clone(), pid));
                }
            }
        };
        collect(&self.table, None);
        for namespace in self.namespaces() {
            collect(&namespace.table, Some(namespace.pid));
        }
        found
    }

    fn btrfs_lies_on(&self, mount: &Mount, pid: Option<u32>, dev: DevId) -> bool {
        if mount.filesystem != "btrfs" || !mount.dev.is_anonymous() {
            return false;
        }
        match open_mount(&self.prefix(pid), mount) {
            Some(fd) => self.devices_of(mount, fd.as_fd()).contains(&dev),
            None => self.btrfs_devices_by_name(mount).contains(&dev),
        }
    }

    pub(super) fn is_mounted_somewhere(&self, dev: DevId) -> bool {
        !self.mounts_on(dev).is_empty()
    }

    /// Whether the kernel says that somebody holds the device.
    pub(super) fn is_held(&self, dev: DevId) -> bool {
        let opened = self.roots.hold(dev, Access::ReadHeld);
        opened.is_err_and(|fault| fault.is_errno(Errno::BUSY))
    }

    /// Every device below `/`, ours and process 1's: its partition, disk, array members. An overlay's layers count, too.
    pub fn root_devices(&self) -> Vec<DevId> {
        let mut found = Vec::new();
        for root in self.root_mounts() {
            for dev in self
                .devices_below_mount(&root.0, root.1)
                .unwrap_or_default()
            {
                found.extend(self.under(dev).unwrap_or_else(|_| vec![dev]));
            }
        }
        found
    }

    /// The devices that hold the filesystem of `/` itself, for a person: without what they lie on.
    pub fn running_root(&self) -> Vec<PathBuf> {
        let roots = self.root_mounts();
        let below = roots
            .first()
            .and_then(|(mount, pid)| self.devices_below_mount(mount, *pid));
        let shown = |dev| self.roots.shown(dev);
        below.unwrap_or_default().into_iter().map(shown).collect()
    }

    fn root_mounts(&self) -> Vec<(Mount, Option<u32>)> {
        let top = |table: &MountTable| {
            let at_root = table.mounts.iter().rev();
            at_root
                .filter(|mount| mount.point == Path::new("/"))
                .cloned()
                .collect::<Vec<_>>()
        };
        let mut roots: Vec<(Mount, Option<u32>)> = top(&self.table)
            .into_iter()
            .map(|mount| (mount, None))
            .collect();
        let first = self.namespaces().iter().find(|other| other.pid == 1);
        if let Some(other) = first {
            roots.extend(top(&other.table).into_iter().map(|mount| (mount, Some(1))));
        }
        roots
    }

    /// The block devices that are active swap.
    pub fn swap_devices(&self) -> Vec<DevId> {
        let mut found = Vec::new();
        for path in self.swaps() {
            match rustix::fs::stat(&path) {
                Ok(stat) if is_block(&stat) => found.push(DevId::from_raw(stat.st_rdev)),
                Ok(_) => {}
                // No node of that name here: the kernel's own name is after the last slash.
                Err(_) => {
                    let name = path
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned());
                    let all = self.roots.devices().into_iter();
                    found.extend(all.filter(|dev| Some(self.roots.kernel_name(*dev)) == name));
                }
            }
        }
        found
    }

    /// The active swap files.
    pub fn swap_files(&self) -> Vec<SwapFile> {
        let file = |path: PathBuf| {
            let stat = rustix::fs::stat(&path)
                .ok()
                .filter(|stat| !is_block(stat))?;
            let dev = DevId::from_raw(stat.st_dev);
            Some(SwapFile {
                path,
                dev,
                inode: stat.st_ino,
            })
        };
        self.swaps().into_iter().filter_map(file).collect()
    }

    /// The first column of /proc/swaps.
    fn swaps(&self) -> Vec<PathBuf> {
        let bytes = std::fs::read(self.roots.proc.join("swaps")).unwrap_or_default();
        parse_swaps(&bytes)
    }
}

fn parse_swaps(bytes: &[u8]) -> Vec<PathBuf> {
    let lines = bytes.split(|byte| *byte == b'\n').skip(1);
    let path = |line: &[u8]| {
        let name = line.split(|byte| matches!(byte, b' ' | b'\t')).next()?;
        let name = unescape(name);
        let name = name.strip_suffix(b" (deleted)").unwrap_or(&name).to_vec();
        let path =
            PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(name));
        path.is_absolute().then_some(path)
    };
    lines.filter_map(path).collect()
}

fn is_block(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
}

fn stat_target(path: &Path) -> Result<Stat> {
    let name = path.display();
    rustix::fs::stat(path).map_err(|errno| {
        let error = match errno {
            Errno::NOENT | Errno::NOTDIR => Error::refused(format_args!("{name}: does not exist")),
            _ => Error::fault(name, Fault::io("stat", errno)),
        };
        error.leaving(NOTHING_WRITTEN)
    })
}

/// One mount table for each (mount namespace, root directory) that is not ours.
pub(super) fn read_namespaces(roots: &Roots) -> Vec<Namespace> {
    let mut seen = Vec::from_iter(view_of(&roots.proc.join("self")));
    let mut pids: Vec<u32> = std::fs::read_dir(&roots.proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    units::sort(&mut pids, |a, b| a < b);
    let mut found = Vec::new();
    for pid in pids {
        let folder = roots.proc.join(pid.to_string());
        let Some(view) = view_of(&folder) else {
            continue;
        };
        if seen.contains(&view) {
            continue;
        }
        seen.push(view);
        // A process that ended just now is no error.
        if let Ok(table) = MountTable::read(&folder.join("mountinfo")) {
            found.push(Namespace { pid, table });
        }
    }
    found
}

/// What a process sees: its mount namespace, and the directory it takes for `/` in it.
fn view_of(folder: &Path) -> Option<(PathBuf, u64, u64)> {
    let namespace = std::fs::read_link(folder.join("ns/mnt")).ok()?;
    let root = rustix::fs::stat(folder.join("root")).ok()?;
    Some((namespace, root.st_dev, root.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(device: &str, why: Why) -> String {
        Use {
            device: PathBuf::from(device),
            why,
        }
        .to_string()
    }

    #[test]
    fn a_mirror_member_is_refused_in_the_contracts_words() {
        let why = |level: &str| Why::Member {
            holder: "md0".to_owned(),
            layer: DeviceLayer::Md(level.to_owned()),
        };
        assert_eq!(
            text("/dev/sda2", why("raid1")),
            "/dev/sda2 is a member of md0 (raid1); a snapshot onto a mirror is not possible"
        );
        assert_eq!(
            text("/dev/sda2", why("raid5")),
            "/dev/sda2 is a member of md0 (raid5); mdadm --stop it first"
        );
    }

    #[test]
    fn a_mounted_target_says_what_to_umount() {
        let why = Why::Mounted {
            point: PathBuf::from("/boot"),
            pid: None,
        };
        assert_eq!(
            text("/dev/sda1", why),
            "/dev/sda1 is mounted on /boot; umount /boot first"
        );
        let why = Why::Mounted {
            point: PathBuf::from("/x"),
            pid: Some(7),
        };
        assert!(text("/dev/sda1", why).contains("in the mount namespace of process 7"));
    }

    #[test]
    fn swap_names_are_unescaped_and_the_heading_is_no_swap() {
        let bytes = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda3                               partition\t8388604\t0\t-2\n/a\\040b\\040(deleted) file 1 0 -3\n\n";
        let expected = ["/dev/sda3", "/a b"].map(PathBuf::from);
        assert_eq!(parse_swaps(bytes), expected);
        assert!(parse_swaps(b"").is_empty());
    }
}
