#!/bin/bash
# dracut module: puts floe, and what mounts the medium with the image, into the initramfs.
# Install the folder as /usr/lib/dracut/modules.d/90floe; taken on request only: dracut --add floe,
# or add_dracutmodules+=" floe " in /etc/dracut.conf.d/floe.conf.

check() {
    require_binaries floe || return 1
    return 255
}

depends() {
    return 0
}

installkernel() {
    # A module that this kernel lacks is left out (=: also where only this machine's are taken).
    hostonly='' instmods ext4 vfat exfat nls_cp437 nls_iso8859-1 nls_utf8 usb_storage uas sd_mod mmc_block nvme
}

install() {
    inst_multiple floe
    # The recipes of the README call it by this path.
    [ -e "${initdir:?}/bin/floe" ] || inst_simple "$(command -v floe)" /bin/floe
}
