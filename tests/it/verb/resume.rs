//! `pull` of what has changed only, and of what is missing since a pull broke off: whatever the host had before, what it has afterwards
//! is what a fresh pull gives. An `ssh` that runs its command here stands in for the board.

use crate::common::{self, Limit, LoopDevice, LoopFs, Mounted, Random, Run, Scratch, Spec};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NOISE_BYTES: usize = 6 << 20;

/// A folder with a source, and an `ssh` that does what `script` says with the command line `$line`.
struct Bench {
    scratch: Scratch,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            scratch: Scratch::new(),
        };
        fs::create_dir(bench.scratch.join("bin")).expect("bin");
        bench.board("exec sh -c \"$line\"");
        bench
    }

    fn join(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn board(&self, script: &str) {
        let ssh = self.join("bin/ssh");
        fs::write(&ssh, format!("#!/bin/sh\nfor line; do :; done\n{script}\n")).expect("ssh");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    /// The line breaks after so many bytes.
    fn cut(&self, bytes: u64) {
        self.board(&format!(
            "sh -c \"$line\" 2> /dev/null | dd bs=16384 count={bytes} iflag=count_bytes 2> /dev/null; exit 255"
        ));
    }

    /// An ext4 image with `NOISE_BYTES` that cannot be packed; where they lie in it.
    fn image(&self) -> (PathBuf, u64) {
        let image = self.join("source");
        let folder = self.join("content");
        fs::create_dir(&folder).expect("content");
        let noise = Random(7).bytes(NOISE_BYTES);
        fs::write(folder.join("noise"), &noise).expect("noise");
        common::fill(&folder, 12);
        common::shell(
            &format!(
                "truncate -s 24M '{0}' && mkfs.ext4 -q -F -b 4096 -d '{1}' '{0}'",
                image.display(),
                folder.display()
            ),
            Limit::secs(30),
        )
        .expect_code(0);
        let all = fs::read(&image).expect("image");
        let at = all.chunks(4096).position(|block| block == &noise[..4096]);
        (image, at.expect("the noise is one run") as u64 * 4096)
    }

    fn pull(&self, what: &[&str], to: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut pull = common::floe().expect("required before");
        pull.args(["pull", "board", "--floe"])
            .arg(common::floe_path().expect("required before"))
            .args(["--report"])
            .arg(self.join("report.json"))
            .arg("-o")
            .arg(self.join(to))
            .args(what)
            .env("PATH", format!("{}:{path}", self.join("bin").display()));
        pull
    }

    #[track_caller]
    fn pulled(&self, what: &[&str], to: &str) -> Vec<u8> {
        common::run(&mut self.pull(what, to), Limit::secs(60)).expect_code(0);
        assert!(!self.join(&format!("{to}.resume")).exists());
        fs::read(self.join(to)).expect("file")
    }

    /// The same, and the most memory that it had, in KiB.
    fn weighed(&self, what: &[&str], to: &str) -> u64 {
        let mut pull = self.pull(what, to);
        let mut child = pull.stderr(Stdio::null()).spawn().expect("pull");
        let mut most = 0;
        let ended = common::wait_until(Duration::from_secs(100), || {
            most = most.max(peak(&child).unwrap_or(0));
            child.try_wait().is_ok_and(|status| status.is_some())
        });
        if !ended {
            let _ = child.kill();
        }
        let status = child.wait().expect("pull");
        assert!(ended && status.success(), "{status}");
        most
    }

    #[track_caller]
    fn breaks(&self, what: &[&str], to: &str) -> Run {
        common::run(&mut self.pull(what, to), Limit::secs(60)).expect_code(1)
    }

    /// Of the last report.
    fn number(&self, key: &str) -> u64 {
        let text = fs::read_to_string(self.join("report.json")).expect("report");
        let rest = text.split(&format!("\"{key}\":")).nth(1).expect(key);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("number")
    }
}

/// What the kernel says was the most memory of a process, in KiB.
fn peak(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A tmpfs of a few MiB, gone with its owner.
struct Small(Scratch);

impl Small {
    fn of(bytes: u64) -> Small {
        let small = Small(Scratch::new());
        small.mount(&format!("size={bytes}"));
        small
    }

    fn mount(&self, options: &str) {
        let path = self.0.path().to_string_lossy();
        common::output("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &path]);
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("tmpfs");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("entry").file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let umount = umount.arg("-l").arg(self.0.path()).stderr(Stdio::null());
        let _ = umount.status();
    }
}

macro_rules! require_bench {
    () => {{
        drop(require_floe!());
        require!(
            common::runner().is_none(),
            "no runner: floe is started by its path"
        );
        require!(common::have("mkfs.ext4"), "mkfs.ext4");
        Bench::new()
    }};
}

fn write_at(path: &Path, bytes: &[u8], at: u64) {
    let file = fs::File::options().write(true).open(path).expect("open");
    file.write_all_at(bytes, at).expect("write");
}

/// Turns a bit over in every one of so many parts.
fn flip(path: &Path, parts: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let length = file.metadata().expect("metadata").len();
    for part in 0..parts {
        let at = length / parts * part + length / parts / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
    }
}

#[test]
fn what_has_not_changed_is_not_sent_and_the_file_is_that_of_a_fresh_pull() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let first = bench.pulled(&dump, "one.img.gz");
    let sent = bench.number("sent_bytes");
    assert_eq!(bench.number("reused_bytes"), 0);
    assert!(sent as usize > NOISE_BYTES, "{sent}");
    // The same again, and with a chunk of it written over.
    assert!(bench.pulled(&dump, "one.img.gz") == first);
    assert!(bench.number("sent_bytes") * 200 < sent);
    assert!(bench.number("reused_bytes") as usize >= NOISE_BYTES);
    write_at(&source, &Random(8).bytes(5000), noise + 3_000_000);
    let second = bench.pulled(&dump, "one.img.gz");
    assert!(bench.number("sent_bytes") * 20 < sent);
    let fresh = [&dump[..], &["--fresh"]].concat();
    assert!(bench.pulled(&fresh, "fresh.img.gz") == second && second != first);
    assert_eq!(bench.number("reused_bytes"), 0);
    assert!(bench.pulled(&fresh, "one.img.gz") == second);
    assert_eq!(bench.number("reused_bytes"), 0, "--fresh sends all");
    // From a file elsewhere, however it is packed, and at another level than it was pulled at.
    common::shell(
        &format!(
            "gzip -dc '{0}' > '{1}'; cp '{1}' '{1}.2'; truncate -s 9M '{1}.2'",
            bench.join("fresh.img.gz").display(),
            bench.join("raw").display()
        ),
        Limit::secs(30),
    )
    .expect_code(0);
    let level = [&dump[..], &["--level", "6"]].concat();
    let fresh = bench.pulled(&[&level[..], &["--fresh"]].concat(), "level.img.gz");
    for (number, since) in ["fresh.img.gz", "raw", "raw.2"].into_iter().enumerate() {
        let since = bench.join(since);
        let since = ["--since", since.to_str().expect("text")];
        let to = format!("{number}.img.gz");
        assert!(bench.pulled(&[&level[..], &since].concat(), &to) == fresh);
        assert!(bench.number("reused_bytes") > 1 << 20);
    }
}

#[test]
fn an_old_file_that_is_damaged_or_marked_by_chance_gives_only_what_is_proven() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    // What cannot be packed is stored, and looks like the end of a chunk in the middle of several.
    for at in (1..20).map(|at| noise + at * 200_003) {
        write_at(&source, &[0, 0, 0xff, 0xff], at);
    }
    let dump = ["--dump", source.to_str().expect("text"), "--overwrite"];
    let fresh = bench.pulled(&dump, "one.img.gz");
    let sent = bench.number("sent_bytes");
    assert!(bench.pulled(&dump, "one.img.gz") == fresh);
    assert!(bench.number("sent_bytes") * 200 < sent);
    let one = bench.join("one.img.gz");
    for place in [12, fresh.len() / 3, fresh.len() / 2, fresh.len() - 20] {
        let mut broken = fresh.clone();
        broken[place] ^= 0x10;
        fs::write(&one, &broken).expect("broken");
        assert!(bench.pulled(&dump, "one.img.gz") == fresh, "{place}");
        fs::write(&one, &fresh[..place]).expect("cut");
        assert!(bench.pulled(&dump, "one.img.gz") == fresh, "{place}");
    }
    // A board that packs wrongly what it sends: what is not inflated to what its checksum says does not get the file's name.
    fs::write(&one, &fresh).expect("whole");
    write_at(&source, &Random(8).bytes(100_000), noise + 3_000_000);
    bench.board("sh -c \"$line\" | perl -0777 -pe 'substr($_, length($_) / 2, 1) ^= \"\\x10\"'");
    bench.breaks(&dump, "one.img.gz");
    assert!(fs::read(&one).expect("one") == fresh);
}

#[test]
fn entries_of_a_snapshot_are_found_by_their_names() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    let other = bench.join("other");
    fs::copy(&source, &other).expect("copy");
    write_at(&other, &Random(9).bytes(2 << 20), noise);
    let (a, b) = (
        format!("a={}", source.display()),
        format!("b={}", other.display()),
    );
    bench.pulled(&["--create", &a, &b], "one.zip");
    let sent = bench.number("sent_bytes");
    assert!(sent as usize > 2 * NOISE_BYTES, "{sent}");
    bench.pulled(&["--create", &a, &b], "one.zip");
    assert!(bench.number("sent_bytes") * 50 < sent);
    // What each entry takes in the archive, the host knows.
    let stored = |text: &str| -> Vec<String> {
        let pieces = text.split("\"stored_bytes\":").skip(1);
        let number = |piece: &str| piece.split([',', '}']).next().unwrap_or("").to_owned();
        pieces.map(number).collect()
    };
    let report = fs::read_to_string(bench.join("report.json")).expect("report");
    let shown = bench.join("shown.json");
    let mut floe = require_floe!();
    floe.arg("verify").arg(bench.join("one.zip"));
    common::run(floe.arg("--report").arg(&shown), Limit::secs(60)).expect_code(0);
    let shown = fs::read_to_string(shown).expect("report");
    let found = stored(&report);
    assert!(
        found.len() == 2 && found == stored(&shown),
        "{report} {shown}"
    );
    // In another order, and one of them alone.
    bench.pulled(&["--create", &b, &a], "one.zip");
    assert!(bench.number("sent_bytes") * 50 < sent);
    bench.pulled(&["--create", &b], "one.zip");
    assert!(bench.number("sent_bytes") * 50 < sent);
    let mut floe = require_floe!();
    common::run(
        floe.arg("verify").arg(bench.join("one.zip")),
        Limit::secs(60),
    )
    .expect_code(0);
    // Where one is cut, what it leaves is listed.
    bench.cut(1 << 20);
    let run = bench.breaks(&["--create", &a, "--fresh"], "two.zip");
    assert!(run.stderr_text().contains("two.zip.resume"), "{run}");
    let mut floe = require_floe!();
    let list = common::run(floe.arg("list").arg(bench.scratch.path()), Limit::secs(20));
    let list = list.expect_code(0).stdout_text();
    let line = list.lines().find(|line| line.starts_with("two.zip.resume"));
    let line = line.unwrap_or_else(|| panic!("{list}"));
    assert!(
        line.contains("incomplete") && line.contains("goes on from it"),
        "{line}"
    );
}

