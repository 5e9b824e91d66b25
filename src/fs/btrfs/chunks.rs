//! The chunk map: which run of logical addresses lies where on the device, and what its block group was seen to hold.
//!
//! Kept sorted in scratch memory as fixed records, so that nothing is allocated; when it is full, the filesystem has more chunks than
//! this reader cares to know and everything is read. Knows only profiles that one device can have: single, DUP, and RAID0 of one stripe.

use crate::error::Fault;
use crate::layout;
use crate::layout::le;
use crate::units::{Extent, to_u64};

use super::superblock::{Geometry, SEVERAL_DEVICES};

layout! {
    /// `struct btrfs_chunk` without its stripes.
    le pub(super) struct RawChunk: 48 {
        0x00 length: u64,
        0x18 flags: u64,
        0x2c num_stripes: u16,
    }
}

layout! {
    /// `struct btrfs_stripe`.
    le pub(super) struct RawStripe: 32 { 0x00 devid: u64, 0x08 offset: u64, 0x10 dev_uuid: [u8; 16] }
}

/// Block group type bits (`BTRFS_BLOCK_GROUP_*`).
const TYPES: u64 = 7;
const RAID0: u64 = 8;
const DUP: u64 = 32;
/// The second copy of a chunk that has one only.
const NONE: u64 = u64::MAX;

/// One chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// First logical address.
    pub logical: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// Where the copies start on the device.
    places: [u64; 2],
    /// Type and profile bits.
    pub flags: u64,
    /// Bytes of the extents seen in it.
    pub seen_bytes: u64,
    /// Bytes used as its block group item says.
    pub group_bytes: u64,
    /// `IN_TREE`, `HAS_GROUP`, `DOUBTFUL`.
    pub state: u64,
}

/// The chunk tree has it (not only the superblock's array).
pub(super) const IN_TREE: u64 = 1;
/// A block group item was seen.
pub(super) const HAS_GROUP: u64 = 2;
/// Something about it was wrong: all of it counts as used.
pub(super) const DOUBTFUL: u64 = 4;

impl Chunk {
    const RECORD_BYTES: usize = 64;

    /// From a chunk item at `logical`, checked against the device.
    pub(super) fn parse(logical: u64, item: &[u8], geometry: &Geometry) -> Result<Self, Fault> {
        let bad = |what| Fault::corrupt(what).in_unit("chunk", logical);
        let raw = RawChunk::parse(item).ok_or_else(|| bad("short item"))?;
        let stripes = match raw.flags & !TYPES {
            0 => 1,
            RAID0 if raw.num_stripes == 1 => 1,
            DUP => 2,
            _ => return Err(Fault::unsupported("profile").in_unit("chunk", logical)),
        };
        let unit = geometry.sector.bytes64();
        let aligned = (logical | raw.length).is_multiple_of(unit) && raw.length != 0;
        if usize::from(raw.num_stripes) != stripes || !aligned || raw.flags & TYPES == 0 {
            return Err(bad("fields"));
        }
        logical
            .checked_add(raw.length)
            .ok_or_else(|| bad("length"))?;
        let mut places = [NONE; 2];
        for (index, place) in places.iter_mut().take(stripes).enumerate() {
            let at = RawChunk::SIZE + index * RawStripe::SIZE;
            let stripe = item
                .get(at..)
                .and_then(RawStripe::parse)
                .ok_or_else(|| bad("short item"))?;
            if stripe.devid != geometry.device_id || stripe.dev_uuid != geometry.device_uuid {
                return Err(SEVERAL_DEVICES().in_unit("chunk", logical));
            }
            Extent::new(stripe.offset, raw.length)
                .filter(|extent| extent.end() <= geometry.device_bytes)
                .ok_or_else(|| bad("place past the end of the device"))?;
            *place = stripe.offset;
        }
        Ok(Self {
            logical,
            length_bytes: raw.length,
            places,
            flags: raw.flags,
            seen_bytes: 0,
            group_bytes: 0,
            state: 0,
        })
    }

