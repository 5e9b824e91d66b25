//! GUID partition tables: both copies read, checked against each other, written, and moved to the end of a larger disk.

use heapless::String;

use super::guid::Guid;
use super::{NewTable, Partition, PartitionTable, PartitionType, Patch, Scheme, mbr};
use crate::crc::crc32;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::{Extent, to_u64, to_usize};

/// Most entries of a table that is read; usual is 128.
pub const MAX_ENTRIES: u32 = 1024;
/// Bytes of an entry; the kernel takes no other size.
const ENTRY_BYTES: u64 = 128;
/// Entries of a table that is written: 16 KiB, the least the specification allows.
const NEW_ENTRIES: u32 = 128;
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of a header that mean something.
const HEADER_BYTES: u32 = 92;

layout! {
    le struct Header: 92 {
        0x00 signature: [u8; 8],
        0x0c header_bytes: u32,
        0x10 header_crc: u32,
        0x18 my_lba: u64,
        0x20 alternate_lba: u64,
        0x28 first_usable_lba: u64,
        0x30 last_usable_lba: u64,
        0x38 disk_guid: [u8; 16],
        0x48 array_lba: u64,
        0x50 entries: u32,
        0x54 entry_bytes: u32,
        0x58 array_crc: u32,
    }
}

layout! {
    le struct Entry: 128 {
        0x00 kind: [u8; 16],
        0x10 unique: [u8; 16],
        0x20 first_lba: u64,
        0x28 last_lba: u64,
        0x30 attributes: u64,
        0x38 name: [u8; 72],
    }
}

/// One of the two headers, which passed its checks, with its array.
struct Half {
    header: Header,
    /// The header's sector as it was read.
    sector: Vec<u8>,
    array: Vec<u8>,
}

/// Bytes that the backup of a new table takes at the end of a disk.
pub(super) fn backup_bytes(sector_bytes: u64) -> u64 {
    sector_bytes + u64::from(NEW_ENTRIES) * ENTRY_BYTES
}

/// Whether a header's signature stands where sectors of `sector_bytes` put it.
pub(crate) fn has_header(device: &dyn ReadAt, sector_bytes: u32) -> Result<bool, Fault> {
    let offset = u64::from(sector_bytes);
    if device.size_bytes() < offset + 512 {
        return Ok(false);
    }
    let mut bytes = [0u8; 8];
    device.read_at(offset, &mut bytes)?;
    Ok(bytes == *SIGNATURE)
}

/// Where the entries of the first header lie, as it says.
pub(crate) fn entries_of(device: &dyn ReadAt, sector_bytes: u32) -> Result<Extent, Fault> {
    let sector = u64::from(sector_bytes);
    let mut bytes = vec![0; to_usize(sector)];
    device.read_at(sector, &mut bytes)?;
    let bad = || Fault::corrupt("GPT header");
    let header = Header::parse(&bytes).ok_or_else(bad)?;
    let length = u64::from(header.entries).checked_mul(u64::from(header.entry_bytes));
    let place = header.array_lba.checked_mul(sector).zip(length);
    let place = place.and_then(|(offset, length)| Extent::new(offset, length));
    place.ok_or_else(bad)
}

/// Whether `tail`, the end of a disk of `size_bytes`, is a backup header that says so: with sectors of 512 bytes or 4096.
pub fn ends_with_backup(tail: &[u8], size_bytes: u64) -> bool {
    [512u64, 4096].into_iter().any(|sector| {
        let begin = tail.len().checked_sub(to_usize(sector));
        let bytes = begin.and_then(|begin| tail.get(begin..));
        let lba = (size_bytes / sector).checked_sub(1);
        let (Some(bytes), Some(lba)) = (bytes, lba.filter(|_| size_bytes.is_multiple_of(sector)))
        else {
            return false;
        };
        Header::parse(bytes).is_some_and(|header| {
            header.signature == *SIGNATURE && check_header(&header, bytes, lba).is_ok()
        })
    })
}

