//! Changes of the desired state, and their errors.
//!
//! [`Change::to`] is pure: old configuration to new one. Checks all that needs no access to the host, with the same
//! validation as a file.

mod keys;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::compile::endpoints;
use crate::control::config::{
    Config, ConfigError, Device, Network, Port, PortKeys, SwitchSettings, UnknownUnicast, Vm, check_part, check_raw,
    kind, nearest, raw, trunk,
};
use crate::control::desired::diff;
use crate::wire::Mac;

/// What someone wants changed.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // there is one at a time
pub enum Change {
    /// Everything: this configuration instead of the present one. `[switch]` is fixed at start.
    Apply(Config),
    /// These ports, behind those that the VM has already, in this order. An unknown VM is a new one.
    Attach {
        /// The VM.
        vm: String,
        /// Its new ports.
        ports: Vec<Port>,
    },
    /// This port shall be gone. Its siblings keep their order.
    Detach {
        /// The port.
        port: String,
    },
    /// Changes some keys of a port; keys that are not named keep their values.
    Set {
        /// The port.
        port: String,
        /// The keys.
        keys: PortKeys,
    },
}

/// Whose doing it is that a change cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request can never be right (400).
    Request,
    /// It names something that is not there (404).
    Unknown,
    /// Something is in the way now (409).
    Conflict,
    /// The switch cannot keep its promise: the store fails, a limit is reached, it is stopping (503).
    Switch,
}

/// Why a change has not been made. Nothing has been changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ChangeError {
    /// Whose doing it is.
    pub category: ErrorKind,
    /// For programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    pub kind: &'static str,
    /// For people: what is wrong, and what would be right. A line for each thing.
    pub message: String,
}

/// What came of a change that was made. It is true on every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChangeResult {
    /// What is otherwise now, a sentence for each thing; empty if it was so already.
    pub changes: Vec<String>,
    /// Remarks: ports that are wanted but have no device yet, and why.
    pub warnings: Vec<String>,
}

impl ChangeError {
    /// Something in the request can never be right.
    pub fn request(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError { category: ErrorKind::Request, kind, message: message.into() }
    }

    /// Something that it names is not there.
    pub fn unknown(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError { category: ErrorKind::Unknown, kind, message: message.into() }
    }

    /// Something is in the way now.
    pub fn conflict(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError { category: ErrorKind::Conflict, kind, message: message.into() }
    }

    /// The switch cannot keep its promise.
    pub fn switch(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError { category: ErrorKind::Switch, kind, message: message.into() }
    }

    /// There is no such port in `config`.
    pub fn unknown_port(config: &Config, port: &str) -> ChangeError {
        let ids = config.vms.iter().flat_map(|vm| &vm.ports).map(|port| port.port_id.as_str());
        ChangeError::unknown("unknown_port", unknown("port", port, ids))
    }

    /// There is no such network in `config`.
    pub fn unknown_network(config: &Config, network: &str) -> ChangeError {
        let ids = config.networks.iter().map(|network| network.id.as_str());
        ChangeError::unknown(kind::UNKNOWN_NETWORK, unknown("network", network, ids))
    }
}

fn unknown<'a>(what: &str, id: &str, ids: impl Iterator<Item = &'a str>) -> String {
    match nearest(id, ids) {
        Some(expected) => format!("there is no {what} {id:?}; did you mean {expected:?}?"),
        None => format!("there is no {what} {id:?}"),
    }
}

impl Change {
    /// The configuration that is wanted instead of `now`.
    ///
    /// A VM of which nothing is said but its ports goes with the last of them. One without ports is there only where
    /// a whole configuration lists it so, or something else was said of it.
    pub fn to(&self, now: &Config) -> Result<Config, ChangeError> {
        let wanted = match self {
            Change::Apply(config) => apply(now, config),
            Change::Attach { vm, ports } => attach(now, vm, ports),
            Change::Detach { port } => detach(now, port),
            Change::Set { port, keys } => set(now, port, keys),
        }?;
        endpoints::check_capacity(&wanted).map_err(|e| ChangeError::conflict("too_many", e.to_string()))?;
        Ok(wanted)
    }
}

