"""RPC: facts of Neutron's objects, calls, and hints of its announcements. Needs no message broker."""

import logging
import time
import unittest
import uuid
from unittest import mock

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import netaddr  # noqa: E402
from neutron import objects  # noqa: E402
from neutron.common import config as common_config  # noqa: E402
from neutron.objects import network, ports, trunk  # noqa: E402
from neutron.objects.port.extensions import allowedaddresspairs, port_security  # noqa: E402

from networking_vifswitch import facts, rpc  # noqa: E402

common_config.register_common_config_options()
objects.register_objects()
PORT, NET, SEGMENT = (str(uuid.uuid4()) for _ in range(3))


def binding(host, status="ACTIVE", vif_type="tap", **keys):
    return ports.PortBinding(
        port_id=PORT, host=host, status=status, vif_type=vif_type, vnic_type="normal", profile={}, vif_details={}, **keys
    )


def port(*bindings, driver="vifswitch", host="host1"):
    segment = network.NetworkSegment(
        id=SEGMENT, network_id=NET, network_type="vlan", physical_network="physnet1", segmentation_id=120
    )
    level = ports.PortBindingLevel(port_id=PORT, host=host, level=0, driver=driver, segment_id=SEGMENT, segment=segment)
    pair = allowedaddresspairs.AllowedAddressPair(
        port_id=PORT, mac_address=netaddr.EUI("fa:16:3e:00:00:09"), ip_address=netaddr.IPNetwork("10.0.0.0/24")
    )
    ip = ports.IPAllocation(port_id=PORT, subnet_id=str(uuid.uuid4()), network_id=NET, ip_address=netaddr.IPAddress("10.5.0.7"))
    return ports.Port(
        id=PORT,
        network_id=NET,
        mac_address=netaddr.EUI("fa:16:3e:00:00:01"),
        admin_state_up=True,
        device_id="vm1",
        device_owner="compute:nova",
        status="DOWN",
        bindings=list(bindings),
        binding_levels=[level],
        allowed_address_pairs=[pair],
        fixed_ips=[ip],
        security_group_ids={str(uuid.uuid4())},
        security=port_security.PortSecurity(id=PORT, port_security_enabled=False),
    )


class Facts(unittest.TestCase):
    def test_a_port_of_this_host(self):
        made = rpc.port_of(port(binding("host2", "INACTIVE"), binding("host1")), "host1")
        self.assertEqual(
            made,
            facts.Port(
                PORT,
                NET,
                "fa:16:3e:00:00:01",
                "vm1",
                "compute:nova",
                "DOWN",
                True,
                False,
                True,
                ("10.5.0.7",),
                (facts.Pair("FA:16:3E:00:00:09", "10.0.0.0/24"),),
                "tap",
                None,
                True,
                facts.Segment("vlan", "physnet1", 120),
                None,
                "",
            ),
        )

    def test_a_binding_that_is_not_active_is_of_a_vm_that_migrates_here(self):
        self.assertFalse(rpc.port_of(port(binding("host1", "INACTIVE"), binding("host2")), "host1").is_active)

    def test_ports_of_other_hosts_and_drivers_are_none_of_ours(self):
        self.assertIsNone(rpc.port_of(port(binding("host2")), "host1"))
        self.assertIsNone(rpc.port_of(port(binding("host1"), driver="openvswitch"), "host1"))
        for vif_type in "unbound", "binding_failed", "ovs":
            self.assertIsNone(rpc.port_of(port(binding("host1", vif_type=vif_type)), "host1"))


class Hints(unittest.TestCase):
    def push(self, thing, event):
        agent = mock.Mock()
        rpc.Pushes(agent).push(None, [thing.obj_to_primitive()], event)
        return agent

    def test_announcements_are_hints(self):
        self.push(port(binding("host1"), binding("host2", "INACTIVE")), "updated").hint_port.assert_called_once_with(
            PORT, {"host1", "host2"}
        )
        self.push(network.Network(id=NET), "updated").hint_network.assert_called_once_with(NET)
        self.push(trunk.SubPort(port_id=PORT, trunk_id=NET), "created").hint_trunk.assert_called_once_with()

    def test_a_deleted_port_has_only_its_id(self):
        self.push(ports.Port(id=PORT), "deleted").hint_port.assert_called_once_with(PORT, set())

    def test_activation_of_a_binding_is_a_hint(self):
        agent = mock.Mock()
        rpc.Bindings(agent).binding_activate(None, port_id=PORT, host="host1")
        rpc.Bindings(agent).binding_deactivate(None, port_id=PORT, host="host2", network_id=NET)
        agent.hint_port.assert_has_calls([mock.call(PORT, {"host1"}), mock.call(PORT, {"host2"})])

    def test_trouble_with_the_broker_is_read_from_the_log(self):
        trouble = mock.Mock()
        log, handler = logging.getLogger(rpc.BROKER_LOG), rpc.BrokerTrouble(trouble)
        log.addHandler(handler)
        self.addCleanup(log.removeHandler, handler)
        log.setLevel(logging.INFO)
        log.error("[x] AMQP server on 127.0.0.1:5672 is unreachable: closed. Trying again in 1 seconds.")
        log.info("[x] Reconnected to AMQP server on 127.0.0.1:5672 via [amqp] client")
        log.info("something else")
        self.assertEqual(trouble.call_count, 2)


class Calls(unittest.TestCase):
    def setUp(self):
        with mock.patch.object(rpc.n_rpc, "get_client"), mock.patch.object(rpc.context, "get_admin_context_without_session"):
            self.neutron = rpc.Neutron("host1", 7)
        self.calls, self.timeouts = [], set()

        def client(name):
            def prepare(timeout):
                self.timeouts.add(timeout)
                return mock.Mock(call=lambda _, method, **arguments: self.calls.append((name, method, arguments)) or [])

            return mock.Mock(prepare=prepare)

        for name in "plugin", "pulls", "states", "trunk":
            setattr(self.neutron, name, client(name))

    def test_pulls_are_in_chunks(self):
        list(self.neutron.pull("Port", "id", {f"{n:04}" for n in range(250)}))
        sizes = [len(arguments["filter_kwargs"]["id"]) for _, _, arguments in self.calls]
        self.assertEqual((sizes, {method for _, method, _ in self.calls}), ([100, 100, 50], {"bulk_pull"}))

    def test_calls_wait_for_less_long_while_connections_to_the_broker_come_back(self):
        self.neutron.trunk_status("t", "ACTIVE")
        self.assertEqual(self.timeouts, {7})
        self.neutron.troubled = time.monotonic()
        self.neutron.trunk_status("t", "ACTIVE")
        self.assertEqual(self.timeouts, {7, rpc.SHORT_TIMEOUT})

    def test_only_the_first_heartbeat_has_the_versions(self):
        self.neutron.report_state({}, True)
        self.neutron.report_state({}, False)
        first, second = (arguments["agent_state"]["agent_state"] for _, _, arguments in self.calls)
        self.assertEqual(("start_flag" in first, "resource_versions" in first), (True, True))
        self.assertEqual(("start_flag" in second, "resource_versions" in second), (False, False))


if __name__ == "__main__":
    unittest.main()
