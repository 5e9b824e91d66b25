# The power is cut in the middle of every verb that writes, in turn. A target either shows no filesystem or is whole; an image or a
# snapshot that stands under its name is whole, and the one that it was to replace is still there. The same command then works.
#: archs x86_64
#: modules ext4
#: tools
#: disk a 64M mkfs.ext4 -q -F
#: disk b 96M
#: disk c 128M mkfs.ext4 -q -F
#: slow b 8000000
#: slow c 8000000
#: cut 0.2-5
#: cuts 60
#: memory 384
#: timeout 120

a=$(disk a) b=$(disk b) c=$(disk c) number=0
[ "$1" = again ] && number=$2
mkdir -p /mnt/a /mnt/b /mnt/c
verbs='restore only-changes clone clone-changes dump create'
verb_of() { echo $verbs | cut -d' ' -f$(($1 % 6 + 1)); }
mount -t ext4 "$a" /mnt/a && mount -t ext4 "$c" /mnt/c || { not_ok "what was mounted mounts (cut $number)" "$a $c"; exit 0; }
if [ "$number" = 0 ]; then
    fill /mnt/a/files 24000; sums /mnt/a/files > /mnt/a/sums; sync
    floe dump -q -o /mnt/c/image.gz /mnt/a && mkdir /mnt/c/store && floe create -q data=/mnt/a -o /mnt/c/store/ && sync || { not_ok "an image and a snapshot" "none was made"; exit 0; }
    floe list /mnt/c/store >/dev/null || not_ok "list" "exit $?"
else
    name="power cut $number, in $(verb_of $((number - 1)))"
    # The target.
    if floe show --json "$b" 2>/dev/null | grep -q '"filesystem":"ext4"'; then
        if ! mount -t ext4 "$b" /mnt/b 2>/tmp/checked; then not_ok "$name: the target" "looks valid and is not: $(cat /tmp/checked)"
        elif (cd /mnt/b/files && md5sum -c /mnt/c/old) >/dev/null 2>&1; then ok "$name: the target is as it was"
        elif (cd /mnt/b/files && md5sum -c /mnt/a/sums) >/tmp/checked 2>&1; then ok "$name: the target is whole"
        else not_ok "$name: the target" "looks valid and is not: $(grep -v OK /tmp/checked | head -n 3 | tr '\n' ' ')"; fi
        umount /mnt/b 2>/dev/null
    else ok "$name: the target shows no filesystem"; fi
    # The files.
    if floe verify -q /mnt/c/image.gz 2>/tmp/out; then ok "$name: the image under its name is whole"; else not_ok "$name: the image" "$(cat /tmp/out)"; fi
    bad=''; for f in /mnt/c/store/*.zip; do floe verify -q "$f" 2>/tmp/out || bad="$bad $f: $(cat /tmp/out)"; done
    [ -z "$bad" ] && ok "$name: $(ls /mnt/c/store/*.zip | wc -l) snapshots under their names are whole" || not_ok "$name: a snapshot" "$bad"
    floe list /mnt/c/store >/tmp/out 2>&1 || not_ok "$name: list" "exit $?: $(tail -n 1 /tmp/out)"
    (cd /mnt/a/files && md5sum -c ../sums) >/tmp/checked 2>&1 || not_ok "$name: the original is as it was" "$(grep -v OK /tmp/checked | head -n 3 | tr '\n' ' ')"
fi
[ "$number" -lt 60 ] || { umount /mnt/a; umount /mnt/c; exit 0; }

# What the next verb finds: a whole filesystem in which half of the files are others.
verb=$(verb_of "$number")
case $verb in
    restore|only-changes|clone|clone-changes)
        try "the target is repaired with the same command (before $verb)" floe restore -q --overwrite --only-changes /mnt/c/image.gz "$b" || exit 0
        mount -t ext4 "$b" /mnt/b
        for f in /mnt/b/files/folder[2-5]/*; do dd if=/dev/urandom of="$f" bs=1k count=$(($(stat -c %s "$f") / 1024)) conv=notrunc 2>/dev/null; done
        sums /mnt/b/files > /mnt/c/old; umount /mnt/b; sync;;
esac
writer /mnt/a
echo FLOE-VM-CUT
until false; do case $verb in
    restore) floe restore -q --overwrite /mnt/c/image.gz "$b";;
    only-changes) floe restore -q --overwrite --only-changes /mnt/c/image.gz "$b";;
    clone) floe clone -q --overwrite "/mnt/a=$b" >/dev/null;;
    clone-changes) floe clone -q --overwrite --only-changes "/mnt/a=$b" >/dev/null;;
    dump) floe dump -q -o /mnt/c/image.gz /mnt/a;;
    create) floe create -q data=/mnt/a -o /mnt/c/store/ --keep 2;;
esac; code=$?; [ $code = 0 ] || { not_ok "$verb until the power goes" "exit $code"; break; }; done
sleep 60
