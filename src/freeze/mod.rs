//! Freezing, as floe sees it: lock and start, freeze, [`Frozen`], thaw. The other side, and the protocol, are in `guard`.
//!
//! Order of use: [`Signals::block`] while the process has one thread, [`Guardian::start`], buffers and threads (in either order,
//! but see there), then [`Guardian::freeze`], and [`Frozen::check`] at least every half second until [`Frozen::thaw`];
//! [`Frozen::release`] instead gives the guardian back, to freeze again.
//!
//! Never freezes or thaws anything itself, with one exception: when the guardian is dead or hangs, it takes over.

pub(crate) mod asked;
mod guard;
mod launch;
mod lock;
mod watchdog;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions};

use crate::error::{ErrnoText, Error, Exit, NOTHING_WRITTEN, Result, denied};
use crate::signals::Signals;
use crate::sys::shared::{SharedPage, Slot};
use guard::{
    BEAT_LATE_US, Cgroups, Fired, Group, Order, Phase, State, TARGETS_MAX, THAW_TURN_US, claim,
    now_us,
};
use launch::{Equipment, Link, Reply, launch};

pub use guard::{
    Form, FreezeTarget, GUARDIAN, Leftover, Limits, Method, Remount, serve_if_guardian,
};
pub use watchdog::shorter_hardware_watchdog;

/// How long a thaw may take before floe stops waiting for it (the guardian goes on), in microseconds.
const THAW_WAIT_US: u64 = 60_000_000;
/// How long a guardian whose descriptors are closed may take to be wholly gone, in microseconds.
const LAST_BREATH_US: u64 = 100_000;

/// Why nothing is frozen.
#[derive(Debug)]
pub enum FreezeFailure {
    /// A filesystem cannot be frozen, or somebody else holds it frozen (which was left alone). What had been frozen before it is
    /// thawed.
    Cannot(Error),
    /// Anything else: a signal, the watchdog, a dead guardian.
    Other(Error),
}

impl From<FreezeFailure> for Error {
    fn from(failure: FreezeFailure) -> Self {
        match failure {
            FreezeFailure::Cannot(error) | FreezeFailure::Other(error) => error,
        }
    }
}

/// The counters that keep the watchdog calm. Cheap, and usable from every thread.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    board: &'static SharedPage,
}

