# shellcheck shell=bash
# The network of a Linux guest: which kind this host allows, its words on the command lines of Outboard and of the
# guest's kernel, and the environment of tests/linux/with-network, which makes it. Sourced before linux-guest.sh.
#
#   plan_network WAY CHECKS     (WAY: kvm or emulated; CHECKS: yes or no), if GUEST_NET is yes:
#     a tap, where one can be made: on the host that the guest runs on, which is root's or an emulated one;
#     passt, elsewhere: the guest then reaches what the user reaches, and needs no rights for it;
#     for the checks both, in a network of their own, or none if this user may not have one.
#   It sets NETWORK_RUN     (words for `outboard run`)       NETWORK_CMDLINE (for the guest's kernel: ip=, read by its init)
#           NETWORK_WRAP    (what the run is put after)      NETWORK_WORDS   (names of the variables with-network reads)
#           NETWORK_FILES   (what an emulated host needs)    NETWORK_EXPECT  (environment of the checks)

# shellcheck disable=SC2034 # read by linux-guest.sh
NETWORK_WRAP_INSIDE=() NETWORK_RUN=() NETWORK_CMDLINE='' NETWORK_WRAP=() NETWORK_WORDS=() NETWORK_FILES=() NETWORK_EXPECT=()

plan_network() { # WAY CHECKS
    [ "$GUEST_NET" = yes ] || return 0
    if [ "$2" = yes ]; then
        plan_checked_network "$1" || return 0
    elif [ "$1" = emulated ] || can_make_taps; then
        plan_tap "$1" "$(free_tap "$1")" 1500 "$GUEST_NET_OPTIONS"
    else
        say "without root there is no tap: the guest's network is passt's"
        plan_passt "$1" eth0 192.0.2.1 192.0.2.2 "$GUEST_NET_OPTIONS"
        say "the host's loopback is $NET_PEER_HOST, by TCP (a ping of it is not answered), the guest $NET_PEER_GUEST"
    fi
    NETWORK_WRAP+=("$TESTS_LINUX/with-network")
    if [ "$1" = emulated ]; then
        NETWORK_WRAP=(./with-network)
        NETWORK_FILES+=("$TESTS_LINUX/with-network" "$(command -v ip)" "$OUTBOARD_BIN/outboard-net")
    fi
    NETWORK_WRAP+=("${NETWORK_WRAP_INSIDE[@]}")
    export "${NETWORK_WORDS[@]}"
}

