//! A configuration without its defaults, as it is stored.
//!
//! A key with its default value is not stored. An earlier version that lacks the key can therefore read the state of a
//! later one, as long as the key was not set; and if a later version changes a default, the new one applies.

use serde_json::{Map, Value, json};

use super::diagnostics::Diagnostics;
use super::lower;
use super::model::{Config, SwitchSettings};
use super::parse;

/// The keys that say what an entity is; they are written also where a default would give the same.
const IDENTITY: &[&str] = &[
    "id",
    "port_id",
    "network_id",
    "mac_address",
    "device",
    "kind",
    "name",
    "netns",
    "parent",
    "vlan",
    "networks",
    "fixed_ips",
];

/// The keys whose tables are compared key by key. Any other value is compared as a whole.
const TABLES: &[&str] = &["device", "storm"];

impl Config {
    /// The tables that mean this, without the keys that have their defaults. Reading them again gives an equal
    /// configuration.
    pub fn to_sparse(&self) -> Value {
        let mut full = value(self);
        let default = self.defaults();
        if let Some(switch) = full.get_mut("switch") {
            clear(switch, &value(&SwitchSettings::default().to_raw()));
        }
        for list in ["networks", "vms", "uplinks"] {
            let defaults = default[list].as_array().map(Vec::as_slice).unwrap_or_default();
            for (entity, default) in items(&mut full, list).iter_mut().zip(defaults) {
                let ports = default["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
                for (port, default) in items(entity, "ports").iter_mut().zip(ports) {
                    clear(port, default);
                }
                clear(entity, default);
            }
        }
        full
    }

    /// What the same entities would be with nothing but their identity, in the same places.
    fn defaults(&self) -> Value {
        let mut bare = self.to_raw();
        bare.switch = None;
        let keep = |table: &Value| -> Value {
            let keys = table.as_object().into_iter().flatten();
            keys.filter(|(key, _)| IDENTITY.contains(&key.as_str()) || *key == "ports")
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect::<Map<_, _>>()
                .into()
        };
        let mut bare = value(&bare);
        for list in ["networks", "vms", "uplinks"] {
            for entity in items(&mut bare, list) {
                *entity = keep(entity);
                for port in items(entity, "ports") {
                    *port = keep(port);
                }
                for of in [entity.get_mut("device")].into_iter().flatten() {
                    *of = keep(of);
                }
                for port in items(entity, "ports") {
                    for of in [port.get_mut("device")].into_iter().flatten() {
                        *of = keep(of);
                    }
                }
            }
        }
        let raw = parse::from_json(&bare.to_string()).ok().and_then(|node| {
            let mut diagnostics = Diagnostics::new("", &node);
            let raw = <super::raw::Config as super::raw::Read>::read(
                &node,
                &super::diagnostics::Path::default(),
                &mut diagnostics,
            )?;
            // Errors that depend on other keys do not matter here.
            Some(value(&lower::lower(&raw, &mut diagnostics)))
        });
        raw.unwrap_or_else(|| json!({}))
    }
}

/// The items of a list, if there is one.
fn items<'v>(table: &'v mut Value, list: &str) -> &'v mut [Value] {
    table.get_mut(list).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
}

/// Takes out the keys that are as in `default`.
fn clear(table: &mut Value, default: &Value) {
    let Some(keys) = table.as_object_mut() else { return };
    keys.retain(|key, value| {
        let Some(default) = default.get(key) else { return true };
        if TABLES.contains(&key.as_str()) && value.is_object() && default.is_object() {
            clear(value, default);
            return value.as_object().is_some_and(|keys| !keys.is_empty());
        }
        value != default || IDENTITY.contains(&key.as_str())
    });
    if keys.get("fixed_ips").is_some_and(|ips| ips.as_array().is_some_and(Vec::is_empty)) {
        keys.remove("fixed_ips");
    }
}

fn value(table: &impl serde::Serialize) -> Value {
    // No table has other keys than texts, which is all that could fail.
    serde_json::to_value(table).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{Network, parse_json, testgen};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sparse_configuration_has_the_same_meaning(config in testgen::config()) {
            let sparse = config.to_sparse();
            prop_assert_eq!(parse_json(&sparse.to_string(), "x"), Ok(config), "{:#}", sparse);
        }
    }

    #[test]
    fn defaults_are_omitted() {
        let text = r#"{"networks": [{"id": "n", "mtu": 9000}], "vms": [{"id": "v", "ports": [{"port_id": "p",
            "network_id": "n", "mac_address": "02:00:00:00:00:01", "port_security": "off",
            "device": {"kind": "tap", "name": "t", "queues": 2}}]}],
            "uplinks": [{"id": "u", "networks": [{"network_id": "n"}], "device": {"kind": "packet", "name": "e"}}]}"#;
        let raw: Value = serde_json::from_str(text).unwrap();
        let mut sparse = parse_json(text, "x").unwrap().to_sparse();
        assert_eq!(sparse["switch"], json!({}));
        sparse.as_object_mut().unwrap().remove("switch");
        assert_eq!(sparse, raw);
        let default = Config { networks: vec![Network::new("n")], ..Config::default() }.to_sparse();
        assert_eq!(default, json!({"switch": {}, "networks": [{"id": "n"}], "vms": [], "uplinks": []}));
    }
}
