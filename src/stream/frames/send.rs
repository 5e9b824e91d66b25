//! What sends frames: the emitter of a run that freezes, and [`images`], for a file that is pushed.
//!
//! The emitter: what rounds of pre-copy take goes out at once, and what it was worth is said in order, after the freeze. A file goes
//! out in order, and without what the other end has.

use super::known::{EarlierImages, ImageChunks};
use super::{
    ChunkLayout, Control, EARLY, END, HELD, HERE, IMAGE, KNOWN, KNOWN_HERE, MAX_PACKED, MAX_REPORT,
    StreamHeader, ZEROS,
};
use crate::crc;
use crate::error::Fault;
use crate::stream::deflate::Deflater;
use crate::stream::output::{Output, Sum, Totals, TotalsCell};
use crate::stream::pipeline::known::{Hash, hash};
use crate::stream::pipeline::{Emit, Encoded, Problem};
use crate::stream::plan::CHUNK_BYTES;
use crate::sys::memory::Pages;
use crate::units::to_usize;

/// Gives the report, once, after the thaw, from the checksums of the images; may allocate.
pub type LastReport = Box<dyn FnMut(&[ImageSum]) -> Result<String, Fault> + Send>;

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
    ending: LastReport,
    totals: TotalsCell,
}

impl FrameEmitter {
    /// Writes the header at once, so that a sink that asks first has asked before anything freezes.
    pub fn new(
        output: Output,
        header: &StreamHeader,
        ending: LastReport,
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

/// Who takes an image in order, and says what of it is there already.
pub trait Talk {
    /// The hash of what is there instead of a chunk; in rising order.
    fn known(&mut self, chunk: u64) -> Option<Hash>;
    /// Takes all of it; `None`: nothing more is taken, and why, others know.
    fn say(&mut self, bytes: &[u8]) -> Option<()>;
}

/// Sends all of the images that the header tells of but what is there already, and at the end the report; gives how many bytes were.
pub fn images(
    header: &StreamHeader,
    from: &mut dyn EarlierImages,
    report: &str,
    talk: &mut dyn Talk,
) -> Result<u64, Fault> {
    let layout = ChunkLayout::new(&header.images)?;
    let memory = |errno| Fault::io("allocate", errno);
    let out = header.to_bytes()?;
    let mut sender = FrameSender {
        chunk: Pages::new(to_usize(CHUNK_BYTES)).map_err(memory)?,
        packed: Pages::new(MAX_PACKED).map_err(memory)?,
        deflater: Deflater::new(1),
        control: Control::default(),
        sum: Sum::new(),
        zeros: 0,
        reused: 0,
        out,
        talk,
    };
    // What is there is said only when it is known what comes.
    let mut more = sender.flush(&[]);
    for (index, image) in header.images.iter().enumerate() {
        let (reader, _) = from.image(&image.path).ok_or_else(gone)?;
        let mut chunks = ImageChunks::new(reader)?;
        let end = layout.ends.get(index).copied().unwrap_or(0);
        for number in layout.first(index)..end {
            if more.is_none() {
                return Ok(sender.reused);
            }
            let raw_bytes = layout.raw_bytes(number).unwrap_or(0);
            more = sender.chunk(&mut chunks, number, raw_bytes)?;
        }
        sender.end_image();
    }
    sender.end(layout.size_bytes, report)?;
    Ok(sender.reused)
}

fn gone() -> Fault {
    Fault::corrupt("an image that is shorter than it was")
}

/// What [`images`] goes on with from chunk to chunk.
struct FrameSender<'a> {
    chunk: Pages,
    packed: Pages,
    deflater: Deflater,
    control: Control,
    sum: Sum,
    /// Not said yet.
    zeros: u64,
    reused: u64,
    out: Vec<u8>,
    talk: &'a mut dyn Talk,
}

impl FrameSender<'_> {
    /// Says what waits, and packed bytes behind it; `None`: nothing more is taken.
    fn flush(&mut self, packed: &[u8]) -> Option<()> {
        self.control.add(&self.out);
        self.out.extend_from_slice(packed);
        let said = self.talk.say(&self.out);
        self.out.clear();
        said
    }

    /// The next chunk of an image.
    fn chunk(
        &mut self,
        chunks: &mut ImageChunks,
        number: u64,
        raw_bytes: u64,
    ) -> Result<Option<()>, Fault> {
        let raw = self.chunk.get_mut(..to_usize(raw_bytes));
        let raw = raw.unwrap_or_default();
        if !chunks.next(raw)?.ok_or_else(gone)? {
            self.zeros = self.zeros.saturating_add(raw_bytes);
            return Ok(Some(()));
        }
        run_of_zeros(&mut self.out, &mut self.sum, &mut self.zeros);
        let crc32 = crc::crc32(0, raw);
        self.sum.data(crc32, raw_bytes);
        let same = self.talk.known(number).filter(|known| *known == hash(raw));
        self.out
            .push(if same.is_some() { KNOWN_HERE } else { HERE });
        self.out.extend_from_slice(&crc32.to_le_bytes());
        if let Some(hash) = same {
            self.reused = self.reused.saturating_add(raw_bytes);
            return Ok(self.flush(&hash));
        }
        let length = self.deflater.encode(raw, &mut self.packed)?;
        let word = u32::try_from(length).unwrap_or(u32::MAX);
        self.out.extend_from_slice(&word.to_le_bytes());
        self.control.add(&self.out);
        self.out
            .extend_from_slice(self.packed.get(..length).unwrap_or_default());
        let said = self.talk.say(&self.out);
        self.out.clear();
        Ok(said)
    }

    fn end_image(&mut self) {
        run_of_zeros(&mut self.out, &mut self.sum, &mut self.zeros);
        self.out.push(IMAGE);
        self.out.extend_from_slice(&self.sum.crc32.to_le_bytes());
        self.sum = Sum::new();
    }

    fn end(&mut self, size_bytes: u64, report: &str) -> Result<(), Fault> {
        let length = u32::try_from(report.len()).ok();
        let length = length.filter(|_| report.len() <= MAX_REPORT);
        let length = length.ok_or_else(|| Fault::refused("report too long for frames"))?;
        self.out.push(END);
        self.out.extend_from_slice(&size_bytes.to_le_bytes());
        self.out.extend_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(report.as_bytes());
        self.control.add(&self.out);
        let sum = self.control.0.to_le_bytes();
        self.out.extend_from_slice(&sum);
        // Whether it was taken, the other end says.
        let _ = self.talk.say(&self.out);
        Ok(())
    }
}

fn run_of_zeros(out: &mut Vec<u8>, sum: &mut Sum, zeros: &mut u64) {
    let length = std::mem::take(zeros);
    if length > 0 {
        sum.zeros(length);
        out.push(ZEROS);
        out.extend_from_slice(&length.to_le_bytes());
    }
}
