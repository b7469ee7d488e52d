//! Detects loops from returned probes.
//!
//! A probe sent at one port and returned at another shows a connection outside of the switch: an *edge* between two
//! endpoints. On one network it is a loop: of siblings, if both ports are of one VM, else an external one. Between two
//! networks it is none by itself: a firewall forwards between networks. But if two networks are connected twice, frames
//! can circulate. A probe of another host, received at a port of the same network, shows that two hosts are connected by
//! their VMs: a loop, as they are also connected by uplinks, which the caller has checked.
//!
//! To detect that, connected endpoints are combined: a *component* is a bridge in a guest, or a wire between two.
//! Networks and components are the nodes of an undirected graph, and a loop is a cycle in it. Edges are added oldest
//! first; one that connects networks which another component has already connected closes a cycle, and is mitigated.
//! Quarantined edges are added last, so that they stay quarantined while the loop exists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::escalation::PERSIST_INTERVALS;
use super::topology::{Endpoint, Topology};
use crate::time::MonoTime;

/// Two endpoints, ordered.
pub type Edge = (Endpoint, Endpoint);

/// Maximum edges. Pairs of endpoints may be more, in theory.
const MAX_EDGES: usize = 65_536;

fn edge(a: Endpoint, b: Endpoint) -> Edge {
    if a <= b { (a, b) } else { (b, a) }
}

/// State of an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeState {
    /// Endpoint at which the first probe returned.
    pub receiver: Endpoint,
    /// Time of that.
    pub first: MonoTime,
    /// Time of the last one.
    pub last: MonoTime,
    /// The other host quarantines its end.
    pub is_blocked: bool,
}

/// Key of a loop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopKey {
    /// Ports of one VM on one network.
    IntraVm {
        /// The VM.
        vm: String,
        /// The network.
        network: String,
    },
    /// Ports of two VMs on one network, or of one VM and an uplink.
    External {
        /// The network.
        network: String,
        /// VMs, sorted.
        vms: (Option<String>, Option<String>),
    },
    /// Ports of VMs on this host and on another one, on one network.
    CrossHost {
        /// The network.
        network: String,
        /// The VM on this host.
        vm: String,
        /// The other host.
        host: String,
        /// The VM there.
        other_vm: String,
    },
    /// An edge between two networks that are also connected elsewhere.
    InterNetwork {
        /// Ends.
        ends: Edge,
    },
}

impl LoopKey {
    fn of(pair: &Edge) -> LoopKey {
        let (a, b) = pair;
        match (&a.vm, &b.vm) {
            _ if a.network != b.network => LoopKey::InterNetwork { ends: pair.clone() },
            (Some(_), Some(_)) if a.host.is_some() != b.host.is_some() => {
                let (here, there) = if a.host.is_none() { (a, b) } else { (b, a) };
                let text = |name: &Option<String>| name.clone().unwrap_or_default();
                LoopKey::CrossHost {
                    network: a.network.clone(),
                    vm: text(&here.vm),
                    host: text(&there.host),
                    other_vm: text(&there.vm),
                }
            }
            (Some(vm), Some(other)) if vm == other => LoopKey::IntraVm { vm: vm.clone(), network: a.network.clone() },
            _ => {
                let vms = (a.vm.clone().min(b.vm.clone()), a.vm.clone().max(b.vm.clone()));
                LoopKey::External { network: a.network.clone(), vms }
            }
        }
    }

    /// Whether it can be between these endpoints.
    pub fn matches(&self, pair: &Edge) -> bool {
        *self == LoopKey::of(pair)
    }
}

/// An active loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectedLoop {
    /// Key.
    pub key: LoopKey,
    /// Links, with the time of their last probe.
    pub edges: BTreeMap<Edge, MonoTime>,
    /// Those whose end on another host is quarantined there.
    pub blocked: BTreeSet<Edge>,
    /// For an edge between networks: the endpoint at which the first probe returned.
    pub receiver: Option<Endpoint>,
    /// For an edge between networks: the other edges that connect them.
    pub other_edges: Vec<Edge>,
}

/// All recent edges.
#[derive(Debug, Clone, Default)]
pub struct Edges {
    edges: BTreeMap<Edge, EdgeState>,
}

/// Time for which an edge counts after its last probe.
fn life(topology: &Topology, (a, b): &Edge) -> Duration {
    topology.interval(&a.network).max(topology.interval(&b.network)) * PERSIST_INTERVALS
}

impl Edges {
    /// Records a probe sent at `from` and returned at `at`. Returns whether the edge is new.
    pub fn record(&mut self, from: Endpoint, at: Endpoint, now: MonoTime) -> bool {
        self.record_as(from, at, false, now)
    }

