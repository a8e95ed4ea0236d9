# shellcheck shell=bash
# Back-ends of others in the checks of the Linux guest, whose kernel has drivers for what the bundled guest does not know:
# virtiofsd (a file system) and vhost-device-vsock (streams). Sourced after peers.sh and before linux-guest.sh.
#
#   plan_peers WAY     (WAY: kvm or emulated), for those that scripts/peers has built; the others are told to the checks
#     as missing. It sets PEERS_RUN (words for `outboard run`), PEERS_WRAP (what the run is put after), PEERS_WORDS (names
#     of the variables that tests/linux/with-peers reads), PEERS_FILES (what an emulated host needs) and PEERS_EXPECT
#     (environment of the checks)

# shellcheck disable=SC2034 # read by linux-guest.sh
PEERS_RUN=() PEERS_WRAP=() PEERS_WORDS=() PEERS_FILES=() PEERS_EXPECT=()

plan_peers() { # WAY
    local here=.
    need_commands socat=socat
    if [ "$1" = kvm ]; then
        here=$TESTS_LINUX
        new_directory outboard-peers
        PEERS_AT=$REPLY PEERS_BUSYBOX=$LINUX_FILES/busybox
    else
        PEERS_AT=/tmp/peers PEERS_BUSYBOX=/usr/bin/busybox
        PEERS_FILES=("$TESTS_LINUX"/{with-peers,host-agent,steady,state,listing} "$(command -v socat)")
    fi
    PEERS_WRAP=("$here/with-peers")
    PEERS_WORDS=(PEERS_AT PEERS_BUSYBOX)
    plan_peer "$1" vhost-device-vsock PEER_VSOCK "virtio-id=19,socket=$PEERS_AT/vsock.socket,queues=3,config-size=8"
    # The tag is in the configuration space: 36 bytes, then the number of queues and of bytes in a notification.
    plan_peer "$1" virtiofsd PEER_VIRTIOFSD "virtio-id=26,socket=$PEERS_AT/fs.socket,queues=2,config-size=44"
    export "${PEERS_WORDS[@]}"
}

plan_peer() { # WAY NAME VARIABLE DEVICE
    if ! peer_program "$2"; then
        say "$REPLY: it is not checked"
        PEERS_EXPECT+=("$3_MISSING=$REPLY")
        return
    fi
    printf -v "$3" '%s' "$REPLY"
    if [ "$1" = emulated ]; then
        PEERS_FILES+=("$REPLY")
        printf -v "$3" './%s' "$2"
    fi
    PEERS_WORDS+=("$3")
    PEERS_RUN+=(--device "$4,wait=30s")
    PEERS_EXPECT+=("$3=$2 $(peer_version "$2")")
}
