//! What is recognised and then read whole: containers (LUKS, LVM, md) and filesystems without a map of ours (exFAT, JFS,
//! ReiserFS, NILFS2).
//!
//! Sources: the LUKS1 and LUKS2 on-disk format papers; lib/format_text/layout.h of LVM2; include/uapi/linux/raid/md_p.h;
//! Microsoft's exFAT specification; fs/jfs/jfs_superblock.h; fs/reiserfs/reiserfs.h; include/uapi/linux/nilfs2_ondisk.h.
//! Containers stand in front of all filesystems: the member of a mirror looks like the filesystem on it.

use core::fmt::Write;

use heapless::String;

use super::{Identity, Kind, Reader, Walk, read, read_array, text, uuid_text};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::{round_down, to_u64};

const fn whole(
    kinds: &'static [Kind],
    probe: fn(&dyn ReadAt) -> Result<Option<Identity>, Fault>,
) -> Reader {
    Reader {
        kinds,
        probe,
        walk: None,
        witness,
    }
}

pub(super) const LUKS: Reader = whole(&[Kind::Luks], luks);
pub(super) const LVM: Reader = whole(&[Kind::Lvm], lvm);
pub(super) const MD: Reader = whole(&[Kind::MdMember], md);
pub(super) const EXFAT: Reader = whole(&[Kind::Exfat], exfat);
pub(super) const JFS: Reader = whole(&[Kind::Jfs], jfs);
pub(super) const REISERFS: Reader = whole(&[Kind::Reiserfs], reiserfs);
pub(super) const NILFS2: Reader = whole(&[Kind::Nilfs2], nilfs2);

/// The superblock; there is no map that a write would have to change. Not that of an md member: md marks the array clean there
/// a moment after the last write (safe_mode_delay, 200 ms), which changes nothing of what the array holds.
fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    match identity.kind {
        Kind::MdMember => Ok(()),
        _ => walk.witness_extent(identity.superblock),
    }
}

layout! {
    be pub(super) struct LuksHeader: 208 {
        0x00 magic: [u8; 6],
        0x06 version: u16,
        0x18 label2: [u8; 48],
        0xa8 uuid: [u8; 40],
    }
}

fn luks(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let header = read::<LuksHeader>(device, 0)?
        .filter(|h| h.magic == *b"LUKS\xba\xbe" && matches!(h.version, 1 | 2));
    Ok(header.map(|header| {
        let mut identity = Identity::new(Kind::Luks, 0, 512);
        identity.uuid = text(&header.uuid);
        if header.version == 2 {
            identity.label = text(&header.label2);
        }
        identity
    }))
}

layout! {
    le struct LvmLabel: 72 {
        0x00 id: [u8; 8],
        0x08 sector: u64,
        0x14 header_offset: u32,
        0x18 kind: [u8; 8],
        0x20 uuid: [u8; 32],
        0x40 device_bytes: u64,
    }
}

fn lvm(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    // The label may stand in any of the first four sectors; it names its own.
    for sector in 0..4u64 {
        let label = read::<LvmLabel>(device, sector * 512)?
            .filter(|l| l.id == *b"LABELONE" && l.kind == *b"LVM2 001" && l.sector == sector);
        let Some(label) = label else {
            continue;
        };
        let mut identity = Identity::new(Kind::Lvm, sector * 512, 512);
        if label.header_offset == 0x20 {
            identity.uuid = lvm_uuid(&label.uuid);
            identity.size_bytes = label.device_bytes;
        }
        return Ok(Some(identity));
    }
    Ok(None)
}

/// 32 letters in LVM's own grouping.
fn lvm_uuid(letters: &[u8; 32]) -> String<40> {
    let mut out = String::new();
    for (index, letter) in letters.iter().enumerate() {
        if matches!(index, 6 | 10 | 14 | 18 | 22 | 26) {
            let _ = out.push('-');
        }
        let letter = if letter.is_ascii_graphic() {
            char::from(*letter)
        } else {
            '?'
        };
        let _ = out.push(letter);
    }
    out
}

