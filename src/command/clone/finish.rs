//! The end of a clone, after the thaw: free ranges become zeros, everything is flushed and (with `--verify`) read back, and only then
//! the first superblocks are written, one target after another.

use std::sync::Arc;

use crate::command::clone::targets::{ChunkSums, Onto, Targets};
use crate::content::{Content, Head};
use crate::error::{Error, Fault, Result};
use crate::put::free;
use crate::put::head::{self, Last};
use crate::stream::copy::{self as writing, CopyFailure, CopyProgress, ZeroPolicy};
use crate::stream::pipeline::is_zero;
use crate::stream::plan::{Plan, SPAN_BYTES};
use crate::sys::memory::Pages;
use crate::threads::forgive;
use crate::units::{Extent, to_usize};

/// What is left to be done, in a thread of its own.
pub(super) struct Finish {
    /// The targets.
    pub targets: &'static Targets,
    /// What was read.
    pub plan: &'static Plan,
    /// For the waiting thread.
    pub progress: Arc<CopyProgress>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// By target: bytes zeroed, and bytes left as they were.
    pub figures: Vec<(u64, u64)>,
    /// Things to tell.
    pub notes: Vec<String>,
}

impl Finish {
    /// Does all of it. After the first write a refusal is 1, never 4.
    pub(super) fn run(self) -> Result<Finished> {
        self.steps().map_err(|error| error.begun(""))
    }

    fn steps(&self) -> Result<Finished> {
        let mut finished = Finished::default();
        let targets = || self.targets.onto.iter().map(size);
        self.progress.begin(writing::ZEROING, targets().sum());
        self.zero()?;
        for onto in &self.targets.onto {
            let skipped = self.settle(onto)?;
            let mut target = forgive(onto.target.write());
            target
                .sync()
                .map_err(|fault| Error::fault(&onto.name, fault))?;
            finished.figures.push((target.zeroed_bytes, skipped));
        }
        if let Some(sums) = &self.targets.sums {
            self.progress.begin(writing::READING_BACK, targets().sum());
            self.compare(sums)?;
        }
        for onto in &self.targets.onto {
            let stopped = self.progress.stopped();
            stopped.map_err(|failure| failed(onto, failure))?;
            finished.notes.extend(self.write_head(onto)?);
        }
        Ok(finished)
    }

    /// Every range of zeros, up to the end of each target.
    fn zero(&self) -> Result<()> {
        self.targets.walk(self.plan, |index, extent, part| {
            match (self.targets.onto.get(index), part) {
                (Some(onto), None) => self.zero_run(index, onto, extent),
                _ => Ok(()),
            }
        })?;
        for (index, onto) in self.targets.onto.iter().enumerate() {
            self.zero_run(index, onto, behind(onto))?;
        }
        Ok(())
    }

    fn zero_run(&self, index: usize, onto: &Onto, run: Extent) -> Result<()> {
        let before = self.targets.onto.iter().take(index).map(size).sum();
        let base = &self.progress.base_bytes;
        base.store(before, std::sync::atomic::Ordering::Relaxed);
        let mut target = forgive(onto.target.write());
        let mut left = onto.left.lock();
        let leave = left.as_mut().and_then(|left| left.leave(run));
        writing::zero(&mut target, run, leave, &self.progress)
            .map_err(|failure| failed(onto, failure))
    }

    /// Zeroes what was left alone and must not keep stale bytes; gives the bytes that stay untouched.
    fn settle(&self, onto: &Onto) -> Result<u64> {
        let mut left = onto.left.lock();
        let Some(left) = left.as_mut() else {
            return Ok(0);
        };
        let mut target = forgive(onto.target.write());
        let head = onto.head.lock();
        let head = head.get(..onto.head_bytes).unwrap_or_default();
        free::settle(
            &mut target,
            &content(onto, head)?,
            head,
            left,
            &self.progress,
        )
        .map_err(|failure| failed(onto, failure))
    }

