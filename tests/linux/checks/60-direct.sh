# shellcheck shell=sh
# The same blocks read over and over past the page cache are the same each time, and agree with the page cache.
disk=/dev/vda
! second_disk || disk=/dev/vdb
[ $disk = /dev/vda ] || dd if=/dev/urandom of=$disk oflag=direct bs=64k count=16 2>/dev/null
first=$(disk_sum $disk 16)
same=0
for _ in 1 2 3 4 5 6 7 8; do
    [ "$(disk_sum $disk 16)" != "$first" ] || same=$((same + 1))
done
equal "8 direct reads of the same blocks agree" 8 $same
equal "the page cache agrees" "$first" "$(dd if=$disk bs=64k count=16 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
succeeds "1024 direct random reads" fio --name=hot --filename=$disk --readonly --size=1M --io_size=4M --rw=randread --bs=4k \
    --ioengine=io_uring --iodepth=32 --direct=1 --thread --numjobs=1 --norandommap
