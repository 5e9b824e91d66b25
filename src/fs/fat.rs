//! FAT12, FAT16 and FAT32: which clusters the allocation tables call used.
//!
//! Sources: Microsoft's "FAT: General Overview of On-Disk Format" 1.03, and fs/fat/inode.c for what Linux accepts. The
//! reserved area, every copy of the table and the fixed root directory are always used. A cluster is free when every copy
//! says free or bad (a bad one must not be read). Never believed: a volume that was not cleanly unmounted, whose tables
//! may lag behind its directories, and the free count of FSInfo, which Linux updates late.

use heapless::String;

use super::{
    Identity, Kind, Reader, Still, UsedMap, Verdict, Walk, WalkTask, read, read_array, text,
};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::features;
use crate::layout;
use crate::layout::le;
use crate::units::{Extent, to_u64, to_usize};

/// This reader's row.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Fat12, Kind::Fat16, Kind::Fat32],
    probe,
    walk: if features::FAT { Some(walk) } else { None },
    witness,
};

/// More clusters than this is FAT16, as Linux counts (MAX_FAT12 in include/uapi/linux/msdos_fs.h).
const MAX_FAT12: u32 = 0xff4;
/// More clusters than this is not FAT16.
const MAX_FAT16: u32 = 0xfff4;
/// More clusters than this is nothing.
const MAX_FAT32: u32 = 0x0fff_fff6;
/// Most copies of the table: as many as mkfs.fat makes, and as fit the scratch memory piece by piece.
const MAX_COPIES: usize = 4;
/// Bytes of each copy looked at in one go: whole entries of 12, 16 and 32 bits, four copies in the scratch memory.
const PIECE_BYTES: usize = 3 * 64 * 1024;
/// Root directory clusters searched for a volume label.
const MAX_LABEL_CLUSTERS: u32 = 64;

layout! {
    /// The boot sector, as far as FAT12/16 and FAT32 share it.
    le struct BootSector: 512 {
        0x000 jump: [u8; 3],
        0x003 oem_name: [u8; 8],
        0x00b sector_bytes: u16,
        0x00d cluster_sectors: u8,
        0x00e reserved_sectors: u16,
        0x010 copies: u8,
        0x011 root_entries: u16,
        0x013 sectors16: u16,
        0x015 media: u8,
        0x016 table_sectors16: u16,
        0x020 sectors32: u32,
        0x024 table_sectors32: u32,
        0x02c root_cluster: u32,
        0x030 info_sector: u16,
        /// With the copy of this one (BPB_BkBootSec).
        0x032 backup_sector: u16,
        0x1fe signature: u16,
    }
}

impl BootSector {
    /// Whether each field by itself has a value that Linux would mount as FAT.
    fn is_fat(&self) -> bool {
        let jumps = matches!(self.jump, [0xeb, _, 0x90] | [0xe9, _, _]);
        let media = self.media == 0xf0 || self.media >= 0xf8;
        let bitlocker = self.oem_name == *b"-FVE-FS-";
        jumps
            && media
            && !bitlocker
            && self.signature == 0xaa55
            && matches!(self.sector_bytes, 512 | 1024 | 2048 | 4096)
            && self.cluster_sectors.is_power_of_two()
            && self.reserved_sectors != 0
            && (1..=MAX_COPIES).contains(&usize::from(self.copies))
    }
}

layout! {
    /// The extended part.
    le struct Extended: 26 {
        /// Bit 0: mounted by Linux or not cleanly unmounted (FAT_STATE_DIRTY).
        0x01 state: u8,
        /// 0x29: serial and label follow; 0x28: only the serial.
        0x02 signature: u8,
        0x03 serial: u32,
        0x07 label: [u8; 11],
    }
}

fn extended_place(is32: bool) -> usize {
    if is32 { 0x40 } else { 0x24 }
}

layout! {
    le struct Info: 512 {
        0x000 lead: u32,
        0x1e4 signature: u32,
        0x1e8 free_clusters: u32,
    }
}

/// Width of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

