//! Allocates ids of ports, networks and VMs in the forwarding tables.
//!
//! A port keeps its id while it exists, like networks and VMs. A freed port index is reused with another generation, so
//! that entries learned at the earlier port are not found at the next.
//!
//! An uplink has an id as a trunk, at which nothing is learned; and each network of its group has one, as a port on
//! that network ([`uplink_groups`](crate::control::compile::uplink_groups)).
//!
//! A network needs no generations: entries on it refer to its ports, all of which are gone when it is. A freed network
//! index is reused last, so that entries which still count against its limits can age.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::control::compile::plan::{Step, plan};
use crate::control::compile::uplink_groups::{UplinkGroupName, uplink_groups};
use crate::control::config::Config;
use crate::switch::{MAX_NETWORKS, MAX_PORTS, NetworkId, PortId, VmId};
use crate::wire::Vid;

/// Owner of uplink ports, which have no siblings.
pub const UPLINK_VM: VmId = VmId(u32::MAX);

/// Allocated and free ids.
#[derive(Debug, Clone, Default)]
pub struct IdAllocator {
    ports: HashMap<String, PortId>,
    /// By uplink.
    trunks: HashMap<String, PortId>,
    /// By uplink group and network; with the VLAN id.
    uplink_vlans: HashMap<(UplinkGroupName, String), (PortId, Option<Vid>)>,
    networks: HashMap<String, NetworkId>,
    vms: HashMap<String, VmId>,
    /// By port index: the last generation allocated.
    generations: Vec<Option<u16>>,
    free: BTreeSet<u16>,
    /// Ordered by how long they are free.
    free_networks: VecDeque<u16>,
    /// Network indices ever used.
    networks_used: u16,
    next_vm: u32,
}

impl IdAllocator {
    /// Ids of an initial configuration, in its order. It is within
    /// [capacity](crate::control::compile::endpoints::check_capacity).
    pub fn first(config: &Config) -> IdAllocator {
        let mut ids = IdAllocator::default();
        ids.update(&plan(&Config::default(), config), config);
        ids
    }

    /// Allocates ids of new objects of `config`, to which `steps` lead, and frees those of removed ones. A port whose
    /// entries are flushed gets a new generation.
    ///
    /// Returns port indices whose generations are used up: their entries must be flushed first.
    pub fn update(&mut self, steps: &[Step], config: &Config) -> Vec<PortId> {
        let mut used_up = Vec::new();
        let (mut freed, mut freed_networks) = (BTreeSet::new(), Vec::new());
        for step in steps {
            match step {
                Step::Close(port) => {
                    // Reused at once only if no other is free.
                    freed.extend(self.ports.remove(port).and_then(index));
                }
                Step::CloseUplink(uplink) => freed.extend(self.trunks.remove(uplink).and_then(index)),
                Step::RemoveNetwork(network) => {
                    freed_networks.extend(self.networks.remove(network).and_then(|id| u16::try_from(id.index()).ok()));
                }
                _ => {}
            }
        }
        let tagged: HashMap<(UplinkGroupName, String), Option<Vid>> = uplink_groups(config)
            .iter()
            .flat_map(|group| group.networks(config).iter().map(|of| (group.name.clone(), of)))
            .map(|(group, of)| ((group, of.network_id.clone()), of.vlan))
            .collect();
        let gone = self.uplink_vlans.extract_if(|after, _| !tagged.contains_key(after));
        freed.extend(gone.filter_map(|(_, (id, _))| index(id)));
        let mut forgotten = HashSet::new();
        for step in steps {
            match step {
                Step::AddNetwork(network) => {
                    let place = self.network_place(&mut freed_networks);
                    self.networks.insert(network.clone(), NetworkId::new(place));
                }
                Step::Open(port) => {
                    let place = self.port_place(&mut freed);
                    let id = self.next_generation(place, &mut used_up);
                    self.ports.insert(port.port_id.clone(), id);
                }
                Step::Change { port, flush: true, .. } => {
                    if let Some(place) = self.ports.get(&port.port_id).copied().and_then(index) {
                        let id = self.next_generation(place, &mut used_up);
                        self.ports.insert(port.port_id.clone(), id);
                    }
                }
                Step::OpenUplink(uplink) => {
                    let place = self.port_place(&mut freed);
                    let id = self.next_generation(place, &mut used_up);
                    self.trunks.insert(uplink.id.clone(), id);
                }
                Step::ChangeUplink { uplink, flush: true, .. } => drop(forgotten.insert(uplink.group_name())),
                _ => {}
            }
        }
        // In a defined order, so that ids are reproducible.
        for group in uplink_groups(config) {
            for of in group.networks(config) {
                let after = (group.name.clone(), of.network_id.clone());
                let place = match self.uplink_vlans.get(&after) {
                    // Another VLAN id has other stations.
                    Some(&(_, vlan)) if vlan == of.vlan && !forgotten.contains(&group.name) => continue,
                    Some(&(id, _)) => index(id),
                    None => Some(self.port_place(&mut freed)),
                };
                let Some(place) = place else { continue };
                let id = self.next_generation(place, &mut used_up);
                self.uplink_vlans.insert(after, (id, of.vlan));
            }
        }
        self.free.append(&mut freed);
        self.free_networks.extend(freed_networks);
        self.update_vms(config);
        used_up
    }

