//! The guardian: a process that freezes and thaws on floe's behalf, so that no way of dying leaves a filesystem frozen.
//!
//! # Who is there
//! *floe* (M, `freeze`) starts the *guardian* (G, `keeper.rs`) when all descriptors of the filesystems are open. G has a main
//! thread, which only waits, decides and beats, and one *worker* for each filesystem. Between them lie one shared page (the board,
//! `sys::shared`) and two pipes, which carry no facts: a byte means "look at the board", end of file means "the other process is
//! wholly gone" (a descriptor table dies with its last thread).
//!
//! G is another executable: a sealed copy of ours in memory (`copy.rs`), with a name, a comm, an inode, a session and a process
//! group of its own, so that what ends floe by any of these does not end G. It learns what it needs from a file that it inherits
//! (`handover.rs`). Where no copy can be executed, as under an emulator, it is a fork, and the report says so.
//!
//! # The one rule
//! **A worker is the only one that ever freezes its filesystem, and whoever moves a slot from FROZEN to THAWING by
//! compare-and-swap is the only one that thaws it.** Hence each freeze that succeeded meets exactly one thaw that
//! succeeds. FITHAW answers EINVAL while a FIFREEZE is still in progress, so thawing from outside could be too early and
//! leave a freeze that nobody knows of; the worker that is inside FIFREEZE cannot be too early: it sees the order to thaw
//! when the call returns. It needs no kill of floe and no repetition, and a floe that dies meanwhile changes nothing.
//!
//! # Board
//! Slot of a filesystem, in the order of freezing (top of the stack first):
//!
//!     IDLE → SYNCING → SYNCED → FREEZING → FROZEN → THAWING → THAWED      written by the worker
//!       └───────┴────────┴→ SKIPPED (told to thaw before it froze)
//!                        FREEZING → FAILED (freeze_errno; not frozen by us: EBUSY is somebody else's freeze)
//!
//! FREEZING is stored before the call and FROZEN or FAILED after it; THAWING before the call and THAWED after it, with
//! `thaw_errno` (EINVAL: somebody else thawed it in between, the image is worthless). SKIPPED, FAILED, THAWED are final.
//! A read-only remount (for what cannot freeze) goes through the same states.
//!
//! Phase of G: STARTING → READY → BUSY → FROZEN → BUSY → DONE, or READY again. Order of M: NONE → FREEZE → THAW (THAW from
//! anywhere), or RELEASE, which G makes NONE: then every slot is IDLE again before G says READY.
//!
//! # The course of things
//! 1. M takes a lock (`freeze::lock`, which G inherits; a second floe is refused), starts G, waits for READY: own session, own
//!    cgroup where possible, signals blocked, memory locked, OOM-exempt, workers waiting, every descriptor closed that it does not
//!    need (stdout too: a reader of the pipe must see M's end). It may then wait for as long as M likes: no limit counts before the
//!    first FIFREEZE.
//! 2. M orders FREEZE. All workers `syncfs` at once, so that the freeze is short. Then they freeze one after the other.
//! 3. All FROZEN: M reads. G looks every 50 ms at the counters (`Progress`), the clock, and M.
//! 4. M orders THAW; G's workers thaw in reverse order; each waits for the one before, but only 300 ms: then all that
//!    remain thaw at once, so that a device that hangs (or an order that was wrong) holds up nobody else. A worker still
//!    in FREEZING is not waited for at all; it thaws when its call returns. While G does not beat, M thaws what is FROZEN itself.
//! 5. All slots final: DONE. If M is gone, G says one line and removes what M left behind (`Leftover`). It leaves its cgroup and
//!    exits; M collects it. After RELEASE instead: back to 2.
//!
//! G goes to 4 by itself, whatever it is doing, when M is gone (end of file, another parent, or M's main thread a zombie; the
//! parent-death signal only wakes G, even a stopped one, because it is SIGCONT), or when
//! the watchdog fires (`stall` without progress, `max_freeze` in all, both from the first call of FIFREEZE); the reason is
//! on the board before the first thaw, so that M can never take a thawed source for a frozen one.
//!
//! # Every way to die
//! | who, when | what happens |
//! | --- | --- |
//! | M before FREEZE was ordered | G exits; nothing was frozen |
//! | M, syncing | workers finish `syncfs` and skip |
//! | M, a worker inside FIFREEZE (perhaps for minutes, behind a writer held inside write()) | frozen ones are thawed at once, that one as soon as its call returns |
//! | M, frozen (SIGKILL, panic, OOM, group kill, a kill by name) | G thaws: within milliseconds of end of file or the parent-death signal, which comes when M's main thread dies even if another is stuck in state D |
//! | M, thawing or later | G finishes what it does |
//! | M gets a fatal signal | it orders THAW, waits for DONE, dies by it; a worker stuck in FIFREEZE is left to G, which stays behind. A G that has died or does not beat is left nothing: then M stays, as below |
//! | M stopped, stuck or frozen in its cgroup | the watchdog fires |
//! | G killed or crashed, no call in progress | M sees end of file and takes over: claims every FROZEN slot and thaws it, fails |
//! | G killed inside FIFREEZE or FITHAW | its descriptors stay open for as long as the call takes; M sees by its /proc/PID/stat that it is a zombie, or that it does not beat. M claims the FROZEN slots at once, then tries to thaw FREEZING and THAWING slots until the pipe ends (a killed process still completes the call, and closes its descriptors after that), and once more; EINVAL is then no fault: it never froze, or G had thawed it. It does not wait for G to be collected: who traces G may never do that |
//! | G stopped, or not beating for 1 s | M sends SIGCONT, a second later SIGKILL and takes over as above |
//! | G stopped, then M killed | the parent-death signal continues G |
//! | G's main thread traced, then M killed | a worker sees that G does not beat and M is gone, and thaws |
//! | every thread of G held by a debugger, then M killed | thawed when the debugger lets go or ends |
//! | both stopped | nothing can be done until one is continued; then the line above or the watchdog |
//! | both killed (every cgroup, `kill -9 -1`) | stays frozen: `floe thaw`, SysRq-j |
//!
//! Two gaps are known. A G killed in the instant between FIFREEZE's EBUSY and the word FAILED makes M thaw somebody else's
//! freeze: better than staying frozen. And a freeze that somebody undoes and renews within the window is invisible to the
//! thaw; the readers compare superblocks for that.
//!
//! # While frozen
//! No code here or in `freeze` opens a file, starts a process, uses the heap or writes to stderr between the first
//! FIFREEZE and the last FITHAW.

