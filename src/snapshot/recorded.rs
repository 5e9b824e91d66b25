//! The partition table and boot area of a disk, as `create --disk` takes them along.
//!
//! The table is the disk's beginning up to the end of its GPT entries (the backup at its end is made anew when it is laid), or an
//! MBR's one sector; the boot area is what lies between it and the first partition. Tables that are spread over the disk
//! (logical partitions) are refused.

use std::ffi::OsStr;

use crate::device::{Device, ReadAt};
use crate::error::{Error, Fault, FaultKind, Result};
use crate::mounts::{DevId, System};
use crate::ptable::{self, PartitionTable, Scheme, gpt};
use crate::report;
use crate::snapshot::DiskEntry;
use crate::units::{to_u64, to_usize};

/// Largest boot area in bytes; it waits in memory before the first filesystem.
const MAX_BOOT_BYTES: u64 = 32 << 20;
/// First number of an MBR's logical partitions.
const FIRST_LOGICAL: u32 = 5;

/// What was taken.
pub(crate) struct RecordedDisk {
    /// As the metadata says it.
    pub facts: DiskEntry,
    /// The table.
    pub table: Vec<u8>,
    /// The boot area, without the zeros at its end.
    pub boot: Vec<u8>,
    /// The numbers of its partitions.
    pub partitions: Vec<u32>,
    dev: Option<DevId>,
}

impl RecordedDisk {
    /// Whether it is no file.
    pub(crate) fn is_device(&self) -> bool {
        self.dev.is_some()
    }

    /// Whether a device is a partition of this disk.
    pub(crate) fn holds(&self, system: &System, dev: Option<DevId>) -> bool {
        let disk = dev.and_then(|dev| system.roots().disk_of(dev));
        disk.is_some() && disk == self.dev
    }
}

/// Reads table and boot area of the disk that `name` means.
pub(crate) fn take(system: &System, name: &OsStr, quiet: bool) -> Result<RecordedDisk> {
    let named = system.target(name)?;
    let shown = named.shown.display().to_string();
    let fail = |fault| Error::fault(&shown, fault);
    let access = crate::device::Access::Read;
    let device = match named.dev {
        Some(dev) => system.roots().open_device(dev, access),
        None => Device::open(&named.shown, access),
    }
    .map_err(fail)?;
    let table = ptable::read(&device, device.sector_bytes());
    let table = table.map_err(|fault| match fault.kind() {
        FaultKind::Io => fail(fault),
        _ => Error::refused(format_args!(
            "{shown}: its partition table is damaged: {fault}; repair it first, or floe dump --whole {shown} keeps the disk as it is"
        )),
    })?;
    let table = table.ok_or_else(|| {
        Error::refused(format_args!(
            "{shown}: has no partition table; --disk names a whole disk"
        ))
    })?;
    check(&shown, &table)?;
    let table_bytes = length(&device, &table).map_err(fail)?;
    let first = table.partitions.iter().map(|p| p.extent.offset).min();
    let first = first.unwrap_or(table_bytes).max(table_bytes);
    let boot_bytes = (first - table_bytes).min(MAX_BOOT_BYTES);
    if first - table_bytes > boot_bytes && !quiet {
        report::line(format_args!(
            "{shown}: the boot area before the first partition is larger than {} MiB; the rest of it is not part of the snapshot",
            MAX_BOOT_BYTES >> 20
        ));
    }
    let read = |offset: u64, length: u64| {
        let mut bytes = vec![0; to_usize(length)];
        device.read_at(offset, &mut bytes).map(|()| bytes)
    };
    let bytes = read(0, table_bytes).map_err(fail)?;
    let mut boot = read(table_bytes, boot_bytes).map_err(fail)?;
    let used = boot
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    // Whole sectors: it is written back through O_DIRECT.
    boot.truncate(used.next_multiple_of(4096).min(boot.len()));
    Ok(RecordedDisk {
        facts: DiskEntry {
            device: shown,
            table: table.scheme.name().into(),
            size_bytes: device.size_bytes(),
            sector_bytes: device.sector_bytes().into(),
            table_bytes,
            boot_bytes: to_u64(boot.len()),
        },
        table: bytes,
        boot,
        partitions: table.partitions.iter().map(|p| p.number).collect(),
        dev: named.dev,
    })
}

fn check(shown: &str, table: &PartitionTable) -> Result<()> {
    if let Some(doubt) = table.doubt {
        return Err(Error::refused(format_args!(
            "{shown}: partition table: {doubt}; repair it first, or floe dump --whole {shown} keeps the disk as it is"
        )));
    }
    let logical =
        table.scheme == Scheme::Mbr && table.partitions.iter().any(|p| p.number >= FIRST_LOGICAL);
    if logical {
        return Err(Error::refused(format_args!(
            "{shown}: has logical partitions, whose table is spread over the disk; dump the whole disk instead"
        )));
    }
    Ok(())
}

/// Bytes of the table at the beginning of the disk.
fn length(device: &Device, table: &PartitionTable) -> std::result::Result<u64, Fault> {
    let sector = u64::from(table.sector_bytes);
    if table.scheme == Scheme::Mbr {
        return Ok(sector);
    }
    let entries = gpt::entries_of(device, table.sector_bytes)?;
    let end = entries
        .end()
        .checked_next_multiple_of(sector)
        .filter(|end| *end <= MAX_BOOT_BYTES && *end <= device.size_bytes());
    end.ok_or_else(|| Fault::unsupported("place of the partition entries"))
}
