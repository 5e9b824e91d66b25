//! Swap headers of every page size.
#![no_main]

mod common;

use floe::fs::Kind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::filesystem(data, &[Kind::Swap]);
});
