//! `floe list`: the snapshots in a folder, here or on a board.
//!
//! Reads directories, metadata and checksum lists, never the images: that their bytes are right is what `floe verify` finds out.
//! What is not complete is listed with the reason.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::board::fleet;
use crate::board::host::Host;
use crate::board::reach::Reach;
use crate::board::receive::Arrived;
use crate::board::ssh::SessionPipes;
use crate::cli::{Args, Common, Item};
use crate::device::limited;
use crate::error::{Error, Exit, Result};
use crate::features;
use crate::report::{self, JsonObject};
use crate::snapshot::kept::{self, Kept};
use crate::snapshot::machine;

/// Longest list of a board, in bytes.
const MAX_LIST: u64 = 16 << 20;

/// What was asked for.
#[derive(Default)]
pub(super) struct Options {
    folder: Option<OsString>,
    json: bool,
    reach: Reach,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if options.folder.is_none() => options.folder = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option("--json") => options.json = true,
            Item::Option(name) if options.reach.option(&mut args, name)? => {}
            Item::Option(name) => return Err(args.unknown(name)),
        }
    }
    options.common = args.common;
    Ok(options)
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let typed = super::typed(options.folder.iter().map(OsString::as_os_str));
    super::begin(&options.common, ("path", &typed), &[])?;
    let folder = match &options.folder {
        Some(folder) => match host(folder) {
            Some(host) if features::HOST => return far(options, host),
            Some(_) => {
                let why = features::without("pull").unwrap_or_default();
                return Err(Error::refused(format_args!("{}: {why}", folder.display())));
            }
            None => PathBuf::from(folder),
        },
        None => kept::folder()
            .map_err(|error| error.leaving("another folder is named as DIR, a board as HOST"))?,
    };
    let now_s = machine::now_s();
    let found = Kept::all(&folder)?;
    let mut list = String::from("[");
    for (index, kept) in found.iter().enumerate() {
        list.push_str(if index > 0 { "," } else { "" });
        list.push_str(&kept.object(now_s).finish());
    }
    list.push(']');
    say(&folder.display().to_string(), &list)?;
    if options.json {
        return report::print(&format!("{list}\n"));
    }
    let rows: Vec<[String; 5]> = found.iter().map(|kept| kept.row(now_s)).collect();
    let head = ["NAME", "SIZE", "AGE", "STATE", "ENTRIES"];
    report::print(&report::table(head, &[1, 2], rows))
}

/// The report.
fn say(path: &str, list: &str) -> Result<()> {
    let mut object = JsonObject::new();
    object.str("path", path).raw("snapshots", list);
    report::write(&object)
}

/// A board, where what was named is no path that is there, and could not be one that is not.
fn host(name: &OsStr) -> Option<Host> {
    let is_path = Path::new(name).exists()
        || name.as_bytes().contains(&b'/') && !name.as_bytes().starts_with(b"ssh://");
    let text = name.to_str().filter(|_| !is_path)?;
    Host::parse(text).ok()
}

/// The store of a board, as floe lists it there.
fn far(options: Options, host: Host) -> Result<()> {
    let common = options.common.clone();
    let typed = options.folder.as_ref().and_then(|name| name.to_str());
    let could_be = typed
        .filter(|name| !name.contains(['@', ':']))
        .map(str::to_owned);
    let (is_json, shown) = (options.json, host.shown.clone());
    let job = move |host: &Host, board: &fleet::Board| {
        let mut words: Vec<OsString> = vec!["list".into()];
        words.extend(options.json.then(|| "--json".into()));
        let pipes = SessionPipes {
            stream: true,
            compress: Some(true),
            ..SessionPipes::default()
        };
        let mut session = options.reach.start(host, &words, pipes, board)?;
        let mut text = String::new();
        let read = limited(&mut session, MAX_LIST).read_to_string(&mut text);
        let ended = session.end()?;
        ended.check(host).map_err(|error| match ended.code {
            // It was given no DIR that could be wrong; older ones call that a bad command line.
            Some(2 | 4) => Error::refused(format_args!(
                "{error}; what is listed of a board is the store that its own /etc/floe.conf names, as in: store = /data/snapshots"
            )),
            _ => error,
        })?;
        read.map_err(|error| Error::std(&host.shown, "read", &error))?;
        Ok(Arrived {
            path: text,
            ..Arrived::default()
        })
    };
    let left = |_: fleet::Interruption<'_>| "nothing was changed".into();
    for outcome in fleet::run_leaving(vec![host], 1, &common, &left, Arc::new(job))? {
        let list = outcome
            .result
            .map_err(|error| match (error.exit(), &could_be) {
                (Some(Exit::Failed), Some(folder)) => {
                    error.leaving(&format!("nor is there a folder {folder} here"))
                }
                _ => error,
            })?;
        let list = list.path;
        // Only JSON that is whole is handed on as such.
        let is_list = is_json && crate::json::parse(list.as_bytes()).is_ok();
        say(&shown, if is_list { list.trim() } else { "null" })?;
        report::print(&list)?;
    }
    Ok(())
}
