//! `floe show`: what a device, a mounted filesystem or an image is, and what a dump of it would read.
//!
//! Reads only, and never freezes: what is mounted is asked for its own figures, because the blocks below it may change while
//! they are read. A packed image is unpacked only as far as its head.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::cli::{Args, Common, Item};
use crate::content::foreign;
use crate::device::{Device, ReadAt};
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::fs::{self, Coverage, Identity, Kind, Still, UsedMap, Walk};
use crate::mounts::{Holding, Means, Source, System};
use crate::put::image::{Any, Content, Image};
use crate::report::{self, Bytes, JsonObject, ReportFile, json_list};
use crate::snapshot::kept::{self, Kept};
use crate::stream::artifact::Labels;
use crate::stream::image::{Format, LOOK_BYTES};
use crate::take::identity::Found;
use crate::units::{BlockSize, to_u64, to_usize};
use crate::utc::Utc;

/// What was asked for.
pub struct Options {
    path: OsString,
    json: bool,
    identity: bool,
    common: Common,
}

/// Reads the command line.
pub fn parse(mut args: Args) -> Result<Options> {
    let mut path = None;
    let (mut json, mut identity) = (false, false);
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if path.is_none() => path = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option("--json") => json = true,
            Item::Option("--identity") => identity = true,
            Item::Option(name) => return Err(args.unknown(name)),
        }
    }
    Ok(Options {
        path: path.ok_or_else(|| args.missing("the PATH to show"))?,
        json,
        identity,
        common: args.common,
    })
}

/// Runs the verb.
pub fn run(options: Options) -> Result<()> {
    let path = kept::path_of(&options.path)?;
    let options = Options { path, ..options };
    let path = Path::new(&options.path);
    if features::GOLDEN && options.identity {
        return identity(&options);
    }
    if features::SNAPSHOTS && packed(path)? == Some(Format::Zip) {
        let kept = Kept::look(path.to_owned());
        if let Some(error) = kept.unknown() {
            return Err(error);
        }
        if let Some(path) = &options.common.report {
            ReportFile::open(path)?.write(&kept.report())?;
        }
        return report::print(&kept.show(options.json));
    }
    let facts = look(&options.path)?;
    if let Some(path) = &options.common.report {
        ReportFile::open(path)?.write(&facts.object())?;
    }
    report::print(&if options.json {
        format!("{}\n", facts.object().finish())
    } else {
        facts.text()
    })
}

/// `--identity`: what makes it one machine and not another.
fn identity(options: &Options) -> Result<()> {
    let path = Path::new(&options.path);
    if packed(path)?.is_some() {
        let shown = path.display();
        return Err(Error::refused(format_args!(
            "{shown}: is packed; unpack it first: floe restore {shown} [NAME=]FILE, then floe show --identity FILE"
        )));
    }
    let found = Found::look(&options.path)?;
    if let Some(path) = &options.common.report {
        ReportFile::open(path)?.write(&found.object())?;
    }
    report::print(&match options.json {
        true => format!("{}\n", found.object().finish()),
        false => found.text(),
    })
}

/// What is shown.
#[derive(Default)]
struct Facts {
    path: String,
    /// `device`, `mount` or `image`.
    kind: &'static str,
    format: Option<Format>,
    device: Option<String>,
    content: Content,
    /// Size of the device or image; `None` where only unpacking would tell.
    size_bytes: Option<u64>,
    used_bytes: Option<u64>,
    mounted_at: Vec<String>,
    dump: Option<Dump>,
    artifact: Option<Labels>,
    /// What another program made of it, where it is no image.
    foreign: Option<&'static str>,
}

/// What a dump would read.
struct Dump {
    bytes: u64,
    /// How much of the map was proven, or `estimate`.
    map: &'static str,
    doubt: Option<Fault>,
}

