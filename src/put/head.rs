//! The beginning of a target, with what makes it recognisable: held in memory while all else is written, and written last. Shared by
//! `restore` and `clone`.

use crate::content::{Content, HEAD_BYTES, Head};
use crate::device::{DIRECT_ALIGN, Device, DeviceKind, ReadAt, WriteAt};
use crate::error::{Error, Fault, FaultKind, Result};
use crate::ptable::{self, PartitionTable, Patch, Scheme};
use crate::put::phase::Phase;
use crate::put::rescan;
use crate::stream::copy::{self, CopyProgress};
use crate::stream::target::Target;
use crate::sys::memory::Pages;
use crate::units::{Extent, round_up, to_u64, to_usize};

/// The last write covers at least this much: boot sector, partition table and most superblocks.
const LAST_WRITE_BYTES: u64 = 64 * 1024;

/// Where every superblock and table ends that something would recognise: what `--only-changes` zeroes at first, for the rest may stay.
const RECOGNISED_BYTES: u64 = 128 * 1024;

/// How much of a target of so many bytes is zeroed before anything is written, so that nothing old is recognised.
pub(crate) fn wiped(size_bytes: u64, only_changes: bool) -> Extent {
    Extent {
        offset: 0,
        length_bytes: size_bytes.min(match only_changes {
            true => RECOGNISED_BYTES,
            false => to_u64(HEAD_BYTES),
        }),
    }
}

/// How much of a head of `length` bytes the last write takes: up to the end of the first superblock.
fn last_bytes(content: &Content, length: usize) -> usize {
    let superblock = content.identity.as_ref();
    let superblock = superblock.map_or(0, |identity| identity.superblock.end());
    let last = round_up(superblock.max(LAST_WRITE_BYTES), DIRECT_ALIGN).unwrap_or(u64::MAX);
    let whole = round_up(to_u64(length), DIRECT_ALIGN).unwrap_or(u64::MAX);
    to_usize(last.min(whole))
}

/// What is written last, when everything else is on the medium: the one place where a target becomes whole.
pub(crate) struct Last<'a> {
    /// The target, for people.
    pub name: &'a str,
    /// Page-aligned memory, with room up to a whole sector.
    pub head: &'a mut [u8],
    /// How much of it is the image's.
    pub length: usize,
    /// What it shows.
    pub content: &'a Content,
    /// Length of the image.
    pub image_bytes: u64,
    /// How far the target is.
    pub phase: &'a Phase,
    /// Whether it is read back.
    pub verify: bool,
    /// For the waiting thread.
    pub progress: &'a CopyProgress,
}

impl Last<'_> {
    /// Writes it, its superblock at the very end; gives notes. Where that fails the target shows nothing again: a disk may keep what
    /// it says it did not write.
    pub(crate) fn write(mut self, target: &mut Target) -> Result<Vec<String>> {
        self.phase.set(Phase::LAST);
        self.put(target).inspect_err(|_| {
            let whole = self.whole();
            let taken_back = copy::zero_extent(target, whole, self.progress).is_ok()
                && target.sync().is_ok()
                && target.drop_cache().is_ok();
            self.phase.set(match taken_back {
                true => Phase::WRITING,
                false => Phase::LOST,
            });
        })
    }

    fn whole(&self) -> Extent {
        Extent::at(0, to_u64(self.length))
    }

    fn put(&mut self, target: &mut Target) -> Result<Vec<String>> {
        let (name, length) = (self.name, self.length);
        let fail = |fault| Error::fault(name, fault);
        let table = self.content.table.as_ref();
        let held = self.head.get_mut(..length).unwrap_or_default();
        let moved = fit_table(held, self.content, self.image_bytes, target).map_err(fail)?;
        let is_disk = table.is_some() || moved.is_some();
        let mut notes = Vec::from_iter(moved);
        let last = last_bytes(self.content, length);
        write(self.head, length, last, target, self.phase).map_err(fail)?;
        let held = self.head.get(..length).unwrap_or_default();
        if self.verify && !is_there(held, target).map_err(fail)? {
            return Err(differs(name, self.whole()));
        }
        target.drop_cache().map_err(fail)?;
        self.phase.set(Phase::COMPLETE);
        let device = target.device();
        if is_disk && device.kind() == DeviceKind::Block && !target.is_range() {
            notes.extend(rescan::refresh(device));
        }
        Ok(notes)
    }
}

