//! The byte sink at the end of a stream, and the emitters that form gzip and raw streams into it.
//!
//! Counts what the sink took, hashes it, and never buffers: a byte that is counted has been taken by the kernel. A closed pipe is
//! [`Problem::ClosedPipe`], which ends in silence. Seekable raw output leaves holes for zeros.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, SeekFrom, fsync, ftruncate, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::deflate::FINAL_BLOCK;
use super::gzip;
use super::pipeline::{Emit, Encoded, Meter, Problem};
use super::zeros::ZeroRun;
use crate::crc::{self, Shift};
use crate::error::Fault;
use crate::sys::memory::ZEROS;
use crate::threads::Lock;
use crate::units::{to_u64, to_usize};

/// Pieces given to one `writev`.
const BATCH: usize = 16;

/// Where bytes go, in order.
pub struct Output {
    fd: OwnedFd,
    /// What comes after it, last first, and what came before: open all the time, because while something is frozen nothing is opened.
    next: Vec<OwnedFd>,
    full: Vec<OwnedFd>,
    /// Bytes a piece takes, and what `fd` still takes.
    piece_bytes: u64,
    room_bytes: u64,
    meter: &'static dyn Meter,
    written_bytes: u64,
    sha256: Option<Sha256>,
}

impl Output {
    /// Writes to `fd` from its current position; `hash` asks for the SHA-256 of the bytes written.
    pub fn new(fd: OwnedFd, meter: &'static dyn Meter, hash: bool) -> Self {
        Self {
            fd,
            next: Vec::new(),
            full: Vec::new(),
            piece_bytes: u64::MAX,
            room_bytes: u64::MAX,
            meter,
            written_bytes: 0,
            sha256: hash.then(Sha256::new),
        }
    }

    /// After so many bytes go on in the next of `files`.
    pub fn split(mut self, piece_bytes: u64, mut files: Vec<OwnedFd>) -> Self {
        files.reverse();
        self.full = Vec::with_capacity(files.len());
        self.next = files;
        (self.piece_bytes, self.room_bytes) = (piece_bytes, piece_bytes);
        self
    }

    /// No heap.
    fn go_on(&mut self) -> Result<(), Problem> {
        let next = self
            .next
            .pop()
            .ok_or_else(|| self.problem("split", Errno::FBIG))?;
        self.full.push(std::mem::replace(&mut self.fd, next));
        self.room_bytes = self.piece_bytes;
        Ok(())
    }

