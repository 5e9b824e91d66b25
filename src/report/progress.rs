//! Progress: how far a run is, as a line that rewrites itself, as lines now and then, or as JSON.
//!
//! While something is frozen only a terminal is shown any, without the heap, and only when it takes it at once.

use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use rustix::termios::LocalModes;

use super::{Bytes, JsonObject, harmless, millis};
use crate::cli::{Common, ProgressWish};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Not at all.
    Off,
    /// A line that rewrites itself, as wide as the terminal is.
    Terminal,
    /// A line now and then.
    Lines,
    /// A JSON object a line, every second.
    Json,
}

impl Manner {
    /// As the common options ask: on by default when stderr is a terminal.
    pub fn of(common: &Common) -> Self {
        let terminal = rustix::termios::isatty(rustix::stdio::stderr());
        match (common.quiet, common.progress) {
            (true, _) => Self::Off,
            (_, ProgressWish::Json) => Self::Json,
            _ if terminal => Self::Terminal,
            (_, ProgressWish::Yes) => Self::Lines,
            (_, ProgressWish::No) => Self::Off,
        }
    }

    /// Between two lines.
    pub fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Terminal => 200,
            Self::Json => 1000,
            Self::Off | Self::Lines => 5000,
        })
    }
}

/// How long somebody else on the terminal is believed to be asking something: an ssh says nothing of when it does, and may wait for
/// a machine that is off.
pub const ASKING: Duration = Duration::from_secs(30);

/// Columns of a line at most, and where nobody says how many there are (a serial console says 0).
pub const COLUMNS: usize = 100;
const FEW_COLUMNS: usize = 80;

/// Whether the terminal does not show what is typed: somebody asks for a password.
pub fn is_typed_unseen() -> bool {
    let modes = rustix::termios::tcgetattr(rustix::stdio::stderr());
    modes.is_ok_and(|modes| !modes.local_modes.contains(LocalModes::ECHO))
}

/// Lines and columns of the terminal: asked each time, because it may have another size by now.
pub fn window() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
    let of = |count: u16, unknown| match count {
        0 => unknown,
        count => usize::from(count),
    };
    size.map_or((usize::MAX, COLUMNS), |size| {
        let columns = of(size.ws_col, FEW_COLUMNS).min(COLUMNS);
        (of(size.ws_row, usize::MAX), columns)
    })
}

/// What can be done just now; those of docs/formats.md that are not about boards. The first four are numbered in `stream/copy.rs`.
pub const PHASES: [&str; 12] = [
    "writing",
    "measuring",
    "zeroing",
    "reading back",
    "checking",
    "copying",
    "catching up",
    "frozen",
    "sending",
    "reading",
    "reading the map",
    "waiting for the reader",
];

/// How far something is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a> {
    /// What is done just now: one of [`PHASES`], or what is seen of a board.
    pub phase: &'static str,
    /// To what, where there are several.
    pub subject: &'a str,
    /// Done in this phase, in bytes.
    pub done_bytes: u64,
    /// To be done in this phase; 0: not known.
    pub total_bytes: u64,
}

impl Step<'_> {
    /// Of one thing. `total_bytes` 0: not known.
    pub fn new(phase: &'static str, done_bytes: u64, total_bytes: u64) -> Self {
        Self {
            phase,
            subject: "",
            done_bytes,
            total_bytes,
        }
    }
}

/// What follows from how long it has taken.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    elapsed: Duration,
    rate_bytes: u64,
    left_ms: Option<u64>,
    percent: Option<u64>,
}

impl Pace {
    /// Of a phase that has lasted so long, in a run that has lasted `elapsed`.
    pub fn new(step: &Step<'_>, phase: Duration, elapsed: Duration) -> Self {
        let (done, total) = (step.done_bytes, step.total_bytes);
        let ms = millis(phase);
        let per = |value: u64, by: u64| {
            let most = u128::from(value) * u128::from(by) / u128::from(ms.max(1));
            u64::try_from(most).unwrap_or(u64::MAX)
        };
        // In its first moments a pace says nothing.
        let rate_bytes = if ms < 1000 { 0 } else { per(done, 1000) };
        let left_ms = (total > 0 && rate_bytes > 0).then(|| {
            let left = u128::from(total.saturating_sub(done)) * 1000 / u128::from(rate_bytes);
            u64::try_from(left).unwrap_or(u64::MAX)
        });
        let percent = (total > 0).then(|| {
            let percent = u128::from(done.min(total)) * 100 / u128::from(total);
            u64::try_from(percent).unwrap_or(100)
        });
        Self {
            elapsed,
            rate_bytes,
            left_ms,
            percent,
        }
    }

