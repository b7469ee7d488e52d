"""QoS driver: accepts the rules that fit limits of the switch; Neutron refuses the others by name (409)."""

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings as pb
from neutron_lib.services.qos import base
from neutron_lib.services.qos import constants as qos
from oslo_config import cfg
from oslo_log import log as logging

from networking_vifswitch import limits, settings

LOG = logging.getLogger(__name__)
EGRESS = {"type:values": [constants.EGRESS_DIRECTION]}
BURST = {"type:range": [0, 2**31 - 1]}
RULES = {
    qos.RULE_TYPE_BANDWIDTH_LIMIT: {
        qos.MAX_KBPS: {"type:range": [1, limits.MAX_KBPS]},
        qos.MAX_BURST: BURST,
        qos.DIRECTION: EGRESS,
    },
    qos.RULE_TYPE_PACKET_RATE_LIMIT: {
        qos.MAX_KPPS: {"type:range": [1, limits.MAX_KPPS]},
        qos.MAX_BURST_KPPS: BURST,
        qos.DIRECTION: EGRESS,
    },
}


class VifswitchQosDriver(base.DriverBase):
    """Without `qos_limits = flooded` no rule is accepted: known unicast would pass without a limit, against its meaning."""

    def __init__(self):
        rules = RULES if cfg.CONF[settings.GROUP].qos_limits == "flooded" else {}
        vif_types = [pb.VIF_TYPE_TAP, pb.VIF_TYPE_VHOST_USER]
        super().__init__("vifswitch", vif_types, [pb.VNIC_NORMAL], rules, requires_rpc_notifications=True)
        if rules:
            LOG.warning("vifswitch: QoS limits apply to broadcast, multicast and unknown unicast only (qos_limits = flooded)")

    @property
    def is_loaded(self):
        return "vifswitch" in cfg.CONF.ml2.mechanism_drivers
