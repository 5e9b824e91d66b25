//! `--media` and `--partition`: another disk as the target of a clone, laid out anew with the roles boot, root, config, data, swap.
//!
//! Order: [`Medium::plan`] finds the disk and checks everything, and writes nothing; [`Medium::wipe`] takes away what stands there;
//! the roles are written through the disk itself, so that nobody meets a half-written one; [`Medium::finish`] writes the rest, and
//! the sector that makes the table valid at the very end. So a medium that was interrupted shows neither the old nor the new.

mod boot;
mod choose;
mod roles;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::boot::Boot;
pub(crate) use self::choose::partitions_named;
pub(crate) use self::roles::{MediumOptions, Role};
use crate::device::{Device, ReadAt, WriteAt};
use crate::error::{Error, Exit, Fault, NOTHING_WRITTEN, Result};
use crate::mounts::{DevId, Roots, System};
use crate::ptable::{Guid, NewPartition, NewTable, PartitionType, Patch, Scheme};
use crate::put::newdisk::{LOST_TABLE, NewDisk};
use crate::put::rescan;
use crate::put::target::{self, Chosen, Overwrite};
use crate::put::uuid::random_guid;
use crate::report::{self, Bytes};
use crate::stream::partfile;
use crate::sys::spawn::{self, Command, Ties};
use crate::units::{Extent, to_usize};

/// What is copied into a role.
#[derive(Clone, Debug)]
pub(crate) struct RoleSource {
    /// Where it goes.
    pub role: Role,
    /// What the user called it.
    pub name: String,
    /// Its filesystem's name.
    pub filesystem: String,
    /// Bytes that the partition must have.
    pub size_bytes: u64,
    /// Its device.
    pub dev: Option<DevId>,
}

/// A partition of the new table.
struct PlannedPartition {
    role: Option<Role>,
    extent: Extent,
    kind: PartitionType,
    uuid: Guid,
    name: String,
    attributes: u64,
    what: String,
    /// A source is written into it, to its end.
    is_filled: bool,
}

/// A disk that is laid out anew.
pub(crate) struct Medium {
    /// Its node.
    pub path: PathBuf,
    dev: DevId,
    scheme: Scheme,
    disk: NewDisk,
    slots: Vec<PlannedPartition>,
    patches: Vec<Patch>,
    boot: Option<Boot>,
    /// The program that makes the data partition's filesystem.
    mkfs: Option<PathBuf>,
}

impl Medium {
    /// Finds the disk and lays it out; every check is made here.
    pub(crate) fn plan(
        system: &System,
        wanted: &MediumOptions,
        sources: &[RoleSource],
        overwrite: Overwrite,
    ) -> Result<Self> {
        let from: Vec<DevId> = sources.iter().filter_map(|source| source.dev).collect();
        let (path, dev) = choose::disk(system, wanted, &from)?;
        let shown = path.display().to_string();
        let fail = |fault| Error::fault(&shown, fault).leaving(NOTHING_WRITTEN);
        let device = target::hold(system, dev, &path)?;
        let chosen = Chosen::Existing(path.clone(), device);
        chosen.check_content(overwrite)?;
        let (path, device) = chosen.into_device()?;
        let boot = match wanted.as_primary {
            true => Some(Boot::of(system, sources, &device)?),
            false => None,
        };
        let scheme = scheme(wanted, boot.as_ref(), &shown)?;
        let lengths = wanted.lengths(sources, device.size_bytes(), &shown)?;
        let places = places(scheme, &device, boot.as_ref(), &lengths)
            .map_err(|fault| no_place(&shown, fault, &lengths, device.size_bytes()))?;
        let mut slots = boot.as_ref().map_or_else(Vec::new, Boot::kept);
        for ((role, _), extent) in lengths.iter().zip(places) {
            let source = sources.iter().find(|source| source.role == *role);
            slots.push(slot(*role, extent, source, scheme, boot.as_ref()).map_err(fail)?);
            fits(&shown, extent, source)?;
        }
        let has_data = sources.iter().any(|source| source.role == Role::Data);
        let is_new = |slot: &PlannedPartition| slot.role == Some(Role::Data) && !has_data;
        let mkfs = match slots.iter().any(is_new) {
            true => Some(mkfs(sources)?),
            false => None,
        };
        let mut patches = table(scheme, &device, &slots, boot.as_ref()).map_err(fail)?;
        if let Some(boot) = &boot {
            boot.put_code(&mut patches);
        }
        let first = slots.iter().map(|slot| slot.extent.offset).min();
        if let Some(mkfs) = &mkfs {
            check_nodes(system.roots(), dev)?;
            let data = slots.iter().find(|slot| is_new(slot));
            data.map_or(Ok(()), |slot| check_data(&shown, mkfs, slot.extent))?;
        }
        Ok(Self {
            path,
            dev,
            scheme,
            disk: NewDisk::new(device, first).map_err(fail)?,
            slots,
            patches,
            boot,
            mkfs,
        })
    }

