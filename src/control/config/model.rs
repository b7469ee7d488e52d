//! The configuration as meant: every value checked, every default filled in.
//!
//! The types say what is possible, [`super::lower`] how it is read and [`super::serialize`] how it is written again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::named::Named;
use super::policy::{Activation, AddressPair, PortSecurity, UnknownUnicast};
use super::storm::Storm;
use crate::device::xdp;
use crate::switch::{MacLimit, ReservedMask};
use crate::wire::{Mac, Vid};

/// Everything the operator wants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// The process.
    pub switch: SwitchSettings,
    /// The broadcast domains; no two have the same id.
    pub networks: Vec<Network>,
    /// The virtual machines; no two have the same id.
    pub vms: Vec<Vm>,
    /// The ways to the outside; no two have the same id, and none that of a port.
    pub uplinks: Vec<Uplink>,
}

impl Config {
    /// All ports, each with its VM, in the order in which they are listed.
    pub fn ports(&self) -> impl Iterator<Item = (&Vm, &Port)> {
        self.vms.iter().flat_map(|vm| vm.ports.iter().map(move |port| (vm, port)))
    }

    /// All devices: those of the ports, then those of the uplinks.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.ports().filter_map(|(_, port)| port.device()).chain(self.uplinks.iter().map(|uplink| &uplink.device))
    }
}

impl Config {
    fn storm_on(&self, network_id: &str) -> Storm {
        self.networks.iter().find(|network| network.id == network_id).map_or(Storm::DEFAULT, |network| network.storm)
    }

    /// What holds for a port: what it says itself, else what its network says.
    pub fn storm_of_port(&self, port: &Port) -> Storm {
        port.storm.over(self.storm_on(&port.network_id))
    }

    /// What holds for all ports of a VM on a network together: what the VM says itself, else what the network says.
    pub fn storm_of_vm(&self, vm: &Vm, network: &Network) -> Storm {
        vm.storm.over(network.storm)
    }

    /// What holds for an uplink on each network that it carries.
    pub fn storm_of_uplink(&self, uplink: &Uplink) -> Storm {
        uplink.storm.over(Storm::OFF)
    }
}

/// What concerns the process as a whole. Fixed at start.
#[derive(Debug, Clone, PartialEq)]
pub struct SwitchSettings {
    /// One worker for each. Empty: one worker, on the last core that the process may use.
    pub cores: Vec<usize>,
    /// The API's socket.
    pub api: PathBuf,
    /// Where changes are kept; `None` keeps nothing.
    pub state: Option<PathBuf>,
    /// The TCP listener for metrics, if one is wanted.
    pub metrics: Option<SocketAddr>,
    /// What a worker does when nothing is to be done.
    pub poll: Poll,
    /// Slots of the pool.
    pub frames: u32,
    /// How many learned stations the table of each worker holds.
    pub stations: u32,
}

impl Default for SwitchSettings {
    fn default() -> SwitchSettings {
        SwitchSettings {
            cores: Vec::new(),
            api: PathBuf::from("/run/vifswitch/api.sock"),
            state: Some(PathBuf::from("/var/lib/vifswitch/state.db")),
            metrics: None,
            poll: Poll::Adaptive,
            frames: 65536,
            stations: 262_144,
        }
    }
}

/// One broadcast domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Any text; a UUID in OpenStack.
    pub id: String,
    /// Longest payload of an Ethernet frame.
    pub mtu: u16,
    /// How long an idle station is remembered.
    pub ageing_seconds: u32,
    /// Learned stations at most.
    pub fdb_limit: u32,
    /// Learned stations of one port at most.
    pub fdb_limit_per_port: u32,
    /// Whether a source that is pinned on another VM's port is dropped.
    pub anti_spoof: bool,
    /// Which of the reserved group addresses pass between its VMs.
    pub reserved_groups: ReservedMask,
    /// What each port on it may send to everybody, and each VM by all its ports together. Of all classes and of
    /// copies something is said.
    pub storm: Storm,
    /// Seconds between two probes for loops that go out of a port: 1 to 10.
    pub probe_seconds: u32,
    /// How long a station stays where it is that moved too often: 30 to 3600 seconds.
    pub dampening_seconds: u32,
}

impl Network {
    /// A network of this id, with everything else as if it were not written.
    pub fn new(id: impl Into<String>) -> Network {
        Network {
            id: id.into(),
            mtu: 1500,
            ageing_seconds: 300,
            fdb_limit: 65536,
            fdb_limit_per_port: 8192,
            anti_spoof: true,
            reserved_groups: ReservedMask::VM_DEFAULT,
            storm: Storm::DEFAULT,
            probe_seconds: 1,
            dampening_seconds: 60,
        }
    }
}

