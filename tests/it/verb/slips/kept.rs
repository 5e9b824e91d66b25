//! What may be one to be kept, because nobody can tell, goes only where that is said; and slips that would leave something out of a
//! snapshot, or in it.

use super::{EXT4, expect, sh};
use crate::common::{self, Mounted, Scratch, text};
use crate::disk::Disk;

/// One wrong bit where it says what it is; the images in it may be good, and it may be the only one.
#[test]
fn a_snapshot_that_is_damaged_where_it_says_what_it_is_stays_unless_told_to_go() {
    ready!("mke2fs", "python3", "unshare");
    let scratch = Scratch::new();
    let script = format!(
        "{EXT4}; mkdir s; $FLOE create -q a=e -o s/ --factory; n=$(ls s | grep zip); cp s/$n s/own.zip
        for f in s/$n s/own.zip; do python3 -c 'import sys
data = bytearray(open(sys.argv[1], \"rb\").read()); at = data.index(b\"\\\"host\\\"\"); data[at + 9] ^= 1; open(sys.argv[1], \"wb\").write(data)' $f; done
        cp s/own.zip cut.zip; truncate -s 300 cut.zip; : > s/${{n%0001.zip}}0002.zip"
    );
    sh(&scratch, &script).expect_code(0);
    let names = common::names(&scratch.join("s"));
    let name = names.iter().find(|name| name.ends_with("0001.zip"));
    let name = name.expect("the factory snapshot");
    let within = format!(
        "unshare -m sh -c 'mount -t tmpfs tmpfs /etc && echo store = {}/s > /etc/floe.conf && exec \"$@\"' sh $FLOE",
        text(scratch.path())
    );
    let damaged = "is there and is a damaged snapshot, which may be one to be kept; --overwrite";
    let force = "is damaged where it says what it is, and may be one to be kept; --force";
    let keep = "$FLOE create -q a=e -o s/ --keep 1";
    expect(
        &scratch,
        &[
            (keep, 0, ""),
            (keep, 0, ""),
            // The damaged one, the one of another name, and the new one; nothing is lost with the empty one.
            (
                &format!("test -e s/{name} && test $(ls s | grep -c zip) = 3"),
                0,
                "",
            ),
            ("$FLOE create a=e -o s/own.zip", 4, damaged),
            ("$FLOE create a=e -o cut.zip", 4, damaged),
            (&format!("{within} delete {name}"), 4, force),
            (&format!("{within} delete -q {name} --force"), 0, ""),
            (
                "$FLOE create -q a=e -o s/own.zip --overwrite && $FLOE create -q a=e -o s/own.zip",
                0,
                "",
            ),
        ],
    );
}

#[test]
fn a_snapshot_that_cannot_be_read_is_not_retired_replaced_or_deleted_unasked() {
    ready!("mke2fs", "mkfs.btrfs", "unshare");
    require!(common::kernel_has("btrfs"), "btrfs");
    let scratch = Scratch::new();
    sh(
        &scratch,
        &format!("{EXT4}; truncate -s 200M b && mkfs.btrfs -q -m single -d single b"),
    )
    .expect_code(0);
    let keep = |store: &str, more: &str| format!("$FLOE create -q a=e -o {store}/ {more}");
    {
        let mounted = Mounted::new("btrfs", &scratch.join("b"), "");
        let store = text(mounted.dir());
        sh(
            &scratch,
            &keep(&store, "--factory --comment THE_FACTORY_ONE"),
        )
        .expect_code(0);
    }
    // A wrong byte in its first block, which btrfs does not give.
    let bytes = std::fs::read(scratch.join("b")).expect("btrfs");
    let places = bytes
        .windows(15)
        .enumerate()
        .filter(|(_, text)| *text == b"THE_FACTORY_ONE");
    let places: Vec<String> = places.map(|(at, _)| at.to_string()).collect();
    assert!(!places.is_empty(), "no text of the snapshot on the disk");
    let script = format!(
        "for at in {}; do printf X | dd of=b bs=1 seek=$at conv=notrunc status=none; done",
        places.join(" ")
    );
    sh(&scratch, &script).expect_code(0);
    let mounted = Mounted::new("btrfs", &scratch.join("b"), "");
    let store = text(mounted.dir());
    let name = common::names(mounted.dir()).remove(0);
    let within = |line: &str| {
        format!(
            "unshare -m sh -c 'mount -t tmpfs tmpfs /etc && echo store = {store} > /etc/floe.conf && exec \"$@\"' sh $FLOE {line}"
        )
    };
    let there = format!("test -e {store}/{name}");
    expect(
        &scratch,
        &[
            (&format!("! cat {store}/{name} > /dev/null 2>&1"), 0, ""),
            (&format!("$FLOE list {store} | grep -q unreadable"), 0, ""),
            (&keep(&store, "--keep 1"), 0, ""),
            (&keep(&store, "--keep 1"), 0, ""),
            (&there, 0, ""),
            (&format!("test $(ls {store} | wc -l) = 2"), 0, ""),
            (
                &format!("$FLOE create -q a=e -o {store}/{name}"),
                1,
                "cannot be read",
            ),
            (
                &format!("$FLOE dump -q e -o {store}/{name}"),
                1,
                "cannot be read",
            ),
            (
                &within(&format!("delete {name}")),
                4,
                "cannot be read, and may be one to be kept; --force",
            ),
            (
                &within("clone --factory e=/dev/null"),
                1,
                "floe delete --force NAME",
            ),
            (
                &format!("$FLOE show {store}/{name}"),
                1,
                // In the words of whichever C library.
                "zip: read: I",
            ),
            (&there, 0, ""),
            (&within(&format!("delete -q --force {name}")), 0, ""),
            (&format!("test ! -e {store}/{name}"), 0, ""),
        ],
    );
}

#[test]
fn a_snapshot_of_a_newer_floe_is_deleted_only_where_that_is_said() {
    ready!("mke2fs", "python3", "unshare");
    let scratch = Scratch::new();
    let make = "python3 -c '
import zipfile
old = zipfile.ZipFile(\"s.zip\"); new = zipfile.ZipFile(\"store/h-20260101T000000Z-0006.zip\", \"w\")
for name in old.namelist():
    new.writestr(name, old.read(name).replace(b\"\\\"format\\\":1\", b\"\\\"format\\\":2\") if name == \"snapshot.json\" else old.read(name))
new.close()'";
    sh(
        &scratch,
        &format!("{EXT4}; mkdir store; $FLOE create -q a=e -o s.zip; {make}"),
    )
    .expect_code(0);
    let delete = |more: &str| {
        let store = text(&scratch.join("store"));
        format!(
            "unshare -m sh -c 'mount -t tmpfs tmpfs /etc && echo store = {store} > /etc/floe.conf && exec \"$@\"' sh $FLOE delete -q h-20260101T000000Z-0006 {more}"
        )
    };
    expect(
        &scratch,
        &[
            (
                &delete(""),
                4,
                "of a newer floe, which may be one to be kept; --force",
            ),
            ("ls store/*.zip", 0, ""),
            (&delete("--force"), 0, ""),
            ("! ls store/*.zip 2> /dev/null", 0, ""),
        ],
    );
}

#[test]
fn a_disk_without_any_of_the_sources_is_refused() {
    ready!("mke2fs", "sfdisk", "partx");
    let disk = require_ok!(Disk::make(
        24,
        "start=2048,size=16384\nstart=20480,size=16384\n",
        512
    ));
    let (all, part) = (text(disk.device.path()), disk.part_text(1));
    let scratch = &disk.scratch;
    sh(scratch, &format!("{EXT4}; mke2fs -q -F {part}")).expect_code(0);
    for line in [
        format!("create a=e --disk {all} -o s"),
        format!("create a=e --disk {all} -o s --dry-run"),
    ] {
        let line = format!("$FLOE {line}");
        let none = "none of the sources is a partition of it";
        expect(scratch, &[(&line, 4, none), ("test ! -e s", 0, "")]);
    }
    let line = format!("$FLOE create -q a={part} --disk {all} -o s");
    expect(scratch, &[(&line, 0, "")]);
}
