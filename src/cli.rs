//! The command line: what every verb shares. Each verb parses its own options in its file under `command/` with these helpers; which
//! there are, and what follows them, [`options`] says.
//!
//! Parsing validates what was typed and touches nothing; anything that needs the system comes later. A wrong line is
//! [`Error::usage`] (exit 2).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::features;
use crate::help;
use crate::options::{self, Owner, Takes};

/// The options every verb takes.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// `-q/--quiet`: nothing on stderr but errors.
    pub quiet: bool,
    /// `-p/--progress`: progress even when stderr is no terminal.
    pub progress: ProgressWish,
    /// `--report FILE` (`-` is stderr).
    pub report: Option<PathBuf>,
    /// `-j/--jobs N`; `None`: the CPUs we may run on.
    pub jobs: Option<usize>,
}

/// Whether progress was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressWish {
    /// Not: shown where stderr is a terminal.
    #[default]
    No,
    /// For people.
    Yes,
    /// For scripts.
    Json,
}

/// One thing on the command line; see [`Args::next_item`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An option of this verb by its long name, e.g. `--output` for `-o`. Its value, if it takes one, is given by [`Args::value`].
    Option(&'static str),
    /// A positional argument.
    Value(OsString),
}

/// The arguments after the verb. Common options, `--help` and what is handed on are taken care of on the way.
#[derive(Debug)]
pub struct Args {
    parser: lexopt::Parser,
    verb: &'static str,
    last: &'static str,
    value: Option<OsString>,
    /// The first `--output`, and `--report`.
    output: Option<OsString>,
    report: Option<OsString>,
    /// The common options seen so far.
    pub common: Common,
    /// Options for the verb that runs on the board, with their values.
    pub handed_on: Vec<OsString>,
    /// Their names alone.
    pub handed_names: Vec<&'static str>,
    /// Whether `--` has passed.
    pub divided: bool,
}

impl Args {
    /// For `verb`, whose name `help` knows; an empty one has only the common options.
    pub fn new(verb: &'static str, parser: lexopt::Parser) -> Self {
        Self {
            parser,
            verb,
            last: "",
            value: None,
            output: None,
            report: None,
            common: Common::default(),
            handed_on: Vec::new(),
            handed_names: Vec::new(),
            divided: false,
        }
    }

