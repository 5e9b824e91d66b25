//! ext2, ext3 and ext4: recognised by their superblock; used blocks from their own structures.
//!
//! The walk goes from what is cheap to disprove to what is worth freeing: superblock, state and journal say whether anything is
//! believed at all; each group's bitmap is applied after its cross-checks; everybody's metadata must then be marked used; last,
//! blocks are freed that bitmaps call used and nobody would read: the empty journal, unwritten extents, inode tables without an inode
//! in use, bitmaps that were never written. The first doubt in that last step takes all of it back. One file per on-disk concept:
//!
//! | file | concept |
//! | --- | --- |
//! | `superblock` | what is there, and a geometry that passed every bound |
//! | `checksum` | CRC-16 and CRC-32C of each structure |
//! | `groups` | descriptors and the layout of groups |
//! | `bitmap`, `blocks` | bitmaps as runs; from bitmaps to map |
//! | `inode`, `tree`, `inodes` | an inode, its blocks, and all of them |
//! | `journal` | the internal journal |
//! | `empty` | files that come out empty, and files by their names |
//! | `uuid` | a new uuid for a copy |
//! | `witness` | what any change would change |
//! | `window` | memory: read-ahead within the walk's scratch |
//!
//! Never writes, never allocates during a walk; a walk never follows a name.

mod bitmap;
mod blocks;
mod checksum;
mod empty;
mod groups;
mod inode;
mod inodes;
mod journal;
pub(in crate::fs) mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod uuid;
mod window;
mod witness;

use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::earlier::EarlierFindings;
use crate::fs::{
    Identity, Kind, Reader, Still, UsedMap, Verdict, Walk, WalkTask, read_array, text, uuid_text,
};
use blocks::Metadata;
pub(super) use empty::{empty, look};
use inodes::Pass;
use journal::Journal;
use superblock::{Geometry, OFFSET_BYTES, Raw, feature};
pub(super) use uuid::{change_uuid, needs_recovery};
use window::Buffers;

/// The reader's row in the table.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Ext2, Kind::Ext3, Kind::Ext4, Kind::ExtJournal],
    probe,
    walk: Some(walk),
    witness,
};

/// Recognises by magic and bounds; a wrong checksum is still ext, and then read whole.
fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    let bytes = read_array::<{ Raw::SIZE }>(device, OFFSET_BYTES)?;
    let raw = bytes.and_then(|bytes| Raw::recognise(&bytes));
    Ok(raw.and_then(|raw| identity(&raw)))
}

/// Whether what [`probe`] finds is the copy that another group than the first one keeps.
pub(super) fn is_copy(device: &dyn ReadAt) -> Result<bool, Fault> {
    Ok(read_raw(device)?.is_some_and(|(raw, _)| raw.s_block_group_nr != 0))
}

fn identity(raw: &Raw) -> Option<Identity> {
    let block = raw.block()?;
    let used = raw.blocks().saturating_sub(raw.free_blocks());
    let written = u64::from(raw.s_wtime) | u64::from(raw.s_wtime_hi) << 32;
    Some(Identity {
        kind: raw.kind(),
        size_bytes: raw.size_bytes()?,
        block_bytes: block.bytes(),
        max_sector_bytes: block.bytes(),
        used_bytes: block.bytes_of(used),
        uuid: uuid_text(&raw.s_uuid),
        label: text(&raw.s_volume_name),
        last_mounted: text(&raw.s_last_mounted),
        last_written_s: (written != 0).then_some(written),
        superblock: raw.extent(),
        devices: 1,
    })
}

/// The superblock with its bytes; `None` for "not ext".
fn read_raw(device: &dyn ReadAt) -> Result<Option<(Raw, [u8; Raw::SIZE])>, Fault> {
    let mut bytes = [0; Raw::SIZE];
    device.read_at(OFFSET_BYTES, &mut bytes)?;
    Ok(Raw::recognise(&bytes).map(|raw| (raw, bytes)))
}

/// Reads the superblock as it is now.
fn read_superblock(device: &dyn ReadAt) -> Result<(Raw, Geometry), Fault> {
    let missing = || Fault::corrupt("superblock").at(OFFSET_BYTES, 1024);
    let (raw, bytes) = read_raw(device)?.ok_or_else(missing)?;
    Geometry::new(&raw, &bytes).map(|geometry| (raw, geometry))
}

fn walk(task: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    map.set_all_used();
    if task.identity.kind == Kind::ExtJournal {
        return Err(Fault::refused(
            "an external journal is not a filesystem of its own",
        ));
    }
    let device = walk.device();
    let (raw, mut geometry) = read_superblock(device)?;
    if task.still == Still::Glimpse {
        // While it is mounted the sum is out of date.
        geometry.free_blocks = None;
    }
    if raw.has_compat(feature::COMPAT_HAS_JOURNAL) && raw.s_journal_inum == 0 {
        return Err(Fault::refused(
            "its journal is on another device, and would be missing",
        ));
    }
    let size = geometry.size_bytes();
    let fits = size == task.identity.size_bytes
        && size <= map.size_bytes()
        && geometry.block.bytes() == task.identity.block_bytes;
    if !fits || size > device.size_bytes() {
        return Err(Fault::corrupt("size of the filesystem"));
    }
    let (keeps_owned, known) = (walk.keeps_owned(), walk.known());
    let Some(mut buffers) = Buffers::split(device, walk.scratch) else {
        return Err(Fault::refused("scratch memory"));
    };
    let journal = journal::find(&geometry, &mut buffers)?;
    if let Some(doubt) = doubt_all(&raw, &geometry, task.still, &buffers, journal.as_ref())? {
        return Ok(Verdict::whole(doubt));
    }
    if keeps_owned {
        let mut verdict = Verdict::USED;
        believe_bitmaps(&geometry, &mut buffers, map, &mut verdict)?;
        return Ok(verdict);
    }
    fill(&geometry, &mut buffers, journal.as_ref(), map, known)
}

