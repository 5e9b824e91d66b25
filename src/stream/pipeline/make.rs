//! How a pipeline is made: how much of everything, the memory that its threads share, and the threads. All of it before anything is
//! frozen, and nothing later.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::sync::atomic::AtomicU64;
use std::sync::{Condvar, OnceLock, RwLock};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::encode::Encoder;
use super::keyed::HashKey;
use super::known::Ahead;
use super::placers::Placing;
use super::precopy::ReadPass;
use super::shelf::Early;
use super::{
    BegunThreads, CHUNKS_PER_SLOT, Core, Meter, Outlet, Pipeline, READERS, STACK_BYTES, Settings,
    Shared, StreamRecord, stay,
};
use crate::device::Device;
use crate::error::Fault;
use crate::stream::plan::{Cursor, SPAN_BYTES};
use crate::sys::memory::Pages;
use crate::sys::spool::{CELL_BYTES, Cells, cells_for};
use crate::threads::Lock;
use crate::units::{to_u64, to_usize};

/// Most slots that readers may run ahead: 2 GiB.
const SLOTS_AHEAD: u64 = 4096;

/// The number of slots for a number of jobs: one for each worker and one that is being filled.
pub(super) const fn slots_for(jobs: usize) -> usize {
    jobs + 1
}

/// Slots beyond those: readers run ahead of the workers into them, so that a filesystem thaws as soon as its disk has given the data,
/// not when the CPU has encoded it. Only a quarter of the spool, because encoded bytes need less room; in a copy, where there are
/// none, all of it.
pub(super) fn slots_ahead(spool_bytes: u64, sink: &Outlet) -> usize {
    let bytes = match sink {
        Outlet::Stream(_) | Outlet::Frames(_) => spool_bytes / 4,
        Outlet::Places(_) => spool_bytes,
    };
    to_usize((bytes / SPAN_BYTES).min(SLOTS_AHEAD))
}

/// How much of everything there is.
struct Sizes {
    slots: usize,
    cells: u32,
    /// Cells for what is being encoded. There are none for the slot that is being filled meanwhile: most chunks give back more than
    /// half of theirs when they are encoded, and where they do not, its span waits for one that went out.
    minimum_cells: u32,
    /// Records that wait to be emitted.
    records: usize,
}

impl Sizes {
    fn of(settings: &Settings, sink: &Outlet) -> Result<Self, Fault> {
        let copies = matches!(sink, Outlet::Places(_));
        let ahead = slots_ahead(settings.spool_bytes, sink);
        let in_work = to_u64(settings.jobs * CHUNKS_PER_SLOT);
        let least = in_work * u64::from(cells_for(settings.encoding.bound()));
        let encoded_bytes = match &settings.spool_file {
            Some((_, bytes)) if *bytes < least * to_u64(CELL_BYTES) => {
                let what = "too small a spool file for so many jobs";
                return Err(Fault::io(what, Errno::NOSPC));
            }
            Some((_, bytes)) => *bytes,
            None => settings.spool_bytes - to_u64(ahead) * SPAN_BYTES,
        };
        let (least, cells) = match copies {
            true => (0, 0),
            false => (least, least.max(encoded_bytes / to_u64(CELL_BYTES))),
        };
        Ok(Self {
            slots: slots_for(settings.jobs) + ahead,
            cells: u32::try_from(cells).unwrap_or(u32::MAX - 1),
            minimum_cells: u32::try_from(least).unwrap_or(u32::MAX),
            // One for every 64 KiB of spool: less compressible data fills the cells first.
            records: to_usize((cells * to_u64(CELL_BYTES) / 65_536).clamp(256, 131_072)),
        })
    }
}

impl Core {
    fn new(settings: &Settings, sizes: &Sizes) -> Result<Self, Fault> {
        let slots = sizes.slots;
        Ok(Self {
            pass: ReadPass::Wait,
            known: Ahead::new(match settings.hashes {
                Some(_) => slots,
                None => 0,
            }),
            early: Early::new(settings.precopy.as_ref())?,
            workers_busy: 0,
            cursor: Cursor::default(),
            held: None,
            plan_done: false,
            readers_busy: 0,
            ring: (0..sizes.records).map(|_| StreamRecord::Empty).collect(),
            head: 0,
            tail: 0,
            jobs: VecDeque::with_capacity(slots * CHUNKS_PER_SLOT),
            spans: VecDeque::with_capacity(slots),
            placers_busy: 0,
            begun: false,
            slots_free: (0..slots).collect(),
            chunks_left: vec![0; slots],
            problem: None,
            permit: false,
            drained: false,
            finished: false,
        })
    }
}

