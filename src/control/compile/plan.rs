//! Steps from one configuration to another: a pure diff. Each step affects an id in the forwarding tables or a device;
//! other differences need none.
//!
//! A port is identified by its id, even if it moves to another VM, and an uplink by its own.

use std::collections::HashMap;

use crate::control::compile::settings;
use crate::control::compile::uplink_groups::uplink_groups;
use crate::control::config::{self, Config, Network, Port, Shared, Uplink, Vm};
use crate::device::{Settings, packet, xdp};

/// A step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Remove a port: configuration without it, its queues returned, its device closed, and its netdev removed if we
    /// created it.
    Close(String),
    /// Remove an uplink, like a port.
    CloseUplink(String),
    /// Remove a network, which has no ports any more.
    RemoveNetwork(String),
    /// Add a network.
    AddNetwork(String),
    /// Change a port: itself, its index, or its network.
    Change {
        /// New configuration.
        port: Port,
        /// Whether its FDB entries are flushed.
        flush: bool,
        /// Effect on its device.
        device: DeviceChange,
    },
    /// Add a port.
    Open(Port),
    /// Change an uplink: itself, or one of its networks.
    ChangeUplink {
        /// New configuration.
        uplink: Uplink,
        /// Whether FDB entries of its group are flushed.
        flush: bool,
        /// Effect on its device.
        device: DeviceChange,
    },
    /// Add an uplink.
    OpenUplink(Uplink),
}

/// Effect of a change on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChange {
    /// None.
    Keep,
    /// Adjust MAC address or MTU of its netdev; queues stay open.
    Adjust,
    /// Close and reopen it.
    Reopen {
        /// Whether the old netdev is no longer needed, and removed if we created it.
        recreate: bool,
    },
}

/// VMs whose ports may need a step, before and after: those that differ from the VM of the same id in the other
/// configuration, or all if something else differs that devices depend on.
fn differing<'c>(old: &'c Config, new: &'c Config) -> (Vec<&'c Vm>, Vec<&'c Vm>) {
    let all = |vms: &'c [Shared<Vm>]| vms.iter().map(|vm| &**vm).collect();
    if old.networks != new.networks || settings::fill(old) != settings::fill(new) {
        return (all(&old.vms), all(&new.vms));
    }
    let (old, new) = config::differing(&old.vms, &new.vms);
    let others = |of: &'c [Shared<Vm>], other: &'c [Shared<Vm>]| {
        let vms: HashMap<&str, &Shared<Vm>> = other.iter().map(|vm| (vm.id.as_str(), vm)).collect();
        let differs = |vm: &&Shared<Vm>| vms.get(vm.id.as_str()).is_none_or(|same| same != vm);
        of.iter().filter(differs).map(|vm| &**vm).collect()
    };
    (others(old, new), others(new, old))
}

/// Ports of VMs, with these.
fn of_vms<'c>(vms: &[&'c Vm]) -> impl Iterator<Item = (&'c Vm, &'c Port)> {
    vms.iter().flat_map(|&vm| vm.ports.iter().map(move |port| (vm, port)))
}

/// Ports of VMs by id, with the ids of these.
fn ports<'c>(vms: &[&'c Vm]) -> HashMap<&'c str, (&'c str, &'c Port)> {
    of_vms(vms).map(|(vm, port)| (port.id(), (vm.id.as_str(), port))).collect()
}

fn networks(config: &Config) -> HashMap<&str, &Network> {
    config.networks.iter().map(|network| (network.id.as_str(), network)).collect()
}

fn uplinks(config: &Config) -> HashMap<&str, &Uplink> {
    config.uplinks.iter().map(|uplink| (uplink.id.as_str(), uplink)).collect()
}

