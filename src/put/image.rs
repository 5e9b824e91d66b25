//! An image that was opened: what `restore`, `verify` and `show` share. Its beginning is held in memory, so that what it is and
//! how long it must be are known before anything else happens with it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use crate::device::ReadAt;
use crate::error::{Error, Exit, Fault, FaultKind, Result};
use crate::fs::{self, Identity};
use crate::ptable::{self, Scheme, Table};
use crate::stream::copy::{BUFFER_BYTES, Ended};
use crate::stream::image::Piece;
use crate::stream::image::{Format, ImageReader};
use crate::stream::input::Input;
use crate::sys::ioctl;
use crate::sys::memory::Pages;
use crate::units::to_u64;

/// How much of the beginning is held, in bytes: every first superblock and partition table floe knows lies in it.
pub const HEAD_BYTES: usize = 1 << 20;

/// How long a pipe with a name may stay without a byte at first.
const FIFO_PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// What stands at the beginning of a device or image.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The filesystem (or swap, LUKS …).
    pub identity: Option<Identity>,
    /// The partition table.
    pub table: Option<Table>,
}

impl Content {
    /// Recognises; a table counts only where no filesystem stands, except GPT, which no filesystem looks like.
    pub fn probe(bytes: &dyn ReadAt) -> std::result::Result<Self, Fault> {
        let table = ptable::read_image(bytes)?;
        if table
            .as_ref()
            .is_some_and(|table| table.scheme == Scheme::Gpt)
        {
            return Ok(Self {
                identity: None,
                table,
            });
        }
        let identity = fs::probe(bytes)?;
        let table = table.filter(|_| identity.is_none());
        Ok(Self { identity, table })
    }

    /// Nothing known is there.
    pub fn is_empty(&self) -> bool {
        self.identity.is_none() && self.table.is_none()
    }

    /// The name of what is there.
    pub fn name(&self) -> &'static str {
        match (&self.identity, &self.table) {
            (Some(identity), _) => identity.kind.name(),
            (None, Some(table)) => table.scheme.name(),
            (None, None) => "unknown",
        }
    }

    /// How long an image of it is at least, in bytes.
    pub fn least_bytes(&self) -> u64 {
        let filesystem = self.identity.as_ref().map_or(0, |found| found.size_bytes);
        let table = self.table.as_ref().map_or(0, |table| table.end_bytes);
        filesystem.max(table)
    }
}

/// The beginning of something as if it were whole: zeros follow, without an end.
pub struct Head<'a>(pub &'a [u8]);

impl ReadAt for Head<'_> {
    fn size_bytes(&self) -> u64 {
        i64::MAX.unsigned_abs()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), Fault> {
        buffer.fill(0);
        let held = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..))
            .unwrap_or_default();
        for (to, from) in buffer.iter_mut().zip(held) {
            *to = *from;
        }
        Ok(())
    }
}

/// An image whose head was read.
pub struct Image {
    /// As the user named it.
    pub subject: String,
    /// What follows the head comes from here.
    pub reader: ImageReader<'static>,
    head: Pages,
    head_bytes: usize,
    /// What the head shows.
    pub content: Content,
    /// The open file, for comparing it with targets.
    pub file: File,
}

/// A path or `-` that was opened, and what its first bytes say.
pub struct Opened {
    /// As the user named it.
    pub subject: String,
    /// The open file.
    pub file: File,
    /// All of it.
    pub input: Input<'static>,
    /// How it is packed; [`Format::Zip`] is a snapshot.
    pub format: Format,
}

impl Opened {
    /// Opens it and looks at its first bytes.
    pub fn open(path: &OsStr) -> Result<Self> {
        let (subject, file) = open(path)?;
        let fail = |fault| image_error(&subject, fault);
        let other = file
            .try_clone()
            .map_err(|error| Error::failed(format_args!("{subject}: dup: {error}")))?;
        let mut input = Input::file(other, length_of(&file)).map_err(fail)?;
        let format = input.peek(6).and_then(Format::recognise).map_err(fail)?;
        Ok(Self {
            subject,
            file,
            input,
            format,
        })
    }
}

impl Image {
    /// Opens a path or `-` and reads the head.
    pub fn open(path: &OsStr) -> Result<Self> {
        Self::read(Opened::open(path)?)
    }

    /// Reads the head of what is no snapshot.
    pub fn read(opened: Opened) -> Result<Self> {
        let Opened {
            subject,
            file,
            input,
            format,
        } = opened;
        if format == Format::Zip {
            return Err(Error::refused(format_args!(
                "{subject}: is a snapshot, not an image"
            )));
        }
        let reader = ImageReader::new(input).map_err(|fault| image_error(&subject, fault))?;
        Self::head_of(subject, file, reader)
    }

