"""Scenarios of scripts/openstack-lab with Neutron alone, continued: trunks, uplinks, migration, limits, and what fails in
between."""

import uuid

from guests import Failed, run
from openstack_neutron import ACTIVE, DOWN, Guest, equal, frame, refused
from openstack_services import eventually


def foreign(host):
    """What others have attached: desired configuration of their ports and networks, without status."""
    config = host.api.get("config")
    vms = {p["port_id"]: (vm["id"], p) for vm in config["vms"] for p in vm["ports"] if p.get("owner") != "neutron"}
    networks = {n["id"]: n for n in config["networks"] if n.get("owner") != "neutron"}
    return vms, networks


def scenarios(lab, nova, check):
    neutron, host1, host2 = lab.neutron, lab.hosts["host1"], lab.hosts["host2"]
    api1, api2 = host1.api, host2.api
    vm3 = str(uuid.uuid4())

    # ---- trunks ----

    group = "trunk: "

    def trunk():
        nova.port("parent", nova.net1, vm3, fixed_ips=[])
        nova.port("sub1", nova.net2, fixed_ips=[])
        nova.port("sub2", nova.net2, fixed_ips=[])
        sub = {"port_id": nova.id("sub1"), "segmentation_type": "vlan", "segmentation_id": 101}
        nova.trunk = neutron.make("trunk", port_id=nova.id("parent"), sub_ports=[sub])
        nova.plug("parent")
        nova.until(ACTIVE, "parent", "sub1")
        return eventually("trunk", lambda: neutron.ok("GET", f"/trunks/{nova.trunk['id']}")["status"] == ACTIVE)

    check(group + "a trunk of a bound port is ACTIVE with its subport", trunk)

    def tagged():
        out = frame(nova.mac("c"), nova.mac("sub1"), "out", vlan=101)
        back = frame(nova.mac("sub1"), nova.mac("c"), "back")
        for guest in nova.guests.values():
            guest.heard()
        nova.guests["parent"].send(out)
        nova.guests["c"].heard(frame(nova.mac("c"), nova.mac("sub1"), "out"))
        nova.guests["c"].send(back)
        nova.guests["parent"].heard(frame(nova.mac("sub1"), nova.mac("c"), "back", vlan=101))
        return True

    check(group + "frames tagged 101 in the guest are untagged on the network of the subport, and back", tagged)

    def subports():
        path = f"/trunks/{nova.trunk['id']}"
        sub = {"port_id": nova.id("sub2"), "segmentation_type": "vlan", "segmentation_id": 102}
        neutron.ok("PUT", path + "/add_subports", {"sub_ports": [sub]})
        nova.until(ACTIVE, "sub2")
        neutron.ok("PUT", path + "/remove_subports", {"sub_ports": [{"port_id": nova.id("sub1")}]})
        eventually("removed", lambda: nova.id("sub1") not in api1.ports())
        nova.until(DOWN, "sub1")
        return eventually("trunk", lambda: neutron.ok("GET", path)["status"] == ACTIVE)

    check(group + "a subport is added and another removed while the VM runs", subports)

    def end_trunk():
        nova.unplug("parent")
        nova.update("parent", **{"device_id": "", "device_owner": "", "binding:host_id": ""})
        neutron.ok("DELETE", f"/trunks/{nova.trunk['id']}")
        nova.delete("parent", "sub1", "sub2")
        return eventually("gone", lambda: not api1.ports(device_id=vm3))

    check(group + "it leaves with its VM", end_trunk)

    # ---- uplinks ----

    group = "uplinks: "

    def vlan():
        vlan_id = neutron.ok("GET", f"/networks/{nova.net1['id']}")["provider:segmentation_id"]
        nova.port("far", nova.net1)
        nova.bind("far", str(uuid.uuid4()), "host2")
        nova.plug("far", "host2")
        nova.until(ACTIVE, "far")
        entry = {"network_id": nova.net1["id"], "vlan": vlan_id}
        for api in api1, api2:
            networks = next(up for up in api.get("uplinks") if up["uplink_id"] == "up0")["networks"]
            equal(entry in networks and {"network_id": "operators"} in networks, True)
        return nova.flows("x", "far", "c") and nova.flows("far", "x", "c")

    check(group + "VMs of two hosts reach each other by a VLAN network, on an uplink that keeps the operator's network", vlan)

    def flat():
        nova.flat = neutron.make(
            "network", name="flat", **{"provider:network_type": "flat", "provider:physical_network": "physnet2"}
        )
        for name, host in ("flat1", "host1"), ("flat2", "host2"):
            nova.port(name, nova.flat, fixed_ips=[])
            nova.bind(name, str(uuid.uuid4()), host)
            nova.plug(name, host)
        nova.until(ACTIVE, "flat1", "flat2")
        nova.flows("flat1", "flat2", "x")
        nova.flows("flat2", "flat1", "x")
        nova.delete("flat1")
        nova.delete("flat2", host="host2")
        return eventually(
            "the uplink of the flat network leaves with it",
            lambda: all([up["uplink_id"] for up in api.get("uplinks")] == ["up0"] for api in (api1, api2)),
        )

    check(group + "and by a flat network, whose uplink the agent makes and removes", flat)

    # ---- migration ----

    group = "live migration: "

    def prepare():
        """What Nova does first: a binding for the destination, and the tap there, before QEMU exists."""
        binding = neutron.ok("POST", f"/ports/{nova.id('x')}/bindings", {"binding": {"host": "host2"}})
        equal((binding["status"], binding["vif_type"]), ("INACTIVE", "tap"))
        nova.plug("x", "host2", hold=False)
        eventually("in the switch of the destination", lambda: nova.id("x") in api2.ports())
        took = eventually("reported", lambda: host2.agent.said(f"up: {nova.id('x')}"))
        equal(api2.ports()[nova.id("x")]["activation"], "first-frame")
        equal(nova.state("x")["status"], ACTIVE)
        return took

    check(group + "the destination has the port with activation first-frame, and reports its tap before QEMU holds it", prepare)
    check(
        group + "the VM is reached at the source while its memory is copied",
        lambda: nova.flows("far", "x") and nova.flows("x", "far"),
    )

    def switch_over():
        """The VM runs at the destination: QEMU announces it by RARP, and Nova activates the binding."""
        source, destination = nova.guests["x"], Guest(host2, nova.tap("x"))
        eventually("carrier", lambda: api2.ports()[nova.id("x")]["status"] == ACTIVE)
        nova.guests["x"] = destination
        destination.send(frame("ff:ff:ff:ff:ff:ff", nova.mac("x"), "", kind=0x8035))
        eventually(
            "heard by the source",
            lambda: [one["port_id"] for one in api1.get(f"fdb?network_id={nova.net1['id']}&mac_address={nova.mac('x')}")]
            == ["up0"],
        )
        nova.flows("a", "x")
        nova.flows("far", "x")
        neutron.ok("PUT", f"/ports/{nova.id('x')}/bindings/host2/activate")
        source.close()
        host1.ip(f"link del {nova.tap('x')}")
        nova.until(ACTIVE, "x")
        neutron.ok("DELETE", f"/ports/{nova.id('x')}/bindings/host1")
        eventually("left the source", lambda: nova.id("x") not in api1.ports())
        equal(nova.state("x")["binding:host_id"], "host2")
        return nova.flows("a", "x") and nova.flows("x", "a") and nova.flows("far", "x")

    check(group + "its first frame moves it to the destination; the port is ACTIVE there, and leaves the source", switch_over)

    # ---- limits ----

    group = "QoS: "

    def policy(**rule):
        kind = rule.pop("kind")
        made = neutron.ok("POST", "/qos/policies", {"policy": {"name": kind}})
        answer = neutron("POST", f"/qos/policies/{made['id']}/{kind}_rules", {f"{kind}_rule": rule})
        return made["id"], answer

    def mapped():
        made, answer = policy(kind="packet_rate_limit", max_kpps=2, max_burst_kpps=3, direction="egress")
        equal(answer[0], 201)
        nova.update("a", qos_policy_id=made)

        def storm():
            config = api1.get("config")
            port = next(p for vm in config["vms"] for p in vm["ports"] if p["port_id"] == nova.id("a"))
            return port.get("storm", {})

        took = eventually("limits", lambda: storm().get("multicast", {}).get("pps") == 2000)
        equal((storm()["multicast"]["burst"], storm()["broadcast"]["pps"]), (3000, 500))
        writes = api1.get("status")["desired_generation"]
        nova.update("a", name="renamed")
        nova.update("c", admin_state_up=False)
        eventually("c is down", lambda: not api1.ports()[nova.id("c")]["admin_state_up"])
        equal(api1.get("status")["desired_generation"], writes + 1)
        nova.update("c", admin_state_up=True)
        nova.update("a", qos_policy_id=None)
        eventually("no limits", lambda: not storm())
        return took

    check(group + "a packet rate limit becomes storm limits of the port (qos_limits = flooded), and leaves with it", mapped)

    def unfit():
        made, answer = policy(kind="bandwidth_limit", max_kbps=1000, direction="ingress")
        return (
            refused(neutron("PUT", f"/ports/{nova.id('a')}", {"port": {"qos_policy_id": made}}), 409, "bandwidth_limit")
            and answer[0] == 201
        )

    check(group + "a rule without a limit in the switch is refused by name (409)", unfit)

    # ---- what fails in between ----

    group = "faults: "

    def attach_foreign():
        """A port that is not Neutron's, on a network of Neutron."""
        body = {
            "device_id": "foreign-vm",
            "network_id": nova.net1["id"],
            "mac_address": "02:00:00:00:00:77",
            "device": {"kind": "tap", "name": "foreign0", "persist": False},
        }
        api1("PUT", "ports/foreign-port", body)

    def survivors():
        api1("PATCH", f"ports/{nova.id('a')}", {"promiscuous": True, "storm": {"broadcast": {"pps": 77}}})
        attach_foreign()
        nova.foreign = foreign(host1)
        return True

    check(group + "an operator sets keys of Neutron's port, and attaches a port of their own to its network", survivors)

    def agent_away():
        host1.agent.kill()
        before = {name: nova.state(name)["status"] for name in "abc"}
        gone = nova.id("u")
        nova.update("c", admin_state_up=False)
        nova.delete("u")
        host1.agent.start()
        took = eventually(
            "changed while it was away", lambda: gone not in api1.ports() and not api1.ports()[nova.id("c")]["admin_state_up"]
        )
        equal({name: nova.state(name)["status"] for name in "ab"}, {name: before[name] for name in "ab"})
        nova.update("c", admin_state_up=True)
        nova.until(ACTIVE, "c")
        return took

    check(
        group + "what was deleted and changed while the agent was killed is so when it is back, and no other port flaps",
        agent_away,
    )

    def switch_killed():
        host1.switch.kill()
        host1.start_switch()
        return nova.until(ACTIVE, "a", "b", "c") and nova.flows("a", "b", "c")

    check(group + "after a kill of the switch its ports are ACTIVE and traffic passes", switch_killed)

    def state_lost():
        host1.switch.kill()
        run(["find", host1.directory, "-name", "state.db*", "-delete"])
        host1.start_switch()
        took = eventually(
            "filled again", lambda: all(api1.ports().get(nova.id(name), {}).get("status") == ACTIVE for name in "abc")
        )
        equal(api1.order(nova.vm1), [nova.id(name) for name in "acb"])
        attach_foreign()
        api1("PATCH", f"ports/{nova.id('a')}", {"promiscuous": True, "storm": {"broadcast": {"pps": 77}}})
        nova.foreign = foreign(host1)
        return nova.flows("a", "b", "c") and took

    check(group + "a switch that lost its state is filled again, in the order of the taps", state_lost)

    def heartbeat():
        host2.switch.kill()

        def is_alive():
            return next(a["alive"] for a in neutron.ok("GET", "/agents") if a["host"] == "host2")

        took = eventually("dead", lambda: not is_alive(), 30)
        nova.port("late", nova.net1)
        equal(nova.bind("late", str(uuid.uuid4()), "host2")["binding:vif_type"], "binding_failed")
        host2.start_switch()
        eventually("alive", is_alive)
        nova.delete("late")
        nova.until(ACTIVE, "x", "far")
        return took

    check(group + "without a switch the agent sends no heartbeats, and Neutron binds no ports there", heartbeat)

    def broker():
        lab.restart_broker()
        nova.update("b", admin_state_up=False)
        took = eventually("changed", lambda: not api1.ports()[nova.id("b")]["admin_state_up"], 30)
        nova.update("b", admin_state_up=True)
        nova.until(ACTIVE, "b")
        return took

    check(group + "after a kill of RabbitMQ changes arrive again", broker)

    def hard_reboot():
        """Nova deletes the taps and makes them again, in the order of the NICs that it has."""
        for name in "acb":
            nova.unplug(name)
        for name in "acb":
            nova.plug(name)
        took = nova.until(ACTIVE, "a", "b", "c")
        eventually("open", lambda: all(api1.ports()[nova.id(name)]["status"] == ACTIVE for name in "abc"))
        equal(api1.order(nova.vm1), [nova.id(name) for name in "acb"])
        nova.flows("a", "b", "c")
        return took

    check(group + "a hard reboot makes new taps; the ports are ACTIVE again, in their order", hard_reboot)

    def untouched():
        equal(foreign(host1), nova.foreign)
        port = api1.get(f"ports/{nova.id('a')}")
        return equal((port["promiscuous"], port["status"]), (True, ACTIVE))

    check(group + "the operator's port, network and keys are as they were after all of this", untouched)


def clean_up(lab, nova, check):
    """Everything of Neutron goes, nothing of others does."""
    neutron = lab.neutron

    def gone():
        for name in list(nova.ports):
            nova.delete(name, host="host2" if name in ("x", "far") else "host1")
        lab.hosts["host1"].api("DELETE", "ports/foreign-port")
        for net in nova.net1, nova.net2, nova.flat:
            neutron.ok("DELETE", f"/networks/{net['id']}")
        return eventually(
            "nothing of Neutron is left",
            lambda: all(
                not any(one.get("owner") == "neutron" for kind in ("ports", "networks", "uplinks") for one in host.api.get(kind))
                for host in lab.hosts.values()
            ),
        )

    check("when all ports are deleted, nothing of Neutron is left in the switches", gone)

    def logs():
        if found := lab.problems():
            raise Failed(f"{found[:5]}")
        return True

    check("no agent and no switch has logged a traceback or a panic", logs)
