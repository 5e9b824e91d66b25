# A power cut in the middle of fsynced writes: the unmounted, dirty device is dumped and restored to another disk, and every
# file that a mount of the original then gives, a mount of the copy gives too, with the same content.
#: archs x86_64 aarch64 armv7
#: modules ext4 xfs f2fs
#: disk ext4 96M mkfs.ext4 -q -F
#: disk xfs 320M mkfs.xfs -q -f
#: disk f2fs 128M mkfs.f2fs -q -f
#: disk target 384M
#: memory 384
#: cpus 2
#: timeout 300
#: cut 3

kinds="ext4 xfs f2fs"
if [ "$1" != again ]; then
    for kind in $kinds; do
        mkdir -p "/$kind"; mount -t "$kind" "$(disk $kind)" "/$kind" || { not_ok "$kind" "it does not mount"; exit 1; }
        fill "/$kind/old" 3000
    done
    for kind in $kinds; do
        ( n=0; while :; do n=$((n + 1))
            head -c $(( (n * 977) % 40000 + 1 )) /dev/urandom | dd of="/$kind/synced$n" conv=fsync 2>/dev/null
            [ $((n % 3)) = 0 ] && rm -f "/$kind/synced$((n - 2))"
            mkdir -p "/$kind/dir$((n % 9))"; yes "$n" | head -c 9000 > "/$kind/dir$((n % 9))/late$n"
        done ) &
    done
    sleep 2; echo FLOE-VM-CUT; sleep 1000
fi

target=$(disk target); mkdir -p /original /copy
for kind in $kinds; do
    source=$(disk "$kind")
    ( floe dump --quiet --report /tmp/report "$source"; echo $? > /tmp/dumped ) 2>/tmp/dump.err |
        ( floe restore --quiet --overwrite - "$target"; echo $? > /tmp/restored ) 2>/tmp/restore.err
    codes="$(cat /tmp/dumped) $(cat /tmp/restored)"
    [ "$codes" = "0 0" ] || { not_ok "$kind" "dump and restore exited $codes: $(tail -n 2 /tmp/dump.err /tmp/restore.err | tr '\n' ' ')"; continue; }
    mount -t "$kind" "$target" /copy 2>/tmp/err || { not_ok "$kind" "the copy does not mount: $(cat /tmp/err) $(dmesg | tail -n 3)"; continue; }
    sums /copy > /tmp/copy; umount /copy # both carry one uuid: never mounted together
    mount -t "$kind" "$source" /original 2>/tmp/err || { not_ok "$kind" "the original does not mount: $(cat /tmp/err)"; continue; }
    sums /original > /tmp/original; umount /original
    synced=$(grep -c synced /tmp/original)
    if [ "$synced" = 0 ]; then not_ok "$kind" "nothing had been synced before the cut"
    elif cmp -s /tmp/original /tmp/copy; then
        ok "$kind: $(wc -l < /tmp/original) files, $synced synced ones, equal; $(tr -d '{}" ' < /tmp/report | tr ',' '\n' | grep -E '^(map|consistent|read_bytes)' | tr '\n' ' ')"
    else not_ok "$kind" "files differ: $(diff /tmp/original /tmp/copy | head -n 4 | tr '\n' ' ')"; fi
    dd if=/dev/zero of="$target" bs=1M count=2 2>/dev/null
done
dmesg | grep -E -i 'recover|mounting' | sed 's/^/note /' | tail -n 8
true