    /// Refuses a disk whose partitions the kernel will not show, for what is done to them afterwards.
    pub(crate) fn check_nodes(&self) -> Result<()> {
        check_nodes(&Roots::default(), self.dev)
    }

    /// The partitions with their numbers: the fourth of an MBR with more is the first logical one, 5.
    fn numbered(&self) -> impl Iterator<Item = (u32, &PlannedPartition)> {
        let skip = u32::from(self.scheme == Scheme::Mbr && self.slots.len() > 4);
        let number = move |at: u32| if at > 3 { at + skip } else { at };
        (1u32..).map(number).zip(&self.slots)
    }

    /// Prints what will be written.
    pub(crate) fn print(&self) {
        let shown = self.path.display();
        report::line(format_args!(
            "{shown}: {} in all, new partition table:",
            Bytes(self.disk.size_bytes())
        ));
        for (number, slot) in self.numbered() {
            report::line(format_args!(
                "{}: {} at {}, {}: {}",
                node(&self.path, number).display(),
                Bytes(slot.extent.length_bytes),
                Bytes(slot.extent.offset),
                slot.name,
                slot.what
            ));
        }
        for note in self.boot.iter().flat_map(|boot| boot.notes(&self.slots)) {
            report::line(format_args!("{shown}: {note}"));
        }
    }

    /// The disk opened once more, the place on it where a role is written, and what messages call that.
    pub(crate) fn place(&self, role: Role) -> Result<(Device, Extent, String)> {
        let fail = |fault| Error::fault(self.path.display(), fault).leaving(NOTHING_WRITTEN);
        let found = self.numbered().find(|(_, slot)| slot.role == Some(role));
        let (number, slot) = found.ok_or_else(|| fail(Fault::refused("no such partition")))?;
        let device = self.disk.again().map_err(fail)?;
        let name = node(&self.path, number).display().to_string();
        Ok((device, slot.extent, name))
    }

    /// Makes the disk visibly empty. Without the heap: it may run while something is frozen.
    pub(crate) fn wipe(&mut self) -> std::result::Result<(), Fault> {
        self.disk.wipe()
    }

    /// Writes swap, boot area and table, has the kernel show the partitions, and makes the data filesystem; gives notes.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        let shown = self.path.display().to_string();
        let written = self.write();
        written.map_err(|fault| {
            let state = match self.disk.is_lost() {
                true => LOST_TABLE,
                false => "the partition table was not written: the medium is not usable",
            };
            Error::fault(&shown, fault)
                .with_exit(Exit::Failed)
                .leaving(state)
        })?;
        let note = rescan::refresh(self.disk.device());
        let too = match self.boot.is_some() {
            true => "",
            false => " or PARTUUID=",
        };
        let fstab = format!(
            "{shown}: note: what /etc/fstab and the boot loader's settings name by /dev/…{too} is still the original: look at them before it boots"
        );
        drop(self.disk);
        let data = self.slots.iter().find(|slot| slot.role == Some(Role::Data));
        if let (Some(mkfs), Some(slot)) = (&self.mkfs, data) {
            make_data(mkfs, self.dev, slot.extent)
                .map_err(|error| error.leaving("everything else on the medium is complete"))?;
        }
        Ok(note.into_iter().chain([fstab]).collect())
    }

    fn write(&mut self) -> std::result::Result<(), Fault> {
        // Nothing old stays where nothing was written: between the partitions, in swap, under what mkfs leaves free.
        let filled = self.slots.iter().filter(|slot| slot.is_filled);
        self.disk.clear(filled.map(|slot| slot.extent).collect())?;
        if let Some(slot) = self.slots.iter().find(|slot| slot.role == Some(Role::Swap)) {
            let extent = slot.extent;
            let header = swap_header(extent.length_bytes)?;
            self.disk.device().write_at(extent.offset, &header)?;
        }
        if let Some(boot) = &self.boot {
            boot.copy_area(self.disk.target())?;
        }
        let patches = self.patches.iter();
        self.disk
            .write_table(patches.map(|patch| (patch.offset, patch.bytes.as_slice())))
    }

    /// The device of a role, after [`Self::finish`].
    pub(crate) fn dev_of(disk: DevId, extent: Extent) -> Option<DevId> {
        let known = Roots::default().partitions_of(disk);
        let found = known
            .iter()
            .find(|part| part.start_bytes == extent.offset)?;
        Some(found.dev)
    }
}

