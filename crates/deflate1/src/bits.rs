//! Bits of a deflate stream, lowest first (RFC 1951, 3.1.1), through a buffer as wide as a machine word.
//!
//! [`Bits::put`] only collects; [`Bits::settle`] writes whole bytes out and leaves at most seven bits. Between two of them there is
//! room for [`Word::BITS`] − 7 bits: what goes in together is chosen for that, with [`Bits::settle_narrow`] where only a 64-bit word would
//! hold more. The bytes are the same either way.

use crate::STORED_BYTES;

/// The buffer. A 64-bit shift takes four to six instructions on a 32-bit ARM; one of 32 bits takes one.
pub(crate) type Word = usize;

/// Whether four literals, or a length and a distance, go into a word.
pub(crate) const WIDE: bool = Word::BITS >= 64;

/// Where bits go. Holds fewer than eight of them that are not in `bytes` yet whenever it is settled.
pub(crate) struct Bits<'a> {
    bytes: &'a mut [u8],
    at: usize,
    held: Word,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            held: 0,
            count: 0,
        }
    }

    /// The same, borrowed: a copy of its own that the compiler may keep in registers. Goes back with [`Self::resume`].
    #[inline(always)]
    pub(crate) fn lend(&mut self) -> Bits<'_> {
        Bits {
            bytes: &mut *self.bytes,
            at: self.at,
            held: self.held,
            count: self.count,
        }
    }

    /// Where a lent copy has got to.
    #[inline(always)]
    pub(crate) fn state(&self) -> (usize, Word, u32) {
        (self.at, self.held, self.count)
    }

    /// Carries on where a lent copy has got to.
    #[inline(always)]
    pub(crate) fn resume(&mut self, (at, held, count): (usize, Word, u32)) {
        (self.at, self.held, self.count) = (at, held, count);
    }

    /// Adds the lowest `count` bits of `bits`, the others of which are zero.
    #[inline(always)]
    pub(crate) fn put(&mut self, bits: Word, count: u32) {
        self.held |= bits << self.count;
        self.count += count;
    }

    /// Adds a code, `code | width << 16`.
    #[inline(always)]
    pub(crate) fn put_code(&mut self, code: u32) {
        self.put((code & 0xffff) as Word, code >> 16);
    }

    /// Writes whole bytes out.
    #[inline(always)]
    pub(crate) fn settle(&mut self) {
        let word = self.held.to_le_bytes();
        if let Some(place) = self
            .bytes
            .get_mut(self.at..)
            .and_then(|rest| rest.first_chunk_mut())
        {
            *place = word;
        } else {
            self.settle_at_end();
        }
        self.at += (self.count >> 3) as usize;
        self.held >>= self.count & !7;
        self.count &= 7;
    }

    /// The last bytes of the output, where a whole word does not fit.
    #[cold]
    fn settle_at_end(&mut self) {
        let rest = self.bytes.get_mut(self.at..).unwrap_or_default();
        for (place, byte) in rest.iter_mut().zip(self.held.to_le_bytes()) {
            *place = byte;
        }
    }

    /// [`Self::put`] and [`Self::settle`] for what is rare: called, where those are part of every loop.
    #[inline(never)]
    pub(crate) fn push(&mut self, bits: Word, count: u32) {
        self.put(bits, count);
        self.settle();
    }

    /// [`Self::settle`] where the word is narrow, nothing where it is wide.
    #[inline(always)]
    pub(crate) fn settle_narrow(&mut self) {
        if !WIDE {
            self.settle();
        }
    }

    /// Stored blocks that hold `raw`; one that is empty for nothing. Ends on a byte border.
    #[inline(never)]
    pub(crate) fn stored(&mut self, raw: &[u8]) {
        let mut rest = raw;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(STORED_BYTES));
            // BFINAL 0, BTYPE 0, and zeros to the next byte.
            self.push(0, 3 + (5u32.wrapping_sub(self.count) & 7));
            let length = piece.len() as Word;
            self.push(length, 16);
            self.push(!length & 0xffff, 16);
            if let Some(place) = self.bytes.get_mut(self.at..self.at + piece.len()) {
                place.copy_from_slice(piece);
            }
            self.at += piece.len();
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// How many whole bytes were written.
    pub(crate) fn bytes(&self) -> usize {
        self.at
    }
}
