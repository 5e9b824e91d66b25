//! Nothing from another machine, user or image harms this one: boards that flood or say nothing, folders in which others have put
//! something, text that a terminal would obey, files that two write or that change, limits that are too small.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, Limit, LoopDevice, LoopFs, Run, Scratch, Spec};

/// Somebody else.
const NOBODY: u32 = 65_534;

fn floe(words: &[&str]) -> Command {
    let mut floe = common::floe().expect("required before");
    floe.args(words).stdin(Stdio::null());
    floe
}

#[track_caller]
fn run(words: &[&str]) -> Run {
    common::run(&mut floe(words), Limit::secs(120))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// An ext4 image of so many MiB.
fn image(scratch: &Scratch, name: &str, mib: u64, more: &[&str]) -> PathBuf {
    let path = scratch.join(name);
    fs::File::create(&path)
        .and_then(|file| file.set_len(mib << 20))
        .expect("image");
    let shown = text(&path);
    let words = [&["-q", "-F"], more, &[shown.as_str()]].concat();
    common::output("mkfs.ext4", &words);
    path
}

/// What a terminal obeys: C0 and C1 controls but the newline, and the overrides of the direction of text.
fn is_hostile(letter: char) -> bool {
    let overrides = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{2028}\u{2029}";
    letter != '\n' && (letter.is_control() || overrides.contains(letter))
}

#[track_caller]
fn assert_clean(run: &Run) {
    for text in [run.stdout_text(), run.stderr_text()] {
        assert!(!text.chars().any(is_hostile), "{text:?}");
    }
}

// ---- boards ---------------------------------------------------------------------------------------------------------

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
    let left: Vec<String> = fs::read_dir(scratch.path())
        .expect("folder")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        })
        .collect();
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
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
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

// ---- text -----------------------------------------------------------------------------------------------------------

#[test]
fn names_and_labels_of_others_are_shown_without_what_a_terminal_obeys() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
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
        let run = run(&words);
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
    let run = run(&["show", "--json", &shown]);
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
    let runs: Vec<Run> = cases.iter().map(|(words, _)| run(words)).collect();
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
        let run = run(words).expect_code(0);
        assert_clean(&run);
        let lines = if words.len() == 2 { 2 } else { 1 };
        assert_eq!(run.stdout_text().lines().count(), lines, "{run}");
    }
}

// ---- folders that others may write to -------------------------------------------------------------------------------

/// A folder as /tmp is.
fn shared_folder(scratch: &Scratch) -> PathBuf {
    let folder = scratch.join("shared");
    fs::create_dir(&folder).expect("folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).expect("mode");
    folder
}

/// Everything that writes a file of its own, by the name of the output.
fn writers(scratch: &Scratch) -> Vec<Vec<String>> {
    let source = image(scratch, "source", 8, &[]);
    let packed = scratch.join("packed.gz");
    run(&["dump", &text(&source), "-o", &text(&packed)]).expect_code(0);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        words(&["dump", &text(&source), "-o"]),
        words(&["dump", &text(&source), "-z", "none", "-o"]),
        words(&["create", &format!("a={}", text(&source)), "-o"]),
        words(&["artifact", &text(&packed), "-n", "x", "-t", "y", "-o"]),
        words(&["restore", &text(&packed)]),
    ]
}

