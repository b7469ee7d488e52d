//! Names that earlier versions wrote: what is read from a state file gets the names of this version.

use serde_json::{Map, Value};

type Names = [(&'static str, &'static str)];

/// Keys of networks and of devices, before and now.
const KEYS: &Names =
    &[("guard", "anti_spoof"), ("freeze_seconds", "dampening_seconds"), ("takeover", "replace_xdp_program")];

/// Kinds of events.
const EVENT_KINDS: &Names =
    &[("bridges", "networks_bridged"), ("guard", "spoofed_mac"), ("mac_freeze", "mac_dampened")];

/// Kinds of loops.
const LOOP_KINDS: &Names = &[("siblings", "intra_vm"), ("around", "external"), ("bridged", "inter_network")];

/// Levels of mitigation.
const LEVELS: &Names = &[("split", "split_horizon"), ("most", "all_but_one")];

/// Renames the keys of a stored configuration.
pub(super) fn config(stored: &mut Value) {
    each(stored, "networks", |network| keys(network, KEYS));
    each(stored, "uplinks", device);
    each(stored, "vms", |vm| each(vm, "ports", device));
}

/// Renames the kind of a stored event.
pub(super) fn event(stored: &mut Value) {
    word(stored.get_mut("kind"), EVENT_KINDS);
}

/// Renames kinds and levels of stored loops.
pub(super) fn loops(stored: &mut Value) {
    match stored {
        Value::Array(items) => items.iter_mut().for_each(loops),
        Value::Object(table) => {
            if let Some(key) = table.get_mut("key") {
                keys(key, LOOP_KINDS);
            }
            word(table.get_mut("level"), LEVELS);
            table.values_mut().for_each(loops);
        }
        _ => {}
    }
}

fn device(of: &mut Value) {
    if let Some(device) = of.get_mut("device") {
        keys(device, KEYS);
    }
}

fn each(table: &mut Value, list: &str, rename: impl FnMut(&mut Value)) {
    if let Some(items) = table.get_mut(list).and_then(Value::as_array_mut) {
        items.iter_mut().for_each(rename);
    }
}

/// Renames keys of a table. A key of today takes precedence over its old name.
fn keys(table: &mut Value, names: &Names) {
    let Some(table) = table.as_object_mut() else { return };
    let rename = |table: &mut Map<String, Value>, (before, now): &(&str, &str)| {
        if let Some(value) = table.remove(*before) {
            table.entry(*now).or_insert(value);
        }
    };
    names.iter().for_each(|pair| rename(table, pair));
}

fn word(value: Option<&mut Value>, names: &Names) {
    let Some(value) = value else { return };
    if let Some((_, now)) = names.iter().find(|(before, _)| value.as_str() == Some(*before)) {
        *value = Value::from(*now);
    }
}
