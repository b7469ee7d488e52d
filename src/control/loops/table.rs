//! Table of loops: each is derived from links, has an escalation, and measures that follow from both. Ended loops are
//! remembered for a while.

mod members;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::detection::{DetectedLoop, Edge, Edges, LoopKey};
use super::escalation::{Escalation, Level, MEMORY, PERSIST_INTERVALS, Transition};
use super::topology::{Endpoint, Topology};
use crate::time::MonoTime;

/// Maximum ended loops shown.
const MAX_ENDED: usize = 100;

/// Time for which they are shown.
const SHOWN: Duration = Duration::from_secs(3600);

/// While a probe of a loop returned within this time, its VMs are probed more often.
const IN_QUESTION: Duration = Duration::from_secs(10);

/// A loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// Key.
    pub key: LoopKey,
    /// Escalation.
    pub escalation: Escalation,
    /// Links, with the time of their last probe.
    pub edges: BTreeMap<Edge, MonoTime>,
    /// Those whose end on another host is quarantined there.
    pub blocked: BTreeSet<Edge>,
    /// For a link between networks: the end at which the first probe returned.
    pub receiver: Option<Endpoint>,
    /// For a link between networks: the other links that join them.
    pub other_edges: Vec<Edge>,
    /// Frames of its ports dropped by storm limits since its start, and in the storm in which it started.
    pub dropped: u64,
}

/// Why a loop has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It was gone at the end of its measures.
    Gone,
    /// Released by hand.
    Released,
    /// Its ports were removed.
    Detached,
}

/// An ended loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedLoop {
    /// Its last state.
    pub loop_state: Loop,
    /// End.
    pub at: MonoTime,
    /// Reason.
    pub why: EndReason,
}

/// What is remembered of an ended loop, in case it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopHistory {
    /// Number of returns, the next one included.
    pub repeats: u32,
    /// End.
    pub at: MonoTime,
}

/// Bridged networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgingNotice {
    /// Ends.
    pub edge: Edge,
    /// Start.
    pub since: MonoTime,
    /// Time of the last probe.
    pub seen: MonoTime,
    /// Whether they are still bridged.
    pub is_there: bool,
}

/// Frames of a port dropped by storm limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefusedCount {
    /// Since the last update.
    pub more: u64,
    /// In the current storm, including these.
    pub total: u64,
}

/// Event of a loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopEvent {
    /// Detected.
    Started(LoopKey),
    /// Escalated.
    Escalated(LoopKey, Level),
    /// Extended: it still exists at the end of its measures.
    Extended(LoopKey, Duration),
    /// Its probes no longer return.
    Cleared(LoopKey),
    /// It is over.
    Stopped(Box<EndedLoop>),
    /// Networks are bridged: not a loop by itself.
    NetworksBridged(Edge),
}

/// Measures against all loops.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoopMeasures {
    /// By VM and network: ports whose floods do not reach the others.
    pub split_horizon: BTreeSet<(String, String)>,
    /// Quarantined ports, with their loop.
    pub quarantined: BTreeMap<Endpoint, LoopKey>,
}

/// Key of a notice: VM and networks.
type Bridging = [(Option<String>, String); 2];

/// All loops.
#[derive(Debug, Clone, Default)]
pub struct LoopTable {
    pub(super) edges: Edges,
    pub(super) loops: BTreeMap<LoopKey, Loop>,
    pub(super) history: BTreeMap<LoopKey, LoopHistory>,
    ended: VecDeque<EndedLoop>,
    notices: BTreeMap<Bridging, BridgingNotice>,
}

impl LoopTable {
    /// Records a probe sent at `from` and returned at `at`. Returns whether that is news.
    pub fn record_probe(&mut self, from: Endpoint, at: Endpoint, now: MonoTime) -> bool {
        self.edges.record(from, at, now)
    }

    /// Records a probe of another host, sent at `from`, which that host quarantines if `is_blocked`. Returns whether that is
    /// news.
    pub fn record_host_probe(&mut self, from: Endpoint, at: Endpoint, is_blocked: bool, now: MonoTime) -> bool {
        self.edges.record_as(from, at, is_blocked, now)
    }

    /// Whether a port on this host is in a loop over another host.
    pub fn is_cross_host(&self, port: &Endpoint) -> bool {
        let crosses = |of: &&Loop| matches!(of.key, LoopKey::CrossHost { .. });
        self.loops.values().filter(crosses).any(|of| of.edges.keys().any(|(a, b)| a == port || b == port))
    }

