//! What a person or a script reads: lines on stderr, progress, the last line of a run, the JSON report.
//!
//! Never panics on a closed or full stderr, and never writes to it while a filesystem is frozen (callers hold lines back), except
//! progress to a terminal, which is dropped rather than waited for. And no reader of stderr holds up a signal: see [`stderr`].

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::cli::{Asked, Common};
use crate::error::{Ending, Error, Exit, Result};
use crate::threads::Lock;

/// What is written at once: as much as a pipe takes without waiting when it takes anything (PIPE_BUF, pipe(7)).
const PIECE_BYTES: usize = 4096;

/// Writes one line `floe: LINE` to stderr with a single write; failures are ignored, because there is nowhere to report them.
pub fn line(line: impl fmt::Display) {
    lines(&clean(&format!("floe: {line}")));
}

/// Writes lines that end with the text (a table) to stderr, cleaned, with a single write.
pub fn lines(text: &str) {
    let mut text = clean_lines(text);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let _ = stderr(text.as_bytes());
}

/// Writes to stderr. It waits for a reader that is slow, but not when a fatal signal has come, or comes: then what nobody takes is
/// not written. Everything but progress that is written to stderr goes through here.
pub fn stderr(text: &[u8]) -> std::io::Result<()> {
    let to = rustix::stdio::stderr();
    let mut rest = text;
    while !rest.is_empty() {
        if !crate::signals::can_write(to) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let piece = rest.get(..PIECE_BYTES).unwrap_or(rest);
        match rustix::io::write(to, piece) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What a terminal could take for a command, or what could make a line look like another one: C0 and C1 controls (ECMA-48), the
/// separators that begin a new line, and the controls of bidirectional text (Unicode Standard Annex 9, section 2).
fn is_hostile(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn harmless(letter: char) -> char {
    if is_hostile(letter) { '?' } else { letter }
}

/// Text from outside (a board, a disk, a snapshot, the name of a file) as one line of ours may show it. Everything that is
/// printed comes through here or [`clean_lines`]; only who cuts or compares such text has to ask for it.
pub fn clean(text: &str) -> String {
    text.chars().map(harmless).collect()
}

/// The same for text that is several lines of ours, whose parts from outside went through [`clean`] where a newline could be in
/// them.
fn clean_lines(text: &str) -> String {
    let plain = |letter| {
        if letter == '\n' {
            '\n'
        } else {
            harmless(letter)
        }
    };
    text.chars().map(plain).collect()
}

/// An error where the program was started without a standard output: what is written there would be lost without a word.
pub fn check_stdout() -> Result<()> {
    match crate::sys::start::has_stdout() {
        true => Ok(()),
        false => Err(Error::failed("stdout: is closed").leaving("nothing was done")),
    }
}

/// Writes to stdout (help and listings), cleaned: a closed pipe is silent, any other failure is exit 1.
pub fn print(text: &str) -> Result<()> {
    check_stdout()?;
    let text = clean_lines(text);
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Error::silent(Exit::Failed))
        }
        Err(error) => Err(Error::failed(format_args!("stdout: write: {error}"))),
    }
}

/// Whether the line of a signal has been said.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The one line of a run that a signal ends: what it was about, where that is not clear, and what state it leaves.
pub fn interrupted(subject: &str, state: &str) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let colon = if subject.is_empty() { "" } else { ": " };
    line(format_args!("{subject}{colon}interrupted; {state}"));
}

/// Says how a run ended and gives its exit code.
pub fn end(error: Error) -> u8 {
    match error.ending() {
        Ending::Message { exit, .. } => {
            line(&error);
            exit.code()
        }
        Ending::Silent(exit) => exit.code(),
        Ending::Answer(text) if text.is_empty() => 0,
        Ending::Answer(text) => match print(text) {
            Ok(()) => 0,
            Err(error) => end(error),
        },
        Ending::Signal(number) => {
            // Who knows what is left has said so.
            if !INTERRUPTED.load(Ordering::Relaxed) {
                interrupted("", "nothing is frozen, and there is no image");
            }
            crate::sys::process::die_by(*number)
        }
    }
}

