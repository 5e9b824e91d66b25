//! What is to be read, in order: images made of parts, each a device range with its used map; cut into spans of chunks.
//!
//! A chunk is at most [`CHUNK_BYTES`] of one part, on a grid that starts at the part's first byte. A span is what one read
//! call sequence brings into a slot: consecutive chunks that hold used blocks. Wholly free chunks become zero runs that cost
//! nothing. Planning allocates only in the constructors, never while it runs.

use crate::map::UsedMap;
use crate::overlay::Overlay;
use crate::units::{Extent, round_down};

/// Raw bytes of one chunk, the unit that is encoded alone.
pub(crate) const CHUNK_BYTES: u64 = 128 * 1024;

/// Raw bytes of one span at most: four chunks, one slot of the reader.
pub(crate) const SPAN_BYTES: u64 = 4 * CHUNK_BYTES;

/// What a part's bytes are.
#[derive(Debug)]
pub enum PartContent {
    /// Every byte is read.
    Whole,
    /// Only used extents are read; what lies past the map's end is free.
    Used(UsedMap),
}

/// A range of a device that makes up a range of an image.
#[derive(Debug)]
pub struct Part {
    /// Index of the device in the pipeline's list.
    pub device: usize,
    /// Where the part begins on the device, in bytes.
    pub device_offset: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// What to read of it.
    pub content: PartContent,
}

impl Part {
    /// The next used extent of this part in `[from, limit)`, relative to the part.
    pub fn next_used(&self, from: u64, limit: u64) -> Option<Extent> {
        let limit = limit.min(self.length_bytes);
        match &self.content {
            PartContent::Used(map) => map.next_used(from, limit),
            PartContent::Whole => (from < limit).then(|| Extent::between(from, limit)),
        }
    }

    /// Where the next used extent begins; its end, which may be far, is not looked for.
    fn first_used(&self, from: u64) -> Option<u64> {
        let (mut at, mut window) = (from, SPAN_BYTES);
        while at < self.length_bytes {
            let limit = at.saturating_add(window);
            if let Some(used) = self.next_used(at, limit) {
                return Some(used.offset);
            }
            (at, window) = (limit, window.saturating_mul(2));
        }
        None
    }

    /// Bytes that will be read.
    pub fn used_bytes(&self) -> u64 {
        match &self.content {
            PartContent::Whole => self.length_bytes,
            PartContent::Used(map) => map.used_bytes().min(self.length_bytes),
        }
    }
}

/// One piece of work, from a [`Cursor`] over a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// Consecutive chunks with used blocks, to be read from a part.
    Data {
        /// Index of the part.
        part: usize,
        /// Offset in the part; a multiple of [`CHUNK_BYTES`].
        offset: u64,
        /// At most [`SPAN_BYTES`].
        length_bytes: u64,
    },
    /// Zeros that nobody reads.
    Zeros {
        /// Length in bytes.
        length_bytes: u64,
    },
    /// The end of an image: its index.
    End(usize),
}

/// The parts of all images, in order.
#[derive(Debug)]
pub struct Plan {
    parts: Vec<Part>,
    /// For each image the index one past its last part.
    ends: Vec<usize>,
    /// Where the images are to differ from what is read.
    overlay: Overlay,
    /// For each part the number of its first chunk, counted over all parts; and the number of all.
    chunks: Vec<u64>,
}

impl Plan {
    /// One image after another, each a list of parts.
    pub fn new(images: Vec<Vec<Part>>) -> Self {
        let mut parts = Vec::new();
        let mut ends = Vec::new();
        for image in images {
            parts.extend(image);
            ends.push(parts.len());
        }
        let mut chunks = vec![0];
        let mut sum = 0u64;
        for part in &parts {
            sum = sum.saturating_add(part.length_bytes.div_ceil(CHUNK_BYTES));
            chunks.push(sum);
        }
        Self {
            parts,
            ends,
            chunks,
            overlay: Overlay::default(),
        }
    }

    /// The number, over all parts, of the chunk at `offset` of a part.
    pub fn chunk_at(&self, part: usize, offset: u64) -> u64 {
        let first = self.chunks.get(part).copied().unwrap_or(u64::MAX);
        first.saturating_add(offset / CHUNK_BYTES)
    }

    /// Whether the same blocks of a chunk are used in this plan and in another one of the same parts.
    pub fn uses_as(&self, other: &Self, part: usize, offset: u64) -> bool {
        let (Some(one), Some(two)) = (self.parts.get(part), other.parts.get(part)) else {
            return false;
        };
        let limit = offset.saturating_add(CHUNK_BYTES);
        let mut from = offset;
        loop {
            let (a, b) = (one.next_used(from, limit), two.next_used(from, limit));
            match (a, b) {
                (None, None) => return true,
                (Some(a), Some(b)) if a == b => from = a.end(),
                _ => return false,
            }
        }
    }

