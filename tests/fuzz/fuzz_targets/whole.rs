//! What is recognised and read whole.
#![no_main]

mod common;

use floe::fs::Kind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::filesystem(
        data,
        &[
            Kind::Luks,
            Kind::Lvm,
            Kind::MdMember,
            Kind::Exfat,
            Kind::Jfs,
            Kind::Reiserfs,
            Kind::Nilfs2,
        ],
    );
});
