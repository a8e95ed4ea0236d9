#!/bin/sh
# In an emulated host: runs VMs whose images lie on a disk of which everything is logged that reaches it, and marks the
# moment after each. A case is a line of ./cases: its name, the back-end, the back-end's options, the guest's command
# line. What the guest says is left in $OUT/NAME.txt; the mark of case N (from 1) is one write to page MARK + N of the disk,
# far behind its file system.
#   power-cut.sh MARK
set -eu
MARK=$1

# The file system is made here, so that the log has all of it; small, since here everything is slow.
umount /scratch
./mke2fs -q -F -t ext4 -m 0 -N 256 -J size=4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/vdb 128M >/dev/null
# Nothing becomes durable by and by: only what is asked for.
mount -t ext4 -o commit=900 /dev/vdb /scratch
echo 0 >/proc/sys/vm/dirty_writeback_centisecs

number=0
while IFS='|' read -r name backend options cmdline; do
    number=$((number + 1))
    image=/scratch/$name.img socket=/tmp/$name.sock
    truncate -s 8M "$image"
    sync
    case $options in
    *--wce=off*)
        # The cache of a disk is off for a guest where `outboard run` has said so, and not where a back-end does.
        printf '#!/bin/sh\nexec %s %s "$@"\n' "$(command -v "$backend")" "${options%% *}" >"$name.sh"
        chmod +x "$name.sh"
        disk=path=$image,backend=$PWD/$name.sh,wce=off
        case $options in *--direct*) disk=$disk,direct ;; esac
        backend_pid=''
        ;;
    *)
        # shellcheck disable=SC2086 # options are words
        "$backend" --socket-path="$socket" --blk-file="$image" --num-queues=2 $options &
        disk=socket=$socket,wait=300s
        backend_pid=$!
        ;;
    esac
    echo "$name"
    outboard run --kernel guest-pvh --cpus 2 --memory 64M --disk "$disk,queues=2" \
        --cmdline "$cmdline" </dev/null >"$OUT/$name.txt" 2>&1 || echo "outboard: status $?" >>"$OUT/$name.txt"
    # The power is cut here. (Past the page cache, and with no flush.)
    dd if=/dev/zero of=/dev/vdb bs=4096 count=1 seek=$((MARK + number)) oflag=direct conv=notrunc 2>/dev/null
    if [ -n "$backend_pid" ]; then
        kill "$backend_pid"
        wait "$backend_pid" || true
    fi
done <cases