impl Width {
    /// What a filesystem of so many clusters has; `None` where Linux would say something else than its boot sector.
    fn of(clusters: u32, is32: bool) -> Option<Self> {
        match clusters {
            0 => None,
            _ if is32 && clusters <= MAX_FAT32 => Some(Self::Bits32),
            0..=MAX_FAT12 if !is32 => Some(Self::Bits12),
            0..=MAX_FAT16 if !is32 => Some(Self::Bits16),
            _ => None,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Bits12 => Kind::Fat12,
            Self::Bits16 => Kind::Fat16,
            Self::Bits32 => Kind::Fat32,
        }
    }

    /// Bytes that hold `entries` of the table.
    fn bytes_of(self, entries: u64) -> u64 {
        match self {
            Self::Bits12 => (entries * 3).div_ceil(2),
            Self::Bits16 => entries * 2,
            Self::Bits32 => entries * 4,
        }
    }

    /// Entries that lie wholly in `bytes`.
    fn entries_in(self, bytes: u64) -> u64 {
        match self {
            Self::Bits12 => bytes * 2 / 3,
            Self::Bits16 => bytes / 2,
            Self::Bits32 => bytes / 4,
        }
    }

    /// The entry at `index` of a piece of the table that starts with a whole entry.
    fn entry(self, piece: &[u8], index: usize) -> Option<u32> {
        match self {
            Self::Bits12 => {
                let pair: u16 = le(piece, index + index / 2)?;
                let entry = if index.is_multiple_of(2) {
                    pair & 0xfff
                } else {
                    pair >> 4
                };
                Some(u32::from(entry))
            }
            Self::Bits16 => le::<u16>(piece, index * 2).map(u32::from),
            // The four highest bits are reserved and must be ignored.
            Self::Bits32 => le::<u32>(piece, index * 4).map(|entry| entry & 0x0fff_ffff),
        }
    }

    fn bad(self) -> u32 {
        match self {
            Self::Bits12 => 0xff7,
            Self::Bits16 => 0xfff7,
            Self::Bits32 => 0x0fff_fff7,
        }
    }

    /// The bit of entry 1 that is set when the volume was cleanly unmounted; FAT12 has none.
    fn clean_bit(self) -> u32 {
        match self {
            Self::Bits12 => 0,
            Self::Bits16 => 1 << 15,
            Self::Bits32 => 1 << 27,
        }
    }
}

/// A boot sector that passed every check: all offsets lie below `size_bytes`, which does not overflow.
#[derive(Clone, Copy, Debug)]
struct Volume {
    width: Width,
    sector_bytes: u32,
    cluster_bytes: u32,
    copies: usize,
    table: Extent,
    /// Fixed root directory of FAT12/16; empty on FAT32.
    root: Extent,
    root_cluster: u32,
    info_sector: u16,
    data_offset: u64,
    /// Clusters 2 .. clusters + 2 exist.
    clusters: u32,
    size_bytes: u64,
    dirty: bool,
    serial: Option<u32>,
    label: [u8; 11],
}

impl Volume {
    /// `None` for anything that Linux would not mount as FAT.
    fn parse(bytes: &[u8; 512]) -> Option<Self> {
        let boot = BootSector::parse(bytes).filter(BootSector::is_fat)?;
        let sector_bytes = u32::from(boot.sector_bytes);
        let sector = u64::from(sector_bytes);
        let is32 = boot.table_sectors16 == 0;
        let table_sectors = if is32 {
            boot.table_sectors32
        } else {
            u32::from(boot.table_sectors16)
        };
        let sectors = match boot.sectors16 {
            0 => boot.sectors32,
            count => u32::from(count),
        };
        // FAT32 keeps its root directory in clusters; the others must have one here, in whole sectors.
        let root_bytes = u64::from(boot.root_entries) * 32;
        if table_sectors == 0 || is32 != (root_bytes == 0) || !root_bytes.is_multiple_of(sector) {
            return None;
        }
        let table = Extent::new(
            u64::from(boot.reserved_sectors) * sector,
            u64::from(table_sectors) * sector,
        )?;
        let root_offset = table.offset + table.length_bytes * u64::from(boot.copies);
        let data_offset = root_offset + root_bytes;
        let size_bytes = u64::from(sectors) * sector;
        let cluster_bytes = sector_bytes * u32::from(boot.cluster_sectors);
        let clusters = size_bytes.checked_sub(data_offset)? / u64::from(cluster_bytes);
        let clusters = u32::try_from(clusters).ok()?;
        let width = Width::of(clusters, is32)?;
        // Linux, too, uses no more clusters than the table has entries for.
        let described = width.entries_in(table.length_bytes).checked_sub(2)?;
        let clusters = clusters.min(u32::try_from(described).unwrap_or(u32::MAX));
        if clusters == 0 || (is32 && !(2..clusters + 2).contains(&boot.root_cluster)) {
            return None;
        }
        let extended = Extended::parse(bytes.get(extended_place(is32)..)?)?;
        Some(Self {
            width,
            sector_bytes,
            cluster_bytes,
            copies: usize::from(boot.copies),
            table,
            root: Extent::new(root_offset, root_bytes)?,
            root_cluster: if is32 { boot.root_cluster } else { 0 },
            info_sector: if is32 { boot.info_sector } else { 0 },
            data_offset,
            clusters,
            size_bytes,
            dirty: extended.state & 1 != 0,
            serial: matches!(extended.signature, 0x28 | 0x29).then_some(extended.serial),
            label: if extended.signature == 0x29 {
                extended.label
            } else {
                [b' '; 11]
            },
        })
    }

