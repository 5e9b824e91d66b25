//! The surveyor: a thread that walks the filesystems in the frozen window, starts the pipeline with the filled maps, and looks again
//! before the thaw. A thread of its own, so that the supervisor answers a signal at once even while a large map is read.
//!
//! Allocates everything before the freeze; the walk, the start and the second look use no heap.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, MutexGuard};

use rustix::event::{EventfdFlags, eventfd};

use crate::device::{Device, DeviceKind, Range, ReadAt};
use crate::error::{Error, Fault, FaultKind, Result};
use crate::fs::earlier::{Earlier, Known, PIECE_BYTES};
use crate::fs::files::{self, Emptying};
use crate::fs::{self, Coverage, Identity, SCRATCH_BYTES, Still, UsedMap, Verdict, Walk, Witness};
use crate::overlay::Layer;
use crate::stream::pipeline::{Pipeline, Started};
use crate::stream::plan::{CHUNK_BYTES, Content, Part, Plan};
use crate::sys::ioctl::blkflsbuf;
use crate::take::capture::FROZEN_DRAIN;
use crate::take::counters::Counters;
use crate::take::emptied::Emptied;
use crate::take::precopy::Trace;
use crate::take::source::SwapContent;
use crate::threads::{Lock, forgive};
use crate::trace::Marks;
use crate::units::{Extent, to_u64};

/// Marks and what a walk remembers are of the same pieces.
const _: () = assert!(PIECE_BYTES == CHUNK_BYTES);

/// Stack of the thread in bytes; touched as needed.
const STACK_BYTES: usize = 512 * 1024;

/// A piece whose filesystem is walked in the frozen window.
pub(crate) struct Errand {
    /// Index in the plan's parts.
    pub part: usize,
    /// Index of the image it belongs to.
    pub image: usize,
    /// What was on it before the freeze; afterwards, what is on it.
    pub identity: Identity,
    /// What holds it still.
    pub still: Still,
    /// Active swap files in it.
    pub swap: SwapContent,
    /// What lies behind the filesystem in its part and is not zeros.
    pub behind: Vec<Extent>,
    /// Blocks that have an owner, where they are asked for.
    pub owned: Option<UsedMap>,
    /// What the walk found.
    pub verdict: Verdict,
    witness: Witness,
    /// What a glimpse finds.
    pub earlier: Earlier,
}

impl Errand {
    /// For one part.
    pub(crate) fn new(
        part: usize,
        image: usize,
        identity: Identity,
        still: Still,
        swap: SwapContent,
    ) -> Self {
        Self {
            part,
            image,
            identity,
            still,
            swap,
            behind: Vec::new(),
            owned: None,
            verdict: Verdict::USED,
            witness: Witness::default(),
            earlier: Earlier::default(),
        }
    }
}

/// What the surveyor is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Wait,
    /// Walk what moves, for a hint to the rehearsal.
    Preview,
    /// It has been walked.
    Previewed,
    /// Walk as in a survey, and forget what was found: does anything speak against it?
    Rehearse,
    /// Nothing does.
    Rehearsed,
    /// Walk what moves, for a hint, and begin pre-copy.
    Glimpse,
    /// It has begun.
    Glimpsed,
    /// Walk, then start the pipeline.
    Survey,
    /// Walked.
    Surveyed,
    /// Look again at what a write would have changed.
    Check,
    /// Nothing has changed.
    Checked,
}

impl Step {
    /// What an order becomes when it has been carried out.
    const fn done(self) -> Self {
        match self {
            Self::Preview => Self::Previewed,
            Self::Rehearse => Self::Rehearsed,
            Self::Glimpse => Self::Glimpsed,
            Self::Survey => Self::Surveyed,
            Self::Check => Self::Checked,
            other => other,
        }
    }
}

/// Why a survey stopped the run; made without the heap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    /// Index of the device.
    pub device: usize,
    /// What went wrong.
    pub fault: Fault,
}

/// The plans, before their maps are filled.
pub(crate) struct Plans {
    /// The one that counts.
    pub last: Option<Plan>,
    /// The hint of a glimpse; without it there is no pre-copy.
    pub early: Option<Plan>,
}

/// How a surveyor looks.
pub(crate) struct Looks {
    /// Signs of life.
    pub counters: &'static Counters,
    /// `--require-map`.
    pub require_map: bool,
    /// Where writes are noted.
    pub marks: Option<Arc<Marks>>,
    /// What notes them.
    pub trace: Option<Trace>,
}

