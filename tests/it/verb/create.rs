//! `floe create`, `list`, and snapshots in `verify`, `show` and `restore`: opened with the tools people have, damaged in every way,
//! put back on loop devices.

use crate::common::{self, Limit, LoopDevice, LoopFs, Scratch, Spec};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Two mounted ext4 filesystems with some files.
fn two() -> Result<(LoopFs, LoopFs), String> {
    let spec = Spec {
        mib: 32,
        ..Spec::default()
    };
    let made = (LoopFs::make(spec)?, LoopFs::make(spec)?);
    made.0.fill(40);
    made.1.fill(20);
    Ok(made)
}

macro_rules! require_two {
    () => {
        match two() {
            Ok(made) => made,
            Err(missing) => {
                common::skip(&missing);
                return;
            }
        }
    };
}

/// `floe create a=… b=… -o WHERE` and more words.
fn create(made: &(LoopFs, LoopFs), place: &Path, more: &[&str]) -> common::Run {
    let mut floe = common::floe().expect("required before");
    floe.arg("create")
        .arg(pair("a", made.0.dir()))
        .arg(pair("b", made.1.dir()))
        .arg("-o")
        .arg(place)
        .args(more);
    common::run(&mut floe, Limit::secs(120))
}

fn pair(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn zips(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    found.sort();
    found
}

fn sh(words: &str, zip: &Path) -> common::Run {
    let script = format!("Z='{}'; {words}", zip.display());
    common::shell(&script, Limit::secs(120))
}

#[test]
fn the_tools_people_have_open_a_snapshot_and_its_images_are_clean() {
    drop(require_floe!());
    let made = require_two!();
    let scratch = Scratch::new();
    let file = scratch.join("file.zip");
    create(&made, &file, &["--comment", "say \"hi\" \\ ü"]).expect_code(0);
    let piped = scratch.join("piped.zip");
    let floe = common::floe_shell_words().expect("required before");
    let (a, b) = (made.0.dir().display(), made.1.dir().display());
    sh(
        &format!("{floe} create a='{a}' b='{b}' -o - -q | cat > \"$Z\""),
        &piped,
    )
    .expect_code(0);
    for zip in [&file, &piped] {
        let mut floe = require_floe!();
        let run = common::run(floe.arg("verify").arg(zip), Limit::secs(60)).expect_code(0);
        assert!(run.stdout_text().contains("good snapshot"), "{run}");
        for (tool, words) in [
            ("unzip", "unzip -tq $Z"),
            ("7z", "7z t $Z > /dev/null"),
            ("bsdtar", "bsdtar -xOf $Z > /dev/null"),
            ("bsdtar", "cat $Z | bsdtar -xOf - > /dev/null"),
            (
                "python3",
                "python3 -c 'import sys,zipfile,json; z=zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                 m=json.loads(z.read(\"snapshot.json\")); assert [e[\"name\"] for e in m[\"entries\"]]==[\"a\",\"b\"]; \
                 assert z.namelist()[0]==\"snapshot.json\"' $Z",
            ),
            (
                "busybox",
                "d=$(mktemp -d) && cd $d && busybox unzip -q $Z && sha256sum -c checksums.sha256 && rm -r $d",
            ),
        ] {
            if !common::have(tool) {
                common::skip(tool);
                continue;
            }
            sh(words, zip).expect_code(0);
        }
    }
    if common::have("unzip") && common::have("e2fsck") {
        let words = "unzip -q $Z 'images/*' && e2fsck -fn images/a.img && e2fsck -fn images/b.img";
        let words = format!("cd '{}' && {words}", scratch.path().display());
        sh(&words, &file).expect_code(0);
    }
    let mode = sh("stat -c %a $Z", &file).expect_code(0);
    assert_eq!(mode.stdout_text().trim(), "600");
    let mut floe = require_floe!();
    let run = common::run(floe.args(["show", "--json"]).arg(&file), Limit::secs(60)).expect_code(0);
    for part in [
        "\"complete\":true",
        "\"name\":\"b\"",
        "say \\\"hi\\\" \\\\ ü",
        "\"consistent\":\"frozen\"",
    ] {
        assert!(run.stdout_text().contains(part), "{part}: {run}");
    }
}

#[test]
fn one_counter_across_two_filesystems_never_disagrees_in_order() {
    drop(require_floe!());
    require!(
        common::have("debugfs") && common::have("unzip"),
        "debugfs and unzip"
    );
    let made = require_two!();
    let scratch = Scratch::new();
    let _load = (
        common::Writer::start(made.0.dir()),
        common::Writer::start(made.1.dir()),
    );
    // First a, then b: whatever the moment, a is as far as b or one step ahead.
    let script = "i=0; printf 00000000 > \"$1/n\"; printf 00000000 > \"$2/n\"; while :; do i=$((i+1)); \
        printf %08d $i 1<> \"$1/n\"; printf %08d $i 1<> \"$2/n\"; done";
    let mut counter = Command::new("sh")
        .args(["-c", script, "counter"])
        .args([made.0.dir(), made.1.dir()])
        .stdin(Stdio::null())
        .spawn()
        .expect("counter");
    let mut seen = Vec::new();
    for round in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let zip = scratch.join(format!("{round}.zip"));
        // Named in either order.
        let mut floe = common::floe().expect("required before");
        let (a, b) = (pair("a", made.0.dir()), pair("b", made.1.dir()));
        let pairs = if round % 2 == 0 { [a, b] } else { [b, a] };
        floe.arg("create").args(pairs).arg("-o").arg(&zip);
        common::run(&mut floe, Limit::secs(120)).expect_code(0);
        let read = |name: &str| {
            let words = format!(
                "cd '{}' && unzip -qo $Z images/{name}.img && debugfs -R 'cat /n' images/{name}.img 2>/dev/null",
                scratch.path().display()
            );
            let run = sh(&words, &zip).expect_code(0);
            run.stdout_text().trim().parse::<u64>().expect("a number")
        };
        seen.push((read("a"), read("b")));
    }
    let _ = counter.kill();
    let _ = counter.wait();
    for (a, b) in &seen {
        assert!(a == b || *a == b + 1, "{seen:?}");
    }
    assert!(seen.windows(2).all(|two| two[0].0 < two[1].0), "{seen:?}");
}

