//! Where a name for a file to come leads: the one place where it is followed.
//!
//! The folder may be anybody's. Once it is open everything happens by its descriptor, so that nobody moves it from under us, and no
//! name in it is followed any more.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};

/// Longest chain of links that is followed, as in the kernel (include/linux/namei.h, MAXSYMLINKS).
const LINKS: u32 = 40;
/// For its owner only: images hold keys and passwords.
pub(crate) const PRIVATE: u32 = 0o600;
/// include/uapi/linux/magic.h: PROC_SUPER_MAGIC.
const PROC: i128 = 0x9fa0;
/// Where a file was to be named.
pub(crate) const A_FOLDER: &str = "is a folder; name a file in it";

pub(crate) fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// Opens what has this very name, where `check` takes it: no link in its place is followed, and nobody waited for. With CREATE it may
/// be made, for its owner only. What went wrong with a name is called `what`.
pub(crate) fn open_itself(
    path: &Path,
    flags: OFlags,
    what: &'static str,
    check: impl Fn(&Stat) -> std::result::Result<(), Fault>,
) -> std::result::Result<File, Fault> {
    let io = |errno| Fault::io(what, errno);
    // Looked at before it is opened, because the opening of some devices does something; and afterwards, as it is opened by name.
    match rustix::fs::lstat(path) {
        Ok(stat) => check(&stat)?,
        Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => {}
        Err(errno) => return Err(io(errno)),
    }
    let still =
        OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::LARGEFILE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(PRIVATE);
    let file = rustix::fs::open(path, flags | still, mode).map_err(io)?;
    check(&rustix::fs::fstat(&file).map_err(io)?)?;
    Ok(file.into())
}

/// Where a file is, or will be: its folder, which is open, and its name in it, which is no link.
#[derive(Debug)]
pub struct Place {
    pub(crate) folder: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) name: OsString,
}

impl Place {
    /// Follows `path`. A link in a folder that everybody may write to counts only when it is ours or the folder's owner's: what
    /// fs.protected_symlinks is for (Documentation/admin-guide/sysctl/fs.rst), which boards often have switched off.
    pub fn find(path: &Path) -> Result<Self> {
        Self::follow(path, |_| false)
    }

    /// The same, but what a link of /proc leads to was handed over open and may have no name: there the way ends
    /// ([`Self::open_given`]).
    pub(crate) fn find_or_given(path: &Path) -> Result<Self> {
        Self::follow(path, Self::is_in_proc)
    }

    /// The name itself, whether it is a link or not.
    pub(crate) fn itself(path: &Path) -> Result<Self> {
        Self::follow(path, |_| true)
    }

    fn follow(path: &Path, ends: fn(&Self) -> bool) -> Result<Self> {
        let refused = |what: &dyn std::fmt::Display| {
            Error::refused(format_args!("{}: {what}", path.display())).leaving(NOTHING_WRITTEN)
        };
        let mut there = path.to_path_buf();
        for _ in 0..LINKS {
            let name = there.file_name().map(OsStr::to_os_string);
            let name = name.filter(|_| !there.as_os_str().as_bytes().ends_with(b"/"));
            let name = name.ok_or_else(|| refused(&A_FOLDER))?;
            let parent = there.parent().unwrap_or(Path::new(""));
            let shown = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(shown, flags, Mode::empty())
                .map_err(|errno| Error::fault(shown.display(), Fault::io("open", errno)))?;
            let place = Self {
                folder,
                path: there.clone(),
                name,
            };
            let link = match place.stat() {
                Some(stat) if is(&stat, FileType::Symlink) && !ends(&place) => stat,
                _ => return Ok(place),
            };
            let fail = |errno| Error::fault(there.display(), Fault::io("readlink", errno));
            if place.is_planted(&link).map_err(fail)? {
                return Err(refused(&format_args!(
                    "is a link of user {} in a folder that everybody may write to; name what it points to",
                    link.st_uid
                )));
            }
            let target = rustix::fs::readlinkat(&place.folder, &place.name, Vec::new());
            let target = target.map_err(fail)?;
            there = parent.join(OsStr::from_bytes(target.as_bytes()));
        }
        Err(refused(&"too many links, or links in a circle"))
    }

    /// Whether it is somebody else's in a folder that everybody may write to: who put it there is not who is to be trusted.
    pub(crate) fn is_planted(&self, stat: &Stat) -> rustix::io::Result<bool> {
        let folder = rustix::fs::fstat(&self.folder)?;
        let owners = [rustix::process::geteuid().as_raw(), folder.st_uid];
        let everybody = Mode::from_raw_mode(folder.st_mode).contains(Mode::WOTH);
        Ok(everybody && !owners.contains(&stat.st_uid))
    }

