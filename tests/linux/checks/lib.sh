# shellcheck shell=sh
# The words of the checks. A check is sourced after this file by a shell of its own, with -u.
FAILURES=0

ok() { echo "CHECK $*: ok"; }
skipped() { # NAME WHY
    echo "CHECK $1: skipped $2"
}
failed() { # NAME WHY
    echo "CHECK $1: FAILED $2"
    FAILURES=$((FAILURES + 1))
}

# equal NAME EXPECTED FOUND
equal() {
    if [ "$2" = "$3" ]; then ok "$1"; else failed "$1" "expected '$2', found '$3'"; fi
}

# expected NAME EXPECTED FOUND: as equal, if there is an expectation.
expected() {
    if [ -n "$2" ]; then equal "$1" "$2" "$3"; else skipped "$1" "nothing is expected; found '$3'"; fi
}

# positive NAME NUMBER
positive() {
    if [ "$2" -gt 0 ] 2>/dev/null; then ok "$1"; else failed "$1" "expected more than 0, found '$2'"; fi
}

# succeeds NAME COMMAND...: its output is shown if it fails.
succeeds() {
    succeeds_name=$1
    shift
    if "$@" >/tmp/output 2>&1; then
        ok "$succeeds_name"
    else
        failed "$succeeds_name" "status $? of: $*"
        tail -n 20 /tmp/output
    fi
}

# The content of a disk's first N blocks of 64 KiB, past the page cache, as a checksum.
disk_sum() { # DISK BLOCKS [FIRST]
    dd if="$1" iflag=direct bs=64k count="$2" skip="${3:-0}" 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

file_sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# Waits until a command succeeds. The deadline is against hangs alone: this machine may be emulated twice over.
await() { # COMMAND...
    await_tries=0
    until "$@"; do
        await_tries=$((await_tries + 1))
        [ "$await_tries" -lt 1000 ] || return 1
        sleep 0.1
    done
}

# steady NAME COMMAND...: ends it when it stands still, and then tells what there is to know of it.
steady() {
    steady_name=$1
    shift
    /checks/steady 120 "$steady_name" "$@"
}

# Whether there is a second disk. Where one is expected, that it is missing fails: a check that has lost it does not make
# the later ones skip.
second_disk() {
    if [ -z "${EXPECT_SECOND_SERIAL:-}" ]; then
        test -b /dev/vdb
    elif ! await test -b /dev/vdb; then
        failed "there is a second disk" "there is no /dev/vdb, but $(echo /sys/block/vd*)"
        false
    fi
}
