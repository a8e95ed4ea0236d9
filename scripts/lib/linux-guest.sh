# shellcheck shell=bash
# A Linux guest: its files, the three ways to run it, and what is read from its images afterwards. Sourced last, after
# emulated-host.sh. scripts/linux sets GUEST_CPUS, GUEST_MEMORY, GUEST_DISK_SIZE, GUEST_DISK_OPTIONS (each with a comma
# before it), GUEST_SECOND_DISK, GUEST_RUN_OPTIONS, GUEST_NET, GUEST_NET_OPTIONS, GUEST_COMMAND, GUEST_VERBOSE, GUEST_KEEP,
# GUEST_TIMEOUT and GUEST_VHOST_USER_BLK; its --help says what they mean. It has built what is run, called fetch_linux,
# and plan_network. `top` is the root of the source tree.

# linux_guest WAY (kvm, emulated or qemu) sets GUEST_STATUS: that of the command in the guest, or 125 when the guest did
# not come to its end. Its images are then in GUEST_DIRECTORY, until the script ends.
linux_guest() {
    local way=$1 status
    GUEST_INTERACTIVE=no
    if [ ${#GUEST_COMMAND[@]} -eq 0 ]; then
        [ -t 0 ] || die "a shell needs a terminal; without one give a command: scripts/linux -- COMMAND"
        GUEST_INTERACTIVE=yes
    fi
    : "${GUEST_TIMEOUT:=$([ "$GUEST_INTERACTIVE" = yes ] && echo 86400 || echo 600)}"
    need_image_commands
    new_directory outboard-linux
    GUEST_DIRECTORY=$REPLY
    prepare_guest "$GUEST_DIRECTORY"

    case $way in
        kvm) guest_on_kvm ;;
        emulated) guest_in_emulated_host ;;
        qemu) guest_under_qemu ;;
    esac
    status=$BOUNDED_STATUS
    [ "$way" != emulated ] || status=$EMULATED_STATUS

    GUEST_STATUS=125
    if [ ! -e "$GUEST_DIRECTORY/root.img" ]; then
        say "the root disk did not come back (status $status)"
    elif settle_ext4 "$GUEST_DIRECTORY/root.img" && read_ext4 "$GUEST_DIRECTORY/root.img" /status "$GUEST_DIRECTORY/status"; then
        GUEST_STATUS=$(<"$GUEST_DIRECTORY/status")
        if [ "$status" -ne 0 ]; then
            say "the guest came to its end, but its virtual machine monitor ended with status $status"
            GUEST_STATUS=125
        fi
    else
        say "the guest did not come to its end (status $status)$([ "$status" -ne 124 ] || echo ": ended after $GUEST_TIMEOUT silent seconds")"
    fi
    if [ -n "$GUEST_KEEP" ]; then
        mkdir -p "$GUEST_KEEP"
        find "$GUEST_DIRECTORY" -name '*.img' -exec cp --sparse=always -t "$GUEST_KEEP" {} +
        say "the images are in $GUEST_KEEP"
    fi
}

# prepare_guest DIRECTORY: vmlinuz, initrd.img, root.img and, if asked for, second.img.
prepare_guest() {
    local dir=$1 tree=$1/tree
    ln -s "$LINUX_FILES/vmlinuz" "$dir/vmlinuz"
    [ "$GUEST_KEXEC" = 0 ] || local INITRD_CHANGE=leave_devices_running
    build_initrd "$dir/initrd.img"
    mkdir "$tree"
    base_tree "$tree" guest-init
    cp -r "$LINUX_FILES/tools/." "$tree"
    cp -r "$TESTS_LINUX/checks" "$tree/checks"
    cp "$TESTS_LINUX"/{listing,steady,state} "$tree/checks/"
    if [ "$GUEST_KEXEC" != 0 ]; then
        mkdir "$tree/kexec"
        cp "$LINUX_FILES/vmlinuz" "$TESTS_LINUX/kexec" "$tree/kexec/"
        build_initrd "$tree/kexec/initrd.img" "$TESTS_LINUX/before-drivers"
    fi
    write_terminal "$tree/etc/terminal" "$GUEST_INTERACTIVE"
    if [ "$GUEST_INTERACTIVE" = no ]; then
        printf '#!/bin/sh\nexec %s\n' "${GUEST_COMMAND[*]@Q}" >"$tree/etc/command"
        chmod 755 "$tree/etc/command"
    fi
    make_ext4 "$dir/root.img" "$GUEST_DISK_SIZE" "$tree"
    rm -rf "$tree"
    if [ -n "$GUEST_SECOND_DISK" ]; then
        truncate -s "${GUEST_SECOND_DISK%%,*}" "$dir/second.img" || die "cannot make a disk of ${GUEST_SECOND_DISK%%,*}"
    fi
    GUEST_CMDLINE="console=ttyS0 root=/dev/vda panic=-1$([ "$GUEST_VERBOSE" = yes ] || echo ' quiet')$NETWORK_CMDLINE"
}

