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
//! **When one fails**, the first problem is kept, everybody stops at the next lock, and nothing is written any more. Threads
//! may be stuck in a read or write that never returns; so all they share is leaked, never freed under them, and process exit
//! ends them. Nothing here allocates between [`Pipeline::start`] and the end of the run.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::deflate::{self, Deflater};
use super::plan::{CHUNK_BYTES, Cursor, Part, Plan, SPAN_BYTES, Span};
use crate::crc;
use crate::device::Device;
use crate::error::Fault;
use crate::sys::memory::Pages;
use crate::sys::spool::{CELL_BYTES, Cells, Chain, cells_for};
use crate::units::{round_down, round_up, to_u64, to_usize};

/// Chunks of one slot.
const CHUNKS_PER_SLOT: usize = 4;
/// Threads that read: two, so that the device has a request while the other is being accounted for.
const READERS: usize = 2;
/// Most slots that readers may run ahead: 2 GiB.
const SLOTS_AHEAD: u64 = 4096;
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
    cells: &'a Cells,
    chain: &'a Chain,
    /// Raw bytes it stands for.
    pub raw_bytes: u64,
    /// CRC-32 of the raw bytes.
    pub crc32: u32,
}

impl<'a> Encoded<'a> {
    /// The encoded bytes, in pieces.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.cells.parts(self.chain)
    }
}

