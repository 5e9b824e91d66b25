//! One run of floe, held frozen at its end, with the copies that are taken meanwhile.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::{self, Random, Scratch, field};
use crate::torture::{Ended, Torture, seed};

use super::floe;

/// A run of floe that is held frozen at its end.
pub(super) struct Held<'a> {
    /// What is written to.
    pub dirs: &'a [&'a Path],
    /// Copied while it is frozen: from, to.
    pub copies: &'a [(&'a Path, &'a Path)],
    /// Between two writes of a thread.
    pub pause: Duration,
    pub lies: &'a str,
    /// What else is done while it is frozen, for a shell.
    pub meanwhile: &'a str,
    /// The control group that floe runs in.
    pub group: Option<&'a Path>,
    /// Where frames become an image.
    pub frames_to: Option<&'a Path>,
}

/// What its report says.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub precopy: String,
    pub early: u64,
    pub again: u64,
}

fn told(report: &str) -> Told {
    let number = |key| {
        field(report, key)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    Told {
        precopy: field(report, "precopy").unwrap_or_default(),
        early: number("early_bytes"),
        again: number("again_bytes"),
    }
}

impl Held<'_> {
    /// Runs floe with these words; an error is what floe said.
    pub(super) fn run(&self, words: &[&str]) -> Result<Told, String> {
        let scratch = Scratch::new();
        let hold = scratch.join("hold");
        let report = scratch.join("report");
        File::create(&hold).expect("hold");
        let seed = seed();
        let writers: Vec<Torture> = (0..)
            .zip(self.dirs)
            .map(|(number, dir)| Torture::start(dir, seed ^ number << 8, self.pause))
            .collect();
        thread::sleep(Duration::from_millis(Random(seed).below(200)));
        let mut command = floe().expect("looked for before");
        let mut copier = Command::new("bash");
        copier.args(["-c", COPY]).arg(&hold).stdin(Stdio::null());
        copier.env("MEANWHILE", self.meanwhile);
        for (from, to) in self.copies {
            let _ = fs::remove_file(to);
            copier.arg(from).arg(to);
        }
        let mut copier = Ended(copier.spawn().expect("bash"));
        let mut receiver = self.frames_to.map(|image| {
            // It takes nothing for a while: what is written meanwhile comes again.
            let script = "(sleep 0.7; exec cat) | exec \"$0\" restore - \"$1\" -q";
            let mut receiver = Command::new("bash");
            let receiver = receiver.args(["-o", "pipefail", "-c", script]);
            let receiver = receiver.arg(env!("CARGO_BIN_EXE_floe")).arg(image);
            Ended(receiver.stdin(Stdio::piped()).spawn().expect("bash"))
        });
        let stdout = match receiver.as_mut().and_then(|one| one.0.stdin.take()) {
            Some(pipe) => Stdio::from(pipe),
            None => Stdio::null(),
        };
        let child = command
            .args(words)
            .args(["--stall", "100s", "--report"])
            .arg(&report)
            .env("FLOE_TEST_HOLD", &hold)
            .env("FLOE_TRACE_LIES", self.lies)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(File::create(scratch.join("stderr")).expect("stderr"))
            .spawn()
            .expect("floe");
        let mut child = Ended(child);
        if let Some(group) = self.group {
            fs::write(group.join("cgroup.procs"), child.0.id().to_string()).expect("group");
        }
        let status = common::wait_for(&mut child.0, Duration::from_secs(200)).expect("it ends");
        File::create(scratch.join("hold.over")).expect("hold");
        let said = || fs::read_to_string(scratch.join("stderr")).unwrap_or_default();
        common::wait_for(&mut copier.0, Duration::from_secs(100)).expect("the copier ends");
        drop(writers);
        // The command holds the other end of its pipe.
        drop(command);
        if let Some(receiver) = &mut receiver {
            let taken = common::wait_for(&mut receiver.0, Duration::from_secs(60));
            if status.success() && !taken.expect("the receiver ends").success() {
                return Err("the frames were not taken".to_owned());
            }
        }
        match status.success() {
            true => Ok(told(&fs::read_to_string(&report).unwrap_or_default())),
            false => Err(format!("{status}: {}", said())),
        }
    }
}

/// Copies while it is held, and lets go. A process that is there before: ours can make none, nor a mapping, while one of its threads
/// stores to what is frozen.
const COPY: &str = r#"
until [ -e "$0.frozen" ]; do [ ! -e "$0.over" ] || exit 0; sleep 0.02; done
eval "$MEANWHILE"
while [ $# -gt 1 ]; do cp --sparse=always "$1" "$2" || break; shift 2; done
rm "$0.frozen"
"#;
