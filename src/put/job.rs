//! The job of `restore`: one image onto one target.
//!
//! Order: everything is checked; the old head of the target is zeroed; the image is written from behind its head on; all of it
//! is flushed (and read back, where asked for); the head goes out last, its superblock at the very end. So a target that was
//! interrupted shows neither the old filesystem nor the new one.

use crate::threads::{RecvTimeoutError, channel};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use crate::cli::Common;
use crate::device::{Device, DeviceKind, ReadAt};
use crate::error::{Error, Fault, NOTHING_WRITTEN, Result};
use crate::put::free::{self, LeftAlone};
use crate::put::head;
use crate::put::image::{self, Any, Facts};
use crate::put::rescan;
use crate::put::target::{Overwrite, old_tail};
use crate::report::{self, Bytes, JsonObject, Span, Step};
use crate::signals::Signals;
use crate::stream::copy::{self, Ended, Failure, Progress, ReadAhead, ZeroAll};
use crate::stream::digest::Digest;
use crate::stream::image::ImageReader;
use crate::stream::target::Target;
use crate::sys::ioctl;
use crate::units::{Extent, round_up, to_u64};

/// How long the waiting thread sleeps at most, for the progress line.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// What was asked for.
pub(crate) struct Options {
    pub(crate) image: std::ffi::OsString,
    /// One TARGET, or NAME=TARGET of a snapshot; what it is, the image says.
    pub(crate) targets: Vec<std::ffi::OsString>,
    pub(crate) overwrite: Overwrite,
    pub(crate) verify: bool,
    pub(crate) skip_free: bool,
    pub(crate) only_changes: bool,
    /// `--any-content`.
    pub(crate) any: Any,
    /// `--no-check`: an image in a file is not read to its end beforehand.
    pub(crate) unchecked: bool,
    /// `--force`: a snapshot of another architecture or board.
    pub(crate) force: bool,
    /// `--dry-run`: nothing is written.
    pub(crate) dry_run: bool,
    /// `--grow`: to the end of the partition afterwards.
    pub(crate) grow: bool,
    /// `--disk`: where the recorded partition table goes.
    pub(crate) disk: Option<std::ffi::OsString>,
    pub(crate) common: Common,
}

/// How far the target is: what a message about its state depends on.
#[derive(Debug, Default)]
pub(crate) struct Phase(AtomicU8);

impl Phase {
    pub(crate) const UNTOUCHED: u8 = 0;
    pub(crate) const WRITING: u8 = 1;
    pub(crate) const LAST: u8 = 2;
    pub(crate) const COMPLETE: u8 = 3;

    pub(crate) fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::SeqCst);
    }

    /// One of the constants.
    pub(crate) fn get(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }

    /// The state the target would be left in now.
    pub(crate) fn state(&self) -> &'static str {
        match self.0.load(Ordering::SeqCst) {
            Self::UNTOUCHED => "nothing was written",
            Self::WRITING => "the target is not usable: its beginning is zeroed",
            Self::LAST => "everything but the very end was written; do not rely on the target",
            _ => "the target is complete",
        }
    }
}

/// What the working thread and the waiting one share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) progress: Arc<Progress>,
    pub(crate) phase: Phase,
}

/// What a finished restore did.
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) ended: Ended,
    pub(crate) written_bytes: u64,
    pub(crate) zeroed_bytes: u64,
    pub(crate) skipped_bytes: u64,
    pub(crate) unchanged_bytes: u64,
    pub(crate) notes: Vec<String>,
}

pub(crate) fn figures(
    options: &Options,
    done: &Done,
    filesystem: &str,
    took: Duration,
) -> JsonObject {
    let mut object = JsonObject::new();
    object
        .str("device", &done.name)
        .str("filesystem", filesystem)
        .u64("size_bytes", done.ended.size_bytes)
        .u64("read_bytes", done.ended.input_bytes)
        .u64("written_bytes", done.written_bytes)
        .u64("unchanged_bytes", done.unchanged_bytes)
        .u64("zeroed_bytes", done.zeroed_bytes)
        .u64(
            "total_ms",
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        )
        .str("crc32", &format!("{:08x}", done.ended.crc32))
        .u64("skipped_bytes", done.skipped_bytes)
        .bool("skipped_free", options.skip_free)
        .bool("verified", options.verify);
    object
}

