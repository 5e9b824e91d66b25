//! Folders that others may write to, and stores that hold anything.

use crate::common::{self, Limit, Scratch, run_floe, text};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::{NOBODY, floe, image};

/// A folder of its own on a disk, and one in it that others share.
macro_rules! require_folder {
    () => {{
        require_mkfs!();
        require!(common::is_root(), "root");
        let scratch = Scratch::on_disk();
        let folder = shared_folder(&scratch);
        (scratch, folder)
    }};
}

/// A folder as /tmp is.
fn shared_folder(scratch: &Scratch) -> PathBuf {
    let folder = scratch.join("shared");
    fs::create_dir(&folder).expect("folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).expect("mode");
    folder
}

/// Everything that writes a file of its own, by the name of the output.
fn writers(scratch: &Scratch) -> Vec<Vec<String>> {
    let source = image(scratch, "source", 8, &[]);
    let packed = scratch.join("packed.gz");
    run_floe(&["dump", &text(&source), "-o", &text(&packed)]).expect_code(0);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        words(&["dump", &text(&source), "-o"]),
        words(&["dump", &text(&source), "-z", "none", "-o"]),
        words(&["create", &format!("a={}", text(&source)), "-o"]),
        words(&["artifact", &text(&packed), "-n", "x", "-t", "y", "-o"]),
        words(&["restore", &text(&packed)]),
    ]
}

#[test]
fn whatever_lies_where_the_part_file_would_be_is_left_as_it_is() {
    let (scratch, folder) = require_folder!();
    let victim = scratch.join("victim");
    let target = folder.join("x.img");
    let part = folder.join("x.img.part");
    type Trap = fn(&Path, &Path);
    let traps: [(&str, Trap); 6] = [
        ("another user's file", |part, _| {
            fs::write(part, b"theirs").expect("file");
            std::os::unix::fs::chown(part, Some(NOBODY), None).expect("chown");
        }),
        ("a file that others may open", |part, _| {
            fs::write(part, b"ours").expect("file");
            fs::set_permissions(part, fs::Permissions::from_mode(0o666)).expect("mode");
        }),
        ("a hard link", |part, victim| {
            fs::set_permissions(victim, fs::Permissions::from_mode(0o600)).expect("mode");
            fs::hard_link(victim, part).expect("link");
        }),
        ("a symlink", |part, victim| {
            symlink(victim, part).expect("link")
        }),
        ("a FIFO", |part, _| {
            common::output("mkfifo", &["-m", "600", &part.to_string_lossy()]);
        }),
        ("a folder", |part, _| fs::create_dir(part).expect("folder")),
    ];
    for words in writers(&scratch) {
        for (what, trap) in &traps {
            fs::write(&victim, b"precious").expect("victim");
            trap(&part, &victim);
            let before = fs::symlink_metadata(&part).expect("trap");
            let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
            let out = text(&target);
            words.push(&out);
            let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
            let after = fs::symlink_metadata(&part).expect("the trap is still there");
            let same = |meta: &fs::Metadata| (meta.ino(), meta.mode(), meta.uid(), meta.len());
            assert_eq!(same(&before), same(&after), "{what}: {run}");
            assert_eq!(fs::read(&victim).expect("victim"), b"precious", "{what}");
            let made = fs::metadata(&target).expect("made");
            assert_eq!(
                (made.mode() & 0o7777, made.uid(), made.nlink()),
                (0o600, 0, 1),
                "{what}"
            );
            assert_ne!(made.ino(), before.ino(), "{what}");
            let left = fs::read_dir(&folder).expect("folder").count();
            assert_eq!(left, 2, "{what}: nothing else is left");
            fs::remove_file(&target).expect("target");
            let gone = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
            gone.expect("trap");
        }
    }
}

