# A busybox system with dropbear is dumped golden while it is written to, and restored onto two disks. Each copy boots in a machine of
# its own, makes what it lacks by the script of docs/golden.md, and lets its owner in: another machine-id, another host key.
#: archs x86_64
#: modules ext4
#: debian
#: disk original 64M
#: disk one 64M
#: disk two 64M
#: disk notes 64M mkfs.ext4 -q -F
#: file docs/golden.md
#: timeout 300
#: pid1
#: cut 0
#: then two notes

failed() { not_ok "$@"; echo "FLOE-VM-END 0"; usleep 300000; poweroff -f; sleep 60; }
case $1 in again) copy=one;; next) copy=two;; *) copy='';; esac
mkdir -p /newroot /notes
mount -t ext4 "$(disk notes)" /notes || failed "the notes mount" "$(ls /dev/vd*)"
if [ -n "$copy" ]; then
    mount -t ext4 "$(disk $copy)" /newroot || failed "copy $copy mounts" "$(ls /dev/vd*)"
    mount --move /notes /newroot/notes
    exec switch_root /newroot /sbin/init $copy
fi

# ---- a board's system, with dropbear's programs and what they are linked with ---------------------------------------
r=/newroot
mkdir -p /debian && mount -t squashfs -o ro "$(disk debian)" /debian || failed "Debian's programs are there" "$(ls /dev/vd*)"
for m in dev proc; do mount --bind /$m /debian/$m; done
chroot /debian /sbin/mkfs.ext4 -q -F "$(disk original)" >/tmp/why 2>&1 && mount -t ext4 "$(disk original)" $r || failed "the board's disk mounts" "$(cat /tmp/why)"
for d in bin sbin lib etc/dropbear etc/init.d proc sys dev/pts tmp run root/.ssh notes var/lib/dbus var/lib/misc; do mkdir -p $r/$d; done
cp /bin/busybox /bin/floe $r/bin/; busybox --install -s $r/bin; cp /guest.sh $r/lib/guest.sh
cp /debian/usr/sbin/dropbear /debian/usr/bin/dbclient /debian/usr/bin/dropbearkey $r/bin/
for f in $(chroot /debian ldd /usr/sbin/dropbear /usr/bin/dbclient | sed -n 's/.*[ \t]\(\/[^ :]*\) (0x.*/\1/p' | sort -u); do
    mkdir -p "$r${f%/*}"; chroot /debian cat "$f" > "$r$f"; chmod 755 "$r$f"; done
printf 'root:x:0:0:root:/root:/bin/sh\n' > $r/etc/passwd; printf 'root:x:0:\n' > $r/etc/group; echo /bin/sh > $r/etc/shells
printf 'root:*:19000:0:99999:7:::\n' > $r/etc/shadow; chmod 600 $r/etc/shadow; chmod 700 $r/root $r/root/.ssh
# What runs before dropbear is what docs/golden.md says, word for word.
awk '/^\*\*First boot/ { on = 1 } on && /^```$/ { exit } sh { print } on && /^```sh$/ { sh = 1 }' /golden.md > $r/etc/init.d/S10first-boot
[ -s $r/etc/init.d/S10first-boot ] || failed "docs/golden.md has its script" "it is empty"
chmod 755 $r/etc/init.d/S10first-boot
cat > $r/sbin/init <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin HOME=/root LC_ALL=C
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null; mkdir -p /dev/pts; mount -t devpts pts /dev/pts; mount -t tmpfs tmp /tmp
. /lib/guest.sh
ok "copy $1 boots: process $$, root on $(awk '$2 == "/" && $3 == "ext4" { print $1 }' /proc/mounts | tail -n 1)"
sh /etc/init.d/S10first-boot || not_ok "the script of docs/golden.md runs" "exit $?"
ifconfig lo 127.0.0.1 up
dropbear -R -E -p 127.0.0.1:22 2> /tmp/dropbear
me=$(timeout 60 dbclient -y -i /root/.ssh/id root@127.0.0.1 'cat /etc/machine-id' 2> /tmp/why)
grep -qE '^[0-9a-f]{32}$' /etc/machine-id && [ "$me" = "$(cat /etc/machine-id)" ] && ok "its owner logs in on copy $1, which is $me" ||
    not_ok "its owner logs in on copy $1" "'$me': $(cat /tmp/why /tmp/dropbear | tail -n 3 | tr '\n' ' ')"
cmp -s /etc/machine-id /var/lib/dbus/machine-id && ok "D-Bus has the same id" || not_ok "D-Bus has the same id" "$(cat /var/lib/dbus/machine-id)"
cp /etc/machine-id /notes/$1.id
for key in /etc/dropbear/*_key; do dropbearkey -y -f $key | grep -E '^(ssh|ecdsa)-' | cut -d' ' -f1,2; done > /notes/$1.key
for other in original one; do
    [ $other != $1 ] || break
    for what in id key; do
        [ -s /notes/$1.$what ] && ! grep -qxFf /notes/$other.$what /notes/$1.$what && ok "copy $1 has another $what than $other" || not_ok "copy $1 has another $what than $other" "$(cat /notes/$1.$what)"
    done
done
grep -qx stays /etc/keepsake && ok "what is no identity came along" || not_ok "what is no identity came along" "$(cat /etc/keepsake)"
sync; umount /notes
[ $1 = two ] && echo "FLOE-VM-END 0" || echo FLOE-VM-NEXT
usleep 300000; poweroff -f; sleep 60
INIT
chmod 755 $r/sbin/init

# ---- its identity, and the golden image ---------------------------------------------------------------------------
mount --bind /dev $r/dev; mount --bind /proc $r/proc
chroot $r dropbearkey -t ed25519 -f /root/.ssh/id >/tmp/why 2>&1 || failed "the owner has a key" "$(tail -n 2 /tmp/why)"
chroot $r dropbearkey -y -f /root/.ssh/id | grep '^ssh-' > $r/root/.ssh/authorized_keys
for t in ecdsa ed25519; do chroot $r dropbearkey -t $t -f /etc/dropbear/dropbear_${t}_host_key >/tmp/why 2>&1; done
for t in ecdsa ed25519; do chroot $r dropbearkey -y -f /etc/dropbear/dropbear_${t}_host_key; done | grep -E '^(ssh|ecdsa)-' | cut -d' ' -f1,2 > /notes/original.key
: > $r/etc/machine-id; chroot $r sh /etc/init.d/S10first-boot
cp $r/etc/machine-id /notes/original.id; head -c 512 /dev/urandom > $r/var/lib/misc/random-seed; echo stays > $r/etc/keepsake
umount $r/dev $r/proc
[ -s /notes/original.id ] && [ -s /notes/original.key ] || failed "the original has an identity" "$(ls -l /notes)"
writer $r
floe dump --golden -o /notes/golden.img.gz $r > /tmp/dump 2>&1 || failed "it is dumped golden" "$(tail -n 2 /tmp/dump)"
ok "it is dumped golden while it is written to: $(tail -n 1 /tmp/dump)"
kill $writer
for copy in one two; do try "restored as copy $copy" floe restore /notes/golden.img.gz "$(disk $copy)"; done
try "the checker finds copy one clean" chroot /debian e2fsck -fn "$(disk one)"
rm /notes/golden.img.gz; umount $r /notes; sync
echo FLOE-VM-CUT
sleep 60
