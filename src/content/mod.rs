//! What stands on a device or in an image, and the one rule for what is an image: `dump` asks it of the source before the freeze,
//! `verify`, `restore`, `push` and `artifact` of the image. What the one accepts the others accept, because it is the same function
//! over the same bytes: the beginning, the end, and the length.
//!
//! Bytes in, words out: nothing here opens anything.

mod foreign;
mod format;

use self::foreign::packed_twice;
pub(crate) use self::foreign::{ON_DEVICES_BYTES, foreign, on_device};
pub(crate) use self::format::{FRAMES_MAGIC, GZIP_MAGIC};
pub use self::format::{Format, LOOK_BYTES};
use crate::device::{Range, ReadAt};
use crate::error::{Fault, FaultKind};
use crate::fs::{self, Identity, Kind};
use crate::ptable::{self, Partition, PartitionTable, Scheme};
use crate::units::{Extent, round_up, to_u64};

/// The name of what shows nothing that is known.
pub(crate) const UNKNOWN: &str = "unknown";

/// How much of the beginning is looked at, in bytes: every first superblock and partition table floe knows lies in it.
pub(crate) const HEAD_BYTES: usize = (1 << 20) + (128 << 10);

/// How much of the end is looked at, in bytes: a backup GPT's header, the signature of a RAUC bundle.
pub(crate) const TAIL_BYTES: usize = 8 * 1024;

/// What stands at the beginning of a device or image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// The filesystem (or swap, LUKS …).
    pub identity: Option<Identity>,
    /// The partition table.
    pub table: Option<PartitionTable>,
    /// Why the partition table that is announced cannot be read; with no filesystem there instead.
    pub damaged: Option<Fault>,
    /// An image is at least so long in bytes, although nothing says how long the whole is ([`fs::least`]); 0 where nothing does.
    pub header_says: u64,
}

/// Why bytes behind the beginning of an image are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeenAt {
    /// The first filesystem or table ends there.
    End,
    /// It is the middle of a file, which may be one image twice.
    Middle,
    /// A member of a gzip file begins there; in the file, at so many bytes.
    Member(u64),
    /// A partition of so many bytes begins there.
    Partition(u64),
}

/// What stands at a place where an image that was appended, or a partition, would begin.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Why it is looked at.
    pub place: SeenAt,
    /// Where it is in the image.
    pub offset: u64,
    /// The image is in a gzip file.
    pub is_packed: bool,
    /// At most [`SEEN_BYTES`] from there.
    pub bytes: Vec<u8>,
}

/// How much may lie behind the second one, in bytes: partitions end on a MiB.
const LOOSE_BYTES: u64 = 1 << 20;

/// How much of such a place is looked at, in bytes: every superblock and table lies in it.
pub(crate) const SEEN_BYTES: usize = 72 * 1024;

impl Content {
    /// Recognises; a table counts only where no filesystem stands, except GPT, which no filesystem looks like. A filesystem
    /// outweighs what is left of a table.
    pub(crate) fn probe(bytes: &dyn ReadAt) -> Result<Self, Fault> {
        let (table, damaged) = match table_of(bytes) {
            Ok(table) => (table, None),
            Err(fault) if fault.kind() == FaultKind::Io => return Err(fault),
            Err(fault) => (None, Some(fault)),
        };
        if table
            .as_ref()
            .is_some_and(|table| table.scheme == Scheme::Gpt)
        {
            return Ok(Self {
                table,
                ..Self::default()
            });
        }
        let identity = fs::probe(bytes)?;
        let mut header_says = identity
            .as_ref()
            .map_or(0, |found| fs::least::of(bytes, found));
        // One of the two is left from what was there before, and who knows which.
        if let Some(table) = table.as_ref().filter(|table| !table.partitions.is_empty()) {
            header_says = header_says.min(table.end_bytes);
        }
        let table = table.filter(|_| identity.is_none());
        let damaged = damaged.filter(|_| identity.is_none());
        Ok(Self {
            identity,
            table,
            damaged,
            header_says,
        })
    }