/// Steps from `old` to `new`. `[switch]` is fixed at start.
pub fn plan(old: &Config, new: &Config) -> Vec<Step> {
    // A port is in the same VM as its parent, and its VM differs if it leaves it.
    let (vms_before, vms_after) = differing(old, new);
    let (ports_before, ports_after) = (ports(&vms_before), ports(&vms_after));
    let (networks_before, networks_after) = (networks(old), networks(new));
    let (fill_before, fill) = (settings::fill(old), settings::fill(new));
    let mut steps = Vec::new();
    // A port that becomes a subport, or stops being one, is a different endpoint.
    let stays = |before: &Port, after: &Port| before.subport().is_some() == after.subport().is_some();
    steps.extend(
        of_vms(&vms_before)
            .filter(|(_, port)| !ports_after.get(port.id()).is_some_and(|(_, after)| stays(port, after)))
            .map(|(_, port)| Step::Close(port.port_id.clone())),
    );
    let uplinks_after = uplinks(new);
    steps.extend(
        old.uplinks
            .iter()
            .filter(|uplink| !uplinks_after.contains_key(uplink.id.as_str()))
            .map(|uplink| Step::CloseUplink(uplink.id.clone())),
    );
    steps.extend(
        new.networks
            .iter()
            .filter(|network| !networks_before.contains_key(network.id.as_str()))
            .map(|network| Step::AddNetwork(network.id.clone())),
    );
    // Effect on the device of a changed port, and whether its FDB entries are flushed.
    let transition = |vm: &str, port: &Port, vm_before: &str, before: &Port| {
        // Validation ensures that both exist.
        let (below_before, below) =
            (networks_before.get(before.network_id.as_str()), networks_after.get(port.network_id.as_str()));
        let device = match (below_before, below) {
            (Some(below_before), Some(below)) => {
                let was = settings::device(before, below_before, fill_before);
                let devices = was.zip(settings::device(port, below, fill));
                devices.map_or(DeviceChange::Keep, |(was, device)| device_step(&was, &device))
            }
            _ => DeviceChange::Keep,
        };
        // Stations at a port that was disabled, reassigned, or moved to another network are gone.
        let flush = vm != vm_before
            || port.network_id != before.network_id
            || before.mac_learning && !port.mac_learning
            || before.admin_state_up && !port.admin_state_up
            || before.subport() != port.subport()
            || matches!(device, DeviceChange::Reopen { .. });
        (flush, device)
    };
    for (vm, port) in of_vms(&vms_after) {
        let was = ports_before.get(port.id()).filter(|(_, before)| stays(before, port));
        let Some(&(vm_before, before)) = was else {
            steps.push(Step::Open(port.clone()));
            continue;
        };
        let (mut flush, device) = transition(&vm.id, port, vm_before, before);
        // A subport exists while its parent does.
        let parent = port.subport().map(|subport| subport.parent.as_str());
        let parents = parent.and_then(|parent| Some((ports_after.get(parent)?, ports_before.get(parent)?)));
        if let Some((&(home, parent), &(home_before, before))) = parents {
            flush |= transition(home, parent, home_before, before).0;
        }
        if port == before && vm.id == vm_before && device == DeviceChange::Keep && !flush {
            continue;
        }
        steps.push(Step::Change { port: port.clone(), flush, device });
    }
    steps.extend(uplink_steps(old, new));
    steps.extend(
        old.networks
            .iter()
            .filter(|network| !networks_after.contains_key(network.id.as_str()))
            .map(|network| Step::RemoveNetwork(network.id.clone())),
    );
    steps
}

/// Steps for uplinks.
fn uplink_steps(old: &Config, new: &Config) -> Vec<Step> {
    let before = uplinks(old);
    // Effect on the device of an existing one; `None` for a new one.
    let (fill_before, fill) = (settings::fill(old), settings::fill(new));
    let device = |uplink: &Uplink| {
        let was = before.get(uplink.id.as_str())?;
        let was = settings::uplink_device(was, old, fill_before);
        Some(device_step(&was, &settings::uplink_device(uplink, new, fill)))
    };
    let mut steps = Vec::new();
    for group in uplink_groups(new) {
        let members = || group.members.iter().map(|&index| &new.uplinks[index]);
        // As for a port; but stations of a group stay while one of its uplinks does.
        let stays = |uplink: &Uplink| {
            let was = before.get(uplink.id.as_str()).filter(|was| was.group_name() == group.name);
            was.is_some_and(|was| !was.admin_state_up || uplink.admin_state_up)
                && !matches!(device(uplink), None | Some(DeviceChange::Reopen { .. }))
        };
        let flush = !members().any(stays);
        steps.extend(members().filter_map(|uplink| match device(uplink) {
            None => Some(Step::OpenUplink(uplink.clone())),
            Some(DeviceChange::Keep) if before.get(uplink.id.as_str()) == Some(&uplink) => None,
            Some(device) => Some(Step::ChangeUplink { uplink: uplink.clone(), flush, device }),
        }));
    }
    steps
}

/// The same for an open device. One that may lose tags cannot be a trunk's; reopening it reports why.
pub fn device_step_of_open(before: &Settings, after: &Settings, may_lose_tags: bool) -> DeviceChange {
    match device_step(before, after) {
        DeviceChange::Keep | DeviceChange::Adjust
            if may_lose_tags && after.is_vlan_demux() && !before.is_vlan_demux() =>
        {
            DeviceChange::Reopen { recreate: false }
        }
        step => step,
    }
}

