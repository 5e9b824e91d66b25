//! What a SOURCE means: the device to read, and what keeps it still (a descriptor on the mounted filesystem to freeze it by,
//! an exclusive hold, or nothing for an image file).
//!
//! The rule for a regular file: one whose content is recognised (a filesystem, a partition table, swap, LUKS …) is an image and
//! is itself the source; any other file is refused, because its own bytes or the filesystem it lies on may have been meant ([`Means`]);
//! a directory means the filesystem it lies on. A path is opened before anything is
//! concluded from it, and everything after that is asked of the descriptor, so that covered mount points, bind mounts and
//! mount points with odd names cannot lead elsewhere.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::content::{Format, LOOK_BYTES};
use crate::device::{Access, Device, ReadAt};
use crate::error::{Error, Fault, Result};
use crate::fs;
use crate::mounts::node::mount_once_more;
use crate::mounts::table::decimal;
use crate::mounts::{DevId, Mount, MountTable, System, refuse, tags};
use crate::sys::identity::{BtrfsInfo, btrfs_info};
use crate::units::to_usize;

/// What a regular file as SOURCE means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Means {
    /// An image, or it is refused: either of the others may have been meant.
    #[default]
    Source,
    /// The filesystem it lies on.
    Filesystem,
    /// Its own bytes, whatever they are.
    Bytes,
}

/// How a file is packed, from its beginning.
fn packed(device: &Device) -> std::result::Result<Format, Fault> {
    let mut first = [0; LOOK_BYTES];
    let length = to_usize(device.size_bytes()).min(LOOK_BYTES);
    let first = first.get_mut(..length).unwrap_or_default();
    device.read_at(0, first)?;
    Ok(Format::recognise(first))
}

/// What was found behind a SOURCE, opened.
#[derive(Debug)]
pub struct Source {
    /// What the user typed.
    pub name: OsString,
    /// The device's node as people know it, or the image file: for messages.
    pub shown: PathBuf,
    /// The device's number; `None` for an image file.
    pub dev: Option<DevId>,
    /// Open for reading, O_DIRECT where the device accepts it; O_EXCL when `holding` is [`Holding::Unmounted`].
    pub device: Device,
    /// What keeps it still, or will.
    pub holding: Holding,
    /// Why the bytes change even below a frozen filesystem (a resyncing md, a write-back cache); `None` when they do not.
    pub moving: Option<String>,
}

/// What keeps a source still.
#[derive(Debug)]
pub enum Holding {
    /// A filesystem on this very device is mounted: freeze it.
    Mounted(Mounted),
    /// The device itself is not mounted, but partitions of it, or devices built on it, are in use.
    Stacked(Stacked),
    /// Not in use by anyone, and held O_EXCL as long as the source lives.
    Unmounted,
    /// A regular file; nothing holds it.
    ImageFile,
}

/// A mounted filesystem, with a descriptor to freeze it by.
#[derive(Debug)]
pub struct Mounted {
    /// On the mounted filesystem: proven to be the same superblock as `mount` says.
    pub fd: OwnedFd,
    /// The mount that was opened (or, for one whose every mount point is covered, the first one listed).
    pub mount: Mount,
    /// The process in whose mount namespace it was found; `None` for our own.
    pub pid: Option<u32>,
    /// Every mount of this superblock in that namespace.
    pub mounts: Vec<Mount>,
    /// The block devices below it; one, except for a btrfs of several.
    pub devices: Vec<DevId>,
}

impl Mounted {
    /// Whether the superblock (not the mount) is read-only.
    pub fn super_read_only(&self) -> bool {
        self.mount.super_read_only()
    }

    /// See [`Mount::emergency_read_only`].
    pub fn emergency_read_only(&self) -> bool {
        self.mount.emergency_read_only()
    }

    /// A directory of ours under which its mount points lie: `/`, or `/proc/PID/root` for another namespace.
    pub fn point(&self) -> PathBuf {
        self.pid.map_or_else(
            || self.mount.point.clone(),
            |pid| {
                below(
                    &Path::new("/proc").join(pid.to_string()).join("root"),
                    &self.mount.point,
                )
            },
        )
    }
}

/// A device with others on top of it: a disk with partitions, an LVM, md or LUKS member.
#[derive(Debug, Default)]
pub struct Stacked {
    /// The mounted filesystems above, from the top of the stack to the bottom: freeze in this order, thaw in the reverse one.
    pub mounted: Vec<Mounted>,
    /// Active swap areas above: cannot be held still.
    pub swaps: Vec<DevId>,
    /// Unused devices above, held O_EXCL so that they stay so.
    pub held: Vec<Device>,
}

