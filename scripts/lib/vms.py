"""Controls the VMs of scripts/vm-lab and checks traffic between them.

    vms.py RUN boots SECONDS VM…            waits until all of them are ready
    vms.py RUN run VM COMMAND               runs a shell command in the VM; prints its output, fails if it fails
    vms.py RUN order VM MAC…                the VM has these NICs, in this order on its PCI bus
    vms.py RUN offloads VM on|off           its NICs have checksum and segmentation offloads, or none
    vms.py RUN nic VM MAC                   waits for this NIC and sets it up; prints its name
    vms.py RUN plug VM NETDEV DEVICE        adds a NIC to the running VM, with these QEMU options
    vms.py RUN nat                          vm1 pings through vm2: frames on net1 and on net2
    vms.py RUN lost arp|nat                 the same without an answer: to the ARP request for 10.10.1.200, or
                                            from vm3
    vms.py RUN tcp MEGABYTES on|off         vm1 sends through vm2, in GSO packets or frames
    vms.py RUN stranger MAC                 vm2 sends from another MAC on its eth1
    vms.py RUN frames                       frames other than IP, from a VM to its sibling and as broadcast
    vms.py RUN new                          the same from and to the hotplugged NIC

RUN is the directory of the sockets. guest.py is the other end of the serial line. Checks wait for an answer or for a
frame that is sent after all others, never for a fixed time.
"""

import json
import random
import socket
import sys
import time

PATIENCE = 90  # seconds for an answer: the processor may be emulated and busy
EXPERIMENT = 0x88B5  # ethertype for local experiments, which no stack answers (IEEE 802)
BROADCAST = "ff:ff:ff:ff:ff:ff"

VM1, VM2_1, VM2_2, VM3 = "02:00:00:00:01:11", "02:00:00:00:01:12", "02:00:00:00:02:12", "02:00:00:00:02:13"
VM4_A, VM4_B, VM4_C, VM4_D = "02:00:00:00:01:14", "02:00:00:00:02:14", "02:00:00:00:01:15", "02:00:00:00:01:16"
# receivers of these: (VM, NIC)
NET1 = {VM1: ("vm1", "eth1"), VM2_1: ("vm2", "eth1"), VM4_A: ("vm4", "eth0"), VM4_C: ("vm4", "eth2")}
NET2 = {VM2_2: ("vm2", "eth2"), VM3: ("vm3", "eth1"), VM4_B: ("vm4", "eth1")}
EVERYBODY = NET1 | NET2
VIRTIO_OFFLOADS = {"checksum, sent": 0, "checksum, received": 1, "TSO4, received": 7, "TSO4, sent": 11}  # bits, virtio 1.2, 5.1.3


def lives(path):
    """Whether the process of this VM exists and is no zombie (proc(5))."""
    with open(path.rsplit(".", 1)[0] + ".pid") as file:
        pid = file.read().strip()
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Line:
    """A QEMU socket that exchanges lines of JSON."""

    def __init__(self, path, patience=PATIENCE):
        end = time.monotonic() + patience
        while True:
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(path)
                break
            except OSError as error:  # QEMU has not created it yet
                if time.monotonic() > end or not lives(path):
                    sys.exit(f"{path}: {error}")
                time.sleep(0.02)
        self.socket.settimeout(max(end - time.monotonic(), 0.1))
        self.lines = self.socket.makefile("rb")

    def read(self):
        if not (line := self.lines.readline()):
            sys.exit("the VM has ended")
        return json.loads(line)

    def write(self, it):
        self.socket.sendall(json.dumps(it).encode() + b"\n")


class Guests(dict):
    def __missing__(self, name):
        self[name] = Line(f"{RUN}/{name}.line")
        return self[name]

    def ask(self, name, do, *arguments):
        self[name].write({"do": do, "with": arguments})
        said = self[name].read()
        if "error" in said:
            sys.exit(f"{name}: {do}: {said['error']}")
        return said["answer"]


guests = Guests()
ask = guests.ask


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def experiment(to, sender, length, seed):
    return (octets(to) + octets(sender) + EXPERIMENT.to_bytes(2, "big") + random.Random(seed).randbytes(length - 14)).hex()


def llc(to, sender, seed):
    """An IEEE 802.3 frame with LLC, unnumbered information."""
    payload = b"\x42\x42\x03" + random.Random(seed).randbytes(43)
    return (octets(to) + octets(sender) + len(payload).to_bytes(2, "big") + payload).hex()


