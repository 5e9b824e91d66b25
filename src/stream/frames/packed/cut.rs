//! An earlier file cut behind every marker.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::MAX_PACKED;
use super::super::known::pages;
use super::Foreign;
use crate::error::Fault;
use crate::stream::deflate::{FINAL_BLOCK, MARKER, behind_marker};
use crate::stream::inflate::Inflate;
use crate::stream::input::{at_most, is_zero};
use crate::stream::zeros;
use crate::sys::memory::Pages;
use crate::units::to_u64;

/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Cuts a file into pieces.
pub(super) struct Cutter {
    pub(super) file: File,
    /// Offset in the file of what is at `from`, and where the last block ends.
    pub(super) offset: u64,
    end: u64,
    buffer: Pages,
    from: usize,
    filled: usize,
    at_end: bool,
    inflate: Inflate,
    head: heapless::Vec<u8, 96>,
}

/// A piece.
pub(super) enum Cut {
    /// Bytes at the front of the buffer.
    Data(usize),
    /// A run of zeros; it is taken already.
    Zeros(u64),
    End,
}

impl Cutter {
    pub(super) fn new(file: File, range: Range<u64>) -> Result<Self, Fault> {
        let (bytes, count) = zeros::head();
        let head = bytes.get(..count).unwrap_or_default();
        Ok(Self {
            file,
            offset: range.start,
            end: range.end,
            buffer: pages(BUFFER_BYTES)?,
            from: 0,
            filled: 0,
            at_end: false,
            inflate: Inflate::new()?,
            head: heapless::Vec::from_slice(head).unwrap_or_default(),
        })
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.buffer.get(self.from..self.filled).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.from += count;
        self.offset = self.offset.saturating_add(to_u64(count));
    }

    /// At least the longest chunk, and what tells what it is, where the file has so much.
    fn fill(&mut self) -> Result<(), Foreign> {
        const LEAST: usize = MAX_PACKED + 256;
        if self.at_end || self.filled - self.from >= LEAST {
            return Ok(());
        }
        self.buffer.copy_within(self.from..self.filled, 0);
        self.filled -= self.from;
        self.from = 0;
        while let Some(room) = self.buffer.get_mut(self.filled..) {
            let place = self.offset.saturating_add(to_u64(self.filled));
            let count = at_most(self.end.saturating_sub(place), room.len());
            let room = room.get_mut(..count).unwrap_or_default();
            if room.is_empty() {
                self.at_end = place >= self.end;
                break;
            }
            match self.file.read_at(room, place) {
                Ok(0) => {
                    self.at_end = true;
                    break;
                }
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Foreign),
            }
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<Cut, Foreign> {
        self.fill()?;
        let bytes = self.rest();
        if self.at_end && bytes == FINAL_BLOCK {
            return Ok(Cut::End);
        }
        if bytes.starts_with(&self.head) {
            return self.zeros().map(Cut::Zeros);
        }
        let place = behind_marker(bytes).filter(|place| *place <= MAX_PACKED);
        place.map(Cut::Data).ok_or(Foreign)
    }

    /// A run of zeros, which is counted more than it is inflated.
    fn zeros(&mut self) -> Result<u64, Foreign> {
        self.inflate.reset();
        let (mut zeros, mut last) = (0u64, [1; MARKER.len()]);
        // Each turn takes some of the file, or gives a part of a match.
        loop {
            self.fill()?;
            let bytes = self
                .buffer
                .get(self.from..self.filled)
                .filter(|bytes| !bytes.is_empty())
                .ok_or(Foreign)?;
            let step = self.inflate.step(bytes).map_err(|_| Foreign)?;
            if !is_zero(step.output) || step.ended {
                return Err(Foreign);
            }
            zeros = zeros.saturating_add(to_u64(step.output.len()));
            zeros = zeros.saturating_add(step.zeros);
            let consumed = step.consumed;
            let taken = bytes.get(..consumed).unwrap_or_default();
            for byte in taken.iter().rev().take(last.len()).rev() {
                last.rotate_left(1);
                if let Some(place) = last.last_mut() {
                    *place = *byte;
                }
            }
            self.consume(consumed);
            if last == MARKER && self.inflate.is_between_blocks() {
                return Ok(zeros);
            }
        }
    }
}
