//! `--frames`: what is at the other end of the pipe holds what is read before the freeze, and makes the standard format of it.

use crate::boards::{Lab, Server, Setup};
use crate::common::{self, Limit, LoopFs, Random, Scratch, Spec, Writer, number_in};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A small ext4 filesystem with some content that cannot be packed and some that can.
fn ext4(mib: u64, noise: usize) -> Result<LoopFs, String> {
    let fs = LoopFs::make(Spec {
        mib,
        ..Spec::default()
    })?;
    fs.fill(20);
    fs::write(fs.dir().join("noise"), Random(7).bytes(noise)).expect("write");
    Ok(fs)
}

macro_rules! require_ext4 {
    ($mib:expr, $noise:expr) => {
        match ext4($mib, $noise) {
            Ok(fs) => fs,
            Err(missing) => {
                common::skip(&missing);
                return;
            }
        }
    };
}

fn pipeline(script: &str) -> common::Run {
    common::shell(script, Limit::secs(60))
}

#[test]
fn restore_verify_and_artifact_take_frames_as_the_image_or_snapshot_that_they_stand_for() {
    let floe = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let mut fs = require_ext4!(48, 6 << 20);
    let scratch = Scratch::new();
    let dir = scratch.path().display().to_string();
    let (mount, device) = (
        fs.dir().display().to_string(),
        fs.device().display().to_string(),
    );
    for how in ["auto", "compare", "off"] {
        let run = pipeline(&format!(
            "{floe} dump --frames --precopy {how} {mount} | {floe} verify -"
        ));
        let text = run.expect_code(0).stdout_text();
        assert!(
            text.contains("good gzip image, sent in frames") && text.contains("ext4"),
            "{text}"
        );
    }
    common::assert_not_frozen(fs.dir(), "after frames");
    // Held unmounted: the same each time.
    fs.unmount();
    pipeline(&format!(
        "{floe} dump {device} | gzip -dc > {dir}/plain
         {floe} dump --frames {device} | {floe} restore - {dir}/image
         cmp {dir}/plain {dir}/image
         {floe} dump --frames --whole --level 9 {device} | {floe} restore - {dir}/whole
         cmp {device} {dir}/whole
         {floe} create --frames a={device} -o - | {floe} restore - a={dir}/entry
         cmp {dir}/plain {dir}/entry
         {floe} create --frames a={device} | {floe} verify -
         {floe} dump --frames {device} | {floe} artifact - -n one -t board -o {dir}/one.mender
         {floe} verify {dir}/one.mender"
    ))
    .expect_code(0);
    let names = fs::read_dir(scratch.path()).expect("folder").count();
    assert_eq!(names, 5, "nothing else is left");
}

#[test]
fn frames_are_not_kept_and_not_taken_for_an_image() {
    let floe = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let fs = require_ext4!(16, 1 << 20);
    let scratch = Scratch::new();
    let dir = scratch.path().display().to_string();
    let mount = fs.dir().display().to_string();
    for wrong in [
        format!("dump --frames {mount} > {dir}/file"),
        format!("dump --frames {mount} -o {dir}/out"),
        format!("dump --frames -z none {mount} | cat"),
        format!("create --frames a={mount} -o {dir}/"),
    ] {
        let run = pipeline(&format!("{floe} {wrong}")).expect_code(2);
        assert!(
            run.stderr_text().contains("--frames is for a pipe"),
            "{run}"
        );
    }
    assert_eq!(fs::metadata(scratch.join("file")).expect("file").len(), 0);
    pipeline(&format!(
        "{floe} dump --frames {mount} | cat > {dir}/frames"
    ))
    .expect_code(0);
    let run = pipeline(&format!("{floe} show {dir}/frames")).expect_code(3);
    assert!(
        run.stderr_text().contains("floe dump --frames sends"),
        "{run}"
    );
    // Cut short, or with something behind it: nothing was written, and nothing is left.
    let all = fs::read(scratch.join("frames")).expect("frames");
    for bytes in [
        &all[..all.len() / 2],
        &all[..all.len() - 1],
        &[&all[..], b"x"].concat(),
    ] {
        let mut floe = require_floe!();
        let run = common::run_with_input(
            floe.args(["restore", "-"]).arg(scratch.join("target")),
            bytes,
            Limit::secs(60),
        )
        .expect_code(3);
        assert!(run.stderr_text().contains("nothing was written"), "{run}");
        assert!(!scratch.join("target").exists());
    }
    let mut newer = all.clone();
    newer[8] = 2;
    let mut floe = require_floe!();
    let run = common::run_with_input(floe.args(["verify", "-"]), &newer, Limit::secs(60));
    let run = run.expect_code(3);
    assert!(
        run.stderr_text().contains("same floe at both ends"),
        "{run}"
    );
    common::assert_not_frozen(fs.dir(), "after frames");
}

