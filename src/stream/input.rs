//! A buffered input: a regular file, block device, pipe or bytes in memory, read once and forwards.
//!
//! Never seeks except over holes of a regular file, and there only when asked. Errors of a plain file carry the offset in the input.

use std::fs::File;
use std::io::{ErrorKind, Read, Take};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::Fault;
use crate::sys::memory::Pages;
use crate::units::{to_u64, to_usize};

/// Size of the buffer in bytes.
const BUFFER_BYTES: usize = 128 * 1024;

/// What an input may read from. Not std's `Read`, which brings nine more functions into the executable for every type that stands
/// behind a pointer, and whose errors would hide ours.
pub trait Supply: Send {
    /// Puts the next bytes at the beginning of `out`, and says how many: 0 at the end.
    fn supply(&mut self, out: &mut [u8]) -> Result<usize, Fault>;

    /// Takes the zeros that come next where they are known to be many: a multiple of `unit`, or 0.
    fn take_zeros(&mut self, _unit: u64) -> u64 {
        0
    }
}

/// Bytes in memory.
impl Supply for &[u8] {
    fn supply(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        self.read(out).map_err(|error| read_fault(&error))
    }
}

/// So many bytes of a file.
impl Supply for Take<File> {
    fn supply(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        loop {
            match self.read(out) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result.map_err(|error| read_fault(&error)),
            }
        }
    }
}

/// A read that failed, without its place.
pub(crate) fn read_fault(error: &std::io::Error) -> Fault {
    Fault::short("read").with_errno(error.raw_os_error())
}

enum InputSource<'a> {
    File(File),
    /// One file after the other, the next one last.
    Files(File, Vec<File>),
    Supply(Box<dyn Supply + 'a>),
}

/// Something read forwards through one buffer.
pub struct Input<'a> {
    origin: InputSource<'a>,
    buffer: Pages,
    start: usize,
    end: usize,
    /// Bytes taken from the origin so far, those in the buffer included.
    read_bytes: u64,
    /// Length of a regular file or block device.
    length_bytes: Option<u64>,
    ended: bool,
}

impl<'a> Input<'a> {
    fn with(origin: InputSource<'a>, length_bytes: Option<u64>) -> Result<Self, Fault> {
        Ok(Self {
            origin,
            buffer: Pages::new(BUFFER_BYTES).map_err(|e| Fault::io("mmap", e))?,
            start: 0,
            end: 0,
            read_bytes: 0,
            length_bytes,
            ended: false,
        })
    }

    /// A file, device or pipe; `length_bytes` where the whole length is known beforehand.
    pub fn file(file: File, length_bytes: Option<u64>) -> Result<Self, Fault> {
        Self::with(InputSource::File(file), length_bytes)
    }

    /// Files that follow each other, `length_bytes` in all.
    pub fn files(
        first: File,
        mut more: Vec<File>,
        length_bytes: Option<u64>,
    ) -> Result<Self, Fault> {
        more.reverse();
        match more.is_empty() {
            true => Self::file(first, length_bytes),
            false => Self::with(InputSource::Files(first, more), length_bytes),
        }
    }

    /// Whatever gives bytes in order.
    pub fn reader(supply: impl Supply + 'a) -> Result<Self, Fault> {
        Self::source(Box::new(supply))
    }

    /// The same, where its type is not known.
    pub fn source(supply: Box<dyn Supply + 'a>) -> Result<Self, Fault> {
        Self::with(InputSource::Supply(supply), None)
    }

    /// Offset of the next byte that has not been consumed.
    pub fn offset(&self) -> u64 {
        self.read_bytes
            .saturating_sub(to_u64(self.end.saturating_sub(self.start)))
    }

    /// The whole length in bytes, where it is known.
    pub fn length_bytes(&self) -> Option<u64> {
        self.length_bytes
    }

    /// What is buffered and not consumed.
    pub fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// At least one byte, or nothing at the end of the input.
    pub fn fill(&mut self) -> Result<&[u8], Fault> {
        if self.start == self.end && !self.ended {
            self.start = 0;
            self.end = 0;
            self.more()?;
        }
        Ok(self.buffered())
    }

    /// At least `count` bytes (at most the buffer's size), fewer only at the end of the input.
    pub fn peek(&mut self, count: usize) -> Result<&[u8], Fault> {
        while self.end.saturating_sub(self.start) < count.min(BUFFER_BYTES) && !self.ended {
            if self.end == self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            self.more()?;
        }
        Ok(self.buffered())
    }

    fn more(&mut self) -> Result<(), Fault> {
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = read(&mut self.origin, space, self.read_bytes)?;
        self.ended = count == 0;
        self.end = self.end.saturating_add(count);
        self.read_bytes = self.read_bytes.saturating_add(to_u64(count));
        Ok(())
    }

