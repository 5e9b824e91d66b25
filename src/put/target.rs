//! A target that may be written: every check of `restore` before the first write. What fails here is exit 4, and nothing was
//! written anywhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, SeekFrom, Stat};
use rustix::io::Errno;

use crate::content::{Content, ON_DEVICES_BYTES, on_device};
use crate::device::{Access, Device, DeviceKind, ReadAt};
use crate::error::{Error, Exit, Fault, FaultKind, NOTHING_WRITTEN, Result};
use crate::fs::Kind;
use crate::mounts::{self, DevId, Named, System, is_tag};
use crate::put::phase::Phase;
use crate::report::Bytes;
use crate::stream::image::{Format, LOOK_BYTES};
use crate::stream::input::at_most;
use crate::stream::partfile::Place;
use crate::units::{Extent, round_down};

/// Signature of a GPT header.
const GPT_SIGNATURE: &[u8; 8] = b"EFI PART";

/// Whether a target that holds something may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Overwrite {
    /// `--overwrite` was given.
    Allowed,
    /// It was not.
    #[default]
    Refused,
}

/// A target as named, before it is opened for writing.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// A file that is not there yet; its folder is.
    New(Place),
    /// A device or file, held open for writing.
    Existing(PathBuf, Device),
}

impl Chosen {
    /// Finds the target (`LABEL=` and its like included), checks that nothing uses it and that `image` is not the same thing,
    /// and holds it.
    pub(crate) fn find(name: &OsStr, image: &File) -> Result<Self> {
        let path = Path::new(name);
        if is_missing(path) && !is_tag(name) {
            return new_file(path);
        }
        let system = System::look()?;
        let named = system
            .target(name)
            .map_err(|e| e.leaving(NOTHING_WRITTEN))?;
        let shown = named.shown.as_path();
        same_as_image(&system, &named, image)?;
        if let Some(found) = system.uses_of(&named)?.first() {
            return Err(Error::refused(found).leaving(NOTHING_WRITTEN));
        }
        let device = match named.dev {
            Some(dev) => hold(&system, dev, shown)?,
            None => {
                let opened = Place::find(shown)?.open_existing();
                let opened = opened.map_err(|errno| Fault::io("open", errno));
                let device = opened.and_then(|fd| Device::from_fd(fd, false));
                device.map_err(|fault| cannot(shown, fault))?
            }
        };
        lock(shown, &device)?;
        Ok(Self::Existing(named.shown, device))
    }

    /// Its path, and its number where it is a block device.
    pub(crate) fn named(&self) -> (&Path, Option<DevId>) {
        match self {
            Self::New(place) => (place.path(), None),
            Self::Existing(path, device) => {
                let is_block = device.kind() == DeviceKind::Block;
                (path, is_block.then(|| DevId::from_raw(device.rdev())))
            }
        }
    }

    /// Refuses a device smaller than the image, where that is known, and a file on a filesystem that has none of that length.
    pub(crate) fn check_size(&self, image_bytes: u64) -> Result<()> {
        let (path, device) = match self {
            Self::Existing(path, device) if device.kind() == DeviceKind::Block => (path, device),
            Self::Existing(path, device) => return check_length(path, device.as_fd(), image_bytes),
            Self::New(place) => {
                // Where an unnamed file cannot be had, the first write past the limit says so.
                return match place.unnamed() {
                    Some(file) => check_length(place.path(), file.as_fd(), image_bytes),
                    None => Ok(()),
                };
            }
        };
        if device.size_bytes() >= image_bytes {
            return Ok(());
        }
        Err(Error::refused(format_args!(
            "{}: is too small: it has {} ({} bytes), the image needs {} ({image_bytes} bytes)",
            path.display(),
            Bytes(device.size_bytes()),
            device.size_bytes(),
            Bytes(image_bytes),
        )))
    }

    /// Refuses a device on whose sectors what is in the image means nothing, or cannot be mounted.
    pub(crate) fn check_sectors(&self, content: &Content) -> Result<()> {
        let Self::Existing(path, device) = self else {
            return Ok(());
        };
        if device.kind() == DeviceKind::File {
            return Ok(());
        }
        check_sectors(path, device.sector_bytes(), THE_IMAGE, content)
    }

