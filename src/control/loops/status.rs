//! What is shown of loops and storms: JSON of the API, rows of the CLI's tables. Names are a contract;
//! fields may only be added.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What somebody joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoopKind {
    /// A VM joins its own ports on one network.
    IntraVm,
    /// Two VMs, or a VM and what is outside, are joined around the switch on one network.
    External,
    /// A VM joins networks that are joined otherwise as well.
    InterNetwork,
    /// A VM joins two networks. That is no loop, and nothing is done about it.
    Notice,
}

impl LoopKind {
    /// As people read it, and JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            LoopKind::IntraVm => "intra_vm",
            LoopKind::External => "external",
            LoopKind::InterNetwork => "inter_network",
            LoopKind::Notice => "notice",
        }
    }
}

/// A loop that is there, or was lately; or networks that somebody joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopStatus {
    /// What is joined.
    pub kind: LoopKind,
    /// The VM by which it is: of several the one that came last. Empty if there is none.
    pub device_id: String,
    /// All VMs that take part, that one first.
    pub device_ids: Vec<String>,
    /// The network; the first of several.
    pub network_id: String,
    /// All networks that take part.
    pub network_ids: Vec<String>,
    /// The ports that are joined, in the order of the configuration; uplinks behind them.
    pub ports: Vec<String>,
    /// Whether it is there, or at least measures against it are: `false` for one that is over.
    pub active: bool,
    /// What is done: 1 floods among siblings are stopped, 2 all but one of the ports are held, 3 all are. 0: nothing.
    pub level: u8,
    /// The same in words.
    pub measures: String,
    /// The ports that are held for it.
    pub quarantined: Vec<String>,
    /// When it was found: RFC 3339, UTC, as all times here.
    pub since: String,
    /// When a probe went round last.
    pub seen: String,
    /// Until when the measures stay, if it is gone then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// How many times it came back, or stayed beyond its time.
    pub repeats: u32,
    /// Frames that storm limits refused from its ports since it is there: copies that nobody had to bear.
    pub copies_suppressed: u64,
    /// All of this in a sentence.
    pub text: String,
}

/// A storm that is there, or was lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StormStatus {
    /// The VM; empty for an uplink.
    pub device_id: String,
    /// The network; empty for an uplink, which has several.
    pub network_id: String,
    /// The port or uplink. Absent where it is all ports of the VM on the network together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port_id: Option<String>,
    /// Which limit is hit: `broadcast`, `multicast`, `unknown_unicast` or `bpdu` of a port; `vm` or `copies` of all
    /// ports together.
    pub class: String,
    /// Whether it goes on.
    pub active: bool,
    /// When it began: RFC 3339, UTC.
    pub since: String,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// How many frames were refused.
    pub suppressed: u64,
    /// The most that were refused in a second.
    pub highest_rate: u64,
    /// What is done beside dropping them: `drop`, `drop+event` or `disable`.
    pub action: String,
    /// Whether the port is held for it.
    pub quarantined: bool,
    /// Until when it is; absent if it is not, or until it is released by hand.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// All of this in a sentence.
    pub text: String,
}

/// What is counted of probes and of what follows from them, over all of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoopCounts {
    /// Loops found since the switch started.
    pub loops: u64,
    /// Storms that began since then.
    pub storms: u64,
    /// Stations that were frozen since then.
    pub dampenings: u64,
    /// Stations that are frozen.
    pub dampened: u64,
    /// Probes sent.
    pub probes_sent: u64,
    /// Probes that came back elsewhere.
    pub probes_returned: u64,
    /// What came to the address of probes and was none of ours.
    pub probes_forged: u64,
    /// Probes that were too old, or had come before.
    pub probes_stale: u64,
}
