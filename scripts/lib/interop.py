"""Scenarios of scripts/interop: real daemons as guests of one switch, and frames made by scapy.

    interop.py names                        prints the names of the scenarios
    interop.py packages [NAME…]             prints the Debian packages that are missing for them
    interop.py play PROGRAM KINDS [NAME…]   plays them, all by default, on ports of these device kinds in turn

guests.py says what a scenario is. Where a scenario is about addresses, its ports have port security mac+ip.
"""

import collections
import json
import os
import re
import select
import shutil
import socket
import sys
import time

from guests import PATIENCE, Failed, missing, nic, play, wait_for
from traffic import OUTGOING
from wires import Wire

PROBES = bytes.fromhex("037669667377")  # destination of the switch's loop probes
STRICT = {"port_security": "mac+ip"}
EVERYBODY = {"ip": "iproute2", "ethtool": "ethtool", "ping": "iputils-ping", "sysctl": "procps"}
SCENARIOS = {}  # name → (generator function, {program: package})


def scenario(programs):
    """Adds a scenario that needs these programs, given as {program: Debian package}."""

    def add(function):
        SCENARIOS[function.__name__.replace("_", "-")] = function, EVERYBODY | programs
        return function

    return add


# ---- frames made by scapy ----


def receive_until(end, last):
    """Receives up to the frame `last`, without the switch's loop probes."""
    stop = time.monotonic() + PATIENCE
    while select.select([end.socket], [], [], max(stop - time.monotonic(), 0))[0]:
        frame, address = end.receive()
        if frame == last:
            return
        if address[2] != OUTGOING and not frame.startswith(PROBES):
            end.heard.append(frame)
    raise Failed(f"the last frame did not reach {end.name}")


@scenario({"python:scapy": "python3-scapy"})
def frames(scene):
    """AT-07: each guest is the sender once, and the two others are receiver and bystander."""
    scene.mtu = 9000
    guests = [scene.guest(name, nic()) for name in "abc"]
    for guest in guests:
        guest.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    from frames import BROADCAST, experiment, matrix

    yield
    ends = [Wire(guest.name, "eth0") for guest in guests]
    count, lasts, drops = 0, set(), collections.Counter()
    for turn in range(3):
        order = [(turn + i) % 3 for i in range(3)]
        a, b, c = (ends[i] for i in order)
        (mac_a,), (mac_b,) = (guests[i].macs for i in order[:2])
        rows = matrix(mac_a, mac_b)
        for _, frame, _ in rows:
            a.send(frame)
        # two last frames, to the others and back, follow all others
        there, back = (experiment(mac, BROADCAST, f"last of {mac} in turn {turn}") for mac in (mac_a, mac_b))
        a.send(there)
        receive_until(b, there)
        receive_until(c, there)
        b.send(back)
        receive_until(a, back)
        for name, frame, who in rows:
            came = [end.heard.count(frame) for end in (a, b, c)]
            wanted = {"B": [0, 1, 0], "B and C": [0, 1, 1]}.get(who, [0, 0, 0])
            if came != wanted:
                raise Failed(f"{name}: A, B and C received {came} of it, not {wanted}; A is {mac_a}, B {mac_b}")
            if who not in ("B", "B and C"):
                drops[f"{guests[turn].name}-0", who] += 1
        lasts |= {there, back}
        known = lasts | {frame for _, frame, _ in rows}
        if strange := [frame.hex() for end in ends for frame in end.heard if frame not in known]:
            raise Failed(f"received frames that nobody sent: {strange[:3]}")
        count += len(rows)
        for end in ends:
            end.heard.clear()
    wait_for(f"drops {dict(drops)}, but they are {scene.drops()}", lambda: scene.drops() == drops, 5)
    return f"{count} frames, unmodified to whom they are for; of them {sum(drops.values())} to nobody, with their reason"


# ---- neighbours ----


