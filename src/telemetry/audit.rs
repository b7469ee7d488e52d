//! Does the ledger add up? The proof, on a switch that runs.
//!
//! Counters that are read while their worker counts do not balance: some of a burst would be in,
//! and the rest not yet. So each worker takes a [`Reading`] of all its counters itself, between two
//! breaths, when its lanes are empty. In a reading these hold exactly, whatever the traffic:
//!
//! * of each port, `rx = forwarded + flooded + Σ drops in`;
//! * of the worker, `forwarded + copies + probes + announcements + heard = tx + Σ drops out + sent`, where *sent*
//!   and *heard* are the frames handed to other workers and taken over from them.
//!
//! Between workers frames are on their way. Readings are taken twice, so that there is a bound
//! whatever moves: nothing that the first of them has as heard may be missing from what the second
//! has as sent. When nothing has moved in between, the two are equal.
//!
//! A port that is closed takes its counters with it. What they had comes to the [`Parted`] of the
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
pub struct Parted {
    /// How often the books were changed. A book bears the number of the last change that kept it.
    term: Counter,
    forwarded: Counter,
    copies: Counter,
    probes: Counter,
    announcements: Counter,
    tx_frames: Counter,
    drops_out: Counter,
}

impl Parted {
    /// Takes over what was counted in those of the `old` books that are not among the `new` ones;
    /// and gives back what was taken over of those that come again.
    pub fn settle(&self, old: &[Option<Arc<PortCounters>>], new: &[Option<Arc<PortCounters>>]) {
        let last = self.term.get();
        let term = last + 1;
        self.term.set(term);
        for book in new.iter().flatten() {
            let known = book.term.get();
            if known != 0 && known != last && known != term {
                self.add(book, u64::wrapping_neg);
            }
            book.term.set(term);
        }
        for book in old.iter().flatten().filter(|book| book.term.get() == last) {
            self.add(book, |frames| frames);
        }
    }

    fn add(&self, book: &PortCounters, sign: fn(u64) -> u64) {
        self.forwarded.add(sign(book.forwarded.get()));
        self.copies.add(sign(book.copies.get()));
        self.probes.add(sign(book.probes.get()));
        self.announcements.add(sign(book.announcements.get()));
        self.tx_frames.add(sign(book.tx_frames.get()));
        self.drops_out.add(sign(book.drops_out.total()));
    }
}

/// What one worker has counted of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
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

impl Share {
    /// By how many frames more came in than is accounted for. 0 is right.
    pub fn off(&self) -> i64 {
        difference(self.rx_frames, self.forwarded + self.flooded + self.drops_in)
    }
}

/// What one worker has counted, at one moment between two breaths. Frames of ports that are no more
/// are in the totals, and in no share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// What it has counted of each port. There is no room for more than its capacity.
    pub shares: Vec<Share>,
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
    pub died: u64,
    /// Frames for one port that were handed to other workers.
    pub frames_sent: u64,
    /// And those that were taken over from them.
    pub frames_heard: u64,
    /// Frames to be flooded by other workers that were handed to them.
    pub floods_sent: u64,
    /// And those that were taken over from them.
    pub floods_heard: u64,
}

impl Reading {
    /// One that has room for so many ports.
    pub fn with_capacity(ports: usize) -> Reading {
        Reading { shares: Vec::with_capacity(ports), ..Reading::default() }
    }

    /// Reads all counters of a worker. Only the worker itself can do this between two breaths. It
    /// allocates nothing, and looks at each book once.
    pub fn take(&mut self, books: &[Option<Arc<PortCounters>>], own: &WorkerCounters) {
        self.forwarded = own.parted.forwarded.get();
        self.copies = own.parted.copies.get();
        self.probes = own.parted.probes.get();
        self.announcements = own.parted.announcements.get();
        self.tx_frames = own.parted.tx_frames.get();
        self.died = own.parted.drops_out.get().wrapping_add(own.strays.get());
        self.frames_sent = own.frames_sent.get();
        self.frames_heard = own.frames_heard.get();
        self.floods_sent = own.floods_sent.get();
        self.floods_heard = own.floods_heard.get();
        for (port, book) in books.iter().enumerate().filter_map(|(port, book)| Some((port, book.as_deref()?))) {
            let mut share = Share {
                port,
                rx_frames: book.rx_frames.get(),
                forwarded: book.forwarded.get(),
                flooded: book.flooded.get(),
                drops_in: 0,
            };
            for reason in DropReason::ALL {
                let (died_in, died_out) = (book.drops_in.get(reason), book.drops_out.get(reason));
                share.drops_in += died_in;
                self.drops_in[reason] += died_in;
                self.drops_out[reason] += died_out;
                self.died = self.died.wrapping_add(died_out);
            }
            self.forwarded = self.forwarded.wrapping_add(share.forwarded);
            self.copies = self.copies.wrapping_add(book.copies.get());
            self.probes = self.probes.wrapping_add(book.probes.get());
            self.announcements = self.announcements.wrapping_add(book.announcements.get());
            self.tx_frames = self.tx_frames.wrapping_add(book.tx_frames.get());
            if self.shares.len() < self.shares.capacity() {
                self.shares.push(share);
            }
        }
    }

