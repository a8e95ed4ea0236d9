# shellcheck shell=sh
# The driver lets go of the second disk and takes it again, idle and with requests in flight, at the virtio bus (a device
# reset) and at the PCI bus (the transport is set up anew). Nothing that was written is lost.
if ! second_disk; then
    skipped "unbinding a driver" "there is no second disk"
else
    blocks=64
    dd if=/dev/urandom of=/tmp/pattern bs=64k count=$blocks 2>/dev/null
    sum=$(file_sum /tmp/pattern)
    dd if=/tmp/pattern of=/dev/vdb oflag=direct bs=64k conv=fsync 2>/dev/null
    equal "a pattern on vdb" "$sum" "$(disk_sum /dev/vdb $blocks)"
    pci=$(basename "$(readlink -f /sys/block/vdb/device/..)")

    # rebind NAME DRIVER DEVICE
    rebind() {
        echo "$3" >"/sys/bus/$2/unbind"
        if [ -e /sys/block/vdb ]; then failed "$1: vdb is gone" "/sys/block/vdb is still there"; else ok "$1: vdb is gone"; fi
        # Readers get errors when the disk goes; that is theirs to bear. The kernel gives the disk another name as long as
        # one of them has the old one open.
        wait
        echo "$3" >"/sys/bus/$2/bind"
        if await test -b /dev/vdb; then
            equal "$1: vdb is back with its data" "$sum" "$(disk_sum /dev/vdb $blocks)"
        else
            failed "$1: vdb is back with its data" "there is no /dev/vdb, but $(echo /sys/block/vd*)"
        fi
    }
    virtio_name() { basename "$(readlink -f /sys/block/vdb/device)"; }

    rebind "virtio_blk unbound and bound" virtio/drivers/virtio_blk "$(virtio_name)"
    rebind "virtio_blk unbound and bound again" virtio/drivers/virtio_blk "$(virtio_name)"
    rebind "virtio-pci unbound and bound" pci/drivers/virtio-pci "$pci"
    for reader in 1 2 3; do
        (while dd if=/dev/vdb of=/dev/null iflag=direct bs=16k count=256 2>/dev/null; do :; done) &
    done
    : "$reader"
    # All of them read once there have been so many reads.
    reads() { awk '{ print $1 }' /sys/block/vdb/stat; }
    have_read() { [ "$(reads)" -gt "$1" ]; }
    await have_read $(($(reads) + 100)) || failed "readers of vdb" "they do not get on"
    rebind "virtio_blk unbound under load and bound" virtio/drivers/virtio_blk "$(virtio_name)"
fi
