//! What a run comes to: its figures, and what is said when it fails.

use rustix::io::Errno;

use super::Capture;
use crate::error::{Error, Exit, Fault, NOTHING_WRITTEN};
use crate::fs::Coverage;
use crate::report::JsonObject;
use crate::stream::pipeline::{Placing, Problem, Rounds};
use crate::stream::plan::{Part, Plan};
use crate::take::emptied::Emptied;
use crate::take::survey::Stage;
use crate::take::walks::Trouble;

/// What came of one image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageOutcome {
    /// How far its map was proven.
    pub coverage: Coverage,
    /// Why not wholly.
    pub doubt: Option<Fault>,
    /// Bytes that were to be read.
    pub used_bytes: u64,
}

/// The figures of a capture.
#[derive(Debug)]
pub(crate) struct CaptureFigures {
    /// One for each image.
    pub outcomes: Vec<ImageOutcome>,
    /// Bytes read.
    pub read_bytes: u64,
    /// How long filesystems were frozen, the instant of a trial before included; 0 where nothing was.
    pub frozen_ms: u64,
    /// Files that came out empty.
    pub emptied: Emptied,
    /// `traced`, `compared` or `off`.
    pub precopy: &'static str,
    /// What pre-copy read before the freeze and under it.
    pub rounds: Rounds,
}

impl CaptureFigures {
    /// How long writers waited, and what made that short, as every report has it.
    pub(crate) fn window(&self, object: &mut JsonObject) {
        object
            .u64("frozen_ms", self.frozen_ms)
            .str("precopy", self.precopy)
            .u64("early_bytes", self.rounds.early_bytes)
            .u64("again_bytes", self.rounds.again_bytes);
    }
}

impl Capture {
    fn device_name(&self, index: usize) -> &str {
        self.shown.get(index).map_or("source", String::as_str)
    }

    /// What a stream that ends early leaves.
    pub(super) fn left(&self) -> &'static str {
        match self.froze {
            true => "the image is incomplete; thawed",
            false => "the image is incomplete",
        }
    }

    fn is_file(&self) -> bool {
        self.places.is_none() && self.output.is_some()
    }

    /// What became of what was written.
    pub(super) fn written(&self) -> &'static str {
        match self.is_file() {
            true => "the part file was removed",
            false => "what was written is not complete",
        }
    }

    pub(super) fn problem(&self, problem: Problem) -> Error {
        let left = |error: Error| match self.places {
            None => error.leaving(self.written()),
            Some(_) => error,
        };
        let output = self.output.as_deref().unwrap_or("stdout");
        let output = self.places.map_or(output, Placing::failed);
        match problem {
            Problem::ClosedPipe => {
                Error::failed(format_args!("{output}: the reader closed the pipe"))
                    .leaving(self.left())
            }
            Problem::Read(device, fault) => {
                left(Error::fault(self.device_name(device), fault).with_exit(Exit::Failed))
            }
            Problem::Write(fault) => {
                let full = [Errno::NOSPC, Errno::DQUOT];
                let help = match full.iter().any(|no| fault.is_errno(*no)) {
                    true if self.is_file() => "; make room there, or name another place with -o",
                    false if fault.is_errno(Errno::FBIG) => {
                        "; raise the limit on the size of files (ulimit -f), or name a filesystem that holds longer ones"
                    }
                    _ => "",
                };
                left(Error::failed(format_args!("{output}: {fault}{help}")))
            }
            Problem::Internal(fault) => {
                left(Error::fault("floe: internal", fault).with_exit(Exit::Failed))
            }
        }
    }

    pub(super) fn trouble(&self, trouble: Trouble, stage: Stage) -> Error {
        let device = self.device_name(trouble.device);
        let error = match self.surveyor.path_of_trouble() {
            path if path.is_empty() => Error::fault(device, trouble.fault),
            path => Error::fault(format_args!("{device}: {path}"), trouble.fault),
        };
        let is_early = match stage {
            Stage::Rehearse => true,
            // Copies were written to before, with pre-copy.
            Stage::Surveyed => self.places.is_none() || !self.precopy,
            _ => false,
        };
        if is_early && trouble.fault.exit() == Exit::Refused {
            return error.leaving(NOTHING_WRITTEN);
        }
        let error = error.with_exit(Exit::Failed);
        match self.places {
            None => error.leaving(self.written()),
            Some(_) => error,
        }
    }

    /// The report's word for what pre-copy was.
    fn precopy_word(&self) -> &'static str {
        match (self.precopy, self.surveyor.is_traced()) {
            (false, _) => "off",
            (true, false) => "compared",
            (true, true) => "traced",
        }
    }

    pub(super) fn figures(&self, frozen_ms: u64) -> CaptureFigures {
        let verdicts = self.surveyor.verdicts();
        let parts = self.pipeline.plan().map_or(&[][..], Plan::parts);
        let outcome = |(image, range): (usize, &std::ops::Range<usize>)| {
            let parts = parts.get(range.clone()).unwrap_or_default();
            let mut of_image = verdicts.iter().filter(|(at, _)| *at == image);
            let mut mapped = of_image.clone().map(|(_, verdict)| verdict.coverage);
            let coverage = match (mapped.next(), mapped.clone().next()) {
                (None, _) => Coverage::Whole,
                // One filesystem: what its walk said.
                (Some(only), None) if parts.len() == 1 => only,
                (Some(first), _) => {
                    let all_used = mapped.chain([first]).all(|one| one == Coverage::Used);
                    if all_used && !self.unknown.contains(&image) {
                        Coverage::Used
                    } else {
                        Coverage::Partial
                    }
                }
            };
            ImageOutcome {
                coverage,
                doubt: of_image.find_map(|(_, verdict)| verdict.doubt),
                used_bytes: parts.iter().map(Part::used_bytes).sum(),
            }
        };
        CaptureFigures {
            outcomes: self.images.iter().enumerate().map(outcome).collect(),
            read_bytes: self.counters.read_bytes(),
            frozen_ms: frozen_ms.saturating_add(self.trial_ms),
            precopy: self.precopy_word(),
            rounds: self.pipeline.rounds(),
            emptied: self.surveyor.emptied(),
        }
    }
}
