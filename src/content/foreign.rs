//! What is no image, but what another program made: how its beginning tells, and what helps.

/// What helps with a tar archive.
const TAR: &str = "a tar archive, not an image: take the image out of it first, as in 'tar -xOf FILE NAME | floe restore - TARGET'";

/// Formats of other programs: where their magic stands, and what to do with them.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (
        0,
        b"\xfd7zXZ\0",
        "compressed with xz: unpack it first, as in 'xz -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd: unpack it first, as in 'zstd -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"BZh",
        "compressed with bzip2: unpack it first, as in 'bzip2 -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"\x04\x22\x4d\x18",
        "compressed with lz4: unpack it first, as in 'lz4 -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"\x89LZO\0\r\n\x1a\n",
        "compressed with lzop: unpack it first, as in 'lzop -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"LZIP",
        "compressed with lzip: unpack it first, as in 'lzip -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"\x5d\0\0",
        "compressed with lzma: unpack it first, as in 'xz -dc FILE | floe restore - TARGET'",
    ),
    (
        0,
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive, not an image: take the image out of it first",
    ),
    (
        0,
        b"Rar!\x1a\x07",
        "a RAR archive, not an image: take the image out of it first",
    ),
    (
        0,
        b"\x3a\xff\x26\xed",
        "an Android sparse image: unpack it first with simg2img",
    ),
    (
        0,
        b"QFI\xfb",
        "a qcow2 disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0,
        b"KDMV",
        "a VMDK disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0,
        b"COWD",
        "a VMDK disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0,
        b"# Disk DescriptorFile",
        "a VMDK disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0x40,
        b"\x7f\x10\xda\xbe",
        "a VDI disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0,
        b"vhdxfile",
        "a VHDX disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0,
        b"conectix",
        "a VHD disk: convert it first, as in 'qemu-img convert -O raw FILE FILE.img'",
    ),
    (
        0,
        b"partclone-image",
        "a partclone image: restore it with partclone.restore, or make it raw with 'partclone.restore -W -C -s FILE -o FILE.img'",
    ),
    (
        0,
        b"\0ntfsclone-image",
        "an ntfsclone image: restore it with ntfsclone",
    ),
    (257, b"ustar", TAR),
    (
        0,
        b"07070",
        "a cpio archive (as .swu files are), not an image: swupdate installs it, 'cpio -i' takes it apart",
    ),
    (
        0,
        b"!<arch>\n",
        "an ar archive (as .deb and .ipk are), not an image",
    ),
    (0, b"\x7fELF", "a program (ELF), not an image"),
    (
        0,
        b"\x27\x05\x19\x56",
        "a U-Boot image, not the image of a filesystem or disk",
    ),
    (
        0,
        b"\xd0\x0d\xfe\xed",
        "a device tree or FIT image, not the image of a filesystem or disk",
    ),
    (
        0,
        b"UBI#",
        "a UBI image, which is for raw flash: ubiformat writes it",
    ),
    (
        0,
        b"\x31\x18\x10\x06",
        "a UBIFS image, which is for a volume on raw flash: ubiupdatevol writes it",
    ),
    (
        0,
        b"\x85\x19\x03\x20",
        "a JFFS2 image, which is for raw flash: flashcp writes it",
    ),
    (0, b"Salted__", "encrypted by openssl: decrypt it first"),
    (
        0,
        b"-----BEGIN PGP",
        "encrypted or signed by PGP: undo that first",
    ),
    (
        0,
        b"age-encryption.org/",
        "encrypted by age: decrypt it first",
    ),
];