#[test]
fn a_pull_that_is_cut_anywhere_goes_on_and_ends_as_a_fresh_one() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let fresh = bench.pulled(&dump, "fresh.img.gz");
    let sent = bench.number("sent_bytes");
    let left = bench.join("cut.img.gz.resume");
    let mut random = Random(11);
    for turn in 0..6 {
        // The first one early, the last one in the end frame.
        let at = match turn {
            0 => 20,
            5 => sent - 3,
            _ => (1 << 20) + random.below(sent - (2 << 20)),
        };
        bench.cut(at);
        let run = bench.breaks(&dump, "cut.img.gz");
        assert!(!bench.join("cut.img.gz").exists());
        assert!(!bench.join("cut.img.gz.part").exists());
        assert_eq!(left.exists(), turn > 0, "{at}: {run}");
        if turn > 0 {
            let mode = fs::metadata(&left).expect("left").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(run.stderr_text().contains("cut.img.gz.resume"), "{run}");
        }
        if turn == 3 {
            flip(&left, 4);
        }
        if turn == 4 {
            // Once more, before it goes on.
            bench.cut((1 << 20) + random.below(1 << 20));
            bench.breaks(&dump, "cut.img.gz");
        }
        bench.board("exec sh -c \"$line\"");
        assert!(bench.pulled(&dump, "cut.img.gz") == fresh, "{at}");
        let reused = bench.number("reused_bytes");
        assert_eq!(reused > 0, turn > 0, "{at}");
        assert!(bench.number("sent_bytes") + reused / 2 < sent + (2 << 20));
        fs::remove_file(bench.join("cut.img.gz")).expect("remove");
    }
    // What somebody put there under that name is not taken for one.
    fs::write(&left, "notes").expect("notes");
    assert!(
        common::run(&mut bench.pull(&dump, "cut.img.gz"), Limit::secs(60)).code == Some(0)
            && fs::read(&left).expect("notes") == b"notes"
    );
    // --fresh takes nothing from it, and it goes all the same.
    fs::remove_file(&left).expect("remove");
    bench.cut(3 << 20);
    bench.breaks(&[&dump[..], &["--fresh"]].concat(), "cut.img.gz");
    bench.board("exec sh -c \"$line\"");
    assert!(bench.pulled(&[&dump[..], &["--fresh"]].concat(), "cut.img.gz") == fresh);
    assert_eq!(bench.number("reused_bytes"), 0);
}

