//! Marks ports and uplinks as up or down, and emits and logs that.

use tracing::{info, warn};

use super::{Controller, Port, State};
use crate::control::compile::endpoints::Labels;
use crate::control::config::Config;
use crate::control::reason::Reason;
use crate::control::state::events::EventKind;

impl Controller {
    /// Marks a port as down. Emits an event the first time; logs each new reason.
    pub(super) fn mark_down(&mut self, index: usize, why: Reason) {
        let port = &mut self.ports[index];
        let is_new_reason = !matches!(&port.state, State::Opening { reason } if *reason == why);
        port.state = State::Down { reason: why.clone() };
        if !self.is_wanted_up(index) {
            return;
        }
        let was_reported = std::mem::replace(&mut self.ports[index].reported_down, true);
        let is_reported = !was_reported && self.emit_for(EventKind::PortDown, index, &why.text);
        self.emit_subports(index);
        let Labels { vm, network, .. } = self.names(index);
        let (port, uplink) = self.log_label(index);
        if is_reported {
            warn!(event = "port_down", vm, network, port, uplink, "{why}");
        } else if was_reported && is_new_reason {
            info!(vm, network, port, uplink, "still down: {why}");
        }
    }

    /// Marks a port as up, unless its link is dead.
    pub(super) fn mark_up(&mut self, index: usize) {
        let State::Up { worker, queues, .. } = self.ports[index].state else { return };
        let warnings = self.ports[index].warnings();
        if !self.is_wanted_up(index) {
            return;
        }
        if let Some(why) = self.ports[index].dead_link() {
            return self.emit_down(index, &why);
        }
        let text = if warnings.is_empty() { String::from("frames can flow both ways") } else { warnings };
        self.ports[index].reported_down = false;
        if self.emit_for(EventKind::PortUp, index, &text) {
            let Labels { vm, network, .. } = self.names(index);
            let (port, uplink) = self.log_label(index);
            info!(event = "port_up", vm, network, port, uplink, worker, queues, "{text}");
        }
        self.emit_subports(index);
    }

    /// Emits an event that a port is down, once until it is up again.
    pub(super) fn emit_down(&mut self, index: usize, why: &Reason) {
        if !std::mem::replace(&mut self.ports[index].reported_down, true)
            && self.emit_for(EventKind::PortDown, index, &why.text)
        {
            let Labels { vm, network, .. } = self.names(index);
            let (port, uplink) = self.log_label(index);
            warn!(event = "port_down", vm, network, port, uplink, "{why}");
        }
        self.emit_subports(index);
    }

    /// Emits an event if the administrative state of an open port has changed.
    pub(super) fn emit_admin_state(&mut self, index: usize, was_up: bool) {
        let is_up = self.is_wanted_up(index);
        if is_up == was_up || !matches!(self.ports[index].state, State::Up { .. }) {
            return;
        }
        if is_up {
            self.mark_up(index);
        } else {
            self.ports[index].reported_down = true;
            if self.emit_for(EventKind::PortDown, index, "administratively down") {
                let Labels { vm, network, .. } = self.names(index);
                let (port, uplink) = self.log_label(index);
                info!(event = "port_down", vm, network, port, uplink, "administratively down");
            }
            self.emit_subports(index);
        }
    }

    /// Emits an event if a removed port was up.
    pub(super) fn emit_removed(&mut self, before: &Config, port: &Port) {
        let names = port.endpoint.labels(before);
        if matches!(port.state, State::Up { .. } | State::Tagged { reported: Some(true) }) && names.admin_up {
            let event = self.event_for(&names, EventKind::PortDown, "detached");
            self.emit(false, event);
        }
    }

    /// Whether a port is administratively up.
    pub(super) fn is_wanted_up(&self, index: usize) -> bool {
        self.names(index).admin_up
    }

    /// Labels of a port or uplink.
    pub(super) fn names(&self, index: usize) -> Labels<'_> {
        self.ports[index].endpoint.labels(&self.config)
    }

    /// Log fields `port` and `uplink`: the id is in one of them.
    pub(super) fn log_label(&self, index: usize) -> (Option<&str>, Option<&str>) {
        let endpoint = &self.ports[index].endpoint;
        let id = Some(endpoint.name.as_str());
        if endpoint.is_uplink() { (None, id) } else { (id, None) }
    }
}