    /// The next option or positional argument that the verb has to see.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            let wrong = |e| usage(self.verb, format_args!("{e}"));
            let next = self.parser.try_raw_args();
            self.divided |= next.is_some_and(|words| words.peek() == Some(OsStr::new("--")));
            let typed = match self.parser.next().map_err(wrong)? {
                None => return Ok(None),
                Some(lexopt::Arg::Value(value)) if value.is_empty() => {
                    return Err(usage(self.verb, format_args!("an argument is empty")));
                }
                Some(lexopt::Arg::Value(value)) => return Ok(Some(Item::Value(value))),
                Some(lexopt::Arg::Short(letter)) => format!("-{letter}"),
                Some(lexopt::Arg::Long(name)) => format!("--{name}"),
            };
            let Some(found) = options::find(self.verb, &typed) else {
                return Err(self.unknown(&typed));
            };
            self.last = found.name;
            self.value = match found.row.takes() {
                Takes::Nothing => None,
                Takes::Value => match self.parser.optional_value() {
                    Some(attached) => Some(attached),
                    None => Some(self.separate_value()?),
                },
                // A letter may stand among others: -qp.
                Takes::Perhaps if typed.starts_with("--") => self.parser.optional_value(),
                Takes::Perhaps => None,
            };
            self.refuse_second()?;
            match (found.name, found.owner) {
                ("--help", _) => return Err(Error::answer(help::verb(self.verb))),
                ("--version", _) => return Err(Error::answer(help::version())),
                (name, Owner::Here) => {
                    return match features::without(name) {
                        Some(why) => Err(Error::refused(format_args!("{name}: {why}"))),
                        None => Ok(Some(Item::Option(name))),
                    };
                }
                (name, Owner::HandedOn) => {
                    self.handed_names.push(name);
                    self.handed_on.push(name.into());
                    self.handed_on.extend(self.value.take());
                }
                (name, Owner::Common) => self.common(name)?,
            }
        }
    }

    /// The last value of an option that is handed on.
    pub fn handed_value(&self, name: &str) -> Option<&OsStr> {
        let (mut words, mut found) = (self.handed_on.iter(), None);
        for handed in &self.handed_names {
            words.next();
            let row = options::find(self.verb, handed).map(|option| option.row);
            let value = match row.map(|row| row.takes()) {
                Some(Takes::Value) => words.next(),
                _ => None,
            };
            if *handed == name {
                found = value;
            }
        }
        found.map(OsString::as_os_str)
    }

    /// Of two outputs the first would be missing without a word. (Of other options the last one counts, as everywhere, and as Mender's
    /// own client has it with all.)
    fn refuse_second(&mut self) -> Result<()> {
        let slot = match self.last {
            "--output" => &mut self.output,
            "--report" => &mut self.report,
            _ => return Ok(()),
        };
        let Some(value) = &self.value else {
            return Ok(());
        };
        let earlier = slot.get_or_insert_with(|| value.clone());
        if earlier == value || self.verb == "mender" {
            return Ok(());
        }
        let (earlier, value) = (earlier.display(), value.display());
        let both = format!("is given twice, as '{earlier}' and as '{value}'");
        Err(self.wrong_value(&both))
    }

    /// A value that is an argument of its own. An option in its place says that it was forgotten; those of ssh are options.
    fn separate_value(&mut self) -> Result<OsString> {
        let value = self
            .parser
            .value()
            .map_err(|e| usage(self.verb, format_args!("{e}")))?;
        let is_option = value.to_str().is_some_and(|text| {
            text.len() > 1 && text.starts_with('-') && options::find(self.verb, text).is_some()
        });
        if is_option && self.last != "--ssh-option" && self.verb != "mender" {
            let (last, shown) = (self.last, value.display());
            return Err(self.wrong_value(&format!(
                "its value is missing: {shown} is an option (where it is meant: {last}={shown}, or ./{shown} as a file)"
            )));
        }
        Ok(value)
    }

    fn common(&mut self, name: &str) -> Result<()> {
        match name {
            "--quiet" => self.common.quiet = true,
            "--progress" => {
                self.common.progress = match &self.value {
                    None => ProgressWish::Yes,
                    Some(_) => {
                        self.parsed(|how| (how == "json").then_some(ProgressWish::Json), "json")?
                    }
                }
            }
            "--report" => self.common.report = Some(self.path()?),
            _ => self.common.jobs = Some(self.parsed(jobs, "a number from 1 to 256")?),
        }
        Ok(())
    }

    fn any_value(&mut self) -> Result<OsString> {
        let value = self.value.take();
        value.ok_or_else(|| self.wrong_value("its value is missing"))
    }

    /// The value of the option that came last: a name of something, which is never empty.
    pub fn value(&mut self) -> Result<OsString> {
        let value = self.any_value()?;
        match value.is_empty() {
            true => Err(self.wrong_value("is empty")),
            false => Ok(value),
        }
    }

    /// The value as UTF-8 text, which may be empty.
    pub fn text(&mut self) -> Result<String> {
        self.any_value()?
            .into_string()
            .map_err(|_| self.wrong_value("not text in UTF-8"))
    }

    /// The error for a value of the option that came last.
    pub fn wrong_value(&self, what: &str) -> Error {
        usage(self.verb, format_args!("{}: {what}", self.last))
    }

    /// The value as the path of a file that is written, which is never stdout.
    pub fn file(&mut self) -> Result<PathBuf> {
        let path = self.path()?;
        match path.as_os_str() == "-" {
            true => Err(self.wrong_value("is a file, and '-' is none; one of that name is ./-")),
            false => Ok(path),
        }
    }

    /// The value as a path.
    pub fn path(&mut self) -> Result<PathBuf> {
        self.value().map(PathBuf::from)
    }

    /// The value through `parse`; `wanted` says what it should have been.
    pub fn parsed<T>(&mut self, parse: fn(&str) -> Option<T>, wanted: &str) -> Result<T> {
        let text = self.text()?;
        let found = parse(&text);
        found.ok_or_else(|| self.wrong_value(&format!("'{text}' is not {wanted}")))
    }

    /// The value as a time (`ms s m`, bare seconds).
    pub fn time(&mut self) -> Result<Duration> {
        self.parsed(time, "a time such as 500ms, 30s or 2m")
    }

    /// The error for an option the verb does not know.
    pub fn unknown(&self, name: &str) -> Error {
        let rows = options::rows()
            .filter(|row| row.owner_for(self.verb).is_some() && !row.help.is_empty());
        let meant = meant(name, &mut rows.flat_map(|row| row.names()));
        usage(self.verb, format_args!("unknown option {name}{meant}"))
    }

    /// The error for a positional argument too many.
    pub fn surplus(&self, value: &OsStr) -> Error {
        let shown = value.display();
        // A file to write is often typed without its option.
        let is_output = |path: &Path| !path.is_dir() && shown.to_string().contains('.');
        let meant = match matches!(self.verb, "dump" | "artifact") && is_output(value.as_ref()) {
            true => format!(" (did you mean -o {shown}?)"),
            false => String::new(),
        };
        usage(
            self.verb,
            format_args!("unexpected argument '{shown}'{meant}"),
        )
    }

    /// The error for a missing positional argument.
    pub fn missing(&self, what: &str) -> Error {
        usage(self.verb, format_args!("{what} is missing"))
    }

    /// The same, and where something comes through a pipe, the line that takes it.
    pub fn missing_or_piped(&self, what: &str, piped: &str) -> Error {
        let stat = rustix::fs::fstat(rustix::stdio::stdin());
        let kind = stat.map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        match kind == Ok(rustix::fs::FileType::Fifo) {
            true => self.missing(&format!(
                "{what} (to take what comes through the pipe: floe {piped})"
            )),
            false => self.missing(what),
        }
    }
}

