//! DOS partition tables: four primary entries, and chains of logical partitions inside an extended one.

use core::fmt::Write;

use heapless::String;

use super::{ALIGN_BYTES, NewTable, Partition, PartitionTable, PartitionType, Patch, Scheme};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::layout::le;
use crate::units::{Extent, to_usize};

/// Most links of a chain that are followed; the kernel stops at 100.
const MAX_LINKS: u32 = 100;
/// Where the entries stand in a sector.
const ENTRIES: usize = 0x1be;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 16;
/// Where the disk id stands.
const DISK_ID: usize = 0x1b8;
/// An extended partition, by LBA: the type that is written.
const EXTENDED_LBA: u8 = 0x0f;
/// Geometry that says "too large for geometry: use the LBA".
const NO_CHS: [u8; 3] = [0xfe, 0xff, 0xff];

layout! {
    le struct Entry: 16 {
        0x00 status: u8,
        0x01 head: u8,
        0x02 sector: u8,
        0x03 cylinder: u8,
        0x04 kind: u8,
        0x08 start: u32,
        0x0c count: u32,
    }
}

impl Entry {
    fn is_extended(&self) -> bool {
        self.count != 0 && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// The status, and where floe wrote the entry the role ([`super::with_role`]): below "too large for geometry" the start's cylinder,
    /// which means nothing there and is 0xff otherwise.
    fn attributes(&self) -> u64 {
        let role = match (self.head, self.sector, self.cylinder & 0xf8) {
            (0xfe, 0xff, 0xf0) => self.cylinder & 7,
            _ => 0,
        };
        super::with_role(u64::from(self.status), role)
    }

    fn is_data(&self) -> bool {
        self.count != 0 && self.kind != 0 && !self.is_extended()
    }
}

/// The four entries of a sector that carries the boot signature and nothing but sane status bytes.
fn entries(bytes: &[u8]) -> Option<[Entry; 4]> {
    if le::<u16>(bytes, 0x1fe)? != 0xaa55 {
        return None;
    }
    let entry = |index: usize| Entry::parse(bytes.get(ENTRIES + index * ENTRY_BYTES..)?);
    let all = [entry(0)?, entry(1)?, entry(2)?, entry(3)?];
    all.iter()
        .all(|entry| matches!(entry.status, 0 | 0x80))
        .then_some(all)
}

/// Whether the first sector announces a GPT, as the kernel asks it (pmbr_part_valid in block/partitions/efi.c).
pub(super) fn is_protective(first: &[u8; 512]) -> bool {
    le::<u16>(first, 0x1fe) == Some(0xaa55)
        && (0..4)
            .filter_map(|index| Entry::parse(first.get(ENTRIES + index * ENTRY_BYTES..)?))
            .any(|entry| entry.kind == 0xee && entry.start == 1)
}

/// Whether the first sector is a filesystem's own boot sector (FAT, NTFS, exFAT) rather than a table.
fn is_boot_sector(first: &[u8]) -> bool {
    let jumps = matches!(first, [0xeb, _, 0x90, ..] | [0xe9, ..]);
    let bytes_per_sector = le::<u16>(first, 0x0b).unwrap_or(0);
    let known = first
        .get(3..11)
        .is_some_and(|name| matches!(name, b"EXFAT   " | b"NTFS    " | b"-FVE-FS-"));
    jumps && (known || matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096))
}

/// Reads the table in `first`, the disk's first 512 bytes.
pub(super) fn read(
    device: &dyn ReadAt,
    sector_bytes: u32,
    first: &[u8; 512],
) -> Result<Option<PartitionTable>, Fault> {
    let Some(primary) = entries(first) else {
        return Ok(None);
    };
    let id: u32 = le(first, DISK_ID).unwrap_or(0);
    let empty = primary.iter().all(|entry| entry.count == 0);
    // A table without partitions is one only if it has an identity; a filesystem's boot sector is none.
    if is_boot_sector(first) && !primary_is_plausible(&primary) || empty && id == 0 {
        return Ok(None);
    }
    let mut disk_id = String::new();
    let _ = write!(disk_id, "{id:08x}");
    let mut reader = LogicalChain {
        device,
        sector: u64::from(sector_bytes),
        id,
        logical: 5,
        table: PartitionTable {
            scheme: Scheme::Mbr,
            sector_bytes,
            disk_id,
            partitions: Vec::new(),
            end_bytes: 512,
            doubt: None,
        },
    };
    for (number, entry) in (1u32..).zip(&primary) {
        if entry.is_data() {
            reader.add(number, u64::from(entry.start), entry);
        }
    }
    for entry in primary.iter().filter(|entry| entry.is_extended()) {
        reader.follow(u64::from(entry.start), u64::from(entry.count))?;
    }
    let mut table = reader.table;
    table.check_overlaps();
    Ok(Some(table))
}

