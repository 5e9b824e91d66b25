//! An image as runs of data and zeros, in order, from a raw or gzip stream recognised by its content.
//!
//! Works from a pipe: never seeks, except over the holes of a raw file. What other programs compress is recognised only to say
//! how it can be used. Knows nothing of what the image holds.
//!
//! [`open`] opens a file, device or pipe that is one (and [`held`] holds still what it lies on), [`probed`] reads its head and all of
//! it (in [`lanes`], where it can be), and [`whole`] says whether it is an image at all.

mod held;
mod lanes;
pub(crate) mod open;
pub(crate) mod probed;
pub(crate) mod whole;

use crate::content::{Content, SEEN_BYTES, Seen, SeenAt, TAIL_BYTES};
pub use crate::content::{Format, LOOK_BYTES};
use crate::crc::{self, Shift};
use crate::error::Fault;
use crate::stream::gunzip::Gunzip;
use crate::stream::input::{Input, at_most, is_zero};
use crate::sys::memory::{Pages, ZEROS};
use crate::units::{to_u64, to_usize};

/// Unit of zero runs in bytes: data and zero runs begin at multiples of it.
pub const GRANULE_BYTES: u64 = 64 * 1024;

/// Longest zero run given at once, so that progress and signals come in between.
const ZERO_RUN_LIMIT: u64 = 1 << 30;

/// What comes next in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageRun {
    /// So many bytes in the caller's buffer.
    Data(usize),
    /// So many zero bytes.
    Zeros(u64),
    /// Nothing more; the stream's own checksums, where it has some, were right.
    End,
}

/// Reads one image forwards.
pub struct ImageReader<'a> {
    input: Input<'a>,
    gunzip: Option<Gunzip>,
    format: Format,
    /// Bytes of the image given to the caller.
    offset: u64,
    crc: u32,
    shift: Shift,
    pending_zeros: u64,
    data_bytes: u64,
    /// The granule that ended a zero run.
    stash: Pages,
    stash_bytes: usize,
    /// The end of what was given so far, at most [`TAIL_BYTES`].
    tail: Vec<u8>,
    /// The places that are watched.
    seen: Vec<Seen>,
    ended: bool,
}

impl<'a> ImageReader<'a> {
    /// Looks at the first bytes. A [`Format::Zip`] or [`Format::Mender`] is recognised and not read here.
    pub fn new(mut input: Input<'a>) -> Result<Self, Fault> {
        let format = Format::recognise(input.peek(LOOK_BYTES)?);
        Self::with(input, format)
    }

    /// The payload of a Mender artifact: raw bytes that `input` makes.
    pub fn payload(input: Input<'a>) -> Result<Self, Fault> {
        Self::with(input, Format::Mender)
    }

    /// Takes the input's bytes as the image, whatever they look like.
    pub fn raw(input: Input<'a>) -> Result<Self, Fault> {
        Self::with(input, Format::Raw)
    }

    /// See [`Gunzip::part`].
    pub(crate) fn part(input: Input<'a>, first: bool) -> Result<Self, Fault> {
        let mut part = Self::with(input, Format::Raw)?;
        part.gunzip = Some(Gunzip::part(first)?);
        Ok(part)
    }

    /// See [`Gunzip::has_end`].
    pub(crate) fn has_end(&self) -> bool {
        self.gunzip.as_ref().is_some_and(Gunzip::has_end)
    }

    fn with(input: Input<'a>, format: Format) -> Result<Self, Fault> {
        Ok(Self {
            input,
            gunzip: (format == Format::Gzip).then(Gunzip::new).transpose()?,
            format,
            offset: 0,
            crc: 0,
            shift: Shift::new(GRANULE_BYTES),
            pending_zeros: 0,
            data_bytes: 0,
            stash: Pages::new(to_usize(GRANULE_BYTES)).map_err(|e| Fault::io("mmap", e))?,
            stash_bytes: 0,
            tail: Vec::with_capacity(2 * TAIL_BYTES),
            seen: Vec::new(),
            ended: false,
        })
    }

