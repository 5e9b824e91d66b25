//! `floe artifact`: what Debian's `mender-artifact` thinks of what floe writes, the header that it would have written itself for the
//! same image, and the images that are no good.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use floe::json::{self, Value};

use crate::boards::{Lab, Server, Setup};
use crate::common::{self, Limit, Run, Scratch};

/// An ext4 image with something in it; made without mounting.
fn image(scratch: &Scratch, mib: u64) -> PathBuf {
    let path = scratch.join("rootfs.ext4");
    let files = scratch.join("files");
    fs::create_dir(&files).expect("files");
    common::fill(&files, 80);
    common::sparse(&path, mib << 20);
    let (from, to) = (files.to_string_lossy(), path.to_string_lossy());
    common::output("mkfs.ext4", &["-q", "-F", "-d", &from, &to]);
    path
}

fn mender_artifact(args: &[&str]) -> Run {
    let mut command = Command::new("mender-artifact");
    common::run(command.args(args).stdin(Stdio::null()), Limit::secs(120))
}

fn floe(image: &Path, options: &[&str], output: &Path) -> Option<Run> {
    let mut command = common::floe()?;
    command.arg("artifact").arg(image).args(options);
    Some(common::run(command.arg("-o").arg(output), Limit::secs(120)))
}

/// Everything an artifact holds, the archives in it unpacked: path → bytes.
fn members(artifact: &Path) -> BTreeMap<String, Vec<u8>> {
    let script = "import sys, tarfile, json, base64, io
out = {}
def walk(where, file):
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            body = archive.extractfile(member).read()
            out[where + member.name] = base64.b64encode(body).decode()
            if '.tar' in member.name:
                walk(member.name.split('.tar')[0] + ':', io.BytesIO(body))
walk('', open(sys.argv[1], 'rb'))
print('\\n'.join(name + ' ' + body for name, body in out.items()))";
    let text = common::output("python3", &["-c", script, &artifact.to_string_lossy()]);
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let (name, body) = line.split_once(' ').expect("a name and a body");
        let mut decode = Command::new("base64");
        let run = common::run_with_input(
            decode.arg("-d"),
            format!("{body}\n").as_bytes(),
            Limit::secs(30),
        );
        found.insert(name.to_owned(), run.expect_code(0).stdout);
    }
    found
}

/// JSON with objects sorted, so that their order does not count.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut all: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{key:?}:{}", sorted(value)))
                .collect();
            all.sort();
            format!("{{{}}}", all.join(","))
        }
        Value::List(values) => {
            let all: Vec<String> = values.iter().map(sorted).collect();
            format!("[{}]", all.join(","))
        }
        other => format!("{other:?}"),
    }
}

fn parsed(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    sorted(&json::parse(bytes).unwrap_or_else(|e| panic!("{e:?}: {text}")))
}

macro_rules! require_tools {
    () => {
        require!(common::have("mender-artifact"), "mender-artifact");
        require!(common::have("python3"), "python3");
        require!(common::have("mkfs.ext4"), "mkfs.ext4");
    };
}

#[test]
fn mender_artifact_accepts_it_and_the_payload_is_the_image_bit_for_bit() {
    require_tools!();
    let scratch = Scratch::new();
    let image = image(&scratch, 24);
    let raw = fs::read(&image).expect("image");
    let packed = scratch.join("rootfs.ext4.gz");
    let gzip = format!("gzip -1 < {} > {}", image.display(), packed.display());
    common::shell(&gzip, Limit::secs(60)).expect_code(0);
    let output = scratch.join("x.mender");
    for (from, compression) in [
        (&image, "gzip"),
        (&image, "none"),
        (&packed, "gzip"),
        (&packed, "none"),
    ] {
        let options = ["-n", "rel-1", "-t", "board", "-z", compression];
        let run = require_some!(floe(from, &options, &output), "FLOE_BIN").expect_code(0);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
        mender_artifact(&["validate", &output.to_string_lossy()]).expect_code(0);
        let read = mender_artifact(&["read", "--no-progress", &output.to_string_lossy()]);
        let told = read.expect_code(0).stdout_text();
        for word in [
            "Name: rel-1",
            "[board]",
            "rootfs-image",
            "size:     25165824",
        ] {
            assert!(told.contains(word), "{word}: {told}");
        }
        let found = members(&output);
        assert!(found["data/0000:rootfs.ext4"] == raw, "{compression}");
        assert!(!scratch.join("x.mender.part").exists());
        let mode = fs::metadata(&output).expect("artifact").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
    // Damage is found by Mender's tool: the checksums are those of the bytes.
    let mut bytes = fs::read(&output).expect("artifact");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&output, bytes).expect("artifact");
    let run = mender_artifact(&["validate", &output.to_string_lossy()]);
    assert_ne!(run.code, Some(0), "{run}");
}

