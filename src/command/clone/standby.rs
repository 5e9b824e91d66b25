//! The targets of a clone: every check on every one of them, before the first write to any. Opens and looks; writes nothing.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::config::pairs::Pair;
use crate::content::Content;
use crate::device::{Device, ReadAt};
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::medium::{Medium, Role};
use crate::mounts::{DevId, DeviceLayer, Named, System, Why, is_mirror};
use crate::ptable;
use crate::put::target::{self, Chosen, Overwrite, old_tail};
use crate::take::source::Prepared;
use crate::units::Extent;

/// A target that passed every check, held O_EXCL.
#[derive(Debug)]
pub(super) struct Standby {
    /// Its node.
    pub name: String,
    /// Open for writing.
    pub device: Device,
    /// Whether it lies, at the bottom, where the source does.
    pub shares_medium: bool,
    /// Its place, on a disk that is laid out anew.
    pub range: Option<Extent>,
    /// An old table at its end, which is zeroed first together with its beginning, so that nothing old is recognised.
    pub old_tail: Option<Extent>,
}

/// Finds and checks the targets, one for each source, in order; cuts a source at the end of its filesystem where the target is
/// smaller than the device.
pub(super) fn find(
    system: &System,
    pairs: &[Pair],
    sources: &mut [Prepared],
    overwrite: Overwrite,
) -> Result<Vec<Standby>> {
    let mut named = Vec::new();
    for pair in pairs {
        refuse_folder(pair)?;
        let found = system
            .target(&pair.target)
            .map_err(|error| error.leaving(NOTHING_WRITTEN))?;
        let Some(dev) = found.dev else {
            return Err(Error::refused(format_args!(
                "{}: is a regular file; a clone goes to block devices, and floe dump -o writes files",
                found.shown.display()
            )));
        };
        named.push((found, dev));
    }
    for (index, (target, dev)) in named.iter().enumerate() {
        check_use(system, target, *dev, sources)?;
        let others = named.iter().take(index);
        for (other, other_dev) in others {
            if system.overlaps(*dev, *other_dev) {
                return Err(refused(
                    target,
                    format_args!(
                        "shares blocks with another target, {}",
                        other.shown.display()
                    ),
                ));
            }
        }
    }
    let mut found = Vec::new();
    for (((target, dev), pair), source) in named.into_iter().zip(pairs).zip(sources) {
        let overwrite = match pair.declared {
            true => Overwrite::Allowed,
            false => overwrite,
        };
        found.push(open(system, target, dev, source, overwrite)?);
    }
    Ok(found)
}

/// A folder as TARGET: mostly the two are swapped.
fn refuse_folder(pair: &Pair) -> Result<()> {
    let (source, target) = (Path::new(&pair.source), Path::new(&pair.target));
    if !target.is_dir() {
        return Ok(());
    }
    let is_device = std::fs::metadata(source).is_ok_and(|meta| meta.file_type().is_block_device());
    let (source, target) = (source.display(), target.display());
    let help = match is_device {
        true => format!(
            "; is the pair swapped? What is read comes first: floe clone {target}={source} writes over {source}"
        ),
        false => String::new(),
    };
    Err(Error::refused(format_args!(
        "{target}: is a folder; a clone goes to block devices{help}"
    ))
    .leaving(NOTHING_WRITTEN))
}

fn refused(target: &Named, why: std::fmt::Arguments<'_>) -> Error {
    Error::refused(format_args!("refused: {} {why}", target.shown.display()))
}

/// A target by another name: a link, a bind mount's node, /dev/root, a volume on top of it.
fn apart_from_sources(
    system: &System,
    target: &Named,
    dev: DevId,
    sources: &[Prepared],
) -> Result<()> {
    for source in sources {
        let devices = source.mounted.iter().flat_map(|mounted| &mounted.devices);
        let same = source
            .dev
            .iter()
            .chain(devices)
            .any(|from| system.is_written_with(*from, dev));
        if same {
            return Err(refused(
                target,
                format_args!(
                    "is the source {} itself, or shares blocks with it",
                    source.name
                ),
            ));
        }
    }
    Ok(())
}