    /// How it is packed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Offset in the image of what comes next.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes taken from the input.
    pub fn input_bytes(&self) -> u64 {
        self.input.offset()
    }

    /// Length of the packed input, where it is known.
    pub fn input_length_bytes(&self) -> Option<u64> {
        self.input.length_bytes()
    }

    /// Length of the image where it is known beforehand: a raw file.
    pub fn length_bytes(&self) -> Option<u64> {
        self.input
            .length_bytes()
            .filter(|_| self.format == Format::Raw)
    }

    /// See [`Gunzip::begins_as_ours`].
    pub(crate) fn begins_as_ours(&self) -> bool {
        self.gunzip.as_ref().is_some_and(Gunzip::begins_as_ours)
    }

    /// Keeps what stands at the places where an image that was appended would begin; `head` is what was given so far.
    pub(crate) fn watch(&mut self, content: &Content, head: &[u8]) {
        // A copy of something as it is has one member.
        let least = match self.is_as_it_is() {
            true => 1,
            false => content.least_bytes(),
        };
        if let Some(gunzip) = self.gunzip.as_mut().filter(|_| least > 0) {
            gunzip.watch_members(least);
            self.watch_member();
        }
        let mut places = content.places(self.length_bytes());
        // Of a payload another checksum says that it is one image.
        let is_alone = !matches!(self.format, Format::Raw | Format::Gzip);
        places.retain(|(place, _)| !is_alone || matches!(place, SeenAt::Partition(_)));
        let is_packed = self.format == Format::Gzip;
        let watched = |place| watched(place, is_packed);
        self.seen.extend(places.into_iter().map(watched));
        for seen in &mut self.seen {
            keep(seen, 0, Some(head), to_u64(head.len()));
        }
    }

    fn watch_member(&mut self) {
        let is_watched = |seen: &Seen| matches!(seen.place, SeenAt::Member(_));
        if let Some((offset, place)) = self.gunzip.as_ref().and_then(Gunzip::member)
            && !self.seen.iter().any(is_watched)
        {
            self.seen
                .push(watched((SeenAt::Member(place), offset), true));
        }
    }

    /// What stood at the places of [`Self::watch`].
    pub(crate) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Whether the stream says that it is a copy as it is, of something that need not be an image ([`crate::stream::gzip`]).
    pub fn is_as_it_is(&self) -> bool {
        self.gunzip.as_ref().is_some_and(Gunzip::is_as_it_is)
    }

    /// The end of what was given so far.
    pub fn tail(&self) -> &[u8] {
        let start = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.get(start..).unwrap_or_default()
    }

    fn keep_tail(&mut self, data: &[u8]) {
        let start = data.len().saturating_sub(TAIL_BYTES);
        let last = data.get(start..).unwrap_or_default();
        let kept = TAIL_BYTES.saturating_sub(last.len()).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
        self.tail.extend_from_slice(last);
    }

    /// How much of what was given so far behind the head was no zeros.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// CRC-32 of what was given so far.
    pub fn crc32(&self) -> u32 {
        self.crc
    }

    /// Fills `head` with the beginning of the image, zeros and all; fewer bytes only when the image ends there. To be called
    /// first, with a whole number of granules.
    pub fn head(&mut self, head: &mut [u8]) -> Result<usize, Fault> {
        let count = self.decode(head)?;
        self.crc = crc::crc32(self.crc, head.get(..count).unwrap_or_default());
        self.keep_tail(head.get(..count).unwrap_or_default());
        self.offset = self.offset.saturating_add(to_u64(count));
        self.ended = count < head.len();
        Ok(count)
    }

