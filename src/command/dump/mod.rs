//! `floe dump`: the frozen image of one filesystem or disk, to stdout or a file.

mod outputs;
mod summary;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use self::outputs::{Outputs, finish, outlet, own_file, refuse_own_device, write_bmap};
use self::summary::{DumpReport, SourceFacts};
use crate::cli::{self, Args, Common, Item};
use crate::error::{Error, Fault, Result};
use crate::fs::files::Emptying;
use crate::mounts::System;
use crate::report::{self, Progress};
use crate::signals::Signals;
use crate::snapshot::replace::{self, Coming};
use crate::stream::bmap;
use crate::stream::image::Format;
use crate::stream::output::{TotalsCell, leaves_holes};
use crate::stream::partfile::{self, PartFile};
use crate::stream::pipeline::Settings;
use crate::take::capture::{Capture, CaptureFigures, Engine};
use crate::take::options::{self, Streaming, Taking};
use crate::take::ready::{Ready, ready};
use crate::take::source::{self, Prepared};
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
    if let [image, bmap] = outputs[..]
        && super::is_one_file(image, bmap)
    {
        return Err(Error::usage("dump: -o and --bmap name the same file"));
    }
    let about = ("source", &options.source.display() as _);
    super::begin(&options.common, about, &outputs)?;
    report::until_begun(&options.source.display().to_string());
    report::tell(&options.common, &mut || {
        Ok(Box::new(dump(&options, start)?))
    })
}

fn dump(options: &Options, start: Instant) -> Result<DumpReport> {
    if options.output.is_none() {
        report::check_data("-o FILE", "nothing was frozen")?;
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
            let Outputs { sink, more, .. } = outputs;
            outlet(options, sink, more, &sources, &ready, &totals, &told)?
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
    let (pipeline, surveyor) = (capture.pipeline(), capture.surveyor());
    let figures = capture.run_telling(|figures| {
        *told.lock() = Some(figures);
    });
    let figures = figures.map_err(report::said)?;
    finish(options, parts, bmap.as_ref())?;
    if let Some(part) = bmap {
        write_bmap(options, part, facts.size_bytes, pipeline, surveyor)?;
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
    let odd = prepared.as_it_is.as_ref().or(prepared.twofold.as_ref());
    if let (Some(what), true, false) = (odd, options.raw, quiet) {
        report::line(format_args!(
            "{}: {what}; restore and verify take its raw image with --any-content",
            prepared.name
        ));
    }
    Ok((prepared, emptying))
}
