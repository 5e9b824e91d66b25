//! Pre-copy, as a run sees it: whether there is any, what watches the devices meanwhile, and how far it is believed.
//!
//! The rounds themselves are `stream/pipeline/precopy.rs`. Here: which ranges are traced, and that a trace which lost anything is not
//! believed from then on. Where writes cannot be traced, contents are compared under the freeze.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::device::DeviceKind;
use crate::features;
use crate::freeze::{FreezeTarget, Leftover, Method};
use crate::mounts::{DevId, System};
use crate::stream::pipeline;
use crate::stream::plan::CHUNK_BYTES;
use crate::take::source::Prepared;
use crate::threads::Lock;
use crate::trace::{Marks, Reserved, Tracer, WatchedRange};
use crate::units::BlockSize;

/// `--precopy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Wherever something can hold what is read early.
    #[default]
    Auto,
    /// Without a trace; not for people: tests force what kernels without tracefs do.
    Compared,
    /// Everything is read in the frozen window.
    Off,
}

impl Wanted {
    /// Parses `auto` or `off`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "compare" => Some(Self::Compared),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

/// Before the freeze a round more is worth it while it leaves less than this part of what it took.
const WORTH: u64 = 2;
/// What is read under the freeze without another round before: half a second of a slow card.
const LITTLE_BYTES: u64 = 8 << 20;
/// Rounds before the freeze at most, the first one included.
const ROUNDS: u32 = 6;

/// The trace of a run: for who waits until it shows everything (which may take as long as a disk that hangs), and for who ends it.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Lock<Option<Traced>>>);

struct Traced {
    tracer: Tracer,
    /// Readable for ever once a program wrote to a file below a loop device, which is no write to that device.
    notices: Option<OwnedFd>,
}

impl Trace {
    fn with(&self, ask: impl FnOnce(&Tracer) -> bool) -> bool {
        let traced = self.0.lock();
        let asked = |traced: &Traced| {
            let noticed = traced.notices.as_ref().is_some_and(is_readable);
            !noticed && ask(&traced.tracer)
        };
        features::PRECOPY && traced.as_ref().is_some_and(asked)
    }

    /// Whether every write up to now is marked. Once it says no it always does. No heap.
    pub(crate) fn is_complete(&self, limit: Duration) -> bool {
        self.with(|tracer| tracer.drain(limit).is_ok())
    }

    /// The same when everything has just been frozen, and no write is under way.
    pub(crate) fn is_complete_frozen(&self, limit: Duration) -> bool {
        self.with(|tracer| tracer.drain_frozen(limit).is_ok())
    }

