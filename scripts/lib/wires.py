"""Traffic for scripts/uplinks: frames of the VMs of two hosts, and frames on the wires between them.

    wires.py trunk      host A alone; the wires' ends in the namespace of host B are used by this script
    wires.py across     both hosts: a broadcast of each VM, and a frame to its neighbour on the other host

Checks wait for frames that are sent after all others, never for a fixed time.
"""

import select
import struct
import sys
import time

from traffic import BROADCAST, OUTGOING, PATIENCE, Port, compare, experiment, llc

VLANS = {1: 120, 2: 121, 3: None}  # VLAN ids of the networks on the wires
SOL_PACKET, PACKET_AUXDATA = 263, 8  # packet(7)
TP_STATUS_VLAN_VALID = 0x10
BPDU, PAUSE, LLDP = (bytes.fromhex(f"0180c20000{last}") for last in ("00", "01", "0e"))


def mac(network, host):
    return bytes([2, 0, 0, 0, network, host])


def vm(host, network):
    return Port(f"uplinks-{host}{network}", f"{host}{network}")


def tagged(frame, vlan):
    return frame if vlan is None else frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


class Wire(Port):
    """End of a wire without a switch. Restores the tag that the kernel removes from each frame."""

    def __init__(self, space, device):
        super().__init__(space, device)
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)

    def receive(self):
        frame, notes, _, address = self.socket.recvmsg(65536, 256)
        for level, kind, data in notes:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, vlan, protocol = struct.unpack("IIIHHHH", data[:20])
                if status & TP_STATUS_VLAN_VALID:
                    frame = frame[:12] + struct.pack("!HH", protocol or 0x8100, vlan) + frame[12:]
        return frame, address


def is_announcement(frame):
    """The switch announces stations by RARP when an uplink becomes active, three times within seconds."""
    at = 16 if frame[12:14] == b"\x81\x00" else 12
    return frame[at : at + 2] == b"\x80\x35"


def receive(port):
    return port.receive() if isinstance(port, Wire) else port.socket.recvfrom(65536)


def listen_until(port, lasts):
    """Receives until the last of `lasts` arrives."""
    end, missing = time.monotonic() + PATIENCE, list(lasts)
    while missing:
        left = end - time.monotonic()
        if left <= 0 or not select.select([port.socket], [], [], left)[0]:
            sys.exit(f"{port.name}: a last frame did not arrive: no result")
        frame, address = receive(port)
        if address[2] == OUTGOING or is_announcement(frame):
            continue
        if frame in missing:
            missing.remove(frame)
        else:
            port.heard.append(frame)


def hears(port, expected):
    """Checks that it has received these frames once each, and no others."""
    while select.select([port.socket], [], [], 0)[0]:
        frame, address = receive(port)
        if address[2] != OUTGOING and not is_announcement(frame):
            port.heard.append(frame)
    return compare(port, expected)


def leaving(vms, active, standby):
    """Frames from VMs of host A are on the active wire, with their network's tag, and no others."""
    expected, lasts = [], []
    for network, port in vms.items():
        sender = mac(network, 1)
        frames = [experiment(BROADCAST, sender, length, f"{network} {length}") for length in (60, 61, 1000, 1514)]
        frames += [experiment(mac(network, 2), sender, 60, f"{network} unknown"), llc(BROADCAST, sender, f"{network} llc")]
        for to in BPDU, PAUSE, LLDP:
            port.send(llc(to, sender, "for one link") if to == BPDU else experiment(to, sender, 60, "for one link"))
        for frame in frames:
            port.send(frame)
        last = experiment(BROADCAST, sender, 60, f"{network} last")
        port.send(last)
        expected += [tagged(frame, VLANS[network]) for frame in frames]
        lasts.append(tagged(last, VLANS[network]))
    listen_until(active, lasts)
    tags = [f[14:16].hex() if f[12:14] == b"\x81\x00" else "none" for f in active.heard]
    print("tags on the wire:", {tag: tags.count(tag) for tag in sorted(set(tags))})
    return all([hears(active, expected), hears(standby, [])])


def arriving(vms, active, standby):
    """Frames from the active wire reach the network of their tag; frames from the other wire reach no port."""
    expected = {}
    for network, vlan in VLANS.items():
        sender = mac(network, 2)
        frames = [experiment(BROADCAST, sender, length, f"in {network} {length}") for length in (60, 1514)]
        frames.append(experiment(mac(network, 1), sender, 60, f"in {network} unicast"))
        expected[network] = frames
        standby.send(tagged(experiment(BROADCAST, sender, 60, f"in {network} by the other wire"), vlan))
        for frame in frames:
            active.send(tagged(frame, vlan))
    active.send(tagged(experiment(BROADCAST, mac(9, 2), 60, "a VLAN that nobody has"), 999))
    for vlan in VLANS.values():
        active.send(tagged(llc(BPDU, mac(9, 2), "for one link"), vlan))
    # twice: all devices are polled in between
    for turn in "last", "very last":
        for network, vlan in VLANS.items():
            last = experiment(BROADCAST, mac(network, 2), 60, f"in {network} {turn}")
            active.send(tagged(last, vlan))
            listen_until(vms[network], [last])
    return all([hears(vms[network], expected[network]) for network in VLANS])


def trunk():
    vms = {network: vm("a", network) for network in VLANS}
    active, standby = Wire("uplinks-host-b", "up0"), Wire("uplinks-host-b", "up1")
    return leaving(vms, active, standby) and arriving(vms, active, standby)


def across():
    """Each frame is received once, by its neighbour only, and never returns."""
    vms = {(host, network): vm(host, network) for host in "ab" for network in VLANS}
    expected = {}
    for (host, network), port in vms.items():
        here, there = (1, 2) if host == "a" else (2, 1)
        sender, neighbour = mac(network, here), mac(network, there)
        frames = [experiment(to, sender, length, f"{host}{network}") for to in (BROADCAST, neighbour) for length in (60, 1514)]
        frames += [llc(BROADCAST, sender, f"{host}{network}"), llc(neighbour, sender, f"{host}{network}")]
        for frame in frames:
            port.send(frame)
        expected[("b" if host == "a" else "a", network)] = frames
    # frames of a loop would return: those of the first round are received by the last
    for turn in "first", "last":
        for host, other, number in ("a", "b", 1), ("b", "a", 2):
            for network in VLANS:
                last = experiment(BROADCAST, mac(network, number), 60, f"{host}{network} {turn}")
                vms[(host, network)].send(last)
                listen_until(vms[(other, network)], [last])
    return all([hears(port, expected[key]) for key, port in vms.items()])


if __name__ == "__main__":
    sys.exit(0 if {"trunk": trunk, "across": across}[sys.argv[1]]() else 1)