#[test]
fn what_an_interrupted_run_left_is_taken_over_and_what_a_running_one_writes_is_not() {
    require_mkfs!();
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let out = scratch.join("x.gz");
    let part = scratch.join("x.gz.part");
    fs::write(&part, vec![7; 100_000]).expect("left over");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).expect("mode");
    let inode = fs::metadata(&part).expect("part").ino();
    run_floe(&["dump", &source, "-o", &text(&out)]).expect_code(0);
    assert_eq!(fs::metadata(&out).expect("out").ino(), inode);
    run_floe(&["verify", &text(&out)]).expect_code(0);
    fs::write(&part, b"").expect("part");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).expect("mode");
    let held = fs::File::open(&part).expect("part");
    held.lock().expect("lock");
    let run = run_floe(&["dump", &source, "-o", &text(&out)]).expect_code(4);
    assert!(run.stderr_text().contains("another process"), "{run}");
}

#[test]
fn a_link_as_the_file_is_followed_only_where_the_kernel_would() {
    let (scratch, folder) = require_folder!();
    let victim = scratch.join("victim");
    let link = folder.join("link");
    for words in writers(&scratch) {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let out = text(&link);
        words.push(&out);
        if words[0] == "restore" {
            words.push("--overwrite");
        }
        // Theirs, in a folder of everybody: to a file, and to nothing yet.
        for there in [true, false] {
            let _ = fs::remove_file(&victim);
            if there {
                fs::write(&victim, b"precious").expect("victim");
            }
            symlink(&victim, &link).expect("link");
            std::os::unix::fs::lchown(&link, Some(NOBODY), None).expect("chown");
            let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(4);
            // Which is seen first does not matter: that the link is theirs, or that what is there would be lost.
            let said = run.stderr_text();
            let lost = there && said.contains("is there and is no image");
            assert!(lost || said.contains("link of user 65534"), "{run}");
            assert_eq!(victim.exists(), there);
            assert!(!there || fs::read(&victim).expect("victim") == b"precious");
            fs::remove_file(&link).expect("link");
        }
        // Our own: it stays, and what it points to is made, through two of them.
        let _ = fs::remove_file(&victim);
        symlink("second", &link).expect("link");
        symlink(&victim, folder.join("second")).expect("link");
        common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
        let made = fs::symlink_metadata(&victim).expect("made");
        assert!(made.is_file() && made.mode() & 0o7777 == 0o600);
        assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
        fs::remove_file(&link).expect("link");
        fs::remove_file(folder.join("second")).expect("link");
        // In a circle.
        symlink("link", &link).expect("link");
        let run = common::run(&mut floe(&words), Limit::secs(60));
        assert!(run.code == Some(4) || run.code == Some(1), "{run}");
        fs::remove_file(&link).expect("link");
    }
}

#[test]
fn a_report_follows_nobody_else_s_name_and_empties_nothing_that_is_none() {
    let (scratch, folder) = require_folder!();
    let source = text(&image(&scratch, "source", 8, &[]));
    let report = folder.join("report");
    let victim = scratch.join("daemon.json");
    let show = |words: &[&str]| {
        let words = [&["dump", "-q", &source, "-z", "none", "-o"], words].concat();
        common::run(&mut floe(&words), Limit::secs(60))
    };
    let out = text(&scratch.join("out.img"));
    let run = |at: &Path| show(&[&out, "--report", &text(at)]);
    let theirs = |path: &Path| std::os::unix::fs::lchown(path, Some(NOBODY), None).expect("chown");
    // Through somebody's link: to a file that could be a report, to one that is empty, to nothing yet.
    for held in [Some(&b"{\"a\":1}\n"[..]), Some(b""), None] {
        let _ = fs::remove_file(&victim);
        if let Some(bytes) = held {
            fs::write(&victim, bytes).expect("victim");
        }
        symlink(&victim, &report).expect("link");
        theirs(&report);
        let said = run(&report).expect_code(4);
        assert!(said.stderr_text().contains("link of user 65534"), "{said}");
        assert_eq!(fs::read(&victim).ok().as_deref(), held);
        assert!(!Path::new(&out).exists());
        fs::remove_file(&report).expect("link");
    }
    // A file and a pipe of somebody else's, and a second name of what is ours.
    fs::write(&report, b"").expect("file");
    fs::set_permissions(&report, fs::Permissions::from_mode(0o666)).expect("mode");
    theirs(&report);
    let said = run(&report).expect_code(4);
    assert!(said.stderr_text().contains("is of user 65534"), "{said}");
    fs::remove_file(&report).expect("file");
    fs::write(&victim, b"{\"a\":1}\n").expect("victim");
    fs::hard_link(&victim, &report).expect("link");
    let said = run(&report).expect_code(4);
    assert!(said.stderr_text().contains("another name"), "{said}");
    assert_eq!(fs::read(&victim).expect("victim"), b"{\"a\":1}\n");
    fs::remove_file(&report).expect("link");
    common::output("mkfifo", &[&text(&report)]);
    theirs(&report);
    let reader = fs::File::options().read(true).write(true).open(&report);
    let said = run(&report).expect_code(4);
    assert!(said.stderr_text().contains("is of user 65534"), "{said}");
    drop(reader);
    fs::remove_file(&report).expect("pipe");
    // What people write for other programs is no report, and a folder is none.
    fs::write(&victim, b"{\n  \"debug\": true\n}\n").expect("victim");
    let said = run(&victim).expect_code(4);
    assert!(said.stderr_text().contains("is no report"), "{said}");
    assert!(fs::read(&victim).expect("victim").ends_with(b"true\n}\n"));
    let said = run(&folder).expect_code(4);
    assert!(
        said.stderr_text()
            .contains("is a folder; name a file in it"),
        "{said}"
    );
    fs::remove_file(&victim).expect("victim");
}

