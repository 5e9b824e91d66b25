//! The integration tests: one binary that runs the real executable, as root, against real loop devices.
//!
//! `tests/run` sets `FLOE_BIN` (the executable under test) and, for other architectures, `FLOE_RUNNER` (a QEMU user
//! mode in front of it). Without `FLOE_BIN` every test says that it is skipped, and why: cargo's own build of floe is
//! not what a board gets. One concept a file, in the room it belongs to; what they share is in `support`.

#[macro_use]
mod support;

mod format;
mod freeze;
mod house;
mod verb;

use support::{boards, common, disk, maps, torture, tracefs};
