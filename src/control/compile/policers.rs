//! State of storm limits, kept over changes of the forwarding configuration: one policer per port, and per VM and
//! network, while it exists. No other change refills its bucket.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::compile::uplink_groups::{UplinkGroup, UplinkGroupName, uplink_groups};
use crate::control::config::{Config, Device, Network, Port, Storm, Uplink, Vm};
use crate::switch::{PolicerState, PortPolicer, StormClass, VmPolicer};
use crate::time::MonoTime;

/// All policers.
#[derive(Debug, Default)]
pub struct Policers {
    /// Number of workers.
    workers: u16,
    /// By port.
    ports: HashMap<String, PolicerState>,
    /// By VM and network.
    vms: HashMap<(String, String), PolicerState>,
    /// By uplink group and network.
    uplinks: HashMap<(UplinkGroupName, String), PolicerState>,
}

impl Policers {
    /// No policers, for this number of workers.
    pub fn new(workers: u16) -> Policers {
        Policers { workers, ..Policers::default() }
    }

    /// Creates policers for new objects of `config`, and drops those of removed ones.
    pub fn follow(&mut self, config: &Config) {
        let ports: HashSet<&str> = config.ports().map(|(_, port)| port.id()).collect();
        self.ports.retain(|id, _| ports.contains(id.as_str()));
        for id in ports {
            self.ports.entry(id.to_owned()).or_default();
        }
        follow(&mut self.vms, config.ports().map(|(vm, port)| (vm.id.clone(), port.network_id.clone())));
        let tagged = uplink_groups(config).into_iter().flat_map(|group| {
            group.networks(config).iter().map(|of| (group.name.clone(), of.network_id.clone())).collect::<Vec<_>>()
        });
        follow(&mut self.uplinks, tagged);
    }

    /// Deficits of all policers that are not full.
    pub fn deficits(&self, now: MonoTime) -> Deficits {
        Deficits {
            ports: deficits(&self.ports, now),
            vms: deficits(&self.vms, now),
            uplinks: deficits(&self.uplinks, now),
        }
    }

    /// Sets deficits that an earlier process had `passed` ago. What no policer has a key of is ignored.
    pub fn set_deficits(&self, before: &Deficits, passed: Duration, now: MonoTime) {
        set_deficits(&self.ports, &before.ports, passed, now);
        set_deficits(&self.vms, &before.vms, passed, now);
        set_deficits(&self.uplinks, &before.uplinks, passed, now);
    }

    /// Limits of a port on this network, and of its VM there.
    pub fn of_port(&self, vm: &Vm, port: &Port, network: &Network) -> (PortPolicer, VmPolicer) {
        let storm = PortPolicer {
            limits: port.storm.over(network.storm).limits(),
            state: self.ports.get(port.id()).cloned().unwrap_or_default(),
            shared: self.workers > 1 && has_queues(vm, port),
        };
        let siblings = vm.ports.iter().filter(|sibling| sibling.network_id == port.network_id);
        let common = vm.storm.over(network.storm);
        // Lifting a limit of the port means that its frames pass: they count in no other limit either.
        let lifted = |class| port.storm.disables(class);
        let limits = StormClass::ALL.into_iter().filter(|&class| lifted(class));
        let vm_policer = VmPolicer {
            limits: limits.fold(common.limits(), |limits, class| limits.with(class, None)),
            copies: common.copies(),
            copies_off: StormClass::ALL.map(lifted),
            state: self.vms.get(&(vm.id.clone(), port.network_id.clone())).cloned().unwrap_or_default(),
            shared: self.workers > 1 && (siblings.clone().nth(1).is_some() || has_queues(vm, port)),
        };
        (storm, vm_policer)
    }

    /// State of a VM's limits on a network.
    pub fn of_vm(&self, vm: &str, network: &str) -> Option<&PolicerState> {
        self.vms.get(&(vm.to_owned(), network.to_owned()))
    }

    /// Limits of an uplink group on a network, and of copies made of its frames.
    pub fn of_uplink(
        &self,
        config: &Config,
        group: &UplinkGroup,
        network_id: &str,
        active: &Uplink,
    ) -> (PortPolicer, Option<VmPolicer>) {
        let storm = active.storm.over(Storm::OFF);
        let state = self.uplinks.get(&(group.name.clone(), network_id.to_owned())).cloned().unwrap_or_default();
        let mut members = group.members.iter().filter_map(|&member| config.uplinks.get(member));
        let shared = self.workers > 1 && (group.members.len() > 1 || members.any(|uplink| many_queues(&uplink.device)));
        let copies = storm.copies().map(|copies| VmPolicer {
            copies: Some(copies),
            state: state.clone(),
            shared,
            ..VmPolicer::default()
        });
        (PortPolicer { limits: storm.limits(), state, shared }, copies)
    }
}

/// Times until the buckets of policers are full again, by the keys of [`Policers`]: what the next process needs, so that
/// a restart gives nobody a burst.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deficits {
    ports: Vec<(String, Vec<Duration>)>,
    vms: Vec<((String, String), Vec<Duration>)>,
    uplinks: Vec<((UplinkGroupName, String), Vec<Duration>)>,
}

fn deficits<K: Clone>(policers: &HashMap<K, PolicerState>, now: MonoTime) -> Vec<(K, Vec<Duration>)> {
    policers.iter().filter_map(|(key, state)| Some((key.clone(), state.deficits(now)?))).collect()
}

