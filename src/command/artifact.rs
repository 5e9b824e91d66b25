//! `floe artifact`: an image as a Mender artifact, format version 3, read once and kept nowhere in between.
//!
//! How it is built is `mender::writer`'s; here is where the image comes from, and what must hold for the output. Where that cannot be written
//! over (a pipe), the image is read twice: once for the figures, once for the bytes, which must agree.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use crate::cli::{Args, Common, Item};
use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};
use crate::mender::header::{array, now, payload_name};
use crate::mender::writer::{ArtifactFigures, ArtifactWriter, Maker, What};
use crate::put::supervise::supervise;
use crate::report::{self, Bytes, Elapsed, JsonObject, Told, exact, hex, millis, tell};
use crate::snapshot::archive::Catalog;
use crate::snapshot::replace::{self, Coming};
use crate::snapshot::{framed, image_path, kept};
use crate::stream::copy::{BUFFER_BYTES, CopyProgress, Ended, MEASURING, WRITING};
use crate::stream::image::probed::Image;
use crate::stream::image::whole::{self, Any};
use crate::stream::image::{Format, GRANULE_BYTES, ImageReader, ImageRun};
use crate::stream::input::{Input, is_zero};
use crate::stream::output::leaves_holes;
use crate::stream::partfile::PartFile;
use crate::sys::memory::Pages;
use crate::units::{to_u64, to_usize};

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Options {
    image: OsString,
    entry: Option<String>,
    output: Option<PathBuf>,
    any: Any,
    overwrite: bool,
    what: What,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    let mut image = None;
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if image.is_none() => image = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name {
                "--output" => options.output = Some(args.path()?),
                "--any-content" => options.any = Any::Yes,
                "--overwrite" => options.overwrite = true,
                "--entry" => options.entry = Some(args.text()?),
                "--golden" | "--empty" => return Err(emptied_before(name)),
                _ if options.what.option(name, &mut args)? => {}
                _ => return Err(args.unknown(name)),
            },
        }
    }
    options.image = image.ok_or_else(|| args.missing_or_piped("the IMAGE", "artifact -"))?;
    options.what.labels.check(&args)?;
    options.what.set_jobs(&args.common);
    options.output.take_if(|path| path == Path::new("-"));
    options.common = args.common;
    Ok(options)
}

/// What is emptied is decided where a filesystem is read; here bytes pass by.
fn emptied_before(name: &str) -> Error {
    Error::usage(format_args!(
        "artifact: {name}: an image goes in as it is; empty the files on the way to it: floe dump {name} … IMAGE | floe artifact - -o X.mender …, or from a board: floe pull HOST {name} … --artifact …"
    ))
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let about = ("source", &options.image.display() as _);
    super::begin(&options.common, about, options.output.as_deref().as_slice())?;
    tell(&options.common, &mut || {
        Ok(Box::new(make(&options, start)?))
    })
}

fn make(options: &Options, start: Instant) -> Result<ArtifactReport> {
    let shown = match &options.output {
        Some(path) => path.display().to_string(),
        None => "stdout".into(),
    };
    if options.output.is_none() {
        report::check_data("-o FILE", NOTHING_WRITTEN)?;
    }
    let scripts = options.what.labels.read_scripts()?.into();
    let path = kept::path_of(&options.image)?;
    let image = open(options, &path)?;
    let mut part = match &options.output {
        Some(path) => Some(part_file(path, &image.file, options.overwrite)?),
        None => None,
    };
    let sink = match &mut part {
        Some(part) => part.take_fd(),
        None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).ok(),
    };
    let sink = sink.ok_or_else(|| Error::failed("stdout: dup: failed"))?;
    let again = match leaves_holes(&sink) {
        true => None,
        false => Some(second(options, &path, &image)?),
    };
    let facts = PayloadFacts::of(&image, options);
    let (filesystem, input_length) = (image.content.name(), image.reader.input_length_bytes());
    let progress = Arc::new(CopyProgress::default());
    let maker = Arc::new(Maker {
        what: options.what.clone(),
        scripts,
        payload: facts.payload,
        modified: facts.modified,
        shown: shown.clone(),
    });
    let (making, watched) = (Arc::clone(&maker), Arc::clone(&progress));
    let work = move || match again {
        None => copy(image, ArtifactWriter::over(making, sink)?, &watched),
        Some(again) => copy_twice(image, again, making, sink, &watched),
    };
    let state = || String::from("nothing is complete");
    let figures = supervise(
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
    Ok(ArtifactReport {
        maker,
        figures,
        filesystem,
        total: start.elapsed(),
    })
}

/// An artifact that is complete.
struct ArtifactReport {
    maker: Arc<Maker>,
    figures: ArtifactFigures,
    filesystem: &'static str,
    total: Duration,
}

impl Told for ArtifactReport {
    fn json(&self) -> JsonObject {
        let (labels, figures) = (&self.maker.what.labels, &self.figures);
        let mut object = JsonObject::new();
        object
            .str("path", &self.maker.shown)
            .str("artifact_name", &labels.name)
            .raw("device_types", &array(&labels.device_types))
            .str("payload", &self.maker.payload)
            .str("filesystem", self.filesystem)
            .u64("size_bytes", figures.size_bytes)
            .u64("written_bytes", figures.written_bytes)
            .u64("total_ms", millis(self.total))
            .str("sha256", &hex(&figures.sha256));
        object
    }

