//! Describes differences between two configurations, one text each.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::control::config::{Config, Network, Port, Uplink, Vm};

/// One text per difference; none if equal.
pub fn describe_changes(old: &Config, new: &Config) -> Vec<String> {
    let mut out = Vec::new();
    if old.switch != new.switch {
        let (was, is) = (keys(&old.switch.to_raw()), keys(&new.switch.to_raw()));
        out.extend(changed_keys(&was, &is).map(|(key, was, is)| format!("switch: {key} was {was} and is {is}")));
    }
    networks(old, new, &mut out);
    vms(old, new, &mut out);
    uplinks(old, new, &mut out);
    out
}

fn networks(old: &Config, new: &Config, out: &mut Vec<String>) {
    let (before, after) = (by_id(&old.networks, |n| &n.id), by_id(&new.networks, |n| &n.id));
    out.extend(gone(&old.networks, &after, |n| &n.id).map(|n| format!("network {:?} is gone", n.id)));
    for network in &new.networks {
        let Some(was) = before.get(network.id.as_str()) else {
            out.push(format!("network {:?} is new, with MTU {}", network.id, network.mtu));
            continue;
        };
        // Most are equal, and serialising them takes long.
        if *was == network {
            continue;
        }
        let (was, is) = (keys(&Network::to_raw(was)), keys(&network.to_raw()));
        out.extend(
            changed_keys(&was, &is)
                .map(|(key, was, is)| format!("network {:?}: {key} was {was} and is {is}", network.id)),
        );
    }
    if let Some(order) = reordered(&ids(&old.networks, |n| &n.id), &ids(&new.networks, |n| &n.id)) {
        out.push(format!("the order of the networks is now {order}"));
    }
}

fn vms(old: &Config, new: &Config, out: &mut Vec<String>) {
    let (before, after) = (by_id(&old.vms, |vm| &vm.id), by_id(&new.vms, |vm| &vm.id));
    let ports_before: HashMap<&str, (&Vm, &Port)> = old.ports().map(|(vm, port)| (port.id(), (vm, port))).collect();
    let ports_after: HashSet<&str> = new.ports().map(|(_, port)| port.id()).collect();
    out.extend(
        old.ports()
            .filter(|(_, port)| !ports_after.contains(port.id()))
            .map(|(vm, port)| format!("port {:?} is gone from VM {:?}", port.port_id, vm.id)),
    );
    out.extend(gone(&old.vms, &after, |vm| &vm.id).map(|vm| format!("VM {:?} is gone", vm.id)));
    for vm in &new.vms {
        match before.get(vm.id.as_str()) {
            None => out.push(format!("VM {:?} is new", vm.id)),
            Some(was) if was.settings() != vm.settings() => {
                let own = |vm: &Vm| keys(&vm.settings().vm(vm.id.clone(), Vec::new()).to_raw());
                out.extend(
                    changed_keys(&own(was), &own(vm))
                        .map(|(key, was, is)| format!("VM {:?}: {key} was {was} and is {is}", vm.id)),
                );
            }
            Some(_) => {}
        }
        for port in &vm.ports {
            let Some((vm_before, was)) = ports_before.get(port.id()) else {
                let (id, network) = (&port.port_id, &port.network_id);
                let trunk = port.subport().map(|of| format!(", VLAN {} of port {:?}", of.vlan, of.parent));
                let (mac, trunk) = (port.mac, trunk.unwrap_or_default());
                out.push(format!("port {id:?} is new, of VM {:?} on network {network:?}, {mac}{trunk}", vm.id));
                continue;
            };
            if vm_before.id != vm.id {
                out.push(format!("port {:?} was of VM {:?} and is of VM {:?}", port.port_id, vm_before.id, vm.id));
            }
            if *was == port {
                continue;
            }
            let (was, is) = (keys(&was.to_raw()), keys(&port.to_raw()));
            out.extend(
                changed_keys(&was, &is)
                    .map(|(key, was, is)| format!("port {:?}: {key} was {was} and is {is}", port.id())),
            );
        }
        if let Some(before) = before.get(vm.id.as_str())
            && let Some(order) = reordered(&ids(&before.ports, |p| &p.port_id), &ids(&vm.ports, |p| &p.port_id))
        {
            out.push(format!("the order of the ports of VM {:?} is now {order}", vm.id));
        }
    }
    if let Some(order) = reordered(&ids(&old.vms, |vm| &vm.id), &ids(&new.vms, |vm| &vm.id)) {
        out.push(format!("the order of the VMs is now {order}"));
    }
}

