//! One file with two writers, and files that change while they are read.

use crate::common::{self, Limit, LoopFs, Scratch, Spec, run_floe, text};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use super::{floe, image};

#[test]
fn a_file_that_is_being_restored_is_no_target_of_a_second_restore() {
    require_mkfs!();
    let scratch = Scratch::new();
    let images = [
        ("one", "11111111-1111-1111-1111-111111111111"),
        ("two", "22222222-2222-2222-2222-222222222222"),
    ]
    .map(|(name, uuid)| image(&scratch, name, 48, &["-U", uuid]));
    let target = scratch.join("target");
    fs::write(&target, vec![1; 1 << 20]).expect("target");
    let second = scratch.join("second name");
    fs::hard_link(&target, &second).expect("link");
    for round in 0..3 {
        let mut children: Vec<Child> = [(&images[0], &target), (&images[1], &second)]
            .map(|(image, target)| {
                floe(&["restore", "--overwrite", &text(image), &text(target)])
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("floe")
            })
            .into();
        let codes: Vec<Option<i32>> = children
            .iter_mut()
            .map(|child| {
                common::wait_for(child, Duration::from_secs(120))
                    .expect("ends")
                    .code()
            })
            .collect();
        assert!(codes.contains(&Some(0)), "{round}: {codes:?}");
        assert!(
            codes.iter().all(|code| matches!(code, Some(0 | 4))),
            "{codes:?}"
        );
        let found = fs::read(&target).expect("target");
        let wholes: Vec<bool> = images
            .iter()
            .map(|image| fs::read(image).expect("image") == found)
            .collect();
        // Whole, and one that said 0.
        assert!(
            wholes
                .iter()
                .zip(&codes)
                .any(|(whole, code)| *whole && *code == Some(0)),
            "{codes:?}"
        );
    }
    // Locked by somebody, for sure.
    let held = fs::File::open(&target).expect("target");
    held.lock().expect("lock");
    let run =
        run_floe(&["restore", "--overwrite", &text(&images[0]), &text(&target)]).expect_code(4);
    assert!(
        run.stderr_text().contains("another process is writing it"),
        "{run}"
    );
    assert!(run.stderr_text().contains("nothing was written"), "{run}");
}

#[test]
fn two_targets_that_are_one_file_are_seen_whatever_they_are_called() {
    drop(require_floe!());
    require!(common::is_root(), "root");
    require!(common::have("mkfs.ext4"), "mkfs.ext4");
    let scratch = Scratch::on_disk();
    let source = text(&image(&scratch, "source", 8, &[]));
    let zip = text(&scratch.join("two.zip"));
    run_floe(&[
        "create",
        &format!("a={source}"),
        &format!("b={source}"),
        "-o",
        &zip,
    ])
    .expect_code(0);
    let other = scratch.join("other");
    fs::create_dir(&other).expect("folder");
    fs::create_dir(scratch.join("folder")).expect("folder");
    let file = scratch.join("folder/file");
    let _mount = Bound::new(&scratch.join("folder"), &other);
    symlink("folder/file", scratch.join("link")).expect("link");
    for there in [true, false] {
        if there {
            fs::write(&file, b"old").expect("file");
            fs::hard_link(&file, scratch.join("folder/hard")).expect("link");
        }
        let mut pairs = vec![
            ("folder/file", "other/file"),
            ("folder/../folder/file", "other/file"),
            ("link", "folder/file"),
        ];
        if there {
            pairs.push(("folder/file", "folder/hard"));
        }
        for (one, two) in pairs {
            let [one, two] = [one, two].map(|name| text(&scratch.join(name)));
            let words = [
                "restore",
                &zip,
                &format!("a={one}"),
                &format!("b={two}"),
                "--overwrite",
            ];
            let run = run_floe(&words).expect_code(2);
            assert!(run.stderr_text().contains("are the same"), "{run}");
            assert_eq!(file.exists(), there, "nothing was written");
            assert!(!there || fs::read(&file).expect("file") == b"old");
        }
        let _ = fs::remove_file(&file);
        let _ = fs::remove_file(scratch.join("folder/hard"));
    }
    // Two that are not.
    let [one, two] = ["folder/file", "folder/file2"].map(|name| text(&scratch.join(name)));
    run_floe(&["restore", &zip, &format!("a={one}"), &format!("b={two}")]).expect_code(0);
}

