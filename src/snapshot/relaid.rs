//! An empty disk that gets the partition table and boot area of a snapshot, with its entries written into the partitions.
//!
//! The partitions are written through the disk itself, at the places the table states, so that no other program meets a
//! half-written one. The table comes last of all.

use std::path::PathBuf;
use std::sync::Arc;

use crate::content::Head;
use crate::device::{Device, DeviceKind, ReadAt};
use crate::error::{Error, Fault, Result};
use crate::ptable::{self, PartitionTable, Patch, Scheme};
use crate::put::head::put_patches;
use crate::put::newdisk::NewDisk;
use crate::put::phase::Phase;
use crate::put::rescan;
use crate::put::target::{Chosen, Made};
use crate::snapshot::{DiskEntry, ImageEntry};
use crate::units::{Extent, to_u64, to_usize};

/// A disk that is laid out anew.
pub(crate) struct Laid {
    /// Its node.
    pub path: PathBuf,
    /// How far its table is.
    pub phase: Arc<Phase>,
    /// A file that goes again unless anything is written to it.
    pub made: Option<Made>,
    disk: NewDisk,
    table: PartitionTable,
    /// The beginning of the disk, as recorded.
    beginning: Vec<u8>,
    boot: Vec<u8>,
    patches: Vec<Patch>,
    /// Partitions that no entry fills.
    empty: Vec<u32>,
}

impl Laid {
    /// Opens the disk and computes what will be written; writes nothing, except that a file gets its size.
    pub(crate) fn new(
        chosen: Chosen,
        facts: DiskEntry,
        beginning: Vec<u8>,
        boot: Vec<u8>,
    ) -> Result<Self> {
        let (path, device, made) = chosen.into_parts()?;
        let shown = path.display().to_string();
        let fail = |fault| Error::fault(&shown, fault);
        let sector = u32::try_from(facts.sector_bytes).unwrap_or(0);
        let is_block = device.kind() == DeviceKind::Block;
        if is_block && device.sector_bytes() != sector {
            return Err(Error::refused(format_args!(
                "{shown}: has sectors of {} bytes, the recorded table is for {sector}",
                device.sector_bytes()
            )));
        }
        let device = match is_block {
            true => device,
            false => sized(device, facts.size_bytes).map_err(fail)?,
        };
        let table = recorded(&beginning, sector)?;
        let patches = match table.scheme {
            Scheme::Gpt => {
                ptable::gpt::lay(&Head(&beginning), sector, device.size_bytes()).map_err(fail)?
            }
            Scheme::Mbr => Vec::new(),
        };
        let end = table.partitions.iter().map(|p| p.extent.end()).max();
        if end.is_some_and(|end| end > device.size_bytes()) {
            return Err(Error::refused(format_args!(
                "{shown}: is too small for the recorded partitions"
            )));
        }
        let first = table.partitions.iter().map(|p| p.extent.offset).min();
        Ok(Self {
            path,
            made,
            phase: Arc::default(),
            disk: NewDisk::new(device, first).map_err(fail)?,
            table,
            beginning,
            boot,
            patches,
            empty: Vec::new(),
        })
    }

    fn fail(&self, fault: Fault) -> Error {
        Error::fault(self.path.display(), fault)
    }

    /// The disk opened once more, and the place on it where an entry belongs.
    pub(crate) fn partition(&self, image: &ImageEntry) -> Result<(Device, Extent)> {
        let extent = place_of(&self.table, image)?;
        let device = self.disk.again().map_err(|fault| self.fail(fault))?;
        Ok((device, extent))
    }

    /// Zeroes the beginning, an old backup table, and then everything that no entry fills: nothing old stays in a partition without one,
    /// or between them.
    pub(crate) fn wipe(&mut self, filled: Vec<Extent>) -> Result<()> {
        self.phase.set(Phase::WRITING);
        self.empty = without_entry(&self.table, |extent| filled.contains(extent));
        let wiped = self.disk.wipe().and_then(|()| self.disk.clear(filled));
        wiped.map_err(|fault| self.fail(fault))
    }

    /// Writes boot area and table, the first sector at the very end; gives notes.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        if let Err(fault) = self.write() {
            self.phase.set(match self.disk.is_lost() {
                true => Phase::LOST,
                false => Phase::WRITING,
            });
            return Err(self.fail(fault));
        }
        self.phase.set(Phase::COMPLETE);
        let device = self.disk.device();
        let mut notes = Vec::new();
        if !self.empty.is_empty() {
            notes.push(format!(
                "note: {}",
                numbers(
                    &self.empty,
                    [
                        "of the recorded table had no entry in the snapshot, and is empty",
                        "of the recorded table had no entry in the snapshot, and are empty",
                    ]
                )
            ));
        }
        if device.kind() == DeviceKind::Block {
            notes.extend(rescan::refresh(device));
        }
        Ok(notes)
    }

    fn write(&mut self) -> std::result::Result<(), Fault> {
        let sector = to_usize(u64::from(self.table.sector_bytes));
        let length_bytes = to_u64(self.beginning.len());
        put_patches(&self.patches, &mut self.beginning, self.disk.device())?;
        let (first, rest) = self
            .beginning
            .split_at_checked(sector)
            .ok_or_else(|| Fault::corrupt("length of the recorded table"))?;
        let patches = [
            (length_bytes, self.boot.as_slice()),
            (to_u64(sector), rest),
            (0, first),
        ];
        self.phase.set(Phase::SHOWING);
        self.disk.write_table(patches.into_iter())
    }
}

/// The numbers of the partitions for which this does not hold.
pub(crate) fn without_entry(table: &PartitionTable, has: impl Fn(&Extent) -> bool) -> Vec<u32> {
    let partitions = table.partitions.iter();
    let empty = partitions.filter(|partition| !has(&partition.extent));
    empty.map(|partition| partition.number).collect()
}

/// Partitions in words, with the verb for so many.
pub(crate) fn numbers(numbers: &[u32], [one, several]: [&str; 2]) -> String {
    let all: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match all.as_slice() {
        [only] => format!("partition {only} {one}"),
        all => format!("partitions {} {several}", all.join(", ")),
    }
}

/// The table that a snapshot recorded, for sectors of so many bytes.
pub(crate) fn recorded(beginning: &[u8], sector_bytes: u32) -> Result<PartitionTable> {
    let broken = || Error::corrupt("disk/table.bin: is not a partition table");
    ptable::read(&Head(beginning), sector_bytes)
        .map_err(|fault| Error::fault("disk/table.bin", fault))?
        .ok_or_else(broken)
}

/// Where in the table an entry belongs.
pub(crate) fn place_of(table: &PartitionTable, image: &ImageEntry) -> Result<Extent> {
    let number = image.partition_number;
    let mut partitions = table.partitions.iter();
    let Some(place) = partitions.find(|p| u64::from(p.number) == number) else {
        return Err(Error::refused(format_args!(
            "{}: was not on the recorded disk; name its target too: {}=TARGET",
            image.name, image.name
        )));
    };
    if place.extent.length_bytes < image.size_bytes {
        return Err(Error::refused(format_args!(
            "{}: does not fit its partition {number}",
            image.name
        )));
    }
    Ok(place.extent)
}

/// A file as large as the recorded disk.
fn sized(device: Device, size_bytes: u64) -> std::result::Result<Device, Fault> {
    if device.size_bytes() >= size_bytes {
        return Ok(device);
    }
    rustix::fs::ftruncate(device.as_fd(), size_bytes).map_err(|e| Fault::io("ftruncate", e))?;
    Device::from_fd(device.duplicate()?.into(), false)
}
