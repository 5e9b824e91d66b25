# What scenarios have at hand inside the machine. Each line "ok …", "not ok …" or "skip …" on the console is a result.

ok() { echo "ok $*"; }
not_ok() { local name=$1; shift; echo "not ok $name: $*"; }
skip() { local name=$1; shift; echo "skip $name: $*"; }
note() { echo "note $*"; }
# cannot_mount KIND WHY, of a filesystem that was just made: f2fs takes only blocks as large as a page of memory, and mkfs.f2fs makes
# blocks of 4096 bytes.
cannot_mount() {
    local page_kib; page_kib=$(awk '/KernelPageSize/ { print $2; exit }' /proc/self/smaps)
    if [ "$1" = f2fs ] && [ "$page_kib" != 4 ]; then skip "$1" "this kernel has pages of $page_kib KiB"; else not_ok "$1" "mount: $2"; fi
}

# The node of the disk with this serial.
disk() {
    local b
    for b in /sys/block/vd*; do
        [ "$(cat "$b/serial" 2>/dev/null)" = "$1" ] && { echo "/dev/${b##*/}"; return 0; }
    done
    return 1
}

# try NAME COMMAND…: a result from an exit code; the end of what it printed says why.
try() {
    local name=$1 rc; shift
    "$@" >/tmp/try.out 2>&1; rc=$?
    if [ $rc = 0 ]; then ok "$name"; else not_ok "$name" "exit $rc from $*: $(tail -n 3 /tmp/try.out | tr '\n' ' ')"; return 1; fi
}

# expect NAME CODE COMMAND…: the same for another exit code.
expect() {
    local name=$1 code=$2 rc; shift 2
    "$@" >/tmp/try.out 2>&1; rc=$?
    if [ $rc = "$code" ]; then ok "$name"; else not_ok "$name" "exit $rc, not $code, from $*: $(tail -n 3 /tmp/try.out | tr '\n' ' ')"; return 1; fi
}

has_fs() { grep -q "[[:space:]]$1\$" /proc/filesystems; }
now_ms() { local up rest; read -r up rest < /proc/uptime; echo "$(( ${up%.*} * 1000 + 1${up#*.} * 10 - 1000 ))"; }
random() { echo $(( 0x$(head -c 3 /dev/urandom | hexdump -v -e '/1 "%02x"') % $1 )); }   # 0 … $1-1

# write_ends_within DIR MS: whether a write ends in time. The writer is left to itself: on a frozen filesystem no
# signal reaches it, so that a caller must thaw.
write_ends_within() {
    local done=/tmp/write-done.$$ start; rm -f $done; start=$(now_ms)
    ( echo probe > "$1/.probe" && echo yes > $done ) &
    while [ $(( $(now_ms) - start )) -lt "$2" ]; do
        [ -e $done ] && { rm -f $done; return 0; }
        usleep 20000
    done
    [ -e $done ]
}

# wait_end PID MS: whether a process is gone in time.
wait_end() {
    local start; start=$(now_ms)
    while [ $(( $(now_ms) - start )) -lt "$2" ]; do kill -0 "$1" 2>/dev/null || return 0; usleep 20000; done
    ! kill -0 "$1" 2>/dev/null
}

# fill DIR KIB: files of many sizes, some deleted again; half random, half text; about so many KiB in all.
fill() {
    local dir=$1 left=$2 n=0 size
    while [ "$left" -gt 0 ]; do
        n=$((n + 1)); size=$(( (n * 37) % 200 + 1 )); left=$((left - size))
        mkdir -p "$dir/folder$((n % 7))"
        if [ $((n % 2)) = 0 ]; then dd if=/dev/urandom of="$dir/folder$((n % 7))/file$n" bs=1k count=$size 2>/dev/null
        else yes "line of text number $n" | head -c $((size * 1024)) > "$dir/folder$((n % 7))/file$n"; fi
        [ $((n % 5)) = 0 ] && rm -f "$dir/folder$(( (n - 3) % 7 ))/file$((n - 3))"
    done
    ln -s folder1 "$dir/link" 2>/dev/null
    sync -f "$dir" 2>/dev/null || sync
}

# sums DIR: path and checksum of every file, sorted; the same text means the same files. What a writer changes lies
# in DIR/busy and is left out.
sums() { ( cd "$1" && find . -path ./busy -prune -o -path ./lost+found -prune -o -type f -print | sort | grep -v '^\./\.probe$' | xargs md5sum ); }

# writer DIR: changes files in DIR/busy until killed; sets $writer.
writer() {
    mkdir -p "$1/busy"
    ( n=0; while :; do n=$((n + 1)); echo "$n $n $n" > "$1/busy/new" && mv "$1/busy/new" "$1/busy/file$((n % 40))"; usleep 2000; done ) &
    writer=$!
}
