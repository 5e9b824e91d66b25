//! `floe restore` of a snapshot: named entries onto their targets, or everything onto an empty disk with the recorded table.
//!
//! Order: what the snapshot says of itself is judged; every target is checked and held; of a file all checksums are checked
//! without unpacking; only then the first byte is written. From a pipe an entry's CRC is known before its superblock is
//! written, the rest only at the end.

mod disk;
mod errand;
mod origin;
mod states;
mod writer;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use self::disk::EmptyDisk;
use self::errand::{Errand, errands};
use self::origin::{EntrySource, check, origin};
use self::states::states_of;
use self::writer::unpack;
use crate::config::pairs::split_pair;
use crate::device::Device;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::put::figures::{self, RestoreReport};
use crate::put::grow;
use crate::put::options::Options;
use crate::put::phase::Phase;
use crate::put::room::{self, Need};
use crate::put::supervise::{SignalWatch, supervise};
use crate::put::target::{self, Chosen};
use crate::report::{self, Bytes, Elapsed, JsonObject};
use crate::snapshot::machine::Machine;
use crate::snapshot::{Snapshot, image_path};
use crate::stream::copy::CopyProgress;
use crate::stream::image::open::OpenedImage;
use crate::units::Extent;

/// An entry that was written: its name, its filesystem, and the figures.
pub(crate) type Restored = (String, &'static str, RestoreReport);

/// A place on a disk that is laid out anew, for an entry.
pub(crate) struct EntryTarget {
    /// The entry's name.
    pub name: String,
    /// What messages call it.
    pub shown: String,
    /// The disk.
    pub device: Device,
    /// Where on it.
    pub range: Extent,
}

/// Runs the verb for an archive. Entries with a place go there, besides those that the options name. The report is written
/// where the options ask for one. `watch` is dropped before the first write.
pub(crate) fn run(
    options: &Options,
    opened: OpenedImage,
    watch: SignalWatch,
    places: Vec<EntryTarget>,
    start: Instant,
) -> Result<Vec<Restored>> {
    let nothing = |error: Error| error.leaving(NOTHING_WRITTEN);
    let file = opened.file.try_clone();
    let file = file.map_err(|e| Error::std(&opened.subject, "dup", &e))?;
    let has_come = opened.come_bytes.is_some();
    let origin = origin(opened).map_err(nothing)?;
    let (subject, found) = origin.subject_and_snapshot();
    let pairs = pairs(options, &subject, &found)?;
    let progress = Arc::new(CopyProgress::default());
    let disk = match &options.disk {
        Some(name) => Some(EmptyDisk::choose(name, options, &subject, &found, &file)?),
        None => None,
    };
    let chosen = choose(options, &pairs, &found, &file)?;
    let checked = check(&origin, options, (&found, &file), &pairs).map_err(nothing)?;
    let input_length = checked.as_ref().map(|checked| checked.bytes);
    for (name, content) in checked.iter().flat_map(|checked| &checked.contents) {
        for (_, target) in chosen.iter().filter(|(wanted, _)| wanted == name) {
            target.check_sectors(content)?;
        }
    }
    if input_length.is_none() && !has_come && !options.common.quiet {
        report::line(format_args!(
            "{subject}: comes through a pipe: that all of it is right is known only at its end; until then no target shows a filesystem"
        ));
    }
    if options.dry_run {
        return Err(would(options, &found, chosen, disk, &origin)?);
    }
    room_for(&chosen, &found, &origin)?;
    let (mut errands, mut laid) =
        errands(options, chosen, (disk, places), &origin, &found, &progress)?;
    let taken = |errand: &mut Errand| Some((errand.made.take()?, Arc::clone(&errand.shared)));
    let made: Vec<_> = errands.iter_mut().filter_map(taken).collect();
    let of_disk = laid
        .as_mut()
        .and_then(|laid| Some((laid.made.take()?, Arc::clone(&laid.phase))));
    let states = states_of(&errands, laid.as_ref());
    let verify = options.verify;
    let name = subject.clone();
    drop(watch);
    let any = options.any;
    let work = move || unpack(origin, errands, laid, (verify, any), (&name, &file));
    let done = supervise(
        &options.common,
        &progress,
        &|| states.interrupted(options.overwrite),
        &subject,
        input_length,
        work,
    );
    for (made, shared) in made {
        made.settle(&shared.phase);
    }
    if let Some((made, phase)) = of_disk
        && phase.get() != Phase::UNTOUCHED
    {
        made.keep();
    }
    let (done, notes) = done.map_err(|error| states.explain(error, options.common.quiet))?;
    finish(options, &subject, &done, &notes, start)?;
    Ok(done)
}

/// `--dry-run`: the last checks, and what would be done.
fn would(
    options: &Options,
    found: &Snapshot,
    chosen: Vec<(String, Chosen)>,
    disk: Option<EmptyDisk>,
    origin: &EntrySource,
) -> Result<Error> {
    let mut lines = room_for(&chosen, found, origin)?;
    for (name, target) in &chosen {
        let (shown, dev) = target.named();
        let Some(image) = found.image(name) else {
            continue;
        };
        if options.grow {
            grow::check(shown, dev, &image.filesystem, &image.uuid)?;
        }
        lines.push(format!(
            "{}: {}would be written with {name} ({}, {})",
            shown.display(),
            target.holds()?.map_or(String::new(), |holds| holds + ", "),
            image.filesystem,
            report::Bytes(image.size_bytes)
        ));
    }
    if let Some(disk) = disk {
        lines.extend(disk.would(found, &chosen, origin)?);
    }
    let mut object = JsonObject::new();
    object
        .bool("dry_run", true)
        .raw("would", &report::json_list(&lines));
    report::write(&object)?;
    Ok(report::dry(&options.common, lines))
}

/// Refuses files for which there is surely no room; lines for those that may not fit.
fn room_for(
    chosen: &[(String, Chosen)],
    found: &Snapshot,
    origin: &EntrySource,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (name, target) in chosen {
        let stored = match origin {
            EntrySource::File(_) => origin.stored_bytes(&image_path(name)),
            EntrySource::Pipe(_) => 0,
        };
        let most = found.image(name).map_or(0, |image| match image.used_bytes {
            0 => image.size_bytes,
            used => used.min(image.size_bytes),
        });
        lines.extend(room::check(target, Need::packed(stored, most))?);
    }
    Ok(lines)
}

/// A snapshot of another kind of machine hardly runs here.
pub(crate) fn check_machine(subject: &str, snapshot: &Snapshot, here: &Machine) -> Result<()> {
    for (what, theirs, ours) in [
        ("architecture", &snapshot.architecture, &here.architecture),
        ("board model", &snapshot.board, &here.board),
    ] {
        if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
            return Err(Error::refused(format_args!(
                "{subject}: is of another {what}: {theirs}, here it is {ours}; --force restores it all the same"
            )));
        }
    }
    Ok(())
}

