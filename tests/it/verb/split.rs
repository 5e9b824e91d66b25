//! `dump --split`: numbered pieces that are one image to restore, verify, show and cat, and that are there all or not at all.

use std::fs;
use std::path::Path;

use crate::common::{self, Limit, Scratch, expect_floe, names};

/// An ext4 of `mib` MiB with so many MiB of noise in it.
fn noisy(scratch: &Scratch, mib: u32, noise_mib: u32) -> String {
    let path = scratch.join("source").to_string_lossy().into_owned();
    let script = format!(
        "truncate -s {mib}M {path}; mkdir {path}.d; head -c {noise_mib}M /dev/urandom > {path}.d/noise; mkfs.ext4 -q -F -d {path}.d {path}"
    );
    common::shell(&script, Limit::secs(60)).expect_code(0);
    path
}

#[test]
fn pieces_are_one_image_and_there_all_or_not_at_all() {
    require_mkfs!();
    let scratch = Scratch::new();
    // More than 99 pieces where it is not packed.
    let (path, out) = (noisy(&scratch, 104, 5), scratch.join("out"));
    fs::create_dir(&out).expect("out");
    let image = out.join("a.img");
    let image = image.to_string_lossy().into_owned();
    for raw in [&["-z", "none"][..], &[]] {
        let words = [
            &["dump", &path, "-o", &image, "--split", "1M", "--overwrite"],
            raw,
        ]
        .concat();
        expect_floe(&words, 0);
        let found = names(&out);
        // The raw one is written in full; of the packed one, which is shorter, no piece of the raw one is left.
        let count = found.len();
        match raw.is_empty() {
            false => assert_eq!(count, 104, "{found:?}"),
            true => assert!((6..=7).contains(&count), "{found:?}"),
        }
        let wanted: Vec<String> = (1..=count)
            .map(|number| format!("a.img.{number:03}"))
            .collect();
        assert_eq!(found, wanted);
        for name in &found[..count - 1] {
            assert_eq!(fs::metadata(out.join(name)).expect("piece").len(), 1 << 20);
        }
        let first = format!("{image}.001");
        assert!(
            expect_floe(&["verify", &first], 0)
                .stdout_text()
                .contains("good ")
        );
        assert!(
            expect_floe(&["show", &first], 0)
                .stdout_text()
                .contains("ext4")
        );
        let back = scratch.join("back");
        expect_floe(
            &["restore", &first, &back.to_string_lossy(), "--overwrite"],
            0,
        );
        // What a run that was killed leaves is no piece.
        let left = format!("{image}.001.part");
        fs::write(&left, b"left").expect("part");
        let together = scratch.join("together");
        let script = format!("cat {image}.[0-9][0-9][0-9] > {}", together.display());
        common::shell(&script, Limit::secs(60)).expect_code(0);
        fs::remove_file(&left).expect("part");
        let whole = scratch.join("whole");
        expect_floe(
            &[
                "restore",
                &together.to_string_lossy(),
                &whole.to_string_lossy(),
                "--overwrite",
            ],
            0,
        );
        assert_eq!(common::hash_file(&back), common::hash_file(&whole));
        assert_eq!(fs::metadata(&back).expect("back").len(), 104 << 20);
    }
    // A piece that is missing, or cut, is a corrupt image, found before anything is written; and only a part cannot be pushed.
    let first = format!("{image}.001");
    let target = scratch.join("target");
    let target = target.to_string_lossy().into_owned();
    let third = out.join("a.img.003");
    let kept = fs::read(&third).expect("third");
    fs::write(&third, &kept[1..]).expect("cut");
    expect_floe(&["verify", &first], 3);
    fs::remove_file(&third).expect("third");
    for words in [&["verify", &first][..], &["restore", &first, &target]] {
        let run = expect_floe(words, 3);
        let text = run.stderr_text();
        assert!(text.contains("a.img.003: is missing: "), "{run}");
    }
    assert!(!Path::new(&target).exists());
    let last = names(&out).pop().expect("pieces");
    fs::write(&third, &kept).expect("third");
    fs::rename(out.join(&last), scratch.join("last")).expect("last");
    let text = expect_floe(&["verify", &first], 3).stderr_text();
    let wanted = format!("{last}, which would be next, is not there");
    assert!(text.contains(&wanted), "{text}");
    fs::rename(scratch.join("last"), out.join(&last)).expect("last");
    fs::write(&third, &kept).expect("third");
    let run = expect_floe(&["push", &first, "host", "/dev/null"], 4);
    assert!(run.stderr_text().contains("several pieces"), "{run}");
    // Refused before anything begins; and a dump that fails leaves nothing.
    let before = names(&out);
    expect_floe(&["dump", &path, "--split", "1M"], 2);
    expect_floe(&["dump", &path, "-o", &image, "--split", "1K"], 2);
    let large = scratch.join("large");
    let file = fs::File::create(&large).expect("large");
    file.set_len(1 << 30).expect("large");
    common::mkfs_ext4(&large);
    let run = expect_floe(
        &[
            "dump",
            &large.to_string_lossy(),
            "-o",
            &image,
            "--split",
            "1M",
            "--overwrite",
        ],
        4,
    );
    assert!(run.stderr_text().contains("make them larger"), "{run}");
    assert_eq!(names(&out), before);
}