#[test]
fn whatever_lies_where_the_part_file_would_be_is_left_as_it_is() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::on_disk();
    let folder = shared_folder(&scratch);
    let victim = scratch.join("victim");
    let target = folder.join("x.img");
    let part = folder.join("x.img.part");
    type Trap = fn(&Path, &Path);
    let traps: [(&str, Trap); 6] = [
        ("another user's file", |part, _| {
            fs::write(part, b"theirs").expect("file");
            std::os::unix::fs::chown(part, Some(NOBODY), None).expect("chown");
        }),
        ("a file that others may open", |part, _| {
            fs::write(part, b"ours").expect("file");
            fs::set_permissions(part, fs::Permissions::from_mode(0o666)).expect("mode");
        }),
        ("a hard link", |part, victim| {
            fs::set_permissions(victim, fs::Permissions::from_mode(0o600)).expect("mode");
            fs::hard_link(victim, part).expect("link");
        }),
        ("a symlink", |part, victim| {
            symlink(victim, part).expect("link")
        }),
        ("a FIFO", |part, _| {
            common::output("mkfifo", &["-m", "600", &part.to_string_lossy()]);
        }),
        ("a folder", |part, _| fs::create_dir(part).expect("folder")),
    ];
    for words in writers(&scratch) {
        for (what, trap) in &traps {
            fs::write(&victim, b"precious").expect("victim");
            trap(&part, &victim);
            let before = fs::symlink_metadata(&part).expect("trap");
            let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
            let out = text(&target);
            words.push(&out);
            let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
            let after = fs::symlink_metadata(&part).expect("the trap is still there");
            let same = |meta: &fs::Metadata| (meta.ino(), meta.mode(), meta.uid(), meta.len());
            assert_eq!(same(&before), same(&after), "{what}: {run}");
            assert_eq!(fs::read(&victim).expect("victim"), b"precious", "{what}");
            let made = fs::metadata(&target).expect("made");
            assert_eq!(
                (made.mode() & 0o7777, made.uid(), made.nlink()),
                (0o600, 0, 1),
                "{what}"
            );
            assert_ne!(made.ino(), before.ino(), "{what}");
            let left = fs::read_dir(&folder).expect("folder").count();
            assert_eq!(left, 2, "{what}: nothing else is left");
            fs::remove_file(&target).expect("target");
            let gone = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
            gone.expect("trap");
        }
    }
}

#[test]
fn what_an_interrupted_run_left_is_taken_over_and_what_a_running_one_writes_is_not() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let out = scratch.join("x.gz");
    let part = scratch.join("x.gz.part");
    fs::write(&part, vec![7; 100_000]).expect("left over");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).expect("mode");
    let inode = fs::metadata(&part).expect("part").ino();
    run(&["dump", &source, "-o", &text(&out)]).expect_code(0);
    assert_eq!(fs::metadata(&out).expect("out").ino(), inode);
    run(&["verify", &text(&out)]).expect_code(0);
    fs::write(&part, b"").expect("part");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).expect("mode");
    let held = fs::File::open(&part).expect("part");
    held.lock().expect("lock");
    let run = run(&["dump", &source, "-o", &text(&out)]).expect_code(4);
    assert!(run.stderr_text().contains("another process"), "{run}");
}

#[test]
fn a_link_as_the_file_is_followed_only_where_the_kernel_would() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::on_disk();
    let folder = shared_folder(&scratch);
    let victim = scratch.join("victim");
    let link = folder.join("link");
    for words in writers(&scratch) {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let out = text(&link);
        words.push(&out);
        if words[0] == "restore" {
            words.push("--overwrite");
        }
        // Theirs, in a folder of everybody: to a file, and to nothing yet.
        for there in [true, false] {
            let _ = fs::remove_file(&victim);
            if there {
                fs::write(&victim, b"precious").expect("victim");
            }
            symlink(&victim, &link).expect("link");
            std::os::unix::fs::lchown(&link, Some(NOBODY), None).expect("chown");
            let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(4);
            // Which is seen first does not matter: that the link is theirs, or that what is there would be lost.
            let said = run.stderr_text();
            let lost = there && said.contains("is there and is no image");
            assert!(lost || said.contains("link of user 65534"), "{run}");
            assert_eq!(victim.exists(), there);
            assert!(!there || fs::read(&victim).expect("victim") == b"precious");
            fs::remove_file(&link).expect("link");
        }
        // Our own: it stays, and what it points to is made, through two of them.
        let _ = fs::remove_file(&victim);
        symlink("second", &link).expect("link");
        symlink(&victim, folder.join("second")).expect("link");
        common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
        let made = fs::symlink_metadata(&victim).expect("made");
        assert!(made.is_file() && made.mode() & 0o7777 == 0o600);
        assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
        fs::remove_file(&link).expect("link");
        fs::remove_file(folder.join("second")).expect("link");
        // In a circle.
        symlink("link", &link).expect("link");
        let run = common::run(&mut floe(&words), Limit::secs(60));
        assert!(run.code == Some(4) || run.code == Some(1), "{run}");
        fs::remove_file(&link).expect("link");
    }
}

