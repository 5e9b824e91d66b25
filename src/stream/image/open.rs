//! A path or `-` opened as an image: files, devices and pipes, all pieces of `--split` in a row, and what its first bytes say.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use crate::content::{Format, LOOK_BYTES};
use crate::error::{Error, Fault, Result};
use crate::stream::frames::MAGIC;
use crate::stream::image::held;
use crate::stream::image::whole::image_error;
use crate::stream::input::Input;
use crate::stream::partfile;
use crate::sys::ioctl;

/// How long a pipe with a name may stay without a byte at first.
const FIFO_PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// A path or `-` that was opened, and what its first bytes say.
pub(crate) struct OpenedImage {
    /// As the user named it.
    pub subject: String,
    /// The open file.
    pub file: File,
    /// All of it.
    pub input: Input<'static>,
    /// How it is packed; [`Format::Zip`] is a snapshot.
    pub format: Format,
    /// Of frames, all of which have come and were found complete before any of it is used: length of what they bring, in bytes.
    pub come_bytes: Option<u64>,
}

impl OpenedImage {
    /// Opens what is to be read to its end, and looks at its first bytes: what others may write to meanwhile is refused, and a device
    /// is held.
    pub(crate) fn open(path: &OsStr) -> Result<Self> {
        held::hold_named(path)?;
        let (subject, file) = open(path)?;
        held::hold_still(&subject, &file)?;
        Self::of(subject, file)
    }

    /// Only looks at its first bytes, whoever uses it.
    pub(crate) fn look(path: &OsStr) -> Result<Self> {
        let (subject, file) = open(path)?;
        Self::of(subject, file)
    }

    pub(super) fn of(subject: String, file: File) -> Result<Self> {
        let fail = |fault| image_error(&subject, fault);
        let other = file
            .try_clone()
            .map_err(|error| Error::std(&subject, "dup", &error))?;
        let mut length = length_of(&file);
        let more = pieces(&subject, &file)?;
        for piece in &more {
            length = length.and_then(|sum| sum.checked_add(length_of(piece)?));
        }
        let mut input = Input::files(other, more, length).map_err(fail)?;
        // Who sends frames may wait for an answer to the first ones.
        let mut format = Format::recognise(input.peek(MAGIC.len()).map_err(fail)?);
        if format != Format::Frames {
            format = Format::recognise(input.peek(LOOK_BYTES).map_err(fail)?);
        }
        Ok(Self {
            subject,
            file,
            input,
            format,
            come_bytes: None,
        })
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

/// What follows FILE.001 of `dump --split`: FILE.002 and so on; one that is missing in between is an error.
fn pieces(subject: &str, first: &File) -> Result<Vec<File>> {
    let mut more = Vec::new();
    let regular = first.metadata().is_ok_and(|meta| meta.is_file());
    let Some(stem) = subject.strip_suffix(".001").filter(|_| regular) else {
        return Ok(more);
    };
    let piece = |number| partfile::piece(Path::new(stem), number);
    for number in 2..=partfile::MOST_PIECES {
        let name = piece(number);
        // Before it is opened: a pipe would wait, and a folder opens as well.
        let kind = std::fs::metadata(&name).map(|meta| meta.file_type());
        if let Ok(kind) = kind
            && !kind.is_file()
        {
            let what = if kind.is_dir() {
                "a folder"
            } else {
                "no regular file"
            };
            return Err(Error::refused(format_args!(
                "{}: is {what}, and has the name of a piece of {subject}; move it",
                name.display()
            )));
        }
        match File::open(&name) {
            Ok(file) => more.push(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return match (number..=partfile::MOST_PIECES)
                    .map(piece)
                    .find(|piece| piece.exists())
                {
                    Some(later) => Err(Error::corrupt(format_args!(
                        "{}: is missing: {subject} is the first of several pieces, and {} is there",
                        name.display(),
                        later.display()
                    ))),
                    None => Ok(more),
                };
            }
            Err(error) => {
                let name = name.display();
                return Err(Error::std(name, "open", &error));
            }
        }
    }
    Ok(more)
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
