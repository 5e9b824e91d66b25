//! Unit tests on tables that our own writer made; those of sgdisk and sfdisk are in tests/it.

use super::*;
use crate::error::FaultKind;
use crate::units::to_usize;

const MIB: u64 = 1 << 20;

fn apply(patches: &[Patch], disk: &mut Vec<u8>, size: u64) {
    disk.resize(to_usize(size), 0);
    for patch in patches {
        let start = to_usize(patch.offset);
        disk[start..start + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
}

fn parts(scheme: Scheme, extents: &[Extent]) -> Vec<NewPartition<'static>> {
    let kind = match scheme {
        Scheme::Gpt => PartitionType::Guid(Guid::LINUX),
        Scheme::Mbr => PartitionType::Byte(0x83),
    };
    (1u8..)
        .zip(extents)
        .map(|(number, extent)| NewPartition {
            extent: *extent,
            kind,
            uuid: Guid::random([number; 16]),
            name: "größe",
            attributes: 0,
        })
        .collect()
}

fn disk(scheme: Scheme, sector_bytes: u32, size: u64, lengths: &[Length]) -> Vec<u8> {
    let extents = allocate(scheme, sector_bytes, size, 0, lengths).unwrap();
    let table = NewTable {
        scheme,
        sector_bytes,
        disk_bytes: size,
        disk_id: Guid::random([7; 16]),
        partitions: &parts(scheme, &extents),
    };
    let mut bytes = Vec::new();
    let patches = table.build().unwrap();
    assert_eq!(patches.last().unwrap().offset, 0);
    apply(&patches, &mut bytes, size);
    bytes
}

const FIVE: [Length; 5] = [
    Length::Bytes(MIB),
    Length::Bytes(3 * MIB - 5),
    Length::Bytes(2 * MIB),
    Length::Rest,
    Length::Bytes(2 * MIB),
];

#[test]
fn what_is_written_is_read_back_for_each_scheme_and_sector_size() {
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        for sector in [512, 4096] {
            let size = 32 * MIB;
            let bytes = disk(scheme, sector, size, &FIVE);
            let table = read(&bytes, sector).unwrap().unwrap();
            assert_eq!(table.scheme, scheme);
            assert_eq!(table.doubt, None);
            let extents = allocate(scheme, sector, size, 0, &FIVE).unwrap();
            let found: Vec<_> = table.partitions.iter().map(|p| p.extent).collect();
            assert_eq!(found, extents);
            let numbers: Vec<_> = table.partitions.iter().map(|p| p.number).collect();
            match scheme {
                Scheme::Gpt => {
                    assert_eq!(numbers, [1, 2, 3, 4, 5]);
                    assert_eq!(table.end_bytes, size);
                    assert_eq!(table.partitions[0].name, "größe");
                    assert!(
                        table
                            .by_uuid("03030303-0303-4303-8303-030303030303")
                            .is_some()
                    );
                }
                Scheme::Mbr => {
                    assert_eq!(numbers, [1, 2, 3, 5, 6]);
                    assert!(table.by_uuid("07070707-05").is_some());
                }
            }
        }
    }
}

#[test]
fn gaps_and_partitions_cover_the_disk_exactly_once() {
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        let size = 32 * MIB;
        let bytes = disk(scheme, 512, size, &FIVE);
        let table = read(&bytes, 512).unwrap().unwrap();
        let mut all = table.gaps(size);
        all.extend(table.partitions.iter().map(|p| p.extent));
        all.sort_unstable();
        let mut end = 0;
        for extent in all {
            assert_eq!(extent.offset, end);
            end = extent.end();
        }
        assert_eq!(end, size);
        assert_eq!(table.gaps(0), []);
    }
}

#[test]
fn allocation_refuses_what_does_not_fit_and_gives_the_rest_to_one() {
    let scheme = Scheme::Gpt;
    let all = allocate(scheme, 512, 16 * MIB, 0, &[Length::Rest]).unwrap();
    assert_eq!((all[0].offset, all[0].length_bytes), (MIB, 14 * MIB));
    for lengths in [
        &[Length::Bytes(15 * MIB)][..],
        &[Length::Rest, Length::Rest],
        &[Length::Bytes(14 * MIB), Length::Rest],
        &[Length::Bytes(u64::MAX)],
    ] {
        let fault = allocate(scheme, 512, 16 * MIB, 0, lengths).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Refused);
    }
    // More than 2 TiB is more than an MBR of 512-byte sectors can say.
    let huge = allocate(Scheme::Mbr, 512, 3 << 40, 0, &[Length::Rest]).unwrap();
    assert!(huge[0].end() < 2 << 40);
}

