//! The reader against a kept image: 200 MiB, mixed block groups in DUP, 4 KiB nodes, made by mkfs.btrfs 6.2 and Linux 6.18.
//!
//! `tests/data/btrfs/mixed-dup.deflate` holds, deflated, only its tree blocks and superblocks: records of an offset (8 bytes, little
//! endian) and 4096 bytes. In it: 30 files, a partly written and a shared unwritten extent, a snapshot, a reflink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::error::FaultKind;
use crate::fs::earlier::Earlier;
use crate::fs::testing::{blocks_of, walked};
use crate::fs::{self, Coverage, SCRATCH_BYTES};
use crate::units::{BlockSize, to_usize};

const FIXTURE: &[u8] = include_bytes!("../../../tests/data/btrfs/mixed-dup.deflate");
/// The same kind of image: 256 MiB with an extent tree of 34 leaves (1,500 files of a block each, one that is unwritten but for a block),
/// and what of it was another half a minute later, when 30 files were gone, another had come, and one more block was written.
/// Kept are the trees of chunks, roots, devices, extents and checksums.
const MANY: &[u8] = include_bytes!("../../../tests/data/btrfs/many-extents.deflate");
const LATER: &[u8] = include_bytes!("../../../tests/data/btrfs/many-extents-later.deflate");
const BLOCK: u64 = 4096;
/// Where the primary superblock lies.
const SUPER: u64 = 65_536;
/// Places of the second chunk's copies, its length, and its block group item's address (from `btrfs inspect-internal`).
const MIXED: ([u64; 2], u64) = ([30_408_704, 97_517_568], 67_108_864);

/// An image of which only these blocks are not zeros.
#[derive(Clone)]
struct Sparse {
    blocks: BTreeMap<u64, Vec<u8>>,
    size_bytes: u64,
    /// How often it was read.
    reads: Arc<AtomicU32>,
}

impl ReadAt for Sparse {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for (index, byte) in buffer.iter_mut().enumerate() {
            let at = offset + to_u64(index);
            *byte = self
                .blocks
                .get(&(at / BLOCK * BLOCK))
                .map_or(0, |block| block[to_usize(at % BLOCK)]);
        }
        Ok(())
    }
}

impl Sparse {
    fn fixture() -> Self {
        Self::new(209_715_200, &[FIXTURE])
    }

    fn new(size_bytes: u64, fixtures: &[&[u8]]) -> Self {
        Self {
            blocks: fixtures.iter().copied().flat_map(blocks_of).collect(),
            size_bytes,
            reads: Arc::default(),
        }
    }

    /// Writes into a block and makes its checksum right again.
    fn patch(&mut self, block: u64, at: usize, bytes: &[u8]) {
        let block = self.blocks.get_mut(&block).unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let sum = crate::crc::crc32c(&block[32..]).to_le_bytes();
        block[..4].copy_from_slice(&sum);
    }

    /// Both copies of the current leaf of the extent tree, which holds the mixed group's item.
    fn extent_leaves(&self) -> Vec<u64> {
        let key = [22_020_096u64.to_le_bytes().as_slice(), &[192]].concat();
        let newest = |block: &&Vec<u8>| {
            block[0x64] == 0 && block.windows(9).take(4000).any(|window| window == key)
        };
        let generation = |block: &Vec<u8>| crate::layout::le::<u64>(block, 0x50).unwrap();
        let owned = |block: &&Vec<u8>| crate::layout::le::<u64>(block, 0x58) == Some(2);
        let blocks = self.blocks.values().filter(newest).filter(owned);
        let last = blocks.map(generation).max().unwrap();
        let mut found = Vec::new();
        for (offset, block) in &self.blocks {
            if newest(&block) && owned(&block) && generation(block) == last {
                found.push(*offset);
            }
        }
        found
    }

    /// How often the last walk read.
    fn reads(&self) -> u32 {
        self.reads.load(Ordering::Relaxed)
    }

    fn outcome(&self) -> (Result<Verdict, Fault>, UsedMap) {
        self.outcome_knowing(EarlierFindings::Nothing)
    }