impl Shared {
    fn new(
        settings: Settings,
        devices: Vec<Device>,
        sink: &Outlet,
        meter: &'static dyn Meter,
    ) -> Result<Self, Fault> {
        let sizes = Sizes::of(&settings, sink)?;
        let memory = |errno| Fault::io("allocate", errno);
        let slot_bytes = to_usize(SPAN_BYTES);
        let length = sizes.slots.checked_mul(slot_bytes);
        let mapping = Pages::new(length.ok_or(memory(Errno::NOMEM))?).map_err(memory)?;
        let cells = match &settings.spool_file {
            Some((file, _)) => Cells::in_file(sizes.cells, file),
            None => Cells::new(sizes.cells),
        };
        Ok(Self {
            core: Lock::new(Core::new(&settings, &sizes)?),
            settings,
            devices,
            plan: OnceLock::new(),
            early_plan: OnceLock::new(),
            minimum_cells: sizes.minimum_cells,
            slots: mapping
                .leak()
                .chunks_exact_mut(slot_bytes)
                .map(RwLock::new)
                .collect(),
            cells: cells.map_err(memory)?,
            can_read: Condvar::new(),
            can_work: Condvar::new(),
            can_emit: Condvar::new(),
            can_know: Condvar::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| Fault::io("eventfd", errno))?,
            meter,
            emitted: AtomicU64::new(0),
            started: BegunThreads::default(),
            key: HashKey::new(),
            places: match sink {
                Outlet::Stream(_) | Outlet::Frames(_) => None,
                Outlet::Places(places) => Some(*places),
            },
            frames: matches!(sink, Outlet::Frames(_)),
        })
    }
}

/// What one of the pipeline's threads does for all of its life.
enum ThreadRole {
    Read,
    Encode(Box<Encoder>),
    Place(&'static dyn Placing),
    /// Hands out what comes next, in order.
    Emit(Outlet),
    /// Hears what the other end has.
    Listen,
}

impl ThreadRole {
    const fn name(&self) -> &'static CStr {
        match self {
            Self::Read => c"floe-read",
            Self::Encode(_) | Self::Place(_) => c"floe-work",
            Self::Emit(_) => c"floe-emit",
            Self::Listen => c"floe-known",
        }
    }

    /// What a role owns is given back only after [`stay`], which never ends: the heap is not touched while something is frozen.
    fn play(mut self, shared: &'static Shared) {
        match &mut self {
            Self::Read => shared.reader(),
            Self::Encode(worker) => shared.worker(worker),
            Self::Place(places) => shared.placer(*places),
            Self::Emit(Outlet::Places(places)) => shared.conduct(*places),
            // After the thaw: its sink is closed.
            Self::Emit(Outlet::Stream(emit) | Outlet::Frames(emit)) => {
                return shared.emitter(&mut **emit);
            }
            Self::Listen => {
                if let Some(hashes) = &shared.settings.hashes {
                    shared.listen(hashes);
                }
            }
        }
        stay();
    }
}

impl Pipeline {
    /// Allocates everything and starts the threads, which wait for [`Self::start`]. Leaks what they share, by design.
    pub fn new(
        settings: Settings,
        devices: Vec<Device>,
        sink: Outlet,
        meter: &'static dyn Meter,
    ) -> Result<Self, Fault> {
        let shared: &'static Shared =
            Box::leak(Box::new(Shared::new(settings, devices, &sink, meter)?));
        let encoding = shared.settings.encoding;
        let mut roles = Vec::new();
        roles.extend((0..READERS).map(|_| ThreadRole::Read));
        roles.extend((0..shared.settings.jobs).map(|_| match shared.places {
            None => ThreadRole::Encode(Box::new(Encoder::new(encoding))),
            Some(places) => ThreadRole::Place(places),
        }));
        roles.push(ThreadRole::Emit(sink));
        if shared.settings.hashes.is_some() {
            roles.push(ThreadRole::Listen);
        }
        let count = roles.len();
        for role in roles {
            let name = role.name();
            let work = Box::new(move || {
                shared.started.one();
                role.play(shared);
            });
            crate::threads::start(name, STACK_BYTES, work)
                .map_err(|errno| Fault::io("start a thread", errno))?;
        }
        shared.started.wait_for(count);
        Ok(Self { shared })
    }
}