/// Takes records in order and forms the output stream. Runs in the emitter thread: no heap while frozen.
pub trait Emit: Send {
    /// An encoded chunk.
    fn data(&mut self, chunk: &Encoded<'_>) -> Result<(), Problem>;
    /// A run of zeros.
    fn zeros(&mut self, length_bytes: u64) -> Result<(), Problem>;
    /// An image is complete.
    fn end_image(&mut self, image: usize) -> Result<(), Problem>;
    /// Everything was thawed and is consistent: end the stream, flush, fsync.
    fn finish(&mut self) -> Result<(), Problem>;
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
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Worker threads.
    pub jobs: usize,
    /// What the workers do.
    pub encoding: Encoding,
    /// Memory beyond the fixed minimum, for encoded bytes that wait for the sink and for raw ones that wait for a worker.
    pub spool_bytes: u64,
}

#[derive(Debug)]
enum Record {
    Empty,
    Pending,
    Data {
        chain: Chain,
        raw_bytes: u32,
        crc32: u32,
    },
    Zeros(u64),
    End(usize),
}

struct Job {
    number: u64,
    slot: usize,
    start: usize,
    length: usize,
    chain: Chain,
}

struct Core {
    cursor: Cursor,
    held: Option<Span>,
    plan_done: bool,
    readers_busy: usize,
    ring: Vec<Record>,
    /// Number of the record that is emitted next, and of the record that is handed out next.
    head: u64,
    tail: u64,
    jobs: VecDeque<Job>,
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
    slots: Vec<RwLock<Pages>>,
    cells: Cells,
    core: Mutex<Core>,
    can_read: Condvar,
    can_work: Condvar,
    can_emit: Condvar,
    event: OwnedFd,
    meter: &'static dyn Meter,
    started: Started,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// The last source block is in memory.
    pub all_read: bool,
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

/// The number of slots for a number of jobs: one for each worker and one that is being filled.
const fn slots_for(jobs: usize) -> usize {
    jobs + 1
}

/// Slots beyond those, out of a quarter of the spool: readers run ahead of the workers into them, so that a filesystem thaws as
/// soon as its disk has given the data, not when the CPU has encoded it. Only a quarter, because encoded bytes need less room.
fn slots_ahead(spool_bytes: u64) -> usize {
    to_usize((spool_bytes / 4 / SPAN_BYTES).min(SLOTS_AHEAD))
}

/// Fixed memory of a run in bytes, without the spool beyond the minimum: what `--jobs` costs.
pub fn fixed_bytes(settings: &Settings) -> u64 {
    let slots = to_u64(slots_for(settings.jobs));
    let per_job = 330 * 1024 + to_u64(settings.encoding.bound());
    slots * SPAN_BYTES
        + minimum_cells(settings) * to_u64(CELL_BYTES)
        + to_u64(settings.jobs) * per_job
}

fn minimum_cells(settings: &Settings) -> u64 {
    to_u64(slots_for(settings.jobs) * CHUNKS_PER_SLOT)
        * u64::from(cells_for(settings.encoding.bound()))
}

impl Pipeline {
    /// Allocates everything and starts the threads, which wait for [`Self::start`]. Leaks what they share, by design.
    pub fn new(
        settings: Settings,
        devices: Vec<Device>,
        emit: Box<dyn Emit>,
        meter: &'static dyn Meter,
    ) -> Result<Self, Fault> {
        let ahead = slots_ahead(settings.spool_bytes);
        let slots = slots_for(settings.jobs) + ahead;
        let encoded_bytes = settings.spool_bytes - to_u64(ahead) * SPAN_BYTES;
        let wanted = minimum_cells(&settings).max(encoded_bytes / to_u64(CELL_BYTES));
        let cells = u32::try_from(wanted).unwrap_or(u32::MAX - 1);
        // A record for every 64 KiB of spool: less compressible data fills the cells first.
        let ring = to_usize((wanted * to_u64(CELL_BYTES) / 65_536).clamp(256, 131_072));
        let memory = |errno| Fault::io("allocate", errno);
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            settings,
            devices,
            plan: OnceLock::new(),
            slots: (0..slots)
                .map(|_| Pages::new(to_usize(SPAN_BYTES)).map(RwLock::new))
                .collect::<Result<_, _>>()
                .map_err(memory)?,
            cells: Cells::new(cells).map_err(memory)?,
            core: Mutex::new(Core {
                cursor: Cursor::default(),
                held: None,
                plan_done: false,
                readers_busy: 0,
                ring: (0..ring).map(|_| Record::Empty).collect(),
                head: 0,
                tail: 0,
                jobs: VecDeque::with_capacity(slots * CHUNKS_PER_SLOT),
                slots_free: (0..slots).collect(),
                chunks_left: vec![0; slots],
                problem: None,
                permit: false,
                drained: false,
                finished: false,
            }),
            can_read: Condvar::new(),
            can_work: Condvar::new(),
            can_emit: Condvar::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| Fault::io("eventfd", errno))?,
            meter,
            started: Started::default(),
        }));
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .stack_size(STACK_BYTES)
                .spawn(work)
                .map(drop)
                .map_err(|_| Fault::short("start a thread"))
        };
        for _ in 0..READERS {
            spawn(
                "floe-read",
                Box::new(move || {
                    shared.started.one();
                    shared.reader();
                    stay();
                }),
            )?;
        }
        for _ in 0..settings.jobs {
            let mut worker = Worker::new(settings.encoding);
            spawn(
                "floe-work",
                Box::new(move || {
                    shared.started.one();
                    shared.worker(&mut worker);
                    stay();
                }),
            )?;
        }
        let mut emit = emit;
        spawn(
            "floe-emit",
            Box::new(move || {
                shared.started.one();
                shared.emitter(&mut *emit);
            }),
        )?;
        shared.started.wait_for(READERS + settings.jobs + 1);
        Ok(Self { shared })
    }

    /// The devices, for walks before and in the frozen window.
    pub fn devices(&self) -> &'static [Device] {
        &self.shared.devices
    }

    /// Hands over the plan; reading begins at once. Allocates nothing.
    pub fn start(&self, plan: Plan) {
        let _ = self.shared.plan.set(plan);
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
    pub fn state(&self) -> State {
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
        let core = self.shared.lock();
        State {
            all_read: core.all_read(),
            drained: core.drained,
            finished: core.finished,
            problem: core.problem,
        }
    }

    /// Allows the emitter to end the stream: everything was thawed well.
    pub fn permit(&self) {
        self.shared.lock().permit = true;
        self.shared.wake_all();
    }

    /// Stops everything at the next opportunity; nothing more is written.
    pub fn abandon(&self, problem: Problem) {
        self.shared.fail(problem);
    }
}

impl Core {
    fn all_read(&self) -> bool {
        self.plan_done && self.readers_busy == 0
    }

