//! `floe show`: what there is, or what a device, a mounted filesystem or an image is, and what a dump of it would read.
//!
//! Reads only, and never freezes: of what is mounted the map is walked as it lies on the device just now, which is an estimate. A
//! packed image is unpacked only as far as its head. *Used* is what a dump would read, here as in every report. What is said of
//! it is in `words`.

mod words;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::words::{maybe_str, rows};
use crate::cli::{self, Args, Common, Item};
use crate::config::pairs;
use crate::content::{Content, foreign};
use crate::device::{Range, ReadAt, limited};
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::freeze::{GUARDIAN, asked};
use crate::fs::{Coverage, Identity, Still};
use crate::mounts::{DevId, Holding, Means, Roots, Source, System};
use crate::ptable::{self, PartitionTable, Scheme};
use crate::report::{self, JsonObject};
use crate::snapshot::kept::{self, Kept};
use crate::stream::artifact::ArtifactLabels;
use crate::stream::image::probed::Image;
use crate::stream::image::whole::Any;
use crate::stream::image::{Format, LOOK_BYTES};
use crate::stream::partfile;
use crate::take::glimpse::{self, Behind, Glimpse};
use crate::take::identity::Identities;
use crate::take::source;
use crate::take::still::can_freeze;
use crate::trace;
use crate::units::{Extent, to_u64, to_usize};

/// What was asked for.
#[derive(Default)]
pub(super) struct Options {
    /// `None`: an overview.
    path: Option<OsString>,
    json: bool,
    identity: bool,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if options.path.is_none() => options.path = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option("--json") => options.json = true,
            Item::Option("--identity") => options.identity = true,
            Item::Option(name) => return Err(args.unknown(name)),
        }
    }
    if options.identity && options.path.is_none() {
        return Err(args.missing("the PATH whose --identity is to be shown"));
    }
    options.common = args.common;
    Ok(options)
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let typed = super::typed(options.path.iter().map(OsString::as_os_str));
    super::begin(&options.common, ("path", &typed), &[])?;
    let Some(name) = &options.path else {
        return overview(&options);
    };
    if name == "-" {
        return Err(cli::usage(
            "show",
            format_args!(
                "a pipe cannot be looked at and then be read; floe verify - reads all of it"
            ),
        ));
    }
    let name = kept::path_of(name)?;
    let path = Path::new(&name);
    if features::GOLDEN && options.identity {
        return identity(&name, &options);
    }
    if features::SNAPSHOTS && packed(path)? == Some(Format::Zip) {
        let kept = Kept::look(path.to_owned());
        if let Some(error) = kept.unknown() {
            return Err(error);
        }
        tell(&options, &kept.report(), kept.show(false))?;
        return kept.broken().map_or(Ok(()), Err);
    }
    let facts = look(&name)?;
    tell(&options, &facts.object(), facts.text())?;
    facts.no_image().map_or(Ok(()), Err)
}

/// The one answer: as a report, and to stdout as JSON or in words.
fn tell(options: &Options, object: &JsonObject, text: String) -> Result<()> {
    report::write(object)?;
    report::print(&match options.json {
        true => format!("{}\n", object.finish()),
        false => text,
    })
}

/// Without a PATH: every filesystem and disk that could be imaged here.
fn overview(options: &Options) -> Result<()> {
    let mut system = System::look()?;
    system.be_gentle();
    let around = Around::look(&system);
    let roots = system.roots();
    let mut found = Vec::new();
    let disks = roots.devices().into_iter();
    for disk in disks.filter(|dev| roots.disk_of(*dev).is_none()) {
        // An empty loop device, a card reader without a card.
        if roots.size_bytes(disk).is_none_or(|size| size == 0) {
            continue;
        }
        let mut facts = one(&system, &around, disk, Depth::Quick);
        let mut parts = std::mem::take(&mut facts.parts);
        if facts.error.is_some() {
            // One of them may be the reason, and the others are as they are.
            let known = roots.partitions_of(disk).into_iter();
            let each = known.map(|part| one(&system, &around, part.dev, Depth::Quick));
            parts = each.collect();
            if parts.iter().all(|part| part.error.is_some()) {
                parts.clear();
            }
        }
        found.push(facts);
        found.extend(parts);
    }
    // What nobody knows can be dumped only as it is.
    found.retain(|facts| facts.error.is_some() || !facts.content.is_empty());
    let mut object = JsonObject::new();
    let list: Vec<String> = found.iter().map(|facts| facts.object().finish()).collect();
    object.raw("filesystems", &format!("[{}]", list.join(",")));
    around.say(&mut object);
    let text = match found.is_empty() {
        true => "nothing that could be imaged\n".to_owned(),
        false => format!("{}{}", rows(&found), around.words()),
    };
    tell(options, &object, text)
}

