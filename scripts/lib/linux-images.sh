# shellcheck shell=bash
# Initial RAM disk and ext4 root images for guests and emulated hosts, made without root. Sourced after packages.sh and
# debian-linux.sh, with fetch_linux called; TESTS_LINUX is the directory tests/linux.

need_image_commands() {
    need_commands mke2fs=e2fsprogs debugfs=e2fsprogs e2fsck=e2fsprogs
}

# build_initrd FILE [MORE]...: busybox and the virtio modules, and these files more; uncompressed, since unpacking costs more
# than copying in an emulated guest. INITRD_CHANGE: a function that changes its tree before.
build_initrd() {
    local image=$1 tree release file
    shift
    new_directory outboard-initrd
    tree=$REPLY
    release=$(<"$LINUX_FILES/release")
    mkdir -p "$tree"/{bin,dev,proc,sys,root}
    cp "$LINUX_FILES/busybox" "$tree/bin/busybox"
    for file in $("$LINUX_FILES/busybox" --list); do
        [ "$file" = busybox ] || ln -s busybox "$tree/bin/$file"
    done
    cp "$TESTS_LINUX/initrd-init" "$tree/init"
    for file in "$@"; do cp "$file" "$tree/"; done
    mkdir -p "$tree/lib/modules/$release"
    (cd "$LINUX_FILES/modules/lib/modules/$release" &&
        find . '(' -name 'virtio*.ko' -o -name '*failover.ko' ')' -exec cp --parents -t "$tree/lib/modules/$release" {} + &&
        cp modules.builtin modules.order "$tree/lib/modules/$release/")
    "$LINUX_FILES/busybox" depmod -b "$tree" "$release"
    [ -z "${INITRD_CHANGE:-}" ] || "$INITRD_CHANGE" "$tree"
    (cd "$tree" && find . | sort | "$LINUX_FILES/busybox" cpio -o -H newc --quiet -R 0:0) >"$image"
    rm -rf "$tree"
}

# leave_devices_running TREE: takes virtio_dev_shutdown out of the tree's virtio.ko. A kernel that has it (Debian's
# 6.1.0-56 does) resets its virtio devices before it turns bus mastering off, those before only did the latter; with it what
# turning that off does could not be seen.
leave_devices_running() {
    local module start text at
    module=$(find "$1/lib/modules" -name virtio.ko)
    start=$(nm "$module" | awk '$3 == "virtio_dev_shutdown" { print $1 }')
    [ -n "$start" ] || return 0
    # Its signature goes: one that is wrong is refused, none is not.
    strip --strip-debug "$module"
    start=$(nm "$module" | awk '$3 == "virtio_dev_shutdown" { print $1 }')
    text=$(readelf -W -S "$module" | awk '{ for (i = 1; i < NF; i++) if ($i == ".text") print $(i + 3) }')
    at=$((16#$start + 16#$text))
    # endbr64 and the call of __fentry__ stay: the loader has them in its lists.
    [ "$(od -An -tx1 -j $at -N 4 "$module")" != " f3 0f 1e fa" ] || at=$((at + 4))
    [ "$(od -An -tx1 -j $at -N 1 "$module")" = " e8" ] || die "virtio_dev_shutdown does not begin as expected in $module"
    printf '\303' | dd of="$module" bs=1 seek=$((at + 5)) conv=notrunc status=none
}

# base_tree DIRECTORY INIT: the root file system that guest and emulated host have in common.
base_tree() {
    local tree=$1 file
    mkdir -p "$tree"/{dev,proc,sys,tmp,run,root,etc,usr/bin,usr/sbin,usr/lib/x86_64-linux-gnu,usr/lib64}
    for file in bin sbin lib lib64; do ln -s "usr/$file" "$tree/$file"; done
    cp "$LINUX_FILES/busybox" "$tree/usr/bin/busybox"
    for file in $("$LINUX_FILES/busybox" --list); do
        [ "$file" = busybox ] || ln -s busybox "$tree/usr/bin/$file"
    done
    cp -r "$LINUX_FILES/modules/lib/modules" "$tree/usr/lib/"
    cp "$TESTS_LINUX/$2" "$tree/usr/sbin/init"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$tree/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$tree/etc/group"
}

# write_terminal FILE INTERACTIVE: the size of the user's terminal, for the init scripts (yes or no in INTERACTIVE).
write_terminal() {
    local rows=24 columns=80
    if [ -t 0 ]; then read -r rows columns < <(stty size); fi
    printf 'ROWS=%d COLUMNS=%d INTERACTIVE=%s\nexport TERM=%q\n' "$rows" "$columns" "$2" "${TERM:-linux}" >"$1"
}

# make_ext4 IMAGE SIZE [TREE]: a sparse raw image with the files of TREE, owned by root in the image's top directory.
make_ext4() {
    rm -f "$1"
    truncate -s "$2" "$1" || die "cannot make the image $1"
    # Nothing is left for the kernel to initialise later: a fresh sparse file reads as zeroes.
    mke2fs -q -F -t ext4 -m 0 -N 16384 -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 ${3:+-d "$3"} "$1" ||
        die "cannot make an ext4 file system of $2 in $1"
}

# settle_ext4 IMAGE: after a machine that had it mounted is gone. True if the file system is sound, once the journal
# has been replayed.
settle_ext4() {
    local status=0
    e2fsck -f -p "$1" >"$1.fsck" 2>&1 || status=$?
    if [ "$status" -ge 4 ]; then cat "$1.fsck" >&2; fi
    rm -f "$1.fsck"
    [ "$status" -lt 4 ]
}

# read_ext4 IMAGE PATH FILE: copies one file out of the image. False if it is not there.
read_ext4() {
    debugfs -R "dump $2 $3" "$1" 2>&1 | grep -q -i 'not found\|error\|while' && return 1
    [ -e "$3" ]
}
