//! `floe list`: the snapshots in a folder, and for `floe show` what one of them says about itself.
//!
//! Reads directories, metadata and checksum lists, never the images: that their bytes are right is what `floe verify` finds out.
//! What is broken is listed with the reason.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::{Args, Common, Item};
use crate::config;
use crate::error::Result;
use crate::report::{self, JsonObject, ReportFile};
use crate::snapshot::kept::Kept;
use crate::snapshot::machine;
use crate::snapshot::store;
use crate::units;

/// What was asked for.
pub struct Options {
    folder: Option<OsString>,
    json: bool,
    common: Common,
}

/// Reads the command line.
pub fn parse(mut args: Args) -> Result<Options> {
    let mut folder = None;
    let mut json = false;
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if folder.is_none() => folder = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option("--json") => json = true,
            Item::Option(name) => return Err(args.unknown(name)),
        }
    }
    if folder.is_none() && config::store()?.is_none() {
        return Err(args.missing("the DIR to list (or store = DIR in /etc/floe.conf)"));
    }
    Ok(Options {
        folder,
        json,
        common: args.common,
    })
}

/// Runs the verb.
pub fn run(options: Options) -> Result<()> {
    let folder = match options.folder {
        Some(folder) => PathBuf::from(folder),
        None => config::store()?.unwrap_or_default(),
    };
    let now_s = machine::now_s();
    let found = look(&folder)?;
    let mut list = String::from("[");
    for (index, kept) in found.iter().enumerate() {
        list.push_str(if index > 0 { "," } else { "" });
        list.push_str(&kept.object(now_s).finish());
    }
    list.push(']');
    if let Some(path) = &options.common.report {
        let mut object = JsonObject::new();
        object.str("path", &folder.display().to_string());
        object.raw("snapshots", &list);
        ReportFile::open(path)?.write(&object)?;
    }
    if options.json {
        return report::print(&format!("{list}\n"));
    }
    let lines: Vec<String> = found.iter().map(|kept| kept.line(now_s)).collect();
    report::print(&lines.concat())
}

/// Everything in the folder that is a snapshot or wants to be one, the oldest first.
fn look(folder: &Path) -> Result<Vec<Kept>> {
    let mut paths: Vec<(Option<u64>, String, PathBuf)> = store::files(folder)?
        .into_iter()
        .filter(|(file, _)| file.ends_with(".zip") || file.ends_with(".zip.part"))
        .map(|(file, path)| {
            let name = store::Name::parse(file.strip_suffix(".part").unwrap_or(&file));
            (name.map(|name| name.sequence), file, path)
        })
        .collect();
    units::sort(&mut paths, |a, b| a < b);
    Ok(paths
        .into_iter()
        .map(|(_, _, path)| Kept::look(path))
        .collect())
}
