//! What is no whole image, and what just is one: sector sizes, damaged beginnings and tables, ends that are missing, copies as they are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::{EXT4, expect, sh};
use crate::common::{self, LoopDevice, Scratch, text};

#[test]
fn clone_takes_and_refuses_the_same_sector_sizes_as_restore() {
    ready!("mksquashfs", "sfdisk", "mke2fs");
    let scratch = Scratch::new();
    let make = "truncate -s 16M t4 && truncate -s 16M t5 && truncate -s 16M g && mkdir d && echo x > d/x && mksquashfs d q -quiet -no-progress && truncate -s %4096 q
        truncate -s 8M e && mke2fs -q -F -t ext4 -b 1024 e";
    sh(&scratch, make).expect_code(0);
    let table = LoopDevice::attach(&scratch.join("g"), 4096);
    let lay = format!("echo 1024,1024 | sfdisk -q -X gpt {}", text(table.path()));
    // The kernel cannot read it anew here, and says so.
    drop(sh(&scratch, &lay));
    let small = LoopDevice::attach(&scratch.join("t5"), 512);
    let large = LoopDevice::attach(&scratch.join("t4"), 4096);
    let [squashfs, ext4] = ["q", "e"].map(|name| LoopDevice::attach(&scratch.join(name), 512));
    let pair = |from: &LoopDevice, to: &LoopDevice, said: &str, code: i32| {
        let line = format!("$FLOE clone {}={}", text(from.path()), text(to.path()));
        let run = sh(&scratch, &line).expect_code(code);
        assert!(run.stderr_text().contains(said), "{run}");
    };
    pair(&table, &small, "counts in 4096: no kernel would find", 4);
    pair(&ext4, &large, "no kernel would mount it there", 4);
    for target in ["t4", "t5"] {
        let bytes = fs::read(scratch.join(target)).expect("target");
        assert!(bytes.iter().all(|byte| *byte == 0), "{target} was written");
    }
    pair(&squashfs, &large, "squashfs", 0);
}

#[test]
fn what_lies_behind_a_swap_area_is_in_its_image() {
    ready!("mkswap");
    let scratch = Scratch::new();
    sh(
        &scratch,
        "truncate -s 2M s && chmod 600 s && mkswap -q s && truncate -s 6M s",
    )
    .expect_code(0);
    let file = File::options().write(true).open(scratch.join("s"));
    file.expect("s")
        .write_all_at(b"behind", 5 << 20)
        .expect("tail");
    let run = sh(&scratch, "$FLOE dump s -z none -o o && cmp s o").expect_code(0);
    assert!(run.stderr_text().contains("partial"), "{run}");
}

#[test]
fn a_squashfs_that_ends_before_its_tables_is_refused_or_copied_as_it_is() {
    ready!("mksquashfs", "mke2fs");
    let scratch = Scratch::new();
    sh(
        &scratch,
        "mkdir d && head -c 100000 /dev/urandom > d/x && mksquashfs d q -quiet -no-progress",
    )
    .expect_code(0);
    let file = File::options().write(true).open(scratch.join("q"));
    file.expect("q")
        .write_all_at(&200u64.to_le_bytes(), 40)
        .expect("bytes_used");
    expect(
        &scratch,
        &[
            (
                "$FLOE dump q -o o",
                4,
                "--whole copies it as it is; nothing was written",
            ),
            (
                "$FLOE create a=q -o z",
                4,
                "--whole copies it as it is; nothing was written",
            ),
            ("$FLOE verify q", 3, "ends before its own tables"),
            (
                "$FLOE dump --whole q -o o && $FLOE verify o && $FLOE restore o r && cmp q r",
                0,
                "",
            ),
            (
                "$FLOE create --whole a=q -o z && $FLOE restore z a=r2 && cmp q r2",
                0,
                "",
            ),
        ],
    );
}

