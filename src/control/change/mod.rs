//! A change to the desired state, and why it may be refused.
//!
//! [`Change::to`] is pure: from a configuration to the one that is wanted instead. Everything that
//! can be known without touching the host is checked here, against the same admission as a file.

mod keys;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::config::{
    Config, Device, Network, Port, PortKeys, Problem, SwitchSettings, UnknownUnicast, Vm, judge_part, judge_written,
    kind, nearest, trunk, written,
};
use super::difference;
use super::seats;
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
    /// Some keys of a port shall be otherwise; those that are not named stay as they are.
    Set {
        /// The port.
        port: String,
        /// The keys.
        keys: PortKeys,
    },
}

/// Whose doing it is that a change cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
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
pub struct Refusal {
    /// Whose doing it is.
    pub blame: Blame,
    /// For programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    pub kind: &'static str,
    /// For people: what is wrong, and what would be right. A line for each thing.
    pub message: String,
}

/// What came of a change that was made. It is true on every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// What is otherwise now, a sentence for each thing; empty if it was so already.
    pub differences: Vec<String>,
    /// Remarks: ports that are wanted but have no device yet, and why.
    pub remarks: Vec<String>,
}

impl Refusal {
    /// Something in the request can never be right.
    pub fn request(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Request, kind, message: message.into() }
    }

    /// Something that it names is not there.
    pub fn unknown(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Unknown, kind, message: message.into() }
    }

    /// Something is in the way now.
    pub fn conflict(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Conflict, kind, message: message.into() }
    }

    /// The switch cannot keep its promise.
    pub fn switch(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Switch, kind, message: message.into() }
    }

    /// There is no such port in `config`.
    pub fn unknown_port(config: &Config, port: &str) -> Refusal {
        let ids = config.vms.iter().flat_map(|vm| &vm.ports).map(|port| port.port_id.as_str());
        Refusal::unknown("unknown_port", not_there("port", port, ids))
    }

    /// There is no such network in `config`.
    pub fn unknown_network(config: &Config, network: &str) -> Refusal {
        let ids = config.networks.iter().map(|network| network.id.as_str());
        Refusal::unknown(kind::UNKNOWN_NETWORK, not_there("network", network, ids))
    }
}

fn not_there<'a>(what: &str, id: &str, ids: impl Iterator<Item = &'a str>) -> String {
    match nearest(id, ids) {
        Some(meant) => format!("there is no {what} {id:?}; did you mean {meant:?}?"),
        None => format!("there is no {what} {id:?}"),
    }
}

impl Change {
    /// The configuration that is wanted instead of `now`.
    ///
    /// A VM of which nothing is said but its ports goes with the last of them. One without ports is there only where
    /// a whole configuration lists it so, or something else was said of it.
    pub fn to(&self, now: &Config) -> Result<Config, Refusal> {
        let wanted = match self {
            Change::Apply(config) => apply(now, config),
            Change::Attach { vm, ports } => attach(now, vm, ports),
            Change::Detach { port } => detach(now, port),
            Change::Set { port, keys } => set(now, port, keys),
        }?;
        seats::fits(&wanted).map_err(|e| Refusal::conflict("too_many", e.to_string()))?;
        Ok(wanted)
    }
}

fn apply(now: &Config, config: &Config) -> Result<Config, Refusal> {
    let judged = judge_written(&config.to_written()).map_err(|errors| {
        let told: Vec<String> = errors.problems().iter().map(Problem::told).collect();
        Refusal::request(errors.kind(), told.join("\n"))
    })?;
    let fixed = fixed_at_start(&now.switch, &judged.switch);
    if fixed.is_empty() { Ok(judged) } else { Err(Refusal::conflict("fixed_at_start", fixed.join("\n"))) }
}

