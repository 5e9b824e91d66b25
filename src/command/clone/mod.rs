//! `floe clone`: active filesystems onto standby devices, live.
//!
//! ```text
//!  pairs ─► prepare sources ─► check every target ─► freeze ─► survey ─► wipe heads, read ═► write ─► look again ─► thaw
//!                                                                                                                    │
//!           archived ◄─ first superblocks ◄─ compare (--verify) ◄─ flush ◄─ zero what is free ◄──────────────────────┘
//! ```
//!
//! Everything up to the freeze writes nothing, so a refusal leaves every target as it was. From the first write to the last a
//! target looks empty, neither old nor new. The order of the steps is in [`clone`]; what they do is in the files beside this one.

mod factory;
mod finish;
mod standby;
mod targets;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::finish::{Finish, Finished};
use self::standby::Standby;
use self::targets::{Targets, Wants};
use crate::cli::{Args, Common, Item};
use crate::command::{begin, typed as words};
use crate::config::pairs::{self, Pair};
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::fs::files::Emptying;
use crate::medium::{self, Medium, MediumOptions, Role, partitions_named};
use crate::mounts::{DevId, System};
use crate::put::figures::unchanged;
use crate::put::supervise::supervise;
use crate::put::target::Overwrite;
use crate::put::{grow, uuid};
use crate::report::{self, Bytes, Elapsed, JsonObject, Progress, Told, millis};
use crate::stream::pipeline::{Encoding, Outlet, Settings};
use crate::take::capture::{Capture, CaptureFigures, Engine};
use crate::take::memory::Spool;
use crate::take::options::{Taking, held_words, prepare_all, used_words, weakest};
use crate::take::ready::ready;
use crate::take::source::Prepared;
use crate::threads::forgive;
use crate::units::Extent;

/// Writes in flight where `--jobs` does not say: they wait for the medium, not for a CPU.
const WRITES: usize = 4;

/// What was typed.
#[derive(Debug, Default)]
pub(super) struct Options {
    pairs: Vec<Pair>,
    /// `--pairs`: where the pairs are read from; the configuration where neither is given.
    file: Option<PathBuf>,
    overwrite: Overwrite,
    wants: Wants,
    /// `--dry-run`: nothing is written.
    dry_run: bool,
    medium: MediumOptions,
    after: After,
    /// `--factory`: what is kept instead of what runs.
    factory: bool,
    spool: Spool,
    taking: Taking,
    common: Common,
}

/// What is done to a copy when it is complete.
#[derive(Clone, Copy, Debug, Default)]
struct After {
    /// `--grow`.
    grow: bool,
    /// `--new-uuid`.
    new_uuid: bool,
}

/// Parses the arguments after `clone`.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) => pairs::add(&mut options.pairs, &value)?,
            Item::Option(name) => option(&mut options, &mut args, name)?,
        }
    }
    if options.file.is_some() && !options.pairs.is_empty() {
        return Err(Error::usage(
            "clone: pairs on the command line and --pairs exclude each other",
        ));
    }
    options.taking.check("clone")?;
    options.medium.check()?;
    if options.medium.as_primary && options.after.new_uuid {
        return Err(Error::usage(
            "clone: --as-primary keeps the identifiers, and --new-uuid changes them",
        ));
    }
    if options.factory && options.taking.wanted.any() {
        return Err(Error::usage(
            "clone: --factory and --empty or --golden do not go together: what is kept comes back as it was",
        ));
    }
    if options.factory && options.after.new_uuid {
        return Err(Error::usage(
            "clone: --factory and --new-uuid do not go together: what is kept comes back as it was",
        ));
    }
    options.common = args.common;
    Ok(options)
}

