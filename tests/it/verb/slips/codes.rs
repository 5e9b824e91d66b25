//! Exit codes agree between verbs: one kind of trouble is one code, whoever meets it, and one line that says what would help. The
//! table of the README, row by row.

use super::{EXT4, expect, sh};
use crate::common::{self, LoopDevice, Mounted, Scratch, text};

/// What a script line is run in: `$IN` before floe's own words.
const NO_PROC: &str = "unshare -m sh -c 'umount -l /proc && exec \"$@\"' sh";
const NO_ADMIN: &str = "setpriv --bounding-set -sys_admin --inh-caps -sys_admin";
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// Each verb whose IMAGE is I.
const IMAGE: [&str; 5] = [
    "verify I",
    "restore I new",
    "restore I new --dry-run",
    "artifact I -n a -t b -o new",
    "push I nohost /dev/x",
];
/// Each verb whose SOURCE is I.
const SOURCE: [&str; 4] = [
    "dump I -o new",
    "create a=I -o new",
    "create a=I -o new --dry-run",
    "clone I=LOOP --overwrite",
];
/// Each verb that writes to I.
const TARGET: [&str; 4] = [
    "restore e I",
    "restore e.gz I",
    "restore s.zip a=I",
    "clone e=I",
];
/// Each verb that writes a file I.
const OUTPUT: [&str; 5] = [
    "dump e -o I",
    "create a=e -o I",
    "artifact e -n a -t b -o I",
    "pull nohost -o I",
    "restore e I",
];