    /// Refuses to write over something, unless that was asked for.
    pub(crate) fn check_content(&self, overwrite: Overwrite) -> Result<()> {
        if let Self::Existing(path, device) = self
            && let Some(what) = packed(device)
        {
            return Err(is_an_image(path, what));
        }
        if overwrite == Overwrite::Allowed {
            return Ok(());
        }
        if let Self::Existing(path, device) = self
            && device.kind() == DeviceKind::File
        {
            let content = Content::probe(device);
            let content = content.map_err(|fault| Error::fault(path.display(), fault))?;
            if !content.is_empty() {
                // Both may be raw images, and then their order is all that tells them apart.
                return Err(Error::refused(format_args!(
                    "{}: is a raw image ({}); where it is the TARGET, which comes last, and not the IMAGE: --overwrite writes over it",
                    path.display(),
                    content.name()
                ))
                .leaving(NOTHING_WRITTEN));
            }
        }
        match self.holds()? {
            Some(holds) => Err(Error::refused(format_args!(
                "{}: {holds}; --overwrite writes over it",
                self.named().0.display()
            ))),
            None => Ok(()),
        }
    }

    /// In words, what would be written over.
    pub(crate) fn holds(&self) -> Result<Option<String>> {
        let Self::Existing(path, device) = self else {
            return Ok(None);
        };
        let content =
            Content::probe(device).map_err(|fault| Error::fault(path.display(), fault))?;
        let name = content.name();
        let doubt = content.table.as_ref().and_then(|table| table.doubt);
        if let (Some(fault), None) = (content.damaged.or(doubt), &content.identity) {
            return Ok(Some(format!("holds a damaged partition table ({fault})")));
        }
        Ok(Some(match (&content.identity, &content.table) {
            (Some(found), _) if found.label.is_empty() => format!("holds a filesystem ({name})"),
            (Some(found), _) => format!("holds a filesystem ({name}, label {})", found.label),
            (None, Some(_)) => format!("holds a partition table ({name})"),
            (None, None) if has_data(device) => "is a file with something in it".into(),
            (None, None) => return Ok(other_content(device).map(|what| format!("holds {what}"))),
        }))
    }

    /// The device to write to, where nothing is made.
    pub(crate) fn into_device(self) -> Result<(PathBuf, Device)> {
        let (path, device, made) = self.into_parts()?;
        made.into_iter().for_each(Made::keep);
        Ok((path, device))
    }

    /// The device to write to; a new file is made now, for its owner only, as the image was.
    pub(crate) fn into_parts(self) -> Result<(PathBuf, Device, Option<Made>)> {
        let place = match self {
            Self::Existing(path, device) => return Ok((path, device, None)),
            Self::New(place) => place,
        };
        let device = place
            .create()
            .map_err(|errno| Fault::io("create", errno))
            .and_then(|fd| Device::from_fd(fd, false))
            .map_err(|fault| {
                let path = place.path().display();
                let error = match fault.is_errno(Errno::EXIST) {
                    true => Error::refused(format_args!(
                        "{path}: another process made it a moment ago; wait until it is done"
                    )),
                    false => Error::fault(path, fault),
                };
                error.leaving(NOTHING_WRITTEN)
            })?;
        lock(place.path(), &device)?;
        let path = place.path().to_owned();
        let stat = rustix::fs::fstat(device.as_fd()).ok();
        Ok((path, device, Some(Made { place, stat })))
    }
}

/// A file that this run made for a target: dropped, it goes again, so that the same command finds what it found before.
#[derive(Debug)]
pub(crate) struct Made {
    place: Place,
    /// Nothing where it stays.
    stat: Option<Stat>,
}

impl Made {
    /// It stays.
    pub(crate) fn keep(mut self) {
        self.stat = None;
    }

    /// It stays where it is complete.
    pub(crate) fn settle(self, phase: &Phase) {
        if phase.get() == Phase::COMPLETE {
            self.keep();
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
        let made = self.stat.map(identity);
        if made.is_some() && self.place.stat().map(identity) == made {
            let Place { folder, name, .. } = &self.place;
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        }
    }
}

/// A file that packs an image was hardly meant: to advise that it be written over would cost it.
fn is_an_image(path: &Path, what: &str) -> Error {
    Error::refused(format_args!(
        "{}: is {what} itself, and would be written over: the IMAGE comes first, the TARGET last; name another file, or remove this one first",
        path.display()
    ))
    .leaving(NOTHING_WRITTEN)
}

/// What a file is that packs images: what is written over it is none, so that no option asks for it.
fn packed(device: &Device) -> Option<&'static str> {
    let mut first = [0; LOOK_BYTES];
    if device.kind() != DeviceKind::File {
        return None;
    }
    let first = first.get_mut(..at_most(device.size_bytes(), LOOK_BYTES))?;
    device.read_at(0, first).ok()?;
    match Format::recognise(first) {
        Format::Gzip => Some("a gzip file"),
        Format::Zip => Some("a zip archive"),
        Format::Mender => Some("a Mender artifact"),
        Format::Frames => Some("what floe dump --frames sent"),
        Format::Raw => None,
    }
}

