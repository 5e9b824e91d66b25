//! The format: what comes back, and what is not believed.

use super::receive::{HeldChunk, HeldStream, NO_ROOM, receive};
use super::send::FrameEmitter;
use super::*;
use crate::error::FaultKind;
use crate::stream::deflate::Deflater;
use crate::stream::gunzip::Gunzip;
use crate::stream::image::ImageReader;
use crate::stream::input::{Input, Supply};
use crate::stream::output::{GzipEmitter, Output, TotalsCell};
use crate::stream::pipeline::known::{Hash, hash};
use crate::stream::pipeline::{Emit, Encoded, Meter, Problem};
use crate::stream::{gzip, partfile};
use rustix::pipe::PipeFlags;
use std::io::{Read, Seek};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

struct NoMeter;
impl Meter for NoMeter {
    fn read(&self, _: u64) {}
    fn taken(&self, _: u64) {}
}

const CHUNK: usize = 128 * 1024;

/// What is written to a file by `write`.
fn written(write: impl FnOnce(Output)) -> Vec<u8> {
    let mut file = partfile::unnamed_anywhere().unwrap();
    write(Output::new(
        file.try_clone().unwrap().into(),
        &NoMeter,
        false,
    ));
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn image(parts: &[u64]) -> StreamHeader {
    StreamHeader {
        images: vec![Framed {
            path: "image".into(),
            parts: parts.to_vec(),
        }],
        ..StreamHeader::default()
    }
}

fn packed(raw: &[u8]) -> Vec<u8> {
    let mut out = vec![0; MAX_PACKED];
    let length = Deflater::new(1).encode(raw, &mut out).unwrap();
    out.truncate(length);
    out
}

/// A chunk that says which one it is.
fn chunk(mark: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 1000) as u8 ^ mark).collect()
}

/// The frames of an image of two parts of which everything can be told, and its bytes.
fn sample() -> (Vec<u8>, Vec<u8>) {
    let parts = [3 * to_u64(CHUNK) + 5000, 700];
    let (old, new) = (chunk(1, CHUNK), chunk(2, CHUNK));
    let (here, last) = (chunk(3, 5000), chunk(4, 700));
    let stream = written(|output| {
        let ending = |sums: &[send::ImageSum]| Ok(format!("{{\"images\":{}}}", sums.len()));
        let totals = TotalsCell::default();
        let mut emit = FrameEmitter::new(output, &image(&parts), Box::new(ending), totals)
            .ok()
            .unwrap();
        let mut early = |number, raw: &[u8], is_zero: bool| {
            let bytes = if is_zero { Vec::new() } else { packed(raw) };
            let sum = crc::crc32(0, raw);
            let mut encoded = Encoded::of(&bytes, to_u64(raw.len()), sum);
            (encoded.chunk, encoded.is_early) = (number, true);
            emit.data(&encoded).unwrap();
        };
        early(1, &old, false);
        early(2, &new, false); // becomes free
        early(4, &last, false);
        early(0, &vec![0; CHUNK], true);
        early(1, &new, false);
        let sum = |raw: &[u8]| (to_u64(raw.len()), crc::crc32(0, raw));
        for raw in [&vec![0; CHUNK], &new] {
            let (length, crc32) = sum(raw);
            emit.held(length, crc32).unwrap();
        }
        emit.zeros(to_u64(CHUNK)).unwrap();
        let (length, crc32) = sum(&here);
        emit.data(&Encoded::of(&packed(&here), length, crc32))
            .unwrap();
        let (length, crc32) = sum(&last);
        emit.held(length, crc32).unwrap();
        emit.end_image(0).unwrap();
        emit.finish().unwrap();
    });
    let raw = [vec![0; CHUNK], new, vec![0; CHUNK], here, last].concat();
    (stream, raw)
}

fn hold() -> HeldStream {
    let file = || partfile::unnamed_anywhere().unwrap();
    HeldStream::of(file(), file())
}

