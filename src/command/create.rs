//! `floe create`: several filesystems, frozen together, as one archive with metadata: to stdout, a file, or a folder of snapshots.
//!
//! `snapshot.json` goes out before anything freezes; checksums and the archive's directory only after a good thaw, so a
//! snapshot that was cut short has neither.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::{Args, Common, Item};
use crate::command::{begin as begin_report, typed};
use crate::config;
use crate::config::pairs::split_pair;
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::fs::Coverage;
use crate::fs::files::Emptying;
use crate::mounts::System;
use crate::put::image::{self, Coming};
use crate::report::Told;
use crate::report::{self, Bytes, JsonObject, Progress, Span};
use crate::signals::Signals;
use crate::snapshot::archive;
use crate::snapshot::framed::closing;
use crate::snapshot::machine::{self, Host};
use crate::snapshot::recorded;
use crate::snapshot::relaid;
use crate::snapshot::store::{self, Store};
use crate::snapshot::{self, Checksum, Checksums, Image, Snapshot};
use crate::stream::archive::{Ending, Text, Written, ZipEmitter};
use crate::stream::frames::{self, send::FrameEmitter, send::ImageSum};
use crate::stream::output::{Output, TotalsCell};
use crate::stream::partfile::PartFile;
use crate::stream::pipeline::{Outlet, Problem};
use crate::take::capture::{Capture, Engine, Figures};
use crate::take::emptied;
use crate::take::glimpse;
use crate::take::options::{self, Streaming, Taking};
use crate::take::ready::ready;
use crate::take::source::{self, Prepared};
use crate::threads::{Lock, RecvTimeoutError, channel};

/// What was typed.
#[derive(Debug)]
pub(super) struct Options {
    pairs: Vec<(String, OsString)>,
    output: Option<PathBuf>,
    keep: Option<usize>,
    comment: String,
    factory: bool,
    rescue: bool,
    /// `--dry-run`: nothing is frozen or written.
    dry_run: bool,
    overwrite: bool,
    disk: Option<OsString>,
    taking: Taking,
    streaming: Streaming,
    common: Common,
}

/// Parses the arguments after `create`.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options {
        pairs: Vec::new(),
        output: None,
        keep: None,
        comment: String::new(),
        factory: false,
        rescue: false,
        dry_run: false,
        overwrite: false,
        disk: None,
        taking: Taking::default(),
        streaming: Streaming::default(),
        common: Common::default(),
    };
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) => add_pair(&mut options.pairs, &value)?,
            Item::Option(name) => option(&mut options, &mut args, name)?,
        }
    }
    if options.pairs.is_empty() {
        return Err(args.missing("NAME=SOURCE"));
    }
    options.taking.check("create")?;
    let elsewhere = options
        .output
        .as_deref()
        .is_some_and(|path| path != Path::new("-"));
    options.streaming.check_frames("create", elsewhere)?;
    options.common = args.common;
    Ok(options)
}

fn option(options: &mut Options, args: &mut Args, name: &str) -> Result<()> {
    match name {
        "--output" => options.output = Some(args.path()?),
        "--keep" => options.keep = Some(args.parsed(keep, "a number from 1 to 9999")?),
        "--comment" => options.comment = args.parsed(comment, "a text of at most 1024 bytes")?,
        "--factory" => options.factory = true,
        "--overwrite" => options.overwrite = true,
        "--rescue" => options.rescue = true,
        "--dry-run" => options.dry_run = true,
        "--disk" => options.disk = Some(args.value()?),
        _ if options.taking.option(args, name)? => {}
        _ if options.streaming.option(args, name)? => {}
        _ => return Err(args.unknown(name)),
    }
    Ok(())
}

fn add_pair(pairs: &mut Vec<(String, OsString)>, value: &OsStr) -> Result<()> {
    let shown = value.display();
    let (name, source) = split_pair(value)
        .ok_or_else(|| Error::usage(format_args!("create: '{shown}' is not NAME=SOURCE")))?;
    if !snapshot::is_name(&name) {
        return Err(Error::usage(format_args!(
            "create: '{name}' is no name of an entry: small letters, digits and ._- (at most {})",
            snapshot::MAX_NAME
        )));
    }
    if pairs.iter().any(|(known, _)| *known == name) {
        return Err(Error::usage(format_args!(
            "create: '{name}' is named twice"
        )));
    }
    if pairs.len() == snapshot::MAX_IMAGES {
        return Err(Error::usage(format_args!(
            "create: more than {} entries",
            snapshot::MAX_IMAGES
        )));
    }
    pairs.push((name, source));
    Ok(())
}

