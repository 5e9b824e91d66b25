//! The tar format as far as it is written here: regular files with short names, each a 512-byte ustar header (POSIX.1-2017, pax,
//! "ustar Interchange Format") and its bytes padded to a whole number of blocks; two blocks of zeros end an archive.
//!
//! ```text
//! width  field     value
//!   100  name      the path, NUL-terminated where it is shorter
//!     8  mode      seven octal digits and NUL, as in all numbers
//!   8+8  uid gid   0
//!    12  size      eleven octal digits, or from 8 GiB on base 256 (below)
//!    12  mtime     seconds since 1970
//!     8  chksum    sum of all header bytes, these counted as spaces: six digits, NUL, space
//!     1  typeflag  '0', a regular file
//!   100  linkname  empty
//!   6+2  magic     "ustar\0" and version "00"
//! ```
//! The rest (owner's names, device numbers, path prefix) stays zero. A size that eleven digits cannot hold has the first bit of
//! the field set and the number big-endian behind it: not POSIX, but star's form, which GNU tar, bsdtar, busybox and Go read.
//! Unlike a pax record it takes no room of its own, so that a header can be written before the size is known. Reading knows as much, and the prefix.

use crate::error::Fault;
use crate::units::to_u64;

/// Everything is a multiple of this.
pub(crate) const BLOCK_BYTES: usize = 512;

/// What follows the last member.
pub(crate) const END_BYTES: u64 = 1024;

/// Longest name in bytes.
pub(crate) const MAX_NAME: usize = 100;

/// One file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// Its path in the archive, at most [`MAX_NAME`] bytes.
    pub name: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: u64,
    /// Length in bytes.
    pub size_bytes: u64,
}

impl Member<'_> {
    /// The header block.
    pub(crate) fn header(&self) -> Result<[u8; BLOCK_BYTES], Fault> {
        let mut block = [0; BLOCK_BYTES];
        if self.name.is_empty() || self.name.len() > MAX_NAME {
            return Err(Fault::refused("length of a name in a tar archive"));
        }
        put(&mut block, 0, self.name.as_bytes());
        octal(&mut block, 100, 7, u64::from(self.mode & 0o7777));
        octal(&mut block, 108, 7, 0);
        octal(&mut block, 116, 7, 0);
        if self.size_bytes >> 33 == 0 {
            octal(&mut block, 124, 11, self.size_bytes);
        } else {
            put(&mut block, 124, &[0x80]);
            put(&mut block, 128, &self.size_bytes.to_be_bytes());
        }
        octal(&mut block, 136, 11, self.modified.min((1 << 33) - 1));
        put(&mut block, 148, b"        0");
        put(&mut block, 257, b"ustar\x0000");
        let sum = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block, 148, 6, sum);
        put(&mut block, 154, b"\0 ");
        Ok(block)
    }
}

/// A member's header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberHeader<'a> {
    /// Its path.
    pub name: &'a str,
    /// Length in bytes.
    pub size_bytes: u64,
    /// A regular file.
    pub is_file: bool,
}

/// Reads a header block; `None` where it is none.
pub(crate) fn parse(block: &[u8; BLOCK_BYTES]) -> Option<MemberHeader<'_>> {
    let field = |at: usize, length: usize| block.get(at..at + length);
    let number = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok()?;
        u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
    };
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    // The sum's own field counts as spaces.
    let own: u64 = field(148, 8)?.iter().map(|byte| u64::from(*byte)).sum();
    if number(field(148, 8)?)? != sum - own + 8 * 0x20 {
        return None;
    }
    let size_bytes = match field(124, 12)? {
        [0x80, 0, 0, 0, last @ ..] => u64::from_be_bytes(last.try_into().ok()?),
        octal => number(octal)?,
    };
    let name = std::str::from_utf8(field(0, MAX_NAME)?).ok()?;
    Some(MemberHeader {
        name: name.trim_end_matches('\0'),
        size_bytes: Some(size_bytes).filter(|size| size >> 62 == 0)?,
        is_file: matches!(block.get(156)?, b'0' | 0),
    })
}

