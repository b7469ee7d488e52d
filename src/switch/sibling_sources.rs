//! Ports that send from the address of a sibling, which port security refuses: most often the second leg of a bond.

use super::{MAX_PORTS, PortId, Station};
use crate::frame::BURST;
use crate::time::MonoTime;
use std::time::Duration;

/// How often control is told of one port.
const EVERY: Duration = Duration::from_secs(1);

/// A port has sent a frame with the address of another port of its VM, which it may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiblingSource {
    /// The port.
    pub at: PortId,
    /// The source.
    pub station: Station,
}

/// What one worker has found of these, and not told yet.
#[derive(Debug)]
pub(super) struct SiblingReporter {
    /// By the place of each port: when control was told of it.
    reported: Vec<MonoTime>,
    pub(super) events: Vec<SiblingSource>,
}

impl SiblingReporter {
    pub(super) fn new() -> SiblingReporter {
        SiblingReporter { reported: vec![MonoTime::default(); MAX_PORTS], events: Vec::with_capacity(BURST) }
    }

    /// Notes such a frame, unless there has been one from this port a moment ago.
    #[cold]
    pub(super) fn record(&mut self, at: PortId, station: Station, now: MonoTime) {
        let reported = &mut self.reported[at.index() % MAX_PORTS];
        if now.since(*reported) >= EVERY && self.events.len() < BURST {
            *reported = now;
            self.events.push(SiblingSource { at, station });
        }
    }
}