fn keep(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| (1..=9999).contains(count))
}

fn comment(text: &str) -> Option<String> {
    (text.len() <= snapshot::MAX_TEXT).then(|| text.to_owned())
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let sources = typed(options.pairs.iter().map(|(_, source)| source.as_os_str()));
    let outputs = options.output.as_deref();
    begin_report(&options.common, ("source", &sources), outputs.as_slice())?;
    report::until_begun(&sources);
    report::tell(&options.common, &mut || {
        Ok(Box::new(create(&options, start)?))
    })
}

/// Everything the report says.
struct Done {
    path: String,
    snapshot: Snapshot,
    checksums: Checksums,
    figures: Figures,
    written_bytes: u64,
    retired: Vec<PathBuf>,
    total: Duration,
}

impl Done {
    fn sum(&self, of: fn(&Image) -> u64) -> u64 {
        self.snapshot
            .images
            .iter()
            .fold(0, |sum, image| sum.saturating_add(of(image)))
    }

    fn used_bytes(&self) -> u64 {
        let outcomes = self.figures.outcomes.iter();
        outcomes.fold(0, |sum, outcome| sum.saturating_add(outcome.used_bytes))
    }
}

impl Told for Done {
    fn json(&self) -> JsonObject {
        let mut entries = Vec::new();
        for (image, outcome) in self.snapshot.images.iter().zip(&self.figures.outcomes) {
            let path = snapshot::image_path(&image.name);
            let sums = self.checksums.find(&path);
            let mut object = JsonObject::new();
            object
                .str("name", &image.name)
                .str("source", &image.source)
                .str("device", &image.device)
                .str("filesystem", &image.filesystem)
                .str("map", outcome.coverage.name())
                .u64("size_bytes", image.size_bytes)
                .u64("used_bytes", outcome.used_bytes);
            // Of frames the other end knows it.
            match sums.filter(|sums| sums.stored_bytes > 0) {
                Some(sums) => object.u64("stored_bytes", sums.stored_bytes),
                None => object.null("stored_bytes"),
            };
            object.str(
                "crc32",
                &format!("{:08x}", sums.map_or(0, |sums| sums.crc32)),
            );
            entries.push(object.finish());
        }
        let mut object = JsonObject::new();
        object
            .str("path", &self.path)
            .raw("entries", &format!("[{}]", entries.join(",")))
            .u64("size_bytes", self.sum(|image| image.size_bytes))
            .u64("used_bytes", self.used_bytes())
            .u64("read_bytes", self.figures.read_bytes)
            .u64("written_bytes", self.written_bytes)
            .u64("frozen_ms", self.figures.frozen_ms)
            .str("precopy", self.figures.precopy)
            .u64("early_bytes", self.figures.rounds.early_bytes)
            .u64("again_bytes", self.figures.rounds.again_bytes)
            .u64("total_ms", report::millis(self.total))
            .str("consistent", &self.checksums.consistent);
        self.figures.emptied.json(&mut object);
        object
    }

    fn words(&self) -> String {
        let names: Vec<&str> = self
            .snapshot
            .images
            .iter()
            .map(|image| image.name.as_str())
            .collect();
        let coverages = self.figures.outcomes.iter().map(|one| one.coverage);
        let worst = coverages.reduce(|a, b| if a == b { a } else { Coverage::Partial });
        let worst = worst.unwrap_or(Coverage::Whole);
        let held = options::held_words(&self.checksums.consistent, self.figures.frozen_ms);
        let retired = match self.retired.len() {
            0 => String::new(),
            count => format!(", {count} older removed (--keep)"),
        };
        format!(
            "{}: {}: {}, {}, {} read, {} written{}, {held}, {} in all{retired}",
            self.path,
            names.join(" "),
            Bytes(self.sum(|image| image.size_bytes)),
            options::used_words(worst.name(), self.used_bytes()),
            Bytes(self.figures.read_bytes),
            Bytes(self.written_bytes),
            self.figures.emptied.words(),
            Span(self.total)
        )
    }
}

/// Where the snapshot goes.
enum Destination {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
}

