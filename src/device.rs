//! Bytes at offsets: the [`ReadAt`] and [`WriteAt`] that readers and writers work on, and [`Device`], a block device or image
//! file opened once and read with O_DIRECT through buffers of our own.
//!
//! Never closes over a name: a device is its descriptor. Never retries silently: an error carries offset and length.

use std::fs::File;
use std::io::{Read, Take};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Fault;
use crate::sys::ioctl;
use crate::sys::memory::Pages;
use crate::threads::Lock;
use crate::units::{Extent, round_down, round_up, to_u64, to_usize};

/// Alignment of offset, length and memory that O_DIRECT accepts everywhere: the largest common sector size.
pub const DIRECT_ALIGN: u64 = 4096;

/// Largest piece a bounced (unaligned) access moves at a time, in bytes.
const BOUNCE_BYTES: usize = 64 * 1024;

/// Something that can be read at any offset, from any thread.
pub trait ReadAt: Sync {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;
    /// How much of it is there to be read; less than its size where only the beginning of a stream is held.
    fn known_bytes(&self) -> u64 {
        self.size_bytes()
    }
    /// Fills `buffer` from `offset`, whole or not at all; a read past the end is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault>;
}

/// Something that can be written at any offset.
pub trait WriteAt: Sync {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Fault>;
}

impl ReadAt for [u8] {
    fn size_bytes(&self) -> u64 {
        to_u64(self.len())
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = to_u64(buffer.len());
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or_else(|| Fault::short("read past the end").at(offset, length))?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.as_slice().size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.as_slice().read_at(offset, buffer)
    }
}

/// At most so many bytes of whatever is read: one type, so that what reads to the end is in the executable once.
pub(crate) fn limited(from: &mut dyn Read, most_bytes: u64) -> Take<&mut dyn Read> {
    from.take(most_bytes)
}

/// A range of a device as a device.
pub(crate) struct Range<'a> {
    /// The device.
    pub device: &'a dyn ReadAt,
    /// The range.
    pub extent: Extent,
}

impl ReadAt for Range<'_> {
    fn size_bytes(&self) -> u64 {
        self.extent.length_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = to_u64(buffer.len());
        let past = || Fault::short("read past the end").at(offset, length);
        let end = offset.checked_add(length).ok_or_else(past)?;
        if end > self.extent.length_bytes {
            return Err(past());
        }
        let start = self.extent.offset.checked_add(offset).ok_or_else(past)?;
        self.device.read_at(start, buffer)
    }
}

/// What a [`Device`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A regular file.
    File,
}

/// How a [`Device`] is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read only and O_EXCL: fails with `EBUSY` when a block device is mounted or held, and keeps others from it.
    ReadHeld,
    /// Read and write, O_EXCL on block devices.
    WriteHeld,
}

/// An open block device or regular file.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    kind: DeviceKind,
    size_bytes: u64,
    sector_bytes: u32,
    direct: bool,
    rdev: u64,
    bounce: Lock<Pages>,
}

