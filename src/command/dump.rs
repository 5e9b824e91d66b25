//! `floe dump`: the frozen image of one filesystem or disk, to stdout or a file.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use crate::cli::{self, Args, Common, Item};
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::fs::Coverage;
use crate::fs::files::Emptying;
use crate::mounts::{DevId, System};
use crate::put::supervise::supervise;
use crate::report::Told;
use crate::report::{self, Bytes, Elapsed, JsonObject, Progress, hex};
use crate::signals::Signals;
use crate::snapshot::replace::{self, Coming};
use crate::stream::bmap;
use crate::stream::copy;
use crate::stream::frames::{self, send::FrameEmitter};
use crate::stream::gzip;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::{Format, ImageReader};
use crate::stream::inplace::InPlace;
use crate::stream::output::leaves_holes;
use crate::stream::output::{GzipEmitter, Output, RawEmitter, Totals, TotalsCell};
use crate::stream::partfile::{self, PartFile};
use crate::stream::pipeline::{Emit, Outlet, Pipeline, Settings};
use crate::take::capture::{Capture, CaptureFigures, Engine};
use crate::take::counters::Counters;
use crate::take::mapped::MappedRun;
use crate::take::options::{self, Streaming, Taking};
use crate::take::ready::{Ready, ready};
use crate::take::source::{self, Prepared};
use crate::take::survey::Surveyor;
use crate::threads::Lock;

/// What was typed.
#[derive(Debug)]
pub(crate) struct Options {
    /// What to dump.
    pub source: OsString,
    /// `-o FILE`; stdout otherwise.
    pub output: Option<PathBuf>,
    /// `--compress none`.
    pub raw: bool,
    /// `--sha256`: the report of a raw stream has its SHA-256 too.
    pub sha256: bool,
    /// `--split`: bytes of a piece.
    pub split: Option<u64>,
    /// `--bmap`: beside FILE.
    pub bmap: Option<PathBuf>,
    /// `--overwrite`: FILE may be something else than an image.
    pub overwrite: bool,
    /// How the source is read and held.
    pub taking: Taking,
    /// How the stream is made.
    pub streaming: Streaming,
    /// The common options.
    pub common: Common,
}

impl Options {
    /// The defaults of the contract.
    pub(crate) fn new(source: OsString) -> Self {
        Self {
            source,
            output: None,
            raw: false,
            sha256: false,
            split: None,
            bmap: None,
            overwrite: false,
            taking: Taking::default(),
            streaming: Streaming::default(),
            common: Common::default(),
        }
    }
}

impl Options {
    /// The file that is written, or its first piece.
    fn first(&self) -> Option<PathBuf> {
        self.output.as_ref().map(|path| match self.split {
            Some(_) => partfile::piece(path, 1),
            None => path.clone(),
        })
    }

    /// What comes in the place of what is there.
    fn coming(&self) -> Coming {
        Coming::Image(match self.raw {
            true => Format::Raw,
            false => Format::Gzip,
        })
    }

    /// The output for people.
    fn shown_output(&self) -> String {
        match &self.output {
            Some(path) => path.display().to_string(),
            None => "stdout".into(),
        }
    }

    /// Whether the image may be put together in its file, which then holds what is read before the freeze.
    fn may_be_in_place(&self) -> bool {
        self.raw
            && self.output.is_some()
            && self.split.is_none()
            && !self.streaming.frames
            && self.streaming.spool_file.is_none()
    }

    /// Whether somebody will see the SHA-256 of the stream: only the report has it, and on a board without instructions for it it takes
    /// 15 % of the CPU time.
    fn hashes(&self) -> bool {
        self.common.report.is_some() && (self.sha256 || !self.raw)
    }
}