struct Desk {
    step: Step,
    plans: Plans,
    errands: Vec<Errand>,
    emptying: Emptying,
    trouble: Option<Trouble>,
    /// Whether every write up to the survey was marked.
    traced: bool,
}

/// The surveyor's side of the run; leaked, because its thread may never return.
pub(crate) struct Surveyor {
    desk: Lock<Desk>,
    go: Condvar,
    event: OwnedFd,
    looks: Looks,
    started: Started,
}

impl Surveyor {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock()
    }

    /// Allocates everything and starts the thread, which waits for [`Self::order`].
    pub(crate) fn start(
        plans: Plans,
        errands: Vec<Errand>,
        emptying: Emptying,
        pipeline: &'static Pipeline,
        looks: Looks,
    ) -> Result<&'static Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::fault("floe", Fault::io("eventfd", errno)))?;
        let surveyor: &'static Self = Box::leak(Box::new(Self {
            desk: Lock::new(Desk {
                step: Step::Wait,
                plans,
                errands,
                emptying,
                trouble: None,
                traced: false,
            }),
            go: Condvar::new(),
            event,
            looks,
            started: Started::default(),
        }));
        let mut scratch = vec![0u8; SCRATCH_BYTES];
        let mut swaps = Swaps::open();
        crate::threads::start(
            c"floe-survey",
            STACK_BYTES,
            Box::new(move || {
                surveyor.started.one();
                surveyor.run(pipeline, &mut swaps, &mut scratch);
            }),
        )
        .map_err(|e| Error::failed(format_args!("floe: start a thread: {e}")))?;
        surveyor.started.wait_for(1);
        Ok(surveyor)
    }

    /// Readable when [`Self::state`] may have changed.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Clears the event and says how far it is.
    pub(crate) fn state(&self) -> (Step, Option<Trouble>) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let desk = self.lock();
        (desk.step, desk.trouble)
    }

    /// Whether every write up to the survey was marked.
    pub(crate) fn is_traced(&self) -> bool {
        self.lock().traced
    }

    /// The verdicts, by image.
    pub(crate) fn verdicts(&self) -> Vec<(usize, Verdict)> {
        self.lock()
            .errands
            .iter()
            .map(|errand| (errand.image, errand.verdict))
            .collect()
    }

    /// Blocks with an owner, by part, where they were asked for; once.
    pub(crate) fn owned(&self) -> Vec<(usize, UsedMap)> {
        let mut desk = self.lock();
        let errands = desk.errands.iter_mut();
        errands
            .filter_map(|errand| Some((errand.part, errand.owned.take()?)))
            .collect()
    }

    /// What was emptied in the images.
    pub(crate) fn emptied(&self) -> Emptied {
        Emptied::new(&self.lock().emptying)
    }

    /// The path in a filesystem at which [`Trouble`] arose, where it did so at one.
    pub(crate) fn path_of_trouble(&self) -> String {
        String::from_utf8_lossy(&self.lock().emptying.log.at).into_owned()
    }

    /// Sets it to work.
    pub(crate) fn order(&self, step: Step) {
        self.lock().step = step;
        self.go.notify_all();
    }

    /// The device of something frozen, where the trace saw a write to what was read of it. Swap files are written all the time: what has one is left
    /// to the second look alone.
    fn was_written(&self, pipeline: &Pipeline, errands: &[Errand]) -> Option<usize> {
        let (plan, marks) = (pipeline.plan()?, self.looks.marks.as_ref()?);
        let frozen = errands
            .iter()
            .filter(|errand| errand.still == Still::Frozen && errand.swap.extents.is_empty())
            // What is not a filesystem of its own (a member of an md) may be written below one that is frozen.
            .filter(|errand| errand.verdict.coverage != Coverage::Whole);
        for errand in frozen {
            let Some(part) = plan.parts().get(errand.part) else {
                continue;
            };
            let mut from = 0;
            while let Some(chunk) = marks.next_set(errand.part, from) {
                let offset = chunk.saturating_mul(CHUNK_BYTES);
                let end = offset.saturating_add(CHUNK_BYTES);
                if part.next_used(offset, end).is_some() {
                    return Some(part.device);
                }
                from = chunk + 1;
            }
        }
        None
    }

    /// What was written since the glimpse has to be read again; all of it, where not every write is marked.
    fn tell_of_writes(&self, errands: &[Errand], traced: bool) {
        for errand in errands {
            let Some(marks) = self.looks.marks.as_ref().filter(|_| traced) else {
                errand.earlier.forget();
                continue;
            };
            let mut from = 0;
            while let Some(piece) = marks.next_ever(errand.part, from) {
                errand.earlier.read_again(piece.saturating_mul(PIECE_BYTES));
                from = piece + 1;
            }
        }
    }

    fn run(&self, pipeline: &Pipeline, swaps: &mut Swaps, scratch: &mut [u8]) {
        loop {
            let mut desk = self.lock();
            while desk.step == desk.step.done() {
                desk = forgive(self.go.wait(desk));
            }
            let step = desk.step;
            let mut errands = std::mem::take(&mut desk.errands);
            let mut emptying = std::mem::take(&mut desk.emptying);
            let mut traced = desk.traced;
            let (plan, has_early) = match step {
                Step::Preview | Step::Glimpse => (desk.plans.early.take(), true),
                _ => (desk.plans.last.take(), pipeline.has_early()),
            };
            let mut before = match step {
                Step::Rehearse => desk.plans.early.take(),
                _ => None,
            };
            drop(desk);
            let metered = Metered {
                devices: pipeline.devices(),
                counters: self.looks.counters,
            };
            let mut unused = None;
            let trouble = match (plan, step) {
                (Some(mut plan), Step::Preview) => {
                    swaps.read();
                    glimpse(&mut plan, &mut errands, &metered, swaps, scratch);
                    before = Some(plan);
                    None
                }
                (Some(mut plan), Step::Rehearse) => {
                    // Of what no write touched since, the hints do.
                    let complete = |trace: &Trace| trace.is_complete_frozen(FROZEN_DRAIN);
                    let known = self.looks.trace.as_ref().is_some_and(complete);
                    swaps.read();
                    self.tell_of_writes(&errands, known);
                    let trouble = survey(
                        (&mut plan, before.as_ref()),
                        &mut errands,
                        &mut emptying,
                        &metered,
                        swaps,
                        scratch,
                        self.looks.require_map,
                    );
                    if trouble.is_none() {
                        forget(&mut plan, &mut errands, &mut emptying);
                    }
                    unused = Some(plan);
                    trouble
                }
                (Some(mut plan), Step::Glimpse) => {
                    swaps.read();
                    glimpse(&mut plan, &mut errands, &metered, swaps, scratch);
                    pipeline.begin_early(plan);
                    None
                }
                (Some(mut plan), Step::Survey) => {
                    let complete = |trace: &Trace| trace.is_complete_frozen(FROZEN_DRAIN);
                    traced = self.looks.trace.as_ref().is_some_and(complete);
                    swaps.read();
                    self.tell_of_writes(&errands, traced);
                    let require_map = self.looks.require_map;
                    let trouble = survey(
                        (&mut plan, pipeline.early_plan()),
                        &mut errands,
                        &mut emptying,
                        &metered,
                        swaps,
                        scratch,
                        require_map,
                    );
                    match (trouble, has_early) {
                        (None, true) => pipeline.start_last(plan, traced),
                        (None, false) => pipeline.start(plan),
                        (Some(_), _) => {}
                    }
                    trouble
                }
                (_, Step::Check) => {
                    let complete = |trace: &Trace| trace.is_complete(FROZEN_DRAIN);
                    let traced = traced && self.looks.trace.as_ref().is_some_and(complete);
                    let written = traced
                        .then(|| self.was_written(pipeline, &errands))
                        .flatten();
                    match written {
                        Some(device) => Some(Trouble {
                            device,
                            fault: WRITTEN(),
                        }),
                        None => check(pipeline.plan(), &errands, &metered, scratch),
                    }
                }
                _ => Some(ASTRAY()),
            };
            let mut desk = self.lock();
            desk.errands = errands;
            desk.emptying = emptying;
            desk.trouble = trouble;
            if unused.is_some() {
                desk.plans.last = unused;
            }
            if before.is_some() {
                desk.plans.early = before;
            }
            desk.traced = traced;
            // A small source may be read, and the check ordered, before we are here: that order must not be lost.
            if desk.step == step {
                desk.step = step.done();
            }
            drop(desk);
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

/// /proc/swaps, opened before the freeze and read after it into memory that is there already.
struct Swaps {
    file: Option<File>,
    text: Vec<u8>,
    length: usize,
}

impl Swaps {
    fn open() -> Self {
        Self {
            file: File::open("/proc/swaps").ok(),
            text: vec![0; 16 * 1024],
            length: 0,
        }
    }

    fn read(&mut self) {
        self.length = 0;
        while let (Some(file), Some(rest)) = (&self.file, self.text.get_mut(self.length..))
            && !rest.is_empty()
            && let Ok(count @ 1..) = file.read_at(rest, to_u64(self.length))
        {
            self.length = self.length.saturating_add(count);
        }
    }

    /// Whether every name begins a line.
    fn list_all(&self, names: &[Vec<u8>]) -> bool {
        let text = self.text.get(..self.length).unwrap_or_default();
        let listed = |name: &Vec<u8>| {
            text.split(|byte| *byte == b'\n').any(|line| {
                let rest = line.strip_prefix(name.as_slice());
                rest.is_some_and(|rest| matches!(rest.first(), Some(b' ' | b'\t')))
            })
        };
        names.iter().all(listed)
    }
}

/// The devices, with every read counted as a sign of life: a large map on a slow card is no stall.
struct Metered {
    devices: &'static [Device],
    counters: &'static Counters,
}

/// The range of a device that a part is.
struct View {
    range: Range<'static>,
    counters: &'static Counters,
}

impl Metered {
    fn view(&self, part: &Part) -> Option<View> {
        Some(View {
            range: Range {
                device: self.devices.get(part.device)?,
                extent: Extent {
                    offset: part.device_offset,
                    length_bytes: part.length_bytes,
                },
            },
            counters: self.counters,
        })
    }
}

impl ReadAt for View {
    fn size_bytes(&self) -> u64 {
        self.range.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), Fault> {
        self.range.read_at(offset, buffer)?;
        self.counters.alive(to_u64(buffer.len()));
        Ok(())
    }
}

/// An errand that leads nowhere must stop the run, not pass for one that found nothing wrong.
#[allow(non_snake_case)]
fn ASTRAY() -> Trouble {
    Trouble {
        device: 0,
        fault: Fault::short("survey of a part that is not in the plan"),
    }
}

#[allow(non_snake_case)]
fn WRITTEN() -> Fault {
    Fault::short("was written to while it was frozen: somebody thawed it or wrote to its device")
}

/// Where a device is read through the page cache, what that holds may be older than the freeze.
fn flush_caches(devices: &[Device]) -> Option<Trouble> {
    for (device, opened) in devices.iter().enumerate() {
        if !opened.is_direct()
            && opened.kind() == DeviceKind::Block
            && let Err(errno) = blkflsbuf(opened.as_fd())
        {
            let fault = Fault::io("BLKFLSBUF", errno);
            return Some(Trouble { device, fault });
        }
    }
    None
}

/// Fills the maps of the early plan with what a walk of something that moves says. Whatever goes wrong means used: it is a hint.
fn glimpse(
    plan: &mut Plan,
    errands: &mut [Errand],
    devices: &Metered,
    swaps: &Swaps,
    scratch: &mut [u8],
) {
    for errand in errands {
        let Some(part) = plan.parts_mut().get_mut(errand.part) else {
            continue;
        };
        let Some(view) = devices.view(part) else {
            continue;
        };
        let Content::Used(map) = &mut part.content else {
            continue;
        };
        // There may be older hints in it.
        map.set_all_used();
        let (still, verdict) = (errand.still, errand.verdict);
        if still != Still::Unmounted {
            errand.still = Still::Glimpse;
        }
        let earlier = std::mem::take(&mut errand.earlier);
        let known = Known::Learns(&earlier);
        let mut walk = Walk::new(&view, scratch).knowing(known);
        if fill_map(errand, map, &view, swaps, &mut walk).is_err() {
            map.set_all_used();
            earlier.forget();
        }
        errand.earlier = earlier;
        (errand.still, errand.verdict) = (still, verdict);
    }
}

/// What a survey found and did, as if it had not been.
fn forget(plan: &mut Plan, errands: &mut [Errand], emptying: &mut Emptying) {
    emptying.log.clear();
    for errand in errands {
        errand.verdict = Verdict::USED;
        if let Some((part, overlay)) = plan.edit(errand.part) {
            overlay.forget(errand.part);
            if let Content::Used(map) = &mut part.content {
                map.set_all_used();
            }
        }
    }
}

/// Walks every errand's filesystem and fills its map. In the frozen window: no heap.
fn survey(
    (plan, early): (&mut Plan, Option<&Plan>),
    errands: &mut [Errand],
    emptying: &mut Emptying,
    devices: &Metered,
    swaps: &Swaps,
    scratch: &mut [u8],
    require_map: bool,
) -> Option<Trouble> {
    if let Some(trouble) = flush_caches(devices.devices) {
        return Some(trouble);
    }
    for errand in errands {
        let Some(part) = plan.parts_mut().get_mut(errand.part) else {
            return Some(ASTRAY());
        };
        let device = part.device;
        let trouble = |fault| Some(Trouble { device, fault });
        let Some(view) = devices.view(part) else {
            return Some(ASTRAY());
        };
        let before = early.and_then(|early| early.parts().get(errand.part));
        let surveyed = survey_one(errand, part, before, &view, swaps, scratch);
        let surveyed = surveyed.and_then(|()| empty(errand, plan, emptying, &view, swaps, scratch));
        if let Err(fault) = surveyed {
            return trouble(fault);
        }
        if require_map && errand.verdict.coverage == Coverage::Whole {
            let doubt = errand.verdict.doubt;
            let mut fault = doubt.unwrap_or_else(|| Fault::refused("no used-block map"));
            fault = fault.with_kind(FaultKind::Refused);
            return trouble(fault);
        }
    }
    None
}

fn survey_one(
    errand: &mut Errand,
    part: &mut Part,
    before: Option<&Part>,
    view: &View,
    swaps: &Swaps,
    scratch: &mut [u8],
) -> std::result::Result<(), Fault> {
    // The superblock was read before the freeze to size the map: it must still be the same filesystem, of the same size.
    let now = fs::probe(view)?.filter(|now| {
        now.kind == errand.identity.kind
            && now.size_bytes == errand.identity.size_bytes
            && now.block_bytes == errand.identity.block_bytes
            && now.uuid == errand.identity.uuid
    });
    let Some(now) = now else {
        return Err(Fault::short(
            "the filesystem changed its kind, size or uuid while the dump began; run it again",
        ));
    };
    errand.identity = now;
    if let Content::Used(map) = &mut part.content {
        let earlier = std::mem::take(&mut errand.earlier);
        let known = match before.map(|part| &part.content) {
            Some(Content::Used(before)) => Known::Knows(&earlier, before),
            _ => Known::Nothing,
        };
        let mut walk = Walk::new(view, scratch).knowing(known);
        let filled = fill_map(errand, map, view, swaps, &mut walk);
        // Dropped here it would touch the heap.
        errand.earlier = earlier;
        filled?;
        if let Some(mut owned) = errand.owned.take() {
            let verdict = errand.verdict;
            let mut walk = Walk::new(view, scratch).keeping_owned();
            let filled = fill_map(errand, &mut owned, view, swaps, &mut walk);
            errand.owned = Some(owned);
            errand.verdict = verdict;
            filled?;
        }
    } else {
        errand.verdict.coverage = Coverage::Whole;
    }
    let mut walk = Walk::new(view, scratch);
    errand.witness = fs::witness(&errand.identity, &mut walk)?;
    Ok(())
}

/// Has the named files of the filesystem come out empty, once its map is filled.
fn empty(
    errand: &mut Errand,
    plan: &mut Plan,
    emptying: &mut Emptying,
    view: &View,
    swaps: &Swaps,
    scratch: &mut [u8],
) -> std::result::Result<(), Fault> {
    if !emptying.concerns(errand.part) || !files::can_empty(errand.identity.kind) {
        return Ok(());
    }
    let Some((part, overlay)) = plan.edit(errand.part) else {
        return Err(ASTRAY().fault);
    };
    let mark = emptying.log.mark();
    let mut done = Err(Fault::refused("every block of it is read"));
    if let Content::Used(map) = &mut part.content {
        done = match (errand.verdict.coverage, errand.verdict.doubt) {
            (Coverage::Whole, Some(doubt)) => Err(doubt),
            _ => {
                let mut walk = Walk::new(view, scratch);
                let mut layer = Layer::new(view, overlay, errand.part);
                let still = errand.still;
                files::empty(
                    &errand.identity,
                    still,
                    &mut walk,
                    map,
                    &mut layer,
                    emptying,
                )
            }
        };
        if let Err(fault) = done
            && !emptying.insists()
            && fault.kind() != FaultKind::Io
        {
            overlay.forget(errand.part);
            emptying.log.undo(mark, fault);
            map.set_all_used();
            return fill_map(errand, map, view, swaps, &mut Walk::new(view, scratch));
        }
    }
    // The filesystem may be well: it is the wish that cannot be granted.
    done.map_err(|fault| match fault.kind() {
        FaultKind::Io => fault,
        _ => fault.with_kind(FaultKind::Refused),
    })
}

fn fill_map(
    errand: &mut Errand,
    map: &mut UsedMap,
    view: &View,
    swaps: &Swaps,
    walk: &mut Walk<'_>,
) -> std::result::Result<(), Fault> {
    errand.verdict = fs::walk(&errand.identity, errand.still, walk, map)?;
    let end = errand.identity.size_bytes;
    if errand.verdict.coverage == Coverage::Whole {
        map.set_all_used();
    } else if let Some(rest) = map.size_bytes().checked_sub(end)
        && end > 0
    {
        // The filesystem may be smaller than its partition: what lies behind it is free only where it is zeros.
        map.set_free(Extent {
            offset: end,
            length_bytes: rest,
        });
        if !errand.behind.is_empty() {
            let what = fs::behind(view, end)?.unwrap_or("data follows the filesystem");
            errand.verdict.doubt(Fault::unsupported(what));
        }
        for extent in &errand.behind {
            map.set_used(*extent);
        }
    }
    // A swap file that was switched off meanwhile may be gone, and its blocks somebody else's.
    if swaps.list_all(&errand.swap.names) {
        for extent in &errand.swap.extents {
            map.set_free(*extent);
        }
    }
    Ok(())
}

/// Looks again at what a write would have changed.
fn check(
    plan: Option<&Plan>,
    errands: &[Errand],
    devices: &Metered,
    scratch: &mut [u8],
) -> Option<Trouble> {
    for errand in errands {
        if errand.still == Still::Moving {
            continue;
        }
        let Some(part) = plan.and_then(|plan| plan.parts().get(errand.part)) else {
            return Some(ASTRAY());
        };
        let Some(view) = devices.view(part) else {
            return Some(ASTRAY());
        };
        let mut walk = Walk::new(&view, scratch);
        let fault = match fs::witness(&errand.identity, &mut walk) {
            Ok(witness) if witness == errand.witness => continue,
            Ok(_) => Fault::short("changed while it was read: somebody thawed it or wrote to it"),
            Err(fault) => fault,
        };
        return Some(Trouble {
            device: part.device,
            fault,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A surveyor without errands over a pipeline without devices.
    fn surveyor() -> &'static Surveyor {
        use crate::stream::pipeline::{Emit, Encoded, Encoding, Outlet, Problem, Settings};
        struct Nothing;
        impl Emit for Nothing {
            fn data(&mut self, _: &Encoded<'_>) -> std::result::Result<(), Problem> {
                Ok(())
            }
            fn zeros(&mut self, _: u64) -> std::result::Result<(), Problem> {
                Ok(())
            }
            fn end_image(&mut self, _: usize) -> std::result::Result<(), Problem> {
                Ok(())
            }
            fn finish(&mut self) -> std::result::Result<(), Problem> {
                Ok(())
            }
        }
        let settings = Settings {
            jobs: 1,
            encoding: Encoding::Raw,
            spool_bytes: 0,
            precopy: None,
            spool_file: None,
            hashes: None,
        };
        let counters = Counters::leak(None);
        let pipeline = Pipeline::new(
            settings,
            Vec::new(),
            Outlet::Stream(Box::new(Nothing)),
            counters,
        )
        .unwrap();
        let plans = Plans {
            last: Some(Plan::new(vec![Vec::new()])),
            early: None,
        };
        let looks = Looks {
            counters,
            require_map: false,
            marks: None,
            trace: None,
        };
        let pipeline = Box::leak(Box::new(pipeline));
        Surveyor::start(plans, Vec::new(), Emptying::default(), pipeline, looks).unwrap()
    }

    #[test]
    fn a_check_ordered_before_the_survey_has_answered_is_not_lost() {
        for _ in 0..20 {
            let surveyor = surveyor();
            surveyor.order(Step::Survey);
            // As early as the supervisor could: the plan has been taken, the answer may not have been given yet.
            while surveyor.lock().plans.last.is_some() {
                std::thread::yield_now();
            }
            surveyor.order(Step::Check);
            let began = std::time::Instant::now();
            while surveyor.state().0 != Step::Checked {
                assert!(began.elapsed().as_secs() < 20, "{:?}", surveyor.state());
                std::thread::yield_now();
            }
        }
    }
}
