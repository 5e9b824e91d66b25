# The README's recovery recipe, as written, by process 1 of a busybox initramfs: a board's root partition is restored from
# a gzip image on a second medium, mounted, and booted with switch_root. A damaged image first: nothing is booted from it.
#: select armv7
#: modules ext4
#: pid1
#: file README.md
#: disk medium 96M mkfs.ext4 -q -F
#: disk board 128M sgdisk -n 1:0:+8M -n 2:0:0
#: disk original 96M mkfs.ext4 -q -F
#: memory 256
#: timeout 300

failed() { not_ok "$@"; echo "FLOE-VM-END 0"; poweroff -f; sleep 60; }
# The block in front of which the README speaks of an initramfs; its lines stand four columns in.
awk '/^In an initramfs recovery script/ { on = 1; next } on && /^    / { sub(/^    /, ""); print; next } on && NF { exit }' /README.md > /recipe
grep -q 'floe restore' /recipe || failed "the README has the recipe" "no such block"
mkdir -p /mnt /newroot /original
# The board's root partition under the name that the README uses.
board=$(disk board); mknod /dev/mmcblk0p2 b $(tr : ' ' < "/sys/class/block/${board#/dev/}2/dev") || failed "the board's partition is there" "$board"
mount -t ext4 "$(disk medium)" /mnt; mount -t ext4 "$(disk original)" /original

mkdir -p /original/bin /original/sbin /original/proc /original/dev /original/tmp
cp /bin/busybox /original/bin/busybox; ln -s busybox /original/bin/sh
fill /original/files 6000
( cd /original && sums files > /tmp/sums && cp /tmp/sums sums.txt )
cat > /original/sbin/init <<'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc
echo "ok the restored root boots: process $$ from $($b awk '$2 == "/" && $3 == "ext4" { print $3 }' /proc/mounts)"
if ( cd / && $b sed 's,  \./,  files/,' sums.txt | $b md5sum -c >/tmp/checked 2>&1 ); then echo "ok $($b wc -l < /sums.txt) files are equal"
else echo "not ok files are equal: $($b grep -v OK /tmp/checked | $b head -n 3 | $b tr '\n' ' ')"; fi
echo "FLOE-VM-END 0"
$b sleep 0.2; $b poweroff -f
INIT
chmod 755 /original/sbin/init
try "the image is made from the running board" floe dump --quiet -o /mnt/root.img.gz /original || failed recovery "no image"
umount /original

# A damaged medium: the recipe ends in its shell, which finds no input here.
mv /mnt/root.img.gz /mnt/good; head -c $(( $(wc -c < /mnt/good) / 2 )) /mnt/good > /mnt/root.img.gz
sh /recipe </dev/null >/tmp/out 2>&1
if grep -q 'recovery failed' /tmp/out && ! grep -q newroot /proc/mounts && ! mount -t ext4 -o ro /dev/mmcblk0p2 /newroot 2>/dev/null; then
    ok "a truncated image is not booted: $(grep floe: /tmp/out | tail -n 1)"
else failed "a truncated image is not booted" "$(tail -n 3 /tmp/out | tr '\n' ' ')"; fi

mv /mnt/good /mnt/root.img.gz
. /recipe </dev/null
failed "the recipe boots the restored root" "it came back"
