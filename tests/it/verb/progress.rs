//! Progress: a line that fits the terminal whatever its size, for every verb that takes time, and JSON with the keys of docs/formats.md.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::boards::{Lab, Setup};
use crate::common::{self, Limit, LoopFs, Scratch, Spec};

/// The objects of `--progress=json` on stderr, each checked for its keys.
fn objects(run: &common::Run) -> Vec<floe::json::Value> {
    let stderr = run.stderr_text();
    let lines = stderr.lines().filter(|line| line.starts_with('{'));
    let objects: Vec<_> = lines
        .map(|line| floe::json::parse(line.as_bytes()).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md");
    let page = fs::read_to_string(page).expect("docs/formats.md");
    let mut before = 0;
    for object in &objects {
        for key in [
            "phase",
            "done_bytes",
            "total_bytes",
            "percent",
            "rate_bytes",
            "elapsed_ms",
            "left_ms",
        ] {
            assert!(object.get(key).is_some(), "{key}: {stderr}");
            assert!(page.contains(&format!("`{key}`")), "{key}");
        }
        let phase = object.get("phase").and_then(|phase| phase.text());
        let phase = phase.unwrap_or_else(|| panic!("no phase: {stderr}"));
        assert!(page.contains(&format!("`{phase}`")), "{phase}");
        let elapsed = object.get("elapsed_ms").and_then(|ms| ms.number());
        // Of one board after another the time begins anew.
        let board = object.get("board").is_some();
        assert!(
            board || phase == "checking" || elapsed >= Some(before),
            "time goes on: {stderr}"
        );
        before = if board {
            before
        } else {
            elapsed.unwrap_or_default()
        };
    }
    objects
}

fn phases(run: &common::Run) -> Vec<String> {
    let phase = |object: &floe::json::Value| {
        object
            .get("phase")
            .and_then(|v| v.text())
            .map(str::to_owned)
    };
    objects(run).iter().filter_map(phase).collect()
}

#[test]
fn json_progress_names_the_phases_of_each_verb() {
    require!(common::is_root(), "root");
    let mut made = require_ok!(LoopFs::make(Spec {
        mib: 64,
        ..Spec::default()
    }));
    made.fill(40);
    let scratch = Scratch::new();
    let (image, target) = (scratch.join("image.gz"), scratch.join("target"));
    let floe = |words: &[&str]| {
        let mut floe = common::floe().expect("FLOE_BIN");
        common::run(floe.args(words).arg("--progress=json"), Limit::secs(60)).expect_code(0)
    };
    require!(common::floe_path().is_some(), "FLOE_BIN");
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let run = floe(&["dump", &text(made.dir()), "-o", &text(&image)]);
    let seen = phases(&run);
    for phase in ["copying", "frozen", "sending"] {
        assert!(seen.iter().any(|one| one == phase), "{phase}: {run}");
    }
    // The last line for people is there, too.
    assert!(run.stderr_text().contains("frozen "), "{run}");
    let run = floe(&["verify", &text(&image)]);
    let checked = objects(&run);
    let length = fs::metadata(&image).expect("image").len();
    let total = checked
        .first()
        .and_then(|object| object.get("total_bytes")?.number());
    assert_eq!(total, Some(length), "{run}");
    // From a pipe the image says by itself how long it is.
    for words in ["verify -", "restore - piped"] {
        let shown = common::floe_shell_words().expect("required before");
        let (folder, image) = (text(scratch.path()), text(&image));
        // The last byte comes late.
        let most = length - 1;
        let line = format!(
            "cd {folder}; (head -c {most} {image}; sleep 2; tail -c 1 {image}) | {shown} {words} --progress=json"
        );
        let run = common::shell(&line, Limit::secs(60)).expect_code(0);
        let seen = objects(&run);
        let total = |object: &floe::json::Value| object.get("total_bytes")?.number();
        assert!(seen.iter().any(|one| total(one) == Some(64 << 20)), "{run}");
    }
    let run = floe(&["restore", &text(&image), &text(&target)]);
    assert_eq!(
        phases(&run).first().map(String::as_str),
        Some("checking"),
        "{run}"
    );
    let bundle = scratch.join("a.zip");
    let run = floe(&[
        "create",
        &format!("data={}", text(made.dir())),
        "-o",
        &text(&bundle),
    ]);
    assert!(phases(&run).iter().any(|one| one == "copying"), "{run}");
    let run = floe(&["verify", &text(&bundle)]);
    assert!(phases(&run).iter().all(|one| one == "checking"), "{run}");
    assert!(!phases(&run).is_empty(), "{run}");
    made.unmount();
    let run = floe(&[
        "dump",
        &text(made.device()),
        "-o",
        &text(&image),
        "--overwrite",
    ]);
    assert!(
        !phases(&run).iter().any(|one| one == "frozen"),
        "nothing was frozen: {run}"
    );
    // -q wins, and a word that is not json is a wrong line.
    let run = floe(&["verify", "-q", &text(&image)]);
    assert!(run.stderr_text().is_empty(), "{run}");
    let mut wrong = common::floe().expect("FLOE_BIN");
    wrong.args(["verify", "--progress=xml", "x"]);
    common::run(&mut wrong, Limit::secs(60)).expect_code(2);
}

#[test]
fn a_progress_line_fits_a_terminal_that_is_narrow_and_becomes_narrower() {
    require!(
        common::have("script") && common::have("mkfs.ext4"),
        "script, mkfs.ext4"
    );
    let floe = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let scratch = Scratch::new();
    let image = scratch.join("image");
    common::sparse(&image, 16 << 20);
    common::mkfs_ext4(&image);
    // 40 columns, then 24: the reader gets its input in pieces, and so has time to show more than one line.
    let inside = format!(
        "stty cols 40 rows 10; {{ head -c 4M {image}; sleep 0.7; stty cols 24 < /dev/tty; echo -n NARROW > /dev/tty; tail -c +4194305 {image} | head -c 4M; sleep 0.7; tail -c +8388609 {image}; }} | {floe} verify -",
        image = image.display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &inside, "/dev/null"]);
    let run = common::run(&mut script, Limit::secs(60)).expect_code(0);
    let text = run.stdout_text();
    let (wide, narrow) = text.split_once("NARROW").unwrap_or_else(|| panic!("{run}"));
    for (part, columns) in [(wide, 40), (narrow, 24)] {
        let lines: Vec<&str> = part
            .split(['\r', '\n'])
            .filter(|line| line.starts_with("floe: checking"))
            .collect();
        assert!(!lines.is_empty(), "{columns}: {run}");
        for line in lines {
            assert!(line.chars().count() < columns, "{columns}: '{line}'");
        }
    }
    // Nothing of it is left in front of the answer.
    let answer = narrow
        .split(['\r', '\n'])
        .find(|line| line.contains("good raw image"));
    assert!(
        answer.is_some_and(|line| line.starts_with("-: ") || line.starts_with("stdin: ")),
        "{run}"
    );
}

