//! The places of the fields, and what each header states; the lengths are those of files that cryptsetup made.

use super::*;
use crate::fs::probe;

fn put(disk: &mut [u8], place: u64, bytes: &[u8]) {
    let place = to_usize(place);
    disk[place..place + bytes.len()].copy_from_slice(bytes);
}

fn least(disk: &dyn ReadAt) -> u64 {
    of(disk, &probe(disk).unwrap().unwrap())
}

#[test]
fn a_member_reaches_the_end_of_its_data_wherever_its_superblock_stands() {
    for place in [0, 4096, 1_000_000 / 4096 * 4096 - 8192] {
        let mut disk = vec![0; 1_000_000];
        put(&mut disk, place, &MD_MAGIC.to_le_bytes());
        put(&mut disk, place + 4, &[1]);
        put(&mut disk, place + 0x90, &(place / 512).to_le_bytes());
        assert_eq!(least(&disk), 0, "{place}");
        put(&mut disk, place + 0x80, &2048u64.to_le_bytes());
        put(&mut disk, place + 0x88, &30_000u64.to_le_bytes());
        assert_eq!(least(&disk), 32_048 * 512, "{place}");
        put(&mut disk, place + 0x88, &u64::MAX.to_le_bytes());
        assert_eq!(least(&disk), u64::MAX, "{place}");
    }
}

fn luks(version: u8) -> Vec<u8> {
    let mut disk = vec![0; 3 << 20];
    put(&mut disk, 0, b"LUKS\xba\xbe\0");
    disk[7] = version;
    disk
}

#[test]
fn luks1_reaches_its_payload_or_only_the_last_key_slot_where_all_are_known() {
    let mut disk = luks(1);
    put(&mut disk, 0x68, &4096u32.to_be_bytes());
    put(&mut disk, 0x6c, &64u32.to_be_bytes());
    assert_eq!(least(&disk), 4096 * 512);
    for slot in 0..8u32 {
        let place = 0xd0 + 48 * u64::from(slot);
        put(&mut disk, place + 0x28, &(8 + 504 * slot).to_be_bytes());
        assert_eq!(least(&disk), 4096 * 512, "{slot}");
        put(&mut disk, place + 0x2c, &4000u32.to_be_bytes());
    }
    // As luksHeaderBackup has it, but for what fills its last page.
    let end = (8 + 7 * 504) * 512 + 64 * 4000;
    assert_eq!(least(&disk), end);
    // A detached header states no payload; and none begins in the midst of the slots.
    put(&mut disk, 0x68, &0u32.to_be_bytes());
    assert_eq!(least(&disk), end);
    put(&mut disk, 0x68, &100u32.to_be_bytes());
    assert_eq!(least(&disk), 100 * 512);
}

#[test]
fn luks2_reaches_the_end_of_its_key_slots_or_of_both_headers() {
    let mut disk = luks(2);
    assert_eq!(least(&disk), 0);
    for (header_bytes, wanted) in [(16_384u64, 32_768), (10_000, 0), (8 << 20, 0)] {
        put(&mut disk, 8, &header_bytes.to_be_bytes());
        assert_eq!(least(&disk), wanted);
    }
    put(&mut disk, 8, &16_384u64.to_be_bytes());
    let mut with = |text: &str| {
        disk[4096..16_384].fill(0);
        put(&mut disk, 4096, text.as_bytes());
        least(&disk)
    };
    let json = r#"{"keyslots":{},"tokens":{"0":{"keyslots_size":"1"}},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic"}},"config":{"json_size":"12288","keyslots_size":"16744448"}}"#;
    assert_eq!(with(json), 16 << 20);
    for bad in [
        "",
        "{",
        r#"{"config":{}}"#,
        r#"{"config":{"keyslots_size":"-1"}}"#,
        r#"{"config":{"keyslots_size":"999999999999"}}"#,
        r#"{"tokens":{"keyslots_size":"16744448"}}"#,
    ] {
        assert_eq!(with(bad), 32_768, "{bad}");
    }
}
