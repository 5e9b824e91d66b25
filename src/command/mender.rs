//! Standing in for Mender's client: under the name `mender`, `snapshot dump` is answered, and under `mender-snapshot`, `dump`, so that an
//! unmodified `mender-artifact write rootfs-image -f ssh://…` finds what it looks for on a board that has only floe.
//!
//! The options are those of Mender's client 3 and of mender-snapshot 1, with one dash or two, as Go's flag package takes them. What they
//! mean is the same: the raw image goes to stdout (`gzip` on request), progress and messages to stderr, 0 is success and 1 anything
//! else. What holds for `dump` holds here: where Mender's client warns and goes on, floe refuses. Options that concern only the
//! client's other work (configuration, logs, certificates) are accepted and mean nothing. Nothing else of the client is here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::cli::{self, Args, Item};
use crate::command::dump::{self, Options};
use crate::error::{Error, Exit, Result};
use crate::help;

/// Where Mender's client keeps its keys and its state.
const DATA: &str = "/var/lib/mender";

/// The words before the options, if `program` (as it was called) is one of the names.
pub(super) fn words(program: &OsStr) -> Option<&'static [&'static str]> {
    match Path::new(program).file_name()?.to_str()? {
        "mender" => Some(&["snapshot", "dump"]),
        "mender-snapshot" => Some(&["dump"]),
        _ => None,
    }
}

/// Runs the command line; `words` come from [`words`].
pub(super) fn run(words: &'static [&'static str], arguments: Vec<OsString>) -> Result<()> {
    parse(words, arguments)
        .and_then(|asked| {
            check_folder(&asked.options.source, asked.data.as_deref())?;
            dump::run(asked.options)
        })
        .map_err(|error| error.with_exit(Exit::Failed))
}

#[derive(Debug)]
struct MenderOptions {
    options: Options,
    data: Option<PathBuf>,
}

fn parse(words: &[&str], arguments: Vec<OsString>) -> Result<MenderOptions> {
    let arguments = arguments.into_iter().map(two_dashes);
    let mut args = Args::new("mender", lexopt::Parser::from_args(arguments));
    let mut expected = words.iter();
    let mut options = Options::new("/".into());
    options.raw = true;
    let mut data = None;
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) => match expected.next() {
                Some(word) if value == *word => {}
                Some(_) => {
                    return Err(Error::usage(format_args!(
                        "'{}': floe stands in for '{}' only",
                        value.display(),
                        words.join(" ")
                    )));
                }
                None => return Err(args.surplus(&value)),
            },
            Item::Option(name) => match name {
                "--source" | "--fs-path" => {
                    options.source = args.value()?;
                    options.taking.wishes.fs_path = true;
                }
                "--compression" => options.raw = compression(&args.text()?)?,
                "--data" => data = Some(args.path()?),
                // What concerns only the client's other work.
                _ => {}
            },
        }
    }
    if expected.next().is_some() {
        return Err(Error::answer(help::verb("mender")));
    }
    options.common = args.common;
    if !options.common.quiet {
        options.common.progress = cli::ProgressWish::Yes;
    }
    Ok(MenderOptions { options, data })
}

/// `-source` means `--source`; `-C` and `-C=gzip` stay.
fn two_dashes(argument: OsString) -> OsString {
    match argument.as_bytes() {
        [b'-', first, second, ..] if *first != b'-' && *second != b'=' => {
            let mut longer = b"-".to_vec();
            longer.extend_from_slice(argument.as_bytes());
            OsString::from_vec(longer)
        }
        _ => argument,
    }
}

/// True for `none`.
fn compression(text: &str) -> Result<bool> {
    match text {
        "none" => Ok(true),
        "gzip" => Ok(false),
        "lzma" => Err(Error::usage(
            "lzma is not implemented for snapshots, here as in Mender's client: take none or gzip, and let mender-artifact compress with lzma",
        )),
        _ => Err(Error::usage(format_args!(
            "--compression: '{text}' is not none or gzip"
        ))),
    }
}

/// Mender's data must not lie on what is dumped, as its client demands too: the image would hold the keys that are the device's
/// identity. Without `--data` a folder that is not there is nobody's data.
fn check_folder(source: &OsStr, data: Option<&Path>) -> Result<()> {
    let folder = data.unwrap_or(Path::new(DATA));
    let there = match std::fs::metadata(folder) {
        Ok(there) => there,
        Err(error) if data.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(());
        }
        Err(error) => {
            return Err(Error::std(folder.display(), "stat", &error).leaving("nothing was frozen"));
        }
    };
    // What cannot be looked at here is the dump's to judge.
    let Ok(source) = std::fs::metadata(source) else {
        return Ok(());
    };
    let dumped = match source.file_type().is_block_device() {
        true => source.rdev(),
        false => source.dev(),
    };
    if there.dev() != dumped {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{}: Mender's data, the device's own keys among it, lies on the filesystem that is to be dumped; give it a partition of its own, with a link to it, or name with --data where it is",
        folder.display()
    )).leaving("nothing was frozen"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, line: &str) -> Result<MenderOptions> {
        let words = words(OsStr::new(name)).unwrap();
        parse(words, line.split_whitespace().map(Into::into).collect())
    }

    #[test]
    fn the_names_are_recognised_wherever_they_lie() {
        assert!(words(OsStr::new("/usr/bin/mender")).is_some());
        assert!(words(OsStr::new("mender-snapshot")).is_some());
        for other in ["floe", "/usr/mender/floe", "mender-artifact", ""] {
            assert!(words(OsStr::new(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn options_are_those_of_mender_s_client() {
        let plain = asked("mender", "snapshot dump").unwrap();
        assert!(
            plain.options.raw
                && plain.options.common.progress == cli::ProgressWish::Yes
                && plain.data.is_none()
        );
        assert_eq!(plain.options.source, "/");
        for line in [
            "-data /d -log-level debug snapshot dump --source /x -C gzip -q",
            "--data=/d snapshot dump --fs-path /x --compression=gzip --quiet",
            "--no-syslog -d /d snapshot dump -source=/x -C=gzip -quiet",
        ] {
            let found = asked("mender", line).unwrap();
            assert!(!found.options.raw && found.options.common.quiet, "{line}");
            assert_eq!(found.options.source, "/x");
            assert_eq!(found.data.as_deref(), Some(Path::new("/d")));
        }
        assert!(asked("mender-snapshot", "dump --data /d -C none").is_ok());
        for (name, line) in [
            ("mender", "dump"),
            ("mender", "show-artifact"),
            ("mender-snapshot", "snapshot dump"),
            ("mender", "snapshot dump more"),
            ("mender", "snapshot dump -C lzma"),
            ("mender", "snapshot dump -C zstd"),
            ("mender", "snapshot dump --no-such"),
        ] {
            let error = asked(name, line).unwrap_err();
            assert_eq!(error.exit(), Some(Exit::Usage), "{line}");
        }
        let answer = asked("mender", "snapshot").unwrap_err();
        assert!(matches!(answer.ending(), crate::error::Ending::Answer(_)));
    }
}
