//! The working thread: every entry onto its target, in the order of the archive; the beginnings last.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::device::DeviceKind;
use crate::error::{Error, Result};
use crate::mounts::DevId;
use crate::put::grow;
use crate::put::job::{Filled, Job};
use crate::put::target::{THE_IMAGE, check_sectors};
use crate::snapshot::entry::{self, BundleReader};
use crate::snapshot::image_path;
use crate::snapshot::relaid::Laid;
use crate::snapshot::unpack::Restored;
use crate::snapshot::unpack::errand::Errand;
use crate::snapshot::unpack::origin::{EntrySource, advance};
use crate::stream::image::whole::Any;
use crate::stream::input::Supply;
use crate::stream::target::Target;

/// The working thread: every entry in the order of the archive.
pub(super) fn unpack(
    origin: EntrySource,
    errands: Vec<Errand>,
    mut laid: Option<Laid>,
    how: (bool, Any),
    from: (&str, &File),
) -> Result<(Vec<Restored>, Vec<String>)> {
    if let Some(laid) = &mut laid {
        laid.wipe(errands.iter().filter_map(|errand| errand.range).collect())?;
    }
    let is_made = |errand: &Errand| errand.shared.phase.goes_again();
    let left = match (errands.iter().any(is_made), errands.iter().all(is_made)) {
        (_, true) => "what was made for them is gone again",
        (true, _) => {
            "the beginning of what was there is zeroed, and what was made for them is gone again"
        }
        (false, _) => "the beginning of what was there is zeroed",
    };
    let (mut filled, mut done) = (Vec::new(), Vec::new());
    for errand in errands {
        let reader: Box<dyn Supply> = match &origin {
            EntrySource::File(catalog) => catalog.reader(&image_path(&errand.image.name))?,
            EntrySource::Pipe(bundle) => {
                advance(bundle, &image_path(&errand.image.name))?;
                Box::new(BundleReader(Arc::clone(bundle)))
            }
        };
        let name = errand.image.name.clone();
        let grow = errand.grow.clone();
        let (filesystem, one) = one(errand, reader, how, from)?;
        filled.push((name, filesystem, one, grow));
        // What comes from a file was checked before the first write.
        if matches!(origin, EntrySource::File(_)) {
            complete(&mut filled, &mut done, &origin)?;
        }
    }
    if let EntrySource::Pipe(bundle) = &origin {
        let mut bundle = bundle.lock();
        let mut rest = Ok(Some(String::new()));
        while matches!(rest, Ok(Some(_))) {
            rest = bundle.next();
        }
        rest.map_err(|e| e.leaving(&format!("the targets are not usable: {left}")))?;
    }
    complete(&mut filled, &mut done, &origin)?;
    let mut notes = Vec::new();
    if let Some(laid) = laid {
        // They are the disk's, and not of an entry.
        let shown = laid.path.display().to_string();
        let said = laid.finish()?.into_iter();
        notes.extend(said.map(|note| format!("{shown}: {note}")));
    }
    Ok((done, notes))
}

/// An entry whose target waits for its beginning: its name, its filesystem, the target, and what is grown then.
type Waiting = (String, &'static str, Filled, Option<(PathBuf, DevId)>);

/// Writes the beginnings: from now on they are whole.
fn complete(
    filled: &mut Vec<Waiting>,
    done: &mut Vec<Restored>,
    origin: &EntrySource,
) -> Result<()> {
    for (name, filesystem, one, grow) in filled.drain(..) {
        let mut one = one.finish()?;
        // What was read of the archive, and not what came out of it.
        one.ended.input_bytes = origin.stored_bytes(&image_path(&name));
        if let Some((path, dev)) = grow {
            one.notes.push(grow::grow(&path, dev)?);
        }
        done.push((name, filesystem, one));
    }
    Ok(())
}

fn one(
    errand: Errand,
    reader: Box<dyn Supply>,
    (verify, any): (bool, Any),
    (subject, file): (&str, &File),
) -> Result<(&'static str, Filled)> {
    let fail = |fault| Error::fault(&errand.shown, fault);
    let image = entry::open(subject, file, reader, &errand.image, any)?;
    let (head, reader) = image.into_parts();
    if errand.device.kind() == DeviceKind::Block {
        let sector_bytes = errand.device.sector_bytes();
        check_sectors(
            errand.shown.as_ref(),
            sector_bytes,
            THE_IMAGE,
            &head.content,
        )?;
    }
    let filesystem = head.content.name();
    let target = match errand.range {
        Some(range) => Target::within(errand.device, range),
        None => Target::new(errand.device),
    }
    .map_err(fail)?;
    let job = Job {
        name: errand.shown.clone(),
        verify,
        only_changes: errand.only_changes,
        left: errand.left,
        fills: errand.range.is_some() || errand.grow.is_some(),
        is_part: errand.range.is_some(),
        image: head,
        shared: errand.shared,
    };
    Ok((filesystem, job.fill(reader, target)?))
}