fn option(options: &mut Options, args: &mut Args, name: &str) -> Result<()> {
    match name {
        "--pairs" => options.file = Some(args.path()?),
        "--overwrite" => options.overwrite = Overwrite::Allowed,
        "--dry-run" => options.dry_run = true,
        "--verify" => options.wants.verify = true,
        "--skip-free" => options.wants.skip_free = true,
        "--only-changes" => options.wants.only_changes = true,
        "--grow" => options.after.grow = true,
        "--factory" => options.factory = true,
        "--new-uuid" => options.after.new_uuid = true,
        "--spool" => options.spool = args.parsed(Spool::parse, "a size, auto or off")?,
        _ if options.taking.option(args, name)? => {}
        _ if options.medium.option(args, name)? => {}
        _ => return Err(args.unknown(name)),
    }
    Ok(())
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let sources = options.pairs.iter().map(|pair| pair.source.as_os_str());
    let targets = options.pairs.iter().map(|pair| Path::new(&pair.target));
    let targets: Vec<&Path> = targets.collect();
    let sources = words(sources);
    begin(&options.common, ("source", &sources), &targets)?;
    if options.factory {
        return factory::run(&options, &typed(&options)?);
    }
    report::until_begun(&sources);
    report::tell(&options.common, &mut || {
        Ok(Box::new(clone(&options, start)?))
    })
}

/// The pairs of the command line, or of a file.
fn typed(options: &Options) -> Result<Vec<Pair>> {
    match options.pairs.is_empty() {
        true => pairs::read(options.file.as_deref()),
        false => Ok(options.pairs.clone()),
    }
}

/// What one pair became.
#[derive(Default)]
struct ClonedPair {
    source: String,
    device: String,
    target: String,
    filesystem: &'static str,
    map: &'static str,
    size_bytes: u64,
    used_bytes: u64,
    written_bytes: u64,
    zeroed_bytes: u64,
    skipped_bytes: u64,
    unchanged_bytes: u64,
}

/// Everything the report says.
struct CloneReport {
    archived: Vec<ClonedPair>,
    wants: Wants,
    new_uuid: bool,
    /// Files come out empty: the two differ on purpose.
    empties: bool,
    consistent: &'static str,
    running_root: Vec<PathBuf>,
    /// What this system runs from, or a disk, was copied.
    boots: bool,
    figures: CaptureFigures,
    total: Duration,
}

impl CloneReport {
    fn sum(&self, of: fn(&ClonedPair) -> u64) -> u64 {
        let values = self.archived.iter().map(of);
        values.fold(0, u64::saturating_add)
    }

    /// The lines before the last one.
    fn notes(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .archived
            .iter()
            .map(|one| one.words(self.wants))
            .collect();
        lines.push(format!(
            "{} read{}, {}, {} in all",
            Bytes(self.figures.read_bytes),
            self.figures.emptied.words(),
            held_words(self.consistent, self.figures.frozen_ms),
            Elapsed(self.total)
        ));
        if self.empties {
            return lines;
        }
        let uuids = match self.new_uuid {
            true => "but for their uuids",
            false => "labels and uuids too",
        };
        if !self.boots {
            lines.push(format!(
                "note: active and standby are identical now, {uuids}: what mounts by LABEL= or UUID= may find either, and what boots next is the bootloader's to choose"
            ));
            return lines;
        }
        let roots: Vec<String> = self
            .running_root
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let root = match roots.is_empty() {
            true => String::new(),
            false => format!("the running root is on {}; ", roots.join(" ")),
        };
        lines.push(format!(
            "note: {root}active and standby are identical now, {uuids}: which of them boots next is the bootloader's to choose (fw_setenv, RAUC, Mender)"
        ));
        lines
    }
}

impl ClonedPair {
    fn words(&self, wants: Wants) -> String {
        let verified = match wants.verify {
            true => ", read back and equal",
            false => "",
        };
        let skipped = match wants.skip_free {
            true => format!(", {} free and left as it was", Bytes(self.skipped_bytes)),
            false => String::new(),
        };
        let unchanged = unchanged(wants.only_changes, self.unchanged_bytes);
        format!(
            "{} to {}: {} {}, {}, {} written, {} zeroed{unchanged}{skipped}{verified}",
            self.source,
            self.target,
            self.filesystem,
            Bytes(self.size_bytes),
            used_words(self.map, self.used_bytes),
            Bytes(self.written_bytes),
            Bytes(self.zeroed_bytes),
        )
    }

