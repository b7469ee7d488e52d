//! Orphans: netdevs that the switch created for ports and uplinks that are no longer configured.
//!
//! A change is stored before orphans are removed, and the process may be killed in between, also while a change is
//! unconfirmed. Orphans are therefore stored with the state, and removed by the next run. A netdev of ours is
//! recognised by its alias; others of the same name are not touched.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::config::{Config, Device, Shared, Uplink, Vm, differing};
use crate::device::{DeviceLocation, Settings};
use crate::sys::netns::Netns;

/// A netdev that may exist and is not needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrphanNetdev {
    /// Port or uplink for which it was created.
    pub port_id: String,
    /// Path of its namespace; empty for the switch's.
    netns: String,
    /// Name.
    name: String,
}

/// So many are looked up one by one.
const FEW: usize = 16;

/// A sorted set.
pub type Orphans = BTreeSet<OrphanNetdev>;

impl OrphanNetdev {
    /// Netdev of a device; `None` if others create it.
    pub fn of(device: &Settings) -> Option<OrphanNetdev> {
        let Settings::Tap(tap) = device else { return None };
        let path = tap.netns.path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let netns = match path.strip_prefix("/var/run/netns/") {
            Some(name) => format!("/run/netns/{name}"),
            None => path,
        };
        Some(OrphanNetdev { port_id: tap.owner.clone(), netns, name: tap.name.clone() })
    }

    /// Location.
    pub fn at(&self) -> DeviceLocation {
        let netns = if self.netns.is_empty() { Netns::Host } else { Netns::At(PathBuf::from(&self.netns)) };
        DeviceLocation { device: self.name.clone(), netns }
    }

    /// Whether `other` has the same name and port, but another path of the namespace, which may be the same one.
    pub fn is_in_other_namespace(&self, other: &OrphanNetdev) -> bool {
        (&self.port_id, &self.name) == (&other.port_id, &other.name) && self.netns != other.netns
    }

    /// Whether `other` has the same location.
    pub fn conflicts_with(&self, other: &OrphanNetdev) -> bool {
        (&self.netns, &self.name) == (&other.netns, &other.name)
    }
}

/// Netdevs of a configuration that the switch creates.
pub fn netdevs(config: &Config) -> Orphans {
    let ports = config.ports().filter_map(|(_, port)| netdev(&port.port_id, port.device()?));
    ports.chain(config.uplinks.iter().filter_map(|uplink| netdev(&uplink.id, &uplink.device))).collect()
}

fn netdev(id: &str, device: &Device) -> Option<OrphanNetdev> {
    let Device::Tap(_) = device else { return None };
    let (netns, name) = device.netdev();
    Some(OrphanNetdev { port_id: id.to_owned(), netns, name: name.to_owned() })
}

/// Netdevs that the switch creates for `before` and not for `after`. Looks at the VMs and uplinks that differ.
pub fn gone(before: &Config, after: &Config) -> Orphans {
    let part = |of: &[Shared<Vm>], other: &[Shared<Vm>], uplinks: &[Uplink]| {
        let vms: HashMap<&str, &Shared<Vm>> = other.iter().map(|vm| (vm.id.as_str(), vm)).collect();
        let differs = |vm: &&Shared<Vm>| vms.get(vm.id.as_str()).is_none_or(|same| same != vm);
        let vms = of.iter().filter(differs).cloned().collect();
        netdevs(&Config { vms, uplinks: uplinks.to_vec(), ..Config::default() })
    };
    let (vms_before, vms_after) = differing(&before.vms, &after.vms);
    &part(vms_before, vms_after, &before.uplinks) - &part(vms_after, vms_before, &after.uplinks)
}

/// Those that are not netdevs of a configuration.
pub fn without(mut orphans: Orphans, config: &Config) -> Orphans {
    if orphans.len() > FEW {
        return &orphans - &netdevs(config);
    }
    orphans.retain(|orphan| of_port(config, &orphan.port_id).all(|netdev| netdev != *orphan));
    orphans
}

/// Netdevs of a configuration that the switch creates for this port or uplink.
pub fn of_port<'c>(config: &'c Config, id: &'c str) -> impl Iterator<Item = OrphanNetdev> + 'c {
    let ports = config.ports().filter(move |(_, port)| port.port_id == id);
    let ports = ports.filter_map(|(_, port)| netdev(&port.port_id, port.device()?));
    let uplinks = config.uplinks.iter().filter(move |uplink| uplink.id == id);
    ports.chain(uplinks.filter_map(|uplink| netdev(&uplink.id, &uplink.device)))
}

/// Serialises orphans.
pub fn to_value(orphans: &Orphans) -> Value {
    // Serialising a list of strings cannot fail.
    serde_json::to_value(orphans).unwrap_or_default()
}

/// Parses stored orphans; none if absent.
pub fn from_value(stored: &Value) -> Orphans {
    serde_json::from_value(stored.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::settings;
    use crate::control::config::testgen;
    use proptest::prelude::*;

    proptest! {
        /// What is gone is the difference of all, and a port's netdevs are those of all with its id.
        #[test]
        fn netdevs_that_are_gone_are_those_of_no_other((before, after) in testgen::two()) {
            prop_assert_eq!(gone(&before, &after), &netdevs(&before) - &netdevs(&after));
            prop_assert_eq!(gone(&before, &before), Orphans::new());
            prop_assert_eq!(without(netdevs(&before), &after), &netdevs(&before) - &netdevs(&after));
            for netdev in netdevs(&before) {
                prop_assert!(of_port(&before, &netdev.port_id).eq([netdev.clone()]));
            }
        }

        /// A netdev has the same identity by its port or its device, before and after it is stored.
        #[test]
        fn a_stored_netdev_is_recognised(config in testgen::config()) {
            let wanted = netdevs(&config);
            let ports = config.ports().filter_map(|(_, port)| {
                let network = config.networks.iter().find(|network| network.id == port.network_id).unwrap();
                OrphanNetdev::of(&settings::device(port, network, 64)?)
            });
            let uplinks = config.uplinks.iter().map(|uplink| settings::uplink_device(uplink, &config, 64));
            let devices = ports.chain(uplinks.filter_map(|device| OrphanNetdev::of(&device)));
            prop_assert_eq!(&devices.collect::<Orphans>(), &wanted);
            prop_assert_eq!(&from_value(&to_value(&wanted)), &wanted);
        }
    }

    #[test]
    fn without_stored_netdevs_there_are_no_orphans() {
        assert_eq!(from_value(&Value::Null), Orphans::new());
        assert_eq!(to_value(&Orphans::new()), serde_json::json!([]));
    }

    #[test]
    fn one_namespace_has_one_name() {
        let orphans = |netns: &str| {
            let port = serde_json::json!({"networks": [{"id": "n"}], "vms": [{"id": "v", "ports": [{"port_id": "p",
                "network_id": "n", "mac_address": "02:00:00:00:00:01",
                "device": {"kind": "tap", "name": "t", "netns": netns}}]}]});
            netdevs(&crate::control::config::parse_json(&port.to_string(), "x").unwrap()).pop_first().unwrap()
        };
        for netns in ["ns", "/run/netns/ns", "/var/run/netns/ns"] {
            assert_eq!(orphans(netns), orphans("ns"));
            assert_eq!(orphans(netns).at().netns.path(), Netns::Named("ns".into()).path());
        }
        assert!(!orphans("a").conflicts_with(&orphans("b")));
        assert!(OrphanNetdev { port_id: "q".into(), ..orphans("a") }.conflicts_with(&orphans("a")));
    }
}