@scenario({"lldpd": "lldpd", "lldpcli": "lldpd"})
def lldp(scene):
    guests = [scene.guest(name, nic()) for name in "abc"]
    yield

    def neighbours(guest):
        said = guest.tries("lldpcli -u /run/lldpd.socket -f json0 show neighbors")
        found = json.loads(said)["lldp"][0].get("interface", []) if said else []
        return {(one["via"], one["chassis"][0]["name"][0]["value"]) for one in found}

    for guest in guests:
        os.makedirs(f"{guest.files}/lldpd")
        guest.write("lldpd.conf", f"configure system hostname {guest.name}\nconfigure lldp tx-interval 1\n")
        # sends and shows all of the protocols, whatever others send
        guest.start("lldpd -d -u /run/lldpd.socket -I eth0 -O /run/lldpd.conf -H 0 -l -ccccc -ff -ee")
    for guest in guests:
        others = {(via, g.name) for g in guests if g is not guest for via in ("LLDP", "CDPv2", "FDP", "EDP")}
        wait_for(f"neighbours {others} of {guest.name}", lambda: others <= neighbours(guest))
    return "each of three lldpd has the two others as neighbours, by LLDP, CDP, FDP and EDP"


# ---- addresses ----

DHCP_SCRIPT = """#!/bin/sh
case $reason in
BOUND | REBOOT | RENEW | REBIND) ip addr replace "$new_ip_address/24" dev "$interface" ;;
esac
"""


@scenario({"dnsmasq": "dnsmasq-base", "dhclient": "isc-dhcp-client"})
def dhcp(scene):
    """DHCP, and router advertisements from which clients make their IPv6 addresses."""
    server = scene.guest("server", nic("192.0.2.1/24", "2001:db8::1/64", **STRICT))
    a = scene.guest("a", nic(fixed_ips=["192.0.2.11", "2001:db8::11"], **STRICT))
    b = scene.guest("b", nic(fixed_ips=["192.0.2.12", "2001:db8::12"], **STRICT))
    stranger = scene.guest("stranger", nic(**STRICT))
    yield
    for guest, token in ((a, "::11"), (b, "::12")):
        guest.run(f"ip token set {token} dev eth0")
    server.start(
        "dnsmasq --no-daemon --conf-file=/dev/null --port=0 --user=root --log-dhcp --dhcp-authoritative"
        " --dhcp-leasefile=/run/leases --pid-file=/run/dnsmasq.pid"
        " --dhcp-range=192.0.2.50,192.0.2.99 --enable-ra --dhcp-range=2001:db8::,ra-only"
        f" --dhcp-host={a.macs[0]},192.0.2.11 --dhcp-host={b.macs[0]},192.0.2.12"
    )
    for guest in (a, b, stranger):
        guest.write("script", DHCP_SCRIPT)
        os.chmod(f"{guest.files}/script", 0o755)
        guest.write("dhclient.conf", "initial-interval 1; backoff-cutoff 2; select-timeout 0;\n")
        guest.start("dhclient -4 -d -v -cf /run/dhclient.conf -sf /run/script -lf /run/lease -pf /run/dhclient.pid eth0")
    for guest, n in ((a, 11), (b, 12)):
        for ip in (f"192.0.2.{n}/24", f"2001:db8::{n}/64"):
            wait_for(f"{guest.name} has {ip}", lambda: ip in guest.run("ip addr show eth0 -tentative"))
        guest.waits_for_ping("192.0.2.1")
        guest.waits_for_ping("2001:db8::1")
    a.waits_for_ping("192.0.2.12")
    a.waits_for_ping("2001:db8::12")

    def spoofed(guest):
        return scene.drops()[f"{guest.name}-0", "spoofed_ip"]

    wait_for("the requests of a port without addresses are dropped", lambda: spoofed(stranger))
    if stranger.macs[0] in server.log("dnsmasq"):
        raise Failed("a request of a port without addresses reached the server")
    before = spoofed(b)
    b.run("ip addr add 192.0.2.77/24 dev eth0")
    if b.pings("192.0.2.1", "-I 192.0.2.77"):
        raise Failed("an answer to an address that the port may not use")
    wait_for("frames from an address that was not leased are dropped", lambda: spoofed(b) > before)
    return "two clients have leases and SLAAC addresses, which answer; a port without addresses gets none; 192.0.2.77 is dropped"