/// The targets of what has come up to its images: what [`run`] finds out first.
pub(crate) fn targets(
    options: &Options,
    subject: &str,
    snapshot: &Snapshot,
    file: &std::fs::File,
) -> Result<Vec<(String, Chosen)>> {
    choose(options, &pairs(options, subject, snapshot)?, snapshot, file)
}

/// The NAME=TARGET of the command line, for a snapshot of this kind of machine.
fn pairs(options: &Options, subject: &str, snapshot: &Snapshot) -> Result<Vec<(String, OsString)>> {
    if !options.force {
        check_machine(subject, snapshot, &Machine::look())?;
    }
    let names: Vec<&str> = snapshot.images.iter().map(|i| i.name.as_str()).collect();
    let names = names.join(", ");
    let mut pairs: Vec<(String, OsString)> = Vec::new();
    for value in &options.targets {
        let pair = split_pair(value).ok_or_else(|| {
            Error::usage(format_args!(
                "restore: {subject} is a snapshot of {names}: '{}' is not NAME=TARGET",
                value.display()
            ))
        })?;
        if pairs.iter().any(|(name, _)| *name == pair.0) {
            return Err(Error::usage(format_args!(
                "restore: '{}' is named twice",
                pair.0
            )));
        }
        if snapshot.image(&pair.0).is_none() {
            return Err(Error::refused(format_args!(
                "{subject}: has no entry '{}'; it has {names}",
                pair.0
            )));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Checks and holds every target.
fn choose(
    options: &Options,
    pairs: &[(String, OsString)],
    snapshot: &Snapshot,
    file: &std::fs::File,
) -> Result<Vec<(String, Chosen)>> {
    let targets = pairs.iter().map(|(_, target)| target.as_os_str());
    target::check_distinct(targets.chain(options.disk.as_deref()))?;
    let mut chosen = Vec::new();
    for (name, target) in pairs {
        let found = Chosen::find(target, file)?;
        found.check_size(snapshot.image(name).map_or(0, |image| image.size_bytes))?;
        found.check_content(options.overwrite)?;
        chosen.push((name.clone(), found));
    }
    Ok(chosen)
}

fn finish(
    options: &Options,
    subject: &str,
    done: &[Restored],
    notes: &[String],
    start: Instant,
) -> Result<()> {
    let took = start.elapsed();
    if options.common.report.is_some() {
        let entries: Vec<String> = done
            .iter()
            .map(|(name, filesystem, done)| {
                let mut object = figures::figures(options, done, filesystem, took);
                object.str("name", name);
                object.finish()
            })
            .collect();
        let mut object = report::JsonObject::new();
        object
            .str("path", subject)
            .raw("entries", &format!("[{}]", entries.join(",")))
            .u64(
                "total_ms",
                u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            );
        report::write(&object)?;
    }
    if options.common.quiet {
        return Ok(());
    }
    for (_, filesystem, done) in done {
        figures::last_line(options, done, filesystem, took);
    }
    notes.iter().for_each(report::line);
    let names: Vec<&str> = done.iter().map(|(name, _, _)| name.as_str()).collect();
    let bytes = done.iter().fold(0u64, |sum, (_, _, done)| {
        sum.saturating_add(done.written_bytes)
    });
    report::line(format_args!(
        "{subject}: restored {}, {} written, in {}",
        names.join(" "),
        Bytes(bytes),
        Elapsed(took)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_architecture_or_board_is_refused_and_what_is_not_known_is_not_compared() {
        let here = Machine {
            architecture: "aarch64".into(),
            board: "Alpha Board".into(),
            ..Machine::default()
        };
        for (architecture, board, wrong) in [
            ("aarch64", "Alpha Board", None),
            ("aarch64", "", None),
            ("", "Alpha Board", None),
            (
                "armv7l",
                "Alpha Board",
                Some("of another architecture: armv7l, here it is aarch64"),
            ),
            (
                "aarch64",
                "Beta Board",
                Some("of another board model: Beta Board, here it is Alpha Board"),
            ),
        ] {
            let snapshot = Snapshot {
                architecture: architecture.into(),
                board: board.into(),
                ..Snapshot::default()
            };
            match (check_machine("x.zip", &snapshot, &here), wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(wrong)) => {
                    let line = error.to_string();
                    assert!(line.contains(wrong) && line.contains("--force"), "{line}");
                }
                (found, _) => panic!("{architecture} {board}: {found:?}"),
            }
            let nothing = Machine::default();
            check_machine("x.zip", &snapshot, &nothing).unwrap();
        }
    }
}
