//! The commands that people and scripts end a program with, each tried on a frozen `floe dump` in a process namespace of its own:
//! floe dies, its guardian is not found, the filesystem is thawed within a second.
//!
//! `FLOE_KILL_ROUNDS` says how often each command is tried (2 where it is not set).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        if common::write_ends_within(fs.dir(), Duration::from_millis(20)) {
            return Err("it was not frozen".into());
        }
        say("go\n")?;
        let began = Instant::now();
        let killed = line("killed")?;
        if killed != "killed " {
            return Err("floe was not killed by it".into());
        }
        while !common::write_ends_within(fs.dir(), Duration::from_millis(50)) {
            if began.elapsed() > Duration::from_secs(2) {
                return Err("frozen still".into());
            }
        }
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
    let spec = Spec {
        mib: 48,
        ..Spec::default()
    };
    let fs = require_some!(LoopFs::make(spec).ok(), "mkfs.ext4");
    std::fs::write(fs.dir().join("random"), Random(0x0bad).bytes(16 << 20)).expect("write");
    common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
    let rounds: u32 = std::env::var("FLOE_KILL_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let mut wrong = Vec::new();
    for (kill, program, start) in COMMANDS {
        if !have(program) {
            common::skip(&format!("{program}, for: {kill}"));
            continue;
        }
        let case = Case {
            kill,
            start,
            floe: &floe,
        };
        let failed: Vec<String> = (0..rounds)
            .filter_map(|_| kill_once(&fs, &case).err())
            .collect();
        if let Some(first) = failed.first() {
            wrong.push(format!("{kill}: {} of {rounds}: {first}", failed.len()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
