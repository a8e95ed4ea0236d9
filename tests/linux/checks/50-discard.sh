# shellcheck shell=sh
# Discard and write-zeroes hit what they name and nothing beside it.
succeeds "fstrim of the root" fstrim -v /
if ! second_disk; then
    skipped "discard of vdb" "there is no second disk"
else
    # 24 blocks of 64 KiB, of which the middle 8 are discarded, and zeroed.
    dd if=/dev/urandom of=/tmp/blocks bs=64k count=24 2>/dev/null
    dd if=/tmp/blocks of=/dev/vdb oflag=direct bs=64k 2>/dev/null
    before=$(disk_sum /dev/vdb 8) after=$(disk_sum /dev/vdb 8 16)
    zeroes=$(dd if=/dev/zero bs=64k count=8 2>/dev/null | sha256sum | cut -d ' ' -f 1)

    succeeds "blkdiscard of part of vdb" /usr/sbin/blkdiscard -o $((8 * 65536)) -l $((8 * 65536)) /dev/vdb
    equal "what precedes the discard is left" "$before" "$(disk_sum /dev/vdb 8)"
    equal "what follows the discard is left" "$after" "$(disk_sum /dev/vdb 8 16)"
    dd if=/tmp/blocks of=/dev/vdb oflag=direct bs=64k 2>/dev/null
    succeeds "blkdiscard -z of part of vdb" /usr/sbin/blkdiscard -z -o $((8 * 65536)) -l $((8 * 65536)) /dev/vdb
    equal "what was zeroed reads as zeroes" "$zeroes" "$(disk_sum /dev/vdb 8 8)"
    equal "what precedes the zeroes is left" "$before" "$(disk_sum /dev/vdb 8)"
    equal "what follows the zeroes is left" "$after" "$(disk_sum /dev/vdb 8 16)"
fi
