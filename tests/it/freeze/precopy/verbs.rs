//! Pre-copy in what is no plain dump: a snapshot, a clone, a whole disk, without a spool, and onto the filesystem itself.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{self, Limit, LoopDevice, Mounted, Scratch};
use crate::disk::Disk;
use crate::torture::{Torture, rounds};

use super::held::Held;
use super::rack::{Rack, same_blocks};
use super::{floe, require_torture};

#[test]
fn two_filesystems_in_a_snapshot_a_clone_and_a_spool_file_under_torture() {
    require_torture!();
    let _serial = common::serial();
    let mut one = require_some!(Rack::new("ext4"), "ext4");
    let mut two = require_some!(Rack::new("btrfs"), "btrfs");
    let (scratch, on_disk) = (Scratch::new(), Scratch::on_disk());
    for round in 0..rounds() {
        let copies = [scratch.join("copy1"), scratch.join("copy2")];
        let (first, second) = (one.fs.dir().to_owned(), two.fs.dir().to_owned());
        let behind = [one.fs.image().to_owned(), two.fs.image().to_owned()];
        let held = Held {
            dirs: &[&first, &second],
            copies: &[(&behind[0], &copies[0]), (&behind[1], &copies[1])],
            pause: Duration::from_millis(2),
            lies: "",
            meanwhile: "",
            group: None,
            frames_to: None,
        };
        let zip = scratch.join("x.zip");
        let words = [
            format!("one={}", first.display()),
            format!("two={}", second.display()),
        ];
        let told = held.run(&["create", &words[0], &words[1], "-o", &zip.to_string_lossy()]);
        eprintln!("create {round}: {told:?}");
        told.expect("create");
        for (rack, name, copy) in [(&mut one, "one", &copies[0]), (&mut two, "two", &copies[1])] {
            let image = scratch.join("image");
            let script = format!(
                "unzip -p '{}' images/{name}.img > '{}'",
                zip.display(),
                image.display()
            );
            common::shell(&script, Limit::secs(100)).expect_code(0);
            rack.prove(&image, copy).expect(name);
        }
        fs::remove_file(&zip).expect("zip");

        let file = scratch.join("target");
        let length = fs::metadata(one.fs.image()).expect("image").len();
        common::sparse(&file, length);
        let target = LoopDevice::attach(&file, 512);
        let held = Held {
            dirs: &[&first],
            copies: &[(&behind[0], &copies[0])],
            ..held
        };
        for more in [&["--verify"][..], &["--verify", "--precopy", "compare"]] {
            let pair = format!("{}={}", first.display(), target.path().display());
            let mut words = vec!["clone", &pair, "--overwrite"];
            words.extend(more);
            let told = held.run(&words);
            eprintln!("clone {round} {more:?}: {told:?}");
            told.expect("clone");
            one.prove(target.path(), &copies[0]).expect("clone");
        }
        drop(target);

        let spool = on_disk.join("spool");
        let words = ["--spool", "4M", "--spool-file", &*spool.to_string_lossy()];
        let told = one.dump(&words, 2, "").expect("--spool-file");
        eprintln!("spool file {round}: {told:?}");
        assert_ne!(told.precopy, "off");
        let told = one.dump(&["--spool", "off"], 2, "").expect("--spool off");
        assert_eq!(told.precopy, "off");
    }
}

#[test]
fn a_whole_disk_under_torture_is_what_a_copy_under_the_freeze_is() {
    require_torture!();
    let _serial = common::serial();
    let table = "label: gpt\nsize=80M\nsize=8M\n";
    let disk = require_ok!(Disk::make(100, table, 512));
    common::output("mke2fs", &["-q", "-F", "-t", "ext4", &disk.part_text(1)]);
    let mounted = Mounted::new("ext4", &disk.part(1), "");
    Torture::prepare(mounted.dir());
    let (image, copy) = (disk.scratch.join("image"), disk.scratch.join("copy"));
    for _ in 0..rounds() {
        let held = Held {
            dirs: &[mounted.dir()],
            copies: &[(&disk.image, &copy)],
            pause: Duration::ZERO,
            lies: "",
            meanwhile: "",
            group: None,
            frames_to: None,
        };
        let device = disk.device.path().to_string_lossy();
        let told = held
            .run(&[
                "dump",
                &device,
                "-z",
                "none",
                "-o",
                &image.to_string_lossy(),
            ])
            .expect("dump");
        eprintln!("disk: {told:?}");
        assert_ne!(told.precopy, "off");
        same_blocks(&image, &copy).expect("disk");
        fs::remove_file(&image).expect("image");
    }
}

#[test]
fn an_output_on_the_frozen_filesystem_that_the_spool_cannot_hold_is_refused_before_the_freeze() {
    require_torture!();
    let rack = require_some!(Rack::new("ext4"), "ext4");
    let out = rack.fs.dir().join("onto-itself");
    let mut command = floe().expect("looked for before");
    command
        .args(["dump", "--spool", "4M", "-o"])
        .arg(&out)
        .arg(rack.fs.dir())
        .stdin(Stdio::null());
    let run = common::run(&mut command, Limit::secs(60)).expect_code(4);
    assert!(run.stderr_text().contains("nothing was frozen"), "{run}");
    assert!(!out.exists());
    common::assert_not_frozen(rack.fs.dir(), "after a refusal");
}
