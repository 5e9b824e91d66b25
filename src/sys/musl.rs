//! Executables of musl without its printf: 11 KB that nothing but the text of an error number would use.
//!
//! std asks libc for that text by strerror_r(3p), and musl's prints into a buffer. This one copies it (`tests/it/verb/contract.rs`
//! sees the texts in floe's messages).

use core::ffi::{CStr, c_char, c_int};

/// `ERANGE`.
const TOO_SMALL: c_int = 34;

unsafe extern "C" {
    // Gives a text that stays, and never null (musl).
    fn strerror(number: c_int) -> *const c_char;
}

// SAFETY: musl's own name for it, with its meaning; the archive's copy is linked only for symbols that nobody else defines.
#[unsafe(no_mangle)]
extern "C" fn __xpg_strerror_r(number: c_int, buffer: *mut c_char, bytes: usize) -> c_int {
    // SAFETY: a C string, as declared.
    let text = unsafe { CStr::from_ptr(strerror(number)) };
    let text = text.to_bytes_with_nul();
    if text.len() > bytes {
        return TOO_SMALL;
    }
    // SAFETY: the caller has room for `bytes`, and the text is not longer.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, text.len()) };
    0
}
