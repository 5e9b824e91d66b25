# A Debian with systemd and OpenSSH, as debootstrap makes it (its identity is made there, too), is dumped golden while it is written to,
# and restored onto two disks. Each copy boots in a machine of its own, makes what it lacks by the script of docs/golden.md in a unit
# before ssh.service, and lets its owner in: another machine-id, other host keys.
#: archs x86_64
#: modules ext4
#: debian
#: disk original 400M
#: disk one 400M
#: disk two 400M
#: disk notes 300M mkfs.ext4 -q -F
#: file docs/golden.md
#: memory 512
#: cpus 2
#: timeout 900
#: pid1
#: cut 0
#: then two notes

failed() { not_ok "$@"; echo "FLOE-VM-END 0"; usleep 300000; poweroff -f; sleep 60; }
case $1 in again) copy=one;; next) copy=two;; *) copy='';; esac
mkdir -p /newroot /notes
mount -t ext4 "$(disk notes)" /notes || failed "the notes mount" "$(ls /dev/vd*)"
if [ -n "$copy" ]; then
    mount -t ext4 "$(disk $copy)" /newroot || failed "copy $copy mounts" "$(ls /dev/vd*)"
    echo $copy > /notes/copy
    mount --move /notes /newroot/notes
    exec switch_root /newroot /lib/systemd/systemd
fi

r=/newroot
mkdir -p /debian && mount -t squashfs -o ro "$(disk debian)" /debian || failed "Debian is there" "$(ls /dev/vd*)"
for m in dev proc; do mount --bind /$m /debian/$m; done
chroot /debian mkfs.ext4 -q -F "$(disk original)" >/tmp/why 2>&1 && mount -t ext4 "$(disk original)" $r || failed "its disk mounts" "$(cat /tmp/why)"
umount /debian/dev /debian/proc
cp -a /debian/. $r/ || failed "Debian fits its disk" "$(df -k $r | tail -n 1)"
mkdir -p $r/notes $r/root/.ssh; chmod 700 $r/root/.ssh; cp /guest.sh $r/usr/local/lib/
# What runs before sshd is what docs/golden.md says, word for word.
awk '/^\*\*First boot/ { on = 1 } on && /^```$/ { exit } sh { print } on && /^```sh$/ { sh = 1 }' /golden.md > $r/usr/local/sbin/first-boot
[ -s $r/usr/local/sbin/first-boot ] || failed "docs/golden.md has its script" "it is empty"
unit() { # NAME LINES: wanted by multi-user.target
    printf '%b' "$2" > $r/etc/systemd/system/$1.service
    ln -s ../$1.service $r/etc/systemd/system/multi-user.target.wants/$1.service
}
unit first-boot '[Unit]\nBefore=ssh.service dropbear.service\n[Service]\nType=oneshot\nExecStart=/bin/sh /usr/local/sbin/first-boot\n'
unit check '[Unit]\nAfter=ssh.service\n[Service]\nType=oneshot\nExecStart=/bin/sh /usr/local/sbin/check\n'
cat > $r/usr/local/sbin/check <<'CHECK'
exec < /dev/null > /dev/console 2>&1
. /usr/local/lib/guest.sh
copy=$(cat /notes/copy)
ok "copy $copy boots: $(cat /proc/1/comm), $(systemctl --failed --plain --no-legend | wc -l) units failed"
# The server has to prove the key in its file.
sed 's/^/127.0.0.1 /' /etc/ssh/ssh_host_*_key.pub > /tmp/known
n=0; until me=$(timeout 60 ssh -i /root/.ssh/id -o UserKnownHostsFile=/tmp/known -o StrictHostKeyChecking=yes root@127.0.0.1 cat /etc/machine-id 2> /tmp/why) || [ $n = 20 ]; do
    n=$((n + 1)); sleep 1; done
grep -qE '^[0-9a-f]{32}$' /etc/machine-id && [ "$me" = "$(cat /etc/machine-id)" ] && ok "its owner logs in on copy $copy, which is $me" ||
    not_ok "its owner logs in on copy $copy" "'$me': $(tail -n 3 /tmp/why | tr '\n' ' ')"
cmp -s /etc/machine-id /var/lib/dbus/machine-id && ok "D-Bus has the same id" || not_ok "D-Bus has the same id" "$(cat /var/lib/dbus/machine-id)"
cp /etc/machine-id /notes/$copy.id; cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub > /notes/$copy.key
for other in original one; do
    [ $other != $copy ] || break
    for what in id key; do
        [ -s /notes/$copy.$what ] && ! grep -qxFf /notes/$other.$what /notes/$copy.$what && ok "copy $copy has another $what than $other" || not_ok "copy $copy has another $what than $other" "$(cat /notes/$copy.$what)"
    done
done
[ "$(wc -l < /notes/$copy.key)" -ge 3 ] && ok "copy $copy has all kinds of host keys" || not_ok "copy $copy has all kinds of host keys" "$(ls -l /etc/ssh)"
grep -qx stays /etc/keepsake && ok "what is no identity came along" || not_ok "what is no identity came along" "$(cat /etc/keepsake)"
sync; umount /notes
[ $copy = two ] && echo "FLOE-VM-END 0" || echo FLOE-VM-NEXT
sleep 0.3; echo o > /proc/sysrq-trigger; sleep 60
CHECK

# ---- its identity, and the golden image ---------------------------------------------------------------------------
mount --bind /dev $r/dev; mount --bind /proc $r/proc
chroot $r ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id >/tmp/why 2>&1 || failed "the owner has a key" "$(tail -n 2 /tmp/why)"
cp $r/root/.ssh/id.pub $r/root/.ssh/authorized_keys
umount $r/dev $r/proc
cp $r/etc/machine-id /notes/original.id; cut -d' ' -f1,2 $r/etc/ssh/ssh_host_*_key.pub > /notes/original.key; echo stays > $r/etc/keepsake
[ -s /notes/original.id ] && [ -s /notes/original.key ] || failed "the original has an identity" "$(ls -l /notes)"
writer $r
floe dump --golden -o /notes/golden.img.gz $r > /tmp/dump 2>&1 || failed "it is dumped golden" "$(tail -n 2 /tmp/dump)"
ok "it is dumped golden while it is written to: $(tail -n 1 /tmp/dump)"
kill $writer
floe show --identity $r | grep -c . > /tmp/n; note "$(cat /tmp/n) lines of identity in the original"
for copy in one two; do try "restored as copy $copy" floe restore /notes/golden.img.gz "$(disk $copy)"; done
rm /notes/golden.img.gz
mount --bind /dev $r/dev
try "the checker finds copy one clean" chroot $r e2fsck -fn "$(disk one)"
umount $r/dev $r /notes; sync
echo FLOE-VM-CUT
sleep 60
