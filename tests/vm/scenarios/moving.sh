# Sources that change below a freeze are refused and say why: a mirror that is being rebuilt, a dm cache in writeback mode.
# What does not change is dumped: the same mirror when it is done, the same cache in writethrough mode, and a LUKS member
# with the filesystem of the open volume frozen.
#: modules ext4 dm_mod dm_crypt dm_cache dm_cache_smq raid1
#: optional xts aes_generic aes_arm64 sha256_generic algif_skcipher cryptd ecb cbc essiv
#: tools
#: disk one 96M
#: disk two 96M
#: memory 384
#: timeout 400

one=$(disk one) two=$(disk two)
export DM_DISABLE_UDEV=1
mkdir -p /source /run/cryptsetup /run/lock
report() { # NAME EXPECTED-CODE WORD SOURCE
    floe dump --quiet "$4" >/tmp/image 2>/tmp/err; code=$?
    if [ $code = "$2" ] && { [ -z "$3" ] || grep -q "$3" /tmp/err; }; then ok "$1: exit $code $(cat /tmp/err)"
    else not_ok "$1" "exit $code, expected $2: $(cat /tmp/err)"; fi
}

echo 200 > /proc/sys/dev/raid/speed_limit_max; echo 100 > /proc/sys/dev/raid/speed_limit_min
if mdadm --create /dev/md0 --run --metadata=1.2 --level=1 --raid-devices=2 "$one" "$two" >/tmp/made 2>&1; then
    mkfs.ext4 -q -F /dev/md0 && mount -t ext4 /dev/md0 /source; fill /source 4000
    report "a mirror that is being rebuilt" 4 resync /source
    report "its member" 4 resync "$one"
    echo 2000000 > /proc/sys/dev/raid/speed_limit_max; echo 1000000 > /proc/sys/dev/raid/speed_limit_min
    n=0; while ! grep -q idle /sys/block/md0/md/sync_action && [ $n -lt 60 ]; do sleep 1; n=$((n + 1)); done
    report "the mirror when it is done" 0 '' /source
    report "a member below the mounted mirror" 0 '' "$one"
    try "it is writable again" write_ends_within /source 1000
    umount /source; mdadm --stop /dev/md0 >/dev/null 2>&1; mdadm --zero-superblock "$one" "$two" 2>/dev/null
else not_ok md "$(tail -n 2 /tmp/made | tr '\n' ' ')"; fi

for mode in writeback writethrough; do
    dd if=/dev/zero of="$two" bs=1M count=8 2>/dev/null
    dmsetup create --noudevsync meta --table "0 8192 linear $two 0" && dmsetup create --noudevsync data --table "0 65536 linear $two 8192"
    dmsetup mknodes
    if dmsetup create --noudevsync cached --table "0 163840 cache /dev/mapper/meta /dev/mapper/data $one 128 1 $mode smq 0" 2>/tmp/made && dmsetup mknodes; then
        mkfs.ext4 -q -F /dev/mapper/cached && mount -t ext4 /dev/mapper/cached /source; fill /source 4000
        if [ $mode = writeback ]; then
            report "a cache in writeback mode" 4 'cached is a cache' /source
            report "what it caches" 4 'cached is a cache' "$one"
        else report "a cache in writethrough mode" 0 '' /source; fi
        umount /source; dmsetup remove --noudevsync cached
    else not_ok "a cache in $mode mode" "$(cat /tmp/made)"; fi
    dmsetup remove --noudevsync data; dmsetup remove --noudevsync meta
done

dd if=/dev/zero of="$one" bs=1M count=20 2>/dev/null
if printf secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$one" - 2>/tmp/made &&
    printf secret | cryptsetup open --key-file - "$one" vault 2>>/tmp/made && { dmsetup mknodes; true; }; then
    mkfs.ext4 -q -F /dev/mapper/vault && mount -t ext4 /dev/mapper/vault /source; fill /source 4000
    report "a LUKS member below a mounted volume" 0 '' "$one"
    try "it is writable again" write_ends_within /source 1000
    umount /source
    report "a LUKS member below an unused volume" 0 '' "$one"
    cryptsetup close vault
else skip luks "$(tail -n 2 /tmp/made | tr '\n' ' ')"; fi
true
