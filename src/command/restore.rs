//! `floe restore`: an image onto a device or into a file, or the entries of a snapshot onto theirs.

use std::sync::Arc;
use std::time::Instant;

use crate::cli::{Args, Item};
use crate::config::pairs::split_pair;
use crate::error::{Error, NOTHING_WRITTEN, Result};
use crate::put::grow;
use crate::put::image::{self, Image, Opened};
use crate::put::job::{self, Job, Options, Shared, figures, last_line, left_alone, supervise};
use crate::put::target::{Chosen, Overwrite};
use crate::report::ReportFile;
use crate::snapshot::{MAX_IMAGES, unpack};
use crate::stream::copy::Ended;
use crate::stream::image::Format;
use crate::stream::target::Target;
use crate::units::to_u64;

/// Reads the command line.
pub fn parse(mut args: Args) -> Result<Options> {
    let (mut image, mut targets) = (None, Vec::new());
    let (mut force, mut disk) = (false, None);
    let mut overwrite = Overwrite::Refused;
    let (mut verify, mut skip_free, mut grow) = (false, false, false);
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if image.is_none() => image = Some(value),
            Item::Value(value) if targets.len() < MAX_IMAGES => targets.push(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name {
                "--overwrite" => overwrite = Overwrite::Allowed,
                "--verify" => verify = true,
                "--skip-free" => skip_free = true,
                "--force" => force = true,
                "--grow" => grow = true,
                "--disk" => disk = Some(args.value()?),
                _ => return Err(args.unknown(name)),
            },
        }
    }
    if grow && disk.is_some() {
        return Err(Error::usage(
            "restore: --grow and --disk do not go together: the recorded partitions have the recorded sizes",
        ));
    }
    Ok(Options {
        image: image.ok_or_else(|| args.missing("the IMAGE"))?,
        targets: match (targets.len(), &disk) {
            (0, None) => return Err(args.missing("the TARGET")),
            _ => targets,
        },
        force,
        grow,
        disk,
        overwrite,
        verify,
        skip_free,
        common: args.common,
    })
}

/// Runs the verb.
pub fn run(options: Options) -> Result<()> {
    let report = options.common.report.as_deref();
    let mut report = report.map(ReportFile::open).transpose()?;
    let start = Instant::now();
    if let [_, second, ..] = options.targets.as_slice()
        && !options
            .targets
            .iter()
            .all(|target| split_pair(target).is_some())
    {
        return Err(Error::usage(format_args!(
            "restore: unexpected argument '{}'; see floe restore --help",
            second.display()
        )));
    }
    let nothing = |error: Error| error.leaving(NOTHING_WRITTEN);
    let opened = Opened::open(&options.image).map_err(nothing)?;
    if opened.format == Format::Zip {
        return unpack::run(&options, opened, Vec::new(), report.as_mut(), start);
    }
    let target = match options.targets.as_slice() {
        [target] if options.disk.is_none() && !options.force => target.clone(),
        _ => {
            return Err(Error::usage(format_args!(
                "restore: {} is no snapshot: one TARGET, and neither --disk nor --force",
                opened.subject
            )));
        }
    };
    let opened = Image::read(opened).map_err(nothing)?;
    let chosen = Chosen::find(&target, &opened.file)?;
    let known = opened.reader.length_bytes().unwrap_or(0);
    let least = opened.content.least_bytes();
    if opened
        .reader
        .length_bytes()
        .is_some_and(|length| length < least)
    {
        let ended = Ended {
            size_bytes: known,
            crc32: 0,
            input_bytes: 0,
        };
        image::check_end(&opened.subject, &opened.content, &ended)
            .map_err(|e| e.leaving(NOTHING_WRITTEN))?;
    }
    chosen.check_size(known.max(least).max(to_u64(opened.head().len())))?;
    chosen.check_content(options.overwrite)?;
    let content = &opened.content;
    let grown = match options.grow {
        true => {
            let uuid = content.identity.as_ref().map_or("", |found| &found.uuid);
            let (shown, dev) = chosen.named();
            Some(grow::check(shown, dev, content.name(), uuid)?)
        }
        false => None,
    };
    let (path, device) = chosen.into_device()?;
    job::check_sectors(&opened.content, &path, &device)?;
    let left = left_alone(&options, &path, &device)?;
    let input_length = opened.reader.input_length_bytes();
    let (facts, reader) = opened.into_parts();
    let filesystem = facts.content.name();
    let shared = Arc::new(Shared::default());
    let job = Job {
        name: path.display().to_string(),
        verify: options.verify,
        left,
        facts,
        shared: Arc::clone(&shared),
    };
    let name = job.name.clone();
    let state = || shared.phase.state().to_owned();
    let work = move || {
        let target = Target::new(device).map_err(|fault| job.target_error(fault))?;
        job.run(reader, target)
    };
    let progress = &shared.progress;
    let mut done = supervise(&options.common, progress, &state, &name, input_length, work)?;
    if let Some(dev) = grown {
        done.notes.push(grow::grow(&path, dev)?);
    }
    let took = start.elapsed();
    if let Some(file) = &mut report {
        let mut object = figures(&options, &done, filesystem, took);
        object.str("target", &target.to_string_lossy());
        file.write(&object)?;
    }
    if !options.common.quiet {
        last_line(&options, &done, filesystem, took);
    }
    Ok(())
}
