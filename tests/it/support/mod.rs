//! What the tests share: the executable, loop devices and filesystems, boards to reach by ssh, and maps against the truth.

#[macro_use]
pub mod common;
#[macro_use]
pub mod boards;
pub mod disk;
pub mod maps;
mod namespace;