fn apply(now: &Config, config: &Config) -> Result<Config, ChangeError> {
    let decided = check_raw(&config.to_raw()).map_err(|errors| {
        let messages: Vec<String> = errors.errors().iter().map(ConfigError::without_location).collect();
        ChangeError::request(errors.kind(), messages.join("\n"))
    })?;
    let fixed = fixed_at_start(&now.switch, &decided.switch);
    if fixed.is_empty() { Ok(decided) } else { Err(ChangeError::conflict("fixed_at_start", fixed.join("\n"))) }
}

/// A sentence for each key of `[switch]` that differs.
fn fixed_at_start(runs: &SwitchSettings, wanted: &SwitchSettings) -> Vec<String> {
    let (runs, wanted) = (diff::keys(&runs.to_raw()), diff::keys(&wanted.to_raw()));
    let messages = |(name, runs, _)| {
        format!("switch.{name} is fixed at start and is {runs} now; leave it so, or start the switch anew")
    };
    diff::changed_keys(&runs, &wanted).map(messages).collect()
}

fn attach(now: &Config, vm: &str, ports: &[Port]) -> Result<Config, ChangeError> {
    if ports.is_empty() {
        return Err(ChangeError::request(kind::MISSING, "there is no port to attach; give one at least"));
    }
    let mut ids = HashSet::new();
    if let Some(twice) = ports.iter().find(|port| !ids.insert(port.port_id.as_str())) {
        let message = format!("port {:?} stands in the request twice; a port attaches once", twice.port_id);
        return Err(ChangeError::request(kind::DUPLICATE_PORT, message));
    }
    let ports = check(now, vm, ports.iter().map(Port::to_raw).collect(), "vms[0].")?;
    in_the_way(now, &ports, None)?;
    let mut wanted = now.clone();
    match wanted.vms.iter_mut().find(|known| known.id == vm) {
        Some(known) => known.ports.extend(ports),
        None => wanted.vms.push(Vm { id: vm.to_owned(), ports, ..Vm::default() }),
    }
    fits_together(&wanted)?;
    Ok(wanted)
}

fn detach(now: &Config, port: &str) -> Result<Config, ChangeError> {
    let (vm, position) = find(now, port)?;
    let subports: Vec<String> = now.subports_of(port).map(|id| format!("{id:?}")).collect();
    if !subports.is_empty() {
        let message = format!("port {port:?} has the subports {}; detach them first", subports.join(", "));
        return Err(ChangeError::conflict("has_subports", message));
    }
    let mut wanted = now.clone();
    wanted.vms[vm].ports.remove(position);
    if wanted.vms[vm].ports.is_empty() && !wanted.vms[vm].has_settings() {
        wanted.vms.remove(vm);
    }
    Ok(wanted)
}

fn set(now: &Config, port: &str, keys: &PortKeys) -> Result<Config, ChangeError> {
    let (vm, position) = find(now, port)?;
    if keys.given.port_id.is_some() || keys.cleared.iter().any(|key| key == "port_id") {
        let message = "port_id is what a port is known by and cannot be set; detach it and attach another one";
        return Err(ChangeError::request("fixed_key", message));
    }
    let there = &now.vms[vm];
    let raw = keys::over(there.ports[position].to_raw(), keys);
    let of_vm = raw::VmKeys {
        storm: there.storm.to_raw(),
        share_mac: Some(there.share_mac),
        sibling_split_horizon: Some(there.sibling_split_horizon),
    };
    let raw::VmKeys { storm, share_mac, sibling_split_horizon } = keys::apply_vm_patch(of_vm, keys);
    let (id, ports) = (Some(there.id.clone()), Some(vec![raw]));
    let of_vm = raw::Vm { id, storm, share_mac, sibling_split_horizon, ports };
    let Vm { storm, share_mac, sibling_split_horizon, ports, .. } = check_vm(now, of_vm, "vms[0].ports[0].")?;
    in_the_way(now, &ports, Some(port))?;
    let mut wanted = now.clone();
    let there = &mut wanted.vms[vm];
    (there.storm, there.share_mac, there.sibling_split_horizon) = (storm, share_mac, sibling_split_horizon);
    there.ports.splice(position..=position, ports);
    fits_together(&wanted)?;
    Ok(wanted)
}

