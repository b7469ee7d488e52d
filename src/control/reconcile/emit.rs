//! Emits events: appends them to the event log, and logs them.

use tracing::{info, warn};

use super::Controller;
use crate::control::compile::endpoints::Labels;
use crate::control::state::events::{Event, EventKind};
use crate::time;

impl Controller {
    /// An event with the current time.
    pub(super) fn event(&self, kind: EventKind, text: String) -> Event {
        Event { text, ..Event::new(kind, time::wall()) }
    }

    /// Appends an event of the port or uplink at `index` to the event log.
    pub(super) fn emit_for(&mut self, kind: EventKind, index: usize, text: &str) -> bool {
        let event = self.event_for(&self.ports[index].endpoint.labels(&self.config), kind, text);
        self.event_log.append(event, time::now())
    }

    /// Appends an event to the event log and logs it at level warn or info.
    pub(super) fn emit(&mut self, is_warning: bool, event: Event) {
        let logged = event.clone();
        if self.event_log.append(event, time::now()) {
            log_event(is_warning, &logged);
        }
    }

    /// Emits the last event of each rate-limited source.
    pub(super) fn flush_limited_events(&mut self, all: bool) {
        for event in self.event_log.flush_limited(time::now(), all) {
            log_event(true, &event);
        }
    }

    /// An event of the port or uplink with these labels, with the current time.
    pub(super) fn event_for(&self, names: &Labels<'_>, kind: EventKind, text: &str) -> Event {
        let (vm, network) = (names.vm.map(str::to_owned), names.network.map(str::to_owned));
        Event { vm, network, ports: vec![names.id.to_owned()], ..self.event(kind, text.to_owned()) }
    }
}

/// Logs an event at level warn or info.
pub(super) fn log_event(is_warning: bool, event: &Event) {
    let Event { kind, vm, network, ports, text, .. } = event;
    let (kind, port) = (kind.name(), ports.first().filter(|_| ports.len() == 1));
    if is_warning {
        warn!(event = kind, vm, network, port, "{text}");
    } else {
        info!(event = kind, vm, network, port, "{text}");
    }
}
