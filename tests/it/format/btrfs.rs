//! btrfs: maps of frozen filesystems against btrfs-progs' own view, and images rebuilt from the map against check, scrub and the files.
//!
//! The original is always unmounted before its copy is mounted: both have one fsid, and the kernel may take the one for the other.

use crate::common::{self, Limit, LoopFs, Mounted, Random, Spec, Writer, text};
use crate::maps::{self, Walked};
use floe::device::{Access, Device, ReadAt};
use floe::fs::{self, Coverage, Still, UsedMap, Walk};
use floe::units::BlockSize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

#[track_caller]
fn map_of(device: &dyn ReadAt, still: Still) -> Walked {
    let walked = maps::walk_on(device, still).expect("walk");
    assert_eq!(walked.identity.kind.name(), "btrfs");
    walked
}

/// What btrfs-progs say is used on the device: 4 KiB blocks of all copies of all extents, and those that no extent names.
fn reference_blocks(image: &Path, node_bytes: u64) -> BTreeSet<u64> {
    let dump = |tree: &str| {
        let image = image.to_string_lossy();
        btrfs(&["inspect-internal", "dump-tree", "-t", tree, &image])
    };
    let number = |words: &[&str], name: &str| -> u64 {
        let at = words.iter().position(|word| *word == name).expect(name);
        words[at + 1].parse().expect("number")
    };
    // Chunk tree: "item N key (FIRST_CHUNK_TREE CHUNK_ITEM LOGICAL) …", "length N …", "stripe N devid 1 offset N".
    let mut chunks: Vec<(u64, u64, Vec<u64>)> = Vec::new();
    for line in dump("chunk").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.contains("CHUNK_ITEM") {
            let logical = words[5].trim_end_matches(')').parse().expect("logical");
            chunks.push((logical, 0, Vec::new()));
        } else if line.trim_start().starts_with("length ") {
            chunks.last_mut().expect("chunk").1 = number(&words, "length");
        } else if line.trim_start().starts_with("stripe ") {
            chunks
                .last_mut()
                .expect("chunk")
                .2
                .push(number(&words, "offset"));
        }
    }
    let mut blocks: BTreeSet<u64> = (0..256).collect();
    let size = std::fs::metadata(image).expect("image").len();
    blocks.extend(
        [64 << 20, 256 << 30]
            .into_iter()
            .filter(|at| *at < size)
            .map(|at| at / 4096),
    );
    for line in dump("extent").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let length = match words.get(4) {
            Some(&"EXTENT_ITEM") => words[5].trim_end_matches(')').parse().expect("length"),
            Some(&"METADATA_ITEM") => node_bytes,
            _ => continue,
        };
        let logical: u64 = words[3].trim_start_matches('(').parse().expect("logical");
        let (start, _, places) = chunks
            .iter()
            .find(|(start, bytes, _)| (*start..start + bytes).contains(&logical))
            .expect("chunk");
        for place in places {
            let first = place + logical - start;
            blocks.extend(first / 4096..(first + length).div_ceil(4096));
        }
    }
    blocks
}

fn btrfs(args: &[&str]) -> String {
    let program = program("btrfs", Path::is_file).expect("btrfs-progs");
    common::output(&text(&program), args)
}

/// The first that suits in `FLOE_BTRFS_PROGS`, then in `PATH`.
fn program(name: &str, suits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let folders = ["FLOE_BTRFS_PROGS", "PATH"].map(|list| std::env::var(list).unwrap_or_default());
    let all = folders.join(":");
    all.split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|path| suits(path))
}