pub(crate) fn last_line(options: &Options, done: &Done, filesystem: &str, took: Duration) {
    let name = &done.name;
    for note in &done.notes {
        report::line(format_args!("{name}: {note}"));
    }
    let verified = if options.verify {
        ", read back and equal"
    } else {
        ""
    };
    let mut skipped = String::new();
    if options.skip_free {
        skipped = format!(", {} free and left as it was", Bytes(done.skipped_bytes));
    }
    let unchanged = unchanged(options.only_changes, done.unchanged_bytes);
    report::line(format_args!(
        "{name}: restored {} bytes ({filesystem}), {} written, {} zeroed{unchanged}{skipped}{verified}, in {}",
        done.ended.size_bytes,
        Bytes(done.written_bytes),
        Bytes(done.zeroed_bytes),
        Span(took),
    ));
}

/// What `--only-changes` came to, for people.
pub(crate) fn unchanged(only_changes: bool, bytes: u64) -> String {
    match only_changes {
        true => format!(", {} there already and left alone", Bytes(bytes)),
        false => String::new(),
    }
}

/// The memory of `--skip-free`.
pub(crate) fn left_alone(
    options: &Options,
    path: &Path,
    device: &Device,
) -> Result<Option<LeftAlone>> {
    if !options.skip_free || device.kind() == DeviceKind::File {
        // In a file free ranges become holes, which is as fast.
        return Ok(None);
    }
    let left = LeftAlone::new(device.size_bytes());
    left.map(Some)
        .map_err(|fault| Error::fault(path.display(), fault).leaving(NOTHING_WRITTEN))
}

/// Runs `work` in a thread of its own and waits for it, with progress and signals meanwhile. A signal ends the process at
/// once, whatever the input or the target is stuck in.
pub(crate) fn supervise<T: Send + 'static>(
    common: &Common,
    progress: &Progress,
    state: &dyn Fn() -> String,
    name: &str,
    input_length: Option<u64>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let fail = |what: &str, error: std::io::Error| {
        Error::failed(format_args!("{what}: {error}")).leaving(&state())
    };
    let signals = Signals::block()?;
    let (over, running) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| fail("pipe", errno.into()))?;
    let (send, receive) = channel();
    crate::threads::start(
        c"write",
        256 * 1024,
        Box::new(move || {
            let _ = send.send(work());
            drop(running); // the waiting thread sees the end of the pipe
        }),
    )
    .map_err(|errno| fail("start a thread", errno.into()))?;
    let mut line = report::Progress::new(common);
    loop {
        let mut ready = [
            PollFd::new(&over, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut ready, Some(&PAUSE));
        if let Some(number) = signals.take() {
            progress.stop.store(true, Ordering::Relaxed);
            line.clear();
            report::line(format_args!("{name}: interrupted; {}", state()));
            return Err(Error::signal(number));
        }
        match receive.try_recv() {
            Ok(result) => {
                line.clear();
                return result;
            }
            Err(RecvTimeoutError::Timeout) => {
                let phase = progress.phase.load(Ordering::Relaxed);
                let (done, total) = match input_length.filter(|_| phase <= copy::MEASURING) {
                    Some(length) => (&progress.input_bytes, length),
                    None => {
                        let total = progress.total_bytes.load(Ordering::Relaxed);
                        (&progress.done_bytes, total)
                    }
                };
                let step = Step {
                    phase: copy::PHASES.get(phase).unwrap_or(&""),
                    subject: "",
                    done_bytes: done.load(Ordering::Relaxed),
                    total_bytes: total,
                };
                line.show(false, step);
            }
            Err(RecvTimeoutError::Disconnected) => {
                let error = Error::failed(format_args!("{name}: the writing thread died"));
                return Err(error.leaving(&state()));
            }
        }
    }
}