/// A table: columns as wide as what stands in them, those that `right` names to the right.
pub fn table<const N: usize>(head: [&str; N], right: &[usize], rows: Vec<[String; N]>) -> String {
    let rows: Vec<&[String]> = rows.iter().map(|row| &row[..]).collect();
    lay_out(&head, right, &rows)
}

fn lay_out(head: &[&str], right: &[usize], rows: &[&[String]]) -> String {
    let mut out = String::new();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(*row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&&head[..]).chain(rows) {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match right.contains(&at) {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A number of bytes for people: three digits and a binary unit.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let (mut whole, mut tenths, mut unit) = (self.0, 0, 0);
        while whole >= 1024 && unit + 1 < UNITS.len() {
            tenths = whole % 1024 * 10 / 1024;
            whole /= 1024;
            unit += 1;
        }
        let name = UNITS.get(unit).unwrap_or(&"bytes");
        if unit > 0 && whole < 100 {
            write!(f, "{whole}.{tenths} {name}")
        } else {
            write!(f, "{whole} {name}")
        }
    }
}

/// A duration for people: milliseconds below ten seconds, tenths of a second above.
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms < 10_000 {
            write!(f, "{ms} ms")
        } else {
            write!(f, "{}.{} s", ms / 1000, ms % 1000 / 100)
        }
    }
}

/// One JSON object, written key by key in order.
#[derive(Debug, Default)]
pub struct JsonObject {
    text: String,
}

impl JsonObject {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str) {
        self.text
            .push_str(if self.text.is_empty() { "{" } else { "," });
        json_string(&mut self.text, key);
        self.text.push(':');
    }

    /// A string.
    pub fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        json_string(&mut self.text, value);
        self
    }

    /// A number.
    pub fn u64(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "{value}");
        self
    }

    /// True or false.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "{value}");
        self
    }

    /// null.
    pub fn null(&mut self, key: &str) -> &mut Self {
        self.key(key);
        self.text.push_str("null");
        self
    }

    /// A value that is JSON already: made here, or a board's report that was parsed. Hostile letters stand in its strings only,
    /// where they may be escaped.
    pub fn raw(&mut self, key: &str, json: &str) -> &mut Self {
        self.key(key);
        for letter in json.chars() {
            match is_hostile(letter) {
                // White space between JSON's tokens.
                true if letter < ' ' => self.text.push(' '),
                true => push_escaped(&mut self.text, letter),
                false => self.text.push(letter),
            }
        }
        self
    }

    /// The object's text.
    pub fn finish(&self) -> String {
        if self.text.is_empty() {
            "{}".into()
        } else {
            format!("{}}}", self.text)
        }
    }
}

/// A letter of the Basic Multilingual Plane, as every hostile one is.
fn push_escaped(out: &mut String, letter: char) {
    let _ = write!(out, "\\u{:04x}", u32::from(letter));
}

/// Appends `value` as a JSON string (RFC 8259, section 7), with nothing in it that a terminal could mind.
pub fn json_string(out: &mut String, value: &str) {
    out.push('"');
    for letter in value.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            letter if is_hostile(letter) => push_escaped(out, letter),
            letter => out.push(letter),
        }
    }
    out.push('"');
}

/// A JSON list of strings.
pub fn json_list(values: &[String]) -> String {
    let mut out = String::from("[");
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        json_string(&mut out, value);
    }
    out.push(']');
    out
}

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Where `--report` goes: opened before anything freezes, written after the thaw.
#[derive(Debug)]
struct ReportFile {
    file: Option<File>,
    name: String,
}

