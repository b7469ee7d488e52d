//! Reports refused L3 senders to control, so that operators see the refused address. A guest can name any number of
//! senders: each port has a few slots and at most four reports per second.
//!
//! `security.rs` decides which senders are refused.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Duration;

use super::{MAX_PORTS, PortId};
use crate::frame::BURST;
use crate::time::MonoTime;
use crate::wire::Mac;

/// Minimum interval between two reports of a port.
const PAUSE: Duration = Duration::from_millis(250);

/// Time in seconds for which the same sender of a port is not reported again, so that a rare sender is seen beside
/// a frequent one.
const AGAIN: u32 = 10;

/// Senders remembered per port.
const PLACES: usize = 4;

/// A port has sent a frame whose L3 sender is not allowed at the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoofedIp {
    /// The port.
    pub at: PortId,
    /// The sender.
    pub sender: RefusedSender,
}

/// A refused L3 sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefusedSender {
    /// Its MAC address.
    pub mac: Mac,
    /// Its IP address; `None` if the frame could not be parsed.
    pub ip: Option<IpAddr>,
}

/// Recent reports of one port.
#[derive(Debug, Clone, Copy, Default)]
struct PortReports {
    /// Digests of senders. Two senders with the same digest count as one; that only delays a report.
    senders: [u32; PLACES],
    /// Time of each report, in seconds.
    at: [u32; PLACES],
    /// Earliest time of the next report.
    next: MonoTime,
}

/// Reports of one worker.
#[derive(Debug)]
pub(super) struct SpoofReporter {
    /// By port index.
    ports: Vec<PortReports>,
    /// Pending reports.
    pub(super) events: Vec<SpoofedIp>,
}

impl SpoofReporter {
    pub(super) fn new() -> SpoofReporter {
        SpoofReporter { ports: vec![PortReports::default(); MAX_PORTS], events: Vec::with_capacity(BURST) }
    }

    /// Records a refused sender of a port.
    #[cold]
    pub(super) fn record(&mut self, at: PortId, sender: RefusedSender, now: MonoTime) {
        let port = &mut self.ports[at.index() % MAX_PORTS];
        if now < port.next || self.events.len() == BURST {
            return;
        }
        let (digest, second) = (digest(sender), now.secs());
        let is_recent = |(&of, &at): (&u32, &u32)| of == digest && at != 0 && second.saturating_sub(at) < AGAIN;
        if port.senders.iter().zip(&port.at).any(is_recent) {
            return;
        }
        let oldest = (0..PLACES).min_by_key(|&place| port.at[place]).unwrap_or(0);
        (port.senders[oldest], port.at[oldest]) = (digest, second.max(1));
        port.next = now + PAUSE;
        self.events.push(SpoofedIp { at, sender });
    }
}

#[allow(clippy::cast_possible_truncation)] // half of it is enough
fn digest(sender: RefusedSender) -> u32 {
    let mut hasher = DefaultHasher::new();
    sender.hash(&mut hasher);
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortId = PortId::new(3, 0);

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    fn sender(number: u8) -> RefusedSender {
        RefusedSender { mac: Mac::from_bits(0x0200_0000_0001), ip: Some([10, 0, 0, number].into()) }
    }

    fn reports(spoofing: &mut SpoofReporter) -> Vec<RefusedSender> {
        spoofing.events.drain(..).map(|found| found.sender).collect()
    }

    #[test]
    fn a_rare_address_is_reported_beside_a_frequent_one() {
        let mut spoofing = SpoofReporter::new();
        for millis in 0..9000 {
            spoofing.record(PORT, sender(1), at(millis));
            if millis == 5000 {
                spoofing.record(PORT, sender(2), at(millis));
            }
        }
        assert_eq!(reports(&mut spoofing), [sender(1), sender(2)]);
        spoofing.record(PORT, sender(1), at(10_000));
        assert_eq!(reports(&mut spoofing), [sender(1)], "again after the interval");
    }

    #[test]
    fn a_port_with_many_senders_is_reported_four_times_a_second() {
        let mut spoofing = SpoofReporter::new();
        let mut all = 0;
        for millis in 0..10_000u64 {
            spoofing.record(PORT, sender(millis.to_le_bytes()[0]), at(millis));
            all += reports(&mut spoofing).len();
        }
        assert_eq!(all, 40);
        spoofing.record(PortId::new(4, 0), sender(1), at(10_000));
        assert_eq!(reports(&mut spoofing).len(), 1, "another port has its own entries");
    }
}
