//! What a call changes of the ports with the hook's label: pure, on the JSON of the configuration.
//!
//! The switch replaces all ports with a label in one request, or none. So each call reads them, changes those of its domain,
//! and leaves out what has no owner any more: ports of domains that were to be deleted while the switch was down, and ports
//! whose netdev is gone with its VM.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// What a call wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// These are the ports of the VM, and no others with the label.
    Put {
        /// The VM.
        vm: String,
        /// Its ports, in their order.
        ports: Vec<Value>,
        /// Ports that it has keep their activation: it runs.
        is_running: bool,
    },
    /// The VM gets this port, behind those that it has.
    Add {
        /// The VM.
        vm: String,
        /// The port.
        port: Value,
    },
    /// The VM has no ports any more.
    Remove {
        /// The VM.
        vm: String,
    },
    /// The ports on this netdev are gone.
    RemoveDevice {
        /// Name of the netdev.
        dev: String,
    },
}

/// Ports that nobody uses any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stale {
    /// VMs that have stopped while the switch was down.
    pub vms: BTreeSet<String>,
    /// Ports whose netdev does not exist.
    pub ports: BTreeSet<String>,
}

/// What the request is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Edited {
    /// All that the label is to have; `None`: that is so already.
    pub body: Option<Value>,
    /// Ports that are removed.
    pub removed: Vec<String>,
}

/// Applies an edit to what has the label in `config`.
pub fn edited(config: &Value, label: &str, edit: &Edit, stale: &Stale) -> Edited {
    let mut vms = labelled_ports(config, label);
    let before: Vec<String> = ids(&vms);
    let is_stale = |vm: &str, port: &Value| {
        stale.vms.contains(vm) || stale.ports.contains(text(port, "port_id")) || is_superseded(vm, port, edit)
    };
    for (vm, ports) in &mut vms {
        remove(ports, |port| is_stale(vm, port));
    }
    match edit {
        Edit::Put { vm, ports, is_running } => {
            let place = place(&mut vms, vm);
            let known = std::mem::take(&mut vms[place].1);
            vms[place].1 = ports.clone();
            for port in &mut vms[place].1 {
                let same = known.iter().find(|of| text(of, "port_id") == text(port, "port_id"));
                if let (true, Some(same), Value::Object(port)) = (*is_running, same, port) {
                    keep(port, same, "activation");
                }
            }
        }
        Edit::Add { vm, port } => {
            let place = place(&mut vms, vm);
            let ports = &mut vms[place].1;
            match ports.iter_mut().find(|known| text(known, "port_id") == text(port, "port_id")) {
                Some(known) => *known = port.clone(),
                None => ports.push(port.clone()),
            }
        }
        Edit::Remove { vm } => vms.retain(|(of, _)| of != vm),
        Edit::RemoveDevice { dev } => {
            vms.iter_mut().for_each(|(_, ports)| remove(ports, |port| device(port) == Some(dev.as_str())))
        }
    }
    let after: BTreeSet<String> = ids(&vms).into_iter().collect();
    let removed: Vec<String> = before.into_iter().filter(|id| !after.contains(id)).collect();
    let is_same = removed.is_empty() && matches!(edit, Edit::Remove { .. } | Edit::RemoveDevice { .. });
    Edited { body: (!is_same).then(|| body(config, label, &vms)), removed }
}

/// Removes ports, and subports whose parents go.
fn remove(ports: &mut Vec<Value>, goes: impl Fn(&Value) -> bool) {
    let gone: BTreeSet<String> =
        ports.iter().filter(|port| goes(port)).map(|port| text(port, "port_id").to_owned()).collect();
    ports.retain(|port| !gone.contains(text(port, "port_id")) && !gone.contains(text(port, "parent")));
}

/// Whether the edit gives the netdev of this port to another one: libvirt has made it again, for that one.
fn is_superseded(vm: &str, port: &Value, edit: &Edit) -> bool {
    let (owner, new) = match edit {
        Edit::Put { vm, ports, .. } => (vm, ports.as_slice()),
        Edit::Add { vm, port } => (vm, std::slice::from_ref(port)),
        Edit::Remove { .. } | Edit::RemoveDevice { .. } => return false,
    };
    let is_same = |new: &Value| owner == vm && text(new, "port_id") == text(port, "port_id");
    device(port).is_some_and(|dev| new.iter().any(|new| device(new) == Some(dev) && !is_same(new)))
}