    fn slot_of(&mut self, number: u64) -> Option<&mut Record> {
        let length = to_u64(self.ring.len());
        self.ring.get_mut(to_usize(number % length))
    }

    fn room(&self) -> u64 {
        to_u64(self.ring.len()) - (self.tail - self.head)
    }

    fn push(&mut self, record: Record) -> u64 {
        let number = self.tail;
        if let Some(place) = self.slot_of(number) {
            *place = record;
        }
        self.tail += 1;
        number
    }

    /// Pushes a record if there is room.
    fn offer(&mut self, record: Record) -> bool {
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
            Some(Record::Zeros(before)) => {
                *before = before.saturating_add(length_bytes);
                true
            }
            _ => false,
        }
    }
}

/// A span that a reader has taken, with everything it needs.
struct Taken {
    slot: usize,
    part: usize,
    offset: u64,
    length: usize,
    first: u64,
    chains: [Option<Chain>; CHUNKS_PER_SLOT],
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic aborts the process, so a poisoned lock cannot be seen.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, condition: &Condvar, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        condition.wait(core).unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        self.can_read.notify_all();
        self.can_work.notify_all();
        self.can_emit.notify_all();
        self.announce();
    }

    fn announce(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn fail(&self, problem: Problem) {
        self.lock().problem.get_or_insert(problem);
        self.wake_all();
    }

    fn reader(&self) {
        while let Some(taken) = self.take_span() {
            let result = self.read_span(&taken);
            let mut core = self.lock();
            core.readers_busy -= 1;
            match result {
                Ok(()) => queue_jobs(&mut core, taken),
                Err(problem) => {
                    core.problem.get_or_insert(problem);
                }
            }
            drop(core);
            self.wake_all();
        }
    }

    /// Takes the next span that holds data; hands zeros and ends straight to the emitter. `None` at the end or on a problem.
    fn take_span(&self) -> Option<Taken> {
        let mut core = self.lock();
        loop {
            if core.problem.is_some() || core.plan_done {
                return None;
            }
            let Some(plan) = self.plan.get() else {
                core = self.wait(&self.can_read, core);
                continue;
            };
            let Some(span) = core.held.take().or_else(|| core.cursor.next_span(plan)) else {
                core.plan_done = true;
                drop(core);
                self.wake_all();
                return None;
            };
            let served = match span {
                Span::Zeros { length_bytes } => {
                    core.merge_zeros(length_bytes) || core.offer(Record::Zeros(length_bytes))
                }
                Span::End(image) => core.offer(Record::End(image)),
                Span::Data {
                    part,
                    offset,
                    length_bytes,
                } => match self.reserve(&mut core, part, offset, to_usize(length_bytes)) {
                    Some(taken) => return Some(taken),
                    None => false,
                },
            };
            if served {
                self.can_emit.notify_all();
            } else {
                core.held = Some(span);
                core = self.wait(&self.can_read, core);
            }
        }
    }

    /// Slot, records and cells for a span, all or nothing.
    fn reserve(&self, core: &mut Core, part: usize, offset: u64, length: usize) -> Option<Taken> {
        let chunks = length.div_ceil(CHUNK_LENGTH);
        if core.room() < to_u64(chunks) || core.slots_free.is_empty() {
            return None;
        }
        let mut chains = [const { None }; CHUNKS_PER_SLOT];
        let cells = cells_for(self.settings.encoding.bound());
        for place in chains.iter_mut().take(chunks) {
            *place = self.cells.reserve(cells);
            if place.is_none() {
                for chain in chains.into_iter().flatten() {
                    self.cells.release(chain);
                }
                return None;
            }
        }
        let slot = core.slots_free.pop()?;
        let first = core.tail;
        for _ in 0..chunks {
            core.push(Record::Pending);
        }
        core.readers_busy += 1;
        Some(Taken {
            slot,
            part,
            offset,
            length,
            first,
            chains,
        })
    }

    /// Reads the used extents of a span into its slot and zeroes what lies between them.
    fn read_span(&self, taken: &Taken) -> Result<(), Problem> {
        let internal = Problem::Internal(Fault::refused("span outside its plan"));
        let part = self
            .plan
            .get()
            .and_then(|plan| plan.parts().get(taken.part))
            .ok_or(internal)?;
        let device = self.devices.get(part.device).ok_or(internal)?;
        let mut slot = self
            .slots
            .get(taken.slot)
            .ok_or(internal)?
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let buffer = slot.get_mut(..taken.length).ok_or(internal)?;
        let align = u64::from(device.sector_bytes());
        read_used(part, taken.offset, buffer, align, |offset, piece| {
            let place = part.device_offset.saturating_add(offset);
            device
                .read_aligned(place, piece)
                .map_err(|fault| Problem::Read(part.device, fault))?;
            self.meter.read(to_u64(piece.len()));
            Ok(())
        })
    }

    fn worker(&self, worker: &mut Worker) {
        let mut core = self.lock();
        loop {
            if core.problem.is_some() || (core.all_read() && core.jobs.is_empty()) {
                return;
            }
            let Some(job) = core.jobs.pop_front() else {
                core = self.wait(&self.can_work, core);
                continue;
            };
            drop(core);
            let slot = job.slot;
            let number = job.number;
            let result = self.encode(worker, job);
            core = self.lock();
            match result {
                Ok(record) => {
                    if let Some(place) = core.slot_of(number) {
                        *place = record;
                    }
                }
                Err(problem) => {
                    core.problem.get_or_insert(problem);
                }
            }
            if let Some(left) = core.chunks_left.get_mut(slot) {
                *left -= 1;
                if *left == 0 {
                    core.slots_free.push(slot);
                }
            }
            if core.head == number || core.problem.is_some() {
                self.can_emit.notify_all();
            }
            self.can_read.notify_all();
        }
    }

    /// Encodes one chunk into its chain; an all-zero chunk becomes a zero record and gives its cells back.
    fn encode(&self, worker: &mut Worker, job: Job) -> Result<Record, Problem> {
        let internal = Problem::Internal(Fault::refused("chunk outside its slot"));
        let slot = self
            .slots
            .get(job.slot)
            .ok_or(internal)?
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let chunk = slot
            .get(job.start..job.start + job.length)
            .ok_or(internal)?;
        if is_zero(chunk) {
            self.cells.release(job.chain);
            return Ok(Record::Zeros(to_u64(chunk.len())));
        }
        let mut chain = job.chain;
        let encoded = worker.encode(chunk).map_err(Problem::Internal)?;
        self.cells.fill(&mut chain, encoded).ok_or(internal)?;
        Ok(Record::Data {
            chain,
            raw_bytes: u32::try_from(chunk.len()).unwrap_or(0),
            crc32: crc::crc32(0, chunk),
        })
    }

    fn emitter(&self, emit: &mut dyn Emit) {
        if let Err(problem) = self.emit_all(emit) {
            self.fail(problem);
        }
    }

    fn emit_all(&self, emit: &mut dyn Emit) -> Result<(), Problem> {
        // Runs of zeros grow as long as nothing else comes between.
        let mut zeros = 0u64;
        while let Some(record) = self.next_record() {
            if let Record::Zeros(length) = record {
                zeros = zeros.saturating_add(length);
                continue;
            }
            if zeros > 0 {
                emit.zeros(zeros)?;
                zeros = 0;
            }
            match record {
                Record::Data {
                    chain,
                    raw_bytes,
                    crc32,
                } => {
                    emit.data(&Encoded {
                        cells: &self.cells,
                        chain: &chain,
                        raw_bytes: u64::from(raw_bytes),
                        crc32,
                    })?;
                    self.cells.release(chain);
                    self.can_read.notify_all();
                }
                Record::End(image) => emit.end_image(image)?,
                Record::Zeros(_) | Record::Empty | Record::Pending => {}
            }
        }
        let mut core = self.lock();
        if core.problem.is_some() {
            return Ok(());
        }
        core.drained = true;
        self.announce();
        while !core.permit {
            if core.problem.is_some() {
                return Ok(());
            }
            core = self.wait(&self.can_emit, core);
        }
        drop(core);
        emit.finish()?;
        self.lock().finished = true;
        self.announce();
        Ok(())
    }

    /// The next record in order; `None` at the end or on a problem.
    fn next_record(&self) -> Option<Record> {
        let mut core = self.lock();
        loop {
            if core.problem.is_some() {
                return None;
            }
            if core.head < core.tail {
                let head = core.head;
                if let Some(place) = core.slot_of(head)
                    && !matches!(place, Record::Pending)
                {
                    let record = std::mem::replace(place, Record::Empty);
                    core.head += 1;
                    self.can_read.notify_all();
                    return Some(record);
                }
            } else if core.all_read() && core.jobs.is_empty() {
                return None;
            }
            core = self.wait(&self.can_emit, core);
        }
    }
}

