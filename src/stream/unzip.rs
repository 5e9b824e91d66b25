//! Zip archives read back in two ways: as a pure stream, and from a file through the central directory.
//!
//! Strict, because two readers that disagree about an archive are a hole: whatever is read is written again by
//! [`ZipWriter`](super::zip::ZipWriter), in memory, and every byte of every header, descriptor and of the central directory must be the same. So
//! names given twice, paths that leave their folder, entries that overlap or leave gaps, copies that contradict each other,
//! comments, foreign extra fields and trailing bytes are all the same thing: not what floe writes, hence corrupt.
//!
//! Never inflates more than it was told to expect: [`Body::expect`] comes before the first byte.

use sha2::{Digest, Sha256};

use super::inflate::{LOOK_BYTES, Outflow};
use super::input::Input;
use super::zip::{
    Central, Compression, EXTRA_ZIP64, End, End64, Entry, EntrySums, Local, Locator, MAX_DIRECTORY,
    MAX_ENTRIES, MAX_NAME, Record, WIDE, ZipWriter, check_name,
};
use crate::crc;
use crate::device::ReadAt;
use crate::error::{Cause, Fault, FaultKind};
use crate::layout::le;
use crate::units::{to_u64, to_usize};

/// What another program packs again has other dates, flags and lengths, and no order to go by.
const OTHER_HEADER: &str = "local header is not as floe writes it: damaged, or another program packed the files again (restore and verify take only the .zip that floe made); it begins";
const OTHER_DIRECTORY: &str = "central directory is not as floe writes it: damaged, or another program packed the files again (restore and verify take only the .zip that floe made); it begins";

fn corrupt(what: &'static str, offset: u64) -> Fault {
    Fault::corrupt(what).with_offset(offset)
}

fn ends_early(offset: u64) -> Fault {
    corrupt("archive ends early", offset).because(Cause::EndsEarly)
}

/// What the shadow writer refuses, the archive should not have said.
fn refusal(fault: Fault, offset: u64) -> Fault {
    if fault.kind() == FaultKind::Io {
        fault
    } else {
        corrupt(fault.what(), offset)
    }
}

/// The data of one entry while it is being read.
pub struct Body {
    method: Compression,
    /// Raw bytes that must come out.
    expected: Option<u64>,
    /// Stored bytes where they are known beforehand.
    stored_bytes: Option<u64>,
    sums: EntrySums,
    ended: bool,
    /// Where it is deflated.
    data: Option<Outflow>,
    sha256: Option<Sha256>,
}

impl Body {
    fn new(method: Compression, known: Option<EntrySums>) -> Result<Self, Fault> {
        let deflated = method == Compression::Deflated;
        Ok(Self {
            method,
            expected: known.filter(|_| !deflated).map(|sums| sums.raw_bytes),
            stored_bytes: known.map(|sums| sums.stored_bytes),
            sums: EntrySums::default(),
            ended: false,
            data: match deflated {
                true => Some(Outflow::new()?),
                false => None,
            },
            sha256: None,
        })
    }

    /// Hashes the bytes in the archive from here on.
    pub fn hash(&mut self) {
        self.sha256 = Some(Sha256::new());
    }