/// One restore: owned by the writing thread.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) verify: bool,
    pub(crate) only_changes: bool,
    pub(crate) left: Option<LeftAlone>,
    /// What lies behind the image becomes part of a filesystem, or of a disk that is laid anew: zeros.
    pub(crate) fills: bool,
    pub(crate) facts: Facts,
    pub(crate) shared: Arc<Shared>,
}

impl Job {
    /// Writes all of the image.
    pub(crate) fn run(mut self, reader: ImageReader<'static>, target: Target) -> Result<Done> {
        self.steps(reader, target)
            .map_err(|error| self.after_first_write(error))
    }

    /// After the first write a refusal is 1, never 4; and every message says what state the target is in.
    fn after_first_write(&self, error: Error) -> Error {
        let written = self.shared.phase.0.load(Ordering::SeqCst) != Phase::UNTOUCHED;
        let state = self.shared.phase.state();
        match written {
            true => error.begun(state),
            false => error.leaving(state),
        }
    }

    fn steps(&mut self, reader: ImageReader<'static>, mut target: Target) -> Result<Done> {
        let whole_disk = target.device().kind() == DeviceKind::Block && !target.is_range();
        let old_backup = match target.is_range() {
            true => None,
            false => old_tail(target.device()),
        };
        let ahead = ReadAhead::start(reader, Arc::clone(&self.shared.progress))
            .map_err(|fault| self.target_error(fault))?;
        if self.only_changes {
            let ready = target.only_changes();
            ready.map_err(|fault| self.target_error(fault))?;
        }
        self.shared.phase.set(Phase::WRITING);
        self.wipe(&mut target, old_backup)?;
        let mut body = Digest::new();
        let mut zero_all = ZeroAll;
        let ended = copy::write(
            &ahead,
            &mut target,
            match &mut self.left {
                Some(left) => left,
                None => &mut zero_all,
            },
            self.verify.then_some(&mut body),
            &self.shared.progress,
        )
        .map_err(|failure| self.failure(failure))?;
        self.facts.check_end(&ended)?;
        let skipped_bytes = self.settle(&mut target)?;
        if self.fills {
            // The last sector that was written is whole.
            let sector = u64::from(target.device().sector_bytes());
            let offset = round_up(ended.size_bytes, sector).unwrap_or(u64::MAX);
            let behind = Extent {
                offset,
                length_bytes: target.size_bytes().saturating_sub(offset),
            };
            copy::zero_extent(&mut target, behind, &self.shared.progress)
                .map_err(|failure| self.failure(failure))?;
        }
        if self.only_changes {
            let cut = target.cut(ended.size_bytes);
            cut.map_err(|fault| self.target_error(fault))?;
        }
        target.sync().map_err(|fault| self.target_error(fault))?;
        if self.verify {
            self.compare(&target, &body, &ended)?;
        }
        let progress = &self.shared.progress;
        progress
            .stopped()
            .map_err(|failure| self.failure(failure))?;
        self.shared.phase.set(Phase::LAST);
        let mut notes = Vec::new();
        notes.extend(self.move_backup_table(&mut target)?);
        self.write_head(&mut target)?;
        target
            .drop_cache()
            .map_err(|fault| self.target_error(fault))?;
        self.shared.phase.set(Phase::COMPLETE);
        if self.facts.content.is_empty() {
            let note = "nothing known is in the image, so that nothing but its own checksum could be checked";
            notes.push(note.into());
        }
        if whole_disk && self.facts.content.table.is_some() {
            notes.extend(rescan::refresh(target.device()));
        }
        Ok(Done {
            name: self.name.clone(),
            ended,
            written_bytes: target.written_bytes,
            zeroed_bytes: target.zeroed_bytes,
            skipped_bytes,
            unchanged_bytes: target.unchanged_bytes(),
            notes,
        })
    }

