//! Names, labels and mount points with what a terminal would obey.

use crate::common::{self, Run, Scratch, run_floe, text};
use std::fs;

use super::{assert_clean, image};

#[test]
fn names_and_labels_of_others_are_shown_without_what_a_terminal_obeys() {
    require_mkfs!();
    let scratch = Scratch::new();
    let name = "a\x1b]0;x\x07\n\u{202e}floe: b\r\u{9b}31m\u{2067}\t.img";
    let path = image(&scratch, name, 8, &["-L", "l\x1b[2J\r\u{85}\u{202d}"]);
    let shown = text(&path);
    let out = text(&scratch.join("out.gz"));
    let packed = text(&scratch.join(format!("{name}.gz")));
    for (words, code) in [
        (vec!["show", shown.as_str()], 0),
        (vec!["show", "--json", shown.as_str()], 0),
        (vec!["dump", shown.as_str(), "-o", out.as_str(), "-p"], 0),
        (
            vec![
                "dump",
                shown.as_str(),
                "-o",
                packed.as_str(),
                "--report",
                "-",
            ],
            0,
        ),
        (vec!["verify", packed.as_str()], 0),
        (vec!["show", packed.as_str()], 0),
        (vec!["restore", out.as_str(), shown.as_str()], 4),
        (vec!["verify", "/nowhere/\x1b[1m\u{202e}x"], 1),
    ] {
        let run = run_floe(&words);
        assert_clean(&run);
        let code = if words[0] == "verify" && code == 1 {
            run.code
        } else {
            Some(code)
        };
        assert_eq!(run.code, code, "{run}");
        for line in run.stderr_text().lines() {
            let is_ours = line.starts_with("floe: ") || line.starts_with('{');
            assert!(is_ours, "a line that only looks like ours: {run}");
        }
    }
    // Scripts get what it is.
    let run = run_floe(&["show", "--json", &shown]);
    let told = run.stdout_text();
    assert!(
        told.contains(r"a\u001b]0;x\u0007\n\u202efloe: b\u000d\u009b31m\u2067\u0009.img"),
        "{run}"
    );
    assert!(told.contains(r"\u202d"), "{run}");
}

#[test]
fn a_mount_point_or_folder_with_a_line_of_its_own_makes_no_second_line() {
    drop(require_floe!());
    let made = match common::LoopFs::make(common::Spec::default()) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let scratch = Scratch::new();
    let odd = scratch.join("p\n\x1b[2Jfloe: evil\u{202e}\u{85}");
    fs::create_dir(&odd).expect("folder");
    let (from, at) = (text(made.dir()), text(&odd));
    common::output("mount", &["--bind", &from, &at]);
    let device = text(made.device());
    let (out, zip) = (text(&scratch.join("out.gz")), text(&scratch.join("a.zip")));
    let folder = scratch.join("store\nNAME  evil");
    fs::create_dir(&folder).expect("folder");
    let store = text(&folder);
    let pair = format!("a={at}");
    let onto = format!("{at}={device}");
    let cases: [(&[&str], i32); 13] = [
        (&["dump", &at, "-o", &out, "--report", "-"], 0),
        (
            &[
                "dump",
                &at,
                "--golden",
                "--empty",
                "/x\ny\x1b[1m",
                "-o",
                &out,
            ],
            0,
        ),
        (&["create", &pair, "-o", &zip, "--comment", "c\n\x1b[3J"], 0),
        (&["show", &zip], 0),
        (&["show", &at], 0),
        (&["show", "--json", &at], 0),
        (&["show", "--identity", &at], 0),
        (&["show"], 0),
        (&["show", "--json"], 0),
        (&["restore", &out, &device], 4),
        (&["clone", &onto], 4),
        (&["thaw", &at], 0),
        (&["list", &store], 0),
    ];
    let runs: Vec<Run> = cases.iter().map(|(words, _)| run_floe(words)).collect();
    common::output("umount", &[&at]);
    for ((words, code), run) in cases.iter().zip(&runs) {
        assert_eq!(run.code, Some(*code), "{words:?}: {run}");
        assert_clean(run);
        for line in run.stderr_text().lines() {
            assert!(line.starts_with("floe: ") || line.starts_with('{'), "{run}");
        }
        // Lines of ours begin with words of ours, whoever names what is shown.
        for line in run.stdout_text().lines().chain(run.stderr_text().lines()) {
            assert!(
                !line.contains("floe: evil") || line.contains("p\\n") || line.contains("p?"),
                "{line:?}"
            );
            assert!(
                !line.starts_with("evil") && !line.starts_with("NAME  evil"),
                "{line:?}"
            );
        }
    }
    // A listing of files with such names: a line each.
    fs::copy(&zip, folder.join("no\nevil\x1b[7m.zip")).expect("copy");
    for words in [&["list", store.as_str()][..], &["list", "--json", &store]] {
        let run = run_floe(words).expect_code(0);
        assert_clean(&run);
        let lines = if words.len() == 2 { 2 } else { 1 };
        assert_eq!(run.stdout_text().lines().count(), lines, "{run}");
    }
}
