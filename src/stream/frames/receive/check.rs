//! That everything that came is what its checksums say, before any of it is given: on several CPUs, each with a part of it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::emit::{Proof, held};
use super::{IS_KNOWN, Received};
use crate::error::Fault;
use crate::stream::frames::known::{self, Index};
use crate::stream::frames::{ChunkLayout, MAX_PACKED};
use crate::sys::memory::Pages;
use crate::threads::{self, channel};
use crate::units::{to_u64, to_usize};

/// Most threads: less than 1 MiB each.
const LANES: u64 = 8;

/// What one thread inflates.
struct Lane {
    chunks: Range<u64>,
    layout: ChunkLayout,
    index: Index,
    file: File,
    buffer: Pages,
    proof: Proof,
}

impl Received {
    /// Inflates every chunk that came. What was here already its hash proves when it is given.
    pub fn check(&self, jobs: usize) -> Result<(), Fault> {
        let lanes = to_u64(jobs).clamp(1, LANES);
        let chunks = self.layout.chunks();
        let border = |lane: u64| chunks.saturating_mul(lane) / lanes;
        let mut results = Vec::new();
        for number in 0..lanes {
            let mut lane = Lane {
                chunks: border(number)..border(number + 1),
                layout: self.layout.clone(),
                index: Index::new(&self.hold.index, 0, chunks)?,
                file: known::again(&self.hold.file)?,
                buffer: known::pages(MAX_PACKED)?,
                proof: Proof::new()?,
            };
            let (send, receive) = channel();
            let work = move || drop(send.send(lane.check()));
            threads::start(c"prove", 256 * 1024, Box::new(work))
                .map_err(|errno| Fault::io("start a thread", errno))?;
            results.push(receive);
        }
        for result in results {
            let lost = |_| Fault::short("a thread that ended");
            result.recv().map_err(lost)??;
        }
        Ok(())
    }
}

impl Lane {
    fn check(&mut self) -> Result<(), Fault> {
        for chunk in self.chunks.clone() {
            let entry = self.index.entry(chunk)?;
            if entry.packed == 0 || entry.packed == IS_KNOWN {
                continue;
            }
            let raw_bytes = self.layout.raw_bytes(chunk).unwrap_or(0);
            let length = to_usize(u64::from(entry.packed));
            let bytes = self.buffer.get_mut(..length).unwrap_or_default();
            let read = self.file.read_exact_at(bytes, entry.offset());
            read.map_err(|error| held(&error))?;
            self.proof.check(chunk, bytes, raw_bytes, entry.crc32)?;
        }
        Ok(())
    }
}
