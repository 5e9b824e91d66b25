//! Workers: chunks out of slots, encoded into chains of spool cells.

use super::{EncodeJob, Encoding, Goes, Problem, Shared, StreamRecord, known};
use crate::crc;
use crate::error::Fault;
use crate::stream::deflate::Deflater;
use crate::threads::forgive;
use crate::units::to_u64;

impl Shared {
    pub(super) fn worker(&self, worker: &mut Encoder) {
        let mut core = self.lock();
        loop {
            if core.problem.is_some() || (core.all_read() && core.jobs.is_empty()) {
                return;
            }
            let Some(job) = core.jobs.pop_front() else {
                core = self.wait(&self.can_work, core);
                continue;
            };
            core.workers_busy += 1;
            drop(core);
            let EncodeJob {
                slot,
                number,
                chunk,
                goes,
                ..
            } = job;
            let hash = goes.is_hashed().then(|| self.hash_of(&job));
            let result = self.encode(worker, job);
            core = self.lock();
            core.workers_busy -= 1;
            match result {
                Ok(record) if goes != Goes::Out => {
                    let out = matches!(goes, Goes::Early { .. }).then_some(number);
                    if let Err(problem) = self.keep(&mut core, chunk, out, record, hash) {
                        core.problem.get_or_insert(problem);
                    }
                    if core.round_is_over() {
                        self.announce();
                    }
                }
                Ok(record) => {
                    if let Some(place) = core.slot_of(number) {
                        *place = record;
                    }
                }
                Err(problem) => {
                    core.problem.get_or_insert(problem);
                }
            }
            if let Some(left) = core.chunks_left.get_mut(slot) {
                *left -= 1;
                if *left == 0 {
                    core.slots_free.push(slot);
                }
            }
            if core.head == number || goes != Goes::Out || core.problem.is_some() {
                self.can_emit.notify_all();
            }
            self.can_read.notify_all();
        }
    }

    fn hash_of(&self, job: &EncodeJob) -> u64 {
        let slot = self.slots.get(job.slot).map(|slot| slot.read());
        let slot = slot.map(forgive);
        let chunk = slot
            .as_ref()
            .and_then(|slot| slot.get(job.start..job.start + job.length));
        self.hash(chunk.unwrap_or_default())
    }

    /// Encodes one chunk into its chain; an all-zero chunk becomes a zero record and gives its cells back.
    fn encode(&self, worker: &mut Encoder, job: EncodeJob) -> Result<StreamRecord, Problem> {
        let internal = || Problem::Internal(Fault::refused("chunk outside its slot"));
        let slot = forgive(self.slots.get(job.slot).ok_or_else(internal)?.read());
        let chunk = slot
            .get(job.start..job.start + job.length)
            .ok_or_else(internal)?;
        if is_zero(chunk) {
            self.cells.release(job.chain);
            return Ok(StreamRecord::Zeros(to_u64(chunk.len())));
        }
        let mut chain = job.chain;
        let known = job.known.filter(|known| known::hash(chunk) == *known);
        let encoded = match &known {
            Some(known) => known,
            None => worker.encode(chunk).map_err(Problem::Internal)?,
        };
        self.cells.fill(&mut chain, encoded).ok_or_else(internal)?;
        Ok(StreamRecord::Data {
            chain: Some(chain),
            raw_bytes: u32::try_from(chunk.len()).unwrap_or(0),
            crc32: crc::crc32(0, chunk),
            is_known: known.is_some(),
            early: None,
        })
    }
}

/// True when every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<32>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words
            .iter()
            .fold(0, |sum, word| sum | u64::from_ne_bytes(*word))
            == 0
    }) && rest.iter().all(|byte| *byte == 0)
}

/// A worker's own memory.
pub(super) struct Encoder {
    deflater: Option<Deflater>,
    output: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Deflate(level) => Self {
                deflater: Some(Deflater::new(level)),
                output: vec![0; encoding.bound()],
            },
            Encoding::Raw => Self {
                deflater: None,
                output: Vec::new(),
            },
        }
    }

    fn encode<'a>(&'a mut self, chunk: &'a [u8]) -> Result<&'a [u8], Fault> {
        match &mut self.deflater {
            None => Ok(chunk),
            Some(deflater) => {
                let length = deflater.encode(chunk, &mut self.output)?;
                self.output
                    .get(..length)
                    .ok_or_else(|| Fault::refused("encoded chunk"))
            }
        }
    }
}