    /// Adds restored loops that are not in this table.
    pub fn add(&mut self, earlier: LoopTable) {
        for (key, of) in earlier.loops {
            self.loops.entry(key).or_insert(of);
        }
        for (key, past) in earlier.history {
            self.history.entry(key).or_insert(past);
        }
    }

    /// Active loops.
    pub fn loops(&self) -> impl Iterator<Item = &Loop> {
        self.loops.values()
    }

    /// Loop with this key.
    pub fn find(&self, key: &LoopKey) -> Option<&Loop> {
        self.loops.get(key)
    }

    /// Ended loops, the latest first.
    pub fn ended(&self) -> impl Iterator<Item = &EndedLoop> {
        self.ended.iter().rev()
    }

    /// Bridged networks, current or recent at `now`.
    pub fn notices(&self, now: MonoTime) -> impl Iterator<Item = &BridgingNotice> {
        self.notices.values().filter(move |notice| notice.is_there || now.since(notice.seen) < SHOWN)
    }

    /// Measures against all loops.
    pub fn measures(&self, topology: &Topology) -> LoopMeasures {
        let mut mitigation = LoopMeasures::default();
        for (key, of) in &self.loops {
            if let LoopKey::IntraVm { vm, network } = key {
                mitigation.split_horizon.insert((vm.clone(), network.clone()));
            }
            mitigation.quarantined.extend(of.quarantined(topology).into_iter().map(|end| (end.clone(), key.clone())));
        }
        mitigation
    }

    /// Whether a loop of this VM waits for probes.
    pub fn is_active(&self, vm: &str, now: MonoTime) -> bool {
        self.loops.values().any(|of| {
            // Also before its measures may end.
            let soon = of.escalation.until.since(now) < IN_QUESTION;
            (soon || now.since(of.escalation.last_seen) < IN_QUESTION) && of.has_vm(vm)
        })
    }

    /// Whether this port is in a loop: then its VM is suspect.
    pub fn is_suspect(&self, vm: &str, network: &str) -> bool {
        self.loops.values().any(|of| {
            of.ends().iter().any(|end| end.host.is_none() && end.vm.as_deref() == Some(vm) && end.network == network)
        })
    }

    /// Updates all loops. `refused`: frames dropped by storm limits, of ports with such drops.
    pub fn update(
        &mut self,
        topology: &Topology,
        refused: &HashMap<Endpoint, RefusedCount>,
        now: MonoTime,
    ) -> Vec<LoopEvent> {
        let mut events = Vec::new();
        self.remove_detached(topology, now, &mut events);
        self.edges.expire(topology, now);
        self.record_bridgings(&mut events);
        let quarantined = self.measures(topology).quarantined;
        let closing = self.loops.keys().filter_map(|key| match key {
            LoopKey::InterNetwork { ends } => Some(ends.clone()),
            _ => None,
        });
        for found in self.edges.loops(&closing.collect()) {
            self.find_again(found, &quarantined, topology, refused, now, &mut events);
        }
        let mut over = Vec::new();
        for (key, of) in &mut self.loops {
            let more: u64 = of.ends().into_iter().filter_map(|end| refused.get(end)).map(|refused| refused.more).sum();
            let interval = of.interval(topology);
            if more > 0 {
                of.dropped = of.dropped.saturating_add(more);
                of.escalation.limit(interval, now);
            }
            match of.escalation.update(interval, now) {
                Some(Transition::Escalated(level)) => events.push(LoopEvent::Escalated(key.clone(), level)),
                Some(Transition::Extended(time)) => {
                    // A port that has left the loop is no longer quarantined.
                    of.edges.retain(|_, seen| now.since(*seen) <= interval * PERSIST_INTERVALS);
                    events.push(LoopEvent::Extended(key.clone(), time));
                }
                Some(Transition::Cleared) => events.push(LoopEvent::Cleared(key.clone())),
                Some(Transition::Ended) => over.push(key.clone()),
                None => {}
            }
        }
        for key in over {
            self.end(&key, EndReason::Gone, now, &mut events);
        }
        self.history.retain(|_, past| now.since(past.at) < MEMORY);
        self.ended.retain(|over| now.since(over.at) < SHOWN);
        events
    }

