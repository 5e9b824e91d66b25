//! What lies on what: filesystems in loop files on other filesystems, arrays, encrypted volumes. From it the order of freezing.
//!
//! The rule: freeze from the top of the stack to the bottom, thaw in exactly the reverse order (a lower filesystem frozen first
//! makes the upper one's FIFREEZE wait forever). One SOURCE alone is frozen alone: a filesystem in a loop file on it keeps
//! running, its writes wait until the thaw, and its file in the image is as after a power cut; [`System::above`] names those, so
//! that a verb can say so, or freeze them too. A loop file that cannot be placed for certain is refused, never guessed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat};

use crate::device::Access;
use crate::error::{Error, Result};
use crate::mounts::refuse::overlay_layers;
use crate::mounts::resolve::open_mount;
use crate::mounts::sysfs::{DEVICES_MAX, closure};
use crate::mounts::{DevId, DeviceLayer, Mount, Mounted, System};
use crate::sys::identity::{LoopInfo, loop_info};

impl System {
    /// Sorts mounted filesystems from the top of the stack to the bottom, as indices; each superblock once, however often it is
    /// among them. Freeze in this order, thaw in exactly the reverse one. Refused: a cycle, a backing file that cannot be placed.
    pub fn freeze_order(&self, filesystems: &[&Mounted]) -> Result<Vec<usize>> {
        let mut distinct: Vec<usize> = Vec::new();
        for (index, mounted) in filesystems.iter().enumerate() {
            let same = |known: &usize| {
                let other = filesystems.get(*known);
                other.is_some_and(|other| other.mount.dev == mounted.mount.dev)
            };
            if !distinct.iter().any(same) {
                distinct.push(index);
            }
        }
        // With one filesystem there is nothing to sort, and nothing that an odd loop file could break.
        if distinct.len() < 2 {
            return Ok(distinct);
        }
        let mut nodes = Vec::new();
        for index in distinct {
            let Some(mounted) = filesystems.get(index) else {
                continue;
            };
            let mut under = Vec::new();
            for dev in &mounted.devices {
                // What sysfs does not show seems to lie on nothing.
                if !self.roots.is_block(*dev) {
                    return Err(super::not_mounted("/sys", "sysfs"));
                }
                under.extend(self.under(*dev)?.into_iter().filter(|at| at != dev));
            }
            nodes.push(Node {
                index,
                devices: mounted.devices.clone(),
                under,
            });
        }
        sort_down(nodes).ok_or_else(|| {
            Error::refused(
                "the filesystems lie on each other in a circle and cannot be frozen together",
            )
        })
    }

    /// The device and everything it lies on: its disk, array members, and the devices of the filesystem that holds its loop file.
    pub fn under(&self, dev: DevId) -> Result<Vec<DevId>> {
        let mut order = vec![dev];
        let mut at = 0;
        while let Some(dev) = order.get(at).copied() {
            at += 1;
            let mut next = self.roots.slaves(dev);
            next.extend(self.roots.disk_of(dev));
            next.extend(self.loop_under(dev)?);
            for found in next {
                if order.len() < DEVICES_MAX && !order.contains(&found) {
                    order.push(found);
                }
            }
        }
        Ok(order)
    }

    /// Whether an open file lies on one of these devices: its filesystem, a layer of it, or the file that holds it.
    pub fn lies_on(&self, file: impl AsFd, devices: &[DevId]) -> bool {
        let below = self.mount_of(file);
        let below = below.and_then(|(mount, pid)| self.devices_below_mount(mount, pid));
        let under = |dev| self.under(dev).unwrap_or_default();
        let mut below = below.unwrap_or_default().into_iter().flat_map(under);
        below.any(|dev| devices.contains(&dev))
    }

    /// Whether writing one of two devices changes the other: the same device, a disk and its partition, a volume and what it
    /// lies on, a loop device and the device of the filesystem that holds its file, two loop devices over one file. What cannot be
    /// placed counts as yes.
    pub fn overlaps(&self, one: DevId, other: DevId) -> bool {
        self.shares(one, other, true)
    }

    /// The same of a `target` that nobody uses, and has been placed: a file that cannot be placed is not on it, because
    /// the filesystem that the file is on is in use.
    pub fn is_written_with(&self, source: DevId, target: DevId) -> bool {
        self.shares(source, target, false)
    }

    fn shares(&self, one: DevId, other: DevId, unplaced: bool) -> bool {
        let lies_on = |upper, lower| match self.under(upper) {
            Ok(all) => all.contains(&lower),
            Err(_) => unplaced,
        };
        let file = |dev| {
            let info = self.is_loop(dev).then(|| self.loop_info(dev))??;
            Some((info.file_dev, info.file_inode, info.file_rdev))
        };
        let same_file = || file(one).is_some_and(|found| file(other) == Some(found));
        one == other || lies_on(one, other) || lies_on(other, one) || same_file()
    }

