# shellcheck shell=sh
# The entropy device, by the kernel's own reader of it.
if [ -z "${EXPECT_RNG:-}" ]; then
    skipped "/dev/hwrng" "there is no entropy device"
else
    modprobe virtio-rng 2>/dev/null
    equal "the source of /dev/hwrng" virtio_rng.0 "$(cat /sys/class/misc/hw_random/rng_current)"
    yield() { steady /dev/hwrng dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock 2>/dev/null; }
    yield >/tmp/random
    equal "/dev/hwrng yields" 16384 "$(wc -c </tmp/random)"
    if [ "$(file_sum /tmp/random)" = "$(yield | sha256sum | cut -d ' ' -f 1)" ]; then
        failed "/dev/hwrng yields something else each time" "twice the same 16 KiB"
    else
        ok "/dev/hwrng yields something else each time"
    fi
    rm -f /tmp/random
fi
