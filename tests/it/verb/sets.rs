//! Sets of features: an executable says what it was built with, knows that, and refuses the rest by name or reads it whole.
//! `tests/run` passes this with each set; whatever the set, every line here says something.

use std::path::Path;

use crate::common::{self, Scratch, run_floe};

/// What `--version` says it was built with.
fn features() -> Vec<String> {
    let run = run_floe(&["--version"]);
    let text = run.expect_code(0).stdout_text();
    let words = text.lines().find_map(|line| line.strip_prefix("with: "));
    let words = words.expect("a line with the features");
    words.split(' ').map(str::to_owned).collect()
}

const VERBS: &[(&str, &[&str])] = &[
    ("host", &["pull", "push", "artifact"]),
    ("clone", &["clone"]),
    ("snapshots", &["create", "list", "delete"]),
    ("ext", &["dump", "restore", "verify", "show", "thaw"]),
];

#[test]
fn a_verb_is_there_with_its_feature_and_refused_by_name_without() {
    require_floe!();
    let features = features();
    let overview = run_floe(&["--help"]).expect_code(0).stdout_text();
    for (feature, verbs) in VERBS {
        let is_there = features.iter().any(|name| name == feature);
        for verb in *verbs {
            let shown = overview.lines().any(|line| {
                line.strip_prefix("  ")
                    .is_some_and(|line| line.split(' ').next() == Some(verb))
            });
            assert_eq!(shown, is_there, "{verb}: {overview}");
            let run = run_floe(&[verb, "--help"]);
            let help = run_floe(&["help", verb]);
            if is_there {
                assert_eq!((run.code, help.code), (Some(0), Some(0)), "{run}");
                continue;
            }
            for run in [run, help] {
                let text = run.expect_code(4).stderr_text();
                let line = format!("floe: {verb}: this floe was built without ");
                assert!(text.starts_with(&line), "{text}");
            }
        }
    }
}

#[test]
fn an_option_that_was_left_out_is_refused_by_name_and_not_shown() {
    require_floe!();
    let features = features();
    for (feature, verb, option) in [
        ("golden", "dump", "--golden"),
        ("golden", "show", "--identity"),
        ("frames", "dump", "--frames"),
    ] {
        let is_there = features.iter().any(|name| name == feature);
        let help = run_floe(&[verb, "--help"]).expect_code(0).stdout_text();
        let shown = help
            .lines()
            .any(|line| line.trim_start().starts_with(option));
        assert_eq!(shown, is_there, "{option}: {help}");
        let run = run_floe(&[verb, option, "/nowhere"]);
        let line = format!("floe: {option}: this floe was built without ");
        let by_name = run.stderr_text().starts_with(&line);
        assert_eq!((by_name, run.code), (!is_there, Some(4)), "{run}");
    }
}

fn make(kind: &str, options: &[&str], image: &Path) {
    let file = std::fs::File::create(image).expect("create");
    file.set_len(512 << 20).expect("length");
    let path = image.to_str().expect("path");
    common::output(&format!("mkfs.{kind}"), &[options, &[path]].concat());
}

#[test]
fn a_filesystem_that_was_left_out_is_read_whole_and_says_why() {
    require_floe!();
    let features = features();
    let scratch = Scratch::new();
    for (kind, options) in [
        ("ext4", &["-q", "-F"][..]),
        ("xfs", &["-q", "-f"]),
        ("btrfs", &["-q", "-f"]),
    ] {
        let image = scratch.join(kind);
        make(kind, options, &image);
        let (image, out) = (image.to_str().expect("path"), scratch.join("out.img.gz"));
        let out = out.to_str().expect("path");
        let words = ["dump", image, "-o", out, "--overwrite", "--report", "-"];
        let told = run_floe(&words).expect_code(0).stderr_text();
        let is_there = kind == "ext4" || features.iter().any(|name| name == kind);
        let whole = told.contains("\"map\":\"whole\"");
        let reason = told.contains("this floe was built without ");
        assert_eq!((whole, reason), (!is_there, !is_there), "{kind}: {told}");
        let refused = run_floe(&["dump", image, "-o", out, "--overwrite", "--require-map"]);
        assert_eq!(refused.code == Some(4), !is_there, "{kind}: {refused}");
        // Never wrong: it comes back as it was, whatever the way.
        let back = scratch.join("back.img");
        run_floe(&["restore", out, back.to_str().expect("path")]).expect_code(0);
        common::fsck(kind, &back);
        std::fs::remove_file(&back).expect("remove");
    }
}

#[test]
fn a_snapshot_and_an_artifact_are_refused_by_name_where_nothing_is_known_of_them() {
    require_floe!();
    let features = features();
    let scratch = Scratch::new();
    // The beginning is enough to be refused; of whole ones `verb::snapshots` and `verb::artifact` have more to say.
    let mut tar = vec![0; 1024];
    tar[..7].copy_from_slice(b"version");
    tar[257..262].copy_from_slice(b"ustar");
    let zip = b"PK\x03\x04\x2d\0\x08\0\0\0 and no more than that".to_vec();
    for (feature, bytes, what) in [
        ("snapshots", zip, "snapshots"),
        ("mender", tar, "Mender artifacts"),
    ] {
        let (file, target) = (scratch.join(feature), scratch.join("target"));
        std::fs::write(&file, bytes).expect("write");
        let path = file.to_str().expect("path");
        let knows = features.iter().any(|name| name == feature);
        for words in [
            &["restore", path, target.to_str().expect("path")][..],
            &["verify", path],
            &["show", path],
        ] {
            let run = run_floe(words);
            let line = format!("this floe was built without {what}");
            let by_name = run.stderr_text().contains(&line);
            assert_eq!(
                (by_name, run.code == Some(4)),
                (!knows, !knows),
                "{words:?}: {run}"
            );
        }
        assert!(!target.exists());
    }
}
