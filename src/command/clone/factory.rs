//! `clone --factory`: the kept factory snapshot instead of the running system, and with it the configuration of the kept rescue
//! snapshot: what that holds, except `/`, comes from there.
//!
//! A pair finds its entry by the SOURCE that it was made from. Both snapshots, every checksum and every target are checked before
//! the first write; nothing is frozen.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cli::Common;
use crate::command::clone::Options;
use crate::command::typed as words;
use crate::config;
use crate::config::pairs::Pair;
use crate::error::{Error, Exit, NOTHING_WRITTEN, Result};
use crate::medium::{Medium, Role, RoleSource, partitions_named};
use crate::mounts::{DevId, System};
use crate::put::supervise::{CHECKING, SignalWatch};
use crate::put::target::{Chosen, Overwrite};
use crate::put::{figures, grow, options};
use crate::report::{self, JsonObject};
use crate::snapshot::archive::Catalog;
use crate::snapshot::unpack::{self, EntryTarget, Restored};
use crate::snapshot::{ImageEntry, entry, image_path, machine, store};
use crate::stream::image::open::OpenedImage;
use crate::stream::image::whole::Any;
use crate::units::Extent;

/// A kept snapshot and what is taken from it.
struct KeptSource {
    path: PathBuf,
    catalog: Catalog,
    parts: Vec<(ImageEntry, Pair)>,
}

/// Runs the verb with what is kept.
pub(super) fn run(options: &Options, pairs: &[Pair]) -> Result<()> {
    let start = Instant::now();
    let system = System::look()?;
    let media = &options.medium;
    let named;
    let pairs = match media.media.is_some() && !media.partition {
        true => {
            named = partitions_named(&system, media, pairs)?;
            &named
        }
        false => pairs,
    };
    let watch = SignalWatch::start("what is kept", CHECKING)?;
    let kept = find(pairs)?;
    let medium = check(options, &system, &kept)?;
    let quiet = options.common.quiet;
    if let Some(medium) = medium.as_ref().filter(|_| !quiet) {
        medium.print();
    }
    if options.dry_run {
        let parts = kept
            .iter()
            .flat_map(|one| one.parts.iter().map(|part| (&one.path, part)));
        let would = parts.map(|(path, (_, pair))| {
            let (source, target) = (pair.source.display(), pair.target.display());
            format!(
                "{target}: would be written with {source} of {}",
                path.display()
            )
        });
        return Err(report::dry(&options.common, would));
    }
    drop(watch);
    let archived = write_all(options, &kept, medium, start)?;
    report::write(&figures(options, &archived, start))?;
    if !quiet {
        let names: Vec<String> = pairs
            .iter()
            .map(|pair| pair.source.display().to_string())
            .collect();
        report::line(format_args!(
            "The following filesystems were archived: {}",
            names.join(" ")
        ));
    }
    Ok(())
}

/// Whether the snapshots are of this machine and whole, and their targets or the medium will take them.
fn check(options: &Options, system: &System, kept: &[KeptSource]) -> Result<Option<Medium>> {
    let here = machine::Machine::look();
    for one in kept {
        let shown = one.path.display().to_string();
        unpack::check_machine(&shown, &one.catalog.snapshot, &here)?;
    }
    let medium = match options.medium.partition {
        true => {
            let sources = sources(system, kept)?;
            let found = Medium::plan(system, &options.medium, &sources, options.overwrite)?;
            if options.after.grow {
                found.check_nodes()?;
            }
            Some(found)
        }
        false => None,
    };
    // All are held until the last is checked: the two snapshots must not go to the same place.
    let mut held = Vec::new();
    for one in kept {
        check_targets(options, one, medium.as_ref(), &mut held)?;
    }
    let (common, nothing) = (&options.common, |error: Error| {
        error.leaving(NOTHING_WRITTEN)
    });
    let mut line = report::Progress::new(common);
    let mut targets = held.iter();
    for one in kept {
        let file = store::open_kept(&one.path)?;
        for ((image, _), target) in one.parts.iter().zip(&mut targets) {
            let path = image_path(&image.name);
            let checked = one.catalog.check_bytes(&path, &mut line);
            checked.map_err(nothing)?;
            let found = entry::check(&one.catalog, &file, image, Any::No, common);
            target.check_sectors(&found.map_err(nothing)?.content)?;
        }
    }
    drop(held);
    Ok(medium)
}

/// What an interruption leaves until the table is written.
const NO_TABLE: &str = "the medium is not usable: its partition table is not written yet; the same command again repairs it";

/// A snapshot and what was written of it.
type WrittenSource<'k> = (&'k KeptSource, (options::Options, Vec<Restored>));

