//! Unit tests of the FAT reader on volumes built by hand; real ones are in tests/it.

use super::*;
use crate::fs::testing::walked;

/// A FAT16 volume: 1 reserved sector, 2 tables of 32 sectors, 512 root entries, clusters of one sector.
fn fat16(clusters: u16) -> Vec<u8> {
    let sectors = 1 + 64 + 32 + clusters;
    let mut disk = vec![0u8; usize::from(sectors) * 512];
    disk[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    disk[0x0b..0x0d].copy_from_slice(&512u16.to_le_bytes());
    disk[0x0d] = 1;
    disk[0x0e] = 1;
    disk[0x10] = 2;
    disk[0x11..0x13].copy_from_slice(&512u16.to_le_bytes());
    disk[0x13..0x15].copy_from_slice(&sectors.to_le_bytes());
    disk[0x15] = 0xf8;
    disk[0x16] = 32;
    disk[0x26] = 0x29;
    disk[0x27..0x2b].copy_from_slice(&0x1234_abcdu32.to_le_bytes());
    disk[0x2b..0x36].copy_from_slice(b"NO NAME    ");
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for copy in [512, 512 * 33] {
        disk[copy..copy + 4].copy_from_slice(&[0xf8, 0xff, 0xff, 0xff]);
    }
    disk
}

fn set(disk: &mut [u8], copy: usize, cluster: usize, entry: u16) {
    let at = 512 * (1 + 32 * copy) + cluster * 2;
    disk[at..at + 2].copy_from_slice(&entry.to_le_bytes());
}

fn map_of(disk: &[u8]) -> (Verdict, UsedMap) {
    walked(&disk.to_vec(), Still::Unmounted).unwrap()
}

/// A volume of a gigabyte, of which only the beginning is kept; the rest is zeros.
struct Large(Vec<u8>);

impl Large {
    fn new() -> Self {
        let mut disk = fat16(5000);
        disk[0x0d] = 128;
        disk[0x13..0x15].fill(0);
        disk[0x20..0x24].copy_from_slice(&(2u32 << 20).to_le_bytes());
        Self(disk)
    }
}

impl ReadAt for Large {
    fn size_bytes(&self) -> u64 {
        1 << 30
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.fill(0);
        let kept = self.0.get(to_usize(offset)..).unwrap_or_default();
        for (place, byte) in buffer.iter_mut().zip(kept) {
            *place = *byte;
        }
        Ok(())
    }
}

const DATA: u64 = 97 * 512;

#[test]
fn twelve_bit_entries_are_unpacked_from_both_halves_of_a_byte() {
    let piece = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc];
    let entries: Vec<_> = (0..4).map(|i| Width::Bits12.entry(&piece, i)).collect();
    assert_eq!(
        entries,
        [Some(0x412), Some(0x563), Some(0xa78), Some(0xbc9)]
    );
    assert_eq!(Width::Bits12.entry(&piece, 4), None);
    assert_eq!(Width::Bits12.bytes_of(3), 5);
    assert_eq!(Width::Bits12.entries_in(to_u64(PIECE_BYTES)) % 2, 0);
}

#[test]
fn free_and_bad_clusters_are_not_read_and_reserved_areas_always_are() {
    let mut disk = fat16(5000);
    for copy in [0, 1] {
        set(&mut disk, copy, 2, 0xffff);
        set(&mut disk, copy, 4, 0xfff7);
        set(&mut disk, copy, 5001, 0xfff8);
    }
    let (verdict, map) = map_of(&disk);
    assert_eq!(verdict.coverage, crate::fs::Coverage::Used);
    assert_eq!(map.used_bytes(), DATA + 2 * 512);
    assert!(map.is_used(DATA) && !map.is_used(DATA + 1024));
    assert!(map.is_used(DATA + 4999 * 512));
}

