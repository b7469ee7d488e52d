//! Merges the configuration file with the stored state.
//!
//! A three-way merge of the file as last applied, the file now, and the stored state. Applies edits of the file since
//! it was last applied, and keeps API changes since then. Where both changed the same, the file has precedence, which
//! is reported. So an edit of the file changes that place only, and detaches no port attached by API.
//!
//! Compares the configurations as tables, key by key. This version parses all three, so that a changed default is no
//! edit.
//!
//! An API change that conflicts with the new file (its network is gone, its MAC address is in use) is dropped alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::control::config::{Config, ConfigError, ConfigErrors, Port, Uplink, parse_json_over};

/// Result of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Merged configuration, with the file's `[switch]`.
    pub config: Config,
    /// Dropped API changes, with reasons.
    pub conflicts: Vec<String>,
}

/// An entity of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ConfigEntity {
    Network(String),
    Vm(String),
    Uplink(String),
    // Ordered after what it needs; for subports see `order_of`.
    Port(String),
}

impl std::fmt::Display for ConfigEntity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ConfigEntity::Network(id) => write!(f, "network {id:?}"),
            ConfigEntity::Vm(id) => write!(f, "VM {id:?}"),
            ConfigEntity::Uplink(id) => write!(f, "uplink {id:?}"),
            ConfigEntity::Port(id) => write!(f, "port {id:?}"),
        }
    }
}

/// Key of a port's table that names its VM, as in `attach`.
const VM: &str = "device_id";

/// Entities of a configuration, each as a table of all keys.
type Tables = BTreeMap<ConfigEntity, Value>;

/// An API change of an entity: its new table, or removal.
#[derive(Debug, Clone)]
struct EntityChange {
    entity: ConfigEntity,
    result: Option<Value>,
    message: String,
}

/// Merges a file, which was last applied as `base` says, with a state.
pub fn merge(last_applied: &Config, file: &Config, state: &Config) -> Merged {
    let state = &Config { switch: file.switch.clone(), ..state.clone() };
    if same(last_applied, state) || same(file, state) {
        return Merged { config: file.clone(), conflicts: Vec::new() };
    }
    if same(last_applied, file) {
        return Merged { config: state.clone(), conflicts: Vec::new() };
    }
    let [of_base, of_file, of_state] = [last_applied, file, state].map(tables);
    let mut conflicts = Vec::new();
    let mut units = Vec::new();
    let all: BTreeSet<&ConfigEntity> = of_base.keys().chain(of_file.keys()).chain(of_state.keys()).collect();
    for entity in all {
        let [was, in_file, stored] = [&of_base, &of_file, &of_state].map(|of| of.get(entity));
        if stored == in_file || stored == was {
            continue;
        }
        match (was, in_file, stored) {
            // Attached by API, or present by API.
            (None, None, Some(stored)) => {
                units.push(entity_change(entity, Some(stored.clone()), "was added by API"));
            }
            // Unchanged in the file, and removed by API.
            (was, Some(in_file), None) if was == Some(in_file) => {
                units.push(entity_change(entity, None, "was removed by API"));
            }
            (Some(_), Some(_), None) => {
                conflicts.push(format!("{entity} was removed by API, and is restored: the file has changed it"));
            }
            (Some(_), None, Some(_)) => {
                // A VM exists while it has ports.
                if !matches!(entity, ConfigEntity::Vm(_)) {
                    conflicts.push(format!("{entity} was changed by API, and is removed: the file has removed it"));
                }
            }
            (was, Some(in_file), Some(stored)) => {
                let was = was.unwrap_or(&Value::Null);
                let mut messages = Vec::new();
                let becomes = merge_value("", was, in_file, stored, &mut messages);
                conflicts.extend(messages.into_iter().map(|message| format!("{entity}: {message}")));
                if becomes != *in_file {
                    units.push(entity_change(entity, Some(becomes), "was changed by API"));
                }
            }
            // Removed in both, or new in the file only.
            (_, None, None) | (None, Some(_), None) => {}
        }
    }
    order_of(&mut units);
    let whole = |accepted: &[&EntityChange]| build([last_applied, file, state], &of_file, accepted);
    let mut accepted = Vec::new();
    accept(&units, &whole, &mut accepted, &mut conflicts);
    match whole(&accepted) {
        Ok(config) => Merged { config, conflicts },
        // It was valid before.
        Err(_) => Merged { config: file.clone(), conflicts },
    }
}

