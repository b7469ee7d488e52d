"""Traffic for scripts/demo and scripts/uplinks, between network namespaces.

    traffic.py frames                               frames from demo-fw-a arrive unmodified
    traffic.py spoof                                demo-web sends with the address of fw-b
    traffic.py tcp FROM TO ADDRESS MEGABYTES        a TCP transfer, compared by checksum
    traffic.py speak SPACE TAP SENDER SPACE TAP     a broadcast from any sender, from one tap to another

Needs root and the Python standard library. Each socket belongs to the namespace in which it was opened. Checks wait for
a frame that is sent after all others, never for a fixed time.
"""

import ctypes
import hashlib
import os
import random
import select
import socket
import sys
import threading
import time

PATIENCE = 10  # seconds to wait for expected frames
EXPERIMENT = 0x88B5  # ethertype for local experiments, which no stack answers (IEEE 802)
EVERYTHING = 0x0003  # ETH_P_ALL
OUTGOING = 4  # PACKET_OUTGOING: sent by this host
SO_RCVBUFFORCE = 33  # socket(7): beyond net.core.rmem_max
BROADCAST = b"\xff" * 6
PROBES = bytes.fromhex("037669667377")  # destination of the switch's loop probes

FW_A = bytes.fromhex("02000000010a")
FW_B = bytes.fromhex("02000000010b")
FW_C = bytes.fromhex("02000000020a")
WEB_A = bytes.fromhex("020000000101")
DB_A = bytes.fromhex("020000000201")

libc = ctypes.CDLL(None, use_errno=True)


def inside(space, work):
    """Runs `work` in the namespace `space`."""
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{space}", os.O_RDONLY)
    try:
        if libc.setns(there, 0):
            raise OSError(ctypes.get_errno(), f"entering {space}")
        return work()
    finally:
        libc.setns(home, 0)
        os.close(home)
        os.close(there)


class Port:
    """Guest side of a port: sends and receives whole frames."""

    def __init__(self, space, device):
        self.name, self.heard = device, []

        def opened():
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            # frames that have waited during a restart come all at once
            s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            s.bind((device, EVERYTHING))
            return s

        self.socket = inside(space, opened)

    def send(self, frame):
        self.socket.send(frame)

    def listen_until(self, last):
        """Receives up to the frame `last`; False if it does not arrive."""
        end = time.monotonic() + PATIENCE
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                return False
            frame, address = self.socket.recvfrom(65536)
            if address[2] == OUTGOING or frame.startswith(PROBES):
                continue
            if frame == last:
                return True
            self.heard.append(frame)


def experiment(to, sender, length, seed):
    return to + sender + EXPERIMENT.to_bytes(2, "big") + random.Random(seed).randbytes(length - 14)


def llc(to, sender, seed):
    """An IEEE 802.3 frame with LLC, unnumbered information."""
    payload = b"\x42\x42\x03" + random.Random(seed).randbytes(43)
    return to + sender + len(payload).to_bytes(2, "big") + payload


def ports():
    return [
        Port("demo-fw-a", "fw-a"),
        Port("demo-fw-b", "fw-b"),
        Port("demo-web", "web-a"),
        Port("demo-fw-c", "fw-c"),
        Port("demo-db", "db-a"),
    ]


def gather(fw_a, fw_b, web, fw_c, db):
    """Receives at each port up to a frame that was sent after all others."""
    last1, last2 = experiment(BROADCAST, FW_A, 60, "last of net1"), experiment(BROADCAST, FW_C, 60, "last of net2")
    back1, back2 = experiment(BROADCAST, WEB_A, 60, "back on net1"), experiment(BROADCAST, DB_A, 60, "back on net2")
    fw_a.send(last1)
    fw_c.send(last2)
    ended = [fw_b.listen_until(last1), web.listen_until(last1), db.listen_until(last2)]
    # frames that return to their sender have arrived by now
    web.send(back1)
    db.send(back2)
    ended += [fw_a.listen_until(back1), fw_c.listen_until(back2)]
    if not all(ended):
        sys.exit("a last frame did not arrive: no result")


def compare(port, expected):
    wrong = [f for f in port.heard if f not in expected] + [f for f in expected if port.heard.count(f) != 1]
    print(f"{port.name:6} expected {len(expected)}, received {len(port.heard)}, wrong {len(wrong)}")
    for frame in wrong[:5]:
        print(f"       {port.heard.count(frame)} times: {frame[:40].hex()}… ({len(frame)} bytes)")
    return not wrong and len(port.heard) == len(expected)


def frames():
    everybody = fw_a, fw_b, web, fw_c, db = ports()
    lengths = [60, 61, 64, 128, 1000, 1513, 1514]
    unicast = [experiment(FW_B, FW_A, length, f"unicast {length}") for length in lengths]
    outside = [experiment(WEB_A, FW_A, length, f"outside {length}") for length in lengths]
    broadcast = [experiment(BROADCAST, FW_A, length, f"broadcast {length}") for length in lengths]
    spoken = [llc(FW_B, FW_A, "llc to fw-b"), llc(WEB_A, FW_A, "llc to web-a"), llc(BROADCAST, FW_A, "llc to all")]
    # stations of the other network: unknown here, so flooded on this network only
    strangers = [experiment(DB_A, FW_A, 60, "to db-a"), experiment(FW_C, FW_A, 60, "to fw-c")]
    for frame in unicast + outside + broadcast + spoken + strangers:
        fw_a.send(frame)
    gather(*everybody)
    results = [
        compare(fw_b, unicast + broadcast + [spoken[0], spoken[2]] + strangers),
        compare(web, outside + broadcast + [spoken[1], spoken[2]] + strangers),
        compare(fw_a, []),
        compare(fw_c, []),
        compare(db, []),
    ]
    return all(results)


def spoof():
    everybody = fw_a, fw_b, web, fw_c, db = ports()
    web.send(experiment(FW_A, FW_B, 60, "who am I"))
    web.send(experiment(BROADCAST, FW_B, 60, "who am I"))
    gather(*everybody)
    return all([compare(port, []) for port in everybody])


def speak(space, device, sender, other_space, other_device):
    """After it is received, the switch has learned its sender, if it learns at this port."""
    speaker, hearer = Port(space, device), Port(other_space, other_device)
    frame = experiment(BROADCAST, bytes.fromhex(sender.replace(":", "")), 60, "here I am")
    speaker.send(frame)
    return hearer.listen_until(frame)


def tcp(source, target, address, megabytes):
    listener = inside(target, lambda: socket.create_server((address, 0)))
    sender = inside(source, socket.socket)
    for s in (listener, sender):
        s.settimeout(PATIENCE)
    data = random.Random(megabytes).randbytes(1 << 20)
    sent, received, total = hashlib.sha256(), hashlib.sha256(), 0

    def send():
        for _ in range(megabytes):
            sender.sendall(data)
            sent.update(data)
        sender.close()

    sender.connect(listener.getsockname())
    stream = listener.accept()[0]
    stream.settimeout(PATIENCE)
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    while part := stream.recv(1 << 18):
        received.update(part)
        total += len(part)
    thread.join(PATIENCE)
    print(f"{total} bytes; sent {sent.hexdigest()[:16]}…, received {received.hexdigest()[:16]}…")
    return total == megabytes << 20 and sent.digest() == received.digest()


if __name__ == "__main__":
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "tcp":
        held = tcp(arguments[0], arguments[1], arguments[2], int(arguments[3]))
    elif what == "speak":
        held = speak(*arguments)
    else:
        held = {"frames": frames, "spoof": spoof}[what]()
    sys.exit(0 if held else 1)
