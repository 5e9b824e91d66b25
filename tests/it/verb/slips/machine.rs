//! What the machine lacks or does meanwhile: room, limits, a store with other things in it, a signal that comes first, others that write.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{EXT4, expect, sh};
use crate::common::{self, LoopDevice, Mounted, Scratch, text};
use crate::disk::Disk;

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
        ("0002", "no snapshot   is no regular file"),
        ("0003", "no snapshot   is a link"),
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
            let run = sh(&scratch, &format!("$FLOE {line}{dry}")).expect_code(4);
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
    let run = sh(&scratch, script).expect_code(4);
    assert!(run.stderr_text().contains("has 0 bytes free"), "{run}");
}

#[test]
fn what_others_write_to_is_no_image_and_what_is_idle_is_held_and_taken() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, &format!("{EXT4} && cp e f && cp e g")).expect_code(0);
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
}

#[test]
fn a_disk_of_which_a_partition_may_be_written_is_no_image_and_one_that_is_idle_is() {
    ready!("mke2fs", "mksquashfs");
    let table = "start=2048,size=16384\nstart=20480,size=16384\n";
    let disk = require_ok!(Disk::make(24, table, 512));
    let (all, file) = (text(disk.device.path()), text(&disk.image));
    let (first, second) = (disk.part_text(1), disk.part_text(2));
    let scratch = &disk.scratch;
    let make = format!("{EXT4} && mke2fs -q -F -t ext4 {first} && mke2fs -q -F -t ext4 {second}");
    sh(scratch, &make).expect_code(0);
    let mounted = Mounted::new("ext4", first.as_ref(), "");
    expect(
        scratch,
        &[
            (&format!("$FLOE verify {all}"), 4, "is mounted on"),
            (&format!("$FLOE verify {second}"), 0, ""),
        ],
    );
    drop(mounted);
    // Beside a partition that nobody can write to, somebody may write to another.
    let make = format!("mksquashfs e e.squashfs -quiet && cat e.squashfs > {first} && sync");
    sh(scratch, &make).expect_code(0);
    let _mounted = Mounted::new("squashfs", first.as_ref(), "");
    let verified = [&all, &file].map(|image| format!("$FLOE verify {image}"));
    for line in &verified {
        expect(scratch, &[(line, 0, "")]);
    }
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::EXCL;
    let writer = rustix::fs::open(second.as_str(), flags, rustix::fs::Mode::empty());
    let writer = writer.expect("nobody else has it");
    for line in &verified {
        expect(scratch, &[(line, 4, &second)]);
    }
    drop(writer);
}

/// A dump of `path` that has begun, in the background, and goes on when there is a file `go`; it comes into `one`.
fn reading(path: &str) -> String {
    format!(
        "rm -f go one two said p; mkfifo p; $FLOE dump -q -z none {path} --spool off --precopy off > p & reading=$!
        {{ dd bs=1 count=1 2> /dev/null; until [ -e go ]; do sleep 0.1; done; cat; }} < p > one &
        until [ -s one ]; do sleep 0.1; done"
    )
}

/// Waits until one that waits has said so.
const TOLD: &str = "until grep -q 'another floe reads it' said; do sleep 0.1; done";

#[test]
fn a_device_that_another_floe_reads_is_waited_for() {
    ready!("mke2fs", "mkfifo");
    let scratch = Scratch::new();
    sh(&scratch, NOISE).expect_code(0);
    let device = LoopDevice::attach(&scratch.join("n"), 512);
    let path = text(device.path());
    let reading = reading(&path);
    for (second, then) in [
        (format!("dump -z none {path} -o two"), "cmp one two"),
        (
            format!("create a={path} -o s.zip"),
            "$FLOE restore -q s.zip a=two && cmp one two",
        ),
        (format!("verify {path}"), "true"),
        (format!("restore {path} two"), "cmp one two"),
    ] {
        let script = format!(
            "{reading}; $FLOE {second} 2> said & {TOLD}; touch go; wait $! || exit; wait; {then}"
        );
        sh(&scratch, &script).expect_code(0);
    }
    // Several that wait have the device open while they do, and do not wait for each other. Nothing but errors is nothing.
    let script = format!(
        "{reading}; for it in 1 2 3; do $FLOE verify -q {path} 2>> said & all=\"$all $!\"; done; sleep 1; touch go
        for it in $all; do wait $it || exit; done; cat said"
    );
    let run = sh(&scratch, &script).expect_code(0);
    assert_eq!(run.stdout_text(), "", "{run}");
    // A signal ends the wait.
    for second in ["dump -o two", "create -o two", "verify", "restore two"] {
        let (verb, output) = second.split_once(' ').unwrap_or((second, ""));
        let source = format!("{}{path}", if verb == "create" { "a=" } else { "" });
        let script = format!(
            "{reading}; $FLOE {verb} --report r {source} {output} 2> said & {TOLD}; kill -TERM $!; wait $!; echo $?; touch go; wait; ls two*"
        );
        let run = sh(&scratch, &script);
        assert_eq!(run.stdout_text(), "143\n", "{second}: {run}");
    }
    // Whoever holds it otherwise is none that ends by itself.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
    let held = rustix::fs::open(path.as_str(), flags, rustix::fs::Mode::empty());
    let held = held.expect("nobody else has it");
    expect(
        &scratch,
        &[(
            &format!("$FLOE dump {path} -o x"),
            4,
            "is in use by another program",
        )],
    );
    drop(held);
}