/// Copies from one to the other at this pace; whoever goes away ends it.
fn trickle(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    bytes_per_second: f64,
) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let (start, mut sum) = (Instant::now(), 0u64);
        let mut buffer = [0; 32 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
            sum += count as u64;
            let due = Duration::from_secs_f64(sum as f64 / bytes_per_second);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        sum
    })
}

fn spawned(command: &mut std::process::Command) -> Child {
    command.spawn().expect("floe")
}

#[test]
fn a_slow_pipe_costs_no_frozen_time_while_files_are_written() {
    let fs = require_ext4!(96, 30 << 20);
    let scratch = Scratch::new();
    let report = scratch.join("report.json");
    let writer = Writer::start(fs.dir());
    let file = fs::File::options()
        .write(true)
        .open(fs.dir().join("noise"))
        .expect("noise");
    let (mut from, mut to) = (require_floe!(), require_floe!());
    let mut from = spawned(
        from.args(["dump", "--frames", "--spool", "8M", "--report"])
            .arg(&report)
            .arg(fs.dir())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let target = scratch.join("image");
    let mut to = spawned(
        to.args(["restore", "-"])
            .arg(&target)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let pace = trickle(
        from.stdout.take().expect("stdout"),
        to.stdin.take().expect("stdin"),
        8e6,
    );
    // What was read early is written over.
    thread::sleep(Duration::from_secs(1));
    file.write_all_at(&[0x5a; 300_000], 50_000).expect("write");
    file.sync_all().expect("sync");
    assert!(
        common::wait_for(&mut from, Duration::from_secs(60))
            .expect("dump")
            .success()
    );
    let sent = pace.join().expect("pace");
    assert!(
        common::wait_for(&mut to, Duration::from_secs(60))
            .expect("restore")
            .success()
    );
    drop(writer);
    let (frozen_ms, total_ms) = (
        number_in(&report, "frozen_ms"),
        number_in(&report, "total_ms"),
    );
    assert!(sent > 28 << 20, "{sent}");
    assert!(total_ms > 3000, "{total_ms}");
    assert!(frozen_ms * 4 < total_ms, "{frozen_ms} of {total_ms} ms");
    common::fsck("ext4", &target);
    let image = fs::read(&target).expect("image");
    let mark = [0x5a; 200_000];
    assert!(
        image
            .chunks(4096)
            .filter(|block| *block == &mark[..4096])
            .count()
            >= 70
    );
}

#[test]
fn a_receiver_that_is_killed_leaves_nothing() {
    let fs = require_ext4!(32, 10 << 20);
    let scratch = Scratch::new();
    let (mut from, mut to) = (require_floe!(), require_floe!());
    let mut from = spawned(
        from.args(["dump", "--frames"])
            .arg(fs.dir())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let mut to = spawned(
        to.args(["restore", "-"])
            .arg(scratch.join("image"))
            .stdin(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let pace = trickle(
        from.stdout.take().expect("stdout"),
        to.stdin.take().expect("stdin"),
        4e6,
    );
    thread::sleep(Duration::from_millis(900));
    assert!(to.try_wait().expect("restore").is_none(), "it is at it");
    common::signal(to.id(), "KILL");
    let _ = to.wait();
    let _ = pace.join();
    let code = common::wait_for(&mut from, Duration::from_secs(20))
        .expect("dump")
        .code();
    assert_eq!(code, Some(1), "a closed pipe");
    assert_eq!(fs::read_dir(scratch.path()).expect("folder").count(), 0);
    common::assert_not_frozen(fs.dir(), "after the kill");
}

// ---- pull -----------------------------------------------------------------------------------------------------------

/// Puts a script in the place of the board's floe, which is `$F` in it.
fn wrapped(lab: &Lab, name: &str, script: &str) -> String {
    let wrapper = lab.join(name);
    let text = format!("#!/bin/sh\nF='{}'\n{script}\n", lab.join("floe").display());
    fs::write(&wrapper, text).expect("wrapper");
    format!(
        "cp '{}' /run/bin/w; chmod 755 /run/bin/w; mv /run/bin/w /run/bin/floe",
        wrapper.display()
    )
}

/// What comes out of floe, at a few MB a second.
const SLOWLY: &str = r#"{ "$F" "$@"; echo $? > /run/code; } | {
    while n=$(dd bs=131072 count=1 iflag=fullblock 2>&1 >&3 | sed -n 's/^\([0-9]*\) bytes.*/\1/p'); [ "$n" -gt 0 ]; do
        sleep 0.02
    done
} 3>&1
exit $(cat /run/code)"#;

#[test]
fn pull_has_the_host_hold_what_a_slow_line_brings() {
    drop(require_floe!());
    let mut lab = require_lab!();
    let before = wrapped(&lab, "slow", SLOWLY);
    require_board!(
        lab,
        Setup {
            server: Server::OpenSsh,
            mib: 64,
            before: &before,
        }
    );
    lab.wait_until_up();
    let data = lab.boards[0].data.dir().to_owned();
    fs::write(data.join("noise"), Random(5).bytes(20 << 20)).expect("noise");
    let writer = Writer::start(&data);
    let (out, report) = (lab.join("out"), lab.join("report.json"));
    fs::create_dir(&out).expect("out");
    common::run(
        lab.floe("pull")
            .args(["10.77.0.1", "--dump", "/mnt", "--spool", "4M", "--report"])
            .arg(&report)
            .arg("-o")
            .arg(&out),
        Limit::secs(60),
    )
    .expect_code(0);
    drop(writer);
    let (frozen_ms, total_ms) = (
        number_in(&report, "frozen_ms"),
        number_in(&report, "total_ms"),
    );
    assert!(total_ms > 2000, "{total_ms}");
    assert!(frozen_ms * 4 < total_ms, "{frozen_ms} of {total_ms} ms");
    let image = out.join("10.77.0.1.img.gz");
    let raw = lab.join("raw");
    common::shell(
        &format!("gzip -dc '{}' > '{}'", image.display(), raw.display()),
        Limit::secs(60),
    )
    .expect_code(0);
    common::fsck("ext4", &raw);

    // Whoever kills the host in the middle leaves of what was held only what the next pull goes on from.
    let mut pull = spawned(
        lab.floe("pull")
            .args(["10.77.0.1", "--dump", "/mnt", "-q", "-o"])
            .arg(out.join("killed.img.gz")),
    );
    thread::sleep(Duration::from_millis(1500));
    assert!(pull.try_wait().expect("pull").is_none(), "it is at it");
    common::signal(pull.id(), "KILL");
    let _ = pull.wait();
    for entry in fs::read_dir(&out).expect("out").flatten() {
        let name = entry.file_name();
        let length = entry.metadata().expect("metadata").len();
        let known = ["10.77.0.1.img.gz", "killed.img.gz.resume"];
        let is_known = known.iter().any(|known| name == *known);
        assert!(is_known || length == 0, "{name:?}");
    }
    let thawed = common::write_ends_within(&data, Duration::from_secs(10));
    assert!(thawed, "the board is frozen");
}

#[test]
fn pull_makes_of_frames_what_comes_without_them_byte_for_byte() {
    drop(require_floe!());
    let mut lab = require_lab!();
    let old = "case \"$*\" in *--frames*) echo 'floe: dump: unknown option --frames; see floe dump --help' >&2; exit 2;; esac\nexec \"$F\" \"$@\"";
    let small = "case \"$*\" in *--frames*) echo 'floe: --frames: this floe was built without frames' >&2; exit 4;; esac\nexec \"$F\" \"$@\"";
    let old = wrapped(&lab, "old", old);
    let small = wrapped(&lab, "small", small);
    for before in ["", &old, &small] {
        require_board!(
            lab,
            Setup {
                mib: 8,
                before,
                ..Setup::default()
            }
        );
    }
    lab.wait_until_up();
    let mut still = require_ext4!(24, 3 << 20);
    still.unmount();
    let device = still.device().display().to_string();
    let pull = |more: &[&str], to: &Path| {
        let mut pull = lab.floe("pull");
        common::run(pull.args(more).arg("-o").arg(to), Limit::secs(60)).expect_code(0)
    };
    let files: Vec<Vec<u8>> = [
        ("10.77.0.1", "auto"),
        ("10.77.0.1", "off"),
        ("10.77.0.2", "auto"),
        ("10.77.0.3", "auto"),
    ]
    .iter()
    .map(|(board, precopy)| {
        let file = lab.join("one.img.gz");
        let run = pull(&[board, "--dump", &device, "--precopy", precopy], &file);
        assert!(!run.stderr_text().contains("--frames"), "{run}");
        fs::read(file).expect("file")
    })
    .collect();
    assert!(files.iter().all(|file| *file == files[0]));
    let run = pull(&["10.77.0.1", "--dump", &device, "-q"], Path::new("-"));
    assert!(run.stdout == files[0]);
    // The entry of a snapshot is what stands between gzip's header and its trailer.
    let zip = lab.join("two.zip");
    let (one, two) = (format!("a={device}"), "b=/mnt");
    pull(&["10.77.0.1", "--create", &one, two], &zip);
    let all = fs::read(&zip).expect("zip");
    let entry = &files[0][10..files[0].len() - 8];
    assert!(all.windows(64).any(|window| window == &entry[..64]));
    let mut floe = require_floe!();
    common::run(floe.arg("verify").arg(&zip), Limit::secs(60)).expect_code(0);
    common::shell(&format!("unzip -tq '{}'", zip.display()), Limit::secs(60)).expect_code(0);
    let artifact = lab.join("one.mender");
    pull(
        &[
            "10.77.0.1",
            "--dump",
            "/mnt",
            "--artifact",
            "-n",
            "x",
            "-t",
            "y",
        ],
        &artifact,
    );
    let mut floe = require_floe!();
    common::run(floe.arg("verify").arg(&artifact), Limit::secs(60)).expect_code(0);
}

#[test]
fn a_reader_that_knows_the_length_of_a_raw_image_may_go_with_its_last_byte() {
    let fs = require_ext4!(64, 10 << 20);
    let floe = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let source = fs.dir().display();
    for _ in 0..10 {
        let script = format!("{floe} dump -q -z none {source} | head -c 67108864 > /dev/null");
        pipeline(&script).expect_code(0);
    }
    // One that goes before is told of.
    let script = format!("{floe} dump -q -z none {source} | head -c 60000000 > /dev/null");
    let run = pipeline(&script).expect_code(1);
    assert!(
        run.stderr_text().contains("the reader closed the pipe"),
        "{run}"
    );
}
