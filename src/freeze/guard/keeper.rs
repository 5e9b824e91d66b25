//! The guardian's main thread: waits, decides, beats. It makes no call that can hang, except to sleep.
//!
//! See `guard` for the protocol. Everything it needs is allocated and opened before it reports READY.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::process::{Pid, Signal};

use super::worker::{Worker, all_apart};
use super::{
    Cgroups, Fired, Form, FreezeTarget, Group, Leftover, Life, Limits, Order, Phase, State,
    THAW_TURN_US, micros, now_us,
};
use crate::sys::shared::{SharedPage, Slot};
use crate::sys::{lock, process};
use crate::threads::{self, Started};

/// Comes when the thread of floe that started us dies. It is SIGCONT because that also wakes a guardian that somebody stopped.
/// floe sends it too, to one that does not beat; so it says nothing by itself, and we look ([`Floe::is_gone`]).
const PARENT_DIED: i32 = process::SIGCONT;
/// A worker makes system calls only.
const WORKER_STACK_BYTES: usize = 64 << 10;
/// How long we sleep at most while nothing is frozen.
const IDLE: Duration = Duration::from_millis(250);
/// The same while something is.
const BEAT: Duration = Duration::from_millis(50);
/// How often a leftover is tried to be removed that is still busy, and how long we wait in between: floe's last threads may
/// be some time in dying.
const REMOVALS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// What floe leaves to its guardian.
pub(crate) struct Charge {
    pub targets: Vec<FreezeTarget>,
    pub limits: Limits,
    pub leftovers: Vec<Leftover>,
    /// floe's lock on the filesystems, which lasts as long as either of us.
    pub lock: Option<OwnedFd>,
    pub board: &'static SharedPage,
    /// floe's bytes; end of file when it is gone.
    pub orders: OwnedFd,
    /// Bytes to floe; non-blocking.
    pub replies: OwnedFd,
    pub parent: Pid,
    pub form: Form,
}

/// The life of the guardian.
pub(crate) fn serve(charge: Charge) -> ! {
    let board = charge.board;
    match Keeper::prepare(charge) {
        Ok(mut keeper) => {
            keeper.run();
            process::exit_now(0)
        }
        Err(errno) => {
            board
                .start_errno
                .store(errno.raw_os_error(), Ordering::SeqCst);
            process::exit_now(1)
        }
    }
}

/// Makes us harder to kill and to hold up. Nothing of it is worth giving up for.
fn stand_apart(parent: Pid, board: &SharedPage) -> Cgroups {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"thaw-guard");
    let _ = rustix::process::setpriority_process(None, -20);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let mut cgroups = Cgroups::find();
    match cgroups.enter(parent) {
        true => Group::Own,
        false => Group::Shared,
    }
    .put(&board.group);
    cgroups
}

/// The process that we guard.
pub(super) struct Floe {
    pid: Pid,
    life: Life,
}

impl Floe {
    /// Whether it has died, be it that one of its threads still hangs in a call, so that its descriptors are not closed: then its
    /// main thread is a zombie.
    pub(super) fn is_gone(&self) -> bool {
        rustix::process::getppid() != Some(self.pid) || self.life.is_over()
    }
}

/// One for each filesystem; they wait for an order.
fn start_workers(
    board: &'static SharedPage,
    floe: &'static Floe,
    slots: &'static [Slot],
    targets: &'static [FreezeTarget],
    wake: BorrowedFd<'static>,
) -> Result<Vec<Started>, Errno> {
    let mut workers = Vec::with_capacity(targets.len());
    for (index, (slot, target)) in slots.iter().zip(targets).enumerate() {
        let worker = Worker {
            board,
            floe,
            slot,
            below: slots.get(index + 1..).unwrap_or_default(),
            target,
            wake,
        };
        let work = Box::new(move || -> () { worker.run() });
        let thread = threads::start(c"thaw-guard", WORKER_STACK_BYTES, work);
        workers.push(thread.map_err(|_| Errno::AGAIN)?);
    }
    Ok(workers)
}