    /// For scripts.
    pub fn json(&self, step: &Step<'_>) -> String {
        let mut object = JsonObject::new();
        object.str("phase", step.phase);
        if !step.subject.is_empty() {
            object.str("board", step.subject);
        }
        object.u64("done_bytes", step.done_bytes);
        let total = Some(step.total_bytes).filter(|total| *total > 0);
        let mut known = |key, value: Option<u64>| {
            match value {
                Some(value) => object.u64(key, value),
                None => object.null(key),
            };
        };
        known("total_bytes", total);
        known("percent", self.percent);
        known("rate_bytes", Some(self.rate_bytes));
        known("elapsed_ms", Some(millis(self.elapsed)));
        known("left_ms", self.left_ms);
        format!("{}\n", object.finish())
    }
}

/// Minutes and seconds of so many milliseconds.
struct Clock(u64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        match hours {
            0 => write!(f, "{minutes}:{:02}", seconds % 60),
            _ => write!(f, "{hours}:{minutes:02}:{:02}", seconds % 60),
        }
    }
}

/// A number of bytes in a few letters: `1.1G`.
struct Figure(u64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, tenths, unit) = Bytes(self.0).rounded();
        let letter = unit
            .chars()
            .next()
            .map_or('B', |first| first.to_ascii_uppercase());
        match tenths {
            Some(tenths) if whole < 10 => write!(f, "{whole}.{tenths}{letter}"),
            _ => write!(f, "{whole}{letter}"),
        }
    }
}

/// Letters that a line may have while it is put together: some more than any terminal shows, so that what is too long is seen to be.
const ROOM: usize = COLUMNS * 2;

/// A line that is put together without the heap, and that fits.
#[derive(Default)]
pub struct FittedLine {
    text: heapless::String<{ ROOM * 4 + 8 }>,
    width: usize,
}

impl FittedLine {
    /// `floe: SUBJECT: PHASE PERCENT, DONE of TOTAL, LEFT, RATE, ELAPSED`, or, where less than `columns` are too few for that, the
    /// same in short. Forty columns hold it for most phases, some without our name.
    pub fn new(step: &Step<'_>, pace: &Pace, columns: usize) -> Self {
        let bare = match columns {
            40..COLUMNS => "",
            _ => "floe: ",
        };
        let whole = [
            Self::long(step, pace),
            Self::short("floe: ", step, pace, ROOM),
            Self::short(bare, step, pace, ROOM),
        ];
        let fits = whole.into_iter().find(|row| row.width < columns);
        fits.unwrap_or_else(|| Self::short("floe: ", step, pace, columns))
    }

    fn long(step: &Step<'_>, pace: &Pace) -> Self {
        let mut row = Self::default();
        row.cut(ROOM, format_args!("floe: "));
        if !step.subject.is_empty() {
            row.cut(ROOM, format_args!("{}: ", step.subject));
        }
        row.cut(ROOM, format_args!("{}", step.phase));
        if let Some(percent) = pace.percent {
            row.cut(ROOM, format_args!(" {percent} %"));
        }
        let (done, total) = (Bytes(step.done_bytes), Bytes(step.total_bytes));
        match (step.done_bytes, step.total_bytes) {
            (0, 0) => {}
            (_, 0) => row.cut(ROOM, format_args!(", {done}")),
            _ => row.cut(ROOM, format_args!(", {done} of {total}")),
        }
        if let Some(left) = pace.left_ms {
            row.cut(ROOM, format_args!(", {} left", Clock(left)));
        }
        if pace.rate_bytes > 0 {
            row.cut(ROOM, format_args!(", {}/s", Bytes(pace.rate_bytes)));
        }
        let elapsed = millis(pace.elapsed);
        if elapsed >= 1000 {
            row.cut(ROOM, format_args!(", {}", Clock(elapsed)));
        }
        row
    }