    fn outcome_knowing(&self, known: EarlierFindings) -> (Result<Verdict, Fault>, UsedMap) {
        let identity = probe(self).unwrap().unwrap();
        let size = identity.size_bytes;
        let mut map = UsedMap::new(size, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
        let mut scratch = vec![0xa5; SCRATCH_BYTES];
        self.reads.store(0, Ordering::Relaxed);
        let mut memory = Walk::new(self, &mut scratch).knowing(known);
        let verdict = fs::walk(&identity, Still::Unmounted, &mut memory, &mut map);
        (verdict, map)
    }

    #[track_caller]
    fn assert_whole(&self, why: &str) {
        let (verdict, map) = self.outcome();
        let verdict = verdict.unwrap();
        let doubt = verdict.doubt.unwrap().to_string();
        assert_eq!(verdict.coverage, Coverage::Whole);
        assert!(doubt.contains(why), "{doubt}");
        assert_eq!(map.used_bytes(), map.size_bytes());
    }
}

#[test]
fn the_kept_image_is_named_and_mapped_exactly() {
    let image = Sparse::fixture();
    let identity = probe(&image).unwrap().unwrap();
    assert_eq!(identity.label.as_str(), "fixture");
    assert_eq!(
        identity.uuid.as_str(),
        "0f10e0f1-0e0f-10e0-f10e-0f10e0f10e0f"
    );
    assert_eq!(identity.size_bytes, 209_715_200);
    assert_eq!((identity.block_bytes, identity.devices), (4096, 1));
    assert_eq!(identity.used_bytes, Some(1_069_056));
    let (verdict, map) = image.outcome();
    assert_eq!(verdict.unwrap().coverage, Coverage::Used);
    // Two copies of every extent; 600 KiB were allocated and 4 KiB of them written; the reserved MiB and the second superblock.
    let unwritten = 600 * 1024 - 4096;
    let expected = 2 * (1_069_056 - unwritten) + (1 << 20) + 4096;
    assert_eq!(map.used_bytes(), expected);
    assert!(map.is_used(0) && map.is_used(64 << 20) && !map.is_used(1 << 20));
}

#[test]
fn features_that_are_not_known_mean_that_everything_is_read() {
    for (at, bit, why) in [
        (0xbc, 1u64 << 12, "incompat"),
        (0xbc, 1 << 13, "incompat"),
        (0xbc, 1 << 14, "incompat"),
        (0xbc, 1 << 63, "incompat"),
        (0xb4, 1 << 4, "compat_ro"),
        (0x38, 1 << 2, "superblock flags"),
        (0x38, 1 << 33, "superblock flags"),
        (0x38, 1 << 36, "superblock flags"),
    ] {
        let mut image = Sparse::fixture();
        let old: u64 = crate::layout::le(&image.blocks[&SUPER], at).unwrap();
        image.patch(SUPER, at, &(old | bit).to_le_bytes());
        image.assert_whole(why);
    }
    let mut image = Sparse::fixture();
    image.patch(SUPER, 0xc4, &9u16.to_le_bytes());
    let identity = probe(&image).unwrap().unwrap();
    assert_eq!(
        identity.size_bytes, 0,
        "nothing is known without a checksum"
    );
}

#[test]
fn a_log_or_a_superblock_that_lies_means_that_everything_is_read() {
    let (generation, bytes_used) = (0x48, 0x78);
    for (at, value, why) in [
        (0x60, 0x10_0000u64, "not replayed"),
        (bytes_used, 1_069_056 + 4096, "superblock disagree"),
        (generation, 9, "generation"),
        (0xd9, 4096, "device item disagree"),
        (0x50, 23_285_760 + 4096, "tree block"),
    ] {
        let mut image = Sparse::fixture();
        image.patch(SUPER, at, &value.to_le_bytes());
        image.assert_whole(why);
    }
    let mut image = Sparse::fixture();
    image.patch(SUPER, 0xa0, &128u32.to_le_bytes());
    image.assert_whole("short item in chunk");
}

#[test]
fn one_device_of_several_is_refused() {
    let mut image = Sparse::fixture();
    image.patch(SUPER, 0x88, &3u64.to_le_bytes());
    let fault = image.outcome().0.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Refused);
    assert!(
        fault.to_string().contains("cannot be imaged alone"),
        "{fault}"
    );
    // A superblock that says one, while its chunks lie on a device with another id.
    let mut image = Sparse::fixture();
    image.patch(SUPER, 0xc9, &2u64.to_le_bytes());
    assert_eq!(image.outcome().0.unwrap_err().kind(), FaultKind::Refused);
}

