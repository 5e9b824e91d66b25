//! Used-block maps against the truth: walks an image with the library, and rebuilds one from nothing but its used blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use floe::device::{Access, Device, ReadAt};
use floe::error::Fault;
use floe::fs::{self, Coverage, Identity, SCRATCH_BYTES, Still, UsedMap, Verdict, Walk, Witness};
use floe::units::{BlockSize, Extent};
use rustix::fs::SeekFrom;

use crate::common::{self, LoopFs};

/// Whether this run tests the library as it is linked in here, and the tool is there: under a runner for another
/// architecture these tests would only repeat themselves.
pub fn native_with(program: &str) -> bool {
    common::runner().is_none() && common::have(program)
}

/// What a walk of an image or device gave.
pub struct Walked {
    pub identity: Identity,
    pub verdict: Verdict,
    pub map: UsedMap,
}

/// All of it was proven.
#[track_caller]
pub fn assert_used(verdict: Verdict, what: impl std::fmt::Display) {
    let Verdict { coverage, doubt } = verdict;
    assert_eq!(coverage, Coverage::Used, "{what}: {doubt:?}");
}

/// Of something frozen, which then is thawed: walked, and rebuilt from what is used.
#[track_caller]
pub fn frozen(made: &LoopFs, rebuilt: &Path) -> Walked {
    common::freeze(made.dir());
    let walked = walk(made.device(), Still::Frozen);
    rebuild(made.image(), &walked.map, rebuilt);
    common::thaw(made.dir());
    walked
}

/// Probes and walks.
#[track_caller]
pub fn walk(path: &Path, still: Still) -> Walked {
    try_walk(path, still).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

pub fn try_walk(path: &Path, still: Still) -> Result<Walked, Fault> {
    walk_on(&Device::open(path, Access::Read)?, still)
}

/// The same for what is open or in memory.
pub fn walk_on(device: &dyn ReadAt, still: Still) -> Result<Walked, Fault> {
    let identity = fs::probe(device)?.expect("a filesystem that we know");
    let size_bytes = identity.size_bytes;
    walk_over(device, identity, size_bytes, still)
}

/// With a map of so many bytes, which may be more than the filesystem has.
pub fn walk_over(
    device: &dyn ReadAt,
    identity: Identity,
    size_bytes: u64,
    still: Still,
) -> Result<Walked, Fault> {
    let block = BlockSize::from_bytes(identity.block_bytes.into()).expect("a block size");
    let mut map = UsedMap::new(size_bytes, block).expect("a map");
    let mut scratch = vec![0xa5; SCRATCH_BYTES];
    let verdict = fs::walk(
        &identity,
        still,
        &mut Walk::new(device, &mut scratch),
        &mut map,
    )?;
    Ok(Walked {
        identity,
        verdict,
        map,
    })
}

/// Nothing is written, so two witnesses are equal.
#[track_caller]
pub fn assert_witness_holds(device: &dyn ReadAt, identity: &Identity) {
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut take = || fs::witness(identity, &mut Walk::new(device, &mut scratch)).expect("witness");
    assert_eq!(take(), take());
}

/// The witness as it is now.
#[track_caller]
pub fn witness(path: &Path) -> Witness {
    let device = Device::open(path, Access::Read).expect("device");
    let identity = fs::probe(&device).expect("read").expect("known");
    let mut scratch = vec![0; SCRATCH_BYTES];
    fs::witness(&identity, &mut Walk::new(&device, &mut scratch)).expect("witness")
}

/// Used extents in order.
pub fn used_extents(map: &UsedMap) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(extent) = map.next_used(from, u64::MAX) {
        found.push(extent);
        from = extent.end();
    }
    found
}

/// A sparse image with the used blocks of `source` and zeros everywhere else: what `dump` would write.
#[track_caller]
pub fn rebuild(source: &Path, map: &UsedMap, target: &Path) {
    rebuild_from(
        &Device::open(source, Access::Read).expect("source"),
        map,
        target,
    );
}

#[track_caller]
pub fn rebuild_from(source: &dyn ReadAt, map: &UsedMap, target: &Path) {
    let target = File::create(target).expect("target");
    target.set_len(map.size_bytes()).expect("length");
    let mut buffer = vec![0; 1 << 20];
    for extent in used_extents(map) {
        let mut offset = extent.offset;
        while offset < extent.end() {
            let count = usize::try_from(extent.end() - offset)
                .map_or(buffer.len(), |n| n.min(buffer.len()));
            let piece = &mut buffer[..count];
            source.read_at(offset, piece).expect("read");
            if piece.iter().any(|byte| *byte != 0) {
                target.write_all_at(piece, offset).expect("write");
            }
            offset += u64::try_from(count).expect("small");
        }
    }
}

/// How often `needle` stands in a file at multiples of its length; holes are passed over.
pub fn count_marks(path: &Path, needle: &[u8]) -> usize {
    let file = File::open(path).expect("image");
    let length = file.metadata().expect("image").len();
    let mut buffer = vec![0; 1 << 20];
    let (mut offset, mut found) = (0, 0);
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(offset)) {
        offset = data / 4096 * 4096;
        let count = usize::try_from(length - offset).map_or(buffer.len(), |n| n.min(buffer.len()));
        let piece = &mut buffer[..count];
        file.read_exact_at(piece, offset).expect("read");
        let same = |chunk: &&[u8]| *chunk == needle;
        found += piece.chunks_exact(needle.len()).filter(same).count();
        offset += u64::try_from(count).expect("small");
    }
    found
}