/// VMs and their ports with the label.
fn labelled_ports(config: &Value, label: &str) -> Vec<(String, Vec<Value>)> {
    let vms = items(config, "vms");
    let ports =
        |vm| -> Vec<Value> { items(vm, "ports").filter(|port| text(port, "owner") == label).cloned().collect() };
    vms.map(|vm| (text(vm, "id").to_owned(), ports(vm))).filter(|(_, ports)| !ports.is_empty()).collect()
}

/// All that is to have the label: its networks and uplinks as they are, its VMs with these ports.
fn body(config: &Value, label: &str, vms: &[(String, Vec<Value>)]) -> Value {
    let own = |table: &str| items(config, table).filter(|of| text(of, "owner") == label).cloned().collect::<Vec<_>>();
    let mut all: Vec<Value> = own("vms");
    for vm in &mut all {
        if let Value::Object(vm) = vm {
            vm.remove("ports");
        }
    }
    for (id, ports) in vms.iter().filter(|(_, ports)| !ports.is_empty()) {
        match all.iter_mut().find(|vm| text(vm, "id") == id) {
            Some(Value::Object(vm)) => drop(vm.insert("ports".into(), ports.clone().into())),
            _ => all.push(json!({ "id": id, "ports": ports })),
        }
    }
    json!({ "networks": own("networks"), "vms": all, "uplinks": own("uplinks") })
}

/// Index of a VM, which is added if it is unknown.
fn place(vms: &mut Vec<(String, Vec<Value>)>, vm: &str) -> usize {
    vms.iter().position(|(of, _)| of == vm).unwrap_or_else(|| {
        vms.push((vm.to_owned(), Vec::new()));
        vms.len() - 1
    })
}

fn keep(port: &mut Map<String, Value>, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => drop(port.insert(key.to_owned(), value.clone())),
        None => drop(port.remove(key)),
    }
}

