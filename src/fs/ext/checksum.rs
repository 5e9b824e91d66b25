//! The checksums of the format: which are in use, their seed, and one function for each structure that carries one.
//!
//! `metadata_csum` covers everything with CRC-32C; `uninit_bg` (gdt_csum) covers group descriptors alone with CRC-16; older
//! filesystems have none, and then nothing is "wrong" here. Source: fs/ext4 of the kernel (where each sum is defined).

use super::superblock::{Raw, feature as f};
use crate::crc::{crc16_raw, crc32c_raw};
use crate::error::Fault;

/// Which checksums a filesystem uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChecksumScheme {
    /// None: flags of a group descriptor are not valid either.
    None,
    /// Group descriptors only; the value is CRC-16 over the UUID.
    Descriptors(u16),
    /// Everything; the value is the seed.
    All(u32),
}

impl ChecksumScheme {
    /// From the superblock, whose own checksum is verified first.
    pub(super) fn new(raw: &Raw, bytes: &[u8]) -> Result<Self, Fault> {
        if raw.has_ro_compat(f::RO_COMPAT_METADATA_CSUM) {
            if raw.s_checksum_type != 1 {
                return Err(Fault::unsupported("checksum type"));
            }
            let covered = bytes
                .get(..Raw::s_checksum)
                .ok_or_else(|| Fault::corrupt("superblock length"))?;
            if crc32c_raw(u32::MAX, covered) != raw.s_checksum {
                return Err(Fault::corrupt("superblock checksum"));
            }
            let seed = if raw.has_incompat(f::INCOMPAT_CSUM_SEED) {
                raw.s_checksum_seed
            } else {
                crc32c_raw(u32::MAX, &raw.s_uuid)
            };
            return Ok(Self::All(seed));
        }
        if raw.has_ro_compat(f::RO_COMPAT_GDT_CSUM) {
            return Ok(Self::Descriptors(crc16_raw(u16::MAX, &raw.s_uuid)));
        }
        Ok(Self::None)
    }

    /// Whether descriptors are protected, and so their flags and `bg_itable_unused` mean something.
    pub(super) fn cover_descriptors(self) -> bool {
        self != Self::None
    }

    /// The seed of everything, where everything is covered.
    pub(super) fn seed(self) -> Option<u32> {
        match self {
            Self::All(seed) => Some(seed),
            Self::None | Self::Descriptors(_) => None,
        }
    }

    /// Whether the descriptor `bytes` (its whole size) of `group` carries the right checksum at 0x1e.
    pub(super) fn descriptor_is_right(self, group: u32, bytes: &[u8]) -> bool {
        let stored = crate::layout::le::<u16>(bytes, 0x1e);
        stored.is_some_and(|stored| {
            self.of_descriptor(group, bytes)
                .is_none_or(|sum| sum == stored)
        })
    }

    /// The checksum that the descriptor `bytes` of `group` should carry at 0x1e; `None` where there is none.
    pub(super) fn of_descriptor(self, group: u32, bytes: &[u8]) -> Option<u16> {
        let (before, after) = (bytes.get(..0x1e)?, bytes.get(0x20..)?);
        match self {
            Self::None => None,
            Self::Descriptors(uuid) => {
                let crc = crc16_raw(crc16_raw(uuid, &group.to_le_bytes()), before);
                Some(crc16_raw(crc, after))
            }
            Self::All(seed) => {
                let crc = crc32c_raw(crc32c_raw(seed, &group.to_le_bytes()), before);
                let crc = crc32c_raw(crc32c_raw(crc, &[0, 0]), after);
                Some(low_half(crc))
            }
        }
    }

    /// Whether `bits` (the bytes of a bitmap that count) carry this checksum.
    pub(super) fn bitmap_is_right(self, bits: &[u8], stored: BitmapChecksum) -> bool {
        let Self::All(seed) = self else {
            return true;
        };
        stored.fits(crc32c_raw(seed, bits))
    }

    /// The seed of everything that belongs to one inode; `None` where nothing is checked.
    pub(super) fn inode_seed(self, inode: u32, generation: u32) -> Option<u32> {
        let Self::All(seed) = self else {
            return None;
        };
        let crc = crc32c_raw(seed, &inode.to_le_bytes());
        Some(crc32c_raw(crc, &generation.to_le_bytes()))
    }
}

/// The checksum of a bitmap as its descriptor keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BitmapChecksum {
    /// 32-byte descriptors keep the low half only.
    Half(u16),
    /// All 32 bits.
    Whole(u32),
}

impl BitmapChecksum {
    /// Whether `crc` is the sum it keeps.
    pub(super) fn fits(self, crc: u32) -> bool {
        match self {
            Self::Half(half) => low_half(crc) == half,
            Self::Whole(whole) => crc == whole,
        }
    }
}

/// The low 16 bits.
pub(super) fn low_half(crc: u32) -> u16 {
    let [a, b, ..] = crc.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Whether the inode `bytes` carries the right checksum.
pub(super) fn inode_is_right(seed: u32, bytes: &[u8]) -> Option<bool> {
    let low: u16 = crate::layout::le(bytes, 0x7c)?;
    match of_inode(seed, bytes)? {
        (crc, false) => Some(low_half(crc) == low),
        (crc, true) => {
            let high: u16 = crate::layout::le(bytes, 0x82)?;
            Some(crc == u32::from(low) | u32::from(high) << 16)
        }
    }
}

/// The checksum of the inode `bytes`, computed with its two halves (0x7c, 0x82) taken as zero, and whether it has the second one.
pub(super) fn of_inode(seed: u32, bytes: &[u8]) -> Option<(u32, bool)> {
    let extra: u16 = crate::layout::le(bytes, 0x80).unwrap_or(0);
    let has_high = bytes.len() > 128 && extra >= 4;
    let crc = crc32c_raw(seed, bytes.get(..0x7c)?);
    let crc = crc32c_raw(crc, &[0, 0]);
    if !has_high {
        return Some((crc32c_raw(crc, bytes.get(0x7e..)?), false));
    }
    let crc = crc32c_raw(crc, bytes.get(0x7e..0x82)?);
    let crc = crc32c_raw(crc, &[0, 0]);
    Some((crc32c_raw(crc, bytes.get(0x84..)?), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_checksum_ties_bytes_to_their_group() {
        for checksums in [
            ChecksumScheme::Descriptors(0x1234),
            ChecksumScheme::All(0xdead_beef),
        ] {
            let mut bytes = [0x5a_u8; 64];
            bytes[0x1e] = 0;
            bytes[0x1f] = 0;
            let right = (0..=u16::MAX)
                .find(|sum| {
                    bytes[0x1e..0x20].copy_from_slice(&sum.to_le_bytes());
                    checksums.descriptor_is_right(7, &bytes)
                })
                .unwrap();
            bytes[0x1e..0x20].copy_from_slice(&right.to_le_bytes());
            assert!(!checksums.descriptor_is_right(8, &bytes));
            bytes[0x30] ^= 1;
            assert!(!checksums.descriptor_is_right(7, &bytes));
        }
        assert!(ChecksumScheme::None.descriptor_is_right(1, &[0; 32]));
        assert!(!ChecksumScheme::None.descriptor_is_right(1, &[0; 31]));
    }
}