    /// `NAME SUBJECT: PHASE PERCENT% DONE/TOTAL RATE -LEFT ELAPSED`, of it whatever fits.
    fn short(name: &str, step: &Step<'_>, pace: &Pace, columns: usize) -> Self {
        let mut row = Self::default();
        row.cut(columns, format_args!("{name}"));
        if !step.subject.is_empty() {
            // What follows needs room, too.
            let most = columns.min(columns.max(40) - 20);
            row.cut_shown(most, format_args!("{}", step.subject));
            row.cut(columns, format_args!(": "));
        }
        row.cut(columns, format_args!("{}", step.phase));
        if let Some(percent) = pace.percent {
            row.piece(columns, format_args!(" {percent}%"));
        }
        let (done, total) = (Figure(step.done_bytes), Figure(step.total_bytes));
        match (step.done_bytes, step.total_bytes) {
            (0, 0) => {}
            (_, 0) => row.piece(columns, format_args!(" {done}")),
            _ => row.piece(columns, format_args!(" {done}/{total}")),
        }
        if pace.rate_bytes > 0 {
            row.piece(columns, format_args!(" {}/s", Figure(pace.rate_bytes)));
        }
        if let Some(left) = pace.left_ms {
            row.piece(columns, format_args!(" -{}", Clock(left)));
        }
        let elapsed = millis(pace.elapsed);
        if elapsed >= 1000 {
            row.piece(columns, format_args!(" {}", Clock(elapsed)));
        }
        row
    }

    fn letter(&mut self, letter: char) {
        self.width += usize::from(self.text.push(letter).is_ok());
    }

    /// As much of it as there is room for.
    fn cut(&mut self, columns: usize, text: fmt::Arguments<'_>) {
        let mut whole = heapless::String::<{ ROOM * 4 }>::new();
        let _ = write!(Cleaner(&mut whole), "{text}");
        for letter in whole.chars() {
            if self.width + 1 < columns {
                self.letter(letter);
            }
        }
    }

    /// The same, with a mark where something is missing.
    fn cut_shown(&mut self, columns: usize, text: fmt::Arguments<'_>) {
        let mut whole = heapless::String::<{ ROOM * 4 }>::new();
        let fits = write!(Cleaner(&mut whole), "{text}").is_ok()
            && self.width + whole.chars().count() < columns;
        self.cut(columns.saturating_sub(usize::from(!fits)), text);
        if !fits && self.width + 1 < columns {
            self.letter('…');
        }
    }

    /// All of it or nothing.
    fn piece(&mut self, columns: usize, text: fmt::Arguments<'_>) {
        let mut piece = heapless::String::<64>::new();
        let _ = write!(Cleaner(&mut piece), "{text}");
        if self.width + piece.chars().count() < columns {
            piece.chars().for_each(|letter| self.letter(letter));
        }
    }

    /// The line without its end.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Progress on stderr.
#[derive(Debug)]
pub struct Progress {
    manner: Manner,
    start: Instant,
    phase: (&'static str, Instant),
    last: Option<Instant>,
    width: usize,
    /// Somebody else may be asking something on the terminal.
    is_held: bool,
}

impl Progress {
    /// As the common options ask.
    pub fn new(common: &Common) -> Self {
        let now = Instant::now();
        Self {
            manner: Manner::of(common),
            start: now,
            phase: ("", now),
            last: None,
            width: 0,
            is_held: false,
        }
    }

    /// A terminal is left alone as long as somebody else may be asking something there; but for longer than [`ASKING`] only where what
    /// is typed is not shown.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Whether it is.
    pub fn is_held(&self) -> bool {
        self.is_held
            && self.manner == Manner::Terminal
            && (self.start.elapsed() < ASKING || is_typed_unseen())
    }

    /// Whether [`Self::show`] would show something now.
    pub fn is_due(&self, frozen: bool) -> bool {
        self.manner != Manner::Off
            && !self.is_held()
            && (self.manner == Manner::Terminal || !frozen)
            && self
                .last
                .is_none_or(|last| last.elapsed() >= self.manner.pause())
    }

    /// What comes next is shown at once.
    pub fn turn(&mut self) {
        if self.manner != Manner::Lines {
            self.last = None;
        }
    }

    /// Shows how far an input is that is read before anything is done with it.
    pub(crate) fn checking(&mut self, done_bytes: u64, total_bytes: u64) {
        self.show(false, Step::new("checking", done_bytes, total_bytes));
    }

