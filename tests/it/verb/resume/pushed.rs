//! The same of a push: what the target holds is not sent.

use std::fs;

use crate::common::{self, Limit, LoopDevice, Random, write_at};

use super::{NOISE_BYTES, require_bench};

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

/// An ssh whose stdout is closed early may lose what the board says at its end: so it is read to its end.
#[test]
fn an_ssh_that_has_more_on_stdout_at_the_end_does_not_lose_the_boards_report() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let image = bench.join("image.gz");
    let mut floe = require_floe!();
    floe.arg("dump").arg(&source).arg("-o").arg(&image);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let said = bench.join("said");
    bench.board(&format!(
        "sh -c \"$line\" 2> '{0}'; code=$?; sleep 1; printf more && cat '{0}' >&2; exit $code",
        said.display()
    ));
    let target = bench.join("target");
    let changes = [target.to_str().expect("text"), "--only-changes"];
    bench.push(&image, &changes).expect_code(0);
    assert!(bench.number("sent_bytes") > 0);
}

/// A filesystem may be smaller than what it lies on; the board sees only the beginning of what comes.
#[test]
fn a_target_too_small_for_an_image_that_begins_smaller_is_refused_by_the_board() {
    let bench = require_bench!();
    require!(common::is_root(), "root");
    let raw = bench.join("raw");
    common::sparse(&raw, 12 << 20);
    common::output("mke2fs", &["-q", "-F", &raw.to_string_lossy()]);
    let file = fs::File::options().write(true).open(&raw);
    file.and_then(|file| file.set_len(24 << 20))
        .expect("longer");
    let image = bench.join("image.gz");
    let mut floe = require_floe!();
    floe.arg("dump").arg(&raw).arg("-o").arg(&image);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let small = LoopDevice::filled(&bench.scratch, "small", 16, 0x5a);
    let node = small.path().display().to_string();
    let before = fs::read(small.path()).expect("device");
    for file in [&image, &raw] {
        let run = bench.push(file, &[&node]).expect_code(4);
        assert!(run.stderr_text().contains("is too small"), "{run}");
        assert!(fs::read(small.path()).expect("device") == before);
    }
    // An older floe there learns it at the end.
    bench.board(
        "case $line in *--length*) echo 'floe: restore: unknown option --length; see floe restore --help' >&2; exit 2;; esac\nexec sh -c \"$line\"",
    );
    let run = bench.push(&image, &[&node]).expect_code(1);
    let said = run.stderr_text();
    assert!(
        said.contains("larger than the target") && !said.contains("--length"),
        "{run}"
    );
    let target = bench.join("target");
    bench
        .push(&image, &[target.to_str().expect("text")])
        .expect_code(0);
    assert_eq!(fs::metadata(&target).expect("target").len(), 24 << 20);
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
