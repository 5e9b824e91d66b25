//! An image that was opened: what `restore`, `verify` and `show` share. Its beginning is held in memory, so that what it is and
//! how long it must be are known before anything else happens with it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use crate::cli::Common;
use crate::error::{Cause, Error, Exit, Fault, FaultKind, Result};
use crate::features;
use crate::put::{held, lanes};
use crate::report::{Progress, Step};
use crate::stream::artifact::{self, Labels};
use crate::stream::bmap;
use crate::stream::copy::{BUFFER_BYTES, Ended};
use crate::stream::frames::MAGIC;
use crate::stream::image::Piece;
use crate::stream::image::{Format, ImageReader, LOOK_BYTES};
use crate::stream::input::Input;
use crate::stream::partfile;
use crate::sys::ioctl;
use crate::sys::memory::Pages;
use crate::units::to_u64;

use crate::content::{Place, Seen};

pub(crate) use crate::content::{Content, HEAD_BYTES, Head};

/// How long a pipe with a name may stay without a byte at first.
const FIFO_PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// An image whose head was read.
pub(crate) struct Image {
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
    /// What the artifact says of itself, where it is one.
    pub artifact: Option<Labels>,
    /// As in [`Opened`].
    pub has_come: bool,
    any: Any,
}

/// Whether bytes that show no image are taken for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Any {
    /// No: they are corrupt input.
    #[default]
    No,
    /// The stream says that it is a copy of something as it is, and that is believed; before it was read the same as [`Any::No`].
    AsItIs,
    /// No, even where the stream says so: what is made of it could not say it again.
    Never,
    /// `--any-content` was given.
    Yes,
}

/// A path or `-` that was opened, and what its first bytes say.
pub(crate) struct Opened {
    /// As the user named it.
    pub subject: String,
    /// The open file.
    pub file: File,
    /// All of it.
    pub input: Input<'static>,
    /// How it is packed; [`Format::Zip`] is a snapshot.
    pub format: Format,
    /// All of it has come, and was found complete, before any of it is used: frames.
    pub has_come: bool,
}

impl Opened {
    /// Opens what is to be read to its end, and looks at its first bytes: what others may write to meanwhile is refused, and a device
    /// is held.
    pub(crate) fn open(path: &OsStr) -> Result<Self> {
        let (subject, file) = open(path)?;
        held::hold_still(&subject, &file)?;
        Self::of(subject, file)
    }

    /// Only looks at its first bytes, whoever uses it.
    pub(crate) fn look(path: &OsStr) -> Result<Self> {
        let (subject, file) = open(path)?;
        Self::of(subject, file)
    }

    fn of(subject: String, file: File) -> Result<Self> {
        let fail = |fault| image_error(&subject, fault);
        let other = file
            .try_clone()
            .map_err(|error| Error::failed(format_args!("{subject}: dup: {error}")))?;
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
            has_come: false,
        })
    }
}

impl Image {
    /// Opens a path or `-` only to look at it, and reads the head.
    pub(crate) fn look(path: &OsStr, any: Any) -> Result<Self> {
        Self::read(Opened::look(path)?, any)
    }

    /// Reads the head of what is no snapshot.
    pub(crate) fn read(opened: Opened, any: Any) -> Result<Self> {
        let Opened {
            subject,
            file,
            input,
            format,
            has_come,
        } = opened;
        let fail = |fault| image_error(&subject, fault);
        let (reader, artifact) = match format {
            Format::Zip => {
                return Err(Error::refused(match features::SNAPSHOTS {
                    true => format!("{subject}: is a snapshot, not an image"),
                    false => format!(
                        "{subject}: {}",
                        features::without(".zip").unwrap_or_default()
                    ),
                }));
            }
            Format::Frames => {
                return Err(Error::corrupt(format_args!(
                    "{subject}: is what floe dump --frames sends, not an image: floe restore, verify and artifact take it, and make one of it"
                )));
            }
            Format::Mender if !features::MENDER => {
                let why = features::without(".mender").unwrap_or_default();
                return Err(Error::refused(format_args!("{subject}: {why}")));
            }
            Format::Mender => {
                let (labels, payload) = artifact::open(input).map_err(fail)?;
                let input = Input::source(Box::new(payload)).map_err(fail)?;
                (ImageReader::payload(input).map_err(fail)?, Some(labels))
            }
            Format::Raw | Format::Gzip => (ImageReader::new(input).map_err(fail)?, None),
        };
        let image = Self::head_of(subject, file, reader, any)?;
        image.check_head()?;
        Ok(Self {
            artifact,
            has_come,
            ..image
        })
    }

