# shellcheck shell=sh
# What the checks of the network have in common. They are told (by scripts/lib/linux-network.sh): NET_HOST and NET_HOST6,
# NET_GUEST and NET_GUEST6, the addresses at the tap, which is eth0 here; NET_MTU, NET_QUEUES and NET_MAC, what that card
# was given; NET_AGENT, the host as it is reached by eth1, which is passt's; NET_PIECES, the size of the stream.
tap=eth0

# say HOST WORDS [CONTENT...]: to tests/linux/host-agent, with what the command CONTENT writes; its answer is the output. It
# comes with the end of the connection, which is the agent's to end: passt of 2023 does not like it when one direction has
# ended. The command writes to the socket itself, in large pieces, since nc copies a kilobyte at a time.
say() {
    say_to=$1
    shift
    # shellcheck disable=SC2016
    nc "$say_to" 7000 -e /bin/sh -c 'echo "$1"; shift; "$@"; exec cat >&3' sh "$@" 3>&1
}

# ask WORDS: the same by eth1.
ask() { say "$NET_AGENT" "$*" :; }

# The stream of host-agent, from the piece that was fetched once.
stream() { /checks/stream "$NET_PIECES"; }
megabyte() { dd if=/tmp/piece bs=1000000 count=1 2>/dev/null; }

stdin_sum() { sha256sum | cut -d ' ' -f 1; }

# fetched HOST, stored HOST: checksums of the stream, as it came, and as the host says that it came. came: how many bytes
# were fetched.
fetched() { { say "$1" fetch : | tee /proc/self/fd/3 | wc -c >/tmp/came; } 3>&1 | stdin_sum; }
came() { cat /tmp/came; }
stored() { say "$1" "store $(stream | wc -c)" /checks/stream "$NET_PIECES"; }

# again TRIES WHY: whether what was cut short is to be tried again, which is noted. passt gives a connection up when nothing
# has come for two seconds, which an emulated guest (whose stream has one piece) may need on a busy machine; so what ended
# early by passt is tried three times there. What came whole and is wrong, is wrong.
again() {
    [ "$NET_PIECES" -eq 1 ] && [ "$1" -lt 3 ] && echo "NOTE passt gave a connection up: $2; it is tried again"
}

# by_passt NAME EXPECTED: the stream both ways by passt's card.
by_passt() {
    by_length=$(stream | wc -c)
    for by_try in 1 2 3; do
        by_sum=$(fetched "$NET_AGENT")
        [ "$(came)" -lt "$by_length" ] || break
        again "$by_try" "$(came) of $by_length bytes came" || break
    done
    equal "$1: TCP from the host" "$2" "$by_sum"
    for by_try in 1 2 3; do
        by_sum=$(stored "$NET_AGENT")
        [ -z "$by_sum" ] || break
        again "$by_try" "there was no answer" || break
    done
    equal "$1: TCP to the host" "$2" "$by_sum"
}

# carries NAME: pings and a megabyte each way get through the tap's card.
carries() {
    ping -q -c 2 -A -w 20 "$NET_HOST" >/tmp/output 2>&1
    equal "$1: pings" "2 packets received" "$(grep -o '[0-9]* packets received' /tmp/output)"
    carries_sum=$(megabyte | stdin_sum)
    equal "$1: a megabyte to the host" "$carries_sum" \
        "$(say "$NET_HOST" "store 1000000" dd if=/tmp/piece bs=1000000 count=1 2>/dev/null)"
    equal "$1: a megabyte from the host" "$carries_sum" "$(say "$NET_HOST" "fetch 1000000" : | stdin_sum)"
}

# await_file FILE CONTENT: true within 15 seconds.
await_file() {
    await_tries=0
    until [ "$(cat "$1" 2>/dev/null)" = "$2" ]; do
        await_tries=$((await_tries + 1))
        [ "$await_tries" -lt 150 ] || return 1
        sleep 0.1
    done
}

# feature NAME: on or off, and fixed, as ethtool -k says.
feature() { /usr/sbin/ethtool -k "$tap" | sed -n "s/^[[:space:]]*$1: //p"; }

received_bytes() { cat /sys/class/net/$tap/statistics/rx_bytes; }
