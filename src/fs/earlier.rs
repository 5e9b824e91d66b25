//! What an earlier walk of the same filesystem, while it was in use, found out about its inodes, so that the walk under the freeze
//! need not read all of them again.
//!
//! An inode table of a million inodes takes ten seconds of a slow card, and there is nothing in most of it: what its inodes own, the
//! bitmaps say, too. A walk reads inodes for two reasons: to free their unwritten extents, and to hold what they own against the
//! bitmaps. A piece of the device whose inodes freed nothing, and that was not written since, gives nothing new to the first. Leaving
//! it out can only make more of the device used.
//!
//! The second is left out with it as long as what is freed now was free in the earlier map ([`EarlierFindings::was_free`]), in which every file
//! that was met had its blocks used. Otherwise all inodes are read.
//!
//! btrfs never writes a tree block again that a commit has made part of a tree. A leaf of its extent tree that is no younger than the
//! earlier walk was in the tree which that walk read, and what its extents own is as it was, unless files had to be asked about them.

use std::cell::Cell;

use crate::map::UsedMap;
use crate::units::{Extent, to_usize};

/// Bytes of a piece: of what is marked as written, too.
pub const PIECE_BYTES: u64 = 128 * 1024;

/// One bit for each piece of a device, set where it must be read again.
#[derive(Debug, Default)]
pub struct Earlier {
    again: Vec<Cell<u32>>,
    is_valid: Cell<bool>,
    /// The commit whose trees the walk read, where the filesystem numbers them.
    generation: Cell<u64>,
}

impl Earlier {
    /// For a device of that length; believed after [`Self::believe`].
    pub fn new(length_bytes: u64) -> Self {
        let words = length_bytes.div_ceil(PIECE_BYTES).div_ceil(32);
        Self {
            again: vec![Cell::new(0); to_usize(words)],
            is_valid: Cell::new(false),
            generation: Cell::new(0),
        }
    }

    /// The piece at `offset` gave something, or was written.
    pub fn read_again(&self, offset: u64) {
        let piece = offset / PIECE_BYTES;
        if let Some(word) = self.again.get(to_usize(piece / 32)) {
            word.set(word.get() | 1 << (piece % 32));
        }
    }

    /// The walk came to its end without a doubt.
    pub fn believe(&self) {
        self.is_valid.set(true);
    }

    /// Nothing of it is believed any more.
    pub fn forget(&self) {
        self.is_valid.set(false);
    }

    fn must_read(&self, offset: u64) -> bool {
        let piece = offset / PIECE_BYTES;
        let word = self
            .again
            .get(to_usize(piece / 32))
            .filter(|_| self.is_valid.get());
        word.is_none_or(|word| word.get() >> (piece % 32) & 1 != 0)
    }
}

/// What a walk knows of an earlier one.
#[derive(Clone, Copy, Debug, Default)]
pub enum EarlierFindings<'a> {
    /// Nothing, and nobody wants to know it later.
    #[default]
    Nothing,
    /// It is the earlier one.
    Learns(&'a Earlier),
    /// What it found, and the map that it made.
    Knows(&'a Earlier, &'a UsedMap),
}

impl<'a> EarlierFindings<'a> {
    /// Whether the inodes at `offset` have to be read.
    pub fn must_read(self, offset: u64) -> bool {
        match self {
            Self::Knows(earlier, _) => earlier.must_read(offset),
            Self::Nothing | Self::Learns(_) => true,
        }
    }

    /// The tree block at `offset` of that generation need not be read: the map of the earlier walk, in which what it names is used.
    pub fn answers_for(self, offset: u64, generation: u64) -> Option<&'a UsedMap> {
        match self {
            Self::Knows(earlier, map)
                if generation <= earlier.generation.get() && !earlier.must_read(offset) =>
            {
                Some(map)
            }
            _ => None,
        }
    }

    /// What lies at `offset` freed something, or has to be looked at again for another reason.
    pub fn gave(self, offset: u64) {
        if let Self::Learns(earlier) = self {
            earlier.read_again(offset);
        }
    }

    /// The walk came to its end without a doubt.
    pub fn believe(self) {
        if let Self::Learns(earlier) = self {
            earlier.believe();
        }
    }

    /// The same, of the trees of that commit.
    pub fn believe_generation(self, generation: u64) {
        if let Self::Learns(earlier) = self {
            earlier.generation.set(generation);
        }
        self.believe();
    }

    /// Whether nothing of `extent` was used when the earlier walk met all files. False where there was none.
    pub fn was_free(self, extent: Extent) -> bool {
        matches!(self, Self::Knows(_, map) if map.next_used(extent.offset, extent.end()).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_left_out_only_where_an_earlier_walk_found_nothing_in_it() {
        let earlier = Earlier::new(10 * PIECE_BYTES + 1);
        let block = crate::units::BlockSize::from_bytes(4096).unwrap();
        let map = UsedMap::new(11 * PIECE_BYTES, block).unwrap();
        let knows = EarlierFindings::Knows(&earlier, &map);
        assert!(knows.must_read(0));
        EarlierFindings::Learns(&earlier).gave(3 * PIECE_BYTES + 5);
        EarlierFindings::Learns(&earlier).believe();
        let read = (0..11).filter(|piece| knows.must_read(piece * PIECE_BYTES));
        assert!(read.eq([3]));
        assert!(knows.must_read(1 << 40) && EarlierFindings::Nothing.must_read(0));
        assert!(EarlierFindings::Learns(&earlier).must_read(0));
        earlier.forget();
        assert!(knows.must_read(0));
    }
}
