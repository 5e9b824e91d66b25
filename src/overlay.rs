//! What an image says instead of its source: the few places where the two are meant to differ.
//!
//! A copy on write in memory: whoever edits reads through it and writes into it, and the readers of the stream lay it over what they
//! read. The source is never written. All memory is allocated by [`Overlay::new`]; when it is full, an edit is refused, and nothing
//! here allocates afterwards. The parts of all images share one overlay. What only turns to zeros needs no bytes of its own.

use crate::device::ReadAt;
use crate::error::Fault;
use crate::units::{self, Extent, to_u64, to_usize};

/// Bytes of one piece: the smallest block of the filesystems that are edited.
pub const PIECE_BYTES: usize = 1024;

/// The least that is blanked: the smallest inode of ext. Eight of them are a piece.
const BLANK_BYTES: u64 = 128;
/// So many pieces may have blanks for each one that has bytes of its own.
const BLANKS: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Piece {
    part: usize,
    /// Which piece of the part.
    number: u64,
    /// Where its bytes are.
    slot: usize,
}

/// What of a piece is zeros.
#[derive(Clone, Copy, Debug)]
struct Blanks {
    part: usize,
    /// Which piece of the part.
    number: u64,
    /// A bit for each eighth of it.
    eighths: u8,
}

/// Pieces of parts with bytes of their own.
#[derive(Debug, Default)]
pub struct Overlay {
    /// In order of part and number.
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
    /// Slots that were given out.
    slots: usize,
    /// In order of part and number.
    blanks: Vec<Blanks>,
}

impl Overlay {
    /// With room for `limit` pieces; memory is touched as it is needed.
    pub fn new(limit: usize) -> Self {
        Self {
            pieces: Vec::with_capacity(limit),
            bytes: vec![0; limit.saturating_mul(PIECE_BYTES)],
            slots: 0,
            blanks: Vec::with_capacity(limit.saturating_mul(BLANKS)),
        }
    }

    /// Index of the first piece of `part` that ends behind `offset`.
    fn first(&self, part: usize, offset: u64) -> usize {
        let number = offset / to_u64(PIECE_BYTES);
        let before = |piece: &Piece| (piece.part, piece.number) < (part, number);
        self.pieces.partition_point(before)
    }

    /// The pieces of `part` in `extent` that have blanks.
    fn blanks_within(&self, part: usize, extent: Extent) -> impl Iterator<Item = &Blanks> {
        let unit = to_u64(PIECE_BYTES);
        let first = (part, extent.offset / unit);
        let before = |blanks: &Blanks| (blanks.part, blanks.number) < first;
        let rest = self.blanks.get(self.blanks.partition_point(before)..);
        let here =
            move |blanks: &&Blanks| blanks.part == part && blanks.number * unit < extent.end();
        rest.unwrap_or_default().iter().take_while(here)
    }

    /// The pieces of `part` that reach into `extent`.
    fn within(&self, part: usize, extent: Extent) -> impl Iterator<Item = &Piece> {
        let rest = self.pieces.get(self.first(part, extent.offset)..);
        let here = move |piece: &&Piece| {
            piece.part == part && piece.number * to_u64(PIECE_BYTES) < extent.end()
        };
        rest.unwrap_or_default().iter().take_while(here)
    }

    /// Whether anything of `extent` differs.
    pub fn touches(&self, part: usize, extent: Extent) -> bool {
        let mut blanks = self.blanks_within(part, extent);
        self.within(part, extent).next().is_some() || blanks.next().is_some()
    }

    /// The extents of `part` that have bytes of their own, piece by piece.
    pub fn extents(&self, part: usize) -> impl Iterator<Item = Extent> {
        let all = Extent::at(0, u64::MAX);
        self.within(part, all)
            .map(|piece| Extent::at(piece.number * to_u64(PIECE_BYTES), to_u64(PIECE_BYTES)))
    }

    /// Forgets every difference of `part`; its memory is not used again.
    pub fn forget(&mut self, part: usize) {
        self.pieces.retain(|piece| piece.part != part);
        self.blanks.retain(|blanks| blanks.part != part);
    }

