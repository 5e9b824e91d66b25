# `clone --factory`: the kept factory snapshot and the rescue configuration go onto a new medium, not what runs; without a factory
# snapshot nothing is touched.
#: archs x86_64 aarch64 armv7
#: modules ext4
#: tools
#: disk root 64M mkfs.ext4 -q -F
#: disk config 16M mkfs.ext4 -q -F
#: disk store 64M mkfs.ext4 -q -F
#: disk blank 160M
#: timeout 200

mkdir -p /root1 /config /store /copy
mount -t ext4 "$(disk root)" /root1 && mount -t ext4 "$(disk config)" /config && mount -t ext4 "$(disk store)" /store || not_ok "the disks mount" "$(ls /dev/vd*)"
echo "store = /store" > /etc/floe.conf
blank=$(disk blank)
fill /root1 3000; echo factory > /root1/state; echo factory > /config/state; sync
expect "without a factory snapshot it is refused" 4 floe clone --factory /root1=root /config=config --media "$blank" --partition --swap-size 0
try "the factory snapshot is kept" floe create --factory root=/root1 config=/config
echo rescue > /config/state; sync
try "the rescue configuration is kept" floe create --rescue config=/config
sums /root1 > /tmp/sums1
echo running > /root1/state; echo running > /config/state; sync
try "they go onto a new medium" floe clone --factory /root1=root /config=config --media "$blank" --partition --swap-size 0 --verify
try "e2fsck finds its root clean" e2fsck -f -n "${blank}1"
mount -t ext4 "${blank}1" /copy; sums /copy > /tmp/sums2
cmp -s /tmp/sums1 /tmp/sums2 && ok "the root is the factory's" || not_ok "the root is the factory's" "$(diff /tmp/sums1 /tmp/sums2 | head -n 4 | tr '\n' ' ')"
umount /copy; mount -t ext4 "${blank}2" /copy
try "the configuration is the rescue snapshot's" grep -qx rescue /copy/state
umount /copy
expect "what is there now is not overwritten unasked" 4 floe clone --factory "/root1=${blank}1" "/config=${blank}2"
true
