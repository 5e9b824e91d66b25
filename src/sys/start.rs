//! What the program was started with, seen before anything of ours or of std's runs.
//!
//! Where standard input, output or error is closed, std opens `/dev/null` in its place before `main`, and from then on nobody
//! can tell "there is no stdout" from "stdout is /dev/null": a dump would flow into nothing and look complete.

use std::sync::atomic::{AtomicBool, Ordering};

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);
static STDERR_CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err();
    STDOUT_CLOSED.store(closed, Ordering::Relaxed);
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stderr()).is_err();
    STDERR_CLOSED.store(closed, Ordering::Relaxed);
}

// SAFETY: entries of .init_array are functions that the C library calls before `main`, in glibc and musl, static or not, with
// arguments that `look` does not take (allowed by the C calling convention of every target of floe). It makes two system
// calls and stores to atomics: nothing that needs std or libc to be set up.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether there was a standard output when the program started.
pub fn has_stdout() -> bool {
    !STDOUT_CLOSED.load(Ordering::Relaxed)
}

/// Whether there was a standard error when the program started.
pub fn has_stderr() -> bool {
    !STDERR_CLOSED.load(Ordering::Relaxed)
}
