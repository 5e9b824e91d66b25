//! The other end of frames: what comes is held, packed as it is, in a file without a name (a pull's has one, so that the next can go
//! on from it), and given in order to an emitter of the standard format, without being encoded again.
//!
//! Nothing is believed: numbers are in range, lengths bounded, a chunk comes a bounded number of times, what is replaced gives its
//! room back, what is noted of each lies in a file, and every image must have the checksum that its end says. That
//! what is packed is what its checksum says shows when the standard format is read, as it is by everybody who gets it; who writes over
//! something meanwhile asks before ([`Received::check`]).

mod check;
mod emit;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::FallocateFlags;

use self::emit::Proof;
use super::known::{self, Index, KnownHere, Old, Packing, Remains, Telling};
use super::{
    ChunkLayout, Control, EARLY, END, HELD, HERE, IMAGE, KNOWN, KNOWN_HERE, LEAD_BYTES, MAGIC,
    MAX_HEADER, MAX_PACKED, MAX_REPORT, MAX_TIMES, StreamHeader, VERSION, ZEROS, most_dead_bytes,
    number,
};
use crate::crc;
use crate::error::{Cause, Fault, FaultKind};
use crate::stream::input::Input;
use crate::stream::output::Sum;
use crate::stream::partfile::Left;
use crate::stream::pipeline::known::Hash;
use crate::sys::memory::Pages;
use crate::units::{round_up, to_u64, to_usize};

/// Unit of places in the file.
pub(super) const UNIT_BYTES: u64 = 4096;

/// A chunk that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldChunk {
    pub(super) place: u32,
    /// 0: zeros; [`IS_KNOWN`].
    pub(super) packed: u32,
    pub(super) crc32: u32,
    /// How often it came.
    pub(super) times: u32,
}

/// What a run without room fails with.
pub const NO_ROOM: &str =
    "write of what waits for the end of the stream (it needs more room there)";

pub(super) fn no_room(errno: Option<i32>) -> Fault {
    Fault::short(NO_ROOM)
        .with_errno(errno)
        .because(Cause::NoRoom)
}

/// Packed bytes of a chunk that is taken from what was there before.
const IS_KNOWN: u32 = u32::MAX;

impl HeldChunk {
    /// How many bytes it takes in the file, its head with it.
    pub(super) fn room_bytes(self) -> u64 {
        let bytes = u64::from(self.packed).saturating_add(to_u64(known::HEAD_BYTES));
        round_up(bytes, UNIT_BYTES).unwrap_or(0)
    }

    /// Where its packed bytes are.
    pub(super) fn offset(self) -> u64 {
        u64::from(self.place) * UNIT_BYTES + to_u64(known::HEAD_BYTES)
    }
}

/// Where what comes is held, and what is there already.
pub struct HeldStream {
    /// Empty, or what `left` is.
    pub file: File,
    /// Empty: what is noted of each chunk.
    pub index: File,
    /// It has a name, and stays where what comes breaks off.
    pub left: Option<Left>,
    /// The other end was told to expect hashes.
    pub known: Option<KnownHere>,
    /// The level at which the other end packs; 0: what is here is not packed again.
    pub level: u8,
    /// On so many CPUs.
    pub jobs: usize,
    /// More is not held.
    pub most_bytes: u64,
}

impl HeldStream {
    /// In files without a name.
    pub fn of(file: File, index: File) -> Self {
        Self {
            file,
            index,
            left: None,
            known: None,
            level: 1,
            jobs: 1,
            most_bytes: u64::MAX,
        }
    }

    /// What comes broke off: the chunks that came stay. `is_cut`: nothing was wrong with them.
    fn leave(&self, is_cut: bool) {
        if let (Some(left), false) = (&self.left, is_cut) {
            left.remove();
        }
    }
}

/// Everything that came, complete and in order.
pub struct Received {
    /// What stood in front.
    pub header: StreamHeader,
    /// The report that came with the end.
    pub report: Vec<u8>,
    layout: ChunkLayout,
    hold: HeldStream,
    index: Index,
    buffer: Pages,
    /// Of chunks that are [`IS_KNOWN`].
    hashes: Index,
    reused_bytes: u64,
    /// What an interrupted run left in the file, as far as it was found.
    remains: Index,
    old: Option<Old>,
    /// Where the file ends, in bytes.
    end: u64,
    /// Bytes that were replaced and did not give their room back.
    dead_bytes: u64,
    /// See [`Self::prove`].
    proof: Option<Proof>,
    done: Arc<AtomicU64>,
    /// Of the image that ended last.
    crc32: u32,
}