/// Appends a whole member.
pub(crate) fn append(out: &mut Vec<u8>, member: Member<'_>, content: &[u8]) -> Result<(), Fault> {
    let member = Member {
        size_bytes: to_u64(content.len()),
        ..member
    };
    out.extend_from_slice(&member.header()?);
    out.extend_from_slice(content);
    let end = out.len().next_multiple_of(BLOCK_BYTES);
    out.resize(end, 0);
    Ok(())
}

/// Zeros that follow so many bytes of content.
pub(crate) fn padding(size_bytes: u64) -> u64 {
    size_bytes.wrapping_neg() % to_u64(BLOCK_BYTES)
}

fn put(block: &mut [u8; BLOCK_BYTES], offset: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}

/// `digits` octal digits, zeros in front; the NUL behind them is there already.
fn octal(block: &mut [u8; BLOCK_BYTES], offset: usize, digits: usize, value: u64) {
    let mut rest = value;
    for place in block.iter_mut().skip(offset).take(digits).rev() {
        let [digit, ..] = (rest % 8).to_le_bytes();
        *place = b'0' + digit;
        rest /= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    const FILE: Member<'_> = Member {
        name: "data/0000/rootfs.img",
        mode: 0o640,
        modified: 1_000_000_000,
        size_bytes: 0o777,
    };

    #[test]
    fn fields_stand_where_posix_puts_them_and_the_sum_is_right() {
        let block = FILE.header().unwrap();
        assert_eq!(&block[..21], b"data/0000/rootfs.img\0");
        assert_eq!(&block[100..108], b"0000640\0");
        assert_eq!(&block[124..136], b"00000000777\0");
        assert_eq!(&block[136..148], b"07346545000\0");
        assert_eq!(&block[156..158], b"0\0");
        assert_eq!(&block[257..265], b"ustar\x0000");
        let told = std::str::from_utf8(&block[148..154]).unwrap();
        let told = u32::from_str_radix(told, 8).unwrap();
        let counted: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => 32,
                _ => u32::from(*byte),
            })
            .sum();
        assert_eq!(told, counted);
    }

    #[test]
    fn what_was_written_is_read_back_and_a_wrong_sum_is_none() {
        for size_bytes in [0, 1234, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let member = Member {
                name: "data/0000.tar.gz",
                mode: 0o600,
                modified: 5,
                size_bytes,
            };
            let mut block = member.header().unwrap();
            let found = MemberHeader {
                name: "data/0000.tar.gz",
                size_bytes,
                is_file: true,
            };
            assert_eq!(parse(&block), Some(found));
            block[3] ^= 1;
            assert_eq!(parse(&block), None);
        }
        assert_eq!(parse(&[0; BLOCK_BYTES]), None);
    }

    #[test]
    fn sizes_beyond_eleven_digits_are_base_256_and_long_names_are_refused() {
        let sized = |size_bytes| Member { size_bytes, ..FILE }.header().unwrap();
        assert_eq!(&sized((1 << 33) - 1)[124..136], b"77777777777\0");
        let large = sized(1 << 40);
        assert_eq!(large[124..136], [0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        for name in ["", "x".repeat(MAX_NAME + 1).as_str()] {
            assert!(Member { name, ..FILE }.header().is_err());
        }
        assert!(
            Member {
                name: &"x".repeat(MAX_NAME),
                ..FILE
            }
            .header()
            .is_ok()
        );
    }

    #[test]
    fn tar_lists_what_was_written() {
        let mut archive = Vec::new();
        append(&mut archive, FILE, &[7; 700]).unwrap();
        append(
            &mut archive,
            Member {
                name: "empty",
                ..FILE
            },
            b"",
        )
        .unwrap();
        assert_eq!(archive.len(), 512 + 1024 + 512);
        assert_eq!(padding(700), 324);
        assert_eq!(padding(512), 0);
        archive.resize(archive.len() + 1024, 0);
        let child = Command::new("tar")
            .arg("tvf")
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("SKIPPED: needs tar");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let listed = child.wait_with_output().unwrap();
        assert!(listed.status.success());
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.contains("-rw-r----- 0/0             700 2001-09-09"));
        assert!(listed.lines().count() == 2, "{listed}");
    }
}
