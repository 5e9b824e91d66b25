//! Walking XFS B+trees, short form (inside one allocation group) and long form (extent maps of inodes).
//!
//! Every block is read once and checked against everything the format says about it: magic, level, record count, siblings in
//! the order of the walk, and in version 5 checksum, UUID, own address and owner. The sibling chain makes a cycle impossible:
//! a block has one left sibling, so it cannot come twice. A budget of blocks bounds the walk on top of that.

use super::superblock::{Geometry, checksum_holds};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout::be;
use crate::units::{to_u64, to_usize};

/// Deepest tree the kernel handles (`XFS_BTREE_MAXLEVELS`).
pub(super) const LEVELS_MAX: usize = 9;

/// A kind of tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    magic_v4: u32,
    magic_v5: u32,
    record_bytes: usize,
    key_bytes: usize,
    long: bool,
    /// What a broken block of it is called.
    pub what: &'static str,
}

const fn shape(
    magics: [u32; 2],
    record_bytes: usize,
    key_bytes: usize,
    what: &'static str,
) -> Shape {
    let [magic_v4, magic_v5] = magics;
    Shape {
        magic_v4,
        magic_v5,
        record_bytes,
        key_bytes,
        long: false,
        what,
    }
}

/// Free space by block number: "ABTB", "AB3B".
pub(super) const FREE_BY_BLOCK: Shape =
    shape([0x4142_5442, 0x4142_3342], 8, 8, "free space by block");
/// Free space by size: "ABTC", "AB3C".
pub(super) const FREE_BY_SIZE: Shape =
    shape([0x4142_5443, 0x4142_3343], 8, 8, "free space by size");
/// Inode chunks: "IABT", "IAB3".
pub(super) const INODES: Shape = shape([0x4941_4254, 0x4941_4233], 16, 4, "inode btree");
/// Extents of a fork: "BMAP", "BMA3".
pub(super) const EXTENTS: Shape = Shape {
    long: true,
    ..shape([0x424d_4150, 0x424d_4133], 16, 8, "extent btree")
};

/// One block of a tree, checked.
pub(super) struct Block<'b> {
    /// Where it lies on the device, in bytes.
    pub offset: u64,
    /// Its records, when it is a leaf.
    pub records: &'b [u8],
}

/// Where block numbers of the tree count from, and whom its blocks name as owner.
#[derive(Clone, Copy, Debug)]
pub(super) enum Space {
    /// Blocks of one allocation group; it is the owner.
    Group(u32),
    /// Filesystem blocks; this inode is the owner.
    Inode(u64),
}

#[derive(Clone, Copy, Default)]
struct Frame {
    count: usize,
    next: usize,
    number: Option<u64>,
    right: Option<u64>,
}

/// A walk through one tree (or through the children of a root that lies in an inode).
pub(super) struct Walker<'a> {
    geometry: &'a Geometry,
    device: &'a dyn ReadAt,
    shape: Shape,
    space: Space,
    stack: &'a mut [u8],
    budget: &'a mut u64,
    frames: [Frame; LEVELS_MAX],
}

/// What is done with each block.
pub(super) type Visit<'v> = dyn FnMut(&Block<'_>) -> Result<(), Fault> + 'v;

impl<'a> Walker<'a> {
    /// `stack` holds one block for each level; `budget` is the number of blocks that may still be read.
    pub(super) fn new(
        geometry: &'a Geometry,
        device: &'a dyn ReadAt,
        (shape, space): (Shape, Space),
        stack: &'a mut [u8],
        budget: &'a mut u64,
    ) -> Self {
        Self {
            geometry,
            device,
            shape,
            space,
            stack,
            budget,
            frames: [Frame::default(); LEVELS_MAX],
        }
    }

    fn corrupt(&self) -> Fault {
        Fault::corrupt(self.shape.what)
    }

    const fn header_bytes(&self) -> usize {
        match (self.shape.long, self.geometry.checksums) {
            (false, false) => 16,
            (false, true) => 56,
            (true, false) => 24,
            (true, true) => 72,
        }
    }

    const fn pointer_bytes(&self) -> usize {
        if self.shape.long { 8 } else { 4 }
    }

    /// Most records of a leaf, or most children of a node.
    fn capacity(&self, level: usize) -> usize {
        let room = to_usize(self.geometry.block.bytes64()).saturating_sub(self.header_bytes());
        let each = if level == 0 {
            self.shape.record_bytes
        } else {
            self.shape.key_bytes + self.pointer_bytes()
        };
        room / each
    }

    fn frame(&mut self, level: usize) -> Result<&mut Frame, Fault> {
        let what = self.shape.what;
        self.frames
            .get_mut(level)
            .ok_or_else(|| Fault::corrupt(what))
    }

    fn block_bytes(&self, level: usize) -> Option<&[u8]> {
        let bytes = to_usize(self.geometry.block.bytes64());
        let start = level.checked_mul(bytes)?;
        self.stack.get(start..)?.get(..bytes)
    }

