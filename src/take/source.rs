//! From a source to what is read of it and what has to be frozen: one filesystem, or a whole disk segment by segment ([`disk`]). What
//! holds each still is told by `still`.
//!
//! Runs before the freeze, so it may allocate and open. Decides nothing about used blocks: that is the survey's, in the window.

use crate::content::{self, Judged, UNKNOWN};
use crate::device::{Device, ReadAt};
use crate::error::{Error, Exit, Fault, FaultKind, NOTHING_WRITTEN, Result};
use crate::fs::{self, Identity, Kind, Still};
use crate::mounts::{DevId, Holding, Means, Mounted, Source, Stacked, System, Use};
use crate::ptable;
use crate::stream::input::is_zero;
use crate::sys::fiemap;
use crate::take::disk;
use crate::take::still::{hold_stacked, refuse_swap, still_of};
use crate::take::watched::WatchedFile;
use crate::units::{Extent, round_down, to_usize};

/// What the user asked for, as far as reading is concerned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// Read a source that cannot be held still.
    pub live: bool,
    /// Read every block.
    pub whole: bool,
    /// Refuse rather than read everything.
    pub require_map: bool,
    /// A regular file stands for the filesystem it lies on.
    pub fs_path: bool,
    /// Know which blocks have an owner, too, and not only which have to be read (`--bmap`).
    pub owned: bool,
}

/// How a segment is read.
#[derive(Clone, Debug)]
pub(crate) enum Reading {
    /// Used blocks of the filesystem in it.
    Map(Box<Identity>),
    /// Every byte; of a filesystem that is known, what a write would change is looked at again before the thaw.
    Whole(Option<Box<Identity>>),
    /// Every byte of what no partition covers.
    Gap,
}

/// A range of a device that makes up a range of the image.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Index in [`Prepared::devices`].
    pub device: usize,
    /// Where it begins on that device, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// What holds it still.
    pub still: Still,
    /// What is read.
    pub reading: Reading,
    /// Active swap files in it, whose content is free whatever the map says.
    pub swap: SwapContent,
    /// What lies behind the filesystem in it and is not zeros: used, whoever it belongs to.
    pub behind: Vec<Extent>,
    /// An md array lies above it, which writes its superblocks when it likes.
    pub below_md: bool,
}

/// The content of active swap files on one filesystem.
#[derive(Clone, Debug, Default)]
pub(crate) struct SwapContent {
    /// All but their headers, relative to the filesystem.
    pub extents: Vec<Extent>,
    /// Their names as /proc/swaps has them: they must still stand there after the freeze.
    pub names: Vec<Vec<u8>>,
}

/// An open device and what messages call it.
#[derive(Debug)]
pub(crate) struct OpenedDevice {
    /// The device.
    pub device: Device,
    /// Its node.
    pub shown: String,
}

/// One source, ready to be held still and read: it becomes one image.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What the user called it.
    pub name: String,
    /// The device, for messages.
    pub shown: String,
    /// The filesystem's or partition table's name for reports.
    pub filesystem: &'static str,
    /// What is on it, where it is one filesystem.
    pub identity: Option<Identity>,
    /// What holds it still; of a disk, what holds the mounted ones among its partitions.
    pub still: Still,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Device number of a block device.
    pub dev: Option<DevId>,
    /// The devices that are read.
    pub devices: Vec<OpenedDevice>,
    /// The image, in order and without gaps.
    pub segments: Vec<Segment>,
    /// The filesystems to freeze, in no order; they leave when these are made ready for that.
    pub mounted: Vec<Mounted>,
    /// What was in use when they left.
    pub in_use: Option<u64>,
    /// Things to tell before the freeze.
    pub notes: Vec<String>,
    /// Devices kept open O_EXCL so that nobody mounts them meanwhile.
    pub held: Vec<Device>,
    /// Files that nobody may write to meanwhile.
    pub watched: Vec<WatchedFile>,
    /// Why nothing in the image will show that it is one, or that it is whole: the stream has to say that it is a copy of something as
    /// it is.
    pub as_it_is: Option<String>,
    /// Its image would look like two, one behind the other; who reads a raw one is to know better.
    pub twofold: Option<String>,
}

