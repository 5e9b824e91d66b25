//! `--as-primary`: what makes a disk boot in place of the original, besides its filesystems: the boot code in the first sector, the
//! area in front of the first partition with whatever a boot loader keeps there, raw partitions in it (BIOS boot), and the
//! identifiers of disk and partitions.
//!
//! The area keeps its place, for boot code finds its next stage by sector numbers. Only reads the original.

use crate::device::{Access, Device, Range, ReadAt};
use crate::error::{Error, Fault, FaultKind, NOTHING_WRITTEN, Result};
use crate::fs;
use crate::medium::{PlannedPartition, RoleSource, read};
use crate::mounts::System;
use crate::ptable::{ALIGN_BYTES, Guid, Partition, PartitionTable, Patch, Scheme, gpt};
use crate::stream::target::Target;
use crate::sys::memory::Pages;
use crate::units::{self, Extent, round_up, to_usize};

/// Boot code of the first sector: what follows are the disk's id and the table.
const CODE_BYTES: usize = 440;
/// Bytes of a GPT that is written: header and entries behind the first sector.
const NEW_ENTRIES_BYTES: u64 = 16 * 1024;
/// Copied at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Largest area in front of the first partition that is taken for one.
const AREA_MAX: u64 = 1 << 30;

/// What is taken over from the original.
pub(super) struct Boot {
    device: Device,
    table: PartitionTable,
    code: Vec<u8>,
    /// What is copied, in its place.
    area: Vec<Extent>,
    end: u64,
    /// Partitions in the area that hold no filesystem.
    kept: Vec<Partition>,
    notes: Vec<String>,
}

