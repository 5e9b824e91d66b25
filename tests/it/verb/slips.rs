//! Variations of slips and of what a machine lacks, each refused or told of with the line that helps: sectors, damaged beginnings and
//! tables, what lies in a store, arguments the wrong way round, limits, and a signal that comes first of all.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{self, Limit, LoopDevice, Mounted, Run, Scratch, text};

/// Shell lines in the scratch folder, with floe as `$FLOE`.
fn sh(scratch: &Scratch, script: &str) -> Run {
    let floe = common::floe_path().expect("FLOE_BIN");
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env("FLOE", floe)
        .current_dir(scratch.path());
    common::run(&mut command, Limit::secs(60))
}

/// Expects of each script this exit code, and in the one line that it says these words.
fn expect(scratch: &Scratch, all: &[(&str, i32, &str)]) {
    for (script, code, words) in all {
        let run = sh(scratch, script).expect_code(*code);
        let said = run.stderr_text();
        assert!(said.contains(words), "{script}: no {words:?} in {run}");
        assert!(*code == 0 || said.lines().count() == 1, "{script}: {run}");
    }
}

macro_rules! ready {
    ($($tool:literal),*) => {
        require!(common::is_root(), "root");
        require!(common::floe_path().is_some(), "FLOE_BIN");
        require!(common::runner().is_none(), "no runner: floe is started by others");
        $(require!(common::have($tool), $tool);)*
    };
}

const EXT4: &str = "truncate -s 8M e && mke2fs -q -F -t ext4 e && gzip -k e";

#[test]
fn clone_takes_and_refuses_the_same_sector_sizes_as_restore() {
    ready!("mksquashfs", "sfdisk", "mke2fs");
    let scratch = Scratch::new();
    let make = "truncate -s 16M t4 && truncate -s 16M t5 && truncate -s 16M g && mkdir d && echo x > d/x && mksquashfs d q -quiet -no-progress && truncate -s %4096 q
        truncate -s 8M e && mke2fs -q -F -t ext4 -b 1024 e";
    sh(&scratch, make).expect_code(0);
    let table = LoopDevice::attach(&scratch.join("g"), 4096);
    let lay = format!("echo 1024,1024 | sfdisk -q -X gpt {}", text(table.path()));
    // The kernel cannot read it anew here, and says so.
    drop(sh(&scratch, &lay));
    let small = LoopDevice::attach(&scratch.join("t5"), 512);
    let large = LoopDevice::attach(&scratch.join("t4"), 4096);
    let [squashfs, ext4] = ["q", "e"].map(|name| LoopDevice::attach(&scratch.join(name), 512));
    let pair = |from: &LoopDevice, to: &LoopDevice, said: &str, code: i32| {
        let line = format!("$FLOE clone {}={}", text(from.path()), text(to.path()));
        let run = sh(&scratch, &line).expect_code(code);
        assert!(run.stderr_text().contains(said), "{run}");
    };
    pair(&table, &small, "counts in 4096: no kernel would find", 4);
    pair(&ext4, &large, "no kernel would mount it there", 4);
    for target in ["t4", "t5"] {
        let bytes = fs::read(scratch.join(target)).expect("target");
        assert!(bytes.iter().all(|byte| *byte == 0), "{target} was written");
    }
    pair(&squashfs, &large, "squashfs", 0);
}

#[test]
fn what_lies_behind_a_swap_area_is_in_its_image() {
    ready!("mkswap");
    let scratch = Scratch::new();
    sh(
        &scratch,
        "truncate -s 2M s && chmod 600 s && mkswap -q s && truncate -s 6M s",
    )
    .expect_code(0);
    let file = File::options().write(true).open(scratch.join("s"));
    file.expect("s")
        .write_all_at(b"behind", 5 << 20)
        .expect("tail");
    let run = sh(&scratch, "$FLOE dump s -z none -o o && cmp s o").expect_code(0);
    assert!(run.stderr_text().contains("partial"), "{run}");
}

#[test]
fn a_squashfs_that_ends_before_its_tables_is_refused_or_copied_as_it_is() {
    ready!("mksquashfs", "mke2fs");
    let scratch = Scratch::new();
    sh(
        &scratch,
        "mkdir d && head -c 100000 /dev/urandom > d/x && mksquashfs d q -quiet -no-progress",
    )
    .expect_code(0);
    let file = File::options().write(true).open(scratch.join("q"));
    file.expect("q")
        .write_all_at(&200u64.to_le_bytes(), 40)
        .expect("bytes_used");
    expect(
        &scratch,
        &[
            (
                "$FLOE dump q -o o",
                4,
                "--whole copies it as it is; nothing was written",
            ),
            (
                "$FLOE create a=q -o z",
                4,
                "--whole copies it as it is; nothing was written",
            ),
            ("$FLOE verify q", 3, "ends before its own tables"),
            (
                "$FLOE dump --whole q -o o && $FLOE verify o && $FLOE restore o r && cmp q r",
                0,
                "",
            ),
            (
                "$FLOE create --whole a=q -o z && $FLOE restore z a=r2 && cmp q r2",
                0,
                "",
            ),
        ],
    );
}

