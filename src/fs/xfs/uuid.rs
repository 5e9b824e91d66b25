//! A new uuid through the meta_uuid feature: the superblock of every allocation group says the new one, and keeps the old one for
//! the metadata, which goes on bearing it. The log's records name the filesystem, too: their headers and checksums are made anew.

use super::log::{
    BASIC_BYTES, HEADER_COVERS_BYTES, Log, RECORD_BYTES_MAX, RECORD_MAGIC, RecordHeader, VERSION_2,
};
use super::superblock::{
    DiskSuperblock as Disk, INCOMPAT_META_UUID, SECTOR_BYTES_MAX, Superblock, checksum_holds, read,
};
use crate::crc::crc32c_raw;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::identity::Write;
use crate::layout::{be, put};
use crate::units::{Extent, to_usize};

/// The header that the checksum covers: 328 bytes, 324 where 64-bit numbers are aligned to four bytes.
const RECORD_HEADERS: [usize; 2] = [328, 324];
/// `struct xlog_rec_ext_header`.
const EXTENDED_BYTES: usize = 260;
/// Read at a time.
const PIECE_BLOCKS: u64 = 64;

/// Whether the format allows it.
pub(crate) fn can_change_uuid(device: &dyn ReadAt) -> Result<Superblock, Fault> {
    let found = read(device)?.ok_or_else(|| Fault::corrupt("superblock"))?;
    if !found.geometry.checksums {
        return Err(Fault::refused(
            "its metadata is known by the uuid (version 4); xfs_admin -U on the unmounted copy changes it",
        ));
    }
    match found.doubt {
        Some(doubt) => Err(doubt),
        None => Ok(found),
    }
}

/// See [`crate::fs::identity::change`]. The log must be clean: in a dirty one a superblock with the old uuid waits for recovery.
pub(crate) fn change_uuid(
    device: &dyn ReadAt,
    uuid: &[u8; 16],
    write: &mut Write<'_>,
) -> Result<(), Fault> {
    let found = can_change_uuid(device)?;
    let geometry = found.geometry;
    // A log and a superblock of two names cannot be mounted: all of it must be fit to be changed before any of it is.
    superblocks(device, &found, uuid, &mut |_, _| Ok(()))?;
    let mut buffer = vec![0; crate::fs::SCRATCH_BYTES];
    Log::new(device, &geometry).prove_clean(&mut buffer)?;
    let log = LogRewrite {
        device,
        place: geometry.log,
        old: found.disk.sb_uuid,
        new: *uuid,
    };
    log.change(&mut |_, _| Ok(()))?;
    log.change(write)?;
    superblocks(device, &found, uuid, write)
}

/// Those of all allocation groups, the first one last.
fn superblocks(
    device: &dyn ReadAt,
    found: &Superblock,
    uuid: &[u8; 16],
    write: &mut Write<'_>,
) -> Result<(), Fault> {
    let geometry = &found.geometry;
    let length = to_usize(u64::from(geometry.sector_bytes));
    let group_bytes = u64::from(geometry.ag_blocks) * geometry.block.bytes64();
    let mut sector = [0u8; SECTOR_BYTES_MAX];
    for group in (0..geometry.ag_count).rev() {
        let offset = u64::from(group) * group_bytes;
        let bytes = sector
            .get_mut(..length)
            .ok_or_else(|| Fault::corrupt("sector size"))?;
        device.read_at(offset, bytes)?;
        let same = bytes.get(Disk::sb_uuid..Disk::sb_uuid + 16) == Some(&found.disk.sb_uuid);
        if !same || !checksum_holds(bytes, Disk::sb_crc) {
            return Err(Fault::corrupt("superblock of an allocation group").at(offset, 512));
        }
        let features = be::<u32>(bytes, Disk::sb_features_incompat).unwrap_or(0);
        if features & INCOMPAT_META_UUID == 0 {
            put(bytes, Disk::sb_meta_uuid, &found.disk.sb_uuid);
            put(
                bytes,
                Disk::sb_features_incompat,
                &(features | INCOMPAT_META_UUID).to_be_bytes(),
            );
        }
        put(bytes, Disk::sb_uuid, uuid);
        put(bytes, Disk::sb_crc, &[0; 4]);
        let crc = !crc32c_raw(u32::MAX, bytes);
        put(bytes, Disk::sb_crc, &crc.to_le_bytes());
        write(offset, bytes)?;
    }
    Ok(())
}