impl ReportFile {
    /// Opens `path` for writing; `-` is stderr.
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = if name == "-" {
            if !crate::sys::start::has_stderr() {
                return Err(
                    Error::failed("stderr: is closed, and the report goes there")
                        .leaving("nothing was done"),
                );
            }
            None
        } else {
            refuse_slip(path, &name)?;
            let file = File::create(path).map_err(|e| Error::std(&name, "open", &e))?;
            Some(file)
        };
        Ok(Self { file, name })
    }

    /// Writes the object and a newline, and sees to it that they arrive: what could not be reported is a failed run.
    fn write(&mut self, object: &JsonObject) -> Result<()> {
        let text = format!("{}\n", object.finish());
        let result = match &mut self.file {
            Some(file) => file
                .write_all(text.as_bytes())
                .and_then(|()| match file.sync_all() {
                    // What has nothing to flush (a pipe, a terminal) says EINVAL (fsync(2)).
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
                    done => done,
                }),
            None => stderr(text.as_bytes()),
        };
        result.map_err(|e| {
            Error::failed(format_args!("{}: write of the report: {e}", self.name))
                .leaving("what was to be reported is done")
        })
    }
}

/// A report over a device, or over a file that is none, was hardly meant.
fn refuse_slip(path: &Path, name: &str) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(meta) = std::fs::metadata(path) else {
        return Ok(());
    };
    let mut first = [b'{'];
    if meta.is_file()
        && let Ok(mut file) = File::open(path)
    {
        let _ = std::io::Read::read(&mut file, &mut first);
    }
    if first == [b'{'] && !meta.file_type().is_block_device() {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{name}: is there and is no report; name another file"
    ))
    .leaving("nothing was done"))
}

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
            (_, Asked::Json) => Self::Json,
            _ if terminal => Self::Terminal,
            (_, Asked::Yes) => Self::Lines,
            (_, Asked::No) => Self::Off,
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

/// Columns of a line at most, and where nobody says how many there are (a serial console says 0).
const COLUMNS: usize = 100;
const FEW_COLUMNS: usize = 80;

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

/// How far something is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a> {
    /// What is done just now, in a word: one of those in docs/formats.md.
    pub phase: &'static str,
    /// To what, where there are several.
    pub subject: &'a str,
    /// Done in this phase, in bytes.
    pub done_bytes: u64,
    /// To be done in this phase; 0: not known.
    pub total_bytes: u64,
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

/// A line that is put together without the heap, and that fits.
#[derive(Default)]
pub struct Row {
    text: heapless::String<{ COLUMNS * 4 + 8 }>,
    width: usize,
}

impl Row {
    /// `floe: SUBJECT: PHASE PERCENT, DONE of TOTAL, LEFT, RATE, ELAPSED` in less than `columns`: of what follows the phase, whatever
    /// still fits, the most wanted first.
    pub fn new(step: &Step<'_>, pace: &Pace, columns: usize) -> Self {
        let mut row = Self::default();
        row.cut(columns, format_args!("floe: "));
        if !step.subject.is_empty() {
            // What follows needs room, too.
            row.cut(
                columns.min(columns.max(40) - 20),
                format_args!("{}", step.subject),
            );
            row.cut(columns, format_args!(": "));
        }
        row.cut(columns, format_args!("{}", step.phase));
        if let Some(percent) = pace.percent {
            row.piece(columns, format_args!(" {percent} %"));
        }
        let (done, total) = (Bytes(step.done_bytes), Bytes(step.total_bytes));
        match (step.done_bytes, step.total_bytes) {
            (0, 0) => {}
            (_, 0) => row.piece(columns, format_args!(", {done}")),
            _ => row.piece(columns, format_args!(", {done} of {total}")),
        }
        if let Some(left) = pace.left_ms {
            row.piece(columns, format_args!(", {} left", Clock(left)));
        }
        if pace.rate_bytes > 0 {
            row.piece(columns, format_args!(", {}/s", Bytes(pace.rate_bytes)));
        }
        let elapsed = millis(pace.elapsed);
        if elapsed >= 1000 {
            row.piece(columns, format_args!(", {}", Clock(elapsed)));
        }
        row
    }

    fn letter(&mut self, letter: char) {
        self.width += usize::from(self.text.push(letter).is_ok());
    }

    /// As much of it as there is room for.
    fn cut(&mut self, columns: usize, text: fmt::Arguments<'_>) {
        let mut whole = heapless::String::<{ COLUMNS * 4 }>::new();
        let _ = write!(Cleaner(&mut whole), "{text}");
        for letter in whole.chars() {
            if self.width + 1 < columns {
                self.letter(letter);
            }
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
        }
    }

