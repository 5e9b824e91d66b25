//! What comes from a device, whatever is on it, is named for what it is and comes back.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use crate::common::{self, Limit, LoopDevice, Scratch, run_floe, sparse, text, write_at};

use super::{MIB, agree, disk, ext4, noise};

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
        run_floe(&["dump", &text(device.path()), "-o", &text(&gz)]).expect_code(0);
        common::output("gzip", &["-t", &text(&gz)]);
        run_floe(&["verify", &text(&gz)]).expect_code(0);
        run_floe(&["restore", &text(&gz), &text(&out)]).expect_code(0);
        assert!(fs::read(&out).expect("read") == bytes);
        fs::remove_file(&out).expect("remove");
        // A raw image has no place to say so: who restores it does.
        let run = run_floe(&[
            "dump",
            "-z",
            "none",
            &text(device.path()),
            "-o",
            &text(&raw),
        ]);
        assert!(run.expect_code(0).stderr_text().contains("--any-content"));
        run_floe(&["verify", &text(&raw)]).expect_code(3);
        run_floe(&["verify", "--any-content", &text(&raw)]).expect_code(0);
        run_floe(&["restore", "--any-content", &text(&raw), &text(&out)]).expect_code(0);
        for name in [gz, raw, out] {
            fs::remove_file(name).expect("remove");
        }
    }
}

