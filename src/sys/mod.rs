//! The only place that may say `unsafe`: each file wraps one kernel or libc concept in a safe function and says why it is sound.

pub mod blkpg;
pub mod dm;
pub mod fiemap;
pub mod heap;
pub mod identity;
pub mod ioctl;
pub mod lock;
pub mod memory;
pub mod process;
pub mod resize;
pub mod shared;
pub mod spool;
pub mod start;
#[cfg(all(target_env = "musl", panic = "abort", not(debug_assertions)))]
mod unwind;
