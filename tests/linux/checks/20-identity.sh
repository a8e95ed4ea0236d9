# shellcheck shell=sh
# What the disk says of itself in its configuration and its answer to GET_ID.
queue=/sys/block/vda/queue
expected "serial of vda" "${EXPECT_SERIAL:-}" "$(cat /sys/block/vda/serial)"
expected "queues of vda" "${EXPECT_QUEUES:-}" "$(find /sys/block/vda/mq -mindepth 1 -maxdepth 1 -type d | wc -l)"
expected "sectors of vda" "${EXPECT_SECTORS:-}" "$(cat /sys/block/vda/size)"
expected "write cache of vda" "${EXPECT_WRITE_CACHE:-}" "$(cat $queue/write_cache)"
expected "logical block size of vda" "${EXPECT_BLOCK_SIZE:-}" "$(cat $queue/logical_block_size)"
equal "vda can be written" 0 "$(cat /sys/block/vda/ro)"
positive "vda takes discards" "$(cat $queue/discard_max_bytes)"
positive "vda takes write-zeroes" "$(cat $queue/write_zeroes_max_bytes)"
positive "vda takes several segments" "$(cat $queue/max_segments)"

if ! second_disk; then
    skipped "second disk" "there is none"
else
    expected "serial of vdb" "${EXPECT_SECOND_SERIAL:-}" "$(cat /sys/block/vdb/serial)"
    expected "sectors of vdb" "${EXPECT_SECOND_SECTORS:-}" "$(cat /sys/block/vdb/size)"
    # Bit 11 is CONFIG_WCE: the driver may switch the cache. Writes must work in either mode.
    if [ "$(cut -c 12 /sys/block/vdb/device/features)" = 1 ]; then
        before=$(cat /sys/block/vdb/cache_type)
        dd if=/dev/urandom of=/tmp/block bs=64k count=1 2>/dev/null
        for type in "write through" "write back"; do
            echo "$type" >/sys/block/vdb/cache_type
            equal "cache of vdb switched to $type" "$type" "$(cat /sys/block/vdb/queue/write_cache)"
            dd if=/tmp/block of=/dev/vdb oflag=direct bs=64k 2>/dev/null
            equal "vdb written with $type" "$(file_sum /tmp/block)" "$(disk_sum /dev/vdb 1)"
        done
        echo "$before" >/sys/block/vdb/cache_type
    else
        skipped "switching the cache of vdb" "the device did not offer CONFIG_WCE"
    fi
fi
