//! `--golden` and `--empty` on running filesystems: what they name is empty in the image and nowhere else, whatever covers it at run
//! time; what cannot be done is refused; `show --identity` tells what there is.

use crate::common::{self, Limit, LoopFs, Mounted, Random, Scratch, Spec, expect_floe, text};
use std::fs;
use std::path::Path;
use std::process::Command;

const MARK: &str = "SECRET-OF-THIS-ONE-DEVICE";
const ID: &str = "0123456789abcdef0123456789abcdef";

/// A root filesystem with an identity.
fn root(dir: &Path) {
    for folder in ["etc/ssh", "var/lib/systemd", "var/lib/dbus", "root", "own"] {
        fs::create_dir_all(dir.join(folder)).expect("folder");
    }
    let secret = |name: &str| fs::write(dir.join(name), MARK.repeat(300)).expect("write");
    fs::write(dir.join("etc/machine-id"), format!("{ID}\n")).expect("write");
    secret("etc/ssh/ssh_host_rsa_key");
    secret("root/.ash_history");
    secret("own/password");
    // Whole chunks that are read before the freeze, and are free under it.
    fs::write(dir.join("own/large"), MARK.repeat(200_000)).expect("write");
    fs::write(
        dir.join("var/lib/systemd/random-seed"),
        Random(3).bytes(512),
    )
    .expect("write");
    std::os::unix::fs::symlink("/etc/machine-id", dir.join("var/lib/dbus/machine-id"))
        .expect("link");
    common::fill(dir, 60);
}

macro_rules! made {
    ($spec:expr) => {
        require_ok!(LoopFs::make($spec))
    };
}

fn grep(image: &Path, what: &str) -> bool {
    let grep = Command::new("grep")
        .args(["-qaF", what])
        .arg(image)
        .status();
    grep.expect("grep").success()
}

/// Clean, without secrets, and mounted with nothing changed but these files.
fn check(image: &Path, before: &Path, emptied: &[&str]) {
    let run = common::run(
        Command::new("e2fsck").args(["-fn", &text(image)]),
        Limit::secs(60),
    );
    assert_eq!(run.code, Some(0), "{run}");
    assert!(!grep(image, MARK) && !grep(image, ID));
    let mounted = Mounted::new("ext4", image, "ro");
    let (mut wanted, found) = (common::tree(before), common::tree(mounted.dir()));
    for name in emptied {
        let place = mounted.dir().join(name);
        assert_eq!(fs::metadata(&place).expect(name).len(), 0, "{name}");
        let line = found.get(Path::new(name)).expect(name).clone();
        wanted.insert(name.into(), line);
    }
    common::assert_same_tree(&wanted, &found);
}

const EMPTIED: &[&str] = &[
    "etc/machine-id",
    "etc/ssh/ssh_host_rsa_key",
    "root/.ash_history",
    "own/large",
    "own/password",
    "var/lib/systemd/random-seed",
];

#[test]
fn a_golden_dump_of_a_mounted_filesystem_empties_what_is_there_and_not_what_covers_it() {
    drop(require_floe!());
    let made = made!(Spec::default());
    root(made.dir());
    // What lies over /etc at run time is another's.
    let cover = Scratch::new();
    fs::write(cover.join("machine-id"), "covered").expect("write");
    let etc = text(&made.dir().join("etc"));
    common::output("mount", &["--bind", &text(cover.path()), &etc]);
    let (image, report) = (made.scratch().join("golden"), made.scratch().join("report"));
    let run = common::run(
        common::floe().expect("floe").args([
            "dump",
            &text(made.dir()),
            "--golden",
            "--empty",
            "/own/*",
            "--empty",
            "/no/such",
            "-z",
            "none",
            "-o",
            &text(&image),
            "--report",
            &text(&report),
        ]),
        Limit::secs(60),
    );
    common::output("umount", &[&etc]);
    let run = run.expect_code(0);
    let lines = run.stderr_text();
    assert!(
        lines.contains("--empty /no/such: no regular file has that name"),
        "{lines}"
    );
    assert!(
        lines.lines().last().unwrap().contains("6 files emptied"),
        "{lines}"
    );
    let report = fs::read_to_string(&report).expect("report");
    assert!(
        report.contains("\"empty_without_match\":[\"/no/such\"]"),
        "{report}"
    );
    assert!(report.contains("\"emptied_files\":6"), "{report}");
    assert!(report.contains("\"/own/password\","), "{report}");
    check(&image, made.dir(), EMPTIED);
    assert!(
        fs::read_to_string(made.dir().join("etc/machine-id"))
            .unwrap()
            .starts_with(ID)
    );
    // The list says what the image has, and what the mount has.
    let shown = expect_floe(&["show", "--identity", &text(&image)], 0).stdout_text();
    assert!(shown.contains("/etc/machine-id") && shown.contains("empty") && !shown.contains(ID));
    let shown = expect_floe(&["show", "--identity", &text(made.dir())], 0).stdout_text();
    assert!(shown.contains(ID) && shown.contains("sha256 "), "{shown}");
}

