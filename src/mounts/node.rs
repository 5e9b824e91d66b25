//! Opening a block device by its number: through a node that exists, or through one made for a moment on a private tmpfs.
//!
//! A name is believed only after stat says that it is the device meant. What is made here is gone before the call returns.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, unmount,
};

use crate::device::{Access, Device};
use crate::error::Fault;
use crate::mounts::{DevId, Roots};
use crate::threads::patiently;

/// How a directory is opened to freeze by.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Folders that are usually writable, for the mount point on kernels without detached mounts.
const PLACES: &[&str] = &["/run", "/dev/shm", "/tmp", "/dev", "/var/tmp", "/mnt"];

/// How often, and how far apart, a busy device is asked before it counts as held: 0.4 s in all.
const HOLD_AGAIN: u32 = 20;
const HOLD_PAUSE: Duration = Duration::from_millis(20);

/// Mounts a filesystem of the kernel's own (tracefs) where nobody sees it; closing the descriptor unmounts it.
pub fn mount_kernel(filesystem: &str) -> Result<OwnedFd, Fault> {
    let ways = Ways {
        read_only: false,
        flag: None,
    };
    mount_hidden(Path::new("none"), filesystem, ways)
}

impl Roots {
    /// A node for the device that exists: one of the `hints`, or what the kernel calls it. `None` when there is none.
    pub fn node(&self, dev: DevId, hints: &[&Path]) -> Option<PathBuf> {
        let named = self.uevent(dev, "DEVNAME").map(|name| self.dev.join(name));
        let shown = self.shown(dev);
        let mut all = hints
            .iter()
            .copied()
            .chain([shown.as_path()])
            .chain(named.as_deref());
        all.find(|path| path.is_absolute() && is_node(path, dev))
            .map(Path::to_owned)
    }

    /// Opens the device with this number, whether or not it has a node.
    pub fn open_device(&self, dev: DevId, access: Access) -> Result<Device, Fault> {
        self.with_node(dev, |path| Device::open(path, access))
    }

    /// Opens it O_EXCL, as `access` must say. Who only looks (udev's blkid, `losetup`, `floe thaw --all`) holds a device for
    /// some milliseconds: busy is believed only after a while. Only for a device of which no table says who has it.
    pub fn hold(&self, dev: DevId, access: Access) -> Result<Device, Fault> {
        held(&|| self.open_device(dev, access))
    }

    /// A descriptor on the filesystem of this type that the kernel still keeps for the device, mounted or not: mounted once
    /// more for that, in a place nobody sees. Only for a device that is in use: one that is not would be mounted afresh.
    pub fn enter(&self, dev: DevId, filesystem: &str, read_only: bool) -> Result<OwnedFd, Fault> {
        let ways = Ways {
            read_only,
            flag: None,
        };
        self.with_node(dev, |path| mount_hidden(path, filesystem, ways))
    }

    /// Mounts the filesystem of this type on the device writable in a place nobody sees, with the mount option `flag`, and gives a
    /// descriptor on it; closing that unmounts it. Only for a device of ours that nobody else mounts.
    pub fn mount_hidden(
        &self,
        dev: DevId,
        filesystem: &str,
        flag: Option<&'static CStr>,
    ) -> Result<OwnedFd, Fault> {
        let ways = Ways {
            read_only: false,
            flag,
        };
        self.with_node(dev, |path| mount_hidden(path, filesystem, ways))
    }

    /// Calls `open` with a path to the device; the path is good during the call only.
    pub(super) fn with_node<T>(
        &self,
        dev: DevId,
        open: impl Fn(&Path) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match self.node(dev, &[]) {
            Some(path) => open(&path),
            None => private_node(dev, open),
        }
    }
}

/// The same by a node that was named, where neither /proc nor /sys leads to one.
pub fn hold_named(node: &Path) -> Result<Device, Fault> {
    held(&|| Device::open(node, Access::ReadHeld))
}

fn held(open: &dyn Fn() -> Result<Device, Fault>) -> Result<Device, Fault> {
    let is_busy = |tried: &Result<_, Fault>| {
        tried
            .as_ref()
            .is_err_and(|fault| fault.is_errno(Errno::BUSY))
    };
    patiently(HOLD_AGAIN, HOLD_PAUSE, is_busy, open)
}

/// Whether a path is the node of this block device.
pub(super) fn is_node(path: &Path, dev: DevId) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
            && DevId::from_raw(stat.st_rdev) == dev
    })
}

/// Makes a node where nobody else can see it and gives its path to `open`.
pub(super) fn private_node<T>(
    dev: DevId,
    open: impl Fn(&Path) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let make = |directory: &Path| node_in(directory, dev, &open);
    on_private_tmpfs(&make)
}

fn node_in<T>(
    directory: &Path,
    dev: DevId,
    open: &impl Fn(&Path) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let path = directory.join("node");
    rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR, dev.raw())
        .map_err(|errno| Fault::io("mknod", errno))?;
    open(&path)
}

/// A new file of this name, readable, writable and executable, on a tmpfs that is mounted nowhere.
pub fn private_file(name: &str) -> Result<OwnedFd, Fault> {
    let make = |directory: &Path| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::open(directory.join(name), flags, Mode::RWXU)
            .map_err(|errno| Fault::io("open on a private tmpfs", errno))
    };
    on_private_tmpfs(&make)
}

