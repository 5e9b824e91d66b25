//! What goes where: SOURCE=TARGET from the command line, or one a line from a file.
//!
//! Reads the file and nothing else: what the names mean is found later. In `/etc/floe.conf` the pairs stand among other settings
//! (`store = DIR`).

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::{CONFIG, uncommented};
use crate::device::limited;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::units::to_u64;

/// Most pairs: the guardian's board has room for a filesystem each.
pub(crate) const MAX_PAIRS: usize = 16;
/// The names that a device can have besides its node; their own `=` does not split.
const TAGS: [&[u8]; 4] = [b"LABEL=", b"UUID=", b"PARTLABEL=", b"PARTUUID="];
/// Longest file that is read, in bytes.
const LIMIT_BYTES: u64 = 64 * 1024;

/// One source and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// What is copied.
    pub source: OsString,
    /// Onto what; with `--partition`, which role.
    pub target: OsString,
    /// Named in a file, so that it is standby by declaration: what it holds may go.
    pub declared: bool,
}

impl Pair {
    /// At the first `=`, that of a tag in front passed over; `None` where a half is missing or no name.
    pub(crate) fn parse(text: &OsStr) -> Option<Self> {
        let bytes = text.as_bytes();
        let tag = TAGS.iter().find(|tag| bytes.starts_with(tag));
        let skip = tag.map_or(0, |tag| tag.len());
        let middle = bytes.iter().skip(skip).position(|byte| *byte == b'=')? + skip;
        let half = |part: Option<&[u8]>| {
            let part = part?.trim_ascii();
            (!part.is_empty() && !part.contains(&0)).then(|| OsStr::from_bytes(part).to_owned())
        };
        if middle == skip {
            return None;
        }
        Some(Self {
            source: half(bytes.get(..middle))?,
            target: half(bytes.get(middle + 1..))?,
            declared: false,
        })
    }
}

/// Adds a pair of the command line.
pub(crate) fn add(pairs: &mut Vec<Pair>, text: &OsStr) -> Result<()> {
    let pair = Pair::parse(text).ok_or_else(|| {
        Error::usage(format_args!(
            "clone: '{}' is not SOURCE=TARGET",
            text.display()
        ))
    })?;
    check(pairs, &pair).map_err(|why| Error::usage(format_args!("clone: {why}")))?;
    pairs.push(pair);
    Ok(())
}

/// The pairs of a file; of [`CONFIG`] where none is named.
pub(crate) fn read(file: Option<&Path>) -> Result<Vec<Pair>> {
    let path = file.unwrap_or(Path::new(CONFIG));
    let shown = path.display();
    let text = match text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && file.is_none() => {
            return Err(Error::usage(format_args!(
                "clone: SOURCE=TARGET is missing, and there is no {CONFIG}; see floe clone --help"
            )));
        }
        Err(error) => {
            return Err(Error::std(shown, "open", &error).leaving(NOTHING_WRITTEN));
        }
    };
    let pairs = parse(&text)
        .map_err(|(line, why)| Error::usage(format_args!("{shown}: line {line}: {why}")))?;
    if pairs.is_empty() {
        return Err(Error::usage(format_args!(
            "{shown}: names no pair SOURCE=TARGET"
        )));
    }
    Ok(pairs)
}

/// The pairs of [`CONFIG`], where it is there and right: for who only shows them.
pub(crate) fn declared() -> Vec<Pair> {
    let text = text(Path::new(CONFIG)).unwrap_or_default();
    parse(&text).unwrap_or_default()
}

