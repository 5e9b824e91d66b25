//! The chunk pipeline: source blocks in, ordered encoded chunks out, every core busy, memory fixed at the start.
//!
//! ```text
//!  plan ──► readers ──► slots ──► workers ──► spool (cells) ──► emitter ──► sink
//!           O_DIRECT    512 KiB   deflate     records in a      in order
//!                       each      CRC-32      ring, by number
//! ```
//!
//! **Who owns what.** The *core* (one mutex) owns the cursor over the plan, the ring of records, the queue of jobs and the free
//! slots. A reader that takes a span owns its slot until it has queued the slot's chunks as jobs; a worker borrows the slot
//! for reading and gives it back when the last of its chunks is encoded. Encoded bytes live in a [`Chain`] of spool cells that
//! was reserved when the span was handed out, so the chunk that is next in order always has room: nothing can deadlock on a
//! full spool. The emitter takes records strictly by number and releases their chains. A quarter of the spool is further slots:
//! what was read and waits for a worker, so that the disk alone decides how long a filesystem is frozen.
//!
//! **Who waits for whom.** Readers wait for a slot, ring space and cells; workers for jobs; the emitter for the record that is
//! next. A sink that does not read stops the emitter, then fills the spool, then stops the readers, and no one else. When
//! the last block has been read, `all read` is announced although workers and emitter still have work: the filesystem may thaw.
//! The emitter ends the stream (trailer) only after [`Pipeline::permit`], which follows a good thaw.
//!
//! **A copy** ([`Outlet::Places`]) has no records, cells or encoding: spans go from their slots straight to their targets, by as many
//! placers as there are jobs, and all of the spool is slots.
//!
//! **Frames** ([`Outlet::Frames`]): records go out by number here, too, but a chunk of a round of pre-copy has a record at once, and
//! what is at the other end holds it. See the `precopy` page, and `known` for what it has already.
//!
//! **When one fails**, the first problem is kept, everybody stops at the next lock, and nothing is written any more. Threads
//! may be stuck in a read or write that never returns; so all they share is leaked, never freed under them, and process exit
//! ends them. Nothing here allocates between [`Pipeline::start`] and the end of the run.

mod emit;
mod encode;
mod keyed;
pub mod known;
mod make;
mod placers;
mod precopy;
mod read;
mod shelf;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, OnceLock, RwLock};
use std::time::Duration;

pub use self::encode::is_zero;
use self::known::{Ahead, Hash, Hashes};
pub use self::placers::Placing;
use self::precopy::ReadPass;
pub use self::precopy::{Precopy, Round, Rounds};
use self::read::TakenSpan;
use self::shelf::Early;
use super::deflate;
use super::plan::{CHUNK_BYTES, Cursor, Plan, SPAN_BYTES, Span};
use crate::device::Device;
use crate::error::Fault;
use crate::sys::spool::{Cells, Chain};
use crate::threads::{Lock, forgive};
use crate::units::{to_u64, to_usize};

/// Chunks of one slot.
const CHUNKS_PER_SLOT: usize = 4;
/// Threads that read: two, so that the device has a request while the other is being accounted for.
const READERS: usize = 2;
/// Stack of every thread, in bytes: address space, touched as needed (unoptimised deflate keeps its tables there for a moment).
const STACK_BYTES: usize = 768 * 1024;

/// How chunks are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Deflate at this level (1 to 9).
    Deflate(u8),
    /// As they are.
    Raw,
}

impl Encoding {
    /// Most bytes an encoded chunk can have.
    const fn bound(self) -> usize {
        match self {
            Self::Deflate(_) => deflate::bound(CHUNK_LENGTH),
            Self::Raw => CHUNK_LENGTH,
        }
    }
}

const CHUNK_LENGTH: usize = 128 * 1024;
const _: () = assert!(CHUNK_LENGTH as u64 == CHUNK_BYTES && SPAN_BYTES == 4 * CHUNK_BYTES);

/// Where progress is counted; the guardian watches it.
pub trait Meter: Sync {
    /// `bytes` more were read from the source.
    fn read(&self, bytes: u64);
    /// `bytes` more were taken by the sink.
    fn taken(&self, bytes: u64);
}

/// One encoded chunk as the emitter sees it.
pub struct Encoded<'a> {
    held: Option<(&'a Cells, &'a Chain)>,
    bytes: &'a [u8],
    /// Raw bytes it stands for.
    pub raw_bytes: u64,
    /// CRC-32 of the raw bytes.
    pub crc32: u32,
    /// Its number, over all parts of the plan.
    pub chunk: u64,
    /// It was taken by a round of pre-copy: what it is worth is said later.
    pub is_early: bool,
    /// The other end has it: what is encoded is its hash.
    pub is_known: bool,
}

impl<'a> Encoded<'a> {
    /// A chunk that was encoded elsewhere.
    pub fn of(bytes: &'a [u8], raw_bytes: u64, crc32: u32) -> Self {
        Self {
            held: None,
            bytes,
            raw_bytes,
            crc32,
            chunk: 0,
            is_early: false,
            is_known: false,
        }
    }

