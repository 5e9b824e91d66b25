//! Where a dump goes: stdout, a file or its pieces, the stream that was asked for, and the list of blocks beside an image.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::FileType;

use crate::command::dump::Options;
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::mounts::{DevId, System};
use crate::put::supervise::supervise;
use crate::signals::Signals;
use crate::snapshot::replace;
use crate::stream::frames::{self, send::FrameEmitter};
use crate::stream::image::ImageReader;
use crate::stream::image::open::OpenedImage;
use crate::stream::inplace::InPlace;
use crate::stream::output::{GzipEmitter, Output, RawEmitter, TotalsCell, leaves_holes};
use crate::stream::partfile::{self, PartFile};
use crate::stream::pipeline::{Emit, Outlet, Pipeline};
use crate::stream::{bmap, copy, gzip};
use crate::take::capture::CaptureFigures;
use crate::take::counters::Counters;
use crate::take::mapped::MappedRun;
use crate::take::options;
use crate::take::ready::Ready;
use crate::take::source::{self, Prepared};
use crate::take::survey::Surveyor;
use crate::threads::Lock;

/// What is written: stdout, a file, or its pieces.
pub(super) struct Outputs {
    /// None for stdout.
    pub(super) parts: Vec<PartFile>,
    /// Of `--split`: what is there now, and goes.
    pub(super) there: Vec<PathBuf>,
    pub(super) sink: OwnedFd,
    /// Of the pieces after the first.
    pub(super) more: Vec<OwnedFd>,
}

impl Outputs {
    pub(super) fn open(options: &Options, prepared: &Prepared) -> Result<Self> {
        let mut there = Vec::new();
        let mut parts = match (&options.output, options.split) {
            (Some(path), Some(bytes)) => {
                there = replace::check_pieces(path, options.coming(), options.overwrite)?;
                for old in &there {
                    PartFile::check_piece(old)?;
                    source::refuse_output(std::slice::from_ref(prepared), old)?;
                }
                // What does not pack takes a little more than it was.
                let size = prepared.size_bytes;
                let most = size.saturating_add(size / 1000).saturating_add(1 << 20);
                partfile::create_pieces(path, bytes, most)?
            }
            (Some(path), None) => vec![PartFile::create(path)?],
            (None, _) => Vec::new(),
        };
        let mut sinks: Vec<OwnedFd> = parts.iter_mut().filter_map(PartFile::take_fd).collect();
        let sink = match sinks.is_empty() {
            true => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
                .map_err(|errno| Error::fault("stdout", Fault::io("dup", errno)))?,
            false => sinks.remove(0),
        };
        Ok(Self {
            parts,
            there,
            sink,
            more: sinks,
        })
    }
}

/// The files under their names: they are complete.
pub(super) fn finish(
    options: &Options,
    (mut parts, there): (Vec<PartFile>, Vec<PathBuf>),
    bmap: Option<&PartFile>,
) -> Result<()> {
    if let Some(part) = bmap {
        // An older image's must not stand beside the new one, whatever happens next.
        let _ = std::fs::remove_file(part.target());
    }
    match (&options.output, parts.pop()) {
        (Some(path), Some(last)) if options.split.is_some() => {
            parts.push(last);
            partfile::finish_pieces(path, parts, &there)
        }
        (_, Some(part)) => part.finish(),
        (_, None) => Ok(()),
    }
}

/// `--bmap`: from the image, which is complete and has its name.
pub(super) fn write_bmap(
    options: &Options,
    mut part: PartFile,
    size_bytes: u64,
    pipeline: &'static Pipeline,
    surveyor: &'static Surveyor,
) -> Result<()> {
    const STATE: &str = "the image is complete, its .bmap is not";
    let Some(image) = options.first() else {
        return Ok(());
    };
    let mapped = MappedRun::of(pipeline, surveyor);
    let name = part.target().display().to_string();
    let (Some(fd), Some(mapped)) = (part.take_fd(), mapped) else {
        return Err(Error::failed("floe: internal: no map of what was read"));
    };
    let progress = Arc::new(copy::CopyProgress::default());
    progress.begin(copy::READING_BACK, size_bytes);
    let (far, shown) = (Arc::clone(&progress), name.clone());
    let work = move || {
        let fail = |fault| Error::fault(&shown, fault).leaving(STATE);
        let input = OpenedImage::look(image.as_os_str())?.input;
        let mut reader = ImageReader::new(input).map_err(fail)?;
        let next = |from| {
            far.done_bytes.store(from, Ordering::Relaxed);
            mapped.next(from)
        };
        bmap::write(&std::fs::File::from(fd), &mut reader, size_bytes, &next).map_err(fail)
    };
    let state = || STATE.to_owned();
    supervise(&options.common, &progress, &state, &name, None, work)?;
    part.finish()
}

/// The image's own file, in which it is put together.
pub(super) fn own_file(
    options: &Options,
    file: OwnedFd,
    sources: &[Prepared],
    totals: &TotalsCell,
) -> Result<Outlet> {
    let segments = sources.iter().flat_map(|source| &source.segments);
    let lengths = segments.map(|segment| segment.length_bytes);
    let file = InPlace::new(file, lengths, options.hashes(), Arc::clone(totals));
    let file = file.map_err(|fault| {
        Error::fault(options.shown_output(), fault).leaving("nothing was frozen")
    })?;
    // Threads that may never return use it.
    Ok(Outlet::Places(Box::leak(Box::new(file))))
}