    fn update_vms(&mut self, config: &Config) {
        let vms: HashSet<&str> = config.vms.iter().map(|vm| vm.id.as_str()).collect();
        self.vms.retain(|vm, _| vms.contains(vm.as_str()));
        if self.vms.len() == vms.len() {
            return;
        }
        let mut taken: HashSet<VmId> = self.vms.values().copied().chain([UPLINK_VM]).collect();
        for vm in &config.vms {
            if self.vms.contains_key(&vm.id) {
                continue;
            }
            // Far fewer are allocated than exist.
            let owner = loop {
                let owner = VmId(self.next_vm);
                self.next_vm = self.next_vm.wrapping_add(1);
                if taken.insert(owner) {
                    break owner;
                }
            };
            self.vms.insert(vm.id.clone(), owner);
        }
    }

    /// The lowest free index; one of `last` if there is no other.
    #[allow(clippy::cast_possible_truncation)] // at most 4096
    fn port_place(&mut self, last: &mut BTreeSet<u16>) -> u16 {
        if let Some(place) = self.free.pop_first() {
            return place;
        }
        let place = self.generations.len();
        if place == MAX_PORTS
            && let Some(place) = last.pop_first()
        {
            return place;
        }
        self.generations.push(None);
        place as u16
    }

    fn next_generation(&mut self, place: u16, used_up: &mut Vec<PortId>) -> PortId {
        let generation = match self.generations[usize::from(place)] {
            None => 0,
            Some(u16::MAX) => {
                used_up.push(PortId::new(place, 0));
                0
            }
            Some(last) => last + 1,
        };
        self.generations[usize::from(place)] = Some(generation);
        PortId::new(place, generation)
    }

    /// An unused index, else the one free for longest.
    fn network_place(&mut self, last: &mut Vec<u16>) -> u16 {
        if usize::from(self.networks_used) < MAX_NETWORKS {
            self.networks_used += 1;
            return self.networks_used - 1;
        }
        let place = self.free_networks.pop_front().or_else(|| last.pop());
        place.unwrap_or_default() // a configuration that fits has found one
    }

    /// Id of a port.
    pub fn port(&self, id: &str) -> Option<PortId> {
        self.ports.get(id).copied()
    }

    /// Id of an uplink as a trunk.
    pub fn trunk(&self, uplink: &str) -> Option<PortId> {
        self.trunks.get(uplink).copied()
    }

    /// Id of an uplink group's port on a network.
    pub fn uplink_vlan(&self, group: &UplinkGroupName, network: &str) -> Option<PortId> {
        self.uplink_vlans.get(&(group.clone(), network.to_owned())).map(|&(id, _)| id)
    }

    /// Id of a network.
    pub fn network(&self, id: &str) -> Option<NetworkId> {
        self.networks.get(id).copied()
    }

    /// Id of a VM.
    pub fn vm(&self, vm: &str) -> Option<VmId> {
        self.vms.get(vm).copied()
    }
}

