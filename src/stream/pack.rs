//! An image into the body of an archive: chunks encoded on every core and written in order, zero runs as they are known.
//!
//! Unlike `pipeline`, which reads devices by a plan, this takes what somebody else reads (a pipe, a gzip stream) and needs
//! no frozen window, so it may allocate.
//!
//! **Who owns what.** A [`Chunk`] is filled by the caller, moves to a worker, comes back encoded, is written and used again. Worker
//! *i* gets every n-th chunk through its own channel and gives it back through its own, so results taken in the order in which
//! chunks were handed out are in order without any number on them. At most [`AHEAD`] chunks a worker are under way: that bounds
//! memory and both channels. **When one dies**: a worker that failed says so in its chunk; the channels of a packer that is dropped
//! close, and its workers end.

use std::collections::VecDeque;

use super::deflate::{Deflater, FINAL_BLOCK, bound};
use super::gzip;
use super::output::{Output, Sum, write_deflated_zeros};
use super::pipeline::{Meter, Problem};
use crate::crc;
use crate::error::Fault;
use crate::threads::Hand;
use crate::units::to_u64;

/// Raw bytes of a full chunk.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks under way for each worker.
const AHEAD: usize = 2;

/// Stack of a worker, in bytes: unoptimised deflate keeps its tables there for a moment.
const STACK_BYTES: usize = 768 * 1024;

/// Nothing watches this stream.
struct Unwatched;

impl Meter for Unwatched {
    fn read(&self, _bytes: u64) {}
    fn taken(&self, _bytes: u64) {}
}

/// A meter for outputs that nothing watches.
pub(crate) static UNWATCHED: &dyn Meter = &Unwatched;

/// Raw bytes on their way to being encoded ones.
pub(crate) struct Chunk {
    /// Room for [`CHUNK_BYTES`].
    pub raw: Vec<u8>,
    length: usize,
    packed: Vec<u8>,
    packed_bytes: usize,
    /// Of the raw bytes, once they are packed.
    pub(crate) crc32: u32,
    fault: Option<Fault>,
}

impl Chunk {
    pub(crate) fn packed(&self) -> &[u8] {
        self.packed.get(..self.packed_bytes).unwrap_or_default()
    }

    fn new(is_packed: bool) -> Self {
        Self {
            raw: vec![0; CHUNK_BYTES],
            length: 0,
            packed: vec![0; if is_packed { bound(CHUNK_BYTES) } else { 0 }],
            packed_bytes: 0,
            crc32: 0,
            fault: None,
        }
    }

    fn encode(&mut self, deflater: &mut Deflater) {
        let raw = self.raw.get(..self.length).unwrap_or_default();
        self.crc32 = crc::crc32(0, raw);
        match deflater.encode(raw, &mut self.packed) {
            Ok(count) => self.packed_bytes = count,
            Err(fault) => self.fault = Some(fault),
        }
    }
}

/// A thread that packs.
fn start(level: u8) -> Result<Hand<Chunk>, Fault> {
    let mut deflater = Deflater::new(level);
    Hand::start(c"floe-pack", STACK_BYTES, move |chunk: &mut Chunk| {
        chunk.encode(&mut deflater);
    })
}

/// Threads that pack chunks for who gives the packed ones on himself, in the order in which they came.
pub(crate) struct Hands {
    hands: Vec<Hand<Chunk>>,
    /// Whose turn it is to take one, and of those under way, to give one.
    next: usize,
    under_way: VecDeque<usize>,
    spare: Vec<Chunk>,
}

