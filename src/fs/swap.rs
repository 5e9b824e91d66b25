//! Swap areas: the header page is kept, so that the copy can be switched on; what was swapped out is not part of an image.
//!
//! Source: union swap_header in include/linux/swap.h; the magic stands in the last ten bytes of the first page, so its place
//! tells the page size. A suspended system's memory image is no swap: it is read whole, and said so.

use super::{
    Identity, Kind, Reader, UsedMap, Verdict, Walk, WalkTask, read, read_array, text, uuid_text,
    witness_superblock,
};
use crate::device::ReadAt;
use crate::error::Fault;
use crate::layout;
use crate::units::{Extent, to_u64};

/// This reader's row.
pub(super) const READER: Reader = Reader {
    kinds: &[Kind::Swap],
    probe,
    walk: Some(walk),
    // The header page: swapping itself changes nothing there, mkswap and hibernation do.
    witness: witness_superblock,
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

const HIBERNATED: &str = "swap holds the memory of a suspended system";

/// Where the header stands, behind the boot block.
const HEADER_OFFSET: u64 = 1024;

layout! {
    /// The header. Its maker's byte order holds for the two numbers.
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

fn find(device: &dyn ReadAt) -> Result<Option<Area>, Fault> {
    let Some(header) = read::<Header>(device, HEADER_OFFSET)? else {
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
    Ok(find(device)?.map(|area| Identity {
        size_bytes: area.pages * u64::from(area.page_bytes),
        block_bytes: area.page_bytes,
        uuid: uuid_text(&area.uuid),
        label: text(&area.label),
        ..Identity::new(Kind::Swap, 0, area.page_bytes.into())
    }))
}

/// See [`crate::fs::identity::change`].
pub(super) fn change_uuid(
    device: &dyn ReadAt,
    uuid: &[u8; 16],
    write: &mut super::identity::Write<'_>,
) -> Result<(), Fault> {
    let area = find(device)?.ok_or_else(|| Fault::corrupt("swap header"))?;
    if area.suspended {
        return Err(Fault::refused(HIBERNATED));
    }
    write(HEADER_OFFSET + to_u64(Header::uuid), uuid)
}

fn walk(_: WalkTask<'_>, walk: &mut Walk<'_>, map: &mut UsedMap) -> Result<Verdict, Fault> {
    let area = find(walk.device())?.ok_or_else(|| Fault::corrupt("swap header changed"))?;
    if area.suspended {
        return Err(Fault::unsupported(HIBERNATED));
    }
    map.set_all_free();
    map.set_used(Extent::at(0, area.page_bytes.into()));
    Ok(Verdict::USED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::walked;
    use crate::fs::{Coverage, Still};

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
    fn coverage(disk: &Vec<u8>) -> (Coverage, u64) {
        let (verdict, map) = walked(disk, Still::Unmounted).unwrap();
        (verdict.coverage, map.used_bytes())
    }

    #[test]
    fn the_first_page_alone_is_used_whatever_its_size_and_byte_order() {
        for page in [4096usize, 16_384, 65_536] {
            for order in [[1, 0, 0, 0], [0, 0, 0, 1]] {
                let disk = area(page, order, b"SWAPSPACE2");
                assert_eq!(probe(&disk).unwrap().unwrap().size_bytes, 1 << 20);
                assert_eq!(coverage(&disk), (Coverage::Used, to_u64(page)));
            }
        }
    }

    #[test]
    fn the_memory_of_a_suspended_system_is_read_whole() {
        for magic in SUSPENDED {
            let disk = area(4096, [1, 0, 0, 0], magic);
            assert_eq!(coverage(&disk), (Coverage::Whole, 1 << 20));
        }
    }

    #[test]
    fn the_magic_without_a_header_of_version_one_is_no_swap() {
        let disk = area(4096, [2, 0, 0, 0], b"SWAPSPACE2");
        assert!(probe(&disk).unwrap().is_none());
    }
}
