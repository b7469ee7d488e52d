//! Serialises the model to raw tables, for the API and the store.
//!
//! All keys are present, defaults included, so that the output is complete.

use serde::{Serialize, Serializer};

use super::model::{
    Config, Device, Network, Packet, Port, SwitchSettings, Tap, Uplink, UplinkNetwork, Vm, Writers, Xdp,
};
use super::named::Named;
use super::probe_key::KEY_FILE;
use super::raw;

/// Raw structure, for TOML and JSON.
impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_raw().serialize(serializer)
    }
}

impl Config {
    /// Raw tables; parsing them gives an equal configuration.
    pub fn to_raw(&self) -> raw::Config {
        raw::Config {
            switch: Some(self.switch.to_raw()),
            networks: Some(self.networks.iter().map(Network::to_raw).collect()),
            vms: Some(self.vms.iter().map(|vm| vm.to_raw()).collect()),
            uplinks: Some(self.uplinks.iter().map(Uplink::to_raw).collect()),
        }
    }
}

impl SwitchSettings {
    /// Raw `[switch]`.
    pub fn to_raw(&self) -> raw::Switch {
        raw::Switch {
            // no parsed core exceeds an i64
            cores: Some(self.cores.iter().filter_map(|core| i64::try_from(*core).ok()).collect()),
            api: Some(self.api.to_string_lossy().into_owned()),
            api_writers: self.api_writers.as_ref().map(Writers::to_raw),
            api_read: self.api_read.as_ref().map(|path| path.to_string_lossy().into_owned()),
            state: Some(self.state.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()),
            metrics: self.metrics.map(|address| address.to_string()),
            pages: self.pages.map(|address| address.to_string()),
            pages_hosts: Some(self.pages_hosts.clone()),
            probe_key: self.probe_key.as_ref().map(|path| format!("{KEY_FILE}{}", path.display())),
            poll: Some(self.poll.name().to_string()),
            frames: Some(self.frames.into()),
            stations: Some(self.stations.into()),
        }
    }
}

impl Writers {
    /// Raw `api_writers`.
    pub fn to_raw(&self) -> raw::Writers {
        let ids = |ids: &[u32]| Some(ids.iter().copied().map(i64::from).collect());
        raw::Writers { uids: ids(&self.uids), gids: ids(&self.gids) }
    }
}

impl Network {
    /// Raw `[[networks]]` item.
    pub fn to_raw(&self) -> raw::Network {
        raw::Network {
            id: Some(self.id.clone()),
            mtu: Some(self.mtu.into()),
            ageing_seconds: Some(self.ageing_seconds.into()),
            fdb_limit: Some(self.fdb_limit.into()),
            fdb_limit_per_port: Some(self.fdb_limit_per_port.into()),
            anti_spoof: Some(self.anti_spoof),
            reserved_groups: Some(self.reserved_groups.to_string()),
            storm: self.storm.to_raw(),
            probe_seconds: Some(self.probe_seconds.into()),
            dampening_seconds: Some(self.dampening_seconds.into()),
            owner: self.owner.clone(),
        }
    }
}

impl Vm {
    /// Raw `[[vms]]` item.
    pub fn to_raw(&self) -> raw::Vm {
        raw::Vm {
            id: Some(self.id.clone()),
            storm: self.storm.to_raw(),
            share_mac: Some(self.share_mac),
            sibling_split_horizon: Some(self.sibling_split_horizon),
            owner: self.owner.clone(),
            ports: Some(self.ports.iter().map(Port::to_raw).collect()),
        }
    }
}

impl Port {
    /// Raw `[[vms.ports]]` item.
    pub fn to_raw(&self) -> raw::Port {
        let pairs = self.allowed_address_pairs.iter();
        raw::Port {
            port_id: Some(self.port_id.clone()),
            network_id: Some(self.network_id.clone()),
            mac_address: Some(self.mac.to_string()),
            fixed_ips: Some(self.fixed_ips.iter().map(ToString::to_string).collect()),
            ip_allocation: Some(self.ip_allocation.name().to_string()),
            port_security: Some(self.port_security.name().to_string()),
            // synonym of port_security
            port_security_enabled: None,
            allowed_address_pairs: Some(
                pairs
                    .map(|pair| raw::AddressPair {
                        mac_address: pair.mac.map(|mac| mac.to_string()),
                        ip_address: pair.ip.map(|ip| ip.to_string()),
                    })
                    .collect(),
            ),
            unknown_unicast: Some(self.unknown_unicast.name().to_string()),
            promiscuous: Some(self.promiscuous),
            mac_learning: Some(self.mac_learning),
            mac_limit: self.mac_limit.map(|limit| limit.stations.into()),
            mac_limit_policy: self.mac_limit.map(|limit| limit.policy.name().to_string()),
            storm: self.storm.to_raw(),
            activation: Some(self.activation.name().to_string()),
            lifetime: Some(self.lifetime.name().to_string()),
            admin_state_up: Some(self.admin_state_up),
            parent: self.subport().map(|subport| subport.parent.clone()),
            vlan: self.subport().map(|subport| subport.vlan.get().into()),
            device: self.device().map(Device::to_raw),
            position: self.position.map(i64::from),
            owner: self.owner.clone(),
        }
    }
}

impl Uplink {
    /// Raw `[[uplinks]]` item.
    pub fn to_raw(&self) -> raw::Uplink {
        raw::Uplink {
            id: Some(self.id.clone()),
            group: self.group.clone(),
            networks: Some(self.networks.iter().map(UplinkNetwork::to_raw).collect()),
            storm: self.storm.to_raw(),
            admin_state_up: Some(self.admin_state_up),
            device: Some(self.device.to_raw()),
            owner: self.owner.clone(),
        }
    }
}

impl UplinkNetwork {
    /// Raw item of an uplink's `networks`.
    pub fn to_raw(&self) -> raw::UplinkNetwork {
        raw::UplinkNetwork { network_id: Some(self.network_id.clone()), vlan: self.vlan.map(|vlan| vlan.get().into()) }
    }
}

impl Device {
    /// Raw `device`.
    pub fn to_raw(&self) -> raw::Device {
        let common = raw::Device {
            kind: Some(self.kind().to_string()),
            name: Some(self.name().to_string()),
            netns: self.netns().map(str::to_string),
            ..raw::Device::default()
        };
        match self {
            Device::Tap(Tap { name: _, netns: _, queues, offloads, persist }) => raw::Device {
                queues: Some((*queues).into()),
                offloads: Some(*offloads),
                persist: Some(*persist),
                ..common
            },
            Device::Xdp(Xdp { name: _, netns: _, queues, mode, replace_xdp_program: replaces }) => raw::Device {
                queues: queues.map(i64::from),
                mode: Some(mode.name().to_string()),
                replace_xdp_program: Some(*replaces),
                ..common
            },
            Device::Packet(Packet { name: _, netns: _, offloads, isolate }) => {
                raw::Device { offloads: Some(*offloads), isolate: Some(*isolate), ..common }
            }
        }
    }
}
