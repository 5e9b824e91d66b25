//! A gzip file inflated by several threads at once, to know whether it is whole.
//!
//! What our encoder writes ends every chunk with an empty stored block, on a byte, and no chunk reaches back into the one before (as
//! `pigz -i` does it). So the file is cut behind such a block near each border, and every lane inflates its part alone. That proves
//! as much as reading it in one go: a lane must arrive exactly where the next one began, on a byte, between two blocks; only the last
//! one may have the last block; and what all of them gave must have the checksum and the length of the trailer (a match that reaches
//! behind a lane's beginning gives zeros there). Anything else, damage and files of other programs alike, is `None`: who asked reads it in
//! one go, and says what is wrong. Nothing is written, and nothing is kept of what comes out but its last bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::content::TAIL_BYTES;
use crate::crc;
use crate::stream::copy::{BUFFER_BYTES, Ended};
use crate::stream::deflate::behind_marker;
use crate::stream::gzip;
use crate::stream::image::{ImageReader, ImageRun};
use crate::stream::input::Input;
use crate::sys::memory::Pages;
use crate::threads::{self, RecvTimeoutError, channel, jobs};
use crate::units::to_u64;

/// Most lanes: 700 KB each.
const LANES: u64 = 4;

/// A file of less is read in one go.
const LEAST_BYTES: u64 = 8 << 20;

/// How far a marker is looked for: more than a chunk has.
const SEARCH_BYTES: usize = 256 * 1024;

/// Length of a trailer.
const TRAILER_BYTES: u64 = 8;

/// Reads all of it; `None` where that cannot be done in lanes, whatever the reason. `watch` is told how many bytes were read.
/// `asked`: how many lanes at most.
pub(crate) fn read(
    file: &File,
    length_bytes: u64,
    asked: Option<usize>,
    watch: &mut dyn FnMut(u64),
) -> Option<Ended> {
    let lanes = to_u64(jobs(asked)).min(LANES);
    if length_bytes < LEAST_BYTES {
        return None;
    }
    read_in(lanes, file, length_bytes, watch)
}

