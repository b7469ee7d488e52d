//! Counter audit: checks on a running switch that every frame is accounted for.
//!
//! Counters read while their worker is counting do not balance, because a burst is counted in several steps. Each
//! worker therefore takes a [`Snapshot`] of all its counters itself, between two polls, when its TX batches are empty.
//! In a snapshot these hold exactly under any traffic:
//!
//! * per port, `rx = forwarded + flooded + Σ drops in`;
//! * per worker, `forwarded + copies + probes + announcements + peer rx = tx + Σ drops out + peer tx`, where *peer tx*
//!   and *peer rx* are frames handed off to other workers and taken over from them.
//!
//! Frames may be in flight between workers. Two snapshots of each worker, one after the other, bound their number:
//! frames that the first snapshot counts as taken over, the second counts as handed off. If no frame moved between
//! them, the two are equal.
//!
//! The counters of a closed port are added to [`Retired`] of the worker, so that the sums include all ports that ever
//! existed.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use super::{Counter, PortCounters, WorkerCounters};
use crate::switch::DropReason;

/// One count per drop reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByReason([u64; DropReason::ALL.len()]);

impl Default for ByReason {
    fn default() -> ByReason {
        ByReason([0; DropReason::ALL.len()])
    }
}

impl Index<DropReason> for ByReason {
    type Output = u64;

    fn index(&self, reason: DropReason) -> &u64 {
        &self.0[reason as usize]
    }
}

impl IndexMut<DropReason> for ByReason {
    fn index_mut(&mut self, reason: DropReason) -> &mut u64 {
        &mut self.0[reason as usize]
    }
}

/// Sums of the counters of removed ports.
#[derive(Debug, Default)]
pub struct Retired {
    /// Number of changes so far. [`PortCounters`] holds the number of the last change that retained it.
    epoch: Counter,
    forwarded: Counter,
    copies: Counter,
    probes: Counter,
    announcements: Counter,
    tx_frames: Counter,
    drops_out: Counter,
}

impl Retired {
    /// Adds the counters of `old` that are not in `new`; subtracts those that were added before and return in `new`.
    pub fn retire(&self, old: &[Option<Arc<PortCounters>>], new: &[Option<Arc<PortCounters>>]) {
        let last = self.epoch.get();
        let term = last + 1;
        self.epoch.set(term);
        for counters in new.iter().flatten() {
            let known = counters.epoch.get();
            if known != 0 && known != last && known != term {
                self.add(counters, u64::wrapping_neg);
            }
            counters.epoch.set(term);
        }
        for counters in old.iter().flatten().filter(|counters| counters.epoch.get() == last) {
            self.add(counters, |frames| frames);
        }
    }

    /// Adds a port that no longer exists.
    pub(super) fn add_removed(&self, counters: &PortCounters) {
        self.add(counters, |frames| frames);
    }

    /// The sums: forwarded, copies, probes, announcements, frames transmitted, and dropped at egress.
    pub(super) fn sums(&self) -> [&Counter; 6] {
        let Retired { epoch: _, forwarded, copies, probes, announcements, tx_frames, drops_out } = self;
        [forwarded, copies, probes, announcements, tx_frames, drops_out]
    }

    fn add(&self, counters: &PortCounters, sign: fn(u64) -> u64) {
        self.forwarded.add(sign(counters.forwarded.get()));
        self.copies.add(sign(counters.copies.get()));
        self.probes.add(sign(counters.probes.get()));
        self.announcements.add(sign(counters.announcements.get()));
        self.tx_frames.add(sign(counters.tx_frames.get()));
        self.drops_out.add(sign(counters.drops_out.total()));
    }
}

/// Counts of one port by one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortTotals {
    /// The port's [`PortId::index`](crate::switch::PortId::index).
    pub port: usize,
    /// Frames received.
    pub rx_frames: u64,
    /// Received frames forwarded to one port.
    pub forwarded: u64,
    /// Received frames flooded.
    pub flooded: u64,
    /// Received frames dropped.
    pub drops_in: u64,
}

impl PortTotals {
    /// Received frames minus accounted ones; 0 if all is right.
    pub fn delta(&self) -> i64 {
        difference(self.rx_frames, self.forwarded + self.flooded + self.drops_in)
    }
}

