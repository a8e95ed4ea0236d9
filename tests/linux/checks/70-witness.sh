# shellcheck shell=sh
# What the host must find in the images after power-off.
dd if=/dev/urandom of=/data/witness bs=64k count=64 2>/dev/null
sum=$(file_sum /data/witness)
sync
echo 3 >/proc/sys/vm/drop_caches
equal "a synced file reads back from the disk" "$sum" "$(file_sum /data/witness)"
echo "SHA256 $sum /data/witness"
: >/data/log
for line in 1 2 3 4 5 6 7 8 9 10; do
    echo "line $line" >>/data/log
    fsync=$(sync /data/log 2>&1) || failed "fsync of a small file" "$fsync"
done
echo "SHA256 $(file_sum /data/log) /data/log"
if second_disk; then
    dd if=/data/witness of=/dev/vdb oflag=direct bs=64k seek=32 conv=fsync 2>/dev/null
    echo "SHA256 $(disk_sum /dev/vdb 100000) /dev/vdb"
fi
