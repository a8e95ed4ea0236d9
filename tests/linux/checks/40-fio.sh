# shellcheck shell=sh
# Data written at random by several jobs at once, each block with its checksum, read back and verified. The sizes suit
# a machine emulated twice over, where a disk does some 3 MB/s.
verify="--thread --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting --randrepeat=0"
# shellcheck disable=SC2086
succeeds "fio verifies 2 jobs in files on the root" fio --name=root --directory=/data --size=2M --numjobs=2 \
    --rw=randwrite --bsrange=4k-64k --ioengine=io_uring --iodepth=16 --direct=1 $verify
rm -f /data/root.*
if second_disk; then
    # shellcheck disable=SC2086
    succeeds "fio verifies 4 jobs on vdb, with flushes" fio --name=raw --filename=/dev/vdb --size=2M --offset_increment=2M \
        --numjobs=4 --rw=randwrite --bsrange=4k-32k --ioengine=libaio --iodepth=32 --direct=1 --fsync=64 $verify
else
    skipped "fio on vdb" "there is no second disk"
fi
