//! Nothing from another machine, user or image harms this one: boards that flood or say nothing, folders in which others have put
//! something, text that a terminal would obey, files that two write or that change, limits that are too small.

mod boards;
mod files;
mod folders;
mod limits;
mod text;

use crate::common::{self, Run, Scratch, text};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Somebody else.
const NOBODY: u32 = 65_534;

fn floe(words: &[&str]) -> Command {
    let mut floe = common::floe().expect("required before");
    floe.args(words).stdin(Stdio::null());
    floe
}

/// An ext4 image of so many MiB.
fn image(scratch: &Scratch, name: &str, mib: u64, more: &[&str]) -> PathBuf {
    let path = scratch.join(name);
    common::sparse(&path, mib << 20);
    let shown = text(&path);
    let words = [&["-q", "-F"], more, &[shown.as_str()]].concat();
    common::output("mkfs.ext4", &words);
    path
}

/// What a terminal obeys: C0 and C1 controls but the newline, and the overrides of the direction of text.
fn is_hostile(letter: char) -> bool {
    let overrides = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{2028}\u{2029}";
    letter != '\n' && (letter.is_control() || overrides.contains(letter))
}

#[track_caller]
fn assert_clean(run: &Run) {
    for text in [run.stdout_text(), run.stderr_text()] {
        assert!(!text.chars().any(is_hostile), "{text:?}");
    }
}
