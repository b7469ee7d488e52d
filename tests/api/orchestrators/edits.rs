//! A reference model of changes, on configurations as JSON in the form in which the API shows them.

use serde_json::{Map, Value, json};

/// A change of a configuration.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Ports of a VM: in place, or behind its others.
    PutPorts(String, Vec<Value>),
    DeletePort(String),
    /// An item of the list `networks` or `uplinks`.
    Put(&'static str, Value),
    Delete(&'static str, String),
    /// The settings of a VM, and the ids of its ports in a new order.
    SetVm(String, Map<String, Value>, Option<Vec<String>>),
    DeleteVm(String),
}

/// The items of a list.
pub fn items<'v>(table: &'v Value, list: &str) -> &'v [Value] {
    table[list].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn items_mut<'v>(table: &'v mut Value, list: &str) -> &'v mut Vec<Value> {
    if table[list].is_null() {
        table[list] = json!([]);
    }
    table[list].as_array_mut().unwrap()
}

/// The item with this id.
pub fn find<'v>(table: &'v Value, list: &str, id: &str) -> Option<&'v Value> {
    items(table, list).iter().find(|item| item["id"] == id)
}

/// The port with this id, and its VM's id.
pub fn port<'v>(config: &'v Value, id: &str) -> Option<(&'v str, &'v Value)> {
    let mut ports = items(config, "vms").iter().flat_map(|vm| items(vm, "ports").iter().map(move |port| (vm, port)));
    ports.find(|(_, port)| port["port_id"] == id).map(|(vm, port)| (vm["id"].as_str().unwrap(), port))
}

/// Ids of the ports of a VM.
pub fn ports_of(config: &Value, vm: &str) -> Vec<String> {
    let ports = find(config, "vms", vm).map(|vm| items(vm, "ports")).unwrap_or_default();
    ports.iter().map(|port| port["port_id"].as_str().unwrap().to_owned()).collect()
}

/// The settings of a VM.
pub fn settings(vm: &Value) -> Map<String, Value> {
    let keys = vm.as_object().unwrap().iter().filter(|(key, _)| !["id", "ports"].contains(&key.as_str()));
    keys.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Edit {
    /// Changes a configuration.
    pub fn apply(&self, config: &mut Value) {
        match self {
            Edit::PutPorts(vm, ports) => ports.iter().for_each(|port| put_port(config, vm, port)),
            Edit::DeletePort(id) => remove_port(config, id),
            Edit::Put(list, item) => put(items_mut(config, list), item, "id"),
            Edit::Delete(list, id) => items_mut(config, list).retain(|item| item["id"] != *id),
            Edit::SetVm(id, settings, order) => set_vm(config, id, settings, order.as_deref()),
            Edit::DeleteVm(id) => items_mut(config, "vms").retain(|vm| vm["id"] != *id),
        }
        // Without ports and settings, there is no VM.
        items_mut(config, "vms").retain(|vm| !items(vm, "ports").is_empty() || !settings(vm).is_empty());
    }
}

/// Replaces an item, or appends it.
fn put(list: &mut Vec<Value>, new: &Value, key: &str) {
    match list.iter_mut().find(|item| item[key] == new[key]) {
        Some(item) => *item = new.clone(),
        None => list.push(new.clone()),
    }
}

fn remove_port(config: &mut Value, id: &str) {
    for vm in items_mut(config, "vms") {
        items_mut(vm, "ports").retain(|port| port["port_id"] != id);
    }
}

/// The VM with this id, which is made if it is new.
fn vm<'v>(config: &'v mut Value, id: &str) -> &'v mut Value {
    let vms = items_mut(config, "vms");
    let place = vms.iter().position(|vm| vm["id"] == id).unwrap_or_else(|| {
        vms.push(json!({ "id": id, "ports": [] }));
        vms.len() - 1
    });
    &mut vms[place]
}

fn put_port(config: &mut Value, id: &str, new: &Value) {
    if port(config, new["port_id"].as_str().unwrap()).is_some_and(|(vm, _)| vm != id) {
        remove_port(config, new["port_id"].as_str().unwrap());
    }
    let ports = items_mut(vm(config, id), "ports");
    put(ports, new, "port_id");
    // In the VMs of this test, all ports have a position or none has one.
    if new["position"].is_u64() {
        ports.sort_by_key(|port| port["position"].as_u64());
    }
}

fn set_vm(config: &mut Value, id: &str, settings: &Map<String, Value>, order: Option<&[String]>) {
    let vm = vm(config, id);
    let mut ports = std::mem::take(items_mut(vm, "ports"));
    if let Some(order) = order {
        ports.sort_by_key(|port| order.iter().position(|id| port["port_id"] == **id));
    }
    *vm = json!({ "id": id, "ports": ports });
    vm.as_object_mut().unwrap().extend(settings.clone());
}

/// The part of a configuration that has this label, or none; VMs by their ids, as their order is nobody's.
pub fn part(config: &Value, owner: Option<&str>) -> Value {
    let is_part = |item: &&Value| item["owner"].as_str() == owner;
    let list = |table: &Value, list: &str| items(table, list).iter().filter(is_part).cloned().collect::<Vec<_>>();
    let mut vms = Vec::new();
    for vm in items(config, "vms") {
        let ports = list(vm, "ports");
        let settings = if is_part(&vm) { settings(vm) } else { Map::new() };
        // One without ports and settings is shown as a part without a label, which has none such.
        let is_empty = vm["owner"].is_null() && items(vm, "ports").is_empty() && owner.is_none();
        if !ports.is_empty() || !settings.is_empty() || is_empty {
            let mut part = json!({ "id": vm["id"], "ports": ports });
            part.as_object_mut().unwrap().extend(settings);
            vms.push(part);
        }
    }
    vms.sort_by_key(|vm| vm["id"].as_str().unwrap().to_owned());
    json!({ "networks": list(config, "networks"), "vms": vms, "uplinks": list(config, "uplinks") })
}