    /// The loop devices whose backing file is this one (by device and inode number).
    pub fn loops_over(&self, file: &Stat) -> Vec<DevId> {
        let same = |info: LoopInfo| {
            DevId::from_raw(info.file_dev) == DevId::from_raw(file.st_dev)
                && info.file_inode == file.st_ino
                && info.file_rdev == 0
        };
        let mut all = self.loops();
        all.retain(|dev| self.loop_info(*dev).is_some_and(same));
        all
    }

    /// The loop devices over a block device.
    pub fn loops_over_device(&self, dev: DevId) -> Vec<DevId> {
        let mut all = self.loops();
        all.retain(|at| self.loop_below(*at) == Some(dev));
        all
    }

    /// All loop devices with something below them.
    pub(super) fn loops(&self) -> Vec<DevId> {
        let mut all = self.roots.devices();
        all.retain(|dev| self.is_loop(*dev));
        all
    }

    /// The block device below a loop device.
    pub(super) fn loop_below(&self, dev: DevId) -> Option<DevId> {
        let info = self.loop_info(dev).filter(|info| info.file_rdev != 0)?;
        Some(DevId::from_raw(info.file_rdev))
    }

    /// Whether an md array lies on it, or on what lies on it.
    pub(crate) fn is_below_md(&self, dev: DevId) -> bool {
        let is_md = |at: &DevId| matches!(self.roots.layer(*at), DeviceLayer::Md(_));
        self.risen(dev).iter().any(is_md)
    }

    /// Everything that lies above without a filesystem in between: partitions, holders, loop devices over block devices.
    pub(super) fn risen(&self, dev: DevId) -> Vec<DevId> {
        let loops = self.loops().into_iter();
        let loops: Vec<_> = loops.map(|at| (at, self.loop_below(at))).collect();
        closure(dev, |at| {
            let mut above: Vec<DevId> = self.roots.holders(at);
            let partitions = self.roots.partitions_of(at).into_iter();
            above.extend(partitions.map(|part| part.dev));
            let over = loops.iter().filter(|(_, lower)| *lower == Some(at));
            above.extend(over.map(|(upper, _)| *upper));
            above
        })
    }

    /// Whether it is a loop device with something below it (not a partition of one).
    pub(super) fn is_loop(&self, dev: DevId) -> bool {
        self.roots.layer(dev) == DeviceLayer::Loop
    }

    /// The kernel's own numbers for the file below a loop device; where it cannot be asked (a test's sysfs), those of the file
    /// that the path in sysfs names now.
    pub(super) fn loop_info(&self, dev: DevId) -> Option<LoopInfo> {
        if self.roots.sys == Path::new("/sys") {
            let asked = self.roots.open_device(dev, Access::Read).ok()?;
            return loop_info(asked.as_fd()).ok();
        }
        let stat = rustix::fs::stat(&self.roots.loop_file(dev)?).ok()?;
        Some(LoopInfo {
            file_dev: stat.st_dev,
            file_inode: stat.st_ino,
            file_rdev: stat.st_rdev,
            offset: 0,
        })
    }

    /// The file of a loop device, open, and its path, where that still leads to it.
    pub fn loop_file(&self, dev: DevId) -> Option<(OwnedFd, PathBuf)> {
        let info = self.loop_info(dev).filter(|info| info.file_rdev == 0)?;
        let path = self.roots.loop_file(dev)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let same = (stat.st_dev, stat.st_ino) == (info.file_dev, info.file_inode);
        same.then_some((file, path))
    }

    /// The devices of the filesystem that holds the file of a loop device; empty for what is no loop device, or lies in memory.
    fn loop_under(&self, dev: DevId) -> Result<Vec<DevId>> {
        if !self.is_loop(dev) {
            return Ok(Vec::new());
        }
        let refused = |why: &str| {
            let file = self.roots.loop_file(dev).unwrap_or_default();
            Error::refused(format_args!(
                "{}: its backing file {} cannot be placed: {why}",
                self.roots.shown(dev).display(),
                file.display()
            ))
        };
        let info = self
            .loop_info(dev)
            .ok_or_else(|| refused("the kernel does not say where it is"))?;
        if info.file_rdev != 0 {
            return Ok(vec![DevId::from_raw(info.file_rdev)]);
        }
        let file_dev = DevId::from_raw(info.file_dev);
        if !file_dev.is_anonymous() {
            return Ok(vec![file_dev]);
        }
        // Anonymous: the path, if it still leads to this very file, says on which mount it is.
        if let Some(found) = self.loop_mount(dev, &info) {
            return found.ok_or_else(|| refused("the filesystem it is on hides its device"));
        }
        // Otherwise the number: that of a superblock in a mount table (a subvolume's is in none).
        let others = self
            .namespaces()
            .iter()
            .map(|other| (&other.table, Some(other.pid)));
        for (table, pid) in [(&self.table, None)].into_iter().chain(others) {
            if let Some(mount) = table.of_dev(file_dev).next() {
                return self
                    .devices_below_mount(mount, pid)
                    .ok_or_else(|| refused("the filesystem it is on hides its device"));
            }
        }
        Err(refused(
            "it was deleted, or belongs to another mount namespace",
        ))
    }

