//! What is given as source or output is what was meant: swapped arguments, no image, an older file, the source itself.

use std::fs;
use std::path::Path;

use crate::common::{self, Limit, LoopDevice, Scratch, run_floe, text};

use super::{disk, ext4, noise};

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
            let run = run_floe(&words).expect_code(4);
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
    run_floe(&["restore", &device, &out]).expect_code(0);
    // NAME=TARGET belongs to snapshots.
    let pair = format!("data={device}");
    let run = run_floe(&["restore", &text(&scratch.join("image.gz")), &pair]).expect_code(2);
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
    let run = run_floe(&["dump", &file, "-o", &out]).expect_code(4);
    let line = run.stderr_text();
    for word in [
        format!("floe dump --fs-path {file}"),
        format!("floe dump --whole {file}"),
    ] {
        assert!(line.contains(&word), "{run}");
    }
    assert!(!Path::new(&out).exists());
    let run = run_floe(&["dump", "--fs-path", &file, "-o", &out]).expect_code(0);
    assert!(run.stderr_text().contains("ext4"), "{run}");
    common::assert_not_frozen(fs.dir(), "after --fs-path");
    let raw = text(&fs.scratch().join("raw"));
    run_floe(&["dump", "--whole", "-z", "none", &file, "-o", &raw]).expect_code(0);
    assert!(std::fs::read(&raw).expect("read") == noise(3_000_000));
}

#[test]
fn what_comes_replaces_an_older_one_of_its_kind_and_nothing_else_unasked() {
    require_mkfs!();
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let one = text(&ext4(&scratch, "one", 4));
    let other = text(&ext4(&scratch, "other", 4));
    let table = text(&disk(&scratch, "disk", "gpt"));
    let second = text(&disk(&scratch, "second", "gpt"));
    let (file, zip) = (text(&scratch.join("x")), text(&scratch.join("x.zip")));
    let make = |words: &[&str], to: &str, wanted: i32| {
        let run = run_floe(&[words, &["-o", to]].concat());
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
    make(&["create", &pair("a", &other)], &zip, 0);
    make(&["create", &pair("a", &one), &pair("b", &other)], &zip, 0);
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
        let told = run_floe(words).expect_code(4).stderr_text();
        assert!(
            told.contains(why) && told.contains("nothing was written"),
            "{words:?}: {told}"
        );
    }
    assert!(fs::read(&image).expect("image") == before);
}

#[test]
fn only_an_older_one_of_the_kind_that_comes_is_replaced_unasked() {
    require_mkfs!();
    let scratch = Scratch::new();
    let from = text(&scratch.join("from.img"));
    common::shell(
        &format!("truncate -s 8M {from}; mkfs.ext4 -q -F {from}"),
        Limit::secs(60),
    )
    .expect_code(0);
    let packed = text(&scratch.join("packed.gz"));
    run_floe(&["dump", &from, "-o", &packed]).expect_code(0);
    let (a, b) = (format!("a={from}"), format!("b={from}"));
    let label = ["-n", "n", "-t", "t"];
    let kinds = [
        ("gzip", vec!["dump", &from]),
        ("raw", vec!["dump", &from, "-z", "none"]),
        ("mender", [&["artifact", &packed][..], &label].concat()),
        ("other", vec!["create", &b]),
        ("snapshot", vec!["create", &a]),
    ];
    let file = text(&scratch.join("file"));
    for (there, first) in &kinds {
        for (comes, second) in &kinds {
            let _ = fs::remove_file(&file);
            run_floe(&[first, &["-o", &file][..]].concat()).expect_code(0);
            let before = fs::read(&file).expect("file");
            let run = run_floe(&[second, &["-o", &file][..]].concat());
            let is_same = |classes: &[&str]| classes.contains(there) && classes.contains(comes);
            if there == comes || is_same(&["gzip", "raw"]) || is_same(&["other", "snapshot"]) {
                run.expect_code(0);
                continue;
            }
            let said = run.expect_code(4).stderr_text();
            assert!(said.contains("--overwrite replaces it"), "{said}");
            assert!(fs::read(&file).expect("file") == before, "{there} {comes}");
            run_floe(&[second, &["-o", &file, "--overwrite"][..]].concat()).expect_code(0);
        }
    }
    // What is to be kept goes for another such, and for nothing less.
    for (mark, other) in [("--factory", "--rescue"), ("--rescue", "--factory")] {
        let words = ["create", &a, "-o", &file, "--overwrite"];
        run_floe(&[&words[..], &[mark]].concat()).expect_code(0);
        for more in [&[][..], &[other]] {
            let said = run_floe(&[&words[..4], more].concat()).expect_code(4);
            assert!(said.stderr_text().contains("which is kept"), "{said}");
        }
        run_floe(&[&words[..4], &[mark]].concat()).expect_code(0);
    }
}
