//! What is here already when frames come: an earlier file of the same thing, and what an interrupted run left.
//!
//! With `push` it is what the target holds, and the two ends are the other way round.
//!
//! A thread of the host reads it in the order of the chunks and says the hash of each to the board, which then says `known` instead
//! of sending the chunk. When all frames have come it is read once more, and **each chunk is proven by the hash that the board said**
//! before it goes into the new file: a file that is damaged, or was changed in between, can only make the pull fail. The thread never
//! holds up who takes the frames, so neither end can wait for the other in a circle.
//!
//! What is held until the end says of each chunk what it is, so that it is of use when the run is interrupted:
//!
//! ```text
//!  at a multiple of 4096   "floeheld"   u32 chunk   u32 packed length   u32 CRC-32 of its raw bytes   u32 CRC-32 of all that   packed bytes
//! ```

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::SeekFrom;

use super::packed::{FoundChunk, Packed, Pieces, unpack};
use super::receive::{HeldChunk, UNIT_BYTES, no_room};
use super::{ChunkLayout, MAX_PACKED, number};
use crate::crc;
use crate::error::Fault;
use crate::stream::image::{ImageReader, ImageRun};
use crate::stream::inflate::Inflate;
use crate::stream::input::at_most;
use crate::stream::pipeline::known::{HASH_BYTES, Hash, RECORD_BYTES, hash};
use crate::stream::plan::CHUNK_BYTES;
use crate::sys::memory::Pages;
use crate::threads::{Lock, Started};
use crate::units::{round_up, to_u64, to_usize};

/// What a chunk that is not any more what it was makes a run fail with; another try sends everything.
pub const CHANGED: &str = "what was here before was changed meanwhile";

/// In front of the packed bytes of a chunk that is held.
pub(super) const HEAD_BYTES: usize = 24;
const HEAD_MAGIC: [u8; 8] = *b"floeheld";
/// Bytes of an entry of an index: where, how many packed bytes, checksum, how often it came.
const ENTRY_BYTES: usize = 16;
/// How many lists lie in one file: what is held, the hashes of what is not, remains, and three of [`Packed`].
const LISTS: u64 = 6;
/// More chunks are not kept: those that a restore wipes of as many targets as there may be.
const MOST_KEPT: usize = 1024;
/// How many chunks may pass without a word to the other end.
const SILENT: u64 = 1024;
/// How long, about: it waits four times that.
const FIRST: Duration = Duration::from_secs(5);
/// How long a write to the other end waits before it is asked whether that goes on.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// An earlier image, or several by name.
pub trait EarlierImages: Send {
    /// From its beginning, and which of its chunks will be there when they are taken: the others, few, are kept when their hashes are
    /// said. `None`: there is none of this name, or it is not to be read.
    fn image(&mut self, path: &str) -> Option<(ImageReader<'static>, Range<u64>)>;

    /// The file in which it lies as our encoder packs it, and where, from its first block to its last one; `None`: not like that.
    fn packed(&mut self, _path: &str) -> Option<(File, Range<u64>)> {
        None
    }
}

/// What the other end is to be told.
pub struct KnownHere {
    /// What there is besides the remains of an interrupted run.
    pub earlier: Option<Box<dyn EarlierImages>>,
    /// Where hashes go.
    pub stdin: File,
}

/// Sixteen bytes for each chunk, in a file: whatever numbers come from elsewhere, they cost no memory.
pub(super) struct Index {
    file: File,
    /// Where it begins in the file.
    base: u64,
    /// What was read last, and from which place.
    block: [u8; BLOCK_BYTES],
    at: u64,
}

/// Bytes of an index that are read at once.
const BLOCK_BYTES: usize = 4096;

impl Index {
    /// The one of this number of those that lie in the file.
    pub(super) fn new(file: &File, number: u64, chunks: u64) -> Result<Self, Fault> {
        Ok(Self {
            file: again(file)?,
            base: Self::length(chunks).saturating_mul(number),
            block: [0; BLOCK_BYTES],
            at: u64::MAX,
        })
    }

