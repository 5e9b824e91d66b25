//! squashfs: superblock and what follows the filesystem.
#![no_main]

mod common;

use floe::fs::Kind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::filesystem(data, &[Kind::Squashfs]);
});
