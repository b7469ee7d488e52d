//! What probes that came back mean.
//!
//! A probe that left by one end and came back at another says that somebody joins the two outside of
//! the switch. That is a *link*. On one network it is a loop: of siblings, if both are of one VM, else
//! a way around the switch. Between two networks it is none by itself, a firewall does so. But if two
//! networks are joined twice, by whomever, frames can go round.
//!
//! To find that out, ends that are linked are taken together: such a *junction* is a bridge in a guest, or
//! a wire between two. Networks and junctions are the nodes of a graph without direction, and a loop is
//! a cycle in it. The links are gone through, the oldest first; one that joins networks which are joined
//! already by another junction closes a cycle, and is the culprit. Links that are being held go last: who has
//! been held for a loop is held for it as long as it is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ladder::PATIENCE;
use super::layout::{End, Layout};
use crate::time::Moment;

/// Two ends, in their order.
pub type Pair = (End, End);

/// Links remembered at most. There are as many as pairs of ends at worst, and those are not.
const MOST: usize = 65_536;

fn pair(a: End, b: End) -> Pair {
    if a <= b { (a, b) } else { (b, a) }
}

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where the first probe came back.
    pub receiver: End,
    /// When that was.
    pub first: Moment,
    /// When the last one did.
    pub last: Moment,
}

/// What a loop is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Ports of one VM on one network.
    Siblings {
        /// The VM.
        vm: String,
        /// The network.
        network: String,
    },
    /// Ports of two VMs on one network, or of one and an uplink, which has none.
    Around {
        /// The network.
        network: String,
        /// The VMs, in the order of their names.
        vms: (Option<String>, Option<String>),
    },
    /// A link between two networks that are joined otherwise too.
    Bridged {
        /// Its ends.
        ends: Pair,
    },
}

impl Key {
    fn of(pair: &Pair) -> Key {
        let (a, b) = pair;
        match (&a.vm, &b.vm) {
            _ if a.network != b.network => Key::Bridged { ends: pair.clone() },
            (Some(vm), Some(other)) if vm == other => Key::Siblings { vm: vm.clone(), network: a.network.clone() },
            _ => {
                let vms = (a.vm.clone().min(b.vm.clone()), a.vm.clone().max(b.vm.clone()));
                Key::Around { network: a.network.clone(), vms }
            }
        }
    }

    /// Whether it can be between these.
    pub fn fits(&self, pair: &Pair) -> bool {
        *self == Key::of(pair)
    }
}

/// A loop that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is known by.
    pub key: Key,
    /// Its links and when each was last seen.
    pub links: BTreeMap<Pair, Moment>,
    /// Of a link between networks: the end at which the first probe came back.
    pub receiver: Option<End>,
    /// Of a link between networks: the other links by which they are joined.
    pub others: Vec<Pair>,
}

/// All links that have been seen lately.
#[derive(Debug, Clone, Default)]
pub struct Links {
    links: BTreeMap<Pair, Link>,
}

/// How long a link counts after it has been seen last.
fn life(layout: &Layout, (a, b): &Pair) -> Duration {
    layout.interval(&a.network).max(layout.interval(&b.network)) * PATIENCE
}

impl Links {
    /// A probe that left by `from` has come back at `at`. Whether that is a new link.
    pub fn hear(&mut self, from: End, at: End, now: Moment) -> bool {
        if from == at {
            return false;
        }
        let receiver = at.clone();
        let key = pair(from, at);
        if let Some(link) = self.links.get_mut(&key) {
            link.last = now;
            return false;
        }
        if self.links.len() >= MOST {
            return false;
        }
        self.links.insert(key, Link { receiver, first: now, last: now });
        true
    }

    /// Forgets links that have not been seen for long enough, and those of whom is not there any more.
    pub fn forget(&mut self, layout: &Layout, now: Moment) {
        self.links.retain(|pair, link| {
            layout.has(&pair.0) && layout.has(&pair.1) && now.since(link.last) <= life(layout, pair)
        });
    }

