//! The other end of frames: what comes is held, packed as it is, in a file without a name, and given in order to an emitter of the
//! standard format, without being encoded again.
//!
//! Nothing is believed: numbers are in range, lengths bounded, a chunk comes a bounded number of times, what is replaced gives its
//! room back, the memory is 16 bytes for each chunk that comes, and every image must have the checksum that its end says. That
//! what is packed is what its checksum says shows when the standard format is read, as it is by everybody who gets it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{
    Control, EARLY, END, HELD, HERE, Header, IMAGE, LEAD_BYTES, Layout, MAGIC, MAX_HEADER,
    MAX_PACKED, MAX_REPORT, MAX_TIMES, VERSION, ZEROS, most_dead_bytes, number,
};
use crate::crc;
use crate::error::Fault;
use crate::stream::input::Input;
use crate::stream::output::Sum;
use crate::stream::pipeline::{Emit, Encoded, Problem};
use crate::sys::memory::Pages;
use crate::units::{round_up, to_u64, to_usize};

/// Unit of places in the file.
const UNIT_BYTES: u64 = 4096;
/// Bytes of an entry of the index: where, how many packed bytes, checksum, how often it came.
const ENTRY_BYTES: usize = 16;

/// A chunk that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    place: u32,
    /// 0: zeros.
    packed: u32,
    crc32: u32,
    times: u32,
}

/// Everything that came, complete and in order.
pub struct Received {
    /// What stood in front.
    pub header: Header,
    /// The report that came with the end.
    pub report: Vec<u8>,
    layout: Layout,
    file: File,
    index: Pages,
    buffer: Pages,
    /// Where the file ends, in bytes.
    end: u64,
    /// Bytes that were replaced and did not give their room back.
    dead_bytes: u64,
}

/// Takes all frames from `input`, up to the end frame, behind which there must be nothing. `file`, which is empty, holds them.
pub fn receive(input: &mut Input<'_>, file: File) -> Result<Received, Fault> {
    let mut control = Control::default();
    let header = header(input, &mut control)?;
    let layout = Layout::new(&header.images)?;
    let memory = |errno| Fault::io("allocate", errno);
    let length = to_usize(layout.chunks()).checked_mul(ENTRY_BYTES);
    let length = length.ok_or_else(|| memory(Errno::NOMEM))?;
    let mut received = Received {
        header,
        report: Vec::new(),
        layout,
        file,
        index: Pages::new(length).map_err(memory)?,
        buffer: Pages::new(MAX_PACKED).map_err(memory)?,
        end: 0,
        dead_bytes: 0,
    };
    received.frames(input, &mut control)?;
    Ok(received)
}

fn incomplete() -> Fault {
    Fault::corrupt("the frames end before their end frame: incomplete")
}

/// All of `out`.
fn read(input: &mut Input<'_>, out: &mut [u8]) -> Result<(), Fault> {
    match input.read(out)? == out.len() {
        true => Ok(()),
        false => Err(incomplete().with_offset(Some(input.offset()))),
    }
}

/// A number of `N` bytes.
fn read_number<const N: usize>(input: &mut Input<'_>, control: &mut Control) -> Result<u64, Fault> {
    let mut bytes = [0; N];
    read(input, &mut bytes)?;
    control.add(&bytes);
    Ok(number(&bytes))
}

/// So many bytes, in steps: what is announced need not come.
fn read_bytes(
    input: &mut Input<'_>,
    control: &mut Control,
    length: usize,
) -> Result<Vec<u8>, Fault> {
    const STEP: usize = 64 * 1024;
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let from = bytes.len();
        bytes.resize(length.min(from + STEP), 0);
        let piece = bytes.get_mut(from..).unwrap_or_default();
        read(input, piece)?;
        control.add(piece);
    }
    Ok(bytes)
}

