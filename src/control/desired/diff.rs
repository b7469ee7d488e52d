//! Differences between two configurations, one per key that differs.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::control::config::{Config, Network, Port, Shared, Uplink, Vm, differing};

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Entity {
    /// `[switch]`.
    Switch,
    /// A network.
    Network,
    /// A VM.
    Vm,
    /// A port.
    Port,
    /// An uplink.
    Uplink,
}

impl Entity {
    /// Word for people.
    pub fn noun(self) -> &'static str {
        match self {
            Entity::Switch => "switch",
            Entity::Network => "network",
            Entity::Vm => "VM",
            Entity::Port => "port",
            Entity::Uplink => "uplink",
        }
    }
}

/// A difference between two configurations: an entity that is new or gone, a key that changed, or the order of a list.
///
/// Its text ([`fmt::Display`]) is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Kind of the entity.
    pub kind: Entity,
    /// Its id; empty for the switch, and for the order of all entities of this kind.
    pub id: String,
    /// The key. Absent: the entity is new or gone. `order`: the order of the ids changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The value before; null if there was none. Of an entity, only what identifies it.
    #[schema(value_type = Value)]
    pub before: Value,
    /// The value after.
    #[schema(value_type = Value)]
    pub after: Value,
}

/// Key of a difference in order.
const ORDER: &str = "order";

/// Key of a port's VM.
const OWNER: &str = "device_id";

impl Difference {
    fn new(kind: Entity, id: &str, after: Value) -> Difference {
        Difference { kind, id: id.to_owned(), key: None, before: Value::Null, after }
    }

    fn gone(kind: Entity, id: &str, before: Value) -> Difference {
        Difference { kind, id: id.to_owned(), key: None, before, after: Value::Null }
    }

    fn changed(kind: Entity, id: &str, (key, before, after): (String, Value, Value)) -> Difference {
        Difference { kind, id: id.to_owned(), key: Some(key), before, after }
    }

    fn order(kind: Entity, id: &str, before: &[&str], after: &[&str]) -> Option<Difference> {
        let is_changed = reordered(before, after);
        is_changed.then(|| Difference::changed(kind, id, (ORDER.to_owned(), json!(before), json!(after))))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { kind, id, key, before, after } = self;
        let noun = kind.noun();
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        match (kind, key.as_deref()) {
            (_, None) if after.is_null() => {
                write!(f, "{noun} {id:?} is gone")?;
                if *kind == Entity::Port { write!(f, " from VM {:?}", text(&before[OWNER])) } else { Ok(()) }
            }
            (Entity::Port, None) => {
                let [vm, network, mac, parent] =
                    [OWNER, "network_id", "mac_address", "parent"].map(|key| text(&after[key]));
                write!(f, "port {id:?} is new, of VM {vm:?} on network {network:?}, {mac}")?;
                if parent.is_empty() { Ok(()) } else { write!(f, ", VLAN {} of port {parent:?}", after["vlan"]) }
            }
            (Entity::Uplink, None) => {
                let networks = shown_list(&after["networks"]);
                write!(f, "uplink {id:?} is new, on {:?}, and carries {networks}", text(&after["device"]))
            }
            (Entity::Network, None) => write!(f, "network {id:?} is new, with MTU {}", after["mtu"]),
            (_, None) => write!(f, "{noun} {id:?} is new"),
            (Entity::Vm, Some(ORDER)) if !id.is_empty() => {
                write!(f, "the order of the ports of VM {id:?} is now {}", shown_list(after))
            }
            (_, Some(ORDER)) => write!(f, "the order of the {noun}s is now {}", shown_list(after)),
            (Entity::Port, Some(OWNER)) => write!(f, "port {id:?} was of VM {before} and is of VM {after}"),
            (Entity::Switch, Some(key)) => write!(f, "switch: {key} was {} and is {}", shown(before), shown(after)),
            (_, Some(key)) => write!(f, "{noun} {id:?}: {key} was {} and is {}", shown(before), shown(after)),
        }
    }
}

