//! Does the ledger add up? The proof, on a switch that runs.
//!
//! Counters that are read while their worker counts do not balance: some of a burst would be in,
//! and the rest not yet. So each worker takes a [`Snapshot`] of all its counters itself, between two
//! polls, when its TX batches are empty. In a reading these hold exactly, whatever the traffic:
//!
//! * of each port, `rx = forwarded + flooded + Σ drops in`;
//! * of the worker, `forwarded + copies + probes + announcements + heard = tx + Σ drops out + sent`, where *sent*
//!   and *heard* are the frames handed to other workers and taken over from them.
//!
//! Between workers frames are on their way. Readings are taken twice, so that there is a bound
//! whatever moves: nothing that the first of them has as heard may be missing from what the second
//! has as sent. When nothing has moved in between, the two are equal.
//!
//! A port that is closed takes its counters with it. What they had comes to the [`Retired`] of the
//! worker, so that the books balance over everything there ever was.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use super::{Counter, PortCounters, WorkerCounters};
use crate::switch::DropReason;

/// One count for each reason to die.
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

/// What is kept of the counters of ports that are no more.
#[derive(Debug, Default)]
pub struct Retired {
    /// How often the books were changed. A book bears the number of the last change that kept it.
    epoch: Counter,
    forwarded: Counter,
    copies: Counter,
    probes: Counter,
    announcements: Counter,
    tx_frames: Counter,
    drops_out: Counter,
}

impl Retired {
    /// Takes over what was counted in those of the `old` books that are not among the `new` ones;
    /// and gives back what was taken over of those that come again.
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

    fn add(&self, counters: &PortCounters, sign: fn(u64) -> u64) {
        self.forwarded.add(sign(counters.forwarded.get()));
        self.copies.add(sign(counters.copies.get()));
        self.probes.add(sign(counters.probes.get()));
        self.announcements.add(sign(counters.announcements.get()));
        self.tx_frames.add(sign(counters.tx_frames.get()));
        self.drops_out.add(sign(counters.drops_out.total()));
    }
}

/// What one worker has counted of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortTotals {
    /// The port, by [`PortId::index`](crate::switch::PortId::index).
    pub port: usize,
    /// Frames that came in.
    pub rx_frames: u64,
    /// Those of them that were meant for one port.
    pub forwarded: u64,
    /// Those of them that were meant for everybody.
    pub flooded: u64,
    /// Those of them that died.
    pub drops_in: u64,
}

impl PortTotals {
    /// By how many frames more came in than is accounted for. 0 is right.
    pub fn delta(&self) -> i64 {
        difference(self.rx_frames, self.forwarded + self.flooded + self.drops_in)
    }
}

/// What one worker has counted, at one moment between two polls. Frames of ports that are no more
/// are in the totals, and in no share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// What it has counted of each port. There is no room for more than its capacity.
    pub shares: Vec<PortTotals>,
    /// Frames that died coming in, by reason.
    pub drops_in: ByReason,
    /// Frames that died going out, by reason.
    pub drops_out: ByReason,
    /// Frames meant for one port.
    pub forwarded: u64,
    /// Copies made of flooded ones.
    pub copies: u64,
    /// Loop probes that the switch sent.
    pub probes: u64,
    /// Announcements of local stations that the switch sent.
    pub announcements: u64,
    /// Frames that went out.
    pub tx_frames: u64,
    /// Frames that died going out, for whatever reason.
    pub dropped: u64,
    /// Frames for one port that were handed to other workers.
    pub frames_sent: u64,
    /// And those that were taken over from them.
    pub frames_received: u64,
    /// Frames to be flooded by other workers that were handed to them.
    pub floods_sent: u64,
    /// And those that were taken over from them.
    pub floods_received: u64,
}

impl Snapshot {
    /// One that has room for so many ports.
    pub fn with_capacity(ports: usize) -> Snapshot {
        Snapshot { shares: Vec::with_capacity(ports), ..Snapshot::default() }
    }

