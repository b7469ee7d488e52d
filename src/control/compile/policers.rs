//! State of storm limits, kept over changes of the forwarding configuration: one policer per port, and per VM and
//! network, while it exists. No other change refills its bucket.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::compile::uplink_groups::{UplinkGroup, UplinkGroupName, uplink_groups};
use crate::control::config::{Config, Device, Network, Port, Storm, Uplink, Vm, differing};
use crate::switch::{PolicerState, PortPolicer, StormClass, VmPolicer};
use crate::time::MonoTime;

/// All policers.
#[derive(Debug, Default)]
pub struct Policers {
    /// Number of workers.
    workers: u16,
    /// By port.
    ports: HashMap<String, PolicerState>,
    /// By VM, of each of its networks, which are few.
    vms: HashMap<String, Vec<(String, PolicerState)>>,
    /// By uplink group and network.
    uplinks: HashMap<(UplinkGroupName, String), PolicerState>,
}

impl Policers {
    /// No policers, for this number of workers.
    pub fn new(workers: u16) -> Policers {
        Policers { workers, ..Policers::default() }
    }

    /// Creates policers for new objects of `config`, and drops those of removed ones. The policers are those of `before`.
    pub fn follow(&mut self, before: &Config, config: &Config) {
        let (old, new) = differing(&before.vms, &config.vms);
        let ports: HashSet<&str> = new.iter().flat_map(|vm| vm.ports.iter().map(Port::id)).collect();
        let vms: HashSet<&str> = new.iter().map(|vm| vm.id.as_str()).collect();
        for vm in old {
            for gone in vm.ports.iter().map(Port::id).filter(|id| !ports.contains(id)) {
                self.ports.remove(gone);
            }
            if !vms.contains(vm.id.as_str()) {
                self.vms.remove(&vm.id);
            }
        }
        for id in ports {
            self.ports.entry(id.to_owned()).or_default();
        }
        for vm in new {
            let networks: HashSet<&str> = vm.ports.iter().map(|port| port.network_id.as_str()).collect();
            let policers = self.vms.entry(vm.id.clone()).or_default();
            policers.retain(|(network, _)| networks.contains(network.as_str()));
            for network in networks {
                if policers.iter().all(|(known, _)| known != network) {
                    policers.push((network.to_owned(), PolicerState::default()));
                }
            }
        }
        let tagged = uplink_groups(config).into_iter().flat_map(|group| {
            group.networks(config).iter().map(|of| (group.name.clone(), of.network_id.clone())).collect::<Vec<_>>()
        });
        follow(&mut self.uplinks, tagged);
    }

    /// Deficits of all policers that are not full.
    pub fn deficits(&self, now: MonoTime) -> Deficits {
        let vms = self.vms.iter().flat_map(|(vm, of)| of.iter().map(move |(network, state)| (vm, network, state)));
        Deficits {
            ports: deficits(self.ports.iter().map(|(id, state)| (id.clone(), state)), now),
            vms: deficits(vms.map(|(vm, network, state)| ((vm.clone(), network.clone()), state)), now),
            uplinks: deficits(self.uplinks.iter().map(|(key, state)| (key.clone(), state)), now),
        }
    }

    /// Sets deficits that an earlier process had `passed` ago. What no policer has a key of is ignored.
    pub fn set_deficits(&self, before: &Deficits, passed: Duration, now: MonoTime) {
        set_deficits(|id| self.ports.get(id), &before.ports, passed, now);
        set_deficits(|(vm, network)| self.of_vm(vm, network), &before.vms, passed, now);
        set_deficits(|key| self.uplinks.get(key), &before.uplinks, passed, now);
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
            state: self.of_vm(&vm.id, &port.network_id).cloned().unwrap_or_default(),
            shared: self.workers > 1 && (siblings.clone().nth(1).is_some() || has_queues(vm, port)),
        };
        (storm, vm_policer)
    }

    /// State of a VM's limits on a network.
    pub fn of_vm(&self, vm: &str, network: &str) -> Option<&PolicerState> {
        self.vms.get(vm)?.iter().find(|(of, _)| of == network).map(|(_, state)| state)
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

fn deficits<'a, K>(policers: impl Iterator<Item = (K, &'a PolicerState)>, now: MonoTime) -> Vec<(K, Vec<Duration>)> {
    policers.filter_map(|(key, state)| Some((key, state.deficits(now)?))).collect()
}