/// Why the bitmaps cannot be believed at all, if so.
fn doubt_all(
    raw: &Raw,
    geometry: &Geometry,
    still: Still,
    buffers: &Buffers<'_>,
    journal: Option<&Journal>,
) -> Result<Option<Fault>, Fault> {
    let refuse = |what| Ok(Some(Fault::refused(what)));
    // This stays as long as it is mounted: what is read whole in the end is better read before the freeze.
    if geometry.state & superblock::STATE_ERROR != 0 {
        return refuse("the superblock records errors: run e2fsck");
    }
    if still == Still::Glimpse {
        return Ok(None);
    }
    if raw.has_incompat(feature::INCOMPAT_RECOVER) {
        return refuse("the journal needs recovery");
    }
    // Without a journal a mounted filesystem is not marked valid; frozen, it was synced (fs/ext4/super.c, ext4_setup_super).
    let may_be_invalid = still == Still::Frozen && journal.is_none();
    if geometry.state & superblock::STATE_VALID == 0 && !may_be_invalid {
        return refuse("not cleanly unmounted: run e2fsck");
    }
    match journal {
        Some(journal) => journal::doubt(geometry, buffers, journal),
        None => Ok(None),
    }
}

fn fill(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    journal: Option<&Journal>,
    map: &mut UsedMap,
    known: EarlierFindings<'_>,
) -> Result<Verdict, Fault> {
    let mut verdict = Verdict::USED;
    believe_bitmaps(geometry, buffers, map, &mut verdict)?;
    if verdict.doubt.is_none() {
        let mut doubt = free_what_holds_nothing(geometry, buffers, journal, map, known)?;
        if doubt.is_some() {
            // Back to what the bitmaps alone say.
            map.set_all_used();
            believe_bitmaps(geometry, buffers, map, &mut verdict)?;
        }
        if let Some(doubt) = doubt.take() {
            verdict.doubt(doubt);
        }
    }
    if let Some(doubt) = verdict.doubt {
        // A damaged filesystem: files that are found get their blocks, whatever a bitmap says.
        if verdict.coverage != crate::fs::Coverage::Whole {
            inodes::pass(
                geometry,
                buffers,
                map,
                Pass::Claim,
                EarlierFindings::Nothing,
            )?;
        }
        verdict.doubt(doubt);
    } else if map.is_coarse() {
        verdict.doubt(Fault::unsupported(
            "the map is coarser than a block: some free blocks are read",
        ));
    }
    Ok(verdict)
}

fn believe_bitmaps(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    map: &mut UsedMap,
    verdict: &mut Verdict,
) -> Result<(), Fault> {
    blocks::apply_bitmaps(geometry, buffers, map, verdict)?;
    blocks::mark_metadata(geometry, buffers, map, Metadata::All, verdict)
}

/// Frees journal, unwritten extents and metadata that holds nothing; a doubt means that the map must be made anew.
fn free_what_holds_nothing(
    geometry: &Geometry,
    buffers: &mut Buffers<'_>,
    journal: Option<&Journal>,
    map: &mut UsedMap,
    known: EarlierFindings<'_>,
) -> Result<Option<Fault>, Fault> {
    if let Some(journal) = journal {
        journal::free(geometry, buffers, journal, map)?;
    }
    // Before the files are asked for what is theirs: where that overlaps, it is a doubt.
    let freed = inodes::free_tables(geometry, buffers, map);
    let freed = freed.and_then(|()| blocks::free_unwritten(geometry, buffers, map));
    if let Err(fault) = freed {
        return fault.doubted().map(Some);
    }
    let mut found = inodes::pass(geometry, buffers, map, Pass::Free, known)?;
    let mut verdict = Verdict::USED;
    blocks::mark_metadata(geometry, buffers, map, Metadata::Written, &mut verdict)?;
    // An unwritten extent that overlaps a file seen before it shows only now.
    if found.doubt.is_none() && verdict.doubt.is_none() && found.unwritten_blocks > 0 {
        let known = if found.is_new {
            EarlierFindings::Nothing
        } else {
            known
        };
        found.doubt = inodes::pass(geometry, buffers, map, Pass::Claim, known)?.doubt;
    }
    let doubt = found.doubt.or(verdict.doubt);
    if doubt.is_none() {
        known.believe();
    }
    Ok(doubt)
}

fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    walk.witness_extent(identity.superblock)?;
    let device = walk.device();
    match Fault::believed(read_superblock(device))? {
        Some((_, geometry)) if geometry.size_bytes() <= device.size_bytes() => {
            witness::add(&geometry, walk)
        }
        // Read whole: the superblock is all that is known.
        _ => Ok(()),
    }
}
