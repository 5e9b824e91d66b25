//! XFS, versions 4 and 5: which blocks are used.
//!
//! [`walk`] goes through the allocation groups twice. The first pass takes the free extents of each group and checks them
//! against the group's other tree and counters (`group`); the second visits the inodes for unwritten extents, whose blocks are as
//! good as free (`inode`). A group that contradicts itself is wholly used. Free counts of the superblock are not looked at: they
//! are stale by design, and so is everything in place while the log is dirty; hence the map is believed only when we froze the
//! filesystem (which writes everything in place, though its log then still looks dirty) or when the log ends in an unmount
//! record (`log`). The log itself, the inodes and all headers go out as they are. Nothing here replays, repairs or writes.
//!
//! [`witness`] reads the superblock, the headers of the groups, and the log around its head. Every transaction goes through
//! the log first, so a thaw, a change and a second freeze move the head. Its limit: an overwrite of file data that changes no
//! timestamp and logs nothing at all is not seen; the caller's own thaw tells whether the filesystem stayed frozen.

mod btree;
mod group;
mod inode;
mod log;
pub(in crate::fs) mod superblock;
#[cfg(test)]
mod tests;
mod uuid;

use self::group::Group;
use self::log::Log;
use self::superblock::Superblock;
pub(super) use self::uuid::{can_change_uuid, change_uuid};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::features;
use crate::fs::earlier::EarlierFindings;
use crate::fs::{Identity, Kind, Reader, Still, Verdict, Walk, WalkTask, text, uuid_text};
use crate::map::UsedMap;
use crate::units::to_usize;

/// The reader's row in the table.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Xfs],
    probe,
    walk: if features::XFS { Some(walk) } else { None },
    witness,
};

/// Memory for a path through a tree: four blocks of 64 KiB, or nine (the most levels there are) of up to 16 KiB.
const STACK_BYTES: usize = 256 * 1024;
const _: () = assert!(2 * STACK_BYTES + inode::CHUNK_BYTES <= crate::fs::SCRATCH_BYTES);

/// Groups whose headers are witnessed; the log's head alone would do, and these make it certain on any usual filesystem.
const GROUPS_WITNESSED: u32 = 1024;

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let Some(superblock) = superblock::read(device)? else {
        return Ok(None);
    };
    let (disk, geometry) = (&superblock.disk, &superblock.geometry);
    let used = geometry.blocks.checked_sub(disk.sb_fdblocks);
    Ok(Some(Identity {
        size_bytes: geometry.size_bytes(),
        block_bytes: geometry.block.bytes(),
        max_sector_bytes: geometry.sector_bytes,
        used_bytes: used.map(|blocks| blocks << geometry.block.log2()),
        uuid: uuid_text(&disk.sb_uuid),
        label: text(&disk.sb_fname),
        ..Identity::new(Kind::Xfs, 0, geometry.sector_bytes.into())
    }))
}

fn walk(task: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let known = walk.known();
    let mut is_new = false;
    let verdict = walk_knowing(task.still, walk, map, known, &mut is_new)?;
    if is_new && matches!(known, EarlierFindings::Knows(..)) {
        // Some file that is left out may claim it.
        map.set_all_used();
        return walk_knowing(task.still, walk, map, EarlierFindings::Nothing, &mut is_new);
    }
    Ok(verdict)
}

fn walk_knowing(
    still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
    known: EarlierFindings<'_>,
    is_new: &mut bool,
) -> Result<Verdict, Fault> {
    let device = walk.device();
    let superblock = superblock::read(device)?.ok_or_else(|| Fault::corrupt("superblock"))?;
    refuse_other_devices(&superblock)?;
    let geometry = superblock.geometry;
    if let Some(doubt) = superblock.doubt {
        return Err(doubt);
    }
    let size = geometry.size_bytes();
    if size > device.size_bytes() || size > map.size_bytes() {
        return Err(Fault::corrupt("filesystem size"));
    }
    if !matches!(still, Still::Frozen | Still::Glimpse) {
        Log::new(device, &geometry).prove_clean(walk.scratch)?;
    }
    let mut verdict = Verdict::USED;
    let mut findings = Findings {
        map,
        verdict: &mut verdict,
        doubted: &mut Doubted::default(),
        budget: geometry.blocks,
        known,
        freed: false,
        is_new: false,
    };
    mark_free_space(device, &geometry, walk.scratch, &mut findings)?;
    if geometry.unwritten {
        mark_unwritten(device, &geometry, walk.scratch, &mut findings)?;
    }
    *is_new = findings.is_new;
    if map.next_used(geometry.log.offset, geometry.log.end()) != Some(geometry.log) {
        map.set_all_used();
        return Ok(Verdict::whole(Fault::corrupt("log in free space")));
    }
    if verdict.doubt.is_none() {
        known.believe();
    }
    Ok(verdict)
}

