//! Files by their names below a mounted filesystem's root, whatever it is: symbolic links are followed inside of it, other mounts are
//! not entered.
//!
//! Plain reads, name by name with O_NOFOLLOW and never waiting (a FIFO, a device), so that nothing on a foreign filesystem leads out of
//! it. It may change meanwhile: this is for looking, not for images.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};

use super::MAX_CONTENT;
use crate::error::Fault;
use crate::fs::files::{FoundFile, MAX_PATH, fits};

/// Links in a row, as in the kernel (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;
/// Folders inside each other below `DIR/`.
const MAX_DEPTH: u32 = 64;
/// `BTRFS_SUPER_MAGIC`: its subvolumes have device numbers of their own.
const BTRFS: u64 = 0x9123_683e;

/// A mounted filesystem.
pub struct Tree<'t> {
    dev: Option<u64>,
    /// The folders from the root to where we are.
    stack: Vec<OwnedFd>,
    /// The path as the pattern leads.
    path: Vec<u8>,
    each: &'t mut dyn FnMut(FoundFile<'_>),
}

impl<'t> Tree<'t> {
    /// `root` is its root folder.
    pub fn new(root: OwnedFd, each: &'t mut dyn FnMut(FoundFile<'_>)) -> Result<Self, Fault> {
        let stat = fstat(&root).map_err(|errno| Fault::io("stat", errno))?;
        let kind = rustix::fs::fstatfs(&root).map_err(|errno| Fault::io("statfs", errno))?;
        let is_btrfs = u64::try_from(kind.f_type).is_ok_and(|kind| kind & 0xffff_ffff == BTRFS);
        Ok(Self {
            dev: (!is_btrfs).then_some(stat.st_dev),
            stack: vec![root],
            path: Vec::new(),
            each,
        })
    }

    /// Gives every regular file that `pattern` names. What cannot be read or leads nowhere is not there.
    pub fn look(&mut self, pattern: &[u8]) {
        self.stack.truncate(1);
        self.path.clear();
        self.names(pattern, pattern.len(), MAX_LINKS);
    }

    /// What `rest` names in the folder on top; its last `asked` bytes are the pattern's, what stands before them is a link's.
    fn names(&mut self, rest: &[u8], asked: usize, links: u32) {
        let start = rest.iter().position(|byte| *byte != b'/');
        let Some(rest) = start.and_then(|start| rest.get(start..)) else {
            return self.below(MAX_DEPTH);
        };
        let end = rest.iter().position(|byte| *byte == b'/');
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        let is_asked = rest.len() <= asked;
        match name {
            b"." => return self.names(after, asked, links),
            b".." => {
                let top = match self.stack.len() {
                    0 | 1 => None,
                    _ => self.stack.pop(),
                };
                let length = self.path.len();
                if is_asked {
                    self.path.extend_from_slice(b"/..");
                }
                self.names(after, asked, links);
                self.path.truncate(length);
                self.stack.extend(top);
                return;
            }
            _ => {}
        }
        let names = match is_asked && name.contains(&b'*') {
            true => self
                .list()
                .into_iter()
                .filter(|found| fits(name, found))
                .collect(),
            false => vec![name.to_owned()],
        };
        let length = self.path.len();
        for name in names {
            if is_asked {
                self.path.push(b'/');
                self.path.extend_from_slice(&name);
            }
            self.name(&name, after, asked, links);
            self.path.truncate(length);
        }
    }

    fn name(&mut self, name: &[u8], after: &[u8], asked: usize, links: u32) {
        let Some(top) = self.stack.last() else {
            return;
        };
        match (self.kind(name), links.checked_sub(1)) {
            (Some(FileType::Symlink), Some(links)) => {
                let Ok(text) = readlinkat(top, name, Vec::new()) else {
                    return;
                };
                let mut rest = text.into_bytes();
                let above = match rest.first() {
                    Some(b'/') => self.stack.split_off(1),
                    _ => Vec::new(),
                };
                rest.extend_from_slice(after);
                if rest.len() <= 4 * MAX_PATH {
                    self.names(&rest, asked.min(after.len()), links);
                }
                self.stack.extend(above);
            }
            (Some(FileType::Directory), _) if !after.is_empty() => {
                let inside = self.enter(name);
                if let Some(folder) = inside {
                    self.stack.push(folder);
                    self.names(after, asked, links);
                    self.stack.pop();
                }
            }
            (Some(FileType::RegularFile), _) if after.is_empty() => self.file(name),
            _ => {}
        }
    }

    fn below(&mut self, depth: u32) {
        let Some(deeper) = depth.checked_sub(1) else {
            return;
        };
        let length = self.path.len();
        for name in self.list() {
            self.path.push(b'/');
            self.path.extend_from_slice(&name);
            match self.kind(&name) {
                Some(FileType::RegularFile) => self.file(&name),
                Some(FileType::Directory) => {
                    if let Some(folder) = self.enter(&name) {
                        self.stack.push(folder);
                        self.below(deeper);
                        self.stack.pop();
                    }
                }
                _ => {}
            }
            self.path.truncate(length);
        }
    }

    /// What `name` is in the folder on top; nothing where another filesystem is mounted.
    fn kind(&self, name: &[u8]) -> Option<FileType> {
        let stat = statat(self.stack.last()?, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_ours = self.dev.is_none_or(|dev| dev == stat.st_dev);
        is_ours.then(|| FileType::from_raw_mode(stat.st_mode))
    }

    fn open(&self, name: &[u8], flags: OFlags) -> Option<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(
            self.stack.last()?,
            name,
            flags | OFlags::NOCTTY,
            Mode::empty(),
        )
        .ok()
    }

    fn enter(&self, name: &[u8]) -> Option<OwnedFd> {
        self.open(name, OFlags::DIRECTORY)
    }

    /// The names in the folder on top, in order.
    fn list(&self) -> Vec<Vec<u8>> {
        let folder = self.stack.last().and_then(|top| Dir::read_from(top).ok());
        let mut names: Vec<Vec<u8>> = folder
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_bytes().to_owned())
            .filter(|name| !matches!(name.as_slice(), b"." | b".."))
            .collect();
        crate::units::sort(&mut names, |a, b| a < b);
        names
    }

    fn file(&mut self, name: &[u8]) {
        let Some(file) = self.open(name, OFlags::empty()) else {
            return;
        };
        let Ok(stat) = fstat(&file) else {
            return;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return;
        }
        let mut content = vec![0; MAX_CONTENT];
        let mut length = 0;
        while let Some(rest) = content.get_mut(length..)
            && let Ok(count @ 1..) = rustix::io::read(&file, rest)
        {
            length += count;
        }
        (self.each)(FoundFile {
            path: &self.path,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            content: content.get(..length),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn look(root: &Path, pattern: &str) -> Vec<(String, String)> {
        let fd = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut found = Vec::new();
        let mut each = |seen: FoundFile<'_>| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            found.push((text(seen.path), text(seen.content.unwrap())));
        };
        Tree::new(fd, &mut each).unwrap().look(pattern.as_bytes());
        found
    }

    #[test]
    fn names_stars_folders_and_links_are_followed_inside_the_root_only() {
        let root = std::env::temp_dir().join(format!("floe-tree-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for folder in ["etc/ssh", "var/lib/seeds/below", "home/a", "home/b"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (name, text) in [
            ("etc/machine-id", "id"),
            ("etc/ssh/ssh_host_a", "a"),
            ("etc/ssh/ssh_host_b", "b"),
            ("etc/ssh/other", "x"),
            ("var/lib/seeds/one", "1"),
            ("var/lib/seeds/below/two", "2"),
            ("home/b/.ash_history", "typed"),
        ] {
            fs::write(root.join(name), text).unwrap();
        }
        symlink("/etc/machine-id", root.join("absolute")).unwrap();
        symlink("../../../../etc", root.join("home/a/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/proc/self/root/etc/passwd", root.join("outside")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("etc/fifo"), Mode::RUSR).unwrap();
        let pair = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        for (pattern, wanted) in [
            ("/etc/machine-id", vec![pair("/etc/machine-id", "id")]),
            ("/absolute", vec![pair("/absolute", "id")]),
            (
                "/home/a/up/ssh/ssh_host_b",
                vec![pair("/home/a/up/ssh/ssh_host_b", "b")],
            ),
            (
                "/etc/ssh/ssh_host_*",
                vec![
                    pair("/etc/ssh/ssh_host_a", "a"),
                    pair("/etc/ssh/ssh_host_b", "b"),
                ],
            ),
            (
                "/home/*/.*_history",
                vec![pair("/home/b/.ash_history", "typed")],
            ),
            (
                "/etc/../../var/./lib/seeds/one",
                vec![pair("/etc/../../var/lib/seeds/one", "1")],
            ),
            (
                "/var/lib/seeds/",
                vec![
                    pair("/var/lib/seeds/below/two", "2"),
                    pair("/var/lib/seeds/one", "1"),
                ],
            ),
            ("/etc", vec![]),
            ("/etc/fifo", vec![]),
            ("/loop", vec![]),
            ("/outside", vec![]),
            ("/etc/machine-id/x", vec![]),
        ] {
            assert_eq!(look(&root, pattern), wanted, "{pattern}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
