//! Ports of VMs and uplinks, as loop detection sees them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A port of a VM, or an uplink on one of its networks: where probes are sent and return.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// VM; none for an uplink.
    pub vm: Option<String>,
    /// The network.
    pub network: String,
    /// The port or uplink.
    pub port: String,
}

/// The bare name; with its position, see [`Topology`].
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", if self.vm.is_some() { "port" } else { "uplink" }, self.port)
    }
}

/// Attributes of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Position in configuration order; a later one is younger.
    pub order: usize,
    /// Position among the ports of its VM, from 0.
    pub position: usize,
}

/// All endpoints. Rebuilt when the configuration changes.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    endpoints: HashMap<Endpoint, EndpointInfo>,
    /// Probe interval by network.
    intervals: BTreeMap<String, Duration>,
}

impl Topology {
    /// Networks with the probe interval of a port; endpoints in order, with their positions in their VMs.
    pub fn new(
        networks: impl IntoIterator<Item = (String, Duration)>,
        ends: impl IntoIterator<Item = (Endpoint, usize)>,
    ) -> Topology {
        let ends = ends.into_iter().enumerate().map(|(order, (end, position))| (end, EndpointInfo { order, position }));
        Topology { endpoints: ends.collect(), intervals: networks.into_iter().collect() }
    }

    /// Whether this endpoint exists, with the same VM and network.
    pub fn has(&self, end: &Endpoint) -> bool {
        self.endpoints.contains_key(end)
    }

    /// Its attributes.
    pub fn info(&self, end: &Endpoint) -> Option<EndpointInfo> {
        self.endpoints.get(end).copied()
    }

    /// Position in configuration order; last if it does not exist.
    pub fn order(&self, end: &Endpoint) -> usize {
        self.endpoints.get(end).map_or(usize::MAX, |spot| spot.order)
    }

    /// Probe interval of a port on this network.
    pub fn interval(&self, network: &str) -> Duration {
        self.intervals.get(network).copied().unwrap_or(Duration::from_secs(1))
    }

    /// Description of an endpoint, with its position in its VM.
    pub fn describe(&self, end: &Endpoint) -> String {
        match self.info(end) {
            Some(spot) if end.vm.is_some() => format!("{:?} (#{})", end.port, spot.position),
            _ => end.to_string(),
        }
    }
}