/// The medium's table first, then every snapshot's entries.
fn write_all<'k>(
    options: &Options,
    kept: &'k [KeptSource],
    mut medium: Option<Medium>,
    start: Instant,
) -> Result<Vec<WrittenSource<'k>>> {
    if let Some(medium) = &mut medium {
        let shown = medium.path.display().to_string();
        let _watch = SignalWatch::start(&shown, NO_TABLE)?;
        medium
            .wipe()
            .map_err(|fault| Error::fault(shown, fault).with_exit(Exit::Failed))?;
    }
    let mut begun = medium.is_some();
    let (mut archived, mut grown) = (Vec::new(), Vec::new());
    for one in kept {
        // After the first write a refusal is 1, never 4.
        let error = |error: Error| match (begun, &medium) {
            (true, Some(_)) => error.begun("").leaving(NO_TABLE),
            (true, None) => error.begun(""),
            (false, _) => error,
        };
        let state = match (&medium, begun) {
            (Some(_), _) => NO_TABLE,
            (None, true) => {
                "what was written by now is complete; the other targets are as they were"
            }
            (None, false) => CHECKING,
        };
        let watch = SignalWatch::start(one.path.display(), state)?;
        let done = write(options, one, medium.as_ref(), watch, &mut grown, start);
        let done = done.map_err(error)?;
        archived.push((one, done));
        begun = true;
    }
    if let Some(medium) = medium {
        medium.finish()?.iter().for_each(report::line);
    }
    for (name, disk, range) in grown {
        if let Some(dev) = Medium::dev_of(disk, range) {
            report::line(format_args!("{name}: {}", grow::grow(name.as_ref(), dev)?));
        }
    }
    Ok(archived)
}

/// The report: as of other clones, and which snapshots it was.
fn figures(
    options: &Options,
    archived: &[(&KeptSource, (options::Options, Vec<Restored>))],
    start: Instant,
) -> JsonObject {
    let took = start.elapsed();
    let mut pairs = Vec::new();
    let mut sums = [0u64; 6];
    for (kept, (options, done)) in archived {
        for (name, filesystem, done) in done {
            let part = kept.parts.iter().find(|(image, _)| image.name == *name);
            let mut object = figures::figures(options, done, filesystem, took);
            object.str("name", name);
            if let Some((image, pair)) = part {
                object
                    .str("source", &image.source)
                    .str("target", &pair.target.to_string_lossy());
            }
            pairs.push(object.finish());
            let values = [
                done.ended.size_bytes,
                done.ended.input_bytes,
                done.written_bytes,
                done.unchanged_bytes,
                done.zeroed_bytes,
                done.skipped_bytes,
            ];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = sum.saturating_add(value);
            }
        }
    }
    let paths = archived.iter().map(|(kept, _)| kept.path.as_os_str());
    let mut object = JsonObject::new();
    object
        .str("snapshots", &words(paths))
        .raw("pairs", &format!("[{}]", pairs.join(",")));
    let keys = ["size", "read", "written", "unchanged", "zeroed", "skipped"];
    for (key, sum) in keys.iter().zip(sums) {
        object.u64(&format!("{key}_bytes"), sum);
    }
    object
        .u64("total_ms", report::millis(took))
        .bool("skipped_free", options.wants.skip_free)
        .bool("verified", options.wants.verify);
    object
}

/// The newest factory and rescue snapshots of the store, and which entry each pair means.
fn find(pairs: &[Pair]) -> Result<Vec<KeptSource>> {
    let refused = |why: &str| Error::refused(format_args!("--factory: {why}"));
    let folder = config::store()?.ok_or_else(|| {
        refused("no 'store = DIR' in /etc/floe.conf says where snapshots are kept")
    })?;
    let all = store::snapshots(&folder)?;
    let newest = |is_rescue: bool| {
        for (_, path) in all.iter().rev() {
            let catalog = match Catalog::open_kept(path) {
                Ok(catalog) => catalog,
                // It may be the one, and an older one in its place would be taken for it.
                Err(error) if error.exit() == Some(Exit::Failed) => {
                    return Err(error.leaving(
                        "nothing was written; it may be the one to take: where it is not, floe delete --force NAME takes it away",
                    ));
                }
                Err(_) => continue,
            };
            let snapshot = &catalog.snapshot;
            let fits = match is_rescue {
                true => snapshot.rescue,
                false => snapshot.factory,
            };
            if fits {
                return Ok(Some(KeptSource {
                    path: path.clone(),
                    catalog,
                    parts: Vec::new(),
                }));
            }
        }
        Ok(None)
    };
    let mut factory = newest(false)?.ok_or_else(|| {
        refused(&format!(
            "no complete factory snapshot is kept in {}; floe create --factory makes one",
            folder.display()
        ))
    })?;
    let mut rescue = newest(true)?;
    for pair in pairs {
        let made_from = |kept: &KeptSource| {
            let mut images = kept.catalog.snapshot.images.iter();
            images
                .find(|image| pair.source == image.source.as_str())
                .cloned()
        };
        let saved = rescue.as_mut().filter(|_| pair.source != "/");
        if let Some((kept, image)) =
            saved.and_then(|kept| made_from(kept).map(|image| (kept, image)))
        {
            kept.parts.push((image, pair.clone()));
            continue;
        }
        let image = made_from(&factory).ok_or_else(|| {
            refused(&format!(
                "{} has no entry that was made from {}",
                factory.path.display(),
                pair.source.display()
            ))
        })?;
        factory.parts.push((image, pair.clone()));
    }
    let mut kept = vec![factory];
    kept.extend(rescue);
    kept.retain(|one| !one.parts.is_empty());
    Ok(kept)
}

