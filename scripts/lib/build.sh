# shellcheck shell=bash
# Builds what the scripts run. Sourced after packages.sh, with $top set to the checkout.
#
#   build_products    outboard and its back-ends: sets OUTBOARD_BIN, or takes the directory that the user has named there
#   build_guests      the bundled guest in its three packagings: sets GUESTS
#   build_bench       the program behind scripts/bench: sets BENCH

TARGET=x86_64-unknown-linux-gnu
: "${CARGO_TARGET_DIR:=$top/target}"
case $CARGO_TARGET_DIR in
    /*) ;;
    *) CARGO_TARGET_DIR=$PWD/$CARGO_TARGET_DIR ;;
esac
export CARGO_TARGET_DIR
# For cargo build.
BUILD_OPTIONS=()

need_build_commands() {
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$top/Cargo.toml")
    command -v cargo >/dev/null || die "cargo is missing: install Rust $needed or later from https://rustup.rs"
    # What the checkout's own directory gets, should rustup have several.
    found=$(cd "$top" && rustc --version) || die "cargo is there, but rustc does not run; see above"
    found=${found#rustc }
    found=${found%%[ -]*}
    printf '%s\n' "$needed" "$found" | sort -VC ||
        die "rustc $found is too old: Outboard needs $needed or later; run \`rustup update stable\`," \
            "or install it from https://rustup.rs (a distribution's own is often older)"
    need_commands cc=gcc
}

build_products() {
    if [ -n "${OUTBOARD_BIN:-}" ]; then
        [ -x "$OUTBOARD_BIN/outboard" ] || die "there is no program outboard in OUTBOARD_BIN=$OUTBOARD_BIN"
        OUTBOARD_BIN=$(cd "$OUTBOARD_BIN" && pwd)
        say "using the programs in $OUTBOARD_BIN"
        return
    fi
    need_build_commands
    build --release -p outboard -p outboard-blk -p outboard-net -p outboard-rng
    OUTBOARD_BIN=$CARGO_TARGET_DIR/$TARGET/release
    export OUTBOARD_BIN
}

build_guests() {
    need_build_commands
    GUESTS=$CARGO_TARGET_DIR/guest
    export GUESTS
    CARGO_TARGET_DIR=$CARGO_TARGET_DIR/guest-build "$top/tests/guest/build" "$GUESTS" >&2
}

build_bench() {
    build --release -p outboard-bench
    # Read by the script that called.
    # shellcheck disable=SC2034
    BENCH=$CARGO_TARGET_DIR/$TARGET/release/outboard-bench
}

build() {
    say "building: cargo build --locked $*"
    (cd "$top" && cargo build --locked "${BUILD_OPTIONS[@]}" "$@") >&2 || die "the build failed; see above"
}

# have_kvm: whether this machine has a /dev/kvm that may be used; why not is in REPLY.
have_kvm() {
    REPLY=
    if [ ! -e /dev/kvm ]; then
        REPLY='there is no /dev/kvm'
    elif ! { : <>/dev/kvm; } 2>/dev/null; then
        REPLY="/dev/kvm may not be opened by $(id -un): run as root"
        # A group without rights to it would be no use.
        (((0$(stat -c %a /dev/kvm) & 060) != 060)) || REPLY+=", or join the group $(stat -c %G /dev/kvm)"
    else
        return 0
    fi
    return 1
}