/// Effect of changing device settings.
pub fn device_step(before: &Settings, after: &Settings) -> DeviceChange {
    match (before, after) {
        _ if before == after => DeviceChange::Keep,
        (Settings::Tap(before), Settings::Tap(after)) => {
            let mut adjusted = before.clone();
            (adjusted.mac, adjusted.mtu) = (after.mac, after.mtu);
            if adjusted == *after {
                return DeviceChange::Adjust;
            }
            // A netdev's queue mode is fixed at creation.
            let same =
                before.name == after.name && before.netns == after.netns && (before.queues > 1) == (after.queues > 1);
            DeviceChange::Reopen { recreate: !same }
        }
        // The number of fill-ring slots depends on the other devices, and needs no reopening. A change of subports
        // needs none either, unless tags may be lost: see `device_step_of_open`.
        (Settings::Xdp(before), Settings::Xdp(after))
            if xdp::Settings { fill: after.fill, vlan_demux: after.vlan_demux, ..before.clone() } == *after =>
        {
            DeviceChange::Keep
        }
        (Settings::Xdp(before), Settings::Xdp(after))
            if xdp::Settings { fill: after.fill, mtu: after.mtu, vlan_demux: after.vlan_demux, ..before.clone() }
                == *after =>
        {
            DeviceChange::Adjust
        }
        (Settings::Packet(before), Settings::Packet(after))
            if packet::Settings { mtu: after.mtu, ..before.clone() } == *after =>
        {
            DeviceChange::Adjust
        }
        (Settings::Xdp(_), Settings::Xdp(_)) | (Settings::Packet(_), Settings::Packet(_)) => {
            DeviceChange::Reopen { recreate: false }
        }
        _ => DeviceChange::Reopen { recreate: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{Device, testgen};
    use proptest::prelude::*;

    fn ports(config: &Config) -> HashMap<&str, (&str, &Port)> {
        super::ports(&config.vms.iter().map(|vm| &**vm).collect::<Vec<_>>())
    }

    /// The work of a change does not grow with the ports of other VMs.
    #[test]
    fn a_changed_port_is_compared_with_those_of_its_vm_only() {
        let vm = |id: usize| Shared::from(Vm { id: id.to_string(), ..Vm::default() });
        let old = Config { vms: (0..100).map(vm).collect(), ..Config::default() };
        let mut new = old.clone();
        new.vms[70].share_mac = true;
        new.vms.remove(20);
        let ids = |vms: Vec<&Vm>| vms.into_iter().map(|vm| vm.id.clone()).collect::<Vec<_>>();
        let (before, after) = differing(&old, &new);
        assert_eq!((ids(before), ids(after)), (vec!["20".into(), "70".into()], vec!["70".into()]));
        new.networks.push(Network::new("n"));
        assert_eq!(differing(&old, &new).1.len(), 99);
    }

    proptest! {
        #[test]
        fn the_plan_to_the_same_configuration_is_empty(config in testgen::config()) {
            prop_assert_eq!(plan(&config, &config), []);
        }

        /// Every difference has a step.
        #[test]
        fn every_difference_has_a_step((old, new) in testgen::two()) {
            let steps = plan(&old, &new);
            let has = |matches: &dyn Fn(&Step) -> bool| steps.iter().any(matches);
            let (before, after) = (ports(&old), ports(&new));
            let is_there = |port: &Port, there: &HashMap<&str, (&str, &Port)>| {
                there.get(port.id()).is_some_and(|(_, of)| of.subport().is_some() == port.subport().is_some())
            };
            for (_, port) in old.ports() {
                prop_assert_eq!(has(&|s| *s == Step::Close(port.port_id.clone())), !is_there(port, &after));
            }
            for (_, port) in new.ports() {
                prop_assert_eq!(has(&|s| *s == Step::Open(port.clone())), !is_there(port, &before));
                let is_changed = has(&|s| matches!(s, Step::Change { port: of, .. } if of == port));
                prop_assert!(is_changed || !is_there(port, &before) || before[port.id()] == after[port.id()]);
            }
            let (before, after) = (networks(&old), networks(&new));
            for id in before.keys().chain(after.keys()) {
                let (was, is) = (before.contains_key(id), after.contains_key(id));
                prop_assert_eq!(has(&|s| *s == Step::RemoveNetwork((*id).to_owned())), was && !is);
                prop_assert_eq!(has(&|s| *s == Step::AddNetwork((*id).to_owned())), is && !was);
            }
            let (before, after) = (uplinks(&old), uplinks(&new));
            for id in before.keys().chain(after.keys()) {
                let (was, is) = (before.get(id), after.get(id));
                prop_assert_eq!(has(&|s| *s == Step::CloseUplink((*id).to_owned())), is.is_none());
                prop_assert_eq!(has(&|s| matches!(s, Step::OpenUplink(of) if of.id == *id)), was.is_none());
                let is_changed = has(&|s| matches!(s, Step::ChangeUplink { uplink, .. } if Some(&uplink) == is));
                prop_assert!(is_changed || was.is_none() || is.is_none() || was == is);
            }
        }

        /// Endpoints that no step names are unchanged.
        #[test]
        fn only_differences_are_applied((old, new) in testgen::two()) {
            let (before, after) = (ports(&old), ports(&new));
            let (below_before, below) = (networks(&old), networks(&new));
            for step in plan(&old, &new) {
                match step {
                    Step::Close(id) => {
                        let is_other = |(_, port): &(&str, &Port)| port.subport().is_none() != before[id.as_str()].1.subport().is_none();
                        prop_assert!(after.get(id.as_str()).is_none_or(is_other));
                    }
                    Step::Open(port) => {
                        let is_other = |(_, was): &(&str, &Port)| port.subport().is_none() != was.subport().is_none();
                        prop_assert!(before.get(port.id()).is_none_or(is_other));
                    }
                    Step::Change { port, device, .. } => {
                        let ((vm_before, port_before), (vm, _)) = (before[port.id()], after[port.id()]);
                        let (mtu_before, mtu) =
                            (below_before[port_before.network_id.as_str()].mtu, below[port.network_id.as_str()].mtu);
                        let parent = port.subport().map(|subport| subport.parent.as_str());
                        let has_parent_changed = parent.is_some_and(|parent| after.get(parent) != before.get(parent));
                        prop_assert!(vm != vm_before || port != *port_before || mtu != mtu_before || has_parent_changed);
                        if parent.is_some() {
                            prop_assert_eq!(device, DeviceChange::Keep);
                        } else if port.attachment == port_before.attachment {
                            let is_tap = matches!(port.device(), Some(Device::Tap(_)));
                            let same = (port.mac == port_before.mac || !is_tap) && mtu == mtu_before;
                            prop_assert_eq!(device, if same { DeviceChange::Keep } else { DeviceChange::Adjust });
                        } else {
                            let reopened = matches!(device, DeviceChange::Reopen { .. });
                            prop_assert!(reopened);
                        }
                    }
                    Step::CloseUplink(id) => prop_assert!(!uplinks(&new).contains_key(id.as_str())),
                    Step::OpenUplink(uplink) => prop_assert!(!uplinks(&old).contains_key(uplink.id.as_str())),
                    Step::ChangeUplink { uplink, device, .. } => {
                        let was = uplinks(&old)[uplink.id.as_str()];
                        prop_assert!(*was != uplink || device != DeviceChange::Keep);
                        if was.device == uplink.device && old.networks == new.networks && was.networks == uplink.networks {
                            prop_assert_eq!(device, DeviceChange::Keep);
                        }
                    }
                    Step::RemoveNetwork(id) => prop_assert!(!below.contains_key(id.as_str())),
                    Step::AddNetwork(id) => prop_assert!(!below_before.contains_key(id.as_str())),
                }
            }
        }
    }

    fn device(text: &str) -> Settings {
        let port = format!(
            r#"{{"networks": [{{"id": "n"}}], "vms": [{{"id": "v", "ports": [{{"port_id": "p", "network_id": "n",
                "mac_address": "02:00:00:00:00:01", "device": {text}}}]}}]}}"#
        );
        let config = crate::control::config::parse_json(&port, "x").unwrap();
        settings::device(&config.vms[0].ports[0], &config.networks[0], 64).unwrap()
    }

    #[test]
    fn a_device_is_reopened_only_if_necessary() {
        let tap = device(r#"{"kind": "tap", "name": "a"}"#);
        let xdp = device(r#"{"kind": "xdp", "name": "a"}"#);
        let packet = device(r#"{"kind": "packet", "name": "a"}"#);
        let Settings::Xdp(plain) = &xdp else { panic!("{xdp:?}") };
        let fuller = Settings::Xdp(xdp::Settings { fill: 2048, ..plain.clone() });
        assert_eq!(device_step(&xdp, &fuller), DeviceChange::Keep, "attaching other ports loses no frame");
        let parent = Settings::Xdp(xdp::Settings { vlan_demux: true, ..plain.clone() });
        for (before, after, may_lose_tags, step) in [
            (&xdp, &parent, false, DeviceChange::Keep),
            (&parent, &xdp, true, DeviceChange::Keep),
            (&parent, &parent, true, DeviceChange::Keep),
            (&xdp, &parent, true, DeviceChange::Reopen { recreate: false }),
        ] {
            assert_eq!(device_step_of_open(before, after, may_lose_tags), step);
        }
        let longer = Settings::Xdp(xdp::Settings { mtu: 9000, ..plain.clone() });
        assert_eq!(device_step(&xdp, &longer), DeviceChange::Adjust, "a foreign netdev keeps its properties");
        for (before, after) in [(&tap, &xdp), (&xdp, &packet), (&packet, &tap)] {
            assert_eq!(device_step(before, after), DeviceChange::Reopen { recreate: true });
        }
        let mode = device(r#"{"kind": "xdp", "name": "a", "mode": "copy"}"#);
        assert_eq!(device_step(&xdp, &mode), DeviceChange::Reopen { recreate: false });
    }
}