#[test]
fn an_earlier_file_that_is_damaged_or_changes_meanwhile_spoils_nothing() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let fresh = bench.pulled(&dump, "fresh.img.gz");
    let old = bench.join("old.img.gz");
    fs::write(&old, &fresh).expect("old");
    flip(&old, 5);
    assert!(bench.pulled(&dump, "old.img.gz") == fresh);
    // No image at all.
    fs::write(&old, Random(3).bytes(700_000)).expect("old");
    assert!(bench.pulled(&[&dump[..], &["--overwrite"]].concat(), "old.img.gz") == fresh);
    // The board has compared all of it when bits turn over: it is asked for everything once more.
    let count = bench.join("count");
    let zero =
        "dd if=/dev/urandom of=\"$old\" bs=1000 seek=3000 count=500 conv=notrunc 2> /dev/null";
    bench.board(&format!(
        "old='{}'\nsh -c \"$line\"; code=$?\necho \"$line\" >> '{}'\n{zero}\nexit $code",
        old.display(),
        count.display()
    ));
    assert!(bench.pulled(&dump, "old.img.gz") == fresh);
    let asked = fs::read_to_string(&count).expect("count");
    let asked: Vec<bool> = asked
        .lines()
        .map(|line| line.contains("--frames-known"))
        .collect();
    assert_eq!(asked, [true, false]);
    assert_eq!(bench.number("reused_bytes"), 0);
}

