# A whole disk with GPT, a FAT boot partition, an ext4 root and swap, both mounted and the root being written to, is
# dumped as one image onto a larger disk: table, boot gap and files come along, and the backup GPT moves to the end.
#: modules ext4 vfat nls_ascii nls_cp437 nls_iso8859_1
#: tools
#: disk source 192M
#: disk target 256M
#: memory 384
#: cpus 2
#: timeout 500

source=$(disk source) target=$(disk target)
mkdir -p /root1 /boot1 /copy
sgdisk -Z "$source" >/dev/null 2>&1
try "the table is made" sgdisk -n 1:2048:+40M -t 1:0700 -c 1:boot -n 2:0:+110M -t 2:8300 -c 2:root_a -n 3:0:0 -t 3:8200 -c 3:swap "$source"
# A bootloader in the gap between table and first partition.
head -c 65536 /dev/urandom > /tmp/loader; dd if=/tmp/loader of="$source" bs=512 seek=64 conv=notrunc 2>/dev/null
blockdev --rereadpt "$source"; usleep 500000
mkfs.vfat -F 16 -n BOOT "${source}1" >/dev/null; mkfs.ext4 -q -F -L root "${source}2"; mkswap -L swap "${source}3" >/dev/null
mount -t vfat "${source}1" /boot1 && mount -t ext4 "${source}2" /root1 || { not_ok "the partitions mount" "$(ls /dev/vd*)"; exit 0; }
fill /boot1 3000 2>/dev/null; fill /root1 12000; writer /root1
( cd /; sums /boot1; sums /root1 ) > /tmp/before
swapon "${source}3" 2>/dev/null
try "swap on the disk is in use" grep -q "^${source}3 " /proc/swaps

( floe dump --quiet --report /tmp/report "$source"; echo $? > /tmp/dumped ) 2>/tmp/dump.err |
    ( floe restore --quiet --overwrite - "$target"; echo $? > /tmp/restored ) 2>/tmp/restore.err
codes="$(cat /tmp/dumped) $(cat /tmp/restored)"
if [ "$codes" = "0 0" ]; then ok "dump and restore of the disk exit 0"; else not_ok "dump and restore of the disk exit 0" "$codes: $(tail -n 2 /tmp/dump.err /tmp/restore.err | tr '\n' ' ')"; fi
note "$(cat /tmp/report 2>/dev/null)"
try "boot is writable again" write_ends_within /boot1 1000
try "root is writable again" write_ends_within /root1 1000
kill $writer; wait $writer 2>/dev/null
swapoff "${source}3" 2>/dev/null; umount /boot1; umount /root1

sgdisk -v "$target" > /tmp/verify 2>&1
if grep -q 'No problems found' /tmp/verify; then ok "sgdisk finds no problem in the copy's table"; else not_ok "sgdisk finds no problem in the copy's table" "$(grep -i -m3 problem /tmp/verify | tr '\n' ' ')"; fi
sgdisk -p "$source" | sed -n '/^Number/,$p' > /tmp/parts1; sgdisk -p "$target" | sed -n '/^Number/,$p' > /tmp/parts2
try "the partitions are the same" cmp /tmp/parts1 /tmp/parts2
dd if="$target" bs=512 skip=64 count=128 2>/dev/null | cmp - /tmp/loader && ok "the bootloader's gap is the same" || not_ok "the bootloader's gap is the same" "it differs"
blockdev --rereadpt "$target"; usleep 500000
mount -t ext4 "${target}2" /copy && sums /copy > /tmp/root2; umount /copy
mount -t vfat "${target}1" /copy && sums /copy > /tmp/boot2; umount /copy
cat /tmp/boot2 /tmp/root2 > /tmp/after
if cmp -s /tmp/before /tmp/after; then ok "$(wc -l < /tmp/before) files are equal"; else not_ok "files are equal" "$(diff /tmp/before /tmp/after | head -n 4 | tr '\n' ' ')"; fi
try "e2fsck finds the copy clean" e2fsck -f -n "${target}2"
try "fsck.vfat finds the copy clean" fsck.vfat -n "${target}1"
try "the copy's swap is swap" swapon "${target}3"
true