#[test]
fn a_table_that_ends_behind_its_disk_is_damaged_wherever_it_is_read() {
    ready!("sfdisk", "mke2fs");
    let scratch = Scratch::new();
    sh(
        &scratch,
        &format!("{EXT4}; truncate -s 16M m && echo 2048,4096 | sfdisk -q m"),
    )
    .expect_code(0);
    let file = File::options().write(true).open(scratch.join("m"));
    file.expect("m")
        .write_all_at(&[0xff; 4], 458)
        .expect("length");
    let device = LoopDevice::attach(&scratch.join("m"), 512);
    let disk = text(device.path());
    let damaged = "damaged: it ends behind the disk";
    let run = sh(&scratch, &format!("$FLOE show {disk} >&2")).expect_code(0);
    assert!(run.stderr_text().contains(damaged), "{run}");
    assert!(
        run.stderr_text()
            .contains("would be refused: it ends at 16777216 bytes"),
        "{run}"
    );
    expect(
        &scratch,
        &[
            (&format!("$FLOE clone e=root --media {disk}"), 4, damaged),
            (
                &format!("$FLOE create a=e --disk {disk} -o z"),
                4,
                "it ends behind the disk; repair it first",
            ),
            (
                &format!("$FLOE dump {disk} -o o"),
                4,
                "--whole copies it as it is",
            ),
        ],
    );
}

#[test]
fn verify_says_what_a_checksum_proved_and_of_what() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    sh(&scratch, EXT4).expect_code(0);
    for (line, says, says_not) in [
        ("$FLOE verify e", "a raw image has no checksum", "frames"),
        ("$FLOE verify e.gz", "good gzip image", "no checksum"),
        (
            "$FLOE dump e --frames | $FLOE verify -",
            "good gzip image, sent in frames",
            "no checksum",
        ),
    ] {
        let said = sh(&scratch, line).expect_code(0).stdout_text();
        assert!(said.contains(says) && !said.contains(says_not), "{said}");
    }
}

#[test]
fn an_image_that_ends_early_in_a_pipe_names_the_target_and_what_repairs_it() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let noise = "head -c 3M /dev/urandom > r; debugfs -w -R 'write r r' e; gzip -fk e; head -c 2000000 e.gz > cut";
    sh(&scratch, &format!("{EXT4}; {noise}")).expect_code(0);
    let target = LoopDevice::filled(&scratch, "t", 8, 0);
    let node = text(target.path());
    let run = sh(&scratch, &format!("cat cut | $FLOE restore -q - {node}")).expect_code(3);
    let said = run.stderr_text();
    let repair = format!("a whole image, restored to {node} again");
    assert!(
        said.contains("its beginning is zeroed") && said.contains(&repair),
        "{run}"
    );
    // A device is not read twice, and that is why.
    let from = LoopDevice::attach(&scratch.join("e"), 512);
    let line = format!("$FLOE restore {} out.img", text(from.path()));
    let run = sh(&scratch, &line).expect_code(0);
    assert!(
        run.stderr_text()
            .contains("is a device, and is not read twice"),
        "{run}"
    );
}

#[test]
fn a_damaged_chunk_of_frames_costs_no_target() {
    ready!("mke2fs", "debugfs");
    let scratch = Scratch::new();
    let make = "truncate -s 16M e && mke2fs -q -F -t ext4 e && head -c 4M /dev/urandom > r && debugfs -w -R 'write r r' e
        $FLOE dump e --frames | cat > d; $FLOE create x=$PWD/e --frames | cat > c; cp d d1; cp c c1
        cp e T; tune2fs -L old T; truncate -s +8K T; sha256sum T > sums";
    sh(&scratch, make).expect_code(0);
    for name in ["d1", "c1"] {
        let path = scratch.join(name);
        let mut bytes = fs::read(&path).expect("frames");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("frames");
    }
    let target = LoopDevice::attach(&scratch.join("T"), 512);
    let to = text(target.path());
    for (line, code) in [
        (format!("restore d1 {to} --overwrite"), 3),
        (format!("restore - {to} --overwrite < d1"), 3),
        (format!("restore d1 {to} --overwrite --dry-run"), 3),
        (format!("restore c1 x={to} --overwrite"), 3),
        (format!("restore - x={to} --overwrite < c1"), 3),
        (format!("restore d {to} --overwrite --dry-run"), 0),
    ] {
        let words = if code == 0 { "would be" } else { "in chunk" };
        expect(&scratch, &[(&format!("$FLOE {line}"), code, words)]);
    }
    sh(&scratch, "sync T; sha256sum -c --status sums").expect_code(0);
    let take = format!(
        "$FLOE restore d {to} --overwrite && sync T && cmp -n 16777216 e T && $FLOE restore c x={to} --overwrite"
    );
    sh(&scratch, &take).expect_code(0);
}

