//! Endpoints: ports and uplinks with their ids in the forwarding tables and their device settings.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::control::compile::ids::IdAllocator;
use crate::control::compile::settings::{fill, settings, uplink_device};
use crate::control::compile::uplink_groups::uplink_groups;
use crate::control::config::{Config, Port, PortAttachment, Shared, Subport, Vm};
use crate::device::Settings;
use crate::switch::{MAX_NETWORKS, MAX_PORTS, NetworkId, PortId, VmId};
use crate::wire::Vid;

/// A port or uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Id in the configuration.
    pub name: String,
    /// Id in the forwarding tables, and of its queues.
    pub id: PortId,
    /// Attachment.
    pub attachment: EndpointAttachment,
    /// Reference into the configuration.
    pub config_ref: ConfigRef,
}

/// Attachment of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointAttachment {
    /// A device of its own.
    Device(Settings),
    /// A subport: its parent's device.
    Parent {
        /// Index of the parent.
        endpoint: usize,
        /// Position among the ports of its VM.
        position: usize,
        /// VLAN id.
        vlan: Vid,
    },
}

/// Reference into the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigRef {
    /// A port.
    Port {
        /// Index of its VM.
        vm: usize,
        /// Position among the ports of its VM.
        position: usize,
        /// Index of its network.
        network: usize,
        /// Id of its network in the forwarding tables.
        network_id: NetworkId,
        /// Id of its VM in the forwarding tables.
        owner: VmId,
    },
    /// An uplink.
    Uplink {
        /// Index of the uplink.
        index: usize,
    },
}

/// Configured names of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels<'c> {
    /// Id of the port or uplink.
    pub id: &'c str,
    /// Its VM, if it is a port.
    pub vm: Option<&'c str>,
    /// Its network, if it is a port.
    pub network: Option<&'c str>,
    /// Administrative state; for a subport, combined with its parent's.
    pub admin_up: bool,
}

/// The identity of an endpoint: if any of it changes, it is another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A port with a device.
    Port,
    /// A subport.
    Subport,
    /// An uplink.
    Uplink,
}

impl Endpoint {
    /// Key, unique among all endpoints of any configuration.
    pub fn key(&self) -> (Kind, &str) {
        let kind = match (&self.config_ref, &self.attachment) {
            (ConfigRef::Uplink { .. }, _) => Kind::Uplink,
            (_, EndpointAttachment::Parent { .. }) => Kind::Subport,
            (_, EndpointAttachment::Device(_)) => Kind::Port,
        };
        (kind, &self.name)
    }

    /// Device settings, unless it is a subport.
    pub fn device(&self) -> Option<&Settings> {
        match &self.attachment {
            EndpointAttachment::Device(device) => Some(device),
            EndpointAttachment::Parent { .. } => None,
        }
    }

    /// Index of its parent, if it is a subport.
    pub fn parent(&self) -> Option<usize> {
        match self.attachment {
            EndpointAttachment::Device(_) => None,
            EndpointAttachment::Parent { endpoint, .. } => Some(endpoint),
        }
    }

    /// Its VM, which has not changed, has this index now, and the first of its ports this one before and now.
    pub fn relocate(&mut self, to: usize, (first_before, first): (usize, usize)) {
        if let ConfigRef::Port { vm, .. } = &mut self.config_ref {
            *vm = to;
        }
        if let EndpointAttachment::Parent { endpoint, .. } = &mut self.attachment {
            *endpoint = *endpoint - first_before + first;
        }
    }

    /// Whether it is an uplink.
    pub fn is_uplink(&self) -> bool {
        matches!(self.config_ref, ConfigRef::Uplink { .. })
    }

    /// Names in its configuration.
    pub fn labels<'c>(&self, config: &'c Config) -> Labels<'c> {
        match self.config_ref {
            ConfigRef::Port { vm, position, .. } => {
                let vm = &config.vms[vm];
                let port = &vm.ports[position];
                let of_parent = match self.attachment {
                    EndpointAttachment::Parent { position, .. } => vm.ports[position].admin_state_up,
                    EndpointAttachment::Device(_) => true,
                };
                let (vm, network) = (Some(vm.id.as_str()), Some(port.network_id.as_str()));
                Labels { id: &port.port_id, vm, network, admin_up: port.admin_state_up && of_parent }
            }
            ConfigRef::Uplink { index } => {
                let uplink = &config.uplinks[index];
                Labels { id: &uplink.id, vm: None, network: None, admin_up: uplink.admin_state_up }
            }
        }
    }
}

