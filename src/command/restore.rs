//! `floe restore`: an image onto a device or into a file, or the entries of a snapshot onto theirs.

use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::cli::{self, Args, Item};
use crate::config::pairs::split_pair;
use crate::device::DeviceKind;
use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};
use crate::features;
use crate::mounts::{DevId, is_tag};
use crate::put::figures::{figures, last_line};
use crate::put::grow;
use crate::put::job::{Job, RunState};
use crate::put::options::{Options, left_alone};
use crate::put::phase::{Phase, again};
use crate::put::room::{self, Need};
use crate::put::supervise::{CHECKING, SignalWatch, supervise};
use crate::put::target::{Chosen, Overwrite};
use crate::report::{self, JsonObject, Progress};
use crate::snapshot::{MAX_IMAGES, Snapshot, archive, framed, image_path, kept, unpack};
use crate::stream::frames::StreamHeader;
use crate::stream::frames::known::KnownHere;
use crate::stream::image::Format;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::probed::Image;
use crate::stream::image::whole::{Any, image_is_empty};
use crate::stream::target::Target;
use crate::threads;
use crate::units::to_u64;

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    let mut image = None;
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if image.is_none() => image = Some(value),
            Item::Value(value) if options.targets.len() < MAX_IMAGES => options.targets.push(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name {
                "--overwrite" => options.overwrite = Overwrite::Allowed,
                "--verify" => options.verify = true,
                "--skip-free" => options.skip_free = true,
                "--only-changes" => options.only_changes = true,
                "--frames-known" => (options.only_changes, options.tells) = (true, true),
                "--force" => options.force = true,
                "--any-content" => options.any = Any::Yes,
                "--no-check" => options.unchecked = true,
                "--grow" => options.grow = true,
                "--dry-run" => options.dry_run = true,
                "--disk" => options.disk = Some(args.value()?),
                "--bmap" => options.bmap = Some(args.path()?),
                "--length" => options.length_bytes = Some(args.parsed(cli::number, "a number")?),
                _ => return Err(args.unknown(name)),
            },
        }
    }
    if options.grow && options.disk.is_some() {
        return Err(Error::usage(
            "restore: --grow and --disk do not go together: the recorded partitions have the recorded sizes",
        ));
    }
    if let (0, None, Some(image)) = (options.targets.len(), &options.disk, &image) {
        return Err(no_target(&args, image));
    }
    options.image = image.ok_or_else(|| args.missing_or_piped("the IMAGE", "restore - TARGET"))?;
    options.common = args.common;
    Ok(options)
}

/// What is missing where one name was given: of a snapshot the places of its entries; it may be a target, too, whose image comes
/// through a pipe.
fn no_target(args: &Args, image: &OsString) -> Error {
    let path = kept::path_of(image).unwrap_or_default();
    let found = archive::beginning(Path::new(&path), archive::open_file);
    if let Some(snapshot) = found.filter(|_| features::SNAPSHOTS) {
        let names: Vec<&str> = snapshot.images.iter().map(|i| i.name.as_str()).collect();
        let first = names.first().copied().unwrap_or("NAME");
        return cli::usage(
            "restore",
            format_args!(
                "{} is a snapshot of {}: say where each goes, as in {first}=/dev/mmcblk0p3, or all with --disk DEV, an empty disk",
                image.display(),
                names.join(", ")
            ),
        );
    }
    let piped = format!("restore - {}", image.display());
    args.missing_or_piped("the TARGET", &piped)
}

/// A device as IMAGE and an image file as TARGET are the wrong way round: writing would destroy the image.
fn check_order(options: &Options) -> Result<()> {
    let [target] = options.targets.as_slice() else {
        return Ok(());
    };
    let meta = |path: &OsString| std::fs::metadata(path).ok();
    let image = options.image.to_string_lossy();
    let is_device = match meta(&options.image) {
        Some(meta) => meta.file_type().is_block_device(),
        // NAME=DEVICE, or a device by its tag.
        None => image.contains('='),
    };
    let is_file = meta(target).is_some_and(|meta| meta.is_file() && meta.len() > 0);
    if !is_device || !is_file {
        return Ok(());
    }
    let Ok(opened) = OpenedImage::look(target) else {
        return Ok(());
    };
    let target = target.display();
    let (name, image) = match image.split_once('=') {
        Some((name, device)) if device.starts_with('/') => (name, device),
        _ => ("NAME", &*image),
    };
    if opened.format == Format::Zip {
        return Err(Error::refused(format_args!(
            "{target}: is a snapshot, and would be written over with what is on {image}; to write an entry of it: floe restore {target} {name}={image}"
        ))
        .leaving(NOTHING_WRITTEN));
    }
    if opened.format == Format::Raw && Image::read(opened, Any::No).is_err() {
        return Ok(());
    }
    Err(Error::refused(format_args!(
        "{target}: is an image, and would be written over with what is on {image}; to write the image: floe restore {target} {image}; to make an image of {image}: floe dump {image} -o FILE"
    ))
    .leaving(NOTHING_WRITTEN))
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    begin(&options)?;
    let watch = SignalWatch::start(options.image.display(), CHECKING)?;
    let image = kept::path_of(&options.image).map_err(untouched)?;
    let options = Options { image, ..options };
    check_order(&options)?;
    let near = match options.targets.as_slice() {
        [target] if split_pair(target).is_none() => Some(Path::new(target)),
        _ => None,
    };
    let tell = |subject: &str, header: &StreamHeader| known(&options, subject, header);
    let tell: Option<framed::Tell<'_>> = if options.tells { Some(&tell) } else { None };
    let common = &options.common;
    let proven = (!options.unchecked).then(|| threads::jobs(common.jobs));
    let mut opened =
        framed::open_known(&options.image, near, tell, common, proven).map_err(untouched)?;
    if features::SNAPSHOTS && opened.format == Format::Zip {
        if options.bmap.is_some() {
            return Err(Error::usage(
                "restore: --bmap is for one image, not for a snapshot",
            ));
        }
        return unpack::run(&options, opened, watch, Vec::new(), start).map(drop);
    }
    let target = the_target(&options, &mut opened)?.clone();
    let image = Image::read(opened, options.any).map_err(untouched)?;
    let checked = Checked::new(&options, &target, image)?;
    if options.dry_run {
        return Err(checked.would(&options, &target)?);
    }
    drop(watch);
    checked.write(&options, &target, start)
}

