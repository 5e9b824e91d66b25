//! Gzip (RFC 1952) read as a stream: every header flag, several members one after the other, checksum and length of each checked.
//!
//! After the last member only zero padding may follow (tapes and block devices pad with it); anything else is corrupt. What was
//! given out before a wrong trailer cannot be called back: the caller learns at the end, and must say so.

use crate::crc;
use crate::error::{Cause, Fault};
use crate::stream::gzip::{AS_IT_IS, HEADER};
use crate::stream::inflate::{LOOK_BYTES, Outflow};
use crate::stream::input::Input;
use crate::units::to_u64;

/// The two bytes every member begins with.
pub const MAGIC: [u8; 2] = crate::content::GZIP_MAGIC;

/// The only compression method (deflate).
const METHOD_DEFLATE: u8 = 8;

// Header flags (RFC 1952, 2.3.1).
const FLAG_HEADER_CRC: u8 = 0x02;
const FLAG_EXTRA: u8 = 0x04;
const FLAG_NAME: u8 = 0x08;
const FLAG_COMMENT: u8 = 0x10;
const FLAGS_RESERVED: u8 = 0xe0;

/// Longest name or comment accepted, in bytes: the format sets no bound.
const TEXT_LIMIT: u32 = 64 * 1024;

/// So many beginnings of members are remembered at most.
const MEMBERS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemberState {
    /// A member must begin here.
    Header,
    Body,
    Trailer,
    /// Everything was read and was right.
    End,
}

/// A gzip stream being undone.
pub struct Gunzip {
    /// Of the member.
    data: Outflow,
    state: MemberState,
    as_it_is: bool,
    /// See [`Self::part`], and whether the data of the member ended in it.
    is_part: bool,
    has_end: bool,
    /// Bytes of the members before this one.
    before_bytes: u64,
    /// Where members begin, in the image and in the file, from `members_from` on; at most [`MEMBERS`].
    members: Vec<(u64, u64)>,
    members_from: u64,
    begins_as_ours: bool,
}

impl Gunzip {
    /// Ready for the first member. All memory is allocated here.
    pub fn new() -> Result<Self, Fault> {
        Ok(Self {
            data: Outflow::new()?,
            state: MemberState::Header,
            as_it_is: false,
            is_part: false,
            has_end: false,
            before_bytes: 0,
            members: Vec::new(),
            members_from: 0,
            begins_as_ours: false,
        })
    }

    /// For a part of one member's data: its input ends with the data, or between two blocks, on a byte. Who reads parts checks the
    /// trailer. The `first` one begins with the header.
    pub(crate) fn part(first: bool) -> Result<Self, Fault> {
        let state = if first {
            MemberState::Header
        } else {
            MemberState::Body
        };
        Ok(Self {
            state,
            is_part: true,
            ..Self::new()?
        })
    }

    /// Whether the last block of a member was read.
    pub(crate) fn has_end(&self) -> bool {
        self.has_end
    }

    /// From now on only members that begin at `offset` of the image or later are remembered.
    pub(crate) fn watch_members(&mut self, offset: u64) {
        self.members_from = offset;
        self.members.retain(|(begin, _)| *begin >= offset);
    }

    /// The first of them, in the image and in the file.
    pub(crate) fn member(&self) -> Option<(u64, u64)> {
        self.members.first().copied()
    }

    /// Whether the first header is as floe writes it; `gzip -1` writes the same.
    pub(crate) fn begins_as_ours(&self) -> bool {
        self.begins_as_ours
    }

    /// Whether the first header has [`AS_IT_IS`]: what is appended says nothing of what stands in front.
    pub fn is_as_it_is(&self) -> bool {
        self.as_it_is
    }

    /// Fills `out`; fewer bytes only after the last member, whose trailer was then right.
    pub fn read(&mut self, input: &mut Input<'_>, out: &mut [u8]) -> Result<usize, Fault> {
        let mut done = 0usize;
        while done < out.len() {
            let rest = out.get_mut(done..).unwrap_or_default();
            let count = self.data.give(rest);
            if count > 0 {
                done += count;
                continue;
            }
            match self.state {
                MemberState::Header => self.header(input)?,
                MemberState::Body => done += self.body(input, rest)?,
                MemberState::Trailer => self.trailer(input)?,
                MemberState::End => break,
            }
        }
        Ok(done)
    }

