# shellcheck shell=bash
# What several scripts need from the Debian machine they run on: the words for telling the user something, and
# the packages whose commands a script calls. To be sourced by bash scripts that run under `set -euo pipefail`.

# Commands such as mke2fs are not on an ordinary user's PATH on Debian.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# need_commands COMMAND=PACKAGE...
# Installs the Debian packages of those commands that are missing, or says which ones the user is to install.
need_commands() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null ||
            die "the command ${pair%%=*} is missing although the package ${pair#*=} is installed"
    done
}

# install_packages PACKAGE...
install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "needs the Debian package(s) $*; install them as root: apt-get install --no-install-recommends $*"
    fi
    local before gone
    say "installing $*"
    before=$(installed_packages)
    apt_install "$@" >&2 || {
        # The package lists may be empty or older than the archive.
        apt-get -q -o DPkg::Lock::Timeout=300 update >&2 || say "apt-get update failed; trying with the lists there are"
        apt_install "$@" >&2 || die "could not install $*; see what apt-get said above"
    }
    # A package of another release may have had to go: QEMU's tools for QEMU itself. It comes back in this release.
    mapfile -t gone < <(comm -23 <(echo "$before") <(installed_packages))
    [ ${#gone[@]} -eq 0 ] || apt_install "$@" "${gone[@]}" >&2 ||
        say "apt-get removed ${gone[*]} for $* and could not install both; see what it said above"
}

installed_packages() {
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
}

# When the script ends, however it ends, the processes in CLEANUP_PIDS are told to end and waited for, and everything
# in CLEANUP_PATHS is removed. A script that needs more on exit defines the function on_exit, and leaves the EXIT trap
# alone. (Both lists are the main shell's: a subshell has copies, and runs no trap.)
CLEANUP_PIDS=()
CLEANUP_PATHS=()
clean_up() {
    local status=$? path pid
    trap - EXIT INT TERM HUP
    if declare -F on_exit >/dev/null; then on_exit; fi
    for pid in "${CLEANUP_PIDS[@]}"; do
        if kill "$pid" 2>/dev/null; then wait "$pid" 2>/dev/null || true; fi
    done
    for path in "${CLEANUP_PATHS[@]}"; do rm -rf -- "$path"; done
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# new_directory PREFIX: prints nothing, sets REPLY to a fresh directory that is gone when the script ends.
new_directory() {
    REPLY=$(mktemp -d "${TMPDIR:-/tmp}/$1.XXXXXXXX") || die "cannot make a directory in ${TMPDIR:-/tmp}"
    CLEANUP_PATHS+=("$REPLY")
}
