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

mod copy;
mod finish;
mod pairs;
mod standby;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::copy::{Copy, Wants};
use self::finish::{Finish, Finished};
use self::pairs::Pair;
use super::capture::{self, Capture, Counters, Engine, Figures};
use super::memory::Spool;
use super::prepare::{self, Prepared};
use super::restore::supervise;
use super::taking::{self, Taking, Told, held_words, millis, prepare_all, weakest};
use super::target::Overwrite;
use crate::cli::{Args, Common, Item};
use crate::error::{Error, Exit, Result};
use crate::mounts::System;
use crate::report::{self, Bytes, JsonObject, Progress, Span};
use crate::stream::pipeline::{Encoding, Outlet, Settings};

/// Writes in flight where `--jobs` does not say: they wait for the medium, not for a CPU.
const WRITES: usize = 4;

/// What was typed.
#[derive(Debug)]
pub struct Options {
    pairs: Vec<Pair>,
    /// `--pairs`: where the pairs are read from; the configuration where neither is given.
    file: Option<PathBuf>,
    overwrite: Overwrite,
    wants: Wants,
    spool: Spool,
    taking: Taking,
    common: Common,
}

/// Parses the arguments after `clone`.
pub fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options {
        pairs: Vec::new(),
        file: None,
        overwrite: Overwrite::Refused,
        wants: Wants {
            verify: false,
            skip_free: false,
        },
        spool: Spool::Auto,
        taking: Taking::default(),
        common: Common::default(),
    };
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) => pairs::add(&mut options.pairs, &value)?,
            Item::Option(name) => option(&mut options, &mut args, &name)?,
        }
    }
    if options.file.is_some() && !options.pairs.is_empty() {
        return Err(Error::usage(
            "clone: pairs on the command line and --pairs exclude each other",
        ));
    }
    options.taking.check("clone")?;
    options.common = args.common;
    Ok(options)
}

fn option(options: &mut Options, args: &mut Args, name: &str) -> Result<()> {
    match name {
        "--pairs" => options.file = Some(args.path()?),
        "--overwrite" => options.overwrite = Overwrite::Allowed,
        "--verify" => options.wants.verify = true,
        "--skip-free" => options.wants.skip_free = true,
        "--spool" => options.spool = args.parsed(Spool::parse, "a size, auto or off")?,
        _ if options.taking.option(args, name)? => {}
        _ => return Err(args.unknown(name)),
    }
    Ok(())
}

/// Runs the verb.
pub fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    taking::tell(&options.common, None, &mut || {
        Ok(Box::new(clone(&options, start)?))
    })
}

/// What one pair became.
struct Archived {
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
}

/// Everything the report says.
struct Done {
    archived: Vec<Archived>,
    wants: Wants,
    consistent: &'static str,
    running_root: Vec<PathBuf>,
    figures: Figures,
    total: Duration,
}

impl Done {
    fn sum(&self, of: fn(&Archived) -> u64) -> u64 {
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
            "{} read, {}, {} in all",
            Bytes(self.figures.read_bytes),
            held_words(self.consistent, self.figures.frozen_ms),
            Span(self.total)
        ));
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
            "note: {root}active and standby are identical now, labels and uuids too: which of them boots next is the bootloader's to choose (fw_setenv, RAUC, Mender)"
        ));
        lines
    }
}

