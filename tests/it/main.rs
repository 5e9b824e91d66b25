//! The integration tests: one binary that runs the real executable, as root, against real loop devices.
//!
//! `tests/run` sets `FLOE_BIN` (the executable under test) and, for other architectures, `FLOE_RUNNER` (a QEMU user
//! mode in front of it). Without `FLOE_BIN` every test says that it is skipped, and why: cargo's own build of floe is
//! not what a board gets. One concept a file; what they share is in `common`.

#[macro_use]
mod common;

mod artifact;
#[macro_use]
mod boards;

mod basics;
mod btrfs;
mod clone;
mod create;
mod disk;
mod dump;
mod dump_window;
mod ext;
mod f2fs;
mod grow;
mod guard;
mod guard_dump;
mod identity;
mod maps;
mod medium;
mod mender;
mod mounts;
mod ptable;
mod pull;
mod push;
mod readme;
mod restore;
mod show;
mod smallfs;
mod snapshots;
mod style;
mod targets;
mod thaw;
mod toolbox;
mod verify;
mod xfs;
mod zip;
