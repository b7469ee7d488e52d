//! Events: one per transition, never one per frame.

use std::time::SystemTime;

use serde::de::IntoDeserializer;
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::author::Author;
use crate::time;

/// Kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A port or uplink is up: its device is open, and frames pass.
    PortUp,
    /// A port or uplink is down: device lost, administratively down, or link down.
    PortDown,
    /// The netdev of a port or uplink was changed by others: differences from the settings, restorations, or that none
    /// differ any more.
    NetdevChanged,
    /// Another uplink of a group is active.
    Uplink,
    /// A port has reached its MAC limit, or is below it again.
    MacLimit,
    /// A storm limit starts dropping frames.
    StormStart,
    /// It has dropped none for a while.
    StormStop,
    /// A loop was detected.
    LoopStart,
    /// Mitigation of a loop was escalated or extended.
    LoopLevel,
    /// A loop has ended, and its mitigation too.
    LoopStop,
    /// Two networks are bridged: not a loop by itself.
    NetworksBridged,
    /// A station flapped, and is dampened.
    MacDampened,
    /// A port sends from another VM's address.
    SpoofedMac,
    /// A port uses an IP address that port security does not allow.
    SpoofedIp,
    /// A port sends from a sibling's address, which port security does not allow.
    SiblingMac,
    /// A port has sent its first frame: its addresses are pinned from now on.
    PortActivated,
    /// A pin has yielded: its station announced itself behind an uplink.
    PinYielded,
    /// A port was removed because its network namespace has ended.
    PortEnded,
    /// The configuration was changed.
    Config,
    /// Storing the state fails, or works again.
    State,
    /// For a reader only: events are missing here.
    Gap,
}

/// Ids of missing events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// The first missing id.
    pub first_missing: u64,
    /// The id from which on events follow.
    pub next_id: u64,
}

/// An event, as in the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Id: each event has the one after that of the event before it. Omitted: a message about missing events, or an event of a
    /// version without ids.
    #[serde(skip_serializing_if = "is_none", default)]
    pub id: u64,
    /// The start of the switch that emitted it.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub start: String,
    /// Time: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Kind.
    pub kind: EventKind,
    /// VM.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vm: Option<String>,
    /// Ports; or the uplink, without VM.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ports: Vec<String>,
    /// Network.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
    /// MAC address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac: Option<String>,
    /// IP address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// Of the kind `gap`: the missing ids.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gap: Option<Gap>,
    /// Of a change by the API, or by the switch itself: who made it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<Author>,
    /// Description.
    pub text: String,
}

/// Maximum bytes of the text; a longer one is cut.
const TEXT: usize = 4096;

/// Maximum ports of an event.
const PORTS: usize = 64;

impl EventKind {
    /// Keyword.
    pub fn name(self) -> String {
        // Serde represents a kind as a string.
        serde_json::to_value(self).ok().and_then(|kind| Some(kind.as_str()?.to_owned())).unwrap_or_default()
    }

    /// The kind with this keyword.
    ///
    /// # Errors
    /// There is none: the error names all kinds.
    pub fn parse(name: &str) -> Result<EventKind, String> {
        let of: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
        EventKind::deserialize(of).map_err(|why| why.to_string())
    }
}

impl Event {
    /// An event of this kind at `time`, without details.
    pub fn new(kind: EventKind, time: SystemTime) -> Event {
        Event {
            id: 0,
            start: String::new(),
            time: time::rfc3339(time),
            kind,
            vm: None,
            ports: Vec::new(),
            network: None,
            mac: None,
            ip: None,
            gap: None,
            by: None,
            text: String::new(),
        }
    }

    /// A message in place of the events `first_missing` to `next_id` - 1.
    pub fn gap(first_missing: u64, next_id: u64, text: String) -> Event {
        let gap = Some(Gap { first_missing, next_id });
        Event { gap, text, ..Event::new(EventKind::Gap, time::wall()) }.bounded()
    }

    /// Truncates its parts to their maximum lengths.
    pub fn bounded(mut self) -> Event {
        shorten(&mut self.text, TEXT);
        if self.ports.len() > PORTS {
            self.text.push_str(&format!("; and {} more ports", self.ports.len() - PORTS));
            self.ports.truncate(PORTS);
        }
        self
    }

    /// Approximate size in bytes.
    pub fn size(&self) -> usize {
        let texts = [&self.vm, &self.network, &self.mac, &self.ip].map(|text| text.as_ref().map_or(0, String::len));
        let ports: usize = self.ports.iter().map(|port| port.len() + size_of::<String>()).sum();
        let by = self.by.as_ref().map_or(0, |by| by.request_id.len());
        size_of::<Event>() + by + self.text.len() + texts.iter().sum::<usize>() + ports
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde has it
fn is_none(id: &u64) -> bool {
    *id == 0
}

/// Cuts a text to `most` bytes, and marks that.
pub fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_parsed_and_an_error_names_them_all() {
        assert_eq!(EventKind::parse("storm_start"), Ok(EventKind::StormStart));
        let why = EventKind::parse("storm").unwrap_err();
        for part in ["`storm`", "port_up", "mac_dampened", "gap"] {
            assert!(why.contains(part), "{why}");
        }
    }
}