#[test]
fn a_pull_shows_percent_and_total_of_each_board_and_a_sum() {
    drop(require_floe!());
    let mut lab = require_ok!(Lab::new());
    // One that stays for a while, so that it is seen, and one that is older than these words.
    let slow = "printf '#!/bin/sh\\n/run/bin/floe \"$@\"; code=$?; sleep 2; exit $code\\n' > /run/bin/slow; chmod +x /run/bin/slow";
    let older = "printf '#!/bin/sh\\ncase \"$*\" in *--progress*) echo \"floe: dump: --progress takes no value\" >&2; exit 2;; esac\\n/run/bin/floe \"$@\"\\n' > /run/bin/older; chmod +x /run/bin/older";
    // One that gets what is sent in two pieces.
    let late = "printf '#!/bin/sh\\n{ head -c 100000; sleep 2; cat; } | /run/bin/floe \"$@\"\\n' > /run/bin/late; chmod +x /run/bin/late";
    for _ in 0..2 {
        let before = &format!("{slow}; {older}; {late}");
        let setup = Setup {
            mib: 32,
            before,
            ..Setup::default()
        };
        if let Err(missing) = lab.add(setup) {
            return common::skip(&missing);
        }
    }
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let pull = |there: &str, words: &[&str]| {
        let mut floe = lab.floe_by("pull", there);
        floe.args(["10.77.0.1", "10.77.0.2", "--overwrite", "--fresh", "-o"]);
        floe.arg(&out).arg("--progress=json").args(words);
        common::run(&mut floe, Limit::secs(60)).expect_code(0)
    };
    let number = |object: &floe::json::Value, key| object.get(key).and_then(|v| v.number());
    for what in [
        &["--dump", "/mnt"][..],
        &["--create", "data=/mnt"],
        &["--dump", "/mnt", "--precopy", "off"],
    ] {
        let run = pull("/run/bin/slow", what);
        let seen = objects(&run);
        let (boards, sums): (Vec<_>, Vec<_>) = seen
            .iter()
            .partition(|object| object.get("board").is_some());
        let total = |object: &&floe::json::Value| {
            number(object, "percent").is_some() && number(object, "total_bytes") > Some(1 << 19)
        };
        for address in ["10.77.0.1", "10.77.0.2"] {
            let mut of = boards.iter().filter(|object| {
                object.get("board").and_then(|board| board.text()) == Some(address)
            });
            assert!(of.any(total), "{address}: {run}");
        }
        let mut sums = sums.into_iter().filter(total);
        let sum = sums.next().unwrap_or_else(|| panic!("no sum: {run}"));
        // What is checked here is the whole image, and no part of the sum.
        let is_sent = |object: &&&floe::json::Value| {
            object.get("phase").and_then(|phase| phase.text()) != Some("checking")
        };
        let one = boards
            .iter()
            .filter(is_sent)
            .filter_map(|object| number(object, "total_bytes"))
            .max();
        assert!(number(sum, "total_bytes") > one, "{run}");
    }
    // What a board does with what is pushed is its own to say.
    let image = out.join("10.77.0.1.img.gz");
    let push = |there: &str, words: &[&str]| {
        let mut floe = lab.floe_by("push", there);
        floe.arg(&image).args(["10.77.0.1", "/run/target"]);
        floe.arg("--progress=json").args(words);
        common::run(&mut floe, Limit::secs(60)).expect_code(0)
    };
    let run = push("/run/bin/late", &[]);
    assert!(phases(&run).iter().any(|one| one == "writing"), "{run}");
    push("/run/bin/older", &["--overwrite"]);
    // Nobody's lines are lost, and an older floe is asked once more, without.
    let run = pull("/run/bin/older", &["--dump", "/mnt"]);
    objects(&run);
    assert!(out.join("10.77.0.2.img.gz").exists(), "{run}");
}

