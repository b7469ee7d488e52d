//! Activation of pins: handles the reports of workers about pinned stations.
//!
//! [`activation`](crate::control::activation) decides, and is pure. Here the decision is applied: new rules at all
//! workers, then the station is learned at its new place, then events are emitted and the state is written.

use serde_json::Value;

use super::Controller;
use crate::control::activation::{Activated, Elsewhere, EventLimit};
use crate::control::config;
use crate::control::events::{Event, EventKind};
use crate::control::seats::{Names, Stand};
use crate::switch::{Learned, PinReport, PortId, Station};
use crate::time::{self, Moment};

/// A change of the pins of a port.
struct Change {
    kind: EventKind,
    index: usize,
    station: Station,
    text: String,
}

impl Controller {
    /// Handles reports, each with the time at which a worker made it: control may be late.
    pub(super) async fn apply_pin_reports(&mut self, reports: Vec<(PinReport, Moment)>) {
        let now = time::now();
        let (mut changes, mut elsewhere, mut flapping) = (Vec::new(), Vec::new(), Vec::new());
        for (report, when) in reports {
            match report {
                PinReport::Received { at, station } | PinReport::Announced { at, station } => {
                    let Some((index, port)) = find(&self.ports, &self.config, at) else { continue };
                    let activated = match report {
                        PinReport::Received { .. } => self.activations.receive(port, station.mac(), when),
                        _ => self.activations.announce(port, station.mac(), when),
                    };
                    changes.extend(activated.map(|activated| self.activated(index, station, activated)));
                }
                PinReport::Elsewhere { pinned, at, station } => {
                    let Some((index, port)) = find(&self.ports, &self.config, pinned) else { continue };
                    let effect = self.activations.announce_elsewhere(port, station.mac(), when);
                    let until = match effect {
                        None => continue,
                        Some(Elsewhere::Flaps) => {
                            flapping.push((station, pinned, at));
                            continue;
                        }
                        Some(Elsewhere::Port) => "its addresses are not pinned to it until it sends a frame",
                        Some(Elsewhere::Address) => {
                            "the address is not pinned to it until the port sends a frame from it"
                        }
                    };
                    let (mac, uplink, port) = (station.mac(), self.named_uplink(at), self.named_port(index));
                    let text = format!("{mac}, which is pinned to {port}, announces itself behind {uplink}: {until}");
                    changes.push(Change { kind: EventKind::PinYielded, index, station, text });
                    elsewhere.push(Learned { station, port: at, seen: now.secs() });
                }
            }
        }
        if !changes.is_empty() {
            self.set_rules().await;
            // Frames to it are not flooded until it sends the next frame.
            self.staff.learn(&elsewhere).await;
            changes.into_iter().for_each(|change| self.emit_pin_change(change, now));
            self.keep_activations();
        }
        if !flapping.is_empty() {
            self.dampen_at(flapping, now).await;
        }
    }

    /// The change that a frame of a port has caused.
    fn activated(&self, index: usize, station: Station, activated: Activated) -> Change {
        let (named, mac) = (self.named_port(index), station.mac());
        let text = match activated {
            Activated::First => format!("{named} has sent its first frame, from {mac}: its addresses are pinned to it"),
            Activated::Again => format!("{named} sends frames again, from {mac}: its addresses are pinned to it again"),
            Activated::Address => format!("{named} sends frames from {mac} again: this address is pinned to it again"),
        };
        Change { kind: EventKind::PortActivated, index, station, text }
    }

    fn emit_pin_change(&mut self, change: Change, now: Moment) {
        let Change { kind, index, station, mut text } = change;
        let Some((_, port)) = find(&self.ports, &self.config, self.ports[index].seat.id) else { return };
        match self.activations.count_event(port, now) {
            EventLimit::Within => {}
            EventLimit::Last => text.push_str("; further events of this port are suppressed for up to 60 seconds"),
            EventLimit::Exceeded => return,
        }
        let names = self.names(index);
        let event = Event { mac: Some(station.mac().to_string()), ..self.event_of(&names, kind, &text) };
        self.emit(kind == EventKind::PinYielded, event);
    }

    /// `port "p1" of VM "fw-3" on network "net1"`
    fn named_port(&self, index: usize) -> String {
        let Names { id, vm, network, .. } = self.names(index);
        format!("port {id:?} of VM {:?} on network {:?}", vm.unwrap_or_default(), network.unwrap_or_default())
    }

    /// `uplink "up0"`: the uplink that carries an uplink VLAN.
    pub(super) fn named_uplink(&self, at: PortId) -> String {
        let carrier = self.rules.counted_at(at);
        let uplink = self.ports.iter().find(|port| port.is(carrier));
        uplink.map_or_else(|| "an uplink".into(), |uplink| uplink.seat.to_string())
    }

    /// Follows a change from the configuration `before` to the present one.
    pub(super) fn follow_activations(&mut self, before: &config::Config) {
        self.activations.follow(before, &self.config, |id| has_forwarded(&self.ports, id));
    }

    /// Restores the state of pins from the state file, but of ports that have sent frames since the start.
    pub(super) fn resume_activations(&mut self, kept: &Value) {
        self.activations.resume(kept, |id| has_forwarded(&self.ports, id));
    }
}

/// Whether frames of this port have been forwarded or flooded since the start.
fn has_forwarded(ports: &[super::Port], id: &str) -> bool {
    let port = ports.iter().find(|port| !port.seat.is_uplink() && port.seat.name == id);
    port.is_some_and(|port| port.sum(|counters| counters.forwarded.get() + counters.flooded.get()) > 0)
}

/// The index of a port, and its configuration.
fn find<'c>(ports: &[super::Port], config: &'c config::Config, id: PortId) -> Option<(usize, &'c config::Port)> {
    let index = ports.iter().position(|port| port.is(id))?;
    let Stand::Port { vm, position, .. } = ports[index].seat.stand else { return None };
    Some((index, config.vms.get(vm)?.ports.get(position)?))
}
