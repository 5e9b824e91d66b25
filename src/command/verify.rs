//! `floe verify`: every check that `restore` makes on an image or snapshot, without a target.

use std::ffi::OsString;

use crate::cli::{Args, Common, Item};
use crate::error::Result;
use crate::features;
use crate::put::supervise::SignalWatch;
use crate::report::{self, Bytes, JsonObject, Progress, exact};
use crate::snapshot::archive::Bundle;
use crate::snapshot::{entry, framed, kept};
use crate::stream::copy::Ended;
use crate::stream::image::Format;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::probed::{self, Image};
use crate::stream::image::whole::Any;

/// What was asked for.
pub(super) struct Options {
    path: OsString,
    any: Any,
    common: Common,
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    let mut path = None;
    let mut any = Any::No;
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if path.is_none() => path = Some(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option("--any-content") => any = Any::Yes,
            Item::Option(name) => return Err(args.unknown(name)),
        }
    }
    Ok(Options {
        path: path.ok_or_else(|| args.missing_or_piped("the FILE to verify", "verify -"))?,
        any,
        common: args.common,
    })
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    super::begin(&options.common, ("path", &options.path.display()), &[])?;
    let start = std::time::Instant::now();
    let mut line = Progress::new(&options.common);
    let watch = SignalWatch::start(options.path.display(), "it was not checked to its end")?;
    let opened = framed::open(&kept::path_of(&options.path)?, None, &options.common)?;
    if features::SNAPSHOTS && opened.format == Format::Zip {
        return snapshot(opened, &options, start);
    }
    let came_in_frames = opened.come_bytes.is_some();
    let mut found = Image::read(opened, options.any)?;
    let ended = probed::read_all(&mut found, &options.common, &mut line)?;
    drop(watch);
    let total_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut object = JsonObject::new();
    object
        .str("path", &found.subject)
        .str("format", found.reader.format().name())
        .str("filesystem", found.content.name())
        .u64("size_bytes", ended.size_bytes)
        .u64("read_bytes", ended.input_bytes)
        .str("crc32", &format!("{:08x}", ended.crc32))
        .u64("total_ms", total_ms);
    report::write(&object)?;
    if options.common.quiet {
        return Ok(());
    }
    let is_judged = options.any != Any::Yes;
    report::print(&words(&found, &ended, (came_in_frames, is_judged)))
}

/// Every entry of a snapshot, and whether each image is one.
fn snapshot(opened: OpenedImage, options: &Options, start: std::time::Instant) -> Result<()> {
    let bundle = Bundle::open(&opened.subject, opened.input)?;
    let bundle = entry::read_all(bundle, &opened.file, options.any, &options.common)?;
    let total_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (size_bytes, read_bytes) = (bundle.size_bytes(), bundle.input_bytes());
    let mut object = JsonObject::new();
    object
        .str("path", &bundle.subject)
        .str("format", "zip")
        .str("consistent", &bundle.checksums.consistent)
        .raw(
            "entries",
            &kept::entries(&bundle.snapshot, Some(&bundle.checksums)),
        )
        .u64("size_bytes", size_bytes)
        .u64("read_bytes", read_bytes)
        .u64("total_ms", total_ms);
    report::write(&object)?;
    if options.common.quiet {
        return Ok(());
    }
    let names: Vec<&str> = bundle.names().collect();
    let live = match bundle.checksums.consistent.as_str() {
        "live" => "; it was read live, and may not be consistent",
        _ => "",
    };
    let unjudged = match options.any {
        Any::Yes => "; what is in it was not judged",
        _ => "",
    };
    report::print(&format!(
        "{}: good snapshot of {}, {}: {}, {} packed{live}{unjudged}\n",
        report::clean(&bundle.subject),
        report::clean(&bundle.snapshot.host),
        names.join(" "),
        exact(size_bytes),
        Bytes(read_bytes),
    ))
}

fn words(found: &Image, ended: &Ended, (came_in_frames, is_judged): (bool, bool)) -> String {
    let format = found.reader.format();
    let sent = match came_in_frames {
        true => ", sent in frames",
        false => "",
    };
    let mut text = format!(
        "{}: good {} image{sent}, {}, {}",
        report::clean(&found.subject),
        format.name(),
        exact(ended.size_bytes),
        found.content.name(),
    );
    if let Some(labels) = &found.artifact {
        text.push_str(&format!(
            ", {} of artifact {} for {}",
            labels.payload,
            labels.name,
            labels.device_types.join(" ")
        ));
    }
    if format == Format::Gzip {
        text.push_str(&format!(", {} packed", Bytes(ended.input_bytes)));
    }
    text.push_str(&format!(", crc32 {:08x}", ended.crc32));
    match (format, found.content.is_empty()) {
        (_, true) => text.push_str("; nothing in it says how long it should be"),
        (_, false) if !is_judged => match found.content.cut_off(ended.size_bytes) {
            Some(cut) => text.push_str(&format!("; not whole ({cut}), and taken as it is")),
            None => text.push_str("; what is in it was not judged"),
        },
        (_, false) if found.content.damaged.is_some() => text.push_str(
            "; its first partition table is damaged, and was not judged by the copy at its end",
        ),
        (Format::Raw, false) if !came_in_frames => text.push_str(
            "; its length and what it begins with are right, a raw image has no checksum to compare",
        ),
        _ => {}
    }
    text.push('\n');
    text
}
