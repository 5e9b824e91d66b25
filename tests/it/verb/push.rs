//! `floe push`, `pull --kept`, `pull --send` and `pull --clone`, on the boards of `boards`.

use crate::boards::{Lab, Server, Setup};
use crate::common::{self, Limit, LoopDevice, Scratch};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn one(server: Server, before: &str) -> Result<Lab, String> {
    let mut lab = Lab::new()?;
    lab.add(Setup {
        server,
        before,
        ..Setup::default()
    })?;
    lab.wait_until_up();
    Ok(lab)
}

macro_rules! require_one {
    ($server:expr, $before:expr) => {
        match one($server, $before) {
            Ok(lab) => lab,
            Err(missing) => {
                common::skip(&missing);
                return;
            }
        }
    };
}

/// An image of the board's filesystem, made here.
fn image(lab: &Lab) -> std::path::PathBuf {
    let path = lab.join("data.img.gz");
    let mut floe = common::floe().expect("required before");
    let data = lab.boards[0].data.dir();
    common::run(
        floe.arg("dump").arg(data).arg("-o").arg(&path),
        Limit::secs(60),
    )
    .expect_code(0);
    path
}

fn push(lab: &Lab, file: &Path, words: &[&str]) -> common::Run {
    common::run(
        lab.floe("push").arg(file).arg("10.77.0.1").args(words),
        Limit::secs(60),
    )
}

#[test]
fn push_restores_on_the_board_with_the_refusals_of_restore() {
    drop(require_floe!());
    for server in [Server::OpenSsh, Server::Dropbear] {
        let lab = require_one!(server, "");
        let file = image(&lab);
        let scratch = Scratch::new();
        let target = LoopDevice::filled(&scratch, "target", 8, 0);
        let device = target.path().to_string_lossy().into_owned();
        let run = push(&lab, &file, &[&device, "--verify"]).expect_code(0);
        assert!(run.stderr_text().contains("read back and equal"), "{run}");
        // It was checked here.
        assert!(
            !run.stderr_text().contains("known only at its end"),
            "{run}"
        );
        common::shell(&format!("e2fsck -fn {device}"), Limit::secs(60)).expect_code(0);
        // It holds something now; and what is mounted is refused there as it is here.
        let run = push(&lab, &file, &[&device]).expect_code(4);
        assert!(
            run.stderr_text().contains("--overwrite writes over it"),
            "{run}"
        );
        let mounted = lab.boards[0].data.device().to_string_lossy().into_owned();
        let run = push(&lab, &file, &[&mounted, "--overwrite"]).expect_code(4);
        let said = run.stderr_text().matches("nothing was written").count();
        assert_eq!(said, 1, "{run}");
        push(&lab, &file, &[&device, "--overwrite"]).expect_code(0);
        // Whoever types has no stdin there.
        let run = push(&lab, &file, &[&device, "--overwrite", "--dry-run"]).expect_code(0);
        let would = format!("would be written with {} (", file.display());
        assert!(run.stderr_text().contains(&would), "{run}");
        // A broken file is found here, before the board is asked.
        let broken = lab.join("broken.img.gz");
        let mut bytes = fs::read(&file).expect("image");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&broken, &bytes).expect("broken");
        let run = push(&lab, &broken, &[&device, "--overwrite"]).expect_code(3);
        assert!(run.stderr_text().contains("nothing was sent"), "{run}");
        // A raw image, packed by ssh.
        let raw = lab.join("data.img");
        common::shell(
            &format!("gzip -dc '{}' > '{}'", file.display(), raw.display()),
            Limit::secs(60),
        )
        .expect_code(0);
        push(&lab, &raw, &[&device, "--overwrite"]).expect_code(0);
        common::shell(
            &format!("cmp '{}' {device}", raw.display()),
            Limit::secs(60),
        )
        .expect_code(0);
    }
}