AVAHI = """[server]
host-name={name}
use-ipv4=yes
use-ipv6=no
allow-interfaces=eth0
enable-dbus=no
[publish]
publish-hinfo=no
publish-workstation=no
"""


@scenario({"avahi-daemon": "avahi-daemon"})
def mdns(scene):
    a, b, c = guests = [scene.guest(name, nic(f"192.0.2.{n}/24", **STRICT)) for n, name in enumerate("abc", 1)]
    yield

    def resolves(guest, name):
        """The address that its daemon has found."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(PATIENCE)
                line.connect(f"{guest.files}/avahi-daemon/socket")
                line.sendall(f"RESOLVE-HOSTNAME-IPV4 {name}.local\n".encode())
                answer = line.recv(4096).decode()
        except OSError:
            return ""
        return answer.split()[-1] if answer.startswith("+") else ""

    for guest, name in zip(guests, ("guest", "guest", "other")):
        guest.write("avahi.conf", AVAHI.format(name=name))
        guest.start("avahi-daemon -f /run/avahi.conf --no-rlimits --no-drop-root --no-chroot")
    both = {"192.0.2.1", "192.0.2.2"}
    wait_for(
        "two hosts that both call themselves guest have different names",
        lambda: {resolves(c, "guest"), resolves(c, "guest-2")} == both,
    )
    wait_for("one of them resolves the third", lambda: resolves(a, "other") == "192.0.2.3")
    return "two hosts called guest.local agreed that one is guest-2.local, and a third one resolves both"


# ---- virtual routers ----


def virtual_routers(scene, group, start):
    """Two routers and a client: the address moves to the backup and back."""
    vmac, ip = f"00:00:5e:00:01:{group:02x}", "192.0.2.10"

    def router(name, n):
        # Advertisements have the virtual MAC address and the router's own IP address. What it answers from the virtual IP
        # address leaves by the route of eth0, with the MAC address of that.
        pairs = [{"mac_address": vmac, "ip_address": one} for one in (ip, f"192.0.2.{n}")] + [{"ip_address": ip}]
        return scene.guest(name, nic(f"192.0.2.{n}/24", allowed_address_pairs=pairs, **STRICT))

    a, b = router("a", 1), router("b", 2)
    client = scene.guest("client", nic("192.0.2.3/24", **STRICT))
    yield
    for guest, priority in ((a, 200), (b, 100)):
        # eth0 neither answers ARP requests for the address of the virtual router nor sends any from it
        guest.run("sysctl -qw net.ipv4.conf.eth0.arp_ignore=1 net.ipv4.conf.eth0.arp_announce=2")
        start(guest, group, vmac, ip, priority)

    def is_at(guest):
        client.pings(ip)
        stations = scene.switch.show("fdb")
        at = [s["port_id"] for s in stations if s["mac_address"] == vmac and s["network_id"] in scene.networks]
        return at == [f"{guest.name}-0"] and client.pings(ip)

    wait_for(f"{ip} answers from {vmac} at router a", lambda: is_at(a))
    if vmac not in client.run(f"ip neigh show {ip}"):
        raise Failed(f"{ip} has another address than {vmac}: {client.run(f'ip neigh show {ip}')}")
    a.run("ip link set eth0 down")
    wait_for("router b takes over", lambda: is_at(b))
    a.run("ip link set eth0 up")
    wait_for("router a takes back", lambda: is_at(a))
    if refused := [key for key in scene.drops() if key[1].startswith("spoofed")]:
        raise Failed(f"port security refused frames: {refused}")
    return f"{ip} answers from {vmac}; the backup took over when the master's link went down, and the master took it back"


KEEPALIVED = """global_defs {{
    router_id {name}
    vrrp_version 3
}}
vrrp_instance one {{
    state BACKUP
    interface eth0
    use_vmac
    virtual_router_id {group}
    priority {priority}
    advert_int 0.3
    virtual_ipaddress {{
        {ip}/24
    }}
}}
"""


def keepalived(guest, group, _vmac, ip, priority):
    guest.write("keepalived.conf", KEEPALIVED.format(name=guest.name, group=group, ip=ip, priority=priority))
    guest.start("keepalived -n -l -D -P -f /run/keepalived.conf -p /run/k.pid -r /run/v.pid")


@scenario({"keepalived": "keepalived"})
def vrrp_keepalived(scene):
    return (yield from virtual_routers(scene, 7, keepalived))


def frr(guest, **configurations):
    """Starts zebra of FRR, and these daemons of it with their configurations."""
    os.makedirs(f"{guest.files}/frr")
    shutil.chown(f"{guest.files}/frr", "frr", "frr")
    for daemon, text in {"zebra": "", **configurations}.items():
        path = guest.write(f"frr/{daemon}.conf", f"hostname {guest.name}\nlog stdout informational\n{text}")
        guest.start(f"/usr/lib/frr/{daemon} -f {path} -i /run/frr/{daemon}.pid")
        wait_for(f"{daemon} listens", lambda: os.path.exists(f"{guest.files}/frr/{daemon}.vty"))


def vtysh(guest, command):
    return guest.tries(f"vtysh --vty_socket /run/frr -c '{command}'")


VRRPD = """interface eth0
 vrrp {group} version 3
 vrrp {group} priority {priority}
 vrrp {group} advertisement-interval 300
 vrrp {group} ip {ip}
