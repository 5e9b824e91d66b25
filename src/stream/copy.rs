//! From an image reader to a target, one thread each, so that inflating and writing overlap.
//!
//! The reading thread owns the [`ImageReader`] and passes filled buffers through a channel that holds no more than there are
//! buffers; the writing thread (the caller) owns the [`Target`] and gives empty buffers back. A reader that fails or ends says so
//! in its last message. A writer that fails returns at once: the reader then finds its channel closed and ends too, or, when its
//! input stalls, ends with the process; nobody joins it.

use crate::threads::{Receiver, Sender, bounded, channel};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::content::Seen;
use crate::error::Fault;
use crate::stream::digest::Digest;
use crate::stream::image::{ImageReader, ImageRun};
use crate::stream::target::Target;
use crate::sys::memory::Pages;
use crate::units::{Extent, to_u64, to_usize};

/// Buffers in flight.
const BUFFERS: usize = 3;

/// Size of one buffer, in bytes: the largest single write.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// Stack of the reading thread, in bytes.
const STACK_BYTES: usize = 256 * 1024;

/// How far a job is; read by another thread.
#[derive(Debug, Default)]
pub(crate) struct CopyProgress {
    /// Bytes of the image that are done.
    pub done_bytes: AtomicU64,
    /// Bytes of the packed input that were read.
    pub input_bytes: AtomicU64,
    /// What `done_bytes` begins at, where several targets come one after the other.
    pub base_bytes: AtomicU64,
    /// Of how many; 0: not known.
    pub total_bytes: AtomicU64,
    /// A number of [`crate::report::PHASES`], one of those below.
    pub phase: AtomicUsize,
    /// Set to have the job end early.
    pub stop: AtomicBool,
}

/// What is known is written. While a job is at this or the next its input says how far.
pub(crate) const WRITING: usize = 0;
/// The input is read to know its length.
pub(crate) const MEASURING: usize = 1;
/// What nothing owns becomes zeros.
pub(crate) const ZEROING: usize = 2;
/// The target is compared.
pub(crate) const READING_BACK: usize = 3;

impl CopyProgress {
    /// Begins a phase of so many bytes.
    pub(crate) fn begin(&self, phase: usize, total_bytes: u64) {
        self.phase.store(phase, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.base_bytes.store(0, Ordering::Relaxed);
        self.done_bytes.store(0, Ordering::Relaxed);
    }

    /// An error once the job was told to stop.
    pub(crate) fn stopped(&self) -> Result<(), CopyFailure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(CopyFailure::Target(Fault::refused("stopped")));
        }
        Ok(())
    }
}

/// Which end failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CopyFailure {
    /// The image: unreadable, or not what it should be.
    Image(Fault),
    Target(Fault),
}

/// What is known when the image has ended well.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// Length of the image in bytes.
    pub size_bytes: u64,
    /// CRC-32 of the image.
    pub crc32: u32,
    /// Bytes of the packed input.
    pub input_bytes: u64,
    /// Bytes behind the head that are written, and no zeros ([`ImageReader::data_bytes`]).
    pub data_bytes: u64,
    /// The image's last bytes ([`crate::content::TAIL_BYTES`]).
    pub tail: Vec<u8>,
    /// What stands where another image would begin ([`ImageReader::watch`]).
    pub seen: Vec<Seen>,
}

impl Ended {
    /// Of a reader that came to its end.
    pub(crate) fn of(reader: &ImageReader<'_>) -> Self {
        Self {
            size_bytes: reader.offset(),
            crc32: reader.crc32(),
            input_bytes: reader.input_bytes(),
            data_bytes: reader.data_bytes(),
            tail: reader.tail().to_vec(),
            seen: reader.seen().to_vec(),
        }
    }
}

enum Message {
    Data(u64, Pages, usize),
    Zeros(u64, u64),
    Ended(Ended),
    Failed(Fault),
}

/// The reading thread, from the writer's side.
pub(crate) struct ReadAhead {
    messages: Receiver<Message>,
    spare: Sender<Pages>,
}

impl ReadAhead {
    /// Starts reading.
    pub(crate) fn start(
        reader: ImageReader<'static>,
        progress: Arc<CopyProgress>,
    ) -> Result<Self, Fault> {
        let (send, messages) = bounded(2 * BUFFERS);
        let (spare, empty) = channel();
        for _ in 0..BUFFERS {
            let pages = Pages::new(BUFFER_BYTES).map_err(|e| Fault::io("mmap", e))?;
            let _ = spare.send(pages);
        }
        crate::threads::start(
            c"read",
            STACK_BYTES,
            Box::new(move || read(reader, &empty, &send, &progress)),
        )
        .map_err(|errno| Fault::io("start a thread", errno))?;
        Ok(Self { messages, spare })
    }
}

