//! A walk that knows what an earlier one found: the same map as one that knows nothing, from much less of the device.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use floe::device::{Access, Device, ReadAt};
use floe::error::Fault;
use floe::fs::earlier::{Earlier, EarlierFindings, PIECE_BYTES};
use floe::fs::{self as readers, Coverage, SCRATCH_BYTES, Still, UsedMap, Walk};
use floe::units::BlockSize;

use crate::common::{self, LoopFs, Spec};
use crate::maps;

/// Counts what is read.
struct Counted {
    device: Device,
    bytes: AtomicU64,
}

impl ReadAt for Counted {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.bytes.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        self.device.read_at(offset, buffer)
    }
}

/// The map, and how much was read for it.
fn walk(image: &Path, known: EarlierFindings<'_>) -> (UsedMap, u64) {
    let device = Device::open(image, Access::Read).expect("image");
    let counted = Counted {
        device,
        bytes: AtomicU64::new(0),
    };
    let identity = readers::probe(&counted).expect("read").expect("known");
    let block = BlockSize::from_bytes(identity.block_bytes.into()).expect("block");
    let mut map = UsedMap::new(identity.size_bytes, block).expect("map");
    let mut scratch = vec![0x5a; SCRATCH_BYTES];
    counted.bytes.store(0, Ordering::SeqCst);
    let mut work = Walk::new(&counted, &mut scratch).knowing(known);
    let verdict = readers::walk(&identity, Still::Frozen, &mut work, &mut map).expect("walk");
    assert_eq!((verdict.coverage, verdict.doubt), (Coverage::Used, None));
    (map, counted.bytes.load(Ordering::SeqCst))
}

fn copy_frozen(made: &LoopFs, to: &Path) {
    common::freeze(made.dir());
    let copied = Command::new("cp")
        .args(["--sparse=always"])
        .args([made.device(), to])
        .status();
    common::thaw(made.dir());
    assert!(copied.expect("cp").success());
}

fn allocate(path: &Path, bytes: u64) {
    let file = File::create(path).expect("create");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).expect("fallocate");
}

fn check(spec: Spec<'_>) {
    require!(
        maps::native_with("cp"),
        "no runner: the library linked in here walks"
    );
    let made = require_ok!(LoopFs::make(spec));
    let dir = made.dir().to_owned();
    for folder in 0..20 {
        let folder = dir.join(format!("d{folder}"));
        fs::create_dir(&folder).expect("folder");
        for file in 0..150 {
            fs::write(folder.join(format!("f{file}")), []).expect("file");
        }
        fs::write(folder.join("data"), vec![7; 200_000]).expect("data");
    }
    allocate(&dir.join("d3/early"), 3 << 20);
    allocate(&dir.join("d4/journal"), 3 << 20);
    let (before, after) = (made.scratch().join("before"), made.scratch().join("after"));
    copy_frozen(&made, &before);
    // What a journal does, blocks of another file that become unwritten ones, and files that come and go.
    common::output(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={}", dir.join("d4/journal").display()),
            "bs=64k",
            "count=9",
            "conv=notrunc",
            "status=none",
        ],
    );
    fs::remove_file(dir.join("d9/data")).expect("remove");
    fs::write(dir.join("d9/more"), vec![1; 100_000]).expect("write");
    let quiet = made.scratch().join("quiet");
    copy_frozen(&made, &quiet);
    for folder in 10..18 {
        fs::remove_file(dir.join(format!("d{folder}/data"))).expect("remove");
    }
    // So that what was freed is had again.
    let _ = Command::new("sync").status();
    let free = rustix::fs::statvfs(&dir).expect("statvfs");
    allocate(&dir.join("d5/new"), free.f_bavail * free.f_frsize * 9 / 10);
    copy_frozen(&made, &after);

    let length = fs::metadata(&before).expect("image").len();
    let earlier = Earlier::new(length);
    let (first, all) = walk(&before, EarlierFindings::Learns(&earlier));
    assert_eq!(
        maps::used_extents(&first),
        maps::used_extents(&walk(&before, EarlierFindings::Nothing).0)
    );
    let (again, little) = walk(&before, EarlierFindings::Knows(&earlier, &first));
    assert_eq!(maps::used_extents(&first), maps::used_extents(&again));
    assert!(little * 2 < all, "{little} of {all} bytes were read again");

    let one = fs::read(&before).expect("image");
    for (image, is_quiet) in [(quiet, true), (after, false)] {
        let other = fs::read(&image).expect("image");
        for (piece, (one, other)) in one
            .chunks(PIECE_BYTES as usize)
            .zip(other.chunks(PIECE_BYTES as usize))
            .enumerate()
        {
            if one != other {
                earlier.read_again(piece as u64 * PIECE_BYTES);
            }
        }
        let (expected, _) = walk(&image, EarlierFindings::Nothing);
        let (map, read) = walk(&image, EarlierFindings::Knows(&earlier, &first));
        assert_eq!(
            maps::used_extents(&map),
            maps::used_extents(&expected),
            "{is_quiet}"
        );
        assert!(!is_quiet || read < all, "{read} of {all}");
        // Not believed: everything is read.
        earlier.forget();
        let (map, unknown) = walk(&image, EarlierFindings::Knows(&earlier, &first));
        assert_eq!(maps::used_extents(&map), maps::used_extents(&expected));
        assert!(unknown >= read);
        earlier.believe();
    }
}

#[test]
fn ext4_gives_the_same_map_from_less_of_the_device() {
    check(Spec {
        mib: 96,
        mkfs: &["-N", "8192"],
        ..Spec::default()
    });
}

#[test]
fn ext4_with_small_blocks_gives_the_same_map_from_less_of_the_device() {
    check(Spec {
        mib: 96,
        mkfs: &["-b", "1024", "-N", "8192"],
        ..Spec::default()
    });
}

#[test]
fn xfs_gives_the_same_map_from_less_of_the_device() {
    check(Spec {
        kind: "xfs",
        mib: 320,
        options: "nouuid",
        ..Spec::default()
    });
}
