//! The format: what comes back, and what is not believed.

use super::receive::receive;
use super::send::FrameEmitter;
use super::*;
use crate::error::FaultKind;
use crate::stream::deflate::Deflater;
use crate::stream::gunzip::Gunzip;
use crate::stream::gzip;
use crate::stream::input::Input;
use crate::stream::output::{GzipEmitter, Output, TotalsCell};
use crate::stream::partfile;
use crate::stream::pipeline::{Emit, Encoded, Meter};
use std::fs::File;
use std::io::{Read, Seek};

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

fn image(parts: &[u64]) -> Header {
    Header {
        images: vec![Framed {
            path: "image".into(),
            parts: parts.to_vec(),
        }],
        ..Header::default()
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

fn hold() -> File {
    partfile::unnamed_anywhere().unwrap()
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
    fn new(header: &Header) -> Self {
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
    let file = hold();
    let seen = file.try_clone().unwrap();
    receive(&mut Input::reader(&stream[..]).unwrap(), file).unwrap();
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
    let snapshot = Header {
        is_snapshot: true,
        ..image(&[5])
    };
    assert!(snapshot.to_bytes().is_err(), "a snapshot without metadata");
    let two = Header {
        images: [image(&[5]).images, image(&[5]).images].concat(),
        ..Header::default()
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
    let layout = Layout::new(&[framed(&parts), framed(&[9])]).unwrap();
    let lengths: Vec<_> = (0..8).map(|chunk| layout.raw_bytes(chunk)).collect();
    let full = Some(CHUNK_BYTES);
    assert_eq!(
        lengths,
        [full, full, Some(1), full, Some(7), Some(9), None, None]
    );
    assert_eq!((layout.chunks(), &layout.ends[..]), (6, &[5, 6][..]));
}