#[test]
fn a_report_goes_where_its_user_has_it_go() {
    let (scratch, folder) = require_folder!();
    let source = text(&image(&scratch, "source", 8, &[]));
    let floe = common::floe_shell_words().expect("floe");
    let private = scratch.join("private");
    fs::create_dir(&private).expect("folder");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).expect("mode");
    let script = |script: &str| {
        let head = format!(
            "cd {}; SHARED={}; r() {{ {floe} dump -q {source} -o out.gz --report \"$@\"; }}; ",
            text(&private),
            text(&folder)
        );
        let run = common::run(
            std::process::Command::new("bash").args(["-ec", &(head + script)]),
            Limit::secs(60),
        );
        run.expect_code(0);
    };
    require!(common::have("bash"), "bash");
    for (what, text) in [
        (
            "new, as the umask has it",
            "umask 022; r report; test $(stat -c %a report) = 644; grep -q crc32 report",
        ),
        ("an earlier one", "r report; test $(wc -l < report) = 1"),
        ("an empty file", "> empty; r empty; grep -q crc32 empty"),
        (
            "a file of somebody else's in a folder of one's own",
            "chown 65534 report; r report; grep -q crc32 report",
        ),
        (
            "through one's own link",
            "ln -s report link; r link; test -L link; test $(wc -l < report) = 1",
        ),
        (
            "through one's own link in a folder of everybody",
            "> report; ln -s $PWD/report $SHARED/mine; r $SHARED/mine; grep -q crc32 report",
        ),
        (
            "a file of one's own in a folder of everybody",
            "r $SHARED/new; r $SHARED/new; grep -q crc32 $SHARED/new",
        ),
        ("stderr", "r - 2> told; grep -q crc32 told"),
        (
            "a pipe with a reader",
            "mkfifo pipe; cat pipe > told & r pipe; wait; grep -q crc32 told",
        ),
        ("/dev/null", "r /dev/null"),
        ("/dev/stdout, a pipe", "r /dev/stdout | grep -q crc32"),
        (
            "/dev/stdout, a file",
            "r /dev/stdout > told; grep -q crc32 told",
        ),
        (
            "a descriptor",
            "r /proc/self/fd/7 7> told; grep -q crc32 told",
        ),
        (
            "a file without a name",
            "exec 7<> gone; rm gone; r /dev/fd/7; grep -q crc32 <&7",
        ),
        (
            "a process",
            "r >(grep crc32 > told); for i in $(seq 50); do grep -q crc32 told && break; sleep 0.1; done; grep -q crc32 told",
        ),
    ] {
        eprintln!("{what}");
        script(text);
    }
}

