//! How the program begins, without std's own start.
//!
//! What std does before `main` brings handlers for stack overflows along, 20 KB together with its threads (see `sys::thread`), and
//! opens `/dev/null` in the place of a closed standard input, output or error, so that from then on nobody could tell "there is
//! no stdout" from "stdout is /dev/null": a dump would flow into nothing and look complete. [`entry!`](crate::entry) begins here.

use core::ffi::{CStr, c_char, c_int};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);
static STDERR_CLOSED: AtomicBool = AtomicBool::new(false);

/// The C library's `main`, which gives the arguments to a function and ends with the exit code that it gives.
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        // SAFETY: the name under which the C library calls a program, defined once in it.
        #[unsafe(no_mangle)]
        extern "C" fn main(
            count: ::core::ffi::c_int,
            words: *const *const ::core::ffi::c_char,
        ) -> ::core::ffi::c_int {
            // SAFETY: what the C library gives its `main`.
            let arguments = unsafe { $crate::sys::start::begin(count, words) };
            ::std::process::exit(::core::ffi::c_int::from($run(arguments)))
        }
    };
}

/// Looks at what the program was started with, has all three standard streams open and a write into a pipe that nobody reads be
/// an error, and gives the arguments, the name among them.
///
/// # Safety
/// `words` are `count` C strings, as `main` gets them.
#[must_use]
pub unsafe fn begin(count: c_int, words: *const *const c_char) -> Vec<OsString> {
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err();
    STDOUT_CLOSED.store(closed, Ordering::Relaxed);
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stderr()).is_err();
    STDERR_CLOSED.store(closed, Ordering::Relaxed);
    // A file that is opened later must not become one of the three.
    loop {
        match rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
            Ok(fd) if fd.as_raw_fd() > 2 => break,
            Ok(fd) => _ = fd.into_raw_fd(),
            Err(_) if rustix::io::fcntl_getfd(rustix::stdio::stdin()).is_err() || has_closed() => {
                super::process::exit_now(1)
            }
            Err(_) => break,
        }
    }
    super::process::ignore(super::process::SIGPIPE);
    raise_stack();
    let word = |index| {
        // SAFETY: as the caller promises.
        let word = unsafe { CStr::from_ptr(*words.add(index)) };
        OsString::from_vec(word.to_bytes().to_vec())
    };
    (0..usize::try_from(count).unwrap_or(0)).map(word).collect()
}

/// How much stack the main thread needs at the least, in bytes, and how much it is given where it may have it.
const STACK_BYTES: [u64; 2] = [256 << 10, 8 << 20];

/// The stack of the main thread grows as far as the limit says when it grows (setrlimit(2)): where that is less than is needed, the
/// end would be SIGSEGV. The soft limit is raised; where the hard one is as low, that is said.
fn raise_stack() {
    let limit = getrlimit(Resource::Stack);
    let [least, good] = STACK_BYTES;
    if limit.current.is_none_or(|bytes| bytes >= least) {
        return;
    }
    let current = Some(limit.maximum.map_or(good, |most| most.min(good)));
    let raised = Rlimit { current, ..limit };
    if current >= Some(least) && setrlimit(Resource::Stack, raised).is_ok() {
        return;
    }
    let _ = rustix::io::write(
        rustix::stdio::stderr(),
        b"floe: memory: the stack may have less than 256 KiB: raise the limit (ulimit -s); nothing was done\n",
    );
    super::process::exit_now(1)
}

fn has_closed() -> bool {
    !has_stdout() || !has_stderr()
}

/// Whether there was a standard output when the program started.
pub fn has_stdout() -> bool {
    !STDOUT_CLOSED.load(Ordering::Relaxed)
}

/// Whether there was a standard error when the program started.
pub fn has_stderr() -> bool {
    !STDERR_CLOSED.load(Ordering::Relaxed)
}
