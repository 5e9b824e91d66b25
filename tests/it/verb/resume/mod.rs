//! `pull` of what has changed only, and of what is missing since a pull broke off: whatever the host had before, what it has afterwards
//! is what a fresh pull gives. An `ssh` that runs its command here stands in for the board.

mod broken;
mod memory;
mod pushed;
mod reused;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{self, Limit, Random, Run, Scratch};

const NOISE_BYTES: usize = 6 << 20;

/// A folder with a source, and an `ssh` that does what `script` says with the command line `$line`.
struct Bench {
    scratch: Scratch,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            scratch: Scratch::new(),
        };
        fs::create_dir(bench.scratch.join("bin")).expect("bin");
        bench.board("exec sh -c \"$line\"");
        bench
    }

    fn join(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn board(&self, script: &str) {
        let ssh = self.join("bin/ssh");
        fs::write(&ssh, format!("#!/bin/sh\nfor line; do :; done\n{script}\n")).expect("ssh");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    /// The line breaks after so many bytes.
    fn cut(&self, bytes: u64) {
        self.board(&format!(
            "sh -c \"$line\" 2> /dev/null | dd bs=16384 count={bytes} iflag=count_bytes 2> /dev/null; exit 255"
        ));
    }

    /// An ext4 image with `NOISE_BYTES` that cannot be packed; where they lie in it.
    fn image(&self) -> (PathBuf, u64) {
        let image = self.join("source");
        let folder = self.join("content");
        fs::create_dir(&folder).expect("content");
        let noise = Random(7).bytes(NOISE_BYTES);
        fs::write(folder.join("noise"), &noise).expect("noise");
        common::fill(&folder, 12);
        common::shell(
            &format!(
                "truncate -s 24M '{0}' && mkfs.ext4 -q -F -b 4096 -d '{1}' '{0}'",
                image.display(),
                folder.display()
            ),
            Limit::secs(30),
        )
        .expect_code(0);
        let all = fs::read(&image).expect("image");
        let at = all.chunks(4096).position(|block| block == &noise[..4096]);
        (image, at.expect("the noise is one run") as u64 * 4096)
    }

    fn pull(&self, what: &[&str], to: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut pull = common::floe().expect("required before");
        pull.args(["pull", "board", "--floe"])
            .arg(common::floe_path().expect("required before"))
            .args(["--report"])
            .arg(self.join("report.json"))
            .arg("-o")
            .arg(match to {
                "-" => to.into(),
                to => self.join(to),
            })
            .args(what)
            .env("PATH", format!("{}:{path}", self.join("bin").display()));
        pull
    }

    #[track_caller]
    fn pulled(&self, what: &[&str], to: &str) -> Vec<u8> {
        common::run(&mut self.pull(what, to), Limit::secs(60)).expect_code(0);
        assert!(!self.join(&format!("{to}.resume")).exists());
        fs::read(self.join(to)).expect("file")
    }

    /// The same, and the most memory that it had, in KiB.
    fn weighed(&self, what: &[&str], to: &str) -> u64 {
        let mut pull = self.pull(what, to);
        let mut child = pull.stderr(Stdio::null()).spawn().expect("pull");
        let mut most = 0;
        let ended = common::wait_until(Duration::from_secs(100), || {
            most = most.max(peak(&child).unwrap_or(0));
            child.try_wait().is_ok_and(|status| status.is_some())
        });
        if !ended {
            let _ = child.kill();
        }
        let status = child.wait().expect("pull");
        assert!(ended && status.success(), "{status}");
        most
    }

    #[track_caller]
    fn breaks(&self, what: &[&str], to: &str) -> Run {
        common::run(&mut self.pull(what, to), Limit::secs(60)).expect_code(1)
    }

    /// Of the last report.
    fn number(&self, key: &str) -> u64 {
        common::number_in(&self.join("report.json"), key)
    }
}

impl Bench {
    fn push(&self, file: &Path, words: &[&str]) -> Run {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut push = common::floe().expect("required before");
        push.arg("push")
            .arg(file)
            .args(["board", "--floe"])
            .arg(common::floe_path().expect("required before"))
            .arg("--report")
            .arg(self.join("report.json"))
            .args(words)
            .env("PATH", format!("{}:{path}", self.join("bin").display()));
        common::run(&mut push, Limit::secs(60))
    }
}

/// What the kernel says was the most memory of a process, in KiB.
fn peak(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A tmpfs of a few MiB, gone with its owner.
struct Small(Scratch);

impl Small {
    fn of(bytes: u64) -> Small {
        let small = Small(Scratch::new());
        small.mount(&format!("size={bytes}"));
        small
    }

    fn mount(&self, options: &str) {
        let path = self.0.path().to_string_lossy();
        common::output("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &path]);
    }

    fn names(&self) -> Vec<String> {
        common::names(self.0.path())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let umount = umount.arg("-l").arg(self.0.path()).stderr(Stdio::null());
        let _ = umount.status();
    }
}

macro_rules! require_bench {
    () => {{
        drop(require_floe!());
        require!(
            $crate::common::runner().is_none(),
            "no runner: floe is started by its path"
        );
        require!($crate::common::have("mkfs.ext4"), "mkfs.ext4");
        $crate::verb::resume::Bench::new()
    }};
}

use require_bench;

/// Turns a bit over in every one of so many parts.
fn flip(path: &Path, parts: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let length = file.metadata().expect("metadata").len();
    for part in 0..parts {
        let at = length / parts * part + length / parts / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
    }
}
