//! Validates across tables: duplicate ids, addresses and netdevs, unknown networks.
//!
//! Runs on the lowered configuration, whose lists correspond to the document's. Skips placeholders of invalid values.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use crate::wire::Mac;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::model::{Config, Device};
use super::raw::{list, nearest};
use super::{security, uplink};

/// Reports all conflicts between tables.
pub(super) fn check(config: &Config, diagnostics: &mut Diagnostics<'_>) {
    let top = Path::default();
    let mut networks = Taken::default();
    for (index, network) in config.networks.iter().enumerate() {
        let path = top.key("networks").item(index).key("id");
        if !network.id.is_empty()
            && let Some(other) = networks.take(network.id.as_str(), &path)
        {
            let message =
                format!("this network is defined at {} already; define each id once", diagnostics.location(other));
            diagnostics.push(&path, kind::DUPLICATE_NETWORK, message);
        }
    }
    // a network with an invalid id may be the one that a port names
    let all_named = config.networks.iter().all(|network| !network.id.is_empty());
    let (mut vms, mut ports) = (Taken::default(), Taken::default());
    let (mut macs, mut netdevs) = (Taken::default(), Taken::default());
    for (index, vm) in config.vms.iter().enumerate() {
        let vm_path = top.key("vms").item(index);
        let path = vm_path.key("id");
        if !vm.id.is_empty()
            && let Some(other) = vms.take(vm.id.as_str(), &path)
        {
            let message = format!(
                "this VM is defined at {} already; list all ports of a VM together",
                diagnostics.location(other)
            );
            diagnostics.push(&path, kind::DUPLICATE_VM, message);
        }
        for (index, port) in vm.ports.iter().enumerate() {
            let port_path = vm_path.key("ports").item(index);
            let path = port_path.key("port_id");
            if !port.port_id.is_empty()
                && let Some(other) = ports.take(port.port_id.as_str(), &path)
            {
                let message =
                    format!("this port is defined at {} already; define each port once", diagnostics.location(other));
                diagnostics.push(&path, kind::DUPLICATE_PORT, message);
                // a duplicate port also has the same MAC and netdev: reported once
                continue;
            }
            if all_named && !port.network_id.is_empty() && !networks.has(port.network_id.as_str()) {
                unknown_network(config, &port.network_id, &port_path.key("network_id"), diagnostics);
            }
            let path = port_path.key("mac_address");
            if !port.network_id.is_empty()
                && port.mac != Mac::ZERO
                && let Some(other) = macs.take((port.network_id.as_str(), port.mac), &path)
            {
                let message = format!(
                    "{} has this address on the same network; use another address",
                    diagnostics.location(other)
                );
                diagnostics.push(&path, kind::DUPLICATE_MAC, message);
            }
            if let Some(device) = port.device() {
                netdev(device, &port_path, &mut netdevs, diagnostics);
            }
        }
    }
    let mut uplinks = Taken::default();
    for (index, uplink) in config.uplinks.iter().enumerate() {
        let uplink_path = top.key("uplinks").item(index);
        let path = uplink_path.key("id");
        if !uplink.id.is_empty() {
            let message = match (uplinks.take(uplink.id.as_str(), &path), ports.at(uplink.id.as_str())) {
                (Some(other), _) => Some(format!(
                    "this uplink is defined at {} already; define each id once",
                    diagnostics.location(other)
                )),
                (None, Some(port)) => {
                    Some(format!("{}, a port, has this id; use another id", diagnostics.location(port)))
                }
                (None, None) => None,
            };
            if let Some(message) = message {
                diagnostics.push(&path, kind::DUPLICATE_UPLINK, message);
                // a duplicate uplink also has the same netdev: reported once
                continue;
            }
        }
        for (index, tagged) in uplink.networks.iter().enumerate() {
            if all_named && !tagged.network_id.is_empty() && !networks.has(tagged.network_id.as_str()) {
                let path = uplink_path.key("networks").item(index).key("network_id");
                unknown_network(config, &tagged.network_id, &path, diagnostics);
            }
        }
        netdev(&uplink.device, &uplink_path, &mut netdevs, diagnostics);
    }
    security::check(config, diagnostics);
    uplink::check_groups(config, diagnostics);
}

/// Reports a netdev in use by another port or uplink. `path`: the port or uplink.
fn netdev<'c>(
    device: &'c Device,
    path: &Path,
    netdevs: &mut Taken<(String, &'c str)>,
    diagnostics: &mut Diagnostics<'_>,
) {
    let path = path.key("device").key("name");
    if !device.name().is_empty()
        && let Some(other) = netdevs.take(device.netdev(), &path)
    {
        let message = format!(
            "{} is the netdev {:?} in the same namespace; use another netdev",
            diagnostics.location(other),
            device.name()
        );
        diagnostics.push(&path, kind::DUPLICATE_DEVICE, message);
    }
}

/// Keys in use, with their first location.
struct Taken<K>(HashMap<K, Path>);

impl<K> Default for Taken<K> {
    fn default() -> Self {
        Taken(HashMap::new())
    }
}

impl<K: Hash + Eq> Taken<K> {
    /// Registers `key` for `path`. Returns the first location if it is a duplicate.
    fn take(&mut self, key: K, path: &Path) -> Option<&Path> {
        match self.0.entry(key) {
            Entry::Occupied(taken) => Some(taken.into_mut()),
            Entry::Vacant(free) => {
                free.insert(path.clone());
                None
            }
        }
    }

    fn at(&self, key: K) -> Option<&Path> {
        self.0.get(&key)
    }

    fn has(&self, key: K) -> bool {
        self.0.contains_key(&key)
    }
}

fn unknown_network(config: &Config, id: &str, path: &Path, diagnostics: &mut Diagnostics<'_>) {
    let ids = || config.networks.iter().map(|network| network.id.as_str()).filter(|id| !id.is_empty());
    let message = match nearest(id, ids()) {
        Some(expected) => format!("no such network; did you mean {expected:?}?"),
        None if ids().next().is_none() => "no such network, nor any other; define one with [[networks]]".to_string(),
        None => format!("no such network; the networks are {}", list(ids().take(10))),
    };
    diagnostics.push(path, kind::UNKNOWN_NETWORK, message);
}