# CAP_NET_ADMIN, and the device that taps are made with.
can_make_taps() {
    local effective
    effective=$(awk '$1 == "CapEff:" { print $2 }' /proc/self/status)
    (((16#$effective >> 12) & 1)) && [ -w /dev/net/tun ]
}

# The first name outboard0, outboard1, ... that is free on this host; an emulated one has no other.
free_tap() { # WAY
    local number=0
    if [ "$1" = kvm ]; then
        while [ -e "/sys/class/net/outboard$number" ]; do number=$((number + 1)); done
    fi
    echo "outboard$number"
}

# Addresses are of TEST-NET-1 and of 2001:db8::/32, which nobody is given.
plan_tap() { # WAY TAP MTU OPTIONS [QUEUES]
    local number=${2#outboard}
    need_commands ip=iproute2
    ((number < 12)) || die "there are 12 taps of scripts/linux already: ip link show"
    NET_TAP=$2 NET_MTU=$3 NET_QUEUES=$(disk_option "$4" queues 1)
    NET_HOST=192.0.2.$((number * 16 + 1)) NET_GUEST=192.0.2.$((number * 16 + 2))
    NET_ADDRESSES="$NET_HOST/30 2001:db8:$number::1/64"
    NETWORK_WORDS+=(NET_TAP NET_MTU NET_QUEUES NET_ADDRESSES)
    NETWORK_RUN+=(--net "tap=$NET_TAP${4:+,${4#,}}")
    NETWORK_CMDLINE+=" ip=$NET_GUEST::$NET_HOST:255.255.255.252::eth0:off"
    say "the tap $NET_TAP: the host is $NET_HOST, the guest $NET_GUEST"
}

# A flood of pings to the guest's card, beside the run.
plan_flood() { # WAY
    NET_MAC=02:00:00:00:00:02 NET_BUSYBOX=$LINUX_FILES/busybox
    GUEST_NET_OPTIONS+=,mac=$NET_MAC
    NETWORK_WORDS+=(NET_GUEST NET_MAC NET_BUSYBOX)
    NETWORK_WRAP_INSIDE=("$TESTS_LINUX/flood")
    if [ "$1" = emulated ]; then
        NET_BUSYBOX=/usr/bin/busybox
        NETWORK_WRAP_INSIDE=(./flood)
        NETWORK_FILES+=("$TESTS_LINUX/flood")
    fi
}

plan_passt() { # WAY INTERFACE HOST GUEST OPTIONS
    need_commands passt=passt
    NET_PEER_HOST=$3 NET_PEER_GUEST=$4 NET_PEER_DNS=192.0.2.53
    # passt may not write where only root may: it does not stay root.
    NET_PEER=/tmp/passt
    if [ "$1" = kvm ]; then
        new_directory outboard-passt
        [ "$(id -u)" -ne 0 ] || chown nobody "$REPLY"
        NET_PEER=$REPLY/socket
    fi
    NETWORK_WORDS+=(NET_PEER NET_PEER_HOST NET_PEER_GUEST NET_PEER_DNS)
    NETWORK_RUN+=(--net "peer=$NET_PEER${5:+,${5#,}}")
    NETWORK_FILES+=("$(command -v passt)")
    NETWORK_CMDLINE+=" ip=$NET_PEER_GUEST::$NET_PEER_HOST:255.255.255.252::$2:off:$NET_PEER_DNS"
}

# Two cards: the one under test on a tap, and passt, by which the checks reach the host when that one is broken.
plan_checked_network() { # WAY
    local mtu=2000 queues=4 piece=20000000
    if [ "$1" = kvm ]; then
        NETWORK_WRAP=(unshare -n)
        can_make_taps || NETWORK_WRAP=(unshare -rn)
        if ! "${NETWORK_WRAP[@]}" true 2>/dev/null; then
            say "${NETWORK_WRAP[*]} is refused: there is no network to check"
            NETWORK_WRAP=()
            return 1
        fi
    fi
    plan_tap "$1" outboard0 $mtu "queues=$queues,mtu=$mtu,mac=02:00:00:00:00:02"
    plan_passt "$1" eth1 192.0.2.5 192.0.2.6 ''
    need_commands qemu-storage-daemon=qemu-utils
    # An emulated guest's streams, a dozen of them, have to be shorter: half a megabyte a second is what passt comes to there.
    [ "$1" = kvm ] || piece=3000000
    # Of the user's machine nothing but this directory is reached by what the guest says.
    new_directory outboard-network
    head -c "$piece" /dev/urandom >"$REPLY/stream"
    NET_AGENT=$REPLY/stream NET_BUSYBOX=$LINUX_FILES/busybox NET_PIECES=50 NET_MESSAGES=$REPLY/messages NET_PEER_PORTS=7100
    NET_API=$REPLY/api
    if [ "$1" = emulated ]; then
        NETWORK_FILES+=("$NET_AGENT" "$TESTS_LINUX"/{host-agent,kills,swap,steady,state} "$(command -v qemu-storage-daemon)")
        NET_AGENT=stream NET_BUSYBOX=/usr/bin/busybox NET_PIECES=1 NET_MESSAGES=/out/messages NET_API=/tmp/api
    fi
    NETWORK_WORDS+=(NET_AGENT NET_BUSYBOX NET_PIECES NET_MESSAGES NET_PEER_PORTS NET_API)
    NETWORK_RUN+=(--api "$NET_API")
    NETWORK_EXPECT=("NET_HOST=$NET_HOST" NET_HOST6=2001:db8:0::1 NET_GUEST6=2001:db8:0::2 "NET_GUEST=$NET_GUEST"
        "NET_AGENT=$NET_PEER_HOST" "NET_PIECES=$NET_PIECES" "NET_PIECE=$piece" "NET_MTU=$mtu" "NET_QUEUES=$queues" NET_MAC=02:00:00:00:00:02)
}
