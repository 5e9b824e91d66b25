//! Who mounts a device, who holds it, what its disk is: mountinfo and sysfs, without udev, /dev/disk or blkid.
//!
//! [`System`] is one look at the machine. [`System::resolve`] finds what a SOURCE means and keeps it: a device opened for
//! reading together with a descriptor on the mounted filesystem (to freeze by), or the device held O_EXCL. [`System::uses`]
//! says what a target is in use for. [`System::freeze_order`] sorts filesystems from the top of the stack to the bottom.
//!
//! Names are never proof. A path is opened first; what was opened says by its mount number and device number where it lies.
//! All of this runs before the freeze and may use the heap. Nothing here writes to a device, freezes or thaws.

mod node;
mod readers;
mod refuse;
mod resolve;
mod stack;
mod sysfs;
mod table;
mod tags;
mod twins;
mod uses;

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::error::{ErrnoText, Error, NOTHING_WRITTEN, Result};
pub use node::{hold_named, mount_kernel, mount_once_more, private_file};
pub use resolve::{Holding, Means, Mounted, Source, Stacked};
pub use sysfs::{DeviceLayer, KernelPartition, Media};
pub use table::{Mount, MountTable};
pub(crate) use tags::is_tag;
pub(crate) use uses::BUSY;
pub use uses::{Named, SwapFile, Use, Why, is_mirror};

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevId {
    /// Major number; 0 for filesystems without a device of their own.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DevId {
    /// From its two halves.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From `st_dev` or `st_rdev`.
    pub fn from_raw(dev: u64) -> Self {
        Self::new(rustix::fs::major(dev), rustix::fs::minor(dev))
    }

    /// As `st_dev` or `st_rdev`.
    pub fn raw(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }

    /// From `8:1`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let colon = text.iter().position(|byte| *byte == b':')?;
        let half = |part: Option<&[u8]>| u32::try_from(table::decimal(part?)?).ok();
        let major = half(text.get(..colon))?;
        let minor = half(text.get(colon.saturating_add(1)..))?;
        Some(Self { major, minor })
    }

    /// Whether it belongs to a filesystem without a device (btrfs, overlay, tmpfs).
    pub const fn is_anonymous(self) -> bool {
        self.major == 0
    }
}

impl fmt::Display for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Where the kernel's files are: `/proc`, `/sys` and `/dev`, or a test's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
            dev: PathBuf::from("/dev"),
        }
    }
}

/// The mounts that a process sees which does not see ours: another mount namespace, or another root in the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// A process in it.
    pub pid: u32,
    /// Its mounts; their points are below `/proc/PID/root`.
    pub table: MountTable,
}

/// Descriptors that must be free before the machine is looked at: of /proc and /sys a few are open at a time.
const DESCRIPTORS: usize = 24;

/// One look at the machine: our own mount table now, the others when a question needs them.
#[derive(Debug)]
pub struct System {
    roots: Roots,
    table: MountTable,
    namespaces: OnceLock<Vec<Namespace>>,
    is_gentle: bool,
}

/// What everything else is asked of is not there.
pub(crate) fn not_mounted(folder: &str, kind: &str) -> Error {
    Error::failed(format_args!(
        "{folder}: is not mounted here: mount -t {kind} {kind} {folder}"
    ))
}

impl System {
    /// Looks at the machine floe runs on.
    pub fn look() -> Result<Self> {
        check_descriptors()?;
        // Without it nothing would seem to be in use.
        if !std::path::Path::new("/sys/dev/block").exists() {
            return Err(not_mounted("/sys", "sysfs"));
        }
        Self::look_at(Roots::default())
    }

    /// Looks at other roots.
    pub fn look_at(roots: Roots) -> Result<Self> {
        let table = MountTable::read(&roots.proc.join("self/mountinfo"))?;
        Ok(Self {
            roots,
            table,
            namespaces: OnceLock::new(),
            is_gentle: false,
        })
    }

    /// From now on no device is held, not even for an instant: others mount and format what somebody only looks at.
    pub fn be_gentle(&mut self) {
        self.is_gentle = true;
    }

    /// Our own mount table.
    pub fn table(&self) -> &MountTable {
        &self.table
    }

    /// Questions to sysfs.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The mount tables of everybody else, one for each mount namespace and root directory; looked up once.
    pub fn namespaces(&self) -> &[Namespace] {
        self.namespaces
            .get_or_init(|| uses::read_namespaces(&self.roots))
    }
}

/// A file that cannot be opened for want of descriptors would look like one that is not there, and a mount as if nobody had it.
fn check_descriptors() -> Result<()> {
    let mut held = Vec::with_capacity(DESCRIPTORS);
    for _ in 0..DESCRIPTORS {
        let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3);
        held.push(fd.map_err(|errno| {
            Error::failed(format_args!(
                "floe: {}; {DESCRIPTORS} more files have to be open at a time: raise the limit (ulimit -n)",
                ErrnoText(errno.raw_os_error())
            ))
            .leaving(NOTHING_WRITTEN)
        })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