/// Reads and checks the copy whose header is at `lba`.
fn read_copy(device: &dyn ReadAt, sector: u64, lba: u64) -> Result<Half, Fault> {
    let offset = lba
        .checked_mul(sector)
        .ok_or_else(|| Fault::corrupt("GPT header beyond the disk"))?;
    let inside = |offset: u64, length: u64| {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= device.size_bytes())
    };
    if !inside(offset, sector) {
        return Err(Fault::corrupt("GPT header beyond the disk").at(offset, sector));
    }
    let mut bytes = vec![0; to_usize(sector)];
    device.read_at(offset, &mut bytes)?;
    let corrupt = |what| Fault::corrupt(what).at(offset, sector);
    let header = Header::parse(&bytes)
        .filter(|header| header.signature == *SIGNATURE)
        .ok_or_else(|| corrupt("GPT header is missing"))?;
    check_header(&header, &bytes, lba).map_err(corrupt)?;
    if u64::from(header.entry_bytes) != ENTRY_BYTES || header.entries > MAX_ENTRIES {
        return Err(Fault::unsupported("GPT entries").at(offset, sector));
    }
    let length = u64::from(header.entries) * ENTRY_BYTES;
    let place = header
        .array_lba
        .checked_mul(sector)
        .filter(|place| inside(*place, length))
        .ok_or_else(|| corrupt("GPT entries beyond the disk"))?;
    let mut array = vec![0; to_usize(length)];
    device.read_at(place, &mut array)?;
    if crc32(0, &array) != header.array_crc {
        return Err(Fault::corrupt("GPT entries' checksum").at(place, length));
    }
    Ok(Half {
        header,
        sector: bytes,
        array,
    })
}

fn check_header(header: &Header, bytes: &[u8], lba: u64) -> Result<(), &'static str> {
    let length = to_usize(u64::from(header.header_bytes));
    let whole = bytes
        .get(..length)
        .filter(|_| header.header_bytes >= HEADER_BYTES)
        .ok_or("GPT header size")?;
    // The checksum's own field counts as zeros.
    let (front, back) = whole.split_at(0x10);
    let crc = crc32(crc32(0, front), &[0; 4]);
    if crc32(crc, back.get(4..).unwrap_or_default()) != header.header_crc {
        return Err("GPT header checksum");
    }
    if header.my_lba != lba {
        return Err("GPT header place");
    }
    let usable = header.first_usable_lba..=header.last_usable_lba;
    // Below 2^53 sectors, products with a sector size stay in 64 bits.
    let sane = usable.start() <= usable.end()
        && header.last_usable_lba.max(header.alternate_lba) < 1 << 50
        && !usable.contains(&header.my_lba)
        && !usable.contains(&header.array_lba)
        && header.array_lba != 0;
    if sane {
        Ok(())
    } else {
        Err("GPT header bounds")
    }
}

/// Reads the table behind a protective MBR: the primary copy, or the backup where that one is bad.
pub(super) fn read(
    device: &dyn ReadAt,
    sector_bytes: u32,
) -> Result<Option<PartitionTable>, Fault> {
    let sector = u64::from(sector_bytes);
    let last_lba = (device.size_bytes() / sector).saturating_sub(1);
    match read_copy(device, sector, 1) {
        Ok(primary) => {
            let mut table = table_of(&primary, sector_bytes);
            let known = device.known_bytes();
            let place = primary.header.alternate_lba.saturating_mul(sector);
            // Of a stream only the beginning is held: nothing is known of a copy behind that.
            if known < device.size_bytes() && place >= known {
                return Ok(Some(table));
            }
            match read_copy(device, sector, primary.header.alternate_lba) {
                Ok(backup) if agree(&primary.header, &backup.header) => {}
                Ok(_) => table.doubt(Fault::corrupt("the two copies of the GPT differ")),
                Err(fault) => table.doubt(fault),
            }
            Ok(Some(table))
        }
        Err(first) => match read_copy(device, sector, last_lba) {
            Ok(backup) => {
                let mut table = table_of(&backup, sector_bytes);
                table.doubt = Some(first);
                Ok(Some(table))
            }
            Err(_) => Err(first),
        },
    }
}

