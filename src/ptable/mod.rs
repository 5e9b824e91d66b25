//! Partition tables as bytes: read a GPT or MBR, lay out and write a new one, move a GPT's backup to the end of a larger disk.
//!
//! Bytes in, bytes out: nothing here opens a device or talks to the kernel. What the kernel would not show as a partition is
//! not listed, and [`PartitionTable::doubt`] says why: with a doubt a disk is to be read whole. Sources: UEFI specification 2.10,
//! chapter 5; block/partitions/efi.c and msdos.c for what Linux accepts and how it numbers.

pub mod gpt;
pub mod guid;
pub mod mbr;

use heapless::String;

use crate::device::ReadAt;
use crate::error::Fault;
use crate::units::{self, Extent, round_down, round_up};
pub use guid::Guid;

/// New partitions start at multiples of this many bytes, as everybody's do.
pub const ALIGN_BYTES: u64 = 1 << 20;
/// Most partitions of a new table.
pub const MAX_NEW: usize = 64;

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// DOS partition table.
    Mbr,
}

impl Scheme {
    /// The word of `--table` and of reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
        }
    }
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// GPT.
    Guid(Guid),
    /// MBR.
    Byte(u8),
}

impl core::fmt::Display for PartitionType {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Guid(guid) => write!(f, "{guid}"),
            Self::Byte(byte) => write!(f, "{byte:02x}"),
        }
    }
}

/// What stands beside a role in the attributes, so that nobody else's bits look like one: of the sixteen that GPT leaves to the owner
/// of a type (UEFI 2.10, table 5-8) ChromeOS uses nine from 48, and systemd 59, 60 and 63.
const ROLE_MARK: u64 = 0xa5 << 51;
const ROLE_MASK: u64 = 0x7ff << 48;

/// Attributes that record what floe made a partition for, from 1 to 7; 0 is nothing.
pub fn with_role(attributes: u64, role: u8) -> u64 {
    match role {
        0 => attributes,
        _ => attributes & !ROLE_MASK | ROLE_MARK | u64::from(role & 7) << 48,
    }
}

/// The role that [`with_role`] recorded, or 0.
pub fn role_of(attributes: u64) -> u8 {
    let role = attributes & ROLE_MASK;
    match role & !(7 << 48) {
        ROLE_MARK => u8::try_from((role >> 48) & 7).unwrap_or(0),
        _ => 0,
    }
}

/// One partition, as the kernel would show it.
#[derive(Clone, Debug)]
pub struct Partition {
    /// The kernel's number, from 1; logical ones of an MBR from 5.
    pub number: u32,
    /// Its place on the disk in bytes; never empty, never overflowing.
    pub extent: Extent,
    /// Its type.
    pub kind: PartitionType,
    /// PARTUUID as the kernel prints it: a GUID, or `disk id-number` for MBR.
    pub uuid: String<40>,
    /// PARTLABEL; empty on MBR.
    pub name: String<108>,
    /// GPT: the attribute bits. MBR: 0x80 where it is marked active. Both: see [`with_role`].
    pub attributes: u64,
}

/// A partition table that was read.
#[derive(Clone, Debug)]
pub struct PartitionTable {
    /// Its format.
    pub scheme: Scheme,
    /// Logical sector size in bytes that its numbers count in.
    pub sector_bytes: u32,
    /// GPT: the disk's GUID. MBR: eight hexadecimal digits.
    pub disk_id: String<40>,
    /// In the order of their numbers, at most [`gpt::MAX_ENTRIES`].
    pub partitions: Vec<Partition>,
    /// The end that the table states, in bytes: a raw image of the disk must reach it.
    pub end_bytes: u64,
    /// The first thing that is wrong without making the table useless: a copy that is bad, partitions that overlap, …
    pub doubt: Option<Fault>,
}

impl PartitionTable {
    /// Everything from the start to `size_bytes` that no partition covers, ascending: tables, boot loaders, free space.
    pub fn gaps(&self, size_bytes: u64) -> Vec<Extent> {
        gaps(
            self.partitions.iter().map(|p| p.extent).collect(),
            size_bytes,
        )
    }