/// Keeps our memory from being paged out: what is needed for a thaw must not have to be read from a disk.
fn lock_memory(form: Form) {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
    // A copy of the executable lies in memory anyway: it is locked as far as it is used. floe's own file does not.
    if form != Form::Fork && rustix::mm::mlockall(all | MlockAllFlags::ONFAULT).is_ok() {
        return;
    }
    let _ = rustix::mm::mlockall(all);
}

/// What the main thread is doing.
#[derive(Clone, Copy)]
enum KeeperStep {
    Idle,
    Syncing,
    /// Freezing this filesystem, those before it are frozen.
    Freezing(usize),
    Frozen,
    /// Thawing, to be idle again.
    Releasing,
    Ending,
    Done,
}

struct Keeper {
    board: &'static SharedPage,
    slots: &'static [Slot],
    targets: &'static [FreezeTarget],
    workers: Vec<Started>,
    orders: OwnedFd,
    replies: OwnedFd,
    signals: OwnedFd,
    wake: BorrowedFd<'static>,
    floe: &'static Floe,
    leftovers: Vec<Leftover>,
    lock: Option<OwnedFd>,
    cgroups: Cgroups,
    stall_us: u64,
    max_us: u64,
    /// The sum of the counters when it last changed, and when that was.
    moved: (u64, u64),
    step: KeeperStep,
    orphan: bool,
    /// When the last order to thaw was given; `rush`: no more waiting for each other.
    told_us: u64,
    rush: bool,
}

