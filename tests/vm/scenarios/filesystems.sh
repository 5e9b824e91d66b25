# Every filesystem this kernel has: mounted, written to while it is dumped through the pipe and restored to a second
# disk, checked by its own checker, and every file compared.
# Arguments: filesystems (default: all of them). What CI's own kernel has is tried there by the integration tests.
#: archs x86_64 aarch64 aarch64-16k armv7
#: select armv7
#: selected f2fs exfat
#: modules ext4
#: optional xfs btrfs f2fs jfs reiserfs vfat nls_ascii nls_cp437 nls_iso8859_1 nls_utf8 exfat nilfs2 squashfs erofs crc32c_generic
#: tools
#: disk source 320M
#: disk small 144M
#: disk target 384M
#: memory 512
#: cpus 2
#: timeout 500

[ $# -gt 0 ] || set -- ext2 ext3 ext4 xfs btrfs f2fs jfs reiserfs vfat exfat nilfs2 squashfs erofs
target=$(disk target)
mkdir -p /source /target

make() {
    case $1 in
        ext*) mkfs.$1 -q -F "$source";;
        xfs|btrfs) mkfs.$1 -q -f "$source";;
        f2fs) mkfs.f2fs -q -f "$source";;
        jfs) mkfs.jfs -q "$source";;
        reiserfs) mkfs.reiserfs -q -f "$source";;
        vfat) mkfs.vfat -F 32 "$source";;
        exfat) mkfs.exfat "$source";;
        nilfs2) mkfs.nilfs2 -q -f "$source";;
        squashfs|erofs) mkdir -p /tmp/ro; fill /tmp/ro 3000
            case $1 in squashfs) mksquashfs /tmp/ro /tmp/ro.image -quiet -no-progress -noappend;; erofs) mkfs.erofs -q /tmp/ro.image /tmp/ro || mkfs.erofs /tmp/ro.image /tmp/ro;; esac &&
            dd if=/tmp/ro.image of="$source" bs=64k 2>/dev/null; rm -rf /tmp/ro /tmp/ro.image;;
    esac
}

# The checker, on an unmounted device that was mounted once after the restore.
check() {
    case $1 in
        ext*) e2fsck -f -n "$2";;
        xfs) xfs_repair -n "$2";;
        btrfs) btrfs check --force "$2";;
        f2fs) fsck.f2fs --dry-run "$2";;
        # A freeze writes JFS's log and marks it clean, but not the summary pages of its block map: those an unmount
        # writes, or fsck.jfs -f. Nothing but that may be found, and nothing may be left.
        jfs) fsck.jfs -f "$2" && return 0; [ $? = 1 ] && fsck.jfs -n -f "$2";;
        reiserfs) echo Yes | reiserfsck --check "$2";;
        vfat) fsck.vfat -n "$2";;
        exfat) fsck.exfat -n "$2";;
        nilfs2|squashfs|erofs) true;; # none of their own: mounting and comparing must do
    esac
}

one() { # KIND
    local begun; begun=$(now_ms)
    local kind=$1 codes option='' wrong=''
    case $kind in xfs) option='-o nouuid';; reiserfs|vfat|exfat|nilfs2|squashfs|erofs) wrong='may be EROFS';; esac
    # What floe reads whole lies on a small disk: reading is slow under emulation. XFS and btrfs want a large one.
    case $kind in xfs|btrfs|f2fs|ext*|vfat) source=$(disk source);; *) source=$(disk small);; esac
    make "$kind" >/tmp/made 2>&1 || { not_ok "$kind" "mkfs: $(tail -n 2 /tmp/made | tr '\n' ' ')"; return; }
    mount -t "$kind" "$source" /source 2>/tmp/made || { cannot_mount "$kind" "$(cat /tmp/made)"; return; }
    case $kind in squashfs|erofs) writer='';; *) fill /source 12000 2>/dev/null; writer /source 2>/dev/null;; esac
    sums /source > /tmp/before
    [ "$(wc -l < /tmp/before)" -gt 20 ] || { not_ok "$kind" "the source has $(wc -l < /tmp/before) files"; return; }
    ( floe dump --quiet --report /tmp/report /source; echo $? > /tmp/dumped ) 2>/tmp/dump.err |
        ( floe restore --quiet --overwrite - "$target"; echo $? > /tmp/restored ) 2>/tmp/restore.err
    codes="$(cat /tmp/dumped) $(cat /tmp/restored)"
    if ! write_ends_within /source 1000; then
        case $kind in squashfs|erofs) ;; *) not_ok "$kind" "not writable a second after the dump"; floe thaw /source;; esac
    fi
    if [ -n "$writer" ]; then
        # Where the read was under a read-only remount the writer may have ended with EROFS; not where it was frozen.
        kill -0 $writer 2>/dev/null || [ -n "$wrong" ] || not_ok "$kind writer" "it ended during the dump"
        kill $writer 2>/dev/null; wait $writer 2>/dev/null
    fi
    umount /source || { usleep 300000; umount /source; }
    if [ "$codes" != "0 0" ]; then
        not_ok "$kind" "dump and restore exited $codes: $(tail -n 2 /tmp/dump.err /tmp/restore.err | tr '\n' ' ')"; return; fi
    mount -t "$kind" $option "$target" /target 2>/tmp/made || { not_ok "$kind" "the copy does not mount: $(cat /tmp/made)"; return; }
    sums /target > /tmp/after
    umount /target
    cmp -s /tmp/before /tmp/after || { not_ok "$kind" "files differ: $(diff /tmp/before /tmp/after | head -n 4 | tr '\n' ' ')"; return; }
    check "$kind" "$target" >/tmp/checked 2>&1 || { not_ok "$kind" "its checker exits $?: $(tail -n 12 /tmp/checked | tr '\n' ' ')"; return; }
    ok "$kind ($((($(now_ms) - begun) / 1000)) s): $(wc -l < /tmp/before) files, $(tr -d '{}" ' < /tmp/report | tr ',' '\n' | grep -E '^(map|consistent|frozen_ms|read_bytes)' | tr '\n' ' ')"
    # What is left on the target would be in the way of the next kind's recognition.
    dd if=/dev/zero of="$target" bs=1M count=2 2>/dev/null; dd if=/dev/zero of="$source" bs=1M count=2 2>/dev/null
}

for kind in "$@"; do
    if has_fs "$kind"; then one "$kind"; else skip "$kind" "this kernel does not have it"; fi
    umount /source 2>/dev/null; umount /target 2>/dev/null
done
true