/// Parses the arguments after `dump`.
pub(crate) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::new("/".into());
    let mut source = None;
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if source.is_none() => source = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name {
                // As everywhere, `-` is stdout; a file of that name is ./-.
                "--output" => {
                    options.output = Some(args.path()?).filter(|path| path.as_os_str() != "-");
                }
                "--compress" => options.raw = args.parsed(options::compression, "gzip or none")?,
                "--sha256" => options.sha256 = true,
                "--overwrite" => options.overwrite = true,
                "--bmap" => options.bmap = Some(args.file()?),
                "--split" => {
                    options.split = Some(args.parsed(piece, "a size of at least 1M")?);
                }
                "--fs-path" => {
                    options.taking.wishes.fs_path = true;
                    source = Some(args.value()?);
                }
                name if options.taking.option(&mut args, name)? => {}
                name if options.streaming.option(&mut args, name)? => {}
                _ => return Err(args.unknown(name)),
            },
        }
    }
    if options.split.is_some() && options.output.is_none() {
        return Err(Error::usage("dump: --split needs -o FILE"));
    }
    if options.bmap.is_some() && options.output.is_none() {
        return Err(Error::usage("dump: --bmap needs -o FILE"));
    }
    options.taking.wishes.owned = options.bmap.is_some();
    options.taking.check("dump")?;
    let elsewhere = options.output.is_some() || options.raw;
    options.streaming.check_frames("dump", elsewhere)?;
    options.source = source.unwrap_or(options.source);
    options.common = args.common;
    Ok(options)
}

fn piece(text: &str) -> Option<u64> {
    cli::size(text).filter(|bytes| *bytes >= 1 << 20)
}

/// Runs the verb.
pub(crate) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let first = options.first();
    let outputs = [&first, &options.bmap].into_iter().flatten();
    let outputs: Vec<&Path> = outputs.map(PathBuf::as_path).collect();
    let about = ("source", &options.source.display() as _);
    super::begin(&options.common, about, &outputs)?;
    report::until_begun(&options.source.display().to_string());
    report::tell(&options.common, &mut || {
        Ok(Box::new(dump(&options, start)?))
    })
}

/// What the report says of the source.
struct SourceFacts {
    source: String,
    device: String,
    filesystem: &'static str,
    consistent: &'static str,
    size_bytes: u64,
}

impl SourceFacts {
    fn of(source: &Prepared) -> Self {
        Self {
            source: source.name.clone(),
            device: source.shown.clone(),
            filesystem: source.filesystem,
            consistent: source.consistent(),
            size_bytes: source.size_bytes,
        }
    }
}

/// Everything the report says.
struct DumpReport {
    facts: SourceFacts,
    figures: CaptureFigures,
    totals: Totals,
    total: Duration,
}

impl DumpReport {
    fn coverage(&self) -> Coverage {
        self.figures
            .outcomes
            .first()
            .map_or(Coverage::Whole, |outcome| outcome.coverage)
    }

    fn used_bytes(&self) -> u64 {
        self.figures
            .outcomes
            .iter()
            .fold(0, |sum, outcome| sum.saturating_add(outcome.used_bytes))
    }
}

impl Told for DumpReport {
    fn json(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object
            .str("source", &self.facts.source)
            .str("device", &self.facts.device)
            .str("filesystem", self.facts.filesystem)
            .str("map", self.coverage().name())
            .u64("size_bytes", self.facts.size_bytes)
            .u64("used_bytes", self.used_bytes())
            .u64("read_bytes", self.figures.read_bytes)
            .u64("written_bytes", self.totals.written_bytes)
            .u64("frozen_ms", self.figures.frozen_ms)
            .str("precopy", self.figures.precopy)
            .u64("early_bytes", self.figures.rounds.early_bytes)
            .u64("again_bytes", self.figures.rounds.again_bytes)
            .u64("total_ms", report::millis(self.total))
            .str("crc32", &format!("{:08x}", self.totals.crc32));
        match self.totals.sha256 {
            Some(hash) => object.str("sha256", &hex(&hash)),
            None => object.null("sha256"),
        };
        object.str("consistent", self.facts.consistent);
        self.figures.emptied.json(&mut object);
        object
    }

