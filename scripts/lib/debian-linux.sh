# shellcheck shell=bash
# Debian's stock cloud kernel and a small user space for guests, fetched from Debian's archive with apt-get download
# and unpacked with dpkg -x: nothing is installed and root is not needed. Sourced after packages.sh.
#
#   fetch_linux     fills the cache if need be and sets LINUX_FILES to a directory with
#     vmlinuz       Debian's bzImage, unchanged        release   its `uname -r`        packages   what was fetched
#     busybox       static; used on this machine too (depmod, cpio)
#     modules/      lib/modules/RELEASE: only the modules named below and what they depend on, with modules.dep
#     tools/        usr/...: fio, blkdiscard, ethtool, socat, kexec, resize2fs with the shared libraries they need
#
# The cache is ${OUTBOARD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/outboard}. A filled directory is never changed and is used
# without asking the archive again; it appears by one rename, so that a broken download leaves nothing behind. Its
# name contains a checksum of the list of what is fetched. Remove the directory to get newer packages.

LINUX_KERNEL_PACKAGE=linux-image-cloud-amd64
# Guests load virtio_*, an emulated host the others too. ext4, jbd2, mbcache and crc32c are built into this kernel.
LINUX_MODULES="virtio_pci virtio_blk virtio_net virtio_console virtio-rng
    vmw_vsock_virtio_transport virtiofs kvm-amd tun bridge veth loop"
# PACKAGE:PATH-OF-PROGRAM
LINUX_TOOLS="fio:usr/bin/fio util-linux:sbin/blkdiscard ethtool:sbin/ethtool socat:usr/bin/socat kexec-tools:sbin/kexec
    e2fsprogs:sbin/resize2fs"

fetch_linux() {
    local cache recipe filling lock
    cache=${OUTBOARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/outboard}
    recipe=$(cksum <<<"1 $LINUX_KERNEL_PACKAGE $LINUX_MODULES $LINUX_TOOLS")
    LINUX_FILES=$cache/linux-${recipe%% *}
    [ ! -e "$LINUX_FILES" ] || return 0

    need_commands apt-get=apt dpkg=dpkg flock=util-linux
    mkdir -p "$cache" || die "cannot make the cache $cache; set OUTBOARD_CACHE to a directory that can be written"
    exec {lock}>"$cache/lock"
    flock -w 900 "$lock" || die "another process has been filling $cache for 15 minutes"
    if [ ! -e "$LINUX_FILES" ]; then
        say "fetching Debian's kernel, busybox and fio into $cache (once)"
        rm -rf "$cache"/.filling.*
        filling=$(mktemp -d "$cache/.filling.XXXXXXXX")
        CLEANUP_PATHS+=("$filling")
        fill_linux_files "$filling"
        chmod 755 "$filling"
        mv -T "$filling" "$LINUX_FILES"
    fi
    exec {lock}>&-
}

