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
            switch: Some(switch(&self.switch)),
            networks: Some(self.networks.iter().map(network).collect()),
            vms: Some(self.vms.iter().map(vm).collect()),
        }
    }
}

fn switch(meant: &SwitchSettings) -> written::Switch {
    written::Switch {
        // no configuration read from a text has a core beyond an i64
        cores: Some(meant.cores.iter().filter_map(|core| i64::try_from(*core).ok()).collect()),
        api: Some(meant.api.to_string_lossy().into_owned()),
        state: Some(meant.state.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()),
        metrics: meant.metrics.map(|address| address.to_string()),
        poll: Some(meant.poll.name().to_string()),
        frames: Some(meant.frames.into()),
        stations: Some(meant.stations.into()),
    }
}

fn network(meant: &Network) -> written::Network {
    written::Network {
        id: Some(meant.id.clone()),
        mtu: Some(meant.mtu.into()),
        ageing_seconds: Some(meant.ageing_seconds.into()),
        fdb_limit: Some(meant.fdb_limit.into()),
        fdb_limit_per_port: Some(meant.fdb_limit_per_port.into()),
        guard: Some(meant.guard),
        reserved_groups: Some(meant.reserved_groups.name().to_string()),
    }
}

fn vm(meant: &Vm) -> written::Vm {
    written::Vm { id: Some(meant.id.clone()), ports: Some(meant.ports.iter().map(port).collect()) }
}

fn port(meant: &Port) -> written::Port {
    let pairs = meant.allowed_address_pairs.iter();
    written::Port {
        port_id: Some(meant.port_id.clone()),
        network_id: Some(meant.network_id.clone()),
        mac_address: Some(meant.mac.to_string()),
        fixed_ips: Some(meant.fixed_ips.iter().map(ToString::to_string).collect()),
        ip_allocation: Some(meant.ip_allocation.name().to_string()),
        port_security: Some(meant.port_security.name().to_string()),
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
        admin_state_up: Some(meant.admin_state_up),
        device: Some(device(&meant.device)),
    }
}

fn device(meant: &Device) -> written::Device {
    let Device::Tap(Tap { name, netns, queues, offloads, persist }) = meant;
    written::Device {
        kind: Some("tap".to_string()),
        name: Some(name.clone()),
        netns: netns.clone(),
        queues: Some((*queues).into()),
        offloads: Some(*offloads),
        persist: Some(*persist),
    }
}
