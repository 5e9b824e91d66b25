# FAT cannot freeze: it is remounted read-only for the read, and back exactly as it was, also when floe is killed.
# Arguments: number of kills at random moments (default 6).
#: select armv7
#: modules vfat nls_ascii nls_cp437 nls_iso8859_1 nls_utf8
#: disk source 128M mkfs.vfat -F 32
#: disk target 128M
#: memory 256
#: timeout 400

kills=${1:-6}
source=$(disk source) target=$(disk target)
mkdir -p /source /second /target
mount -t vfat -o nosuid,nodev,noexec,noatime,umask=027 "$source" /source || exit 1
mount -o bind /source /second && mount -o remount,bind,ro,nodev,nosuid /second
fill /source 8000 2>/dev/null
sums /source > /tmp/before

# Everything mountinfo says about both mounts, but for their numbers.
state() { awk '$5 == "/source" || $5 == "/second" { $1 = $2 = ""; print }' /proc/self/mountinfo; }
same() { # NAME
    local n=0
    while [ "$(state)" != "$was" ] && [ $n -lt 50 ]; do n=$((n + 1)); usleep 20000; done # a second, as promised
    if [ "$(state)" = "$was" ] && write_ends_within /source 1000; then ok "$1"
    else not_ok "$1" "was: $was now: $(state)" ; mount -o remount,rw /source; fi
}
was=$(state); note "$was"

start=$(now_ms)
( floe dump --quiet --report /tmp/report /source; echo $? > /tmp/dumped ) 2>/tmp/dump.err |
    ( floe restore --quiet --overwrite - "$target"; echo $? > /tmp/restored ) 2>/tmp/restore.err
took=$(( $(now_ms) - start )); codes="$(cat /tmp/dumped) $(cat /tmp/restored)"
if [ "$codes" = "0 0" ]; then ok "dump and restore exit 0 ($took ms)"; else not_ok "dump and restore exit 0" "$codes: $(tail -n 2 /tmp/dump.err /tmp/restore.err | tr '\n' ' ')"; fi
same "after the dump it is mounted as before"
mount -t vfat -o ro "$target" /target && sums /target > /tmp/after; umount /target
if cmp -s /tmp/before /tmp/after; then ok "$(wc -l < /tmp/before) files are equal"; else not_ok "files are equal" "$(diff /tmp/before /tmp/after | head -n 4 | tr '\n' ' ')"; fi

# A reader that stalls: read-only for certain when the kill comes.
mkfifo /tmp/stalled; ( dd bs=64 count=1 of=/dev/null 2>/dev/null; exec sleep 1000 ) < /tmp/stalled & reader=$!
floe dump --quiet --spool off --stall 60 --max-freeze 60 /source > /tmp/stalled 2>/tmp/err & pid=$!
n=0; while grep -q ' /source .*rw' /proc/mounts && [ $n -lt 250 ]; do n=$((n + 1)); usleep 20000; done
if grep ' /source ' /proc/mounts | grep -q '[ ,]ro[, ]'; then ok "it is read-only during the read"; else not_ok "it is read-only during the read" "$(grep ' /source ' /proc/mounts) $(tail -n 1 /tmp/err)"; fi
kill -9 $pid; kill $reader
same "killed while read-only: mounted as before within a second"

n=0; wrong=0
while [ $n -lt "$kills" ]; do
    n=$((n + 1)); floe dump --quiet /source >/tmp/sink 2>/dev/null & pid=$!
    usleep $(( $(random $(( took + 50 ))) * 1000 )); kill -9 $pid 2>/dev/null; wait $pid 2>/dev/null
    m=0; while [ "$(state)" != "$was" ] && [ $m -lt 50 ]; do m=$((m + 1)); usleep 20000; done
    [ "$(state)" = "$was" ] || { wrong=$((wrong + 1)); note "after kill $n: $(state)"; mount -o remount,rw /source; }
done
if [ $wrong = 0 ]; then ok "$kills kills at random moments: always mounted as before"; else not_ok "$kills kills at random moments" "$wrong times not as before"; fi
umount /second; try "it unmounts" umount /source
