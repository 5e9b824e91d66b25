//! The only place that may say `unsafe`: each file wraps one kernel or libc concept in a safe function and says why it is sound.

pub(crate) mod blkpg;
pub(crate) mod dm;
pub(crate) mod fiemap;
#[cfg(all(test, target_env = "musl", target_arch = "riscv64"))]
mod find_unwind;
pub mod heap;
pub(crate) mod identity;
pub mod ioctl;
pub(crate) mod lock;
pub mod memory;
#[cfg(all(target_env = "musl", not(test)))]
mod musl;
pub(crate) mod process;
pub(crate) mod resize;
pub(crate) mod shared;
pub(crate) mod spawn;
pub(crate) mod spool;
pub mod start;
pub(crate) mod stderr;
pub(crate) mod thread;
#[cfg(all(target_env = "musl", panic = "abort", not(debug_assertions)))]
mod unwind;