fn text(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut file = std::fs::File::open(path)?;
    limited(&mut file, LIMIT_BYTES + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// One pair a line; `Err` has the number of a line that is wrong.
pub(super) fn parse(text: &[u8]) -> std::result::Result<Vec<Pair>, (usize, String)> {
    let mut pairs = Vec::new();
    // What was cut off may be half a name, and that of another device.
    if to_u64(text.len()) > LIMIT_BYTES {
        return Err((1, format!("the file has more than {LIMIT_BYTES} bytes")));
    }
    for (number, line) in (1usize..).zip(text.split(|byte| *byte == b'\n')) {
        let line = uncommented(line);
        if line.is_empty() {
            continue;
        }
        let shown = OsStr::from_bytes(line);
        let mut pair = Pair::parse(shown).ok_or_else(|| {
            (
                number,
                format!("'{}' is not SOURCE=TARGET", shown.display()),
            )
        })?;
        if pair.source == "store" {
            continue;
        }
        // Whoever runs it may be anywhere: a path that begins elsewhere, or a misspelt setting.
        let source = pair.source.as_bytes();
        if !source.starts_with(b"/") && !TAGS.iter().any(|tag| source.starts_with(tag)) {
            let shown = pair.source.display();
            return Err((
                number,
                format!(
                    "'{shown}' is neither a path from / nor LABEL= and its like, nor a setting"
                ),
            ));
        }
        check(&pairs, &pair).map_err(|why| (number, why))?;
        pair.declared = true;
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Whether one more pair fits the others.
fn check(pairs: &[Pair], pair: &Pair) -> std::result::Result<(), String> {
    if pair.target == "-" {
        return Err(
            "'-' is no TARGET: floe dump SOURCE writes to stdout, and a device of that name is ./-"
                .into(),
        );
    }
    if pairs.len() == MAX_PAIRS {
        return Err(format!("more than {MAX_PAIRS} pairs"));
    }
    let twice = |name: &OsStr| Err(format!("'{}' is named twice", name.display()));
    for known in pairs {
        if known.target == pair.target {
            return twice(&pair.target);
        }
        if known.source == pair.source {
            return twice(&pair.source);
        }
    }
    Ok(())
}

/// `NAME=REST` at the first `=`; `None` where a half is missing or NAME is not text.
pub(crate) fn split_pair(value: &OsStr) -> Option<(String, OsString)> {
    let bytes = value.as_bytes();
    let middle = bytes.iter().position(|byte| *byte == b'=')?;
    let name = std::str::from_utf8(bytes.get(..middle)?).ok()?;
    let rest = bytes.get(middle + 1..).filter(|rest| !rest.is_empty())?;
    Some((name.to_owned(), OsStr::from_bytes(rest).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(text: &str) -> Option<(String, String)> {
        let pair = Pair::parse(OsStr::new(text))?;
        let text = |half: OsString| half.into_string().unwrap();
        Some((text(pair.source), text(pair.target)))
    }

    #[test]
    fn the_first_equals_sign_splits_and_that_of_a_tag_does_not() {
        let expected = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(pair("/=/dev/b"), expected("/", "/dev/b"));
        assert_eq!(
            pair("/config=PARTLABEL=config_b"),
            expected("/config", "PARTLABEL=config_b")
        );
        assert_eq!(
            pair("LABEL=root=LABEL=a=b"),
            expected("LABEL=root", "LABEL=a=b")
        );
        assert_eq!(pair("/a b = /dev/c"), expected("/a b", "/dev/c"));
        for wrong in [
            "",
            "/",
            "=",
            "=/dev/b",
            "/=",
            "LABEL=root",
            "LABEL==x",
            "/= ",
        ] {
            assert_eq!(pair(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_may_hold_other_settings_and_its_errors_name_the_line() {
        let text =
            b"# standby\n/=/dev/b  # active\nstore = /data\n\n /config = PARTLABEL=config_b\t#\r\n";
        let pairs = parse(text).unwrap();
        assert_eq!(pairs.len(), 2);
        assert!(pairs.iter().all(|pair| pair.declared));
        assert_eq!(pairs[1].target, "PARTLABEL=config_b");
        let long = format!("#{}\n/=/dev/b12\n", "x".repeat(65_530));
        for (text, line, why) in [
            ("/=/dev/b\n\nnonsense\n", 3, "is not SOURCE=TARGET"),
            ("stroe = /data\n", 1, "nor a setting"),
            ("/=/dev/b\n/=/dev/c\n", 2, "'/' is named twice"),
            ("/=/dev/b\n/c=/dev/b\n", 2, "'/dev/b' is named twice"),
            ("/=/dev/b\0\n", 1, "is not SOURCE=TARGET"),
            (&long, 1, "more than 65536 bytes"),
        ] {
            let (number, found) = parse(text.as_bytes()).unwrap_err();
            assert_eq!(number, line, "{text}");
            assert!(found.contains(why), "{found}");
        }
    }
}