impl Device {
    /// Opens `path`: block devices with O_DIRECT where they accept it. Everything that allocates happens here.
    pub fn open(path: &Path, access: Access) -> Result<Self, Fault> {
        let base = match access {
            Access::Read | Access::ReadHeld => OFlags::RDONLY,
            Access::WriteHeld => OFlags::RDWR,
        } | OFlags::CLOEXEC
            | OFlags::LARGEFILE
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        // O_EXCL without O_CREAT means "hold" on block devices only; on anything else it is undefined, so look first.
        let stat = rustix::fs::stat(path).map_err(|e| Fault::io("open", e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let block = kind == FileType::BlockDevice;
        // The mere opening of some devices does something: rewinds a tape, arms a watchdog.
        if !block && kind != FileType::RegularFile {
            return Err(Fault::refused("neither a block device nor a regular file"));
        }
        let flags = if block && access != Access::Read {
            base | OFlags::EXCL
        } else {
            base
        };
        let open =
            |flags| rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Fault::io("open", e));
        // The page cache of a file is the file; only that of a mounted device lies.
        if !block {
            return Self::from_fd(open(flags)?, false);
        }
        match open(flags | OFlags::DIRECT) {
            Ok(fd) => {
                let mut device = Self::from_fd(fd, true)?;
                device.try_direct()?;
                if access == Access::WriteHeld {
                    // What every writer ends with: who may not do it learns so before the first write.
                    let flushed = ioctl::blkflsbuf(&device.fd);
                    flushed.map_err(|errno| Fault::io("BLKFLSBUF", errno))?;
                }
                Ok(device)
            }
            Err(fault) if fault.is_errno(Errno::INVAL) => Self::from_fd(open(flags)?, false),
            Err(fault) => Err(fault),
        }
    }

    /// Some devices accept the flag and then refuse the read: one read tells.
    fn try_direct(&mut self) -> Result<(), Fault> {
        let refused = {
            let mut bounce = self.bounce.lock();
            let length = to_usize(self.size_bytes.min(DIRECT_ALIGN));
            let piece = bounce.get_mut(..length).unwrap_or_default();
            matches!(
                rustix::io::pread(&self.fd, piece, 0),
                Err(Errno::INVAL | Errno::OPNOTSUPP)
            )
        };
        if refused {
            self.use_page_cache()
        } else {
            Ok(())
        }
    }

    /// Takes an open descriptor; `direct` says whether it was opened with O_DIRECT.
    pub fn from_fd(fd: OwnedFd, direct: bool) -> Result<Self, Fault> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| Fault::io("stat", e))?;
        let bounce = Lock::new(Pages::new(BOUNCE_BYTES).map_err(|e| Fault::io("mmap", e))?);
        let (kind, size_bytes, sector_bytes) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => {
                let size = ioctl::blkgetsize64(&fd).map_err(|e| Fault::io("BLKGETSIZE64", e))?;
                let sector = ioctl::blksszget(&fd).map_err(|e| Fault::io("BLKSSZGET", e))?;
                let sector = u32::try_from(sector)
                    .ok()
                    .filter(|s| s.is_power_of_two())
                    .ok_or_else(|| Fault::refused("sector size"))?;
                (DeviceKind::Block, size, sector)
            }
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                (DeviceKind::File, size, 512)
            }
            _ => return Err(Fault::refused("neither a block device nor a regular file")),
        };
        let rdev = stat.st_rdev;
        Ok(Self {
            fd,
            kind,
            size_bytes,
            sector_bytes,
            direct,
            rdev,
            bounce,
        })
    }

    /// Block device or file.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Logical sector size in bytes (512 for files).
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Device number of a block device (0 for files).
    pub fn rdev(&self) -> u64 {
        self.rdev
    }

    /// Whether reads bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A second descriptor as a `File` (for fsync and the like).
    pub fn duplicate(&self) -> Result<File, Fault> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 3).map_err(|e| Fault::io("dup", e))?;
        Ok(File::from(fd))
    }

    /// Lets go of what it is open on, for an owner that is never dropped: every access fails from now on.
    pub fn release(&mut self) -> Result<(), Fault> {
        let fail = |errno| Fault::io("close", errno);
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (nothing, _) = rustix::pipe::pipe_with(flags).map_err(fail)?;
        rustix::io::dup3(&nothing, &mut self.fd, rustix::io::DupFlags::CLOEXEC).map_err(fail)
    }

    /// Turns O_DIRECT off for good (a device that accepts the flag and then refuses the read).
    pub fn use_page_cache(&mut self) -> Result<(), Fault> {
        let flags = rustix::fs::fcntl_getfl(&self.fd).map_err(|e| Fault::io("F_GETFL", e))?;
        rustix::fs::fcntl_setfl(&self.fd, flags - OFlags::DIRECT)
            .map_err(|e| Fault::io("F_SETFL", e))?;
        self.direct = false;
        Ok(())
    }

    /// Reads straight into `buffer`: offset, length and memory must be multiples of [`DIRECT_ALIGN`], except that the length
    /// may end where the device ends. No bounce, no lock; for the workers' own buffers.
    pub fn read_aligned(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = to_u64(buffer.len());
        let mut done = 0usize;
        while done < buffer.len() {
            let position = offset.saturating_add(to_u64(done));
            let rest = buffer.get_mut(done..).unwrap_or_default();
            match rustix::io::pread(&self.fd, rest, position) {
                Ok(0) => return Err(Fault::short("read past the end").at(offset, length)),
                Ok(count) => done = done.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Fault::io("read", errno).at(offset, length)),
            }
        }
        Ok(())
    }

    /// Writes straight from `bytes`; the same alignment as [`Self::read_aligned`].
    pub fn write_aligned(&self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let length = to_u64(bytes.len());
        let mut done = 0usize;
        while done < bytes.len() {
            let position = offset.saturating_add(to_u64(done));
            let rest = bytes.get(done..).unwrap_or_default();
            match rustix::io::pwrite(&self.fd, rest, position) {
                Ok(0) => return Err(Fault::short("write past the end").at(offset, length)),
                Ok(count) => done = done.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Fault::io("write", errno).at(offset, length)),
            }
        }
        Ok(())
    }
}

