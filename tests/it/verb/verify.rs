//! `floe verify`: what gzip and Python think of a file, floe thinks too; and the length of a raw image.

use crate::common::{self, Limit, Scratch};
use std::fs;
use std::process::Command;

fn image(scratch: &Scratch) -> Vec<u8> {
    let path = scratch.join("image");
    common::sparse(&path, 16 << 20);
    common::mkfs_ext4(&path);
    fs::read(&path).expect("image")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip");
    common::run_with_input(gzip.args(["-1", "-c"]), bytes, Limit::secs(60))
        .expect_code(0)
        .stdout
}

#[test]
fn a_good_image_is_one_line_with_format_sizes_and_crc() {
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let raw = image(&scratch);
    let path = scratch.join("image.gz");
    fs::write(&path, gzip(&raw)).expect("write");
    for (file, format) in [("image", "raw"), ("image.gz", "gzip")] {
        let mut floe = require_floe!();
        let run = common::run(floe.arg("verify").arg(scratch.join(file)), Limit::secs(60));
        let text = run.expect_code(0).stdout_text();
        assert_eq!(text.lines().count(), 1, "{text}");
        for word in [format, "ext4", "16777216 bytes", "crc32"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
    // From a pipe too, and -q says it by the exit code alone.
    let mut floe = require_floe!();
    let run = common::run_with_input(
        floe.args(["verify", "-q", "-"]),
        &gzip(&raw),
        Limit::secs(60),
    );
    assert!(run.expect_code(0).stdout.is_empty());
}

#[test]
fn every_damage_that_gzip_finds_is_exit_3() {
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let good = gzip(&image(&scratch));
    let mut random = common::Random(7);
    let mut caught = 0;
    for _ in 0..30 {
        let mut bad = good.clone();
        let place =
            usize::try_from(random.below(u64::try_from(bad.len()).expect("small"))).expect("small");
        match random.below(3) {
            0 => bad.truncate(place),
            1 => bad[place] ^= 1 << random.below(8),
            _ => bad.push(1),
        }
        let mut tool = Command::new("gzip");
        let gzip_says = common::run_with_input(tool.arg("-t"), &bad, Limit::secs(60)).code;
        let mut floe = require_floe!();
        let run = common::run_with_input(floe.args(["verify", "-"]), &bad, Limit::secs(60));
        if gzip_says == Some(0) {
            // A changed time or system byte of the header means nothing.
            assert_eq!(run.code, Some(0), "{run}");
        } else {
            caught += 1;
            let run = run.expect_code(3);
            assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
        }
    }
    assert!(caught > 20, "{caught}");
}

#[test]
fn an_image_shorter_than_its_superblock_says_is_exit_3() {
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let raw = image(&scratch);
    for bytes in [raw[..12 << 20].to_vec(), gzip(&raw[..12 << 20])] {
        let mut floe = require_floe!();
        let run = common::run_with_input(floe.args(["verify", "-"]), &bytes, Limit::secs(60));
        let run = run.expect_code(3);
        assert!(run.stderr_text().contains("16777216"), "{run}");
    }
}

#[test]
fn the_command_line_and_a_closed_pipe_are_as_on_every_verb() {
    let cases: [&[&str]; 3] = [
        &["verify"],
        &["verify", "a", "b"],
        &["verify", "--no-such", "a"],
    ];
    for case in cases {
        let run = common::run(require_floe!().args(case), Limit::secs(20)).expect_code(2);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
    }
    let run = common::run(require_floe!().args(["verify", "--help"]), Limit::secs(20));
    assert!(run.expect_code(0).stdout_text().contains("floe verify"));
    let run = common::run(
        require_floe!().args(["verify", "/no/such"]),
        Limit::secs(20),
    );
    assert!(run.expect_code(4).stderr_text().contains("/no/such: open"));
    let run = common::run(require_floe!().args(["verify", "/"]), Limit::secs(20));
    assert!(run.expect_code(4).stderr_text().contains("directory"));
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let scratch = Scratch::new();
    let file = scratch.join("x");
    fs::write(&file, b"some bytes that are no image").expect("write");
    let script = format!(
        "set +e; {words} verify --any-content {} | true; echo ${{PIPESTATUS[0]}}",
        file.display()
    );
    let run = common::shell(&script, Limit::secs(20)).expect_code(0);
    assert!(run.stderr.is_empty(), "{run}");
    assert!(matches!(run.stdout_text().trim(), "0" | "1"), "{run}");
}