/// Whether two configurations are equal except for `[switch]`.
fn same(a: &Config, b: &Config) -> bool {
    (&a.networks, &a.vms, &a.uplinks) == (&b.networks, &b.vms, &b.uplinks)
}

fn entity_change(entity: &ConfigEntity, result: Option<Value>, messages: &str) -> EntityChange {
    EntityChange { entity: entity.clone(), result, message: format!("{entity} {messages}") }
}

/// Orders changes: an entity is added before those that need it, and removed after them.
fn order_of(units: &mut Vec<EntityChange>) {
    let subport = |unit: &EntityChange| unit.result.as_ref().is_some_and(|table| table.get("parent").is_some());
    let (gone, mut rest): (Vec<EntityChange>, Vec<EntityChange>) =
        std::mem::take(units).into_iter().partition(|unit| unit.result.is_none());
    rest.sort_by_key(subport);
    // Removals come first; among them, ports, which are last in order.
    units.extend(gone.into_iter().rev());
    units.extend(rest);
}

/// Accepts the changes that are valid together with those already accepted.
fn accept<'u>(
    units: &'u [EntityChange],
    whole: &impl Fn(&[&EntityChange]) -> Result<Config, ConfigErrors>,
    accepted: &mut Vec<&'u EntityChange>,
    conflicts: &mut Vec<String>,
) {
    if units.is_empty() {
        return;
    }
    let before = accepted.len();
    accepted.extend(units);
    let Err(errors) = whole(accepted) else { return };
    accepted.truncate(before);
    if let [alone] = units {
        let why: Vec<String> = errors.errors().iter().map(ConfigError::without_location).take(3).collect();
        conflicts.push(format!("{}, which contradicts the file: {}", alone.message, why.join("; ")));
        return;
    }
    let (first, second) = units.split_at(units.len() / 2);
    accept(first, whole, accepted, conflicts);
    accept(second, whole, accepted, conflicts);
}

/// Merges a value: `was` in the file as last applied, `in_file` in the file now, `stored` in the state.
fn merge_value(key: &str, was: &Value, in_file: &Value, stored: &Value, messages: &mut Vec<String>) -> Value {
    if stored == in_file || stored == was {
        return in_file.clone();
    }
    if in_file == was {
        return stored.clone();
    }
    if let (Some(in_file), Some(stored)) = (in_file.as_object(), stored.as_object()) {
        let empty = Map::new();
        let was = was.as_object().unwrap_or(&empty);
        let keys: BTreeSet<&String> = was.keys().chain(in_file.keys()).chain(stored.keys()).collect();
        let merged = keys.into_iter().map(|of| {
            let [was, in_file, stored] = [was, in_file, stored].map(|table| table.get(of).unwrap_or(&Value::Null));
            let path = if key.is_empty() { of.clone() } else { format!("{key}.{of}") };
            (of.clone(), merge_value(&path, was, in_file, stored, messages))
        });
        return merged.filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into();
    }
    let shown = |value: &Value| if value.is_null() { "not set".to_owned() } else { value.to_string() };
    messages.push(format!(
        "{key} was set to {} by API, and is {}: the file has changed it",
        shown(stored),
        shown(in_file)
    ));
    in_file.clone()
}

fn table(of: &impl Serialize) -> Value {
    // Serialising fails only for maps with keys that are no strings.
    serde_json::to_value(of).unwrap_or_default()
}

fn tables(config: &Config) -> Tables {
    let mut tables = Tables::new();
    for network in &config.networks {
        tables.insert(ConfigEntity::Network(network.id.clone()), table(&network.to_raw()));
    }
    for vm in &config.vms {
        let own = vm.settings().vm(vm.id.clone(), Vec::new());
        tables.insert(ConfigEntity::Vm(vm.id.clone()), table(&own.to_raw()));
        for port in &vm.ports {
            let mut of = table(&Port::to_raw(port));
            if let Some(keys) = of.as_object_mut() {
                keys.insert(VM.into(), vm.id.clone().into());
            }
            tables.insert(ConfigEntity::Port(port.port_id.clone()), of);
        }
    }
    for uplink in &config.uplinks {
        tables.insert(ConfigEntity::Uplink(uplink.id.clone()), table(&Uplink::to_raw(uplink)));
    }
    tables
}