    /// Lays what differs over `buffer`, which was read from `offset` of `part`.
    pub fn apply(&self, part: usize, offset: u64, buffer: &mut [u8]) {
        let extent = Extent::at(offset, to_u64(buffer.len()));
        for piece in self.within(part, extent) {
            let start = piece.number * to_u64(PIECE_BYTES);
            let bytes = self.bytes.get(piece.slot * PIECE_BYTES..);
            let skip = to_usize(offset.saturating_sub(start));
            let own = bytes.and_then(|bytes| bytes.get(skip..PIECE_BYTES));
            let to = buffer.get_mut(to_usize(start.saturating_sub(offset))..);
            for (to, from) in to.into_iter().flatten().zip(own.into_iter().flatten()) {
                *to = *from;
            }
        }
        for blanks in self.blanks_within(part, extent) {
            let start = blanks.number * to_u64(PIECE_BYTES);
            for eighth in (0..8u64).filter(|bit| blanks.eighths >> bit & 1 != 0) {
                let from = start + eighth * BLANK_BYTES;
                let end = (from + BLANK_BYTES).saturating_sub(offset);
                let from = to_usize(from.saturating_sub(offset)).min(buffer.len());
                let to = buffer.get_mut(from..to_usize(end).min(buffer.len()));
                to.unwrap_or_default().fill(0);
            }
        }
    }
}

/// One part of an image as somebody edits it: its source, and over it the overlay.
pub struct OverlaidPart<'o> {
    source: &'o dyn ReadAt,
    overlay: &'o mut Overlay,
    part: usize,
}

impl<'o> OverlaidPart<'o> {
    /// Part number `part`, whose bytes are `source`'s.
    pub fn new(source: &'o dyn ReadAt, overlay: &'o mut Overlay, part: usize) -> Self {
        Self {
            source,
            overlay,
            part,
        }
    }

    /// Which part it is.
    pub fn part(&self) -> usize {
        self.part
    }

    /// The bytes at `offset` as the image will have them.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.source.read_at(offset, buffer)?;
        self.overlay.apply(self.part, offset, buffer);
        Ok(())
    }

    /// Writes `bytes` at `offset` of the image.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let extent = Extent::at(offset, to_u64(bytes.len()));
        self.edit(extent, &mut |at, piece| {
            let from = bytes.get(to_usize(at)..).unwrap_or_default();
            piece
                .iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to = *from);
        })
    }

    /// Calls `change` for each piece of `extent` with the offset in the extent and the bytes that the image has there.
    pub fn edit(
        &mut self,
        extent: Extent,
        change: &mut dyn FnMut(u64, &mut [u8]),
    ) -> Result<(), Fault> {
        let unit = to_u64(PIECE_BYTES);
        let mut offset = extent.offset;
        while offset < extent.end() {
            let start = offset / unit * unit;
            let end = extent.end().min(start.saturating_add(unit));
            let slot = self.slot(start)?;
            let place = slot * PIECE_BYTES;
            let bytes = self
                .overlay
                .bytes
                .get_mut(place + to_usize(offset - start)..place + to_usize(end - start));
            change(
                offset - extent.offset,
                bytes.ok_or_else(|| Fault::refused("piece of the overlay"))?,
            );
            offset = end;
        }
        Ok(())
    }

    /// Has all of `extent` be zeros, which begins and ends with an eighth of a piece. It shows after [`Self::settle`].
    pub fn blank(&mut self, extent: Extent) -> Result<(), Fault> {
        let mut offset = extent.offset / BLANK_BYTES * BLANK_BYTES;
        while offset < extent.end() {
            let (part, number) = (self.part, offset / to_u64(PIECE_BYTES));
            let eighth = 1 << (offset / BLANK_BYTES % 8);
            let blanks = &mut self.overlay.blanks;
            let last = blanks.last_mut();
            if let Some(last) = last.filter(|last| (last.part, last.number) == (part, number)) {
                last.eighths |= eighth;
            } else if blanks.len() < blanks.capacity() {
                blanks.push(Blanks {
                    part,
                    number,
                    eighths: eighth,
                });
            } else {
                return Err(full());
            }
            offset += BLANK_BYTES;
        }
        Ok(())
    }

    /// Puts what was blanked in order.
    pub fn settle(&mut self) {
        let key = |blanks: &Blanks| (blanks.part, blanks.number);
        if !self.overlay.blanks.is_sorted_by_key(key) {
            units::sort(&mut self.overlay.blanks, |a, b| key(a) < key(b));
        }
    }

    /// The slot of the piece at `start`, filled from the source when it is new.
    fn slot(&mut self, start: u64) -> Result<usize, Fault> {
        let overlay = &mut *self.overlay;
        let index = overlay.first(self.part, start);
        let number = start / to_u64(PIECE_BYTES);
        let known = overlay.pieces.get(index);
        if let Some(known) = known.filter(|p| (p.part, p.number) == (self.part, number)) {
            return Ok(known.slot);
        }
        let slot = overlay.slots;
        let length = self.source.size_bytes().saturating_sub(start);
        let length = to_usize(length).min(PIECE_BYTES);
        let place = slot * PIECE_BYTES;
        let bytes = overlay.bytes.get_mut(place..place + length);
        if overlay.pieces.len() == overlay.pieces.capacity() {
            return Err(full());
        }
        self.source.read_at(start, bytes.ok_or_else(full)?)?;
        let part = self.part;
        overlay.pieces.insert(index, Piece { part, number, slot });
        overlay.slots += 1;
        Ok(slot)
    }

    /// The extents that have bytes of their own so far.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        self.overlay.extents(self.part)
    }
}

