//! The loops that there are: each is found from links, stands on its ladder, and has measures that
//! follow from both. Those that are over are remembered for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::detection::{DetectedLoop, Edge, Edges, LoopKey};
use super::escalation::{Escalation, Level, MEMORY, PERSIST_INTERVALS, Transition};
use super::topology::{Endpoint, Topology};
use crate::time::MonoTime;

/// Loops that are over and still shown, at most.
const MAX_ENDED: usize = 100;

/// For how long they are.
const SHOWN: Duration = Duration::from_secs(3600);

/// As long as a loop was seen so lately, its VMs are probed more often.
const IN_QUESTION: Duration = Duration::from_secs(10);

/// A loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// What it is known by.
    pub key: LoopKey,
    /// What is done about it.
    pub escalation: Escalation,
    /// Its links, with when each was last seen.
    pub edges: BTreeMap<Edge, MonoTime>,
    /// Of a link between networks: the end at which the first probe came back.
    pub receiver: Option<Endpoint>,
    /// Of a link between networks: the other links by which they are joined.
    pub other_edges: Vec<Edge>,
    /// How many frames storm limits have refused from its ports since it is there, and in the storm as
    /// which it began.
    pub suppressed: u64,
}

/// Why a loop is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It was not there any more at the end of its time.
    Gone,
    /// Its measures were lifted by hand.
    Released,
    /// Its ports are not there any more.
    Detached,
}

/// A loop that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedLoop {
    /// How it was in the end.
    pub loop_state: Loop,
    /// When it was over.
    pub at: MonoTime,
    /// Why.
    pub why: EndReason,
}

/// What is remembered of a loop that is over, for the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopHistory {
    /// How many times it will have come back then.
    pub repeats: u32,
    /// When it was over.
    pub at: MonoTime,
}

/// Networks that somebody joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgingNotice {
    /// By these ends.
    pub edge: Edge,
    /// Since when.
    pub since: MonoTime,
    /// When that was last seen.
    pub seen: MonoTime,
    /// Whether they still do.
    pub is_there: bool,
}

/// What storm limits have refused from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefusedCount {
    /// Frames since the last look.
    pub more: u64,
    /// Frames in the present storm, those included.
    pub total: u64,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopEvent {
    /// A loop has been found.
    Started(LoopKey),
    /// More is done about it.
    Escalated(LoopKey, Level),
    /// It is still there at the end of its time, and has so much more.
    Extended(LoopKey, Duration),
    /// Its probes do not return any more.
    Cleared(LoopKey),
    /// It is over.
    Stopped(Box<EndedLoop>),
    /// Networks are joined: no loop by itself.
    NetworksBridged(Edge),
}

/// What is to be done about all loops together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoopMeasures {
    /// VM and network: what one of these ports floods does not reach the others.
    pub split_horizon: BTreeSet<(String, String)>,
    /// The ports that are held, and for which loop.
    pub quarantined: BTreeMap<Endpoint, LoopKey>,
}

/// Who joins which networks: what a notice is told of once.
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

impl Loop {
    /// Its ends.
    pub fn ends(&self) -> BTreeSet<&Endpoint> {
        self.edges.keys().flat_map(|(a, b)| [a, b]).collect()
    }

    /// Whether a port of this VM is in it.
    pub fn has_vm(&self, vm: &str) -> bool {
        self.ends().iter().any(|end| end.vm.as_deref() == Some(vm))
    }

    /// Its networks.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.ends().into_iter().map(|end| end.network.as_str()).collect()
    }

    /// How often it is probed, at least.
    pub fn interval(&self, topology: &Topology) -> Duration {
        self.networks().into_iter().map(|network| topology.interval(network)).max().unwrap_or(Duration::from_secs(1))
    }

    /// The ends that it holds. Uplinks are never held.
    pub fn quarantined(&self, topology: &Topology) -> BTreeSet<&Endpoint> {
        let mut ends: Vec<&Endpoint> = self.ends().into_iter().filter(|end| end.vm.is_some()).collect();
        ends.sort_by_key(|end| topology.order(end));
        match (self.escalation.level, &self.key) {
            (Level::SplitHorizon, _) => BTreeSet::new(),
            (Level::All, _) => ends.into_iter().collect(),
            (Level::AllButOne, LoopKey::IntraVm { .. }) => ends.into_iter().skip(1).collect(),
            // The VM that came later is the one that stands later.
            (Level::AllButOne, LoopKey::External { .. }) => {
                let first = |vm: &Option<String>| ends.iter().position(|end| end.vm == *vm);
                let younger = ends.iter().map(|end| &end.vm).max_by_key(|vm| first(vm)).cloned().flatten();
                ends.into_iter().filter(|end| end.vm == younger).collect()
            }
            (Level::AllButOne, LoopKey::InterNetwork { .. }) => {
                let receiver = self.receiver.as_ref().filter(|receiver| receiver.vm.is_some());
                receiver.or(ends.first().copied()).into_iter().collect()
            }
        }
    }
}

