//! The toolbox itself: a test that fails in the middle must not leave a frozen filesystem, a mount or a loop device, and cannot
//! hang by what it started.

use crate::common::{self, Limit, LoopFs, Spec, Writer};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The kernel's word on whether a loop device still has this file: it may be a neighbour's by now.
fn is_attached(device: &Path, image: &Path) -> bool {
    let name = device.file_name().expect("a device has a name");
    let file = Path::new("/sys/block").join(name).join("loop/backing_file");
    let file = fs::read_to_string(file).unwrap_or_default();
    file.contains(&*image.to_string_lossy())
}

#[test]
fn a_loop_filesystem_left_frozen_under_a_writer_is_thawed_unmounted_and_detached() {
    let fs = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    let (dir, device) = (fs.dir().to_owned(), fs.device().to_owned());
    let image = fs.image().to_owned();
    assert!(is_attached(&device, &image));
    let writer = Writer::start(fs.dir());
    thread::sleep(Duration::from_millis(50));
    common::freeze(fs.dir());
    thread::sleep(Duration::from_millis(50));
    drop(writer);
    drop(fs);
    assert!(!common::is_mounted(&dir));
    assert!(!is_attached(&device, &image));
    assert!(!dir.exists());
}

#[test]
fn the_write_probe_tells_a_frozen_filesystem_from_a_thawed_one() {
    let fs = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    assert!(common::write_ends_within(fs.dir(), Duration::from_secs(5)));
    assert!(!common::is_frozen(fs.dir()));
    common::freeze(fs.dir());
    // The one that only looks leaves it as it is.
    assert!(common::is_frozen(fs.dir()) && common::is_frozen(fs.dir()));
    assert!(!common::write_ends_within(
        fs.dir(),
        Duration::from_millis(200)
    ));
    // The probe thawed it, so that its own writer could end.
    assert!(common::write_ends_within(fs.dir(), Duration::from_secs(5)));
}

#[test]
fn tree_comparison_sees_a_changed_byte_a_missing_and_a_new_file() {
    let fs = require_some!(LoopFs::make(Spec::default()).ok(), "root and mkfs.ext4");
    fs.fill(40);
    let before = common::tree(fs.dir());
    assert!(before.len() > 30, "{}", before.len());
    common::assert_same_tree(&before, &common::tree(fs.dir()));
    let file = fs.dir().join("folder4/file4");
    let mut bytes = fs::read(&file).expect("filled");
    bytes[0] ^= 1;
    fs::write(&file, &bytes).expect("write");
    fs::write(fs.dir().join("new"), b"new").expect("write");
    let after = common::tree(fs.dir());
    let differing = before
        .iter()
        .filter(|(path, line)| after.get(*path) != Some(line))
        .count();
    assert_eq!(differing, 1);
    assert_eq!(after.len(), before.len() + 1);
}

#[test]
#[should_panic(expected = "(sleep 100, waiting in ")]
fn what_stays_in_the_background_ends_with_the_limit_and_is_named() {
    common::shell("sleep 100 & echo started", Limit(Duration::from_secs(1)));
}

#[test]
#[should_panic(expected = "(sleep 200, waiting in ")]
fn what_does_not_end_is_ended_with_its_children() {
    common::shell("sleep 200; true", Limit(Duration::from_secs(1)));
}
