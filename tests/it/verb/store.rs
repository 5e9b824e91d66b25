//! The store: what `list` says of each file, and the names under which the other verbs find it.

use std::fs;
use std::os::unix::fs::symlink;
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

/// The names of the table, in its order.
fn listed(store: &Path) -> Vec<String> {
    let text = with_store(store, &["list"]).expect_code(0).stdout_text();
    let names = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

/// `path` with another number.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let stem = stem(path);
    let (front, _) = stem.rsplit_once('-').expect("a name");
    path.with_file_name(format!("{front}-{number:04}.zip"))
}

#[test]
fn delete_removes_nothing_but_what_list_shows() {
    let (scratch, store) = require_store!();
    let good = make(&scratch, &store, &[]);
    let bytes = fs::read(&good).expect("snapshot");
    let outside = scratch.join("outside.txt");
    fs::write(&outside, b"precious").expect("outside");
    let texts = ["diary.txt", "important.img.gz", "README", ".floe.last", "x"];
    for name in texts {
        fs::write(store.join(name), b"7").expect("write");
    }
    symlink("../outside.txt", store.join("x.zip")).expect("link");
    symlink("/nowhere", store.join("gone.zip.part")).expect("link");
    symlink(&good, numbered(&good, 40)).expect("link");
    common::output("mkfifo", &[&store.join("fifo.zip").to_string_lossy()]);
    fs::create_dir(store.join("dir.zip")).expect("folder");
    let before = common::names(&store);
    let linked = stem(&numbered(&good, 40));
    let others = [
        "x.zip",
        "gone.zip.part",
        "fifo.zip",
        "fifo",
        "dir.zip",
        "dir",
        &linked,
        "important",
        ".",
        "..",
        "../outside.txt",
        "",
    ];
    let right = stem(&good);
    for name in texts.into_iter().chain(others) {
        let alone = ["delete", "--force", name];
        for words in [&alone[..], &["delete", &right, name]] {
            // An empty name is a wrong line.
            let run = with_store(&store, words).expect_code(if name.is_empty() { 2 } else { 4 });
            let said = run.stderr_text();
            let wanted = match name {
                "x" | "x.zip" | "gone.zip.part" => "is a link, and no snapshot".into(),
                "dir" | "dir.zip" => "is a folder, and no snapshot".into(),
                "fifo" | "fifo.zip" => "is no regular file, and no snapshot".into(),
                _ if name == linked => "is a link, and no snapshot".into(),
                _ if name.contains('/') => {
                    "is a path; delete takes the names that floe list shows".into()
                }
                _ => format!("has no snapshot '{name}'; floe list shows what there is"),
            };
            assert!(name.is_empty() || said.contains(&wanted), "{run}");
        }
    }
    assert_eq!(common::names(&store), before);
    for name in texts {
        assert_eq!(fs::read(store.join(name)).expect("text"), b"7");
    }
    assert_eq!(fs::read(&outside).expect("outside"), b"precious");
    // What is there under the whole name is meant, not what has it with an ending.
    for (name, bytes) in [
        ("cut.zip", &bytes[..bytes.len() / 2]),
        ("two.zip", &b"none"[..]),
        ("two.zip.zip", &bytes[..]),
        ("left.zip.part", &bytes[..bytes.len() / 2]),
        ("data.img.gz.resume", &b"frames"[..]),
    ] {
        fs::write(store.join(name), bytes).expect("write");
    }
    with_store(&store, &["delete", "two.zip"]).expect_code(0);
    assert!(!store.join("two.zip").exists() && store.join("two.zip.zip").exists());
    for name in [
        "two.zip",
        "cut",
        "left.zip.part",
        "data.img.gz.resume",
        &right,
    ] {
        with_store(&store, &["delete", name]).expect_code(0);
    }
    assert_eq!(common::names(&store), {
        let mut left = before;
        left.retain(|name| store.join(name) != good);
        left
    });
    assert_eq!(fs::read(&outside).expect("outside"), b"precious");
}