    /// Marks `count` buffered bytes as taken.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// The next byte, or `None` at the end.
    pub fn byte(&mut self) -> Result<Option<u8>, Fault> {
        let byte = self.fill()?.first().copied();
        self.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    /// Fills `out`, past the buffer where that is possible; fewer bytes only at the end of the input.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let mut done = 0usize;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let held = self.buffered();
            if !held.is_empty() {
                let count = held.len().min(rest.len());
                for (to, from) in rest.chunks_mut(count).zip(held.chunks(count)).take(1) {
                    to.copy_from_slice(from);
                }
                self.consume(count);
                done += count;
                continue;
            }
            if self.ended {
                break;
            }
            let count = read(&mut self.origin, rest, self.read_bytes)?;
            self.ended = count == 0;
            self.read_bytes = self.read_bytes.saturating_add(to_u64(count));
            done += count;
        }
        Ok(done)
    }

    /// Steps over a hole of at least `unit` bytes of a regular file (in multiples of `unit`) and gives its length; 0 where
    /// there is none, or the input does not know.
    pub fn skip_hole(&mut self, unit: u64) -> Result<u64, Fault> {
        if let InputSource::Supply(supply) = &mut self.origin {
            if self.start != self.end || self.ended {
                return Ok(0);
            }
            let zeros = supply.take_zeros(unit);
            self.read_bytes = self.read_bytes.saturating_add(zeros);
            return Ok(zeros);
        }
        let (InputSource::File(file), Some(length)) = (&self.origin, self.length_bytes) else {
            return Ok(0);
        };
        if !self.buffered().is_empty() || self.ended || unit == 0 {
            return Ok(0);
        }
        let here = self.read_bytes;
        let data = match rustix::fs::seek(file, SeekFrom::Data(here)) {
            Ok(data) => data,
            Err(Errno::NXIO) => length.max(here),
            Err(_) => return Ok(0),
        };
        let hole = data.saturating_sub(here);
        let hole = hole - hole % unit;
        let next = here.saturating_add(hole);
        rustix::fs::seek(file, SeekFrom::Start(next)).map_err(|e| Fault::io("seek", e))?;
        self.read_bytes = next;
        Ok(hole)
    }
}

fn read(origin: &mut InputSource<'_>, space: &mut [u8], offset: u64) -> Result<usize, Fault> {
    loop {
        let result = match origin {
            InputSource::File(file) => file.read(space),
            InputSource::Files(file, more) => match (file.read(space), more.pop()) {
                (Ok(0), Some(next)) if !space.is_empty() => {
                    *file = next;
                    continue;
                }
                (result, next) => {
                    more.extend(next);
                    result
                }
            },
            InputSource::Supply(supply) => {
                return supply.supply(space).map(|count| count.min(space.len()));
            }
        };
        match result {
            Ok(count) => return Ok(count.min(space.len())),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(read_fault(&error).at(offset, to_u64(space.len()))),
        }
    }
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(128);
    // A fold over a whole block is what the compiler turns into vector instructions; one early exit a block is enough.
    blocks.all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}

/// `count` as an index, never more than `limit`.
pub fn at_most(count: u64, limit: usize) -> usize {
    to_usize(count).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Trickle<'a>(&'a [u8]);
    impl Supply for Trickle<'_> {
        fn supply(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
            let (Some((first, rest)), Some(to)) = (self.0.split_first(), buffer.first_mut()) else {
                return Ok(0);
            };
            *to = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn a_trickling_input_gives_every_byte_once_with_its_offset() {
        let data: Vec<u8> = (0..1000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut input = Input::reader(Trickle(&data)).unwrap();
        assert_eq!(input.peek(5).unwrap(), &data[..5]);
        assert_eq!(input.offset(), 0);
        assert_eq!(input.byte().unwrap(), Some(0));
        let mut out = vec![0; 2000];
        assert_eq!(input.read(&mut out).unwrap(), 999);
        assert_eq!(out[..999], data[1..]);
        assert_eq!(input.offset(), 1000);
        assert_eq!(input.byte().unwrap(), None);
    }

    #[test]
    fn zero_detection_sees_a_single_bit_anywhere() {
        for length in [0usize, 1, 127, 128, 129, 4096, 5000] {
            let mut bytes = vec![0u8; length];
            assert!(is_zero(&bytes));
            for place in [0, length / 2, length.saturating_sub(1)] {
                if place < length {
                    bytes[place] = 1;
                    assert!(!is_zero(&bytes), "{place} of {length}");
                    bytes[place] = 0;
                }
            }
        }
    }
}