fn look(name: &OsStr) -> Result<Facts> {
    let path = Path::new(name);
    if packed(path)?.is_some() {
        let image = Image::open(name, Any::Yes)?;
        let identity = image.content.identity.as_ref();
        let what = foreign(image.head()).filter(|_| image.content.is_empty());
        return Ok(Facts {
            foreign: what,
            used_bytes: identity.and_then(|found| found.used_bytes),
            path: image.subject,
            kind: "image",
            format: Some(image.reader.format()),
            artifact: image.artifact,
            content: image.content,
            ..Facts::default()
        });
    }
    let source = System::look()?.resolve_as(name, Means::Bytes)?;
    let fail = |fault| Error::fault(source.shown.display(), fault);
    let content = Content::probe(&source.device).map_err(fail)?;
    let mut first = [0u8; LOOK_BYTES];
    let length = source.device.size_bytes().min(to_u64(LOOK_BYTES));
    let first = first.get_mut(..to_usize(length)).unwrap_or_default();
    let is_foreign = source.dev.is_none() && content.is_empty();
    source.device.read_at(0, first).map_err(fail)?;
    let mut facts = Facts {
        path: path.display().to_string(),
        kind: kind_of(path, &source),
        format: source.dev.is_none().then_some(Format::Raw),
        device: source.dev.map(|_| source.shown.display().to_string()),
        size_bytes: Some(source.device.size_bytes()),
        used_bytes: content.identity.as_ref().and_then(|found| found.used_bytes),
        foreign: foreign(first).filter(|_| is_foreign),
        ..Facts::default()
    };
    match &source.holding {
        Holding::Mounted(mounted) => {
            let points = mounted.mounts.iter().map(|mount| &mount.point);
            facts.mounted_at = points.map(|point| point.display().to_string()).collect();
            let stat = rustix::fs::fstatvfs(&mounted.fd);
            let stat = stat.map_err(|e| fail(Fault::io("statvfs", e)))?;
            let used = stat.f_blocks.saturating_sub(stat.f_bfree);
            let used = used.saturating_mul(stat.f_frsize);
            facts.used_bytes = Some(used);
            facts.dump = Some(Dump {
                bytes: used,
                map: "estimate",
                doubt: None,
            });
        }
        Holding::Stacked(above) => {
            let points = above.mounted.iter().flat_map(|mounted| &mounted.mounts);
            facts.mounted_at = points.map(|m| m.point.display().to_string()).collect();
        }
        Holding::Unmounted | Holding::ImageFile => {
            if let Some(identity) = &content.identity {
                facts.dump = walk(&source.device, identity).map_err(fail)?;
            }
        }
    }
    facts.content = content;
    Ok(facts)
}

/// How a file is packed, where it is one that has to be unpacked; what another program packed is an error that says how.
fn packed(path: &Path) -> Result<Option<Format>> {
    let Ok(meta) = std::fs::metadata(path) else {
        return Ok(None);
    };
    if !meta.is_file() {
        return Ok(None);
    }
    let subject = path.display().to_string();
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(to_u64(LOOK_BYTES)).read_to_end(&mut first))
        .map_err(|error| {
            let mut fault = Fault::short("read");
            fault = fault.with_errno(error.raw_os_error());
            Error::fault(&subject, fault)
        })?;
    let format = Format::recognise(&first);
    Ok(Some(format).filter(|format| *format != Format::Raw))
}

fn kind_of(path: &Path, source: &Source) -> &'static str {
    match (&source.holding, std::fs::metadata(path)) {
        (Holding::ImageFile, _) => "image",
        (Holding::Mounted(_), Ok(meta)) if meta.is_dir() || meta.is_file() => "mount",
        _ => "device",
    }
}

fn walk(device: &Device, identity: &Identity) -> std::result::Result<Option<Dump>, Fault> {
    let size = identity.size_bytes.min(device.size_bytes());
    let block = BlockSize::from_bytes(u64::from(identity.block_bytes));
    let Some(mut map) = block.and_then(|block| UsedMap::new(size, block)) else {
        return Ok(None);
    };
    let mut scratch = vec![0; fs::SCRATCH_BYTES];
    let mut walk = Walk::new(device, &mut scratch);
    let verdict = match fs::walk(identity, Still::Unmounted, &mut walk, &mut map) {
        Ok(verdict) => verdict,
        // What cannot be dumped alone (an external journal, several devices) can still be shown.
        Err(fault) if fault.kind() != crate::error::FaultKind::Io => fs::Verdict::whole(fault),
        Err(fault) => return Err(fault),
    };
    if verdict.coverage == Coverage::Whole {
        map.set_all_used();
    }
    Ok(Some(Dump {
        bytes: map.used_bytes(),
        map: verdict.coverage.name(),
        doubt: verdict.doubt,
    }))
}

/// A key whose value may not be known: null then.
fn maybe_u64(object: &mut JsonObject, key: &str, value: Option<u64>) {
    match value {
        Some(value) => object.u64(key, value),
        None => object.null(key),
    };
}