/// Applies changes to the file. The three configurations determine the order.
fn build(order: [&Config; 3], file: &Tables, changes: &[&EntityChange]) -> Result<Config, ConfigErrors> {
    let mut tables: HashMap<&ConfigEntity, &Value> = file.iter().collect();
    for EntityChange { entity, result, .. } in changes {
        match result {
            Some(table) => drop(tables.insert(entity, table)),
            None => drop(tables.remove(entity)),
        }
    }
    let mut ports: HashMap<&str, HashSet<&str>> = HashMap::new();
    for (entity, table) in &tables {
        if let (ConfigEntity::Port(id), Some(vm)) = (entity, table[VM].as_str()) {
            ports.entry(vm).or_default().insert(id);
        }
    }
    let networks = sequence(order.map(|of| ids(&of.networks, |n| &n.id)), |id| {
        tables.contains_key(&ConfigEntity::Network(id.to_owned()))
    });
    let vms = sequence(order.map(|of| ids(&of.vms, |vm| &vm.id)), |id| {
        ports.contains_key(id) || tables.contains_key(&ConfigEntity::Vm(id.to_owned()))
    });
    let uplinks = sequence(order.map(|of| ids(&of.uplinks, |u| &u.id)), |id| {
        tables.contains_key(&ConfigEntity::Uplink(id.to_owned()))
    });
    let all_ports = order.map(|of| of.ports().map(|(_, port)| port.id()).collect::<Vec<_>>());
    let of = |entity: ConfigEntity| tables.get(&entity).map(|&table| table.clone());
    let vm = |id: &str| {
        let entity = ConfigEntity::Vm(id.to_owned());
        let mut vm = file.get(&entity).cloned().unwrap_or_else(|| serde_json::json!({ "id": id }));
        // An entity removed by API keeps the file's table if the file has a port for it.
        if let Some(table) = of(entity) {
            vm = table;
        }
        let none = HashSet::new();
        let members = ports.get(id).unwrap_or(&none);
        let of_this = all_ports.clone().map(|ids| ids.into_iter().filter(|id| members.contains(id)).collect());
        let tables = sequence(of_this, |_| true).into_iter().filter_map(|id| of(ConfigEntity::Port(id.to_owned())));
        let tables = tables.map(|mut table| {
            if let Some(keys) = table.as_object_mut() {
                keys.remove(VM);
            }
            table
        });
        vm["ports"] = tables.collect();
        vm
    };
    let config = serde_json::json!({
        "networks": networks.into_iter().filter_map(|id| of(ConfigEntity::Network(id.to_owned()))).collect::<Value>(),
        "vms": vms.into_iter().map(vm).collect::<Value>(),
        "uplinks": uplinks.into_iter().filter_map(|id| of(ConfigEntity::Uplink(id.to_owned()))).collect::<Value>(),
    });
    parse_json_over(&config.to_string(), "", order[1].switch.clone())
}

fn ids<T>(items: &[T], id: impl Fn(&T) -> &String) -> Vec<&str> {
    items.iter().map(|item| id(item).as_str()).collect()
}

