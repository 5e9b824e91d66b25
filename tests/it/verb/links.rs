//! The line of a pull is cut, again and again, between a host and a board with a real ssh server: what the next pull makes is what a
//! fresh one makes.

use crate::boards::{Lab, Server, Setup};
use crate::common::{self, Limit, Random};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const NOISE_BYTES: usize = 6 << 20;

/// Brings a connection to HOST and PORT, and ends it when about so many bytes have come over it.
const PROXY: &str = "#!/bin/bash
exec 4<&0 3<> \"/dev/tcp/$1/$2\" || exit 1
cat <&4 >&3 &
dd bs=1024 count=\"$3\" iflag=count_bytes <&3 2> /dev/null
kill $!
";

/// A board whose filesystem is read-only: two pulls of it are the same to the byte.
struct Line {
    lab: Lab,
    fresh: Vec<u8>,
    sent_bytes: u64,
}

impl Line {
    fn new(server: Server) -> Result<Line, String> {
        if !common::have("bash") {
            return Err("bash".into());
        }
        let mut lab = Lab::new()?;
        lab.add(Setup {
            server,
            mib: 24,
            ..Setup::default()
        })?;
        let dir = lab.boards[0].data.dir();
        fs::write(dir.join("noise"), Random(17).bytes(NOISE_BYTES)).expect("noise");
        common::output("mount", &["-o", "remount,ro", &dir.to_string_lossy()]);
        let proxy = lab.join("proxy");
        fs::write(&proxy, PROXY).expect("proxy");
        fs::set_permissions(&proxy, fs::Permissions::from_mode(0o755)).expect("mode");
        lab.wait_until_up();
        let mut line = Line {
            lab,
            fresh: Vec::new(),
            sent_bytes: 0,
        };
        common::run(&mut line.pull("fresh.img.gz", None), Limit::secs(60)).expect_code(0);
        line.fresh = fs::read(line.join("fresh.img.gz")).expect("fresh");
        line.sent_bytes = line.number("sent_bytes");
        assert!(line.sent_bytes as usize > NOISE_BYTES);
        Ok(line)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.lab.join(name)
    }

    /// `cut`: after how many bytes the line breaks.
    fn pull(&self, to: &str, cut: Option<u64>) -> Command {
        let mut pull = self.lab.floe("pull");
        pull.args(["10.77.0.1", "--dump", "/mnt", "--report"])
            .arg(self.join("report.json"))
            .arg("-o")
            .arg(self.join(to));
        if let Some(bytes) = cut {
            let proxy = self.join("proxy");
            let option = format!("ProxyCommand={} %h %p {bytes}", proxy.display());
            pull.args(["--ssh-option", "-o", "--ssh-option", &option]);
        }
        pull
    }

    /// Of the last report.
    fn number(&self, key: &str) -> u64 {
        common::number_in(&self.join("report.json"), key)
    }

    fn break_at(&self, bytes: u64) {
        let run = common::run(&mut self.pull("one.img.gz", Some(bytes)), Limit::secs(60));
        run.expect_code(1);
        self.until_board_is_free();
    }

    /// The host goes away when so much is there, or it was faster.
    fn kill_at(&self, bytes: u64) {
        let left = self.join("one.img.gz.resume");
        let mut pull = self.pull("one.img.gz", None);
        let mut pull = pull.stderr(Stdio::null()).spawn().expect("pull");
        let is_time = || {
            let has_come = fs::metadata(&left).is_ok_and(|meta| meta.len() >= bytes);
            has_come || pull.try_wait().is_ok_and(|status| status.is_some())
        };
        assert!(common::wait_until(Duration::from_secs(30), is_time));
        pull.kill().expect("kill");
        pull.wait().expect("pull");
        self.until_board_is_free();
    }

    /// Its server learns of it in its own time, and until then its floe is at work.
    fn until_board_is_free(&self) {
        let is_free = || self.lab.boards[0].pids().len() <= 1;
        assert!(
            common::wait_until(Duration::from_secs(20), is_free),
            "the board does not notice that the line is cut"
        );
    }

    fn goes_on(&self, what: &str) {
        let one = self.join("one.img.gz");
        let run = common::run(&mut self.pull("one.img.gz", None), Limit::secs(60));
        let run = run.expect_code(0);
        assert!(fs::read(&one).expect("file") == self.fresh, "{what}: {run}");
        for name in ["one.img.gz.resume", "one.img.gz.part"] {
            assert!(!self.join(name).exists(), "{what}: {name}");
        }
        fs::remove_file(&one).expect("remove");
    }
}

/// So many times at a random place, every third time twice before it goes on; then the host is killed.
fn cut_and_go_on(server: Server, times: u64, seed: u64) {
    drop(require_floe!());
    let line = require_ok!(Line::new(server));
    let mut random = Random(seed);
    let mut reused = 0;
    for turn in 0..times {
        // The first one may be in what the servers say to each other, and the last one is in what comes last.
        let at = match turn {
            0 => random.below(8192),
            _ if turn + 1 == times => line.sent_bytes - random.below(100),
            _ => random.below(line.sent_bytes),
        };
        line.break_at(at);
        assert!(!line.join("one.img.gz").exists(), "{at}");
        assert!(!line.join("one.img.gz.part").exists(), "{at}");
        if turn % 3 == 2 {
            let left = fs::metadata(line.join("one.img.gz.resume"));
            let rest = line
                .sent_bytes
                .saturating_sub(left.map_or(0, |left| left.len()));
            line.break_at(random.below(rest / 2 + 1));
        }
        line.goes_on(&format!("{server:?}, turn {turn}, cut at {at}"));
        reused += line.number("reused_bytes");
    }
    assert!(reused > 0, "nothing was ever taken from what had come");
    line.kill_at(4096 + random.below(1 << 20));
    line.goes_on(&format!("{server:?}, killed"));
}

#[test]
fn a_line_to_openssh_that_is_cut_anywhere_costs_only_what_had_not_come() {
    cut_and_go_on(Server::OpenSsh, 5, 1401);
}

#[test]
fn a_line_to_dropbear_that_is_cut_anywhere_costs_only_what_had_not_come() {
    cut_and_go_on(Server::Dropbear, 4, 1402);
}

#[test]
#[ignore = "costly: 20 cuts of each server's line (tests/run --full)"]
fn lines_that_are_cut_at_twenty_random_places_cost_only_what_had_not_come() {
    cut_and_go_on(Server::OpenSsh, 20, 1403);
    cut_and_go_on(Server::Dropbear, 20, 1404);
}
