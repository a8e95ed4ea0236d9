# shellcheck shell=bash
# Waiting for progress, not for so many seconds: on a busy machine everything takes longer, and nothing stands still.

# stands_still SECONDS PID FILE...: true once none of the FILEs has grown for so long, false once the process has ended.
# What counts is how often this has looked, so that a machine which stood still itself is not taken for the program.
# Nothing that it starts holds the script's outputs, and it is ended by a signal at once.
stands_still() {
    local limit=$1 pid=$2 still=0 each=2 now last=''
    shift 2
    while kill -0 "$pid" 2>/dev/null; do
        now=$(stat -c %s -- "$@" 2>/dev/null) || true
        if [ "$now" != "$last" ]; then still=0; else still=$((still + each)); fi
        last=$now
        [ "$still" -lt "$limit" ] || return 0
        sleep $each
    done >/dev/null 2>&1
    return 1
}