# GUEST_RUN: the command line, the same wherever it runs; all of its files are in the current directory. GUEST_WRAP: what it
# is put after; GUEST_WORDS: the names of variables that this reads.
compose_run() {
    local second_size=${GUEST_SECOND_DISK%%,*}
    GUEST_RUN=(outboard run --kernel vmlinuz --initrd initrd.img --cmdline "$GUEST_CMDLINE"
        --cpus "$GUEST_CPUS" --memory "$GUEST_MEMORY" --disk "path=root.img$GUEST_DISK_OPTIONS")
    if [ -n "$GUEST_SECOND_DISK" ]; then
        GUEST_RUN+=(--disk "path=second.img${GUEST_SECOND_DISK/#$second_size/}")
    fi
    GUEST_RUN+=("${NETWORK_RUN[@]}" "${PEERS_RUN[@]}" "${GUEST_RUN_OPTIONS[@]}")
    GUEST_WRAP=("${NETWORK_WRAP[@]}" "${PEERS_WRAP[@]}") GUEST_WORDS=("${NETWORK_WORDS[@]}" "${PEERS_WORDS[@]}")
    say "${GUEST_RUN[*]@Q}"
}

# True where a stock Linux kernel can run on /dev/kvm: some software KVMs only run what stays out of ring 0.
can_run_linux_on_kvm() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ] && grep -q -w -E 'svm|vmx' /proc/cpuinfo
}

guest_on_kvm() {
    say "on this machine's hardware KVM"
    compose_run
    cd "$GUEST_DIRECTORY" || die "cannot enter $GUEST_DIRECTORY"
    run_bounded "$GUEST_INTERACTIVE" "$GUEST_TIMEOUT" '' env "PATH=$OUTBOARD_BIN:$PATH" "${GUEST_WRAP[@]}" "${GUEST_RUN[@]}"
}

