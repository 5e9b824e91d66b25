//! What has not changed is not sent, and nothing is taken for unchanged that is not.

use std::fs;

use crate::common::{self, Limit, LoopFs, Random, Spec, write_at};

use super::{NOISE_BYTES, require_bench};

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
fn a_board_that_sends_a_snapshot_for_an_image_is_not_believed() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let good = bench.pulled(&dump, "one.img.gz");
    // A report as a dump's, of what create sends.
    bench.board(&format!(
        "case $line in *dump*) line=$(echo \"$line\" | sed 's/ dump / create /; s, -- , -- a=,')\n\
         {{ sh -c \"$line\" 2>&1 >&3 | sed 's/^{{/{{\"source\":\"{}\",\"map\":\"used\",\"sha256\":\"{}\",\"crc32\":\"00000000\",/' >&2; }} 3>&1; exit;; esac\nexec sh -c \"$line\"",
        source.display().to_string().replace('/', "\\/"),
        "0".repeat(64)
    ));
    for name in ["one.img.gz", "new.img.gz"] {
        let run = bench.breaks(&dump, name);
        assert!(run.stderr_text().contains("before the stream"), "{run}");
    }
    assert!(fs::read(bench.join("one.img.gz")).expect("file") == good);
    assert!(!bench.join("new.img.gz").exists());
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
    let fs = require_ok!(LoopFs::make(Spec {
        mib: 32,
        ..Spec::default()
    }));
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
