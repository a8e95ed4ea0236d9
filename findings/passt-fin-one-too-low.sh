#!/usr/bin/env bash
# passt 0.0~git20230309.7c7625d-1 (Debian 12) forgets that its own FIN took a sequence number as soon as the guest repeats an
# acknowledgement. A server closes; passt tells the guest by FIN; the guest says once more what it has acknowledged before (as
# Linux does for each segment that comes twice or late), then ends its side, with a FIN that acknowledges passt's. passt
# acknowledges that with a segment whose sequence number is its FIN's own, not the one after it. To TCP (RFC 9293, 3.10.7.4)
# that is an old segment: its acknowledgement is not looked at. A Linux guest so repeats its FIN for a minute, after a
# conversation in which nothing was lost. Without the repeated acknowledgement the number is right.
#
# One would expect of a user-mode stack that a duplicate makes it send data again, or nothing. What happens is TCP's fast
# retransmit, which sets the next sequence number back to what was acknowledged, finds no data to send again, and does not
# count the FIN anew. Seen by a frame-level client on passt's own socket (each frame after its length, as QEMU's -netdev
# stream has it). Fails if the version cannot be had, or behaves otherwise. Needs Debian's archive, dpkg-deb and python3.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# passt does not stay root.
chmod 755 "$work" && mkdir -m 777 "$work/sockets"
cd "$work"
apt-get -q download passt=0.0~git20230309.7c7625d-1 >/dev/null
dpkg-deb -x passt_*.deb passt

cat >client.py <<'PYTHON'
import socket, struct, subprocess, sys, threading, time

GUEST, GATEWAY = "192.0.2.6", "192.0.2.5"
GUEST_MAC, GATEWAY_MAC = bytes.fromhex("020000000042"), bytes.fromhex("020000000001")
ADDRESSES = socket.inet_aton(GUEST) + socket.inet_aton(GATEWAY)
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
repeats = sys.argv[2] == "repeats"

server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]


def serve():
    connection, _ = server.accept()
    connection.sendall(b"h")
    connection.close()


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


def segment(sequence, acknowledged, flags, data=b""):
    tcp = struct.pack(">HHIIBBHHH", 40000, port, sequence, acknowledged, 5 << 4, flags, 65000, 0, 0)
    pseudo = ADDRESSES + struct.pack(">BBH", 0, 6, len(tcp) + len(data))
    tcp = tcp[:16] + checksum(pseudo + tcp + data) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(data), 1, 0, 64, 6, 0) + ADDRESSES
    return GATEWAY_MAC + GUEST_MAC + b"\x08\0" + ip[:10] + checksum(ip) + ip[12:] + tcp + data


def send(frame):
    wire.sendall(struct.pack(">I", len(frame)) + frame)


def receive():
    (length,) = struct.unpack(">I", stream.read(4))
    return stream.read(length)


threading.Thread(target=serve, daemon=True).start()
path = f"sockets/{sys.argv[2]}"
options = ["-f", "-q", "-4", "-s", path, "-a", GUEST, "-n", "30", "-g", GATEWAY, "-M", "02:00:00:00:00:01"]
passt = subprocess.Popen(
    [sys.argv[1], *options, "-t", "none", "-u", "none"],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
for _ in range(100):
    time.sleep(0.1)
    try:
        wire = socket.socket(socket.AF_UNIX)
        wire.connect(path)
        break
    except OSError:
        pass
wire.settimeout(60)
stream = wire.makefile("rb")
send(b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x800, 6, 4, 1)
     + GUEST_MAC + ADDRESSES[:4] + b"\0" * 6 + ADDRESSES[4:])
receive()
send(segment(1000, 0, SYN))
end = None
while True:
    frame = receive()
    if frame[12:14] != b"\x08\0" or frame[23] != 6:
        continue
    theirs, flags = struct.unpack(">I", frame[38:42])[0], frame[47]
    length = struct.unpack(">H", frame[16:18])[0] - 20 - (frame[46] >> 4) * 4
    if end is not None:
        break
    if flags & FIN:
        end = theirs + length + 1
        if repeats:
            send(segment(1001, end - 1, ACK))
            # It is to be looked at by itself.
            time.sleep(1)
        send(segment(1001, end, FIN | ACK))
    elif flags & SYN or length:
        send(segment(1001, theirs + max(length, 1), ACK))
passt.kill()
print((theirs - end + 2**31) % 2**32 - 2**31)
PYTHON

plain=$(python3 client.py passt/usr/bin/passt plain)
repeats=$(python3 client.py passt/usr/bin/passt repeats)
echo "how far from passt's next sequence number it acknowledges the guest's FIN: $plain"
echo "the same after an acknowledgement that came twice: $repeats"
[[ $plain == 0 && $repeats == -1 ]]