"""


def frr_vrrp(guest, group, vmac, ip, priority):
    guest.run(f"ip link add vrrp4 link eth0 address {vmac} type macvlan mode bridge")
    guest.run(f"ip addr add {ip}/24 dev vrrp4")
    guest.run("ip link set vrrp4 up")
    frr(guest, vrrpd=VRRPD.format(group=group, ip=ip, priority=priority))


@scenario({"/usr/lib/frr/vrrpd": "frr"})
def vrrp_frr(scene):
    return (yield from virtual_routers(scene, 5, frr_vrrp))


# ---- routing ----

ISISD = """router isis one
 net 49.0001.0000.0000.000{n}.00
 is-type level-2-only
 lsp-gen-interval 1
 spf-interval 1
interface eth0
 ip router isis one
 isis hello-interval 1
 isis csnp-interval 1
 isis psnp-interval 1
interface lo
 ip router isis one
 isis passive
"""


@scenario({"/usr/lib/frr/isisd": "frr", "vtysh": "frr"})
def isis(scene):
    def router(name, n):
        pairs = [{"ip_address": f"198.51.100.{n}"}]
        return scene.guest(name, nic(f"192.0.2.{n}/24", allowed_address_pairs=pairs, **STRICT))

    a, b, c = routers = [router(name, n) for n, name in enumerate("abc", 1)]
    yield
    for n, guest in enumerate(routers, 1):
        guest.run(f"ip addr add 198.51.100.{n}/32 dev lo")
        frr(guest, isisd=ISISD.format(n=n))
    for guest in routers:
        routes = {f"198.51.100.{n}" for n, other in enumerate(routers, 1) if other is not guest}
        # isisd announces its own routes about 30 s after its start
        wait_for(
            f"{guest.name} has routes to {routes}",
            lambda: routes <= set(guest.run("ip route show proto isis").split()),
        )
    a.waits_for_ping("198.51.100.3", "-I 198.51.100.1")
    up = vtysh(b, "show isis neighbor").count("Up")
    return f"three routers on a LAN have each other's loopback addresses as routes, which answer; b has {up} adjacencies"


# ---- authentication ----


@scenario({"hostapd": "hostapd", "wpa_supplicant": "wpasupplicant", "wpa_cli": "wpasupplicant"})
def eapol(scene):
    """Each supplicant has its network: it would take what another one sends to the group for the server's."""
    server = scene.guest("server", nic(net="good"), nic(net="bad"))
    good, bad = scene.guest("good", nic(net="good")), scene.guest("bad", nic(net="bad"))
    yield
    server.write("users", '"user" MD5 "secret"\n')
    for name in ("eth0", "eth1"):
        keys = f"interface={name} driver=wired ieee8021x=1 eap_server=1 eap_user_file=/run/users logger_stdout=-1"
        server.write(f"{name}.conf", "\n".join([*keys.split(), ""]))
    server.start("hostapd /run/eth0.conf /run/eth1.conf")
    # a supplicant repeats its start only after 30 s
    wait_for("hostapd is ready", lambda: server.log("hostapd").count("AP-ENABLED") == 2)
    for guest, password in ((good, "secret"), (bad, "guess")):
        keys = f'key_mgmt=IEEE8021X eap=MD5 identity="user" password="{password}" eapol_flags=0'
        network = "\n".join(["network={", *keys.split(), "}", ""])
        guest.write("wpa.conf", f"ctrl_interface=/run/wpa\nap_scan=0\n{network}")
        guest.start("wpa_supplicant -D wired -i eth0 -c /run/wpa.conf")

    def is_authorized(guest):
        return "suppPortStatus=Authorized" in guest.tries("wpa_cli -p /run/wpa -i eth0 status")

    wait_for("hostapd authorizes the one", lambda: f"AP-STA-CONNECTED {good.macs[0]}" in server.log("hostapd"))
    wait_for("it is authorized", lambda: is_authorized(good))
    wait_for("the other one is refused", lambda: "CTRL-EVENT-EAP-FAILURE" in bad.log("wpa_supplicant"))
    if is_authorized(bad) or f"AP-STA-CONNECTED {bad.macs[0]}" in server.log("hostapd"):
        raise Failed("a wrong password was accepted")
    return "one supplicant is authorized by EAP, and one with a wrong password is refused"