    /// Bytes of the file that it takes.
    fn length(chunks: u64) -> u64 {
        round_up(chunks.saturating_mul(to_u64(ENTRY_BYTES)), UNIT_BYTES).unwrap_or(u64::MAX)
    }

    /// The block in which a chunk is, and its place in that.
    fn place(&self, chunk: u64) -> (u64, Range<usize>) {
        let offset = chunk.saturating_mul(to_u64(ENTRY_BYTES));
        let within = offset % to_u64(BLOCK_BYTES);
        let block = self.base.saturating_add(offset - within);
        let within = to_usize(within);
        (block, within..within + ENTRY_BYTES)
    }

    /// What stands there; zeros where nothing was set.
    pub(super) fn bytes(&mut self, chunk: u64) -> Result<Hash, Fault> {
        let (block, range) = self.place(chunk);
        if self.at != block {
            self.at = u64::MAX;
            self.block.fill(0);
            let mut filled = 0;
            while let Some(rest) = self.block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match self
                    .file
                    .read_at(rest, block.saturating_add(to_u64(filled)))
                {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        return Err(Fault::short("read of the list of what is held")
                            .with_errno(error.raw_os_error()));
                    }
                }
            }
            self.at = block;
        }
        let mut bytes = Hash::default();
        bytes.copy_from_slice(self.block.get(range).unwrap_or(&[0; ENTRY_BYTES]));
        Ok(bytes)
    }

    pub(super) fn set_bytes(&mut self, chunk: u64, bytes: &Hash) -> Result<(), Fault> {
        let (block, range) = self.place(chunk);
        let offset = block.saturating_add(to_u64(range.start));
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|error| no_room(error.raw_os_error()))?;
        if let (true, Some(place)) = (self.at == block, self.block.get_mut(range)) {
            place.copy_from_slice(bytes);
        }
        Ok(())
    }

    pub(super) fn entry(&mut self, chunk: u64) -> Result<HeldChunk, Fault> {
        let bytes = self.bytes(chunk)?;
        let mut words = bytes.chunks(4).map(number);
        let mut word = || u32::try_from(words.next().unwrap_or(0)).unwrap_or(0);
        Ok(HeldChunk {
            place: word(),
            packed: word(),
            crc32: word(),
            times: word(),
        })
    }

    pub(super) fn set(&mut self, chunk: u64, entry: HeldChunk) -> Result<(), Fault> {
        let words = [entry.place, entry.packed, entry.crc32, entry.times];
        let mut bytes = Hash::default();
        for (to, word) in bytes.chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.set_bytes(chunk, &bytes)
    }
}

/// What stands in front of a chunk that is held.
pub(super) fn head(chunk: u64, entry: HeldChunk) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let chunk = u32::try_from(chunk).unwrap_or(u32::MAX);
    let (magic, words) = head.split_at_mut(HEAD_MAGIC.len());
    magic.copy_from_slice(&HEAD_MAGIC);
    let mut sum = crc::crc32(0, magic);
    for word in [chunk, entry.packed, entry.crc32] {
        sum = crc::crc32(sum, &word.to_le_bytes());
    }
    let all = [chunk, entry.packed, entry.crc32, sum];
    for (to, word) in words.chunks_mut(4).zip(all) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    head
}

/// The chunks that an interrupted run left, found while its file is read.
pub(super) struct Remains {
    file: File,
    index: Index,
    chunks: u64,
    /// Where the next one is looked for, and where there is none any more.
    unit: u64,
    units: u64,
    /// The number behind that of the last one that was found.
    behind: u64,
}

impl Remains {
    /// Of what does not look like one nothing is taken.
    pub(super) fn new(file: File, index: Index, chunks: u64, end_bytes: u64) -> Self {
        Self {
            file,
            index,
            chunks,
            unit: 0,
            units: end_bytes / UNIT_BYTES,
            behind: 0,
        }
    }

