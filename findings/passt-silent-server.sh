#!/usr/bin/env bash
# passt 0.0~git20230309.7c7625d-1 (Debian 12) resets a TCP connection that the guest has begun if the server has not said a
# byte for 24 seconds, although the server has acknowledged everything and both sides are alive: the server's kernel sees a
# clean end of the connection, the guest gets RST. One byte from the server right after it has accepted, and the same
# connection lives on. So a request whose answer takes half a minute (a long upload that is answered with its checksum, a
# long poll) is cut off, at random as it seems, since on a quick machine the answer comes earlier.
#
# One would expect passt's limit for silent connections, two hours, or a keep-alive. Seen by a frame-level client on passt's
# own socket (each frame after its length, as QEMU's -netdev stream has it): ARP, a handshake, one question, then it waits.
# Fails if the version cannot be had, or behaves otherwise. Needs Debian's archive, dpkg-deb and python3. Takes a minute.
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
speaks = sys.argv[2] == "speaks"

server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]


def serve():
    connection, _ = server.accept()
    if speaks:
        connection.sendall(b"h")
    while connection.recv(1000):
        pass


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
began = time.time()
send(segment(1000, 0, SYN))
outcome = "alive"
wire.settimeout(40)
try:
    while True:
        frame = receive()
        if frame[12:14] != b"\x08\0" or frame[23] != 6:
            continue
        theirs, flags = struct.unpack(">I", frame[38:42])[0], frame[47]
        length = struct.unpack(">H", frame[16:18])[0] - 20 - (frame[46] >> 4) * 4
        if flags & RST:
            outcome = f"reset after {time.time() - began:.0f} s"
            break
        if flags & SYN:
            send(segment(1001, theirs + 1, ACK))
            send(segment(1001, theirs + 1, ACK | PSH, b"question"))
        elif length:
            send(segment(1009, theirs + length, ACK))
except TimeoutError:
    pass
passt.kill()
print(outcome)
PYTHON

silent=$(python3 client.py passt/usr/bin/passt silent)
speaks=$(python3 client.py passt/usr/bin/passt speaks)
echo "a server that says nothing: $silent"
echo "a server that says a byte first: $speaks, after 40 s"
[[ $silent == "reset after 2"[2-6]" s" && $speaks == alive ]]
