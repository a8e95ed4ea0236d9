# shellcheck shell=sh
# The disk with the root is served by qemu-storage-daemon and by outboard-blk in turns, while fio writes files on it and
# verifies them. Then it becomes larger, and its file system, too, while it is mounted.
if [ -z "${NET_AGENT:-}" ]; then
    skipped "swaps of the root disk" "there is no network, by which the host is asked; see scripts/linux --help, --net"
elif [ "$(cat /sys/block/vda/serial)" != vhost_user_blk ]; then
    skipped "swaps of the root disk" "it was made without profile=portable"
else
    # shellcheck source-path=SCRIPTDIR source=network.sh
    . "$1/network.sh"
    rm -f /tmp/enough /tmp/verified
    before=$FAILURES
    verify_root() {
        rounds=0
        until [ -e /tmp/enough ]; do
            fio --name=swapped --directory=/data --size=1M --numjobs=2 --rw=randwrite --rate_iops=40 --bsrange=4k-32k \
                --ioengine=io_uring --iodepth=16 --direct=1 --fsync=16 --thread --verify=crc32c --verify_fatal=1 \
                --do_verify=1 --group_reporting --randrepeat=0 || return
            rounds=$((rounds + 1))
            echo $rounds >/tmp/rounds
        done
    }
    written() { awk '{ print $5 }' /sys/block/vda/stat; }
    has_written() { [ "$(written)" -ge $((writes + 10)) ]; }
    writes_on() {
        writes=$(written)
        await has_written
    }
    # turns TIMES: from one program to the other; sets TURNS to how often that was done.
    turns() {
        TURNS=0
        while [ $TURNS -lt "$1" ]; do
            if [ $((TURNS % 2)) -eq 0 ]; then to=qemu; else to=outboard; fi
            writes_on && swapped disk0 $to || break
            TURNS=$((TURNS + 1))
        done
        writes_on
    }
    sectors() { cat /sys/block/vda/size; }
    is_larger() { [ "$(sectors)" -eq $((bytes / 512)) ]; }
    file_system() { stat -f -c %b /; }

    echo 0 >/tmp/rounds
    verify_root >/tmp/fio 2>&1 && : >/tmp/verified &
    turns 10
    equal "10 swaps of the root disk to qemu-storage-daemon and back" 10 $TURNS
    bytes=$((($(sectors) + 131072) * 512)) blocks=$(file_system)
    ask grow disk0 $bytes >/tmp/grown 2>&1 || cat /tmp/grown
    if await is_larger; then ok "the root disk is larger"; else failed "the root disk is larger" "$(sectors)" && cat /tmp/grown; fi
    succeeds "resize2fs of the root while it is mounted" /usr/sbin/resize2fs /dev/vda
    positive "the root has more blocks" $(($(file_system) - blocks))
    succeeds "fstrim of the larger root" fstrim -v /
    turns 2
    equal "2 swaps of the larger root disk" 2 $TURNS
    : >/tmp/enough
    wait
    if [ -e /tmp/verified ]; then
        positive "fio verified what it wrote to the root meanwhile" "$(cat /tmp/rounds)"
    else
        failed "fio verified what it wrote to the root meanwhile" "it failed after $(cat /tmp/rounds) rounds:" && cat /tmp/fio
    fi
    equal "the kernel has seen no error of vda" "" "$(dmesg | grep -E 'vda.*error|error.*vda' | head -n 3)"
    echo "  ($(cat /tmp/rounds) rounds of fio; $(cat /tmp/grown))"
    explain "$before"
    rm -f /tmp/enough /data/swapped.*
fi