/// Received, put in order, unpacked and checked.
fn whole(stream: &[u8]) -> Result<Vec<u8>, Fault> {
    let received = receive(&mut Input::reader(stream)?, hold())?;
    let gzip = written(|output| {
        let mut emit = GzipEmitter::new(output, &gzip::HEADER, TotalsCell::default())
            .ok()
            .unwrap();
        received.emit(&mut emit).unwrap();
    });
    let mut input = Input::reader(&gzip[..])?;
    let mut gunzip = Gunzip::new()?;
    let mut raw = vec![0; 4 * CHUNK];
    let count = gunzip.read(&mut input, &mut raw)?;
    raw.truncate(count);
    Ok(raw)
}

#[test]
fn frames_in_any_order_become_the_image_that_their_last_words_say() {
    let (stream, raw) = sample();
    assert!(whole(&stream).unwrap() == raw);
    let received = receive(&mut Input::reader(&stream[..]).unwrap(), hold()).unwrap();
    assert_eq!(received.report, b"{\"images\":1}");
}

#[test]
fn no_room_for_a_chunk_or_for_what_is_noted_of_it_is_one_and_the_same() {
    let (stream, _) = sample();
    let full = || {
        let mut options = std::fs::File::options();
        options.read(true).write(true).open("/dev/full").unwrap()
    };
    let without = [
        HeldStream {
            file: full(),
            ..hold()
        },
        HeldStream {
            index: full(),
            ..hold()
        },
        HeldStream {
            most_bytes: 20,
            ..hold()
        },
    ];
    for hold in without {
        let received = receive(&mut Input::reader(&stream[..]).unwrap(), hold);
        assert_eq!(received.err().unwrap().what(), NO_ROOM);
    }
}

#[test]
fn frames_that_end_early_are_incomplete_wherever_that_is() {
    let (stream, _) = sample();
    for length in 0..stream.len() {
        let fault = whole(&stream[..length]).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Corrupt, "{length}");
        assert!(fault.what().contains("incomplete"), "{length}: {fault}");
    }
    let longer = [&stream[..], b"\n"].concat();
    assert!(
        whole(&longer)
            .unwrap_err()
            .what()
            .contains("behind the end")
    );
}

#[test]
fn a_bit_that_is_not_what_it_was_never_makes_another_image() {
    let (stream, raw) = sample();
    for at in 0..stream.len() {
        let mut stream = stream.clone();
        stream[at] ^= 1 << (at % 8);
        // In what was replaced it does not matter.
        let other = whole(&stream).is_ok_and(|found| found != raw);
        assert!(!other, "byte {at}");
    }
}

/// Frames by hand, with their checksums right.
struct Craft {
    bytes: Vec<u8>,
    control: Control,
}

impl Craft {
    fn new(header: &StreamHeader) -> Self {
        let mut craft = Self {
            bytes: Vec::new(),
            control: Control::default(),
        };
        craft.say(&header.to_bytes().unwrap());
        craft
    }

    fn say(&mut self, bytes: &[u8]) {
        self.control.add(bytes);
        self.bytes.extend_from_slice(bytes);
    }

    fn frame(&mut self, kind: u8, numbers: &[u32]) {
        let words = numbers.iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u8> = std::iter::once(kind).chain(words).collect();
        self.say(&bytes);
    }

    fn end(mut self, size: u32) -> Vec<u8> {
        self.frame(END, &[size, 0, 0]);
        let sum = self.control.0.to_le_bytes();
        self.bytes.extend(sum);
        self.bytes
    }
}

/// A kind and the numbers behind it.
type Frame<'a> = (u8, &'a [u32]);