#[test]
fn a_table_that_ends_behind_its_disk_is_damaged_wherever_it_is_read() {
    ready!("sfdisk", "mke2fs");
    let scratch = Scratch::new();
    sh(
        &scratch,
        &format!("{EXT4}; truncate -s 16M m && echo 2048,4096 | sfdisk -q m"),
    )
    .expect_code(0);
    let file = File::options().write(true).open(scratch.join("m"));
    file.expect("m")
        .write_all_at(&[0xff; 4], 458)
        .expect("length");
    let device = LoopDevice::attach(&scratch.join("m"), 512);
    let disk = text(device.path());
    let damaged = "damaged: it ends behind the disk";
    let run = sh(&scratch, &format!("$FLOE show {disk} >&2")).expect_code(0);
    assert!(run.stderr_text().contains(damaged), "{run}");
    assert!(
        run.stderr_text()
            .contains("would be refused: it ends at 16777216 bytes"),
        "{run}"
    );
    expect(
        &scratch,
        &[
            (&format!("$FLOE clone e=root --media {disk}"), 4, damaged),
            (
                &format!("$FLOE create a=e --disk {disk} -o z"),
                4,
                "it ends behind the disk; repair it first",
            ),
            (
                &format!("$FLOE dump {disk} -o o"),
                4,
                "--whole copies it as it is",
            ),
        ],
    );
}

