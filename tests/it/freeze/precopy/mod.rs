//! Pre-copy under torture: what is read while a filesystem is written to, and what the freeze leaves of it, must be the image that a
//! full copy under the same freeze gives.
//!
//! A debug build of floe keeps the filesystem frozen when it has read all (FLOE_TEST_HOLD), and meanwhile the test copies the
//! file behind the loop device. Every block of the image that is not zeros must be that copy's; both are checked and mounted, and
//! every file must be the same, so that a block that came out as zeros was free. The writers do all that a filesystem knows.
//!
//! `FLOE_TORTURE` says how often each is tried (once where it is not set).

mod held;
mod killed;
mod lies;
mod rack;
mod traced;
mod verbs;

use std::process::Command;
use std::time::Instant;

use crate::common;
use crate::torture::rounds;

use self::rack::Rack;

/// The floe that cargo built with these tests; only a debug build can be held.
fn floe() -> Option<Command> {
    let usable = cfg!(debug_assertions) && common::runner().is_none() && common::is_root();
    usable.then(|| Command::new(env!("CARGO_BIN_EXE_floe")))
}

macro_rules! require_torture {
    () => {
        require!(floe().is_some(), "root, a debug build, no runner");
        if let Err(why) = floe::trace::available() {
            common::skip(&format!("tracefs with block events ({why})"));
            return;
        }
    };
}

use require_torture;

const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

fn torture(kind: &'static str) {
    require_torture!();
    let _serial = common::serial();
    let mut rack = require_some!(Rack::new(kind), "a filesystem");
    let ways: &[(&[&str], &str)] = &[
        (&[], "traced"),
        (&["--precopy", "compare"], "compared"),
        (&["-z", "none"], "traced"),
        (&["--spool", "8M"], "traced"),
        (&["--precopy", "compare", "--spool", "8M"], "compared"),
        (&["--precopy", "off"], "off"),
        (&["--frames"], "traced"),
        (
            &["--frames", "--precopy", "compare", "--spool", "8M"],
            "compared",
        ),
    ];
    // Without the campaign: two ways of each filesystem (of ext4 those of frames, too), so that all ways are tried with one of them.
    let rounds = rounds();
    let first = match kind {
        _ if rounds > 1 => 0,
        "ext4" => 0,
        "xfs" => 2,
        _ => 4,
    };
    let mut tried: Vec<usize> = (first..ways.len()).take(2).collect();
    match kind {
        _ if rounds > 1 => tried = (0..ways.len()).collect(),
        "ext4" => tried.extend([6, 7]),
        _ => {}
    }
    let (mut early, mut again) = (0, 0);
    for round in 0..rounds {
        for (number, (words, expected)) in tried.iter().map(|number| (*number, &ways[*number])) {
            let pause = [0, 2, 20][(round as usize + number) % 3];
            let began = Instant::now();
            let told = rack.dump(words, pause, "");
            eprintln!(
                "{kind} {round} {words:?} every {pause} ms: {told:?} in {:?}",
                began.elapsed()
            );
            let told = told.unwrap_or_else(|why| panic!("{kind}, {words:?}: {why}"));
            // On a machine that is busy the trace may lose something: it must say so, never the image.
            let fits = told.precopy == *expected || told.precopy == "compared";
            assert!(fits, "{words:?}: {told:?}");
            early += told.early;
            again += told.again;
        }
    }
    assert!(early > 0, "nothing was read early");
    eprintln!("{kind}: {early} bytes early, {again} again");
}

#[test]
fn an_image_of_an_ext4_under_torture_is_what_a_copy_under_the_freeze_is() {
    torture(KINDS[0]);
}

#[test]
fn an_image_of_an_xfs_under_torture_is_what_a_copy_under_the_freeze_is() {
    torture(KINDS[1]);
}

#[test]
fn an_image_of_a_btrfs_under_torture_is_what_a_copy_under_the_freeze_is() {
    torture(KINDS[2]);
}