fn agree(primary: &Header, backup: &Header) -> bool {
    primary.disk_guid == backup.disk_guid
        && primary.array_crc == backup.array_crc
        && primary.entries == backup.entries
        && primary.first_usable_lba == backup.first_usable_lba
        && primary.last_usable_lba == backup.last_usable_lba
        && backup.alternate_lba == primary.my_lba
}

fn table_of(copy: &Half, sector_bytes: u32) -> PartitionTable {
    let header = &copy.header;
    let sector = u64::from(sector_bytes);
    let last = header.my_lba.max(header.alternate_lba);
    let mut table = PartitionTable {
        scheme: Scheme::Gpt,
        sector_bytes,
        disk_id: text_of(Guid(header.disk_guid)),
        partitions: Vec::new(),
        end_bytes: (last + 1).saturating_mul(sector),
        doubt: None,
    };
    for (number, bytes) in (1u32..).zip(copy.array.chunks_exact(to_usize(ENTRY_BYTES))) {
        let Some(entry) = Entry::parse(bytes).filter(|entry| entry.kind != [0; 16]) else {
            continue;
        };
        let bounds = entry.first_lba..=entry.last_lba;
        if bounds.is_empty()
            || entry.first_lba < header.first_usable_lba
            || entry.last_lba > header.last_usable_lba
        {
            let fault = Fault::corrupt("GPT entry's bounds");
            table.doubt(fault.in_unit("partition", u64::from(number)));
            continue;
        }
        table.partitions.push(Partition {
            number,
            extent: Extent::at(
                entry.first_lba * sector,
                (entry.last_lba - entry.first_lba + 1) * sector,
            ),
            kind: PartitionType::Guid(Guid(entry.kind)),
            uuid: text_of(Guid(entry.unique)),
            name: name_text(&entry.name),
            attributes: entry.attributes,
        });
    }
    table.check_overlaps();
    table
}

fn text_of(guid: Guid) -> String<40> {
    let mut out = String::new();
    let _ = core::fmt::Write::write_fmt(&mut out, format_args!("{guid}"));
    out
}

/// A name in UTF-16; what is no character or a control character becomes `?`.
fn name_text(name: &[u8; 72]) -> String<108> {
    let units = name
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0);
    let mut out = String::new();
    for letter in char::decode_utf16(units) {
        let letter = letter.ok().filter(|l| !l.is_control()).unwrap_or('?');
        // 36 units never take more than 108 bytes.
        let _ = out.push(letter);
    }
    out
}

/// The two headers around an array, their sectors and checksums filled in.
struct GptHeaders {
    sector: u64,
    disk_lbas: u64,
    first_usable_lba: u64,
    disk_guid: [u8; 16],
    entries: u32,
    /// Everything that stood in the header's sector (what follows the known fields is kept).
    model: Vec<u8>,
}

impl GptHeaders {
    fn array_lbas(&self) -> u64 {
        (u64::from(self.entries) * ENTRY_BYTES).div_ceil(self.sector)
    }

    fn last_usable_lba(&self) -> u64 {
        self.disk_lbas.saturating_sub(2 + self.array_lbas())
    }

    /// The patches of both copies: backup, then primary.
    fn patches(&self, array: &[u8], primary_array_lba: u64) -> Vec<Patch> {
        let last = self.disk_lbas - 1;
        let backup_array_lba = last - self.array_lbas();
        let mut padded = array.to_vec();
        padded.resize(to_usize(self.array_lbas() * self.sector), 0);
        let crc = crc32(0, array);
        let patch = |lba: u64, bytes: Vec<u8>| Patch {
            offset: lba * self.sector,
            bytes,
        };
        vec![
            patch(backup_array_lba, padded.clone()),
            patch(last, self.header([last, 1, backup_array_lba], crc)),
            patch(primary_array_lba, padded),
            patch(1, self.header([1, last, primary_array_lba], crc)),
        ]
    }

