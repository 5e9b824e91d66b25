//! Inflate (RFC 1951) in fixed memory: the `inflate` crate's decoder over one window, allocated once.
//!
//! The window is the output: each step gives the bytes that were just written there, and they stay valid until the next step.
//!
//! Free space is what images are full of, and our own encoder writes it as one block of which every zero byte stands for 1032
//! zeros (see `zeros`). Where such a block begins, on a byte, between two blocks, is the only place where it is looked for; from
//! there on zero bytes are counted instead of inflated. Any other byte, and any other encoder's block, goes the ordinary way.

use inflate::{Decoder, Stop, WINDOW_BYTES, Window};

use super::input::{at_most, is_zero};
use super::zeros;
use crate::crc;
use crate::error::Fault;
use crate::sys::memory::Pages;
use crate::units::to_u64;

/// So many bytes of input a step should see where there are so many: the beginning of a zero run is recognised only whole.
pub(crate) const LOOK_BYTES: usize = 64;

/// What one step did.
#[derive(Debug)]
pub(crate) struct Inflated<'a> {
    /// Input bytes taken.
    pub consumed: usize,
    /// Bytes that came out.
    pub output: &'a [u8],
    /// Zeros that came out instead.
    pub zeros: u64,
    /// The last block ended: what follows in the input is not deflate any more.
    pub ended: bool,
}

/// One deflate stream being undone.
pub(crate) struct Inflate {
    decoder: Box<Decoder>,
    window: Pages,
    /// What a zero run begins with.
    head: heapless::Vec<u8, LOOK_BYTES>,
    run: ZeroRunState,
}

/// Where in a zero run of ours the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroRunState {
    /// Elsewhere.
    No,
    /// Between two blocks, on a byte.
    Maybe,
    /// This many bytes of its head are still to be inflated.
    Head(usize),
    /// Behind the head, with nothing but zero bytes since.
    Zeros,
}

impl Inflate {
    /// Ready for a stream. All memory is allocated here.
    pub(crate) fn new() -> Result<Self, Fault> {
        let (bytes, count) = zeros::head();
        let head = bytes.get(..count).unwrap_or_default();
        Ok(Self {
            decoder: Box::default(),
            window: Pages::new(WINDOW_BYTES).map_err(|e| Fault::io("mmap", e))?,
            head: heapless::Vec::from_slice(head).unwrap_or_default(),
            run: ZeroRunState::Maybe,
        })
    }

    /// Forgets the stream, ready for another.
    pub(crate) fn reset(&mut self) {
        self.decoder.reset();
        self.run = ZeroRunState::Maybe;
    }

    /// Whether a block begins with the next byte.
    pub(crate) fn is_between_blocks(&self) -> bool {
        self.run == ZeroRunState::Maybe
    }

    /// Takes what it can from `input` (not empty) and gives what came out; steps that neither take nor give nor end do not
    /// repeat for ever.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Inflated<'_>, Fault> {
        let mut input = input;
        if self.run == ZeroRunState::Maybe {
            self.run = match input.starts_with(&self.head) && !self.head.is_empty() {
                true => ZeroRunState::Head(self.head.len()),
                false => ZeroRunState::No,
            };
        }
        match self.run {
            ZeroRunState::Head(left) => input = input.get(..left).unwrap_or(input),
            ZeroRunState::Zeros => {
                let count = leading_zeros(input);
                if count > 0 {
                    return Ok(self.skip(count));
                }
                self.run = ZeroRunState::No;
            }
            ZeroRunState::No | ZeroRunState::Maybe => {}
        }
        self.inflate(input)
    }

    /// `count` zero bytes of a run. The decoder would come back to the state it is in, with so many more zeros in the window.
    fn skip(&mut self, count: usize) -> Inflated<'_> {
        let zeros = to_u64(count).saturating_mul(zeros::BYTES_A_ZERO);
        if let Ok(window) = (&mut *self.window).try_into() {
            self.decoder.pass_zeros(at_most(zeros, usize::MAX), window);
        }
        Inflated {
            consumed: count,
            output: &[],
            zeros,
            ended: false,
        }
    }

    fn inflate(&mut self, input: &[u8]) -> Result<Inflated<'_>, Fault> {
        let window: Result<&mut Window, _> = (&mut *self.window).try_into();
        let Ok(window) = window else {
            return Err(Fault::refused("size of the window"));
        };
        let ran = self.decoder.run(input, window);
        match (ran.stop, self.run) {
            (Stop::Corrupt, _) => return Err(Fault::corrupt("deflate data")),
            // A block takes at least ten bits, and less than a byte is held: this does not go on for ever.
            (Stop::Block { on_a_byte: true }, _) => self.run = ZeroRunState::Maybe,
            (Stop::Block { .. }, _) => self.run = ZeroRunState::No,
            (Stop::Input | Stop::Window, ZeroRunState::Head(left)) => {
                self.run = match left.saturating_sub(ran.taken) {
                    0 => ZeroRunState::Zeros,
                    left => ZeroRunState::Head(left),
                };
            }
            (Stop::Input | Stop::Window | Stop::End, _) => {}
        }
        Ok(Inflated {
            consumed: ran.taken,
            output: ran.output,
            zeros: 0,
            ended: ran.stop == Stop::End,
        })
    }
}