/// The same for text; empty text is not known either.
fn maybe_str(object: &mut JsonObject, key: &str, value: Option<&str>) {
    match value.filter(|text| !text.is_empty()) {
        Some(value) => object.str(key, value),
        None => object.null(key),
    };
}

impl Facts {
    /// Of the device or image; of a packed one what its head says.
    fn whole_bytes(&self) -> Option<u64> {
        let least = self.content.least_bytes();
        self.size_bytes.or((least > 0).then_some(least))
    }

    /// What is wrong with the partition table.
    fn table_doubt(&self) -> Option<Fault> {
        let doubt = self.content.table.as_ref().and_then(|table| table.doubt);
        self.content.damaged.or(doubt)
    }

    /// Whether the kernel can freeze it when it is mounted.
    fn can_freeze(&self) -> bool {
        self.content.identity.as_ref().is_some_and(|found| {
            matches!(
                found.kind,
                Kind::Ext2
                    | Kind::Ext3
                    | Kind::Ext4
                    | Kind::Xfs
                    | Kind::Btrfs
                    | Kind::F2fs
                    | Kind::Jfs
                    | Kind::Nilfs2
            )
        })
    }

    fn object(&self) -> JsonObject {
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
        maybe_u64(out, "used_bytes", self.used_bytes);
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
        let doubt = dump.and_then(|dump| dump.doubt);
        let doubt = doubt.map(|doubt| doubt.to_string());
        maybe_str(out, "doubt", doubt.as_deref());
        let wrong = self.table_doubt().map(|doubt| doubt.to_string());
        maybe_str(out, "partition_table_doubt", wrong.as_deref());
        let artifact = self.artifact.as_ref();
        let name = artifact.map(|labels| labels.name.as_str());
        maybe_str(out, "artifact_name", name);
        if let Some(labels) = artifact {
            out.raw("device_types", &json_list(&labels.device_types));
            out.str("payload", &labels.payload);
        }
        object
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut row = |name: &str, value: String| {
            if !value.is_empty() {
                out.push_str(&format!("{name:<14}{}\n", report::clean(&value)));
            }
        };
        let bytes = |count: u64| format!("{} ({count} bytes)", Bytes(count));
        let maybe = |count: Option<u64>| count.map(bytes).unwrap_or_default();
        row("path", self.path.clone());
        let format = self.format.map(|format| format!(", {}", format.name()));
        row(
            "kind",
            format!("{}{}", self.kind, format.unwrap_or_default()),
        );
        row("device", self.device.clone().unwrap_or_default());
        row("size", maybe(self.whole_bytes()));
        match (&self.content.table, self.table_doubt()) {
            (Some(table), None) => row("table", table.scheme.name().into()),
            (_, Some(doubt)) => row(
                "table",
                format!("{}, damaged: {doubt}", self.content.name()),
            ),
            (None, None) => {}
        }
        if let Some(labels) = &self.artifact {
            row("artifact", labels.name.clone());
            row("for", labels.device_types.join(", "));
            row("payload", labels.payload.clone());
        }
        row("mounted at", self.mounted_at.join(", "));
        let Some(found) = &self.content.identity else {
            if self.content.is_empty() {
                let what = self.foreign.map(|what| format!("none; it is {what}"));
                row("filesystem", what.unwrap_or("none that is known".into()));
            }
            return out;
        };
        row("filesystem", found.kind.name().into());
        row("used", maybe(self.used_bytes));
        row("uuid", found.uuid.as_str().into());
        row("label", found.label.as_str().into());
        row("last mounted", found.last_mounted.as_str().into());
        let written = found.last_written_s.filter(|seconds| *seconds > 0);
        let written = written.map(|seconds| Utc::from_unix(seconds).to_string());
        row("last written", written.unwrap_or_default());
        let freeze = if self.can_freeze() { "yes" } else { "no" };
        row("can freeze", freeze.into());
        if let Some(dump) = &self.dump {
            let note = match (dump.map, dump.doubt) {
                ("estimate", _) => "an estimate, while it is mounted".into(),
                (map, Some(doubt)) => format!("map: {map}, because of {doubt}"),
                (map, None) => format!("map: {map}"),
            };
            row("a dump reads", format!("{}; {note}", bytes(dump.bytes)));
        }
        out
    }
}