/// What stood in front of frames that are still to be taken.
pub struct Begun {
    /// As it came.
    pub header: StreamHeader,
    control: Control,
}

/// Takes what stands in front of the frames.
pub fn begin(input: &mut Input<'_>) -> Result<Begun, Fault> {
    let control = Control::default();
    let mut frames = Frames { input, control };
    let header = frames.header()?;
    let control = frames.control;
    Ok(Begun { header, control })
}

/// Takes all of `input`.
pub fn receive(input: &mut Input<'_>, hold: HeldStream) -> Result<Received, Fault> {
    let begun = begin(input)?;
    take(input, begun, hold)
}

/// Takes all frames from `input`, up to the end frame, behind which there must be nothing. What is held stays where they break off
/// and that has a name; where they are wrong it does not.
pub fn take(input: &mut Input<'_>, begun: Begun, mut hold: HeldStream) -> Result<Received, Fault> {
    let Begun { header, control } = begun;
    let layout = ChunkLayout::new(&header.images)?;
    let length = match &hold.left {
        Some(_) => hold.file.metadata().map_or(0, |meta| meta.len()),
        None => 0,
    };
    let known = hold.known.take();
    let index = |number| Index::new(&hold.index, number, layout.chunks());
    let mut received = Received {
        report: Vec::new(),
        index: index(0)?,
        hashes: index(1)?,
        remains: index(2)?,
        buffer: known::pages(MAX_PACKED)?,
        reused_bytes: 0,
        end: round_up(length, UNIT_BYTES).unwrap_or(u64::MAX),
        dead_bytes: 0,
        proof: None,
        done: Arc::default(),
        crc32: 0,
        old: None,
        header,
        layout,
        hold,
    };
    let telling = match known {
        Some(known) => Some(received.tell(known)?),
        None => None,
    };
    let mut frames = Frames { input, control };
    let result = received.frames(&mut frames, telling.is_some());
    received.old = telling.and_then(Telling::end);
    if let Err(fault) = result {
        // What is wrong goes on; what has come to its end was cut; and what cannot be held here is right all the same.
        let is_cut = fault.kind() != FaultKind::Corrupt || !matches!(input.byte(), Ok(Some(_)));
        received.hold.leave(is_cut);
        return Err(fault);
    }
    Ok(received)
}

/// What comes, and the checksum of all of it but packed bytes.
struct Frames<'f, 'i> {
    input: &'f mut Input<'i>,
    control: Control,
}

impl Frames<'_, '_> {
    /// All of `out`.
    fn read(&mut self, out: &mut [u8]) -> Result<(), Fault> {
        match self.input.read(out)? == out.len() {
            true => Ok(()),
            false => Err(
                Fault::corrupt("the frames end before their end frame: incomplete")
                    .with_offset(self.input.offset()),
            ),
        }
    }