#[test]
fn a_store_tells_what_is_no_snapshot_and_what_a_newer_floe_made_in_its_own_way() {
    ready!("python3", "mke2fs", "mkfifo");
    let scratch = Scratch::new();
    let script = format!(
        "{EXT4}; mkdir L; $FLOE create -q a=e -o s.zip; cd L; cp ../e.gz h-20260101T000000Z-0001.zip; mkfifo h-20260101T000000Z-0002.zip
        ln -s /nonexistent h-20260101T000000Z-0003.zip; echo hello > h-20260101T000000Z-0004.zip
        head -c 2000 ../s.zip > h-20260101T000000Z-0005.zip
        python3 -c '
import zipfile
old = zipfile.ZipFile(\"../s.zip\"); new = zipfile.ZipFile(\"h-20260101T000000Z-0006.zip\", \"w\")
for name in old.namelist():
    new.writestr(name, old.read(name).replace(b\"\\\"format\\\":1\", b\"\\\"format\\\":2\") if name == \"snapshot.json\" else old.read(name))
new.close()
other = zipfile.ZipFile(\"h-20260101T000000Z-0007.zip\", \"w\"); other.write(\"../e\", \"disk.img\"); other.close()'"
    );
    sh(&scratch, &script).expect_code(0);
    let listed = sh(&scratch, "$FLOE list L").expect_code(0).stdout_text();
    let states = [
        ("0001", "damaged       is a gzip file"),
        ("0002", "damaged"),
        ("0003", "damaged"),
        ("0004", "damaged       is a text"),
        ("0005", "incomplete"),
        ("0006", "newer format"),
        ("0007", "damaged       a zip archive, but not a snapshot"),
    ];
    for (number, state) in states {
        let line = listed.lines().find(|line| line.contains(number));
        let line = line.unwrap_or_else(|| panic!("no {number} in {listed}"));
        assert!(line.contains(state), "no {state:?} in {line}");
    }
    let newer = "a newer floe made this snapshot";
    for verb in [
        "show N",
        "verify N",
        "restore N a=x",
        "artifact N -n a -t b -o m",
        "verify - < N",
    ] {
        let line = format!(
            "$FLOE {}",
            verb.replace('N', "L/h-20260101T000000Z-0006.zip")
        );
        expect(&scratch, &[(&line, 4, newer)]);
    }
    let others = [(
        "$FLOE verify L/h-20260101T000000Z-0007.zip",
        3,
        "unzip -p FILE NAME | floe restore - TARGET",
    )];
    expect(&scratch, &others);
}

#[test]
fn swapped_arguments_are_answered_with_the_right_order_however_the_device_is_named() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let device = LoopDevice::filled(&scratch, "target", 16, 7);
    let disk = text(device.path());
    sh(
        &scratch,
        &format!("{EXT4}; $FLOE create -q a=e -o s.zip; sha256sum e.gz s.zip > sums"),
    )
    .expect_code(0);
    expect(
        &scratch,
        &[
            (
                &format!("$FLOE restore a={disk} s.zip"),
                4,
                &format!("floe restore s.zip a={disk};"),
            ),
            (
                &format!("$FLOE restore a={disk} e.gz"),
                4,
                &format!("floe restore e.gz {disk};"),
            ),
            (
                "$FLOE restore UUID=12-34 e.gz",
                4,
                "floe restore e.gz UUID=12-34;",
            ),
            (
                "$FLOE restore LABEL=x s.zip",
                4,
                "floe restore s.zip NAME=LABEL=x;",
            ),
            (
                "$FLOE restore e e.gz",
                4,
                "the IMAGE comes first, the TARGET last",
            ),
            ("$FLOE restore e.gz s.zip", 4, "is a zip archive itself"),
            (
                &format!("$FLOE push {disk} board /dev/x"),
                4,
                "is a device: make an image of it first",
            ),
            (
                ": > hosts; $FLOE push e.gz @hosts -- /dev/x",
                2,
                "names no board",
            ),
            ("$FLOE pull @hosts --dump / -o .", 2, "names no board"),
            ("sha256sum -c --status sums", 0, ""),
        ],
    );
}

#[test]
fn small_limits_and_a_report_that_nobody_reads_are_told_of() {
    ready!("mke2fs", "mkfifo");
    let scratch = Scratch::new();
    sh(
        &scratch,
        &format!(
            "{EXT4}; mkfifo fifo; head -c 300000 /dev/urandom > r; debugfs -w -R 'write r r' e"
        ),
    )
    .expect_code(0);
    expect(
        &scratch,
        &[
            (
                "ulimit -s 64; $FLOE verify e.gz",
                1,
                "raise the limit (ulimit -s)",
            ),
            ("ulimit -Ss 64; $FLOE dump e -o o && $FLOE verify o", 0, ""),
            ("ulimit -f 100; exec $FLOE dump e -o f", 1, "(ulimit -f)"),
            ("ulimit -f 100; exec $FLOE dump e > f", 1, "(ulimit -f)"),
            (
                "timeout 20 $FLOE dump e -o p --report fifo",
                4,
                "is a pipe that nobody reads",
            ),
            (
                "cat fifo > told & $FLOE dump e -o p --report fifo; wait; grep -q crc32 told",
                0,
                "",
            ),
        ],
    );
    assert!(!scratch.join("f.part").exists());
}

#[test]
fn a_signal_before_anything_is_frozen_says_so_in_every_verb_that_freezes() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    // What lies behind the filesystem is looked at first, and takes long.
    sh(&scratch, &format!("{EXT4}; truncate -s 8T e")).expect_code(0);
    let device = LoopDevice::filled(&scratch, "target", 16, 0);
    let clone = format!("clone e={}", text(device.path()));
    fs::write(
        scratch.join("pairs"),
        format!("{}={}\n", text(&scratch.join("e")), text(device.path())),
    )
    .expect("pairs");
    let verbs = ["dump e -o o", "dump e", "create a=e -o o", &clone];
    for verb in [&verbs[..], &["clone --pairs pairs"]].concat() {
        for signal in ["TERM", "INT", "HUP"] {
            let mut command = Command::new(common::floe_path().expect("FLOE_BIN"));
            command.args(verb.split(' ')).current_dir(scratch.path());
            command.stdout(File::create(scratch.join("out")).expect("out"));
            command.stderr(File::create(scratch.join("said")).expect("said"));
            let mut child = command.spawn().expect("floe");
            std::thread::sleep(Duration::from_millis(300));
            common::signal(child.id(), signal);
            let status = common::wait_for(&mut child, Duration::from_secs(10)).expect("it ends");
            assert_eq!(status.code(), None, "{verb}: {status}");
            let said = fs::read_to_string(scratch.join("said")).expect("said");
            let words = "interrupted before anything was frozen; nothing was written\n";
            assert!(
                said.ends_with(words) && said.lines().count() == 1 && !said.contains("floe: :"),
                "{verb}: {said}"
            );
            assert!(!scratch.join("o").exists());
        }
    }
}

#[test]
fn a_store_on_the_btrfs_that_is_taken_is_told_of() {
    ready!("mkfs.btrfs");
    require!(common::kernel_has("btrfs"), "btrfs");
    let scratch = Scratch::new();
    sh(&scratch, "truncate -s 200M b && mkfs.btrfs -q b").expect_code(0);
    let device = LoopDevice::attach(&scratch.join("b"), 512);
    let mounted = Mounted::new("btrfs", device.path(), "defaults");
    let dir = text(mounted.dir());
    sh(&scratch, &format!("mkdir {dir}/store")).expect_code(0);
    let line = format!("$FLOE create a={dir} -o {dir}/store/");
    expect(
        &scratch,
        &[(&line, 0, "its snapshots become part of this one")],
    );
}

#[test]
fn what_floe_made_is_named_where_an_image_as_it_is_was_wanted() {
    ready!("mke2fs", "tar");
    let scratch = Scratch::new();
    let make = "$FLOE create a=e -o e.zip && $FLOE dump e --frames | cat > e.frames && $FLOE artifact e.gz -n n -t t -o e.mender && tar -czf e.tgz e";
    sh(&scratch, &format!("{EXT4} && {make}")).expect_code(0);
    let unpack = |from: &str, to: &str| format!("floe restore {from} {to}, then name ");
    for (file, what, unpacked) in [
        ("e.gz", "is a gzip file", unpack("e.gz", "e.img")),
        ("e.zip", "is a zip archive", unpack("e.zip", "NAME=e.img")),
        (
            "e.frames",
            "is what floe dump --frames sends",
            unpack("e.frames", "e.img"),
        ),
        (
            "e.mender",
            "is a Mender artifact",
            unpack("e.mender", "e.img"),
        ),
        ("./e.gz", "is a gzip file", unpack("./e.gz", "./e.img")),
    ] {
        for verb in [
            "dump FILE -o x",
            "dump FILE --golden -o x",
            "dump FILE --whole -o x",
            "dump FILE --whole -z none -o x",
            "create a=FILE -o x",
            "clone FILE=/dev/loop-nowhere",
            "show --identity FILE",
        ] {
            let line = format!("$FLOE {}", verb.replace("FILE", file));
            let run = sh(&scratch, &line).expect_code(4);
            let said = run.stderr_text();
            assert!(said.contains(what) && said.contains(&unpacked), "{run}");
            assert!(!said.contains("no image that is known"), "{run}");
            assert!(!scratch.join("x").exists(), "{run}");
        }
    }
    // As the line says.
    let script = "$FLOE restore e.gz e.img && cmp e e.img && $FLOE dump e.img --golden -o golden.img.gz && $FLOE verify golden.img.gz";
    sh(&scratch, script).expect_code(0);
}

/// Images of a filesystem with 3 MiB that do not pack.
const NOISE: &str = "head -c 3M /dev/urandom > noise && mkdir d && mv noise d && truncate -s 16M n && mke2fs -q -F -t ext4 -d d n && gzip -1 -k n && $FLOE create a=n -o n.zip";

#[test]
fn a_file_without_room_for_it_is_refused_before_and_gone_after() {
    ready!("mke2fs", "mount");
    let scratch = Scratch::new();
    let small = Mounted::new("tmpfs", Path::new("none"), "size=1M");
    std::os::unix::fs::symlink(small.dir(), scratch.join("small")).expect("link");
    sh(&scratch, NOISE).expect_code(0);
    // It is known beforehand: of what is checked first how much it takes, of what is not what it takes at least.
    for line in [
        "restore n small/n",
        "restore n.gz small/n",
        "restore n.gz small/n --no-check",
        "restore n.zip a=small/n",
    ] {
        for dry in ["", " --dry-run"] {
            let run = sh(&scratch, &format!("$FLOE {line}{dry}")).expect_code(1);
            let said = run.stderr_text();
            assert!(said.contains("its filesystem has 1"), "{run}");
            assert!(said.contains("nothing was written"), "{run}");
            assert!(!scratch.join("small/n").exists(), "{run}");
        }
    }
    // It comes out only in the middle: what was made goes again.
    for line in [
        "cat n | $FLOE restore - small/n",
        "cat n.gz | $FLOE restore - small/n",
        "cat n.zip | $FLOE restore - a=small/n",
    ] {
        let run = sh(&scratch, line).expect_code(1);
        let said = run.stderr_text();
        assert!(said.contains("made for it is gone again"), "{run}");
        assert!(!said.contains("--overwrite"), "{run}");
        assert!(!scratch.join("small/n").exists(), "{run}");
    }
    // One that was there stays, and what helps is said.
    let script =
        "head -c 100000 /dev/zero > small/n; cat n.gz | $FLOE restore - small/n --overwrite";
    let run = sh(&scratch, script).expect_code(1);
    let said = run.stderr_text();
    let helps = "make room there, then the same command with --overwrite";
    assert!(
        said.contains("its beginning is zeroed") && said.contains(helps),
        "{run}"
    );
    assert!(scratch.join("small/n").exists());
    // What may not fit is said.
    let script = "rm small/n; cat n.gz | $FLOE restore - small/m --dry-run";
    let run = sh(&scratch, script).expect_code(0);
    assert!(run.stderr_text().contains("may not fit"), "{run}");
    let script = "$FLOE create a=n -o small/ --dry-run";
    let run = sh(&scratch, script).expect_code(0);
    assert!(run.stderr_text().contains("may not fit"), "{run}");
    let script = "head -c 2M /dev/zero > small/full; $FLOE create a=n -o small/ --dry-run";
    let run = sh(&scratch, script).expect_code(1);
    assert!(run.stderr_text().contains("has 0 bytes free"), "{run}");
}

#[test]
fn a_dash_is_stdout_or_refused_and_never_a_file() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, &format!("{EXT4} && $FLOE create a=e -o e.zip")).expect_code(0);
    expect(
        &scratch,
        &[
            ("$FLOE restore e.gz -", 2, "gzip -dc"),
            ("$FLOE restore e.zip a=-", 2, "./-"),
            ("$FLOE restore e.zip --disk -", 2, "./-"),
            ("$FLOE restore e.gz - --dry-run", 2, "./-"),
            ("$FLOE clone e=-", 2, "./-"),
            ("$FLOE dump e -o x --bmap -", 2, "./-"),
            ("$FLOE restore e.gz ./- && rm ./-", 0, ""),
        ],
    );
    assert!(!scratch.join("-").exists());
    assert!(!scratch.join("-.part").exists());
}