/// Counts threads that have begun: the runtime allocates when a thread begins, which must not be in the frozen window.
#[derive(Debug, Default)]
pub struct Started(AtomicUsize);

impl Started {
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

/// Queues the chunks of a span that was read.
fn queue_jobs(core: &mut Core, taken: Taken) {
    let chunks = taken.length.div_ceil(CHUNK_LENGTH);
    if let Some(left) = core.chunks_left.get_mut(taken.slot) {
        *left = chunks;
    }
    for (index, chain) in taken.chains.into_iter().flatten().enumerate() {
        let start = index * CHUNK_LENGTH;
        core.jobs.push_back(Job {
            number: taken.first + to_u64(index),
            slot: taken.slot,
            start,
            length: (taken.length - start).min(CHUNK_LENGTH),
            chain,
        });
    }
}

/// Reads the used extents of `part` in the window at `offset` into `buffer` with `read(offset, piece)`, rounded to `align`, and
/// zeroes everything else in it: what was read only because of the rounding too.
fn read_used(
    part: &Part,
    offset: u64,
    buffer: &mut [u8],
    align: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let internal = Problem::Internal(Fault::refused("extent outside its span"));
    let limit = offset.saturating_add(to_u64(buffer.len()));
    let mut from = offset;
    let mut done = offset;
    while let Some(used) = part.next_used(from, limit) {
        let start = round_down(used.offset, align).max(done);
        let end = round_up(used.end(), align).unwrap_or(limit).min(limit);
        if start < end {
            let piece = buffer
                .get_mut(to_usize(start - offset)..to_usize(end - offset))
                .ok_or(internal)?;
            read(start, piece)?;
            done = end;
        }
        from = used.end();
    }
    let mut zero_from = offset;
    while zero_from < limit {
        let used = part.next_used(zero_from, limit);
        let zero_end = used.map_or(limit, |used| used.offset);
        buffer
            .get_mut(to_usize(zero_from - offset)..to_usize(zero_end - offset))
            .ok_or(internal)?
            .fill(0);
        zero_from = used.map_or(limit, |used| used.end());
    }
    Ok(())
}

/// True when every byte is zero.
fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<32>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words
            .iter()
            .fold(0, |sum, word| sum | u64::from_ne_bytes(*word))
            == 0
    }) && rest.iter().all(|byte| *byte == 0)
}