fn refuse_other_devices(superblock: &Superblock) -> Result<(), Fault> {
    if superblock.disk.sb_logstart == 0 {
        return Err(Fault::refused("an XFS with its log on another device"));
    }
    if superblock.disk.sb_rblocks != 0 || superblock.disk.sb_rextents != 0 {
        return Err(Fault::refused("an XFS with a realtime section"));
    }
    Ok(())
}

/// Groups that are wholly used, as a bit for each; groups share bits from the 1024th on, which only makes more of them used.
#[derive(Default)]
struct Doubted([u64; 16]);

impl Doubted {
    fn add(&mut self, ag: u32) {
        if let Some(word) = self.0.get_mut(to_usize(u64::from(ag / 64 % 16))) {
            *word |= 1 << (ag % 64);
        }
    }

    fn contains(&self, ag: u32) -> bool {
        self.0
            .get(to_usize(u64::from(ag / 64 % 16)))
            .is_none_or(|word| word >> (ag % 64) & 1 != 0)
    }
}

/// Where the passes put their findings.
struct Findings<'a> {
    map: &'a mut UsedMap,
    verdict: &'a mut Verdict,
    doubted: &'a mut Doubted,
    /// Blocks of extent trees that may still be read, over all groups.
    budget: u64,
    known: EarlierFindings<'a>,
    /// Whether an unwritten extent was freed of the inodes at hand.
    freed: bool,
    /// Whether one was freed, ever, that an earlier walk saw in use.
    is_new: bool,
}

fn mark_free_space(
    device: &dyn ReadAt,
    geometry: &superblock::Geometry,
    scratch: &mut [u8],
    findings: &mut Findings<'_>,
) -> Result<(), Fault> {
    let stack = scratch
        .get_mut(..STACK_BYTES)
        .ok_or_else(|| Fault::refused("scratch memory"))?;
    for ag in 0..geometry.ag_count {
        let group = Group {
            geometry,
            device,
            ag,
        };
        if let Err(fault) = group.mark_free(stack, findings.map) {
            distrust(&group, fault, findings)?;
        } else if let Err(fault) = group.mark_free_list(stack, findings.map) {
            let doubt = fault.doubted()?;
            findings.verdict.doubt(doubt.in_unit("AG", ag.into()));
        }
    }
    Ok(())
}

fn mark_unwritten(
    device: &dyn ReadAt,
    geometry: &superblock::Geometry,
    scratch: &mut [u8],
    findings: &mut Findings<'_>,
) -> Result<(), Fault> {
    let mut scratch =
        inode::Scratch::cut(scratch).ok_or_else(|| Fault::refused("scratch memory"))?;
    for ag in 0..geometry.ag_count {
        let group = Group {
            geometry,
            device,
            ag,
        };
        if let Err(fault) = inode::walk_group(&group, &mut scratch, findings) {
            distrust(&group, fault, findings)?;
        }
    }
    Ok(())
}

/// The whole group is used from here on.
fn distrust(group: &Group<'_>, fault: Fault, findings: &mut Findings<'_>) -> Result<(), Fault> {
    let doubt = fault.doubted()?;
    findings.doubted.add(group.ag);
    findings.map.set_used(group.extent());
    findings.verdict.doubt(doubt.in_unit("AG", group.ag.into()));
    Ok(())
}

fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    let device = walk.device();
    let Some(superblock) = superblock::read(device)? else {
        return walk.witness_extent(identity.superblock);
    };
    let geometry = superblock.geometry;
    for ag in 0..geometry.ag_count.min(GROUPS_WITNESSED) {
        let group = Group {
            geometry: &geometry,
            device,
            ag,
        };
        walk.witness_extent(group.header_extent())?;
    }
    if let Some(window) = Log::new(device, &geometry).window()? {
        for extent in window {
            walk.witness_extent(extent)?;
        }
    }
    Ok(())
}