/// A sentence for each key of `[switch]` that would have to be otherwise.
fn fixed_at_start(runs: &SwitchSettings, wanted: &SwitchSettings) -> Vec<String> {
    let (runs, wanted) = (difference::keys(&runs.to_written()), difference::keys(&wanted.to_written()));
    let told = |(name, runs, _)| {
        format!("switch.{name} is fixed at start and is {runs} now; leave it so, or start the switch anew")
    };
    difference::otherwise(&runs, &wanted).map(told).collect()
}

fn attach(now: &Config, vm: &str, ports: &[Port]) -> Result<Config, Refusal> {
    if ports.is_empty() {
        return Err(Refusal::request(kind::MISSING, "there is no port to attach; give one at least"));
    }
    let mut ids = HashSet::new();
    if let Some(twice) = ports.iter().find(|port| !ids.insert(port.port_id.as_str())) {
        let message = format!("port {:?} stands in the request twice; a port attaches once", twice.port_id);
        return Err(Refusal::request(kind::DUPLICATE_PORT, message));
    }
    let ports = judge(now, vm, ports.iter().map(Port::to_written).collect(), "vms[0].")?;
    in_the_way(now, &ports, None)?;
    let mut wanted = now.clone();
    match wanted.vms.iter_mut().find(|known| known.id == vm) {
        Some(known) => known.ports.extend(ports),
        None => wanted.vms.push(Vm { id: vm.to_owned(), ports, ..Vm::default() }),
    }
    fits_together(&wanted)?;
    Ok(wanted)
}

fn detach(now: &Config, port: &str) -> Result<Config, Refusal> {
    let (vm, position) = find(now, port)?;
    let subports: Vec<String> = now.subports_of(port).map(|id| format!("{id:?}")).collect();
    if !subports.is_empty() {
        let message = format!("port {port:?} has the subports {}; detach them first", subports.join(", "));
        return Err(Refusal::conflict("has_subports", message));
    }
    let mut wanted = now.clone();
    wanted.vms[vm].ports.remove(position);
    if wanted.vms[vm].ports.is_empty() && !wanted.vms[vm].has_settings() {
        wanted.vms.remove(vm);
    }
    Ok(wanted)
}

fn set(now: &Config, port: &str, keys: &PortKeys) -> Result<Config, Refusal> {
    let (vm, position) = find(now, port)?;
    if keys.given.port_id.is_some() || keys.cleared.iter().any(|key| key == "port_id") {
        let message = "port_id is what a port is known by and cannot be set; detach it and attach another one";
        return Err(Refusal::request("fixed_key", message));
    }
    let there = &now.vms[vm];
    let written = keys::over(there.ports[position].to_written(), keys);
    let of_vm = written::VmKeys {
        storm: there.storm.to_written(),
        share_mac: Some(there.share_mac),
        sibling_split_horizon: Some(there.sibling_split_horizon),
    };
    let written::VmKeys { storm, share_mac, sibling_split_horizon } = keys::over_vm(of_vm, keys);
    let (id, ports) = (Some(there.id.clone()), Some(vec![written]));
    let of_vm = written::Vm { id, storm, share_mac, sibling_split_horizon, ports };
    let Vm { storm, share_mac, sibling_split_horizon, ports, .. } = judge_vm(now, of_vm, "vms[0].ports[0].")?;
    in_the_way(now, &ports, Some(port))?;
    let mut wanted = now.clone();
    let there = &mut wanted.vms[vm];
    (there.storm, there.share_mac, there.sibling_split_horizon) = (storm, share_mac, sibling_split_horizon);
    there.ports.splice(position..=position, ports);
    fits_together(&wanted)?;
    Ok(wanted)
}

/// Whether the subports of a configuration have what they need.
fn fits_together(wanted: &Config) -> Result<(), Refusal> {
    let faults = trunk::faults(wanted);
    let Some(first) = faults.first() else { return Ok(()) };
    let told: Vec<String> =
        faults.iter().map(|fault| format!("port {:?}: {}: {}", fault.port, fault.key, fault.message)).collect();
    let message = told.join("\n");
    Err(match first.kind {
        kind::UNKNOWN_PARENT => Refusal::unknown(kind::UNKNOWN_PARENT, message),
        kind::DUPLICATE_VLAN => Refusal::conflict("vlan_in_use", message),
        _ => Refusal::conflict("not_a_parent", message),
    })
}