#[test]
fn a_full_disk_leaves_no_part_file_and_earlier_snapshots_intact() {
    drop(require_floe!());
    let made = require_two!();
    let noise = common::Random(5).bytes(6 << 20);
    let store = require_ok!(LoopFs::make(Spec {
        mib: 8,
        ..Spec::default()
    }));
    let small = store.dir().join("old-19700101T000000Z-0001.zip");
    fs::write(&small, b"what was there").expect("write");
    fs::write(made.0.dir().join("noise"), noise).expect("noise");
    let run = create(&made, store.dir(), &["--keep", "1"]).expect_code(1);
    assert!(run.stderr_text().contains("No space left"), "{run}");
    assert_eq!(fs::read(&small).expect("read"), b"what was there");
    let names: Vec<PathBuf> = zips(store.dir());
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("part")),
        "{names:?}"
    );
    assert_eq!(
        names
            .iter()
            .filter(|name| name.extension().is_some())
            .count(),
        1,
        "{names:?}"
    );
    common::assert_not_frozen(made.0.dir(), "after a full disk");
}

#[test]
fn keep_counts_like_with_like() {
    drop(require_floe!());
    let made = require_two!();
    let scratch = Scratch::new();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("folder");
    let kept = |more: &[&str]| {
        let before = zips(&store);
        create(&made, &store, &[&["--keep", "1"], more].concat()).expect_code(0);
        let gone = before.iter().filter(|path| !path.exists()).count();
        let new = zips(&store).into_iter().find(|path| !before.contains(path));
        (gone, new.expect("a new snapshot"))
    };
    let (_, frozen) = kept(&[]);
    // Neither what was read moving nor what was emptied takes the place of the good one, nor of each other.
    for more in [&["--live"][..], &["--golden"]] {
        assert_eq!(kept(more).0, 0, "{more:?}");
        assert_eq!(kept(more).0, 1, "{more:?}");
        assert!(frozen.exists(), "{more:?}");
    }
    // Nor does something else under the same names.
    let other = ["create", "-q", "--keep", "1", "-o"];
    let mut floe = common::floe().expect("FLOE_BIN");
    let (one, two) = (made.1.dir().display(), made.0.dir().display());
    let swapped = [format!("a={one}"), format!("b={two}")];
    floe.args(other).arg(&store).args(swapped);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    assert!(frozen.exists());
    assert_eq!(zips(&store).len(), 4);
    assert_eq!(kept(&[]).0, 1);
    assert!(!frozen.exists());
}

