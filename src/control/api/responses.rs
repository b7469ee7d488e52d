//! Types of API responses, also the rows of the CLI's tables. Field names are Neutron's where it has one. They are a
//! contract: fields may only be added.

mod audit;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::reason::ReasonCode;

pub use self::audit::{AuditDropView, AuditPortView, AuditView, AuditWorkerView, BetweenView, Direction, DropView};

/// Operational status of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Frames pass in both directions.
    Active,
    /// No device, no link, or administratively down.
    Down,
    /// Quarantined for a loop or storm.
    Quarantined,
}

impl Status {
    /// All.
    pub const ALL: [Status; 3] = [Status::Active, Status::Down, Status::Quarantined];

    /// The one with this name.
    pub fn named(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Status::Active => "ACTIVE",
            Status::Down => "DOWN",
            Status::Quarantined => "QUARANTINED",
        }
    }
}

/// Device of a port or uplink. Fields that its kind lacks are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// `tap`, `xdp` or `packet`.
    pub kind: String,
    /// Name of the netdev.
    pub name: String,
    /// Network namespace; absent for the host's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<String>,
    /// Number of queues; for a netdev of others, of open ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queues: Option<u16>,
    /// Whether partial checksums and GSO packets pass.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offloads: Option<bool>,
    /// Whether received frames are kept from the host's network stack; `packet` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub isolate: Option<bool>,
    /// Whether the netdev persists after the switch ends.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub persist: Option<bool>,
    /// Mode, such as `native copy`, while open; `xdp` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<String>,
}

/// Counters of a port or uplink. *Received* is from the guest or from outside, *transmitted* is to them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CountsView {
    /// Frames received; a GSO packet counts as its segments.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames transmitted.
    pub tx_frames: u64,
    /// Bytes transmitted.
    pub tx_bytes: u64,
    /// Received frames forwarded to one port.
    pub forwarded: u64,
    /// Received frames flooded.
    pub flooded: u64,
    /// Copies made of flooded frames.
    pub copies: u64,
    /// Loop probes sent by the switch.
    pub probes: u64,
    /// Announcements of local stations sent by the switch.
    #[serde(default)]
    #[schema(required = true)]
    pub announcements: u64,
    /// Frames lost before the switch could receive them, as reported by the device. Included in no other counter.
    pub rx_missed: u64,
    /// Transmitted frames that the device accepted and then lost, as it reports.
    #[serde(default)]
    pub tx_lost: u64,
    /// GSO packets segmented by the switch for transmit.
    pub segmented: u64,
    /// Other frames whose checksum the switch completed for transmit.
    pub checksummed: u64,
    /// Received frames whose source was not learned because of the port's MAC limit.
    pub not_learned: u64,
    /// Unknown unicast frames not flooded to this port.
    pub not_flooded: u64,
    /// Mirror copies transmitted because the port is promiscuous.
    pub mirror_copies: u64,
    /// Received frames dropped as `reserved_group`, by group; non-zero counts only.
    pub reserved_groups: BTreeMap<String, u64>,
    /// Dropped frames of both directions, by reason; non-zero counts only.
    pub drops: BTreeMap<String, u64>,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Id.
    pub port_id: String,
    /// VM of the port.
    pub device_id: String,
    /// Network.
    pub network_id: String,
    /// MAC address.
    pub mac_address: String,
    /// Position among the ports of its VM, from 0.
    pub position: usize,
    /// Operational status.
    pub status: Status,
    /// Reason of the status, for programs.
    #[serde(default)]
    #[schema(required = true, value_type = ReasonCode)]
    pub status_code: String,
    /// Reason of the status, and warnings; empty for a port that is up without warnings.
    pub status_reason: String,
    /// Administrative state.
    pub admin_state_up: bool,
    /// Label of who manages it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<String>,
    /// Port security: `off`, `mac` or `mac+ip`.
    pub port_security: String,
    /// Flooding of unknown unicast to the port: `deliver` or `suppress`.
    pub unknown_unicast: String,
    /// Whether it gets a copy of each frame forwarded on its network.
    pub promiscuous: bool,
    /// Whether sources are learned at the port.
    #[serde(default)]
    #[schema(required = true)]
    pub mac_learning: bool,
    /// Activation: `immediate` or `first-frame`.
    #[serde(default)]
    #[schema(required = true)]
    pub activation: String,
    /// Lifetime: `config`, or `netns`: it is removed when its network namespace has ended.
    #[serde(default)]
    #[schema(required = true)]
    pub lifetime: String,
    /// Whether its addresses are pinned now. If not, the port is administratively down, or the switch waits for a frame
    /// from it.
    #[serde(default)]
    #[schema(required = true)]
    pub pinned: bool,
    /// MAC limit; absent if the network's applies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_limit: Option<u32>,
    /// Policy for frames from further stations, `drop` or `forward-unlearned`; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_limit_policy: Option<String>,
    /// Parent, for a subport.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<String>,
    /// VLAN id on the parent, for a subport.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
    /// Device; for a subport, its parent's.
    pub device: DeviceView,
    /// Worker that polls its first queue.
    pub worker: Option<u16>,
    /// Counters; flattened in JSON.
    #[serde(flatten)]
    pub counts: CountsView,
}

/// A network on an uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UplinkNetworkView {
    /// The network.
    pub network_id: String,
    /// VLAN id; absent if untagged.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
}