    /// Looks at one more place, for a chunk from `least` on; whether there may be more.
    pub(super) fn look(&mut self, least: u64) -> Result<bool, Fault> {
        let mut bytes = [0; HEAD_BYTES];
        let at = self.unit.saturating_mul(UNIT_BYTES);
        if self.unit >= self.units || self.file.read_exact_at(&mut bytes, at).is_err() {
            return Ok(false);
        }
        let mut words = bytes.chunks(4).skip(2).map(number);
        let mut word = || u32::try_from(words.next().unwrap_or(0)).unwrap_or(0);
        let chunk = u64::from(word());
        let entry = HeldChunk {
            place: u32::try_from(self.unit).unwrap_or(u32::MAX),
            packed: word(),
            crc32: word(),
            times: 1,
        };
        let behind = self.unit.saturating_add(entry.room_bytes() / UNIT_BYTES);
        // Behind the end stands what comes now: the room of one that was cut off is not all its own.
        let is_one = head(chunk, entry) == bytes
            && chunk < self.chunks
            && behind <= self.units
            && (1..=MAX_PACKED).contains(&to_usize(u64::from(entry.packed)));
        if is_one {
            // What was said of those before holds.
            if chunk >= least {
                self.index.set(chunk, entry)?;
            }
            self.behind = chunk + 1;
            self.unit = behind;
            return Ok(true);
        }
        // What was given back is a hole.
        self.unit += 1;
        if let Ok(data) = rustix::fs::seek(&self.file, SeekFrom::Data(self.unit * UNIT_BYTES)) {
            self.unit = self.unit.max(data / UNIT_BYTES);
        }
        Ok(true)
    }

    /// Looks until the chunk must have come if the order is that of the numbers, as it is for all but what came twice.
    fn look_for(&mut self, number: u64) {
        let mut left = SILENT;
        while left > 0 && self.behind <= number && self.look(number).unwrap_or(false) {
            left -= 1;
        }
    }

    /// What is known of a chunk by now.
    pub(super) fn entry(&mut self, chunk: u64) -> HeldChunk {
        self.index.entry(chunk).unwrap_or_default()
    }
}

/// How what is here would be packed.
pub(super) struct Packing {
    pub(super) level: u8,
    pub(super) jobs: usize,
    /// Where what is found is noted.
    pub(super) list: File,
}

/// What is here already, chunk by chunk in order.
pub(super) struct Old {
    paths: Vec<String>,
    layout: ChunkLayout,
    remains: Option<Remains>,
    /// How long they are looked through before a word is said.
    pub(super) first: Duration,
    inflate: Inflate,
    packed: Pages,
    earlier: Option<Box<dyn EarlierImages>>,
    /// Of the image that is read: which one, its next chunk, and those that may be taken.
    reader: Option<ImageChunks>,
    image: usize,
    next: u64,
    may: Range<u64>,
    chunk: Pages,
    /// How the other end packs, and on how many CPUs that is done here; level 0: it is not.
    level: u8,
    jobs: usize,
    /// Of the earlier image, while it is read as it is packed; and what was found ahead of its turn.
    pieces: Option<(usize, Pieces)>,
    found: Option<FoundChunk>,
    /// An empty file, until something is noted in it.
    list: File,
    places: Option<Packed>,
    /// Chunks that lie in the list, because they will not be there any more.
    kept: Vec<u64>,
    /// The image of which no more is said.
    given_up: Option<usize>,
}

/// An image, a chunk at a time.
pub struct ImageChunks {
    reader: ImageReader<'static>,
    /// What was read and not taken.
    zeros: u64,
    piece: Pages,
    left: Range<usize>,
}

impl ImageChunks {
    /// From its beginning.
    pub fn new(reader: ImageReader<'static>) -> Result<Self, Fault> {
        Ok(Self {
            reader,
            zeros: 0,
            piece: pages(to_usize(CHUNK_BYTES))?,
            left: 0..0,
        })
    }