    /// Forgets these.
    pub fn drop_all<'p>(&mut self, pairs: impl Iterator<Item = &'p Pair>) {
        for pair in pairs {
            self.links.remove(pair);
        }
    }

    /// The links between networks.
    pub fn bridgings(&self) -> impl Iterator<Item = (&Pair, &Link)> {
        self.links.iter().filter(|((a, b), _)| a.network != b.network)
    }

    /// All loops that there are. `held`: links between networks that are held for a loop.
    pub fn loops(&self, held: &BTreeSet<Pair>) -> Vec<Found> {
        let mut all: BTreeMap<Key, Found> = BTreeMap::new();
        for (pair, link) in self.links.iter().filter(|((a, b), _)| a.network == b.network) {
            let key = Key::of(pair);
            let found = all.entry(key.clone()).or_insert_with(|| Found {
                key,
                links: BTreeMap::new(),
                receiver: None,
                others: Vec::new(),
            });
            found.links.insert(pair.clone(), link.last);
        }
        all.into_values().chain(self.cycles(held)).collect()
    }

    /// The links that close a cycle over several junctions.
    fn cycles(&self, held: &BTreeSet<Pair>) -> Vec<Found> {
        let mut bridgings: Vec<(&Pair, &Link)> = self.bridgings().collect();
        if bridgings.len() < 2 {
            return Vec::new();
        }
        bridgings.sort_by_key(|&(pair, link)| (held.contains(pair), link.first, pair));
        let mut junctions: Sets<&End> = Sets::default();
        for (a, b) in self.links.keys() {
            junctions.join(a, b);
        }
        // Within one junction two networks are joined once, however many links say so.
        let mut within: Sets<(usize, &str)> = Sets::default();
        let mut joined: Sets<&str> = Sets::default();
        let mut forest: Vec<&Pair> = Vec::new();
        let mut cycles = Vec::new();
        for (pair, link) in bridgings {
            let junction = junctions.find(&pair.0);
            let (a, b) = (pair.0.network.as_str(), pair.1.network.as_str());
            if !within.join((junction, a), (junction, b)) {
                continue;
            }
            if joined.join(a, b) {
                forest.push(pair);
                continue;
            }
            cycles.push(Found {
                key: Key::Bridged { ends: pair.clone() },
                links: BTreeMap::from([(pair.clone(), link.last)]),
                receiver: Some(link.receiver.clone()),
                others: path(&forest, a, b),
            });
        }
        cycles
    }
}