#[test]
fn verify_says_what_a_checksum_proved_and_of_what() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    for (line, says, says_not) in [
        ("$FLOE verify e", "a raw image has no checksum", "frames"),
        ("$FLOE verify e.gz", "good gzip image", "no checksum"),
        (
            "$FLOE dump e --frames | $FLOE verify -",
            "good gzip image, sent in frames",
            "no checksum",
        ),
    ] {
        let said = sh(&scratch, line).expect_code(0).stdout_text();
        assert!(said.contains(says) && !said.contains(says_not), "{said}");
    }
}

#[test]
fn an_image_that_ends_early_in_a_pipe_names_the_target_and_what_repairs_it() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let noise = "head -c 3M /dev/urandom > r; debugfs -w -R 'write r r' e; gzip -fk e; head -c 2000000 e.gz > cut";
    sh(&scratch, &format!("{EXT4}; {noise}")).expect_code(0);
    let target = LoopDevice::filled(&scratch, "t", 8, 0);
    let node = text(target.path());
    let run = sh(&scratch, &format!("cat cut | $FLOE restore -q - {node}")).expect_code(3);
    let said = run.stderr_text();
    let repair = format!("a whole image, restored to {node} again");
    assert!(
        said.contains("its beginning is zeroed") && said.contains(&repair),
        "{run}"
    );
    // A device is not read twice, and that is why.
    let from = LoopDevice::attach(&scratch.join("e"), 512);
    let line = format!("$FLOE restore {} out.img", text(from.path()));
    let run = sh(&scratch, &line).expect_code(0);
    assert!(
        run.stderr_text()
            .contains("is a device, and is not read twice"),
        "{run}"
    );
}

