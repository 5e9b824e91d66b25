//! floe with an allocator that shows every call to strace: a write of "HEAP" to a descriptor that does not exist.
//!
//! For `tests/it/freeze/dump_window.rs` only: it proves that nothing is allocated or freed between FIFREEZE and FITHAW.

#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};

struct Traced;

fn show() {
    // SAFETY: descriptor 1000077 is not open; the kernel answers EBADF and reads nothing.
    let nowhere = unsafe { rustix::fd::BorrowedFd::borrow_raw(1_000_077) };
    let _ = rustix::io::write(nowhere, b"HEAP");
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Traced {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        show();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        show();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Traced = Traced;

floe::entry!(floe::main);