fn uplinks(old: &Config, new: &Config, out: &mut Vec<String>) {
    let (before, after) = (by_id(&old.uplinks, |u| &u.id), by_id(&new.uplinks, |u| &u.id));
    out.extend(gone(&old.uplinks, &after, |u| &u.id).map(|u| format!("uplink {:?} is gone", u.id)));
    for uplink in &new.uplinks {
        let id = &uplink.id;
        let Some(was) = before.get(id.as_str()) else {
            let (netdev, networks) =
                (uplink.device.name(), shown_list(uplink.networks.iter().map(|of| &of.network_id)));
            out.push(format!("uplink {id:?} is new, on {netdev:?}, and carries {networks}"));
            continue;
        };
        if *was == uplink {
            continue;
        }
        let (was, is) = (keys(&Uplink::to_raw(was)), keys(&uplink.to_raw()));
        out.extend(changed_keys(&was, &is).map(|(key, was, is)| format!("uplink {id:?}: {key} was {was} and is {is}")));
    }
    if let Some(order) = reordered(&ids(&old.uplinks, |u| &u.id), &ids(&new.uplinks, |u| &u.id)) {
        out.push(format!("the order of the uplinks is now {order}"));
    }
}

fn ids<T>(items: &[T], id: impl Fn(&T) -> &String) -> Vec<&str> {
    items.iter().map(|item| id(item).as_str()).collect()
}

fn by_id<'a, T>(items: &'a [T], id: impl Fn(&'a T) -> &'a String) -> HashMap<&'a str, &'a T> {
    items.iter().map(|item| (id(item).as_str(), item)).collect()
}

fn gone<'a, T>(old: &'a [T], new: &HashMap<&str, &T>, id: impl Fn(&'a T) -> &'a String) -> impl Iterator<Item = &'a T> {
    old.iter().filter(move |item| !new.contains_key(id(item).as_str()))
}

/// The new order, unless it results from keeping the remaining ones and appending the others.
fn reordered(old: &[&str], new: &[&str]) -> Option<String> {
    let (before, after): (HashSet<_>, HashSet<_>) = (old.iter().collect(), new.iter().collect());
    let stay = old.iter().filter(|id| after.contains(id));
    let come = new.iter().filter(|id| !before.contains(id));
    if stay.chain(come).eq(new) {
        return None;
    }
    Some(shown_list(new.iter()))
}

fn shown_list(ids: impl Iterator<Item = impl std::fmt::Debug>) -> String {
    ids.map(|id| format!("{id:?}")).collect::<Vec<_>>().join(", ")
}

/// Keys of a table with values; keys of nested tables are prefixed.
pub(super) fn keys(table: &impl Serialize) -> Map<String, Value> {
    let mut flat = Map::new();
    if let Ok(Value::Object(keys)) = serde_json::to_value(table) {
        for (key, value) in keys {
            match value {
                Value::Object(inner) => {
                    flat.extend(inner.into_iter().map(|(of, value)| (format!("{key}.{of}"), value)))
                }
                value => drop(flat.insert(key, value)),
            }
        }
    }
    flat
}

