//! Where a stream goes: a file that gets its name at the end, or stdout.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Arrived;
use crate::board::ssh::PAUSE;
use crate::error::{Error, Exit, Fault, Result};
use crate::stream::partfile::PartFile;

/// Where a stream goes. Dropped without [`Self::finish`], it leaves nothing behind.
pub(crate) trait Sink: Send {
    /// The next bytes as the board sent them.
    fn packed(&mut self, bytes: &[u8]) -> Result<()>;

    /// Whether it wants an image's bytes unpacked.
    fn takes_data(&self) -> bool {
        false
    }

    /// Of an image: its next bytes, unpacked.
    fn data(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Of an image: so many zero bytes come next.
    fn zeros(&mut self, _count: u64) -> Result<()> {
        Ok(())
    }

    /// All of it has come, and every check was passed: flush it and give it its name.
    fn finish(self: Box<Self>, arrived: &Arrived) -> Result<()>;
}

/// A file that gets its name when it is complete.
pub(crate) struct ToFile {
    part: PartFile,
    file: std::fs::File,
}

impl ToFile {
    /// Creates the part file, for its owner only: images hold keys and passwords.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let (part, fd) = PartFile::begin(path)?;
        Ok(Self {
            part,
            file: fd.into(),
        })
    }
}

impl ToFile {
    /// Writes to the part file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let result = std::io::Write::write_all(&mut self.file, bytes);
        result.map_err(|e| self.error("write", &e))
    }

    /// Flushes it and gives it its name.
    pub(crate) fn close(self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.error("fsync", &e))?;
        self.part.finish()
    }

    fn error(&self, what: &'static str, error: &std::io::Error) -> Error {
        Error::std(self.part.target().display(), what, error)
    }
}

impl Sink for ToFile {
    fn packed(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    fn finish(self: Box<Self>, _: &Arrived) -> Result<()> {
        self.close()
    }
}

/// stdout: whoever reads it learns from the exit code whether it was good.
pub(crate) struct ToStdout {
    /// Set when the work is called off: a reader that takes nothing must not hold that up.
    pub stop: Arc<AtomicBool>,
}

impl Sink for ToStdout {
    fn packed(&mut self, bytes: &[u8]) -> Result<()> {
        let fail = |what, errno| match errno {
            Errno::PIPE => Error::silent(Exit::Failed),
            errno => Error::fault("stdout", Fault::io(what, errno)),
        };
        let stdout = rustix::stdio::stdout();
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::failed("interrupted"));
            }
            let mut fds = [PollFd::new(&stdout, PollFlags::OUT)];
            match poll(&mut fds, Some(&PAUSE)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(fail("poll", errno)),
            }
            // What a pipe that is ready takes without waiting (PIPE_BUF, pipe(7)).
            let part = rest.get(..rest.len().min(4096)).unwrap_or_default();
            match rustix::io::write(stdout, part) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(fail("write", errno)),
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>, _: &Arrived) -> Result<()> {
        Ok(())
    }
}
