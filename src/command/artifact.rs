//! `floe artifact`: an image as a Mender artifact, format version 3, read once and kept nowhere in between.
//!
//! ```text
//! tar ─ version ─ manifest ─ header.tar.gz ─ data/0000.tar.gz
//!                  SHA-256 of the three others, the payload unpacked
//!                                                 gzip ─ tar ─ the image
//! ```
//! Everything before the image (the *front*) needs what is known only at the image's end: its length and SHA-256, and the length of the
//! compressed member. So the front is made such that its own length depends on none of them (the headers are stored, not compressed;
//! numbers have fixed widths), written with zeros in their place, and written over at the end. Where the output cannot be written
//! over (a pipe), the image is read twice: once for the figures, once for the bytes, which must agree. An output that is
//! interrupted has a manifest that no reader accepts, and a FILE given with `-o` has no name yet.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use rustix::fs::{FileType, SeekFrom, fsync};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::bundle::Catalog;
use super::dump::{self, leaves_holes};
use super::image::{self, Image, Opened};
use super::labels::{Labels, Script, array};
use super::memory::jobs;
use super::restore::supervise;
use super::taking;
use crate::cli::{Args, Common, Item};
use crate::crc;
use crate::error::{Error, Exit, Fault, Result};
use crate::report::{self, Bytes, JsonObject, ReportFile, Span, hex};
use crate::snapshot::image_path;
use crate::stream::copy::{Ended, Progress};
use crate::stream::gzip;
use crate::stream::image::{Format, GRANULE_BYTES, ImageReader, Piece};
use crate::stream::input::{Input, is_zero};
use crate::stream::output::Output;
use crate::stream::pack::{Packer, UNWATCHED, stored};
use crate::stream::partfile::PartFile;
use crate::stream::pipeline::Problem;
use crate::stream::tar::{self, Member};
use crate::units::{to_u64, to_usize};

/// The file `version`, all of it.
const VERSION: &[u8] = br#"{"format":"mender","version":3}"#;

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    image: OsString,
    entry: Option<String>,
    output: Option<PathBuf>,
    what: What,
    common: Common,
}

/// What the artifact is to be: all that does not come from the image.
#[derive(Debug)]
pub struct What {
    /// Its header.
    pub labels: Labels,
    /// Deflate at this level; `None`: not compressed.
    pub level: Option<u8>,
    /// Workers.
    pub jobs: usize,
}

impl Default for What {
    fn default() -> Self {
        Self {
            labels: Labels::default(),
            level: Some(6),
            jobs: jobs(None),
        }
    }
}

impl What {
    /// Takes `option` if it says what the artifact is to be.
    pub fn option(&mut self, option: &str, args: &mut Args) -> Result<bool> {
        match option {
            "-z" | "--compression" | "--compress" => {
                let raw = args.parsed(dump::compression, "gzip or none")?;
                self.level = (!raw).then_some(self.level.unwrap_or(6));
            }
            "--level" => self.level = Some(args.parsed(taking::level, "a level from 1 to 9")?),
            _ => return self.labels.option(option, args),
        }
        Ok(true)
    }
}

/// Reads the command line.
pub fn parse(mut args: Args) -> Result<Options> {
    let (mut image, mut entry, mut output) = (None, None, None);
    let mut what = What::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if image.is_none() => image = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name.as_str() {
                "-o" | "--output" => output = Some(args.path()?),
                "--entry" => entry = Some(args.text()?),
                _ if what.option(&name, &mut args)? => {}
                _ => return Err(args.unknown(&name)),
            },
        }
    }
    let image = image.ok_or_else(|| args.missing("the IMAGE"))?;
    what.labels.check(&args)?;
    what.jobs = jobs(args.common.jobs);
    Ok(Options {
        image,
        entry,
        output: output.filter(|path| path != Path::new("-")),
        what,
        common: args.common,
    })
}