fn read(
    mut reader: ImageReader<'static>,
    empty: &Receiver<Pages>,
    send: &Sender<Message>,
    progress: &CopyProgress,
) {
    let mut held = None;
    // Each turn takes at least one granule of the input, or is the last.
    loop {
        let Some(mut buffer) = held.take().or_else(|| empty.recv().ok()) else {
            return;
        };
        let offset = reader.offset();
        let message = match reader.next(&mut buffer) {
            Ok(ImageRun::Data(length)) => Message::Data(offset, buffer, length),
            Ok(ImageRun::Zeros(count)) => {
                held = Some(buffer);
                Message::Zeros(offset, count)
            }
            Ok(ImageRun::End) => Message::Ended(Ended::of(&reader)),
            Err(fault) => Message::Failed(fault),
        };
        let taken = reader.input_bytes();
        progress.input_bytes.store(taken, Ordering::Relaxed);
        let last = matches!(message, Message::Ended(_) | Message::Failed(_));
        if send.send(message).is_err() || last {
            return;
        }
    }
}

/// What happens to zero runs.
pub(crate) trait ZeroPolicy {
    /// The part of a zero run to be left alone for now; the rest is zeroed at once.
    fn leave(&mut self, run: Extent) -> Option<Extent>;
}

/// Zeroes every run at once.
pub(crate) struct ZeroAll;

impl ZeroPolicy for ZeroAll {
    fn leave(&mut self, _run: Extent) -> Option<Extent> {
        None
    }
}

/// Writes everything that comes, until the image ends. `digest` gets the same bytes.
pub(crate) fn write(
    ahead: &ReadAhead,
    target: &mut Target,
    zero_runs: &mut dyn ZeroPolicy,
    mut digest: Option<&mut Digest>,
    progress: &CopyProgress,
) -> Result<Ended, CopyFailure> {
    loop {
        progress.stopped()?;
        let lost = |_| CopyFailure::Image(Fault::short("the reading thread died"));
        match ahead.messages.recv().map_err(lost)? {
            Message::Data(offset, mut buffer, length) => {
                if let Some(digest) = digest.as_deref_mut() {
                    digest.data(buffer.get(..length).unwrap_or_default());
                }
                target
                    .write(offset, &mut buffer, length)
                    .map_err(CopyFailure::Target)?;
                done(progress, offset.saturating_add(to_u64(length)));
                let _ = ahead.spare.send(buffer);
            }
            Message::Zeros(offset, length_bytes) => {
                if let Some(digest) = digest.as_deref_mut() {
                    digest.zeros(length_bytes);
                }
                let run = Extent::at(offset, length_bytes);
                zero(target, run, zero_runs.leave(run), progress)?;
            }
            Message::Ended(ended) => return Ok(ended),
            Message::Failed(fault) => return Err(CopyFailure::Image(fault)),
        }
    }
}

fn done(progress: &CopyProgress, offset: u64) {
    let base = progress.base_bytes.load(Ordering::Relaxed);
    let done = base.saturating_add(offset);
    progress.done_bytes.store(done, Ordering::Relaxed);
}

/// Zeroes `run` but for `leave`, a part of it.
pub(crate) fn zero(
    target: &mut Target,
    run: Extent,
    leave: Option<Extent>,
    progress: &CopyProgress,
) -> Result<(), CopyFailure> {
    let Some(left) = leave else {
        return zero_extent(target, run, progress);
    };
    zero_extent(target, Extent::between(run.offset, left.offset), progress)?;
    target
        .skip(left.offset, left.length_bytes)
        .map_err(CopyFailure::Target)?;
    zero_extent(target, Extent::between(left.end(), run.end()), progress)
}

/// Zeroes an extent in steps.
pub(crate) fn zero_extent(
    target: &mut Target,
    extent: Extent,
    progress: &CopyProgress,
) -> Result<(), CopyFailure> {
    let mut rest = extent;
    while !rest.is_empty() {
        progress.stopped()?;
        rest = target.zero_step(rest).map_err(CopyFailure::Target)?;
        done(progress, rest.offset);
    }
    Ok(())
}

/// Reads `extent` of the target back in order and adds it to `digest`; what `skipped` names counts as zeros and is not read.
pub(crate) fn read_back(
    target: &Target,
    extent: Extent,
    skipped: &mut dyn FnMut(Extent) -> Option<Extent>,
    digest: &mut Digest,
    progress: &CopyProgress,
) -> Result<(), CopyFailure> {
    let mut buffer =
        Pages::new(BUFFER_BYTES).map_err(|e| CopyFailure::Target(Fault::io("mmap", e)))?;
    let mut offset = extent.offset;
    while offset < extent.end() {
        progress.stopped()?;
        let rest = Extent::between(offset, extent.end());
        let next = skipped(rest);
        if let Some(hole) = next.filter(|hole| hole.offset == offset) {
            digest.zeros(hole.length_bytes);
            offset = hole.end();
            continue;
        }
        let limit = next.map_or(extent.end(), |hole| hole.offset);
        if let Some(end) = target.hole_at(offset, limit) {
            digest.zeros(end - offset);
            offset = end;
            done(progress, offset);
            continue;
        }
        let length = to_usize((limit - offset).min(to_u64(BUFFER_BYTES)));
        target
            .read_back(offset, &mut buffer, length)
            .map_err(CopyFailure::Target)?;
        digest.data(buffer.get(..length).unwrap_or_default());
        offset = offset.saturating_add(to_u64(length));
        done(progress, offset);
    }
    Ok(())
}
