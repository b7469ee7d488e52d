//! What the switch shows of itself: the JSON of the API and the rows of the CLI's tables. Names
//! are Neutron's where Neutron has one; they are a contract, fields may only be added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether frames can flow through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// They can, both ways.
    Active,
    /// They cannot: there is no device, or the port is administratively down.
    Down,
    /// They may not: the port is held for a loop or a storm.
    Quarantined,
}

impl Status {
    /// As people read it, and JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Active => "ACTIVE",
            Status::Down => "DOWN",
            Status::Quarantined => "QUARANTINED",
        }
    }
}

/// The device of a port or an uplink. What its kind does not have is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// `tap`, `xdp` or `packet`.
    pub kind: String,
    /// The netdev.
    pub name: String,
    /// The namespace it stands in; absent for the host's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<String>,
    /// Its queues. Of netdevs of others: those that are open.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queues: Option<u16>,
    /// Whether open checksums and super-frames pass.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offloads: Option<bool>,
    /// Whether what the netdev receives is kept from the host's own network stack; of `packet`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub isolate: Option<bool>,
    /// Whether the netdev outlives the daemon.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub persist: Option<bool>,
    /// The way that frames take, as in `native copy`, while it is open; of `xdp`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<String>,
}

/// What is counted of a port or an uplink. *In* is from the guest or from outside, *out* is to them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CountsView {
    /// Frames that came in; a super-frame counts as the frames it becomes.
    pub rx_frames: u64,
    /// And their bytes.
    pub rx_bytes: u64,
    /// Frames that went out.
    pub tx_frames: u64,
    /// And their bytes.
    pub tx_bytes: u64,
    /// Of the frames that came in: those meant for one port.
    pub forwarded: u64,
    /// Of the frames that came in: those meant for everybody.
    pub flooded: u64,
    /// The copies made of these.
    pub copies: u64,
    /// Loop probes that the switch sent out.
    pub probes: u64,
    /// Announcements of local stations that the switch sent out.
    #[serde(default)]
    #[schema(required = true)]
    pub announcements: u64,
    /// Frames that were lost before the switch could receive them, as far as the device tells. They are in no
    /// other counter.
    pub rx_missed: u64,
    /// Of the frames that went out: those that the device took and lost before they left, as far as it tells.
    #[serde(default)]
    pub tx_lost: u64,
    /// Super-frames going out that were divided, since the device takes none.
    pub segmented: u64,
    /// Other frames going out whose checksum was completed, since the device takes none that is open.
    pub checksummed: u64,
    /// Of the frames that came in: those whose source was not learned, since the port is at its MAC limit.
    pub not_learned: u64,
    /// Frames for stations that nobody knew, which were not delivered here.
    pub not_flooded: u64,
    /// Copies of others' frames that went out, since the port is promiscuous.
    pub mirror_copies: u64,
    /// Of the frames that came in and died as `reserved_group`: by the name of the group; only those that
    /// there were.
    pub reserved_groups: BTreeMap<String, u64>,
    /// Frames that died, either direction, by reason; only reasons that there were.
    pub drops: BTreeMap<String, u64>,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Its id.
    pub port_id: String,
    /// The VM it belongs to.
    pub device_id: String,
    /// The network it is on.
    pub network_id: String,
    /// Its address.
    pub mac_address: String,
    /// Its place among the ports of its VM, from 0.
    pub position: usize,
    /// Whether frames can flow.
    pub status: Status,
    /// Why it is as it is, in a sentence; empty for a port that is up with nothing to remark.
    pub status_reason: String,
    /// Whether it is wanted up.
    pub admin_state_up: bool,
    /// `off`, `mac` or `mac+ip`.
    pub port_security: String,
    /// Whether it gets frames for stations that nobody knows: `deliver` or `suppress`.
    pub unknown_unicast: String,
    /// Whether it gets a copy of every frame that is forwarded on its network.
    pub promiscuous: bool,
    /// Whether sources are learned behind it.
    #[serde(default)]
    #[schema(required = true)]
    pub mac_learning: bool,
    /// `immediate` or `first-frame`: since when its addresses are pinned to it.
    #[serde(default)]
    #[schema(required = true)]
    pub activation: String,
    /// Whether its addresses are pinned to it now. If not, the port is administratively down, or the switch waits for a
    /// frame from it.
    #[serde(default)]
    #[schema(required = true)]
    pub pinned: bool,
    /// Learned stations at most; absent where that is as its network has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_limit: Option<u32>,
    /// What becomes of frames from further stations, `drop` or `forward-unlearned`; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_limit_policy: Option<String>,
    /// Of a subport: the port by whose device its frames come and go.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<String>,
    /// Of a subport: the tag that they have there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
    /// Its device; of a subport, that of its parent.
    pub device: DeviceView,
    /// The worker that polls its first queue.
    pub worker: Option<u16>,
    /// Its counters; in JSON their keys stand among the others.
    #[serde(flatten)]
    pub counts: CountsView,
}

