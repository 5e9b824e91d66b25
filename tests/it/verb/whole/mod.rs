//! What is an image: `dump` makes only what `verify` and `restore` take back, and these take nothing else. One test a kind; and the
//! property itself, over every image that is made here.

mod damaged;
mod kinds;
mod outputs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::common::{self, Limit, Scratch, run_floe, sparse, text, write_at};

const MIB: u64 = 1 << 20;

fn noise(bytes: usize) -> Vec<u8> {
    common::Random(7).bytes(bytes)
}

/// An ext4 in a file, of so many MiB.
fn ext4(scratch: &Scratch, name: &str, mib: u64) -> PathBuf {
    let path = scratch.join(name);
    sparse(&path, mib * MIB);
    common::mkfs_ext4(&path);
    path
}

/// A disk of 32 MiB with one partition from 1 MiB on, 24 MiB long.
fn disk(scratch: &Scratch, name: &str, table: &str) -> PathBuf {
    let path = scratch.join(name);
    sparse(&path, 32 * MIB);
    let script = format!("label: {table}\nstart=2048, size=49152\n");
    let mut sfdisk = std::process::Command::new("sfdisk");
    let sfdisk = sfdisk.args(["-q", &text(&path)]);
    common::run_with_input(sfdisk, script.as_bytes(), Limit::secs(30)).expect_code(0);
    path
}

/// The property: what `dump` makes is taken back, bit for bit where it is `whole`; what it refuses is 4, and the line says how it
/// can be copied all the same; and so it can be.
#[track_caller]
fn agree(scratch: &Scratch, source: &Path) -> bool {
    let source = text(source);
    let mut taken = true;
    for whole in [false, true] {
        let image = text(&scratch.join("agree.gz"));
        let out = text(&scratch.join("agree.out"));
        let _ = fs::remove_file(&out);
        let mut words = vec!["dump", &source, "-o", &image];
        words.extend(whole.then_some("--whole"));
        let run = run_floe(&words);
        if run.code == Some(4) && !whole {
            assert!(run.stderr_text().contains("--whole"), "{run}");
            taken = false;
            continue;
        }
        let run = run.expect_code(0);
        run_floe(&["verify", &image]).expect_code(0);
        run_floe(&["restore", &image, &out]).expect_code(0);
        if whole {
            let same = fs::read(&source).expect("source") == fs::read(&out).expect("restored");
            assert!(same, "{run}");
        }
        let _ = fs::remove_file(&image);
    }
    taken
}

#[test]
fn dump_verify_and_restore_agree_about_every_disk_and_filesystem() {
    require!(common::floe().is_some(), "FLOE_BIN");
    require!(common::have("sfdisk"), "sfdisk");
    let scratch = Scratch::new();
    // Good ones are taken.
    assert!(agree(&scratch, &ext4(&scratch, "good", 16)));
    assert!(agree(&scratch, &disk(&scratch, "gpt", "gpt")));
    assert!(agree(&scratch, &disk(&scratch, "dos", "dos")));
    // A filesystem larger than its device, alone and in a partition.
    let cut = ext4(&scratch, "cut", 16);
    File::options()
        .write(true)
        .open(&cut)
        .expect("open")
        .set_len(10 * MIB)
        .expect("cut");
    assert!(!agree(&scratch, &cut));
    let inner = disk(&scratch, "inner", "dos");
    let large = fs::read(ext4(&scratch, "large", 30)).expect("read");
    write_at(
        &inner,
        &large[..usize::try_from(24 * MIB).expect("usize")],
        MIB,
    );
    assert!(!agree(&scratch, &inner));
    // Partitions that end behind the disk.
    for table in ["dos", "gpt"] {
        let short = disk(&scratch, "short", table);
        File::options()
            .write(true)
            .open(&short)
            .expect("open")
            .set_len(20 * MIB)
            .expect("cut");
        assert!(!agree(&scratch, &short), "{table}");
    }
    // A GPT whose first header is damaged, with a good copy at the end and without.
    let first = disk(&scratch, "first", "gpt");
    write_at(&first, &[0; 512], 512);
    assert!(agree(&scratch, &first));
    write_at(&first, &[0; 512], 32 * MIB - 512);
    assert!(!agree(&scratch, &first));
    // The copy alone damaged.
    let last = disk(&scratch, "last", "gpt");
    write_at(&last, &[0; 512], 32 * MIB - 512);
    assert!(agree(&scratch, &last));
    // A filesystem with what is left of a table in front of it.
    let over = ext4(&scratch, "over", 16);
    write_at(
        &over,
        &[
            0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0x7f, 0, 0,
        ],
        446,
    );
    write_at(&over, &[0x55, 0xaa], 510);
    assert!(agree(&scratch, &over));
}
