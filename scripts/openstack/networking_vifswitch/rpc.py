"""RPC with the Neutron server: pulls facts, reports, and receives hints. Needs Neutron's libraries.

Each call has a timeout, and none is repeated here: the agent begins its pass again.
"""

import logging
import time

import oslo_messaging
from neutron_lib import constants, context
from neutron_lib import rpc as n_rpc
from neutron_lib.agent import topics
from oslo_utils import timeutils, uuidutils

from neutron import objects
from neutron.api.rpc.callbacks import events, resources
from neutron.api.rpc.handlers import resources_rpc
from neutron.objects import base as objects_base
from neutron.services.trunk.rpc import constants as trunk_constants

from networking_vifswitch import facts

LOG = logging.getLogger(__name__)
BINARY = "neutron-vifswitch-agent"
DRIVER = "vifswitch"  # name of the mechanism driver in binding levels
CHUNK = 100  # objects of a message
# a call that is sent while connections to the broker come back may get no answer: for a while, calls wait for less long
RECOVERY, SHORT_TIMEOUT = 15, 3  # seconds
BROKER_LOG = "oslo.messaging._drivers.impl_rabbit"


def port_of(port, host):
    """Facts about a port; None if it has no binding of our driver on this host."""
    binding = next((one for one in port.bindings or () if one.host == host), None)
    if binding is None or binding.vif_type not in (facts.TAP, facts.VHOST_USER):
        return None
    levels = sorted((one for one in port.binding_levels or () if one.host == host), key=lambda one: one.level)
    if levels and levels[-1].driver not in (None, DRIVER):
        return None
    segment = levels[-1].segment if levels else None
    return facts.Port(
        id=port.id,
        network_id=port.network_id,
        mac=str(port.mac_address).replace("-", ":").lower(),
        device_id=port.device_id,
        device_owner=port.device_owner,
        status=port.status,
        admin_state_up=port.admin_state_up,
        is_secure=port.security.port_security_enabled if port.security else True,
        has_groups=bool(port.security_group_ids),
        ips=tuple(str(ip.ip_address) for ip in port.fixed_ips or ()),
        pairs=tuple(
            facts.Pair(str(p.mac_address).replace("-", ":"), str(p.ip_address)) for p in port.allowed_address_pairs or ()
        ),
        vif_type=binding.vif_type,
        vhost_socket=(binding.vif_details or {}).get("vhostuser_socket"),
        is_active=binding.status == constants.ACTIVE,
        segment=segment and facts.Segment(segment.network_type, segment.physical_network, segment.segmentation_id),
        policy_id=port.qos_policy_id or port.qos_network_policy_id,
        created=str(getattr(port, "created_at", None) or ""),
    )


def rule_of(rule):
    rate = getattr(rule, "max_kbps", None) or getattr(rule, "max_kpps", None) or 0
    burst = getattr(rule, "max_burst_kbps", None) or getattr(rule, "max_burst_kpps", None) or 0
    return facts.Rule(rule.rule_type, getattr(rule, "direction", "egress"), rate, burst)


