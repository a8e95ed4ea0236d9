# shellcheck shell=bash
# What the processes of a VM are and what each of them holds, read from /proc.

# show_processes PID: the process, its descendants, and their descriptors in words.
show_processes() {
    show_process "$1" '  '
}

show_process() { # PID INDENT
    local pid=$1 indent=$2 child role
    role=$(process_role "$pid") && [ -n "$role" ] || return 0
    printf '%s%-14s pid %-7s %s\n' "$indent" "$role" "$pid" "$(process_holds "$pid")"
    for child in $(cat "/proc/$pid/task/"*/children 2>/dev/null); do
        show_process "$child" "$indent  "
    done
}

# A process that has ended meanwhile has no role.
process_role() { # PID
    local words
    { mapfile -d '' words <"/proc/$1/cmdline"; } 2>/dev/null || return 0
    case ${words[0]##*/}:${words[1]:-} in
        outboard:run) echo supervisor ;;
        outboard:machine) echo machine ;;
        *) echo "${words[0]##*/}" ;;
    esac
}

# What its descriptors beyond the three standard ones are, counted by kind.
process_holds() { # PID
    local fd target
    for fd in "/proc/$1/fd/"*; do
        case ${fd##*/} in 0 | 1 | 2) continue ;; esac
        target=$(readlink "$fd" 2>/dev/null) || continue
        case $target in
            socket:* | pipe:*) echo "${target%%:*}" ;;
            *memfd:*) echo 'memfd' ;;
            'anon_inode:'*) target=${target#anon_inode:} && echo "${target//[\[\]]/}" ;;
            *) echo "${target##*/}" ;;
        esac
    done | sed 's/^kvm-vcpu:.*/vcpu/' | sort | uniq -c | awk '
        { count = $1; $1 = ""; sub(/^ /, ""); line = line (line ? ", " : "") (count > 1 ? count " " : "") $0 }
        END { print line }'
}
