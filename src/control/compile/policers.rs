//! State of storm limits, kept over changes of the forwarding configuration: one policer per port, and per VM and
//! network, while it exists. No other change refills its bucket.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::compile::uplink_groups::{UplinkGroup, UplinkGroupName, uplink_groups};
use crate::control::config::{Config, Device, Network, Port, Storm, StormPolicy, Uplink, Vm, differing};
use crate::switch::{PolicerState, PortPolicer, StormClass, StormLimits, VmPolicer};
use crate::time::MonoTime;

/// All policers.
#[derive(Debug, Default)]
pub struct Policers {
    /// Number of workers.
    workers: u16,
    /// By VM.
    vms: HashMap<String, PolicersOfVm>,
    /// By uplink group and network.
    uplinks: HashMap<(UplinkGroupName, String), PolicerState>,
}

/// Policers of a VM.
#[derive(Debug, Clone, Default)]
pub struct PolicersOfVm {
    /// Of each port, in their order.
    ports: Vec<(String, PolicerState)>,
    /// Of each of its networks, which are few.
    networks: Vec<(String, PolicerState)>,
}

impl Policers {
    /// No policers, for this number of workers.
    pub fn new(workers: u16) -> Policers {
        Policers { workers, ..Policers::default() }
    }

    /// Creates policers for new objects of `config`, and drops those of removed ones. The policers are those of `before`.
    pub fn follow(&mut self, before: &Config, config: &Config) {
        let (old, new) = differing(&before.vms, &config.vms);
        // A port may continue at another VM.
        let (mut ports, mut networks) = (HashMap::new(), HashMap::new());
        for vm in old {
            let Some(of_vm) = self.vms.remove(&vm.id) else { continue };
            ports.extend(of_vm.ports);
            networks.insert(vm.id.as_str(), of_vm.networks);
        }
        for vm in new {
            let known = networks.remove(vm.id.as_str()).unwrap_or_default();
            let mut of_vm = PolicersOfVm::default();
            for Port { port_id, network_id, .. } in &vm.ports {
                of_vm.ports.push((port_id.clone(), ports.remove(port_id).unwrap_or_default()));
                if find(&of_vm.networks, network_id).is_none() {
                    of_vm.networks.push((network_id.clone(), find(&known, network_id).cloned().unwrap_or_default()));
                }
            }
            self.vms.insert(vm.id.clone(), of_vm);
        }
        let tagged = uplink_groups(config).into_iter().flat_map(|group| {
            group.networks(config).iter().map(|of| (group.name.clone(), of.network_id.clone())).collect::<Vec<_>>()
        });
        follow(&mut self.uplinks, tagged);
    }

    /// Deficits of all policers that are not full.
    pub fn deficits(&self, now: MonoTime) -> Deficits {
        let vms = self.vms.iter();
        let vms = vms.flat_map(|(vm, of_vm)| of_vm.networks.iter().map(move |(network, state)| (vm, network, state)));
        let ports = self.vms.values().flat_map(|of_vm| &of_vm.ports);
        Deficits {
            ports: deficits(ports.map(|(id, state)| (id.clone(), state)), now),
            vms: deficits(vms.map(|(vm, network, state)| ((vm.clone(), network.clone()), state)), now),
            uplinks: deficits(self.uplinks.iter().map(|(key, state)| (key.clone(), state)), now),
        }
    }

    /// Sets deficits that an earlier process had `passed` ago. What no policer has a key of is ignored.
    pub fn set_deficits(&self, before: &Deficits, passed: Duration, now: MonoTime) {
        let ports = self.vms.values().flat_map(|of_vm| &of_vm.ports);
        let ports: HashMap<&String, &PolicerState> = ports.map(|(id, state)| (id, state)).collect();
        set_deficits(|id| ports.get(id).copied(), &before.ports, passed, now);
        set_deficits(|(vm, network)| self.of_vm_on(vm, network), &before.vms, passed, now);
        set_deficits(|key| self.uplinks.get(key), &before.uplinks, passed, now);
    }

    /// Those of a VM.
    pub fn of_vm(&self, vm: &str) -> Option<&PolicersOfVm> {
        self.vms.get(vm)
    }

    /// Limits of the port at this position in its VM, which is on this network, and of its VM there. `of_vm`: the policers of
    /// the VM, which are the same for all its ports. `cache`: limits of the ports before it.
    pub fn of_port<'c>(
        &self,
        of_vm: Option<&PolicersOfVm>,
        vm: &Vm,
        position: usize,
        network: &'c Network,
        cache: &mut LimitsCache<'c>,
    ) -> (PortPolicer, VmPolicer) {
        let port = &vm.ports[position];
        let own = of_vm.and_then(|of_vm| of_vm.ports.get(position)).filter(|(id, _)| id == port.id());
        let storm = PortPolicer {
            limits: cache.of_ports.of(port.storm, network),
            state: own.map(|(_, state)| state.clone()).unwrap_or_default(),
            shared: self.workers > 1 && has_queues(vm, port),
        };
        let siblings = vm.ports.iter().filter(|sibling| sibling.network_id == port.network_id);
        // Lifting a limit of the port means that its frames pass: they count in no other limit either.
        let lifted = |class| port.storm.disables(class);
        let mut common = vm.storm;
        for class in StormClass::ALL.into_iter().filter(|&class| lifted(class)) {
            common.classes[class as usize] = Some(StormPolicy::Off);
        }
        let vm_policer = VmPolicer {
            limits: cache.of_vms.of(common, network),
            copies: common.over(network.storm).copies(),
            copies_off: StormClass::ALL.map(lifted),
            state: of_vm.and_then(|of_vm| find(&of_vm.networks, &port.network_id)).cloned().unwrap_or_default(),
            shared: self.workers > 1 && (siblings.clone().nth(1).is_some() || has_queues(vm, port)),
        };
        (storm, vm_policer)
    }

    /// State of a VM's limits on a network.
    pub fn of_vm_on(&self, vm: &str, network: &str) -> Option<&PolicerState> {
        find(&self.vms.get(vm)?.networks, network)
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
        (PortPolicer { limits: storm.limits().into(), state, shared }, copies)
    }
}