    /// The next chunk, and whether there is data in it: without any, `chunk` is not touched. `None`: the image has ended before.
    pub fn next(&mut self, chunk: &mut [u8]) -> Result<Option<bool>, Fault> {
        let (mut filled, mut is_data) = (0, false);
        while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            if self.zeros > 0 {
                let count = at_most(self.zeros, rest.len());
                if count < rest.len() || filled > 0 {
                    rest.get_mut(..count).unwrap_or_default().fill(0);
                }
                self.zeros -= to_u64(count);
                filled += count;
                continue;
            }
            let count = rest.len().min(self.left.len());
            let from = self.left.start..self.left.start + count;
            if let (1.., Some(to), Some(from)) =
                (count, rest.get_mut(..count), self.piece.get(from))
            {
                to.copy_from_slice(from);
                self.left.start += count;
                filled += count;
                is_data = true;
                continue;
            }
            match self.reader.next(&mut self.piece)? {
                ImageRun::Data(count) => self.left = 0..count,
                ImageRun::Zeros(count) => self.zeros = count,
                ImageRun::End => return Ok(None),
            }
        }
        Ok(Some(is_data))
    }
}

/// The same file once more.
pub(super) fn again(file: &File) -> Result<File, Fault> {
    let again = file.try_clone();
    again.map_err(|error| Fault::short("dup").with_errno(error.raw_os_error()))
}

pub(super) fn pages(length: usize) -> Result<Pages, Fault> {
    Pages::new(length).map_err(|errno| Fault::io("allocate", errno))
}

impl Old {
    pub(super) fn new(
        paths: Vec<String>,
        layout: ChunkLayout,
        earlier: Option<Box<dyn EarlierImages>>,
        remains: Option<Remains>,
        packing: Packing,
    ) -> Result<Self, Fault> {
        Ok(Self {
            level: packing.level,
            jobs: packing.jobs,
            pieces: None,
            found: None,
            list: packing.list,
            places: None,
            kept: Vec::new(),
            given_up: None,
            paths,
            layout,
            remains,
            first: FIRST,
            inflate: Inflate::new()?,
            packed: pages(MAX_PACKED)?,
            earlier,
            reader: None,
            image: usize::MAX,
            next: 0,
            may: 0..0,
            chunk: pages(to_usize(CHUNK_BYTES))?,
        })
    }

    /// Whether the chunk is among the remains; then it is in `self.chunk`.
    fn read_remains(&mut self, number: u64, raw_bytes: usize) -> bool {
        let Some(remains) = &mut self.remains else {
            return false;
        };
        let entry = remains.entry(number);
        let length = to_usize(u64::from(entry.packed));
        let (Some(packed), Some(chunk)) = (
            self.packed.get_mut(..length),
            self.chunk.get_mut(..raw_bytes),
        ) else {
            return false;
        };
        length > 0
            && remains.file.read_exact_at(packed, entry.offset()).is_ok()
            && unpack(&mut self.inflate, packed, chunk) == Some(raw_bytes)
            && crc::crc32(0, chunk) == entry.crc32
    }

    /// Whether the chunk is in the earlier image, and not zeros; then it is in `self.chunk`. In rising order.
    fn read_earlier(&mut self, number: u64) -> bool {
        let Some(earlier) = &mut self.earlier else {
            return false;
        };
        let ends = &self.layout.ends;
        let image = ends.partition_point(|end| *end <= number);
        if image != self.image {
            let path = self.paths.get(image);
            let found = path.and_then(|path| earlier.image(path));
            let (reader, may) = found.map_or((None, 0..0), |(reader, may)| (Some(reader), may));
            self.reader = reader.and_then(|reader| ImageChunks::new(reader).ok());
            self.image = image;
            self.next = self.layout.first(image);
            self.may = self.next.saturating_add(may.start)..self.next.saturating_add(may.end);
        }
        let mut found = false;
        while self.next <= number {
            let raw_bytes = self.layout.raw_bytes(self.next).unwrap_or(0);
            let chunk = self.chunk.get_mut(..to_usize(raw_bytes));
            let next = self.reader.as_mut().zip(chunk);
            // What has ended, or is damaged, has nothing more.
            match next.and_then(|(reader, chunk)| reader.next(chunk).ok().flatten()) {
                Some(is_data) => found = is_data && self.next == number,
                None => (self.reader, found) = (None, false),
            }
            self.next += 1;
        }
        found
    }

