//! From one configuration to another: a pure diff, in steps that can be taken one by one.
//!
//! A port is recognised by its id, also where it stands in another VM than before. What the steps
//! leave undone is only the order in which things are listed, and [`Step::Arrange`] sees to that.

use std::collections::{HashMap, HashSet};

use super::blueprint;
use super::config::{Config, Network, Port, Vm};
use crate::device::{Settings, packet};

/// The steps, in the order in which they are taken.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step from one configuration to another.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// This port goes: rules without it, then its gates come back, and its device is closed. A
    /// netdev that we made for it is removed.
    Close(String),
    /// This network goes. Nobody is on it any more.
    RemoveNetwork(String),
    /// This network is new, or otherwise.
    PutNetwork(Network),
    /// This port stays and is otherwise: it, its place, or the network below it.
    Change {
        /// Its VM.
        vm: String,
        /// How it shall be.
        port: Port,
        /// Whether what was learned behind it is forgotten.
        forget: bool,
        /// What that means for its device.
        device: DeviceStep,
    },
    /// This port is new, behind those that its VM has. An unknown VM is a new one.
    Open {
        /// Its VM.
        vm: String,
        /// How it shall be.
        port: Port,
    },
    /// Networks, VMs and the ports of each VM are listed in this order. A VM that is not listed is
    /// no more.
    Arrange(Order),
}

/// What becomes of the device of a port that is otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceStep {
    /// It is right as it is.
    Keep,
    /// Its netdev gets another address or MTU; its queues stay open.
    Adjust,
    /// It is closed and opened again.
    Reopen {
        /// Whether the netdev that was used so far is of no more use: it is removed if we made it.
        anew: bool,
    },
}

/// In which order things are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// Networks, by id.
    pub networks: Vec<String>,
    /// VMs, by id, each with its ports.
    pub vms: Vec<(String, Vec<String>)>,
}

impl Order {
    fn of(config: &Config) -> Order {
        let ports = |vm: &Vm| vm.ports.iter().map(|port| port.port_id.clone()).collect();
        Order {
            networks: config.networks.iter().map(|network| network.id.clone()).collect(),
            vms: config.vms.iter().map(|vm| (vm.id.clone(), ports(vm))).collect(),
        }
    }

    /// The order after `steps`, whatever they come to in the end.
    fn after(mut self, steps: &[Step]) -> Order {
        if let Some(Step::Arrange(order)) = steps.last() {
            return order.clone();
        }
        let home: HashMap<String, String> =
            self.vms.iter().flat_map(|(vm, ports)| ports.iter().map(move |port| (port.clone(), vm.clone()))).collect();
        let mut leave = HashSet::new();
        let mut enter: Vec<(&str, &str)> = Vec::new();
        let mut known: HashSet<String> = self.networks.iter().cloned().collect();
        for step in steps {
            match step {
                Step::Close(port) => drop(leave.insert(port.as_str())),
                Step::RemoveNetwork(id) => drop(known.remove(id)),
                Step::PutNetwork(network) => {
                    if known.insert(network.id.clone()) {
                        self.networks.push(network.id.clone());
                    }
                }
                Step::Change { vm, port, .. } => {
                    if home.get(&port.port_id) != Some(vm) {
                        leave.insert(&port.port_id);
                        enter.push((vm, &port.port_id));
                    }
                }
                Step::Open { vm, port } => enter.push((vm, &port.port_id)),
                Step::Arrange(_) => {}
            }
        }
        self.networks.retain(|network| known.contains(network));
        for (_, ports) in &mut self.vms {
            ports.retain(|port| !leave.contains(port.as_str()));
        }
        let mut places: HashMap<String, usize> =
            self.vms.iter().enumerate().map(|(index, (vm, _))| (vm.clone(), index)).collect();
        for (vm, port) in enter {
            let index = *places.entry(vm.to_owned()).or_insert_with(|| {
                self.vms.push((vm.to_owned(), Vec::new()));
                self.vms.len() - 1
            });
            self.vms[index].1.push(port.to_owned());
        }
        self
    }
}

/// The ports of a configuration by id, each with its VM.
fn ports(config: &Config) -> HashMap<&str, (&str, &Port)> {
    config.ports().map(|(vm, port)| (port.id(), (vm.id.as_str(), port))).collect()
}

fn networks(config: &Config) -> HashMap<&str, &Network> {
    config.networks.iter().map(|network| (network.id.as_str(), network)).collect()
}

