//! `--report` whatever becomes of a run, and what a run that ends early says: one line, with the state that is left.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{self, Limit, Scratch, run_floe, text};

/// An ext4 image that does not pack, and a gzip of it.
fn image(scratch: &Scratch) -> (String, String) {
    let (image, packed) = (text(&scratch.join("a.img")), text(&scratch.join("a.gz")));
    let script = format!(
        "truncate -s 16M {image}; mkdir {image}.d; head -c 3M /dev/urandom > {image}.d/noise; mkfs.ext4 -q -F -d {image}.d {image}"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
    run_floe(&["dump", "-q", &image, "-o", &packed]).expect_code(0);
    (image, packed)
}

/// The two in a folder of their own.
macro_rules! require_image {
    () => {{
        require_mkfs!();
        let scratch = Scratch::new();
        let (image, packed) = image(&scratch);
        (scratch, image, packed)
    }};
}

#[test]
fn a_run_that_failed_has_a_report_that_says_of_what_why_and_with_what_state() {
    let (scratch, image, packed) = require_image!();
    let cut = text(&scratch.join("cut.gz"));
    let bytes = fs::read(&packed).expect("packed");
    fs::write(&cut, &bytes[..bytes.len() / 2]).expect("cut");
    let nowhere = text(&scratch.join("none/x"));
    let new = text(&scratch.join("new"));
    let pair = format!("a={image}");
    let copy = format!("{image}={nowhere}");
    let report = text(&scratch.join("report"));
    for (words, code, key, about) in [
        (&["restore", &cut, &new][..], 3, "image", &cut),
        (&["restore", &nowhere, &new], 4, "image", &nowhere),
        (&["verify", &cut], 3, "path", &cut),
        (&["push", &cut, "h", "/dev/null"], 3, "path", &cut),
        (&["list", &nowhere], 4, "path", &nowhere),
        (&["delete", &nowhere], 4, "names", &nowhere),
        (&["show", &nowhere], 4, "path", &nowhere),
        (&["thaw", &nowhere], 4, "path", &nowhere),
        (&["dump", &image, "-o", &nowhere], 4, "source", &image),
        (&["create", &pair, "-o", &nowhere], 4, "source", &image),
        (&["clone", &copy], 4, "source", &image),
    ] {
        let _ = fs::remove_file(&report);
        let run = run_floe(&[words, &["--report", &report]].concat()).expect_code(code);
        let made = fs::read(&report).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let object = floe::json::parse(&made).unwrap_or_else(|_| panic!("{words:?}: {made:?}"));
        let said = |key: &str| object.get(key).and_then(|value| value.text());
        assert_eq!(said(key), Some(about.as_str()), "{words:?}");
        // The same line, the state with it.
        let line = format!("floe: {}\n", said("error").expect("error"));
        assert_eq!(run.stderr_text(), line, "{words:?}");
    }
    let run = run_floe(&["thaw", &text(scratch.path()), "--report", "-", "-q"]).expect_code(0);
    assert!(run.stderr_text().ends_with("\"thawed\":0}\n"), "{run}");
}

#[test]
fn read_bytes_are_those_of_the_input_and_used_is_what_was_to_be_read() {
    let (scratch, image, packed) = require_image!();
    let (zip, new) = (text(&scratch.join("a.zip")), text(&scratch.join("new")));
    let report = |words: &[&str]| {
        let words = [words, &["-q", "--report", "-", "--overwrite"]].concat();
        let keep = words.len() - usize::from(matches!(words[0], "verify" | "show"));
        let run = run_floe(&words[..keep]).expect_code(0);
        floe::json::parse(run.stderr_text().as_bytes()).expect("report")
    };
    let number = |object: &floe::json::Value, key: &str| {
        let number = object.get(key).and_then(|value| value.number());
        number.unwrap_or_else(|| panic!("{key}: {object:?}"))
    };
    let first = |object: &floe::json::Value| {
        let entries = object.get("entries").and_then(|value| value.list());
        entries.expect("entries").first().expect("an entry").clone()
    };
    let length = |path: &str| fs::metadata(path).expect("file").len();
    let made = report(&["create", &format!("a={image}"), "-o", &zip]);
    let stored_bytes = number(&first(&made), "stored_bytes");
    assert!(stored_bytes < length(&zip) && stored_bytes > 3 << 20);
    // The same entries wherever a snapshot is told of.
    let verified = first(&report(&["verify", &zip]));
    for key in ["size_bytes", "used_bytes", "stored_bytes"] {
        assert_eq!(number(&verified, key), number(&first(&made), key), "{key}");
    }
    for key in ["name", "crc32", "map", "filesystem"] {
        let said = verified.get(key).and_then(|value| value.text());
        assert!(said.is_some(), "{key}");
        assert_eq!(said, first(&made).get(key).and_then(|value| value.text()));
    }
    // Of a file that is packed its own length, of an entry what it has in the archive, of what is not packed the same as its size.
    for (file, bytes) in [
        (&image, length(&image)),
        (&packed, length(&packed)),
        (&zip, length(&zip)),
    ] {
        assert_eq!(
            number(&report(&["verify", file]), "read_bytes"),
            bytes,
            "{file}"
        );
    }
    for (file, bytes) in [(&image, length(&image)), (&packed, length(&packed))] {
        assert_eq!(
            number(&report(&["restore", file, &new]), "read_bytes"),
            bytes,
            "{file}"
        );
    }
    let pair = format!("a={new}");
    let whole = report(&["restore", &zip, &pair]);
    assert_eq!(number(&first(&whole), "read_bytes"), stored_bytes);
    let script = format!(
        "cat {zip} | {} restore - {pair} -q --overwrite --report -",
        common::floe_shell_words().expect("FLOE_BIN")
    );
    let run = common::shell(&script, Limit::secs(60)).expect_code(0);
    let piped = floe::json::parse(run.stderr_text().as_bytes()).expect("report");
    assert_eq!(number(&first(&piped), "read_bytes"), stored_bytes);
    // The same number wherever it is asked for, and the packed size of each entry and of all.
    let used_bytes = number(&first(&made), "used_bytes");
    let dumped = report(&["dump", &image, "-o", &packed]);
    assert_eq!(number(&dumped, "used_bytes"), used_bytes);
    assert_eq!(number(&report(&["show", &image]), "used_bytes"), used_bytes);
    let shown = report(&["show", &zip]);
    assert_eq!(number(&shown, "packed_bytes"), length(&zip));
    assert_eq!(number(&first(&shown), "used_bytes"), used_bytes);
    assert_eq!(number(&first(&shown), "stored_bytes"), stored_bytes);
    let words = run_of(&["show", &zip]);
    let used = floe::report::Bytes(used_bytes).to_string();
    let stored = floe::report::Bytes(stored_bytes).to_string();
    assert!(
        words.contains(&format!(", {used} used, {stored} packed")),
        "{words}"
    );
    assert!(
        words.contains(&format!("({} bytes)", length(&zip))),
        "{words}"
    );
}

fn run_of(words: &[&str]) -> String {
    run_floe(words).expect_code(0).stdout_text()
}

#[test]
fn a_report_does_not_replace_what_is_written() {
    let (scratch, image, packed) = require_image!();
    let out = text(&scratch.join("out"));
    let other = text(&scratch.join("./no/../out"));
    fs::create_dir(scratch.join("no")).expect("folder");
    let pair = format!("a={image}");
    for words in [
        &["dump", &image, "-o", &out][..],
        &["create", &pair, "-o", &out],
        &["artifact", &packed, "-n", "n", "-t", "t", "-o", &out],
        &["restore", &packed, &out],
        &["pull", "192.0.2.1", "-o", &out],
    ] {
        for name in [&out, &other] {
            let run = run_floe(&[words, &["--report", name]].concat()).expect_code(4);
            assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
            assert!(!Path::new(&out).exists(), "{run}");
        }
    }
    // Neither the file of a board in the folder of several.
    let folder = text(&scratch.join("no"));
    let file = text(&scratch.join("no/192.0.2.1.img.gz"));
    let words = ["pull", "192.0.2.1", "-o", &folder, "--report", &file];
    let run = run_floe(&words).expect_code(4);
    assert!(!Path::new(&file).exists(), "{run}");
}

#[test]
fn a_signal_before_the_freeze_is_told_in_one_line() {
    let (_scratch, image, _) = require_image!();
    let pair = format!("a={image}");
    for words in [&["dump", &image][..], &["create", &pair, "-o", "-"]] {
        let mut floe = require_floe!();
        let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
        // It waits for who reads one byte and no more.
        let mut child = floe
            .args(words)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("floe");
        let begun = child.stdout.as_mut().expect("piped");
        begun.read_exact(&mut [0]).expect("the first byte");
        common::signal(child.id(), "TERM");
        let status = common::wait_for(&mut child, Duration::from_secs(20));
        let said = child.wait_with_output().expect("output").stderr;
        let said = String::from_utf8_lossy(&said);
        assert_eq!(
            status.and_then(|status| status.signal()),
            Some(15),
            "{said}"
        );
        let wanted = "floe: interrupted; nothing is frozen, and there is no image\n";
        assert_eq!(said, wanted, "{words:?}");
    }
}

#[test]
fn the_report_of_a_run_that_a_signal_ends_says_what_it_left() {
    let (_scratch, image, _) = require_image!();
    let report = common::Scratch::new();
    let report = report.join("report");
    let mut floe = require_floe!();
    floe.args(["dump", &image, "--report"]).arg(&report);
    let (stdout, stderr) = (Stdio::piped(), Stdio::null());
    let mut child = floe.stdout(stdout).stderr(stderr).spawn().expect("floe");
    // It waits for who reads one byte and no more.
    let begun = child.stdout.as_mut().expect("piped");
    begun.read_exact(&mut [0]).expect("the first byte");
    common::signal(child.id(), "TERM");
    common::wait_for(&mut child, Duration::from_secs(20)).expect("it ends");
    let text = std::fs::read_to_string(&report).expect("a report");
    let said = "\"error\":\"signal 15: interrupted; nothing is frozen, and there is no image\"";
    assert!(text.contains(said), "{text}");
}

#[test]
fn a_signal_before_the_first_write_is_told_in_one_line_and_leaves_the_target_as_it_was() {
    let (_scratch, target, _) = require_image!();
    let before = std::fs::read(&target).expect("target");
    for (words, said) in [
        (&["verify", "-"][..], "not checked to its end"),
        (
            &["restore", "--overwrite", "-", &target],
            "nothing was written",
        ),
    ] {
        for (name, number) in [("TERM", 15), ("HUP", 1)] {
            let mut floe = require_floe!();
            let floe = floe.args(words).stdin(Stdio::piped());
            let mut child = floe.stderr(Stdio::piped()).spawn().expect("floe");
            // It waits for the beginning of an image.
            std::thread::sleep(Duration::from_millis(300));
            common::signal(child.id(), name);
            let status = common::wait_for(&mut child, Duration::from_secs(20));
            let told = child.wait_with_output().expect("output").stderr;
            let told = String::from_utf8_lossy(&told);
            let signal = status.and_then(|status| status.signal());
            assert_eq!(signal, Some(number), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
            assert!(told.starts_with("floe: stdin: interrupted; "), "{told}");
            assert!(told.contains(said), "{told}");
        }
    }
    assert!(std::fs::read(&target).expect("target") == before);
}

#[test]
fn a_file_that_cannot_grow_is_told_with_what_was_refused_what_is_left_and_what_helps() {
    let (scratch, image, _) = require_image!();
    let out = text(&scratch.join("out"));
    let floe = common::floe_shell_words().expect("required before");
    for words in [format!("dump {image}"), format!("create a={image}")] {
        let script = format!("ulimit -f 100; exec {floe} {words} -o {out}");
        let mut bash = std::process::Command::new("bash");
        let run = common::run(bash.args(["-c", &script]), Limit::secs(60)).expect_code(1);
        let said = run.stderr_text();
        assert!(
            said.contains(": write of ") && said.contains(" at 0x"),
            "{said}"
        );
        assert!(!said.contains(" of 0 bytes"), "{said}");
        let end = "; raise the limit on the size of files (ulimit -f), or name a filesystem that holds longer ones; the part file was removed\n";
        assert!(said.ends_with(end), "{said}");
        assert!(!Path::new(&format!("{out}.part")).exists());
    }
}

#[test]
fn names_that_are_empty_are_a_wrong_line_and_an_empty_list_has_its_header() {
    drop(require_floe!());
    let scratch = Scratch::new();
    for words in [
        &["dump", "/", "-o", ""][..],
        &["verify", ""],
        &["restore", "x", ""],
        &["show", "/", "--report", ""],
    ] {
        let run = run_floe(words).expect_code(2);
        assert!(run.stderr_text().contains("is empty"), "{run}");
    }
    let list = run_floe(&["list", &text(scratch.path())]).expect_code(0);
    assert_eq!(list.stdout_text(), "NAME  SIZE  AGE  STATE  ENTRIES\n");
    let pull = run_floe(&["pull", "h", "-z", "none"]).expect_code(2);
    assert!(pull.stderr_text().contains("is for --artifact; "), "{pull}");
}
