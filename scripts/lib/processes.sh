# shellcheck shell=bash
# What the processes of a VM are and what each of them holds, read from /proc.

# show_processes PID: the process, its descendants, and their descriptors in words.
show_processes() {
    show_process "$1" '  '
}

show_process() { # PID INDENT
    local pid=$1 indent=$2 child holds
    holds=$(process_holds "$pid") || return 0
    printf '%s%-12s pid %-7s %s\n' "$indent" "$(process_role "$pid")" "$pid" "$holds"
    for child in $(cat "/proc/$pid/task/"*/children 2>/dev/null); do
        show_process "$child" "$indent  "
    done
}

process_role() { # PID
    local words
    mapfile -d '' words <"/proc/$1/cmdline" 2>/dev/null || return 0
    case ${words[0]##*/}:${words[1]:-} in
        outboard:run) echo supervisor ;;
        outboard:machine) echo machine ;;
        *) echo "${words[0]##*/}" ;;
    esac
}

# What its descriptors are, counted by kind, and how much guest memory it has mapped.
process_holds() { # PID
    local fd target
    for fd in "/proc/$1/fd/"*; do
        target=$(readlink "$fd" 2>/dev/null) || continue
        case $target in
            /dev/null | pipe:* | /dev/pts/*) ;;
            socket:*) echo socket ;;
            *memfd:*) echo 'memfd' ;;
            'anon_inode:'*) target=${target#anon_inode:} && echo "${target//[\[\]]/}" ;;
            *) echo "${target##*/}" ;;
        esac
    done | sed 's/^kvm-vcpu:.*/vcpu/' | sort | uniq -c | awk '
        { count = $1; $1 = ""; sub(/^ /, ""); line = line (line ? ", " : "") (count > 1 ? count " " : "") $0 }
        END { print line }'
}