/// A bind mount of the test's own.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Self {
        common::output("mount", &["--bind", &text(from), &text(to)]);
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_new_file_is_for_its_owner_only() {
    require_mkfs!();
    let scratch = Scratch::new();
    let source = text(&image(&scratch, "source", 8, &[]));
    let zip = text(&scratch.join("x.zip"));
    run_floe(&["create", &format!("a={source}"), "-o", &zip]).expect_code(0);
    for (name, words) in [
        ("n1", vec!["restore", &source]),
        ("n2", vec!["restore", &zip]),
        ("n3", vec!["dump", &source, "-o"]),
    ] {
        let path = scratch.join(name);
        let target = match words[1] == zip {
            true => format!("a={}", text(&path)),
            false => text(&path),
        };
        // Whatever the umask takes away.
        let mut command = Command::new("sh");
        let under = "umask 777; exec \"$0\" \"$@\"";
        let floe = floe(&words);
        command.args(["-c", under]).arg(floe.get_program());
        command.args(floe.get_args()).arg(&target);
        common::run(&mut command, Limit::secs(60)).expect_code(0);
        assert_eq!(fs::metadata(&path).expect("made").mode() & 0o7777, 0o600);
    }
}

/// Writes to the file, all the time, until told to stop; the content stays the same or changes.
struct Scribbler {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Scribbler {
    fn start(path: &Path, offset: u64) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let file = fs::File::options().write(true).open(path).expect("file");
        let thread = thread::spawn(move || {
            let mut byte = 0u8;
            while !told.load(std::sync::atomic::Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                file.write_all_at(&[byte], offset).expect("write");
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn an_image_file_that_changes_while_it_is_read_is_no_image() {
    require_mkfs!();
    let scratch = Scratch::new();
    // Something to read, so that it takes a while.
    let files = scratch.join("files");
    fs::create_dir(&files).expect("folder");
    fs::write(files.join("noise"), common::Random(7).bytes(24 << 20)).expect("file");
    let source = image(&scratch, "source", 64, &["-d", &text(&files)]);
    let shown = text(&source);
    let out = scratch.join("out");
    let pair = format!("a={shown}");
    for words in [
        vec!["dump", &shown, "-o"],
        vec!["dump", "--whole", &shown, "-o"],
        vec!["dump", "-z", "none", &shown, "-o"],
        vec!["create", &pair, "-o"],
    ] {
        let mut words = words.clone();
        let to = text(&out);
        words.push(&to);
        let scribbler = Scribbler::start(&source, 40 << 20);
        let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(1);
        assert!(run.stderr_text().contains("wrote to this file"), "{run}");
        assert!(!out.exists());
        drop(scribbler);
        // It stays still again.
        common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
        fs::remove_file(&out).expect("out");
    }
    // Called live it may change.
    let _scribbler = Scribbler::start(&source, 40 << 20);
    let mut dump = floe(&["dump", "--live", &shown, "-o", &text(&out)]);
    let run = common::run(&mut dump, Limit::secs(60));
    assert!(matches!(run.code, Some(0 | 1)), "{run}");
}

#[test]
fn a_file_below_a_loop_device_that_changes_is_seen_mounted_or_not() {
    drop(require_floe!());
    let mut fs_ = require_ok!(LoopFs::make(Spec::default()));
    fs_.fill(30);
    let out = fs_.scratch().join("out");
    for mounted in [true, false] {
        if !mounted {
            fs_.unmount();
        }
        for source in [fs_.device().to_owned(), fs_.dir().to_owned()] {
            if !mounted && source == fs_.dir() {
                continue;
            }
            let words = ["dump", &text(&source), "-o", &text(&out)];
            if mounted {
                // What is written before the freeze is in the image: that nothing was read before counts, then.
                let report = fs_.scratch().join("report");
                let mut words = words.to_vec();
                let report_text = text(&report);
                words.extend(["--report", &report_text]);
                let scribbler = Scribbler::start(fs_.image(), 63 << 20);
                let run = common::run(&mut floe(&words), Limit::secs(60));
                drop(scribbler);
                let said = fs::read_to_string(&report).unwrap_or_default();
                match run.code {
                    Some(0) => assert!(said.contains("\"compared\""), "{said}"),
                    _ => assert!(run.stderr_text().contains("wrote to this file"), "{run}"),
                }
                let _ = fs::remove_file(&out);
            }
            // All of it is read in the window: long enough to be met.
            let words = [&words[..], &["--precopy", "off"]].concat();
            let scribbler = Scribbler::start(fs_.image(), 63 << 20);
            let run = common::run(&mut floe(&words), Limit::secs(60)).expect_code(1);
            assert!(run.stderr_text().contains("wrote to this file"), "{run}");
            assert!(!out.exists());
            drop(scribbler);
            common::run(&mut floe(&words), Limit::secs(60)).expect_code(0);
            fs::remove_file(&out).expect("out");
            if mounted {
                common::assert_not_frozen(fs_.dir(), "after the dump");
            }
        }
    }
}
