//! Killed at random moments, in every verb that freezes, on every filesystem, written to or not: a second later nothing is frozen, no
//! trace instance, no guardian and no group of one is left, and nothing that was written passes for whole.
//!
//! `FLOE_KILLS` says how often in all (one time each way where it is not set). The last line is a table.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, LoopDevice, LoopFs, Random, Scratch, Spec, Writer};
use crate::tracefs::instances_of;

/// Longest run without a kill.
const LONGEST: Duration = Duration::from_secs(90);
/// By then what floe leaves has gone.
const GONE: Duration = Duration::from_secs(5);

/// How floe is run, and whether the board's or the host's is killed.
const WAYS: [(&str, &str); 8] = [
    ("dump", "dump MNT -o OUT"),
    ("dump, precopy off", "dump MNT -o OUT --precopy off"),
    ("create", "create a=MNT b=OTHER -o OUT"),
    (
        "create, precopy off",
        "create a=MNT b=OTHER -o OUT --precopy off",
    ),
    ("clone", "clone MNT=TARGET --overwrite"),
    (
        "clone, precopy off",
        "clone MNT=TARGET --overwrite --precopy off",
    ),
    ("pull, the host's", "pull board --dump MNT -o OUT"),
    ("pull, the board's", "pull board --dump MNT -o OUT"),
];

/// An `ssh` that stays here, and a floe that says which process it is.
const SSH: &str = "#!/bin/sh\nfor word; do :; done\nexec sh -c \"$word\"\n";
const FLOE: &str = "#!/bin/sh\necho $$ > \"$FLOE_PID_FILE\"\nexec \"$FLOE_BIN\" \"$@\"\n";

/// What came of the kills of one way.
#[derive(Default)]
struct Row {
    kills: u32,
    /// The guardian had something to thaw.
    frozen: u32,
    /// It had ended before.
    over: u32,
    /// What was written was whole already: killed in its last instant.
    whole: u32,
    slowest: Duration,
}

struct Range {
    fs: LoopFs,
    other: LoopFs,
    target: LoopDevice,
    scratch: Scratch,
    floe: PathBuf,
}

impl Range {
    fn make(kind: &str) -> Result<Self, String> {
        let mib = match kind {
            "xfs" => 320,
            "btrfs" => 128,
            _ => 64,
        };
        let spec = Spec {
            kind,
            mib,
            ..Spec::default()
        };
        let fs = LoopFs::make(spec)?;
        let other = LoopFs::make(Spec {
            mib: 16,
            ..Spec::default()
        })?;
        let ballast = Random(7).bytes(20 << 20);
        fs::write(fs.dir().join("ballast"), ballast).expect("ballast");
        fs.fill(60);
        other.fill(10);
        let scratch = Scratch::new();
        for folder in ["bin", "out"] {
            fs::create_dir(scratch.join(folder)).expect("folder");
        }
        for (name, text) in [("ssh", SSH), ("floe", FLOE)] {
            let path = scratch.join("bin").join(name);
            fs::write(&path, text).expect("stand-in");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        }
        let target = LoopDevice::filled(&scratch, "target", mib, 0);
        Ok(Self {
            fs,
            other,
            target,
            scratch,
            floe: common::floe_path().ok_or("FLOE_BIN")?,
        })
    }

    fn out(&self) -> PathBuf {
        self.scratch.join("out/image")
    }

