//! What holds for every verb, stamped on each: `--help`, an unknown option, an argument that is missing and one too many, a stdout
//! that is closed or that nobody reads, and a user who is not root. A verb that the overview names and this table does not, fails.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{self, Limit, Run, Scratch};

/// A verb and command lines that its rules are tried with; `IMAGE` and `NEW` become files of the test's own, `DEVICE` a block
/// device that only root may open.
struct Row {
    verb: &'static str,
    /// Each leaves out an argument that the verb must have.
    missing: &'static [&'static str],
    /// The last word is one too many.
    surplus: &'static str,
    /// What anybody may do.
    anybody: &'static [&'static str],
    /// What is refused to somebody who is not root, in one line that says so.
    only_root: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        verb: "dump",
        missing: &["-o"],
        surplus: "IMAGE surplus",
        anybody: &["IMAGE -o NEW", "IMAGE"],
        only_root: &["DEVICE -o NEW"],
    },
    Row {
        verb: "restore",
        missing: &["", "IMAGE", "IMAGE NEW -j"],
        surplus: "IMAGE NEW surplus",
        anybody: &["IMAGE NEW"],
        only_root: &["IMAGE DEVICE"],
    },
    Row {
        verb: "clone",
        missing: &["IMAGE", "IMAGE=NEW --pairs"],
        surplus: "IMAGE=NEW surplus",
        anybody: &[],
        only_root: &["DEVICE=NEW"],
    },
    Row {
        verb: "create",
        missing: &["", "root=IMAGE -o"],
        surplus: "root=IMAGE surplus",
        anybody: &[],
        only_root: &["root=DEVICE -o NEW"],
    },
    Row {
        verb: "show",
        missing: &["IMAGE --report"],
        surplus: "IMAGE surplus",
        anybody: &["IMAGE"],
        only_root: &["DEVICE"],
    },
    Row {
        verb: "verify",
        missing: &["", "IMAGE --report"],
        surplus: "IMAGE surplus",
        anybody: &["IMAGE"],
        only_root: &[],
    },
    Row {
        verb: "list",
        missing: &["FOLDER --report"],
        surplus: "FOLDER surplus",
        anybody: &["FOLDER"],
        only_root: &[],
    },
    Row {
        verb: "delete",
        missing: &["", "name --report"],
        surplus: "",
        anybody: &[],
        only_root: &[],
    },
    Row {
        verb: "artifact",
        missing: &["", "IMAGE -n"],
        surplus: "IMAGE surplus",
        anybody: &["IMAGE -n name -t type -o NEW"],
        only_root: &[],
    },
    Row {
        verb: "pull",
        missing: &["", "192.0.2.1 --dump"],
        surplus: "",
        anybody: &[],
        only_root: &[],
    },
    Row {
        verb: "push",
        missing: &["", "IMAGE", "IMAGE 192.0.2.1"],
        surplus: "",
        anybody: &[],
        only_root: &[],
    },
    Row {
        verb: "thaw",
        missing: &[""],
        surplus: "FOLDER surplus",
        anybody: &[],
        only_root: &["/"],
    },
];

/// Files for the words of a row, in a folder where anybody may write.
struct Files {
    scratch: Scratch,
}

impl Files {
    fn new() -> Self {
        let scratch = Scratch::new();
        let open = |path: &Path, mode: u32| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        };
        open(scratch.path(), 0o777);
        let image = scratch.join("image");
        common::output("truncate", &["-s", "4M", &image.to_string_lossy()]);
        common::output("mkswap", &[&image.to_string_lossy()]);
        open(&image, 0o666);
        fs::create_dir(scratch.join("folder")).expect("folder");
        let device = scratch.join("device");
        // A loop device that is attached to nothing, or not there at all: nobody gets that far.
        common::output(
            "mknod",
            &["-m", "600", &device.to_string_lossy(), "b", "7", "1023"],
        );
        Files { scratch }
    }

    /// The words with the test's own paths in them; what `NEW` names is not there.
    fn words(&self, line: &str) -> Vec<String> {
        let path = |name: &str| self.scratch.join(name).to_string_lossy().into_owned();
        let _ = fs::remove_file(self.scratch.join("new"));
        line.split_whitespace()
            .map(|word| {
                word.replace("IMAGE", &path("image"))
                    .replace("NEW", &path("new"))
                    .replace("FOLDER", &path("folder"))
                    .replace("DEVICE", &path("device"))
            })
            .collect()
    }
}

fn floe(verb: &str, words: &[String]) -> Option<Run> {
    let mut command = common::floe()?;
    Some(common::run(command.arg(verb).args(words), Limit::secs(30)))
}

/// One line on stderr that begins as every message does, nothing on stdout.
#[track_caller]
fn assert_one_line(run: &Run, begins: &str) {
    let text = run.stderr_text();
    assert_eq!(text.lines().count(), 1, "{run}");
    assert!(text.starts_with(begins), "{run}");
    assert!(run.stdout.is_empty(), "{run}");
}

