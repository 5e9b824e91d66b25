//! What is an image: `dump` makes only what `verify` and `restore` take back, and these take nothing else. One test a kind; and the
//! property itself, over every image that is made here.

use crate::common::{self, Limit, LoopDevice, Run, Scratch};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// Runs floe with these words.
fn floe(words: &[&str]) -> Run {
    let mut floe = common::floe().expect("FLOE_BIN");
    common::run(floe.args(words), Limit::secs(120))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn sparse(path: &Path, bytes: u64) {
    let file = File::create(path).expect("file");
    file.set_len(bytes).expect("length");
}

fn noise(bytes: usize) -> Vec<u8> {
    common::Random(7).bytes(bytes)
}

/// An ext4 in a file, of so many MiB.
fn ext4(scratch: &Scratch, name: &str, mib: u64) -> PathBuf {
    let path = scratch.join(name);
    sparse(&path, mib * MIB);
    common::output("mkfs.ext4", &["-q", "-F", &text(&path)]);
    path
}

/// A disk of 32 MiB with one partition from 1 MiB on, 24 MiB long.
fn disk(scratch: &Scratch, name: &str, table: &str) -> PathBuf {
    let path = scratch.join(name);
    sparse(&path, 32 * MIB);
    let script = format!("label: {table}\nstart=2048, size=49152\n");
    let mut sfdisk = std::process::Command::new("sfdisk");
    let sfdisk = sfdisk.args(["-q", &text(&path)]);
    common::run_with_input(sfdisk, script.as_bytes(), Limit::secs(30)).expect_code(0);
    path
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(bytes, offset).expect("write");
}

/// The property: what `dump` makes is taken back, bit for bit where it is `whole`; what it refuses is 4, and the line says how it
/// can be copied all the same; and so it can be.
#[track_caller]
fn agree(scratch: &Scratch, source: &Path) -> bool {
    let source = text(source);
    let mut taken = true;
    for whole in [false, true] {
        let image = text(&scratch.join("agree.gz"));
        let out = text(&scratch.join("agree.out"));
        let _ = fs::remove_file(&out);
        let mut words = vec!["dump", &source, "-o", &image];
        words.extend(whole.then_some("--whole"));
        let run = floe(&words);
        if run.code == Some(4) && !whole {
            assert!(run.stderr_text().contains("--whole"), "{run}");
            taken = false;
            continue;
        }
        let run = run.expect_code(0);
        floe(&["verify", &image]).expect_code(0);
        floe(&["restore", &image, &out]).expect_code(0);
        if whole {
            let same = fs::read(&source).expect("source") == fs::read(&out).expect("restored");
            assert!(same, "{run}");
        }
        let _ = fs::remove_file(&image);
    }
    taken
}

#[test]
fn dump_verify_and_restore_agree_about_every_disk_and_filesystem() {
    require!(common::floe().is_some(), "FLOE_BIN");
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    // Good ones are taken.
    assert!(agree(&scratch, &ext4(&scratch, "good", 16)));
    assert!(agree(&scratch, &disk(&scratch, "gpt", "gpt")));
    assert!(agree(&scratch, &disk(&scratch, "dos", "dos")));
    // A filesystem larger than its device, alone and in a partition.
    let cut = ext4(&scratch, "cut", 16);
    File::options()
        .write(true)
        .open(&cut)
        .expect("open")
        .set_len(10 * MIB)
        .expect("cut");
    assert!(!agree(&scratch, &cut));
    let inner = disk(&scratch, "inner", "dos");
    let large = fs::read(ext4(&scratch, "large", 30)).expect("read");
    write_at(
        &inner,
        MIB,
        &large[..usize::try_from(24 * MIB).expect("usize")],
    );
    assert!(!agree(&scratch, &inner));
    // Partitions that end behind the disk.
    for table in ["dos", "gpt"] {
        let short = disk(&scratch, "short", table);
        File::options()
            .write(true)
            .open(&short)
            .expect("open")
            .set_len(20 * MIB)
            .expect("cut");
        assert!(!agree(&scratch, &short), "{table}");
    }
    // A GPT whose first header is damaged, with a good copy at the end and without.
    let first = disk(&scratch, "first", "gpt");
    write_at(&first, 512, &[0; 512]);
    assert!(agree(&scratch, &first));
    write_at(&first, 32 * MIB - 512, &[0; 512]);
    assert!(!agree(&scratch, &first));
    // The copy alone damaged.
    let last = disk(&scratch, "last", "gpt");
    write_at(&last, 32 * MIB - 512, &[0; 512]);
    assert!(agree(&scratch, &last));
    // A filesystem with what is left of a table in front of it.
    let over = ext4(&scratch, "over", 16);
    write_at(
        &over,
        446,
        &[
            0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0x7f, 0, 0,
        ],
    );
    write_at(&over, 510, &[0x55, 0xaa]);
    assert!(agree(&scratch, &over));
}

#[test]
fn a_device_that_shows_nothing_known_is_copied_as_it_is_and_comes_back() {
    require!(common::is_root(), "root");
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    for (name, bytes) in [("noise", noise(3 << 20)), ("zeros", vec![0; 3 << 20])] {
        let path = scratch.join(name);
        fs::write(&path, &bytes).expect("write");
        let device = LoopDevice::attach(&path, 512);
        let (gz, raw, out) = (
            scratch.join("x.gz"),
            scratch.join("x.img"),
            scratch.join("out"),
        );
        floe(&["dump", &text(device.path()), "-o", &text(&gz)]).expect_code(0);
        common::output("gzip", &["-t", &text(&gz)]);
        floe(&["verify", &text(&gz)]).expect_code(0);
        floe(&["restore", &text(&gz), &text(&out)]).expect_code(0);
        assert!(fs::read(&out).expect("read") == bytes);
        fs::remove_file(&out).expect("remove");
        // A raw image has no place to say so: who restores it does.
        let run = floe(&[
            "dump",
            "-z",
            "none",
            &text(device.path()),
            "-o",
            &text(&raw),
        ]);
        assert!(run.expect_code(0).stderr_text().contains("--any-content"));
        floe(&["verify", &text(&raw)]).expect_code(3);
        floe(&["verify", "--any-content", &text(&raw)]).expect_code(0);
        floe(&["restore", "--any-content", &text(&raw), &text(&out)]).expect_code(0);
        for name in [gz, raw, out] {
            fs::remove_file(name).expect("remove");
        }
    }
}

#[test]
fn bytes_that_are_no_image_are_3_everywhere_and_leave_the_target_alone() {
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let padded = |at: usize, magic: &[u8]| {
        let mut bytes = noise(100_000);
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    };
    let tar = |name: &str| {
        let folder = scratch.join("t");
        fs::create_dir_all(&folder).expect("folder");
        fs::write(folder.join(name), noise(9000)).expect("write");
        let output = scratch.join("t.tar");
        common::output("tar", &["-cf", &text(&output), "-C", &text(&folder), name]);
        fs::read(output).expect("read")
    };
    let gz = |bytes: &[u8]| {
        let mut gzip = std::process::Command::new("gzip");
        let run = common::run_with_input(gzip.arg("-c"), bytes, Limit::secs(60));
        run.expect_code(0).stdout
    };
    let mut damaged = gz(&noise(50_000));
    damaged[0] ^= 0x40;
    let kinds: Vec<(&str, Vec<u8>, &str)> = vec![
        ("noise", noise(300_000), "no image"),
        ("zeros", vec![0; 300_000], "no image"),
        (
            "page",
            b"<!DOCTYPE html><html>404 Not Found</html>".to_vec(),
            "web page",
        ),
        (
            "text",
            b"ssh: connect to host board: refused\n".to_vec(),
            "a text",
        ),
        (
            "x.wic.bmap",
            b"<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">".to_vec(),
            "block map",
        ),
        ("tar", tar("a.img"), "tar archive"),
        ("tar.gz", gz(&tar("a.img")), "tar archive"),
        ("damaged.gz", damaged, "no image"),
        ("gz of noise", gz(&noise(300_000)), "no image"),
        ("xz", padded(0, b"\xfd7zXZ\0"), "xz"),
        ("zst", padded(0, b"\x28\xb5\x2f\xfd"), "zstd"),
        ("bz2", padded(0, b"BZh91AY&SY"), "bzip2"),
        ("lz4", padded(0, b"\x04\x22\x4d\x18"), "lz4"),
        ("qcow2", padded(0, b"QFI\xfb\0\0\0\x03"), "qcow2"),
        ("vmdk", padded(0, b"KDMV"), "VMDK"),
        ("vdi", padded(0x40, b"\x7f\x10\xda\xbe"), "VDI"),
        ("partclone", padded(0, b"partclone-image"), "partclone"),
        (
            "sparse",
            padded(0, b"\x3a\xff\x26\xed\x01\0\0\0"),
            "simg2img",
        ),
        ("swu", padded(0, b"070702"), "swupdate"),
        ("elf", padded(0, b"\x7fELF\x02\x01"), "ELF"),
    ];
    for (name, bytes, word) in kinds {
        let image = scratch.join("image");
        fs::write(&image, &bytes).expect("write");
        let target = scratch.join("target");
        fs::write(&target, noise(4096)).expect("write");
        let (image, target_text) = (text(&image), text(&target));
        for words in [
            vec!["verify", &image],
            vec!["restore", "--overwrite", &image, &target_text],
            vec!["artifact", &image, "-n", "a", "-t", "b", "-o", "/dev/null"],
            vec![
                "push",
                "--overwrite",
                &image,
                "no.such.host.invalid",
                "/dev/x",
            ],
        ] {
            let run = floe(&words).expect_code(3);
            let line = run.stderr_text();
            assert!(
                line.contains(word) && line.lines().count() == 1,
                "{name}: {run}"
            );
        }
        assert!(fs::read(&target).expect("read") == noise(4096), "{name}");
        // From a pipe nothing is written either: its beginning says it.
        let mut command = common::floe().expect("FLOE_BIN");
        let command = command.args(["restore", "--overwrite", "-", &target_text]);
        common::run_with_input(command, &bytes, Limit::secs(60)).expect_code(3);
        assert!(fs::read(&target).expect("read") == noise(4096), "{name}");
    }
}

#[test]
fn a_rauc_bundle_is_named_although_it_is_a_squashfs() {
    require!(common::have("mksquashfs"), "mksquashfs");
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let (folder, bundle) = (scratch.join("f"), scratch.join("x.raucb"));
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join("manifest.raucm"), "[update]\n").expect("write");
    common::output(
        "mksquashfs",
        &[&text(&folder), &text(&bundle), "-quiet", "-no-progress"],
    );
    floe(&["verify", &text(&bundle)]).expect_code(0);
    let mut file = File::options().append(true).open(&bundle).expect("open");
    let mut signature = noise(1500);
    signature[..2].copy_from_slice(&[0x30, 0x82]);
    file.write_all(&signature).expect("write");
    file.write_all(&1500u64.to_be_bytes()).expect("write");
    let run = floe(&["verify", &text(&bundle)]).expect_code(3);
    assert!(run.stderr_text().contains("RAUC"), "{run}");
    let run = floe(&["restore", &text(&bundle), &text(&scratch.join("out"))]).expect_code(3);
    assert!(run.stderr_text().contains("nothing was written"), "{run}");
}