/// Refuses targets of one run that are the same file or device, whatever they are called: a hard link, a bind mount, a link.
pub(crate) fn check_distinct<'a>(targets: impl Iterator<Item = &'a OsStr>) -> Result<()> {
    let mut seen: Vec<((u64, u64, OsString), &OsStr)> = Vec::new();
    for target in targets {
        let path = Path::new(target);
        let own = match rustix::fs::stat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice => {
                (stat.st_rdev, 0, "device".into())
            }
            Ok(stat) => (stat.st_dev, stat.st_ino, OsString::new()),
            // A LABEL= and its like: found out when it is held.
            Err(_) if is_tag(target) => (0, 0, target.to_owned()),
            Err(_) => Place::find(path)?.identity(),
        };
        if let Some((_, other)) = seen.iter().find(|(other, _)| *other == own) {
            return Err(Error::usage(match *other == target {
                true => format!("restore: '{}' is named twice", target.display()),
                false => format!(
                    "restore: '{}' and '{}' are the same",
                    other.display(),
                    target.display()
                ),
            }));
        }
        seen.push((own, target));
    }
    Ok(())
}

/// Holds a device that is to be written. Others may have its bytes through another device: asked once it is held, so that of two
/// that begin at the same time one at least sees the other.
pub(crate) fn hold(system: &System, dev: DevId, shown: &Path) -> Result<Device> {
    let device = system.roots().hold(dev, Access::WriteHeld);
    let device = device.map_err(|fault| cannot(shown, fault))?;
    match system.uses_beside(dev, false).first() {
        Some(found) => Err(Error::refused(found).leaving(NOTHING_WRITTEN)),
        None => Ok(device),
    }
}

/// Two writers of one file would leave what is neither's. A device is held with O_EXCL instead. Where a filesystem has no locks,
/// there is none.
fn lock(path: &Path, device: &Device) -> Result<()> {
    let locked = match device.kind() {
        DeviceKind::Block => Ok(()),
        DeviceKind::File => {
            rustix::fs::flock(device.as_fd(), FlockOperation::NonBlockingLockExclusive)
        }
    };
    match locked {
        Err(Errno::WOULDBLOCK) => Err(Error::refused(format_args!(
            "{}: another process is writing it, or has it locked; wait until it is done",
            path.display()
        ))
        .leaving(NOTHING_WRITTEN)),
        _ => Ok(()),
    }
}

/// The kernel seeks no further than the longest file of the filesystem (fs/read_write.c, generic_file_llseek: s_maxbytes).
fn check_length(path: &Path, file: BorrowedFd<'_>, image_bytes: u64) -> Result<()> {
    match rustix::fs::seek(file, SeekFrom::Start(image_bytes)) {
        Err(Errno::INVAL | Errno::OVERFLOW) => Err(Error::refused(format_args!(
            "{}: the image has {} ({image_bytes} bytes), and no file of its filesystem can be that long",
            path.display(),
            Bytes(image_bytes),
        ))),
        _ => Ok(()),
    }
}

/// What is restored, in messages.
pub(crate) const THE_IMAGE: &str = "the image";

/// A partition table counts in sectors, and a filesystem is not mounted where its blocks are smaller than the device's: what was
/// made for 512 bytes means nothing on a disk of 4096, and the other way round for a table.
pub(crate) fn check_sectors(
    path: &Path,
    sector_bytes: u32,
    from: &str,
    content: &Content,
) -> Result<()> {
    let name = path.display();
    if let Some(table) = &content.table
        && table.sector_bytes != sector_bytes
    {
        return Err(Error::refused(format_args!(
            "{name}: has sectors of {sector_bytes} bytes, and the partition table of {from} counts in {}: no kernel would find its partitions; write its partitions one by one",
            table.sector_bytes
        )).leaving(NOTHING_WRITTEN));
    }
    let Some(found) = &content.identity else {
        return Ok(());
    };
    let least = found.max_sector_bytes;
    if least >= sector_bytes {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{name}: has sectors of {sector_bytes} bytes, and the {} of {from} was made for {least}: no kernel would mount it there; make a filesystem for this device (its mkfs chooses the size) and copy the files",
        content.name()
    )).leaving(NOTHING_WRITTEN))
}

