# shellcheck shell=sh
# What the checks of the network have in common. They are told (by scripts/lib/linux-network.sh): NET_HOST and NET_HOST6,
# NET_GUEST and NET_GUEST6, the addresses at the tap, which is eth0 here; NET_MTU, NET_QUEUES and NET_MAC, what that card
# was given; NET_AGENT, the host as it is reached by eth1, which is passt's; NET_PIECES, the size of the stream.
tap=eth0
# TCP makes its segments for the card as small as two packets where it is slow, which makes an emulated guest yet slower:
# each costs it a dozen exits, and 5 MB take 8 to 13 s instead of 4.
echo 32 >/proc/sys/net/ipv4/tcp_min_tso_segs
# What is closed here and not acknowledged is said once more, not 8 times: after a stream, passt of 2023-03-09 acknowledges it
# with a sequence number that TCP has to ignore, and what then comes for a minute can make it loop for ever (README.md).
echo 1 >/proc/sys/net/ipv4/tcp_orphan_retries

# say HOST WORDS [CONTENT...]: to tests/linux/host-agent, with what the command CONTENT writes; its answer is the output. It
# comes with the end of the connection, which is the agent's to end: passt of 2023 does not like it when one direction has
# ended. The command writes to the socket itself, in large pieces, since nc copies a kilobyte at a time.
say() {
    say_to=$1 say_words=$2
    shift
    # shellcheck disable=SC2016
    steady "$say_words, at $say_to" nc "$say_to" 7000 -e /bin/sh -c 'echo "$1"; shift; "$@"; read -r _; exec cat >&3' sh "$@" 3>&1
    say_status=$?
    [ $say_status -ne 124 ] || host_side
    return $say_status
}

# host_side: what the host has to say when something stands still here, by whichever card it can still be reached.
host_side() {
    for host_at in "$NET_HOST" "$NET_AGENT"; do
        host_state=$(echo state | /checks/steady 20 "what the host says, at $host_at" nc "$host_at" 7000) || continue
        echo "  the host's side, by $host_at:"
        echo "$host_state" | sed 1d
        break
    done >&2
}

# explain FAILURES: what both sides have to say if there are more failures than those; a connection that somebody has cut off
# is counted there.
explain() {
    [ "$FAILURES" -eq "$1" ] || { /checks/state && host_side; } 2>&1
}

# ask WORDS: the same by eth1.
ask() { say "$NET_AGENT" "$*" :; }

# The stream of host-agent, from the piece that was fetched once.
stream() { /checks/stream "$NET_PIECES"; }
megabyte() { dd if=/tmp/piece bs=1000000 count=1 status=none; }

stdin_sum() { sha256sum | cut -d ' ' -f 1; }

# fetched HOST, stored HOST: checksums of the stream and how many bytes it was, as it came, and as the host says that it came.
fetched() { { say "$1" fetch : | tee /proc/self/fd/3 | wc -c >/tmp/came; } 3>&1 | echo "$(stdin_sum) $(cat /tmp/came)"; }
stored() { say "$1" "store $(stream | wc -c)" /checks/stream "$NET_PIECES"; }

# need_piece: what the checks send, fetched once, by the card of passt.
need_piece() {
    [ "$(wc -c 2>/dev/null </tmp/piece)" = "$NET_PIECE" ] || ask piece >/tmp/piece
}

# ready_card: the card on the tap as it was given, and the piece; whatever a check before this one has left, if it was ended.
ready_card() {
    ip link set $tap up mtu "$NET_MTU" address "$NET_MAC" promisc off
    ifconfig $tap -allmulti
    ip -4 address show dev $tap | grep -q -F "$NET_GUEST/" || ip address add "$NET_GUEST/30" dev $tap
    ip -6 address show dev $tap | grep -q -F "$NET_GUEST6/" || ip -6 address add "$NET_GUEST6/64" dev $tap
    [ "$(pairs)" = "$NET_QUEUES" ] || /usr/sbin/ethtool -L $tap combined "$NET_QUEUES"
    /usr/sbin/ethtool -K $tap tx on sg on tso on gso on gro on rx-gro-hw on
    need_piece
} >/tmp/ready 2>&1

pairs() { /usr/sbin/ethtool -l $tap | awk '/^Combined/ { pairs = $2 } END { print pairs }'; }

# carries NAME: pings and a megabyte each way get through the tap's card.
carries() {
    ping -q -c 2 -A -w 20 "$NET_HOST" >/tmp/output 2>&1
    equal "$1: pings" "2 packets received" "$(grep -o '[0-9]* packets received' /tmp/output)"
    carries_sum=$(megabyte | stdin_sum)
    equal "$1: a megabyte to the host" "$carries_sum" \
        "$(say "$NET_HOST" "store 1000000" dd if=/tmp/piece bs=1000000 count=1 status=none)"
    equal "$1: a megabyte from the host" "$carries_sum" "$(say "$NET_HOST" "fetch 1000000" : | stdin_sum)"
}

# await_file FILE CONTENT: waits until the file has it.
await_file() { await has "$@"; }
has() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# feature NAME: on or off, and fixed, as ethtool -k says.
feature() { /usr/sbin/ethtool -k "$tap" | sed -n "s/^[[:space:]]*$1: //p"; }

received_bytes() { cat /sys/class/net/$tap/statistics/rx_bytes; }

# begin_echo: one connection by the card on the tap, by which a stream goes to the host and back until end_echo. The
# beginning of the piece again and again, each time after its number, the last of which is in /tmp/parts. While it goes
# there is no /tmp/enough.
begin_echo() {
    rm -f /tmp/enough /tmp/ended /tmp/copy
    mkfifo /tmp/copy
    echo 0 >/tmp/parts
    stdin_sum </tmp/copy >/tmp/sent &
    echoed >/tmp/came &
}
flow() {
    flow_number=0
    until [ -e /tmp/enough ]; do
        echo "part $flow_number" && dd if=/tmp/piece bs=100000 count=1 status=none || return
        flow_number=$((flow_number + 1))
        echo $flow_number >/tmp/parts
    done
}
# The checksum of what comes back; how the connection ended is left in /tmp/ended. Its buffers are small, so that
# what is in them at the end does not take an emulated guest half a minute.
echoed() {
    { echo echo && flow | tee /tmp/copy; } | {
        steady "the connection" /usr/bin/socat -t 3600 - "TCP:$NET_HOST:7000,sndbuf=65536,rcvbuf=65536"
        echo $? >/tmp/ended
    } | { read -r _ && stdin_sum; }
}
# end_echo NAME: and whatever else this shell has in the background ends.
end_echo() {
    : >/tmp/enough
    wait
    equal "the connection was not reset, $1" 0 "$(cat /tmp/ended)"
    equal "what went to the host and back is what was sent, $1" "$(cat /tmp/sent)" "$(cat /tmp/came)"
    positive "it was more than nothing, $1" "$(cat /tmp/parts)"
    rm -f /tmp/enough /tmp/copy
}

# swapped DEVICE [qemu]: another back-end takes the device over (tests/linux/swap, on the host); its answer is in
# /tmp/swapped.
swapped() {
    ask swap "$@" >/tmp/swapped 2>&1
    grep -q "^$1: .* not served for " /tmp/swapped || { cat /tmp/swapped && false; }
}
