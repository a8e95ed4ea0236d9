# shellcheck shell=bash
# A Linux host in QEMU's software emulation (TCG), for machines whose /dev/kvm cannot run a Linux guest or is absent.
# TCG's `-cpu max` emulates AMD SVM, so Debian's kernel loads kvm-amd in there and real virtual machines run in it.
# Sourced after packages.sh, progress.sh, debian-linux.sh and linux-images.sh. Budget: 7 s to boot and end, 3.5 ns an instruction,
# 50 to 150 us a VM exit, about 3 MB/s through a virtio disk of a guest.
#
#   emulated_host SCRIPT [FILE...]    runs SCRIPT (any executable; busybox sh is /bin/sh) as root in there, its output on
#       standard output, and sets EMULATED_STATUS to its exit status, or to 125 when the host did not come to its end,
#       which is explained on standard error. Each FILE, or FILE=NAME, file or directory, stands in /work, which is the current directory
#       and on PATH. Programs linked dynamically bring this machine's libraries along.
#   Read before each call:
#     EMULATED_OUT=DIR         what the script leaves in /out ($OUT) is copied into DIR
#     EMULATED_TIMEOUT=600     for how many seconds it may say nothing; after two thirds of that what stands still in there
#                              is told and the script gets SIGTERM (status 143), and 125 is the status if the host has
#                              not ended by then
#     EMULATED_INTERACTIVE=no  yes: the terminal is the script's, keys and all
#     EMULATED_LOG_WRITES=FILE every write and flush that reaches the scratch disk, in order, as QEMU's blklogwrites
#                              writes it (the format of Linux' dm-log-writes); see blocklog_entries
#     EMULATED_QEMU_ARGS=(...) further arguments of QEMU, say -smp 4 or -m 7168
#
# What there is to prove that a flush is an fdatasync (Debian's cloud kernel has, in /sys/kernel/tracing/events):
#   block/block_rq_issue and block_rq_complete: rwbs has F first for a flush before, F last for FUA; /scratch is alone on
#       vdb (device 254,16), so `echo 'dev == 0xfe00010' > events/block/block_rq_issue/filter` counts its flushes alone;
#   ext4/ext4_sync_file_enter and _exit: the inode, datasync=1 for fdatasync, whatever way it was asked for;
#   io_uring/io_uring_submit_sqe: opcode 3 is FSYNC; io_uring_complete;
#   syscalls/sys_enter_fdatasync, sys_enter_fsync, raw_syscalls; kvm/*; kprobe_events (dynamic) also work.
# Writes are no longer in the page cache, but in the disk's: only what precedes a flush in the log is durable.

# shellcheck disable=SC2034 # read by the scripts that source this
EMULATED_OUT='' EMULATED_TIMEOUT=600 EMULATED_INTERACTIVE=no EMULATED_LOG_WRITES='' EMULATED_QEMU_ARGS=() EMULATED_STATUS=''

need_emulated_host_commands() {
    need_commands qemu-system-x86_64=qemu-system-x86 setpriv=util-linux
    need_image_commands
}

emulated_host() {
    local script=$1 run tree
    shift
    new_directory outboard-emulated-host
    run=$REPLY tree=$run/tree
    mkdir "$tree"
    base_tree "$tree" emulated-host-init
    mkdir "$tree"/{work,out,scratch}
    write_terminal "$tree/etc/terminal" "$EMULATED_INTERACTIVE"
    echo "QUIET_LIMIT=$((EMULATED_TIMEOUT * 2 / 3))" >>"$tree/etc/terminal"
    cp -L "$script" "$tree/work/script"
    chmod 755 "$tree/work/script"
    cp "$TESTS_LINUX/state" "$tree/usr/sbin/state"
    bring_files "$tree" "$@"
    make_ext4 "$run/root.img" 6G "$tree"
    rm -rf "$tree"
    make_ext4 "$run/scratch.img" 1G
    build_initrd "$run/initrd.img"

    run_emulated_host "$run"
    if settle_ext4 "$run/root.img" && read_ext4 "$run/root.img" /status "$run/status"; then
        EMULATED_STATUS=$(<"$run/status")
    else
        # shellcheck disable=SC2034
        EMULATED_STATUS=125
        say "the emulated host did not come to its end: QEMU ended with status $BOUNDED_STATUS" \
            "$([ "$BOUNDED_STATUS" -ne 124 ] || echo "after $EMULATED_TIMEOUT silent seconds"); its kernel's last messages:"
        tail -n 50 "$run/kernel.log" >&2 || true
        [ ! -e "$run/registers" ] || { say "and before those, its processor (HLT=1: it waits):" && cat "$run/registers" >&2; }
    fi
    if [ -n "$EMULATED_OUT" ]; then
        mkdir -p "$EMULATED_OUT"
        copy_out "$run/root.img" "$EMULATED_OUT"
    fi
    [ -z "$EMULATED_LOG_WRITES" ] || mv "$run/writes.log" "$EMULATED_LOG_WRITES"
    rm -rf "$run"
}