#[test]
fn a_board_that_lies_about_what_is_here_is_not_believed() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let record = bench.join("record");
    bench.pulled(&dump, "good.img.gz");
    let keep = "sh -c \"$line\" 2> \"$to.err\" | tee \"$to\"; cat \"$to.err\" >&2";
    bench.board(&format!("to='{}'\n{keep}", record.display()));
    let good = bench.pulled(&dump, "good.img.gz");
    assert!(bench.number("reused_bytes") > 0);
    // What it said then, to a host that has something else, or nothing.
    write_at(&source, &Random(21).bytes(400_000), noise);
    bench.board("exec sh -c \"$line\"");
    bench.pulled(&dump, "other.img.gz");
    let replay = "cat > /dev/null & cat \"$to.err\" >&2; exec cat \"$to\"";
    bench.board(&format!("to='{}'\n{replay}", record.display()));
    let other = fs::read(bench.join("other.img.gz")).expect("other");
    for name in ["other.img.gz", "none.img.gz"] {
        let run = bench.breaks(&dump, name);
        assert!(run.stderr_text().contains("kind of a frame"), "{run}");
    }
    assert!(fs::read(bench.join("other.img.gz")).expect("other") == other);
    assert!(!bench.join("none.img.gz").exists());
    // To one that has it, it is no lie.
    assert!(bench.pulled(&dump, "good.img.gz") == good);
}

#[test]
fn an_older_floe_on_the_board_sends_everything_and_two_pulls_do_not_mix() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let fresh = bench.pulled(&dump, "one.img.gz");
    let older = |option: &str| {
        bench.board(&format!(
            "case $line in *{option}*) echo 'floe: dump: unknown option {option}; see floe dump --help' >&2; exit 2;; esac\nexec sh -c \"$line\""
        ));
    };
    for option in ["--frames-known", "--frames"] {
        older(option);
        let run = common::run(&mut bench.pull(&dump, "one.img.gz"), Limit::secs(60));
        let run = run.expect_code(0);
        assert!(!run.stderr_text().contains("--frames"), "{run}");
        assert!(fs::read(bench.join("one.img.gz")).expect("file") == fresh);
        assert_eq!(bench.number("reused_bytes"), 0);
    }
    // One that waits in the middle; another that wants the same file is told so.
    let (here, go) = (bench.join("here"), bench.join("go"));
    common::shell(
        &format!("mkfifo '{}' '{}'", here.display(), go.display()),
        Limit::secs(20),
    )
    .expect_code(0);
    bench.board(&format!(
        "echo > '{}'; cat '{}' > /dev/null; exec sh -c \"$line\"",
        here.display(),
        go.display()
    ));
    let mut first = bench.pull(&dump, "one.img.gz").spawn().expect("pull");
    common::shell(&format!("cat '{}'", here.display()), Limit::secs(20)).expect_code(0);
    let run = bench.breaks(&dump, "one.img.gz");
    assert!(
        run.stderr_text().contains("another process is writing it"),
        "{run}"
    );
    common::shell(&format!("echo > '{}'", go.display()), Limit::secs(20)).expect_code(0);
    let ended = common::wait_for(&mut first, Limit::secs(60).0).expect("it ends");
    assert!(ended.success());
    assert!(fs::read(bench.join("one.img.gz")).expect("file") == fresh);
}

#[test]
fn of_a_mounted_filesystem_only_what_was_written_since_is_sent() {
    let bench = require_bench!();
    let fs = match LoopFs::make(Spec {
        mib: 32,
        ..Spec::default()
    }) {
        Ok(fs) => fs,
        Err(missing) => {
            common::skip(&missing);
            return;
        }
    };
    fs.fill(20);
    fs::write(fs.dir().join("noise"), Random(5).bytes(NOISE_BYTES)).expect("noise");
    let dump = ["--dump", fs.dir().to_str().expect("text")];
    for how in ["auto", "compare", "off"] {
        let dump = [&dump[..], &["--precopy", how]].concat();
        bench.pulled(&[&dump[..], &["--fresh"]].concat(), "one.img.gz");
        let sent = bench.number("sent_bytes");
        fs::write(fs.dir().join(how), Random(6).bytes(100_000)).expect("write");
        bench.pulled(&dump, "one.img.gz");
        common::assert_not_frozen(fs.dir(), how);
        if how != "off" {
            assert!(bench.number("sent_bytes") * 4 < sent, "{how}");
            assert!(bench.number("reused_bytes") as usize > NOISE_BYTES / 2);
        }
        common::shell(
            &format!(
                "cd '{}' && gzip -dc one.img.gz > raw.{how}",
                bench.scratch.path().display()
            ),
            Limit::secs(30),
        )
        .expect_code(0);
        common::fsck("ext4", &bench.join(&format!("raw.{how}")));
    }
}

