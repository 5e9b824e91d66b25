//! `--empty`, `--golden`, and the store of the machine itself: which files come out empty in an image, whether that can be done, and
//! what became of it, in words and in reports.
//!
//! Decided before anything freezes; done by the surveyor in the window; told after the thaw.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::source::{Prepared, Reading, Wishes};
use crate::cli::Args;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::features;
use crate::fs::Kind;
use crate::fs::files::{Emptying, Pattern, can_empty};
use crate::golden;
use crate::mounts::{DevId, System};
use crate::report::{JsonObject, json_list};

/// Most `--empty` of one run.
const MAX_PATTERNS: usize = 256;

/// What was typed.
#[derive(Debug, Default)]
pub(crate) struct EmptyOptions {
    /// `--empty`.
    paths: Vec<Pattern>,
    /// `--golden`.
    golden: bool,
}

impl EmptyOptions {
    /// Takes option `name` with its value; `false`: it is none of these.
    pub(crate) fn option(&mut self, args: &mut Args, name: &str) -> Result<bool> {
        match name {
            "--golden" => self.golden = true,
            "--empty" => {
                let value = args.value()?;
                let pattern = Pattern::parse(value.as_bytes());
                let pattern = pattern.map_err(|why| {
                    Error::usage(format_args!("--empty: '{}' {why}", value.display()))
                })?;
                if self.paths.len() == MAX_PATTERNS {
                    return Err(Error::usage(format_args!(
                        "--empty: more than {MAX_PATTERNS} paths; a folder with '/' at its end means every file below"
                    )));
                }
                self.paths.push(pattern);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether anything is to be emptied.
    pub(crate) fn any(&self) -> bool {
        self.golden || !self.paths.is_empty()
    }

    /// What does not go together with it.
    pub(crate) fn check(&self, verb: &str, wishes: Wishes) -> Result<()> {
        let against = match (wishes.whole, wishes.live) {
            (true, _) => "--whole (which keeps what was deleted)",
            (_, true) => "--live (where nothing holds still)",
            _ => return Ok(()),
        };
        match self.any() {
            true => Err(Error::usage(format_args!(
                "{verb}: --empty and --golden do not go together with {against}"
            ))),
            false => Ok(()),
        }
    }

    /// For snapshots: `--golden`, and the paths of `--empty`.
    pub(crate) fn metadata(&self) -> (bool, Vec<String>) {
        (self.golden, self.paths.iter().map(shown).collect())
    }

    /// What is to be done for these sources; refused where it cannot be done for each filesystem that may hold such files.
    pub(crate) fn emptying(&self, sources: &[Prepared]) -> Result<Emptying> {
        if !features::GOLDEN || !self.any() {
            return Ok(Emptying::default());
        }
        let mut any = false;
        let kinds = sources.iter().flat_map(|source| {
            let kinds = source
                .segments
                .iter()
                .filter_map(|segment| kind(&segment.reading));
            kinds.map(move |kind| (source, kind))
        });
        for (source, kind) in kinds {
            any |= can_empty(kind);
            if !can_empty(kind) && !holds_no_identity(kind) {
                return Err(refused(source, kind.name()));
            }
        }
        if let (false, Some(source)) = (any, sources.first()) {
            return Err(refused(source, source.filesystem));
        }
        let mut patterns = self.paths.clone();
        let told = patterns.len();
        if self.golden {
            patterns.extend(golden::patterns());
        }
        let mut emptying = Emptying::new(patterns, told);
        emptying.clears_deleted = self.golden;
        Ok(emptying)
    }
}

fn kind(reading: &Reading) -> Option<Kind> {
    match reading {
        Reading::Map(identity) => Some(identity.kind),
        Reading::Whole(identity) => identity.as_ref().map(|identity| identity.kind),
        Reading::Gap => None,
    }
}

/// Beside others on a disk these need nothing: boot partitions, swap, and what was made elsewhere and is never written.
fn holds_no_identity(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Fat12
            | Kind::Fat16
            | Kind::Fat32
            | Kind::Exfat
            | Kind::Squashfs
            | Kind::Erofs
            | Kind::Swap
    )
}

fn refused(source: &Prepared, filesystem: &str) -> Error {
    let shown = &source.shown;
    let subject = match source.name == *shown {
        true => shown.clone(),
        false => format!("{}: {shown}", source.name),
    };
    Error::refused(format_args!(
        "{subject}: files cannot be emptied in an image of {filesystem} (only of ext2, ext3 and ext4); without --empty and --golden, restore the image, mount it and empty them there"
    ))
    .leaving(NOTHING_WRITTEN)
}

/// Adds the snapshots of `folder`, where that lies on one of the sources: they would contain themselves. A line where it cannot be done.
pub(crate) fn spare_snapshots(
    system: &System,
    folder: &Path,
    sources: &[Prepared],
    wishes: Wishes,
    emptying: &mut Emptying,
) -> Option<String> {
    let (dev, path) = inside(system, folder)?;
    let mut part = 0;
    for source in sources {
        for segment in &source.segments {
            let device = source.devices.get(segment.device);
            let is_there = device.is_some_and(|opened| opened.device.rdev() == dev.raw());
            let is_btrfs = source
                .mounted
                .iter()
                .any(|mounted| mounted.mount.dev == dev);
            if is_there || is_btrfs {
                // As the store names them: HOST-YYYYMMDDThhmmssZ-SEQ.zip, and .part while they are made.
                let mut pattern = path.as_os_str().as_bytes().to_owned();
                pattern.extend_from_slice(b"/*-*T*Z-*.zip*");
                let can = kind(&segment.reading).is_some_and(can_empty);
                if let (true, false, false, Ok(pattern)) =
                    (can, wishes.whole, wishes.live, Pattern::parse(&pattern))
                {
                    emptying.add(part, pattern);
                    return None;
                }
                return Some(format!(
                    "note: {} lies on {}: its snapshots become part of this one; keep them on another filesystem",
                    folder.display(),
                    source.name
                ));
            }
            part += 1;
        }
    }
    None
}

/// The filesystem that `folder` lies on, and its path from that filesystem's own root.
fn inside(system: &System, folder: &Path) -> Option<(DevId, PathBuf)> {
    let folder = folder.canonicalize().ok()?;
    let fd = rustix::fs::open(&folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // The number that stat gives is of btrfs a subvolume's.
    let dev = system.mount_of(&fd)?.0.dev;
    let mounts = system.table().of_dev(dev);
    let below = mounts.filter(|mount| folder.starts_with(&mount.point));
    // Of mounts over each other the last one is seen.
    let mount = below.max_by_key(|mount| (mount.point.as_os_str().len(), mount.id))?;
    let rest = folder.strip_prefix(&mount.point).ok()?;
    Some((dev, mount.root.join(rest)))
}

/// What was emptied, after the thaw.
#[derive(Debug, Default)]
pub(crate) struct Emptied {
    /// Whether somebody asked for it.
    asked: bool,
    files: u64,
    freed_bytes: u64,
    paths: Vec<String>,
    /// Of `--empty`: what named no file.
    missing: Vec<String>,
    /// Why snapshots of the store were not left out, where that was so.
    spared: Option<String>,
}

fn shown(pattern: &Pattern) -> String {
    String::from_utf8_lossy(pattern.bytes()).into_owned()
}

impl Emptied {
    /// From what the surveyor did.
    pub(crate) fn new(emptying: &Emptying) -> Self {
        let log = &emptying.log;
        Self {
            asked: emptying.insists(),
            files: log.files,
            freed_bytes: log.freed_bytes,
            paths: log
                .names()
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect(),
            missing: emptying.without_match().map(shown).collect(),
            spared: log.gave_up.map(|fault| fault.to_string()),
        }
    }

    /// Adds its keys to a report.
    pub(crate) fn json(&self, object: &mut JsonObject) {
        if !self.asked && self.files == 0 {
            return;
        }
        object
            .raw("emptied", &json_list(&self.paths))
            .u64("emptied_files", self.files)
            .u64("emptied_bytes", self.freed_bytes)
            .raw("empty_without_match", &json_list(&self.missing));
    }

    /// For the last line: how many, and why where nobody asked for it.
    pub(crate) fn words(&self) -> String {
        match (self.asked, self.files) {
            (false, 0) => String::new(),
            (true, 0) => ", no file emptied".into(),
            (true, 1) => ", 1 file emptied".into(),
            (true, files) => format!(", {files} files emptied"),
            (false, 1) => ", 1 file of the store that lies in it left empty".into(),
            (false, files) => format!(", {files} files of the store that lies in it left empty"),
        }
    }

    /// Lines before the last one.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(why) = &self.spared {
            notes.push(format!(
                "note: snapshots that lie on a source could not be left out, and became part of this one: {why}"
            ));
        }
        for pattern in &self.missing {
            notes.push(format!(
                "note: --empty {pattern}: no regular file has that name, nothing was emptied for it (a folder's files are meant by a / at the end)"
            ));
        }
        notes
    }
}
