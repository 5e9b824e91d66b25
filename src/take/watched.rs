//! A file whose bytes become an image: that nobody writes to it meanwhile.
//!
//! An image file is held by nobody, and below a loop device everybody can write to the file past the filesystem that is frozen on
//! it. Its length and its times of change tell: the kernel sets them with every write (and, for what is mapped, with the first store
//! to each page since it was last written back). What lies in tmpfs and is mapped changes unseen.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Stat, inotify};
use rustix::io::Errno;

use crate::error::Error;

/// Longest time between two ticks of the clock that files get their times from (CONFIG_HZ=100), and some more.
const TICK: Duration = Duration::from_millis(15);

/// Length, modification and change.
type Stamp = (i64, [i64; 4]);

/// A file that is watched.
#[derive(Debug)]
pub(crate) struct WatchedFile {
    file: OwnedFd,
    shown: String,
    before: Option<Stamp>,
}

impl WatchedFile {
    /// From when [`Self::begin`] is called.
    pub(crate) fn new(file: OwnedFd, shown: String) -> Self {
        Self {
            file,
            shown,
            before: None,
        }
    }

    /// From now on. What was changed in memory only, or within the same tick of the clock, would change later without a trace:
    /// so it is written first, and the tick waited for.
    pub(crate) fn settled(mut self) -> Self {
        let _ = rustix::fs::fdatasync(&self.file);
        std::thread::sleep(TICK);
        self.begin();
        self
    }

    /// From now on, unless it was begun before. Nothing is opened or allocated.
    pub(crate) fn begin(&mut self) {
        if self.before.is_none() {
            self.before = stamp(self.file.as_fd());
        }
    }

    /// Has `notices` (inotify) tell of what programs write to it. What a loop device writes for the filesystem on it does not count on
    /// kernels since 6.16; on older ones it does, and on all a store to what is mapped does not.
    pub(crate) fn tell(&self, notices: &OwnedFd) -> Result<(), Errno> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        inotify::add_watch(notices, path, inotify::WatchFlags::MODIFY).map(drop)
    }

    /// An error when it was changed since. To be asked while it is still held still.
    pub(crate) fn has_changed(&self) -> bool {
        self.before.is_none() || self.before != stamp(self.file.as_fd())
    }

    /// For a person.
    pub(crate) fn error(&self) -> Error {
        Error::failed(format_args!(
            "{}: somebody wrote to this file while it was read; the image is not consistent",
            self.shown
        ))
        .leaving("what was written is not complete")
    }
}

fn stamp(file: impl AsFd) -> Option<Stamp> {
    let Stat {
        st_size,
        st_mtime,
        st_mtime_nsec,
        st_ctime,
        st_ctime_nsec,
        ..
    } = rustix::fs::fstat(file).ok()?;
    // Their types differ between architectures; what does not fit is a time of its own.
    let number = |value: i128| i64::try_from(value).unwrap_or(i64::MAX);
    Some((
        number(st_size.into()),
        [
            number(st_mtime.into()),
            number(st_mtime_nsec.into()),
            number(st_ctime.into()),
            number(st_ctime_nsec.into()),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_write_shows_and_reading_does_not() {
        let path = std::env::temp_dir().join(format!("floe-watched-{}", std::process::id()));
        std::fs::write(&path, b"abc").unwrap();
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let watch = || WatchedFile::new(file.try_clone().unwrap().into(), "x".into()).settled();
        let watched = watch();
        file.read_exact_at(&mut [0; 3], 0).unwrap();
        assert!(!watched.has_changed());
        // The same byte again, and a length that comes back.
        file.write_all_at(b"a", 0).unwrap();
        assert!(watched.has_changed());
        let watched = watch();
        file.set_len(10).unwrap();
        file.set_len(3).unwrap();
        assert!(watched.has_changed());
        let mut late = WatchedFile::new(file.try_clone().unwrap().into(), "x".into());
        assert!(late.has_changed(), "never begun is no proof");
        late.begin();
        assert!(!late.has_changed());
        std::fs::remove_file(&path).unwrap();
    }
}
