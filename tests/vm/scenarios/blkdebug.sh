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
#: timeout 2400
#: silent 420

short=$1
source=$(disk source) target=$(disk target) store=$(disk store) faults=0
mkdir -p /source /target /store

# ---- every step has its time ----
# step NAME: what is done now. Where it takes longer than STEP_S the keeper says so, has the kernel say what its tasks wait for and what its
# processors do, and ends the machine: whatever hangs in the kernel, no signal reaches it. All limits allow for a machine that gets a tenth of
# a processor: where it shared its host, the whole of this (150 s of CPU on x86_64) did not end within 15 minutes, with nothing wrong.
STEP_S=300 steps=0
step() { steps=$((steps + 1)); echo "step $steps: $*" | tee /tmp/step; }
keeper() {
    local now last='' seconds=0
    while sleep 1; do
        read -r now < /tmp/step
        if [ "$now" = "$last" ]; then seconds=$((seconds + 1)); else last=$now seconds=0; fi
        [ $seconds -ge $STEP_S ] || continue
        not_ok "$now" "no end within $STEP_S s"
        dmesg -n 8; for what in l w; do echo $what > /proc/sysrq-trigger; done; sleep 2
        poweroff -n -f # without a sync, which may be what hangs
    done
}
step begin; keeper &

# ---- QEMU's monitor is a port of the machine ----
exec 9<>"$(echo /dev/vport*)" && read -r -t 240 answer <&9
# ask COMMAND ARGUMENTS: events come in between.
ask() {
    step "QEMU's $1 $2"
    printf '{"execute":"%s"%s}\n' "$1" "${2:+,\"arguments\":{$2\}}" >&9
    while read -r -t 240 answer <&9; do case $answer in '{"return"'*) return 0;; '{"error"'*) not_ok "QEMU's $1" "$answer"; return 1;; esac; done
    not_ok "QEMU's $1 $2" "no answer within 240 s"; exit 1
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
# slow DISK: 200 kB a second, until `fast`, or `heal`.
slow() {
    faults=$((faults + 1)) pace=pace$faults
    ask object-add "\"qom-type\":\"throttle-group\",\"id\":\"$pace\",\"limits\":{\"bps-total\":200000}" &&
        ask blockdev-add "\"driver\":\"throttle\",\"node-name\":\"slow$faults\",\"throttle-group\":\"$pace\",\"file\":\"$1-file\"" && put_below "$1" slow$faults
}
fast() { ask qom-set "\"path\":\"/objects/$pace\",\"property\":\"limits\",\"value\":{\"bps-total\":0}"; }
# may_hang DISK [NODE]: from now on `hang` does it, at once; NODE is what is below it otherwise. What is asked of blkdebug goes by a node of
# its own above it: QEMU waits for all requests of the node that it was asked by.
may_hang() {
    faults=$((faults + 1)) hung=$faults
    ask blockdev-add "\"driver\":\"blkdebug\",\"node-name\":\"fault$hung\",\"image\":\"${2:-$1-file}\"" && put_below "$1" fault$hung &&
        ask blockdev-add "\"driver\":\"raw\",\"node-name\":\"above$hung\",\"file\":\"fault$hung\""
}
by_hand() { ask human-monitor-command "\"command-line\":\"qemu-io above$hung \\\"$1\\\"\""; }
# hang read_aio|write_aio|flush_to_disk: the next one is not answered until `answer`.
hang() { by_hand "break $1 A"; }
# All of them, or QEMU would wait for ever to take blkdebug away.
answer() { by_hand "remove_break A"; by_hand "remove_break B"; heal "$1"; }
ask qmp_capabilities || exit 1