    /// Nothing known is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.identity.is_none() && self.table.is_none() && self.damaged.is_none()
    }

    /// The name of what is there.
    pub(crate) fn name(&self) -> &'static str {
        match (&self.identity, &self.table) {
            (Some(identity), _) => identity.kind.name(),
            (None, Some(table)) => table.scheme.name(),
            // Only a GPT can be announced and not be there.
            (None, None) if self.damaged.is_some() => "gpt",
            (None, None) => UNKNOWN,
        }
    }

    /// How long it is, as far as that is stated, in bytes: an image is at least so long.
    pub(crate) fn least_bytes(&self) -> u64 {
        let filesystem = self.identity.as_ref().map_or(0, |found| found.size_bytes);
        let table = self.table.as_ref().map_or(0, |table| table.end_bytes);
        filesystem.max(table)
    }

    /// Where in an image of `size_bytes` (where that is known) another one would begin that was appended to it.
    pub(crate) fn places(&self, size_bytes: Option<u64>) -> Vec<(SeenAt, u64)> {
        // What packs a read-only filesystem fills its last block.
        let end = match self.is_read_only() {
            true => round_up(self.least_bytes(), 4096).unwrap_or(0),
            false => self.least_bytes(),
        };
        let middle = size_bytes.filter(|size| size % 2 == 0 && size / 2 > end);
        let middle = middle.map(|size| (SeenAt::Middle, size / 2));
        let end = (end > 0).then_some((SeenAt::End, end));
        let parts = self.partitions().iter();
        let parts = parts.map(|part| {
            let place = SeenAt::Partition(part.extent.length_bytes);
            (place, part.extent.offset)
        });
        end.into_iter().chain(middle).chain(parts).collect()
    }

    /// Those whose filesystems must fit them: of a table in doubt a disk is taken whole.
    pub(crate) fn partitions(&self) -> &[Partition] {
        match &self.table {
            Some(table) if table.doubt.is_none() => &table.partitions,
            _ => &[],
        }
    }

    /// Nothing that says what it is: a table without partitions is what any bytes become by their last two.
    pub(crate) fn says_nothing(&self) -> bool {
        let is_bare =
            |table: &PartitionTable| table.scheme == Scheme::Mbr && table.partitions.is_empty();
        self.identity.is_none() && self.damaged.is_none() && self.table.as_ref().is_none_or(is_bare)
    }

    /// Whether the rule needs no more than the beginning and the length.
    pub(crate) fn is_told_by_head(&self) -> bool {
        self.partitions().is_empty() && self.damaged.is_none() && !self.is_read_only()
    }

    fn is_read_only(&self) -> bool {
        let kind = self.identity.as_ref().map(|found| found.kind);
        matches!(kind, Some(Kind::Squashfs | Kind::Erofs))
    }

    fn is_same(&self, other: &Self) -> bool {
        let (Some(one), Some(other)) = (&self.identity, &other.identity) else {
            let id = |content: &Self| content.table.as_ref().map(|table| table.disk_id.clone());
            return id(self).is_some() && id(self) == id(other);
        };
        (one.kind, one.size_bytes, &one.uuid) == (other.kind, other.size_bytes, &other.uuid)
            && !one.uuid.is_empty()
    }

    /// Whether another image was appended to this one of `size_bytes` in all: says so, and how to part them. Many things lie behind a
    /// filesystem rightly, so only what states a length that fits the rest counts, and not what partitions hold as a rule: an
    /// overlay behind a read-only filesystem, what a deleted partition held, a superblock's copy of a filesystem that was larger.
    pub(crate) fn second(&self, size_bytes: u64, seen: &Seen) -> Option<String> {
        if matches!(seen.place, SeenAt::Partition(_)) {
            return None;
        }
        let room = size_bytes.checked_sub(seen.offset)?;
        let found = Self::probe(&Head(&seen.bytes)).ok()?;
        if matches!(seen.place, SeenAt::Member(_))
            && seen.offset == self.least_bytes()
            && found.is_empty()
            && seen.bytes.iter().any(|byte| *byte != 0)
        {
            return Some("holds another image behind the first: was it appended with >>?".into());
        }
        if !(1..=room).contains(&found.least_bytes()) || fs::is_copy(&Head(&seen.bytes)).ok()? {
            return None;
        }
        // A link in a chain of logical partitions looks like a table, but has no identity.
        let is_disk = found
            .table
            .as_ref()
            .is_some_and(|table| table.disk_id != "00000000");
        let is_mbr = self
            .table
            .as_ref()
            .is_some_and(|table| table.scheme == Scheme::Mbr);
        // What was appended ends with the file, give or take what a partition has behind its filesystem.
        let is_last = is_disk || room - found.least_bytes() < LOOSE_BYTES;
        let counts = match seen.place {
            SeenAt::Member(_) => true,
            SeenAt::Middle => self.is_same(&found),
            SeenAt::Partition(_) => false,
            SeenAt::End if !is_last => false,
            SeenAt::End if is_mbr => is_disk,
            SeenAt::End if self.is_read_only() => is_disk || found.is_read_only(),
            SeenAt::End => is_disk || found.table.is_none(),
        };
        let (cut, first, second) = match (seen.place, seen.is_packed) {
            (SeenAt::Member(place), _) => (place, "", " FILE"),
            (_, true) => (seen.offset, "gzip -dc FILE | ", ""),
            (_, false) => (seen.offset, "", " FILE"),
        };
        counts.then(|| {
            format!(
                "is two images, one behind the other, as >> makes it: {}, and {} from byte {} on; '{first}head -c {cut}{second}' gives the first, '{first}tail -c +{}{second}' the second",
                self.name(),
                found.name(),
                seen.offset,
                cut.saturating_add(1)
            )
        })
    }

    /// The rule, as far as the beginning tells: something known is there.
    pub(crate) fn judge_head(&self, head: &[u8]) -> Result<(), String> {
        if !self.says_nothing() {
            return Ok(());
        }
        Err(match foreign(head).or_else(|| packed_twice(head)) {
            Some(what) => format!("is {what}"),
            None if self.table.is_some() => {
                "is no image: it begins with a partition table without partitions, and no filesystem that is known"
                    .into()
            }
            None => {
                "is no image: it begins with no filesystem and no partition table that is known"
                    .into()
            }
        })
    }

    /// What is wrong with `size_bytes` of it where they are too few.
    pub(crate) fn cut_off(&self, size_bytes: u64) -> Option<String> {
        let least = self.least_bytes().max(self.header_says);
        let what = match self.identity.as_ref().map(|found| found.kind) {
            Some(Kind::Luks) => "header",
            Some(_) => "superblock",
            None => "partition table",
        };
        (size_bytes < least).then(|| {
            format!(
                "ends at {size_bytes} bytes, but its {} {what} says {least}: it was cut off",
                self.name()
            )
        })
    }

    /// The rule: whether `size_bytes` that begin so and end with `tail` are whole. Says what is wrong.
    pub(crate) fn judge(&self, head: &[u8], size_bytes: u64, tail: &[u8]) -> Result<(), String> {
        self.judge_head(head)?;
        if let Some(what) = self.cut_off(size_bytes) {
            return Err(what);
        }
        if let Some(fault) = &self.damaged
            && !ptable::gpt::ends_with_backup(tail, size_bytes)
        {
            return Err(format!(
                "its partition table is damaged ({fault}), and its end holds no good copy"
            ));
        }
        let is_bundle = self.identity.as_ref().is_some_and(|found| {
            found.kind == Kind::Squashfs && is_signed(tail, size_bytes, found.size_bytes)
        });
        if is_bundle {
            return Err(
                "is a RAUC bundle, not an image: rauc installs it (rauc install FILE)".into(),
            );
        }
        Ok(())
    }
}