    /// `None` for clusters that do not exist.
    fn clusters_at(&self, first: u32, count: u32) -> Option<Extent> {
        let index = u64::from(first.checked_sub(2)?);
        let unit = u64::from(self.cluster_bytes);
        Extent::new(
            self.data_offset + index * unit,
            u64::from(count).checked_mul(unit)?,
        )
    }

    /// The table entry of one cluster, from the first copy; `None` when the cluster does not exist.
    fn entry(&self, device: &dyn ReadAt, cluster: u32) -> Result<Option<u32>, Fault> {
        if cluster >= self.clusters + 2 {
            return Ok(None);
        }
        let at = match self.width {
            Width::Bits12 => u64::from(cluster) / 2 * 3,
            width => width.bytes_of(u64::from(cluster)),
        };
        let index = match self.width {
            Width::Bits12 => to_usize(u64::from(cluster) % 2),
            _ => 0,
        };
        let mut bytes = [0u8; 4];
        // The last entry of a table of 12 bits may have no fourth byte behind it, but a sector always does.
        device.read_at(self.table.offset + at, &mut bytes)?;
        Ok(self.width.entry(&bytes, index))
    }

    /// The largest power of two that data area and clusters are aligned to: the unit of the map.
    fn unit_bytes(&self) -> u32 {
        let common = self.data_offset | u64::from(self.cluster_bytes);
        1 << common.trailing_zeros().min(30)
    }
}

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some(bytes) = read_array::<512>(device, 0)? else {
        return Ok(None);
    };
    let Some(volume) = Volume::parse(&bytes) else {
        return Ok(None);
    };
    // The first entry repeats the media byte: a boot sector of something else has no table there.
    match read_array::<4>(device, volume.table.offset)? {
        Some([media, 0xff, ..]) if media == 0xf0 || media >= 0xf8 => {}
        _ => return Ok(None),
    }
    let mut uuid = String::new();
    if let Some(serial) = volume.serial {
        let (high, low) = (serial >> 16, serial & 0xffff);
        let _ = core::fmt::Write::write_fmt(&mut uuid, format_args!("{high:04X}-{low:04X}"));
    }
    let label = match root_label(device, &volume)? {
        Some(label) => label,
        None => label_text(&volume.label),
    };
    Ok(Some(Identity {
        size_bytes: volume.size_bytes,
        block_bytes: volume.unit_bytes(),
        max_sector_bytes: volume.sector_bytes,
        used_bytes: used_by_info(device, &volume)?,
        uuid,
        label,
        ..Identity::new(volume.width.kind(), 0, volume.sector_bytes.into())
    }))
}

/// See [`crate::fs::identity::change`].
pub(super) fn change_serial(
    device: &dyn ReadAt,
    uuid: &[u8; 16],
    write: &mut super::identity::Write<'_>,
) -> Result<(), Fault> {
    let bad = || Fault::corrupt("boot sector");
    let bytes = read_array::<512>(device, 0)?.ok_or_else(bad)?;
    let volume = Volume::parse(&bytes).ok_or_else(bad)?;
    if volume.serial.is_none() {
        return Err(Fault::refused("it has no serial number"));
    }
    let serial = uuid.first_chunk::<4>().ok_or_else(bad)?;
    let is32 = volume.width == Width::Bits32;
    let place = extended_place(is32) + Extended::serial;
    let backup = match BootSector::parse(&bytes) {
        Some(boot) if is32 => boot.backup_sector,
        _ => 0,
    };
    let backup_offset = u64::from(backup) * u64::from(volume.sector_bytes);
    let inside = !matches!(backup, 0 | 0xffff) && backup_offset < volume.table.offset;
    if inside && let Some(copy) = read_array::<512>(device, backup_offset)? {
        // Only a copy of this boot sector.
        if copy.get(place..place + 4) == bytes.get(place..place + 4) {
            write(backup_offset.saturating_add(to_u64(place)), serial)?;
        }
    }
    write(to_u64(place), serial)
}

