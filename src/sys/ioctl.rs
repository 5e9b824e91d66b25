//! The ioctls floe uses, each as a typed function over a borrowed descriptor.
//!
//! Opcodes are built the way the kernel's `_IOR`/`_IOWR` macros build them, so that they are right on every architecture; the
//! tests pin the numbers. Source: include/uapi/linux/fs.h.

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode};

/// `FIFREEZE`, `_IOWR('X', 119, int)`.
pub const FIFREEZE: Opcode = opcode::read_write::<core::ffi::c_int>(b'X', 119);
/// `FITHAW`, `_IOWR('X', 120, int)`.
pub const FITHAW: Opcode = opcode::read_write::<core::ffi::c_int>(b'X', 120);
/// `BLKRRPART`, `_IO(0x12, 95)`.
pub const BLKRRPART: Opcode = opcode::none(0x12, 95);
/// `BLKFLSBUF`, `_IO(0x12, 97)`.
pub const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
/// `BLKSSZGET`, `_IO(0x12, 104)`.
pub const BLKSSZGET: Opcode = opcode::none(0x12, 104);
/// `BLKGETSIZE64`, `_IOR(0x12, 114, size_t)`: the size of a `size_t` is part of the number, but a `u64` is written.
pub const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
/// `BLKZEROOUT`, `_IO(0x12, 127)`.
pub const BLKZEROOUT: Opcode = opcode::none(0x12, 127);

macro_rules! no_argument {
    ($(#[$meta:meta])* $name:ident, $code:ident) => {
        $(#[$meta])*
        pub fn $name(fd: impl AsFd) -> Result<()> {
            // SAFETY: the kernel ignores the argument of this opcode (fs/ioctl.c, block/ioctl.c).
            let request = unsafe { NoArg::<$code>::new() };
            // SAFETY: no memory is passed.
            unsafe { ioctl(fd, request) }
        }
    };
}
no_argument!(
    /// Freezes the filesystem that holds `fd`: returns when no write is in flight and the image on disk is consistent.
    fifreeze, FIFREEZE
);
no_argument!(
    /// Thaws the filesystem that holds `fd`; `EINVAL` when it is not (fully) frozen.
    fithaw, FITHAW
);
no_argument!(
    /// Writes back and drops the page cache of a block device.
    blkflsbuf, BLKFLSBUF
);
no_argument!(
    /// Has the kernel read the partition table anew.
    blkrrpart, BLKRRPART
);

macro_rules! int_getter {
    ($(#[$meta:meta])* $name:ident, $code:ident, $ty:ty) => {
        $(#[$meta])*
        pub fn $name(fd: impl AsFd) -> Result<$ty> {
            // SAFETY: this opcode writes exactly one value of this type (block/ioctl.c).
            let request = unsafe { Getter::<$code, $ty>::new() };
            // SAFETY: the getter owns the memory that is written.
            unsafe { ioctl(fd, request) }
        }
    };
}
int_getter!(
    /// Logical sector size in bytes.
    blksszget, BLKSSZGET, i32
);
int_getter!(
    /// Size of a block device in bytes.
    blkgetsize64, BLKGETSIZE64, u64
);

macro_rules! range_setter {
    ($(#[$meta:meta])* $name:ident, $code:ident) => {
        $(#[$meta])*
        pub fn $name(fd: impl AsFd, offset: u64, length_bytes: u64) -> Result<()> {
            // SAFETY: this opcode reads two u64 (start and length in bytes; block/ioctl.c).
            let request = unsafe { Setter::<$code, [u64; 2]>::new([offset, length_bytes]) };
            // SAFETY: the setter owns the memory that is read.
            unsafe { ioctl(fd, request) }
        }
    };
}
range_setter!(
    /// Zeroes a range of a block device; reads of it give zeros afterwards.
    blkzeroout, BLKZEROOUT
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_kernel_headers_on_this_architecture() {
        // The same on x86_64, aarch64 and armv7 (asm-generic/ioctl.h).
        assert_eq!(FIFREEZE, 0xc004_5877);
        assert_eq!(FITHAW, 0xc004_5878);
        assert_eq!(BLKRRPART, 0x125f);
        assert_eq!(BLKFLSBUF, 0x1261);
        assert_eq!(BLKSSZGET, 0x1268);
        assert_eq!(BLKZEROOUT, 0x127f);
        #[cfg(target_pointer_width = "64")]
        assert_eq!(BLKGETSIZE64, 0x8008_1272);
        #[cfg(target_pointer_width = "32")]
        assert_eq!(BLKGETSIZE64, 0x8004_1272);
    }
}