impl Keeper {
    fn prepare(charge: Charge) -> Result<Self, Errno> {
        process::block_all();
        rustix::process::set_parent_process_death_signal(Signal::from_named_raw(PARENT_DIED))?;
        let mut keep = vec![0, 2, charge.orders.as_raw_fd(), charge.replies.as_raw_fd()];
        keep.extend(charge.targets.iter().map(|target| target.fd.as_raw_fd()));
        keep.extend(charge.leftovers.iter().map(|it| it.directory.as_raw_fd()));
        keep.extend(charge.lock.iter().map(AsRawFd::as_raw_fd));
        // In a program of its own it has none yet.
        crate::sys::stderr::prepare();
        keep.extend(crate::sys::stderr::own());
        if charge.form == Form::Fork {
            // floe's standard input is none of our business; a charge is.
            keep.swap_remove(0);
        }
        process::close_others(&keep);
        let signals = process::signal_fd(&[PARENT_DIED])?;
        let wake: &'static OwnedFd = Box::leak(Box::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?));
        let floe: &'static Floe = Box::leak(Box::new(Floe {
            pid: charge.parent,
            life: Life::of(charge.parent),
        }));
        let cgroups = stand_apart(charge.parent, charge.board);
        // The workers' stacks are locked and there from the start.
        let _ = rustix::mm::mlockall(MlockAllFlags::FUTURE);
        let targets: &'static [FreezeTarget] = Vec::leak(charge.targets);
        let slots = charge
            .board
            .slots
            .get(..targets.len())
            .ok_or(Errno::INVAL)?;
        let workers = start_workers(charge.board, floe, slots, targets, wake.as_fd())?;
        if all_apart(workers.len()) {
            let ours = [signals.as_raw_fd(), wake.as_raw_fd()];
            keep.retain(|fd| !targets.iter().any(|target| target.fd.as_raw_fd() == *fd));
            keep.extend(ours.into_iter().chain(floe.life.descriptor()));
            process::close_others(&keep);
        }
        lock_memory(charge.form);
        Ok(Self {
            board: charge.board,
            slots,
            targets,
            workers,
            orders: charge.orders,
            replies: charge.replies,
            signals,
            wake: wake.as_fd(),
            floe,
            leftovers: charge.leftovers,
            lock: charge.lock,
            cgroups,
            stall_us: micros(charge.limits.stall),
            max_us: micros(charge.limits.max_freeze),
            moved: (0, 0),
            step: KeeperStep::Idle,
            orphan: false,
            told_us: 0,
            rush: false,
        })
    }

    fn run(&mut self) {
        self.beat();
        self.announce(Phase::Ready);
        while !matches!(self.step, KeeperStep::Done) {
            self.wait();
            self.beat();
            self.advance();
        }
        self.announce(Phase::Done);
        if self.orphan {
            // The next floe need not wait for what is still to be done.
            let _ = self.lock.as_ref().map(lock::release);
            self.say_what_happened();
            self.remove_leftovers();
        }
        self.cgroups.leave();
    }

    /// Removes what floe would have removed.
    fn remove_leftovers(&self) {
        for leftover in &self.leftovers {
            let name = leftover.name.as_c_str();
            for _ in 0..REMOVALS {
                match rustix::fs::unlinkat(&leftover.directory, name, AtFlags::REMOVEDIR) {
                    Err(Errno::BUSY | Errno::NOTEMPTY | Errno::INTR) => {}
                    _ => break,
                }
                std::thread::sleep(REMOVAL_PAUSE);
            }
        }
    }

    fn beat(&self) {
        self.board.beat_us.store(now_us(), Ordering::SeqCst);
    }

    fn announce(&self, phase: Phase) {
        phase.put(&self.board.phase);
        // A full or closed pipe loses nothing: the word is on the board.
        let _ = rustix::io::write(&self.replies, b"!");
    }

    /// Sleeps until something happened, or a beat is due; notices the end of floe.
    fn wait(&mut self) {
        let sleep = if matches!(self.step, KeeperStep::Idle) {
            IDLE
        } else {
            BEAT
        };
        let timeout = Timespec::try_from(sleep).unwrap_or_default();
        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.orders, PollFlags::IN),
        ];
        // A pipe at its end would wake us all the time.
        let count = if self.orphan { 2 } else { 3 };
        let _ = poll(fds.get_mut(..count).unwrap_or_default(), Some(&timeout));
        let _ = rustix::io::read(self.wake, &mut [0_u8; 8]);
        let _ = process::take_signal(&self.signals);
        let ended =
            !self.orphan && matches!(rustix::io::read(&self.orders, &mut [0_u8; 64]), Ok(0));
        if ended || self.floe.is_gone() {
            self.orphan = true;
        }
    }

    /// Whether the freeze must end, and puts the reason on the board.
    fn must_end(&mut self) -> bool {
        if self.orphan {
            Fired::Orphan.put(&self.board.fired);
            return true;
        }
        if Order::of(&self.board.order) == Order::Thaw {
            return true;
        }
        if !matches!(self.step, KeeperStep::Freezing(_) | KeeperStep::Frozen) {
            return false;
        }
        let began = self.board.began_us.load(Ordering::SeqCst);
        let now = now_us();
        let sum = self
            .board
            .read_bytes
            .load(Ordering::Relaxed)
            .wrapping_add(self.board.taken_bytes.load(Ordering::Relaxed));
        if sum != self.moved.0 || self.moved.1 == 0 {
            self.moved = (sum, now);
        }
        let fired = if now.saturating_sub(began) >= self.max_us {
            Fired::Max
        } else if now.saturating_sub(self.moved.1) >= self.stall_us {
            Fired::Stall
        } else {
            return false;
        };
        fired.put(&self.board.fired);
        true
    }

    /// Goes through as many steps as are due.
    fn advance(&mut self) {
        loop {
            let step = self.step;
            let next = match step {
                KeeperStep::Idle
                | KeeperStep::Syncing
                | KeeperStep::Freezing(_)
                | KeeperStep::Frozen
                | KeeperStep::Releasing
                    if self.must_end() =>
                {
                    KeeperStep::Ending
                }
                KeeperStep::Idle if Order::of(&self.board.order) == Order::Freeze => {
                    self.announce(Phase::Busy);
                    for slot in self.slots {
                        slot.freeze_errno.store(0, Ordering::SeqCst);
                        slot.thaw_errno.store(0, Ordering::SeqCst);
                    }
                    (0..self.slots.len()).for_each(|index| self.tell(index, Order::Sync));
                    KeeperStep::Syncing
                }
                KeeperStep::Syncing
                    if self
                        .slots
                        .iter()
                        .all(|slot| State::of(&slot.state) == State::Synced) =>
                {
                    let now = now_us();
                    self.moved.1 = now;
                    self.board.ended_us.store(0, Ordering::SeqCst);
                    self.board.began_us.store(now, Ordering::SeqCst);
                    self.tell(0, Order::Freeze);
                    KeeperStep::Freezing(0)
                }
                KeeperStep::Freezing(index) => match self.frozen(index) {
                    Some(next) => next,
                    None => return,
                },
                KeeperStep::Frozen if Order::of(&self.board.order) == Order::Release => {
                    self.announce(Phase::Busy);
                    KeeperStep::Releasing
                }
                KeeperStep::Releasing if self.thaw_in_turn() => {
                    self.board.ended_us.store(now_us(), Ordering::SeqCst);
                    self.start_over();
                    KeeperStep::Idle
                }
                KeeperStep::Ending if self.thaw_in_turn() => {
                    self.board.ended_us.store(now_us(), Ordering::SeqCst);
                    KeeperStep::Done
                }
                _ => return,
            };
            self.step = next;
        }
    }

    /// What follows once filesystem `index` is frozen or has failed to; `None` while neither.
    fn frozen(&self, index: usize) -> Option<KeeperStep> {
        match self.slots.get(index).map(|slot| State::of(&slot.state))? {
            State::Frozen if index + 1 == self.slots.len() => {
                self.announce(Phase::Frozen);
                Some(KeeperStep::Frozen)
            }
            State::Frozen => {
                self.tell(index + 1, Order::Freeze);
                Some(KeeperStep::Freezing(index + 1))
            }
            State::Failed => Some(KeeperStep::Ending),
            _ => None,
        }
    }

    /// Makes ready for another freeze. What the thaws said stays on the board.
    fn start_over(&mut self) {
        for slot in self.slots {
            Order::None.put(&slot.order);
            State::Idle.put(&slot.state);
        }
        self.rush = false;
        // Not if floe has given another order by now.
        let order = &self.board.order;
        let (from, to) = (Order::Release as u32, Order::None as u32);
        let _ = order.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
        self.announce(Phase::Ready);
    }

    fn tell(&self, index: usize, order: Order) {
        if let (Some(slot), Some(worker)) = (self.slots.get(index), self.workers.get(index)) {
            order.put(&slot.order);
            worker.unpark();
        }
    }

    /// Has everything thawed in the reverse order; true once nothing is or will be frozen.
    fn thaw_in_turn(&mut self) -> bool {
        let mut all = true;
        for index in (0..self.slots.len()).rev() {
            let Some(slot) = self.slots.get(index) else {
                continue;
            };
            let state = State::of(&slot.state);
            if state.is_final() {
                continue;
            }
            all = false;
            let told = Order::of(&slot.order) == Order::Thaw;
            if !told {
                self.told_us = now_us();
                self.tell(index, Order::Thaw);
            }
            // Who is still syncing or freezing thaws by itself afterwards; the others do not wait for that.
            if matches!(state, State::Syncing | State::Freezing) || self.rush {
                continue;
            }
            if told && now_us().saturating_sub(self.told_us) >= THAW_TURN_US {
                self.rush = true;
                continue;
            }
            return false;
        }
        all
    }

    /// One line for a person, after the last thaw, when floe itself can say nothing any more.
    fn say_what_happened(&self) {
        let mut names = String::new();
        for (slot, target) in self.slots.iter().zip(self.targets) {
            if State::of(&slot.state) == State::Thawed {
                names.push(' ');
                names.push_str(&target.name);
            }
        }
        if names.is_empty() {
            return;
        }
        let names = crate::report::clean(&names);
        let line = format!("floe: guardian: floe is gone; thawed:{names}\n");
        crate::sys::stderr::write_if_ready(line.as_bytes());
    }
}
