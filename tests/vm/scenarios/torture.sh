# Pre-copy under torture on the filesystems and the architectures that only these kernels have: writers that rewrite in place, append,
# truncate, rename, punch and fsync while it is dumped, with a trace and without; then, without writers, an image made with pre-copy is
# the one made without it, and the image of the torture passes its checker and holds every quiet file.
# Arguments: how often (default: 3 times, 2 where all is emulated), and filesystems (default: all of them).
#: archs x86_64 aarch64 aarch64-16k armv7
#: modules ext4
#: optional f2fs jfs crc32c_generic
#: tools
#: disk source 320M
#: disk small 144M
#: disk target 384M
#: memory 768
#: cpus 2
#: timeout 1500

# What is emulated is slow.
case $(uname -m) in x86_64) rounds=3 kib=8000 ballast=9 raw='-z none';; *) rounds=2 kib=2000 ballast=4 raw='';; esac
[ $# = 0 ] || { rounds=$1; shift; }
[ $# -gt 0 ] || set -- ext2 ext3 ext4 f2fs jfs
target=$(disk target)
mkdir -p /source /target

make() { case $1 in ext*) mkfs.$1 -q -F "$2";; f2fs) mkfs.f2fs -q -f "$2";; jfs) mkfs.jfs -q "$2";; esac; }

# As in filesystems.sh: an unmount writes JFS's summary pages, a freeze does not.
check() {
    case $1 in
        ext*) e2fsck -f -n "$2";;
        f2fs) fsck.f2fs --dry-run "$2";;
        jfs) fsck.jfs -f "$2" && return 0; [ $? = 1 ] && fsck.jfs -n -f "$2";;
    esac
}

# Two writers, until they are killed; what they do is in DIR/busy.
torture() { # DIR
    mkdir -p "$1/busy"; pids=''
    for w in 1 2; do
        ( cd "$1/busy" || exit; n=$w
          while :; do n=$((n + 1)); f=file$w.$((n % 9)); r=$(random 256)
            case $((r % 8)) in
                0|1) dd if=/dev/urandom of=$f bs=4k count=$((r % 16 + 1)) seek=$((r % 50)) conv=notrunc 2>/dev/null;;
                2) echo "$n line $r" >> $f;;
                3) truncate -s $((r * 997)) $f;;
                4) mv $f file$w.$((r % 9)) 2>/dev/null;;
                5) dd if=/dev/urandom of=$f bs=4k count=8 seek=$((r % 40)) conv=notrunc,fsync 2>/dev/null;;
                6) rm -f $f; mkdir -p dir$w.$r; rmdir dir$w.$((r / 2)) 2>/dev/null;;
                7) dd if=/dev/urandom of=../ballast bs=4k count=4 seek=$((r * 8)) conv=notrunc 2>/dev/null;;
            esac
            usleep $((n % 3 * 2000))
          done ) & pids="$pids $!"
    done
}

# What a report says for a key.
told() { tr -d '{}" ' < /tmp/report | tr ',' '\n' | sed -n "s/^$1://p"; }

one() { # KIND
    local kind=$1 round words expected begun seen=''; begun=$(now_ms)
    case $kind$rounds in jfs*|ext?2) source=$(disk small);; *) source=$(disk source);; esac
    make "$kind" "$source" >/tmp/made 2>&1 || { not_ok "$kind" "mkfs: $(tail -n 2 /tmp/made | tr '\n' ' ')"; return; }
    mount -t "$kind" "$source" /source 2>/tmp/made || { cannot_mount "$kind" "$(cat /tmp/made)"; return; }
    fill /source $kib; dd if=/dev/urandom of=/source/ballast bs=1M count=$ballast 2>/dev/null; sync
    round=0
    while [ $round -lt $rounds ]; do
        round=$((round + 1))
        # The ballast is written to as well.
        sums /source | grep -v '\./ballast$' > /tmp/before
        case $round in 1) words='' expected=traced;; 2) words='--precopy compare --spool 4M' expected=compared;; *) words='-z none' expected=traced;; esac
        torture /source
        usleep 300000
        floe dump --quiet $words --report /tmp/report -o /tmp/image /source 2>/tmp/dump.err || { not_ok "$kind, round $round" "$(tail -n 2 /tmp/dump.err | tr '\n' ' ')"; kill $pids; wait $pids 2>/dev/null; umount /source; return; }
        write_ends_within /source 1000 || { not_ok "$kind, round $round" "not writable a second after the dump"; floe thaw /source; }
        kill $pids; wait $pids 2>/dev/null
        seen="$seen $(told precopy)/$(told early_bytes)/$(told again_bytes)/$(told frozen_ms)ms"
        [ "$(told precopy)" = $expected ] || not_ok "$kind, round $round" "precopy is $(told precopy), not $expected"
        floe restore --quiet --overwrite /tmp/image "$target" 2>/tmp/restore.err || { not_ok "$kind, round $round" "restore: $(tail -n 2 /tmp/restore.err | tr '\n' ' ')"; umount /source; return; }
        rm -f /tmp/image
        mount -t "$kind" "$target" /target 2>/tmp/made || { not_ok "$kind, round $round" "the copy does not mount: $(cat /tmp/made)"; umount /source; return; }
        sums /target | grep -v '\./ballast$' > /tmp/after
        umount /target
        cmp -s /tmp/before /tmp/after || { not_ok "$kind, round $round" "files differ: $(diff /tmp/before /tmp/after | head -n 4 | tr '\n' ' ')"; umount /source; return; }
        check "$kind" "$target" >/tmp/checked 2>&1 || { not_ok "$kind, round $round" "its checker exits $?: $(tail -n 8 /tmp/checked | tr '\n' ' ')"; umount /source; return; }
    done
    # Read-only nothing changes between two images: with pre-copy, into its file, and without.
    sync; mount -o remount,ro /source 2>/tmp/made || { usleep 500000; mount -o remount,ro /source 2>/tmp/made; }
    if floe dump --quiet $raw --report /tmp/report -o /tmp/one /source 2>/tmp/dump.err && floe dump --quiet $raw --precopy off -o /tmp/two /source 2>>/tmp/dump.err; then
        if cmp -s /tmp/one /tmp/two; then ok "$kind: with pre-copy ($(told precopy)) and without it is one image"
        else not_ok "$kind: with pre-copy ($(told precopy)) and without" "$(cmp -l /tmp/one /tmp/two | wc -l) bytes differ"; fi
    else not_ok "$kind: read-only" "$(tail -n 2 /tmp/dump.err | tr '\n' ' ')"; fi
    rm -f /tmp/one /tmp/two
    umount /source || { usleep 300000; umount /source; }
    ok "$kind under torture ($((($(now_ms) - begun) / 1000)) s):$seen"
    dd if=/dev/zero of="$target" bs=1M count=2 2>/dev/null; dd if=/dev/zero of="$source" bs=1M count=2 2>/dev/null
}

for kind in "$@"; do
    if has_fs "$kind"; then one "$kind"; else skip "$kind" "this kernel does not have it"; fi
    umount /source 2>/dev/null; umount /target 2>/dev/null
done
true
