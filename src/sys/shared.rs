//! One page of atomics that floe and its guardian share: the blackboard of `guard`'s protocol.
//!
//! It exists because a pipe can be full or closed, and its reader late; a word in memory is always there, also after its
//! writer was killed. All zeros is its valid first state. It is never unmapped, so a reference to it is `'static` and may be
//! used from any thread without counting anything.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// The most filesystems one guardian keeps.
pub(crate) const SLOTS: usize = 64;

/// One filesystem on the [`SharedPage`]. What the numbers mean is `guard`'s business.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// How far this filesystem is (`guard::State`).
    pub state: AtomicU32,
    /// What the guardian's main thread wants of this filesystem's worker (`guard::Order`).
    pub order: AtomicU32,
    /// The errno of the freeze that failed, else 0.
    pub freeze_errno: AtomicI32,
    /// The errno of the thaw that failed, else 0.
    pub thaw_errno: AtomicI32,
}

/// The page that both processes see.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SharedPage {
    /// What floe wants (`guard::Order`).
    pub order: AtomicU32,
    /// How far the guardian is (`guard::Phase`).
    pub phase: AtomicU32,
    /// Why the guardian ended the freeze without being asked (`guard::Fired`).
    pub fired: AtomicU32,
    /// The errno of what kept the guardian from starting.
    pub start_errno: AtomicI32,
    /// Whether the guardian left floe's control groups (`guard::Group`).
    pub group: AtomicU32,
    /// When the guardian was last awake: CLOCK_MONOTONIC, microseconds.
    pub beat_us: AtomicU64,
    /// When the first freeze was called; 0 before.
    pub began_us: AtomicU64,
    /// When the last thaw had returned; 0 before.
    pub ended_us: AtomicU64,
    /// Bytes floe has read from the source so far.
    pub read_bytes: AtomicU64,
    /// Bytes the sink has taken so far.
    pub taken_bytes: AtomicU64,
    /// One for each filesystem, in the order of freezing.
    pub slots: [Slot; SLOTS],
}

impl SharedPage {
    /// Maps a new page, all zeros, that children share.
    pub(crate) fn map() -> Result<&'static Self> {
        // SAFETY: a new anonymous mapping at an address the kernel chooses aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<Self>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }?;
        // SAFETY: the mapping is page-aligned, large enough, zeroed by the kernel (valid for atomics), never unmapped, and
        // both processes access it through atomics alone.
        Ok(unsafe { &*start.cast::<Self>() })
    }

    /// Maps the first bytes of a file in memory, which is to be at least as long as a board and zero when it is new.
    pub(crate) fn map_file(file: impl AsFd) -> Result<&'static Self> {
        let length = rustix::fs::fstat(&file)?.st_size;
        if !usize::try_from(length).is_ok_and(|length| length >= size_of::<Self>()) {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                size_of::<Self>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        // SAFETY: the mapping is page-aligned, lies within the file (which nobody else knows and neither process shortens), and any
        // bytes are valid atomics; never unmapped, and accessed through atomics alone.
        Ok(unsafe { &*start.cast::<Self>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_new_board_is_zero_and_fits_a_page() {
        let board = SharedPage::map().unwrap();
        assert!(size_of::<SharedPage>() <= 4096);
        assert_eq!(board.order.load(Ordering::SeqCst), 0);
        assert_eq!(board.slots[SLOTS - 1].thaw_errno.load(Ordering::SeqCst), 0);
        board.read_bytes.fetch_add(1 << 40, Ordering::SeqCst);
        assert_eq!(board.read_bytes.load(Ordering::SeqCst), 1 << 40);
    }
}
