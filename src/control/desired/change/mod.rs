//! Changes of the desired state, and their errors.
//!
//! [`Change::to`] is pure: it makes the new configuration of the old one and the request. It validates ports as a
//! configuration file would be, and checks them for conflicts with other ports and uplinks (`conflicts.rs`). What needs
//! access to the host is checked later, when devices are opened.

mod conflicts;
mod entities;
mod error;
mod keys;
mod owned;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::error::{ChangeError, ErrorKind};
use crate::control::compile::endpoints;
use crate::control::config::{
    Config, ConfigError, ConfigErrors, Network, Port, PortKeys, SwitchSettings, Uplink, Vm, VmSettings, check_part,
    check_raw, kind, raw,
    trunk::{self, SubportError},
};
use crate::control::desired::diff::{self, Difference};
use crate::control::problem::{Problem, Subject};

/// A change of the desired state.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // there is one at a time
pub enum Change {
    /// Replaces the configuration. `[switch]` is fixed at start.
    Apply(Config),
    /// Replaces the configuration by that of an earlier generation.
    Rollback {
        /// Its number.
        generation: u64,
        /// The configuration.
        config: Config,
    },
    /// Appends these ports to those of the VM, in this order. Creates an unknown VM. Changes nothing if it has all of them
    /// exactly so and in this order: the answer to the first request was lost.
    Attach {
        /// The VM.
        vm: String,
        /// Its new ports.
        ports: Vec<Port>,
    },
    /// Replaces what bears an owner's label by this configuration, whose `[switch]` is not used.
    ApplyOwned {
        /// The label.
        owner: String,
        /// What the owner wants.
        config: Config,
    },
    /// Makes a port of a VM as given, whether it exists or not.
    PutPort {
        /// The VM.
        vm: String,
        /// The port.
        port: Port,
    },
    /// Removes a port, if it exists. Its siblings keep their order.
    Detach {
        /// The port.
        port: String,
    },
    /// Removes these ports, those that exist, with their subports, because their network namespace has ended. Their
    /// siblings keep their order.
    EndPorts(BTreeSet<String>),
    /// Makes a network as given.
    PutNetwork(Network),
    /// Removes a network that nothing uses, if it exists.
    DeleteNetwork(String),
    /// Makes an uplink as given.
    PutUplink(Uplink),
    /// Removes an uplink, if it exists.
    DeleteUplink(String),
    /// Gives a VM these settings.
    PutVm {
        /// The VM.
        vm: String,
        /// Its settings.
        settings: VmSettings,
        /// Its ports in their order; `None`: those that it has.
        ports: Option<Vec<Port>>,
    },
    /// Removes a VM with its ports, if it exists.
    DeleteVm(String),
    /// Changes some keys of a port; the other keys keep their values.
    Set {
        /// The port.
        port: String,
        /// The keys.
        keys: PortKeys,
    },
}

/// Result of a change that every worker has applied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChangeResult {
    /// What has changed, one sentence each; empty if nothing has.
    pub changes: Vec<String>,
    /// The same for programs.
    #[serde(default)]
    pub differences: Vec<Difference>,
    /// Ports that have no device yet, and why.
    pub warnings: Vec<String>,
    /// Number of the desired configuration with this change.
    #[serde(default)]
    pub generation: u64,
}

impl ChangeResult {
    /// The result of a change between two configurations.
    pub fn between(old: &Config, new: &Config, generation: u64) -> ChangeResult {
        let differences = diff::differences(old, new);
        let changes = differences.iter().map(ToString::to_string).collect();
        ChangeResult { changes, differences, warnings: Vec::new(), generation }
    }
}

impl Change {
    /// Ids of the ports that it names.
    pub fn ports(&self) -> impl Iterator<Item = &str> {
        let (one, several): (Option<&str>, &[Port]) = match self {
            Change::Attach { ports, .. } | Change::PutVm { ports: Some(ports), .. } => (None, ports),
            Change::PutPort { port, .. } => (Some(port.id()), &[]),
            Change::Set { port, .. } => (Some(port), &[]),
            _ => (None, &[]),
        };
        one.into_iter().chain(several.iter().map(Port::id))
    }

    /// The configuration after this change of `now`.
    ///
    /// Detaching the last port of a VM, or its end, removes the VM, unless it has settings. Other VMs without ports come from an
    /// applied configuration that lists them.
    pub fn to(&self, now: &Config) -> Result<Config, ChangeError> {
        let wanted = match self {
            Change::Apply(config) | Change::Rollback { config, .. } => apply(now, config),
            Change::Attach { vm, ports } => attach(now, vm, ports),
            Change::ApplyOwned { owner, config } => owned::replace(now, owner, config),
            Change::PutPort { vm, port } => entities::put_port(now, vm, port),
            Change::Detach { port } => entities::delete_port(now, port),
            Change::EndPorts(ports) => Ok(entities::end_ports(now, ports)),
            Change::PutNetwork(network) => entities::put_network(now, network),
            Change::DeleteNetwork(network) => entities::delete_network(now, network),
            Change::PutUplink(uplink) => entities::put_uplink(now, uplink),
            Change::DeleteUplink(uplink) => Ok(entities::delete_uplink(now, uplink)),
            Change::PutVm { vm, settings, ports } => entities::put_vm(now, vm, settings, ports.as_deref()),
            Change::DeleteVm(vm) => Ok(entities::delete_vm(now, vm)),
            Change::Set { port, keys } => set(now, port, keys),
        }?;
        endpoints::check_capacity(&wanted).map_err(|e| ChangeError::conflict("too_many", e.to_string()))?;
        Ok(wanted)
    }