#[test]
fn an_artifact_is_read_back_checked_and_shown() {
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let raw = ext4(&scratch, "root.ext4", 16);
    let bytes = fs::read(&raw).expect("read");
    for compression in ["none", "gzip"] {
        let artifact = scratch.join("x.mender");
        let out = scratch.join("out");
        let _ = fs::remove_file(&out);
        let words = [
            "-n",
            "release-7",
            "-t",
            "beaglebone",
            "-t",
            "rpi4",
            "--compression",
            compression,
        ];
        let artifact_text = text(&artifact);
        let mut all = vec!["artifact", "--overwrite", "-o", &artifact_text];
        let raw_text = text(&raw);
        all.push(&raw_text);
        all.extend(words);
        floe(&all).expect_code(0);
        let shown = floe(&["show", &artifact_text]).expect_code(0).stdout_text();
        for word in [
            "release-7",
            "beaglebone, rpi4",
            "root.ext4",
            "ext4",
            "mender",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let verified = floe(&["verify", &artifact_text])
            .expect_code(0)
            .stdout_text();
        assert!(verified.contains("release-7"), "{verified}");
        floe(&["restore", &artifact_text, &text(&out)]).expect_code(0);
        assert!(fs::read(&out).expect("read") == bytes);
        // One byte of the payload: in a file that is found before the first write.
        let mut broken = fs::read(&artifact).expect("read");
        let at = match compression {
            "none" => {
                broken
                    .windows(5)
                    .position(|at| at == b"data/")
                    .expect("payload")
                    + 700_000
            }
            // The end of the payload's length.
            _ => broken.iter().rposition(|byte| *byte != 0).expect("trailer"),
        };
        broken[at] ^= 1;
        fs::write(&artifact, &broken).expect("write");
        floe(&["verify", &artifact_text]).expect_code(3);
        fs::write(&out, b"old").expect("write");
        let run = floe(&["restore", "--overwrite", &artifact_text, &text(&out)]).expect_code(3);
        assert!(run.stderr_text().contains("nothing was written"), "{run}");
        assert_eq!(fs::read(&out).expect("read"), b"old");
        for length in [1000, 3000, broken.len() / 2, broken.len() - 1500] {
            fs::write(&artifact, &broken[..length]).expect("write");
            floe(&["verify", &artifact_text]).expect_code(3);
        }
        fs::remove_file(&artifact).expect("remove");
    }
}

#[test]
fn a_bad_image_in_a_file_does_not_cost_the_target_and_no_check_skips_that() {
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let raw = ext4(&scratch, "image", 16);
    common::output("gzip", &["-1", "-k", &text(&raw)]);
    let good = fs::read(scratch.join("image.gz")).expect("read");
    let mut wrong_sum = good.clone();
    let at = wrong_sum.len() - 7;
    wrong_sum[at] ^= 1;
    let mut behind = good.clone();
    behind.extend(b"FWx0{\"metadata_version\":\"1.1\"}");
    let target = scratch.join("target");
    for (what, bytes, word) in [
        ("cut", good[..good.len() - 100].to_vec(), "ends early"),
        ("sum", wrong_sum, "checksum"),
        ("behind", behind, "zcat FILE | floe restore -"),
    ] {
        let image = scratch.join("bad.gz");
        fs::write(&image, &bytes).expect("write");
        fs::write(&target, b"precious").expect("write");
        let words = ["restore", "--overwrite", &text(&image), &text(&target)];
        let run = floe(&words).expect_code(3);
        let line = run.stderr_text();
        assert!(
            line.contains(word) && line.contains("nothing was written"),
            "{what}: {run}"
        );
        assert_eq!(fs::read(&target).expect("read"), b"precious", "{what}");
        let mut words = words.to_vec();
        words.insert(1, "--no-check");
        let run = floe(&words).expect_code(3);
        assert!(run.stderr_text().contains("not usable"), "{what}: {run}");
        // From a pipe it cannot be known, and that is said.
        fs::write(&target, b"precious").expect("write");
        let mut command = common::floe().expect("FLOE_BIN");
        let command = command.args(["restore", "--overwrite", "-", &text(&target)]);
        let run = common::run_with_input(command, &bytes, Limit::secs(60)).expect_code(3);
        assert!(
            run.stderr_text().contains("known only at its end"),
            "{what}: {run}"
        );
    }
}

#[test]
fn swapped_arguments_get_the_right_order_and_never_overwrite_as_advice() {
    require!(common::is_root(), "root");
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let raw = ext4(&scratch, "image", 16);
    common::output("gzip", &["-1", "-k", &text(&raw)]);
    let device = LoopDevice::attach(&ext4(&scratch, "other", 16), 512);
    let device = text(device.path());
    for name in ["image", "image.gz"] {
        let image = text(&scratch.join(name));
        let before = fs::read(&image).expect("read");
        for more in [&[][..], &["--overwrite"]] {
            let mut words = vec!["restore", &device, &image];
            words.extend(more);
            let run = floe(&words).expect_code(4);
            let line = run.stderr_text();
            assert!(
                line.contains(&format!("floe restore {image} {device}")),
                "{run}"
            );
            assert!(!line.contains("--overwrite"), "{run}");
            assert!(fs::read(&image).expect("read") == before);
        }
    }
    // A device into a new file is no slip.
    let out = text(&scratch.join("new"));
    floe(&["restore", &device, &out]).expect_code(0);
    // NAME=TARGET belongs to snapshots.
    let pair = format!("data={device}");
    let run = floe(&["restore", &text(&scratch.join("image.gz")), &pair]).expect_code(2);
    assert!(run.stderr_text().contains("is no snapshot"), "{run}");
}

#[test]
fn a_file_that_is_no_image_is_refused_as_source_with_both_commands() {
    require!(common::is_root(), "root");
    let fs = match common::LoopFs::make(common::Spec::default()) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let file = fs.dir().join("vm.img");
    std::fs::write(&file, noise(3_000_000)).expect("write");
    let (file, out) = (text(&file), text(&fs.scratch().join("out.gz")));
    let run = floe(&["dump", &file, "-o", &out]).expect_code(4);
    let line = run.stderr_text();
    for word in [
        format!("floe dump --fs-path {file}"),
        format!("floe dump --whole {file}"),
    ] {
        assert!(line.contains(&word), "{run}");
    }
    assert!(!Path::new(&out).exists());
    let run = floe(&["dump", "--fs-path", &file, "-o", &out]).expect_code(0);
    assert!(run.stderr_text().contains("ext4"), "{run}");
    common::assert_not_frozen(fs.dir(), "after --fs-path");
    let raw = text(&fs.scratch().join("raw"));
    floe(&["dump", "--whole", "-z", "none", &file, "-o", &raw]).expect_code(0);
    assert!(std::fs::read(&raw).expect("read") == noise(3_000_000));
}

#[test]
fn what_lies_behind_a_filesystem_and_is_not_zeros_is_in_the_image() {
    require!(common::is_root(), "root");
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let makers: [(&str, u64, &str, &[&str]); 4] = [
        ("ext4", 16, "mkfs.ext4", &["-q", "-F"]),
        ("xfs", 320, "mkfs.xfs", &["-q", "-f"]),
        ("btrfs", 128, "mkfs.btrfs", &["-q", "-f"]),
        ("vfat", 16, "mkfs.vfat", &[]),
    ];
    for (name, mib, tool, options) in makers {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let path = scratch.join(name);
        sparse(&path, mib * MIB);
        let mut words = options.to_vec();
        let path_text = text(&path);
        words.push(&path_text);
        common::output(tool, &words);
        // Directly behind, and far behind with zeros between.
        for distance in [0, 3 * MIB] {
            let file = File::options().write(true).open(&path).expect("open");
            file.set_len(mib * MIB).expect("cut");
            file.set_len((mib + 8) * MIB).expect("longer");
            let tree = noise(100_000);
            write_at(&path, mib * MIB + distance, &tree);
            let device = LoopDevice::attach(&path, 512);
            let image = text(&scratch.join("x.img"));
            let source = text(device.path());
            let words = ["dump", "-z", "none", &source, "-o", &image];
            let run = floe(&words).expect_code(0);
            let line = run.stderr_text();
            assert!(line.contains("follows the filesystem"), "{name}: {run}");
            let found = fs::read(&image).expect("read");
            let at = usize::try_from(mib * MIB + distance).expect("usize");
            assert!(found[at..at + tree.len()] == tree, "{name} at {distance}");
            assert_eq!(
                found.len(),
                at + usize::try_from(8 * MIB - distance).expect("usize")
            );
            fs::remove_file(&image).expect("remove");
        }
        fs::remove_file(&path).expect("remove");
    }
}

#[test]
fn what_was_made_for_small_sectors_is_refused_on_larger_ones() {
    require!(common::is_root(), "root");
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let target_file = scratch.join("target");
    sparse(&target_file, 512 * MIB);
    let target = LoopDevice::attach(&target_file, 4096);
    let target = text(target.path());
    let makers: [(&str, u64, &str, &[&str]); 3] = [
        ("ext4", 16, "mkfs.ext4", &["-q", "-F", "-b", "1024"]),
        ("xfs", 320, "mkfs.xfs", &["-q", "-f", "-s", "size=512"]),
        ("vfat", 16, "mkfs.vfat", &["-S", "512"]),
    ];
    for (name, mib, tool, options) in makers {
        if !common::have(tool) {
            common::skip(tool);
            continue;
        }
        let path = text(&scratch.join(name));
        sparse(path.as_ref(), mib * MIB);
        let mut words = options.to_vec();
        words.push(&path);
        common::output(tool, &words);
        let run = floe(&["restore", &path, &target]).expect_code(4);
        assert!(run.stderr_text().contains("sectors of 4096"), "{run}");
        let snapshot = text(&scratch.join(format!("{name}.zip")));
        let pair = format!("root={path}");
        floe(&["create", &pair, "-o", &snapshot]).expect_code(0);
        let pair = format!("root={target}");
        floe(&["restore", &snapshot, &pair]).expect_code(4);
        let mut command = common::floe().expect("FLOE_BIN");
        let bytes = fs::read(&snapshot).expect("read");
        let run = common::run_with_input(
            command.args(["restore", "-", &pair]),
            &bytes,
            Limit::secs(60),
        );
        run.expect_code(4);
        let device = LoopDevice::attach(path.as_ref(), 512);
        let pair = format!("{}={target}", text(device.path()));
        floe(&["clone", &pair]).expect_code(4);
    }
    // And blocks of 4096 bytes are fine on either.
    let path = text(&ext4(&scratch, "fine", 16));
    common::output("mkfs.ext4", &["-q", "-F", "-b", "4096", &path]);
    floe(&["restore", &path, &target]).expect_code(0);
}

#[test]
fn what_was_cut_anywhere_or_appended_to_is_taken_back_by_nothing() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let image = ext4(&scratch, "image", 4);
    let make = |name: &str, words: &[&str]| {
        let path = scratch.join(name);
        floe(&[words, &["-q", "-o", &text(&path)]].concat()).expect_code(0);
        fs::read(path).expect("made")
    };
    let from = text(&image);
    let gz = make("whole.gz", &["dump", &from]);
    let raw = make("whole.raw", &["dump", &from, "-z", "none"]);
    let zip = make("whole.zip", &["create", &format!("root={from}")]);
    let packed = text(&scratch.join("whole.gz"));
    let mender = make("whole.mender", &["artifact", &packed, "-n", "a", "-t", "b"]);
    let (bad, target, artifact) = (
        scratch.join("bad"),
        scratch.join("target"),
        scratch.join("x.mender"),
    );
    // All readers say the same of it: 3, and nothing is written.
    let refused = |what: &str, bytes: &[u8], is_zip: bool| {
        fs::write(&bad, bytes).expect("write");
        let (path, to, out) = (text(&bad), text(&target), text(&artifact));
        let pair = if is_zip {
            format!("root={to}")
        } else {
            to.clone()
        };
        for words in [
            &["verify", path.as_str()][..],
            &["restore", &path, &pair],
            &["artifact", &path, "-n", "a", "-t", "b", "-o", &out],
        ] {
            let run = floe(words);
            assert_eq!(run.code, Some(3), "{what}: {run}");
            assert_eq!(run.stderr_text().lines().count(), 1, "{what}: {run}");
        }
        let mut verify = common::floe().expect("FLOE_BIN");
        let run = common::run_with_input(verify.args(["verify", "-"]), bytes, Limit::secs(60));
        assert_eq!(run.code, Some(3), "{what} from a pipe: {run}");
        assert!(!target.exists() && !artifact.exists(), "{what}");
    };
    for (kind, bytes) in [
        ("gz", &gz),
        ("raw", &raw),
        ("zip", &zip),
        ("mender", &mender),
    ] {
        let length = bytes.len();
        // The ends of an artifact are two blocks of zeros.
        for cut in [1, 511, 512, 1024, length / 2, length - 1025] {
            refused(
                &format!("{kind} without {cut}"),
                &bytes[..length - cut],
                kind == "zip",
            );
        }
    }
    // Written with >> instead of >: what came back would be the older one.
    for (kind, one, other) in [
        ("gz", &gz, &gz),
        ("zip", &zip, &zip),
        ("mender", &mender, &mender),
        ("mixed", &gz, &mender),
        ("mixed", &mender, &gz),
    ] {
        refused(
            &format!("{kind} twice"),
            &[one.as_slice(), other].concat(),
            kind == "zip",
        );
    }
    refused(
        "a line behind an artifact",
        &[mender.as_slice(), b"x\n"].concat(),
        false,
    );
    // Members of a gzip file that are one image are one, and so is an artifact on a tape.
    let both = scratch.join("members");
    let half = raw.len() / 2;
    for (name, part) in [("one", &raw[..half]), ("two", &raw[half..])] {
        fs::write(scratch.join(name), part).expect("part");
        common::output("gzip", &["-1", &text(&scratch.join(name))]);
    }
    let members = [
        fs::read(scratch.join("one.gz")),
        fs::read(scratch.join("two.gz")),
    ];
    fs::write(&both, members.map(|part| part.expect("packed")).concat()).expect("members");
    floe(&["verify", &text(&both)]).expect_code(0);
    let mut tape = mender.clone();
    tape.resize(tape.len().next_multiple_of(10240), 0);
    fs::write(&both, tape).expect("tape");
    floe(&["verify", &text(&both)]).expect_code(0);
}