#[test]
fn what_came_goes_only_when_the_new_file_has_its_name() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let fresh = bench.pulled(&dump, "fresh.img.gz");
    // All of it comes, and then the file cannot get its name.
    let (to, left) = (bench.join("new.img.gz"), bench.join("new.img.gz.resume"));
    bench.board(&format!(
        "sh -c \"$line\"; code=$?; mkdir '{}'; exit $code",
        to.display()
    ));
    let run = bench.breaks(&dump, "new.img.gz");
    assert!(run.stderr_text().contains("new.img.gz.resume"), "{run}");
    assert!(fs::metadata(&left).expect("left").len() as usize > NOISE_BYTES);
    fs::remove_dir(&to).expect("rmdir");
    bench.board("exec sh -c \"$line\"");
    assert!(bench.pulled(&dump, "new.img.gz") == fresh);
    assert!(bench.number("reused_bytes") as usize >= NOISE_BYTES);
}

#[test]
fn where_the_host_is_full_the_old_file_stays_and_the_next_pull_goes_on() {
    let bench = require_bench!();
    require!(common::is_root(), "root");
    let (source, noise) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let small = Small::of(64 << 20);
    let to = small.0.join("one.img.gz");
    let name = to.to_str().expect("text");
    let old = bench.pulled(&dump, name);
    write_at(&source, &Random(31).bytes(NOISE_BYTES), noise);
    let fresh = bench.pulled(&[&dump[..], &["--fresh"]].concat(), "fresh.img.gz");
    let (one, whole) = (old.len() as u64, fresh.len() as u64);
    // In the middle, in the middle of what goes on from there, and when all has come and is put together.
    for (turn, room) in [whole / 3, whole / 2, whole * 3 / 2]
        .into_iter()
        .enumerate()
    {
        small.mount(&format!("remount,size={}", one + room));
        let text = bench.breaks(&dump, name).stderr_text();
        assert!(text.contains("No space left"), "{turn}: {text}");
        let subject = if turn < 2 { ".resume: " } else { ": " };
        let subject = format!("floe: {name}{subject}");
        assert!(text.contains(&subject), "{turn}: {text}");
        assert!(
            text.contains("the same command goes on from there"),
            "{text}"
        );
        assert_eq!(small.names(), ["one.img.gz", "one.img.gz.resume"]);
        assert!(fs::read(&to).expect("old") == old, "{turn}");
    }
    small.mount("remount,size=64M");
    assert!(bench.pulled(&dump, name) == fresh);
    assert!(bench.number("reused_bytes") as usize >= NOISE_BYTES);
    assert_eq!(small.names(), ["one.img.gz"]);
}

#[test]
fn of_two_pulls_into_one_folder_at_once_one_is_refused_or_both_are_right() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let out = bench.join("out");
    fs::create_dir(&out).expect("out");
    for turn in 0..4 {
        write_at(&source, &Random(40 + turn).bytes(1 << 20), noise);
        let fresh = bench.pulled(&[&dump[..], &["--fresh"]].concat(), "fresh.img.gz");
        let start = || {
            let mut pull = bench.pull(&dump, "out");
            pull.stderr(Stdio::piped()).spawn().expect("pull")
        };
        let runs = [start(), start()].map(|pull| pull.wait_with_output().expect("pull"));
        for run in &runs {
            let text = String::from_utf8_lossy(&run.stderr);
            let refused = text.contains("another process is writing it");
            assert_eq!(run.status.success(), !refused, "{text}");
        }
        assert!(runs.iter().any(|run| run.status.success()));
        let names = fs::read_dir(&out).expect("out").count();
        assert_eq!(names, 1, "nothing but the file is left");
        assert!(fs::read(out.join("board.img.gz")).expect("file") == fresh);
    }
}

