# Disks that QEMU's blkdebug breaks: EIO on reads, on writes, on the first or a later flush, and requests that hang. The exit code says
# it, nothing stays frozen, no image stands under its name, and no target looks valid.
#: archs x86_64 aarch64 armv7
#: select armv7
#: selected short
#: modules ext4
#: tools
#: disk source 32M
#: disk target 48M
#: disk store 64M
#: faulty source
#: faulty target
#: faulty store
#: memory 256
#: cpus 2
#: timeout 900

short=$1
source=$(disk source) target=$(disk target) store=$(disk store) faults=0
mkdir -p /source /target /store

# ---- QEMU's monitor is a port of the machine ----
exec 9<>"$(echo /dev/vport*)" && read -r answer <&9
# ask COMMAND ARGUMENTS: events come in between.
ask() {
    printf '{"execute":"%s"%s}\n' "$1" "${2:+,\"arguments\":{$2\}}" >&9
    while read -r answer <&9; do case $answer in '{"return"'*) return 0;; '{"error"'*) not_ok "QEMU's $1" "$answer"; return 1;; esac; done
}
put_below() { ask blockdev-reopen "\"options\":[{\"driver\":\"raw\",\"node-name\":\"$1\",\"file\":\"$2\"}]"; }
# fault DISK RULES STATES: blkdebug between this disk and its file.
fault() {
    faults=$((faults + 1))
    ask blockdev-add "\"driver\":\"blkdebug\",\"node-name\":\"fault$faults\",\"image\":\"$1-file\"${2:+,\"inject-error\":[$2]}${3:+,\"set-state\":[$3]}" &&
        put_below "$1" fault$faults
}
heal() { put_below "$1" "$1-file"; }
# eio DISK read|write|write-zeroes [MORE]: each of them fails from now on.
eio() { fault "$1" "{\"event\":\"none\",\"errno\":5,\"iotype\":\"$2\"$3}"; }
# eio_flush DISK N: the Nth flush fails. (Not all after it: QEMU itself flushes before `heal`.)
eio_flush() {
    local n=1 states=''
    while [ $n -lt "$2" ]; do states="$states${states:+,}{\"event\":\"flush_to_disk\",\"state\":$n,\"new_state\":$((n + 1))}"; n=$((n + 1)); done
    fault "$1" "{\"event\":\"flush_to_disk\",\"state\":$2,\"errno\":5,\"iotype\":\"flush\",\"once\":true}" "$states"
}
# hang DISK read_aio|write_aio|flush_to_disk: the next one is not answered until `answer`.
hang() { fault "$1" && ask human-monitor-command "\"command-line\":\"qemu-io $1 \\\"break $2 A\\\"\""; }
answer() { ask human-monitor-command "\"command-line\":\"qemu-io $1 \\\"resume A\\\"\""; heal "$1"; }
ask qmp_capabilities || exit 1

# ---- what is looked at each time ----
make_source() {
    umount /source 2>/dev/null
    mkfs.ext4 -q -F "$source" && mount -t ext4 "$source" /source && fill /source/files 4000 && sums /source/files > /tmp/sums && sync
}
make_store() { umount /store 2>/dev/null; mkfs.ext4 -q -F "$store" && mount -t ext4 "$store" /store; }
# run COMMAND…: sets $code and $line, its last one.
run() {
    echo 3 > /proc/sys/vm/drop_caches
    timeout -s KILL 60 "$@" >/tmp/out 2>&1; code=$?; line=$(tail -n 1 /tmp/out)
}
# failed NAME WORD: it did, by exit code 1 and with this word.
failed() {
    case "$code $line" in "1 floe: "*"$2"*) ok "$1: $line";; *) not_ok "$1" "exit $code, wanted 1 and '$2': $line";; esac
}
thawed() { # NAME MS
    if write_ends_within /source "${2:-2000}"; then ok "$1: thawed"; else not_ok "$1: thawed" "a write takes longer than ${2:-2000} ms"; floe thaw /source; fi
}
no_valid() {
    if floe show --json "$target" 2>/dev/null | grep -q '"filesystem":"\(ext4\|gpt\)"'; then not_ok "$1: the target does not look valid" "$line"
    else ok "$1: the target does not look valid"; fi
}
# is_whole NODE: it holds the files of the source.
is_whole() {
    e2fsck -f -n "$1" >/tmp/checked 2>&1 && mount -t ext4 -o ro "$1" /target || return 1
    sums /target/files > /tmp/found; umount /target; cmp -s /tmp/sums /tmp/found
}
no_image() {
    if [ -n "$(ls /store | grep -v 'lost\|part$')" ]; then not_ok "$1: no image stands there" "$line"; rm -f /store/new*; else ok "$1: no image stands there"; fi
}
# may_fail NAME WORD: it failed, and no image stands there; or the image is whole.
may_fail() {
    if [ $code != 0 ]; then failed "$1" "$2"; no_image "$1"
    elif floe restore -q --overwrite /store/new.gz "$target" && is_whole "$target"; then ok "$1: whole"; rm -f /store/new.gz
    else not_ok "$1" "exit 0, and not whole: $line"; fi
}

