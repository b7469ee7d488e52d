//! Activation of pins: handles the reports of workers about pinned stations.
//!
//! [`activation`](crate::control::compile::activation) decides. Here a decision is applied: workers get the new rules,
//! the station is learned at its new port, events are emitted, and the state is stored.

use serde_json::Value;

use super::Controller;
use crate::control::compile::activation::{ActivationEffect, PinEventLimit, RemoteEffect};
use crate::control::compile::endpoints::{ConfigRef, Labels};
use crate::control::config;
use crate::control::state::events::{Event, EventKind};
use crate::switch::{FdbEntry, PinReport, PortId, Station};
use crate::time::{self, MonoTime};

/// A change of the pins of a port.
struct Change {
    kind: EventKind,
    index: usize,
    station: Station,
    text: String,
}

impl Controller {
    /// Handles reports with the time at which a worker made them, since control may be delayed.
    pub(super) async fn apply_pin_reports(&mut self, reports: Vec<(PinReport, MonoTime)>) {
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
                        Some(RemoteEffect::Flaps) => {
                            flapping.push((station, pinned, at));
                            continue;
                        }
                        Some(RemoteEffect::Port) => "its addresses are not pinned to it until it sends a frame",
                        Some(RemoteEffect::Address) => {
                            "the address is not pinned to it until the port sends a frame from it"
                        }
                    };
                    let (mac, uplink, port) = (station.mac(), self.named_uplink(at), self.named_port(index));
                    let text = format!("{mac}, which is pinned to {port}, announces itself behind {uplink}: {until}");
                    changes.push(Change { kind: EventKind::PinYielded, index, station, text });
                    elsewhere.push(FdbEntry { station, port: at, last_seen: now.secs() });
                }
            }
        }
        if !changes.is_empty() {
            self.push_config().await;
            // So that frames to it are not flooded until its next frame.
            self.workers.learn(&elsewhere).await;
            changes.into_iter().for_each(|change| self.emit_pin_change(change, now));
            self.persist_activations();
        }
        if !flapping.is_empty() {
            self.dampen_at(flapping, now).await;
        }
    }

    /// Change caused by a frame of a port.
    fn activated(&self, index: usize, station: Station, activated: ActivationEffect) -> Change {
        let (named, mac) = (self.named_port(index), station.mac());
        let text = match activated {
            ActivationEffect::First => {
                format!("{named} has sent its first frame, from {mac}: its addresses are pinned to it")
            }
            ActivationEffect::Again => {
                format!("{named} sends frames again, from {mac}: its addresses are pinned to it again")
            }
            ActivationEffect::Address => {
                format!("{named} sends frames from {mac} again: this address is pinned to it again")
            }
        };
        Change { kind: EventKind::PortActivated, index, station, text }
    }

    fn emit_pin_change(&mut self, change: Change, now: MonoTime) {
        let Change { kind, index, station, mut text } = change;
        let Some((_, port)) = find(&self.ports, &self.config, self.ports[index].endpoint.id) else { return };
        match self.activations.count_event(port, now) {
            PinEventLimit::Within => {}
            PinEventLimit::Last => text.push_str("; further events of this port are suppressed for up to 60 seconds"),
            PinEventLimit::Exceeded => return,
        }
        let names = self.names(index);
        let event = Event { mac: Some(station.mac().to_string()), ..self.event_for(&names, kind, &text) };
        self.emit(kind == EventKind::PinYielded, event);
    }

    /// `port "p1" of VM "fw-3" on network "net1"`
    fn named_port(&self, index: usize) -> String {
        let Labels { id, vm, network, .. } = self.names(index);
        format!("port {id:?} of VM {:?} on network {:?}", vm.unwrap_or_default(), network.unwrap_or_default())
    }

    /// `uplink "up0"`: the uplink of an uplink VLAN.
    pub(super) fn named_uplink(&self, at: PortId) -> String {
        let trunk = self.forwarding.counting_port(at);
        let uplink = self.ports.iter().find(|port| port.is(trunk));
        uplink.map_or_else(|| "an uplink".into(), |uplink| uplink.endpoint.to_string())
    }

    /// Adapts activations to a changed configuration.
    pub(super) fn follow_activations(&mut self, before: &config::Config) {
        self.activations.follow(before, &self.config, |id| has_forwarded(&self.ports, id));
    }

    /// Restores stored activations, except of ports that have sent frames since the start.
    pub(super) fn resume_activations(&mut self, stored: &Value) {
        self.activations.restore(stored, |id| has_forwarded(&self.ports, id));
    }
}

/// Whether frames of this port have been forwarded or flooded since the start.
fn has_forwarded(ports: &[super::Port], id: &str) -> bool {
    let port = ports.iter().find(|port| !port.endpoint.is_uplink() && port.endpoint.name == id);
    port.is_some_and(|port| port.sum(|counters| counters.forwarded.get() + counters.flooded.get()) > 0)
}

/// Index and configuration of a port.
fn find<'c>(ports: &[super::Port], config: &'c config::Config, id: PortId) -> Option<(usize, &'c config::Port)> {
    let index = ports.iter().position(|port| port.is(id))?;
    let ConfigRef::Port { vm, position, .. } = ports[index].endpoint.config_ref else { return None };
    Some((index, config.vms.get(vm)?.ports.get(position)?))
}