fn place(options: &Options) -> Result<Destination> {
    let place = match &options.output {
        Some(path) if path == Path::new("-") => Destination::Stdout,
        Some(path) if path.as_os_str().as_bytes().ends_with(b"/") || path.is_dir() => {
            Destination::Folder(path.clone())
        }
        Some(path) => Destination::File(path.clone()),
        None if options.streaming.frames => Destination::Stdout,
        None => match config::store()? {
            Some(folder) => Destination::Folder(folder),
            None => Destination::Stdout,
        },
    };
    if matches!(place, Destination::Stdout) {
        report::check_stdout()?;
    }
    match &place {
        Destination::Stdout if std::io::stdout().is_terminal() => Err(Error::refused(
            "stdout: is a terminal; redirect it or pipe it, or give -o DIR or -o FILE",
        )
        .leaving("nothing was frozen")),
        Destination::Folder(folder) if !folder.is_dir() => Err(Error::refused(format_args!(
            "{}: is not a folder",
            folder.display()
        ))),
        Destination::Stdout | Destination::File(_) if options.keep.is_some() => Err(Error::usage(
            "create: --keep needs a folder of snapshots (-o DIR, or store = DIR in /etc/floe.conf)",
        )),
        _ => Ok(place),
    }
}

/// The open output.
struct Sink {
    store: Option<Store>,
    part: Option<PartFile>,
    fd: OwnedFd,
    shown: String,
}

impl Sink {
    fn open(place: &Destination, host: &str, time_s: u64) -> Result<Self> {
        let (store, path) = match place {
            Destination::Stdout => {
                let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
                    .map_err(|errno| Error::fault("stdout", Fault::io("dup", errno)))?;
                return Ok(Self {
                    store: None,
                    part: None,
                    fd,
                    shown: "stdout".into(),
                });
            }
            Destination::File(path) => (None, path.clone()),
            Destination::Folder(folder) => {
                let store = Store::open(folder)?;
                let path = store::next(folder, host, time_s)?;
                (Some(store), path)
            }
        };
        let mut part = PartFile::create(&path)?;
        let fd = part
            .take_fd()
            .ok_or_else(|| Error::failed(format_args!("{}: not open", path.display())))?;
        Ok(Self {
            store,
            part: Some(part),
            fd,
            shown: path.display().to_string(),
        })
    }
}

/// `--dry-run`: whether there could be a file, what it would be called, what would be in it, and what would go for it.
fn would(
    options: &Options,
    place: &Destination,
    snapshot: &Snapshot,
    sources: &[Prepared],
) -> Result<Error> {
    let mut retiring = Vec::new();
    let shown = match place {
        Destination::Stdout => "stdout".to_owned(),
        Destination::File(path) => {
            PartFile::check(path)?;
            path.display().to_string()
        }
        Destination::Folder(folder) => {
            store::check(folder)?;
            let path = store::next(folder, &snapshot.host, snapshot.time_s)?;
            PartFile::check(&path)?;
            if let Some(keep) = options.keep {
                // The new one is one of those that stay, unless it is kept apart.
                let class = |path: &Path| archive::class(path, Some(snapshot));
                let others = keep - usize::from(!(options.factory || options.rescue));
                retiring = store::retiring(folder, &snapshot.host, others, class)?;
            }
            path.display().to_string()
        }
    };
    let mut lines = Vec::new();
    for (image, source) in snapshot.images.iter().zip(sources) {
        let used = glimpse::of_source(source);
        let used = used.map_err(|fault| Error::fault(&source.shown, fault))?;
        lines.push(format!(
            "{shown}: would hold {} ({} of {}, {}, about {} used)",
            image.name,
            image.filesystem,
            image.source,
            Bytes(image.size_bytes),
            Bytes(used)
        ));
    }
    for path in retiring {
        lines.push(format!(
            "{}: would be removed, because --keep keeps {} of the same entries, and newer ones are that many",
            path.display(),
            options.keep.unwrap_or_default()
        ));
    }
    Ok(report::dry(&options.common, lines))
}