/// The table of an image, whose sector size nobody states. A GPT stands where its sectors put it; an MBR counts in 512 bytes unless
/// something known begins at more of its partitions when it counts in 4096.
pub(crate) fn table_of(image: &dyn ReadAt) -> Result<Option<PartitionTable>, Fault> {
    let table = ptable::read_image(image)?;
    let Some(small) = table.as_ref().filter(|table| table.scheme == Scheme::Mbr) else {
        return Ok(table);
    };
    let is_known = |part: &&Partition| {
        let range = Range {
            device: image,
            extent: part.extent,
        };
        fs::probe(&range).is_ok_and(|found| found.is_some())
    };
    let known = |table: &PartitionTable| table.partitions.iter().filter(is_known).count();
    let large = ptable::read(image, 4096)?;
    let is_large = large
        .as_ref()
        .is_some_and(|large| known(large) > known(small));
    Ok(if is_large { large } else { table })
}

/// A filesystem that says more than its partition has is not one that comes back: says so.
pub(crate) fn too_large(found: &Identity, extent: Extent) -> Option<String> {
    (found.size_bytes > extent.length_bytes).then(|| {
        format!(
            "the {} in the partition at {:#x} says {} bytes, the partition has {}",
            found.kind.name(),
            extent.offset,
            found.size_bytes,
            extent.length_bytes
        )
    })
}