fn set_deficits<K: Eq + Hash>(
    policers: &HashMap<K, PolicerState>,
    before: &[(K, Vec<Duration>)],
    passed: Duration,
    now: MonoTime,
) {
    for (key, deficits) in before {
        if let Some(state) = policers.get(key) {
            state.set_deficits(deficits.iter().map(|deficit| deficit.saturating_sub(passed)), now);
        }
    }
}

/// Keeps one policer per key.
fn follow<K: Eq + Hash>(policers: &mut HashMap<K, PolicerState>, keys: impl Iterator<Item = K>) {
    let mut before = std::mem::take(policers);
    for key in keys {
        if let Entry::Vacant(place) = policers.entry(key) {
            let state = before.remove(place.key()).unwrap_or_default();
            place.insert(state);
        }
    }
}

/// Whether a port may have several queues, polled by several workers.
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
        // all queues of its netdev
        Device::Xdp(xdp) => xdp.queues.is_none_or(|queues| queues > 1),
        Device::Packet(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::testgen;
    use proptest::prelude::*;

    proptest! {
        /// A bucket that an earlier process has emptied refills in the time between both, and only then.
        #[test]
        fn deficits_outlive_the_process(config in testgen::config(), empty in 1u64..5000, passed in 0u64..6000) {
            let (then, now) = (MonoTime::from_secs(100), MonoTime::from_secs(7));
            let [empty, passed] = [empty, passed].map(Duration::from_millis);
            let [mut old, mut new] = [Policers::new(1), Policers::new(2)];
            old.follow(&config);
            new.follow(&config);
            prop_assert_eq!(old.deficits(then), Deficits::default());
            let emptied = std::iter::repeat_n(empty, 8);
            old.ports.values().chain(old.uplinks.values()).for_each(|state| state.set_deficits(emptied.clone(), then));
            let text = serde_json::to_vec(&old.deficits(then)).unwrap();
            new.set_deficits(&serde_json::from_slice(&text).unwrap(), passed, now);
            let left = empty.saturating_sub(passed);
            for state in new.ports.values().chain(new.uplinks.values()) {
                let expected = (!left.is_zero()).then(|| vec![left; 8]);
                prop_assert_eq!(state.deficits(now), expected);
            }
            prop_assert!(new.vms.values().all(|state| state.deficits(now).is_none()), "those were full");
        }

        /// An unchanged port keeps its policer, and no two share one.
        #[test]
        fn an_unchanged_port_keeps_its_policer((old, new) in testgen::two()) {
            let mut policers = Policers::new(2);
            policers.follow(&old);
            let (ports, vm_policers, outside) = (policers.ports.clone(), policers.vms.clone(), policers.uplinks.clone());
            policers.follow(&new);
            for (vm, port) in new.ports() {
                let (id, vm_policer) = (port.id(), (vm.id.clone(), port.network_id.clone()));
                prop_assert!(ports.get(id).is_none_or(|before| *before == policers.ports[id]));
                prop_assert!(vm_policers.get(&vm_policer).is_none_or(|before| *before == policers.vms[&vm_policer]));
            }
            for group in uplink_groups(&new) {
                for of in group.networks(&new) {
                    let key = (group.name.clone(), of.network_id.clone());
                    prop_assert!(outside.get(&key).is_none_or(|before| *before == policers.uplinks[&key]));
                }
            }
            prop_assert_eq!(policers.ports.len(), new.ports().count());
            let all: Vec<&PolicerState> =
                policers.ports.values().chain(policers.vms.values()).chain(policers.uplinks.values()).collect();
            for (place, state) in all.iter().enumerate() {
                prop_assert!(!all[..place].contains(state));
            }
        }

        /// Siblings on a network share one policer and its limits, except for classes that a port has off; with one
        /// worker nothing is atomic.
        #[test]
        fn siblings_share_one_policer(config in testgen::config(), workers in 1u16..3) {
            let mut policers = Policers::new(workers);
            policers.follow(&config);
            let network = |id: &str| config.networks.iter().find(|network| network.id == id).unwrap();
            let of = |vm: &Vm, port: &Port| policers.of_port(vm, port, network(&port.network_id));
            for (vm, port) in config.ports() {
                let (storm, vm_policer) = of(vm, port);
                prop_assert!(workers > 1 || !storm.shared && !vm_policer.shared);
                prop_assert!(!storm.shared || vm_policer.shared);
                for (other_vm, other) in config.ports() {
                    let (_, others) = of(other_vm, other);
                    let are_siblings = vm.id == other_vm.id && port.network_id == other.network_id;
                    prop_assert_eq!(vm_policer.state == others.state, are_siblings);
                    prop_assert!(!are_siblings || vm_policer.copies == others.copies);
                    for class in StormClass::ALL.into_iter().filter(|_| are_siblings) {
                        let [own, its] = [port, other].map(|port| port.storm.disables(class));
                        prop_assert!(own || its || vm_policer.limits.get(class) == others.limits.get(class));
                        prop_assert!(!own || vm_policer.limits.get(class).is_none());
                        prop_assert_eq!(vm_policer.copies_off[class as usize], own);
                    }
                    prop_assert!(workers == 1 || !are_siblings || port == other || vm_policer.shared);
                }
            }
        }
    }
}