/// A worker's own memory.
struct Worker {
    deflater: Option<Deflater>,
    output: Vec<u8>,
}

impl Worker {
    fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Deflate(level) => Self {
                deflater: Some(Deflater::new(level)),
                output: vec![0; encoding.bound()],
            },
            Encoding::Raw => Self {
                deflater: None,
                output: Vec::new(),
            },
        }
    }

    fn encode<'a>(&'a mut self, chunk: &'a [u8]) -> Result<&'a [u8], Fault> {
        match &mut self.deflater {
            None => Ok(chunk),
            Some(deflater) => {
                let length = deflater.encode(chunk, &mut self.output)?;
                self.output
                    .get(..length)
                    .ok_or(Fault::refused("encoded chunk"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Access;
    use crate::fs::UsedMap;
    use crate::stream::output::{GzipEmitter, Output, RawEmitter, Totals, TotalsCell};
    use crate::stream::plan::Content;
    use crate::units::{BlockSize, Extent};
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[derive(Default)]
    struct Count(AtomicU64, AtomicU64);
    impl Meter for Count {
        fn read(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
        fn taken(&self, bytes: u64) {
            self.1.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn random(seed: &mut u64) -> u64 {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    }

    /// A source with noise, text and zeros, a map over it, and what the image must be.
    fn source(seed: &mut u64, blocks: u64) -> (std::path::PathBuf, UsedMap, Vec<u8>) {
        let block = 1024u64;
        let mut data = vec![0u8; to_usize(blocks * block + 300)];
        for piece in data.chunks_mut(4096 * 3) {
            match random(seed) % 4 {
                0 => piece
                    .iter_mut()
                    .for_each(|byte| *byte = random(seed).to_le_bytes()[0]),
                1 => piece
                    .iter_mut()
                    .zip(b"text text text ".iter().cycle())
                    .for_each(|(a, b)| *a = *b),
                _ => {}
            }
        }
        let size = to_u64(data.len());
        let mut map = UsedMap::new(size, BlockSize::from_bytes(block).unwrap()).unwrap();
        for _ in 0..12 {
            let start = random(seed) % blocks;
            let length_bytes = random(seed) % 900 * block;
            map.set_free(Extent {
                offset: start * block,
                length_bytes,
            });
        }
        let mut expected = vec![0; data.len()];
        let mut from = 0;
        while let Some(run) = map.next_used(from, u64::MAX) {
            let range = to_usize(run.offset)..to_usize(run.end());
            expected[range.clone()].copy_from_slice(&data[range]);
            from = run.end();
        }
        let path = std::env::temp_dir().join(format!("floe-pipe-{}-{seed:x}", std::process::id()));
        std::fs::write(&path, &data).unwrap();
        (path, map, expected)
    }

    fn run(
        path: &std::path::Path,
        map: UsedMap,
        settings: Settings,
        slow: bool,
    ) -> (Vec<u8>, Totals) {
        let device = Device::open(path, Access::Read).unwrap();
        let plan = Plan::new(vec![vec![Part {
            device: 0,
            device_offset: 0,
            length_bytes: crate::device::ReadAt::size_bytes(&device),
            content: Content::Used(map),
        }]]);
        let meter: &'static Count = Box::leak(Box::default());
        let (mut reader, writer) = std::io::pipe().unwrap();
        let totals: TotalsCell = Arc::default();
        let output = Output::new(OwnedFd::from(writer), meter, true);
        let emit: Box<dyn Emit> = match settings.encoding {
            Encoding::Raw => Box::new(RawEmitter::new(output, false, Arc::clone(&totals))),
            Encoding::Deflate(_) => {
                Box::new(GzipEmitter::new(output, Arc::clone(&totals)).unwrap())
            }
        };
        let pipeline = Pipeline::new(settings, vec![device], emit, meter).unwrap();
        pipeline.start(plan);
        let sink = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut buffer = vec![0; 5000];
            loop {
                let count = reader.read(&mut buffer).unwrap();
                if count == 0 {
                    return all;
                }
                all.extend_from_slice(&buffer[..count]);
                if slow && all.len() % 7 == 0 {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            }
        });
        let mut permitted = false;
        while let state = pipeline.state()
            && !state.finished
        {
            assert!(state.problem.is_none(), "{:?}", state.problem);
            if state.drained && !permitted {
                assert!(state.all_read);
                pipeline.permit();
                permitted = true;
            }
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                pipeline.event(),
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut fds, None).unwrap();
        }
        let result = *totals.lock().unwrap();
        assert_eq!(meter.1.load(Ordering::Relaxed), result.written_bytes);
        // The emitter thread drops the write end when it is done, which ends the sink.
        (sink.join().unwrap(), result)
    }

    fn settings(jobs: usize, encoding: Encoding, spool_bytes: u64) -> Settings {
        Settings {
            jobs,
            encoding,
            spool_bytes,
        }
    }

    #[test]
    fn any_number_of_jobs_and_any_spool_give_the_image_with_zeros_where_the_map_is_free() {
        let mut seed = 3;
        for (jobs, spool_bytes, blocks, slow) in [
            (1, 0, 3000, false),
            (2, 0, 9000, true),
            (3, 64 << 20, 6000, false),
            (4, 1 << 20, 40, true),
        ] {
            let (path, map, expected) = source(&mut seed, blocks);
            let (stream, totals) = run(
                &path,
                map,
                settings(jobs, Encoding::Deflate(1), spool_bytes),
                slow,
            );
            std::fs::remove_file(&path).unwrap();
            let body = &stream[10..stream.len() - 8];
            let image = miniz_oxide::inflate::decompress_to_vec(body).unwrap();
            assert!(image == expected);
            assert_eq!(totals.crc32, crc::crc32(0, &expected));
            assert_eq!(totals.raw_bytes, to_u64(expected.len()));
            assert_eq!(
                &stream[stream.len() - 8..],
                super::super::gzip::trailer(totals.crc32, totals.raw_bytes)
            );
        }
    }

    #[test]
    fn slots_ahead_take_a_quarter_of_the_spool_and_none_where_it_is_off() {
        for (spool_bytes, slots) in [
            (0, 0),
            (2 * SPAN_BYTES, 0),
            (4 * SPAN_BYTES, 1),
            (64 << 20, 32),
            (1 << 40, 4096),
        ] {
            assert_eq!(slots_ahead(spool_bytes), slots);
            assert!(to_u64(slots) * SPAN_BYTES <= spool_bytes / 4);
        }
    }

    #[test]
    fn the_raw_encoding_gives_the_same_image() {
        let mut seed = 77;
        let (path, map, expected) = source(&mut seed, 5000);
        let (stream, totals) = run(&path, map, settings(2, Encoding::Raw, 0), true);
        std::fs::remove_file(&path).unwrap();
        assert!(stream == expected);
        assert_eq!(totals.crc32, crc::crc32(0, &expected));
    }

    #[test]
    fn a_source_that_ends_early_is_a_problem_with_its_offset_and_no_end_of_stream() {
        let path = std::env::temp_dir().join(format!("floe-short-{}", std::process::id()));
        std::fs::write(&path, vec![5; 300_000]).unwrap();
        let device = Device::open(&path, Access::Read).unwrap();
        std::fs::remove_file(&path).unwrap();
        let plan = Plan::new(vec![vec![Part {
            device: 0,
            device_offset: 0,
            length_bytes: 900_000,
            content: Content::Whole,
        }]]);
        let meter: &'static Count = Box::leak(Box::default());
        let (mut reader, writer) = std::io::pipe().unwrap();
        let output = Output::new(OwnedFd::from(writer), meter, true);
        let emit = Box::new(GzipEmitter::new(output, Arc::default()).unwrap());
        let pipeline = Pipeline::new(
            settings(2, Encoding::Deflate(1), 0),
            vec![device],
            emit,
            meter,
        )
        .unwrap();
        pipeline.start(plan);
        let mut stream = Vec::new();
        reader.read_to_end(&mut stream).unwrap();
        let Some(Problem::Read(0, fault)) = pipeline.state().problem else {
            panic!("no read problem");
        };
        assert_eq!(fault.offset, Some(0));
        assert!(miniz_oxide::inflate::decompress_to_vec(&stream[10..]).is_err());
    }

    #[test]
    fn a_closed_pipe_is_told_apart() {
        let path = std::env::temp_dir().join(format!("floe-closed-{}", std::process::id()));
        std::fs::write(&path, vec![5; 300_000]).unwrap();
        let device = Device::open(&path, Access::Read).unwrap();
        std::fs::remove_file(&path).unwrap();
        let meter: &'static Count = Box::leak(Box::default());
        let (reader, writer) = std::io::pipe().unwrap();
        let output = Output::new(OwnedFd::from(writer), meter, false);
        let emit = Box::new(RawEmitter::new(output, false, Arc::default()));
        let pipeline =
            Pipeline::new(settings(1, Encoding::Raw, 0), vec![device], emit, meter).unwrap();
        drop(reader);
        pipeline.start(Plan::new(vec![vec![Part {
            device: 0,
            device_offset: 0,
            length_bytes: 300_000,
            content: Content::Whole,
        }]]));
        for _ in 0..1000 {
            if let Some(problem) = pipeline.state().problem {
                assert!(matches!(problem, Problem::ClosedPipe));
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("no problem within 5 s");
    }
}