#[test]
fn a_part_file_that_somebody_replaces_does_not_become_the_file() {
    require_mkfs!();
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let out = scratch.join("x.gz");
    let part = scratch.join("x.gz.part");
    // Held up by a report that nobody reads yet is not possible before the end; so the source is a pipe's length away: a FIFO
    // as the report holds the run between the opening of the part file and its end.
    let fifo = scratch.join("report");
    common::output("mkfifo", &[&text(&fifo)]);
    let words = ["dump", &source, "-o", &text(&out), "--report", &text(&fifo)];
    let mut child = floe(&words).stderr(Stdio::null()).spawn().expect("floe");
    let race = thread::spawn({
        let part = part.clone();
        move || {
            let end = Instant::now() + Duration::from_secs(30);
            while Instant::now() < end {
                if part.exists() && fs::remove_file(&part).is_ok() {
                    return fs::write(&part, b"theirs").is_ok();
                }
            }
            false
        }
    });
    let report = fs::File::open(&fifo).expect("report");
    let status = common::wait_for(&mut child, Duration::from_secs(60)).expect("ends");
    drop(report);
    let replaced = race.join().expect("race");
    if replaced && status.code() != Some(0) {
        assert_eq!(status.code(), Some(1));
        assert!(!out.exists(), "what is not ours has no name of ours");
    }
    if out.exists() {
        assert_ne!(fs::read(&out).expect("out"), b"theirs");
    }
}

#[test]
fn fifos_sockets_and_devices_in_a_store_hang_nothing_and_are_never_removed() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::on_disk();
    let store = scratch.join("store");
    fs::create_dir(&store).expect("store");
    let source = format!("a={}", text(&image(&scratch, "source", 8, &[])));
    let folder = format!("{}/", text(&store));
    let create = ["create", &source, "-o", &folder, "--keep", "1"];
    run_floe(&create).expect_code(0);
    let first = common::names(&store)
        .into_iter()
        .find(|name| name.ends_with(".zip"))
        .expect("a snapshot");
    let named = |sequence: u32| {
        let (front, _) = first.rsplit_once('-').expect("a name");
        store.join(format!("{front}-{sequence:04}.zip"))
    };
    let mkfifo = |path: &Path| drop(common::output("mkfifo", &[&text(path)]));
    mkfifo(&named(20));
    let _socket = std::os::unix::net::UnixListener::bind(named(21)).expect("socket");
    // /dev/null's number, and that of a terminal.
    for (at, numbers) in [(22, ["1", "3"]), (23, ["5", "0"])] {
        common::output("mknod", &[&text(&named(at)), "c", numbers[0], numbers[1]]);
    }
    fs::create_dir(named(24)).expect("folder");
    symlink("/nowhere", named(25)).expect("link");
    symlink(named(20), named(26)).expect("link");
    let foreign = 7;
    let listed = run_floe(&["list", &text(&store)]).expect_code(0);
    assert!(
        listed.stdout_text().matches(".zip").count() >= 8,
        "{listed}"
    );
    run_floe(&["list", "--json", &text(&store)]).expect_code(0);
    for _ in 0..3 {
        run_floe(&create).expect_code(0);
    }
    let left = (20..27).filter(|at| fs::symlink_metadata(named(*at)).is_ok());
    assert_eq!(left.count(), foreign);
    for at in [21, 22, 23, 24, 25] {
        let run = run_floe(&["verify", &text(&named(at))]);
        assert!(run.code.is_some_and(|code| code != 0), "{run}");
    }
    // As the lock: left as it is, and said.
    let victim = scratch.join("victim");
    fs::write(&victim, b"precious").expect("victim");
    let lock = store.join(".floe.lock");
    let traps: [&dyn Fn(); 4] = [
        &|| mkfifo(&lock),
        &|| fs::hard_link(&victim, &lock).expect("link"),
        &|| symlink(&victim, &lock).expect("link"),
        &|| fs::create_dir(&lock).expect("folder"),
    ];
    for trap in traps {
        trap();
        let run = run_floe(&create).expect_code(4);
        assert!(run.stderr_text().contains("is not the lock"), "{run}");
        assert_eq!(fs::read(&victim).expect("victim"), b"precious");
        fs::remove_file(&lock)
            .or_else(|_| fs::remove_dir(&lock))
            .expect("trap");
    }
}