def listen(stations):
    for vm in sorted({vm for vm, _ in stations.values()}):
        ask(vm, "listen", *(nic for other, nic in stations.values() if other == vm))


def gather(network, *speakers):
    """Frames received on a network. Two stations send a last frame each, one after the other; each receives the other's."""
    came, (first, second) = {}, speakers
    for speaker, hearers in (first, [mac for mac in network if mac != first]), (second, [first]):
        last = experiment(BROADCAST, speaker, 60, f"last of {speaker}")
        ask(network[speaker][0], "say", network[speaker][1], [last])
        for mac in hearers:
            came[mac] = ask(*[network[mac][0], "heard", network[mac][1], last])
    return came


def boots(seconds, *names):
    end = time.monotonic() + float(seconds)
    for name in names:
        guests[name] = Line(f"{RUN}/{name}.line", end - time.monotonic())
    for name in names:
        try:
            if guests[name].read() != {"answer": "ready"}:
                sys.exit(f"unexpected first message of {name}")
        except TimeoutError:
            sys.exit(f"{name} is not ready after {seconds} seconds")
    return True


def run(name, command):
    done = ask(name, "run", command)
    print(done["output"], end="")
    return done["code"] == 0


def order(name, *macs):
    nics = ask(name, "nics")
    for place, nic, mac in nics:
        print(place, nic, mac)
    return [(nic, mac) for _, nic, mac in nics] == [(f"eth{n}", mac) for n, mac in enumerate(macs)]


def nic(name, mac):
    print(ask(name, "nic", mac))
    return True


def offloads(name, wanted):
    held = []
    for _, nic, _ in ask(name, "nics"):
        bits = ask(name, "run", f"cat /sys/class/net/{nic}/device/features")["output"]
        has = {what: bits[bit] == "1" for what, bit in VIRTIO_OFFLOADS.items()}
        print(nic, has)
        held.append(all(has.values()) if wanted == "on" else not any(has.values()))
    return bool(held) and all(held)


def plug(name, netdev, device):
    """QEMU Machine Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html"""
    line = Line(f"{RUN}/{name}.qmp")
    line.read()  # greeting

    def command(execute, arguments):
        line.write({"execute": execute, "arguments": arguments})
        while "event" in (said := line.read()):
            pass
        if "error" in said or said["return"]:
            sys.exit(f"{execute} {arguments}: {said}")

    command("qmp_capabilities", {})
    # by command line, because QMP itself requires numbers as such
    command("human-monitor-command", {"command-line": f"netdev_add {netdev}"})
    command("human-monitor-command", {"command-line": f"device_add {device}"})
    return True


def heard_of(frames, kind):
    return [frame for frame in frames if frame[24:28] == kind]


def nat():
    """Five pings of vm1 to 10.10.1.200, which no interface has: vm2 translates them to pings from 10.10.2.200 to vm3."""
    listen(EVERYBODY)
    said = ask("vm1", "run", "ping -q -A -c 5 -w 20 10.10.1.200")["output"]
    print(said)
    net1, net2 = gather(NET1, VM1, VM4_A), gather(NET2, VM3, VM4_B)
    before, after = (sum(net.values(), []) for net in (net1, net2))
    requests = [frame for frame in heard_of(net2[VM3], "0800") if (frame[46:48], frame[68:70]) == ("01", "08")]
    print(f"on net1 {len(before)} frames are received, on net2 {len(after)}; {len(requests)} pings at vm3:")
    seen = {(octets_of(frame, 6, 12), address(frame, 26), address(frame, 30)) for frame in requests}
    print(seen)
    checks = {
        "5 of 5 are answered": "5 packets transmitted, 5 packets received" in said,
        "5 come to vm3, from vm2's eth2 and 10.10.2.200": len(requests) == 5 and seen == {(VM2_2, "10.10.2.200", "10.10.2.13")},
        "5 come to vm2, from vm1": len(net1[VM2_1]) == 5 and all(address(f, 30) == "10.10.1.200" for f in net1[VM2_1]),
        "no frame of net1 is on net2": not set(before) & set(after),
        "vm4, on both networks, receives none of it": not net1[VM4_A] + net1[VM4_C] + net2[VM4_B],
        "no ARP was needed": not heard_of(before + after, "0806"),
    }
    return verdict(checks)