/// A folder with an `ssh` that does this; `$host` is whom it is to reach.
fn fake_ssh(script: &str) -> Scratch {
    let scratch = Scratch::new();
    let ssh = scratch.join("ssh");
    let words = "while [ \"$1\" != -- ]; do shift; done; host=$2";
    fs::write(&ssh, format!("#!/bin/sh\n{words}\n{script}\n")).expect("ssh");
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
    scratch
}

/// What a terminal shows of a shell line, run in the folder with that ssh.
fn on_a_terminal(ssh: &Scratch, line: &str) -> String {
    let floe = common::floe_shell_words().expect("FLOE_BIN");
    let line = format!("PATH=$PWD:$PATH; {}", line.replace("FLOE", &floe));
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .current_dir(ssh.path());
    common::run(&mut script, Limit::secs(60)).stdout_text()
}

/// ssh's question stands alone, from its first letter to the answer.
#[track_caller]
fn assert_question_stands(text: &str, what: &str) {
    let asked = text.split_once("password: ").map(|(_, after)| after);
    let after = asked.unwrap_or_else(|| panic!("{what}: {text:?}"));
    assert!(after.starts_with("ANSWER\r\n"), "{what}: {text:?}");
    let (before, _) = text.split_once("password: ").unwrap_or_default();
    let line = before.rsplit(['\r', '\n']).next().unwrap_or_default();
    assert!(!line.contains("floe"), "{what}: {text:?}");
}

