//! What has to be there before anything is frozen: blocked signals, a trace of the sources' devices, a guardian that waits.

use std::os::fd::AsFd;

use rustix::fs::FileType;

use crate::error::{Error, Result};
use crate::freeze::{FreezeTarget, Guardian, Leftover, Limits, Method};
use crate::mounts::{DevId, Mounted, System};
use crate::report;
use crate::signals::Signals;
use crate::take::counters::Counters;
use crate::take::options::Taking;
use crate::take::precopy::TraceWatch;
use crate::take::source::Prepared;
use crate::take::still;

/// Sources that are about to be held still: signals are blocked, and the guardian waits.
pub(crate) struct Ready {
    /// The signals, blocked.
    pub signals: Signals,
    /// The counters that the emitter uses, too.
    pub counters: &'static Counters,
    pub(super) guardian: Option<Guardian>,
    pub(super) watch: Option<TraceWatch>,
    /// What is to be frozen, as a file on it shows it, and its devices.
    frozen: Vec<Ground>,
    devices: Vec<DevId>,
}

/// The device of a file, and the uuid of its filesystem where that is a btrfs: each of its subvolumes has a device of its own.
type Ground = (u64, Option<[u8; 16]>);

impl Ready {
    /// Whether what is read may be read before the freeze and written where it belongs, to be written again.
    pub(crate) fn copies_early(&self) -> bool {
        self.watch.as_ref().is_some_and(TraceWatch::tries)
    }

    /// Whether a regular file lies on a filesystem that is to be frozen.
    pub(crate) fn freezes(&self, file: impl AsFd) -> bool {
        is_file(&file)
            && ground(file).is_some_and(|file| {
                let same = |one: &Ground| one.0 == file.0 || one.1.is_some() && one.1 == file.1;
                self.frozen.iter().any(same)
            })
    }

    /// What to say of an output there, which messages call `shown`.
    pub(crate) fn note_on_itself(&self, output: impl AsFd, shown: &str) -> Option<String> {
        self.freezes(output).then(|| {
            format!(
                "note: {shown}: lies on what it is an image of: the image holds what is there of it by then, and what is read while frozen waits in memory for the thaw"
            )
        })
    }

    /// The same, or its filesystem does: an overlay, or one that is in a file there.
    pub(crate) fn holds_up(&self, system: &System, file: impl AsFd) -> bool {
        let is_above = || is_file(&file) && system.lies_on(&file, &self.devices);
        !self.frozen.is_empty() && (self.freezes(&file) || is_above())
    }
}

fn is_file(file: impl AsFd) -> bool {
    rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn ground(file: impl AsFd) -> Option<Ground> {
    let stat = rustix::fs::fstat(&file).ok()?;
    let btrfs = crate::sys::identity::btrfs_info(file).ok();
    Some((stat.st_dev, btrfs.map(|info| info.fsid)))
}

/// Starts what holds `sources` still: their filesystems in the order in which they freeze, the trace of their devices, the guardian.
/// Call it while the process has one thread.
pub(crate) fn ready(
    system: &System,
    sources: &mut [Prepared],
    taking: &Taking,
    quiet: bool,
) -> Result<Ready> {
    let mounted: Vec<Mounted> = sources
        .iter_mut()
        .flat_map(|prepared| {
            prepared.in_use = Some(prepared.used_bytes());
            std::mem::take(&mut prepared.mounted)
        })
        .collect();
    let devices = mounted.iter().flat_map(|mounted| &mounted.devices);
    let devices = devices.copied().collect();
    let targets = still::targets(system, mounted, taking.wishes)?;
    let frozen = targets.iter().filter_map(|target| ground(&target.fd));
    let frozen = frozen.collect();
    let mut watch = TraceWatch::start(sources, &targets, taking.precopy);
    let leftovers = watch.as_mut().map_or_else(Vec::new, TraceWatch::leftovers);
    let (signals, guardian) = guard(targets, taking.limits, leftovers, quiet)?;
    // From now on, because whatever comes next may wait (for a reader that logs in), and the trace is not to overflow.
    watch.iter_mut().for_each(|watch| watch.follow(system));
    Ok(Ready {
        signals,
        counters: Counters::leak(guardian.as_ref().map(Guardian::progress)),
        guardian,
        watch,
        frozen,
        devices,
    })
}

fn interrupted(number: i32) -> Error {
    report::interrupted("", "nothing was frozen, and there is no image");
    Error::signal(number)
}

/// Says what is to be said beforehand, blocks the signals, and starts a guardian for `targets`, where there is anything to
/// freeze. Call it while the process has one thread.
fn guard(
    targets: Vec<FreezeTarget>,
    limits: Limits,
    leftovers: Vec<Leftover>,
    quiet: bool,
) -> Result<(Signals, Option<Guardian>)> {
    if !quiet && !targets.is_empty() {
        if let Some((name, seconds)) = crate::freeze::shorter_hardware_watchdog(limits.max_freeze) {
            report::line(format_args!(
                "note: the hardware watchdog {name} resets the board after {seconds} s, which is shorter than --max-freeze {} s; whatever feeds it must not write to a frozen filesystem",
                limits.max_freeze.as_secs()
            ));
        }
        for target in &targets {
            if matches!(target.method, Method::ReadOnly(_)) {
                report::line(format_args!(
                    "{}: cannot be frozen; it is remounted read-only while it is read, and writers get EROFS meanwhile",
                    target.name
                ));
            }
        }
    }
    let signals = Signals::block()?;
    let guardian = match targets.is_empty() {
        true => None,
        // Who waits for another floe's lock gives up when a signal comes.
        false => Some(
            Guardian::start(targets, limits, leftovers)
                .map_err(|error| signals.take().map_or(error, interrupted))?,
        ),
    };
    if !quiet
        && guardian
            .as_ref()
            .is_some_and(|guardian| !guardian.is_apart())
    {
        report::line(
            "note: the guardian has no control group of its own here: a kill of the whole group takes it along, and what is frozen then stays so (floe thaw ends that)",
        );
    }
    Ok((signals, guardian))
}