fn check_nodes(roots: &Roots, dev: DevId) -> Result<()> {
    match rescan::has_partitions(roots, dev) {
        true => Ok(()),
        false => Err(Error::refused(format_args!(
            "{}: is a loop device without partitions, which have to appear; attach it with losetup -P",
            roots.shown(dev).display()
        ))),
    }
}

/// `/dev/sdb` and 1: `/dev/sdb1`; `/dev/mmcblk0` and 1: `/dev/mmcblk0p1`.
fn node(disk: &Path, number: u32) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    if name
        .as_encoded_bytes()
        .last()
        .is_some_and(u8::is_ascii_digit)
    {
        name.push("p");
    }
    name.push(number.to_string());
    PathBuf::from(name)
}

/// The kind of table: what was asked for, else that of the original whose identifiers it keeps, else GPT.
fn scheme(wanted: &MediumOptions, boot: Option<&Boot>, shown: &str) -> Result<Scheme> {
    match (wanted.scheme, boot) {
        (None, boot) => Ok(boot.map_or(Scheme::Gpt, Boot::scheme)),
        (Some(scheme), Some(boot)) if scheme != boot.scheme() => Err(Error::refused(format_args!(
            "{shown}: --as-primary keeps the identifiers of the original's {} table; leave out --table",
            boot.scheme().name()
        ))),
        (Some(scheme), _) => Ok(scheme),
    }
}

/// The partitions do not go onto the disk.
fn no_place(shown: &str, fault: Fault, lengths: &[(Role, Option<u64>)], size_bytes: u64) -> Error {
    let each: Vec<String> = lengths
        .iter()
        .map(|(role, bytes)| match bytes {
            Some(bytes) => format!("{} {}", role.name(), Bytes(*bytes)),
            None => format!("{} what is left", role.name()),
        })
        .collect();
    let sum = |left_out: Option<Role>| {
        let taken = lengths.iter().filter(|(role, _)| Some(*role) != left_out);
        let taken = taken.map(|(_, bytes)| bytes.unwrap_or(0));
        taken.fold(0, u64::saturating_add)
    };
    let without = sum(Some(Role::Swap));
    let help = match without < sum(None) && without < size_bytes {
        true => "--swap-size 0 leaves out the swap, or name smaller sizes",
        false => "name smaller sizes (floe clone --help), or a larger disk",
    };
    Error::refused(format_args!(
        "{shown}: {fault}: {}; it has {}; {help}",
        each.join(", "),
        Bytes(size_bytes)
    ))
}

/// Where the roles lie; behind the boot area, where one is taken along.
fn places(
    scheme: Scheme,
    device: &Device,
    boot: Option<&Boot>,
    lengths: &[(Role, Option<u64>)],
) -> std::result::Result<Vec<Extent>, Fault> {
    let wanted: Vec<crate::ptable::Length> = lengths
        .iter()
        .map(|(_, bytes)| match bytes {
            Some(bytes) => crate::ptable::Length::Bytes(*bytes),
            None => crate::ptable::Length::Rest,
        })
        .collect();
    let first = boot.map_or(0, Boot::end);
    crate::ptable::allocate(
        scheme,
        device.sector_bytes(),
        device.size_bytes(),
        first,
        &wanted,
    )
}