#[test]
fn a_part_file_that_somebody_replaces_does_not_become_the_file() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let out = scratch.join("x.gz");
    let part = scratch.join("x.gz.part");
    // Held up by a report that nobody reads yet is not possible before the end; so the source is a pipe's length away: a FIFO
    // as the report holds the run between the opening of the part file and its end.
    let fifo = scratch.join("report");
    common::output("mkfifo", &[&text(&fifo)]);
    let words = ["dump", &source, "-o", &text(&out), "--report", &text(&fifo)];
    let mut child = floe(&words).stderr(Stdio::null()).spawn().expect("floe");
    let race = thread::spawn({
        let part = part.clone();
        move || {
            let end = Instant::now() + Duration::from_secs(30);
            while Instant::now() < end {
                if part.exists() && fs::remove_file(&part).is_ok() {
                    return fs::write(&part, b"theirs").is_ok();
                }
            }
            false
        }
    });
    let report = fs::File::open(&fifo).expect("report");
    let status = common::wait_for(&mut child, Duration::from_secs(60)).expect("ends");
    drop(report);
    let replaced = race.join().expect("race");
    if replaced && status.code() != Some(0) {
        assert_eq!(status.code(), Some(1));
        assert!(!out.exists(), "what is not ours has no name of ours");
    }
    if out.exists() {
        assert_ne!(fs::read(&out).expect("out"), b"theirs");
    }
}

// ---- stores ---------------------------------------------------------------------------------------------------------

#[test]
fn fifos_sockets_and_devices_in_a_store_hang_nothing_and_are_never_removed() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::on_disk();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("store");
    let source = format!("a={}", text(&image(&scratch, "source", 8, &[])));
    let folder = format!("{}/", text(&store));
    let create = ["create", &source, "-o", &folder, "--keep", "1"];
    run(&create).expect_code(0);
    let first = fs::read_dir(&store)
        .expect("store")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        })
        .find(|name| name.ends_with(".zip"))
        .expect("a snapshot");
    let named = |sequence: u32| {
        let (front, _) = first.rsplit_once('-').expect("a name");
        store.join(format!("{front}-{sequence:04}.zip"))
    };
    let mkfifo = |path: &Path| drop(common::output("mkfifo", &[&text(path)]));
    mkfifo(&named(20));
    let _socket = std::os::unix::net::UnixListener::bind(named(21)).expect("socket");
    // /dev/null's number, and that of a terminal.
    for (at, numbers) in [(22, ["1", "3"]), (23, ["5", "0"])] {
        common::output("mknod", &[&text(&named(at)), "c", numbers[0], numbers[1]]);
    }
    fs::create_dir(named(24)).expect("folder");
    symlink("/nowhere", named(25)).expect("link");
    symlink(named(20), named(26)).expect("link");
    let foreign = 7;
    let listed = run(&["list", &text(&store)]).expect_code(0);
    assert!(
        listed.stdout_text().matches(".zip").count() >= 8,
        "{listed}"
    );
    run(&["list", "--json", &text(&store)]).expect_code(0);
    for _ in 0..3 {
        run(&create).expect_code(0);
    }
    let left = (20..27).filter(|at| fs::symlink_metadata(named(*at)).is_ok());
    assert_eq!(left.count(), foreign);
    for at in [21, 22, 23, 24, 25] {
        let run = run(&["verify", &text(&named(at))]);
        assert!(run.code.is_some_and(|code| code != 0), "{run}");
    }
    // As the lock: left as it is, and said.
    let victim = scratch.join("victim");
    fs::write(&victim, b"precious").expect("victim");
    let lock = store.join(".floe.lock");
    let traps: [&dyn Fn(); 4] = [
        &|| mkfifo(&lock),
        &|| fs::hard_link(&victim, &lock).expect("link"),
        &|| symlink(&victim, &lock).expect("link"),
        &|| fs::create_dir(&lock).expect("folder"),
    ];
    for trap in traps {
        trap();
        let run = run(&create).expect_code(4);
        assert!(run.stderr_text().contains("is not the lock"), "{run}");
        assert_eq!(fs::read(&victim).expect("victim"), b"precious");
        fs::remove_file(&lock)
            .or_else(|_| fs::remove_dir(&lock))
            .expect("trap");
    }
}