/// Asks, waits for longer than it takes to draw, and goes on.
const ASKS: &str = "printf 'password: ' > /dev/tty; sleep 1.2; echo ANSWER > /dev/tty";
const SPEAKS: &str = "n=1; while [ $n -lt 8 ]; do echo \"{\\\"phase\\\":\\\"copying\\\",\\\"done_bytes\\\":$n,\\\"total_bytes\\\":9}\" >&2; n=$((n + 1)); sleep 0.1; done";

#[test]
fn what_ssh_asks_on_the_terminal_is_never_drawn_over() {
    drop(require_floe!());
    require!(common::have("script"), "script");
    // Its own warnings, a banner among them, are no sign that it is logged in.
    let ssh = fake_ssh(&format!(
        "echo Authorized users only >&2; echo again >&2; sleep 0.3; {ASKS}; echo denied >&2; {SPEAKS}; exit 1"
    ));
    fs::write(ssh.join("zeros"), vec![0; 3 << 20]).expect("zeros");
    for line in [
        "FLOE pull board -o out",
        "FLOE pull board --clone /=/dev/x",
        "FLOE push --any-content zeros board /dev/x",
        "FLOE list board",
    ] {
        let text = on_a_terminal(&ssh, line);
        assert_question_stands(&text, line);
        let (_, after) = text.split_once("ANSWER").expect("asked");
        assert!(after.contains("floe: board: copying"), "{line}: {text:?}");
    }
    // What was sent is what was taken, also of a first piece.
    let ssh_that_takes = fake_ssh("head -c 100000 > /dev/null; sleep 1.2; exit 1");
    fs::write(ssh_that_takes.join("zeros"), vec![0; 3 << 20]).expect("zeros");
    let push = "FLOE push --any-content zeros board /dev/x";
    let text = on_a_terminal(&ssh_that_takes, push);
    let is_told = text.contains("sending") && text.contains(" KiB of 3.0 MiB");
    assert!(is_told && !text.contains("1 bytes"), "{text:?}");
    // One that is heard at once is drawn, and not any more when the next one may ask.
    let ssh = fake_ssh(&format!(
        "[ $host = quick ] || {{ sleep 0.5; {ASKS}; }}; {SPEAKS}; [ $host = slow ] || sleep 1; exit 1"
    ));
    for parallel in ["1", "2"] {
        let line = format!("FLOE pull quick slow -P {parallel} -o .");
        let text = on_a_terminal(&ssh, &line);
        assert_question_stands(&text, &line);
        let (before, _) = text.split_once("password: ").expect("asked");
        let is_drawn = before.contains("floe: quick: copying");
        assert_eq!(is_drawn, parallel == "1", "{text:?}");
    }
}

#[test]
fn what_the_reader_of_a_dump_asks_on_the_terminal_is_never_drawn_over() {
    drop(require_floe!());
    require!(
        common::have("script") && common::have("mke2fs"),
        "script, mke2fs"
    );
    let ssh = fake_ssh(&format!("{ASKS}; exec cat > /dev/null"));
    let image = ssh.join("e");
    common::sparse(&image, 16 << 20);
    common::mkfs_ext4(&image);
    for line in [
        "FLOE dump e | ssh -- board",
        "FLOE dump --compress none e | ssh -- board",
        "FLOE create a=e -o - | ssh -- board",
    ] {
        let text = on_a_terminal(&ssh, line);
        assert_question_stands(&text, line);
    }
}

#[test]
fn a_board_that_was_never_heard_may_be_one_whose_ssh_asks() {
    drop(require_floe!());
    let words = |script: &str| {
        let ssh = fake_ssh(script);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut floe = common::floe().expect("FLOE_BIN");
        floe.args(["pull", "board", "--stall", "500ms", "-o"])
            .arg(ssh.join("out"))
            .env("PATH", format!("{}:{path}", ssh.path().display()));
        let run = common::run(&mut floe, Limit::secs(60)).expect_code(1);
        assert!(run.stderr_text().contains("given up"), "{run}");
        run.stderr_text()
            .contains("ssh may have waited for an answer")
    };
    assert!(words("exec sleep 60"));
    assert!(words("echo Authorized users only >&2; exec sleep 60"));
    assert!(!words("echo floe: a word >&2; exec sleep 60"));
}