#[test]
fn a_block_group_that_does_not_add_up_is_used_whole_and_the_others_are_not() {
    let mut image = Sparse::fixture();
    let leaves = image.extent_leaves();
    assert_eq!(leaves.len(), 2, "{leaves:?}");
    let used = 1_064_960u64.to_le_bytes();
    for leaf in leaves {
        let at = image.blocks[&leaf]
            .windows(8)
            .position(|window| window == used);
        image.patch(leaf, at.unwrap(), &(1_064_960u64 - 4096).to_le_bytes());
    }
    let (verdict, map) = image.outcome();
    let verdict = verdict.unwrap();
    assert_eq!(verdict.coverage, Coverage::Partial);
    let doubt = verdict.doubt.unwrap().to_string();
    assert_eq!(doubt, "extents and count disagree in block group 22020096");
    let (places, length) = MIXED;
    for place in places {
        let extent = map.next_used(place, u64::MAX).unwrap();
        assert!(extent.offset == place && extent.end() >= place + length);
    }
    // Between the end of the second copy and the end of the device nothing is used.
    assert_eq!(map.next_used(places[1] + length, u64::MAX), None);
}

#[test]
fn a_leaf_of_the_extent_tree_that_is_bad_in_both_copies_ends_in_more_used_blocks() {
    let mut image = Sparse::fixture();
    let (_, before) = image.outcome();
    for leaf in image.extent_leaves() {
        image.blocks.get_mut(&leaf).unwrap()[2000] ^= 1;
    }
    let (verdict, map) = image.outcome();
    assert_ne!(verdict.unwrap().coverage, Coverage::Used);
    let mut at = 0;
    while let Some(extent) = before.next_used(at, u64::MAX) {
        let whole = map.next_used(extent.offset, extent.end());
        assert_eq!(whole, Some(extent), "a used block came out free");
        at = extent.end();
    }
}

#[test]
fn less_scratch_memory_than_promised_is_a_verdict_and_not_a_panic() {
    let image = Sparse::fixture();
    let identity = probe(&image).unwrap().unwrap();
    for length in [0, 4095, 40_000, 96 * 1024, 96 * 1024 + 64] {
        let block = BlockSize::from_bytes(BLOCK).unwrap();
        let mut map = UsedMap::new(identity.size_bytes, block).unwrap();
        let mut scratch = vec![0; length];
        let mut memory = Walk::new(&image, &mut scratch);
        let verdict = fs::walk(&identity, Still::Unmounted, &mut memory, &mut map).unwrap();
        assert_eq!(verdict.coverage, Coverage::Whole);
    }
}

#[test]
fn a_replacement_that_goes_on_or_is_suspended_is_refused_and_one_that_is_over_is_not() {
    // The item of the device's statistics becomes that of a replacement; its fifth counter is the state then.
    let stats = [0u64.to_le_bytes().as_slice(), &[249], &1u64.to_le_bytes()].concat();
    let replace = [0u64.to_le_bytes().as_slice(), &[250], &0u64.to_le_bytes()].concat();
    for (state, is_refused) in [
        (0u64, false),
        (1, true),
        (2, false),
        (3, false),
        (4, true),
        (5, true),
    ] {
        let mut image = Sparse::fixture();
        let leaves: Vec<(u64, usize, usize)> = image
            .blocks
            .iter()
            .filter(|(_, block)| crate::layout::le::<u64>(block, 0x58) == Some(DEVICE_TREE))
            .filter_map(|(offset, block)| {
                let key = block.windows(17).position(|window| window == stats)?;
                let item: u32 = crate::layout::le(block, key + 17)?;
                Some((*offset, key, 0x65 + to_usize(u64::from(item))))
            })
            .collect();
        assert!(!leaves.is_empty());
        for (block, key, item) in leaves {
            image.patch(block, key, &replace);
            image.patch(block, item + 32, &state.to_le_bytes());
        }
        match image.outcome().0 {
            Ok(verdict) => assert!(!is_refused && verdict.coverage == Coverage::Used, "{state}"),
            Err(fault) => {
                assert!(is_refused && fault.kind() == FaultKind::Refused, "{state}");
                assert!(fault.to_string().contains("replaced"), "{fault}");
            }
        }
    }
}

/// Where two maps differ.
fn differences(one: &UsedMap, other: &UsedMap) -> Vec<u64> {
    (0..one.size_bytes() / BLOCK)
        .map(|block| block * BLOCK)
        .filter(|at| one.is_used(*at) != other.is_used(*at))
        .collect()
}