    fn header(&self, [my_lba, alternate_lba, array_lba]: [u64; 3], array_crc: u32) -> Vec<u8> {
        let mut bytes = self.model.clone();
        let length = crate::layout::le::<u32>(&bytes, 0x0c).unwrap_or(HEADER_BYTES);
        let mut put = |at, field: &[u8]| crate::layout::put(&mut bytes, at, field);
        put(0x10, &[0; 4]);
        put(0x18, &my_lba.to_le_bytes());
        put(0x20, &alternate_lba.to_le_bytes());
        put(0x28, &self.first_usable_lba.to_le_bytes());
        put(0x30, &self.last_usable_lba().to_le_bytes());
        put(0x38, &self.disk_guid);
        put(0x48, &array_lba.to_le_bytes());
        put(0x50, &self.entries.to_le_bytes());
        put(0x58, &array_crc.to_le_bytes());
        let crc = crc32(
            0,
            bytes.get(..to_usize(u64::from(length))).unwrap_or_default(),
        );
        crate::layout::put(&mut bytes, 0x10, &crc.to_le_bytes());
        bytes
    }
}

/// A header's sector with the fields that never change.
fn blank_header(sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(sector)];
    let fields: [(usize, &[u8]); 4] = [
        (0x00, SIGNATURE),
        (0x08, &0x0001_0000u32.to_le_bytes()),
        (0x0c, &HEADER_BYTES.to_le_bytes()),
        (0x54, &128u32.to_le_bytes()),
    ];
    for (at, field) in fields {
        crate::layout::put(&mut bytes, at, field);
    }
    bytes
}

/// Both copies and the protective MBR, which comes last.
pub(super) fn build(table: &NewTable<'_>) -> Result<Vec<Patch>, Fault> {
    let sector = u64::from(table.sector_bytes);
    let frame = GptHeaders {
        sector,
        disk_lbas: table.disk_bytes / sector,
        first_usable_lba: 2 + (u64::from(NEW_ENTRIES) * ENTRY_BYTES).div_ceil(sector),
        disk_guid: table.disk_id.0,
        entries: NEW_ENTRIES,
        model: blank_header(sector),
    };
    let mut array = Vec::with_capacity(to_usize(u64::from(NEW_ENTRIES) * ENTRY_BYTES));
    for (number, partition) in (1u64..).zip(table.partitions) {
        let first = partition.extent.offset / sector;
        let last = partition.extent.end() / sector - 1;
        let PartitionType::Guid(kind) = partition.kind else {
            return Err(Fault::refused("partition type").in_unit("partition", number));
        };
        if first < frame.first_usable_lba || last > frame.last_usable_lba() {
            return Err(Fault::refused("partition over the table").in_unit("partition", number));
        }
        array.extend_from_slice(&kind.0);
        array.extend_from_slice(&partition.uuid.0);
        for word in [first, last, partition.attributes] {
            array.extend_from_slice(&word.to_le_bytes());
        }
        let mut units = partition.name.encode_utf16();
        for _ in 0..36 {
            array.extend_from_slice(&units.next().unwrap_or(0).to_le_bytes());
        }
        if units.next().is_some() {
            return Err(Fault::refused("partition name too long").in_unit("partition", number));
        }
    }
    array.resize(to_usize(u64::from(NEW_ENTRIES) * ENTRY_BYTES), 0);
    let mut patches = frame.patches(&array, 2);
    patches.push(Patch {
        offset: 0,
        bytes: mbr::protective(sector, frame.disk_lbas),
    });
    Ok(patches)
}

