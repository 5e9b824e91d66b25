//! The end that is written: a block device (O_DIRECT, held O_EXCL) or a regular file, with zero ranges zeroed by whoever does
//! it fastest and guarantees it.
//!
//! On a device a zero range is punched (the kernel does that only where reads give zeros afterwards), else zeroed by BLKZEROOUT,
//! else written; a discard never counts. In a file it becomes a hole. Nothing here decides whether a target may be written.
//!
//! With [`only_changes`](Target::only_changes) every piece is read first, and what holds already what it should is left alone.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::device::{Device, DeviceKind, ReadAt};
use crate::error::Fault;
use crate::stream::input::is_zero;
use crate::stream::plan::CHUNK_BYTES;
use crate::sys::ioctl;
use crate::sys::memory::Pages;
use crate::threads::Lock;
use crate::units::{Extent, round_up, to_u64, to_usize};

/// Longest range zeroed by one call, in bytes: a signal waits for no more than this.
pub(crate) const ZERO_STEP_BYTES: u64 = 64 << 20;

/// Zero bytes written at a time where nothing better works.
const ZERO_PAGE_BYTES: usize = 256 * 1024;

/// The same where it is read first: at 20 MB/s not half a second.
const COMPARE_STEP_BYTES: u64 = 8 << 20;

/// So many threads compare at once; another one waits for the first.
const READERS: usize = 4;

/// What comparing needs. Its memory exists before anything is frozen, and is touched as it is used.
struct Compared {
    buffers: [Lock<Pages>; READERS],
    unchanged_bytes: AtomicU64,
}

impl Compared {
    fn new() -> Result<Self, Fault> {
        let buffer = || {
            let pages = Pages::new(to_usize(CHUNK_BYTES));
            pages.map(Lock::new).map_err(|e| Fault::io("mmap", e))
        };
        Ok(Self {
            buffers: [buffer()?, buffer()?, buffer()?, buffer()?],
            unchanged_bytes: AtomicU64::new(0),
        })
    }

    fn buffer(&self) -> MutexGuard<'_, Pages> {
        let free = self.buffers.iter().find_map(Lock::try_lock);
        let [first, ..] = &self.buffers;
        free.unwrap_or_else(|| first.lock())
    }
}

/// How zero ranges are made; the first that works is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeroing {
    /// `FALLOC_FL_PUNCH_HOLE`.
    Punch,
    /// `BLKZEROOUT`.
    ZeroOut,
    /// Plain writes.
    Write,
}

/// A target being written.
pub(crate) struct Target {
    device: Device,
    zeroing: Zeroing,
    zero_page: Pages,
    /// Where it begins on the device, in bytes, when it is only a range of it.
    window: Option<u64>,
    /// Size in bytes before the first write.
    old_bytes: u64,
    /// End of what a regular file must have at least.
    reached: u64,
    compared: Option<Compared>,
    /// Bytes written as data.
    pub written_bytes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
}

impl Target {
    /// Takes a device opened for writing.
    pub(crate) fn new(device: Device) -> Result<Self, Fault> {
        Ok(Self {
            zero_page: Pages::new(ZERO_PAGE_BYTES).map_err(|e| Fault::io("mmap", e))?,
            zeroing: Zeroing::Punch,
            window: None,
            old_bytes: device.size_bytes(),
            device,
            reached: 0,
            compared: None,
            written_bytes: 0,
            zeroed_bytes: 0,
        })
    }

    /// A range of a device or file (a partition of a disk) whose size is fixed; every offset counts from its beginning.
    pub(crate) fn within(device: Device, range: Extent) -> Result<Self, Fault> {
        if range.end() > device.size_bytes() {
            return Err(
                Fault::refused("the device is too small").at(range.offset, range.length_bytes)
            );
        }
        let mut target = Self::new(device)?;
        target.window = Some(range.offset);
        target.old_bytes = range.length_bytes;
        Ok(target)
    }

    /// From now on what holds already what it should is read and left alone, a chunk at a time.
    pub(crate) fn only_changes(&mut self) -> Result<(), Fault> {
        self.compared = Some(Compared::new()?);
        self.drop_cache()
    }

