//! `floe list`: the snapshots in a folder, and for `floe show` what one of them says about itself.
//!
//! Reads directories, metadata and checksum lists, never the images: that their bytes are right is what `floe verify` finds out.
//! What is broken is listed with the reason.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::bundle::{self, Catalog};
use super::{host, store};
use crate::cli::{Args, Common, Item};
use crate::error::{Error, Result};
use crate::report::{self, Bytes, JsonObject, ReportFile, json_string};
use crate::snapshot::{Checksums, Snapshot, image_path};
use crate::units;
use crate::utc::Utc;

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
            Item::Option(name) if name == "--json" => json = true,
            Item::Option(name) => return Err(args.unknown(&name)),
        }
    }
    if folder.is_none() && host::store()?.is_none() {
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
        None => host::store()?.unwrap_or_default(),
    };
    let now_s = host::now_s();
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

/// A snapshot in a file, whole or not.
pub struct Kept {
    path: PathBuf,
    size_bytes: u64,
    snapshot: Option<Snapshot>,
    checksums: Option<Checksums>,
    /// Why it is not complete.
    reason: Option<String>,
}

impl Kept {
    /// Looks at a file.
    pub fn look(path: PathBuf) -> Self {
        let size_bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let unfinished = path.extension().is_some_and(|end| end == "part");
        match Catalog::open(&path) {
            Ok(catalog) => Self {
                path,
                size_bytes,
                snapshot: Some(catalog.snapshot),
                checksums: Some(catalog.checksums),
                reason: unfinished.then(|| "was not finished".to_owned()),
            },
            Err(error) => {
                let text = error.to_string();
                let subject = format!("{}: ", path.display());
                let reason = text.strip_prefix(&subject).unwrap_or(&text).to_owned();
                Self {
                    snapshot: bundle::beginning(&path),
                    path,
                    size_bytes,
                    checksums: None,
                    reason: Some(reason),
                }
            }
        }
    }

    /// What is wrong with it where not even its beginning is a snapshot's.
    pub fn unknown(&self) -> Option<Error> {
        let reason = self.reason.as_ref().filter(|_| self.snapshot.is_none())?;
        Some(Error::corrupt(format_args!(
            "{}: {reason}",
            self.path.display()
        )))
    }

    fn age_s(&self, now_s: u64) -> Option<u64> {
        let time_s = self.snapshot.as_ref()?.time_s;
        now_s.checked_sub(time_s)
    }

    /// The JSON of `list`, and with more keys that of `show`.
    fn object(&self, now_s: u64) -> JsonObject {
        let mut object = JsonObject::new();
        object
            .str("path", &self.path.display().to_string())
            .str("kind", "snapshot")
            .bool("complete", self.reason.is_none());
        match &self.reason {
            Some(reason) => object.str("reason", reason),
            None => object.null("reason"),
        };
        object.u64("size_bytes", self.size_bytes);
        match self.age_s(now_s) {
            Some(age) => object.u64("age_s", age),
            None => object.null("age_s"),
        };
        if let Some(snapshot) = &self.snapshot {
            object
                .u64("time_s", snapshot.time_s)
                .str("time", &Utc::from_unix(snapshot.time_s).to_string())
                .str("host", &snapshot.host)
                .str("architecture", &snapshot.architecture)
                .str("board", &snapshot.board)
                .str("kernel", &snapshot.kernel)
                .str("os", &snapshot.os)
                .str("floe", &snapshot.floe)
                .str("comment", &snapshot.comment)
                .bool("factory", snapshot.factory)
                .bool("rescue", snapshot.rescue)
                .raw("entries", &self.entries(snapshot));
            match &snapshot.disk {
                Some(disk) => object.str("disk", &disk.device),
                None => object.null("disk"),
            };
        }
        if let Some(checksums) = &self.checksums {
            object
                .u64("frozen_ms", checksums.frozen_ms)
                .str("consistent", &checksums.consistent);
        }
        object
    }

