//! Standing in for Mender's client: an unmodified `mender-artifact` pulls over a real sshd from a board that has only busybox and floe,
//! and the names answer as Mender's client does.
//!
//! The board's `/` is a loop filesystem of the test's own: sshd runs in a mount namespace of its own, and every session is put below
//! that filesystem's root by a forced command. Nothing here dumps anything else: outside the board every call names its source.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{self, Limit, LoopFs, Mounted, Scratch, Spec};

/// A folder with floe under Mender's names, as links and by its own name.
fn names(scratch: &Scratch) -> Option<PathBuf> {
    let floe = common::floe_path()?;
    let folder = scratch.join("bin");
    fs::create_dir(&folder).expect("bin");
    if fs::hard_link(&floe, folder.join("mender")).is_err() {
        common::copy_program(&floe, &folder.join("mender"));
    }
    std::os::unix::fs::symlink(&floe, folder.join("mender-snapshot")).expect("link");
    Some(folder)
}

/// A root filesystem with busybox, floe as `mender` and `mender-snapshot`, and some files.
fn furnish(board: &LoopFs, floe: &Path) {
    let root = board.dir().to_string_lossy().into_owned();
    let script = "set -e; cd \"$1\"; mkdir -p bin usr/bin proc sys dev tmp run etc
cp \"$(command -v busybox)\" bin/busybox
for tool in sh cat id echo which head sha256sum; do ln -s busybox bin/$tool; done
cp \"$2\" usr/bin/floe; ln -s floe usr/bin/mender; ln -s ../../usr/bin/floe usr/bin/mender-snapshot
# Only where floe is not static.
ldd \"$2\" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p \".${library%/*}\"; cp -L \"$library\" \".$library\"
done || true";
    let floe = floe.to_string_lossy();
    common::output("sh", &["-c", script, "furnish", &root, &floe]);
    board.fill(60);
}

/// sshd for the board; ended on drop.
struct Sshd {
    child: Child,
    port: u16,
    key: PathBuf,
}