/// What is asked once, whatever is shown.
#[derive(Default)]
struct Around {
    /// Standby devices of /etc/floe.conf, each with its source.
    standby: Vec<(DevId, String)>,
    /// `st_dev` of filesystems that a guardian holds open.
    guarded: Vec<u64>,
    /// Why writes cannot be traced here.
    untraced: Option<String>,
}

impl Around {
    fn look(system: &System) -> Self {
        let standby = pairs::declared().into_iter().filter_map(|pair| {
            let dev = system.target(&pair.target).ok()?.dev?;
            Some((dev, pair.source.to_string_lossy().into_owned()))
        });
        Self {
            standby: standby.collect(),
            guarded: guarded(system.roots()),
            untraced: match features::PRECOPY {
                true => trace::available().err().map(|why| why.to_string()),
                false => Some("this floe was built without pre-copy".into()),
            },
        }
    }

    fn say(&self, object: &mut JsonObject) {
        object.bool("can_trace", self.untraced.is_none());
        maybe_str(object, "trace_doubt", self.untraced.as_deref());
    }

    fn words(&self) -> String {
        match &self.untraced {
            None => "pre-copy: writes can be traced\n".into(),
            Some(why) => format!(
                "pre-copy: writes cannot be traced ({}), so what is used is read twice and compared\n",
                report::clean(why)
            ),
        }
    }
}

/// The filesystems that guardians hold open: a floe takes their images now.
fn guarded(roots: &Roots) -> Vec<u64> {
    // What ends meanwhile is not there any more.
    let entries = |path: &Path| -> Vec<PathBuf> {
        let read = std::fs::read_dir(path).into_iter().flatten();
        read.flatten().map(|entry| entry.path()).collect()
    };
    let mut devices = Vec::new();
    for process in entries(&roots.proc) {
        let comm = std::fs::read_to_string(process.join("comm"));
        if !comm.is_ok_and(|comm| comm.trim_end() == GUARDIAN) {
            continue;
        }
        // Its threads have descriptors of their own.
        for thread in entries(&process.join("task")) {
            for file in entries(&thread.join("fd")) {
                devices.extend(std::fs::metadata(file).ok().map(|meta| meta.dev()));
            }
        }
    }
    devices
}

/// One device of an overview.
fn one(system: &System, around: &Around, dev: DevId, depth: Depth) -> Facts {
    let shown = system.roots().shown(dev);
    let found = system
        .resolve_device(shown.as_os_str(), dev)
        .and_then(|source| facts(system, around, source, &shown, depth));
    found.unwrap_or_else(|error| {
        let text = error.to_string();
        let subject = format!("{}: ", shown.display());
        Facts {
            path: shown.display().to_string(),
            kind: "device",
            size_bytes: system.roots().size_bytes(dev),
            error: Some(text.strip_prefix(&subject).unwrap_or(&text).to_owned()),
            ..Facts::default()
        }
    })
}

/// `--identity`: what makes it one machine and not another.
fn identity(name: &OsStr, options: &Options) -> Result<()> {
    let path = Path::new(name);
    let words = packed(path)?.and_then(|format| format.words(path));
    if let Some(words) = words {
        return Err(Error::refused(words));
    }
    let found = Identities::look(name)?;
    tell(options, &found.object(), found.text())
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
    /// Of a packed image.
    packed_bytes: Option<u64>,
    /// As the superblock says, where nothing better is known.
    used_bytes: Option<u64>,
    /// The same of a packed image: more than a dump reads, which has no map to go by.
    stated_bytes: Option<u64>,
    mounted_at: Vec<String>,
    dump: Option<Glimpse>,
    artifact: Option<ArtifactLabels>,
    /// What another program made of it, where it is no image.
    foreign: Option<&'static str>,
    /// Of a disk.
    parts: Vec<Facts>,
    /// A floe takes its image now.
    guarded: bool,
    /// Whether it is frozen now; `None` where that was not asked, or cannot be told.
    frozen: Option<bool>,
    /// Of which source it is the standby.
    standby_of: Option<String>,
    /// Whether writes can be traced, and why not; where that matters.
    trace: Option<Option<String>>,
    /// Why a dump would be refused.
    refused: Option<String>,
    /// The same, where no option helps: who writes to it through another device.
    beside: Option<String>,
    /// Why nothing more is known.
    error: Option<String>,
}