/// A network on an uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UplinkNetworkView {
    /// The network.
    pub network_id: String,
    /// The tag of its frames; absent where they are untagged.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
}

/// An uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UplinkView {
    /// Its id.
    pub uplink_id: String,
    /// Its group, if it is one of two.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// Whether it carries the frames: the other one of its group does not, and it is up.
    pub active: bool,
    /// Whether frames can flow, as soon as it carries them.
    pub status: Status,
    /// Why it is as it is, in a sentence; empty for one that is up with nothing to remark.
    pub status_reason: String,
    /// Whether it is wanted up.
    pub admin_state_up: bool,
    /// What it carries.
    pub networks: Vec<UplinkNetworkView>,
    /// Its device.
    pub device: DeviceView,
    /// The worker that polls its first queue.
    pub worker: Option<u16>,
    /// Its counters; in JSON their keys stand among the others.
    #[serde(flatten)]
    pub counts: CountsView,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Its id.
    pub device_id: String,
    /// Its ports, in the order asked for.
    pub ports: Vec<String>,
    /// The networks they are on, one for each port.
    pub networks: Vec<String>,
    /// How many of the ports are up.
    pub active: usize,
    /// Sums over its ports.
    pub rx_frames: u64,
    /// Sums over its ports.
    pub rx_bytes: u64,
    /// Sums over its ports.
    pub tx_frames: u64,
    /// Sums over its ports.
    pub tx_bytes: u64,
    /// Sums over its ports.
    pub drops: u64,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its id.
    pub network_id: String,
    /// Bytes that a frame may carry.
    pub mtu: u16,
    /// How many ports are on it.
    pub ports: usize,
    /// How many of them are up.
    pub active: usize,
    /// How many stations have been learned, as the fullest worker's table has it.
    pub stations: u64,
    /// Which of the reserved group addresses pass between VMs: `vm-default`, `all`, `none`, or a mask.
    pub reserved_groups: String,
    /// How many may be learned.
    pub fdb_limit: u32,
    /// After how many seconds of silence a station is forgotten.
    pub ageing_seconds: u32,
}

/// How a station is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StationKind {
    /// From its traffic.
    Learned,
    /// From its traffic, which was too restless: there it stays for a while.
    Dampened,
    /// From the configuration.
    Pinned,
}

/// A station of the forwarding database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StationView {
    /// The network it is on.
    pub network_id: String,
    /// Its address.
    pub mac_address: String,
    /// The port it is behind; or the uplink, of a group the one that carries.
    pub port_id: String,
    /// The same, if it is an uplink.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uplink_id: Option<String>,
    /// How it is known.
    pub kind: StationKind,
    /// Seconds since it was last heard; 0 for a pinned or a frozen one.
    pub age_seconds: u32,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Its number.
    pub worker: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// `adaptive` or `busy`.
    pub poll: String,
    /// Device queues it polls.
    pub queues: usize,
    /// Stations in its table.
    pub stations: u64,
    /// Stations that its table can hold.
    pub stations_limit: u64,
    /// Times a station went unlearned for lack of room.
    pub stations_refused: u64,
    /// Breaths taken.
    pub polls: u64,
    /// Breaths in which there was something to do.
    pub busy_polls: u64,
    /// Seconds spent in these.
    pub busy_seconds: f64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Times a port was not read, because every frame that it sent lately has died.
    #[serde(default)]
    pub polls_skipped: u64,
    /// Sightings that did not fit the ring to a peer.
    pub updates_lost: u64,
    /// Frames for one port that were handed to other workers.
    #[serde(default)]
    pub peer_tx_frames: u64,
    /// And those that were taken over from them.
    #[serde(default)]
    pub peer_rx_frames: u64,
    /// Frames to be flooded by other workers that were handed to them.
    #[serde(default)]
    pub peer_tx_floods: u64,
    /// And those that were taken over from them.
    #[serde(default)]
    pub peer_rx_floods: u64,
    /// Frames that died because their port was closed while they were on their way to it.
    #[serde(default)]
    pub closed_port_drops: u64,
    /// Since when all of this is counted, and what the ports count too: RFC 3339, UTC.
    #[serde(default)]
    pub since: String,
}

