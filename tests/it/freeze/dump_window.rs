//! `floe dump` in the frozen window, beside `guard_dump`: killed at random moments by every signal, raced by another freezer,
//! below a loop filesystem, and watched for any use of the heap.
//!
//! To hold the window open, the reader of the pipe stops reading and the spool is off: then the last blocks cannot be read, and the
//! filesystem stays frozen until something ends it.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::common::{self, Limit, LoopFs, Random, Spec};

/// A filesystem with enough incompressible data to fill every buffer, or a skip.
fn large() -> Option<LoopFs> {
    let fs = match LoopFs::make(Spec {
        mib: 96,
        ..Spec::default()
    }) {
        Ok(fs) => fs,
        Err(missing) => {
            common::skip(&missing);
            return None;
        }
    };
    fs::write(fs.dir().join("noise"), Random(7).bytes(48 << 20)).expect("noise");
    common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
    Some(fs)
}

/// A dump whose output nobody reads beyond the first bytes.
struct Stalled {
    child: Child,
    stdout: ChildStdout,
    dir: std::path::PathBuf,
}

impl Stalled {
    /// Starts it and waits until the filesystem is frozen.
    fn start(fs: &LoopFs, args: &[&str]) -> Option<Stalled> {
        let mut command = common::floe()?;
        let mut child = command
            .args(["dump", "--spool", "off"])
            .args(args)
            .arg(fs.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("floe");
        let mut stdout = child.stdout.take().expect("piped");
        // The gzip header, then the first of the data: from here on it is frozen.
        stdout.read_exact(&mut [0; 4096]).expect("first bytes");
        Some(Stalled {
            child,
            stdout,
            dir: fs.dir().to_owned(),
        })
    }

    /// Waits for the end; gives the code or the signal, and stderr.
    fn end(&mut self, limit: Duration) -> (Option<i32>, Option<i32>, String) {
        let status = common::wait_for(&mut self.child, limit)
            .unwrap_or_else(|| panic!("floe {} does not end", self.child.id()));
        let mut text = String::new();
        let _ = self
            .child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut text);
        (status.code(), status.signal(), text)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        common::thaw(&self.dir);
    }
}

#[test]
fn a_stalled_dump_holds_the_filesystem_frozen_or_these_tests_test_nothing() {
    let fs = require_some!(large(), "ext4");
    let stalled = require_some!(Stalled::start(&fs, &[]), "FLOE_BIN");
    assert!(!common::write_ends_within(
        fs.dir(),
        Duration::from_millis(500)
    ));
    drop(stalled);
}

