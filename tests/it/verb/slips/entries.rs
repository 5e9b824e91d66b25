//! What lies in a snapshot is judged by the rule for images: its checksums prove only that it is what was put in.

use super::{EXT4, expect, sh};
use crate::common::{self, LoopDevice, Scratch, text};

/// Images that are none, or not whole, with what the snapshot calls them and a word of why they are not taken.
const BAD: [(&str, &str, &str); 5] = [
    ("page", "ext4", "is a web page"),
    ("cut", "ext4", "it was cut off"),
    ("short", "mbr", "it was cut off"),
    (
        "inside",
        "mbr",
        "in the partition at 0xa00000 says 16777216",
    ),
    ("damaged", "gpt", "its partition table is damaged"),
];

#[test]
fn an_entry_that_is_no_image_or_not_whole_is_taken_by_no_verb_and_costs_no_target() {
    ready!("python3", "mke2fs", "sfdisk");
    let scratch = Scratch::new();
    std::fs::write(scratch.join("other.py"), include_bytes!("other_image.py")).expect("other.py");
    let script = format!(
        "{EXT4}; $FLOE create -q a=e -o s.zip
        other() {{ python3 other.py s.zip \"$@\"; }}
        (echo '<html>'; head -c 100000 /dev/zero | tr '\\0' x) > page; head -c 3M e > cut
        truncate -s 24M good inside gpt
        printf 'label: dos\\nstart=2048,size=16384\\nstart=20480,size=16384\\n' | tee table | sfdisk -q good; sfdisk -q inside < table
        truncate -s 16M large; mke2fs -q -F large
        dd if=e of=good bs=512 seek=2048 conv=notrunc status=none; head -c 17M good > short
        dd if=large of=inside bs=512 seek=20480 conv=notrunc status=none; truncate -s 24M inside
        printf 'label: gpt\\nsize=16384\\n' | sfdisk -q gpt; head -c 20M gpt > damaged
        dd if=/dev/zero of=damaged bs=512 seek=1 count=1 conv=notrunc status=none
        for what in page:ext4 cut:ext4 short:mbr inside:mbr damaged:gpt; do other ${{what%:*}} ${{what%:*}}.zip ${{what#*:}}; done
        other good good.zip mbr; other e e.zip; other page unknown.zip unknown; truncate -s 24M old; mke2fs -q -F -L precious old"
    );
    sh(&scratch, &script).expect_code(0);
    let device = LoopDevice::attach(&scratch.join("old"), 512);
    let device = text(device.path());
    for (image, _, why) in BAD {
        for line in [
            format!("verify {image}.zip"),
            format!("cat {image}.zip | $FLOE verify -"),
            format!("restore {image}.zip a={device} --overwrite"),
            format!("restore {image}.zip a={device} --overwrite --dry-run"),
            format!("restore {image}.zip a=new"),
            format!("cat {image}.zip | $FLOE restore - a=new"),
            format!("push {image}.zip nohost a=/dev/x"),
            format!("artifact {image}.zip -n a -t b -o new"),
        ] {
            let line = match line.starts_with("cat ") {
                true => line,
                false => format!("$FLOE {line}"),
            };
            let run = sh(&scratch, &line).expect_code(3);
            assert!(
                run.stderr_text().contains(why),
                "{line}: no {why:?} in {run}"
            );
            let whose = ["x.zip: ", "stdin: "]
                .iter()
                .any(|w| run.stderr_text().contains(w));
            assert!(
                whose || run.stderr_text().contains(&format!("{image}.zip: ")),
                "{run}"
            );
            assert!(!scratch.join("new").exists(), "{line}");
        }
        let kept = format!("test \"$(blkid -p -o value -s LABEL {device})\" = precious");
        expect(&scratch, &[(&kept, 0, "")]);
        let taken =
            format!("$FLOE restore {image}.zip a=new --any-content && cmp new {image} && rm new");
        expect(&scratch, &[(&taken, 0, "")]);
    }
    for (image, snapshot) in [("good", "good"), ("e", "e"), ("page", "unknown")] {
        for line in [
            format!("$FLOE verify {snapshot}.zip && cat {snapshot}.zip | $FLOE verify -"),
            format!("$FLOE restore {snapshot}.zip a=new && cmp new {image} && rm new"),
            format!("cat {snapshot}.zip | $FLOE restore - a=new && cmp new {image} && rm new"),
        ] {
            expect(&scratch, &[(&line, 0, "")]);
        }
    }
}

#[test]
fn what_shows_nothing_known_goes_into_a_snapshot_and_back() {
    ready!();
    let scratch = Scratch::new();
    sh(&scratch, "head -c 4M /dev/urandom > noise").expect_code(0);
    let device = LoopDevice::attach(&scratch.join("noise"), 512);
    let create = format!("$FLOE create a={} -o s.zip", text(device.path()));
    for line in [
        &*create,
        "$FLOE verify s.zip",
        "$FLOE restore s.zip a=new && cmp new noise",
    ] {
        expect(&scratch, &[(line, 0, "")]);
    }
}

/// A filesystem may be smaller than what it lies on: then only the end of a packed image tells how long it is.
#[test]
fn an_image_longer_than_its_filesystem_says_costs_no_smaller_target() {
    ready!("mke2fs");
    let scratch = Scratch::new();
    let script = "truncate -s 16M e; mke2fs -q -F e; truncate -s 24M e
        $FLOE dump -q e -o i.gz; $FLOE dump -q e --frames | cat > i.frames
        $FLOE artifact -q i.gz -n a -t b -o i.mender; gzip -dc i.gz > i.raw; $FLOE create -q a=e -o i.zip
        truncate -s 20M old; mke2fs -q -F -L precious old; cp old before";
    sh(&scratch, script).expect_code(0);
    let device = LoopDevice::attach(&scratch.join("old"), 512);
    let device = text(device.path());
    for line in [
        "$FLOE restore i.gz D --overwrite",
        "$FLOE restore i.gz D --overwrite --dry-run",
        "$FLOE restore i.gz D --overwrite --only-changes",
        "$FLOE restore - D --overwrite < i.gz",
        "$FLOE restore i.raw D --overwrite",
        "$FLOE restore i.mender D --overwrite",
        "$FLOE restore i.frames D --overwrite",
        "cat i.frames | $FLOE restore - D --overwrite",
        "$FLOE restore i.zip a=D --overwrite",
    ] {
        let line = line.replace('D', &device);
        let run = sh(&scratch, &line).expect_code(4);
        let said = run.stderr_text();
        let is_told = said.contains("is too small") && said.contains("25165824 bytes");
        let state = match line.contains("dry-run") {
            true => "",
            false => "nothing was written",
        };
        assert!(is_told && said.contains(state), "{line}: {run}");
        sh(&scratch, "sync; cmp old before").expect_code(0);
    }
    // What comes through a pipe is known at its end alone.
    let line = format!("cat i.gz | $FLOE restore - {device} --overwrite");
    let run = sh(&scratch, &line).expect_code(1);
    let said = "image is larger than the target of 20971520 bytes; the target is not usable";
    assert!(run.stderr_text().contains(said), "{run}");
}
