# `restore --grow` of ext4 (which needs a capability that containers lack), XFS and btrfs: as large as the device, and clean.
#: modules ext4 xfs btrfs
#: tools
#: disk source 300M
#: disk target 500M
#: timeout 240

size_of() { floe show --json "$1" | sed 's/.*"size_bytes":\([0-9]*\).*/\1/'; }

source=$(disk source) target=$(disk target)
mkdir -p /mnt/a /mnt/b
for fs in ext4 xfs btrfs; do
    case $fs in
        ext4) mkfs=mkfs.ext4; check="e2fsck -fn";;
        xfs) mkfs="mkfs.xfs -f"; check="xfs_repair -n";;
        btrfs) mkfs="mkfs.btrfs -f"; check="btrfs check";;
    esac
    $mkfs -q "$source" >/dev/null 2>&1 || { skip "$fs grows to the end of its device" "no mkfs.$fs"; continue; }
    mount -t $fs "$source" /mnt/a || { not_ok "$fs grows to the end of its device" mount; continue; }
    cp /bin/busybox /bin/floe /mnt/a/; sync
    floe dump -q -z none -o /tmp/image /mnt/a 2>/tmp/why || { not_ok "$fs grows to the end of its device" "dump: $(cat /tmp/why)"; umount /mnt/a; continue; }
    umount /mnt/a
    dd if=/dev/zero of="$source" bs=1M count=1 2>/dev/null
    if ! floe restore --overwrite --grow /tmp/image "$target" 2>/tmp/why; then
        not_ok "$fs grows to the end of its device" "restore: $(cat /tmp/why)"; rm -f /tmp/image; continue
    fi
    rm -f /tmp/image
    is=$(size_of "$target")
    [ "$is" -gt $((495 * 1048576)) ] || { not_ok "$fs grows to the end of its device" "is $is bytes: $(cat /tmp/why)"; continue; }
    $check "$target" >/tmp/check 2>&1 || { not_ok "$fs grows to the end of its device" "$(tail -3 /tmp/check)"; continue; }
    mount -t $fs "$target" /mnt/b && cmp /mnt/b/floe /bin/floe && cmp /mnt/b/busybox /bin/busybox && ok "$fs grows to the end of its device" || not_ok "$fs grows to the end of its device" files
    umount /mnt/b
done
