# A filesystem that floe does not know (BFS, which cannot freeze): it is remounted read-only while all of it is read, floe says
# so, and it is writable again afterwards.
#: archs armv7 aarch64
#: select armv7
#: modules bfs
#: disk source 16M mkfs.bfs
#: disk target 16M
#: timeout 100

source=$(disk source); mkdir -p /source /target
mount -t bfs "$source" /source || { not_ok "the filesystem mounts" "no"; exit 0; }
n=0; while [ $n -lt 12 ]; do n=$((n + 1)); head -c $((n * 3000)) /dev/urandom > /source/file$n; done; sync
sums /source > /tmp/before
floe dump --report /tmp/report -o /tmp/image.gz /source > /tmp/out 2>&1; code=$?
if [ $code = 0 ]; then ok "the dump exits 0"; else not_ok "the dump exits 0" "$code: $(tail -n 2 /tmp/out | tr '\n' ' ')"; fi
if grep -q 'remounted read-only' /tmp/out && grep -q '"consistent":"readonly"' /tmp/report; then ok "it says that it was read-only meanwhile"
else not_ok "it says that it was read-only meanwhile" "$(cat /tmp/out /tmp/report | tr '\n' ' ')"; fi
try "it is writable again" write_ends_within /source 1000
try "the image is restored" floe restore --quiet /tmp/image.gz "$(disk target)"
mount -t bfs -o ro "$(disk target)" /target && sums /target > /tmp/after
if [ -s /tmp/before ] && cmp -s /tmp/before /tmp/after; then ok "$(wc -l < /tmp/before) files are equal"; else not_ok "files are equal" "$(diff /tmp/before /tmp/after | head -n 4 | tr '\n' ' ')"; fi

# What is said before the remount goes to a stderr that takes nothing: a signal ends floe all the same.
mkfifo /tmp/full; sleep 1000 < /tmp/full & reader=$!
yes > /tmp/full & filler=$!
usleep 500000
floe dump /source > /dev/null 2>/tmp/full & pid=$!
usleep 700000
if kill -0 $pid && grep ' /source ' /proc/mounts | grep -q '[ ,]rw[, ]'; then ok "it waits for its stderr and touches nothing"; else not_ok "it waits for its stderr and touches nothing" "$(grep /source /proc/mounts)"; fi
kill $pid
if wait_end $pid 2000; then ok "a signal ends it"; else not_ok "a signal ends it" "still there"; kill -9 $pid; fi
kill $reader $filler
