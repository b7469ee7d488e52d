//! Reports ports that send from a sibling's address, which port security drops: most often the second leg of a
//! bond.

use super::{MAX_PORTS, PortId, Station};
use crate::frame::BURST;
use crate::time::MonoTime;
use std::time::Duration;

/// Minimum interval between reports of one port.
const EVERY: Duration = Duration::from_secs(1);

/// A port has sent from the address of another port of its VM, which it may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiblingSource {
    /// The sending port.
    pub at: PortId,
    /// The source.
    pub station: Station,
}

/// Pending reports of one worker.
#[derive(Debug)]
pub(super) struct SiblingReporter {
    /// By port index: time of the last report.
    reported: Vec<MonoTime>,
    pub(super) events: Vec<SiblingSource>,
}

impl SiblingReporter {
    pub(super) fn new() -> SiblingReporter {
        SiblingReporter { reported: vec![MonoTime::default(); MAX_PORTS], events: Vec::with_capacity(BURST) }
    }

    /// Records such a frame, unless the port was reported within the interval.
    #[cold]
    pub(super) fn record(&mut self, at: PortId, station: Station, now: MonoTime) {
        let reported = &mut self.reported[at.index() % MAX_PORTS];
        if now.since(*reported) >= EVERY && self.events.len() < BURST {
            *reported = now;
            self.events.push(SiblingSource { at, station });
        }
    }
}