# ---- time ----

# free_running: does not set the clock, which the script has no right to either. By default a port is faulty for 16 s when the
# kernel has not returned a transmit time stamp within 1 ms.
PTP = """[global]
free_running 1
time_stamping software
network_transport L2
delay_mechanism P2P
logAnnounceInterval -1
logSyncInterval -2
logMinPdelayReqInterval -2
tx_timestamp_timeout 5000
fault_reset_interval 0
uds_address /run/ptp4l
summary_interval -2
"""


@scenario({"ptp4l": "linuxptp"})
def ptp(scene):
    master, slave = scene.guest("master", nic()), scene.guest("slave", nic())
    yield
    for guest, key in ((master, "priority1 10"), (slave, "slaveOnly 1")):
        guest.write("ptp.conf", f"{PTP}{key}\n")
        guest.start("ptp4l -f /run/ptp.conf -i eth0 -m -q")
    wait_for("the slave selects its master", lambda: "selected best master clock" in slave.log("ptp4l"))

    def near():
        """Samples within 10 ms: master and slave have the same clock, so the true offset is 0."""
        found = re.findall(r"master offset +(-?\d+) .*path delay +(-?\d+)", slave.log("ptp4l"))
        return [(int(o), int(d)) for o, d in found if abs(int(o)) < 10_000_000 and int(d) > 0]

    offset, delay = wait_for("the slave is within 10 ms of its master", near)[-1]
    return f"the slave follows its master by peer delay: offset {offset / 1000:.0f} µs, path delay {delay / 1000:.0f} µs"


# ---- multicast ----


def forwards(guest):
    """Makes a guest a router."""
    filters = " ".join(f"net.ipv4.conf.{name}.rp_filter=0" for name in ("all", "eth0", "eth1"))
    guest.run(f"sysctl -qw net.ipv4.ip_forward=1 {filters}")


class Stream:
    """Datagrams from one guest to a member of a group, who wants them of this source only."""

    def __init__(self, sender, source, member, own, group):
        self.to, self.sent, self.received = (group, 5004), 0, set()
        self.sender, self.member = (guest.socket(socket.AF_INET, socket.SOCK_DGRAM) for guest in (sender, member))
        self.sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        self.sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
        self.member.bind(self.to)
        self.member.setblocking(False)
        add_source_membership = 39  # ip(7), with struct ip_mreq_source
        addresses = b"".join(socket.inet_aton(ip) for ip in (group, own, source))
        self.member.setsockopt(socket.IPPROTO_IP, add_source_membership, addresses)

    def arrives(self):
        """Sends one more. True if 20 have arrived."""
        self.sent += 1
        self.sender.sendto(self.sent.to_bytes(4, "big"), self.to)
        while select.select([self.member], [], [], 0)[0]:
            self.received.add(self.member.recv(100))
        return len(self.received) >= 20

    def flows(self):
        wait_for(f"20 datagrams to {self.to[0]} reach their member", self.arrives)
        return f"receives the stream: {len(self.received)} of {self.sent} datagrams since it joined"