    /// Zeroes the old beginning (and an old backup table at the end), so that nothing old is recognised from now on.
    fn wipe(&self, target: &mut Target, old_backup: Option<Extent>) -> Result<()> {
        if target
            .empty_file()
            .map_err(|fault| self.target_error(fault))?
        {
            return target.sync().map_err(|fault| self.target_error(fault));
        }
        let head = head::wiped(target.size_bytes(), self.only_changes);
        for extent in [Some(head), old_backup].into_iter().flatten() {
            copy::zero_extent(target, extent, &self.shared.progress)
                .map_err(|failure| self.failure(failure))?;
        }
        target.sync().map_err(|fault| self.target_error(fault))?;
        if target.device().kind() == DeviceKind::Block && !target.is_range() {
            // The partitions of the old table disappear; a partition, or a disk without any, has nothing to read anew.
            let _ = ioctl::blkrrpart(target.device().as_fd());
        }
        target.begin_figures();
        Ok(())
    }

    /// Zeroes what was left alone and must not keep stale bytes; gives the bytes that stay untouched.
    fn settle(&mut self, target: &mut Target) -> Result<u64> {
        let length = self.facts.head_bytes;
        let Some(left) = &mut self.left else {
            return Ok(0);
        };
        let head = self.facts.head.get(..length).unwrap_or_default();
        let progress = &self.shared.progress;
        free::settle(target, &self.facts.content, head, left, progress)
            .map_err(|failure| self.failure(failure))
    }

    /// Reads back everything behind the head.
    fn compare(&self, target: &Target, written: &Digest, ended: &Ended) -> Result<()> {
        target
            .drop_cache()
            .map_err(|fault| self.target_error(fault))?;
        let start = image::head_length(&self.facts);
        let extent = Extent {
            offset: start,
            length_bytes: ended.size_bytes.saturating_sub(start),
        };
        let mut found = Digest::new();
        let progress = &self.shared.progress;
        progress.begin(copy::READING_BACK, ended.size_bytes);
        let mut skipped = |extent| self.left.as_ref()?.first_in(extent);
        copy::read_back(target, extent, &mut skipped, &mut found, progress)
            .map_err(|failure| self.failure(failure))?;
        match written.difference(&found) {
            None => Ok(()),
            Some(place) => Err(self.differs(Extent {
                offset: start.saturating_add(place.offset),
                ..place
            })),
        }
    }

    fn differs(&self, place: Extent) -> Error {
        head::differs(&self.name, place)
    }

    /// The head: first all but what makes it recognisable, then, after a flush, the rest.
    fn write_head(&mut self, target: &mut Target) -> Result<()> {
        let length = self.facts.head_bytes;
        let bytes = &mut self.facts.head;
        let last = head::last_bytes(&self.facts.content, length);
        let result = head::write(bytes, length, last, target);
        result.map_err(|fault| self.target_error(fault))?;
        let head = self.facts.head.get(..length).unwrap_or_default();
        let there = || head::is_there(head, target).map_err(|fault| self.target_error(fault));
        if self.verify && !there()? {
            let whole = Extent {
                offset: 0,
                length_bytes: to_u64(length),
            };
            let _ = copy::zero_extent(target, whole, &self.shared.progress);
            let _ = target.sync();
            return Err(self.differs(whole));
        }
        Ok(())
    }

    /// On a disk larger than the image's, the backup GPT goes to the disk's end and the head says so.
    fn move_backup_table(&mut self, target: &mut Target) -> Result<Option<String>> {
        let table = self.facts.content.table.as_ref();
        let head = self.facts.head.get_mut(..self.facts.head_bytes);
        head::move_backup_table(head.unwrap_or_default(), table, target)
            .map_err(|fault| self.target_error(fault))
    }

    pub(crate) fn target_error(&self, fault: Fault) -> Error {
        Error::fault(&self.name, fault)
    }

    fn failure(&self, failure: Failure) -> Error {
        match failure {
            Failure::Image(fault) => image::image_error(&self.facts.subject, fault),
            Failure::Target(fault) => self.target_error(fault),
        }
    }
}
