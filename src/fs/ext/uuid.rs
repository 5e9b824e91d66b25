//! A new uuid: the primary superblock and every backup of it. Refused where other checksums depend on the uuid.

use super::read_raw;
use super::superblock::{Geometry, OFFSET_BYTES, Raw, feature as f};
use crate::crc::crc32c_raw;
use crate::device::ReadAt;
use crate::error::Fault;
use crate::fs::identity::Write;

/// `stable_inodes`: encryption keys are derived from the uuid.
const COMPAT_STABLE_INODES: u32 = 0x800;

/// Whether the journal holds what the filesystem's blocks do not (EXT4_FEATURE_INCOMPAT_RECOVER).
pub(crate) fn needs_recovery(device: &dyn ReadAt) -> Result<bool, Fault> {
    let (raw, _) = read_raw(device)?.ok_or_else(|| Fault::corrupt("superblock"))?;
    Ok(raw.has_incompat(f::INCOMPAT_RECOVER))
}

/// See [`crate::fs::identity::change`].
pub(crate) fn change_uuid(
    device: &dyn ReadAt,
    uuid: &[u8; 16],
    write: &mut Write<'_>,
) -> Result<(), Fault> {
    let (raw, mut bytes) = read_raw(device)?.ok_or_else(|| Fault::corrupt("superblock"))?;
    let geometry = Geometry::new(&raw, &bytes)?;
    let sums = raw.has_ro_compat(f::RO_COMPAT_METADATA_CSUM);
    if sums && !raw.has_incompat(f::INCOMPAT_CSUM_SEED) {
        return Err(Fault::refused(
            "every checksum in it depends on the uuid; tune2fs -O metadata_csum_seed changes that",
        ));
    }
    if !sums && raw.has_ro_compat(f::RO_COMPAT_GDT_CSUM) {
        return Err(Fault::refused(
            "the checksums of its groups (uninit_bg) depend on the uuid; tune2fs -U on the unmounted copy changes it",
        ));
    }
    if raw.has_compat(COMPAT_STABLE_INODES) {
        return Err(Fault::refused(
            "its encryption keys depend on the uuid (stable_inodes)",
        ));
    }
    for group in 1..geometry.groups {
        if !geometry.has_super(group) {
            continue;
        }
        let Some(place) = geometry.extent(geometry.group_first(group), 1) else {
            continue;
        };
        let mut copy = [0u8; 1024];
        device.read_at(place.offset, &mut copy)?;
        // What is no copy of this superblock (never written, or of an older filesystem) stays as it is.
        let is_copy = Raw::recognise(&copy).is_some_and(|found| found.s_uuid == raw.s_uuid);
        if is_copy {
            put(&mut copy, uuid, sums);
            write(place.offset, &copy)?;
        }
    }
    put(&mut bytes, uuid, sums);
    write(OFFSET_BYTES, &bytes)
}

fn put(bytes: &mut [u8; 1024], uuid: &[u8; 16], sums: bool) {
    for (place, byte) in bytes.iter_mut().skip(Raw::s_uuid).zip(uuid) {
        *place = *byte;
    }
    if sums {
        let (covered, field) = bytes.split_at_mut(Raw::s_checksum);
        field.copy_from_slice(&crc32c_raw(u32::MAX, covered).to_le_bytes());
    }
}