    /// Reads the head of an image that comes through `reader`; `file` is what it comes from.
    pub(crate) fn head_of(
        subject: String,
        file: File,
        mut reader: ImageReader<'static>,
        any: Any,
    ) -> Result<Self> {
        let fail = |fault| image_error(&subject, fault);
        let mut head = Pages::new(HEAD_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
        let head_bytes = reader.head(&mut head).map_err(fail)?;
        if head_bytes == 0 {
            return Err(Error::corrupt(format_args!(
                "{subject}: the image is empty"
            )));
        }
        let any = match (reader.is_as_it_is(), any) {
            (true, Any::No) => Any::AsItIs,
            // A payload is what was wrapped, cut or not.
            (_, Any::No) if reader.format() == Format::Mender => Any::Never,
            (_, any) => any,
        };
        let is_taken = matches!(any, Any::Yes | Any::AsItIs);
        let content = match Content::probe(&Head(head.get(..head_bytes).unwrap_or_default())) {
            // A damaged filesystem, and a copy of it as it is.
            Err(fault) if is_taken && fault.kind() != FaultKind::Io => Content::default(),
            content => content.map_err(|fault| image_error(&subject, fault))?,
        };
        reader.watch(&content, head.get(..head_bytes).unwrap_or_default());
        Ok(Self {
            subject,
            reader,
            head,
            head_bytes,
            content,
            file,
            artifact: None,
            has_come: false,
            any,
        })
    }

    /// What can be said before the rest is read: whether it begins as an image does, and of a raw file whether it is long enough.
    pub(crate) fn check_head(&self) -> Result<()> {
        if matches!(self.any, Any::Yes | Any::AsItIs) {
            return Ok(());
        }
        let word = self.content.judge_head(self.head());
        word.map_err(|what| not_an_image(&self.subject, &what))?;
        let length = self.reader.length_bytes();
        let cut = length.and_then(|length| self.content.cut_off(length));
        cut.map_or(Ok(()), |what| Err(cut_off(&self.subject, self.any, &what)))?;
        check_partitions(&self.subject, self.reader.seen())
    }

    /// Reads all of a second one that comes from the same file, when that is a regular one and was read from its beginning, and so
    /// checks it; then goes back to where this one stands. Nothing where that cannot be.
    pub(crate) fn check_beforehand(
        &self,
        common: &Common,
        line: &mut Progress,
    ) -> Result<Option<Ended>> {
        let again = self.again()?;
        again
            .map(|mut again| read_all(&mut again, common, line))
            .transpose()
    }

    /// A second one from the same file.
    fn again(&self) -> Result<Option<Self>> {
        let is_file = self.file.metadata().is_ok_and(|meta| meta.is_file());
        if !is_file || self.reader.input_length_bytes().is_none() && self.artifact.is_none() {
            return Ok(None);
        }
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let again = File::open(path).map_err(|_| crate::mounts::not_mounted("/proc", "proc"))?;
        Self::read(Opened::of(self.subject.clone(), again)?, self.any).map(Some)
    }

    /// `--bmap`: that every range of it is in the image as it says.
    pub(crate) fn check_bmap(&self, path: &Path) -> Result<()> {
        let name = &path.display();
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| Error::std(name, "open", &error))?;
        let read = file.take(bmap::MOST_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| Error::std(name, "read", &error))?;
        let text = bmap::Text::new(bytes).map_err(|fault| Error::fault(name, fault))?;
        let Some(mut again) = self.again()? else {
            return Err(Error::refused(format_args!(
                "{}: cannot be read twice, and --bmap checks all of it before the first write; give it as a file",
                self.subject
            )));
        };
        let head = again.head.get(..again.head_bytes).unwrap_or_default();
        let checked = text.check(head, &mut again.reader);
        let subject = &self.subject;
        checked.map_err(|fault| image_error(&format!("{subject}, by {name}"), fault))
    }

