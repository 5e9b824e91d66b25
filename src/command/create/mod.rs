//! `floe create`: several filesystems, frozen together, as one archive with metadata: to stdout, a file, or a folder of snapshots.
//!
//! `snapshot.json` goes out before anything freezes; checksums and the archive's directory only after a good thaw, so a
//! snapshot that was cut short has neither.

mod described;
mod destination;
mod outlet;
mod summary;

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use self::described::describe;
use self::destination::{Destination, OpenOutput, would};
use self::outlet::{SnapshotEnd, begin, outlet};
use self::summary::CreateReport;
use crate::cli::{Args, Common, Item};
use crate::command::{begin as begin_report, typed};
use crate::config;
use crate::config::pairs::split_pair;
use crate::content::UNKNOWN;
use crate::error::{Error, Fault, Result};
use crate::fs::files::Emptying;
use crate::mounts::System;
use crate::report::{self, Progress};
use crate::signals::Signals;
use crate::snapshot::replace::{self, Coming};
use crate::snapshot::retire::{self, Like};
use crate::snapshot::{self, Marks, Snapshot, recorded, relaid};
use crate::stream::output::Output;
use crate::take::capture::{Capture, CaptureFigures, Engine};
use crate::take::emptied;
use crate::take::options::{self, Streaming, Taking};
use crate::take::ready::ready;
use crate::take::source::{self, Prepared};

/// What was typed.
#[derive(Debug, Default)]
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
    let mut options = Options::default();
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

fn create(options: &Options, start: Instant) -> Result<CreateReport> {
    let place = destination::of(options)?;
    let system = System::look()?;
    let plan = plan(options, &system, &place)?;
    let snapshot = describe(&system, options, &plan.sources, plan.disk.as_ref());
    if let Some(disk) = &plan.disk {
        // Of the image of a disk no source can be a partition.
        let mut numbers = snapshot.images.iter().map(|image| image.partition_number);
        if disk.is_device() && numbers.all(|number| number == 0) {
            return Err(Error::refused(format_args!(
                "{}: none of the sources is a partition of it, so that restore --disk would leave every partition empty; name the disk they are on, or leave out --disk",
                disk.facts.device
            )));
        }
        if !options.common.quiet {
            tell_missing(disk, &snapshot);
        }
    }
    if options.dry_run {
        return Err(would(options, &place, &snapshot, &plan.sources)?);
    }
    // What a signal leaves is known only to who takes it.
    let _signals = Signals::block()?;
    let sink = OpenOutput::open(&place, &snapshot.host, snapshot.time_s)?;
    let known = SnapshotEnd::default();
    let figures = take(options, &system, plan, &snapshot, &sink, &known);
    let figures = figures.map_err(report::said)?;
    if let Some(part) = sink.part {
        part.finish()?;
    }
    // Whoever asked for silence still wants to know what is not as it was asked for.
    figures.emptied.notes().iter().for_each(report::line);
    let written_bytes = known.totals.lock().written_bytes;
    let checksums = std::mem::take(&mut *known.checksums.lock());
    let like = Like {
        snapshot: &snapshot,
        consistent: &checksums.consistent,
    };
    let retired = match (&sink.store, options.keep) {
        (Some(store), Some(keep)) => {
            let class = |path: &Path| retire::class(path, &like);
            store.retire(&snapshot.host, keep, class)?
        }
        _ => Vec::new(),
    };
    Ok(CreateReport {
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
struct CreatePlan {
    sources: Vec<Prepared>,
    emptying: Emptying,
    /// Its table and boot area come along.
    disk: Option<recorded::RecordedDisk>,
}

fn plan(options: &Options, system: &System, place: &Destination) -> Result<CreatePlan> {
    let sources = choose(options, system, place)?;
    let quiet = options.common.quiet;
    let disk = options.disk.as_ref();
    let disk = disk.map(|name| recorded::take(system, name, quiet));
    let disk = disk.transpose()?;
    let emptying = emptying(options, system, &sources, place)?;
    Ok(CreatePlan {
        sources,
        emptying,
        disk,
    })
}

/// Freezes, reads, thaws, and writes all of it.
fn take(
    options: &Options,
    system: &System,
    plan: CreatePlan,
    snapshot: &Snapshot,
    sink: &OpenOutput,
    known: &SnapshotEnd,
) -> Result<CaptureFigures> {
    let quiet = options.common.quiet;
    let mut sources = plan.sources;
    // One thread until here: the guardian is forked now.
    let ready = ready(system, &mut sources, &options.taking, quiet)?;
    // What is kept in a folder comes out empty.
    let is_told = sink.store.is_none() && !quiet;
    let note = ready.note_on_itself(&sink.fd, &sink.shown);
    let onto_itself = ready.holds_up(system, &sink.fd);
    let path = sink.part.as_ref().map(|_| Path::new(&sink.shown));
    let streaming = &options.streaming;
    let settings = streaming.settings(&options.common, false, system, &ready, &sources, path)?;
    let fd = rustix::io::fcntl_dupfd_cloexec(&sink.fd, 3);
    let fd = fd.map_err(|errno| Error::fault(&sink.shown, Fault::io("dup", errno)))?;
    let output = Output::new(fd, ready.counters, false);
    let make = outlet(options, output, &sources, snapshot, plan.disk, known);
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
    // What is refused needs no note.
    note.iter().filter(|_| is_told).for_each(report::line);
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
    for source in sources.iter().filter(|s| s.filesystem != UNKNOWN) {
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
            let marks = Marks {
                factory: options.factory,
                rescue: options.rescue,
            };
            replace::check(path, Coming::Snapshot(Some(marks)))?;
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
fn tell_missing(disk: &recorded::RecordedDisk, snapshot: &Snapshot) {
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