#[test]
fn leaves_that_an_earlier_walk_had_are_not_read_again_and_the_map_is_the_same() {
    let (image, later) = (
        Sparse::new(256 << 20, &[MANY]),
        Sparse::new(256 << 20, &[MANY, LATER]),
    );
    let earlier = Earlier::new(256 << 20);
    let (verdict, before) = image.outcome_knowing(EarlierFindings::Learns(&earlier));
    assert_eq!(verdict.unwrap().doubt.map(|doubt| doubt.to_string()), None);

    let (verdict, alone) = later.outcome();
    assert_eq!(verdict.unwrap().coverage, Coverage::Used);
    let all_reads = later.reads();
    assert!(!differences(&before, &alone).is_empty());

    let knows = EarlierFindings::Knows(&earlier, &before);
    let (verdict, map) = later.outcome_knowing(knows);
    assert!(verdict.unwrap().doubt.is_none());
    assert_eq!(differences(&map, &alone), []);
    let reads = later.reads();
    assert!(reads * 2 < all_reads, "{reads} of {all_reads}");

    // Of what was written since, or of an earlier walk that is not believed, nothing is left out.
    for piece in 0..256 * 8 {
        earlier.read_again(piece * crate::fs::earlier::PIECE_BYTES);
    }
    let (_, map) = later.outcome_knowing(knows);
    assert_eq!(
        (differences(&map, &alone), later.reads()),
        (vec![], all_reads)
    );
}

#[test]
fn an_earlier_map_that_does_not_add_up_costs_another_walk_and_nothing_else() {
    let image = Sparse::new(256 << 20, &[MANY]);
    let earlier = Earlier::new(256 << 20);
    let (_, right) = image.outcome_knowing(EarlierFindings::Learns(&earlier));
    let all_reads = image.reads();
    // A coarse one says too little about blocks: it is not asked at all.
    let coarse = UsedMap::new(256 << 20, BlockSize::from_bytes(2 * BLOCK).unwrap()).unwrap();
    let (_, map) = image.outcome_knowing(EarlierFindings::Knows(&earlier, &coarse));
    assert_eq!(differences(&map, &right), []);
    assert_eq!(image.reads(), all_reads);
    for is_all_used in [true, false] {
        let mut wrong = UsedMap::new(256 << 20, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
        if !is_all_used {
            wrong.set_all_free();
        }
        let (verdict, map) = image.outcome_knowing(EarlierFindings::Knows(&earlier, &wrong));
        assert!(verdict.unwrap().doubt.is_none());
        assert_eq!(differences(&map, &right), []);
    }
}

#[test]
fn beside_a_leaf_that_is_younger_its_left_neighbour_is_read_too() {
    let image = Sparse::new(256 << 20, &[MANY]);
    let earlier = Earlier::new(256 << 20);
    let learns = EarlierFindings::Learns(&earlier);
    let (_, right) = image.outcome_knowing(learns);
    let all_reads = image.reads();
    let knows = EarlierFindings::Knows(&earlier, &right);
    let mut reads = Vec::new();
    let generation = crate::layout::le::<u64>(&image.blocks[&SUPER], 0x48).unwrap();
    for age in 0..generation {
        learns.believe_generation(generation - age);
        let (verdict, map) = image.outcome_knowing(knows);
        assert!(verdict.unwrap().doubt.is_none());
        assert_eq!(differences(&map, &right), []);
        reads.push(image.reads());
    }
    assert!(reads.is_sorted(), "{reads:?}");
    assert_eq!(reads.last(), Some(&all_reads), "{reads:?}");
    // Where the keys of a leaf go on over what its neighbour lost, the map has more than was counted.
    assert!(reads[0] * 2 < all_reads, "{reads:?}");
}

#[test]
fn a_log_that_a_freeze_commits_is_no_reason_to_look_at_nothing_before_it() {
    let mut image = Sparse::new(256 << 20, &[MANY]);
    image.patch(SUPER, 0x60, &0x10_0000u64.to_le_bytes());
    image.assert_whole("not replayed");
    let (verdict, _) = walked(&image, Still::Glimpse).unwrap();
    assert_eq!(verdict.coverage, Coverage::Used);
}

#[test]
fn a_sound_image_makes_no_fault() {
    let image = Sparse::new(256 << 20, &[MANY]);
    let before = crate::error::MADE.get();
    let (verdict, _) = image.outcome();
    assert!(verdict.unwrap().doubt.is_none());
    assert_eq!(crate::error::MADE.get(), before);
}