#[test]
fn two_images_one_behind_the_other_are_told_from_what_partitions_hold() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let read = |path: PathBuf| fs::read(path).expect("read");
    let (one, other) = (ext4(&scratch, "one", 4), ext4(&scratch, "other", 5));
    let (one, other) = (read(one), read(other));
    // A filesystem in a partition that is larger, and disks.
    let mut slack = one.clone();
    slack.resize(one.len() + 300_000, 0);
    let (gpt, dos) = (
        read(disk(&scratch, "gpt", "gpt")),
        read(disk(&scratch, "dos", "dos")),
    );
    // With -1 it writes the header that floe writes.
    let packed = |bytes: &[u8], level: &str| {
        let mut gzip = std::process::Command::new("gzip");
        let run = common::run_with_input(gzip.args(["-c", level]), bytes, Limit::secs(60));
        run.expect_code(0).stdout
    };
    let gzip = |bytes: &[u8]| packed(bytes, "-6");
    let (bad, out) = (scratch.join("bad"), scratch.join("out"));
    let tried = |what: &str, parts: &[&[u8]], wanted: i32| {
        fs::write(&bad, parts.concat()).expect("write");
        let (path, to) = (text(&bad), text(&out));
        let run = floe(&["verify", &path]);
        assert_eq!(run.code, Some(wanted), "{what}: {run}");
        assert_eq!(
            wanted == 3,
            run.stderr_text().contains("tail -c +"),
            "{run}"
        );
        let run = floe(&["restore", &path, &to]);
        assert_eq!(run.code, Some(wanted), "{what}: {run}");
        assert_eq!(out.exists(), wanted == 0, "{what}");
        let _ = fs::remove_file(&out);
        let dumped = floe(&["dump", &path, "-o", &to]);
        let agrees = if wanted == 0 { 0 } else { 4 };
        // Of what is packed, dump is not asked.
        if parts[0][..2] != [0x1f, 0x8b] {
            assert_eq!(dumped.code, Some(agrees), "{what}: {dumped}");
        }
        let _ = fs::remove_file(&out);
    };
    tried("two filesystems", &[&one, &other], 3);
    tried(
        "the same twice, each with room behind",
        &[&slack, &slack],
        3,
    );
    tried("disks", &[&gpt, &gpt], 3);
    tried("a disk behind a filesystem", &[&one, &dos], 3);
    tried("members", &[&gzip(&one), &gzip(&other)], 3);
    tried("members with room", &[&gzip(&slack), &gzip(&other)], 3);
    tried("packed together", &[&gzip(&[&one[..], &other].concat())], 3);
    let fast = packed(&[&one[..], &other].concat(), "-1");
    tried("packed together by gzip -1", &[&fast], 3);
    tried("packed, and nothing behind", &[&gzip(&one), &gzip(b"")], 0);
    let (half, rest) = slack.split_at(one.len());
    tried("parts of one", &[&gzip(half), &gzip(rest)], 0);
    tried("noise behind", &[&one, &noise(400_000)], 0);
    // An overlay behind a read-only filesystem, as OpenWrt has it, is no second image; another such filesystem is.
    if common::have("mksquashfs") {
        let files = scratch.join("files");
        fs::create_dir(&files).expect("folder");
        fs::write(files.join("x"), noise(70_000)).expect("file");
        let made = scratch.join("root");
        common::output(
            "mksquashfs",
            &[&text(&files), &text(&made), "-quiet", "-no-progress"],
        );
        let squashfs = read(made);
        let mut root = squashfs.clone();
        root.resize(root.len().next_multiple_of(64 * 1024), 0);
        tried("an ext4 overlay", &[&root, &other], 0);
        tried(
            "an overlay of JFFS2",
            &[&root, b"\x85\x19\x03\x20", &noise(9000)],
            0,
        );
        tried("two roots", &[&squashfs, &squashfs], 3);
    }
    // What was left where a filesystem was made smaller; and what partition 2 held before partition 1 took its place.
    require!(common::is_root(), "root");
    let part = scratch.join("part");
    fs::write(&part, [&one[..], &other].concat()).expect("write");
    let device = LoopDevice::attach(&part, 512);
    let (from, image) = (text(device.path()), text(&scratch.join("image")));
    floe(&["dump", &from, "-o", &image]).expect_code(0);
    floe(&["verify", &image]).expect_code(0);
    floe(&["restore", &image, &text(&out)]).expect_code(0);
    assert!(fs::read(&out).expect("out") == fs::read(&part).expect("part"));
    let raw = ["dump", &from, "-z", "none", "--overwrite", "-o", &image];
    let run = floe(&raw).expect_code(4);
    assert!(run.stderr_text().contains("without -z none"), "{run}");
    let run = floe(&[&raw[..], &["--whole"]].concat()).expect_code(0);
    assert!(run.stderr_text().contains("--any-content"), "{run}");
    // A filesystem that ends long before the partition does was left there.
    let room = [&one[..], &other, &vec![0; 2 << 20]].concat();
    fs::write(&part, &room).expect("write");
    let device = LoopDevice::attach(&part, 512);
    let from = text(device.path());
    floe(&["dump", &from, "-z", "none", "--overwrite", "-o", &image]).expect_code(0);
    floe(&["verify", &image]).expect_code(0);
    drop(device);
    let shrunk = ext4(&scratch, "shrunk", 24);
    for words in [&["-f", "-y"][..], &[]] {
        let tool = if words.is_empty() {
            "resize2fs"
        } else {
            "e2fsck"
        };
        let mut tool = std::process::Command::new(tool);
        tool.args(words).arg(&shrunk);
        tool.args(words.is_empty().then_some("9M"));
        common::run(&mut tool, Limit::secs(60));
    }
    write_at(&shrunk, 10 * MIB, &noise(3 << 20));
    assert!(agree(&scratch, &shrunk));
}