/// Order of the entities that exist: the state's if the file's is unchanged, else the file's. Entities without position
/// there follow their predecessor in the other order, or come last if they are last there.
fn sequence<'a, T: Eq + Hash + Copy + 'a>(
    [last_applied, file, state]: [Vec<T>; 3],
    is_there: impl Fn(T) -> bool,
) -> Vec<T> {
    let common = |of: &[T], with: &[T]| {
        let with: HashSet<T> = with.iter().copied().collect();
        of.iter().copied().filter(|id| with.contains(id)).collect::<Vec<_>>()
    };
    let is_moved = common(&last_applied, &file) != common(&file, &last_applied);
    let (first, second) = if is_moved { (file, state) } else { (state, file) };
    let mut placed: Vec<T> = first.into_iter().filter(|&id| is_there(id)).collect();
    let mut known: HashSet<T> = placed.iter().copied().collect();
    let second: Vec<T> = second.into_iter().filter(|&id| is_there(id)).collect();
    let last_known = second.iter().rposition(|id| known.contains(id)).map_or(0, |at| at + 1);
    let (among, after) = second.split_at(last_known);
    let mut before = None;
    for &id in among {
        if known.insert(id) {
            let at = before.and_then(|before| placed.iter().position(|&other| other == before)).map_or(0, |at| at + 1);
            placed.insert(at, id);
        }
        before = Some(id);
    }
    placed.extend(after);
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{parse_json, testgen};
    use proptest::prelude::*;

    /// Ports on net `n`, as `(vm, port, MAC number, other keys)`.
    fn config(networks: &[&str], ports: &[(&str, &str, u8, &str)]) -> Config {
        let networks: Vec<String> = networks.iter().map(|id| format!("{{{id}}}")).collect();
        let mut vms: Vec<&str> = Vec::new();
        ports.iter().for_each(|(vm, ..)| {
            if !vms.contains(vm) {
                vms.push(vm);
            }
        });
        let port = |(_, id, mac, more): &(&str, &str, u8, &str)| {
            let network = if more.contains("network_id") { "" } else { r#""network_id": "n","# };
            format!(
                r#"{{"port_id": "{id}", {network} "mac_address": "02:00:00:00:00:{mac:02x}",
                "device": {{"kind": "tap", "name": "{id}"}}{more}}}"#
            )
        };
        let vm = |vm: &&str| {
            let of: Vec<String> = ports.iter().filter(|(of, ..)| of == vm).map(port).collect();
            format!(r#"{{"id": "{vm}", "ports": [{}]}}"#, of.join(", "))
        };
        let vms: Vec<String> = vms.iter().map(vm).collect();
        let text = format!(r#"{{"networks": [{}], "vms": [{}]}}"#, networks.join(", "), vms.join(", "));
        parse_json(&text, "x").unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    const N: &str = r#""id": "n""#;

    fn ports(config: &Config) -> Vec<(&str, &str)> {
        config.ports().map(|(vm, port)| (vm.id.as_str(), port.id())).collect()
    }

    #[test]
    fn an_edit_elsewhere_keeps_attached_ports() {
        let last_applied = config(&[N], &[("a", "p1", 1, "")]);
        let state = config(&[N], &[("a", "p1", 1, ""), ("a", "p2", 2, ""), ("b", "p3", 3, "")]);
        let file = config(&[r#""id": "n", "ageing_seconds": 60"#], &[("a", "p1", 1, ""), ("a", "p4", 4, "")]);
        let Merged { config, conflicts } = merge(&last_applied, &file, &state);
        assert_eq!(ports(&config), [("a", "p1"), ("a", "p2"), ("a", "p4"), ("b", "p3")]);
        assert_eq!((config.networks[0].ageing_seconds, conflicts), (60, vec![]));
    }

    #[test]
    fn ports_removed_from_the_file_are_removed_and_attached_ones_kept() {
        let last_applied = config(&[N], &[("a", "p1", 1, ""), ("b", "p3", 3, "")]);
        let state = config(&[N], &[("a", "p1", 1, ""), ("a", "p2", 2, ""), ("b", "p3", 3, "")]);
        let file = config(&[N], &[("b", "p3", 3, "")]);
        let Merged { config, conflicts } = merge(&last_applied, &file, &state);
        assert_eq!((ports(&config), conflicts), (vec![("a", "p2"), ("b", "p3")], vec![]));
    }

    #[test]
    fn a_detached_port_stays_detached_until_the_file_changes_it() {
        let last_applied = config(&[N], &[("a", "p1", 1, ""), ("a", "p2", 2, "")]);
        let state = config(&[N], &[("a", "p2", 2, "")]);
        let more = config(&[N], &[("a", "p1", 1, ""), ("a", "p2", 2, ""), ("c", "p5", 5, "")]);
        let Merged { config: merged, conflicts } = merge(&last_applied, &more, &state);
        assert_eq!((ports(&merged), conflicts), (vec![("a", "p2"), ("c", "p5")], vec![]));
        let touched = config(&[N], &[("a", "p1", 1, r#", "promiscuous": true"#), ("a", "p2", 2, "")]);
        let Merged { config: merged, conflicts } = merge(&last_applied, &touched, &state);
        assert_eq!(ports(&merged), [("a", "p1"), ("a", "p2")]);
        assert!(conflicts.len() == 1 && conflicts[0].contains("port \"p1\""), "{conflicts:?}");
    }

    #[test]
    fn keys_are_merged_and_the_file_takes_precedence() {
        let last_applied = config(&[N], &[("a", "p1", 1, "")]);
        let state = config(&[N], &[("a", "p1", 1, r#", "promiscuous": true, "admin_state_up": false"#)]);
        let file = config(&[N], &[("a", "p1", 9, r#", "port_security": "off""#)]);
        let Merged { config: merged, conflicts } = merge(&last_applied, &file, &state);
        let port = merged.ports().next().unwrap().1;
        assert_eq!(
            (port.promiscuous, port.admin_state_up, port.mac.to_string().as_str()),
            (true, false, "02:00:00:00:00:09")
        );
        assert_eq!(conflicts, [""; 0]);
        let both = config(&[N], &[("a", "p1", 7, "")]);
        let state = config(&[N], &[("a", "p1", 8, "")]);
        let Merged { config: merged, conflicts } = merge(&last_applied, &both, &state);
        assert_eq!(merged, both);
        assert_eq!(
            conflicts,
            [
                "port \"p1\": mac_address was set to \"02:00:00:00:00:08\" by API, and is \"02:00:00:00:00:07\": the file has changed it"
            ]
        );
    }

    #[test]
    fn only_conflicting_ports_are_dropped() {
        let last_applied = config(&[N, r#""id": "m""#], &[("a", "p1", 1, "")]);
        let on_m = r#", "network_id": "m""#;
        let state = config(
            &[N, r#""id": "m""#],
            &[("a", "p1", 1, ""), ("a", "p2", 2, ""), ("b", "p3", 3, on_m), ("b", "p4", 4, ""), ("c", "p6", 6, "")],
        );
        // Network m is gone, and p5 has the address of p2.
        let file = config(&[N], &[("a", "p1", 1, ""), ("d", "p5", 2, "")]);
        let Merged { config, conflicts } = merge(&last_applied, &file, &state);
        assert_eq!(ports(&config), [("a", "p1"), ("b", "p4"), ("c", "p6"), ("d", "p5")]);
        assert_eq!(conflicts.len(), 2, "{conflicts:?}");
        assert!(
            conflicts.iter().any(|messages| messages.contains("p2") && messages.contains("use another address")),
            "{conflicts:?}"
        );
        assert!(
            conflicts.iter().any(|messages| messages.contains("p3") && messages.contains("no such network")),
            "{conflicts:?}"
        );
    }

    #[test]
    fn the_order_is_that_of_the_state_unless_the_file_has_changed_its_own() {
        let of = |text: &str| text.chars().collect::<Vec<_>>();
        let all = |last_applied: &str, file: &str, state: &str| {
            sequence([last_applied, file, state].map(of), |_| true).into_iter().collect::<String>()
        };
        assert_eq!(all("ab", "ab", "abc"), "abc");
        assert_eq!(all("ab", "axb", "abc"), "axbc");
        assert_eq!(all("ab", "xab", "cab"), "xcab");
        assert_eq!(all("ab", "abx", "abc"), "abcx");
        assert_eq!(all("ab", "ba", "abc"), "bac");
        assert_eq!(all("ab", "ba", "acb"), "bac");
        assert_eq!(all("ab", "abx", "ba"), "bax");
        assert_eq!(all("", "xy", "ab"), "abxy");
    }

    proptest! {
        #[test]
        fn with_one_side_unchanged_the_other_applies((a, b) in testgen::two()) {
            let merged = |last_applied, file, state| merge(last_applied, file, state);
            let of_file = |config: &Config| Config { switch: a.switch.clone(), ..config.clone() };
            prop_assert_eq!(merged(&a, &a, &b), Merged { config: of_file(&b), conflicts: vec![] });
            prop_assert_eq!(merged(&a, &b, &a).config, b.clone());
            prop_assert_eq!(merged(&a, &b, &b), Merged { config: b.clone(), conflicts: vec![] });
        }

        /// For any three configurations: the result is valid, has all of the file, and no port that neither side
        /// wants.
        #[test]
        fn merged_configurations_are_valid([last_applied, file, state] in testgen::three()) {
            let Merged { config, conflicts } = merge(&last_applied, &file, &state);
            prop_assert_eq!(parse_json(&config.to_sparse().to_string(), "x"), Ok(config.clone()));
            let ids = |of: &Config| of.ports().map(|(_, port)| port.port_id.clone()).collect::<HashSet<_>>();
            let (was, in_file, stored, is) = (ids(&last_applied), ids(&file), ids(&state), ids(&config));
            prop_assert!(is.iter().all(|id| in_file.contains(id) || stored.contains(id)));
            prop_assert!(in_file.difference(&is).all(|id| was.contains(id) && !stored.contains(id)));
            for id in stored.difference(&was).filter(|id| !is.contains(*id)) {
                prop_assert!(conflicts.iter().any(|messages| messages.contains(&format!("{id:?}"))), "{id}: {conflicts:?}");
            }
            // Merging again changes nothing.
            prop_assert_eq!(merge(&file, &file, &config).config, config);
        }
    }
}