#[test]
fn a_pair_the_wrong_way_round_and_what_is_not_there_are_told_of() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    let device = LoopDevice::attach(&scratch.join("e"), 512);
    let node = text(device.path());
    let swapped = format!("$FLOE clone {node}=.");
    let right = format!("floe clone .={node}");
    expect(
        &scratch,
        &[
            (&swapped, 4, &right),
            (
                "$FLOE clone e=.",
                4,
                "is a folder; a clone goes to block devices",
            ),
            (
                &format!("$FLOE clone {node}=/nowhere"),
                4,
                "/nowhere: does not exist",
            ),
            (
                "$FLOE dump e -o x/",
                4,
                "x/: is a folder; name a file in it",
            ),
            (
                "mkdir f; $FLOE dump e -o f/",
                4,
                "is a folder; name a file in it",
            ),
            ("$FLOE dump e -o f", 4, "is a folder; name a file in it"),
        ],
    );
}

#[test]
fn a_wrong_value_names_the_verb_and_two_outputs_are_one_too_many() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    expect(
        &scratch,
        &[
            ("$FLOE dump e --level 11", 2, "dump: --level: '11' is not "),
            ("$FLOE dump e --level 11", 2, "; see floe dump --help"),
            (
                "$FLOE dump e --report ''",
                2,
                "dump: --report: is empty; see",
            ),
            (
                "$FLOE dump e -o a -o b",
                2,
                "dump: --output: is given twice, as 'a' and as 'b'",
            ),
            // Of other options the last one counts.
            ("$FLOE dump e --stall x --stall=6s -o a -q", 2, "'x'"),
            ("$FLOE dump e --level 2 --level 1 -o a -q", 0, ""),
            ("$FLOE dump e -o a --output=a -q", 0, ""),
            (
                "$FLOE dump e -o g --empty /x --empty /y -q 2> /dev/null",
                0,
                "",
            ),
        ],
    );
    assert!(!scratch.join("b").exists());
}

