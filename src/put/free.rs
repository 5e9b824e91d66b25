//! `--skip-free`: zero runs of an image that lie on blocks nobody owns are not written.
//!
//! A zero run of an image may be free space, but also a file's content, the journal or an unused inode table, where stale data
//! would corrupt. So zero runs are left alone while the image streams in, one bit for each granule; then, before the head is
//! written, the filesystem on the target is walked (as it would be with zeros there), and every run that is owned, or that
//! cannot be proven free, is zeroed after all. What stays untouched is counted.

use crate::content::Content;
use crate::device::ReadAt;
use crate::error::{Fault, FaultKind};
use crate::fs::{self, Coverage, Still, UsedMap, Walk};
use crate::stream::copy::{CopyFailure, CopyProgress, ZeroPolicy, zero_extent};
use crate::stream::image::GRANULE_BYTES;
use crate::stream::target::Target;
use crate::units::{BlockSize, Extent, round_down, round_up};

/// The zero runs left alone so far: "free" in a map of granules.
pub(crate) struct LeftAlone {
    map: UsedMap,
}

impl LeftAlone {
    /// For a device of `size_bytes`; its memory is allocated here.
    pub(crate) fn new(size_bytes: u64) -> Result<Self, Fault> {
        let map = BlockSize::from_bytes(GRANULE_BYTES)
            .and_then(|granule| UsedMap::new(size_bytes, granule))
            .ok_or_else(|| Fault::refused("size of the target"))?;
        Ok(Self { map })
    }

    /// The first part of `extent` that was left alone.
    pub(crate) fn first_in(&self, extent: Extent) -> Option<Extent> {
        let used = self.map.next_used(extent.offset, extent.end());
        let offset = match used {
            Some(used) if used.offset == extent.offset => used.end(),
            _ => extent.offset,
        };
        if offset >= extent.end() {
            return None;
        }
        let end = self.map.next_used(offset, extent.end());
        let end = end.map_or(extent.end(), |used| used.offset);
        Some(Extent::between(offset, end))
    }
}

impl ZeroPolicy for LeftAlone {
    fn leave(&mut self, run: Extent) -> Option<Extent> {
        let inner = inwards(run, self.map.granule().bytes64())?;
        self.map.set_free(inner);
        Some(inner)
    }
}

/// The whole units inside an extent.
fn inwards(extent: Extent, unit: u64) -> Option<Extent> {
    let start = round_up(extent.offset, unit)?;
    let end = round_down(extent.end(), unit);
    (start < end).then(|| Extent::between(start, end))
}

/// The target as it will read when everything is done: the head from memory, zeros where runs were left alone.
struct FinishedTarget<'a> {
    target: &'a Target,
    head: &'a [u8],
    left: &'a LeftAlone,
}

impl ReadAt for FinishedTarget<'_> {
    fn size_bytes(&self) -> u64 {
        self.target.device().size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let mut rest = buffer;
        let mut offset = offset;
        if let Some(held) = usize::try_from(offset)
            .ok()
            .and_then(|start| self.head.get(start..))
        {
            let count = held.len().min(rest.len());
            let (front, back) = rest.split_at_mut(count);
            for (to, from) in front.iter_mut().zip(held) {
                *to = *from;
            }
            offset = offset.saturating_add(crate::units::to_u64(count));
            rest = back;
        }
        while !rest.is_empty() {
            let extent = Extent::new(offset, crate::units::to_u64(rest.len()))
                .ok_or_else(|| Fault::short("read past the end"))?;
            let hole = self.left.first_in(extent);
            let (length, is_hole) = match hole {
                Some(hole) if hole.offset == offset => (hole.length_bytes, true),
                Some(hole) => (hole.offset - offset, false),
                None => (extent.length_bytes, false),
            };
            let (front, back) =
                rest.split_at_mut(crate::stream::input::at_most(length, rest.len()));
            if is_hole {
                front.fill(0);
            } else {
                self.target.device().read_at(offset, front)?;
            }
            offset = offset.saturating_add(length);
            rest = back;
        }
        Ok(())
    }
}

/// Zeroes what was left alone and is owned, and gives the number of bytes that stay untouched.
pub(crate) fn settle(
    target: &mut Target,
    content: &Content,
    head: &[u8],
    left: &mut LeftAlone,
    progress: &CopyProgress,
) -> Result<u64, CopyFailure> {
    let owned = owned_blocks(target, content, head, left).map_err(CopyFailure::Target)?;
    let size = target.device().size_bytes();
    let (mut from, mut untouched) = (0u64, 0u64);
    while let Some(run) = left.first_in(Extent::between(from, size)) {
        from = run.end();
        let mut rest = run;
        while !rest.is_empty() {
            let owned = next_owned(owned.as_ref(), rest);
            let owned = owned.unwrap_or(Extent::at(rest.end(), 0));
            untouched = untouched.saturating_add(owned.offset - rest.offset);
            zero_extent(target, owned, progress)?;
            // Whole granules that are zeros now can be compared when the target is read back.
            if let Some(whole) = inwards(owned, left.map.granule().bytes64()) {
                left.map.set_used(whole);
            }
            rest = Extent::between(owned.end(), rest.end());
        }
    }
    Ok(untouched)
}

/// The first part of `extent` that must be zeroed; all of it where nothing is known, or past the end of the filesystem.
fn next_owned(owned: Option<&UsedMap>, extent: Extent) -> Option<Extent> {
    let Some(owned) = owned.filter(|map| extent.offset < map.size_bytes()) else {
        return (!extent.is_empty()).then_some(extent);
    };
    let limit = extent.end().min(owned.size_bytes());
    let Some(used) = owned.next_used(extent.offset, limit) else {
        return (limit < extent.end()).then(|| Extent::between(limit, extent.end()));
    };
    // Devices take whole sectors; the neighbours are zeros in the image, too.
    let unit = crate::device::DIRECT_ALIGN;
    let start = round_down(used.offset, unit).max(extent.offset);
    let end = round_up(used.end(), unit)
        .unwrap_or(u64::MAX)
        .min(extent.end());
    Some(Extent::between(start, end))
}

/// The map of the filesystem's owned blocks; `None` where there is nothing to believe.
fn owned_blocks(
    target: &Target,
    content: &Content,
    head: &[u8],
    left: &LeftAlone,
) -> Result<Option<UsedMap>, Fault> {
    let Some(identity) = &content.identity else {
        return Ok(None);
    };
    let block = BlockSize::from_bytes(u64::from(identity.block_bytes));
    let Some(mut map) = block.and_then(|block| UsedMap::new(identity.size_bytes, block)) else {
        return Ok(None);
    };
    let view = FinishedTarget { target, head, left };
    let mut scratch = vec![0; fs::SCRATCH_BYTES];
    let mut walk = Walk::new(&view, &mut scratch).keeping_owned();
    match fs::walk(identity, Still::Unmounted, &mut walk, &mut map) {
        Ok(verdict) if verdict.coverage == Coverage::Whole => Ok(None),
        Ok(_) => Ok(Some(map)),
        Err(fault) if fault.kind() != FaultKind::Io => Ok(None),
        Err(fault) => Err(fault),
    }
}
