# A running system with its root on ext4, a separate config filesystem and a FAT boot partition, all being written to, puts
# itself into a snapshot on another medium, and the snapshot onto a blank disk. The machine is switched off and starts again
# with that disk alone: the copy boots, its files are those of the original, and its filesystems agree about what came first.
#: select aarch64
#: modules ext4 vfat nls_ascii nls_cp437 nls_iso8859_1
#: tools
#: disk original 192M
#: disk blank 256M
#: disk medium 128M mkfs.ext4 -q -F
#: memory 384
#: cpus 2
#: timeout 500
#: pid1
#: then blank
#: then-append root=/dev/vda2

failed() { not_ok "$@"; echo "FLOE-VM-END 0"; poweroff -f; sleep 60; }
if [ "$1" = next ]; then
    # What any initramfs does; the disk that the snapshot came from is not in this machine.
    root=$(sed -n 's/.*root=\([^ ]*\).*/\1/p' /proc/cmdline)
    mkdir -p /newroot; mount -t ext4 "$root" /newroot || failed "the restored root mounts" "$root: $(ls /dev/vd*)"
    exec switch_root /newroot /sbin/init copy
fi

# ---- a board's disk is made, and its system started ----------------------------------------------------------------
disk=$(disk original)
sgdisk -Z "$disk" >/dev/null 2>&1
try "the board's table is made" sgdisk -n 1:2048:+24M -t 1:0700 -c 1:boot -n 2:0:+110M -t 2:8300 -c 2:root -n 3:0:+32M -t 3:8300 -c 3:config "$disk"
head -c 65536 /dev/urandom > /tmp/loader; dd if=/tmp/loader of="$disk" bs=512 seek=64 conv=notrunc 2>/dev/null
blockdev --rereadpt "$disk"; usleep 500000
mkfs.vfat -F 16 -n BOOT "${disk}1" >/dev/null; mkfs.ext4 -q -F -L root "${disk}2"; mkfs.ext4 -q -F -L config "${disk}3"
r=/newroot
mkdir -p $r; mount -t ext4 "${disk}2" $r || failed "the board's root mounts" "$(ls /dev/vd*)"
mkdir -p $r/bin $r/sbin $r/lib $r/usr/lib $r/etc $r/proc $r/sys $r/dev $r/tmp $r/run $r/boot $r/config $r/medium $r/tools
cp /bin/busybox /bin/floe $r/bin/; busybox --install -s $r/bin; cp /guest.sh $r/lib/guest.sh
cp -a /etc/passwd $r/etc/
# For the checkers, only until the machine is switched off.
for f in /tools/lib/* /tools/lib64/* /tools/usr/lib/*; do
    [ -e "$f" ] || continue; d=$r${f#/tools}; mkdir -p "${d%/*}"; [ -e "$d" ] || ln -s "$f" "$d"; done
fill $r/files 9000
mount -t ext4 "${disk}3" $r/config; fill $r/config/files 2000; umount $r/config
mount -t vfat "${disk}1" $r/boot; fill $r/boot/files 1500 2>/dev/null; umount $r/boot
cp /tmp/loader $r/loader

cat > $r/sbin/init <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin:/tools/usr/sbin:/tools/usr/bin:/tools/sbin:/tools/bin HOME=/ LC_ALL=C
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null; mount -t tmpfs tmp /tmp
. /lib/guest.sh
all() { ( cd /; for d in files config/files boot/files lib sbin; do find $d -type f; done | sort | xargs md5sum ); }
end() { echo "FLOE-VM-END 0"; usleep 300000; poweroff -f; sleep 60; }
disk=$(awk '$2 == "/" && $3 == "ext4" { print $1 }' /proc/mounts | tail -n 1); disk=${disk%2}
mount -t vfat "${disk}1" /boot && mount -t ext4 "${disk}3" /config || { not_ok "boot and config mount" "$(ls /dev/vd*)"; end; }

if [ "$1" = copy ]; then
    ok "the copy boots: process $$, root on ${disk}2, $(grep -c '^/dev/vd' /proc/mounts) filesystems of its disk"
    if (cd /; md5sum -c /sums.txt) > /tmp/checked 2>&1; then ok "$(wc -l < /sums.txt) files are equal"
    else not_ok "files are equal" "$(grep -v OK /tmp/checked | head -n 3 | tr '\n' ' ')"; fi
    # The counter went to root first, then to config: config is never ahead, and never more than one step behind.
    a=$(cat /count) b=$(cat /config/count); lag=$((1$a - 1$b))
    if [ $lag = 0 ] || [ $lag = 1 ]; then ok "both filesystems stand at one moment: counters $a and $b"
    else not_ok "both filesystems stand at one moment" "counters $a and $b"; fi
    dd if="$disk" bs=512 skip=64 count=128 2>/dev/null | cmp -s - /loader && ok "the bootloader's gap is the same" || not_ok "the bootloader's gap is the same" "it differs"
    try "the copy can be written to" write_ends_within / 2000
    end
fi

mount -t ext4 "$(disk medium)" /medium; all > /sums.txt; sync
writer /; w1=$writer; writer /config; w2=$writer
( i=0; printf 00000000 > /count; printf 00000000 > /config/count
  while :; do i=$((i + 1)); printf %08d $i 1<> /count; printf %08d $i 1<> /config/count; done ) & w3=$!
( while :; do echo busy > /boot/busy; sync -f /boot; usleep 50000; done ) 2>/dev/null & w4=$!
sleep 2
try "the running system is put into a snapshot" floe create root=/ config=/config boot=/boot --disk "$disk" -o /medium/ --report /tmp/report
note "$(cat /tmp/report 2>/dev/null)"
for d in / /config /boot; do try "$d is writable again" write_ends_within $d 2000; done
kill $w1 $w2 $w3 $w4; wait $w1 $w2 $w3 $w4 2>/dev/null
zip=$(ls /medium/*.zip)
try "the snapshot is good" floe verify "$zip"
expect "it does not go onto the disk that runs" 4 floe restore "$zip" --disk "$disk" --overwrite
blank=$(disk blank)
try "it goes onto the blank disk" floe restore "$zip" --disk "$blank" --verify
usleep 500000
sgdisk -v "$blank" > /tmp/verify 2>&1
if grep -q 'No problems found' /tmp/verify; then ok "sgdisk finds no problem in the copy's table"; else not_ok "sgdisk finds no problem in the copy's table" "$(tail -n 4 /tmp/verify | tr '\n' ' ')"; fi
try "e2fsck finds the copy's root clean" e2fsck -f -n "${blank}2"
try "e2fsck finds the copy's config clean" e2fsck -f -n "${blank}3"
try "fsck.vfat finds the copy's boot clean" fsck.vfat -n "${blank}1"
umount /medium; sync
echo FLOE-VM-NEXT
usleep 300000; poweroff -f; sleep 60
INIT
chmod 755 $r/sbin/init
sync
mount --move /tools $r/tools
exec switch_root $r /sbin/init original
