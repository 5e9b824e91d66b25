//! What holds that which is read before the freeze, and what is said where nothing does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::{self, Limit, LoopDevice, LoopFs, Random, Scratch, Spec, field_in, number_in};

#[test]
fn a_raw_file_holds_what_is_read_early_and_is_what_a_stream_would_be() {
    let mut floe = require_floe!();
    let spec = Spec {
        options: "ro",
        ..Spec::default()
    };
    let mut source = require_ok!(LoopFs::make(Spec::default()));
    source.fill(60);
    let noise = source.dir().join("noise");
    fs::write(&noise, Random(5).bytes(12 << 20)).expect("noise");
    // A freeze of what is read-only writes no superblock: two images are one.
    let dir = source.dir().to_string_lossy().into_owned();
    common::output("mount", &["-o", &format!("remount,{}", spec.options), &dir]);
    let scratch = Scratch::new();
    let (direct, stream) = (scratch.join("direct"), scratch.join("stream"));
    let report = scratch.join("report");
    floe.args([
        "dump", &dir, "-z", "none", "--spool", "off", "--sha256", "-o",
    ])
    .arg(&direct)
    .arg("--report")
    .arg(&report);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    if floe::trace::available().is_ok() && common::runner().is_none() {
        assert_eq!(field_in(&report, "precopy"), "traced");
    }
    let early = number_in(&report, "early_bytes");
    let used = number_in(&report, "used_bytes");
    assert!(early >= used, "{early} of {used} bytes were read early");
    let (crc, sum) = (field_in(&report, "crc32"), field_in(&report, "sha256"));

    let mut floe = require_floe!();
    floe.args(["dump", &dir, "-z", "none", "--precopy", "off", "-o"])
        .arg(&stream)
        .arg("--report")
        .arg(&report);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert_eq!(field_in(&report, "crc32"), crc);
    assert_eq!(field_in(&report, "early_bytes"), "0");
    common::output(
        "cmp",
        &[&direct.to_string_lossy(), &stream.to_string_lossy()],
    );
    let found = common::output("sha256sum", &[&direct.to_string_lossy()]);
    assert_eq!(found.split(' ').next(), Some(sum.as_str()));
    let blocks = |path: &Path| fs::metadata(path).expect("stat").blocks();
    assert!(
        blocks(&direct) <= blocks(&stream) + 64,
        "{} and {} blocks",
        blocks(&direct),
        blocks(&stream)
    );
    source.unmount();
}

#[test]
fn a_freeze_that_nothing_makes_short_is_announced_with_what_would() {
    require_floe!();
    let spec = Spec {
        mib: 300,
        ..Spec::default()
    };
    let source = require_ok!(LoopFs::make(spec));
    // Used, and zeros in the image: nobody waits for it.
    let large = source.dir().join("large");
    common::output("fallocate", &["-l", "200M", &large.to_string_lossy()]);
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let dir = source.dir().display();
    let said = |what: &str| {
        let line = format!("{words} {what} | cat > /dev/null");
        let run = common::shell(&line, Limit::secs(60)).expect_code(0);
        run.stderr_text()
    };
    for verb in [
        format!("dump --spool off '{dir}'"),
        format!("create --spool off a='{dir}'"),
    ] {
        let text = said(&verb);
        let notes: Vec<&str> = text
            .lines()
            .filter(|l| l.contains("stays frozen"))
            .collect();
        assert_eq!(notes.len(), 1, "{verb}: {text}");
        for part in ["--frames", "--spool-file", "floe pull", " s"] {
            assert!(notes[0].contains(part), "{verb}: {part}: {text}");
        }
        assert!(text.starts_with("floe: note:"), "before all else: {text}");
    }
    for verb in ["", "--precopy off --spool off", "-q --spool off"] {
        let text = said(&format!("dump {verb} '{dir}'"));
        assert!(!text.contains("stays frozen"), "{verb}: {text}");
    }
}

#[test]
fn a_clone_that_copies_nothing_before_a_long_freeze_says_so() {
    require_floe!();
    let blkio = Path::new("/sys/fs/cgroup/blkio");
    require!(blkio.is_dir(), "the blkio cgroup of version 1");
    let spec = Spec {
        mib: 300,
        ..Spec::default()
    };
    let source = require_ok!(LoopFs::make(spec));
    // As in the test above; and a disk that would take half a minute for it.
    let large = source.dir().join("large");
    common::output("fallocate", &["-l", "200M", &large.to_string_lossy()]);
    let scratch = Scratch::new();
    let image = scratch.join("target");
    common::output("truncate", &["-s", "300M", &image.to_string_lossy()]);
    let target = LoopDevice::attach(&image, 512);
    let group = blkio.join(format!("floe-holders-{}", std::process::id()));
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let said = |more: &str| {
        let line = format!(
            "mkdir -p {group} && echo \"$(lsblk -dno MAJ:MIN {device}) 6000000\" > {group}/blkio.throttle.read_bps_device &&
             echo $$ > {group}/tasks && exec {words} clone {more} --overwrite {dir}={target}",
            group = group.display(),
            device = source.device().display(),
            dir = source.dir().display(),
            target = target.path().display()
        );
        let run = common::shell(&line, Limit::secs(60));
        let _ = fs::remove_dir(&group);
        run.expect_code(0).stderr_text()
    };
    let text = said("--skip-free");
    let notes = text.matches("with --skip-free").count();
    assert_eq!(notes, 1, "{text}");
    for more in ["", "-q --skip-free"] {
        let text = said(more);
        assert!(!text.contains("stays frozen"), "{more}: {text}");
    }
}