def lost(where):
    """Two pings of vm1 to 10.10.1.200 without an answer."""
    listen(EVERYBODY)
    said = ask("vm1", "run", "ping -q -c 2 -w 3 10.10.1.200")["output"]
    print(said)
    net1, net2 = gather(NET1, VM1, VM4_A), gather(NET2, VM3, VM4_B)
    print({mac: len(frames) for mac, frames in (net1 | net2).items()})
    checks = {"100 % are lost": "100% packet loss" in said, "vm1 receives nothing": not net1[VM1]}
    if where == "arp":
        asked = heard_of(net1[VM4_A], "0806")
        checks["vm4 receives vm1's ARP request for 10.10.1.200"] = asked and all(address(f, 38) == "10.10.1.200" for f in asked)
        checks["nothing reaches vm3"] = not net2[VM3]
    else:
        checks["vm2 receives the pings"] = bool(heard_of(net1[VM2_1], "0800"))
    return verdict(checks)


def octets_of(frame, start, end):
    return ":".join(frame[2 * n : 2 * n + 2] for n in range(start, end))


def address(frame, start):
    return socket.inet_ntoa(bytes.fromhex(frame[2 * start : 2 * start + 8]))


def verdict(checks):
    for what, holds in checks.items():
        print("yes" if holds else "NO ", what)
    return all(checks.values())


def tcp(megabytes, offloads):
    def frames_at(name):
        nic = f"/sys/class/net/eth1/statistics/{'t' if name == 'vm1' else 'r'}x_packets"
        return int(ask(name, "run", f"cat {nic}")["output"])

    before = [frames_at("vm1"), frames_at("vm3")]
    ask("vm3", "serve", 5001)
    sent = ask("vm1", "send", "10.10.1.200", 5001, int(megabytes))
    came = ask("vm3", "served", 5001)
    total = int(megabytes) << 20
    left, arrived = (now - then for now, then in zip([frames_at("vm1"), frames_at("vm3")], before))
    print(f"sent {sent[:16]}… in {left} frames, received {came} in {arrived}")
    least = total // 1460  # with an MTU of 1500
    checks = {
        "all of it arrives": (came.get("bytes"), came.get("digest")) == (total, sent),
        "from 10.10.2.200": came.get("peer") == "10.10.2.200",
        "in GSO packets": max(left, arrived) < least,
    }
    if offloads == "off":
        del checks["in GSO packets"]
        checks["in frames"] = min(left, arrived) >= least
    return verdict(checks)


def stranger(mac):
    """After vm4 receives it, the switch has learned its source."""
    frame = experiment(BROADCAST, mac, 60, "here I am")
    listen({VM4_A: EVERYBODY[VM4_A]})
    ask("vm2", "say", "eth1", [frame])
    ask("vm4", "heard", "eth0", frame)
    return True


def exchange(sender, sibling, stations):
    """Each NIC receives once each frame to it and each broadcast; net2 and the sender receive nothing."""
    to = [experiment(sibling, sender, length, f"to {sibling} {length}") for length in (60, 61, 1000, 1514)] + [llc(sibling, sender, "llc")]
    to_all = [experiment(BROADCAST, sender, length, f"to all {length}") for length in (60, 1514)] + [llc(BROADCAST, sender, "llc")]
    listen(stations | NET2)
    ask(stations[sender][0], "say", stations[sender][1], to + to_all)
    speakers = sender, next(mac for mac in stations if mac not in (sender, sibling))
    came = gather(stations, *speakers) | gather(NET2, VM3, VM4_B)
    held = True
    for mac, frames in came.items():
        expected = {sender: [], sibling: to + to_all}.get(mac, [] if mac in NET2 else to_all)
        right = sorted(frames) == sorted(expected)
        held &= right
        print(mac, f"expected {len(expected)}, received {len(frames)}", "" if right else "WRONG")
    return held


def frames():
    return exchange(VM4_A, VM4_C, NET1) and exchange(VM4_C, VM4_A, NET1)


def new():
    """Hotplugged NIC: vm1's first frame to it, and its own first frames, arrive."""
    stations = NET1 | {VM4_D: ("vm4", ask("vm4", "nic", VM4_D))}
    return exchange(VM1, VM4_D, stations) and exchange(VM4_D, VM1, stations) and exchange(VM4_D, VM4_A, stations)


if __name__ == "__main__":
    RUN, what = sys.argv[1:3]
    known = {work.__name__: work for work in (boots, run, order, nic, offloads, plug, nat, lost, tcp, stranger, frames, new)}
    sys.exit(0 if known[what](*sys.argv[3:]) else 1)