/// Index of a port.
fn index(id: PortId) -> Option<u16> {
    u16::try_from(id.index()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::endpoints;
    use crate::control::config::{Device, Network, Port, Vm, testgen};
    use proptest::prelude::*;

    fn distinct<T: Eq + std::hash::Hash>(all: impl Iterator<Item = T>) -> bool {
        let mut seen = HashSet::new();
        all.into_iter().all(|one| seen.insert(one))
    }

    fn check(ids: &IdAllocator, config: &Config) {
        let mut ports: Vec<_> = config.ports().map(|(_, port)| ids.port(port.id()).unwrap()).collect();
        assert_eq!(ids.ports.len(), ports.len());
        ports.extend(config.uplinks.iter().map(|uplink| ids.trunk(&uplink.id).unwrap()));
        assert_eq!(ids.trunks.len(), config.uplinks.len());
        let tagged = || {
            uplink_groups(config).into_iter().flat_map(|group| {
                group.networks(config).iter().map(move |of| ids.uplink_vlan(&group.name, &of.network_id).unwrap())
            })
        };
        assert_eq!(ids.uplink_vlans.len(), tagged().count());
        ports.extend(tagged());
        assert!(distinct(ports.iter().map(|id| id.index())));
        assert!(distinct(config.networks.iter().map(|network| ids.network(&network.id).unwrap())));
        assert!(distinct(config.vms.iter().map(|vm| ids.vm(&vm.id).unwrap())));
        assert_eq!(ids.networks.len(), config.networks.len());
        assert_eq!(ids.vms.len(), config.vms.len());
        assert!(ids.free.iter().all(|&free| ports.iter().all(|id| id.index() != usize::from(free))));
        assert_eq!(ids.free.len() + ports.len(), ids.generations.len(), "no index is lost");
    }

    proptest! {
        #[test]
        fn an_unchanged_port_keeps_its_id((old, new) in testgen::two()) {
            let before = IdAllocator::first(&old);
            check(&before, &old);
            let plan = plan(&old, &new);
            let mut after = before.clone();
            prop_assert_eq!(after.update(&plan, &new), []);
            check(&after, &new);
            for network in new.networks.iter().filter(|network| before.network(&network.id).is_some()) {
                prop_assert_eq!(before.network(&network.id), after.network(&network.id));
            }
            for vm in new.vms.iter().filter(|vm| before.vm(&vm.id).is_some()) {
                prop_assert_eq!(before.vm(&vm.id), after.vm(&vm.id));
            }
            for (vm, port) in new.ports() {
                let Some((vm_before, was)) = old.ports().find(|(_, was)| was.id() == port.id()) else { continue };
                let (id_before, id) = (before.port(port.id()).unwrap(), after.port(port.id()).unwrap());
                if was.subport().is_some() != port.subport().is_some() {
                    continue;
                }
                prop_assert_eq!(id_before.index(), id.index());
                let moved = vm_before.id != vm.id || was.network_id != port.network_id;
                if moved || was.admin_state_up && !port.admin_state_up {
                    prop_assert_ne!(id_before, id);
                }
                // A property of a foreign device cannot be changed without opening it again.
                let is_alone = port.device().is_some_and(|device| old.networks == new.networks || matches!(device, Device::Tap(_)));
                if was == port && !moved && is_alone {
                    prop_assert_eq!(id_before, id);
                }
            }
            for uplink in &new.uplinks {
                let Some(was) = old.uplinks.iter().find(|was| was.id == uplink.id) else { continue };
                prop_assert_eq!(before.trunk(&was.id), after.trunk(&uplink.id));
                if was.group_name() != uplink.group_name() {
                    continue;
                }
                for of in &uplink.networks {
                    let Some(vlan) = was.networks.iter().find(|was| was.network_id == of.network_id) else { continue };
                    let [id_before, id] = [&before, &after].map(|ids| ids.uplink_vlan(&uplink.group_name(), &of.network_id));
                    let same = id_before == id;
                    prop_assert_eq!(id_before.unwrap().index(), id.unwrap().index());
                    prop_assert!(!same || vlan.vlan == of.vlan);
                    // While an uplink of the group is unchanged, its stations stay.
                    prop_assert!(same || was != uplink || old.networks != new.networks);
                }
            }
        }

        /// No station learned before is behind a port now, unless the port has existed throughout.
        #[test]
        fn no_id_is_reused(steps in proptest::collection::vec(testgen::two(), 1..5)) {
            let mut ids = IdAllocator::default();
            let mut now = Config::default();
            let mut used = HashSet::new();
            for new in steps.into_iter().flat_map(|(old, new)| [old, new]) {
                let all = |ids: &IdAllocator| -> HashSet<PortId> {
                    let tagged = ids.uplink_vlans.values().map(|&(id, _)| id);
                    ids.ports.values().chain(ids.trunks.values()).copied().chain(tagged).collect()
                };
                let before = all(&ids);
                ids.update(&plan(&now, &new), &new);
                check(&ids, &new);
                for id in all(&ids) {
                    prop_assert!(used.insert(id) || before.contains(&id));
                }
                now = new;
            }
        }
    }

    fn one_port(id: &str) -> Config {
        let port = serde_json::json!({"networks": [{"id": "n"}], "vms": [{"id": "v", "ports": [{
            "port_id": id, "network_id": "n", "mac_address": "02:00:00:00:00:01", "device": {"kind": "tap"}}]}]});
        crate::control::config::parse_json(&port.to_string(), "x").unwrap()
    }

    #[test]
    fn an_index_without_further_generations_is_reported() {
        let (a, none) = (one_port("a"), Config { networks: vec![Network::new("n")], ..Config::default() });
        let mut ids = IdAllocator::first(&none);
        for round in 0..=65_536u32 {
            let used_up = ids.update(&plan(&none, &a), &a);
            assert_eq!(used_up, if round == 65_536 { vec![PortId::new(0, 0)] } else { vec![] });
            ids.update(&plan(&a, &none), &none);
        }
    }

    #[test]
    fn a_full_switch_can_be_replaced_at_once() {
        let full = |prefix: &str| {
            let ports: Vec<Port> = (0..MAX_PORTS)
                .map(|number| Port { port_id: format!("{prefix}{number}"), ..one_port("a").vms[0].ports[0].clone() })
                .collect();
            let networks = (0..MAX_NETWORKS).map(|number| Network::new(format!("{prefix}{number}")));
            Config {
                networks: networks.collect(),
                vms: vec![Vm { id: "v".into(), ports, ..Vm::default() }.into()],
                ..Config::default()
            }
        };
        let (a, b) = (full("a"), full("b"));
        endpoints::check_capacity(&a).unwrap();
        let mut ids = IdAllocator::first(&a);
        ids.update(&plan(&a, &b), &b);
        check(&ids, &b);
    }
}