    fn is_in_proc(&self) -> bool {
        rustix::fs::fstatfs(&self.folder).is_ok_and(|found| i128::from(found.f_type) == PROC)
    }

    /// Whether it is a descriptor that was handed over, found by [`Self::find_or_given`].
    pub(crate) fn is_given(&self) -> bool {
        self.stat().is_some_and(|stat| is(&stat, FileType::Symlink)) && self.is_in_proc()
    }

    /// What is there now, or was handed over.
    pub(crate) fn stat_given(&self) -> Option<Stat> {
        match self.is_given() {
            true => rustix::fs::statat(&self.folder, &self.name, AtFlags::empty()).ok(),
            false => self.stat(),
        }
    }

    /// Opens it, whatever it is, without waiting; a new file has the mode that the umask leaves.
    pub(crate) fn open_given(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mut flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if !self.is_given() {
            flags |= OFlags::NOFOLLOW;
        }
        rustix::fs::openat(&self.folder, &self.name, flags, Mode::from_raw_mode(0o666))
    }

    /// As messages name it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there now.
    pub(crate) fn stat(&self) -> Option<Stat> {
        self.stat_of(&self.name)
    }

    pub(crate) fn stat_of(&self, name: &OsStr) -> Option<Stat> {
        rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    pub(crate) fn open(&self, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        // Not blocking, in case it has become a FIFO; a regular file does not mind.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(PRIVATE);
        let file = rustix::fs::openat(&self.folder, name, flags, mode)?;
        if flags.contains(OFlags::EXCL) {
            // What a umask took away. FAT has no modes, and may refuse.
            let _ = rustix::fs::fchmod(&file, mode);
        }
        Ok(file)
    }

    /// Makes the file, for reading and writing by its owner; fails where there is one.
    pub fn create(&self) -> rustix::io::Result<OwnedFd> {
        self.open(&self.name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens the file that is there for reading and writing.
    pub fn open_existing(&self) -> rustix::io::Result<OwnedFd> {
        self.open(&self.name, OFlags::RDWR)
    }

    /// A file without a name on the same filesystem, where that can be had.
    pub fn unnamed(&self) -> Option<OwnedFd> {
        self.open(OsStr::new("."), OFlags::RDWR | OFlags::TMPFILE)
            .ok()
    }

    /// The same with a name for a moment, where it cannot be had otherwise (FAT, kernels before 3.11 on some filesystems).
    pub(crate) fn unlinked(&self) -> rustix::io::Result<OwnedFd> {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".{}.held", std::process::id()));
        let file = self.open(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty())?;
        Ok(file)
    }

    /// What tells it from every other place, with the name behind its folder where nothing is there yet.
    pub fn identity(&self) -> (u64, u64, OsString) {
        match (self.stat(), rustix::fs::fstat(&self.folder)) {
            (Some(stat), _) => (stat.st_dev, stat.st_ino, OsString::new()),
            (None, Ok(stat)) => (stat.st_dev, stat.st_ino, self.name.clone()),
            (None, Err(_)) => (0, 0, self.path.clone().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_very_name_and_is_of_the_kind_is_opened_and_nobody_waited_for() {
        let folder = std::env::temp_dir().join(format!("floe-itself-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("folder")).unwrap();
        let path = |name: &str| folder.join(name);
        std::fs::write(path("file"), b"x").unwrap();
        std::fs::hard_link(path("file"), path("second")).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("absent", path("dangling")).unwrap();
        let fifo = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, fifo, 0).unwrap();
        let check = |stat: &Stat| match is(stat, FileType::RegularFile) {
            true => Ok(()),
            false => Err(Fault::refused("no file")),
        };
        let open = |name: &str, flags| open_itself(&path(name), flags, "open", check);
        for flags in [OFlags::RDONLY, OFlags::RDWR | OFlags::CREATE] {
            assert!(open("file", flags).is_ok());
            for other in ["link", "dangling", "fifo", "folder"] {
                let said = open(other, flags).unwrap_err().to_string();
                assert!(said.contains("no file"), "{other}: {said}");
            }
        }
        // One that is made goes through the same check, and is its owner's.
        assert!(open("new", OFlags::RDONLY).is_err());
        let made = open("new", OFlags::WRONLY | OFlags::CREATE).unwrap();
        assert_eq!(rustix::fs::fstat(&made).unwrap().st_mode & 0o077, 0);
        let alone = |stat: &Stat| match stat.st_nlink {
            1 => Ok(()),
            _ => Err(Fault::refused("has two names")),
        };
        let read = OFlags::RDONLY;
        assert!(open_itself(&path("new"), read, "open", alone).is_ok());
        assert!(open_itself(&path("second"), read, "open", alone).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