    /// Reads the head of an image that comes through `reader`; `file` is what it comes from.
    pub fn head_of(subject: String, file: File, mut reader: ImageReader<'static>) -> Result<Self> {
        let fail = |fault| image_error(&subject, fault);
        let mut head = Pages::new(HEAD_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
        let head_bytes = reader.head(&mut head).map_err(fail)?;
        if head_bytes == 0 {
            return Err(Error::corrupt(format_args!(
                "{subject}: the image is empty"
            )));
        }
        let content = Content::probe(&Head(head.get(..head_bytes).unwrap_or_default()))
            .map_err(|fault| image_error(&subject, fault))?;
        Ok(Self {
            subject,
            reader,
            head,
            head_bytes,
            content,
            file,
        })
    }

    /// The first bytes of the image.
    pub fn head(&self) -> &[u8] {
        self.head.get(..self.head_bytes).unwrap_or_default()
    }

    /// Splits it for a copy: the reader goes to a thread of its own.
    pub fn into_parts(self) -> (Facts, ImageReader<'static>) {
        let facts = Facts {
            subject: self.subject,
            head: self.head,
            head_bytes: self.head_bytes,
            content: self.content,
        };
        (facts, self.reader)
    }
}

/// An image without its reader.
pub struct Facts {
    /// As the user named it.
    pub subject: String,
    /// Its beginning, in aligned memory.
    pub head: Pages,
    /// How much of `head` is the image's.
    pub head_bytes: usize,
    /// What the head shows.
    pub content: Content,
}

/// An image that ended must have reached the end that its superblock or partition table states.
pub fn check_end(subject: &str, content: &Content, ended: &Ended) -> Result<()> {
    let least = content.least_bytes();
    if ended.size_bytes >= least {
        return Ok(());
    }
    let what = if content.identity.is_some() {
        "superblock"
    } else {
        "partition table"
    };
    Err(Error::corrupt(format_args!(
        "{subject}: the image ends at {} bytes, but its {} {what} says {least}: it was cut off",
        ended.size_bytes,
        content.name(),
    )))
}

/// The line for a fault of the image itself: what is not ours to read is exit 3, like what is corrupt.
pub fn image_error(subject: &str, fault: Fault) -> Error {
    let error = Error::fault(subject, fault);
    match fault.kind() {
        FaultKind::Unsupported => error.with_exit(Exit::Corrupt),
        _ => error,
    }
}

fn open(path: &OsStr) -> Result<(String, File)> {
    if path == "-" {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(Error::refused(
                "stdin: is a terminal: give the image as a file, or through a pipe or '<'",
            ));
        }
        let fd = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3)
            .map_err(|e| Error::fault("stdin", Fault::io("dup", e)))?;
        return Ok(("stdin".into(), File::from(fd)));
    }
    let subject = OsString::from(path).display().to_string();
    let fail = |what, errno| Error::fault(&subject, Fault::io(what, errno));
    let refused = |what| Err(Error::refused(format_args!("{subject}: {what}")));
    let stat = rustix::fs::stat(path).map_err(|errno| fail("open", errno))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => return refused("is a directory, not an image"),
        FileType::RegularFile | FileType::BlockDevice | FileType::Fifo => {}
        _ => return refused("is neither a file nor a block device nor a pipe"),
    }
    // Not blocking, in case it has become something else since.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags | OFlags::LARGEFILE, Mode::empty())
        .map_err(|errno| fail("open", errno))?;
    if kind == FileType::Fifo {
        let mut fds = [PollFd::new(&file, PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&FIFO_PATIENCE)) == Ok(0) {
            return refused("is a pipe into which nobody writes");
        }
    }
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|errno| fail("F_GETFL", errno))?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)
        .map_err(|errno| fail("F_SETFL", errno))?;
    Ok((subject, file.into()))
}

/// The length of a regular file or block device that is read from its beginning.
fn length_of(file: &File) -> Option<u64> {
    let stat = rustix::fs::fstat(file).ok()?;
    let at_start = || rustix::fs::seek(file, SeekFrom::Current(0)).is_ok_and(|here| here == 0);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).ok().filter(|_| at_start()),
        FileType::BlockDevice => ioctl::blkgetsize64(file).ok().filter(|_| at_start()),
        _ => None,
    }
}

/// Length of the head as a number of bytes.
pub fn head_length(facts: &Facts) -> u64 {
    to_u64(facts.head_bytes)
}

/// Reads all of an image, and so checks it.
pub(crate) fn read_all(found: &mut Image) -> Result<Ended> {
    let fail = |fault| image_error(&found.subject, fault);
    let mut buffer = Pages::new(BUFFER_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
    // Each turn takes at least one granule of the input, or is the last.
    while found.reader.next(&mut buffer).map_err(fail)? != Piece::End {}
    Ok(Ended {
        size_bytes: found.reader.offset(),
        crc32: found.reader.crc32(),
        input_bytes: found.reader.input_bytes(),
    })
}
