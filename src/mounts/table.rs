//! The mount table: `/proc/PID/mountinfo` as bytes in, [`Mount`]s out (Documentation/filesystems/proc.rst, section 3.5).
//!
//! Names on a disk are bytes, not text, and anyone who may mount chooses them: nothing here assumes UTF-8, a known optional
//! field, or an honest line. A line that does not parse is counted and left out, never guessed at.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::device::limited;
use crate::error::{Error, Result};
use crate::mounts::DevId;

/// Longest line that is believed, in bytes (an overlay with hundreds of layers has some 40 KiB).
const LINE_BYTES_MAX: usize = 1 << 20;

/// Largest table that is read, in bytes: 100000 mounts, the kernel's own limit per namespace, of 640 bytes each.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// How often a table is read again until two readings agree: the kernel does not promise one consistent reading.
const READINGS_MAX: u32 = 6;

/// Filesystems that are read-only by nature.
const NEVER_WRITTEN: &[&str] = &["squashfs", "erofs", "cramfs", "romfs", "iso9660"];

/// One mount, as one line of mountinfo says it; octal escapes are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number, unique on the running system.
    pub id: u64,
    /// Number of the mount it sits on.
    pub parent: u64,
    /// Device number of the superblock: a block device's, or an anonymous one (major 0: btrfs, overlay, tmpfs).
    pub dev: DevId,
    /// The path inside the filesystem that is visible here: `/` except for bind mounts and subvolumes.
    pub root: PathBuf,
    /// Where it is mounted, seen from the root of the process whose table this is.
    pub point: PathBuf,
    /// Options of this mount, comma separated: `ro` here does not mean that the filesystem is read-only.
    pub options: OsString,
    /// Type of the filesystem, with its subtype (`fuse.sshfs`).
    pub filesystem: String,
    /// What was named as the source: a hint for people (`/dev/root`, `none`), never proof.
    pub source: OsString,
    /// Options of the superblock, comma separated, escapes inside values left alone (a comma in a value is `\054`).
    pub super_options: OsString,
}

impl Mount {
    /// Whether the superblock itself is read-only, which a read-only bind mount of a writable filesystem is not.
    pub fn super_read_only(&self) -> bool {
        has_option(&self.super_options, "ro")
    }

    /// Whether it is of a kind that nobody writes to once it is made.
    pub fn is_never_written(&self) -> bool {
        NEVER_WRITTEN.contains(&self.filesystem.as_str())
    }

    /// Whether an error or a shutdown made the filesystem stop writing although it was mounted writable: it cannot be frozen
    /// (EROFS) and its journal may be dirty. Older kernels turn the superblock plainly `ro` instead, and say nothing else.
    pub fn emergency_read_only(&self) -> bool {
        has_option(&self.super_options, "emergency_ro")
            || has_option(&self.super_options, "shutdown")
    }

    /// The value of the superblock's option `name=VALUE`, escapes resolved.
    pub fn super_value(&self, name: &str) -> Option<OsString> {
        self.super_values(name).into_iter().next()
    }

    /// All values of a superblock option that may stand several times (`lowerdir+`).
    pub fn super_values(&self, name: &str) -> Vec<OsString> {
        let options = self.super_options.as_bytes().split(|byte| *byte == b',');
        options
            .filter_map(|option| option.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(|value| OsString::from_vec(unescape(value)))
            .collect()
    }
}

fn has_option(options: &OsStr, name: &str) -> bool {
    let mut parts = options.as_bytes().split(|byte| *byte == b',');
    parts.any(|part| part == name.as_bytes())
}

/// A mount table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable {
    /// In the kernel's order: what is mounted later, or on top, comes later.
    pub mounts: Vec<Mount>,
    /// Lines that did not parse and were left out.
    pub skipped: usize,
}