    /// The partition with this PARTUUID (in either case).
    pub fn by_uuid(&self, uuid: &str) -> Option<&Partition> {
        self.partitions
            .iter()
            .find(|p| p.uuid.eq_ignore_ascii_case(uuid))
    }

    fn doubt(&mut self, fault: Fault) {
        self.doubt.get_or_insert(fault);
    }

    /// Notes partitions that overlap.
    fn check_overlaps(&mut self) {
        let mut extents: Vec<(Extent, u32)> = self
            .partitions
            .iter()
            .map(|p| (p.extent, p.number))
            .collect();
        units::sort(&mut extents, |a, b| a < b);
        let mut end = 0;
        for (extent, number) in extents {
            if extent.offset < end {
                self.doubt(
                    Fault::corrupt("overlapping partitions")
                        .in_unit("partition", u64::from(number)),
                );
            }
            end = end.max(extent.end());
        }
    }
}

/// Everything from the start to `size_bytes` that none of `extents` covers, ascending.
pub fn gaps(mut extents: Vec<Extent>, size_bytes: u64) -> Vec<Extent> {
    units::sort(&mut extents, |a, b| a < b);
    let mut gaps = Vec::with_capacity(extents.len() + 1);
    let mut from = 0;
    let end = Extent::at(size_bytes, 0);
    for extent in extents.iter().chain([&end]) {
        let start = extent.offset.min(size_bytes);
        if start > from {
            gaps.push(Extent::between(from, start));
        }
        from = from.max(extent.end());
    }
    gaps
}

/// Reads the partition table of a disk with sectors of `sector_bytes`: a GPT behind a protective MBR, or an MBR.
///
/// `None` when there is none; [`Fault::corrupt`] when there is one that cannot be used at all.
pub fn read(device: &dyn ReadAt, sector_bytes: u32) -> Result<Option<PartitionTable>, Fault> {
    if !sector_bytes.is_power_of_two() || !(512..=4096).contains(&sector_bytes) {
        return Err(Fault::unsupported("sector size of the partition table"));
    }
    let mut first = [0u8; 512];
    if device.size_bytes() < 512 {
        return Ok(None);
    }
    device.read_at(0, &mut first)?;
    let mut table = match mbr::is_protective(&first) {
        true => gpt::read(device, sector_bytes),
        false => mbr::read(device, sector_bytes, &first),
    }?;
    if let Some(table) = &mut table
        && table.end_bytes > device.size_bytes()
    {
        table.doubt(Fault::corrupt("it ends behind the disk"));
    }
    Ok(table)
}

/// The same for an image file, whose sector size nobody states: 512 unless a GPT stands where 4096 puts it.
pub fn read_image(device: &dyn ReadAt) -> Result<Option<PartitionTable>, Fault> {
    match read(device, 512) {
        Ok(Some(table)) => Ok(Some(table)),
        other => match gpt::has_header(device, 4096)? {
            true => read(device, 4096),
            false => other,
        },
    }
}

/// A partition of a table to be written.
#[derive(Clone, Debug)]
pub struct NewPartition<'a> {
    /// Its place in bytes: whole sectors, from [`allocate`] or an existing table.
    pub extent: Extent,
    /// Its type, of the scheme's kind.
    pub kind: PartitionType,
    /// GPT: its GUID.
    pub uuid: Guid,
    /// GPT: its name, at most 36 UTF-16 units.
    pub name: &'a str,
    /// As in [`Partition::attributes`].
    pub attributes: u64,
}

/// A table to be written.
#[derive(Clone, Debug)]
pub struct NewTable<'a> {
    /// Format.
    pub scheme: Scheme,
    /// Logical sector size of the disk in bytes.
    pub sector_bytes: u32,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// GPT: the disk's GUID. MBR: its first four bytes are the disk id.
    pub disk_id: Guid,
    /// In the order of their numbers and of their places.
    pub partitions: &'a [NewPartition<'a>],
}

/// Bytes for one place of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Where, in bytes; a multiple of the sector size, as the length is.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

