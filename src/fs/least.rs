//! How long an image of a container is at least, where its header states less than the size of the whole: LUKS says where its own
//! areas end and not how much it holds; an md member may be larger than what it uses.
//!
//! Sources: the LUKS1 and LUKS2 on-disk format papers; include/uapi/linux/raid/md_p.h. What stands behind the data (md 0.90 and 1.0)
//! is found only where its image is whole.
//!
//! May use the heap: it is asked of images, and of a source before its freeze.

use super::whole::{LuksHeader, MD_MAGIC, Md1};
use super::{Identity, Kind, fill, read};
use crate::device::ReadAt;
use crate::json;
use crate::layout;
use crate::units::{to_u64, to_usize};

/// Unit of the offsets and lengths in both formats, in bytes, whatever the device's sectors are.
const SECTOR_BYTES: u64 = 512;

/// So many bytes an image of it has at least; 0 where nothing is stated, or what is stated cannot be read.
pub(crate) fn of(device: &dyn ReadAt, identity: &Identity) -> u64 {
    match identity.kind {
        Kind::MdMember => md(device, identity.superblock.offset),
        Kind::Luks => luks(device),
        _ => None,
    }
    .unwrap_or(0)
}

/// The kernel takes no member that ends before its data (super_1_load in drivers/md/md.c).
fn md(device: &dyn ReadAt, place: u64) -> Option<u64> {
    let sb = read::<Md1>(device, place).ok()??;
    let is_ours = sb.magic == MD_MAGIC && sb.major_version == 1;
    let data = sb.data_offset.saturating_add(sb.data_size);
    (is_ours && sb.data_size > 0).then(|| data.saturating_mul(SECTOR_BYTES))
}

fn luks(device: &dyn ReadAt) -> Option<u64> {
    match read::<LuksHeader>(device, 0).ok()??.version {
        1 => luks1(device),
        _ => luks2(device),
    }
}

layout! {
    be struct Luks1: 592 {
        0x068 payload_sector: u32,
        0x06c key_bytes: u32,
        0x0d0 slots: [u8; 384],
    }
}

layout! {
    be struct Luks1Slot: 48 {
        0x28 material_sector: u32,
        0x2c stripes: u32,
    }
}

/// What luksHeaderBackup saves and a detached header has ends behind the last key slot, a little before the payload, and is whole.
fn luks1(device: &dyn ReadAt) -> Option<u64> {
    let header = read::<Luks1>(device, 0).ok()??;
    let payload = u64::from(header.payload_sector).saturating_mul(SECTOR_BYTES);
    let ends = header.slots.chunks_exact(Luks1Slot::SIZE).map(|slot| {
        let slot = Luks1Slot::parse(slot)?;
        let begin = u64::from(slot.material_sector).saturating_mul(SECTOR_BYTES);
        let length = u64::from(header.key_bytes).saturating_mul(u64::from(slot.stripes));
        (begin > 0 && length > 0).then(|| begin.saturating_add(length))
    });
    // All slots have their place from the beginning, in use or not.
    let slots_end = ends.reduce(|one, other| Some(one?.max(other?))).flatten();
    Some(match (slots_end, payload) {
        (Some(end), 0) => end,
        (Some(end), payload) => end.min(payload),
        (None, payload) => payload,
    })
}

layout! {
    be struct Luks2: 512 {
        0x008 header_bytes: u64,
    }
}

/// The JSON area stands behind the binary header in each of the two copies of the header.
const JSON_AT: u64 = 4096;

/// The largest area of key slots.
const MOST_SLOTS_BYTES: u64 = 128 << 20;

/// Both copies of the header, and the area of the key slots behind them: what luksHeaderBackup saves and a detached header has.
fn luks2(device: &dyn ReadAt) -> Option<u64> {
    let header_bytes = read::<Luks2>(device, 0).ok()??.header_bytes;
    let is_known = header_bytes.is_power_of_two() && (16 << 10..=4 << 20).contains(&header_bytes);
    let headers = is_known.then_some(header_bytes.saturating_mul(2))?;
    let slots = slots_bytes(device, header_bytes - JSON_AT).unwrap_or(0);
    Some(headers.saturating_add(slots))
}

/// `config.keyslots_size` of the JSON area, which is text up to the first NUL. A number is text there, too.
fn slots_bytes(device: &dyn ReadAt, area_bytes: u64) -> Option<u64> {
    let mut text = vec![0; to_usize(area_bytes.min(to_u64(json::MAX_BYTES)))];
    fill(device, JSON_AT, &mut text).ok()?.then_some(())?;
    let end = text.iter().position(|byte| *byte == 0)?;
    let metadata = json::parse(text.get(..end)?).ok()?;
    let size = metadata.get("config")?.get("keyslots_size")?.text()?;
    size.parse().ok().filter(|size| *size <= MOST_SLOTS_BYTES)
}

#[cfg(test)]
mod tests;
