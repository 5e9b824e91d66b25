//! Who holds what, and that nothing stays frozen whoever dies, stops or hangs.

mod dump_window;
mod early;
#[macro_use]
mod guard;
mod guard_apart;
mod guard_dump;
mod holders;
mod kill_campaign;
mod kill_matrix;
mod last_words;
mod mounts;
mod precopy;
mod trace;
