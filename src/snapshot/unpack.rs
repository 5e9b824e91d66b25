//! `floe restore` of a snapshot: named entries onto their targets, or everything onto an empty disk with the recorded table.
//!
//! Order: what the snapshot says of itself is judged; every target is checked and held; of a file all checksums are checked
//! without unpacking; only then the first byte is written. From a pipe an entry's CRC is known before its superblock is
//! written, the rest only at the end.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::config::pairs::split_pair;
use crate::device::{Device, DeviceKind};
use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};
use crate::mounts::DevId;
use crate::put::figures::{self, Done};
use crate::put::free::LeftAlone;
use crate::put::grow;
use crate::put::image::{Any, Content, Image, Opened};
use crate::put::job::{Filled, Job, Shared};
use crate::put::options::{self, Options};
use crate::put::phase::{Phase, again};
use crate::put::supervise::{Watch, supervise};
use crate::put::target::{self, Chosen, Overwrite, check_sectors};
use crate::report::JsonObject;
use crate::report::{self, Bytes, Span};
use crate::snapshot::archive::{Bundle, Catalog};
use crate::snapshot::machine::Host;
use crate::snapshot::relaid::{self, Laid};
use crate::snapshot::{self, BOOT, Checksums, Snapshot, TABLE, image_path};
use crate::stream::copy::Progress;
use crate::stream::image::ImageReader;
use crate::stream::input::{Input, Supply};
use crate::stream::target::Target;
use crate::threads::Lock;
use crate::units::Extent;

/// Where the entries come from.
enum Origin {
    /// A file, all of it checked beforehand.
    File(Box<Catalog>),
    /// A pipe, read once.
    Pipe(Arc<Lock<Bundle>>),
}

/// One entry and where it goes.
struct Errand {
    name: String,
    path: String,
    size_bytes: u64,
    /// What messages call the target.
    shown: String,
    device: Device,
    /// The partition's place on a disk that is laid anew.
    range: Option<Extent>,
    left: Option<LeftAlone>,
    only_changes: bool,
    /// The device to grow on afterwards.
    grow: Option<(PathBuf, DevId)>,
    shared: Arc<Shared>,
}

