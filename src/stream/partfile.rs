//! A file that appears only when it is complete: written as `FILE.part`, flushed, renamed.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};

/// The part file of a FILE to come. Dropping it unfinished removes it.
#[derive(Debug)]
pub struct PartFile {
    target: PathBuf,
    part: PathBuf,
    file: Option<File>,
    /// Holds the lock until the file has its name, whoever closes the other descriptor.
    _lock: File,
    done: bool,
}

/// How often a part file that changes hands is tried again.
const TRIES: u32 = 20;

impl PartFile {
    /// Creates `TARGET.part` with `mode`. The target may be absent or a regular file; a device, directory or anything else is refused.
    pub fn create(target: &Path, mode: u32) -> Result<Self> {
        // A name that is a link stands for what it points to: that is replaced, not the link.
        let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        let name = target.display();
        match std::fs::metadata(&target) {
            Ok(meta) if meta.file_type().is_block_device() => {
                return Err(Error::refused(format_args!(
                    "{name}: is a device; -o writes files, 'floe restore' writes devices"
                )));
            }
            Ok(meta) if !meta.is_file() => {
                return Err(Error::refused(format_args!(
                    "{name}: is not a regular file"
                )));
            }
            Ok(_) | Err(_) => {}
        }
        let mut part: OsString = target.clone().into();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = open(&part, mode)?;
        let fail = |what, e| Error::failed(format_args!("{}: {what}: {e}", part.display()));
        file.set_len(0).map_err(|e| fail("truncate", e))?;
        let lock = file.try_clone().map_err(|e| fail("dup", e))?;
        Ok(Self {
            target,
            part,
            file: Some(file),
            _lock: lock,
            done: false,
        })
    }

    /// The file that is being written, once.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.file.take().map(OwnedFd::from)
    }

    /// The name it will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Gives the (already flushed) file its name, and flushes the directory.
    pub fn finish(mut self) -> Result<()> {
        std::fs::rename(&self.part, &self.target).map_err(|e| {
            Error::failed(format_args!(
                "{}: rename to {}: {e}",
                self.part.display(),
                self.target.display()
            ))
        })?;
        self.done = true;
        let directory = match self.target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| Error::failed(format_args!("{}: fsync: {e}", directory.display())))
    }
}

/// Opens and locks the part file. What an interrupted run left is taken over; what a running one still writes is not.
fn open(part: &Path, mode: u32) -> Result<File> {
    let busy = || {
        Error::refused(format_args!(
            "{}: another process is writing it",
            part.display()
        ))
    };
    for _ in 0..TRIES {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(part)
            .map_err(|e| Error::failed(format_args!("{}: create: {e}", part.display())))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            == Err(rustix::io::Errno::WOULDBLOCK)
        {
            return Err(busy());
        }
        // Whoever had it may have given it its name, or removed it, between the open and the lock.
        let same = std::fs::symlink_metadata(part)
            .and_then(|there| file.metadata().map(|file| is_same(&file, &there)));
        if same.unwrap_or(false) {
            return Ok(file);
        }
    }
    Err(busy())
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_name_appears_only_when_finished_and_an_abandoned_part_vanishes() {
        let directory = std::env::temp_dir().join(format!("floe-part-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let target = directory.join("x.img");
        drop(PartFile::create(&target, 0o600).unwrap());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        let mut part = PartFile::create(&target, 0o600).unwrap();
        assert!(PartFile::create(&target, 0o600).is_err());
        File::from(part.take_fd().unwrap())
            .write_all(b"abc")
            .unwrap();
        assert!(!target.exists());
        part.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        assert!(matches!(
            PartFile::create(&directory, 0o600),
            Err(error) if error.exit() == Some(crate::error::Exit::Refused)
        ));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn nobody_takes_the_part_over_before_it_has_its_name_and_the_name_is_never_truncated() {
        let directory = std::env::temp_dir().join(format!("floe-part-lock-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let target = directory.join("x.img");
        let mut part = PartFile::create(&target, 0o600).unwrap();
        let mut file = File::from(part.take_fd().unwrap());
        file.write_all(b"abc").unwrap();
        drop(file);
        let other = PartFile::create(&target, 0o600).map(drop);
        assert!(
            matches!(other, Err(ref error) if error.exit() == Some(crate::error::Exit::Refused)),
            "{other:?}"
        );
        part.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        // One after the other, two at a time: each file that has its name is whole.
        let writer = |letter: u8| {
            let target = target.clone();
            move || {
                for _ in 0..300 {
                    let Ok(mut part) = PartFile::create(&target, 0o600) else {
                        continue;
                    };
                    let mut file = File::from(part.take_fd().unwrap());
                    for _ in 0..4 {
                        file.write_all(&[letter; 500]).unwrap();
                    }
                    drop(file);
                    part.finish().unwrap();
                    let found = std::fs::read(&target).unwrap();
                    assert_eq!(found.len(), 2000);
                    assert!(found.iter().all(|byte| Some(byte) == found.first()));
                }
            }
        };
        let threads = [b'a', b'b'].map(|letter| std::thread::spawn(writer(letter)));
        for thread in threads {
            thread.join().unwrap();
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
