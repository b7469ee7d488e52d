"""What the switch has to contain for Neutron's ports of this host.

Only keys that are Neutron's to decide are in it; None removes a key. All other keys of a port are the operator's.
"""

import ipaddress
from dataclasses import dataclass, field

from networking_vifswitch import limits
from networking_vifswitch.facts import OWNER, TAP, TRUNK_SUBPORT, VHOST_USER

MAX_MTU = 9216  # of the switch
LAST = float("inf")


@dataclass
class Settings:
    """Options of the agent that decide what the switch contains."""

    device_kind: str = "packet"
    isolate: bool = True
    port_security: str = "mac"
    uplink_mappings: dict = field(default_factory=dict)  # physical network → uplink or group
    uplink_devices: dict = field(default_factory=dict)  # uplink that the agent creates → netdev
    uplink_kind: str = "packet"
    limits_flooded: bool = False  # QoS rules become storm limits


@dataclass
class Desired:
    networks: dict = field(default_factory=dict)  # id → keys
    ports: dict = field(default_factory=dict)  # id → (VM, keys)
    policies: dict = field(default_factory=dict)  # port id → QoS rules
    orders: dict = field(default_factory=dict)  # VM → its ports in the order of their taps, if all of them are there
    uplinks: dict = field(default_factory=dict)  # uplink or group → {network id: VLAN id or None}
    unconnected: dict = field(default_factory=dict)  # network that no uplink can have → why
    problems: dict = field(default_factory=dict)  # id of a port or network → what is left out, and why


def make(facts, settings, taps, seen):
    """What the switch has to contain.

    Nova creates the taps of a VM in the order of its NICs, so their indices (`taps`) tell that order, which Neutron does not
    know. Before that, the order in which Neutron has mentioned the ports (`seen`) does: Nova binds them one after the other.
    """
    desired = Desired(uplinks={uplink: {} for uplink in settings.uplink_mappings.values()})
    parents = {port: (trunk.port_id, vlan) for trunk in facts.trunks.values() for port, vlan in trunk.subports}

    def place(port):
        return taps.get(port.tap, LAST), seen.get(port.id, LAST), port.created, port.id

    for port in sorted(facts.ports.values(), key=place):
        network = facts.networks.get(port.network_id)
        if network is None or port.vif_type not in (TAP, VHOST_USER):
            continue
        parent = parents.get(port.id)
        if parent is None and port.device_owner == TRUNK_SUBPORT:
            continue  # of a trunk that is not on this host, or no longer
        vm = facts.ports[parent[0]].vm if parent else port.vm
        desired.ports[port.id] = vm, keys_of(port, network, parent, settings, desired.problems)
        if settings.limits_flooded:
            desired.policies[port.id] = facts.policies.get(port.policy_id, ())
            refused = filter(None, map(limits.refusal, desired.policies[port.id]))
            note(desired.problems, port.id, *refused)
        if parent is None:
            desired.orders.setdefault(vm, []).append(port.id)
        desired.networks[network.id] = {"mtu": network.mtu, "owner": OWNER}
        connect(port, settings, desired)
    for vm, ports in list(desired.orders.items()):
        if any(facts.ports[port].tap not in taps for port in ports):
            del desired.orders[vm]
    return desired


def note(problems, about, *texts):
    if texts := [text for text in texts if text]:
        problems[about] = "; ".join(filter(None, [problems.get(about), *texts]))


def connect(port, settings, desired):
    """The uplink of the port's network."""
    segment = port.segment
    if segment is None or segment.network_type not in ("flat", "vlan"):
        return
    uplink = settings.uplink_mappings.get(segment.physical_network)
    if uplink is None:
        known = ", ".join(sorted(settings.uplink_mappings)) or "none"
        desired.unconnected[port.network_id] = (
            f'physical network "{segment.physical_network}" is not in uplink_mappings, which has: {known}'
        )
        return
    desired.uplinks[uplink][port.network_id] = segment.vlan if segment.network_type == "vlan" else None


def keys_of(port, network, parent, settings, problems):
    security = "off" if not port.is_secure else "mac" if not port.ips else settings.port_security
    keys = {
        "network_id": port.network_id,
        "mac_address": port.mac.lower(),
        "fixed_ips": [str(ipaddress.ip_address(ip)) for ip in port.ips],
        "port_security": security,
        "allowed_address_pairs": [] if security == "off" else pairs_of(port, problems),
        "admin_state_up": port.admin_state_up and network.admin_state_up,
        "owner": OWNER,
        "parent": None,
        "vlan": None,
        "device": None,
    }
    if parent:
        keys["parent"], keys["vlan"] = parent
    else:
        keys["device"] = device_of(port, settings)
    if not port.is_active:
        # the VM is elsewhere: until it is heard here, its addresses are learned where they are heard
        keys["activation"] = "first-frame"
    return keys


def device_of(port, settings):
    if port.vif_type == VHOST_USER:
        return {"kind": "vhost-user", "path": port.vhost_socket, "mode": "client"}
    if settings.device_kind == "packet":
        return {"kind": "packet", "name": port.tap, "isolate": settings.isolate}
    return {"kind": settings.device_kind, "name": port.tap}


def pairs_of(port, problems):
    """Allowed address pairs as the switch writes them, each once."""
    found = []
    for pair in port.pairs:
        mac = pair.mac.lower()
        if int(mac[:2], 16) & 1 or not mac.strip("0:"):
            note(problems, port.id, f'allowed address pair "{mac}" is no address of a station, and is left out')
            continue
        prefix = ipaddress.ip_network(pair.ip, strict=False)
        ip = str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)
        made = {"mac_address": mac, "ip_address": ip}
        if made not in found:
            found.append(made)
    return found