/// The kind of a file in which no image was recognised.
const NO_IMAGE: &str = "file";

/// How far what follows a filesystem is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// As far as that takes no time.
    Quick,
    /// To the end, as a dump does.
    All,
}

impl Depth {
    /// What is not zeros there; `None` where it is too long to be looked at.
    fn behind(
        self,
        device: &dyn ReadAt,
        end: u64,
        is_written: bool,
    ) -> std::result::Result<Option<Vec<Extent>>, Fault> {
        const QUICK_BYTES: u64 = 16 << 20;
        let length_bytes = device.size_bytes().saturating_sub(end);
        if self == Self::Quick && length_bytes > QUICK_BYTES && !is_written {
            return Ok(None);
        }
        source::behind(device, end, is_written).map(Some)
    }
}

fn look(name: &OsStr) -> Result<Facts> {
    let path = Path::new(name);
    if packed(path)?.is_some() || partfile::is_first(path) {
        let image = Image::look(name, Any::Yes)?;
        let size_bytes = image.reader.length_bytes();
        // Of all pieces; what comes out of an artifact has no length.
        let packed_bytes = image.reader.input_length_bytes();
        let packed_bytes =
            packed_bytes.or_else(|| std::fs::metadata(path).ok().map(|meta| meta.len()));
        let identity = image.content.identity.as_ref();
        let what = foreign(image.head()).filter(|_| image.content.is_empty());
        // What lies on them is behind what is unpacked.
        let table = image.content.table.as_ref();
        let parts = table.map(|table| table.partitions.iter().map(stated).collect());
        return Ok(Facts {
            parts: parts.unwrap_or_default(),
            foreign: what,
            stated_bytes: identity.and_then(|found| found.used_bytes),
            error: size_bytes.and_then(|size| image.content.cut_off(size)),
            packed_bytes: packed_bytes.filter(|_| size_bytes.is_none()),
            size_bytes,
            path: image.subject,
            kind: match image.content.is_empty() && !image.reader.is_as_it_is() {
                true => NO_IMAGE,
                false => "image",
            },
            format: Some(image.reader.format()),
            artifact: image.artifact,
            content: image.content,
            ..Facts::default()
        });
    }
    let system = System::look()?;
    let source = system.resolve_as(name, Means::Bytes)?;
    let kind = kind_of(path, &source);
    let around = Around::look(&system);
    let mut found = facts(&system, &around, source, path, Depth::All)?;
    found.kind = match kind {
        "image" if found.content.is_empty() => NO_IMAGE,
        kind => kind,
    };
    if found.kind == NO_IMAGE && partfile::first_of(path).is_some() {
        // It says which piece to name.
        Image::look(name, Any::No)?;
    }
    if kind != "image" && (found.can_freeze() || !found.parts.is_empty()) {
        found.trace = Some(around.untraced);
    }
    Ok(found)
}