impl System {
    /// Finds and opens what `name` means: a directory or file on a mounted filesystem, a block device, an image file, or
    /// `LABEL= UUID= PARTLABEL= PARTUUID=`. Opens devices for reading only.
    pub fn resolve(&self, name: &OsStr) -> Result<Source> {
        self.resolve_as(name, Means::Source)
    }

    /// The same, where it was said what a regular file means.
    pub fn resolve_as(&self, name: &OsStr, means: Means) -> Result<Source> {
        if let Some(tag) = tags::Tag::parse(name) {
            let dev = self.find_tag(&tag)?;
            return self.resolve_device(name, dev);
        }
        let path = Path::new(name);
        // The name that a kernel without an initramfs gives its root; hardly ever a node.
        if path == Path::new("/dev/root") && !path.exists() {
            return self.resolve_as(OsStr::new("/"), means);
        }
        let (fd, stat) = self.open_path(path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => self.resolve_device(name, DevId::from_raw(stat.st_rdev)),
            FileType::Directory => self.resolve_mounted(name, reopen(&fd, path)?),
            FileType::RegularFile if means == Means::Filesystem => {
                self.resolve_mounted(name, reopen(&fd, path)?)
            }
            FileType::RegularFile => match self.image(path, &stat, means)? {
                Some(device) => Ok(Source {
                    name: name.to_owned(),
                    shown: path.to_owned(),
                    dev: None,
                    device,
                    holding: Holding::ImageFile,
                    moving: None,
                }),
                None => Err(Error::refused(format_args!(
                    "{0}: is a file, and no image that is known; for the filesystem it lies on: floe dump --fs-path {0}; for the file itself, whatever is in it: floe dump --whole {0}",
                    path.display()
                ))),
            },
            other => Err(Error::refused(format_args!(
                "{}: is a {}; name a directory, a block device or an image file",
                path.display(),
                refuse::kind_name(other)
            ))),
        }
    }

