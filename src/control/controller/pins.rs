//! Pins that come and go: what workers report about pinned stations, and what follows from it.
//!
//! What is decided is in [`activation`](crate::control::activation), and pure. Here it comes true: new rules at all
//! workers, then the station is learned where it is now, then events are told, and it is kept.

use tracing::{info, warn};

use super::Controller;
use crate::control::activation::{Elsewhere, Heard, Telling};
use crate::control::config;
use crate::control::events::{Event, EventKind};
use crate::control::seats::{Names, Stand};
use crate::switch::{Learned, PinReport, PortId, Station};
use crate::time::{self, Moment};

/// Something that has happened to the pins of a port.
struct Change {
    kind: EventKind,
    index: usize,
    station: Station,
    text: String,
}

impl Controller {
    /// Acts on reports, each with the time at which a worker made it: control may be late.
    pub(super) async fn heed_pins(&mut self, reports: Vec<(PinReport, Moment)>) {
        let now = time::now();
        let (mut changes, mut elsewhere, mut flapping) = (Vec::new(), Vec::new(), Vec::new());
        for (report, when) in reports {
            match report {
                PinReport::Heard { at, station } | PinReport::Announced { at, station } => {
                    let Some((index, port)) = find(&self.ports, &self.config, at) else { continue };
                    let heard = match report {
                        PinReport::Heard { .. } => self.activations.hear(port, station.mac(), when),
                        _ => self.activations.announce(port, station.mac(), when),
                    };
                    changes.extend(heard.map(|heard| self.heard(index, station, heard)));
                }
                PinReport::Elsewhere { pinned, at, station } => {
                    let Some((index, port)) = find(&self.ports, &self.config, pinned) else { continue };
                    let came = self.activations.hear_elsewhere(port, station.mac(), when);
                    let whose = match came {
                        None => continue,
                        Some(Elsewhere::Flaps) => {
                            flapping.push((station, pinned, at));
                            continue;
                        }
                        Some(Elsewhere::Port) => "no address is pinned to it until it sends a frame again",
                        Some(Elsewhere::Address) => {
                            "this address is not pinned to it until the port sends a frame from it"
                        }
                    };
                    let (mac, uplink, port) = (station.mac(), self.named_uplink(at), self.named_port(index));
                    let text = format!("{mac}, which is pinned to {port}, announces itself behind {uplink}: {whose}");
                    changes.push(Change { kind: EventKind::PinYielded, index, station, text });
                    elsewhere.push(Learned { station, port: at, seen: now.secs() });
                }
            }
        }
        if !changes.is_empty() {
            self.set_rules().await;
            // What is for it need not be flooded until it speaks again.
            self.staff.learn(&elsewhere).await;
            changes.into_iter().for_each(|change| self.tell_pins(change, now));
            self.keep_activations();
        }
        if !flapping.is_empty() {
            self.dampen_at(flapping, now).await;
        }
    }

    /// What a frame of a port has changed.
    fn heard(&self, index: usize, station: Station, heard: Heard) -> Change {
        let (named, mac) = (self.named_port(index), station.mac());
        let text = match heard {
            Heard::First => format!("{named} has sent its first frame, from {mac}: its addresses are pinned to it"),
            Heard::Again => format!("{named} sends frames again, from {mac}: its addresses are pinned to it again"),
            Heard::Address => format!("{named} sends frames from {mac} again: this address is pinned to it again"),
        };
        Change { kind: EventKind::PortActivated, index, station, text }
    }

    fn tell_pins(&mut self, change: Change, now: Moment) {
        let Change { kind, index, station, mut text } = change;
        let Some((_, port)) = find(&self.ports, &self.config, self.ports[index].seat.id) else { return };
        match self.activations.tell(port, now) {
            Telling::Tell => {}
            Telling::Last => text.push_str("; more of this port is not told within this minute"),
            Telling::Not => return,
        }
        let names = self.names(index);
        let Names { id: port, vm, network, .. } = names;
        match kind {
            EventKind::PinYielded => warn!(vm, network, port, "pin_yielded: {text}"),
            _ => info!(vm, network, port, "port_activated: {text}"),
        }
        let event = Event { mac: Some(station.mac().to_string()), ..self.event_of(&names, kind, &text) };
        self.journal.tell(event);
    }

    /// `port "p1" of VM "fw-3" on network "net1"`
    fn named_port(&self, index: usize) -> String {
        let Names { id, vm, network, .. } = self.names(index);
        format!("port {id:?} of VM {:?} on network {:?}", vm.unwrap_or_default(), network.unwrap_or_default())
    }

    /// `uplink "up0"`: the one that carries the frames of a network on a line.
    pub(super) fn named_uplink(&self, at: PortId) -> String {
        let carrier = self.rules.counted_at(at);
        let uplink = self.ports.iter().find(|port| port.is(carrier));
        uplink.map_or_else(|| "an uplink".into(), |uplink| uplink.seat.to_string())
    }

    /// Follows a change of the configuration, which is the present one from now on.
    pub(super) fn follow_activations(&mut self, before: &config::Config) {
        let has_spoken = |id: &str| {
            let port = self.ports.iter().find(|port| !port.seat.is_uplink() && port.seat.name == id);
            port.is_some_and(|port| port.sum(|counters| counters.forwarded.get() + counters.flooded.get()) > 0)
        };
        self.activations.follow(before, &self.config, has_spoken);
    }
}

/// The port of this name, and what the configuration says of it.
fn find<'c>(ports: &[super::Port], config: &'c config::Config, id: PortId) -> Option<(usize, &'c config::Port)> {
    let index = ports.iter().position(|port| port.is(id))?;
    let Stand::Port { vm, position, .. } = ports[index].seat.stand else { return None };
    Some((index, config.vms.get(vm)?.ports.get(position)?))
}