/// The patches that make the GPT at the start of `disk` fit a disk of `disk_bytes`: its backup goes to the new end, the usable
/// area grows, the old backup's header is erased. Nothing when it fits already; refused on a smaller disk.
///
/// `disk` must be readable up to the primary table; the boot sector of the patches, which come in the order to write them, is last.
pub fn relocate(
    disk: &dyn ReadAt,
    sector_bytes: u32,
    disk_bytes: u64,
) -> Result<Vec<Patch>, Fault> {
    let sector = super::sector_of(sector_bytes, disk_bytes)?;
    let primary = read_copy(disk, sector, 1)?;
    if primary.header.alternate_lba.saturating_add(1) == disk_bytes / sector {
        return Ok(Vec::new());
    }
    lay(disk, sector_bytes, disk_bytes)
}

/// The same also for a disk of the size that the table states: all patches of both copies.
pub fn lay(disk: &dyn ReadAt, sector_bytes: u32, disk_bytes: u64) -> Result<Vec<Patch>, Fault> {
    let sector = super::sector_of(sector_bytes, disk_bytes)?;
    let primary = read_copy(disk, sector, 1)?;
    let old_end = primary.header.alternate_lba;
    let array_lba = primary.header.array_lba;
    laid(&primary, [old_end, array_lba], disk, [sector, disk_bytes])
}

/// The patches of [`lay`] for a disk of `disk_bytes` whose first `old_bytes` come from one whose first header is damaged: from the copy
/// at their end. `boot` holds the boot sector. An error where that copy is damaged, too.
pub(crate) fn rebuild(
    disk: &dyn ReadAt,
    boot: &dyn ReadAt,
    sector_bytes: u32,
    [old_bytes, disk_bytes]: [u64; 2],
) -> Result<Vec<Patch>, Fault> {
    let sector = super::sector_of(sector_bytes, disk_bytes)?;
    let old_end = (old_bytes / sector).saturating_sub(1);
    let backup = read_copy(disk, sector, old_end)?;
    // Where the first copy has it, of which nobody knows more.
    let array_bytes = u64::from(backup.header.entries) * ENTRY_BYTES;
    if 2 + array_bytes.div_ceil(sector) > backup.header.first_usable_lba {
        return Err(Fault::unsupported("place of the partition table"));
    }
    laid(&backup, [old_end, 2], boot, [sector, disk_bytes])
}

/// The patches that lay one copy's table onto a disk of `disk_bytes`; the old one's last sector is `old_end`.
fn laid(
    copy: &Half,
    [old_end, array_lba]: [u64; 2],
    boot: &dyn ReadAt,
    [sector, disk_bytes]: [u64; 2],
) -> Result<Vec<Patch>, Fault> {
    let header = &copy.header;
    let disk_lbas = disk_bytes / sector;
    let frame = GptHeaders {
        sector,
        disk_lbas,
        first_usable_lba: header.first_usable_lba,
        disk_guid: header.disk_guid,
        entries: header.entries,
        model: copy.sector.clone(),
    };
    if old_end >= disk_lbas || frame.last_usable_lba() < header.last_usable_lba {
        return Err(Fault::refused(
            "the disk is smaller than its partition table states",
        ));
    }
    let mut patches = frame.patches(&copy.array, array_lba);
    // The old header must not be taken for one; unless the new copy already stands there.
    let new_backup = disk_lbas - 1 - frame.array_lbas();
    if old_end < new_backup && old_end > frame.first_usable_lba {
        patches.insert(
            2,
            Patch {
                offset: old_end * sector,
                bytes: vec![0; to_usize(sector)],
            },
        );
    }
    let mut first = vec![0; to_usize(sector)];
    boot.read_at(0, &mut first)?;
    mbr::grow_protective(&mut first, disk_lbas);
    patches.push(Patch {
        offset: 0,
        bytes: first,
    });
    debug_assert!(
        patches
            .iter()
            .all(|p| to_u64(p.bytes.len()).is_multiple_of(sector))
    );
    Ok(patches)
}
