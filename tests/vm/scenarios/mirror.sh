# Clones onto what must not be written: members of a real md mirror and the mirror itself, what a dm device holds, and a source by
# another name through dm. The refusal of a mirror is worded exactly as promised. Then clones that work: from the mirror to a plain
# disk, from a dm device, and from FAT, which is remounted read-only meanwhile.
#: modules ext4 dm_mod raid1 vfat nls_ascii nls_cp437 nls_iso8859_1 nls_utf8
#: tools
#: disk one 64M
#: disk two 64M
#: disk three 96M
#: disk target 96M
#: disk fat 64M mkfs.vfat -F 32
#: memory 384
#: cpus 2
#: timeout 500

one=$(disk one) two=$(disk two) three=$(disk three) target=$(disk target) fat=$(disk fat)
export DM_DISABLE_UDEV=1
mkdir -p /source /data /target /run/lock

# refused NAME CODE TEXT PAIR…: this exit code, exactly this one line, and the disks in $watch as they were.
watch="$one $two $target"
# (Their first 8 MiB and their last: whatever a clone writes, it begins with those.)
state() { for at in $watch; do head -c 8388608 "$at"; tail -c 1048576 "$at"; done | md5sum; }
refused() {
    local name=$1 code=$2 text=$3 before found; shift 3
    before=$(state)
    floe clone --overwrite "$@" >/tmp/out 2>&1; found=$?
    if [ $found = "$code" ] && [ "$(cat /tmp/out)" = "floe: $text" ] && [ "$(state)" = "$before" ]; then ok "$name: $(cat /tmp/out)"
    else not_ok "$name" "exit $found: $(cat /tmp/out)"; fi
}

# copied NAME SOURCE DEVICE KIND PAIR: the files arrive, and the source can be written at once.
copied() {
    sums "$2" > /tmp/before
    floe clone --overwrite --verify "$5" >/tmp/out 2>&1 || { not_ok "$1" "$(tail -n 2 /tmp/out | tr '\n' ' ')"; floe thaw "$2"; return; }
    write_ends_within "$2" 1000 || { not_ok "$1: thawed" "a write takes longer than a second"; floe thaw "$2"; }
    mount -t "$4" -o ro "$3" /target; sums /target > /tmp/after; umount /target
    if ! cmp -s /tmp/before /tmp/after; then not_ok "$1" "files differ"
    elif ! tail -n 1 /tmp/out | grep -q "The following filesystems were archived: $2\$"; then not_ok "$1" "$(tail -n 1 /tmp/out)"
    else ok "$1"; fi
}

mdadm --create /dev/md0 --run --metadata=1.2 --level=1 --raid-devices=2 --assume-clean "$one" "$two" >/tmp/made 2>&1 || not_ok md "$(tail -n 2 /tmp/made | tr '\n' ' ')"
mkfs.ext4 -q -F "$three" && mount -t ext4 "$three" /data && fill /data 6000
mirror="a snapshot onto a mirror is not possible; nothing was written"
sleep 1 # for md's own writes to its superblocks
for member in "$one" "$two"; do
    refused "a member of an idle mirror" 4 "refused: $member is a member of md0 (raid1); $mirror" /data="$member"
done
refused "the mirror itself" 4 "refused: /dev/md0 is on the mirror md0 (raid1); $mirror" /data=/dev/md0
watch=$target # in use, md itself writes to its members now and then
mkfs.ext4 -q -F /dev/md0 && mount -t ext4 /dev/md0 /source && fill /source 6000
# The source lies on the mirror: still the member is what the refusal is about.
refused "a member of the source's own mirror" 4 "refused: $one is a member of md0 (raid1); $mirror" /source="$one"
refused "one bad target of two" 4 "refused: $two is a member of md0 (raid1); $mirror" /source="$target" /data="$two"
copied "from the mirror to a plain disk" /source "$target" ext4 /source="$target"
umount /source; mdadm --stop /dev/md0 >/dev/null 2>&1
watch="$one $two $target"

# dm: what lies below it is held, and on top of the source it is the source.
dd if=/dev/zero of="$target" bs=1M count=4 2>/dev/null
if echo "0 131072 linear $target 2048" | dmsetup create --noudevsync piece 2>/tmp/made && dmsetup mknodes; then
    refused "below a dm device" 4 "refused: $target is held by the device-mapper device piece; dmsetup remove it first; nothing was written" /data="$target"
    dmsetup remove --noudevsync piece
else not_ok dm "$(cat /tmp/made)"; fi
umount /data
if echo "0 196608 linear $three 0" | dmsetup create --noudevsync over 2>/tmp/made && dmsetup mknodes; then
    refused "the source through a dm device on top of it" 4 "refused: /dev/mapper/over is the source $three itself, or shares blocks with it; nothing was written" "$three"=/dev/mapper/over
    mount -t ext4 /dev/mapper/over /source
    refused "what the source's dm device lies on" 4 "refused: $three is the source /source itself, or shares blocks with it; nothing was written" /source="$three"
    copied "from a dm device to a plain disk" /source "$target" ext4 /source="$target"
    umount /source; dmsetup remove --noudevsync over
else not_ok dm "$(cat /tmp/made)"; fi

# FAT: read-only for the read, and back; two sources, of which only one freezes.
mount -t vfat "$fat" /source && fill /source 4000 2>/dev/null
copied "from FAT to a plain disk" /source "$one" vfat /source="$one"
if grep -q ' /source vfat rw' /proc/mounts; then ok "FAT is writable again"; else not_ok "FAT is writable again" "$(grep /source /proc/mounts)"; fi
mount -t ext4 "$three" /data
floe clone --overwrite /data="$target" /source="$one" >/tmp/out 2>&1; code=$?
if [ $code = 0 ] && tail -n 1 /tmp/out | grep -q "archived: /data /source"; then ok "ext4 and FAT together"; else not_ok "ext4 and FAT together" "exit $code: $(tail -n 2 /tmp/out | tr '\n' ' ')"; fi
umount /source /data
true
