# shellcheck shell=bash
# Counting tests of several kinds into one line. Sourced after packages.sh and progress.sh.
#
# Little of a long output may survive, so a passing test says nothing here, and report_counts repeats in the end what the
# failed ones have said. The whole output of each step is left in $LOGS/STEP.log. A step that says nothing any more is
# ended, and is a failure that names the tests which had not come to their end.

new_directory outboard-counts
COUNTS=$REPLY
mkdir -p "${LOGS:=$COUNTS}"
touch "$COUNTS/passed" "$COUNTS/failed" "$COUNTS/skipped" "$COUNTS/said"
mkfifo "$COUNTS/pipe"

# For how many seconds a step may say nothing. A test that hangs gives up earlier, by itself.
QUIET_LIMIT=1200
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

# logged LOG FILTER COMMAND...: runs the command with all of its output in the log and what the filter leaves of it on
# the screen, until it ends or says nothing for QUIET_LIMIT seconds; sets STATUS, and STOOD_STILL to yes or no.
logged() {
    local log=$1 filter=$2 command reader watch i
    shift 2
    STATUS=0 STOOD_STILL=no
    rm -f "$COUNTS/still"
    # In the background, so that a signal to this script is answered at once; and in a process group of its own, which is
    # ended as a whole: that is what timeout(1) does here, which has no limit.
    timeout 0 "$@" >"$COUNTS/pipe" 2>&1 </dev/null &
    command=$!
    tee "$log" <"$COUNTS/pipe" | "$filter" &
    reader=$!
    watch_step "$command" "$log" &
    watch=$!
    CLEANUP_PIDS=("$command" "$reader" "$watch")
    wait "$command" || STATUS=$?
    kill "$watch" 2>/dev/null || true
    wait "$watch" 2>/dev/null || true
    [ ! -e "$COUNTS/still" ] || STOOD_STILL=yes
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

# watch_step PID LOG: ends it when it stands still.
watch_step() {
    stands_still "$QUIET_LIMIT" "$1" "$2" || return 0
    : >"$COUNTS/still"
    kill -TERM "$1"
    sleep 30
    kill -KILL -- "-$1"
} >/dev/null 2>&1

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
    if [ "$STOOD_STILL" = yes ]; then
        { tail -n 30 "$log" && unfinished "$log"; } | fail "$step: stood still, and said nothing for $QUIET_LIMIT s"
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
# `CHECK name: skipped why`.
count_checks() {
    local step=$1 log=$LOGS/$1.log failed=0 line name
    shift
    logged "$COUNTS/raw" what_fails_or_is_skipped "$@"
    tr -d '\r' <"$COUNTS/raw" >"$log"
    sed -n "s/^CHECK \(.*\): ok.*/$step: \1/p" "$log" >>"$COUNTS/passed"
    sed -n "s/^CHECK \(.*\): skipped/$step: \1:/p" "$log" >>"$COUNTS/skipped"
    while IFS=: read -r line name; do
        name=${name#CHECK }
        # What precedes it, and what it shows beside its own line.
        awk -v line="$line" 'NR > line && /^CHECK / { exit } NR > line - 8' "$log" | fail "$step: ${name%%: FAILED*}"
        failed=$((failed + 1))
    done < <(grep -n '^CHECK .*: FAILED' "$log" || true)
    if [ "$STOOD_STILL" = yes ]; then
        fail "$step: stood still, and said nothing for $QUIET_LIMIT s" 30 <"$log"
    elif [ "$STATUS" -ne 0 ] && [ "$failed" -eq 0 ]; then
        fail "$step: ended with status $STATUS before its checks did" 30 <"$log"
    elif ! grep -q '^CHECK ' "$log"; then
        fail "$step: ran no check" 30 <"$log"
    fi
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
    sed 's/^/SKIPPED: /' "$COUNTS/skipped"
    cat "$COUNTS/said"
    [ ! -s "$COUNTS/failed" ] || printf '\n'
    sed 's/^/FAILED: /' "$COUNTS/failed"
    printf '%d passed, %d failed, %d skipped\n' \
        "$(wc -l <"$COUNTS/passed")" "$(wc -l <"$COUNTS/failed")" "$(wc -l <"$COUNTS/skipped")"
    [ ! -s "$COUNTS/failed" ]
}
