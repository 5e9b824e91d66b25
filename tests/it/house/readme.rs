//! The recipes of the README and of docs/, run as written: each block that carries `<!-- run: NAME -->`, by busybox ash, in namespaces of its own in which
//! `/data`, `/mnt/usb`, `/root`, `/dev/mmcblk0p3` and `/dev/mmcblk1` are the test's own, `192.0.2.10` is this machine, and `ssh HOST …` runs
//! the command here (the command line is handed to a shell, as sshd does).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{self, Limit, LoopDevice, LoopFs, Scratch, Spec};

/// The blocks: name and script.
fn recipes() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let text = super::pages().concat();
    for part in text.split("<!-- run: ").skip(1) {
        let (name, rest) = part.split_once(" -->\n```sh\n").expect("a block follows");
        let (script, _) = rest.split_once("\n```").expect("the block ends");
        assert!(
            found.iter().all(|(known, _)| known != name),
            "{name}: twice"
        );
        found.push((name.to_owned(), script.to_owned()));
    }
    found
}

const SETUP: &str = r#"
set -e
ip addr add 192.0.2.10/24 dev lo && ip link set lo up
mkdir -p /data /mnt/usb
mount --bind "$DATA" /data
mount -t tmpfs tmpfs /mnt/usb
mount -t tmpfs -o mode=700 tmpfs /root
mkdir -p "$WORK.bin" && mount --bind /usr/bin "$WORK.bin" && mount -t tmpfs -o mode=755 tmpfs /usr/bin
"$WORK.bin/ln" -s "$WORK.bin"/* /usr/bin/ && rm -f /usr/bin/floe
mount -t tmpfs -o mode=755 tmpfs /dev
mknod /dev/null c 1 3; mknod /dev/zero c 1 5; mknod /dev/urandom c 1 9; mknod /dev/tty c 5 0
chmod 666 /dev/null /dev/zero /dev/urandom
ln -s /proc/self/fd /dev/fd
mknod /dev/mmcblk0p3 b $TARGET
mknod /dev/mmcblk1 b $DISK
export PATH="$TOOLS:$PATH"
# The second line is typed when the first listens. A function: busybox' shell prefers its own nc to one that is found in PATH.
nc() {
    case $1 in -l) ;; *) i=0
        until grep -q ':2328 .* 0A ' /proc/net/tcp /proc/net/tcp6 || [ $i = 300 ]; do i=$((i + 1)); sleep 0.1; done ;;
    esac
    busybox nc "$@"
}
cd "$WORK"
set +e
"#;

#[test]
fn every_recipe_of_the_readme_and_docs_works_as_written() {
    let floe = require_some!(common::floe_path(), "FLOE_BIN");
    require!(
        common::runner().is_none(),
        "no runner: the recipes call floe by its name"
    );
    for tool in [
        "unshare",
        "ip",
        "openssl",
        "split",
        "busybox",
        "sfdisk",
        "flock",
        "age",
        "age-keygen",
    ] {
        require!(common::have(tool), tool);
    }
    let made = require_ok!(LoopFs::make(Spec {
        mib: 64,
        ..Spec::default()
    }));
    made.fill(60);
    let scratch = Scratch::new();
    let (target, disk) = (scratch.join("target"), scratch.join("disk"));
    for (file, size) in [(&target, 64u64), (&disk, 48)] {
        common::sparse(file, size << 20);
    }
    common::output(
        "sh",
        &[
            "-c",
            &format!(
                "printf 'label: gpt\\nsize=20M\\n' | sfdisk -q {}",
                disk.display()
            ),
        ],
    );
    let (target, disk) = (
        LoopDevice::attach(&target, 512),
        LoopDevice::attach(&disk, 512),
    );
    let number = |device: &Path| {
        common::output("lsblk", &["-dno", "MAJ:MIN", &device.to_string_lossy()])
            .trim()
            .replace(':', " ")
    };
    let tools = scratch.join("tools");
    fs::create_dir(&tools).expect("tools");
    common::copy_program(&floe, &tools.join("floe"));
    let script = |name: &str, text: &str| {
        let path = tools.join(name);
        fs::write(&path, text).expect("script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    };
    // Options go; all boards are this machine, which can be frozen by one floe at a time.
    script(
        "ssh",
        "#!/bin/sh\nwhile :; do case $1 in --) shift; break ;; -[opl]) shift 2 ;; -*) shift ;; *) break ;; esac; done\nshift\n\
         case $* in *floe*) exec flock \"$WORK/lock\" sh -c \"$*\" ;; *) exec sh -c \"$*\" ;; esac\n",
    );
    script(
        "sudo",
        "#!/bin/sh\n[ \"$1 $2\" = '-n --' ] || exit 1\nshift 2\nexec \"$@\"\n",
    );
    // Object storage: a folder, and the words of the two tools that the recipes use.
    let store = format!(
        "store={}/store; mkdir -p \"$store\"\n",
        scratch.path().display()
    );
    script(
        "rclone",
        &format!(
            "#!/bin/sh\n{store}at() {{ echo \"$store/$(echo \"$1\" | tr /: __)\"; }}\ncase $1 in\n\
             rcat) exec cat > \"$(at \"$2\")\" ;;\ncat) exec cat \"$(at \"$2\")\" ;;\n\
             moveto) exec mv \"$(at \"$2\")\" \"$(at \"$3\")\" ;;\n*) exit 2 ;;\nesac\n"
        ),
    );
    script(
        "aws",
        &format!(
            "#!/bin/sh\n{store}at() {{ case $1 in s3://*) echo \"$store/$(echo \"$1\" | tr /: __)\" ;; *) exit 2 ;; esac; }}\n\
             case $1.$2.$3.$4 in\ns3.cp.-.*) exec cat > \"$(at \"$4\")\" ;;\n\
             s3.cp.*.-) exec cat \"$(at \"$3\")\" ;;\n\
             s3.mv.*) exec mv \"$(at \"$3\")\" \"$(at \"$4\")\" ;;\n*) exit 2 ;;\nesac\n"
        ),
    );
    let recipes = recipes();
    assert!(recipes.len() >= 20, "the README has lost its recipes");
    for (name, recipe) in recipes {
        let work = scratch.join(format!("work-{name}"));
        fs::create_dir_all(work.join("dist")).expect("work");
        common::copy_program(&floe, &work.join("dist/floe-x86_64"));
        let run = common::run(
            Command::new("unshare")
                .args([
                    "-m",
                    "--propagation",
                    "slave",
                    "-n",
                    "busybox",
                    "ash",
                    "-c",
                    &format!("{SETUP}\n{recipe}\ncode=$?; wait; exit $code"),
                ])
                .env("DATA", made.dir())
                .env("TARGET", number(target.path()))
                .env("DISK", number(disk.path()))
                .env("TOOLS", &tools)
                .env("WORK", &work)
                .env("HOME", "/root")
                .stdin(Stdio::null()),
            Limit::secs(120),
        );
        assert_eq!(run.code, Some(0), "recipe {name}: {run}");
        common::assert_not_frozen(made.dir(), &name);
    }
    for folder in ["/mnt/usb", "/data"] {
        let _ = fs::remove_dir(folder); // only if the test made it and it is empty
    }
}
