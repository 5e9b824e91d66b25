//! How much memory a run may take: decided once, before anything is frozen.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, open, unlink};
use rustix::io::Errno;

use crate::cli;
use crate::error::{Error, Fault, Result};
use crate::sys::memory::Pages;
use crate::units::{round_down, to_usize};

/// `--spool`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Spool {
    /// At most half of what is available.
    #[default]
    Auto,
    /// Only the fixed minimum.
    Off,
    /// This many bytes.
    Bytes(u64),
}

/// A spool of less is none.
const MIN_BYTES: u64 = 1 << 20;
/// The most a 32-bit process takes for its spool by itself, in bytes.
const AUTO_LIMIT_32: u64 = 512 << 20;

impl Spool {
    /// Parses `auto`, `off` or a size.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => cli::size(text).map(Self::Bytes),
        }
    }

    /// The size in bytes on this machine, now.
    pub(crate) fn bytes(self) -> u64 {
        let mut bytes = self.wanted_bytes();
        // Limits of address space and strict overcommit are met here, where less will do, and not in the middle of a start.
        while bytes > 0 && Pages::new(to_usize(bytes.saturating_add(LEFT_FREE))).is_err() {
            bytes = round_down(bytes / 2, MIN_BYTES);
        }
        bytes
    }

    /// What would be taken if there were room.
    fn wanted_bytes(self) -> u64 {
        let available = match self {
            Self::Off => return 0,
            // What is in use there may be page cache that gives way: so of a group's limit, not of what is left of it.
            Self::Bytes(bytes) => {
                let group = group().map_or(u64::MAX, |group| without_ours(group.limit_bytes));
                return bytes.min(group).min(address_limit());
            }
            Self::Auto => meminfo("MemAvailable:").unwrap_or(0),
        };
        let left = group().map_or(u64::MAX, |group| without_ours(group.left_bytes));
        let auto = available.min(left) / 2;
        if cfg!(target_pointer_width = "32") {
            auto.min(AUTO_LIMIT_32)
        } else {
            auto
        }
    }
}

/// What a process can map at all.
fn address_limit() -> u64 {
    if cfg!(target_pointer_width = "32") {
        1 << 30
    } else {
        1 << 44
    }
}

/// A line of /proc/meminfo, in bytes. Kernels have MemAvailable since 3.14.
fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    cli::number(line.trim().strip_suffix("kB")?.trim())?.checked_mul(1024)
}

/// What we and the guardian need besides, with some air, in bytes: who takes more than its group has is killed.
const OURS_BYTES: u64 = 16 << 20;

fn without_ours(bytes: u64) -> u64 {
    bytes.saturating_sub(OURS_BYTES.max(bytes / 4))
}

/// What our memory cgroup allows, and those above it: the least of each.
struct MemoryGroup {
    limit_bytes: u64,
    /// Of that, what nobody uses.
    left_bytes: u64,
}

/// Of version 2, then 1; `None` without a limit.
fn group() -> Option<MemoryGroup> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<MemoryGroup> = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, limit, used) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max", "memory.current")
        } else if controllers.split(',').any(|name| name == "memory") {
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        } else {
            continue;
        };
        // Limits of the groups above count too.
        let mut path = path.trim_start_matches('/');
        loop {
            let read = |file: &str| {
                let text = std::fs::read_to_string(format!("{root}/{path}/{file}")).ok()?;
                cli::number(text.trim())
            };
            if let (Some(limit), Some(used)) = (read(limit), read(used)) {
                let found = least.as_ref();
                let (most, more) =
                    found.map_or((u64::MAX, u64::MAX), |g| (g.limit_bytes, g.left_bytes));
                least = Some(MemoryGroup {
                    limit_bytes: most.min(limit),
                    left_bytes: more.min(limit.saturating_sub(used)),
                });
            }
            match path.rfind('/') {
                Some(end) => path = path.get(..end).unwrap_or_default(),
                None if !path.is_empty() => path = "",
                None => break,
            }
        }
    }
    least
}

/// Room that is left for others on a filesystem, and for everything else in our address space, in bytes.
const LEFT_FREE: u64 = 64 << 20;