/// One sentence per difference; none if equal.
pub fn describe_changes(old: &Config, new: &Config) -> Vec<String> {
    differences(old, new).iter().map(ToString::to_string).collect()
}

/// All differences; none if equal.
pub fn differences(old: &Config, new: &Config) -> Vec<Difference> {
    let mut out = Vec::new();
    if old.switch != new.switch {
        let (was, is) = (keys(&old.switch.to_raw()), keys(&new.switch.to_raw()));
        out.extend(changed_keys(&was, &is).map(|changed| Difference::changed(Entity::Switch, "", changed)));
    }
    networks(old, new, &mut out);
    vms(old, new, &mut out);
    uplinks(old, new, &mut out);
    out
}

fn networks(old: &Config, new: &Config, out: &mut Vec<Difference>) {
    const KIND: Entity = Entity::Network;
    if old.networks == new.networks {
        return;
    }
    let (before, after) = (by_id(&old.networks, |n| &n.id), by_id(&new.networks, |n| &n.id));
    let shown = |network: &Network| json!({"mtu": network.mtu});
    out.extend(gone(&old.networks, &after, |n| &n.id).map(|n| Difference::gone(KIND, &n.id, shown(n))));
    for network in &new.networks {
        let Some(was) = before.get(network.id.as_str()) else {
            out.push(Difference::new(KIND, &network.id, shown(network)));
            continue;
        };
        // Most are equal, and serialising them takes long.
        if *was == network {
            continue;
        }
        let (was, is) = (keys(&Network::to_raw(was)), keys(&network.to_raw()));
        out.extend(changed_keys(&was, &is).map(|changed| Difference::changed(KIND, &network.id, changed)));
    }
    out.extend(Difference::order(KIND, "", &ids(&old.networks, |n| &n.id), &ids(&new.networks, |n| &n.id)));
}

fn vms(old: &Config, new: &Config, out: &mut Vec<Difference>) {
    // A port of a VM that is the same before and after is in no other one.
    let (vms_before, vms_after) = differing(&old.vms, &new.vms);
    let (before, after) = (by_id(vms_before, |vm| &vm.id), by_id(vms_after, |vm| &vm.id));
    let is_same = |vm: &Shared<Vm>| before.get(vm.id.as_str()).is_some_and(|was| was.is_same(vm));
    let was_same = |vm: &&Shared<Vm>| after.get(vm.id.as_str()).is_some_and(|is| is.is_same(vm));
    let of_before = || {
        let vms = vms_before.iter().filter(|vm| !was_same(vm));
        vms.flat_map(|vm| vm.ports.iter().map(move |port| (vm, port)))
    };
    let ports_before: HashMap<&str, (&Shared<Vm>, &Port)> =
        of_before().map(|(vm, port)| (port.id(), (vm, port))).collect();
    let changed = vms_after.iter().filter(|vm| !is_same(vm));
    let ports_after: HashSet<&str> = changed.flat_map(|vm| vm.ports.iter().map(Port::id)).collect();
    let shown = |vm: &Vm, port: &Port| {
        let mut shown = json!({OWNER: vm.id, "network_id": port.network_id, "mac_address": port.mac.to_string()});
        if let Some(of) = port.subport() {
            shown["parent"] = json!(of.parent);
            shown["vlan"] = json!(of.vlan.get());
        }
        shown
    };
    out.extend(
        of_before()
            .filter(|(_, port)| !ports_after.contains(port.id()))
            .map(|(vm, port)| Difference::gone(Entity::Port, port.id(), shown(vm, port))),
    );
    out.extend(gone(vms_before, &after, |vm| &vm.id).map(|vm| Difference::gone(Entity::Vm, &vm.id, json!({}))));
    for vm in vms_after.iter().filter(|vm| !is_same(vm)) {
        match before.get(vm.id.as_str()) {
            None => out.push(Difference::new(Entity::Vm, &vm.id, json!({}))),
            Some(was) if was.settings() != vm.settings() => {
                let own = |vm: &Vm| keys(&vm.settings().vm(vm.id.clone(), Vec::new()).to_raw());
                out.extend(
                    changed_keys(&own(was), &own(vm)).map(|changed| Difference::changed(Entity::Vm, &vm.id, changed)),
                );
            }
            Some(_) => {}
        }
        for port in &vm.ports {
            let Some((vm_before, was)) = ports_before.get(port.id()) else {
                out.push(Difference::new(Entity::Port, port.id(), shown(vm, port)));
                continue;
            };
            if vm_before.id != vm.id {
                let moved = (OWNER.to_owned(), json!(vm_before.id), json!(vm.id));
                out.push(Difference::changed(Entity::Port, port.id(), moved));
            }
            if *was == port {
                continue;
            }
            let (was, is) = (keys(&was.to_raw()), keys(&port.to_raw()));
            out.extend(changed_keys(&was, &is).map(|changed| Difference::changed(Entity::Port, port.id(), changed)));
        }
        if let Some(before) = before.get(vm.id.as_str()) {
            let (was, is) = (ids(&before.ports, |p| &p.port_id), ids(&vm.ports, |p| &p.port_id));
            out.extend(Difference::order(Entity::Vm, &vm.id, &was, &is));
        }
    }
    out.extend(Difference::order(Entity::Vm, "", &ids(&old.vms, |vm| &vm.id), &ids(&new.vms, |vm| &vm.id)));
}