/// Used bytes as FSInfo counts them: a hint for people, never for the map.
fn used_by_info(device: &dyn ReadAt, volume: &Volume) -> Result<Option<u64>, Fault> {
    if matches!(volume.info_sector, 0 | 0xffff) {
        return Ok(None);
    }
    let offset = u64::from(volume.info_sector) * u64::from(volume.sector_bytes);
    let info = read::<Info>(device, offset)?;
    Ok(info
        .filter(|info| info.lead == 0x4161_5252 && info.signature == 0x6141_7272)
        .filter(|info| info.free_clusters <= volume.clusters)
        .map(|info| {
            let free = u64::from(info.free_clusters) * u64::from(volume.cluster_bytes);
            volume.size_bytes.saturating_sub(free)
        }))
}

fn label_text(label: &[u8; 11]) -> String<256> {
    let end = label
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(0, |last| last + 1);
    match label.get(..end).unwrap_or_default() {
        b"NO NAME" => String::new(),
        bytes => text(bytes),
    }
}

/// The volume label entry of the root directory, which is what `fatlabel` and Windows change.
fn root_label(device: &dyn ReadAt, volume: &Volume) -> Result<Option<String<256>>, Fault> {
    if volume.width != Width::Bits32 {
        return Ok(label_in(device, volume.root)?.unwrap_or_default());
    }
    let mut cluster = volume.root_cluster;
    for _ in 0..MAX_LABEL_CLUSTERS {
        let Some(extent) = volume.clusters_at(cluster, 1) else {
            break;
        };
        if let Some(found) = label_in(device, extent)? {
            return Ok(found);
        }
        match volume.entry(device, cluster)? {
            Some(next) if (2..volume.clusters + 2).contains(&next) => cluster = next,
            _ => break,
        }
    }
    Ok(None)
}

/// Searches a piece of a directory: `None` to look on, `Some(None)` at its end.
#[allow(clippy::option_option)]
fn label_in(device: &dyn ReadAt, extent: Extent) -> Result<Option<Option<String<256>>>, Fault> {
    let mut offset = extent.offset;
    while offset < extent.end() {
        let Some(sector) = read_array::<512>(device, offset)? else {
            return Ok(Some(None));
        };
        for entry in sector.chunks_exact(32) {
            let attributes = entry.get(11).copied().unwrap_or(0);
            match entry.first() {
                Some(0) => return Ok(Some(None)),
                Some(0xe5) => {}
                // Attribute volume label alone; together with read-only, hidden and system it is a part of a long name.
                _ if attributes & 0x3f == 0x08 => {
                    let label = entry.first_chunk::<11>().map(label_text);
                    return Ok(Some(label));
                }
                _ => {}
            }
        }
        offset += 512;
    }
    Ok(None)
}

/// What entry 1 of the table says about the last unmount by Windows or a checker; Linux leaves it alone.
fn lacks_clean_bit(volume: &Volume, device: &dyn ReadAt) -> Result<bool, Fault> {
    let clean = volume.width.clean_bit();
    let entry = volume.entry(device, 1)?.unwrap_or(0);
    Ok(entry & clean != clean)
}

/// What a slow card reads in half a minute.
const LARGE_BYTES: u64 = 512 << 20;