/// Runs the verb.
pub fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let report = options.common.report.as_deref();
    let mut report = report.map(ReportFile::open).transpose()?;
    let shown = match &options.output {
        Some(path) => path.display().to_string(),
        None => "stdout".into(),
    };
    let is_terminal = rustix::termios::isatty(rustix::stdio::stdout());
    if options.output.is_none() && is_terminal {
        return Err(Error::refused(
            "stdout: is a terminal; nothing was written; redirect it, or give -o FILE",
        ));
    }
    let scripts = options.what.labels.read_scripts()?;
    let image = open(&options.image, options.entry.as_deref())?;
    let mut part = match &options.output {
        Some(path) => Some(part_file(path, &image.file)?),
        None => None,
    };
    let sink = match &mut part {
        Some(part) => part.take_fd(),
        None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).ok(),
    };
    let sink = sink.ok_or_else(|| Error::failed("stdout: dup: failed"))?;
    let again = match leaves_holes(&sink) {
        true => None,
        false => Some(second(&options, &image)?),
    };
    let facts = Facts::of(&image, &options);
    let (content, input_length) = (image.content.name(), image.reader.input_length_bytes());
    let progress = Arc::new(Progress::default());
    let maker = Maker {
        what: options.what,
        scripts,
        payload: facts.payload,
        modified: facts.modified,
        shown: shown.clone(),
        progress: Arc::clone(&progress),
    };
    let work = move || {
        let figures = match again {
            None => maker.write_over(image, sink)?,
            Some(again) => maker.write_twice(image, again, sink)?,
        };
        Ok((figures, maker))
    };
    let state = || String::from("nothing is complete");
    let (figures, maker) = supervise(
        &options.common,
        &progress,
        &state,
        &shown,
        input_length,
        work,
    )?;
    if let Some(part) = part {
        part.finish()?;
    }
    if let Some(file) = &mut report {
        file.write(&maker.json(&figures, content, start))?;
    }
    if !options.common.quiet {
        report::line(maker.words(&figures, content, start));
    }
    Ok(())
}

/// The part file of the output, which must not be the image.
fn part_file(path: &Path, image: &File) -> Result<PartFile> {
    let same = |other: std::fs::Metadata| {
        image
            .metadata()
            .is_ok_and(|meta| meta.dev() == other.dev() && meta.ino() == other.ino())
    };
    if std::fs::metadata(path).is_ok_and(same) {
        return Err(Error::refused(format_args!(
            "{}: is the image itself; nothing was written",
            path.display()
        )));
    }
    PartFile::create(path, 0o600)
}

/// Opens the image, or an entry of a snapshot.
fn open(path: &OsStr, entry: Option<&str>) -> Result<Image> {
    let opened = Opened::open(path)?;
    if opened.format != Format::Zip {
        if entry.is_some() {
            return Err(Error::refused(format_args!(
                "{}: is an image, --entry is for snapshots; nothing was written",
                opened.subject
            )));
        }
        return Image::read(opened);
    }
    if path == "-" {
        return Err(Error::refused(
            "stdin: is a snapshot; nothing was written; give it as a file",
        ));
    }
    let catalog = Catalog::open(Path::new(path))?;
    let names: Vec<&str> = catalog
        .snapshot
        .images
        .iter()
        .map(|image| image.name.as_str())
        .collect();
    let name = match (entry, names.as_slice()) {
        (Some(name), all) if all.contains(&name) => name,
        (None, [only]) => only,
        _ => {
            return Err(Error::refused(format_args!(
                "{}: is a snapshot of {}; nothing was written; name one with --entry",
                opened.subject,
                names.join(", ")
            )));
        }
    };
    let subject = format!("{}: {name}", opened.subject);
    let reader = Input::reader(catalog.reader(&image_path(name))?)
        .and_then(ImageReader::raw)
        .map_err(|fault| image::image_error(&subject, fault))?;
    Image::head_of(subject, opened.file, reader)
}

/// The image once more, for an output that cannot be written over.
fn second(options: &Options, image: &Image) -> Result<Image> {
    let kind = rustix::fs::fstat(&image.file)
        .map(|stat| FileType::from_raw_mode(stat.st_mode))
        .unwrap_or(FileType::Unknown);
    if options.image == "-" || !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
        return Err(Error::refused(
            "stdout: is a pipe, and so is the image; nothing was written; an artifact begins with the image's checksum, which is known at its end: give -o FILE, or the image as a file",
        ));
    }
    open(&options.image, options.entry.as_deref())
}

/// What the file says of the payload.
struct Facts {
    payload: String,
    modified: u64,
}

