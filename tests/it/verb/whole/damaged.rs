//! Bytes that are no image, or were cut, or had something appended: what is said of them, and what is left alone.

use std::fs::{self, File};

use crate::common::{self, Limit, Scratch, run_floe, text, write_at};

use super::{MIB, ext4, noise};

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
            let run = run_floe(&words).expect_code(3);
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
        let run = run_floe(&words).expect_code(3);
        let line = run.stderr_text();
        assert!(
            line.contains(word) && line.contains("nothing was written"),
            "{what}: {run}"
        );
        assert_eq!(fs::read(&target).expect("read"), b"precious", "{what}");
        let mut words = words.to_vec();
        words.insert(1, "--no-check");
        let run = run_floe(&words).expect_code(3);
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
fn what_was_cut_anywhere_or_appended_to_is_taken_back_by_nothing() {
    require_mkfs!();
    let scratch = Scratch::new();
    let image = ext4(&scratch, "image", 4);
    let make = |name: &str, words: &[&str]| {
        let path = scratch.join(name);
        run_floe(&[words, &["-q", "-o", &text(&path)]].concat()).expect_code(0);
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
            let run = run_floe(words);
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
    run_floe(&["verify", &text(&both)]).expect_code(0);
    let mut tape = mender.clone();
    tape.resize(tape.len().next_multiple_of(10240), 0);
    fs::write(&both, tape).expect("tape");
    run_floe(&["verify", &text(&both)]).expect_code(0);
}

#[test]
fn what_is_cut_or_a_piece_gets_the_advice_that_helps_and_never_to_take_it_as_it_is() {
    require_mkfs!();
    let scratch = Scratch::new();
    let image = ext4(&scratch, "image", 8);
    write_at(&image, &noise(2 << 20), 5 * MIB);
    let piece = |number: &str| text(&scratch.join(format!("x.{number}")));
    let from = text(&image);
    let split = [
        "dump", &from, "-z", "none", "--whole", "--split", "1M", "-o",
    ];
    run_floe(&[&split[..], &[&text(&scratch.join("x"))]].concat()).expect_code(0);
    let version = scratch.join("kernel-5.10.120");
    fs::write(&version, noise(300_000)).expect("file");
    let told = run_floe(&["verify", &text(&version)]).expect_code(3);
    assert!(told.stderr_text().contains("--any-content"), "{told}");
    let cut = scratch.join("cut");
    fs::write(&cut, &fs::read(&image).expect("image")[..5 << 20]).expect("cut");
    for (path, wanted) in [
        (text(&cut), "bring the whole"),
        (piece("002"), "x.001, with all"),
    ] {
        let told = run_floe(&["verify", &path]).expect_code(3).stderr_text();
        assert!(
            told.contains(wanted) && !told.contains("--any-content"),
            "{told}"
        );
    }
    let (named, to) = (text(&scratch.join("x.zip")), text(&scratch.join("new")));
    run_floe(&["dump", &from, "-o", &named]).expect_code(0);
    let told = run_floe(&["restore", &named, &format!("root={to}")]);
    let told = told.expect_code(2).stderr_text();
    assert!(told.contains("is no snapshot but a gzip image"), "{told}");
}

#[test]
fn a_whole_copy_needs_nothing_of_a_filesystem_that_was_cut() {
    require!(common::floe().is_some(), "FLOE_BIN");
    let scratch = Scratch::new();
    let (image, out) = (scratch.join("image"), text(&scratch.join("out")));
    let image_text = text(&image);
    for mkfs in [
        "mkfs.xfs -q",
        "mkfs.f2fs -q",
        "mkfs.ext4 -q -F",
        "mkfs.btrfs -q",
        "parted -s -- IMAGE mklabel gpt mkpart a 1MiB -1MiB; true",
    ] {
        let make = match mkfs.contains("IMAGE") {
            true => mkfs.replace("IMAGE", &image_text),
            false => format!("{mkfs} {image_text}"),
        };
        for cut in [1, 20, 90, 150, 299] {
            let script = format!("rm -f {image_text}; truncate -s 300M {image_text}; {make}");
            if common::shell(&script, Limit::secs(60)).code != Some(0) {
                break;
            }
            File::options()
                .write(true)
                .open(&image)
                .and_then(|file| file.set_len(cut << 20))
                .expect("cut");
            for more in [&[][..], &["--live"]] {
                let words = ["dump", &image_text, "--whole", "-o", &out, "--overwrite"];
                run_floe(&[&words[..], more].concat()).expect_code(0);
                run_floe(&["verify", &out]).expect_code(0);
            }
            let back = scratch.join("back");
            run_floe(&["restore", &out, &text(&back), "--overwrite"]).expect_code(0);
            assert_eq!(
                common::hash_file(&back),
                common::hash_file(&image),
                "{make} {cut}"
            );
            fs::remove_file(&back).expect("back");
        }
    }
}
