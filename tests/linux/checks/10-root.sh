# shellcheck shell=sh
# The root file system is where it should be, on a virtio disk that interrupts by MSI-X.
equal "root is ext4 on vda" "/dev/vda ext4" "$(awk '$2 == "/" { print $1, $3 }' /proc/mounts | tail -n 1)"
equal "vda has the virtio_blk driver" virtio_blk "$(basename "$(readlink -f /sys/block/vda/device/driver)")"
equal "vda is on virtio-pci" virtio-pci "$(basename "$(readlink -f /sys/block/vda/device/../driver)")"
expected "vda is the expected PCI device" "${EXPECT_PCI_DEVICE:-}" \
    "$(cat /sys/block/vda/device/../vendor /sys/block/vda/device/../device | tr '\n' ' ' | sed 's/ $//')"
positive "vda has MSI-X vectors" "$(find -L /sys/block/vda/device/../msi_irqs -maxdepth 1 -type f | wc -l)"
equal "the device accepted VERSION_1 (bit 32)" 1 "$(cut -c 33 /sys/block/vda/device/features)"
equal "there are as many CPUs as asked for" "${EXPECT_CPUS:-$(nproc)}" "$(nproc)"