/// What devices hold beside the filesystems that floe knows: what boards start from, and filesystems, volumes and tables of others
/// (the offsets as in util-linux, libblkid/src). Where its magic stands; those of two bytes, which chance writes too, are left out.
const ON_DEVICES: &[(usize, &[u8], &str)] = &[
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    (0, b"ANDROID!", "an Android boot image"),
    (0, b"VNDRBOOT", "an Android vendor boot image"),
    (0x24, b"\x18\x28\x6f\x01", "an ARM kernel (zImage)"),
    (0x38, b"ARM\x64", "an arm64 kernel (Image)"),
    (0x202, b"HdrS", "an x86 kernel (bzImage)"),
    (0, b"\x1f\x8b\x08", "something compressed with gzip"),
    (0, b"\xfd7zXZ\0", "something compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "something compressed with zstd"),
    (0, b"PK\x03\x04", "a .zip"),
    (257, b"ustar", "a tar archive"),
    (0, b"07070", "a cpio archive"),
    (0, b"UBI#", "UBI volumes"),
    (0x8001, b"CD001", "an ISO 9660 filesystem"),
    (0x8001, b"BEA01", "a UDF filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"ReFS\0\0\0\0", "a ReFS filesystem"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (0x400, b"H+\0\x04", "an HFS+ filesystem"),
    (0x400, b"HX\0\x05", "an HFS+ filesystem"),
    (0x20, b"NXSB", "an APFS container"),
    // The first pair of a label: its name has 7 bytes, "version" (zfs: vdev_label.c, nvpair).
    (0x4014, b"\0\0\0\x07version\0", "a member of a ZFS pool"),
    (
        0x1018,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
        "a bcachefs filesystem",
    ),
    (
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        "a bcache device",
    ),
    (0x2000, b"OCFSV2", "an OCFS2 filesystem"),
    (0x10000, b"\x01\x16\x19\x70\0\0\0\x01", "a GFS2 filesystem"),
    (0x255c, b"\x54\x19\x01\0", "a UFS filesystem"),
    (0x1055c, b"\x19\x01\x54\x19", "a UFS filesystem"),
    (0, b"\x45\x3d\xcd\x28", "a cramfs filesystem"),
    (0, b"-rom1fs-", "a romfs filesystem"),
    (0, b"\x31\x18\x10\x06", "a UBIFS filesystem"),
    (
        0x4000,
        b"SKUL\xba\xbe",
        "the second header of a LUKS volume",
    ),
    (0, b"verity\0\0", "the hashes of dm-verity"),
    (0, b"integrt\0", "a dm-integrity volume"),
    (0, b"dmvdo001", "a VDO volume"),
    (0, b"AVB0", "the metadata of Android Verified Boot"),
    (0x1000, b"gDla", "Android's dynamic partitions"),
    (0x200, b"\x57\x45\x56\x82", "a BSD disklabel"),
    (0x200, b"PM\0\0", "an Apple partition map"),
];

/// As far as the magic of any of these reaches.
pub(crate) const ON_DEVICES_BYTES: usize = 0x10800;

/// What stands at the beginning of a device that no filesystem and no table is seen on; `None` where that is not known.
pub(crate) fn on_device(first: &[u8]) -> Option<&'static str> {
    by_magic(ON_DEVICES, first)
}

/// What a table says of the first bytes.
fn by_magic(table: &[(usize, &[u8], &'static str)], first: &[u8]) -> Option<&'static str> {
    let is = |(at, magic, _): &&(usize, &[u8], &str)| {
        first.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    table.iter().find(is).map(|(_, _, what)| *what)
}

/// A tar archive from before POSIX has no magic: its first header is known by the sum of its bytes, its own digits counted as spaces.
fn is_old_tar(first: &[u8]) -> bool {
    let Some(header) = first.get(..512) else {
        return false;
    };
    let digits = header.get(148..156).unwrap_or_default();
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let text = text.trim_matches(|letter| matches!(letter, ' ' | '\0'));
    let own: u64 = digits.iter().map(|byte| u64::from(*byte)).sum();
    let all: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let sum = all.saturating_sub(own).saturating_add(8 * 0x20);
    header.first() != Some(&0) && u64::from_str_radix(text, 8) == Ok(sum)
}

/// What was unpacked is packed once more.
pub(super) fn packed_twice(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"\x1f\x8b\x08") {
        return Some("compressed twice: undo one, as in 'gzip -dc FILE | floe restore - TARGET'");
    }
    head.starts_with(b"PK\x03\x04")
        .then_some("a .zip inside a .gz: undo the outer one first, as in 'gunzip FILE'")
}

/// Words that mark a text near its beginning, in lower case, and what it is.
const TEXTS: &[(&[u8], &str)] = &[
    (
        b"<bmap",
        "a block map (.bmap), not an image: name the image that it belongs to",
    ),
    (
        b"<!doctype html",
        "a web page, not an image: the download gave a page in its place",
    ),
    (
        b"<html",
        "a web page, not an image: the download gave a page in its place",
    ),
    (
        b"oid sha256:",
        "a pointer of Git LFS, not an image: 'git lfs pull' brings the file",
    ),
    (b"{", "a text (JSON), not an image"),
];

/// What another program made of the first bytes, and what would help; `None` where that is not known.
pub(crate) fn foreign(first: &[u8]) -> Option<&'static str> {
    if let Some(what) = by_magic(FOREIGN, first) {
        return Some(what);
    }
    if is_old_tar(first) {
        return Some(TAR);
    }
    // UTF-8 without control characters is a text, whatever it says.
    let mut text = first.get(..first.len().min(512))?.to_ascii_lowercase();
    // A letter may be cut in two.
    let whole = std::str::from_utf8(&text).map_or_else(|error| error.valid_up_to(), str::len);
    let is_cut = text.len().saturating_sub(whole) < 4;
    text.truncate(whole);
    let printable = |byte: &u8| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c);
    if text.is_empty() || !is_cut || !text.iter().all(printable) {
        return None;
    }
    let text = text.trim_ascii_start();
    let found = TEXTS.iter().find(|(word, _)| match *word {
        b"{" => text.starts_with(word),
        word => text.windows(word.len()).any(|part| part == word),
    });
    Some(found.map_or("a text, not an image", |(_, what)| what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_devices_hold_is_named_by_a_magic_that_is_read_and_is_no_chance() {
        for (at, magic, what) in ON_DEVICES {
            assert!(
                magic.len() >= 3 && at + magic.len() <= ON_DEVICES_BYTES,
                "{what}"
            );
            let mut bytes = vec![0; ON_DEVICES_BYTES];
            bytes[*at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(on_device(&bytes), Some(*what));
        }
    }

    #[test]
    fn what_other_programs_make_is_named_with_what_to_do() {
        let padded = |at: usize, magic: &[u8]| {
            let mut bytes = vec![0u8; 1024];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            bytes
        };
        for (at, magic, what) in FOREIGN {
            assert_eq!(foreign(&padded(*at, magic)), Some(*what));
        }
        for (text, word) in [
            (
                "<?xml version=\"1.0\" ?>\n<!-- a comment -->\n<bmap version=\"2.0\">",
                "block map",
            ),
            ("\n<!DOCTYPE HTML>\n<html>404", "web page"),
            (
                "version https://git-lfs.github.com/spec/v1\noid sha256:00",
                "Git LFS",
            ),
            ("{\"error\": \"not found\"}", "JSON"),
            ("Grüße", "a text"),
            ("no such file\n", "a text"),
        ] {
            assert!(foreign(text.as_bytes()).unwrap().contains(word), "{text}");
        }
        for bytes in [
            &b""[..],
            &[0; 512],
            &[0xff; 512],
            b"\x01\x02text",
            b"ab\0cd",
        ] {
            assert_eq!(foreign(bytes), None, "{bytes:?}");
        }
    }
}
