"""Scenarios of scripts/openstack-lab with Nova: VMs boot with the ports that the two specifications are about."""

import concurrent.futures

from guests import Failed
from openstack_compute import Compute, Guest
from openstack_neutron import ACTIVE, BROADCAST, equal, frame, refused
from openstack_services import eventually


class Cloud:
    def __init__(self, lab):
        self.lab, self.neutron, self.compute = lab, lab.neutron, Compute(lab)
        self.api = lab.hosts["compute1"].api
        self.guests = {}

    def network(self, name, cidr):
        net = self.neutron.make("network", name=name)
        self.neutron.make("subnet", network_id=net["id"], cidr=cidr, ip_version=4, enable_dhcp=False)
        return net["id"]

    def port(self, network, ip=None, **keys):
        return self.neutron.make("port", network_id=network, fixed_ips=[{"ip_address": ip}] if ip else [], **keys)

    def server(self, name, networks):
        body = {"name": name, "imageRef": self.image, "flavorRef": "1", "networks": networks}
        return self.compute.nova("POST", "/servers", {"server": body})

    def boot(self, name, networks):
        status, answer = self.server(name, networks)
        if status != 202:
            raise Failed(f"{name}: {status} {answer}")
        self.guests[name] = Guest(self.compute, name, answer["server"]["id"])
        return self.guests[name]

    def ready(self, *names):
        """All of them are ACTIVE for Nova, and answer."""
        guests = [self.guests[name] for name in names]
        with concurrent.futures.ThreadPoolExecutor(len(guests)) as pool:
            lines = [pool.submit(guest.connect) for guest in guests]
            for guest in guests:
                guest.until(ACTIVE)
            for line in lines:
                line.result()
        return True

    def ports_of(self, guest):
        return self.neutron.ok("GET", f"/ports?device_id={guest.id}")

    def order(self, guest):
        """MAC addresses of the VM's ports in the order that the switch has."""
        return [port["mac_address"] for port in self.api.get("ports") if port["device_id"] == guest.id]

    def delete(self, *names):
        for name in names:
            self.compute.nova("DELETE", f"/servers/{self.guests[name].id}")
        for name in names:
            eventually(f"{name} is deleted", lambda: self.compute.nova("GET", f"/servers/{self.guests[name].id}")[0] == 404, 60)
            self.guests.pop(name).close()


def crosses(sender, receiver):
    """A frame other than IP from a NIC to another one arrives, and a broadcast too. Both are (guest, MAC address)."""
    (from_guest, from_mac), (to_guest, to_mac) = sender, receiver
    from_nic, to_nic = from_guest.ask("nic", from_mac), to_guest.ask("nic", to_mac)
    to_guest.ask("listen", to_nic)
    made = [frame(to_mac, from_mac, "to it"), frame(BROADCAST, from_mac, "to all")]
    last = frame(to_mac, from_mac, "last")
    from_guest.ask("say", from_nic, [one.hex() for one in [*made, last]])
    heard = to_guest.ask("heard", to_nic, last.hex())
    wrong = [one.hex() for one in made if heard.count(one.hex()) != 1]
    if wrong:
        raise Failed(f"of {len(made)} frames from {from_mac} to {to_mac} {len(wrong)} did not arrive once")
    return True


def scenarios(lab, check, step):
    step("libvirt, Placement, Glance, Nova")
    cloud = Cloud(lab)
    cloud.compute.start()
    cloud.image = cloud.compute.image()
    mgmt, net1, net2 = (cloud.network(f"nova-{n}", f"10.10.{n}.0/24") for n in range(3))
    step("Nova: several interfaces of one VM on a network")
    multiple_interfaces(cloud, check, net1, net2)
    step("Nova: a VM with unaddressed ports between two others")
    unaddressed_ports(cloud, check, mgmt, net1, net2)

    def empty():
        cloud.delete(*cloud.guests)
        for port in cloud.neutron.ok("GET", "/ports"):
            if port["network_id"] in (mgmt, net1, net2):
                cloud.neutron("DELETE", f"/ports/{port['id']}")
        for net in mgmt, net1, net2:
            cloud.neutron.ok("DELETE", f"/networks/{net}")
        return eventually(
            "empty",
            lambda: not any(one.get("owner") == "neutron" for kind in ("ports", "networks") for one in cloud.api.get(kind)),
        )

    check("when the VMs are deleted, nothing of Neutron is left in the switch", empty)
    for guest in cloud.guests.values():
        print(f"-- console of {guest.name}\n{guest.console()}")