fn new_file(path: &Path) -> Result<Chosen> {
    let missing = || {
        Error::refused(format_args!("{}: does not exist", path.display())).leaving(NOTHING_WRITTEN)
    };
    let place = match Place::find(path) {
        Err(error) if error.exit() == Some(Exit::Failed) => return Err(missing()),
        place => place?,
    };
    // A missing node below /dev is a device that is not there, and a file in its place would fill the memory.
    let folder = match place.path().parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if std::fs::canonicalize(folder).map_or(true, |folder| {
        folder.starts_with("/dev") && !folder.starts_with("/dev/shm")
    }) {
        return Err(missing());
    }
    Ok(Chosen::New(place))
}

fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// The same file, the same device, or one that lies on the other: a partition and its disk, a loop device and its file.
fn same_as_image(system: &System, target: &Named, image: &File) -> Result<()> {
    let stat = rustix::fs::fstat(image).map_err(|e| Error::fault("image", Fault::io("stat", e)))?;
    let image_dev = (FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
        .then(|| DevId::from_raw(stat.st_rdev));
    let target_stat = || rustix::fs::stat(&target.shown).ok();
    let over = |file: &Stat, dev| {
        let mut loops = system.loops_over(file).into_iter();
        loops.any(|upper| system.overlaps(upper, dev))
    };
    let same = match (image_dev, target.dev) {
        (Some(image), Some(target)) => system.overlaps(image, target),
        (None, None) => target_stat()
            .is_some_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino)),
        (None, Some(target)) => over(&stat, target),
        (Some(image), None) => target_stat().is_some_and(|found| over(&found, image)),
    };
    if !same {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{}: is the image itself, or holds it",
        target.shown.display()
    )))
}

/// Why a target could not be opened for writing.
pub(crate) fn cannot(path: &Path, fault: Fault) -> Error {
    let name = path.display();
    if fault.is_errno(Errno::BUSY) {
        return Error::refused(format_args!("{name}: {}", mounts::BUSY));
    }
    if fault.is_errno(Errno::ROFS) || fault.is_errno(Errno::TXTBSY) {
        return Error::fault(name, fault)
            .with_exit(Exit::Refused)
            .leaving(NOTHING_WRITTEN);
    }
    let error = Error::fault(name, fault).leaving(NOTHING_WRITTEN);
    match fault.kind() {
        FaultKind::Corrupt => error.with_exit(Exit::Refused),
        _ => error,
    }
}

/// What is on a device that is no filesystem, but what boards start from.
fn other_content(device: &Device) -> Option<&'static str> {
    let mut first = vec![0; at_most(device.size_bytes(), ON_DEVICES_BYTES)];
    device.read_at(0, &mut first).ok()?;
    on_device(&first)
}

/// Whether a regular file holds anything but a hole.
fn has_data(device: &Device) -> bool {
    device.kind() == DeviceKind::File
        && device.size_bytes() > 0
        && rustix::fs::seek(device.as_fd(), SeekFrom::Data(0)) != Err(Errno::NXIO)
}

/// What stands at the end of a device and would bring the old content back: a backup GPT, an md or second NILFS2 superblock.
pub(crate) fn old_tail(device: &Device) -> Option<Extent> {
    let sector = u64::from(device.sector_bytes());
    let last = device.size_bytes().checked_sub(sector)?;
    let mut signature = [0u8; 8];
    device.read_at(last, &mut signature).ok()?;
    if &signature != GPT_SIGNATURE {
        // So have members of old md arrays and NILFS2 (their second superblock): in the last 128 KiB.
        let found = crate::fs::probe(device).ok()??;
        let at_end = matches!(found.kind, Kind::MdMember | Kind::Nilfs2);
        let start = round_down(device.size_bytes().saturating_sub(128 * 1024), sector);
        return Extent::new(start, device.size_bytes() - start).filter(|_| at_end);
    }
    // The header's sector and the 16 KiB of entries before it (UEFI 5.3.1).
    let length = sector.checked_add(16 * 1024)?;
    Extent::new(device.size_bytes().checked_sub(length)?, length)
}