/// One image of two chunks, with these frames in front of a good end.
fn after(frames: &[Frame<'_>]) -> Result<Vec<u8>, Fault> {
    let size = 2 * CHUNK as u32;
    let mut craft = Craft::new(&image(&[u64::from(size)]));
    for (kind, numbers) in frames {
        craft.frame(*kind, numbers);
    }
    whole(&craft.end(size))
}

#[test]
fn numbers_that_cannot_be_are_not_believed() {
    let size = 2 * CHUNK as u32;
    let zeros = crc::zeros(u64::from(size));
    let good: &[Frame<'_>] = &[(ZEROS, &[size, 0]), (IMAGE, &[zeros])];
    assert!(after(good).unwrap() == vec![0; 2 * CHUNK]);
    let wrong: &[(&str, &[Frame<'_>])] = &[
        ("number of a chunk", &[(EARLY, &[2, 0, 0])]),
        ("number of a chunk", &[(EARLY, &[u32::MAX, 0, 0])]),
        (
            "length of a chunk",
            &[(EARLY, &[0, 0, MAX_PACKED as u32 + 1])],
        ),
        ("length of a chunk", &[(HERE, &[0, u32::MAX])]),
        ("never came", &[(HELD, &[size, 0])]),
        ("length of a run", &[(ZEROS, &[size + 1, 0])]),
        ("length of a run", &[(ZEROS, &[size - 1, 0])]),
        ("length of a run", &[(ZEROS, &[0, u32::MAX])]),
        (
            "behind its place",
            &[(ZEROS, &[size / 2, 0]), (EARLY, &[0, 0, 0])],
        ),
        ("before its last chunk", &[(IMAGE, &[0])]),
        (
            "checksum of an image",
            &[(ZEROS, &[size, 0]), (IMAGE, &[!zeros])],
        ),
        ("end frame before", &[(ZEROS, &[size, 0])]),
        ("number of a chunk", &[(ZEROS, &[size, 0]), (HERE, &[0, 0])]),
        (
            "before its last",
            &[(ZEROS, &[size, 0]), (IMAGE, &[zeros]), (IMAGE, &[0])],
        ),
        ("kind of a frame", &[(0, &[])]),
        ("kind of a frame", &[(7, &[])]),
    ];
    for (words, frames) in wrong {
        let fault = after(frames).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Corrupt, "{words}: {fault}");
        assert!(fault.what().contains(words), "{words}: {fault}");
    }
    // A chunk comes as often as there are rounds, and not for ever.
    let again: Vec<Frame<'_>> = vec![(EARLY, &[1, 0, 0]); MAX_TIMES as usize];
    assert!(after(&[&again[..], good].concat()).is_ok());
    let fault = after(&[&again[..], &again[..1]].concat()).unwrap_err();
    assert!(fault.what().contains("again and again"), "{fault}");
}

#[test]
fn what_is_replaced_gives_its_room_back() {
    let noise: Vec<u8> = (0..CHUNK as u32)
        .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8)
        .collect();
    let bytes = packed(&noise);
    let mut craft = Craft::new(&image(&[to_u64(CHUNK)]));
    for _ in 0..MAX_TIMES {
        craft.frame(EARLY, &[0, crc::crc32(0, &noise), bytes.len() as u32]);
        craft.bytes.extend_from_slice(&bytes);
    }
    craft.frame(HELD, &[CHUNK as u32, 0]);
    craft.frame(IMAGE, &[crc::crc32(0, &noise)]);
    let stream = craft.end(CHUNK as u32);
    let hold = hold();
    let seen = hold.file.try_clone().unwrap();
    receive(&mut Input::reader(&stream[..]).unwrap(), hold).unwrap();
    let meta = seen.metadata().unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(meta.size() > to_u64(bytes.len()) * u64::from(MAX_TIMES - 1));
    assert!(
        meta.blocks() * 512 < 2 * to_u64(bytes.len()),
        "{}",
        meta.blocks()
    );
}

#[test]
fn headers_of_another_version_or_of_absurd_sizes_are_refused_by_name() {
    let (mut stream, _) = sample();
    stream[MAGIC.len()] = 9;
    let fault = whole(&stream).unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Unsupported);
    assert!(fault.what().contains("same floe at both ends"), "{fault}");
    assert_eq!(fault.unit(), Some(("version", 9)));
    for parts in [&[u64::MAX][..], &[1 << 60, 1 << 60], &[u64::MAX, u64::MAX]] {
        let stream = Craft::new(&image(parts)).end(0);
        let fault = whole(&stream).unwrap_err();
        assert!(fault.what().contains("size of the images"), "{fault}");
    }
    let snapshot = StreamHeader {
        is_snapshot: true,
        ..image(&[5])
    };
    assert!(snapshot.to_bytes().is_err(), "a snapshot without metadata");
    let two = StreamHeader {
        images: [image(&[5]).images, image(&[5]).images].concat(),
        ..StreamHeader::default()
    };
    assert!(two.to_bytes().is_err(), "two images that are no snapshot");
}

#[test]
fn chunks_are_numbered_over_parts_of_any_length() {
    let parts = [0, 2 * CHUNK_BYTES, 0, 1, 0, CHUNK_BYTES + 7, 0];
    let framed = |parts: &[u64]| Framed {
        path: String::new(),
        parts: parts.to_vec(),
    };
    let layout = ChunkLayout::new(&[framed(&parts), framed(&[9])]).unwrap();
    let lengths: Vec<_> = (0..8).map(|chunk| layout.raw_bytes(chunk)).collect();
    let full = Some(CHUNK_BYTES);
    assert_eq!(
        lengths,
        [full, full, Some(1), full, Some(7), Some(9), None, None]
    );
    assert_eq!((layout.chunks(), &layout.ends[..]), (6, &[5, 6][..]));
}

/// An earlier image in memory.
struct Before(Vec<u8>);

impl known::EarlierImages for Before {
    fn image(&mut self, path: &str) -> Option<(ImageReader<'static>, Range<u64>)> {
        assert_eq!(path, "image");
        let bytes: &'static [u8] = self.0.clone().leak();
        let reader = ImageReader::raw(Input::reader(bytes).unwrap()).ok()?;
        Some((reader, 0..u64::MAX))
    }
}

/// A pipe that takes what is said: where it is read, and its other end.
fn pipe() -> (std::fs::File, std::fs::File) {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
    (ours.into(), theirs.into())
}

/// The frames that say of both chunks of an image that they are known, by these hashes.
fn all_known(raw: &[u8], hashes: [Hash; 2]) -> Vec<u8> {
    let (one, two) = raw.split_at(CHUNK);
    let mut craft = Craft::new(&image(&[to_u64(raw.len())]));
    craft.frame(KNOWN, &[0, crc::crc32(0, one)]);
    craft.bytes.extend(hashes[0]);
    craft.frame(HELD, &[CHUNK as u32, 0]);
    craft.frame(KNOWN_HERE, &[crc::crc32(0, two)]);
    craft.bytes.extend(hashes[1]);
    craft.frame(IMAGE, &[crc::crc32(0, raw)]);
    craft.end(raw.len() as u32)
}

/// What becomes of it where `before` is what is here.
fn reused(stream: &[u8], before: Vec<u8>) -> Result<Vec<u8>, Problem> {
    let (_ours, stdin) = pipe();
    let mut hold = hold();
    hold.known = Some(known::KnownHere {
        earlier: Some(Box::new(Before(before))),
        stdin,
    });
    let received = receive(&mut Input::reader(stream)?, hold)?;
    let mut result = Ok(());
    let gzip = written(|output| {
        let mut emit = GzipEmitter::new(output, &gzip::HEADER, TotalsCell::default())
            .ok()
            .unwrap();
        result = received.emit(&mut emit);
    });
    result.map(|()| gzip)
}

#[test]
fn a_known_chunk_is_taken_only_where_its_hash_proves_what_is_here() {
    let raw = [chunk(1, CHUNK), chunk(2, 5000)].concat();
    let hashes = [hash(&raw[..CHUNK]), hash(&raw[CHUNK..])];
    let stream = all_known(&raw, hashes);
    let mut fresh = Craft::new(&image(&[to_u64(raw.len())]));
    for part in raw.chunks(CHUNK) {
        let bytes = packed(part);
        fresh.frame(HERE, &[crc::crc32(0, part), bytes.len() as u32]);
        fresh.bytes.extend(bytes);
    }
    fresh.frame(IMAGE, &[crc::crc32(0, &raw)]);
    let fresh = fresh.end(raw.len() as u32);
    let same = reused(&fresh, Vec::new()).ok().unwrap();
    assert!(reused(&stream, raw.clone()).ok().unwrap() == same);
    // More behind it does no harm; a bit, or an end too early, does.
    let longer = [&raw[..], &[7; 9000]].concat();
    assert!(reused(&stream, longer).ok().unwrap() == same);
    let mut flipped = raw.clone();
    flipped[CHUNK - 1] ^= 1;
    for before in [flipped, raw[..CHUNK + 4999].to_vec(), Vec::new()] {
        match reused(&stream, before) {
            Err(Problem::Internal(fault) | Problem::Write(fault)) => {
                assert_eq!(fault.what(), known::CHANGED);
            }
            other => panic!("{:?}", other.is_ok()),
        }
    }
    // A board that says another hash, or that what it sends is known where nobody asked.
    let lie = all_known(&raw, [hashes[0], hashes[0]]);
    assert!(reused(&lie, raw.clone()).is_err());
    assert_eq!(whole(&stream).unwrap_err().what(), "kind of a frame");
    for length in (0..stream.len()).step_by(7) {
        assert!(reused(&stream[..length], raw.clone()).is_err(), "{length}");
    }
}

#[test]
fn what_is_here_is_said_in_order_and_zeros_are_not() {
    let raw = [chunk(3, CHUNK), vec![0; 3 * CHUNK], chunk(4, 77)].concat();
    let layout = ChunkLayout::new(&image(&[to_u64(raw.len())]).images).unwrap();
    let (mut ours, stdin) = pipe();
    let before: Box<dyn known::EarlierImages> = Box::new(Before(raw.clone()));
    let mut old =
        known::Old::new(vec!["image".into()], layout, Some(before), None, packing()).unwrap();
    assert!(old.tell(&stdin, &AtomicBool::new(false)).is_some());
    drop(stdin);
    let mut said = Vec::new();
    ours.read_to_end(&mut said).unwrap();
    let wanted = [
        &[0, 0, 0, 0][..],
        &hash(&raw[..CHUNK]),
        &[4, 0, 0, 0],
        &hash(&raw[4 * CHUNK..]),
    ]
    .concat();
    assert_eq!(said, wanted);
}

#[test]
fn what_an_interrupted_run_left_is_found_again_whatever_was_damaged() {
    let bytes = packed(&chunk(5, CHUNK));
    let length = bytes.len() as u32;
    let mut craft = Craft::new(&image(&[4 * CHUNK_BYTES]));
    for number in [2, 0, 1, 2] {
        craft.frame(EARLY, &[number, crc::crc32(0, &chunk(5, CHUNK)), length]);
        craft.bytes.extend(&bytes);
    }
    // Cut off in a fifth one.
    craft.frame(EARLY, &[3, 0, length]);
    craft.bytes.extend(&bytes[..9]);
    let hold = hold();
    let file = hold.file.try_clone().unwrap();
    assert!(receive(&mut Input::reader(&craft.bytes[..]).unwrap(), hold).is_err());
    let units = |chunks: u64| {
        let index = partfile::unnamed_anywhere().unwrap();
        let index = known::Index::new(&index, 2, chunks).unwrap();
        let length = file.metadata().unwrap().len();
        let all = file.try_clone().unwrap();
        let mut remains = known::Remains::new(all, index, chunks, length.next_multiple_of(4096));
        while remains.look(0).unwrap() {}
        let found = (0..4).map(|number| remains.entry(number).place);
        (found.collect::<Vec<_>>(), length)
    };
    let room = (u64::from(length) + 24).div_ceil(4096);
    let at = |number: u64| u32::try_from(number * room).unwrap();
    // The first one was replaced by the last.
    let (found, length) = units(4);
    assert_eq!(found, [at(1), at(2), at(3), 0]);
    assert_eq!(length.div_ceil(4096), 4 * room);
    assert_eq!(units(2).0, [at(1), at(2), 0, 0]);
    file.write_all_at(&[0xff], 2 * room * 4096 + 9).unwrap();
    assert_eq!(units(4).0, [at(1), 0, at(3), 0]);
    // Behind the end of a file that was cut stands what comes next: what is cut off has no room of its own.
    let long = HeldChunk {
        packed: 9000,
        ..HeldChunk::default()
    };
    let end = 4 * room * 4096;
    file.write_all_at(&known::head(3, long), end).unwrap();
    file.set_len(end + 3 * 4096).unwrap();
    assert_eq!(units(4).0, [at(1), 0, at(3), at(4)]);
    file.set_len(end + 2 * 4096).unwrap();
    assert_eq!(units(4).0, [at(1), 0, at(3), 0]);
    file.set_len(0).unwrap();
    assert_eq!(units(4), (vec![0; 4], 0));
}

/// Bytes of an earlier image, of which each piece that is read must come within so many chunks of the last word.
struct Watched {
    raw: Arc<Vec<u8>>,
    at: usize,
    /// Where what is said can be looked at; how much it was, and where we were then.
    said: std::fs::File,
    last: (u64, usize),
}

impl Supply for Watched {
    fn supply(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let waiting = rustix::io::ioctl_fionread(&self.said).unwrap();
        if waiting != self.last.0 {
            self.last = (waiting, self.at);
        }
        assert!(self.at - self.last.1 < 50 * CHUNK, "silent for long");
        let rest = &self.raw[self.at..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

impl known::EarlierImages for Watched {
    fn image(&mut self, _: &str) -> Option<(ImageReader<'static>, Range<u64>)> {
        let watched = Watched {
            raw: Arc::clone(&self.raw),
            said: self.said.try_clone().unwrap(),
            ..*self
        };
        let reader = ImageReader::raw(Input::reader(watched).unwrap()).ok()?;
        Some((reader, 0..u64::MAX))
    }
}

#[test]
fn what_is_here_twice_is_said_while_it_is_read_however_long_that_takes() {
    let chunks = 200u32;
    let raw: Vec<u8> = (0..chunks)
        .flat_map(|number| chunk(number as u8 | 1, CHUNK))
        .collect();
    let header = image(&[to_u64(raw.len())]);
    // All but the last ones were left by an interrupted run.
    let mut craft = Craft::new(&header);
    for (number, raw) in (0..chunks - 10).zip(raw.chunks(CHUNK)) {
        let bytes = packed(raw);
        craft.frame(EARLY, &[number, crc::crc32(0, raw), bytes.len() as u32]);
        craft.bytes.extend(bytes);
    }
    let hold = hold();
    let (file, index) = (hold.file.try_clone().unwrap(), hold.index.try_clone());
    assert!(receive(&mut Input::reader(&craft.bytes[..]).unwrap(), hold).is_err());
    let length = file.metadata().unwrap().len().next_multiple_of(4096);
    let layout = ChunkLayout::new(&header.images).unwrap();
    for first in [
        std::time::Duration::ZERO,
        std::time::Duration::from_secs(60),
    ] {
        let index = known::Index::new(index.as_ref().unwrap(), 2, to_u64(chunks as usize));
        let file = file.try_clone().unwrap();
        let remains = known::Remains::new(file, index.unwrap(), u64::from(chunks), length);
        let (mut ours, stdin) = pipe();
        let earlier: Box<dyn known::EarlierImages> = Box::new(Watched {
            raw: Arc::new(raw.clone()),
            at: 0,
            said: ours.try_clone().unwrap(),
            last: (0, 0),
        });
        let (paths, layout) = (vec!["image".into()], layout.clone());
        let mut old =
            known::Old::new(paths, layout, Some(earlier), Some(remains), packing()).unwrap();
        old.first = first;
        assert!(old.tell(&stdin, &AtomicBool::new(false)).is_some());
        drop(stdin);
        let mut said = Vec::new();
        ours.read_to_end(&mut said).unwrap();
        let wanted = (0u32..).zip(raw.chunks(CHUNK));
        let wanted = wanted.map(|(number, raw)| [&number.to_le_bytes()[..], &hash(raw)].concat());
        assert!(said == wanted.collect::<Vec<_>>().concat());
    }
}

fn packing() -> known::Packing {
    known::Packing {
        level: 1,
        jobs: 2,
        list: partfile::unnamed_anywhere().unwrap(),
    }
}