#[test]
fn a_cluster_used_in_one_copy_of_the_table_only_is_read_and_the_doubt_is_told() {
    let mut disk = fat16(5000);
    set(&mut disk, 1, 7, 0xffff);
    let (verdict, map) = map_of(&disk);
    assert_eq!(verdict.coverage, crate::fs::Coverage::Partial);
    assert!(verdict.doubt.is_some());
    assert!(map.is_used(DATA + 5 * 512));
    assert_eq!(map.used_bytes(), DATA + 512);
}

#[test]
fn a_volume_that_was_not_cleanly_unmounted_is_read_whole() {
    let mut linux = fat16(5000);
    linux[0x25] = 1;
    let mut windows = fat16(5000);
    set(&mut windows, 0, 1, 0x7fff);
    for disk in [linux, windows] {
        let (verdict, map) = map_of(&disk);
        assert_eq!(verdict.coverage, crate::fs::Coverage::Whole);
        assert_eq!(map.used_bytes(), to_u64(disk.len()));
    }
}

#[test]
fn a_large_volume_that_is_mounted_is_taken_for_clean_until_it_is_read_only() {
    let mut linux = Large::new();
    linux.0[0x25] = 1;
    let mut windows = Large::new();
    set(&mut windows.0, 0, 1, 0x7fff);
    let used = |device, still| walked(device, still).unwrap().1.used_bytes();
    assert!(used(&linux, Still::Glimpse) < 1 << 20);
    assert_eq!(used(&linux, Still::ReadOnly), 1 << 30);
    // Linux leaves this mark alone: it will be there then, too.
    assert_eq!(used(&windows, Still::Glimpse), 1 << 30);
    let mut small = fat16(5000);
    small[0x25] = 1;
    assert_eq!(used(&small, Still::Glimpse), to_u64(small.len()));
}

#[test]
fn the_identity_has_serial_and_label_and_the_root_directory_names_the_volume() {
    let mut disk = fat16(5000);
    let identity = probe(&disk).unwrap().unwrap();
    assert_eq!(identity.kind, Kind::Fat16);
    assert_eq!(identity.uuid.as_str(), "1234-ABCD");
    assert_eq!(identity.label.as_str(), "");
    assert_eq!(identity.size_bytes, to_u64(disk.len()));
    let root = 65 * 512;
    disk[root..root + 12].copy_from_slice(b"NEW LABEL  \x08");
    let identity = probe(&disk).unwrap().unwrap();
    assert_eq!(identity.label.as_str(), "NEW LABEL");
}

#[test]
fn boot_sectors_of_other_things_are_not_taken_for_fat() {
    let good = fat16(5000);
    assert!(probe(&good).unwrap().is_some());
    let spoil = |at: usize, bytes: &[u8]| {
        let mut disk = good.clone();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(probe(&disk).unwrap().is_none(), "{at:#x} {bytes:x?}");
    };
    spoil(0, &[0x33, 0xc0]); // an MBR
    spoil(0x0b, &[0, 0]);
    spoil(0x0d, &[3]);
    spoil(0x0e, &[0, 0]);
    spoil(0x10, &[0]);
    spoil(0x11, &[0, 0]);
    spoil(0x13, &[50, 0]); // smaller than its own tables
    spoil(0x15, &[0x42]);
    spoil(3, b"-FVE-FS-");
    spoil(510, &[0, 0]);
    spoil(512, &[0, 0]); // no table behind it
    assert!(probe(&vec![0u8; 100]).unwrap().is_none());
}

#[test]
fn random_damage_to_the_metadata_never_panics() {
    let base = fat16(5000);
    let mut seed = 7u64;
    for _ in 0..400 {
        let mut disk = base.clone();
        for _ in 0..3 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = to_usize((seed >> 33) % 0x60);
            disk[at] = seed.to_le_bytes()[3];
        }
        if probe(&disk).unwrap().is_some() {
            let _ = walked(&disk, Still::Unmounted);
        }
    }
}
