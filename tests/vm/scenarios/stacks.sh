# What lies between a filesystem and its disk on real systems: a dm device, a LUKS container, an md mirror. Dumped by
# mount point, restored to a plain disk; and the mirror refused as a target's member.
# Arguments: dm luks md luksmd (default: all). The last: an array on a container writes its superblocks while the container is dumped.
#: modules ext4 dm_mod dm_crypt raid1
#: optional xts aes_generic aes_arm64 sha256_generic algif_skcipher cryptd ecb cbc essiv
#: tools
#: disk one 96M
#: disk two 96M
#: disk target 128M
#: memory 384
#: cpus 2
#: timeout 500

[ $# -gt 0 ] || set -- dm luks md luksmd
one=$(disk one) two=$(disk two) target=$(disk target)
export DM_DISABLE_UDEV=1
mkdir -p /source /target /run/cryptsetup /run/lock

one_stack() { # NAME DEVICE
    local codes
    mkfs.ext4 -q -F "$2" && mount -t ext4 "$2" /source || { not_ok "$1" "no filesystem on $2"; return; }
    fill /source 8000; writer /source; sums /source > /tmp/before
    ( floe dump --quiet --report /tmp/report /source; echo $? > /tmp/dumped ) 2>/tmp/dump.err |
        ( floe restore --quiet --overwrite - "$target"; echo $? > /tmp/restored ) 2>/tmp/restore.err
    codes="$(cat /tmp/dumped) $(cat /tmp/restored)"
    write_ends_within /source 1000 || { not_ok "$1: thawed" "a write takes longer than a second"; floe thaw /source; }
    kill $writer; wait $writer 2>/dev/null
    [ "$codes" = "0 0" ] || { not_ok "$1" "dump and restore exited $codes: $(tail -n 2 /tmp/dump.err /tmp/restore.err | tr '\n' ' ')"; umount /source; return; }
    mount -t ext4 "$target" /target; sums /target > /tmp/after; umount /target
    if ! cmp -s /tmp/before /tmp/after; then not_ok "$1" "files differ"
    elif ! e2fsck -f -n "$target" >/tmp/checked 2>&1; then not_ok "$1" "$(tail -n 3 /tmp/checked | tr '\n' ' ')"
    else ok "$1: dumped, restored, equal"; fi
    umount /source
}

for stack in "$@"; do
    dd if=/dev/zero of="$one" bs=1M count=20 2>/dev/null; dd if=/dev/zero of="$two" bs=1M count=20 2>/dev/null
    case $stack in
        dm) if echo "0 163840 linear $one 2048" | dmsetup create --noudevsync piece 2>/tmp/made && dmsetup mknodes; then
                one_stack "a dm device" /dev/mapper/piece; dmsetup remove --noudevsync piece
            else not_ok dm "$(cat /tmp/made)"; fi;;
        luks) if printf secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$one" - 2>/tmp/made &&
                printf secret | cryptsetup open --key-file - "$one" vault 2>>/tmp/made && { dmsetup mknodes; true; }; then
                one_stack "a LUKS container" /dev/mapper/vault; cryptsetup close vault
            else skip luks "$(tail -n 2 /tmp/made | tr '\n' ' ')"; fi;;
        md) if mdadm --create /dev/md0 --run --metadata=1.2 --level=1 --raid-devices=2 --assume-clean "$one" "$two" >/tmp/made 2>&1; then
                one_stack "an md mirror" /dev/md0
                head -c 1048576 /dev/zero > /tmp/raw
                floe restore --overwrite --any-content /tmp/raw "$one" >/tmp/out 2>&1; code=$?
                if [ $code = 4 ] && grep -q md0 /tmp/out; then ok "a mirror's member is refused as a target: $(cat /tmp/out)"; else not_ok "a mirror's member is refused as a target" "exit $code: $(cat /tmp/out)"; fi
                mdadm --stop /dev/md0 >/dev/null 2>&1
            else not_ok md "$(tail -n 2 /tmp/made | tr '\n' ' ')"; fi;;
        luksmd) if printf secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$one" - 2>/tmp/made &&
                printf secret | cryptsetup open --key-file - "$one" vault 2>>/tmp/made && { dmsetup mknodes; true; } &&
                mdadm --create /dev/md0 --run --metadata=1.2 --level=1 --raid-devices=2 --assume-clean /dev/mapper/vault "$two" >>/tmp/made 2>&1 &&
                mkfs.ext4 -q -F /dev/md0 && mount -t ext4 /dev/md0 /source; then
                # Once nothing is written the array is marked as clean, after this many seconds: in the window of one or the other.
                echo 0.01 > /sys/block/md0/md/safe_mode_delay
                failed=0
                for round in 1 2 3 4 5; do
                    head -c 1000000 /dev/urandom > /source/$round
                    floe dump --quiet "$one" -o /tmp/one.gz >/tmp/out 2>&1 || { failed=$((failed + 1)); note "$(tail -n 1 /tmp/out)"; }
                done
                if [ $failed = 0 ]; then ok "a container below an array is dumped"; else not_ok "a container below an array is dumped" "$failed of 5 failed"; fi
                umount /source; mdadm --stop /dev/md0 >/dev/null 2>&1; cryptsetup close vault
            else skip luksmd "$(tail -n 2 /tmp/made | tr '\n' ' ')"; fi;;
    esac
done
true