/// The log, whose records are changed one by one.
struct LogRewrite<'a> {
    device: &'a dyn ReadAt,
    place: Extent,
    old: [u8; 16],
    new: [u8; 16],
}

impl LogRewrite<'_> {
    fn blocks(&self) -> u64 {
        self.place.length_bytes / BASIC_BYTES
    }

    /// Goes through every basic block: records of earlier rounds stand in it as well, and recovery may look at any of them.
    fn change(&self, write: &mut Write<'_>) -> Result<(), Fault> {
        let mut piece = [0u8; 64 * 512];
        let mut block = 0;
        while block < self.blocks() {
            let count = (self.blocks() - block).min(PIECE_BLOCKS);
            let bytes = piece
                .get_mut(..to_usize(count * BASIC_BYTES))
                .ok_or_else(|| Fault::refused("scratch memory"))?;
            self.device.read_at(self.offset(block), bytes)?;
            for (number, header) in (block..).zip(bytes.chunks_exact(to_usize(BASIC_BYTES))) {
                let ours = be::<u32>(header, 0) == Some(RECORD_MAGIC)
                    && header.get(RecordHeader::h_fs_uuid..RecordHeader::h_fs_uuid + 16)
                        == Some(&self.old);
                if let Some(header) = header.first_chunk::<512>().filter(|_| ours) {
                    self.change_record(number, *header, write)?;
                }
            }
            block += count;
        }
        Ok(())
    }

    /// Offset of a basic block, counted on beyond the end: the log is a ring.
    fn offset(&self, block: u64) -> u64 {
        let blocks = self.blocks().max(1);
        self.place.offset + block % blocks * BASIC_BYTES
    }

    fn change_record(
        &self,
        block: u64,
        mut header: [u8; 512],
        write: &mut Write<'_>,
    ) -> Result<(), Fault> {
        let stored = crate::layout::le::<u32>(&header, RecordHeader::h_crc).unwrap_or(0);
        put(&mut header, RecordHeader::h_crc, &[0; 4]);
        let mut covered = None;
        if stored != 0 {
            for length in RECORD_HEADERS {
                let crc = self.checksum(block, &header, length)?;
                if crc == Some(stored) {
                    covered = Some(length);
                }
            }
            if covered.is_none() {
                // Half overwritten by a later round: recovery does not believe it either.
                return Ok(());
            }
        }
        put(&mut header, RecordHeader::h_fs_uuid, &self.new);
        if let Some(length) = covered {
            let crc = self.checksum(block, &header, length)?.unwrap_or(0);
            put(&mut header, RecordHeader::h_crc, &crc.to_le_bytes());
        }
        write(self.offset(block), &header)
    }

    /// Over the header, what extends it, and the data; `None` for a record that cannot be.
    fn checksum(
        &self,
        block: u64,
        header: &[u8; 512],
        covered: usize,
    ) -> Result<Option<u32>, Fault> {
        let word = |at| be::<u32>(header, at).unwrap_or(0);
        let (length, size) = (word(RecordHeader::h_len), word(RecordHeader::h_size));
        if length > RECORD_BYTES_MAX || size > RECORD_BYTES_MAX {
            return Ok(None);
        }
        let is_long = word(RecordHeader::h_version) & VERSION_2 != 0;
        let header_blocks = match is_long && size > HEADER_COVERS_BYTES {
            true => u64::from(size.div_ceil(HEADER_COVERS_BYTES)),
            false => 1,
        };
        let extended = match is_long {
            true => u64::from(length.div_ceil(HEADER_COVERS_BYTES)),
            false => 1,
        };
        let mut crc = crc32c_raw(u32::MAX, header.get(..covered).unwrap_or_default());
        let mut bytes = [0u8; 512];
        for number in 1..extended.min(header_blocks) {
            self.device
                .read_at(self.offset(block + number), &mut bytes)?;
            crc = crc32c_raw(crc, bytes.get(..EXTENDED_BYTES).unwrap_or_default());
        }
        let mut left = to_usize(u64::from(length));
        let mut at = block + header_blocks;
        while left > 0 {
            self.device.read_at(self.offset(at), &mut bytes)?;
            let count = left.min(bytes.len());
            crc = crc32c_raw(crc, bytes.get(..count).unwrap_or_default());
            left -= count;
            at += 1;
        }
        Ok(Some(!crc))
    }
}
