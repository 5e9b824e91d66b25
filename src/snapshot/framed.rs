//! Frames as what they stand for: a gzip image or a snapshot, read as if it had come like that.
//!
//! All frames come first and are held; then a thread writes the standard format into a pipe, and whoever reads it checks it as he
//! checks any other. Nothing of it is in a file that has a name, but what a pull holds for the next one ([`hold_named`]).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::pipe::PipeFlags;

use crate::cli::Common;
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::json::{self, Value};
use crate::report::{self, Bytes, JsonObject, json_list};
use crate::snapshot::archive::Catalog;
use crate::snapshot::{
    CHECKSUMS, CHECKSUMS_SHA256, Checksum, Checksums, image_name, image_path, sha256_line,
};
use crate::stream::archive::{LastEntries, TextEntry, Written, ZipEmitter};
use crate::stream::frames::known::{EarlierImages, KnownHere};
use crate::stream::frames::receive::{self, HeldStream, Received};
use crate::stream::frames::{Framed, StreamHeader};
use crate::stream::gzip;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::whole::image_error;
use crate::stream::image::{Format, ImageReader, LOOK_BYTES};
use crate::stream::input::{Input, Supply};
use crate::stream::output::{GzipEmitter, Output, TotalsCell};
use crate::stream::partfile::{self, Left};
use crate::stream::pipeline::{Meter, Problem};
use crate::stream::plan::CHUNK_BYTES;
use crate::take::memory;
use crate::threads::{Lock, Started};
use crate::units::to_u64;

/// What stands behind the images of a snapshot, and what it says; `maps`: of each image a word, and how much of it was used.
pub(crate) fn closing<'a>(
    written: &[Written],
    consistent: &str,
    frozen_ms: u64,
    maps: impl Iterator<Item = (&'a str, Option<u64>)>,
) -> (Checksums, Vec<TextEntry>) {
    let mut maps = maps;
    let mut entries = Vec::with_capacity(written.len());
    for entry in written {
        let map = image_name(&entry.path).and_then(|_| maps.next());
        entries.push(Checksum {
            path: entry.path.clone(),
            size_bytes: entry.sums.raw_bytes,
            stored_bytes: entry.sums.stored_bytes,
            crc32: entry.sums.crc32,
            sha256: entry.sha256,
            map: map.map_or_else(String::new, |(map, _)| map.into()),
            used_bytes: map.and_then(|(_, used_bytes)| used_bytes),
        });
    }
    let checksums = Checksums {
        frozen_ms,
        consistent: consistent.into(),
        entries,
    };
    let json = checksums.to_json().into_bytes();
    let line = sha256_line(&json).into_bytes();
    let text = |path: &str, bytes| TextEntry {
        path: path.into(),
        bytes,
    };
    let texts = vec![text(CHECKSUMS, json), text(CHECKSUMS_SHA256, line)];
    (checksums, texts)
}

/// Opens what the user named; frames are taken to their end, and what they stand for is opened. They are held beside `near`, a
/// file to come, or where temporary files are.
pub(crate) fn open(path: &OsStr, near: Option<&Path>, common: &Common) -> Result<OpenedImage> {
    open_known(path, near, None, common, None)
}

/// Judges what stands in front, before anything else is taken, and gives what the other end is told of what is here already.
pub(crate) type Tell<'a> = &'a dyn Fn(&str, &StreamHeader) -> Result<KnownHere>;