/// An uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UplinkView {
    /// Id.
    pub uplink_id: String,
    /// Group, if it is in one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// Whether it forwards, as the only uplink or the active one of its group.
    pub active: bool,
    /// Operational status, active or backup.
    pub status: Status,
    /// Reason of the status, for programs.
    #[serde(default)]
    #[schema(required = true, value_type = ReasonCode)]
    pub status_code: String,
    /// Reason of the status, and warnings; empty for an uplink that is up without warnings.
    pub status_reason: String,
    /// Administrative state.
    pub admin_state_up: bool,
    /// Label of who manages it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<String>,
    /// Networks on the uplink.
    pub networks: Vec<UplinkNetworkView>,
    /// Device.
    pub device: DeviceView,
    /// Worker that polls its first queue.
    pub worker: Option<u16>,
    /// Counters; flattened in JSON.
    #[serde(flatten)]
    pub counts: CountsView,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Id.
    pub device_id: String,
    /// Label of who manages it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<String>,
    /// Ports, in the order of the configuration.
    pub ports: Vec<String>,
    /// Networks of these ports, one each.
    pub networks: Vec<String>,
    /// Number of active ports.
    pub active: usize,
    /// Frames received, sum over its ports.
    pub rx_frames: u64,
    /// Bytes received, sum over its ports.
    pub rx_bytes: u64,
    /// Frames transmitted, sum over its ports.
    pub tx_frames: u64,
    /// Bytes transmitted, sum over its ports.
    pub tx_bytes: u64,
    /// Frames dropped, sum over its ports.
    pub drops: u64,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Id.
    pub network_id: String,
    /// Label of who manages it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<String>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Number of ports.
    pub ports: usize,
    /// Number of active ports.
    pub active: usize,
    /// Learned stations: maximum over workers.
    pub stations: u64,
    /// Reserved group addresses forwarded between VMs: `vm-default`, `all`, `none`, or a mask.
    pub reserved_groups: String,
    /// Maximum learned stations.
    pub fdb_limit: u32,
    /// Ageing time in seconds.
    pub ageing_seconds: u32,
}

/// Kind of an FDB entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StationKind {
    /// Learned from traffic.
    Learned,
    /// Dampened: pinned for a while, because it flapped.
    Dampened,
    /// Pinned by the configuration.
    Pinned,
}

impl StationKind {
    /// All.
    pub const ALL: [StationKind; 3] = [StationKind::Pinned, StationKind::Dampened, StationKind::Learned];

    /// The one with this name.
    pub fn named(name: &str) -> Option<StationKind> {
        StationKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            StationKind::Learned => "learned",
            StationKind::Dampened => "dampened",
            StationKind::Pinned => "pinned",
        }
    }
}

/// An FDB entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StationView {
    /// Network.
    pub network_id: String,
    /// MAC address.
    pub mac_address: String,
    /// Port; or uplink, for a group the active one.
    pub port_id: String,
    /// Uplink, if it is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uplink_id: Option<String>,
    /// Kind.
    pub kind: StationKind,
    /// Seconds since its last frame; 0 for a pinned or dampened one.
    pub age_seconds: u32,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Index.
    pub worker: u16,
    /// CPU core.
    pub core: usize,
    /// Poll mode: `adaptive` or `busy`.
    pub poll: String,
    /// Number of device queues polled.
    pub queues: usize,
    /// FDB entries.
    pub stations: u64,
    /// FDB capacity.
    pub stations_limit: u64,
    /// Stations not learned because the FDB was full.
    pub stations_refused: u64,
    /// Iterations of the poll loop.
    pub polls: u64,
    /// Iterations with work.
    pub busy_polls: u64,
    /// Seconds spent in these.
    pub busy_seconds: f64,
    /// Number of sleeps.
    pub sleeps: u64,
    /// Polls of ports skipped because all of their recent frames were dropped.
    #[serde(default)]
    pub polls_skipped: u64,
    /// FDB updates lost because the ring to a peer was full.
    pub updates_lost: u64,
    /// Unicast frames handed to other workers.
    #[serde(default)]
    pub peer_tx_frames: u64,
    /// Unicast frames received from other workers.
    #[serde(default)]
    pub peer_rx_frames: u64,
    /// Flooded frames handed to other workers.
    #[serde(default)]
    pub peer_tx_floods: u64,
    /// Flooded frames received from other workers.
    #[serde(default)]
    pub peer_rx_floods: u64,
    /// Frames dropped because their port was closed while they were queued for it.
    #[serde(default)]
    pub closed_port_drops: u64,
    /// Start of these counters and of those of the ports: RFC 3339, UTC.
    #[serde(default)]
    pub since: String,
}

/// Result of attaching ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attached {
    /// Changes, one text each.
    pub changes: Vec<String>,
    /// Warnings: ports without a device yet, with the reason.
    pub warnings: Vec<String>,
    /// The attached ports.
    pub ports: Vec<PortView>,
}

/// Result of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flushed {
    /// Number of FDB entries flushed.
    pub flushed: u64,
}

/// A change that is reverted unless confirmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UnconfirmedView {
    /// Seconds until it is reverted; 0 while it is being applied or reverted.
    pub seconds_left: u64,
    /// What it has changed, one sentence each.
    pub changes: Vec<String>,
    /// Number of its configuration.
    pub generation: u64,
}