// ---- one file, two writers ------------------------------------------------------------------------------------------

#[test]
fn a_file_that_is_being_restored_is_no_target_of_a_second_restore() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let images = [
        ("one", "11111111-1111-1111-1111-111111111111"),
        ("two", "22222222-2222-2222-2222-222222222222"),
    ]
    .map(|(name, uuid)| image(&scratch, name, 48, &["-U", uuid]));
    let target = scratch.join("target");
    fs::write(&target, vec![1; 1 << 20]).expect("target");
    let second = scratch.join("second name");
    fs::hard_link(&target, &second).expect("link");
    for round in 0..3 {
        let mut children: Vec<Child> = [(&images[0], &target), (&images[1], &second)]
            .map(|(image, target)| {
                floe(&["restore", "--overwrite", &text(image), &text(target)])
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("floe")
            })
            .into();
        let codes: Vec<Option<i32>> = children
            .iter_mut()
            .map(|child| {
                common::wait_for(child, Duration::from_secs(120))
                    .expect("ends")
                    .code()
            })
            .collect();
        assert!(codes.contains(&Some(0)), "{round}: {codes:?}");
        assert!(
            codes.iter().all(|code| matches!(code, Some(0 | 4))),
            "{codes:?}"
        );
        let found = fs::read(&target).expect("target");
        let wholes: Vec<bool> = images
            .iter()
            .map(|image| fs::read(image).expect("image") == found)
            .collect();
        // Whole, and one that said 0.
        assert!(
            wholes
                .iter()
                .zip(&codes)
                .any(|(whole, code)| *whole && *code == Some(0)),
            "{codes:?}"
        );
    }
    // Locked by somebody, for sure.
    let held = fs::File::open(&target).expect("target");
    held.lock().expect("lock");
    let run = run(&["restore", "--overwrite", &text(&images[0]), &text(&target)]).expect_code(4);
    assert!(
        run.stderr_text().contains("another process is writing it"),
        "{run}"
    );
    assert!(run.stderr_text().contains("nothing was written"), "{run}");
}

#[test]
fn two_targets_that_are_one_file_are_seen_whatever_they_are_called() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::on_disk();
    let source = text(&image(&scratch, "source", 8, &[]));
    let zip = text(&scratch.join("two.zip"));
    run(&[
        "create",
        &format!("a={source}"),
        &format!("b={source}"),
        "-o",
        &zip,
    ])
    .expect_code(0);
    let other = scratch.join("other");
    fs::create_dir(&other).expect("folder");
    fs::create_dir(scratch.join("folder")).expect("folder");
    let file = scratch.join("folder/file");
    let _mount = Bound::new(&scratch.join("folder"), &other);
    symlink("folder/file", scratch.join("link")).expect("link");
    for there in [true, false] {
        if there {
            fs::write(&file, b"old").expect("file");
            fs::hard_link(&file, scratch.join("folder/hard")).expect("link");
        }
        let mut pairs = vec![
            ("folder/file", "other/file"),
            ("folder/../folder/file", "other/file"),
            ("link", "folder/file"),
        ];
        if there {
            pairs.push(("folder/file", "folder/hard"));
        }
        for (one, two) in pairs {
            let [one, two] = [one, two].map(|name| text(&scratch.join(name)));
            let words = [
                "restore",
                &zip,
                &format!("a={one}"),
                &format!("b={two}"),
                "--overwrite",
            ];
            let run = run(&words).expect_code(2);
            assert!(run.stderr_text().contains("are the same"), "{run}");
            assert_eq!(file.exists(), there, "nothing was written");
            assert!(!there || fs::read(&file).expect("file") == b"old");
        }
        let _ = fs::remove_file(&file);
        let _ = fs::remove_file(scratch.join("folder/hard"));
    }
    // Two that are not.
    let [one, two] = ["folder/file", "folder/file2"].map(|name| text(&scratch.join(name)));
    run(&["restore", &zip, &format!("a={one}"), &format!("b={two}")]).expect_code(0);
}