fill_linux_files() { # DIRECTORY
    local dir=$1 kernel release
    mkdir "$dir/debs" "$dir/unpacked" "$dir/tools"
    choose_package_lists "$dir"
    kernel=$("${APT_CACHE[@]}" depends "$LINUX_KERNEL_PACKAGE" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    [ -n "$kernel" ] || die "$LINUX_KERNEL_PACKAGE names no kernel package"
    download_packages "$dir" "$kernel" busybox-static

    cp "$dir"/unpacked/boot/vmlinuz-* "$dir/vmlinuz"
    cp "$dir/unpacked/bin/busybox" "$dir/busybox"
    release=$(basename "$dir"/unpacked/lib/modules/*)
    echo "$release" >"$dir/release"
    select_modules "$dir" "$release"
    rm -rf "$dir/unpacked"
    mkdir "$dir/unpacked"
    fill_tools "$dir"

    ls "$dir/debs" >"$dir/packages"
    rm -rf "$dir/debs" "$dir/unpacked" "$dir/apt"
}

# Sets APT_GET and APT_CACHE. Without package lists for the kernel they are fetched: into the system's place by root,
# into the cache otherwise.
choose_package_lists() { # DIRECTORY
    local options=(-o "APT::Sandbox::User=root" -o "DPkg::Lock::Timeout=300")
    APT_GET=(apt-get -qq "${options[@]}")
    APT_CACHE=(apt-cache "${options[@]}")
    [ -z "$("${APT_CACHE[@]}" show "$LINUX_KERNEL_PACKAGE" 2>/dev/null)" ] || return 0
    update_package_lists "$1"
    [ -n "$("${APT_CACHE[@]}" show "$LINUX_KERNEL_PACKAGE" 2>/dev/null)" ] ||
        die "apt knows no package $LINUX_KERNEL_PACKAGE: Debian's archive (amd64, main) must be among apt's sources"
}

update_package_lists() { # DIRECTORY
    if [ "$(id -u)" -ne 0 ]; then
        mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
        APT_GET+=(-o "Dir::State::Lists=$1/apt/lists" -o "Dir::Cache=$1/apt/cache")
        APT_CACHE+=(-o "Dir::State::Lists=$1/apt/lists" -o "Dir::Cache=$1/apt/cache")
    fi
    say "updating the package lists"
    "${APT_GET[@]}" update >&2 || say "apt-get update failed; trying with the lists there are"
}

# download_packages DIRECTORY PACKAGE...: into DIRECTORY/debs, unpacked into DIRECTORY/unpacked.
download_packages() {
    local dir=$1 deb
    shift
    mkdir "$dir/new"
    if ! (cd "$dir/new" && "${APT_GET[@]}" download "$@") >&2; then
        # Lists older than the archive name versions that are gone from it.
        update_package_lists "$dir"
        (cd "$dir/new" && "${APT_GET[@]}" download "$@") >&2 ||
            die "could not download $*; is Debian's archive reachable?"
    fi
    for deb in "$dir"/new/*.deb; do
        dpkg -x "$deb" "$dir/unpacked" || die "could not unpack ${deb##*/}"
        mv "$deb" "$dir/debs/"
    done
    rmdir "$dir/new"
}

select_modules() { # DIRECTORY RELEASE
    local dir=$1 from=$1/unpacked to=$1/modules name file
    "$dir/busybox" depmod -b "$from" "$2"
    for name in $LINUX_MODULES; do
        # A line of modules.dep: "kernel/a/b.ko: kernel/c.ko kernel/d.ko".
        awk -v name="$name.ko:" '{ n = split($1, part, "/") } part[n] == name { gsub(":", ""); gsub(" ", "\n"); print }' \
            "$from/lib/modules/$2/modules.dep" | grep . || die "kernel $2 has no module $name"
    done | sort -u | while read -r file; do
        mkdir -p "$to/lib/modules/$2/${file%/*}"
        cp "$from/lib/modules/$2/$file" "$to/lib/modules/$2/$file"
    done
    cp "$from/lib/modules/$2/modules.builtin" "$from/lib/modules/$2/modules.order" "$to/lib/modules/$2/"
    "$dir/busybox" depmod -b "$to" "$2"
}

# Unpacks the tools' packages, then those they depend on, level by level, until the loader finds every library.
fill_tools() { # DIRECTORY
    local dir=$1 tool packages=() seen=" " missing level
    for tool in $LINUX_TOOLS; do packages+=("${tool%%:*}"); done
    for level in 1 2 3 4 5 6 7 8; do
        download_packages "$dir" "${packages[@]}"
        seen+="${packages[*]} "
        missing=$(list_tool_libraries "$dir" | awk '$1 == "missing" { print $2 }' | sort -u)
        [ -n "$missing" ] || break
        mapfile -t packages < <(for tool in "$dir"/debs/*.deb; do library_dependencies "$tool"; done | sort -u |
            while read -r tool; do [[ $seen == *" $tool "* ]] || echo "$tool"; done)
        [ ${#packages[@]} -gt 0 ] || die "no package of ${LINUX_TOOLS//$'\n'/ } brings $missing"
    done
    [ -z "$missing" ] || die "after $level levels of dependencies these libraries are still missing: $missing"
    copy_tools "$dir"
}

library_dependencies() { # DEB: names of the libraries' packages it depends on, the first of alternatives
    dpkg-deb -f "$1" Pre-Depends Depends | sed 's/^[A-Za-z-]*: //; s/,/\n/g' |
        awk '{ sub(/:.*/, "", $1) } $1 ~ /^(lib|zlib)/ { print $1 }'
}

# "found FILE" or "missing NAME" for each library that the tools need, as the fetched loader resolves them. What the
# loader takes from this machine, after its own search found nothing, counts as missing.
list_tool_libraries() { # DIRECTORY
    local dir=$1 tool loader path
    loader=$(find "$dir/unpacked" -name ld-linux-x86-64.so.2 -type f | head -n 1)
    if [ -z "$loader" ]; then
        echo "missing ld-linux-x86-64.so.2"
        return
    fi
    path=$(find "$dir/unpacked" -name '*.so*' -type f -printf '%h\n' | sort -u | paste -s -d :)
    for tool in $LINUX_TOOLS; do
        "$loader" --library-path "$path" --list "$dir/unpacked/${tool#*:}" 2>/dev/null || echo "${tool#*:} => not found"
    done | awk -v pool="$dir/unpacked/" '$2 == "=>" && $1 !~ /^\// { print index($3, pool) == 1 ? "found " $3 : "missing " $1 }'
}

# Bookworm's packages still use /bin, /lib and /sbin: everything goes below usr, as in the guest.
copy_tools() { # DIRECTORY
    local dir=$1 file under
    {
        for file in $LINUX_TOOLS; do echo "$dir/unpacked/${file#*:}"; done
        list_tool_libraries "$dir" | awk '$1 == "found" { print $2 }'
    } | sort -u | while read -r file; do
        under=${file#"$dir/unpacked/"}
        under=usr/${under#usr/}
        mkdir -p "$dir/tools/${under%/*}"
        cp -L "$file" "$dir/tools/$under"
    done
    mkdir -p "$dir/tools/usr/lib64"
    cp -L "$(find "$dir/unpacked" -name ld-linux-x86-64.so.2 -type f | head -n 1)" "$dir/tools/usr/lib64/"
}
