//! Acts on properties of a port's netdev that need no reopening: warnings, events, restoring changed properties.
//! `watcher` closes devices whose netdev is gone, replaced or down.

use tracing::{info, warn};

use super::results::{DeviceEvent, RestoreResult};
use super::{Controller, State};
use crate::control::compile::endpoints::Labels;
use crate::control::state::events::EventKind;
use crate::device::properties::{self, Properties};
use crate::device::{Observed, Settings};
use crate::time;

impl Controller {
    /// Whether a change waits for an operation on this port's device.
    pub(super) fn is_awaited(&self, key: u64) -> bool {
        self.applying.as_ref().is_some_and(|apply| apply.awaits(key))
    }

    /// Records the current properties of an open port's netdev.
    pub(super) fn follow_netdev(&mut self, index: usize, now: Option<Properties>) {
        let port = &mut self.ports[index];
        let Some(device) = port.endpoint.device() else { return };
        let Some(now) = now else {
            if port.drift.record_missing(time::now()) {
                let at = device.at();
                let warning = format!("{at} has been moved to another namespace");
                port.drift.update(vec![warning], Vec::new());
                self.report_drift(index);
            }
            return;
        };
        port.drift.record_found();
        if let (Some(egress), Some(offloads)) = (&port.egress, now.offloads) {
            egress.set(offloads);
        }
        let changes = port.netdev.as_ref().map(|was| properties::changes(device, was, &now)).unwrap_or_default();
        let before = port.dead_link();
        port.netdev = Some(match &port.netdev {
            Some(was) => now.or_known(was),
            None => now,
        });
        let warnings = port.netdev_warnings().unwrap_or_default();
        port.drift.update(warnings, changes);
        // A difference restored at once was never reported as down.
        let is_turned = before != port.dead_link() && (port.reported_down || port.dead_link().is_some());
        if self.restore(index) {
            return;
        }
        if is_turned {
            self.mark_up(index);
        }
        self.report_drift(index);
    }

    /// Reads properties that have no events, sends deferred reports, and starts deferred restorations.
    pub(super) fn check_netdevs(&mut self) {
        self.poll_netdevs();
        for index in 0..self.ports.len() {
            self.take_observations(index);
            if matches!(self.ports[index].state, State::Up { .. }) && !self.restore(index) {
                self.report_drift(index);
            }
        }
    }

    /// Records what a port's device has observed.
    fn take_observations(&mut self, index: usize) {
        let port = &mut self.ports[index];
        let has_refused = port.refusals() > port.refused_before;
        let is_news = std::mem::replace(&mut port.has_refused, has_refused) != has_refused;
        if (is_news || port.observed.as_ref().is_some_and(Observed::take_changed))
            && let Some(warnings) = port.netdev_warnings()
        {
            port.drift.update(warnings, Vec::new());
        }
    }

    /// Starts restoring a netdev that others have changed, if it belongs to the switch and the pause since the last
    /// restoration is over.
    fn restore(&mut self, index: usize) -> bool {
        let port = &mut self.ports[index];
        let (Some(device), Some(now)) = (port.endpoint.device(), &port.netdev) else { return false };
        if !properties::is_restored(device, port.made == Some(true)) {
            return false;
        }
        let was = properties::pending_restore(device, now);
        if was.is_empty() || !port.drift.may_restore(time::now()) {
            return false;
        }
        let (key, netdev, settings, done) =
            (port.key, now.link.index, device.clone(), self.device_event_sender.clone());
        self.jobs.run(&settings.netns().clone(), move || {
            let result = properties::restore(&settings, netdev);
            let _ = done.send(DeviceEvent::Restored(RestoreResult { port: key, was, result }));
        });
        true
    }

    /// Reports a restoration. The next reading shows changes made meanwhile.
    pub(super) fn receive_restored(&mut self, restored: RestoreResult) {
        let RestoreResult { port: key, was, result } = restored;
        let Some(&index) = self.port_index.get(&key) else { return };
        let Some(at) = self.ports[index].endpoint.device().map(Settings::at) else { return };
        let was = was.join("; ");
        if result.is_err() && self.ports[index].dead_link().is_some() {
            self.mark_up(index);
        }
        let text = match result {
            Ok(()) => format!("{at} was changed by others: had {was}; restored"),
            Err(why) => format!("{at} was changed by others: has {was}; restoring failed: {why}"),
        };
        self.report_netdev(index, &text);
        self.read_netdev_of(key);
    }

    /// Reports new differences.
    fn report_drift(&mut self, index: usize) {
        if self.is_wanted_up(index)
            && let Some(text) = self.ports[index].drift.report(time::now())
        {
            self.report_netdev(index, &text);
        }
    }

    fn report_netdev(&mut self, index: usize, text: &str) {
        if !self.emit_for(EventKind::NetdevChanged, index, text) {
            return;
        }
        let Labels { vm, network, .. } = self.names(index);
        let (port, uplink) = self.log_label(index);
        if self.ports[index].drift.warnings().is_empty() {
            info!(event = "netdev_changed", vm, network, port, uplink, "{text}");
        } else {
            warn!(event = "netdev_changed", vm, network, port, uplink, "{text}");
        }
    }
}