pub(super) const MD_MAGIC: u32 = 0xa92b_4efc;

layout! {
    le pub(super) struct Md1: 256 {
        0x00 magic: u32,
        0x04 major_version: u32,
        0x10 set_uuid: [u8; 16],
        0x20 set_name: [u8; 32],
        0x80 data_offset: u64,
        0x88 data_size: u64,
        0x90 super_sector: u64,
    }
}

layout! {
    le struct Md0: 64 {
        0x00 magic: u32,
        0x04 major_version: u32,
        0x08 minor_version: u32,
        0x14 uuid0: u32,
        0x34 uuid1: u32,
        0x38 uuid2: u32,
        0x3c uuid3: u32,
    }
}

fn md(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let size = device.size_bytes();
    // 1.2 at 4 KiB, 1.1 at the start, 1.0 at least 8 KiB before the end, at a multiple of 4 KiB.
    let last = size
        .checked_sub(8192)
        .map(|place| round_down(place, 4096))
        .unwrap_or(u64::MAX);
    for place in [4096, 0, last] {
        let sb = read::<Md1>(device, place)?.filter(|sb| {
            sb.magic == MD_MAGIC && sb.major_version == 1 && sb.super_sector == place / 512
        });
        if let Some(sb) = sb {
            let mut identity = Identity::new(Kind::MdMember, place, 4096);
            identity.uuid = uuid_text(&sb.set_uuid);
            identity.label = text(&sb.set_name);
            return Ok(Some(identity));
        }
    }
    md_old(device)
}

/// Metadata 0.90: in the last whole 64 KiB but one, in the byte order of the machine that made it.
fn md_old(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some(place) = round_down(device.size_bytes(), 65_536).checked_sub(65_536) else {
        return Ok(None);
    };
    let Some(mut bytes) = read_array::<64>(device, place)? else {
        return Ok(None);
    };
    if bytes.starts_with(&MD_MAGIC.to_be_bytes()) {
        for word in bytes.chunks_exact_mut(4) {
            word.reverse();
        }
    }
    let sb = Md0::parse(&bytes).filter(|sb| {
        sb.magic == MD_MAGIC && sb.major_version == 0 && matches!(sb.minor_version, 90 | 91)
    });
    Ok(sb.map(|sb| {
        let mut identity = Identity::new(Kind::MdMember, place, 4096);
        let words = [sb.uuid0, sb.uuid1, sb.uuid2, sb.uuid3];
        for (index, word) in words.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            let _ = write!(identity.uuid, "{colon}{word:08x}");
        }
        identity
    }))
}

layout! {
    le struct ExfatBoot: 512 {
        0x003 name: [u8; 8],
        0x00b zeros: [u8; 53],
        0x048 volume_sectors: u64,
        0x064 serial: u32,
        0x06c sector_log: u8,
        0x1fe signature: u16,
    }
}

fn exfat(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let boot = read::<ExfatBoot>(device, 0)?
        .filter(|boot| boot.name == *b"EXFAT   " && boot.zeros == [0; 53])
        .filter(|boot| boot.signature == 0xaa55 && (9..=12).contains(&boot.sector_log));
    Ok(boot.map(|boot| {
        let mut identity = Identity::new(Kind::Exfat, 0, 512);
        let sector = 1u64 << boot.sector_log;
        identity.size_bytes = boot.volume_sectors.saturating_mul(sector);
        identity.max_sector_bytes = 1 << boot.sector_log;
        let (high, low) = (boot.serial >> 16, boot.serial & 0xffff);
        let _ = write!(identity.uuid, "{high:04X}-{low:04X}");
        identity
    }))
}

layout! {
    le struct JfsSuper: 184 {
        0x00 s_magic: [u8; 4],
        0x04 s_version: u32,
        0x08 s_size: u64,
        0x10 s_bsize: u32,
        0x18 s_pbsize: u32,
        0x48 s_logpxd: [u8; 8],
        0x50 s_fsckpxd: [u8; 8],
        0x58 s_time: u32,
        0x88 s_uuid: [u8; 16],
        0x98 s_label: [u8; 16],
    }
}

