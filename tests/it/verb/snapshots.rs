//! Snapshots at their edges: entries over 4 GiB, tables that cannot be taken along, a restore that is interrupted.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{self, Limit, Scratch};

fn filesystem(path: &Path, bytes: u64) {
    common::sparse(path, bytes);
    common::mkfs_ext4(path);
}

/// An image with a file of noise in it, so that it is more than zeros.
fn noisy(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let (path, folder) = (scratch.join(name), scratch.join("noise"));
    fs::create_dir_all(&folder).expect("folder");
    let noise = common::Random(7).bytes(6 << 20);
    fs::write(folder.join("noise"), noise).expect("noise");
    common::sparse(&path, 24 << 20);
    let (text, folder) = (path.to_string_lossy(), folder.to_string_lossy());
    common::output("mkfs.ext4", &["-q", "-F", "-d", &folder, &text]);
    path
}

/// Starts a restore from a pipe in which `bytes` come and then nothing, not even its end; interrupts it once `is_there`, and
/// gives what it said.
fn interrupted(floe: &mut Command, bytes: Vec<u8>, is_there: &dyn Fn() -> bool) -> String {
    let mut child = floe
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("floe");
    let mut pipe = child.stdin.take().expect("stdin");
    let writer = std::thread::spawn(move || {
        pipe.write_all(&bytes).expect("pipe");
        pipe
    });
    let began = Instant::now();
    while !is_there() && began.elapsed() < Duration::from_secs(40) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let pipe = writer.join().expect("writer");
    std::thread::sleep(Duration::from_millis(1500));
    common::signal(child.id(), "TERM");
    let ended = child.wait_with_output().expect("end");
    drop(pipe);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.signal(), Some(15), "{text}");
    assert!(text.contains("interrupted"), "{text}");
    text
}

#[test]
fn an_entry_over_4_gib_is_made_verified_and_restored() {
    require_mkfs!();
    require!(common::have("python3"), "python3");
    let scratch = Scratch::new();
    let (big, small, zip) = (
        scratch.join("big"),
        scratch.join("small"),
        scratch.join("snapshot.zip"),
    );
    let bytes = (4u64 << 30) + (200 << 20);
    filesystem(&big, bytes);
    filesystem(&small, 8 << 20);
    let mut floe = require_floe!();
    floe.arg("create");
    floe.arg(format!("big={}", big.display()))
        .arg(format!("small={}", small.display()));
    common::run(floe.arg("-o").arg(&zip), Limit::secs(120)).expect_code(0);
    let packed = fs::metadata(&zip).expect("zip").len();
    assert!(packed < 64 << 20, "{packed}");
    let floe = common::floe_shell_words().expect("required before");
    for words in ["'ZIP'", "- < 'ZIP'", "- < <(cat 'ZIP')"] {
        let words = words.replace("ZIP", &zip.to_string_lossy());
        common::shell(&format!("{floe} verify {words}"), Limit::secs(120)).expect_code(0);
    }
    let script = "import sys,zipfile; i=zipfile.ZipFile(sys.argv[1]).getinfo('images/big.img'); print(i.file_size)";
    let said = common::output("python3", &["-c", script, &zip.to_string_lossy()]);
    assert_eq!(said.trim(), bytes.to_string());
    for source in ["'ZIP'", "- < <(cat 'ZIP')"] {
        let new = scratch.join("new");
        let words = format!(
            "{floe} restore {} big='{}'",
            source.replace("ZIP", &zip.to_string_lossy()),
            new.display()
        );
        common::shell(&words, Limit::secs(240)).expect_code(0);
        let found = fs::metadata(&new).expect("restored");
        assert_eq!(found.len(), bytes);
        assert!(found.blocks() * 512 < 64 << 20, "{}", found.blocks());
        // Only the data: cmp would read 8 GiB of holes.
        let extents = |path: &Path| {
            let script = "import os,sys,hashlib\nf=os.open(sys.argv[1],os.O_RDONLY); h=hashlib.sha256(); p=0; n=os.fstat(f).st_size\n\
                while True:\n try: p=os.lseek(f,p,os.SEEK_DATA)\n except OSError: break\n \
                for q in range(p-p%4096,os.lseek(f,p,os.SEEK_HOLE),4096):\n  b=os.pread(f,4096,q)\n  \
                if any(b): h.update(b'%d'%q+b)\n p=os.lseek(f,p,os.SEEK_HOLE)\nprint(h.hexdigest())";
            common::output("python3", &["-c", script, &path.to_string_lossy()])
        };
        assert_eq!(extents(&big), extents(&new));
        fs::remove_file(&new).expect("remove");
    }
}