#[test]
fn two_that_have_a_device_each_and_want_the_others_do_not_wait_for_each_other() {
    ready!("mke2fs", "mkfifo");
    let scratch = Scratch::new();
    sh(&scratch, &format!("{NOISE}; cp n m")).expect_code(0);
    let [one, other] = ["n", "m"].map(|name| LoopDevice::attach(&scratch.join(name), 512));
    let (one, other) = (text(one.path()), text(other.path()));
    // The first one has a device and waits for another; stopped, it misses that this one is free, and the second one takes it.
    let script = format!(
        "{}; $FLOE create a={one} b={other} -o s.zip 2> said & first=$!; {TOLD}; kill -STOP $first; touch go; wait $reading
        mv said earlier; $FLOE create b={other} a={one} -o t.zip 2> said & second=$!; {TOLD}
        kill -CONT $first; wait $first; echo $?; wait $second; echo $?; cat earlier",
        reading(&other)
    );
    let run = sh(&scratch, &script);
    assert!(run.stdout_text().starts_with("4\n0\n"), "{run}");
    assert!(
        run.stdout_text().contains("is in use by another program"),
        "{run}"
    );
}

/// A report into the data, or what is said while they flow, would make of an image something else.
#[test]
fn what_a_person_or_a_script_reads_never_gets_into_the_data() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    let verbs = [
        ("dump e", "verify"),
        ("create a=e -o -", "verify"),
        ("artifact e.gz -n a -t b", "verify"),
    ];
    for (verb, check) in verbs {
        // By whatever name, into a file and into a pipe.
        for report in [
            "/dev/stdout",
            "/dev/fd/1",
            "/proc/self/fd/1",
            "out",
            "./out",
        ] {
            let script = format!("rm -f out; $FLOE {verb} --report {report} > out");
            let said = "the report would be in the data, which goes there";
            expect(&scratch, &[(&script, 4, said)]);
        }
        let pipe = format!(
            "{{ $FLOE {verb} --report /dev/stdout; echo $? > code; }} | cat > out; exit $(cat code)"
        );
        expect(&scratch, &[(&pipe, 4, "the report would be in the data")]);
        let both = format!("rm -f out; $FLOE {verb} --report - > out 2>&1");
        assert_eq!(sh(&scratch, &both).code, Some(4), "{verb}");
        // Without a report all that is said is left out: appended, from the beginning, through a pipe, with progress.
        for script in [
            format!("rm -f out; $FLOE {verb} > out 2>&1"),
            format!("rm -f out; $FLOE {verb} -p >> out 2>&1"),
            format!("$FLOE {verb} --progress=json 2>&1 | cat > out"),
        ] {
            sh(&scratch, &format!("{script} && $FLOE {check} -q out")).expect_code(0);
        }
        // What fails still says so, and where data go elsewhere everything is said as ever.
        let fails = format!(
            "$FLOE {} 2>&1",
            verb.replace("e.gz", "nope")
                .replace("=e", "=nope")
                .replace("dump e", "dump nope")
        );
        assert!(
            sh(&scratch, &fails).stdout_text().starts_with("floe: "),
            "{verb}"
        );
        let apart =
            format!("$FLOE {verb} 2>said >out; grep -q ^floe: said && $FLOE {check} -q out");
        sh(&scratch, &apart).expect_code(0);
    }
}