impl Heartbeat {
    /// So many bytes more were read from the source.
    pub fn add_read(self, bytes: u64) {
        self.board.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes more were taken by the sink.
    pub fn add_taken(self, bytes: u64) {
        self.board.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The figures of a frozen window that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrozenWindow {
    /// From the call of the first freeze to the return of the last thaw, in milliseconds.
    pub frozen_ms: u64,
}

/// A guardian that waits, with nothing frozen. Dropping it ends it.
#[derive(Debug)]
pub struct Guardian {
    link: Link,
    slots: &'static [Slot],
    targets: Vec<FreezeTarget>,
    limits: Limits,
    cgroups: Cgroups,
    /// It was collected, or is known to be gone.
    gone: bool,
    /// It has been left behind to finish by itself.
    left: bool,
    taken_over: bool,
    /// When SIGCONT was sent to a guardian that seemed to hang.
    suspected_us: Option<u64>,
}

/// Proof that, when [`Guardian::freeze`] returned it, every target was frozen by our guardian, in order; and that the
/// guardian will thaw them whatever happens to us. It does not prove that they still are: that is what [`Frozen::check`]
/// says now, and [`Frozen::thaw`] at the end for the whole window. Dropping it thaws.
#[derive(Debug)]
pub struct Frozen {
    guardian: Guardian,
}

impl Guardian {
    /// Takes the locks and starts the guardian for these filesystems (top of the stack first). Every descriptor that the
    /// guardian needs must be in `targets`. A process with threads may call it, too, but then has no way to go on where no copy of
    /// the executable can be executed (under an emulator, say). When floe is gone, the guardian removes the leftovers after the
    /// last thaw; who lets the guardian end ([`Frozen::thaw`], or dropping it) must have removed them before.
    pub fn start(
        targets: Vec<FreezeTarget>,
        limits: Limits,
        leftovers: Vec<Leftover>,
    ) -> Result<Self> {
        if targets.is_empty() || targets.len() > TARGETS_MAX {
            let line = format_args!(
                "guardian: {} filesystems: from 1 to {TARGETS_MAX} can be frozen together",
                targets.len()
            );
            return Err(Error::refused(line));
        }
        let lock = lock::take(&targets)?;
        let cgroups = Cgroups::find();
        let (link, targets) = launch(Equipment {
            targets,
            limits,
            leftovers,
            lock,
        })?;
        Ok(Self {
            slots: link.board.slots.get(..targets.len()).unwrap_or_default(),
            link,
            targets,
            limits,
            cgroups,
            gone: false,
            left: false,
            taken_over: false,
            suspected_us: None,
        })
    }

    /// The counters; they may be used before the freeze.
    pub fn progress(&self) -> Heartbeat {
        Heartbeat {
            board: self.link.board,
        }
    }

    /// Whether it has left every control group that could be killed together with floe.
    pub fn is_apart(&self) -> bool {
        Group::of(&self.link.board.group) == Group::Own
    }

    /// The guardian's process number, for messages and tests.
    pub fn pid(&self) -> i32 {
        self.link.pid.as_raw_nonzero().get()
    }

    /// Freezes everything. On failure nothing is frozen, except that a freeze the kernel is still working on is left to
    /// the guardian, which thaws it as soon as it is complete: so a fatal signal ends the wait at once.
    pub fn freeze(mut self, signals: &Signals) -> std::result::Result<Frozen, FreezeFailure> {
        self.link.order(Order::Freeze);
        loop {
            match Phase::of(&self.link.board.phase) {
                Phase::Frozen => return Ok(Frozen { guardian: self }),
                Phase::Done => {
                    self.collect();
                    return Err(self.failure());
                }
                _ => {}
            }
            if self.watchdog_fired() {
                // A freeze that does not complete: the guardian stays with it.
                self.abandon();
                return Err(self.failure());
            }
            let reply = self.link.rest(Some(signals));
            if let Some(number) = signals.take() {
                self.abandon();
                return Err(FreezeFailure::Other(Error::signal(number)));
            }
            if self.is_lost(reply) {
                self.take_over();
                // That may have taken as long as somebody's write.
                return Err(FreezeFailure::Other(match signals.take() {
                    Some(number) => Error::signal(number),
                    None => self.lost(),
                }));
            }
        }
    }

    /// What the board says about a freeze that ended in DONE or by the watchdog.
    fn failure(&self) -> FreezeFailure {
        for (slot, target) in self.slots.iter().zip(&self.targets) {
            let errno = slot.freeze_errno.load(Ordering::SeqCst);
            if errno != 0 {
                return FreezeFailure::Cannot(cannot_freeze(target, errno));
            }
        }
        let stuck = self
            .slots
            .iter()
            .position(|slot| State::of(&slot.state) == State::Freezing);
        FreezeFailure::Other(match stuck.and_then(|index| self.targets.get(index)) {
            Some(target) => Error::failed(format_args!(
                "{}: freeze: not complete after {} s, something holds a write; it is thawed as soon as it completes",
                target.name,
                self.window_ms() / 1000
            )),
            None => self.fired_error(),
        })
    }

    fn watchdog_fired(&self) -> bool {
        Fired::of(&self.link.board.fired) != Fired::No
    }

    /// Whether the guardian has died before it was DONE, or must be replaced.
    fn is_lost(&mut self, reply: Reply) -> bool {
        let died = reply == Reply::End || self.link.life.is_over();
        (died && Phase::of(&self.link.board.phase) != Phase::Done) || self.hangs()
    }

    /// Whether the guardian has not beaten for so long, SIGCONT included, that it must be replaced.
    fn hangs(&mut self) -> bool {
        let now = now_us();
        if now.saturating_sub(self.link.board.beat_us.load(Ordering::SeqCst)) < BEAT_LATE_US {
            self.suspected_us = None;
            return false;
        }
        let Some(since) = self.suspected_us else {
            // Perhaps it was stopped, perhaps the whole machine was: give it another second.
            let _ = rustix::process::kill_process(self.link.pid, Signal::CONT);
            self.suspected_us = Some(now);
            return false;
        };
        now.saturating_sub(since) >= BEAT_LATE_US
    }

    /// Ends the freeze and the guardian, and waits for it, except for freezes that are still in progress: the guardian stays
    /// with those.
    fn abandon(&mut self) {
        if self.end_freeze(Order::Thaw) {
            self.collect();
        }
    }

    /// Orders the thaw and waits for it; whether the guardian is there and has finished.
    fn end_freeze(&mut self, order: Order) -> bool {
        self.link.order(order);
        let began = now_us();
        loop {
            match Phase::of(&self.link.board.phase) {
                Phase::Done => return true,
                Phase::Ready if order == Order::Release => return true,
                _ => {}
            }
            let reply = self.link.rest(None);
            if self.is_lost(reply) {
                self.take_over();
                return false;
            }
            let now = now_us();
            let waited = now.saturating_sub(began);
            let silent = now.saturating_sub(self.link.board.beat_us.load(Ordering::SeqCst));
            if waited > THAW_TURN_US && silent > THAW_TURN_US {
                // Stopped, perhaps by a debugger, or starved: the filesystems do not wait for that.
                self.thaw_claimed();
            }
            let states = self.slots.iter().map(|slot| State::of(&slot.state));
            // What is stuck is left only to one that has beaten since it was told to thaw, and so lives to do it.
            let may_leave = only_stuck(states) && silent < waited;
            if (may_leave && waited > THAW_TURN_US) || waited > THAW_WAIT_US {
                self.left = true;
                return false;
            }
        }
    }

    /// Waits a second for the end of a guardian that is DONE.
    fn collect(&mut self) {
        if self.wait_gone(BEAT_LATE_US) {
            self.cgroups.sweep();
        } else {
            self.end_it();
        }
    }

    /// Ends a guardian that has nothing frozen any more. Waits no longer than a second: in a frozen cgroup (v1) not even
    /// SIGKILL ends it before it is continued, and then it does.
    fn end_it(&mut self) {
        if !self.is_gone() {
            let _ = rustix::process::kill_process(self.link.pid, Signal::KILL);
        }
        self.wait_gone(BEAT_LATE_US);
        self.cgroups.sweep();
        self.left = true;
    }

    /// Whether the guardian is gone within this time. Who collects it may be somebody else who does not (a debugger): when its
    /// pipe has ended it is as good as gone.
    fn wait_gone(&mut self, limit_us: u64) -> bool {
        let began = now_us();
        let mut ended_us = None;
        loop {
            if self.is_gone() {
                return true;
            }
            let now = now_us();
            if ended_us.is_none() && self.link.read_replies() == Reply::End {
                ended_us = Some(now);
            }
            if ended_us.is_some_and(|ended| now.saturating_sub(ended) >= LAST_BREATH_US) {
                return true;
            }
            if now.saturating_sub(began) >= limit_us {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn is_gone(&mut self) -> bool {
        if !self.gone {
            // ECHILD: somebody collected it for us.
            let answer = rustix::process::waitpid(Some(self.link.pid), WaitOptions::NOHANG);
            self.gone = !matches!(answer, Ok(None) | Err(Errno::INTR));
        }
        self.gone
    }

    /// Thaws in the guardian's stead: it is dead, or hangs and is killed now.
    fn take_over(&mut self) {
        if self.taken_over {
            return;
        }
        self.taken_over = true;
        if !self.is_gone() {
            let _ = rustix::process::kill_process(self.link.pid, Signal::KILL);
        }
        self.thaw_claimed();
        self.thaw_interrupted();
        self.link.board.ended_us.store(now_us(), Ordering::SeqCst);
        self.end_it();
    }

    /// Thaws, in the reverse order, what nobody else has begun to thaw.
    fn thaw_claimed(&self) {
        for (slot, target) in self.slots.iter().zip(&self.targets).rev() {
            if claim(slot, State::Frozen, State::Thawing) {
                thaw_here(slot, target);
            }
        }
    }

    /// Thaws what a killed guardian was freezing or thawing. The kernel still completes its call, and only then is there
    /// something to thaw, or not; its pipe ends after that. Until then a thaw that succeeds is as good.
    fn thaw_interrupted(&self) {
        loop {
            let ended = self.link.read_replies() == Reply::End;
            let mut all = true;
            for (slot, target) in self.slots.iter().zip(&self.targets).rev() {
                match State::of(&slot.state) {
                    State::Freezing | State::Thawing if ended => thaw_here(slot, target),
                    State::Freezing | State::Thawing => match target.thaw() {
                        Ok(()) => State::Thawed.put(&slot.state),
                        Err(_) => all = false,
                    },
                    // It froze since we looked.
                    State::Frozen => thaw_here(slot, target),
                    _ => {}
                }
            }
            if ended || all {
                return;
            }
            let _ = self.link.rest(None);
        }
    }

    /// Milliseconds from the first freeze to the last thaw, or to now.
    fn window_ms(&self) -> u64 {
        let began = self.link.board.began_us.load(Ordering::SeqCst);
        let ended = match self.link.board.ended_us.load(Ordering::SeqCst) {
            0 => now_us(),
            ended => ended,
        };
        if began == 0 {
            0
        } else {
            ended.saturating_sub(began) / 1000
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self
            .targets
            .iter()
            .map(|target| target.name.as_str())
            .collect();
        names.join(" ")
    }

    /// The guardian died or hung, and floe thawed what was frozen.
    fn lost(&self) -> Error {
        if self.link.board.began_us.load(Ordering::SeqCst) == 0 {
            return Error::failed(format_args!(
                "{}: guardian: it died or did not answer",
                self.names()
            ))
            .leaving("nothing is frozen");
        }
        Error::failed(format_args!(
            "{}: guardian: it died or did not answer; thawed after {} ms, the image is not complete",
            self.names(),
            self.window_ms()
        ))
    }

    fn fired_error(&self) -> Error {
        let (names, ms) = (self.names(), self.window_ms());
        match Fired::of(&self.link.board.fired) {
            Fired::Stall => Error::failed(format_args!(
                "{names}: watchdog: no byte read or taken for {}; thawed after {ms} ms; the image is incomplete; a larger --spool or --stall lets a slow sink recover",
                Period(self.limits.stall)
            )),
            Fired::Max => Error::failed(format_args!(
                "{names}: watchdog: frozen for {}; thawed after {ms} ms; the image is incomplete; a larger --spool or --max-freeze, or a faster sink, would help",
                Period(self.limits.max_freeze)
            )),
            Fired::Orphan => Error::failed(format_args!(
                "{names}: guardian: told to thaw from outside; thawed after {ms} ms; the image is incomplete"
            )),
            Fired::No => Error::failed(format_args!(
                "{names}: guardian: it ended without being told"
            )),
        }
    }

    /// The first target whose thaw did not find it frozen, or failed.
    fn thaw_error(&self) -> Option<Error> {
        for (slot, target) in self.slots.iter().zip(&self.targets) {
            let name = &target.name;
            match slot.thaw_errno.load(Ordering::SeqCst) {
                0 => {}
                errno if errno == Errno::INVAL.raw_os_error() => {
                    return Some(Error::failed(format_args!(
                        "{name}: thaw: it was not frozen any more, somebody else thawed it; the image is not consistent"
                    )));
                }
                errno => {
                    return Some(Error::failed(format_args!(
                        "{name}: thaw: {}; try floe thaw",
                        ErrnoText(errno)
                    )));
                }
            }
        }
        None
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if !self.gone && !self.left {
            self.abandon();
        }
    }
}

impl Frozen {
    /// The counters that keep the watchdog calm.
    pub fn progress(&self) -> Heartbeat {
        self.guardian.progress()
    }

    /// Readable when there is news: call [`Self::check`].
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.guardian.link.replies.as_fd()
    }

    /// Fails when the freeze has ended: the watchdog fired, or the guardian died or hung (then it thaws here and now).
    /// Call it at least every half second: it is also what finds a stopped guardian. Cheap, and without the heap
    /// unless it fails.
    pub fn check(&mut self) -> Result<()> {
        let guardian = &mut self.guardian;
        let reply = guardian.link.read_replies();
        if guardian.watchdog_fired() {
            guardian.abandon();
            return Err(guardian.fired_error());
        }
        if guardian.is_lost(reply) {
            guardian.take_over();
            return Err(guardian.lost());
        }
        Ok(())
    }

    /// Thaws everything and ends the guardian. `Ok` proves that each target was frozen from [`Guardian::freeze`] on until now, but
    /// for somebody who both thawed and froze it again in between.
    pub fn thaw(self) -> Result<FrozenWindow> {
        self.release_by(Order::Thaw).map(|(window, _)| window)
    }

    /// The same, and gives the guardian back, which may freeze again.
    pub fn release(self) -> Result<(FrozenWindow, Guardian)> {
        self.release_by(Order::Release)
    }

    fn release_by(mut self, order: Order) -> Result<(FrozenWindow, Guardian)> {
        let guardian = &mut self.guardian;
        if !guardian.taken_over && guardian.end_freeze(order) && order == Order::Thaw {
            guardian.collect();
        }
        if guardian.taken_over {
            return Err(guardian.lost());
        }
        if guardian.watchdog_fired() {
            return Err(guardian.fired_error());
        }
        if let Some(error) = guardian.thaw_error() {
            return Err(error);
        }
        let states = guardian.slots.iter().map(|slot| State::of(&slot.state));
        let wanted = match order {
            Order::Release => State::Idle,
            _ => State::Thawed,
        };
        if states.into_iter().any(|state| state != wanted) {
            return Err(Error::failed(format_args!(
                "{}: thaw: it does not complete",
                guardian.names()
            )));
        }
        let frozen_ms = guardian.window_ms();
        // Until the next freeze nothing is frozen.
        guardian.link.board.began_us.store(0, Ordering::SeqCst);
        Ok((FrozenWindow { frozen_ms }, self.guardian))
    }
}

/// Whether nothing but freezes that do not return is left to wait for. When every filesystem is thawed nothing is stuck:
/// then the guardian's word is due at once, however long the last thaw took.
fn only_stuck(states: impl Iterator<Item = State>) -> bool {
    let mut stuck = false;
    for state in states {
        match state {
            State::Freezing | State::Syncing => stuck = true,
            state if state.is_final() => {}
            _ => return false,
        }
    }
    stuck
}

/// A limit as it was typed: whole seconds, or milliseconds.
struct Period(Duration);

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{} s", self.0.as_secs()),
            _ => write!(f, "{} ms", self.0.as_millis()),
        }
    }
}

fn thaw_here(slot: &Slot, target: &FreezeTarget) {
    if let Err(errno) = target.thaw() {
        slot.thaw_errno
            .store(errno.raw_os_error(), Ordering::SeqCst);
    }
    State::Thawed.put(&slot.state);
}

fn cannot_freeze(target: &FreezeTarget, errno: i32) -> Error {
    let name = &target.name;
    let help;
    let exit = match Errno::from_raw_os_error(errno) {
        Errno::BUSY if matches!(target.method, Method::ReadOnly(_)) => {
            return Error::refused(format_args!(
                "{name}: cannot be remounted read-only: files are open for writing"
            ));
        }
        Errno::BUSY => {
            return Error::refused(format_args!(
                "{name}: already frozen by somebody else, which is left as it is (floe thaw ends it)"
            ));
        }
        Errno::PERM | Errno::ACCESS | Errno::IO => {
            help = denied(errno);
            Exit::Failed
        }
        _ => {
            help = "; unmount it, remount it read-only, or --live for an image that may not be consistent";
            Exit::Refused
        }
    };
    let why = ErrnoText(errno);
    Error::with(exit, format_args!("{name}: cannot freeze: {why}{help}")).leaving(NOTHING_WRITTEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thaw_that_took_its_time_is_not_taken_for_a_freeze_that_is_stuck() {
        use State::{Failed, Freezing, Frozen, Skipped, Syncing, Thawed, Thawing};
        for states in [&[Thawed][..], &[Thawed, Thawed], &[Failed, Skipped]] {
            assert!(!only_stuck(states.iter().copied()), "{states:?}");
        }
        for states in [&[Freezing][..], &[Thawed, Freezing], &[Skipped, Syncing]] {
            assert!(only_stuck(states.iter().copied()), "{states:?}");
        }
        for states in [&[Thawing, Freezing][..], &[Frozen, Syncing]] {
            assert!(!only_stuck(states.iter().copied()), "{states:?}");
        }
    }
}
