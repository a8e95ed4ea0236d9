# shellcheck shell=bash
# Counting tests of several kinds into one line. Sourced after packages.sh.
#
# Little of a long output may survive, so a passing test says nothing here, and report_counts repeats in the end what the
# failed ones have said. The whole output of each step is left in $LOGS/STEP.log. A step that does not end is ended, and
# is a failure that names the tests which had not come to their end.

new_directory outboard-counts
COUNTS=$REPLY
mkdir -p "${LOGS:=$COUNTS}"
touch "$COUNTS/passed" "$COUNTS/failed" "$COUNTS/skipped" "$COUNTS/said" "$COUNTS/notes"
mkfifo "$COUNTS/pipe"

# How long a step may take in seconds. A deadline against hangs: each takes a few minutes at most.
STEP_LIMIT=900
# Lines that a failed test has in the end.
MOST_LINES=40

# A name a line; the skipped ones with their reason.
pass() { echo "$1" >>"$COUNTS/passed"; }
# fail NAME [LINES]: the last lines of standard input are what it has said.
fail() {
    echo "$1" >>"$COUNTS/failed"
    printf 'FAILED: %s\n' "$1"
    { printf '\n---- %s\n' "$1" && tail -n "${2:-$MOST_LINES}"; } >>"$COUNTS/said"
}
skip() {
    echo "$1: $2" >>"$COUNTS/skipped"
    printf 'SKIPPED: %s: %s\n' "$1" "$2"
}

# What is no failure, but to be known.
note() {
    echo "$1" >>"$COUNTS/notes"
    printf 'NOTE: %s\n' "$1"
}

# logged LOG FILTER COMMAND...: runs the command with all of its output in the log and what the filter leaves of it on
# the screen, for STEP_LIMIT seconds at most; sets STATUS, and TOO_LONG to yes or no.
logged() {
    local log=$1 filter=$2 command reader start=$SECONDS i
    shift 2
    STATUS=0 TOO_LONG=no
    # In the background, so that a signal to this script is answered at once; and in a process group of its own, which is
    # ended as a whole.
    timeout --kill-after=30 "$STEP_LIMIT" "$@" >"$COUNTS/pipe" 2>&1 </dev/null &
    command=$!
    tee "$log" <"$COUNTS/pipe" | "$filter" &
    reader=$!
    CLEANUP_PIDS=("$command" "$reader")
    wait "$command" || STATUS=$?
    [ $((SECONDS - start)) -lt "$STEP_LIMIT" ] || TOO_LONG=yes
    if [ "$STATUS" -ge 124 ]; then
        # What is left may hold the pipe, also from outside the group.
        kill -KILL -- "-$command" 2>/dev/null || true
        for ((i = 0; i < 50; i++)); do
            kill -0 "$reader" 2>/dev/null || break
            sleep 0.1
        done
        kill "$reader" 2>/dev/null || true
    fi
    wait "$reader" 2>/dev/null || true
    CLEANUP_PIDS=()
}