fn create(options: &Options, start: Instant) -> Result<Done> {
    let place = place(options)?;
    let system = System::look()?;
    let plan = plan(options, &system, &place)?;
    let snapshot = describe(&system, options, &plan.sources, plan.disk.as_ref());
    if let Some(disk) = plan.disk.as_ref().filter(|_| !options.common.quiet) {
        tell_missing(disk, &snapshot);
    }
    if options.dry_run {
        return Err(would(options, &place, &snapshot, &plan.sources)?);
    }
    // What a signal leaves is known only to who takes it.
    let _signals = Signals::block()?;
    let sink = Sink::open(&place, &snapshot.host, snapshot.time_s)?;
    let known = Known::default();
    let figures = take(options, &system, plan, &snapshot, &sink, &known)?;
    if let Some(part) = sink.part {
        part.finish()?;
    }
    // Whoever asked for silence still wants to know what is not as it was asked for.
    figures.emptied.notes().iter().for_each(report::line);
    let retired = match (&sink.store, options.keep) {
        (Some(store), Some(keep)) => store.retire(&snapshot.host, keep, |path| {
            archive::class(path, Some(&snapshot))
        })?,
        _ => Vec::new(),
    };
    let written_bytes = known.totals.lock().written_bytes;
    let checksums = std::mem::take(&mut *known.checksums.lock());
    Ok(Done {
        path: sink.shown,
        snapshot,
        checksums,
        figures,
        written_bytes,
        retired,
        total: start.elapsed(),
    })
}

/// What is to be taken.
struct Plan {
    sources: Vec<Prepared>,
    emptying: Emptying,
    /// Its table and boot area come along.
    disk: Option<recorded::Taken>,
}

fn plan(options: &Options, system: &System, place: &Destination) -> Result<Plan> {
    let sources = choose(options, system, place)?;
    let quiet = options.common.quiet;
    let disk = options.disk.as_ref();
    let disk = disk.map(|name| recorded::take(system, name, quiet));
    let disk = disk.transpose()?;
    let emptying = emptying(options, system, &sources, place)?;
    Ok(Plan {
        sources,
        emptying,
        disk,
    })
}

/// Freezes, reads, thaws, and writes all of it.
fn take(
    options: &Options,
    system: &System,
    plan: Plan,
    snapshot: &Snapshot,
    sink: &Sink,
    known: &Known,
) -> Result<Figures> {
    let quiet = options.common.quiet;
    let mut sources = plan.sources;
    // One thread until here: the guardian is forked now.
    let ready = ready(system, &mut sources, &options.taking, quiet)?;
    // What is kept in a folder comes out empty.
    if sink.store.is_none() && !quiet {
        ready.tell_if_on_itself(&sink.fd, &sink.shown);
    }
    let onto_itself = ready.holds_up(system, &sink.fd);
    let path = sink.part.as_ref().map(|_| Path::new(&sink.shown));
    let streaming = &options.streaming;
    let settings = streaming.settings(&options.common, false, system, &ready, &sources, path)?;
    let fd = rustix::io::fcntl_dupfd_cloexec(&sink.fd, 3);
    let fd = fd.map_err(|errno| Error::fault(&sink.shown, Fault::io("dup", errno)))?;
    let output = Output::new(fd, ready.counters, false);
    let make = outlet(options, output, &sources, (snapshot, plan.disk), known);
    let limit = streaming.wait_sink;
    let outlet = begin(make, &ready.signals, limit, &sink.shown)?;
    let engine = Engine {
        ready,
        precopy: true,
        sink: outlet,
        settings,
        onto_itself,
        quiet,
        progress: Progress::new(&options.common),
        emptying: plan.emptying,
        output: sink.part.as_ref().map(|_| sink.shown.clone()),
    };
    let mut capture = Capture::new(sources, engine, options.taking.wishes)?;
    if sink.part.is_none() {
        capture.wait_sink(sink.fd.as_fd(), limit)?;
    }
    capture.run_telling(|figures| {
        *known.figures.lock() = Some(figures);
    })
}

/// The sources, each of which a restore will take back, and a file that may be written.
fn choose(options: &Options, system: &System, place: &Destination) -> Result<Vec<Prepared>> {
    let named: Vec<(&str, &OsStr)> = options
        .pairs
        .iter()
        .map(|(name, source)| (name.as_str(), source.as_os_str()))
        .collect();
    let wishes = options.taking.wishes;
    let sources = options::prepare_all(system, &named, wishes, options.common.quiet)?;
    for source in sources.iter().filter(|s| s.filesystem != "unknown") {
        if let Some(what) = &source.as_it_is {
            return Err(Error::refused(format_args!(
                "{}: {what}; a snapshot of it would not be taken back: floe dump --whole copies it as it is",
                source.name
            )));
        }
    }
    if let Destination::File(path) = place {
        source::refuse_output(&sources, path)?;
        if !options.overwrite {
            image::check_replaceable(path, Coming::Snapshot)?;
        }
    }
    Ok(sources)
}