#[test]
fn many_boards_get_an_image_each_checked_on_its_own_and_no_word_becomes_a_file() {
    drop(require_floe!());
    let mut lab = require_one!(Server::OpenSsh, "");
    for _ in 0..2 {
        if let Err(missing) = lab.add(Setup::default()) {
            return common::skip(&missing);
        }
    }
    lab.wait_until_up();
    let file = image(&lab);
    let scratch = Scratch::new();
    let target = LoopDevice::filled(&scratch, "target", 8, 0);
    let device = target.path().to_string_lossy().into_owned();
    let list = lab.join("boards");
    fs::write(&list, "10.77.0.2 # the second\n10.77.0.3\n").expect("list");
    let list = format!("@{}", list.display());
    // A second board's name in the place of the TARGET, and its like.
    for words in [
        &["10.77.0.1", "10.77.0.2"][..],
        &["10.77.0.1", "data=root.img"],
        &["10.77.0.1", "10.77.0.2", "--", "sdb"],
        &["10.77.0.1", "--disk", "sdb"],
    ] {
        let run = common::run(lab.floe("push").arg(&file).args(words), Limit::secs(60));
        let run = run.expect_code(2);
        assert!(
            run.stderr_text().contains("is no TARGET on a board"),
            "{run}"
        );
    }
    // One after another, because here all boards have the same device: the second one finds the first one's image.
    let words = ["10.77.0.1", &list, "-P", "1", "--", &device];
    let run = common::run(lab.floe("push").arg(&file).args(words), Limit::secs(120));
    let run = run.expect_code(1);
    let said = run.stderr_text();
    assert!(said.contains("2 of 3 boards failed"), "{run}");
    let row = |address: &str| {
        let mut lines = said.lines().filter(|line| line.starts_with(address));
        lines.next().unwrap_or_default().to_owned()
    };
    assert!(row("10.77.0.1 ").contains("done"), "{run}");
    for address in ["10.77.0.2 ", "10.77.0.3 "] {
        assert!(row(address).contains("--overwrite"), "{run}");
    }
    let words = ["--overwrite", "10.77.0.1", &list, "-P", "1", "--", &device];
    let run = common::run(lab.floe("push").arg(&file).args(words), Limit::secs(120));
    run.expect_code(0);
    common::shell(&format!("e2fsck -fn {device}"), Limit::secs(60)).expect_code(0);
}

/// /etc/floe.conf is the board's own: an empty /etc over the machine's.
const WITH_STORE: &str = "cp /etc/passwd /etc/shells /run; mount -t tmpfs tmpfs /etc; cp /run/passwd /run/shells /etc; \
    mkdir /run/store; echo 'store = /run/store' > /etc/floe.conf";

fn pull(lab: &Lab, words: &[&str], to: &Path) -> common::Run {
    let mut floe = lab.floe("pull");
    floe.arg("10.77.0.1").args(words).arg("-o").arg(to);
    common::run(&mut floe, Limit::secs(60))
}

#[test]
fn what_a_kept_snapshot_may_replace_is_judged_by_what_arrives() {
    drop(require_floe!());
    let lab = require_one!(Server::OpenSsh, WITH_STORE);
    for (name, more) in [
        ("factory", &["--factory"][..]),
        ("rescue", &["--rescue"]),
        ("plain", &[]),
    ] {
        let file = lab.join(name);
        let words = ["--create", "data=/mnt"];
        pull(&lab, &[&words[..], more].concat(), &file).expect_code(0);
        push(&lab, &file, &["--store"]).expect_code(0);
    }
    let mut list = lab.boards[0].command("sh");
    let list = common::run(list.args(["-c", "ls /run/store"]), Limit::secs(20)).stdout_text();
    let names: Vec<&str> = list.lines().collect();
    let [factory, rescue, plain] = names[..] else {
        panic!("{list}");
    };
    let file = lab.join("x.zip");
    let comes = |name: &str| pull(&lab, &["--kept", name], &file);
    for (there, others) in [
        (factory, &[rescue, plain, "latest"][..]),
        (rescue, &[factory, plain]),
    ] {
        pull(&lab, &["--kept", there, "--overwrite"], &file).expect_code(0);
        let before = fs::read(&file).expect("file");
        for other in others {
            let said = comes(other).expect_code(1).stderr_text();
            assert!(said.contains(" snapshot, which is kept: "), "{said}");
            assert!(said.contains("--overwrite replaces it"), "{said}");
            assert!(fs::read(&file).expect("file") == before);
            assert!(!lab.join("x.zip.part").exists());
        }
        // The same command works twice.
        comes(there).expect_code(0);
        comes(there).expect_code(0);
    }
    pull(&lab, &["--kept", plain, "--overwrite"], &file).expect_code(0);
    comes("latest").expect_code(0);
    comes(factory).expect_code(0);
    // The latest may be one that is to be kept.
    let mut remove = lab.boards[0].command("rm");
    common::run(remove.arg(format!("/run/store/{plain}")), Limit::secs(20)).expect_code(0);
    pull(&lab, &["--kept", rescue, "--overwrite"], &file).expect_code(0);
    comes("latest").expect_code(0);
    comes(factory).expect_code(1);
}