#[test]
fn a_sparse_image_of_200_gib_is_compared_within_the_memory_of_a_small_one() {
    let bench = require_bench!();
    let (small, folder) = (bench.image().0, bench.join("content"));
    let large = bench.join("large");
    let mkfs = "mkfs.ext4 -q -F -b 4096 -J size=8 -E nodiscard,lazy_itable_init=1 -d";
    common::shell(
        &format!(
            "truncate -s 200G '{0}' && {mkfs} '{1}' '{0}'",
            large.display(),
            folder.display()
        ),
        Limit::secs(60),
    )
    .expect_code(0);
    let peaks = bench.join("peaks");
    bench.board(&format!(
        "(while grep VmHWM /proc/$$/status >> '{}'; do sleep 0.02; done) 2> /dev/null &\nexec sh -c \"exec $line\"",
        peaks.display()
    ));
    let mut most = [0, 0];
    for (source, name) in [(&small, "small.img.gz"), (&large, "large.img.gz")] {
        let dump = [
            "--dump",
            source.to_str().expect("text"),
            "--spool",
            "4M",
            "-j",
            "2",
        ];
        bench.pulled(&dump, name);
        let _ = fs::remove_file(&peaks);
        let host = bench.weighed(&dump, name);
        assert!(bench.number("reused_bytes") as usize >= NOISE_BYTES);
        assert!(bench.number("sent_bytes") < 1 << 20);
        let text = fs::read_to_string(&peaks).expect("peaks");
        let numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        let board: u64 = numbers.max().expect("a peak");
        println!("{name}: host {host} KiB, board {board} KiB");
        if name == "small.img.gz" {
            most = [host, board];
        } else {
            // One bit for each block of the source, and never more than 4 MiB of them.
            assert!(host < most[0] + 4096, "host: {host} KiB, was {}", most[0]);
            assert!(
                board < most[1] + 12_288,
                "board: {board} KiB, was {}",
                most[1]
            );
        }
    }
}

/// As in gzip, a bit at a time.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

#[test]
fn numbers_of_chunks_far_apart_cost_the_host_no_memory() {
    let bench = require_bench!();
    let old = bench.join("old");
    fs::write(&old, Random(5).bytes(300_000)).expect("old");
    // An image of 16 TiB, as the most that is taken.
    let chunks = 1u32 << 27;
    let mut body = vec![0, 1];
    body.extend(0u64.to_le_bytes());
    body.extend([0, 0, 1, 0, 1, b'i', 1, 0]);
    body.extend((u64::from(chunks) << 17).to_le_bytes());
    let mut frames = b"\x89floe\r\n\x1a\x01\0".to_vec();
    frames.extend((body.len() as u32).to_le_bytes());
    frames.extend(body);
    frames.extend(crc32(&frames).to_le_bytes());
    for number in 0..4096 {
        // Zeros, and what is said to be known here, each where nothing else is near.
        let number = number * (chunks / 4096);
        frames.push(1);
        frames.extend([number, 0, 0].map(u32::to_le_bytes).concat());
        frames.push(7);
        frames.extend([number + 2048, 0].map(u32::to_le_bytes).concat());
        frames.extend([number as u8; 16]);
    }
    frames.push(99);
    let lie = bench.join("lie");
    fs::write(&lie, frames).expect("lie");
    bench.board(&format!("cat > /dev/null & exec cat '{}'", lie.display()));
    let pull = bench.pull(&["--since", old.to_str().expect("text")], "one.img.gz");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -v 400000; exec \"$@\"", "sh"])
        .arg(pull.get_program())
        .args(pull.get_args())
        .envs(
            pull.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let run = common::run(&mut shell, Limit::secs(60)).expect_code(1);
    assert!(run.stderr_text().contains("kind of a frame"), "{run}");
}

#[test]
fn a_board_whose_line_was_cut_is_at_work_no_longer() {
    let bench = require_bench!();
    require!(common::is_root(), "root");
    let (source, _) = bench.image();
    let device = LoopDevice::attach(&source, 512);
    let mounted = Mounted::new("ext4", device.path(), "");
    let dump = ["--dump", mounted.dir().to_str().expect("text")];
    bench.pulled(&dump, "one.img.gz");
    // The line breaks while nothing travels, and nobody there waits for floe, which a debug build holds frozen: it thaws and ends,
    // and at once the next pull finds the filesystem free.
    let hold = bench.join("hold").display().to_string();
    fs::write(&hold, "").expect("hold");
    bench.board(&format!(
        "exec 3<&0\n{{ FLOE_TEST_HOLD='{hold}' sh -c \"$line\" <&3 2> /dev/null & }} | {{\n\
         dd bs=100 count=1 2> /dev/null\nfor i in $(seq 500); do [ -e '{hold}.frozen' ] && break; sleep 0.02; done; }}\nexit 255"
    ));
    bench.breaks(&dump, "one.img.gz");
    assert!(Path::new(&format!("{hold}.frozen")).exists());
    bench.board("exec sh -c \"$line\"");
    bench.pulled(&dump, "one.img.gz");
    common::assert_not_frozen(mounted.dir(), "after all");
}

