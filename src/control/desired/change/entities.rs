//! Puts and deletes single entities. Each is idempotent: putting what is there, and deleting what is not, changes nothing.

use std::collections::BTreeSet;

use super::{ChangeError, Config, check_all, check_ports, check_subports, check_vm, conflicts, find};
use crate::control::config::{Network, Port, Uplink, Vm, VmSettings, kind};
use crate::control::problem::Subject;

/// Names of users in a message.
const MAX_USERS_NAMED: usize = 5;

/// Makes `port` a port of `vm`. It keeps its place there, or comes after the last port, unless it has a position. Another VM
/// loses it.
pub(super) fn put_port(now: &Config, vm: &str, port: &Port) -> Result<Config, ChangeError> {
    let ports = check_ports(now, vm, vec![port.to_raw()], "vms[0].ports[0].")?;
    conflicts::check(now, &ports, Some(port.id()))?;
    let mut wanted = now.clone();
    match find(now, port.id()) {
        Some((before, place)) if now.vms[before].id == vm => {
            ports.into_iter().for_each(|port| wanted.vms[before].replace_port(place, port));
        }
        found => {
            if found.is_some() {
                wanted = delete_port(now, port.id())?;
            }
            add_ports(&mut wanted, vm, ports);
        }
    }
    check_subports(&wanted)?;
    Ok(wanted)
}

/// Adds ports to those of a VM. Creates an unknown VM.
pub(super) fn add_ports(config: &mut Config, id: &str, ports: Vec<Port>) {
    let index = config.vms.iter().position(|vm| vm.id == id).unwrap_or_else(|| {
        config.vms.push(Vm { id: id.to_owned(), ..Vm::default() }.into());
        config.vms.len() - 1
    });
    ports.into_iter().for_each(|port| config.vms[index].add_port(port));
}

/// Removes a port, and its VM if that has neither ports nor settings left.
pub(super) fn delete_port(now: &Config, port: &str) -> Result<Config, ChangeError> {
    let Some((vm, place)) = find(now, port) else { return Ok(now.clone()) };
    let subports: Vec<String> = now.subports_of(port).map(|id| format!("{id:?}")).collect();
    if !subports.is_empty() {
        let message = format!("port {port:?} has the subports {}; detach them first", subports.join(", "));
        return Err(ChangeError::conflict("has_subports", message).of(Subject::port(port)));
    }
    let mut wanted = now.clone();
    wanted.vms[vm].ports.remove(place);
    if wanted.vms[vm].ports.is_empty() && !wanted.vms[vm].has_settings() {
        wanted.vms.remove(vm);
    }
    Ok(wanted)
}

/// Removes ports that have ended, with their subports, and VMs that have neither ports nor settings left.
pub(super) fn end_ports(now: &Config, ended: &BTreeSet<String>) -> Config {
    let mut wanted = now.clone();
    let has_ended = |port: &Port| {
        ended.contains(&port.port_id) || port.subport().is_some_and(|subport| ended.contains(&subport.parent))
    };
    wanted.vms.retain_mut(|vm| {
        let before = vm.ports.len();
        vm.ports.retain(|port| !has_ended(port));
        vm.ports.len() == before || !vm.ports.is_empty() || vm.has_settings()
    });
    wanted
}

/// Makes a network as given.
pub(super) fn put_network(now: &Config, network: &Network) -> Result<Config, ChangeError> {
    let mut wanted = now.clone();
    match wanted.networks.iter_mut().find(|known| known.id == network.id) {
        Some(known) => *known = network.clone(),
        // Nothing refers to it yet.
        None => {
            wanted.networks.push(network.clone());
            return Ok(wanted);
        }
    }
    check_all(&wanted)
}

/// Removes a network, which nothing may use.
pub(super) fn delete_network(now: &Config, id: &str) -> Result<Config, ChangeError> {
    let ports = now.ports().filter(|(_, port)| port.network_id == id);
    let ports = ports.map(|(vm, port)| format!("port {:?} of VM {:?}", port.port_id, vm.id));
    let uplinks = now.uplinks.iter().filter(|uplink| uplink.networks.iter().any(|of| of.network_id == id));
    let users: Vec<String> = ports.chain(uplinks.map(|uplink| format!("uplink {:?}", uplink.id))).collect();
    if !users.is_empty() {
        let more = users.len().saturating_sub(MAX_USERS_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = users[..users.len().min(MAX_USERS_NAMED)].join(", ");
        let message = format!("network {id:?} is in use by {named}{more}; detach or change these first");
        return Err(ChangeError::conflict("network_in_use", message).of(Subject::network(id)));
    }
    let mut wanted = now.clone();
    wanted.networks.retain(|network| network.id != id);
    Ok(wanted)
}

/// Makes an uplink as given.
pub(super) fn put_uplink(now: &Config, uplink: &Uplink) -> Result<Config, ChangeError> {
    let mut wanted = now.clone();
    match wanted.uplinks.iter_mut().find(|known| known.id == uplink.id) {
        Some(known) => *known = uplink.clone(),
        None => wanted.uplinks.push(uplink.clone()),
    }
    check_all(&wanted)
}

/// Removes an uplink.
pub(super) fn delete_uplink(now: &Config, id: &str) -> Config {
    let mut wanted = now.clone();
    wanted.uplinks.retain(|uplink| uplink.id != id);
    wanted
}

/// Gives a VM these settings, and these ports in this order; without `ports` it keeps its own.
pub(super) fn put_vm(
    now: &Config,
    id: &str,
    settings: &VmSettings,
    ports: Option<&[Port]>,
) -> Result<Config, ChangeError> {
    let mut wanted = now.clone();
    let index = wanted.vms.iter().position(|vm| vm.id == id);
    let before = index.map(|index| std::mem::take(&mut wanted.vms[index].ports)).unwrap_or_default();
    let ports = ports.map(<[Port]>::to_vec).unwrap_or(before);
    let vm = check_vm(now, settings.clone().vm(id.to_owned(), ports).to_raw(), "vms[0].")?;
    if let Some(twice) = duplicate(&vm.ports) {
        let message = format!("port {twice:?} is listed twice; list each port once");
        return Err(ChangeError::request(kind::DUPLICATE_PORT, message).of(Subject::port(twice)));
    }
    conflicts::check(&wanted, &vm.ports, None)?;
    match index {
        Some(index) => wanted.vms[index] = vm.into(),
        None => wanted.vms.push(vm.into()),
    }
    check_subports(&wanted)?;
    Ok(wanted)
}

/// Removes a VM with its ports.
pub(super) fn delete_vm(now: &Config, id: &str) -> Config {
    let mut wanted = now.clone();
    wanted.vms.retain(|vm| vm.id != id);
    wanted
}

/// The first id that two ports have.
pub(super) fn duplicate(ports: &[Port]) -> Option<&str> {
    let mut ids = std::collections::HashSet::new();
    ports.iter().map(Port::id).find(|id| !ids.insert(*id))
}