/// An entry that was written: its name, its filesystem, and the figures.
pub(crate) type Restored = (String, &'static str, Done);

/// A place on a disk that is laid out anew, for an entry.
pub(crate) struct EntryTarget {
    /// The entry's name.
    pub name: String,
    /// What messages call it.
    pub shown: String,
    /// The disk.
    pub device: Device,
    /// Where on it.
    pub range: Extent,
}

/// Runs the verb for an archive. Entries with a place go there, besides those that the options name. The report is written
/// where the options ask for one. `watch` is dropped before the first write.
pub(crate) fn run(
    options: &Options,
    opened: Opened,
    watch: Watch,
    places: Vec<EntryTarget>,
    start: Instant,
) -> Result<Vec<Restored>> {
    let nothing = |error: Error| error.leaving(NOTHING_WRITTEN);
    let file = opened.file.try_clone();
    let file = file.map_err(|e| Error::failed(format_args!("{}: dup: {e}", opened.subject)))?;
    let has_come = opened.has_come;
    let origin = origin(opened).map_err(nothing)?;
    let (subject, found) = match &origin {
        Origin::File(catalog) => (catalog.subject.clone(), catalog.snapshot.clone()),
        Origin::Pipe(bundle) => {
            let bundle = bundle.lock();
            (bundle.subject.clone(), bundle.snapshot.clone())
        }
    };
    let pairs = pairs(options, &subject, &found)?;
    let progress = Arc::new(Progress::default());
    let disk = match &options.disk {
        Some(name) => Some(Disk::choose(name, options, &subject, &found, &file)?),
        None => None,
    };
    let chosen = choose(options, &pairs, &found, &file)?;
    let input_length = check_bytes(
        &origin,
        &found,
        &pairs,
        disk.is_some(),
        &mut report::Progress::new(&options.common),
    )
    .map_err(nothing)?;
    if let Origin::File(catalog) = &origin {
        for (name, target) in &chosen {
            target.check_sectors(&content_of(catalog, name, &file)?)?;
        }
    }
    if input_length.is_none() && !has_come && !options.common.quiet {
        report::line(format_args!(
            "{subject}: comes through a pipe: that all of it is right is known only at its end; until then no target shows a filesystem"
        ));
    }
    if options.dry_run {
        return Err(would(options, &found, chosen, disk, &origin)?);
    }
    let (errands, laid) = errands(options, chosen, (disk, places), &origin, &found, &progress)?;
    let states = states_of(&errands, laid.as_ref());
    let verify = options.verify;
    let name = subject.clone();
    drop(watch);
    let work = move || unpack(origin, errands, laid, verify, (&name, &file));
    let (done, notes) = supervise(
        &options.common,
        &progress,
        &|| states.interrupted(options.overwrite),
        &subject,
        input_length,
        work,
    )
    .map_err(|error| states.explain(error, options.common.quiet))?;
    finish(options, &subject, (&done, &notes), start)?;
    Ok(done)
}

/// `--dry-run`: the last checks, and what would be done.
fn would(
    options: &Options,
    found: &Snapshot,
    chosen: Vec<(String, Chosen)>,
    disk: Option<Disk>,
    origin: &Origin,
) -> Result<Error> {
    let mut lines = Vec::new();
    for (name, target) in &chosen {
        let (shown, dev) = target.named();
        let Some(image) = found.image(name) else {
            continue;
        };
        if options.grow {
            grow::check(shown, dev, &image.filesystem, &image.uuid)?;
        }
        lines.push(format!(
            "{}: {}would be written with {name} ({}, {})",
            shown.display(),
            target.holds()?.map_or(String::new(), |holds| holds + ", "),
            image.filesystem,
            report::Bytes(image.size_bytes)
        ));
    }
    if let Some(disk) = disk {
        lines.extend(disk.would(found, &chosen, origin)?);
    }
    let mut object = JsonObject::new();
    object
        .bool("dry_run", true)
        .raw("would", &report::json_list(&lines));
    report::write(&object)?;
    Ok(report::dry(&options.common, lines))
}

fn origin(opened: Opened) -> Result<Origin> {
    let regular = opened.file.metadata().is_ok_and(|meta| meta.is_file());
    if regular && opened.input.length_bytes().is_some() {
        let fd = rustix::io::fcntl_dupfd_cloexec(&opened.file, 3)
            .map_err(|e| Error::fault(&opened.subject, Fault::io("dup", e)))?;
        let device = Device::from_fd(fd, false).map_err(|f| Error::fault(&opened.subject, f))?;
        return Ok(Origin::File(Box::new(Catalog::read(
            &opened.subject,
            device,
        )?)));
    }
    let bundle = Bundle::open(&opened.subject, opened.input)?;
    Ok(Origin::Pipe(Arc::new(Lock::new(bundle))))
}

/// A snapshot of another kind of machine hardly runs here.
pub(crate) fn check_machine(subject: &str, snapshot: &Snapshot, here: &Host) -> Result<()> {
    for (what, theirs, ours) in [
        ("architecture", &snapshot.architecture, &here.architecture),
        ("board model", &snapshot.board, &here.board),
    ] {
        if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
            return Err(Error::refused(format_args!(
                "{subject}: is of another {what}: {theirs}, here it is {ours}; --force restores it all the same"
            )));
        }
    }
    Ok(())
}

/// The targets of what has come up to its images: what [`run`] finds out first.
pub(crate) fn targets(
    options: &Options,
    subject: &str,
    snapshot: &Snapshot,
    file: &std::fs::File,
) -> Result<Vec<(String, Chosen)>> {
    choose(options, &pairs(options, subject, snapshot)?, snapshot, file)
}

