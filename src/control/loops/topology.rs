//! Ports of VMs and uplinks, as loop detection sees them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::{MAX_HOST_NAME, MAX_PORT_NAME, ProbeName};

/// A port of a VM, or an uplink on one of its networks: where probes are sent and return. Also a port of a VM on another
/// host, as that host's probes name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// VM; none for an uplink.
    pub vm: Option<String>,
    /// The network.
    pub network: String,
    /// The port or uplink.
    pub port: String,
    /// The other host, if it is not on this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
}

impl Endpoint {
    /// Whether it is a port of a VM on this host.
    pub fn is_local_port(&self) -> bool {
        self.host.is_none() && self.vm.is_some()
    }
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
    endpoints: Vec<(Arc<Endpoint>, EndpointInfo)>,
    /// The same by endpoint, made when it is first needed: most configurations end without a loop.
    by_endpoint: OnceLock<HashMap<Arc<Endpoint>, EndpointInfo>>,
    /// Probe interval by network.
    intervals: BTreeMap<String, Duration>,
    /// Name of this host, as its probes have it.
    host: String,
}

impl Topology {
    /// Networks with the probe interval of a port; endpoints in order, with their positions in their VMs.
    pub fn new<E: Into<Arc<Endpoint>>>(
        networks: impl IntoIterator<Item = (String, Duration)>,
        ends: impl IntoIterator<Item = (E, usize)>,
    ) -> Topology {
        let info = |(order, (end, position)): (usize, (E, usize))| (end.into(), EndpointInfo { order, position });
        let ends = ends.into_iter().enumerate().map(info);
        let (endpoints, intervals) = (ends.collect(), networks.into_iter().collect());
        Topology { endpoints, intervals, ..Topology::default() }
    }

    /// The same, of a host with this name.
    pub fn on_host(self, host: &str) -> Topology {
        Topology { host: ProbeName::<MAX_HOST_NAME>::new(host).as_str().to_owned(), ..self }
    }

    fn by_endpoint(&self) -> &HashMap<Arc<Endpoint>, EndpointInfo> {
        self.by_endpoint.get_or_init(|| self.endpoints.iter().cloned().collect())
    }

    /// Whether this endpoint exists, with the same VM and network. Those of other hosts do as long as probes say so.
    pub fn has(&self, end: &Endpoint) -> bool {
        end.host.is_some() || self.by_endpoint().contains_key(end)
    }

    /// Of a port and one on another host that are connected: whether this one is to be quarantined. Both hosts compare
    /// the same names, so that it is one of the two.
    pub fn yields(&self, port: &Endpoint, other: &Endpoint) -> bool {
        let named = ProbeName::<MAX_PORT_NAME>::new(&port.port);
        (named.as_str(), Some(self.host.as_str())) >= (other.port.as_str(), other.host.as_deref())
    }

    /// Its attributes.
    pub fn info(&self, end: &Endpoint) -> Option<EndpointInfo> {
        self.by_endpoint().get(end).copied()
    }

    /// Position in configuration order; last if it does not exist.
    pub fn order(&self, end: &Endpoint) -> usize {
        self.info(end).map_or(usize::MAX, |spot| spot.order)
    }

    /// Probe interval of a port on this network.
    pub fn interval(&self, network: &str) -> Duration {
        self.intervals.get(network).copied().unwrap_or(Duration::from_secs(1))
    }

    /// Description of an endpoint, with its position in its VM.
    pub fn describe(&self, end: &Endpoint) -> String {
        match self.info(end) {
            _ if end.host.is_some() => format!("{:?}", end.port),
            Some(spot) if end.vm.is_some() => format!("{:?} (#{})", end.port, spot.position),
            _ => end.to_string(),
        }
    }
}
