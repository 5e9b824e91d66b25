//! No line for people holds up a signal: a stderr that nobody reads is full, and floe ends all the same.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::pty::OpenptFlags;

use super::guard::{HeldWrite, command};
use crate::common::{self, LoopFs, Scratch, Spec};

/// About what an unread terminal still takes, in bytes: it says that it takes something, and not all of a long line.
const ROOM: usize = 100;
/// Somebody else.
const NOBODY: u32 = 65_534;
/// In front of a name, for a line that does not fit.
fn long() -> String {
    "./".repeat(150)
}

/// A pipe that is full; the reading end must live on.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let flags = rustix::fs::fcntl_getfl(&writer).expect("flags");
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("flags");
    for size in [4096, 1] {
        while writer.write(&vec![b'.'; size]).is_ok() {}
    }
    rustix::fs::fcntl_setfl(&writer, flags).expect("flags");
    (reader, writer)
}

/// A terminal that nobody reads: poll(2) says of it that it takes something, and less than a line would fit. Both ends must live on.
fn unread_terminal() -> (OwnedFd, File) {
    let open = || {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags | OpenptFlags::CLOEXEC).expect("ptmx");
        rustix::pty::unlockpt(&master).expect("unlock");
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).expect("peer");
        (master, File::from(slave))
    };
    // What goes in there, until nothing more does.
    let fill = |slave: &File, most: usize| {
        rustix::fs::fcntl_setfl(slave, rustix::fs::OFlags::NONBLOCK).expect("flags");
        let (mut taken, mut refused) = (0, 0);
        while taken < most && refused < 10 {
            match (&*slave).write(&[b'.'; 64][..64.min(most - taken)]) {
                Ok(count) => (taken, refused) = (taken + count, 0),
                Err(_) => {
                    refused += 1;
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        rustix::fs::fcntl_setfl(slave, rustix::fs::OFlags::empty()).expect("flags");
        taken
    };
    let (master, slave) = open();
    let all = fill(&slave, usize::MAX);
    drop(master);
    let (master, slave) = open();
    fill(&slave, all - ROOM);
    (master, slave)
}

/// One signal, and it dies by that within a second or two.
#[track_caller]
fn assert_ends_by_one_signal(mut child: Child, what: &str) {
    common::signal(child.id(), "TERM");
    let status = common::wait_for(&mut child, Duration::from_secs(3));
    let Some(status) = status else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{what}: SIGTERM was held up");
    };
    assert_eq!(status.signal(), Some(15), "{what}: {status:?}");
}

#[test]
fn a_restore_whose_stderr_is_full_dies_by_the_first_signal() {
    let mut floe = require_floe!();
    let spec = Spec {
        mib: 16,
        ..Spec::default()
    };
    let fs = require_some!(LoopFs::make(spec).ok(), "root and mkfs.ext4");
    let scratch = Scratch::new();
    let (_reader, stderr) = full_pipe();
    let mut child = floe
        .args(["restore", "--quiet", "-"])
        .arg(scratch.join("target"))
        .stdin(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .expect("floe");
    let mut stdin = child.stdin.take().expect("piped");
    let start = std::fs::read(fs.image()).expect("read");
    stdin.write_all(&start[..1 << 20]).expect("write");
    thread::sleep(Duration::from_millis(500));
    assert_ends_by_one_signal(child, "restore");
    drop(stdin);
}

#[test]
fn a_pull_whose_stderr_is_full_dies_by_the_first_signal() {
    let mut floe = require_floe!();
    let scratch = Scratch::new();
    let ssh = scratch.join("ssh");
    fs::write(
        &ssh,
        "#!/bin/sh\nfor n in 1 2 3 4; do echo floe: line $n >&2; done; exec sleep 60\n",
    )
    .expect("write");
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
    let path = std::env::var("PATH").unwrap_or_default();
    let (_reader, stderr) = full_pipe();
    let child = floe
        .args(["pull", "nowhere", "--dump", "/", "-o"])
        .arg(scratch.join("image"))
        .env("PATH", format!("{}:{path}", scratch.path().display()))
        .stderr(stderr)
        .spawn()
        .expect("floe");
    thread::sleep(Duration::from_millis(700));
    assert_ends_by_one_signal(child, "pull");
}

#[test]
fn a_clone_or_dump_whose_stderr_is_full_dies_by_the_first_signal() {
    let _ = require_floe!();
    let spec = Spec {
        mib: 32,
        ..Spec::default()
    };
    let source = require_some!(LoopFs::make(spec).ok(), "root and mkfs.ext4");
    let mut target = require_some!(LoopFs::make(spec).ok(), "root and mkfs.ext4");
    target.unmount();
    let pair = format!("{}={}", source.dir().display(), target.device().display());
    let clone: &[&str] = &["clone", "--quiet", "--overwrite", &pair];
    let dir = source.dir().to_string_lossy();
    let dump: &[&str] = &["dump", "--quiet", &dir];
    for words in [clone, dump] {
        // The freeze waits for this write.
        let held = HeldWrite::start(source.dir());
        let (_reader, stderr) = full_pipe();
        let mut floe: Command = require_floe!();
        let child = floe
            .args(words)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("floe");
        thread::sleep(Duration::from_millis(700));
        assert_ends_by_one_signal(child, words[0]);
        drop(held);
        common::assert_not_frozen(source.dir(), words[0]);
    }
}

#[test]
fn a_terminal_that_nobody_reads_holds_up_no_signal_before_the_work() {
    let mut floe = require_floe!();
    require!(common::have("mke2fs"), "mke2fs");
    let scratch = Scratch::new();
    // What lies behind the filesystem is looked at first, and takes long.
    let make = "truncate -s 16M e; mke2fs -q -F e; truncate -s 8T e";
    let mut sh = Command::new("sh");
    sh.args(["-c", make]).current_dir(scratch.path());
    common::run(&mut sh, common::Limit::secs(20)).expect_code(0);
    let (_master, stderr) = unread_terminal();
    let child = floe
        .args(["dump", &(long() + "e"), "-o", "o"])
        .current_dir(scratch.path())
        .stderr(stderr.try_clone().expect("stderr"))
        .spawn()
        .expect("floe");
    thread::sleep(Duration::from_millis(300));
    assert_ends_by_one_signal(child, "dump");
}

#[test]
fn a_terminal_that_nobody_reads_holds_up_no_signal_while_boards_talk() {
    let _ = require_floe!();
    let scratch = Scratch::new();
    let ssh = scratch.join("ssh");
    // Lines for people, and progress.
    for said in [
        &format!("floe: line $n {}", "x".repeat(390)),
        "{\\\"phase\\\":\\\"copying\\\",\\\"done_bytes\\\":$n}",
    ] {
        let script = format!(
            "#!/bin/sh\nn=1\nwhile [ $n -lt 20 ]; do echo \"{said}\" >&2; n=$((n + 1)); sleep 0.05; done; exec sleep 60\n"
        );
        fs::write(&ssh, script).expect("write");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
        let path = std::env::var("PATH").unwrap_or_default();
        let (_master, stderr) = unread_terminal();
        let mut floe = require_floe!();
        let child = floe
            .args(["pull", "nowhere", "--dump", "/", "-o"])
            .arg(scratch.join("image"))
            .env("PATH", format!("{}:{path}", scratch.path().display()))
            .stderr(stderr.try_clone().expect("stderr"))
            .spawn()
            .expect("floe");
        thread::sleep(Duration::from_millis(1200));
        assert_ends_by_one_signal(child, said);
    }
}

/// A restore of an image that comes slowly, with words that nobody reads, obeys a signal; `change` says how it is started.
fn assert_a_restore_obeys(scratch: &Scratch, change: fn(&mut Command)) {
    let image = scratch.join("e");
    common::sparse(&image, 16 << 20);
    common::output("mke2fs", &["-q", "-F", &image.to_string_lossy()]);
    let start = fs::read(&image).expect("read");
    for words in [&["restore", "-"][..], &["restore", "--quiet", "-"]] {
        let (_master, stderr) = unread_terminal();
        let mut floe = common::floe().expect("required before");
        floe.args(words).arg(long() + "target");
        floe.current_dir(scratch.path()).stdin(Stdio::piped());
        change(floe.stderr(stderr.try_clone().expect("stderr")));
        let mut child = floe.spawn().expect("floe");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(&start[..1 << 20]).expect("write");
        thread::sleep(Duration::from_millis(1200));
        assert_ends_by_one_signal(child, &words.join(" "));
        drop(stdin);
    }
}

#[test]
fn a_terminal_that_nobody_reads_holds_up_no_signal_while_a_target_is_written() {
    let _ = require_floe!();
    require!(common::have("mke2fs"), "mke2fs");
    assert_a_restore_obeys(&Scratch::new(), |_| ());
}

#[test]
fn a_terminal_that_we_may_not_open_holds_up_no_signal() {
    let _ = require_floe!();
    require!(
        common::is_root() && common::have("mke2fs"),
        "root and mke2fs"
    );
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).expect("mode");
    // Of root, and the controlling terminal of nobody.
    assert_a_restore_obeys(&scratch, |floe| {
        floe.uid(NOBODY).gid(NOBODY);
    });
}

#[test]
fn a_report_that_nobody_reads_holds_up_no_signal() {
    let mut floe = require_floe!();
    let source = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    let scratch = Scratch::new();
    let report = scratch.join("report");
    common::output("mkfifo", &[&report.to_string_lossy()]);
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK;
    let fifo = rustix::fs::open(&report, flags, rustix::fs::Mode::empty()).expect("fifo");
    let mut fifo = File::from(fifo);
    for size in [4096, 1] {
        while fifo.write(&vec![b'.'; size]).is_ok() {}
    }
    // The freeze waits for this write.
    let held = HeldWrite::start(source.dir());
    let child = floe
        .args(["dump", "--quiet", "--report"])
        .arg(&report)
        .arg(source.dir())
        .stdout(Stdio::null())
        .spawn()
        .expect("floe");
    thread::sleep(Duration::from_millis(700));
    assert_ends_by_one_signal(child, "dump");
    drop(held);
    common::assert_not_frozen(source.dir(), "after the signal");
}

#[test]
fn a_signal_that_a_line_gave_way_to_and_nobody_took_kills_at_the_end() {
    let driver = require_driver!();
    let (_reader, stderr) = full_pipe();
    let child = command(&driver, "overheard", "1", "1", &[])
        .stderr(stderr)
        .spawn()
        .expect("guard_driver");
    thread::sleep(Duration::from_millis(700));
    assert_ends_by_one_signal(child, "overheard");
}

#[test]
fn two_signals_at_once_cut_off_neither_the_last_words_nor_the_removal_of_the_part_file() {
    let _ = require_floe!();
    let made = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    made.fill(40);
    let scratch = Scratch::new();
    let out = scratch.join("out.gz");
    let part = scratch.join("out.gz.part");
    for after_ms in [0, 5, 20, 40, 60, 80, 100, 120, 140, 160] {
        let mut floe = common::floe().expect("required before");
        floe.arg("dump").arg(made.dir()).arg("-o").arg(&out);
        floe.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = floe.spawn().expect("floe");
        // An emulator is a while on its way to floe.
        assert!(common::wait_until(Duration::from_secs(20), || part.exists()));
        thread::sleep(Duration::from_millis(after_ms));
        common::signal(child.id(), "TERM");
        thread::sleep(Duration::from_millis(1));
        // It may have ended by the first one, and is not waited for yet.
        common::signal(child.id(), "TERM");
        let mut said = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("stderr");
        let status = common::wait_for(&mut child, Duration::from_secs(10)).expect("it ends");
        assert!(!said.is_empty(), "silent after {after_ms} ms: {status}");
        let left = fs::read_dir(scratch.path()).expect("folder").flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name == "out.gz"), "{left:?}");
    }
    common::assert_not_frozen(made.dir(), "after the signals");
}
