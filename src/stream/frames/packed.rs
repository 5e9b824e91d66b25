//! An earlier file of floe's own, a chunk at a time as it is packed: inflated on every CPU once, and remembered.
//!
//! Our encoder ends every chunk with an empty stored block, on a byte, and no chunk reaches back into the one before. So the file is
//! cut behind every such block, and what lies between two cuts is inflated by itself. A cut inside a chunk, where the same four bytes
//! happen to stand, is seen by this: inflating does not end between two blocks. Then it is tried once more with what follows. Of each chunk stay where it
//! lies, the hash of what it is, and the hash of its packed bytes. **Packed bytes that have this hash still are what was inflated**:
//! they go into the new file as they are, and are neither inflated nor packed again.
//!
//! They may, where they are what the encoder of today gives at the level that is asked for: otherwise the new file would not be the one that a fresh pull
//! gives. That is tried with the first chunk and every [`SAMPLE`]th, by packing it once more; where one differs (another level, or
//! another version of the encoder), nothing is taken as it is. What is not cut like that (other programs' files, and a stored chunk that
//! ends with these four bytes) is [`Foreign`], and read the ordinary way from there on.
//!
//! **Who owns what.** As in [`crate::stream::pack`]: a [`Work`] is filled by whoever reads, moves to a hand, comes back, and is used again;
//! hand *i* gets every n-th through its own channel, so results are in order. A hand ends when its channel closes.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::known::{Index, pages};
use super::{Layout, MAX_PACKED, number};
use crate::crc;
use crate::error::Fault;
use crate::stream::deflate::{Deflater, FINAL_BLOCK};
use crate::stream::inflate::Inflate;
use crate::stream::input::{at_most, is_zero};
use crate::stream::pipeline::known::{Hash, hash};
use crate::stream::plan::CHUNK_BYTES;
use crate::stream::zeros;
use crate::sys::memory::Pages;
use crate::threads::{Receiver, Sender, channel};
use crate::units::{to_u64, to_usize};

/// Every chunk ends with this (RFC 1951, 3.2.4: LEN and its complement).
const MARKER: [u8; 4] = [0, 0, 0xff, 0xff];
/// One chunk of so many is packed once more.
pub(super) const SAMPLE: u64 = 32;
/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Pieces under way for each hand.
const AHEAD: usize = 3;
/// Most hands. Each has 1 MB of buffers.
const HANDS: usize = 4;
/// So often a piece that does not stand alone is tried with what follows. By chance four bytes are a marker once in 4 GiB.
const MOST_TRIES: usize = 4;
/// Stack of one, in bytes, as in [`crate::stream::pack`].
const STACK_BYTES: usize = 768 * 1024;

/// It is not a file that can be cut.
#[derive(Debug)]
pub(super) struct Foreign;

/// A chunk as it was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) chunk: u64,
    offset: u64,
    length: u32,
    crc32: u32,
    /// Of the raw bytes.
    pub(super) hash: Hash,
    /// Of the packed ones.
    proof: Hash,
}

/// What was found, in a file: whatever is read, it costs no memory.
pub(super) struct Packed {
    file: File,
    places: Index,
    hashes: Index,
    proofs: Index,
    /// No sample was packed otherwise.
    is_ours: bool,
}

impl Packed {
    pub(super) fn new(file: File, list: &File, chunks: u64) -> Result<Self, Fault> {
        Ok(Self {
            file,
            places: Index::new(list, 3, chunks)?,
            hashes: Index::new(list, 4, chunks)?,
            proofs: Index::new(list, 5, chunks)?,
            is_ours: true,
        })
    }

    fn note(&mut self, found: &Found) -> Result<(), Fault> {
        let mut place = Hash::default();
        let words = found.offset.to_le_bytes().into_iter();
        let words = words.chain(found.length.to_le_bytes());
        let words = words.chain(found.crc32.to_le_bytes());
        place
            .iter_mut()
            .zip(words)
            .for_each(|(to, from)| *to = from);
        self.hashes.set_bytes(found.chunk, &found.hash)?;
        self.proofs.set_bytes(found.chunk, &found.proof)?;
        self.places.set_bytes(found.chunk, &place)
    }

