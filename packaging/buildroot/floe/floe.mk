################################################################################
#
# floe
#
################################################################################

FLOE_VERSION = 0.1.0
FLOE_SITE = $(call qstrip,$(BR2_PACKAGE_FLOE_SITE))
FLOE_SOURCE = floe-$(FLOE_VERSION).tar.xz
FLOE_LICENSE = MIT
FLOE_LICENSE_FILES = LICENSE

# For musl its .cargo/config.toml has flags for rust-lld, which gcc does not
# understand: there the linker of the toolchain is used, and the executable is
# static. With glibc it is built like any other cargo package.
FLOE_CARGO_ENV = \
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	CARGO_TARGET_ARMV7_UNKNOWN_LINUX_MUSLEABIHF_LINKER=rust-lld

FLOE_FEATURES = $(call qstrip,$(BR2_PACKAGE_FLOE_FEATURES))
ifneq ($(FLOE_FEATURES),)
FLOE_CARGO_BUILD_OPTS = --no-default-features --features $(FLOE_FEATURES)
FLOE_CARGO_INSTALL_OPTS = $(FLOE_CARGO_BUILD_OPTS)
endif

$(eval $(cargo-package))