    fn json(&self) -> String {
        let mut object = JsonObject::new();
        object
            .str("source", &self.source)
            .str("device", &self.device)
            .str("target", &self.target)
            .str("filesystem", self.filesystem)
            .str("map", self.map)
            .u64("size_bytes", self.size_bytes)
            .u64("used_bytes", self.used_bytes)
            .u64("written_bytes", self.written_bytes)
            .u64("unchanged_bytes", self.unchanged_bytes)
            .u64("zeroed_bytes", self.zeroed_bytes)
            .u64("skipped_bytes", self.skipped_bytes);
        object.finish()
    }
}

impl Told for CloneReport {
    fn json(&self) -> JsonObject {
        let pairs: Vec<String> = self.archived.iter().map(ClonedPair::json).collect();
        let mut object = JsonObject::new();
        object
            .raw("pairs", &format!("[{}]", pairs.join(",")))
            .u64("size_bytes", self.sum(|one| one.size_bytes))
            .u64("used_bytes", self.sum(|one| one.used_bytes))
            .u64("read_bytes", self.figures.read_bytes)
            .u64("written_bytes", self.sum(|one| one.written_bytes))
            .u64("unchanged_bytes", self.sum(|one| one.unchanged_bytes))
            .u64("zeroed_bytes", self.sum(|one| one.zeroed_bytes));
        self.figures.window(&mut object);
        object
            .u64("total_ms", millis(self.total))
            .str("consistent", self.consistent)
            .bool("skipped_free", self.wants.skip_free)
            .bool("verified", self.wants.verify);
        self.figures.emptied.json(&mut object);
        match self.running_root.first() {
            Some(root) => object.str("running_root", &root.to_string_lossy()),
            None => object.null("running_root"),
        };
        object
    }

    fn words(&self) -> String {
        let names: Vec<&str> = self
            .archived
            .iter()
            .map(|one| one.source.as_str())
            .collect();
        format!(
            "The following filesystems were archived: {}",
            names.join(" ")
        )
    }
}

/// The verb, step by step.
fn clone(options: &Options, start: Instant) -> Result<CloneReport> {
    let quiet = options.common.quiet;
    let typed = typed(options)?;
    let system = System::look()?;
    let names = typed.iter().map(|pair| pair.source.as_os_str());
    let names: Vec<(&str, &OsStr)> = names
        .map(|source| (source.to_str().unwrap_or("source"), source))
        .collect();
    let mut sources = prepare_all(&system, &names, options.taking.wishes, quiet)?;
    let emptying = options.taking.wanted.emptying(&sources)?;
    let (targets, medium) = targets(&system, options, &typed, &mut sources)?;
    let copies = copies(options.after, &sources, &targets)?;
    if let Some(medium) = medium.as_ref().filter(|_| !quiet) {
        medium.print();
    }
    let running_root = system.running_root();
    let runs = system.root_devices();
    let boots = sources.iter().any(|source| {
        let is_disk = source.identity.is_none() && source.segments.len() > 1;
        is_disk || source.dev.is_some_and(|dev| runs.contains(&dev))
    });
    let mut archived = describe(&sources, &targets);
    let consistent = weakest(&sources);
    if options.dry_run {
        return Err(would(options, &archived));
    }
    let copy = Targets::new(&sources, targets, medium, options.wants)?;
    if !quiet {
        for pair in &archived {
            report::line(format_args!("Copying {} to {} …", pair.source, pair.target));
        }
    }

    let (figures, finished) = match write(&system, options, sources, emptying, copy) {
        Ok(done) => done,
        Err(error) => return Err(left(error, copy)),
    };
    let more = complete(options.after, copies, copy)?;
    count(&mut archived, &figures, &finished, copy);
    let done = CloneReport {
        archived,
        wants: options.wants,
        new_uuid: options.after.new_uuid,
        empties: options.taking.wanted.any(),
        consistent,
        running_root,
        boots,
        figures,
        total: start.elapsed(),
    };
    done.figures.emptied.notes().iter().for_each(report::line);
    if !quiet {
        finished.notes.iter().chain(&more).for_each(report::line);
        done.notes().iter().for_each(report::line);
    }
    Ok(done)
}