# check NAME COMMAND...: one test, a command that succeeds.
check() {
    local name=$1 log=$LOGS/${1//\//-}.log
    shift
    logged "$log" nothing "$@"
    if [ "$STATUS" -eq 0 ]; then pass "$name"; else fail "$name" <"$log"; fi
}

nothing() { cat >/dev/null; }

# count_cargo STEP COMMAND...: a command that runs Rust's test harness with --show-output, or libtest-mimic. A test of
# Rust's own harness cannot say at run time that it was skipped: it prints `SKIP: reason` and is taken out of the passed
# ones here. A run of part of the tests is one that a test made of its own program, and does not count.
count_cargo() {
    local step=$1 log=$LOGS/$1.log passed failed=0 name
    shift
    logged "$log" what_cargo_says_of_note "$@"
    skips "$log" >"$COUNTS/now"
    passed=$(sum "$log" passed)
    repeat "$step" $((passed - $(wc -l <"$COUNTS/now"))) >>"$COUNTS/passed"
    sed "s/^/$step: /" "$COUNTS/now" >>"$COUNTS/skipped"
    # Rust's harness says `ignored, reason`, libtest-mimic `ignored (reason)`.
    sed -n "s/)\$//; s/^test \(.*[^ ]\) *\.\.\. ignored[, (]*/$step: \1: /p" "$log" >>"$COUNTS/skipped"
    while read -r name; do
        said_by "$name" "$log" | fail "$step: $name"
        failed=$((failed + 1))
    done < <(failures "$log" | awk '!seen[$0]++')
    # A program that broke down has no line of counts, and so no failed test.
    while IFS=: read -r line name; do
        head -n "$line" "$log" >"$COUNTS/until"
        { sed -n 'H; /^ *Running /h; ${ x; p }' "$COUNTS/until" | tail -n 30; unfinished "$COUNTS/until"; } |
            fail "$step: a program of tests ended by ${name##*(}"
        failed=$((failed + 1))
    done < <(grep -n "process didn't exit successfully: .*(signal: " "$log" || true)
    if [ "$TOO_LONG" = yes ]; then
        { tail -n 30 "$log" && unfinished "$log"; } | fail "$step: did not end within $STEP_LIMIT s"
    elif [ "$STATUS" -ne 0 ] && [ "$failed" -eq 0 ]; then
        fail "$step: ended with status $STATUS before its tests did" 30 <"$log"
    elif [ $((passed + failed)) -eq 0 ] && ! grep -q '^test .* ignored' "$log"; then
        fail "$step: ran no test" 30 <"$log"
    fi
}

# A line for each test that said SKIP, however often: its name and its first reason.
skips() { # LOG
    awk '/^---- .* stdout ----$/ { name = $2 }
        /^SKIP: / && name != "" { sub(/^SKIP: /, ""); print name ": " $0; name = "" }' "$1"
}

# The failed tests: those that the harness lists by name before its line of counts.
failures() { # LOG
    awk '/^failures:$/ { listed = 1; next }
        /^test result: / || /^---- / { listed = 0 }
        listed && sub(/^    /, "")' "$1"
}

# What a failed test has said: its section after `failures:`.
said_by() { # NAME LOG
    NAME=$1 awk 'BEGIN { name = "---- " ENVIRON["NAME"] }
        /^(successes|failures):$/ || /^test result: / { failures = $0 == "failures:"; shown = 0; next }
        /^---- .* ----$/ { shown = failures && ($0 == name " ----" || $0 == name " stdout ----"); next }
        shown && NF' "$2"
}

# The tests of the program that ran last that the harness has said nothing of, as many as run side by side.
unfinished() { # LOG
    local program
    program=$(sed -n 's/^ *Running .*(\(.*\))$/\1/p' "$1" | tail -n 1)
    [ -x "$program" ] || return 0
    timeout 10 "$program" --list 2>/dev/null | sed -n 's/: test$//p' >"$COUNTS/listed" || true
    sed -n 's/^test \(.*[^ ]\) *\.\.\. .*/\1/p' "$1" >"$COUNTS/now"
    echo 'These tests had not ended, or not begun:'
    grep -v -x -F -f "$COUNTS/now" "$COUNTS/listed" | head -n "$(nproc)" || true
}

# What cargo and its tests say, without the tests that passed and what they said.
what_cargo_says_of_note() {
    awk '/^successes:$/ { passed = 1 }
        /^(failures:|test result: .*)$/ { passed = 0 }
        passed || !NF || /^running [0-9]+ test/ || /^test .*\.\.\. ok$/ || /^ +(Compiling|Finished|Doc-tests) / { next }
        { print; fflush() }'
}

# count_checks STEP COMMAND...: a command that prints `CHECK name: ok`, `CHECK name: FAILED why` or
# `CHECK name: skipped why`; also `NOTE what`.
count_checks() {
    local step=$1 log=$LOGS/$1.log failed=0 line name
    shift
    logged "$COUNTS/raw" what_fails_or_is_skipped "$@"
    if [ "$STATUS" -ne 0 ] && stood_still "$COUNTS/raw"; then
        cp "$COUNTS/raw" "$LOGS/$step.stood-still.log"
        note "$step: the emulated host stood still, see $step.stood-still.log; everything in it was run once more"
        logged "$COUNTS/raw" what_fails_or_is_skipped "$@"
    fi
    tr -d '\r' <"$COUNTS/raw" >"$log"
    sed -n "s/^CHECK \(.*\): ok.*/$step: \1/p" "$log" >>"$COUNTS/passed"
    sed -n "s/^CHECK \(.*\): skipped/$step: \1:/p" "$log" >>"$COUNTS/skipped"
    sed -n "s/^NOTE /$step: /p" "$log" >>"$COUNTS/notes"
    while IFS=: read -r line name; do
        name=${name#CHECK }
        # What precedes it, and what it shows beside its own line.
        awk -v line="$line" 'NR > line && /^CHECK / { exit } NR > line - 8' "$log" | fail "$step: ${name%%: FAILED*}"
        failed=$((failed + 1))
    done < <(grep -n '^CHECK .*: FAILED' "$log" || true)
    if [ "$TOO_LONG" = yes ]; then
        fail "$step: did not end within $STEP_LIMIT s" 30 <"$log"
    elif [ "$STATUS" -ne 0 ] && [ "$failed" -eq 0 ]; then
        fail "$step: ended with status $STATUS before its checks did" 30 <"$log"
    elif ! grep -q '^CHECK ' "$log"; then
        fail "$step: ran no check" 30 <"$log"
    fi
}

# QEMU's emulation of a processor that runs virtual machines stands still at times (once in some dozen runs, with two
# emulated processors more often): true if that is all that has failed. Whatever a check has found to be wrong is a failure.
stood_still() { # LOG
    grep -q 'in an emulated host' "$1" &&
        grep -q -E 'did not come to (its|their) end|: FAILED it ended with status 143' "$1" &&
        ! grep -E 'CHECK .*: FAILED' "$1" | grep -v -q 'it ended with status 143'
}

what_fails_or_is_skipped() {
    awk '/^CHECK .*: ok\r?$/ || /^SHA256 / { next } { print; fflush() }'
}

# Adds up the counts of one kind in the summary lines of Rust's harness.
sum() { # LOG KIND
    sed -n "/ 0 filtered out/s/^test result: .* \([0-9]*\) $2;.*/\1/p" "$1" | awk '{ sum += $1 } END { print sum + 0 }'
}

repeat() { # TEXT TIMES
    local i
    for ((i = 0; i < $2; i++)); do echo "$1"; done
}

# Prints what was skipped, what the failed tests have said, which they are, then the one line of counts; fails when a
# test did.
report_counts() {
    sed 's/^/NOTE: /' "$COUNTS/notes"
    sed 's/^/SKIPPED: /' "$COUNTS/skipped"
    cat "$COUNTS/said"
    [ ! -s "$COUNTS/failed" ] || printf '\n'
    sed 's/^/FAILED: /' "$COUNTS/failed"
    printf '%d passed, %d failed, %d skipped\n' \
        "$(wc -l <"$COUNTS/passed")" "$(wc -l <"$COUNTS/failed")" "$(wc -l <"$COUNTS/skipped")"
    [ ! -s "$COUNTS/failed" ]
}
