//! The commands that people and scripts end a program with, each tried on a frozen `floe dump` in a process namespace of its own:
//! floe dies, its guardian is not found, the filesystem is thawed within a second.
//!
//! `FLOE_KILL_ROUNDS` says how often each command is tried (20 where it is not set). Several go on at a time, each on a filesystem
//! of its own: most of the time of a kill is waiting.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{self, LoopFs, Random, Scratch, Spec};

/// How floe is started: by the shell, as the leader of a session, or on a terminal.
const PLAIN: &str = r#""$FLOE" dump --quiet --spool off --stall 60s "$MNT" > "$FIFO" 2>/dev/null"#;
const SESSION: &str =
    r#"setsid "$FLOE" dump --quiet --spool off --stall 60s "$MNT" > "$FIFO" 2>/dev/null"#;
const TERMINAL: &str = r#"script -qfc 'exec "$FLOE" dump --quiet --spool off --stall 60s "$MNT" > "$FIFO"' /dev/null >/dev/null 2>&1"#;

/// Each command, the program that it needs, and how floe is started.
const COMMANDS: &[(&str, &str, &str)] = &[
    ("busybox killall -9 floe", "busybox killall", PLAIN),
    ("kill -9 $(busybox pidof floe)", "busybox pidof", PLAIN),
    ("kill -9 $(pidof floe)", "pidof", PLAIN),
    (r#"kill -9 $(pidof "$FLOE")"#, "pidof", PLAIN),
    ("pkill -9 floe", "pkill", PLAIN),
    ("pkill -9 -f floe", "pkill", PLAIN),
    ("busybox pkill -9 -f floe", "busybox pkill", PLAIN),
    (r#"pkill -9 -f "$MNT""#, "pkill", PLAIN),
    ("killall -9 floe", "killall", PLAIN),
    ("killall -9 -g floe", "killall", SESSION),
    (
        r#"start-stop-daemon -K -q -s KILL -x "$FLOE""#,
        "start-stop-daemon",
        PLAIN,
    ),
    (
        "start-stop-daemon -K -q -s KILL -n floe",
        "start-stop-daemon",
        PLAIN,
    ),
    (
        r#"busybox start-stop-daemon -K -q -s KILL -x "$FLOE""#,
        "busybox start-stop-daemon",
        PLAIN,
    ),
    ("kill -9 -$(pgrep -x floe)", "pgrep", SESSION),
    ("pkill -9 -s $(pgrep -x floe)", "pkill", SESSION),
    (r#"fuser -s -k -m "$MNT""#, "fuser", PLAIN),
    (r#"busybox fuser -k -m "$MNT""#, "busybox fuser", PLAIN),
    // The end of a terminal's session: SIGHUP.
    ("kill -9 $(pgrep -x script)", "script", TERMINAL),
];

/// Runs inside the namespace, as its first process, which nobody in it can kill. No command line but floe's has "floe" in it: the
/// script and what it uses come as variables.
const SCRIPT: &str = r#"
( head -c 4096 > /dev/null; echo frozen; exec sleep 60 ) < "$FIFO" &
eval "$START" &
read -r go
eval "$KILL" > /dev/null 2>&1
n=0
while [ $n -lt 100 ]; do
    alive=
    for p in $(pgrep -x floe); do
        case $(cut -d ' ' -f 3 "/proc/$p/stat" 2>/dev/null) in Z|'') ;; *) alive=$p;; esac
    done
    [ -n "$alive" ] || break
    n=$((n + 1)); sleep 0.02
done
echo "killed $alive"
read -r done
"#;

/// Kills that go on side by side.
const AT_A_TIME: usize = 6;

struct Case<'a> {
    kill: &'a str,
    start: &'a str,
    floe: &'a Path,
}

/// A program, or an applet of busybox.
fn have(program: &str) -> bool {
    match program.split_once(' ') {
        None => common::have(program),
        Some((busybox, applet)) => {
            common::have(busybox)
                && common::output(busybox, &["--list"])
                    .lines()
                    .any(|line| line == applet)
        }
    }
}

/// One kill; what went wrong.
fn kill_once(fs: &LoopFs, case: &Case<'_>) -> Result<(), String> {
    let scratch = Scratch::new();
    let fifo = scratch.join("fifo");
    common::output("mkfifo", &[&fifo.to_string_lossy()]);
    let mut shell = Command::new("unshare");
    shell
        .args(["-p", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .arg("eval \"$RUN\"")
        .env("RUN", SCRIPT)
        .env("START", case.start)
        .env("KILL", case.kill)
        .env("FLOE", case.floe)
        .env("MNT", fs.dir())
        .env("FIFO", &fifo)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut shell = shell.spawn().expect("unshare");
    let mut stdin = shell.stdin.take().expect("piped");
    let stdout = shell.stdout.take().expect("piped");
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut steps = || -> Result<(), String> {
        let mut say = |word: &str| stdin.write_all(word.as_bytes()).map_err(|e| e.to_string());
        let line = |what: &str| {
            let line = lines.recv_timeout(Duration::from_secs(10));
            line.map_err(|_| format!("it was never {what}"))
        };
        line("frozen")?;
        // A probe that writes would have to thaw it.
        if !common::is_frozen(fs.dir()) {
            return Err("it was not frozen".into());
        }
        say("go\n")?;
        let killed = line("killed")?;
        if killed != "killed " {
            return Err("floe was not killed by it".into());
        }
        let thawed = common::wait_until(Duration::from_secs(1), || !common::is_frozen(fs.dir()));
        thawed.then_some(()).ok_or("frozen a second after")?;
        say("done\n")
    };
    let result = steps();
    let _ = shell.kill();
    let _ = common::wait_for(&mut shell, Duration::from_secs(10));
    if result.is_err() {
        common::thaw(fs.dir());
    }
    result
}

#[test]
fn no_ordinary_kill_command_finds_the_guardian_together_with_floe() {
    let _ = require_floe!();
    let floe = require_some!(common::floe_path(), "FLOE_BIN");
    require!(
        common::is_root() && common::runner().is_none(),
        "root, no runner: under one, floe has the runner's name"
    );
    require!(
        floe.file_name().is_some_and(|name| name == "floe"),
        "an executable called floe"
    );
    let rounds = std::env::var("FLOE_KILL_ROUNDS");
    let rounds: usize = rounds.map_or(20, |text| text.parse().expect("a number of rounds"));
    let missing = |(kill, program, _): &&(&str, &str, &str)| {
        let here = have(program);
        if !here {
            common::skip(&format!("{program}, for: {kill}"));
        }
        here
    };
    let commands: Vec<_> = COMMANDS.iter().filter(missing).collect();
    let first = require_some!(filesystem(), "mkfs.ext4");
    let (next, failed) = (
        AtomicUsize::new(0),
        Mutex::new(vec![Vec::new(); commands.len()]),
    );
    let work = |fs: LoopFs| {
        // The commands in turn, so that those that take long go on side by side.
        let turn = || next.fetch_add(1, Ordering::Relaxed);
        for turn in std::iter::repeat_with(turn).take_while(|turn| *turn < rounds * commands.len())
        {
            let command = turn % commands.len();
            let (kill, _, start) = commands[command];
            let floe = &floe;
            if let Err(error) = kill_once(&fs, &Case { kill, start, floe }) {
                failed.lock().expect("no panic")[command].push(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..AT_A_TIME {
            scope.spawn(|| work(filesystem().expect("mkfs.ext4")));
        }
        work(first);
    });
    let failed = failed.into_inner().expect("no panic");
    let wrong = commands
        .iter()
        .zip(&failed)
        .filter_map(|(command, failed)| {
            let first = failed.first()?;
            let (kill, times) = (command.0, failed.len());
            Some(format!("{kill}: {times} of {rounds}: {first}"))
        });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Small, and more on it than the pipes and buffers on the way to a reader that stalls take.
fn filesystem() -> Option<LoopFs> {
    let spec = Spec {
        mib: 24,
        ..Spec::default()
    };
    let fs = LoopFs::make(spec).ok()?;
    std::fs::write(fs.dir().join("random"), Random(0x0bad).bytes(12 << 20)).expect("write");
    common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
    Some(fs)
}

#[test]
fn the_matrix_sees_a_kill_that_takes_the_guardian_along() {
    let _ = require_floe!();
    let floe = require_some!(common::floe_path(), "FLOE_BIN");
    require!(common::is_root() && have("pkill"), "root and pkill");
    require!(
        common::runner().is_none() && floe.file_name().is_some_and(|name| name == "floe"),
        "an executable called floe, and no runner"
    );
    let fs = require_some!(filesystem(), "mkfs.ext4");
    let case = Case {
        // A floe that is stopped does not see its guardian die.
        kill: "pkill -STOP -x floe; pkill -9 -x thaw-guard; sleep 0.1; pkill -9 -x floe",
        start: PLAIN,
        floe: &floe,
    };
    assert_eq!(kill_once(&fs, &case), Err("frozen a second after".into()));
}