/// The same, and the other end is told what is here already; `proven`: on so many CPUs all of it is inflated first, for who writes over
/// something meanwhile.
pub(crate) fn open_known(
    path: &OsStr,
    near: Option<&Path>,
    tell: Option<Tell<'_>>,
    common: &Common,
    proven: Option<usize>,
) -> Result<OpenedImage> {
    let mut opened = OpenedImage::open(path)?;
    if !features::FRAMES || opened.format != Format::Frames {
        return Ok(opened);
    }
    let fail = |fault| image_error(&opened.subject, fault);
    let begun = receive::begin(&mut opened.input).map_err(fail)?;
    let known = tell.map(|tell| tell(&opened.subject, &begun.header));
    let known = known.transpose()?;
    let held = hold_unnamed(near)?;
    let held = HeldStream {
        // Who hears what is here sends everything when there is no room for what is not.
        most_bytes: known
            .as_ref()
            .map_or(u64::MAX, |_| memory::most_held(&held.file)),
        known,
        // It is unpacked at once.
        level: 0,
        ..held
    };
    if let (Some(note), false) = (may_not_fit(&begun.header, &held), common.quiet) {
        report::line(note);
    }
    let come_bytes = bytes_of(&begun.header);
    let received = receive::take(&mut opened.input, begun, held).map_err(fail)?;
    if let Some(jobs) = proven {
        received.check(jobs).map_err(fail)?;
    }
    let format = format_of(&received);
    let standard = Standard::start(received).map_err(fail)?;
    // For comparing it with targets; what the frames came from is read.
    let file = standard.pipe.try_clone();
    let file = file.map_err(|error| Error::std(&opened.subject, "dup", &error))?;
    Ok(OpenedImage {
        input: Input::reader(standard).map_err(fail)?,
        subject: opened.subject,
        file,
        format,
        come_bytes: Some(come_bytes),
    })
}

/// Length of all images that frames bring, in bytes.
fn bytes_of(header: &StreamHeader) -> u64 {
    let parts = header.images.iter().flat_map(|image| &image.parts);
    parts.fold(0, |sum, part| sum.saturating_add(*part))
}

/// That what comes may be too much for where it is held: said when it begins to come, before anything is frozen for it. What is here
/// already does not come.
pub(crate) fn may_not_fit(header: &StreamHeader, hold: &HeldStream) -> Option<String> {
    if hold.known.is_some() {
        return None;
    }
    let size = bytes_of(header);
    let stat = rustix::fs::fstatvfs(&hold.file).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let path = format!("/proc/self/fd/{}", hold.file.as_raw_fd());
    let path = std::fs::read_link(path).unwrap_or_default();
    let folder = path.parent().unwrap_or(&path).display();
    (free < size).then(|| {
        format!(
            "note: {folder}: {} are free, and what comes is held there, packed, until all of it has come (images of {}); should it not fit, an output or a TMPDIR on another filesystem helps",
            Bytes(free),
            Bytes(size)
        )
    })
}

/// The same in a file that an interrupted run left, or would leave: what is named there says for what.
pub(crate) fn hold_named(target: Option<&Path>, reuse: bool) -> Result<HeldStream> {
    let left = target
        .filter(|near| !is_device(near))
        .and_then(Left::beside);
    if let (Some(left), false) = (&left, reuse) {
        left.clear();
    }
    let file = left.as_ref().and_then(Left::file);
    let file = match file {
        Some(file) => file,
        None => hold(target)?,
    };
    Ok(HeldStream {
        left,
        ..HeldStream::of(file, hold(target)?)
    })
}

/// The same in a file that is gone with whoever holds it.
pub(crate) fn hold_unnamed(target: Option<&Path>) -> Result<HeldStream> {
    Ok(HeldStream::of(hold(target)?, hold(target)?))
}

/// An earlier image or snapshot, for what has not changed since.
pub(crate) struct EarlierFile {
    file: File,
    pub(crate) catalog: Option<Catalog>,
}

/// What targets hold, each by the path of its image.
struct TargetContents(Vec<(String, File)>);

/// What targets hold, each by the path of its image, for an end to which stdout leads.
pub(crate) fn targets_known(targets: Vec<(String, PathBuf)>) -> Result<KnownHere> {
    let stdout = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3);
    let stdout = stdout.map_err(|errno| Error::fault("stdout", Fault::io("dup", errno)))?;
    let targets = targets.into_iter();
    let opened = targets.filter_map(|(path, target)| Some((path, File::open(target).ok()?)));
    Ok(KnownHere {
        earlier: Some(Box::new(TargetContents(opened.collect()))),
        stdin: stdout.into(),
    })
}

/// A backup of a partition table is in it.
const WIPED_END_BYTES: u64 = 1 << 20;