#[test]
fn a_filesystem_larger_than_its_partition_is_no_image_in_whatever_it_comes() {
    ready!("mke2fs", "sfdisk");
    let scratch = Scratch::new();
    let make = "truncate -s 40M d && printf 'label: gpt\\nstart=2048,size=16384\\nstart=20480,size=32768\\n' | sfdisk -q d && cp d good
        truncate -s 20M p && mke2fs -q -F -t ext4 p && truncate -s 16M q && mke2fs -q -F -t ext4 q
        dd if=q of=good bs=1M seek=10 conv=notrunc && head -c 16M p | dd of=d bs=1M seek=10 conv=notrunc && gzip -1 -k d
        $FLOE dump --whole d -o whole.gz && $FLOE dump good -o good.gz && $FLOE artifact d -n a -t b -o any.mender --any-content && mke2fs -q -F -L old T 8M && sha256sum T > sums";
    sh(&scratch, make).expect_code(0);
    let what =
        "the ext4 in the partition at 0xa00000 says 20971520 bytes, the partition has 16777216";
    for (line, code) in [
        ("dump d -o x.gz", 4),
        ("verify d", 3),
        ("verify d.gz", 3),
        ("verify any.mender", 3),
        ("restore d out", 3),
        ("restore d.gz out", 3),
        ("artifact d -n a -t b -o x.mender", 3),
        ("artifact whole.gz -n a -t b -o x.mender", 3),
        ("push d.gz board /dev/x", 3),
        ("verify - < d.gz", 3),
    ] {
        expect(&scratch, &[(&format!("$FLOE {line}"), code, what)]);
    }
    let run = sh(&scratch, "$FLOE show d; ls out x.*").expect_code(2);
    let said = run.stdout_text();
    assert!(
        said.contains(what) && !said.contains("a dump reads"),
        "{run}"
    );
    let good = "for i in good good.gz whole.gz; do $FLOE verify $i && $FLOE restore $i out && rm out || exit 1; done
        $FLOE verify d --any-content && $FLOE verify any.mender --any-content";
    sh(&scratch, good).expect_code(0);
}

#[test]
fn a_copy_as_it_is_stands_alone_and_becomes_no_artifact_by_itself() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let make = "head -c 3M /dev/urandom > n; truncate -s 8M e && mke2fs -q -F -t ext4 e && head -c 5M e > cut
        for i in n cut; do $FLOE dump --whole $i -o $i.gz || exit 1; done; echo '<html>' | gzip > page.gz
        cat n.gz page.gz > np.gz; cat cut.gz page.gz > cp.gz; cat n.gz n.gz > nn.gz; cat page.gz n.gz > pn.gz; (cat n.gz; head -c 700 /dev/zero) > nz.gz";
    sh(&scratch, make).expect_code(0);
    let behind = "something else behind the copy";
    expect(
        &scratch,
        &[
            ("$FLOE verify n.gz && $FLOE verify cut.gz", 0, ""),
            ("$FLOE verify nz.gz", 0, ""),
            ("$FLOE verify np.gz", 3, behind),
            ("$FLOE verify cp.gz", 3, behind),
            ("$FLOE verify nn.gz", 3, behind),
            ("$FLOE restore np.gz out", 3, behind),
            ("$FLOE verify pn.gz", 3, "is no image"),
            ("test ! -e out && $FLOE verify np.gz --any-content", 0, ""),
        ],
    );
    let line =
        |image: &str, more: &str| format!("$FLOE artifact {image} -n a -t b -o x.mender {more}");
    let device = LoopDevice::attach(&scratch.join("n"), 512);
    let create = format!("$FLOE create x={} -o n.zip -q", text(device.path()));
    sh(&scratch, &create).expect_code(0);
    let hint = "--any-content takes it";
    for image in ["n.gz", "cut.gz", "n.zip"] {
        expect(&scratch, &[(&line(image, ""), 3, hint)]);
        let made = format!(
            "{} && $FLOE verify x.mender",
            line(image, "--any-content -q")
        );
        expect(&scratch, &[(&made, 3, hint)]);
        let taken = "$FLOE verify x.mender --any-content && rm x.mender";
        sh(&scratch, taken).expect_code(0);
    }
}