    /// Opens without any effect (a FIFO or tape stays untouched), then looks. Automounts are entered by the trailing slash.
    pub(super) fn open_path(&self, path: &Path) -> Result<(OwnedFd, Stat)> {
        let failed = |errno| Error::fault(path.display(), Fault::io("open", errno));
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let open = |path: &Path| {
            let fd = rustix::fs::open(path, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        let (fd, stat) = open(path).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return open(&path.join(".")).map_err(failed);
        }
        Ok((fd, stat))
    }

    /// The file as an image, if its content is one. An image that a busy loop device shows is refused: it changes below us.
    fn image(&self, path: &Path, stat: &Stat, means: Means) -> Result<Option<Device>> {
        let fault = |fault| Error::fault(path.display(), fault);
        let device = Device::open(path, Access::Read).map_err(fault)?;
        if let Some(what) = packed(&device).map_err(fault)?.words(path) {
            return Err(Error::refused(what));
        }
        if means != Means::Bytes && !tags::is_image(&device).map_err(fault)? {
            return Ok(None);
        }
        let over = |dev| [dev].into_iter().chain(self.risen(dev));
        for dev in self.loops_over(stat).into_iter().flat_map(over) {
            let busy = self.roots.hold(dev, Access::ReadHeld);
            if busy.is_err_and(|fault| fault.is_errno(Errno::BUSY)) {
                return Err(Error::refused(format_args!(
                    "{}: is in use through {}; name that device or where it is mounted instead",
                    path.display(),
                    self.roots.shown(dev).display()
                )));
            }
        }
        Ok(Some(device))
    }

    /// The filesystem on which an open file or directory lies.
    fn resolve_mounted(&self, name: &OsStr, fd: OwnedFd) -> Result<Source> {
        let subject = Path::new(name).display();
        let (mount, pid) = self.mount_of(&fd).ok_or_else(|| {
            Error::refused(format_args!(
                "{subject}: lies on a mount that no mount table shows (unmounted lazily?); name its block device"
            ))
        })?;
        let devices = self.devices_of(mount, fd.as_fd());
        let dev = match devices.as_slice() {
            [dev] if !refuse::is_flash(&mount.filesystem) => *dev,
            [] | [_] => return Err(self.refuse_deviceless(&subject, mount)),
            many => return Err(self.refuse_several(&subject, mount, many)),
        };
        let table = self.table_of(pid);
        let mounted = Mounted {
            mounts: table.of_dev(mount.dev).cloned().collect(),
            mount: mount.clone(),
            pid,
            devices,
            fd,
        };
        self.check_same_superblock(&subject, &mounted)?;
        self.finish(name, dev, Holding::Mounted(mounted))
    }

    /// A block device: mounted here, unused, mounted elsewhere, or under something else, in that order.
    pub fn resolve_device(&self, name: &OsStr, dev: DevId) -> Result<Source> {
        if let Some(mounted) = self.mounted_here(dev)? {
            return self.finish(name, dev, Holding::Mounted(mounted));
        }
        let access = match self.is_gentle {
            true => Access::Read,
            false => Access::ReadHeld,
        };
        match self.roots.open_device(dev, access) {
            Ok(_) if self.is_gentle && !self.risen(dev).is_empty() => {
                let stacked = self.stacked(dev)?;
                self.finish(name, dev, Holding::Stacked(stacked))
            }
            // O_EXCL does not see loop devices over a block device, which may be mounted and write to it.
            Ok(device) if self.risen(dev).iter().all(|at| !self.is_loop(*at)) => {
                Ok(self.source(name, dev, device, Holding::Unmounted))
            }
            Ok(device) => {
                let mut stacked = self.stacked(dev)?;
                stacked.held.push(device);
                self.finish(name, dev, Holding::Stacked(stacked))
            }
            Err(fault) if fault.is_errno(Errno::BUSY) => {
                if let Some(mounted) = self.mounted_elsewhere(dev)? {
                    return self.finish(name, dev, Holding::Mounted(mounted));
                }
                let mut stacked = self.stacked(dev)?;
                // Nothing lies on it: whoever held it has let go, and now it is ours.
                let free = self.risen(dev).is_empty() && stacked.mounted.is_empty();
                match stacked.held.pop() {
                    Some(device) if free => Ok(self.source(name, dev, device, Holding::Unmounted)),
                    held => {
                        stacked.held.extend(held);
                        self.finish(name, dev, Holding::Stacked(stacked))
                    }
                }
            }
            Err(fault) => Err(Error::fault(Path::new(name).display(), fault)),
        }
    }

    fn finish(&self, name: &OsStr, dev: DevId, holding: Holding) -> Result<Source> {
        let device = self.roots.open_device(dev, Access::Read);
        let device = device.map_err(|fault| {
            let (typed, shown) = (Path::new(name), self.roots.shown(dev));
            match typed == shown {
                true => Error::fault(shown.display(), fault),
                false => Error::fault(
                    format_args!("{}: lies on {}", typed.display(), shown.display()),
                    fault,
                ),
            }
        })?;
        if DevId::from_raw(device.rdev()) != dev {
            return Err(Error::failed(format_args!(
                "{}: its node changed while it was opened",
                self.roots.shown(dev).display()
            )));
        }
        Ok(self.source(name, dev, device, holding))
    }

    fn source(&self, name: &OsStr, dev: DevId, device: Device, holding: Holding) -> Source {
        let typed = Path::new(name);
        let typed_node = crate::mounts::node::is_node(typed, dev);
        Source {
            name: name.to_owned(),
            shown: if typed_node {
                typed.to_owned()
            } else {
                self.roots.shown(dev)
            },
            dev: Some(dev),
            device,
            holding,
            moving: self.roots.moving(dev),
        }
    }

    /// The mount in our own namespace of the filesystem on this device, opened.
    pub fn mounted_here(&self, dev: DevId) -> Result<Option<Mounted>> {
        self.mounted_in(&self.table, None, dev)
    }

    /// The same in anybody else's namespace.
    pub fn mounted_elsewhere(&self, dev: DevId) -> Result<Option<Mounted>> {
        let mut refusal = None;
        for namespace in self.namespaces() {
            match self.mounted_in(&namespace.table, Some(namespace.pid), dev) {
                Ok(Some(mounted)) => return Ok(Some(mounted)),
                Ok(None) => {}
                // Its process may have ended meanwhile; another one may do.
                Err(error) => refusal = Some(error),
            }
        }
        refusal.map_or(Ok(None), Err)
    }

    fn mounted_in(
        &self,
        table: &MountTable,
        pid: Option<u32>,
        dev: DevId,
    ) -> Result<Option<Mounted>> {
        let prefix = self.prefix(pid);
        let candidates: Vec<&Mount> = table
            .mounts
            .iter()
            .filter(|mount| self.may_lie_on(mount, dev))
            .collect();
        // The whole filesystem rather than a part of it, directories or not.
        let whole = |mount: &&Mount| mount.root == Path::new("/");
        let (mut candidates, parts): (Vec<&Mount>, Vec<&Mount>) =
            candidates.into_iter().partition(whole);
        candidates.extend(parts);
        let mut first = None;
        for mount in &candidates {
            let opened = open_mount(&prefix, mount);
            let devices = match &opened {
                Some(fd) => self.devices_of(mount, fd.as_fd()),
                None if mount.dev.is_anonymous() => self.btrfs_devices_by_name(mount),
                None => vec![mount.dev],
            };
            if !devices.contains(&dev) {
                continue;
            }
            if let Some(fd) = opened {
                let mounts = table.of_dev(mount.dev).cloned().collect();
                let mount = (*mount).clone();
                return Ok(Some(Mounted {
                    fd,
                    mount,
                    pid,
                    mounts,
                    devices,
                }));
            }
            first = first.or(Some((*mount, devices)));
        }
        let Some((mount, devices)) = first else {
            return Ok(None);
        };
        let mounts: Vec<Mount> = table.of_dev(mount.dev).cloned().collect();
        let fd = self.enter_covered(dev, mount)?;
        let mount = mount.clone();
        Ok(Some(Mounted {
            fd,
            mount,
            pid,
            mounts,
            devices,
        }))
    }

    /// A descriptor on a filesystem whose every mount point is covered or out of reach.
    fn enter_covered(&self, dev: DevId, mount: &Mount) -> Result<OwnedFd> {
        let shown = self.roots.shown(dev);
        let refused = |why: &dyn std::fmt::Display| {
            Error::refused(format_args!(
                "{}: is mounted on {}, which is covered or out of reach ({why}); umount what covers it",
                shown.display(),
                mount.point.display()
            ))
        };
        let fd = self
            .roots
            .with_node(dev, |path| {
                mount_once_more(path, &mount.filesystem, mount.super_read_only())
            })
            .map_err(|fault| refused(&fault))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| refused(&Fault::io("stat", errno)))?;
        let same = match mount.dev.is_anonymous() {
            true => self.devices_of(mount, fd.as_fd()).contains(&dev),
            false => DevId::from_raw(stat.st_dev) == mount.dev,
        };
        if !same {
            return Err(refused(&"another filesystem was found"));
        }
        Ok(fd)
    }