/// A wrong line of `verb`, with where the right one is written.
pub fn usage(verb: &str, what: fmt::Arguments<'_>) -> Error {
    match verb {
        "" => Error::usage(format_args!("{what}; see floe --help")),
        _ => Error::usage(format_args!("{verb}: {what}; see floe {verb} --help")),
    }
}

/// `; did you mean X?`, where one of `words` is near to what was typed.
pub fn meant(typed: &str, words: &mut dyn Iterator<Item = &'static str>) -> String {
    match options::nearest(typed, words).filter(|_| typed.len() > 2) {
        Some(word) => format!(" (did you mean {word}?)"),
        None => String::new(),
    }
}

/// Takes the verb out of the arguments: the first that is neither an option nor an option's value.
pub fn take_verb(arguments: &mut Vec<OsString>) -> Option<OsString> {
    let mut at = 0;
    loop {
        let text = arguments.get(at)?.to_str().unwrap_or_default();
        match text {
            "--" => return None,
            option if option.starts_with('-') => {
                at += 1 + usize::from(options::is_followed(option))
            }
            _ => return Some(arguments.remove(at)),
        }
    }
}

fn jobs(text: &str) -> Option<usize> {
    text.parse().ok().filter(|n| (1..=256).contains(n))
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

    fn items(verb: &'static str, line: &str) -> Result<Vec<Item>> {
        let words = line.split_whitespace().map(OsString::from);
        let mut args = Args::new(verb, lexopt::Parser::from_args(words));
        let mut items = Vec::new();
        while let Some(item) = args.next_item()? {
            items.push(item);
        }
        items.extend(args.handed_on.into_iter().map(Item::Value));
        Ok(items)
    }

    #[test]
    fn options_come_by_their_long_names_and_what_is_the_board_s_is_kept_for_it() {
        let value = |text: &str| Item::Value(text.into());
        assert_eq!(
            items("dump", "-q / -ofile --level=2").unwrap(),
            [
                value("/"),
                Item::Option("--output"),
                Item::Option("--level")
            ]
        );
        assert_eq!(
            items("pull", "board --level 2 -o x --whole --create a=/a").unwrap(),
            ["board"]
                .map(value)
                .into_iter()
                .chain([
                    Item::Option("--output"),
                    Item::Option("--create"),
                    value("a=/a")
                ])
                .chain(["--level", "2", "--whole"].map(value))
                .collect::<Vec<_>>()
        );
        for (line, part) in [
            ("--ovewrite", "did you mean --overwrite?"),
            (
                "--zzzzzz",
                "unknown option --zzzzzz; see floe restore --help",
            ),
            ("--verify=1", "unexpected"),
            ("--disk", "missing"),
            ("-j 0", "1 to 256"),
            ("--report=", "--report: is empty"),
        ] {
            let error = items("restore", line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn options_may_stand_before_the_verb() {
        for (line, verb, rest) in [
            ("dump /", Some("dump"), "/"),
            ("-q --report r dump /", Some("dump"), "-q --report r /"),
            (
                "--overwrite -j4 restore a b",
                Some("restore"),
                "--overwrite -j4 a b",
            ),
            ("--help", None, "--help"),
            ("-- dump", None, "-- dump"),
            ("--report dump", None, "--report dump"),
        ] {
            let mut words: Vec<OsString> = line.split(' ').map(Into::into).collect();
            let found = take_verb(&mut words);
            assert_eq!(found.as_deref(), verb.map(OsStr::new), "{line}");
            assert_eq!(words.join(OsStr::new(" ")), rest, "{line}");
        }
    }

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