/// On a mirror, below something, mounted, the running root, or a source by another name.
fn check_use(system: &System, target: &Named, dev: DevId, sources: &[Prepared]) -> Result<()> {
    let below = system
        .under(dev)
        .map_err(|error| error.leaving(NOTHING_WRITTEN))?;
    for at in below {
        if let DeviceLayer::Md(level) = system.roots().layer(at)
            && is_mirror(&level)
        {
            // The contract's words for a member, and no more than them.
            return Err(Error::refused(format_args!(
                "refused: {} is on the mirror {} ({level}); a snapshot onto a mirror is not possible",
                target.shown.display(),
                system.roots().kernel_name(at)
            )));
        }
    }
    let uses = system.uses_of(target)?;
    match uses.first() {
        Some(found) if found.is_mirror() => {
            return Err(Error::refused(format_args!("refused: {found}")));
        }
        Some(found) if found.why == Why::RunningRoot => {}
        // "Is mounted, umount it" would be the wrong advice for a source.
        _ => apart_from_sources(system, target, dev, sources)?,
    }
    match uses.first() {
        Some(found) => Err(Error::refused(format_args!("refused: {found}"))),
        None => Ok(()),
    }
}

fn open(
    system: &System,
    target: Named,
    dev: DevId,
    source: &mut Prepared,
    overwrite: Overwrite,
) -> Result<Standby> {
    let device = target::hold(system, dev, &target.shown)?;
    cut_to_filesystem(source, device.size_bytes());
    check_sectors(&target, &device, source)?;
    let name = target.shown.display().to_string();
    let chosen = Chosen::Existing(target.shown, device);
    chosen.check_size(source.size_bytes)?;
    chosen.check_content(overwrite)?;
    let (_, device) = chosen.into_device()?;
    let below = |dev| system.under(dev).unwrap_or_default();
    let from = source.dev.map(below).unwrap_or_default();
    Ok(Standby {
        name,
        shares_medium: below(dev).iter().any(|at| from.contains(at)),
        old_tail: old_tail(&device),
        device,
        range: None,
    })
}

/// As `restore` judges an image; what is not known, and what ends within a sector, goes onto sectors that are no larger.
fn check_sectors(target: &Named, device: &Device, source: &Prepared) -> Result<()> {
    let sector = u64::from(device.sector_bytes());
    let Some(opened) = source.devices.first() else {
        return Ok(());
    };
    let from = u64::from(opened.device.sector_bytes());
    let mut content = Content {
        identity: source.identity.clone(),
        ..Content::default()
    };
    if content.identity.is_none() {
        let bytes = opened.device.sector_bytes();
        content.table = ptable::read(&opened.device, bytes).unwrap_or_default();
    }
    target::check_sectors(&target.shown, device.sector_bytes(), &source.name, &content)?;
    let fits = !content.is_empty() && source.size_bytes.is_multiple_of(sector);
    if sector > from && !fits {
        return Err(refused(
            target,
            format_args!(
                "has sectors of {sector} bytes, and what is on {} is made for {from}",
                source.name
            ),
        ));
    }
    Ok(())
}

/// Partitions of a disk that is laid out anew, one for each source, in order.
pub(super) fn on_medium(
    medium: &Medium,
    roles: &[Role],
    sources: &mut [Prepared],
) -> Result<Vec<Standby>> {
    let mut found = Vec::new();
    for (role, source) in roles.iter().zip(sources) {
        let (device, range, name) = medium.place(*role)?;
        let target = Named {
            shown: name.clone().into(),
            dev: None,
        };
        cut_to_filesystem(source, range.length_bytes);
        check_sectors(&target, &device, source)?;
        found.push(Standby {
            name,
            device,
            range: Some(range),
            // The medium is never the disk that holds a source.
            shares_medium: false,
            old_tail: None,
        });
    }
    Ok(found)
}

/// A filesystem may end before its device: what lies behind it is not needed on a smaller target.
fn cut_to_filesystem(source: &mut Prepared, target_bytes: u64) {
    let end = source.identity.as_ref().map_or(0, |found| found.size_bytes);
    let is_filesystem = !source.mounted.is_empty() && end > 0;
    if let [segment] = source.segments.as_mut_slice()
        && is_filesystem
        && segment.behind.is_empty()
        && end <= target_bytes
        && target_bytes < segment.length_bytes
    {
        segment.length_bytes = target_bytes;
        source.size_bytes = target_bytes;
    }
}
