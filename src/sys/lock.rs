//! Locks on parts of a file that belong to the open file, not to a process (fcntl(2), "Open file description locks", Linux
//! 3.15): they pass to a child with the descriptor, and end with its last copy, however that ends.

use core::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

/// `struct flock` with 64-bit offsets, as musl always and Linux's `struct flock64` have it.
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    length: i64,
    pid: i32,
}

// fcntl(3p); variadic, so the argument is passed as C does.
unsafe extern "C" {
    #[cfg_attr(
        all(target_env = "gnu", target_pointer_width = "32"),
        link_name = "fcntl64"
    )]
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
}

/// `F_OFD_SETLK` (include/uapi/asm-generic/fcntl.h).
const OFD_SETLK: c_int = 37;
/// `F_WRLCK`.
const WRITE_LOCK: i16 = 1;
/// `F_UNLCK`.
const UNLOCK: i16 = 2;
/// `SEEK_SET`.
const SEEK_SET: i16 = 0;

/// Locks the byte at `place`, exclusively and without waiting; `AGAIN` when another open file has it. The file must be open for
/// writing. The byte need not exist.
pub(crate) fn byte(file: impl AsFd, place: i64) -> Result<()> {
    set(file, WRITE_LOCK, place, 1)
}

/// Gives up every lock of this open file, whoever else has it.
pub(crate) fn release(file: impl AsFd) -> Result<()> {
    set(file, UNLOCK, 0, 0)
}

fn set(file: impl AsFd, kind: i16, start: i64, length: i64) -> Result<()> {
    let request = Flock {
        kind,
        whence: SEEK_SET,
        start,
        length,
        pid: 0,
    };
    // SAFETY: the kernel reads one struct flock through the pointer, which lives for the call.
    let answer = unsafe { fcntl(file.as_fd().as_raw_fd(), OFD_SETLK, &raw const request) };
    match answer {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_had_once_and_freed_with_its_last_descriptor() {
        let path = std::env::temp_dir().join(format!("floe-lock-{}", std::process::id()));
        let open = || {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).append(true).open(&path).unwrap()
        };
        let (one, two) = (open(), open());
        let far = i64::from(u32::MAX) + 7;
        byte(&one, far).unwrap();
        byte(&one, far).unwrap();
        assert_eq!(byte(&two, far), Err(Errno::AGAIN));
        byte(&two, far + 1).unwrap();
        let copy = one.try_clone().unwrap();
        drop(one);
        assert_eq!(byte(&two, far), Err(Errno::AGAIN));
        drop(copy);
        byte(&two, far).unwrap();
        let three = open();
        release(&two).unwrap();
        byte(&three, far).unwrap();
        let _ = std::fs::remove_file(path);
    }
}