#[test]
fn a_golden_clone_boots_as_another_machine() {
    drop(require_floe!());
    let made = made!(Spec::default());
    root(made.dir());
    let target = made.scratch().join("target");
    common::sparse(&target, 64 << 20);
    let device = common::LoopDevice::attach(&target, 512);
    let pair = format!("{}={}", text(made.dir()), text(device.path()));
    let report = made.scratch().join("report");
    let run = expect_floe(
        &[
            "clone",
            &pair,
            "--golden",
            "--empty",
            "/own/",
            "--verify",
            "--report",
            &text(&report),
        ],
        0,
    );
    assert!(run.stderr_text().contains("6 files emptied"), "{run}");
    // It was written to before the freeze that counts, as other clones are.
    let report = fs::read_to_string(&report).expect("report");
    assert!(!report.contains("\"precopy\":\"off\""), "{report}");
    drop(device);
    check(&target, made.dir(), EMPTIED);
}

#[test]
fn what_a_clone_cannot_empty_is_refused_before_its_target_is_touched() {
    drop(require_floe!());
    let mut made = made!(Spec {
        mkfs: &["-O", "encrypt"],
        ..Spec::default()
    });
    root(made.dir());
    made.unmount();
    common::output(
        "debugfs",
        &[
            "-w",
            "-R",
            "sif /own/password flags 0x80800",
            &text(made.image()),
        ],
    );
    made.mount();
    let target = made.scratch().join("target");
    let old = Random(5).bytes(64 << 20);
    fs::write(&target, &old).expect("target");
    let device = common::LoopDevice::attach(&target, 512);
    let pair = format!("{}={}", text(made.dir()), text(device.path()));
    let run = expect_floe(&["clone", &pair, "--overwrite", "--empty", "/own/*"], 4);
    assert!(
        run.stderr_text()
            .contains("/own/password: an encrypted file cannot be emptied"),
        "{run}"
    );
    common::assert_not_frozen(made.dir(), "refused");
    drop(device);
    assert!(fs::read(&target).expect("target") == old, "it was touched");
}

#[test]
fn a_disk_is_emptied_in_each_of_its_ext_filesystems() {
    drop(require_floe!());
    require!(common::have("sfdisk"), "sfdisk");
    let mut made = made!(Spec::default());
    root(made.dir());
    let before = Scratch::new();
    common::output(
        "cp",
        &[
            "-a",
            &format!("{}/.", text(made.dir())),
            &text(before.path()),
        ],
    );
    made.unmount();
    let disk = made.scratch().join("disk");
    common::sparse(&disk, 80 << 20);
    let table = "label: gpt\nstart=2048, size=8192, type=U\nstart=16384, size=131072\n";
    common::run_with_input(
        Command::new("sfdisk").args(["-q", &text(&disk)]),
        table.as_bytes(),
        Limit::secs(20),
    )
    .expect_code(0);
    let copy = |of: &str, options: &[&str]| {
        let mut dd = Command::new("dd");
        dd.args(["status=none", "bs=1M"]).args(options).arg(of);
        common::run(&mut dd, Limit::secs(20)).expect_code(0);
    };
    copy(
        &format!("if={}", text(made.image())),
        &[&format!("of={}", text(&disk)), "seek=8", "conv=notrunc"],
    );
    let image = made.scratch().join("golden");
    expect_floe(
        &[
            "dump",
            &text(&disk),
            "--golden",
            "--empty",
            "/own/*",
            "-z",
            "none",
            "-o",
            &text(&image),
        ],
        0,
    );
    let shown = expect_floe(&["show", "--identity", &text(&disk)], 0).stdout_text();
    assert!(shown.contains(ID), "{shown}");
    let part = made.scratch().join("part");
    copy(
        &format!("if={}", text(&image)),
        &[&format!("of={}", text(&part)), "skip=8", "count=64"],
    );
    check(&part, before.path(), EMPTIED);
}

