# A small system boots from its disk (on x86_64 through its own boot loader: firmware, boot code, syslinux), and clones itself,
# running and written to, onto another disk that is laid out anew as the primary. It is switched off, its disk is taken out, and the
# machine starts from the other one alone: boot code, identifiers, files, and the moment at which both filesystems stand.
#: archs x86_64 aarch64 armv7
#: modules ext4 vfat nls_ascii nls_cp437 nls_iso8859_1
#: tools
#: disk original 208M
#: disk blank 256M
#: loader original
#: memory 512
#: cpus 2
#: timeout 400
#: pid1
#: then blank
#: then-append root=/dev/vda2

failed() { not_ok "$@"; echo "FLOE-VM-END 0"; usleep 300000; poweroff -f; sleep 60; }
disk=$(disk original)
if [ -z "$disk" ]; then
    # What any initramfs does; the original is not in this machine.
    root=$(sed -n 's/.*root=\([^ ]*\).*/\1/p' /proc/cmdline)
    mkdir -p /newroot; mount -t ext4 "$root" /newroot || failed "the cloned root mounts" "$root: $(ls /dev/vd*)"
    exec switch_root /newroot /sbin/init copy
fi

# ---- the board's system is made, where a boot loader has not done so, and started ------------------------------------
if [ ! -e "${disk}1" ]; then
    printf 'label: dos\nlabel-id: 0xf10ef10e\nstart=1MiB, size=64MiB, type=c, bootable\nsize=96MiB, type=83\nsize=32MiB, type=83\n' |
        sfdisk -q "$disk" >/tmp/sfdisk 2>&1 || failed "the board's table is made" "$(tail -n 2 /tmp/sfdisk)"
    blockdev --rereadpt "$disk"; usleep 500000
    mkfs.vfat -F 16 -n BOOT "${disk}1" >/dev/null
else ok "the firmware and the disk's own boot loader started this system"; fi
head -c 65536 /dev/urandom > /tmp/loader; dd if=/tmp/loader of="$disk" bs=512 seek=64 conv=notrunc 2>/dev/null
mkfs.ext4 -q -F -L root "${disk}2"; mkfs.ext4 -q -F -L config "${disk}3"
r=/newroot
mkdir -p $r; mount -t ext4 "${disk}2" $r || failed "the board's root mounts" "$(ls /dev/vd*)"
mkdir -p $r/bin $r/sbin $r/lib $r/usr/lib $r/etc $r/proc $r/sys $r/dev $r/tmp $r/run $r/boot $r/config $r/tools
cp /bin/busybox /bin/floe $r/bin/; busybox --install -s $r/bin; cp /guest.sh $r/lib/guest.sh; cp -a /etc/passwd $r/etc/
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
all() { ( cd /; for d in files config/files boot lib sbin; do find $d -type f; done | grep -v busy | sort | xargs md5sum ); }
end() { echo "FLOE-VM-END 0"; usleep 300000; poweroff -f; sleep 60; }
disk=$(awk '$2 == "/" && $3 == "ext4" { print $1 }' /proc/mounts | tail -n 1); disk=${disk%2}
mount -t vfat "${disk}1" /boot && mount -t ext4 "${disk}3" /config || { not_ok "boot and config mount" "$(ls /dev/vd*)"; end; }

if [ "$1" = copy ]; then
    ok "the copy boots: process $$, root on ${disk}2, $(grep -c '^/dev/vd' /proc/mounts) filesystems of its disk"
    if (cd /; md5sum -c /config/sums.txt) > /tmp/checked 2>&1; then ok "$(wc -l < /config/sums.txt) files are equal"
    else not_ok "files are equal" "$(grep -v OK /tmp/checked | head -n 3 | tr '\n' ' ')"; fi
    # The counter went to root first, then to config: config is never ahead, and never more than one step behind.
    a=$(cat /count) b=$(cat /config/count); lag=$((1$a - 1$b))
    if [ $lag = 0 ] || [ $lag = 1 ]; then ok "both filesystems stand at one moment: counters $a and $b"
    else not_ok "both filesystems stand at one moment" "counters $a and $b"; fi
    dd if="$disk" bs=512 skip=64 count=128 2>/dev/null | cmp -s - /loader && ok "the boot loader's gap is the same" || not_ok "the boot loader's gap is the same" "it differs"
    id=$(dd if="$disk" bs=1 skip=440 count=4 2>/dev/null | hexdump -v -e '/1 "%02x"')
    [ "$id" = 0ef10ef1 ] && ok "the disk's identifier is the original's" || not_ok "the disk's identifier is the original's" "$id"
    try "the copy can be written to" write_ends_within / 2000
    end
fi

all > /config/sums.txt; sync
writer /; w1=$writer; writer /config; w2=$writer
( i=0; printf 00000000 > /count; printf 00000000 > /config/count
  while :; do i=$((i + 1)); printf %08d $i 1<> /count; printf %08d $i 1<> /config/count; done ) & w3=$!
( while :; do echo busy > /boot/busy; sync -f /boot; usleep 50000; done ) 2>/dev/null & w4=$!
sleep 1
blank=$(disk blank)
expect "the running disk is no medium" 4 floe clone /=root --media "$disk" --partition --overwrite --swap-size 0
expect "--media disk names what it cannot choose from" 4 floe clone /=root --media disk --partition --swap-size 0
grep -q 'there are several' /tmp/try.out && ok "it lists the disks: $(cat /tmp/try.out)" || not_ok "it lists the disks" "$(cat /tmp/try.out)"
if floe clone /=root /config=config /boot=boot --media "$blank" --partition --as-primary --swap-size 8 --verify --report /tmp/report > /tmp/clone 2>&1
then ok "the running system is cloned: $(tail -n 1 /tmp/clone)"
else not_ok "the running system is cloned" "$(tail -n 3 /tmp/clone | tr '\n' ' ')"; end; fi
note "$(cat /tmp/report 2>/dev/null)"
for d in / /config /boot; do try "$d is writable again" write_ends_within $d 2000; done
kill $w1 $w2 $w3 $w4; wait $w1 $w2 $w3 $w4 2>/dev/null
sfdisk -d "$disk" | sed -n 's/.*type=/type=/p' > /tmp/types1; sfdisk -d "$blank" | sed -n 's/.*type=/type=/p' | head -n 3 > /tmp/types2
try "types and marks of the partitions are the same" cmp /tmp/types1 /tmp/types2
try "sfdisk finds no problem in the medium's table" sfdisk --verify "$blank"
try "the kernel shows the medium's partitions" test -b "${blank}4"
try "e2fsck finds the copy's root clean" e2fsck -f -n "${blank}2"
try "e2fsck finds the copy's config clean" e2fsck -f -n "${blank}3"
try "fsck.vfat finds the copy's boot clean" fsck.vfat -n "${blank}1"
try "its swap is swap" swapon "${blank}4"; swapoff "${blank}4" 2>/dev/null
floe show "${blank}2" > /tmp/shown 2>&1; note "$(tr '\n' ' ' < /tmp/shown)"
sync
echo FLOE-VM-NEXT
usleep 300000; poweroff -f; sleep 60
INIT
chmod 755 $r/sbin/init
sync
mount --move /tools $r/tools
exec switch_root $r /sbin/init original