fn items<'v>(table: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    table.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'v>(table: &'v Value, key: &str) -> &'v str {
    table.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Netdev of a port in the switch's own namespace.
fn device(port: &Value) -> Option<&str> {
    let device = port.get("device").filter(|device| device.get("netns").is_none_or(Value::is_null))?;
    device.get("name").and_then(Value::as_str)
}

fn ids(vms: &[(String, Vec<Value>)]) -> Vec<String> {
    vms.iter().flat_map(|(_, ports)| ports).map(|port| text(port, "port_id").to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::config::{Config, parse_json, parse_json_part};
    use crate::control::desired::change::{Change, ChangeError};

    const LABEL: &str = "libvirt";

    fn port(id: &str, number: u8) -> Value {
        let mac = format!("52:54:00:00:00:{number:02x}");
        json!({ "port_id": id, "network_id": "n", "mac_address": mac, "device": { "kind": "packet", "name": format!("vnet{number}") } })
    }

    /// The configuration after an edit, by the switch's own change.
    fn after(config: &Config, edit: &Edit, stale: &Stale) -> Result<Config, ChangeError> {
        let edited = edited(&json_of(config), LABEL, edit, stale);
        let Some(body) = edited.body else { return Ok(config.clone()) };
        let request =
            parse_json_part(&body.to_string(), "body", config.switch.clone()).unwrap_or_else(|e| panic!("{e}\n{body}"));
        Change::ApplyOwned { owner: LABEL.into(), config: request }.to(config)
    }

    /// As `GET /v1/config` answers.
    fn json_of(config: &Config) -> Value {
        serde_json::to_value(config.to_raw()).unwrap()
    }

    fn start() -> Config {
        let text = json!({
            "networks": [{ "id": "n" }, { "id": "own", "owner": LABEL }],
            "vms": [
                { "id": "site", "share_mac": true, "ports": [port("s1", 100)] },
                { "id": "a", "ports": [port("by-hand", 101)] }
            ],
            "uplinks": [{ "id": "up", "device": { "kind": "packet", "name": "eth1" }, "networks": [{ "network_id": "n" }] }]
        });
        parse_json(&text.to_string(), "x").unwrap()
    }

    fn put(vm: &str, ports: &[Value]) -> Edit {
        Edit::Put { vm: vm.into(), ports: ports.to_vec(), is_running: false }
    }

    fn ports_of(config: &Config, vm: &str) -> Vec<String> {
        let found = config.vms.iter().find(|of| of.id == vm);
        found.map(|vm| vm.ports.iter().map(|port| port.port_id.clone()).collect()).unwrap_or_default()
    }

    #[test]
    fn a_domain_gets_its_ports_in_order_and_loses_them() {
        let none = Stale::default();
        let begin = start();
        let edit = put("a", &[port("p2", 2), port("p1", 1)]);
        let started = after(&begin, &edit, &none).unwrap();
        assert_eq!(ports_of(&started, "a"), ["by-hand", "p2", "p1"]);
        assert!(started.vms[1].ports[1..].iter().all(|port| port.owner.as_deref() == Some(LABEL)));
        assert_eq!(after(&started, &edit, &none).unwrap(), started, "a repeat changes nothing");
        // one port less, as after an unplug
        let fewer = after(&started, &put("a", &[port("p1", 1)]), &none).unwrap();
        assert_eq!(ports_of(&fewer, "a"), ["by-hand", "p1"]);
        let stopped = after(&started, &Edit::Remove { vm: "a".into() }, &none).unwrap();
        assert_eq!(stopped, begin, "all else is as before");
        let again = edited(&json_of(&stopped), LABEL, &Edit::Remove { vm: "a".into() }, &none);
        assert_eq!(again.body, None, "nothing is left to do");
    }

    #[test]
    fn a_plugged_port_comes_last_and_goes_with_its_netdev() {
        let none = Stale::default();
        let started = after(&start(), &put("b", &[port("p1", 1)]), &none).unwrap();
        let add = Edit::Add { vm: "b".into(), port: port("p2", 2) };
        let plugged = after(&started, &add, &none).unwrap();
        assert_eq!(ports_of(&plugged, "b"), ["p1", "p2"]);
        assert_eq!(after(&plugged, &add, &none).unwrap(), plugged);
        let gone = after(&plugged, &Edit::RemoveDevice { dev: "vnet2".into() }, &none).unwrap();
        assert_eq!(gone, started);
        // a netdev of somebody else's port
        assert_eq!(after(&gone, &Edit::RemoveDevice { dev: "vnet100".into() }, &none).unwrap(), gone);
    }

    /// A tap that is made again is on the same port, in its place.
    #[test]
    fn a_port_that_is_added_again_is_replaced() {
        let none = Stale::default();
        let started = after(&start(), &put("b", &[port("p1", 1), port("p2", 2)]), &none).unwrap();
        let mut again = port("p1", 1);
        again["device"]["name"] = "vnet7".into();
        let added = after(&started, &Edit::Add { vm: "b".into(), port: again }, &none).unwrap();
        let ports = &added.vms.iter().find(|vm| vm.id == "b").unwrap().ports;
        let on: Vec<_> = ports.iter().map(|port| (port.port_id.as_str(), port.device().unwrap().name())).collect();
        assert_eq!(on, [("p1", "vnet7"), ("p2", "vnet2")]);
    }

    #[test]
    fn ports_of_others_are_never_taken() {
        for edit in [put("site", &[port("s1", 1)]), put("b", &[port("by-hand", 1)]), put("b", &[port("p1", 100)])] {
            let error = after(&start(), &edit, &Stale::default()).unwrap_err();
            assert!(["owned_by_other", "duplicate_mac"].contains(&error.kind), "{error:?}");
        }
    }

    #[test]
    fn what_nobody_uses_any_more_goes_with_any_call() {
        let none = Stale::default();
        let mut now = start();
        for (vm, id, number) in [("b", "p1", 1), ("c", "p2", 2), ("d", "p3", 3)] {
            now = after(&now, &put(vm, &[port(id, number)]), &none).unwrap();
        }
        let stale = Stale { vms: ["c".to_owned()].into(), ports: ["p3".to_owned()].into() };
        let next = after(&now, &Edit::RemoveDevice { dev: "unknown".into() }, &stale).unwrap();
        assert_eq!(
            (ports_of(&next, "b"), ports_of(&next, "c"), ports_of(&next, "d")),
            (vec!["p1".into()], vec![], vec![])
        );
        // the VM itself has started again: its ports are those of the call
        let stale = Stale { vms: ["b".to_owned()].into(), ports: ["p1".to_owned()].into() };
        let next = after(&next, &put("b", &[port("p1", 1)]), &stale).unwrap();
        assert_eq!(ports_of(&next, "b"), ["p1"]);
    }

    #[test]
    fn a_netdev_that_libvirt_made_again_belongs_to_the_new_port() {
        let none = Stale::default();
        let left = after(&start(), &put("b", &[port("p1", 1)]), &none).unwrap();
        let mut other = port("p9", 1);
        other["mac_address"] = json!("52:54:00:00:00:09");
        for edit in [put("c", &[other.clone()]), Edit::Add { vm: "c".into(), port: other.clone() }] {
            let next = after(&left, &edit, &none).unwrap();
            assert_eq!((ports_of(&next, "b"), ports_of(&next, "c")), (vec![], vec!["p9".to_owned()]));
        }
    }

    #[test]
    fn subports_go_with_their_parent() {
        let tagged = json!({ "port_id": "t", "network_id": "own", "mac_address": "52:54:00:00:00:01", "parent": "p1", "vlan": 7 });
        let started = after(&start(), &put("b", &[port("p1", 1), tagged, port("p2", 2)]), &Stale::default()).unwrap();
        assert_eq!(ports_of(&started, "b"), ["p1", "t", "p2"]);
        let gone = after(&started, &Edit::RemoveDevice { dev: "vnet1".into() }, &Stale::default()).unwrap();
        assert_eq!(ports_of(&gone, "b"), ["p2"]);
        let stale = Stale { ports: ["p1".to_owned()].into(), ..Stale::default() };
        let gone = after(&started, &Edit::RemoveDevice { dev: "unknown".into() }, &stale).unwrap();
        assert_eq!(ports_of(&gone, "b"), ["p2"]);
    }

    #[test]
    fn a_running_domain_keeps_the_activation_of_its_ports() {
        let mut first = port("p1", 1);
        first["activation"] = json!("first-frame");
        let incoming = after(&start(), &put("b", &[first]), &Stale::default()).unwrap();
        let again = Edit::Put { vm: "b".into(), ports: vec![port("p1", 1)], is_running: true };
        assert_eq!(after(&incoming, &again, &Stale::default()).unwrap(), incoming);
        let restarted = after(&incoming, &put("b", &[port("p1", 1)]), &Stale::default()).unwrap();
        assert_ne!(restarted, incoming);
    }

    proptest! {
        #[test]
        fn only_what_has_the_label_changes(steps in prop::collection::vec((0..4u8, 0..3u8, prop::collection::btree_set(0..6u8, 0..4), any::<bool>()), 1..8)) {
            let begin = start();
            let others = |config: &Config| {
                let mut rest = config.clone();
                rest.vms.iter_mut().for_each(|vm| vm.ports.retain(|port| port.owner.as_deref() != Some(LABEL)));
                rest.vms.retain(|vm| !vm.ports.is_empty());
                rest
            };
            let mut now = begin.clone();
            for (kind, vm, ports, is_stale) in steps {
                let name = ["a", "b", "c"][usize::from(vm)].to_owned();
                // each VM has ports, addresses and netdevs of its own
                let own = |number: &u8| port(&format!("{name}-{number}"), vm * 16 + number);
                let edit = match kind {
                    0 => put(&name, &ports.iter().map(own).collect::<Vec<_>>()),
                    1 => Edit::Add { vm: name.clone(), port: own(&9) },
                    2 => Edit::Remove { vm: name.clone() },
                    _ => Edit::RemoveDevice { dev: format!("vnet{}", vm * 16 + 9) },
                };
                let stale = Stale { vms: is_stale.then(|| "b".to_owned()).into_iter().collect(), ..Stale::default() };
                let next = after(&now, &edit, &stale).unwrap_or_else(|e| panic!("{edit:?}: {e:?}"));
                prop_assert_eq!(others(&next), begin.clone());
                prop_assert_eq!(&after(&next, &edit, &Stale::default()).unwrap(), &next);
                if let Edit::Put { ports, .. } = &edit {
                    let owned = next.vms.iter().filter(|vm| vm.id == name).flat_map(|vm| &vm.ports);
                    let owned = owned.filter(|port| port.owner.as_deref() == Some(LABEL)).map(|port| port.port_id.as_str());
                    let wanted = ports.iter().map(|port| port["port_id"].as_str().unwrap());
                    prop_assert_eq!(owned.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
                }
                now = next;
            }
        }
    }
}