class Neutron:
    """The Neutron server, as the agent sees it."""

    def __init__(self, host, timeout):
        objects.register_objects()
        self.host, self.timeout = host, timeout
        self.troubled = float("-inf")  # when a connection to the broker was lost or came back
        self.agent_id = f"vifswitch-{host}"
        self.context = context.get_admin_context_without_session()
        target = oslo_messaging.Target
        self.plugin = n_rpc.get_client(target(topic=topics.PLUGIN, version="1.9"))
        self.pulls = n_rpc.get_client(target(topic=topics.PLUGIN, version="1.1", namespace=constants.RPC_NAMESPACE_RESOURCES))
        self.states = n_rpc.get_client(target(topic=topics.REPORTS, version="1.4", namespace=constants.RPC_NAMESPACE_STATE))
        self.trunk = n_rpc.get_client(
            target(topic=trunk_constants.TRUNK_BASE_TOPIC, version="1.0", namespace=trunk_constants.TRUNK_BASE_NAMESPACE)
        )

    def call(self, client, method, **arguments):
        timeout = self.timeout
        if time.monotonic() < self.troubled + RECOVERY:
            timeout = min(timeout, SHORT_TIMEOUT)
        return client.prepare(timeout=timeout).call(self.context, method, **arguments)

    # ---- facts ----

    def pull(self, kind, key, values):
        cls = resources.get_resource_cls(kind)
        values = sorted(values)
        for start in range(0, len(values), CHUNK):
            filters = {key: values[start : start + CHUNK]}
            found = self.call(self.pulls, "bulk_pull", resource_type=kind, version=cls.VERSION, filter_kwargs=filters)
            yield from map(cls.clean_obj_from_primitive, found)

    def port_ids(self):
        """Ids of the ports that have a binding on this host, ACTIVE or not."""
        ports = self.call(self.plugin, "get_ports_by_vnic_type_and_host", vnic_type="normal", host=self.host)
        return {port["id"] for port in ports}

    def ports(self, ids):
        found = (port_of(port, self.host) for port in self.pull(resources.PORT, "id", ids))
        return {port.id: port for port in found if port}

    def networks(self, ids):
        found = self.pull(resources.NETWORK, "id", ids)
        return {one.id: facts.Network(one.id, one.mtu, one.admin_state_up is not False) for one in found}

    def trunks(self, parents):
        """By parent port."""
        return {
            one.port_id: facts.Trunk(
                one.id, one.port_id, one.status, tuple((s.port_id, s.segmentation_id) for s in one.sub_ports)
            )
            for one in self.pull(resources.TRUNK, "port_id", parents)
        }

    def policies(self, ids):
        return {one.id: [rule_of(rule) for rule in one.rules] for one in self.pull(resources.QOS_POLICY, "id", ids)}

    # ---- reports ----

    def devices(self, up, down):
        """Reports ports as up or down; those that Neutron fails to process are reported again by the agent."""
        self.call(
            self.plugin,
            "update_device_list",
            devices_up=sorted(up),
            devices_down=sorted(down),
            agent_id=self.agent_id,
            host=self.host,
            refresh_tunnels=False,
        )

    def bind_subports(self, trunk, ports):
        subports = [{"trunk_id": trunk, "port_id": port} for port in sorted(ports)]
        self.call(self.trunk, "update_subport_bindings", subports=subports)

    def trunk_status(self, trunk, status):
        self.call(self.trunk, "update_trunk_status", trunk_id=trunk, status=status)

    def report_state(self, configurations, is_first):
        """A heartbeat. Returns whether the server takes the agent for a new one, or for one that was dead."""
        state = {
            "binary": BINARY,
            "host": self.host,
            "topic": constants.L2_AGENT_TOPIC,
            "agent_type": facts.AGENT_TYPE,
            "configurations": configurations,
            "uuid": uuidutils.generate_uuid(),
        }
        if is_first:
            state.update(start_flag=True, resource_versions=resources.LOCAL_RESOURCE_VERSIONS)
        now = timeutils.utcnow().strftime(constants.ISO8601_TIME_FORMAT)
        answer = self.call(self.states, "report_state", agent_state={"agent_state": state}, time=now)
        return answer in ("new", "revived")

    # ---- hints ----

    def listen(self, agent):
        """Calls the hints of the agent for what the server announces."""
        self.connection = n_rpc.Connection()
        kinds = (resources.PORT, resources.NETWORK, resources.TRUNK, resources.SUBPORT, resources.QOS_POLICY)
        for kind in kinds:
            topic = resources_rpc.resource_type_versioned_topic(kind)
            self.connection.create_consumer(topic, [Pushes(agent)], fanout=True)
        for operation in (topics.ACTIVATE, topics.DEACTIVATE):
            topic = topics.get_topic_name(topics.AGENT, topics.PORT_BINDING, operation)
            self.connection.create_consumer(topic, [Bindings(agent)], fanout=True)

        def trouble():
            self.troubled = time.monotonic()
            agent.hint_broker()

        logging.getLogger(BROKER_LOG).addHandler(BrokerTrouble(trouble))
        self.connection.consume_in_threads()


class Pushes:
    """Announcements of changed objects. Only their ids are used."""

    target = oslo_messaging.Target(version="1.1", namespace=constants.RPC_NAMESPACE_RESOURCES)

    def __init__(self, agent):
        self.agent = agent

    def push(self, context, resource_list, event_type, **_):
        for primitive in resource_list:
            thing = objects_base.NeutronObject.clean_obj_from_primitive(primitive)
            kind = resources.get_resource_type(thing)
            if kind == resources.PORT:
                bindings = [] if event_type == events.DELETED else thing.bindings or []
                self.agent.hint_port(thing.id, {one.host for one in bindings})
            elif kind == resources.NETWORK:
                self.agent.hint_network(thing.id)
            elif kind == resources.TRUNK:
                self.agent.hint_trunk()
            elif kind == resources.SUBPORT:
                self.agent.hint_trunk()
            elif kind == resources.QOS_POLICY:
                self.agent.hint_policy(thing.id)


class Bindings:
    """Announcements that a binding of a port was activated or deactivated."""

    target = oslo_messaging.Target(version="1.5")

    def __init__(self, agent):
        self.agent = agent

    def binding_activate(self, context, port_id, host, **_):
        self.agent.hint_port(port_id, {host})

    def binding_deactivate(self, context, port_id, host, **_):
        self.agent.hint_port(port_id, {host})


class BrokerTrouble(logging.Handler):
    """oslo.messaging tells only its log that a connection was lost, and with it announcements: everything is pulled again."""

    def __init__(self, trouble):
        super().__init__(logging.INFO)
        self.trouble = trouble

    def emit(self, record):
        if record.levelno >= logging.ERROR or "econnected" in record.getMessage():
            self.trouble()