    /// The encoded bytes, in pieces; of an early chunk none where it is zeros.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let held = self.held.into_iter();
        let held = held.flat_map(|(cells, chain)| cells.parts(chain));
        held.chain(std::iter::once(self.bytes))
    }

    /// How many bytes that are.
    pub fn packed_bytes(&self) -> usize {
        self.held.map_or(self.bytes.len(), |(_, chain)| chain.len())
    }
}

/// Takes records in order and forms the output stream. Runs in the emitter thread: no heap while frozen.
pub trait Emit: Send {
    /// An encoded chunk.
    fn data(&mut self, chunk: &Encoded<'_>) -> Result<(), Problem>;
    /// A run of zeros.
    fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem>;
    /// In [`Outlet::Frames`]: a chunk is what an early one with this checksum was.
    fn held(&mut self, _raw_bytes: u64, _crc32: u32) -> Result<(), Problem> {
        Err(Problem::Internal(Fault::refused(
            "a chunk that nobody holds",
        )))
    }
    /// An image is complete.
    fn end_image(&mut self, _image: usize) -> Result<(), Problem> {
        Ok(())
    }
    /// Everything was thawed and is consistent: end the stream, flush, fsync.
    fn finish(&mut self) -> Result<(), Problem>;
}

/// Where what was read goes.
pub enum Outlet {
    /// Encoded and in order, into one stream.
    Stream(Box<dyn Emit>),
    /// Encoded, into a stream whose reader holds what comes early, and takes what comes later instead.
    Frames(Box<dyn Emit>),
    /// As it is and in no order, to where each part belongs.
    Places(&'static dyn Placing),
}

/// What stopped the pipeline; the first one is kept.
#[derive(Clone, Copy, Debug)]
pub enum Problem {
    /// A read of the numbered device failed.
    Read(usize, Fault),
    /// The sink failed.
    Write(Fault),
    /// The reader of our pipe went away.
    ClosedPipe,
    /// An internal bound did not hold.
    Internal(Fault),
}

/// Sizes of a run, chosen before anything freezes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Worker threads; in a copy, writes in flight.
    pub jobs: usize,
    /// What the workers do; nothing in a copy.
    pub encoding: Encoding,
    /// Whether chunks are taken before the freeze, too, and what watches their devices meanwhile.
    pub precopy: Option<Precopy>,
    /// Memory beyond the fixed minimum, for encoded bytes that wait for the sink and for raw ones that wait for a worker.
    pub spool_bytes: u64,
    /// Where encoded bytes wait instead of memory, and how many bytes of it: a file without a name, allocated.
    pub spool_file: Option<(Arc<File>, u64)>,
    /// In [`Outlet::Frames`]: what the other end has already.
    pub hashes: Option<Hashes>,
}

#[derive(Debug)]
enum StreamRecord {
    Empty,
    Pending,
    Data {
        /// None: zeros that go out early.
        chain: Option<Chain>,
        raw_bytes: u32,
        crc32: u32,
        is_known: bool,
        /// Of a round whose chunks go out at once: the number of the chunk.
        early: Option<u64>,
    },
    /// A chunk that went out early.
    Held {
        raw_bytes: u64,
        crc32: u32,
    },
    Zeros(u64),
    End(usize),
}

struct EncodeJob {
    /// Of its record.
    number: u64,
    /// Of its chunk, over all parts of the plan.
    chunk: u64,
    goes: Goes,
    slot: usize,
    start: usize,
    length: usize,
    chain: Chain,
    /// What the other end has of it.
    known: Option<Hash>,
}

/// Where an encoded chunk goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    /// Into the ring of records, to be emitted.
    Out,
    /// Onto the shelf; with a hash of its content, where that may have to be compared later.
    OnShelf { hashed: bool },
    /// Both: into the ring at once, and noted on the shelf.
    Early { hashed: bool },
}

impl Goes {
    fn is_hashed(self) -> bool {
        matches!(self, Self::OnShelf { hashed } | Self::Early { hashed } if hashed)
    }
}

struct Core {
    pass: ReadPass,
    known: Ahead,
    early: Early,
    workers_busy: usize,
    cursor: Cursor,
    held: Option<Span>,
    plan_done: bool,
    readers_busy: usize,
    ring: Vec<StreamRecord>,
    /// Number of the record that is emitted next, and of the record that is handed out next.
    head: u64,
    tail: u64,
    jobs: VecDeque<EncodeJob>,
    /// Of a copy: spans that were read and are to be placed, how many are being placed, and whether placing may begin.
    spans: VecDeque<TakenSpan>,
    placers_busy: usize,
    begun: bool,
    slots_free: Vec<usize>,
    chunks_left: Vec<usize>,
    problem: Option<Problem>,
    permit: bool,
    drained: bool,
    finished: bool,
}