# ---- what is looked at each time ----
make_source() {
    step "a new source"; umount /source 2>/dev/null
    mkfs.ext4 -q -F "$source" && mount -t ext4 "$source" /source && fill /source/files 4000 && sums /source/files > /tmp/sums && sync
}
make_store() { step "a new store"; umount /store 2>/dev/null; mkfs.ext4 -q -F "$store" && mount -t ext4 "$store" /store; }
# run COMMAND…: sets $code and $line, its last one.
run() {
    step "$*"; echo 3 > /proc/sys/vm/drop_caches
    timeout -s KILL 240 "$@" >/tmp/out 2>&1; code=$?; line=$(tail -n 1 /tmp/out)
}
# failed NAME WORD: it did, by exit code 1 and with this word.
failed() {
    case "$code $line" in "1 floe: "*"$2"*) ok "$1: $line";; *) not_ok "$1" "exit $code, wanted 1 and '$2': $line";; esac
}
thawed() { # NAME MS
    step "$1: thawed"; if write_ends_within /source "${2:-2000}"; then ok "$1: thawed"; else not_ok "$1: thawed" "a write takes longer than ${2:-2000} ms"; floe thaw /source; fi
}
no_valid() {
    step "$1: show"; if floe show --json "$target" 2>/dev/null | grep -q '"filesystem":"\(ext4\|gpt\)"'; then not_ok "$1: the target does not look valid" "$line"
    else ok "$1: the target does not look valid"; fi
}
# is_whole NODE: it holds the files of the source.
is_whole() {
    step "look at $1"; e2fsck -f -n "$1" >/tmp/checked 2>&1 && mount -t ext4 -o ro "$1" /target || return 1
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
# a journal that is aborted had Linux 6.1 spin for ever, once; not again in 140 rounds of this, but the short part leaves it out.)
counts='write 1 2 4'; [ -z "$short" ] || counts=''
for n in $counts; do
    name="dump, EIO on flush $n of the source"; echo changed > /source/changed
    case $n in write) name="dump, EIO on writes of the source"; eio source write;; *) eio_flush source $n;; esac
    run floe dump -o /store/new.gz /source; heal source
    may_fail "$name" 'I/O error'
    step "$name: umount"; timeout -s KILL 240 umount /source || not_ok "$name: it unmounts" "exit $?"
    make_source; thawed "$name"
done