/// The stream that was asked for, begun: the reader has taken its header.
pub(super) fn outlet(
    options: &Options,
    sink: OwnedFd,
    more: Vec<OwnedFd>,
    sources: &[Prepared],
    ready: &Ready,
    totals: &TotalsCell,
    told: &Arc<Lock<Option<CaptureFigures>>>,
) -> Result<Outlet> {
    let is_odd = |source: &Prepared| source.as_it_is.is_some() || source.twofold.is_some();
    let as_it_is = sources.iter().any(is_odd);
    let counters = ready.counters;
    if !features::FRAMES || !options.streaming.frames {
        let signals = &ready.signals;
        let emit = emitter(options, sink, more, counters, totals, signals, as_it_is)?;
        return Ok(Outlet::Stream(emit));
    }
    wait_writable(&sink, options.streaming.wait_sink, &ready.signals)?;
    let mut header = options::frames_header(sources, std::iter::once("image"));
    header.as_it_is = as_it_is;
    let output = Output::new(sink, counters, options.hashes());
    let ending = frames_ending(options::weakest(sources), Arc::clone(told));
    match FrameEmitter::new(output, &header, ending, Arc::clone(totals)) {
        Ok(emit) => Ok(Outlet::Frames(Box::new(emit))),
        Err(problem) => Err(options::early(&options.shown_output(), problem)),
    }
}

/// The stream must not go to what it is read from: the device itself, or the file behind a loop device.
pub(super) fn refuse_own_device(
    system: &System,
    sink: &OwnedFd,
    source: Option<DevId>,
) -> Result<()> {
    let stat = rustix::fs::fstat(sink)
        .map_err(|errno| Error::fault("stdout", Fault::io("stat", errno)))?;
    let own = match (FileType::from_raw_mode(stat.st_mode), source) {
        (FileType::BlockDevice, Some(source)) => {
            system.overlaps(DevId::from_raw(stat.st_rdev), source)
        }
        (FileType::RegularFile, Some(source)) => system
            .loops_over(&stat)
            .into_iter()
            .any(|over| system.overlaps(over, source)),
        _ => false,
    };
    if own {
        return Err(
            Error::refused("stdout: is the device that is read, or lies below it")
                .leaving("nothing was frozen"),
        );
    }
    Ok(())
}

fn emitter(
    options: &Options,
    sink: OwnedFd,
    more: Vec<OwnedFd>,
    counters: &'static Counters,
    totals: &TotalsCell,
    signals: &Signals,
    as_it_is: bool,
) -> Result<Box<dyn Emit>> {
    let totals = Arc::clone(totals);
    let split = |output: Output| match options.split {
        Some(bytes) => output.split(bytes, more),
        None => output,
    };
    if options.raw {
        let holes = options.split.is_none() && leaves_holes(&sink);
        let output = split(Output::new(sink, counters, options.hashes()));
        return Ok(Box::new(RawEmitter::new(output, holes, totals)));
    }
    wait_writable(&sink, options.streaming.wait_sink, signals)?;
    let output = split(Output::new(sink, counters, options.hashes()));
    let header = match as_it_is {
        true => &gzip::HEADER_AS_IT_IS[..],
        false => &gzip::HEADER,
    };
    match GzipEmitter::new(output, header, totals) {
        Ok(emitter) => Ok(Box::new(emitter)),
        Err(problem) => Err(options::early(&options.shown_output(), problem)),
    }
}

/// The report in the end frame: made after the thaw.
fn frames_ending(
    consistent: &'static str,
    told: Arc<Lock<Option<CaptureFigures>>>,
) -> frames::send::LastReport {
    Box::new(move |_| {
        let told = told.lock();
        let figures = told
            .as_ref()
            .ok_or_else(|| Fault::refused("an end before the thaw"))?;
        Ok(options::frames_report(consistent, figures))
    })
}

/// A pipe that is full already would hold up the first write for ever.
fn wait_writable(sink: &OwnedFd, limit: Duration, signals: &Signals) -> Result<()> {
    use rustix::event::{PollFd, PollFlags};
    let mut fds = [
        PollFd::new(sink, PollFlags::OUT),
        PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
    ];
    let limit_spec = rustix::event::Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let ready = rustix::event::poll(&mut fds, Some(&limit_spec));
    signals.check()?;
    match ready {
        Ok(0) => Err(Error::refused(format_args!(
            "stdout: takes no byte within {} s; give it longer with --wait-sink",
            limit.as_secs()
        ))
        .leaving("nothing was frozen")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_hashed_for_a_report_only() {
        let mut options = Options::new("/".into());
        assert!(!options.hashes());
        options.common.report = Some("-".into());
        assert!(options.hashes());
        options.raw = true;
        assert!(!options.hashes());
        options.sha256 = true;
        assert!(options.hashes());
    }
}