    /// The SHA-256 of the bytes in the archive that were read, where [`Self::hash`] was called.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256.clone().map(|hash| hash.finalize().into())
    }

    /// For an entry of a [`Directory`]; the input must stand at [`Entry::data_offset`].
    pub fn of(entry: &Entry) -> Result<Self, Fault> {
        Self::new(entry.method, Some(entry.sums))
    }

    /// States how many raw bytes there must be, from the archive's metadata: more, and less, is corrupt.
    pub fn expect(&mut self, raw_bytes: u64) {
        self.expected = Some(raw_bytes);
    }

    /// What came out so far; of the whole entry once [`Self::read`] gave fewer bytes than it was asked for.
    pub fn sums(&self) -> EntrySums {
        self.sums
    }

    /// Fills `out`; fewer bytes only at the end of the data, when its size was as expected.
    pub fn read(&mut self, input: &mut Input<'_>, out: &mut [u8]) -> Result<usize, Fault> {
        let expected = self
            .expected
            .ok_or_else(|| Fault::refused("an entry of unknown size"))?;
        let mut done = 0usize;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let count = self.data.as_mut().map_or(0, |data| data.give(rest));
            if count > 0 {
                done += count;
            } else if self.ended {
                break;
            } else {
                done += match self.method {
                    Compression::Stored => self.copy(input, rest)?,
                    Compression::Deflated => self.step(input, rest)?,
                };
            }
            if self.sums.raw_bytes > expected {
                return Err(corrupt("more data than the size says", input.offset()));
            }
        }
        if self.is_done() && self.sums.raw_bytes != expected {
            return Err(corrupt("less data than the size says", input.offset()));
        }
        Ok(done)
    }

    /// Whether everything was read.
    pub fn is_done(&self) -> bool {
        self.ended && self.data.as_ref().is_none_or(Outflow::is_empty)
    }

    /// Takes the zeros that come next, where they are known to be many: a multiple of `unit`, or 0.
    pub fn take_zeros(&mut self, unit: u64) -> u64 {
        self.data.as_mut().map_or(0, |data| data.take_zeros(unit))
    }

    fn copy(&mut self, input: &mut Input<'_>, out: &mut [u8]) -> Result<usize, Fault> {
        let left = self
            .stored_bytes
            .unwrap_or(0)
            .saturating_sub(self.sums.stored_bytes);
        let wanted = to_usize(left).min(out.len());
        let piece = out.get_mut(..wanted).unwrap_or_default();
        let offset = input.offset();
        if input.read(piece)? < wanted {
            return Err(ends_early(offset));
        }
        self.count(wanted, wanted);
        self.sums.crc32 = crc::crc32(self.sums.crc32, piece);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&*piece);
        }
        self.ended = to_u64(wanted) == left;
        Ok(wanted)
    }

    /// One step: into `out` what fits.
    fn step(&mut self, input: &mut Input<'_>, out: &mut [u8]) -> Result<usize, Fault> {
        let offset = input.offset();
        let mut bytes = input.peek(LOOK_BYTES)?;
        if let Some(stored) = self.stored_bytes {
            let left = to_usize(stored.saturating_sub(self.sums.stored_bytes));
            bytes = bytes.get(..left).unwrap_or(bytes);
        }
        let data = self.data.as_mut().filter(|_| !bytes.is_empty());
        let data = data.ok_or_else(|| ends_early(offset))?;
        let step = data.step(bytes, out);
        let step = step.map_err(|fault| fault.with_offset(offset))?;
        (self.sums.crc32, self.sums.raw_bytes) = (data.crc32, data.raw_bytes);
        self.ended = step.ended;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes.get(..step.consumed).unwrap_or_default());
        }
        input.consume(step.consumed);
        self.count(step.consumed, 0);
        Ok(step.given)
    }

    fn count(&mut self, stored: usize, raw: usize) {
        self.sums.stored_bytes = self.sums.stored_bytes.saturating_add(to_u64(stored));
        self.sums.raw_bytes = self.sums.raw_bytes.saturating_add(to_u64(raw));
    }

    /// After the last byte: whether CRC and sizes are those of the directory.
    pub fn check(&self, entry: &Entry) -> Result<(), Fault> {
        if self.is_done() && self.sums == entry.sums {
            Ok(())
        } else {
            Err(corrupt("checksum or sizes are wrong", entry.offset))
        }
    }
}

/// An archive read forwards, from a pipe or anything else.
///
/// [`Self::next`] gives an entry's name, [`Self::body`] its data, which has to be read to its end before the next; after the
/// last entry `next` checks the central directory and that nothing follows.
#[derive(Default)]
pub struct Unzip {
    shadow: Option<ZipWriter>,
    body: Option<Body>,
    ended: bool,
}

