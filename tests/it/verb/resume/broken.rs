//! Pulls that broke off go on, whatever became of what they left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use crate::common::{self, Limit, LoopDevice, Mounted, Random, write_at};

use super::{NOISE_BYTES, Small, flip, require_bench};

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
fn what_an_interrupted_pull_left_may_itself_be_cut_off() {
    let bench = require_bench!();
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let fresh = bench.pulled(&dump, "fresh.img.gz");
    let left = bench.join("cut.img.gz.resume");
    // As a power cut leaves a file: what comes next is put where the rest of its last chunk was to be, and gets there before that
    // chunk comes anew, as one in front is damaged, too.
    for cut in 1..6 {
        bench.cut(3 << 20);
        bench.breaks(&dump, "cut.img.gz");
        let file = fs::File::options().write(true).open(&left).expect("left");
        let length = file.metadata().expect("left").len();
        file.set_len(length - cut * 20_000).expect("cut");
        flip(&left, 4);
        bench.board("exec sh -c \"$line\"");
        assert!(bench.pulled(&dump, "cut.img.gz") == fresh, "{cut}");
        assert!(bench.number("reused_bytes") > 1 << 20, "{cut}");
        fs::remove_file(bench.join("cut.img.gz")).expect("remove");
    }
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
        assert!(!text.contains("os error"), "{turn}: {text}");
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
fn that_what_is_held_may_not_fit_is_said_before_and_a_stream_goes_on_without() {
    let bench = require_bench!();
    require!(common::is_root(), "root");
    let (source, _) = bench.image();
    let dump = ["--dump", source.to_str().expect("text")];
    let fresh = bench.pulled(&dump, "fresh.img.gz");
    let small = Small::of(2 << 20);
    let floe = common::floe_path().expect("required before");
    let restored = |words: &str| {
        let (floe, source) = (floe.display(), source.display());
        let to = small.0.join("one.img");
        let script = format!(
            "'{floe}' dump -q --frames '{source}' 2> /dev/null | '{floe}' restore {words} - '{}'",
            to.display()
        );
        common::shell(&script, Limit::secs(60))
    };
    let note = "are free, and what comes is held there";
    let text = restored("").expect_code(1).stderr_text();
    let (said, hurt) = (text.find(note), text.find("No space left"));
    assert!(said.is_some() && said < hurt, "{text}");
    let text = restored("-q").expect_code(1).stderr_text();
    assert!(!text.contains(note), "{text}");
    assert_eq!(small.names(), [""; 0]);

    let streamed = || {
        let mut pull = bench.pull(&dump, "-");
        common::run(pull.env("TMPDIR", small.0.path()), Limit::secs(60)).expect_code(0)
    };
    let run = streamed();
    let text = run.stderr_text();
    assert!(run.stdout == fresh, "{text}");
    let (said, again) = (text.find(note), text.find("is sent once more"));
    assert!(said.is_some() && said < again, "{text}");
    // Where it fits whatever it is, there is nothing to say.
    small.mount("remount,size=64M");
    let run = streamed();
    assert!(
        run.stdout == fresh && !run.stderr_text().contains("note:"),
        "{run}"
    );
    restored("").expect_code(0);
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
fn a_board_whose_line_was_cut_is_at_work_no_longer() {
    let bench = require_bench!();
    require!(
        common::is_root() && cfg!(debug_assertions),
        "root, a debug build"
    );
    let (source, _) = bench.image();
    let device = LoopDevice::attach(&source, 512);
    let mounted = Mounted::new("ext4", device.path(), "");
    let dump = ["--dump", mounted.dir().to_str().expect("text")];
    bench.pulled(&dump, "one.img.gz");
    // The line breaks while nothing travels, and nobody there waits for floe, which a debug build holds frozen: it thaws and ends,
    // and at once the next pull finds the filesystem free.
    let hold = bench.join("hold").display().to_string();
    fs::write(&hold, "").expect("hold");
    let (usual, debug) = (
        common::floe_path().expect("required before"),
        env!("CARGO_BIN_EXE_floe"),
    );
    bench.board(&format!(
        "line=$(echo \"$line\" | sed 's,{},{debug},')\nexec 3<&0\n{{ FLOE_TEST_HOLD='{hold}' sh -c \"$line\" <&3 2> /dev/null & }} | {{\n\
         dd bs=100 count=1 2> /dev/null\nfor i in $(seq 500); do [ -e '{hold}.frozen' ] && break; sleep 0.02; done; }}\nexit 255",
        usual.display()
    ));
    bench.breaks(&dump, "one.img.gz");
    assert!(Path::new(&format!("{hold}.frozen")).exists());
    bench.board("exec sh -c \"$line\"");
    bench.pulled(&dump, "one.img.gz");
    common::assert_not_frozen(mounted.dir(), "after all");
}
