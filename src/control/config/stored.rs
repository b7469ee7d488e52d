//! Parses a stored configuration, possibly of another version.
//!
//! A file with an error is refused. A stored configuration must not be, or the host would start without its ports.
//! Parts that this version cannot parse are therefore kept unmodified beside the configuration, for a version that can:
//! unknown keys, invalid values of networks and VMs, and ports and uplinks with anything invalid.

use serde_json::{Map, Value};

use super::diagnostics::{Diagnostics, Path, Step};
use super::error::{ConfigError, ConfigErrors, kind};
use super::model::Config;
use super::parse::{self, Node};
use super::raw::{self, Read};
use super::{lower, trunk, validate};

/// A stored configuration, as far as this version can parse it.
#[derive(Debug, Clone)]
pub struct StoredConfig {
    /// Parsed parts.
    pub config: Config,
    /// Unknown parts.
    pub unknown: UnknownParts,
}

/// Parts of a stored configuration that this version cannot parse.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UnknownParts {
    parts: Vec<(Vec<PathStep>, Value)>,
    /// One message each.
    pub messages: Vec<String>,
}

/// One step of the path to an unknown part.
#[derive(Debug, Clone, PartialEq)]
enum PathStep {
    Key(String),
    /// An item of a list, identified by a key and its value.
    Item {
        id: &'static str,
        is: Value,
    },
    /// An item of a list without identifying key.
    Index(usize),
}

/// Parses a stored configuration. Fails only if its basic structure is unknown.
pub fn read_stored(restored: &Value) -> Result<StoredConfig, ConfigErrors> {
    const NAME: &str = "the stored state";
    let mut restored = restored.clone();
    let mut unknown = UnknownParts::default();
    loop {
        let node =
            parse::from_json(&restored.to_string()).map_err(|e| ConfigErrors::from(ConfigError::of_syntax(NAME, e)))?;
        let mut diagnostics = Diagnostics::new(NAME, &node);
        let raw = raw::Config::read(&node, &Path::default(), &mut diagnostics).unwrap_or_default();
        let mut config = lower::lower(&raw, &mut diagnostics);
        validate::check(&config, &mut diagnostics);
        trunk::check(&config, &mut diagnostics);
        let paths = diagnostics.take_paths();
        let Some(errors) = diagnostics.finish() else {
            config.order_ports();
            return Ok(StoredConfig { config, unknown });
        };
        if !unknown.extract(&mut restored, &paths, &node) {
            return Err(errors);
        }
    }
}

impl UnknownParts {
    /// Whether there are no unknown parts.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Inserts unknown parts again whose parent exists and whose place is free.
    pub fn restore_into(&self, config: &mut Value) {
        // A part extracted later may contain one extracted earlier.
        for (place, value) in self.parts.iter().rev() {
            graft(config, place, value);
        }
    }

