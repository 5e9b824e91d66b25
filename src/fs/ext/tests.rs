//! The reader over images written byte by byte here: 1 KiB blocks, three groups of 256, every group with a superblock copy.
//!
//! What mke2fs never makes stands here: lies, overlaps, cycles. Real images are in tests/it/format/ext.rs.

use super::checksum::ChecksumScheme;
use super::superblock::{Backups, Geometry, Raw};
use super::*;
use crate::crc::crc32c_raw;
use crate::fs::Coverage;
use crate::fs::testing::walked;
use crate::units::{to_u64, to_usize};

const BLOCK: usize = 1024;
const GROUPS: usize = 3;
const PER_GROUP: usize = 256;
const BLOCKS: usize = 1 + GROUPS * PER_GROUP;
const INODES: usize = 16;
/// Superblock copy, descriptors, two bitmaps, table of 16 inodes of 128 bytes.
const METADATA: usize = 6;
const REGULAR: u16 = 0o100_644;
const EXTENTS: u32 = 0x8_0000;

struct Sample {
    bytes: Vec<u8>,
    used: Vec<bool>,
    inodes: Vec<bool>,
    has_checksums: bool,
    flags: [u16; GROUPS],
}

impl Sample {
    fn new(has_checksums: bool) -> Self {
        let mut sample = Self {
            bytes: vec![0; BLOCKS * BLOCK],
            used: vec![false; BLOCKS],
            inodes: vec![false; GROUPS * INODES],
            has_checksums,
            flags: [0; GROUPS],
        };
        for group in 0..GROUPS {
            let first = 1 + group * PER_GROUP;
            sample.used[first..first + METADATA].fill(true);
        }
        sample.inodes[..11].fill(true);
        sample
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn put16(&mut self, offset: usize, value: usize) {
        self.put(offset, &u16::try_from(value).unwrap().to_le_bytes());
    }

    fn put32(&mut self, offset: usize, value: usize) {
        self.put(offset, &u32::try_from(value).unwrap().to_le_bytes());
    }

    fn inode_place(number: usize) -> usize {
        let (group, index) = ((number - 1) / INODES, (number - 1) % INODES);
        (1 + group * PER_GROUP + 4) * BLOCK + index * 128
    }

    /// A regular file with this root of its mapping, owning `blocks` blocks.
    fn file(&mut self, number: usize, flags: u32, map: &[u8], blocks: usize) {
        let place = Self::inode_place(number);
        self.put(place, &REGULAR.to_le_bytes());
        self.put32(place + 0x1c, blocks * 2);
        self.put(place + 0x20, &flags.to_le_bytes());
        self.put(place + 0x28, map);
        self.inodes[number - 1] = true;
        if self.has_checksums {
            let number = u32::try_from(number).unwrap();
            let seed = ChecksumScheme::All(self.seed())
                .inode_seed(number, 0)
                .unwrap();
            let sum = crc32c_raw(seed, &self.bytes[place..place + 128]);
            self.put(place + 0x7c, &sum.to_le_bytes()[..2]);
        }
    }

    fn seed(&self) -> u32 {
        crc32c_raw(u32::MAX, &[7; 16])
    }

    /// Bitmaps, descriptors and superblock for what was put so far.
    fn seal(&mut self) -> &mut Self {
        let mut free_in_all = 0;
        for group in 0..GROUPS {
            let first = 1 + group * PER_GROUP;
            let bits = |set: &[bool]| -> Vec<u8> {
                let byte = |eight: &[bool]| {
                    eight
                        .iter()
                        .rev()
                        .fold(0u8, |byte, bit| byte << 1 | u8::from(*bit))
                };
                set.chunks(8).map(byte).collect()
            };
            let (blocks, inodes) = (
                bits(&self.used[first..first + PER_GROUP]),
                bits(&self.inodes[group * INODES..(group + 1) * INODES]),
            );
            let zeros = |bits: &[u8]| {
                bits.iter()
                    .map(|byte| to_usize(byte.count_zeros().into()))
                    .sum::<usize>()
            };
            free_in_all += zeros(&blocks);
            if self.flags[group] & 2 == 0 {
                self.put((first + 2) * BLOCK, &blocks);
            }
            self.put((first + 3) * BLOCK, &inodes);
            let place = 2 * BLOCK + group * 32;
            self.put32(place, first + 2);
            self.put32(place + 4, first + 3);
            self.put32(place + 8, first + 4);
            self.put16(place + 0xc, zeros(&blocks));
            self.put16(place + 0xe, zeros(&inodes));
            self.put16(place + 0x12, self.flags[group].into());
            if self.has_checksums {
                let seed = self.seed();
                self.put(place + 0x18, &crc32c_raw(seed, &blocks).to_le_bytes()[..2]);
                self.put(place + 0x1a, &crc32c_raw(seed, &inodes).to_le_bytes()[..2]);
                self.put16(place + 0x1e, 0);
                let number = u32::try_from(group).unwrap().to_le_bytes();
                let sum = crc32c_raw(crc32c_raw(seed, &number), &self.bytes[place..place + 32]);
                self.put(place + 0x1e, &sum.to_le_bytes()[..2]);
            }
        }
        self.seal_superblock(free_in_all)
    }

    fn seal_superblock(&mut self, free: usize) -> &mut Self {
        for (offset, value) in [
            (0x00, GROUPS * INODES),
            (0x04, BLOCKS),
            (0x0c, free),
            (0x14, 1),
            (0x20, PER_GROUP),
            (0x24, PER_GROUP),
            (0x28, INODES),
            (0x4c, 1),
            (0x60, 0x42),
        ] {
            self.put32(1024 + offset, value);
        }
        self.put16(1024 + 0x38, 0xef53);
        self.put16(1024 + 0x3a, 1);
        self.put16(1024 + 0x58, 128);
        self.put(1024 + 0x68, &[7; 16]);
        if self.has_checksums {
            self.put32(1024 + 0x64, 0x400);
            self.bytes[1024 + 0x175] = 1;
            let sum = crc32c_raw(u32::MAX, &self.bytes[1024..1024 + 0x3fc]);
            self.put(1024 + 0x3fc, &sum.to_le_bytes());
        }
        self
    }

    fn walk(&self) -> (Verdict, Vec<bool>) {
        let (verdict, map) = walked(&self.bytes, Still::Unmounted).unwrap();
        let blocks = 0..self.bytes.len() / BLOCK;
        let used = blocks.map(|block| map.is_used(to_u64(block * BLOCK)));
        (verdict, used.collect())
    }

    /// Everything that bitmaps call used (and the boot block), without `free`.
    fn expected(&self, free: std::ops::Range<usize>) -> Vec<bool> {
        let mut expected = self.used.clone();
        expected[0] = true;
        expected[free].fill(false);
        expected
    }

    /// The same, and nothing of the inode tables where no inode is in use.
    fn expected_used(&self, free: std::ops::Range<usize>) -> Vec<bool> {
        let mut expected = self.expected(free);
        for (block, inodes) in self.inodes.chunks(BLOCK / 128).enumerate() {
            let place = Self::inode_place(1 + block * BLOCK / 128) / BLOCK;
            expected[place] &= inodes.contains(&true);
        }
        expected
    }
}

/// The bytes of a node: header and entries `(logical, length, block)`; an index has length 0.
fn node(depth: usize, max: usize, entries: &[(usize, usize, usize)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [0xf30a, entries.len(), max, depth, 0, 0] {
        bytes.extend(u16::try_from(value).unwrap().to_le_bytes());
    }
    for (logical, length, block) in entries {
        bytes.extend(u32::try_from(*logical).unwrap().to_le_bytes());
        if depth == 0 {
            bytes.extend(u32::try_from(*length).unwrap().to_le_bytes());
            bytes.extend(u32::try_from(*block).unwrap().to_le_bytes());
        } else {
            bytes.extend(u32::try_from(*block).unwrap().to_le_bytes());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

/// `length` blocks that were never written.
fn unwritten(length: usize) -> usize {
    0x8000 + length
}

#[test]
fn what_no_bitmap_has_is_free_and_unwritten_extents_too() {
    for has_checksums in [false, true] {
        let mut sample = Sample::new(has_checksums);
        sample.used[100..130].fill(true);
        let map = node(0, 4, &[(0, 10, 100), (10, unwritten(20), 110)]);
        sample.file(12, EXTENTS, &map, 30);
        let (verdict, used) = sample.seal().walk();
        assert_eq!(verdict.doubt, None);
        assert_eq!(used, sample.expected_used(110..130));
    }
}

#[test]
fn what_deleted_files_left_is_free_where_no_inode_beside_it_is_in_use() {
    for has_checksums in [false, true] {
        let mut sample = Sample::new(has_checksums);
        // One in a block of its own, one beside inode 11, one in a group without any other.
        for number in [17, 12, 40] {
            let place = Sample::inode_place(number);
            sample.put(place, &REGULAR.to_le_bytes());
            sample.put(place + 0x64, b"what it held");
        }
        sample.file(33, EXTENTS, &node(0, 4, &[]), 0);
        let (verdict, used) = sample.seal().walk();
        assert_eq!(verdict.doubt, None);
        assert_eq!(used, sample.expected_used(0..0));
        let blocks = [17, 12, 40, 33].map(|number| Sample::inode_place(number) / BLOCK);
        assert_eq!(blocks.map(|block| used[block]), [false, true, true, true]);
    }
}

#[test]
fn a_file_that_the_bitmap_of_inodes_calls_free_is_a_doubt_and_all_tables_stay() {
    let mut sample = Sample::new(false);
    let place = Sample::inode_place(17);
    sample.put(place, &REGULAR.to_le_bytes());
    sample.put16(place + 0x1a, 1);
    let (verdict, used) = sample.seal().walk();
    let doubt = verdict.doubt.unwrap().to_string();
    assert_eq!(doubt, "a file is marked free in inode 17");
    assert_eq!(verdict.coverage, Coverage::Partial);
    assert_eq!(used, sample.expected(0..0));
}

#[test]
fn uninit_group_counts_only_its_own_metadata_and_its_bitmap_is_never_read() {
    let mut sample = Sample::new(true);
    sample.flags[1] = 3;
    let garbage = (1 + PER_GROUP + 2) * BLOCK;
    sample.bytes[garbage..garbage + BLOCK].fill(0x5a);
    let (verdict, used) = sample.seal().walk();
    assert_eq!(verdict.doubt, None);
    // Neither is the table of a group without inodes in use, nor a bitmap of inodes that was never written.
    let mut expected = sample.expected_used(0..0);
    expected[garbage / BLOCK..][..2].fill(false);
    assert_eq!(used, expected);
}

#[test]
fn an_unwritten_extent_that_overlaps_another_file_is_not_freed() {
    for (liar, honest) in [(12, 13), (13, 12)] {
        let mut sample = Sample::new(true);
        sample.used[100..120].fill(true);
        sample.file(liar, EXTENTS, &node(0, 4, &[(0, unwritten(20), 100)]), 20);
        sample.file(honest, EXTENTS, &node(0, 4, &[(0, 5, 110)]), 5);
        let (verdict, used) = sample.seal().walk();
        assert_eq!(verdict.coverage, Coverage::Partial);
        assert_eq!(used, sample.expected(0..0));
    }
}

#[test]
fn an_unwritten_extent_over_metadata_is_not_freed() {
    // Two bitmaps, and tables with inodes in use in front of the file and behind it.
    for (place, inode) in [
        (1 + PER_GROUP + 2, 12),
        (1 + 4, 12),
        (1 + PER_GROUP + 4, 17),
    ] {
        let mut sample = Sample::new(false);
        sample.file(inode, EXTENTS, &node(0, 4, &[]), 0);
        sample.file(12, EXTENTS, &node(0, 4, &[(0, unwritten(2), place)]), 2);
        let (verdict, used) = sample.seal().walk();
        assert_eq!(verdict.coverage, Coverage::Partial, "{place}");
        assert_eq!(used, sample.expected(0..0));
    }
}

#[test]
fn a_block_of_a_file_that_the_bitmap_calls_free_is_used_and_a_doubt() {
    let mut sample = Sample::new(false);
    sample.file(12, EXTENTS, &node(0, 4, &[(0, 3, 200)]), 3);
    let (verdict, used) = sample.seal().walk();
    let doubt = verdict.doubt.unwrap().to_string();
    assert_eq!(doubt, "blocks of a file are marked free in inode 12");
    assert_eq!(used[199..204], [false, true, true, true, false]);
}

#[test]
fn a_bitmap_that_gives_metadata_away_costs_its_whole_group() {
    let mut sample = Sample::new(false);
    sample.used[1 + PER_GROUP + 5] = false;
    let (verdict, used) = sample.seal().walk();
    assert_eq!(verdict.coverage, Coverage::Partial);
    assert!(
        used[1 + PER_GROUP..1 + 2 * PER_GROUP]
            .iter()
            .all(|used| *used)
    );
    assert!(used[1 + 2 * PER_GROUP..].iter().any(|used| !*used));
}

#[test]
fn trees_that_point_at_themselves_end() {
    let mut sample = Sample::new(false);
    sample.used[100..104].fill(true);
    // An index block that is its own child, and one whose children are all the same.
    sample.file(12, EXTENTS, &node(5, 4, &[(0, 0, 100)]), 4);
    let own = node(4, 84, &[(0, 0, 100), (1, 0, 100), (2, 0, 101)]);
    sample.put(100 * BLOCK, &own);
    // Indirect blocks full of pointers to themselves: 256 to the third reads if nothing stopped it.
    let pointers: Vec<u8> = 102u32.to_le_bytes().repeat(15);
    sample.put(102 * BLOCK, &102u32.to_le_bytes().repeat(256));
    sample.file(13, 0, &pointers, 4);
    let (verdict, used) = sample.seal().walk();
    assert_eq!(verdict.coverage, Coverage::Partial);
    assert_eq!(used, sample.expected(0..0));
}

#[test]
fn indirect_blocks_are_followed_to_their_data() {
    let mut sample = Sample::new(false);
    sample.used[100] = true;
    let mut map = [0; 60];
    map[48..52].copy_from_slice(&100u32.to_le_bytes());
    sample.put(100 * BLOCK + 4 * 9, &150u32.to_le_bytes());
    sample.file(12, 0, &map, 2);
    let (verdict, used) = sample.seal().walk();
    assert_eq!(verdict.coverage, Coverage::Partial);
    assert!(used[150] && !used[151], "block 150 belongs to inode 12");
}

#[test]
fn a_damaged_node_or_inode_keeps_every_block() {
    let mut sample = Sample::new(true);
    sample.used[100..120].fill(true);
    sample.file(12, EXTENTS, &node(0, 4, &[(0, unwritten(20), 100)]), 20);
    sample.seal();
    sample.bytes[Sample::inode_place(12) + 4] ^= 1;
    let (verdict, used) = sample.walk();
    let doubt = verdict.doubt.unwrap().to_string();
    assert_eq!(doubt, "inode checksum in inode 12");
    assert_eq!(used, sample.expected(0..0));
}

#[test]
fn wrong_counts_and_checksums_cost_one_group_and_a_wrong_sum_everything() {
    let mut sample = Sample::new(true);
    sample.seal();
    sample.bytes[(1 + PER_GROUP + 2) * BLOCK + 20] ^= 1;
    let (verdict, used) = sample.walk();
    let doubt = verdict.doubt.unwrap().to_string();
    assert_eq!(doubt, "block bitmap checksum in group 1");
    assert!(
        used[1 + PER_GROUP..1 + 2 * PER_GROUP]
            .iter()
            .all(|used| *used)
    );
    assert!(!used[1 + 2 * PER_GROUP + METADATA]);

    let mut sample = Sample::new(false);
    sample.seal().seal_superblock(5);
    let (verdict, used) = sample.walk();
    assert_eq!(verdict.coverage, Coverage::Whole);
    assert!(used.iter().all(|used| *used));
}

#[test]
fn a_filesystem_smaller_than_its_device_keeps_its_map() {
    let mut sample = Sample::new(true);
    sample.seal();
    let (alone, used) = sample.walk();
    sample.bytes.resize(sample.bytes.len() + 9 * BLOCK, 0x55);
    let (verdict, map) = walked(&sample.bytes, Still::Unmounted).unwrap();
    assert_eq!(verdict.coverage, alone.coverage, "{:?}", verdict.doubt);
    assert_eq!(verdict.coverage, Coverage::Used);
    for (block, used) in used.iter().enumerate() {
        assert_eq!(map.is_used(to_u64(block * BLOCK)), *used, "block {block}");
    }
}

#[test]
fn an_image_that_was_cut_short_is_read_whole() {
    let mut sample = Sample::new(true);
    sample.seal();
    sample.bytes.truncate(700 * BLOCK);
    let (verdict, used) = sample.walk();
    assert_eq!(verdict.coverage, Coverage::Whole);
    assert!(used.iter().all(|used| *used));
}

#[test]
fn a_superblock_with_a_wrong_checksum_is_still_ext_and_read_whole() {
    let mut sample = Sample::new(true);
    sample.seal();
    sample.bytes[1024 + 0x3fc] ^= 1;
    let (verdict, _) = sample.walk();
    let doubt = verdict.doubt.unwrap().to_string();
    assert_eq!(doubt, "superblock checksum");
    sample.bytes[1024 + 0x38] ^= 1;
    assert!(probe(&sample.bytes).unwrap().is_none());
    assert!(probe(&vec![0; 2047]).unwrap().is_none());
}

#[test]
fn kind_label_uuid_and_superblock_come_from_the_superblock() {
    let mut sample = Sample::new(true);
    sample.put(1024 + 0x78, b"rootfs");
    sample.put(1024 + 0x88, b"/data");
    let identity = probe(&sample.seal().bytes).unwrap().unwrap();
    assert_eq!(identity.kind, Kind::Ext4);
    assert_eq!(identity.label.as_str(), "rootfs");
    assert_eq!(identity.last_mounted.as_str(), "/data");
    assert_eq!(
        identity.uuid.as_str(),
        "07070707-0707-0707-0707-070707070707"
    );
    assert_eq!(identity.size_bytes, to_u64(BLOCKS * BLOCK));
    assert_eq!(
        (identity.superblock.offset, identity.superblock.length_bytes),
        (1024, 1024)
    );
    let mut kind = |compat, incompat, ro_compat| {
        sample.put32(1024 + 0x5c, compat);
        sample.put32(1024 + 0x60, incompat);
        sample.put32(1024 + 0x64, ro_compat);
        probe(&sample.bytes).unwrap().unwrap().kind
    };
    assert_eq!(kind(0, 2, 3), Kind::Ext2);
    assert_eq!(kind(4, 2, 3), Kind::Ext3);
    assert_eq!(kind(4, 0x42, 3), Kind::Ext4);
    assert_eq!(kind(4, 2, 0x10), Kind::Ext4);
    assert_eq!(kind(0, 8, 0), Kind::ExtJournal);
}

fn geometry(change: impl Fn(&mut Geometry)) -> Geometry {
    let mut sample = Sample::new(false);
    let bytes = sample.seal().bytes[1024..2048].to_vec();
    let raw = Raw::recognise(&bytes).unwrap();
    let mut geometry = Geometry::new(&raw, &bytes).unwrap();
    change(&mut geometry);
    geometry
}

#[test]
fn backups_lie_where_each_feature_puts_them() {
    let groups = |backups: Backups| -> Vec<u32> {
        let geometry = geometry(|g| {
            g.groups = 130;
            g.blocks = 1 + 130 * 256;
            g.first_meta_bg = 5;
            g.backups = backups;
        });
        (0..130)
            .filter(|group| geometry.base_metadata(*group).count > 0)
            .collect()
    };
    assert_eq!(
        groups(Backups::Sparse),
        [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]
    );
    assert_eq!(groups(Backups::Two([1, 129])), [0, 1, 129]);
    assert_eq!(groups(Backups::All).len(), 130);
}

#[test]
fn meta_block_groups_keep_descriptors_in_their_first_second_and_last_group() {
    // 32 descriptors of 32 bytes in a block; metagroups from 1 on hold their own.
    let geometry = geometry(|g| {
        g.groups = 100;
        g.blocks = 1 + 100 * 256;
        g.first_meta_bg = 1;
        g.backups = Backups::Sparse;
    });
    assert_eq!(geometry.descriptors_per_block(), 32);
    assert_eq!(geometry.descriptor_blocks(), 4);
    assert_eq!(geometry.descriptor_block(0), 2);
    assert_eq!(geometry.descriptor_block(1), 1 + 32 * 256);
    assert_eq!(geometry.base_metadata(1).count, 2);
    let holding: Vec<u32> = (32..96)
        .filter(|group| geometry.base_metadata(*group).count > 0)
        .collect();
    // 49 and 81 are powers and hold a superblock only.
    assert_eq!(holding, [32, 33, 49, 63, 64, 65, 81, 95]);
}