    fn words(&self) -> String {
        let held = options::held_words(self.facts.consistent, self.figures.frozen_ms);
        let why = match self.figures.outcomes.first().and_then(|o| o.doubt) {
            Some(doubt) => format!(" (map {}: {doubt})", self.coverage().name()),
            None => String::new(),
        };
        format!(
            "{}: {} {}, {}, {} read{why}, {} written{}, {held}, {} in all",
            self.facts.source,
            self.facts.filesystem,
            Bytes(self.facts.size_bytes),
            options::used_words(self.coverage().name(), self.used_bytes()),
            Bytes(self.figures.read_bytes),
            Bytes(self.totals.written_bytes),
            self.figures.emptied.words(),
            Elapsed(self.total)
        )
    }
}

fn dump(options: &Options, start: Instant) -> Result<DumpReport> {
    if options.output.is_none() {
        check_stdout()?;
    }
    let quiet = options.common.quiet;
    let system = System::look()?;
    let (prepared, emptying) = choose(options, &system)?;
    // What a signal leaves is known only to who takes it.
    let _signals = Signals::block()?;
    let outputs = Outputs::open(options, &prepared)?;
    let bmap = options.bmap.as_deref().map(PartFile::create).transpose()?;
    refuse_own_device(&system, &outputs.sink, prepared.dev)?;
    let waiting = rustix::io::fcntl_dupfd_cloexec(&outputs.sink, 3)
        .map_err(|errno| Error::fault("stdout", Fault::io("dup", errno)))?;

    // One thread until here: the guardian is forked now.
    let mut sources = vec![prepared];
    let ready = ready(&system, &mut sources, &options.taking, quiet)?;
    let Some(prepared) = sources.first() else {
        return Err(Error::failed("floe: internal: no source"));
    };
    let facts = SourceFacts::of(prepared);
    let note = ready.note_on_itself(&outputs.sink, &options.shown_output());
    let way = Way::of(options, &system, &ready, &outputs.sink);
    let settings = way.settings(options, &system, &ready, &sources)?;
    let totals = TotalsCell::default();
    let told: Arc<Lock<Option<CaptureFigures>>> = Arc::default();
    let parts = (outputs.parts, outputs.there);
    let sink = match way.in_place {
        true => own_file(options, outputs.sink, &sources, &totals)?,
        false => {
            let sink = (outputs.sink, outputs.more);
            outlet(options, sink, &sources, &ready, &totals, &told)?
        }
    };
    let engine = Engine {
        ready,
        precopy: true,
        sink,
        settings,
        onto_itself: way.onto_itself,
        quiet,
        progress: Progress::new(&options.common),
        emptying,
        output: options.output.as_ref().map(|_| options.shown_output()),
    };
    let mut capture = Capture::new(sources, engine, options.taking.wishes)?;
    // What is refused needs no note.
    note.iter().filter(|_| !quiet).for_each(report::line);
    if options.output.is_none() {
        capture.wait_sink(waiting.as_fd(), options.streaming.wait_sink)?;
    }
    let walked = (capture.pipeline(), capture.surveyor());
    let figures = capture.run_telling(|figures| {
        *told.lock() = Some(figures);
    })?;
    finish(options, parts, bmap.as_ref())?;
    if let Some(part) = bmap {
        write_bmap(options, part, facts.size_bytes, walked)?;
    }
    // Whoever asked for silence still wants to know what is not as it was asked for.
    figures.emptied.notes().iter().for_each(report::line);
    let totals = *totals.lock();
    Ok(DumpReport {
        facts,
        figures,
        totals,
        total: start.elapsed(),
    })
}

/// How the bytes get into the file.
struct Way {
    /// The image is put together in its own file, which takes what is read before the freeze.
    in_place: bool,
    /// The file lies on a filesystem that is frozen, or on what is on one: all of it has to be held until the thaw.
    onto_itself: bool,
}

impl Way {
    fn of(options: &Options, system: &System, ready: &Ready, sink: &OwnedFd) -> Self {
        let held_up = ready.holds_up(system, sink);
        // Where it lies on what lies on a frozen filesystem, what comes under the freeze waits for the thaw.
        let waits = !held_up || !ready.freezes(sink) && options.streaming.has_room();
        let in_place =
            options.may_be_in_place() && ready.copies_early() && waits && leaves_holes(sink);
        Self {
            in_place,
            onto_itself: held_up && !in_place,
        }
    }

