# shellcheck shell=sh
# The tap is turned off on the host, and on again; then it is deleted there: the guest's cable is out, and nothing else.
# The host counts what the card's process has said of it. The checks of the disks come after this.
if [ -z "${NET_AGENT:-}" ]; then
    skipped "a tap that goes" "there is no network; see scripts/linux --help, --net"
else
    # shellcheck source-path=SCRIPTDIR source=network.sh
    . "$1/network.sh"
    ready_card
    equal "the tap is turned off" ok "$(ask tap down)"
    if ping -q -c 1 -W 2 "$NET_HOST" >/dev/null 2>&1; then
        failed "nothing gets through it" "a ping was answered"
    else
        ok "nothing gets through it"
    fi
    equal "the tap is turned on" ok "$(ask tap up)"
    succeeds "eth0 has a carrier then" await_file /sys/class/net/$tap/carrier 1
    carries "after that"
    equal "the tap is deleted" ok "$(ask tap delete)"
    succeeds "eth0 has lost its carrier" await_file /sys/class/net/$tap/carrier 0
    succeeds "eth0 is turned off without a tap" ip link set $tap down
    succeeds "eth0 is turned on without a tap" ip link set $tap up
    number=$(basename "$(readlink -f /sys/class/net/$tap/device)")
    succeeds "virtio_net is unbound without a tap" sh -c "echo $number >/sys/bus/virtio/drivers/virtio_net/unbind"
    succeeds "virtio_net is bound without a tap" sh -c "echo $number >/sys/bus/virtio/drivers/virtio_net/bind"
    ip link set $tap up
    succeeds "eth0 has no carrier" await_file /sys/class/net/$tap/carrier 0
    equal "the other card still works" "$(head -c 1000 /tmp/piece | stdin_sum)" "$(ask fetch 1000 | stdin_sum)"
    rm -f /tmp/piece
fi