    /// Ends the measures of all loops of a port, and forgets their returns.
    pub fn release(&mut self, port: &str, now: MonoTime) -> Vec<LoopEvent> {
        let is_meant = |end: &&Endpoint| end.port == port;
        let keys: Vec<LoopKey> =
            self.loops.values().filter(|of| of.ends().iter().any(is_meant)).map(|of| of.key.clone()).collect();
        let mut events = Vec::new();
        for key in keys {
            self.end(&key, EndReason::Released, now, &mut events);
            self.history.remove(&key);
        }
        events
    }

    /// Removes ports that no longer exist from their loops.
    fn remove_detached(&mut self, topology: &Topology, now: MonoTime, events: &mut Vec<LoopEvent>) {
        let mut over = Vec::new();
        for (key, of) in &mut self.loops {
            let is_there = |pair: &Edge| topology.has(&pair.0) && topology.has(&pair.1);
            if of.edges.keys().all(is_there) {
                continue;
            }
            let before = of.clone();
            of.edges.retain(|pair, _| is_there(pair));
            if of.edges.is_empty() {
                of.clone_from(&before);
                over.push(key.clone());
            }
        }
        for key in over {
            self.end(&key, EndReason::Detached, now, events);
        }
        self.notices.retain(|_, notice| topology.has(&notice.edge.0) && topology.has(&notice.edge.1));
    }

    fn end(&mut self, key: &LoopKey, why: EndReason, now: MonoTime, events: &mut Vec<LoopEvent>) {
        let Some(loop_state) = self.loops.remove(key) else { return };
        // Earlier probes no longer count: an existing loop is detected again.
        self.edges.drop_all(loop_state.edges.keys());
        self.history
            .insert(key.clone(), LoopHistory { repeats: loop_state.escalation.repeats.saturating_add(1), at: now });
        let over = EndedLoop { loop_state, at: now, why };
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(over.clone());
        events.push(LoopEvent::Stopped(over.into()));
    }

    /// Bridged networks are reported once, however often that ends and starts.
    fn record_bridgings(&mut self, events: &mut Vec<LoopEvent>) {
        self.notices.values_mut().for_each(|notice| notice.is_there = false);
        for (pair, link) in self.edges.bridgings() {
            let side = |end: &Endpoint| (end.vm.clone(), end.network.clone());
            let mut key = [side(&pair.0), side(&pair.1)];
            key.sort();
            let notice = self.notices.entry(key).or_insert_with(|| {
                events.push(LoopEvent::NetworksBridged(pair.clone()));
                BridgingNotice { edge: pair.clone(), since: link.first, seen: link.last, is_there: true }
            });
            notice.seen = notice.seen.max(link.last);
            if !std::mem::replace(&mut notice.is_there, true) {
                (notice.edge, notice.since) = (pair.clone(), notice.since.min(link.first));
            }
        }
    }

    fn find_again(
        &mut self,
        found: DetectedLoop,
        quarantined: &BTreeMap<Endpoint, LoopKey>,
        topology: &Topology,
        refused: &HashMap<Endpoint, RefusedCount>,
        now: MonoTime,
        events: &mut Vec<LoopEvent>,
    ) {
        let DetectedLoop { key, edges, blocked, receiver, other_edges } = found;
        let Some(of) = self.loops.get_mut(&key) else {
            let level = if matches!(key, LoopKey::IntraVm { .. }) { Level::SplitHorizon } else { Level::AllButOne };
            let repeats = self.history.get(&key).map_or(0, |past| past.repeats);
            let escalation = Escalation::begin(level, repeats, now);
            let mut of = Loop { key: key.clone(), escalation, edges, blocked, receiver, other_edges, dropped: 0 };
            let before = |end| refused.get(end).map_or(0, |refused: &RefusedCount| refused.total - refused.more);
            of.dropped = of.ends().into_iter().map(before).sum();
            self.loops.insert(key.clone(), of);
            events.push(LoopEvent::Started(key));
            return;
        };
        if !other_edges.is_empty() {
            of.other_edges = other_edges;
        }
        of.blocked = blocked;
        for (pair, seen) in edges {
            if of.edges.get(&pair).is_none_or(|before| *before < seen) {
                let is_blocked = quarantined.contains_key(&pair.0) || quarantined.contains_key(&pair.1);
                let open = !is_blocked && !of.blocked.contains(&pair);
                of.escalation.observe(open, of.interval(topology), seen);
                of.edges.insert(pair, seen);
            }
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod host_tests;
