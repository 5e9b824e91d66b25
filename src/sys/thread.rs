//! Threads: pthread_create(3p) and its family.
//!
//! std's own start of a thread brings a handler for stack overflows along, and with it a map of all threads' stacks: 20 KB with
//! what std does before `main` (see `sys::start`). Without it a thread that overflows its stack still meets the guard page that
//! libc puts below it, and the process dies by SIGSEGV.

use core::ffi::{c_int, c_void};
use std::ffi::CStr;
use std::mem::ManuallyDrop;

use rustix::io::{Errno, Result};

/// `pthread_attr_t`: 36 to 64 bytes in glibc and musl on the architectures of floe.
#[repr(C, align(16))]
struct Attributes([u8; 64]);

// Declarations of libc; std links it on every target of floe. `pthread_t` is as wide as a pointer.
unsafe extern "C" {
    fn pthread_attr_init(attributes: *mut Attributes) -> c_int;
    fn pthread_attr_setstacksize(attributes: *mut Attributes, bytes: usize) -> c_int;
    fn pthread_attr_destroy(attributes: *mut Attributes) -> c_int;
    fn pthread_create(
        thread: *mut usize,
        attributes: *const Attributes,
        start: extern "C" fn(*mut c_void) -> *mut c_void,
        argument: *mut c_void,
    ) -> c_int;
    fn pthread_join(thread: usize, result: *mut *mut c_void) -> c_int;
    fn pthread_detach(thread: usize) -> c_int;
}

/// A thread that was started. Dropping it leaves it to itself.
#[derive(Debug)]
pub(crate) struct Thread(usize);

struct Start {
    name: &'static CStr,
    work: Box<dyn FnOnce() + Send>,
}

extern "C" fn run(start: *mut c_void) -> *mut c_void {
    // SAFETY: `start` leaves its box to the one thread that it starts.
    let start = unsafe { Box::from_raw(start.cast::<Start>()) };
    let _ = rustix::thread::set_name(start.name);
    (start.work)();
    std::ptr::null_mut()
}

/// Starts a thread of this name (15 bytes of it show) with a stack of this many bytes.
pub(crate) fn start(
    name: &'static CStr,
    stack_bytes: usize,
    work: Box<dyn FnOnce() + Send>,
) -> Result<Thread> {
    let mut attributes = Attributes([0; 64]);
    let start = Box::into_raw(Box::new(Start { name, work }));
    let mut thread = 0;
    // SAFETY: room enough (a test holds it).
    unsafe { pthread_attr_init(&raw mut attributes) };
    // SAFETY: initialised above.
    let mut code = unsafe { pthread_attr_setstacksize(&raw mut attributes, stack_bytes) };
    if code == 0 {
        // SAFETY: `run` takes a box of `Start`, and nobody else has it when a thread was made.
        code = unsafe { pthread_create(&raw mut thread, &raw const attributes, run, start.cast()) };
    }
    // SAFETY: initialised above, and not used again.
    unsafe { pthread_attr_destroy(&raw mut attributes) };
    if code != 0 {
        // SAFETY: there is no thread that could have taken it.
        drop(unsafe { Box::from_raw(start) });
        return Err(Errno::from_raw_os_error(code));
    }
    Ok(Thread(thread))
}

impl Thread {
    /// Waits for its end.
    pub(crate) fn join(self) {
        let thread = ManuallyDrop::new(self);
        // SAFETY: a thread that was neither joined nor detached: both take the handle away.
        unsafe { pthread_join(thread.0, std::ptr::null_mut()) };
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pthread_detach(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_has_its_name_and_its_stack_and_can_be_waited_for() {
        let (send, receive) = channel();
        let work = move || {
            // More than the megabyte and a half that musl gives by itself would hold.
            let deep = std::hint::black_box([1_u8; 5 << 20]);
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            send.send((name, deep.len())).unwrap();
        };
        let thread = start(c"a thread's name", 6 << 20, Box::new(work)).unwrap();
        thread.join();
        let told = receive.try_recv().unwrap();
        assert_eq!(told, ("a thread's name\n".to_owned(), 5 << 20));
    }

    #[test]
    fn a_thread_that_cannot_be_is_an_error_and_its_work_is_dropped() {
        let (send, receive) = channel::<()>();
        let work = Box::new(move || drop(send));
        let started = start(c"large", usize::MAX >> 1, work);
        assert!(started.is_err());
        assert!(receive.recv().is_err());
    }

    #[test]
    fn libcs_attributes_fit_into_ours() {
        let mut all = [Attributes([0x55; 64]), Attributes([0x55; 64])];
        // SAFETY: room for twice the expected size.
        unsafe { pthread_attr_init(&raw mut all[0]) };
        assert!(all[1].0.iter().all(|byte| *byte == 0x55));
        assert!(all[0].0.iter().any(|byte| *byte != 0x55));
    }
}