make_source && make_store || { not_ok "filesystems" "none were made"; exit 0; }
floe dump -q -z none -o /tmp/image /source || { not_ok "the dump of a good disk" "exit $?"; exit 0; }
# A sector of a file, on the source and on what is a copy of it.
bad=$(debugfs -R "blocks /files/folder1/$(ls -S /source/files/folder1 | head -n 1)" "$source" 2>/dev/null | awk '{ print $1; exit }')
bad=$((bad * $(stat -f -c %S /source) / 512))

# ---- EIO at the target: a write in its middle, then the first or a later flush ----
onto_target() { # NAME PARTITION COMMAND…
    local name=$1 part=$target$2 n=0; shift 2
    while n=$((n + 1)); [ $n -lt 12 ]; do
        eio_flush target $n; run floe "$@"; heal target
        [ $code != 0 ] || break
        failed "$name, EIO on flush $n" "$target"; thawed "$name, EIO on flush $n"; no_valid "$name, EIO on flush $n"
    done
    if [ $n -gt 3 ] && [ $n -lt 12 ] && is_whole "$part"; then ok "$name: whole when all $((n - 1)) flushes are answered"
    else not_ok "$name: whole in the end" "exit $code after $((n - 1)) failed flushes: $line"; fi
}
onto_target restore '' restore --overwrite /tmp/image "$target"
if [ -z "$short" ]; then
    onto_target clone '' clone --overwrite "/source=$target"
    onto_target "clone onto a new table" 1 clone --overwrite /source=root --media "$target" --partition --swap-size 0
    dd if=/dev/zero of="$target" bs=1M count=48 2>/dev/null
    for verb in "restore --overwrite /tmp/image $target" "restore --overwrite --only-changes /tmp/image $target" "clone --overwrite /source=$target"; do
        name="${verb%% /*}, EIO on"
        dd if=/dev/zero of="$target" bs=512 seek=$bad count=8 conv=fsync 2>/dev/null # so that there is something to write
        eio target write ",\"sector\":$bad"
        run floe $verb; heal target; failed "$name a write" "$target"; thawed "$name a write"; no_valid "$name a write"
        eio target read ",\"sector\":$bad"
        run floe $verb --verify; heal target; failed "$name reading back" "$target"; thawed "$name reading back"; no_valid "$name reading back"
    done
fi

# ---- EIO at the source ----
precopies='auto off'; [ -z "$short" ] || precopies=auto
for precopy in $precopies; do
    name="EIO on a read of the source ($precopy)"
    eio source read ",\"sector\":$bad"
    run floe dump --precopy $precopy -o /store/new.gz /source; failed "dump, $name" "$source"; thawed "dump, $name"; no_image "dump, $name"
    [ -z "$short" ] || { heal source; break; }
    run floe create --precopy $precopy data=/source -o /store/new.zip; failed "create, $name" "$source"; thawed "create, $name"; no_image "create, $name"
    run floe clone --precopy $precopy --overwrite "/source=$target"; failed "clone, $name" "$source"; thawed "clone, $name"; no_valid "clone, $name"
    eio source read ",\"sector\":$bad,\"once\":true"
    run floe dump --precopy $precopy -o /store/new.gz /source; thawed "dump, $name, once"; heal source; may_fail "dump, $name, once" "$source"