    /// Whether [`Self::show`] would show something now.
    pub fn is_due(&self, frozen: bool) -> bool {
        self.manner != Manner::Off
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

    /// Shows a step if it is time to. In the frozen window only a terminal is written to, and only when it takes the bytes at
    /// once, and no heap is used.
    pub fn show(&mut self, frozen: bool, step: Step<'_>) {
        if !self.is_due(frozen) {
            return;
        }
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
            write_if_ready(pace.json(&step).as_bytes());
            return;
        }
        let is_terminal = self.manner == Manner::Terminal;
        let columns = if is_terminal { window().1 } else { COLUMNS };
        let mut row = Row::new(&step, &pace, columns);
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
        write_if_ready(row.text.as_bytes());
    }

    /// Clears the terminal's line, before another line is written.
    pub fn clear(&mut self) {
        if self.manner == Manner::Terminal && self.width > 0 {
            let mut row = Row::default();
            let columns = window().1;
            while row.width < self.width && row.width + 1 < columns {
                row.letter(' ');
            }
            let _ = row.text.push('\r');
            write_if_ready(row.text.as_bytes());
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
struct Cleaner<'a, const N: usize>(&'a mut heapless::String<N>);

impl<const N: usize> fmt::Write for Cleaner<'_, N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            self.0.push(harmless(letter)).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

/// Writes to stderr only when that cannot block (a pipe that is ready takes PIPE_BUF bytes, pipe(7)). Not cleaned: for progress
/// that moves the cursor.
pub fn write_if_ready(bytes: &[u8]) {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec::default();
    if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
        && fds
            .first()
            .is_some_and(|fd| fd.revents().contains(PollFlags::OUT))
    {
        let _ = rustix::io::write(stderr, bytes);
    }
}

/// What a run has to tell when it went well.
pub trait Told {
    /// For `--report`.
    fn json(&self) -> JsonObject;
    /// The last line on stderr.
    fn words(&self) -> String;
}

/// What every report of this run says besides.
static FACTS: Lock<Vec<(&'static str, &'static str)>> = Lock::new(Vec::new());

/// Puts a word into the report of this run, whichever verb writes it; of two for one key the later stays.
pub fn fact(key: &'static str, word: &'static str) {
    let mut facts = FACTS.lock();
    facts.retain(|(known, _)| *known != key);
    facts.push((key, word));
}

/// The report of this run and what the run is about, until it is written.
static REPORT: Lock<Option<(ReportFile, &'static str, String)>> = Lock::new(None);

/// Opens the report that was asked for. `key` and `about` say in the report of a run that failed what was to be done.
pub fn begin(common: &Common, key: &'static str, about: &str) -> Result<()> {
    if let Some(path) = &common.report {
        *REPORT.lock() = Some((ReportFile::open(path)?, key, about.to_owned()));
    }
    Ok(())
}

/// Writes the report, once; nothing where none was asked for.
pub fn write(object: &JsonObject) -> Result<()> {
    let report = REPORT.lock().take();
    report.map_or(Ok(()), |(mut file, ..)| file.write(object))
}

/// At the end of every verb: the report of what did not go well, unless one was written.
pub fn write_end(result: &Result<()>) {
    let report = REPORT.lock().take();
    let (Some((mut file, key, about)), Err(error)) = (report, result) else {
        return;
    };
    let mut object = JsonObject::new();
    if !about.is_empty() {
        object.str(key, &about);
    }
    match error.ending() {
        Ending::Answer(_) => object.bool("dry_run", true),
        _ => object.str("error", &error.to_string()),
    };
    let _ = file.write(&object);
}

/// Runs `work`, writes the report, and says the last line.
pub fn tell(common: &Common, work: &mut dyn FnMut() -> Result<Box<dyn Told>>) -> Result<()> {
    let done = work()?;
    if common.report.is_some() {
        let mut object = done.json();
        for (key, word) in FACTS.lock().iter() {
            object.str(key, word);
        }
        write(&object)?;
    }
    if !common.quiet {
        line(done.words());
    }
    Ok(())
}

/// The end of a `--dry-run`: says what would have been done.
pub fn dry(common: &Common, lines: impl IntoIterator<Item = String>) -> Error {
    for text in lines.into_iter().filter(|_| !common.quiet) {
        line(format_args!("{text}; nothing was touched (--dry-run)"));
    }
    Error::answer(String::new())
}

/// Milliseconds for a report.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_times_read_well() {
        let show = |n| Bytes(n).to_string();
        assert_eq!(show(17), "17 bytes");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(1 << 30), "1.0 GiB");
        assert_eq!(show(431_996_928), "411 MiB");
        assert_eq!(Span(Duration::from_millis(9_999)).to_string(), "9999 ms");
        assert_eq!(Span(Duration::from_millis(12_345)).to_string(), "12.3 s");
    }