#[test]
fn a_folder_keeps_the_newest_and_what_is_marked_and_one_floe_at_a_time() {
    drop(require_floe!());
    let made = require_two!();
    let scratch = Scratch::new();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("folder");
    create(&made, &store, &["--factory"]).expect_code(0);
    for _ in 0..3 {
        create(&made, &store, &["--keep", "2"]).expect_code(0);
    }
    let names = zips(&store);
    let left: Vec<String> = names
        .iter()
        .map(|path| {
            path.to_string_lossy()
                .rsplit('-')
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    assert_eq!(left, ["0001.zip", "0003.zip", "0004.zip"]);
    // A broken one is listed with the reason.
    let bytes = fs::read(&names[1]).expect("read");
    fs::write(
        store.join("h-20200101T000000Z-0002.zip"),
        &bytes[..bytes.len() / 2],
    )
    .expect("write");
    let mut floe = require_floe!();
    let run =
        common::run(floe.args(["list", "--json"]).arg(&store), Limit::secs(60)).expect_code(0);
    let text = run.stdout_text();
    assert_eq!(text.matches("\"complete\":true").count(), 3, "{text}");
    assert_eq!(text.matches("\"complete\":false").count(), 1, "{text}");
    assert!(text.contains("end of the archive is missing"), "{text}");
    require!(common::have("flock"), "flock");
    let lock = store.join(".floe.lock");
    let mut holder = Command::new("flock")
        .arg(&lock)
        .args(["sleep", "30"])
        .spawn()
        .expect("flock");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let run = create(&made, &store, &[]);
    let _ = holder.kill();
    let _ = holder.wait();
    let run = run.expect_code(4);
    assert!(run.stderr_text().contains("is making a snapshot"), "{run}");
}

#[test]
fn entries_come_back_from_a_file_and_from_a_pipe() {
    drop(require_floe!());
    let mut made = require_two!();
    let scratch = Scratch::new();
    let zip = scratch.join("x.zip");
    made.0.unmount();
    made.1.unmount();
    let mut floe = require_floe!();
    floe.arg("create").arg(pair("a", made.0.device()));
    floe.arg(pair("b", made.1.device())).arg("-o").arg(&zip);
    common::run(&mut floe, Limit::secs(120)).expect_code(0);
    let (one, two) = (
        LoopDevice::filled(&scratch, "1", 40, 0),
        LoopDevice::filled(&scratch, "2", 40, 0),
    );
    let targets = [pair("b", two.path()), pair("a", one.path())];
    let mut floe = require_floe!();
    floe.arg("restore").arg(&zip).args(&targets).arg("--verify");
    common::run(&mut floe, Limit::secs(120)).expect_code(0);
    let check = |device: &LoopDevice| {
        let mut fsck = Command::new("e2fsck");
        common::run(fsck.arg("-fn").arg(device.path()), Limit::secs(60)).expect_code(0);
    };
    check(&one);
    check(&two);
    // A target that holds something, one that is too small, a name that is not there: nothing is written.
    let small = LoopDevice::filled(&scratch, "3", 8, 0);
    for (words, code, part) in [
        (targets.to_vec(), 4, "--overwrite"),
        (vec![pair("a", small.path())], 4, "too small"),
        (vec![pair("c", small.path())], 4, "no entry 'c'"),
        (vec![small.path().display().to_string()], 2, "NAME=TARGET"),
        (
            vec![pair("a", two.path()), pair("b", two.path())],
            2,
            "twice",
        ),
    ] {
        let mut floe = require_floe!();
        let run = common::run(floe.arg("restore").arg(&zip).args(words), Limit::secs(60));
        let run = run.expect_code(code);
        assert!(run.stderr_text().contains(part), "{run}");
    }
    // From a pipe, only one of them.
    let words = common::floe_shell_words().expect("required before");
    let only = format!(
        "cat $Z | {words} restore - b='{}' --overwrite",
        one.path().display()
    );
    let run = sh(&only, &zip).expect_code(0);
    assert!(run.stderr_text().contains("through a pipe"), "{run}");
    check(&one);
    // Another architecture.
    require!(
        common::have("setarch") && common::floe_arch() == Some("x86_64"),
        "setarch"
    );
    for (force, code) in [("", 4), ("--force", 0)] {
        let target = one.path().display();
        let line = format!("setarch i686 {words} restore $Z a='{target}' --overwrite {force}");
        let run = sh(&line, &zip).expect_code(code);
        assert!(
            code == 0 || run.stderr_text().contains("architecture"),
            "{run}"
        );
    }
}

#[test]
fn a_damaged_snapshot_is_refused_before_anything_is_written() {
    drop(require_floe!());
    let made = require_two!();
    let scratch = Scratch::new();
    let zip = scratch.join("good.zip");
    create(&made, &zip, &[]).expect_code(0);
    let good = fs::read(&zip).expect("read");
    let target = LoopDevice::filled(&scratch, "target", 40, 0);
    let bad = scratch.join("bad.zip");
    let length = u64::try_from(good.len()).expect("small");
    let mut random = common::Random(11);
    let mut cases: Vec<Vec<u8>> = Vec::new();
    for _ in 0..12 {
        let mut bytes = good.clone();
        bytes.truncate(usize::try_from(1000 + random.below(length - 1000)).expect("small"));
        cases.push(bytes);
    }
    let flips = (0..20).map(|_| random.below(length)).collect::<Vec<_>>();
    for place in flips.into_iter().chain([
        10,
        40,
        200,
        length - 1,
        length - 30,
        length - 200,
        length - 500,
    ]) {
        let mut bytes = good.clone();
        bytes[usize::try_from(place).expect("small")] ^= 4;
        cases.push(bytes);
    }
    let mut more = good.clone();
    more.push(0);
    cases.push(more);
    for bytes in cases {
        fs::write(&bad, &bytes).expect("write");
        let mut floe = require_floe!();
        let run = common::run(floe.arg("verify").arg(&bad), Limit::secs(60)).expect_code(3);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
        let mut floe = require_floe!();
        floe.arg("restore")
            .arg(&bad)
            .arg(pair("a", target.path()))
            .arg(pair("b", &scratch.join("b.img")));
        let run = common::run(&mut floe, Limit::secs(60)).expect_code(3);
        assert!(run.stderr_text().contains("nothing was written"), "{run}");
        assert!(!scratch.join("b.img").exists(), "{run}");
    }
    assert!(
        !common::is_recognised(target.path()),
        "the target looks valid"
    );
}

#[test]
fn foreign_archives_duplicates_and_unsafe_names_are_refused() {
    drop(require_floe!());
    require!(common::have("python3"), "python3");
    let made = require_two!();
    let scratch = Scratch::new();
    let zip = scratch.join("good.zip");
    create(&made, &zip, &[]).expect_code(0);
    let target = scratch.join("target");
    for change in [
        "w(n, r(n))",                                   // the same entries by another program
        "w(n, r(n)); n=='images/a.img' and w(n, r(n))", // one of them twice
        "w('../'+n if n=='images/a.img' else n, r(n))", // out of its folder
        "n=='images/a.img' or w(n, r(n))",              // one missing
        "n=='snapshot.json' or w(n, r(n))",             // without metadata
    ] {
        let bad = scratch.join("bad.zip");
        let _ = fs::remove_file(&bad);
        let script = format!(
            "import sys,zipfile,warnings; warnings.simplefilter('ignore'); z=zipfile.ZipFile(sys.argv[1]); r=z.read; \
             o=zipfile.ZipFile(sys.argv[2],'w',zipfile.ZIP_DEFLATED); w=o.writestr\nfor n in z.namelist(): {change}\no.close()"
        );
        let mut python = Command::new("python3");
        python.args(["-c", &script]).args([&zip, &bad]);
        common::run(&mut python, Limit::secs(60)).expect_code(0);
        for verb in ["verify", "restore"] {
            let mut floe = require_floe!();
            floe.arg(verb).arg(&bad);
            if verb == "restore" {
                floe.arg(pair("a", &target));
            }
            common::run(&mut floe, Limit::secs(60)).expect_code(3);
        }
        assert!(!target.exists(), "{change}");
    }
}

#[test]
fn table_boot_area_and_partitions_are_laid_on_an_empty_disk() {
    drop(require_floe!());
    require!(
        common::is_root() && common::have("sfdisk") && common::have("partx"),
        "root, sfdisk, partx"
    );
    let scratch = Scratch::new();
    for label in ["gpt", "dos"] {
        let disk = LoopDevice::filled(&scratch, &format!("{label}.disk"), 80, 0);
        let shown = disk.path().display().to_string();
        let words = format!(
            "D='{shown}'; printf 'label: {label}\\nstart=2048,size=40000\\nsize=60000\\n' | sfdisk -q --no-tell-kernel --no-reread $D && \
             printf BOOTLOADER | dd of=$D bs=1 seek=200000 conv=notrunc status=none && partx -a $D"
        );
        let clear = |shown: &str| {
            common::shell(
                &format!("partx -d '{shown}' 2>/dev/null; true"),
                Limit::secs(20),
            );
        };
        common::shell(&words, Limit::secs(60)).expect_code(0);
        for number in 1..=2 {
            common::output("mkfs.ext4", &["-q", &format!("{shown}p{number}")]);
        }
        let zip = scratch.join(format!("{label}.zip"));
        let mut floe = require_floe!();
        floe.arg("create")
            .args([format!("one={shown}p1"), format!("two={shown}p2")]);
        floe.args(["--disk", &shown, "-o"]).arg(&zip);
        let run = common::run(&mut floe, Limit::secs(60));
        clear(&shown);
        run.expect_code(0);
        let new = scratch.join(format!("{label}.new"));
        let mut floe = require_floe!();
        floe.arg("restore").arg(&zip).arg("--disk").arg(&new);
        common::run(&mut floe, Limit::secs(60)).expect_code(0);
        // Onto a larger disk too, which must be empty.
        let larger = LoopDevice::filled(&scratch, &format!("{label}.larger"), 100, 0);
        for code in [0, 4] {
            let mut floe = require_floe!();
            floe.arg("restore")
                .arg(&zip)
                .arg("--disk")
                .arg(larger.path());
            common::run(&mut floe, Limit::secs(60)).expect_code(code);
        }
        for path in [new.as_path(), larger.path()] {
            let words = "sfdisk -V \"$Z\" && dd if=\"$Z\" bs=1 skip=200000 count=10 status=none && \
                P=$(mktemp) && dd if=\"$Z\" of=$P bs=512 skip=2048 count=40000 status=none && e2fsck -fn $P && \
                dd if=\"$Z\" of=$P bs=512 skip=42048 count=60000 status=none && { e2fsck -fn $P || \
                { dd if=\"$Z\" of=$P bs=512 skip=43008 count=60000 status=none && e2fsck -fn $P; }; } && rm $P";
            let run = sh(words, path).expect_code(0);
            assert!(run.stdout_text().contains("BOOTLOADER"), "{run}");
        }
    }
}

#[test]
fn the_command_line_is_checked_before_anything_is_touched() {
    for words in [
        &["create"][..],
        &["create", "root"],
        &["create", "Root=/"],
        &["create", "a/b=/"],
        &["create", "=/"],
        &["create", "a="],
        &["create", "a=/x", "a=/y"],
        &["create", "a=/x", "--keep", "0"],
        &["create", "a=/x", "--keep", "2", "-o", "-"],
        &["create", "a=/x", "--level", "0"],
        &["list", "a", "b"],
        &["restore", "x"],
    ] {
        let run = common::run(require_floe!().args(words), Limit::secs(20)).expect_code(2);
        assert_eq!(run.stderr_text().lines().count(), 1, "{run}");
        assert!(run.stdout.is_empty(), "{run}");
    }
    let made = require_two!();
    let scratch = Scratch::new();
    let run = common::run(
        require_floe!()
            .arg("create")
            .arg(pair("a", made.0.dir()))
            .arg(pair("b", made.0.dir()))
            .arg("-o")
            .arg(scratch.join("x.zip")),
        Limit::secs(60),
    );
    let run = run.expect_code(4);
    assert!(run.stderr_text().contains("holds the same as a"), "{run}");
    assert!(zips(scratch.path()).is_empty(), "{run}");
}
