//! What was read and what was taken, for people and for the guardian.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::freeze::Heartbeat as Beat;
use crate::stream::pipeline::Meter;

/// The counters of a run; forwarded to the guardian when there is one.
pub(crate) struct Counters {
    read: AtomicU64,
    taken: AtomicU64,
    beat: Option<Beat>,
}

impl Counters {
    /// Leaked, because threads that may never return use it.
    pub(crate) fn leak(beat: Option<Beat>) -> &'static Self {
        Box::leak(Box::new(Self {
            read: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            beat,
        }))
    }

    /// Bytes read from the sources.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// A sign of life for the guardian that is not counted as read: the survey's own reads.
    pub(crate) fn alive(&self, bytes: u64) {
        if let Some(beat) = self.beat {
            beat.add_read(bytes);
        }
    }

    /// Bytes taken by the sink.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Meter for Counters {
    fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        if let Some(beat) = self.beat {
            beat.add_read(bytes);
        }
    }

    fn taken(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        if let Some(beat) = self.beat {
            beat.add_taken(bytes);
        }
    }
}
