# shellcheck shell=sh
# The card on a tap as its driver sees it, and what the control queue changes: address, filter, MTU.
if [ -z "${NET_AGENT:-}" ]; then
    skipped "a network card" "there is none; see scripts/linux --help, --net"
else
    # shellcheck source-path=SCRIPTDIR source=network.sh
    . "$1/network.sh"
    equal "eth0 has the virtio_net driver" virtio_net "$(basename "$(readlink -f /sys/class/net/$tap/device/driver)")"
    equal "eth0 has the address that it was given" "$NET_MAC" "$(cat /sys/class/net/$tap/address)"
    equal "eth0 has the MTU that it was given" "$NET_MTU" "$(cat /sys/class/net/$tap/mtu)"
    equal "eth0 has a carrier" 1 "$(cat /sys/class/net/$tap/carrier)"
    equal "eth0 has its queues" "$NET_QUEUES" "$(/usr/sbin/ethtool -l $tap | awk '/^Combined/ { print $2; exit }')"
    ip -6 address add "$NET_GUEST6/64" dev $tap
    equal "pings to the host" 4 "$(ping -q -c 4 -A -w 20 "$NET_HOST" | sed -n 's/.* \([0-9]*\) packets received.*/\1/p')"
    equal "pings from the host" 4 "$(ask ping "$NET_GUEST")"
    equal "long pings to the host" 4 \
        "$(ping -q -c 4 -A -w 20 -s $((NET_MTU - 28)) "$NET_HOST" | sed -n 's/.* \([0-9]*\) packets received.*/\1/p')"

    need_piece
    equal "passt: a piece from the host" "$NET_PIECE" "$(wc -c </tmp/piece)"
    equal "passt: a stream from the host" "$(ask checksum)" "$(stream | stdin_sum)"

    succeeds "a smaller MTU" ip link set $tap mtu 1280
    carries "at an MTU of 1280"
    succeeds "the MTU of the device" ip link set $tap mtu "$NET_MTU"
    if ip link set $tap mtu $((NET_MTU + 1)) 2>/dev/null; then
        failed "a larger MTU is refused" "it was taken"
    else
        equal "a larger MTU is refused" "$NET_MTU" "$(cat /sys/class/net/$tap/mtu)"
    fi

    succeeds "another address for eth0" ip link set $tap address 02:00:00:00:00:77
    ask forget >/dev/null
    ip neigh flush dev $tap
    carries "with another address"
    equal "the host sees that address" 02:00:00:00:00:77 "$(ask neighbour "$NET_GUEST")"
    succeeds "the first address again" ip link set $tap address "$NET_MAC"
    ask forget >/dev/null
    ip neigh flush dev $tap
    carries "with the first address again"

    # strays NAME ADDRESS COMES: whether 4 pings of 1,242 bytes that are for nobody here are received.
    strays() {
        strays_before=$(received_bytes)
        ask stray "$2" >/dev/null
        strays_bytes=$(($(received_bytes) - strays_before))
        if [ "$3" = yes ] && [ $strays_bytes -lt 4968 ] || [ "$3" = no ] && [ $strays_bytes -ge 1242 ]; then
            failed "$1" "$strays_bytes bytes were received"
        else
            ok "$1"
        fi
    }
    other=192.0.2.3 group=239.1.2.3
    strays "frames for others are left to the host" "$other" no
    succeeds "promiscuous mode" ip link set $tap promisc on
    strays "in promiscuous mode they come" "$other" yes
    succeeds "no promiscuous mode" ip link set $tap promisc off
    strays "without it they stay away again" "$other" no
    strays "groups that nobody has joined are left to the host" "$group" no
    succeeds "all multicast" ifconfig $tap allmulti
    strays "with all multicast they come" "$group" yes
    strays "and frames for others do not" "$other" no
    succeeds "no more all multicast" ifconfig $tap -allmulti
    strays "without it groups stay away again" "$group" no
fi
