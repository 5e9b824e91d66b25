SUMMARY = "Consistent images of running Linux devices through a pipe"
DESCRIPTION = "Reads the blocks in use, freezes the filesystem for what changed meanwhile, and streams one gzip file; puts images back, and copies active partitions onto standby ones."
SECTION = "console/utils"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=15c8d96ac1107ef3fcc6bd8e1a6107fc"

# The folder (https:// or file://) in which the archives of the release are, as tools/release makes them.
FLOE_RELEASES ?= "file:///usr/src/floe"
SRC_URI = "${FLOE_RELEASES}/floe-${PV}.tar.xz"
# packaging/pin puts the release's own here.
SRC_URI[sha256sum] = "@SHA256@"

# Every crate of Cargo.lock, with its hash.
require floe-crates.inc

inherit cargo

# cargo runs in ${B}, outside the archive: its .cargo/config.toml (flags for rust-lld, the crates in VENDOR/) is not read.
# bitbake strips, and keeps the symbols in floe-dbg: what is stripped already would be an error of its QA.
export CARGO_PROFILE_RELEASE_STRIP = "none"

# All of it by default; "board" and "rescue" are smaller sets (Cargo.toml).
FLOE_FEATURES ?= ""
CARGO_BUILD_FLAGS:append = "${@' --no-default-features --features ' + d.getVar('FLOE_FEATURES') if d.getVar('FLOE_FEATURES') else ''}"