    /// Bytes that the item at the start of `bytes` takes, from its number of stripes.
    pub(super) fn item_bytes(bytes: &[u8]) -> Option<usize> {
        let raw = RawChunk::parse(bytes)?;
        Some(RawChunk::SIZE + usize::from(raw.num_stripes) * RawStripe::SIZE)
    }

    /// Number of copies on the device.
    pub(super) fn copies(&self) -> u64 {
        to_u64(self.places.iter().filter(|place| **place != NONE).count())
    }

    /// One past the last logical address.
    pub(super) fn end(&self) -> u64 {
        self.logical.saturating_add(self.length_bytes)
    }

    /// All of it, as logical addresses.
    pub(super) fn extent(&self) -> Extent {
        Extent::at(self.logical, self.length_bytes)
    }

    /// Where the copies of a logical extent lie on the device; nothing when it is not wholly inside.
    pub(super) fn on_device(&self, extent: Extent) -> impl Iterator<Item = Extent> {
        let skip = extent
            .offset
            .checked_sub(self.logical)
            .filter(|_| extent.end() <= self.end());
        self.places
            .into_iter()
            .filter(|place| *place != NONE)
            .filter_map(move |place| Extent::new(place.checked_add(skip?)?, extent.length_bytes))
    }

    fn same_place(&self, other: &Self) -> bool {
        (self.logical, self.length_bytes, self.places, self.flags)
            == (other.logical, other.length_bytes, other.places, other.flags)
    }

    fn words(&self) -> [u64; 8] {
        let [first, second] = self.places;
        [
            self.logical,
            self.length_bytes,
            first,
            second,
            self.flags,
            self.seen_bytes,
            self.group_bytes,
            self.state,
        ]
    }
}

/// The chunks of a filesystem, sorted by logical address, none overlapping.
pub(super) struct ChunkMap<'s> {
    memory: &'s mut [u8],
    count: usize,
}

