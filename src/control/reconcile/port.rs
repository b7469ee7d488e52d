//! Runtime state of a port or uplink: configuration reference, device, netdev, timers.

use std::sync::Arc;

use crate::control::compile::endpoints::Endpoint;
use crate::control::loops::alarm::Alarm;
use crate::control::reason::{Reason, ReasonCode};
use crate::control::reconcile::backoff::Backoff;
use crate::control::reconcile::drift::Drift;
use crate::control::reconcile::jobs::Ticket;
use crate::device::properties::{self, Properties};
use crate::device::{Egress, Observed};
use crate::switch::{DropReason, PortId};
use crate::sys::link_events::LinkState;
use crate::sys::netns::Identity;
use crate::telemetry::PortCounters;
use crate::time::MonoTime;

/// Runtime state of a port or uplink.
#[derive(Debug)]
pub struct Port {
    /// Desired state.
    pub endpoint: Endpoint,
    /// Actual state.
    pub state: State,
    /// Its counters, one for each worker.
    pub counters: Vec<Arc<PortCounters>>,
    /// Unique among all ports of this run, also of the same id.
    pub(super) key: u64,
    /// Reported as down, and not as up since.
    pub(super) reported_down: bool,
    /// Whether the switch created its netdev; `None` while unknown.
    pub(super) made: Option<bool>,
    /// The namespace its device was opened in.
    pub(super) namespace: Option<Identity>,
    /// Last known properties of its netdev, from the opening of its device on.
    pub(super) netdev: Option<Properties>,
    /// Offloads that its device accepts, if they can change while it is open.
    pub(super) egress: Option<Egress>,
    /// What its device observes about its frames.
    pub(super) observed: Option<Observed>,
    /// Frames refused by its device before it was opened; whether there were more at the last check.
    pub(super) refused_before: u64,
    pub(super) has_refused: bool,
    /// Differences of its netdev from the settings.
    pub(super) drift: Drift,
    /// Readings of links up to this number began before its device was opened, and do not count.
    pub(super) min_read: u64,
    /// Not opened while devices are being closed: one of them may conflict.
    pub(super) open_deferred: bool,
    /// Whether its device, if it is open, may lose VLAN tags.
    pub(super) may_lose_tags: bool,
    /// Number of its own devices being closed.
    pub(super) closing: u32,
    /// Time of the next attempt.
    pub(super) retry: Backoff,
    /// Attempt in progress.
    pub(super) attempt: Option<Ticket>,
    /// The attempt is reported as overdue.
    pub(super) is_overdue: bool,
    /// Since when its device is in use by others, in this series of attempts.
    pub(super) in_use_since: Option<MonoTime>,
    /// When its device was opened.
    pub(super) opened: MonoTime,
    /// Whether it is at its MAC limit.
    pub(super) mac_limit_alarm: Alarm,
}

/// Whether a port has a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Open. This worker polls its first queue, the next workers the others.
    Up {
        /// The worker.
        worker: u16,
        /// Number of queues.
        queues: u16,
        /// Warnings from opening.
        warnings: String,
        /// Mode, of kinds that have several.
        mode: Option<String>,
    },
    /// Being opened.
    Opening {
        /// Why it was down before; empty at first.
        reason: Reason,
    },
    /// Not open.
    Down {
        /// Reason; empty at first.
        reason: Reason,
    },
    /// A subport, which uses its parent's device.
    Tagged {
        /// State last reported: up?
        reported: Option<bool>,
    },
}

impl Port {
    /// Why no frames pass an open device: its link, if watched.
    pub fn dead_link(&self) -> Option<Reason> {
        let name = self.endpoint.device()?.name();
        // The last properties of a missing netdev are outdated.
        match self.netdev.as_ref().filter(|_| !self.drift.is_lost())?.link {
            LinkState { up: false, .. } => Some(Reason::new(
                ReasonCode::LinkDown,
                format!("its link is down; `ip link set dev {name} up` sets it up"),
            )),
            LinkState { carrier: false, .. } => {
                Some(Reason::new(ReasonCode::NoCarrier, "its link has no carrier: the other end is closed or down"))
            }
            _ => None,
        }
    }

    /// Frames that its device has refused to send.
    pub(super) fn refusals(&self) -> u64 {
        self.sum(|counters| counters.drops_out.get(DropReason::DeviceRefused))
    }

    /// Warnings about its netdev; `None` while its properties are unknown.
    pub(super) fn netdev_warnings(&self) -> Option<Vec<String>> {
        let (device, now) = (self.endpoint.device()?, self.netdev.as_ref()?);
        let mut warnings = properties::warnings(device, self.endpoint.is_uplink(), now);
        warnings.extend(self.observed.iter().flat_map(|observed| observed.warnings(device)));
        warnings.extend(properties::refusals(device, now).filter(|_| self.refusals() > self.refused_before));
        Some(warnings)
    }

    /// Warnings of an open port: from opening, and about its netdev.
    pub fn warnings(&self) -> String {
        let State::Up { warnings, .. } = &self.state else { return String::new() };
        let warnings = Some(warnings.as_str()).filter(|warnings| !warnings.is_empty());
        warnings.into_iter().chain(self.drift.warnings().iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
    }

    /// Why an overdue attempt has not returned.
    pub fn overdue(&self, now: MonoTime) -> Option<Reason> {
        let device = self.endpoint.device().filter(|_| self.is_overdue)?;
        let text = match self.attempt.as_ref()?.running_since() {
            Some(since) => {
                let seconds = now.since(since).as_secs();
                format!("opening {} has not returned for {seconds} seconds; continues when it does", device.at())
            }
            None => format!("opening {} waits for earlier calls there that have not returned", device.at()),
        };
        Some(Reason::new(ReasonCode::OpenOverdue, text))
    }

    /// Whether the port has this id in the forwarding configuration.
    pub fn is(&self, id: PortId) -> bool {
        self.endpoint.id == id
    }

    /// The sum over workers of one of its counters.
    pub fn sum(&self, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        self.counters.iter().map(|counters| counter(counters)).sum()
    }
}
