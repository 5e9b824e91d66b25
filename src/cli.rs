//! The command line: what every verb shares. Each verb parses its own options in its file under `command/` with these helpers.
//!
//! Parsing validates what was typed and touches nothing; anything that needs the system comes later. A wrong line is
//! [`Error::usage`] (exit 2).

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::help;

/// The options every verb takes.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// `-q/--quiet`: nothing on stderr but errors.
    pub quiet: bool,
    /// `-p/--progress`: progress even when stderr is no terminal.
    pub progress: bool,
    /// `--report FILE` (`-` is stderr).
    pub report: Option<PathBuf>,
    /// `-j/--jobs N`; `None`: the CPUs we may run on.
    pub jobs: Option<usize>,
}

/// One thing on the command line; see [`Args::next_item`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An option with its dashes, e.g. `-o` or `--level`. Its value, if it takes one, is asked for with [`Args::value`].
    Option(String),
    /// A positional argument.
    Value(OsString),
}

/// The arguments after the verb. Common options and `--help` are taken care of on the way.
#[derive(Debug)]
pub struct Args {
    parser: lexopt::Parser,
    verb: &'static str,
    last: String,
    /// The common options seen so far.
    pub common: Common,
}

impl Args {
    /// For `verb`, whose name `help` knows.
    pub fn new(verb: &'static str, parser: lexopt::Parser) -> Self {
        Self {
            parser,
            verb,
            last: String::new(),
            common: Common::default(),
        }
    }

    /// The next option or positional argument that is not a common one.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            let name = match self.parser.next().map_err(|e| wrong(self.verb, e))? {
                None => return Ok(None),
                Some(lexopt::Arg::Value(value)) => return Ok(Some(Item::Value(value))),
                Some(lexopt::Arg::Short(letter)) => format!("-{letter}"),
                Some(lexopt::Arg::Long(name)) => format!("--{name}"),
            };
            self.last.clone_from(&name);
            match name.as_str() {
                "-q" | "--quiet" => self.common.quiet = true,
                "-p" | "--progress" => self.common.progress = true,
                "--report" => self.common.report = Some(self.path()?),
                "-j" | "--jobs" => {
                    let jobs = self.parsed(number, "a number from 1 to 256")?;
                    let jobs = usize::try_from(jobs).ok().filter(|n| (1..=256).contains(n));
                    self.common.jobs =
                        Some(jobs.ok_or_else(|| self.bad("a number from 1 to 256"))?);
                }
                "-h" | "--help" => return Err(Error::answer(help::verb(self.verb))),
                "--version" => return Err(Error::answer(help::version())),
                _ => return Ok(Some(Item::Option(name))),
            }
        }
    }

    /// The value of the option that came last.
    pub fn value(&mut self) -> Result<OsString> {
        self.parser.value().map_err(|e| wrong(self.verb, e))
    }

    /// The value as UTF-8 text.
    pub fn text(&mut self) -> Result<String> {
        self.value()?
            .into_string()
            .map_err(|_| self.bad("text in UTF-8"))
    }

    /// The value as a path.
    pub fn path(&mut self) -> Result<PathBuf> {
        self.value().map(PathBuf::from)
    }

    /// The value through `parse`; `wanted` says what it should have been.
    pub fn parsed<T>(&mut self, parse: fn(&str) -> Option<T>, wanted: &str) -> Result<T> {
        let text = self.text()?;
        parse(&text)
            .ok_or_else(|| Error::usage(format_args!("{}: '{text}' is not {wanted}", self.last)))
    }

    /// The value as a size in bytes (`K M G T`).
    pub fn size(&mut self) -> Result<u64> {
        self.parsed(size, "a size such as 64M (K M G T are 1024-based)")
    }

    /// The value as a time (`ms s m`, bare seconds).
    pub fn time(&mut self) -> Result<Duration> {
        self.parsed(time, "a time such as 500ms, 30s or 2m")
    }

    /// The error for an option the verb does not know.
    pub fn unknown(&self, name: &str) -> Error {
        Error::usage(format_args!(
            "{}: unknown option {name}; see floe {} --help",
            self.verb, self.verb
        ))
    }

    /// The error for a positional argument too many.
    pub fn surplus(&self, value: &OsString) -> Error {
        Error::usage(format_args!(
            "{}: unexpected argument '{}'; see floe {} --help",
            self.verb,
            value.display(),
            self.verb
        ))
    }

    /// The error for a missing positional argument.
    pub fn missing(&self, what: &str) -> Error {
        Error::usage(format_args!(
            "{}: {what} is missing; see floe {} --help",
            self.verb, self.verb
        ))
    }

    fn bad(&self, wanted: &str) -> Error {
        Error::usage(format_args!("{}: not {wanted}", self.last))
    }
}

fn wrong(verb: &str, error: lexopt::Error) -> Error {
    Error::usage(format_args!("{verb}: {error}; see floe {verb} --help"))
}

/// A plain decimal number.
pub fn number(text: &str) -> Option<u64> {
    // `parse` alone would take a leading plus sign.
    text.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    text.parse().ok()
}

/// A size in bytes: a number with an optional suffix `K M G T` (1024-based).
pub fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 30),
        b'T' | b't' => (text.get(..text.len() - 1)?, 40),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

/// A time: a number with an optional suffix `ms`, `s` or `m`; bare numbers are seconds.
pub fn time(text: &str) -> Option<Duration> {
    if let Some(digits) = text.strip_suffix("ms") {
        return number(digits).map(Duration::from_millis);
    }
    if let Some(digits) = text.strip_suffix('m') {
        return number(digits)?.checked_mul(60).map(Duration::from_secs);
    }
    number(text.strip_suffix('s').unwrap_or(text)).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_follow_the_contract() {
        assert_eq!(size("64M"), Some(64 << 20));
        assert_eq!(size("7"), Some(7));
        assert_eq!(size("3T"), Some(3 << 40));
        assert_eq!(size(""), None);
        assert_eq!(size("M"), None);
        assert_eq!(size("99999999T"), None);
        assert_eq!(size("+1"), None);
        assert_eq!(time("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(time("30"), Some(Duration::from_secs(30)));
        assert_eq!(time("2m"), Some(Duration::from_secs(120)));
        assert_eq!(time("2h"), None);
    }
}