#[test]
fn what_is_being_made_is_not_deleted_by_force_either() {
    let (scratch, store) = require_store!();
    let good = make(&scratch, &store, &[]);
    let bytes = fs::read(&good).expect("snapshot");
    for name in ["own.zip.part", "own.zip.1.part", "data.img.gz.resume"] {
        let path = store.join(name);
        fs::write(&path, &bytes[..bytes.len() / 2]).expect("part");
        // As whoever makes one holds it.
        let held = fs::File::open(&path).expect("part");
        held.lock().expect("lock");
        for words in [
            &["delete", name][..],
            &["delete", "--force", name],
            &["delete", "--force", &stem(&good), name],
            &["delete", "--dry-run", name],
        ] {
            let said = with_store(&store, words).expect_code(4).stderr_text();
            assert!(said.contains("is being made"), "{said}");
            assert!(said.contains("nothing was"), "{said}");
        }
        let text = with_store(&store, &["list"]).expect_code(0).stdout_text();
        let line = text.lines().find(|line| line.starts_with(name));
        assert!(line.expect("listed").contains("being made"), "{text}");
        held.unlock().expect("unlock");
        with_store(&store, &["delete", name]).expect_code(0);
        assert!(!path.exists() && good.exists());
    }
}

#[test]
fn links_in_a_store_are_neither_read_nor_removed_and_only_their_numbers_count() {
    let (scratch, store) = require_store!();
    let outside = scratch.join("outside");
    fs::create_dir(&outside).expect("outside");
    let theirs = make(&scratch, &outside, &["--comment", "theirs"]);
    let (first, second) = (make(&scratch, &store, &[]), make(&scratch, &store, &[]));
    let links = [numbered(&first, 1_000), numbered(&first, 1_001)];
    symlink(&theirs, &links[0]).expect("link");
    symlink(&first, &links[1]).expect("link");
    symlink(&theirs, store.join("own.zip")).expect("link");
    let part = numbered(&first, 1_002).with_extension("zip.part");
    symlink(&theirs, &part).expect("link");
    let text = with_store(&store, &["list"]).expect_code(0).stdout_text();
    assert_eq!(text.matches(" complete ").count(), 2, "{text}");
    assert!(!text.contains("theirs"), "{text}");
    let told = " no snapshot  is a link, and no snapshot: it is left alone";
    assert_eq!(text.matches(told).count(), 4, "{text}");
    let latest = with_store(&store, &["show", "latest"]).expect_code(0);
    assert!(latest.stdout_text().contains(&stem(&second)), "{latest}");
    let target = scratch.join("target");
    let pair = format!("root={}", target.display());
    for name in ["own".to_owned(), stem(&links[0]), stem(&links[1])] {
        for words in [
            &["show", &name][..],
            &["verify", &name],
            &["restore", &name, &pair],
            &["kept", "get", &name],
            &["delete", &name],
        ] {
            with_store(&store, words).expect_code(4);
        }
    }
    assert!(!target.exists());
    // The store itself may be reached by a link.
    let way = scratch.join("way");
    symlink(&store, &way).expect("link");
    let third = make(&scratch, &way, &["--keep", "2"]);
    assert!(stem(&third).ends_with("-1002"), "{}", third.display());
    assert!(!first.exists() && second.exists());
    with_store(&way, &["verify", "latest"]).expect_code(0);
    with_store(&way, &["delete", "latest"]).expect_code(0);
    assert!(!third.exists() && second.exists() && theirs.exists());
    for link in [&links[0], &links[1], &part, &store.join("own.zip")] {
        assert!(link.is_symlink(), "{}", link.display());
    }
}

#[test]
fn list_has_the_order_of_latest_and_keep() {
    let (scratch, store) = require_store!();
    let first = make(&scratch, &store, &[]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let second = make(&scratch, &store, &[]);
    // As if the clock had been set back between them.
    let (newer, older) = (numbered(&first, 9), numbered(&second, 4));
    fs::rename(&first, &newer).expect("rename");
    fs::rename(&second, &older).expect("rename");
    fs::copy(&newer, store.join("own.zip")).expect("copy");
    fs::write(numbered(&second, 6), b"cut").expect("cut");
    let names = |paths: &[&Path]| -> Vec<String> {
        let names = paths.iter().filter_map(|path| path.file_name());
        names.map(|name| name.to_string_lossy().into()).collect()
    };
    let own = Path::new("own.zip");
    let wanted = names(&[own, &older, &numbered(&second, 6), &newer]);
    assert_eq!(listed(&store), wanted);
    let json = with_store(&store, &["list", "--json"]).expect_code(0);
    let json = json.stdout_text();
    let places = wanted.iter().map(|name| json.find(&format!("/{name}\"")));
    assert!(places.is_sorted(), "{json}");
    let latest = with_store(&store, &["show", "latest"]).expect_code(0);
    assert!(latest.stdout_text().contains(&stem(&newer)), "{latest}");
    let made = make(&scratch, &store, &["--keep", "2"]);
    assert_eq!(listed(&store), names(&[own, &newer, &made]));
}
