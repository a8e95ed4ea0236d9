# shellcheck shell=sh
# Queue pairs, the card turned off and on, its driver unbound and bound: traffic after each.
if [ -z "${NET_AGENT:-}" ]; then
    skipped "queue pairs" "there is no network; see scripts/linux --help, --net"
else
    # shellcheck source-path=SCRIPTDIR source=network.sh
    . "$1/network.sh"
    ready_card
    number=1
    # To the most, and back to one.
    for number in $(seq "$NET_QUEUES") 1; do
        succeeds "$number queue pairs" /usr/sbin/ethtool -L $tap combined "$number"
        equal "$number queue pairs are in use" "$number" "$(pairs)"
        carries "with $number queue pairs"
    done 2>&1
    if /usr/sbin/ethtool -L $tap combined $((NET_QUEUES + 1)) 2>/dev/null; then
        failed "one queue pair more is refused" "it was taken"
    else
        ok "one queue pair more is refused"
    fi
    /usr/sbin/ethtool -L $tap combined "$NET_QUEUES"

    succeeds "eth0 down" ip link set $tap down
    succeeds "eth0 up" ip link set $tap up
    carries "after down and up"
    number=$(basename "$(readlink -f /sys/class/net/$tap/device)")
    for again in 1 2; do
        succeeds "virtio_net unbound ($again)" sh -c "echo $number >/sys/bus/virtio/drivers/virtio_net/unbind"
        if [ -e /sys/class/net/$tap ]; then failed "eth0 is gone ($again)" "it is still there"; else ok "eth0 is gone ($again)"; fi
        succeeds "virtio_net bound ($again)" sh -c "echo $number >/sys/bus/virtio/drivers/virtio_net/bind"
        ip address add "$NET_GUEST/30" dev $tap
        ip link set $tap up
        carries "after the driver was unbound and bound ($again)"
    done
fi
