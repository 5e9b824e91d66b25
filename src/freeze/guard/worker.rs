//! A worker of the guardian: the thread that owns one filesystem, and the only one that freezes it.
//!
//! It sleeps until its order changes, does what the order says, and wakes the guardian's main thread. It may be inside
//! FIFREEZE or FITHAW for as long as the kernel likes; nobody waits for it who could not also go on without.
//!
//! Should the main thread not beat any more when floe is gone, because somebody traces it, the workers thaw by themselves.
//!
//! It has a table of descriptors of its own, where the filesystem's stays open, while the main thread closes it: `fuser -k DIRECTORY`,
//! which looks at /proc/PID/fd and ends whom it finds, is what people try on a filesystem that hangs, and it shall find floe alone.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::keeper::Floe;
use super::{FreezeTarget, Method, Order, State, THAW_TURN_US, claim, now_us};
use crate::sys::process;
use crate::sys::shared::{SharedPage, Slot};

/// f2fs answers EINVAL to FIFREEZE while it has dirty data, and a read-only remount is EBUSY while anybody has a file open
/// for writing, be it for a moment; so often we sync and ask again.
const FREEZE_TRIES: u32 = 10;

/// How often a worker looks for itself.
const LOOK: Duration = Duration::from_millis(250);
/// The main thread beats ten times in it, in microseconds.
const SILENCE_US: u64 = 500_000;

/// Workers that have started, and those of them that have descriptors of their own.
static STARTED: AtomicUsize = AtomicUsize::new(0);
static APART: AtomicUsize = AtomicUsize::new(0);

/// Waits a second at most until so many workers have started; whether all of them have descriptors of their own.
pub(super) fn all_apart(workers: usize) -> bool {
    for _ in 0..1000 {
        if STARTED.load(Ordering::SeqCst) >= workers {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    APART.load(Ordering::SeqCst) >= workers
}

/// What a worker needs; everything lives as long as the guardian.
pub(super) struct Worker {
    pub board: &'static SharedPage,
    pub floe: &'static Floe,
    pub slot: &'static Slot,
    /// Those that thaw before it.
    pub below: &'static [Slot],
    pub target: &'static FreezeTarget,
    /// The main thread's eventfd.
    pub wake: BorrowedFd<'static>,
}

impl Worker {
    /// Serves orders for ever: a thread that ended would return memory while other filesystems are still frozen.
    pub(super) fn run(&self) -> ! {
        if process::own_descriptors().is_ok() {
            APART.fetch_add(1, Ordering::SeqCst);
        }
        STARTED.fetch_add(1, Ordering::SeqCst);
        loop {
            // The state first: the main thread resets the order before the state, and an old order must not meet a new state.
            let state = State::of(&self.slot.state);
            let done = match (Order::of(&self.slot.order), state) {
                (Order::Thaw, State::Frozen) => self.thaw(),
                (_, State::Frozen) if self.is_alone() => self.thaw(),
                (Order::Thaw, state @ (State::Idle | State::Synced)) => {
                    claim(self.slot, state, State::Skipped)
                }
                (Order::Sync, State::Idle) => self.sync(),
                (Order::Freeze, State::Synced) => self.freeze(),
                _ => false,
            };
            if done {
                // Fails only when the counter is full, and then the main thread is awake anyway.
                let _ = rustix::io::write(self.wake, &1_u64.to_ne_bytes());
            } else {
                std::thread::park_timeout(LOOK);
            }
        }
    }

    /// Whether nobody else would thaw it, and it is its turn. No heap.
    fn is_alone(&self) -> bool {
        let silence = now_us().saturating_sub(self.board.beat_us.load(Ordering::SeqCst));
        let is_held =
            |slot: &Slot| matches!(State::of(&slot.state), State::Frozen | State::Thawing);
        let turn = match self.below.iter().any(is_held) {
            true => THAW_TURN_US,
            false => 0,
        };
        silence > SILENCE_US + turn && self.floe.is_gone()
    }

    fn sync(&self) -> bool {
        State::Syncing.put(&self.slot.state);
        // A failure here is found again by the freeze, which syncs too.
        let _ = rustix::fs::syncfs(&self.target.fd);
        State::Synced.put(&self.slot.state);
        true
    }

    fn freeze(&self) -> bool {
        State::Freezing.put(&self.slot.state);
        match self.try_freeze() {
            Ok(()) => State::Frozen.put(&self.slot.state),
            Err(errno) => {
                let code = errno.raw_os_error();
                self.slot.freeze_errno.store(code, Ordering::SeqCst);
                State::Failed.put(&self.slot.state);
            }
        }
        true
    }

    fn try_freeze(&self) -> Result<(), Errno> {
        let passing = match self.target.method {
            Method::Freeze => Errno::INVAL,
            Method::ReadOnly(_) => Errno::BUSY,
        };
        for _ in 1..FREEZE_TRIES {
            match self.target.freeze() {
                Err(errno) if errno == passing => {}
                result => return result,
            }
            let _ = rustix::fs::syncfs(&self.target.fd);
            std::thread::sleep(Duration::from_millis(20));
        }
        self.target.freeze()
    }

    fn thaw(&self) -> bool {
        if claim(self.slot, State::Frozen, State::Thawing) {
            if let Err(errno) = self.target.thaw() {
                let code = errno.raw_os_error();
                self.slot.thaw_errno.store(code, Ordering::SeqCst);
            }
            State::Thawed.put(&self.slot.state);
        }
        true
    }
}
