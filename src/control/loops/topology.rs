//! Who is there: the ports of VMs and of uplinks, as far as loops are about them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where a probe can go out and come back: a port of a VM, or an uplink on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The VM; none of an uplink.
    pub vm: Option<String>,
    /// The network.
    pub network: String,
    /// The port or uplink.
    pub port: String,
}

/// `port "p1" (#0 of VM …)` is told by whoever knows the positions; this is the bare name.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", if self.vm.is_some() { "port" } else { "uplink" }, self.port)
    }
}

/// What is known of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Its place in the order of the configuration, in which later means younger.
    pub order: usize,
    /// Its place among the ports of its VM, from 0.
    pub position: usize,
}

/// Everybody who is there. It is made anew when the configuration changes.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    endpoints: HashMap<Endpoint, EndpointInfo>,
    /// By network: how often it is probed.
    intervals: BTreeMap<String, Duration>,
}

impl Topology {
    /// These networks, with the time between two probes of a port; and these ends, in their order, with
    /// the place of each among the ports of its VM.
    pub fn new(
        networks: impl IntoIterator<Item = (String, Duration)>,
        ends: impl IntoIterator<Item = (Endpoint, usize)>,
    ) -> Topology {
        let ends = ends.into_iter().enumerate().map(|(order, (end, position))| (end, EndpointInfo { order, position }));
        Topology { endpoints: ends.collect(), intervals: networks.into_iter().collect() }
    }

    /// Whether this end is still there, of the same VM and on the same network.
    pub fn has(&self, end: &Endpoint) -> bool {
        self.endpoints.contains_key(end)
    }

    /// What is known of it.
    pub fn info(&self, end: &Endpoint) -> Option<EndpointInfo> {
        self.endpoints.get(end).copied()
    }

    /// Its place in the order of the configuration; whoever is not there is last.
    pub fn order(&self, end: &Endpoint) -> usize {
        self.endpoints.get(end).map_or(usize::MAX, |spot| spot.order)
    }

    /// The time between two probes of a port on this network.
    pub fn interval(&self, network: &str) -> Duration {
        self.intervals.get(network).copied().unwrap_or(Duration::from_secs(1))
    }

    /// An end as people read it, with its place in its VM.
    pub fn describe(&self, end: &Endpoint) -> String {
        match self.info(end) {
            Some(spot) if end.vm.is_some() => format!("{:?} (#{})", end.port, spot.position),
            _ => end.to_string(),
        }
    }
}
