# The watchdog on a real kernel: a reader that stalls, floe stopped, and both: thawed after --stall, exit 1, no gzip trailer.
#: select armv7
#: archs aarch64 armv7 x86_64
#: modules ext4
#: disk data 96M mkfs.ext4 -q -F
#: memory 256
#: cpus 2
#: timeout 200

mount -t ext4 "$(disk data)" /mnt || exit 1
fill /mnt 12000

# one NAME STOP: a dump with --stall 2s whose reader takes little; with STOP floe is stopped once it has frozen.
one() {
    local start waited n code
    rm -f /tmp/fifo; mkfifo /tmp/fifo
    ( dd bs=4096 count=4 2>/dev/null; exec sleep 1000 ) < /tmp/fifo > /tmp/taken & reader=$!
    floe dump --quiet --spool off --stall 2s /mnt > /tmp/fifo 2>/tmp/err & pid=$!
    # The shortest look: frozen is when a write does not end at once.
    n=0; while write_ends_within /mnt 150 && [ $n -lt 100 ] && kill -0 $pid 2>/dev/null; do n=$((n + 1)); done
    [ "$2" = stop ] && kill -STOP $pid
    if ! kill -0 $pid 2>/dev/null; then not_ok "$1" "never seen frozen: $(cat /tmp/err)"; kill $reader; return; fi
    start=$(now_ms)
    if write_ends_within /mnt 4500; then waited=$(( $(now_ms) - start )); else not_ok "$1" "still frozen after 4.5 s"; floe thaw /mnt; fi
    [ "$2" = stop ] && { usleep 300000; kill -CONT $pid; }
    # What it takes away before its end (a trace instance) takes seconds on a machine that is busy.
    wait_end $pid 15000 || not_ok "$1" "it did not end"
    wait $pid; code=$?
    kill $reader; wait $reader 2>/dev/null
    if [ -n "$waited" ] && [ $code = 1 ] && grep -q watchdog /tmp/err && ! gzip -t < /tmp/taken 2>/dev/null; then
        ok "$1: writable $waited ms after it was seen frozen: $(cat /tmp/err)"
    else not_ok "$1" "writable after '$waited' ms, exit $code: $(cat /tmp/err)"; fi
}
one "a stalled reader" go
one "a stalled reader, and floe stopped" stop
expect "a dump that is not stalled still succeeds" 0 sh -c 'floe dump --quiet --stall 2s /mnt > /tmp/image && gzip -t < /tmp/image'
try "it unmounts" umount /mnt