    /// Whether a mount can be one of a filesystem on this device, before looking closer.
    fn may_lie_on(&self, mount: &Mount, dev: DevId) -> bool {
        mount.dev == dev
            || (mount.dev.is_anonymous()
                && mount.filesystem == "btrfs"
                && self.roots.btrfs_of(dev).is_some())
    }

    /// What lies on loop devices over a device that is mounted itself: behind its filesystem, as OpenWrt's overlay behind its squashfs.
    pub fn looped(&self, dev: DevId) -> Result<Stacked> {
        match self.loops_over_device(dev).is_empty() {
            true => Ok(Stacked::default()),
            false => self.stacked(dev),
        }
    }

    /// What is above a busy device that is not mounted itself; refused, by name, unless all of it can be held still (or is swap).
    fn stacked(&self, dev: DevId) -> Result<Stacked> {
        let mut stacked = Stacked::default();
        let mut tops = self.risen(dev);
        tops.retain(|at| self.risen(*at).is_empty() || self.is_mounted_somewhere(*at));
        if tops.is_empty() {
            tops.push(dev);
        }
        let swaps = self.swap_devices();
        for top in tops {
            if swaps.contains(&top) {
                stacked.swaps.push(top);
                continue;
            }
            let mounted = match self.mounted_here(top)? {
                None => self.mounted_elsewhere(top)?,
                found => found,
            };
            if let Some(mounted) = mounted {
                stacked.mounted.push(mounted);
                continue;
            }
            match self.roots.hold(top, Access::ReadHeld) {
                Ok(device) => stacked.held.push(device),
                Err(fault) => return Err(self.refuse_busy(dev, top, fault)),
            }
        }
        self.sort(&mut stacked)?;
        Ok(stacked)
    }

    /// Brings the mounted filesystems into the order of freezing, each superblock once.
    fn sort(&self, stacked: &mut Stacked) -> Result<()> {
        let order = self.freeze_order(&stacked.mounted.iter().collect::<Vec<_>>())?;
        let mut all: Vec<Option<Mounted>> = stacked.mounted.drain(..).map(Some).collect();
        let next = |index: usize| all.get_mut(index).and_then(Option::take);
        stacked.mounted = order.into_iter().filter_map(next).collect();
        Ok(())
    }