fn read_in(
    lanes: u64,
    file: &File,
    length_bytes: u64,
    watch: &mut dyn FnMut(u64),
) -> Option<Ended> {
    let end = length_bytes.checked_sub(TRAILER_BYTES)?;
    let mut borders = vec![0];
    for lane in 1..lanes {
        borders.push(border(file, end / lanes * lane)?);
    }
    borders.push(end);
    let done = Arc::new(AtomicU64::new(0));
    let over = Over(Arc::default());
    let mut parts = Vec::new();
    for (place, next) in borders.iter().zip(borders.iter().skip(1)) {
        // Opened anew: each has its own place in it.
        let mut file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        file.seek(SeekFrom::Start(*place)).ok()?;
        let bytes = next.checked_sub(*place)?;
        let (is_first, is_last) = (*place == 0, *next == end);
        let (send, receive) = channel();
        let (done, over) = (Arc::clone(&done), Arc::clone(&over.0));
        let work = move || {
            let ended = part(file.take(bytes), is_first, &done, &over);
            // What was not read to its border, and a last block that is not at the end of all, is not what was looked for.
            let is_right = |(ended, has_end): &(Ended, bool)| {
                ended.input_bytes == bytes && *has_end == is_last
            };
            let _ = send.send(ended.filter(is_right).map(|(ended, _)| ended));
        };
        threads::start(c"check", 256 * 1024, Box::new(work)).ok()?;
        parts.push(receive);
    }
    let mut all: Option<Ended> = None;
    for part in parts {
        let ended = loop {
            match part.recv_timeout(Duration::from_millis(200)) {
                Ok(ended) => break ended?,
                Err(RecvTimeoutError::Timeout) => watch(done.load(Ordering::Relaxed)),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        };
        let before = all.as_ref();
        let (crc32, size_bytes) = before.map_or((0, 0), |all| (all.crc32, all.size_bytes));
        let data_bytes = before.map_or(0, |all| all.data_bytes);
        all = Some(Ended {
            size_bytes: size_bytes.checked_add(ended.size_bytes)?,
            crc32: crc::combine(crc32, ended.crc32, ended.size_bytes),
            input_bytes: length_bytes,
            data_bytes: data_bytes.saturating_add(ended.data_bytes),
            tail: ended.tail,
            seen: Vec::new(),
        });
    }
    let all = all.filter(|all| all.tail.len() == TAIL_BYTES)?;
    let mut trailer = [0; 8];
    file.read_exact_at(&mut trailer, end).ok()?;
    (trailer == gzip::trailer(all.crc32, all.size_bytes)).then_some(all)
}

/// Tells the lanes when nobody waits for them any more.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Behind the first marker at or after `from`.
fn border(file: &File, from: u64) -> Option<u64> {
    let mut bytes = vec![0; SEARCH_BYTES];
    let count = file.read_at(&mut bytes, from).ok()?;
    from.checked_add(to_u64(behind_marker(bytes.get(..count)?)?))
}

/// One lane: what came out, and whether the last block was in it.
fn part(
    input: Take<File>,
    is_first: bool,
    done: &AtomicU64,
    over: &AtomicBool,
) -> Option<(Ended, bool)> {
    let input = Input::reader(input).ok()?;
    let mut reader = ImageReader::part(input, is_first).ok()?;
    let mut buffer = Pages::new(BUFFER_BYTES).ok()?;
    while !over.load(Ordering::Relaxed) {
        let before = reader.input_bytes();
        if reader.next(&mut buffer).ok()? == ImageRun::End {
            return Some((Ended::of(&reader), reader.has_end()));
        }
        let taken = reader.input_bytes().saturating_sub(before);
        done.fetch_add(taken, Ordering::Relaxed);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::deflate::{Deflater, FINAL_BLOCK, bound};
    use std::io::Write;

    fn packed(data: &[u8], last: &[u8]) -> Vec<u8> {
        let mut deflater = Deflater::new(1);
        let mut stream = gzip::HEADER.to_vec();
        for chunk in data.chunks(50_000) {
            let mut out = vec![0; bound(chunk.len())];
            let count = deflater.encode(chunk, &mut out).unwrap();
            stream.extend_from_slice(&out[..count]);
        }
        stream.extend_from_slice(last);
        stream.extend(gzip::trailer(crc::crc32(0, data), to_u64(data.len())));
        stream
    }

    fn in_lanes(lanes: u64, stream: &[u8]) -> Option<(u32, u64)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("floe-lanes-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(stream).unwrap();
        let ended = read_in(lanes, &file, to_u64(stream.len()), &mut |_| {})?;
        assert_eq!(ended.input_bytes, to_u64(stream.len()));
        Some((ended.crc32, ended.size_bytes))
    }

    #[test]
    fn lanes_prove_what_is_whole_and_nothing_else() {
        let data: Vec<u8> = (0..250_000u32)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 23)).to_le_bytes())
            .collect();
        let stream = packed(&data, &FINAL_BLOCK);
        let whole = Some((crc::crc32(0, &data), to_u64(data.len())));
        for lanes in 1..=4 {
            assert_eq!(in_lanes(lanes, &stream), whole, "{lanes}");
        }
        for place in (0..stream.len())
            .step_by(stream.len() / 60)
            .chain(stream.len() - 10..stream.len())
        {
            let mut broken = stream.clone();
            broken[place] ^= 1;
            // Time and system in the header mean nothing.
            assert!(
                in_lanes(3, &broken).is_none() || (4..10).contains(&place),
                "{place}"
            );
        }
        for length in [0, 5, 8, 18, stream.len() / 2, stream.len() - 1] {
            assert!(in_lanes(2, &stream[..length]).is_none(), "{length}");
        }
        let more = [&stream[..], &[0; 4]].concat();
        assert!(in_lanes(2, &more).is_none());
    }

    #[test]
    fn a_last_block_that_looks_like_a_border_is_the_end_of_its_member() {
        let data: Vec<u8> = (0..60_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        // One member ends as a chunk does; what follows is data of deflate, and the trailer that of all.
        let one = packed(&data, &[1, 0, 0, 0xff, 0xff]);
        let (one, _) = one.split_at(one.len() - 8);
        let rest = packed(&data, &FINAL_BLOCK);
        let both = [&data[..], &data[..]].concat();
        let trailer = gzip::trailer(crc::crc32(0, &both), to_u64(both.len()));
        let rest = &rest[gzip::HEADER.len()..rest.len() - 8];
        let stream = [one, rest, &trailer].concat();
        for lanes in 1..=4 {
            assert!(in_lanes(lanes, &stream).is_none(), "{lanes}");
        }
    }
}
