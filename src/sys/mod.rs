//! The only place that may say `unsafe`: each file wraps one kernel or libc concept in a safe function and says why it is sound.

pub mod blkpg;
pub mod dm;
pub mod fiemap;
pub mod heap;
pub mod identity;
pub mod ioctl;
pub mod lock;
pub mod memory;
#[cfg(all(target_env = "musl", not(test)))]
mod musl;
pub mod process;
pub mod resize;
pub mod shared;
pub mod spawn;
pub mod spool;
pub mod start;
pub mod thread;
#[cfg(all(target_env = "musl", panic = "abort", not(debug_assertions)))]
mod unwind;
