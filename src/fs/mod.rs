//! Filesystems as bytes: recognise one (probe), and say which of its blocks are used (walk).
//!
//! Bytes in, map out: nothing here opens a file, starts a thread, prints, or allocates while a walk runs. Each reader is one
//! file (or folder) with three functions of the same shape, listed in one table per question below. Doubt about a block always
//! means *used*: a reader marks free only what it can prove free, and says in its [`Verdict`] how far the proof went.

pub mod earlier;
pub mod files;
pub(crate) mod growth;
pub mod identity;
pub(crate) mod least;

mod btrfs;
mod erofs;
mod ext;
mod f2fs;
mod fat;
mod squashfs;
mod swap;
#[cfg(test)]
mod testing;
mod whole;
mod xfs;

use heapless::String;

use crate::device::ReadAt;
use crate::error::{Fault, FaultKind};
use crate::features;
use crate::layout::Structure;
pub use crate::map::UsedMap;
use crate::units::{Extent, to_u64, to_usize};
use earlier::EarlierFindings;

/// Memory a walk may use, in bytes: the largest block of any reader several times over.
pub const SCRATCH_BYTES: usize = 768 * 1024;

/// What a probe recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    F2fs,
    Fat12,
    Fat16,
    Fat32,
    Exfat,
    Squashfs,
    Erofs,
    Jfs,
    Reiserfs,
    Nilfs2,
    Swap,
    /// A LUKS container: read whole.
    Luks,
    /// An LVM physical volume: read whole.
    Lvm,
    /// A member of an md array: read whole.
    MdMember,
    /// An external journal of an ext filesystem: refused as a lone image.
    ExtJournal,
}

impl Kind {
    /// The name the kernel mounts it by (or the field's name for what is not mounted); stable in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::F2fs => "f2fs",
            Self::Fat12 | Self::Fat16 | Self::Fat32 => "vfat",
            Self::Exfat => "exfat",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Jfs => "jfs",
            Self::Reiserfs => "reiserfs",
            Self::Nilfs2 => "nilfs2",
            Self::Swap => "swap",
            Self::Luks => "luks",
            Self::Lvm => "lvm",
            Self::MdMember => "md-member",
            Self::ExtJournal => "jbd",
        }
    }
}

/// What a filesystem's superblock says about it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Which filesystem.
    pub kind: Kind,
    /// Size in bytes that the superblock states: a raw image must reach it. 0 where the format does not say.
    pub size_bytes: u64,
    /// Allocation block in bytes (cluster for FAT and bigalloc stays apart: this is the map's smallest unit).
    pub block_bytes: u32,
    /// Largest sector of a device that it can be mounted from, in bytes.
    pub max_sector_bytes: u32,
    /// Used bytes as the superblock counts them, where it does.
    pub used_bytes: Option<u64>,
    /// UUID (or serial number) as the field prints it; empty where there is none.
    pub uuid: String<40>,
    /// Label; non-printable bytes replaced; empty where there is none.
    pub label: String<256>,
    /// Where it was last mounted, if the superblock keeps that.
    pub last_mounted: String<64>,
    /// Seconds since the epoch of the last write, if the superblock keeps that.
    pub last_written_s: Option<u64>,
    /// The extent whose first write makes a target recognisable: `restore` writes it last.
    pub superblock: Extent,
    /// Number of devices the filesystem spans (btrfs), 1 elsewhere.
    pub devices: u32,
}

impl Identity {
    /// Nothing but kind and superblock, and what holds for most; the probes fill in what their format keeps.
    const fn new(kind: Kind, superblock_offset: u64, superblock_bytes: u64) -> Self {
        Self {
            kind,
            size_bytes: 0,
            block_bytes: 4096,
            max_sector_bytes: 4096,
            used_bytes: None,
            uuid: String::new(),
            label: String::new(),
            last_mounted: String::new(),
            last_written_s: None,
            superblock: Extent::at(superblock_offset, superblock_bytes),
            devices: 1,
        }
    }
}