/// Whether the subports of a configuration have what they need.
fn fits_together(wanted: &Config) -> Result<(), ChangeError> {
    let faults = trunk::subport_errors(wanted);
    let Some(first) = faults.first() else { return Ok(()) };
    let messages: Vec<String> =
        faults.iter().map(|fault| format!("port {:?}: {}: {}", fault.port, fault.key, fault.message)).collect();
    let message = messages.join("\n");
    Err(match first.kind {
        kind::UNKNOWN_PARENT => ChangeError::unknown(kind::UNKNOWN_PARENT, message),
        kind::DUPLICATE_VLAN => ChangeError::conflict("vlan_in_use", message),
        _ => ChangeError::conflict("not_a_parent", message),
    })
}

/// Where a port stands: its VM and its place there.
fn find(now: &Config, port: &str) -> Result<(usize, usize), ChangeError> {
    let found = now.vms.iter().enumerate().find_map(|(index, vm)| {
        let position = vm.ports.iter().position(|known| known.port_id == port)?;
        Some((index, position))
    });
    found.ok_or_else(|| ChangeError::unknown_port(now, port))
}

/// Judges ports as if they stood in a file beside the networks of `now`. `here` is where the
/// request begins in that file.
fn check(now: &Config, vm: &str, ports: Vec<raw::Port>, here: &str) -> Result<Vec<Port>, ChangeError> {
    let vm = raw::Vm { id: Some(vm.to_owned()), ports: Some(ports), ..Default::default() };
    check_vm(now, vm, here).map(|vm| vm.ports)
}

/// The same of a VM with its ports and all else that is said of it.
fn check_vm(now: &Config, vm: raw::Vm, here: &str) -> Result<Vm, ChangeError> {
    // The bounds of the networks that they are on are asked for, and of the others the names.
    let ports = vm.ports.iter().flatten();
    let requests: HashSet<&str> = ports.filter_map(|port| port.network_id.as_deref()).collect();
    let network = |network: &Network| {
        if requests.contains(network.id.as_str()) {
            return network.to_raw();
        }
        raw::Network { id: Some(network.id.clone()), ..Default::default() }
    };
    let networks = now.networks.iter().map(network).collect();
    let file = raw::Config { switch: None, networks: Some(networks), vms: Some(vec![vm.clone()]), uplinks: None };
    match check_part(&file) {
        Ok(config) => Ok(config.vms.into_iter().next().unwrap_or_default()),
        Err(errors) => {
            let messages =
                |problem: &ConfigError| problem.without_location().replace(here, "").replace("vms[0].", "vm.");
            let messages: Vec<String> = errors.errors().iter().map(messages).collect();
            let message = messages.join("\n");
            let wrong = errors.errors().iter().find(|problem| problem.kind != kind::UNKNOWN_NETWORK);
            Err(wrong.map_or_else(
                || ChangeError::unknown(kind::UNKNOWN_NETWORK, message.clone()),
                |problem| ChangeError::request(problem.kind, message.clone()),
            ))
        }
    }
}