#[test]
fn a_damaged_copy_of_the_gpt_is_a_doubt_and_two_are_an_error() {
    let size = 16 * MIB;
    let good = disk(Scheme::Gpt, 512, size, &[Length::Rest]);
    let end = to_usize(size);
    for place in [512 + 0x38, 1024 + 5, end - 512 + 0x38, end - 33 * 512 + 5] {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        let table = read(&bytes, 512).unwrap().unwrap();
        assert_eq!(table.partitions.len(), 1);
        assert_eq!(table.doubt.unwrap().kind(), FaultKind::Corrupt, "{place}");
    }
    let mut bytes = good.clone();
    bytes[512] ^= 1;
    bytes[end - 512] ^= 1;
    assert_eq!(read(&bytes, 512).unwrap_err().kind(), FaultKind::Corrupt);
    // Of a stream only the beginning is held: what is behind it is no damage.
    let head = crate::content::Head(&good[..end / 2]);
    let table = read(&head, 512).unwrap().unwrap();
    assert_eq!((table.partitions.len(), table.doubt), (1, None));
    // Cut short: the table still says where the image has to end.
    let table = read(&good[..end / 2].to_vec(), 512).unwrap().unwrap();
    assert_eq!(table.end_bytes, size);
    assert!(table.doubt.is_some());
}

#[test]
fn the_backup_moves_to_the_end_of_a_larger_disk_and_a_smaller_one_is_refused() {
    for sector in [512u32, 4096] {
        let (size, larger) = (16 * MIB, 40 * MIB);
        let mut bytes = disk(Scheme::Gpt, sector, size, &[Length::Rest]);
        assert_eq!(relocated(&bytes, sector, size), []);
        let fault = gpt::relocate(&bytes, sector, size - MIB).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Refused);
        let before = read(&bytes, sector).unwrap().unwrap();
        let patches = relocated(&bytes, sector, larger);
        apply(&patches, &mut bytes, larger);
        let table = read(&bytes, sector).unwrap().unwrap();
        assert_eq!(table.doubt, None);
        assert_eq!(table.end_bytes, larger);
        assert_eq!(table.disk_id, before.disk_id);
        assert_eq!(table.partitions[0].extent, before.partitions[0].extent);
        let old = to_usize(size) - to_usize(u64::from(sector));
        assert_ne!(&bytes[old..old + 8], b"EFI PART");
    }
}

#[allow(clippy::ptr_arg)] // a slice is no `dyn ReadAt`
fn relocated(bytes: &Vec<u8>, sector: u32, size: u64) -> Vec<Patch> {
    gpt::relocate(bytes, sector, size).unwrap()
}

#[test]
fn overlapping_partitions_and_chains_in_circles_are_doubts() {
    let size = 32 * MIB;
    let mut bytes = disk(Scheme::Mbr, 512, size, &[Length::Bytes(MIB), Length::Rest]);
    // The second starts in the first.
    bytes[0x1be + 16 + 8..0x1be + 16 + 12].copy_from_slice(&2049u32.to_le_bytes());
    let table = read(&bytes, 512).unwrap().unwrap();
    assert_eq!(table.doubt.unwrap().what(), "overlapping partitions");

    let mut bytes = disk(Scheme::Mbr, 512, size, &FIVE);
    let table = read(&bytes, 512).unwrap().unwrap();
    let second = to_usize(table.partitions[4].extent.offset - MIB);
    // The last link points back to the first one.
    bytes[second + 0x1be + 16..second + 0x1be + 32]
        .copy_from_slice(&[0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let table = read(&bytes, 512).unwrap().unwrap();
    assert!(table.doubt.is_some());
    assert!(table.partitions.len() <= 3 + 100);
}

#[test]
fn boot_sectors_and_unsigned_sectors_are_no_tables() {
    let mut bytes = vec![0u8; 65_536];
    assert!(read(&bytes, 512).unwrap().is_none());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(read(&bytes, 512).unwrap().is_none());
    bytes[..13].copy_from_slice(b"\xeb\x3c\x90mkfs.fat\0\x02");
    bytes[0x1b8] = 9;
    assert!(read(&bytes, 512).unwrap().is_none());
    assert!(read(&vec![0u8; 100], 512).unwrap().is_none());
    assert!(read(&bytes, 100).is_err());
}

#[test]
fn random_damage_never_panics() {
    let mut seed = 3u64;
    let mut random = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % limit
    };
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        let good = disk(scheme, 512, 8 * MIB, &[Length::Bytes(MIB); 5]);
        let links: Vec<usize> = (0..good.len() / 512)
            .filter(|sector| good[sector * 512 + 510] == 0x55)
            .collect();
        let mut bytes = good.clone();
        for _ in 0..300 {
            let mut damaged = Vec::new();
            for _ in 0..4 {
                let sector = match scheme {
                    Scheme::Gpt => random(3),
                    Scheme::Mbr => links[random(links.len())],
                };
                let at = sector * 512 + random(512);
                bytes[at] = random(256).to_le_bytes()[0];
                damaged.push(at);
            }
            if let Ok(Some(table)) = read(&bytes, 512) {
                let _ = table.gaps(bytes.size_bytes());
            }
            let _ = gpt::relocate(&bytes, 512, 16 * MIB);
            for at in damaged {
                bytes[at] = good[at];
            }
        }
    }
}
