//! What the tests share: the executable, loop devices and filesystems, boards to reach by ssh, maps against the
//! truth, and writers that torture a filesystem.

#[macro_use]
pub mod common;
#[macro_use]
pub mod boards;
pub mod disk;
pub mod maps;
mod namespace;
pub mod torture;
pub mod tracefs;
