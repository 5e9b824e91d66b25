//! Files as our encoder packs them, cut and taken apart again.

use super::*;
use crate::crc;
use crate::stream::deflate::{Deflater, FINAL_BLOCK, bound};
use crate::stream::frames::Framed;
use crate::stream::{gzip, zeros};
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

fn layout_of(chunks: &[Option<Vec<u8>>]) -> ChunkLayout {
    let length = |chunk: &Option<Vec<u8>>| chunk.as_ref().map_or(CHUNK, Vec::len);
    ChunkLayout::new(&[Framed {
        path: String::new(),
        parts: vec![to_u64(chunks.iter().map(length).sum::<usize>())],
    }])
    .unwrap()
}

fn read(
    stream: &[u8],
    level: u8,
    layout: &ChunkLayout,
) -> (Result<Vec<FoundChunk>, Foreign>, Packed) {
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
    let layout = layout_of(&chunks);
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
    let layout = layout_of(&chunks);
    let (stream, _) = packed(6, &chunks);
    let (found, mut places) = read(&stream, 1, &layout);
    let first = found.unwrap()[0];
    let mut out = vec![0; MAX_PACKED];
    assert_eq!(places.take(first.chunk, &first.hash, &mut out), None);
}

#[test]
fn damage_gives_what_is_not_proven_or_ends_it() {
    let chunks = sample();
    let layout = layout_of(&chunks);
    let (stream, _) = packed(1, &chunks);
    for place in (10..stream.len()).step_by(stream.len() / 20) {
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
    let fewer = layout_of(&chunks[..20]);
    assert!(read(&stream, 1, &fewer).0.is_err());
}
