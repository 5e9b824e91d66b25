# A disk that cannot be read or written, that loses what it was given, or that does not answer: the exit code says it, nothing
# stays frozen, no image stands under its name, and no target looks valid.
#: archs x86_64 armv7
#: modules ext4 dm_mod dm_flakey
#: tools
#: disk one 96M
#: disk two 128M
#: memory 384
#: cpus 2
#: timeout 600

one=$(disk one) two=$(disk two)
export DM_DISABLE_UDEV=1
mkdir -p /source /target
source=/dev/mapper/source target=/dev/mapper/target

# lay NAME TABLE: what this dm device does from now on. Mapping by mapping is taken at once, without a flush: it may be broken.
lay() {
    if [ -e "/dev/mapper/$1" ]; then
        printf '%s\n' "$2" | dmsetup load "$1" && dmsetup suspend --noflush --nolockfs "$1" && dmsetup resume --noudevsync "$1"
    else printf '%s\n' "$2" | dmsetup create --noudevsync "$1" && dmsetup mknodes; fi
}
whole_one="0 196608 linear $one 0" whole_two="0 262144 linear $two 0"
lay source "$whole_one" && lay target "$whole_two" || { not_ok "dm devices" "none were made"; exit 0; }
mkfs.ext4 -q -F $source && mount -t ext4 $source /source || { not_ok "a filesystem" "none was made"; exit 0; }
fill /source/files 30000; sums /source/files > /tmp/before; sync
floe dump -q -z none -o /tmp/image /source || { not_ok "the dump of a good disk" "exit $?"; exit 0; }
# A block of a file, so that reading it is the dump's business.
bad=$(debugfs -R "blocks /files/folder1/$(ls -S /source/files/folder1 | head -n 1)" $source 2>/dev/null | awk '{ print $1; exit }')
block=$(dumpe2fs -h $source 2>/dev/null | awk '/^Block size/ { print $3 }'); bad=$((bad * (block / 512)))
note "sector $bad is made bad"
broken_one="0 $bad linear $one 0
$bad 8 error
$((bad + 8)) $((196608 - bad - 8)) linear $one $((bad + 8))"

thawed() { # NAME
    if write_ends_within /source 2000; then ok "$1: thawed"; else not_ok "$1: thawed" "a write takes longer than 2 seconds"; floe thaw /source; fi
}
# no_valid NAME: the target shows no filesystem.
no_valid() {
    if floe show --json $target 2>/dev/null | grep -q '"filesystem":"ext4"'; then not_ok "$1: the target does not look valid" "$(floe show $target 2>&1 | head -n 3 | tr '\n' ' ')"
    else ok "$1: the target does not look valid"; fi
}
# fails NAME CODE WORD COMMAND…: exit code, and a word of the line.
fails() {
    local name=$1 code=$2 word=$3 rc; shift 3
    timeout -s KILL 60 "$@" >/tmp/out 2>&1; rc=$?
    if [ $rc = "$code" ] && tail -n 1 /tmp/out | grep -q -- "$word"; then ok "$name: exit $rc: $(tail -n 1 /tmp/out)"
    else not_ok "$name" "exit $rc, wanted $code and '$word': $(tail -n 2 /tmp/out | tr '\n' ' ')"; fi
}

# ---- a source with a bad sector ----
lay source "$broken_one"; echo 3 > /proc/sys/vm/drop_caches
for precopy in auto off; do
    fails "a dump of a bad sector ($precopy)" 1 /source floe dump --precopy $precopy -o /tmp/new.gz /source
    thawed "a dump of a bad sector ($precopy)"
    if [ -e /tmp/new.gz ]; then not_ok "no image stands there" "$(ls -l /tmp/new.gz*)"; else ok "no image stands there ($precopy)"; fi
    fails "a clone of a bad sector ($precopy)" 1 /source floe clone --precopy $precopy --overwrite /source=$target
    thawed "a clone of a bad sector ($precopy)"
    no_valid "a clone of a bad sector ($precopy)"
done
fails "a snapshot of a bad sector" 1 /source floe create data=/source -o /tmp/new.zip
thawed "a snapshot of a bad sector"
[ ! -e /tmp/new.zip ] && ok "no snapshot stands there" || not_ok "no snapshot stands there" "$(ls -l /tmp/new.zip)"
lay source "$whole_one"

# ---- a target that takes no more writes, in its middle ----
for verb in "restore --overwrite /tmp/image $target" "clone --overwrite /source=$target" "restore --overwrite --only-changes /tmp/image $target"; do
    name=${verb%% *}; case $verb in *only*) name="$name, only changes,";; esac
    lay target "0 40000 linear $two 0
40000 222144 flakey $two 40000 0 3600 1 error_writes"
    fails "$name onto a disk that fails" 1 target floe $verb
    thawed "$name"
    no_valid "$name onto a disk that fails"
    lay target "$whole_two"
done

# ---- a target that takes writes and loses them: only reading back can know ----
lay target "0 40000 linear $two 0
40000 222144 flakey $two 40000 0 3600 1 drop_writes"
dd if=/dev/zero of=$two bs=1M count=128 2>/dev/null
fails "restore --verify onto a disk that loses what it is given" 1 target floe restore --overwrite --verify /tmp/image $target
no_valid "restore --verify"
fails "clone --verify onto a disk that loses what it is given" 1 target floe clone --overwrite --verify /source=$target
thawed "clone --verify"
no_valid "clone --verify"
lay target "$whole_two"

# ---- a source that does not answer: whether it was read by then or not, nothing is frozen when it answers again ----
for delay in 30 60 120 240; do
    name="a disk that does not answer after $delay ms"
    rm -f /tmp/new.gz; echo 3 > /proc/sys/vm/drop_caches
    floe dump -q --precopy off --stall 3s -o /tmp/new.gz /source 2>/tmp/out & dumping=$!
    usleep ${delay}000; dmsetup suspend --noflush --nolockfs source; sleep 5
    dmsetup resume --noudevsync source
    if wait_end $dumping 20000; then
        wait $dumping; code=$?
        if [ $code = 0 ] && floe verify -q /tmp/new.gz; then ok "$name: it was through, and is whole"
        elif [ $code = 1 ] && [ ! -e /tmp/new.gz ]; then ok "$name: exit 1: $(tr "\n" " " < /tmp/out)"
        else not_ok "$name" "exit $code: $(tail -n 1 /tmp/out)"; fi
    else not_ok "$name" "floe stays for ever"; kill -9 $dumping; fi
    thawed "$name"
done

# ---- and what was broken is whole again with the same command ----
try "the same clone on a good disk" floe clone --overwrite --verify /source=$target
try "e2fsck finds it clean" e2fsck -f -n $target
mount -t ext4 $target /target && sums /target/files > /tmp/after; umount /target
cmp -s /tmp/before /tmp/after && ok "files are equal" || not_ok "files are equal" "$(diff /tmp/before /tmp/after | head -n 3 | tr '\n' ' ')"
umount /source
true
