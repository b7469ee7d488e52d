"""Makes the switch contain what is desired, entity by entity: what the switch refuses stops nothing else.

Each write is made of the configuration as it was read, and names its generation: if anybody else has changed the switch
since, it is refused, and the configuration is read again. So what others have attached is never overwritten, not even in a
race. Of entities with the label of the agent only its own keys are written; those without it are left alone.
"""

import json
import logging
from dataclasses import dataclass, field

from networking_vifswitch import limits
from networking_vifswitch.facts import OWNER
from networking_vifswitch.switch import Moved, Refused, path_of

LOG = logging.getLogger(__name__)
WHOLE = "/v1/config"
READS = 10  # of the configuration in one pass, while others change it
DEFAULTS = {
    "fixed_ips": [],
    "port_security": "mac",
    "allowed_address_pairs": [],
    "admin_state_up": True,
    "activation": "immediate",
    "mtu": 1500,
}


@dataclass
class Write:
    method: str
    path: str
    body: object
    about: str  # id of the port, network or uplink

    @property
    def key(self):
        return self.method, self.path, json.dumps(self.body, sort_keys=True)


@dataclass
class Outcome:
    refused: dict = field(default_factory=dict)  # id → why
    unconnected: dict = field(default_factory=dict)  # network → why its uplink does not have it
    writes: int = 0
    is_complete: bool = True  # false: others have changed the configuration all the time


def reconcile(switch, desired, settings):
    """One pass. Raises Unreachable if the switch does not answer."""
    outcome, done, failed = Outcome(), set(), {}
    for _ in range(READS):
        config, generation = switch.config()
        outcome.refused, outcome.unconnected = {}, {}
        storms = {}
        if settings.limits_flooded:
            resolved = switch.config(resolved=True)[0]
            storms = {network["id"]: network.get("storm") for network in resolved.get("networks", ())}
        writes = list(Plan(config, desired, settings, storms, outcome).make())
        outcome.refused.update({write.about: failed[write.key] for write in writes if write.key in failed})
        writes = [write for write in writes if write.key not in failed and write.key not in done]
        if not writes:
            return outcome
        # a whole configuration is made of what was read, so nothing may be written before it
        for write in [write for write in writes if write.path != WHOLE] or writes[:1]:
            try:
                generation = switch.request(write.method, write.path, write.body, generation)[1] or generation
            except Moved:
                break
            except Refused as refused:
                failed[write.key] = str(refused)
                continue
            done.add(write.key)
            outcome.writes += 1
            LOG.info("%s %s", write.method, write.path)
    outcome.is_complete = False
    return outcome


def without_defaults(keys):
    """Keys as the switch writes them: without those that are None or have their defaults."""
    return {key: value for key, value in keys.items() if value is not None and DEFAULTS.get(key) != value}


def merge(before, own):
    """What an entity has, with the own keys in place. Of `device` the operator's keys stay while kind and name do."""
    after = {**before, **own}
    if device := own.get("device"):
        was = before.get("device") or {}
        kept = was if all(was.get(key) == device.get(key) for key in ("kind", "name", "path")) else {}
        after["device"] = {key: value for key, value in {**kept, **device}.items() if (key, value) != ("isolate", False)}
    return without_defaults(after)


