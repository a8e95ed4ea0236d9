#!/usr/bin/env bash
# What qemu-storage-daemon 7.2 (Debian 12, qemu-system-common 1:7.2+dfsg-7+deb12u18+b3) answers to GET_CONFIG as a vhost-user disk
# cannot be taken by its word, three times:
#  - A part of the configuration is asked for by its offset. The answer repeats the offset, as if it were of there, and
#    carries the bytes from 0 on: whoever asks for `writeback` at 32 gets the low byte of the capacity. Only what is asked
#    for from 0 on is what it says.
#  - `writeback` is 0, "write-through", while the block node behind it has its write cache on and FLUSH and CONFIG_WCE are
#    offered. Linux goes by that byte, takes the disk for write-through and never sends it a flush. Once a front-end has
#    written the byte it reads as it was written.
#  - SIZE_MAX is offered, and `size_max`, the most bytes in one segment of a request, is 0. A driver that acknowledges the
#    feature has to make up a limit of its own, and one that does not has none.
# One would expect the offset to be heeded, or an error, the byte to say what the node does, and no feature without its value. Seen by a front-end of some
# lines of Python. Fails if the version cannot be had, or behaves otherwise. Needs Debian's archive, dpkg-deb, python3 and
# the libraries that qemu-system-common depends on. Takes a second.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -q download qemu-system-common=1:7.2+dfsg-7+deb12u18+b3 >/dev/null
dpkg-deb -x qemu-system-common_*.deb qemu
truncate -s 1234567K disk.img

cat >client.py <<'PYTHON'
import json, os, socket, struct, subprocess, sys, time

SIZE_MAX, FLUSH, CONFIG_WCE, WRITEBACK = 1 << 1, 1 << 9, 1 << 11, 32
daemon = subprocess.Popen(
    ["qemu/usr/bin/qemu-storage-daemon", "--blockdev", "file,node-name=disk,filename=disk.img",
     "--export", "vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path=disk.sock",
     "--chardev", "socket,id=m,path=monitor.sock,server=on,wait=off", "--monitor", "chardev=m"])


def connected(path):
    for _ in range(200):
        try:
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(path)
            return stream
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nobody listens at {path}")


def ask(request, payload=b"", answered=True):
    wire.sendall(struct.pack("<III", request, 1, len(payload)) + payload)
    if answered:
        _, _, length = struct.unpack("<III", answers.read(12))
        return answers.read(length)


def configuration(offset, size):
    answer = ask(24, struct.pack("<III", offset, size, 0) + bytes(size))
    at, length, _ = struct.unpack("<III", answer[:12])
    return at, length, answer[12:]


try:
    monitor = connected("monitor.sock").makefile("rw")
    monitor.readline()
    for command in ("qmp_capabilities", "query-named-block-nodes"):
        monitor.write(json.dumps({"execute": command}))
        monitor.flush()
        reply = json.loads(monitor.readline())
    cached = reply["return"][0]["cache"]["writeback"]
    wire = connected("disk.sock")
    answers = wire.makefile("rb")
    features = struct.unpack("<Q", ask(1))[0]
    ask(16, struct.pack("<Q", 1 << 9), answered=False)
    _, _, whole = configuration(0, 60)
    at, length, part = configuration(WRITEBACK, 4)
    ask(25, struct.pack("<III", WRITEBACK, 1, 0) + b"\1", answered=False)
    _, _, written = configuration(0, 60)
finally:
    daemon.terminate()

print(f"the node's write cache is on: {cached}; FLUSH and CONFIG_WCE offered: {features & FLUSH != 0}, {features & CONFIG_WCE != 0}")
print(f"asked from 0 on: capacity {whole[:4].hex()}, writeback {whole[WRITEBACK]}; after it was written: {written[WRITEBACK]}")
size_max = struct.unpack("<I", whole[8:12])[0]
print(f"SIZE_MAX offered: {features & SIZE_MAX != 0}; size_max {size_max}")
print(f"asked for 4 bytes at {WRITEBACK}: said to be {length} at {at}, {part.hex()}")
limited = features & SIZE_MAX and size_max == 0
seen = limited and cached and features & FLUSH and features & CONFIG_WCE and whole[WRITEBACK] == 0 and written[WRITEBACK] == 1
if not (seen and at == WRITEBACK and part == whole[:4] and part != whole[WRITEBACK:WRITEBACK + 4]):
    sys.exit("it behaves otherwise")
PYTHON
python3 client.py