# ---- EIO where the image goes: into its file, and into standard output ----
counts='write 1 2 3'; [ -z "$short" ] || counts=''
for n in $counts; do for way in -o to; do
    make_store; name="dump $way a file, EIO on flush $n under it"
    case $n in write) name="dump $way a file, EIO on writes under it"; eio store write;; *) eio_flush store $n;; esac
    case $way in -o) run floe dump -o /store/new.gz /source;; to) run sh -c 'exec floe dump /source > /store/new.gz';; esac
    heal store; thawed "$name"; step "$name: mount again"; umount /store; mount -t ext4 "$store" /store
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
# is_frozen: a writer waits for the thaw, as the kernel says: that it takes long may mean a busy machine.
is_frozen() {
    local n=0 writer
    rm -f /tmp/wrote; ( echo probe > /source/.probe; echo yes > /tmp/wrote ) & writer=$!
    while [ $n -lt 50 ]; do
        n=$((n + 1)); [ ! -e /tmp/wrote ] || return 1
        case $(cat /proc/$writer/wchan 2>/dev/null) in percpu_rwsem_wait|__percpu_down_read) return 0;; esac
        usleep 20000
    done
    return 1
}
# begins_to_hang COMMAND…: a read of the source hangs as soon as the command, whose reader is slow, has frozen it.
begins_to_hang() {
    local n=0
    may_hang source; step "$*"
    rm -f /tmp/go /tmp/fifo; mkfifo /tmp/fifo
    ( dd bs=4096 count=4 >/dev/null; until [ -e /tmp/go ]; do usleep 50000; done; exec cat ) </tmp/fifo >/dev/null 2>&1 & reader=$!
    "$@" >/tmp/fifo 2>/tmp/out & pid=$!
    while ! is_frozen && [ $n -lt 500 ] && kill -0 $pid 2>/dev/null; do n=$((n + 1)); done
    hang read_aio; touch /tmp/go
}
# where: what the tasks of floe wait for.
where() { for task in /proc/$pid/task/*; do echo $(cat $task/comm $task/wchan $task/stack 2>&1); done | tr '\n' '|'; }
ends() { # NAME DISK CODE WORD
    answer "$2"; step "$1: it ends"
    wait_end $pid 30000 || { not_ok "$1" "it did not end, and waits here: $(where)"; kill -9 $pid; }
    wait $pid; code=$?; line=$(tail -n 1 /tmp/out)
    [ -z "$reader" ] || { kill $reader; wait $reader; reader=''; } 2>/dev/null
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
may_hang target; hang write_aio
floe clone -q --overwrite "/source=$target" >/dev/null 2>/tmp/out & pid=$!
sleep 2; if kill -0 $pid; then ok "$name: it waits"; else not_ok "$name: it waits" "$(cat /tmp/out)"; fi
thawed "$name"; ends "$name" target 0 ''
rm -f /source/.probe; if is_whole "$target"; then ok "$name: whole in the end"; else not_ok "$name: whole in the end" "it is not"; fi

# ---- writes and flushes that hang ----
# begin COMMAND…: it runs beside us.
begin() { step "$*"; "$@" >/dev/null 2>/tmp/out & pid=$!; }
# until_so COMMAND…: waits for what the command says, while floe runs.
until_so() {
    local n=0
    while [ $n -lt 600 ] && kill -0 $pid 2>/dev/null; do n=$((n + 1)); ! "$@" || return 0; usleep 50000; done
    not_ok "$name" "it did not come to: $* ($(cat /tmp/out))"
}
# is_flushing: a task of floe waits for a flush, and for a while.
is_flushing() {
    local n=0
    while [ $n -lt 3 ]; do n=$((n + 1)); cat /proc/$pid/task/*/stack | grep -q blkdev_issue_flush || return 1; usleep 100000; done
}
written() { awk '{ print $7 }' "/sys/block/${target#/dev/}/stat"; }
has_written() { [ "$(written)" -gt $1 ]; }
# says NAME WORD: the line is there although what hangs has not been answered.
says() {
    step "$1: its line"; usleep 1000000
    case $(tail -n 1 /tmp/out) in *"$2"*) ok "$1: it says so at once";; *) not_ok "$1: it says so at once" "$(cat /tmp/out)";; esac
}
name="clone, a write that hangs while frozen"
slow source; may_hang target
begin floe clone -q -j 1 --precopy off --spool off --stall 6s --overwrite "/source=$target"
until_so is_frozen; hang write_aio; fast
thawed "$name" 12000; says "$name" watchdog; ends "$name" target 1 watchdog; heal source; no_valid "$name"; thawed "$name, in the end"

name="dump -o a file, a write that hangs while frozen"
umount /store; mount -t ext4 -o sync "$store" /store
slow source; may_hang store
begin floe dump -q --precopy off --spool off -z none --stall 6s -o /store/new /source
until_so is_frozen; hang write_aio; fast
thawed "$name" 12000; says "$name" watchdog; ends "$name" store 1 watchdog; heal source; no_image "$name"; thawed "$name, in the end"

name="restore, a flush that hangs when all but the beginning is written, interrupted"
restore_hangs() { # in its first flush after the data
    local sectors; sectors=$(written)
    slow target; may_hang target slow$faults
    begin floe restore -q --overwrite /tmp/image "$target"
    until_so has_written $((sectors + 3000)); hang flush_to_disk; fast
    until_so is_flushing
}
restore_hangs
kill -TERM $pid; says "$name" 'the target is not usable'; ends "$name" target 143 'the target is not usable'; no_valid "$name"

name="restore, its last flush hangs, interrupted"
restore_hangs
by_hand "break flush_to_disk B"; by_hand "resume A"; until_so is_flushing
by_hand "break flush_to_disk A"; by_hand "resume B"; until_so is_flushing
kill -TERM $pid; says "$name" 'but may look valid'; ends "$name" target 143 'but may look valid'
if e2fsck -f -n "$target" >/tmp/checked 2>&1; then ok "$name: it was the last"; else not_ok "$name: it was the last" "$(tail -n 3 /tmp/checked)"; fi
true