@scenario({"igmpproxy": "igmpproxy"})
def igmp_proxy(scene):
    source = scene.guest("source", nic("192.0.2.1/24", net="up", **STRICT))
    routed = {"allowed_address_pairs": [{"ip_address": "192.0.2.0/24"}], **STRICT}
    up, down = nic("192.0.2.2/24", net="up", **STRICT), nic("198.51.100.2/24", net="down", **routed)
    proxy = scene.guest("proxy", up, down)
    member = scene.guest("member", nic("198.51.100.1/24", net="down", **STRICT))
    yield
    forwards(proxy)
    member.run("ip route add 192.0.2.0/24 via 198.51.100.2")
    member.run("sysctl -qw net.ipv4.conf.eth0.force_igmp_version=2")
    ways = ("eth0 upstream ratelimit 0 threshold 1\n altnet 192.0.2.0/24", "eth1 downstream ratelimit 0 threshold 1")
    proxy.write("igmpproxy.conf", "quickleave\n" + "".join(f"phyint {way}\n" for way in ways))
    proxy.start("igmpproxy -n -v /run/igmpproxy.conf")
    stream = Stream(source, "192.0.2.1", member, "198.51.100.1", "239.1.2.3")
    return f"a member of 239.1.2.3 behind the proxy {stream.flows()}"


@scenario({"/usr/lib/frr/pimd": "frr", "vtysh": "frr"})
def pim(scene):
    routed = {"allowed_address_pairs": [{"ip_address": "192.0.2.0/24"}], **STRICT}
    source = scene.guest("source", nic("192.0.2.1/24", net="source", **STRICT))
    near, away = nic("192.0.2.2/24", net="source", **STRICT), nic("203.0.113.1/24", net="transit", **routed)
    first = scene.guest("first", near, away)
    away, near = nic("203.0.113.2/24", net="transit", **STRICT), nic("198.51.100.2/24", net="member", **routed)
    last = scene.guest("last", away, near)
    member = scene.guest("member", nic("198.51.100.1/24", net="member", **STRICT))
    yield
    member.run("ip route add 192.0.2.0/24 via 198.51.100.2")
    last.run("ip route add 192.0.2.0/24 via 203.0.113.1")
    for guest in (first, last):
        forwards(guest)
        keys = " ip pim\n ip pim hello 1 4\n"
        frr(guest, pimd=f"interface eth0\n{keys}interface eth1\n{keys} ip igmp\n")
    wait_for("the routers are neighbours", lambda: "203.0.113.2" in vtysh(first, "show ip pim neighbor"))
    stream = Stream(source, "192.0.2.1", member, "198.51.100.1", "232.1.2.3")
    return f"a member of 232.1.2.3 two routers away {stream.flows()}"


# ---- Open vSwitch ----

OVS = dict.fromkeys(("ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl"), "openvswitch-switch")


def open_vswitch(guest, *ports):
    """Starts Open vSwitch with one bridge in userspace and these ports, given as arguments of ovs-vsctl."""
    os.makedirs(f"{guest.files}/openvswitch")
    guest.run("ovsdb-tool create /run/conf.db /usr/share/openvswitch/vswitch.ovsschema")
    guest.start("ovsdb-server /run/conf.db --remote=punix:/run/openvswitch/db.sock --unixctl=/run/openvswitch/db.ctl")
    wait_for("ovsdb-server listens", lambda: os.path.exists(f"{guest.files}/openvswitch/db.sock"))
    guest.run("ovs-vsctl --no-wait init")
    guest.start("ovs-vswitchd unix:/run/openvswitch/db.sock --unixctl=/run/openvswitch/ctl")
    # ovs-vsctl waits until each change is applied
    guest.run(f"ovs-vsctl --timeout={PATIENCE} add-br br0 -- set bridge br0 datapath_type=netdev")
    for port in ports:
        guest.run(f"ovs-vsctl --timeout={PATIENCE} add-port br0 {port}")