/// Counts of one worker at one point in time between two polls. The totals include removed ports, `shares` does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Counts per port; limited to the vector's capacity.
    pub shares: Vec<PortTotals>,
    /// Frames dropped at ingress, by reason.
    pub drops_in: ByReason,
    /// Frames dropped at egress, by reason.
    pub drops_out: ByReason,
    /// Frames forwarded to one port.
    pub forwarded: u64,
    /// Copies of flooded frames.
    pub copies: u64,
    /// Loop probes of the switch.
    pub probes: u64,
    /// Announcements of local stations by the switch.
    pub announcements: u64,
    /// Frames transmitted.
    pub tx_frames: u64,
    /// Frames dropped at egress, all reasons.
    pub dropped: u64,
    /// Frames for one port handed off to other workers.
    pub frames_sent: u64,
    /// Frames for one port taken over from other workers.
    pub frames_received: u64,
    /// Frames for flooding handed off to other workers.
    pub floods_sent: u64,
    /// Frames for flooding taken over from other workers.
    pub floods_received: u64,
}

impl Snapshot {
    /// An empty snapshot with capacity for `ports` ports.
    pub fn with_capacity(ports: usize) -> Snapshot {
        Snapshot { shares: Vec::with_capacity(ports), ..Snapshot::default() }
    }

    /// Reads all counters of a worker. Called by the worker itself, between two polls. Allocates nothing and reads each
    /// port's counters once.
    pub fn take(&mut self, port_counters: &[Option<Arc<PortCounters>>], own: &WorkerCounters) {
        self.forwarded = own.retired.forwarded.get();
        self.copies = own.retired.copies.get();
        self.probes = own.retired.probes.get();
        self.announcements = own.retired.announcements.get();
        self.tx_frames = own.retired.tx_frames.get();
        self.dropped = own.retired.drops_out.get().wrapping_add(own.closed_port_drops.get());
        self.frames_sent = own.peer_tx_frames.get();
        self.frames_received = own.peer_rx_frames.get();
        self.floods_sent = own.peer_tx_floods.get();
        self.floods_received = own.peer_rx_floods.get();
        for (port, counters) in
            port_counters.iter().enumerate().filter_map(|(port, counters)| Some((port, counters.as_deref()?)))
        {
            let mut share = PortTotals {
                port,
                rx_frames: counters.rx_frames.get(),
                forwarded: counters.forwarded.get(),
                flooded: counters.flooded.get(),
                drops_in: 0,
            };
            for reason in DropReason::ALL {
                let (died_in, died_out) = (counters.drops_in.get(reason), counters.drops_out.get(reason));
                share.drops_in += died_in;
                self.drops_in[reason] += died_in;
                self.drops_out[reason] += died_out;
                self.dropped = self.dropped.wrapping_add(died_out);
            }
            self.forwarded = self.forwarded.wrapping_add(share.forwarded);
            self.copies = self.copies.wrapping_add(counters.copies.get());
            self.probes = self.probes.wrapping_add(counters.probes.get());
            self.announcements = self.announcements.wrapping_add(counters.announcements.get());
            self.tx_frames = self.tx_frames.wrapping_add(counters.tx_frames.get());
            if self.shares.len() < self.shares.capacity() {
                self.shares.push(share);
            }
        }
    }

    /// Frames for egress minus accounted ones; 0 if all is right.
    pub fn delta(&self) -> i64 {
        let own = self.probes.wrapping_add(self.announcements);
        let expected = self.forwarded.wrapping_add(self.copies).wrapping_add(own).wrapping_add(self.frames_received);
        let went = self.tx_frames.wrapping_add(self.dropped).wrapping_add(self.frames_sent);
        difference(expected, went)
    }
}

/// Two snapshots of each worker, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// By worker. All taken before the first of `second` is requested.
    pub first: Vec<Snapshot>,
    /// By worker.
    pub second: Vec<Snapshot>,
}

impl Audit {
    /// Whether no frame moved between the snapshots.
    pub fn is_idle(&self) -> bool {
        self.first == self.second
    }

    /// Counts of one port, summed over all workers.
    pub fn port(&self, port: usize) -> PortTotals {
        let shares = self.second.iter().flat_map(|reading| &reading.shares).filter(|share| share.port == port);
        shares.fold(PortTotals { port, ..PortTotals::default() }, |sum, share| PortTotals {
            port,
            rx_frames: sum.rx_frames + share.rx_frames,
            forwarded: sum.forwarded + share.forwarded,
            flooded: sum.flooded + share.flooded,
            drops_in: sum.drops_in + share.drops_in,
        })
    }

    /// Frames for one port in flight between workers: lower and upper bound.
    pub fn frames_between(&self) -> (i64, i64) {
        self.between(|reading| (reading.frames_sent, reading.frames_received))
    }