/// `port "p1"`, `uplink "up0"`
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_uplink() { "uplink" } else { "port" };
        write!(f, "{what} {:?}", self.name)
    }
}

/// The configuration exceeds the capacity of the switch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what} exceed the maximum of a switch, {most}; spread them over several hosts")]
pub struct TooMany {
    what: &'static str,
    count: usize,
    most: usize,
}

/// Checks the capacity.
pub fn check_capacity(config: &Config) -> Result<(), TooMany> {
    let check = |what, count, most| if count > most { Err(TooMany { what, count, most }) } else { Ok(()) };
    check("networks", config.networks.len(), MAX_NETWORKS)?;
    // Each network of an uplink group takes a port id, and each uplink too.
    let outside: usize =
        uplink_groups(config).iter().map(|group| group.networks(config).len() + group.members.len()).sum();
    let what = if outside == 0 { "ports" } else { "ports and networks on uplinks" };
    check(what, config.ports().count() + outside, MAX_PORTS)
}

/// Makes the endpoints of a configuration that `ids` follows.
pub struct Layout<'c> {
    config: &'c Config,
    ids: &'c IdAllocator,
    fill: u32,
    networks: HashMap<&'c str, usize>,
    /// Index of the first port of each VM.
    firsts: Vec<usize>,
}

impl<'c> Layout<'c> {
    /// Of this configuration.
    pub fn new(config: &'c Config, ids: &'c IdAllocator) -> Layout<'c> {
        let networks = config.networks.iter().enumerate().map(|(index, network)| (network.id.as_str(), index));
        Layout { config, ids, fill: fill(config), networks: networks.collect(), firsts: firsts(config) }
    }

    /// Ports of a VM, in their order. Validation ensures that networks and parents exist; ids follow the configuration.
    pub fn of_vm(&self, vm: usize) -> impl Iterator<Item = Endpoint> {
        let of = &self.config.vms[vm];
        // Parents are in the same VM.
        let parents: HashSet<&str> = of.ports.iter().filter_map(|port| Some(port.subport()?.parent.as_str())).collect();
        let port = move |(position, port): (usize, &Port)| {
            let network = *self.networks.get(port.network_id.as_str())?;
            let mtu = self.config.networks[network].mtu;
            Some(Endpoint {
                name: port.port_id.clone(),
                id: self.ids.port(&port.port_id)?,
                attachment: match &port.attachment {
                    PortAttachment::Device(device) => {
                        let demux = parents.contains(port.port_id.as_str());
                        EndpointAttachment::Device(settings(device, &port.port_id, port.mac, mtu, self.fill, demux))
                    }
                    PortAttachment::Parent(Subport { parent, vlan }) => {
                        let position = of.ports.iter().position(|port| port.port_id == *parent)?;
                        EndpointAttachment::Parent { endpoint: self.firsts[vm] + position, position, vlan: *vlan }
                    }
                },
                config_ref: ConfigRef::Port {
                    vm,
                    position,
                    network,
                    network_id: self.ids.network(&port.network_id)?,
                    owner: self.ids.vm(&of.id)?,
                },
            })
        };
        of.ports.iter().enumerate().filter_map(port)
    }

    /// Uplinks, in their order.
    pub fn uplinks(&self) -> impl Iterator<Item = Endpoint> {
        self.config.uplinks.iter().enumerate().filter_map(|(index, uplink)| {
            Some(Endpoint {
                name: uplink.id.clone(),
                id: self.ids.trunk(&uplink.id)?,
                attachment: EndpointAttachment::Device(uplink_device(uplink, self.config, self.fill)),
                config_ref: ConfigRef::Uplink { index },
            })
        })
    }
}

/// Index of the first port of each VM: ports precede uplinks in order, so that the index of each is known.
pub fn firsts(config: &Config) -> Vec<usize> {
    let first = |next: &mut usize, vm: &Shared<Vm>| {
        *next += vm.ports.len();
        Some(*next - vm.ports.len())
    };
    config.vms.iter().scan(0, first).collect()
}

/// All endpoints in order of the configuration that `ids` follows: ports, then uplinks.
pub fn endpoints(config: &Config, ids: &IdAllocator) -> Vec<Endpoint> {
    let layout = Layout::new(config, ids);
    (0..config.vms.len()).flat_map(|vm| layout.of_vm(vm)).chain(layout.uplinks()).collect()
}
