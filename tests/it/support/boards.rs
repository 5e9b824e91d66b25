//! Boards for the tests of `pull` and `push`: each has a network namespace and a mount namespace of its own, an address on a bridge, a
//! small ext4 filesystem at `/mnt`, busybox ash as root's login shell, an empty `/run`, and a real OpenSSH or dropbear server with keys
//! made for the test. floe lies at `/run/bin/floe`.
//!
//! Everything a lab starts is killed, by its number, when it is dropped.

use crate::common::{self, Limit, LoopFs, Scratch, Spec};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What answers ssh on a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    OpenSsh,
    Dropbear,
    /// The board is there, and nothing listens.
    Nothing,
}

/// How a board is made. `..Setup::default()` fills in OpenSSH, 8 MiB and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    pub server: Server,
    pub mib: u64,
    /// Shell lines run in the board's namespaces before the server starts.
    pub before: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup {
            server: Server::OpenSsh,
            mib: 8,
            before: "",
        }
    }
}

/// One board.
pub struct Board {
    /// `10.77.0.N`
    pub address: String,
    // The server goes before the filesystem that its mount namespace holds.
    server: Child,
    pub data: LoopFs,
}

impl Board {
    /// A command in this board's namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.server.id().to_string(), "-m", "-n", program])
            .stdin(Stdio::null());
        command
    }

    /// Everything that runs in the board's network namespace.
    pub fn pids(&self) -> Vec<u32> {
        pids_of(self.server.id())
    }
}

/// Everything in the same network namespace as `of`, itself included.
fn pids_of(of: u32) -> Vec<u32> {
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let Some(own) = space(of) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            && space(pid) == Some(own.clone())
        {
            found.push(pid);
        }
    }
    found
}