impl NewTable<'_> {
    /// The bytes to write, in the order to write them: the sector that makes the table valid comes last.
    pub fn build(&self) -> Result<Vec<Patch>, Fault> {
        self.check()?;
        match self.scheme {
            Scheme::Gpt => gpt::build(self),
            Scheme::Mbr => mbr::build(self),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        let sector = sector_of(self.sector_bytes, self.disk_bytes)?;
        if self.partitions.len() > MAX_NEW {
            return Err(Fault::refused("too many partitions"));
        }
        let mut end = 0;
        for (number, partition) in (1u64..).zip(self.partitions) {
            let extent = partition.extent;
            let ours = match partition.kind {
                PartitionType::Guid(guid) => self.scheme == Scheme::Gpt && !guid.is_zero(),
                PartitionType::Byte(byte) => self.scheme == Scheme::Mbr && byte != 0,
            };
            let aligned = (extent.offset | extent.length_bytes).is_multiple_of(sector);
            if !ours || !aligned || extent.is_empty() || extent.offset < end {
                return Err(Fault::refused("partition layout").in_unit("partition", number));
            }
            end = extent.end();
            if end > self.disk_bytes {
                return Err(Fault::refused("the disk is too small").in_unit("partition", number));
            }
        }
        Ok(())
    }
}

fn sector_of(sector_bytes: u32, disk_bytes: u64) -> Result<u64, Fault> {
    let sector = u64::from(sector_bytes);
    if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
        return Err(Fault::unsupported("sector size"));
    }
    if !(4 * ALIGN_BYTES..=1 << 62).contains(&disk_bytes) {
        return Err(Fault::refused("the disk is too small for partitions"));
    }
    Ok(sector)
}

/// Size of a partition to be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// At least this many bytes; rounded up to [`ALIGN_BYTES`].
    Bytes(u64),
    /// All that the others leave; at most one partition.
    Rest,
}

/// Places for partitions of these lengths on a disk, in order and aligned, behind its first `first_bytes` (rounded up to
/// [`ALIGN_BYTES`]; at least one of these is kept free anyway); refuses when they do not fit.
///
/// More than four on an MBR: the fourth and later ones are logical, each with its own link sector in front.
pub fn allocate(
    scheme: Scheme,
    sector_bytes: u32,
    disk_bytes: u64,
    first_bytes: u64,
    lengths: &[Length],
) -> Result<Vec<Extent>, Fault> {
    let small = || Fault::refused("the partitions do not fit the disk");
    let sector = sector_of(sector_bytes, disk_bytes)?;
    let end = match scheme {
        Scheme::Gpt => disk_bytes - gpt::backup_bytes(sector),
        // A sector number is 32 bits wide.
        Scheme::Mbr => disk_bytes.min(sector * u64::from(u32::MAX)),
    };
    let end = round_down(end, ALIGN_BYTES);
    let front = |index: usize| mbr::link_bytes(scheme, lengths.len(), index);
    let first = round_up(first_bytes.max(1), ALIGN_BYTES).ok_or_else(small)?;
    let mut taken = first;
    let mut rests = 0u32;
    for (index, length) in lengths.iter().enumerate() {
        let bytes = match *length {
            Length::Bytes(bytes) => round_up(bytes.max(1), ALIGN_BYTES).ok_or_else(small)?,
            Length::Rest => {
                rests += 1;
                0
            }
        };
        taken = taken
            .checked_add(bytes)
            .and_then(|sum| sum.checked_add(front(index)))
            .ok_or_else(small)?;
    }
    let rest = end.checked_sub(taken).ok_or_else(small)?;
    if rests > 1 || (rests == 1 && rest == 0) || lengths.len() > MAX_NEW {
        return Err(small());
    }
    let mut offset = first;
    let mut extents = Vec::with_capacity(lengths.len());
    for (index, length) in lengths.iter().enumerate() {
        let length_bytes = match *length {
            Length::Bytes(bytes) => round_up(bytes.max(1), ALIGN_BYTES).ok_or_else(small)?,
            Length::Rest => rest,
        };
        offset += front(index);
        extents.push(Extent::at(offset, length_bytes));
        offset += length_bytes;
    }
    Ok(extents)
}

#[cfg(test)]
mod tests;