/// Limits that were compiled last: most ports have those of their neighbours.
#[derive(Debug, Default)]
pub struct LimitsCache<'c> {
    of_ports: LastLimits<'c>,
    of_vms: LastLimits<'c>,
}

/// Network, what is set beside its policies, and the limits.
#[derive(Debug, Default)]
struct LastLimits<'c>(Option<(&'c Network, Storm, Arc<StormLimits>)>);

impl<'c> LastLimits<'c> {
    /// Limits by these policies, completed from those of the network.
    fn of(&mut self, storm: Storm, network: &'c Network) -> Arc<StormLimits> {
        if let Some((of, own, limits)) = &self.0
            && std::ptr::eq(*of, network)
            && *own == storm
        {
            return limits.clone();
        }
        let limits = Arc::new(storm.over(network.storm).limits());
        self.0 = Some((network, storm, limits.clone()));
        limits
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

fn find<'p>(policers: &'p [(String, PolicerState)], id: &str) -> Option<&'p PolicerState> {
    policers.iter().find(|(of, _)| of == id).map(|(_, state)| state)
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
        policers.vms.values().flat_map(|of_vm| &of_vm.networks).map(|(_, state)| state)
    }

    fn of_ports(policers: &Policers) -> HashMap<&str, &PolicerState> {
        let ports = policers.vms.values().flat_map(|of_vm| &of_vm.ports);
        ports.map(|(id, state)| (id.as_str(), state)).collect()
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
            let others = of_ports(&old).into_values().chain(old.uplinks.values());
            others.for_each(|state| state.set_deficits(emptied.clone(), then));
            if are_vms_empty {
                of_vms(&old).for_each(|state| state.set_deficits(emptied.clone(), then));
            }
            let text = serde_json::to_vec(&old.deficits(then)).unwrap();
            new.set_deficits(&serde_json::from_slice(&text).unwrap(), passed, now);
            let left = empty.saturating_sub(passed);
            let vms = of_vms(&new).filter(|_| are_vms_empty);
            for state in of_ports(&new).into_values().chain(new.uplinks.values()).chain(vms) {
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
            let outside = policers.uplinks.clone();
            let before = Policers { workers: 2, vms: policers.vms.clone(), uplinks: HashMap::new() };
            policers.follow(&old, &new);
            let (ports_before, ports) = (of_ports(&before), of_ports(&policers));
            let network = |id: &str| new.networks.iter().find(|network| network.id == id).unwrap();
            for (vm, port) in new.ports() {
                let id = port.id();
                prop_assert!(ports_before.get(id).is_none_or(|before| *before == ports[id]));
                let position = vm.ports.iter().position(|other| other.id() == id).unwrap();
                let network = network(&port.network_id);
                let cache = &mut LimitsCache::default();
                let (own, _) = policers.of_port(policers.of_vm(&vm.id), vm, position, network, cache);
                prop_assert!(own.state == *ports[id]);
                let now = policers.of_vm_on(&vm.id, &port.network_id).unwrap();
                prop_assert!(before.of_vm_on(&vm.id, &port.network_id).is_none_or(|before| before == now));
            }
            for group in uplink_groups(&new) {
                for of in group.networks(&new) {
                    let key = (group.name.clone(), of.network_id.clone());
                    prop_assert!(outside.get(&key).is_none_or(|before| *before == policers.uplinks[&key]));
                }
            }
            prop_assert_eq!(ports.len(), new.ports().count());
            let mut on_networks: Vec<(&str, &str)> =
                new.ports().map(|(vm, port)| (vm.id.as_str(), port.network_id.as_str())).collect();
            on_networks.sort_unstable();
            on_networks.dedup();
            prop_assert_eq!(of_vms(&policers).count(), on_networks.len());
            prop_assert_eq!(policers.vms.len(), new.vms.len());
            let of_vms = of_vms(&policers);
            let all: Vec<&PolicerState> = ports.into_values().chain(of_vms).chain(policers.uplinks.values()).collect();
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
            let of = |vm: &Vm, port: &Port| {
                let position = vm.ports.iter().position(|other| other.id() == port.id()).unwrap();
                let cache = &mut LimitsCache::default();
                policers.of_port(policers.of_vm(&vm.id), vm, position, network(&port.network_id), cache)
            };
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
