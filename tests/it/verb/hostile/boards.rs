//! Boards that flood, say nothing, or trickle.

use crate::common::{self, Limit, Scratch, text};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::{assert_clean, floe, image};

/// A folder with an `ssh` that is this shell script, whatever it is asked for.
fn board(scratch: &Scratch, script: &str) -> String {
    let folder = scratch.join("bin");
    let _ = fs::create_dir(&folder);
    let ssh = folder.join("ssh");
    fs::write(&ssh, format!("#!/bin/sh\n{script}\n")).expect("ssh");
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
    format!(
        "{}:{}",
        folder.display(),
        std::env::var("PATH").unwrap_or_default()
    )
}

/// Memory that a process has used at most, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Ends it by a signal and gives how long that took.
#[track_caller]
fn end_by(child: &mut Child, name: &str, number: i32) -> Duration {
    let start = Instant::now();
    common::signal(child.id(), name);
    let status = common::wait_for(child, Duration::from_secs(20)).expect("it ends");
    assert_eq!(status.signal(), Some(number), "{name}: {status:?}");
    start.elapsed()
}

/// The verbs that talk to a board, with what they need.
fn remote_verbs(scratch: &Scratch) -> Vec<Vec<String>> {
    let good = image(scratch, "good", 8, &[]);
    let out = text(&scratch.join("out"));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        words(&["pull", "b", "-o", &out]),
        words(&["pull", "b", "--create", "root=/", "-o", &out]),
        words(&["pull", "b", "--clone", "/=/dev/x"]),
        words(&["pull", "b", "--kept", "latest", "-o", &out]),
        words(&["pull", "b", "c", "-o", &text(scratch.path())]),
        words(&["push", &text(&good), "b", "/dev/x"]),
        words(&["pull", "b", "--send", "-o", &out]),
    ]
}

#[test]
fn a_board_that_floods_costs_no_memory_and_every_signal_ends_it_at_once() {
    drop(require_floe!());
    require!(common::runner().is_none(), "no runner: memory is measured");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let floods = [
        // Short lines, one line without an end, lines that are reports, lines for the program, and stdout as well.
        "exec yes 'floe: a line that somebody might read' >&2",
        "exec tr '\\0' a < /dev/zero >&2",
        "exec yes '{\"a\":1}' >&2",
        "exec yes 'floe-send: ready' >&2",
        "trap '' TERM; (yes xyz >&2) & exec yes",
    ];
    let verbs = remote_verbs(&scratch);
    let signals = [("TERM", 15), ("INT", 2), ("HUP", 1)];
    for (index, flood) in floods.iter().enumerate() {
        let path = board(&scratch, flood);
        for (at, words) in verbs.iter().enumerate() {
            // Whoever gets no end of stdout sees at once that it is no stream.
            if index == 4 && words[0] == "pull" && !words.contains(&"--clone".to_owned()) {
                continue;
            }
            // Lines for the program are answered.
            if words.contains(&"--send".to_owned()) && index == 3 {
                continue;
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut child = floe(&words)
                .env("PATH", &path)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("floe");
            thread::sleep(Duration::from_millis(700));
            let peak = peak_kib(child.id());
            assert!(peak < 40_000, "{flood}: {words:?}: {peak} KiB");
            let (name, number) = signals[(index + at) % 3];
            let took = end_by(&mut child, name, number);
            assert!(
                took < Duration::from_secs(6),
                "{flood}: {words:?}: {took:?}"
            );
        }
    }
    let left = common::names(scratch.path());
    assert!(!left.iter().any(|name| name.contains("part")), "{left:?}");
}

#[test]
fn of_a_flood_only_some_lines_are_shown_each_of_them_short_and_clean() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let script = r"i=0; while [ $i -lt 3000 ]; do printf 'line %s \033[31m\302\233\342\200\256 %0600d\n' $i 0; i=$((i+1)); done >&2
exit 4";
    let path = board(&scratch, script);
    let out = text(&scratch.join("out"));
    let run = common::run(
        floe(&["pull", "b", "-o", &out]).env("PATH", path),
        Limit::secs(60),
    )
    .expect_code(1);
    assert_clean(&run);
    let said = run.stderr_text();
    assert!(said.lines().count() < 1000, "{}", said.lines().count());
    assert!(said.lines().all(|line| line.chars().count() < 500));
    assert!(said.contains("were left out"), "{said}");
    // The last one is the reason, whatever was left out.
    assert!(
        said.lines()
            .last()
            .is_some_and(|line| line.contains("line 2999 ")),
        "{said}"
    );
}

