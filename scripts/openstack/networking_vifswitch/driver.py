"""ML2 mechanism driver: binds normal ports on hosts where an agent of vifswitch is alive."""

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings as pb
from neutron_lib.plugins.ml2 import api
from oslo_config import cfg
from oslo_log import log as logging

from neutron.plugins.ml2.drivers import mech_agent

from networking_vifswitch import qos, settings, trunk
from networking_vifswitch.desired import MAX_MTU
from networking_vifswitch.facts import AGENT_TYPE

LOG = logging.getLogger(__name__)


class VifswitchMechanismDriver(mech_agent.SimpleAgentMechanismDriverBase):
    def __init__(self):
        # `port_filter`: security groups are not enforced. The other key says so to people who read the port.
        details = {pb.CAP_PORT_FILTER: False, "security_groups": "not enforced"}
        super().__init__(AGENT_TYPE, pb.VIF_TYPE_TAP, details)

    def initialize(self):
        super().initialize()
        settings.register(cfg.CONF)
        LOG.warning("vifswitch: security groups are not enforced on its ports; only source addresses are (port security)")
        self.trunk_driver = trunk.VifswitchTrunkDriver()
        self.qos_driver = qos.VifswitchQosDriver()

    @property
    def connectivity(self):
        return pb.CONNECTIVITY_L2  # with another one, ports without addresses are not bound

    def get_allowed_network_types(self, agent=None):
        return [constants.TYPE_LOCAL, constants.TYPE_FLAT, constants.TYPE_VLAN]

    def get_mappings(self, agent):
        return agent["configurations"].get("uplink_mappings", {})

    def get_supported_vif_type(self, agent):
        return agent["configurations"].get("vif_type", pb.VIF_TYPE_TAP)

    def get_vif_type(self, context, agent, segment):
        return self.get_supported_vif_type(agent)

    def get_vif_details(self, context, agent, segment):
        details = dict(self.vif_details)
        if self.get_supported_vif_type(agent) == pb.VIF_TYPE_VHOST_USER:
            # QEMU listens, and the switch connects, so that it can connect again after a restart
            details[pb.VHOST_USER_MODE] = pb.VHOST_USER_MODE_SERVER
            details[pb.VHOST_USER_SOCKET] = f"{agent['configurations']['vhostuser_dir']}/{context.current['id']}"
        return details

    def try_to_bind_segment_for_agent(self, context, segment, agent):
        mtu = context.network.current.get("mtu") or 0
        if mtu > MAX_MTU:
            LOG.error(
                "port %s is not bound on %s: the MTU of network %s is %d, and vifswitch has at most %d",
                context.current["id"],
                agent["host"],
                segment[api.NETWORK_ID],
                mtu,
                MAX_MTU,
            )
            return False
        return super().try_to_bind_segment_for_agent(context, segment, agent)