#[test]
fn one_kind_of_trouble_is_one_code_in_every_verb() {
    ready!("mke2fs", "mkfifo", "setpriv", "unshare");
    let scratch = Scratch::new();
    let script = format!(
        "{EXT4}; $FLOE create -q a=e -o s.zip; $FLOE artifact -q e -n a -t b -o m.mender; mkdir folder; mkfifo fifo; : > empty
        echo hello > text; ln -s loop loop; mknod gone b 239 5; truncate -s 4M tiny; mkdir small; chmod 755 .
        head -c 100000 e > cut; head -c 3000 e.gz > cut.gz; head -c 3000 s.zip > cut.zip; head -c 3000 m.mender > cut.mender"
    );
    sh(&scratch, &script).expect_code(0);
    std::fs::copy(common::floe_path().expect("FLOE_BIN"), scratch.join("floe")).expect("floe");
    let target = LoopDevice::filled(&scratch, "target", 16, 0);
    let tiny = LoopDevice::attach(&scratch.join("tiny"), 512);
    let mounted = LoopDevice::filled(&scratch, "mounted", 16, 0);
    common::mkfs_ext4(mounted.path());
    let mounted = Mounted::new("ext4", mounted.path(), "");
    let small = Mounted::new("tmpfs", "none".as_ref(), "size=1M");
    sh(&scratch, "head -c 3M /dev/urandom > noise && mkdir d && mv noise d && truncate -s 16M n && mke2fs -q -F -d d n").expect_code(0);
    let odd = std::cell::RefCell::new(Vec::new());
    let all = |verbs: &[&[&str]], what: &str, code: i32, words: &str| {
        for verb in verbs.iter().flat_map(|verbs| verbs.iter()) {
            let line = verb
                .replace("LOOP", &text(target.path()))
                .split(' ')
                .map(|word| match word.strip_suffix('I') {
                    Some(rest) if rest.is_empty() || rest.ends_with('=') => format!("{rest}{what}"),
                    _ => word.replace("I=", &format!("{what}=")),
                })
                .collect::<Vec<_>>()
                .join(" ");
            let line = format!("rm -f new; timeout 60 $FLOE {line}");
            let run = sh(&scratch, &line);
            let said = run.stderr_text();
            let is_so = run.code == Some(code) && said.contains(words) && said.lines().count() == 1;
            if !is_so || scratch.join("new").exists() {
                odd.borrow_mut()
                    .push(format!("{line}: {code} and {words:?} wanted: {run}"));
            }
        }
    };
    let show: &[&str] = &["show I", "show I --json"];
    // Not there, or not what it would have to be: 4.
    let named: &[&str] = &["thaw I", "show --identity I"];
    for what in ["nope", "./nope", "text/nope", "nope/nope", "loop", "gone"] {
        all(&[&IMAGE, &SOURCE, show, named], what, 4, what);
    }
    all(&[&["list I"]], "./nope", 4, "No such file");
    all(&[&["list I"]], "text", 4, "Not a directory");
    all(&[&OUTPUT], "nope/new", 4, "nope: open: No such file");
    all(
        &[&["dump e -o I", "artifact e -n a -t b -o I", "restore e I"]],
        "folder",
        4,
        "a file in it",
    );
    let lists: &[&str] = &["clone --pairs I", "pull @folder -o new"];
    all(&[lists], "folder", 4, "folder: open: Is a directory");
    all(&[&["restore e new --bmap I"]], "folder", 4, "folder: ");
    let device = text(target.path());
    all(&[&OUTPUT[..4]], &device, 4, "is a device; -o writes files");
    let no_image: &[&[&str]] = &[&IMAGE[..4], &["push I nohost /dev/x"]];
    all(no_image, "folder", 4, "is a directory, not an image");
    all(
        no_image,
        "/dev/null",
        4,
        "is neither a file nor a block device nor a pipe",
    );
    all(&[&SOURCE, show], "fifo", 4, "is a FIFO; name a directory");
    all(&[&SOURCE, show], "/dev/null", 4, "is a character device");
    all(&[&TARGET], "fifo", 4, "fifo");
    for verb in [
        "dump LABEL=no -o new",
        "show LABEL=no",
        "thaw LABEL=no",
        "restore e LABEL=no",
        "clone LABEL=no=/dev/x",
        "clone e=LABEL=no",
        "create a=LABEL=no -o new",
    ] {
        all(&[&[verb]], "", 4, "LABEL=no: no block device here bears it");
    }
    // Too small, as a device and as a file.
    let device = text(tiny.path());
    all(&[&TARGET], &device, 4, "too small");
    let file = text(&small.dir().join("new"));
    for verb in ["restore n I", "restore n I --dry-run"] {
        all(
            &[&[verb]],
            &file,
            4,
            "make room there, or name another place",
        );
    }
    // No image, or not all of one: 3; what dump refuses is its source and not its input.
    for (what, words) in [("text", "is a text"), ("empty", "empty")] {
        all(&[&IMAGE, show], what, 3, words);
        all(&[&SOURCE], what, 4, "is a file, and no image");
    }
    for what in ["cut", "cut.gz", "cut.zip", "cut.mender"] {
        let pair = IMAGE.map(|verb| match what {
            "cut.zip" => verb
                .replace(" new", " a=new")
                .replace(" /dev", " a=/dev")
                .replace("-o a=", "-o "),
            _ => verb.to_owned(),
        });
        let verbs: Vec<&str> = pair.iter().map(String::as_str).collect();
        all(&[&verbs], what, 3, what);
        // Of what is packed it reads only the beginning.
        if what != "cut.gz" {
            all(&[show], what, 3, what);
        }
    }
    for line in [
        "restore - new",
        "restore - a=new",
        "verify -",
        "artifact - -n a -t b -o new",
    ] {
        let line = format!(": | $FLOE {line}");
        expect(&scratch, &[(&line, 3, "stdin: the image is empty")]);
    }
    // Names that mean nothing here.
    all(
        &[&["restore I b=new"]],
        "s.zip",
        4,
        "has no entry 'b'; it has a",
    );
    all(
        &[&["list I", "pull I -o new", "push e I /dev/x"]],
        "root@nohost.invalid",
        1,
        "nohost.invalid",
    );
    all(
        &[&["list I"]],
        "nohost.invalid",
        1,
        "nor is there a folder nohost.invalid here",
    );
    // What this machine does not give: 1.
    let dir = text(mounted.dir());
    let held: &[&str] = &[
        "dump I -o new",
        "create a=I -o new",
        "clone I=LOOP --overwrite",
        "thaw I",
    ];
    let within = |prefix: &str, verbs: &[&str], what: &str, words: &str| {
        for verb in verbs {
            let line = verb.replace("LOOP", &text(target.path()));
            let line = line.replace('I', what);
            let run = sh(&scratch, &format!("rm -f new; {prefix} ./floe {line}"));
            let said = run.stderr_text();
            if run.code != Some(1) || !said.contains(words) || said.lines().count() != 1 {
                odd.borrow_mut()
                    .push(format!("{prefix} {line}: {words:?} wanted: {run}"));
            }
        }
    };
    within(NO_ADMIN, held, &dir, "a container without CAP_SYS_ADMIN");
    let proc: &[&str] = &[
        "dump I -o new",
        "create a=I -o new",
        "clone I=LOOP --overwrite",
        "show I",
        "restore e I",
        "verify I",
        "artifact I -n a -t b -o new",
    ];
    within(
        NO_PROC,
        proc,
        &text(target.path()),
        "/proc: is not mounted here: mount -t proc proc /proc",
    );
    let root: &[&str] = &[
        "dump I -o new",
        "create a=I -o new",
        "clone I=/dev/null",
        "show I",
        "verify I",
        "restore e I",
        "restore I new",
        "artifact I -n a -t b -o new",
        "thaw --all",
    ];
    within(NOBODY, root, &text(target.path()), "run it as root");
    let odd = odd.into_inner();
    assert!(odd.is_empty(), "{}", odd.join("\n"));
}

