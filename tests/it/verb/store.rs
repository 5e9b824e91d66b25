//! The store: what `list` says of each file, and the names under which the other verbs find it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Limit, Run, Scratch};

/// A folder of its own, and an empty store in it.
macro_rules! require_store {
    () => {{
        require_mkfs!();
        let scratch = Scratch::new();
        let store = scratch.join("store");
        fs::create_dir(&store).expect("store");
        (scratch, store)
    }};
}

/// floe where /etc/floe.conf names `store`, in a mount namespace of its own.
fn with_store(store: &Path, words: &[&str]) -> Run {
    let conf = "mount -t tmpfs tmpfs /etc && echo \"store = $0\" > /etc/floe.conf && exec \"$@\"";
    let floe = common::floe().expect("required before");
    let mut run = Command::new("unshare");
    run.args(["-m", "--propagation", "slave", "sh", "-c", conf])
        .arg(store)
        .arg(floe.get_program())
        .args(floe.get_args())
        .args(words);
    common::run(&mut run, Limit::secs(60))
}

/// A snapshot of a small image, named by floe.
fn make(scratch: &Scratch, store: &Path, more: &[&str]) -> PathBuf {
    let image = scratch.join("image");
    if !image.exists() {
        common::sparse(&image, 8 << 20);
        common::mkfs_ext4(&image);
    }
    let mut floe = common::floe().expect("required before");
    floe.args(["create", "-q"])
        .arg(format!("root={}", image.display()))
        .arg("-o")
        .arg(store)
        .args(more);
    let before: Vec<PathBuf> = zips(store);
    common::run(&mut floe, Limit::secs(60)).expect_code(0);
    let new = zips(store).into_iter().find(|path| !before.contains(path));
    new.expect("a new snapshot")
}

fn zips(store: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(store).expect("store");
    entries
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "zip"))
        .collect()
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .expect("stem")
        .to_string_lossy()
        .into_owned()
}

#[test]
fn list_tells_complete_being_made_incomplete_and_damaged_apart() {
    require_mkfs!();
    require!(common::have("flock"), "flock");
    let scratch = Scratch::new();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("store");
    let good = make(&scratch, &store, &["--comment", "first"]);
    let bytes = fs::read(&good).expect("snapshot");
    let put = |name: &str, bytes: &[u8]| fs::write(store.join(name), bytes).expect("write");
    put("cut.zip", &bytes[..bytes.len() / 2]);
    put("left.zip.part", &bytes[..bytes.len() / 2]);
    put("making.zip.part", &bytes[..bytes.len() / 2]);
    let mut damaged = bytes.clone();
    // The signature of the first entry in the directory.
    let at = damaged.windows(4).position(|w| w == b"PK\x01\x02");
    damaged[at.expect("directory")] = b'X';
    put("damaged.zip", &damaged);
    // The lock is held by the shell, and by floe as its child.
    let words = format!(
        "exec 9<'{0}/making.zip.part'; flock -n 9 && exec \"$@\"",
        store.display()
    );
    let floe = require_floe!();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &words, "sh"])
        .arg(floe.get_program())
        .args(floe.get_args())
        .arg("list")
        .arg(&store);
    let run = common::run(&mut shell, Limit::secs(60)).expect_code(0);
    let text = run.stdout_text();
    let line = |name: &str| {
        let found = text.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("no {name}: {text}"))
            .to_owned()
    };
    for word in ["SIZE", "AGE", "STATE", "ENTRIES"] {
        assert!(line("NAME").contains(word), "{text}");
    }
    let name = good.file_name().expect("name").to_string_lossy();
    assert!(line(&name).contains("  complete "), "{text}");
    assert!(line(&name).contains("root: first"), "{text}");
    for (name, state) in [
        ("cut.zip", "incomplete"),
        ("left.zip.part", "incomplete"),
        ("making.zip.part", "being made"),
        ("damaged.zip", "damaged"),
    ] {
        assert!(line(name).contains(state), "{name}: {text}");
    }
}

#[test]
fn the_number_of_a_deleted_snapshot_does_not_come_again() {
    let (scratch, store) = require_store!();
    let number = |path: &Path| stem(path).rsplit_once('-').expect("-").1.to_owned();
    let (_, second) = (make(&scratch, &store, &[]), make(&scratch, &store, &[]));
    for (gone, next) in [(second.clone(), "0003"), (second, "0004")] {
        let gone = zips(&store).into_iter().max().unwrap_or(gone);
        with_store(&store, &["delete", &stem(&gone)]).expect_code(0);
        assert_eq!(number(&make(&scratch, &store, &[])), next);
    }
    // All of them.
    for path in zips(&store) {
        with_store(&store, &["delete", &stem(&path)]).expect_code(0);
    }
    assert_eq!(number(&make(&scratch, &store, &[])), "0005");
}