    /// Extracts the parts with errors from `stored`. `false` if none can be extracted.
    fn extract(&mut self, stored: &mut Value, paths: &[(Path, &'static str, String)], root: &Node) -> bool {
        // Keys first: without them the entity may be valid.
        let is_key = |path: &Path, kind: &str| {
            let last = path.steps().last();
            let unknown = kind == kind::UNKNOWN_KEY || kind == kind::NOT_YET && *last_key(path) != *"kind";
            matches!(last, Some(Step::Key(_))) && unknown
        };
        let keys: Vec<_> = paths.iter().filter(|(path, kind, _)| is_key(path, kind)).collect();
        let mut taken = false;
        if keys.is_empty() {
            // One at a time: it may have caused errors of others.
            let Some((path, _, message)) = paths.first() else { return false };
            let Some(steps) = entity(path.steps()) else { return false };
            taken |= self.take(stored, &steps, message, root);
        }
        for (path, _, message) in keys {
            taken |= self.take(stored, path.steps(), message, root);
        }
        taken
    }

    fn take(&mut self, stored: &mut Value, steps: &[Step], message: &str, root: &Node) -> bool {
        let Some(place) = place(steps, root) else { return false };
        let Some(value) = remove(stored, steps) else { return false };
        self.parts.push((place, value));
        self.messages.push(message.to_owned());
        true
    }
}

fn last_key(path: &Path) -> &str {
    match path.steps().last() {
        Some(Step::Key(key)) => key,
        _ => "",
    }
}

/// The part to extract for an invalid value at `steps`: a port, an uplink, or a key of something else.
fn entity(steps: &[Step]) -> Option<Vec<Step>> {
    let key = |at: usize| match steps.get(at) {
        Some(Step::Key(key)) => key.as_str(),
        _ => "",
    };
    let is_item = |at: usize| matches!(steps.get(at), Some(Step::Item(_)));
    let length = match (key(0), key(2)) {
        ("vms", "ports") if is_item(1) && is_item(3) => 4,
        // An object without an id cannot be identified.
        ("networks" | "vms", "id") if is_item(1) => 2,
        ("networks" | "vms", other) if is_item(1) && !other.is_empty() => 3,
        ("networks" | "vms" | "uplinks", _) if is_item(1) => 2,
        ("switch", _) if steps.len() > 1 => 2,
        _ => return None,
    };
    Some(steps[..length].to_vec())
}

/// A path that stays valid when items before it in their lists change.
fn place(steps: &[Step], root: &Node) -> Option<Vec<PathStep>> {
    let (mut node, mut list) = (Some(root), "");
    let mut place = Vec::new();
    for step in steps {
        place.push(match step {
            Step::Key(key) => {
                node = node.and_then(|node| node.get(key));
                list = key;
                PathStep::Key(key.clone())
            }
            Step::Item(index) => {
                node = node.and_then(|node| node.item(*index));
                let id = match list {
                    "ports" => "port_id",
                    "networks" if place.len() > 1 => "network_id",
                    "networks" | "vms" | "uplinks" => "id",
                    _ => {
                        place.push(PathStep::Index(*index));
                        continue;
                    }
                };
                PathStep::Item { id, is: node?.get(id).cloned().map(Value::from).unwrap_or_default() }
            }
        });
    }
    Some(place)
}

fn remove(table: &mut Value, steps: &[Step]) -> Option<Value> {
    let (first, rest) = steps.split_first()?;
    match first {
        Step::Key(key) if rest.is_empty() => table.as_object_mut()?.remove(key),
        Step::Key(key) => remove(table.get_mut(key)?, rest),
        Step::Item(index) if rest.is_empty() => {
            let list = table.as_array_mut()?;
            (*index < list.len()).then(|| list.remove(*index))
        }
        Step::Item(index) => remove(table.get_mut(*index)?, rest),
    }
}

fn graft(table: &mut Value, place: &[PathStep], value: &Value) {
    let Some((first, rest)) = place.split_first() else { return };
    match first {
        PathStep::Key(key) => {
            let Some(keys) = table.as_object_mut() else { return };
            if rest.is_empty() {
                keys.entry(key.clone()).or_insert_with(|| value.clone());
            } else {
                // A table of defaults only is not serialised; an empty list may not be either.
                let empty = || match rest[0] {
                    PathStep::Key(_) => Map::new().into(),
                    _ => Vec::<Value>::new().into(),
                };
                graft(keys.entry(key.clone()).or_insert_with(empty), rest, value);
            }
        }
        PathStep::Index(index) => {
            let item = table.get_mut(*index);
            item.into_iter().for_each(|item| graft(item, rest, value));
        }
        PathStep::Item { id, is } => {
            let Some(items) = table.as_array_mut() else { return };
            let found = items.iter_mut().find(|item| item.get(id) == Some(is));
            match found {
                Some(item) if !rest.is_empty() => graft(item, rest, value),
                None if rest.is_empty() => items.push(value.clone()),
                // All ports of the VM are unknown parts.
                None if matches!(&rest[0], PathStep::Key(key) if key == "ports") && rest.len() == 2 => {
                    let vm =
                        Map::from_iter([((*id).to_owned(), is.clone()), ("ports".into(), vec![value.clone()].into())]);
                    items.push(vm.into());
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{parse_json, testgen};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn stored_value() -> Value {
        json!({"networks": [{"id": "n"}], "vms": [{"id": "v", "ports": [
            {"port_id": "p", "network_id": "n", "mac_address": "02:00:00:00:00:01", "device": {"kind": "tap", "name": "p"}},
            {"port_id": "q", "network_id": "n", "mac_address": "02:00:00:00:00:02", "device": {"kind": "tap", "name": "q"}},
        ]}]})
    }

    /// Preserved unknown parts survive an unrelated change.
    fn round(stored: &StoredConfig) -> Value {
        let mut raw = stored.config.to_sparse();
        stored.unknown.restore_into(&mut raw);
        raw
    }

    #[test]
    fn unknown_keys_are_ignored_and_kept() {
        let mut with = stored_value();
        with["planets"] = json!(8);
        with["networks"][0]["colour"] = json!("blue");
        with["vms"][0]["ports"][1]["device"]["speed"] = json!({"up": 1});
        with["vms"][0]["ports"][1]["shape"] = json!([1, 2]);
        let stored = read_stored(&with).unwrap();
        assert_eq!(Ok(stored.config.clone()), parse_json(&stored_value().to_string(), "x"));
        assert_eq!(stored.unknown.messages.len(), 4, "{:?}", stored.unknown.messages);
        assert!(stored.unknown.messages[0].contains("colour") || stored.unknown.messages[0].contains("planets"));
        let mut raw = round(&stored);
        raw.as_object_mut().unwrap().retain(|key, _| with.get(key).is_some());
        assert_eq!(raw, with);
        // Unknown keys are removed with their port.
        let mut less = stored.clone();
        less.config.vms[0].ports.remove(1);
        let raw = round(&less);
        assert_eq!(raw["vms"][0]["ports"].as_array().unwrap().len(), 1);
        assert_eq!(raw["planets"], 8);
    }

    #[test]
    fn a_port_of_an_unknown_kind_is_preserved() {
        let mut with = stored_value();
        with["vms"][0]["ports"][0]["device"] = json!({"kind": "vhost-user", "path": "/run/p.sock", "zz": 1});
        with["networks"].as_array_mut().unwrap().push(json!({"id": "m", "reserved_groups": "some"}));
        let stored = read_stored(&with).unwrap();
        let ids: Vec<&str> = stored.config.ports().map(|(_, port)| port.id()).collect();
        assert_eq!(ids, ["q"]);
        assert_eq!(stored.config.networks.len(), 2, "a value of a network is ignored, not the network");
        let raw = round(&stored);
        let ports = raw["vms"][0]["ports"].as_array().unwrap();
        assert_eq!(ports[1], with["vms"][0]["ports"][0]);
        assert_eq!(raw["networks"][1]["reserved_groups"], "some");
        // A VM without other settings.
        let mut alone = with.clone();
        alone["vms"][0]["ports"].as_array_mut().unwrap().pop();
        let mut stored = read_stored(&alone).unwrap();
        stored.config.vms.clear();
        assert_eq!(round(&stored)["vms"][0], alone["vms"][0]);
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for wrong in [json!(7), json!({"networks": 7}), json!({"vms": {"a": 1}})] {
            assert!(read_stored(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn written_configurations_are_read_back(config in testgen::config()) {
            let stored = read_stored(&config.to_sparse()).unwrap();
            prop_assert_eq!(&stored.config, &config);
            prop_assert!(stored.unknown.is_empty());
        }

        /// Any stored value is parsed or refused, and nothing is preserved twice.
        #[test]
        fn an_invalid_value_drops_at_most_one_entity(config in testgen::config(), at in any::<prop::sample::Index>()) {
            let mut with = config.to_sparse();
            let ports: usize = config.ports().count();
            prop_assume!(ports > 0);
            let at = at.index(ports);
            let port = with["vms"].as_array_mut().unwrap().iter_mut()
                .flat_map(|vm| vm.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()).nth(at).unwrap();
            port["port_security"] = json!("a word of tomorrow");
            let subports = config.subports_of(port["port_id"].as_str().unwrap()).count();
            let stored = read_stored(&with).unwrap();
            prop_assert_eq!(stored.config.ports().count(), ports - 1 - subports);
            let mut back = stored.config.to_sparse();
            stored.unknown.restore_into(&mut back);
            let again = read_stored(&back).unwrap();
            prop_assert_eq!(again.config.ports().count(), ports - 1 - subports);
            prop_assert_eq!(again.unknown.parts.len(), stored.unknown.parts.len());
        }
    }
}