impl Bench {
    fn push(&self, file: &Path, words: &[&str]) -> Run {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut push = common::floe().expect("required before");
        push.arg("push")
            .arg(file)
            .args(["board", "--floe"])
            .arg(common::floe_path().expect("required before"))
            .arg("--report")
            .arg(self.join("report.json"))
            .args(words)
            .env("PATH", format!("{}:{path}", self.join("bin").display()));
        common::run(&mut push, Limit::secs(60))
    }
}

#[test]
fn a_push_sends_only_what_the_target_does_not_hold() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    let image = bench.join("image.gz");
    let mut floe = require_floe!();
    floe.arg("dump").arg(&source).arg("-o").arg(&image);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    common::shell(
        &format!("gzip -dc '{0}' > '{0}.raw'", image.display()),
        Limit::secs(60),
    )
    .expect_code(0);
    let raw = bench.join("image.gz.raw");
    let whole = fs::read(&raw).expect("raw");
    let target = bench.join("target");
    let name = target.to_str().expect("text");
    let changes = [name, "--only-changes", "--overwrite", "--verify"];
    let is_right = || fs::read(&target).expect("target") == whole;
    // A target that is not there yet gets all of it.
    bench.push(&image, &changes).expect_code(0);
    let first = bench.number("sent_bytes");
    assert!(is_right() && first as usize > NOISE_BYTES, "{first}");
    assert_eq!(bench.number("reused_bytes"), 0);
    for file in [&image, &raw] {
        bench.push(file, &changes).expect_code(0);
        let sent = bench.number("sent_bytes");
        assert!(is_right() && sent * 20 < first, "{sent} of {first}");
        assert!(bench.number("reused_bytes") as usize > NOISE_BYTES / 2);
    }
    // What a restore wipes at first is not sent either: content to the end, and nothing else.
    let full = bench.join("full");
    fs::copy(&raw, &full).expect("copy");
    let end = (24 << 20) - 1_500_000;
    write_at(&full, &Random(14).bytes(1_500_000), end);
    fs::copy(&full, &target).expect("copy");
    bench.push(&full, &changes).expect_code(0);
    let sent = bench.number("sent_bytes");
    assert!(sent < 16_384, "{sent}");
    assert!(fs::read(&target).expect("target") == fs::read(&full).expect("full"));
    bench.push(&image, &changes).expect_code(0);
    // The beginning, the middle, what is zeros in the image, and a target that is cut short.
    for at in [0, noise + 2_000_000, 20 << 20] {
        write_at(&target, &Random(4).bytes(3000), at);
        bench.push(&image, &changes).expect_code(0);
        let sent = bench.number("sent_bytes");
        assert!(is_right() && sent * 10 < first, "{at}: {sent} of {first}");
    }
    fs::File::options()
        .write(true)
        .open(&target)
        .and_then(|file| file.set_len(noise + (2 << 20)))
        .expect("cut");
    bench.push(&image, &changes).expect_code(0);
    assert!(is_right() && bench.number("sent_bytes") < first);
    // Without the option, all of it.
    bench.push(&image, &[name, "--overwrite"]).expect_code(0);
    assert!(is_right() && bench.number("reused_bytes") == 0);
    // A refusal is that of restore, and an older floe there gets all of it.
    let run = bench.push(&image, &[name, "--only-changes"]).expect_code(4);
    assert!(run.stderr_text().contains("--overwrite"), "{run}");
    bench.board(
        "case $line in *--frames*) echo 'floe: restore: unknown option --frames-known; see floe restore --help' >&2; exit 2;; esac\nexec sh -c \"$line\"",
    );
    let run = bench.push(&image, &changes).expect_code(0);
    assert!(!run.stderr_text().contains("--frames"), "{run}");
    assert!(is_right() && bench.number("reused_bytes") == 0);
    // A board that says what it does not hold, or not any more, proves nothing: it is sent everything.
    let said = bench.join("said");
    bench.board(&format!("sh -c \"$line\" | tee '{}'", said.display()));
    bench.push(&image, &changes).expect_code(0);
    assert!(bench.number("reused_bytes") > 0);
    write_at(&target, &Random(6).bytes(3000), noise + 1_000_000);
    bench.board(&format!(
        "case $line in *--frames*) cat '{}'; exec sh -c \"$line\" > /dev/null;; esac\nexec sh -c \"$line\"",
        said.display()
    ));
    bench.push(&image, &changes).expect_code(0);
    assert!(is_right() && bench.number("reused_bytes") == 0);
}