/// What the targets hold, once it is known that they may be written, and what comes has room there.
fn known(options: &Options, subject: &str, header: &StreamHeader) -> Result<KnownHere> {
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
    let stdin = stdin.map_err(|errno| Error::fault("stdin", Fault::io("dup", errno)))?;
    let stdin = stdin.into();
    let mut targets = Vec::new();
    if features::SNAPSHOTS && header.is_snapshot {
        let front = header.front.first().map(|text| text.bytes.as_slice());
        let found = Snapshot::from_json(front.unwrap_or_default());
        let found = found.map_err(|fault| Error::fault(subject, fault))?;
        for (name, chosen) in unpack::targets(options, subject, &found, &stdin)? {
            targets.push((image_path(&name), chosen.named().0.to_owned()));
        }
    } else if let ([target], [image]) = (options.targets.as_slice(), header.images.as_slice()) {
        let chosen = Chosen::find(target, &stdin)?;
        chosen.check_size(
            image
                .parts
                .iter()
                .fold(0, |sum, part| part.saturating_add(sum)),
        )?;
        chosen.check_content(options.overwrite)?;
        targets.push((image.path.clone(), chosen.named().0.to_owned()));
    }
    framed::targets_known(targets)
}

fn untouched(error: Error) -> Error {
    error.leaving(NOTHING_WRITTEN)
}

/// Looks at the words alone, and begins the report.
fn begin(options: &Options) -> Result<()> {
    let pair = |target: &OsString| split_pair(target).map_or(target.clone(), |(_, target)| target);
    let targets = options.targets.iter().map(pair);
    if targets
        .chain(options.disk.clone())
        .any(|target| target == "-")
    {
        return Err(Error::usage(
            "restore: '-' is no TARGET: the bytes of an image come from 'gzip -dc IMAGE', of an entry from 'unzip -p SNAPSHOT images/NAME.img'; a file of that name is ./-; see floe restore --help",
        ));
    }
    let typed = options.targets.iter();
    let pairs: Vec<_> = typed.clone().filter_map(|t| split_pair(t)).collect();
    if let [_, second, ..] = options.targets.as_slice()
        && pairs.len() < options.targets.len()
    {
        return Err(Error::usage(format_args!(
            "restore: unexpected argument '{}'; see floe restore --help",
            second.display()
        )));
    }
    let targets: Vec<&Path> = typed
        .map(Path::new)
        .chain(pairs.iter().map(|(_, target)| Path::new(target)))
        .collect();
    super::begin(
        &options.common,
        ("image", &options.image.display()),
        &targets,
    )
}

/// The one target of what is no snapshot.
fn the_target<'o>(options: &'o Options, opened: &mut OpenedImage) -> Result<&'o OsString> {
    // Whoever was to send a snapshot sent nothing: no fault of the command line.
    if opened.input.peek(1).is_ok_and(<[u8]>::is_empty) {
        return Err(image_is_empty(&opened.subject).leaving(NOTHING_WRITTEN));
    }
    let [target] = options.targets.as_slice() else {
        return Err(no_snapshot(opened));
    };
    if options.disk.is_some() || options.force {
        return Err(no_snapshot(opened));
    }
    if let Some((name, path)) = split_pair(target)
        && !Path::new(target).exists()
        && !is_tag(target)
    {
        return Err(Error::usage(format_args!(
            "restore: {} is no snapshot but a {} image, and has no entry '{name}': the TARGET is {} alone",
            opened.subject,
            opened.format.name(),
            path.display()
        )));
    }
    Ok(target)
}

fn no_snapshot(opened: &OpenedImage) -> Error {
    Error::usage(format_args!(
        "restore: {} is no snapshot but a {} image: one TARGET, and neither --disk nor --force",
        opened.subject,
        opened.format.name()
    ))
}