#[test]
fn a_table_with_logical_partitions_is_refused_with_what_to_do_instead() {
    require_mkfs!();
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let (source, disk, zip) = (
        scratch.join("source"),
        scratch.join("disk"),
        scratch.join("snapshot.zip"),
    );
    filesystem(&source, 8 << 20);
    common::sparse(&disk, 64 << 20);
    let table = "label: dos\n1 : size=8M\n2 : size=40M, type=5\n5 : size=8M\n6 : size=8M\n";
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.arg("-q").arg(&disk);
    common::run_with_input(&mut sfdisk, table.as_bytes(), Limit::secs(30)).expect_code(0);
    let mut floe = require_floe!();
    floe.arg("create")
        .arg(format!("a={}", source.display()))
        .arg("--disk")
        .arg(&disk)
        .arg("-o")
        .arg(&zip);
    let run = common::run(&mut floe, Limit::secs(60)).expect_code(4);
    let text = run.stderr_text();
    assert!(text.contains("has logical partitions"), "{run}");
    assert!(text.contains("dump the whole disk instead"), "{run}");
    assert!(!zip.exists(), "{run}");
    // Which works.
    let mut floe = require_floe!();
    floe.args(["dump", "-q", "-o"]).arg(scratch.join("disk.gz"));
    common::run(floe.arg(&disk), Limit::secs(60)).expect_code(0);
}

#[test]
fn a_restore_from_a_pipe_that_is_cut_or_interrupted_leaves_no_target_that_looks_whole() {
    require_mkfs!();
    let scratch = Scratch::new();
    let (a, b) = (noisy(&scratch, "a"), noisy(&scratch, "b"));
    let zip = scratch.join("snapshot.zip");
    let mut floe = require_floe!();
    floe.arg("create");
    for (name, image) in [("a", &a), ("b", &b), ("c", &b)] {
        // Each name once: the same file would be the same source.
        let own = scratch.join(format!("{name}.source"));
        fs::copy(image, &own).expect("copy");
        floe.arg(format!("{name}={}", own.display()));
    }
    common::run(floe.arg("-o").arg(&zip), Limit::secs(60)).expect_code(0);
    // All of a, and the beginning of b.
    let bytes = fs::read(&zip).expect("zip");
    let place = bytes.windows(12).position(|w| w == b"images/b.img");
    let part = bytes[..place.expect("b") + 2_000_000].to_vec();
    let target = |name: &str| scratch.join(format!("{name}.new"));
    let mut floe = require_floe!();
    floe.args(["restore", "-q", "-"]);
    for name in ["a", "b", "c"] {
        fs::write(target(name), b"").expect("target");
        floe.arg(format!("{name}={}", target(name).display()));
    }
    let begun = || fs::metadata(target("b")).is_ok_and(|meta| meta.blocks() > 0);
    let text = interrupted(&mut floe, part, &begun);
    for name in ["a", "b"] {
        let state = format!("{name}.new: the target is not usable");
        assert!(text.contains(&state), "{text}");
    }
    assert!(text.contains("c.new: not touched"), "{text}");
    // A file holds something then.
    let helps = "the same command with --overwrite repairs it";
    assert!(text.contains(helps), "{text}");
    // All of it is there but the beginning, which waits for the end of the archive.
    let shows_nothing = |name: &str| {
        let image = fs::read(if name == "a" { &a } else { &b });
        let made = fs::read(target(name)).expect("made");
        let (head, body) = made.split_at(1 << 20);
        assert!(head.iter().all(|byte| *byte == 0), "{name}");
        // A file is as long as what was written so far.
        let (there, rest) = image.as_deref().expect("image")[1 << 20..].split_at(body.len());
        assert!(
            body == there && rest.iter().all(|byte| *byte == 0),
            "{name}"
        );
    };
    shows_nothing("a");
    // Cut in what says that it is right, and told otherwise there.
    let floe = common::floe_shell_words().expect("required before");
    let words = |command: &str| {
        let targets = ["a", "b", "c"].map(|name| format!("{name}={}", target(name).display()));
        format!(
            "{command} '{}' | {floe} restore -q - --overwrite {}",
            zip.display(),
            targets.join(" ")
        )
    };
    let flip = "sed 's/\"crc32\": *\"./\"crc32\": \"x/'";
    for command in ["head -c -100", flip] {
        let run = common::shell(&words(command), Limit::secs(60)).expect_code(3);
        assert!(run.stderr_text().contains("not usable"), "{run}");
        for name in ["a", "b", "c"] {
            shows_nothing(name);
        }
    }
    common::shell(&words("cat"), Limit::secs(60)).expect_code(0);
    assert!(fs::read(target("a")).unwrap() == fs::read(&a).unwrap());
}