fn set_deficits<'a, K>(
    policer: impl Fn(&K) -> Option<&'a PolicerState>,
    before: &[(K, Vec<Duration>)],
    passed: Duration,
    now: MonoTime,
) {
    for (key, deficits) in before {
        if let Some(state) = policer(key) {
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

    fn of_vms(policers: &Policers) -> impl Iterator<Item = &PolicerState> {
        policers.vms.values().flatten().map(|(_, state)| state)
    }

    proptest! {
        /// A bucket that an earlier process has emptied refills in the time between both, and only then.
        #[test]
        fn deficits_outlive_the_process(
            config in testgen::config(), empty in 1u64..5000, passed in 0u64..6000, are_vms_empty: bool,
        ) {
            let (then, now) = (MonoTime::from_secs(100), MonoTime::from_secs(7));
            let [empty, passed] = [empty, passed].map(Duration::from_millis);
            let [mut old, mut new] = [Policers::new(1), Policers::new(2)];
            old.follow(&Config::default(), &config);
            new.follow(&Config::default(), &config);
            prop_assert_eq!(old.deficits(then), Deficits::default());
            let emptied = std::iter::repeat_n(empty, 8);
            old.ports.values().chain(old.uplinks.values()).for_each(|state| state.set_deficits(emptied.clone(), then));
            if are_vms_empty {
                of_vms(&old).for_each(|state| state.set_deficits(emptied.clone(), then));
            }
            let text = serde_json::to_vec(&old.deficits(then)).unwrap();
            new.set_deficits(&serde_json::from_slice(&text).unwrap(), passed, now);
            let left = empty.saturating_sub(passed);
            let vms = of_vms(&new).filter(|_| are_vms_empty);
            for state in new.ports.values().chain(new.uplinks.values()).chain(vms) {
                let expected = (!left.is_zero()).then(|| vec![left; 8]);
                prop_assert_eq!(state.deficits(now), expected);
            }
            let are_full = of_vms(&new).all(|state| state.deficits(now).is_none());
            prop_assert!(are_vms_empty || are_full, "those were full");
        }

        /// An unchanged port keeps its policer, and no two share one.
        #[test]
        fn an_unchanged_port_keeps_its_policer((old, new) in testgen::two()) {
            let mut policers = Policers::new(2);
            policers.follow(&Config::default(), &old);
            let (ports, outside) = (policers.ports.clone(), policers.uplinks.clone());
            let before = Policers { workers: 2, ports: HashMap::new(), vms: policers.vms.clone(), uplinks: HashMap::new() };
            policers.follow(&old, &new);
            for (vm, port) in new.ports() {
                let id = port.id();
                prop_assert!(ports.get(id).is_none_or(|before| *before == policers.ports[id]));
                let now = policers.of_vm(&vm.id, &port.network_id).unwrap();
                prop_assert!(before.of_vm(&vm.id, &port.network_id).is_none_or(|before| before == now));
            }
            for group in uplink_groups(&new) {
                for of in group.networks(&new) {
                    let key = (group.name.clone(), of.network_id.clone());
                    prop_assert!(outside.get(&key).is_none_or(|before| *before == policers.uplinks[&key]));
                }
            }
            prop_assert_eq!(policers.ports.len(), new.ports().count());
            let mut on_networks: Vec<(&str, &str)> =
                new.ports().map(|(vm, port)| (vm.id.as_str(), port.network_id.as_str())).collect();
            on_networks.sort_unstable();
            on_networks.dedup();
            prop_assert_eq!(policers.vms.values().map(Vec::len).sum::<usize>(), on_networks.len());
            prop_assert_eq!(policers.vms.len(), new.vms.len());
            let of_vms = policers.vms.values().flatten().map(|(_, state)| state);
            let all: Vec<&PolicerState> = policers.ports.values().chain(of_vms).chain(policers.uplinks.values()).collect();
            for (place, state) in all.iter().enumerate() {
                prop_assert!(!all[..place].contains(state));
            }
        }

        /// Siblings on a network share one policer and its limits, except for classes that a port has off; with one
        /// worker nothing is atomic.
        #[test]
        fn siblings_share_one_policer(config in testgen::config(), workers in 1u16..3) {
            let mut policers = Policers::new(workers);
            policers.follow(&Config::default(), &config);
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
