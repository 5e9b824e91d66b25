//! FAT: boot sector and allocation tables.
#![no_main]

mod common;

use floe::fs::Kind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::filesystem(data, &[Kind::Fat12, Kind::Fat16, Kind::Fat32]);
});