fn read_u32(input: &mut Input<'_>, control: &mut Control) -> Result<u32, Fault> {
    let number = read_number::<4>(input, control)?;
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

/// What follows is the checksum of all that came before it.
fn check(input: &mut Input<'_>, control: &mut Control) -> Result<(), Fault> {
    let sum = control.0;
    match read_u32(input, control)? == sum {
        true => Ok(()),
        false => Err(Fault::corrupt("checksum of the frames").with_offset(Some(input.offset()))),
    }
}

fn header(input: &mut Input<'_>, control: &mut Control) -> Result<Header, Fault> {
    let mut lead = [0; LEAD_BYTES];
    read(input, &mut lead)?;
    control.add(&lead);
    let (magic, rest) = lead.split_at(MAGIC.len());
    let (version, length) = rest.split_at(2);
    if magic != MAGIC {
        return Err(Fault::corrupt("not frames"));
    }
    if number(version) != u64::from(VERSION) {
        return Err(Fault::unsupported(
            "frames of a version that this floe does not know: use the same floe at both ends, or leave --frames out",
        )
        .in_unit("version", number(version)));
    }
    let length = to_usize(number(length));
    if length > MAX_HEADER {
        return Err(Fault::corrupt("header of the frames"));
    }
    let bytes = read_bytes(input, control, length)?;
    check(input, control)?;
    Header::parse(&bytes)
}

/// How far the order is.
struct Order {
    /// The next chunk.
    next: u64,
    /// The image it is of.
    image: usize,
    sum: Sum,
    /// Of all images.
    raw_bytes: u64,
}

impl Received {
    fn frames(&mut self, input: &mut Input<'_>, control: &mut Control) -> Result<(), Fault> {
        let mut order = Order {
            next: 0,
            image: 0,
            sum: Sum::new(),
            raw_bytes: 0,
        };
        // Each turn takes at least a byte of the input.
        loop {
            let offset = input.offset();
            let at = |fault: Fault| match fault.offset() {
                None => fault.with_offset(Some(offset)),
                Some(_) => fault,
            };
            match u8::try_from(read_number::<1>(input, control)?).unwrap_or(0) {
                EARLY => {
                    let chunk = u64::from(read_u32(input, control)?);
                    if chunk < order.next {
                        return Err(at(Fault::corrupt("a chunk that comes behind its place")));
                    }
                    self.chunk(input, control, chunk).map_err(at)?;
                }
                HERE => {
                    self.chunk(input, control, order.next).map_err(at)?;
                    let raw_bytes = self.layout.raw_bytes(order.next).unwrap_or(0);
                    self.run(&mut order, raw_bytes, true).map_err(at)?;
                }
                HELD => {
                    let length = read_number::<8>(input, control)?;
                    self.run(&mut order, length, true).map_err(at)?;
                }
                ZEROS => {
                    let length = read_number::<8>(input, control)?;
                    self.run(&mut order, length, false).map_err(at)?;
                }
                IMAGE => {
                    let crc32 = read_u32(input, control)?;
                    self.end_image(&mut order, crc32).map_err(at)?;
                }
                END => return self.end(input, control, &order),
                _ => return Err(at(Fault::corrupt("kind of a frame"))),
            }
        }
    }

    fn end(
        &mut self,
        input: &mut Input<'_>,
        control: &mut Control,
        order: &Order,
    ) -> Result<(), Fault> {
        let raw_bytes = read_number::<8>(input, control)?;
        let length = to_usize(u64::from(read_u32(input, control)?));
        if length > MAX_REPORT {
            return Err(Fault::corrupt("report in the end frame"));
        }
        self.report = read_bytes(input, control, length)?;
        check(input, control)?;
        if order.image != self.header.images.len() || raw_bytes != order.raw_bytes {
            return Err(Fault::corrupt("an end frame before the end of the images"));
        }
        match input.byte()? {
            None => Ok(()),
            Some(_) => Err(Fault::corrupt("bytes behind the end frame")),
        }
    }

    /// Where a chunk's entry is.
    fn slot(&mut self, chunk: u64) -> Option<&mut [u8]> {
        let at = to_usize(chunk).checked_mul(ENTRY_BYTES)?;
        self.index.get_mut(at..at.checked_add(ENTRY_BYTES)?)
    }

    fn entry(&self, chunk: u64) -> Entry {
        let at = to_usize(chunk).saturating_mul(ENTRY_BYTES);
        let bytes = self.index.get(at..).unwrap_or_default();
        let mut words = bytes.chunks(4).map(number);
        let mut word = || u32::try_from(words.next().unwrap_or(0)).unwrap_or(0);
        Entry {
            place: word(),
            packed: word(),
            crc32: word(),
            times: word(),
        }
    }

    fn set(&mut self, chunk: u64, entry: Entry) {
        let words = [entry.place, entry.packed, entry.crc32, entry.times];
        if let Some(slot) = self.slot(chunk) {
            for (to, word) in slot.chunks_mut(4).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// A chunk that comes: from its checksum on.
    fn chunk(
        &mut self,
        input: &mut Input<'_>,
        control: &mut Control,
        chunk: u64,
    ) -> Result<(), Fault> {
        let crc32 = read_u32(input, control)?;
        let packed = read_u32(input, control)?;
        let length = to_usize(u64::from(packed));
        let raw_bytes = self.layout.raw_bytes(chunk);
        let raw_bytes = raw_bytes.ok_or_else(|| Fault::corrupt("number of a chunk"))?;
        if length > MAX_PACKED {
            return Err(Fault::corrupt("length of a chunk"));
        }
        let before = self.entry(chunk);
        if before.times >= MAX_TIMES {
            return Err(Fault::corrupt("a chunk that comes again and again"));
        }
        self.give_back(before)?;
        let mut entry = Entry {
            crc32,
            packed,
            place: 0,
            times: before.times + 1,
        };
        if length == 0 {
            entry.crc32 = crc::zeros(raw_bytes);
        } else {
            let place = self.buffer.get_mut(..length).unwrap_or_default();
            read(input, place)?;
            entry.place = self.hold(length)?;
        }
        self.set(chunk, entry);
        Ok(())
    }

    /// Writes what is in the buffer behind everything, and gives its place.
    fn hold(&mut self, length: usize) -> Result<u32, Fault> {
        let bytes = self.buffer.get(..length).unwrap_or_default();
        let written = self.file.write_all_at(bytes, self.end);
        written.map_err(|error| {
            Fault::short("write of what is held until the end; more room is needed where it lies")
                .with_errno(error.raw_os_error())
        })?;
        let place = u32::try_from(self.end / UNIT_BYTES);
        let end = self.end.saturating_add(to_u64(length));
        self.end = round_up(end, UNIT_BYTES).unwrap_or(u64::MAX);
        place.map_err(|_| Fault::refused("more than 16 TiB are to be held"))
    }

    /// The room of what is not needed any more.
    fn give_back(&mut self, entry: Entry) -> Result<(), Fault> {
        if entry.packed == 0 {
            return Ok(());
        }
        let offset = u64::from(entry.place) * UNIT_BYTES;
        let length = round_up(u64::from(entry.packed), UNIT_BYTES).unwrap_or(0);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, hole, offset, length).is_err() {
            self.dead_bytes = self.dead_bytes.saturating_add(length);
        }
        match self.dead_bytes > most_dead_bytes(self.layout.size_bytes) {
            true => Err(Fault::refused(
                "what was replaced takes more than twice the image, on a filesystem that cannot give it back",
            )),
            false => Ok(()),
        }
    }

    /// The next `length` bytes in order are held, or zeros.
    fn run(&mut self, order: &mut Order, length: u64, is_held: bool) -> Result<(), Fault> {
        let end = self.layout.ends.get(order.image).copied().unwrap_or(0);
        let mut rest = length;
        while rest > 0 {
            let raw_bytes = self.layout.raw_bytes(order.next);
            let raw_bytes = raw_bytes.filter(|raw| order.next < end && *raw <= rest);
            let raw_bytes = raw_bytes.ok_or_else(|| Fault::corrupt("length of a run"))?;
            let entry = self.entry(order.next);
            if is_held {
                if entry.times == 0 {
                    return Err(Fault::corrupt("a chunk that never came"));
                }
                order.sum.data(entry.crc32, raw_bytes);
            } else if entry.times > 0 {
                self.give_back(entry)?;
                self.set(order.next, Entry::default());
            }
            rest -= raw_bytes;
            order.next += 1;
        }
        if !is_held {
            order.sum.zeros(length);
        }
        Ok(())
    }

    fn end_image(&self, order: &mut Order, crc32: u32) -> Result<(), Fault> {
        if self.layout.ends.get(order.image) != Some(&order.next) {
            return Err(Fault::corrupt("end of an image before its last chunk"));
        }
        if order.sum.crc32 != crc32 {
            return Err(Fault::corrupt("checksum of an image"));
        }
        order.raw_bytes = order.raw_bytes.saturating_add(order.sum.raw_bytes);
        order.sum = Sum::new();
        order.image += 1;
        Ok(())
    }

    /// Gives everything in order, and the room of each chunk back when it was given.
    pub fn emit(mut self, emit: &mut dyn Emit) -> Result<(), Problem> {
        let mut next = 0;
        for (image, end) in std::mem::take(&mut self.layout.ends)
            .into_iter()
            .enumerate()
        {
            let mut zeros = 0u64;
            while next < end {
                let raw_bytes = self.layout.raw_bytes(next).unwrap_or(0);
                let entry = self.entry(next);
                next += 1;
                if entry.packed == 0 {
                    zeros = zeros.saturating_add(raw_bytes);
                    continue;
                }
                if zeros > 0 {
                    emit.zeros(std::mem::take(&mut zeros))?;
                }
                let length = to_usize(u64::from(entry.packed));
                let bytes = self.buffer.get_mut(..length).unwrap_or_default();
                let place = u64::from(entry.place) * UNIT_BYTES;
                self.file.read_exact_at(bytes, place).map_err(|error| {
                    Fault::short("read of what is held").with_errno(error.raw_os_error())
                })?;
                emit.data(&Encoded::of(bytes, raw_bytes, entry.crc32))?;
                // No harm where that cannot be.
                let _ = self.give_back(entry);
            }
            if zeros > 0 {
                emit.zeros(zeros)?;
            }
            emit.end_image(image)?;
        }
        emit.finish()
    }
}
