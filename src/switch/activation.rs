//! Pins that come and go with the traffic: what a worker reports to control, which decides.
//!
//! A port may be *silent*: nothing is pinned to it until it sends its first frame ([`PortRules::pins`]). And a pin
//! yields where its station announces itself behind an uplink: the VM has moved to another host. A worker sees both and
//! reports them; new rules follow within milliseconds. Until then tables carry the change: what a silent port sends is
//! learned at once, also from an uplink and however often the station has moved, and other workers hear of it as of any
//! other station.
//!
//! Only frames that take the slow path are looked at: those from silent ports, those whose source is pinned to another
//! port, and those that a guest sends to a group.
//!
//! [`PortRules::pins`]: super::PortRules::pins

use std::time::Duration;

use super::pins::place;
use super::{PortId, Station};
use crate::frame::BURST;
use crate::time::Moment;

/// For how long the same report is not repeated: control answers it with new rules long before.
const REPEAT: Duration = Duration::from_millis(50);

/// Reports that are remembered for that. One that pushes out another costs a repetition and nothing else.
const REMEMBERED: usize = 512;

/// What a frame says about where a station is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinReport {
    /// A port to which the station is to be pinned, but is not yet, or no longer, has sent a frame.
    Heard {
        /// The port.
        at: PortId,
        /// The source of the frame.
        station: Station,
    },
    /// A guest has announced the station behind the port that pins it. A network outside may return the frame.
    Announced {
        /// The port.
        at: PortId,
        /// The station.
        station: Station,
    },
    /// The station, which is pinned to one port, has announced itself behind an uplink. The switch did not send the
    /// frame.
    Elsewhere {
        /// The port that pins it.
        pinned: PortId,
        /// The uplink, as the port of the network that it carries.
        at: PortId,
        /// The station.
        station: Station,
    },
}

/// What one worker has to report.
#[derive(Debug)]
pub(super) struct PinReports {
    /// By hash of the station: the last report, and when it was made.
    last: Box<[Option<(PinReport, Moment)>]>,
    /// Those that control has not been given yet, each with its time. At most a burst.
    pub(super) pending: Vec<(PinReport, Moment)>,
}

impl PinReports {
    pub(super) fn new() -> PinReports {
        PinReports { last: vec![None; REMEMBERED].into(), pending: Vec::with_capacity(BURST) }
    }

    /// Reports it, unless that has just been done. `hash` is that of the station.
    #[cold]
    pub(super) fn add(&mut self, report: PinReport, hash: u64, now: Moment) {
        let last = &mut self.last[place(hash, REMEMBERED)];
        let is_repeated = last.is_some_and(|(last, at)| last == report && now.since(at) < REPEAT);
        // What there is no room for is reported with the next frame.
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
    fn a_report_is_made_once_in_a_while_and_another_one_at_once() {
        let mut reports = PinReports::new();
        let station = Station::new(NetworkId::new(0), Mac::from_bits(0x0200_0000_0001));
        let (port, uplink) = (PortId::new(1, 0), PortId::new(2, 0));
        let heard = PinReport::Heard { at: port, station };
        let elsewhere = PinReport::Elsewhere { pinned: port, at: uplink, station };
        let start = Moment::from_secs(100);
        let mut add = |report, at| {
            reports.add(report, 7, at);
            reports.pending.drain(..).count()
        };
        assert_eq!(add(heard, start), 1);
        assert_eq!(add(heard, start + REPEAT - Duration::from_nanos(1)), 0);
        assert_eq!(add(elsewhere, start), 1);
        assert_eq!(add(heard, start), 1, "the other way round it is news again");
        assert_eq!(add(heard, start + REPEAT), 1);
    }

    /// A report that did not fit is made later, and not taken for one that was made.
    #[test]
    fn no_report_is_lost_for_lack_of_room() {
        let mut reports = PinReports::new();
        let now = Moment::from_secs(100);
        let report = |number: u64| PinReport::Heard {
            at: PortId::new(1, 0),
            station: Station::new(NetworkId::new(0), Mac::from_bits(number)),
        };
        (0..100).for_each(|number| reports.add(report(number), number, now));
        assert_eq!(reports.pending.drain(..).count(), BURST);
        (0..100).for_each(|number| reports.add(report(number), number, now));
        assert_eq!(reports.pending.len(), 100 - BURST);
    }
}