/// The files that come out empty: those that were named, and the snapshots that are kept in what is taken.
fn emptying(
    options: &Options,
    system: &System,
    sources: &[Prepared],
    place: &Destination,
) -> Result<Emptying> {
    let mut emptying = options.taking.wanted.emptying(sources)?;
    let own = match place {
        Destination::Folder(folder) => Some(folder),
        Destination::Stdout | Destination::File(_) => None,
    };
    let kept = config::store().ok().flatten();
    for folder in own
        .into_iter()
        .chain(kept.iter().filter(|kept| own != Some(kept)))
    {
        let wishes = options.taking.wishes;
        let note = emptied::spare_snapshots(system, folder, sources, wishes, &mut emptying);
        let note = note.filter(|_| !options.common.quiet);
        note.iter().for_each(report::line);
    }
    Ok(emptying)
}

/// Which partitions of the disk the snapshot does not have.
fn tell_missing(disk: &recorded::Taken, snapshot: &Snapshot) {
    let has = |number: &u32| {
        let number = u64::from(*number);
        snapshot.images.iter().any(|i| i.partition_number == number)
    };
    let numbers = disk.partitions.iter().copied();
    let without: Vec<u32> = numbers.filter(|n| !has(n)).collect();
    if !without.is_empty() {
        report::line(format_args!(
            "note: {}: {}",
            disk.facts.device,
            relaid::numbers(
                &without,
                [
                    "is not part of this snapshot, and restore --disk leaves it empty",
                    "are not part of this snapshot, and restore --disk leaves them empty",
                ]
            )
        ));
    }
}

/// What becomes known while the snapshot is made: its end tells it.
#[derive(Default)]
struct Known {
    figures: Arc<Lock<Option<Figures>>>,
    checksums: Arc<Lock<Checksums>>,
    totals: TotalsCell,
}

/// How the outlet is made, which writes its first bytes: a .zip, or frames for another floe.
fn outlet(
    options: &Options,
    output: Output,
    sources: &[Prepared],
    (snapshot, disk): (&Snapshot, Option<recorded::Taken>),
    known: &Known,
) -> Make {
    let (images, front, time_s) = (paths(snapshot), front(snapshot, disk), snapshot.time_s);
    let consistent = options::weakest(sources);
    let (figures, sums) = (Arc::clone(&known.figures), Arc::clone(&known.checksums));
    let totals = Arc::clone(&known.totals);
    if !features::FRAMES || !options.streaming.frames {
        return Box::new(move || {
            let ending = ending(consistent, figures, sums);
            let emit = ZipEmitter::new(output, time_s, &front, images, ending, totals)?;
            Ok(Outlet::Stream(Box::new(emit)))
        });
    }
    let names = images.iter().map(String::as_str);
    let header = frames::Header {
        is_snapshot: true,
        unix_seconds: time_s,
        front,
        ..options::frames_header(sources, names)
    };
    Box::new(move || {
        let ending = frames_ending(consistent, images, figures, sums);
        let emit = FrameEmitter::new(output, &header, ending, totals)?;
        Ok(Outlet::Frames(Box::new(emit)))
    })
}

fn describe(
    system: &System,
    options: &Options,
    sources: &[Prepared],
    disk: Option<&recorded::Taken>,
) -> Snapshot {
    let host = Host::look();
    let (golden, empty) = options.taking.wanted.metadata();
    Snapshot {
        golden,
        empty,
        floe: env!("CARGO_PKG_VERSION").into(),
        time_s: machine::now_s(),
        host: host.name,
        architecture: host.architecture,
        board: host.board,
        kernel: host.kernel,
        os: host.os,
        comment: options.comment.clone(),
        factory: options.factory,
        rescue: options.rescue,
        disk: disk.map(|disk| disk.facts.clone()),
        images: options
            .pairs
            .iter()
            .zip(sources)
            .map(|((name, _), prepared)| image(system, name, prepared, disk))
            .collect(),
    }
}