#[test]
fn a_snapshot_goes_into_the_boards_store_and_comes_back_the_same() {
    drop(require_floe!());
    for server in [Server::OpenSsh, Server::Dropbear] {
        let lab = require_one!(server, WITH_STORE);
        let zip = lab.join("board.zip");
        let pulled = |words: &[&str], to: &Path| pull(&lab, words, to);
        pulled(&["--create", "data=/mnt", "--comment", "it's a test"], &zip).expect_code(0);
        let run = pulled(&["--kept", "latest"], &lab.join("none.zip")).expect_code(1);
        assert!(
            run.stderr_text().contains("has no snapshot 'latest'"),
            "{run}"
        );
        assert!(!lab.join("none.zip").exists());
        let run = push(&lab, &zip, &["--store"]).expect_code(0);
        assert!(run.stderr_text().contains("kept as /run/store/"), "{run}");
        push(&lab, &zip, &["--store"]).expect_code(0);
        let mut list = lab.boards[0].command("sh");
        let list = common::run(
            list.args(["-c", "cd /run/store && stat -c '%a %n' * .floe.lock"]),
            Limit::secs(20),
        );
        let text = list.stdout_text();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("600 "))
            .collect();
        assert_eq!(names.len(), 2, "{list}");
        assert!(names[1].ends_with("Z-0002.zip"), "{list}");
        for name in [names[0], "latest"] {
            let back = lab.join("back.zip");
            pulled(&["--kept", name], &back).expect_code(0);
            assert_eq!(
                fs::read(&back).expect("back"),
                fs::read(&zip).expect("zip"),
                "{name}"
            );
        }
        // A damaged one in the store is found on its way, and an older file here stays.
        let mut damage = lab.boards[0].command("sh");
        let damage = damage.args([
            "-c",
            "cd /run/store && printf X | dd of=$(ls | tail -1) bs=1 seek=3000 conv=notrunc",
        ]);
        common::run(damage, Limit::secs(20)).expect_code(0);
        let run = pulled(&["--kept", names[1]], &lab.join("back.zip")).expect_code(1);
        assert_eq!(
            fs::read(lab.join("back.zip")).expect("back"),
            fs::read(&zip).expect("zip"),
            "{run}"
        );
        let run = push(&lab, &image(&lab), &["--store"]).expect_code(4);
        assert!(run.stderr_text().contains("is no snapshot"), "{run}");
    }
}

/// A board without floe, whose own shell is busybox ash, with these places mounted noexec.
fn bare(noexec: &str) -> String {
    format!(
        "rm /run/bin/floe; mount --bind \"$(command -v busybox)\" \"$(readlink -f /bin/sh)\"; \
         sed 's|:[^:]*/ash$|:/bin/sh|' /etc/passwd > /run/passwd; mount --bind /run/passwd /etc/passwd; echo /bin/sh > /etc/shells; \
         mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /var/tmp; \
         home=$(sed -n 's/^root:.*:\\(.*\\):.*/\\1/p' /etc/passwd); for place in {noexec}; do mount --rbind $place $place; mount -o remount,bind,noexec $place; done"
    )
}

/// What `--send` may have left on a board.
fn left_over(lab: &Lab) -> String {
    let mut find = lab.boards[0].command("sh");
    let find = find.args([
        "-c",
        "ls -d /run/.floe* /dev/shm/.floe* /tmp/.floe* /var/tmp/.floe* ~/.floe* 2>/dev/null; true",
    ]);
    let home = lab.join("home");
    common::run(find.env("HOME", home), Limit::secs(20)).stdout_text()
}

fn sending(lab: &Lab, binaries: &Path, more: &[&str]) -> Command {
    let mut pull = lab.floe("pull");
    pull.args(["10.77.0.1", "--dump", "/mnt", "--send", "--binaries"])
        .arg(binaries)
        .args(more);
    pull
}