/// Files of all sorts, snapshots of them, reflinks, compression, several generations of changes.
fn age(fs: &LoopFs, files: u32) {
    fs.fill(files);
    let dir = fs.dir().to_string_lossy().into_owned();
    btrfs(&["-q", "subvolume", "create", &format!("{dir}/volume")]);
    common::fill(&fs.dir().join("volume"), files / 2);
    btrfs(&[
        "-q",
        "subvolume",
        "snapshot",
        &format!("{dir}/volume"),
        &format!("{dir}/volume/snap"),
    ]);
    btrfs(&[
        "-q",
        "subvolume",
        "snapshot",
        "-r",
        &dir,
        &format!("{dir}/doomed"),
    ]);
    let script = format!(
        "set +o pipefail; cd '{dir}'; for i in 1 6 11; do mkdir -p ref; cp --reflink=always folder$i/file$(ls folder$i | sed -n 's/^file//p' | head -1) ref/$i; done; \
         rm -rf folder2 folder5; dd if=/dev/urandom of=large bs=64k count=200 status=none; sync -f .; \
         dd if=/dev/urandom of=large bs=4k seek=100 count=50 conv=notrunc status=none; \
         yes some text | head -c 3000000 > text; chattr +C . ; dd if=/dev/urandom of=nocow bs=64k count=20 status=none; sync -f ."
    );
    common::shell(&script, Limit::secs(120)).expect_code(0);
    btrfs(&["-q", "subvolume", "delete", "-c", &format!("{dir}/doomed")]);
    common::fill(&fs.dir().join("later"), files / 2);
}

/// Check, mount, scrub and compare a rebuilt image.
fn prove(copy: &Path, files: &BTreeMap<PathBuf, String>) {
    let name = copy.to_string_lossy();
    btrfs(&["check", "--readonly", &name]);
    let mounted = Mounted::new("btrfs", copy, "");
    let dir = mounted.dir().to_string_lossy().into_owned();
    let scrub = btrfs(&["scrub", "start", "-B", "-r", &dir]);
    assert!(scrub.contains("no errors found"), "{scrub}");
    common::assert_same_tree(files, &common::tree(mounted.dir()));
}