def multiple_interfaces(cloud, check, net1, net2):
    group, nova = "multiple interfaces: ", cloud.compute.nova

    def by_network():
        cloud.boot("a", [{"uuid": net} for net in (net1, net1, net2)])
        ports = [cloud.port(net, ip) for net, ip in ((net1, "10.10.1.51"), (net1, "10.10.1.52"), (net2, "10.10.2.51"))]
        cloud.ports_b = [ports[1], ports[2], ports[0]]  # another order than that of their creation
        cloud.boot("b", [{"port": port["id"]} for port in cloud.ports_b])
        cloud.port_x = cloud.port(net1, "10.10.1.61")
        cloud.boot("x", [{"port": cloud.port_x["id"]}])
        return cloud.ready("a", "b", "x")

    check(group + "VMs boot with [net1, net1, net2], by network and by port: Nova returns success", by_network)
    a, b, x = (cloud.guests.get(name) for name in "abx")

    def order_by_network():
        where = {port["mac_address"]: port["network_id"] for port in cloud.ports_of(a)}
        equal([where[mac] for mac in a.macs()], [net1, net1, net2])
        return equal(cloud.order(a), a.macs())

    check(
        group + "by network: the VM has its NICs in the requested order on the PCI bus, and the switch has the same",
        order_by_network,
    )

    def order_by_port():
        equal(b.macs(), [port["mac_address"] for port in cloud.ports_b])
        return equal(cloud.order(b), b.macs())

    check(group + "by port: the same", order_by_port)
    check(
        group + "traffic passes between the two interfaces of the VM booted by network",
        lambda: crosses((a, a.macs()[0]), (a, a.macs()[1])) and crosses((a, a.macs()[1]), (a, a.macs()[0])),
    )
    check(
        group + "traffic passes from another VM to either of its interfaces, and back",
        lambda: all(crosses((x, x.macs()[0]), (a, mac)) and crosses((a, mac), (x, x.macs()[0])) for mac in a.macs()[:2]),
    )
    check(
        group + "the same with the VM booted by port",
        lambda: all(crosses((x, x.macs()[0]), (b, mac)) for mac in (b.macs()[0], b.macs()[2])),
    )

    def ping():
        x.run("ip addr add 10.10.1.61/24 dev eth0", "ip link set eth0 up")
        b.run("ip addr add 10.10.1.52/24 dev eth0", "ip link set eth0 up")
        return x.run("ping -q -c 3 -w 20 10.10.1.52")

    check(group + "and IP: the other VM pings it", ping)

    def detach():
        cloud.middle = b.macs()[1]
        port = next(p for p in cloud.ports_of(b) if p["mac_address"] == cloud.middle)
        rest = [mac for mac in b.macs() if mac != cloud.middle]
        equal(nova("DELETE", f"/servers/{b.id}/os-interface/{port['id']}")[0], 202)
        took = eventually("gone from the guest", lambda: b.macs() == rest, 60)
        eventually("gone from the switch", lambda: cloud.order(b) == rest)
        crosses((x, x.macs()[0]), (b, rest[0]))
        return took

    check(group + "interface-detach of the middle one of the running VM; the others keep their order", detach)

    def attach():
        before = b.macs()
        port = cloud.port(net1)
        equal(nova("POST", f"/servers/{b.id}/os-interface", {"interfaceAttachment": {"port_id": port["id"]}})[0], 200)
        equal(nova("POST", f"/servers/{b.id}/os-interface", {"interfaceAttachment": {"net_id": net1}})[0], 200)
        eventually("in the guest", lambda: len(b.macs()) == len(before) + 2, 60)
        eventually("ACTIVE", lambda: all(p["status"] == ACTIVE for p in cloud.ports_of(b)))
        equal(set(b.macs()) >= {*before, port["mac_address"]}, True)
        equal(cloud.order(b)[:2], before)
        equal(cloud.order(b)[2], port["mac_address"])
        return all(crosses((x, x.macs()[0]), (b, mac)) and crosses((b, mac), (b, before[0])) for mac in cloud.order(b)[2:])

    check(group + "interface-attach to the same network, by port (without address) and by network, to the running VM", attach)
    check(
        "the same port twice is refused (400)",
        lambda: refused(cloud.server("twice", [{"port": cloud.port_x["id"]}, {"port": cloud.port_x["id"]}]), 400),
    )
    check("a port in use is refused (409)", lambda: refused(cloud.server("used", [{"port": cloud.port_x["id"]}]), 409))

    def reboot():
        wanted = cloud.order(b)
        equal(nova("POST", f"/servers/{b.id}/action", {"reboot": {"type": "HARD"}})[0], 202)
        b.ends()
        cloud.ready("b")
        eventually("ACTIVE", lambda: all(p["status"] == ACTIVE for p in cloud.ports_of(b)))
        equal(b.macs(), wanted)
        equal(cloud.order(b), wanted)
        return crosses((x, x.macs()[0]), (b, b.macs()[0]))

    check("a hard reboot keeps the order, and traffic passes again", reboot)

    def faults():
        host = cloud.lab.hosts["compute1"]
        host.agent.kill()
        host.switch.kill()
        host.start_switch()
        host.agent.start()
        eventually("ACTIVE", lambda: all(p["status"] == ACTIVE for p in host.api.ports(owner="neutron").values()))
        return crosses((x, x.macs()[0]), (a, a.macs()[0]))

    check("traffic passes again after a kill of switch and agent under running VMs", faults)
    check("the VMs are deleted", lambda: cloud.delete("a", "b", "x") is None)


