//! A snapshot that lies in a file: what it says of itself, and whether it is whole.
//!
//! Reads metadata and checksum lists, never the images: that their bytes are right is what `floe verify` finds out.

use std::path::PathBuf;

use crate::error::{Error, Exit};
use crate::report::{Bytes, JsonObject, clean};
use crate::snapshot::archive::{self, Catalog};
use crate::snapshot::machine;
use crate::snapshot::{Checksums, Snapshot, image_path};
use crate::utc::Utc;

/// A snapshot in a file, whole or not.
pub struct Kept {
    path: PathBuf,
    size_bytes: u64,
    snapshot: Option<Snapshot>,
    checksums: Option<Checksums>,
    /// Why it is not complete.
    reason: Option<String>,
    state: State,
}

/// How far a kept snapshot can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Complete,
    /// Somebody writes it now.
    BeingMade,
    /// Made by a newer floe: not ours to judge.
    Newer,
    Broken,
}

impl State {
    /// The word in reports.
    const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::BeingMade => "being made",
            Self::Newer => "newer format",
            Self::Broken => "broken",
        }
    }
}

/// Whether the process that makes the file still holds it ([`crate::stream::partfile`]).
fn is_being_made(path: &std::path::Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
    rustix::fs::flock(&file, shared) == Err(rustix::io::Errno::WOULDBLOCK)
}

impl Kept {
    /// Looks at a file.
    pub fn look(path: PathBuf) -> Self {
        let size_bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let unfinished = path.extension().is_some_and(|end| end == "part");
        if unfinished && is_being_made(&path) {
            return Self {
                snapshot: archive::beginning(&path),
                path,
                size_bytes,
                checksums: None,
                reason: Some("is being made".into()),
                state: State::BeingMade,
            };
        }
        match Catalog::open(&path) {
            Ok(catalog) => Self {
                path,
                size_bytes,
                snapshot: Some(catalog.snapshot),
                checksums: Some(catalog.checksums),
                reason: unfinished.then(|| "was not finished".to_owned()),
                state: match unfinished {
                    true => State::Broken,
                    false => State::Complete,
                },
            },
            Err(error) => {
                let state = match error.exit() {
                    Some(Exit::Refused) => State::Newer,
                    _ => State::Broken,
                };
                let text = error.to_string();
                let subject = format!("{}: ", path.display());
                let reason = text.strip_prefix(&subject).unwrap_or(&text).to_owned();
                Self {
                    snapshot: archive::beginning(&path),
                    path,
                    size_bytes,
                    checksums: None,
                    reason: Some(reason),
                    state,
                }
            }
        }
    }

    /// What is wrong with it where not even its beginning is a snapshot's.
    pub fn unknown(&self) -> Option<Error> {
        let reason = self.reason.as_ref().filter(|_| self.snapshot.is_none())?;
        let exit = match self.state {
            State::Newer => Exit::Refused,
            _ => Exit::Corrupt,
        };
        Some(Error::with(
            exit,
            format_args!("{}: {reason}", self.path.display()),
        ))
    }

    fn age_s(&self, now_s: u64) -> Option<u64> {
        let time_s = self.snapshot.as_ref()?.time_s;
        now_s.checked_sub(time_s)
    }

    /// The JSON of `list`, and with more keys that of `show`.
    /// Everything about it, as JSON.
    pub fn object(&self, now_s: u64) -> JsonObject {
        let mut object = JsonObject::new();
        object
            .str("path", &self.path.display().to_string())
            .str("kind", "snapshot")
            .bool("complete", self.reason.is_none())
            .str("state", self.state.name());
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
    /// Its line of the table.
    pub fn line(&self, now_s: u64) -> String {
        let name = self.path.file_name().unwrap_or_default();
        let name = clean(&name.to_string_lossy());
        let age = self.age_s(now_s).map_or_else(|| "-".into(), age);
        let host = self
            .snapshot
            .as_ref()
            .map_or("-", |snapshot| &snapshot.host);
        let mut line = format!(
            "{name:<44} {age:>8} {:>9} {:<16} ",
            Bytes(self.size_bytes).to_string(),
            clean(host)
        );
        match (&self.reason, self.state) {
            (Some(reason), State::Broken) => line.push_str(&format!("BROKEN: {reason}")),
            (_, state) => line.push_str(state.name()),
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
                line.push_str(&format!(" {}", clean(&snapshot.comment)));
            }
        }
        line.push('\n');
        line
    }

    /// What `show` prints.
    pub fn show(&self, json: bool) -> String {
        let now_s = machine::now_s();
        if json {
            return format!("{}\n", self.object(now_s).finish());
        }
        let mut out = String::new();
        let mut row = |name: &str, value: &str| {
            if !value.is_empty() {
                out.push_str(&format!("{name:<14}{}\n", clean(value)));
            }
        };
        let bytes = |count: u64| format!("{} ({count} bytes)", Bytes(count));
        row("path", &self.path.display().to_string());
        row("kind", "snapshot");
        row("size", &bytes(self.size_bytes));
        match &self.reason {
            Some(_) if self.state == State::BeingMade => {
                row("complete", "not yet: it is being made")
            }
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
        self.object(machine::now_s())
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
