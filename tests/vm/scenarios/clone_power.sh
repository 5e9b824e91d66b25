# The power is cut in the middle of a clone, ten times: after each, the original is as it was, and the medium shows neither a
# partition table nor a filesystem, so that the same command goes on without --overwrite; the last one is left to end, and is right.
#: archs x86_64 aarch64 armv7
#: modules ext4
#: tools
#: disk a 96M mkfs.ext4 -q -F
#: disk b 160M
#: slow b 6000000
#: cut 0.5-6
#: cuts 10
#: memory 384
#: timeout 120

a=$(disk a) b=$(disk b) number=0
[ "$1" = again ] && number=$2
mkdir -p /mnt/a /mnt/b
if [ $number = 0 ]; then
    mount -t ext4 "$a" /mnt/a || { not_ok "the original mounts" "$a"; exit 0; }
    fill /mnt/a/files 50000; sums /mnt/a/files > /mnt/a/sums; sync
else
    mount -t ext4 "$a" /mnt/a || { not_ok "the original mounts after power cut $number" "$a"; exit 0; }
    if (cd /mnt/a/files; md5sum -c ../sums) > /tmp/checked 2>&1; then good=1
    else not_ok "the original is as it was after power cut $number" "$(grep -v OK /tmp/checked | head -n 3 | tr '\n' ' ')"; fi
    zeros=$(dd if="$b" bs=1M count=2 2>/dev/null | tr -d '\0' | wc -c)
    kinds=$(floe show --json "$b" 2>&1 | grep -c '"filesystem":"\(gpt\|mbr\|ext4\)"')
    if [ -e "${b}1" ] || [ "$kinds" != 0 ]; then
        not_ok "the medium does not look valid after power cut $number" "$(ls "$b"*) $(floe show "$b" 2>&1 | tr '\n' ' ')"
    elif [ "$good" = 1 ]; then ok "power cut $number: the original is as it was, the medium shows nothing ($zeros bytes at its beginning)"; fi
fi
writer /mnt/a
if [ "$number" -lt 10 ]; then
    echo FLOE-VM-CUT
    floe clone /mnt/a=root --media "$b" --partition --swap-size 0 --max-freeze 90s >/tmp/clone 2>&1
    not_ok "the power goes before clone $((number + 1)) ends" "it ended with $?: $(tail -n 2 /tmp/clone | tr '\n' ' ')"
    sleep 60; exit 0
fi
try "the last clone repairs the medium" floe clone /mnt/a=root --media "$b" --partition --swap-size 0 --max-freeze 90s --verify
kill $writer; wait $writer 2>/dev/null
try "the medium has its partition" test -b "${b}1"
try "e2fsck finds it clean" e2fsck -f -n "${b}1"
mount -t ext4 "${b}1" /mnt/b
(cd /mnt/b/files; md5sum -c ../sums) > /tmp/checked 2>&1 && ok "$(wc -l < /mnt/b/sums) files are equal" ||
    not_ok "files are equal" "$(grep -v OK /tmp/checked | head -n 3 | tr '\n' ' ')"
umount /mnt/b
true