impl Unzip {
    /// Ready for the archive's first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entries so far; CRC and sizes of a streamed one once the next was asked for.
    pub fn entries(&self) -> &[Entry] {
        self.shadow.as_ref().map_or(&[], ZipWriter::entries)
    }

    /// The data of the current entry.
    pub fn body(&mut self) -> Option<&mut Body> {
        self.body.as_mut()
    }

    /// The next entry's name, or `None` after the last, when everything was right.
    pub fn next(&mut self, input: &mut Input<'_>) -> Result<Option<&Entry>, Fault> {
        if self.ended {
            return Ok(None);
        }
        self.end_body(input)?;
        let offset = input.offset();
        let head = input.peek(Local::SIZE + MAX_NAME)?;
        if head.starts_with(&Local::SIGNATURE) {
            self.begin(input, offset)?;
            return Ok(self.entries().last());
        }
        if head.len() < 4 {
            return Err(ends_early(offset));
        }
        let shadow = self
            .shadow
            .as_mut()
            .filter(|_| head.starts_with(&Central::SIGNATURE))
            .ok_or_else(|| corrupt("neither an entry nor the directory", offset))?;
        shadow
            .finish(|bytes| same(input, bytes, OTHER_DIRECTORY))
            .map_err(|fault| refusal(fault, fault.offset().unwrap_or(offset)))?;
        let offset = input.offset();
        if !input.fill()?.is_empty() {
            return Err(corrupt("bytes after the archive", offset));
        }
        self.ended = true;
        Ok(None)
    }

    /// Reads and compares what follows the data of the entry that was read.
    fn end_body(&mut self, input: &mut Input<'_>) -> Result<(), Fault> {
        let (Some(mut body), Some(shadow)) = (self.body.take(), self.shadow.as_mut()) else {
            return Ok(());
        };
        // Ends an entry whose last byte was read without asking for one more.
        let rest = body.read(input, &mut [0; 1])?;
        if rest != 0 || !body.is_done() {
            return Err(Fault::refused("an entry that was not read to its end"));
        }
        let offset = input.offset();
        match body.method {
            Compression::Deflated => {
                let mut out = Record::new();
                shadow.end(body.sums, &mut out)?;
                same(input, &out, "checksum or sizes after the data")
            }
            Compression::Stored => match shadow.entries().last() {
                Some(entry) if entry.sums == body.sums => Ok(()),
                _ => Err(corrupt("checksum", offset)),
            },
        }
    }

    fn begin(&mut self, input: &mut Input<'_>, offset: u64) -> Result<(), Fault> {
        let head = input.peek(Local::SIZE + MAX_NAME)?;
        let bad = || corrupt("local header", offset);
        let local = Local::parse(head).ok_or_else(|| ends_early(offset))?;
        let name = name_at(head, Local::SIZE, local.name_bytes, offset)?;
        let method = Compression::from_number(local.method).ok_or_else(bad)?;
        let shadow = self
            .shadow
            .get_or_insert_with(|| ZipWriter::dated(MAX_ENTRIES, local.time, local.date));
        let mut out = Record::new();
        let known = match method {
            Compression::Deflated => {
                shadow
                    .begin(&name, &mut out)
                    .map_err(|fault| refusal(fault, offset))?;
                None
            }
            Compression::Stored => {
                shadow
                    .stored(&name, local.crc32, local.raw_bytes, &mut out)
                    .map_err(|fault| refusal(fault, offset))?;
                shadow.entries().last().map(|entry| entry.sums)
            }
        };
        same(input, &out, OTHER_HEADER)?;
        self.body = Some(Body::new(method, known)?);
        Ok(())
    }
}

/// The name behind a header of `size` bytes.
fn name_at(
    bytes: &[u8],
    size: usize,
    length: u16,
    offset: u64,
) -> Result<heapless::String<MAX_NAME>, Fault> {
    let name = bytes
        .get(size..)
        .and_then(|rest| rest.get(..usize::from(length)))
        .and_then(|name| core::str::from_utf8(name).ok())
        .ok_or_else(|| corrupt("name of an entry", offset))?;
    check_name(name).map_err(|fault| refusal(fault, offset))
}

