"""What Neutron says about the ports of this host, as plain data."""

from dataclasses import dataclass, field
from typing import Optional

AGENT_TYPE = "vifswitch agent"
OWNER = "neutron"  # label of everything that the agent writes
TRUNK_SUBPORT = "trunk:subport"  # device_owner of subports
TAP, VHOST_USER = "tap", "vhostuser"  # binding:vif_type
ACTIVE, DOWN, INACTIVE = "ACTIVE", "DOWN", "INACTIVE"


@dataclass(frozen=True)
class Segment:
    """The segment by which a port is bound."""

    network_type: str  # local, flat or vlan
    physical_network: Optional[str] = None
    vlan: Optional[int] = None


@dataclass(frozen=True)
class Pair:
    mac: str
    ip: str


@dataclass(frozen=True)
class Port:
    """A port that has a binding on this host."""

    id: str
    network_id: str
    mac: str
    device_id: str = ""
    device_owner: str = ""
    status: str = DOWN
    admin_state_up: bool = True
    is_secure: bool = True  # port_security_enabled
    has_groups: bool = False  # has security groups
    ips: tuple = ()
    pairs: tuple = ()  # of Pair
    vif_type: str = TAP
    vhost_socket: Optional[str] = None
    is_active: bool = True  # the binding on this host is; else the VM migrates to it
    segment: Optional[Segment] = None
    policy_id: Optional[str] = None  # QoS, of the port or else of its network
    created: str = ""

    @property
    def vm(self):
        """Id of its VM in the switch. Neutron allows an empty device_id."""
        return self.device_id or self.id

    @property
    def tap(self):
        """Name of the netdev, as Nova names it."""
        return ("tap" + self.id)[:14]


@dataclass(frozen=True)
class Network:
    id: str
    mtu: int = 1500
    admin_state_up: bool = True


@dataclass(frozen=True)
class Trunk:
    id: str
    port_id: str
    status: str = DOWN
    subports: tuple = ()  # of (port id, VLAN id)


@dataclass(frozen=True)
class Rule:
    """A QoS rule."""

    type: str
    direction: str = "egress"
    rate: int = 0  # kbit/s or 1000 frames/s
    burst: int = 0  # kbit or 1000 frames


@dataclass
class Facts:
    """All that Neutron says about this host, each by id; trunks by their parent port."""

    ports: dict = field(default_factory=dict)
    networks: dict = field(default_factory=dict)
    trunks: dict = field(default_factory=dict)
    policies: dict = field(default_factory=dict)  # id → list of Rule
