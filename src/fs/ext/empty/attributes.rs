//! The attributes inside an inode, as far as inline data needs them: the content that did not fit `i_block` is `system.data`.
//!
//! Source: the kernel's Documentation/filesystems/ext4 (attributes.rst, inlinedata.rst).

use core::ops::Range;

use crate::layout::le;
use crate::units::to_usize;

/// `h_magic`, before the entries.
const MAGIC: u32 = 0xea02_0000;
/// Where the inode without its extra fields ends.
const GOOD_OLD: usize = 128;
/// `EXT4_XATTR_INDEX_SYSTEM`.
const INDEX_SYSTEM: u8 = 7;

crate::layout! {
    /// `struct ext4_xattr_entry`; the name follows.
    le struct Entry: 16 {
        0x0 e_name_len: u8,
        0x1 e_name_index: u8,
        0x2 e_value_offs: u16,
        0x4 e_value_inum: u32,
        0x8 e_value_size: u32,
    }
}

/// Where `system.data` lies in an inode.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// Its entry, with the name.
    pub entry: Range<usize>,
    /// Its value.
    pub value: Range<usize>,
    /// Where the last entry ends.
    end: usize,
}

/// Looks for it in the bytes of an inode; `None` when there is none, or the attributes are not as they should be.
pub(super) fn find(inode: &[u8]) -> Option<Data> {
    let header = GOOD_OLD + usize::from(le::<u16>(inode, 0x80)?);
    if le::<u32>(inode, header)? != MAGIC {
        return None;
    }
    let first = header + 4;
    let mut at = first;
    let mut found = None;
    // Every entry is at least 16 bytes long: this ends with the inode.
    while le::<u32>(inode, at)? != 0 {
        let entry = Entry::parse(inode.get(at..)?)?;
        let end = at + Entry::SIZE + usize::from(entry.e_name_len).next_multiple_of(4);
        let name = inode
            .get(at + Entry::SIZE..)?
            .get(..entry.e_name_len.into())?;
        if entry.e_name_index == INDEX_SYSTEM && name == b"data" && entry.e_value_inum == 0 {
            let start = first + usize::from(entry.e_value_offs);
            let value = start..start.checked_add(to_usize(entry.e_value_size.into()))?;
            inode.get(value.clone())?;
            found = Some((at..end, value));
        }
        at = end;
    }
    let (entry, value) = found?;
    Some(Data {
        entry,
        value,
        end: at,
    })
}

/// Takes it out of the bytes of an inode: the entries behind it close up, the value becomes zeros.
pub(super) fn remove(inode: &mut [u8], data: &Data) -> Option<()> {
    inode.get_mut(data.value.clone())?.fill(0);
    inode.get_mut(data.entry.start..data.end)?;
    inode.copy_within(data.entry.end..data.end, data.entry.start);
    let rest = data.end - data.entry.len();
    inode.get_mut(rest..data.end)?.fill(0);
    let header = GOOD_OLD + usize::from(le::<u16>(inode, 0x80)?);
    if rest == header + 4 {
        // It was the only one (fs/ext4/xattr.c leaves no magic then).
        inode.get_mut(header..rest)?.fill(0);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An inode of 256 bytes with these attributes: index, name, value.
    fn inode(attributes: &[(u8, &str, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0u8; 256];
        bytes[0x80] = 32;
        bytes[160..164].copy_from_slice(&MAGIC.to_le_bytes());
        let (mut at, mut end) = (164, 256);
        for (index, name, value) in attributes {
            end -= value.len().next_multiple_of(4);
            bytes[at] = u8::try_from(name.len()).unwrap();
            bytes[at + 1] = *index;
            bytes[at + 2..at + 4].copy_from_slice(&u16::try_from(end - 164).unwrap().to_le_bytes());
            bytes[at + 8] = u8::try_from(value.len()).unwrap();
            bytes[at + 16..at + 16 + name.len()].copy_from_slice(name.as_bytes());
            bytes[end..end + value.len()].copy_from_slice(value);
            at += 16 + name.len().next_multiple_of(4);
        }
        bytes
    }

    #[test]
    fn inline_data_goes_and_its_neighbours_stay() {
        let before = [
            (1, "one", &b"1"[..]),
            (7, "data", b"the secret"),
            (6, "two", b"22"),
        ];
        let mut bytes = inode(&before);
        let data = find(&bytes).unwrap();
        assert_eq!(&bytes[data.value.clone()], b"the secret");
        remove(&mut bytes, &data).unwrap();
        assert!(find(&bytes).is_none());
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        let mut without = inode(&before);
        // The entries close up; the values stay where they are.
        without.copy_within(204..224, 184);
        without[204..224].fill(0);
        assert_eq!(bytes[..224], without[..224]);
        let mut only = inode(&[(7, "data", b"x")]);
        let data = find(&only).unwrap();
        remove(&mut only, &data).unwrap();
        assert!(only[160..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn attributes_that_point_outside_are_not_there() {
        let mut bytes = inode(&[(7, "data", b"x")]);
        bytes[164 + 2] = 0xff;
        assert!(find(&bytes).is_none());
        let mut bytes = inode(&[(7, "data", b"x")]);
        bytes[164] = 0xff;
        assert!(find(&bytes).is_none());
        assert!(find(&[0; 100]).is_none());
    }
}