impl Archived {
    fn words(&self, wants: Wants) -> String {
        let verified = match wants.verify {
            true => ", read back and equal",
            false => "",
        };
        let skipped = match wants.skip_free {
            true => format!(", {} free and left as it was", Bytes(self.skipped_bytes)),
            false => String::new(),
        };
        format!(
            "{} to {}: {} {}, {} used, {} written, {} zeroed{skipped}{verified}",
            self.source,
            self.target,
            self.filesystem,
            Bytes(self.size_bytes),
            Bytes(self.used_bytes),
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
            .u64("zeroed_bytes", self.zeroed_bytes)
            .u64("skipped_bytes", self.skipped_bytes);
        object.finish()
    }
}

impl Told for Done {
    fn json(&self) -> JsonObject {
        let pairs: Vec<String> = self.archived.iter().map(Archived::json).collect();
        let mut object = JsonObject::new();
        object
            .raw("pairs", &format!("[{}]", pairs.join(",")))
            .u64("size_bytes", self.sum(|one| one.size_bytes))
            .u64("used_bytes", self.sum(|one| one.used_bytes))
            .u64("read_bytes", self.figures.read_bytes)
            .u64("written_bytes", self.sum(|one| one.written_bytes))
            .u64("zeroed_bytes", self.sum(|one| one.zeroed_bytes))
            .u64("frozen_ms", self.figures.frozen_ms)
            .u64("total_ms", millis(self.total))
            .str("consistent", self.consistent)
            .bool("skipped_free", self.wants.skip_free)
            .bool("verified", self.wants.verify);
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
fn clone(options: &Options, start: Instant) -> Result<Done> {
    let quiet = options.common.quiet;
    let typed = match options.pairs.is_empty() {
        true => pairs::read(options.file.as_deref())?,
        false => options.pairs.clone(),
    };
    let system = System::look()?;
    let names: Vec<(&str, &OsStr)> = typed
        .iter()
        .map(|pair| {
            (
                pair.source.to_str().unwrap_or("source"),
                pair.source.as_os_str(),
            )
        })
        .collect();
    let mut sources = prepare_all(&system, &names, options.taking.wishes, quiet)?;
    let targets = standby::find(&system, &typed, &mut sources, options.overwrite)?;
    let running_root = system.running_root();
    let mut archived = describe(&sources, &targets);
    let consistent = weakest(&sources);
    let copy = Copy::new(&sources, targets, options.wants)?;
    if !quiet {
        for pair in &archived {
            report::line(format_args!("Copying {} to {} …", pair.source, pair.target));
        }
    }

    let (figures, finished) = match write(&system, options, sources, copy) {
        Ok(done) => done,
        Err(error) => return Err(left(error, copy)),
    };
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
        }
    }
    let done = Done {
        archived,
        wants: options.wants,
        consistent,
        running_root,
        figures,
        total: start.elapsed(),
    };
    if !quiet {
        finished.notes.iter().for_each(report::line);
        done.notes().iter().for_each(report::line);
    }
    Ok(done)
}

/// Freezes, copies, thaws, and finishes the targets.
fn write(
    system: &System,
    options: &Options,
    mut sources: Vec<Prepared>,
    copy: &'static Copy,
) -> Result<(Figures, Finished)> {
    // One thread until here: the guardian is forked now.
    let mounted = sources
        .iter_mut()
        .flat_map(|prepared| std::mem::take(&mut prepared.mounted))
        .collect();
    let wishes = options.taking.wishes;
    let guarded = prepare::targets(system, mounted, wishes)?;
    let quiet = options.common.quiet;
    let (signals, guardian) = capture::guard(guarded, options.taking.limits, quiet)?;
    let counters = Counters::leak(guardian.as_ref().map(crate::freeze::Guardian::progress));
    let engine = Engine {
        guardian,
        signals,
        counters,
        sink: Outlet::Places(copy),
        settings: Settings {
            jobs: options.common.jobs.unwrap_or(WRITES),
            encoding: Encoding::Raw,
            spool_bytes: options.spool.bytes(),
        },
        progress: Progress::new(quiet, options.common.progress),
    };
    let capture = Capture::new(sources, engine, wishes)?;
    let pipeline = capture.pipeline();
    let figures = capture.run().inspect_err(|error| {
        if matches!(error, Error::Signal(_)) {
            report::line(format_args!("interrupted; {}", copy.state()));
        }
    })?;
    let plan = pipeline
        .plan()
        .ok_or_else(|| Error::failed("floe: internal: no plan"))?;
    let progress = Arc::default();
    let finish = Finish {
        copy,
        plan,
        progress: Arc::clone(&progress),
    };
    let finished = supervise(
        &options.common,
        &progress,
        &|| copy.state(),
        "finishing",
        None,
        move || finish.run(),
    )?;
    Ok((figures, finished))
}

/// After the first write a refusal is 1, never 4, and every message says what state the targets are in.
fn left(error: Error, copy: &Copy) -> Error {
    match error {
        Error::Message(_, line) if copy.is_begun() => {
            Error::Message(Exit::Failed, line).leaving(&copy.state())
        }
        Error::Message(exit, line) if !line.contains("nothing was") => {
            Error::Message(exit, line).leaving("nothing was written")
        }
        other => other,
    }
}

/// What is known before anything is read.
fn describe(sources: &[Prepared], targets: &[standby::Standby]) -> Vec<Archived> {
    let pairs = sources.iter().zip(targets);
    pairs
        .map(|(source, target)| Archived {
            source: source.name.clone(),
            device: source.shown.clone(),
            target: target.name.clone(),
            filesystem: source.filesystem,
            map: "",
            size_bytes: source.size_bytes,
            used_bytes: 0,
            written_bytes: 0,
            zeroed_bytes: 0,
            skipped_bytes: 0,
        })
        .collect()
}