    /// The same of a probe of another host. `is_blocked`: that host quarantines `from`.
    pub fn record_as(&mut self, from: Endpoint, at: Endpoint, is_blocked: bool, now: MonoTime) -> bool {
        if from == at {
            return false;
        }
        let receiver = at.clone();
        let key = edge(from, at);
        if let Some(state) = self.edges.get_mut(&key) {
            (state.last, state.is_blocked) = (now, is_blocked);
            return false;
        }
        if self.edges.len() >= MAX_EDGES {
            return false;
        }
        self.edges.insert(key, EdgeState { receiver, first: now, last: now, is_blocked });
        true
    }

    /// Removes expired edges, and those of removed ports.
    pub fn expire(&mut self, topology: &Topology, now: MonoTime) {
        self.edges.retain(|pair, state| {
            topology.has(&pair.0) && topology.has(&pair.1) && now.since(state.last) <= life(topology, pair)
        });
    }

    /// Removes these edges.
    pub fn drop_all<'p>(&mut self, pairs: impl Iterator<Item = &'p Edge>) {
        for pair in pairs {
            self.edges.remove(pair);
        }
    }

    /// Edges between networks.
    pub fn bridgings(&self) -> impl Iterator<Item = (&Edge, &EdgeState)> {
        self.edges.iter().filter(|((a, b), _)| a.network != b.network)
    }

    /// All active loops. `quarantined`: quarantined edges between networks.
    pub fn loops(&self, quarantined: &BTreeSet<Edge>) -> Vec<DetectedLoop> {
        let mut all: BTreeMap<LoopKey, DetectedLoop> = BTreeMap::new();
        for (pair, state) in self.edges.iter().filter(|((a, b), _)| a.network == b.network) {
            let key = LoopKey::of(pair);
            let found = all.entry(key.clone()).or_insert_with(|| DetectedLoop {
                key,
                edges: BTreeMap::new(),
                blocked: BTreeSet::new(),
                receiver: None,
                other_edges: Vec::new(),
            });
            found.edges.insert(pair.clone(), state.last);
            found.blocked.extend(state.is_blocked.then(|| pair.clone()));
        }
        all.into_values().chain(self.cycles(quarantined)).collect()
    }

    /// Edges that close a cycle over several components.
    fn cycles(&self, quarantined: &BTreeSet<Edge>) -> Vec<DetectedLoop> {
        let mut bridgings: Vec<(&Edge, &EdgeState)> = self.bridgings().collect();
        if bridgings.len() < 2 {
            return Vec::new();
        }
        bridgings.sort_by_key(|&(pair, state)| (quarantined.contains(pair), state.first, pair));
        let mut components: DisjointSets<&Endpoint> = DisjointSets::default();
        for (a, b) in self.edges.keys() {
            components.join(a, b);
        }
        // One component connects two networks once, by any number of edges.
        let mut within: DisjointSets<(usize, &str)> = DisjointSets::default();
        let mut joined: DisjointSets<&str> = DisjointSets::default();
        let mut forest: Vec<&Edge> = Vec::new();
        let mut cycles = Vec::new();
        for (pair, state) in bridgings {
            let component = components.find(&pair.0);
            let (a, b) = (pair.0.network.as_str(), pair.1.network.as_str());
            if !within.join((component, a), (component, b)) {
                continue;
            }
            if joined.join(a, b) {
                forest.push(pair);
                continue;
            }
            cycles.push(DetectedLoop {
                key: LoopKey::InterNetwork { ends: pair.clone() },
                edges: BTreeMap::from([(pair.clone(), state.last)]),
                blocked: BTreeSet::new(),
                receiver: Some(state.receiver.clone()),
                other_edges: path(&forest, a, b),
            });
        }
        cycles
    }
}

/// Links of the spanning forest on the path between two networks.
fn path(forest: &[&Edge], from: &str, to: &str) -> Vec<Edge> {
    let mut by: HashMap<&str, Option<&Edge>> = HashMap::from([(from, None)]);
    let mut next = vec![from];
    while let Some(here) = next.pop() {
        for pair in forest {
            let (a, b) = (pair.0.network.as_str(), pair.1.network.as_str());
            let there = match here {
                _ if here == a => b,
                _ if here == b => a,
                _ => continue,
            };
            if !by.contains_key(there) {
                by.insert(there, Some(pair));
                next.push(there);
            }
        }
    }
    let (mut way, mut here) = (Vec::new(), to);
    while let Some(&Some(pair)) = by.get(here) {
        way.push(pair.clone());
        here = if pair.0.network == here { &pair.1.network } else { &pair.0.network };
    }
    way.reverse();
    way
}