#[test]
fn what_comes_replaces_an_older_one_of_its_kind_and_nothing_else_unasked() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let one = text(&ext4(&scratch, "one", 4));
    let other = text(&ext4(&scratch, "other", 4));
    let table = text(&disk(&scratch, "disk", "gpt"));
    let second = text(&disk(&scratch, "second", "gpt"));
    let (file, zip) = (text(&scratch.join("x")), text(&scratch.join("x.zip")));
    let make = |words: &[&str], to: &str, wanted: i32| {
        let run = floe(&[words, &["-o", to]].concat());
        assert_eq!(run.code, Some(wanted), "{run}");
        let advised = run
            .stderr_text()
            .contains("--overwrite replaces it; nothing was");
        assert_eq!(advised, wanted == 4, "{run}");
    };
    let pair = |name: &str, source: &str| format!("{name}={source}");
    for packed in ["gzip", "none"] {
        let dump = |source| ["dump", source, "-z", packed];
        make(&dump(&one), &file, 0);
        make(&dump(&one), &file, 0);
        make(&dump(&other), &file, 0);
        make(&dump(&table), &file, 0);
        make(&["create", &pair("a", &one)], &file, 4);
        make(&[&dump(&table)[..], &["--overwrite"]].concat(), &file, 0);
        make(&dump(&table), &file, 0);
        make(&dump(&second), &file, 0);
        fs::remove_file(&file).expect("remove");
    }
    make(&["create", &pair("a", &one)], &zip, 0);
    make(&["create", &pair("a", &one)], &zip, 0);
    make(&["create", &pair("a", &one), &pair("b", &other)], &zip, 0);
    make(&["create", &pair("a", &other)], &zip, 0);
    make(&["create", &pair("c", &one)], &zip, 0);
    make(&["dump", &one], &zip, 4);
    // What was cut is what is best replaced.
    make(&["dump", &one], &file, 0);
    for path in [&file, &zip] {
        let bytes = fs::read(path).expect("read");
        fs::write(path, &bytes[..bytes.len() - 1000]).expect("cut");
    }
    make(&["dump", &one], &file, 0);
    make(&["create", &pair("a", &one)], &zip, 0);
}