/// Whether other ports than `except`, or uplinks, have what these ports need for themselves.
fn in_the_way(now: &Config, ports: &[Port], but: Option<&str>) -> Result<(), ChangeError> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    let ids: HashMap<&str, &Port> = ports.iter().map(|port| (port.port_id.as_str(), port)).collect();
    let macs: HashMap<(&str, Mac), &Port> =
        ports.iter().map(|port| ((port.network_id.as_str(), port.mac), port)).collect();
    let netdevs: HashMap<(String, &str), &Port> =
        ports.iter().filter_map(|port| Some((port.device()?.netdev(), port))).collect();
    for vm in &now.vms {
        for other in vm.ports.iter().filter(|other| Some(other.port_id.as_str()) != but) {
            let holder = || format!("port {:?} of VM {:?}", other.port_id, vm.id);
            if ids.contains_key(other.port_id.as_str()) {
                let message = format!("port {:?} is in use by VM {:?}; detach it there first", other.port_id, vm.id);
                found.push(("port_in_use", message));
                // It has its own MAC address and its own netdev: once is enough said.
                continue;
            }
            if let Some(port) = macs.get(&(other.network_id.as_str(), other.mac)) {
                found.push((
                    "mac_in_use",
                    format!(
                        "port {:?}: {} is the address of {} on network {:?}; each port needs its own there",
                        port.port_id,
                        other.mac,
                        holder(),
                        other.network_id
                    ),
                ));
            }
            if let Some(netdev) = other.device().map(Device::netdev)
                && let Some(port) = netdevs.get(&netdev)
            {
                let message = format!(
                    "port {:?}: the netdev {:?} is in use by {}; each port needs its own",
                    port.port_id,
                    netdev.1,
                    holder()
                );
                found.push(("device_in_use", message));
            }
        }
    }
    found.extend(not_pinned(now, ports, but));
    for uplink in &now.uplinks {
        if ids.contains_key(uplink.id.as_str()) {
            let message = format!("port {:?}: an uplink has this id; each port needs its own", uplink.id);
            found.push(("port_in_use", message));
        }
        let netdev = uplink.device.netdev();
        if let Some(port) = netdevs.get(&netdev) {
            let message = format!(
                "port {:?}: the netdev {:?} is in use by uplink {:?}; each needs its own",
                port.port_id, netdev.1, uplink.id
            );
            found.push(("device_in_use", message));
        }
    }
    let Some(&(kind, _)) = found.first() else { return Ok(()) };
    let lines: Vec<String> = found.into_iter().map(|(_, message)| message).collect();
    Err(ChangeError::conflict(kind, lines.join("\n")))
}

/// What is in the way of a port that does without frames for unknown stations: its address must be its
/// own. That of one of `ports` may be allowed to another port than `except`, or the other way round.
fn not_pinned(now: &Config, ports: &[Port], but: Option<&str>) -> Vec<(&'static str, String)> {
    let suppresses = |port: &Port| port.unknown_unicast == UnknownUnicast::Suppress;
    let allowed = |port: &Port| port.allowed_address_pairs.iter().filter_map(|pair| pair.mac).collect::<Vec<_>>();
    let at = |port: &Port, mac: Mac| (port.network_id.clone(), mac);
    let idle: HashMap<(String, Mac), &Port> =
        ports.iter().filter(|port| suppresses(port)).map(|port| (at(port, port.mac), port)).collect();
    let lent: HashMap<(String, Mac), &Port> =
        ports.iter().flat_map(|port| allowed(port).into_iter().map(move |mac| (at(port, mac), port))).collect();
    let mut found = Vec::new();
    for (vm, other) in now.ports().filter(|(_, other)| Some(other.port_id.as_str()) != but) {
        let holder = || format!("port {:?} of VM {:?}", other.port_id, vm.id);
        for port in allowed(other).into_iter().filter_map(|mac| idle.get(&at(other, mac))) {
            let message = format!(
                "port {:?}: unknown_unicast = \"suppress\" needs an address that is pinned to the port, and {} is allowed \
                 to {} as well",
                port.port_id,
                port.mac,
                holder()
            );
            found.push(("mac_shared", message));
        }
        if suppresses(other)
            && let Some(port) = lent.get(&at(other, other.mac))
        {
            let message = format!(
                "port {:?}: {} is the address of {}, whose unknown_unicast = \"suppress\" needs it to be pinned there; \
                 set that to \"deliver\" first, or leave the pair out",
                port.port_id,
                other.mac,
                holder()
            );
            found.push(("mac_shared", message));
        }
    }
    found
}