impl Hands {
    pub(crate) fn start(level: u8, jobs: usize) -> Result<Self, Fault> {
        let hands = (0..jobs.max(1)).map(|_| start(level));
        Ok(Self {
            hands: hands.collect::<Result<_, _>>()?,
            next: 0,
            under_way: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    /// No more are taken before one was given.
    pub(crate) fn are_full(&self) -> bool {
        self.under_way.len() >= self.hands.len() * AHEAD
    }

    /// Takes a chunk.
    pub(crate) fn take(&mut self, raw: &[u8]) -> Result<(), Fault> {
        let mut chunk = self.spare.pop().unwrap_or_else(|| Chunk::new(true));
        let place = chunk.raw.get_mut(..raw.len());
        place.ok_or_else(gone)?.copy_from_slice(raw);
        chunk.length = raw.len();
        let hand = self.hands.get(self.next).ok_or_else(gone)?;
        hand.hand(chunk).map_err(|_| gone())?;
        self.under_way.push_back(self.next);
        self.next = (self.next + 1) % self.hands.len();
        Ok(())
    }

    /// Gives the next one, packed, for as long as it is needed; `None`: none is under way.
    pub(crate) fn give(&mut self) -> Result<Option<Chunk>, Fault> {
        let Some(index) = self.under_way.pop_front() else {
            return Ok(None);
        };
        let hand = self.hands.get(index).ok_or_else(gone)?;
        let chunk = hand.done().map_err(|_| gone())?;
        match chunk.fault {
            Some(fault) => Err(fault),
            None => Ok(Some(chunk)),
        }
    }

    pub(crate) fn take_back(&mut self, chunk: Chunk) {
        self.spare.push(chunk);
    }
}

/// What comes next in the output.
enum NextRun {
    Hand(usize),
    Zeros(u64),
}

/// Writes the body of an archive member.
pub(crate) struct Packer {
    output: Output,
    /// None of them: bytes go out as they are.
    workers: Vec<Hand<Chunk>>,
    turns: VecDeque<NextRun>,
    spare: Vec<Chunk>,
    next: usize,
    /// Chunks that may still be made.
    unmade: usize,
    holes: bool,
    skipped_bytes: u64,
    sum: Sum,
}

impl Packer {
    /// Into `output`, deflated at `level` by `jobs` workers, or raw without a level; `holes`: zeros in a raw body become holes.
    pub(crate) fn new(
        output: Output,
        level: Option<u8>,
        jobs: usize,
        holes: bool,
    ) -> Result<Self, Fault> {
        let count = level.map_or(0, |_| jobs.max(1));
        let workers = (0..count)
            .map(|_| start(level.unwrap_or(1)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            output,
            workers,
            turns: VecDeque::new(),
            spare: Vec::new(),
            next: 0,
            unmade: count * AHEAD + 1,
            holes,
            skipped_bytes: 0,
            sum: Sum::new(),
        })
    }

    /// The stream below, for what stands between bodies.
    pub(crate) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Bytes that went out so far, holes counted.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.output
            .written_bytes()
            .saturating_add(self.skipped_bytes)
    }

    /// A chunk to be filled.
    pub(crate) fn chunk(&mut self) -> Result<Chunk, Problem> {
        loop {
            if let Some(chunk) = self.spare.pop() {
                return Ok(chunk);
            }
            if self.unmade > 0 {
                self.unmade -= 1;
                return Ok(Chunk::new(!self.workers.is_empty()));
            }
            self.write_next()?;
        }
    }

    /// Takes the chunk back with so many bytes in it.
    pub(crate) fn data(&mut self, mut chunk: Chunk, length: usize) -> Result<(), Problem> {
        chunk.length = length.min(chunk.raw.len());
        if length == 0 {
            self.spare.push(chunk);
            return Ok(());
        }
        let Some(worker) = self.workers.get(self.next) else {
            let written = self
                .output
                .write_all(chunk.raw.get(..chunk.length).unwrap_or_default());
            self.spare.push(chunk);
            return written;
        };
        worker.hand(chunk).map_err(|_| died())?;
        self.turns.push_back(NextRun::Hand(self.next));
        self.next = (self.next + 1) % self.workers.len();
        Ok(())
    }

    /// So many zero bytes.
    pub(crate) fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem> {
        if length_bytes == 0 {
            return Ok(());
        }
        if !self.workers.is_empty() {
            match self.turns.back_mut() {
                Some(NextRun::Zeros(before)) => *before = before.saturating_add(length_bytes),
                _ => self.turns.push_back(NextRun::Zeros(length_bytes)),
            }
            return Ok(());
        }
        if self.holes {
            self.skipped_bytes = self.skipped_bytes.saturating_add(length_bytes);
            return self.output.skip(length_bytes);
        }
        self.output.write_zeros(length_bytes)
    }

    /// Writes what is next in order.
    fn write_next(&mut self) -> Result<(), Problem> {
        match self.turns.pop_front() {
            Some(NextRun::Zeros(length_bytes)) => {
                self.sum.zeros(length_bytes);
                write_deflated_zeros(&mut self.output, length_bytes)
            }
            Some(NextRun::Hand(index)) => {
                let worker = self.workers.get(index).ok_or_else(died)?;
                let chunk = worker.done().map_err(|_| died())?;
                if let Some(fault) = chunk.fault {
                    return Err(Problem::Internal(fault));
                }
                self.sum.data(chunk.crc32, to_u64(chunk.length));
                self.output.write_all(chunk.packed())?;
                self.spare.push(chunk);
                Ok(())
            }
            None => Err(died()),
        }
    }

    /// Writes all that is under way. For a deflated body its end and the gzip trailer: `before` are the CRC-32 and length of raw
    /// bytes that stood in front of the body, in stored blocks.
    pub(crate) fn finish(&mut self, before: (u32, u64)) -> Result<(), Problem> {
        while !self.turns.is_empty() {
            self.write_next()?;
        }
        if self.workers.is_empty() {
            return Ok(());
        }
        let crc32 = crc::combine(before.0, self.sum.crc32, self.sum.raw_bytes);
        let trailer = gzip::trailer(crc32, before.1.saturating_add(self.sum.raw_bytes));
        self.output.write_all(&FINAL_BLOCK)?;
        self.output.write_all(&trailer)
    }
}

fn died() -> Problem {
    Problem::Internal(gone())
}

fn gone() -> Fault {
    Fault::short("a worker died")
}

/// `bytes` as stored deflate blocks (RFC 1951, 3.2.4), none of them final: as long whatever the bytes are.
pub(crate) fn stored(out: &mut Vec<u8>, bytes: &[u8]) {
    for piece in bytes.chunks(usize::from(u16::MAX)) {
        let [a, b] = u16::try_from(piece.len()).unwrap_or(0).to_le_bytes();
        out.extend_from_slice(&[0, a, b, !a, !b]);
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn chunks_come_out_in_order_whoever_encodes_them() {
        for (level, jobs) in [(None, 1), (Some(1), 1), (Some(6), 3)] {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let reading = std::thread::spawn(move || {
                let mut out = Vec::new();
                std::fs::File::from(reader).read_to_end(&mut out).unwrap();
                out
            });
            let output = Output::new(writer, UNWATCHED, false);
            let mut packer = Packer::new(output, level, jobs, false).unwrap();
            let front = [7u8; 100];
            let mut expected = front.to_vec();
            if level.is_some() {
                let mut bytes = gzip::HEADER.to_vec();
                stored(&mut bytes, &front);
                packer.output().write_all(&bytes).unwrap();
            } else {
                packer.output().write_all(&front).unwrap();
            }
            for turn in 0..40u8 {
                let mut chunk = packer.chunk().unwrap();
                let length = usize::from(turn) * 6000;
                for (at, byte) in chunk.raw.iter_mut().enumerate() {
                    *byte = (at % 251).to_le_bytes()[0] ^ turn;
                }
                expected.extend_from_slice(&chunk.raw[..length]);
                packer.data(chunk, length).unwrap();
                packer.zeros(u64::from(turn) * 999).unwrap();
                expected.resize(expected.len() + usize::from(turn) * 999, 0);
            }
            packer.finish((crc::crc32(0, &front), 100)).unwrap();
            drop(packer);
            let bytes = reading.join().unwrap();
            if level.is_none() {
                assert!(bytes == expected);
                continue;
            }
            let mut gunzip = super::super::gunzip::Gunzip::new().unwrap();
            let mut input = super::super::input::Input::reader(&bytes[..]).unwrap();
            let mut out = vec![0; expected.len() + 1];
            let count = gunzip.read(&mut input, &mut out).unwrap();
            assert!(out[..count] == expected);
        }
    }
}
