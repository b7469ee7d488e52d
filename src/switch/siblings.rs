//! Ports that send from the address of a sibling, which port security refuses: most often the second leg of a bond.

use super::{MOST_PORTS, PortId, Station};
use crate::frame::BURST;
use crate::time::Moment;
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
pub(super) struct SiblingSources {
    /// By the place of each port: when control was told of it.
    told: Vec<Moment>,
    pub(super) found: Vec<SiblingSource>,
}

impl SiblingSources {
    pub(super) fn new() -> SiblingSources {
        SiblingSources { told: vec![Moment::default(); MOST_PORTS], found: Vec::with_capacity(BURST) }
    }

    /// Notes such a frame, unless there has been one from this port a moment ago.
    #[cold]
    pub(super) fn note(&mut self, at: PortId, station: Station, now: Moment) {
        let told = &mut self.told[at.index() % MOST_PORTS];
        if now.since(*told) >= EVERY && self.found.len() < BURST {
            *told = now;
            self.found.push(SiblingSource { at, station });
        }
    }
}
