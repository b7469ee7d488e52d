"""Agent in the VMs of scripts/vm-lab: executes requests from a serial line.

    guest.py TTY

A request is one line of JSON, {"do": NAME, …}; its answer is one line as well, {"answer": …} or {"error": TEXT}. The
first line is {"answer": "ready"}. Frames are hexadecimal. Imports only modules that are built into Python, because the
VM boots from an initramfs.
"""

import json
import os
import select
import socket
import subprocess
import sys
import termios
import threading
import time
import tty

from _sha256 import sha256

PATIENCE = 20  # seconds to wait for expected frames
PROBES = bytes.fromhex("037669667377")  # destination of the switch's loop probes
EVERYTHING = 0x0003  # ETH_P_ALL
OUTGOING = 4  # PACKET_OUTGOING: sent by this host
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1  # packet(7)
SO_RCVBUFFORCE = 33

ears = {}  # NIC → its socket
servers = {}  # TCP port → result


def run(command):
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * PATIENCE)
    return {"code": done.returncode, "output": done.stdout.decode(errors="replace")}


def mac_of(nic):
    with open(f"/sys/class/net/{nic}/address") as file:
        return file.read().strip()


def nics():
    """NICs ordered by PCI slot: (slot, name, MAC)."""
    found = []
    for name in os.listdir("/sys/class/net"):
        path = os.path.realpath(f"/sys/class/net/{name}")
        places = [part for part in path.split("/") if part.count(":") == 2 and "." in part]
        if places:
            found.append((places[-1], name, mac_of(name)))
    return sorted(found)


def nic(mac, patience=PATIENCE):
    """Waits for the NIC with this address, sets it up and returns its name."""
    end = time.monotonic() + patience
    while True:
        names = [name for _, name, address in nics() if address == mac]
        if names:
            run(f"ip link set {names[0]} up")
            return names[0]
        if time.monotonic() > end:
            raise TimeoutError(f"no NIC with the address {mac}")
        select.select([], [], [], 0.05)


def ear(device):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    s.bind((device, EVERYTHING))
    membership = socket.if_nametoindex(device).to_bytes(4, "little") + PACKET_MR_PROMISC.to_bytes(2, "little") + bytes(10)
    s.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    return s


def listen(*devices):
    """Starts to capture all frames, in promiscuous mode."""
    for device in devices:
        ears[device] = ear(device)


def say(device, frames):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.bind((device, 0))
    for frame in frames:
        s.send(bytes.fromhex(frame))


def heard(device, last):
    """Frames captured since `listen` up to the frame `last`, without the switch's loop probes. Stops capturing."""
    came, end = [], time.monotonic() + PATIENCE
    with ears.pop(device) as s:
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([s], [], [], left)[0]:
                raise TimeoutError(f"{device}: the last frame did not come, after {len(came)} others")
            frame, address = s.recvfrom(65536)
            if address[2] == OUTGOING or frame.startswith(PROBES):
                continue
            if frame.hex() == last:
                return came
            came.append(frame.hex())


def serve(port):
    """Accepts one connection in the background and reads it to its end."""
    listener = socket.create_server(("", port))
    listener.settimeout(PATIENCE)
    said = {}

    def read():
        stream, (said["peer"], _) = listener.accept()
        stream.settimeout(PATIENCE)
        digest, said["bytes"] = sha256(), 0
        while part := stream.recv(1 << 18):
            digest.update(part)
            said["bytes"] += len(part)
        said["digest"] = digest.hexdigest()
        listener.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    servers[port] = thread, said


def served(port):
    thread, said = servers.pop(port)
    thread.join(3 * PATIENCE)
    return said


def send(address, port, megabytes):
    digest, part = sha256(), bytes(range(251)) * 4177  # about 1 MiB, not a multiple of a power of two
    with socket.socket() as stream:
        stream.settimeout(PATIENCE)
        stream.connect((address, port))
        left = megabytes << 20
        while left > 0:
            stream.sendall(part[:left])
            digest.update(part[:left])
            left -= len(part)
    return digest.hexdigest()


KNOWN = {work.__name__: work for work in (run, nics, nic, listen, say, heard, serve, served, send)}


def main(path):
    line = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line, termios.TCSANOW)
    requests = os.fdopen(os.dup(line), "rb", buffering=0)

    def answer(it):
        left = json.dumps(it).encode() + b"\n"
        while left:
            left = left[os.write(line, left) :]

    answer({"answer": "ready"})
    request = b""
    while True:
        request += requests.read(4096)
        while b"\n" in request:
            one, request = request.split(b"\n", 1)
            try:
                asked = json.loads(one)
                answer({"answer": KNOWN[asked["do"]](*asked.get("with", []))})
            except Exception as error:  # reported to the other end
                answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(sys.argv[1])