impl EarlierImages for TargetContents {
    /// Its bytes are the image, whatever they look like. Its beginning and its end a restore wipes at first.
    fn image(&mut self, path: &str) -> Option<(ImageReader<'static>, Range<u64>)> {
        let (_, file) = self.0.iter().find(|(image, _)| image == path)?;
        let mut file = file.try_clone().ok()?;
        let length = file.seek(SeekFrom::End(0)).ok()?;
        file.rewind().ok()?;
        let reader = ImageReader::raw(Input::file(file, None).ok()?).ok()?;
        let length = length.saturating_sub(WIPED_END_BYTES);
        Some((reader, 1..length / CHUNK_BYTES))
    }
}

impl EarlierFile {
    /// `None` where it is neither, or cannot be read: then nothing is taken from it.
    pub(crate) fn of(file: File) -> Option<Self> {
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return None;
        }
        let mut first = [0; LOOK_BYTES];
        let count = file.read_at(&mut first, 0).ok()?;
        let catalog = match Format::recognise(first.get(..count)?) {
            Format::Raw | Format::Gzip => None,
            Format::Zip => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                Some(Catalog::open(Path::new(&path)).ok()?)
            }
            Format::Mender | Format::Frames => return None,
        };
        Some(Self { file, catalog })
    }
}

/// The header of frames that bring what is in a snapshot, and the report in their end.
pub(crate) fn of_snapshot(catalog: &Catalog) -> Result<(StreamHeader, String)> {
    let images = catalog.snapshot.images.iter();
    let images = images.map(|image| Framed {
        path: image_path(&image.name),
        parts: vec![image.size_bytes],
    });
    let images: Vec<Framed> = images.collect();
    let maps = images.iter().map(|image| {
        let checksum = catalog.checksums.find(&image.path);
        checksum.map_or_else(String::new, |checksum| checksum.map.clone())
    });
    let maps: Vec<String> = maps.collect();
    let mut report = JsonObject::new();
    report
        .str("consistent", &catalog.checksums.consistent)
        .u64("frozen_ms", catalog.checksums.frozen_ms)
        .raw("maps", &json_list(&maps));
    let header = StreamHeader {
        is_snapshot: true,
        as_it_is: false,
        unix_seconds: catalog.snapshot.time_s,
        front: catalog.front()?,
        images,
    };
    Ok((header, report.finish()))
}

impl EarlierImages for EarlierFile {
    fn image(&mut self, path: &str) -> Option<(ImageReader<'static>, Range<u64>)> {
        let reader = if let Some(catalog) = &self.catalog {
            ImageReader::raw(Input::source(catalog.reader(path).ok()?).ok()?)
        } else {
            let mut file = self.file.try_clone().ok()?;
            file.rewind().ok()?;
            let length = file.metadata().ok()?.len();
            ImageReader::new(Input::file(file, Some(length)).ok()?)
        };
        Some((reader.ok()?, 0..u64::MAX))
    }

    fn packed(&mut self, path: &str) -> Option<(File, Range<u64>)> {
        let file = self.file.try_clone().ok()?;
        if let Some(catalog) = &self.catalog {
            return Some((file, catalog.packed(path)?));
        }
        let mut first = [0; gzip::HEADER_AS_IT_IS.len()];
        self.file.read_exact_at(&mut first, 0).ok()?;
        let header = match first {
            gzip::HEADER_AS_IT_IS => gzip::HEADER_AS_IT_IS.len(),
            _ if first.starts_with(&gzip::HEADER) => gzip::HEADER.len(),
            _ => return None,
        };
        let end = file.metadata().ok()?.len();
        let end = end.checked_sub(to_u64(gzip::trailer(0, 0).len()))?;
        Some((file, to_u64(header)..end))
    }
}

/// A file without a name for what is held: beside `near`, unless that is a device.
fn hold(near: Option<&Path>) -> Result<File> {
    match near.filter(|near| !is_device(near)) {
        Some(near) => partfile::unnamed(near),
        None => partfile::unnamed_anywhere(),
    }
}

fn is_device(near: &Path) -> bool {
    std::fs::metadata(near).is_ok_and(|meta| !meta.is_file())
        || near.starts_with("/dev")
        || near.starts_with("/proc")
}