fn facts(
    system: &System,
    around: &Around,
    source: Source,
    path: &Path,
    depth: Depth,
) -> Result<Facts> {
    let fail = |fault| Error::fault(source.shown.display(), fault);
    let device = &source.device;
    let content = Content::probe(device).map_err(fail)?;
    let mut first = [0u8; LOOK_BYTES];
    let length = device.size_bytes().min(to_u64(LOOK_BYTES));
    let first = first.get_mut(..to_usize(length)).unwrap_or_default();
    let is_file = source.dev.is_none();
    device.read_at(0, first).map_err(fail)?;
    let standby = around.standby.iter();
    let mut standby = standby.filter(|(dev, _)| Some(*dev) == source.dev);
    let mut facts = Facts {
        path: path.display().to_string(),
        kind: "device",
        format: is_file.then_some(Format::Raw),
        device: source.dev.map(|_| source.shown.display().to_string()),
        size_bytes: Some(device.size_bytes()),
        used_bytes: content.identity.as_ref().and_then(|found| found.used_bytes),
        foreign: foreign(first).filter(|_| is_file && content.is_empty()),
        standby_of: standby.next().map(|(_, source)| source.clone()),
        error: is_file
            .then(|| content.cut_off(device.size_bytes()))
            .flatten(),
        ..Facts::default()
    };
    let still = held_by(&mut facts, around, &source.holding);
    if let Some(identity) = content.identity.as_ref().filter(|_| still != Still::Moving) {
        facts.dump = would_read(system, &source, identity, still, depth).map_err(fail)?;
    }
    facts.refused = source::refusal(device, is_file).map_err(fail)?;
    if facts.error.is_some() {
        facts.refused = None;
    }
    facts.beside = source::beside(system, &source).map(|found| found.why.to_string());
    if let Some(table) = &content.table {
        let size_bytes = device.size_bytes();
        let gaps = table.gaps(size_bytes);
        facts.parts = parts(system, around, source, table, depth);
        let mut refused = facts.parts.iter();
        let refused =
            refused.find_map(|part| Some(part_refused(&part.path, part.refused.as_ref()?)));
        facts.refused = facts.refused.or(refused);
        facts.dump = Some(of_disk(&facts.parts, &gaps));
        // Nothing is believed of where its partitions lie.
        if let (Some(sum), Some(doubt)) = (&mut facts.dump, table.doubt) {
            sum.bytes = size_bytes;
            (sum.map, sum.doubt) = (Coverage::Whole.name(), Some(doubt.to_string()));
        }
    }
    facts.content = content;
    Ok(facts)
}

/// Why its disk is refused with a partition.
fn part_refused(path: &str, why: &str) -> String {
    match words::says_of_what(why) {
        true => format!("its {path}: {why}"),
        false => format!("its {path} {why}"),
    }
}

/// Where it is mounted, and how still what is read of it just now is.
fn held_by(facts: &mut Facts, around: &Around, holding: &Holding) -> Still {
    match holding {
        Holding::Mounted(mounted) => {
            let points = mounted.mounts.iter().map(|mount| &mount.point);
            facts.mounted_at = points.map(|point| point.display().to_string()).collect();
            facts.guarded = around.guarded.contains(&mounted.mount.dev.raw());
            if can_freeze(&mounted.mount.filesystem) {
                facts.frozen = asked::is_frozen(mounted.fd.as_fd());
            }
            Still::Glimpse
        }
        Holding::Stacked(above) => {
            let points = above.mounted.iter().flat_map(|mounted| &mounted.mounts);
            facts.mounted_at = points.map(|m| m.point.display().to_string()).collect();
            Still::Moving
        }
        Holding::Unmounted | Holding::ImageFile => Still::Unmounted,
    }
}

/// What a dump of its filesystem would read.
fn would_read(
    system: &System,
    source: &Source,
    identity: &Identity,
    still: Still,
    depth: Depth,
) -> std::result::Result<Option<Glimpse>, Fault> {
    let device = &source.device;
    let whole = Extent::at(0, device.size_bytes());
    let mounted = match &source.holding {
        Holding::Mounted(mounted) => Some(mounted),
        _ => None,
    };
    let is_written = source::is_looped(system, source.dev.iter());
    let found = depth.behind(device, identity.size_bytes, is_written)?;
    let behind = found.as_deref().map_or(Behind::Unknown, Behind::Found);
    glimpse::look(device, whole, identity, still, mounted, behind)
}