impl Boot {
    /// Of the disk that the root (or the first source) lies on.
    pub(super) fn of(system: &System, sources: &[RoleSource], target: &Device) -> Result<Self> {
        let root = sources
            .iter()
            .find(|source| source.role == crate::medium::Role::Root)
            .or(sources.first());
        let disk = root
            .and_then(|source| source.dev)
            .and_then(|dev| system.roots().disk_of(dev));
        let name = root.map_or("clone", |source| source.name.as_str());
        let disk = disk.ok_or_else(|| {
            Error::refused(format_args!(
                "{name}: --as-primary: is on no partition of a disk"
            ))
        })?;
        let shown = system.roots().shown(disk).display().to_string();
        let fail = |fault| Error::fault(&shown, fault).leaving(NOTHING_WRITTEN);
        let device = system.roots().open_device(disk, Access::Read);
        let device = device.map_err(fail)?;
        let refused = |what: std::fmt::Arguments<'_>| {
            Error::refused(format_args!("{shown}: --as-primary: {what}"))
        };
        let damaged = |fault| {
            refused(format_args!(
                "its partition table is damaged: {fault}; repair it first"
            ))
        };
        let table = match crate::ptable::read(&device, device.sector_bytes()) {
            Err(fault) if fault.kind() != FaultKind::Io => return Err(damaged(fault)),
            table => table.map_err(fail)?,
        };
        let table = table.ok_or_else(|| refused(format_args!("it has no partition table")))?;
        if let Some(fault) = table.doubt {
            return Err(damaged(fault));
        }
        if device.sector_bytes() != target.sector_bytes() {
            return Err(Error::refused(format_args!(
                "{shown}: --as-primary: has sectors of {} bytes and the medium of {}: its boot code would not work there",
                device.sector_bytes(),
                target.sector_bytes()
            )));
        }
        let first = sources
            .iter()
            .filter_map(|source| entry_of(system, &table, source))
            .map(|entry| entry.extent.offset)
            .min()
            .filter(|first| *first <= AREA_MAX)
            .ok_or_else(|| {
                Error::refused(format_args!(
                    "{shown}: --as-primary: the partitions begin too far behind its start"
                ))
            })?;
        let code = read(&device, 0, u64::from(device.sector_bytes())).map_err(fail)?;
        let mut boot = Self {
            code: code.get(..CODE_BYTES).unwrap_or_default().to_vec(),
            area: Vec::new(),
            end: first,
            kept: Vec::new(),
            notes: Vec::new(),
            device,
            table,
        };
        boot.look(first).map_err(fail)?;
        Ok(boot)
    }

    /// Finds what of the area is to be copied.
    fn look(&mut self, first: u64) -> std::result::Result<(), Fault> {
        let sector = u64::from(self.table.sector_bytes);
        let mut from = sector;
        if self.table.scheme == Scheme::Gpt {
            let entries = gpt::entries_of(&self.device, self.table.sector_bytes)?;
            from = 2 * sector + NEW_ENTRIES_BYTES;
            // A boot loader where the new table will stand cannot be taken along.
            let is_first = entries.offset == 2 * sector;
            if !is_first || entries.end() < from && self.holds_data(entries.end(), from)? {
                return Err(Fault::unsupported(
                    "a boot loader stands where the new partition table goes",
                ));
            }
        }
        let mut parts = self.table.partitions.clone();
        parts.retain(|part| part.extent.offset < first);
        units::sort(&mut parts, |a, b| a.extent.offset < b.extent.offset);
        let mut at = from;
        for part in parts {
            let inside = Range {
                device: &self.device,
                extent: part.extent,
            };
            let is_raw = fs::probe(&inside)?.is_none() && part.extent.end() <= first;
            if is_raw {
                self.kept.push(part);
                continue;
            }
            self.add_area(at, part.extent.offset);
            at = at.max(part.extent.end());
            self.notes.push(format!(
                "partition {} of the original is in no pair, and is not on this medium",
                part.number
            ));
        }
        self.add_area(at, first);
        Ok(())
    }

    fn add_area(&mut self, from: u64, to: u64) {
        if let Some(length_bytes) = to.checked_sub(from).filter(|length| *length > 0) {
            self.area.push(Extent::at(from, length_bytes));
        }
    }

    fn holds_data(&self, from: u64, to: u64) -> std::result::Result<bool, Fault> {
        let bytes = read(&self.device, from, to.saturating_sub(from))?;
        Ok(bytes.iter().any(|byte| *byte != 0))
    }

    /// The format of the original's table.
    pub(super) fn scheme(&self) -> Scheme {
        self.table.scheme
    }

    /// Where the first partition may begin.
    pub(super) fn end(&self) -> u64 {
        round_up(self.end, ALIGN_BYTES).unwrap_or(self.end)
    }

    /// The disk's identifier.
    pub(super) fn disk_id(&self) -> Option<Guid> {
        match self.table.scheme {
            Scheme::Gpt => Guid::parse(&self.table.disk_id),
            Scheme::Mbr => {
                let id = u32::from_str_radix(&self.table.disk_id, 16).ok()?;
                let mut bytes = [0; 16];
                let (first, _) = bytes.split_first_chunk_mut::<4>()?;
                *first = id.to_le_bytes();
                Some(Guid(bytes))
            }
        }
    }

    /// The raw partitions of the area.
    pub(super) fn kept(&self) -> Vec<PlannedPartition> {
        let slot = |part: &Partition| PlannedPartition {
            role: None,
            extent: part.extent,
            kind: part.kind,
            uuid: Guid::parse(&part.uuid).unwrap_or_default(),
            name: part.name.as_str().into(),
            attributes: part.attributes,
            what: "as on the original".into(),
            is_filled: false,
        };
        self.kept.iter().map(slot).collect()
    }

    /// Gives a slot what its source's partition has: type, identifier, name, attributes.
    pub(super) fn identify(&self, slot: &mut PlannedPartition, source: &RoleSource) {
        let system = System::look().ok();
        let entry = system.and_then(|system| entry_of(&system, &self.table, source));
        let Some(entry) = entry else {
            return;
        };
        slot.kind = entry.kind;
        slot.uuid = Guid::parse(&entry.uuid).unwrap_or(slot.uuid);
        slot.name = entry.name.as_str().into();
        slot.attributes = entry.attributes;
    }

    /// What does not become as on the original.
    pub(super) fn notes(&self, slots: &[PlannedPartition]) -> Vec<String> {
        let mut notes = self.notes.clone();
        for (number, slot) in (1u32..).zip(slots) {
            let uuid = slot.uuid.to_string();
            let was = self.table.by_uuid(&uuid).map(|entry| entry.number);
            if let Some(was) = was.filter(|was| *was != number) {
                notes.push(format!(
                    "{} is partition {number} here and {was} on the original: a boot loader that goes by number has to be told",
                    slot.name
                ));
            }
        }
        notes
    }

    /// Puts the boot code into the first sector of a table.
    pub(super) fn put_code(&self, patches: &mut [Patch]) {
        let first = patches.iter_mut().find(|patch| patch.offset == 0);
        if let Some(place) = first.and_then(|patch| patch.bytes.get_mut(..self.code.len())) {
            place.copy_from_slice(&self.code);
        }
    }

    /// Copies the area.
    pub(super) fn copy_area(&self, target: &mut Target) -> std::result::Result<(), Fault> {
        let mut buffer = Pages::new(PIECE_BYTES).map_err(|errno| Fault::io("mmap", errno))?;
        for extent in &self.area {
            let mut offset = extent.offset;
            while offset < extent.end() {
                let count =
                    to_usize((extent.end() - offset).min(crate::units::to_u64(PIECE_BYTES)));
                let bytes = buffer
                    .get_mut(..count)
                    .ok_or_else(|| Fault::refused("buffer length"))?;
                self.device.read_at(offset, bytes)?;
                target.write(offset, &mut buffer, count)?;
                offset = offset.saturating_add(crate::units::to_u64(count));
            }
        }
        Ok(())
    }
}

/// The entry of a source's partition in the original's table.
fn entry_of(system: &System, table: &PartitionTable, source: &RoleSource) -> Option<Partition> {
    let dev = source.dev?;
    let disk = system.roots().disk_of(dev)?;
    let known = system.roots().partitions_of(disk);
    let start = known.iter().find(|part| part.dev == dev)?.start_bytes;
    let mut entries = table.partitions.iter();
    entries.find(|entry| entry.extent.offset == start).cloned()
}