#[test]
fn a_snapshot_says_that_it_is_golden_and_does_not_hold_its_own_store() {
    drop(require_floe!());
    require!(common::have("unzip"), "unzip");
    let made = made!(Spec::default());
    root(made.dir());
    let store = made.dir().join("store");
    fs::create_dir(&store).expect("store");
    fs::write(store.join("notes.zip"), "no snapshot").expect("write");
    let noise = Random(5).bytes(3 << 20);
    fs::write(made.dir().join("noise"), noise).expect("noise");
    let (pair, out) = (
        format!("root={}", text(made.dir())),
        format!("{}/", text(&store)),
    );
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let args = [
            "create",
            &pair,
            "-o",
            &out,
            "--golden",
            "--empty",
            "/own/password",
        ];
        let run = expect_floe(&args, 0).stderr_text();
        let path = run
            .split(": root:")
            .next()
            .unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .to_owned();
        sizes.push(fs::metadata(&path).expect("snapshot").len());
        let json = common::output("unzip", &["-p", &path, "snapshot.json"]);
        assert!(
            json.contains("\"golden\":true") && json.contains("\"empty\":[\"/own/password\"]"),
            "{json}"
        );
        let image = made.scratch().join("back");
        let target = format!("root={}", text(&image));
        expect_floe(&["restore", &path, &target, "--overwrite"], 0);
        let run = common::run(
            Command::new("e2fsck").args(["-fn", &text(&image)]),
            Limit::secs(60),
        );
        assert_eq!(run.code, Some(0), "{run}");
        let mounted = Mounted::new("ext4", &image, "ro");
        let inside = mounted.dir().join("store");
        for entry in fs::read_dir(&inside).expect("store") {
            let entry = entry.expect("entry");
            let name = entry.file_name().into_string().expect("name");
            let is_empty = entry.metadata().expect("metadata").len() == 0;
            // The lock of the store is empty in any case.
            assert!(
                name == ".floe.lock" || is_empty == (name != "notes.zip"),
                "{name}"
            );
        }
    }
    // Each would be 3 MiB larger than the one before.
    assert!(sizes[2] < sizes[0] + (1 << 20), "{sizes:?}");
    // Where files cannot be emptied, it is said.
    let spec = Spec {
        kind: "xfs",
        mib: 512,
        ..Spec::default()
    };
    let made = made!(spec);
    let pair = format!("root={}", text(made.dir()));
    let run = expect_floe(
        &["create", &pair, "-o", &format!("{}/", text(made.dir()))],
        0,
    );
    assert!(
        run.stderr_text()
            .contains("its snapshots become part of this one"),
        "{run}"
    );
}

#[test]
fn what_cannot_be_emptied_is_refused_before_anything_is_written() {
    drop(require_floe!());
    let scratch = Scratch::new();
    let (image, out) = (scratch.join("xfs"), scratch.join("out"));
    require!(common::have("mkfs.xfs"), "mkfs.xfs");
    common::sparse(&image, 512 << 20);
    common::output("mkfs.xfs", &["-q", "-f", &text(&image)]);
    let dump = |options: &[&str], code| {
        let mut args = vec!["dump", "-o"];
        let (out, image) = (text(&out), text(&image));
        args.extend([out.as_str(), image.as_str()]);
        args.extend(options);
        expect_floe(&args, code).stderr_text()
    };
    let words = dump(&["--golden"], 4);
    assert!(words.contains("restore the image, mount it"), "{words}");
    dump(&["--empty", "/etc/machine-id"], 4);
    for options in [
        &["--golden", "--whole"][..],
        &["--golden", "--live"],
        &["--empty", "etc/machine-id"],
        &["--empty", "/"],
        &["--empty"],
    ] {
        dump(options, 2);
    }
    // A file that is encrypted is named.
    fs::remove_file(&image).expect("image");
    common::sparse(&image, 64 << 20);
    let content = scratch.join("content");
    fs::create_dir(&content).expect("content");
    root(&content);
    common::output(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "encrypt",
            "-d",
            &text(&content),
            &text(&image),
        ],
    );
    common::output(
        "debugfs",
        &["-w", "-R", "sif /own/password flags 0x80800", &text(&image)],
    );
    let words = dump(&["--golden", "--empty", "/own/*"], 4);
    assert!(
        words.contains("/own/password: an encrypted file cannot be emptied"),
        "{words}"
    );
    assert!(!out.exists(), "a part of an image was left");
    // So is a journal that is to be replayed first.
    common::output(
        "debugfs",
        &["-w", "-R", "feature +needs_recovery", &text(&image)],
    );
    let words = dump(&["--golden"], 4);
    assert!(words.contains("the journal needs recovery"), "{words}");
    expect_floe(&["clone", "--factory", "--golden", "/=/dev/null"], 2);
}

