//! From as meant back to as written: what the API shows, and what the store keeps.
//!
//! Every key is given, also where it has its default: what is shown then needs no manual beside it.

use serde::{Serialize, Serializer};

use super::meant::{Config, Device, Named, Network, Port, SwitchSettings, Tap, Vm};
use super::written;

/// The written shape of the configuration, in TOML as in JSON.
impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_written().serialize(serializer)
    }
}

impl Config {
    /// The tables that mean this; reading them again gives an equal configuration.
    pub fn to_written(&self) -> written::Config {
        written::Config {
            switch: Some(self.switch.to_written()),
            networks: Some(self.networks.iter().map(Network::to_written).collect()),
            vms: Some(self.vms.iter().map(Vm::to_written).collect()),
        }
    }
}

impl SwitchSettings {
    /// `[switch]` that means this.
    pub fn to_written(&self) -> written::Switch {
        written::Switch {
            // no configuration read from a text has a core beyond an i64
            cores: Some(self.cores.iter().filter_map(|core| i64::try_from(*core).ok()).collect()),
            api: Some(self.api.to_string_lossy().into_owned()),
            state: Some(self.state.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()),
            metrics: self.metrics.map(|address| address.to_string()),
            poll: Some(self.poll.name().to_string()),
            frames: Some(self.frames.into()),
            stations: Some(self.stations.into()),
        }
    }
}

impl Network {
    /// One of `[[networks]]` that means this.
    pub fn to_written(&self) -> written::Network {
        written::Network {
            id: Some(self.id.clone()),
            mtu: Some(self.mtu.into()),
            ageing_seconds: Some(self.ageing_seconds.into()),
            fdb_limit: Some(self.fdb_limit.into()),
            fdb_limit_per_port: Some(self.fdb_limit_per_port.into()),
            guard: Some(self.guard),
            reserved_groups: Some(self.reserved_groups.name().to_string()),
        }
    }
}

impl Vm {
    /// One of `[[vms]]` that means this.
    pub fn to_written(&self) -> written::Vm {
        written::Vm { id: Some(self.id.clone()), ports: Some(self.ports.iter().map(Port::to_written).collect()) }
    }
}

impl Port {
    /// One of `[[vms.ports]]` that means this.
    pub fn to_written(&self) -> written::Port {
        let pairs = self.allowed_address_pairs.iter();
        written::Port {
            port_id: Some(self.port_id.clone()),
            network_id: Some(self.network_id.clone()),
            mac_address: Some(self.mac.to_string()),
            fixed_ips: Some(self.fixed_ips.iter().map(ToString::to_string).collect()),
            ip_allocation: Some(self.ip_allocation.name().to_string()),
            port_security: Some(self.port_security.name().to_string()),
            // says the same in other words
            port_security_enabled: None,
            allowed_address_pairs: Some(
                pairs
                    .map(|pair| written::AddressPair {
                        mac_address: Some(pair.mac.to_string()),
                        ip_address: pair.ip.clone(),
                    })
                    .collect(),
            ),
            admin_state_up: Some(self.admin_state_up),
            device: Some(self.device.to_written()),
        }
    }
}

impl Device {
    /// The `device` of a port that means this.
    pub fn to_written(&self) -> written::Device {
        let Device::Tap(Tap { name, netns, queues, offloads, persist }) = self;
        written::Device {
            kind: Some("tap".to_string()),
            name: Some(name.clone()),
            netns: netns.clone(),
            queues: Some((*queues).into()),
            offloads: Some(*offloads),
            persist: Some(*persist),
        }
    }
}