    /// The packed bytes of a chunk with this hash into `out`, and the checksum of the raw ones; `None`: they are not there any more, or
    /// are not to be taken as they are.
    pub(super) fn take(
        &mut self,
        chunk: u64,
        wanted: &Hash,
        out: &mut [u8],
    ) -> Option<(usize, u32)> {
        let place = self.places.bytes(chunk).ok()?;
        let (offset, rest) = place.split_at(8);
        let (length, crc32) = rest.split_at(4);
        let (length, crc32) = (to_usize(number(length)), number(crc32));
        let packed = out.get_mut(..length).filter(|_| self.is_ours)?;
        if length == 0 || self.hashes.bytes(chunk).ok()? != *wanted {
            return None;
        }
        self.file.read_exact_at(packed, number(offset)).ok()?;
        let is_it = hash(packed) == self.proofs.bytes(chunk).ok()?;
        is_it.then_some((length, u32::try_from(crc32).ok()?))
    }
}

/// Cuts a file into pieces.
struct Cutter {
    file: File,
    /// Offset in the file of what is at `from`, and where the last block ends.
    offset: u64,
    end: u64,
    buffer: Pages,
    from: usize,
    filled: usize,
    at_end: bool,
    inflate: Inflate,
    head: heapless::Vec<u8, 96>,
}

/// A piece.
enum Cut {
    /// Bytes at the front of the buffer.
    Data(usize),
    /// A run of zeros; it is taken already.
    Zeros(u64),
    End,
}

impl Cutter {
    fn new(file: File, range: Range<u64>) -> Result<Self, Fault> {
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

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.from..self.filled).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
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