/// A member of an md array (metadata 1.2), and LUKS of both versions as cryptsetup lays them out; how long each is at least.
fn containers() -> [(&'static str, Vec<u8>, usize); 3] {
    let of = |parts: &[(usize, &[u8])]| {
        let mut bytes = noise(20 << 20);
        bytes[..64 << 10].fill(0);
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        bytes
    };
    let member = of(&[
        (4096, &0xa92b_4efcu32.to_le_bytes()),
        (4100, &1u32.to_le_bytes()),
        (4096 + 0x80, &2048u64.to_le_bytes()),
        (4096 + 0x88, &30_000u64.to_le_bytes()),
        (4096 + 0x90, &8u64.to_le_bytes()),
    ]);
    let luks1 = of(&[(0, b"LUKS\xba\xbe\0\x01"), (0x68, &4096u32.to_be_bytes())]);
    let json = br#"{"config":{"json_size":"12288","keyslots_size":"16744448"}}"#;
    let luks2 = of(&[
        (0, b"LUKS\xba\xbe\0\x02"),
        (8, &16_384u64.to_be_bytes()),
        (4096, json),
    ]);
    [
        ("md-member", member, 32_048 * 512),
        ("luks", luks1, 2 << 20),
        ("luks", luks2, 16 << 20),
    ]
}

#[test]
fn a_container_that_was_cut_before_the_end_it_states_is_no_image_and_a_longer_one_is() {
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let (image, out) = (scratch.join("x.img"), scratch.join("out"));
    for (kind, bytes, least) in containers() {
        for length in [bytes.len(), least] {
            fs::write(&image, &bytes[..length]).expect("write");
            let run = run_floe(&["verify", &text(&image)]).expect_code(0);
            assert!(run.stdout_text().contains(kind), "{run}");
            run_floe(&["restore", &text(&image), &text(&out)]).expect_code(0);
            assert!(fs::read(&out).expect("read") == bytes[..length]);
            fs::remove_file(&out).expect("remove");
            assert!(agree(&scratch, &image), "{kind} {length}");
        }
        for length in [least - 1, 1_500_000] {
            fs::write(&image, &bytes[..length]).expect("write");
            for words in [
                &["verify", &text(&image)][..],
                &["restore", &text(&image), &text(&out)],
                &[
                    "artifact",
                    &text(&image),
                    "-n",
                    "a",
                    "-t",
                    "b",
                    "-o",
                    &text(&out),
                ],
            ] {
                let run = run_floe(words).expect_code(3);
                let line = run.stderr_text();
                assert!(
                    line.contains(&format!("says {least}: it was cut off")),
                    "{run}"
                );
                assert!(!out.exists());
            }
            assert!(!agree(&scratch, &image), "{kind} {length}");
        }
    }
}

#[test]
fn a_member_s_superblock_that_an_older_table_contradicts_asks_for_no_more_than_the_table() {
    require!(common::have("sfdisk"), "sfdisk");
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let image = disk(&scratch, "disk", "dos");
    let [(_, member, _), ..] = containers();
    let mut superblock = member[4096..8192].to_vec();
    superblock[0x88..0x90].copy_from_slice(&1_000_000u64.to_le_bytes());
    write_at(&image, &superblock, 4096);
    run_floe(&["verify", &text(&image)]).expect_code(0);
    let file = File::options().write(true).open(&image).expect("open");
    file.set_len(24 * MIB).expect("cut");
    run_floe(&["verify", &text(&image)]).expect_code(3);
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
    run_floe(&["verify", &text(&bundle)]).expect_code(0);
    let mut file = File::options().append(true).open(&bundle).expect("open");
    let mut signature = noise(1500);
    signature[..2].copy_from_slice(&[0x30, 0x82]);
    file.write_all(&signature).expect("write");
    file.write_all(&1500u64.to_be_bytes()).expect("write");
    let run = run_floe(&["verify", &text(&bundle)]).expect_code(3);
    assert!(run.stderr_text().contains("RAUC"), "{run}");
    let run = run_floe(&["restore", &text(&bundle), &text(&scratch.join("out"))]).expect_code(3);
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
        run_floe(&all).expect_code(0);
        let shown = run_floe(&["show", &artifact_text])
            .expect_code(0)
            .stdout_text();
        for word in [
            "release-7",
            "beaglebone, rpi4",
            "root.ext4",
            "ext4",
            "mender",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let verified = run_floe(&["verify", &artifact_text])
            .expect_code(0)
            .stdout_text();
        assert!(verified.contains("release-7"), "{verified}");
        run_floe(&["restore", &artifact_text, &text(&out)]).expect_code(0);
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
        run_floe(&["verify", &artifact_text]).expect_code(3);
        fs::write(&out, b"old").expect("write");
        let run = run_floe(&["restore", "--overwrite", &artifact_text, &text(&out)]).expect_code(3);
        assert!(run.stderr_text().contains("nothing was written"), "{run}");
        assert_eq!(fs::read(&out).expect("read"), b"old");
        for length in [1000, 3000, broken.len() / 2, broken.len() - 1500] {
            fs::write(&artifact, &broken[..length]).expect("write");
            run_floe(&["verify", &artifact_text]).expect_code(3);
        }
        fs::remove_file(&artifact).expect("remove");
    }
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
            write_at(&path, &tree, mib * MIB + distance);
            let device = LoopDevice::attach(&path, 512);
            let image = text(&scratch.join("x.img"));
            let source = text(device.path());
            let words = ["dump", "-z", "none", &source, "-o", &image];
            let run = run_floe(&words).expect_code(0);
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
fn two_images_one_behind_the_other_are_told_from_what_partitions_hold() {
    require_mkfs!();
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
        let run = run_floe(&["verify", &path]);
        assert_eq!(run.code, Some(wanted), "{what}: {run}");
        assert_eq!(
            wanted == 3,
            run.stderr_text().contains("tail -c +"),
            "{run}"
        );
        let run = run_floe(&["restore", &path, &to]);
        assert_eq!(run.code, Some(wanted), "{what}: {run}");
        assert_eq!(out.exists(), wanted == 0, "{what}");
        let _ = fs::remove_file(&out);
        let dumped = run_floe(&["dump", &path, "-o", &to]);
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
    run_floe(&["dump", &from, "-o", &image]).expect_code(0);
    run_floe(&["verify", &image]).expect_code(0);
    run_floe(&["restore", &image, &text(&out)]).expect_code(0);
    assert!(fs::read(&out).expect("out") == fs::read(&part).expect("part"));
    let raw = ["dump", &from, "-z", "none", "--overwrite", "-o", &image];
    let run = run_floe(&raw).expect_code(4);
    assert!(run.stderr_text().contains("without -z none"), "{run}");
    let run = run_floe(&[&raw[..], &["--whole"]].concat()).expect_code(0);
    assert!(run.stderr_text().contains("--any-content"), "{run}");
    // A filesystem that ends long before the partition does was left there.
    let room = [&one[..], &other, &vec![0; 2 << 20]].concat();
    fs::write(&part, &room).expect("write");
    let device = LoopDevice::attach(&part, 512);
    let from = text(device.path());
    run_floe(&["dump", &from, "-z", "none", "--overwrite", "-o", &image]).expect_code(0);
    run_floe(&["verify", &image]).expect_code(0);
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
    write_at(&shrunk, &noise(3 << 20), 10 * MIB);
    assert!(agree(&scratch, &shrunk));
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
        sparse(&path, mib * MIB);
        let mut words = options.to_vec();
        words.push(&path);
        common::output(tool, &words);
        let run = run_floe(&["restore", &path, &target]).expect_code(4);
        assert!(run.stderr_text().contains("sectors of 4096"), "{run}");
        let snapshot = text(&scratch.join(format!("{name}.zip")));
        let pair = format!("root={path}");
        run_floe(&["create", &pair, "-o", &snapshot]).expect_code(0);
        let pair = format!("root={target}");
        run_floe(&["restore", &snapshot, &pair]).expect_code(4);
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
        run_floe(&["clone", &pair]).expect_code(4);
    }
    // And blocks of 4096 bytes are fine on either.
    let path = text(&ext4(&scratch, "fine", 16));
    common::output("mkfs.ext4", &["-q", "-F", "-b", "4096", &path]);
    run_floe(&["restore", &path, &target]).expect_code(0);
}