    /// Bytes the sink has taken so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    fn problem(&self, what: &'static str, errno: Errno) -> Problem {
        if errno == Errno::PIPE {
            Problem::ClosedPipe
        } else {
            let fault = Fault::io(what, errno);
            Problem::Write(fault.with_offset(self.written_bytes))
        }
    }

    /// A write of so many bytes that was not taken.
    fn refused(&self, errno: Errno, batch: &[IoSlice<'_>]) -> Problem {
        let bytes = batch.iter().map(|slice| to_u64(slice.len())).sum();
        match self.problem("write", errno) {
            Problem::Write(fault) => Problem::Write(fault.at(self.written_bytes, bytes)),
            other => other,
        }
    }

    /// Writes all of `bytes`.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.write_parts(std::iter::once(bytes))
    }

    /// Writes `count` zero bytes.
    pub fn write_zeros(&mut self, count: u64) -> Result<(), Problem> {
        let page = to_u64(ZEROS.len());
        let rest = ZEROS.get(..to_usize(count % page)).unwrap_or(&ZEROS);
        let pages = std::iter::repeat_n(&ZEROS[..], to_usize(count / page));
        self.write_parts(pages.chain(std::iter::once(rest)))
    }

    /// Writes pieces in order, many in one system call.
    pub fn write_parts<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Problem> {
        let mut batch = [IoSlice::new(&[]); BATCH];
        let mut count = 0;
        for part in parts {
            if let Some(sha256) = &mut self.sha256 {
                sha256.update(part);
            }
            let mut rest = part;
            loop {
                let fits = to_usize(self.room_bytes).min(rest.len());
                let (now, later) = rest.split_at_checked(fits).unwrap_or((rest, &[]));
                if let Some(place) = batch.get_mut(count) {
                    *place = IoSlice::new(now);
                    count += 1;
                }
                self.room_bytes -= to_u64(now.len());
                if count == BATCH || !later.is_empty() {
                    self.write_batch(batch.get_mut(..count).unwrap_or_default())?;
                    count = 0;
                }
                if later.is_empty() {
                    break;
                }
                self.go_on()?;
                rest = later;
            }
        }
        match batch.get_mut(..count) {
            Some(rest) if count > 0 => self.write_batch(rest),
            _ => Ok(()),
        }
    }

    fn write_batch(&mut self, mut batch: &mut [IoSlice<'_>]) -> Result<(), Problem> {
        while batch.iter().any(|slice| !slice.is_empty()) {
            match rustix::io::writev(&self.fd, batch) {
                Ok(0) => return Err(self.refused(Errno::IO, batch)),
                Ok(taken) => {
                    self.written_bytes = self.written_bytes.saturating_add(to_u64(taken));
                    self.meter.taken(to_u64(taken));
                    IoSlice::advance_slices(&mut batch, taken);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Somebody made the descriptor non-blocking: wait for room.
                    let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
                    let _ = poll(&mut fds, None);
                }
                Err(errno) => return Err(self.refused(errno, batch)),
            }
        }
        Ok(())
    }

    /// Moves the position forward over a hole.
    pub(super) fn skip(&mut self, count: u64) -> Result<(), Problem> {
        let step = i64::try_from(count).map_err(|_| self.problem("seek", Errno::OVERFLOW))?;
        seek(&self.fd, SeekFrom::Current(step)).map_err(|errno| self.problem("seek", errno))?;
        Ok(())
    }

    /// Makes a regular file end at the current position, and flushes it.
    pub(super) fn flush(&mut self, hole_at_end: bool) -> Result<(), Problem> {
        if hole_at_end {
            let end = seek(&self.fd, SeekFrom::Current(0))
                .map_err(|errno| self.problem("seek", errno))?;
            ftruncate(&self.fd, end).map_err(|errno| self.problem("ftruncate", errno))?;
        }
        for fd in &self.full {
            fsync(fd).map_err(|errno| self.problem("fsync", errno))?;
        }
        match fsync(&self.fd) {
            // Pipes, sockets and /dev/null have nothing to flush. (A filesystem that broke down says EROFS.)
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(self.problem("fsync", errno)),
        }
    }

    /// Hashes from here on only.
    pub(super) fn hash_anew(&mut self) {
        self.sha256 = Some(Sha256::new());
    }

    /// The hash of what was written since it began; then nothing is hashed any more.
    pub(super) fn sha256(&mut self) -> Option<[u8; 32]> {
        self.sha256.take().map(|hash| hash.finalize().into())
    }
}

/// The figures of a finished stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Bytes the sink took.
    pub written_bytes: u64,
    /// CRC-32 of the raw bytes.
    pub crc32: u32,
    /// SHA-256 of the bytes written, where it was asked for.
    pub sha256: Option<[u8; 32]>,
}

/// Totals that the emitter thread leaves for the supervisor.
pub type TotalsCell = Arc<Lock<Totals>>;

/// The CRC-32 of a stream put together from chunks.
pub(super) struct Sum {
    pub crc32: u32,
    pub raw_bytes: u64,
    shift: Shift,
}

impl Sum {
    pub(super) fn new() -> Self {
        Self {
            crc32: 0,
            raw_bytes: 0,
            shift: Shift::new(super::plan::CHUNK_BYTES),
        }
    }

    pub(super) fn data(&mut self, crc32: u32, raw_bytes: u64) {
        self.crc32 = self.shift.combine(self.crc32, crc32, raw_bytes);
        self.raw_bytes = self.raw_bytes.saturating_add(raw_bytes);
    }

    pub(super) fn zeros(&mut self, raw_bytes: u64) {
        self.crc32 = crc::combine(self.crc32, crc::zeros(raw_bytes), raw_bytes);
        self.raw_bytes = self.raw_bytes.saturating_add(raw_bytes);
    }
}

/// Writes a run of zeros as deflate blocks.
pub fn write_deflated_zeros(output: &mut Output, length_bytes: u64) -> Result<(), Problem> {
    if let Some(run) = ZeroRun::new(length_bytes) {
        output.write_all(run.head())?;
        output.write_zeros(run.zero_bytes())?;
        return output.write_all(run.tail());
    }
    // A stored block (RFC 1951, 3.2.4) for the few bytes below the shortest run.
    let length = u16::try_from(length_bytes)
        .map_err(|_| Problem::Internal(Fault::refused("length of a short zero run")))?;
    let [a, b] = length.to_le_bytes();
    output.write_all(&[0, a, b, !a, !b])?;
    output.write_zeros(length_bytes)
}

/// One gzip member for one image.
pub struct GzipEmitter {
    output: Output,
    sum: Sum,
    totals: TotalsCell,
}