def inner_port(name, mac):
    """Arguments of ovs-vsctl: a netdev of the guest on the bridge."""
    return f"""-- set interface {name} type=internal mac='"{mac}"'"""


@scenario(OVS)
def ovs_trunk(scene):
    """Open vSwitch at an uplink, and in a guest with a trunk; each has its own VLANs for two networks."""
    outside = scene.guest("outside", nic(vlans={"one": 120, "two": 121}))
    inside = scene.guest("inside", nic(net="one"), nic(net="two", vlan=101))
    one, two = scene.guest("one", nic("192.0.2.3/24", net="one")), scene.guest("two", nic("198.51.100.3/24", net="two"))
    yield
    open_vswitch(
        outside,
        "eth0 vlan_mode=trunk trunks=120,121",
        f"one tag=120 {inner_port('one', '02:00:00:00:99:01')}",
        f"two tag=121 {inner_port('two', '02:00:00:00:99:02')}",
    )
    macs = inside.macs
    open_vswitch(inside, "eth0", f"one {inner_port('one', macs[0])}", f"two tag=101 {inner_port('two', macs[1])}")
    for guest, n in ((outside, 1), (inside, 2)):
        for name, ip in (("one", f"192.0.2.{n}/24"), ("two", f"198.51.100.{n}/24")):
            guest.run(f"ip addr add {ip} dev {name}")
            guest.run(f"ip link set {name} up")
    for guest, subnet in ((one, "192.0.2"), (inside, "192.0.2"), (two, "198.51.100"), (inside, "198.51.100")):
        guest.waits_for_ping(f"{subnet}.1")
        guest.waits_for_ping(f"{subnet}.2")
    one.run("ip addr add 198.51.100.9/24 dev eth0")
    if answers := [n for n in (1, 2, 3) if one.pings(f"198.51.100.{n}")]:
        raise Failed(f"the networks are not separate: 198.51.100.{answers} answer on the other one")
    return "two networks reach Open vSwitch at an uplink (VLANs 120, 121) and in a guest (untagged, 101), and not each other"


@scenario(OVS | {"ovs-appctl": "openvswitch-common"})
def lacp(scene):
    """Two guests with a bond of two links, each link over a network of its own."""

    def host(name):
        # the bond sends from one MAC address on both links
        index = len(scene.guests)
        pairs = [{"mac_address": scene.mac(index, 0)}]
        return scene.guest(name, nic(net="left"), nic(net="right", allowed_address_pairs=pairs))

    a, b = host("a"), host("b")
    yield
    for n, guest in enumerate((a, b), 1):
        open_vswitch(guest, f"inner {inner_port('inner', guest.macs[0])}")
        bond = "add-bond br0 bond eth0 eth1 bond_mode=active-backup lacp=active other_config:lacp-time=fast"
        guest.run(f"ovs-vsctl --timeout={PATIENCE} {bond}")
        guest.run(f"ip addr add 192.0.2.{n}/24 dev inner")
        guest.run("ip link set inner up")

    def bonded(links):
        """Whether both guests have these links in the bond, by LACP."""
        shown = [guest.tries("ovs-appctl -t /run/openvswitch/ctl lacp/show bond") for guest in (a, b)]
        return all("status: active negotiated" in one and one.count("current attached") == links for one in shown)

    wait_for("both have two links in their bond", lambda: bonded(2))
    a.waits_for_ping("192.0.2.2")
    a.run("ip link set eth0 down")
    wait_for("both have one link in their bond", lambda: bonded(1))
    a.waits_for_ping("192.0.2.2")
    return "two bonds of Open vSwitch negotiated two links, lost one, and continue on the other"


def main():
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "names":
        print(*SCENARIOS)
        return 0
    program, kinds = (arguments.pop(0), arguments.pop(0).split(",")) if what == "play" else ("", [])
    chosen = {name: it for name, it in SCENARIOS.items() if name in arguments or not arguments}
    if what == "packages":
        print(*missing({program: package for _, needs in chosen.values() for program, package in needs.items()}))
        return 0
    return 0 if play(chosen, program, kinds) else 1


if __name__ == "__main__":
    sys.exit(main())