/// `--spool-file`: a file without a name in that file's folder, of as many bytes as are wanted or free there.
pub(crate) fn spool_file(
    file: &Path,
    wanted_bytes: u64,
    freezes: impl Fn(&File) -> bool,
) -> Result<(Arc<File>, u64)> {
    let folder = folder_of(file);
    let fail = |what: &'static str, errno: Errno| {
        Error::fault(folder.display(), Fault::io(what, errno)).leaving("nothing was frozen")
    };
    let unnamed = unnamed(folder).map_err(|errno| fail("open", errno))?;
    if freezes(&unnamed) {
        return Err(Error::refused(format_args!(
            "{}: --spool-file lies on a filesystem that is to be frozen; name a file on another one",
            file.display()
        ))
        .leaving("nothing was frozen"));
    }
    if is_elsewhere(&unnamed) {
        return Err(Error::refused(format_args!(
            "{}: --spool-file lies in memory or on an overlay; name a file on a disk",
            file.display()
        ))
        .leaving("nothing was frozen"));
    }
    let bytes = wanted_bytes.min(free_bytes(&unnamed).saturating_sub(LEFT_FREE));
    let bytes = bytes.min(address_limit());
    if bytes < 1 << 20 {
        return Err(fail("make a spool file", Errno::NOSPC));
    }
    allocate(&unnamed, bytes).map_err(|errno| fail("allocate the spool file", errno))?;
    Ok((Arc::new(unnamed), bytes))
}

/// The same beside the file that is written, where there is room for both; otherwise memory must do.
pub(crate) fn spool_beside(
    file: &Path,
    wanted_bytes: u64,
    freezes: impl Fn(&File) -> bool,
) -> Option<(Arc<File>, u64)> {
    let unnamed = unnamed(folder_of(file)).ok()?;
    let free = free_bytes(&unnamed).saturating_sub(LEFT_FREE);
    if freezes(&unnamed)
        || is_elsewhere(&unnamed)
        || free / 2 < wanted_bytes
        || wanted_bytes > address_limit()
    {
        return None;
    }
    // A limit of address space is met here, where memory will do, too.
    crate::sys::memory::has_room(wanted_bytes.saturating_add(LEFT_FREE)).then_some(())?;
    allocate(&unnamed, wanted_bytes).ok()?;
    Some((Arc::new(unnamed), wanted_bytes))
}

/// Memory is what `--spool` takes; and what an overlay writes lies on another filesystem, which may be the one that is frozen.
fn is_elsewhere(file: impl AsFd) -> bool {
    /// OVERLAYFS_SUPER_MAGIC (include/uapi/linux/magic.h).
    const OVERLAY: u64 = 0x794c_7630;
    is_memory(&file) || magic(file) == Some(OVERLAY)
}

fn is_memory(file: impl AsFd) -> bool {
    /// TMPFS_MAGIC and RAMFS_MAGIC (the same file).
    const MAGICS: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    magic(file).is_some_and(|magic| MAGICS.contains(&magic))
}

/// The kind of the filesystem that a file lies on.
fn magic(file: impl AsFd) -> Option<u64> {
    let found = rustix::fs::fstatfs(file).ok()?;
    let magic = u64::try_from(found.f_type).ok()?;
    Some(magic & 0xffff_ffff)
}

/// How many bytes may be held in a file until it is known what becomes of them: where it lies in memory, as much as a spool takes.
pub(crate) fn most_held(file: impl AsFd) -> u64 {
    match is_memory(file) {
        true => Spool::Auto.wanted_bytes(),
        false => u64::MAX,
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A file that nobody else can open. Where the filesystem knows no O_TMPFILE (before 3.11, FAT, NFS) its name goes at once.
fn unnamed(folder: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match open(folder, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        Err(_) => {
            let name = folder.join(format!(".floe-spool.{}", std::process::id()));
            let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let file = open(&name, flags | new, mode)?;
            unlink(&name)?;
            Ok(file.into())
        }
    }
}

fn free_bytes(file: impl AsFd) -> u64 {
    fstatvfs(file).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Every block, so that no store into the mapping can fail for want of room.
fn allocate(file: impl AsFd, bytes: u64) -> rustix::io::Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spool_option_takes_words_and_sizes() {
        assert_eq!(Spool::parse("auto"), Some(Spool::Auto));
        assert_eq!(Spool::parse("off"), Some(Spool::Off));
        assert_eq!(Spool::parse("64M"), Some(Spool::Bytes(64 << 20)));
        assert_eq!(Spool::parse("lots"), None);
        assert_eq!(Spool::Off.bytes(), 0);
        assert!(Spool::Auto.bytes() > 0);
    }
}
