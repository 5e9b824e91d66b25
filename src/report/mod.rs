//! What a person or a script reads: lines on stderr, progress, the last line of a run, the JSON report.
//!
//! Never panics on a closed or full stderr, and never writes to it while a filesystem is frozen (callers hold lines back), except
//! progress to a terminal, which is dropped rather than waited for. And no reader of stderr or of a report holds up a signal: see `give`.

mod file;
mod object;
mod progress;

use std::fmt::{self, Write as _};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::cli::Common;
use crate::error::{Ending, Error, Exit, Fault, NOTHING_WRITTEN, Result};
use crate::place::is;
use crate::threads::Lock;

use self::file::ReportFile;
pub use object::{JsonObject, hex, json_list, json_string};
pub use progress::{
    ASKING, COLUMNS, FittedLine, Manner, PHASES, Pace, Progress, Step, is_typed_unseen, window,
};

/// Writes one line `floe: LINE` to stderr, with a single write where that takes it; failures are ignored, because there is nowhere to
/// report them.
pub fn line(line: impl fmt::Display) {
    lines(&clean(&format!("floe: {line}")));
}

/// Whether nothing but errors is wanted, where no options come along.
static QUIET: AtomicBool = AtomicBool::new(false);

/// The same of what is no error, unless that is not wanted.
pub fn note(text: impl fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        line(text);
    }
}

/// Writes lines that end with the text (a table) to stderr, cleaned.
pub fn lines(text: &str) {
    let mut text = clean_lines(text);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let _ = stderr(text.as_bytes());
}

/// Writes to stderr. Everything but progress that is written to stderr goes through here.
pub fn stderr(text: &[u8]) -> std::io::Result<()> {
    if IN_DATA.load(Ordering::Relaxed) {
        return Ok(());
    }
    let to = rustix::stdio::stderr();
    give(text, to, &mut crate::sys::stderr::write)
}

/// Progress: dropped rather than waited for.
fn progress_line(text: &[u8]) {
    if !IN_DATA.load(Ordering::Relaxed) {
        crate::sys::stderr::write_if_ready(text);
    }
}