    fn entries(&self, snapshot: &Snapshot) -> String {
        let mut list = String::from("[");
        for (index, image) in snapshot.images.iter().enumerate() {
            let mut object = JsonObject::new();
            for (key, text) in [
                ("name", &image.name),
                ("source", &image.source),
                ("device", &image.device),
                ("filesystem", &image.filesystem),
                ("uuid", &image.uuid),
                ("label", &image.label),
                ("partition_type", &image.partition_type),
                ("partition_label", &image.partition_label),
                ("partition_uuid", &image.partition_uuid),
            ] {
                object.str(key, text);
            }
            object
                .u64("partition_number", image.partition_number)
                .u64("size_bytes", image.size_bytes)
                .u64("used_bytes", image.used_bytes);
            let path = image_path(&image.name);
            if let Some(sums) = self.checksums.as_ref().and_then(|sums| sums.find(&path)) {
                object
                    .u64("stored_bytes", sums.stored_bytes)
                    .str("crc32", &format!("{:08x}", sums.crc32))
                    .str("map", &sums.map);
            }
            list.push_str(if index > 0 { "," } else { "" });
            list.push_str(&object.finish());
        }
        list.push(']');
        list
    }

    /// One line of `list`.
    fn line(&self, now_s: u64) -> String {
        let name = self.path.file_name().unwrap_or_default();
        let name = plain(&name.to_string_lossy());
        let age = self.age_s(now_s).map_or_else(|| "-".into(), age);
        let host = self
            .snapshot
            .as_ref()
            .map_or("-", |snapshot| &snapshot.host);
        let mut line = format!(
            "{name:<44} {age:>8} {:>9} {:<16} ",
            Bytes(self.size_bytes).to_string(),
            plain(host)
        );
        match &self.reason {
            Some(reason) => line.push_str(&format!("BROKEN: {reason}")),
            None => line.push_str("complete"),
        }
        if let Some(snapshot) = &self.snapshot {
            let names: Vec<&str> = snapshot.images.iter().map(|i| i.name.as_str()).collect();
            line.push_str(&format!(" [{}]", names.join(" ")));
            for (is, word) in [(snapshot.factory, "factory"), (snapshot.rescue, "rescue")] {
                if is {
                    line.push_str(&format!(" {word}"));
                }
            }
            if !snapshot.comment.is_empty() {
                line.push_str(&format!(" {}", plain(&snapshot.comment)));
            }
        }
        line.push('\n');
        line
    }

    /// What `show` prints.
    pub fn show(&self, json: bool) -> String {
        let now_s = host::now_s();
        if json {
            return format!("{}\n", self.object(now_s).finish());
        }
        let mut out = String::new();
        let mut row = |name: &str, value: &str| {
            if !value.is_empty() {
                out.push_str(&format!("{name:<14}{}\n", plain(value)));
            }
        };
        let bytes = |count: u64| format!("{} ({count} bytes)", Bytes(count));
        row("path", &self.path.display().to_string());
        row("kind", "snapshot");
        row("size", &bytes(self.size_bytes));
        match &self.reason {
            Some(reason) => row("BROKEN", reason),
            None => row("complete", "yes (floe verify checks every byte)"),
        }
        if let Some(snapshot) = &self.snapshot {
            let age = self.age_s(now_s).map(|s| format!(" ({} ago)", age(s)));
            let time = Utc::from_unix(snapshot.time_s).to_string();
            row("time", &format!("{time}{}", age.unwrap_or_default()));
            row("host", &snapshot.host);
            row("architecture", &snapshot.architecture);
            row("board", &snapshot.board);
            row("kernel", &snapshot.kernel);
            row("os", &snapshot.os);
            row("comment", &snapshot.comment);
            row("factory", if snapshot.factory { "yes" } else { "" });
            row("rescue", if snapshot.rescue { "yes" } else { "" });
            if let Some(disk) = &snapshot.disk {
                row(
                    "disk",
                    &format!(
                        "{}, {}, {}",
                        disk.device,
                        disk.table,
                        bytes(disk.size_bytes)
                    ),
                );
            }
            for image in &snapshot.images {
                let label = match image.label.as_str() {
                    "" => String::new(),
                    label => format!(", label {label}"),
                };
                row(
                    &image.name,
                    &format!(
                        "{} on {}, {}, about {} used{label}",
                        image.filesystem,
                        image.device,
                        bytes(image.size_bytes),
                        Bytes(image.used_bytes)
                    ),
                );
            }
        }
        if let Some(checksums) = &self.checksums {
            let frozen = format!(
                "{}, frozen {} ms",
                checksums.consistent, checksums.frozen_ms
            );
            row("consistent", &frozen);
        }
        out
    }

    /// What `show --report` writes.
    pub fn report(&self) -> JsonObject {
        self.object(host::now_s())
    }
}

/// Text from a snapshot as a terminal may show it.
fn plain(text: &str) -> String {
    if !text.contains(|letter: char| letter.is_control()) {
        return text.to_owned();
    }
    let mut out = String::new();
    json_string(&mut out, text);
    out.chars().filter(|letter| !letter.is_control()).collect()
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