# bring_files TREE [FILE[=NAME]...]
bring_files() {
    local tree=$1 file name
    shift
    for file in "$@"; do
        name=${file##*/}
        if [[ $file == *=* ]]; then name=${file##*=} file=${file%=*}; fi
        [ -e "$file" ] || die "there is no $file to take into the emulated host"
        mkdir -p "$tree/work/$(dirname "$name")"
        cp -rL --sparse=always "$file" "$tree/work/$name"
        if [ -f "$file" ] && [ -x "$file" ]; then bring_libraries "$tree" "$file"; fi
    done
}

# bring_libraries TREE PROGRAM: what ldd names, if anything; a static program or a script needs none.
bring_libraries() {
    local library
    { ldd "$2" 2>/dev/null || true; } | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' |
        while read -r library; do
            case $library in
                */ld-linux-x86-64.so.2) cp -L "$library" "$1/usr/lib64/" ;;
                *) cp -L "$library" "$1/usr/lib/x86_64-linux-gnu/" ;;
            esac
        done
}

run_emulated_host() { # DIRECTORY
    local run=$1 scratch=(-blockdev "driver=file,filename=$1/scratch.img,node-name=scratch-file"
        -blockdev "driver=raw,file=scratch-file,node-name=scratch-raw")
    local disk="scratch-raw" arguments nudge
    if [ -z "$EMULATED_LOG_WRITES" ]; then
        # The host's own disk need not be asked to sync: the image is thrown away.
        scratch[3]+=,cache.no-flush=on
    else
        : >"$run/writes.log"
        scratch+=(-blockdev "driver=file,filename=$run/writes.log,node-name=writes-log"
            -blockdev "driver=blklogwrites,file=scratch-raw,log=writes-log,log-sector-size=512,node-name=scratch-logged")
        disk="scratch-logged"
    fi
    # One processor: with two, virtual machines in there stand still at times or break down (a triple fault, a page fault
    # in the page fault's own code), the more often the more their devices interrupt; QEMU 7.2's emulation is suspected.
    # shellcheck disable=SC2054 # the commas are QEMU's
    arguments=(-accel "tcg,thread=multi" -cpu max -M q35 -m 3072 -smp 1 -nodefaults -display none -no-reboot -nic none
        -kernel "$LINUX_FILES/vmlinuz" -initrd "$run/initrd.img"
        -append "console=ttyS1 root=/dev/vda panic=-1 loglevel=6 nokaslr mitigations=off unknown_nmi_panic"
        -chardev "stdio,id=terminal,signal=$([ "$EMULATED_INTERACTIVE" = yes ] && echo off || echo on)"
        -serial chardev:terminal -serial "file:$run/kernel.log"
        -chardev "pipe,id=monitor,path=$run/monitor" -mon chardev=monitor
        -drive "if=none,id=root,file=$run/root.img,format=raw,cache=unsafe,discard=unmap"
        -device virtio-blk-pci,drive=root
        "${scratch[@]}" -device "virtio-blk-pci,drive=$disk" "${EMULATED_QEMU_ARGS[@]}")
    : >"$run/kernel.log"
    mkfifo "$run/monitor.in" "$run/monitor.out"
    setpriv --pdeathsig TERM cat <"$run/monitor.out" >"$run/monitor.log" 2>/dev/null &
    CLEANUP_PIDS+=("$!")
    setpriv --pdeathsig TERM sh -c "$NUDGE" <>"$run/monitor.in" >&0 2>/dev/null &
    nudge=$!
    CLEANUP_PIDS+=("$nudge")
    run_bounded "$EMULATED_INTERACTIVE" "$EMULATED_TIMEOUT" "$run/kernel.log" qemu-system-x86_64 "${arguments[@]}"
    kill "$nudge" 2>/dev/null || true
    wait "$nudge" 2>/dev/null || true
}

