//! `floe delete`: snapshots of the store go.
//!
//! Only what `floe list` shows of the store goes, never another file or a link. All names are looked up and judged before the first file
//! is removed, under the store's lock: what is being made never goes, and what says of itself that it is to stay not by accident.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::cli::{Args, Common, Item};
use crate::error::{Error, Result};
use crate::report::{self, Bytes, JsonObject};
use crate::snapshot::kept::{self, Kept};
use crate::snapshot::store::{self, Store};
use crate::stream::partfile::PartFile;

/// Most names of one run.
const MAX_NAMES: usize = 4096;

/// What was asked for.
#[derive(Default)]
pub(super) struct Options {
    names: Vec<OsString>,
    force: bool,
    dry_run: bool,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if options.names.len() < MAX_NAMES => options.names.push(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option("--force") => options.force = true,
            Item::Option("--dry-run") => options.dry_run = true,
            Item::Option(name) => return Err(args.unknown(name)),
        }
    }
    if options.names.is_empty() {
        return Err(args.missing("the NAME of a snapshot"));
    }
    options.common = args.common;
    Ok(options)
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let names = super::typed(options.names.iter().map(OsString::as_os_str));
    super::begin(&options.common, ("names", &names), &[])?;
    let folder = kept::folder()?;
    // Where it is not there the answer is the one of every verb.
    store::kept(&folder)?;
    let store = match options.dry_run {
        true => {
            store::check(&folder)?;
            PartFile::check(&folder.join("name"))?;
            None
        }
        false => Some(Store::open(&folder)?),
    };
    let mut going: Vec<(PathBuf, u64)> = Vec::new();
    for name in &options.names {
        if name.as_bytes().contains(&b'/') {
            return Err(Error::refused(format_args!(
                "{}: is a path; delete takes the names that floe list shows of {}, and other files are for rm",
                name.display(),
                folder.display()
            )));
        }
        let path = kept::find(&folder, name)?.ok_or_else(|| kept::none(&folder, name))?;
        let kept = Kept::look_in_store(path.clone()).ok_or_else(|| kept::none(&folder, name))?;
        let shown = path.display();
        if kept.is_being_made() {
            return Err(Error::refused(format_args!(
                "{shown}: is being made; wait until it is done, or end the floe that makes it"
            ))
            .leaving("nothing was deleted"));
        }
        if let Some(why) = kept.stays().filter(|_| !options.force) {
            return Err(Error::refused(format_args!(
                "{shown}: {why}; --force deletes it all the same"
            ))
            .leaving("nothing was deleted"));
        }
        if !going.iter().any(|(known, _)| *known == path) {
            let length = std::fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
            going.push((path, length));
        }
    }
    let last = store.as_ref().map(Store::last).transpose()?;
    let mut freed = 0u64;
    for (path, length) in &going {
        let shown = path.display();
        if !options.dry_run {
            let state = || format!("{} deleted", Bytes(freed));
            std::fs::remove_file(path)
                .map_err(|e| Error::std(&shown, "remove", &e).leaving(&state()))?;
        }
        freed = freed.saturating_add(*length);
        if !options.common.quiet {
            let length = Bytes(*length);
            report::line(match options.dry_run {
                true => {
                    format!("{shown}: would be deleted, {length}; nothing was touched (--dry-run)")
                }
                false => format!("{shown}: deleted, {length}"),
            });
        }
    }
    if let (Some(store), Some(last)) = (&store, last) {
        store.keep_last(last)?;
    }
    let mut object = JsonObject::new();
    let (deleted, freed_bytes) = match options.dry_run {
        true => ("would_delete", "would_free_bytes"),
        false => ("deleted", "freed_bytes"),
    };
    object
        .str("path", &folder.display().to_string())
        .u64(deleted, crate::units::to_u64(going.len()))
        .u64(freed_bytes, freed)
        .bool("dry_run", options.dry_run);
    report::write(&object)
}
