//! The emitter of frames: what rounds of pre-copy take goes out at once, and what it was worth is said in order, after the freeze.

use super::{Control, EARLY, END, HELD, HERE, Header, IMAGE, KNOWN, KNOWN_HERE, MAX_REPORT, ZEROS};
use crate::error::Fault;
use crate::stream::output::{Output, Sum, Totals, TotalsCell};
use crate::stream::pipeline::{Emit, Encoded, Problem};

/// Gives the report, once, after the thaw, from the checksums of the images; may allocate.
pub type Ending = Box<dyn FnMut(&[ImageSum]) -> Result<String, Fault> + Send>;

/// What an image was.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageSum {
    /// CRC-32 of its bytes.
    pub crc32: u32,
    /// How many these are.
    pub raw_bytes: u64,
}

/// Writes frames; see the room's page for the format.
pub struct FrameEmitter {
    output: Output,
    control: Control,
    /// Bytes in order that are held, and not said to be yet.
    held_bytes: u64,
    sum: Sum,
    sums: Vec<ImageSum>,
    ending: Ending,
    totals: TotalsCell,
}

impl FrameEmitter {
    /// Writes the header at once, so that a sink that asks first has asked before anything freezes.
    pub fn new(
        output: Output,
        header: &Header,
        ending: Ending,
        totals: TotalsCell,
    ) -> Result<Self, Problem> {
        let mut emitter = Self {
            output,
            control: Control::default(),
            held_bytes: 0,
            sum: Sum::new(),
            sums: Vec::with_capacity(header.images.len()),
            ending,
            totals,
        };
        emitter.control(&header.to_bytes()?)?;
        Ok(emitter)
    }

    fn control(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.control.add(bytes);
        self.output.write_all(bytes)
    }

    /// A kind and numbers.
    fn frame<const N: usize>(&mut self, kind: u8, numbers: [u32; N]) -> Result<(), Problem> {
        let mut bytes = heapless::Vec::<u8, 32>::new();
        let _ = bytes.push(kind);
        for number in numbers {
            let _ = bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.control(&bytes)
    }

    fn run(&mut self, kind: u8, length_bytes: u64) -> Result<(), Problem> {
        let [a, b, c, d, e, f, g, h] = length_bytes.to_le_bytes();
        self.control(&[kind, a, b, c, d, e, f, g, h])
    }

    /// Says what is held up to here.
    fn settle(&mut self) -> Result<(), Problem> {
        match std::mem::take(&mut self.held_bytes) {
            0 => Ok(()),
            held => self.run(HELD, held),
        }
    }
}

impl Emit for FrameEmitter {
    fn data(&mut self, chunk: &Encoded<'_>) -> Result<(), Problem> {
        let internal = |_| Problem::Internal(Fault::refused("number of a chunk"));
        let packed = u32::try_from(chunk.packed_bytes()).map_err(internal)?;
        if !chunk.is_early {
            self.settle()?;
            self.sum.data(chunk.crc32, chunk.raw_bytes);
        }
        let number = u32::try_from(chunk.chunk).map_err(internal)?;
        match (chunk.is_early, chunk.is_known) {
            (true, false) => self.frame(EARLY, [number, chunk.crc32, packed])?,
            (true, true) => self.frame(KNOWN, [number, chunk.crc32])?,
            (false, false) => self.frame(HERE, [chunk.crc32, packed])?,
            (false, true) => self.frame(KNOWN_HERE, [chunk.crc32])?,
        }
        self.output.write_parts(chunk.parts())
    }

    fn held(&mut self, raw_bytes: u64, crc32: u32) -> Result<(), Problem> {
        self.sum.data(crc32, raw_bytes);
        self.held_bytes = self.held_bytes.saturating_add(raw_bytes);
        Ok(())
    }

    fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem> {
        self.settle()?;
        self.sum.zeros(length_bytes);
        self.run(ZEROS, length_bytes)
    }

    fn end_image(&mut self, _image: usize) -> Result<(), Problem> {
        self.settle()?;
        let Sum {
            crc32, raw_bytes, ..
        } = std::mem::replace(&mut self.sum, Sum::new());
        self.frame(IMAGE, [crc32])?;
        if self.sums.len() < self.sums.capacity() {
            self.sums.push(ImageSum { crc32, raw_bytes });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Problem> {
        let report = (self.ending)(&self.sums)?;
        let length = u32::try_from(report.len()).unwrap_or(u32::MAX);
        if report.len() > MAX_REPORT {
            return Err(Fault::refused("report too long for frames").into());
        }
        let raw_bytes = self.sums.iter().map(|sum| sum.raw_bytes);
        let raw_bytes = raw_bytes.fold(0, u64::saturating_add);
        self.run(END, raw_bytes)?;
        self.control(&length.to_le_bytes())?;
        self.control(report.as_bytes())?;
        let sum = self.control.0.to_le_bytes();
        self.output.write_all(&sum)?;
        self.output.flush(false)?;
        *self.totals.lock() = Totals {
            written_bytes: self.output.written_bytes(),
            crc32: self.sums.first().map_or(0, |sum| sum.crc32),
            sha256: self.output.sha256(),
        };
        Ok(())
    }
}
