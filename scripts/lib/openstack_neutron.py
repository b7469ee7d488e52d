"""Scenarios of scripts/openstack-lab with Neutron alone: Nova's part is played by hand, with taps that a guest holds.

Each check is one sentence. Those of the two specifications quote what they are about: "multiple interfaces" is the
specification that lets a VM have several interfaces on one network, "unaddressed port" the one of ports without addresses.
"""

import contextlib
import fcntl
import os
import select
import struct
import time
import uuid

from guests import Failed
from openstack_services import eventually
from traffic import inside

ACTIVE, DOWN = "ACTIVE", "DOWN"
EXPERIMENT = 0x88B5  # ethertype for local experiments (IEEE 802)
BROADCAST = "ff:ff:ff:ff:ff:ff"
TUNSETIFF, TAP, NO_PI, VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000


class Guest:
    """A VM's end of a tap, as QEMU holds it: with virtio_net_hdr."""

    def __init__(self, host, name):
        def opened():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_PI | VNET_HDR))
            return fd

        self.fd = inside(host.space, opened) if host.space else opened()

    def send(self, frame):
        os.write(self.fd, bytes(10) + frame)

    def heard(self, last=None, seconds=5):
        """Frames received, up to the frame `last`, or those that are there."""
        found, end = [], time.monotonic() + (seconds if last else 0)
        while select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0]:
            frame = os.read(self.fd, 1 << 17)[10:]
            if frame == last:
                return found
            found.append(frame)
        if last:
            raise Failed("the last frame did not arrive")
        return found

    def close(self):
        os.close(self.fd)


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def frame(to, sender, text="", kind=EXPERIMENT, vlan=None):
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return octets(to) + octets(sender) + tag + struct.pack("!H", kind) + text.encode().ljust(46, b".")


class Nova:
    """Nova's part: ports get a device and a host, taps are created in the order of the NICs, and a guest holds them."""

    def __init__(self, lab):
        self.lab, self.neutron = lab, lab.neutron
        self.ports, self.guests = {}, {}  # by short name
        self.count = 0

    def port(self, name, network, vm=None, /, **keys):
        """A port; with `vm`, bound there. `network` is the object of Neutron."""
        self.ports[name] = self.neutron.make("port", network_id=network["id"], name=name, **keys)
        if vm:
            self.bind(name, vm)
        return self.ports[name]

    def bind(self, name, vm, host="host1"):
        keys = {"device_id": vm, "device_owner": "compute:nova", "binding:host_id": host}
        self.ports[name] = self.update(name, **keys)
        return self.ports[name]

    def update(self, name, /, **keys):
        return self.neutron.ok("PUT", f"/ports/{self.id(name)}", {"port": keys})

    def id(self, name):
        return self.ports[name]["id"]

    def mac(self, name):
        return self.ports[name]["mac_address"]

    def tap(self, name):
        return ("tap" + self.id(name))[:14]

    def plug(self, name, host="host1", mtu=1500, hold=True):
        host = self.lab.hosts[host]
        host.ip(f"tuntap add dev {self.tap(name)} mode tap vnet_hdr")
        host.ip(f"link set {self.tap(name)} up mtu {mtu}")
        if hold:
            self.guests[name] = Guest(host, self.tap(name))

    def unplug(self, name, host="host1"):
        if guest := self.guests.pop(name, None):
            guest.close()
        self.lab.hosts[host].ip(f"link del {self.tap(name)}")

    def state(self, name):
        return self.neutron.ok("GET", f"/ports/{self.id(name)}")

    def is_status(self, status, *names):
        return all(self.state(name)["status"] == status for name in names)

    def until(self, status, *names, seconds=20):
        states = {}

        def reached():
            states.update({name: self.state(name)["status"] for name in names})
            return all(state == status for state in states.values())

        with contextlib.suppress(Failed):
            return eventually("", reached, seconds)
        raise Failed(f"not {status} within {seconds} s: {states}")

    def delete(self, *names, host="host1"):
        for name in names:
            if name in self.guests:
                self.unplug(name, host)
            self.neutron("DELETE", f"/ports/{self.id(name)}")
            del self.ports[name]

    def flows(self, sender, to, others=(), **more):
        """Whether a frame from one port to another arrives there, unmodified and once, and nowhere else."""
        self.count += 1
        made = frame(
            more.pop("to_mac", None) or self.mac(to),
            more.pop("from_mac", None) or self.mac(sender),
            f"frame {self.count}",
            **more,
        )
        for guest in self.guests.values():
            guest.heard()
        self.guests[sender].send(made)
        self.guests[to].heard(made)
        wrong = [name for name in others if made in self.guests[name].heard()]
        if wrong:
            raise Failed(f"a frame from {sender} to {to} also arrives at {wrong}")
        return True

    def is_dropped(self, sender, to, **more):
        """Whether a frame does not arrive, though one that is sent after it does."""
        self.count += 1
        made = frame(
            more.pop("to_mac", None) or self.mac(to),
            more.pop("from_mac", None) or self.mac(sender),
            f"frame {self.count}",
            **more,
        )
        self.guests[to].heard()
        self.guests[sender].send(made)
        last = frame(self.mac(to), self.mac(sender), f"last {self.count}")
        self.guests[sender].send(last)
        return made not in self.guests[to].heard(last)


