"""The agent as a process: neutron-vifswitch-agent --config-file neutron.conf …"""

import logging
import sys

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)  # before anything of Neutron, whose default would be eventlet

from neutron.common import config as common_config  # noqa: E402
from neutron.conf.agent import common as agent_config  # noqa: E402
from oslo_config import cfg  # noqa: E402

from networking_vifswitch import links, settings  # noqa: E402
from networking_vifswitch.agent import Agent  # noqa: E402
from networking_vifswitch.switch import Switch  # noqa: E402

LOG = logging.getLogger(__name__)


def main():
    common_config.register_common_config_options()
    agent_config.register_agent_state_opts_helper(cfg.CONF)
    settings.register(cfg.CONF)
    common_config.init(sys.argv[1:])
    common_config.setup_logging()

    from networking_vifswitch.rpc import Neutron  # needs the transport

    group = cfg.CONF[settings.GROUP]
    host = cfg.CONF.host
    neutron = Neutron(host, group.rpc_timeout)
    told = {
        "uplink_mappings": dict(group.uplink_mappings),
        "vif_type": group.vif_type,
        "vhostuser_dir": group.vhostuser_dir,
        "qos_limits": group.qos_limits,
    }
    agent = Agent(host, neutron, Switch(group.socket), settings.of(cfg.CONF), told, group.resync_interval)
    LOG.warning(
        "SECURITY GROUPS ARE NOT ENFORCED: vifswitch filters source addresses (port security) and nothing else; "
        "ports of this host have binding:vif_details port_filter=False"
    )
    links.Watch(agent.hint_link).start()
    neutron.listen(agent)
    agent.run(cfg.CONF.AGENT.report_interval)