impl Prepared {
    /// The report's word for how it was held still.
    pub(crate) fn consistent(&self) -> &'static str {
        consistent(self.still)
    }

    /// What is in use, as the running filesystems say (a superblock on the disk may be old), else the superblock, else all.
    pub(crate) fn used_bytes(&self) -> u64 {
        let running = self.mounted.iter().filter_map(|mounted| {
            let stat = rustix::fs::fstatvfs(&mounted.fd).ok()?;
            let blocks = stat.f_blocks.saturating_sub(stat.f_bfree);
            Some(blocks.saturating_mul(stat.f_frsize))
        });
        let running = self.in_use.or(running.reduce(u64::saturating_add));
        // A running ext4 leaves its metadata out, and its superblock on the disk is as old as the mount.
        let recorded = self.identity.as_ref().and_then(|found| found.used_bytes);
        running
            .max(recorded)
            .map_or(self.size_bytes, |used| used.min(self.size_bytes))
    }
}

/// The report's word.
pub(crate) fn consistent(still: Still) -> &'static str {
    match still {
        Still::Frozen => "frozen",
        Still::ReadOnly => "readonly",
        Still::Unmounted => "unmounted",
        Still::Moving | Still::Glimpse => "live",
    }
}

/// Finds `name`, decides how it is held still, and recognises what is on it.
pub(crate) fn prepare(system: &System, name: &std::ffi::OsStr, wishes: Wishes) -> Result<Prepared> {
    let means = match (wishes.fs_path, wishes.whole) {
        (true, _) => Means::Filesystem,
        (false, true) => Means::Bytes,
        (false, false) => Means::Source,
    };
    let resolved = system.after_readers(
        || system.target(name).ok()?.dev,
        Result::is_err,
        || system.resolve_as(name, means),
    );
    let source = resolved.map_err(|error| match error.exit() {
        Some(Exit::Failed) => error.leaving("nothing was frozen"),
        _ => error,
    })?;
    let name = source.name.to_string_lossy().into_owned();
    let shown = source.shown.display().to_string();
    let beside = beside(system, &source).filter(|_| !wishes.live);
    if let Some(found) = beside {
        return Err(Error::refused(format_args!(
            "{found}, or name that instead"
        )));
    }
    let moving = source.moving.clone();
    let notes = part_of_more(&source, wishes).into_iter().collect();
    if let (Some(why), false) = (&moving, wishes.live) {
        return Err(Error::refused(format_args!(
            "{name}: {shown} changes even below a frozen filesystem: {why}; wait until that is over, or --live for an image that may not be consistent"
        )));
    }
    let mut prepared = Prepared {
        name,
        shown,
        filesystem: UNKNOWN,
        identity: None,
        still: Still::Unmounted,
        in_use: None,
        size_bytes: source.device.size_bytes(),
        dev: source.dev,
        devices: Vec::new(),
        segments: Vec::new(),
        mounted: Vec::new(),
        notes,
        held: Vec::new(),
        watched: Vec::new(),
        as_it_is: None,
        twofold: None,
    };
    if !wishes.whole {
        refuse_cut_tail(system, &source)?;
    }
    if moving.is_none() && !wishes.live {
        prepared.watched.extend(watched(system, &source)?);
    }
    let judged = match content::of_device(&source.device) {
        Err(fault) if fault.kind() == FaultKind::Io => {
            return Err(Error::fault(&prepared.shown, fault));
        }
        judged => judged.map_err(|fault| fault.to_string()),
    };
    if let (Err(what), false) = (&judged, wishes.whole) {
        return Err(not_taken_back(&prepared.name, what));
    }
    fill(system, source, wishes, &mut prepared)?;
    match judged {
        Ok(judged) => judge(judged, wishes, &mut prepared)?,
        Err(what) => prepared.as_it_is = Some(what),
    }
    if moving.is_some() {
        prepared.still = Still::Moving;
        prepared.mounted.clear();
        for segment in &mut prepared.segments {
            segment.still = Still::Moving;
        }
    }
    Ok(prepared)
}