    /// The next run. `buffer` is a whole number of granules long, at least one.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<ImageRun, Fault> {
        let granule = to_usize(GRANULE_BYTES);
        let mut filled = self.take_stash(buffer);
        while !self.ended && self.pending_zeros < ZERO_RUN_LIMIT {
            if filled == 0 && self.skip_hole()? {
                continue;
            }
            let end = filled.saturating_add(granule);
            let Some(space) = buffer.get_mut(filled..end) else {
                break;
            };
            let count = self.decode(space)?;
            self.ended = count < granule;
            let found = space.get(..count).unwrap_or_default();
            if is_zero(found) {
                self.pending_zeros = self.pending_zeros.saturating_add(to_u64(count));
                if filled > 0 {
                    break;
                }
            } else if self.pending_zeros > 0 {
                // Data ends the zero run; it is given next time, maybe into another buffer.
                if let Some(stash) = self.stash.get_mut(..count) {
                    stash.copy_from_slice(found);
                }
                self.stash_bytes = count;
                break;
            } else {
                filled = filled.saturating_add(count);
            }
        }
        Ok(self.give(buffer, filled))
    }

    fn take_stash(&mut self, buffer: &mut [u8]) -> usize {
        let count = std::mem::take(&mut self.stash_bytes);
        let (Some(to), Some(from)) = (buffer.get_mut(..count), self.stash.get(..count)) else {
            return 0;
        };
        to.copy_from_slice(from);
        count
    }

    /// Accounts for what goes out: the data at the front of `buffer`, or else the zeros that wait.
    fn give(&mut self, buffer: &[u8], filled: usize) -> ImageRun {
        if filled > 0 {
            let data = buffer.get(..filled).unwrap_or_default();
            self.crc = crc::crc32(self.crc, data);
            self.keep_tail(data);
            for seen in &mut self.seen {
                keep(seen, self.offset, Some(data), to_u64(filled));
            }
            self.offset = self.offset.saturating_add(to_u64(filled));
            self.data_bytes = self.data_bytes.saturating_add(to_u64(filled));
            return ImageRun::Data(filled);
        }
        let zeros = std::mem::take(&mut self.pending_zeros);
        if zeros == 0 {
            return ImageRun::End;
        }
        self.crc = self.shift.combine(self.crc, crc::zeros(zeros), zeros);
        let count = at_most(zeros, TAIL_BYTES);
        const { assert!(TAIL_BYTES <= ZEROS.len()) };
        self.keep_tail(ZEROS.get(..count).unwrap_or_default());
        for seen in &mut self.seen {
            keep(seen, self.offset, None, zeros);
        }
        self.offset = self.offset.saturating_add(zeros);
        ImageRun::Zeros(zeros)
    }

    /// Takes a hole of a raw file, or zeros that need no inflating; false where there is none.
    fn skip_hole(&mut self) -> Result<bool, Fault> {
        let hole = match &mut self.gunzip {
            Some(gunzip) => gunzip.take_zeros(GRANULE_BYTES),
            None => self.input.skip_hole(GRANULE_BYTES)?,
        };
        self.pending_zeros = self.pending_zeros.saturating_add(hole);
        Ok(hole > 0)
    }

    fn decode(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let Some(gunzip) = &mut self.gunzip else {
            return self.input.read(out);
        };
        let count = gunzip.read(&mut self.input, out)?;
        if self.offset > 0 {
            self.watch_member();
        }
        Ok(count)
    }
}

fn watched((place, offset): (SeenAt, u64), is_packed: bool) -> Seen {
    Seen {
        place,
        offset,
        is_packed,
        bytes: Vec::new(),
    }
}