impl Seen {
    /// The same of what was seen where a partition begins.
    pub(crate) fn too_large(&self) -> Option<String> {
        let SeenAt::Partition(length_bytes) = self.place else {
            return None;
        };
        // A damaged one is read whole.
        let found = fs::probe(&Head(&self.bytes)).ok()??;
        let extent = Extent::at(self.offset, length_bytes);
        too_large(&found, extent)
    }
}

/// Whether bytes that hold a squashfs of `used` bytes end as a RAUC bundle does: a CMS signature (DER: a SEQUENCE) and its length
/// in eight bytes, big-endian (docs/reference.rst of RAUC, "Bundle Formats").
fn is_signed(tail: &[u8], size_bytes: u64, used: u64) -> bool {
    let Some((rest, last)) = tail.split_last_chunk::<8>() else {
        return false;
    };
    let length = u64::from_be_bytes(*last);
    let room = size_bytes.saturating_sub(used).saturating_sub(8);
    let begin = rest.len().checked_sub(crate::units::to_usize(length));
    let der = begin.and_then(|begin| rest.get(begin..begin + 2));
    (64..=room).contains(&length) && matches!(der, Some([0x30, 0x80..=0x84]))
}

/// The beginning of something as if it were whole: zeros follow, without an end.
pub(crate) struct Head<'a>(pub &'a [u8]);

impl ReadAt for Head<'_> {
    fn size_bytes(&self) -> u64 {
        i64::MAX.unsigned_abs()
    }

    fn known_bytes(&self) -> u64 {
        to_u64(self.0.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.fill(0);
        let held = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..))
            .unwrap_or_default();
        for (to, from) in buffer.iter_mut().zip(held) {
            *to = *from;
        }
        Ok(())
    }
}

/// What a device's image would begin with, and the rule's word on it.
pub(crate) struct Judged {
    /// What is there, as whoever reads the image sees it.
    pub content: Content,
    /// Whether an image of it is taken back.
    pub word: Result<(), String>,
    /// It looks like two images, one behind the other ([`Content::second`]).
    pub twofold: Option<String>,
}

/// The rule, asked of a whole device.
pub(crate) fn of_device(device: &dyn ReadAt) -> Result<Judged, Fault> {
    let size = device.size_bytes();
    let mut head = vec![0; crate::units::to_usize(size.min(to_u64(HEAD_BYTES)))];
    device.read_at(0, &mut head)?;
    let mut tail = vec![0; crate::units::to_usize(size.min(to_u64(TAIL_BYTES)))];
    device.read_at(size.saturating_sub(to_u64(tail.len())), &mut tail)?;
    let content = Content::probe(&Head(&head))?;
    let mut word = content.judge(&head, size, &tail);
    let mut twofold = None;
    for (place, offset) in content.places(Some(size)) {
        let length = size.saturating_sub(offset).min(to_u64(SEEN_BYTES));
        let mut bytes = vec![0; crate::units::to_usize(length)];
        if length > 0 {
            device.read_at(offset, &mut bytes)?;
        }
        let seen = Seen {
            place,
            offset,
            is_packed: false,
            bytes,
        };
        twofold = twofold.or_else(|| content.second(size, &seen));
        word = word.and_then(|()| seen.too_large().map_or(Ok(()), Err));
    }
    Ok(Judged {
        content,
        word,
        twofold,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_known_is_no_image_and_zeros_neither() {
        for bytes in [vec![0u8; 4096], vec![0xa5u8; 4096]] {
            let judged = of_device(&bytes).unwrap();
            assert!(judged.word.unwrap_err().contains("is no image"));
        }
        for (first, word) in [
            (&b"\x1f\x8b\x08\0"[..], "twice"),
            (b"PK\x03\x04", ".zip inside"),
        ] {
            let bytes = [first, &[0; 4096]].concat();
            let judged = of_device(&bytes).unwrap();
            assert!(judged.word.unwrap_err().contains(word));
        }
    }

    #[test]
    fn a_squashfs_with_a_signature_behind_it_is_a_bundle() {
        let mut tail = vec![0u8; 4096];
        tail[1000..1002].copy_from_slice(&[0x30, 0x82]);
        let length = u64::try_from(4096 - 8 - 1000).unwrap();
        tail[4088..].copy_from_slice(&length.to_be_bytes());
        assert!(is_signed(&tail, 100_000, 90_000));
        assert!(!is_signed(&tail, 100_000, 99_000));
        tail[1000] = 0;
        assert!(!is_signed(&tail, 100_000, 90_000));
        assert!(!is_signed(&[], 100_000, 90_000));
    }
}