/// A folder stands for all of the filesystem that it lies on: said where it is not where that is mounted. Before Linux 5.8 nobody tells.
fn part_of_more(source: &Source, wishes: Wishes) -> Option<String> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let Holding::Mounted(mounted) = &source.holding else {
        return None;
    };
    let path = std::path::Path::new(&source.name);
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).ok()?;
    let is_told = stat
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT);
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let is_part = path.is_dir() && is_told && !is_root && !wishes.fs_path;
    is_part.then(|| {
        format!(
            "{}: is no mount point: it lies on {} ({}), and all of that is taken",
            path.display(),
            mounted.point().display(),
            source.shown.display()
        )
    })
}

/// An output takes its name from whatever had it before, but not from a source. (What else may have it is for who writes to say.)
pub(crate) fn refuse_output(sources: &[Prepared], output: &std::path::Path) -> Result<()> {
    let Ok(stat) = rustix::fs::stat(output) else {
        return Ok(());
    };
    let is_file =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    let is_it = |opened: &OpenedDevice| {
        let own = rustix::fs::fstat(opened.device.as_fd());
        own.is_ok_and(|own| (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino))
    };
    let mut devices = sources.iter().flat_map(|source| &source.devices);
    match is_file && devices.any(is_it) {
        true => Err(
            Error::refused(format_args!("{}: is the source itself", output.display()))
                .leaving(NOTHING_WRITTEN),
        ),
        false => Ok(()),
    }
}

/// A loop device shows whole sectors of its file: what stands behind them would be in no image of the device, though whoever
/// attached the file means all of it. Of a filesystem that is mounted only what is not zeros counts.
fn refuse_cut_tail(system: &System, source: &Source) -> Result<()> {
    let Some((file, path)) = source.dev.and_then(|dev| system.loop_file(dev)) else {
        return Ok(());
    };
    let offset = source
        .dev
        .and_then(|dev| system.roots().attribute(dev, "loop/offset"));
    let offset = offset
        .and_then(|text| crate::cli::number(&text))
        .unwrap_or(0);
    let fault = |fault| Error::fault(path.display(), fault);
    let file = Device::from_fd(file, false).map_err(fault)?;
    let end = offset.saturating_add(source.device.size_bytes());
    let behind = file.size_bytes().saturating_sub(end);
    // More than that was left out on purpose (a sizelimit).
    let mut tail = [0u8; 511];
    let Some(tail) = tail
        .get_mut(..to_usize(behind))
        .filter(|tail| !tail.is_empty())
    else {
        return Ok(());
    };
    file.read_at(end, tail).map_err(fault)?;
    if matches!(source.holding, Holding::Mounted(_)) && is_zero(tail) {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{}: shows all but the last {} bytes of {}, which is not a multiple of 512 bytes long; dump that file, or --whole copies the device as it is",
        source.shown.display(),
        behind,
        path.display()
    )))
}