#[test]
fn what_cannot_be_read_is_called_as_it_was_typed() {
    ready!("mke2fs", "setpriv");
    let made = require_ok!(common::LoopFs::make(common::Spec::default()));
    let inside = made.dir().join("inside");
    fs::create_dir(&inside).expect("folder");
    for folder in [made.scratch(), made.dir()] {
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder, all).expect("mode");
    }
    let scratch = Scratch::new();
    let line = |words: &str| {
        let typed = text(&inside);
        let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
        sh(
            &scratch,
            &format!("exec {nobody} $FLOE {words}").replace("IT", &typed),
        )
    };
    let subject = format!("{}: lies on {}: open", text(&inside), text(made.device()));
    for words in ["dump IT", "create a=IT -o -", "clone IT=/dev/null"] {
        let run = line(&format!("{words} > /dev/full")).expect_code(1);
        let said = run.stderr_text();
        assert!(said.contains(&subject), "{words}: {run}");
        assert!(said.contains("nothing was frozen"), "{run}");
    }
    let run = line("show IT");
    assert!(run.stderr_text().contains(&subject), "{run}");
}

#[test]
fn a_damaged_chunk_of_frames_costs_no_target() {
    ready!("mke2fs", "debugfs");
    let scratch = Scratch::new();
    let make = "truncate -s 16M e && mke2fs -q -F -t ext4 e && head -c 4M /dev/urandom > r && debugfs -w -R 'write r r' e
        $FLOE dump e --frames | cat > d; $FLOE create x=$PWD/e --frames | cat > c; cp d d1; cp c c1
        cp e T; tune2fs -L old T; truncate -s +8K T; sha256sum T > sums";
    sh(&scratch, make).expect_code(0);
    for name in ["d1", "c1"] {
        let path = scratch.join(name);
        let mut bytes = fs::read(&path).expect("frames");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("frames");
    }
    let target = LoopDevice::attach(&scratch.join("T"), 512);
    let to = text(target.path());
    for (line, code) in [
        (format!("restore d1 {to} --overwrite"), 3),
        (format!("restore - {to} --overwrite < d1"), 3),
        (format!("restore d1 {to} --overwrite --dry-run"), 3),
        (format!("restore c1 x={to} --overwrite"), 3),
        (format!("restore - x={to} --overwrite < c1"), 3),
        (format!("restore d {to} --overwrite --dry-run"), 0),
    ] {
        let words = if code == 0 { "would be" } else { "in chunk" };
        expect(&scratch, &[(&format!("$FLOE {line}"), code, words)]);
    }
    sh(&scratch, "sync T; sha256sum -c --status sums").expect_code(0);
    let take = format!(
        "$FLOE restore d {to} --overwrite && sync T && cmp -n 16777216 e T && $FLOE restore c x={to} --overwrite"
    );
    sh(&scratch, &take).expect_code(0);
}