impl ReadAt for Device {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = to_u64(buffer.len());
        let past = || Fault::short("read past the end").at(offset, length);
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.size_bytes)
            .ok_or_else(past)?;
        if !self.direct {
            return self.read_aligned(offset, buffer);
        }
        let mut bounce = self.bounce.lock();
        let mut position = offset;
        let mut rest = buffer;
        while position < end {
            let start = round_down(position, DIRECT_ALIGN);
            let wanted = round_up(end - start, DIRECT_ALIGN)
                .unwrap_or(u64::MAX)
                .min(to_u64(BOUNCE_BYTES));
            // The last sectors of a device whose size is no multiple of the alignment.
            let wanted = wanted.min(self.size_bytes - start);
            let piece = bounce.get_mut(..to_usize(wanted)).ok_or_else(past)?;
            self.read_aligned(start, piece)?;
            let skip = to_usize(position - start);
            let count = (piece.len() - skip).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(piece.get(skip..skip + count).ok_or_else(past)?);
            position += to_u64(count);
            rest = tail;
        }
        Ok(())
    }
}

impl WriteAt for Device {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        if self.direct
            && !(offset | to_u64(bytes.len())).is_multiple_of(u64::from(self.sector_bytes))
        {
            return Err(
                Fault::refused("write not aligned to sectors").at(offset, to_u64(bytes.len()))
            );
        }
        if !self.direct {
            return self.write_aligned(offset, bytes);
        }
        let mut bounce = self.bounce.lock();
        let mut position = offset;
        for part in bytes.chunks(BOUNCE_BYTES) {
            let piece = bounce
                .get_mut(..part.len())
                .ok_or_else(|| Fault::refused("bounce"))?;
            piece.copy_from_slice(part);
            self.write_aligned(position, piece)?;
            position = position.saturating_add(to_u64(part.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn unaligned_reads_of_a_file_are_bounced_and_its_end_is_an_error() {
        let path = std::env::temp_dir().join(format!("floe-device-{}", std::process::id()));
        let data: Vec<u8> = (0..200_001u32).map(|i| i.to_le_bytes()[0]).collect();
        File::create(&path).unwrap().write_all(&data).unwrap();
        let device = Device::open(&path, Access::Read).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(device.size_bytes(), 200_001);
        for (offset, length) in [(0u64, 1usize), (4095, 2), (1, 150_000), (199_999, 2)] {
            let mut buffer = vec![0; length];
            device.read_at(offset, &mut buffer).unwrap();
            let start = to_usize(offset);
            assert_eq!(buffer, data[start..start + length]);
        }
        let fault = device.read_at(200_000, &mut [0; 2]).unwrap_err();
        assert_eq!(fault.offset(), Some(200_000));
    }
}