/// The file that an image is, or that a loop device shows. Of a partition of a loop device there is none: the others may be in use,
/// as may swap on the device.
fn watched(system: &System, source: &Source) -> Result<Option<WatchedFile>> {
    let shown = source.shown.display().to_string();
    let fail = |fault| Error::fault(&shown, fault);
    let (file, shown) = match (&source.holding, source.dev) {
        (Holding::ImageFile, _) => (source.device.duplicate().map_err(fail)?.into(), shown),
        (Holding::Stacked(above), _) if !above.swaps.is_empty() => return Ok(None),
        (_, Some(dev)) => match system.loop_file(dev) {
            Some((file, path)) => (file, path.display().to_string()),
            None => return Ok(None),
        },
        (_, None) => return Ok(None),
    };
    let watched = WatchedFile::new(file, shown);
    let frozen = match &source.holding {
        Holding::Mounted(_) => true,
        Holding::Stacked(above) => !above.mounted.is_empty(),
        Holding::Unmounted | Holding::ImageFile => false,
    };
    if frozen {
        // Until the freeze it is written to rightly.
        return Ok(Some(watched));
    }
    // What is still in the cache of the device is written to the file first.
    let _ = rustix::fs::fsync(source.device.as_fd());
    Ok(Some(watched.settled()))
}

/// The one rule: what `restore` would not take back is refused now, unless it was asked for as it is. What shows nothing known at all
/// cannot be mistaken for anything either, and goes out as a copy of what it is.
fn judge(judged: Judged, wishes: Wishes, prepared: &mut Prepared) -> Result<()> {
    let name = &prepared.name;
    let what = match (judged.word, judged.twofold) {
        (Ok(()), None) => return Ok(()),
        (Err(what), _) => what,
        // What partitions hold is theirs: what lies behind a filesystem may be all that is left of the next one.
        (Ok(()), Some(what)) if wishes.whole || prepared.dev.is_some() => {
            prepared.twofold = Some(what);
            return Ok(());
        }
        (Ok(()), Some(what)) => {
            return Err(Error::refused(format_args!(
                "{name}: {what}; --whole copies it as it is"
            )));
        }
    };
    if prepared.size_bytes == 0 {
        return Err(Error::refused(format_args!("{name}: is empty")));
    }
    if !wishes.whole && !judged.content.says_nothing() {
        return Err(not_taken_back(name, &what));
    }
    prepared.as_it_is = Some(what);
    Ok(())
}

pub(super) fn not_taken_back(name: &str, what: &str) -> Error {
    Error::refused(format_args!(
        "{name}: {what}; no image of it would be taken back: repair it, or --whole copies it as it is"
    ))
}

/// What is on a device; of a damaged one nothing is known, and it is read whole.
pub(super) fn probe(device: &dyn ReadAt) -> std::result::Result<Option<Identity>, Fault> {
    match fs::probe(device) {
        Err(fault) if fault.kind() != FaultKind::Io => Ok(None),
        found => found,
    }
}

/// A disk with a table, or one filesystem: what is on the source.
fn divide(
    system: &System,
    source: &Source,
    identity: Option<Identity>,
    prepared: &mut Prepared,
) -> Result<(Option<ptable::PartitionTable>, Option<Identity>)> {
    let fault = |fault| Error::fault(&prepared.shown, fault);
    let table = match &source.holding {
        // A mounted filesystem is one, whatever an old partition table in its first sector says.
        Holding::Mounted(_) => None,
        holding => match match holding {
            Holding::ImageFile => content::table_of(&source.device),
            _ => ptable::read(&source.device, source.device.sector_bytes()),
        } {
            // Where nothing else is there, it is read whole; whether anybody would take that back is not judged here.
            Err(wrong) if wrong.kind() != FaultKind::Io => {
                if identity.is_none() {
                    prepared.notes.push(format!(
                        "{}: partition table: {wrong}; the disk is read whole",
                        prepared.shown
                    ));
                }
                None
            }
            table => table.map_err(fault)?,
        },
    };
    // Both at once: partitions that the kernel shows are partitions, and an md superblock at the end of a disk is that of its
    // last partition; anything else is a filesystem with an old table in its first sector.
    let divided = source
        .dev
        .is_some_and(|dev| !system.roots().partitions_of(dev).is_empty());
    let identity =
        identity.filter(|found| table.is_none() || !(divided || found.kind == Kind::MdMember));
    let table = table.filter(|_| identity.is_none());
    Ok((table, identity))
}