mod cgroup;
mod copy;
mod handover;
mod keeper;
mod life;
mod worker;

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::StatVfsMountFlags;
use rustix::io::{Errno, Result};
use rustix::mount::MountFlags;

pub(crate) use cgroup::Cgroups;
pub use copy::{Form, NAME as GUARDIAN};
pub(crate) use copy::{NAME, path_of};
pub(crate) use handover::Words;
pub use handover::serve_if_guardian;
pub(crate) use keeper::{Charge, serve};
pub(crate) use life::Life;

use crate::sys::ioctl::{fifreeze, fithaw};
use crate::sys::shared::{SLOTS, Slot};
pub use crate::trace::Leftover;

/// The most filesystems that can be frozen together.
pub(super) const TARGETS_MAX: usize = SLOTS;

/// A beat older than this makes M suspect that G hangs, in microseconds.
pub(crate) const BEAT_LATE_US: u64 = 1_000_000;
/// How long a thaw waits for the one before it, in microseconds.
pub(crate) const THAW_TURN_US: u64 = 300_000;

/// A filesystem to hold still.
#[derive(Debug)]
pub struct FreezeTarget {
    /// The root directory of one of its mounts (or, without the lock against a second floe, any file on it), opened
    /// for reading.
    pub fd: OwnedFd,
    /// How messages call it.
    pub name: String,
    /// How it is held still.
    pub method: Method,
}