    /// The configuration after this change of `now`, which has this generation, and the result of the change.
    pub fn outcome(&self, now: &Config, generation: u64) -> Result<(Config, ChangeResult), ChangeError> {
        let mut config = self.to(now)?;
        // A change that validates the whole configuration has copied all of it.
        config.share_with(now);
        let generation = generation + u64::from(config != *now);
        let result = ChangeResult::between(now, &config, generation);
        Ok((config, result))
    }
}

fn apply(now: &Config, config: &Config) -> Result<Config, ChangeError> {
    let decided = check_raw(&config.to_raw())
        .map_err(|errors| ChangeError::request(errors.kind(), messages(&errors)).with_errors(&errors, ""))?;
    let fixed = fixed_at_start(&now.switch, &decided.switch);
    if fixed.is_empty() { Ok(decided) } else { Err(several(ChangeError::conflict, fixed)) }
}

/// The error for these problems, of the kind of the first one.
fn several(error: fn(&'static str, String) -> ChangeError, problems: Vec<Problem>) -> ChangeError {
    let kind = problems.first().map_or(kind::BAD_VALUE, |problem| problem.kind);
    let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    error(kind, messages.join("\n")).with(problems)
}

/// Problems of the keys of `[switch]` that differ.
fn fixed_at_start(runs: &SwitchSettings, wanted: &SwitchSettings) -> Vec<Problem> {
    let (runs, wanted) = (diff::keys(&runs.to_raw()), diff::keys(&wanted.to_raw()));
    let problem = |(name, runs, wanted): (String, serde_json::Value, serde_json::Value)| {
        let runs = if runs.is_null() { "not set".to_owned() } else { runs.to_string() };
        let message =
            format!("switch.{name} is fixed at start and is {runs} now; keep that value, or restart the switch");
        let value = (!wanted.is_null()).then(|| wanted.to_string());
        Problem::new("fixed_at_start", message).at(format!("switch.{name}"), value)
    };
    diff::changed_keys(&runs, &wanted).map(problem).collect()
}

/// Validates a configuration of which a part was replaced by a valid one: what is wrong is a conflict with the rest.
fn check_all(config: &Config) -> Result<Config, ChangeError> {
    let switch = config.switch.clone();
    let checked = check_raw(&raw::Config { switch: None, ..config.to_raw() });
    checked.map(|checked| Config { switch, ..checked }).map_err(|errors| {
        let error = match errors.kind() {
            kind::UNKNOWN_NETWORK => ChangeError::unknown(kind::UNKNOWN_NETWORK, messages(&errors)),
            kind => ChangeError::conflict(kind, messages(&errors)),
        };
        error.with_errors(&errors, "")
    })
}

fn messages(errors: &ConfigErrors) -> String {
    let messages: Vec<String> = errors.errors().iter().map(ConfigError::without_location).collect();
    messages.join("\n")
}

fn attach(now: &Config, vm: &str, ports: &[Port]) -> Result<Config, ChangeError> {
    if ports.is_empty() {
        return Err(ChangeError::request(kind::MISSING, "no port to attach; list at least one"));
    }
    if let Some(twice) = entities::duplicate(ports) {
        let message = format!("port {twice:?} is listed twice; list each port once");
        return Err(ChangeError::request(kind::DUPLICATE_PORT, message).of(Subject::port(twice)));
    }
    let ports = check_ports(now, vm, ports.iter().map(Port::to_raw).collect(), "vms[0].")?;
    let ids: HashSet<&str> = ports.iter().map(Port::id).collect();
    let known = now.vms.iter().filter(|known| known.id == vm).flat_map(|known| &known.ports);
    if known.filter(|port| ids.contains(port.id())).eq(&ports) {
        return Ok(now.clone());
    }
    conflicts::check(now, &ports, None)?;
    let mut wanted = now.clone();
    entities::add_ports(&mut wanted, vm, ports);
    check_subports(&wanted)?;
    Ok(wanted)
}

fn set(now: &Config, port: &str, keys: &PortKeys) -> Result<Config, ChangeError> {
    let (vm, position) = find(now, port).ok_or_else(|| ChangeError::unknown_port(now, port))?;
    if keys.given.port_id.is_some() || keys.cleared.iter().any(|key| key == "port_id") {
        let message = "port_id identifies the port and cannot be set; detach the port and attach another one";
        let problem = Problem::new("fixed_key", message).of(Subject::port(port)).at("port_id", None);
        return Err(several(ChangeError::request, vec![problem]));
    }
    let before = &now.vms[vm];
    let raw = keys::apply_port_patch(before.ports[position].to_raw(), keys);
    let of_vm = raw::VmKeys {
        storm: before.storm.to_raw(),
        share_mac: Some(before.share_mac),
        sibling_split_horizon: Some(before.sibling_split_horizon),
    };
    let owner = before.owner.clone();
    let raw::VmKeys { storm, share_mac, sibling_split_horizon } = keys::apply_vm_patch(of_vm, keys);
    let (id, ports) = (Some(before.id.clone()), Some(vec![raw]));
    let of_vm = raw::Vm { id, storm, share_mac, sibling_split_horizon, owner, ports };
    let Vm { storm, share_mac, sibling_split_horizon, ports, .. } = check_vm(now, of_vm, "vms[0].ports[0].")?;
    conflicts::check(now, &ports, Some(port))?;
    let mut wanted = now.clone();
    let changed = &mut wanted.vms[vm];
    (changed.storm, changed.share_mac, changed.sibling_split_horizon) = (storm, share_mac, sibling_split_horizon);
    ports.into_iter().for_each(|port| changed.replace_port(position, port));
    check_subports(&wanted)?;
    Ok(wanted)
}

/// Checks that each subport has a parent and a VLAN id of its own there.
fn check_subports(wanted: &Config) -> Result<(), ChangeError> {
    let errors = trunk::subport_errors(wanted);
    let Some(first) = errors.first() else { return Ok(()) };
    let messages: Vec<String> =
        errors.iter().map(|error| format!("port {:?}: {}: {}", error.port, error.key, error.message)).collect();
    let message = messages.join("\n");
    let kind = |of| match of {
        kind::UNKNOWN_PARENT => kind::UNKNOWN_PARENT,
        kind::DUPLICATE_VLAN => "vlan_in_use",
        _ => "not_a_parent",
    };
    let problem = |error: &SubportError| {
        let subject = Subject { vm: wanted.vms.get(error.vm).map(|vm| vm.id.clone()), ..Subject::port(&error.port) };
        Problem::new(kind(error.kind), error.message.clone()).of(subject).at(error.key, None)
    };
    let error = match first.kind {
        kind::UNKNOWN_PARENT => ChangeError::unknown(kind(first.kind), message),
        _ => ChangeError::conflict(kind(first.kind), message),
    };
    Err(error.with(errors.iter().map(problem).collect()))
}

/// Index of a port's VM, and of the port there.
fn find(now: &Config, port: &str) -> Option<(usize, usize)> {
    now.vms.iter().enumerate().find_map(|(index, vm)| {
        let position = vm.ports.iter().position(|known| known.port_id == port)?;
        Some((index, position))
    })
}

/// Validates ports as if a file had them beside the networks of `now`. `prefix` is the key of that file below which
/// the request is; messages omit it.
fn check_ports(now: &Config, vm: &str, ports: Vec<raw::Port>, prefix: &str) -> Result<Vec<Port>, ChangeError> {
    let vm = raw::Vm { id: Some(vm.to_owned()), ports: Some(ports), ..Default::default() };
    check_vm(now, vm, prefix).map(|vm| vm.ports)
}

/// Validates a VM with its ports and settings.
fn check_vm(now: &Config, vm: raw::Vm, prefix: &str) -> Result<Vm, ChangeError> {
    // Validation needs the settings of the ports' networks, and if one does not exist the ids of the others, to suggest a
    // similar one.
    let ports = vm.ports.iter().flatten();
    let used: HashSet<&str> = ports.filter_map(|port| port.network_id.as_deref()).collect();
    let mut networks: Vec<raw::Network> =
        now.networks.iter().filter(|network| used.contains(network.id.as_str())).map(Network::to_raw).collect();
    if networks.len() < used.len() {
        let others = now.networks.iter().filter(|network| !used.contains(network.id.as_str()));
        networks.extend(others.map(|of| raw::Network { id: Some(of.id.clone()), ..Default::default() }));
    }
    let file = raw::Config { switch: None, networks: Some(networks), vms: Some(vec![vm.clone()]), uplinks: None };
    match check_part(&file) {
        Ok(config) => Ok(config.vms.into_iter().next().unwrap_or_default().into_inner()),
        Err(errors) => {
            let messages =
                |problem: &ConfigError| problem.without_location().replace(prefix, "").replace("vms[0].", "vm.");
            let messages: Vec<String> = errors.errors().iter().map(messages).collect();
            let message = messages.join("\n");
            let wrong = errors.errors().iter().find(|problem| problem.kind != kind::UNKNOWN_NETWORK);
            let error = wrong.map_or_else(
                || ChangeError::unknown(kind::UNKNOWN_NETWORK, message.clone()),
                |problem| ChangeError::request(problem.kind, message.clone()),
            );
            Err(error.with_errors(&errors, prefix))
        }
    }
}
