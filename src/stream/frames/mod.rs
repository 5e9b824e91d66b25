//! Frames: chunks between two floes in any order, and put in order where they arrive. The format, version 1.
//!
//! Whoever is at the other end holds what was read before the freeze, so that the freeze costs what changed. Frames are never
//! stored (what an interrupted pull leaves are chunks, see [`known`]): [`send`] writes it into a pipe, [`receive`] holds the chunks and gives the standard format (gzip or zip), byte for byte
//! what a run without frames gives for the same content. All numbers are little-endian.
//!
//! ```text
//!  stream    89 66 6c 6f 65 0d 0a 1a   u16 version   u32 length   header of that length   u32 CRC-32 of all that   frames
//!  header    u8 kind: 0 image, 1 snapshot   u8 flags: 1 a copy of something as it is   u64 time of a snapshot's entries
//!            u16 texts, each   u8 length, name   u32 length, bytes         (of a snapshot: what stands in front of the images)
//!            u16 images, each  u8 length, name   u16 parts, each u64 bytes
//!  frame     u8 kind, then
//!   1 early  u32 chunk   u32 CRC-32 of its raw bytes   u32 packed length   packed bytes; none: zeros. Instead of one before
//!   2 here   u32 CRC-32  u32 packed length   packed bytes        the next chunk in order
//!   3 held   u64 bytes   the next ones in order are what early frames brought
//!   4 zeros  u64 bytes   the next ones in order are zeros
//!   5 image  u32 CRC-32  of the image that ends here
//!   7 known  u32 chunk   u32 CRC-32   16 bytes: the hash of a chunk that the other end has. Instead of one before
//!   8 known here   u32 CRC-32   16 bytes                        the same of the next chunk in order
//!   6 end    u64 bytes of all images   u32 length, JSON: the report   u32 CRC-32 of all but packed bytes, from the first byte on
//! ```
//!
//! A chunk is [`CHUNK_BYTES`] of a part, the last one of a part what is left of it; they are numbered over all parts of all images.
//! A packed chunk is deflate blocks that stand alone, end at a byte and are never final. In the report are at least `consistent`,
//! `frozen_ms` and, for each image, `maps`.
//!
//! Frames 7 and 8 come only where they were asked for (`--frames-known`): then the other end says, by the hashes of
//! [`crate::stream::pipeline::known`] and against the stream, what it has; see [`known`]. With `push --only-changes` that end is
//! `floe restore --frames-known - TARGET`, and its stdout the way back.

pub mod known;
mod packed;
pub mod receive;
pub mod send;

use crate::crc;
use crate::error::Fault;
use crate::stream::archive::TextEntry;
use crate::stream::plan::CHUNK_BYTES;
use crate::stream::zip::{MAX_ENTRIES, MAX_NAME};
use crate::units::{to_u64, to_usize};

/// The first bytes: as in PNG, whatever takes them for text breaks them.
pub const MAGIC: [u8; 8] = crate::content::FRAMES_MAGIC;

const VERSION: u16 = 1;
/// Bytes in front of the header.
const LEAD_BYTES: usize = MAGIC.len() + 2 + 4;
/// Longest header: a partition table, a boot area and a description.
const MAX_HEADER: usize = 160 << 20;
/// Longest report.
const MAX_REPORT: usize = 1 << 20;
/// Parts of all images.
const MAX_PARTS: usize = 4096;
/// Chunks of all images: 16 TiB.
const MAX_CHUNKS: u64 = 1 << 27;
/// How often a chunk may come: once a round (take/precopy has six before the freeze), and some more.
const MAX_TIMES: u32 = 12;

const EARLY: u8 = 1;
const HERE: u8 = 2;
const HELD: u8 = 3;
const ZEROS: u8 = 4;
const IMAGE: u8 = 5;
const END: u8 = 6;
const KNOWN: u8 = 7;
const KNOWN_HERE: u8 = 8;

/// One image, as the header tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// In a snapshot: the archive's name of it.
    pub path: String,
    /// The lengths of its parts in bytes.
    pub parts: Vec<u64>,
}

/// What stands in front.
#[derive(Clone, Debug, Default)]
pub struct StreamHeader {
    /// A snapshot, and not one image.
    pub is_snapshot: bool,
    /// A copy of something that need not be an image.
    pub as_it_is: bool,
    /// Of the entries of a snapshot.
    pub unix_seconds: u64,
    /// In front of the images of a snapshot.
    pub front: Vec<TextEntry>,
    /// In order.
    pub images: Vec<Framed>,
}