#[test]
fn what_others_write_to_is_no_image_and_what_is_idle_is_held_and_taken() {
    ready!("mke2fs", "sfdisk");
    let scratch = Scratch::new();
    let lay = "truncate -s 24M d && printf 'start=2048,size=16384\\nstart=20480,size=16384\\n' | sfdisk -q d";
    sh(&scratch, &format!("{EXT4} && cp e f && cp e g && {lay}")).expect_code(0);
    let device = LoopDevice::attach(&scratch.join("e"), 512);
    let (disk, shown) = (text(device.path()), scratch.join("link"));
    std::os::unix::fs::symlink(&disk, &shown).expect("link");
    {
        let _mounted = Mounted::new("ext4", device.path(), "");
        let _file = Mounted::new("ext4", &scratch.join("f"), "");
        let dump = format!("floe dump {disk} -o FILE");
        for image in [disk.as_str(), "e", "link"] {
            for line in [
                format!("$FLOE verify {image}"),
                format!("$FLOE restore {image} out"),
                format!("$FLOE restore {image} out --dry-run"),
                format!("$FLOE artifact {image} -n a -t b -o x.mender"),
                format!("$FLOE verify - < {image}"),
            ] {
                expect(&scratch, &[(&line, 4, &dump)]);
            }
        }
        expect(
            &scratch,
            &[
                ("$FLOE verify f", 4, "is mounted on"),
                ("$FLOE push f board /dev/x", 4, "is mounted on"),
                ("test ! -e out && test ! -e x.mender", 0, ""),
            ],
        );
    }
    // Nobody writes to what is mounted through a device that takes no writes.
    let _read_only = Mounted::new("ext4", &scratch.join("g"), "ro");
    expect(
        &scratch,
        &[
            ("$FLOE verify g", 0, ""),
            (&format!("$FLOE verify {disk} && $FLOE verify e"), 0, ""),
            (&format!("$FLOE restore {disk} out && cmp e out"), 0, ""),
            (
                &format!(
                    "$FLOE artifact {disk} -n a -t b | cat > x.mender; $FLOE artifact {disk} -n a -t b > y.mender && $FLOE verify y.mender"
                ),
                0,
                "",
            ),
        ],
    );
    let whole = LoopDevice::attach_with(&scratch.join("d"), &["-P"]);
    let (all, first) = (text(whole.path()), format!("{}p1", text(whole.path())));
    if !std::path::Path::new(&first).exists() {
        common::skip("nodes of partitions");
        return;
    }
    let make = format!("mke2fs -q -F -t ext4 {first} && mke2fs -q -F -t ext4 {all}p2");
    sh(&scratch, &make).expect_code(0);
    let _mounted = Mounted::new("ext4", first.as_ref(), "");
    expect(
        &scratch,
        &[
            (&format!("$FLOE verify {all}"), 4, "is mounted on"),
            (&format!("$FLOE verify {all}p2"), 0, ""),
        ],
    );
}

#[test]
fn a_filesystem_larger_than_its_partition_is_no_image_in_whatever_it_comes() {
    ready!("mke2fs", "sfdisk");
    let scratch = Scratch::new();
    let make = "truncate -s 40M d && printf 'label: gpt\\nstart=2048,size=16384\\nstart=20480,size=32768\\n' | sfdisk -q d && cp d good
        truncate -s 20M p && mke2fs -q -F -t ext4 p && truncate -s 16M q && mke2fs -q -F -t ext4 q
        dd if=q of=good bs=1M seek=10 conv=notrunc && head -c 16M p | dd of=d bs=1M seek=10 conv=notrunc && gzip -1 -k d
        $FLOE dump --whole d -o whole.gz && $FLOE dump good -o good.gz && $FLOE artifact d -n a -t b -o any.mender --any-content && mke2fs -q -F -L old T 8M && sha256sum T > sums";
    sh(&scratch, make).expect_code(0);
    let what =
        "the ext4 in the partition at 0xa00000 says 20971520 bytes, the partition has 16777216";
    for (line, code) in [
        ("dump d -o x.gz", 4),
        ("verify d", 3),
        ("verify d.gz", 3),
        ("verify any.mender", 3),
        ("restore d out", 3),
        ("restore d.gz out", 3),
        ("artifact d -n a -t b -o x.mender", 3),
        ("artifact whole.gz -n a -t b -o x.mender", 3),
        ("push d.gz board /dev/x", 3),
        ("verify - < d.gz", 3),
    ] {
        expect(&scratch, &[(&format!("$FLOE {line}"), code, what)]);
    }
    let run = sh(&scratch, "$FLOE show d; ls out x.*").expect_code(2);
    let said = run.stdout_text();
    assert!(
        said.contains(what) && !said.contains("a dump reads"),
        "{run}"
    );
    let good = "for i in good good.gz whole.gz; do $FLOE verify $i && $FLOE restore $i out && rm out || exit 1; done
        $FLOE verify d --any-content && $FLOE verify any.mender --any-content";
    sh(&scratch, good).expect_code(0);
}