    fn start(&self, words: &str) -> Child {
        let place = |path: &Path| path.to_string_lossy().into_owned();
        let words = words
            .replace("MNT", &place(self.fs.dir()))
            .replace("OTHER", &place(self.other.dir()))
            .replace("TARGET", &place(self.target.path()))
            .replace("OUT", &place(&self.out()));
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new(&self.floe)
            .args(words.split(' '))
            .env(
                "PATH",
                format!("{}:{path}", self.scratch.join("bin").display()),
            )
            .env("FLOE_PID_FILE", self.scratch.join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.scratch.join("said")).expect("said"))
            .spawn()
            .expect("floe")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.scratch.join("said")).unwrap_or_default()
    }

    fn sweep(&self) {
        for entry in fs::read_dir(self.scratch.join("out"))
            .expect("out")
            .flatten()
        {
            fs::remove_file(entry.path()).expect("remove");
        }
        let _ = fs::remove_file(self.scratch.join("pid"));
        let file = fs::File::options().write(true).open(self.target.path());
        let zeros = vec![0; 1 << 20];
        file.and_then(|mut file| std::io::Write::write_all(&mut file, &zeros))
            .expect("target");
    }

    /// Whether what was written is whole; half of it must not look so.
    fn is_whole(&self, kind: &str, what: &str) -> bool {
        let mut whole = false;
        for entry in fs::read_dir(self.scratch.join("out"))
            .expect("out")
            .flatten()
        {
            let verify = Command::new(&self.floe)
                .args(["verify", "-q"])
                .arg(entry.path())
                .stderr(Stdio::null())
                .status();
            let good = verify.is_ok_and(|status| status.success());
            let is_final = entry.path() == self.out();
            assert!(good || !is_final, "{what}: half an image is at its place");
            whole |= good;
        }
        let found = common::blkid(self.target.path(), "TYPE");
        if !found.is_empty() {
            assert_eq!(found, kind, "{what}");
            // A log that wants to be replayed is as it should be: XFS is mounted once.
            if kind == "xfs" {
                drop(common::Mounted::new(kind, self.target.path(), "nouuid"));
            }
            common::fsck(kind, self.target.path());
            whole = true;
        }
        whole
    }

    /// One kill after `moment`.
    fn kill(&self, way: usize, moment: Duration, kind: &str, what: &str, row: &mut Row) {
        self.sweep();
        let groups_before = empty_groups();
        let mut child = self.start(WAYS[way].1);
        thread::sleep(moment);
        let board = fs::read_to_string(self.scratch.join("pid")).unwrap_or_default();
        let board: Option<u32> = board.trim().parse().ok();
        let victim = match WAYS[way].0 {
            "pull, the board's" => board,
            _ => Some(child.id()),
        };
        let over = child.try_wait().expect("wait").is_some();
        if let Some(pid) = victim.filter(|_| !over) {
            common::signal(pid, "KILL");
        }
        for dir in [self.fs.dir(), self.other.dir()] {
            // Slower than promised, or frozen for good: both are failures.
            let frozen = common::frozen_for(dir);
            let shown = dir.display();
            assert!(
                frozen < Duration::from_secs(1),
                "{what}: {shown}: {frozen:?}: {}",
                self.said()
            );
            row.slowest = row.slowest.max(frozen);
        }
        let ended = common::wait_for(&mut child, LONGEST);
        assert!(ended.is_some(), "{what}: floe does not end");
        for pid in [Some(child.id()), board].into_iter().flatten() {
            // The board's notices that nobody listens.
            let process = PathBuf::from(format!("/proc/{pid}"));
            let gone = common::wait_until(GONE, || !process.exists());
            assert!(gone, "{what}: process {pid} stays");
            let gone = common::wait_until(GONE, || instances_of(pid).is_empty());
            assert!(gone, "{what}: trace instances {:?}", instances_of(pid));
        }
        let gone = common::wait_until(GONE, || common::guardians_of(self.fs.dir()).is_empty());
        assert!(gone, "{what}: a guardian stays");
        let left = || {
            empty_groups()
                .into_iter()
                .find(|g| !groups_before.contains(g))
        };
        assert!(
            common::wait_until(GONE, || left().is_none()),
            "{what}: {:?}",
            left()
        );
        let whole = self.is_whole(kind, what);
        let success = ended.is_some_and(|status| status.success());
        assert!(whole || !success, "{what}: exit 0, and nothing whole");
        row.kills += u32::from(!over);
        row.over += u32::from(over);
        row.whole += u32::from(whole && !over);
        row.frozen += u32::from(self.said().contains("thawed:"));
    }
}

/// Groups that a guardian left, nobody in them.
fn empty_groups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = entry
                .file_name()
                .to_string_lossy()
                .starts_with("floe-guard.");
            if ours && fs::read(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty()) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
#[ignore = "costly"]
fn killed_at_random_moments_in_every_verb_that_freezes_it_leaves_nothing() {
    require_floe!();
    require!(common::runner().is_none(), "no runner");
    let _serial = common::serial();
    let asked = std::env::var("FLOE_KILLS").ok();
    let kinds = ["ext4", "xfs", "btrfs"];
    let cells = (kinds.len() * WAYS.len() * 2) as u64;
    let asked: u64 = asked.and_then(|text| text.parse().ok()).unwrap_or(cells);
    let rounds = asked.div_ceil(cells);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = clock.map_or(7, |since| since.as_nanos() as u64) | 1;
    eprintln!("seed {seed:#x}");
    let mut random = Random(seed);
    let mut table = String::new();
    let mut killed = 0;
    for kind in kinds {
        let range = require_ok!(Range::make(kind));
        for written in [false, true] {
            let _writer = written.then(|| Writer::start(range.fs.dir()));
            for (way, (name, words)) in WAYS.iter().enumerate() {
                range.sweep();
                let began = Instant::now();
                let status = common::wait_for(&mut range.start(words), LONGEST);
                assert!(
                    status.is_some_and(|status| status.success()),
                    "{kind}, {name}: {}",
                    range.said()
                );
                let last = began.elapsed().as_micros() as u64;
                let mut row = Row::default();
                for round in 0..rounds {
                    let moment = Duration::from_micros(random.below(last));
                    let what = format!("{kind}, {name}, round {round}, after {moment:?}");
                    range.kill(way, moment, kind, &what, &mut row);
                }
                killed += row.kills;
                table += &format!(
                    "{kind:6} {:10} {name:20} killed {:4}, {:3} of them frozen, {:3} whole; {:3} had ended; thawed and written to within {:?}\n",
                    if written { "written to" } else { "idle" },
                    row.kills,
                    row.frozen,
                    row.whole,
                    row.over,
                    row.slowest
                );
                eprintln!("{}", table.lines().last().unwrap_or_default());
            }
        }
    }
    eprintln!("{table}{killed} killed");
    assert!(killed > 0);
}