fn full() -> Fault {
    Fault::refused("more to change in the image than there is memory for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_show_in_what_is_read_and_never_in_the_source_and_parts_are_kept_apart() {
        let source: Vec<u8> = (0..5000u32).map(|i| i.to_le_bytes()[0]).collect();
        let mut overlay = Overlay::new(4);
        let mut layer = OverlaidPart::new(&source, &mut overlay, 3);
        layer.write(1000, &[0xaa; 100]).unwrap();
        layer.write(4990, &[0xbb; 10]).unwrap();
        let mut model = source.clone();
        model[1000..1100].fill(0xaa);
        model[4990..].fill(0xbb);
        let mut seen = vec![0; 5000];
        layer.read(0, &mut seen).unwrap();
        assert_eq!(seen, model);
        for (offset, length) in [(1023usize, 2usize), (0, 1000), (1099, 1), (2000, 3000)] {
            let mut buffer = source[offset..offset + length].to_vec();
            overlay.apply(3, to_u64(offset), &mut buffer);
            assert_eq!(buffer, model[offset..offset + length]);
        }
        let mut other = vec![7; 2000];
        overlay.apply(2, 0, &mut other);
        overlay.apply(4, 0, &mut other);
        assert_eq!(other, [7; 2000]);
        let at = |offset| Extent::at(offset, 1);
        assert!(overlay.touches(3, at(0)) && !overlay.touches(3, at(2048)));
        assert!(!overlay.touches(1, at(0)));
    }

    #[test]
    fn a_full_overlay_refuses_and_keeps_what_it_has() {
        let source = vec![1; 8192];
        let mut overlay = Overlay::new(2);
        let mut layer = OverlaidPart::new(&source, &mut overlay, 0);
        layer.write(0, &[2; 2048]).unwrap();
        assert_eq!(layer.write(4096, &[3]).unwrap_err().exit().code(), 4);
        layer.write(1, &[4]).unwrap();
        assert_eq!(overlay.extents(0).count(), 2);
    }

    #[test]
    fn what_is_blanked_is_zeros_in_any_order_and_nothing_beside_it() {
        let source = vec![7; 8192];
        let mut overlay = Overlay::new(1);
        let mut layer = OverlaidPart::new(&source, &mut overlay, 2);
        layer.write(4096, &[9]).unwrap();
        for (offset, length) in [(4352, 256), (1920, 256), (4608, 128), (0, 128)] {
            layer.blank(Extent::at(offset, length)).unwrap();
        }
        layer.settle();
        let mut model = source.clone();
        model[4096] = 9;
        for range in [4352..4736, 1920..2176, 0..128] {
            model[range].fill(0);
        }
        for (offset, length) in [
            (0usize, 8192usize),
            (2000, 100),
            (100, 60),
            (4400, 3792),
            (5000, 9),
        ] {
            let mut buffer = source[offset..offset + length].to_vec();
            overlay.apply(2, to_u64(offset), &mut buffer);
            assert_eq!(buffer, model[offset..offset + length], "{offset}");
        }
        assert!(
            overlay.touches(2, Extent::at(2048, 1)) && !overlay.touches(2, Extent::at(3072, 1))
        );
        assert!(!overlay.touches(1, Extent::at(0, 8192)));
        let mut layer = OverlaidPart::new(&source, &mut overlay, 3);
        let full = (0..u64::MAX).find_map(|piece| layer.blank(Extent::at(piece * 2048, 128)).err());
        assert_eq!(full.unwrap().exit().code(), 4);
        overlay.forget(2);
        assert!(!overlay.touches(2, Extent::at(0, 8192)));
    }
}