    /// The hash of the chunk of the earlier image; `None`: zeros, or there is none. In rising order.
    fn earlier_hash(&mut self, number: u64) -> Option<Hash> {
        let image = self.layout.ends.partition_point(|end| *end <= number);
        if self.given_up == Some(image) {
            return None;
        }
        let is_first = self.pieces.as_ref().is_none_or(|(of, _)| *of != image);
        if is_first && self.layout.first(image) == number {
            (self.pieces, self.found) = (None, None);
            self.start_pieces(image);
        }
        let (layout, places) = (&self.layout, &mut self.places);
        while let (Some((_, pieces)), Some(places)) = (&mut self.pieces, places.as_mut()) {
            match self.found {
                Some(found) if found.chunk > number => return None,
                Some(found) if found.chunk == number => return Some(found.hash),
                _ => {}
            }
            match pieces.next(layout, places) {
                Ok(Some(found)) => self.found = Some(found),
                Ok(None) => return None,
                // From here on the ordinary way, which begins anew: not where the other end would wait long for a word.
                Err(_) => {
                    self.pieces = None;
                    if number.saturating_sub(layout.first(image)) > SILENT {
                        self.given_up = Some(image);
                        return None;
                    }
                }
            }
        }
        let raw_bytes = to_usize(self.layout.raw_bytes(number)?);
        let found = self.read_earlier(number) && (self.may.contains(&number) || self.keep(number));
        self.chunk.get(..raw_bytes).filter(|_| found).map(hash)
    }

    /// Where the chunk that was kept as `place` of them lies: behind what is noted.
    fn kept_at(&self, place: usize) -> u64 {
        let behind = LISTS.saturating_mul(Index::length(self.layout.chunks()));
        behind.saturating_add(to_u64(place).saturating_mul(CHUNK_BYTES))
    }

    /// Keeps what is in `self.chunk`; whether there was room.
    fn keep(&mut self, number: u64) -> bool {
        let raw_bytes = to_usize(self.layout.raw_bytes(number).unwrap_or(0));
        let chunk = self.chunk.get(..raw_bytes).unwrap_or_default();
        let at = self.kept_at(self.kept.len());
        let is_kept = self.kept.len() < MOST_KEPT && self.list.write_all_at(chunk, at).is_ok();
        if is_kept {
            self.kept.push(number);
        }
        is_kept
    }

    /// Whether the chunk was kept; then it is in `self.chunk`.
    fn read_kept(&mut self, number: u64, raw_bytes: usize) -> bool {
        let place = self.kept.iter().position(|kept| *kept == number);
        let at = place.map(|place| self.kept_at(place));
        at.zip(self.chunk.get_mut(..raw_bytes))
            .is_some_and(|(at, chunk)| self.list.read_exact_at(chunk, at).is_ok())
    }

    /// Begins with an image, where that lies here as it would be packed.
    fn start_pieces(&mut self, image: usize) -> Option<()> {
        let path = self.paths.get(image).filter(|_| self.level > 0)?;
        let (file, range) = self.earlier.as_mut()?.packed(path)?;
        if self.places.is_none() {
            let file = file.try_clone().ok()?;
            let places = Packed::new(file, &self.list, self.layout.chunks());
            self.places = Some(places.ok()?);
        }
        let first = self.layout.first(image);
        let pieces = Pieces::start(file, range, first, self.level, self.jobs);
        self.pieces = Some((image, pieces.ok()?));
        Some(())
    }

    /// The packed bytes of a chunk into `out`, where they lie here and were inflated to what the hash says; and the checksum of that.
    pub(super) fn as_it_is(
        &mut self,
        number: u64,
        wanted: &Hash,
        out: &mut [u8],
    ) -> Option<(usize, u32)> {
        self.places.as_mut()?.take(number, wanted, out)
    }