#[test]
fn floe_is_brought_along_checked_run_and_nothing_is_left() {
    drop(require_floe!());
    let arch = common::floe_arch().expect("arch");
    for server in [Server::OpenSsh, Server::Dropbear] {
        for (noexec, works) in [
            ("", true),
            ("/run /dev/shm /tmp", true),
            ("/run /dev/shm /tmp /var/tmp $home", false),
        ] {
            let mut before = bare(noexec);
            if works && server == Server::Dropbear {
                // Then floe itself has to say what the checksum is.
                before.push_str("; mount --bind /dev/null \"$(command -v sha256sum)\"");
            }
            let lab = require_one!(server, &before);
            let dist = lab.join("dist");
            fs::create_dir(&dist).expect("dist");
            let run = common::run(&mut sending(&lab, &dist, &["-o", "-"]), Limit::secs(60))
                .expect_code(1);
            assert!(run.stderr_text().contains("--binaries"), "{run}");
            assert!(!run.stderr_text().contains("os error"), "{run}");
            fs::copy(lab.join("floe"), dist.join(format!("floe-{arch}"))).expect("floe");
            let file = lab.join("x.img.gz");
            let mut pull = sending(&lab, &dist, &["-o"]);
            let run = common::run(pull.arg(&file), Limit::secs(60));
            assert_eq!(left_over(&lab), "", "{run}");
            if works {
                assert_eq!(run.code, Some(0), "{run}");
                let shown = file.display();
                common::shell(&format!("gzip -t '{shown}'"), Limit::secs(60)).expect_code(0);
            } else {
                assert_eq!(run.code, Some(1), "{run}");
                assert!(
                    run.stderr_text()
                        .contains("/var/tmp: nothing may be run there"),
                    "{run}"
                );
                assert!(!file.exists());
            }
        }
    }
}