/// Gives all of a text to somebody who reads `to`, by writes that do not wait. It waits for a reader that is slow, but not when a
/// fatal signal has come, or comes: then what nobody takes is not written.
fn give(
    text: &[u8],
    to: BorrowedFd<'_>,
    write: &mut dyn FnMut(&[u8]) -> rustix::io::Result<usize>,
) -> std::io::Result<()> {
    let (mut rest, mut refused) = (text, 0u32);
    while !rest.is_empty() {
        if !crate::signals::can_write(to) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        match write(rest) {
            Ok(count) => (rest, refused) = (rest.get(count..).unwrap_or_default(), 0),
            Err(Errno::INTR) => {}
            // A terminal that has some room, and too little.
            Err(Errno::AGAIN) if refused > 20 && crate::signals::are_ending() => {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            Err(Errno::AGAIN) => {
                refused = refused.saturating_add(1);
                std::thread::sleep(Duration::from_millis(10));
            }
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
fn check_stdout() -> Result<()> {
    match crate::sys::start::has_stdout() {
        true => Ok(()),
        false => Err(Error::failed("stdout: is closed").leaving("nothing was done")),
    }
}

/// Data goes to standard output, and standard error is the same file, pipe or socket: what is said while it flows would be in the data.
static IN_DATA: AtomicBool = AtomicBool::new(false);

/// An error where data cannot go to stdout: it is closed, a terminal (`instead` says what would help), or where the report goes. `state`
/// is what is left. Where stderr leads to the same, nothing is said from here on but what ends the run.
pub fn check_data(instead: &str, state: &'static str) -> Result<()> {
    check_stdout()?;
    let stdout = rustix::stdio::stdout();
    if rustix::termios::isatty(stdout) {
        return Err(Error::refused(format_args!(
            "stdout: is a terminal; redirect it or pipe it, or give {instead}"
        ))
        .leaving(state));
    }
    let stat = rustix::fs::fstat(stdout);
    let stat = stat.map_err(|errno| Error::fault("stdout", Fault::io("stat", errno)))?;
    // What is written to /dev/null is in nobody's way.
    let is_same = |other: BorrowedFd<'_>| {
        let other = rustix::fs::fstat(other);
        !is(&stat, FileType::CharacterDevice)
            && other.is_ok_and(|other| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino))
    };
    if let Some((report, ..)) = &*REPORT.lock()
        && is_same(report.descriptor())
    {
        return Err(Error::refused(format_args!(
            "{}: the report would be in the data, which goes there; name another file with --report",
            report.name()
        ))
        .leaving(state));
    }
    IN_DATA.store(is_same(rustix::stdio::stderr()), Ordering::Relaxed);
    Ok(())
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
        Err(error) => Err(Error::std("stdout", "write", &error)),
    }
}

/// What was said of a signal.
static INTERRUPTED: Lock<Option<String>> = Lock::new(None);

/// The state where nobody knows of any.
const NOTHING_LEFT: &str = "nothing is frozen, and there is no image";

/// The one line of a run that a signal ends: what it was about, where that is not clear, and what state it leaves.
pub fn interrupted(subject: &str, state: &str) {
    IN_DATA.store(false, Ordering::Relaxed);
    let said = format!("{}interrupted; {state}", in_front(subject));
    line(&said);
    *INTERRUPTED.lock() = Some(said);
}

/// What a line is about, where that is not clear.
fn in_front(subject: &str) -> String {
    match subject {
        "" => String::new(),
        subject => format!("{subject}: "),
    }
}

/// Has a signal that comes before anything was frozen or written say so.
pub fn until_begun(subject: &str) {
    crate::signals::Signals::say(format!(
        "floe: {}interrupted before anything was frozen; {NOTHING_WRITTEN}\n",
        clean(&in_front(subject))
    ));
}

/// The line of a failure has been said.
static SAID: AtomicBool = AtomicBool::new(false);

fn say(error: &Error) {
    if !SAID.swap(true, Ordering::Relaxed) {
        IN_DATA.store(false, Ordering::Relaxed);
        line(error);
    }
}

/// Says at once how a run failed, before anything is tidied up: that may hang where the run did. A refusal waits for its state.
pub fn said(error: Error) -> Error {
    if let Ending::Message {
        exit: Exit::Failed, ..
    } = error.ending()
    {
        say(&error);
    }
    error
}

/// Says how a run ended and gives its exit code.
pub fn end(error: Error) -> u8 {
    match error.ending() {
        Ending::Message { exit, .. } => {
            say(&error);
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
            let is_said = INTERRUPTED.lock().is_some();
            if !is_said {
                interrupted("", NOTHING_LEFT);
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

impl Bytes {
    /// Whole, tenths where they are among the three digits, and the unit.
    fn rounded(&self) -> (u64, Option<u64>, &'static str) {
        const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let (mut whole, mut tenths, mut unit) = (self.0, 0, 0);
        while whole >= 1024 && unit + 1 < UNITS.len() {
            tenths = whole % 1024 * 10 / 1024;
            whole /= 1024;
            unit += 1;
        }
        let name = UNITS.get(unit).unwrap_or(&"bytes");
        (
            whole,
            Some(tenths).filter(|_| unit > 0 && whole < 100),
            name,
        )
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rounded() {
            (whole, Some(tenths), unit) => write!(f, "{whole}.{tenths} {unit}"),
            (whole, None, unit) => write!(f, "{whole} {unit}"),
        }
    }
}

/// The same to the byte, where the words round it.
pub fn exact(count: u64) -> String {
    match count {
        0..1024 => Bytes(count).to_string(),
        _ => format!("{} ({count} bytes)", Bytes(count)),
    }
}

/// A duration for people: milliseconds below ten seconds, tenths of a second above.
pub struct Elapsed(pub Duration);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms < 10_000 {
            write!(f, "{ms} ms")
        } else {
            write!(f, "{}.{} s", ms / 1000, ms % 1000 / 100)
        }
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
    QUIET.store(common.quiet, Ordering::Relaxed);
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
        Ending::Signal(_) => {
            let said = INTERRUPTED.lock().clone();
            let said = said.unwrap_or_else(|| format!("interrupted; {NOTHING_LEFT}"));
            object.str("error", &format!("{error}: {said}"))
        }
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
    use super::progress::Cleaner;
    use super::*;

    #[test]
    fn bytes_and_times_read_well() {
        let show = |n| Bytes(n).to_string();
        assert_eq!(show(17), "17 bytes");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(1 << 30), "1.0 GiB");
        assert_eq!(show(431_996_928), "411 MiB");
        assert_eq!(Elapsed(Duration::from_millis(9_999)).to_string(), "9999 ms");
        assert_eq!(Elapsed(Duration::from_millis(12_345)).to_string(), "12.3 s");
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
}