#[test]
fn a_board_that_says_nothing_is_given_up_after_the_time_of_stall() {
    require_mkfs!();
    let silences = [
        "exec sleep 600",
        // It takes everything, and answers nothing.
        "cat > /dev/null; exec sleep 600",
        // It says a word, or begins well.
        "echo floe: hello >&2; exec sleep 600",
        "printf '\\037\\213\\010\\000\\000\\000\\000\\000\\000\\377'; exec sleep 600",
        // Nothing more can be heard.
        "exec sleep 600 2>&- >&-",
    ];
    // They are silent side by side: it is all waiting.
    thread::scope(|scope| {
        for silence in silences {
            scope.spawn(move || gives_up_on(silence));
        }
    });
}

fn gives_up_on(silence: &str) {
    let scratch = Scratch::new();
    let path = board(&scratch, silence);
    for words in remote_verbs(&scratch) {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.extend(["--stall", "300ms"]);
        if words.contains(&"--clone") {
            words.extend(["--max-freeze", "1s"]);
        }
        let run = common::run(floe(&words).env("PATH", &path), Limit::secs(30));
        let said = run.stderr_text();
        assert_eq!(run.code, Some(1), "{silence}: {run}");
        // A stream that is wrong from the beginning is given up earlier.
        let wrong = ["--stall", "sent nothing", "before the stream"];
        let known = wrong.iter().any(|word| said.contains(word));
        assert!(known, "{silence}: {run}");
    }
}

#[test]
fn a_board_that_trickles_is_not_given_up() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let script =
        "for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo floe: still here $i >&2; done; exit 3";
    let path = board(&scratch, script);
    let out = text(&scratch.join("out"));
    let mut pull = floe(&["pull", "b", "-o", &out, "--stall", "2s"]);
    let run = common::run(pull.env("PATH", path), Limit::secs(60)).expect_code(1);
    assert!(run.stderr_text().contains("still here 8"), "{run}");
}

/// What floe says of a board that it gives up.
#[track_caller]
fn given_up(scratch: &Scratch, script: &str, words: &[&str]) -> String {
    let mut floe = floe(words);
    floe.args(["--stall", "300ms"]);
    floe.env("PATH", board(scratch, script));
    let start = Instant::now();
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(1);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{script}: {took:?} {run}");
    assert!(run.stderr_text().contains("given up"), "{script}: {run}");
    run.stderr_text()
}

#[test]
fn a_board_that_floods_is_given_up_after_the_time_of_stall() {
    require_mkfs!();
    let scratch = Scratch::new();
    let good = text(&image(&scratch, "good", 8, &[]));
    let out = text(&scratch.join("out"));
    let pull = ["pull", "b", "-o", &out];
    for flood in [
        "exec yes xyz >&2",
        "exec yes 'floe: a line' >&2",
        "exec yes '{\"a\":1}' >&2",
        "exec yes '{\"phase\":\"copying\",\"done_bytes\":1}' >&2",
    ] {
        let said = given_up(&scratch, flood, &pull);
        let seen = said.contains(" lines to stderr and no byte of the image for ");
        assert!(seen, "{flood}: {said}");
    }
    let push = ["push", &good, "b", "/dev/x"];
    let said = given_up(&scratch, "exec cat /dev/zero", &push);
    let seen = " lines to stdout or stderr and took no byte of the image for ";
    assert!(said.contains(seen), "{said}");
    // More than a pipe takes.
    let folder = scratch.join("folder");
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join("noise"), common::Random(3).bytes(1 << 20)).expect("noise");
    let noisy = text(&image(&scratch, "noisy", 8, &["-d", &text(&folder)]));
    let push = ["push", "--only-changes", &noisy, "b", "/dev/x"];
    let said = given_up(&scratch, "exec cat /dev/zero", &push);
    assert!(said.contains("to stdout that no floe writes"), "{said}");
}