    /// The first bytes of the image.
    pub(crate) fn head(&self) -> &[u8] {
        self.head.get(..self.head_bytes).unwrap_or_default()
    }

    /// That it ended well: gives back how.
    pub(crate) fn check_end(&self, ended: &Ended) -> Result<Ended> {
        let (content, head) = (&self.content, self.head());
        check_end(&self.subject, self.any, content, head, ended)?;
        Ok(ended.clone())
    }

    /// Splits it for a copy: the reader goes to a thread of its own.
    pub(crate) fn into_parts(self) -> (Facts, ImageReader<'static>) {
        let facts = Facts {
            subject: self.subject,
            head: self.head,
            head_bytes: self.head_bytes,
            content: self.content,
            any: self.any,
        };
        (facts, self.reader)
    }
}

/// An image without its reader.
pub(crate) struct Facts {
    /// As the user named it.
    pub subject: String,
    /// Its beginning, in aligned memory.
    pub head: Pages,
    /// How much of `head` is the image's.
    pub head_bytes: usize,
    /// What the head shows.
    pub content: Content,
    any: Any,
}

impl Facts {
    /// See [`check_end`].
    pub(crate) fn check_end(&self, ended: &Ended) -> Result<()> {
        let head = self.head.get(..self.head_bytes).unwrap_or_default();
        check_end(&self.subject, self.any, &self.content, head, ended)
    }
}

/// An image that ended must be whole: the rule is [`Content::judge`].
fn check_end(subject: &str, any: Any, content: &Content, head: &[u8], ended: &Ended) -> Result<()> {
    match any {
        Any::Yes => return Ok(()),
        Any::AsItIs => return check_alone(subject, ended),
        Any::No | Any::Never => {}
    }
    // Appended with >> to an older one: what came back would be the older one.
    let mut seen = ended.seen.iter();
    let second = seen.find_map(|seen| content.second(ended.size_bytes, seen));
    if let Some(what) = second {
        return Err(not_an_image(subject, &what));
    }
    let word = content.judge(head, ended.size_bytes, &ended.tail);
    let cut = content.cut_off(ended.size_bytes);
    word.map_err(|what| match cut {
        Some(_) => cut_off(subject, any, &what),
        None => not_an_image(subject, &what),
    })?;
    check_partitions(subject, &ended.seen)
}

/// No dump makes such a one, but with --whole, and then says so.
fn check_partitions(subject: &str, seen: &[Seen]) -> Result<()> {
    match seen.iter().find_map(Seen::too_large) {
        Some(what) => Err(not_an_image(subject, &what)),
        None => Ok(()),
    }
}

/// A copy of something as it is was written in one go, as one member: what follows was appended, whatever it is.
fn check_alone(subject: &str, ended: &Ended) -> Result<()> {
    let is_more = |seen: &Seen| matches!(seen.place, Place::Member(_)) && !seen.bytes.is_empty();
    match ended.seen.iter().find(|seen| is_more(seen)) {
        None => Ok(()),
        Some(seen) => Err(not_an_image(
            subject,
            &format!(
                "holds something else behind the copy that ends at byte {}: was it appended with >>?",
                seen.offset
            ),
        )),
    }
}

