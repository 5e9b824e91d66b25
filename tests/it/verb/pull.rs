//! `floe pull` from real OpenSSH and dropbear servers with busybox ash behind them, each board in namespaces of its own.

use crate::boards::{Lab, Server, Setup};
use crate::common::{self, Limit, names};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// The image is complete, and its filesystem is clean.
fn assert_good_image(path: &Path) {
    let shown = path.display();
    let script = format!(
        "gzip -dc '{shown}' > '{shown}.raw' && e2fsck -fn '{shown}.raw' && rm '{shown}.raw'"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
}

/// An OpenSSH and a dropbear board.
fn two(mib: u64) -> Result<Lab, String> {
    let mut lab = Lab::new()?;
    for server in [Server::OpenSsh, Server::Dropbear] {
        lab.add(Setup {
            server,
            mib,
            ..Setup::default()
        })?;
    }
    lab.wait_until_up();
    Ok(lab)
}

macro_rules! require_two {
    ($mib:expr) => {
        match two($mib) {
            Ok(lab) => lab,
            Err(missing) => {
                common::skip(&missing);
                return;
            }
        }
    };
}

#[test]
fn images_and_snapshots_come_from_openssh_and_dropbear_with_their_figures() {
    drop(require_floe!());
    let lab = require_two!(16);
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let report = lab.join("report.json");
    let run = common::run(
        lab.floe("pull")
            .args([
                "10.77.0.1",
                "ssh://root@10.77.0.2:22",
                "--dump",
                "/mnt",
                "-o",
            ])
            .arg(&out)
            .arg("--report")
            .arg(&report),
        Limit::secs(60),
    )
    .expect_code(0);
    assert_eq!(
        names(&out),
        ["10.77.0.1.img.gz", "10.77.0.2_22.img.gz"],
        "{run}"
    );
    for name in names(&out) {
        assert_good_image(&out.join(name));
    }
    let table = run.stderr_text();
    for line in ["board ", "10.77.0.1 ", "10.77.0.2:22 "] {
        let found = table.lines().any(|text| text.starts_with(line));
        assert!(found, "{line}: {run}");
    }
    let json = fs::read_to_string(&report).expect("report");
    for part in [
        "\"failed\":0",
        "\"board\":\"10.77.0.2:22\",\"result\":\"done\"",
        "\"consistent\":\"frozen\"",
        "\"frozen_ms\":",
    ] {
        assert!(json.contains(part), "{part}: {json}");
    }

    let run = common::run(
        lab.floe("pull")
            .args([
                "10.77.0.1",
                "10.77.0.2",
                "--create",
                "data=/mnt",
                "-q",
                "-o",
            ])
            .arg(&out),
        Limit::secs(60),
    )
    .expect_code(0);
    assert_eq!(run.stderr_text(), "", "{run}");
    for name in ["10.77.0.1.zip", "10.77.0.2.zip"] {
        let mut floe = require_floe!();
        common::run(floe.arg("verify").arg(out.join(name)), Limit::secs(60)).expect_code(0);
    }
    // One that is to be kept is replaced by another such, and by no other.
    for (marks, code) in [(Some("--factory"), 0), (Some("--factory"), 0), (None, 4)] {
        let file = lab.join("kept.zip");
        let mut pull = lab.floe("pull");
        pull.args(["10.77.0.2", "--create", "data=/mnt", "-q"]);
        pull.args(marks).arg("-o").arg(&file);
        let run = common::run(&mut pull, Limit::secs(60)).expect_code(code);
        let refused = run
            .stderr_text()
            .contains("is a factory snapshot, which is kept");
        assert_eq!(refused, code == 4, "{run}");
    }
    // One board: a file, and stdout.
    let file = lab.join("one.img.gz");
    let run = common::run(
        lab.floe("pull")
            .args(["10.77.0.2", "--dump", "/mnt", "-o"])
            .arg(&file),
        Limit::secs(60),
    )
    .expect_code(0);
    assert_good_image(&file);
    assert!(run.stderr_text().contains("checked"), "{run}");
    // What is no image is replaced only where that was said.
    fs::write(&file, b"notes of mine").expect("write");
    let mut again = lab.floe("pull");
    again.args(["10.77.0.2", "--dump", "/mnt", "-o"]).arg(&file);
    let run = common::run(&mut again, Limit::secs(60)).expect_code(4);
    assert!(
        run.stderr_text().contains("--overwrite replaces it"),
        "{run}"
    );
    assert_eq!(fs::read(&file).expect("notes"), b"notes of mine");
    common::run(again.arg("--overwrite"), Limit::secs(60)).expect_code(0);
    assert_good_image(&file);
    let run = common::run(
        lab.floe("pull")
            .args(["10.77.0.1", "--dump", "/mnt", "-o", "-"]),
        Limit::secs(60),
    )
    .expect_code(0);
    fs::write(&file, &run.stdout).expect("write");
    assert_good_image(&file);
    for board in &lab.boards {
        common::assert_not_frozen(board.data.dir(), "after the pulls");
    }
}

#[test]
fn of_twenty_boards_three_fail_in_their_own_ways_and_seventeen_files_are_complete() {
    drop(require_floe!());
    let mut lab = require_lab!();
    // What stands in for floe on two of them: one is asked for what cannot be frozen, one loses its server in the middle.
    let refuses = "rm /run/bin/floe; printf '#!/bin/sh\\nexec \"%s\" dump --report - -- /run\\n' \"$LAB/floe\" > /run/bin/floe; chmod 755 /run/bin/floe";
    let dies = "rm /run/bin/floe; printf '#!/bin/sh\\n\"%s\" \"$@\" | { head -c 100000; sleep 1; kill -9 $PPID; }\\n' \"$LAB/floe\" > /run/bin/floe; chmod 755 /run/bin/floe";
    let own = format!("LAB='{}'", lab.join("").display());
    let (refuses, dies) = (format!("{own}; {refuses}"), format!("{own}; {dies}"));
    for number in 1..=20 {
        let (server, before) = match number {
            5 => (Server::Nothing, ""),
            9 => (Server::OpenSsh, refuses.as_str()),
            14 => (Server::OpenSsh, dies.as_str()),
            _ if number % 3 == 0 => (Server::Dropbear, ""),
            _ => (Server::OpenSsh, ""),
        };
        let mib = if number == 14 { 32 } else { 4 };
        require_board!(
            lab,
            Setup {
                server,
                mib,
                before
            }
        );
    }
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let older = out.join("10.77.0.5.img.gz");
    let script = format!(
        "f='{}'; truncate -s 1M $f.i && mke2fs -q -F $f.i && gzip -c $f.i > $f && rm $f.i",
        older.display()
    );
    common::shell(&script, Limit::secs(20)).expect_code(0);
    let older = fs::read(&older).expect("older");
    let list = lab.join("boards.txt");
    let mut text = String::from("# all of them\n\n");
    for board in &lab.boards {
        text.push_str(&format!("root@{}   # a board\n", board.address));
    }
    fs::write(&list, text).expect("list");
    let report = lab.join("report.json");
    let run = common::run(
        lab.floe("pull")
            .arg(format!("@{}", list.display()))
            .args(["-P", "6", "--dump", "/mnt", "-o"])
            .arg(&out)
            .arg("--report")
            .arg(&report),
        Limit::secs(120),
    )
    .expect_code(1);
    let mut found = names(&out);
    // With what came of the one that died the next pull goes on.
    found.retain(|name| name != "10.77.0.14.img.gz.resume");
    assert_eq!(names(&out).len(), 19, "{found:?} {run}");
    assert_eq!(found.len(), 18, "{found:?} {run}");
    assert_eq!(
        fs::read(out.join("10.77.0.5.img.gz")).expect("older"),
        older
    );
    for name in found.iter().filter(|name| *name != "10.77.0.5.img.gz") {
        assert!(
            !name.starts_with("10.77.0.9.") && !name.starts_with("10.77.0.14."),
            "{name}"
        );
        assert_good_image(&out.join(name));
    }
    let table = run.stderr_text();
    let row = |address: &str| {
        let line = table
            .lines()
            .rev()
            .find(|line| line.starts_with(&format!("{address} ")));
        line.unwrap_or_else(|| panic!("{address}: {run}"))
            .to_owned()
    };
    assert!(row("10.77.0.5").contains("Connection refused"), "{run}");
    assert!(
        row("10.77.0.9").contains("(exit 4)") && row("10.77.0.9").contains("/run"),
        "{run}"
    );
    assert!(row("10.77.0.14").contains("failed"), "{run}");
    assert!(row("10.77.0.13").contains("done"), "{run}");
    assert!(table.contains("3 of 20 boards failed"), "{run}");
    let json = fs::read_to_string(&report).expect("report");
    assert_eq!(json.matches("\"result\":\"done\"").count(), 17, "{json}");
    assert_eq!(json.matches("\"result\":\"failed\"").count(), 3, "{json}");
    for board in &lab.boards {
        let thawed = common::write_ends_within(board.data.dir(), Duration::from_secs(5));
        assert!(thawed, "{} is frozen", board.address);
    }
}

#[test]
fn noise_before_the_stream_is_quoted_and_nothing_is_kept() {
    drop(require_floe!());
    let mut lab = require_lab!();
    let noisy = "rm /run/bin/floe; printf '#!/bin/sh\\necho Welcome to ACME\\nexec \"%s\" \"$@\"\\n' \"$LAB/floe\" > /run/bin/floe; chmod 755 /run/bin/floe";
    let before = format!("LAB='{}'; {noisy}", lab.join("").display());
    require_board!(
        lab,
        Setup {
            before: &before,
            ..Setup::default()
        }
    );
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let run = common::run(
        lab.floe("pull")
            .args(["10.77.0.1", "--dump", "/mnt", "-o"])
            .arg(&out),
        Limit::secs(30),
    )
    .expect_code(1);
    assert!(
        run.stderr_text()
            .contains("\"Welcome to ACME\" before the stream"),
        "{run}"
    );
    assert_eq!(names(&out), Vec::<String>::new());
    common::assert_not_frozen(lab.boards[0].data.dir(), "after noise");
}

#[test]
fn what_only_the_length_the_sha256_the_report_or_the_exit_code_shows_is_noticed() {
    drop(require_floe!());
    let mut lab = require_lab!();
    // Each passes every check inside the stream; those of frames see more.
    let wrappers = [
        (
            "\"$F\" \"$@\"; printf '\\0\\0\\0'",
            ["bytes were sent", "behind the end frame"],
        ),
        (
            "\"$F\" \"$@\" | { dd bs=1 count=4; dd bs=1 count=1 of=/dev/null; printf X; cat; } 2> /dev/null",
            ["SHA-256", "before the stream"],
        ),
        ("\"$F\" \"$@\" 2> /dev/null", ["report"; 2]),
        ("\"$F\" \"$@\"; exit 7", ["exit 7"; 2]),
    ];
    let floe = lab.join("floe");
    for (number, (script, _)) in wrappers.iter().enumerate() {
        let wrapper = lab.join(format!("wrapper{number}"));
        let text = format!("#!/bin/sh\nF='{}'\n{script}\n", floe.display());
        fs::write(&wrapper, text).expect("wrapper");
        let before = format!(
            "cp '{}' /run/bin/w; chmod 755 /run/bin/w; mv /run/bin/w /run/bin/floe",
            wrapper.display()
        );
        let before = before.as_str();
        require_board!(
            lab,
            Setup {
                before,
                ..Setup::default()
            }
        );
    }
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    for (which, precopy) in ["off", "auto"].into_iter().enumerate() {
        let mut pull = lab.floe("pull");
        for board in &lab.boards {
            pull.arg(&board.address);
        }
        pull.args(["--dump", "/mnt", "--precopy", precopy, "-o"])
            .arg(&out);
        let run = common::run(&mut pull, Limit::secs(60)).expect_code(1);
        assert_eq!(names(&out), Vec::<String>::new(), "{run}");
        let text = run.stderr_text();
        for (board, (_, why)) in lab.boards.iter().zip(wrappers) {
            let why = why[which];
            let mut rows = text
                .lines()
                .filter(|line| line.starts_with(&format!("{} ", board.address)));
            assert!(rows.any(|row| row.contains(why)), "{why}: {run}");
        }
    }
}

#[test]
fn a_name_full_of_shell_signs_reaches_the_board_as_it_is() {
    drop(require_floe!());
    let lab = require_two!(8);
    let name = "it's $(touch pwned) `touch pwned`;touch pwned #\n\\\"*";
    for board in &lab.boards {
        fs::create_dir(board.data.dir().join(name)).expect("folder");
    }
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let run = common::run(
        lab.floe("pull")
            .args(["10.77.0.1", "10.77.0.2", "--dump"])
            .arg(format!("/mnt/{name}"))
            .arg("-o")
            .arg(&out),
        Limit::secs(60),
    )
    .expect_code(0);
    assert_eq!(names(&out).len(), 2, "{run}");
    let pwned = common::shell(
        &format!(
            "find '{}' / -maxdepth 2 -name pwned",
            lab.join("home").display()
        ),
        Limit::secs(20),
    );
    assert_eq!(pwned.stdout_text(), "", "{run}");
    for host in ["-oProxyCommand", "a;b", "$(b)", "b:x", "fd00::1"] {
        let run = common::run(lab.floe("pull").args(["--", host]), Limit::secs(20)).expect_code(2);
        assert!(run.stderr_text().contains("HOST"), "{run}");
    }
}

/// A pull whose reader takes nothing, so that the board stays frozen; gives it when the board is.
fn stalled(lab: &Lab, index: usize, more: &[&str]) -> std::process::Child {
    let board = &lab.boards[index];
    let mut pull = lab.floe("pull");
    let child = pull
        .args([board.address.as_str(), "--dump", "/mnt"])
        // With frames nothing would be frozen yet.
        .args(["--spool", "off", "--precopy", "off", "-o", "-"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("floe");
    let end = Instant::now() + Duration::from_secs(20);
    let is_frozen = || !board_writes(board.data.dir(), Duration::from_secs(1));
    while !is_frozen() {
        assert!(Instant::now() < end, "never frozen");
        thread::sleep(Duration::from_millis(20));
    }
    child
}

/// Whether a write ends within the limit; it goes on by itself after the thaw.
fn board_writes(dir: &Path, limit: Duration) -> bool {
    let file = dir.join(".probe");
    let mut child = common::write_probe(&file);
    let ended = common::wait_for(&mut child, limit).is_some();
    if !ended {
        thread::spawn(move || drop(child.wait()));
    }
    ended
}

#[test]
fn the_board_thaws_whatever_dies() {
    drop(require_floe!());
    let _alone = common::serial();
    let lab = require_two!(96);
    for index in 0..2 {
        let board = &lab.boards[index];
        let noise = board.data.dir().join("noise");
        common::shell(
            &format!("head -c 60M /dev/urandom > '{}'; sync", noise.display()),
            Limit::secs(60),
        )
        .expect_code(0);
        for victim in ["floe", "ssh", "server", "SIGINT"] {
            let before = board.pids();
            let mut pull = stalled(&lab, index, &[]);
            let ssh = || {
                lab.host_pids().into_iter().filter(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/comm"))
                        .is_ok_and(|comm| comm.trim() == "ssh")
                })
            };
            match victim {
                "floe" => common::signal(pull.id(), "KILL"),
                "ssh" => ssh().for_each(|pid| common::signal(pid, "KILL")),
                "server" => {
                    // What serves this connection: floe's ancestors on the board.
                    for pid in board.pids().into_iter().filter(|pid| !before.contains(pid)) {
                        let comm =
                            fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                        if ["sshd", "dropbear"].contains(&comm.trim()) {
                            common::signal(pid, "KILL");
                        }
                    }
                }
                signal => common::signal(pull.id(), &signal[3..]),
            }
            assert!(
                board_writes(board.data.dir(), Duration::from_secs(5)),
                "still frozen after the death of {victim}, board {index}"
            );
            if ["ssh", "server"].contains(&victim) {
                drop(pull.stdout.take()); // what is in the pipes already may still be written
            }
            let status = common::wait_for(&mut pull, Duration::from_secs(20));
            assert!(status.is_some_and(|status| !status.success()), "{victim}");
            let end = Instant::now() + Duration::from_secs(10);
            while ssh().next().is_some() {
                assert!(
                    Instant::now() < end,
                    "ssh is left after the death of {victim}"
                );
                thread::sleep(Duration::from_millis(20));
            }
        }
        // The cable: nobody on the board hears of it, so its own watchdog thaws; ssh here ends by its keepalives.
        let alive = [
            "--stall",
            "2s",
            "--ssh-option",
            "-oServerAliveInterval=1",
            "--ssh-option",
            "-oServerAliveCountMax=2",
        ];
        let mut pull = stalled(&lab, index, &alive);
        lab.cable(index, "down");
        let thawed = board_writes(board.data.dir(), Duration::from_secs(10));
        assert!(thawed, "still frozen without a cable, board {index}");
        drop(pull.stdout.take());
        let status = common::wait_for(&mut pull, Duration::from_secs(20));
        assert!(status.is_some_and(|status| !status.success()));
        lab.cable(index, "up");
    }
}

#[test]
fn the_board_thaws_when_the_terminal_of_its_ssh_hangs_up() {
    drop(require_floe!());
    let _alone = common::serial();
    let lab = require_two!(48);
    for board in &lab.boards {
        fs::write(
            board.data.dir().join("noise"),
            common::Random(7).bytes(24 << 20),
        )
        .expect("noise");
        // A reader that takes the first bytes and stalls.
        let script = "mkfifo /run/hang; (trap '' HUP; head -c 64 > /dev/null; exec sleep 100) < /run/hang & \
            exec /run/bin/floe dump --spool off --precopy off --stall 90s --max-freeze 90s /mnt > /run/hang";
        let before = board.pids();
        let mut ssh = lab.on_host("ssh");
        ssh.arg("-F").arg(lab.join("ssh_config"));
        ssh.args(["-tt", &board.address, script]);
        ssh.stdout(Stdio::null()).stderr(Stdio::null());
        let mut ssh = ssh.spawn().expect("ssh");
        // Asked by a write: a freeze of ours might come in the instant of floe's, which would be refused.
        let is_frozen = || !board_writes(board.data.dir(), Duration::from_secs(1));
        assert!(
            common::wait_until(Duration::from_secs(20), is_frozen),
            "never frozen"
        );
        common::signal(ssh.id(), "KILL");
        let is_thawed = || !common::is_frozen(board.data.dir());
        let thawed = common::wait_until(Duration::from_secs(5), is_thawed);
        assert!(
            thawed,
            "still frozen after the terminal of {} hung up",
            board.address
        );
        common::wait_for(&mut ssh, Duration::from_secs(10));
        for pid in board.pids().into_iter().filter(|pid| !before.contains(pid)) {
            common::signal(pid, "KILL");
        }
    }
}

/// A pull from a board that sends the beginning of its image and then nothing more; gives it when that has come.
fn silent(lab: &mut Lab, more: &[&str]) -> Result<std::process::Child, String> {
    let before = format!(
        "rm /run/bin/floe; printf '#!/bin/sh\\n\"%s/floe\" \"$@\" | {{ head -c 50000; exec sleep 100; }}\\n' '{}' > /run/bin/floe; chmod 755 /run/bin/floe",
        lab.join("").display()
    );
    lab.add(Setup {
        before: &before,
        ..Setup::default()
    })?;
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    // Without frames, of which the part file would get nothing yet.
    let pull = lab
        .floe("pull")
        .args(["10.77.0.1", "--dump", "/mnt", "--precopy", "off", "-o"])
        .arg(&out)
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .expect("floe");
    let part = out.join("10.77.0.1.img.gz.part");
    let end = Instant::now() + Duration::from_secs(20);
    while !fs::metadata(&part).is_ok_and(|meta| meta.len() >= 40_000) {
        assert!(Instant::now() < end, "the stream never came");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(pull)
}

#[test]
fn an_interrupted_pull_leaves_no_file_behind() {
    drop(require_floe!());
    for (left, said) in [
        (&[][..], "others were removed\n"),
        (
            // It is not this one's, which takes no frames, and stays.
            &["10.77.0.1.img.gz.resume".to_owned()],
            "10.77.0.1.img.gz.resume, and the same pull goes on from there\n",
        ),
    ] {
        let mut lab = require_lab!();
        let mut pull = require_some!(silent(&mut lab, &[]).ok(), "namespaces with a veth");
        for name in left {
            let path = lab.join("out").join(name);
            fs::write(&path, "what came").expect("left");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(path, mode).expect("mode");
        }
        common::signal(pull.id(), "INT");
        let status = common::wait_for(&mut pull, Duration::from_secs(10)).expect("ends");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(2)
        );
        assert_eq!(names(&lab.join("out")), left);
        assert_eq!(lab.host_pids(), Vec::<u32>::new());
        let mut text = String::new();
        let stderr = pull.stderr.as_mut().expect("piped");
        std::io::Read::read_to_string(stderr, &mut text).expect("read");
        assert!(text.ends_with(said), "{text}");
    }
}

#[test]
fn a_connection_that_went_silent_ends_by_the_keepalives_of_ssh() {
    drop(require_floe!());
    let mut lab = require_lab!();
    let options = [
        "--ssh-option",
        "-oServerAliveInterval=1",
        "--ssh-option",
        "-oServerAliveCountMax=2",
        "--ssh-option",
        "-oLogLevel=INFO",
    ];
    let silent = silent(&mut lab, &options).ok();
    let mut pull = require_some!(silent, "namespaces with a veth");
    lab.cable(0, "down");
    let status = common::wait_for(&mut pull, Duration::from_secs(15)).expect("ends");
    let mut text = String::new();
    let mut stderr = pull.stderr.take().expect("piped");
    std::io::Read::read_to_string(&mut stderr, &mut text).expect("stderr");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("not responding"), "{text}");
    assert_eq!(names(&lab.join("out")), Vec::<String>::new());
}
