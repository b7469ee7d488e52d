"""The drivers in the server: bindings, port details, trunks, QoS rules."""

import unittest
from types import SimpleNamespace
from unittest import mock

from neutron_lib.api.definitions import portbindings as pb
from oslo_config import cfg

from neutron.conf.plugins.ml2 import config as ml2_config

from networking_vifswitch import driver, qos, settings, trunk
from networking_vifswitch.facts import AGENT_TYPE

ml2_config.register_ml2_plugin_opts()
settings.register(cfg.CONF)


def agent(**configurations):
    return {
        "agent_type": AGENT_TYPE,
        "host": "host1",
        "alive": True,
        "configurations": {"uplink_mappings": {"physnet1": "up0"}, **configurations},
    }


def context(mtu=1500):
    return SimpleNamespace(current={"id": "port1"}, network=SimpleNamespace(current={"mtu": mtu}), set_binding=mock.Mock())


def segment(kind, physnet=None):
    return {"id": "seg1", "network_type": kind, "physical_network": physnet, "segmentation_id": 120, "network_id": "net1"}


class Binding(unittest.TestCase):
    def setUp(self):
        self.driver = driver.VifswitchMechanismDriver()

    def bind(self, segment, agent, mtu=1500):
        made = context(mtu)
        return self.driver.try_to_bind_segment_for_agent(made, segment, agent), made.set_binding

    def test_details_say_l2_and_that_no_security_group_is_enforced(self):
        for kind, physnet in ("local", None), ("vlan", "physnet1"), ("flat", "physnet1"):
            is_bound, set_binding = self.bind(segment(kind, physnet), agent())
            self.assertTrue(is_bound)
            set_binding.assert_called_once_with(
                "seg1",
                "tap",
                {
                    "connectivity": "l2",
                    "port_filter": False,
                    "security_groups": "not enforced",
                },
            )

    def test_what_the_agent_cannot_carry_is_not_bound(self):
        for wrong in segment("vlan", "physnet2"), segment("vxlan"), segment("geneve"):
            self.assertFalse(self.bind(wrong, agent())[0])
        is_bound, set_binding = self.bind(segment("local"), agent(), mtu=9217)
        self.assertFalse(is_bound)
        set_binding.assert_not_called()
        self.assertTrue(self.bind(segment("local"), agent(), mtu=9216)[0])

    def test_vhost_user_sockets_are_listened_at_by_qemu(self):
        _, set_binding = self.bind(segment("local"), agent(vif_type="vhostuser", vhostuser_dir="/run/v"))
        _, kind, details = set_binding.call_args.args
        self.assertEqual(
            (kind, details[pb.VHOST_USER_MODE], details[pb.VHOST_USER_SOCKET]), ("vhostuser", "server", "/run/v/port1")
        )
        self.assertIs(details[pb.CAP_PORT_FILTER], False)

    def test_a_trunk_may_be_made_of_a_bound_port(self):
        made = trunk.VifswitchTrunkDriver()
        self.assertTrue(made.can_trunk_bound_port)
        self.assertTrue(made.is_interface_compatible("tap"))
        self.assertTrue(made.is_agent_compatible(AGENT_TYPE))
        cfg.CONF.set_override("mechanism_drivers", ["vifswitch"], "ml2")
        self.addCleanup(cfg.CONF.clear_override, "mechanism_drivers", "ml2")
        self.assertTrue(made.is_loaded)


class Rules(unittest.TestCase):
    def rule(self, rule_type, **keys):
        return SimpleNamespace(rule_type=rule_type, get=keys.get)

    def supports(self, rule_type, **keys):
        return qos.VifswitchQosDriver().is_rule_supported(self.rule(rule_type, **keys))

    def test_no_rule_is_accepted_by_default(self):
        self.assertFalse(self.supports("packet_rate_limit", max_kpps=5, max_burst_kpps=0, direction="egress"))

    def test_limits_of_what_a_port_sends_are_accepted_if_the_operator_says_so(self):
        cfg.CONF.set_override("qos_limits", "flooded", settings.GROUP)
        self.addCleanup(cfg.CONF.clear_override, "qos_limits", settings.GROUP)
        self.assertTrue(self.supports("packet_rate_limit", max_kpps=5, max_burst_kpps=0, direction="egress"))
        self.assertTrue(self.supports("bandwidth_limit", max_kbps=1000, max_burst_kbps=100, direction="egress"))
        self.assertFalse(self.supports("bandwidth_limit", max_kbps=1000, max_burst_kbps=100, direction="ingress"))
        self.assertFalse(self.supports("bandwidth_limit", max_kbps=0, max_burst_kbps=0, direction="egress"))
        self.assertFalse(self.supports("minimum_bandwidth", min_kbps=1000, direction="egress"))
        self.assertFalse(self.supports("dscp_marking", dscp_mark=8))


if __name__ == "__main__":
    unittest.main()