/// How many bytes at the front are zero.
fn leading_zeros(bytes: &[u8]) -> usize {
    let blocks = bytes.chunks_exact(4096);
    let whole = blocks.take_while(|block| is_zero(block)).count() * 4096;
    let rest = bytes.get(whole..).unwrap_or_default();
    whole + rest.iter().take_while(|byte| **byte == 0).count()
}

/// What comes out of one stream after the other, as much at a time as there is room for.
pub(super) struct Outflow {
    pub inflate: Inflate,
    /// Bytes of the last step that were not handed out yet.
    held: Vec<u8>,
    held_start: usize,
    /// Zeros that were not handed out yet; they come after `held`.
    zeros: u64,
    /// CRC-32 and number of all bytes that came out of the stream.
    pub crc32: u32,
    pub raw_bytes: u64,
}

/// What a step of it did.
pub(super) struct Poured {
    /// Input bytes taken.
    pub consumed: usize,
    /// Bytes handed out.
    pub given: usize,
    /// See [`Inflated::ended`].
    pub ended: bool,
}

impl Outflow {
    /// Ready for a stream. All memory is allocated here.
    pub(super) fn new() -> Result<Self, Fault> {
        Ok(Self {
            inflate: Inflate::new()?,
            held: Vec::with_capacity(64 * 1024),
            held_start: 0,
            zeros: 0,
            crc32: 0,
            raw_bytes: 0,
        })
    }

    /// Forgets the stream, ready for another.
    pub(super) fn reset(&mut self) {
        self.inflate.reset();
        (self.crc32, self.raw_bytes) = (0, 0);
    }

    /// Whether all that came out was handed out.
    pub(super) fn is_empty(&self) -> bool {
        self.held_start == self.held.len() && self.zeros == 0
    }

    /// Hands out what waits; 0 where nothing does.
    pub(super) fn give(&mut self, out: &mut [u8]) -> usize {
        let held = self.held.get(self.held_start..).unwrap_or_default();
        if !held.is_empty() {
            let count = give(held, out);
            self.held_start += count;
            return count;
        }
        let count = at_most(self.zeros, out.len());
        out.get_mut(..count).unwrap_or_default().fill(0);
        self.zeros -= to_u64(count);
        count
    }

    /// Takes the zeros that come next, where they are known to be many: a multiple of `unit`, or 0.
    pub(super) fn take_zeros(&mut self, unit: u64) -> u64 {
        if self.held_start < self.held.len() || unit == 0 {
            return 0;
        }
        let count = self.zeros - self.zeros % unit;
        self.zeros -= count;
        count
    }

    /// One step, when nothing waits: into `out` what fits, the rest waits.
    pub(super) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Poured, Fault> {
        let step = self.inflate.step(input)?;
        let raw_bytes = to_u64(step.output.len()).saturating_add(step.zeros);
        self.raw_bytes = self.raw_bytes.saturating_add(raw_bytes);
        self.crc32 = crc::crc32(self.crc32, step.output);
        if step.zeros > 0 {
            self.zeros = step.zeros;
            self.crc32 = crc::combine(self.crc32, crc::zeros(step.zeros), step.zeros);
        }
        let given = give(step.output, out);
        self.held.clear();
        self.held_start = 0;
        let rest = step.output.get(given..).unwrap_or_default();
        self.held.extend_from_slice(rest);
        Ok(Poured {
            consumed: step.consumed,
            given,
            ended: step.ended,
        })
    }
}

