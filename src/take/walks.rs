//! What is looked at of each filesystem: a glimpse of what moves, the walk under the freeze that fills its map, and the second look
//! before the thaw. The surveyor's thread calls all of it; under the freeze nothing here uses the heap.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::device::{Device, DeviceKind, Range, ReadAt};
use crate::error::{Fault, FaultKind};
use crate::fs::earlier::{Earlier, EarlierFindings};
use crate::fs::files::{self, Emptying};
use crate::fs::{self, Coverage, Identity, Still, UsedMap, Verdict, Walk, Witness};
use crate::overlay::OverlaidPart;
use crate::stream::plan::{Part, PartContent, Plan};
use crate::sys::ioctl::blkflsbuf;
use crate::take::counters::Counters;
use crate::take::source::SwapContent;
use crate::units::{Extent, to_u64};

type Result<T> = std::result::Result<T, Fault>;

/// A segment whose filesystem is walked in the frozen window.
pub(crate) struct WalkErrand {
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
    /// As of its segment.
    pub below_md: bool,
    /// Blocks that have an owner, where they are asked for.
    pub owned: Option<UsedMap>,
    /// What the walk found.
    pub verdict: Verdict,
    witness: Witness,
    /// What a glimpse finds.
    pub earlier: Earlier,
}

impl WalkErrand {
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
            below_md: false,
            owned: None,
            verdict: Verdict::USED,
            witness: Witness::default(),
            earlier: Earlier::default(),
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

/// What looking takes: the devices, with every read counted as a sign of life (a large map on a slow card is no stall), and memory.
pub(super) struct Eyes {
    devices: &'static [Device],
    counters: &'static Counters,
    /// `--require-map`.
    require_map: bool,
    swaps: Swaps,
    scratch: Vec<u8>,
}

/// The range of a device that a part is.
struct SegmentView {
    range: Range<'static>,
    counters: &'static Counters,
}

impl Eyes {
    /// Allocates all that looking takes.
    pub(super) fn new(
        devices: &'static [Device],
        counters: &'static Counters,
        require_map: bool,
    ) -> Self {
        Self {
            devices,
            counters,
            require_map,
            swaps: Swaps::open(),
            scratch: vec![0; fs::SCRATCH_BYTES],
        }
    }

