"""Options of `[vifswitch]`, for the server and the agent. Needs oslo.config."""

from oslo_config import cfg

from networking_vifswitch import desired

GROUP = "vifswitch"
OPTIONS = [
    cfg.StrOpt("socket", default="/run/vifswitch/api.sock", help="API socket of the switch."),
    cfg.StrOpt(
        "vif_type",
        default="tap",
        choices=["tap", "vhostuser"],
        help="VIF type of ports that are bound: taps of Nova, or sockets in vhostuser_dir (needs a switch that supports them).",
    ),
    cfg.StrOpt("vhostuser_dir", default="/run/vifswitch/vhost", help="Directory of the sockets of vhost-user ports."),
    cfg.StrOpt(
        "device_kind",
        default="packet",
        choices=["packet", "xdp"],
        help="How the switch attaches to taps. xdp needs guests without offloads.",
    ),
    cfg.BoolOpt("isolate", default=True, help="Keep frames of VMs from the host's network stack (Linux 6.6, packet only)."),
    cfg.StrOpt(
        "port_security",
        default="mac",
        choices=["mac", "mac+ip"],
        help="Port security of ports with IP addresses whose port_security_enabled is true. Ports without get mac.",
    ),
    cfg.DictOpt("uplink_mappings", default={}, help="PHYSICAL_NETWORK:UPLINK, the id of an uplink or group of the switch."),
    cfg.DictOpt("uplink_devices", default={}, help="UPLINK:NETDEV, uplinks that the agent creates while networks need them."),
    cfg.StrOpt("uplink_kind", default="packet", choices=["packet", "xdp"], help="Device kind of uplinks that the agent creates."),
    cfg.StrOpt(
        "qos_limits",
        default="refuse",
        choices=["refuse", "flooded"],
        help="QoS rules mean all traffic of a port, of which the switch limits only what it floods. refuse: rules are refused. "
        "flooded: bandwidth and packet rate limits of direction egress become storm limits.",
    ),
    cfg.IntOpt("resync_interval", default=60, min=1, help="Seconds after which everything is pulled again without a hint."),
    cfg.IntOpt("rpc_timeout", default=10, min=1, help="Seconds to wait for an answer of the Neutron server."),
]


def register(conf):
    conf.register_opts(OPTIONS, GROUP)


def list_options():
    """For oslo-config-generator."""
    return [(GROUP, OPTIONS)]


def of(conf):
    """The options that decide what the switch contains."""
    group = conf[GROUP]
    return desired.Settings(
        device_kind=group.device_kind,
        isolate=group.isolate,
        port_security=group.port_security,
        uplink_mappings=dict(group.uplink_mappings),
        uplink_devices=dict(group.uplink_devices),
        uplink_kind=group.uplink_kind,
        limits_flooded=group.qos_limits == "flooded",
    )
