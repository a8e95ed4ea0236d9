# shellcheck shell=bash
# The peers: vhost-user programs that others wrote, which the tests run against ours. Those of QEMU are Debian's packages;
# the others are built from crates.io, pinned and with the lock file that each came with. Sourced after packages.sh.
#
#   fetch_peers            installs and builds what is missing; a peer that cannot be had is said, and is no failure
#   peer_program NAME      sets REPLY to the program's file; false if it cannot be had, with the reason in REPLY
#   export_peers           PEER_NAME=FILE into the environment for those that were built, as tests/peers wants it
#
# A program is in ${OUTBOARD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/outboard}/peers/NAME-VERSION/bin/NAME. It is static, so
# that it also runs in a guest or an emulated host. It appears by one rename, and is never built again. Beside it, after a
# build that failed, is NAME-VERSION.log.

PEERS_DIRECTORY=${OUTBOARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/outboard}/peers
# NAME=VERSION on crates.io, each with a program of the same name.
PEER_CRATES="vhost-device-rng=0.1.0 vhost-device-vsock=0.3.0 virtiofsd=1.14.0"
PEER_TARGET=x86_64-unknown-linux-gnu
# COMMAND=PACKAGE
PEER_COMMANDS="qemu-storage-daemon=qemu-utils qemu-img=qemu-utils qemu-system-x86_64=qemu-system-x86 strace=strace"

fetch_peers() {
    local pair lock missing=()
    for pair in $PEER_COMMANDS; do
        # In a subshell: a package that is not to be had ends it alone.
        (need_commands "$pair") || say "without ${pair%%=*}, the tests against it are skipped"
    done
    for pair in $PEER_CRATES; do
        peer_program "${pair%%=*}" || missing+=("$pair")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    mkdir -p "$PEERS_DIRECTORY" || die "cannot make the cache $PEERS_DIRECTORY; set OUTBOARD_CACHE to a directory that can be written"
    need_commands flock=util-linux
    exec {lock}>"$PEERS_DIRECTORY/lock"
    flock -w 1800 "$lock" || die "another process has been filling $PEERS_DIRECTORY for 30 minutes"
    rm -rf "$PEERS_DIRECTORY"/.building.*
    for pair in "${missing[@]}"; do
        peer_program "${pair%%=*}" || build_peer "${pair%%=*}" "${pair#*=}" || say "without ${pair%%=*}, the tests against it are skipped"
    done
    exec {lock}>&-
}

build_peer() { # NAME VERSION
    local name=$1 version=$2 building log=$PEERS_DIRECTORY/$1-$2.log
    command -v cargo >/dev/null || { say "cargo is missing: install Rust (stable) from https://rustup.rs"; return 1; }
    need_peer_libraries "$name" 2>"$log" || { tail -n 3 "$log" >&2; return 1; }
    building=$(mktemp -d "$PEERS_DIRECTORY/.building.XXXXXXXX") || return 1
    CLEANUP_PATHS+=("$building")
    say "building $name $version from crates.io (once)"
    # Quickly rather than well: nothing is measured with them.
    if (
        cd "$building" &&
            CARGO_TARGET_DIR=$building/target CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
                CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols \
                LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/x86_64-linux-gnu \
                LIBCAPNG_LINK_TYPE=static LIBCAPNG_LIB_PATH=/usr/lib/x86_64-linux-gnu \
                RUSTFLAGS='-C target-feature=+crt-static' \
                timeout 1500 cargo install --quiet --locked --version "=$version" --target "$PEER_TARGET" \
                --root "$building/$name-$version" --no-track "$name" >"$log" 2>&1
    ); then
        mv -T "$building/$name-$version" "$PEERS_DIRECTORY/$name-$version" && rm -rf "$building" "$log"
    else
        rm -rf "$building"
        say "could not build $name $version; the end of $log:"
        tail -n 5 "$log" >&2
        return 1
    fi
}

# The C libraries that a crate links, with their archives.
need_peer_libraries() { # NAME
    [ "$1" = virtiofsd ] || return 0
    if [ ! -e /usr/lib/x86_64-linux-gnu/libseccomp.a ] || [ ! -e /usr/lib/x86_64-linux-gnu/libcap-ng.a ]; then
        # In a subshell: it ends there if they are not to be had.
        (install_packages libseccomp-dev libcap-ng-dev)
    fi
}

peer_program() { # NAME
    local pair
    for pair in $PEER_CRATES; do
        if [ "${pair%%=*}" = "$1" ]; then
            REPLY=$PEERS_DIRECTORY/$1-${pair#*=}/bin/$1
            [ ! -x "$REPLY" ] || return 0
            REPLY="$1 ${pair#*=} was not built: see $PEERS_DIRECTORY/$1-${pair#*=}.log"
            return 1
        fi
    done
    REPLY=$(command -v "$1") || { REPLY="there is no program $1"; return 1; }
}

# peer_version NAME: as the program itself says it, or as it was pinned.
peer_version() {
    local pair
    for pair in $PEER_CRATES; do
        if [ "${pair%%=*}" = "$1" ]; then
            echo "${pair#*=}"
            return
        fi
    done
    "$1" --version | sed -n '1s/^.*version \([0-9.]*\).*$/\1/p'
}

export_peers() {
    local pair name
    for pair in $PEER_CRATES; do
        name=${pair%%=*}
        name=${name^^}
        if peer_program "${pair%%=*}"; then export "PEER_${name//-/_}=$REPLY"; fi
    done
}

# A line for each peer: its name, its version, its file; or why there is none.
list_peers() {
    local pair
    for pair in $PEER_COMMANDS $PEER_CRATES; do
        if peer_program "${pair%%=*}"; then
            printf '%-20s %-10s %s\n' "${pair%%=*}" "$(peer_version "${pair%%=*}")" "$REPLY"
        else
            printf '%-20s %-10s %s\n' "${pair%%=*}" missing "$REPLY"
        fi
    done
}
