//! Which ports and networks take part in a loop, and which of the ports are quarantined.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::detection::LoopKey;
use super::super::escalation::Level;
use super::super::topology::{Endpoint, Topology};
use super::Loop;

impl Loop {
    /// Ends.
    pub fn ends(&self) -> BTreeSet<&Endpoint> {
        self.edges.keys().flat_map(|(a, b)| [a, b]).collect()
    }

    /// Whether a port of this VM on this host is in it.
    pub fn has_vm(&self, vm: &str) -> bool {
        self.ends().iter().any(|end| end.host.is_none() && end.vm.as_deref() == Some(vm))
    }

    /// Networks.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.ends().into_iter().map(|end| end.network.as_str()).collect()
    }

    /// Minimum probe interval of its networks.
    pub fn interval(&self, topology: &Topology) -> Duration {
        self.networks().into_iter().map(|network| topology.interval(network)).max().unwrap_or(Duration::from_secs(1))
    }

    /// Ends that this host quarantines; never uplinks.
    pub fn quarantined(&self, topology: &Topology) -> BTreeSet<&Endpoint> {
        let mut ends: Vec<&Endpoint> = self.ends().into_iter().filter(|end| end.is_local_port()).collect();
        ends.sort_by_key(|end| topology.order(end));
        match (self.escalation.level, &self.key) {
            (Level::SplitHorizon, _) => BTreeSet::new(),
            (Level::All, _) => ends.into_iter().collect(),
            (Level::AllButOne, LoopKey::IntraVm { .. }) => ends.into_iter().skip(1).collect(),
            // The VM attached later comes later.
            (Level::AllButOne, LoopKey::External { .. }) => {
                let first = |vm: &Option<String>| ends.iter().position(|end| end.vm == *vm);
                let younger = ends.iter().map(|end| &end.vm).max_by_key(|vm| first(vm)).cloned().flatten();
                ends.into_iter().filter(|end| end.vm == younger).collect()
            }
            // Of each link, one end: by this host, or by the other one.
            (Level::AllButOne, LoopKey::CrossHost { .. }) => {
                let sides = self.edges.keys().map(|(a, b)| if a.host.is_none() { (a, b) } else { (b, a) });
                sides.filter(|(here, there)| topology.yields(here, there)).map(|(here, _)| here).collect()
            }
            (Level::AllButOne, LoopKey::InterNetwork { .. }) => {
                let receiver = self.receiver.as_ref().filter(|receiver| receiver.vm.is_some());
                receiver.or(ends.first().copied()).into_iter().collect()
            }
        }
    }
}