/// A bind mount of the test's own.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Self {
        common::output("mount", &["--bind", &text(from), &text(to)]);
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_new_file_is_for_its_owner_only() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let zip = text(&scratch.join("x.zip"));
    run(&["create", &format!("a={source}"), "-o", &zip]).expect_code(0);
    for (name, words) in [
        ("n1", vec!["restore", &source]),
        ("n2", vec!["restore", &zip]),
    ] {
        let path = scratch.join(name);
        let target = match words[1] == zip {
            true => format!("a={}", text(&path)),
            false => text(&path),
        };
        let mut command = floe(&words);
        command.arg(&target);
        common::run(&mut command, Limit::secs(60)).expect_code(0);
        assert_eq!(fs::metadata(&path).expect("made").mode() & 0o7777, 0o600);
    }
}

// ---- files that change ----------------------------------------------------------------------------------------------

/// Writes to the file, all the time, until told to stop; the content stays the same or changes.
struct Scribbler {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Scribbler {
    fn start(path: &Path, offset: u64) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let file = fs::File::options().write(true).open(path).expect("file");
        let thread = thread::spawn(move || {
            let mut byte = 0u8;
            while !told.load(std::sync::atomic::Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                file.write_all_at(&[byte], offset).expect("write");
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn an_image_file_that_changes_while_it_is_read_is_no_image() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let source = image(&scratch, "source", 64, &[]);
    let shown = text(&source);
    let out = scratch.join("out");
    let pair = format!("a={shown}");
    for words in [
        vec!["dump", &shown, "-o"],
        vec!["dump", "--whole", &shown, "-o"],
        vec!["dump", "-z", "none", &shown, "-o"],
        vec!["create", &pair, "-o"],
    ] {
        let mut words = words.clone();
        let to = text(&out);
        words.push(&to);
        let scribbler = Scribbler::start(&source, 40 << 20);
        let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(1);
        assert!(run.stderr_text().contains("wrote to this file"), "{run}");
        assert!(!out.exists());
        drop(scribbler);
        // It stays still again.
        common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
        fs::remove_file(&out).expect("out");
    }
    // Called live it may change.
    let _scribbler = Scribbler::start(&source, 40 << 20);
    let mut dump = floe(&["dump", "--live", &shown, "-o", &text(&out)]);
    let run = common::run(&mut dump, Limit::secs(60));
    assert!(matches!(run.code, Some(0 | 1)), "{run}");
}

#[test]
fn a_file_below_a_loop_device_that_changes_is_seen_mounted_or_not() {
    drop(require_floe!());
    let mut fs_ = match LoopFs::make(Spec::default()) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    fs_.fill(30);
    let out = fs_.scratch().join("out");
    for mounted in [true, false] {
        if !mounted {
            fs_.unmount();
        }
        for source in [fs_.device().to_owned(), fs_.dir().to_owned()] {
            if !mounted && source == fs_.dir() {
                continue;
            }
            let words = ["dump", &text(&source), "-o", &text(&out)];
            if mounted {
                // What is written before the freeze is in the image: that nothing was read before counts, then.
                let report = fs_.scratch().join("report");
                let mut words = words.to_vec();
                let report_text = text(&report);
                words.extend(["--report", &report_text]);
                let scribbler = Scribbler::start(fs_.image(), 63 << 20);
                let run = common::run(&mut floe(&words), Limit::secs(60));
                drop(scribbler);
                let said = fs::read_to_string(&report).unwrap_or_default();
                match run.code {
                    Some(0) => assert!(said.contains("\"compared\""), "{said}"),
                    _ => assert!(run.stderr_text().contains("wrote to this file"), "{run}"),
                }
                let _ = fs::remove_file(&out);
            }
            // All of it is read in the window: long enough to be met.
            let words = [&words[..], &["--precopy", "off"]].concat();
            let scribbler = Scribbler::start(fs_.image(), 63 << 20);
            let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(1);
            assert!(run.stderr_text().contains("wrote to this file"), "{run}");
            assert!(!out.exists());
            drop(scribbler);
            common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
            fs::remove_file(&out).expect("out");
            if mounted {
                common::assert_not_frozen(fs_.dir(), "after the dump");
            }
        }
    }
}

// ---- reports and limits ---------------------------------------------------------------------------------------------

#[test]
fn a_report_that_cannot_be_written_is_no_success() {
    drop(require_floe!());
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let packed = text(&scratch.join("packed.gz"));
    run(&["dump", &source, "-o", &packed]).expect_code(0);
    let zip = text(&scratch.join("x.zip"));
    let target = text(&scratch.join("target"));
    let pair = format!("a={source}");
    let artifact = text(&scratch.join("x.mender"));
    for words in [
        vec!["dump", &source, "-o", &packed],
        vec!["create", &pair, "-o", &zip],
        vec!["verify", &packed],
        vec!["verify", &zip],
        vec!["show", &source],
        vec!["show", &zip],
        vec!["list", &text(scratch.path())],
        vec!["restore", &packed, &target, "--overwrite"],
        vec!["artifact", &packed, "-n", "x", "-t", "y", "-o", &artifact],
    ] {
        common::run(
            floe(&words).args(["--report", "/dev/full"]),
            Limit::secs(60),
        )
        .expect_code(1);
        common::run(
            floe(&words).args(["--report", "/nowhere/r"]),
            Limit::secs(60),
        )
        .expect_code(4);
        // stderr is closed: nobody gets the report.
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let floe = common::floe_shell_words().expect("required before");
        let script = format!("{floe} {} --report - 2>&-; echo $?", quoted.join(" "));
        let run = common::shell(&format!("set +e; {script}"), Limit::secs(60));
        assert_eq!(run.stdout_text().lines().last(), Some("1"), "{run}");
    }
}

/// With this limit (`ulimit`'s letter and value).
fn limited(words: &[&str], letter: &str, value: u64) -> Run {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let floe = common::floe_shell_words().expect("required before");
    let script = format!("ulimit -{letter} {value}; exec {floe} {}", quoted.join(" "));
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).stdin(Stdio::null());
    common::run(&mut shell, Limit::secs(60))
}

#[test]
fn limits_that_are_too_small_end_with_a_reason_and_never_by_a_signal() {
    drop(require_floe!());
    require!(
        common::runner().is_none(),
        "no runner: it needs memory and files of its own"
    );
    let made = match LoopFs::make(Spec {
        mib: 16,
        ..Spec::default()
    }) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    made.fill(10);
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 48, &[]));
    let noise = common::Random(7).bytes(600_000);
    fs::write(made.dir().join("noise"), noise).expect("noise");
    common::output("sync", &["-f", &text(made.dir())]);
    let packed = text(&scratch.join("packed.gz"));
    run(&["dump", &source, "-o", &packed]).expect_code(0);
    let [out, zip, target, mender] =
        ["o.gz", "o.zip", "t", "o.mender"].map(|name| text(&scratch.join(name)));
    let pair = format!("a={}", text(made.dir()));
    let folder = text(scratch.path());
    let verbs = [
        vec!["dump", made.dir().to_str().expect("text"), "-o", &out],
        vec!["create", &pair, "-o", &zip],
        vec!["verify", &packed],
        vec!["show", made.device().to_str().expect("text")],
        vec!["restore", &packed, &target, "--overwrite"],
        vec!["list", &folder],
        vec!["artifact", &packed, "-n", "x", "-t", "y", "-o", &mender],
    ];
    let memory = [
        200_000, 60_000, 30_000, 20_000, 15_000, 12_000, 10_000, 8000,
    ];
    let files = [5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 40];
    let lengths = [4, 100, 600];
    let limits = memory.map(|value| ("v", value)).into_iter();
    let limits = limits.chain(files.map(|value| ("n", value)));
    let mut reasons = 0;
    for (letter, value) in limits.chain(lengths.map(|value| ("f", value))) {
        for words in &verbs {
            // Who ended for want of memory could not clean up.
            for name in ["o.gz.part", "o.zip.part", "o.mender.part"] {
                let _ = fs::remove_file(scratch.join(name));
            }
            let run = limited(words, letter, value);
            common::assert_not_frozen(made.dir(), "after a limit");
            match run.code {
                Some(0) => continue,
                // The loader of an executable that is not static has no room.
                Some(127) if run.stderr_text().contains("shared libraries") => continue,
                Some(1) => {}
                _ => panic!("ulimit -{letter} {value}: {run}"),
            }
            reasons += 1;
            let said = run.stderr_text();
            let reason = match letter {
                "v" => ["memory", "allocate", "start a thread", "spool"]
                    .iter()
                    .any(|word| said.contains(word)),
                "n" => said.contains("open files") || said.contains("descriptors"),
                _ => said.contains("File too large") || said.contains("too large"),
            };
            assert!(
                reason && said.lines().count() <= 3,
                "ulimit -{letter} {value}: {run}"
            );
            let left = fs::read_dir(scratch.path()).expect("folder").flatten();
            let parts = left.filter(|entry| entry.file_name().to_string_lossy().contains(".part"));
            assert!(letter == "v" || parts.count() == 0, "{run}");
        }
    }
    assert!(
        reasons > 30,
        "{reasons}: the limits are tight enough to mean something"
    );
}

#[test]
fn an_image_with_a_hole_of_exabytes_ends_at_once_with_the_reason() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(
        common::have("mkfs.xfs") && common::kernel_has("xfs"),
        "XFS, which has files of 8 EiB"
    );
    let made = match LoopFs::make(Spec {
        kind: "xfs",
        mib: 320,
        ..Spec::default()
    }) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let image = made.dir().join("image");
    let file = fs::File::create(&image).expect("image");
    let small = image_bytes();
    file.write_all_at(&small, 0).expect("write");
    // A little data at the very end, too.
    let scratch = Scratch::on_disk();
    let limit = Limit::secs(30);
    for (length, tail) in [(1u64 << 60, false), ((1 << 62) + 12_345, true)] {
        file.set_len(length).expect("length");
        if tail {
            file.write_all_at(b"end", length - 3).expect("write");
        }
        let device_file = scratch.join("disk");
        fs::File::create(&device_file)
            .and_then(|file| file.set_len(64 << 20))
            .expect("disk");
        let device = LoopDevice::attach(&device_file, 512);
        for target in [text(&scratch.join("new")), text(device.path())] {
            for verify in [&[][..], &["--verify"]] {
                let from = text(&image);
                let words = [&["restore", "--overwrite", &from, &target], verify].concat();
                let run = common::run(&mut floe(&words), limit).expect_code(4);
                let said = run.stderr_text();
                assert!(said.contains("nothing was written"), "{run}");
                assert!(
                    said.contains("can be that long") || said.contains("too small"),
                    "{run}"
                );
            }
        }
        assert!(!scratch.join("new").exists());
        // From a pipe of its own: the length is known there, too. And where files may be that long it works.
        let copy = made.dir().join("copy");
        let words = [
            "restore",
            "--overwrite",
            &text(&image),
            &text(&copy),
            "--verify",
        ];
        common::run(&mut floe(&words), limit).expect_code(0);
        assert_eq!(fs::metadata(&copy).expect("copy").len(), length);
        fs::remove_file(&copy).expect("copy");
    }
}

/// An ext4 of 8 MiB.
fn image_bytes() -> Vec<u8> {
    let scratch = Scratch::new();
    fs::read(image(&scratch, "small", 8, &[])).expect("image")
}
