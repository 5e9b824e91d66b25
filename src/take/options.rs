//! What the verbs that take images of running filesystems (`dump`, `create`, `clone`) share: the options that say how a source is
//! read and held, those that say how a stream goes out, and how such a run is reported.
//!
//! Nothing here touches the system before the whole command line was understood.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FileType;

use crate::cli::{Args, Common};
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::freeze::Limits;
use crate::fs::Still;
use crate::mounts::System;
use crate::report::{self, Bytes, Elapsed, JsonObject, json_list};
use crate::stream::frames::{Framed, StreamHeader};
use crate::stream::pipeline::known::Hashes;
use crate::stream::pipeline::{Encoding, Problem, Settings};
use crate::take::capture::CaptureFigures;
use crate::take::emptied::EmptyOptions;
use crate::take::memory::{self, Spool};
use crate::take::precopy;
use crate::take::ready::Ready;
use crate::take::source::{self, Prepared, Wishes};
use crate::threads;

/// How sources are read and held still.
#[derive(Debug, Default)]
pub(crate) struct Taking {
    /// `--live`, `--whole` and `--require-map`.
    pub wishes: Wishes,
    /// `--stall` and `--max-freeze`.
    pub limits: Limits,
    /// `--empty` and `--golden`.
    pub wanted: EmptyOptions,
    /// `--precopy`.
    pub precopy: precopy::Wanted,
}

impl Taking {
    /// Takes option `name` with its value; `false`: it is none of these.
    pub(crate) fn option(&mut self, args: &mut Args, name: &str) -> Result<bool> {
        match name {
            "--whole" => self.wishes.whole = true,
            "--require-map" => self.wishes.require_map = true,
            "--live" => self.wishes.live = true,
            "--precopy" => self.precopy = args.parsed(precopy::Wanted::parse, "auto or off")?,
            "--stall" => self.limits.stall = args.time()?,
            "--max-freeze" => self.limits.max_freeze = args.time()?,
            _ => return self.wanted.option(args, name),
        }
        Ok(true)
    }

    /// After the last option: what does not go together.
    pub(crate) fn check(&self, verb: &str) -> Result<()> {
        if self.wishes.whole && self.wishes.require_map {
            return Err(Error::usage(format_args!(
                "{verb}: --whole and --require-map exclude each other"
            )));
        }
        if self.limits.stall.is_zero() || self.limits.max_freeze.is_zero() {
            return Err(Error::usage(format_args!(
                "{verb}: --stall and --max-freeze must not be zero"
            )));
        }
        self.wanted.check(verb, self.wishes)
    }
}

/// How a stream is made and waited for.
#[derive(Debug)]
pub(crate) struct Streaming {
    /// `--level`.
    pub level: u8,
    /// `--wait-sink`.
    pub wait_sink: Duration,
    /// `--spool`.
    pub spool: Spool,
    /// `--spool-file`.
    pub spool_file: Option<PathBuf>,
    /// `--frames`.
    pub frames: bool,
    /// `--frames-known`: what is at the other end says on stdin what it has already.
    pub known: bool,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            level: 1,
            wait_sink: Duration::from_secs(60),
            spool: Spool::Auto,
            spool_file: None,
            frames: false,
            known: false,
        }
    }
}

