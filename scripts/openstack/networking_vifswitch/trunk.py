"""Neutron's trunks: subports are ports of the switch that share the parent's device by VLAN tag. The agent binds them."""

from neutron_lib.api.definitions import portbindings as pb
from neutron_lib.services.trunk import constants
from oslo_config import cfg

from neutron.services.trunk.drivers import base

from networking_vifswitch.facts import AGENT_TYPE

NAME = "vifswitch"


class VifswitchTrunkDriver(base.DriverBase):
    def __init__(self):
        super().__init__(
            NAME,
            [pb.VIF_TYPE_TAP, pb.VIF_TYPE_VHOST_USER],
            [constants.SEGMENTATION_TYPE_VLAN],
            AGENT_TYPE,
            can_trunk_bound_port=True,
        )

    @property
    def is_loaded(self):
        return NAME in cfg.CONF.ml2.mechanism_drivers
