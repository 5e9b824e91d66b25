//! From checked targets to what has to be done: an entry, and where it goes.

use std::path::PathBuf;
use std::sync::Arc;

use crate::device::Device;
use crate::error::Result;
use crate::mounts::DevId;
use crate::put::free::LeftAlone;
use crate::put::grow;
use crate::put::job::RunState;
use crate::put::options::{self, Options};
use crate::put::phase::Phase;
use crate::put::target::{Chosen, Made};
use crate::snapshot::relaid::Laid;
use crate::snapshot::unpack::EntryTarget;
use crate::snapshot::unpack::disk::EmptyDisk;
use crate::snapshot::unpack::origin::EntrySource;
use crate::snapshot::{ImageEntry, Snapshot};
use crate::stream::copy::CopyProgress;
use crate::units::Extent;

/// One entry and where it goes.
pub(super) struct Errand {
    pub image: ImageEntry,
    /// What messages call the target.
    pub shown: String,
    pub device: Device,
    /// The file, where it was made for it.
    pub made: Option<Made>,
    /// The partition's place on a disk that is laid anew.
    pub range: Option<Extent>,
    pub left: Option<LeftAlone>,
    pub only_changes: bool,
    /// The device to grow on afterwards.
    pub grow: Option<(PathBuf, DevId)>,
    pub shared: Arc<RunState>,
}

/// From the checked targets to what has to be done, in the order of the archive; files that are not there yet are made.
pub(super) fn errands(
    options: &Options,
    chosen: Vec<(String, Chosen)>,
    (disk, mut places): (Option<EmptyDisk>, Vec<EntryTarget>),
    origin: &EntrySource,
    snapshot: &Snapshot,
    progress: &Arc<CopyProgress>,
) -> Result<(Vec<Errand>, Option<Laid>)> {
    let laid = disk.map(|disk| disk.open(origin)).transpose()?;
    let mut chosen: Vec<(String, Option<Chosen>)> = chosen
        .into_iter()
        .map(|(name, chosen)| (name, Some(chosen)))
        .collect();
    let mut errands = Vec::new();
    for image in &snapshot.images {
        let own = chosen.iter_mut().find(|(name, _)| *name == image.name);
        let own = own.and_then(|(_, chosen)| chosen.take());
        let grown = match &own {
            Some(own) if options.grow => {
                let (shown, dev) = own.named();
                Some(grow::check(shown, dev, &image.filesystem, &image.uuid)?)
            }
            _ => None,
        };
        let place = places.iter().position(|place| place.name == image.name);
        let place = place.map(|at| places.swap_remove(at));
        let is_placed = place.is_some();
        let (path, device, range, made) = match (place, own, &laid) {
            (Some(place), _, _) => (place.shown.into(), place.device, Some(place.range), None),
            (None, Some(own), _) => {
                let (path, device, made) = own.into_parts()?;
                (path, device, None, made)
            }
            (None, None, Some(laid)) => {
                let (device, range) = laid.partition(image)?;
                (laid.path.clone(), device, Some(range), None)
            }
            (None, None, None) => continue,
        };
        let left = match range {
            None => options::left_alone(options, &path, &device)?,
            Some(_) => None,
        };
        let shown = path.display().to_string();
        let phase = Phase::default();
        phase.note_made(made.is_some());
        errands.push(Errand {
            image: image.clone(),
            shown: match range {
                None => shown,
                Some(_) if is_placed => shown,
                Some(_) => format!("{shown} partition {}", image.partition_number),
            },
            device,
            made,
            range,
            left,
            only_changes: options.only_changes,
            grow: grown.map(|dev| (path.clone(), dev)),
            shared: Arc::new(RunState {
                progress: Arc::clone(progress),
                phase,
            }),
        });
    }
    Ok((errands, laid))
}