done
# What the filesystem itself writes for a freeze: it is made anew each time, and would hang where it was still frozen. (Writers beside
# a journal that is aborted had Linux 6.1 spin for ever, once; so the short part leaves this out.)
counts='write 1 2 4'; [ -z "$short" ] || counts=''
for n in $counts; do
    name="dump, EIO on flush $n of the source"; echo changed > /source/changed
    case $n in write) name="dump, EIO on writes of the source"; eio source write;; *) eio_flush source $n;; esac
    run floe dump -o /store/new.gz /source; heal source
    may_fail "$name" 'I/O error'
    timeout -s KILL 30 umount /source || not_ok "$name: it unmounts" "exit $?"
    make_source; thawed "$name"
done

# ---- EIO where the image goes: into its file, and into standard output ----
counts='write 1 2 3'; [ -z "$short" ] || counts=''
for n in $counts; do for way in -o to; do
    make_store; name="dump $way a file, EIO on flush $n under it"
    case $n in write) name="dump $way a file, EIO on writes under it"; eio store write;; *) eio_flush store $n;; esac
    case $way in -o) run floe dump -o /store/new.gz /source;; to) run sh -c 'exec floe dump /source > /store/new.gz';; esac
    heal store; thawed "$name"; umount /store; mount -t ext4 "$store" /store
    if [ $code = 0 ]; then try "$name: whole" floe verify -q /store/new.gz
    elif [ $way = to ]; then failed "$name" stdout
    else
        failed "$name" /store
        # A name that could not be flushed may be there, and the file is whole then.
        case $line in *"its folder"*) [ ! -e /store/new.gz ] || try "$name: whole" floe verify -q /store/new.gz;; *) no_image "$name";; esac
    fi
done; done
[ -n "$short" ] || make_store

# ---- requests that hang: thawed in time, and what hung ends when it is answered ----
# begins_to_hang COMMAND…: a read of the source hangs as soon as the command, whose reader is slow, has frozen it.
begins_to_hang() {
    local n=0
    rm -f /tmp/go /tmp/fifo; mkfifo /tmp/fifo
    ( dd bs=4096 count=4 >/dev/null; until [ -e /tmp/go ]; do usleep 50000; done; exec cat ) </tmp/fifo >/dev/null 2>&1 & reader=$!
    "$@" >/tmp/fifo 2>/tmp/out & pid=$!
    while write_ends_within /source 150 && [ $n -lt 100 ] && kill -0 $pid 2>/dev/null; do n=$((n + 1)); done
    hang source read_aio; touch /tmp/go
}
ends() { # NAME DISK CODE WORD
    answer "$2"
    wait_end $pid 15000 || { not_ok "$1" "it did not end"; kill -9 $pid; }
    wait $pid; code=$?; line=$(tail -n 1 /tmp/out); kill $reader 2>/dev/null; wait $reader 2>/dev/null
    case "$code $line" in "$3 "*"$4"*) ok "$1: exit $code: $line";; *) not_ok "$1" "exit $code, wanted $3 and '$4': $line";; esac
}
name="dump, a read that hangs"
begins_to_hang floe dump -q --precopy off --spool off -z none --stall 3s /source
thawed "$name" 4500; ends "$name" source 1 watchdog; thawed "$name, in the end"
[ -z "$short" ] || exit 0
name="dump, a read that hangs, killed"
begins_to_hang floe dump -q --precopy off --spool off -z none /source
usleep 500000; kill -9 $pid; thawed "$name" 1500; ends "$name" source 137 ''; thawed "$name, in the end"
name="clone, a write that hangs before the freeze"
hang target write_aio
floe clone -q --overwrite "/source=$target" >/dev/null 2>/tmp/out & pid=$!
sleep 2; if kill -0 $pid; then ok "$name: it waits"; else not_ok "$name: it waits" "$(cat /tmp/out)"; fi
thawed "$name"; ends "$name" target 0 ''
rm -f /source/.probe; if is_whole "$target"; then ok "$name: whole in the end"; else not_ok "$name: whole in the end" "it is not"; fi
true