class Plan:
    """The writes that lead from a configuration to what is desired."""

    def __init__(self, config, desired, settings, storms, outcome):
        self.desired, self.settings, self.outcome, self.storms = desired, settings, outcome, storms
        self.config = config
        self.networks = {network["id"]: network for network in config.get("networks", ())}
        self.uplinks = {uplink["id"]: uplink for uplink in config.get("uplinks", ())}
        self.ports = {p["port_id"]: (vm["id"], p) for vm in config.get("vms", ()) for p in vm.get("ports", ())}

    def make(self):
        yield from self.put_networks()
        yield from self.delete_ports()
        yield from self.put_ports()
        yield from self.put_uplinks()
        yield from self.delete_networks()

    def is_ours(self, network):
        return self.networks.get(network, {}).get("owner") == OWNER

    def put_networks(self):
        for name, keys in self.desired.networks.items():
            before = self.networks.get(name)
            if before is not None and before.get("owner") != OWNER:
                if before.get("mtu", 1500) != keys["mtu"]:
                    owner = before.get("owner", "the operator")
                    self.outcome.refused[name] = f"its MTU is {keys['mtu']} in Neutron, but it belongs to {owner} in the switch"
                continue
            after = merge(before or {}, keys)
            if before is None or after != without_defaults(before):
                after.pop("id", None)
                yield Write("PUT", path_of("networks", name), after, name)

    def delete_ports(self):
        gone = [p for _, p in self.ports.values() if p.get("owner") == OWNER and p["port_id"] not in self.desired.ports]
        for port in sorted(gone, key=lambda port: "parent" not in port):  # subports before their parents
            yield Write("DELETE", path_of("ports", port["port_id"]), None, port["port_id"])

    def positions(self):
        """Places of the ports of VMs whose ports are in another order than their taps."""
        found = {}
        for vm, wanted in self.desired.orders.items():
            now = [name for name, (of, port) in self.ports.items() if of == vm and name in wanted]
            if len(now) == len(wanted) and now != wanted:
                found.update({name: place for place, name in enumerate(wanted)})
        return found

    def put_ports(self):
        positions = self.positions()
        for name, (vm, keys) in sorted(self.desired.ports.items(), key=lambda item: item[1][1]["parent"] is not None):
            vm_before, before = self.ports.get(name, (None, None))
            if before is not None and before.get("owner") != OWNER:
                owner = f'"{before["owner"]}"' if "owner" in before else "nobody"
                self.outcome.refused[name] = (
                    f'the switch has a port of this id, which belongs to {owner}; detach it, or set its owner to "{OWNER}"'
                )
                continue
            own = dict(keys)
            if name in positions:
                own["position"] = positions[name]
            if self.settings.limits_flooded:
                own["storm"] = limits.storm(self.desired.policies.get(name, ()), self.storms.get(keys["network_id"]))
            after = merge(before or {}, own)
            if vm == vm_before and after == without_defaults(before):
                continue
            after.pop("port_id", None)
            yield Write("PUT", path_of("ports", name), {**after, "device_id": vm}, name)

    def put_uplinks(self):
        """Networks on the uplinks. Only entries of networks that belong to Neutron are written."""
        for name, wanted in self.desired.uplinks.items():
            found = [up for up in self.uplinks.values() if name in (up["id"], up.get("group"))]
            if not found:
                yield from self.create_uplink(name, wanted)
                continue
            groups = {up.get("group") for up in found} - {None}
            members = [up for up in self.uplinks.values() if up in found or up.get("group") in groups]
            networks = self.entries(name, members[0], wanted)
            if all(up.get("networks", []) == networks for up in members):
                continue
            if not networks:
                if len(members) == 1 and members[0].get("owner") == OWNER:
                    yield Write("DELETE", path_of("uplinks", name), None, name)
                # an uplink has to have a network: this one, of the operator, keeps the last ones
            elif len(members) == 1:
                body = {**members[0], "networks": networks}
                body.pop("id")
                yield Write("PUT", path_of("uplinks", members[0]["id"]), body, name)
            else:
                # both uplinks of a group have the same networks at any time
                ids = {up["id"] for up in members}
                uplinks = [{**up, "networks": networks} if up["id"] in ids else up for up in self.uplinks.values()]
                whole = {key: value for key, value in self.config.items() if key != "switch"}
                yield Write("PUT", WHOLE, {**whole, "uplinks": uplinks}, name)

    def create_uplink(self, name, wanted):
        device = self.settings.uplink_devices.get(name)
        if not wanted:
            return
        if device is None:
            why = f'the switch has no uplink "{name}"; add it, or name its netdev in uplink_devices'
            self.outcome.unconnected.update(dict.fromkeys(wanted, why))
            self.outcome.refused[name] = why
            return
        body = {
            "device": {"kind": self.settings.uplink_kind, "name": device},
            "networks": [entry(network, vlan) for network, vlan in sorted(wanted.items())],
            "owner": OWNER,
        }
        self.outcome.unconnected.update(dict.fromkeys(wanted, f'uplink "{name}" is not there yet'))
        yield Write("PUT", path_of("uplinks", name), body, name)

    def entries(self, name, uplink, wanted):
        """Networks of the uplink: those of others as they are, and the wanted ones behind them."""
        before = uplink.get("networks", [])
        others = [one for one in before if not self.is_ours(one["network_id"])]
        theirs = {one["network_id"]: one.get("vlan") for one in others}
        for network, vlan in wanted.items():
            if network in theirs and theirs[network] != vlan:
                self.outcome.unconnected[network] = (
                    f'uplink "{name}" has it with VLAN {theirs[network]}, which the agent does not change; Neutron says {vlan}'
                )
            elif network not in theirs and entry(network, vlan) not in before:
                self.outcome.unconnected[network] = f'uplink "{name}" does not have it yet'
        own = [entry(network, vlan) for network, vlan in sorted(wanted.items()) if network not in theirs]
        return others + own

    def delete_networks(self):
        for name, network in self.networks.items():
            if network.get("owner") != OWNER or name in self.desired.networks:
                continue
            users = [vm for vm, p in self.ports.values() if p["network_id"] == name and p.get("owner") != OWNER]
            on = [up for up in self.uplinks.values() if any(one["network_id"] == name for one in up.get("networks", ()))]
            if not users and not on:  # ports and uplinks of others keep it; from our uplinks it is removed first
                yield Write("DELETE", path_of("networks", name), None, name)


def entry(network, vlan):
    return {"network_id": network} if vlan is None else {"network_id": network, "vlan": vlan}