/// What they stand for.
pub(crate) fn format_of(received: &Received) -> Format {
    match received.header.is_snapshot {
        true => Format::Zip,
        false => Format::Gzip,
    }
}

/// Reads the standard format.
pub(crate) struct Standard {
    pipe: File,
    thread: Started,
    failed: Arc<Lock<Option<Fault>>>,
}

impl Standard {
    /// Starts the thread that writes it.
    pub(crate) fn start(received: Received) -> std::result::Result<Self, Fault> {
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (pipe, far) = pipe.map_err(|errno| Fault::io("pipe", errno))?;
        // The reader is not to see the end before it can know why.
        let open = rustix::io::fcntl_dupfd_cloexec(&far, 3);
        let open = open.map_err(|errno| Fault::io("dup", errno))?;
        let failed: Arc<Lock<Option<Fault>>> = Arc::default();
        let told = Arc::clone(&failed);
        let work = move || {
            let fault = match write(received, far) {
                Ok(()) | Err(Problem::ClosedPipe) => return,
                Err(Problem::Write(fault) | Problem::Read(_, fault) | Problem::Internal(fault)) => {
                    fault
                }
            };
            *told.lock() = Some(fault);
            drop(open);
        };
        let thread = crate::threads::start(c"order", 256 * 1024, Box::new(work))
            .map_err(|errno| Fault::io("start a thread", errno))?;
        Ok(Self {
            pipe: pipe.into(),
            thread,
            failed,
        })
    }
}

impl Standard {
    /// No more of it is wanted; afterwards nothing of what was held is in use.
    pub(crate) fn end(self) {
        drop(self.pipe);
        self.thread.join();
    }
}

impl Supply for Standard {
    fn supply(&mut self, out: &mut [u8]) -> std::result::Result<usize, Fault> {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut *out));
        let count = read.map_err(|errno| Fault::io("read", errno))?;
        let failed = self.failed.lock();
        match *failed {
            Some(fault) if count == 0 => Err(fault),
            _ => Ok(count),
        }
    }
}

struct NoMeter;

impl Meter for NoMeter {
    fn read(&self, _: u64) {}
    fn taken(&self, _: u64) {}
}

fn write(mut received: Received, far: OwnedFd) -> std::result::Result<(), Problem> {
    let output = Output::new(far, &NoMeter, false);
    let totals = TotalsCell::default();
    let header = std::mem::take(&mut received.header);
    if !header.is_snapshot {
        let lead = match header.as_it_is {
            true => &gzip::HEADER_AS_IT_IS[..],
            false => &gzip::HEADER,
        };
        let mut emitter = GzipEmitter::new(output, lead, totals)?;
        return received.emit(&mut emitter);
    }
    let ending = ending(&received.report)?;
    let images = header.images.into_iter().map(|image| image.path).collect();
    let mut emitter = ZipEmitter::new(
        output,
        header.unix_seconds,
        &header.front,
        images,
        ending,
        totals,
    )?;
    received.emit(&mut emitter)
}

/// From the board's words.
fn ending(report: &[u8]) -> std::result::Result<LastEntries, Fault> {
    let corrupt = || Fault::corrupt("report in the end frame");
    let report = json::parse(report)?;
    let text = |value: &Value| value.text().map(str::to_owned);
    let consistent = report.get("consistent").and_then(text);
    let consistent = consistent.ok_or_else(corrupt)?;
    let frozen_ms = report.get("frozen_ms").and_then(Value::number);
    let frozen_ms = frozen_ms.ok_or_else(corrupt)?;
    let maps = report.get("maps").and_then(Value::list);
    let maps = maps.ok_or_else(corrupt)?.iter().filter_map(text);
    let used = report.get("used").and_then(Value::list);
    let mut used = used.unwrap_or_default().iter().map(Value::number);
    let maps: Vec<_> = maps.map(|map| (map, used.next().flatten())).collect();
    Ok(Box::new(move |written: &[Written]| {
        let maps = maps.iter().map(|(map, used)| (map.as_str(), *used));
        Ok(closing(written, &consistent, frozen_ms, maps).1)
    }))
}