/// Where a port stands: its VM and its place there.
fn find(now: &Config, port: &str) -> Result<(usize, usize), Refusal> {
    let found = now.vms.iter().enumerate().find_map(|(index, vm)| {
        let position = vm.ports.iter().position(|known| known.port_id == port)?;
        Some((index, position))
    });
    found.ok_or_else(|| Refusal::unknown_port(now, port))
}

/// Judges ports as if they stood in a file beside the networks of `now`. `here` is where the
/// request begins in that file.
fn judge(now: &Config, vm: &str, ports: Vec<written::Port>, here: &str) -> Result<Vec<Port>, Refusal> {
    let vm = written::Vm { id: Some(vm.to_owned()), ports: Some(ports), ..Default::default() };
    judge_vm(now, vm, here).map(|vm| vm.ports)
}

/// The same of a VM with its ports and all else that is said of it.
fn judge_vm(now: &Config, vm: written::Vm, here: &str) -> Result<Vm, Refusal> {
    // The bounds of the networks that they are on are asked for, and of the others the names.
    let ports = vm.ports.iter().flatten();
    let asked: HashSet<&str> = ports.filter_map(|port| port.network_id.as_deref()).collect();
    let network = |network: &Network| {
        if asked.contains(network.id.as_str()) {
            return network.to_written();
        }
        written::Network { id: Some(network.id.clone()), ..Default::default() }
    };
    let networks = now.networks.iter().map(network).collect();
    let file = written::Config { switch: None, networks: Some(networks), vms: Some(vec![vm.clone()]), uplinks: None };
    match judge_part(&file) {
        Ok(config) => Ok(config.vms.into_iter().next().unwrap_or_default()),
        Err(errors) => {
            let told = |problem: &Problem| problem.told().replace(here, "").replace("vms[0].", "vm.");
            let told: Vec<String> = errors.problems().iter().map(told).collect();
            let message = told.join("\n");
            let wrong = errors.problems().iter().find(|problem| problem.kind != kind::UNKNOWN_NETWORK);
            Err(wrong.map_or_else(
                || Refusal::unknown(kind::UNKNOWN_NETWORK, message.clone()),
                |problem| Refusal::request(problem.kind, message.clone()),
            ))
        }
    }
}

/// Whether other ports than `but`, or uplinks, have what these ports need for themselves.
fn in_the_way(now: &Config, ports: &[Port], but: Option<&str>) -> Result<(), Refusal> {
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
    Err(Refusal::conflict(kind, lines.join("\n")))
}

/// What is in the way of a port that does without frames for unknown stations: its address must be its
/// own. That of one of `ports` may be allowed to another port than `but`, or the other way round.
fn not_pinned(now: &Config, ports: &[Port], but: Option<&str>) -> Vec<(&'static str, String)> {
    let suppresses = |port: &Port| port.unknown_unicast == UnknownUnicast::Suppress;
    let allowed = |port: &Port| port.allowed_address_pairs.iter().filter_map(|pair| pair.mac).collect::<Vec<_>>();
    let at = |port: &Port, mac: Mac| (port.network_id.clone(), mac);
    let quiet: HashMap<(String, Mac), &Port> =
        ports.iter().filter(|port| suppresses(port)).map(|port| (at(port, port.mac), port)).collect();
    let lent: HashMap<(String, Mac), &Port> =
        ports.iter().flat_map(|port| allowed(port).into_iter().map(move |mac| (at(port, mac), port))).collect();
    let mut found = Vec::new();
    for (vm, other) in now.ports().filter(|(_, other)| Some(other.port_id.as_str()) != but) {
        let holder = || format!("port {:?} of VM {:?}", other.port_id, vm.id);
        for port in allowed(other).into_iter().filter_map(|mac| quiet.get(&at(other, mac))) {
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
