# shellcheck shell=sh
# Devices whose back-ends are programs that others wrote (tests/linux/with-peers), by the kernel's own drivers.

# cell PEER WHAT BEFORE: one of README's table of peers; it has passed if nothing has failed since BEFORE.
cell() {
    if [ "$FAILURES" -eq "$3" ]; then outcome=passed; else outcome=failed; fi
    echo "CELL back-ends of others, our VMM | $1 | $2 | $outcome"
}

# vsock WORDS [COMMAND...]: to tests/linux/host-agent, with what the command writes; its answer is the output, and ends
# the connection. Linux waits for two seconds for the other side's answer to connect(2), which is too little on a busy machine;
# SO_VM_SOCKETS_CONNECT_TIMEOUT (6, of AF_VSOCK, 40) makes it 120 (a struct timeval).
vsock_patience=setsockopt-listen=40:6:x78000000000000000000000000000000
vsock() {
    vsock_words=$1
    shift
    { echo "$vsock_words" && "$@"; } |
        steady "vsock, $vsock_words" /usr/bin/socat -t 3600 - "VSOCK-CONNECT:2:7000,shut-none,$vsock_patience" |
        { read -r _ && cat; }
}

stdin_sum() { sha256sum | cut -d ' ' -f 1; }

if [ -z "${PEER_VSOCK:-}" ]; then
    skipped "vsock" "${PEER_VSOCK_MISSING:-there is no such device}"
else
    before=$FAILURES
    equal "vsock: a stream from the host" "$(vsock checksum :)" "$(vsock fetch : | stdin_sum)"
    head -c 2000000 /dev/urandom >/tmp/stream
    equal "vsock: a stream to the host" "$(file_sum /tmp/stream)" "$(vsock "store 2000000" cat /tmp/stream)"
    cell "$PEER_VSOCK" "data compared" "$before"
fi

if [ -z "${PEER_VIRTIOFSD:-}" ]; then
    skipped "virtiofs" "${PEER_VIRTIOFSD_MISSING:-there is no such device}"
else
    before=$FAILURES
    mkdir -p /data/share
    succeeds "virtiofs: mounted" mount -t virtiofs share /data/share
    succeeds "virtiofs: a tree copied from the host" cp -a /data/share/tree /data/tree
    "$1/listing" /data/tree >/tmp/listing
    succeeds "virtiofs: the tree copied to the host" cp -a /data/tree /data/share/back
    if [ -n "${PEER_VSOCK:-}" ]; then
        equal "virtiofs: the tree is the host's" "$(vsock "listing tree" : | stdin_sum)" "$(file_sum /tmp/listing)"
        equal "virtiofs: the host's copy is the tree" "$(file_sum /tmp/listing)" "$(vsock "listing back" : | stdin_sum)"
        positive "virtiofs: files in the tree" "$(grep -c many/ /tmp/listing)"
        cell "$PEER_VIRTIOFSD" "data compared" "$before"
    else
        skipped "virtiofs: what the host says of the tree" "it is asked by vsock, which is missing"
    fi
    succeeds "virtiofs: unmounted" umount /data/share
fi
