//! Reports that cannot be written, and limits that are too small.

use crate::common::{self, Limit, LoopDevice, LoopFs, Run, Scratch, Spec, run_floe, text};
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use super::{floe, image};

#[test]
fn a_report_that_cannot_be_written_is_no_success() {
    require_mkfs!();
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let packed = text(&scratch.join("packed.gz"));
    run_floe(&["dump", &source, "-o", &packed]).expect_code(0);
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
    let made = require_ok!(LoopFs::make(Spec {
        mib: 16,
        ..Spec::default()
    }));
    made.fill(10);
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 48, &[]));
    let noise = common::Random(7).bytes(600_000);
    fs::write(made.dir().join("noise"), noise).expect("noise");
    common::output("sync", &["-f", &text(made.dir())]);
    let packed = text(&scratch.join("packed.gz"));
    run_floe(&["dump", &source, "-o", &packed]).expect_code(0);
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
    let made = require_ok!(LoopFs::make(Spec {
        kind: "xfs",
        mib: 320,
        ..Spec::default()
    }));
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
        common::sparse(&device_file, 64 << 20);
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

/// A memory cgroup of version 1 or 2, gone with this.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(mib: u64) -> Option<Self> {
        let name = format!("floe-it-{}-{mib}", std::process::id());
        let places = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        places.iter().find_map(|(root, limit)| {
            let group = Self(std::path::Path::new(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(limit), (mib << 20).to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A guardian that ends takes a moment.
        common::wait_until(std::time::Duration::from_secs(5), || {
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

#[test]
fn a_small_memory_cgroup_makes_the_spool_small_and_kills_nobody() {
    drop(require_floe!());
    require!(common::runner().is_none(), "no runner: it needs memory");
    let made = require_ok!(LoopFs::make(Spec {
        mib: 160,
        ..Spec::default()
    }));
    fs::write(made.dir().join("noise"), common::Random(5).bytes(120 << 20)).expect("noise");
    common::output("sync", &["-f", &text(made.dir())]);
    let scratch = Scratch::new();
    let floe = common::floe_shell_words().expect("required before");
    // The guardian's copy of the executable counts, and one with debug information is large.
    let own = common::floe_path().and_then(|path| fs::metadata(path).ok());
    let mib = match own.map_or(0, |meta| meta.len() >> 20) {
        0..4 => 28,
        _ => 128,
    };
    for options in ["--spool 200M --precopy off", "--spool 1G", ""] {
        let group = require_some!(MemoryGroup::new(mib), "a memory cgroup");
        let script = format!(
            "(echo $BASHPID > '{}/cgroup.procs'; exec {floe} dump '{}' {options}) | {{ sleep 2; cat; }} > '{}'",
            group.0.display(),
            made.dir().display(),
            scratch.join("image.gz").display()
        );
        let mut shell = Command::new("bash");
        shell.args(["-e", "-o", "pipefail", "-c", &script]);
        let run = common::run(&mut shell, Limit::secs(120));
        common::assert_not_frozen(made.dir(), "in a small group");
        assert_eq!(run.code, Some(0), "{mib} MiB, {options}: {run}");
    }
}