/// One virtual machine or container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vm {
    /// Neutron's `device_id`.
    pub id: String,
    /// What it may send to everybody by all its ports on a network together, where that is not as the network has it.
    pub storm: Storm,
    /// Whether its ports on one network may use one source in turns, as some bonds do.
    pub share_mac: bool,
    /// Whether what one of its ports floods does not reach its other ports on the same network.
    pub sibling_split_horizon: bool,
    /// In the order in which the VM sees them; any number of them may be on one network.
    pub ports: Vec<Port>,
}

/// What holds for all ports of a VM together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct VmSettings {
    /// [`Vm::storm`].
    pub storm: Storm,
    /// [`Vm::share_mac`].
    pub share_mac: bool,
    /// [`Vm::sibling_split_horizon`].
    pub sibling_split_horizon: bool,
}

impl VmSettings {
    /// A VM of which this is said.
    pub fn vm(self, id: String, ports: Vec<Port>) -> Vm {
        let VmSettings { storm, share_mac, sibling_split_horizon } = self;
        Vm { id, storm, share_mac, sibling_split_horizon, ports }
    }
}

impl Vm {
    /// Whether something is said of it besides which ports it has.
    pub fn has_settings(&self) -> bool {
        self.settings() != VmSettings::default()
    }

    /// What is said of it besides which ports it has.
    pub fn settings(&self) -> VmSettings {
        let Vm { id: _, storm, share_mac, sibling_split_horizon, ports: _ } = self;
        let (storm, share_mac, sibling_split_horizon) = (*storm, *share_mac, *sibling_split_horizon);
        VmSettings { storm, share_mac, sibling_split_horizon }
    }
}

/// One virtual interface.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Unique in the whole configuration.
    pub port_id: String,
    /// The [`Network::id`] it is on.
    pub network_id: String,
    /// The address of the guest's interface: a station, unique on its network.
    pub mac: Mac,
    /// Allowed with its own address, where port security looks at them at all.
    pub fixed_ips: Vec<IpAddr>,
    /// For information.
    pub ip_allocation: IpAllocation,
    /// Which sources the guest may use.
    pub port_security: PortSecurity,
    /// Further sources that the guest may use. Empty if there is no security.
    pub allowed_address_pairs: Vec<AddressPair>,
    /// Whether it gets frames for stations that nobody knows. `Suppress` only where no other port may
    /// use its address.
    pub unknown_unicast: UnknownUnicast,
    /// Whether it gets a copy of every frame that is forwarded on its network.
    pub promiscuous: bool,
    /// Whether sources are learned behind it.
    pub mac_learning: bool,
    /// Learned stations at most; `None`: as its network has it, and the oldest makes room.
    pub mac_limit: Option<MacLimit>,
    /// What it may send to everybody, where that is not as its network has it.
    pub storm: Storm,
    /// Since when its addresses are pinned to it.
    pub activation: Activation,
    /// `false`: no frame passes in either direction.
    pub admin_state_up: bool,
    /// By what its frames come and go.
    pub attachment: PortAttachment,
}

/// By what the frames of a port come and go.
#[derive(Debug, Clone, PartialEq)]
pub enum PortAttachment {
    /// By a device of its own.
    Device(Device),
    /// By that of another port.
    Parent(Subport),
}

/// How a subport is told apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subport {
    /// The port by whose device its frames come and go: of the same VM, and no subport itself.
    pub parent: String,
    /// The tag that its frames have there; no two subports of one parent have the same.
    pub vlan: Vid,
}

impl Port {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.port_id
    }

    /// Its device, unless it is a subport.
    pub fn device(&self) -> Option<&Device> {
        match &self.attachment {
            PortAttachment::Device(device) => Some(device),
            PortAttachment::Parent(_) => None,
        }
    }

    /// How it is told apart from its parent and others, if it is a subport.
    pub fn subport(&self) -> Option<&Subport> {
        match &self.attachment {
            PortAttachment::Device(_) => None,
            PortAttachment::Parent(subport) => Some(subport),
        }
    }
}

/// A device to the outside that carries several networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// Unique among uplinks and ports.
    pub id: String,
    /// Of the two uplinks of one group, the first one carries the frames as long as it can.
    pub group: Option<String>,
    /// At least one, each once. Two uplinks of one group have the same.
    pub networks: Vec<UplinkNetwork>,
    /// What may come in by it to everybody, on each network. Of all classes and of copies something is said.
    pub storm: Storm,
    /// `false`: no frame passes in either direction.
    pub admin_state_up: bool,
    /// What the uplink stands on.
    pub device: Device,
}

