//! The btrfs superblock: reading it, naming what it says, and deciding whether its features are ones this reader knows.
//!
//! Format: kernel `include/uapi/linux/btrfs_tree.h`, `struct btrfs_super_block`. The copy at 64 KiB is the only one the kernel
//! mounts by, so it is the only one believed here; the others (64 MiB, 256 GiB) are merely kept.

use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::read_array;
use crate::layout;
use crate::units::{BlockSize, Extent, to_u64, to_usize};

use super::checksum::ChecksumType;

/// Where the copies lie, in bytes; those that do not fit the device do not exist.
pub(in crate::fs) const COPIES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

pub(super) const SUPER_BYTES: usize = 4096;

/// Start of the device that the allocator never hands out: boot loaders live there.
pub(super) const RESERVED_BYTES: u64 = 1 << 20;

const MAGIC: [u8; 8] = *b"_BHRfS_M";
/// `BTRFS_SYSTEM_CHUNK_ARRAY_SIZE`, and where the array starts.
const CHUNK_ARRAY: (usize, usize) = (0x32b, 2048);

layout! {
    /// The fixed fields; `dev_*` are those of the embedded device item.
    le pub(in crate::fs) struct RawSuper: 4096 {
        0x020 fsid: [u8; 16],
        0x030 bytenr: u64,
        0x038 flags: u64,
        0x040 magic: [u8; 8],
        0x048 generation: u64,
        0x050 root: u64,
        0x058 chunk_root: u64,
        0x060 log_root: u64,
        0x078 bytes_used: u64,
        0x088 num_devices: u64,
        0x090 sectorsize: u32,
        0x094 nodesize: u32,
        0x0a0 sys_chunk_array_size: u32,
        0x0a4 chunk_root_generation: u64,
        0x0b4 compat_ro_flags: u64,
        0x0bc incompat_flags: u64,
        0x0c4 csum_type: u16,
        0x0c6 root_level: u8,
        0x0c7 chunk_root_level: u8,
        0x0c9 dev_devid: u64,
        0x0d1 dev_total_bytes: u64,
        0x0d9 dev_bytes_used: u64,
        0x10b dev_uuid: [u8; 16],
        0x12b label: [u8; 256],
        0x23b metadata_uuid: [u8; 16],
    }
}

/// Feature bits of `incompat_flags` whose meaning for the map is known: mixed backrefs, default subvolume, mixed groups, lzo, zstd,
/// big metadata, extended irefs, raid56, skinny metadata, no holes, metadata uuid, raid1c34, simple quota (adds inline owner refs and
/// a tree of its own, both inside what is walked). Not here: zoned (superblocks and write pointers elsewhere), extent tree v2,
/// raid stripe tree (logical addresses map otherwise).
const INCOMPAT_KNOWN: u64 = 0xfff | 1 << 16;
const INCOMPAT_MIXED_BACKREF: u64 = 1;
const INCOMPAT_METADATA_UUID: u64 = 1 << 10;
/// Free-space tree, its "valid" bit, verity, block group tree.
const COMPAT_RO_KNOWN: u64 = 0xf;
const COMPAT_RO_BLOCK_GROUP_TREE: u64 = 8;
/// WRITTEN, RELOC, SEEDING. Not here: ERROR, METADUMP (no data), the CHANGING family (a conversion in the middle).
const FLAGS_KNOWN: u64 = 3 | 1 << 32;

/// What the tree code needs to know; only made for a superblock whose every claim was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Size of a tree block in bytes: a power of two from 4096 to 65536.
    pub node_bytes: usize,
    /// Allocation unit.
    pub sector: BlockSize,
    /// Of tree blocks and the superblock.
    pub checksum: ChecksumType,
    /// What every tree block carries in its `fsid` field.
    pub node_uuid: [u8; 16],
    /// Last committed transaction.
    pub generation: u64,
    /// Size of the filesystem on its device in bytes.
    pub device_bytes: u64,
    /// Bytes of the device that belong to chunks.
    pub device_used_bytes: u64,
    /// Id of the device, as chunks name it.
    pub device_id: u64,
    /// Uuid of the device, as chunks name it.
    pub device_uuid: [u8; 16],
    /// Bytes in extents, counted once per logical address.
    pub used_bytes: u64,
    /// Block groups have a tree of their own.
    pub has_group_tree: bool,
}

/// A superblock as read, believed in nothing but its magic and place.
pub(super) struct Superblock {
    bytes: [u8; SUPER_BYTES],
    /// The fields.
    pub raw: RawSuper,
}