    /// The mount on which an open file lies, by its mount number, and the process in whose table it stands.
    pub(crate) fn mount_of(&self, fd: impl AsFd) -> Option<(&Mount, Option<u32>)> {
        let id = mount_id(fd.as_fd())?;
        if let Some(mount) = self.table.by_id(id) {
            return Some((mount, None));
        }
        let mut others = self.namespaces().iter();
        others.find_map(|other| Some((other.table.by_id(id)?, Some(other.pid))))
    }

    fn table_of(&self, pid: Option<u32>) -> &MountTable {
        let mut others = self.namespaces.get().into_iter().flatten();
        pid.and_then(|pid| others.find(|other| other.pid == pid))
            .map_or(&self.table, |other| &other.table)
    }

    /// The block devices below a mounted filesystem, asked of a descriptor on it; empty for what has none.
    pub(super) fn devices_of(&self, mount: &Mount, fd: BorrowedFd<'_>) -> Vec<DevId> {
        if !mount.dev.is_anonymous() {
            return vec![mount.dev];
        }
        if mount.filesystem != "btrfs" {
            return Vec::new();
        }
        match btrfs_info(fd) {
            Ok(info) => self.roots.btrfs_devices(&fsid_text(&info)),
            // The ioctl is older than Linux 4.4, but an emulator may not know it: then by the name that was mounted.
            Err(_) => self.btrfs_devices_by_name(mount),
        }
    }

    pub(super) fn btrfs_devices_by_name(&self, mount: &Mount) -> Vec<DevId> {
        let stat = rustix::fs::stat(Path::new(&mount.source)).ok();
        stat.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
            .and_then(|stat| self.roots.btrfs_of(DevId::from_raw(stat.st_rdev)))
            .map_or_else(Vec::new, |fsid| self.roots.btrfs_devices(&fsid))
    }

    /// The descriptor to freeze by must be on the superblock whose device is read.
    fn check_same_superblock(
        &self,
        subject: &dyn std::fmt::Display,
        mounted: &Mounted,
    ) -> Result<()> {
        let stat = rustix::fs::fstat(&mounted.fd)
            .map_err(|errno| Error::fault(subject, Fault::io("stat", errno)))?;
        let dev = DevId::from_raw(stat.st_dev);
        if mounted.mount.dev.is_anonymous() || dev == mounted.mount.dev {
            return Ok(());
        }
        Err(Error::refused(format_args!(
            "{subject}: its device number {dev} is not that of its mount, {}; name its block device",
            mounted.mount.dev
        )))
    }

    /// Where another namespace's mount points start.
    pub(super) fn prefix(&self, pid: Option<u32>) -> PathBuf {
        pid.map_or_else(
            || PathBuf::from("/"),
            |pid| self.roots.proc.join(pid.to_string()).join("root"),
        )
    }
}

/// `/proc/7/root` and `/mnt` as `/proc/7/root/mnt`.
pub(super) fn below(prefix: &Path, point: &Path) -> PathBuf {
    prefix.join(point.strip_prefix("/").unwrap_or(point))
}

/// Opens the root of a mount; `None` when its mount point leads elsewhere (covered, moved, unmounted) or cannot be opened.
pub(super) fn open_mount(prefix: &Path, mount: &Mount) -> Option<OwnedFd> {
    let path = below(prefix, &mount.point);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
    (mount_id(fd.as_fd())? == mount.id).then_some(())?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile => reopen(&fd, &path).ok(),
        _ => None,
    }
}

/// The same file for reading: through the descriptor, so that no path is walked a second time.
fn reopen(fd: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::LARGEFILE;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(link, flags, Mode::empty())
        .map_err(|errno| Error::fault(path.display(), Fault::io("open", errno)))
}

/// The number of the mount that a descriptor was opened through (fdinfo, since Linux 3.15).
fn mount_id(fd: BorrowedFd<'_>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    decimal(value.trim().as_bytes())
}

fn fsid_text(info: &BtrfsInfo) -> String {
    fs::uuid_text(&info.fsid).as_str().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_in_another_namespace_lies_below_its_root() {
        assert_eq!(
            below(Path::new("/proc/7/root"), Path::new("/")),
            Path::new("/proc/7/root/")
        );
        assert_eq!(
            below(Path::new("/proc/7/root"), Path::new("/a b")),
            Path::new("/proc/7/root/a b")
        );
        assert_eq!(below(Path::new("/"), Path::new("/x")), Path::new("/x"));
    }
}