    /// Walks the subtree whose root is block `root`, a tree of `levels` levels, in order.
    pub(super) fn subtree(
        &mut self,
        root: u64,
        levels: usize,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        if levels == 0 || levels > LEVELS_MAX {
            return Err(self.corrupt());
        }
        let mut level = levels - 1;
        self.load(root, level, visit)?;
        loop {
            let frame = *self.frame(level)?;
            if level > 0 && frame.next < frame.count {
                self.frame(level)?.next += 1;
                let child = self
                    .child(level, frame.next)
                    .ok_or_else(|| self.corrupt())?;
                level -= 1;
                self.load(child, level, visit)?;
            } else if level + 1 < levels {
                level += 1;
            } else {
                return Ok(());
            }
        }
    }

    /// The chain of each level must have ended with its last block.
    pub(super) fn finish(self) -> Result<(), Fault> {
        if self.frames.iter().any(|frame| frame.right.is_some()) {
            return Err(self.corrupt());
        }
        Ok(())
    }

    fn child(&self, level: usize, index: usize) -> Option<u64> {
        let pointers = self.header_bytes() + self.capacity(level) * self.shape.key_bytes;
        let at = pointers + index * self.pointer_bytes();
        self.pointer(self.block_bytes(level)?, at)
    }

    fn pointer(&self, bytes: &[u8], at: usize) -> Option<u64> {
        if self.shape.long {
            be::<u64>(bytes, at)
        } else {
            be::<u32>(bytes, at).map(u64::from)
        }
    }

    /// A sibling pointer; all ones is none.
    fn sibling(&self, bytes: &[u8], at: usize) -> Option<Option<u64>> {
        let null = if self.shape.long {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        self.pointer(bytes, at)
            .map(|number| (number != null).then_some(number))
    }

    fn load(&mut self, number: u64, level: usize, visit: &mut Visit<'_>) -> Result<(), Fault> {
        *self.budget = self.budget.checked_sub(1).ok_or_else(|| self.corrupt())?;
        let place = match self.space {
            Space::Group(ag) => u32::try_from(number)
                .ok()
                .filter(|block| *block < self.geometry.ag_length(ag))
                .map(|block| (ag, block)),
            Space::Inode(_) => self.geometry.split(number),
        };
        let (ag, block) = place.ok_or_else(|| self.corrupt())?;
        let offset = self.geometry.offset(ag, block);
        let length = self.geometry.block.bytes64();
        let what = self.shape.what;
        let fault = || Fault::corrupt(what).at(offset, length);
        let start = level.checked_mul(to_usize(length)).ok_or_else(fault)?;
        let buffer = self
            .stack
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..to_usize(length)))
            .ok_or_else(|| Fault::unsupported("a tree deeper than our memory"))?;
        self.device.read_at(offset, buffer)?;
        let frame = self.check(number, level, offset).ok_or_else(fault)?;
        *self.frame(level)? = frame;
        let header = self.header_bytes();
        let bytes = self.block_bytes(level).ok_or_else(fault)?;
        let records = if level == 0 {
            let length = frame.count * self.shape.record_bytes;
            bytes.get(header..header + length).ok_or_else(fault)?
        } else {
            &[]
        };
        visit(&Block { offset, records })
    }

    /// Everything the block's header must say; `None` when it does not.
    fn check(&self, number: u64, level: usize, offset: u64) -> Option<Frame> {
        let bytes = self.block_bytes(level)?;
        let checksums = self.geometry.checksums;
        let magic = if checksums {
            self.shape.magic_v5
        } else {
            self.shape.magic_v4
        };
        let count = usize::from(be::<u16>(bytes, 6)?);
        let pointer = self.pointer_bytes();
        let (left, right) = (self.sibling(bytes, 8)?, self.sibling(bytes, 8 + pointer)?);
        let previous = self.frames.get(level)?;
        let in_order = previous.number == left
            && (previous.number.is_none() || previous.right == Some(number));
        let plausible = be::<u32>(bytes, 0)? == magic
            && u64::from(be::<u16>(bytes, 4)?) == to_u64(level)
            && count <= self.capacity(level)
            && (count > 0 || (level == 0 && left.is_none() && right.is_none()));
        if !in_order || !plausible {
            return None;
        }
        if checksums {
            let at = 8 + 2 * pointer;
            let uuid: [u8; 16] = be(bytes, at + 16)?;
            let (owner, crc) = (at + 32, at + 32 + pointer);
            let owned = match self.space {
                Space::Group(ag) => be::<u32>(bytes, owner)? == ag,
                Space::Inode(inode) => be::<u64>(bytes, owner)? == inode,
            };
            let intact = be::<u64>(bytes, at)? == offset / 512
                && uuid == self.geometry.uuid
                && owned
                && checksum_holds(bytes, crc);
            if !intact {
                return None;
            }
        }
        Some(Frame {
            count,
            next: 0,
            number: Some(number),
            right,
        })
    }
}
