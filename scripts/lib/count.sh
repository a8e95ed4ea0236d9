# shellcheck shell=bash
# Counting tests of several kinds into one line. A step may run in a subshell: the counts live in files.

new_directory outboard-counts
COUNTS=$REPLY
touch "$COUNTS/passed" "$COUNTS/failed" "$COUNTS/skipped"

# A name a line; the skipped ones with their reason.
pass() { echo "$1" >>"$COUNTS/passed"; }
fail() {
    echo "$1" >>"$COUNTS/failed"
    printf 'FAILED: %s\n' "$1"
}
skip() {
    echo "$1: $2" >>"$COUNTS/skipped"
    printf 'SKIPPED: %s: %s\n' "$1" "$2"
}

# check NAME COMMAND...: one test, a command that succeeds.
check() {
    local name=$1
    shift
    if "$@"; then pass "$name"; else fail "$name"; fi
}

# count_cargo STEP COMMAND...: a command that runs Rust's test harness with --show-output, or libtest-mimic. A test of
# Rust's own harness cannot say at run time that it was skipped: it prints `SKIP: reason` and is taken out of the passed
# ones here. A run of part of the tests is one that a test made of its own program, and does not count.
count_cargo() {
    local step=$1 status=0 log passed failed
    shift
    log=$COUNTS/$step.log
    "$@" 2>&1 | tee "$log" || status=$?
    skips "$log" >"$COUNTS/now"
    passed=$(sum "$log" passed)
    failed=$(sum "$log" failed)
    repeat "$step" $((passed - $(wc -l <"$COUNTS/now"))) >>"$COUNTS/passed"
    sed "s/^/$step: /" "$COUNTS/now" >>"$COUNTS/skipped"
    # Rust's harness says `ignored, reason`, libtest-mimic `ignored (reason)`.
    sed -n "s/)\$//; s/^test \(.*[^ ]\) *\.\.\. ignored[, (]*/$step: \1: /p" "$log" >>"$COUNTS/skipped"
    sed -n "s/^test \(.*\) \.\.\. FAILED.*/$step: \1/p" "$log" >>"$COUNTS/failed"
    if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
        fail "$step: ended with status $status before its tests did"
    elif [ $((passed + failed)) -eq 0 ] && ! grep -q '^test .* ignored' "$log"; then
        fail "$step: ran no test"
    fi
}

# A line for each test that said SKIP, however often: its name and its first reason.
skips() { # LOG
    awk '/^---- .* stdout ----$/ { name = $2 }
        /^SKIP: / && name != "" { sub(/^SKIP: /, ""); print name ": " $0; name = "" }' "$1"
}

# count_checks STEP COMMAND...: a command that prints `CHECK name: ok`, `CHECK name: FAILED why` or
# `CHECK name: skipped why`.
count_checks() {
    local step=$1 status=0 log
    shift
    log=$COUNTS/$step.log
    "$@" 2>&1 | tee "$log" || status=$?
    tr -d '\r' <"$log" | sed -n "s/^CHECK \(.*\): ok.*/$step: \1/p" >>"$COUNTS/passed"
    tr -d '\r' <"$log" | sed -n "s/^CHECK \(.*\): FAILED/$step: \1/p" >"$COUNTS/now"
    tr -d '\r' <"$log" | sed -n "s/^CHECK \(.*\): skipped/$step: \1:/p" >>"$COUNTS/skipped"
    cat "$COUNTS/now" >>"$COUNTS/failed"
    if [ "$status" -ne 0 ] && [ ! -s "$COUNTS/now" ]; then
        fail "$step: ended with status $status before its checks did"
    elif ! grep -q '^CHECK ' "$log"; then
        fail "$step: ran no check"
    fi
}

# Adds up the counts of one kind in the summary lines of Rust's harness.
sum() { # LOG KIND
    sed -n "/ 0 filtered out/s/^test result: .* \([0-9]*\) $2;.*/\1/p" "$1" | awk '{ sum += $1 } END { print sum + 0 }'
}

repeat() { # TEXT TIMES
    local i
    for ((i = 0; i < $2; i++)); do echo "$1"; done
}

# Prints what was skipped and what failed, then the one line of counts; fails when a test did.
report_counts() {
    sed 's/^/SKIPPED: /' "$COUNTS/skipped"
    sed 's/^/FAILED: /' "$COUNTS/failed"
    printf '%d passed, %d failed, %d skipped\n' \
        "$(wc -l <"$COUNTS/passed")" "$(wc -l <"$COUNTS/failed")" "$(wc -l <"$COUNTS/skipped")"
    [ ! -s "$COUNTS/failed" ]
}
