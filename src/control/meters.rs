//! The state of storm limits, which outlives the rules: each port, and each VM on each network, has a meter as long as
//! it is there. Whatever else changes, nobody gets a full bucket for it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::config::{Config, Device, Network, Port, Storm, Uplink, Vm};
use super::lines::{Line, LineName, lines};
use crate::switch::{Meter, Pack, PortStorm, StormClass};

/// All meters.
#[derive(Debug, Default)]
pub struct Meters {
    /// How many workers there are.
    workers: u16,
    /// By port.
    ports: HashMap<String, Meter>,
    /// By VM and network.
    packs: HashMap<(String, String), Meter>,
    /// By line and network.
    outside: HashMap<(LineName, String), Meter>,
}

impl Meters {
    /// No meters yet, in a switch of so many workers.
    pub fn new(workers: u16) -> Meters {
        Meters { workers, ..Meters::default() }
    }

    /// Makes a meter for everything that is new in `config`, and drops those of what is gone.
    pub fn follow(&mut self, config: &Config) {
        let ports: HashSet<&str> = config.ports().map(|(_, port)| port.id()).collect();
        self.ports.retain(|id, _| ports.contains(id.as_str()));
        for id in ports {
            self.ports.entry(id.to_owned()).or_default();
        }
        follow(&mut self.packs, config.ports().map(|(vm, port)| (vm.id.clone(), port.network_id.clone())));
        let carried = lines(config).into_iter().flat_map(|line| {
            line.networks(config).iter().map(|of| (line.name.clone(), of.network_id.clone())).collect::<Vec<_>>()
        });
        follow(&mut self.outside, carried);
    }

    /// The limits of a port, which is on this network, and those of its VM there.
    pub fn of_port(&self, vm: &Vm, port: &Port, network: &Network) -> (PortStorm, Pack) {
        let storm = PortStorm {
            limits: port.storm.over(network.storm).limits(),
            meter: self.ports.get(port.id()).cloned().unwrap_or_default(),
            shared: self.workers > 1 && has_queues(vm, port),
        };
        let siblings = vm.ports.iter().filter(|sibling| sibling.network_id == port.network_id);
        let common = vm.storm.over(network.storm);
        // Whoever lifts a limit of this port means that its frames pass: they count in no other limit either.
        let lifted = |class| port.storm.lifts(class);
        let limits = StormClass::ALL.into_iter().filter(|&class| lifted(class));
        let pack = Pack {
            limits: limits.fold(common.limits(), |limits, class| limits.with(class, None)),
            copies: common.copies(),
            copies_off: StormClass::ALL.map(lifted),
            meter: self.packs.get(&(vm.id.clone(), port.network_id.clone())).cloned().unwrap_or_default(),
            shared: self.workers > 1 && (siblings.clone().nth(1).is_some() || has_queues(vm, port)),
        };
        (storm, pack)
    }

    /// The state of the limits that the ports of a VM have in common on a network.
    pub fn of_vm(&self, vm: &str, network: &str) -> Option<&Meter> {
        self.packs.get(&(vm.to_owned(), network.to_owned()))
    }

    /// The limits of a line on a network that it carries, and those of the copies that are made of what comes by it.
    pub fn of_line(
        &self,
        config: &Config,
        line: &Line,
        network_id: &str,
        active: &Uplink,
    ) -> (PortStorm, Option<Pack>) {
        let storm = active.storm.over(Storm::OFF);
        let meter = self.outside.get(&(line.name.clone(), network_id.to_owned())).cloned().unwrap_or_default();
        let mut members = line.members.iter().filter_map(|&member| config.uplinks.get(member));
        let shared = self.workers > 1 && (line.members.len() > 1 || members.any(|uplink| many_queues(&uplink.device)));
        let copies =
            storm.copies().map(|copies| Pack { copies: Some(copies), meter: meter.clone(), shared, ..Pack::default() });
        (PortStorm { limits: storm.limits(), meter, shared }, copies)
    }
}