    /// The chunk, if something here is what the hash says. In rising order.
    pub(super) fn proven(&mut self, number: u64, wanted: &Hash) -> Option<&[u8]> {
        let raw_bytes = to_usize(self.layout.raw_bytes(number)?);
        let is_it = |old: &Self| {
            old.chunk
                .get(..raw_bytes)
                .is_some_and(|it| hash(it) == *wanted)
        };
        let found = self.read_remains(number, raw_bytes) && is_it(self)
            || self.read_kept(number, raw_bytes) && is_it(self)
            || self.read_earlier(number) && is_it(self);
        self.chunk.get(..raw_bytes).filter(|_| found)
    }

    /// Says the hashes of all of it, until nobody wants them any more.
    pub(super) fn tell(&mut self, mut stdin: &File, stop: &AtomicBool) -> Option<()> {
        let mut words: Vec<u8> = Vec::with_capacity(64 * RECORD_BYTES);
        let chunks = self.layout.chunks();
        let mut spoke = Instant::now();
        if let Some(remains) = &mut self.remains {
            while spoke.elapsed() < self.first
                && !stop.load(Ordering::Relaxed)
                && remains.look(0).unwrap_or(false)
            {}
        }
        for number in 0..chunks {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let raw_bytes = to_usize(self.layout.raw_bytes(number)?);
            if let Some(remains) = &mut self.remains {
                remains.look_for(number);
            }
            // The earlier image goes along: to be read in one go up to where the remains end would be a long silence.
            let earlier = self.earlier_hash(number);
            let found = match self.read_remains(number, raw_bytes) {
                true => self.chunk.get(..raw_bytes).map(hash),
                false => earlier,
            };
            let is_last = number + 1 == chunks;
            let is_due = number % SILENT == SILENT - 1 || is_last || spoke.elapsed() > FIRST;
            if found.is_some() || is_due {
                // How far we are is said by a hash that is none.
                let hash = found.unwrap_or([0; HASH_BYTES]);
                words.extend_from_slice(&u32::try_from(number).ok()?.to_le_bytes());
                words.extend_from_slice(&hash);
            }
            if words.len() < 32 * RECORD_BYTES && !is_due {
                continue;
            }
            let mut rest = &*words;
            while !rest.is_empty() {
                // What is ready takes so little at once, also where writing would wait otherwise.
                let ready = poll(&mut [PollFd::new(stdin, PollFlags::OUT)], Some(&PAUSE));
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                if !ready.is_ok_and(|count| count > 0) {
                    continue;
                }
                match stdin.write(rest) {
                    Ok(count) => rest = rest.get(count..)?,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => return None,
                }
            }
            words.clear();
            spoke = Instant::now();
        }
        Some(())
    }
}

/// The thread that says what is here.
pub(super) struct Telling {
    thread: Option<Started>,
    old: Arc<Lock<Option<Old>>>,
    stop: Arc<AtomicBool>,
}

impl Telling {
    pub(super) fn start(mut old: Old, stdin: File) -> Result<Self, Fault> {
        let stop: Arc<AtomicBool> = Arc::default();
        let place: Arc<Lock<Option<Old>>> = Arc::default();
        let (stopped, back) = (Arc::clone(&stop), Arc::clone(&place));
        let work = move || {
            let _ = old.tell(&stdin, &stopped);
            // Its end is the end of what is said.
            drop(stdin);
            // To be read from its beginning again.
            (old.reader, old.image) = (None, usize::MAX);
            old.pieces = None;
            *back.lock() = Some(old);
        };
        let thread = crate::threads::start(c"known", 256 * 1024, Box::new(work))
            .map_err(|errno| Fault::io("start a thread", errno))?;
        Ok(Self {
            thread: Some(thread),
            old: place,
            stop,
        })
    }

    /// No more of it is wanted; gives what is here.
    pub(super) fn end(mut self) -> Option<Old> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join();
        self.old.lock().take()
    }
}