/// Differing keys, with both values.
pub(super) fn changed_keys(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
) -> impl Iterator<Item = (String, String, String)> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differ: Vec<_> = names
        .into_iter()
        .filter(|&name| old.get(name) != new.get(name))
        .map(|name| (name.clone(), shown(old.get(name)), shown(new.get(name))))
        .collect();
    differ.into_iter()
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not set".into(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{parse_json, testgen};
    use proptest::prelude::*;
    use serde_json::json;

    /// A configuration with these ids of networks, VMs and uplinks, each in this order.
    fn config(networks: &[&str], vms: &[(&str, &[&str])], uplinks: &[&str], (ageing, frames): (u32, u32)) -> Config {
        let networks: Vec<_> = networks.iter().map(|id| json!({"id": id, "ageing_seconds": ageing})).collect();
        let port = |(number, id): (usize, &&str)| {
            let mac = format!("02:00:00:00:00:{:02x}", id.as_bytes()[1]);
            json!({"port_id": id, "network_id": networks[number % 2]["id"], "mac_address": mac, "device": {"kind": "tap", "name": id}})
        };
        let vms: Vec<_> = (vms.iter())
            .map(|(id, ports)| json!({"id": id, "ports": ports.iter().enumerate().map(port).collect::<Vec<_>>()}))
            .collect();
        let uplinks: Vec<_> = (uplinks.iter())
            .map(|id| json!({"id": id, "device": {"kind": "packet", "name": id}, "networks": [{"network_id": "n1"}]}))
            .collect();
        parse_json(
            &json!({"switch": {"frames": frames}, "networks": networks, "vms": vms, "uplinks": uplinks}).to_string(),
            "x",
        )
        .unwrap()
    }

    #[test]
    fn each_difference_is_described_by_ids_and_values() {
        let old = config(&["n1", "n2"], &[("a", &["p1", "p2"]), ("b", &["p3"])], &["u1", "u2"], (300, 65_536));
        let new = config(&["n2", "n1", "n3"], &[("c", &["p4"]), ("a", &["p2", "p1"])], &["u3", "u2"], (60, 32_768));
        assert_eq!(
            describe_changes(&old, &new),
            [
                r#"switch: frames was 65536 and is 32768"#,
                r#"network "n2": ageing_seconds was 300 and is 60"#,
                r#"network "n1": ageing_seconds was 300 and is 60"#,
                r#"network "n3" is new, with MTU 1500"#,
                r#"the order of the networks is now "n2", "n1", "n3""#,
                r#"port "p3" is gone from VM "b""#,
                r#"VM "b" is gone"#,
                r#"VM "c" is new"#,
                r#"port "p4" is new, of VM "c" on network "n2", 02:00:00:00:00:34"#,
                r#"the order of the ports of VM "a" is now "p2", "p1""#,
                r#"the order of the VMs is now "c", "a""#,
                r#"uplink "u1" is gone"#,
                r#"uplink "u3" is new, on "u3", and carries "n1""#,
                r#"the order of the uplinks is now "u3", "u2""#,
            ]
        );
    }

    proptest! {
        /// A change is listed exactly if something differs.
        #[test]
        fn differences_are_listed((old, new) in testgen::two()) {
            prop_assert_eq!(describe_changes(&old, &new).is_empty(), old == new);
            prop_assert!(describe_changes(&new, &new).is_empty());
        }

        /// A changed key is listed by name, with its port.
        #[test]
        fn a_changed_key_is_listed_by_name(config in testgen::config(), at in any::<prop::sample::Index>()) {
            let ids: Vec<String> = config.ports().map(|(_, port)| port.port_id.clone()).collect();
            prop_assume!(!ids.is_empty());
            let id = at.get(&ids);
            let mut new = config.clone();
            for port in new.vms.iter_mut().flat_map(|vm| &mut vm.ports).filter(|port| port.port_id == *id) {
                port.admin_state_up = !port.admin_state_up;
            }
            let is = new.ports().find(|(_, port)| port.port_id == *id).unwrap().1.admin_state_up;
            let out = format!("port {id:?}: admin_state_up was {} and is {is}", !is);
            prop_assert_eq!(describe_changes(&config, &new), [out]);
        }
    }
}