fn on_private_tmpfs<T>(make: &impl Fn(&Path) -> Result<T, Fault>) -> Result<T, Fault> {
    match detached_tmpfs() {
        Ok(tree) => make(&PathBuf::from(format!(
            "/proc/self/fd/{}",
            tree.as_raw_fd()
        ))),
        // Kernels before 5.2, or a filter in front of the new calls.
        Err(_) => on_attached_tmpfs(make),
    }
}

/// A tmpfs that is mounted nowhere: there is nothing to unmount, and nothing that a kill could leave behind.
fn detached_tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(context.as_fd(), flags, MountAttrFlags::empty())
}

/// On a tmpfs mounted on a new directory for the moment.
fn on_attached_tmpfs<T>(make: &impl Fn(&Path) -> Result<T, Fault>) -> Result<T, Fault> {
    let directory = new_directory()?;
    let mode = Some(c"mode=0700");
    let result = mount("tmpfs", &directory, "tmpfs", MountFlags::NOSUID, mode)
        .map_err(|errno| Fault::io("mount of a private tmpfs", errno))
        .and_then(|()| {
            let result = make(&directory);
            // Lazily: the descriptor that was opened keeps the tmpfs, out of everybody's sight.
            let _ = unmount(&directory, UnmountFlags::DETACH);
            result
        });
    let _ = std::fs::remove_dir(&directory);
    result
}

/// How [`mount_hidden`] mounts.
#[derive(Clone, Copy)]
struct Ways {
    read_only: bool,
    flag: Option<&'static CStr>,
}

/// Mounts a device that is mounted already once more, in a place nobody sees, and gives a descriptor on it: the kernel then
/// takes the same superblock, so nothing is read or written. The way in where every mount point is covered or out of reach.
pub fn mount_once_more(device: &Path, filesystem: &str, read_only: bool) -> Result<OwnedFd, Fault> {
    let ways = Ways {
        read_only,
        flag: None,
    };
    mount_hidden(device, filesystem, ways)
}

fn mount_hidden(device: &Path, filesystem: &str, ways: Ways) -> Result<OwnedFd, Fault> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let detached = || {
        let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", device)?;
        if ways.read_only {
            fsconfig_set_flag(context.as_fd(), "ro")?;
        }
        if let Some(flag) = ways.flag {
            fsconfig_set_flag(context.as_fd(), flag)?;
        }
        fsconfig_create(context.as_fd())?;
        let tree = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        rustix::fs::openat(&tree, ".", DIRECTORY, Mode::empty())
    };
    match detached() {
        Err(Errno::NOSYS | Errno::PERM) => {}
        other => return other.map_err(|errno| Fault::io("mount once more", errno)),
    }
    let directory = new_directory()?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    flags.set(MountFlags::RDONLY, ways.read_only);
    let result = mount(device, &directory, filesystem, flags, ways.flag)
        .and_then(|()| {
            let fd = rustix::fs::open(&directory, DIRECTORY, Mode::empty());
            let _ = unmount(&directory, UnmountFlags::DETACH);
            fd
        })
        .map_err(|errno| Fault::io("mount once more", errno));
    let _ = std::fs::remove_dir(&directory);
    result
}

/// A new directory of ours, mode 0700, with a name nobody else takes.
pub(super) fn new_directory() -> Result<PathBuf, Fault> {
    let mut last = Errno::NOENT;
    for place in PLACES {
        for attempt in 0..16 {
            let name = format!(".floe.{}.{attempt}", std::process::id());
            let path = Path::new(place).join(OsStr::new(&name));
            match rustix::fs::mkdir(&path, Mode::RWXU) {
                Ok(()) => return Ok(path),
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    last = errno;
                    break;
                }
            }
        }
    }
    Err(Fault::io("mkdir for a private tmpfs", last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop device of its own over a file: the machine's disks may be out of reach.
    struct Loop(String);

    impl Loop {
        fn over(file: &Path) -> Option<Self> {
            std::fs::write(file, [0; 4096]).ok()?;
            let mut losetup = std::process::Command::new("losetup");
            let made = losetup.args(["-f", "--show"]).arg(file).output().ok()?;
            let name = String::from_utf8(made.stdout).ok()?;
            made.status.success().then(|| Self(name.trim().to_owned()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let mut losetup = std::process::Command::new("losetup");
            let _ = losetup.args(["-d", &self.0]).status();
        }
    }

    #[test]
    fn a_private_node_opens_the_device_and_leaves_nothing_behind() {
        let file = std::env::temp_dir().join(format!("floe-node.{}", std::process::id()));
        let device = Loop::over(&file);
        let _ = std::fs::remove_file(&file);
        let Some(device) = device else {
            eprintln!("SKIPPED: needs root and losetup");
            return;
        };
        let dev = DevId::from_raw(rustix::fs::stat(device.0.as_str()).unwrap().st_rdev);
        let open = |path: &Path| {
            assert!(is_node(path, dev));
            Device::open(path, Access::Read)
        };
        // The old way is tried by itself; the new one falls back to it where the kernel, or an emulator, lacks the calls.
        let old = on_attached_tmpfs(&|directory: &Path| node_in(directory, dev, &open));
        for device in [private_node(dev, open), old] {
            assert_eq!(DevId::from_raw(device.unwrap().rdev()), dev);
        }
        let left = format!(".floe.{}.", std::process::id());
        assert!(
            !std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(&left)
        );
        for place in PLACES {
            let names = std::fs::read_dir(place).into_iter().flatten().flatten();
            assert!(
                !names
                    .into_iter()
                    .any(|e| e.file_name().to_string_lossy().starts_with(&left))
            );
        }
    }
}