guest_in_emulated_host() {
    local files=(vmlinuz initrd.img root.img)
    need_emulated_host_commands
    say "in an emulated host (QEMU TCG): this machine has no hardware KVM that can be used, or --emulated was given"
    # A guest with more processors than the emulated host's one waits for a lock by 32,768 `pause`s before it gives its time
    # away, and TCG leaves its translated code at each: 2 MB to a file took 4 to 41 s, with this word 3 to 9.
    GUEST_CMDLINE+=" nopvspin"
    compose_run
    [ -z "$GUEST_SECOND_DISK" ] || files+=(second.img)
    # The images come back by way of /out, on the same file system there: a rename. An interrupt is for the program alone.
    cat >"$GUEST_DIRECTORY/script" <<END
#!/bin/sh
trap : INT
$([ ${#GUEST_WORDS[@]} -eq 0 ] || declare -p "${GUEST_WORDS[@]}" | sed 's/^declare -[a-z-]* /export /')
${GUEST_WRAP[*]@Q} ${GUEST_RUN[*]@Q}
status=\$?
mv ./*.img /out/
exit \$status
END
    mapfile -t files < <(printf '%s\n' "${files[@]/#/$GUEST_DIRECTORY/}")
    files+=("$OUTBOARD_BIN/outboard" "$OUTBOARD_BIN/outboard-blk" "$OUTBOARD_BIN/outboard-rng" "${NETWORK_FILES[@]}" "${PEERS_FILES[@]}")
    # shellcheck disable=SC2034 # read by emulated_host
    EMULATED_OUT=$GUEST_DIRECTORY/out EMULATED_TIMEOUT=$GUEST_TIMEOUT EMULATED_INTERACTIVE=$GUEST_INTERACTIVE
    emulated_host "$GUEST_DIRECTORY/script" "${files[@]}"
    rm -f "$GUEST_DIRECTORY"/*.img
    find "$GUEST_DIRECTORY/out" -name '*.img' -exec mv -t "$GUEST_DIRECTORY" {} +
}

# The same guest with QEMU as its virtual machine monitor, emulated: what the guest's side of the scripts is tested with,
# and QEMU as a front-end of vhost-user back-ends.
guest_under_qemu() {
    local disk=("$GUEST_DIRECTORY/root.img" "${GUEST_DISK_OPTIONS#,}") socket number=0 arguments
    need_emulated_host_commands
    say "under QEMU alone, emulated: no Outboard is involved"
    # shellcheck disable=SC2054 # the commas are QEMU's
    arguments=(-accel "tcg,thread=multi" -cpu max -M q35 -m "$GUEST_MEMORY" -smp "$GUEST_CPUS" -nodefaults -display none
        -no-reboot -nic none -kernel "$GUEST_DIRECTORY/vmlinuz" -initrd "$GUEST_DIRECTORY/initrd.img"
        -append "$GUEST_CMDLINE"
        -chardev "stdio,id=terminal,signal=$([ "$GUEST_INTERACTIVE" = yes ] && echo off || echo on)" -serial chardev:terminal
        -object "memory-backend-memfd,id=memory,size=$GUEST_MEMORY,share=on" -machine memory-backend=memory)
    if [ -n "$GUEST_SECOND_DISK" ]; then
        disk+=("$GUEST_DIRECTORY/second.img" "${GUEST_SECOND_DISK#*,}")
    fi
    set -- "${disk[@]}"
    while [ $# -gt 0 ]; do
        arguments+=(-drive "if=none,id=disk$number,file=$1,format=raw,cache=writeback,discard=unmap"
            -device "virtio-blk-pci,disable-legacy=on,drive=disk$number$(qemu_disk_options "$2")")
        shift 2
        number=$((number + 1))
    done
    for socket in "${GUEST_VHOST_USER_BLK[@]}"; do
        arguments+=(-chardev "socket,id=vhost$number,path=$socket"
            -device "vhost-user-blk-pci,disable-legacy=on,chardev=vhost$number,num-queues=2")
        number=$((number + 1))
    done
    run_bounded "$GUEST_INTERACTIVE" "$GUEST_TIMEOUT" '' qemu-system-x86_64 "${arguments[@]}" "${EMULATED_QEMU_ARGS[@]}"
}

# qemu_disk_options OPTIONS: those of `outboard run --disk` that a disk of QEMU's has too.
qemu_disk_options() {
    local value
    value=$(disk_option "$1" serial '') && printf '%s' "${value:+,serial=$value}"
    value=$(disk_option "$1" queues '') && printf '%s' "${value:+,num-queues=$value}"
    value=$(disk_option "$1" wce '') && printf '%s' "${value:+,write-cache=$value}"
}

# disk_option OPTIONS NAME DEFAULT: the value of NAME in "a=1,b=2"; the last one counts.
disk_option() {
    local option value=$3
    for option in ${1//,/ }; do
        [ "${option%%=*}" != "$2" ] || value=${option#*=}
    done
    printf '%s' "$value"
}

# linux_kexec WAY: a guest that enters its kernel anew GUEST_KEXEC times, under load; sets GUEST_STATUS, to 0 if nothing was
# written that was nobody's to write.
linux_kexec() {
    need_commands nm=binutils
    # Enough for two kernels, and not much more, so that little is left to look at. The guest says itself what it found.
    GUEST_CPUS=1 GUEST_MEMORY=192M GUEST_COMMAND=(/kexec/kexec "$GUEST_KEXEC")
    linux_guest "$1"
    read_ext4 "$GUEST_DIRECTORY/root.img" /kexec/report "$GUEST_DIRECTORY/report" || : >"$GUEST_DIRECTORY/report"
    [ "$(grep -c '^CHECK .*: ok' "$GUEST_DIRECTORY/report")" -eq "$GUEST_KEXEC" ] || [ "$GUEST_STATUS" -ne 0 ] || GUEST_STATUS=1
}

# linux_checks WAY: all of tests/linux/checks in one boot, then the images compared; sets GUEST_STATUS to 0 or 1.
linux_checks() {
    local way=$1 queues line failed serial checks=("${GUEST_COMMAND[@]/%/.sh}")
    serial=$(disk_option "$GUEST_DISK_OPTIONS" serial '')
    if [ -z "$serial" ] && [ "$way" != qemu ]; then
        # So that qemu-storage-daemon can serve the root, too; that is what it says, whatever it is told.
        serial=vhost_user_blk
        GUEST_DISK_OPTIONS+=,profile=portable
    elif [ -z "$serial" ]; then
        serial=root-disk
        GUEST_DISK_OPTIONS+=,serial=$serial
    fi
    [ -n "$(disk_option "$GUEST_DISK_OPTIONS" queues '')" ] || GUEST_DISK_OPTIONS+=,queues=2
    : "${GUEST_SECOND_DISK:=32M,serial=second-disk}"
    queues=$(disk_option "$GUEST_DISK_OPTIONS" queues 1)
    [ "$way" = qemu ] || GUEST_RUN_OPTIONS+=(--rng)
    GUEST_COMMAND=(env "EXPECT_CPUS=$GUEST_CPUS" "EXPECT_RNG=$([ "$way" = qemu ] || echo yes)"
        "EXPECT_SERIAL=$serial"
        "EXPECT_QUEUES=$((queues < GUEST_CPUS ? queues : GUEST_CPUS))"
        "EXPECT_SECTORS=$(($(numfmt --from=iec "$GUEST_DISK_SIZE") / 512))"
        "EXPECT_BLOCK_SIZE=512"
        "EXPECT_WRITE_CACHE=$([ "$(disk_option "$GUEST_DISK_OPTIONS" wce on)" = on ] && echo write back || echo write through)"
        "EXPECT_PCI_DEVICE=0x1af4 0x1042"
        "EXPECT_SECOND_SERIAL=$(disk_option "$GUEST_SECOND_DISK" serial '')"
        "EXPECT_SECOND_SECTORS=$(($(numfmt --from=iec "${GUEST_SECOND_DISK%%,*}") / 512))"
        "${NETWORK_EXPECT[@]}" "${PEERS_EXPECT[@]}" /checks/run "${checks[@]/#//checks/}")
    linux_guest "$way"
    [ "$GUEST_STATUS" -ne 125 ] || say "the checks did not come to their end"

    report=$GUEST_DIRECTORY/report
    : >"$report"
    read_ext4 "$GUEST_DIRECTORY/root.img" /checks/report "$report" || say "the guest left no report in its image"
    while read -r line; do
        compare_with_image "$line" | tee -a "$report.host"
    done < <(grep '^SHA256 ' "$report")
    if [ ${#NETWORK_EXPECT[@]} -gt 0 ]; then
        [ -e "$NET_MESSAGES" ] || NET_MESSAGES=$GUEST_DIRECTORY/out/messages
        check_messages | tee -a "$report.host"
    fi
    failed=$(cat "$report" "$report.host" 2>/dev/null | grep -c '^CHECK .*: FAILED' || true)
    # A guest that broke down is a failure of its own.
    [ "$GUEST_STATUS" -le 1 ] || failed=$((failed + 1))
    GUEST_STATUS=0
    [ "$failed" -eq 0 ] && [ -s "$report.host" ] || GUEST_STATUS=1
    printf 'linux: %d passed, %d failed, %d skipped\n' "$(cat "$report"* | grep -c '^CHECK .*: ok' || true)" "$failed" \
        "$(cat "$report"* | grep -c '^CHECK .*: skipped' || true)"
}

# check_messages: whether the loss of the tap (tests/linux/checks/38-tap.sh) was told, once.
check_messages() {
    local told
    told=$(grep -c "tap $NET_TAP: .*it was deleted" "$NET_MESSAGES" || true)
    if ! grep -q '^CHECK the tap is deleted: ok' "$report"; then
        echo "CHECK one message when the tap is deleted: skipped it was not"
    elif [ "$told" -eq 1 ]; then
        echo "CHECK one message when the tap is deleted: ok"
    else
        echo "CHECK one message when the tap is deleted: FAILED there were $told"
    fi
}

# compare_with_image "SHA256 HASH PATH": a file of the root image, or /dev/vdb, which is the second image.
compare_with_image() {
    local hash path found
    read -r _ hash path <<<"$1"
    if [ "$path" = /dev/vdb ]; then
        found=$(sha256sum <"$GUEST_DIRECTORY/second.img")
    elif read_ext4 "$GUEST_DIRECTORY/root.img" "$path" "$GUEST_DIRECTORY/found"; then
        found=$(sha256sum <"$GUEST_DIRECTORY/found")
    else
        found="nothing"
    fi
    if [ "$hash" = "${found%% *}" ]; then
        echo "CHECK the host finds what the guest wrote to $path: ok"
    else
        echo "CHECK the host finds what the guest wrote to $path: FAILED expected $hash, found ${found%% *}"
    fi
}