def unaddressed_ports(cloud, check, mgmt, net1, net2):
    group = "unaddressed port: "

    def boot():
        cloud.middle = [cloud.port(net1), cloud.port(net2)]
        equal([port["ip_allocation"] for port in cloud.middle], ["none", "none"])
        lines = {
            "vm1": [cloud.port(mgmt, "10.10.0.11"), cloud.port(net1, "10.10.1.11")],
            "vm2": [cloud.port(mgmt, "10.10.0.12"), *cloud.middle],
            "vm3": [cloud.port(mgmt, "10.10.0.13"), cloud.port(net2, "10.10.2.13")],
        }
        cloud.macs = {name: [port["mac_address"] for port in ports] for name, ports in lines.items()}
        for name, ports in lines.items():
            cloud.boot(name, [{"port": port["id"]} for port in ports])
        return cloud.ready(*lines)

    check(group + "three VMs boot, the second one with two ports without addresses (ip_allocation none) on net1 and net2", boot)
    vm1, vm2, vm3 = (cloud.guests.get(f"vm{n}") for n in (1, 2, 3))

    def management():
        for number, vm in enumerate((vm1, vm2, vm3), 11):
            vm.run(f"ip addr add 10.10.0.{number}/24 dev eth0", "ip link set eth0 up")
        return vm1.run("ping -q -c 2 -w 20 10.10.0.12") and vm1.run("ping -q -c 2 -w 20 10.10.0.13")

    check(group + "each VM is reached by its management port", management)

    def nat():
        vm1.run(
            "ip link set eth1 up",
            "ip addr add 10.10.1.11/24 dev eth1",
            f"ip neigh replace 10.10.1.200 lladdr {cloud.macs['vm2'][1]} dev eth1 nud permanent",
        )
        vm3.run(
            "ip link set eth1 up",
            "ip addr add 10.10.2.13/24 dev eth1",
            f"ip neigh replace 10.10.2.200 lladdr {cloud.macs['vm2'][2]} dev eth1 nud permanent",
        )
        vm2.run(
            "ip link set eth1 up",
            "ip link set eth2 up",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0 net.ipv4.conf.eth2.rp_filter=0",
            "ip route add 10.10.1.0/24 dev eth1",
            "ip route add 10.10.2.0/24 dev eth2",
            f"ip neigh replace 10.10.1.11 lladdr {cloud.macs['vm1'][1]} dev eth1 nud permanent",
            f"ip neigh replace 10.10.2.13 lladdr {cloud.macs['vm3'][1]} dev eth2 nud permanent",
            """nft 'add table ip lab
            add chain ip lab in { type nat hook prerouting priority dstnat; }
            add rule ip lab in iifname eth1 ip daddr 10.10.1.200 dnat to 10.10.2.13
            add chain ip lab out { type nat hook postrouting priority srcnat; }
            add rule ip lab out oifname eth2 snat to 10.10.2.200'""",
        )
        return equal("inet" in vm2.run("ip -o addr show dev eth1; ip -o addr show dev eth2; true"), False)

    check(group + "the second VM translates addresses between its two interfaces, which have none", nat)

    def through():
        said = vm1.run("ping -q -A -c 5 -w 20 10.10.1.200")
        return equal("5 packets transmitted, 5 packets received" in said, True)

    check(group + "traffic of the first VM reaches the third one through it, and the answers come back", through)

    def tcp():
        vm3.ask("serve", 5001)
        digest = vm1.ask("send", "10.10.1.200", 5001, 4)
        served = vm3.ask("served", 5001)
        return equal((served["bytes"], served["digest"], served["peer"]), (4 << 20, digest, "10.10.2.200"))

    check(group + "4 MiB over TCP arrive unmodified, from the address that the second VM gave them", tcp)
    check(
        group + "traffic that is neither IPv4 nor IPv6 passes",
        lambda: crosses((vm1, cloud.macs["vm1"][1]), (vm2, cloud.macs["vm2"][1]))
        and crosses((vm2, cloud.macs["vm2"][2]), (vm3, cloud.macs["vm3"][1])),
    )