/// The links of a forest by which one gets from one network to another.
fn path(forest: &[&Pair], from: &str, to: &str) -> Vec<Pair> {
    let mut by: HashMap<&str, Option<&Pair>> = HashMap::from([(from, None)]);
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

/// What is joined with what.
#[derive(Debug)]
struct Sets<T> {
    places: HashMap<T, usize>,
    parents: Vec<usize>,
}

impl<T> Default for Sets<T> {
    fn default() -> Sets<T> {
        Sets { places: HashMap::new(), parents: Vec::new() }
    }
}

impl<T: std::hash::Hash + Eq + Copy> Sets<T> {
    fn place(&mut self, of: T) -> usize {
        *self.places.entry(of).or_insert_with(|| {
            self.parents.push(self.parents.len());
            self.parents.len() - 1
        })
    }

    /// The set that something is in.
    fn find(&mut self, of: T) -> usize {
        let mut place = self.place(of);
        while self.parents[place] != place {
            self.parents[place] = self.parents[self.parents[place]];
            place = self.parents[place];
        }
        place
    }

    /// Joins two sets. Whether they were two.
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

    fn end(vm: &str, network: &str, port: &str) -> End {
        End { vm: (!vm.is_empty()).then(|| vm.into()), network: network.into(), port: port.into() }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_secs(1000) + Duration::from_millis(millis)
    }

    /// Probes that went from one end to another, one after the other.
    fn heard(probes: &[(&End, &End)]) -> Links {
        let mut links = Links::default();
        for (millis, &(from, to)) in probes.iter().enumerate() {
            links.hear(from.clone(), to.clone(), at(millis as u64));
        }
        links
    }

    fn keys(links: &Links) -> Vec<Key> {
        links.loops(&BTreeSet::new()).into_iter().map(|found| found.key).collect()
    }

    fn bridged(a: &End, b: &End) -> Key {
        Key::Bridged { ends: pair(a.clone(), b.clone()) }
    }

    #[test]
    fn on_one_network_it_is_a_loop_of_siblings_or_around_the_switch() {
        let (a, b, c) = (end("v", "n", "a"), end("v", "n", "b"), end("v", "n", "c"));
        let links = heard(&[(&a, &b), (&b, &a), (&c, &a)]);
        let found = links.loops(&BTreeSet::new());
        assert_eq!(found.len(), 1, "however many siblings: {found:?}");
        assert_eq!(found[0].key, Key::Siblings { vm: "v".into(), network: "n".into() });
        assert_eq!(found[0].links, BTreeMap::from([(pair(a.clone(), b), at(1)), (pair(a.clone(), c), at(2))]));
        let (other, outside) = (end("w", "n", "d"), end("", "n", "up"));
        let around = |vms: (Option<&str>, Option<&str>)| Key::Around {
            network: "n".into(),
            vms: (vms.0.map(str::to_owned), vms.1.map(str::to_owned)),
        };
        assert_eq!(keys(&heard(&[(&other, &a)])), [around((Some("v"), Some("w")))]);
        assert_eq!(keys(&heard(&[(&a, &outside)])), [around((None, Some("v")))]);
        assert_eq!(keys(&heard(&[(&a, &a)])), []);
    }

    #[test]
    fn a_vm_that_bridges_networks_is_no_loop_and_two_are() {
        let [a1, a2, a3] = ["1", "2", "3"].map(|n| end("a", n, &format!("a{n}")));
        let [b1, b2, b3] = ["1", "2", "3"].map(|n| end("b", n, &format!("b{n}")));
        // One guest bridge over three networks, as three links tell.
        assert_eq!(keys(&heard(&[(&a1, &a2), (&a2, &a3), (&a3, &a1)])), []);
        assert_eq!(keys(&heard(&[(&a1, &a2), (&b1, &b2)])), [bridged(&b1, &b2)], "the youngest");
        assert_eq!(keys(&heard(&[(&b1, &b2), (&a1, &a2)])), [bridged(&a1, &a2)]);
        assert_eq!(keys(&heard(&[(&a1, &a2), (&b2, &b3)])), []);
        // Two of one VM.
        let [c1, c2] = ["1", "2"].map(|n| end("a", n, &format!("c{n}")));
        assert_eq!(keys(&heard(&[(&a1, &a2), (&c1, &c2)])), [bridged(&c1, &c2)]);
        // Around three networks.
        let [c3, c1] = ["3", "1"].map(|n| end("c", n, &format!("c{n}")));
        let links = heard(&[(&a1, &a2), (&b2, &b3), (&c3, &c1)]);
        let found = links.loops(&BTreeSet::new());
        assert_eq!(found[0].key, bridged(&c3, &c1));
        assert_eq!(found[0].receiver.as_ref(), Some(&c1));
        assert_eq!(found[0].others.len(), 2);
        // Who is held stays the one, however old.
        let held = BTreeSet::from([pair(a1.clone(), a2.clone())]);
        assert_eq!(links.loops(&held)[0].key, bridged(&a1, &a2));
        // Joined outside, and by a VM.
        let up2 = end("", "2", "up");
        assert_eq!(keys(&heard(&[(&a1, &up2), (&b1, &b2)])), [bridged(&b1, &b2)]);
        let around = Key::Around { network: "2".into(), vms: (None, Some("a".into())) };
        assert_eq!(keys(&heard(&[(&a1, &a2), (&a1, &up2), (&a2, &up2)])), [around], "one junction, which goes around");
    }

    #[test]
    fn a_link_is_forgotten_after_three_intervals_and_with_its_ends() {
        let (a, b) = (end("a", "1", "p"), end("a", "2", "q"));
        let networks = [("1".to_owned(), Duration::from_secs(1)), ("2".to_owned(), Duration::from_secs(2))];
        let layout = Layout::new(networks.clone(), [(a.clone(), 0), (b.clone(), 1)]);
        let mut links = heard(&[(&a, &b)]);
        links.forget(&layout, at(6000));
        assert_eq!(links.bridgings().count(), 1);
        assert!(!links.hear(b.clone(), a.clone(), at(5000)));
        links.forget(&layout, at(11_000));
        assert_eq!(links.bridgings().count(), 1);
        let mut gone = links.clone();
        links.forget(&layout, at(11_001));
        assert_eq!(links.bridgings().count(), 0);
        gone.forget(&Layout::new(networks, [(a, 0)]), at(5001));
        assert_eq!(gone.bridgings().count(), 0);
    }

    /// Guest bridges, each with a port on some of six networks, at most one on each.
    fn guests() -> impl Strategy<Value = Vec<BTreeSet<u8>>> {
        prop::collection::vec(prop::collection::btree_set(0u8..6, 1..4), 0..6)
    }

    proptest! {
        /// As many links are culprits as have to go for the graph of networks and bridges to be without a
        /// cycle, and without them it is. Counted as everybody counts: edges, less nodes, plus parts.
        #[test]
        fn culprits_are_as_many_as_cycles(
            guests in guests(), seed: u64, held in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        ) {
            let end = |guest: usize, network: u8| end(&format!("g{guest}"), &network.to_string(), &format!("g{guest}n{network}"));
            let mut links = Links::default();
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
                links.hear(a, b, at(millis as u64));
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
            let held: BTreeSet<Pair> = held.iter().filter(|_| !pairs.is_empty()).map(|at| at.get(&pairs).clone()).collect();
            let found = links.loops(&held);
            prop_assert_eq!(found.len(), rank(&guests));
            for found in &found {
                let Key::Bridged { ends } = &found.key else { panic!("{found:?}") };
                // The way back begins at the one network and ends at the other, and none of it is by this guest alone.
                let (mut here, mut vms) = (ends.0.network.clone(), BTreeSet::from([ends.0.vm.clone()]));
                for (a, b) in &found.others {
                    here = if a.network == here { b.network.clone() } else { a.network.clone() };
                    vms.insert(a.vm.clone());
                }
                prop_assert_eq!(&here, &ends.1.network);
                prop_assert!(vms.len() > 1);
            }
        }
    }
}