/// Boot code of some boards begins with a jump and a BPB in front of a real table: believe entries that all make sense.
fn primary_is_plausible(primary: &[Entry; 4]) -> bool {
    let used = || primary.iter().filter(|entry| entry.count != 0);
    used().count() != 0 && used().all(|entry| entry.start != 0 && entry.kind != 0)
}

/// Collects partitions, along the chains of extended ones too.
struct LogicalChain<'a> {
    device: &'a dyn ReadAt,
    sector: u64,
    id: u32,
    logical: u32,
    table: PartitionTable,
}

impl LogicalChain<'_> {
    /// Adds the partition of `entry` that starts at sector `start`.
    fn add(&mut self, number: u32, start: u64, entry: &Entry) {
        // Sums and products of 32-bit numbers: 64 bits hold them.
        let extent = Extent::at(start * self.sector, u64::from(entry.count) * self.sector);
        if start == 0 {
            let fault = Fault::corrupt("partition over the table");
            self.table
                .doubt(fault.in_unit("partition", u64::from(number)));
            return;
        }
        let mut uuid = String::new();
        let _ = write!(uuid, "{:08x}-{number:02x}", self.id);
        self.table.end_bytes = self.table.end_bytes.max(extent.end());
        self.table.partitions.push(Partition {
            number,
            extent,
            kind: PartitionType::Byte(entry.kind),
            uuid,
            name: String::new(),
            attributes: entry.attributes(),
        });
    }

    /// Follows the chain of an extended partition of `count` sectors at `base`.
    fn follow(&mut self, base: u64, count: u64) -> Result<(), Fault> {
        self.table.end_bytes = self.table.end_bytes.max((base + count) * self.sector);
        let mut link = base;
        for _ in 0..MAX_LINKS {
            let offset = link * self.sector;
            if offset.saturating_add(512) > self.device.size_bytes() {
                self.doubt("link of the extended partition beyond the disk", offset);
                return Ok(());
            }
            let mut bytes = [0u8; 512];
            self.device.read_at(offset, &mut bytes)?;
            let Some(found) = entries(&bytes) else {
                self.doubt("link of the extended partition", offset);
                return Ok(());
            };
            for entry in found.iter().filter(|entry| entry.is_data()) {
                let start = link + u64::from(entry.start);
                if entry.start == 0 || start + u64::from(entry.count) > base + count {
                    self.doubt("logical partition outside its extended one", offset);
                    continue;
                }
                self.add(self.logical, start, entry);
                self.logical += 1;
            }
            let Some(next) = found.iter().find(|entry| entry.is_extended()) else {
                return Ok(());
            };
            let next = base + u64::from(next.start);
            if next == link || next >= base + count {
                self.doubt("chain of the extended partition", offset);
                return Ok(());
            }
            link = next;
        }
        self.doubt("chain of the extended partition too long", link);
        Ok(())
    }

    fn doubt(&mut self, what: &'static str, offset: u64) {
        self.table.doubt(Fault::corrupt(what).at(offset, 512));
    }
}

/// Bytes that stand in front of the partition at `index` for its link sector.
pub(super) fn link_bytes(scheme: Scheme, partitions: usize, index: usize) -> u64 {
    if scheme == Scheme::Mbr && partitions > 4 && index >= 3 {
        ALIGN_BYTES
    } else {
        0
    }
}

/// One entry to be written; sectors.
#[derive(Clone, Copy, Default)]
struct NewEntry {
    active: bool,
    /// 0: none.
    role: u8,
    kind: u8,
    start: u64,
    count: u64,
}

/// Writes entry `index` of a table's sector.
fn put(bytes: &mut [u8], index: usize, entry: NewEntry) -> Result<(), Fault> {
    let wide = Fault::refused("too large for an MBR").in_unit("sector", entry.start);
    let start = u32::try_from(entry.start).map_err(|_| wide)?;
    let count = u32::try_from(entry.count).map_err(|_| wide)?;
    let mut field = [0u8; ENTRY_BYTES];
    field[0] = if entry.active { 0x80 } else { 0 };
    field[1..4].copy_from_slice(&NO_CHS);
    if entry.role != 0 {
        field[3] = 0xf0 | entry.role;
    }
    field[4] = entry.kind;
    field[5..8].copy_from_slice(&NO_CHS);
    field[8..12].copy_from_slice(&start.to_le_bytes());
    field[12..].copy_from_slice(&count.to_le_bytes());
    layout::put(bytes, ENTRIES + index * ENTRY_BYTES, &field);
    Ok(())
}

/// A sector with nothing but the signature.
fn signed(sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(sector)];
    layout::put(&mut bytes, 0x1fe, &[0x55, 0xaa]);
    bytes
}