#[test]
fn whichever_piece_or_name_is_given_it_is_said_which_one_to_name() {
    require_mkfs!();
    let scratch = Scratch::new();
    let source = noisy(&scratch, 16, 3);
    let image = scratch.join("a.img").to_string_lossy().into_owned();
    let first = format!("{image}.001");
    for raw in [&["-z", "none"][..], &[]] {
        let words = [
            "dump",
            &source,
            "-o",
            &image,
            "--split",
            "1M",
            "--overwrite",
        ];
        expect_floe(&[&words[..], raw].concat(), 0);
        for verb in ["show", "verify"] {
            let said = expect_floe(&[verb, &format!("{image}.002")], 3).stderr_text();
            let wanted = format!("name the first one, {first}");
            assert!(said.contains(&wanted), "{verb}: {said}");
            let said = expect_floe(&[verb, &image], 4).stderr_text();
            assert!(said.contains(&wanted), "{verb}: {said}");
        }
        let words = ["artifact", &image, "-n", "a", "-t", "b", "-o", "/dev/null"];
        let said = expect_floe(&words, 4).stderr_text();
        assert!(said.contains(&first), "{said}");
        let target = scratch.join("target").to_string_lossy().into_owned();
        let said = expect_floe(&["restore", &image, &target], 4).stderr_text();
        assert!(said.contains(&first), "{said}");
        // One number, whoever says it: that of all pieces.
        let pieces = names(scratch.path());
        let pieces = pieces.iter().filter(|name| name.starts_with("a.img.0"));
        let bytes: u64 = pieces
            .map(|name| fs::metadata(scratch.join(name)).expect("piece").len())
            .sum();
        let shown = expect_floe(&["show", &first, "--json"], 0).stdout;
        let shown = floe::json::parse(&shown).unwrap_or_else(|_| panic!("{shown:?}"));
        let number = |key: &str| shown.get(key).and_then(|value| value.number());
        match raw.is_empty() {
            true => assert_eq!(number("packed_bytes"), Some(bytes)),
            false => assert_eq!(number("size_bytes"), Some(bytes)),
        }
        assert!(
            shown
                .get("error")
                .is_some_and(|error| error.text().is_none())
        );
    }
}