    /// By how many frames more were to go out than is accounted for. 0 is right.
    pub fn off(&self) -> i64 {
        let own = self.probes.wrapping_add(self.announcements);
        let meant = self.forwarded.wrapping_add(self.copies).wrapping_add(own).wrapping_add(self.frames_heard);
        let went = self.tx_frames.wrapping_add(self.died).wrapping_add(self.frames_sent);
        difference(meant, went)
    }
}

/// Two readings of each worker, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// By worker. All were taken before the first of `second` was asked for.
    pub first: Vec<Reading>,
    /// By worker.
    pub second: Vec<Reading>,
}

impl Audit {
    /// Whether nothing has moved between the readings.
    pub fn is_quiet(&self) -> bool {
        self.first == self.second
    }

    /// What all workers have counted of one port.
    pub fn port(&self, port: usize) -> Share {
        let shares = self.second.iter().flat_map(|reading| &reading.shares).filter(|share| share.port == port);
        shares.fold(Share { port, ..Share::default() }, |sum, share| Share {
            port,
            rx_frames: sum.rx_frames + share.rx_frames,
            forwarded: sum.forwarded + share.forwarded,
            flooded: sum.flooded + share.flooded,
            drops_in: sum.drops_in + share.drops_in,
        })
    }

    /// Frames for one port that are on their way between workers: at least, and at most.
    pub fn frames_between(&self) -> (i64, i64) {
        self.between(|reading| (reading.frames_sent, reading.frames_heard))
    }

    /// Frames to be flooded that are on their way between workers: at least, and at most.
    pub fn floods_between(&self) -> (i64, i64) {
        self.between(|reading| (reading.floods_sent, reading.floods_heard))
    }

    fn between(&self, counts: fn(&Reading) -> (u64, u64)) -> (i64, i64) {
        let sum = |readings: &[Reading]| {
            readings.iter().map(counts).fold((0u64, 0u64), |sum, count| (sum.0 + count.0, sum.1 + count.1))
        };
        let (first, second) = (sum(&self.first), sum(&self.second));
        (difference(first.0, second.1).max(0), difference(second.0, first.1))
    }

    /// Whether everything is accounted for: at each worker, at each port, and between workers.
    pub fn adds_up(&self) -> bool {
        let on_the_way = [self.frames_between(), self.floods_between()];
        let fits = |&(least, most): &(i64, i64)| most >= least && (!self.is_quiet() || most == 0);
        on_the_way.iter().all(fits)
            && self.second.iter().all(|reading| reading.off() == 0)
            && self.second.iter().flat_map(|reading| &reading.shares).all(|share| share.off() == 0)
    }
}

/// `left - right`, of counters that may have wrapped.
#[allow(clippy::cast_possible_wrap)] // that is the point
fn difference(left: u64, right: u64) -> i64 {
    left.wrapping_sub(right) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn book(forwarded: u64, tx: u64) -> Arc<PortCounters> {
        let book = PortCounters::default();
        book.rx_frames.add(forwarded);
        book.forwarded.add(forwarded);
        book.tx_frames.add(tx);
        Arc::new(book)
    }

    fn reading(books: &[Option<Arc<PortCounters>>], own: &WorkerCounters) -> Reading {
        let mut reading = Reading::with_capacity(books.len());
        reading.take(books, own);
        reading
    }

    proptest! {
        /// However ports come and go, and come again, nothing is forgotten and nothing counted twice.
        #[test]
        fn what_has_been_counted_stays_counted(
            counts in prop::collection::vec((0..1000u64, 0..1000u64), 8),
            changes in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..10),
        ) {
            let all: Vec<_> = counts.iter().map(|&(forwarded, tx)| book(forwarded, tx)).collect();
            let own = WorkerCounters::default();
            let (mut books, mut ever) = (Vec::new(), [false; 8]);
            for (turn, change) in changes.into_iter().enumerate() {
                let mut new: Vec<_> = all.iter().zip(&change).map(|(book, &there)| there.then(|| book.clone())).collect();
                // The same book may stand in another place.
                new.rotate_left(turn % 8);
                own.parted.settle(&books, &new);
                books = new;
                ever.iter_mut().zip(change).for_each(|(ever, there)| *ever |= there);
                let reading = reading(&books, &own);
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
        let books = [Some(book(5, 0))];
        own.frames_sent.add(5);
        let sender = reading(&books, &own);
        let hearer = |heard| {
            let own = WorkerCounters::default();
            own.frames_heard.add(heard);
            reading(&[Some(book(0, heard))], &own)
        };
        let audit = |first, second| Audit {
            first: vec![sender.clone(), hearer(first)],
            second: vec![sender.clone(), hearer(second)],
        };
        assert_eq!(audit(2, 4).frames_between(), (1, 3));
        assert!(audit(2, 4).adds_up(), "the others are on their way");
        assert!(audit(5, 5).adds_up());
        assert!(!audit(4, 4).adds_up(), "nothing moves, and one is missing");
        assert!(!audit(6, 6).adds_up(), "one more was heard than was sent");
    }

    #[test]
    fn a_reading_keeps_to_its_room() {
        let mut reading = Reading::default();
        reading.take(&[Some(book(5, 0))], &WorkerCounters::default());
        assert_eq!((reading.shares.capacity(), reading.forwarded), (0, 5));
    }
}