    /// Bytes that were read and left alone.
    pub(crate) fn unchanged_bytes(&self) -> u64 {
        let compared = self.compared.as_ref();
        compared.map_or(0, |all| all.unchanged_bytes.load(Ordering::Relaxed))
    }

    /// What was zeroed so far was in the way, and is no part of the figures.
    pub(crate) fn begin_figures(&mut self) {
        self.zeroed_bytes = 0;
        if let Some(compared) = &self.compared {
            compared.unchanged_bytes.store(0, Ordering::Relaxed);
        }
    }

    /// The first run, at or after `from`, of so many bytes at `offset` that do not hold what is `wanted` (`None`: zeros), and from
    /// where to look on. Where nothing is compared, all of it.
    fn next_change(
        &self,
        offset: u64,
        length_bytes: u64,
        from: u64,
        wanted: Option<&[u8]>,
    ) -> (Extent, u64) {
        let mut run = Extent::at(from, 0);
        let Some(compared) = &self.compared else {
            run.length_bytes = length_bytes.saturating_sub(from);
            return (run, length_bytes);
        };
        let mut at = from;
        while at < length_bytes {
            let count = (length_bytes - at).min(CHUNK_BYTES);
            let next = at.saturating_add(count);
            let part = wanted.map(|bytes| bytes.get(to_usize(at)..to_usize(next)));
            let place = offset.saturating_add(at);
            if self.holds(compared, place, count, part.map(Option::unwrap_or_default)) {
                let unchanged = &compared.unchanged_bytes;
                unchanged.fetch_add(count, Ordering::Relaxed);
                if !run.is_empty() {
                    return (run, next);
                }
                run.offset = next;
            } else {
                run.length_bytes = run.length_bytes.saturating_add(count);
            }
            at = next;
        }
        (run, at)
    }

    /// Whether a piece is what it should be. What cannot be read is not: a sector that went bad comes back when it is written.
    fn holds(&self, compared: &Compared, offset: u64, count: u64, wanted: Option<&[u8]>) -> bool {
        let end = offset.saturating_add(count);
        if end > self.old_bytes {
            return false;
        }
        if wanted.is_none() && self.hole_at(offset, end) == Some(end) {
            return true;
        }
        let mut buffer = compared.buffer();
        let found = buffer.get_mut(..to_usize(count)).unwrap_or_default();
        if self.device.read_aligned(self.place(offset), found).is_err() {
            return false;
        }
        wanted.map_or_else(|| is_zero(found), |bytes| found == bytes)
    }

    /// Writes what is not there, and gives how much that was.
    fn update(&self, offset: u64, bytes: &[u8]) -> Result<u64, Fault> {
        let (mut from, mut written) = (0, 0u64);
        loop {
            let (run, next) = self.next_change(offset, to_u64(bytes.len()), from, Some(bytes));
            if run.is_empty() {
                return Ok(written);
            }
            let part = bytes.get(to_usize(run.offset)..to_usize(run.end()));
            let place = self.place(offset.saturating_add(run.offset));
            self.device.write_aligned(place, part.unwrap_or_default())?;
            written = written.saturating_add(run.length_bytes);
            from = next;
        }
    }

