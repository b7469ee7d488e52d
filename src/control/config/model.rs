//! Validated configuration with all defaults.
//!
//! [`super::lower`] parses raw tables to these types, [`super::serialize`] is its inverse.

mod device;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

pub use self::device::{Device, Packet, Tap, Xdp};
use super::named::Named;
use super::policy::{Activation, AddressPair, Lifetime, PortSecurity, UnknownUnicast};
use super::shared::{Shared, share};
use super::storm::Storm;
use crate::switch::{MacLimit, ReservedMask};
use crate::wire::{Mac, Vid};

/// A configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// Settings of the process.
    pub switch: SwitchSettings,
    /// Networks with unique ids.
    pub networks: Vec<Network>,
    /// VMs with unique ids.
    pub vms: Vec<Shared<Vm>>,
    /// Uplinks with ids unique among uplinks and ports.
    pub uplinks: Vec<Uplink>,
}

impl Config {
    /// All ports with their VMs, in configuration order.
    pub fn ports(&self) -> impl Iterator<Item = (&Vm, &Port)> {
        self.vms.iter().flat_map(|vm| vm.ports.iter().map(move |port| (&**vm, port)))
    }

    /// Orders the ports of each VM by their positions.
    pub fn order_ports(&mut self) {
        self.vms.iter_mut().for_each(|vm| vm.order_ports());
    }

    /// Shares the VMs that are equal to one of the same id in `other`, so that comparing them costs nothing.
    pub fn share_with(&mut self, other: &Config) {
        share(&mut self.vms, &other.vms, |vm| &vm.id);
    }

    /// All devices: of ports, then of uplinks.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.ports().filter_map(|(_, port)| port.device()).chain(self.uplinks.iter().map(|uplink| &uplink.device))
    }
}

impl Config {
    fn storm_on(&self, network_id: &str) -> Storm {
        self.networks.iter().find(|network| network.id == network_id).map_or(Storm::DEFAULT, |network| network.storm)
    }

    /// Storm limits of a port: its own, completed from its network's.
    pub fn storm_of_port(&self, port: &Port) -> Storm {
        port.storm.over(self.storm_on(&port.network_id))
    }

    /// Storm limits of a VM on a network: its own, completed from the network's.
    pub fn storm_of_vm(&self, vm: &Vm, network: &Network) -> Storm {
        vm.storm.over(network.storm)
    }

    /// Storm limits of an uplink on each of its networks.
    pub fn storm_of_uplink(&self, uplink: &Uplink) -> Storm {
        uplink.storm.over(Storm::OFF)
    }
}

/// Process settings, fixed at start.
#[derive(Debug, Clone, PartialEq)]
pub struct SwitchSettings {
    /// Cores, one worker each. Empty: one worker, on the last core that the process may use.
    pub cores: Vec<usize>,
    /// Path of the API socket.
    pub api: PathBuf,
    /// Users who may change the switch by the API; `None`: each that can connect.
    pub api_writers: Option<Writers>,
    /// Path of the socket for reads, if any.
    pub api_read: Option<PathBuf>,
    /// Path of the state file; `None`: changes are not stored.
    pub state: Option<PathBuf>,
    /// Address of the listener for metrics and health, if any.
    pub metrics: Option<SocketAddr>,
    /// Address of the listener for reads, if any.
    pub pages: Option<SocketAddr>,
    /// Names of the switch by which clients of `pages` may call it.
    pub pages_hosts: Vec<String>,
    /// File with the key that authenticates loop probes to other hosts, if any.
    pub probe_key: Option<PathBuf>,
    /// Poll mode.
    pub poll: Poll,
    /// Slots of the frame pool.
    pub frames: u32,
    /// FDB capacity of each worker, in stations.
    pub stations: u32,
}

impl Default for SwitchSettings {
    fn default() -> SwitchSettings {
        SwitchSettings {
            cores: Vec::new(),
            api: PathBuf::from("/run/vifswitch/api.sock"),
            api_writers: None,
            api_read: None,
            state: Some(PathBuf::from("/var/lib/vifswitch/state.db")),
            metrics: None,
            pages: None,
            pages_hosts: Vec::new(),
            probe_key: None,
            poll: Poll::Adaptive,
            frames: 65536,
            stations: 262_144,
        }
    }
}

/// Users who may change the switch by the API, beside root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writers {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, primary or supplementary.
    pub gids: Vec<u32>,
}