#[test]
fn headers_say_what_mender_artifact_would_say() {
    require_tools!();
    let scratch = Scratch::new();
    let image = image(&scratch, 8);
    let script = scratch.join("ArtifactInstall_Enter_05_wifi");
    fs::write(&script, "#!/bin/sh\nexit 0\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    let script = script.to_string_lossy().into_owned();
    let cases: [(&[&str], &[&str]); 6] = [
        (&[], &[]),
        (&["--artifact-group", "fix"], &["--provides-group", "fix"]),
        (
            &["--software-name", "os", "--software-version", "7<&>\"ä"],
            &["--software-name", "os", "--software-version", "7<&>\"ä"],
        ),
        (
            &["--software-filesystem", "data", "--clears-provides", "a.*"],
            &["--software-filesystem", "data", "--clears-provides", "a.*"],
        ),
        (
            &[
                "--provides",
                "a.b:c:d",
                "--depends",
                "k:v",
                "--provides",
                "rootfs-image.version:own",
            ],
            &[
                "--provides",
                "a.b:c:d",
                "--depends",
                "k:v",
                "--provides",
                "rootfs-image.version:own",
            ],
        ),
        (
            &["--script", &script, "--clears-provides", "rootfs-image.*"],
            &["--script", &script, "--clears-provides", "rootfs-image.*"],
        ),
    ];
    let (ours, theirs) = (scratch.join("ours.mender"), scratch.join("theirs.mender"));
    for (options, their_options) in cases {
        let common_options = ["-n", "rel-1", "-t", "board", "-t", "other"];
        let all = [&common_options[..], options].concat();
        require_some!(floe(&image, &all, &ours), "FLOE_BIN").expect_code(0);
        let (file, output) = (image.to_string_lossy(), theirs.to_string_lossy());
        let head = [
            "write",
            "rootfs-image",
            "--no-progress",
            "-f",
            &file,
            "-o",
            &output,
        ];
        let all = [&head[..], &common_options[..], their_options].concat();
        mender_artifact(&all).expect_code(0);
        mender_artifact(&["validate", &ours.to_string_lossy()]).expect_code(0);
        let (ours, theirs) = (members(&ours), members(&theirs));
        let names: Vec<&String> = ours.keys().collect();
        assert_eq!(names, theirs.keys().collect::<Vec<_>>(), "{options:?}");
        for name in [
            "version",
            "header:header-info",
            "header:headers/0000/type-info",
        ] {
            // Debian's 3.9.0 leaves the type in type-info empty; the format's document asks for it.
            let theirs = String::from_utf8_lossy(&theirs[name])
                .replace("\"type\":\"\"", "\"type\":\"rootfs-image\"");
            assert_eq!(
                parsed(&ours[name]),
                parsed(theirs.as_bytes()),
                "{name} {options:?}"
            );
        }
        for (name, bytes) in &ours {
            let same = name.starts_with("data/0000:") || name.contains("scripts/");
            assert!(!same || *bytes == theirs[name], "{name}");
        }
        let sums = |manifest: &[u8]| {
            let text = String::from_utf8(manifest.to_vec()).expect("manifest");
            let lines = text.lines().filter(|line| !line.contains("header.tar"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(sums(&ours["manifest"]), sums(&theirs["manifest"]));
    }
}

#[test]
fn a_pipe_in_is_read_once_and_a_pipe_out_wants_the_image_as_a_file() {
    require_tools!();
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let scratch = Scratch::new();
    let image = image(&scratch, 8);
    let (image, to) = (image.display(), scratch.path().display());
    let make = format!("{words} artifact -q -n a -t b");
    for line in [
        format!("cat {image} | {make} - -o {to}/1"),
        format!("gzip < {image} | {make} - > {to}/2"),
        format!("{make} {image} | cat > {to}/3"),
        format!("{make} {image} -z none | cat > {to}/4"),
        format!("{make} {image} >> {to}/5"),
    ] {
        common::shell(&format!("set -o pipefail; {line}"), Limit::secs(60)).expect_code(0);
    }
    for number in 1..=5 {
        let path = scratch.join(number.to_string());
        mender_artifact(&["validate", &path.to_string_lossy()]).expect_code(0);
    }
    let line = format!("set -o pipefail; cat {image} | {make} - | cat > {to}/6");
    let run = common::shell(&line, Limit::secs(60)).expect_code(4);
    assert!(run.stderr_text().contains("-o FILE"), "{run}");
    assert_eq!(
        fs::metadata(scratch.join("6")).expect("made by cat").len(),
        0
    );
    // A closed pipe is exit 1, and one line says so.
    let line = format!("set +e; {make} {image} | true; echo ${{PIPESTATUS[0]}}");
    let run = common::shell(&line, Limit::secs(60));
    assert_eq!(run.stdout_text().trim(), "1", "{run}");
    assert_eq!(
        run.stderr_text(),
        "floe: stdout: the reader closed the pipe; the artifact is incomplete\n"
    );
}

#[test]
fn an_entry_of_a_snapshot_becomes_the_payload() {
    require_tools!();
    let scratch = Scratch::new();
    let image = image(&scratch, 8);
    let snapshot = scratch.join("board.zip");
    let mut create = require_floe!();
    create.args(["create", "-q"]);
    for name in ["one", "two"] {
        create.arg(format!("{name}={}", image.display()));
    }
    common::run(create.arg("-o").arg(&snapshot), Limit::secs(60)).expect_code(0);
    let output = scratch.join("x.mender");
    let options = ["-n", "a", "-t", "b", "--entry", "two"];
    let run = require_some!(floe(&snapshot, &options, &output), "FLOE_BIN");
    run.expect_code(0);
    mender_artifact(&["validate", &output.to_string_lossy()]).expect_code(0);
    assert!(members(&output)["data/0000:two.img"] == fs::read(&image).expect("image"));
    let run = floe(&snapshot, &["-n", "a", "-t", "b"], &output).expect("floe");
    assert!(run.expect_code(4).stderr_text().contains("one, two"));
}

#[test]
fn a_corrupt_or_truncated_image_is_exit_3_and_leaves_no_file() {
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::new();
    let image = image(&scratch, 8);
    let raw = fs::read(&image).expect("image");
    let mut gzip = Command::new("gzip");
    let packed = common::run_with_input(gzip.arg("-1"), &raw, Limit::secs(60)).stdout;
    let mut flipped = packed.clone();
    let end = flipped.len() - 6;
    flipped[end] ^= 1;
    let bad = scratch.join("bad");
    let output = scratch.join("x.mender");
    for (what, bytes) in [
        ("a short raw image", &raw[..raw.len() - 4096]),
        ("a short gzip", &packed[..packed.len() - 100]),
        ("a wrong CRC", &flipped[..]),
        ("nothing", &[]),
        ("xz", b"\xfd7zXZ\0 and so on"),
    ] {
        fs::write(&bad, bytes).expect("write");
        let run = require_some!(floe(&bad, &["-n", "a", "-t", "b"], &output), "FLOE_BIN");
        let run = run.expect_code(3);
        assert_eq!(run.stderr_text().lines().count(), 1, "{what}: {run}");
        let left: Vec<_> = fs::read_dir(scratch.path())
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name())
            .filter(|name| name.to_string_lossy().contains("mender"))
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

#[test]
fn a_signal_ends_it_at_once_and_takes_the_part_file_along() {
    let scratch = Scratch::new();
    let output = scratch.join("x.mender");
    let mut command = require_floe!();
    // The input never ends, and nothing comes.
    let mut child = command
        .args(["artifact", "--any-content", "-", "-n", "a", "-t", "b", "-o"])
        .arg(&output)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("floe");
    let mut stdin = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, &vec![7; 2 << 20]).expect("write");
    let part = scratch.join("x.mender.part");
    let made = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        part.exists()
    });
    assert!(made);
    common::output("kill", &["-TERM", &child.id().to_string()]);
    let status = common::wait_for(&mut child, std::time::Duration::from_secs(10)).expect("ended");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(15)
    );
    assert!(!part.exists() && !output.exists());
}

#[test]
fn a_wrong_command_line_is_exit_2_and_touches_nothing() {
    let scratch = Scratch::new();
    let output = scratch.join("x.mender");
    let bad: [&[&str]; 9] = [
        &[],
        &["-n", "a"],
        &["-t", "b"],
        &["-n", "a b", "-t", "c"],
        &["-n", "a", "-t", "b", "--provides", "novalue"],
        &["-n", "a", "-t", "b", "--script", "Download_Enter_00"],
        &["-n", "a", "-t", "b", "--script", "x/ArtifactCommit_Leave"],
        &["-n", "a", "-t", "b", "--compression", "lzma"],
        &["-n", "a", "-t", "b", "second"],
    ];
    for options in bad {
        let run = require_some!(floe(Path::new("/no/such"), options, &output), "FLOE_BIN");
        let run = run.expect_code(2);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
    }
    let run = floe(Path::new("/no/such"), &["-n", "a", "-t", "b"], &output).expect("floe");
    assert!(run.expect_code(4).stderr_text().contains("/no/such: open"));
    let same = scratch.join("same");
    fs::write(&same, [7; 9999]).expect("write");
    let run = floe(&same, &["-n", "a", "-t", "b"], &output).expect("floe");
    assert!(run.expect_code(3).stderr_text().contains("is no image"));
    let options = ["-n", "a", "-t", "b", "--any-content"];
    let run = floe(&same, &options, &same).expect("floe");
    assert!(run.expect_code(4).stderr_text().contains("image itself"));
    assert_eq!(fs::metadata(&same).expect("still there").len(), 9999);
}

#[test]
#[ignore = "half a minute of CPU: checksums of 8 GiB (tests/run --full)"]
fn sizes_beyond_8_gib_are_written_and_read() {
    require_tools!();
    // Checksums of 8 GiB take minutes under emulation.
    require!(
        common::runner().is_none(),
        "no runner in front of the executable"
    );
    let scratch = Scratch::new();
    let image = scratch.join("large.img");
    let file = fs::File::create(&image).expect("image");
    file.set_len((8 << 30) + 512).expect("sparse");
    drop(file);
    let output = scratch.join("x.mender");
    let options = [
        "-n",
        "a",
        "-t",
        "b",
        "-z",
        "none",
        "--report",
        "-",
        "-q",
        "--any-content",
    ];
    let run = require_some!(floe(&image, &options, &output), "FLOE_BIN").expect_code(0);
    assert!(
        run.stderr_text().contains("\"size_bytes\":8589935104"),
        "{run}"
    );
    // Not compressed: the member is as large, and the zeros are a hole.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&output).expect("artifact"));
    assert!(blocks < 1000, "{blocks}");
    let mut read = Command::new("mender-artifact");
    read.args(["read", "--no-progress"]).arg(&output);
    let told = common::run(&mut read, Limit::secs(300))
        .expect_code(0)
        .stdout_text();
    assert!(told.contains("size:     8589935104"), "{told}");
}

#[test]
fn a_pull_becomes_an_artifact_and_the_image_is_nowhere_on_the_host() {
    require_tools!();
    drop(require_floe!());
    let mut lab = require_ok!(Lab::new());
    for server in [Server::OpenSsh, Server::Dropbear] {
        let setup = Setup {
            server,
            mib: 16,
            ..Setup::default()
        };
        if let Err(missing) = lab.add(setup) {
            return common::skip(&missing);
        }
    }
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let options = ["--artifact", "-n", "golden", "-t", "board", "-o"];
    let mut pull = lab.floe("pull");
    pull.args(["10.77.0.1", "10.77.0.2", "--dump", "/mnt"]);
    common::run(pull.args(options).arg(&out), Limit::secs(90)).expect_code(0);
    for board in ["10.77.0.1", "10.77.0.2"] {
        let artifact = out.join(format!("{board}.mender"));
        mender_artifact(&["validate", &artifact.to_string_lossy()]).expect_code(0);
        let image = lab.join("image");
        fs::write(
            &image,
            &members(&artifact)[&format!("data/0000:{board}.img")],
        )
        .expect("image");
        common::output("e2fsck", &["-fn", &image.to_string_lossy()]);
    }
    assert_eq!(fs::read_dir(&out).expect("out").count(), 2);
    // What fails leaves no artifact, and what makes no sense asks no board.
    let file = lab.join("x.mender");
    let mut pull = lab.floe("pull");
    pull.args(["10.77.0.1", "--dump", "/no/such"]);
    common::run(pull.args(options).arg(&file), Limit::secs(60)).expect_code(1);
    assert!(!file.exists() && !lab.join("x.mender.part").exists());
    // Nor does what would be taken for no image.
    let odd = lab.join("odd");
    fs::write(&odd, common::Random(5).bytes(1 << 20)).expect("odd");
    let mut pull = lab.floe("pull");
    pull.args(["10.77.0.1", "--whole", "--dump"]).arg(&odd);
    let run = common::run(pull.args(options).arg(&file), Limit::secs(60)).expect_code(1);
    assert!(run.stderr_text().contains("--any-content"), "{run}");
    assert!(!file.exists() && !lab.join("x.mender.part").exists());
    let bad: [&[&str]; 4] = [
        &["--artifact", "-t", "b"],
        &["-n", "a", "-t", "b"],
        &["--artifact", "-n", "a", "-t", "b", "-o", "-"],
        &["--artifact", "-n", "a", "-t", "b", "--kept", "latest"],
    ];
    for line in bad {
        let mut pull = lab.floe("pull");
        common::run(pull.arg("10.77.0.1").args(line), Limit::secs(20)).expect_code(2);
    }
}

const SECRET: &str = "SECRET-OF-THIS-ONE-DEVICE";

#[test]
fn a_golden_artifact_comes_from_a_board_in_one_pass_and_not_without_its_word() {
    require_tools!();
    drop(require_floe!());
    let mut lab = require_lab!();
    let identity = format!(
        "mkdir -p /mnt/etc/ssh; echo {SECRET} > /mnt/etc/machine-id; echo {SECRET} > /mnt/etc/ssh/ssh_host_rsa_key; echo stays > /mnt/etc/fstab"
    );
    // A board that takes no words: its floe was started by something else, for something else.
    let deaf = lab.join("deaf");
    let script = format!(
        "#!/bin/sh\nF='{}'\nfor word; do shift; case $word in --golden) ;; *) set -- \"$@\" \"$word\";; esac; done\nexec \"$F\" \"$@\"\n",
        lab.join("floe").display()
    );
    fs::write(&deaf, script).expect("deaf");
    let deaf = format!(
        "{identity}; cp '{}' /run/bin/d; chmod 755 /run/bin/d; mv /run/bin/d /run/bin/floe",
        deaf.display()
    );
    for before in [identity.as_str(), deaf.as_str()] {
        require_board!(
            lab,
            Setup {
                before,
                ..Setup::default()
            }
        );
    }
    lab.wait_until_up();
    let out = lab.join("out");
    fs::create_dir(&out).expect("out");
    let mut pull = lab.floe("pull");
    pull.args(["10.77.0.1", "10.77.0.2", "--dump", "/mnt", "--golden"]);
    pull.args(["--artifact", "-n", "golden-1", "-t", "board", "-o"]);
    let run = common::run(pull.arg(&out), Limit::secs(60)).expect_code(1);
    assert!(run.stderr_text().contains("has no emptied_files"), "{run}");
    assert_eq!(fs::read_dir(&out).expect("out").count(), 1, "{run}");
    let artifact = out.join("10.77.0.1.mender");
    mender_artifact(&["validate", &artifact.to_string_lossy()]).expect_code(0);
    let read = mender_artifact(&["read", "--no-progress", &artifact.to_string_lossy()]);
    let told = read.expect_code(0).stdout_text();
    assert!(
        told.contains("Name: golden-1") && told.contains("rootfs-image"),
        "{told}"
    );
    let payload = &members(&artifact)["data/0000:10.77.0.1.img"];
    assert!(
        !payload
            .windows(SECRET.len())
            .any(|it| it == SECRET.as_bytes())
    );
    let image = lab.join("image");
    fs::write(&image, payload).expect("image");
    common::output("e2fsck", &["-fn", &image.to_string_lossy()]);
    for (name, length) in [
        ("/etc/machine-id", 0),
        ("/etc/ssh/ssh_host_rsa_key", 0),
        ("/etc/fstab", 6),
    ] {
        let cat = format!("cat {name}");
        let text = common::output("debugfs", &["-R", &cat, &image.to_string_lossy()]);
        assert_eq!(text.len(), length, "{name}");
    }
    // The board keeps its own.
    let own = lab.boards[0].data.dir().join("etc/machine-id");
    assert!(
        fs::read_to_string(own)
            .expect("machine-id")
            .contains(SECRET)
    );
    // Nor does a snapshot come without its word.
    let mut pull = lab.floe("pull");
    pull.args(["10.77.0.2", "--create", "data=/mnt", "--golden", "-o"]);
    let run = common::run(pull.arg(&out), Limit::secs(60)).expect_code(1);
    assert!(run.stderr_text().contains("has no emptied_files"), "{run}");
    assert_eq!(fs::read_dir(&out).expect("out").count(), 1);
}

#[test]
fn an_image_in_a_file_is_emptied_on_its_way_into_an_artifact() {
    require_tools!();
    let words = require_some!(common::floe_shell_words(), "FLOE_BIN");
    let scratch = Scratch::new();
    let (image, output) = (scratch.join("rootfs.ext4"), scratch.join("x.mender"));
    let files = scratch.join("files/etc");
    fs::create_dir_all(&files).expect("files");
    fs::write(files.join("machine-id"), SECRET).expect("write");
    common::sparse(&image, 8 << 20);
    let (from, to) = (scratch.join("files"), image.to_string_lossy());
    common::output(
        "mkfs.ext4",
        &["-q", "-F", "-d", &from.to_string_lossy(), &to],
    );
    let run = require_some!(
        floe(&image, &["--golden", "-n", "a", "-t", "b"], &output),
        "FLOE_BIN"
    );
    let told = run.expect_code(2).stderr_text();
    assert!(
        told.contains("floe dump --golden … IMAGE | floe artifact -"),
        "{told}"
    );
    let line = format!(
        "{words} dump -q --golden '{to}' | {words} artifact -q - -n a -t b -o '{}'",
        output.display()
    );
    common::shell(&line, Limit::secs(60)).expect_code(0);
    mender_artifact(&["validate", &output.to_string_lossy()]).expect_code(0);
    let found = members(&output);
    let (name, payload) = found
        .iter()
        .find(|(name, _)| name.starts_with("data/0000:"))
        .expect("payload");
    assert!(
        !payload
            .windows(SECRET.len())
            .any(|it| it == SECRET.as_bytes()),
        "{name}"
    );
}
