# kill -9 of a running `floe dump`, by name and at random moments, never leaves ext4 frozen: a write ends within a second.
# Arguments: number of kills at random moments (default 200), and of times that each command is given (default 20). On x86_64 50 and
# 5 are enough: there the machine that tests gives each command itself (tests/it/freeze/kill_matrix.rs), and its emulation is the slowest.
#: archs x86_64 aarch64 aarch64-16k armv7
#: select armv7
#: selected 12 1
#: modules ext4
#: disk data 96M mkfs.ext4 -q -F
#: memory 256
#: cpus 2
#: timeout 2400

case $(uname -m) in x86_64) kills=50 rounds=5;; *) kills=200 rounds=20;; esac
kills=${1:-$kills} rounds=${2:-$rounds}
mount -t ext4 "$(disk data)" /mnt || exit 1
fill /mnt 16000
writer /mnt

# How long an undisturbed dump takes, so that the moments cover all of it. It must also succeed.
start=$(now_ms); floe dump --quiet /mnt >/tmp/sink 2>/tmp/err; took=$(( $(now_ms) - start ))
note "an undisturbed dump takes $took ms"
expect "an undisturbed dump exits 0" 0 sh -c 'floe dump -o /tmp/whole.img.gz /mnt && gzip -t /tmp/whole.img.gz && rm /tmp/whole.img.gz'

# A reader that takes the first bytes and stalls, and no spool: the filesystem is known to be frozen when the kill comes.
# Sets $pid, and $guardian. False when it was never seen frozen. Arguments: what starts it.
frozen_dump() {
    local start
    # The guardian of the one before may be about to go.
    start=$(now_ms)
    while grep -qsx thaw-guard /proc/[0-9]*/comm && [ $(( $(now_ms) - start )) -lt 5000 ]; do usleep 50000; done
    rm -f /tmp/stalled; mkfifo /tmp/stalled; ( dd bs=64 count=1 of=/dev/null 2>/dev/null; exec sleep 1000 ) < /tmp/stalled & reader=$!
    "$@" floe dump --quiet --spool off --stall 60 --max-freeze 60 /mnt > /tmp/stalled 2>/tmp/err & pid=$!
    start=$(now_ms) # a machine that has little of the processor takes seconds
    while [ $(( $(now_ms) - start )) -lt 20000 ] && kill -0 $pid 2>/dev/null; do
        # A write that takes long where there is no guardian yet says that the machine is slow.
        write_ends_within /mnt 500 || { guardian=$(grep -lx thaw-guard /proc/[0-9]*/comm | cut -d/ -f3 | head -n 1); [ -z "$guardian" ] || return 0; }
        usleep 50000
    done
    not_ok "a stalled reader without a spool keeps it frozen" "never saw it frozen: $(tail -n 2 /tmp/err | tr '\n' ' ')"
    kill -9 $pid $reader 2>/dev/null; return 1
}
# thawed NAME MS
thawed() { if write_ends_within /mnt "$2"; then ok "$1"; else not_ok "$1" "a write took longer than $2 ms"; floe thaw /mnt; fi; }

if frozen_dump; then
    ok "a stalled reader without a spool keeps it frozen (as the test needs)"
    kill -9 $pid; thawed "floe killed while frozen: thawed within a second" 1000; kill $reader
fi
if frozen_dump; then
    kill -9 "$guardian"; thawed "its guardian killed while frozen: thawed within a second" 1000
    wait_end $pid 2000; wait $pid; code=$?; kill $reader
    if [ $code = 1 ] && grep -q guardian /tmp/err; then ok "that dump fails: $(tail -n 1 /tmp/err)"; else not_ok "that dump fails" "exit $code: $(tail -n 1 /tmp/err)"; fi
fi
if frozen_dump; then # the parent-death signal is SIGCONT
    kill -STOP "$guardian"; usleep 200000; kill -9 $pid
    thawed "floe killed while its guardian is stopped: thawed within a second" 1000; kill $reader