    fn next(&mut self) -> Result<Cut, Foreign> {
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

/// Where the first marker ends.
fn behind_marker(bytes: &[u8]) -> Option<usize> {
    // Of four bytes in turn one is of the marker, where there is one.
    let mut at = 3;
    while let Some(byte) = bytes.get(at) {
        if matches!(byte, 0 | 0xff) {
            let around = bytes.get(at - 3..bytes.len().min(at + 4));
            let mut windows = around.unwrap_or_default().windows(MARKER.len());
            if let Some(place) = windows.position(|window| window == MARKER) {
                return Some(at - 3 + place + MARKER.len());
            }
        }
        at += 4;
    }
    None
}

/// All of what stands alone, up to where it ends between two blocks, on a byte; how many bytes came out.
pub(super) fn unpack(inflate: &mut Inflate, packed: &[u8], raw: &mut [u8]) -> Option<usize> {
    inflate.reset();
    let (mut taken, mut given) = (0, 0);
    while let Some(rest) = packed.get(taken..).filter(|rest| !rest.is_empty()) {
        let step = inflate.step(rest).ok()?;
        taken += step.consumed;
        let end = given + step.output.len();
        raw.get_mut(given..end)?.copy_from_slice(step.output);
        given = end.checked_add(usize::try_from(step.zeros).ok()?)?;
        raw.get_mut(end..given)?.fill(0);
        if step.ended {
            return None;
        }
    }
    inflate.is_between_blocks().then_some(given)
}

/// A piece on its way.
struct Work {
    offset: u64,
    packed: Vec<u8>,
    raw: Vec<u8>,
    /// It is packed once more.
    is_sample: bool,
    /// Raw bytes, where it stands alone.
    found: Option<usize>,
    crc32: u32,
    hash: Hash,
    proof: Hash,
    is_ours: bool,
}

impl Work {
    fn new() -> Self {
        Self {
            offset: 0,
            packed: Vec::with_capacity(MAX_PACKED),
            raw: vec![0; to_usize(CHUNK_BYTES)],
            is_sample: false,
            found: None,
            crc32: 0,
            hash: Hash::default(),
            proof: Hash::default(),
            is_ours: true,
        }
    }
}

/// What works on a piece.
struct Worker {
    inflate: Inflate,
    deflater: Deflater,
    again: Vec<u8>,
}

impl Worker {
    fn new(level: u8) -> Result<Self, Fault> {
        Ok(Self {
            inflate: Inflate::new()?,
            deflater: Deflater::new(level),
            again: vec![0; MAX_PACKED],
        })
    }

    fn work(&mut self, work: &mut Work) {
        work.found = unpack(&mut self.inflate, &work.packed, &mut work.raw);
        let Some(raw) = work.found.and_then(|length| work.raw.get(..length)) else {
            return;
        };
        work.crc32 = crc::crc32(0, raw);
        work.hash = hash(raw);
        work.proof = hash(&work.packed);
        work.is_ours = !work.is_sample || {
            let again = self.deflater.encode(raw, &mut self.again).ok();
            let again = again.and_then(|length| self.again.get(..length));
            again == Some(&*work.packed)
        };
    }
}

struct Hand {
    send: Sender<Work>,
    receive: Receiver<Work>,
}

impl Hand {
    fn start(level: u8) -> Result<Self, Fault> {
        let (send, work) = channel::<Work>();
        let (done, receive) = channel();
        let mut worker = Worker::new(level)?;
        let run = move || {
            while let Ok(mut piece) = work.recv() {
                worker.work(&mut piece);
                if done.send(piece).is_err() {
                    return;
                }
            }
        };
        crate::threads::start(c"known-unpack", STACK_BYTES, Box::new(run))
            .map_err(|errno| Fault::io("start a thread", errno))?;
        Ok(Self { send, receive })
    }
}

/// What comes next in order.
enum Turn {
    Hand(usize),
    /// From where in the file, up to where, and how many.
    Zeros(u64, u64, u64),
}

/// The chunks of one image that lie packed in a file, in order.
pub(super) struct Pieces {
    cutter: Cutter,
    hands: Vec<Hand>,
    next_hand: usize,
    turns: VecDeque<Turn>,
    spare: Vec<Work>,
    worker: Worker,
    count: u64,
    /// Nothing more is cut.
    at_end: bool,
    /// Where the next piece begins.
    expected: u64,
    /// Its chunk, and how many zeros of that were there.
    next: u64,
    into: u64,
}

impl Pieces {
    /// What lies in `range` of the file; `first` is the number of the image's first chunk.
    pub(super) fn start(
        file: File,
        range: Range<u64>,
        first: u64,
        level: u8,
        jobs: usize,
    ) -> Result<Self, Fault> {
        let hands = (0..jobs.clamp(1, HANDS)).map(|_| Hand::start(level));
        Ok(Self {
            expected: range.start,
            cutter: Cutter::new(file, range)?,
            hands: hands.collect::<Result<_, _>>()?,
            next_hand: 0,
            turns: VecDeque::new(),
            spare: Vec::new(),
            worker: Worker::new(level)?,
            count: 0,
            at_end: false,
            next: first,
            into: 0,
        })
    }

    fn cut_ahead(&mut self) -> Result<(), Foreign> {
        while !self.at_end && self.turns.len() < self.hands.len() * AHEAD {
            let from = self.cutter.offset;
            match self.cutter.next()? {
                Cut::End => self.at_end = true,
                Cut::Zeros(zeros) => {
                    let turn = Turn::Zeros(from, self.cutter.offset, zeros);
                    self.turns.push_back(turn);
                }
                Cut::Data(length) => {
                    let mut work = self.spare.pop().unwrap_or_else(Work::new);
                    let bytes = self.cutter.rest().get(..length).unwrap_or_default();
                    work.packed.clear();
                    work.packed.extend_from_slice(bytes);
                    work.offset = from;
                    work.is_sample = self.count.is_multiple_of(SAMPLE);
                    self.count += 1;
                    self.cutter.consume(length);
                    let hand = self.hands.get(self.next_hand).ok_or(Foreign)?;
                    hand.send.send(work).map_err(|_| Foreign)?;
                    self.turns.push_back(Turn::Hand(self.next_hand));
                    self.next_hand = (self.next_hand + 1) % self.hands.len();
                }
            }
        }
        Ok(())
    }

    /// The next chunk that has data; `None` at the end. What was found is noted.
    pub(super) fn next(
        &mut self,
        layout: &Layout,
        places: &mut Packed,
    ) -> Result<Option<Found>, Foreign> {
        loop {
            self.cut_ahead()?;
            let hand = match self.turns.pop_front() {
                None => return Ok(None),
                Some(Turn::Zeros(from, to, zeros)) => {
                    // What begins inside a chunk is none.
                    if from == self.expected {
                        self.expected = to;
                        self.skip(layout, zeros)?;
                    }
                    continue;
                }
                Some(Turn::Hand(hand)) => self.hands.get(hand).ok_or(Foreign)?,
            };
            let mut work = hand.receive.recv().map_err(|_| Foreign)?;
            if work.offset != self.expected {
                self.spare.push(work);
                continue;
            }
            if work.found.is_none() {
                self.longer(&mut work)?;
            }
            let raw_bytes = layout.raw_bytes(self.next);
            if self.into != 0 || work.found.map(to_u64) != raw_bytes {
                return Err(Foreign);
            }
            let found = Found {
                chunk: self.next,
                offset: work.offset,
                length: u32::try_from(work.packed.len()).map_err(|_| Foreign)?,
                crc32: work.crc32,
                hash: work.hash,
                proof: work.proof,
            };
            self.expected = work.offset.saturating_add(u64::from(found.length));
            self.next += 1;
            places.is_ours &= work.is_ours;
            places.note(&found).map_err(|_| Foreign)?;
            self.spare.push(work);
            return Ok(Some(found));
        }
    }

    /// So many zeros come next.
    fn skip(&mut self, layout: &Layout, zeros: u64) -> Result<(), Foreign> {
        let mut zeros = zeros.checked_add(self.into).ok_or(Foreign)?;
        while zeros > 0 {
            let raw_bytes = layout.raw_bytes(self.next).ok_or(Foreign)?;
            let Some(rest) = zeros.checked_sub(raw_bytes) else {
                break;
            };
            (zeros, self.next) = (rest, self.next + 1);
        }
        self.into = zeros;
        Ok(())
    }

    /// It was cut inside a chunk: up to the next marker, or one behind that, it is one.
    fn longer(&mut self, work: &mut Work) -> Result<(), Foreign> {
        let mut bytes = vec![0; MAX_PACKED];
        let mut filled = 0;
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            let place = work.offset.saturating_add(to_u64(filled));
            match self.cutter.file.read_at(room, place) {
                Ok(0) | Err(_) => break,
                Ok(count) => filled += count,
            }
        }
        let bytes = bytes.get(..filled).unwrap_or_default();
        let mut end = work.packed.len();
        // A file that was made for it has a marker every few bytes.
        for _ in 0..MOST_TRIES {
            let from = end.checked_sub(MARKER.len() - 1).ok_or(Foreign)?;
            let next = bytes.get(from..).and_then(behind_marker);
            end = from + next.ok_or(Foreign)?;
            work.packed.clear();
            work.packed
                .extend_from_slice(bytes.get(..end).unwrap_or_default());
            self.worker.work(work);
            if work.found.is_some() {
                return Ok(());
            }
        }
        Err(Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::deflate::bound;
    use crate::stream::frames::Framed;
    use crate::stream::gzip;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn file(bytes: &[u8]) -> File {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("floe-packed-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let mut file = options.open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    const CHUNK: usize = 128 * 1024;

    /// Chunks of data, `None` for zeros; and the packed length of each.
    fn packed(level: u8, chunks: &[Option<Vec<u8>>]) -> (Vec<u8>, Vec<usize>) {
        let mut deflater = Deflater::new(level);
        let mut stream = gzip::HEADER.to_vec();
        let mut lengths = Vec::new();
        let mut zeros = 0;
        for chunk in chunks.iter().chain([&Some(Vec::new())]) {
            let Some(chunk) = chunk else {
                zeros += to_u64(CHUNK);
                lengths.push(0);
                continue;
            };
            if let Some(run) = zeros::ZeroRun::new(std::mem::take(&mut zeros)) {
                stream.extend_from_slice(run.head());
                stream.resize(stream.len() + to_usize(run.zero_bytes()), 0);
                stream.extend_from_slice(run.tail());
            }
            if chunk.is_empty() {
                break;
            }
            let mut out = vec![0; bound(chunk.len())];
            let count = deflater.encode(chunk, &mut out).unwrap();
            stream.extend_from_slice(&out[..count]);
            lengths.push(count);
        }
        stream.extend(FINAL_BLOCK);
        stream.extend([0; 8]);
        (stream, lengths)
    }

    fn sample() -> Vec<Option<Vec<u8>>> {
        let noise = |seed: u32| {
            let noise = (0..to_u64(CHUNK) / 4).map(|n| {
                let n = u32::try_from(n).unwrap() ^ seed;
                n.wrapping_mul(2_654_435_761) ^ n.rotate_left(seed % 31)
            });
            noise.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
        };
        let mut state = 9u64;
        // What cannot be packed is stored, and the marker stands inside it, more than once.
        let mut random = || {
            let bytes = (0..CHUNK).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
                state.to_be_bytes()[1]
            });
            bytes.collect::<Vec<u8>>()
        };
        let mut cut = random();
        for at in [0, 1000, 1004, 50_002] {
            cut[at..at + 4].copy_from_slice(&MARKER);
        }
        let text = b"freeze, and let it flow. ".repeat(6000)[..CHUNK].to_vec();
        let mut chunks = vec![Some(text), None, None, Some(noise(1)), Some(cut.clone())];
        chunks.extend([Some(cut), None]);
        chunks.extend((0..40).map(|n| Some(noise(n + 2))));
        chunks.extend(vec![None; 3000]);
        chunks.push(Some(random()[..70_000].to_vec()));
        chunks
    }

    fn layout(chunks: &[Option<Vec<u8>>]) -> Layout {
        let length = |chunk: &Option<Vec<u8>>| chunk.as_ref().map_or(CHUNK, Vec::len);
        Layout::new(&[Framed {
            path: String::new(),
            parts: vec![to_u64(chunks.iter().map(length).sum::<usize>())],
        }])
        .unwrap()
    }

    fn read(stream: &[u8], level: u8, layout: &Layout) -> (Result<Vec<Found>, Foreign>, Packed) {
        let (stream, list) = (file(stream), file(&[]));
        let places = Packed::new(stream.try_clone().unwrap(), &list, layout.chunks());
        let mut places = places.unwrap();
        let length = stream.metadata().unwrap().len();
        let mut pieces = Pieces::start(stream, 10..length - 8, 0, level, 3).unwrap();
        let mut all = Vec::new();
        loop {
            match pieces.next(layout, &mut places) {
                Ok(Some(found)) => all.push(found),
                Ok(None) => return (Ok(all), places),
                Err(Foreign) => return (Err(Foreign), places),
            }
        }
    }

    #[test]
    fn chunks_are_found_where_they_lie_and_taken_as_they_are() {
        let chunks = sample();
        let layout = layout(&chunks);
        for level in [1, 6] {
            let (stream, lengths) = packed(level, &chunks);
            let (found, mut places) = read(&stream, level, &layout);
            let found = found.unwrap();
            let data = chunks.iter().filter(|chunk| chunk.is_some()).count();
            assert_eq!(found.len(), data);
            let mut out = vec![0; MAX_PACKED];
            for found in &found {
                let at = to_usize(found.chunk);
                let raw = chunks[at].as_deref().unwrap();
                assert_eq!(found.hash, hash(raw), "{at}");
                assert_eq!(to_usize(u64::from(found.length)), lengths[at], "{at}");
                let taken = places.take(found.chunk, &found.hash, &mut out);
                assert_eq!(taken, Some((lengths[at], crc::crc32(0, raw))));
                let offset = to_usize(found.offset);
                assert!(out[..lengths[at]] == stream[offset..offset + lengths[at]]);
                assert_eq!(places.take(found.chunk, &[1; 16], &mut out), None);
            }
            assert_eq!(places.take(1, &Hash::default(), &mut out), None, "zeros");
            // What was changed since is not what was inflated.
            let last = found.last().unwrap();
            let (one, offset) = (&[0x55], last.offset + 100);
            places.file.write_all_at(one, offset).unwrap();
            assert_eq!(places.take(last.chunk, &last.hash, &mut out), None);
        }
    }

    #[test]
    fn what_another_level_packed_is_known_and_not_taken_as_it_is() {
        let chunks = sample();
        let layout = layout(&chunks);
        let (stream, _) = packed(6, &chunks);
        let (found, mut places) = read(&stream, 1, &layout);
        let first = found.unwrap()[0];
        let mut out = vec![0; MAX_PACKED];
        assert_eq!(places.take(first.chunk, &first.hash, &mut out), None);
    }

    #[test]
    fn damage_gives_what_is_not_proven_or_ends_it() {
        let chunks = sample();
        let layout = layout(&chunks);
        let (stream, _) = packed(1, &chunks);
        for place in (10..stream.len()).step_by(stream.len() / 50) {
            let mut broken = stream.clone();
            broken[place] ^= 4;
            let (found, _) = read(&broken, 1, &layout);
            for found in found.into_iter().flatten() {
                let raw = chunks.get(to_usize(found.chunk)).and_then(Option::as_ref);
                let is_right = raw.is_some_and(|raw| hash(raw) == found.hash);
                let end = found.offset + u64::from(found.length);
                let is_hit = (found.offset..end).contains(&to_u64(place));
                assert!(is_right || is_hit || raw.is_none(), "{place}");
            }
        }
        for length in [19, 500, stream.len() / 2, stream.len() - 1] {
            assert!(read(&stream[..length], 1, &layout).0.is_err(), "{length}");
        }
        // Another program's, and an image of another length.
        let other = miniz_oxide::deflate::compress_to_vec(chunks[3].as_ref().unwrap(), 6);
        let other = [&gzip::HEADER[..], &other, &[0; 8]].concat();
        assert!(read(&other, 1, &layout).0.is_err());
        let fewer = super::tests::layout(&chunks[..20]);
        assert!(read(&stream, 1, &fewer).0.is_err());
    }
}