fn new_entry(table: &NewTable<'_>, index: usize) -> Option<NewEntry> {
    let partition = table.partitions.get(index)?;
    let PartitionType::Byte(kind) = partition.kind else {
        return None;
    };
    let sector = u64::from(table.sector_bytes);
    Some(NewEntry {
        active: partition.attributes & 0x80 != 0,
        role: super::role_of(partition.attributes),
        kind,
        start: partition.extent.offset / sector,
        count: partition.extent.length_bytes / sector,
    })
}

/// The link sectors, last first, and then the table.
pub(super) fn build(table: &NewTable<'_>) -> Result<Vec<Patch>, Fault> {
    let sector = u64::from(table.sector_bytes);
    let count = table.partitions.len();
    let mut first = signed(sector);
    let disk_id = table.disk_id.0.get(..4).unwrap_or_default();
    layout::put(&mut first, DISK_ID, disk_id);
    let primaries = if count > 4 { 3 } else { count };
    for index in 0..primaries {
        let entry = new_entry(table, index).ok_or_else(|| Fault::refused("partition type"))?;
        put(&mut first, index, entry)?;
    }
    let mut patches = Vec::new();
    if count > 4 {
        let links = links(table, primaries)?;
        let base = links.first().map_or(0, |link| link.0);
        let end = links
            .last()
            .map_or(0, |(_, entry)| entry.start + entry.count);
        let extended = NewEntry {
            kind: EXTENDED_LBA,
            start: base,
            count: end - base,
            ..NewEntry::default()
        };
        put(&mut first, 3, extended)?;
        for (index, (link, entry)) in links.iter().enumerate() {
            let mut bytes = signed(sector);
            let start = entry.start - link;
            put(&mut bytes, 0, NewEntry { start, ..*entry })?;
            if let Some((next, following)) = links.get(index + 1) {
                let chain = NewEntry {
                    kind: EXTENDED_LBA,
                    start: next - base,
                    count: following.start + following.count - next,
                    ..NewEntry::default()
                };
                put(&mut bytes, 1, chain)?;
            }
            patches.push(Patch {
                offset: link * sector,
                bytes,
            });
        }
        patches.reverse();
    }
    patches.push(Patch {
        offset: 0,
        bytes: first,
    });
    Ok(patches)
}

/// The logical partitions with the sectors of their links, which stand in the space left in front of each.
fn links(table: &NewTable<'_>, first: usize) -> Result<Vec<(u64, NewEntry)>, Fault> {
    let sector = u64::from(table.sector_bytes);
    let mut links = Vec::new();
    for index in first..table.partitions.len() {
        let entry = new_entry(table, index).ok_or_else(|| Fault::refused("partition type"))?;
        let before = index
            .checked_sub(1)
            .and_then(|before| new_entry(table, before))
            .map_or(1, |before| before.start + before.count);
        let link = entry.start.saturating_sub(ALIGN_BYTES / sector);
        if link < before {
            return Err(Fault::refused("no room for a logical partition's link"));
        }
        links.push((link, entry));
    }
    Ok(links)
}

/// The protective MBR of a GPT: one entry over the whole disk.
pub(super) fn protective(sector: u64, disk_lbas: u64) -> Vec<u8> {
    let mut bytes = signed(sector);
    let entry = NewEntry {
        kind: 0xee,
        start: 1,
        count: (disk_lbas - 1).min(u64::from(u32::MAX)),
        ..NewEntry::default()
    };
    // Both numbers fit 32 bits.
    let _ = put(&mut bytes, 0, entry);
    if let Some(place) = bytes.get_mut(ENTRIES + 1..ENTRIES + 4) {
        // The specification wants the first sector's true geometry here.
        place.copy_from_slice(&[0x00, 0x02, 0x00]);
    }
    bytes
}

/// Stretches the protective entry to the end of the disk; a hybrid table's entries, which cover a part, stay.
pub(super) fn grow_protective(bytes: &mut [u8], disk_lbas: u64) {
    let count = u32::try_from(disk_lbas.saturating_sub(1)).unwrap_or(u32::MAX);
    let others = (0..4)
        .filter_map(|i| Entry::parse(bytes.get(ENTRIES + i * ENTRY_BYTES..)?))
        .filter(|entry| entry.count != 0 && entry.kind != 0xee)
        .count();
    for index in 0..4 {
        let at = ENTRIES + index * ENTRY_BYTES;
        let entry = bytes.get(at..).and_then(Entry::parse);
        let whole = entry.is_some_and(|e| e.kind == 0xee && e.start == 1 && others == 0);
        if whole && let Some(place) = bytes.get_mut(at + 12..at + 16) {
            place.copy_from_slice(&count.to_le_bytes());
            return;
        }
    }
}
