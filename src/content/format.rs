//! How an image is packed, by its first bytes.

use std::path::Path;

/// How an image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// RFC 1952, one or several members.
    Gzip,
    /// A snapshot: a zip archive.
    Zip,
    /// A Mender artifact: a tar archive that begins with `version`.
    Mender,
    /// What two floes say to each other (`stream/frames`).
    Frames,
}

impl Format {
    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gzip => "gzip",
            Self::Zip => "zip",
            Self::Mender => "mender",
            Self::Frames => "frames",
        }
    }

    /// From the first [`LOOK_BYTES`]. What another program has to unpack first is raw here: what it is, its content says.
    pub fn recognise(first: &[u8]) -> Self {
        if first.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if first.starts_with(b"PK\x03\x04") || first.starts_with(b"PK\x05\x06") {
            Self::Zip
        } else if first.starts_with(&FRAMES_MAGIC) {
            Self::Frames
        } else if first.starts_with(b"version\0")
            && first.get(257..).is_some_and(|at| at.starts_with(b"ustar"))
        {
            Self::Mender
        } else {
            Self::Raw
        }
    }

    /// Of what stands at `path`, where an image as it is was wanted: what it is, and what was probably meant; `None` where it is not
    /// packed.
    pub(crate) fn words(self, path: &Path) -> Option<String> {
        let (what, name) = match self {
            Self::Raw => return None,
            Self::Gzip => ("a gzip file, as floe dump makes them", ""),
            Self::Zip => ("a zip archive, as floe create makes them", "NAME="),
            Self::Mender => ("a Mender artifact", ""),
            Self::Frames => ("what floe dump --frames sends", ""),
        };
        let packed = path.display().to_string();
        let mut unpacked = path.with_extension("");
        if unpacked.extension().is_none() || unpacked == path {
            unpacked.as_mut_os_string().push(".img");
        }
        let unpacked = unpacked.display();
        Some(format!(
            "{packed}: is {what}, no device and no raw image: floe verify {packed} checks it, floe restore {packed} {name}TARGET writes it; for what is in it, or an image of that (--golden), unpack it first: floe restore {packed} {name}{unpacked}, then name {unpacked}"
        ))
    }
}

/// RFC 1952, 2.3.1.
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// What two floes say to each other begins so; as PNG does, it shows what a transfer in text mode would do to it.
pub(crate) const FRAMES_MAGIC: [u8; 8] = *b"\x89floe\r\n\x1a";

/// How much of an input [`Format::recognise`] wants to see, in bytes.
pub const LOOK_BYTES: usize = 512;
