//! The guardian's main thread: waits, decides, beats. It makes no call that can hang, except to sleep.
//!
//! See `guard` for the protocol. Everything it needs is allocated and opened before it reports READY.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::thread::Thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::worker::Worker;
use super::{Cgroups, Fired, Limits, Order, Phase, State, THAW_TURN_US, Target, micros, now_us};
use crate::sys::process;
use crate::sys::shared::{Board, Slot};

/// Tells us that floe's main thread died. Nothing else sends it.
const PARENT_DIED: i32 = process::SIGUSR2;
/// A worker makes system calls only.
const WORKER_STACK_BYTES: usize = 64 << 10;
/// How long we sleep at most while nothing is frozen.
const IDLE: Duration = Duration::from_millis(250);
/// The same while something is.
const BEAT: Duration = Duration::from_millis(50);

/// What floe leaves to its guardian at the fork.
pub(crate) struct Charge {
    pub targets: Vec<Target>,
    pub limits: Limits,
    pub board: &'static Board,
    /// floe's bytes; end of file when it is gone.
    pub orders: OwnedFd,
    /// Bytes to floe; non-blocking.
    pub replies: OwnedFd,
    pub parent: Pid,
    pub cgroups: Cgroups,
}

/// The life of the forked child.
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

/// What the main thread is doing.
#[derive(Clone, Copy)]
enum Step {
    Idle,
    Syncing,
    /// Freezing this filesystem, those before it are frozen.
    Freezing(usize),
    Frozen,
    Ending,
    Done,
}

struct Keeper {
    board: &'static Board,
    slots: &'static [Slot],
    targets: &'static [Target],
    workers: Vec<Thread>,
    orders: OwnedFd,
    replies: OwnedFd,
    signals: OwnedFd,
    wake: BorrowedFd<'static>,
    parent: Pid,
    cgroups: Cgroups,
    stall_us: u64,
    max_us: u64,
    /// The sum of the counters when it last changed, and when that was.
    moved: (u64, u64),
    step: Step,
    orphan: bool,
    /// When the last order to thaw was given; `rush`: no more waiting for each other.
    told_us: u64,
    rush: bool,
}

impl Keeper {
    fn prepare(charge: Charge) -> Result<Self, Errno> {
        process::block_all();
        rustix::process::set_parent_process_death_signal(Signal::from_named_raw(PARENT_DIED))?;
        let signals = process::signal_fd(&[PARENT_DIED])?;
        let wake: &'static OwnedFd = Box::leak(Box::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?));
        let mut keep = vec![
            2,
            charge.orders.as_raw_fd(),
            charge.replies.as_raw_fd(),
            signals.as_raw_fd(),
            wake.as_raw_fd(),
        ];
        keep.extend(charge.targets.iter().map(|target| target.fd.as_raw_fd()));
        process::close_others(&keep);
        // Each of these makes us harder to kill; none is worth giving up for.
        let _ = rustix::process::setsid();
        let _ = rustix::process::chdir("/");
        let _ = rustix::thread::set_name(c"floe-guard");
        let _ = rustix::process::setpriority_process(None, -20);
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        charge.cgroups.enter();
        let targets: &'static [Target] = Vec::leak(charge.targets);
        let slots = charge
            .board
            .slots
            .get(..targets.len())
            .ok_or(Errno::INVAL)?;
        let mut workers = Vec::with_capacity(targets.len());
        for (slot, target) in slots.iter().zip(targets) {
            let worker = Worker {
                slot,
                target,
                wake: wake.as_fd(),
            };
            let thread = std::thread::Builder::new()
                .name("floe-guard".into())
                .stack_size(WORKER_STACK_BYTES)
                .spawn(move || -> () { worker.run() })
                .map_err(|_| Errno::AGAIN)?;
            workers.push(thread.thread().clone());
        }
        let all = rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE;
        let _ = rustix::mm::mlockall(all);
        Ok(Self {
            board: charge.board,
            slots,
            targets,
            workers,
            orders: charge.orders,
            replies: charge.replies,
            signals,
            wake: wake.as_fd(),
            parent: charge.parent,
            cgroups: charge.cgroups,
            stall_us: micros(charge.limits.stall),
            max_us: micros(charge.limits.max_freeze),
            moved: (0, 0),
            step: Step::Idle,
            orphan: false,
            told_us: 0,
            rush: false,
        })
    }

    fn run(&mut self) {
        self.beat();
        self.announce(Phase::Ready);
        while !matches!(self.step, Step::Done) {
            self.wait();
            self.beat();
            self.advance();
        }
        self.announce(Phase::Done);
        if self.orphan && self.board.began_us.load(Ordering::SeqCst) != 0 {
            self.say_what_happened();
        }
        self.cgroups.leave(rustix::process::getpid());
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
        let sleep = if matches!(self.step, Step::Idle) {
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
        let signalled = process::take_signal(&self.signals).is_some();
        let ended =
            !self.orphan && matches!(rustix::io::read(&self.orders, &mut [0_u8; 64]), Ok(0));
        if signalled || ended || rustix::process::getppid() != Some(self.parent) {
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
        let began = self.board.began_us.load(Ordering::SeqCst);
        if began == 0 {
            return false;
        }
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
                Step::Idle | Step::Syncing | Step::Freezing(_) | Step::Frozen
                    if self.must_end() =>
                {
                    Step::Ending
                }
                Step::Idle if Order::of(&self.board.order) == Order::Freeze => {
                    self.announce(Phase::Busy);
                    (0..self.slots.len()).for_each(|index| self.tell(index, Order::Sync));
                    Step::Syncing
                }
                Step::Syncing
                    if self
                        .slots
                        .iter()
                        .all(|slot| State::of(&slot.state) == State::Synced) =>
                {
                    let now = now_us();
                    self.moved.1 = now;
                    self.board.began_us.store(now, Ordering::SeqCst);
                    self.tell(0, Order::Freeze);
                    Step::Freezing(0)
                }
                Step::Freezing(index) => match self.frozen(index) {
                    Some(next) => next,
                    None => return,
                },
                Step::Ending if self.thaw_in_turn() => {
                    self.board.ended_us.store(now_us(), Ordering::SeqCst);
                    Step::Done
                }
                _ => return,
            };
            self.step = next;
        }
    }

    /// What follows once filesystem `index` is frozen or has failed to; `None` while neither.
    fn frozen(&self, index: usize) -> Option<Step> {
        match self.slots.get(index).map(|slot| State::of(&slot.state))? {
            State::Frozen if index + 1 == self.slots.len() => {
                self.announce(Phase::Frozen);
                Some(Step::Frozen)
            }
            State::Frozen => {
                self.tell(index + 1, Order::Freeze);
                Some(Step::Freezing(index + 1))
            }
            State::Failed => Some(Step::Ending),
            _ => None,
        }
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
        let line = format!("floe: guardian: floe is gone; thawed:{names}\n");
        let stderr = rustix::stdio::stderr();
        let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Writable now: a line shorter than PIPE_BUF then fits without blocking (pipe(7)).
        if matches!(poll(&mut fds, Some(&now)), Ok(1)) {
            let _ = rustix::io::write(
                stderr,
                line.as_bytes()
                    .get(..line.len().min(4096))
                    .unwrap_or_default(),
            );
        }
    }
}
