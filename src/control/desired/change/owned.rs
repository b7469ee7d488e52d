//! Replaces what bears an owner's label, and touches nothing else.
//!
//! An entity of the request gets the label. One that exists with another label, or without one, is in the way. Entities of
//! the owner that the request lacks go. Others keep their places in their lists, so that an equal request changes nothing.

use std::collections::{HashMap, HashSet};

use super::{ChangeError, check_all};
use crate::control::config::{Config, Network, Port, Uplink, Vm, VmSettings};
use crate::control::problem::Subject;

/// Kind of the conflict with an entity of somebody else.
const FOREIGN: &str = "owned_by_other";

/// An entity with an id and a label.
trait Labelled: Clone {
    const KIND: &'static str;
    fn subject(&self) -> Subject;
    fn id(&self) -> &str;
    fn owner(&self) -> Option<&str>;
    fn label(&mut self, owner: &str);
}

macro_rules! labelled {
    ($($type:ident $id:ident $kind:literal $subject:ident)*) => { $(
        impl Labelled for $type {
            const KIND: &'static str = $kind;
            fn subject(&self) -> Subject {
                Subject::$subject(self.id())
            }
            fn id(&self) -> &str {
                &self.$id
            }
            fn owner(&self) -> Option<&str> {
                self.owner.as_deref()
            }
            fn label(&mut self, owner: &str) {
                self.owner = Some(owner.to_owned());
            }
        }
    )* };
}

labelled! { Network id "network" network Port port_id "port" port Uplink id "uplink" uplink }

/// The configuration after `request` has replaced what is of `owner`.
pub(super) fn replace(now: &Config, owner: &str, request: &Config) -> Result<Config, ChangeError> {
    let mut wanted = now.clone();
    wanted.networks = fill(&now.networks, owner, &request.networks)?;
    wanted.uplinks = fill(&now.uplinks, owner, &request.uplinks)?;
    let theirs: HashMap<&str, &Vm> = now
        .vms
        .iter()
        .flat_map(|vm| vm.ports.iter().map(move |port| (port, &**vm)))
        .filter(|(port, _)| port.owner() != Some(owner))
        .map(|(port, vm)| (port.id(), vm))
        .collect();
    let requested: HashMap<&str, &Vm> = request.vms.iter().map(|vm| (vm.id.as_str(), &**vm)).collect();
    for port in request.ports().map(|(_, port)| port) {
        if let Some(vm) = theirs.get(port.id()) {
            let of = vm.ports.iter().find(|of| of.id() == port.id()).and_then(Labelled::owner);
            return Err(foreign(Port::KIND, port.id(), of).of(port.subject()));
        }
    }
    for vm in &mut wanted.vms {
        let of_request = requested.get(vm.id.as_str());
        let settings = of_request.map(|of| of.settings()).unwrap_or_default();
        // Nobody has set anything there, and nobody else has a port: as if it came with this request.
        let is_free = !vm.has_settings()
            && !vm.ports.is_empty()
            && vm.ports.iter().all(|port| port.owner.as_deref() == Some(owner));
        if is_free || vm.owner.as_deref() == Some(owner) {
            *vm = settings_of(owner, &settings).vm(vm.id.clone(), std::mem::take(&mut vm.ports)).into();
        } else if settings != VmSettings::default() && settings != (VmSettings { owner: None, ..vm.settings() }) {
            return Err(foreign("VM", &vm.id, vm.owner.as_deref()).of(Subject::vm(&vm.id)));
        }
        let ports = of_request.map(|of| of.ports.as_slice()).unwrap_or_default();
        vm.ports = fill(&vm.ports, owner, ports)?;
        vm.order_ports();
    }
    let known: HashSet<&str> = now.vms.iter().map(|vm| vm.id.as_str()).collect();
    for vm in request.vms.iter().filter(|vm| !known.contains(vm.id.as_str())) {
        let mut vm = settings_of(owner, &vm.settings()).vm(vm.id.clone(), vm.ports.clone());
        vm.ports.iter_mut().for_each(|port| port.label(owner));
        wanted.vms.push(vm.into());
    }
    // A VM that others made without ports stays.
    let of_others = now.vms.iter().filter(|vm| vm.ports.is_empty() && vm.owner.as_deref() != Some(owner));
    let of_others: HashSet<&str> = of_others.map(|vm| vm.id.as_str()).collect();
    wanted.vms.retain(|vm| !vm.ports.is_empty() || vm.has_settings() || of_others.contains(vm.id.as_str()));
    check_all(&wanted)
}

/// Settings of a VM of `owner`: labelled, if there are any.
fn settings_of(owner: &str, settings: &VmSettings) -> VmSettings {
    let bare = VmSettings { owner: None, ..settings.clone() };
    let owner = (bare != VmSettings::default()).then(|| owner.to_owned());
    VmSettings { owner, ..bare }
}

/// Replaces the items of `owner` in a list by `new`, place by place; further ones come last.
fn fill<T: Labelled>(old: &[T], owner: &str, new: &[T]) -> Result<Vec<T>, ChangeError> {
    let mut labelled: Vec<T> = new.to_vec();
    for item in &mut labelled {
        if let Some(label) = item.owner().filter(|label| *label != owner) {
            let message = format!(
                "{} {:?}: owner = {label:?}, and the request is of {owner:?}; leave the key out",
                T::KIND,
                item.id()
            );
            return Err(ChangeError::request("contradiction", message).of(item.subject()));
        }
        item.label(owner);
    }
    let ids: HashSet<&str> = new.iter().map(T::id).collect();
    if let Some(item) = old.iter().find(|item| item.owner() != Some(owner) && ids.contains(item.id())) {
        return Err(foreign(T::KIND, item.id(), item.owner()).of(item.subject()));
    }
    let mut next = labelled.into_iter();
    let place = |item: &T| if item.owner() == Some(owner) { next.next() } else { Some(item.clone()) };
    let mut filled: Vec<T> = old.iter().filter_map(place).collect();
    filled.extend(next);
    Ok(filled)
}

fn foreign(kind: &str, id: &str, owner: Option<&str>) -> ChangeError {
    let owner = owner.map_or("has no owner".to_owned(), |owner| format!("has the owner {owner:?}"));
    let message = format!("{kind} {id:?} exists and {owner}; use another id, or give it the label first");
    ChangeError::conflict(FOREIGN, message)
}