fn fill(system: &System, source: Source, wishes: Wishes, prepared: &mut Prepared) -> Result<()> {
    let fault = |fault| Error::fault(&prepared.shown, fault);
    let identity = probe(&source.device).map_err(fault)?;
    let (table, identity) = divide(system, &source, identity, prepared)?;
    let swap = swap_extents(system, &source, &identity, prepared)?;
    let Source {
        device,
        holding,
        dev,
        ..
    } = source;
    prepared.devices.push(OpenedDevice {
        device,
        shown: prepared.shown.clone(),
    });
    let (stacked, still) = match holding {
        Holding::Unmounted | Holding::ImageFile => (None, Still::Unmounted),
        Holding::Mounted(mounted) => {
            let mut still = still_of(&mounted, wishes);
            prepared.mounted.push(mounted);
            let above = match dev {
                Some(dev) => system.looped(dev)?,
                None => Stacked::default(),
            };
            refuse_swap(&above, wishes, prepared)?;
            // Where nothing is written above, what holds the filesystem itself says it all.
            match hold_stacked(above, wishes, prepared) {
                Still::Unmounted => {}
                above => still = above,
            }
            (None, still)
        }
        Holding::Stacked(stacked) => (Some(stacked), Still::Frozen),
    };
    match (table, dev) {
        (Some(table), dev) => return disk::disk(system, &table, dev, stacked, wishes, prepared),
        (None, _) => {
            prepared.still = match stacked {
                None => still,
                Some(stacked) => {
                    refuse_swap(&stacked, wishes, prepared)?;
                    hold_stacked(stacked, wishes, prepared)
                }
            }
        }
    }
    prepared.filesystem = identity.as_ref().map_or(UNKNOWN, |i| i.kind.name());
    let reading = reading(identity.clone(), wishes.whole);
    let mut behind = Vec::new();
    if let Some(opened) = prepared.devices.first() {
        let fault = |fault| Error::fault(&prepared.shown, fault);
        let is_written = is_looped(system, dev.iter());
        behind = used_behind(&opened.device, &reading, is_written).map_err(fault)?;
    }
    prepared.segments.push(Segment {
        device: 0,
        offset: 0,
        length_bytes: prepared.size_bytes,
        still: prepared.still,
        reading,
        swap,
        behind,
        below_md: dev.is_some_and(|dev| system.is_below_md(dev)),
    });
    prepared.identity = identity;
    Ok(())
}

/// How much is looked at at once behind a filesystem, in bytes.
const LOOK_BYTES: u64 = 1 << 20;

/// What is not zeros behind the filesystem of a segment: a hash tree, a footer, an overlay, firmware's own. Looked for before the freeze,
/// which does not hold it still anyway: the filesystem's freeze ends where the filesystem does. What is written through a loop device
/// is all of it: what was zeros when it was looked at need not be when it is read.
pub(super) fn used_behind(
    view: &dyn ReadAt,
    reading: &Reading,
    is_written: bool,
) -> std::result::Result<Vec<Extent>, Fault> {
    match reading {
        Reading::Map(identity) => behind(view, identity.size_bytes, is_written),
        _ => Ok(Vec::new()),
    }
}

/// The same behind a filesystem that ends there.
pub(crate) fn behind(
    view: &dyn ReadAt,
    end: u64,
    is_written: bool,
) -> std::result::Result<Vec<Extent>, Fault> {
    let mut found: Vec<Extent> = Vec::new();
    if end == 0 {
        return Ok(found);
    }
    if is_written {
        let rest = Extent::between(end, view.size_bytes());
        found.extend((!rest.is_empty()).then_some(rest));
        return Ok(found);
    }
    let mut buffer = vec![0; to_usize(LOOK_BYTES)];
    let mut offset = end;
    while offset < view.size_bytes() {
        // On a grid, so that direct reads stay aligned.
        let next = round_down(offset, LOOK_BYTES).saturating_add(LOOK_BYTES);
        let length_bytes = next.min(view.size_bytes()) - offset;
        let part = buffer.get_mut(..to_usize(length_bytes)).unwrap_or_default();
        view.read_at(offset, part)?;
        if !is_zero(part) {
            match found.last_mut() {
                Some(last) if last.end() == offset => last.length_bytes += length_bytes,
                _ => found.push(Extent::at(offset, length_bytes)),
            }
        }
        offset += length_bytes;
    }
    Ok(found)
}

