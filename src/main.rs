//! The executable: calls the library.
#![no_main]

#[global_allocator]
static HEAP: floe::sys::heap::Heap = floe::sys::heap::Heap;

floe::entry!(floe::main);