/// The direction of a frame, seen from the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the guest.
    In,
    /// To the guest.
    Out,
}

/// A line of the drop ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropView {
    /// The port, or the uplink.
    pub port_id: String,
    /// The same, if it is an uplink.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uplink_id: Option<String>,
    /// Its VM; empty for an uplink.
    pub device_id: String,
    /// Its network; empty for an uplink, which has several.
    pub network_id: String,
    /// Which way the frames went.
    pub direction: Direction,
    /// Why they died, by name.
    pub reason: String,
    /// Why they died, in a sentence.
    pub description: String,
    /// How many there were.
    pub frames: u64,
}

/// Whether every frame is accounted for, as each worker has read it between two polls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// The verdict: nothing is off, and between workers there is nothing missing.
    pub balanced: bool,
    /// Whether nothing moved between the two readings. Then what is between workers is exact.
    pub idle: bool,
    /// What came in at each port, and what became of it.
    pub ports: Vec<AuditPortView>,
    /// What was to go out at each worker, and what became of it. Frames of ports that are no more
    /// are counted as well.
    pub workers: Vec<AuditWorkerView>,
    /// Frames for one port that are on their way between workers.
    pub frames_between: BetweenView,
    /// Frames to be flooded that are on their way between workers.
    pub floods_between: BetweenView,
    /// Frames that died, over all ports, by direction and reason; only reasons that there were.
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

/// What came in at a port: `rx_frames = forwarded + flooded + drops_in`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPortView {
    /// The port, or the uplink.
    pub port_id: String,
    /// Its VM; empty for an uplink.
    pub device_id: String,
    /// Its network; empty for an uplink, which has several.
    pub network_id: String,
    /// Frames that came in.
    pub rx_frames: u64,
    /// Those of them that were meant for one port.
    pub forwarded: u64,
    /// Those of them that were meant for everybody.
    pub flooded: u64,
    /// Those of them that died.
    pub drops_in: u64,
    /// By how many more came in than is accounted for. 0 is right.
    pub delta: i64,
}

/// What was to go out at a worker:
/// `forwarded + copies + probes + announcements + frames_heard = tx_frames + drops_out + frames_sent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditWorkerView {
    /// The worker.
    pub worker: u16,
    /// Frames meant for one port.
    pub forwarded: u64,
    /// Copies made of flooded ones.
    pub copies: u64,
    /// Loop probes that the switch sent.
    pub probes: u64,
    /// Announcements of local stations that the switch sent.
    #[serde(default)]
    #[schema(required = true)]
    pub announcements: u64,
    /// Frames taken over from other workers.
    pub peer_rx_frames: u64,
    /// Frames that went out.
    pub tx_frames: u64,
    /// Frames that died going out.
    pub drops_out: u64,
    /// Frames handed to other workers.
    pub peer_tx_frames: u64,
    /// By how many more were to go out than is accounted for. 0 is right.
    pub delta: i64,
}

/// How many frames are between two workers. When nothing moves, the two are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct BetweenView {
    /// At least so many.
    pub min: i64,
    /// At most so many. Less than `min`: some were heard that nobody has sent.
    pub max: i64,
}

/// A reason for which frames died, over all ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditDropView {
    /// Which way the frames went.
    pub direction: Direction,
    /// Why they died, by name.
    pub reason: String,
    /// Why they died, in a sentence.
    pub description: String,
    /// How many there were.
    pub frames: u64,
}

/// What came of attaching ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attached {
    /// What is otherwise now, a sentence for each thing.
    pub changes: Vec<String>,
    /// Remarks: ports that have no device yet, and why.
    pub warnings: Vec<String>,
    /// The ports, as they are now.
    pub ports: Vec<PortView>,
}

/// What came of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flushed {
    /// How many stations have been forgotten.
    pub flushed: u64,
}