/// Disjoint sets.
#[derive(Debug)]
struct DisjointSets<T> {
    places: HashMap<T, usize>,
    parents: Vec<usize>,
}

impl<T> Default for DisjointSets<T> {
    fn default() -> DisjointSets<T> {
        DisjointSets { places: HashMap::new(), parents: Vec::new() }
    }
}

impl<T: std::hash::Hash + Eq + Copy> DisjointSets<T> {
    fn place(&mut self, of: T) -> usize {
        *self.places.entry(of).or_insert_with(|| {
            self.parents.push(self.parents.len());
            self.parents.len() - 1
        })
    }

    /// Set of an element.
    fn find(&mut self, of: T) -> usize {
        let mut place = self.place(of);
        while self.parents[place] != place {
            self.parents[place] = self.parents[self.parents[place]];
            place = self.parents[place];
        }
        place
    }

    /// Joins two sets. Returns whether they were distinct.
    fn join(&mut self, a: T, b: T) -> bool {
        let (a, b) = (self.find(a), self.find(b));
        self.parents[a] = b;
        a != b
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end(vm: &str, network: &str, port: &str) -> Endpoint {
        Endpoint { vm: (!vm.is_empty()).then(|| vm.into()), network: network.into(), port: port.into(), host: None }
    }

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    /// Probes from one endpoint to another, in order.
    fn recorded(probes: &[(&Endpoint, &Endpoint)]) -> Edges {
        let mut edges = Edges::default();
        for (millis, &(from, to)) in probes.iter().enumerate() {
            edges.record(from.clone(), to.clone(), at(millis as u64));
        }
        edges
    }

    fn keys(edges: &Edges) -> Vec<LoopKey> {
        edges.loops(&BTreeSet::new()).into_iter().map(|found| found.key).collect()
    }

    fn inter_network(a: &Endpoint, b: &Endpoint) -> LoopKey {
        LoopKey::InterNetwork { ends: edge(a.clone(), b.clone()) }
    }

    #[test]
    fn on_one_network_a_loop_is_intra_vm_or_external() {
        let (a, b, c) = (end("v", "n", "a"), end("v", "n", "b"), end("v", "n", "c"));
        let edges = recorded(&[(&a, &b), (&b, &a), (&c, &a)]);
        let found = edges.loops(&BTreeSet::new());
        assert_eq!(found.len(), 1, "one loop per VM, with any number of siblings: {found:?}");
        assert_eq!(found[0].key, LoopKey::IntraVm { vm: "v".into(), network: "n".into() });
        assert_eq!(found[0].edges, BTreeMap::from([(edge(a.clone(), b), at(1)), (edge(a.clone(), c), at(2))]));
        let (other, outside) = (end("w", "n", "d"), end("", "n", "up"));
        let around = |vms: (Option<&str>, Option<&str>)| LoopKey::External {
            network: "n".into(),
            vms: (vms.0.map(str::to_owned), vms.1.map(str::to_owned)),
        };
        assert_eq!(keys(&recorded(&[(&other, &a)])), [around((Some("v"), Some("w")))]);
        assert_eq!(keys(&recorded(&[(&a, &outside)])), [around((None, Some("v")))]);
        assert_eq!(keys(&recorded(&[(&a, &a)])), []);
    }

    #[test]
    fn one_vm_that_bridges_networks_is_no_loop_and_two_are() {
        let [a1, a2, a3] = ["1", "2", "3"].map(|n| end("a", n, &format!("a{n}")));
        let [b1, b2, b3] = ["1", "2", "3"].map(|n| end("b", n, &format!("b{n}")));
        // One guest bridge over three networks, seen as three edges.
        assert_eq!(keys(&recorded(&[(&a1, &a2), (&a2, &a3), (&a3, &a1)])), []);
        assert_eq!(keys(&recorded(&[(&a1, &a2), (&b1, &b2)])), [inter_network(&b1, &b2)], "the youngest");
        assert_eq!(keys(&recorded(&[(&b1, &b2), (&a1, &a2)])), [inter_network(&a1, &a2)]);
        assert_eq!(keys(&recorded(&[(&a1, &a2), (&b2, &b3)])), []);
        // Two VMs.
        let [c1, c2] = ["1", "2"].map(|n| end("a", n, &format!("c{n}")));
        assert_eq!(keys(&recorded(&[(&a1, &a2), (&c1, &c2)])), [inter_network(&c1, &c2)]);
        // Around three networks.
        let [c3, c1] = ["3", "1"].map(|n| end("c", n, &format!("c{n}")));
        let edges = recorded(&[(&a1, &a2), (&b2, &b3), (&c3, &c1)]);
        let found = edges.loops(&BTreeSet::new());
        assert_eq!(found[0].key, inter_network(&c3, &c1));
        assert_eq!(found[0].receiver.as_ref(), Some(&c1));
        assert_eq!(found[0].other_edges.len(), 2);
        // A quarantined edge stays the culprit, whatever its age.
        let quarantined = BTreeSet::from([edge(a1.clone(), a2.clone())]);
        assert_eq!(edges.loops(&quarantined)[0].key, inter_network(&a1, &a2));
        // Joined by the external network, and by a VM.
        let up2 = end("", "2", "up");
        assert_eq!(keys(&recorded(&[(&a1, &up2), (&b1, &b2)])), [inter_network(&b1, &b2)]);
        let around = LoopKey::External { network: "2".into(), vms: (None, Some("a".into())) };
        assert_eq!(
            keys(&recorded(&[(&a1, &a2), (&a1, &up2), (&a2, &up2)])),
            [around],
            "one component, which is an external loop"
        );
    }

    #[test]
    fn an_edge_expires_after_three_intervals_and_with_its_endpoints() {
        let (a, b) = (end("a", "1", "p"), end("a", "2", "q"));
        let networks = [("1".to_owned(), Duration::from_secs(1)), ("2".to_owned(), Duration::from_secs(2))];
        let topology = Topology::new(networks.clone(), [(a.clone(), 0), (b.clone(), 1)]);
        let mut edges = recorded(&[(&a, &b)]);
        edges.expire(&topology, at(6000));
        assert_eq!(edges.bridgings().count(), 1);
        assert!(!edges.record(b.clone(), a.clone(), at(5000)));
        edges.expire(&topology, at(11_000));
        assert_eq!(edges.bridgings().count(), 1);
        let mut gone = edges.clone();
        edges.expire(&topology, at(11_001));
        assert_eq!(edges.bridgings().count(), 0);
        gone.expire(&Topology::new(networks, [(a, 0)]), at(5001));
        assert_eq!(gone.bridgings().count(), 0);
    }

    /// Guest bridges with at most one port on each of six networks.
    fn guests() -> impl Strategy<Value = Vec<BTreeSet<u8>>> {
        prop::collection::vec(prop::collection::btree_set(0u8..6, 1..4), 0..6)
    }

    proptest! {
        /// The culprits are a minimal set of edges whose removal leaves the graph of networks and bridges acyclic:
        /// edges − nodes + components.
        #[test]
        fn there_are_as_many_culprits_as_cycles(
            guests in guests(), seed: u64, quarantined in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        ) {
            let end = |guest: usize, network: u8| end(&format!("g{guest}"), &network.to_string(), &format!("g{guest}n{network}"));
            let mut edges = Edges::default();
            let mut pairs = Vec::new();
            for (guest, networks) in guests.iter().enumerate() {
                for &a in networks {
                    for &b in networks.range(a + 1..) {
                        pairs.push((end(guest, a), end(guest, b)));
                    }
                }
            }
            // In any order.
            pairs.sort_by_key(|pair| {
                use std::hash::{DefaultHasher, Hash, Hasher};
                let mut hasher = DefaultHasher::new();
                (seed, pair).hash(&mut hasher);
                hasher.finish()
            });
            for (millis, (a, b)) in pairs.iter().cloned().enumerate() {
                edges.record(a, b, at(millis as u64));
            }
            let rank = |guests: &[BTreeSet<u8>]| {
                let mut parts: Vec<BTreeSet<u8>> = Vec::new();
                for networks in guests {
                    let mut whole = networks.clone();
                    parts.retain(|part| {
                        let apart = part.is_disjoint(&whole);
                        if !apart {
                            whole.extend(part);
                        }
                        apart
                    });
                    parts.push(whole);
                }
                let edges: usize = guests.iter().map(BTreeSet::len).sum();
                let networks: usize = parts.iter().map(BTreeSet::len).sum();
                edges + parts.len() - guests.len() - networks
            };
            let quarantined: BTreeSet<Edge> = quarantined.iter().filter(|_| !pairs.is_empty()).map(|at| at.get(&pairs).clone()).collect();
            let found = edges.loops(&quarantined);
            prop_assert_eq!(found.len(), rank(&guests));
            for found in &found {
                let LoopKey::InterNetwork { ends } = &found.key else { panic!("{found:?}") };
                // The path back connects both networks and does not run through this guest alone.
                let (mut here, mut vms) = (ends.0.network.clone(), BTreeSet::from([ends.0.vm.clone()]));
                for (a, b) in &found.other_edges {
                    here = if a.network == here { b.network.clone() } else { a.network.clone() };
                    vms.insert(a.vm.clone());
                }
                prop_assert_eq!(&here, &ends.1.network);
                prop_assert!(vms.len() > 1);
            }
        }
    }
}