    /// Reads everything back behind the heads, which are taken from memory.
    fn compare(&self, sums: &ChunkSums) -> Result<()> {
        let found = sums.empty();
        let buffer = Pages::new(to_usize(SPAN_BYTES));
        let mut buffer = buffer.map_err(|e| Error::fault("floe", Fault::io("mmap", e)))?;
        for onto in &self.targets.onto {
            let target = forgive(onto.target.read());
            target
                .drop_cache()
                .map_err(|fault| Error::fault(&onto.name, fault))?;
        }
        self.targets.walk(self.plan, |index, extent, part| {
            let Some(onto) = self.targets.onto.get(index) else {
                return Ok(());
            };
            let Some(part) = part else {
                self.targets.forget(index, extent);
                return self.compare_zeros(onto, extent, &mut buffer);
            };
            let bytes = self.read(onto, extent, &mut buffer)?;
            if let Some(first) = self.targets.chunk_at(part, extent.offset) {
                found.add_all(first, bytes);
            }
            Ok(())
        })?;
        for onto in &self.targets.onto {
            self.compare_zeros(onto, behind(onto), &mut buffer)?;
        }
        let Some((chunk, count)) = sums.difference(&found) else {
            return Ok(());
        };
        Err(match self.targets.place_of(chunk) {
            Some((onto, offset)) => head::differs(
                &onto.name,
                Extent::at(
                    offset,
                    count.saturating_mul(crate::stream::plan::CHUNK_BYTES),
                ),
            ),
            None => Error::failed("floe: internal: difference without a place"),
        })
    }

    /// What the target will hold at `extent`, at most [`SPAN_BYTES`], when its head is written.
    fn read<'a>(&self, onto: &Onto, extent: Extent, buffer: &'a mut Pages) -> Result<&'a [u8]> {
        self.progress
            .stopped()
            .map_err(|failure| failed(onto, failure))?;
        let length = to_usize(extent.length_bytes);
        let target = forgive(onto.target.read());
        target
            .read_back(extent.offset, buffer, length)
            .map_err(|fault| Error::fault(&onto.name, fault))?;
        let bytes = buffer.get_mut(..length).unwrap_or_default();
        if let Ok(start) = usize::try_from(extent.offset) {
            let head = onto.head.lock();
            let head = head.get(start..onto.head_bytes).unwrap_or_default();
            for (to, from) in bytes.iter_mut().zip(head) {
                *to = *from;
            }
        }
        let done = &self.progress.done_bytes;
        done.fetch_add(extent.length_bytes, std::sync::atomic::Ordering::Relaxed);
        Ok(bytes)
    }

    fn compare_zeros(&self, onto: &Onto, run: Extent, buffer: &mut Pages) -> Result<()> {
        let left = onto.left.lock();
        let mut offset = run.offset;
        while offset < run.end() {
            let rest = Extent::between(offset, run.end());
            let hole = left.as_ref().and_then(|left| left.first_in(rest));
            if let Some(hole) = hole.filter(|hole| hole.offset == offset) {
                offset = hole.end();
                continue;
            }
            let limit = hole.map_or(run.end(), |hole| hole.offset);
            let piece = Extent::at(offset, (limit - offset).min(SPAN_BYTES));
            if !is_zero(self.read(onto, piece, buffer)?) {
                return Err(head::differs(&onto.name, piece));
            }
            offset = piece.end();
        }
        Ok(())
    }

    /// The head, its superblock at the very end.
    fn write_head(&self, onto: &Onto) -> Result<Vec<String>> {
        let mut target = forgive(onto.target.write());
        let mut head = onto.head.lock();
        let length = onto.head_bytes;
        let last = Last {
            name: &onto.name,
            content: &content(onto, head.get(..length).unwrap_or_default())?,
            image_bytes: onto.size_bytes,
            head: &mut head,
            length,
            phase: &onto.phase,
            verify: self.targets.sums.is_some(),
            progress: &self.progress,
        };
        let name = |note| format!("{}: {note}", onto.name);
        Ok(last.write(&mut target)?.into_iter().map(name).collect())
    }
}

fn failed(onto: &Onto, failure: CopyFailure) -> Error {
    match failure {
        CopyFailure::Image(fault) | CopyFailure::Target(fault) => Error::fault(&onto.name, fault),
    }
}

fn content(onto: &Onto, head: &[u8]) -> Result<Content> {
    Content::probe(&Head(head)).map_err(|fault| Error::fault(&onto.name, fault))
}

fn size(onto: &Onto) -> u64 {
    let target = forgive(onto.target.read());
    target.size_bytes()
}

/// What of the target lies behind the image.
fn behind(onto: &Onto) -> Extent {
    let target = forgive(onto.target.read());
    Extent::between(onto.size_bytes, target.size_bytes())
}