    /// Reads all counters of a worker. Only the worker itself can do this between two polls. It
    /// allocates nothing, and looks at each book once.
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

    /// By how many frames more were to go out than is accounted for. 0 is right.
    pub fn delta(&self) -> i64 {
        let own = self.probes.wrapping_add(self.announcements);
        let expected = self.forwarded.wrapping_add(self.copies).wrapping_add(own).wrapping_add(self.frames_received);
        let went = self.tx_frames.wrapping_add(self.dropped).wrapping_add(self.frames_sent);
        difference(expected, went)
    }
}

/// Two readings of each worker, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// By worker. All were taken before the first of `second` was asked for.
    pub first: Vec<Snapshot>,
    /// By worker.
    pub second: Vec<Snapshot>,
}

impl Audit {
    /// Whether nothing has moved between the readings.
    pub fn is_idle(&self) -> bool {
        self.first == self.second
    }

    /// What all workers have counted of one port.
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

    /// Frames for one port that are on their way between workers: at least, and at most.
    pub fn frames_between(&self) -> (i64, i64) {
        self.between(|reading| (reading.frames_sent, reading.frames_received))
    }

    /// Frames to be flooded that are on their way between workers: at least, and at most.
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

    /// Whether everything is accounted for: at each worker, at each port, and between workers.
    pub fn is_balanced(&self) -> bool {
        let on_the_way = [self.frames_between(), self.floods_between()];
        let is_ok = |&(least, most): &(i64, i64)| most >= least && (!self.is_idle() || most == 0);
        on_the_way.iter().all(is_ok)
            && self.second.iter().all(|reading| reading.delta() == 0)
            && self.second.iter().flat_map(|reading| &reading.shares).all(|share| share.delta() == 0)
    }
}

/// `left - success`, of counters that may have wrapped.
#[allow(clippy::cast_possible_wrap)] // that is the point
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
        /// However ports come and go, and come again, nothing is forgotten and nothing counted twice.
        #[test]
        fn what_has_been_counted_stays_counted(
            counts in prop::collection::vec((0..1000u64, 0..1000u64), 8),
            changes in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..10),
        ) {
            let all: Vec<_> = counts.iter().map(|&(forwarded, tx)| counters(forwarded, tx)).collect();
            let own = WorkerCounters::default();
            let (mut port_counters, mut ever) = (Vec::new(), [false; 8]);
            for (turn, change) in changes.into_iter().enumerate() {
                let mut new: Vec<_> = all.iter().zip(&change).map(|(counters, &there)| there.then(|| counters.clone())).collect();
                // The same book may stand in another place.
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
    fn what_is_on_its_way_is_bounded_and_must_arrive() {
        let own = WorkerCounters::default();
        let port_counters = [Some(counters(5, 0))];
        own.peer_tx_frames.add(5);
        let sender = reading(&port_counters, &own);
        let hearer = |received| {
            let own = WorkerCounters::default();
            own.peer_rx_frames.add(received);
            reading(&[Some(counters(0, received))], &own)
        };
        let audit = |first, second| Audit {
            first: vec![sender.clone(), hearer(first)],
            second: vec![sender.clone(), hearer(second)],
        };
        assert_eq!(audit(2, 4).frames_between(), (1, 3));
        assert!(audit(2, 4).is_balanced(), "the others are on their way");
        assert!(audit(5, 5).is_balanced());
        assert!(!audit(4, 4).is_balanced(), "nothing moves, and one is missing");
        assert!(!audit(6, 6).is_balanced(), "one more was heard than was sent");
    }

    #[test]
    fn a_reading_keeps_to_its_room() {
        let mut reading = Snapshot::default();
        reading.take(&[Some(counters(5, 0))], &WorkerCounters::default());
        assert_eq!((reading.shares.capacity(), reading.forwarded), (0, 5));
    }
}