    /// Size in bytes: of the range, where it is one.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.old_bytes
    }

    /// Whether it is a range of something larger.
    pub(crate) fn is_range(&self) -> bool {
        self.window.is_some()
    }

    /// Offset on the device.
    fn place(&self, offset: u64) -> u64 {
        self.window.unwrap_or(0).saturating_add(offset)
    }

    /// The device or file.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// See [`Device::release`].
    pub(crate) fn release(&mut self) -> Result<(), Fault> {
        self.device.release()
    }

    fn is_block(&self) -> bool {
        self.device.kind() == DeviceKind::Block
    }

    fn check_room(&self, offset: u64, length_bytes: u64) -> Result<u64, Fault> {
        let end = offset.checked_add(length_bytes);
        let is_fixed = self.is_block() || self.is_range();
        end.filter(|end| !is_fixed || *end <= self.old_bytes)
            .ok_or_else(|| {
                Fault::refused("image is larger than the target").with_length(self.old_bytes)
            })
    }

    /// Writes the first `length` bytes of `buffer` (page-aligned memory) at `offset`, a multiple of the sector size. On a device
    /// a last partial sector is filled with zeros.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
        length: usize,
    ) -> Result<(), Fault> {
        let end = self.check_room(offset, to_u64(length))?;
        let mut padded = length;
        if self.is_block() {
            let sector = u64::from(self.device.sector_bytes());
            padded = round_up(to_u64(length), sector).map_or(length, to_usize);
            self.check_room(offset, to_u64(padded))?;
            if let Some(rest) = buffer.get_mut(length..padded) {
                rest.fill(0);
            }
        }
        let bytes = buffer
            .get(..padded)
            .ok_or_else(|| Fault::refused("buffer length"))?;
        let written = self.update(offset, bytes)?.min(to_u64(length));
        self.reached = self.reached.max(end);
        self.written_bytes = self.written_bytes.saturating_add(written);
        Ok(())
    }

    /// Writes `bytes` at `offset`, from any thread: both aligned to the device's sectors, the memory too. Gives how many of them
    /// were written, and does not count them.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) -> Result<u64, Fault> {
        self.check_room(offset, to_u64(bytes.len()))?;
        self.update(offset, bytes)
    }

    /// Zeroes an extent, at most [`ZERO_STEP_BYTES`] of what is there, and gives what is left. An extent for which there is no
    /// room fails as a whole: the image decides how long it is, and the time of this must not be up to the image.
    pub(crate) fn zero_step(&mut self, extent: Extent) -> Result<Extent, Fault> {
        let end = self.check_room(extent.offset, extent.length_bytes)?;
        let mut count = extent.length_bytes.min(match self.compared {
            Some(_) => COMPARE_STEP_BYTES,
            None => ZERO_STEP_BYTES,
        });
        if !self.is_block() && !self.is_range() && extent.offset >= self.old_bytes {
            // Past the old end of a file all of it is one hole, if its filesystem has files of this length.
            rustix::fs::ftruncate(self.device.as_fd(), end).map_err(|errno| {
                Fault::io("growth", errno).at(extent.offset, extent.length_bytes)
            })?;
            count = extent.length_bytes;
        }
        self.zero(extent.offset, count)?;
        Ok(Extent::at(
            extent.offset.saturating_add(count),
            extent.length_bytes - count,
        ))
    }

    fn zero(&mut self, offset: u64, length_bytes: u64) -> Result<(), Fault> {
        let end = self.check_room(offset, length_bytes)?;
        self.reached = self.reached.max(end);
        let inside = if self.is_block() {
            let sector = u64::from(self.device.sector_bytes());
            round_up(length_bytes, sector).unwrap_or(length_bytes)
        } else {
            // What lies past the old end of a file is a hole: see `zero_step`.
            end.min(self.old_bytes).saturating_sub(offset)
        };
        self.check_room(offset, inside)?;
        let unchanged = self.unchanged_bytes();
        let mut from = 0;
        loop {
            let (run, next) = self.next_change(offset, inside, from, None);
            if run.is_empty() {
                break;
            }
            self.zero_range(offset.saturating_add(run.offset), run.length_bytes)?;
            from = next;
        }
        let unchanged = self.unchanged_bytes().saturating_sub(unchanged);
        let zeroed = length_bytes.saturating_sub(unchanged);
        self.zeroed_bytes = self.zeroed_bytes.saturating_add(zeroed);
        Ok(())
    }

    fn zero_range(&mut self, offset: u64, length_bytes: u64) -> Result<(), Fault> {
        let offset = self.place(offset);
        if self.zeroing == Zeroing::Punch {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(self.device.as_fd(), flags, offset, length_bytes) {
                Ok(()) => return Ok(()),
                Err(errno) if refuses(errno) => {
                    self.zeroing = if self.is_block() {
                        Zeroing::ZeroOut
                    } else {
                        Zeroing::Write
                    };
                }
                Err(errno) => return Err(Fault::io("zero", errno).at(offset, length_bytes)),
            }
        }
        if self.zeroing == Zeroing::ZeroOut {
            match ioctl::blkzeroout(self.device.as_fd(), offset, length_bytes) {
                Ok(()) => return Ok(()),
                Err(errno) if refuses(errno) => self.zeroing = Zeroing::Write,
                Err(errno) => return Err(Fault::io("BLKZEROOUT", errno).at(offset, length_bytes)),
            }
        }
        self.write_zeros(offset, length_bytes)
    }

    fn write_zeros(&mut self, offset: u64, length_bytes: u64) -> Result<(), Fault> {
        let mut done = 0u64;
        while done < length_bytes {
            let count = (length_bytes - done).min(to_u64(self.zero_page.len()));
            let bytes = self.zero_page.get(..to_usize(count)).unwrap_or_default();
            self.device
                .write_aligned(offset.saturating_add(done), bytes)?;
            done += count;
        }
        Ok(())
    }

    /// Cuts a regular file to the length of what was written to it; where that is longer, [`sync`](Self::sync) gives it its length.
    pub(crate) fn cut(&mut self, length_bytes: u64) -> Result<(), Fault> {
        if self.is_block() || self.is_range() || length_bytes >= self.old_bytes {
            return Ok(());
        }
        self.old_bytes = length_bytes;
        rustix::fs::ftruncate(self.device.as_fd(), length_bytes)
            .map_err(|e| Fault::io("ftruncate", e))
    }

    /// Empties a regular file, so that it becomes exactly what is written; false (and nothing happens) for anything else, and where
    /// what it holds may stay.
    pub(crate) fn empty_file(&mut self) -> Result<bool, Fault> {
        if self.is_block() || self.is_range() || self.compared.is_some() {
            return Ok(false);
        }
        rustix::fs::ftruncate(self.device.as_fd(), 0).map_err(|e| Fault::io("ftruncate", e))?;
        self.old_bytes = 0;
        Ok(true)
    }

    /// Leaves `length_bytes` at `offset` as they are.
    pub(crate) fn skip(&mut self, offset: u64, length_bytes: u64) -> Result<(), Fault> {
        let end = self.check_room(offset, length_bytes)?;
        self.reached = self.reached.max(end);
        Ok(())
    }

    /// Everything so far is on the medium when this returns: a file has its length, caches are flushed.
    pub(crate) fn sync(&mut self) -> Result<(), Fault> {
        if !self.is_block() && !self.is_range() && self.reached > self.old_bytes {
            rustix::fs::ftruncate(self.device.as_fd(), self.reached)
                .map_err(|e| Fault::io("ftruncate", e))?;
            self.old_bytes = self.reached;
        }
        rustix::fs::fsync(self.device.as_fd()).map_err(|e| Fault::io("fsync", e))
    }

    /// Drops what the page cache holds of the target, so that the next reader sees the medium.
    pub(crate) fn drop_cache(&self) -> Result<(), Fault> {
        if self.is_block() {
            return ioctl::blkflsbuf(self.device.as_fd()).map_err(|e| Fault::io("BLKFLSBUF", e));
        }
        let _ = rustix::fs::fadvise(self.device.as_fd(), 0, None, rustix::fs::Advice::DontNeed);
        Ok(())
    }

    /// Where the hole of a file ends that begins at `offset`, if one does; `end` is as far as it matters. Reads as zeros.
    pub(crate) fn hole_at(&self, offset: u64, end: u64) -> Option<u64> {
        if self.is_block() {
            return None;
        }
        let place = self.place(offset);
        let data = match rustix::fs::seek(self.device.as_fd(), SeekFrom::Data(place)) {
            Ok(data) => data.saturating_sub(self.place(0)).min(end),
            Err(Errno::NXIO) => end.min(self.reached.max(self.old_bytes)),
            Err(_) => return None,
        };
        Some(data).filter(|data| *data > offset)
    }

    /// Reads back `length` bytes at `offset` into aligned memory.
    pub(crate) fn read_back(
        &self,
        offset: u64,
        buffer: &mut [u8],
        length: usize,
    ) -> Result<(), Fault> {
        let sector = u64::from(self.device.sector_bytes());
        let padded = if self.is_block() {
            round_up(to_u64(length), sector).map_or(length, to_usize)
        } else {
            length
        };
        let space = buffer
            .get_mut(..padded)
            .ok_or_else(|| Fault::refused("buffer length"))?;
        self.device.read_aligned(self.place(offset), space)
    }
}

