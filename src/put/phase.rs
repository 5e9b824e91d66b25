//! How far a target is, for whoever has to say what state it is left in.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::put::target::Overwrite;

/// What helps where a run was interrupted in the middle.
const AGAIN: &str = "the same command again repairs it";

/// The same where a target `holds` something by then: one that is complete, or a file, whose beginning alone says nothing.
pub(crate) fn again(overwrite: Overwrite, holds: impl FnOnce() -> bool) -> &'static str {
    match overwrite {
        Overwrite::Refused if holds() => "the same command with --overwrite repairs it",
        _ => AGAIN,
    }
}

/// How far the target is: what a message about its state depends on.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    at: AtomicU8,
    /// The target is a file that this run made ([`crate::put::target::Made`]).
    is_made: AtomicBool,
    /// Its filesystem has no room left.
    is_full: AtomicBool,
    /// The image ended early, or could not be read.
    is_image_cut: AtomicBool,
}

impl Phase {
    pub(crate) const UNTOUCHED: u8 = 0;
    pub(crate) const WRITING: u8 = 1;
    pub(crate) const LAST: u8 = 2;
    pub(crate) const COMPLETE: u8 = 3;
    /// The last write failed, and so did taking it back.
    pub(crate) const LOST: u8 = 4;
    /// The last write is on its way: whether the target shows something is not known.
    pub(crate) const SHOWING: u8 = 5;

    pub(crate) fn set(&self, phase: u8) {
        self.at.store(phase, Ordering::SeqCst);
    }

    /// One of the constants.
    pub(crate) fn get(&self) -> u8 {
        self.at.load(Ordering::SeqCst)
    }

    /// The target is a file that goes again unless it is complete.
    pub(crate) fn note_made(&self, is_made: bool) {
        self.is_made.store(is_made, Ordering::SeqCst);
    }

    /// There was no room for a write.
    pub(crate) fn note_full(&self) {
        self.is_full.store(true, Ordering::SeqCst);
    }

    /// The image was not what it should be.
    pub(crate) fn note_cut_image(&self) {
        self.is_image_cut.store(true, Ordering::SeqCst);
    }

    /// Whether a target in this phase is neither as it was nor complete.
    pub(crate) fn is_begun(phase: u8) -> bool {
        !matches!(phase, Self::UNTOUCHED | Self::COMPLETE)
    }

    /// Whether one in this phase may hold something that looks whole, which the same command would refuse to write over.
    pub(crate) fn shows(phase: u8) -> bool {
        matches!(phase, Self::COMPLETE | Self::LOST | Self::SHOWING)
    }

    /// Whether the target is left in the middle, for want of a whole image.
    pub(crate) fn needs_image(&self) -> bool {
        Self::is_begun(self.get()) && self.is_image_cut.load(Ordering::SeqCst) && !self.goes_again()
    }

    /// Whether nothing of it will be left.
    pub(crate) fn goes_again(&self) -> bool {
        self.is_made.load(Ordering::SeqCst) && self.get() != Self::COMPLETE
    }

    /// The state the target would be left in now.
    pub(crate) fn state(&self) -> &'static str {
        match self.get() {
            Self::UNTOUCHED => "nothing was written",
            phase if Self::is_begun(phase) && self.goes_again() => {
                "the target is not usable: the file that was made for it is gone again"
            }
            Self::WRITING if self.is_full.load(Ordering::SeqCst) => {
                "the target is not usable: its beginning is zeroed; make room there, then the same command with --overwrite repairs it"
            }
            Self::WRITING => "the target is not usable: its beginning is zeroed",
            Self::LAST => {
                "the target is not usable: it is written up to its very end, and not beyond"
            }
            Self::SHOWING => {
                "the target is not usable, but may look valid: its last write was not confirmed"
            }
            Self::LOST => {
                "the target is not usable, but may look valid: its last write failed, and could not be taken back; write it anew before anything uses it"
            }
            _ => "the target is complete",
        }
    }

    /// The state an interruption leaves it in, and what helps ([`again`]).
    pub(crate) fn interrupted(&self, again: &str) -> String {
        match self.get() {
            phase if Self::is_begun(phase) && !self.goes_again() => {
                format!("{}; {again}", self.state())
            }
            _ => self.state().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_show_after_an_interruption_is_said_and_wants_overwrite() {
        let phase = Phase::default();
        let interrupted = |at| {
            phase.set(at);
            let holds = || Phase::shows(phase.get());
            phase.interrupted(again(Overwrite::Refused, holds))
        };
        let before = interrupted(Phase::LAST);
        assert!(!before.contains("may look valid"), "{before}");
        assert!(before.ends_with(AGAIN), "{before}");
        for at in [Phase::SHOWING, Phase::LOST] {
            assert!(Phase::is_begun(at));
            let then = interrupted(at);
            assert!(then.contains("may look valid"), "{then}");
            assert!(then.ends_with("with --overwrite repairs it"), "{then}");
        }
    }
}
