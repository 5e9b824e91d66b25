//! A raw image that is put together in its own file: chunks are written where they belong, in no order, and again when they change.
//!
//! So the file holds what pre-copy takes, and no spool is needed. Its first chunk, with the superblock, is written last: a file that
//! was left in the middle is not taken for an image. What is zeros is a hole. Allocates before the freeze only.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fsync, ftruncate};
use rustix::io::{Errno, pread, pwrite};
use sha2::{Digest, Sha256};

use super::output::{Sum, Totals, TotalsCell};
use super::pipeline::{Placing, is_zero};
use super::plan::{CHUNK_BYTES, Cursor, Plan, Span};
use crate::crc;
use crate::error::Fault;
use crate::sys::memory::{ZEROS, zeroed};
use crate::threads::Lock;
use crate::units::{to_u64, to_usize};

/// What is noted of a chunk, beside its checksum: zeros came, or others. Nothing is noted of one that never came.
const HOLE: u32 = 1;
const WRITTEN: u32 = 2;

/// A part of the plan: where it begins in the file, its first chunk among those of all parts, where it ends.
struct PartInFile {
    start: u64,
    chunk: u64,
    end: u64,
}

/// The file, and what is in it so far.
pub(crate) struct InPlace {
    fd: OwnedFd,
    homes: Vec<PartInFile>,
    size_bytes: u64,
    /// The first chunk.
    head: Lock<Vec<u8>>,
    /// Of each chunk: what it is, its checksum. Touched as they are needed.
    chunks: Lock<Vec<[u32; 2]>>,
    written: AtomicU64,
    hashes: bool,
    totals: TotalsCell,
}

impl InPlace {
    /// Into an empty file; `parts` are the lengths of the image's parts. `hashes`: its SHA-256 is wanted.
    pub(crate) fn new(
        fd: OwnedFd,
        parts: impl Iterator<Item = u64>,
        hashes: bool,
        totals: TotalsCell,
    ) -> Result<Self, Fault> {
        let (mut start, mut chunk) = (0u64, 0u64);
        let homes: Vec<PartInFile> = parts
            .map(|length| {
                let home = PartInFile {
                    start,
                    chunk,
                    end: start.saturating_add(length),
                };
                start = home.end;
                chunk = chunk.saturating_add(length.div_ceil(CHUNK_BYTES));
                home
            })
            .collect();
        let first = homes.iter().find(|home| home.start < home.end);
        let head = first.map_or(0, |home| home.end.min(CHUNK_BYTES));
        let none = || Fault::io("make room to note what is written", Errno::NOMEM);
        let chunks = zeroed(usize::try_from(chunk).unwrap_or(usize::MAX)).ok_or_else(none)?;
        Ok(Self {
            fd,
            homes,
            size_bytes: start,
            head: Lock::new(vec![0; to_usize(head)]),
            chunks: Lock::new(chunks),
            written: AtomicU64::new(0),
            hashes,
            totals,
        })
    }

    /// Notes what a chunk is now, and its checksum; what it was.
    fn note(&self, chunk: u64, now: u32, crc32: u32) -> u32 {
        let mut chunks = self.chunks.lock();
        let place = chunks.get_mut(to_usize(chunk));
        place.map_or(0, |place| std::mem::replace(place, [now, crc32])[0])
    }