/// What the medium has to have room for.
fn sources(system: &System, kept: &[KeptSource]) -> Result<Vec<RoleSource>> {
    let mut found = Vec::new();
    for (image, pair) in kept.iter().flat_map(|one| &one.parts) {
        let device = system.target(image.device.as_ref()).ok();
        found.push(RoleSource {
            role: Role::parse(&pair.target)?,
            name: image.source.clone(),
            filesystem: image.filesystem.clone(),
            size_bytes: image.size_bytes,
            dev: device.and_then(|device| device.dev),
        });
    }
    Ok(found)
}

fn check_targets(
    options: &Options,
    kept: &KeptSource,
    medium: Option<&Medium>,
    held: &mut Vec<Chosen>,
) -> Result<()> {
    let file = store::open_kept(&kept.path)?;
    for (image, pair) in &kept.parts {
        let chosen = match medium {
            Some(medium) => {
                let (disk, _, shown) = medium.place(Role::parse(&pair.target)?)?;
                Chosen::Existing(shown.into(), disk)
            }
            None => target(options, image, pair, &file, held)?,
        };
        if options.after.grow {
            let (shown, dev) = chosen.named();
            grow::check(shown, dev, &image.filesystem, &image.uuid)?;
        }
        held.push(chosen);
    }
    Ok(())
}

/// The target of a pair that is no role of a new medium.
fn target(
    options: &Options,
    image: &ImageEntry,
    pair: &Pair,
    file: &File,
    held: &[Chosen],
) -> Result<Chosen> {
    let chosen = Chosen::find(&pair.target, file)?;
    let same = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let own = same(chosen.named().0);
    if held.iter().any(|other| same(other.named().0) == own) {
        return Err(Error::refused(format_args!(
            "{}: is the target of two pairs",
            own.display()
        )));
    }
    chosen.check_size(image.size_bytes)?;
    chosen.check_content(match pair.declared {
        true => Overwrite::Allowed,
        false => options.overwrite,
    })?;
    Ok(chosen)
}

/// Writes what comes from one snapshot.
fn write(
    options: &Options,
    kept: &KeptSource,
    medium: Option<&Medium>,
    watch: SignalWatch,
    grown: &mut Vec<(String, DevId, Extent)>,
    start: Instant,
) -> Result<(options::Options, Vec<Restored>)> {
    let mut places = Vec::new();
    let mut targets = Vec::new();
    for (image, pair) in &kept.parts {
        if !options.common.quiet {
            report::line(format_args!(
                "Copying {} of {} to {} …",
                image.source,
                kept.path.display(),
                pair.target.display()
            ));
        }
        let Some(medium) = medium else {
            let mut target = std::ffi::OsString::from(&image.name);
            target.push("=");
            target.push(&pair.target);
            targets.push(target);
            continue;
        };
        let (device, range, shown) = medium.place(Role::parse(&pair.target)?)?;
        if options.after.grow {
            grown.push((shown.clone(), DevId::from_raw(device.rdev()), range));
        }
        places.push(EntryTarget {
            name: image.name.clone(),
            shown,
            device,
            range,
        });
    }
    let options = options::Options {
        image: kept.path.clone().into_os_string(),
        targets,
        overwrite: Overwrite::Allowed,
        verify: options.wants.verify,
        skip_free: options.wants.skip_free,
        only_changes: options.wants.only_changes,
        grow: options.after.grow && medium.is_none(),
        // One report tells of both snapshots.
        common: Common {
            report: None,
            ..options.common.clone()
        },
        ..options::Options::default()
    };
    let opened = OpenedImage::open(&options.image)?;
    let done = unpack::run(&options, opened, watch, places, start)?;
    Ok((options, done))
}