    /// Takes the zeros that come next, where they are known to be many: a multiple of `unit`, or 0.
    pub fn take_zeros(&mut self, unit: u64) -> u64 {
        self.data.take_zeros(unit)
    }

    /// One step: into `out` what fits.
    fn body(&mut self, input: &mut Input<'_>, out: &mut [u8]) -> Result<usize, Fault> {
        let offset = input.offset();
        let bytes = input.peek(LOOK_BYTES)?;
        if bytes.is_empty() && self.is_part && self.data.inflate.is_between_blocks() {
            self.state = MemberState::End;
            return Ok(0);
        }
        if bytes.is_empty() {
            return Err(ends_early(offset));
        }
        let step = self.data.step(bytes, out);
        let step = step.map_err(|fault| fault.with_offset(offset))?;
        if step.ended {
            self.has_end = true;
            self.state = match self.is_part {
                true => MemberState::End,
                false => MemberState::Trailer,
            };
        }
        input.consume(step.consumed);
        Ok(step.given)
    }

    /// Checks the trailer, then looks for another member, zero padding up to the end, or the end.
    fn trailer(&mut self, input: &mut Input<'_>) -> Result<(), Fault> {
        let offset = input.offset();
        let mut trailer = [0u8; 8];
        for byte in &mut trailer {
            *byte = input.byte()?.ok_or_else(|| ends_early(offset))?;
        }
        let [a, b, c, d, e, f, g, h] = trailer;
        if u32::from_le_bytes([a, b, c, d]) != self.data.crc32 {
            return Err(Fault::corrupt("gzip checksum is wrong").with_offset(offset));
        }
        // The length is kept modulo 2^32.
        if u64::from(u32::from_le_bytes([e, f, g, h])) != self.data.raw_bytes & 0xffff_ffff {
            return Err(Fault::corrupt("gzip length is wrong").with_offset(offset));
        }
        if input.peek(2)?.starts_with(&MAGIC) {
            self.before_bytes = self.before_bytes.saturating_add(self.data.raw_bytes);
            if self.before_bytes >= self.members_from && self.members.len() < MEMBERS {
                self.members.push((self.before_bytes, input.offset()));
            }
            self.state = MemberState::Header;
            return Ok(());
        }
        loop {
            let offset = input.offset();
            let bytes = input.fill()?;
            if bytes.is_empty() {
                self.state = MemberState::End;
                return Ok(());
            }
            if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                let offset = offset.saturating_add(to_u64(place));
                let fault = Fault::corrupt(
                    "data after the end of the gzip stream (as OpenWrt puts behind its images); 'zcat FILE | floe restore - TARGET' takes what is in front of it; it begins",
                );
                return Err(fault.because(Cause::Behind).with_offset(offset));
            }
            let count = bytes.len();
            input.consume(count);
        }
    }

    fn header(&mut self, input: &mut Input<'_>) -> Result<(), Fault> {
        let start = input.offset();
        let mut header = GzipHeader {
            input,
            crc: 0,
            start,
        };
        let fixed = header.bytes::<10>()?;
        let [m0, m1, method, flags, ..] = fixed;
        self.begins_as_ours |= start == 0 && fixed == HEADER;
        if [m0, m1] != MAGIC {
            return Err(Fault::corrupt("gzip magic").with_offset(start));
        }
        // What is in front of it was whole.
        let cause = match start {
            0 => Cause::Other,
            _ => Cause::Behind,
        };
        let bad = |what| Err(Fault::corrupt(what).because(cause).with_offset(start));
        if method != METHOD_DEFLATE {
            return bad("gzip compression method");
        }
        if flags & FLAGS_RESERVED != 0 {
            return bad("reserved gzip flags");
        }
        if flags & FLAG_EXTRA != 0 {
            let length = u16::from_le_bytes(header.bytes()?);
            // Ours stands alone; what others put there is stepped over.
            if length == 4 {
                let [a, b, ..] = header.bytes::<4>()?;
                self.as_it_is |= start == 0 && [a, b] == AS_IT_IS;
            } else {
                for _ in 0..length {
                    header.bytes::<1>()?;
                }
            }
        }
        for flag in [FLAG_NAME, FLAG_COMMENT] {
            if flags & flag != 0 {
                header.text()?;
            }
        }
        if flags & FLAG_HEADER_CRC != 0 {
            let [low, high, ..] = header.crc.to_le_bytes();
            if header.bytes::<2>()? != [low, high] {
                return Err(Fault::corrupt("gzip header checksum is wrong").with_offset(start));
            }
        }
        self.data.reset();
        self.state = MemberState::Body;
        Ok(())
    }
}