/// `--dry-run`: what would be written.
fn would(options: &Options, archived: &[ClonedPair]) -> Error {
    let would = archived.iter().map(|one| {
        let (source, size) = (&one.source, Bytes(one.size_bytes));
        format!(
            "{}: would be written with {source} ({}, {size})",
            one.target, one.filesystem
        )
    });
    report::dry(&options.common, would)
}

/// Adds to each copy what it came to.
fn count(
    archived: &mut [ClonedPair],
    figures: &CaptureFigures,
    finished: &Finished,
    copy: &Targets,
) {
    for (index, one) in archived.iter_mut().enumerate() {
        if let Some(outcome) = figures.outcomes.get(index) {
            one.map = outcome.coverage.name();
            one.used_bytes = outcome.used_bytes;
        }
        if let Some((zeroed, skipped)) = finished.figures.get(index) {
            (one.zeroed_bytes, one.skipped_bytes) = (*zeroed, *skipped);
        }
        if let Some(onto) = copy.onto.get(index) {
            one.written_bytes = onto.written.load(Ordering::Relaxed);
            let target = forgive(onto.target.read());
            one.unchanged_bytes = target.unchanged_bytes();
        }
    }
}

/// The targets, checked: devices, partitions of a medium by their names, or places on a disk that is laid out anew.
fn targets(
    system: &System,
    options: &Options,
    pairs: &[Pair],
    sources: &mut [Prepared],
) -> Result<(Vec<Standby>, Option<Medium>)> {
    let wanted = &options.medium;
    if wanted.media.is_none() {
        let found = standby::find(system, pairs, sources, options.overwrite)?;
        return Ok((found, None));
    }
    if !wanted.partition {
        let pairs = partitions_named(system, wanted, pairs)?;
        let found = standby::find(system, &pairs, sources, options.overwrite)?;
        return Ok((found, None));
    }
    let mut roles = Vec::new();
    let mut from = Vec::new();
    for (pair, source) in pairs.iter().zip(&*sources) {
        let role = Role::parse(&pair.target)?;
        roles.push(role);
        from.push(medium::RoleSource {
            role,
            name: source.name.clone(),
            filesystem: source.filesystem.into(),
            size_bytes: source
                .identity
                .as_ref()
                .filter(|found| found.size_bytes > 0 && !source.mounted.is_empty())
                .map_or(source.size_bytes, |found| found.size_bytes),
            dev: source.dev,
        });
    }
    let medium = Medium::plan(system, wanted, &from, options.overwrite)?;
    if options.after.grow || options.after.new_uuid {
        medium.check_nodes()?;
    }
    let found = standby::on_medium(&medium, &roles, sources)?;
    Ok((found, Some(medium)))
}

/// Where a copy will be found when it is complete.
struct Copied {
    name: String,
    dev: DevId,
    range: Option<Extent>,
}

/// What is done to the copies afterwards is checked before the first write.
fn copies(after: After, sources: &[Prepared], targets: &[Standby]) -> Result<Vec<Copied>> {
    let mut places = Vec::new();
    for (source, target) in sources.iter().zip(targets) {
        let dev = DevId::from_raw(target.device.rdev());
        let identity = source.identity.as_ref();
        if after.grow {
            let uuid = identity.map_or("", |found| &found.uuid);
            grow::check(target.name.as_ref(), Some(dev), source.filesystem, uuid)?;
        }
        if let Some(opened) = source.devices.first().filter(|_| after.new_uuid) {
            let kind = identity.map(|found| found.kind);
            uuid::check(&source.name, &opened.device, kind)?;
        }
        places.push(Copied {
            name: target.name.clone(),
            dev,
            range: target.range,
        });
    }
    Ok(places)
}