/// Why a dump of a device or of an image in a file would be refused, where its bytes say so ([`prepare`]).
pub(crate) fn refusal(
    device: &Device,
    is_file: bool,
) -> std::result::Result<Option<String>, Fault> {
    let judged = match content::of_device(device) {
        Err(fault) if fault.kind() != FaultKind::Io => {
            return Ok(Some(format!("is damaged: {fault}")));
        }
        judged => judged?,
    };
    Ok(match judged.word {
        Err(what) if !judged.content.says_nothing() => Some(what),
        Err(_) => None,
        Ok(()) => judged.twofold.filter(|_| is_file),
    })
}

/// What writes to the source's bytes through another device, which neither the freezing nor the holding of this one stops.
pub(crate) fn beside(system: &System, source: &Source) -> Option<Use> {
    let mut uses = system.uses_beside(source.dev?, true).into_iter();
    uses.next()
}

/// Whether a loop device lies on one of these.
pub(crate) fn is_looped<'a>(system: &System, mut devices: impl Iterator<Item = &'a DevId>) -> bool {
    devices.any(|dev| !system.loops_over_device(*dev).is_empty())
}

pub(super) fn reading(identity: Option<Identity>, whole: bool) -> Reading {
    match identity.map(Box::new) {
        Some(identity) if !whole => Reading::Map(identity),
        identity => Reading::Whole(identity),
    }
}

/// The extents of active swap files on the source's filesystem.
fn swap_extents(
    system: &System,
    source: &Source,
    identity: &Option<Identity>,
    prepared: &mut Prepared,
) -> Result<SwapContent> {
    let (Holding::Mounted(_), Some(dev), Some(identity)) = (&source.holding, source.dev, identity)
    else {
        return Ok(SwapContent::default());
    };
    let swap = swap_files_on(system, dev, identity)?;
    if !swap.extents.is_empty() {
        prepared.notes.push(format!(
            "{}: of its active swap file only the first page is in the image",
            prepared.name
        ));
    }
    Ok(swap)
}

pub(super) fn swap_files_on(
    system: &System,
    dev: DevId,
    identity: &Identity,
) -> Result<SwapContent> {
    // Logical addresses of a btrfs are no device offsets: there its swap files are read like any other.
    if identity.kind == Kind::Btrfs {
        return Ok(SwapContent::default());
    }
    // The header is one page.
    let header = crate::units::to_u64(rustix::param::page_size());
    let mut swap = SwapContent::default();
    for file in system.swap_files() {
        if file.dev != dev {
            continue;
        }
        let name = std::os::unix::ffi::OsStrExt::as_bytes(file.path.as_os_str());
        swap.names.push(name.to_vec());
        let open = std::fs::File::open(&file.path)
            .map_err(|e| Error::std(file.path.display(), "open", &e))?;
        let extents = fiemap::extents(&open)
            .map_err(|errno| Error::fault(file.path.display(), Fault::io("FIEMAP", errno)))?;
        for mapped in extents {
            let skip = header
                .saturating_sub(mapped.logical)
                .min(mapped.length_bytes);
            if let Some(extent) = Extent::new(
                mapped.physical.saturating_add(skip),
                mapped.length_bytes - skip,
            ) && !extent.is_empty()
            {
                swap.extents.push(extent);
            }
        }
    }
    Ok(swap)
}