impl Facts {
    fn of(image: &Image, options: &Options) -> Self {
        let meta = image
            .file
            .metadata()
            .ok()
            .filter(std::fs::Metadata::is_file);
        let modified = meta.and_then(|meta| u64::try_from(meta.mtime()).ok());
        Self {
            payload: match &options.entry {
                Some(name) => payload_name(OsStr::new(&format!("{name}.img"))),
                None => payload_name(&options.image),
            },
            modified: modified.unwrap_or_else(now),
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The payload's name: the image's own without `.gz`, where Mender's tools take it.
pub fn payload_name(path: &OsStr) -> String {
    let name = Path::new(path).file_name().and_then(OsStr::to_str);
    let name = name.map_or("", |name| name.strip_suffix(".gz").unwrap_or(name));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.,".contains(&byte);
    let good = name.bytes().all(plain) && !name.starts_with(['.', '-']);
    if good && !name.is_empty() && name.len() <= tar::MAX_NAME {
        return name.into();
    }
    "rootfs.img".into()
}

/// What is known at the end of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Length of the image.
    pub size_bytes: u64,
    /// SHA-256 of the image.
    pub sha256: [u8; 32],
    /// Length of the data member.
    member_bytes: u64,
    /// Bytes of the packed input.
    read_bytes: u64,
    /// Length of the artifact.
    written_bytes: u64,
}

/// Puts an artifact together.
pub struct Maker {
    /// What it is to be.
    pub what: What,
    /// Its state scripts.
    pub scripts: Vec<Script>,
    /// The payload's name in it.
    pub payload: String,
    /// The payload's time, seconds since 1970.
    pub modified: u64,
    /// What messages call the output.
    pub shown: String,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// The front, and where the data member begins in it.
struct Front {
    bytes: Vec<u8>,
    member: usize,
}

impl Maker {
    /// In one pass, into an output that can be written over and ends where we begin.
    pub fn write_over(&self, image: Image, sink: OwnedFd) -> Result<Figures> {
        let fail = |what, errno| self.output_error(Fault::io(what, errno));
        let begin =
            rustix::fs::seek(&sink, SeekFrom::Current(0)).map_err(|errno| fail("seek", errno))?;
        let file = rustix::io::fcntl_dupfd_cloexec(&sink, 3).map_err(|errno| fail("dup", errno))?;
        let figures = self.write(image, sink, None)?;
        let front = self.front(&figures)?;
        write_at(file.as_fd(), begin, &front.bytes).map_err(|errno| fail("write", errno))?;
        match fsync(&file) {
            Ok(()) | Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(figures),
            Err(errno) => Err(fail("fsync", errno)),
        }
    }

    /// In two passes, into anything.
    fn write_twice(&self, first: Image, second: Image, sink: OwnedFd) -> Result<Figures> {
        let subject = first.subject.clone();
        let nowhere = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(|error| Error::failed(format_args!("/dev/null: open: {error}")))?;
        let expected = self.write(first, nowhere.into(), None)?;
        let found = self.write(second, sink, Some(&expected))?;
        if found == expected {
            return Ok(found);
        }
        Err(Error::failed(format_args!(
            "{subject}: changed while it was read; what was written is not an artifact"
        )))
    }

    /// Front, image, end. Without `figures` the front has zeros in their place.
    fn write(&self, mut image: Image, sink: OwnedFd, figures: Option<&Figures>) -> Result<Figures> {
        let holes = leaves_holes(&sink);
        let output = Output::new(sink, UNWATCHED, false);
        let (level, jobs) = (self.what.level, self.what.jobs);
        let mut packer =
            Packer::new(output, level, jobs, holes).map_err(|fault| self.output_error(fault))?;
        let fail = |problem| self.problem(problem);
        let front = self.front(figures.unwrap_or(&Figures::default()))?;
        packer.output().write_all(&front.bytes).map_err(fail)?;
        let sha256 = self.copy(&mut image, &mut packer)?;
        let size_bytes = image.reader.offset();
        let ended = Ended {
            size_bytes,
            crc32: image.reader.crc32(),
            input_bytes: image.reader.input_bytes(),
        };
        image::check_end(&image.subject, &image.content, &ended)?;
        let end = tar::padding(size_bytes).saturating_add(tar::END_BYTES);
        packer.zeros(end).map_err(fail)?;
        let inner = self
            .inner_header(size_bytes)
            .map_err(|fault| self.output_error(fault))?;
        let before = (crc::crc32(0, &inner), to_u64(inner.len()));
        packer.finish(before).map_err(fail)?;
        let written_bytes = packer.written_bytes();
        let member_bytes = written_bytes.saturating_sub(to_u64(front.member));
        let end = tar::padding(member_bytes).saturating_add(tar::END_BYTES);
        packer.output().write_zeros(end).map_err(fail)?;
        Ok(Figures {
            size_bytes,
            sha256,
            member_bytes,
            read_bytes: ended.input_bytes,
            written_bytes: written_bytes.saturating_add(end),
        })
    }

    /// The image's bytes into the packer; gives their SHA-256.
    fn copy(&self, image: &mut Image, packer: &mut Packer) -> Result<[u8; 32]> {
        let fail = |problem| self.problem(problem);
        let mut hash = Sha256::new();
        let granule = to_usize(GRANULE_BYTES);
        for piece in image.head().chunks(granule) {
            hash.update(piece);
            if is_zero(piece) {
                packer.zeros(to_u64(piece.len())).map_err(fail)?;
                continue;
            }
            let mut chunk = packer.chunk().map_err(fail)?;
            if let Some(room) = chunk.raw.get_mut(..piece.len()) {
                room.copy_from_slice(piece);
            }
            packer.data(chunk, piece.len()).map_err(fail)?;
        }
        let zeros = vec![0; granule];
        // Each turn takes at least one granule of the input, or is the last.
        loop {
            let mut chunk = packer.chunk().map_err(fail)?;
            let piece = image
                .reader
                .next(&mut chunk.raw)
                .map_err(|fault| image::image_error(&image.subject, fault))?;
            let length = match piece {
                Piece::Data(length) => length,
                Piece::Zeros(_) | Piece::End => 0,
            };
            hash.update(chunk.raw.get(..length).unwrap_or_default());
            packer.data(chunk, length).map_err(fail)?;
            match piece {
                Piece::Data(_) => {}
                Piece::Zeros(count) => {
                    packer.zeros(count).map_err(fail)?;
                    hash_zeros(&mut hash, count, &zeros);
                }
                Piece::End => return Ok(hash.finalize().into()),
            }
            let progress = &self.progress;
            progress
                .done_bytes
                .store(image.reader.offset(), Ordering::Relaxed);
            progress
                .input_bytes
                .store(image.reader.input_bytes(), Ordering::Relaxed);
        }
    }

    /// Everything before the image's first byte.
    fn front(&self, figures: &Figures) -> Result<Front> {
        self.try_front(figures)
            .map_err(|fault| self.output_error(fault))
    }

    fn try_front(&self, figures: &Figures) -> std::result::Result<Front, Fault> {
        let suffix = if self.what.level.is_some() { ".gz" } else { "" };
        let mut header = self.what.labels.header(&self.scripts, &figures.sha256)?;
        if self.what.level.is_some() {
            header = gzip_stored(&header);
        }
        let sum = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        let manifest = format!(
            "{}  data/0000/{}\n{}  header.tar{suffix}\n{}  version\n",
            hex(&figures.sha256),
            self.payload,
            sum(&header),
            sum(VERSION),
        );
        let member = |name, size_bytes| Member {
            name,
            mode: 0o600,
            modified: 0,
            size_bytes,
        };
        let mut bytes = Vec::new();
        tar::append(&mut bytes, member("version", 0), VERSION)?;
        tar::append(&mut bytes, member("manifest", 0), manifest.as_bytes())?;
        let name = format!("header.tar{suffix}");
        tar::append(&mut bytes, member(&name, 0), &header)?;
        let name = format!("data/0000.tar{suffix}");
        bytes.extend_from_slice(&member(&name, figures.member_bytes).header()?);
        let start = bytes.len();
        let inner = self.inner_header(figures.size_bytes)?;
        if self.what.level.is_some() {
            bytes.extend_from_slice(&gzip::HEADER);
            stored(&mut bytes, &inner);
        } else {
            bytes.extend_from_slice(&inner);
        }
        Ok(Front {
            bytes,
            member: start,
        })
    }

    /// The header of the only file in `data/0000.tar`: the image.
    fn inner_header(&self, size_bytes: u64) -> std::result::Result<[u8; tar::BLOCK_BYTES], Fault> {
        Member {
            name: &self.payload,
            mode: 0o644,
            modified: self.modified,
            size_bytes,
        }
        .header()
    }

    fn output_error(&self, fault: Fault) -> Error {
        Error::fault(&self.shown, fault)
            .with_exit(Exit::Failed)
            .leaving("what was written is not complete")
    }

    fn problem(&self, problem: Problem) -> Error {
        match problem {
            Problem::ClosedPipe => Error::Silent(Exit::Failed),
            Problem::Read(_, fault) | Problem::Write(fault) | Problem::Internal(fault) => {
                self.output_error(fault)
            }
        }
    }

    /// The report.
    pub fn json(&self, figures: &Figures, filesystem: &str, start: Instant) -> JsonObject {
        let mut object = JsonObject::new();
        object
            .str("path", &self.shown)
            .str("artifact_name", &self.what.labels.name)
            .raw("device_types", &array(&self.what.labels.device_types))
            .str("payload", &self.payload)
            .str("filesystem", filesystem)
            .u64("size_bytes", figures.size_bytes)
            .u64("read_bytes", figures.read_bytes)
            .u64("written_bytes", figures.written_bytes)
            .u64(
                "total_ms",
                u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            )
            .str("sha256", &hex(&figures.sha256));
        object
    }

    /// The last line.
    pub fn words(&self, figures: &Figures, filesystem: &str, start: Instant) -> String {
        format!(
            "{}: artifact {} for {}: {filesystem} {} ({} bytes), {} written, in {}",
            self.shown,
            self.what.labels.name,
            self.what.labels.device_types.join(" "),
            Bytes(figures.size_bytes),
            figures.size_bytes,
            Bytes(figures.written_bytes),
            Span(start.elapsed())
        )
    }
}

/// One gzip member of stored blocks: as long whatever the bytes are.
fn gzip_stored(bytes: &[u8]) -> Vec<u8> {
    let mut out = gzip::HEADER.to_vec();
    stored(&mut out, bytes);
    out.extend_from_slice(&crate::stream::deflate::FINAL_BLOCK);
    out.extend_from_slice(&gzip::trailer(crc::crc32(0, bytes), to_u64(bytes.len())));
    out
}

fn hash_zeros(hash: &mut Sha256, count: u64, zeros: &[u8]) {
    let mut left = count;
    while left > 0 {
        let piece = zeros.get(..to_usize(left)).unwrap_or(zeros);
        hash.update(piece);
        left -= to_u64(piece.len());
    }
}

fn write_at(file: BorrowedFd<'_>, begin: u64, bytes: &[u8]) -> std::result::Result<(), Errno> {
    let mut done = 0usize;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(file, rest, begin.saturating_add(to_u64(done))) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_has_the_image_s_name_where_mender_takes_it() {
        let name = |text: &str| payload_name(OsStr::new(text));
        assert_eq!(name("/a/root_1.0,x-y.ext4"), "root_1.0,x-y.ext4");
        assert_eq!(name("data.img.gz"), "data.img");
        for other in ["-", "/", "a b.img", "..", ".gz", "ä", &"x".repeat(101)] {
            assert_eq!(name(other), "rootfs.img", "{other}");
        }
    }

    #[test]
    fn the_front_is_as_long_whatever_the_figures_are() {
        for level in [None, Some(6)] {
            let maker = Maker {
                what: What {
                    level,
                    ..What::default()
                },
                scripts: Vec::new(),
                payload: "rootfs.img".into(),
                modified: 1,
                shown: "x".into(),
                progress: Arc::default(),
            };
            let zero = maker.front(&Figures::default()).unwrap();
            let large = maker
                .front(&Figures {
                    size_bytes: u64::MAX,
                    sha256: [0xff; 32],
                    member_bytes: u64::MAX,
                    ..Figures::default()
                })
                .unwrap();
            assert_eq!(zero.bytes.len(), large.bytes.len());
            assert_eq!(zero.member, large.member);
            assert_ne!(zero.bytes, large.bytes);
        }
    }
}