    /// With room for differences.
    #[must_use]
    pub fn with_overlay(mut self, overlay: Overlay) -> Self {
        self.overlay = overlay;
        self
    }

    /// Where the images differ from what is read: to be laid over every span.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// One part and the overlay, for who edits it before the plan runs.
    pub fn edit(&mut self, part: usize) -> Option<(&mut Part, &mut Overlay)> {
        Some((self.parts.get_mut(part)?, &mut self.overlay))
    }

    /// All parts, for readers.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All parts, for filling their maps before the plan runs.
    pub fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }

    /// Bytes that will be read.
    pub fn used_bytes(&self) -> u64 {
        self.parts
            .iter()
            .fold(0, |sum, part| sum.saturating_add(part.used_bytes()))
    }
}

/// How far a [`Plan`] has been handed out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    part: usize,
    image: usize,
    offset: u64,
}

impl Cursor {
    /// The image that the last span belongs to, unless that was its end.
    pub(crate) fn image(&self) -> usize {
        self.image
    }

    /// The next span; `None` after the last image's end.
    pub(crate) fn next_span(&mut self, plan: &Plan) -> Option<Span> {
        loop {
            let end = *plan.ends.get(self.image)?;
            if self.part >= end {
                self.image += 1;
                return Some(Span::End(self.image - 1));
            }
            let part = plan.parts.get(self.part)?;
            if self.offset >= part.length_bytes {
                self.part += 1;
                self.offset = 0;
                continue;
            }
            let start = self.offset;
            let data = part.first_used(start).map_or(part.length_bytes, |offset| {
                round_down(offset, CHUNK_BYTES).max(start)
            });
            if data > start {
                self.offset = data;
                return Some(Span::Zeros {
                    length_bytes: data - start,
                });
            }
            let length = span_length(part, start);
            self.offset = start + length;
            return Some(Span::Data {
                part: self.part,
                offset: start,
                length_bytes: length,
            });
        }
    }
}

/// Length of the data span at `start`: up to [`SPAN_BYTES`], ending before the first wholly free chunk.
fn span_length(part: &Part, start: u64) -> u64 {
    let limit = start.saturating_add(SPAN_BYTES).min(part.length_bytes);
    let mut end = start.saturating_add(CHUNK_BYTES).min(limit);
    while end < limit {
        let next = end.saturating_add(CHUNK_BYTES).min(limit);
        if part.next_used(end, next).is_none() {
            break;
        }
        end = next;
    }
    end - start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;

    #[test]
    fn spans_cover_every_byte_once_and_free_chunks_are_never_read() {
        let size = 40 * CHUNK_BYTES + 5000;
        let mut map =
            UsedMap::new(size - 3 * CHUNK_BYTES, BlockSize::from_bytes(1024).unwrap()).unwrap();
        map.set_all_free();
        for (offset, length_bytes) in [
            (0, 1024),
            (7 * CHUNK_BYTES + 4096, 2048),
            (8 * CHUNK_BYTES, 6 * CHUNK_BYTES),
        ] {
            map.set_used(Extent::at(offset, length_bytes));
        }
        // What lies past the end of a map is free.
        let mut nothing = UsedMap::new(1, BlockSize::from_bytes(1024).unwrap()).unwrap();
        nothing.set_all_free();
        let part = |content, length_bytes| Part {
            device: 0,
            device_offset: 0,
            length_bytes,
            content,
        };
        let plan = Plan::new(vec![
            vec![
                part(PartContent::Used(map), size),
                part(PartContent::Used(nothing), 100),
            ],
            vec![part(PartContent::Whole, 2 * SPAN_BYTES + 1)],
        ]);
        let mut spans = Vec::new();
        let mut cursor = Cursor::default();
        while let Some(span) = cursor.next_span(&plan) {
            spans.push(span);
        }
        let data = |part, offset, length_bytes| Span::Data {
            part,
            offset,
            length_bytes,
        };
        let zeros = |length_bytes| Span::Zeros { length_bytes };
        assert_eq!(
            spans,
            [
                data(0, 0, CHUNK_BYTES),
                zeros(6 * CHUNK_BYTES),
                data(0, 7 * CHUNK_BYTES, SPAN_BYTES),
                data(0, 11 * CHUNK_BYTES, 3 * CHUNK_BYTES),
                zeros(size - 14 * CHUNK_BYTES),
                zeros(100),
                Span::End(0),
                data(2, 0, SPAN_BYTES),
                data(2, SPAN_BYTES, SPAN_BYTES),
                data(2, 2 * SPAN_BYTES, 1),
                Span::End(1),
            ]
        );
    }
}
