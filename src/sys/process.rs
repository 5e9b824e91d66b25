//! Processes and signals: what rustix leaves to libc.

use core::ffi::c_int;

// Declarations of libc (POSIX signal(3p), raise(3p)); std links it on every target of floe.
unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
    fn raise(number: c_int) -> c_int;
}

/// `SIG_DFL`.
const SIG_DFL: usize = 0;

/// Dies by the signal `number`; where it cannot kill us (as PID 1), gives the exit code 128 + `number`.
pub fn die_by(number: i32) -> u8 {
    // SAFETY: restoring the default action touches no memory of ours.
    unsafe { signal(number, SIG_DFL) };
    // SAFETY: raising a signal touches no memory of ours.
    unsafe { raise(number) };
    u8::try_from(number.saturating_add(128)).unwrap_or(1)
}
