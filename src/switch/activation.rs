//! Activation of pins: the reports from which control decides which addresses are pinned.
//!
//! Nothing is pinned to an *inactive* port ([`PortConfig::pins`]) until it sends its first frame. A pin yields when its
//! station announces itself behind an uplink, because the VM runs on another host then. A worker reports both to control,
//! and new rules follow within milliseconds. Until then the FDB carries the change: the source of a frame from an inactive
//! port is learned at once, never counts as flapping, and is synchronised with other workers as any other station.
//!
//! Only frames on the slow path are examined: frames from inactive ports, frames whose source is pinned to another port,
//! and frames that a guest floods.
//!
//! [`PortConfig::pins`]: super::PortConfig::pins

use std::time::Duration;

use super::pinned::place;
use super::{PortId, Station};
use crate::frame::BURST;
use crate::time::MonoTime;

/// The time for which the same report is not repeated. Control answers it with new rules long before.
const REPEAT: Duration = Duration::from_millis(50);

/// Reports that are remembered for that. A collision costs a repeated report and nothing else.
const MAX_REMEMBERED: usize = 512;

/// What a frame says about where a station is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinReport {
    /// A port to which the station belongs, but is not pinned, has sent a frame.
    Received {
        /// The port.
        at: PortId,
        /// The source of the frame.
        station: Station,
    },
    /// A guest has announced the station at the port that pins it. The external network may return the frame. Also for
    /// the address of a virtual router in place of [`Received`](Self::Received).
    Announced {
        /// The port.
        at: PortId,
        /// The station.
        station: Station,
    },
    /// The station, which is pinned to one port, has announced itself behind an uplink, by a frame that this switch did
    /// not send.
    Elsewhere {
        /// The port that pins it.
        pinned: PortId,
        /// The uplink VLAN at which the frame was received.
        at: PortId,
        /// The station.
        station: Station,
    },
}

/// The reports of one worker.
#[derive(Debug)]
pub(super) struct PinReports {
    /// By hash of the station: the last report, and when it was made.
    last: Box<[Option<(PinReport, MonoTime)>]>,
    /// Reports that are not sent to control yet, each with its time. At most a burst.
    pub(super) pending: Vec<(PinReport, MonoTime)>,
}

impl PinReports {
    pub(super) fn new() -> PinReports {
        PinReports { last: vec![None; MAX_REMEMBERED].into(), pending: Vec::with_capacity(BURST) }
    }

    /// Adds a report, unless the same one has just been made. `hash` is that of the station.
    #[cold]
    pub(super) fn push(&mut self, report: PinReport, hash: u64, now: MonoTime) {
        let last = &mut self.last[place(hash, MAX_REMEMBERED)];
        let is_repeated = last.is_some_and(|(last, at)| last == report && now.since(at) < REPEAT);
        // A report that does not fit is made with the next frame.
        if !is_repeated && self.pending.len() < BURST {
            *last = Some((report, now));
            self.pending.push((report, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::NetworkId;
    use crate::wire::Mac;

    #[test]
    fn a_repeated_report_is_limited_and_another_is_made_at_once() {
        let mut reports = PinReports::new();
        let station = Station::new(NetworkId::new(0), Mac::from_bits(0x0200_0000_0001));
        let (port, uplink) = (PortId::new(1, 0), PortId::new(2, 0));
        let received = PinReport::Received { at: port, station };
        let elsewhere = PinReport::Elsewhere { pinned: port, at: uplink, station };
        let start = MonoTime::from_secs(100);
        let mut add = |report, at| {
            reports.push(report, 7, at);
            reports.pending.drain(..).count()
        };
        assert_eq!(add(received, start), 1);
        assert_eq!(add(received, start + REPEAT - Duration::from_nanos(1)), 0);
        assert_eq!(add(elsewhere, start), 1);
        assert_eq!(add(received, start), 1, "the reverse is reported again");
        assert_eq!(add(received, start + REPEAT), 1);
    }

    /// A report that finds no room is made later.
    #[test]
    fn no_report_is_lost_for_lack_of_room() {
        let mut reports = PinReports::new();
        let now = MonoTime::from_secs(100);
        let report = |number: u64| PinReport::Received {
            at: PortId::new(1, 0),
            station: Station::new(NetworkId::new(0), Mac::from_bits(number)),
        };
        (0..100).for_each(|number| reports.push(report(number), number, now));
        assert_eq!(reports.pending.drain(..).count(), BURST);
        (0..100).for_each(|number| reports.push(report(number), number, now));
        assert_eq!(reports.pending.len(), 100 - BURST);
    }
}
