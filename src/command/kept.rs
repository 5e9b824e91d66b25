//! `floe kept`: the board's end of `pull --kept`, `push --store` and `--send`. Not for people: no help names it.
//!
//! `get` gives a kept snapshot to stdout, `put` takes one from stdin into the store under its lock, and it gets its name there only
//! with the length and SHA-256 that the host announced; `sum` says the SHA-256 of stdin, where a board has no sha256sum.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use crate::board::receive::ToFile;
use crate::cli::{self, Args, Common, Item};
use crate::error::{Error, Exit, Result};
use crate::report::{self, JsonObject, Progress, Step};
use crate::snapshot::kept;
use crate::snapshot::store::{self, Store};
use crate::snapshot::sums::{Sums, copy};
use crate::units::to_u64;

/// What was asked for.
#[derive(Default)]
pub(super) struct Options {
    words: Vec<OsString>,
    host: String,
    time_s: u64,
    length_bytes: u64,
    sha256: String,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if options.words.len() < 2 => options.words.push(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name {
                "--host" => options.host = args.text()?,
                "--time" => options.time_s = args.parsed(cli::number, "a number")?,
                "--length" => options.length_bytes = args.parsed(cli::number, "a number")?,
                "--sha256" => options.sha256 = args.text()?,
                _ => return Err(args.unknown(name)),
            },
        }
    }
    options.common = args.common;
    Ok(options)
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let words = super::typed(options.words.iter().map(OsString::as_os_str));
    super::begin(&options.common, ("kept", &words), &[])?;
    let word = |index: usize| options.words.get(index).and_then(|word| word.to_str());
    let (path, sums) = match (word(0), word(1)) {
        (Some("sum"), None) => {
            let sums = copy(&mut std::io::stdin().lock(), "stdin", &mut |_| Ok(()))?;
            return report::print(&format!("{}\n", sums.sha256));
        }
        (Some("get"), Some(name)) => get(name, &options.common)?,
        (Some("put"), None) => put(&options)?,
        _ => return Err(Error::usage("kept: get NAME, put or sum")),
    };
    let mut object = JsonObject::new();
    object
        .str("path", &path.display().to_string())
        .u64("written_bytes", sums.length_bytes)
        .u64("total_ms", report::millis(start.elapsed()))
        .str("sha256", &sums.sha256);
    report::write(&object)
}

/// The name of one as `floe list` prints it, or `latest`.
fn get(name: &str, common: &Common) -> Result<(PathBuf, Sums)> {
    report::check_data("-o FILE", "nothing was sent")?;
    let (folder, name) = (kept::folder()?, OsStr::new(name));
    let path = kept::find(&folder, name)?
        .ok_or_else(|| kept::none(&folder, name).leaving("nothing was sent"))?;
    let shown = path.display().to_string();
    let mut file = store::open_kept(&path)?;
    let total_bytes = file.metadata().map_or(0, |meta| meta.len());
    let mut stdout = std::io::stdout().lock();
    let begin = Step::new("sending", 0, total_bytes);
    let sums = copy_showing(begin, common, &mut file, &shown, &mut |bytes| {
        written(stdout.write_all(bytes))
    })?;
    written(stdout.flush())?;
    Ok((path, sums))
}

/// [`copy`], with a line on how far it is.
fn copy_showing(
    mut step: Step<'_>,
    common: &Common,
    from: &mut dyn Read,
    shown: &str,
    to: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Sums> {
    let mut progress = Progress::new(common);
    copy(from, shown, &mut |bytes| {
        progress.show(false, step);
        step.done_bytes = step.done_bytes.saturating_add(to_u64(bytes.len()));
        to(bytes)
    })
}

fn written(result: std::io::Result<()>) -> Result<()> {
    result.map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Error::silent(Exit::Failed),
        _ => Error::std("stdout", "write", &e),
    })
}

fn put(options: &Options) -> Result<(PathBuf, Sums)> {
    let folder = kept::folder()?;
    let _store = Store::open(&folder)?;
    let path = store::next(&folder, &options.host, options.time_s)?;
    let mut file = ToFile::create(&path)?;
    let mut stdin = std::io::stdin().lock();
    let begin = Step::new("writing", 0, options.length_bytes);
    let common = &options.common;
    let sums = copy_showing(begin, common, &mut stdin, "stdin", &mut |bytes| {
        file.write(bytes)
    })?;
    if sums.length_bytes != options.length_bytes || sums.sha256 != options.sha256 {
        return Err(Error::corrupt(format_args!(
            "{}: {} bytes came of {}, or others than were sent",
            path.display(),
            sums.length_bytes,
            options.length_bytes
        ))
        .leaving("nothing was kept"));
    }
    file.close()?;
    Ok((path, sums))
}