/// Why the bytes below a walk hold still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Still {
    /// Mounted, and frozen by us: clean although some filesystems (XFS, f2fs) still show a log.
    Frozen,
    /// Not mounted, and held open O_EXCL (or an image file).
    Unmounted,
    /// The superblock of the mount is read-only, or we remounted it so.
    ReadOnly,
    /// Mounted and moving, looked at for a hint: what a walk says is checked against a walk of what is frozen, and never believed
    /// before. So journals and logs, which are never empty then, are no reason to doubt.
    Glimpse,
    /// It may change at any moment: no map is believed.
    Moving,
}

/// How much of the map was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Everything: blocks that nothing owns come out as zeros.
    Used,
    /// Some groups or kinds of blocks were doubtful and count as used.
    Partial,
    /// Everything is read.
    Whole,
}

impl Coverage {
    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Partial => "partial",
            Self::Whole => "whole",
        }
    }
}

/// The outcome of a walk. The map itself is in the [`UsedMap`] that was passed.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// How far the proof went.
    pub coverage: Coverage,
    /// The first doubt, where `coverage` is not `Used`: printed, so that a user knows why everything was read.
    pub doubt: Option<Fault>,
}

impl Verdict {
    /// Everything proven.
    pub const USED: Self = Self {
        coverage: Coverage::Used,
        doubt: None,
    };

    /// Read everything, because of `doubt`.
    pub const fn whole(doubt: Fault) -> Self {
        Self {
            coverage: Coverage::Whole,
            doubt: Some(doubt),
        }
    }

    /// Records a doubt about a part; the first one is kept.
    pub fn doubt(&mut self, fault: Fault) {
        if self.coverage == Coverage::Used {
            self.coverage = Coverage::Partial;
        }
        if self.doubt.is_none() {
            self.doubt = Some(fault);
        }
    }
}

/// A digest over the blocks that any write to the filesystem changes (superblock, journal superblock, maps), taken right after the
/// freeze and again before the thaw: a difference means that somebody wrote in between. Order of reading does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness(u64);

impl Witness {
    /// Adds `bytes` read at `offset`.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) {
        // Two independent 32-bit remainders, tied to the place; the sum makes the order irrelevant.
        let low = u64::from(crate::crc::crc32(0, bytes));
        let high = u64::from(crate::crc::crc32c(bytes));
        let mixed = (low | high << 32) ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = self
            .0
            .wrapping_add(mixed.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (mixed >> 29));
    }
}

/// What a walk works with: the device, fixed scratch memory and the witness.
pub struct Walk<'a> {
    device: &'a dyn ReadAt,
    /// Scratch memory; `SCRATCH_BYTES` long, contents arbitrary.
    pub scratch: &'a mut [u8],
    witness: Witness,
    keeps_owned: bool,
    known: EarlierFindings<'a>,
}

impl<'a> Walk<'a> {
    /// `scratch` must be [`SCRATCH_BYTES`] long, allocated before the freeze.
    pub fn new(device: &'a dyn ReadAt, scratch: &'a mut [u8]) -> Self {
        Self {
            device,
            scratch,
            witness: Witness::default(),
            keeps_owned: false,
            known: EarlierFindings::Nothing,
        }
    }

    /// With what an earlier walk found.
    #[must_use]
    pub fn knowing(mut self, known: EarlierFindings<'a>) -> Self {
        self.known = known;
        self
    }

    /// See [`Self::knowing`].
    pub fn known(&self) -> EarlierFindings<'a> {
        self.known
    }

    /// Blocks that have an owner count as used although their content means nothing (an empty journal, unused inode tables):
    /// for who must know where stale bytes may stay, rather than what has to be read.
    #[must_use]
    pub fn keeping_owned(mut self) -> Self {
        self.keeps_owned = true;
        self
    }

    /// See [`Self::keeping_owned`].
    pub fn keeps_owned(&self) -> bool {
        self.keeps_owned
    }

    /// The device.
    pub fn device(&self) -> &'a dyn ReadAt {
        self.device
    }

    /// Reads without witnessing (inodes, extents: they cannot change without a superblock or map changing).
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.device.read_at(offset, buffer)
    }

    /// Reads and adds the bytes to the witness.
    pub fn read_witnessed(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.device.read_at(offset, buffer)?;
        self.witness.add(offset, buffer);
        Ok(())
    }

    /// Adds a whole extent to the witness, through the scratch memory.
    pub fn witness_extent(&mut self, extent: Extent) -> Result<(), Fault> {
        let mut offset = extent.offset;
        while offset < extent.end() {
            let piece = (extent.end() - offset).min(to_u64(self.scratch.len()));
            let Some(buffer) = self.scratch.get_mut(..to_usize(piece)) else {
                return Err(Fault::refused("scratch memory"));
            };
            self.device.read_at(offset, buffer)?;
            self.witness.add(offset, buffer);
            offset += piece;
        }
        Ok(())
    }

    /// What was witnessed.
    pub fn witness(&self) -> Witness {
        self.witness
    }
}