/// The rest of a medium, and what was asked to be done to the copies; gives notes.
fn complete(after: After, copies: Vec<Copied>, copy: &Targets) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut held = copy.medium.lock();
    let medium = held.take();
    if medium.is_some() || after.grow || after.new_uuid {
        copy.release()?;
    }
    if let Some(medium) = medium {
        notes.extend(medium.finish()?);
    }
    for place in copies.iter().filter(|_| after.grow || after.new_uuid) {
        let name = place.name.as_str();
        let dev = match place.range {
            Some(range) => Medium::dev_of(place.dev, range),
            None => Some(place.dev),
        };
        let dev = dev.ok_or_else(|| {
            Error::failed(format_args!(
                "{name}: the copy is complete, but the kernel shows no such partition, so that nothing more could be done to it"
            ))
        })?;
        if after.new_uuid {
            notes.push(format!("{name}: {}", uuid::renew(name.as_ref(), dev)?));
        }
        if after.grow {
            notes.push(format!("{name}: {}", grow::grow(name.as_ref(), dev)?));
        }
    }
    Ok(notes)
}

/// Freezes, copies, thaws, and finishes the targets.
fn write(
    system: &System,
    options: &Options,
    mut sources: Vec<Prepared>,
    emptying: Emptying,
    copy: &'static Targets,
) -> Result<(CaptureFigures, Finished)> {
    // One thread until here: the guardian is forked now.
    let wishes = options.taking.wishes;
    let quiet = options.common.quiet;
    let ready = ready(system, &mut sources, &options.taking, quiet)?;
    let engine = Engine {
        ready,
        precopy: copy.takes_back(),
        onto_itself: false,
        quiet,
        sink: Outlet::Places(copy),
        settings: Settings {
            jobs: options.common.jobs.unwrap_or(WRITES),
            encoding: Encoding::Raw,
            spool_bytes: options.spool.bytes(),
            precopy: None,
            spool_file: None,
            hashes: None,
        },
        progress: Progress::new(&options.common),
        emptying,
        output: None,
    };
    let capture = Capture::new(sources, engine, wishes)?;
    let pipeline = capture.pipeline();
    let figures = capture.run().inspect_err(|error| {
        if error.is_signal() {
            report::interrupted(copy.subject(), &copy.interrupted(options.overwrite));
        }
    })?;
    let plan = pipeline
        .plan()
        .ok_or_else(|| Error::failed("floe: internal: no plan"))?;
    let progress = Arc::default();
    let finish = Finish {
        targets: copy,
        plan,
        progress: Arc::clone(&progress),
    };
    let finished = supervise(
        &options.common,
        &progress,
        &|| copy.interrupted(options.overwrite),
        copy.subject(),
        None,
        move || finish.run(),
    )?;
    Ok((figures, finished))
}

/// After the first write a refusal is 1, never 4, and every message says what state the targets are in.
fn left(error: Error, copy: &Targets) -> Error {
    match copy.is_touched() {
        true => error.begun(&copy.state()),
        false => error.leaving(NOTHING_WRITTEN),
    }
}

/// What is known before anything is read.
fn describe(sources: &[Prepared], targets: &[Standby]) -> Vec<ClonedPair> {
    let pairs = sources.iter().zip(targets);
    pairs
        .map(|(source, target)| ClonedPair {
            source: source.name.clone(),
            device: source.shown.clone(),
            target: target.name.clone(),
            filesystem: source.filesystem,
            size_bytes: source.size_bytes,
            ..ClonedPair::default()
        })
        .collect()
}
