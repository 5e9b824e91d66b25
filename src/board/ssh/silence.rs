//! Whether a board is still at work: what counts as a sign of life, and what is said where none came for too long.
//!
//! A byte of what is carried, or a line of floe's own, is one. What else a board writes puts the end off only as long as nobody at the
//! other end can have been heard yet: ssh and the login may ask for a password.

use std::time::Duration;

use super::{For, Session};
use crate::error::Error;
use crate::report::Elapsed;

/// Most lines that nobody asked for, since the last sign of life: who writes more floods us.
pub(super) const MAX_NOISE: u64 = 256;
/// So many times may what ssh and the login say put off the end before floe there is heard: host keys, passphrases, passwords.
const MAX_ASKED: u32 = 4;

/// Lines that are no sign of life.
#[derive(Default)]
pub(super) struct Noise {
    pub(super) lines: u64,
    /// Of these, floe's own for people: they are one as long as they are few.
    pub(super) said: u64,
}

impl Session {
    /// A byte or a line came or went that was asked for.
    pub(super) fn lives(&mut self) {
        self.silent = Duration::ZERO;
        self.idle = Duration::ZERO;
        self.noise = Noise::default();
    }

    /// Of stdout came what no floe writes.
    pub(crate) fn mishears(&mut self, bytes: usize) {
        self.misheard_bytes = self.misheard_bytes.saturating_add(bytes);
    }

    /// How long it may be without a sign of life, whatever else it says.
    fn longest(&self) -> Duration {
        match (self.heard, self.noise.lines > MAX_NOISE) {
            (true, _) => self.limit,
            // Nobody who asks for a password, nor a floe at work.
            (false, true) => self.patience.stall,
            (false, false) => self.limit.saturating_mul(MAX_ASKED),
        }
    }

    /// Why nothing more is waited for, once it has been silent for too long, or has only said what nobody asked for.
    pub(crate) fn stalled(&self) -> Option<Error> {
        let is_silent = self.silent > self.limit;
        if !is_silent && self.idle <= self.longest() {
            return None;
        }
        // Who only says now and then that he is where he was is silent: floe does so once a second.
        let may_say = MAX_NOISE.saturating_add(self.idle.as_secs().saturating_mul(2));
        let has_flooded = self.noise.lines > may_say;
        let is_noisy = has_flooded || self.noise.lines > 0 && self.silent < self.idle / 2;
        if is_noisy || self.misheard_bytes > 0 {
            return Some(self.noisy(is_noisy));
        }
        let why = match self.heard {
            true => "",
            false => {
                "; floe there was not heard at all: ssh may have waited for an answer, to a password or a host key: log in once with ssh alone, or set up a key (ssh-copy-id)"
            }
        };
        Some(Error::failed(format_args!(
            "{}: nothing came and nothing was taken for {}; given up{why} (--stall TIME gives it longer)",
            self.shown,
            Elapsed(self.limit)
        )))
    }

    /// What came instead of what was waited for.
    fn noisy(&self, has_lines: bool) -> Error {
        let wrote = match has_lines {
            true => format!("{} lines to {}", self.noise.lines, self.lines_on),
            false => format!(
                "{} bytes or more to stdout that no floe writes",
                self.misheard_bytes
            ),
        };
        let carries = match self.carries {
            "" => "stream",
            carries => carries,
        };
        let missing = match self.waits_for {
            For::Stdout => format!("no byte of the {carries}"),
            For::Stdin => format!("took no byte of the {carries}"),
            For::Stderr if self.carries.is_empty() => "no word of floe's".into(),
            For::Stderr if self.moved => "did not end".into(),
            For::Stderr => format!("no byte of the {carries}"),
        };
        let why = match self.heard {
            true => "",
            false => {
                "; floe there was not heard at all: see what the login there runs, with ssh alone"
            }
        };
        Error::failed(format_args!(
            "{}: wrote {wrote} and {missing} for {}; given up{why} (--stall TIME gives it longer)",
            self.shown,
            Elapsed(self.idle)
        ))
    }
}
