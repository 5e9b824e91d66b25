//! `dump --bmap` and `restore --bmap`: which blocks of an image a flashing tool has to write.

use std::fs;
use std::path::Path;

use crate::common::{self, Limit, Run, Scratch};

fn floe(folder: &Path, words: &str, code: i32) -> Run {
    let mut floe = common::floe().expect("checked by the caller");
    let floe = floe.current_dir(folder).args(words.split(' '));
    common::run(floe, Limit::secs(60)).expect_code(code)
}

/// A filesystem with noise, a hole and zeros, and a target that holds something else everywhere.
fn make(folder: &Path) {
    let script = format!(
        "cd {} && mkdir files && head -c 3M /dev/urandom > files/noise && truncate -s 3M files/hole && head -c 2M /dev/zero > files/zeros &&
         truncate -s 32M source && mkfs.ext4 -q -F -d files source && head -c 32M /dev/zero | tr '\\0' '\\377' > target",
        folder.display()
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
}

/// What an unmodified bmaptool leaves of what stood on the target must mean nothing: neither zeros in files nor the empty journal may
/// be left out.
#[test]
fn bmaptool_writes_the_image_over_whatever_was_there() {
    require!(common::have("bmaptool"), "bmaptool (bmap-tools)");
    require_mkfs!();
    let scratch = Scratch::new();
    let folder = scratch.path();
    make(folder);
    for (image, how) in [("a.img.gz", "gzip"), ("a.img", "none")] {
        let words = format!("dump source -z {how} -o {image} --bmap a.bmap");
        floe(folder, &words, 0);
        let script = format!(
            "cd {} && cp target onto && bmaptool copy --bmap a.bmap {image} onto && e2fsck -fn onto && mkdir out && debugfs -R 'rdump noise hole zeros out' onto && \
             cmp out/noise files/noise && cmp out/hole files/hole && cmp out/zeros files/zeros && rm -rf out",
            folder.display()
        );
        common::shell(&script, Limit::secs(60)).expect_code(0);
        // The journal is empty by then: nothing of what stood in its place may be left.
        let script = format!(
            "cd {} && debugfs -R 'cat <8>' onto 2>/dev/null | tail -c +4097 | tr -d '\\0' | wc -c",
            folder.display()
        );
        let left = common::shell(&script, Limit::secs(60)).expect_code(0);
        assert_eq!(left.stdout_text().trim(), "0");
    }
}

#[test]
fn image_and_bmap_are_two_files() {
    require_mkfs!();
    let scratch = Scratch::new();
    let folder = scratch.path();
    make(folder);
    fs::create_dir(folder.join("folder1")).unwrap();
    for bmap in ["a.img", "folder1/../a.img"] {
        let words = format!("dump source -z none -o a.img --bmap {bmap}");
        let error = floe(folder, &words, 2).stderr_text();
        assert_eq!(error, "floe: dump: -o and --bmap name the same file\n");
        assert!(!folder.join("a.img").exists());
    }
}

#[test]
fn an_image_is_checked_against_its_bmap_before_the_first_write() {
    require_mkfs!();
    let scratch = Scratch::new();
    let folder = scratch.path();
    make(folder);
    floe(folder, "dump source -o a.img.gz --bmap a.bmap", 0);
    floe(folder, "dump source -z none -o a.img", 0);
    // One range of it is right for the packed and for the raw image; and a bit of a file's content is not.
    floe(folder, "restore a.img.gz out --bmap a.bmap", 0);
    floe(folder, "restore a.img out --bmap a.bmap --overwrite", 0);
    let noise = fs::read(folder.join("files/noise")).expect("noise");
    let mut bytes = fs::read(folder.join("a.img")).expect("image");
    let place = bytes.windows(4096).step_by(1024);
    let place = place
        .enumerate()
        .find(|(_, block)| *block == &noise[..4096])
        .map(|(at, _)| at * 1024);
    bytes[place.expect("the noise in the image") + 5] ^= 1;
    fs::write(folder.join("b.img"), &bytes).expect("image");
    let run = floe(folder, "restore b.img other --bmap a.bmap", 3);
    let text = run.stderr_text();
    assert!(text.contains("is not what the .bmap says"), "{text}");
    assert!(text.contains("b.img, by a.bmap: "), "{text}");
    assert!(text.contains("nothing was written"), "{text}");
    // A .bmap with a byte changed, or that is none; an image that cannot be read twice.
    let map = fs::read_to_string(folder.join("a.bmap")).expect("bmap");
    fs::write(folder.join("b.bmap"), map.replacen("<Range", "<range", 1)).expect("bmap");
    floe(folder, "restore a.img other --bmap b.bmap", 3);
    floe(folder, "restore a.img other --bmap a.img.gz", 3);
    floe(folder, "restore a.img other --bmap none", 4);
    floe(folder, "restore /dev/zero other --bmap a.bmap", 4);
    assert!(!folder.join("other").exists());
    // What is there and is none is not replaced, and without a file there is nothing to read back.
    floe(folder, "dump source -o c.img.gz --bmap source", 4);
    floe(folder, "dump source -o c.img.gz --bmap files/noise", 4);
    // Nor is what has no end read to its end.
    floe(folder, "dump source -o c.img.gz --bmap /dev/zero", 4);
    floe(folder, "dump source --bmap c.bmap", 2);
    assert!(!folder.join("c.img.gz").exists() && !folder.join("c.bmap").exists());
}