#[test]
fn what_is_cut_or_a_piece_gets_the_advice_that_helps_and_never_to_take_it_as_it_is() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let image = ext4(&scratch, "image", 8);
    write_at(&image, 5 * MIB, &noise(2 << 20));
    let piece = |number: &str| text(&scratch.join(format!("x.{number}")));
    let from = text(&image);
    let split = [
        "dump", &from, "-z", "none", "--whole", "--split", "1M", "-o",
    ];
    floe(&[&split[..], &[&text(&scratch.join("x"))]].concat()).expect_code(0);
    let version = scratch.join("kernel-5.10.120");
    fs::write(&version, noise(300_000)).expect("file");
    let told = floe(&["verify", &text(&version)]).expect_code(3);
    assert!(told.stderr_text().contains("--any-content"), "{told}");
    let cut = scratch.join("cut");
    fs::write(&cut, &fs::read(&image).expect("image")[..5 << 20]).expect("cut");
    for (path, wanted) in [
        (text(&cut), "bring the whole"),
        (piece("002"), "x.001, with all"),
    ] {
        let told = floe(&["verify", &path]).expect_code(3).stderr_text();
        assert!(
            told.contains(wanted) && !told.contains("--any-content"),
            "{told}"
        );
    }
    let (named, to) = (text(&scratch.join("x.zip")), text(&scratch.join("new")));
    floe(&["dump", &from, "-o", &named]).expect_code(0);
    let told = floe(&["restore", &named, &format!("root={to}")]);
    let told = told.expect_code(2).stderr_text();
    assert!(told.contains("is no snapshot but a gzip image"), "{told}");
}

