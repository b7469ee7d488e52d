//! What leads from a configuration back to the one before: few values where little has changed.
//!
//! Values are complete raw entities. `[switch]` is no part of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::config::{Config, Network, Port, Shared, Uplink, Vm, differing};

/// The steps back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Patch {
    networks: ListPatch,
    vms: ListPatch,
    uplinks: ListPatch,
    /// VMs that are in both configurations and differ, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    changed_vms: BTreeMap<String, VmPatch>,
}

/// A VM with other settings or ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct VmPatch {
    /// The VM without its ports.
    settings: Value,
    ports: ListPatch,
}

/// A list of entities, each with an id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct ListPatch {
    /// Ids that the list before did not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
    /// Entities that were other ones, or missing now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    put: Vec<Value>,
    /// Places of missing ones in the list before, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inserted: Vec<(usize, String)>,
    /// All ids in their order before, if those in both lists have another one now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<Vec<String>>,
}

/// A configuration that a patch was not made for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it does not match: {0:?}")]
pub struct Mismatch(String);

impl Patch {
    /// The steps from `new` back to `old`.
    pub fn between(new: &Config, old: &Config) -> Patch {
        let changed_vms = changed_vms(new, old);
        let value = |vm: &Shared<Vm>| value(&vm.to_raw());
        let mut vms = ListPatch::between(&new.vms, &old.vms, |vm| &vm.id, value);
        vms.put.retain(|vm| !changed_vms.contains_key(id_of(vm, "id")));
        Patch {
            networks: ListPatch::between(
                &new.networks,
                &old.networks,
                |of| &of.id,
                |of: &Network| self::value(&of.to_raw()),
            ),
            vms,
            uplinks: ListPatch::between(
                &new.uplinks,
                &old.uplinks,
                |of| &of.id,
                |of: &Uplink| self::value(&of.to_raw()),
            ),
            changed_vms,
        }
    }

    /// Goes back from a raw configuration.
    pub fn apply(&self, config: &mut Value) -> Result<(), Mismatch> {
        let vms = config["vms"].as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
        let mut changed = 0;
        for vm in vms {
            let Some(patch) = self.changed_vms.get(id_of(vm, "id")) else { continue };
            let ports = vm["ports"].take();
            *vm = patch.settings.clone();
            vm["ports"] = patch.ports.apply(ports, "port_id")?;
            changed += 1;
        }
        if changed < self.changed_vms.len() {
            return Err(Mismatch("vms".into()));
        }
        for (list, patch) in [("networks", &self.networks), ("vms", &self.vms), ("uplinks", &self.uplinks)] {
            config[list] = patch.apply(config[list].take(), "id")?;
        }
        Ok(())
    }
}

fn changed_vms(new: &Config, old: &Config) -> BTreeMap<String, VmPatch> {
    let (vms_before, vms_after) = differing(&old.vms, &new.vms);
    let after: HashMap<&str, &Shared<Vm>> = vms_after.iter().map(|vm| (vm.id.as_str(), vm)).collect();
    let mut changed = BTreeMap::new();
    for was in vms_before {
        let Some(is) = after.get(was.id.as_str()).filter(|is| **is != was) else { continue };
        let mut settings = value(&was.settings().vm(was.id.clone(), Vec::new()).to_raw());
        settings["ports"] = json!([]);
        let port = |port: &Port| value(&port.to_raw());
        let ports = ListPatch::between(&is.ports, &was.ports, |port| &port.port_id, port);
        changed.insert(was.id.clone(), VmPatch { settings, ports });
    }
    changed
}

impl ListPatch {
    fn between<T: PartialEq>(new: &[T], old: &[T], id: fn(&T) -> &String, value: impl Fn(&T) -> Value) -> ListPatch {
        if new == old {
            return ListPatch::default();
        }
        let before: HashSet<&str> = old.iter().map(|item| id(item).as_str()).collect();
        let after: HashMap<&str, &T> = new.iter().map(|item| (id(item).as_str(), item)).collect();
        let ids = |items: &mut dyn Iterator<Item = &T>| items.map(|item| id(item).clone()).collect::<Vec<String>>();
        let stays = |item: &&T| after.contains_key(id(item).as_str());
        let kept_before = old.iter().filter(stays).map(id);
        let kept_now = new.iter().map(id).filter(|id| before.contains(id.as_str()));
        let missing = old.iter().enumerate().filter(|(_, item)| !stays(item));
        ListPatch {
            gone: ids(&mut new.iter().filter(|item| !before.contains(id(item).as_str()))),
            put: old.iter().filter(|item| after.get(id(item).as_str()) != Some(item)).map(value).collect(),
            inserted: missing.map(|(place, item)| (place, id(item).clone())).collect(),
            order: (!kept_before.eq(kept_now)).then(|| ids(&mut old.iter())),
        }
    }

    fn apply(&self, list: Value, key: &str) -> Result<Value, Mismatch> {
        let Value::Array(items) = list else { return Err(Mismatch(key.to_owned())) };
        let mut ids: Vec<String> = items.iter().map(|item| id_of(item, key).to_owned()).collect();
        let mut items: HashMap<String, Value> =
            items.into_iter().map(|item| (id_of(&item, key).to_owned(), item)).collect();
        for gone in &self.gone {
            items.remove(gone).ok_or_else(|| Mismatch(gone.clone()))?;
        }
        ids.retain(|id| items.contains_key(id));
        let inserted: HashSet<&str> = self.inserted.iter().map(|(_, id)| id.as_str()).collect();
        for put in &self.put {
            let id = id_of(put, key);
            let was = items.insert(id.to_owned(), put.clone());
            if was.is_some() == inserted.contains(id) {
                return Err(Mismatch(id.to_owned()));
            }
        }
        match &self.order {
            Some(order) => ids.clone_from(order),
            None => {
                for (place, id) in &self.inserted {
                    if *place > ids.len() {
                        return Err(Mismatch(id.clone()));
                    }
                    ids.insert(*place, id.clone());
                }
            }
        }
        let all = ids.len() == items.len();
        let items: Result<Vec<Value>, Mismatch> =
            ids.iter().map(|id| items.remove(id).ok_or_else(|| Mismatch(id.clone()))).collect();
        if all { items.map(Value::Array) } else { Err(Mismatch(key.to_owned())) }
    }
}

fn id_of<'v>(item: &'v Value, key: &str) -> &'v str {
    item[key].as_str().unwrap_or_default()
}

/// Tables as JSON. Serialising tables cannot fail.
pub(super) fn value(table: &impl Serialize) -> Value {
    serde_json::to_value(table).unwrap_or_default()
}
