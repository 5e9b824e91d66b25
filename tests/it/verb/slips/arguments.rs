//! Slips of who types: arguments the wrong way round, values, dashes, names of what is not there, and what another program packed.

use std::fs;

use super::{EXT4, expect, sh};
use crate::common::{self, LoopDevice, Scratch, text};

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
            (
                "$FLOE dump e x.img.gz",
                2,
                "unexpected argument 'x.img.gz' (did you mean -o x.img.gz?); see",
            ),
            ("$FLOE dump e .", 2, "unexpected argument '.'; see"),
            ("sha256sum -c --status sums", 0, ""),
        ],
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

#[test]
fn an_option_in_the_place_of_a_value_is_none() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    expect(
        &scratch,
        &[
            (
                "$FLOE dump e -o --golden",
                2,
                "--output: its value is missing: --golden is an option",
            ),
            ("$FLOE dump e -o a.gz --report -q", 2, "or ./-q as a file"),
            (
                "$FLOE create a=e --comment --factory -o x.zip",
                2,
                "where it is meant: --comment=--factory",
            ),
            ("$FLOE pull board --kept -o k.zip", 2, "-o is an option"),
            ("test $(ls | wc -l) = 2", 0, ""),
            (
                "$FLOE create a=e --comment=--factory -q -o x.zip && $FLOE show x.zip | grep -q -- --factory",
                0,
                "",
            ),
            ("$FLOE dump e -q -o ./--golden && test -s ./--golden", 0, ""),
        ],
    );
}

#[test]
fn what_was_read_live_or_taken_as_it_is_says_so_wherever_it_is_named() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    let device = LoopDevice::attach(&scratch.join("e"), 512);
    let mounted = common::Mounted::new("ext4", device.path(), "");
    let live = format!(
        "mkdir store; $FLOE create -q a={} --live -o store/",
        text(device.path())
    );
    sh(&scratch, &live).expect_code(0);
    drop(mounted);
    expect(
        &scratch,
        &[
            ("$FLOE list store | grep -q 'a (live)'", 0, ""),
            (
                "$FLOE verify store/*.zip | grep -q 'may not be consistent'",
                0,
                "",
            ),
            (
                "head -c 3M e > cut; $FLOE verify cut",
                3,
                "bring the whole file",
            ),
            (
                "$FLOE verify cut --any-content | grep -q 'not whole (.*), and taken as it is'",
                0,
                "",
            ),
            (
                "$FLOE verify e --any-content | grep -q 'was not judged'",
                0,
                "",
            ),
        ],
    );
}