#[test]
fn what_a_login_says_puts_off_the_end_and_chatter_does_not() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let out = text(&scratch.join("out"));
    let pull = ["pull", "b", "-o", &out];
    // The limit is 1.3 s: passwords that are wrong may take longer.
    let script = "for i in 1 2 3 4; do echo Permission denied >&2; sleep 0.6; done; echo floe: here >&2; exec sleep 60";
    let said = given_up(&scratch, script, &pull);
    assert!(said.contains("floe: b: here"), "{said}");
    assert!(
        said.contains("nothing came and nothing was taken"),
        "{said}"
    );
    let script = "echo floe: here >&2; while sleep 0.1; do echo xyz >&2; done";
    let said = given_up(&scratch, script, &pull);
    assert!(said.contains("no byte of the image for"), "{said}");
}

#[test]
fn who_was_done_and_ended_badly_is_not_quoted_as_the_reason() {
    require_mkfs!();
    require!(common::runner().is_none(), "no runner: a shell starts floe");
    let scratch = Scratch::new();
    let good = text(&image(&scratch, "good", 8, &[]));
    let (out, report) = (scratch.join("out"), scratch.join("report"));
    let target = scratch.join("target");
    let there = common::floe_path().expect("required before");
    let there = there.to_string_lossy();
    for (end, code) in [
        (
            "echo wrapper: no more >&2; exit 1",
            "exit 1: wrapper: no more",
        ),
        ("exit 4", "exit 4"),
        ("exit 137", "exit 137"),
        ("exit 255", "exit 255"),
    ] {
        let words = "while [ \"$1\" != -- ]; do shift; done; shift 2; sh -c \"$*\" || exit";
        let path = board(&scratch, &format!("{words}; {end}"));
        let run_of = |words: &[&str]| {
            let mut floe = floe(words);
            floe.args(["--floe", &there, "--report"]).arg(&report);
            let run = common::run(floe.env("PATH", &path), Limit::secs(60)).expect_code(1);
            let said = run.stderr_text();
            let last = said.lines().last().unwrap_or_default().to_owned();
            let done = "b: floe there said that it was done, but ssh, or what it ran, ended with ";
            assert!(last.contains(&format!("{done}{code}; ")), "{last}");
            let written = fs::read_to_string(&report).expect("report");
            assert!(
                written.contains(last.trim_start_matches("floe: ")),
                "{last}: {written}"
            );
            last
        };
        for how in ["auto", "off"] {
            let pulled = run_of(&[
                "pull",
                "b",
                "--dump",
                &good,
                "--precopy",
                how,
                "-o",
                &text(&out),
            ]);
            // What came over a line that was cut may be gone on from.
            let is_kept = how == "auto" && end == "exit 255";
            let state = if is_kept {
                "what came is kept in "
            } else {
                "nothing was kept; "
            };
            assert!(
                pulled.contains(state) && pulled.contains("the same command"),
                "{pulled}"
            );
            assert!(!out.exists());
        }
        let _ = fs::remove_file(&target);
        common::sparse(&target, 8 << 20);
        let pushed = run_of(&["push", &good, "b", &text(&target)]);
        assert!(
            pushed.contains("written as it says, but unconfirmed"),
            "{pushed}"
        );
        assert!(pushed.contains("floe verify"), "{pushed}");
    }
}