fn image(
    system: &System,
    name: &str,
    prepared: &Prepared,
    disk: Option<&recorded::Taken>,
) -> Image {
    let identity = prepared.identity.as_ref();
    let partition = prepared.dev.and_then(|dev| system.partition_entry(dev));
    Image {
        name: name.into(),
        source: prepared.name.clone(),
        device: prepared.shown.clone(),
        filesystem: prepared.filesystem.into(),
        uuid: identity.map_or_else(String::new, |found| found.uuid.as_str().into()),
        label: identity.map_or_else(String::new, |found| found.label.as_str().into()),
        partition_type: partition
            .as_ref()
            .map_or_else(String::new, |p| p.kind.to_string()),
        partition_label: partition
            .as_ref()
            .map_or_else(String::new, |p| p.name.as_str().into()),
        partition_uuid: partition
            .as_ref()
            .map_or_else(String::new, |p| p.uuid.as_str().into()),
        // Only a partition of the disk that is taken along can be found again by its number.
        partition_number: match (&partition, disk) {
            (Some(found), Some(disk)) if disk.holds(system, prepared.dev) => found.number.into(),
            (Some(found), None) => found.number.into(),
            _ => 0,
        },
        size_bytes: prepared.size_bytes,
        used_bytes: prepared.used_bytes(),
    }
}

fn paths(snapshot: &Snapshot) -> Vec<String> {
    let images = snapshot.images.iter();
    images
        .map(|image| snapshot::image_path(&image.name))
        .collect()
}

/// What stands before the images.
fn front(snapshot: &Snapshot, disk: Option<recorded::Taken>) -> Vec<Text> {
    let mut front = vec![Text {
        path: snapshot::SNAPSHOT.into(),
        bytes: snapshot.to_json().into_bytes(),
    }];
    if let Some(disk) = disk {
        for (path, bytes) in [(snapshot::TABLE, disk.table), (snapshot::BOOT, disk.boot)] {
            if !bytes.is_empty() {
                front.push(Text {
                    path: path.into(),
                    bytes,
                });
            }
        }
    }
    front
}

/// What stands behind them: made after the thaw.
fn ending(
    consistent: &'static str,
    told: Arc<Lock<Option<Figures>>>,
    known: Arc<Lock<Checksums>>,
) -> Ending {
    Box::new(move |written: &[Written]| {
        let told = told.lock();
        let figures = told
            .as_ref()
            .ok_or_else(|| Fault::refused("an end before the thaw"))?;
        let maps = figures
            .outcomes
            .iter()
            .map(|outcome| (outcome.coverage.name(), Some(outcome.used_bytes)));
        let (checksums, texts) = closing(written, consistent, figures.frozen_ms, maps);
        *known.lock() = checksums;
        Ok(texts)
    })
}

/// The same of frames: the other end makes them, and what of it is known here goes into the report.
fn frames_ending(
    consistent: &'static str,
    images: Vec<String>,
    told: Arc<Lock<Option<Figures>>>,
    known: Arc<Lock<Checksums>>,
) -> frames::send::Ending {
    Box::new(move |sums: &[ImageSum]| {
        let told = told.lock();
        let figures = told
            .as_ref()
            .ok_or_else(|| Fault::refused("an end before the thaw"))?;
        let entries = images.iter().zip(sums).map(|(path, sum)| Checksum {
            path: path.clone(),
            size_bytes: sum.raw_bytes,
            stored_bytes: 0,
            crc32: sum.crc32,
            sha256: [0; 32],
            map: String::new(),
            used_bytes: None,
        });
        *known.lock() = Checksums {
            frozen_ms: figures.frozen_ms,
            consistent: consistent.into(),
            entries: entries.collect(),
        };
        Ok(options::frames_report(consistent, figures))
    })
}

/// Writes the first bytes.
type Make = Box<dyn FnOnce() -> std::result::Result<Outlet, Problem> + Send>;

/// Writes the front in a thread of its own: a reader that takes nothing must neither hold up a signal nor wait for ever.
fn begin(make: Make, signals: &Signals, limit: Duration, shown: &str) -> Result<Outlet> {
    let (send, receive) = channel();
    crate::threads::start(
        c"floe-front",
        256 * 1024,
        Box::new(move || {
            let _ = send.send(make());
        }),
    )
    .map_err(|e| Error::failed(format_args!("floe: start a thread: {e}")))?;
    let start = Instant::now();
    loop {
        if let Some(number) = signals.take() {
            return Err(Error::signal(number));
        }
        match receive.recv_timeout(Duration::from_millis(50)) {
            Ok(Ok(emitter)) => return Ok(emitter),
            Ok(Err(problem)) => return Err(options::early(shown, problem)),
            Err(RecvTimeoutError::Timeout) if start.elapsed() > limit => {
                return Err(Error::refused(format_args!(
                    "{shown}: the reader has not taken the first bytes within {} s; give it longer with --wait-sink",
                    limit.as_secs()
                )).leaving("nothing was frozen"));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::failed("floe: a thread died").leaving("nothing was frozen"));
            }
        }
    }
}