fn slot(
    role: Role,
    extent: Extent,
    source: Option<&RoleSource>,
    scheme: Scheme,
    boot: Option<&Boot>,
) -> std::result::Result<PlannedPartition, Fault> {
    let is_fat = source.is_some_and(|source| source.filesystem == "vfat");
    let kind = match (scheme, role) {
        (Scheme::Gpt, Role::Swap) => PartitionType::Guid(Guid::SWAP),
        (Scheme::Gpt, Role::Boot) if is_fat => PartitionType::Guid(Guid::EFI),
        (Scheme::Gpt, _) if is_fat => PartitionType::Guid(Guid::BASIC_DATA),
        (Scheme::Gpt, _) => PartitionType::Guid(Guid::LINUX),
        (Scheme::Mbr, Role::Swap) => PartitionType::Byte(0x82),
        (Scheme::Mbr, _) if is_fat => PartitionType::Byte(0x0c),
        (Scheme::Mbr, _) => PartitionType::Byte(0x83),
    };
    let what = match (role, source) {
        (_, Some(source)) => format!("{} ({})", source.name, source.filesystem),
        (Role::Swap, None) => "swap".into(),
        (_, None) => "a new filesystem".into(),
    };
    let mut slot = PlannedPartition {
        role: Some(role),
        extent,
        kind,
        uuid: random_guid()?,
        name: role.name().into(),
        attributes: 0,
        is_filled: source.is_some(),
        what,
    };
    if scheme == Scheme::Mbr && role == Role::Boot {
        slot.attributes = 0x80;
    }
    if let Some((boot, source)) = boot.zip(source) {
        boot.identify(&mut slot, source);
    }
    slot.attributes = crate::ptable::with_role(slot.attributes, role.number());
    Ok(slot)
}

fn fits(shown: &str, extent: Extent, source: Option<&RoleSource>) -> Result<()> {
    match source {
        Some(source) if source.size_bytes > extent.length_bytes => {
            Err(Error::refused(format_args!(
                "{shown}: the {} partition would have {} ({} bytes), {} needs {} ({} bytes)",
                source.role.name(),
                Bytes(extent.length_bytes),
                extent.length_bytes,
                source.name,
                Bytes(source.size_bytes),
                source.size_bytes
            )))
        }
        _ => Ok(()),
    }
}

fn table(
    scheme: Scheme,
    device: &Device,
    slots: &[PlannedPartition],
    boot: Option<&Boot>,
) -> std::result::Result<Vec<Patch>, Fault> {
    let partitions: Vec<NewPartition<'_>> = slots
        .iter()
        .map(|slot| NewPartition {
            extent: slot.extent,
            kind: slot.kind,
            uuid: slot.uuid,
            name: &slot.name,
            attributes: slot.attributes,
        })
        .collect();
    NewTable {
        scheme,
        sector_bytes: device.sector_bytes(),
        disk_bytes: device.size_bytes(),
        disk_id: match boot.and_then(Boot::disk_id) {
            Some(id) => id,
            None => random_guid()?,
        },
        partitions: &partitions,
    }
    .build()
}

/// The system's mkfs for a filesystem as the root's, or ext4.
fn mkfs(sources: &[RoleSource]) -> Result<PathBuf> {
    let root = sources.iter().find(|source| source.role == Role::Root);
    let kind = root
        .map(|root| root.filesystem.as_str())
        .filter(|kind| matches!(*kind, "ext2" | "ext3" | "xfs" | "btrfs" | "f2fs"))
        .unwrap_or("ext4");
    let name = format!("mkfs.{kind}");
    let usual = || "/usr/sbin:/sbin:/usr/bin:/bin".into();
    let path = std::env::var_os("PATH").unwrap_or_else(usual);
    let mut all = std::env::split_paths(&path);
    all.find_map(|folder| Some(folder.join(&name)).filter(|file| file.is_file()))
        .ok_or_else(|| {
            Error::refused(format_args!(
                "{name}: is not in PATH, and the data partition needs it; install it, or leave out --data-size"
            ))
        })
}

/// Enough for every mkfs.
const AMPLE_BYTES: u64 = 1 << 30;