    #[test]
    fn a_progress_line_fits_and_says_the_most_wanted_first() {
        let step = Step {
            phase: "copying",
            subject: "",
            done_bytes: 1_288_490_188,
            total_bytes: 3 << 30,
        };
        let (phase, all) = (Duration::from_secs(24), Duration::from_secs(3725));
        let pace = Pace::new(&step, phase, all);
        let line = |columns| Row::new(&step, &pace, columns).text().to_owned();
        let whole = "floe: copying 39 %, 1.1 GiB of 3.0 GiB, 0:36 left, 51.1 MiB/s, 1:02:05";
        assert_eq!(line(80), whole);
        assert_eq!(line(40), "floe: copying 39 %, 1.1 GiB of 3.0 GiB");
        assert_eq!(
            line(54),
            "floe: copying 39 %, 1.1 GiB of 3.0 GiB, 0:36 left"
        );
        assert_eq!(line(20), "floe: copying 39 %");
        assert_eq!(line(9), "floe: co");
        let board = Step {
            subject: "a-board-with-a-name-that-is-long\x1b[2J",
            ..step
        };
        for columns in 1..=100 {
            let row = Row::new(&board, &pace, columns);
            assert!(row.text().chars().count() < columns.max(2), "{columns}");
            assert!(!row.text().contains('\x1b'));
        }
        let none = Step {
            total_bytes: 0,
            ..step
        };
        let pace = Pace::new(&none, Duration::from_millis(10), Duration::from_millis(10));
        assert_eq!(Row::new(&none, &pace, 80).text(), "floe: copying, 1.1 GiB");
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

    #[test]
    fn nothing_a_terminal_obeys_comes_through() {
        let hostile = "a\x1b[2J\u{9b}1mb\r\n\t\u{7f}\u{202e}c\u{2066}\u{200f}\u{61c}\u{2028}é";
        assert_eq!(clean(hostile), "a?[2J?1mb?????c????é");
        assert_eq!(clean_lines("a\nb\u{85}\n"), "a\nb?\n");
        let mut object = JsonObject::new();
        object
            .str("s", hostile)
            .raw("o", "{\"k\":\n\t\"\u{202e}é\"}");
        let text = object.finish();
        assert!(!text.chars().any(is_hostile), "{text}");
        let parsed = crate::json::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.get("s").and_then(|s| s.text()), Some(hostile));
        let inner = parsed.get("o").and_then(|o| o.get("k"));
        assert_eq!(inner.and_then(|k| k.text()), Some("\u{202e}é"));
        let mut out = heapless::String::<8>::new();
        // Longer than there is room for: cut between letters.
        assert!(write!(Cleaner(&mut out), "é\x1b\u{202e}éééé").is_err());
        assert_eq!(out.as_str(), "é??éé");
    }

    #[test]
    fn json_escapes_what_must_be_escaped() {
        let mut object = JsonObject::new();
        assert_eq!(object.finish(), "{}");
        object
            .str("a\"b", "x\\y\n\u{1}é")
            .u64("n", u64::MAX)
            .bool("t", true)
            .null("z");
        assert_eq!(
            object.finish(),
            "{\"a\\\"b\":\"x\\\\y\\n\\u0001é\",\"n\":18446744073709551615,\"t\":true,\"z\":null}"
        );
    }
}