impl Uplink {
    /// Whether `other` carries the same networks under the same tags.
    pub fn carries_same_as(&self, other: &Uplink) -> bool {
        self.networks.len() == other.networks.len() && self.networks.iter().all(|of| other.networks.contains(of))
    }
}

/// A network on an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkNetwork {
    /// The [`Network::id`].
    pub network_id: String,
    /// The tag of its frames; `None`: they are untagged.
    pub vlan: Option<Vid>,
}

/// What a port or an uplink stands on.
#[derive(Debug, Clone, PartialEq)]
pub enum Device {
    /// A tap whose file descriptor the switch holds.
    Tap(Tap),
    /// AF_XDP on a netdev that others own.
    Xdp(Xdp),
    /// AF_PACKET on a netdev that others own.
    Packet(Packet),
}

impl Device {
    /// Each kind in its word.
    pub const KINDS: &'static [&'static str] = &["tap", "xdp", "packet"];

    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Device::Tap(_) => "tap",
            Device::Xdp(_) => "xdp",
            Device::Packet(_) => "packet",
        }
    }

    /// The name of its netdev.
    pub fn name(&self) -> &str {
        match self {
            Device::Tap(tap) => &tap.name,
            Device::Xdp(xdp) => &xdp.name,
            Device::Packet(packet) => &packet.name,
        }
    }

    /// Where its netdev stands: a name under /run/netns, or an absolute path. `None`: where the
    /// switch runs.
    pub fn netns(&self) -> Option<&str> {
        match self {
            Device::Tap(tap) => tap.netns.as_deref(),
            Device::Xdp(xdp) => xdp.netns.as_deref(),
            Device::Packet(packet) => packet.netns.as_deref(),
        }
    }

    /// What tells one netdev from another: its namespace by path, and its name.
    pub fn netdev(&self) -> (String, &str) {
        let netns = self.netns().unwrap_or_default();
        let path = match netns.strip_prefix("/var/run/netns/") {
            Some(name) => format!("/run/netns/{name}"),
            None if netns.is_empty() || netns.starts_with('/') => netns.to_string(),
            None => format!("/run/netns/{netns}"),
        };
        (path, self.name())
    }
}

/// A tap, made if it is not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Tap {
    /// Of the netdev: one that the kernel takes.
    pub name: String,
    /// Where the netdev stands: a name under /run/netns, or an absolute path. `None`: where the
    /// switch runs.
    pub netns: Option<String>,
    /// Queue pairs.
    pub queues: u16,
    /// Whether open checksums and super-frames pass.
    pub offloads: bool,
    /// Whether the netdev outlives the daemon.
    pub persist: bool,
}

/// AF_XDP on a netdev that others make.
#[derive(Debug, Clone, PartialEq)]
pub struct Xdp {
    /// Of the netdev.
    pub name: String,
    /// As for a tap.
    pub netns: Option<String>,
    /// Receive queues to bind, from the first on. `None`: all that the netdev has.
    pub queues: Option<u16>,
    /// Which way frames may take.
    pub mode: xdp::Mode,
    /// Whether an XDP program that others have attached by netlink is taken off.
    pub replace_xdp_program: bool,
}

/// AF_PACKET on a netdev that others make.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// Of the netdev.
    pub name: String,
    /// As for a tap.
    pub netns: Option<String>,
    /// Whether open checksums and super-frames pass.
    pub offloads: bool,
    /// Whether what the netdev receives is kept from the network stack of its namespace.
    pub isolate: bool,
}

/// What a worker does when nothing is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// It spins for a while, then sleeps until a device has something.
    Adaptive,
    /// It spins.
    Busy,
}

impl Named for Poll {
    const NAMES: &'static [(&'static str, Poll)] = &[("adaptive", Poll::Adaptive), ("busy", Poll::Busy)];
}

impl Named for xdp::Mode {
    const NAMES: &'static [(&'static str, xdp::Mode)] = &[
        ("auto", xdp::Mode::Auto),
        ("zero-copy", xdp::Mode::ZeroCopy),
        ("copy", xdp::Mode::Copy),
        ("generic", xdp::Mode::Generic),
    ];
}

/// How Neutron came to the addresses of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpAllocation {
    /// When the port was made.
    Immediate,
    /// When its host was known.
    Deferred,
    /// Not at all: none were wanted.
    None,
}

impl Named for IpAllocation {
    const NAMES: &'static [(&'static str, IpAllocation)] =
        &[("immediate", IpAllocation::Immediate), ("deferred", IpAllocation::Deferred), ("none", IpAllocation::None)];
}