/// What has to be done for `new` to be instead of `old`. `[switch]` is fixed at start.
pub fn plan(old: &Config, new: &Config) -> Plan {
    let (ports_before, ports_after) = (ports(old), ports(new));
    let (networks_before, networks_after) = (networks(old), networks(new));
    let mut steps = Vec::new();
    steps.extend(
        old.ports()
            .filter(|(_, port)| !ports_after.contains_key(port.id()))
            .map(|(_, port)| Step::Close(port.port_id.clone())),
    );
    steps.extend(
        new.networks
            .iter()
            .filter(|network| networks_before.get(network.id.as_str()) != Some(network))
            .map(|network| Step::PutNetwork(network.clone())),
    );
    for (vm, port) in new.ports() {
        let vm = vm.id.clone();
        let Some(&(vm_before, before)) = ports_before.get(port.id()) else {
            steps.push(Step::Open { vm, port: port.clone() });
            continue;
        };
        // Admission has seen to it that both are there.
        let (below_before, below) =
            (networks_before.get(before.network_id.as_str()), networks_after.get(port.network_id.as_str()));
        let device = match (below_before, below) {
            (Some(below_before), Some(below)) => {
                device_step(&blueprint::device(before, below_before), &blueprint::device(port, below))
            }
            _ => DeviceStep::Keep,
        };
        if port == before && vm == vm_before && device == DeviceStep::Keep {
            continue;
        }
        // What speaks behind a port that was taken down, or given to somebody else, or plugged
        // into another network, is not there any more.
        let forget = vm != vm_before
            || port.network_id != before.network_id
            || before.admin_state_up && !port.admin_state_up
            || matches!(device, DeviceStep::Reopen { .. });
        steps.push(Step::Change { vm, port: port.clone(), forget, device });
    }
    steps.extend(
        old.networks
            .iter()
            .filter(|network| !networks_after.contains_key(network.id.as_str()))
            .map(|network| Step::RemoveNetwork(network.id.clone())),
    );
    let order = Order::of(new);
    if Order::of(old).after(&steps) != order {
        steps.push(Step::Arrange(order));
    }
    Plan { steps }
}

/// What becomes of a device that was to be `before` and shall be `after`.
pub fn device_step(before: &Settings, after: &Settings) -> DeviceStep {
    if before == after {
        return DeviceStep::Keep;
    }
    let (before, after) = match (before, after) {
        (Settings::Tap(before), Settings::Tap(after)) => (before, after),
        (Settings::Packet(before), Settings::Packet(after)) => {
            let adjusted = packet::Settings { mtu: after.mtu, ..before.clone() };
            return if adjusted == *after { DeviceStep::Adjust } else { DeviceStep::Reopen { anew: false } };
        }
        _ => return DeviceStep::Reopen { anew: before.at() != after.at() },
    };
    let mut adjusted = before.clone();
    (adjusted.mac, adjusted.mtu) = (after.mac, after.mtu);
    if adjusted == *after {
        return DeviceStep::Adjust;
    }
    // A netdev is made for one queue or for several, once and for all.
    let same = before.name == after.name && before.netns == after.netns && (before.queues > 1) == (after.queues > 1);
    DeviceStep::Reopen { anew: !same }
}

/// What the steps of a plan make of a configuration.
pub fn apply(plan: &Plan, config: &Config) -> Config {
    let mut networks: HashMap<&str, &Network> = networks(config);
    let mut ports: HashMap<&str, &Port> = ports(config).into_iter().map(|(id, (_, port))| (id, port)).collect();
    for step in &plan.steps {
        match step {
            Step::Close(port) => drop(ports.remove(port.as_str())),
            Step::RemoveNetwork(network) => drop(networks.remove(network.as_str())),
            Step::PutNetwork(network) => drop(networks.insert(&network.id, network)),
            Step::Change { port, .. } | Step::Open { port, .. } => drop(ports.insert(&port.port_id, port)),
            Step::Arrange(_) => {}
        }
    }
    let order = Order::of(config).after(&plan.steps);
    let listed = |ids: Vec<String>| ids.iter().filter_map(|id| ports.get(id.as_str()).copied().cloned()).collect();
    Config {
        switch: config.switch.clone(),
        networks: order.networks.iter().filter_map(|id| networks.get(id.as_str()).copied().cloned()).collect(),
        vms: order.vms.into_iter().map(|(id, ids)| Vm { id, ports: listed(ids) }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::strategy;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plan_leads_where_it_says((old, new) in strategy::two()) {
            let plan = plan(&old, &new);
            prop_assert_eq!(apply(&plan, &old), new, "{:#?}", plan);
        }

        #[test]
        fn there_is_nothing_to_do_from_a_configuration_to_itself(config in strategy::config()) {
            prop_assert_eq!(plan(&config, &config), Plan::default());
        }

        /// Whoever is not named in a step is left alone.
        #[test]
        fn only_what_differs_is_touched((old, new) in strategy::two()) {
            let (before, after) = (ports(&old), ports(&new));
            let (below_before, below) = (networks(&old), networks(&new));
            for step in plan(&old, &new).steps {
                match step {
                    Step::Close(port) => prop_assert!(!after.contains_key(port.as_str())),
                    Step::Open { port, .. } => prop_assert!(!before.contains_key(port.id())),
                    Step::Change { vm, port, device, .. } => {
                        let (vm_before, port_before) = before[port.id()];
                        let (mtu_before, mtu) =
                            (below_before[port_before.network_id.as_str()].mtu, below[port.network_id.as_str()].mtu);
                        prop_assert!(vm != vm_before || port != *port_before || mtu != mtu_before);
                        if port.device == port_before.device {
                            let same = port.mac == port_before.mac && mtu == mtu_before;
                            prop_assert_eq!(device, if same { DeviceStep::Keep } else { DeviceStep::Adjust });
                        } else {
                            let reopened = matches!(device, DeviceStep::Reopen { .. });
                            prop_assert!(reopened);
                        }
                    }
                    Step::RemoveNetwork(id) => prop_assert!(!below.contains_key(id.as_str())),
                    Step::PutNetwork(network) => {
                        prop_assert_ne!(below_before.get(network.id.as_str()), Some(&&network));
                    }
                    Step::Arrange(order) => prop_assert_eq!(order, Order::of(&new)),
                }
            }
        }
    }
}
