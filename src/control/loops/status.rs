//! Types of status responses of loops and storms, also rows of the CLI's tables. Field names are a contract: fields may
//! only be added.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kind of a loop or bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoopKind {
    /// A VM connects its own ports on one network.
    IntraVm,
    /// Two VMs, or a VM and an uplink, are connected outside of the switch on one network.
    External,
    /// Ports of VMs on this host and on another one are connected on one network, which uplinks connect as well.
    CrossHost,
    /// A VM bridges networks that are also joined elsewhere.
    InterNetwork,
    /// A VM bridges two networks: not a loop, no measures.
    Notice,
}

impl LoopKind {
    /// Name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            LoopKind::IntraVm => "intra_vm",
            LoopKind::External => "external",
            LoopKind::CrossHost => "cross_host",
            LoopKind::InterNetwork => "inter_network",
            LoopKind::Notice => "notice",
        }
    }
}

/// An active or recent loop, or bridged networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopStatus {
    /// Kind.
    pub kind: LoopKind,
    /// The VM that causes it: of several the one attached last. Empty if none.
    pub device_id: String,
    /// All VMs involved, that one first.
    pub device_ids: Vec<String>,
    /// Network; the first of several.
    pub network_id: String,
    /// All networks involved.
    pub network_ids: Vec<String>,
    /// Ports in configuration order; then uplinks, and ports on other hosts.
    pub ports: Vec<String>,
    /// Other hosts involved, by the names in their probes.
    #[serde(default)]
    #[schema(required = true)]
    pub hosts: Vec<String>,
    /// Whether it, or a measure against it, is active.
    pub active: bool,
    /// Level: 1 floods among siblings are stopped, 2 all but one of the ports are quarantined, 3 all are. 0: none.
    pub level: u8,
    /// What is done against it.
    pub measures: String,
    /// Quarantined ports.
    pub quarantined: Vec<String>,
    /// Time of detection: RFC 3339, UTC, as all times here.
    pub since: String,
    /// Time of the last returned probe.
    pub seen: String,
    /// End of the measures, if it is gone then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// End.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// Number of times it has returned or persisted.
    pub repeats: u32,
    /// Frames of its ports dropped by storm limits since its start.
    pub dropped_frames: u64,
    /// Description.
    pub text: String,
}

/// An active or recent storm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StormStatus {
    /// VM; empty for an uplink.
    pub device_id: String,
    /// Network; empty for an uplink, which may have several.
    pub network_id: String,
    /// Port or uplink. Absent if all ports of the VM on the network are meant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port_id: Option<String>,
    /// Exceeded limit: `broadcast`, `multicast`, `unknown_unicast` or `bpdu` of a port; `vm` or `copies` of all ports
    /// together.
    pub class: String,
    /// Whether it is active.
    pub active: bool,
    /// Start: RFC 3339, UTC.
    pub since: String,
    /// End.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// Frames dropped.
    pub dropped_frames: u64,
    /// Maximum drops per second.
    pub highest_rate: u64,
    /// Action beside dropping: `drop`, `drop+event` or `disable`.
    pub action: String,
    /// Whether the port is quarantined for it.
    pub quarantined: bool,
    /// End of the quarantine; absent without, or until released by hand.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// Description.
    pub text: String,
}

/// Counters of loops, storms, dampened stations and probes, of the whole switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoopCounts {
    /// Loops detected since the start.
    pub loops: u64,
    /// Storms since the start.
    pub storms: u64,
    /// Stations dampened since the start.
    pub dampenings: u64,
    /// Stations dampened now.
    pub dampened: u64,
    /// Probes sent.
    pub probes_sent: u64,
    /// Probes returned at another port.
    pub probes_returned: u64,
    /// Frames to the probe address that are no probes of this switch.
    pub probes_forged: u64,
    /// Probes too old, or received before.
    pub probes_stale: u64,
}