/// A header being read: the bytes with their running checksum.
struct GzipHeader<'h, 'a> {
    input: &'h mut Input<'a>,
    crc: u32,
    start: u64,
}

impl GzipHeader<'_, '_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = self.input.byte()?.ok_or_else(|| ends_early(self.start))?;
        }
        self.crc = crc::crc32(self.crc, &out);
        Ok(out)
    }

    fn text(&mut self) -> Result<(), Fault> {
        for _ in 0..TEXT_LIMIT {
            if self.bytes::<1>()? == [0] {
                return Ok(());
            }
        }
        Err(Fault::corrupt("gzip name or comment").with_offset(self.start))
    }
}

fn ends_early(offset: u64) -> Fault {
    Fault::corrupt("gzip stream ends early")
        .because(Cause::EndsEarly)
        .with_offset(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member with the given flags and optional fields.
    fn member(data: &[u8], flags: u8, fields: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
        out.extend_from_slice(fields);
        if flags & FLAG_HEADER_CRC != 0 {
            let [low, high, ..] = crc::crc32(0, &out).to_le_bytes();
            out.extend([low, high]);
        }
        out.extend(miniz_oxide::deflate::compress_to_vec(data, 1));
        out.extend(crc::crc32(0, data).to_le_bytes());
        out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        out
    }

    fn gunzip(bytes: &[u8], piece: usize) -> Result<Vec<u8>, Fault> {
        let mut input = Input::reader(bytes).unwrap();
        let mut gunzip = Gunzip::new().unwrap();
        let mut out = Vec::new();
        let mut buffer = vec![0; piece];
        loop {
            let count = gunzip.read(&mut input, &mut buffer)?;
            out.extend_from_slice(&buffer[..count]);
            if count < piece {
                return Ok(out);
            }
        }
    }

    fn sample() -> Vec<u8> {
        (0..90_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect()
    }

    #[test]
    fn every_header_flag_and_several_members_are_read() {
        let data = sample();
        let fields = b"\x03\x00abcname\0a comment\0";
        let all = FLAG_EXTRA | FLAG_NAME | FLAG_COMMENT | FLAG_HEADER_CRC | 1;
        let mut stream = member(&data, all, fields);
        stream.extend(member(b"", 0, b""));
        stream.extend(member(b"tail", 0, b""));
        let mut whole = data.clone();
        whole.extend(b"tail");
        for piece in [1000usize, 65_536, 1 << 20, whole.len()] {
            assert!(gunzip(&stream, piece).unwrap() == whole, "{piece}");
        }
        stream.extend([0; 700]);
        assert!(gunzip(&stream, 4096).unwrap() == whole);
        stream.push(1);
        let fault = gunzip(&stream, 4096).unwrap_err();
        assert!(
            fault
                .what()
                .starts_with("data after the end of the gzip stream")
        );
        assert_eq!(fault.offset(), Some(to_u64(stream.len() - 1)));
    }

    #[test]
    fn a_stream_cut_anywhere_is_corrupt() {
        let stream = member(&sample(), FLAG_NAME | FLAG_HEADER_CRC, b"name\0");
        for cut in (0..stream.len()).rev().take(40).chain(0..200) {
            let fault = gunzip(&stream[..cut], 65_536).unwrap_err();
            assert_eq!(fault.kind(), crate::error::FaultKind::Corrupt, "{cut}");
        }
    }

    #[test]
    fn a_wrong_checksum_length_or_header_is_corrupt() {
        let stream = member(b"some bytes", FLAG_HEADER_CRC, b"");
        // Not the time, level and system, nor the deflate data, whose last bits mean nothing.
        let last = stream.len() - 8;
        for place in (0..4).chain(10..12).chain(last..stream.len()) {
            let mut broken = stream.clone();
            broken[place] ^= 0x20;
            assert!(gunzip(&broken, 100).is_err(), "byte {place}");
        }
        assert_eq!(gunzip(&stream, 100).unwrap(), b"some bytes");
    }
}