/// The writer's last child may hold the mount a moment longer than the writer.
#[track_caller]
fn unmount(fs: &LoopFs) {
    common::thaw(fs.dir());
    for _ in 0..100 {
        let done = Command::new("umount")
            .arg(fs.dir())
            .output()
            .expect("umount");
        if done.status.success() {
            return forget();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{} stays busy", fs.dir().display());
}

fn forget() {
    let _ = Command::new("btrfs")
        .args(["device", "scan", "--forget"])
        .output();
}

fn spec<'a>(mib: u64, mkfs: &'a [&'a str]) -> Spec<'a> {
    Spec {
        kind: "btrfs",
        mib,
        mkfs,
        ..Spec::default()
    }
}

fn make(mib: u64, mkfs: &[&str]) -> Result<LoopFs, String> {
    LoopFs::make(spec(mib, mkfs))
}

/// Makes, fills, freezes, maps, rebuilds, compares.
#[track_caller]
fn round_trip(spec: Spec<'_>, node_bytes: u64, files: u32) {
    let fs = require_ok!(LoopFs::make(spec));
    prove_round_trip(&fs, node_bytes, files);
}

/// The same with a feature that btrfs-progs older than 6.7 do not make: `FLOE_BTRFS_PROGS` (a list like `PATH`) is
/// where newer ones are.
#[track_caller]
fn round_trip_newer(feature: &str) {
    let newer = program("mkfs.btrfs", |mkfs| {
        let listed = Command::new(mkfs).args(["-O", "list-all"]).output();
        listed.is_ok_and(|out| {
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).contains(feature)
        })
    });
    let missing = format!("a mkfs.btrfs with {feature} in PATH or FLOE_BTRFS_PROGS");
    let mkfs = require_some!(newer, &missing);
    let mut fs = require_ok!(make(300, &[]));
    unmount(&fs);
    common::output(
        &text(&mkfs),
        &["-q", "-f", "-O", feature, &text(fs.device())],
    );
    fs.mount();
    prove_round_trip(&fs, 16384, 300);
}

#[track_caller]
fn prove_round_trip(fs: &LoopFs, node_bytes: u64, files: u32) {
    age(fs, files);
    let (copy, full) = (fs.scratch().join("copy"), fs.scratch().join("full"));
    let writer = Writer::start(fs.dir());
    std::thread::sleep(std::time::Duration::from_millis(300));
    common::freeze(fs.dir());
    let device = Device::open(fs.device(), Access::Read).expect("device");
    let mapped = map_of(&device, Still::Frozen);
    maps::rebuild_from(&device, &mapped.map, &copy);
    common::output("cp", &["--sparse=auto", &text(fs.image()), &text(&full)]);
    let files = common::tree(fs.dir());
    common::thaw(fs.dir());
    drop((writer, device));
    unmount(fs);
    maps::assert_used(mapped.verdict, "map");
    let reference = reference_blocks(&full, node_bytes);
    let missing: Vec<_> = reference
        .iter()
        .filter(|block| !mapped.map.is_used(*block * 4096))
        .collect();
    let (used, wanted) = (
        mapped.map.used_bytes(),
        4096 * u64::try_from(reference.len()).expect("small"),
    );
    assert!(
        missing.is_empty(),
        "{} blocks are missing: {:?}",
        missing.len(),
        missing.first()
    );
    assert!(
        used <= wanted + wanted / 20,
        "{used} bytes used, btrfs-progs say {wanted}"
    );
    prove(&copy, &files);
}

#[test]
fn default_metadata_dup_is_mapped_in_both_copies_and_restores() {
    round_trip(spec(300, &["-d", "single", "-m", "dup"]), 16384, 400);
}

#[test]
fn single_metadata_and_compression_restore() {
    let spec = Spec {
        options: "compress-force=zstd",
        sector_size: 4096,
        ..spec(300, &["-m", "single", "-d", "single"])
    };
    round_trip(spec, 16384, 400);
}

#[test]
fn duplicated_data_restores_in_both_copies() {
    let spec = Spec {
        options: "compress=lzo",
        ..spec(400, &["-m", "dup", "-d", "dup"])
    };
    round_trip(spec, 16384, 300);
}

#[test]
fn mixed_block_groups_with_4k_nodes_restore() {
    round_trip(spec(200, &["--mixed", "-n", "4096"]), 4096, 300);
}

#[test]
fn mixed_block_groups_in_dup_restore() {
    round_trip(spec(300, &["--mixed", "-d", "dup", "-m", "dup"]), 4096, 200);
}

#[test]
fn nodes_of_64k_with_xxhash_restore() {
    round_trip(spec(400, &["-n", "65536", "--csum", "xxhash"]), 65536, 300);
}

#[test]
fn nodes_of_4k_with_sha256_and_quota_restore() {
    round_trip(
        spec(300, &["-n", "4096", "--csum", "sha256", "-R", "quota"]),
        4096,
        300,
    );
}

#[test]
fn blake2_without_no_holes_and_free_space_tree_restores() {
    let spec = Spec {
        options: "space_cache=v1",
        ..spec(
            300,
            &[
                "-n",
                "32768",
                "--csum",
                "blake2",
                "-O",
                "^no-holes",
                "-R",
                "^free-space-tree",
            ],
        )
    };
    round_trip(spec, 32768, 300);
}

#[test]
fn fat_extent_items_of_old_filesystems_restore() {
    round_trip(spec(300, &["-O", "^skinny-metadata,^extref"]), 16384, 300);
}

#[test]
fn raid0_of_one_device_is_a_line_and_restores() {
    round_trip(spec(300, &["-d", "raid0", "-m", "single"]), 16384, 200);
}

#[test]
fn a_block_group_tree_restores() {
    round_trip_newer("block-group-tree");
}

#[test]
fn simple_quotas_with_their_owner_references_restore() {
    round_trip_newer("squota");
}

#[test]
fn a_sparse_filesystem_of_6_gib_restores() {
    round_trip(spec(6000, &[]), 16384, 500);
}

#[test]
fn a_filesystem_with_its_metadata_uuid_changed_is_mapped() {
    let mut fs = require_ok!(make(200, &[]));
    fs.fill(100);
    unmount(&fs);
    common::output("btrfstune", &["-m", &fs.device().to_string_lossy()]);
    fs.mount();
    fs.fill(150);
    unmount(&fs);
    let device = Device::open(fs.device(), Access::Read).expect("device");
    let mapped = map_of(&device, Still::Unmounted);
    maps::assert_used(mapped.verdict, "map");
    let blocks = reference_blocks(fs.image(), 16384);
    assert!(blocks.iter().all(|block| mapped.map.is_used(block * 4096)));
}

#[test]
fn unwritten_extents_are_free_and_their_written_parts_are_not() {
    let fs = require_ok!(make(400, &[]));
    let dir = fs.dir().to_string_lossy().into_owned();
    // The secret is written, deleted, and lies below what is then allocated but not written.
    let script = format!(
        "set +o pipefail; cd '{dir}'; yes floe-secret-below | head -c 200M > secret; sync -f .; rm secret; sync -f .; sleep 1; sync -f .; \
         fallocate -l 150M empty; fallocate -l 40M partly; fallocate -l 8M shared; sync -f .; \
         yes written-part | head -c 3M | dd of=partly bs=1M seek=10 conv=notrunc,fsync status=none; \
         yes written-again | head -c 1M | dd of=partly bs=1M seek=30 conv=notrunc,fsync status=none; \
         cp --reflink=always shared shared2; yes written | head -c 1M | dd of=shared2 bs=1M seek=1 conv=notrunc,fsync status=none; sync -f ."
    );
    common::shell(&script, Limit::secs(120)).expect_code(0);
    // Snapshots before and after a part was written: references from two trees, and from leaves that both share.
    let snapshots = format!(
        "set +o pipefail; cd '{dir}'; btrfs -q subvolume create v; fallocate -l 30M v/image; touch v/a v/b; sync -f .; \
         btrfs -q subvolume snapshot v snap1; yes in-original | head -c 1M | dd of=v/image bs=1M seek=3 conv=notrunc,fsync status=none; \
         btrfs -q subvolume snapshot v snap2; yes in-snapshot | head -c 1M | dd of=snap2/image bs=1M seek=9 conv=notrunc,fsync status=none; \
         touch snap1/c v/d; for i in $(seq 300); do echo $i > v/f$i; done; sync -f ."
    );
    common::shell(&snapshots, Limit::secs(120)).expect_code(0);
    let copy = fs.scratch().join("copy");
    common::freeze(fs.dir());
    let device = Device::open(fs.device(), Access::Read).expect("device");
    let mapped = map_of(&device, Still::Frozen);
    maps::rebuild_from(&device, &mapped.map, &copy);
    let files = common::tree(fs.dir());
    common::thaw(fs.dir());
    drop(device);
    unmount(&fs);
    maps::assert_used(mapped.verdict, "map");
    let secret = Command::new("grep")
        .args(["-aq", "floe-secret-below"])
        .arg(&copy)
        .status();
    assert_eq!(secret.expect("grep").code(), Some(1), "old bytes went out");
    // 228 MiB are unwritten; 7 MiB of data, the reserved MiB and metadata stay.
    assert!(
        mapped.map.used_bytes() < 12 << 20,
        "{} bytes used",
        mapped.map.used_bytes()
    );
    assert!(
        mapped.map.used_bytes() > 8 << 20,
        "{} bytes used",
        mapped.map.used_bytes()
    );
    prove(&copy, &files);
}

#[test]
fn one_device_of_two_is_refused_by_name() {
    let fs = require_ok!(make(200, &[]));
    let second = fs.scratch().join("second");
    common::sparse(&second, 200 << 20);
    let second = common::LoopDevice::attach(&second, 512);
    btrfs(&[
        "device",
        "add",
        "-f",
        &second.path().to_string_lossy(),
        &fs.dir().to_string_lossy(),
    ]);
    unmount(&fs);
    let device = Device::open(fs.device(), Access::Read).expect("device");
    let identity = fs::probe(&device).expect("readable").expect("recognised");
    assert_eq!(identity.devices, 2);
    let mut map = UsedMap::new(identity.size_bytes, BlockSize::from_bytes(4096).unwrap()).unwrap();
    let mut scratch = vec![0; fs::SCRATCH_BYTES];
    let mut walk = Walk::new(&device, &mut scratch);
    let fault = fs::walk(&identity, Still::Unmounted, &mut walk, &mut map).unwrap_err();
    assert_eq!(fault.kind(), floe::error::FaultKind::Refused);
    assert!(fault.to_string().contains("btrfs on several"), "{fault}");
    drop((device, fs));
    forget();
}

#[test]
fn a_device_that_is_being_replaced_is_refused_and_taken_again_when_that_is_over() {
    drop(require_floe!());
    // A replacement may be over before it is looked at: tried a few times, with more to copy.
    for attempt in 1..=4u32 {
        let mut fs = require_ok!(make(1200, &[]));
        for number in 0..attempt {
            let noise = Random(number.into()).bytes(200 << 20);
            std::fs::write(fs.dir().join(number.to_string()), noise).expect("write");
        }
        common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
        let second = fs.scratch().join("second");
        common::sparse(&second, 1200 << 20);
        let second = common::LoopDevice::attach(&second, 512);
        let (old, new) = (fs.device().to_owned(), second.path().to_owned());
        let [old, new, dir] =
            [&old, &new, fs.dir()].map(|path| path.to_string_lossy().into_owned());
        btrfs(&["replace", "start", "-f", &old, &new, &dir]);
        let out = fs.scratch().join("out.gz");
        let mut dump = common::floe().expect("required before");
        dump.args(["dump", &dir, "-o"]).arg(&out);
        let run = common::run(&mut dump, Limit::secs(120));
        let was_refused = run.code == Some(4);
        if was_refused {
            // The kernel shows both devices for most of the time; before and after, the item on the disk tells.
            let said = run.stderr_text();
            let known = said.contains("is being replaced") || said.contains("spans 2 devices");
            assert!(known, "{run}");
            assert!(!out.exists());
        }
        // It cannot be unmounted before it is over; then the new device is the filesystem's.
        let over = common::wait_until(std::time::Duration::from_secs(120), || {
            btrfs(&["replace", "status", "-1", &dir]).contains("finished")
        });
        assert!(over, "the replacement ends");
        if was_refused {
            // For an instant at the end the kernel shows neither device.
            let mut run = None;
            let taken = common::wait_until(std::time::Duration::from_secs(5), || {
                let mut dump = common::floe().expect("required before");
                dump.args(["dump", &dir, "-o"]).arg(&out);
                let ended = common::run(&mut dump, Limit::secs(240));
                let is_early = ended.stderr_text().contains("were not found in sysfs");
                run = Some(ended);
                !is_early
            });
            run.filter(|_| taken).expect("a run").expect_code(0);
        }
        fs.unmount();
        drop((fs, second));
        forget();
        if was_refused {
            return;
        }
    }
    panic!("every replacement was over before it was looked at");
}

#[test]
fn a_log_that_was_not_replayed_means_everything_is_read() {
    let fs = require_ok!(make(200, &[]));
    std::fs::write(fs.dir().join("first"), b"first").expect("write");
    common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
    let synced = "dd if=/dev/urandom of=logged bs=4k count=3 conv=fsync status=none";
    let script = format!("cd '{}'; {synced}", fs.dir().display());
    common::shell(&script, Limit::secs(20)).expect_code(0);
    // What a power cut would leave behind: the device as it is, unfrozen.
    let device = Device::open(fs.device(), Access::Read).expect("device");
    let mapped = map_of(&device, Still::Unmounted);
    assert_eq!(mapped.verdict.coverage, Coverage::Whole);
    assert_eq!(mapped.map.used_bytes(), mapped.identity.size_bytes);
    let doubt = mapped.verdict.doubt.expect("doubt").to_string();
    assert!(doubt.contains("not replayed"), "{doubt}");
}

#[test]
fn a_write_between_two_witnesses_is_seen() {
    let fs = require_ok!(make(200, &[]));
    let device = Device::open(fs.device(), Access::Read).expect("device");
    let identity = fs::probe(&device).expect("readable").expect("recognised");
    let mut scratch = vec![0; fs::SCRATCH_BYTES];
    let mut take =
        || fs::witness(&identity, &mut Walk::new(&device, &mut scratch)).expect("witness");
    common::freeze(fs.dir());
    let before = take();
    assert_eq!(before, take());
    common::thaw(fs.dir());
    std::fs::write(fs.dir().join("new"), b"x").expect("write");
    common::freeze(fs.dir());
    assert_ne!(before, take());
    common::thaw(fs.dir());
}

#[test]
fn bad_first_copies_of_duplicated_tree_blocks_are_read_from_the_second() {
    let fs = require_ok!(make(200, &["-m", "dup"]));
    fs.fill(60);
    unmount(&fs);
    let mut image = std::fs::read(fs.image()).expect("image");
    let good = map_of(&image, Still::Unmounted);
    // The first time an address of a tree block turns up it is the first copy.
    let fsid: Vec<u8> = image[0x10020..0x10030].to_vec();
    let mut seen = BTreeSet::new();
    for at in (0x20_0000..image.len()).step_by(4096) {
        if image[at + 0x20..at + 0x30] == fsid && seen.insert(image[at + 0x30..at + 0x38].to_vec())
        {
            image[at + 200] ^= 0x55;
        }
    }
    assert!(seen.len() > 10);
    let again = map_of(&image, Still::Unmounted);
    maps::assert_used(again.verdict, "map");
    assert_eq!(
        maps::used_extents(&again.map),
        maps::used_extents(&good.map)
    );
}

/// Flips bytes in every used block of a small image in turn: nothing may panic, and nothing used may come out free.
#[test]
fn flipped_bytes_only_ever_make_more_blocks_used() {
    let fs = require_ok!(make(64, &["--mixed", "-n", "4096"]));
    fs.fill(60);
    unmount(&fs);
    let mut image = std::fs::read(fs.image()).expect("image");
    let base = map_of(&image, Still::Unmounted);
    maps::assert_used(base.verdict, "map");
    // Tree blocks carry the fsid at 0x20, as the superblock does.
    let fsid: Vec<u8> = image[0x10020..0x10030].to_vec();
    let trees: Vec<usize> = (0..image.len() / 4096)
        .map(|block| block * 4096)
        .filter(|at| image[at + 0x20..at + 0x30] == fsid)
        .collect();
    assert!(trees.len() > 10);
    let mut random = Random(0xb7_0f5);
    let identity = fs::probe(&image).expect("readable").expect("btrfs");
    for round in 0..3000 {
        let block = trees[round % trees.len()];
        let at = block + usize::try_from(random.below(4096)).expect("small");
        let flip = 1 << random.below(8);
        image[at] ^= flip;
        let repair = round % 2 == 1;
        let old: Vec<u8> = image[block..block + 4].to_vec();
        if repair {
            let sum = floe::crc::crc32c(&image[block + 32..block + 4096]).to_le_bytes();
            image[block..block + 4].copy_from_slice(&sum);
        }
        let mut map =
            UsedMap::new(identity.size_bytes, BlockSize::from_bytes(4096).unwrap()).unwrap();
        let mut scratch = vec![0x5a; fs::SCRATCH_BYTES];
        let outcome = fs::walk(
            &identity,
            Still::Unmounted,
            &mut Walk::new(&image, &mut scratch),
            &mut map,
        );
        if !repair && outcome.is_ok() {
            let lost = maps::used_extents(&base.map).into_iter().any(|extent| {
                (extent.offset / 4096..extent.end() / 4096).any(|block| !map.is_used(block * 4096))
            });
            assert!(
                !lost,
                "byte {at:#x} ^ {flip:#x} lost a used block: {outcome:?}"
            );
        }
        image[block..block + 4].copy_from_slice(&old);
        if at >= block + 4 || !repair {
            image[at] ^= flip;
        } else {
            image[at] = old[at - block] ^ flip;
        }
    }
}
