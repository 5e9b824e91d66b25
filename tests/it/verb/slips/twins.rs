//! One file, or one disk, that is shown by several devices: what is done through one of them counts for all.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use super::{EXT4, expect, sh};
use crate::common::{self, LoopDevice, Mounted, Scratch, text};

/// A filesystem `e`, an image of it `e.gz`, and another one `other`.
fn make(scratch: &Scratch) {
    let script = format!("{EXT4}; truncate -s 16M other; mke2fs -q -F -t ext4 other");
    sh(scratch, &script).expect_code(0);
}

/// With these options of `losetup`.
fn attached(scratch: &Scratch, name: &str, options: &[&str]) -> (LoopDevice, String) {
    let device = LoopDevice::attach_with(&scratch.join(name), options);
    let node = text(device.path());
    (device, node)
}

#[test]
fn what_is_mounted_through_another_loop_device_is_neither_written_nor_read_as_if_it_lay_still() {
    ready!("mke2fs", "losetup", "mount");
    let scratch = Scratch::new();
    make(&scratch);
    let (mounted, first) = attached(&scratch, "e", &[]);
    let (_twin, twin) = attached(&scratch, "e", &[]);
    let (_over, over) = attached(&scratch, &first, &[]);
    let (_other, other) = attached(&scratch, "other", &[]);
    let held = Mounted::new("ext4", mounted.path(), "");
    std::fs::write(held.dir().join("file"), "content").unwrap();
    let point = text(held.dir());
    let sum = format!("sync -f {point}; sha256sum e");
    let before = sh(&scratch, &sum).expect_code(0).stdout_text();
    let shows = |node: &str| format!("{node} shows the same bytes as {first}, which is mounted on");
    for node in [&twin, &over] {
        let shows = shows(node);
        let refused = format!("refused: {shows}");
        let dry = format!("$FLOE restore --dry-run e.gz {node} --overwrite");
        let restore = format!("$FLOE restore e.gz {node} --overwrite --verify");
        let clone = format!("$FLOE clone {other}={node} --overwrite");
        let dump = format!("$FLOE dump {node} -o x");
        let create = format!("$FLOE create a={node} -o x.zip");
        let verify = format!("$FLOE verify {node}");
        expect(
            &scratch,
            &[
                (&dry, 4, &shows),
                (&restore, 4, &shows),
                (&clone, 4, &refused),
                (&dump, 4, &shows),
                (&create, 4, &shows),
                (&verify, 4, &shows),
            ],
        );
        // Only looking is free, and says it.
        let show = sh(&scratch, &format!("$FLOE show {node}")).expect_code(0);
        let said = format!("would be refused: it shows the same bytes as {first}");
        assert!(show.stdout_text().contains(&said), "{}", show.stdout_text());
    }
    assert_eq!(sh(&scratch, &sum).stdout_text(), before);
    // What is mounted is read as ever, whatever else shows it.
    let script = format!("$FLOE dump {point} -q -o m.gz && $FLOE verify -q m.gz");
    sh(&scratch, &script).expect_code(0);
    drop(held);
    // Nobody uses it any more.
    let script = format!(
        "$FLOE dump {twin} -q -o y.gz && $FLOE restore -q y.gz {twin} --overwrite && e2fsck -fn e"
    );
    sh(&scratch, &script).expect_code(0);
}

#[test]
fn a_part_of_a_file_is_another_matter_than_its_neighbour() {
    ready!("mke2fs", "losetup", "mount");
    let scratch = Scratch::new();
    make(&scratch);
    // Two filesystems in one file, and loop devices over all of it and over each.
    sh(&scratch, "truncate -s 48M both && dd if=e of=both bs=1M conv=notrunc && dd if=e of=both bs=1M seek=24 conv=notrunc")
        .expect_code(0);
    let part = |offset| {
        attached(
            &scratch,
            "both",
            &["--offset", offset, "--sizelimit", "8388608"],
        )
    };
    let ((first, one), (_second, two)) = (part("0"), part("25165824"));
    let (_whole, whole) = attached(&scratch, "both", &[]);
    let held = Mounted::new("ext4", first.path(), "");
    let shows = format!("{whole} shows the same bytes as {one}, which is mounted on");
    let onto_all = format!("$FLOE restore e.gz {whole} --overwrite");
    let onto_two = format!("$FLOE restore -q e.gz {two} --overwrite && e2fsck -fn {two}");
    expect(&scratch, &[(&onto_all, 4, &shows), (&onto_two, 0, "")]);
    drop(held);
    expect(&scratch, &[(&onto_all, 0, "")]);
    // A filesystem that ends in front of them is in nobody's way, though its device shows them: an overlay behind its squashfs.
    let held = Mounted::new("ext4", whole.as_ref(), "");
    let onto_one = format!("$FLOE restore e.gz {one} --overwrite");
    let shows = format!("{one} shows the same bytes as {whole}, which is mounted on");
    expect(&scratch, &[(&onto_two, 0, ""), (&onto_one, 4, &shows)]);
    drop(held);
}

#[test]
fn another_writer_counts_through_another_device_too() {
    ready!("mke2fs", "losetup");
    let scratch = Scratch::new();
    make(&scratch);
    let (_held, node) = attached(&scratch, "e", &[]);
    let (_twin, twin) = attached(&scratch, "e", &[]);
    let restore = format!("$FLOE restore e.gz {twin} --overwrite");
    let busy = format!("{twin} shows the same bytes as {node}, which is in use by another program");
    let exclusive = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(0o200)
        .open(&node);
    let exclusive = exclusive.expect("O_EXCL");
    expect(&scratch, &[(&restore, 4, &busy)]);
    drop(exclusive);
    expect(&scratch, &[(&restore, 0, "")]);
    sh(&scratch, &format!("mkswap {node} && swapon {node}")).expect_code(0);
    let run = sh(&scratch, &restore);
    sh(&scratch, &format!("swapoff {node}")).expect_code(0);
    let swap =
        format!("{twin} shows the same bytes as {node}, which is active swap; swapoff it first");
    assert!(
        run.code == Some(4) && run.stderr_text().contains(&swap),
        "{run}"
    );
}