fn not_an_image(subject: &str, what: &str) -> Error {
    let help = piece_of_another(subject);
    let help = help.unwrap_or_else(|| "; --any-content takes it as it is".into());
    Error::corrupt(format_args!("{subject}: {what}{help}"))
}

/// What is an image, and not all of it.
fn cut_off(subject: &str, any: Any, what: &str) -> Error {
    let help = match (piece_of_another(subject), missing_piece(subject)) {
        (Some(help), _) => help,
        (None, missing) if missing.is_empty() => match any {
            Any::Never => "; bring the whole file, or --any-content takes it as it is",
            _ => "; bring the whole file",
        }
        .into(),
        (None, missing) => missing,
    };
    Error::corrupt(format_args!("{subject}: {what}{help}"))
}

/// What helps where a later piece of `--split` was named.
fn piece_of_another(subject: &str) -> Option<String> {
    let first = partfile::first_of(Path::new(subject))?;
    Some(format!(
        "; it is a piece of an image: name the first one, {}, with all the others beside it",
        first.display()
    ))
}

/// Of pieces of `--split` that end early: the one that would come next.
fn missing_piece(subject: &str) -> String {
    let stem = subject.strip_suffix(".001").unwrap_or_default();
    let mut next =
        (2..=partfile::MOST_PIECES).map(|number| partfile::piece(Path::new(stem), number));
    match next.find(|piece| !stem.is_empty() && !piece.exists()) {
        Some(piece) => format!("; {}, which would be next, is not there", piece.display()),
        None => String::new(),
    }
}

/// The line for a fault of the image itself: what is not ours to read is exit 3, like what is corrupt.
pub(crate) fn image_error(subject: &str, fault: Fault) -> Error {
    let missing = match fault.is(Cause::EndsEarly) {
        true => missing_piece(subject),
        false => String::new(),
    };
    let error = Error::with(fault.exit(), format_args!("{subject}: {fault}{missing}"));
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
                return Err(Error::failed(format_args!("{name}: open: {error}")));
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

/// Length of the head as a number of bytes.
pub(crate) fn head_length(facts: &Facts) -> u64 {
    to_u64(facts.head_bytes)
}

/// Reads all of an image, and so checks it; on as many CPUs as were asked for, where it can be.
pub(crate) fn read_all(found: &mut Image, common: &Common, line: &mut Progress) -> Result<Ended> {
    let fail = |fault| image_error(&found.subject, fault);
    let length = found.reader.input_length_bytes();
    let one_file = length.filter(|length| {
        found
            .file
            .metadata()
            .is_ok_and(|meta| meta.len() == *length)
            && found.reader.begins_as_ours()
            // What stands in partitions is looked at in order.
            && found.content.partitions().is_empty()
    });
    let in_lanes = one_file.and_then(|length_bytes| {
        lanes::read(&found.file, length_bytes, common.jobs, &mut |done_bytes| {
            let step = Step {
                phase: "checking",
                subject: "",
                done_bytes,
                total_bytes: length_bytes,
            };
            line.show(false, step);
        })
    });
    if let Some(ended) = in_lanes {
        line.clear();
        return found.check_end(&ended);
    }
    let mut buffer = Pages::new(BUFFER_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
    let least_bytes = found.content.least_bytes();
    // Each turn takes at least one granule of the input, or is the last.
    while found.reader.next(&mut buffer).map_err(fail)? != Piece::End {
        // Of a pipe the image says by itself how long it is at least.
        let (done_bytes, total_bytes) = match length {
            Some(length) => (found.reader.input_bytes(), length),
            None => (found.reader.offset(), least_bytes),
        };
        let step = Step {
            phase: "checking",
            subject: "",
            done_bytes,
            total_bytes,
        };
        line.show(false, step);
    }
    line.clear();
    found.check_end(&Ended::of(&found.reader))
}