#[test]
fn an_interrupted_restore_of_a_whole_disk_says_that_it_has_no_table() {
    require_mkfs!();
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    let source = noisy(&scratch, "source");
    let (disk, zip, new) = (
        scratch.join("disk"),
        scratch.join("snapshot.zip"),
        scratch.join("new"),
    );
    common::sparse(&disk, 64 << 20);
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.arg("-q").arg(&disk);
    common::run_with_input(&mut sfdisk, b"label: gpt\nsize=30M\n", Limit::secs(30)).expect_code(0);
    let mut floe = require_floe!();
    floe.arg("create")
        .arg(format!("a={}", source.display()))
        .arg("--disk")
        .arg(&disk)
        .arg("-o")
        .arg(&zip);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    // The entry comes from an image file, which lies in no partition: it has to be named.
    let image = scratch.join("a.new");
    let mut floe = require_floe!();
    floe.args(["restore", "-q", "-", "--disk"]).arg(&new);
    floe.arg(format!("a={}", image.display()));
    let part = fs::read(&zip).expect("zip")[..2_000_000].to_vec();
    let text = interrupted(&mut floe, part, &|| image.exists());
    let gone = "a.new: the target is not usable: the file that was made for it is gone again";
    assert!(text.contains(gone) && !image.exists(), "{text}");
    assert!(text.contains("new: has no partition table yet"), "{text}");
    // A disk that a refusal came before is not there.
    let fresh = text_of(&scratch.join("fresh"));
    let words = ["restore", &text_of(&zip), "--disk", &fresh];
    let said = common::expect_floe(&words, 4).stderr_text();
    assert!(said.contains("name its target too"), "{said}");
    assert!(!scratch.join("fresh").exists());
    // Of a target that was there, nothing was made.
    fs::write(scratch.join("there"), "").expect("there");
    let script = format!(
        "head -c -1000 {} | {} restore -q - a={}",
        zip.display(),
        common::floe_shell_words().expect("FLOE_BIN"),
        scratch.join("there").display()
    );
    let said = common::shell(&script, Limit::secs(60))
        .expect_code(3)
        .stderr_text();
    assert!(!said.contains("made for"), "{said}");
    assert!(said.contains("zeroed"), "{said}");
}

fn text_of(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
