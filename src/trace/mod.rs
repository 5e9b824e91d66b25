//! Which parts of a disk were written: the kernel's own trace of block writes, read by one thread and turned into marks.
//!
//! What pre-copy needs: for every chunk, whether anything may have written it since it was read. [`Tracer::start`] makes a
//! private instance of tracefs, [`Tracer::follow`] starts the thread, [`Tracer::drain`] brings the [`Marks`] up to now and says
//! whether nothing was lost. Where it cannot be had ([`Untraced`]) or something was lost ([`Lost`]), the caller compares contents.

mod marks;

use std::ffi::CString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::mounts::{DevId, Roots};
use crate::units::BlockSize;

pub use marks::Marks;

/// A range of a block device (a disk, a partition, dm, md, loop) whose writes are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The device.
    pub dev: DevId,
    /// Where the range begins on that device.
    pub offset_bytes: u64,
    /// Its length.
    pub length_bytes: u64,
}

/// Why there is no trace, in words that follow "writes cannot be traced: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untraced(pub String);

impl fmt::Display for Untraced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the trace is not to be believed any more; made without the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost(pub &'static str);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What of an instance is left to take away when floe dies: `unlinkat(directory, name, AT_REMOVEDIR)`.
#[derive(Debug)]
pub struct Leftover {
    /// The folder `instances` of tracefs.
    pub directory: OwnedFd,
    /// The instance's name in it.
    pub name: CString,
}

/// A running trace. Dropping it ends the thread and removes the instance.
#[derive(Debug)]
pub struct Tracer {
    marks: Arc<Marks>,
}

impl Tracer {
    /// Begins to record the writes to these ranges; `chunk` is what one mark stands for. Before the guardian starts: no thread
    /// is made here.
    pub fn start(roots: &Roots, watched: &[Watched], chunk: BlockSize) -> Result<Self, Untraced> {
        let _ = (
            roots,
            Marks::new(watched.iter().map(|range| range.length_bytes), chunk),
        );
        Err(Untraced("this floe cannot do it yet".to_owned()))
    }

    /// Starts the thread that reads along. After the guardian was forked (which wants no threads), and soon.
    pub fn follow(&mut self) -> Result<(), Untraced> {
        Ok(())
    }

    /// The marks; range `n` is the `n`th of what is watched.
    pub fn marks(&self) -> &Arc<Marks> {
        &self.marks
    }

    /// Returns when everything that was written before the call is in the marks, and nothing was lost since the start. A write
    /// that was queued and has not ended marks its chunks each time this is called. Opens nothing and takes no heap.
    pub fn drain(&self, limit: Duration) -> Result<(), Lost> {
        let _ = limit;
        Err(Lost("the trace was not read"))
    }

    /// What the guardian takes away should floe die.
    pub fn leftover(&self) -> Result<Leftover, Untraced> {
        Err(Untraced("this floe cannot do it yet".to_owned()))
    }
}

/// Whether writes can be traced on this machine at all (`show` says so).
pub fn available(roots: &Roots) -> Result<(), Untraced> {
    let _ = roots;
    Err(Untraced("this floe cannot do it yet".to_owned()))
}