impl<'s> ChunkMap<'s> {
    /// An empty table in `memory`.
    pub(super) fn new(memory: &'s mut [u8]) -> Self {
        Self { memory, count: 0 }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The chunk at `index` in the order of logical addresses.
    pub(super) fn get(&self, index: usize) -> Option<Chunk> {
        let start = index.checked_mul(Chunk::RECORD_BYTES)?;
        let record = self.memory.get(start..)?.get(..Chunk::RECORD_BYTES)?;
        let word = |number: usize| le::<u64>(record, number * 8);
        (index < self.count).then_some(Chunk {
            logical: word(0)?,
            length_bytes: word(1)?,
            places: [word(2)?, word(3)?],
            flags: word(4)?,
            seen_bytes: word(5)?,
            group_bytes: word(6)?,
            state: word(7)?,
        })
    }

    /// Replaces the chunk at `index`, which must exist.
    pub(super) fn set(&mut self, index: usize, chunk: &Chunk) {
        let start = index.saturating_mul(Chunk::RECORD_BYTES);
        let record = self.memory.get_mut(start..).unwrap_or_default();
        for (bytes, word) in record.chunks_exact_mut(8).zip(chunk.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Index of the first chunk that ends after `logical`.
    fn position(&self, logical: u64) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).is_some_and(|chunk| chunk.end() <= logical) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The chunk that holds `logical`, and its index.
    pub(super) fn find(&self, logical: u64) -> Option<(usize, Chunk)> {
        let index = self.position(logical);
        let chunk = self.get(index)?;
        (chunk.logical <= logical).then_some((index, chunk))
    }

    /// The chunks that hold logical addresses in `[from, limit)`, and what of these lies in each.
    pub(super) fn parts(
        &self,
        from: u64,
        limit: u64,
    ) -> impl Iterator<Item = (usize, Chunk, Extent)> {
        (self.position(from)..).map_while(move |index| {
            let chunk = self.get(index).filter(|chunk| chunk.logical < limit)?;
            let offset = from.max(chunk.logical);
            let part = Extent::new(offset, limit.min(chunk.end()).checked_sub(offset)?)?;
            (!part.is_empty()).then_some((index, chunk, part))
        })
    }

    /// Adds a chunk. One that is there already must be the same and takes the new state too.
    pub(super) fn insert(&mut self, chunk: &Chunk) -> Result<(), Fault> {
        let index = self.position(chunk.logical);
        if let Some(mut next) = self.get(index).filter(|next| next.logical < chunk.end()) {
            if !next.same_place(chunk) {
                return Err(Fault::corrupt("overlap").in_unit("chunk", chunk.logical));
            }
            next.state |= chunk.state;
            self.set(index, &next);
            return Ok(());
        }
        let start = index.saturating_mul(Chunk::RECORD_BYTES);
        let end = self.count.saturating_mul(Chunk::RECORD_BYTES);
        if end.saturating_add(Chunk::RECORD_BYTES) > self.memory.len() || start > end {
            return Err(Fault::unsupported(
                "more chunks than fit the memory of a walk",
            ));
        }
        self.memory
            .copy_within(start..end, start + Chunk::RECORD_BYTES);
        self.count += 1;
        self.set(index, chunk);
        Ok(())
    }

    /// Marks every chunk that touches `[from, to]` as doubtful.
    pub(super) fn doubt(&mut self, from: u64, to: u64) {
        let mut index = self.position(from);
        while let Some(mut chunk) = self.get(index).filter(|chunk| chunk.logical <= to) {
            chunk.state |= DOUBTFUL;
            self.set(index, &chunk);
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(logical: u64, length_bytes: u64, place: u64) -> Chunk {
        Chunk {
            logical,
            length_bytes,
            places: [place, NONE],
            flags: 1,
            seen_bytes: 0,
            group_bytes: 0,
            state: 0,
        }
    }

    #[test]
    fn chunks_are_found_by_any_address_inside_them_whatever_the_order_they_came_in() {
        let mut memory = vec![0xaa; 64 * 5 + 3];
        let mut chunks = ChunkMap::new(&mut memory);
        for start in [30u64, 10, 50, 20, 40] {
            chunks.insert(&chunk(start * 100, 500, start * 7)).unwrap();
        }
        assert!(chunks.insert(&chunk(9000, 500, 0)).is_err(), "no room");
        for start in [10u64, 20, 30, 40, 50] {
            let (_, found) = chunks.find(start * 100 + 499).unwrap();
            assert_eq!(found.logical, start * 100);
            assert!(chunks.find(start * 100 + 500).is_none());
        }
        assert!(chunks.find(999).is_none());
        let parts: Vec<_> = chunks.parts(1400, 2100).map(|(.., part)| part).collect();
        let wanted =
            [(1400, 100), (2000, 100)].map(|(at, length)| Extent::new(at, length).unwrap());
        assert_eq!(parts, wanted);
        assert_eq!(
            (
                chunks.parts(2100, 2100).count(),
                chunks.parts(5500, 9999).count()
            ),
            (0, 0)
        );
        let part = Extent::new(1100, 400).unwrap();
        let places: Vec<_> = chunks.find(1000).unwrap().1.on_device(part).collect();
        assert_eq!(places, [Extent::new(170, 400).unwrap()]);
    }

    #[test]
    fn a_chunk_that_overlaps_another_is_corrupt_and_the_same_one_twice_is_not() {
        let mut memory = vec![0; 640];
        let mut chunks = ChunkMap::new(&mut memory);
        chunks.insert(&chunk(1000, 500, 7)).unwrap();
        chunks.insert(&chunk(1000, 500, 7)).unwrap();
        assert_eq!(chunks.len(), 1);
        assert!(chunks.insert(&chunk(1000, 500, 8)).is_err());
        assert!(chunks.insert(&chunk(900, 200, 9)).is_err());
        assert!(chunks.insert(&chunk(1499, 200, 9)).is_err());
        chunks.insert(&chunk(1500, 200, 9)).unwrap();
    }
}