/// Whether an errno means "not this way" rather than a failure of the medium.
fn refuses(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::NODEV
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Access;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    /// A target over a file of 3 MiB of ones, and the file for looking at it.
    fn target(name: &str, zeroing: Zeroing) -> (Target, File) {
        let path = std::env::temp_dir().join(format!("floe-target-{name}-{}", std::process::id()));
        std::fs::write(&path, vec![1; 3 << 20]).unwrap();
        let device = Device::open(&path, Access::WriteHeld).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut target = Target::new(device).unwrap();
        target.zeroing = zeroing;
        (target, file)
    }

    #[test]
    fn every_way_of_zeroing_gives_zeros_and_touches_nothing_else() {
        // BLKZEROOUT is ENOTTY on a file, as an old kernel refuses to punch a device: the next way takes over.
        for zeroing in [Zeroing::Punch, Zeroing::ZeroOut, Zeroing::Write] {
            let (mut target, file) = target(&format!("{zeroing:?}"), zeroing);
            let rest = target.zero_step(Extent::at(65_536, 1 << 20));
            assert!(rest.unwrap().is_empty());
            let mut bytes = vec![0; 3 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let zeros = 65_536..65_536 + (1 << 20);
            for (place, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte == 0, zeros.contains(&place), "{zeroing:?} {place}");
            }
            assert_eq!(target.zeroed_bytes, 1 << 20);
        }
    }

    #[test]
    fn a_hole_that_no_file_can_have_fails_at_once_and_one_of_a_range_before_anything_is_zeroed() {
        let (mut target, file) = target("exabytes", Zeroing::Punch);
        let beyond = Extent::at(3 << 20, i64::MAX.unsigned_abs() - (3 << 20));
        let steps = (0..4).try_fold(beyond, |rest, _| target.zero_step(rest));
        match steps {
            Err(fault) => assert!(fault.is_errno(Errno::FBIG) || fault.is_errno(Errno::INVAL)),
            // A filesystem that has files of 8 EiB.
            Ok(rest) => assert!(rest.is_empty()),
        }
        let device = Device::from_fd(file.into(), false).unwrap();
        let mut range = Target::within(device, Extent::at(0, 1 << 20)).unwrap();
        let all = Extent::at(0, 1 << 50);
        assert!(range.zero_step(all).is_err());
        let mut byte = [0];
        range.device().read_at(0, &mut byte).unwrap();
        assert_eq!(byte, [1]);
    }

    #[test]
    fn a_file_grows_to_what_was_reached_and_is_cut_only_when_asked() {
        let (mut target, file) = target("grows", Zeroing::Punch);
        let mut buffer = Pages::new(65_536).unwrap();
        buffer.fill(7);
        target.write(0, &mut buffer, 1000).unwrap();
        target.sync().unwrap();
        assert_eq!(file.metadata().unwrap().size(), 3 << 20);
        let rest = target.zero_step(Extent::at(3 << 20, 5 << 30));
        // One step past the end, however long it is.
        assert!(rest.unwrap().is_empty());
        target.skip(3 << 20, 5 << 30).unwrap();
        target.sync().unwrap();
        assert_eq!(file.metadata().unwrap().size(), (3 << 20) + (5 << 30));
        let mut byte = [0];
        file.read_exact_at(&mut byte, 999).unwrap();
        assert_eq!(byte, [7]);
        file.read_exact_at(&mut byte, 1000).unwrap();
        assert_eq!(byte, [1]);
        assert!(target.empty_file().unwrap());
        assert_eq!(file.metadata().unwrap().size(), 0);
    }
}