impl LoopTable {
    /// A probe that left by `from` has come back at `at`. Whether nothing was known of that.
    pub fn record_probe(&mut self, from: Endpoint, at: Endpoint, now: MonoTime) -> bool {
        self.edges.record(from, at, now)
    }

    /// Adds the loops of an earlier book that this one does not have.
    pub fn add(&mut self, earlier: LoopTable) {
        for (key, of) in earlier.loops {
            self.loops.entry(key).or_insert(of);
        }
        for (key, past) in earlier.history {
            self.history.entry(key).or_insert(past);
        }
    }

    /// The loops that there are.
    pub fn loops(&self) -> impl Iterator<Item = &Loop> {
        self.loops.values()
    }

    /// The loop of this name.
    pub fn find(&self, key: &LoopKey) -> Option<&Loop> {
        self.loops.get(key)
    }

    /// Those that are over, the latest first.
    pub fn ended(&self) -> impl Iterator<Item = &EndedLoop> {
        self.ended.iter().rev()
    }

    /// Who joins networks, or did lately: at `now`.
    pub fn notices(&self, now: MonoTime) -> impl Iterator<Item = &BridgingNotice> {
        self.notices.values().filter(move |notice| notice.is_there || now.since(notice.seen) < SHOWN)
    }

    /// What is to be done about all of them.
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

    /// Whether there is a loop in question of this VM, and its probes are waited for.
    pub fn is_active(&self, vm: &str, now: MonoTime) -> bool {
        self.loops.values().any(|of| {
            // Also before it may be let loose.
            let soon = of.escalation.until.since(now) < IN_QUESTION;
            (soon || now.since(of.escalation.last_seen) < IN_QUESTION) && of.has_vm(vm)
        })
    }

    /// Whether this port takes part in a loop: its VM is suspected of what is wrong there.
    pub fn is_suspect(&self, vm: &str, network: &str) -> bool {
        self.loops
            .values()
            .any(|of| of.ends().iter().any(|end| end.vm.as_deref() == Some(vm) && end.network == network))
    }

    /// Looks at what has been heard. `refused`: what storm limits have refused of those ports of which they
    /// refuse something.
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
                of.suppressed = of.suppressed.saturating_add(more);
                of.escalation.limit(interval, now);
            }
            match of.escalation.update(interval, now) {
                Some(Transition::Escalated(level)) => events.push(LoopEvent::Escalated(key.clone(), level)),
                Some(Transition::Extended(time)) => {
                    // Whoever has left it meanwhile is held no longer.
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

    /// Lifts the measures of all loops that a port is in, and forgets how often they came back.
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

    /// Those who are not there any more leave their loops.
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
        // What was heard of it is of the past: if it is still there, it is heard again.
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

    /// Who joins networks is told of once, however often that comes and goes.
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
        let DetectedLoop { key, edges, receiver, other_edges } = found;
        let Some(of) = self.loops.get_mut(&key) else {
            let level = if matches!(key, LoopKey::IntraVm { .. }) { Level::SplitHorizon } else { Level::AllButOne };
            let repeats = self.history.get(&key).map_or(0, |past| past.repeats);
            let escalation = Escalation::begin(level, repeats, now);
            let mut of = Loop { key: key.clone(), escalation, edges, receiver, other_edges, suppressed: 0 };
            let before = |end| refused.get(end).map_or(0, |refused: &RefusedCount| refused.total - refused.more);
            of.suppressed = of.ends().into_iter().map(before).sum();
            self.loops.insert(key.clone(), of);
            events.push(LoopEvent::Started(key));
            return;
        };
        if !other_edges.is_empty() {
            of.other_edges = other_edges;
        }
        for (pair, seen) in edges {
            if of.edges.get(&pair).is_none_or(|before| *before < seen) {
                let open = !quarantined.contains_key(&pair.0) && !quarantined.contains_key(&pair.1);
                of.escalation.observe(open, of.interval(topology), seen);
                of.edges.insert(pair, seen);
            }
        }
    }
}

#[cfg(test)]
mod tests;