# A key is pressed every few seconds, to which nobody listens. QEMU 7.2's emulation loses an interrupt now and then: the
# timer's then stays pending at the APIC (`info lapic` of its monitor: IRR 236, ISR none) while a virtual machine in there
# waits for a lock, for ever, since nothing but that timer would let the lock's owner run. With the next interrupt of any
# other device the processor looks again, and all goes on.
# shellcheck disable=SC2016
NUDGE='while sleep 5; do echo sendkey shift; done'

# run_bounded INTERACTIVE SECONDS LOG COMMAND...: COMMAND never outlives the script. It is ended when it has said nothing for
# so many seconds, neither on standard output nor in the file LOG, which may be the empty string; one at a terminal, when so
# many seconds are over. Sets BOUNDED_STATUS, to 124 then.
run_bounded() {
    local interactive=$1 seconds=$2 log=$3 said command reader watch
    shift 3
    BOUNDED_STATUS=0
    if [ "$interactive" = yes ]; then
        setpriv --pdeathsig TERM timeout --foreground -k 10 "$seconds" "$@" || BOUNDED_STATUS=$?
        return
    fi
    new_directory outboard-said
    said=$REPLY
    mkfifo "$said/pipe"
    : >"$said/output"
    # In the background, so that a signal to this script is answered at once.
    setpriv --pdeathsig TERM "$@" </dev/null >"$said/pipe" &
    command=$!
    tee "$said/output" <"$said/pipe" &
    reader=$!
    end_if_still "$command" "$seconds" "$said/still" "$said/output" ${log:+"$log"} &
    watch=$!
    CLEANUP_PIDS+=("$command" "$watch")
    wait "$command" || BOUNDED_STATUS=$?
    kill "$watch" 2>/dev/null || true
    wait "$watch" 2>/dev/null || true
    wait "$reader" || true
    CLEANUP_PIDS=()
    [ ! -e "$said/still" ] || BOUNDED_STATUS=124
    rm -rf "$said"
}

end_if_still() { # PID SECONDS MARK FILE...
    local pid=$1 seconds=$2 mark=$3
    shift 3
    stands_still "$seconds" "$pid" "$@" || return 0
    : >"$mark"
    [ $# -lt 2 ] || ask_where "$(dirname "$2")"
    kill "$pid"
    sleep 20
    kill -KILL "$pid"
} >/dev/null 2>&1

# ask_where DIRECTORY: of an emulated host that tells nothing any more. What its processor does is left in the file registers
# there; an NMI makes its kernel end, with a trace of where it was.
ask_where() {
    [ -p "$1/monitor.in" ] || return 0
    timeout 10 sh -c 'printf "info registers\ninfo lapic\n" >"$1"' sh "$1/monitor.in"
    sleep 2
    tr -d '\r' <"$1/monitor.log" | grep -E '^(RIP|RAX|RSI|CS|CR0|R8)|HLT=|^ISR|^IRR' >"$1/registers"
    timeout 10 sh -c 'echo nmi >"$1"' sh "$1/monitor.in"
    sleep 5
}

# copy_out IMAGE DIRECTORY
copy_out() {
    debugfs -R "rdump /out $2" "$1" >"$1.debugfs" 2>&1 || true
    if [ -d "$2/out" ]; then
        cp -r --sparse=always "$2/out/." "$2/" && rm -rf "$2/out"
    fi
    rm -f "$1.debugfs"
}

# blocklog_entries FILE: one line for each entry of a log that EMULATED_LOG_WRITES made: first sector, number of sectors
# (of 512 bytes), and any of the words write, flush, fua, discard.
blocklog_entries() {
    need_commands perl=perl
    perl -e '
        open my $log, "<:raw", $ARGV[0] or die "cannot read $ARGV[0]: $!\n";
        sub words { my $n = read $log, my $bytes, 32; $n == 32 or die "$ARGV[0] ends early\n"; unpack "Q<4", $bytes }
        my ($magic, $version, $entries, $size) = words();
        $magic == 0x6a736677736872 && $version == 1 or die "$ARGV[0] is no block log\n";
        $size &= 0xffffffff;
        for (my $at = $size; $entries > 0; $entries--) {
            seek $log, $at, 0;
            my ($sector, $count, $flags, undef) = words();
            $at += $size + ($flags & 4 ? 0 : $count * $size);
            my @words = (($flags & 1 ? "flush" : ()), ($flags & 2 ? "fua" : ()), ($flags & 4 ? "discard" : ()));
            unshift @words, "write" if $count && !($flags & 4);
            print "$sector $count @words\n";
        }' "$1"
}