impl MountTable {
    /// Parses the bytes of a mountinfo file.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut table = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            match parse_line(line) {
                Some(mount) => table.mounts.push(mount),
                None => table.skipped = table.skipped.saturating_add(1),
            }
        }
        table
    }

    /// Reads a mountinfo file until two readings agree (a few times at most; then the last one is taken).
    pub fn read(path: &Path) -> Result<Self> {
        let mut last = read_bounded(path)?;
        for _ in 0..READINGS_MAX {
            let again = read_bounded(path)?;
            if again == last {
                break;
            }
            last = again;
        }
        Ok(Self::parse(&last))
    }

    /// The mount with this number.
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// Every mount of the superblock with this device number.
    pub fn of_dev(&self, dev: DevId) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| mount.dev == dev)
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound && path.starts_with("/proc/self") {
            return crate::mounts::not_mounted("/proc", "proc");
        }
        let errno = crate::error::ErrnoText(error.raw_os_error().unwrap_or(0));
        Error::failed(format_args!("{}: read: {errno}", path.display()))
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    limited(&mut file, TABLE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`. Fields are separated by exactly one
/// space: an empty source leaves two in a row.
fn parse_line(line: &[u8]) -> Option<Mount> {
    if line.len() > LINE_BYTES_MAX {
        return None;
    }
    let mut fields = line.split(|byte| *byte == b' ');
    let id = decimal(fields.next()?)?;
    let parent = decimal(fields.next()?)?;
    let dev = DevId::parse(fields.next()?)?;
    let root = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = OsString::from_vec(fields.next()?.to_vec());
    // Any number of optional fields, known or not, until a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let filesystem = fields.next().filter(|name| !name.is_empty())?;
    let filesystem = String::from_utf8_lossy(&unescape(filesystem)).into_owned();
    let source = OsString::from_vec(unescape(fields.next()?));
    // Whatever is left, should a filesystem print a bare space among its options.
    let rest: Vec<&[u8]> = fields.collect();
    if rest.is_empty() {
        return None;
    }
    let super_options = OsString::from_vec(rest.join(&b' '));
    Some(Mount {
        id,
        parent,
        dev,
        root,
        point,
        options,
        filesystem,
        source,
        super_options,
    })
}

/// A plain decimal number: no sign, no space, no overflow.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Resolves the `\ooo` that the kernel writes for space, tab, newline, backslash and hash; a backslash that begins no such
/// thing stands for itself.
pub(super) fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\'
            && let Some((digits, after)) = tail.split_at_checked(3)
            && let Some(byte) = octal(digits)
        {
            out.push(byte);
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    let mut value = 0u8;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(digit)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &[u8]) -> Mount {
        let table = MountTable::parse(line);
        assert_eq!((table.mounts.len(), table.skipped), (1, 0));
        table.mounts[0].clone()
    }

    #[test]
    fn a_line_with_unknown_optional_fields_parses() {
        let mount = one(
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:2 master:1 new_thing:x unbindable - ext3 /dev/root rw,errors=continue\n",
        );
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!(mount.dev, DevId::new(98, 0));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.point, Path::new("/mnt2"));
        assert_eq!(mount.filesystem, "ext3");
        assert_eq!(mount.source, "/dev/root");
        assert_eq!(mount.super_value("errors").unwrap(), "continue");
    }

    #[test]
    fn spaces_newlines_backslashes_and_bytes_that_are_not_text_survive() {
        let mount =
            one(b"1 2 8:1 / /a\\040b\\011c\\012d\\134e\\043\xff\xfe rw - ext4 /dev/a\\040b rw");
        assert_eq!(
            mount.point.as_os_str().as_bytes(),
            b"/a b\tc\nd\\e#\xff\xfe"
        );
        assert_eq!(mount.source, "/dev/a b");
        // Not escapes: too short, not octal, over 255.
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\089\\777\\"), b"\\089\\777\\");
        assert_eq!(unescape(b"\\\\040"), b"\\ ");
    }

    #[test]
    fn an_empty_source_does_not_shift_the_fields() {
        let mount = one(b"1 2 0:40 / /run rw - tmpfs  rw,size=1k");
        assert_eq!(mount.source, "");
        assert_eq!(mount.super_options, "rw,size=1k");
    }

    #[test]
    fn the_superblocks_read_only_is_not_the_mounts() {
        let bind = one(b"1 2 8:1 / /ro ro,relatime - ext4 /dev/sda1 rw,errors=remount-ro");
        assert!(!bind.super_read_only() && !bind.emergency_read_only());
        let plain = one(b"1 2 8:1 / /ro rw - ext4 /dev/sda1 ro");
        assert!(plain.super_read_only());
        let failed = one(b"1 2 8:1 / /x rw - ext4 /dev/sda1 rw,errors=remount-ro,emergency_ro");
        assert!(!failed.super_read_only() && failed.emergency_read_only());
    }

    #[test]
    fn garbled_and_overlong_lines_are_counted_and_left_out() {
        let good = b"1 2 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let long = [
            &b"3 2 8:1 / /"[..],
            &vec![b'x'; LINE_BYTES_MAX],
            b" rw - ext4 a rw\n",
        ]
        .concat();
        for bad in [
            &b"nonsense\n"[..],
            b"1 2 8:1 / / rw ext4 /dev/sda1 rw\n",
            b"1 2 8 / / rw - ext4 /dev/sda1 rw\n",
            b"1 2 8:x / / rw - ext4 /dev/sda1 rw\n",
            b"1 2 4294967296:0 / / rw - ext4 /dev/sda1 rw\n",
            b"-1 2 8:1 / / rw - ext4 /dev/sda1 rw\n",
            b"99999999999999999999999 2 8:1 / / rw - ext4 /dev/sda1 rw\n",
            b"1 2 8:1 / / rw - ext4 /dev/sda1\n",
            b"1 2 8:1 / / rw - ext4\n",
            b"1 2 8:1 / / rw -\n",
            b"1 2 8:1 /\n",
            b" \n",
            b"\0\0\0\n",
            long.as_slice(),
        ] {
            let table = MountTable::parse(&[bad, good].concat());
            assert_eq!(table.skipped, 1, "{:?}", String::from_utf8_lossy(bad));
            assert_eq!(table.mounts.len(), 1);
        }
        assert_eq!(MountTable::parse(b""), MountTable::default());
    }

    #[test]
    fn any_cut_of_a_table_parses_without_a_panic() {
        let text = b"22 27 0:21 / /proc rw - proc proc rw\n1 2 8:1 / /a\\040 rw shared:1 - ext4 /dev/sda1 rw\n";
        for end in 0..text.len() {
            let table = MountTable::parse(&text[..end]);
            assert!(table.mounts.len() + table.skipped <= 2);
        }
    }

    #[test]
    fn a_comma_inside_an_option_value_does_not_end_it() {
        let mount = one(b"1 2 0:50 / /m rw - overlay overlay rw,lowerdir=/l\\054x:/b,upperdir=/u\\040p,workdir=/w");
        assert_eq!(mount.super_value("lowerdir").unwrap(), "/l,x:/b");
        assert_eq!(mount.super_value("upperdir").unwrap(), "/u p");
        assert_eq!(mount.super_value("upper"), None);
    }

    #[test]
    fn the_running_systems_table_parses_whole() {
        let table = MountTable::read(Path::new("/proc/self/mountinfo")).unwrap();
        assert_eq!(table.skipped, 0);
        assert!(
            table
                .mounts
                .iter()
                .any(|mount| mount.point == Path::new("/"))
        );
    }
}
