//! Onto a target that is whole or visibly empty: every check before the first write, zeros where nothing is, the superblock last,
//! and what may follow (growth, another uuid, the kernel's view of the partitions).

pub(crate) mod figures;
pub(crate) mod free;
pub(crate) mod grow;
pub(crate) mod head;
pub(crate) mod job;
pub(crate) mod newdisk;
pub(crate) mod options;
pub(crate) mod phase;
pub(crate) mod rescan;
pub(crate) mod room;
pub(crate) mod supervise;
pub(crate) mod target;
pub(crate) mod uuid;
