//! The heap, with an end that can be told: when there is no memory, one line and exit code 1 instead of an abort.
//!
//! While something is frozen nothing is allocated; should it happen all the same, the guardian sees the end of this process and
//! thaws.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;

/// The system's allocator, which ends the process when it has nothing.
pub struct Heap;

#[cold]
#[inline(never)]
fn exhausted(bytes: usize) -> ! {
    let mut line = heapless::String::<192>::new();
    let _ = writeln!(
        line,
        "floe: memory: {bytes} more bytes are not to be had: a limit (ulimit -v or -d, the cgroup's), or none is left; nothing that was begun is complete"
    );
    // Nobody who does not read it may hold up the end.
    super::stderr::write_if_ready(line.as_bytes());
    super::process::exit_now(1)
}

fn checked(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        exhausted(bytes);
    }
    pointer
}

// SAFETY: every call goes to the system's allocator unchanged, and a null pointer is never given back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        checked(unsafe { System.realloc(pointer, layout, bytes) }, bytes)
    }
}