def equal(found, wanted):
    if found != wanted:
        raise Failed(f"it is {found}, not {wanted}")
    return True


def refused(answer, status, *parts):
    if answer[0] != status or any(part not in str(answer[1]) for part in parts):
        raise Failed(f"the answer is {answer[0]} {str(answer[1])[:300]}, not {status} with {parts}")
    return True


def scenarios(lab, check):
    """`check(sentence, function)` runs one check and prints its line."""
    neutron, nova, host1 = lab.neutron, Nova(lab), lab.hosts["host1"]
    net1, net2 = (neutron.make("network", name=name) for name in ("net1", "net2"))
    for number, net in enumerate((net1, net2), 1):
        neutron.make("subnet", network_id=net["id"], cidr=f"10.5.{number}.0/24", ip_version=4, enable_dhcp=False)
    vm1, vm2 = str(uuid.uuid4()), str(uuid.uuid4())
    nova.net1, nova.net2, nova.vm1, nova.vm2 = net1, net2, vm1, vm2
    api1 = host1.api

    def alive():
        agents = {a["host"]: a["alive"] for a in neutron.ok("GET", "/agents")}
        return all(agents.get(name) for name in lab.hosts)

    check("the agents of all hosts are alive", lambda: eventually("alive", alive))
    group = "multiple interfaces: "

    def several():
        for name, net in ("a", net1), ("b", net1), ("c", net2):
            nova.port(name, net, vm1)
        nova.port("x", net1, vm2)
        for name in "abcx":
            details = nova.ports[name]["binding:vif_details"]
            equal((nova.ports[name]["binding:vif_type"], details["connectivity"]), ("tap", "l2"))
        return True

    check(group + "a VM has [net1, net1, net2]; its ports are bound as taps, with connectivity l2", several)
    check(
        "port details say that security groups are not enforced",
        lambda: equal(
            {key: nova.ports["a"]["binding:vif_details"].get(key) for key in ("port_filter", "security_groups")},
            {"port_filter": False, "security_groups": "not enforced"},
        ),
    )
    check(
        "the agent says so in its log and in its state",
        lambda: host1.agent.said("SECURITY GROUPS ARE NOT ENFORCED")
        and equal({a["configurations"]["security_groups"] for a in neutron.ok("GET", "/agents")}, {"not enforced"}),
    )

    def plugged():
        for name in "abcx":
            nova.plug(name, hold=False)
        eventually(
            "no carrier", lambda: all(api1.ports().get(nova.id(name), {}).get("status_code") == "no_carrier" for name in "abcx")
        )
        equal([nova.state(name)["status"] for name in "abcx"], [DOWN] * 4)
        for name in "abcx":
            nova.guests[name] = Guest(host1, nova.tap(name))
        return nova.until(ACTIVE, *"abcx")

    check("a port is DOWN while no guest holds its tap, and ACTIVE when one does", plugged)
    check(group + "the order of its ports is the requested one", lambda: equal(api1.order(vm1), [nova.id(n) for n in "abc"]))
    check(
        group + "traffic passes between the two interfaces of the VM on net1",
        lambda: nova.flows("a", "b", "cx") and nova.flows("b", "a", "cx"),
    )
    check(
        group + "traffic passes from another VM to either of the interfaces",
        lambda: nova.flows("x", "a", "bc") and nova.flows("x", "b", "ac"),
    )
    check(group + "and from either of them to the other VM", lambda: nova.flows("a", "x", "bc") and nova.flows("b", "x", "ac"))

    def broadcast():
        made = frame(BROADCAST, nova.mac("x"), "to all")
        for guest in nova.guests.values():
            guest.heard()
        nova.guests["x"].send(made)
        for name in "ab":
            nova.guests[name].heard(made)
        return equal([made in nova.guests[name].heard() for name in "abcx"], [False] * 4)

    check(group + "a broadcast reaches each interface on net1 once, and none on net2", broadcast)

    def detach_middle():
        nova.unplug("b")
        took = nova.until(DOWN, "b")
        nova.update("b", **{"device_id": "", "device_owner": "", "binding:host_id": ""})
        eventually("gone", lambda: nova.id("b") not in api1.ports())
        equal(api1.order(vm1), [nova.id(n) for n in "ac"])
        nova.flows("x", "a", "c")
        return took

    check(group + "the middle interface is detached; the others keep their order and their traffic", detach_middle)

    def attach_again():
        nova.bind("b", vm1)
        nova.plug("b")
        nova.until(ACTIVE, "b")
        equal(api1.order(vm1), [nova.id(n) for n in "acb"])
        return nova.flows("a", "b", "cx") and nova.flows("x", "b", "ac")

    check(group + "it is attached again while the VM runs, as the last one", attach_again)
    check(
        "a MAC address is used once per network: Neutron refuses a second port with it",
        lambda: refused(
            neutron("POST", "/ports", {"port": {"network_id": net1["id"], "mac_address": nova.mac("a")}}), 409, "MacAddressInUse"
        ),
    )

    group = "unaddressed port: "

    def unaddressed():
        nova.port("u", net1, vm2, fixed_ips=[])
        nova.port("v", net2, vm2, fixed_ips=[], port_security_enabled=False, security_groups=[])
        for name in "uv":
            equal(
                (nova.ports[name]["ip_allocation"], nova.ports[name]["fixed_ips"], nova.ports[name]["binding:vif_type"]),
                ("none", [], "tap"),
            )
            nova.plug(name)
        return nova.until(ACTIVE, "u", "v")

    check(group + "ports without addresses have ip_allocation none, are bound, and become ACTIVE", unaddressed)
    check(
        group + "traffic that is neither IPv4 nor IPv6 passes, from it and to it",
        lambda: nova.flows("u", "a", "cx") and nova.flows("a", "u", "cx"),
    )
    check(
        group + "a VM in the middle forwards from the addresses of others, without port security (as NAT and routing do)",
        lambda: nova.flows("v", "c", from_mac="02:aa:aa:aa:aa:01", kind=0x0800)
        and nova.flows("c", "v", to_mac="02:aa:aa:aa:aa:01", kind=0x0800),
    )
    check(
        group + "with port security it may send from its own MAC address only, and has no IP address to be held to",
        lambda: nova.is_dropped("u", "a", from_mac="02:aa:aa:aa:aa:02") and nova.flows("u", "a", kind=0x0800),
    )

    def pair():
        nova.update("u", allowed_address_pairs=[{"mac_address": "02:aa:aa:aa:aa:02", "ip_address": "10.9.0.0/16"}])
        return eventually("allowed", lambda: not nova.is_dropped("u", "a", from_mac="02:aa:aa:aa:aa:02"))

    check("an allowed address pair is in force a moment after it is added", pair)

    def admin():
        nova.update("a", admin_state_up=False)
        nova.until(DOWN, "a")
        equal(api1.ports()[nova.id("a")]["status_code"], "admin_down")
        nova.update("a", admin_state_up=True)
        return nova.until(ACTIVE, "a") and nova.flows("x", "a")

    check("admin_state_up = false stops a port, and true starts it", admin)

    def mtu():
        for value in 1400, 1500:
            neutron.ok("PUT", f"/networks/{net1['id']}", {"network": {"mtu": value}})
            took = eventually("MTU", lambda: {n["network_id"]: n["mtu"] for n in api1.get("networks")}[net1["id"]] == value)
        return took

    check("the MTU of a network is that of Neutron, also after a change", mtu)

    return nova