    fn words(&self) -> String {
        let labels = &self.maker.what.labels;
        format!(
            "{}: artifact {} for {}: {} {}, {} written, in {}",
            self.maker.shown,
            labels.name,
            labels.device_types.join(" "),
            self.filesystem,
            exact(self.figures.size_bytes),
            Bytes(self.figures.written_bytes),
            Elapsed(self.total)
        )
    }
}

/// The part file of the output, which must not be the image.
fn part_file(path: &Path, image: &File, overwrite: bool) -> Result<PartFile> {
    let same = |other: std::fs::Metadata| {
        image
            .metadata()
            .is_ok_and(|meta| meta.dev() == other.dev() && meta.ino() == other.ino())
    };
    if std::fs::metadata(path).is_ok_and(same) {
        return Err(Error::refused(format_args!(
            "{}: is the image itself",
            path.display()
        )));
    }
    if !overwrite {
        replace::check(path, Coming::Artifact)?;
    }
    PartFile::create(path)
}

/// Opens the image, or an entry of a snapshot.
fn open(options: &Options, path: &OsStr) -> Result<Image> {
    let entry = options.entry.as_deref();
    // An artifact cannot say that its payload is a copy of something as it is.
    let any = match options.any {
        Any::Yes => Any::Yes,
        _ => Any::Never,
    };
    let opened = framed::open(path, options.output.as_deref(), &options.common)?;
    if opened.format != Format::Zip {
        if entry.is_some() {
            return Err(Error::refused(format_args!(
                "{}: is an image, --entry is for snapshots",
                opened.subject
            )));
        }
        return Image::read(opened, any);
    }
    if path == "-" {
        return Err(Error::refused("stdin: is a snapshot; give it as a file"));
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
        (wrong, _) => {
            let wrong = wrong.map_or_else(String::new, |name| format!(", not of '{name}'"));
            return Err(Error::refused(format_args!(
                "{}: is a snapshot of {}{wrong}; name one with --entry",
                opened.subject,
                names.join(", ")
            )));
        }
    };
    let subject = format!("{}: {name}", opened.subject);
    let reader = Input::source(catalog.reader(&image_path(name))?)
        .and_then(ImageReader::payload)
        .map_err(|fault| whole::image_error(&subject, fault))?;
    let image = Image::head_of(subject, opened.file, reader, any)?;
    image.check_head()?;
    Ok(image)
}

/// The image once more, for an output that cannot be written over.
fn second(options: &Options, path: &OsStr, image: &Image) -> Result<Image> {
    let kind = rustix::fs::fstat(&image.file)
        .map(|stat| FileType::from_raw_mode(stat.st_mode))
        .unwrap_or(FileType::Unknown);
    if path == "-" || !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
        return Err(Error::refused(
            "stdout: is a pipe, and so is the image; an artifact begins with the image's checksum, which is known at its end: give -o FILE, or the image as a file",
        ));
    }
    open(options, path)
}

/// What the file says of the payload.
struct PayloadFacts {
    payload: String,
    modified: u64,
}

impl PayloadFacts {
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

/// All of the image into the artifact.
fn copy(
    mut image: Image,
    mut writer: ArtifactWriter,
    progress: &CopyProgress,
) -> Result<ArtifactFigures> {
    let fail = |fault| whole::image_error(&image.subject, fault);
    for piece in image.head().chunks(to_usize(GRANULE_BYTES)) {
        match is_zero(piece) {
            true => writer.zeros(to_u64(piece.len()))?,
            false => writer.data(piece)?,
        }
    }
    let mut buffer = Pages::new(BUFFER_BYTES).map_err(|e| fail(Fault::io("mmap", e)))?;
    // Each turn takes at least one granule of the input, or is the last.
    loop {
        match image.reader.next(&mut buffer).map_err(fail)? {
            ImageRun::Data(length) => writer.data(buffer.get(..length).unwrap_or_default())?,
            ImageRun::Zeros(count) => writer.zeros(count)?,
            ImageRun::End => break,
        }
        let (done, input) = (image.reader.offset(), image.reader.input_bytes());
        progress.done_bytes.store(done, Ordering::Relaxed);
        progress.input_bytes.store(input, Ordering::Relaxed);
    }
    image.check_end(&Ended::of(&image.reader))?;
    writer.end()
}

/// In two passes, into anything.
fn copy_twice(
    first: Image,
    second: Image,
    maker: Arc<Maker>,
    sink: OwnedFd,
    progress: &CopyProgress,
) -> Result<ArtifactFigures> {
    let subject = first.subject.clone();
    let nowhere = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|error| Error::std("/dev/null", "open", &error))?;
    let measure = ArtifactWriter::begin(
        Arc::clone(&maker),
        nowhere.into(),
        &ArtifactFigures::default(),
    )?;
    progress.begin(MEASURING, 0);
    let expected = copy(first, measure, progress)?;
    progress.begin(WRITING, 0);
    let found = copy(
        second,
        ArtifactWriter::begin(maker, sink, &expected)?,
        progress,
    )?;
    if found == expected {
        return Ok(found);
    }
    Err(Error::failed(format_args!(
        "{subject}: changed while it was read; what was written is not an artifact"
    )))
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
}