fn walk(task: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let mut bytes = [0u8; 512];
    walk.read(0, &mut bytes)?;
    let volume = Volume::parse(&bytes).ok_or_else(|| Fault::corrupt("boot sector changed"))?;
    // Linux sets its mark when it mounts and clears it on unmount and on a remount to read-only, unless it was set before.
    // So a mark that is still there means that directories and table were never made to agree. Of what is mounted for writing it
    // means nothing yet: a large volume is worth the guess that it was clean, a small one is read whole before anything stops.
    let guess = task.still == Still::Glimpse && volume.size_bytes > LARGE_BYTES;
    let dirty = volume.dirty && !guess || lacks_clean_bit(&volume, walk.device())?;
    if dirty {
        return Err(Fault::corrupt(
            "not cleanly unmounted (fsck.fat -a clears it)",
        ));
    }
    let mut verdict = Verdict::USED;
    let mut run = FreeRun::default();
    let entries = u64::from(volume.clusters) + 2;
    let table_bytes = volume.width.bytes_of(entries);
    let mut offset = 0u64;
    let mut cluster = 0u32;
    while offset < table_bytes {
        let length = to_usize((table_bytes - offset).min(to_u64(PIECE_BYTES)));
        if read_copies(walk, &volume, offset, length)? {
            verdict.doubt(Fault::corrupt("copies of the table differ").at(offset, to_u64(length)));
        }
        let count = volume.width.entries_in(to_u64(length)).min(entries);
        for index in 0..to_usize(count) {
            if cluster >= 2 {
                let free = is_free(walk.scratch, &volume, length, index);
                run.next(&volume, map, cluster, free);
            }
            cluster = cluster.saturating_add(1);
        }
        offset += to_u64(PIECE_BYTES);
    }
    run.finish(&volume, map);
    mark_edges(&volume, map);
    Ok(verdict)
}

/// Reads one piece of every copy into the scratch memory, one after the other; true when they differ.
fn read_copies(
    walk: &mut Walk<'_>,
    volume: &Volume,
    offset: u64,
    length: usize,
) -> Result<bool, Fault> {
    let device = walk.device();
    let mut at = volume.table.offset + offset;
    let mut differ = false;
    for copy in 0..volume.copies {
        let Some(buffer) = walk.scratch.get_mut(copy * length..(copy + 1) * length) else {
            return Err(Fault::refused("scratch memory"));
        };
        device.read_at(at, buffer)?;
        at += volume.table.length_bytes;
        differ |=
            walk.scratch.get(..length) != walk.scratch.get(copy * length..(copy + 1) * length);
    }
    Ok(differ)
}

/// Whether every copy calls an entry free or bad.
fn is_free(scratch: &[u8], volume: &Volume, length: usize, index: usize) -> bool {
    scratch
        .chunks_exact(length)
        .take(volume.copies)
        .all(|piece| match volume.width.entry(piece, index) {
            Some(entry) => entry == 0 || entry == volume.width.bad(),
            None => false,
        })
}

/// Collects neighbouring free clusters, so that the map is touched once a run.
#[derive(Default)]
struct FreeRun {
    first: u32,
    count: u32,
}

impl FreeRun {
    fn next(&mut self, volume: &Volume, map: &mut UsedMap, cluster: u32, free: bool) {
        if free {
            if self.count == 0 {
                self.first = cluster;
            }
            self.count += 1;
        } else if self.count != 0 {
            self.finish(volume, map);
            self.count = 0;
        }
    }

    fn finish(&self, volume: &Volume, map: &mut UsedMap) {
        if self.count != 0
            && let Some(extent) = volume.clusters_at(self.first, self.count)
        {
            map.set_free(extent);
        }
    }
}

/// What no entry describes: the root directory's first cluster stays, whatever its entry says; sectors behind the last
/// cluster belong to nothing.
fn mark_edges(volume: &Volume, map: &mut UsedMap) {
    if let Some(root) = volume.clusters_at(volume.root_cluster, 1) {
        map.set_used(root);
    }
    if let Some(data) = volume.clusters_at(2, volume.clusters) {
        map.set_free(Extent::between(data.end(), map.size_bytes()));
    }
}

/// Everything in front of the data area (boot sector with the state Linux sets, FSInfo, tables, fixed root) and the first
/// cluster of a FAT32 root directory.
fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    let mut bytes = [0u8; 512];
    walk.read_witnessed(0, &mut bytes)?;
    let Some(volume) = Volume::parse(&bytes) else {
        return walk.witness_extent(identity.superblock);
    };
    walk.witness_extent(Extent::at(0, volume.data_offset))?;
    match volume.clusters_at(volume.root_cluster, 1) {
        Some(root) => walk.witness_extent(root),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "fat_tests.rs"]
mod tests;
