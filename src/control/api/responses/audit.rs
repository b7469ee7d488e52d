//! Types of responses about drops, and about the audit of the counters.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Direction of a frame, seen from the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the guest.
    In,
    /// To the guest.
    Out,
}

/// A drop counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropView {
    /// Port or uplink.
    pub port_id: String,
    /// Uplink, if it is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uplink_id: Option<String>,
    /// VM; empty for an uplink.
    pub device_id: String,
    /// Network; empty for an uplink, which may have several.
    pub network_id: String,
    /// Direction.
    pub direction: Direction,
    /// Drop reason.
    pub reason: String,
    /// Description of the reason.
    pub description: String,
    /// Number of frames.
    pub frames: u64,
}

/// Counter audit: whether all received and transmitted frames are accounted for. Each worker reads its counters between
/// two polls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Result: all counters balance, and no frame is missing between workers.
    pub balanced: bool,
    /// Whether no counter changed between two readings: then the frames between workers are exact.
    pub idle: bool,
    /// Received frames by port.
    pub ports: Vec<AuditPortView>,
    /// Transmitted frames by worker, those of removed ports included.
    pub workers: Vec<AuditWorkerView>,
    /// Unicast frames between workers.
    pub frames_between: BetweenView,
    /// Flooded frames between workers.
    pub floods_between: BetweenView,
    /// Dropped frames of all ports, by direction and reason; non-zero counts only.
    pub drops: Vec<AuditDropView>,
    /// Slots of the pool: `frames` of the configuration.
    #[serde(default)]
    #[schema(required = true)]
    pub slots: u32,
    /// Slots that hold no frame, except up to 512 that each worker keeps; an estimate under traffic.
    #[serde(default)]
    #[schema(required = true)]
    pub slots_free: u32,
}

/// Received frames of a port: `rx_frames = forwarded + flooded + drops_in`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPortView {
    /// Port or uplink.
    pub port_id: String,
    /// VM; empty for an uplink.
    pub device_id: String,
    /// Network; empty for an uplink, which may have several.
    pub network_id: String,
    /// Frames received.
    pub rx_frames: u64,
    /// Of these, forwarded to one port.
    pub forwarded: u64,
    /// Of these, flooded.
    pub flooded: u64,
    /// Of these, dropped.
    pub drops_in: u64,
    /// Received frames in excess of these sums. 0 is correct.
    pub delta: i64,
}

/// Transmitted frames of a worker:
/// `forwarded + copies + probes + announcements + peer_rx_frames = tx_frames + drops_out + peer_tx_frames`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditWorkerView {
    /// The worker.
    pub worker: u16,
    /// Frames forwarded to one port.
    pub forwarded: u64,
    /// Copies made of flooded frames.
    pub copies: u64,
    /// Loop probes sent by the switch.
    pub probes: u64,
    /// Announcements sent by the switch.
    #[serde(default)]
    #[schema(required = true)]
    pub announcements: u64,
    /// Unicast frames received from other workers.
    pub peer_rx_frames: u64,
    /// Frames transmitted.
    pub tx_frames: u64,
    /// Frames dropped on transmit.
    pub drops_out: u64,
    /// Unicast frames handed to other workers.
    pub peer_tx_frames: u64,
    /// Frames in excess on the left side. 0 is correct.
    pub delta: i64,
}

/// Number of frames between workers. Equal bounds if idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct BetweenView {
    /// Lower bound.
    pub min: i64,
    /// Upper bound. Less than `min`: more frames were received from peers than handed to them.
    pub max: i64,
}

/// A drop reason, over all ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditDropView {
    /// Direction.
    pub direction: Direction,
    /// Drop reason.
    pub reason: String,
    /// Description of the reason.
    pub description: String,
    /// Number of frames.
    pub frames: u64,
}