/// Which filesystem is walked, and why it holds still.
#[derive(Clone, Copy)]
pub struct WalkTask<'a> {
    /// As a probe gave it.
    pub identity: &'a Identity,
    /// What holds it.
    pub still: Still,
}

/// One reader: a filesystem (or a few that share a format).
pub struct Reader {
    /// The kinds it answers for.
    pub kinds: &'static [Kind],
    /// Recognises: `None` for "not mine"; `Err` only when the device cannot be read.
    pub probe: fn(&dyn ReadAt) -> Result<Option<Identity>, Fault>,
    /// Fills the map; `None` for a format that is only recognised and then read whole.
    pub walk: Option<WalkFn>,
    /// Reads what any write changes through [`Walk::read_witnessed`] or [`Walk::witness_extent`].
    pub witness: WitnessFn,
}

/// See [`walk`].
pub type WalkFn = fn(WalkTask<'_>, &mut Walk<'_>, &mut UsedMap) -> Result<Verdict, Fault>;
/// See [`witness`].
pub type WitnessFn = fn(&Identity, &mut Walk<'_>) -> Result<(), Fault>;

/// The readers, most telling magic first: what lies above (LUKS, LVM, md) before what may still stand below it.
/// Formats without a checksum come after those that have one; FAT comes last: its boot sector has no magic, and other filesystems leave the first sector to boot loaders.
const READERS: &[Reader] = &[
    whole::LUKS,
    whole::LVM,
    whole::MD,
    whole::EXFAT,
    squashfs::READER,
    erofs::READER,
    swap::READER,
    xfs::READER,
    f2fs::READER,
    btrfs::READER,
    ext::READER,
    whole::JFS,
    whole::REISERFS,
    whole::NILFS2,
    fat::READER,
];

/// Recognises what a device or image holds; `None` when nothing known is there.
pub fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    for reader in READERS {
        if let Some(identity) = (reader.probe)(device)? {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// Whether the superblock that stands there is a copy, kept in the midst of a filesystem.
pub(crate) fn is_copy(device: &dyn ReadAt) -> Result<bool, Fault> {
    ext::is_copy(device)
}

/// A witness for a format in which no write leaves the superblock as it is.
fn witness_superblock(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    walk.witness_extent(identity.superblock)
}

fn reader_of(kind: Kind) -> Option<&'static Reader> {
    READERS.iter().find(|reader| reader.kinds.contains(&kind))
}

/// Fills `map` (which starts with everything used) for the filesystem that `identity` describes.
///
/// Called in the frozen window, after the freeze: allocates nothing. An I/O error is an error; anything doubtful about the
/// filesystem's own bytes is a verdict (more blocks used), never an error, except [`Fault::refused`] for what cannot be imaged
/// alone (external journal or log, several devices, realtime section).
pub fn walk(
    identity: &Identity,
    still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    if still == Still::Moving {
        return Ok(Verdict::whole(Fault::refused(
            "the source is not held still",
        )));
    }
    match reader_of(identity.kind).and_then(|reader| reader.walk) {
        Some(function) => match function(WalkTask { identity, still }, walk, map) {
            // What breaks its format, or is of none that is known, is read whole.
            Err(fault) if matches!(fault.kind(), FaultKind::Corrupt | FaultKind::Unsupported) => {
                map.set_all_used();
                Ok(Verdict::whole(fault))
            }
            outcome => outcome,
        },
        None => {
            let missed = features::without(identity.kind.name());
            let why = missed.unwrap_or("no used-block map for this format");
            Ok(Verdict::whole(Fault::unsupported(why)))
        }
    }
}

/// What is known to live behind a filesystem that ends at `end`, on the same device: a hash tree, an overlay. `None`: nothing does.
pub fn behind(device: &dyn ReadAt, end: u64) -> Result<Option<&'static str>, Fault> {
    squashfs::tail(device, end)
}

/// Reads again what a write would have changed (superblock, journal superblock, map blocks) into the witness of `walk`.
/// Called right after [`walk`] with a fresh [`Walk`], and again before the thaw; both must give the same [`Witness`].
pub fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<Witness, Fault> {
    let reader = reader_of(identity.kind);
    reader.map_or(witness_superblock as WitnessFn, |reader| reader.witness)(identity, walk)?;
    Ok(walk.witness())
}

/// Fills `bytes` from `offset` on; false past the end of the device, which a probe takes for "not mine".
fn fill(device: &dyn ReadAt, offset: u64, bytes: &mut [u8]) -> Result<bool, Fault> {
    let inside = offset
        .checked_add(to_u64(bytes.len()))
        .is_some_and(|end| end <= device.size_bytes());
    if inside {
        device.read_at(offset, bytes)?;
    }
    Ok(inside)
}

/// `N` bytes at `offset`; `None` past the end of the device.
fn read_array<const N: usize>(device: &dyn ReadAt, offset: u64) -> Result<Option<[u8; N]>, Fault> {
    let mut bytes = [0; N];
    Ok(fill(device, offset, &mut bytes)?.then_some(bytes))
}

/// The structure at `offset`; `None` past the end of the device.
fn read<T: Structure>(device: &dyn ReadAt, offset: u64) -> Result<Option<T>, Fault> {
    const { assert!(T::BYTES <= 4096) };
    let mut page = [0; 4096];
    let bytes = page.get_mut(..T::BYTES).unwrap_or_default();
    let inside = fill(device, offset, bytes)?;
    Ok(T::of(bytes).filter(|_| inside))
}

/// Bytes from a disk as a label: up to the first NUL, control and non-UTF-8 bytes as `?`, cut to fit.
pub fn text<const N: usize>(bytes: &[u8]) -> String<N> {
    let mut out = String::new();
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let bytes = bytes.get(..end).unwrap_or_default();
    for chunk in bytes.utf8_chunks() {
        let bad = if chunk.invalid().is_empty() { "" } else { "?" };
        for letter in chunk.valid().chars().chain(bad.chars()) {
            let letter = if letter.is_control() { '?' } else { letter };
            if out.push(letter).is_err() {
                return out;
            }
        }
    }
    out
}

/// 16 bytes as a UUID in the usual grouping; empty when all are zero.
pub fn uuid_text(uuid: &[u8; 16]) -> String<40> {
    let mut out = String::new();
    if uuid.iter().all(|byte| *byte == 0) {
        return out;
    }
    for (index, byte) in uuid.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) {
            "-"
        } else {
            ""
        };
        let _ = core::fmt::Write::write_fmt(&mut out, format_args!("{dash}{byte:02x}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_printable() {
        assert_eq!(text::<8>(b"root\0junk").as_str(), "root");
        assert_eq!(text::<8>(b"a\nb\xff").as_str(), "a?b?");
        assert_eq!(text::<3>(b"abcdef").as_str(), "abc");
    }

    #[test]
    fn the_witness_sees_a_changed_byte_and_a_moved_block_but_not_the_order() {
        let digest = |parts: &[(u64, &[u8])]| {
            let mut witness = Witness::default();
            for (offset, bytes) in parts {
                witness.add(*offset, bytes);
            }
            witness
        };
        let base = digest(&[(0, b"aaaa"), (8, b"bbbb")]);
        assert_eq!(base, digest(&[(8, b"bbbb"), (0, b"aaaa")]));
        assert_ne!(base, digest(&[(0, b"aaab"), (8, b"bbbb")]));
        assert_ne!(base, digest(&[(0, b"bbbb"), (8, b"aaaa")]));
    }
}