/// The NAME=TARGET of the command line, for a snapshot of this kind of machine.
fn pairs(options: &Options, subject: &str, snapshot: &Snapshot) -> Result<Vec<(String, OsString)>> {
    if !options.force {
        check_machine(subject, snapshot, &Host::look())?;
    }
    let names: Vec<&str> = snapshot.images.iter().map(|i| i.name.as_str()).collect();
    let names = names.join(", ");
    let mut pairs: Vec<(String, OsString)> = Vec::new();
    for value in &options.targets {
        let pair = split_pair(value).ok_or_else(|| {
            Error::usage(format_args!(
                "restore: {subject} is a snapshot of {names}: '{}' is not NAME=TARGET",
                value.display()
            ))
        })?;
        if pairs.iter().any(|(name, _)| *name == pair.0) {
            return Err(Error::usage(format_args!(
                "restore: '{}' is named twice",
                pair.0
            )));
        }
        if snapshot.image(&pair.0).is_none() {
            return Err(Error::refused(format_args!(
                "{subject}: has no entry '{}'; it has {names}",
                pair.0
            )));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Checks and holds every target.
fn choose(
    options: &Options,
    pairs: &[(String, OsString)],
    snapshot: &Snapshot,
    file: &std::fs::File,
) -> Result<Vec<(String, Chosen)>> {
    let targets = pairs.iter().map(|(_, target)| target.as_os_str());
    target::check_distinct(targets.chain(options.disk.as_deref()))?;
    let mut chosen = Vec::new();
    for (name, target) in pairs {
        let found = Chosen::find(target, file)?;
        found.check_size(snapshot.image(name).map_or(0, |image| image.size_bytes))?;
        found.check_content(options.overwrite)?;
        chosen.push((name.clone(), found));
    }
    Ok(chosen)
}

/// Of a file: the checksums of what will be written; gives the bytes there are to read, `None` for a pipe.
fn check_bytes(
    origin: &Origin,
    snapshot: &Snapshot,
    pairs: &[(String, OsString)],
    everything: bool,
    line: &mut report::Progress,
) -> Result<Option<u64>> {
    let Origin::File(catalog) = origin else {
        return Ok(None);
    };
    let mut bytes = 0u64;
    for path in snapshot.paths() {
        let Some(checksum) = catalog.checksums.find(&path) else {
            continue;
        };
        let name = snapshot::image_name(&path);
        if everything || name.is_none_or(|name| pairs.iter().any(|(wanted, _)| wanted == name)) {
            catalog.check_bytes(&path, line)?;
            bytes = bytes.saturating_add(checksum.size_bytes);
        }
    }
    Ok(Some(bytes))
}

/// What an entry of a file begins with.
fn content_of(catalog: &Catalog, name: &str, file: &std::fs::File) -> Result<Content> {
    let path = image_path(name);
    let subject = format!("{}: {path}", catalog.subject);
    let fail = |fault| Error::fault(&subject, fault);
    let reader = Input::source(catalog.reader(&path)?).and_then(ImageReader::raw);
    let reader = reader.map_err(fail)?;
    let file = file.try_clone();
    let file = file.map_err(|e| Error::failed(format_args!("{subject}: dup: {e}")))?;
    Ok(Image::head_of(subject.clone(), file, reader, Any::Yes)?.content)
}

/// An empty disk that gets the recorded table.
struct Disk {
    chosen: Chosen,
    facts: snapshot::Disk,
}

impl Disk {
    fn choose(
        name: &std::ffi::OsStr,
        options: &Options,
        subject: &str,
        found: &Snapshot,
        file: &std::fs::File,
    ) -> Result<Self> {
        let facts = found.disk.clone().ok_or_else(|| {
            Error::refused(format_args!(
                "{subject}: holds no partition table (create --disk keeps one)"
            ))
        })?;
        let chosen = Chosen::find(name, file)?;
        chosen.check_size(facts.size_bytes)?;
        chosen.check_content(options.overwrite)?;
        Ok(Self { chosen, facts })
    }

    /// What would happen to the table and to each partition; makes nothing, not even a file that is to be the disk.
    fn would(
        &self,
        found: &Snapshot,
        chosen: &[(String, Chosen)],
        origin: &Origin,
    ) -> Result<Vec<String>> {
        let shown = self.chosen.named().0.display();
        let (table, _) = self.bytes(origin)?;
        let sector = u32::try_from(self.facts.sector_bytes).unwrap_or(0);
        let table = relaid::recorded(&table, sector)?;
        let mut filled = Vec::new();
        for image in &found.images {
            if chosen.iter().all(|(name, _)| *name != image.name) {
                filled.push((relaid::place_of(&table, image)?, image));
            }
        }
        let mut lines = vec![format!(
            "{shown}: {}would get the recorded partition table ({}, {}), and everything else on it would be gone",
            self.chosen
                .holds()?
                .map_or(String::new(), |holds| holds + ", "),
            table.scheme.name(),
            match table.partitions.len() {
                1 => "1 partition".into(),
                count => format!("{count} partitions"),
            }
        )];
        lines.extend(table.partitions.iter().map(|partition| {
            let image = filled.iter().find(|(place, _)| *place == partition.extent);
            let what = image.map_or("be left empty".into(), |(_, image)| {
                format!(
                    "be written with {} ({}, {})",
                    image.name,
                    image.filesystem,
                    report::Bytes(image.size_bytes)
                )
            });
            format!("{shown} partition {}: would {what}", partition.number)
        }));
        Ok(lines)
    }

    /// Reads the recorded table and boot area, and opens the disk.
    fn open(self, origin: &Origin) -> Result<Laid> {
        let (table, boot) = self.bytes(origin)?;
        let laid = Laid::new(self.chosen, self.facts, table, boot);
        laid.map_err(|error| error.leaving(NOTHING_WRITTEN))
    }

    /// The recorded table and boot area.
    fn bytes(&self, origin: &Origin) -> Result<(Vec<u8>, Vec<u8>)> {
        let nothing = |error: Error| error.leaving(NOTHING_WRITTEN);
        Ok(match origin {
            Origin::File(catalog) => {
                let bytes = |path, length| match length {
                    0 => Ok(Vec::new()),
                    _ => catalog.bytes(path),
                };
                (
                    bytes(TABLE, self.facts.table_bytes).map_err(nothing)?,
                    bytes(BOOT, self.facts.boot_bytes).map_err(nothing)?,
                )
            }
            Origin::Pipe(bundle) => {
                let mut bundle = bundle.lock();
                let table = bundle
                    .small(TABLE, self.facts.table_bytes)
                    .map_err(nothing)?;
                let boot = bundle.small(BOOT, self.facts.boot_bytes).map_err(nothing)?;
                (table, boot)
            }
        })
    }
}

/// From the checked targets to what has to be done, in the order of the archive; files that are not there yet are made.
fn errands(
    options: &Options,
    chosen: Vec<(String, Chosen)>,
    (disk, mut places): (Option<Disk>, Vec<EntryTarget>),
    origin: &Origin,
    snapshot: &Snapshot,
    progress: &Arc<Progress>,
) -> Result<(Vec<Errand>, Option<Laid>)> {
    let laid = disk.map(|disk| disk.open(origin)).transpose()?;
    let mut chosen: Vec<(String, Option<Chosen>)> = chosen
        .into_iter()
        .map(|(name, chosen)| (name, Some(chosen)))
        .collect();
    let mut errands = Vec::new();
    for image in &snapshot.images {
        let own = chosen.iter_mut().find(|(name, _)| *name == image.name);
        let own = own.and_then(|(_, chosen)| chosen.take());
        let grown = match &own {
            Some(own) if options.grow => {
                let (shown, dev) = own.named();
                Some(grow::check(shown, dev, &image.filesystem, &image.uuid)?)
            }
            _ => None,
        };
        let place = places.iter().position(|place| place.name == image.name);
        let place = place.map(|at| places.swap_remove(at));
        let is_placed = place.is_some();
        let (path, device, range) = match (place, own, &laid) {
            (Some(place), _, _) => (place.shown.into(), place.device, Some(place.range)),
            (None, Some(own), _) => {
                let (path, device) = own.into_device()?;
                (path, device, None)
            }
            (None, None, Some(laid)) => {
                let (device, range) = laid.partition(image)?;
                (laid.path.clone(), device, Some(range))
            }
            (None, None, None) => continue,
        };
        let left = match range {
            None => options::left_alone(options, &path, &device)?,
            Some(_) => None,
        };
        let shown = path.display().to_string();
        errands.push(Errand {
            name: image.name.clone(),
            path: image_path(&image.name),
            size_bytes: image.size_bytes,
            shown: match range {
                None => shown,
                Some(_) if is_placed => shown,
                Some(_) => format!("{shown} partition {}", image.partition_number),
            },
            device,
            range,
            left,
            only_changes: options.only_changes,
            grow: grown.map(|dev| (path.clone(), dev)),
            shared: Arc::new(Shared {
                progress: Arc::clone(progress),
                phase: Phase::default(),
            }),
        });
    }
    Ok((errands, laid))
}

/// The state of every target, and of a disk that is laid anew, for messages.
struct States {
    targets: Vec<(String, Arc<Shared>)>,
    disk: Option<(String, Arc<Phase>)>,
}

fn states_of(errands: &[Errand], laid: Option<&Laid>) -> States {
    let target = |errand: &Errand| (errand.shown.clone(), Arc::clone(&errand.shared));
    States {
        targets: errands.iter().map(target).collect(),
        disk: laid.map(|laid| (laid.path.display().to_string(), Arc::clone(&laid.phase))),
    }
}

impl States {
    fn text(&self) -> String {
        let words = |(shown, shared): &(String, Arc<Shared>)| match shared.phase.get() {
            Phase::UNTOUCHED => format!("{shown}: not touched"),
            Phase::COMPLETE => format!("{shown}: complete"),
            _ => format!("{shown}: {}", shared.phase.state()),
        };
        let mut all: Vec<String> = self.targets.iter().map(words).collect();
        if let Some((shown, phase)) = &self.disk {
            all.push(match phase.get() {
                Phase::UNTOUCHED => format!("{shown}: not touched"),
                Phase::COMPLETE => format!("{shown}: its partition table is complete"),
                _ => format!("{shown}: has no partition table yet, and is not usable"),
            });
        }
        all.join("; ")
    }

    /// The same after an interruption, and what helps.
    fn interrupted(&self, overwrite: Overwrite) -> String {
        let targets = self.targets.iter();
        let targets = targets.map(|(shown, shared)| (shown, shared.phase.get()));
        let disk = self.disk.iter().map(|(shown, phase)| (shown, phase.get()));
        let all: Vec<(&String, u8)> = targets.chain(disk).collect();
        let is_begun = |(_, phase): &(_, u8)| matches!(*phase, Phase::WRITING | Phase::LAST);
        if !all.iter().any(is_begun) {
            return self.text();
        }
        let holds = |(shown, phase): &(&String, u8)| match *phase {
            Phase::UNTOUCHED => false,
            Phase::COMPLETE => true,
            _ => std::path::Path::new(shown).is_file(),
        };
        let again = again(overwrite, || all.iter().any(holds));
        format!("{}; {again}", self.text())
    }

    /// After the first write a refusal is 1; and the state of the other targets is told too.
    fn explain(&self, error: Error, quiet: bool) -> Error {
        let begun = |phase: &Phase| phase.get() != Phase::UNTOUCHED;
        let touched = self.targets.iter().any(|(_, shared)| begun(&shared.phase))
            || self.disk.as_ref().is_some_and(|(_, phase)| begun(phase));
        if self.targets.len() + usize::from(self.disk.is_some()) > 1
            && touched
            && !quiet
            && !error.is_signal()
        {
            report::line(self.text());
        }
        if touched { error.begun("") } else { error }
    }
}

/// The working thread: every entry in the order of the archive.
fn unpack(
    origin: Origin,
    errands: Vec<Errand>,
    mut laid: Option<Laid>,
    verify: bool,
    (subject, file): (&str, &std::fs::File),
) -> Result<(Vec<Restored>, Vec<String>)> {
    if let Some(laid) = &mut laid {
        laid.wipe(errands.iter().filter_map(|errand| errand.range).collect())?;
    }
    let (mut filled, mut done) = (Vec::new(), Vec::new());
    for errand in errands {
        let reader: Box<dyn Supply> = match &origin {
            Origin::File(catalog) => catalog.reader(&errand.path)?,
            Origin::Pipe(bundle) => {
                advance(bundle, &errand.path)?;
                Box::new(PipeReader(Arc::clone(bundle)))
            }
        };
        let name = errand.name.clone();
        let grow = errand.grow.clone();
        let (filesystem, one) = one(errand, reader, verify, (subject, file))?;
        filled.push((name, filesystem, one, grow));
        // What comes from a file was checked before the first write.
        if matches!(origin, Origin::File(_)) {
            complete(&mut filled, &mut done, &origin)?;
        }
    }
    if let Origin::Pipe(bundle) = &origin {
        let mut bundle = bundle.lock();
        let mut rest = Ok(Some(String::new()));
        while matches!(rest, Ok(Some(_))) {
            rest = bundle.next();
        }
        rest.map_err(|e| e.leaving("the targets are not usable: their beginnings are zeroed"))?;
    }
    complete(&mut filled, &mut done, &origin)?;
    let mut notes = Vec::new();
    if let Some(laid) = laid {
        // They are the disk's, and not of an entry.
        let shown = laid.path.display().to_string();
        let said = laid.finish()?.into_iter();
        notes.extend(said.map(|note| format!("{shown}: {note}")));
    }
    Ok((done, notes))
}

/// An entry whose target waits for its beginning: its name, its filesystem, the target, and what is grown then.
type Waiting = (String, &'static str, Filled, Option<(PathBuf, DevId)>);

/// Writes the beginnings: from now on they are whole.
fn complete(filled: &mut Vec<Waiting>, done: &mut Vec<Restored>, origin: &Origin) -> Result<()> {
    for (name, filesystem, one, grow) in filled.drain(..) {
        let mut one = one.finish()?;
        // What was read of the archive, and not what came out of it.
        one.ended.input_bytes = origin.stored_bytes(&image_path(&name));
        if let Some((path, dev)) = grow {
            one.notes.push(grow::grow(&path, dev)?);
        }
        done.push((name, filesystem, one));
    }
    Ok(())
}

impl Origin {
    /// Bytes of an entry in the archive, once its end was seen.
    fn stored_bytes(&self, path: &str) -> u64 {
        let of = |sums: &Checksums| sums.find(path).map_or(0, |sums| sums.stored_bytes);
        match self {
            Self::File(catalog) => of(&catalog.checksums),
            Self::Pipe(bundle) => of(&bundle.lock().checksums),
        }
    }
}

/// Skips to an entry.
fn advance(bundle: &Lock<Bundle>, path: &str) -> Result<()> {
    let mut bundle = bundle.lock();
    loop {
        match bundle.next()? {
            Some(next) if next == path => return Ok(()),
            Some(_) => {}
            None => {
                let fault = Fault::corrupt("is missing");
                return Err(crate::snapshot::archive::entry_error(
                    &bundle.subject,
                    path,
                    fault,
                ));
            }
        }
    }
}

struct PipeReader(Arc<Lock<Bundle>>);

impl Supply for PipeReader {
    fn supply(&mut self, out: &mut [u8]) -> std::result::Result<usize, Fault> {
        self.0.lock().read(out)
    }

    fn take_zeros(&mut self, unit: u64) -> u64 {
        let mut bundle = self.0.lock();
        bundle.take_zeros(unit)
    }
}

fn one(
    errand: Errand,
    reader: Box<dyn Supply>,
    verify: bool,
    (subject, file): (&str, &std::fs::File),
) -> Result<(&'static str, Filled)> {
    let fail = |fault| Error::fault(&errand.shown, fault);
    let subject = format!("{subject}: {}", errand.path);
    let file = file
        .try_clone()
        .map_err(|e| Error::failed(format_args!("{subject}: dup: {e}")))?;
    let input = Input::source(reader).map_err(fail)?;
    let reader = ImageReader::raw(input).map_err(fail)?;
    // That an entry is whole its checksums say; what is in it was for `create` to judge.
    let image = Image::head_of(subject, file, reader, Any::Yes)?;
    let (facts, reader) = image.into_parts();
    if errand.size_bytes < facts.content.least_bytes() {
        return Err(Error::corrupt(format_args!(
            "{}: has {} bytes, but what is in it says {}",
            facts.subject,
            errand.size_bytes,
            facts.content.least_bytes()
        )));
    }
    if errand.device.kind() == DeviceKind::Block {
        let sector_bytes = errand.device.sector_bytes();
        check_sectors(errand.shown.as_ref(), sector_bytes, &facts.content)?;
    }
    let filesystem = facts.content.name();
    let target = match errand.range {
        Some(range) => Target::within(errand.device, range),
        None => Target::new(errand.device),
    }
    .map_err(fail)?;
    let job = Job {
        name: errand.shown.clone(),
        verify,
        only_changes: errand.only_changes,
        left: errand.left,
        fills: errand.range.is_some() || errand.grow.is_some(),
        facts,
        shared: errand.shared,
    };
    Ok((filesystem, job.fill(reader, target)?))
}

fn finish(
    options: &Options,
    subject: &str,
    (done, notes): (&[Restored], &[String]),
    start: Instant,
) -> Result<()> {
    let took = start.elapsed();
    if options.common.report.is_some() {
        let entries: Vec<String> = done
            .iter()
            .map(|(name, filesystem, done)| {
                let mut object = figures::figures(options, done, filesystem, took);
                object.str("name", name);
                object.finish()
            })
            .collect();
        let mut object = report::JsonObject::new();
        object
            .str("path", subject)
            .raw("entries", &format!("[{}]", entries.join(",")))
            .u64(
                "total_ms",
                u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            );
        report::write(&object)?;
    }
    if options.common.quiet {
        return Ok(());
    }
    for (_, filesystem, done) in done {
        figures::last_line(options, done, filesystem, took);
    }
    notes.iter().for_each(report::line);
    let names: Vec<&str> = done.iter().map(|(name, _, _)| name.as_str()).collect();
    let bytes = done.iter().fold(0u64, |sum, (_, _, done)| {
        sum.saturating_add(done.written_bytes)
    });
    report::line(format_args!(
        "{subject}: restored {}, {} written, in {}",
        names.join(" "),
        Bytes(bytes),
        Span(took)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_architecture_or_board_is_refused_and_what_is_not_known_is_not_compared() {
        let here = Host {
            architecture: "aarch64".into(),
            board: "Alpha Board".into(),
            ..Host::default()
        };
        for (architecture, board, wrong) in [
            ("aarch64", "Alpha Board", None),
            ("aarch64", "", None),
            ("", "Alpha Board", None),
            (
                "armv7l",
                "Alpha Board",
                Some("of another architecture: armv7l, here it is aarch64"),
            ),
            (
                "aarch64",
                "Beta Board",
                Some("of another board model: Beta Board, here it is Alpha Board"),
            ),
        ] {
            let snapshot = Snapshot {
                architecture: architecture.into(),
                board: board.into(),
                ..Snapshot::default()
            };
            match (check_machine("x.zip", &snapshot, &here), wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(wrong)) => {
                    let line = error.to_string();
                    assert!(line.contains(wrong) && line.contains("--force"), "{line}");
                }
                (found, _) => panic!("{architecture} {board}: {found:?}"),
            }
            let nothing = Host::default();
            check_machine("x.zip", &snapshot, &nothing).unwrap();
        }
    }
}
