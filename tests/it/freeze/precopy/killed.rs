//! Killed at any moment of pre-copy.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, LoopDevice, Random};
use crate::torture::{Torture, rounds, seed};
use crate::tracefs::instances_of;

use super::rack::Rack;
use super::{floe, require_torture};

#[test]
fn killed_at_any_moment_of_pre_copy_it_leaves_nothing() {
    require_torture!();
    let _serial = common::serial();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let file = rack.fs.scratch().join("target");
    let length = fs::metadata(rack.fs.image()).expect("image").len();
    common::sparse(&file, length);
    let target = LoopDevice::attach(&file, 512);
    let out = rack.fs.scratch().join("out");
    let dir = rack.fs.dir().to_owned();
    let pair = format!("{}={}", dir.display(), target.path().display());
    let out_text = out.to_string_lossy().into_owned();
    let source = dir.to_string_lossy().into_owned();
    let ways: [&[&str]; 3] = [
        &["dump", &source, "-o", &out_text, "--overwrite"],
        &["clone", &pair, "--overwrite", "--verify"],
        &[
            "dump",
            &source,
            "-o",
            &out_text,
            "--overwrite",
            "--spool",
            "8M",
            "-z",
            "none",
        ],
    ];
    let start = |words: &[&str]| {
        let mut command = floe().expect("looked for before");
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        command.spawn().expect("floe")
    };
    let writer = Torture::start(&dir, seed(), Duration::from_millis(5));
    let mut random = Random(seed());
    let mut lasts = [Duration::ZERO; 3];
    for (words, last) in ways.iter().zip(&mut lasts) {
        let began = Instant::now();
        let status = common::wait_for(&mut start(words), Duration::from_secs(60)).expect("it ends");
        assert!(status.success(), "{words:?}");
        *last = began.elapsed();
    }
    let rounds = if rounds() > 1 { rounds() * 10 } else { 8 };
    let mut killed = 0;
    for round in 0..rounds {
        let number = (round % 3) as usize;
        let _ = fs::remove_file(&out);
        // What a clone has not finished must not look like anything.
        let beginning = File::options().write(true).open(target.path());
        beginning
            .and_then(|file| file.write_all_at(&[0; 1 << 20], 0))
            .expect("target");
        let mut child = start(ways[number]);
        let pid = child.id();
        let most = lasts[number].as_micros() as u64;
        thread::sleep(Duration::from_micros(random.below(most)));
        let over = child.try_wait().expect("wait").is_some();
        common::signal(pid, "KILL");
        let _ = common::wait_for(&mut child, Duration::from_secs(10)).expect("dead");
        let what = format!("round {round}, {:?}", ways[number]);
        let frozen = common::frozen_for(&dir);
        assert!(frozen < Duration::from_secs(1), "{what}: {frozen:?}");
        let gone = common::wait_until(Duration::from_secs(3), || instances_of(pid).is_empty());
        assert!(gone, "{what}: {:?}", instances_of(pid));
        if over {
            continue;
        }
        killed += 1;
        match number {
            1 => {
                let found = common::blkid(target.path(), "TYPE");
                // In its last instant it is whole.
                if found == "ext4" {
                    common::output("e2fsck", &["-fn", &target.path().to_string_lossy()]);
                } else {
                    assert_eq!(found, "", "{what}");
                }
            }
            // In its last instant it is whole.
            _ if out.exists() => {
                let verify = floe()
                    .expect("looked for before")
                    .arg("verify")
                    .arg(&out)
                    .status();
                assert!(
                    verify.is_ok_and(|status| status.success()),
                    "{what}: half an image"
                );
            }
            _ => {}
        }
    }
    drop(writer);
    eprintln!("{killed} of {rounds} were killed while they ran");
    assert!(killed > 0);
    // What they left is in nobody's way.
    for words in ways {
        let _ = fs::remove_file(&out);
        let status = common::wait_for(&mut start(words), Duration::from_secs(60)).expect("it ends");
        assert!(status.success(), "{words:?}");
    }
}