/// The end of a JFS extent descriptor (24 bits of length, 40 of address), in blocks.
fn pxd_end(pxd: &[u8; 8]) -> u64 {
    let [l0, l1, l2, a4, a0, a1, a2, a3] = *pxd;
    let length = u64::from(u32::from_le_bytes([l0, l1, l2, 0]));
    u64::from_le_bytes([a0, a1, a2, a3, a4, 0, 0, 0]) + length
}

fn jfs(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let sb = read::<JfsSuper>(device, 0x8000)?
        .filter(|sb| sb.s_magic == *b"JFS1" && matches!(sb.s_version, 1 | 2))
        .filter(|sb| matches!(sb.s_bsize, 512 | 1024 | 2048 | 4096));
    Ok(sb.map(|sb| {
        let mut identity = Identity::new(Kind::Jfs, 0x8000, 4096);
        // s_size leaves out fsck's workspace and the log, which lie behind it.
        let block = u64::from(sb.s_bsize);
        let behind = pxd_end(&sb.s_logpxd).max(pxd_end(&sb.s_fsckpxd));
        let aggregate = sb.s_size.saturating_mul(u64::from(sb.s_pbsize));
        identity.size_bytes = aggregate.max(behind.saturating_mul(block));
        identity.block_bytes = sb.s_bsize;
        identity.uuid = uuid_text(&sb.s_uuid);
        identity.label = text(&sb.s_label);
        identity.last_written_s = Some(u64::from(sb.s_time));
        identity
    }))
}

layout! {
    le struct ReiserSuper: 116 {
        0x00 s_block_count: u32,
        0x04 s_free_blocks: u32,
        0x2c s_blocksize: u16,
        0x34 s_magic: [u8; 10],
        0x54 s_uuid: [u8; 16],
        0x64 s_label: [u8; 16],
    }
}

fn reiserfs(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    // 3.6 and late 3.5 at 64 KiB, early 3.5 at 8 KiB.
    for place in [65_536, 8192] {
        let sb = read::<ReiserSuper>(device, place)?
            .filter(|sb| {
                [b"ReIsErFs".as_slice(), b"ReIsEr2Fs", b"ReIsEr3Fs"]
                    .iter()
                    .any(|magic| sb.s_magic.starts_with(magic))
            })
            .filter(|sb| sb.s_blocksize.is_power_of_two() && sb.s_blocksize >= 512);
        let Some(sb) = sb else {
            continue;
        };
        let mut identity = Identity::new(Kind::Reiserfs, place, 512);
        let block = u64::from(sb.s_blocksize);
        identity.size_bytes = u64::from(sb.s_block_count) * block;
        identity.block_bytes = u32::from(sb.s_blocksize);
        identity.used_bytes = sb
            .s_block_count
            .checked_sub(sb.s_free_blocks)
            .map(|blocks| u64::from(blocks) * block);
        // 3.5 had neither.
        if !sb.s_magic.starts_with(b"ReIsErFs") {
            identity.uuid = uuid_text(&sb.s_uuid);
            identity.label = text(&sb.s_label);
        }
        return Ok(Some(identity));
    }
    Ok(None)
}

layout! {
    le struct NilfsSuper: 256 {
        0x06 s_magic: u16,
        0x08 s_bytes: u16,
        0x14 s_log_block_size: u32,
        0x20 s_dev_size: u64,
        0x50 s_free_blocks_count: u64,
        0x68 s_wtime: u64,
        0x98 s_uuid: [u8; 16],
        0xa8 s_volume_name: [u8; 80],
    }
}

