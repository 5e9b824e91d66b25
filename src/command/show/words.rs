//! What `floe show` says: a table of several, all that is known of one, and the same as JSON.

use super::{Facts, NO_IMAGE};
use crate::report::{self, Bytes, JsonObject, exact, json_list};
use crate::stream::image::Format;
use crate::take::glimpse::Glimpse;
use crate::utc::Utc;

/// Several, one a line.
pub(super) fn rows(found: &[Facts]) -> String {
    let head = [
        "DEVICE",
        "WHAT",
        "SIZE",
        "USED",
        "LABEL",
        "FREEZE",
        "MOUNTED AT",
        "",
    ];
    report::table(head, &[2, 3], found.iter().map(Facts::row).collect())
}

/// A key whose value may not be known: null then.
fn maybe_u64(object: &mut JsonObject, key: &str, value: Option<u64>) {
    match value {
        Some(value) => object.u64(key, value),
        None => object.null(key),
    };
}

/// The same for text; empty text is not known either.
pub(super) fn maybe_str(object: &mut JsonObject, key: &str, value: Option<&str>) {
    match value.filter(|text| !text.is_empty()) {
        Some(value) => object.str(key, value),
        None => object.null(key),
    };
}

/// Most reasons say what the source does (it ends too early); some speak of a part of it.
pub(super) fn says_of_what(why: &str) -> bool {
    ["its ", "the "].iter().any(|part| why.starts_with(part))
}

fn with_subject(why: &str) -> String {
    match says_of_what(why) {
        true => why.to_owned(),
        false => format!("it {why}"),
    }
}

impl Facts {
    fn refused(&self) -> Option<&str> {
        self.beside.as_deref().or(self.refused.as_deref())
    }