/// A network: one broadcast domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Id; a UUID in OpenStack.
    pub id: String,
    /// MTU in bytes.
    pub mtu: u16,
    /// Ageing time in seconds.
    pub ageing_seconds: u32,
    /// Maximum learned stations.
    pub fdb_limit: u32,
    /// Maximum learned stations per port.
    pub fdb_limit_per_port: u32,
    /// Drop frames from a source that is pinned at another VM's port.
    pub anti_spoof: bool,
    /// Reserved group addresses forwarded between its VMs.
    pub reserved_groups: ReservedMask,
    /// Storm limits of each port, and of each VM by all its ports. All classes and copies are set.
    pub storm: Storm,
    /// Interval of loop probes of a port in seconds: 1 to 10.
    pub probe_seconds: u32,
    /// Dampening time of a flapping station in seconds: 30 to 3600.
    pub dampening_seconds: u32,
    /// Label of who manages it.
    pub owner: Option<String>,
}

impl Network {
    /// A network with this id and defaults.
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
            owner: None,
        }
    }
}

/// A virtual machine or container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vm {
    /// Id, Neutron's `device_id`.
    pub id: String,
    /// Storm limits of all its ports on a network together; unset ones are inherited from the network.
    pub storm: Storm,
    /// Its ports on one network may alternately use one source, as some bonds do.
    pub share_mac: bool,
    /// Frames flooded by one of its ports do not reach its other ports on the same network.
    pub sibling_split_horizon: bool,
    /// Label of who manages it.
    pub owner: Option<String>,
    /// Ports in the VM's order; several may be on one network.
    pub ports: Vec<Port>,
}

/// Settings of a VM.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VmSettings {
    /// [`Vm::storm`].
    pub storm: Storm,
    /// [`Vm::share_mac`].
    pub share_mac: bool,
    /// [`Vm::sibling_split_horizon`].
    pub sibling_split_horizon: bool,
    /// [`Vm::owner`].
    pub owner: Option<String>,
}

impl VmSettings {
    /// A VM with these settings.
    pub fn vm(self, id: String, ports: Vec<Port>) -> Vm {
        let VmSettings { storm, share_mac, sibling_split_horizon, owner } = self;
        Vm { id, storm, share_mac, sibling_split_horizon, owner, ports }
    }
}

impl Vm {
    /// Whether any setting differs from the default.
    pub fn has_settings(&self) -> bool {
        self.settings() != VmSettings::default()
    }

    /// Its settings.
    pub fn settings(&self) -> VmSettings {
        let Vm { id: _, storm, share_mac, sibling_split_horizon, owner, ports: _ } = self;
        let (storm, share_mac, sibling_split_horizon) = (*storm, *share_mac, *sibling_split_horizon);
        VmSettings { storm, share_mac, sibling_split_horizon, owner: owner.clone() }
    }

    /// Sorts the ports with positions among themselves; the others keep their places.
    pub fn order_ports(&mut self) {
        let places: Vec<usize> = (0..self.ports.len()).filter(|&place| self.ports[place].position.is_some()).collect();
        if places.is_sorted_by_key(|&place| self.ports[place].position) {
            return;
        }
        let mut sorted: Vec<Port> = places.iter().map(|&place| self.ports[place].clone()).collect();
        sorted.sort_by_key(|port| port.position);
        for (place, port) in places.into_iter().zip(sorted) {
            self.ports[place] = port;
        }
    }

    /// Adds a port: at its position, but behind all ports with lower or equal positions and before those with greater
    /// ones; without a position behind all ports.
    pub fn add_port(&mut self, port: Port) {
        let place = port.position.map_or(self.ports.len(), |position| {
            let is_before = |of: &Port| of.position.is_some_and(|of| of <= position);
            let first = self.ports.iter().rposition(is_before).map_or(0, |place| place + 1);
            let is_behind = |of: &Port| of.position.is_some_and(|of| of > position);
            let last = self.ports.iter().position(is_behind).unwrap_or(self.ports.len());
            usize::from(position).clamp(first.min(last), last)
        });
        self.ports.insert(place, port);
    }

    /// Replaces the port at this place: there, or at its position if that is another one now.
    pub fn replace_port(&mut self, place: usize, port: Port) {
        if port.position.is_some() && port.position != self.ports[place].position {
            self.ports.remove(place);
            self.add_port(port);
        } else {
            self.ports[place] = port;
        }
    }
}

