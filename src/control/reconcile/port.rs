//! A port or an uplink as it is: what it shall be, and whether it has a device.

use std::sync::Arc;

use crate::control::compile::endpoints::Endpoint;
use crate::control::loops::alarm::Alarm;
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

/// A port or an uplink, as it is.
#[derive(Debug)]
pub struct Port {
    /// What it shall be.
    pub endpoint: Endpoint,
    /// What it is.
    pub state: State,
    /// Its counters, one for each worker.
    pub counters: Vec<Arc<PortCounters>>,
    /// Tells it from every other port there ever was, also of the same id.
    pub(super) key: u64,
    /// It has been told that it is down, and not yet that it is up again.
    pub(super) reported_down: bool,
    /// Whether we made its netdev, once that is known.
    pub(super) made: Option<bool>,
    /// The namespace its device was opened in.
    pub(super) namespace: Option<Identity>,
    /// The properties that its netdev had when its device was opened, or has had since, as far as they are known.
    pub(super) netdev: Option<Properties>,
    /// The offload work that its device takes, where that can change while it is open.
    pub(super) egress: Option<Egress>,
    /// What its device observes about its frames.
    pub(super) observed: Option<Observed>,
    /// Frames that its device had refused before it was opened, and whether more were since, at the last look.
    pub(super) refused_before: u64,
    pub(super) has_refused: bool,
    /// What of its netdev is not as it has it.
    pub(super) drift: Drift,
    /// The last look at links that had begun before its device was opened: it and those before do not
    /// count.
    pub(super) min_read: u64,
    /// It is not opened as long as devices are being closed: one of them may be in its way.
    pub(super) open_deferred: bool,
    /// Whether its device, if it is open, may lose VLAN tags.
    pub(super) may_lose_tags: bool,
    /// Devices of its own that are being closed.
    pub(super) closing: u32,
    /// When it is tried again while it is down.
    pub(super) retry: Backoff,
    /// The attempt to open it that is under way.
    pub(super) attempt: Option<Ticket>,
    /// It is reported that the attempt has not returned.
    pub(super) is_overdue: bool,
    /// Since when its device is held by others, in this series of attempts.
    pub(super) in_use_since: Option<MonoTime>,
    /// When its device was opened.
    pub(super) opened: MonoTime,
    /// Whether it is at its MAC limit.
    pub(super) mac_limit_alarm: Alarm,
}

/// Whether a port has a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has, and its first queue is polled by this worker, the others by the next ones in turn.
    Up {
        /// The worker.
        worker: u16,
        /// How many queues there are.
        queues: u16,
        /// Remarks on how it was opened.
        notes: String,
        /// The way that its frames take, of kinds that have several.
        mode: Option<String>,
    },
    /// It is being opened.
    Opening {
        /// Why it was down before; empty at first.
        reason: String,
    },
    /// It has not.
    Down {
        /// Why not; empty at first.
        reason: String,
    },
    /// It is a subport, and its frames come and go by the device of its parent.
    Tagged {
        /// Whether it was last told to be up, or down.
        reported: Option<bool>,
    },
}

impl Port {
    /// Why no frames flow although it has a device: its link, if that is watched.
    pub fn dead_link(&self) -> Option<String> {
        let name = self.endpoint.device()?.name();
        // What it was like before it went says nothing.
        match self.netdev.as_ref().filter(|_| !self.drift.is_lost())?.link {
            LinkState { up: false, .. } => Some(format!("its link is down; `ip link set dev {name} up` sets it up")),
            LinkState { carrier: false, .. } => Some("its link has no carrier: nobody is at its other end".into()),
            _ => None,
        }
    }

    /// Frames that its device has refused to send.
    pub(super) fn refusals(&self) -> u64 {
        self.sum(|counters| counters.drops_out.get(DropReason::DeviceRefused))
    }

    /// What there is to remark on its netdev now, as far as that is known.
    pub(super) fn netdev_warnings(&self) -> Option<Vec<String>> {
        let (device, now) = (self.endpoint.device()?, self.netdev.as_ref()?);
        let mut warnings = properties::warnings(device, now);
        warnings.extend(self.observed.iter().flat_map(|observed| observed.warnings(device)));
        warnings.extend(properties::refusals(device, now).filter(|_| self.refusals() > self.refused_before));
        Some(warnings)
    }

    /// Remarks on a port that is up: on how it was opened, and on what its netdev is now.
    pub fn warnings(&self) -> String {
        let State::Up { notes: diagnostics, .. } = &self.state else { return String::new() };
        let diagnostics = Some(diagnostics.as_str()).filter(|diagnostics| !diagnostics.is_empty());
        diagnostics.into_iter().chain(self.drift.warnings().iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
    }

    /// Why it is not open yet, if the attempt to open it has not returned in time.
    pub fn overdue(&self, now: MonoTime) -> Option<String> {
        let device = self.endpoint.device().filter(|_| self.is_overdue)?;
        match self.attempt.as_ref()?.running_since() {
            Some(since) => {
                let seconds = now.since(since).as_secs();
                Some(format!("opening {} has not returned for {seconds} seconds; it goes on when it does", device.at()))
            }
            None => Some(format!("opening {} waits for others there that have not returned", device.at())),
        }
    }

    /// Whether this is the port with this id of the switch.
    pub fn is(&self, id: PortId) -> bool {
        self.endpoint.id == id
    }

    /// The sum over workers of one of its counters.
    pub fn sum(&self, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        self.counters.iter().map(|counters| counter(counters)).sum()
    }
}