    fn view(&self, part: &Part) -> Option<SegmentView> {
        Some(SegmentView {
            range: Range {
                device: self.devices.get(part.device)?,
                extent: Extent::at(part.device_offset, part.length_bytes),
            },
            counters: self.counters,
        })
    }
}

impl ReadAt for SegmentView {
    fn size_bytes(&self) -> u64 {
        self.range.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.range.read_at(offset, buffer)?;
        self.counters.alive(to_u64(buffer.len()));
        Ok(())
    }
}

/// An errand that leads nowhere must stop the run, not pass for one that found nothing wrong.
#[allow(non_snake_case)]
pub(super) fn ASTRAY() -> Trouble {
    Trouble {
        device: 0,
        fault: Fault::short("survey of a part that is not in the plan"),
    }
}

#[allow(non_snake_case)]
pub(super) fn WRITTEN() -> Fault {
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
pub(super) fn glimpse(plan: &mut Plan, errands: &mut [WalkErrand], eyes: &mut Eyes) {
    eyes.swaps.read();
    for errand in errands {
        let Some(part) = plan.parts_mut().get_mut(errand.part) else {
            continue;
        };
        let Some(view) = eyes.view(part) else {
            continue;
        };
        let PartContent::Used(map) = &mut part.content else {
            continue;
        };
        // There may be older hints in it.
        map.set_all_used();
        let (still, verdict) = (errand.still, errand.verdict);
        if still != Still::Unmounted {
            errand.still = Still::Glimpse;
        }
        let earlier = std::mem::take(&mut errand.earlier);
        // What a preview believed is not this map's.
        earlier.forget();
        let known = EarlierFindings::Learns(&earlier);
        let mut walk = Walk::new(&view, &mut eyes.scratch).knowing(known);
        if fill_map(errand, map, &view, &eyes.swaps, &mut walk).is_err() {
            map.set_all_used();
            earlier.forget();
        }
        errand.earlier = earlier;
        (errand.still, errand.verdict) = (still, verdict);
    }
}

/// What a survey found and did, as if it had not been.
pub(super) fn forget(plan: &mut Plan, errands: &mut [WalkErrand], emptying: &mut Emptying) {
    emptying.log.clear();
    for errand in errands {
        errand.verdict = Verdict::USED;
        if let Some((part, overlay)) = plan.edit(errand.part) {
            overlay.forget(errand.part);
            if let PartContent::Used(map) = &mut part.content {
                map.set_all_used();
            }
        }
    }
}

/// Walks every errand's filesystem and fills its map. In the frozen window: no heap.
pub(super) fn survey(
    plan: &mut Plan,
    early: Option<&Plan>,
    errands: &mut [WalkErrand],
    emptying: &mut Emptying,
    eyes: &mut Eyes,
) -> Option<Trouble> {
    eyes.swaps.read();
    if let Some(trouble) = flush_caches(eyes.devices) {
        return Some(trouble);
    }
    for errand in errands {
        let Some(part) = plan.parts_mut().get_mut(errand.part) else {
            return Some(ASTRAY());
        };
        let device = part.device;
        let trouble = |fault| Some(Trouble { device, fault });
        let Some(view) = eyes.view(part) else {
            return Some(ASTRAY());
        };
        let before = early.and_then(|early| early.parts().get(errand.part));
        let surveyed = survey_one(errand, part, before, &view, eyes);
        let surveyed = surveyed.and_then(|()| empty(errand, plan, emptying, &view, eyes));
        if let Err(fault) = surveyed {
            return trouble(fault);
        }
        if eyes.require_map && errand.verdict.coverage == Coverage::Whole {
            let doubt = errand.verdict.doubt;
            let mut fault = doubt.unwrap_or_else(|| Fault::refused("no used-block map"));
            fault = fault.with_kind(FaultKind::Refused);
            return trouble(fault);
        }
    }
    None
}

fn survey_one(
    errand: &mut WalkErrand,
    part: &mut Part,
    before: Option<&Part>,
    view: &SegmentView,
    eyes: &mut Eyes,
) -> Result<()> {
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
    if let PartContent::Used(map) = &mut part.content {
        let earlier = std::mem::take(&mut errand.earlier);
        let known = match before.map(|part| &part.content) {
            Some(PartContent::Used(before)) => EarlierFindings::Knows(&earlier, before),
            _ => EarlierFindings::Nothing,
        };
        let mut walk = Walk::new(view, &mut eyes.scratch).knowing(known);
        let filled = fill_map(errand, map, view, &eyes.swaps, &mut walk);
        // Dropped here it would touch the heap.
        errand.earlier = earlier;
        filled?;
        if let Some(mut owned) = errand.owned.take() {
            let verdict = errand.verdict;
            let mut walk = Walk::new(view, &mut eyes.scratch).keeping_owned();
            let filled = fill_map(errand, &mut owned, view, &eyes.swaps, &mut walk);
            errand.owned = Some(owned);
            errand.verdict = verdict;
            filled?;
        }
    } else {
        errand.verdict.coverage = Coverage::Whole;
    }
    let mut walk = Walk::new(view, &mut eyes.scratch);
    errand.witness = witness(errand, part, &mut walk)?;
    Ok(())
}

/// A copy of all of it needs nothing of a filesystem that was cut or damaged: where that cannot be looked at, there is nothing to
/// compare. A sector that cannot be read is met by who reads them all.
fn witness(errand: &WalkErrand, part: &Part, walk: &mut Walk<'_>) -> Result<Witness> {
    match fs::witness(&errand.identity, walk) {
        Err(_) if matches!(part.content, PartContent::Whole) => Ok(Witness::default()),
        witness => witness,
    }
}

/// Has the named files of the filesystem come out empty, once its map is filled.
fn empty(
    errand: &mut WalkErrand,
    plan: &mut Plan,
    emptying: &mut Emptying,
    view: &SegmentView,
    eyes: &mut Eyes,
) -> Result<()> {
    if !emptying.concerns(errand.part) || !files::can_empty(errand.identity.kind) {
        return Ok(());
    }
    let Some((part, overlay)) = plan.edit(errand.part) else {
        return Err(ASTRAY().fault);
    };
    let mark = emptying.log.mark();
    let mut done = Err(Fault::refused("every block of it is read"));
    if let PartContent::Used(map) = &mut part.content {
        done = match (errand.verdict.coverage, errand.verdict.doubt) {
            (Coverage::Whole, Some(doubt)) => Err(doubt),
            _ => {
                let mut walk = Walk::new(view, &mut eyes.scratch);
                let mut layer = OverlaidPart::new(view, overlay, errand.part);
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
            let mut walk = Walk::new(view, &mut eyes.scratch);
            return fill_map(errand, map, view, &eyes.swaps, &mut walk);
        }
    }
    // The filesystem may be well: it is the wish that cannot be granted.
    done.map_err(|fault| match fault.kind() {
        FaultKind::Io => fault,
        _ => fault.with_kind(FaultKind::Refused),
    })
}

fn fill_map(
    errand: &mut WalkErrand,
    map: &mut UsedMap,
    view: &SegmentView,
    swaps: &Swaps,
    walk: &mut Walk<'_>,
) -> Result<()> {
    errand.verdict = fs::walk(&errand.identity, errand.still, walk, map)?;
    let end = errand.identity.size_bytes;
    if errand.verdict.coverage == Coverage::Whole {
        map.set_all_used();
    } else if let Some(rest) = map.size_bytes().checked_sub(end)
        && end > 0
    {
        // The filesystem may be smaller than its partition: what lies behind it is free only where it is zeros.
        map.set_free(Extent::at(end, rest));
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
pub(super) fn check(
    plan: Option<&Plan>,
    errands: &[WalkErrand],
    eyes: &mut Eyes,
) -> Option<Trouble> {
    for errand in errands {
        if errand.still == Still::Moving {
            continue;
        }
        let Some(part) = plan.and_then(|plan| plan.parts().get(errand.part)) else {
            return Some(ASTRAY());
        };
        let Some(view) = eyes.view(part) else {
            return Some(ASTRAY());
        };
        let mut walk = Walk::new(&view, &mut eyes.scratch);
        let fault = match witness(errand, part, &mut walk) {
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
