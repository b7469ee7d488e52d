//! What happened: one event for each transition, never one for each frame.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What has happened, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
    NetworksBridged,
    /// A station has moved too often, and stays where it is.
    MacDampened,
    /// A port sends frames as if they came from another VM.
    SpoofedMac,
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
    /// Its number: each event of a start has the next one. An event about a change reserves its number when storing the
    /// change begins, and is sent when it is stored: a missing number arrives later. 0, which is not written: a message of
    /// the API about missing events, or an event of a version without numbers.
    #[serde(skip_serializing_if = "is_none", default)]
    pub id: u64,
    /// The start of the switch that emitted it. Numbers continue after those of earlier starts in the state; without a
    /// state they begin again with each start.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub start: String,
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

/// Bytes of the text of an event; a longer one is cut.
const TEXT: usize = 4096;

/// Ports that an event names.
const PORTS: usize = 64;

impl EventKind {
    /// As it is written.
    pub fn name(self) -> String {
        // A kind is a text to serde, and nothing else.
        serde_json::to_value(self).ok().and_then(|kind| Some(kind.as_str()?.to_owned())).unwrap_or_default()
    }
}

impl Event {
    /// Something that happens at `time`, of which nothing else is known yet.
    pub fn new(kind: EventKind, time: SystemTime) -> Event {
        let time = crate::time::rfc3339(time);
        let (id, start) = (0, String::new());
        Event {
            id,
            start,
            time,
            kind,
            vm: None,
            ports: Vec::new(),
            network: None,
            mac: None,
            ip: None,
            text: String::new(),
        }
    }

    /// The same, with nothing in it that is longer than an event may be.
    pub fn bounded(mut self) -> Event {
        shorten(&mut self.text, TEXT);
        if self.ports.len() > PORTS {
            self.text.push_str(&format!("; and {} more ports", self.ports.len() - PORTS));
            self.ports.truncate(PORTS);
        }
        self
    }

    /// About how many bytes it takes up.
    pub fn size(&self) -> usize {
        let texts = [&self.vm, &self.network, &self.mac, &self.ip].map(|text| text.as_ref().map_or(0, String::len));
        let ports: usize = self.ports.iter().map(|port| port.len() + size_of::<String>()).sum();
        size_of::<Event>() + self.text.len() + texts.iter().sum::<usize>() + ports
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde has it
fn is_none(id: &u64) -> bool {
    *id == 0
}

/// Cuts a text to `most` bytes, and says so at its end.
pub fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}