fn nilfs2(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let sb = read::<NilfsSuper>(device, 1024)?
        .filter(|sb| sb.s_magic == 0x3434 && sb.s_log_block_size <= 6)
        .filter(|sb| (100..=1024).contains(&sb.s_bytes));
    Ok(sb.map(|sb| {
        let mut identity = Identity::new(Kind::Nilfs2, 1024, to_u64(NilfsSuper::SIZE));
        identity.superblock.length_bytes = 1024;
        let block = 1024u32 << sb.s_log_block_size;
        identity.block_bytes = block;
        identity.max_sector_bytes = block;
        identity.size_bytes = sb.s_dev_size;
        let free = sb.s_free_blocks_count.saturating_mul(u64::from(block));
        identity.used_bytes = sb.s_dev_size.checked_sub(free);
        identity.uuid = uuid_text(&sb.s_uuid);
        identity.label = text(&sb.s_volume_name);
        identity.last_written_s = Some(sb.s_wtime);
        identity
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::probe;
    use crate::units::to_usize;

    fn put(disk: &mut [u8], place: u64, bytes: &[u8]) {
        let place = to_usize(place);
        disk[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// A disk with what looks like FAT's neighbour, so that the order of the table shows.
    fn blank() -> Vec<u8> {
        vec![0u8; 1_000_000]
    }

    #[test]
    fn luks_headers_of_both_versions_give_uuid_and_label() {
        let mut disk = blank();
        put(&mut disk, 0, b"LUKS\xba\xbe\0\x01");
        put(&mut disk, 168, b"0b7e3c1a-uuid-of-luks");
        let identity = probe(&disk).unwrap().unwrap();
        assert_eq!(identity.kind, Kind::Luks);
        assert_eq!(identity.uuid.as_str(), "0b7e3c1a-uuid-of-luks");
        put(&mut disk, 6, &[0, 2]);
        put(&mut disk, 24, b"secrets");
        let identity = probe(&disk).unwrap().unwrap();
        assert_eq!(identity.label.as_str(), "secrets");
        put(&mut disk, 6, &[0, 3]);
        assert!(probe(&disk).unwrap().is_none());
    }

    #[test]
    fn an_lvm_label_is_found_in_its_own_sector_only() {
        let mut disk = blank();
        put(&mut disk, 512, b"LABELONE\x01\0\0\0\0\0\0\0");
        put(&mut disk, 512 + 0x14, &[0x20, 0, 0, 0]);
        put(&mut disk, 512 + 0x18, b"LVM2 001");
        put(&mut disk, 512 + 0x20, b"abcdefGHIJklmnOPQRstuvWXYZ012345");
        let identity = probe(&disk).unwrap().unwrap();
        assert_eq!(identity.kind, Kind::Lvm);
        assert_eq!(
            identity.uuid.as_str(),
            "abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345"
        );
        put(&mut disk, 512 + 8, &[2]);
        assert!(probe(&disk).unwrap().is_none());
    }

    #[test]
    fn members_of_arrays_are_found_at_each_place_of_the_metadata() {
        let end = round_down(1_000_000 - 8192, 4096);
        for place in [0, 4096, end] {
            let mut disk = blank();
            put(&mut disk, place, &MD_MAGIC.to_le_bytes());
            put(&mut disk, place + 4, &[1]);
            put(&mut disk, place + 0x20, b"board:0");
            put(&mut disk, place + 0x90, &(place / 512).to_le_bytes());
            let identity = probe(&disk).unwrap().unwrap();
            assert_eq!(identity.kind, Kind::MdMember);
            assert_eq!(identity.label.as_str(), "board:0");
            put(&mut disk, place + 0x90, &[9]);
            assert!(probe(&disk).unwrap().is_none(), "{place}");
        }
        for big_endian in [false, true] {
            let mut disk = blank();
            let place = round_down(1_000_000, 65_536) - 65_536;
            for (at, word) in [(0, MD_MAGIC), (8, 90), (0x14, 0xaabb_ccdd), (0x3c, 1)] {
                let word = if big_endian {
                    word.to_be_bytes()
                } else {
                    word.to_le_bytes()
                };
                put(&mut disk, place + at, &word);
            }
            let identity = probe(&disk).unwrap().unwrap();
            assert_eq!(identity.kind, Kind::MdMember);
            assert_eq!(
                identity.uuid.as_str(),
                "aabbccdd:00000000:00000000:00000001"
            );
        }
    }
}