#[test]
fn docs_and_help_show_the_golden_list() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/golden.md");
    let readme = fs::read_to_string(place).expect("docs/golden.md");
    for verb in ["dump", "create", "clone"] {
        let help = floe::help::verb(verb);
        for item in floe::golden::LIST {
            let row = format!("| `{}` | {} |", item.path, item.what);
            assert!(readme.contains(&row), "{row}");
            assert!(
                help.contains(item.path) && help.contains(item.what),
                "{verb}: {}",
                item.path
            );
        }
    }
}

/// Deletes most of 800 files whose attribute says [`MARK`], and whose content does where that lies in the inode, too: of the first
/// 200 some stay, and lie between the deleted ones.
fn leave_inodes_behind(made: &LoopFs, is_inline: bool) {
    let folder = made.dir().join("many");
    fs::create_dir(&folder).expect("folder");
    let content = if is_inline {
        MARK.repeat(4)
    } else {
        "content".into()
    };
    let sync = || common::output("sync", &["-f", &text(made.dir())]);
    let file = |number: u32| folder.join(number.to_string());
    let flags = rustix::fs::XattrFlags::CREATE;
    for number in 0..800 {
        fs::write(file(number), &content).expect("write");
        rustix::fs::setxattr(file(number), "user.of", MARK.as_bytes(), flags).expect("attribute");
    }
    sync();
    for number in 0..800 {
        if number < 200 && number % 7 == 0 {
            fs::write(file(number), "kept").expect("write");
            rustix::fs::setxattr(
                file(number),
                "user.of",
                b"kept",
                rustix::fs::XattrFlags::REPLACE,
            )
            .expect("attribute");
        } else {
            fs::remove_file(file(number)).expect("delete");
        }
    }
    sync();
}

#[test]
fn nothing_that_deleted_files_left_in_their_inodes_is_in_a_golden_image_and_little_in_another() {
    drop(require_floe!());
    let kinds: [&[&str]; 4] = [
        &[],
        &["-O", "inline_data", "-I", "512"],
        &["-b", "1024", "-O", "^metadata_csum,^64bit"],
        &["-t", "ext3"],
    ];
    for mkfs in kinds {
        let made = made!(Spec {
            mkfs,
            ..Spec::default()
        });
        leave_inodes_behind(&made, mkfs.contains(&"inline_data"));
        let (plain, golden) = (made.scratch().join("plain"), made.scratch().join("golden"));
        let dump = |image: &Path, options: &[&str]| {
            let (source, image) = (text(made.dir()), text(image));
            let mut args = vec!["dump", &source, "-z", "none", "-o", &image, "--require-map"];
            args.extend(options);
            expect_floe(&args, 0);
        };
        dump(&plain, &[]);
        dump(&golden, &["--golden"]);
        let count = |image: &Path| {
            let bytes = fs::read(image).expect("image");
            bytes
                .windows(MARK.len())
                .filter(|bytes| *bytes == MARK.as_bytes())
                .count()
        };
        let device = count(made.image());
        assert!(device > 700, "{mkfs:?}: {device}");
        // Those between files that stay, and at most one block of them at each end.
        let left = count(&plain);
        assert!(left < 250, "{mkfs:?}: {left} of {device}");
        assert_eq!(count(&golden), 0, "{mkfs:?}");
        for image in [&plain, &golden] {
            common::output("e2fsck", &["-fn", &text(image)]);
            let mounted = Mounted::new("ext4", image, "ro");
            common::assert_same_tree(&common::tree(made.dir()), &common::tree(mounted.dir()));
        }
    }
}