#[test]
fn a_push_of_a_snapshot_sends_of_each_entry_only_what_its_target_does_not_hold() {
    let bench = require_bench!();
    let (source, noise) = bench.image();
    let other = bench.join("other");
    fs::copy(&source, &other).expect("copy");
    write_at(&other, &Random(9).bytes(NOISE_BYTES), noise);
    let zip = bench.join("x.zip");
    let mut floe = require_floe!();
    floe.arg("create").arg("-o").arg(&zip);
    floe.arg(format!("a={}", source.display()));
    floe.arg(format!("b.2={}", other.display()));
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let (a, b) = (bench.join("ta"), bench.join("tb"));
    let mut floe = require_floe!();
    let (pair_a, pair_b) = (format!("a={}", a.display()), format!("b.2={}", b.display()));
    floe.arg("restore").arg(&zip).args([&pair_a, &pair_b]);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let whole = [&a, &b].map(|target| fs::read(target).expect("target"));
    let right = || [&a, &b].map(|target| fs::read(target).expect("target")) == whole;
    fs::remove_file(&a).expect("remove");
    fs::remove_file(&b).expect("remove");
    let words = [
        &*pair_a,
        &*pair_b,
        "--only-changes",
        "--overwrite",
        "--verify",
    ];
    // Targets that are not there yet get all of it; afterwards nothing is sent, whichever is named first.
    bench.push(&zip, &words).expect_code(0);
    let first = bench.number("sent_bytes");
    assert!(right() && first as usize > 2 * NOISE_BYTES, "{first}");
    assert_eq!(bench.number("reused_bytes"), 0);
    for words in [
        &words[..],
        &[&*pair_b, &*pair_a, "--only-changes", "--overwrite"],
    ] {
        let run = bench.push(&zip, words).expect_code(0);
        let sent = bench.number("sent_bytes");
        assert!(right() && sent * 20 < first, "{sent} of {first}: {run}");
        assert!(bench.number("reused_bytes") as usize > 2 * NOISE_BYTES - (4 << 20));
        assert!(!run.stderr_text().contains("comes through a pipe"), "{run}");
    }
    // What differs in one of them, at its beginning and its end too.
    for at in [0, noise + 2_000_000, (24 << 20) - 3000] {
        write_at(&b, &Random(4).bytes(3000), at);
        bench.push(&zip, &words).expect_code(0);
        let sent = bench.number("sent_bytes");
        assert!(right() && sent * 20 < first, "{at}: {sent} of {first}");
    }
    // One entry alone: the other one's bytes come, and are nowhere.
    write_at(&b, &Random(5).bytes(3000), noise);
    bench
        .push(&zip, &[&pair_b, "--only-changes", "--overwrite"])
        .expect_code(0);
    assert!(right() && bench.number("sent_bytes") * 3 < first * 2);
    // A refusal is that of restore, and an older floe there gets all of it.
    let run = bench
        .push(&zip, &[&pair_a, "--only-changes"])
        .expect_code(4);
    assert!(run.stderr_text().contains("--overwrite"), "{run}");
    let run = bench
        .push(&zip, &["c=/nowhere", "--only-changes"])
        .expect_code(4);
    assert!(run.stderr_text().contains("has no entry 'c'"), "{run}");
    bench.board(
        "case $line in *--frames*) echo 'floe: restore: --frames-known is for one TARGET' >&2; exit 2;; esac\nexec sh -c \"$line\"",
    );
    let run = bench.push(&zip, &words).expect_code(0);
    assert!(!run.stderr_text().contains("--frames"), "{run}");
    assert!(right() && bench.number("reused_bytes") == 0);
}

#[test]
fn a_target_that_is_too_small_is_refused_before_anything_travels() {
    let bench = require_bench!();
    require!(common::is_root(), "root");
    let (source, _) = bench.image();
    let (gzip, zip) = (bench.join("x.gz"), bench.join("x.zip"));
    for (verb, what, to) in [
        ("dump", source.display().to_string(), &gzip),
        ("create", format!("a={}", source.display()), &zip),
    ] {
        let mut floe = require_floe!();
        floe.args([verb, &what, "-o"]).arg(to);
        common::run(&mut floe, Limit::secs(60)).expect_code(0);
    }
    let small = LoopDevice::filled(&bench.scratch, "small", 16, 0x5a);
    let node = small.path().display().to_string();
    let (taken, pipe) = (bench.join("taken"), bench.join("pipe"));
    common::output("mkfifo", &[&pipe.to_string_lossy()]);
    bench.board(&format!(
        "exec 3<&0; tee '{}' <&3 > '{1}' 2> /dev/null &\nexec sh -c \"$line\" < '{1}' 3<&-",
        taken.display(),
        pipe.display()
    ));
    for (file, target) in [(&gzip, node.clone()), (&zip, format!("a={node}"))] {
        let words = [&*target, "--only-changes", "--overwrite"];
        let run = bench.push(file, &words).expect_code(4);
        assert!(run.stderr_text().contains("is too small"), "{run}");
        assert!(run.stderr_text().contains("nothing was written"), "{run}");
        let length = fs::metadata(&taken).expect("taken").len();
        assert!((1..4096).contains(&length), "{length} bytes were sent");
    }
    let left = fs::read(bench.join("small")).expect("small");
    assert!(left.iter().all(|byte| *byte == 0x5a));
}