struct Shared {
    settings: Settings,
    devices: Vec<Device>,
    plan: OnceLock<Plan>,
    /// What a look before the freeze took for the plan.
    early_plan: OnceLock<Plan>,
    /// Cells that the stream needs to go on, and that nothing held may take.
    minimum_cells: u32,
    /// Parts of one mapping, however many: the kernel counts mappings (vm.max_map_count), and a process that has thousands is
    /// slow to start and to end.
    slots: Vec<RwLock<&'static mut [u8]>>,
    cells: Cells,
    core: Lock<Core>,
    can_read: Condvar,
    can_work: Condvar,
    can_emit: Condvar,
    can_know: Condvar,
    event: OwnedFd,
    meter: &'static dyn Meter,
    /// Bytes of the images, packed or not, that the sink has taken.
    emitted: AtomicU64,
    started: BegunThreads,
    key: keyed::HashKey,
    /// The sink of a copy.
    places: Option<&'static dyn Placing>,
    /// What rounds take goes out at once.
    frames: bool,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Advance {
    /// The last source block is in memory.
    pub all_read: bool,
    /// Not everything that is used is held or in memory.
    pub is_short: bool,
    /// A round before the freeze is over: what it took is encoded, or lies where it belongs.
    pub round_over: bool,
    /// Everything but the end of the stream has been taken by the sink.
    pub drained: bool,
    /// The stream is ended and flushed.
    pub finished: bool,
    /// What stopped it.
    pub problem: Option<Problem>,
}

/// A pipeline whose threads exist and wait; see the module's page.
pub struct Pipeline {
    shared: &'static Shared,
}

impl Pipeline {
    /// The devices, for walks before and in the frozen window.
    pub fn devices(&self) -> &'static [Device] {
        &self.shared.devices
    }

    /// Hands over the plan; reading begins at once. Allocates nothing.
    pub fn start(&self, plan: Plan) {
        let _ = self.shared.plan.set(plan);
        self.shared.lock().pass = ReadPass::Stream;
        // Taken so that no thread can miss the wake-up between its look at the plan and its wait.
        drop(self.shared.lock());
        self.shared.wake_all();
    }

    /// The plan that was started.
    pub fn plan(&self) -> Option<&'static Plan> {
        self.shared.plan.get()
    }

    /// Readable when [`Self::state`] may have changed.
    pub fn event(&self) -> BorrowedFd<'static> {
        self.shared.event.as_fd()
    }

    /// Clears the event and says how far the run is.
    pub fn state(&self) -> Advance {
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
        let core = self.shared.lock();
        Advance {
            all_read: core.needs_no_source(),
            is_short: core.is_short(),
            round_over: core.round_is_over(),
            drained: core.drained,
            finished: core.finished,
            problem: core.problem,
        }
    }

    /// Bytes of the images, as they were read, that the sink has taken.
    pub fn emitted_bytes(&self) -> u64 {
        self.shared.emitted.load(Ordering::Relaxed)
    }

    /// Allows the emitter to end the stream: everything was thawed well.
    pub fn permit(&self) {
        self.shared.lock().permit = true;
        self.shared.wake_all();
    }
}

impl Core {
    fn all_read(&self) -> bool {
        self.plan_done && self.readers_busy == 0
    }

    fn slot_of(&mut self, number: u64) -> Option<&mut StreamRecord> {
        let length = to_u64(self.ring.len());
        self.ring.get_mut(to_usize(number % length))
    }

    fn room(&self) -> u64 {
        to_u64(self.ring.len()) - (self.tail - self.head)
    }

    fn push(&mut self, record: StreamRecord) -> u64 {
        let number = self.tail;
        if let Some(place) = self.slot_of(number) {
            *place = record;
        }
        self.tail += 1;
        number
    }

    /// Pushes a record if there is room.
    fn offer(&mut self, record: StreamRecord) -> bool {
        let room = self.room() > 0;
        if room {
            self.push(record);
        }
        room
    }

    /// Adds to the zeros that were handed out last, if they still wait.
    fn merge_zeros(&mut self, length_bytes: u64) -> bool {
        if self.tail == self.head {
            return false;
        }
        match self.slot_of(self.tail - 1) {
            Some(StreamRecord::Zeros(before)) => {
                *before = before.saturating_add(length_bytes);
                true
            }
            _ => false,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic aborts the process, so a poisoned lock cannot be seen.
        self.core.lock()
    }

    fn wait<'a>(&self, condition: &Condvar, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        forgive(condition.wait(core))
    }

    fn wake_all(&self) {
        self.can_read.notify_all();
        self.can_work.notify_all();
        self.can_emit.notify_all();
        self.can_know.notify_all();
        self.announce();
    }

    fn announce(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn fail(&self, problem: Problem) {
        self.lock().problem.get_or_insert(problem);
        self.wake_all();
    }
}

/// Counts threads that have begun: the runtime allocates when a thread begins, which must not be in the frozen window.
#[derive(Debug, Default)]
pub struct BegunThreads(AtomicUsize);

impl BegunThreads {
    /// One more has begun.
    pub fn one(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Waits until `count` have begun.
    pub fn wait_for(&self, count: usize) {
        while self.0.load(Ordering::Acquire) < count {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// A thread that is done stays: its end would unmap its stack and free its memory while the filesystem is still frozen.
fn stay() {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests;