impl StreamHeader {
    /// As bytes, from the magic to the checksum.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Fault> {
        let large = |_| Fault::refused("header of frames too large");
        let mut body = vec![u8::from(self.is_snapshot), u8::from(self.as_it_is)];
        body.extend(self.unix_seconds.to_le_bytes());
        let name = |body: &mut Vec<u8>, name: &str| {
            body.push(u8::try_from(name.len()).map_err(large)?);
            body.extend_from_slice(name.as_bytes());
            Ok(())
        };
        let count = |count: usize| u16::try_from(count).map(u16::to_le_bytes).map_err(large);
        body.extend(count(self.front.len())?);
        for text in &self.front {
            name(&mut body, &text.path)?;
            body.extend(
                u32::try_from(text.bytes.len())
                    .map_err(large)?
                    .to_le_bytes(),
            );
            body.extend_from_slice(&text.bytes);
        }
        body.extend(count(self.images.len())?);
        for image in &self.images {
            name(&mut body, &image.path)?;
            body.extend(count(image.parts.len())?);
            image
                .parts
                .iter()
                .for_each(|part| body.extend(part.to_le_bytes()));
        }
        // What the other end would not take is not sent.
        Self::parse(&body)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).map_err(large)?.to_le_bytes());
        bytes.append(&mut body);
        bytes.extend(crc::crc32(0, &bytes).to_le_bytes());
        Ok(bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let corrupt = || Fault::corrupt("header of the frames");
        if bytes.len() > MAX_HEADER {
            return Err(corrupt());
        }
        let mut rest = Rest(bytes);
        let mut read = || -> Option<Self> {
            let flag = |byte: u8| (byte < 2).then_some(byte == 1);
            let mut header = Self {
                is_snapshot: flag(rest.number(1)?.try_into().ok()?)?,
                as_it_is: flag(rest.number(1)?.try_into().ok()?)?,
                unix_seconds: rest.number(8)?,
                ..Self::default()
            };
            for _ in 0..rest.number(2)? {
                let path = rest.name()?;
                let length = to_usize(rest.number(4)?);
                let bytes = rest.take(length)?.to_vec();
                header.front.push(TextEntry { path, bytes });
            }
            for _ in 0..rest.number(2)? {
                let path = rest.name()?;
                let parts = rest.number(2)?;
                let parts = (0..parts).map(|_| rest.number(8)).collect::<Option<_>>()?;
                header.images.push(Framed { path, parts });
            }
            let entries = header.front.len() + header.images.len();
            let fits = match header.is_snapshot {
                // Behind them come the checksums.
                true => !header.front.is_empty() && entries + 2 <= MAX_ENTRIES,
                false => header.front.is_empty() && header.images.len() == 1,
            };
            (fits && !header.images.is_empty() && rest.0.is_empty()).then_some(header)
        };
        read().ok_or_else(corrupt)
    }
}

/// Bytes that are taken apart from the front.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes, at most 8.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(number(self.take(bytes)?))
    }

    fn name(&mut self) -> Option<String> {
        let length = to_usize(self.number(1)?);
        let name = std::str::from_utf8(self.take(length.min(MAX_NAME))?).ok()?;
        (name.len() == length).then(|| name.to_owned())
    }
}

/// Little-endian; of more than 8 bytes the first ones.
fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(wide)
}

/// Where chunks lie.
#[derive(Clone, Debug, Default)]
struct ChunkLayout {
    /// For each part the number of its first chunk, and its length.
    parts: Vec<(u64, u64)>,
    /// For each image the number of the chunk behind its last one.
    ends: Vec<u64>,
    size_bytes: u64,
}

impl ChunkLayout {
    fn new(images: &[Framed]) -> Result<Self, Fault> {
        let absurd = || Fault::corrupt("size of the images in the frames");
        let mut layout = Self {
            parts: Vec::new(),
            ends: Vec::new(),
            size_bytes: 0,
        };
        let mut chunks = 0u64;
        for image in images {
            for length in &image.parts {
                layout.parts.push((chunks, *length));
                let size = layout.size_bytes.checked_add(*length);
                layout.size_bytes = size.ok_or_else(absurd)?;
                chunks = chunks.saturating_add(length.div_ceil(CHUNK_BYTES));
            }
            layout.ends.push(chunks);
        }
        match chunks <= MAX_CHUNKS && layout.parts.len() <= MAX_PARTS {
            true => Ok(layout),
            false => Err(absurd()),
        }
    }

    fn chunks(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The first chunk of an image.
    fn first(&self, image: usize) -> u64 {
        let before = image.checked_sub(1).and_then(|at| self.ends.get(at));
        before.copied().unwrap_or(0)
    }

    /// Raw bytes of a chunk; `None` where there is none.
    fn raw_bytes(&self, chunk: u64) -> Option<u64> {
        // Of several that begin with this number all but the last one are empty.
        let behind = self.parts.partition_point(|(first, _)| *first <= chunk);
        let (first, length) = self.parts.get(behind.checked_sub(1)?)?;
        let offset = chunk.checked_sub(*first)?.checked_mul(CHUNK_BYTES)?;
        let rest = length.checked_sub(offset).filter(|rest| *rest > 0)?;
        Some(rest.min(CHUNK_BYTES))
    }
}

/// What a longest packed chunk may have.
const MAX_PACKED: usize = crate::stream::deflate::bound(128 * 1024);
const _: () = assert!(CHUNK_BYTES == 128 * 1024);

/// The checksum of everything but packed bytes.
#[derive(Debug, Default)]
struct Control(u32);

impl Control {
    fn add(&mut self, bytes: &[u8]) {
        self.0 = crc::crc32(self.0, bytes);
    }
}

/// Most bytes that may lie there beside what is held, where a filesystem does not give room back.
fn most_dead_bytes(size_bytes: u64) -> u64 {
    size_bytes.saturating_add(to_u64(MAX_PACKED) * 64)
}

#[cfg(test)]
mod tests;