/// Takes as many bytes as `expected` has, which must be the same.
fn same(input: &mut Input<'_>, expected: &[u8], what: &'static str) -> Result<(), Fault> {
    let offset = input.offset();
    let mut found = [0u8; 512];
    for part in expected.chunks(found.len()) {
        let place = found.get_mut(..part.len()).unwrap_or_default();
        if input.read(place)? < part.len() {
            return Err(ends_early(input.offset()));
        }
        if place != part {
            return Err(corrupt(what, offset));
        }
    }
    Ok(())
}

/// Whether `file` is no archive that was cut short: what was has the beginning of one, and does not end with the record that ends it
/// (APPNOTE 4.3.16, without a comment).
pub fn is_ended(file: &std::fs::File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 4];
    let first = file.read_at(&mut bytes, 0).unwrap_or_default();
    if !super::zip::begins_so(bytes.get(..first).unwrap_or_default()) {
        return true;
    }
    let length = file.metadata().map_or(0, |meta| meta.len());
    let at = length.checked_sub(22);
    at.is_some_and(|at| file.read_exact_at(&mut bytes, at).is_ok()) && bytes == *b"PK\x05\x06"
}

/// The entries of an archive in a file, every header checked, no data read.
#[derive(Debug)]
pub struct Directory {
    /// In the order of the archive.
    pub entries: Vec<Entry>,
}

impl Directory {
    /// Reads and checks the central directory at the end of `file`, and each entry's own headers against it.
    pub fn read(file: &dyn ReadAt) -> Result<Self, Fault> {
        let tail = Tail::read(file)?;
        let mut bytes = vec![0; tail.directory_bytes];
        file.read_at(tail.start, &mut bytes)?;
        let entries = parse_entries(&bytes, tail.start)?;
        if entries.is_empty() {
            return Err(corrupt("archive without entries", tail.start));
        }
        let dates = Central::parse(&bytes).map_or((0, 0), |first| (first.time, first.date));
        let mut shadow = ZipWriter::dated(MAX_ENTRIES, dates.0, dates.1);
        for entry in &entries {
            check_entry(file, entry, &mut shadow)?;
        }
        if shadow.offset() != tail.start {
            return Err(corrupt("gap before the central directory", shadow.offset()));
        }
        let mut offset = tail.start;
        shadow.finish(|expected| {
            same_at(file, offset, expected, OTHER_DIRECTORY)?;
            offset = offset.saturating_add(to_u64(expected.len()));
            Ok::<(), Fault>(())
        })?;
        if offset != file.size_bytes() {
            return Err(corrupt("bytes after the archive", offset));
        }
        Ok(Self { entries })
    }