    fn write(&self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let fail = |errno| Fault::io("write", errno).at(offset, to_u64(bytes.len()));
            match pwrite(&self.fd, bytes, offset) {
                Ok(0) => return Err(fail(Errno::IO)),
                Ok(count) => {
                    offset = offset.saturating_add(to_u64(count));
                    bytes = bytes.get(count..).unwrap_or_default();
                    self.written.fetch_add(to_u64(count), Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(())
    }

    /// One chunk, or less at the end of a part.
    fn put(&self, chunk: u64, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        if offset == 0 {
            let mut head = self.head.lock();
            head.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            drop(head);
            self.note(chunk, WRITTEN, crc::crc32(0, bytes));
            return Ok(());
        }
        if !is_zero(bytes) {
            self.write(offset, bytes)?;
            self.note(chunk, WRITTEN, crc::crc32(0, bytes));
            return Ok(());
        }
        self.empty(chunk, offset, to_u64(bytes.len()))
    }

    /// Makes a chunk a hole, unless it is one.
    fn empty(&self, chunk: u64, offset: u64, length_bytes: u64) -> Result<(), Fault> {
        if self.note(chunk, HOLE, 0) != WRITTEN {
            return Ok(());
        }
        if offset == 0 {
            self.head.lock().fill(0);
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.fd, punch, offset, length_bytes).is_ok() {
            return Ok(());
        }
        // A filesystem without holes.
        let end = offset.saturating_add(length_bytes);
        let mut at = offset;
        while at < end {
            let piece = ZEROS.get(..to_usize(end - at)).unwrap_or(&ZEROS);
            self.write(at, piece)?;
            at = at.saturating_add(to_u64(piece.len()));
        }
        Ok(())
    }

    /// What nothing uses in the end becomes holes, wherever it was written before; the checksum of all of it. What is used and never
    /// came is no hole.
    fn settle(&self, plan: &Plan) -> Result<u32, Fault> {
        let (mut sum, mut zeros) = (Sum::new(), 0u64);
        let (mut cursor, mut at) = (Cursor::default(), 0u64);
        while let Some(span) = cursor.next_span(plan) {
            let (length_bytes, is_data) = match span {
                Span::Data { length_bytes, .. } => (length_bytes, true),
                Span::Zeros { length_bytes } => (length_bytes, false),
                Span::End(_) => continue,
            };
            let end = at.saturating_add(length_bytes);
            let homes = self
                .homes
                .iter()
                .filter(|home| home.start < end && at < home.end);
            let mut here = at;
            for home in homes {
                while here < end.min(home.end) {
                    let inside = here - home.start;
                    let chunk = home.chunk + inside / CHUNK_BYTES;
                    let next = here + (CHUNK_BYTES - inside % CHUNK_BYTES);
                    let next = next.min(home.end).min(end);
                    let known = self.chunks.lock().get(to_usize(chunk)).copied();
                    match (known.unwrap_or_default(), is_data) {
                        ([WRITTEN, crc32], true) => {
                            sum.zeros(std::mem::take(&mut zeros));
                            sum.data(crc32, next - here);
                        }
                        ([WRITTEN, _], false) => {
                            self.empty(chunk, here, next - here)?;
                            zeros = zeros.saturating_add(next - here);
                        }
                        ([HOLE, _], _) | (_, false) => zeros = zeros.saturating_add(next - here),
                        (_, true) => {
                            let never = Fault::short("a chunk that is in use never came");
                            return Err(never.at(here, next - here));
                        }
                    }
                    here = next;
                }
            }
            at = end;
        }
        sum.zeros(zeros);
        Ok(sum.crc32)
    }

    /// The SHA-256 of the file, read back.
    fn hash(&self) -> Result<[u8; 32], Fault> {
        let mut hash = Sha256::new();
        let mut piece = vec![0; to_usize(CHUNK_BYTES)];
        let mut at = 0u64;
        while at < self.size_bytes {
            let fail = |errno| Fault::io("read back", errno).with_offset(at);
            match pread(&self.fd, &mut piece, at) {
                Ok(0) => return Err(fail(Errno::IO)),
                Ok(count) => {
                    hash.update(piece.get(..count).unwrap_or_default());
                    at = at.saturating_add(to_u64(count));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(hash.finalize().into())
    }
}

impl Placing for InPlace {
    fn begin(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn place(&self, part: usize, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let home = self.homes.get(part);
        let home = home.ok_or_else(|| Fault::refused("part without a place"))?;
        let first = home.chunk.saturating_add(offset / CHUNK_BYTES);
        let mut at = home.start.saturating_add(offset);
        for (chunk, piece) in (first..).zip(bytes.chunks(to_usize(CHUNK_BYTES))) {
            self.put(chunk, at, piece)?;
            at = at.saturating_add(to_u64(piece.len()));
        }
        Ok(())
    }

    // Under the freeze reading goes first.
    fn shares_medium(&self) -> bool {
        true
    }

    fn failed(&self) -> &str {
        "output"
    }

    fn is_file(&self) -> bool {
        true
    }

    fn finish(&self, plan: &Plan) -> Result<(), Fault> {
        let io = |what| move |errno| Fault::io(what, errno);
        let crc32 = self.settle(plan)?;
        ftruncate(&self.fd, self.size_bytes).map_err(io("ftruncate"))?;
        fsync(&self.fd).map_err(io("fsync"))?;
        let head = self.head.lock();
        if !is_zero(&head) {
            self.write(0, &head)?;
        }
        drop(head);
        fsync(&self.fd).map_err(io("fsync"))?;
        let sha256 = match self.hashes {
            true => Some(self.hash()?),
            false => None,
        };
        *self.totals.lock() = Totals {
            written_bytes: self.written.load(Ordering::Relaxed),
            crc32,
            sha256,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use super::*;
    use crate::map::UsedMap;
    use crate::stream::plan::{Part, PartContent};
    use crate::units::{BlockSize, Extent};

    #[test]
    fn chunks_in_any_order_and_again_are_the_image_and_what_became_free_is_zeros() {
        let chunk = to_usize(CHUNK_BYTES);
        let lengths = [CHUNK_BYTES + 512, 5 * CHUNK_BYTES + 100];
        let path = std::env::temp_dir().join(format!("floe-inplace.{}", std::process::id()));
        let mut options = std::fs::File::options();
        let options = options.read(true).write(true).create_new(true);
        let mut file = options.open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let totals = TotalsCell::default();
        let fd = file.try_clone().unwrap().into();
        let image = InPlace::new(fd, lengths.into_iter(), true, Arc::clone(&totals)).unwrap();

        let noise = |seed: u8, length: usize| -> Vec<u8> {
            let bytes = (0..length).map(|at| seed.wrapping_add((at % 251).to_le_bytes()[0]));
            bytes.collect()
        };
        let place = |part, number: u64, bytes: &[u8]| {
            image.place(part, number * CHUNK_BYTES, bytes).unwrap();
        };
        // Early: two chunks at once, one that will be free, one that will be zeros, one that will be another.
        place(1, 2, &noise(3, 2 * chunk));
        place(0, 0, &noise(1, chunk + 512));
        place(1, 0, &noise(2, chunk));
        place(1, 1, &noise(9, chunk));
        place(1, 1, &vec![0; chunk]);
        place(0, 0, &noise(4, chunk));
        place(1, 5, &noise(5, 100));
        file.read_exact(&mut [0; 1]).unwrap();
        // Nothing has been written to the beginning yet.
        let mut first = vec![1; chunk];
        rustix::io::pread(&file, &mut first, 0).unwrap();
        assert!(is_zero(&first));

        let mut map = UsedMap::new(lengths[1], BlockSize::from_bytes(512).unwrap()).unwrap();
        map.set_free(Extent::at(2 * CHUNK_BYTES, CHUNK_BYTES));
        map.set_free(Extent::at(4 * CHUNK_BYTES, CHUNK_BYTES));
        let part = |length_bytes, content| Part {
            device: 0,
            device_offset: 0,
            length_bytes,
            content,
        };
        let plan = Plan::new(vec![vec![
            part(lengths[0], PartContent::Whole),
            part(lengths[1], PartContent::Used(map)),
        ]]);
        image.finish(&plan).unwrap();

        let mut expected = noise(4, chunk);
        expected.extend(&noise(1, chunk + 512)[chunk..]);
        expected.extend(noise(2, chunk));
        expected.resize(expected.len() + 2 * chunk, 0);
        expected.extend(&noise(3, 2 * chunk)[chunk..]);
        expected.resize(expected.len() + chunk, 0);
        expected.extend(noise(5, 100));
        let mut found = vec![0; expected.len() + 1];
        let length = rustix::io::pread(&file, &mut found, 0).unwrap();
        assert_eq!(length, expected.len());
        assert!(found[..length] == expected[..]);
        let totals = *totals.lock();
        assert_eq!(totals.crc32, crc::crc32(0, &expected));
        assert_eq!(totals.sha256, Some(Sha256::digest(&expected).into()));
    }

    #[test]
    fn a_chunk_in_use_that_never_came_is_a_failure_and_no_hole() {
        let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let lengths = [2 * CHUNK_BYTES];
        let image = InPlace::new(file, lengths.into_iter(), false, TotalsCell::default()).unwrap();
        let part = Part {
            device: 0,
            device_offset: 0,
            length_bytes: lengths[0],
            content: PartContent::Whole,
        };
        let plan = Plan::new(vec![vec![part]]);
        let piece = vec![0; to_usize(CHUNK_BYTES)];
        image.place(0, 0, &piece).unwrap();
        let fault = image.finish(&plan).unwrap_err();
        assert_eq!(fault.offset(), Some(CHUNK_BYTES), "{fault}");
        // Zeros that came are what it takes.
        image.place(0, CHUNK_BYTES, &piece).unwrap();
        image.finish(&plan).unwrap();
    }
}
