//! Rate limit of reports of refused senders: each sender of a port once per [`REPORT_INTERVAL`]; of one port
//! [`AT_ONCE`], and one more every [`EVERY`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::switch::{PortId, RefusedSender};
use crate::time::MonoTime;

/// Time for which a sender is not reported again.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(600);

/// Maximum burst of reports of a port.
pub const AT_ONCE: u32 = 8;

/// Time per further report.
pub const EVERY: Duration = Duration::from_secs(60);

/// Maximum senders remembered of a port: more than are reported within [`REPORT_INTERVAL`].
const MAX_SENDERS: usize = 20;

/// State of one port.
#[derive(Debug)]
struct Port {
    announced: VecDeque<(RefusedSender, MonoTime)>,
    /// Reports left, as of `since`.
    left: u32,
    since: MonoTime,
}

/// State of all ports.
#[derive(Debug, Default)]
pub struct SpoofReports {
    ports: HashMap<PortId, Port>,
}

/// A report to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Whether it is the last one for a while.
    pub is_last: bool,
}

impl SpoofReports {
    /// Records a refused sender of a port. Returns the report to make, if any.
    pub fn record(&mut self, at: PortId, sender: RefusedSender, now: MonoTime) -> Option<Report> {
        let fresh = || Port { announced: VecDeque::new(), left: AT_ONCE, since: now };
        let port = self.ports.entry(at).or_insert_with(fresh);
        if port.announced.iter().any(|&(of, when)| of == sender && now.since(when) < REPORT_INTERVAL) {
            return None;
        }
        let more = now.since(port.since).as_secs() / EVERY.as_secs();
        if more > 0 {
            port.left = AT_ONCE.min(port.left.saturating_add(u32::try_from(more).unwrap_or(u32::MAX)));
            port.since = now;
        }
        if port.left == 0 {
            return None;
        }
        if port.left == AT_ONCE {
            port.since = now;
        }
        port.left -= 1;
        port.announced.retain(|&(of, _)| of != sender);
        if port.announced.len() == MAX_SENDERS {
            port.announced.pop_front();
        }
        port.announced.push_back((sender, now));
        Some(Report { is_last: port.left == 0 })
    }

    /// Removes the state of removed ports.
    pub fn retain(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.ports.retain(|&id, _| is_there(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;

    const PORT: PortId = PortId::new(1, 0);

    fn sender(number: u8) -> RefusedSender {
        RefusedSender { mac: Mac::from_bits(2), ip: Some([10, 0, 0, number].into()) }
    }

    fn at(secs: u64) -> MonoTime {
        MonoTime::from_secs(1000 + secs)
    }

    #[test]
    fn repeated_reports_of_a_sender_are_limited() {
        let mut refusals = SpoofReports::default();
        assert_eq!(refusals.record(PORT, sender(1), at(0)), Some(Report { is_last: false }));
        assert_eq!(refusals.record(PORT, sender(1), at(599)), None);
        assert_eq!(refusals.record(PortId::new(2, 0), sender(1), at(599)), Some(Report { is_last: false }));
        assert_eq!(refusals.record(PORT, sender(1), at(600)), Some(Report { is_last: false }));
    }

    #[test]
    fn reports_of_a_port_are_bounded() {
        let mut refusals = SpoofReports::default();
        let mut announced = Vec::new();
        for second in 0..600 {
            for number in 0..=255 {
                announced
                    .extend(refusals.record(PORT, sender(number), at(second)).map(|events| (second, events.is_last)));
            }
        }
        assert_eq!(announced[..8], [false, false, false, false, false, false, false, true].map(|last| (0, last)));
        assert_eq!(
            announced[8..].iter().map(|(second, _)| *second).collect::<Vec<_>>(),
            (1..10).map(|n| n * 60).collect::<Vec<_>>()
        );
        refusals.retain(|id| id != PORT);
        assert_eq!(refusals.record(PORT, sender(1), at(600)), Some(Report { is_last: false }));
    }
}
