//! What was received goes out in order, in the standard format, and gives its room back.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::{HeldChunk, IS_KNOWN, Received};
use crate::crc;
use crate::error::Fault;
use crate::stream::frames::packed::unpack;
use crate::stream::frames::{MAX_PACKED, known};
use crate::stream::inflate::Inflate;
use crate::stream::pack::{Hands, stored};
use crate::stream::pipeline::{Emit, Encoded, Problem};
use crate::stream::plan::CHUNK_BYTES;
use crate::sys::memory::Pages;
use crate::units::{to_u64, to_usize};

impl Received {
    /// Gives everything in order, and the room of each chunk back when it was given.
    pub fn emit(mut self, emit: &mut dyn Emit) -> Result<(), Problem> {
        let mut next = 0;
        let mut again = Again {
            hands: match &self.old {
                Some(_) if self.hold.level > 0 => {
                    Some(Hands::start(self.hold.level, self.hold.jobs)?)
                }
                _ => None,
            },
            chunks: VecDeque::new(),
            proof: self.proof.take(),
        };
        for (image, end) in std::mem::take(&mut self.layout.ends)
            .into_iter()
            .enumerate()
        {
            let mut zeros = 0u64;
            while next < end {
                let raw_bytes = self.layout.raw_bytes(next).unwrap_or(0);
                let entry = self.index.entry(next)?;
                let chunk = next;
                next += 1;
                self.done.fetch_add(raw_bytes, Ordering::Relaxed);
                if entry.packed == 0 {
                    zeros = zeros.saturating_add(raw_bytes);
                    continue;
                }
                if zeros > 0 {
                    again.end(emit)?;
                    emit.zeros(std::mem::take(&mut zeros))?;
                }
                if entry.packed == IS_KNOWN {
                    self.known_again(chunk, entry, &mut again, emit)?;
                    continue;
                }
                again.end(emit)?;
                let length = to_usize(u64::from(entry.packed));
                let bytes = self.buffer.get_mut(..length).unwrap_or_default();
                let file = &self.hold.file;
                let read = file.read_exact_at(bytes, entry.offset());
                read.map_err(|error| held(&error))?;
                again.check(chunk, bytes, raw_bytes, entry.crc32)?;
                emit.data(&Encoded::of(bytes, raw_bytes, entry.crc32))?;
                // No harm where that cannot be. What has a name stays whole until all of it was given: this may break off, too.
                if self.hold.left.is_none() {
                    let _ = self.give_back(entry);
                }
            }
            again.end(emit)?;
            if zeros > 0 {
                emit.zeros(zeros)?;
            }
            emit.end_image(image)?;
        }
        emit.finish()
    }

    /// A chunk that was here already, once its hash has proven it, as the other end would have packed it.
    fn known_again(
        &mut self,
        chunk: u64,
        entry: HeldChunk,
        again: &mut Again,
        emit: &mut dyn Emit,
    ) -> Result<(), Problem> {
        let changed = || Fault::corrupt(known::CHANGED).in_unit("chunk", chunk);
        let hash = self.hashes.bytes(chunk)?;
        let old = self.old.as_mut().ok_or_else(changed)?;
        if let Some((length, crc32)) = old.as_it_is(chunk, &hash, &mut self.buffer) {
            again.end(emit)?;
            check_sum(chunk, crc32, entry.crc32)?;
            let bytes = self.buffer.get(..length).unwrap_or_default();
            let raw_bytes = self.layout.raw_bytes(chunk).unwrap_or(0);
            return emit.data(&Encoded::of(bytes, raw_bytes, crc32));
        }
        let raw = old.proven(chunk, &hash).ok_or_else(changed)?;
        let raw_bytes = to_u64(raw.len());
        if let Some(hands) = &mut again.hands {
            hands.take(raw)?;
            again.chunks.push_back((chunk, raw_bytes, entry.crc32));
            return match hands.are_full() {
                true => again.give(emit).map(drop),
                false => Ok(()),
            };
        }
        check_sum(chunk, crc::crc32(0, raw), entry.crc32)?;
        let mut bytes = Vec::with_capacity(MAX_PACKED);
        stored(&mut bytes, raw);
        again.check(chunk, &bytes, raw_bytes, entry.crc32)?;
        emit.data(&Encoded::of(&bytes, raw_bytes, entry.crc32))
    }
}

/// What is held cannot be read.
pub(super) fn held(error: &std::io::Error) -> Fault {
    Fault::short("read of what is held").with_errno(error.raw_os_error())
}

fn check_sum(chunk: u64, found: u32, expected: u32) -> Result<(), Fault> {
    match found == expected {
        true => Ok(()),
        false => Err(Fault::corrupt("checksum of a chunk").in_unit("chunk", chunk)),
    }
}

/// What is packed once more, on every CPU, and given in order.
struct Again {
    /// None: it is not.
    hands: Option<Hands>,
    /// Those under way: number, raw bytes, and their checksum.
    chunks: VecDeque<(u64, u64, u32)>,
    /// What is given is inflated, unless it was.
    proof: Option<Proof>,
}

/// What inflates a chunk to know that it is right.
pub(super) struct Proof {
    inflate: Inflate,
    raw: Pages,
}

impl Proof {
    pub(super) fn new() -> Result<Self, Fault> {
        Ok(Self {
            inflate: Inflate::new()?,
            raw: known::pages(to_usize(CHUNK_BYTES))?,
        })
    }

    /// Whether packed bytes are what their checksum says.
    pub(super) fn check(
        &mut self,
        chunk: u64,
        packed: &[u8],
        raw: u64,
        crc32: u32,
    ) -> Result<(), Fault> {
        let Self { inflate, raw: room } = self;
        let length = unpack(inflate, packed, room).filter(|length| to_u64(*length) == raw);
        let found = length.and_then(|length| room.get(..length));
        let found = found.ok_or_else(|| Fault::corrupt("deflate data").in_unit("chunk", chunk))?;
        check_sum(chunk, crc::crc32(0, found), crc32)
    }
}

impl Again {
    /// Whether packed bytes are what their checksum says, where that is asked.
    fn check(&mut self, chunk: u64, packed: &[u8], raw: u64, crc32: u32) -> Result<(), Fault> {
        match &mut self.proof {
            Some(proof) => proof.check(chunk, packed, raw, crc32),
            None => Ok(()),
        }
    }

    /// Gives the next one; false: there is none.
    fn give(&mut self, emit: &mut dyn Emit) -> Result<bool, Problem> {
        let packed = match &mut self.hands {
            Some(hands) => hands.give()?,
            None => None,
        };
        let (Some(packed), Some((chunk, raw_bytes, crc32))) = (packed, self.chunks.pop_front())
        else {
            return Ok(false);
        };
        check_sum(chunk, packed.crc32, crc32)?;
        self.check(chunk, packed.packed(), raw_bytes, crc32)?;
        emit.data(&Encoded::of(packed.packed(), raw_bytes, crc32))?;
        if let Some(hands) = &mut self.hands {
            hands.take_back(packed);
        }
        Ok(true)
    }

    /// Gives all of them: what is next in order is something else.
    fn end(&mut self, emit: &mut dyn Emit) -> Result<(), Problem> {
        while self.give(emit)? {}
        Ok(())
    }
}