    /// Shows a step if it is time to. In the frozen window only a terminal is written to, and only when it takes the bytes at
    /// once, and no heap is used.
    pub fn show(&mut self, frozen: bool, step: Step<'_>) {
        if !self.is_due(frozen) {
            return;
        }
        debug_assert!(PHASES.contains(&step.phase), "{}", step.phase);
        let now = Instant::now();
        self.last = Some(now);
        let most = match step.total_bytes {
            0 => u64::MAX,
            total => total,
        };
        let step = Step {
            done_bytes: step.done_bytes.min(most),
            ..step
        };
        if self.phase.0 != step.phase {
            self.phase = (step.phase, now);
        }
        let pace = Pace::new(&step, self.phase.1.elapsed(), self.start.elapsed());
        if self.manner == Manner::Json {
            super::progress_line(pace.json(&step).as_bytes());
            return;
        }
        let is_terminal = self.manner == Manner::Terminal;
        let columns = if is_terminal { window().1 } else { COLUMNS };
        let mut row = FittedLine::new(&step, &pace, columns);
        match is_terminal {
            true => {
                let width = row.width;
                while row.width < self.width && row.width + 1 < columns {
                    row.letter(' ');
                }
                self.width = width;
                let _ = row.text.push('\r');
            }
            false => {
                let _ = row.text.push('\n');
            }
        }
        super::progress_line(row.text.as_bytes());
    }

    /// Clears the terminal's line, before another line is written.
    pub fn clear(&mut self) {
        if self.manner == Manner::Terminal && self.width > 0 {
            let mut row = FittedLine::default();
            let columns = window().1;
            while row.width < self.width && row.width + 1 < columns {
                row.letter(' ');
            }
            let _ = row.text.push('\r');
            super::progress_line(row.text.as_bytes());
            self.width = 0;
        }
    }
}

impl Drop for Progress {
    /// So that whatever is said next begins a line.
    fn drop(&mut self) {
        self.clear();
    }
}

/// Cleans what is written on its way, without the heap.
pub(super) struct Cleaner<'a, const N: usize>(pub(super) &'a mut heapless::String<N>);

impl<const N: usize> fmt::Write for Cleaner<'_, N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            self.0.push(harmless(letter)).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_fits_and_says_the_most_wanted_first() {
        let step = Step::new("copying", 1_288_490_188, 3 << 30);
        let (phase, all) = (Duration::from_secs(24), Duration::from_secs(3725));
        let pace = Pace::new(&step, phase, all);
        let line = |columns| FittedLine::new(&step, &pace, columns).text().to_owned();
        let whole = "floe: copying 39 %, 1.1 GiB of 3.0 GiB, 0:36 left, 51.1 MiB/s, 1:02:05";
        assert_eq!(line(80), whole);
        let short = "copying 39% 1.1G/3.0G 51M/s -0:36 1:02:05";
        assert_eq!(line(54), format!("floe: {short}"));
        assert_eq!(line(42), short);
        assert_eq!(line(40), "floe: copying 39% 1.1G/3.0G 51M/s -0:36");
        assert_eq!(line(20), "floe: copying 39%");
        assert_eq!(line(9), "floe: co");
        let soon = Pace::new(&step, phase, phase);
        let row = FittedLine::new(&step, &soon, 40);
        assert_eq!(row.text(), "copying 39% 1.1G/3.0G 51M/s -0:36 0:24");
        let board = Step {
            subject: "a-board-with-a-name-that-is-long\x1b[2J",
            ..step
        };
        for columns in 1..=100 {
            let row = FittedLine::new(&board, &pace, columns);
            assert!(row.text().chars().count() < columns.max(2), "{columns}");
            assert!(!row.text().contains('\x1b'));
        }
        // A name that is cut is seen to be.
        let named = |subject, columns| {
            let step = Step { subject, ..step };
            FittedLine::new(&step, &pace, columns).text().to_owned()
        };
        let cut = named("127.0.0.1:2722", 40);
        assert!(cut.starts_with("floe: 127.0.0.1:27…: copying"), "{cut}");
        let whole = named("127.0.0.1:272", 40);
        assert!(whole.starts_with("floe: 127.0.0.1:272: copying"), "{whole}");
        let none = Step {
            total_bytes: 0,
            ..step
        };
        let pace = Pace::new(&none, Duration::from_millis(10), Duration::from_millis(10));
        assert_eq!(
            FittedLine::new(&none, &pace, 80).text(),
            "floe: copying, 1.1 GiB"
        );
        assert_eq!(
            pace.json(&none),
            "{\"phase\":\"copying\",\"done_bytes\":1288490188,\"total_bytes\":null,\"percent\":null,\"rate_bytes\":0,\"elapsed_ms\":10,\"left_ms\":null}\n"
        );
        // Nothing overflows, whatever a disk says of its size.
        let wild = Step {
            done_bytes: u64::MAX,
            total_bytes: 1,
            ..step
        };
        assert_eq!(Pace::new(&wild, phase, all).percent, Some(100));
    }
}