    /// Its line of a table.
    fn row(&self) -> [String; 8] {
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), |n| Bytes(n).to_string());
        let found = self.content.identity.as_ref();
        let mut notes: Vec<String> = Vec::new();
        notes.extend((self.frozen == Some(true)).then(|| "frozen now".to_owned()));
        notes.extend(self.guarded.then(|| "a floe takes its image".to_owned()));
        let standby = self.standby_of.as_ref();
        notes.extend(standby.map(|source| format!("standby of {source}")));
        let doubt = self.table_doubt();
        notes.extend(doubt.map(|doubt| format!("its table is damaged: {doubt}")));
        let refused = self.refused();
        notes.extend(refused.map(|why| format!("a dump would be refused: {}", with_subject(why))));
        if self.dump.as_ref().is_some_and(|dump| dump.at_least) {
            notes.push("uses at least that: what follows the filesystem was not looked at".into());
        }
        notes.extend(self.error.clone());
        let name = match self.content.is_empty() {
            true => "-",
            false => self.content.name(),
        };
        [
            report::clean(&self.path),
            name.into(),
            size(self.whole_bytes()),
            size(self.used()),
            found.map_or_else(String::new, |found| report::clean(&found.label)),
            self.freeze().into(),
            report::clean(&self.mounted_at.join(", ")),
            report::clean(&notes.join("; ")),
        ]
    }

    /// Whether it can be frozen; of what is never mounted as it is, and of no filesystem, nothing.
    fn freeze(&self) -> &'static str {
        match (&self.content.identity, self.kind) {
            (None, _) | (_, "image") => "",
            _ if self.can_freeze() => "yes",
            _ => "no",
        }
    }

    pub(super) fn object(&self) -> JsonObject {
        let found = self.content.identity.as_ref();
        let table = self.content.table.as_ref();
        let dump = self.dump.as_ref();
        let mut object = JsonObject::new();
        let out = &mut object;
        out.str("path", &self.path).str("kind", self.kind);
        maybe_str(out, "format", self.format.map(Format::name));
        maybe_str(out, "device", self.device.as_deref());
        maybe_str(out, "filesystem", found.map(|found| found.kind.name()));
        let scheme = table.map(|table| table.scheme.name());
        maybe_str(out, "partition_table", scheme);
        maybe_u64(out, "size_bytes", self.whole_bytes());
        let filesystem_bytes = found.map(|found| found.size_bytes);
        maybe_u64(out, "filesystem_bytes", filesystem_bytes);
        maybe_u64(out, "packed_bytes", self.packed_bytes);
        maybe_u64(out, "used_bytes", self.used());
        maybe_u64(out, "stated_bytes", self.stated_bytes);
        let block_bytes = found.map(|found| found.block_bytes.into());
        maybe_u64(out, "block_bytes", block_bytes);
        maybe_str(out, "uuid", found.map(|found| found.uuid.as_str()));
        maybe_str(out, "label", found.map(|found| found.label.as_str()));
        let mounted = found.map(|found| found.last_mounted.as_str());
        maybe_str(out, "last_mounted", mounted);
        let written = found.and_then(|found| found.last_written_s);
        maybe_u64(out, "last_written_s", written);
        out.raw("mounted_at", &json_list(&self.mounted_at));
        out.bool("can_freeze", self.can_freeze());
        maybe_u64(out, "dump_bytes", dump.map(|dump| dump.bytes));
        maybe_str(out, "map", dump.map(|dump| dump.map));
        let doubt = dump.and_then(|dump| dump.doubt.as_deref());
        let behind = dump.and_then(|dump| dump.behind);
        maybe_str(out, "doubt", doubt.or(behind));
        out.bool("at_least", dump.is_some_and(|dump| dump.at_least));
        maybe_str(out, "refused", self.refused());
        let wrong = self.table_doubt().map(|doubt| doubt.to_string());
        maybe_str(out, "partition_table_doubt", wrong.as_deref());
        let artifact = self.artifact.as_ref();
        let name = artifact.map(|labels| labels.name.as_str());
        maybe_str(out, "artifact_name", name);
        if let Some(labels) = artifact {
            out.raw("device_types", &json_list(&labels.device_types));
            out.str("payload", &labels.payload);
        }
        if let Some(checked) = self.end_checked() {
            out.bool("end_checked", checked);
        }
        match self.frozen {
            Some(frozen) => out.bool("frozen", frozen),
            None => out.null("frozen"),
        };
        out.bool("floe_at_work", self.guarded);
        maybe_str(out, "standby_of", self.standby_of.as_deref());
        if let Some(untraced) = &self.trace {
            out.bool("can_trace", untraced.is_none());
            maybe_str(out, "trace_doubt", untraced.as_deref());
        }
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|part| part.object().finish())
            .collect();
        out.raw("partitions", &format!("[{}]", parts.join(",")));
        maybe_str(out, "error", self.error.as_deref());
        object
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        let mut sheet = Sheet::default();
        sheet.row("path", self.path.clone());
        let format = self.format.map(|format| format!(", {}", format.name()));
        let kind = match self.kind {
            NO_IMAGE => "file, not an image".into(),
            kind => format!("{kind}{}", format.unwrap_or_default()),
        };
        sheet.row("kind", kind);
        sheet.row("device", self.device.clone().unwrap_or_default());
        sheet.row("size", bytes(self.whole_bytes()));
        sheet.row("packed", bytes(self.packed_bytes));
        match (self.end_checked(), &self.error) {
            (Some(true), Some(error)) => sheet.row("state", format!("damaged: {error}")),
            (Some(false), _) if !self.content.is_empty() => sheet.row(
                "state",
                "its end was not looked at (floe verify checks every byte)".into(),
            ),
            _ => {}
        }
        match (&self.content.table, self.table_doubt()) {
            (Some(table), None) => sheet.row("table", table.scheme.name().into()),
            (_, Some(doubt)) => {
                let name = self.content.name();
                sheet.row("table", format!("{name}, damaged: {doubt}"));
            }
            (None, None) => {}
        }
        if let Some(labels) = &self.artifact {
            sheet.row("artifact", labels.name.clone());
            sheet.row("for", labels.device_types.join(", "));
            sheet.row("payload", labels.payload.clone());
        }
        sheet.row("mounted at", self.mounted_at.join(", "));
        let now = match (self.frozen, self.guarded) {
            (Some(true), true) => "frozen, while a floe takes its image".to_owned(),
            (Some(true), false) => format!(
                "frozen, and no floe at work: writers wait until somebody thaws it (floe thaw {})",
                self.mounted_at.first().map_or("PATH", String::as_str)
            ),
            (_, true) => "a floe takes its image".to_owned(),
            (_, false) => String::new(),
        };
        sheet.row("now", now);
        let standby_of = self.standby_of.clone();
        sheet.row("standby of", standby_of.unwrap_or_default());
        let help = match self.beside {
            Some(_) => "",
            None => "; --whole copies it as it is",
        };
        match (&self.dump, self.refused()) {
            (_, Some(why)) => sheet.row(
                "a dump",
                format!("would be refused: {}{help}", with_subject(why)),
            ),
            (Some(dump), None) => sheet.row("a dump reads", dump_words(dump)),
            (None, None) => sheet.row("used", bytes(self.used_bytes)),
        }
        if let Some(stated) = self.stated_bytes {
            let stated = bytes(Some(stated));
            sheet.row("superblock", format!("at most {stated} used"));
        }
        match &self.trace {
            Some(None) => sheet.row("pre-copy", "writes can be traced".into()),
            Some(Some(why)) => {
                sheet.row("pre-copy", format!("writes cannot be traced: {why}"));
            }
            None => {}
        }
        match self.parts.is_empty() {
            true => self.filesystem_rows(&mut sheet),
            false => sheet.0.extend(["\n", &rows(&self.parts)]),
        }
        sheet.0
    }

    /// What its superblock says.
    fn filesystem_rows(&self, sheet: &mut Sheet) {
        let Some(found) = &self.content.identity else {
            if self.content.is_empty() {
                let what = self.foreign.map(|what| format!("none; it is {what}"));
                sheet.row("filesystem", what.unwrap_or("none that is known".into()));
            }
            return;
        };
        sheet.row("filesystem", found.kind.name().into());
        sheet.row("uuid", found.uuid.as_str().into());
        sheet.row("label", found.label.as_str().into());
        sheet.row("last mounted", found.last_mounted.as_str().into());
        let written = found.last_written_s.filter(|seconds| *seconds > 0);
        let written = written.map(|seconds| Utc::from_unix(seconds).to_string());
        sheet.row("last written", written.unwrap_or_default());
        sheet.row("can freeze", self.freeze().into());
    }
}

/// What a dump reads.
fn dump_words(dump: &Glimpse) -> String {
    let doubt = dump.doubt.as_deref().or(dump.behind);
    let note = match (dump.map, doubt) {
        ("estimate", _) => match dump.behind {
            Some(what) => format!("an estimate, while it is mounted; {what}"),
            None => "an estimate, while it is mounted".into(),
        },
        ("whole", Some(doubt)) => format!("all of it, because: {doubt}"),
        (map, Some(doubt)) => format!("map: {map}, because: {doubt}"),
        (map, None) => format!("map: {map}"),
    };
    let at_least = if dump.at_least { "at least " } else { "" };
    format!("{at_least}{}; {note}", bytes(Some(dump.bytes)))
}

/// Rows of a name and a value.
#[derive(Default)]
struct Sheet(String);

impl Sheet {
    /// One more, where there is a value.
    fn row(&mut self, name: &str, value: String) {
        if !value.is_empty() {
            let line = format!("{name:<14}{}\n", report::clean(&value));
            self.0.push_str(&line);
        }
    }
}

/// A size in words and to the byte; empty where it is not known.
fn bytes(count: Option<u64>) -> String {
    count.map_or_else(String::new, exact)
}