    /// Frames for flooding in flight between workers: lower and upper bound.
    pub fn floods_between(&self) -> (i64, i64) {
        self.between(|reading| (reading.floods_sent, reading.floods_received))
    }

    fn between(&self, counts: fn(&Snapshot) -> (u64, u64)) -> (i64, i64) {
        let sum = |readings: &[Snapshot]| {
            readings.iter().map(counts).fold((0u64, 0u64), |sum, count| (sum.0 + count.0, sum.1 + count.1))
        };
        let (first, second) = (sum(&self.first), sum(&self.second));
        (difference(first.0, second.1).max(0), difference(second.0, first.1))
    }

    /// Whether every frame is accounted for: at each worker, at each port, and between workers.
    pub fn is_balanced(&self) -> bool {
        let on_the_way = [self.frames_between(), self.floods_between()];
        let is_ok = |&(least, most): &(i64, i64)| most >= least && (!self.is_idle() || most == 0);
        on_the_way.iter().all(is_ok)
            && self.second.iter().all(|reading| reading.delta() == 0)
            && self.second.iter().flat_map(|reading| &reading.shares).all(|share| share.delta() == 0)
    }
}

/// `left - right`, for counters that may have wrapped.
#[allow(clippy::cast_possible_wrap)] // a negative difference is the intended result
fn difference(left: u64, right: u64) -> i64 {
    left.wrapping_sub(right) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counters(forwarded: u64, tx: u64) -> Arc<PortCounters> {
        let counters = PortCounters::default();
        counters.rx_frames.add(forwarded);
        counters.forwarded.add(forwarded);
        counters.tx_frames.add(tx);
        Arc::new(counters)
    }

    fn reading(port_counters: &[Option<Arc<PortCounters>>], own: &WorkerCounters) -> Snapshot {
        let mut reading = Snapshot::with_capacity(port_counters.len());
        reading.take(port_counters, own);
        reading
    }

    proptest! {
        /// However ports are removed and added again, each frame stays counted, and once.
        #[test]
        fn counters_of_removed_ports_are_retained(
            counts in prop::collection::vec((0..1000u64, 0..1000u64), 8),
            changes in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..10),
        ) {
            let all: Vec<_> = counts.iter().map(|&(forwarded, tx)| counters(forwarded, tx)).collect();
            let own = WorkerCounters::default();
            let (mut port_counters, mut ever) = (Vec::new(), [false; 8]);
            for (turn, change) in changes.into_iter().enumerate() {
                let mut new: Vec<_> = all.iter().zip(&change).map(|(counters, &there)| there.then(|| counters.clone())).collect();
                // The same counters may be at another index.
                new.rotate_left(turn % 8);
                own.retired.retire(&port_counters, &new);
                port_counters = new;
                ever.iter_mut().zip(change).for_each(|(ever, there)| *ever |= there);
                let reading = reading(&port_counters, &own);
                let sum = |of: fn(&(u64, u64)) -> u64| -> u64 {
                    counts.iter().zip(ever).filter(|(_, ever)| *ever).map(|(count, _)| of(count)).sum()
                };
                prop_assert_eq!((reading.forwarded, reading.tx_frames), (sum(|c| c.0), sum(|c| c.1)));
            }
        }
    }

    #[test]
    fn frames_in_flight_are_bounded_and_must_arrive() {
        let own = WorkerCounters::default();
        let port_counters = [Some(counters(5, 0))];
        own.peer_tx_frames.add(5);
        let sender = reading(&port_counters, &own);
        let receiver = |received| {
            let own = WorkerCounters::default();
            own.peer_rx_frames.add(received);
            reading(&[Some(counters(0, received))], &own)
        };
        let audit = |first, second| Audit {
            first: vec![sender.clone(), receiver(first)],
            second: vec![sender.clone(), receiver(second)],
        };
        assert_eq!(audit(2, 4).frames_between(), (1, 3));
        assert!(audit(2, 4).is_balanced(), "the others are in flight");
        assert!(audit(5, 5).is_balanced());
        assert!(!audit(4, 4).is_balanced(), "idle, and one frame is missing");
        assert!(!audit(6, 6).is_balanced(), "one more received than sent");
    }

    #[test]
    fn a_reading_does_not_reallocate() {
        let mut reading = Snapshot::default();
        reading.take(&[Some(counters(5, 0))], &WorkerCounters::default());
        assert_eq!((reading.shares.capacity(), reading.forwarded), (0, 5));
    }
}