impl Drop for Board {
    fn drop(&mut self) {
        common::thaw(self.data.dir());
        for pid in self.pids() {
            common::signal(pid, "KILL");
        }
        let _ = self.server.wait();
        let end = Instant::now() + Duration::from_secs(5);
        while !self.pids().is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A host with a bridge, and its boards.
pub struct Lab {
    pub boards: Vec<Board>,
    host: Child,
    scratch: Scratch,
}

impl Lab {
    /// Makes the host, or says what is missing.
    pub fn new() -> Result<Lab, String> {
        if !common::is_root() {
            return Err("root".into());
        }
        if common::runner().is_some() {
            return Err("no runner: boards start floe by its path".into());
        }
        for tool in [
            "sshd",
            "dropbear",
            "dropbearkey",
            "ssh",
            "ssh-keygen",
            "ip",
            "unshare",
            "nsenter",
            "busybox",
        ] {
            if !common::have(tool) {
                return Err(tool.into());
            }
        }
        let floe = common::floe_path().ok_or("FLOE_BIN, the executable under test")?;
        let host = holder();
        let lab = Lab {
            boards: Vec::new(),
            host,
            scratch: Scratch::new(),
        };
        let script = "ip link set lo up && ip link add br0 type bridge && ip addr add 10.77.0.254/24 dev br0 && ip link set br0 up";
        let run = common::run(lab.on_host("sh").args(["-c", script]), Limit::secs(20));
        if run.code != Some(0) {
            return Err(format!(
                "a bridge in a network namespace ({})",
                run.stderr_text().trim()
            ));
        }
        let home = lab.scratch.join("home");
        fs::create_dir_all(home.join(".ssh")).expect("home");
        for (path, mode) in [
            (lab.scratch.path().to_owned(), 0o755),
            (home.clone(), 0o700),
            (home.join(".ssh"), 0o700),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        }
        for key in ["key", "hostkey"] {
            let key = lab.scratch.join(key);
            common::output(
                "ssh-keygen",
                &[
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-f",
                    &key.to_string_lossy(),
                ],
            );
        }
        let dropbear = lab.scratch.join("dropbearkey");
        common::output(
            "dropbearkey",
            &["-t", "ed25519", "-f", &dropbear.to_string_lossy()],
        );
        fs::copy(
            lab.scratch.join("key.pub"),
            home.join(".ssh/authorized_keys"),
        )
        .expect("key");
        common::copy_program(floe.as_ref(), &lab.scratch.join("floe"));
        lab.write_files(&home);
        Ok(lab)
    }

    fn write_files(&self, home: &Path) {
        let own = self.scratch.path();
        let busybox = common::output("sh", &["-c", "command -v busybox"]);
        symlink(busybox.trim(), own.join("ash")).expect("ash");
        let shell = own.join("ash");
        fs::write(
            own.join("passwd"),
            format!(
                "root:x:0:0:root:{}:{}\nsshd:x:74:74::/run/sshd:/bin/false\n",
                home.display(),
                shell.display()
            ),
        )
        .expect("passwd");
        fs::write(own.join("shells"), format!("{}\n", shell.display())).expect("shells");
        fs::write(
            own.join("sshd_config"),
            format!(
                "HostKey {0}/hostkey\nAuthorizedKeysFile {0}/home/.ssh/authorized_keys\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin yes\nPidFile none\nPrintMotd no\nMaxStartups 100\nLogLevel ERROR\n",
                own.display()
            ),
        )
        .expect("sshd_config");
        fs::write(
            own.join("ssh_config"),
            format!(
                "Host *\n  User root\n  IdentityFile {0}/key\n  IdentitiesOnly yes\n  UserKnownHostsFile {0}/known_hosts\n  \
                 StrictHostKeyChecking accept-new\n  LogLevel ERROR\n",
                own.display()
            ),
        )
        .expect("ssh_config");
    }

    /// A file of the lab's own, seen by host and boards.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.join(name)
    }

    /// A command in the host's network.
    pub fn on_host(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.host.id().to_string(), "-n", program])
            .stdin(Stdio::null());
        command
    }

    /// `floe VERB` on the host, with the options that make ssh use the lab's keys.
    pub fn floe(&self, verb: &str) -> Command {
        self.floe_by(verb, "/run/bin/floe")
    }

    /// The same where floe has another name on the boards.
    pub fn floe_by(&self, verb: &str, there: &str) -> Command {
        let mut command = self.on_host(&self.join("floe").to_string_lossy());
        command
            .arg(verb)
            .args(["--floe", there, "--ssh-option", "-F", "--ssh-option"])
            .arg(self.join("ssh_config"));
        command
    }

    /// Adds a board with a filled filesystem.
    pub fn add(&mut self, setup: Setup<'_>) -> Result<(), String> {
        let data = LoopFs::make(Spec {
            mib: setup.mib,
            ..Spec::default()
        })?;
        data.fill(20);
        let number = self.boards.len() + 1;
        let address = format!("10.77.0.{number}");
        let own = self.scratch.path().display();
        let serve = match setup.server {
            Server::OpenSsh => format!("exec $(command -v sshd) -D -e -f '{own}/sshd_config'"),
            Server::Dropbear => format!("exec dropbear -F -E -m -r '{own}/dropbearkey' -p 22 2>&1"),
            Server::Nothing => "exec sleep 600".to_owned(),
        };
        let script = format!(
            "set -e; PATH=$PATH:/usr/sbin:/sbin\n\
             until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done\n\
             ip link set lo up; ip addr add {address}/24 dev eth0; ip link set eth0 up\n\
             mount -t tmpfs tmpfs /run; mkdir -p /run/sshd /run/bin; ln -s '{own}/floe' /run/bin/floe\n\
             mount --bind '{own}/passwd' /etc/passwd; mount --bind '{own}/shells' /etc/shells\n\
             mount --bind '{data}' /mnt\n{before}\n: > /run/ready\n{serve}",
            data = data.dir().display(),
            before = setup.before,
        );
        let log = fs::File::create(self.join(format!("server{number}.log"))).expect("log");
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "slave", "-n", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .process_group(0);
        let server = command.spawn().expect("unshare");
        let board = Board {
            address,
            server,
            data,
        };
        // unshare has its namespaces a moment after it was started.
        let end = Instant::now() + Duration::from_secs(20);
        let other = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        while other(board.server.id()) == other(std::process::id()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        let pid = board.server.id().to_string();
        let name = format!("board{number}");
        let link = format!(
            "ip link add {name} type veth peer name eth0 netns {pid} && ip link set {name} master br0 && ip link set {name} up"
        );
        let run = common::run(self.on_host("sh").args(["-c", &link]), Limit::secs(20));
        if run.code != Some(0) {
            return Err(format!(
                "veth between namespaces ({})",
                run.stderr_text().trim()
            ));
        }
        self.boards.push(board);
        Ok(())
    }

    /// Waits until every server answers.
    pub fn wait_until_up(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        for (number, board) in (1..).zip(&self.boards) {
            let listens = format!(
                "grep -q '^sleep$' /proc/{}/comm || {{ exec 3<> /dev/tcp/{}/22 && read -t 5 line <&3 && [[ $line = SSH* ]]; }}",
                board.server.id(),
                board.address
            );
            let mut probe = self.on_host("bash");
            probe.args(["-c", &listens]);
            while common::run(&mut probe, Limit::secs(20)).code != Some(0) {
                let log = fs::read_to_string(self.join(format!("server{number}.log")));
                assert!(
                    Instant::now() < end,
                    "no server at {}: {log:?}",
                    board.address
                );
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Takes a board's cable out, or puts it back.
    pub fn cable(&self, index: usize, state: &str) {
        let name = format!("board{}", index + 1);
        common::run(
            self.on_host("ip").args(["link", "set", &name, state]),
            Limit::secs(20),
        )
        .expect_code(0);
    }

    /// What runs in the host's network namespace, the holder apart.
    pub fn host_pids(&self) -> Vec<u32> {
        let mut pids = pids_of(self.host.id());
        pids.retain(|pid| *pid != self.host.id());
        pids
    }
}

/// A process that only holds a network namespace.
fn holder() -> Child {
    let child = Command::new("unshare")
        .args(["-n", "sleep", "900"])
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare");
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let end = Instant::now() + Duration::from_secs(10);
    while space(child.id()) == space(std::process::id()) && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    child
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in self.host_pids() {
            common::signal(pid, "KILL");
        }
        self.boards.clear();
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

/// A lab, or the test is skipped.
#[allow(unused_macros)]
macro_rules! require_lab {
    () => {
        match $crate::support::boards::Lab::new() {
            Ok(lab) => lab,
            Err(missing) => {
                $crate::support::common::skip(&missing);
                return;
            }
        }
    };
}

/// Adds a board to a lab, or the test is skipped.
#[allow(unused_macros)]
macro_rules! require_board {
    ($lab:expr, $setup:expr) => {
        if let Err(missing) = $lab.add($setup) {
            $crate::support::common::skip(&missing);
            return;
        }
    };
}
