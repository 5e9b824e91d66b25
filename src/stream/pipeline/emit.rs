//! The emitter: records in order, into the output stream; its end only after [`super::Pipeline::permit`].

use std::sync::atomic::Ordering;

use super::{Emit, Encoded, Problem, Shared, StreamRecord};

impl Shared {
    pub(super) fn emitter(&self, emit: &mut dyn Emit) {
        if let Err(problem) = self.emit_all(emit) {
            self.fail(problem);
        }
    }

    fn emit_all(&self, emit: &mut dyn Emit) -> Result<(), Problem> {
        // Runs of zeros grow as long as nothing else comes between.
        let mut zeros = 0u64;
        while let Some(record) = self.next_record() {
            if let StreamRecord::Zeros(length) = record {
                zeros = zeros.saturating_add(length);
                continue;
            }
            if zeros > 0 {
                emit.zeros(zeros)?;
                zeros = 0;
            }
            match record {
                StreamRecord::Data {
                    chain,
                    raw_bytes,
                    crc32,
                    is_known,
                    early,
                } => {
                    let raw_bytes = u64::from(raw_bytes);
                    emit.data(&Encoded {
                        held: chain.as_ref().map(|chain| (&self.cells, chain)),
                        bytes: &[],
                        raw_bytes,
                        crc32,
                        chunk: early.unwrap_or(0),
                        is_early: early.is_some(),
                        is_known,
                    })?;
                    if let Some(chain) = chain {
                        self.cells.release(chain);
                    }
                    if early.is_none() {
                        self.emitted.fetch_add(raw_bytes, Ordering::Relaxed);
                    }
                    self.can_read.notify_all();
                }
                StreamRecord::Held { raw_bytes, crc32 } => emit.held(raw_bytes, crc32)?,
                StreamRecord::End(image) => emit.end_image(image)?,
                StreamRecord::Zeros(_) | StreamRecord::Empty | StreamRecord::Pending => {}
            }
        }
        let mut core = self.lock();
        if core.problem.is_some() {
            return Ok(());
        }
        core.drained = true;
        self.announce();
        while !core.permit {
            if core.problem.is_some() {
                return Ok(());
            }
            core = self.wait(&self.can_emit, core);
        }
        drop(core);
        emit.finish()?;
        self.lock().finished = true;
        self.announce();
        Ok(())
    }

    /// The next record in order; `None` at the end or on a problem.
    fn next_record(&self) -> Option<StreamRecord> {
        let mut core = self.lock();
        loop {
            if core.problem.is_some() {
                return None;
            }
            if core.head < core.tail {
                let head = core.head;
                if let Some(place) = core.slot_of(head)
                    && !matches!(place, StreamRecord::Pending)
                {
                    let record = std::mem::replace(place, StreamRecord::Empty);
                    core.head += 1;
                    self.can_read.notify_all();
                    return Some(record);
                }
            } else if core.all_read() && core.jobs.is_empty() {
                return None;
            }
            // Nothing is on its way any more.
            if core.round_is_over() {
                self.announce();
            }
            core = self.wait(&self.can_emit, core);
        }
    }
}