/// Whether there is room for the data filesystem only its mkfs knows: it is asked now, before anything is written.
fn check_data(shown: &str, mkfs: &Path, extent: Extent) -> Result<()> {
    let works = |mib: u64| partfile::unnamed_anywhere().is_ok_and(|file| would(mkfs, &file, mib));
    let (mut small, mut ample) = (extent.length_bytes >> 20, AMPLE_BYTES >> 20);
    // Where it makes nothing at all in a file, that says nothing.
    if small >= ample || works(small) || !works(ample) {
        return Ok(());
    }
    while ample - small > 1 {
        let middle = small.midpoint(ample);
        match works(middle) {
            true => ample = middle,
            false => small = middle,
        }
    }
    Err(Error::refused(format_args!(
        "{shown}: the data partition would have {}, {} needs {ample} MiB; --data-size {ample} is the least",
        Bytes(extent.length_bytes),
        mkfs.display(),
    ))
    .leaving(NOTHING_WRITTEN))
}

/// Whether mkfs makes its filesystem in a file of so many MiB; where it can be told not to write, it is.
fn would(mkfs: &Path, file: &File, mib: u64) -> bool {
    let name = mkfs.file_name().unwrap_or_default().to_string_lossy();
    let more: &[&str] = match name.strip_prefix("mkfs.") {
        Some("xfs") => &["-N"],
        Some("btrfs" | "f2fs") => &[],
        _ => &["-n"],
    };
    let mut command = Command::new(mkfs.as_os_str(), &name);
    command.words(options(&name));
    command.words(more);
    if file.set_len(mib << 20).is_err() {
        return false;
    }
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    command.word(path.as_bytes());
    let run = spawn::null().and_then(|null| {
        let null = Some(null.as_fd());
        command.spawn([null, null, null], &Ties::Loose)?.wait()
    });
    matches!(run, Ok(Some(0)))
}

/// What every mkfs is told.
fn options(name: &str) -> &'static [&'static str] {
    match name.strip_prefix("mkfs.") {
        Some("xfs" | "btrfs") => &["-q", "-f", "-L", "data"],
        Some("f2fs") => &["-q", "-f", "-l", "data"],
        _ => &["-q", "-F", "-L", "data"],
    }
}

fn make_data(mkfs: &Path, disk: DevId, extent: Extent) -> Result<()> {
    let shown = mkfs.display();
    let roots = Roots::default();
    let node = Medium::dev_of(disk, extent).and_then(|dev| roots.node(dev, &[]));
    let node = node.ok_or_else(|| {
        Error::failed(format_args!(
            "{shown}: the data partition has no node in /dev, so that its filesystem was not made"
        ))
    })?;
    let name = mkfs.file_name().unwrap_or_default().to_string_lossy();
    let mut command = Command::new(mkfs.as_os_str(), &name);
    command.words(options(&name));
    command.word(node.as_os_str().as_bytes());
    let run = spawn::null().and_then(|null| {
        let streams = [Some(null.as_fd()), Some(null.as_fd()), None];
        command.spawn(streams, &Ties::Loose)?.wait()
    });
    match run {
        Ok(Some(0)) => Ok(()),
        Ok(Some(code)) => Err(Error::failed(format_args!(
            "{shown}: {}: failed (exit {code})",
            node.display()
        ))),
        Ok(None) => Err(Error::failed(format_args!(
            "{shown}: {}: was killed",
            node.display()
        ))),
        Err(errno) => Err(Error::fault(shown, Fault::io("start", errno))),
    }
}

/// The first page of a swap area of this length (union swap_header in include/linux/swap.h), for this machine's page size.
fn swap_header(length_bytes: u64) -> std::result::Result<Vec<u8>, Fault> {
    let page = rustix::param::page_size();
    let pages = length_bytes / crate::units::to_u64(page);
    let last = u32::try_from(pages.saturating_sub(1)).unwrap_or(u32::MAX - 1);
    let mut bytes = vec![0; page];
    let uuid = crate::put::uuid::random()?;
    let fields: [(usize, &[u8]); 5] = [
        (1024, &1u32.to_ne_bytes()),
        (1028, &last.to_ne_bytes()),
        (1036, &uuid),
        (1052, b"swap"),
        (page - 10, b"SWAPSPACE2"),
    ];
    for (at, field) in fields {
        crate::layout::put(&mut bytes, at, field);
    }
    Ok(bytes)
}

/// Reads a range of a disk in one piece.
fn read(device: &Device, offset: u64, length: u64) -> std::result::Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; to_usize(length)];
    device.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
