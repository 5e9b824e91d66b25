//! The beginning of a target, with what makes it recognisable: held in memory while all else is written, and written last. Shared by
//! `restore` and `clone`.

use crate::device::{DIRECT_ALIGN, DeviceKind, ReadAt, WriteAt};
use crate::error::{Error, Fault};
use crate::ptable::{self, Scheme, Table};
use crate::put::image::{Content, HEAD_BYTES, Head};
use crate::stream::copy;
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
pub(crate) fn last_bytes(content: &Content, length: usize) -> usize {
    let superblock = content.identity.as_ref();
    let superblock = superblock.map_or(0, |identity| identity.superblock.end());
    let last = round_up(superblock.max(LAST_WRITE_BYTES), DIRECT_ALIGN).unwrap_or(u64::MAX);
    let whole = round_up(to_u64(length), DIRECT_ALIGN).unwrap_or(u64::MAX);
    to_usize(last.min(whole))
}

/// Writes the first `length` bytes of `head` (page-aligned memory, with room up to a whole sector): first what lies behind
/// `last`, then, after a flush, the rest in one write.
pub(crate) fn write(
    head: &mut [u8],
    length: usize,
    last: usize,
    target: &mut Target,
) -> Result<(), Fault> {
    let (first, rest) = head
        .split_at_mut_checked(last)
        .ok_or_else(|| Fault::refused("length of the head"))?;
    target.write(to_u64(last), rest, length.saturating_sub(last))?;
    target.sync()?;
    target.write(0, first, last.min(length))?;
    target.sync()
}

/// Whether the medium holds the head.
pub(crate) fn is_there(head: &[u8], target: &Target) -> Result<bool, Fault> {
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

/// On a disk larger than the image's, the backup GPT goes to the disk's end and the head says so.
pub(crate) fn move_backup_table(
    head: &mut [u8],
    table: Option<&Table>,
    target: &Target,
) -> Result<Option<String>, Fault> {
    let Some(table) = table.filter(|table| table.scheme == Scheme::Gpt) else {
        return Ok(None);
    };
    let device = target.device();
    if device.kind() != DeviceKind::Block || target.is_range() {
        return Ok(None);
    }
    let pieces = ptable::gpt::relocate(&Head(head), table.sector_bytes, device.size_bytes())?;
    if pieces.is_empty() {
        return Ok(None);
    }
    let length = head.len();
    for piece in &pieces {
        let start = to_usize(piece.offset);
        let end = start.saturating_add(piece.bytes.len());
        match head.get_mut(start..end) {
            Some(part) => part.copy_from_slice(&piece.bytes),
            None if start < length => {
                return Err(Fault::unsupported("place of the partition table"));
            }
            None => device.write_at(piece.offset, &piece.bytes)?,
        }
    }
    Ok(Some(
        "the backup partition table was moved to the end of the larger disk".into(),
    ))
}
