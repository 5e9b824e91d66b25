//! Swap areas: the header page is kept, so that the copy can be switched on; what was swapped out is not part of an image.
//!
//! Source: union swap_header in include/linux/swap.h; the magic stands in the last ten bytes of the first page, so its place
//! tells the page size. A suspended system's memory image is no swap: it is read whole, and said so.

use heapless::String;

use super::{Identity, Kind, Reader, Still, UsedMap, Verdict, Walk, read_array, text, uuid_text};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::Extent;

/// This reader's row.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Swap],
    probe,
    walk: Some(walk),
    witness,
};

/// Page sizes of the kernels that make swap areas, in bytes.
const PAGES: [u32; 5] = [4096, 8192, 16_384, 32_768, 65_536];
/// What hibernation writes in place of the magic: the kernel (three formats), uswsusp, TuxOnIce.
const SUSPENDED: [&[u8]; 5] = [
    b"S1SUSPEND",
    b"S2SUSPEND",
    b"ULSUSPEND",
    b"LINHIB0001",
    &[0xed, 0xc3, 0x02, 0xe9, 0x98, 0x56, 0xe5, 0x0c],
];

/// Where the uuid stands.
const UUID_OFFSET: u64 = 1024 + 0x0c;

layout! {
    /// The header behind the boot block, at 1024. Its maker's byte order holds for the two numbers.
    le struct Header: 48 {
        0x00 version: u32,
        0x04 last_page: u32,
        0x0c uuid: [u8; 16],
        0x1c volume: [u8; 16],
    }
}

/// A recognised swap area.
struct Area {
    page_bytes: u32,
    suspended: bool,
    pages: u64,
    uuid: [u8; 16],
    label: [u8; 16],
}

fn read(device: &dyn ReadAt) -> Result<Option<Area>, Fault> {
    let Some(header) = read_array::<48>(device, 1024)?.and_then(|bytes| Header::parse(&bytes))
    else {
        return Ok(None);
    };
    for page_bytes in PAGES {
        let Some(magic) = read_array::<10>(device, u64::from(page_bytes) - 10)? else {
            return Ok(None);
        };
        let suspended = SUSPENDED.iter().any(|known| magic.starts_with(known));
        if magic != *b"SWAPSPACE2" && !suspended {
            continue;
        }
        let last_page = match header.version {
            1 => header.last_page,
            0x0100_0000 => header.last_page.swap_bytes(),
            _ => continue,
        };
        return Ok(Some(Area {
            page_bytes,
            suspended,
            pages: u64::from(last_page) + 1,
            uuid: header.uuid,
            label: header.volume,
        }));
    }
    Ok(None)
}

fn probe(device: &dyn ReadAt) -> Result<Option<Identity>, Fault> {
    Ok(read(device)?.map(|area| Identity {
        kind: Kind::Swap,
        size_bytes: area.pages * u64::from(area.page_bytes),
        block_bytes: area.page_bytes,
        max_sector_bytes: 4096,
        used_bytes: None,
        uuid: uuid_text(&area.uuid),
        label: text(&area.label),
        last_mounted: String::new(),
        last_written_s: None,
        superblock: header_page(&area),
        devices: 1,
    }))
}

/// See [`crate::fs::identity::change`].
pub(super) fn change_uuid(
    device: &dyn ReadAt,
    uuid: &[u8; 16],
    write: &mut super::identity::Write<'_>,
) -> Result<(), Fault> {
    let area = read(device)?.ok_or_else(|| Fault::corrupt("swap header"))?;
    if area.suspended {
        return Err(Fault::refused(
            "swap holds the memory of a suspended system",
        ));
    }
    write(UUID_OFFSET, uuid)
}

fn header_page(area: &Area) -> Extent {
    Extent {
        offset: 0,
        length_bytes: u64::from(area.page_bytes),
    }
}

fn walk(
    _identity: &Identity,
    _still: Still,
    walk: &mut Walk<'_>,
    map: &mut UsedMap,
) -> Result<Verdict, Fault> {
    match read(walk.device())? {
        None => Ok(Verdict::whole(Fault::corrupt("swap header changed"))),
        Some(area) if area.suspended => Ok(Verdict::whole(Fault::unsupported(
            "swap holds the memory of a suspended system",
        ))),
        Some(area) => {
            map.set_all_free();
            map.set_used(header_page(&area));
            Ok(Verdict::USED)
        }
    }
}

/// The header page: swapping itself changes nothing there, mkswap and hibernation do.
fn witness(identity: &Identity, walk: &mut Walk<'_>) -> Result<(), Fault> {
    walk.witness_extent(identity.superblock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Coverage, SCRATCH_BYTES};
    use crate::units::{BlockSize, to_u64};

    fn area(page: usize, order: [u8; 4], magic: &[u8]) -> Vec<u8> {
        let mut disk = vec![0x77u8; 1 << 20];
        disk[..page].fill(0);
        disk[1024..1028].copy_from_slice(&order);
        let last = u32::try_from((1 << 20) / page - 1).unwrap();
        let last = if order[0] == 1 {
            last.to_le_bytes()
        } else {
            last.to_be_bytes()
        };
        disk[1028..1032].copy_from_slice(&last);
        disk[page - 10..page - 10 + magic.len()].copy_from_slice(magic);
        disk
    }

    #[allow(clippy::ptr_arg)] // a slice is no `dyn ReadAt`
    fn walked(disk: &Vec<u8>) -> (Verdict, u64) {
        let identity = crate::fs::probe(disk).unwrap().unwrap();
        assert_eq!((identity.kind, identity.size_bytes), (Kind::Swap, 1 << 20));
        let block = BlockSize::from_bytes(u64::from(identity.block_bytes)).unwrap();
        let mut map = UsedMap::new(to_u64(disk.len()), block).unwrap();
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut work = Walk::new(disk, &mut scratch);
        let verdict = walk(&identity, Still::Unmounted, &mut work, &mut map).unwrap();
        (verdict, map.used_bytes())
    }

    #[test]
    fn the_first_page_alone_is_used_whatever_its_size_and_byte_order() {
        for page in [4096usize, 16_384, 65_536] {
            for order in [[1, 0, 0, 0], [0, 0, 0, 1]] {
                let (verdict, used) = walked(&area(page, order, b"SWAPSPACE2"));
                assert_eq!(verdict.coverage, Coverage::Used);
                assert_eq!(used, to_u64(page));
            }
        }
    }

    #[test]
    fn the_memory_of_a_suspended_system_is_read_whole() {
        for magic in SUSPENDED {
            let (verdict, used) = walked(&area(4096, [1, 0, 0, 0], magic));
            assert_eq!(verdict.coverage, Coverage::Whole);
            assert_eq!(used, 1 << 20);
        }
    }

    #[test]
    fn the_magic_without_a_header_of_version_one_is_no_swap() {
        let disk = area(4096, [2, 0, 0, 0], b"SWAPSPACE2");
        assert!(probe(&disk).unwrap().is_none());
    }
}