    /// Sizes of the pipeline; an image in its own file needs no room beside it.
    fn settings(
        &self,
        options: &Options,
        system: &System,
        ready: &Ready,
        sources: &[Prepared],
    ) -> Result<Settings> {
        let path = options.first().filter(|_| !self.in_place);
        let (common, raw) = (&options.common, options.raw);
        options
            .streaming
            .settings(common, raw, system, ready, sources, path.as_deref())
    }
}

/// The source, what of it comes out empty, and a file that may be written.
fn choose(options: &Options, system: &System) -> Result<(Prepared, Emptying)> {
    let quiet = options.common.quiet;
    let prepared = source::prepare(system, &options.source, options.taking.wishes)?;
    if !quiet {
        prepared.notes.iter().for_each(report::line);
    }
    let wanted = &options.taking.wanted;
    let emptying = wanted.emptying(std::slice::from_ref(&prepared))?;
    if let (Some(what), true, false) = (&prepared.twofold, options.raw, options.taking.wishes.whole)
    {
        return Err(Error::refused(format_args!(
            "{}: {what}; its raw image would not be taken back: without -z none it says that this is meant, and --whole copies it as it is",
            prepared.name
        )));
    }
    let odd = prepared.as_it_is.as_ref().or(prepared.twofold.as_ref());
    if let (Some(what), true, false) = (odd, options.raw, quiet) {
        report::line(format_args!(
            "{}: {what}; restore and verify take its raw image with --any-content",
            prepared.name
        ));
    }
    if let Some(path) = &options.first() {
        source::refuse_output(std::slice::from_ref(&prepared), path)?;
        if options.split.is_none() && !options.overwrite {
            replace::check(path, options.coming())?;
        }
    }
    if let Some(path) = &options.bmap {
        source::refuse_output(std::slice::from_ref(&prepared), path)?;
        if !options.overwrite && !bmap::is_replaceable(path) {
            return Err(Error::refused(format_args!(
                "{}: is there and is no .bmap; --overwrite replaces it",
                path.display()
            ))
            .leaving("nothing was frozen"));
        }
    }
    Ok((prepared, emptying))
}

/// What is written: stdout, a file, or its pieces.
struct Outputs {
    /// None for stdout.
    parts: Vec<PartFile>,
    /// Of `--split`: what is there now, and goes.
    there: Vec<PathBuf>,
    sink: OwnedFd,
    /// Of the pieces after the first.
    more: Vec<OwnedFd>,
}

impl Outputs {
    fn open(options: &Options, prepared: &Prepared) -> Result<Self> {
        let mut there = Vec::new();
        let mut parts = match (&options.output, options.split) {
            (Some(path), Some(bytes)) => {
                there = replace::check_pieces(path, options.coming(), options.overwrite)?;
                for old in &there {
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
fn finish(
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
fn write_bmap(
    options: &Options,
    mut part: PartFile,
    size_bytes: u64,
    (pipeline, surveyor): (&'static Pipeline, &'static Surveyor),
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
fn own_file(
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
fn outlet(
    options: &Options,
    (sink, more): (OwnedFd, Vec<OwnedFd>),
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
        let emit = emitter(options, (sink, more), counters, totals, signals, as_it_is)?;
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

/// stdout is data: a terminal is refused.
fn check_stdout() -> Result<()> {
    report::check_stdout()?;
    let stdout = rustix::stdio::stdout();
    if rustix::termios::isatty(stdout) {
        return Err(Error::refused(
            "stdout: is a terminal; redirect it or pipe it, or give -o FILE",
        )
        .leaving("nothing was frozen"));
    }
    rustix::fs::fstat(stdout)
        .map(drop)
        .map_err(|errno| Error::fault("stdout", Fault::io("stat", errno)))
}

/// The stream must not go to what it is read from: the device itself, or the file behind a loop device.
fn refuse_own_device(system: &System, sink: &OwnedFd, source: Option<DevId>) -> Result<()> {
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
    (sink, more): (OwnedFd, Vec<OwnedFd>),
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
    if let Some(number) = signals.take() {
        return Err(Error::signal(number));
    }
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