/// How a filesystem is held still.
#[derive(Debug)]
pub enum Method {
    /// FIFREEZE. Never for ReiserFS, which deadlocks when anything syncs meanwhile.
    Freeze,
    /// Read-only remount, and back.
    ReadOnly(Remount),
}

/// The mount flags and options a read-only remount has to give back.
#[derive(Debug)]
pub struct Remount {
    path: CString,
    mount: MountFlags,
    superblock: MountFlags,
    data: CString,
}

impl Remount {
    /// For the mount whose root directory `fd` is, with the mount's and the superblock's options as mountinfo gives them
    /// (fields 6 and the last). Other mounts of the superblock keep their own flags throughout.
    pub fn new(fd: &OwnedFd, mount_options: &str, super_options: &str) -> Self {
        let mut mount = MountFlags::empty();
        let mut atime = MountFlags::STRICTATIME;
        for option in mount_options.split(',') {
            match option {
                "ro" => mount |= MountFlags::RDONLY,
                "nosuid" => mount |= MountFlags::NOSUID,
                "nodev" => mount |= MountFlags::NODEV,
                "noexec" => mount |= MountFlags::NOEXEC,
                "nodiratime" => mount |= MountFlags::NODIRATIME,
                // MS_NOSYMFOLLOW, Linux 5.10 (include/uapi/linux/mount.h).
                "nosymfollow" => mount |= MountFlags::from_bits_retain(256),
                "noatime" => atime = MountFlags::NOATIME,
                "relatime" => atime = MountFlags::RELATIME,
                _ => {}
            }
        }
        // The flags that a remount sets anew (MS_RMT_MASK, include/linux/fs.h); the rest is the filesystem's own.
        let mut superblock = MountFlags::empty();
        let mut data = String::new();
        for option in super_options.split(',') {
            match option {
                "rw" | "ro" | "" => {}
                "sync" => superblock |= MountFlags::SYNCHRONOUS,
                "mand" => superblock |= MountFlags::PERMIT_MANDATORY_FILE_LOCKING,
                "lazytime" => superblock |= MountFlags::LAZYTIME,
                "dirsync" => superblock |= MountFlags::DIRSYNC,
                other => {
                    if !data.is_empty() {
                        data.push(',');
                    }
                    data.push_str(other);
                }
            }
        }
        let data = CString::new(data).unwrap_or_default();
        Self::handed_over(fd, mount | atime, superblock, data)
    }

    /// From its words.
    pub(crate) fn handed_over(
        fd: &OwnedFd,
        mount: MountFlags,
        superblock: MountFlags,
        data: CString,
    ) -> Self {
        Self {
            // The magic link leads to this very mount, also when another one covers it; the number is the same in G, where
            // only the worker has it open.
            path: CString::new(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
                .unwrap_or_default(),
            mount,
            superblock,
            data,
        }
    }

    fn remount(&self, flags: MountFlags) -> Result<()> {
        let path = self.path.as_c_str();
        match rustix::mount::mount_remount(path, flags, self.data.as_c_str()) {
            // Some filesystems show options that they do not accept again; without any they keep what they have.
            Err(Errno::INVAL) => rustix::mount::mount_remount(path, flags, c""),
            result => result,
        }
    }

    fn stop(&self) -> Result<()> {
        self.remount(self.mount | self.superblock | MountFlags::RDONLY)
    }

    fn resume(&self) -> Result<()> {
        self.remount((self.mount | self.superblock) - MountFlags::RDONLY)?;
        if self.mount.contains(MountFlags::RDONLY) {
            // The mount itself was read-only on a writable superblock.
            let flags = self.mount | MountFlags::BIND;
            return rustix::mount::mount_remount(self.path.as_c_str(), flags, c"");
        }
        Ok(())
    }
}

impl FreezeTarget {
    /// Holds the filesystem still.
    pub(crate) fn freeze(&self) -> Result<()> {
        let Method::ReadOnly(remount) = &self.method else {
            return fifreeze(&self.fd);
        };
        remount.stop()
    }