    fn set(&self, traced: Option<Traced>) {
        *self.0.lock() = traced;
    }
}

struct Awaited {
    reserved: Reserved,
    watched: Vec<WatchedRange>,
    notices: Option<OwnedFd>,
}

impl Awaited {
    fn new(sources: &[Prepared]) -> Option<Self> {
        Some(Self {
            watched: watched(sources)?,
            notices: notices(sources)?,
            reserved: Reserved::new().ok()?,
        })
    }
}

fn is_readable(notices: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(notices, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

/// What tells of writes to the files below the sources. `None`: it cannot be had; `Some(None)`: there are none.
fn notices(sources: &[Prepared]) -> Option<Option<OwnedFd>> {
    let mut files = sources.iter().flat_map(|source| &source.watched).peekable();
    if files.peek().is_none() {
        return Some(None);
    }
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let notices = inotify::init(flags).ok()?;
    for file in files {
        file.tell(&notices).ok()?;
    }
    Some(Some(notices))
}

/// What watches the devices of a run. With it the trace ends.
pub(crate) struct TraceWatch {
    /// What is to be traced, before the guardian has started.
    awaited: Option<Awaited>,
    trace: Trace,
    marks: Option<Arc<Marks>>,
    /// Everything frozen can be thawed and frozen again without more harm than a short wait: no read-only remount is among it.
    tries: bool,
    chunks: u64,
}

impl TraceWatch {
    /// `None` where pre-copy is not wanted, or nothing would be frozen. Before the guardian starts.
    pub(crate) fn start(
        sources: &[Prepared],
        targets: &[FreezeTarget],
        wanted: Wanted,
    ) -> Option<Self> {
        if !features::PRECOPY || wanted == Wanted::Off || targets.is_empty() {
            return None;
        }
        let segments = || sources.iter().flat_map(|source| &source.segments);
        let chunks = segments().fold(0u64, |sum, segment| {
            sum.saturating_add(segment.length_bytes.div_ceil(CHUNK_BYTES))
        });
        let tries = targets
            .iter()
            .all(|target| matches!(target.method, Method::Freeze));
        let awaited = match wanted {
            // The trial leaves no write under way that began before the trace; without one contents are compared.
            Wanted::Auto if tries => Awaited::new(sources),
            Wanted::Auto | Wanted::Compared | Wanted::Off => None,
        };
        Some(Self {
            awaited,
            trace: Trace::default(),
            marks: None,
            tries,
            chunks,
        })
    }

    /// What the guardian takes away should floe die. Without that no trace is made.
    pub(crate) fn leftovers(&mut self) -> Vec<Leftover> {
        let Some(awaited) = &self.awaited else {
            return Vec::new();
        };
        match awaited.reserved.leftover() {
            Ok(left) => vec![left],
            Err(_) => {
                self.awaited = None;
                Vec::new()
            }
        }
    }

    /// Starts the trace, and to read along. After the guardian has started, which wants one thread and outlives us.
    pub(crate) fn follow(&mut self, system: &System) {
        let Some(awaited) = self.awaited.take().filter(|_| features::PRECOPY) else {
            return;
        };
        let Awaited {
            reserved,
            watched,
            notices,
        } = awaited;
        let tracer = BlockSize::from_bytes(CHUNK_BYTES)
            .and_then(|chunk| Tracer::start(reserved, system.roots(), &watched, chunk).ok());
        let tracer = tracer.and_then(|mut tracer| tracer.follow().ok().map(|()| tracer));
        self.marks = tracer.as_ref().map(Tracer::marks);
        self.trace
            .set(tracer.map(|tracer| Traced { tracer, notices }));
    }

    pub(crate) fn precopy(&self) -> pipeline::Precopy {
        pipeline::Precopy {
            chunks: self.chunks,
            marks: self.marks(),
        }
    }

    /// Where writes are noted.
    pub(crate) fn marks(&self) -> Option<Arc<Marks>> {
        self.marks.clone()
    }

    /// Whether a freeze and thaw of an instant comes first.
    pub(crate) fn tries(&self) -> bool {
        self.tries
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// After a trial.
    pub(crate) fn thawed(&self) {
        self.trace.with(|tracer| {
            tracer.thawed();
            true
        });
    }

    /// Whether another round before the freeze is worth it, when `stale` bytes are out of date after a round that took `took`.
    pub(crate) fn is_worth_it(&self, round: u32, took: u64, stale: u64) -> bool {
        round < ROUNDS && stale > LITTLE_BYTES && stale < took / WORTH
    }
}

impl Drop for TraceWatch {
    fn drop(&mut self) {
        // Held by who waits for a disk that hangs: then the guardian takes it away, or the next floe.
        if let Some(mut traced) = self.trace.0.try_lock() {
            *traced = None;
        }
    }
}

/// For tests that compare an image with its source, or write to it: when all is read, a debug build renames the file that
/// FLOE_TEST_HOLD names to `FILE.frozen`, and keeps everything frozen, before the second look, while that is there. A release build cannot.
#[derive(Debug, Default)]
pub(crate) struct TestHold {
    #[cfg(debug_assertions)]
    file: Option<(std::ffi::CString, std::ffi::CString)>,
}

#[cfg(not(debug_assertions))]
impl TestHold {
    /// Nothing.
    pub(crate) fn told() -> Self {
        Self {}
    }

    /// Never.
    pub(crate) fn is_held(&self) -> bool {
        false
    }
}

#[cfg(debug_assertions)]
impl TestHold {
    /// What the environment says, read before the freeze.
    pub(crate) fn told() -> Self {
        let names = |name: String| {
            let frozen = std::ffi::CString::new(format!("{name}.frozen")).ok()?;
            Some((std::ffi::CString::new(name).ok()?, frozen))
        };
        let file = std::env::var("FLOE_TEST_HOLD").ok().and_then(names);
        Self { file }
    }

    /// Whether the test still wants it frozen. No heap.
    pub(crate) fn is_held(&self) -> bool {
        self.file.as_ref().is_some_and(|(name, frozen)| {
            let _ = rustix::fs::rename(name, frozen);
            rustix::fs::stat(frozen).is_ok()
        })
    }
}

/// What a trace has to watch. `None`: something is read through the page cache, where old bytes may come back although nothing was
/// written since.
fn watched(sources: &[Prepared]) -> Option<Vec<WatchedRange>> {
    let mut watched = Vec::new();
    for source in sources {
        for segment in &source.segments {
            let device = &source.devices.get(segment.device)?.device;
            if device.kind() != DeviceKind::Block || !device.is_direct() {
                return None;
            }
            watched.push(WatchedRange {
                dev: DevId::from_raw(device.rdev()),
                offset_bytes: segment.offset,
                length_bytes: segment.length_bytes,
            });
        }
    }
    Some(watched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_on_while_each_leaves_clearly_less_and_more_than_little() {
        let watch = TraceWatch {
            awaited: None,
            trace: Trace::default(),
            marks: None,
            tries: true,
            chunks: 0,
        };
        assert!(watch.is_worth_it(1, 1 << 30, 100 << 20));
        assert!(!watch.is_worth_it(1, 1 << 30, LITTLE_BYTES));
        assert!(!watch.is_worth_it(1, 100 << 20, 60 << 20));
        assert!(!watch.is_worth_it(ROUNDS, 1 << 30, 100 << 20));
    }
}