/// Writes the first `length` bytes of `head`: first what lies behind `last`, then, after a flush, the rest in one write.
fn write(
    head: &mut [u8],
    length: usize,
    last: usize,
    target: &mut Target,
    phase: &Phase,
) -> std::result::Result<(), Fault> {
    let (first, rest) = head
        .split_at_mut_checked(last)
        .ok_or_else(|| Fault::refused("length of the head"))?;
    target.write(to_u64(last), rest, length.saturating_sub(last))?;
    target.sync()?;
    phase.set(Phase::SHOWING);
    target.write(0, first, last.min(length))?;
    target.sync()
}

/// Whether the medium holds the head.
fn is_there(head: &[u8], target: &Target) -> std::result::Result<bool, Fault> {
    target.drop_cache()?;
    let mut found = Pages::new(copy::BUFFER_BYTES).map_err(|e| Fault::io("mmap", e))?;
    let mut offset = 0u64;
    for part in head.chunks(copy::BUFFER_BYTES) {
        let length = part.len();
        target.read_back(offset, &mut found, length)?;
        if found.get(..length) != Some(part) {
            return Ok(false);
        }
        offset = offset.saturating_add(to_u64(length));
    }
    Ok(true)
}

/// The error for a medium that gives back something else.
pub(crate) fn differs(name: &str, place: Extent) -> Error {
    Error::failed(format_args!(
        "{name}: what was read back differs from the image in the {} bytes from {:#x}: the medium does not keep what is written to it",
        place.length_bytes, place.offset,
    ))
}

/// On a disk larger than the image's, the backup GPT goes to the disk's end and the head says so. Where the image's first copy is damaged
/// both come from the one at its end, which nobody would look for in the middle of the disk.
fn fit_table(
    head: &mut [u8],
    content: &Content,
    image_bytes: u64,
    target: &Target,
) -> std::result::Result<Option<String>, Fault> {
    let device = target.device();
    let disk_bytes = device.size_bytes();
    if device.kind() != DeviceKind::Block || target.is_range() {
        return Ok(None);
    }
    let gpt = |table: &&PartitionTable| table.scheme == Scheme::Gpt;
    let (patches, done) = match content.table.as_ref().filter(gpt) {
        Some(table) => (
            ptable::gpt::relocate(&Head(head), table.sector_bytes, disk_bytes)?,
            "the backup partition table was moved to the end of the larger disk",
        ),
        None if content.damaged.is_some() && image_bytes < disk_bytes => {
            let sizes = [image_bytes, disk_bytes];
            let rebuilt = ptable::gpt::rebuild(device, &Head(head), device.sector_bytes(), sizes);
            let patches = match rebuilt {
                Err(fault) if fault.kind() == FaultKind::Io => return Err(fault),
                // No copy is good: the target has what the image has.
                rebuilt => rebuilt.unwrap_or_default(),
            };
            (
                patches,
                "the image's first partition table is damaged: both copies were written anew from the one at its end",
            )
        }
        None => return Ok(None),
    };
    if patches.is_empty() {
        return Ok(None);
    }
    put_patches(&patches, head, device)?;
    Ok(Some(done.into()))
}

/// Pieces of a table: into the head what lies in it, onto the device what lies behind it.
pub(crate) fn put_patches(
    patches: &[Patch],
    head: &mut [u8],
    device: &Device,
) -> std::result::Result<(), Fault> {
    let length = head.len();
    for patch in patches {
        let start = to_usize(patch.offset);
        let end = start.saturating_add(patch.bytes.len());
        match head.get_mut(start..end) {
            Some(part) => part.copy_from_slice(&patch.bytes),
            None if start < length => {
                return Err(Fault::unsupported("place of the partition table"));
            }
            None => device.write_at(patch.offset, &patch.bytes)?,
        }
    }
    Ok(())
}