    /// The entry of this name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// Where the central directory is, as the end of the file says.
struct Tail {
    start: u64,
    directory_bytes: usize,
}

impl Tail {
    fn read(file: &dyn ReadAt) -> Result<Self, Fault> {
        let size = file.size_bytes();
        let missing = || corrupt("end of the archive is missing", size);
        let back = |count: usize| size.checked_sub(to_u64(count)).ok_or_else(missing);
        let mut bytes = [0u8; End::SIZE];
        file.read_at(back(End::SIZE)?, &mut bytes)?;
        let end = End::parse(&bytes).ok_or_else(missing)?;
        let (mut start, mut length) = (
            u64::from(end.directory_offset),
            u64::from(end.directory_bytes),
        );
        if end.directory_offset == WIDE || end.directory_bytes == WIDE {
            let mut bytes = [0u8; Locator::SIZE];
            file.read_at(back(End::SIZE + Locator::SIZE)?, &mut bytes)?;
            Locator::parse(&bytes).ok_or_else(missing)?;
            let mut bytes = [0u8; End64::SIZE];
            file.read_at(back(End::SIZE + Locator::SIZE + End64::SIZE)?, &mut bytes)?;
            let end64 = End64::parse(&bytes).ok_or_else(missing)?;
            (start, length) = (end64.directory_offset, end64.directory_bytes);
        }
        let inside = start.checked_add(length).is_some_and(|end| end <= size);
        if !inside || length > to_u64(MAX_DIRECTORY) {
            return Err(corrupt("place of the central directory", size));
        }
        Ok(Self {
            start,
            directory_bytes: to_usize(length),
        })
    }
}

fn parse_entries(bytes: &[u8], start: u64) -> Result<Vec<Entry>, Fault> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let offset = start + to_u64(bytes.len() - rest.len());
        let bad = || corrupt(OTHER_DIRECTORY, offset);
        let central = Central::parse(rest).ok_or_else(bad)?;
        let name = name_at(rest, Central::SIZE, central.name_bytes, offset)?;
        let mut extra = rest.get(Central::SIZE + name.len()..).ok_or_else(bad)?;
        if central.extra_bytes != 0 {
            if le::<u16>(extra, 0) != Some(EXTRA_ZIP64) {
                return Err(bad());
            }
            extra = extra.get(4..).ok_or_else(bad)?;
        }
        // The order is fixed: raw, stored, offset; each only where its field says so.
        let mut wide = |field: u32| {
            if field != WIDE {
                return Ok(u64::from(field));
            }
            let value = le::<u64>(extra, 0).ok_or_else(bad)?;
            extra = extra.get(8..).ok_or_else(bad)?;
            Ok::<u64, Fault>(value)
        };
        let raw_bytes = wide(central.raw_bytes)?;
        let stored_bytes = wide(central.stored_bytes)?;
        let offset = wide(central.offset)?;
        let size = Central::SIZE + name.len() + usize::from(central.extra_bytes);
        rest = rest.get(size..).ok_or_else(bad)?;
        entries.push(Entry {
            name,
            method: Compression::from_number(central.method).ok_or_else(bad)?,
            sums: EntrySums {
                crc32: central.crc32,
                stored_bytes,
                raw_bytes,
            },
            offset,
        });
    }
    Ok(entries)
}

/// Compares an entry's local header and descriptor with what the writer would have put there.
fn check_entry(file: &dyn ReadAt, entry: &Entry, shadow: &mut ZipWriter) -> Result<(), Fault> {
    let offset = shadow.offset();
    let bad = corrupt("entries overlap or leave a gap", entry.offset);
    if entry.offset != offset
        || entry.offset.saturating_add(entry.extent_bytes()) > file.size_bytes()
    {
        return Err(bad);
    }
    let refused = |fault| refusal(fault, offset);
    let mut out = Record::new();
    match entry.method {
        Compression::Stored => {
            let length = u32::try_from(entry.sums.raw_bytes).map_err(|_| bad)?;
            shadow
                .stored(&entry.name, entry.sums.crc32, length, &mut out)
                .map_err(refused)?;
            same_at(file, offset, &out, OTHER_HEADER)
        }
        Compression::Deflated => {
            shadow.begin(&entry.name, &mut out).map_err(refused)?;
            same_at(file, offset, &out, OTHER_HEADER)?;
            out.clear();
            shadow.end(entry.sums, &mut out).map_err(refused)?;
            let place = shadow.offset().saturating_sub(to_u64(out.len()));
            same_at(file, place, &out, "checksum or sizes after the data")
        }
    }
}

fn same_at(
    file: &dyn ReadAt,
    offset: u64,
    expected: &[u8],
    what: &'static str,
) -> Result<(), Fault> {
    let mut found = [0u8; 512];
    let mut place = offset;
    for part in expected.chunks(found.len()) {
        let buffer = found.get_mut(..part.len()).unwrap_or_default();
        if place.saturating_add(to_u64(part.len())) > file.size_bytes() {
            return Err(ends_early(place));
        }
        file.read_at(place, buffer)?;
        if buffer != part {
            return Err(corrupt(what, offset));
        }
        place = place.saturating_add(to_u64(part.len()));
    }
    Ok(())
}

#[cfg(test)]
#[path = "unzip_tests.rs"]
mod tests;
