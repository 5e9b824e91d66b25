//! How a snapshot is written: a .zip or frames, its front before the freeze and its end after the thaw.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::command::create::Options;
use crate::error::{Error, Fault, Result};
use crate::features;
use crate::signals::Signals;
use crate::snapshot::framed::closing;
use crate::snapshot::{self, Checksum, Checksums, Snapshot, recorded};
use crate::stream::archive::{LastEntries, TextEntry, Written, ZipEmitter};
use crate::stream::frames::{self, send::FrameEmitter, send::ImageSum};
use crate::stream::output::{Output, TotalsCell};
use crate::stream::pipeline::{Outlet, Problem};
use crate::take::capture::CaptureFigures;
use crate::take::options;
use crate::take::source::Prepared;
use crate::threads::{Lock, RecvTimeoutError, channel};

/// What becomes known while the snapshot is made: its end tells it.
#[derive(Default)]
pub(super) struct SnapshotEnd {
    pub figures: Arc<Lock<Option<CaptureFigures>>>,
    pub checksums: Arc<Lock<Checksums>>,
    pub totals: TotalsCell,
}

/// How the outlet is made, which writes its first bytes: a .zip, or frames for another floe.
pub(super) fn outlet(
    options: &Options,
    output: Output,
    sources: &[Prepared],
    snapshot: &Snapshot,
    disk: Option<recorded::RecordedDisk>,
    known: &SnapshotEnd,
) -> Make {
    let (images, front, time_s) = (paths(snapshot), front(snapshot, disk), snapshot.time_s);
    let consistent = options::weakest(sources);
    let (figures, sums) = (Arc::clone(&known.figures), Arc::clone(&known.checksums));
    let totals = Arc::clone(&known.totals);
    if !features::FRAMES || !options.streaming.frames {
        return Box::new(move || {
            let ending = ending(consistent, figures, sums);
            let emit = ZipEmitter::new(output, time_s, &front, images, ending, totals)?;
            Ok(Outlet::Stream(Box::new(emit)))
        });
    }
    let names = images.iter().map(String::as_str);
    let header = frames::StreamHeader {
        is_snapshot: true,
        unix_seconds: time_s,
        front,
        ..options::frames_header(sources, names)
    };
    Box::new(move || {
        let ending = frames_ending(consistent, images, figures, sums);
        let emit = FrameEmitter::new(output, &header, ending, totals)?;
        Ok(Outlet::Frames(Box::new(emit)))
    })
}

fn paths(snapshot: &Snapshot) -> Vec<String> {
    let images = snapshot.images.iter();
    images
        .map(|image| snapshot::image_path(&image.name))
        .collect()
}

/// What stands before the images.
fn front(snapshot: &Snapshot, disk: Option<recorded::RecordedDisk>) -> Vec<TextEntry> {
    let mut front = vec![TextEntry {
        path: snapshot::SNAPSHOT.into(),
        bytes: snapshot.to_json().into_bytes(),
    }];
    if let Some(disk) = disk {
        for (path, bytes) in [(snapshot::TABLE, disk.table), (snapshot::BOOT, disk.boot)] {
            if !bytes.is_empty() {
                front.push(TextEntry {
                    path: path.into(),
                    bytes,
                });
            }
        }
    }
    front
}

/// What stands behind them: made after the thaw.
fn ending(
    consistent: &'static str,
    told: Arc<Lock<Option<CaptureFigures>>>,
    known: Arc<Lock<Checksums>>,
) -> LastEntries {
    Box::new(move |written: &[Written]| {
        let told = told.lock();
        let figures = told
            .as_ref()
            .ok_or_else(|| Fault::refused("an end before the thaw"))?;
        let maps = figures
            .outcomes
            .iter()
            .map(|outcome| (outcome.coverage.name(), Some(outcome.used_bytes)));
        let (checksums, texts) = closing(written, consistent, figures.frozen_ms, maps);
        *known.lock() = checksums;
        Ok(texts)
    })
}

/// The same of frames: the other end makes them, and what of it is known here goes into the report.
fn frames_ending(
    consistent: &'static str,
    images: Vec<String>,
    told: Arc<Lock<Option<CaptureFigures>>>,
    known: Arc<Lock<Checksums>>,
) -> frames::send::LastReport {
    Box::new(move |sums: &[ImageSum]| {
        let told = told.lock();
        let figures = told
            .as_ref()
            .ok_or_else(|| Fault::refused("an end before the thaw"))?;
        let entries = images.iter().zip(sums).map(|(path, sum)| Checksum {
            path: path.clone(),
            size_bytes: sum.raw_bytes,
            stored_bytes: 0,
            crc32: sum.crc32,
            sha256: [0; 32],
            map: String::new(),
            used_bytes: None,
        });
        *known.lock() = Checksums {
            frozen_ms: figures.frozen_ms,
            consistent: consistent.into(),
            entries: entries.collect(),
        };
        Ok(options::frames_report(consistent, figures))
    })
}

/// Writes the first bytes.
pub(super) type Make = Box<dyn FnOnce() -> std::result::Result<Outlet, Problem> + Send>;

/// Writes the front in a thread of its own: a reader that takes nothing must neither hold up a signal nor wait for ever.
pub(super) fn begin(make: Make, signals: &Signals, limit: Duration, shown: &str) -> Result<Outlet> {
    let (send, receive) = channel();
    crate::threads::start(
        c"floe-front",
        256 * 1024,
        Box::new(move || {
            let _ = send.send(make());
        }),
    )
    .map_err(|e| Error::fault("floe", Fault::io("start a thread", e)))?;
    let start = Instant::now();
    loop {
        signals.check()?;
        match receive.recv_timeout(Duration::from_millis(50)) {
            Ok(Ok(emitter)) => return Ok(emitter),
            Ok(Err(problem)) => return Err(options::early(shown, problem)),
            Err(RecvTimeoutError::Timeout) if start.elapsed() > limit => {
                return Err(Error::refused(format_args!(
                    "{shown}: the reader has not taken the first bytes within {} s; give it longer with --wait-sink",
                    limit.as_secs()
                )).leaving("nothing was frozen"));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::failed("floe: a thread died").leaving("nothing was frozen"));
            }
        }
    }
}
