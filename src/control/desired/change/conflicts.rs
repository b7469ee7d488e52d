//! Conflicts of ports with the rest of a configuration: ids, MAC addresses and netdevs that others use.

use std::collections::{HashMap, HashSet};

use super::{ChangeError, several};
use crate::control::config::{Config, Device, Port, UnknownUnicast};
use crate::control::problem::{Problem, Subject};
use crate::wire::Mac;

/// Checks that no uplink and no port other than `except` uses the id, MAC address or netdev of one of `ports`.
pub fn check(now: &Config, ports: &[Port], except: Option<&str>) -> Result<(), ChangeError> {
    let mut conflicts: Vec<Problem> = Vec::new();
    let ids: HashMap<&str, &Port> = ports.iter().map(|port| (port.port_id.as_str(), port)).collect();
    let macs: HashMap<(&str, Mac), &Port> =
        ports.iter().map(|port| ((port.network_id.as_str(), port.mac), port)).collect();
    let netdevs: HashMap<(String, &str), &Port> =
        ports.iter().filter_map(|port| Some((port.device()?.netdev(), port))).collect();
    // Most others differ in the name already.
    let names: HashSet<&str> = netdevs.keys().map(|(_, name)| *name).collect();
    for vm in &now.vms {
        for other in vm.ports.iter().filter(|other| Some(other.port_id.as_str()) != except) {
            let holder = || format!("port {:?} of VM {:?}", other.port_id, vm.id);
            if ids.contains_key(other.port_id.as_str()) {
                let message = format!("port {:?} is in use by VM {:?}; detach it there first", other.port_id, vm.id);
                conflicts.push(conflict("port_in_use", &other.port_id, "port_id", Some(&other.port_id), message));
                // The same port has the same MAC address and netdev: one message is enough.
                continue;
            }
            if let Some(port) = macs.get(&(other.network_id.as_str(), other.mac)) {
                let message = format!(
                    "port {:?}: {} is the address of {} on network {:?}; each port needs its own there",
                    port.port_id,
                    other.mac,
                    holder(),
                    other.network_id
                );
                let mac = other.mac.to_string();
                conflicts.push(conflict("mac_in_use", &port.port_id, "mac_address", Some(&mac), message));
            }
            if let Some(netdev) = other.device().filter(|of| names.contains(of.name())).map(Device::netdev)
                && let Some(port) = netdevs.get(&netdev)
            {
                let message = format!(
                    "port {:?}: the netdev {:?} is in use by {}; each port needs its own",
                    port.port_id,
                    netdev.1,
                    holder()
                );
                conflicts.push(conflict("device_in_use", &port.port_id, "device.name", Some(netdev.1), message));
            }
        }
    }
    conflicts.extend(shared_addresses(now, ports, except));
    for uplink in &now.uplinks {
        if ids.contains_key(uplink.id.as_str()) {
            let message = format!("port {:?}: an uplink has this id; each port needs its own", uplink.id);
            conflicts.push(conflict("port_in_use", &uplink.id, "port_id", Some(&uplink.id), message));
        }
        let netdev = uplink.device.netdev();
        if let Some(port) = netdevs.get(&netdev) {
            let message = format!(
                "port {:?}: the netdev {:?} is in use by uplink {:?}; each needs its own",
                port.port_id, netdev.1, uplink.id
            );
            conflicts.push(conflict("device_in_use", &port.port_id, "device.name", Some(netdev.1), message));
        }
    }
    if conflicts.is_empty() { Ok(()) } else { Err(several(ChangeError::conflict, conflicts)) }
}

/// A conflict of a port of the request.
fn conflict(kind: &'static str, port: &str, key: &str, value: Option<&str>, message: String) -> Problem {
    Problem::new(kind, message).of(Subject::port(port)).at(key, value.map(|value| format!("{value:?}")))
}

/// Addresses of ports with `unknown_unicast = "suppress"` that an address pair allows to another port as well. Such an
/// address cannot be pinned. Compares `ports` with all ports other than `except`, in both directions.
fn shared_addresses(now: &Config, ports: &[Port], except: Option<&str>) -> Vec<Problem> {
    let must_be_pinned = |port: &Port| port.unknown_unicast == UnknownUnicast::Suppress;
    let allowed = |port: &Port| port.allowed_address_pairs.iter().filter_map(|pair| pair.mac).collect::<Vec<_>>();
    let key = |port: &Port, mac: Mac| (port.network_id.clone(), mac);
    let pinned: HashMap<(String, Mac), &Port> =
        ports.iter().filter(|port| must_be_pinned(port)).map(|port| (key(port, port.mac), port)).collect();
    let shared: HashMap<(String, Mac), &Port> =
        ports.iter().flat_map(|port| allowed(port).into_iter().map(move |mac| (key(port, mac), port))).collect();
    let mut conflicts = Vec::new();
    for (vm, other) in now.ports().filter(|(_, other)| Some(other.port_id.as_str()) != except) {
        let holder = || format!("port {:?} of VM {:?}", other.port_id, vm.id);
        for port in allowed(other).into_iter().filter_map(|mac| pinned.get(&key(other, mac))) {
            let message = format!(
                "port {:?}: unknown_unicast = \"suppress\" needs an address that is pinned to the port, and {} is allowed \
                 to {} as well",
                port.port_id,
                port.mac,
                holder()
            );
            conflicts.push(conflict("mac_shared", &port.port_id, "unknown_unicast", Some("suppress"), message));
        }
        if must_be_pinned(other)
            && let Some(port) = shared.get(&key(other, other.mac))
        {
            let message = format!(
                "port {:?}: {} is the address of {}, whose unknown_unicast = \"suppress\" needs it to be pinned there; \
                 set that to \"deliver\" first, or leave the pair out",
                port.port_id,
                other.mac,
                holder()
            );
            conflicts.push(conflict("mac_shared", &port.port_id, "allowed_address_pairs", None, message));
        }
    }
    conflicts
}