    /// A number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u64, Fault> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        self.control.add(&bytes);
        Ok(number(&bytes))
    }

    fn word(&mut self) -> Result<u32, Fault> {
        Ok(u32::try_from(self.number::<4>()?).unwrap_or(u32::MAX))
    }

    /// So many bytes, in steps: what is announced need not come.
    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Fault> {
        const STEP: usize = 64 * 1024;
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let from = bytes.len();
            bytes.resize(length.min(from + STEP), 0);
            let piece = bytes.get_mut(from..).unwrap_or_default();
            self.read(piece)?;
            self.control.add(piece);
        }
        Ok(bytes)
    }

    /// What follows is the checksum of all that came before it.
    fn check(&mut self) -> Result<(), Fault> {
        let sum = self.control.0;
        match self.word()? == sum {
            true => Ok(()),
            false => Err(Fault::corrupt("checksum of the frames").with_offset(self.input.offset())),
        }
    }

    fn header(&mut self) -> Result<StreamHeader, Fault> {
        let mut lead = [0; LEAD_BYTES];
        self.read(&mut lead)?;
        self.control.add(&lead);
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
        let bytes = self.bytes(length)?;
        self.check()?;
        StreamHeader::parse(&bytes)
    }
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
    /// Says what is here already, while frames come.
    fn tell(&self, known: KnownHere) -> Result<Telling, Fault> {
        let images = self.header.images.iter();
        let paths = images.map(|image| image.path.clone()).collect();
        let file = known::again(&self.hold.file)?;
        let chunks = self.layout.chunks();
        let index = Index::new(&self.hold.index, 2, chunks)?;
        let remains = (self.end > 0).then(|| Remains::new(file, index, chunks, self.end));
        let packing = Packing {
            level: self.hold.level,
            jobs: self.hold.jobs,
            list: known::again(&self.hold.index)?,
        };
        let old = Old::new(paths, self.layout.clone(), known.earlier, remains, packing)?;
        Telling::start(old, known.stdin)
    }

    fn frames(&mut self, frames: &mut Frames<'_, '_>, is_told: bool) -> Result<(), Fault> {
        let mut order = Order {
            next: 0,
            image: 0,
            sum: Sum::new(),
            raw_bytes: 0,
        };
        // Each turn takes at least a byte of the input.
        loop {
            let offset = frames.input.offset();
            let kind = u8::try_from(frames.number::<1>()?).unwrap_or(0);
            if kind == END {
                return self.end(frames, &order);
            }
            // Only who was told what is here says that something is.
            let is_kind = is_told || !matches!(kind, KNOWN | KNOWN_HERE);
            self.frame(kind, is_kind, frames, &mut order)
                .map_err(|fault| fault.with_offset(fault.offset().unwrap_or(offset)))?;
        }
    }

    fn frame(
        &mut self,
        kind: u8,
        is_kind: bool,
        frames: &mut Frames<'_, '_>,
        order: &mut Order,
    ) -> Result<(), Fault> {
        match kind {
            EARLY | KNOWN if is_kind => {
                let chunk = u64::from(frames.word()?);
                if chunk < order.next {
                    return Err(Fault::corrupt("a chunk that comes behind its place"));
                }
                self.chunk(kind == KNOWN, frames, chunk)
            }
            HERE | KNOWN_HERE if is_kind => {
                self.chunk(kind == KNOWN_HERE, frames, order.next)?;
                let raw_bytes = self.layout.raw_bytes(order.next).unwrap_or(0);
                self.run(order, raw_bytes, true)
            }
            HELD | ZEROS => {
                let length = frames.number::<8>()?;
                self.run(order, length, kind == HELD)
            }
            IMAGE => {
                let crc32 = frames.word()?;
                self.end_image(order, crc32)
            }
            _ => Err(Fault::corrupt("kind of a frame")),
        }
    }

    fn end(&mut self, frames: &mut Frames<'_, '_>, order: &Order) -> Result<(), Fault> {
        let raw_bytes = frames.number::<8>()?;
        let length = to_usize(u64::from(frames.word()?));
        if length > MAX_REPORT {
            return Err(Fault::corrupt("report in the end frame"));
        }
        self.report = frames.bytes(length)?;
        frames.check()?;
        if order.image != self.header.images.len() || raw_bytes != order.raw_bytes {
            return Err(Fault::corrupt("an end frame before the end of the images"));
        }
        match frames.input.byte()? {
            None => Ok(()),
            Some(_) => Err(Fault::corrupt("bytes behind the end frame")),
        }
    }

    /// How many bytes of the images were here before.
    pub fn reused_bytes(&self) -> u64 {
        self.reused_bytes
    }

    /// Length of all images.
    pub fn size_bytes(&self) -> u64 {
        self.layout.size_bytes
    }

    /// From now on every chunk that is given was inflated here, and is what its checksum says: what is taken as it is was inflated when
    /// its hash was said, and all others are now. Who gets them need not inflate them once more.
    pub fn prove(&mut self) -> Result<(), Fault> {
        self.proof = Some(Proof::new()?);
        Ok(())
    }

    /// How many bytes of the images were given.
    pub fn done(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Of the last image.
    pub fn crc32(&self) -> u32 {
        self.crc32
    }

    /// None of it is wanted any more.
    pub fn forget(&self) {
        self.hold.leave(false);
    }

    /// What a chunk that comes replaces gives its room back; the number of times it came is then this.
    fn replace(&mut self, chunk: u64) -> Result<(u32, u64), Fault> {
        let raw_bytes = self.layout.raw_bytes(chunk);
        let raw_bytes = raw_bytes.ok_or_else(|| Fault::corrupt("number of a chunk"))?;
        let before = self.index.entry(chunk)?;
        if before.times >= MAX_TIMES {
            return Err(Fault::corrupt("a chunk that comes again and again"));
        }
        self.give_back(before)?;
        Ok((before.times + 1, raw_bytes))
    }

    /// A chunk that comes, or is here already: from its checksum on.
    fn chunk(
        &mut self,
        is_known: bool,
        frames: &mut Frames<'_, '_>,
        chunk: u64,
    ) -> Result<(), Fault> {
        let mut entry = HeldChunk {
            crc32: frames.word()?,
            packed: IS_KNOWN,
            ..HeldChunk::default()
        };
        if is_known {
            let mut hash = Hash::default();
            frames.read(&mut hash)?;
            (entry.times, _) = self.replace(chunk)?;
            self.hashes.set_bytes(chunk, &hash)?;
            return self.index.set(chunk, entry);
        }
        entry.packed = frames.word()?;
        let length = to_usize(u64::from(entry.packed));
        if length > MAX_PACKED {
            return Err(Fault::corrupt("length of a chunk"));
        }
        let (times, raw_bytes) = self.replace(chunk)?;
        entry.times = times;
        // What an interrupted run left of it is out of date.
        let remains = self.remains.entry(chunk)?;
        self.give_back(remains)?;
        if length == 0 {
            entry.crc32 = crc::zeros(raw_bytes);
        } else {
            frames.read(self.buffer.get_mut(..length).unwrap_or_default())?;
            entry.place = self.hold(chunk, entry)?;
        }
        self.index.set(chunk, entry)
    }

    /// Writes what is in the buffer behind everything, and gives its place.
    fn hold(&mut self, chunk: u64, entry: HeldChunk) -> Result<u32, Fault> {
        let length = to_usize(u64::from(entry.packed));
        let bytes = self.buffer.get(..length).unwrap_or_default();
        let file = &self.hold.file;
        let behind = self.end.saturating_add(to_u64(known::HEAD_BYTES));
        if behind.saturating_add(to_u64(length)) > self.hold.most_bytes {
            return Err(no_room(None));
        }
        // The head comes last: what has one is whole, as far as a machine that goes on is concerned.
        let written = file
            .write_all_at(bytes, behind)
            .and_then(|()| file.write_all_at(&known::head(chunk, entry), self.end));
        written.map_err(|error| no_room(error.raw_os_error()))?;
        let place = u32::try_from(self.end / UNIT_BYTES);
        self.end = self.end.saturating_add(entry.room_bytes());
        place.map_err(|_| Fault::refused("more than 16 TiB are to be held"))
    }

    /// The room of what is not needed any more.
    fn give_back(&mut self, entry: HeldChunk) -> Result<(), Fault> {
        if entry.packed == 0 || entry.packed == IS_KNOWN {
            return Ok(());
        }
        let offset = u64::from(entry.place) * UNIT_BYTES;
        let length = entry.room_bytes();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.hold.file, hole, offset, length).is_err() {
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
            let entry = self.index.entry(order.next)?;
            if is_held {
                if entry.times == 0 {
                    return Err(Fault::corrupt("a chunk that never came"));
                }
                order.sum.data(entry.crc32, raw_bytes);
                if entry.packed == IS_KNOWN {
                    self.reused_bytes = self.reused_bytes.saturating_add(raw_bytes);
                }
            } else if entry.times > 0 {
                self.give_back(entry)?;
                self.index.set(order.next, HeldChunk::default())?;
            }
            rest -= raw_bytes;
            order.next += 1;
        }
        if !is_held {
            order.sum.zeros(length);
        }
        Ok(())
    }

    fn end_image(&mut self, order: &mut Order, crc32: u32) -> Result<(), Fault> {
        if self.layout.ends.get(order.image) != Some(&order.next) {
            return Err(Fault::corrupt("end of an image before its last chunk"));
        }
        if order.sum.crc32 != crc32 {
            return Err(Fault::corrupt("checksum of an image"));
        }
        self.crc32 = crc32;
        order.raw_bytes = order.raw_bytes.saturating_add(order.sum.raw_bytes);
        order.sum = Sum::new();
        order.image += 1;
        Ok(())
    }
}
