"""Single passes of the agent: what Neutron says is in the switch afterwards, and nothing else has changed."""

import copy
import unittest

from networking_vifswitch.agent import Agent
from networking_vifswitch.desired import Settings
from networking_vifswitch.facts import ACTIVE, DOWN, TRUNK_SUBPORT, Network, Pair, Rule, Segment, Trunk
from networking_vifswitch.limits import PACKETS
from networking_vifswitch.switch import Switch, Unreachable

from tests.fakes import FakeNeutron, FakeSwitch


class Passes(unittest.TestCase):
    settings = Settings()

    def setUp(self):
        self.switch, self.neutron = FakeSwitch(), FakeNeutron()
        self.addCleanup(self.switch.close)
        self.taps, self.now = {}, 1000.0
        self.start()

    def start(self):
        """A new agent, as after a restart."""
        self.agent = Agent(
            "host1",
            self.neutron,
            Switch(self.switch.path),
            copy.copy(self.settings),
            taps=lambda: self.taps,
            clock=lambda: self.now,
        )

    def passes(self, everything=True):
        if everything:
            self.agent.hint_all()
        self.agent.once()

    def keys(self, port):
        return self.switch.port(port)[1]

    # ---- ports ----

    def test_ports_are_attached_with_what_neutron_says(self):
        pairs = (Pair("fa:16:3e:00:00:99", "10.0.0.9/32"), Pair("FA:16:3E:00:00:98", "10.1.2.3/16"))
        self.neutron.add("p1", ips=("10.0.0.5", "FD00::5"), pairs=pairs)
        self.neutron.add("p2", is_secure=False, pairs=pairs, device_id="")
        self.neutron.add("p3", admin_state_up=False)
        self.passes()
        self.assertEqual(
            self.switch.port("p1"),
            (
                "vm1",
                {
                    "port_id": "p1",
                    "network_id": "net1",
                    "mac_address": "fa:16:3e:00:00:01",
                    "fixed_ips": ["10.0.0.5", "fd00::5"],
                    "allowed_address_pairs": [
                        {"mac_address": "fa:16:3e:00:00:99", "ip_address": "10.0.0.9"},
                        {"mac_address": "fa:16:3e:00:00:98", "ip_address": "10.1.0.0/16"},
                    ],
                    "device": {"kind": "packet", "name": "tapp1", "isolate": True},
                    "owner": "neutron",
                },
            ),
        )
        vm, keys = self.switch.port("p2")
        self.assertEqual((vm, keys["port_security"], "allowed_address_pairs" in keys), ("p2", "off", False))
        self.assertIs(self.keys("p3")["admin_state_up"], False)

    def test_mac_and_ip_security_is_for_ports_with_addresses(self):
        self.settings = Settings(port_security="mac+ip")
        self.start()
        self.neutron.add("p1", ips=("10.0.0.5",))
        self.neutron.add("p2")
        self.passes()
        self.assertEqual(self.keys("p1")["port_security"], "mac+ip")
        self.assertNotIn("port_security", self.keys("p2"))

    def test_a_repeated_pass_writes_nothing(self):
        self.neutron.add("p1", ips=("10.0.0.5",), pairs=(Pair("fa:16:3e:00:00:99", "::/0"),), segment=Segment("local"))
        self.passes()
        self.switch.requests.clear()
        self.passes()
        self.start()
        self.passes()
        self.assertEqual(set(self.switch.requests), {"GET"})

    def test_keys_of_the_operator_survive(self):
        self.neutron.add("p1")
        self.passes()
        keys = self.keys("p1")
        keys.update(promiscuous=True, storm={"broadcast": {"pps": 7}}, mac_limit=5, position=3)
        keys["device"].update(offloads=False)
        self.switch.networks["net1"]["ageing_seconds"] = 60
        self.neutron.change("p1", mac="fa:16:3e:00:00:77", admin_state_up=False)
        self.neutron.nets["net1"] = Network("net1", mtu=1400)
        self.passes()
        now = self.keys("p1")
        self.assertEqual((now["mac_address"], now["admin_state_up"]), ("fa:16:3e:00:00:77", False))
        self.assertEqual(
            (now["promiscuous"], now["storm"], now["mac_limit"], now["position"]), (True, {"broadcast": {"pps": 7}}, 5, 3)
        )
        self.assertEqual(now["device"], {"kind": "packet", "name": "tapp1", "isolate": True, "offloads": False})
        self.assertEqual(self.switch.networks["net1"], {"id": "net1", "mtu": 1400, "owner": "neutron", "ageing_seconds": 60})

    def test_what_others_attached_is_never_touched(self):
        self.switch.networks["net1"] = {"id": "net1", "mtu": 9000}
        self.switch.put_ports("mine", {"device_id": "x", "network_id": "net1", "mac_address": "02:00:00:00:00:01"})
        self.switch.put_ports("p2", {"device_id": "y", "network_id": "net1", "mac_address": "02:00:00:00:00:02", "owner": "cni"})
        before = copy.deepcopy(self.switch.config())
        self.neutron.add("p1")
        self.neutron.add("p2")
        with self.assertLogs("networking_vifswitch.agent", "ERROR") as log:
            self.passes()
        self.assertIn('belongs to "cni"', "\n".join(log.output))
        self.assertIn("p1", self.agent.facts.ports)
        self.assertEqual(self.switch.port("mine")[1], before["vms"][0]["ports"][0])
        self.assertEqual(self.switch.port("p2"), ("y", before["vms"][1]["ports"][0]))
        self.assertEqual(self.switch.networks["net1"], {"id": "net1", "mtu": 9000})
        del self.neutron.db["p1"], self.neutron.db["p2"]
        self.passes()
        self.assertEqual(self.switch.config(), before)

    def test_a_port_that_others_attach_in_a_race_is_not_touched(self):
        """Another writer takes the id of the port between the agent's read and its write."""
        self.neutron.add("p1")
        theirs = {"device_id": "y", "network_id": "net1", "mac_address": "02:00:00:00:00:09", "owner": "cni"}

        def interfere(method, path):
            if path == "/v1/ports/p1":
                self.switch.before_write = lambda *_: None
                self.switch.put_ports("p1", theirs)
                self.switch.generation += 1

        self.switch.before_write = interfere
        with self.assertLogs("networking_vifswitch.agent", "ERROR"):
            self.passes()
        self.assertEqual(self.keys("p1")["owner"], "cni")

    def test_changes_of_others_all_the_time_end_the_pass_and_not_the_agent(self):
        self.neutron.add("p1")

        def interfere(*_):
            self.switch.generation += 1

        self.switch.before_write = interfere
        self.passes()
        self.assertTrue(self.agent.hints.look)
        self.switch.before_write = lambda *_: None
        self.passes(everything=False)
        self.assertTrue(self.keys("p1"))

    def test_what_was_deleted_while_the_agent_was_away_goes_with_its_network(self):
        self.neutron.add("p1")
        self.neutron.add("p2", network="net2")
        self.passes()
        del self.neutron.db["p2"]
        self.start()
        self.passes()
        self.assertEqual((self.switch.order("vm1"), list(self.switch.networks)), (["p1"], ["net1"]))
        self.neutron.db.clear()
        self.start()
        self.passes()
        self.assertEqual(self.switch.config(), {"networks": [], "uplinks": [], "vms": []})

    def test_a_network_that_others_use_stays(self):
        self.neutron.add("p1")
        self.passes()
        self.switch.put_ports("mine", {"device_id": "x", "network_id": "net1", "mac_address": "02:00:00:00:00:01"})
        self.neutron.db.clear()
        self.passes()
        self.assertEqual((list(self.switch.networks), [vm["id"] for vm in self.switch.vms]), (["net1"], ["x"]))
        self.assertEqual(self.agent.refused, {})

    def test_a_mac_address_can_move_to_a_new_port_in_one_pass(self):
        self.neutron.add("p1", mac="fa:16:3e:00:00:01")
        self.passes()
        del self.neutron.db["p1"]
        self.neutron.add("p2", mac="fa:16:3e:00:00:01")
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["p2"])

    def test_a_port_moves_to_another_vm_with_the_keys_of_the_operator(self):
        self.neutron.add("p1")
        self.passes()
        self.keys("p1")["promiscuous"] = True
        self.neutron.change("p1", device_id="vm2")
        self.passes()
        vm, keys = self.switch.port("p1")
        self.assertEqual((vm, keys["promiscuous"]), ("vm2", True))

    def test_a_refused_port_stops_no_other_and_is_tried_again(self):
        self.switch.networks["net1"] = {"id": "net1"}
        self.switch.put_ports("mine", {"device_id": "x", "network_id": "net1", "mac_address": "fa:16:3e:00:00:01"})
        self.neutron.add("p1", mac="fa:16:3e:00:00:01")
        self.neutron.add("p2")
        self.neutron.add("p3", network="huge")
        self.neutron.nets["huge"] = Network("huge", mtu=65535)
        with self.assertLogs("networking_vifswitch.agent", "ERROR") as log:
            self.passes()
        self.assertIn("p1: duplicate_mac", "\n".join(log.output))
        self.assertIn("huge: bad_value", "\n".join(log.output))
        self.assertEqual(self.switch.order("vm1"), ["p2"])
        self.assertEqual(sorted(self.agent.configurations()["refused"]), ["huge", "p1", "p3"])
        self.assertLessEqual(self.agent.again, self.now + 5)
        self.switch.delete_ports("mine", None)
        self.passes(everything=False)
        self.assertEqual(self.switch.order("vm1"), ["p2", "p1"])
        self.assertNotIn("p1", self.agent.refused)

    def test_an_unreachable_switch_keeps_the_hints(self):
        self.neutron.add("p1")
        self.switch.kill()
        with self.assertRaises(Unreachable):
            self.agent.once()
        self.assertTrue(self.agent.hints.everything)
        self.switch.restart()
        self.passes(everything=False)
        self.assertTrue(self.keys("p1"))

    def test_a_failing_neutron_keeps_facts_and_hints(self):
        self.neutron.add("p1")
        self.passes()
        self.neutron.failing = TimeoutError("no answer")
        self.agent.hint_port("p1", {"host1"})
        with self.assertRaises(TimeoutError):
            self.agent.once()
        self.assertEqual((list(self.agent.facts.ports), self.agent.hints.ports), (["p1"], {"p1"}))
        self.assertTrue(self.keys("p1"))

    # ---- order ----

    def test_ports_are_in_the_order_of_their_taps(self):
        for name in "abc":
            self.neutron.add(name)
        self.taps = {"tapc": 10, "tapa": 11, "tapb": 12}
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["c", "a", "b"])

    def test_an_order_that_taps_contradict_is_corrected(self):
        for name in "abc":
            self.agent.hint_port(name, {"host1"})
            self.neutron.add(name)
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["a", "b", "c"])
        self.taps = {"tapb": 10, "tapc": 11}
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["a", "b", "c"], "not before all taps are there")
        self.taps["tapa"] = 12
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["b", "c", "a"])
        writes = len(self.switch.writes)
        self.passes()
        self.assertEqual(len(self.switch.writes), writes)

    def test_without_taps_ports_are_in_the_order_in_which_neutron_mentions_them(self):
        for name in "cab":
            self.agent.hint_port(name, {"host1"})
            self.neutron.add(name, created="2026")
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["c", "a", "b"])

    def test_the_middle_port_can_leave_and_another_come_last(self):
        for name in "abc":
            self.agent.hint_port(name, {"host1"})
            self.neutron.add(name)
        self.taps = {"tapa": 1, "tapb": 2, "tapc": 3}
        self.passes()
        del self.neutron.db["b"]
        del self.taps["tapb"]
        self.neutron.add("aa", mac="fa:16:3e:00:00:55")
        self.passes()
        self.taps["tapaa"] = 9
        self.passes()
        self.assertEqual(self.switch.order("vm1"), ["a", "c", "aa"])

    # ---- trunks ----

    def trunk(self):
        self.neutron.add("parent", status=ACTIVE)
        self.neutron.add("sub1", network="net2", device_owner=TRUNK_SUBPORT, device_id="trunk1")
        self.neutron.trunks_by_parent["parent"] = Trunk("trunk1", "parent", DOWN, (("sub1", 101), ("sub2", 102)))

    def test_subports_share_the_device_of_their_parent(self):
        self.trunk()
        self.passes()
        vm, keys = self.switch.port("sub1")
        self.assertEqual((vm, keys["parent"], keys["vlan"], "device" in keys), ("vm1", "parent", 101, False))
        self.assertIn(("bind_subports", "trunk1", frozenset({"sub2"})), self.neutron.calls)
        self.assertNotIn(("trunk_status", "trunk1", ACTIVE), self.neutron.calls)
        self.neutron.add("sub2", network="net2", device_owner=TRUNK_SUBPORT, device_id="trunk1")
        self.passes()
        self.assertEqual(self.keys("sub2")["vlan"], 102)
        self.assertIn(("trunk_status", "trunk1", ACTIVE), self.neutron.calls)

    def test_neutron_is_not_asked_to_bind_a_subport_all_the_time(self):
        self.trunk()
        for _ in range(3):
            self.passes()
        asked = [call for call in self.neutron.calls if call[0] == "bind_subports"]
        self.assertEqual(len(asked), 1)
        self.now += 31
        self.passes()
        asked = [call for call in self.neutron.calls if call[0] == "bind_subports"]
        self.assertEqual(len(asked), 2)

    def test_a_removed_subport_leaves_the_switch_and_is_reported_down(self):
        self.trunk()
        self.passes()
        self.neutron.change("sub1", status=ACTIVE)
        self.neutron.trunks_by_parent["parent"] = Trunk("trunk1", "parent", DOWN, ())
        self.passes()
        self.assertEqual(self.switch.port("sub1"), (None, None))
        self.assertIn({"sub1"}, self.neutron.reported("down"))

    def test_a_trunk_leaves_with_its_vm(self):
        self.trunk()
        self.passes()
        del self.neutron.db["parent"]
        self.passes()
        self.assertEqual(self.switch.vms, [])

    # ---- uplinks ----

    def test_networks_are_on_the_uplink_of_their_physical_network(self):
        self.settings = Settings(uplink_mappings={"physnet1": "up0", "physnet2": "up1"}, uplink_devices={"up1": "eth1"})
        self.start()
        self.switch.networks["lan"] = {"id": "lan"}
        self.switch.uplinks["up0"] = {
            "id": "up0",
            "device": {"kind": "xdp", "name": "eth0"},
            "networks": [{"network_id": "lan"}],
            "storm": "off",
        }
        self.neutron.add("p1", segment=Segment("vlan", "physnet1", 120))
        self.neutron.add("p2", network="net2", segment=Segment("flat", "physnet2"))
        self.passes()
        self.assertEqual(self.switch.uplinks["up0"]["networks"], [{"network_id": "lan"}, {"network_id": "net1", "vlan": 120}])
        self.assertEqual(self.switch.uplinks["up0"]["storm"], "off")
        self.assertEqual(
            self.switch.uplinks["up1"],
            {
                "id": "up1",
                "device": {"kind": "packet", "name": "eth1"},
                "networks": [{"network_id": "net2"}],
                "owner": "neutron",
            },
        )
        self.neutron.db.clear()
        self.passes()
        self.assertEqual(list(self.switch.uplinks), ["up0"])
        self.assertEqual(self.switch.uplinks["up0"]["networks"], [{"network_id": "lan"}])
        self.assertEqual(list(self.switch.networks), ["lan"])

    def test_both_uplinks_of_a_group_get_a_network_at_once(self):
        lan = [{"network_id": "lan"}]
        self.switch.networks["lan"] = {"id": "lan"}
        for name in "up0", "up1":
            device = {"kind": "xdp", "name": name}
            self.switch.uplinks[name] = {"id": name, "group": "bond", "device": device, "networks": lan}
        for mapped in "bond", "up1":
            with self.subTest(mapped=mapped):
                self.settings = Settings(uplink_mappings={"physnet1": mapped})
                self.start()
                self.neutron.add("p1", segment=Segment("vlan", "physnet1", 120))
                self.passes()
                wanted = [*lan, {"network_id": "net1", "vlan": 120}]
                self.assertEqual([up["networks"] for up in self.switch.uplinks.values()], [wanted, wanted])
                self.assertTrue(self.keys("p1"))
                self.neutron.db.clear()
                self.passes()
                self.assertEqual([up["networks"] for up in self.switch.uplinks.values()], [lan, lan])
                self.assertEqual(list(self.switch.networks), ["lan"])

    def test_a_port_whose_network_has_no_uplink_is_not_up(self):
        self.settings = Settings(uplink_mappings={"physnet1": "up0"})
        self.start()
        self.neutron.add("p1", segment=Segment("vlan", "physnet1", 120))
        self.neutron.add("p2", network="net2", segment=Segment("vlan", "physnet9", 120))
        with self.assertLogs("networking_vifswitch.agent", "ERROR") as log:
            self.passes()
        self.assertIn('the switch has no uplink "up0"', "\n".join(log.output))
        self.assertIn('"physnet9" is not in uplink_mappings, which has: physnet1', "\n".join(log.output))
        self.assertEqual(self.neutron.reported("up"), [])
        self.switch.networks["lan"] = {"id": "lan"}
        self.switch.uplinks["up0"] = {"id": "up0", "device": {}, "networks": [{"network_id": "lan"}]}
        self.passes()
        self.assertEqual(self.neutron.reported("up"), [{"p1"}])

    def test_a_vlan_id_that_others_use_is_refused_by_name(self):
        self.settings = Settings(uplink_mappings={"physnet1": "up0"})
        self.start()
        self.switch.networks["lan"] = {"id": "lan"}
        self.switch.uplinks["up0"] = {"id": "up0", "device": {}, "networks": [{"network_id": "lan", "vlan": 120}]}
        self.neutron.add("p1", segment=Segment("vlan", "physnet1", 120))
        with self.assertLogs("networking_vifswitch.agent", "ERROR") as log:
            self.passes()
        self.assertIn("up0: contradiction", "\n".join(log.output))
        self.assertEqual(self.switch.uplinks["up0"]["networks"], [{"network_id": "lan", "vlan": 120}])
        self.assertEqual(self.neutron.reported("up"), [])

    # ---- limits ----

    def test_qos_rules_become_storm_limits_only_where_the_operator_accepts_that(self):
        for accepted in False, True:
            with self.subTest(accepted=accepted):
                self.settings = Settings(limits_flooded=accepted)
                self.start()
                self.neutron.rules["q1"] = [Rule(PACKETS, "egress", 2, 3), Rule(PACKETS, "ingress", 2, 3)]
                self.neutron.db.clear()
                self.neutron.add("p1", policy_id="q1")
                self.passes()
                wanted = (
                    {
                        "broadcast": {"pps": 500, "burst": 500, "action": "drop+event"},
                        "multicast": {"pps": 2000, "burst": 3000, "action": "drop+event"},
                        "unknown_unicast": {"pps": 1000, "burst": 1000, "action": "drop+event"},
                    }
                    if accepted
                    else None
                )
                self.assertEqual(self.keys("p1").get("storm"), wanted)
                self.assertEqual("p1" in self.agent.refused, accepted, "a rule that does not fit is told, if rules count")
        self.neutron.change("p1", policy_id=None)
        self.passes()
        self.assertNotIn("storm", self.keys("p1"))

    # ---- migration ----

    def test_a_port_that_migrates_here_waits_for_its_first_frame_and_is_reported_when_plugged(self):
        self.neutron.add("p1", is_active=False, status=ACTIVE)
        self.switch.status["p1"] = DOWN, "no_device"
        self.passes()
        self.assertEqual(self.keys("p1")["activation"], "first-frame")
        self.assertEqual(self.neutron.reported("up"), [])
        self.taps["tapp1"] = 7
        self.switch.status["p1"] = DOWN, "no_carrier"
        self.passes()
        self.passes()
        self.assertEqual(self.neutron.reported("up"), [{"p1"}], "once")
        self.assertEqual(self.neutron.reported("down"), [], "the source reports its state")
        self.neutron.change("p1", is_active=True, status=DOWN)
        self.switch.status["p1"] = ACTIVE, "ok"
        self.passes()
        self.assertEqual(self.keys("p1")["activation"], "first-frame", "the switch pins it once it has spoken")
        self.assertEqual(self.neutron.reported("up"), [{"p1"}, {"p1"}])

    def test_a_port_that_has_migrated_away_leaves(self):
        self.neutron.add("p1")
        self.passes()
        self.neutron.change("p1", vif_type="unbound")
        self.passes()
        self.assertEqual(self.switch.vms, [])

    def test_a_tap_of_no_known_port_causes_one_pull(self):
        self.passes()
        self.taps["tapstrange"] = 5
        self.agent.hint_link("tapstrange")
        self.assertTrue(self.agent.hints.everything)
        self.passes(everything=False)
        self.agent.hint_link("tapstrange")
        self.assertFalse(self.agent.hints)
        self.taps["tapstrange"] = 6
        self.agent.hint_link("tapstrange")
        self.assertTrue(self.agent.hints.everything)

    # ---- hints ----

    def test_a_port_deleted_while_it_is_pulled_is_pulled_again(self):
        """The announcement of the deletion arrives when the answer with the port is on its way."""
        self.switch.status["p1"] = DOWN, "no_carrier"
        self.passes()
        self.neutron.add("p1")
        pull = self.neutron.ports

        def slow(ids):
            found = pull(ids)
            self.neutron.db.pop("p1", None)
            self.agent.hint_port("p1", set())
            return found

        self.neutron.ports = slow
        self.agent.hint_port("p1", {"host1"})
        self.passes(everything=False)
        self.assertEqual(self.agent.hints.ports & {"p1"}, {"p1"})
        self.neutron.ports = pull
        self.passes(everything=False)
        self.assertEqual(self.switch.vms, [])

    def test_hints_about_other_hosts_are_ignored(self):
        self.passes()
        self.agent.hint_port("p9", {"host2"})
        self.agent.hint_network("net9")
        self.agent.hint_policy("q9")
        self.assertFalse(self.agent.hints)

    def test_only_what_was_mentioned_is_pulled(self):
        self.neutron.add("p1")
        self.neutron.add("p2")
        self.passes()
        self.passes(everything=False)
        self.neutron.calls.clear()
        self.neutron.change("p1", admin_state_up=False)
        self.agent.hint_port("p1", {"host1"})
        self.passes(everything=False)
        self.assertIn(("ports", frozenset({"p1"})), self.neutron.calls)
        self.assertNotIn(("port_ids",), self.neutron.calls)
        self.assertIs(self.keys("p1")["admin_state_up"], False)
        self.assertTrue(self.keys("p2"))

    def test_an_inactive_binding_elsewhere_is_none_of_ours(self):
        self.neutron.add("p1", vif_type="binding_failed")
        self.passes()
        self.assertEqual(self.switch.vms, [])


if __name__ == "__main__":
    unittest.main()
