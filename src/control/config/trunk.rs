//! Subports: ports without a device of their own. Their frames use the device of their parent, another port of the same
//! VM, with a VLAN tag. Terms are Neutron's.

use std::collections::HashMap;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::lowering::Lowering;
use super::model::{Config, Port, PortAttachment, Subport};
use super::raw;
use crate::wire::Vid;

impl Lowering<'_, '_> {
    /// Attachment of a port.
    pub fn attachment(&mut self, raw: &raw::Port, id: &str) -> PortAttachment {
        let Some(parent) = raw.parent.as_deref() else {
            if raw.vlan.is_some() {
                let message = "only a subport, a port with a parent, has a VLAN id; remove the key, or replace \
                               device by parent";
                self.report("vlan", kind::CONTRADICTION, message);
            }
            return PortAttachment::Device(self.device(raw.device.as_ref(), id));
        };
        if raw.device.is_some() {
            let message = "a subport has no device of its own, it uses its parent's; remove one of the two";
            self.report("device", kind::CONTRADICTION, message);
        }
        if raw.vlan.is_none() && self.is_missing("vlan") {
            self.report("vlan", kind::MISSING, "required: the VLAN id of the subport on its parent, 1 to 4094");
        }
        let vlan = Vid::new(self.number("vlan", raw.vlan, 1..=Vid::MAX, 0));
        let parent = self.port_id("parent", Some(parent));
        // an invalid one is no one's subport, and not validated further
        let (parent, vlan) = vlan.map_or((String::new(), Vid::ONE), |vlan| (parent, vlan));
        PortAttachment::Parent(Subport { parent, vlan })
    }
}

/// An error of a subport in relation to other ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct SubportError {
    /// Index of its VM.
    pub vm: usize,
    /// Its position there.
    position: usize,
    /// Invalid key.
    pub key: &'static str,
    /// Kind, for programs.
    pub kind: &'static str,
    /// Message, for people.
    pub message: String,
    /// Its id.
    pub port: String,
}

/// Errors of subports: their parents, and duplicate VLAN ids.
pub(in crate::control) fn subport_errors(config: &Config) -> Vec<SubportError> {
    let mut errors = Vec::new();
    if config.ports().all(|(_, port)| port.subport().is_none()) {
        return errors;
    }
    let ports: HashMap<&str, (&str, &Port)> =
        config.ports().map(|(vm, port)| (port.id(), (vm.id.as_str(), port))).collect();
    let mtus: HashMap<&str, u16> = config.networks.iter().map(|network| (network.id.as_str(), network.mtu)).collect();
    let mut tags: HashMap<(&str, Vid), &str> = HashMap::new();
    for (vm, of) in config.vms.iter().enumerate() {
        for (position, port) in of.ports.iter().enumerate() {
            let Some(Subport { parent, vlan }) = port.subport().filter(|subport| !subport.parent.is_empty()) else {
                continue;
            };
            let mut report = |key, kind, message| {
                errors.push(SubportError { vm, position, key, kind, message, port: port.port_id.clone() });
            };
            let Some(&(home, parent_port)) = ports.get(parent.as_str()) else {
                let ids = of.ports.iter().filter(|port| port.device().is_some()).map(Port::id);
                let message = match super::nearest(parent, ids) {
                    Some(expected) => format!("no such port {parent:?}; did you mean {expected:?}?"),
                    None => format!("no such port {parent:?}; use a port of the same VM that has a device"),
                };
                report("parent", kind::UNKNOWN_PARENT, message);
                continue;
            };
            if home != of.id {
                let message = format!(
                    "port {parent:?} is of VM {home:?}, but a subport belongs to the VM of its parent; list it \
                     there, or use a port of VM {:?}",
                    of.id
                );
                report("parent", kind::CONTRADICTION, message);
                continue;
            }
            if let Some(subport) = parent_port.subport() {
                let message = match parent_port.id() == port.id() {
                    true => "its own parent; use a port that has a device".to_owned(),
                    false => format!(
                        "port {parent:?} is a subport itself, of port {:?}; use a port that has a device",
                        subport.parent
                    ),
                };
                report("parent", kind::CONTRADICTION, message);
                continue;
            }
            if let Some(other) = tags.insert((parent, *vlan), port.id()) {
                let message =
                    format!("port {other:?} has this VLAN id on port {parent:?} already; use another VLAN id");
                report("vlan", kind::DUPLICATE_VLAN, message);
            }
            let mtu = |port: &Port| mtus.get(port.network_id.as_str()).copied();
            if let (Some(mtu), Some(most)) = (mtu(port), mtu(parent_port))
                && mtu > most
            {
                let message = format!(
                    "its network has an MTU of {mtu}, that of its parent, {:?}, an MTU of {most}; the MTU of a \
                     subport is at most its parent's",
                    parent_port.network_id
                );
                report("network_id", kind::CONTRADICTION, message);
            }
        }
    }
    errors
}

/// Reports errors of subports.
pub(super) fn check(config: &Config, diagnostics: &mut Diagnostics<'_>) {
    for SubportError { vm, position, key, kind, message, .. } in subport_errors(config) {
        let path = Path::default().key("vms").item(vm).key("ports").item(position).key(key);
        diagnostics.push(&path, kind, message);
    }
}

impl Config {
    /// Ids of the subports of a port.
    pub fn subports_of<'c>(&'c self, port: &'c str) -> impl Iterator<Item = &'c str> {
        self.ports()
            .filter(move |(_, other)| other.subport().is_some_and(|subport| subport.parent == port))
            .map(|(_, other)| other.id())
    }
}