/// The partitions of a disk: as the kernel has them, or of an image as its table says.
fn parts(
    system: &System,
    around: &Around,
    source: Source,
    table: &PartitionTable,
    depth: Depth,
) -> Vec<Facts> {
    let known = source.dev.map(|dev| system.roots().partitions_of(dev));
    let mut known = known.unwrap_or_default();
    // The beginning of an extended partition has a node, too (block/partitions/msdos.c); what is in it are the logical ones.
    known.retain(|node| {
        let mut listed = table.partitions.iter();
        table.scheme != Scheme::Mbr
            || node.number > 4
            || listed.any(|part| part.number == node.number)
    });
    if !known.is_empty() {
        // Held O_EXCL, the disk keeps everybody from holding a partition, us too (bd_prepare_to_claim, block/bdev.c).
        drop(source);
        let known = known.iter();
        return known
            .map(|part| one(system, around, part.dev, depth))
            .collect();
    }
    let is_written = source::is_looped(system, source.dev.iter());
    let within = |part: &ptable::Partition| {
        let range = Range {
            device: &source.device,
            extent: part.extent,
        };
        let mut facts = stated(part);
        let content = Content::probe(&range).and_then(|content| {
            if let Some(identity) = &content.identity {
                let found = depth.behind(&range, identity.size_bytes, is_written)?;
                let behind = found.as_deref().map_or(Behind::Unknown, Behind::Found);
                facts.dump = glimpse::walk(&range, identity, Still::Unmounted, behind)?;
                facts.refused = content.cut_off(range.size_bytes());
            }
            Ok(content)
        });
        match content {
            Ok(content) => facts.content = content,
            Err(fault) => facts.error = Some(fault.to_string()),
        }
        facts
    };
    table.partitions.iter().map(within).collect()
}

/// A partition of an image, as the table says.
fn stated(part: &ptable::Partition) -> Facts {
    Facts {
        path: format!("partition {}", part.number),
        kind: "image",
        size_bytes: Some(part.extent.length_bytes),
        ..Facts::default()
    }
}

/// Of a disk, everything that is not known to be free.
fn of_disk(parts: &[Facts], gaps: &[Extent]) -> Glimpse {
    let mut sum = Glimpse {
        bytes: gaps.iter().map(|gap| gap.length_bytes).sum(),
        map: Coverage::Used.name(),
        doubt: None,
        lasts: false,
        behind: None,
        at_least: false,
    };
    if parts.iter().all(|part| part.dump.is_none()) {
        sum.map = Coverage::Whole.name();
    }
    for part in parts {
        let whole = part.size_bytes.unwrap_or(0);
        let dump = part.dump.as_ref();
        let bytes = dump.map_or(whole, |dump| dump.bytes);
        sum.bytes = sum.bytes.saturating_add(bytes);
        if let Some(dump) = dump {
            sum.doubt = sum.doubt.or_else(|| dump.doubt.clone());
            sum.behind = sum.behind.or(dump.behind);
            sum.at_least |= dump.at_least;
        }
        sum.map = match dump.map_or(Coverage::Whole.name(), |dump| dump.map) {
            "used" => sum.map,
            _ if sum.map == Coverage::Whole.name() => sum.map,
            "estimate" if sum.map != Coverage::Partial.name() => "estimate",
            _ => Coverage::Partial.name(),
        };
    }
    sum
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
        .and_then(|mut file| limited(&mut file, to_u64(LOOK_BYTES)).read_to_end(&mut first))
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

impl Facts {
    /// What a file is not, or not wholly: the answer of `show`, too, is one that a script can tell from an image.
    fn no_image(&self) -> Option<Error> {
        let why = match (self.kind, &self.error, self.foreign) {
            (NO_IMAGE, _, Some(what)) => format!("is {what}"),
            (NO_IMAGE, _, None) => {
                "shows no filesystem and no partition table that is known".into()
            }
            ("image", Some(why), _) => why.clone(),
            _ => return None,
        };
        Some(Error::corrupt(format_args!("{}: {why}", self.path)))
    }

    /// Of the device or image; of a packed one what its head says.
    fn whole_bytes(&self) -> Option<u64> {
        let least = self.content.least_bytes();
        self.size_bytes.or((least > 0).then_some(least))
    }

    /// Whether anything is known of the end: of an image in a file, where it is looked at only as far as that costs nothing.
    fn end_checked(&self) -> Option<bool> {
        self.format.map(|_| self.error.is_some())
    }

    /// What is wrong with the partition table.
    fn table_doubt(&self) -> Option<Fault> {
        let doubt = self.content.table.as_ref().and_then(|table| table.doubt);
        self.content.damaged.or(doubt)
    }

    /// Whether the kernel can freeze it when it is mounted.
    fn can_freeze(&self) -> bool {
        let identity = self.content.identity.as_ref();
        identity.is_some_and(|found| can_freeze(found.kind.name()))
    }

    /// What a dump reads; where nothing was walked, what the superblock says.
    fn used(&self) -> Option<u64> {
        self.dump
            .as_ref()
            .map(|dump| dump.bytes)
            .or(self.used_bytes)
    }
}