#[test]
fn killed_at_random_moments_it_never_leaves_the_filesystem_frozen_nor_exits_0() {
    let fs = require_some!(large(), "ext4");
    let rounds = match std::env::var("FLOE_CAMPAIGN") {
        Ok(_) => 500,
        Err(_) if common::runner().is_some() => 15,
        Err(_) => 60,
    };
    let mut random = Random(0x5eed ^ u64::from(std::process::id()));
    for round in 0..rounds {
        let name = ["KILL", "TERM", "INT", "HUP"][round % 4];
        let flowing = round % 2 == 0;
        let mut command = require_floe!();
        command
            .args(["dump", "--spool", "off"])
            .arg(fs.dir())
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command
            .stdout(if flowing {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .spawn()
            .expect("floe");
        std::thread::sleep(Duration::from_micros(random.below(120_000)));
        let over = child.try_wait().expect("wait").is_some();
        common::signal(child.id(), name);
        let status = common::wait_for(&mut child, Duration::from_secs(10)).expect("dead");
        assert!(
            over || !status.success(),
            "round {round} {name}: exit 0 although killed"
        );
        common::assert_not_frozen(fs.dir(), &format!("round {round}, {name}"));
    }
}

#[test]
fn a_thaw_by_somebody_else_fails_without_a_trailer_even_if_it_is_frozen_again() {
    for refreeze in [false, true] {
        let fs = require_some!(large(), "ext4");
        let mut stalled = require_some!(Stalled::start(&fs, &[]), "FLOE_BIN");
        common::output("fsfreeze", &["-u", &fs.dir().to_string_lossy()]);
        fs::write(
            fs.dir().join("in between"),
            b"written while floe believed it frozen",
        )
        .expect("write");
        common::output("sync", &["-f", &fs.dir().to_string_lossy()]);
        if refreeze {
            common::freeze(fs.dir());
        }
        let mut rest = Vec::new();
        stalled.stdout.read_to_end(&mut rest).expect("the rest");
        let (code, _, stderr) = stalled.end(Duration::from_secs(10));
        common::thaw(fs.dir());
        assert_eq!(code, Some(1), "refrozen: {refreeze}: {stderr}");
        let trailer = &rest[rest.len().saturating_sub(10)..];
        assert_ne!(trailer.get(..2), Some(&[3, 0][..]), "the stream was ended");
    }
}

#[test]
fn a_loop_filesystem_in_a_file_of_the_dumped_one_goes_on_afterwards() {
    let outer = require_some!(large(), "ext4");
    let file = outer.dir().join("inner.img");
    drop(fs::File::create(&file).expect("file"));
    common::output("truncate", &["-s", "16M", &file.to_string_lossy()]);
    common::output("mke2fs", &["-q", "-F", &file.to_string_lossy()]);
    let inner = common::Mounted::new("ext4", &file, "rw");
    let writer = common::Writer::start(inner.dir());
    let run = common::run(
        require_floe!()
            .args(["dump", "-o"])
            .arg(outer.scratch().join("x.gz"))
            .arg(outer.dir()),
        Limit::secs(60),
    )
    .expect_code(0);
    drop(run);
    drop(writer);
    common::assert_not_frozen(inner.dir(), "after a dump of the filesystem below");
    common::assert_not_frozen(outer.dir(), "after the dump");
}

/// The calls between a FIFREEZE and the FITHAW that ends it, by all processes: of the trial before pre-copy, and of the window.
fn window(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).expect("trace");
    let (mut inside, mut frozen) = (Vec::new(), false);
    for line in text.lines() {
        frozen |= line.contains("FIFREEZE");
        if frozen {
            inside.push(line.to_owned());
        }
        frozen &= !line.contains("FITHAW");
    }
    assert!(!inside.is_empty() && !frozen, "a freeze and its thaw");
    inside
}

#[test]
fn in_the_window_the_heap_is_not_touched() {
    // `tests/helpers/heap_traced.rs` is floe with an allocator that makes each call visible to strace.
    require!(
        common::have("strace") && common::runner().is_none(),
        "strace, no runner"
    );
    let example = require_some!(
        common::example("heap_traced"),
        "examples/heap_traced (cargo build --examples)"
    );
    let fs = require_some!(large(), "ext4");
    let trace = fs.scratch().join("trace");
    let standby = common::Scratch::new();
    let file = standby.join("standby");
    common::sparse(&file, 96 << 20);
    let standby = common::LoopDevice::attach(&file, 512);
    let source = fs.dir().display().to_string();
    let pair = format!("{source}={}", standby.path().display());
    for args in [
        &["dump", "-z", "gzip", &source][..],
        &["dump", "-z", "none", &source],
        &["clone", "--verify", &pair],
    ] {
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o"])
            .arg(&trace)
            .arg(&example)
            .args(args)
            .stdin(Stdio::null());
        common::run(&mut strace, Limit::secs(120)).expect_code(0);
        let text = fs::read_to_string(&trace).expect("trace");
        assert!(
            text.contains("HEAP"),
            "the allocator is not seen: this test would prove nothing"
        );
        let inside: Vec<String> = window(&trace)
            .into_iter()
            .filter(|line| line.contains("HEAP"))
            .collect();
        assert!(inside.is_empty(), "{args:?}: {inside:#?}");
        let opened: Vec<String> = window(&trace)
            .into_iter()
            .filter(|line| line.contains("open"))
            .collect();
        assert!(opened.is_empty(), "{args:?}: {opened:#?}");
    }
}