#[test]
fn a_dry_create_says_its_name_and_what_keep_would_retire() {
    let (scratch, store) = require_store!();
    let factory = make(&scratch, &store, &["--factory"]);
    let (first, second) = (make(&scratch, &store, &[]), make(&scratch, &store, &[]));
    let pair = format!("root={}", scratch.join("image").display());
    let dry = |keep: &str| {
        let words = ["create", &pair, "--keep", keep, "--dry-run"];
        with_store(&store, &words).expect_code(0).stderr_text()
    };
    let goes = |said: &str, path: &Path| {
        let line = format!("floe: {}: would be removed, ", path.display());
        said.lines().any(|said| said.starts_with(&line))
    };
    let (all, one) = (dry("3"), dry("1"));
    assert!(all.contains("-0004.zip: would hold root ("), "{all}");
    assert!(!all.contains("would be removed"), "{all}");
    assert!(goes(&one, &first) && goes(&one, &second), "{one}");
    assert!(!goes(&one, &factory), "{one}");
    let two = dry("2");
    assert!(goes(&two, &first) && !goes(&two, &second), "{two}");
    assert_eq!(zips(&store).len(), 3);
    // And so it comes.
    with_store(&store, &["create", "-q", &pair, "--keep", "2"]).expect_code(0);
    assert!(!first.exists() && second.exists() && factory.exists());
    let made = zips(&store)
        .iter()
        .any(|path| stem(path).ends_with("-0004"));
    assert!(made, "{:?}", zips(&store));
    // While somebody makes one, it is refused as it would be.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot");
    let lock = format!("{} {}\n", std::process::id(), boot.trim());
    fs::write(store.join(".floe.lock"), lock).expect("lock");
    for words in [
        &["create", &pair, "--dry-run"][..],
        &["delete", "latest", "--dry-run"],
    ] {
        let run = with_store(&store, words).expect_code(4);
        assert!(
            run.stderr_text().contains("is making a snapshot there"),
            "{run}"
        );
    }
}

#[test]
fn kept_names_and_latest_are_understood_and_deleted() {
    let (scratch, store) = require_store!();
    let factory = make(&scratch, &store, &["--factory"]);
    let first = make(&scratch, &store, &[]);
    let second = make(&scratch, &store, &[]);
    for verb in ["show", "verify"] {
        let run = with_store(&store, &[verb, "latest"]).expect_code(0);
        assert!(run.stdout_text().contains(&stem(&second)), "{run}");
        let run = with_store(&store, &[verb, &stem(&first)]).expect_code(0);
        assert!(run.stdout_text().contains(&stem(&first)), "{run}");
    }
    let target = scratch.join("target");
    let pair = format!("root={}", target.display());
    with_store(&store, &["restore", "-q", "latest", &pair]).expect_code(0);
    assert_eq!(
        common::hash_file(&target),
        common::hash_file(&scratch.join("image"))
    );
    // All or nothing: what is marked stays, and so does what was named beside it.
    let run = with_store(&store, &["delete", &stem(&first), &stem(&factory)]).expect_code(4);
    assert!(run.stderr_text().contains("nothing was deleted"), "{run}");
    assert_eq!(zips(&store).len(), 3);
    let run = with_store(&store, &["delete", "no-such"]).expect_code(4);
    assert!(
        run.stderr_text().ends_with("; nothing was deleted\n"),
        "{run}"
    );
    let run = with_store(&store, &["delete", "--dry-run", "latest"]).expect_code(0);
    let said = run.stderr_text();
    assert!(said.contains("would be deleted, "), "{run}");
    assert!(said.contains("nothing was touched (--dry-run)"), "{run}");
    assert!(!said.contains(": deleted"), "{run}");
    let words = ["delete", "--dry-run", "-q", "latest", "--report", "-"];
    let said = with_store(&store, &words).expect_code(0).stderr_text();
    assert!(said.contains("\"would_delete\":1,"), "{said}");
    assert!(!said.contains("\"deleted\""), "{said}");
    assert_eq!(zips(&store).len(), 3);
    let name = first
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    with_store(&store, &["delete", &name, &name]).expect_code(0);
    assert!(!first.exists() && second.exists() && factory.exists());
    with_store(&store, &["delete", "latest"]).expect_code(0);
    assert!(!second.exists() && factory.exists());
    with_store(&store, &["delete", "--force", &stem(&factory)]).expect_code(0);
    assert!(zips(&store).is_empty());
}