#[test]
fn a_copy_as_it_is_stands_alone_and_becomes_no_artifact_by_itself() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let make = "head -c 3M /dev/urandom > n; truncate -s 8M e && mke2fs -q -F -t ext4 e && head -c 5M e > cut
        for i in n cut; do $FLOE dump --whole $i -o $i.gz || exit 1; done; echo '<html>' | gzip > page.gz
        cat n.gz page.gz > np.gz; cat cut.gz page.gz > cp.gz; cat n.gz n.gz > nn.gz; cat page.gz n.gz > pn.gz; (cat n.gz; head -c 700 /dev/zero) > nz.gz";
    sh(&scratch, make).expect_code(0);
    let behind = "something else behind the copy";
    expect(
        &scratch,
        &[
            ("$FLOE verify n.gz && $FLOE verify cut.gz", 0, ""),
            ("$FLOE verify nz.gz", 0, ""),
            ("$FLOE verify np.gz", 3, behind),
            ("$FLOE verify cp.gz", 3, behind),
            ("$FLOE verify nn.gz", 3, behind),
            ("$FLOE restore np.gz out", 3, behind),
            ("$FLOE verify pn.gz", 3, "is no image"),
            ("test ! -e out && $FLOE verify np.gz --any-content", 0, ""),
        ],
    );
    let line =
        |image: &str, more: &str| format!("$FLOE artifact {image} -n a -t b -o x.mender {more}");
    let device = LoopDevice::attach(&scratch.join("n"), 512);
    let create = format!("$FLOE create x={} -o n.zip -q", text(device.path()));
    sh(&scratch, &create).expect_code(0);
    let hint = "--any-content takes it";
    for image in ["n.gz", "cut.gz", "n.zip"] {
        expect(&scratch, &[(&line(image, ""), 3, hint)]);
        let made = format!(
            "{} && $FLOE verify x.mender",
            line(image, "--any-content -q")
        );
        expect(&scratch, &[(&made, 3, hint)]);
        let taken = "$FLOE verify x.mender --any-content && rm x.mender";
        sh(&scratch, taken).expect_code(0);
    }
}

#[test]
fn no_advice_costs_an_image_that_lies_where_the_target_does() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let make = format!(
        "{EXT4} && cp e f && cp e.gz name && $FLOE artifact e -n a -t b -o m -q && $FLOE dump e --frames -q | cat > fr
        $FLOE create x=$PWD/e -o z -q; echo text > t; sha256sum e.gz name m fr z > sums"
    );
    sh(&scratch, &make).expect_code(0);
    for (target, what) in [
        ("e.gz", "is a gzip file itself"),
        ("name", "is a gzip file itself"),
        ("m", "is a Mender artifact itself"),
        ("fr", "is what floe dump --frames sent"),
        ("z", "is a zip archive itself"),
    ] {
        for more in ["", "--overwrite", "--overwrite --dry-run"] {
            let line = format!("$FLOE restore f {target} {more}");
            expect(&scratch, &[(&line, 4, what)]);
        }
    }
    let run = sh(&scratch, "$FLOE restore e f").expect_code(4);
    let said = run.stderr_text();
    assert!(
        said.contains(
            "is a raw image (ext4); where it is the TARGET, which comes last, and not the IMAGE"
        ),
        "{run}"
    );
    expect(
        &scratch,
        &[
            ("sha256sum -c --status sums", 0, ""),
            ("$FLOE restore e t", 4, "--overwrite writes over it"),
            (
                "$FLOE restore e f --overwrite && $FLOE restore e t --overwrite",
                0,
                "",
            ),
        ],
    );
}

#[test]
fn what_another_program_packed_and_a_pipe_without_a_dash_are_named() {
    ready!("mke2fs", "zip", "unzip", "tar");
    let scratch = Scratch::new();
    let make = format!(
        "{EXT4} && $FLOE create x=$PWD/e -o s.zip -q && mkdir d && cd d && unzip -q ../s.zip && zip -q -r ../z.zip snapshot.json images checksums.json checksums.sha256 && cd ..
        tar --format=v7 -cf t.tar e && head -c 4M /dev/urandom > b && head -c 64 /dev/zero | dd of=b bs=1 seek=446 conv=notrunc && printf '\\125\\252' | dd of=b bs=1 seek=510 conv=notrunc"
    );
    sh(&scratch, &make).expect_code(0);
    let again = "another program packed the files again";
    expect(
        &scratch,
        &[
            ("$FLOE verify z.zip", 3, again),
            ("$FLOE restore z.zip x=out", 3, again),
            ("$FLOE show z.zip", 3, again),
            ("$FLOE verify t.tar", 3, "is a tar archive"),
            ("$FLOE verify b", 3, "a partition table without partitions"),
            ("$FLOE dump b -o b.gz -q && $FLOE verify b.gz", 0, ""),
            ("cat e | $FLOE verify", 2, "floe verify -)"),
            ("cat e | $FLOE artifact -n a -t b", 2, "floe artifact -)"),
            ("cat e | $FLOE restore out", 2, "floe restore - out)"),
        ],
    );
}
