//! What is done to a piece: inflated, hashed, and now and then packed once more.

use super::super::MAX_PACKED;
use crate::crc;
use crate::error::Fault;
use crate::stream::deflate::Deflater;
use crate::stream::inflate::Inflate;
use crate::stream::pipeline::known::{Hash, hash};
use crate::stream::plan::CHUNK_BYTES;
use crate::units::to_usize;

/// All of what stands alone, up to where it ends between two blocks, on a byte; how many bytes came out.
pub(in crate::stream::frames) fn unpack(
    inflate: &mut Inflate,
    packed: &[u8],
    raw: &mut [u8],
) -> Option<usize> {
    inflate.reset();
    let (mut taken, mut given) = (0, 0);
    while let Some(rest) = packed.get(taken..).filter(|rest| !rest.is_empty()) {
        let step = inflate.step(rest).ok()?;
        taken += step.consumed;
        let end = given + step.output.len();
        raw.get_mut(given..end)?.copy_from_slice(step.output);
        given = end.checked_add(usize::try_from(step.zeros).ok()?)?;
        raw.get_mut(end..given)?.fill(0);
        if step.ended {
            return None;
        }
    }
    inflate.is_between_blocks().then_some(given)
}

/// A piece on its way.
pub(super) struct PackedChunk {
    pub(super) offset: u64,
    pub(super) packed: Vec<u8>,
    raw: Vec<u8>,
    /// It is packed once more.
    pub(super) is_sample: bool,
    /// Raw bytes, where it stands alone.
    pub(super) found: Option<usize>,
    pub(super) crc32: u32,
    pub(super) hash: Hash,
    pub(super) proof: Hash,
    pub(super) is_ours: bool,
}

impl PackedChunk {
    pub(super) fn new() -> Self {
        Self {
            offset: 0,
            packed: Vec::with_capacity(MAX_PACKED),
            raw: vec![0; to_usize(CHUNK_BYTES)],
            is_sample: false,
            found: None,
            crc32: 0,
            hash: Hash::default(),
            proof: Hash::default(),
            is_ours: true,
        }
    }
}

/// What works on a piece.
pub(super) struct Examiner {
    inflate: Inflate,
    deflater: Deflater,
    again: Vec<u8>,
}

impl Examiner {
    pub(super) fn new(level: u8) -> Result<Self, Fault> {
        Ok(Self {
            inflate: Inflate::new()?,
            deflater: Deflater::new(level),
            again: vec![0; MAX_PACKED],
        })
    }

    pub(super) fn work(&mut self, work: &mut PackedChunk) {
        work.found = unpack(&mut self.inflate, &work.packed, &mut work.raw);
        let Some(raw) = work.found.and_then(|length| work.raw.get(..length)) else {
            return;
        };
        work.crc32 = crc::crc32(0, raw);
        work.hash = hash(raw);
        work.proof = hash(&work.packed);
        work.is_ours = !work.is_sample || {
            let again = self.deflater.encode(raw, &mut self.again).ok();
            let again = again.and_then(|length| self.again.get(..length));
            again == Some(&*work.packed)
        };
    }
}