impl Sshd {
    fn start(board: &LoopFs, scratch: &Scratch) -> Result<Self, String> {
        let here = scratch.path().to_string_lossy().into_owned();
        for key in ["host", "key"] {
            let file = format!("{here}/{key}");
            let made = ["-q", "-t", "ed25519", "-N", "", "-f", &file];
            common::output("ssh-keygen", &made);
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .map_err(|error| error.to_string())?
            .port();
        let root = board.dir().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nAuthorizedKeysFile {here}/key.pub\n\
             ForceCommand PATH=/usr/bin:/bin exec /usr/sbin/chroot {root} /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"\n"
        );
        fs::write(scratch.join("config"), config).expect("config");
        // Whatever root's entry on this machine is: the private one may log in with a key.
        let script = "set -e; mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd
mount -t proc proc \"$1/proc\"; mount -t sysfs sysfs \"$1/sys\"; mount -t tmpfs tmpfs \"$1/dev\"
mknod -m 666 \"$1/dev/null\" c 1 3
sed 's#^root:.*#root:x:0:0:root:/root:/bin/sh#' /etc/passwd > \"$2/passwd\"; echo 'root:*:19000:0:99999:7:::' > \"$2/shadow\"
grep -q ^sshd: \"$2/passwd\" || echo 'sshd:x:33333:33333::/run/sshd:/bin/false' >> \"$2/passwd\"
mount --bind \"$2/passwd\" /etc/passwd; mount --bind \"$2/shadow\" /etc/shadow
exec \"$3\" -D -e -f \"$2/config\"";
        let sshd = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .ok_or("sshd")?;
        let log = fs::File::create(scratch.join("log")).expect("log");
        let child = Command::new("unshare")
            .args(["-m", "--propagation", "slave", "sh", "-c", script, "sshd"])
            .args([&board.dir().to_string_lossy(), here.as_str(), sshd])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        let key = scratch.join("key");
        let started = Self { child, port, key };
        let end = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || fs::read_to_string(scratch.join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "sshd does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    fn options(&self) -> [String; 4] {
        [
            "-oStrictHostKeyChecking=no".into(),
            "-oUserKnownHostsFile=/dev/null".into(),
            "-oBatchMode=yes".into(),
            format!("-oIdentityFile={}", self.key.display()),
        ]
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A furnished board with its sshd, or what is missing.
fn board(scratch: &Scratch) -> Result<(LoopFs, Sshd), String> {
    let floe = common::floe_path().ok_or("FLOE_BIN")?;
    if common::runner().is_some() {
        return Err("no runner: the board calls floe by its name".into());
    }
    for tool in [
        "mender-artifact",
        "ssh",
        "ssh-keygen",
        "busybox",
        "unshare",
        "python3",
    ] {
        if !common::have(tool) {
            return Err(tool.into());
        }
    }
    let made = LoopFs::make(Spec {
        mib: 192,
        ..Spec::default()
    })?;
    furnish(&made, &floe);
    let sshd = Sshd::start(&made, scratch)?;
    Ok((made, sshd))
}

/// The image passes its checker, and holds what the board holds.
fn check_image(image: &Path, board: &LoopFs) {
    common::output("e2fsck", &["-fn", &image.to_string_lossy()]);
    let mounted = Mounted::new("ext4", image, "ro");
    common::assert_same_tree(&common::tree(board.dir()), &common::tree(mounted.dir()));
}

#[test]
fn an_unmodified_mender_artifact_pulls_over_ssh_from_a_board_with_only_floe() {
    let scratch = Scratch::new();
    let (board, sshd) = match board(&scratch) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    let artifact = scratch.join("golden.mender");
    let mut command = Command::new("mender-artifact");
    command
        .args(["write", "rootfs-image", "--no-progress", "-n", "golden"])
        .args(["-t", "board", "-o"])
        .arg(&artifact)
        .args(["-f", &format!("ssh://root@127.0.0.1:{}", sshd.port)])
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null());
    for option in sshd.options() {
        command.args(["-S", &option]);
    }
    let run = common::run(&mut command, Limit::secs(120)).expect_code(0);
    // What floe says arrives on the user's terminal.
    assert!(run.stderr_text().contains("floe: /: ext4"), "{run}");
    common::assert_not_frozen(board.dir(), "after the pull");
    let path = artifact.to_string_lossy().into_owned();
    common::output("mender-artifact", &["validate", &path]);
    let script = "import sys, tarfile
outer = tarfile.open(sys.argv[1])
inner = tarfile.open(fileobj=outer.extractfile('data/0000.tar.gz'), mode='r|gz')
for member in inner:
    with open(sys.argv[2], 'wb') as out:
        out.write(inner.extractfile(member).read())";
    let image = scratch.join("payload");
    let to = image.to_string_lossy().into_owned();
    common::output("python3", &["-c", script, &path, &to]);
    let _ = fs::remove_file(board.dir().join(".write-probe"));
    check_image(&image, &board);
}

#[test]
fn mender_snapshot_over_ssh_gives_an_image_for_floe_artifact() {
    let scratch = Scratch::new();
    let (board, sshd) = match board(&scratch) {
        Ok(made) => made,
        Err(missing) => return common::skip(&missing),
    };
    // As mender-artifact 3.11 and later ask, first for this name.
    let remote = "[ $(id -u) -eq 0 ] || exit 9; which mender-snapshot > /dev/null && mender-snapshot dump -C gzip | cat";
    let image = scratch.join("board.img.gz");
    let mut ssh = Command::new("ssh");
    ssh.args(sshd.options())
        .args(["-p", &sshd.port.to_string(), "root@127.0.0.1", remote])
        .stdin(Stdio::null());
    let run = common::run(&mut ssh, Limit::secs(120)).expect_code(0);
    fs::write(&image, &run.stdout).expect("image");
    let artifact = scratch.join("x.mender");
    let mut make = require_floe!();
    make.args(["artifact", "-n", "x", "-t", "board", "--level", "1"])
        .arg(&image)
        .arg("-o")
        .arg(&artifact);
    common::run(&mut make, Limit::secs(120)).expect_code(0);
    let path = artifact.to_string_lossy().into_owned();
    common::output("mender-artifact", &["validate", &path]);
    let raw = scratch.join("board.img");
    let unpack = format!("gzip -dc {} > {}", image.display(), raw.display());
    common::shell(&unpack, Limit::secs(60)).expect_code(0);
    check_image(&raw, &board);
}

#[test]
fn both_names_give_the_raw_image_as_floe_dump_does() {
    require!(common::runner().is_none(), "no runner: the names are links");
    let scratch = Scratch::new();
    let bin = require_some!(names(&scratch), "FLOE_BIN");
    let mut made = require_ok!(LoopFs::make(Spec::default()));
    made.fill(40);
    made.unmount();
    let device = made.device().to_string_lossy().into_owned();
    let mut dump = require_floe!();
    let dump = dump.args(["dump", "-q", "-z", "none", &device]);
    let expected = common::run(dump, Limit::secs(60)).expect_code(0).stdout;
    let calls: [(&str, &[&str]); 4] = [
        ("mender", &["snapshot", "dump", "--source", &device]),
        (
            "mender",
            &[
                "-log-level",
                "info",
                "snapshot",
                "dump",
                "-q",
                "-source",
                &device,
            ],
        ),
        (
            "mender-snapshot",
            &["dump", "--fs-path", &device, "-C", "gzip"],
        ),
        (
            "mender-snapshot",
            &["dump", "--source", &device, "--data", "/proc", "--quiet"],
        ),
    ];
    for (name, line) in calls {
        let mut command = Command::new(bin.join(name));
        let run = common::run(command.args(line).stdin(Stdio::null()), Limit::secs(60));
        let run = run.expect_code(0);
        let quiet = line.contains(&"-q") || line.contains(&"--quiet");
        assert_eq!(run.stderr.is_empty(), quiet, "{run}");
        let found = match line.contains(&"gzip") {
            false => run.stdout,
            true => {
                let mut gzip = Command::new("gzip");
                common::run_with_input(gzip.arg("-dc"), &run.stdout, Limit::secs(60)).stdout
            }
        };
        assert!(found == expected, "{name} {line:?}");
    }
}

#[test]
fn what_mender_s_client_refuses_is_refused_with_its_exit_code() {
    require!(common::runner().is_none(), "no runner: the names are links");
    let scratch = Scratch::new();
    let bin = require_some!(names(&scratch), "FLOE_BIN");
    let made = require_ok!(LoopFs::make(Spec::default()));
    let dir = made.dir().to_string_lossy().into_owned();
    let calls: [(&str, &[&str], &str); 6] = [
        (
            "mender",
            &["snapshot", "dump", "--source", &dir, "-C", "lzma"],
            "lzma",
        ),
        (
            "mender",
            &["--data", &dir, "snapshot", "dump", "--source", &dir],
            "Mender's data",
        ),
        (
            "mender-snapshot",
            &["dump", "--source", &dir, "-d", "/no/such"],
            "/no/such: stat",
        ),
        ("mender-snapshot", &["dump", "--source", "/proc"], "/proc"),
        ("mender", &["show-artifact"], "stands in"),
        ("mender", &["snapshot", "dump", "--no-such"], "--no-such"),
    ];
    for (name, line, word) in calls {
        let mut command = Command::new(bin.join(name));
        let run = common::run(command.args(line).stdin(Stdio::null()), Limit::secs(60));
        let run = run.expect_code(1);
        assert!(run.stderr_text().contains(word), "{word}: {run}");
        assert_eq!(run.stdout.len(), 0, "{run}");
        common::assert_not_frozen(made.dir(), name);
    }
    for line in ["snapshot", "--help", "--version"] {
        let run = common::run(Command::new(bin.join("mender")).arg(line), Limit::secs(20));
        assert!(!run.expect_code(0).stdout.is_empty());
    }
}