impl GzipEmitter {
    /// Begins the member: writes its header at once, so that a sink that asks first (ssh) has asked before anything freezes.
    pub fn new(mut output: Output, header: &[u8], totals: TotalsCell) -> Result<Self, Problem> {
        output.write_all(header)?;
        Ok(Self {
            output,
            sum: Sum::new(),
            totals,
        })
    }
}

impl Emit for GzipEmitter {
    fn data(&mut self, chunk: &Encoded<'_>) -> Result<(), Problem> {
        self.sum.data(chunk.crc32, chunk.raw_bytes);
        self.output.write_parts(chunk.parts())
    }

    fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem> {
        self.sum.zeros(length_bytes);
        write_deflated_zeros(&mut self.output, length_bytes)
    }

    fn finish(&mut self) -> Result<(), Problem> {
        self.output.write_all(&FINAL_BLOCK)?;
        let trailer = gzip::trailer(self.sum.crc32, self.sum.raw_bytes);
        self.output.write_all(&trailer)?;
        self.output.flush(false)?;
        leave(&self.totals, &mut self.output, &self.sum);
        Ok(())
    }
}

/// The raw image: holes for zeros on a seekable file, zero bytes elsewhere.
pub struct RawEmitter {
    output: Output,
    seekable: bool,
    sum: Sum,
    totals: TotalsCell,
}

impl RawEmitter {
    /// `seekable`: the output is a regular file whose content from here on reads as zeros.
    pub fn new(output: Output, seekable: bool, totals: TotalsCell) -> Self {
        Self {
            output,
            seekable,
            sum: Sum::new(),
            totals,
        }
    }
}

impl Emit for RawEmitter {
    fn data(&mut self, chunk: &Encoded<'_>) -> Result<(), Problem> {
        self.sum.data(chunk.crc32, chunk.raw_bytes);
        self.output.write_parts(chunk.parts())
    }

    fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem> {
        self.sum.zeros(length_bytes);
        if !self.seekable {
            return self.output.write_zeros(length_bytes);
        }
        self.output.skip(length_bytes)?;
        if let Some(hash) = &mut self.output.sha256 {
            // The holes are bytes of the file all the same.
            let mut left = length_bytes;
            while left > 0 {
                let piece = left.min(to_u64(ZEROS.len()));
                hash.update(ZEROS.get(..to_usize(piece)).unwrap_or(&ZEROS));
                // Hashing a large hole takes its time: the watchdog is to see that it goes on.
                self.output.meter.taken(piece);
                left -= piece;
            }
        } else {
            self.output.meter.taken(length_bytes);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Problem> {
        self.output.flush(self.seekable)?;
        leave(&self.totals, &mut self.output, &self.sum);
        Ok(())
    }
}

fn leave(totals: &TotalsCell, output: &mut Output, sum: &Sum) {
    *totals.lock() = Totals {
        written_bytes: output.written_bytes(),
        crc32: sum.crc32,
        sha256: output.sha256(),
    };
}

/// Bytes that wait in the pipe behind `fd` for its reader; `None` where nobody can say. Only a pipe can: of a socket FIONREAD
/// tells what waits for us, and of a file what lies behind the position.
pub fn unread_bytes(fd: impl AsFd) -> Option<u64> {
    let stat = rustix::fs::fstat(&fd).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return None;
    }
    rustix::io::ioctl_fionread(fd).ok()
}

/// Whether the reader of the pipe or socket behind `fd` is gone.
pub fn reader_is_gone(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    let now = rustix::event::Timespec::default();
    poll(&mut fds, Some(&now)).is_ok()
        && fds
            .first()
            .is_some_and(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

/// Whether zeros may become holes: a regular file that ends where we begin, and is not opened for appending.
pub(crate) fn leaves_holes(sink: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(sink) else {
        return false;
    };
    let append = rustix::fs::fcntl_getfl(sink)
        .map_or(true, |flags| flags.contains(rustix::fs::OFlags::APPEND));
    let position = rustix::fs::seek(sink, SeekFrom::Current(0));
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && !append
        && position
            .is_ok_and(|position| u64::try_from(stat.st_size).is_ok_and(|size| size <= position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pipe_says_what_its_reader_has_not_taken_and_that_it_is_gone() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"floe").unwrap();
        assert_eq!(unread_bytes(&writer), Some(4));
        assert!(!reader_is_gone(&writer));
        drop(reader);
        assert!(reader_is_gone(&writer));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::io::write(&theirs, b"GET").unwrap();
        assert_eq!(unread_bytes(&ours), None);
        assert!(!reader_is_gone(&ours));
        drop(theirs);
        assert!(reader_is_gone(&ours));
        let exe = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(unread_bytes(&exe), None);
        assert!(!reader_is_gone(&exe));
    }
}