/// A meter for each of these keys, and for no other.
fn follow<K: Eq + std::hash::Hash>(meters: &mut HashMap<K, Meter>, keys: impl Iterator<Item = K>) {
    let mut before = std::mem::take(meters);
    for key in keys {
        if let Entry::Vacant(place) = meters.entry(key) {
            let meter = before.remove(place.key()).unwrap_or_default();
            place.insert(meter);
        }
    }
}

/// Whether frames of a port can come by several queues, each of which may be polled by another worker.
fn has_queues(vm: &Vm, port: &Port) -> bool {
    let parent = || {
        let parent = &port.subport()?.parent;
        vm.ports.iter().find(|sibling| sibling.port_id == *parent)?.device()
    };
    port.device().or_else(parent).is_some_and(many_queues)
}

fn many_queues(device: &Device) -> bool {
    match device {
        Device::Tap(tap) => tap.queues > 1,
        // all that its netdev has
        Device::Xdp(xdp) => xdp.queues.is_none_or(|queues| queues > 1),
        Device::Packet(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::strategy;
    use proptest::prelude::*;

    proptest! {
        /// Whoever stays keeps the meter, and no two have the same.
        #[test]
        fn who_stays_keeps_the_meter((old, new) in strategy::two()) {
            let mut meters = Meters::new(2);
            meters.follow(&old);
            let (ports, packs, outside) = (meters.ports.clone(), meters.packs.clone(), meters.outside.clone());
            meters.follow(&new);
            for (vm, port) in new.ports() {
                let (id, pack) = (port.id(), (vm.id.clone(), port.network_id.clone()));
                prop_assert!(ports.get(id).is_none_or(|before| *before == meters.ports[id]));
                prop_assert!(packs.get(&pack).is_none_or(|before| *before == meters.packs[&pack]));
            }
            for line in lines(&new) {
                for of in line.networks(&new) {
                    let key = (line.name.clone(), of.network_id.clone());
                    prop_assert!(outside.get(&key).is_none_or(|before| *before == meters.outside[&key]));
                }
            }
            prop_assert_eq!(meters.ports.len(), new.ports().count());
            let all: Vec<&Meter> =
                meters.ports.values().chain(meters.packs.values()).chain(meters.outside.values()).collect();
            for (place, meter) in all.iter().enumerate() {
                prop_assert!(!all[..place].contains(meter));
            }
        }

        /// The siblings of a VM on a network have one meter and the same limits, but for classes that a port has off; with
        /// one worker nothing is shared.
        #[test]
        fn siblings_have_one_meter(config in strategy::config(), workers in 1u16..3) {
            let mut meters = Meters::new(workers);
            meters.follow(&config);
            let network = |id: &str| config.networks.iter().find(|network| network.id == id).unwrap();
            let of = |vm: &Vm, port: &Port| meters.of_port(vm, port, network(&port.network_id));
            for (vm, port) in config.ports() {
                let (storm, pack) = of(vm, port);
                prop_assert!(workers > 1 || !storm.shared && !pack.shared);
                prop_assert!(!storm.shared || pack.shared);
                for (other_vm, other) in config.ports() {
                    let (_, others) = of(other_vm, other);
                    let are_siblings = vm.id == other_vm.id && port.network_id == other.network_id;
                    prop_assert_eq!(pack.meter == others.meter, are_siblings);
                    prop_assert!(!are_siblings || pack.copies == others.copies);
                    for class in StormClass::ALL.into_iter().filter(|_| are_siblings) {
                        let [own, its] = [port, other].map(|port| port.storm.lifts(class));
                        prop_assert!(own || its || pack.limits.get(class) == others.limits.get(class));
                        prop_assert!(!own || pack.limits.get(class).is_none());
                        prop_assert_eq!(pack.copies_off[class as usize], own);
                    }
                    prop_assert!(workers == 1 || !are_siblings || port == other || pack.shared);
                }
            }
        }
    }
}