#[test]
fn what_bears_the_name_of_a_later_piece_is_replaced_only_where_it_is_one() {
    require_mkfs!();
    let scratch = Scratch::new();
    let (path, out) = (noisy(&scratch, 16, 3), scratch.join("out"));
    fs::create_dir(&out).expect("out");
    let image = out.join("g.gz").to_string_lossy().into_owned();
    let (first, precious) = (format!("{image}.001"), scratch.join("precious"));
    let dump = |size: &str, more: &[&str], code: i32| {
        let words = ["dump", &path, "--split", size, "-o", &image];
        let said = expect_floe(&[&words[..], more].concat(), code).stderr_text();
        assert_eq!(code == 4, said.contains("nothing was written"), "{said}");
        said
    };
    // Notes and a link, with no first piece, behind a complete image, behind a gap: none is touched.
    let notes = out.join("g.gz.002");
    fs::write(&notes, "notes").expect("notes");
    assert!(dump("1M", &[], 4).contains("g.gz.002"));
    fs::remove_file(&notes).expect("notes");
    dump("100M", &[], 0);
    fs::write(&notes, "notes").expect("notes");
    assert!(dump("1M", &[], 4).contains("g.gz.002"));
    assert_eq!(fs::read(&notes).expect("notes"), b"notes");
    // Nor would a file of its own be taken back beside it.
    let said = expect_floe(&["dump", &path, "-o", &first], 4).stderr_text();
    assert!(said.contains("g.gz.002"), "{said}");
    fs::remove_file(&notes).expect("notes");
    fs::write(&precious, "precious").expect("precious");
    std::os::unix::fs::symlink(&precious, out.join("g.gz.003")).expect("link");
    assert!(dump("1M", &[], 4).contains("g.gz.003"));
    // What is told to be replaced is: the link, not what it leads to; and nothing is left that would spoil the set.
    fs::write(out.join("g.gz.009"), "stray").expect("stray");
    dump("1M", &["--overwrite"], 0);
    assert_eq!(fs::read(&precious).expect("precious"), b"precious");
    expect_floe(&["verify", &first], 0);
    // But never the source, whatever it is called.
    let own = out.join("g.gz.007").to_string_lossy().into_owned();
    fs::copy(&path, &own).expect("copy");
    let words = ["dump", &own, "--split", "1M", "-o", &image, "--overwrite"];
    let said = expect_floe(&words, 4).stderr_text();
    assert!(said.contains("g.gz.007: is the source itself"), "{said}");
    fs::remove_file(&own).expect("still there");
    // An older set goes, whatever its pieces; of one with a stray piece behind a gap nothing does.
    dump("2M", &[], 0);
    dump("1M", &[], 0);
    expect_floe(&["verify", &first], 0);
    let before = names(&out);
    assert_eq!(before.len(), 4, "{before:?}");
    fs::copy(&first, out.join("g.gz.009")).expect("stray");
    assert!(dump("1M", &[], 4).contains("g.gz.009"));
    fs::remove_file(out.join("g.gz.009")).expect("stray");
    // Another kind of image, and a folder.
    assert!(dump("1M", &["-z", "none"], 4).contains("packed with gzip"));
    fs::create_dir(out.join("g.gz.009")).expect("folder");
    assert!(dump("1M", &["--overwrite"], 4).contains("g.gz.009"));
    fs::remove_dir(out.join("g.gz.009")).expect("folder");
    dump("1M", &["-z", "none", "--overwrite"], 0);
    assert!(dump("1M", &[], 4).contains("raw image"));
    dump("2M", &["-z", "none"], 0);
    assert_eq!(names(&out).len(), 8);
    expect_floe(&["verify", &first], 0);
}

#[test]
fn what_has_the_name_of_a_piece_and_is_none_is_named_and_to_be_moved() {
    require_mkfs!();
    let scratch = Scratch::new();
    let from = noisy(&scratch, 8, 3);
    let image = scratch.join("x.gz").to_string_lossy().into_owned();
    expect_floe(&["dump", &from, "-o", &image, "--split", "1M"], 0);
    let first = format!("{image}.001");
    let count = (1..9)
        .take_while(|number| Path::new(&format!("{image}.{number:03}")).exists())
        .count();
    assert!(count > 1, "{count}");
    let next = format!("{image}.{:03}", count + 1);
    let target = scratch.join("target").to_string_lossy().into_owned();
    let told = |code: i32| {
        for words in [&["verify", &first][..], &["restore", &first, &target]] {
            let run = expect_floe(words, code);
            let text = run.stderr_text();
            assert!(text.starts_with(&format!("floe: {next}: ")), "{run}");
            assert!(
                text.contains("move it") && text.lines().count() == 1,
                "{run}"
            );
            assert!(!Path::new(&target).exists());
        }
    };
    let other = scratch.join("other.gz").to_string_lossy().into_owned();
    expect_floe(&["dump", &from, "-o", &other], 0);
    for foreign in [
        b"notes".to_vec(),
        b"\x1f\x8b\x07notes of somebody".to_vec(),
        fs::read(&other).expect("other"),
    ] {
        fs::write(&next, foreign).expect("foreign");
        told(3);
    }
    fs::remove_file(&next).expect("foreign");
    fs::create_dir(&next).expect("folder");
    told(4);
    fs::remove_dir(&next).expect("folder");
    expect_floe(&["verify", &first], 0);
    // Behind the image in its own last piece: only what takes all of them helps.
    let last = format!("{image}.{count:03}");
    let mut bytes = fs::read(&last).expect("last");
    let end = bytes.len();
    bytes.extend(b"FWx0");
    fs::write(&last, bytes).expect("last");
    let text = expect_floe(&["verify", &first], 3).stderr_text();
    for word in [
        &format!("from byte {end} of {last} on"),
        "[0-9] | zcat | floe",
    ] {
        assert!(text.contains(word), "{text}");
    }
}