/// An image and a target that fit each other; nothing is written yet.
struct Checked {
    image: Image,
    chosen: Chosen,
    /// At least so much will be written.
    size_bytes: u64,
    /// The device whose filesystem will grow.
    grown: Option<DevId>,
    /// It may not fit.
    doubt: Option<String>,
}

impl Checked {
    /// Every check of the target, then the image to its end.
    fn new(options: &Options, target: &OsString, image: Image) -> Result<Self> {
        let chosen = Chosen::find(target, &image.file)?;
        let known = image.reader.length_bytes().or(image.come_bytes);
        let known = known.or(options.length_bytes);
        let least_bytes = image.content.least_bytes();
        let mut size_bytes = known.map_or(least_bytes, |known| known.max(least_bytes));
        chosen.check_size(size_bytes.max(to_u64(image.head().len())))?;
        chosen.check_content(options.overwrite)?;
        let content = &image.content;
        let grown = match options.grow {
            true => {
                let uuid = content.identity.as_ref().map_or("", |found| &found.uuid);
                let (shown, dev) = chosen.named();
                Some(grow::check(shown, dev, content.name(), uuid)?)
            }
            false => None,
        };
        chosen.check_sectors(content)?;
        let mut line = Progress::new(&options.common);
        let read = match options.unchecked {
            true => None,
            false => image
                .check_beforehand(&options.common, &mut line)
                .map_err(untouched)?,
        };
        // An image may be longer than what is in it says.
        if let Some(ended) = &read {
            size_bytes = size_bytes.max(ended.size_bytes);
            chosen.check_size(size_bytes)?;
        }
        let need = match (&read, image.reader.format()) {
            (Some(ended), _) => Need::counted(ended.data_bytes),
            (None, Format::Gzip) => {
                let packed = image.reader.input_length_bytes().unwrap_or(0);
                Need::packed(packed, size_bytes)
            }
            (None, _) => Need::packed(0, size_bytes),
        };
        let doubt = room::check(&chosen, need)?;
        if !options.unchecked
            && read.is_none()
            && image.come_bytes.is_none()
            && !options.common.quiet
        {
            let why = match image.reader.input_length_bytes() {
                Some(_) => "is a device, and is not read twice",
                None => "cannot be read twice",
            };
            report::line(format_args!(
                "{}: {why}: that all of it is right is known only at its end, after the target was written",
                image.subject
            ));
        }
        if let Some(path) = &options.bmap {
            image.check_bmap(path).map_err(untouched)?;
        }
        Ok(Self {
            image,
            chosen,
            size_bytes,
            grown,
            doubt,
        })
    }

    /// `--dry-run`.
    fn would(self, options: &Options, target: &OsString) -> Result<Error> {
        let (shown, content) = (self.chosen.named().0.display(), self.image.content.name());
        let would = format!(
            "{shown}: {}would be written with {} ({content}, {} at least)",
            self.chosen
                .holds()?
                .map_or(String::new(), |holds| holds + ", "),
            self.image.subject,
            report::Bytes(self.size_bytes)
        );
        let mut object = JsonObject::new();
        object
            .bool("dry_run", true)
            .str("target", &target.to_string_lossy())
            .str("filesystem", content)
            .u64("size_bytes", self.size_bytes);
        report::write(&object)?;
        Ok(report::dry(
            &options.common,
            self.doubt.into_iter().chain([would]),
        ))
    }

    fn write(self, options: &Options, target: &OsString, start: Instant) -> Result<()> {
        let (path, device, made) = self.chosen.into_parts()?;
        let left = left_alone(options, &path, &device)?;
        let is_file = device.kind() == DeviceKind::File;
        let input_length = self.image.reader.input_length_bytes();
        let least_bytes = self.image.content.least_bytes();
        let (head, reader) = self.image.into_parts();
        let filesystem = head.content.name();
        let shared = Arc::new(RunState::default());
        shared.phase.note_made(made.is_some());
        let job = Job {
            name: path.display().to_string(),
            verify: options.verify,
            only_changes: options.only_changes,
            left,
            fills: options.grow,
            is_part: false,
            image: head,
            shared: Arc::clone(&shared),
        };
        let name = job.name.clone();
        let state = || {
            let phase = &shared.phase;
            let holds = || is_file || Phase::shows(phase.get());
            phase.interrupted(again(options.overwrite, holds))
        };
        let work = move || {
            let target = Target::new(device).map_err(|fault| job.target_error(fault))?;
            job.run(reader, target)
        };
        let progress = &shared.progress;
        // Of a pipe the image says by itself how long it is at least.
        progress.total_bytes.store(least_bytes, Ordering::Relaxed);
        let done = supervise(&options.common, progress, &state, &name, input_length, work);
        made.into_iter().for_each(|made| made.settle(&shared.phase));
        let mut done = done?;
        if let Some(dev) = self.grown {
            done.notes.push(grow::grow(&path, dev)?);
        }
        let took = start.elapsed();
        let mut object = figures(options, &done, filesystem, took);
        object.str("target", &target.to_string_lossy());
        report::write(&object)?;
        if !options.common.quiet {
            last_line(options, &done, filesystem, took);
        }
        Ok(())
    }
}
