//! What others do to a filesystem, and to floe, while it is read before the freeze: the image is right, or there is none.
//!
//! A reader of frames that takes nothing holds the first round: all of what it took has to be taken before the freeze.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::{self, Limit, LoopDevice, LoopFs, Random, Scratch, Spec};

/// A dump that is held in its first round.
struct Early(Child);

impl Drop for Early {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Early {
    fn start(dir: &Path) -> Option<Self> {
        fs::write(dir.join("noise"), Random(3).bytes(6 << 20)).expect("noise");
        common::output("sync", &["-f", &dir.to_string_lossy()]);
        let mut floe = common::floe()?;
        // With little room between the readers and the sink.
        floe.args(["dump", "--frames", "--spool", "2M"]).arg(dir);
        floe.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = floe.spawn().expect("floe");
        let stdout = child.stdout.as_mut().expect("piped");
        // More than a header: the first of the data.
        stdout.read_exact(&mut [0; 32 << 10]).expect("frames");
        Some(Self(child))
    }

    /// Its reader goes on: exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut stdout = self.0.stdout.take().expect("piped");
        let reader = thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let status = common::wait_for(&mut self.0, Duration::from_secs(60)).expect("it ends");
        let _ = reader.join();
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("stderr");
        (status.code(), said)
    }
}

#[test]
fn a_guardian_that_dies_before_the_freeze_means_that_nothing_is_frozen() {
    let fs = require_ok!(LoopFs::make(Spec::default()));
    require!(common::runner().is_none(), "no runner");
    let early = require_some!(Early::start(fs.dir()), "FLOE_BIN");
    let guardians = common::guardians_of(fs.dir());
    assert_eq!(guardians.len(), 1);
    common::signal(guardians[0], "KILL");
    let (code, said) = early.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("guardian: it died"), "{said}");
    assert!(said.contains("nothing is frozen"), "{said}");
    common::assert_not_frozen(fs.dir(), "without a guardian");
}

#[test]
fn a_freeze_of_somebody_else_before_ours_is_refused_and_stays() {
    let fs = require_ok!(LoopFs::make(Spec::default()));
    require!(common::runner().is_none(), "no runner");
    let early = require_some!(Early::start(fs.dir()), "FLOE_BIN");
    common::freeze(fs.dir());
    let (code, said) = early.end();
    let mut again = Command::new("fsfreeze");
    let again = common::run(again.arg("-f").arg(fs.dir()), Limit::secs(20));
    common::thaw(fs.dir());
    assert!(code == Some(4) || code == Some(1), "{code:?}: {said}");
    assert!(said.contains("frozen by somebody else"), "{said}");
    assert_eq!(again.code, Some(1), "it was thawed: {again}");
}

#[test]
fn a_filesystem_that_grows_while_it_is_read_early_gives_no_image() {
    let spec = Spec {
        kind: "xfs",
        mib: 330,
        mkfs: &["-d", "size=300m"],
        ..Spec::default()
    };
    let fs = require_ok!(LoopFs::make(spec));
    require!(common::runner().is_none(), "no runner");
    require!(common::have("xfs_growfs"), "xfs_growfs");
    let early = require_some!(Early::start(fs.dir()), "FLOE_BIN");
    common::output("xfs_growfs", &[&fs.dir().to_string_lossy()]);
    let (code, said) = early.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("changed its kind, size or uuid"), "{said}");
    common::assert_not_frozen(fs.dir(), "after it grew");
}

#[test]
fn a_btrfs_that_gets_a_second_device_while_it_is_read_early_gives_no_image() {
    let spec = Spec {
        kind: "btrfs",
        mib: 128,
        ..Spec::default()
    };
    let scratch = Scratch::new();
    let fs = require_ok!(LoopFs::make(spec));
    require!(common::runner().is_none(), "no runner");
    let second = LoopDevice::filled(&scratch, "second", 128, 0);
    let early = require_some!(Early::start(fs.dir()), "FLOE_BIN");
    let (device, dir) = (second.path().to_string_lossy(), fs.dir().to_string_lossy());
    common::output("btrfs", &["device", "add", "-f", &device, &dir]);
    let (code, said) = early.end();
    common::assert_not_frozen(fs.dir(), "with two devices");
    drop(fs);
    assert!(code == Some(4) || code == Some(1), "{code:?}: {said}");
    assert!(said.contains("btrfs on several"), "{said}");
}

#[test]
fn an_ext4_that_records_errors_is_read_whole_before_the_freeze() {
    let mut fs = require_ok!(LoopFs::make(Spec::default()));
    fs.unmount();
    let device = fs.device().to_string_lossy().into_owned();
    common::output("tune2fs", &["-E", "force_fsck", &device]);
    fs.mount();
    let scratch = Scratch::new();
    let report = scratch.join("report");
    let mut floe = require_floe!();
    floe.arg("dump").arg(fs.dir()).arg("--report").arg(&report);
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert!(run.stderr_text().contains("records errors"), "{run}");
    let report = fs::read(&report).expect("report");
    let report = floe::json::parse(&report).unwrap_or_else(|_| panic!("the report"));
    let number = |key: &str| report.get(key).and_then(|value| value.number());
    if report.get("precopy").and_then(|word| word.text()) == Some("off") {
        return common::skip("pre-copy");
    }
    // Its free blocks, too: what is read whole in the end is not left to the freeze.
    assert_eq!(number("early_bytes"), Some(64 << 20));
    // What show says is what dump did.
    let mut show = require_floe!();
    let run = common::run(show.arg("show").arg(fs.dir()), Limit::secs(20)).expect_code(0);
    assert!(run.stdout_text().contains("reads  64.0 MiB"), "{run}");
}