#[test]
fn a_store_that_nobody_named_or_that_is_not_there_and_names_in_it_are_the_same_to_every_verb() {
    ready!("mke2fs", "unshare");
    let scratch = Scratch::new();
    sh(
        &scratch,
        &format!("{EXT4}; mkdir store; $FLOE create -q a=e -o store/; cp store/*.zip s.zip"),
    )
    .expect_code(0);
    let at = |conf: &str, lines: &[&str], code: i32, words: &str| {
        for line in lines {
            let line = format!(
                "rm -f new; unshare -m sh -c 'mount -t tmpfs tmpfs /etc && echo \"{conf}\" > /etc/floe.conf && exec \"$@\"' sh $FLOE {line}"
            );
            expect(&scratch, &[(&line, code, words)]);
            assert!(!scratch.join("new").exists(), "{line}");
        }
    };
    let kept = [
        "show I",
        "verify I",
        "restore I a=new",
        "artifact I -n a -t b -o new",
        "push I nohost a=/dev/x",
        "delete I",
    ];
    let of = |name: &str| kept.map(|verb| verb.replace('I', name));
    let latest = of("latest");
    let latest: Vec<&str> = latest
        .iter()
        .map(String::as_str)
        .chain(["list", "clone --factory e=/dev/x"])
        .collect();
    at("", &latest, 4, "store = DIR");
    at(
        "store = /nowhere",
        &latest,
        4,
        "/nowhere: is no folder, and /etc/floe.conf names it as the store",
    );
    at(
        "store = /nowhere",
        &["create a=e"],
        4,
        "/nowhere: is no folder",
    );
    let store = format!("store = {}", text(&scratch.join("store")));
    let typo = of("typo");
    let typo: Vec<&str> = typo.iter().map(String::as_str).collect();
    at(&store, &typo, 4, "; floe list shows what there is");
    at(
        &store,
        &["delete store/x.zip", "delete ./s.zip"],
        4,
        "is a path; delete takes the names that floe list shows of ",
    );
    at(
        &store,
        &["restore latest", "restore s.zip"],
        2,
        "is a snapshot of a: say where each goes, as in a=/dev/mmcblk0p3, or all with --disk DEV",
    );
    at(&store, &["show -"], 2, "floe verify - reads all of it");
}