fi
if frozen_dump; then
    exe=$(readlink "/proc/$guardian/exe"); line=$(tr '\0' ' ' < "/proc/$guardian/cmdline")
    case $exe$line in *floe*) not_ok "nothing that names the guardian names floe" "$exe $line";; */memfd:thaw-guard*) ok "nothing that names the guardian names floe: $exe $line";;
    *) not_ok "the guardian runs from memory" "$exe $line";; esac
    kill -9 $pid; kill $reader
fi

# What people end a program with.
# by_name APPLET COMMAND…
by_name() {
    local applet=$1; shift
    busybox --list | grep -qx "$applet" || { note "this busybox has no $applet"; return; }
    ends_it "" "$@"
}
# ends_it HOW COMMAND…: floe, started by HOW, dies by the command each time, and what was frozen is not. PID in it is floe's.
ends_it() {
    local how=$1 round=0 late=0 alive=0; shift
    while [ $round -lt "$rounds" ]; do
        round=$((round + 1))
        frozen_dump $how || return
        case $* in *PID*) sh -c "$(echo "$*" | sed "s/PID/$pid/g")";; *) "$@";; esac >/dev/null 2>&1
        if ! wait_end $pid 2000; then alive=$((alive + 1)); kill -9 $pid
        elif ! write_ends_within /mnt 1000; then late=$((late + 1)); floe thaw /mnt; fi
        kill $reader 2>/dev/null; wait $pid $reader 2>/dev/null
    done
    if [ $late$alive = 00 ]; then ok "$* on a frozen dump, $rounds times: thawed within a second"
    else not_ok "$* on a frozen dump, $rounds times" "$late times frozen for longer than a second, $alive times still there"; fi
}
floe_path=$(command -v floe)
by_name killall killall -9 floe
by_name pidof sh -c 'kill -9 $(pidof floe)'
by_name pgrep sh -c 'kill -9 $(pgrep -f "[f]loe dump")'
by_name pkill pkill -9 -f floe
by_name pkill pkill -9 -f /mnt
by_name start-stop-daemon start-stop-daemon -K -q -s KILL -x "$floe_path"
by_name start-stop-daemon start-stop-daemon -K -q -s KILL -n floe
by_name fuser fuser -k -m /mnt
# A group and a session of its own, as a shell with job control and an ssh give it.
ends_it setsid kill -9 -PID
ends_it setsid kill -HUP PID
# The end of a session, as who looks for all of it ends it (ps o sid).
ends_it setsid 'for p in /proc/[0-9]*; do set -- $(sed "s/.*) //" $p/stat); [ "$4" != PID ] || kill -9 ${p#/proc/}; done'
kill -0 $writer 2>/dev/null || writer /mnt # it had files open there, too
wait $reader 2>/dev/null; rm -f /tmp/stalled

n=0; late=0; running=0
while [ $n -lt "$kills" ]; do
    n=$((n + 1))
    floe dump --quiet /mnt 2>/dev/null > /tmp/sink & pid=$!
    usleep $(( $(random $(( took + 50 ))) * 1000 ))
    kill -0 $pid 2>/dev/null && running=$((running + 1))
    kill -9 $pid 2>/dev/null
    write_ends_within /mnt 1000 || { late=$((late + 1)); floe thaw /mnt; }
    wait $pid 2>/dev/null
done
note "$running of $kills kills met a running dump"
if [ $late = 0 ]; then ok "$kills kills at random moments: never frozen for a second"; else not_ok "$kills kills at random moments" "$late times frozen for longer than a second"; fi
if [ $running -gt 0 ]; then ok "some kills met a running dump"; else not_ok "some kills met a running dump" "all came too late"; fi

kill $writer; wait $writer 2>/dev/null
# The last guardian may be about to go.
unmounts() { local i; for i in 1 2 3 4 5 6 7 8 9 10; do umount /mnt && return; sleep 1; done; return 1; }
try "it unmounts" unmounts
