//! Onto a target that is whole or visibly empty: every check before the first write, zeros where nothing is, the superblock last,
//! and what may follow (growth, another uuid, the kernel's view of the partitions).

pub mod free;
pub mod grow;
pub mod head;
pub mod image;
pub mod job;
pub mod rescan;
pub mod target;
pub mod uuid;