#[test]
fn the_table_has_every_verb_of_the_overview() {
    let run = common::run(require_floe!().arg("--help"), Limit::secs(20)).expect_code(0);
    let text = run.stdout_text();
    let verbs: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("  "))
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   ")) // a line that goes on
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let known: Vec<&str> = ROWS.iter().map(|row| row.verb).collect();
    for verb in &verbs {
        assert!(known.contains(verb), "{verb} is not in this table");
    }
    assert_eq!(verbs.len(), known.len(), "{verbs:?}");
}

#[test]
fn help_is_on_stdout_and_exit_0() {
    for row in ROWS {
        let mut help = require_floe!();
        let run = common::run(help.args([row.verb, "--help"]), Limit::secs(20)).expect_code(0);
        assert!(run.stderr.is_empty(), "{run}");
        let text = run.stdout_text();
        assert!(text.starts_with(&format!("floe {}", row.verb)), "{run}");
        assert!(text.ends_with('\n'), "{run}");
    }
}

#[test]
fn an_unknown_option_a_missing_argument_and_one_too_many_are_exit_2_and_touch_nothing() {
    drop(require_floe!());
    let files = Files::new();
    let before = common::hash_file(&files.scratch.join("image"));
    for row in ROWS {
        let begins = format!("floe: {}: ", row.verb);
        for option in ["--no-such-option", "-Y"] {
            let run = floe(row.verb, &[option.to_owned()])
                .expect("floe")
                .expect_code(2);
            assert_one_line(&run, &begins);
            assert!(run.stderr_text().contains(option), "{run}");
        }
        for line in row.missing {
            let run = floe(row.verb, &files.words(line))
                .expect("floe")
                .expect_code(2);
            assert_one_line(&run, &begins);
        }
        if let Some(surplus) = row
            .surplus
            .split(' ')
            .next_back()
            .filter(|word| !word.is_empty())
        {
            let run = floe(row.verb, &files.words(row.surplus))
                .expect("floe")
                .expect_code(2);
            assert_one_line(&run, &begins);
            assert!(run.stderr_text().contains(surplus), "{run}");
        }
        assert!(!files.scratch.join("new").exists(), "{}", row.verb);
    }
    assert_eq!(common::hash_file(&files.scratch.join("image")), before);
}

#[test]
fn a_stdout_that_is_closed_is_one_line_and_one_that_nobody_reads_any_more_is_exit_1_too() {
    drop(require_floe!());
    for row in ROWS {
        let floe = common::floe_shell_words().expect("floe");
        let closed = format!("{floe} {} --help >&-", row.verb);
        let run = common::shell(&closed, Limit::secs(30)).expect_code(1);
        assert_one_line(&run, "floe: stdout: ");
        // The reader is gone before floe starts; whoever left (head, less) need not be told.
        let unread = format!("exec 3> >(:); wait $!; {floe} {} --help >&3", row.verb);
        let mut run = common::shell(&unread, Limit::secs(30));
        // Of 1000 such runs bash gives 255 for one or two, whatever runs there (/bin/false, too).
        if run.code == Some(255) {
            run = common::shell(&unread, Limit::secs(30));
        }
        assert_eq!(run.expect_code(1).stderr_text(), "");
    }
}

/// The executable where anybody may start it, with the runner in front of it.
fn for_anybody(files: &Files) -> Option<Vec<PathBuf>> {
    let mut parts = vec![common::floe_path()?];
    if let Some(runner) = common::runner() {
        parts.insert(0, PathBuf::from(runner));
    }
    let copy = |(number, part): (usize, &PathBuf)| {
        let to = files.scratch.join(format!("part{number}"));
        common::copy_program(part, &to);
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("mode");
        to
    };
    Some(parts.iter().enumerate().map(copy).collect())
}

#[test]
fn who_is_not_root_is_told_so_in_one_line_and_may_do_what_needs_no_root() {
    require!(common::is_root(), "root, to become somebody else");
    require!(common::have("setpriv"), "setpriv");
    drop(require_floe!());
    let files = Files::new();
    let parts = require_some!(for_anybody(&files), "FLOE_BIN");
    let nobody = |verb: &str, line: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(&parts)
            .arg(verb)
            .args(files.words(line))
            .current_dir(files.scratch.path())
            .stdin(Stdio::null());
        common::run(&mut command, Limit::secs(30))
    };
    for row in ROWS {
        for line in row.anybody {
            nobody(row.verb, line).expect_code(0);
            if let Ok(made) = fs::metadata(files.scratch.join("new")) {
                assert_eq!(made.uid(), 65534, "{} {line}", row.verb);
            }
        }
        for line in row.only_root {
            let run = nobody(row.verb, line);
            assert!(matches!(run.code, Some(1 | 4)), "{run}");
            assert_one_line(&run, "floe: ");
            let text = run.stderr_text();
            let reason = text.contains("Permission denied") || text.contains("not permitted");
            assert!(reason, "{run}");
            assert!(!files.scratch.join("new").exists(), "{run}");
        }
    }
}