/// Copies as much as fits and says how much that was.
fn give(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_back_whatever_the_cuts_of_its_input() {
        let data: Vec<u8> = (0..300_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let packed = miniz_oxide::deflate::compress_to_vec(&data, 3);
        for cut in [1usize, 13, 4096, packed.len()] {
            let mut inflate = Inflate::new().unwrap();
            let mut out = Vec::new();
            let mut rest = packed.as_slice();
            loop {
                let step = inflate.step(&rest[..rest.len().min(cut)]).unwrap();
                assert_eq!(step.zeros, 0);
                out.extend_from_slice(step.output);
                rest = &rest[step.consumed..];
                if step.ended {
                    break;
                }
            }
            assert!(rest.is_empty());
            assert!(out == data);
        }
    }

    /// Everything that comes out, and how many of the bytes came as zeros.
    fn inflated(packed: &[u8], cut: usize) -> (Vec<u8>, u64) {
        let mut inflate = Inflate::new().unwrap();
        let (mut out, mut rest, mut skipped) = (Vec::new(), packed, 0);
        loop {
            let step = inflate.step(&rest[..rest.len().min(cut)]).unwrap();
            out.extend_from_slice(step.output);
            out.resize(out.len() + crate::units::to_usize(step.zeros), 0);
            skipped += step.zeros;
            rest = &rest[step.consumed..];
            if step.ended {
                assert!(rest.is_empty());
                return (out, skipped);
            }
        }
    }

    #[test]
    fn our_own_zero_runs_are_counted_and_everything_around_them_is_the_same() {
        let noise: Vec<u8> = (0..70_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        let mut deflater = super::super::deflate::Deflater::new(6);
        let (mut stream, mut raw) = (Vec::new(), Vec::new());
        // Runs of many lengths between data of lengths that bring every place of the window to a boundary; data that
        // looks like the head of a run, stored and inside a block; zeros that were packed in the ordinary way.
        let fake = zeros::ZeroRun::new(1 << 20).unwrap();
        let fake = [fake.head(), &[0; 900], fake.tail()].concat();
        for turn in 0..60u32 {
            let length = 1024 + u64::from(turn * turn) * 3907;
            let run = zeros::ZeroRun::new(length).unwrap();
            stream.extend_from_slice(run.head());
            stream.resize(stream.len() + crate::units::to_usize(run.zero_bytes()), 0);
            stream.extend_from_slice(run.tail());
            raw.resize(raw.len() + crate::units::to_usize(length), 0);
            let count = crate::units::to_usize(u64::from(turn * 1091));
            let again = raw[raw.len() - 1000..].to_vec();
            for data in [&noise[..count], &fake, &again] {
                let mut out = vec![0; crate::stream::deflate::bound(data.len())];
                let packed = deflater.encode(data, &mut out).unwrap();
                stream.extend_from_slice(&out[..packed]);
                raw.extend_from_slice(data);
            }
            let stored = u16::try_from(fake.len()).unwrap();
            stream.push(0);
            stream.extend(stored.to_le_bytes());
            stream.extend((!stored).to_le_bytes());
            stream.extend_from_slice(&fake);
            raw.extend_from_slice(&fake);
        }
        stream.extend(crate::stream::deflate::FINAL_BLOCK);
        assert!(miniz_oxide::inflate::decompress_to_vec(&stream).unwrap() == raw);
        for cut in [1usize, 70, 1000, 65_536, stream.len()] {
            let (out, skipped) = inflated(&stream, cut);
            assert!(out == raw, "{cut}");
            // A byte at a time nothing is recognised; else all but heads and tails.
            assert!((cut == 1) == (skipped == 0), "{cut}: {skipped}");
        }
    }

    #[test]
    fn behind_a_short_run_what_stood_before_it_can_still_be_reached() {
        for length in [1024u64, 3000, 20_000, 31_000, 40_000, 200_000] {
            let data: Vec<u8> = (0..40_000u32)
                .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
                .collect();
            let mut stream = Vec::new();
            for piece in data.chunks(65_535) {
                let stored = u16::try_from(piece.len()).unwrap();
                stream.push(0);
                stream.extend(stored.to_le_bytes());
                stream.extend((!stored).to_le_bytes());
                stream.extend_from_slice(piece);
            }
            let run = zeros::ZeroRun::new(length).unwrap();
            stream.extend_from_slice(run.head());
            stream.resize(stream.len() + crate::units::to_usize(run.zero_bytes()), 0);
            stream.extend_from_slice(run.tail());
            // A last block with fixed codes: 258 bytes from 32768 back (length code 285, distance code 29 with 13 extra bits).
            let mut bits = 0u64;
            let mut count = 0;
            for (value, width) in [
                (1u64, 1),
                (1, 2),
                (0b1010_0011, 8), // 285 is 11000101, first bit lowest
                (0b10111, 5),     // 29 is 11101
                (0x1fff, 13),
                (0, 7),
            ] {
                bits |= value << count;
                count += width;
            }
            stream.extend_from_slice(&bits.to_le_bytes()[..5]);
            let expected = miniz_oxide::inflate::decompress_to_vec(&stream).unwrap();
            let (out, skipped) = inflated(&stream, stream.len());
            assert!(out == expected, "{length}");
            assert_eq!(skipped > 0, run.zero_bytes() > 0, "{length}");
        }
    }

    #[test]
    fn broken_data_is_corrupt_and_never_loops() {
        let data = vec![5u8; 100_000];
        let packed = miniz_oxide::deflate::compress_to_vec(&data, 6);
        for place in 0..packed.len() {
            let mut broken = packed.clone();
            broken[place] ^= 0x55;
            let mut inflate = Inflate::new().unwrap();
            let mut rest = broken.as_slice();
            while !rest.is_empty() {
                match inflate.step(rest) {
                    Ok(step) if !step.ended => rest = &rest[step.consumed..],
                    _ => break,
                }
            }
        }
    }
}