#[test]
fn a_snapshot_of_a_newer_floe_is_the_same_answer_in_every_verb_and_is_left_alone() {
    let (scratch, store) = require_store!();
    let good = make(&scratch, &store, &[]);
    // Its metadata are stored: the same with another version, and their checksum in both places.
    let mut bytes = fs::read(&good).expect("snapshot");
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|it| it == what);
    let start = find(&bytes, b"{\"format\":1,").expect("metadata");
    let length = find(&bytes[start..], b"PK").expect("its end");
    // Whether a descriptor stands behind it or not: it ends with its last brace.
    let end = bytes[start..start + length]
        .iter()
        .rposition(|byte| *byte == b'}');
    let mut end = start + end.expect("a brace") + 1;
    end += usize::from(bytes[end] == b'\n');
    let old = crc32fast::hash(&bytes[start..end]).to_le_bytes();
    bytes[start + 10] = b'9';
    let new = crc32fast::hash(&bytes[start..end]).to_le_bytes();
    let mut places = 0;
    while let Some(at) = find(&bytes, &old) {
        bytes[at..at + 4].copy_from_slice(&new);
        places += 1;
    }
    assert_eq!(places, 2, "a descriptor and the directory");
    let newer = store.join("newer.zip");
    fs::write(&newer, &bytes).expect("newer");
    fs::write(store.join("half.zip.part"), &bytes).expect("part");
    let listed = with_store(&store, &["list"]).expect_code(0).stdout_text();
    for name in ["newer.zip", "half.zip.part"] {
        let line = listed.lines().find(|line| line.starts_with(name));
        let line = line.expect("it is listed");
        assert!(
            line.contains("newer format") && !line.contains("damaged"),
            "{line}"
        );
    }
    let (shown, target) = (newer.to_string_lossy(), scratch.join("target"));
    let pair = format!("root={}", target.display());
    let artifact = scratch.join("x.mender");
    let artifact = artifact.to_string_lossy();
    let lines: [&[&str]; 9] = [
        &["show", &shown],
        &["verify", &shown],
        &["restore", &shown, &pair],
        &["restore", "--force", &shown, &pair],
        &["artifact", &shown, "-n", "a", "-t", "b", "-o", &artifact],
        &["push", &shown, "nobody.invalid", "root=/x"],
        &["show", "newer"],
        &["verify", "newer"],
        &["restore", "newer", &pair],
    ];
    for words in lines {
        let told = with_store(&store, words).expect_code(4).stderr_text();
        assert!(
            told.contains("a newer floe made this snapshot"),
            "{words:?}: {told}"
        );
        assert_eq!(told.lines().count(), 1, "{words:?}: {told}");
    }
    for words in [&["verify", "-"][..], &["restore", "-", &pair]] {
        let mut floe = common::floe().expect("floe");
        let run = common::run_with_input(floe.args(words), &bytes, Limit::secs(60));
        let told = run.expect_code(4).stderr_text();
        assert!(
            told.contains("a newer floe made this snapshot"),
            "{words:?}: {told}"
        );
    }
    assert!(!target.exists() && !Path::new(&*artifact).exists());
    // --keep counts what it knows, and judges nothing else.
    make(&scratch, &store, &["--keep", "1"]);
    assert!(!good.exists() && newer.exists());
}

#[test]
fn a_store_that_is_not_there_is_named_with_the_file_that_names_it() {
    let (scratch, store) = require_store!();
    let image = scratch.join("image");
    common::sparse(&image, 8 << 20);
    common::mkfs_ext4(&image);
    fs::remove_dir(&store).expect("store");
    let pair = format!("root={}", image.display());
    let wanted = format!(
        "{}: is no folder, and /etc/floe.conf names it as the store",
        store.display()
    );
    for words in [&["create", &pair][..], &["list"], &["verify", "latest"]] {
        let run = with_store(&store, words).expect_code(4);
        assert!(run.stderr_text().contains(&wanted), "{run}");
    }
}

#[test]
fn a_store_that_is_not_there_hides_no_name_that_was_mistyped() {
    let (scratch, _) = require_store!();
    let gone = scratch.join("gone");
    for words in [
        &["verify", "typo.gz"][..],
        &["show", "typo.gz"],
        &["restore", "typo.gz", "out"],
        &[
            "artifact", "typo.gz", "-n", "a", "-t", "b", "-o", "x.mender",
        ],
        &["push", "typo.gz", "board", "/dev/x"],
    ] {
        let said = with_store(&gone, words).expect_code(4).stderr_text();
        assert!(said.starts_with("floe: typo.gz: "), "{said}");
    }
    for words in [
        &["verify", "latest"][..],
        &["list"],
        &["delete", "typo"],
        &["delete", "latest"],
    ] {
        let said = with_store(&gone, words).expect_code(4).stderr_text();
        assert!(said.contains(&*gone.to_string_lossy()), "{said}");
    }
}
