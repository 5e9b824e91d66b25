//! `--dry-run`: every check as always, the exit code as it would be, and not a byte anywhere: neither target nor part file nor freeze.

use std::fs;
use std::path::Path;

use crate::common::{self, Limit, LoopDevice, LoopFs, Run, Scratch, Spec, expect_floe, text};

/// What lies in a folder, with sizes.
fn listing(folder: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(folder).expect("folder");
    let mut found: Vec<_> = entries
        .map(|entry| entry.expect("entry"))
        .map(|entry| (text(&entry.path()), entry.metadata().expect("meta").len()))
        .collect();
    found.sort();
    found
}

#[test]
fn nothing_is_touched_and_the_exit_code_is_as_it_would_be() {
    drop(require_floe!());
    let made = require_ok!(LoopFs::make(Spec {
        mib: 48,
        ..Spec::default()
    }));
    made.fill(20);
    let scratch = Scratch::new();
    let (image, bundle) = (scratch.join("image.gz"), scratch.join("a.zip"));
    let source = text(made.dir());
    expect_floe(&["dump", &source, "-o", &text(&image)], 0);
    expect_floe(
        &["create", &format!("data={source}"), "-o", &text(&bundle)],
        0,
    );
    let target = LoopDevice::filled(&scratch, "target", 48, 0xa5);
    let small = LoopDevice::filled(&scratch, "small", 8, 0xa5);
    let old = scratch.join("old");
    common::sparse(&old, 48 << 20);
    common::mkfs_ext4(&old);
    let old = LoopDevice::attach(&old, 512);
    let bytes = |device: &LoopDevice| common::hash_file(device.path());
    let before = (
        bytes(&target),
        bytes(&small),
        bytes(&old),
        listing(scratch.path()),
    );
    let node = |device: &LoopDevice| text(device.path());
    let (new, folder) = (
        text(&scratch.join("new")),
        format!("{}/", text(scratch.path())),
    );
    let says = |run: Run, word: &str| {
        let said = run.stderr_text();
        assert!(
            said.contains(word) && said.contains("nothing was touched (--dry-run)"),
            "{said}"
        );
        assert!(!said.contains("frozen"), "{said}");
    };
    // restore: an image and a snapshot, onto a device and into a file that is not there.
    for (what, name) in [(text(&image), ""), (text(&bundle), "data=")] {
        for onto in [node(&target), new.clone()] {
            let run = expect_floe(
                &["restore", &what, &format!("{name}{onto}"), "--dry-run"],
                0,
            );
            says(run, &format!("{onto}: would be written with "));
        }
        for (onto, code) in [(node(&small), 4), (node(&old), 4), (source.clone(), 4)] {
            expect_floe(
                &["restore", &what, &format!("{name}{onto}"), "--dry-run"],
                code,
            );
        }
        let run = expect_floe(
            &[
                "restore",
                &what,
                &format!("{name}{}", node(&old)),
                "--dry-run",
                "--overwrite",
            ],
            0,
        );
        says(
            run,
            if name.is_empty() {
                "holds a filesystem"
            } else {
                ""
            },
        );
    }
    let cut = scratch.join("cut.gz");
    let whole = fs::read(&image).expect("image");
    fs::write(&cut, &whole[..whole.len() - 9]).expect("cut");
    expect_floe(&["restore", &text(&cut), &node(&target), "--dry-run"], 3);
    fs::remove_file(&cut).expect("cut");
    // clone, also onto a medium that would be laid out anew.
    let pair = |onto: &LoopDevice| format!("{source}={}", node(onto));
    says(
        expect_floe(&["clone", &pair(&target), "--dry-run"], 0),
        "would be written with",
    );
    expect_floe(&["clone", &pair(&small), "--dry-run"], 4);
    expect_floe(&["clone", &pair(&old), "--dry-run"], 4);
    let disk = LoopDevice::filled(&scratch, "disk", 256, 0);
    let before_disk = bytes(&disk);
    let words = format!("{source}=root");
    let run = expect_floe(
        &[
            "clone",
            &words,
            "--media",
            &node(&disk),
            "--partition",
            "--swap-size",
            "0",
            "--dry-run",
        ],
        0,
    );
    assert!(run.stderr_text().contains("new partition table"), "{run}");
    says(run, "would be written with");
    assert_eq!(bytes(&disk), before_disk);
    drop(disk);
    fs::remove_file(scratch.join("disk")).expect("disk");
    // create: a folder, a file, stdout; and a folder that is none.
    let data = format!("data={source}");
    for place in [folder.as_str(), new.as_str(), "-"] {
        let run = expect_floe(&["create", &data, "-o", place, "--dry-run"], 0);
        assert!(run.stdout.is_empty());
        says(run, "would hold data (ext4 of ");
    }
    expect_floe(
        &["create", &data, "-o", &format!("{new}/none/"), "--dry-run"],
        4,
    );
    // An image makes no room for a snapshot unasked.
    expect_floe(&["create", &data, "-o", &text(&image), "--dry-run"], 4);
    // What is refused is refused in the same words.
    let nowhere = format!("{new}/none/x.zip");
    let words = ["create", &data, "-o", &nowhere, "--dry-run"];
    let would = expect_floe(&words, 4).stderr_text();
    assert_eq!(would, expect_floe(&words[..4], 4).stderr_text());
    let report = expect_floe(
        &[
            "create",
            &data,
            "-o",
            "-",
            "--dry-run",
            "-q",
            "--report",
            "-",
        ],
        0,
    );
    let wanted = format!("{{\"source\":\"{source}\",\"dry_run\":true}}\n");
    assert_eq!(report.stderr_text(), wanted);
    let now = (
        bytes(&target),
        bytes(&small),
        bytes(&old),
        listing(scratch.path()),
    );
    assert!(
        now == before,
        "something was touched: {:?} {:?}",
        before.3,
        now.3
    );
    common::assert_not_frozen(made.dir(), "after dry runs");
}

#[test]
fn a_pipe_without_a_dash_is_told_of_it() {
    let mut floe = require_floe!();
    let run = common::run_with_input(floe.args(["restore", "/dev/null"]), b"x", Limit::secs(20));
    let said = run.expect_code(2).stderr_text();
    assert!(said.contains("floe restore - /dev/null"), "{said}");
    for (words, wanted) in [
        (
            &["pull", "h", "--create", "/data"][..],
            "not NAME=SOURCE, as in data=/data",
        ),
        (
            &["pull", "h", "/data", "--create"],
            "not NAME=SOURCE, as in data=/data",
        ),
        (&["pull", "h", "--clone", "/data"], "not SOURCE=TARGET"),
    ] {
        let run = common::run(require_floe!().args(words), Limit::secs(20)).expect_code(2);
        assert!(run.stderr_text().contains(wanted), "{run}");
    }
}
