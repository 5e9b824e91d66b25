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

# The archive has the crates in it too, and says so; here bitbake's are taken, which are the same.
do_configure:prepend() {
    sed -i '/^# In the source archive of a release/,$d' ${S}/.cargo/config.toml
}

# All of it by default; "board" and "rescue" are smaller sets (Cargo.toml).
FLOE_FEATURES ?= ""
CARGO_BUILD_FLAGS:append = "${@' --no-default-features --features ' + d.getVar('FLOE_FEATURES') if d.getVar('FLOE_FEATURES') else ''}"
