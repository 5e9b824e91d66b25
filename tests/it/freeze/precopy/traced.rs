//! What a trace sees of writes that pass by the filesystem, and what is done where nothing can be traced.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{self, Limit, Mounted, Scratch, field};
use crate::disk::Disk;

use super::held::Held;
use super::rack::Rack;
use super::{floe, require_torture};

/// Where a file begins on its device, in bytes.
fn place(file: &Path) -> u64 {
    let text = common::output("filefrag", &["-v", "-b512", &file.to_string_lossy()]);
    let line = text.lines().find(|line| line.trim().starts_with("0:"));
    let mut parts = line.expect("an extent").split([':', '.']);
    let sector = parts.nth(4).expect("physical").trim();
    sector.parse::<u64>().expect("a number") * 512
}

#[test]
fn what_is_written_past_a_frozen_filesystem_is_seen_whatever_it_is_and_however_it_is_read() {
    require_torture!();
    for tool in ["filefrag", "blkdiscard", "fallocate"] {
        require!(common::have(tool), tool);
    }
    let _serial = common::serial();
    // A partition: of all of a loop device the times of its file would tell.
    // On a disk: what lies in memory knows no zeroing that is no write.
    let table = |_: &Scratch| "label: gpt\nsize=80M\nsize=8M\n".to_owned();
    let disk = require_ok!(Disk::within(Scratch::on_disk(), 100, table, 512));
    let part = disk.part_text(1);
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &part]);
    let mounted = Mounted::new("ext4", &disk.part(1), "");
    let (file, out) = (mounted.dir().join("file"), disk.scratch.join("out"));
    fs::write(&file, common::Random(7).bytes(8 << 20)).expect("file");
    common::output("sync", &["-f", &mounted.dir().to_string_lossy()]);
    // In the middle of a file: nothing that the second look looks at.
    let at = place(&file) + (1 << 20);
    let zeroes = format!("blkdiscard -f -z -o {at} -l 4096 {part}");
    // The same as no plain write, where the device can: no letter of the trace stands for that.
    let punch = format!("fallocate -p -o {at} -l 4096 {part} || {zeroes}");
    let write = format!(
        "dd if=/dev/urandom of={part} bs=4096 count=1 seek={} oflag=direct conv=notrunc status=none",
        at / 4096
    );
    let discard = format!("blkdiscard -f -o {} -l 4096 {part}", 68 << 20);
    let run = |words: &[&str], meanwhile: &str| {
        let held = Held {
            dirs: &[],
            copies: &[],
            pause: Duration::ZERO,
            lies: "",
            meanwhile,
            group: None,
            frames_to: None,
        };
        let out = out.to_string_lossy();
        let mut all = vec!["dump", &part, "--overwrite", "-o", &out];
        all.extend(words);
        // On a machine that is busy the trace may lose something, and says so.
        let mut tries = (0..4).map(|_| held.run(&all));
        tries
            .find(|told| !matches!(told, Ok(told) if told.precopy == "compared"))
            .expect("a trace that loses nothing")
    };
    for words in [&[][..], &["--whole"]] {
        for meanwhile in [&punch, &zeroes, &write] {
            let why = run(words, meanwhile).expect_err(meanwhile);
            assert!(why.starts_with("exit status: 1: "), "{words:?}: {why}");
            assert!(why.contains("was written to while"), "{words:?}: {why}");
        }
        // This a filesystem may still send.
        let told = run(words, &discard).expect("a discard of what is free");
        assert_eq!(told.precopy, "traced");
    }
}

#[test]
fn where_nothing_can_be_traced_contents_are_compared() {
    require_torture!();
    require!(common::have("strace"), "strace");
    let _serial = common::serial();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let report = rack.fs.scratch().join("report");
    // As a kernel without tracefs answers, one under lockdown, and one whose tracefs is read-only.
    for inject in [
        "inject=fsopen,mount:error=ENODEV",
        "inject=mkdirat,mkdir:error=EROFS",
        "inject=mkdirat,mkdir:error=EPERM",
    ] {
        let calls = inject.trim_start_matches("inject=");
        let calls = calls.split(':').next().expect("calls");
        let mut strace = Command::new("strace");
        strace
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={calls}"),
                "-e",
                inject,
            ])
            .arg(env!("CARGO_BIN_EXE_floe"))
            .args(["dump", "--report"])
            .arg(&report)
            .arg(rack.fs.dir())
            .stdin(Stdio::null());
        let run = common::run(&mut strace, Limit::secs(60));
        let text = fs::read_to_string(&report).unwrap_or_default();
        assert_eq!(run.code, Some(0), "{run}");
        let precopy = field(&text, "precopy");
        assert_eq!(precopy.as_deref(), Some("compared"), "{inject}: {text}");
    }
}
