//! The job of `restore`: one image onto one target.
//!
//! Order: everything is checked; the old head of the target is zeroed; the image is written from behind its head on; all of it
//! is flushed (and read back, where asked for); the head goes out last, its superblock at the very end. So a target that was
//! interrupted shows neither the old filesystem nor the new one.

use std::sync::Arc;

use rustix::io::Errno;

use crate::device::DeviceKind;
use crate::error::{Error, Fault, Result};
use crate::put::figures::RestoreReport;
use crate::put::free::{self, LeftAlone};
use crate::put::head::{self, Last};
use crate::put::phase::Phase;
use crate::put::target::old_tail;
use crate::stream::copy::{self, CopyFailure, CopyProgress, Ended, ReadAhead, ZeroAll};
use crate::stream::digest::Digest;
use crate::stream::image::ImageReader;
use crate::stream::image::probed::ImageHead;
use crate::stream::image::whole::image_error;
use crate::stream::target::Target;
use crate::sys::ioctl;
use crate::units::{Extent, round_up, to_u64};

/// What the working thread and the waiting one share.
#[derive(Default)]
pub(crate) struct RunState {
    pub(crate) progress: Arc<CopyProgress>,
    pub(crate) phase: Phase,
}

/// One restore: owned by the writing thread.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) verify: bool,
    pub(crate) only_changes: bool,
    pub(crate) left: Option<LeftAlone>,
    /// What lies behind the image becomes part of a filesystem, or of a disk that is laid anew: zeros.
    pub(crate) fills: bool,
    pub(crate) image: ImageHead,
    /// It goes to a partition of a disk that is laid anew, which has no name yet.
    pub(crate) is_part: bool,
    pub(crate) shared: Arc<RunState>,
}

/// A target to which all was written but its beginning: it shows nothing yet.
pub(crate) struct Filled {
    job: Job,
    target: Target,
    ended: Ended,
    skipped_bytes: u64,
}

impl Filled {
    /// Writes the beginning.
    pub(crate) fn finish(mut self) -> Result<RestoreReport> {
        let result = self.last();
        result.map_err(|error| self.job.after_first_write(error))
    }

    fn last(&mut self) -> Result<RestoreReport> {
        let (job, target) = (&mut self.job, &mut self.target);
        let mut notes = Last {
            name: &job.name,
            head: &mut job.image.head,
            length: job.image.head_bytes,
            content: &job.image.content,
            image_bytes: self.ended.size_bytes,
            phase: &job.shared.phase,
            verify: job.verify,
            progress: &job.shared.progress,
        }
        .write(target)?;
        if job.image.content.is_empty() {
            let note = "nothing known is in the image, so that nothing but its own checksum could be checked";
            notes.push(note.into());
        }
        Ok(RestoreReport {
            name: job.name.clone(),
            ended: self.ended.clone(),
            written_bytes: target.written_bytes,
            zeroed_bytes: target.zeroed_bytes,
            skipped_bytes: self.skipped_bytes,
            unchanged_bytes: target.unchanged_bytes(),
            notes,
        })
    }
}

impl Job {
    /// Writes all of the image.
    pub(crate) fn run(self, reader: ImageReader<'static>, target: Target) -> Result<RestoreReport> {
        self.fill(reader, target)?.finish()
    }

    /// The same up to the beginning, which waits for what is still to be known.
    pub(crate) fn fill(
        mut self,
        reader: ImageReader<'static>,
        mut target: Target,
    ) -> Result<Filled> {
        match self.steps(reader, &mut target) {
            Ok((ended, skipped_bytes)) => Ok(Filled {
                job: self,
                target,
                ended,
                skipped_bytes,
            }),
            Err(error) => Err(self.after_first_write(error)),
        }
    }

    /// After the first write a refusal is 1, never 4; and every message says what state the target is in.
    fn after_first_write(&self, error: Error) -> Error {
        let written = self.shared.phase.get() != Phase::UNTOUCHED;
        let phase = &self.shared.phase;
        let state = phase.state();
        match (written, phase.needs_image()) {
            (true, true) if self.is_part => error.begun(&format!(
                "{state}; the same command with a whole snapshot repairs it"
            )),
            (true, true) => error.begun(&format!(
                "{state}; a whole image, restored to {} again (a file: with --overwrite), repairs it",
                self.name
            )),
            (true, false) => error.begun(state),
            (false, _) => error.leaving(state),
        }
    }

    fn steps(&mut self, reader: ImageReader<'static>, target: &mut Target) -> Result<(Ended, u64)> {
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
        self.wipe(target, old_backup)?;
        let mut body = Digest::new();
        let mut zero_all = ZeroAll;
        let ended = copy::write(
            &ahead,
            target,
            match &mut self.left {
                Some(left) => left,
                None => &mut zero_all,
            },
            self.verify.then_some(&mut body),
            &self.shared.progress,
        )
        .map_err(|failure| self.failure(failure))?;
        let whole = self.image.check_end(&ended);
        whole.inspect_err(|_| self.shared.phase.note_cut_image())?;
        let skipped_bytes = self.settle(target)?;
        if self.fills {
            // The last sector that was written is whole.
            let sector = u64::from(target.device().sector_bytes());
            let offset = round_up(ended.size_bytes, sector).unwrap_or(u64::MAX);
            let behind = Extent::between(offset, target.size_bytes());
            copy::zero_extent(target, behind, &self.shared.progress)
                .map_err(|failure| self.failure(failure))?;
        }
        if self.only_changes {
            let cut = target.cut(ended.size_bytes);
            cut.map_err(|fault| self.target_error(fault))?;
        }
        target.sync().map_err(|fault| self.target_error(fault))?;
        if self.verify {
            self.compare(target, &body, &ended)?;
        }
        let progress = &self.shared.progress;
        progress
            .stopped()
            .map_err(|failure| self.failure(failure))?;
        Ok((ended, skipped_bytes))
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
        let Some(left) = &mut self.left else {
            return Ok(0);
        };
        let head = self.image.bytes();
        let progress = &self.shared.progress;
        free::settle(target, &self.image.content, head, left, progress)
            .map_err(|failure| self.failure(failure))
    }

    /// Reads back everything behind the head.
    fn compare(&self, target: &Target, written: &Digest, ended: &Ended) -> Result<()> {
        target
            .drop_cache()
            .map_err(|fault| self.target_error(fault))?;
        let start = to_u64(self.image.head_bytes);
        let extent = Extent::between(start, ended.size_bytes);
        let mut found = Digest::new();
        let progress = &self.shared.progress;
        progress.begin(copy::READING_BACK, ended.size_bytes);
        let mut skipped = |extent| self.left.as_ref()?.first_in(extent);
        copy::read_back(target, extent, &mut skipped, &mut found, progress)
            .map_err(|failure| self.failure(failure))?;
        match written.difference(&found) {
            None => Ok(()),
            Some(place) => {
                let offset = start.saturating_add(place.offset);
                Err(head::differs(&self.name, Extent { offset, ..place }))
            }
        }
    }

    pub(crate) fn target_error(&self, fault: Fault) -> Error {
        if fault.is_errno(Errno::NOSPC) || fault.is_errno(Errno::DQUOT) {
            self.shared.phase.note_full();
        }
        Error::fault(&self.name, fault)
    }

    fn failure(&self, failure: CopyFailure) -> Error {
        match failure {
            CopyFailure::Image(fault) => {
                self.shared.phase.note_cut_image();
                image_error(&self.image.subject, fault)
            }
            CopyFailure::Target(fault) => self.target_error(fault),
        }
    }
}