fn uplinks(old: &Config, new: &Config, out: &mut Vec<Difference>) {
    const KIND: Entity = Entity::Uplink;
    if old.uplinks == new.uplinks {
        return;
    }
    let (before, after) = (by_id(&old.uplinks, |u| &u.id), by_id(&new.uplinks, |u| &u.id));
    let shown = |uplink: &Uplink| {
        let networks: Vec<&String> = uplink.networks.iter().map(|of| &of.network_id).collect();
        json!({"device": uplink.device.name(), "networks": networks})
    };
    out.extend(gone(&old.uplinks, &after, |u| &u.id).map(|u| Difference::gone(KIND, &u.id, shown(u))));
    for uplink in &new.uplinks {
        let Some(was) = before.get(uplink.id.as_str()) else {
            out.push(Difference::new(KIND, &uplink.id, shown(uplink)));
            continue;
        };
        if *was == uplink {
            continue;
        }
        let (was, is) = (keys(&Uplink::to_raw(was)), keys(&uplink.to_raw()));
        out.extend(changed_keys(&was, &is).map(|changed| Difference::changed(KIND, &uplink.id, changed)));
    }
    out.extend(Difference::order(KIND, "", &ids(&old.uplinks, |u| &u.id), &ids(&new.uplinks, |u| &u.id)));
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

/// Whether the new order is not that of keeping the remaining ones and appending the others.
fn reordered(old: &[&str], new: &[&str]) -> bool {
    // Most changes append one, or remove one.
    let mut rest = old.iter();
    if new.starts_with(old) || new.iter().all(|id| rest.any(|known| known == id)) {
        return false;
    }
    let (before, after): (HashSet<_>, HashSet<_>) = (old.iter().collect(), new.iter().collect());
    let stay = old.iter().filter(|id| after.contains(id));
    let come = new.iter().filter(|id| !before.contains(id));
    !stay.chain(come).eq(new)
}

/// Texts of a list, quoted.
fn shown_list(list: &Value) -> String {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
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

/// Differing keys, with both values; null for a key that is not set.
pub(super) fn changed_keys(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
) -> impl Iterator<Item = (String, Value, Value)> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let value = |table: &Map<String, Value>, name: &String| table.get(name).cloned().unwrap_or_default();
    let differ: Vec<_> = names
        .into_iter()
        .filter(|&name| old.get(name) != new.get(name))
        .map(|name| (name.clone(), value(old, name), value(new, name)))
        .collect();
    differ.into_iter()
}

fn shown(value: &Value) -> String {
    if value.is_null() { "not set".into() } else { value.to_string() }
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