    /// `None` when the path does not lead to the file; `Some(None)` when the filesystem's devices cannot be known.
    fn loop_mount(&self, dev: DevId, info: &LoopInfo) -> Option<Option<Vec<DevId>>> {
        let path = self.roots.loop_file(dev)?;
        let (fd, stat) = self.open_path(&path).ok()?;
        (stat.st_dev == info.file_dev && stat.st_ino == info.file_inode).then_some(())?;
        let (mount, pid) = self.mount_of(&fd)?;
        Some(self.devices_below_mount(mount, pid))
    }

    /// The block devices below any mounted filesystem, layers of an overlay included; empty for what lies in memory or on
    /// another machine; `None` where it cannot be known.
    pub(super) fn devices_below_mount(
        &self,
        mount: &Mount,
        pid: Option<u32>,
    ) -> Option<Vec<DevId>> {
        if !mount.dev.is_anonymous() {
            return Some(vec![mount.dev]);
        }
        match mount.filesystem.as_str() {
            "btrfs" => {
                let devices = match open_mount(&self.prefix(pid), mount) {
                    Some(fd) => self.devices_of(mount, fd.as_fd()),
                    None => self.btrfs_devices_by_name(mount),
                };
                (!devices.is_empty()).then_some(devices)
            }
            "overlay" => self.devices_below_overlay(mount, pid),
            name if name.starts_with("fuse") => None,
            _ => Some(Vec::new()),
        }
    }

    fn devices_below_overlay(&self, mount: &Mount, pid: Option<u32>) -> Option<Vec<DevId>> {
        let mut devices = Vec::new();
        for (_, path) in overlay_layers(mount) {
            let path = crate::mounts::resolve::below(&self.prefix(pid), &path);
            let (fd, stat) = self.open_path(&path).ok()?;
            let dev = DevId::from_raw(stat.st_dev);
            if !dev.is_anonymous() {
                devices.push(dev);
                continue;
            }
            let (lower, _) = self.mount_of(&fd)?;
            match lower.filesystem.as_str() {
                "btrfs" => devices.extend(self.devices_of(lower, fd.as_fd())),
                "tmpfs" | "ramfs" | "rootfs" => {}
                // An overlay on an overlay is followed no further.
                _ => return None,
            }
        }
        Some(devices)
    }
}

/// A filesystem to be sorted: its own devices, and everything strictly below them.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) devices: Vec<DevId>,
    pub(super) under: Vec<DevId>,
}

impl Node {
    fn lies_on(&self, lower: &Node) -> bool {
        lower.devices.iter().any(|dev| self.under.contains(dev))
    }
}

/// Top first, otherwise in the given order; `None` for a circle.
pub(super) fn sort_down(mut nodes: Vec<Node>) -> Option<Vec<usize>> {
    let mut order = Vec::with_capacity(nodes.len());
    while !nodes.is_empty() {
        let free = nodes
            .iter()
            .position(|node| !nodes.iter().any(|other| other.lies_on(node)))?;
        order.push(nodes.remove(free).index);
    }
    Some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: usize, own: u32, under: &[u32]) -> Node {
        Node {
            index,
            devices: vec![DevId::new(7, own)],
            under: under.iter().map(|minor| DevId::new(7, *minor)).collect(),
        }
    }

    #[test]
    fn the_order_is_top_to_bottom_and_otherwise_as_given() {
        let nodes = vec![
            node(0, 1, &[]),
            node(1, 2, &[1]),
            node(2, 3, &[2, 1]),
            node(3, 9, &[]),
        ];
        assert_eq!(sort_down(nodes), Some(vec![2, 1, 0, 3]));
        assert_eq!(sort_down(Vec::new()), Some(Vec::new()));
    }

    #[test]
    fn a_circle_has_no_order() {
        assert_eq!(sort_down(vec![node(0, 1, &[2]), node(1, 2, &[1])]), None);
        assert_eq!(sort_down(vec![node(0, 1, &[1])]), None);
    }
}