    /// Lets it go. `EINVAL`: it was not held any more.
    pub(crate) fn thaw(&self) -> Result<()> {
        let Method::ReadOnly(remount) = &self.method else {
            return fithaw(&self.fd);
        };
        let still = rustix::fs::fstatvfs(&self.fd)
            .is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
        remount.resume()?;
        if still { Ok(()) } else { Err(Errno::INVAL) }
    }
}

/// When the watchdog fires, counted from the first call of FIFREEZE.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// This long without a byte read or taken.
    pub stall: Duration,
    /// This long in all.
    pub max_freeze: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            max_freeze: Duration::from_secs(120),
        }
    }
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$word_meta:meta])* $word:ident = $number:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum $name { $($(#[$word_meta])* $word = $number),+ }

        impl $name {
            /// The word on the board; an unknown number (there is none) reads as the last word, the one that ends things.
            pub(crate) fn of(word: &AtomicU32) -> Self {
                let number = word.load(Ordering::SeqCst);
                let mut found = None;
                $(if number == $number { found = Some(Self::$word); })+
                let [.., last] = [$(Self::$word),+];
                found.unwrap_or(last)
            }

            /// Writes the word.
            pub(crate) fn put(self, word: &AtomicU32) {
                word.store(self as u32, Ordering::SeqCst);
            }
        }
    };
}

words!(
    /// What floe wants of the guardian, and the guardian of a worker.
    Order {
        /// Nothing yet.
        None = 0,
        /// `syncfs` (of workers only).
        Sync = 1,
        Freeze = 2,
        /// Thaw, and be ready to freeze again (of the guardian only).
        Release = 3,
        /// Thaw, or never freeze, and end.
        Thaw = 4,
    }
);

words!(
    /// How far the guardian is.
    Phase {
        /// Forked.
        Starting = 0,
        /// Waiting for the order to freeze.
        Ready = 1,
        /// Syncing, freezing or thawing.
        Busy = 2,
        /// Everything is frozen.
        Frozen = 3,
        /// Nothing is frozen any more; no further freeze will come.
        Done = 4,
    }
);

words!(
    /// Whether a kill of floe's control group takes the guardian along.
    Group {
        /// Not known yet.
        Unknown = 0,
        /// It does not.
        Own = 1,
        /// It may.
        Shared = 2,
    }
);

words!(
    /// Why the guardian thawed without being asked.
    Fired {
        /// It did not.
        No = 0,
        /// No progress.
        Stall = 1,
        /// Frozen too long.
        Max = 2,
        /// floe was gone.
        Orphan = 3,
    }
);

words!(
    /// How far one filesystem is; see the module's text.
    State {
        /// Nothing was done.
        Idle = 0,
        /// In `syncfs`.
        Syncing = 1,
        /// Ready to freeze.
        Synced = 2,
        /// Inside the freezing call.
        Freezing = 3,
        /// Frozen by us.
        Frozen = 4,
        /// Inside the thawing call.
        Thawing = 5,
        /// Never frozen, and never will be.
        Skipped = 6,
        /// The freeze failed.
        Failed = 7,
        Thawed = 8,
    }
);

impl State {
    /// Whether nothing more will happen to it.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Skipped | Self::Failed | Self::Thawed)
    }
}

/// Moves a slot from one state to another; false when it was not in that state.
pub(crate) fn claim(slot: &Slot, from: State, to: State) -> bool {
    slot.state
        .compare_exchange(from as u32, to as u32, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}

/// CLOCK_MONOTONIC in microseconds.
pub(crate) fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let micros = u64::try_from(now.tv_nsec).unwrap_or(0) / 1000;
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
