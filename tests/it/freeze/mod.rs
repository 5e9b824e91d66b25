//! Who holds what, and that nothing stays frozen whoever dies, stops or hangs.

mod dump_window;
mod guard;
mod guard_dump;
mod mounts;
mod trace;
