//! How far a target is, for whoever has to say what state it is left in.

use std::sync::atomic::{AtomicU8, Ordering};

/// What helps where a run was interrupted in the middle.
pub(crate) const AGAIN: &str = "the same command again repairs it";

/// How far the target is: what a message about its state depends on.
#[derive(Debug, Default)]
pub(crate) struct Phase(AtomicU8);

impl Phase {
    pub(crate) const UNTOUCHED: u8 = 0;
    pub(crate) const WRITING: u8 = 1;
    pub(crate) const LAST: u8 = 2;
    pub(crate) const COMPLETE: u8 = 3;

    pub(crate) fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::SeqCst);
    }

    /// One of the constants.
    pub(crate) fn get(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }

    /// The state the target would be left in now.
    pub(crate) fn state(&self) -> &'static str {
        match self.get() {
            Self::UNTOUCHED => "nothing was written",
            Self::WRITING => "the target is not usable: its beginning is zeroed",
            Self::LAST => {
                "the target is not usable: it is written up to its very end, and not beyond"
            }
            _ => "the target is complete",
        }
    }

    /// The state an interruption leaves it in, and what helps.
    pub(crate) fn interrupted(&self) -> String {
        match self.get() {
            Self::WRITING | Self::LAST => format!("{}; {AGAIN}", self.state()),
            _ => self.state().to_owned(),
        }
    }
}