impl Streaming {
    /// Takes option `name` with its value; `false`: it is none of these.
    pub(crate) fn option(&mut self, args: &mut Args, name: &str) -> Result<bool> {
        match name {
            "--level" => self.level = args.parsed(level, "a level from 1 to 9")?,
            "--wait-sink" => self.wait_sink = args.time()?,
            "--frames" => self.frames = true,
            "--frames-known" => (self.frames, self.known) = (true, true),
            "--spool-file" => self.spool_file = Some(args.path()?),
            "--spool" => self.spool = args.parsed(Spool::parse, "a size, auto or off")?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What does not go together with `--frames`: they go to another floe, and nowhere else.
    pub(crate) fn check_frames(&self, verb: &str, elsewhere: bool) -> Result<()> {
        if !self.frames {
            return Ok(());
        }
        let stdout = rustix::stdio::stdout();
        let kind = rustix::fs::fstat(stdout).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let is_kept = matches!(kind, Ok(FileType::RegularFile | FileType::BlockDevice));
        if elsewhere || is_kept || rustix::termios::isatty(stdout) {
            return Err(crate::cli::usage(
                verb,
                format_args!(
                    "--frames is for a pipe into floe restore -, verify - or artifact -, which put an image together; frames are not one, and are not kept: leave --frames out for a file"
                ),
            ));
        }
        Ok(())
    }

    fn hashes(&self) -> Result<Option<Hashes>> {
        if !features::FRAMES || !self.known {
            return Ok(None);
        }
        let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
        let stdin = stdin.map_err(|errno| Error::fault("stdin", Fault::io("dup", errno)))?;
        Ok(Some(Hashes {
            from: Arc::new(stdin),
            waits: false,
        }))
    }

    /// Whether what comes under the freeze surely has some room to wait in.
    pub(crate) fn has_room(&self) -> bool {
        const SOME: u64 = 16 << 20;
        self.spool.bytes() >= SOME
    }

    /// What the pipeline is made of; `raw`: without deflate. `part`: the file that is written, beside which there may be room.
    pub(crate) fn settings(
        &self,
        common: &Common,
        raw: bool,
        system: &System,
        ready: &Ready,
        sources: &[Prepared],
        part: Option<&Path>,
    ) -> Result<Settings> {
        let spool_bytes = self.spool.bytes();
        // A bit more than what is used: files grow, and what cannot be packed gets a little longer.
        let used = sources.iter().map(Prepared::used_bytes);
        let used = used.fold(0, u64::saturating_add);
        let wanted_bytes = used.saturating_add(used / 32).saturating_add(64 << 20);
        let freezes = |file: &File| ready.holds_up(system, file);
        let spool_file = match (&self.spool_file, part) {
            (Some(file), _) => Some(memory::spool_file(file, wanted_bytes, freezes)?),
            (None, Some(part)) if spool_bytes < wanted_bytes && self.spool != Spool::Off => {
                memory::spool_beside(part, wanted_bytes, freezes)
            }
            _ => None,
        };
        Ok(Settings {
            jobs: threads::jobs(common.jobs),
            encoding: match raw {
                true => Encoding::Raw,
                false => Encoding::Deflate(self.level),
            },
            spool_bytes,
            spool_file,
            precopy: None,
            hashes: self.hashes()?,
        })
    }
}

pub(crate) fn level(text: &str) -> Option<u8> {
    text.parse().ok().filter(|level| (1..=9).contains(level))
}

/// A stream that failed at its first bytes, before anything was frozen.
pub(crate) fn early(shown: &str, problem: Problem) -> Error {
    match problem {
        Problem::ClosedPipe => Error::failed(format_args!("{shown}: the reader closed the pipe"))
            .leaving("nothing was frozen"),
        Problem::Write(fault) | Problem::Read(_, fault) | Problem::Internal(fault) => {
            Error::fault(shown, fault).leaving("nothing was frozen")
        }
    }
}

/// The header of frames, for images with these names.
pub(crate) fn frames_header<'a>(
    sources: &[Prepared],
    paths: impl Iterator<Item = &'a str>,
) -> StreamHeader {
    let images = sources.iter().zip(paths).map(|(source, path)| Framed {
        path: path.to_owned(),
        parts: source
            .segments
            .iter()
            .map(|segment| segment.length_bytes)
            .collect(),
    });
    StreamHeader {
        images: images.collect(),
        ..StreamHeader::default()
    }
}

/// The report in the end frame.
pub(crate) fn frames_report(consistent: &str, figures: &CaptureFigures) -> String {
    let outcomes = figures.outcomes.iter();
    let maps: Vec<String> = outcomes
        .clone()
        .map(|outcome| outcome.coverage.name().to_owned())
        .collect();
    let used: Vec<String> = outcomes.map(|one| one.used_bytes.to_string()).collect();
    let mut object = JsonObject::new();
    object.str("consistent", consistent);
    figures.window(&mut object);
    object
        .raw("maps", &json_list(&maps))
        .raw("used", &format!("[{}]", used.join(",")));
    object.finish()
}

/// How the sources were held, in words: `consistent` is the report's word for it.
pub(crate) fn held_words(consistent: &str, frozen_ms: u64) -> String {
    let held = Elapsed(Duration::from_millis(frozen_ms));
    match consistent {
        "live" => "LIVE: read while it may have changed, not consistent".into(),
        "readonly" if frozen_ms > 0 => format!("read-only for {held}"),
        "readonly" => "read-only".into(),
        _ if frozen_ms > 0 => format!("frozen {held}"),
        other => other.into(),
    }
}

/// What was to be read, in words: *used* only where that was proven for every part of it. `map` is the report's word for how far.
pub(crate) fn used_words(map: &str, bytes: u64) -> String {
    match map {
        "used" => format!("{} used", Bytes(bytes)),
        "whole" => "taken whole".into(),
        _ => format!("{} used or unclear", Bytes(bytes)),
    }
}

/// Prepares several sources, each with the name it has in messages; refuses those that share a filesystem.
pub(crate) fn prepare_all(
    system: &System,
    named: &[(&str, &OsStr)],
    wishes: Wishes,
    quiet: bool,
) -> Result<Vec<Prepared>> {
    let mut sources: Vec<Prepared> = Vec::new();
    for (name, source) in named {
        let prepared = source::prepare(system, source, wishes)?;
        for ((known_name, _), known) in named.iter().zip(&sources) {
            if same(system, known, &prepared) {
                return Err(Error::refused(format_args!(
                    "{name}: {} holds the same as {known_name}; name each filesystem once, or the disk alone",
                    prepared.shown
                )));
            }
        }
        if !quiet {
            prepared.notes.iter().for_each(report::line);
        }
        sources.push(prepared);
    }
    Ok(sources)
}

/// The same device, a disk and its partition, or the same filesystem of several devices.
fn same(system: &System, one: &Prepared, other: &Prepared) -> bool {
    let shared = one.mounted.iter().any(|a| {
        let mut others = other.mounted.iter();
        others.any(|b| a.devices.iter().any(|dev| b.devices.contains(dev)))
    });
    let disk = |prepared: &Prepared| prepared.dev.and_then(|dev| system.roots().disk_of(dev));
    let nested = match (one.dev, other.dev) {
        (Some(a), Some(b)) => a == b || disk(one) == Some(b) || disk(other) == Some(a),
        _ => false,
    };
    shared || nested
}

/// The report's word for how all of them were held still: the weakest of them.
pub(crate) fn weakest(sources: &[Prepared]) -> &'static str {
    let rank = |still: Still| match still {
        Still::Unmounted => 0,
        Still::Frozen => 1,
        Still::ReadOnly => 2,
        Still::Moving | Still::Glimpse => 3,
    };
    let stills = sources.iter().map(|prepared| prepared.still);
    source::consistent(
        stills
            .max_by_key(|still| rank(*still))
            .unwrap_or(Still::Moving),
    )
}

/// True for `none`.
pub(crate) fn compression(text: &str) -> Option<bool> {
    match text {
        "gzip" => Some(false),
        "none" => Some(true),
        _ => None,
    }
}