/// Adds what it has of `count` bytes at `offset`: data, or zeros.
fn keep(seen: &mut Seen, offset: u64, data: Option<&[u8]>, count: u64) {
    let held = seen.bytes.len();
    let wanted = seen.offset.saturating_add(to_u64(held));
    let Some(skipped) = wanted.checked_sub(offset).filter(|at| *at < count) else {
        return;
    };
    let room = SEEN_BYTES.saturating_sub(held);
    let length = at_most(count - skipped, room);
    match data {
        Some(data) => {
            let from = data.get(to_usize(skipped)..).unwrap_or_default();
            let bytes = from.get(..length).unwrap_or_default();
            seen.bytes.extend_from_slice(bytes);
        }
        None => seen.bytes.resize(held + length, 0),
    }
    // Of many partitions only what is wrong is kept.
    if matches!(seen.place, SeenAt::Partition(_))
        && seen.bytes.len() == SEEN_BYTES
        && seen.too_large().is_none()
    {
        seen.bytes = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        out.extend(miniz_oxide::deflate::compress_to_vec(data, 1));
        out.extend(crc::crc32(0, data).to_le_bytes());
        out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        out
    }

    /// Puts the runs together again and checks that they alternate as promised.
    fn unpack(mut reader: ImageReader<'_>, head: usize, piece: usize) -> (Vec<u8>, usize) {
        let mut out = vec![0; head];
        let count = reader.head(&mut out).unwrap();
        out.truncate(count);
        let mut buffer = vec![0; piece];
        let mut zero_runs = 0;
        loop {
            assert_eq!(reader.offset(), to_u64(out.len()));
            match reader.next(&mut buffer).unwrap() {
                ImageRun::Data(count) => out.extend_from_slice(&buffer[..count]),
                ImageRun::Zeros(count) => {
                    zero_runs += 1;
                    out.resize(out.len() + to_usize(count), 0);
                }
                ImageRun::End => break,
            }
        }
        assert_eq!(reader.crc32(), crc::crc32(0, &out));
        assert_eq!(reader.offset(), to_u64(out.len()));
        assert!(reader.tail() == &out[out.len().saturating_sub(TAIL_BYTES)..]);
        (out, zero_runs)
    }

    fn sample() -> Vec<u8> {
        let mut data = vec![0u8; 1_500_001];
        for place in [70_000usize, 300_000, 300_001, 999_999, 1_500_000] {
            data[place] = 7;
        }
        data
    }

    #[test]
    fn raw_and_gzip_give_the_same_runs() {
        let data = sample();
        let gzip = packed(&data);
        for piece in [65_536usize, 262_144] {
            for head in [0usize, 65_536, 1 << 20] {
                for bytes in [data.as_slice(), gzip.as_slice()] {
                    let reader = ImageReader::new(Input::reader(bytes).unwrap()).unwrap();
                    let (out, zero_runs) = unpack(reader, head, piece);
                    assert!(out == data);
                    assert!(head > 0 || zero_runs == 4, "{zero_runs}");
                }
            }
        }
    }

    #[test]
    fn holes_of_a_raw_file_are_zero_runs() {
        use std::os::unix::fs::FileExt;
        let path = std::env::temp_dir().join(format!("floe-image-{}", std::process::id()));
        let file = std::fs::File::create_new(&path).unwrap();
        file.set_len(5 << 30).unwrap();
        file.write_all_at(b"x", (3 << 30) + 5).unwrap();
        drop(file);
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let input = Input::file(file, Some(5 << 30)).unwrap();
        let mut reader = ImageReader::new(input).unwrap();
        let mut buffer = vec![0; 262_144];
        let mut data = 0usize;
        loop {
            match reader.next(&mut buffer).unwrap() {
                ImageRun::Data(count) => data += count,
                ImageRun::Zeros(_) => {}
                ImageRun::End => break,
            }
        }
        assert_eq!(reader.offset(), 5 << 30);
        assert!(data <= 1 << 20, "{data}");
        let expected = crc::combine(
            crc::zeros((3 << 30) + 5),
            crc::combine(
                crc::crc32(0, b"x"),
                crc::zeros((2 << 30) - 6),
                (2 << 30) - 6,
            ),
            (2 << 30) - 5,
        );
        assert_eq!(reader.crc32(), expected);
    }

    #[test]
    fn empty_and_foreign_inputs_are_told_apart() {
        let mut reader = ImageReader::new(Input::reader(&b""[..]).unwrap()).unwrap();
        assert_eq!(reader.format(), Format::Raw);
        assert_eq!(reader.next(&mut vec![0; 65_536]).unwrap(), ImageRun::End);
        assert_eq!(Format::recognise(b"\xfd7zXZ\0"), Format::Raw);
        assert_eq!(Format::recognise(b"PK\x03\x04ab"), Format::Zip);
        let mut first = [0u8; LOOK_BYTES];
        first[..7].copy_from_slice(b"version");
        assert_eq!(Format::recognise(&first), Format::Raw);
        first[257..262].copy_from_slice(b"ustar");
        assert_eq!(Format::recognise(&first), Format::Mender);
    }
}
