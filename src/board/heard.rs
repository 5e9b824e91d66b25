//! What a board says while it works: how far it is, its reports, and lines for people, so many a second.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::json::{self, Value};
use crate::report::PHASES;
use crate::threads::Lock;

/// Lines for people that may come at once, and how many more in a second; those beyond are counted and left out.
const BURST: u32 = 64;
const LINES_PER_SECOND: u32 = 8;

/// Who hears what the board says, and who may call the work off.
pub(crate) struct Listener {
    /// Set to end the session.
    pub stop: Arc<AtomicBool>,
    /// Gets each line of the board's stderr that is not for the program.
    pub hear: Box<dyn FnMut(&str) + Send>,
    /// How far the board is.
    pub far: Arc<Lock<Far>>,
}

/// How far a board is, by its own `--progress=json`; for nobody's decisions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Far {
    /// Whether floe there, or what runs it, gave a sign of life. Until then ssh may be asking for a password on the terminal.
    pub heard: bool,
    /// Empty: it has not said anything.
    pub phase: &'static str,
    /// Since when.
    pub since: Option<Instant>,
    /// In this phase.
    pub done_bytes: u64,
    /// In this phase; 0: not known.
    pub total_bytes: u64,
    /// Of the whole run: of its longest phase, for the others take what is left over.
    pub whole_bytes: u64,
    /// Of that.
    pub most_done_bytes: u64,
}

impl Far {
    /// A phase as it is now.
    pub(crate) fn set(&mut self, phase: &'static str, done_bytes: u64, total_bytes: u64) {
        if self.phase != phase {
            self.since = Some(Instant::now());
        }
        self.phase = phase;
        self.done_bytes = done_bytes;
        self.total_bytes = total_bytes;
    }

    /// Takes a line of progress; whether it is any further.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let Ok(line) = json::parse(line.as_bytes()) else {
            return false;
        };
        let number = |key| line.get(key).and_then(Value::number).unwrap_or(0);
        let said = line.get("phase").and_then(Value::text);
        let phase = PHASES.iter().find(|phase| said == Some(phase));
        let before = (self.phase, self.done_bytes, self.total_bytes);
        let (done, total) = (number("done_bytes"), number("total_bytes"));
        self.set(phase.copied().unwrap_or("at work"), done, total);
        self.whole_bytes = self.whole_bytes.max(total);
        self.most_done_bytes = self.most_done_bytes.max(done).min(self.whole_bytes);
        before != (self.phase, done, total)
    }
}

/// What the board's stderr told.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Lines that are one JSON object: floe's reports.
    pub reports: Vec<String>,
    /// The last line that was no report.
    pub last: String,
    /// The last line behind the reports that is not floe's.
    pub behind: String,
}

/// Lets so many lines a second through.
pub(super) struct LineLimit {
    left: u32,
    since: Instant,
    pub(super) left_out: u64,
}

impl LineLimit {
    pub(super) fn new() -> Self {
        Self {
            left: BURST,
            since: Instant::now(),
            left_out: 0,
        }
    }

    /// Whether one may pass now.
    pub(super) fn take(&mut self) -> bool {
        let seconds = u32::try_from(self.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.since = Instant::now();
            let more = seconds.saturating_mul(LINES_PER_SECOND);
            self.left = self.left.saturating_add(more).min(BURST);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.left_out = self.left_out.saturating_add(u64::from(!may));
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_a_board_has_known_words_and_bounded_numbers() {
        let mut far = Far::default();
        assert!(far.take("{\"phase\":\"copying\",\"done_bytes\":10,\"total_bytes\":100}"));
        // Whatever floe says that it does is known.
        for phase in PHASES {
            let mut far = Far::default();
            far.take(&format!("{{\"phase\":\"{phase}\"}}"));
            assert_eq!(far.phase, phase);
        }
        // The same again is no news.
        assert!(!far.take("{\"phase\":\"copying\",\"done_bytes\":10,\"total_bytes\":100,\"x\":1}"));
        assert!(far.take("{\"phase\":\"catching up\",\"done_bytes\":3,\"total_bytes\":5}"));
        assert_eq!(
            (far.phase, far.done_bytes, far.total_bytes),
            ("catching up", 3, 5)
        );
        assert_eq!((far.most_done_bytes, far.whole_bytes), (10, 100));
        assert!(far.take("{\"phase\":\"\\u001b[2J\",\"done_bytes\":18446744073709551615}"));
        assert_eq!((far.phase, far.total_bytes), ("at work", 0));
        assert_eq!((far.most_done_bytes, far.whole_bytes), (100, 100));
        assert!(!far.take("{\"phase\":"));
    }
}