#[test]
fn an_output_is_never_its_own_source_nor_the_file_of_a_loop_device() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let image = ext4(&scratch, "image", 4);
    let before = fs::read(&image).expect("image");
    let (from, link) = (text(&image), scratch.join("link"));
    fs::hard_link(&image, &link).expect("link");
    let (link, pair) = (text(&link), format!("root={from}"));
    let device = LoopDevice::attach(&ext4(&scratch, "below", 4), 512);
    let (loop_path, below) = (text(device.path()), text(&scratch.join("below")));
    for (words, why) in [
        (
            &["dump", from.as_str(), "-o", &from][..],
            "is the source itself",
        ),
        (
            &["dump", &from, "--overwrite", "-o", &link],
            "is the source itself",
        ),
        (
            &["create", &pair, "--overwrite", "-o", &from],
            "is the source itself",
        ),
        (&["dump", &loop_path, "-o", &below], "is attached to"),
        (
            &["dump", &from, "--overwrite", "-o", &below],
            "is attached to",
        ),
        (
            &["create", &pair, "--overwrite", "-o", &below],
            "is attached to",
        ),
    ] {
        let told = floe(words).expect_code(4).stderr_text();
        assert!(
            told.contains(why) && told.contains("nothing was written"),
            "{words:?}: {told}"
        );
    }
    assert!(fs::read(&image).expect("image") == before);
}