#[test]
fn an_interrupted_send_leaves_nothing_on_the_board() {
    drop(require_floe!());
    let arch = common::floe_arch().expect("arch");
    let lab = require_one!(Server::OpenSsh, &bare(""));
    let dist = lab.join("dist");
    fs::create_dir(&dist).expect("dist");
    let path = dist.join(format!("floe-{arch}"));
    fs::copy(lab.join("floe"), &path).expect("floe");
    // Larger, so that there is time: what stands behind an ELF file does not matter to it.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(60 << 20))
        .expect("larger");
    for victim in ["INT", "KILL"] {
        let mut pull = sending(&lab, &dist, &["-o", "-"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("floe");
        let end = Instant::now() + Duration::from_secs(20);
        while left_over(&lab).is_empty() {
            assert!(Instant::now() < end, "the place never appeared");
            thread::sleep(Duration::from_millis(10));
        }
        common::signal(pull.id(), victim);
        assert!(common::wait_for(&mut pull, Duration::from_secs(10)).is_some());
        let end = Instant::now() + Duration::from_secs(10);
        while !left_over(&lab).is_empty() {
            assert!(
                Instant::now() < end,
                "left after {victim}: {}",
                left_over(&lab)
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
    common::assert_not_frozen(lab.boards[0].data.dir(), "after an interrupted send");
}

#[test]
fn clone_works_on_all_boards_and_every_line_says_which() {
    drop(require_floe!());
    let scratch = [Scratch::new(), Scratch::new()];
    let targets = scratch
        .each_ref()
        .map(|scratch| LoopDevice::filled(scratch, "target", 8, 0));
    let mut lab = require_lab!();
    for (target, server) in targets.iter().zip([Server::OpenSsh, Server::Dropbear]) {
        let node = target.path().display();
        let before = format!(
            "mknod /run/standby b $(busybox stat -c '0x%t 0x%T' {node} | (read a b; echo $((a)) $((b))))"
        );
        let before = before.as_str();
        require_board!(
            lab,
            Setup {
                server,
                before,
                ..Setup::default()
            }
        );
    }
    lab.wait_until_up();
    let clone = |words: &[&str]| {
        let mut pull = lab.floe("pull");
        pull.args(["10.77.0.1", "10.77.0.2", "--clone", "/mnt=/run/standby"]);
        common::run(pull.args(words), Limit::secs(60))
    };
    let run = clone(&["--verify"]).expect_code(0);
    let text = run.stderr_text();
    for board in ["10.77.0.1", "10.77.0.2"] {
        let mut lines = text.lines();
        let archived = lines.any(|line| {
            line.starts_with(&format!("floe: {board}: ")) && line.contains("were archived: /mnt")
        });
        assert!(archived, "{board}: {run}");
    }
    for target in &targets {
        let device = target.path().display();
        common::shell(&format!("e2fsck -fn {device}"), Limit::secs(60)).expect_code(0);
    }
    // The second time they hold something.
    let run = clone(&[]).expect_code(1);
    assert!(run.stderr_text().contains("--overwrite"), "{run}");
    assert!(run.stderr_text().contains("2 of 2 boards failed"), "{run}");
}

#[test]
fn sudo_that_wants_a_password_is_named_with_the_way_out() {
    drop(require_floe!());
    // What stands in for sudo: it refuses as sudo does without a password, or runs what it is given.
    let before = "mkdir /run/sbin; printf '#!/bin/sh\\n[ \"$1 $2\" = \"-n --\" ] || exit 9\\n[ -e /run/nopasswd ] || { echo \"sudo: a password is required\" >&2; exit 1; }\\n\
        shift 2; exec \"$@\"\\n' > /run/sbin/sudo; chmod 755 /run/sbin/sudo; export PATH=/run/sbin:$PATH";
    let before = format!("{before}; mount --bind /run/sbin /usr/local/sbin");
    let lab = require_one!(Server::OpenSsh, &before);
    let pull = || {
        let mut pull = lab.floe("pull");
        pull.args(["10.77.0.1", "--sudo", "--dump", "/mnt", "-o", "-"]);
        pull
    };
    let run = common::run(&mut pull(), Limit::secs(60)).expect_code(1);
    let text = run.stderr_text();
    if text.contains("not found") {
        return common::skip("a PATH of sshd that has /usr/local/sbin");
    }
    assert!(
        text.contains("a password is required") && text.contains("NOPASSWD"),
        "{run}"
    );
    common::run(
        lab.boards[0].command("touch").arg("/run/nopasswd"),
        Limit::secs(20),
    )
    .expect_code(0);
    common::run(&mut pull(), Limit::secs(60)).expect_code(0);
}

#[test]
fn an_exit_code_without_a_report_is_no_clone() {
    let mut floe = require_floe!();
    let scratch = common::Scratch::new();
    // What a forced command, or something else that is called floe there, may answer.
    let ssh = scratch.join("ssh");
    fs::write(&ssh, "#!/bin/sh\necho hello\nexit 0\n").expect("ssh");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&ssh, mode).expect("ssh");
    let path = std::env::var("PATH").unwrap_or_default();
    floe.env("PATH", format!("{}:{path}", scratch.path().display()));
    floe.args(["pull", "board", "--clone", "/mnt=/dev/sdz9"]);
    let run = common::run(&mut floe, Limit::secs(30)).expect_code(1);
    let text = run.stderr_text();
    assert!(
        text.contains("the report of floe there is missing"),
        "{run}"
    );
}

#[test]
fn a_file_and_a_host_in_the_wrong_order_are_named_with_the_right_one() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let file = scratch.join("data.img.gz");
    fs::write(&file, "image").expect("file");
    for host in ["root@board", "board"] {
        let mut floe = require_floe!();
        floe.args(["push", host]).arg(&file).arg("/dev/x");
        let run = common::run(&mut floe, Limit::secs(20)).expect_code(2);
        let right = format!("floe push {} {host} TARGET", file.display());
        assert!(run.stderr_text().contains(&right), "{run}");
        // The TARGET in front of the HOST, which may be left out.
        for (words, named) in [(&["/dev/x", host][..], host), (&["LABEL=x"], "HOST")] {
            let mut floe = require_floe!();
            floe.arg("push").arg(&file).args(words);
            let run = common::run(&mut floe, Limit::secs(20)).expect_code(2);
            let right = format!("as in: floe push {} {named} {}", file.display(), words[0]);
            assert!(run.stderr_text().contains(&right), "{run}");
        }
    }
}

#[test]
fn a_board_without_a_store_or_without_sudo_is_answered_with_what_helps() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let ssh = scratch.join("ssh");
    let path = std::env::var("PATH").unwrap_or_default();
    let run = |script: &str, words: &[&str], code| {
        fs::write(&ssh, format!("#!/bin/sh\n{script}\n")).expect("ssh");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&ssh, mode).expect("ssh");
        let mut floe = common::floe().expect("FLOE_BIN");
        floe.env("PATH", format!("{}:{path}", scratch.path().display()));
        common::run(floe.args(words), Limit::secs(30)).expect_code(code)
    };
    // As older ones say it.
    let list = "echo 'floe: list: the DIR to list is missing; see floe list --help' >&2; exit 2";
    let text = run(list, &["list", "board"], 4).stderr_text();
    assert!(text.contains("board: list: the DIR"), "{text}");
    assert!(text.contains("its own /etc/floe.conf names"), "{text}");
    let none = "echo 'sh: sudo: command not found' >&2; exit 127";
    for more in [&[][..], &["--send"]] {
        let words = [&["pull", "board", "--sudo", "-o", "-"], more].concat();
        let text = run(none, &words, 1).stderr_text();
        assert!(text.contains("log in as root"), "{text}");
        assert!(!text.contains("--send brings"), "{text}");
    }
}

#[test]
fn an_interrupted_push_or_list_says_what_it_leaves_and_what_helps() {
    drop(require_floe!());
    let mute = "rm /run/bin/floe; printf '#!/bin/sh\\nexec sleep 61\\n' > /run/bin/floe; chmod 755 /run/bin/floe";
    let lab = require_one!(Server::OpenSsh, mute);
    let file = image(&lab);
    let file = file.to_string_lossy();
    let push = |more: &[&'static str]| [&["push", &file, "10.77.0.1", "/dev/x"], more].concat();
    for (words, said) in [
        (
            push(&[]),
            "10.77.0.1 may not be usable: floe show /dev/x there tells; the same push again repairs it (with --overwrite",
        ),
        (
            push(&["--dry-run"]),
            "10.77.0.1 was being asked; nothing was written",
        ),
        (vec!["list", "10.77.0.1"], "nothing was changed"),
    ] {
        let mut floe = lab.floe(words[0]);
        let mut push = floe
            .args(&words[1..])
            .stderr(Stdio::piped())
            .spawn()
            .expect("floe");
        let comm = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let end = Instant::now() + Duration::from_secs(20);
        while !lab.boards[0]
            .pids()
            .into_iter()
            .any(|pid| comm(pid) == "sleep\n")
        {
            assert!(Instant::now() < end, "floe was never asked");
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(500));
        common::signal(push.id(), "INT");
        common::wait_for(&mut push, Duration::from_secs(10)).expect("ends");
        let mut text = String::new();
        let mut stderr = push.stderr.take().expect("piped");
        std::io::Read::read_to_string(&mut stderr, &mut text).expect("text");
        assert!(text.contains(said), "{text}");
        assert!(!text.contains("pull"), "{text}");
        for pid in lab.boards[0].pids() {
            if comm(pid) == "sleep\n" {
                common::signal(pid, "KILL");
            }
        }
    }
}

#[test]
fn a_push_that_a_terminal_interrupts_together_with_its_ssh_says_that_the_target_was_begun() {
    drop(require_floe!());
    let mute = "rm /run/bin/floe; printf '#!/bin/sh\\nexec sleep 62\\n' > /run/bin/floe; chmod 755 /run/bin/floe";
    let lab = require_one!(Server::OpenSsh, mute);
    let file = image(&lab);
    let mut floe = lab.floe("push");
    let mut push = floe
        .args([&*file.to_string_lossy(), "10.77.0.1", "/dev/x"])
        .process_group(0)
        .stderr(Stdio::piped())
        .spawn()
        .expect("floe");
    let comm = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let sleeper = || {
        let mut pids = lab.boards[0].pids().into_iter();
        pids.find(|pid| comm(*pid) == "sleep\n")
    };
    let end = Instant::now() + Duration::from_secs(20);
    while sleeper().is_none() {
        assert!(Instant::now() < end, "floe was never asked");
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500));
    common::output("kill", &["-INT", "--", &format!("-{}", push.id())]);
    common::wait_for(&mut push, Duration::from_secs(10)).expect("ends");
    let mut text = String::new();
    let mut stderr = push.stderr.take().expect("piped");
    std::io::Read::read_to_string(&mut stderr, &mut text).expect("text");
    assert!(
        text.contains("10.77.0.1 may not be usable: floe show /dev/x there tells"),
        "{text}"
    );
    assert!(!text.contains("nothing was sent"), "{text}");
    sleeper()
        .into_iter()
        .for_each(|pid| common::signal(pid, "KILL"));
}
