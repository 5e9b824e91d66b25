//! The executable: calls the library.

#[global_allocator]
static HEAP: floe::sys::heap::Heap = floe::sys::heap::Heap;

fn main() -> std::process::ExitCode {
    floe::main(std::env::args_os().collect())
}