/// A port: one virtual interface.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Id, unique in the configuration.
    pub port_id: String,
    /// Id of its network.
    pub network_id: String,
    /// MAC address of the guest's interface: unicast, unique on its network.
    pub mac: Mac,
    /// IP addresses allowed with its MAC address, for `mac+ip`.
    pub fixed_ips: Vec<IpAddr>,
    /// IP allocation, for information only.
    pub ip_allocation: IpAllocation,
    /// Port security.
    pub port_security: PortSecurity,
    /// Further allowed sources. Empty without port security.
    pub allowed_address_pairs: Vec<AddressPair>,
    /// Flooding of unknown unicast. `Suppress` only if no other port may use its address.
    pub unknown_unicast: UnknownUnicast,
    /// Gets a copy of each frame forwarded on its network.
    pub promiscuous: bool,
    /// Sources are learned at the port.
    pub mac_learning: bool,
    /// MAC limit; `None`: the network's, with eviction of the oldest.
    pub mac_limit: Option<MacLimit>,
    /// Storm limits; unset ones are inherited from the network.
    pub storm: Storm,
    /// When its addresses are pinned.
    pub activation: Activation,
    /// When it ends by itself. `Netns` only with a device in a network namespace of its own.
    pub lifetime: Lifetime,
    /// Administrative state; `false`: no frame passes in either direction.
    pub admin_state_up: bool,
    /// Device, or parent of a subport.
    pub attachment: PortAttachment,
    /// Place among the VM's ports, from 0; `None`: behind those that were there when it came.
    pub position: Option<u16>,
    /// Label of who manages it.
    pub owner: Option<String>,
}

/// Attachment of a port.
#[derive(Debug, Clone, PartialEq)]
pub enum PortAttachment {
    /// A device of its own.
    Device(Device),
    /// The device of a parent.
    Parent(Subport),
}

/// Attachment of a subport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subport {
    /// Parent: a port of the same VM that is no subport.
    pub parent: String,
    /// VLAN id on the parent, unique there.
    pub vlan: Vid,
}

impl Port {
    /// Id.
    pub fn id(&self) -> &str {
        &self.port_id
    }

    /// Device, unless it is a subport.
    pub fn device(&self) -> Option<&Device> {
        match &self.attachment {
            PortAttachment::Device(device) => Some(device),
            PortAttachment::Parent(_) => None,
        }
    }

    /// Network namespace with which it ends, as its device names it; `None`: it does not end by itself.
    pub fn ends_with(&self) -> Option<&str> {
        self.device().filter(|_| self.lifetime == Lifetime::Netns)?.netns()
    }

    /// Attachment, if it is a subport.
    pub fn subport(&self) -> Option<&Subport> {
        match &self.attachment {
            PortAttachment::Device(_) => None,
            PortAttachment::Parent(subport) => Some(subport),
        }
    }
}

/// An uplink: a device to the outside for several networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// Id, unique among uplinks and ports.
    pub id: String,
    /// Group. Of its two uplinks, the first one is preferred.
    pub group: Option<String>,
    /// Networks, at least one, each once. Equal for both uplinks of a group.
    pub networks: Vec<UplinkNetwork>,
    /// Storm limits of received traffic on each network. All classes and copies are set.
    pub storm: Storm,
    /// Administrative state; `false`: no frame passes in either direction.
    pub admin_state_up: bool,
    /// Device.
    pub device: Device,
    /// Label of who manages it.
    pub owner: Option<String>,
}

impl Uplink {
    /// Whether `other` has the same networks with the same VLAN ids.
    pub fn carries_same_as(&self, other: &Uplink) -> bool {
        self.networks.len() == other.networks.len() && self.networks.iter().all(|of| other.networks.contains(of))
    }
}

/// A network on an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkNetwork {
    /// Network id.
    pub network_id: String,
    /// VLAN id; `None`: untagged.
    pub vlan: Option<Vid>,
}

/// Poll mode: behaviour of an idle worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// Polls for a while, then sleeps until a device is readable.
    Adaptive,
    /// Polls always.
    Busy,
}

impl Named for Poll {
    const NAMES: &'static [(&'static str, Poll)] = &[("adaptive", Poll::Adaptive), ("busy", Poll::Busy)];
}

/// Neutron's IP allocation of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpAllocation {
    /// At creation of the port.
    Immediate,
    /// When its host was known.
    Deferred,
    /// None requested.
    None,
}

impl IpAllocation {
    /// That of a port whose configuration does not say.
    pub fn of_addresses(is_addressed: bool) -> IpAllocation {
        if is_addressed { IpAllocation::Immediate } else { IpAllocation::None }
    }
}

impl Named for IpAllocation {
    const NAMES: &'static [(&'static str, IpAllocation)] =
        &[("immediate", IpAllocation::Immediate), ("deferred", IpAllocation::Deferred), ("none", IpAllocation::None)];
}
