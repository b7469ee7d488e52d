//! What happened: one event for each transition, never one for each frame.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What has happened, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A port or an uplink has its device; frames can flow both ways.
    PortUp,
    /// A port or an uplink has lost its device, or has been taken down; or the link below it
    /// is dead.
    PortDown,
    /// Somebody has changed the netdev of a port or an uplink: what is not as the port has it, what has been put
    /// right, or that all is as the port has it again.
    NetdevChanged,
    /// Another uplink of a group carries its frames now.
    Uplink,
    /// A port has come to its MAC limit, or is below again.
    MacLimit,
    /// Storm limits begin to refuse frames.
    StormStart,
    /// They have refused none for a while.
    StormStop,
    /// Somebody joins what the switch keeps apart, and frames can go round.
    LoopStart,
    /// Something else is done about a loop, or for longer.
    LoopLevel,
    /// A loop is over, and nothing is done about it any more.
    LoopStop,
    /// Somebody joins two networks. That is no loop, as long as nobody else does.
    Bridges,
    /// A station has moved too often, and stays where it is.
    MacFreeze,
    /// A port sends frames as if they came from another VM.
    Guard,
    /// A port names an IP address that its port security does not allow.
    SpoofedIp,
    /// A port sends frames from the address of another port of its VM, and its port security does not allow that.
    SiblingMac,
    /// A port has sent the frame that control waited for: its addresses are pinned to it from now on.
    PortActivated,
    /// A station that is pinned to a port has announced itself behind an uplink: the pin has yielded.
    PinYielded,
    /// The desired state has been changed.
    Config,
    /// Changes cannot be kept any more, or can be again.
    State,
    /// Nothing of the switch: a follower has missed events, because it did not read them in time.
    Lagged,
}

/// One thing that happened, as the API tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// What.
    pub kind: EventKind,
    /// The VM it happened to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vm: Option<String>,
    /// Its ports; or the uplink that it happened to, which has no VM.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ports: Vec<String>,
    /// The network it happened on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
    /// The address it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac: Option<String>,
    /// The IP address it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// What happened, in a sentence.
    pub text: String,
}