impl Superblock {
    /// Reads the first copy; `None` when there is no btrfs. Read again when its checksum is wrong: a commit may be writing it.
    pub(super) fn read(device: &dyn ReadAt) -> Result<Option<Self>, Fault> {
        for _ in 0..2 {
            match Self::read_once(device)? {
                Some(found) if found.checksum().is_none() => {}
                other => return Ok(other),
            }
        }
        Self::read_once(device)
    }

    fn read_once(device: &dyn ReadAt) -> Result<Option<Self>, Fault> {
        let Some(bytes) = read_array::<SUPER_BYTES>(device, COPIES[0])? else {
            return Ok(None);
        };
        Ok(RawSuper::parse(&bytes)
            .filter(|raw| raw.magic == MAGIC && raw.bytenr == COPIES[0])
            .map(|raw| Self { bytes, raw }))
    }

    /// The checksum, when its kind is known and it is right.
    pub(super) fn checksum(&self) -> Option<ChecksumType> {
        ChecksumType::from_type(self.raw.csum_type).filter(|checksum| checksum.holds(&self.bytes))
    }

    /// The array of system chunks: key and chunk item after each other.
    pub(super) fn chunk_array(&self) -> Result<&[u8], Fault> {
        let (start, limit) = CHUNK_ARRAY;
        usize::try_from(self.raw.sys_chunk_array_size)
            .ok()
            .filter(|size| *size <= limit)
            .and_then(|size| self.bytes.get(start..start + size))
            .ok_or_else(|| Fault::corrupt("system chunk array size"))
    }

    /// Checks every claim. Refused: several devices. Anything else unknown or wrong means "read everything".
    pub(super) fn geometry(&self) -> Result<Geometry, Fault> {
        let raw = &self.raw;
        let checksum = self.checksum().ok_or_else(|| {
            Fault::corrupt("superblock checksum").at(COPIES[0], to_u64(SUPER_BYTES))
        })?;
        if raw.num_devices > 1 {
            return Err(SEVERAL_DEVICES().in_unit("a filesystem with devices:", raw.num_devices));
        }
        self.check_features()?;
        let power = |bytes: u32| bytes.is_power_of_two() && (4096..=65_536).contains(&bytes);
        let sector = BlockSize::from_bytes(u64::from(raw.sectorsize))
            .filter(|_| power(raw.sectorsize))
            .ok_or_else(|| Fault::unsupported("sector size"))?;
        if !power(raw.nodesize) || raw.nodesize < raw.sectorsize {
            return Err(Fault::corrupt("node size"));
        }
        if raw.dev_total_bytes < RESERVED_BYTES || raw.dev_bytes_used > raw.dev_total_bytes {
            return Err(Fault::corrupt("size in the superblock"));
        }
        let metadata_uuid = raw.incompat_flags & INCOMPAT_METADATA_UUID != 0;
        Ok(Geometry {
            node_bytes: to_usize(u64::from(raw.nodesize)),
            sector,
            checksum,
            node_uuid: if metadata_uuid {
                raw.metadata_uuid
            } else {
                raw.fsid
            },
            generation: raw.generation,
            device_bytes: raw.dev_total_bytes,
            device_used_bytes: raw.dev_bytes_used,
            device_id: raw.dev_devid,
            device_uuid: raw.dev_uuid,
            used_bytes: raw.bytes_used,
            has_group_tree: raw.compat_ro_flags & COMPAT_RO_BLOCK_GROUP_TREE != 0,
        })
    }

    fn check_features(&self) -> Result<(), Fault> {
        let raw = &self.raw;
        let unknown = [
            (
                "incompat feature bits",
                raw.incompat_flags & !INCOMPAT_KNOWN,
            ),
            (
                "compat_ro feature bits",
                raw.compat_ro_flags & !COMPAT_RO_KNOWN,
            ),
            ("superblock flags", raw.flags & !FLAGS_KNOWN),
        ];
        for (what, bits) in unknown {
            if bits != 0 {
                return Err(Fault::unsupported(what).in_unit("unknown bits", bits));
            }
        }
        if raw.incompat_flags & INCOMPAT_MIXED_BACKREF == 0 {
            return Err(Fault::unsupported("back references of before 2009"));
        }
        Ok(())
    }
}

/// An image of one device of several is no filesystem.
#[allow(non_snake_case)]
pub(super) fn SEVERAL_DEVICES() -> Fault {
    Fault::refused("one device of a btrfs on several cannot be imaged alone")
}

/// The copies of the superblock that fit `size_bytes`.
pub(super) fn copies(size_bytes: u64) -> impl Iterator<Item = Extent> {
    COPIES
        .into_iter()
        .filter_map(|offset| Extent::new(offset, to_u64(SUPER_BYTES)))
        .filter(move |extent| extent.end() <= size_bytes)
}
