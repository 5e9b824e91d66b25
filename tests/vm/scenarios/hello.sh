# The machine works: kernel, our executable, disks, filesystems.
#: modules ext4
#: optional xfs btrfs f2fs jfs reiserfs vfat nls_ascii nls_cp437 nls_iso8859_1 exfat squashfs erofs overlay nilfs2 dm_mod raid1 loop
#: disk data 64M mkfs.ext4 -q -F
#: memory 256
#: timeout 60

note "kernel $(uname -srm)"
note "filesystems $(grep -v nodev /proc/filesystems | tr -d '\t' | tr '\n' ' ')"
version=$(floe --version); code=$?
note "$version"
case $version in "floe "*) [ $code = 0 ] && ok "floe --version" || not_ok "floe --version" "exit $code";;
    *) not_ok "floe --version" "exit $code, printed '$version'";; esac
try "the disk named data is there" test -b "$(disk data)"
try "ext4 made on the host mounts" mount -t ext4 "$(disk data)" /mnt
try "a write ends" write_ends_within /mnt 2000
before=$(now_ms); usleep 300000; after=$(now_ms); passed=$((after - before))
if [ $passed -ge 250 ] && [ $passed -le 3000 ]; then ok "the clock runs ($passed ms)"; else not_ok "the clock runs" "0.3 s took $passed ms"; fi
umount /mnt
