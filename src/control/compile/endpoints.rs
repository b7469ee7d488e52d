//! Ports and uplinks with their places in the tables of the switch, and the device that each asks for.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::control::compile::ids::IdAllocator;
use crate::control::compile::settings::{fill, settings, uplink_device};
use crate::control::compile::uplink_groups::uplink_groups;
use crate::control::config::{Config, PortAttachment, Subport};
use crate::device::Settings;
use crate::switch::{MAX_NETWORKS, MAX_PORTS, NetworkId, PortId, VmId};
use crate::wire::Vid;

/// Whoever frames come from and go to, with its place in the switch: a port or an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id in the configuration.
    pub name: String,
    /// Its place in the tables of the switch; its queues are known by it.
    pub id: PortId,
    /// By what its frames come and go.
    pub attachment: EndpointAttachment,
    /// Where it stands in the configuration.
    pub config_ref: ConfigRef,
}

/// By what the frames of a port or an uplink come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointAttachment {
    /// By a device of its own.
    Device(Settings),
    /// It is a subport: by that of its parent.
    Parent {
        /// The parent, as an index into all endpoints.
        endpoint: usize,
        /// Its place among the ports of its VM.
        position: usize,
        /// The tag of its frames there.
        vlan: Vid,
    },
}

/// Where an endpoint stands in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigRef {
    /// It is a port.
    Port {
        /// Its VM, as an index into the configuration.
        vm: usize,
        /// Its place among the ports of its VM.
        position: usize,
        /// Its network, as an index into the configuration.
        network: usize,
        /// The place of its network in the switch.
        network_id: NetworkId,
        /// What it has in common with the other ports of its VM.
        owner: VmId,
    },
    /// It is an uplink.
    Uplink {
        /// The uplink, as an index into the configuration.
        index: usize,
    },
}

/// What the configuration calls an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels<'c> {
    /// The port or uplink.
    pub id: &'c str,
    /// Its VM, if it is a port.
    pub vm: Option<&'c str>,
    /// Its network, if it is a port.
    pub network: Option<&'c str>,
    /// Whether it is wanted up; and, of a subport, its parent as well.
    pub admin_up: bool,
}

/// The identity of an endpoint: if any of it changes, it is another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A port with a device.
    Port,
    /// A port by the device of another.
    Subport,
    /// An uplink.
    Uplink,
}

impl Endpoint {
    /// Its key, unique among all endpoints in every configuration.
    pub fn key(&self) -> (Kind, &str) {
        let kind = match (&self.config_ref, &self.attachment) {
            (ConfigRef::Uplink { .. }, _) => Kind::Uplink,
            (_, EndpointAttachment::Parent { .. }) => Kind::Subport,
            (_, EndpointAttachment::Device(_)) => Kind::Port,
        };
        (kind, &self.name)
    }

    /// Its device, unless it is a subport.
    pub fn device(&self) -> Option<&Settings> {
        match &self.attachment {
            EndpointAttachment::Device(device) => Some(device),
            EndpointAttachment::Parent { .. } => None,
        }
    }

    /// Its parent, as an index into all endpoints, if it is a subport.
    pub fn parent(&self) -> Option<usize> {
        match self.attachment {
            EndpointAttachment::Device(_) => None,
            EndpointAttachment::Parent { endpoint, .. } => Some(endpoint),
        }
    }

    /// Whether it is an uplink.
    pub fn is_uplink(&self) -> bool {
        matches!(self.config_ref, ConfigRef::Uplink { .. })
    }

    /// What the configuration that it stands in calls it.
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

/// More than a switch can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what} are more than one switch can hold ({most}); spread them over several hosts")]
pub struct TooMany {
    what: &'static str,
    count: usize,
    most: usize,
}

/// Whether a switch can hold so much.
pub fn check_capacity(config: &Config) -> Result<(), TooMany> {
    let check = |what, count, most| if count > most { Err(TooMany { what, count, most }) } else { Ok(()) };
    check("networks", config.networks.len(), MAX_NETWORKS)?;
    // A network on a line to the outside takes the place of a port, and so does each uplink.
    let outside: usize =
        uplink_groups(config).iter().map(|group| group.networks(config).len() + group.members.len()).sum();
    let what = if outside == 0 { "ports" } else { "ports and networks on uplinks" };
    check(what, config.ports().count() + outside, MAX_PORTS)
}

/// Everybody with their places, in the order of the configuration that `ids` follows: the ports,
/// then the uplinks.
pub fn endpoints(config: &Config, ids: &IdAllocator) -> Vec<Endpoint> {
    let fill = fill(config);
    let parents: HashSet<&str> = config.ports().filter_map(|(_, port)| Some(port.subport()?.parent.as_str())).collect();
    let networks: HashMap<&str, usize> =
        config.networks.iter().enumerate().map(|(index, network)| (network.id.as_str(), index)).collect();
    // All ports stand before the uplinks, in order: so it is known where each comes to stand.
    let firsts: Vec<usize> = config
        .vms
        .iter()
        .scan(0, |next, vm| {
            *next += vm.ports.len();
            Some(*next - vm.ports.len())
        })
        .collect();
    let ports = config.vms.iter().enumerate().flat_map(|(vm, of)| (0..of.ports.len()).map(move |at| (vm, at)));
    // Admission has seen to it that networks and parents are there, and places follow the configuration.
    let ports = ports.filter_map(|(vm, position)| {
        let port = &config.vms[vm].ports[position];
        let network = *networks.get(port.network_id.as_str())?;
        Some(Endpoint {
            name: port.port_id.clone(),
            id: ids.port(&port.port_id)?,
            attachment: match &port.attachment {
                PortAttachment::Device(device) => {
                    let demux = parents.contains(port.port_id.as_str());
                    EndpointAttachment::Device(settings(
                        device,
                        &port.port_id,
                        port.mac,
                        config.networks[network].mtu,
                        fill,
                        demux,
                    ))
                }
                PortAttachment::Parent(Subport { parent, vlan }) => {
                    let position = config.vms[vm].ports.iter().position(|port| port.port_id == *parent)?;
                    EndpointAttachment::Parent { endpoint: firsts[vm] + position, position, vlan: *vlan }
                }
            },
            config_ref: ConfigRef::Port {
                vm,
                position,
                network,
                network_id: ids.network(&port.network_id)?,
                owner: ids.vm(&config.vms[vm].id)?,
            },
        })
    });
    let uplinks = config.uplinks.iter().enumerate().filter_map(|(index, uplink)| {
        Some(Endpoint {
            name: uplink.id.clone(),
            id: ids.trunk(&uplink.id)?,
            attachment: EndpointAttachment::Device(uplink_device(uplink, config, fill)),
            config_ref: ConfigRef::Uplink { index },
        })
    });
    ports.chain(uplinks).collect()
}
